"""The sender of HL7 v2 messages: one thread, one epoll loop, kept connections, one message open on each.

Hides sockets and MLLP. A closed model: a connection sends its next message when the last one was answered AA, so that
what is measured is how fast somebody answers. Between two messages stand a send, a receive and a look for the end of
the answer; a document is sent from the one copy there is.

Source: HL7 v2 transport specification MLLP release 1.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

Parts = tuple[bytes, ...]
"""A message in pieces, without its frame: what changes, and what many messages share."""
Numbered = tuple[bytes, Parts]
"""MSH-10, and the message."""

_PATIENCE = 120.0
_SMALL = 1 << 16


class Refused(RuntimeError):
    """A message that was not answered AA: what follows would measure something else."""


class _Wire:
    """One connection and the message it waits for."""

    __slots__ = ("awaited", "left", "received", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.left: list[memoryview] = []

    def begin(self, message: Numbered) -> bool:
        """Start sending; True when all of it left."""
        control_id, parts = message
        self.awaited = b"\rMSA|AA|" + control_id
        self.received = b""
        pieces = (b"\x0b", *parts, b"\x1c\r")
        small = sum(map(len, parts)) < _SMALL
        self.left = [memoryview(b"".join(pieces))] if small else [memoryview(piece) for piece in pieces]
        return self.push()

    def push(self) -> bool:
        while self.left:
            try:
                sent = self.socket.sendmsg(self.left)
            except BlockingIOError:
                return False
            while self.left and sent >= len(self.left[0]):
                sent -= len(self.left.pop(0))
            if sent:
                self.left[0] = self.left[0][sent:]
        return True

    def answered(self) -> bool:
        """Whether the answer is whole. Raises Refused when it is not the AA of this message."""
        data = self.socket.recv(_SMALL)
        self.received += data
        if data and not self.received.endswith(b"\x1c\r"):
            return False
        if self.awaited not in self.received:
            raise Refused(f"a message was answered {self.received[:600]!r}")
        return True


class Senders:
    """Connections to one listener."""

    def __init__(self, port: int, count: int) -> None:
        self._poll = select.epoll()
        self._wires: dict[int, _Wire] = {}
        for _ in range(count):
            wire = _Wire(port)
            self._wires[wire.socket.fileno()] = wire
            self._poll.register(wire.socket.fileno(), select.EPOLLIN)

    def send(self, messages: Iterator[Numbered]) -> int:
        """All the messages, each over the connection that is free first; how many. Raises Refused."""
        done = busy = 0
        for number in self._wires:
            busy += self._next(number, messages)
        while busy:
            found = self._poll.poll(_PATIENCE)
            if not found:
                raise Refused(f"no answer came within {_PATIENCE:g} s")
            for number, events in found:
                wire = self._wires[number]
                if events & select.EPOLLOUT and wire.push():
                    self._poll.modify(number, select.EPOLLIN)
                if events & ~select.EPOLLOUT and wire.answered():
                    done += 1
                    busy -= not self._next(number, messages)
        return done

    def _next(self, number: int, messages: Iterator[Numbered]) -> bool:
        message = next(messages, None)
        if message is None:
            return False
        if not self._wires[number].begin(message):
            self._poll.modify(number, select.EPOLLIN | select.EPOLLOUT)
        return True

    def close(self) -> None:
        self._poll.close()
        for wire in self._wires.values():
            wire.socket.close()
