"""Connections that stay open between two deliveries: one a lane and process, so many in all, none for too long.

Hides which of them may still be used. Off unless a destination asks for it (`lane.keep_open`, ADR 0065). A connection
is given out to one conversation at a time and taken back only when its message was answered; where the way there has
changed (address, TLS or its files), another one is made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fhir_server.config import Settings
from fhir_server.delivery.line import ticks
from fhir_server.store.leases import Claim
from hl7v2.mllp import Sender

# Idle ones of a process; and how long one lasts under steady traffic, since a certificate is only looked at when a
# connection is made.
MOST_KEPT, LONGEST_SECONDS = 64, 3600.0


@dataclass(frozen=True, slots=True)
class Way:
    """Where a connection leads and by what: two that differ share none. `tls` is `tls_files`, None without TLS."""

    address: tuple[str, int]
    host: str
    tls: tuple[object, ...] | None


@dataclass(slots=True)
class _Kept:
    way: Way
    sender: Sender
    born: float = field(default_factory=ticks)
    until: float = 0.0


def tls_files(settings: Settings) -> tuple[object, ...]:
    """What tells one state of our TLS files towards partners from the next: a renewed certificate is another one."""
    found: list[object] = []
    for name in (settings.client_authorities, settings.client_certificate, settings.client_key):
        with suppress(OSError):
            seen = Path(name).stat() if name else None
            found.append((name, seen and (seen.st_ino, seen.st_size, seen.st_mtime_ns)))
    return tuple(found)


class Connections:
    """The idle connections of a process, by lane."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._gate = threading.Lock()
        self._idle: dict[int, _Kept] = {}
        self._closed = False

    @property
    def idle(self) -> int:
        """How many are kept now."""
        with self._gate:
            return len(self._idle)

    @contextmanager
    def borrowed(self, claim: Claim, way: Way, make: Callable[[], Sender]) -> Iterator[Sender]:
        """A connection for one message: the lane's own when it leads there, else one from `make`. It is kept for as
        long as the destination wants, when nothing was raised."""
        kept = self._taken(claim, way) or _Kept(way, make())
        try:
            yield kept.sender
        except BaseException:
            kept.sender.close()
            raise
        kept.sender.before_send = None
        self._keep(claim, kept)

    def sweep(self) -> None:
        """Leave those whose time is over."""
        now = ticks()
        with self._gate:
            over = [lane for lane, kept in self._idle.items() if kept.until <= now]
            left = [self._idle.pop(lane) for lane in over]
        _leave(left)

    def close(self) -> None:
        """Leave all of them, and keep none from now on."""
        with self._gate:
            self._closed = True
            left, self._idle = list(self._idle.values()), {}
        _leave(left)

    def _taken(self, claim: Claim, way: Way) -> _Kept | None:
        with self._gate:
            kept = self._idle.pop(claim.lane_id, None)
        if kept is None or (claim.keep_open and kept.way == way and ticks() < kept.until):
            return kept
        _leave([kept])
        return None

    def _keep(self, claim: Claim, kept: _Kept) -> None:
        now = ticks()
        kept.until = min(now + claim.keep_open / 1_000_000, kept.born + LONGEST_SECONDS)
        with self._gate:
            wanted = kept.sender.connected and now < kept.until and not self._closed
            # Whoever lost the lane may come back beside the one who has it now.
            left = [self._idle.pop(claim.lane_id)] if wanted and claim.lane_id in self._idle else []
            if wanted and len(self._idle) >= self._most:
                left.append(self._idle.pop(next(iter(self._idle))))
            if wanted:
                self._idle[claim.lane_id] = kept
        if not wanted:
            kept.sender.close()
        _leave(left)


def _leave(kept: Iterable[_Kept]) -> None:
    """A farewell is said, its answer not waited for: a partner may be gone, and many may have to be left at once."""
    for one in kept:
        one.sender.close(patience=0.0)
