"""A named fault of a deliberately broken peer, and which checks must notice it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to be wrong. `caught_by` are the ids of every check that fails because of it, and of no other.

    `silent`: the fault shows as an answer that never comes, so noticing it takes the whole time-out.
    """

    story: str
    caught_by: tuple[str, ...]
    silent: bool = False


def chosen(faults: Iterable[str], known: Mapping[str, Fault]) -> frozenset[str]:
    """The faults by name; raises `ValueError` for one that does not exist."""
    names = frozenset(faults)
    if unknown := names - known.keys():
        raise ValueError(f"no fault is called {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return names
