"""What every mapper returns: the value, and what it could not carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loss:
    """One thing the mapper left behind, adapted or doubted. `source` is the wire's own location (`PID-3[2]`)."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Mapped(Generic[T]):
    """A mapper's result: `losses` is empty only when everything was carried."""

    value: T
    losses: tuple[Loss, ...] = ()
