"""Enhanced mode on real sockets: CA once a message is stored, AA once it is integrated, as MSH-15 and MSH-16 ask."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from conformance.peers.mllp import Peer
from hl7v2 import ack
from hl7v2.frames import END, VT, wrap
from hl7v2.mllp import Listener, MllpFault, Policy, Sender

NOW = datetime(2026, 3, 2, 8, 30, tzinfo=UTC)


def message(control_id: str = "M1", accept: str = "AL", application: str = "AL") -> bytes:
    head = f"MSH|^~\\&|GAM|CH|PASSERELLE|CH|20260302083000||ADT^A01^ADT_A01|{control_id}|T|2.5^FRA^2.11|||"
    return f"{head}{accept}|{application}|FRA|UNICODE UTF-8\rEVN||20260302083000\r".encode()


class Store:
    """What a hub does: commit, then integrate. Records the order of things; `refuse` and `code` script it."""

    def __init__(self, code: ack.AckCode = "AA", refuse: ack.AckCode | None = None, fail: bool = False) -> None:
        self.code, self.refuse, self.fail = code, refuse, fail
        self.seen: list[str] = []
        self.integrate = threading.Event()
        self.integrate.set()

    def on_store(self, raw: bytes, peer: str) -> bytes:
        if self.fail:
            raise OSError("the disk is full")
        self.seen.append("stored")
        return ack.build(raw, self.refuse, now=NOW, control_id="C", text="no") if self.refuse else b""

    def on_message(self, raw: bytes, peer: str) -> bytes:
        assert self.integrate.wait(10)
        self.seen.append("integrated")
        return ack.build(raw, self.code, now=NOW, control_id="A", text="" if self.code == "AA" else "why")


Serve = Callable[..., Listener]


@pytest.fixture
def serve() -> Iterator[Serve]:
    listeners: list[Listener] = []

    def start(store: Store, **policy: Any) -> Listener:
        policy.setdefault("enhanced", True)
        made = Policy(clock=lambda: NOW, farewell_seconds=1.0, **policy)
        listener = Listener(("127.0.0.1", 0), store.on_message, policy=made, on_store=store.on_store)
        listener.start()
        listeners.append(listener)
        return listener

    yield start
    closed = [listener.close(10) for listener in listeners]
    assert all(closed)


def codes(listener: Listener, raw: bytes, follow: bytes = b"") -> list[str]:
    """The codes of all answers until the listener has read our end of stream."""
    with socket.create_connection(("127.0.0.1", listener.port), timeout=10) as sock:
        sock.sendall(wrap(raw) + follow)
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while more := sock.recv(65536):
            data += more
    return [ack.read(part.partition(VT)[2]).code for part in data.split(END)[:-1]]


@pytest.mark.parametrize(
    ("accept", "application", "code", "answers"),
    [
        ("AL", "AL", "AA", ["CA", "AA"]),
        ("AL", "NE", "AA", ["CA"]),
        ("AL", "", "AA", ["CA"]),
        ("NE", "AL", "AA", ["AA"]),
        ("", "AL", "AA", ["AA"]),
        ("NE", "NE", "AA", []),
        ("SU", "ER", "AA", ["CA"]),
        ("SU", "ER", "AE", ["CA", "AE"]),
        ("ER", "SU", "AA", ["AA"]),
        ("ER", "SU", "AE", []),
        ("", "", "AA", ["AA"]),
        ("al", "al", "AA", ["CA", "AA"]),
        ("XX", "XX", "AA", ["CA", "AA"]),
    ],
)
def test_a_message_gets_the_answers_it_asks_for(
    serve: Serve, accept: str, application: str, code: ack.AckCode, answers: list[str]
) -> None:
    assert codes(serve(Store(code)), message(accept=accept, application=application)) == answers


def test_the_commit_answer_comes_before_the_message_is_integrated(serve: Serve) -> None:
    store = Store()
    store.integrate.clear()
    listener = serve(store)
    with socket.create_connection(("127.0.0.1", listener.port), timeout=10) as sock:
        sock.sendall(wrap(message()))
        first = sock.recv(65536)
        assert ack.read(first.strip(VT + END)).code == "CA" and store.seen == ["stored"]
        store.integrate.set()
        assert ack.read(sock.recv(65536).strip(VT + END)).code == "AA"
    assert store.seen == ["stored", "integrated"]


@pytest.mark.parametrize(
    ("refuse", "accept", "answers"), [("CE", "AL", ["CE"]), ("CR", "ER", ["CR"]), ("CR", "SU", ["AR"])]
)
def test_what_is_not_stored_is_refused_and_never_integrated(
    serve: Serve, refuse: ack.AckCode, accept: str, answers: list[str]
) -> None:
    store = Store(refuse=refuse)
    assert codes(serve(store), message(accept=accept)) == answers
    assert store.seen == ["stored"]


def test_a_store_that_fails_never_says_ca(serve: Serve) -> None:
    store = Store(fail=True)
    assert codes(serve(store), message()) == ["CR"] and store.seen == []


def test_a_port_in_original_mode_answers_once_whatever_is_asked(serve: Serve) -> None:
    store = Store()
    assert codes(serve(store, enhanced=False), message()) == ["AA"] and store.seen == ["integrated"]


def test_enhanced_mode_cannot_be_had_without_a_store() -> None:
    with pytest.raises(ValueError, match="commit"):
        Listener(("127.0.0.1", 0), Store().on_message, policy=Policy(enhanced=True))


def test_pipelined_messages_keep_their_two_answers_together(serve: Serve) -> None:
    follow = wrap(message("M2", "NE")) + wrap(message("M3"))
    assert codes(serve(Store()), message("M1"), follow) == ["CA", "AA", "AA", "CA", "AA"]


def test_broken_bytes_still_get_one_answer(serve: Serve) -> None:
    assert codes(serve(Store("AE")), b"MSH|^~\\&|" + b"X" * 100_000) == ["AE"]


# --- the sender --------------------------------------------------------------------------------------------------


def exchange(step: str, raw: bytes, timeout: float = 5.0) -> tuple[str, str]:
    with Peer(script=[step]) as peer:
        sender = Sender(("127.0.0.1", peer.port), timeout=timeout)
        try:
            got = sender.exchange(raw)
        finally:
            sender.close()
    accepted, integrated = (ack.read(part).code if part else "" for part in (got.accept, got.application))
    return accepted, integrated


@pytest.mark.parametrize(
    ("step", "application", "wanted"),
    [
        ("CA+AA", "AL", ("CA", "AA")),
        ("CA+AE", "AL", ("CA", "AE")),
        ("CA+AR", "AL", ("CA", "AR")),
        ("CA", "NE", ("CA", "")),
        ("CE", "AL", ("CE", "")),
        ("CR", "AL", ("CR", "")),
        ("AA", "AL", ("", "AA")),
    ],
)
def test_both_answers_are_told_apart(step: str, application: str, wanted: tuple[str, str]) -> None:
    assert exchange(step, message(application=application)) == wanted


def test_an_application_answer_that_stays_out_is_no_fault_after_a_commit() -> None:
    assert exchange("CA", message(), timeout=0.5) == ("CA", "")


def test_silence_before_any_answer_stays_ambiguous() -> None:
    with pytest.raises(MllpFault) as caught:
        exchange("silence", message(), timeout=0.3)
    assert (caught.value.stage, caught.value.code) == ("answer", "timeout")


def test_a_late_application_answer_is_never_taken_for_another_messages() -> None:
    with Peer(script=["CA+AA", "AA"]) as peer:
        sender = Sender(("127.0.0.1", peer.port), timeout=5)
        assert sender.exchange(message("ONE", application="NE")).application is None
        second = ack.read(sender.send(message("TWO", "", "")))
        sender.close()
    assert second.control_id == "TWO"


def test_our_sender_and_our_listener_agree(serve: Serve) -> None:
    listener = serve(Store())
    sender = Sender(("127.0.0.1", listener.port), timeout=5)
    for number in range(5):
        got = sender.exchange(message(f"M{number}"))
        assert got.accept is not None and got.application is not None
        assert [ack.read(part).control_id for part in (got.accept, got.application)] == [f"M{number}"] * 2
    assert listener.connections == 1
    sender.close()
