"""The MLLP wire on real sockets: what a listener must survive, what a sender must notice."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from conformance.peers.mllp import Peer, Zam
from hl7v2 import ack
from hl7v2.frames import END, FS, VT, wrap
from hl7v2.mllp import Listener, MllpFault, Policy, Sender, send
from hl7v2.secured import refused_unread

NOW = datetime(2026, 3, 2, 8, 30, tzinfo=UTC)
Serve = Callable[..., Listener]


def message(control_id: str = "M1", body: bytes = b"") -> bytes:
    head = f"MSH|^~\\&|GAM|CH|PASSERELLE|CH|20260302083000||ADT^A01^ADT_A01|{control_id}|T|2.5^FRA^2.11"
    return (
        head.encode()
        + b"|||||FRA|UNICODE UTF-8"
        + b"\rEVN||20260302083000\r"
        + (b"NTE|||" + body + b"\r" if body else b"")
    )


def accept(raw: bytes, peer: str) -> bytes:
    return ack.build(raw, "AA", now=NOW, control_id="ACK")


def keeping(received: list[bytes]) -> Callable[[bytes, str], bytes]:
    """What accepts a message and remembers it."""

    def keep(raw: bytes, peer: str) -> bytes:
        received.append(raw)
        return accept(raw, peer)

    return keep


@pytest.fixture
def serve() -> Iterator[Serve]:
    listeners: list[Listener] = []

    def start(on_message: Callable[[bytes, str], bytes] = accept, **limits: Any) -> Listener:
        limits.setdefault("farewell_seconds", 1.0)
        listener = Listener(("127.0.0.1", 0), on_message, policy=Policy(clock=lambda: NOW, **limits))
        listener.start()
        listeners.append(listener)
        return listener

    yield start
    closed = [listener.close(10) for listener in listeners]
    assert all(closed), "a connection thread was left behind"


@contextlib.contextmanager
def connect(listener: Listener) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", listener.port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


def read_frames(sock: socket.socket, count: int) -> list[ack.Ack]:
    data = b""
    while data.count(END) < count:
        more = sock.recv(65536)
        assert more, f"closed after {data!r}"
        data += more
    return [ack.read(part.partition(VT)[2]) for part in data.split(END)[:count]]


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        pause.wait(0.01)


# --- the listener ------------------------------------------------------------------------------------------------


def test_many_messages_travel_over_one_connection(serve: Serve) -> None:
    listener = serve()
    with connect(listener) as sock:
        for number in range(20):
            sock.sendall(wrap(message(f"M{number}")))
            assert read_frames(sock, 1)[0] == ack.Ack("AA", f"M{number}", own_id="ACK")


def test_pipelined_messages_are_answered_each_and_in_order(serve: Serve) -> None:
    listener = serve()
    with connect(listener) as sock:
        sock.sendall(b"".join(wrap(message(f"M{number}")) for number in range(50)))
        assert [answer.control_id for answer in read_frames(sock, 50)] == [f"M{number}" for number in range(50)]


def test_a_message_that_comes_byte_by_byte_is_one_message(serve: Serve) -> None:
    received: list[bytes] = []
    listener = serve(keeping(received))
    with connect(listener) as sock:
        for byte in wrap(message("SLOW")):
            sock.sendall(bytes([byte]))
        assert read_frames(sock, 1)[0].control_id == "SLOW"
    assert received == [message("SLOW")]


def test_nuls_and_dirt_between_frames_are_stepped_over(serve: Serve) -> None:
    listener = serve()
    with connect(listener) as sock:
        sock.sendall(b"\0\0\r\n" + wrap(message("A")) + b"\0\0\0dirt\r\n" + wrap(message("B")) + b"\0")
        assert [answer.control_id for answer in read_frames(sock, 2)] == ["A", "B"]


@pytest.mark.parametrize("end", [FS, FS + b"\n", FS + b"\0"])
def test_a_frame_without_its_last_cr_is_answered(serve: Serve, end: bytes) -> None:
    listener = serve(lone_fs_seconds=0.05)
    with connect(listener) as sock:
        sock.sendall(VT + message("A") + end)
        assert read_frames(sock, 1)[0].control_id == "A"
        sock.sendall(VT + message("B") + FS + VT + message("C") + END)
        assert [answer.control_id for answer in read_frames(sock, 2)] == ["B", "C"]


def test_a_frame_that_is_only_closed_by_the_end_of_the_stream_is_answered(serve: Serve) -> None:
    listener = serve()
    with connect(listener) as sock:
        sock.sendall(VT + message("LAST") + FS)
        sock.shutdown(socket.SHUT_WR)
        assert read_frames(sock, 1)[0].control_id == "LAST"


def test_a_file_separator_inside_the_text_does_not_cut_the_message(serve: Serve) -> None:
    received: list[bytes] = []
    listener = serve(keeping(received))
    with connect(listener) as sock:
        sock.sendall(VT + message("FS", b"before" + FS + b"after") + END)
        assert read_frames(sock, 1)[0].control_id == "FS"
    assert b"after" in received[0]


def test_a_frame_begun_again_is_refused_and_the_new_one_answered(serve: Serve) -> None:
    listener = serve()
    with connect(listener) as sock:
        sock.sendall(VT + message("HALF") + wrap(message("WHOLE")))
        first, second = read_frames(sock, 2)
    assert (first.code, first.control_id) == ("AR", "HALF")
    assert (second.code, second.control_id) == ("AA", "WHOLE")


def test_a_handler_that_raises_is_answered_with_ar_207(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def fail(raw: bytes, peer: str) -> bytes:
        raise RuntimeError("the store is gone")

    listener = serve(fail)
    with connect(listener) as sock, caplog.at_level(logging.CRITICAL):
        sock.sendall(wrap(message("A")))
        answer = read_frames(sock, 1)[0]
        assert (answer.code, answer.control_id, answer.errors[0].code) == ("AR", "A", "207")
        assert "the store is gone" not in answer.text
        sock.sendall(wrap(message("B")))
        assert read_frames(sock, 1)[0].control_id == "B"


@pytest.mark.parametrize("made", [b"", b"MSH|" + FS, None])
def test_an_unusable_answer_of_the_handler_becomes_ar(serve: Serve, made: bytes | None) -> None:
    listener = serve(lambda raw, peer: made)
    with connect(listener) as sock:
        sock.sendall(wrap(message("A")))
        assert read_frames(sock, 1)[0].code == "AR"


def test_garbage_in_a_frame_reaches_the_handler_and_is_answered(serve: Serve) -> None:
    listener = serve(lambda raw, peer: ack.build(raw, "AE", now=NOW, control_id="ACK", text="no MSH", err_code="100"))
    with connect(listener) as sock:
        sock.sendall(wrap(bytes(range(32, 256)) * 20))
        answer = read_frames(sock, 1)[0]
        assert (answer.code, answer.control_id) == ("AE", "")


def test_a_message_without_frame_is_told_so(serve: Serve) -> None:
    listener = serve(idle_seconds=0.2)
    with connect(listener) as sock:
        sock.sendall(message("BARE"))
        answer = read_frames(sock, 1)[0]
        assert (answer.code, answer.control_id) == ("AE", "BARE")
        assert sock.recv(1) == b""


def test_endless_garbage_closes_the_connection(serve: Serve) -> None:
    listener = serve()
    with connect(listener) as sock, contextlib.suppress(OSError):
        for _ in range(64):
            sock.sendall(b"GET / HTTP/1.1\r\n" * 1024)
        assert sock.recv(1) == b""
    wait_until(lambda: listener.connections == 0)


def test_a_frame_one_byte_too_large_gets_ae_and_the_connection_closes(serve: Serve) -> None:
    limit = 1 << 20
    listener = serve(max_frame=limit)
    fits = message("FITS", b"x" * (limit - len(message("FITS", b".")) + 1))
    assert len(fits) == limit
    with connect(listener) as sock:
        sock.sendall(wrap(fits))
        assert read_frames(sock, 1)[0].code == "AA"
        sock.sendall(wrap(message("LARGE") + b"y" * limit))
        answer = read_frames(sock, 1)[0]
        assert (answer.code, answer.control_id) == ("AE", "LARGE")
        assert str(limit) in answer.text
        assert sock.recv(1) == b""


def test_64_mib_and_one_byte_are_refused_by_default(serve: Serve) -> None:
    listener = serve()
    limit = 64 << 20
    head = message("HUGE")
    with connect(listener) as sock:
        sock.sendall(VT + head)
        block = b"x" * (1 << 20)
        left = limit + 1 - len(head)
        while left > 0:
            sock.sendall(block[: min(left, len(block))])
            left -= len(block)
        answer = read_frames(sock, 1)[0]
        assert (answer.code, answer.control_id) == ("AE", "HUGE")


def test_a_large_refused_message_is_understood_by_our_own_sender(serve: Serve) -> None:
    listener = serve(max_frame=100_000)
    answer = send(("127.0.0.1", listener.port), message("LARGE", b"x" * 3_000_000), timeout=10)
    assert ack.read(answer).code == "AE"


def test_a_slow_loris_is_answered_and_dropped(serve: Serve) -> None:
    listener = serve(frame_seconds=0.5, silence_seconds=5.0)
    with connect(listener) as sock:
        sock.settimeout(0.05)
        sock.sendall(VT + message("LORIS"))
        answer = b""
        deadline = time.monotonic() + 5
        while not answer and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                sock.sendall(b"x")
                answer = sock.recv(65536)
        assert ack.read(answer.strip(VT + END)).code == "AR"
    wait_until(lambda: listener.connections == 0)


def test_silence_inside_a_frame_is_answered_and_dropped(serve: Serve) -> None:
    listener = serve(silence_seconds=0.2)
    with connect(listener) as sock:
        sock.sendall(VT + message("MUTE"))
        answer = read_frames(sock, 1)[0]
        assert (answer.code, answer.control_id) == ("AR", "MUTE")


def test_an_idle_connection_is_closed_after_its_time(serve: Serve) -> None:
    listener = serve(idle_seconds=0.2)
    with connect(listener) as sock:
        sock.sendall(wrap(message("A")))
        read_frames(sock, 1)
        assert sock.recv(1) == b""


def test_a_connection_that_ends_inside_a_frame_is_told_to_resend(serve: Serve) -> None:
    received: list[bytes] = []
    listener = serve(keeping(received))
    with connect(listener) as sock:
        sock.sendall(VT + message("CUT"))
        sock.shutdown(socket.SHUT_WR)
        answer = read_frames(sock, 1)[0]
        assert (answer.code, answer.control_id) == ("AR", "CUT")
    assert not received


def test_a_reset_by_the_peer_harms_nobody_else(serve: Serve) -> None:
    listener = serve()
    with connect(listener) as other:
        for _ in range(20):
            with connect(listener) as sock:
                sock.sendall(VT + b"MSH|")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: listener.connections == 1)
        other.sendall(wrap(message("OTHER")))
        assert read_frames(other, 1)[0].control_id == "OTHER"


def test_connections_beyond_the_limit_are_told_to_come_back(serve: Serve) -> None:
    listener = serve(max_connections=2, max_per_peer=2)
    with connect(listener) as one, connect(listener) as two:
        for sock in (one, two):
            sock.sendall(wrap(message("IN")))
            read_frames(sock, 1)
        with connect(listener) as three:
            three.sendall(wrap(message("OUT")))
            answer = read_frames(three, 1)[0]
            assert (answer.code, answer.control_id) == ("AR", "OUT")
            assert three.recv(1) == b""
        one.sendall(wrap(message("STILL")))
        assert read_frames(one, 1)[0].code == "AA"


def test_one_partner_leaves_room_for_the_others(serve: Serve) -> None:
    listener = serve(max_connections=10, max_per_peer=1)
    with connect(listener) as one, connect(listener) as two:
        one.sendall(wrap(message("ONE")))
        assert read_frames(one, 1)[0].code == "AA"
        two.sendall(wrap(message("TWO")))
        assert read_frames(two, 1)[0].code == "AR"
        elsewhere = socket.create_connection(("127.0.0.1", listener.port), 10, source_address=("127.0.0.2", 0))
        with elsewhere as other:
            other.sendall(wrap(message("OTHER")))
            assert read_frames(other, 1)[0] == ack.Ack("AA", "OTHER", own_id="ACK")


def test_many_connections_speak_at_once_and_each_gets_its_own_answers(serve: Serve) -> None:
    seen: dict[str, list[str]] = {}

    def keep(raw: bytes, peer: str) -> bytes:
        seen.setdefault(peer, []).append(ack.control_id_of(raw))
        return accept(raw, peer)

    listener = serve(keep, max_per_peer=48)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(listener)) for _ in range(48)]
        for turn in range(5):
            for number, sock in enumerate(socks):
                sock.sendall(wrap(message(f"C{number}-{turn}")))
        for number, sock in enumerate(socks):
            assert [one.control_id for one in read_frames(sock, 5)] == [f"C{number}-{turn}" for turn in range(5)]
        assert listener.connections == 48
    assert sorted(map(tuple, seen.values())) == sorted(tuple(f"C{n}-{turn}" for turn in range(5)) for n in range(48))


def test_both_ends_of_a_connection_notice_a_partner_that_vanished(serve: Serve) -> None:
    """By keep-alive, within minutes instead of never."""
    listener = serve(keep_alive_seconds=77)
    asked: list[tuple[int, int]] = []

    def look(sock: socket.socket) -> None:
        asked.append(keep_alive(sock))

    sender = Sender(("127.0.0.1", listener.port), timeout=5, before_send=look)
    sender.send(message("A"))
    with listener._lock:
        (link,) = listener._links
    assert keep_alive(link.sock) == (1, 77)
    assert asked == [(1, 180)]
    sender.close()


@pytest.mark.parametrize(("size", "looks"), [(10, 1), (3_000_000, 2)], ids=["small", "large"])
def test_the_last_look_before_a_message_leaves_is_followed_by_one_system_call(
    serve: Serve, size: int, looks: int
) -> None:
    """A socket that may wait is polled before it is written to, and other threads run meanwhile."""
    listener = serve()
    waits: list[float | None] = []
    sender = Sender(("127.0.0.1", listener.port), timeout=5, before_send=lambda sock: waits.append(sock.gettimeout()))
    raw = message("A") + b"NTE|1||" + b"x" * size + b"\r"
    assert ack.read(sender.send(raw)).code == "AA"
    sender.close()
    assert len(waits) == looks and waits[-1] == 0


def keep_alive(sock: socket.socket) -> tuple[int, int]:
    on = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return on, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)


def test_a_slow_handler_stops_reading_instead_of_filling_the_memory(serve: Serve) -> None:
    release, entered = threading.Event(), threading.Event()

    def slow(raw: bytes, peer: str) -> bytes:
        entered.set()
        release.wait(20)
        return accept(raw, peer)

    listener = serve(slow)
    with connect(listener) as sock:
        sock.sendall(wrap(message("FIRST")))
        assert entered.wait(5)
        sock.settimeout(0.3)
        block, taken = wrap(message("NEXT", b"x" * 60_000)), 0
        with pytest.raises(TimeoutError):
            while taken < 256 << 20:
                taken += sock.send(block)
        assert taken < 64 << 20, "the listener kept reading while its handler was busy"
        release.set()
        sock.settimeout(10)
        assert read_frames(sock, 1)[0].control_id == "FIRST"


def test_all_connections_together_hold_a_bounded_amount(serve: Serve) -> None:
    listener = serve(max_buffered=1 << 20)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(listener)) for _ in range(4)]
        refused = 0
        for number, sock in enumerate(socks):
            with contextlib.suppress(OSError):
                sock.sendall(VT + message(f"PART{number}") + b"x" * 600_000)
        for sock in socks:
            sock.settimeout(1.0)
            with contextlib.suppress(TimeoutError):
                refused += ack.read(sock.recv(65536).strip(VT + END)).code == "AR"
        assert refused >= 2


def test_closing_lets_a_running_message_be_answered(serve: Serve) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(raw: bytes, peer: str) -> bytes:
        entered.set()
        release.wait(10)
        return accept(raw, peer)

    listener = serve(slow)
    with connect(listener) as sock, connect(listener):
        sock.sendall(wrap(message("LAST")))
        assert entered.wait(5)
        closing = threading.Thread(target=listener.close)
        closing.start()
        release.set()
        assert read_frames(sock, 1)[0] == ack.Ack("AA", "LAST", own_id="ACK")
        closing.join(10)
        assert not closing.is_alive()
    with pytest.raises(RuntimeError):
        _ = listener.port


def test_start_and_close_leave_no_thread_and_no_port_behind() -> None:
    before = threading.active_count()
    for _ in range(5):
        listener = Listener(("127.0.0.1", 0), accept)
        listener.start()
        port = listener.port
        with connect(listener) as sock:
            sock.sendall(wrap(message()))
            read_frames(sock, 1)
            began = time.monotonic()
            assert listener.close()
            assert time.monotonic() - began < 2
        again = Listener(("127.0.0.1", port), accept)
        again.start()
        assert again.close()
    assert threading.active_count() == before


def test_a_taken_port_is_an_error_at_start(serve: Serve) -> None:
    listener = serve()
    with pytest.raises(OSError, match="in use"):
        Listener(("127.0.0.1", listener.port), accept).start()


def test_random_chopping_of_a_dirty_stream_changes_nothing(serve: Serve) -> None:
    chance = random.Random(20260302)
    listener = serve()
    ids = [f"R{number}" for number in range(40)]
    stream = b"".join(chance.choice([b"", b"\0", b"\r\n"]) + wrap(message(name)) for name in ids)
    with connect(listener) as sock:
        while stream:
            size = chance.randint(1, 400)
            sock.sendall(stream[:size])
            stream = stream[size:]
        assert [answer.control_id for answer in read_frames(sock, len(ids))] == ids


# --- the sender --------------------------------------------------------------------------------------------------


def test_the_sender_reuses_its_connection_and_notices_when_it_is_gone() -> None:
    with Peer() as peer:
        sender = Sender(("127.0.0.1", peer.port), timeout=5)
        for number in range(3):
            assert ack.read(sender.send(message(f"S{number}"))).control_id == f"S{number}"
        assert {received.connection for received in peer.received} == {1}
        port = peer.port
        peer.close()
        with Peer(port=port) as again:
            assert ack.read(sender.send(message("S3"))).control_id == "S3"
            assert again.received[0].raw == message("S3")
        sender.close()


@pytest.mark.parametrize(
    ("step", "stage", "code"),
    [
        ("silence", "answer", "timeout"),
        ("half", "answer", "incomplete"),
        ("close", "answer", "closed"),
        ("wrong-msa-2", "ack", "wrong-msa-2"),
        ("two", "ack", "wrong-msa-2"),
        ("no-msa", "ack", "unreadable"),
        ("garbage", "ack", "unreadable"),
        ("reset", "answer", "reset"),
    ],
)
def test_what_goes_wrong_after_sending_is_a_plain_fact(step: str, stage: str, code: str) -> None:
    with Peer(script=[step]) as peer:
        sender = Sender(("127.0.0.1", peer.port), timeout=0.5)
        with pytest.raises(MllpFault) as caught:
            sender.send(message("F1"))
        assert (caught.value.stage, caught.value.code) == (stage, code)
        # The next message is not harmed by what is left of the first.
        assert ack.read(sender.send(message("F2"), timeout=5)).control_id == "F2"
        sender.close()


@pytest.mark.parametrize("step", ["AE", "AR", "CA", "trickle", "latin", "late:0.2"])
def test_every_answer_to_our_message_comes_back_as_bytes(step: str) -> None:
    with Peer(default=step) as peer:
        answer = ack.read(send(("127.0.0.1", peer.port), message("OK"), timeout=5))
        assert answer.control_id == "OK"
        assert answer.code == (step if len(step) == 2 else "AA")
        if step == "AE":
            assert (answer.text, answer.application_code) == ("refusé", "902")


def test_nobody_listening_is_a_fault_of_connecting(free_port: Callable[[], int]) -> None:
    with pytest.raises(MllpFault) as caught:
        send(("127.0.0.1", free_port()), message(), timeout=2)
    assert (caught.value.stage, caught.value.code) == ("connect", "refused")


def test_a_late_answer_is_never_taken_for_the_next_message() -> None:
    with Peer(script=["late:0.4"]) as peer:
        sender = Sender(("127.0.0.1", peer.port), timeout=0.1)
        with pytest.raises(MllpFault):
            sender.send(message("EARLY"))
        assert ack.read(sender.send(message("NEXT"), timeout=5)).control_id == "NEXT"
        sender.close()


def test_a_message_that_would_break_the_frame_is_not_sent() -> None:
    with Peer() as peer:
        with pytest.raises(MllpFault) as caught:
            send(("127.0.0.1", peer.port), message("X", FS), timeout=2)
        assert (caught.value.stage, caught.value.code) == ("send", "framing")
        assert not peer.received


def test_ten_megabytes_go_through_and_come_back_identical() -> None:
    body = b"QUJD" * 2_500_000
    with Peer() as peer:
        send(("127.0.0.1", peer.port), message("BIG", body), timeout=30)
        assert peer.received[0].raw == message("BIG", body)


# --- TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl") and os.environ.get("REQUIRE_ALL") != "1":
        pytest.skip("needs openssl: install the Debian package openssl")
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
    return folder


def server_context(folder: Path, *, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "client.pem")
    return context


def test_mutual_tls_names_the_partner_and_keeps_the_connection(serve: Serve, certificates: Path) -> None:
    peers: list[str] = []

    def keep(raw: bytes, peer: str) -> bytes:
        peers.append(peer)
        return accept(raw, peer)

    listener = serve(keep, tls=server_context(certificates, mutual=True))
    client = ssl.create_default_context(cafile=str(certificates / "server.pem"))
    client.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    sender = Sender(("127.0.0.1", listener.port), tls=client, timeout=5)
    for number in range(3):
        assert ack.read(sender.send(message(f"T{number}"))).control_id == f"T{number}"
    sender.close()
    assert len(set(peers)) == 1
    assert peers[0].endswith(" CN=client")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_partner_without_certificate_or_without_tls_is_turned_away(
    serve: Serve, certificates: Path, caplog: pytest.LogCaptureFixture, version: ssl.TLSVersion
) -> None:
    seen: list[bytes] = []

    def keep(raw: bytes, peer: str) -> bytes:
        seen.append(raw)
        return accept(raw, peer)

    listener = serve(keep, tls=server_context(certificates, mutual=True), silence_seconds=0.5)
    client = ssl.create_default_context(cafile=str(certificates / "server.pem"))
    client.minimum_version = client.maximum_version = version
    faults = []
    for tls in (client, None, ssl.create_default_context()):
        with caplog.at_level(logging.WARNING), pytest.raises(MllpFault) as caught:
            send(("127.0.0.1", listener.port), message(), tls=tls, timeout=3)
        faults.append(caught.value)
    wait_until(lambda: listener.connections == 0)
    assert [(fault.stage, fault.code) for fault in faults if fault is not faults[1]] == [("connect", "tls")] * 2
    assert "demands a certificate and got none" in faults[0].text
    assert "certificate verify failed" in faults[2].text.lower() or "admitted" in faults[2].text
    told = [record.getMessage() for record in caplog.records if record.name == "hl7v2.mllp"]
    assert [text.partition("refused: ")[2].partition(" (")[0] for text in told] == [
        "this port demands a certificate and got none",
        "it does not speak TLS, which is demanded here",
        "it does not know who issued the certificate",
    ]
    assert not seen


def test_a_certificate_of_somebody_unknown_is_told_to_both_sides(
    serve: Serve, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listener = serve(tls=server_context(certificates, mutual=True))
    client = ssl.create_default_context(cafile=str(certificates / "server.pem"))
    client.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with caplog.at_level(logging.WARNING), pytest.raises(MllpFault) as caught:
        send(("127.0.0.1", listener.port), message("X", b"x" * 3_000_000), tls=client, timeout=3)
    assert (caught.value.stage, caught.value.code) == ("connect", "tls")
    assert "does not know who issued the certificate" in caught.value.text
    wait_until(lambda: listener.connections == 0)
    assert "its certificate is not one that is admitted here" in caplog.text


def test_a_connection_that_ends_within_the_handshake_is_no_news(
    serve: Serve, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a load balancer does every few seconds to see whether the port is open."""
    listener = serve(tls=server_context(certificates, mutual=True))
    with caplog.at_level(logging.WARNING):
        with connect(listener):
            wait_until(lambda: listener.connections == 1)
        wait_until(lambda: listener.connections == 0)
    assert not caplog.records


@pytest.mark.parametrize(("version", "unread"), [("TLSv1.2", False), ("TLSv1.3", True), ("", False)])
def test_a_late_alert_about_our_certificate_means_unread_by_tls_1_3_alone(version: str, unread: bool) -> None:
    alert = ssl.SSLError(1, "tlsv1 alert unknown ca")
    alert.reason = "TLSV1_ALERT_UNKNOWN_CA"
    assert bool(refused_unread(version, alert)) == unread
    assert not refused_unread(version, ConnectionResetError())


def test_closing_does_not_wait_for_a_handshake_that_hangs(serve: Serve, certificates: Path) -> None:
    listener = serve(tls=server_context(certificates, mutual=False))
    outgoing = ssl.MemoryBIO()
    half = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with connect(listener) as sock:
        with pytest.raises(ssl.SSLWantReadError):
            half.do_handshake()
        sock.sendall(outgoing.read())
        assert sock.recv(1), "the listener waits for the second half now"
        began = time.monotonic()
        assert listener.close()
        assert time.monotonic() - began < 1


def test_closing_does_not_wait_for_a_refused_partner_that_goes_on_sending(serve: Serve, certificates: Path) -> None:
    listener = serve(tls=server_context(certificates, mutual=True), farewell_seconds=30.0)
    client = ssl.create_default_context(cafile=str(certificates / "server.pem"))
    done = threading.Event()

    def babble(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not done.wait(0.02):
                socket.socket.send(sock, b"x")

    with connect(listener) as plain, client.wrap_socket(plain, server_hostname="localhost") as sock:
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
            sock.recv(1)
        babbling = threading.Thread(target=babble, args=(sock,))
        babbling.start()
        try:
            began = time.monotonic()
            assert listener.close()
            assert time.monotonic() - began < 1
        finally:
            done.set()
            babbling.join()


# --- the scripted partner ----------------------------------------------------------------------------------------


def test_the_partner_records_before_it_answers(tmp_path: Path) -> None:
    with Peer(record=tmp_path) as peer:
        for number in range(1, 6):
            send(("127.0.0.1", peer.port), message(f"P{number}"), timeout=5)
            # No waiting here: when the AA is back, the file must be there.
            assert (tmp_path / f"{number:06d}.hl7").read_bytes() == message(f"P{number}")
            assert peer.received[number - 1].control_id == f"P{number}"


def test_a_platform_sends_business_acks_until_somebody_answers(serve: Serve, free_port: Callable[[], int]) -> None:
    port = free_port()
    mdm = message("DOC1").replace(b"ADT^A01^ADT_A01", b"MDM^T02^MDM_T02")
    with Peer(role="pfi", zam_to=("127.0.0.1", port), zam=[Zam("Z01", ok=False), Zam("Z02")]) as peer:
        send(("127.0.0.1", peer.port), mdm, timeout=5)
        listener = Listener(("127.0.0.1", port), accept)
        listener.start()
        try:
            sent = peer.wait_for_zam(2)
        finally:
            assert listener.close()
    assert [ack.read(answer).code for _, answer in sent] == ["AA", "AA"]
    assert b"ACK_RECEPTION_DMP" in sent[0][0] and b"|DOC1|N^^" in sent[0][0] and b"DMPClosed" in sent[0][0]
    assert b"ACK_RECEPTION_MSS" in sent[1][0] and b"|DOC1|Y^^" in sent[1][0] and b"\rERR" not in sent[1][0]


def test_the_partner_runs_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "conformance.peers.mllp", "--script", "AR", "--record", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline().split(" as ")[0].rpartition(":")[2])
            assert ack.read(send(("127.0.0.1", port), message("A"), timeout=5)).code == "AR"
            assert ack.read(send(("127.0.0.1", port), message("A"), timeout=5)).code == "AA"
        finally:
            process.terminate()
        assert process.wait(10) == 0
    assert len(list(tmp_path.iterdir())) == 2
