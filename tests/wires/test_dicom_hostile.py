"""A raw peer that breaks every rule of the DICOM node, slowly, at once and at random; the others lose nothing."""

import shutil
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dicom_peers import CLIP_CLASS, SC_CLASS, STORAGE, Peer, Spy, Start, nothing_left
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node import dimse, scu
from dicom_node import upper_layer as ul
from dicom_node.contexts import EXPLICIT_LE, IMPLICIT_LE, VERIFICATION, Proposed
from dicom_node.scp import Node, Policy, StoreRequest


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2.3/../../x", "", "1" * 65, "1.2.\n3", "a.b.c", "...."])
def test_a_uid_that_is_no_uid_is_refused_and_touches_no_path(start: Start, tiny: bytes, uid: str) -> None:
    spy = start()
    with Peer(spy, STORAGE) as peer:
        peer.store(tiny, uid=uid)
        assert peer.answer().status == 0x0117
        peer.store(tiny)
        assert peer.answer().status == dimse.SUCCESS
    assert len(spy.stored) == 1 and set(spy.folder.iterdir()) == {spy.spool, *spy.kept}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"uid": "1.2.3.4.99"}, dimse.DATA_SET_DOES_NOT_MATCH),
        ({"sop_class": CLIP_CLASS}, dimse.SOP_CLASS_NOT_SUPPORTED),
        ({"data": b""}, dimse.CANNOT_UNDERSTAND),
        ({"data": b"\0" * 5}, dimse.CANNOT_UNDERSTAND),
        ({"data": b"GET / HTTP/1.0\r\n\r\n"}, dimse.CANNOT_UNDERSTAND),
        ({"data": b"\xff" * 5000}, dimse.CANNOT_UNDERSTAND),
    ],
)
def test_an_object_that_cannot_be_kept_gets_its_status(
    start: Start, tiny: bytes, change: dict[str, Any], status: int
) -> None:
    spy = start()
    with Peer(spy, STORAGE) as peer:
        peer.store(**{"data": tiny, **change})
        assert peer.answer().status == status
        assert nothing_left(spy)
        peer.store(tiny)
        assert peer.answer().status == dimse.SUCCESS


def test_a_header_longer_than_what_is_kept_in_memory_is_read_from_the_file(start: Start, tiny: bytes) -> None:
    spy = start()
    private = struct.pack("<HH2sHL", 9, 0x1001, b"OB", 0, 200_000) + bytes(200_000)
    cut = tiny.index(b"\x10\0\x10\0PN")
    with Peer(spy, STORAGE) as peer:
        peer.store(tiny[:cut] + private + tiny[cut:])
        assert peer.answer().status == dimse.SUCCESS
    assert spy.stored[0].header.study_instance_uid == "1.2.3.4"


def test_an_object_without_a_study_is_refused_in_words(start: Start, tiny: bytes) -> None:
    spy = start()
    with Peer(spy, STORAGE) as peer:
        peer.store(tiny.replace(b"\x20\0\x0d\0UI\x08\0" + b"1.2.3.4\0", b""))
        answer = peer.answer()
    assert answer.status == dimse.DATA_SET_DOES_NOT_MATCH and "0020,000D" in answer.comment


class Refusal(Exception):
    cstore = 0xA9FF


@pytest.mark.parametrize(
    ("answer", "status"),
    [(Refusal("no"), 0xA9FF), (RuntimeError("no"), 0xA700), (0xB007, 0xB007), (0x0110, 0x0110)],
)
def test_the_callback_decides_the_status(start: Start, tiny: bytes, answer: Any, status: int) -> None:
    def decide(_: StoreRequest) -> int:
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    spy = start(decide)
    with Peer(spy, STORAGE) as peer:
        peer.store(tiny)
        assert peer.answer().status == status
        peer.socket.sendall(ul.RELEASE_RQ_PDU)
        assert peer.pdu()[0] == ul.RELEASE_RP
    assert spy.end()[1] == (("1.2.3.4",) if status >> 12 == 0xB else ())
    assert not list(spy.spool.iterdir())


def test_the_answer_comes_after_the_callback(start: Start, tiny: bytes) -> None:
    gate = threading.Event()
    spy = start(lambda _: 0 if gate.wait(20) else 0xA700)
    with Peer(spy, STORAGE) as peer:
        peer.store(tiny)
        peer.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            peer.pdu()
        gate.set()
        peer.socket.settimeout(20)
        assert peer.answer().status == dimse.SUCCESS


def test_a_file_the_callback_left_behind_is_deleted(tmp_path: Path, tiny: bytes) -> None:
    node = Node(("127.0.0.1", 0), Policy(tmp_path / "spool", called=None), lambda _: 0)
    node.start()
    spy = Spy(tmp_path, node=node)
    with Peer(spy, STORAGE) as peer:
        peer.store(tiny)
        assert peer.answer().status == dimse.SUCCESS
    node.close()
    assert not list(spy.spool.iterdir())


def test_too_large_an_object_is_refused_and_the_association_goes_on(start: Start, tiny: bytes) -> None:
    spy = start(max_object_bytes=len(tiny) + 10)
    with Peer(spy, STORAGE) as peer:
        peer.store(tiny + bytes(100))
        answer = peer.answer()
        assert answer.status == dimse.OUT_OF_RESOURCES and "larger" in answer.comment
        assert nothing_left(spy)
        peer.store(tiny)
        assert peer.answer().status == dimse.SUCCESS


def test_an_object_without_end_is_aborted(start: Start) -> None:
    spy = start(max_object_bytes=1 << 20)
    with Peer(spy, STORAGE) as peer:
        peer.socket.sendall(ul.data_pdu(1, 3, dimse.store_request(9, SC_CLASS, "1.2")))
        chunk = ul.data_pdu(1, 0, bytes(200_000))
        with pytest.raises(OSError):
            for _ in range(40):
                peer.socket.sendall(chunk)
            assert peer.pdu()[0] == ul.ABORT
            raise ConnectionResetError
    assert spy.end()[0].ended == "aborted" and nothing_left(spy)


def test_a_spool_that_cannot_be_written_is_out_of_resources(start: Start, tiny: bytes) -> None:
    spy = start()
    shutil.rmtree(spy.spool)
    with Peer(spy, STORAGE) as peer:
        peer.store(tiny)
        assert peer.answer().status == dimse.OUT_OF_RESOURCES
        spy.spool.mkdir()
        peer.store(tiny)
        assert peer.answer().status == dimse.SUCCESS


@pytest.mark.parametrize("farewell", [b"", ul.abort_pdu(0, 0)])
def test_a_peer_that_leaves_in_the_middle_of_an_object_leaves_no_file(
    start: Start, tiny: bytes, farewell: bytes
) -> None:
    spy = start()
    with Peer(spy, STORAGE) as peer:
        peer.store(tiny)
        assert peer.answer().status == dimse.SUCCESS
        peer.socket.sendall(ul.data_pdu(1, 3, dimse.store_request(9, SC_CLASS, "1.2")))
        peer.socket.sendall(ul.data_pdu(1, 0, tiny[:400]) + farewell)
        if not farewell:
            peer.socket.shutdown(socket.SHUT_WR)
        info, studies = spy.end()
    assert (info.ended, studies) == ("aborted", ("1.2.3.4",))
    assert len(spy.stored) == 1 and not list(spy.spool.iterdir())


C_FIND = struct.pack("<HHLHHHLHHHLHHHLH", 0, 0x100, 2, 0x20, 0, 0x110, 2, 5, 0, 0x700, 2, 0, 0, 0x800, 2, 1)
N_GET = struct.pack("<HHLHHHLHHHLH", 0, 0x100, 2, 0x110, 0, 0x110, 2, 6, 0, 0x800, 2, 0x101)


@pytest.mark.parametrize("command", [C_FIND, N_GET])
def test_other_services_are_answered_as_unrecognized(start: Start, tiny: bytes, command: bytes) -> None:
    spy = start()
    with Peer(spy, STORAGE) as peer:
        peer.socket.sendall(ul.data_pdu(1, 3, command))
        if command == C_FIND:
            peer.socket.sendall(ul.data_pdu(1, 2, b"\x08\0\x52\0CS\x06\0STUDY "))
        answer = peer.answer()
        assert answer.status == dimse.UNRECOGNIZED_OPERATION and answer.field & 0x8000
        peer.store(tiny)
        assert peer.answer().status == dimse.SUCCESS


def test_a_cancel_is_not_answered(start: Start, tiny: bytes) -> None:
    cancel = struct.pack("<HHLHHHLHHHLH", 0, 0x100, 2, 0x0FFF, 0, 0x120, 2, 5, 0, 0x800, 2, 0x101)
    with Peer(start(), STORAGE) as peer:
        peer.socket.sendall(ul.data_pdu(1, 3, cancel))
        peer.store(tiny)
        assert peer.answer().field == 0x8001


STORE = dimse.store_request(9, SC_CLASS, "1.2.3.4.0")


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(ul.data_pdu(99, 3, STORE), id="a context nobody accepted"),
        pytest.param(ul.data_pdu(1, 2, b"data"), id="data before any command"),
        pytest.param(ul.data_pdu(1, 3, STORE) + ul.data_pdu(1, 3, STORE), id="a command inside an object"),
        pytest.param(ul.data_pdu(1, 3, STORE) + ul.data_pdu(3, 2, b"data"), id="data on another context"),
        pytest.param(ul.data_pdu(1, 3, b"\0" * 7), id="a command cut short"),
        pytest.param(ul.data_pdu(1, 3, b"\xff" * 64), id="a command of garbage"),
        pytest.param(ul.data_pdu(1, 1, bytes(60000)) + ul.data_pdu(1, 1, bytes(60000)), id="a command without end"),
        pytest.param(ul.data_pdu(1, 3, dimse.response(dimse.Command(1, 9), 0)), id="a response"),
        pytest.param(struct.pack(">BxL", ul.P_DATA, 0xFFFFFFFF), id="a PDU of 4 GB"),
        pytest.param(struct.pack(">BxL", ul.P_DATA, 0), id="an empty PDU"),
        pytest.param(struct.pack(">BxLLBB", ul.P_DATA, 6, 0, 1, 3), id="a PDV of length 0"),
        pytest.param(struct.pack(">BxLLBB", ul.P_DATA, 10, 0xFFFFFFF0, 1, 3), id="a PDV longer than its PDU"),
        pytest.param(struct.pack(">BxLLBBxx", ul.P_DATA, 8, 2, 1, 3), id="a PDU with a rest"),
        pytest.param(struct.pack(">BxL", 0x55, 4), id="a PDU type nobody knows"),
        pytest.param(ul.RELEASE_RP_PDU, id="the answer to a release nobody asked for"),
        pytest.param(ul.request_pdu("A", "B", (STORAGE,), 0), id="a second association"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="a web browser"),
    ],
)
def test_a_broken_protocol_is_aborted_and_leaves_nothing(start: Start, attack: bytes) -> None:
    spy = start()
    with Peer(spy, STORAGE, Proposed(3, VERIFICATION, (IMPLICIT_LE,))) as peer:
        assert peer.opening[0] == ul.ASSOCIATE_AC
        peer.socket.sendall(attack)
        kind, body = peer.pdu()
        assert kind == ul.ABORT and body[2] == 2
    info, _ = spy.end()
    assert info.ended == "aborted" and info.reason and nothing_left(spy)


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        struct.pack(">BxL", ul.ASSOCIATE_RQ, 0xFFFFFFFF),
        struct.pack(">BxL", ul.ASSOCIATE_RQ, 10) + bytes(10),
        ul.RELEASE_RQ_PDU,
        ul.data_pdu(1, 3, STORE),
        ul.request_pdu("A", "B", (Proposed(2, SC_CLASS, (EXPLICIT_LE,)),), 0),
    ],
)
def test_a_connection_that_does_not_begin_with_a_request_is_aborted(start: Start, opening: bytes) -> None:
    spy = start()
    with Peer(spy) as peer:
        peer.socket.sendall(opening)
        assert peer.pdu()[0] in (ul.ABORT, 0)
    assert spy.heard.empty() and nothing_left(spy)


def test_another_application_context_is_rejected(start: Start) -> None:
    with Peer(start()) as peer:
        request = ul.request_pdu("A", "B", (STORAGE,), 0)
        peer.socket.sendall(request.replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9"))
        assert peer.pdu() == (ul.ASSOCIATE_RJ, bytes((0, 1, 1, 2)))


def test_another_protocol_version_is_rejected(start: Start) -> None:
    with Peer(start()) as peer:
        request = bytearray(ul.request_pdu("A", "B", (STORAGE,), 0))
        request[6:8] = b"\0\x02"
        peer.socket.sendall(request)
        assert peer.pdu() == (ul.ASSOCIATE_RJ, bytes((0, 1, 2, 2)))


@pytest.mark.parametrize("beginning", [b"", b"\x01\0\0"])
def test_who_never_associates_is_dropped(start: Start, beginning: bytes) -> None:
    spy = start(artim_seconds=0.2)
    with Peer(spy) as peer:
        peer.socket.sendall(beginning)
        while peer.pdu() != (0, b""):
            continue


def test_who_trickles_an_object_is_dropped(start: Start, tiny: bytes) -> None:
    spy = start(idle_seconds=0.4, min_rate=1e6)
    stop = threading.Event()
    with Peer(spy, STORAGE) as peer:
        peer.socket.sendall(ul.data_pdu(1, 3, STORE) + struct.pack(">BxLLBB", ul.P_DATA, 606, 602, 1, 0))

        def trickle() -> None:
            while not stop.wait(0.02):
                try:
                    peer.socket.sendall(b"\0")
                except OSError:
                    return

        feeder = threading.Thread(target=trickle)
        feeder.start()
        try:
            info, _ = spy.end()
        finally:
            stop.set()
            feeder.join()
    assert info.ended == "aborted" and "slowly" in info.reason and nothing_left(spy)


def test_who_is_idle_too_long_is_aborted(start: Start) -> None:
    spy = start(idle_seconds=0.2)
    with Peer(spy, STORAGE) as peer:
        assert peer.pdu()[0] == ul.ABORT
    assert spy.end()[0].ended == "aborted"


def test_one_association_too_many_is_rejected_for_now(start: Start) -> None:
    spy = start(max_associations=2)
    with Peer(spy, STORAGE) as first, Peer(spy, STORAGE), Peer(spy, STORAGE) as third:
        assert third.opening == (ul.ASSOCIATE_RJ, bytes((0, 2, 3, 2)))
        first.socket.sendall(ul.RELEASE_RQ_PDU)
        assert first.pdu()[0] == ul.RELEASE_RP
        spy.end()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with Peer(spy, STORAGE) as fourth:
                if fourth.opening[0] == ul.ASSOCIATE_AC:
                    return
        pytest.fail("the place was not given back")


def test_one_address_cannot_take_every_connection(start: Start) -> None:
    spy = start(max_per_address=3)
    with Peer(spy, STORAGE), Peer(spy), Peer(spy), Peer(spy) as fourth:
        assert fourth.pdu() == (0, b"")


def test_pipelined_objects_are_answered_in_order(start: Start, tiny: bytes) -> None:
    spy = start()
    stream = b"".join(
        ul.data_pdu(1, 3, dimse.store_request(number, SC_CLASS, "1.2.3.4.0")) + ul.data_pdu(1, 2, tiny)
        for number in range(1, 21)
    )
    with Peer(spy, STORAGE) as peer:
        peer.socket.sendall(stream)
        assert [peer.answer().responded_id for _ in range(20)] == list(range(1, 21))


def test_a_release_in_the_same_packet_as_the_last_object_is_honoured(start: Start, tiny: bytes) -> None:
    spy = start()
    with Peer(spy, STORAGE) as peer:
        peer.socket.sendall(ul.data_pdu(1, 3, STORE) + ul.data_pdu(1, 2, tiny) + ul.RELEASE_RQ_PDU)
        assert peer.answer().status == dimse.SUCCESS
        assert peer.pdu()[0] == ul.RELEASE_RP
    assert spy.end()[0].ended == "released"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_stream_harms_nobody_else(fuzzed: Spy, tiny: bytes, data: st.DataObject) -> None:
    stream = bytearray(ul.data_pdu(1, 3, STORE) + ul.data_pdu(1, 0, tiny[:300]) + ul.data_pdu(1, 2, tiny[300:]))
    for _ in range(data.draw(st.integers(1, 5))):
        stream[data.draw(st.integers(0, 160) | st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with Peer(fuzzed, STORAGE) as peer:
        peer.socket.sendall(stream[: data.draw(st.integers(1, len(stream)))])
        peer.socket.shutdown(socket.SHUT_WR)
        while peer.pdu()[0]:
            continue
    info, _ = fuzzed.end()
    assert info.ended in ("aborted", "released") and not list(fuzzed.spool.iterdir())
    assert scu.echo(("127.0.0.1", fuzzed.node.port), "PASSERELLE") == dimse.SUCCESS
    assert fuzzed.end()[0].ended == "released"


@pytest.fixture
def fuzzed(start: Start) -> Spy:
    return start(artim_seconds=5)


def test_a_large_object_costs_no_memory(start: Start, tiny: bytes) -> None:
    spy = start()
    body = tiny + struct.pack("<HH2sHL", 0x7FE1, 0x1001, b"OB", 0, 40_000_000)
    chunk = ul.data_pdu(1, 0, bytes(100_000))
    with Peer(spy, STORAGE) as peer:
        tracemalloc.start()
        try:
            peer.socket.sendall(ul.data_pdu(1, 3, STORE) + ul.data_pdu(1, 0, body))
            for _ in range(400):
                peer.socket.sendall(chunk)
            peer.socket.sendall(ul.data_pdu(1, 2, b""))
            assert peer.answer().status == dimse.SUCCESS
            assert tracemalloc.get_traced_memory()[1] < 4_000_000
        finally:
            tracemalloc.stop()
    assert spy.stored[0].size == len(body) + 40_000_000


def pdv(control: int, content: bytes) -> bytes:
    return struct.pack(">LBB", len(content) + 2, 1, control) + content


def pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    return [content[a:b] for a, b in pairwise(edges)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_message_may_be_cut_anywhere(wired: tuple[Spy, Peer], tiny: bytes, data: st.DataObject) -> None:
    spy, peer = wired
    cuts = st.lists(st.integers(0, len(tiny)), max_size=12)
    pdvs: list[bytes] = []
    for _ in range(2):
        command, body = pieces(STORE, data.draw(cuts)), pieces(tiny, data.draw(cuts))
        pdvs += [pdv(1 | (2 if n == len(command) - 1 else 0), part) for n, part in enumerate(command)]
        pdvs += [pdv(2 if n == len(body) - 1 else 0, part) for n, part in enumerate(body)]
    grouped = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
    stream, turn = b"", 0
    while pdvs:
        group, pdvs = pdvs[: grouped[turn % len(grouped)]], pdvs[grouped[turn % len(grouped)] :]
        stream += struct.pack(">BxL", ul.P_DATA, sum(map(len, group))) + b"".join(group)
        turn += 1
    for part in pieces(stream, data.draw(st.lists(st.integers(0, len(stream)), max_size=10))):
        peer.socket.sendall(part)
    for _ in range(2):
        assert peer.answer().status == dimse.SUCCESS
    assert spy.data_set(-1) == spy.data_set(-2) == tiny


@pytest.fixture
def wired(start: Start) -> Iterator[tuple[Spy, Peer]]:
    spy = start()
    with Peer(spy, STORAGE) as peer:
        yield spy, peer
