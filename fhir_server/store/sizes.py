"""Whether a condition finds many, as it was learned lately: which of two ways to the same answer is the shorter one.

Nothing of an answer comes from here. What is out of date, or was never learned, costs time only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

SECONDS = 60.0
MOST = 10_000


@dataclass(slots=True)
class Sizes:
    """What one process learned: questions by their hash, so that long ones take no room."""

    clock: Callable[[], float] = time.monotonic
    known: dict[int, tuple[float, bool]] = field(default_factory=dict)

    def get(self, question: Hashable) -> bool | None:
        """The answer of the last minute; None where there is none."""
        until, answer = self.known.get(hash(question), (0.0, False))
        return answer if self.clock() < until else None

    def keep(self, question: Hashable, answer: bool) -> bool:
        """Remembers an answer, and gives it back."""
        if len(self.known) >= MOST:
            self.known.clear()
        self.known[hash(question)] = (self.clock() + SECONDS, answer)
        return answer
