"""Interleaved timing: every subject is measured in every round, and the median of the rounds is what is told.

Hides warm-up, calibration and the order of the subjects, which changes from round to round so that a slow moment of the
machine does not fall on the same one each time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure. `seconds` is the length of one round of one subject, `clients` those of the HTTP topics."""

    rounds: int = 5
    seconds: float = 4.0
    warm_up: float = 0.5
    http_warm_up: float = 8.0
    clients: tuple[int, ...] = (1, 8, 16)
    seeds: int = 600
    sample: int = 2000
    bundles: int = 120
    minutes: float = 19.0

    @property
    def in_process(self) -> float:
        """Seconds of one round of a subject that runs in this process."""
        return min(self.seconds, 1.0)


QUICK = Effort(2, 0.2, 0.05, 0.1, clients=(2,), seeds=20, sample=40, bundles=2, minutes=2.0)


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to time: `run` does its work once and says how many operations that was."""

    name: str
    run: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for one operation: of each round, in order."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def low(self) -> float:
        return min(self.rounds)

    @property
    def high(self) -> float:
        return max(self.rounds)


def turns(count: int, round_number: int) -> list[int]:
    """The order of `count` subjects in a round: each round begins with another one."""
    return [(round_number + step) % count for step in range(count)]


def measured(subjects: Sequence[Subject], effort: Effort) -> dict[str, Timing]:
    """The timing of each subject by name."""
    for subject in subjects:
        _once(subject, effort.warm_up)
    found: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for number in range(effort.rounds):
        for place in turns(len(subjects), number):
            found[subjects[place].name].append(_once(subjects[place], effort.in_process))
    return {name: Timing(tuple(rounds)) for name, rounds in found.items()}


def _once(subject: Subject, seconds: float) -> float:
    operations = 0
    start = time.perf_counter()
    while True:
        operations += subject.run()
        spent = time.perf_counter() - start
        if spent >= seconds:
            return spent / max(operations, 1)
