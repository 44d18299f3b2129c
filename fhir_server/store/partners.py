"""Who knocks and is not declared: one row for each sender, at most 500, the longest silent forgotten first.

An interface engineer reads it to declare a partner, or to see who is turned away. It is no audit trail: rows go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fhir_server.store.view import View, lock, printable

KEPT = 500
_COLUMNS = "channel, name, address, outcome, reason, first_at, last_at, times"


@dataclass(frozen=True, slots=True)
class Partner:
    """One unknown caller: `name` is `MSH-3|MSH-4` or an AE title, `address` the peer's without its port."""

    channel: str
    name: str
    address: str
    outcome: Literal["accepted", "refused"]
    reason: str = ""
    first_at: int = 0
    last_at: int = 0
    times: int = 1


def note(view: View, seen: Partner) -> None:
    """Counts `seen.times` more calls of this caller; a new one may push out the one that was silent longest."""
    # The name comes from outside: cut, so that a row stays small and the key can be indexed.
    key = (seen.channel, printable(seen.name, 100), printable(seen.address, 64))
    lock(view, "partners")
    now = view.now()
    view.db.run(
        f"INSERT INTO partner ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (channel, name, address) "
        "DO UPDATE SET outcome = excluded.outcome, reason = excluded.reason, last_at = excluded.last_at, "
        "times = partner.times + excluded.times",
        (*key, seen.outcome, printable(seen.reason, 200), now, now, seen.times),
    )
    view.db.run(
        "DELETE FROM partner WHERE (channel, name, address) IN (SELECT channel, name, address FROM partner "
        "ORDER BY last_at DESC, channel, name, address LIMIT 1000000 OFFSET ?)",
        (KEPT,),
    )


def listed(view: View, limit: int = KEPT) -> list[Partner]:
    """The last that called first."""
    rows = view.db.rows(
        f"SELECT {_COLUMNS} FROM partner ORDER BY last_at DESC, channel, name, address LIMIT ?", (limit,)
    )
    return [Partner(*row) for row in rows]


def forget(view: View, name: str) -> int:
    """Takes a caller off the list; how many rows went."""
    gone = view.db.rows("SELECT channel FROM partner WHERE name = ?", (name,))
    view.db.run("DELETE FROM partner WHERE name = ?", (name,))
    return len(gone)
