"""How much may be in memory at the same time: bodies on their way in, and large ones in work.

Bodies that are being read off the network, or wait for a thread, may have so many bytes in all; a part of that is kept
for small ones, also beside one that is larger than all that, and what does not fit is told to come again at once. Large
ones then share a room, and wait outside when it is full; what is answered later has a room of its own (`later`).

What is read from a body takes a multiple of its size in memory, so several at once could fill it. A body weighs what it
measures, or what its values will take where they are small and many. Those that wait do so on the event loop, in the
order they came, and hold no thread; small bodies and reads pass by. Whoever waits too long is told to come again.
"""

from __future__ import annotations

import asyncio
from collections import deque

from fhir_server.errors import Throttled, Unavailable

MIB = 1024 * 1024
# Below this nothing is weighed: as many as there are threads are a trifle.
SMALL = MIB
MOST = 64 * MIB
# The least a body weighs that is not small: no more than eight are worked on at once, so half the threads stay free.
LEAST = MOST // 8
PATIENCE = 30.0
# Those that wait hold their bodies: so much of them, and no more.
WAITING = 4 * MOST
# All that is read at the same time, and how much of it larger ones leave free: small bodies find place beside them.
ARRIVING = 4 * MOST
KEPT_FREE = MOST
# Real resources have 27 bytes of JSON to a value, and 26 of XML to a tag.
_VALUE = 24


class Inflow:
    """The bodies on their way in, for one event loop: how many bytes of them are in memory."""

    def __init__(self, most: int = ARRIVING, kept_free: int = KEPT_FREE) -> None:
        self._most, self._kept_free = most, kept_free
        self._held = self._small = 0

    def open(self) -> Arriving:
        """The place of one body, empty at first. It is given back by `close`."""
        return Arriving(self)

    def _grown(self, before: int, more: int) -> None:
        # Without this one: small bodies, and the others.
        small = self._small - (before if before <= SMALL else 0)
        large = self._held - before - small
        size = before + more
        if size <= SMALL:
            fits = small + size <= self._kept_free or small + large + size <= self._most
        else:  # one alone may grow as large as a body may be, and the small ones still pass by
            alone = not large and small <= self._kept_free
            fits = alone or small + large + size <= self._most - self._kept_free
        if not fits:
            raise Unavailable("too many requests are being read; repeat it later, or send less in one request")
        self._held += more
        self._small = small + size if size <= SMALL else small

    def _gone(self, size: int) -> None:
        self._held -= size
        if size <= SMALL:
            self._small -= size


class Arriving:
    """What of one body came so far."""

    def __init__(self, inflow: Inflow) -> None:
        self._inflow, self._size = inflow, 0

    def add(self, more: int) -> None:
        """Count further bytes. Raises Unavailable when all bodies together are too large; close it then."""
        self._inflow._grown(self._size, more)
        self._size += more

    def close(self) -> None:
        """Give its place back, once."""
        self._inflow._gone(self._size)
        self._size = 0


class Room:
    """For one event loop; all methods are called on it."""

    def __init__(self, most: int = MOST, patience: float = PATIENCE, waiting: int = WAITING) -> None:
        self._most, self._patience, self._waiting = most, patience, waiting
        self._held = 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()

    async def enter(self, weight: int) -> None:
        """Take the weight, once those before had theirs; one heavier than the room goes alone. `leave` with the same.

        Raises Throttled after waiting in vain, or at once when too much waits already.
        """
        if not self._queue and self._fits(weight):
            self._held += weight
            return
        if sum(one for turn, one in self._queue if not turn.done()) + weight > max(self._waiting, weight):
            raise Throttled("too many large requests wait already; repeat it later, or send less in one request")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((turn, weight))
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except (TimeoutError, asyncio.CancelledError) as late:
            if turn.done() and not turn.cancelled():
                self.leave(weight)
            self._admit()
            if isinstance(late, asyncio.CancelledError):
                raise
            text = "other large requests are worked on; repeat it later, or send less in one request"
            raise Throttled(text) from late

    def leave(self, weight: int) -> None:
        """Give the weight back."""
        self._held -= weight
        self._admit()

    def _fits(self, weight: int) -> bool:
        return not self._held or self._held + weight <= self._most

    def _admit(self) -> None:
        while self._queue:
            turn, weight = self._queue[0]
            if not turn.done():
                if not self._fits(weight):
                    return
                self._held += weight
                turn.set_result(None)
            self._queue.popleft()


def weight(body: bytes) -> int:
    """What a body counts in a room, in bytes; 0 for a small one."""
    if len(body) < SMALL:
        return 0
    values = max(body.count(b",") + body.count(b"{") + body.count(b"["), body.count(b"<"))
    return max(LEAST, len(body), _VALUE * values)
