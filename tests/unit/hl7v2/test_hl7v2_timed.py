"""Bytes over one connection within a time limit."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from hl7v2.timed import Timed

LONG, SHORT = 30.0, 0.05
Pair = tuple[Timed, socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """One end with its limits, the socket below it, and the peer."""
    own, peer = socket.socketpair()
    with own, peer:
        peer.settimeout(LONG)
        yield Timed(own), own, peer


def test_what_came_is_read_and_the_end_of_the_peer_is_no_bytes(pair: Pair) -> None:
    timed, _, peer = pair
    peer.sendall(b"abc")
    assert timed.receive(2, LONG) == b"ab"
    assert timed.receive(2, LONG) == b"c"
    peer.shutdown(socket.SHUT_WR)
    assert timed.receive(2, LONG) == b""


def test_a_peer_that_says_nothing_is_not_waited_for_beyond_the_limit_of_this_read(pair: Pair) -> None:
    timed, _, peer = pair
    peer.sendall(b"a")
    assert timed.receive(1, LONG) == b"a"
    with pytest.raises(TimeoutError):
        timed.receive(1, SHORT)
    peer.sendall(b"b")
    assert timed.receive(1, LONG) == b"b"


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_a_limit_that_is_over_already_is_no_limit_without_end(pair: Pair, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        pair[0].receive(1, seconds)


def test_who_stops_the_connection_ends_a_read_that_waits(pair: Pair) -> None:
    timed, own, _ = pair
    read: list[bytes] = []
    waiting = threading.Thread(target=lambda: read.append(timed.receive(1, LONG)))
    waiting.start()
    own.shutdown(socket.SHUT_RD)
    waiting.join(LONG)
    assert read == [b""]


def test_an_answer_larger_than_the_buffers_reaches_a_peer_that_reads_whole(pair: Pair) -> None:
    timed, _, peer = pair
    answer = bytes(range(256)) * 16_384
    read: list[bytes] = []

    def reading() -> None:
        while sum(map(len, read)) < len(answer):
            read.append(peer.recv(1 << 16))

    reader = threading.Thread(target=reading)
    reader.start()
    timed.send(answer, LONG)
    reader.join(LONG)
    assert b"".join(read) == answer


def test_a_peer_that_does_not_read_is_given_up_at_the_limit(pair: Pair) -> None:
    timed, _, peer = pair
    with pytest.raises(TimeoutError):
        timed.send(bytes(16 << 20), SHORT)
    assert peer.recv(1) == b"\0"


def test_what_is_sent_to_a_peer_that_left_is_an_error_of_the_connection(pair: Pair) -> None:
    timed, _, peer = pair
    peer.close()
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        timed.send(b"a", LONG)
