"""How much may be worked on at the same time: large bodies share a room, and wait outside when it is full.

What is read from a body takes a multiple of its size in memory, so several at once could fill it. A body weighs what it
measures, or what its values will take where they are small and many. Those that wait do so on the event loop, in the
order they came, and hold no thread; small bodies and reads pass by. Whoever waits too long is told to come again.
"""

from __future__ import annotations

import asyncio
from collections import deque

from fhir_server.errors import Throttled

MIB = 1024 * 1024
# Below this nothing is weighed: as many as there are threads are a trifle.
SMALL = MIB
MOST = 64 * MIB
# The least a body weighs that is not small: no more than eight are worked on at once, so half the threads stay free.
LEAST = MOST // 8
PATIENCE = 30.0
# Those that wait hold their bodies: so much of them, and no more.
WAITING = 4 * MOST
# Real resources have 27 bytes of JSON to a value, and 26 of XML to a tag.
_VALUE = 24


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
