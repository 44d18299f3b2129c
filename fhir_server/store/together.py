"""Work of many threads done by one of them at a time, for all who wait: no thread of its own, one commit for several.

Who comes while nobody works leads: does its own work at once, and what came meanwhile with it. Whoever comes later
waits until theirs is done, or until it is their turn to lead those who came after them. In order of arrival.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fhir_server import errors

W = TypeVar("W")
_INTERRUPTED = "What did this together with others was interrupted; read before repeating."


def _shut() -> threading.Lock:
    gate = threading.Lock()
    gate.acquire()
    return gate


@dataclass(slots=True, eq=False)
class Turn(Generic[W]):
    """One piece of work and its outcome; `gate` opens when it is `settled`, or when its thread is to lead."""

    work: W
    value: Any = None
    fault: BaseException | None = None
    settled: bool = False
    leads: bool = False
    gate: threading.Lock = field(default_factory=_shut)


class Together(Generic[W]):
    """A line of work. `lead(first, line)` does the first turn, and what it takes from `line.following()`; it settles
    each with `line.settle`. Should it raise, its thread does, and those it took and did not settle are told to look."""

    def __init__(self, lead: Callable[[Turn[W], Together[W]], None]) -> None:
        self._lead = lead
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._waiting: deque[Turn[W]] = deque()
        self._taken: list[Turn[W]] = []
        self._busy = False
        self._leader = 0
        self._closed = False

    def do(self, work: W) -> Any:
        """What the work returns or raises, once it is settled. Raises Unavailable after `close`."""
        turn = Turn(work)
        with self._lock:
            if self._closed:
                raise errors.Unavailable("The server is stopping; repeat the request in a moment.")
            self._waiting.append(turn)
            leads, self._busy = not self._busy, True
        if not leads:
            self._wait(turn)
        if not turn.settled:
            self._work(turn)
        try:
            if turn.fault is not None:
                raise turn.fault
            return turn.value
        finally:
            del turn  # a fault knows this frame, which would know the fault

    @property
    def inside(self) -> bool:
        """Whether it is the thread that leads who asks: it can wait for nobody else's work."""
        return self._leader == threading.get_ident()

    @property
    def waiting(self) -> int:
        """How many wait for a leader to take their work."""
        return len(self._waiting)

    def following(self) -> Turn[W] | None:
        """The next who waits, taken by the leader; None when nobody does."""
        with self._lock:
            if not self._waiting:
                return None
            self._taken.append(self._waiting[0])  # noted first: an interruption between the two loses nobody
            return self._waiting.popleft()

    def settle(self, turn: Turn[W], value: Any = None, fault: BaseException | None = None) -> None:
        """Says how it ended; its thread hears of it when the leader is done."""
        turn.value, turn.fault, turn.settled = value, fault, True

    def fail(self, turns: Iterable[Turn[W]], fault: BaseException) -> None:
        """All of them ended so, each with a fault of its own: one that several raise would show the ways of all."""
        for turn in turns:
            self.settle(turn, fault=copy(fault) if isinstance(fault, errors.PasserelleError) else fault)

    def close(self) -> None:
        """Takes nothing more in, and returns when what waits is done."""
        with self._lock:
            self._closed = True
            while self._busy:
                self._ended.wait()

    def _work(self, own: Turn[W]) -> None:
        """Leads, the own turn first; whatever happens, nobody is left waiting."""
        self._leader = threading.get_ident()
        try:
            first = self.following()
            assert first is own
            self._lead(own, self)
        finally:
            with self._lock:
                if not own.settled and own in self._waiting:
                    self._waiting.remove(own)
                taken = [turn for turn in self._taken if turn.settled or turn not in self._waiting]
                self._taken = []
                self._leader = 0
                self._pass_on()
            if lost := [turn for turn in taken if not turn.settled]:
                self.fail(lost, errors.Unavailable(_INTERRUPTED))
            for turn in taken:
                turn.gate.release()

    def _pass_on(self) -> None:
        """The next who waits leads; held: the lock."""
        if self._waiting:
            self._waiting[0].leads = True
            self._waiting[0].gate.release()
            return
        self._busy = False
        if self._closed:
            self._ended.notify_all()

    def _wait(self, turn: Turn[W]) -> None:
        try:
            turn.gate.acquire()
        except BaseException:
            # Interrupted: what was not begun is not done, and who was to lead leaves that to the next.
            with self._lock:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                    if turn.leads:
                        self._pass_on()
            raise
