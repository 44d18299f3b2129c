"""How a check says what it found: exceptions for its verdict, a clock it may not overrun, a bounded record of the talk.

Hides how a verdict travels from a check to the runner. A check that returns has passed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

EXCERPT = 2_000
"""Characters kept of one thing sent or received."""
EXCHANGES = 24
"""Excerpts kept of one check: the first few and the latest."""


class Failed(Exception):
    """The system under test breaks the clause: `expected` and `found` are sentences for its maker."""

    def __init__(self, expected: str, found: object, *, clause: str = "", hint: str = "") -> None:
        super().__init__(f"expected {expected}; found {found}")
        self.expected = expected
        self.found = str(found)
        self.clause = clause
        self.hint = hint


class NoAnswer(Failed):
    """The system accepted the connection, then fell silent or hung up."""


class Skipped(Exception):
    """The system lacks what the check builds on; the text says which precondition is absent."""


class Unreachable(Exception):
    """No connection could be made: nothing can be said about the system."""


class Overdue(Exception):
    """The check used up its time."""


def expect(holds: object, expected: str, found: object, *, clause: str = "", hint: str = "") -> None:
    """Raise `Failed` unless `holds`; `clause` defaults to the first URL the check verifies."""
    if not holds:
        raise Failed(expected, found, clause=clause, hint=hint)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of the monotonic clock that no wait may pass."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The moment `seconds` from now."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left; raises `Overdue` when there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise Overdue("the time allowed for this check is used up")
        return left

    def remaining_or_zero(self) -> float:
        """Seconds left, 0 when there are none."""
        return max(self.at - time.monotonic(), 0.0)

    def within(self, seconds: float) -> Deadline:
        """The sooner of this deadline and `seconds` from now; raises `Overdue` when this one has passed."""
        return Deadline(time.monotonic() + min(seconds, self.remaining()))


@dataclass(slots=True)
class Transcript:
    """Excerpts of what was sent and received, cut, counted, and with the user's secrets blanked out."""

    secrets: tuple[str, ...] = ()
    kept: list[str] = field(default_factory=list)
    dropped: int = 0

    def sent(self, text: str) -> None:
        """Record what the kit sent."""
        self._keep("> ", text)

    def received(self, text: str) -> None:
        """Record what the system answered, or how the connection ended."""
        self._keep("< ", text)

    def clean(self, text: str) -> str:
        """`text` without the secrets, for a report that may be published."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    def excerpts(self) -> tuple[str, ...]:
        """Everything kept, in order."""
        if not self.dropped:
            return tuple(self.kept)
        note = f"... {self.dropped} exchanges left out ..."
        return (*self.kept[: EXCHANGES // 4], note, *self.kept[EXCHANGES // 4 :])

    def _keep(self, mark: str, text: str) -> None:
        # Blank secrets before the cut: a secret cut in two would escape the replacement.
        text = self.clean(text[: EXCERPT * 4])
        if len(text) > EXCERPT:
            text = f"{text[:EXCERPT]}... ({len(text)} characters or more)"
        self.kept.append(mark + text)
        if len(self.kept) > EXCHANGES:
            del self.kept[EXCHANGES // 4]
            self.dropped += 1
