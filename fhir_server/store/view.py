"""What every store function is handed: a connection in a transaction, who asks, and what they may see.

The access seam: `visible` gives the condition each statement that reads resources must carry. A caller with
`everything` has none; any other sees the resources that have a scope row among their grants.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from fhir_server import errors
from fhir_server.context import Caller, Clock, instant, micros
from fhir_server.store.dialect import Session
from fhir_server.store.sizes import Sizes

if TYPE_CHECKING:
    from fhir_server.store.blobs import Blobs
    from fhir_server.store.lanes import NewDelivery

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Stale(errors.Conflict):
    """What was read before has changed meanwhile: read again, render again, write again."""


class LeaseLost(errors.Conflict):
    """Another worker took over this lane; what this one did is recorded as late."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of SQL with its parameters in order."""

    sql: str
    params: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldRow:
    """What a change needs to know of a resource's row."""

    rid: int
    type: str
    id: str
    version: int
    last_updated: int
    deleted: bool
    mask: int


@dataclass(slots=True)
class View:
    """One caller's transaction. `sends` wait for the end of a write, where lanes are locked in order of name; `held`
    are the rows of resources that it has locked for itself and not changed, by (type, id). `sizes`: what this process
    learned of how much conditions find."""

    db: Session
    caller: Caller
    blobs: Blobs
    clock: Clock
    sizes: Sizes = field(default_factory=Sizes)
    sends: list[NewDelivery] = field(default_factory=list)
    woken: bool = False
    held: dict[tuple[str, str], HeldRow] = field(default_factory=dict)

    def content(self, sha256: str) -> bytes:
        """All of a content."""
        self.db.linger()
        return self.blobs.read(sha256)

    def now(self) -> int:
        """The present, in microseconds since 1970 UTC."""
        return micros(self.clock())


def grants(caller: Caller) -> tuple[tuple[str, str], ...]:
    """The (kind, key) scopes a caller may see: those of their groups."""
    return tuple(("organisation", group) for group in sorted(caller.groups))


def visible(caller: Caller, alias: str) -> Fragment:
    """The condition ` AND ...` on the resource table's `alias`, or nothing for a caller who sees everything."""
    if caller.everything:
        return Fragment("")
    granted = grants(caller)
    if not granted:
        return Fragment(" AND 1 = 0")
    pairs = " OR ".join("(s.kind = ? AND s.key = ?)" for _ in granted)
    params = tuple(part for pair in granted for part in pair)
    return Fragment(f" AND EXISTS (SELECT 1 FROM scope s WHERE s.rid = {alias}.rid AND ({pairs}))", params)


def instant_of(moment: int) -> str:
    """FHIR instant of microseconds since 1970 UTC."""
    return instant(EPOCH + timedelta(microseconds=moment))


def printable(value: str, limit: int = 4000) -> str:
    """Text from a wire made fit for a column: no NUL, no lone surrogate, at most `limit` characters."""
    cut = value if len(value) <= limit else value[: limit - 1] + "…"
    if "\x00" in cut:
        cut = cut.replace("\x00", "\ufffd")
    return cut.encode(errors="replace").decode() if not cut.isascii() else cut


def hash63(*parts: str) -> int:
    """A positive 63-bit number of the parts, the same in every process."""
    digest = hashlib.sha256("\x1f".join(parts).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


LOCKED_ONE_BY_ONE = 256
_ALL_CRITERIA = hash63("every criterion")


def lock(view: View, *criteria: str) -> None:
    """Holds the criteria to the end of the transaction, taken in one fixed order so that no two wait in a ring.

    More than 256 at once are held as one lock on everything: PostgreSQL has memory for some 6,000 locks in all.
    """
    keys = sorted({hash63("criterion", criterion) for criterion in criteria})
    if len(keys) > LOCKED_ONE_BY_ONE:
        view.db.lock([_ALL_CRITERIA])
    elif keys:
        view.db.lock([_ALL_CRITERIA, *keys])
