"""ERR-2 in the answers of the wire itself: the segment in which a broken frame stops, or none."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Any

import pytest

from hl7v2 import ack
from hl7v2.ack import Ack, stops_in
from hl7v2.frames import END, VT, wrap
from hl7v2.mllp import Listener, Policy

MSH = b"MSH|^~\\&|GAM|CH|PASSERELLE|CH|20260302083000||ORU^R01^ORU_R01|M1|T|2.5|||||FRA|UNICODE UTF-8\r"
BEGUN = MSH + b"PID|1||1\rOBR|1\rOBX|1|NM|a||1\rOBX|2|N"


def aa(raw: bytes, peer: str) -> bytes:
    return ack.build(raw, "AA", now=Policy().clock(), control_id="A")


def answers(sent: bytes, *, ends: bool = True, **limits: Any) -> list[Ack]:
    """What is answered to these bytes until the listener leaves."""
    listener = Listener(("127.0.0.1", 0), aa, policy=Policy(farewell_seconds=0.5, **limits))
    listener.start()
    with closing(listener), socket.create_connection(("127.0.0.1", listener.port), timeout=10) as sock:
        sock.sendall(sent)
        if ends:
            sock.shutdown(socket.SHUT_WR)
        data = b""
        while more := sock.recv(65536):
            data += more
    return [ack.read(part.partition(VT)[2]) for part in data.split(END)[:-1]]


def place(told: Ack) -> tuple[str, str]:
    return told.code, told.errors[0].location


def test_a_connection_that_ends_inside_a_frame_is_told_the_segment() -> None:
    assert [place(one) for one in answers(VT + BEGUN)] == [("AR", "OBX^2")]


def test_a_frame_that_is_not_finished_in_time_is_told_the_segment() -> None:
    assert [place(one) for one in answers(VT + BEGUN, ends=False, silence_seconds=0.1)] == [("AR", "OBX^2")]


def test_a_frame_that_another_one_cuts_off_is_told_the_segment_and_the_other_is_answered() -> None:
    first, second = answers(VT + BEGUN[: len(MSH) + 5] + wrap(MSH))
    assert place(first) == ("AR", "PID^1") and second.code == "AA"


def test_of_a_long_frame_that_breaks_off_no_segment_is_guessed() -> None:
    (told,) = answers(VT + BEGUN + b"x" * 200_000)
    assert place(told) == ("AR", "")


@pytest.mark.parametrize(
    ("sent", "limits", "code"),
    [
        (wrap(MSH + b"OBX|1|TX|a||" + b"x" * 5000 + b"\r"), {"max_frame": 1000}, "AE"),
        (wrap(MSH), {"max_connections": 0}, "AR"),
    ],
    ids=["too-large", "too-many"],
)
def test_what_no_segment_is_at_fault_for_names_none(sent: bytes, limits: dict[str, Any], code: str) -> None:
    (told,) = answers(sent, **limits)
    assert place(told) == (code, "")
    assert told.errors[0].code == "207" and told.errors[0].text


@pytest.mark.parametrize(
    ("raw", "where"), [(MSH, "MSH[1]"), (BEGUN, "OBX[2]"), (MSH + b"PI", ""), (b"", ""), (b"no message", "")]
)
def test_where_bytes_stop_is_known_as_far_as_they_are_segments(raw: bytes, where: str) -> None:
    assert stops_in(raw) == where
