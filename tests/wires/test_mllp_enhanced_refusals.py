"""Enhanced mode on real sockets: who waits hears that a message cannot be stored, and nobody hears too much."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime

import pytest

from hl7v2 import ack
from hl7v2.ack import Ack, AckCode
from hl7v2.frames import END, VT, wrap
from hl7v2.mllp import Listener, Policy

NOW = datetime(2026, 3, 2, 8, 30, tzinfo=UTC)
Answer = Callable[[bytes, str], bytes]


def message(accept: str, application: str) -> bytes:
    head = "MSH|^~\\&|GAM|CH|PASSERELLE|CH|20260302083000||ADT^A01^ADT_A01|M1|T|2.5^FRA^2.11|||"
    return f"{head}{accept}|{application}|FRA|UNICODE UTF-8\rEVN||20260302083000\r".encode()


def refusing(code: AckCode) -> Answer:
    return lambda raw, peer: ack.build(raw, code, now=NOW, control_id="C", text="the store is full")


def raises(raw: bytes, peer: str) -> bytes:
    raise OSError("the disk is full")


def stores(raw: bytes, peer: str) -> bytes:
    return b""


def silent(raw: bytes, peer: str) -> bytes:
    return b""


def never(raw: bytes, peer: str) -> bytes:
    raise AssertionError("what is not stored is not taken in")


def answers(on_message: Answer, on_store: Answer | None, raw: bytes) -> list[Ack]:
    """All that is answered before the listener leaves."""
    policy = Policy(clock=lambda: NOW, enhanced=on_store is not None)
    listener = Listener(("127.0.0.1", 0), on_message, policy=policy, on_store=on_store)
    listener.start()
    with closing(listener), socket.create_connection(("127.0.0.1", listener.port), timeout=10) as sock:
        sock.sendall(wrap(raw))
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while more := sock.recv(65536):
            data += more
    return [ack.read(part.partition(VT)[2]) for part in data.split(END)[:-1]]


@pytest.mark.parametrize("accept", ["", "NE", "SU"])
@pytest.mark.parametrize("application", ["AL", "ER"])
@pytest.mark.parametrize(("refuse", "code"), [("CR", "AR"), ("CE", "AE")])
def test_who_asks_the_application_alone_hears_from_it_that_the_message_is_not_stored(
    accept: str, application: str, refuse: AckCode, code: str
) -> None:
    (told,) = answers(never, refusing(refuse), message(accept, application))
    assert (told.code, told.control_id, told.text) == (code, "M1", "the store is full")
    assert told.errors[0].code == "207"


def test_a_store_that_raises_is_told_in_the_same_way() -> None:
    (told,) = answers(never, raises, message("NE", "AL"))
    assert told.code == "AR" and "could not be stored" in told.text


@pytest.mark.parametrize("application", ["NE", "", "SU"])
@pytest.mark.parametrize("accept", ["NE", "SU"])
def test_who_wants_to_hear_of_no_failure_hears_of_none(accept: str, application: str) -> None:
    assert answers(never, refusing("CR"), message(accept, application)) == []


def test_a_refusal_is_told_once_where_both_are_asked() -> None:
    assert [one.code for one in answers(never, refusing("CR"), message("AL", "AL"))] == ["CR"]


def test_after_a_commit_the_application_may_have_nothing_to_say_yet() -> None:
    assert [one.code for one in answers(silent, stores, message("AL", "AL"))] == ["CA"]


@pytest.mark.parametrize(("accept", "application", "codes"), [("NE", "AL", ["AR"]), ("NE", "SU", []), ("ER", "NE", [])])
def test_without_a_commit_no_answer_is_a_refusal_to_those_who_want_one(
    accept: str, application: str, codes: list[str]
) -> None:
    assert [one.code for one in answers(silent, stores, message(accept, application))] == codes


def test_in_original_mode_no_answer_is_a_refusal() -> None:
    (told,) = answers(silent, None, message("AL", "AL"))
    assert (told.code, told.text) == ("AR", "no answer was made")


def test_an_application_that_fails_after_a_commit_says_nothing_and_without_one_ar() -> None:
    assert [one.code for one in answers(raises, stores, message("AL", "AL"))] == ["CA"]
    assert [one.code for one in answers(raises, stores, message("NE", "AL"))] == ["AR"]
    assert [one.code for one in answers(raises, None, message("AL", "AL"))] == ["AR"]
