"""The requester against dcmtk's storescp and against scripted peers that answer badly."""

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicom_node import archive, dimse, sample, scu
from dicom_node import upper_layer as ul
from dicom_node.contexts import JPEG_BASELINE, negotiate
from dicom_node.header import Identifier
from dicom_node.scu import DicomFault

LOCAL = "127.0.0.1"
Script = Callable[[socket.socket], None]
Play = Callable[[Script], tuple[str, int]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.dcm"
    path.write_bytes(sample.clip(patient_id=Identifier("1"), patient_name="ÉLAN^Zoé"))
    return path


@pytest.fixture
def play() -> Iterator[Play]:
    """Run a script as the only peer of one connection."""
    threads: list[threading.Thread] = []
    servers: list[socket.socket] = []

    def begin(script: Script) -> tuple[str, int]:
        server = socket.create_server((LOCAL, 0))
        servers.append(server)

        def serve() -> None:
            connected, _ = server.accept()
            with connected:
                connected.settimeout(20)
                try:
                    script(connected)
                    while connected.recv(65536):
                        continue
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)
        return LOCAL, server.getsockname()[1]

    yield begin
    for server in servers:
        server.close()
    for thread in threads:
        thread.join(20)


def pdu(sock: socket.socket) -> tuple[int, bytes]:
    kind, length = struct.unpack(">BxL", exactly(sock, 6))
    return kind, exactly(sock, length)


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


def accept(sock: socket.socket, max_length: int = 4096) -> None:
    _, body = pdu(sock)
    request = ul.parse_request(body)
    sock.sendall(ul.accept_pdu(request, body[4:36], negotiate(request.contexts), max_length, 1))


def answer(sock: socket.socket, status: int = 0, responded: int | None = None) -> None:
    """Take one command (and its data set), answer it."""
    _, body = pdu(sock)
    command = dimse.parse(body[6:])
    last = not command.has_data_set
    while not last:
        _, data = pdu(sock)
        last = bool(data[5] & 2)
    if responded is not None:
        command = dimse.Command(command.field, responded, 0, command.sop_class, command.sop_instance)
    sock.sendall(ul.data_pdu(body[4], 3, dimse.response(command, status)))


def release(sock: socket.socket) -> None:
    assert pdu(sock)[0] == ul.RELEASE_RQ
    sock.sendall(ul.RELEASE_RP_PDU)


@pytest.mark.needs("dcmtk")
def test_a_clip_arrives_at_storescp(clip: Path, tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    peer = subprocess.Popen(["storescp", "-q", "+xa", "+B", "-od", str(tmp_path), str(port)])
    try:
        until = time.monotonic() + 20
        while True:
            try:
                assert scu.echo((LOCAL, port), "STORESCP") == 0
                break
            except DicomFault as fault:
                assert fault.code == "refused" and time.monotonic() < until
        ((uid, status),) = scu.store((LOCAL, port), [clip], "STORESCP", "ECHO7")
        assert status == 0
        (kept,) = tmp_path.iterdir()
        meta, sent = archive.file_meta(kept), archive.file_meta(clip)
        assert (meta.sop_instance_uid, meta.transfer_syntax_uid) == (uid, JPEG_BASELINE)
        assert kept.read_bytes()[meta.offset :] == clip.read_bytes()[sent.offset :]
    finally:
        peer.terminate()
        peer.wait(20)


def test_nobody_there_is_refused_in_stage_connect(free_port: Callable[[], int]) -> None:
    with pytest.raises(DicomFault) as caught:
        scu.echo((LOCAL, free_port()), "X")
    assert (caught.value.stage, caught.value.code) == ("connect", "refused")


def test_a_rejection_gives_its_numbers(play: Play) -> None:
    with pytest.raises(DicomFault) as caught:
        scu.echo(play(lambda sock: sock.sendall(ul.reject_pdu(1, 1, 7))), "X")
    assert (caught.value.stage, caught.value.code) == ("associate", "reject 1/1/7")


def test_silence_is_a_timeout_of_its_stage(play: Play, clip: Path) -> None:
    with pytest.raises(DicomFault) as caught:
        scu.echo(play(lambda _: None), "X", timeout=0.2)
    assert (caught.value.stage, caught.value.code) == ("associate", "timeout")

    def swallow(sock: socket.socket) -> None:
        accept(sock)
        while pdu(sock)[0] == ul.P_DATA:
            continue

    with pytest.raises(DicomFault) as caught:
        scu.store(play(swallow), [clip], "X", timeout=0.3)
    assert (caught.value.stage, caught.value.code) == ("answer", "timeout")


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (ul.abort_pdu(2), "abort 2/2"),
        (b"", "closed"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol"),
        (struct.pack(">BxL", ul.P_DATA, 0xFFFFFFFF), "closed"),
        (ul.data_pdu(1, 3, b"\xff" * 30), "protocol"),
        (ul.data_pdu(1, 2, b"data"), "protocol"),
    ],
)
def test_a_bad_answer_is_a_fact_of_stage_answer(play: Play, clip: Path, reply: bytes, code: str) -> None:
    def script(sock: socket.socket) -> None:
        accept(sock)
        pdu(sock)
        while not pdu(sock)[1][5] & 2:
            continue
        sock.sendall(reply)
        sock.shutdown(socket.SHUT_WR)

    with pytest.raises(DicomFault) as caught:
        scu.store(play(script), [clip], "X", timeout=5)
    assert (caught.value.stage, caught.value.code) == ("answer", code)


def test_an_answer_to_another_request_is_not_taken(play: Play, clip: Path) -> None:
    def script(sock: socket.socket) -> None:
        accept(sock)
        answer(sock, responded=77)

    with pytest.raises(DicomFault, match="another request"):
        scu.store(play(script), [clip], "X")


def test_a_release_collision_ends_well(play: Play) -> None:
    def script(sock: socket.socket) -> None:
        accept(sock)
        answer(sock)
        assert pdu(sock)[0] == ul.RELEASE_RQ
        sock.sendall(ul.RELEASE_RQ_PDU)
        assert pdu(sock)[0] == ul.RELEASE_RP
        sock.sendall(ul.RELEASE_RP_PDU)

    assert scu.echo(play(script), "X") == 0


def test_statuses_come_back_in_order_and_small_pdus_are_kept(play: Play, clip: Path) -> None:
    lengths: list[int] = []

    def script(sock: socket.socket) -> None:
        accept(sock, max_length=1000)
        for status in (0xA700, 0xB000):
            _, body = pdu(sock)
            while True:
                _, data = pdu(sock)
                lengths.append(len(data))
                if data[5] & 2:
                    break
            sock.sendall(ul.data_pdu(1, 3, dimse.response(dimse.parse(body[6:]), status)))
        release(sock)

    uid = archive.file_meta(clip).sop_instance_uid
    assert scu.store(play(script), [clip, clip], "X") == [(uid, 0xA700), (uid, 0xB000)]
    assert max(lengths) == 1000


def test_a_refused_context_sends_nothing(play: Play, clip: Path) -> None:
    def script(sock: socket.socket) -> None:
        _, body = pdu(sock)
        request = ul.parse_request(body)
        refused = [a._replace(result=4) for a in negotiate(request.contexts)]
        sock.sendall(ul.accept_pdu(request, body[4:36], refused, 0, 1))
        release(sock)

    assert scu.store(play(script), [clip], "X")[0][1] == dimse.SOP_CLASS_NOT_SUPPORTED


def test_a_file_that_is_no_dicom_is_a_fact_of_stage_read(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(b"hello" * 100)
    with pytest.raises(DicomFault, match=r"x\.dcm") as caught:
        scu.store((LOCAL, 1), [path], "X")
    assert caught.value.stage == "read"
