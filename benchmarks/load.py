"""The load generator: one process, one epoll loop, keep-alive connections, one request open on each.

Hides sockets and HTTP/1.1 framing. A closed model: a connection sends its next request when the answer to the last one
is whole. Requests are bytes made beforehand; what happens between two of them is a send, a receive and a search for the
end of the answer, so that the generator costs little beside the server. `ceiling` says how much it can do at most.

Source: https://www.rfc-editor.org/rfc/rfc9112 (message framing)
"""

from __future__ import annotations

import itertools
import multiprocessing
import re
import resource
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from benchmarks.target import Address, Outcome

MARK = b"bench-mark-000000"
"""Stands where each request of a run gets a number of its own."""
DELETE = b"delete what was created"
"""A request that is made when it is sent: the deletion of something this run created (a read when there is nothing)."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_LOCATION = re.compile(rb"\r\n(?:content-)?location: *([^\r\n]+)", re.IGNORECASE)
_PATIENCE = 900.0


@dataclass(slots=True)
class Plan:
    """What to send: `requests` in turn and again; stops after `seconds`, or after `count` requests when it is set.

    `weights` says how much each request counts when it succeeds (1 unless given).
    """

    address: Address
    requests: Sequence[bytes]
    clients: int
    seconds: float = 0.0
    count: int = 0
    first_mark: int = 0
    weights: Sequence[int] = ()
    keep_locations: bool = False
    deletable: deque[bytes] = field(default_factory=deque)


def drive(plan: Plan) -> Outcome:
    """Run a plan in a process of its own."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(plan, theirs), daemon=True)
    worker.start()
    theirs.close()
    try:
        answer = mine.recv()
    except EOFError:
        raise RuntimeError("the load generator ended without a result; its error is above") from None
    finally:
        worker.join(30)
    assert isinstance(answer, Outcome)
    return answer


def _work(plan: Plan, out: Connection) -> None:
    out.send(_Loop(plan).run())
    out.close()


class _Wire:
    """One connection and the answer it waits for."""

    __slots__ = ("end", "head", "left", "peer", "received", "request", "sent_at", "socket", "weight")

    def __init__(self, address: Address) -> None:
        self.peer = (address.host, address.port)
        self.request = b""
        self.weight = 1
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(self.peer, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def begin(self, request: bytes) -> bool:
        """Start sending; True when all of it left."""
        self.request = request
        self.received = bytearray()
        self.head = b""
        self.end = -1
        self.left = memoryview(request)
        self.sent_at = time.perf_counter()
        return self.push()

    def push(self) -> bool:
        while self.left:
            try:
                self.left = self.left[self.socket.send(self.left) :]
            except BlockingIOError:
                return False
        return True

    def whole(self, data: bytes) -> bool:
        """Whether the answer has ended with these bytes."""
        self.received += data
        if not self.head:
            place = self.received.find(b"\r\n\r\n")
            if place < 0:
                return False
            self.head = bytes(self.received[:place])
            length = _LENGTH.search(self.head)
            if length:
                self.end = place + 4 + int(length[1])
            elif not _CHUNKED.search(self.head):
                self.end = place + 4
        if self.end >= 0:
            return len(self.received) >= self.end
        return self.received.endswith(b"0\r\n\r\n")


class _Loop:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self.marks = itertools.count(plan.first_mark)
        self.turn = itertools.cycle(zip(plan.requests, plan.weights or [1] * len(plan.requests), strict=True))
        self.left = plan.count or 2**62
        self.wires: dict[int, _Wire] = {}
        self.poll = select.epoll()
        self.follow = plan.keep_locations or DELETE in plan.requests
        self.reads = [request for request in plan.requests if request.startswith(b"GET")]

    def run(self) -> Outcome:
        cpu = _cpu()
        start = time.perf_counter()
        self.deadline = start + (self.plan.seconds or _PATIENCE)
        for _ in range(self.plan.clients):
            self._attach(_Wire(self.plan.address))
        while self.wires:
            for number, events in self.poll.poll(_PATIENCE):
                if events & select.EPOLLOUT and self.wires[number].push():
                    self.poll.modify(number, select.EPOLLIN)
                if events & ~select.EPOLLOUT:
                    self._receive(number)
        self.outcome.wall = time.perf_counter() - start
        self.outcome.cpu = _cpu() - cpu
        return self.outcome

    def _attach(self, wire: _Wire) -> None:
        number = wire.socket.fileno()
        self.wires[number] = wire
        self.poll.register(number, select.EPOLLIN)
        self._next(number)

    def _next(self, number: int) -> None:
        wire = self.wires[number]
        if self.left <= 0 or time.perf_counter() >= self.deadline:
            self._detach(number)
            return
        self.left -= 1
        request, wire.weight = next(self.turn)
        if not wire.begin(self._filled(request)):
            self.poll.modify(number, select.EPOLLIN | select.EPOLLOUT)

    def _detach(self, number: int) -> _Wire:
        wire = self.wires.pop(number)
        self.poll.unregister(number)
        wire.socket.close()
        return wire

    def _filled(self, request: bytes) -> bytes:
        if request == DELETE:
            if not self.plan.deletable:
                return self.reads[self.left % len(self.reads)]
            path = self.plan.deletable.popleft()
            return self.plan.address.request(b"DELETE", path)
        if MARK in request:
            return request.replace(MARK, b"bench-%011d" % next(self.marks))
        return request

    def _receive(self, number: int) -> None:
        wire = self.wires[number]
        try:
            data = wire.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._broken(number)
        elif wire.whole(data):
            self._done(number, wire)

    def _broken(self, number: int) -> None:
        self.outcome.fail(b"the server closed the connection before its answer was whole")
        wire = self._detach(number)
        wire.connect()
        self._attach(wire)

    def _done(self, number: int, wire: _Wire) -> None:
        self.outcome.times.append(time.perf_counter() - wire.sent_at)
        status = wire.head[9:12]
        if not status.startswith(b"2"):
            self.outcome.fail(bytes(wire.received[:1200]))
        else:
            self.outcome.weight += wire.weight
        if status == b"201" and self.follow:
            location = _LOCATION.search(wire.head)
            if location:
                path = self.plan.address.relative(location[1])
                self.plan.deletable.append(path)
                if self.plan.keep_locations:
                    self.outcome.locations.append(path.decode())
        if _CLOSE.search(wire.head):
            self._detach(number)
            wire.connect()
            self._attach(wire)
        else:
            self._next(number)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- the ceiling -----------------------------------------------------------------------------------------------------

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/fhir+json\r\ncontent-length: 1500\r\n\r\n" + b"x" * 1500


def ceiling(clients: int, seconds: float) -> Outcome:
    """What the generator reaches against a server that does nothing but answer 1,500 bytes, on the same machine."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = listening.getsockname()[1]
    context = multiprocessing.get_context("fork")
    null = context.Process(target=_answer_all, args=(listening,), daemon=True)
    null.start()
    listening.close()
    address = Address("127.0.0.1", port, "/fhir")
    try:
        return drive(Plan(address, [address.request(b"GET", b"/Patient/1")], clients, seconds))
    finally:
        null.terminate()
        null.join(10)


def _answer_all(listening: socket.socket) -> None:
    poll = select.epoll()
    poll.register(listening.fileno(), select.EPOLLIN)
    open_sockets: dict[int, socket.socket] = {}
    while True:
        for number, _ in poll.poll():
            if number == listening.fileno():
                taken, _peer = listening.accept()
                taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                open_sockets[taken.fileno()] = taken
                poll.register(taken.fileno(), select.EPOLLIN)
            elif open_sockets[number].recv(1 << 16):
                open_sockets[number].sendall(_ANSWER)
            else:
                poll.unregister(number)
                open_sockets.pop(number).close()
