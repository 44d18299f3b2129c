"""Every version in order of commit: what history, subscriptions, projections and reindexing read.

A position is (txid, seq). Readers see only rows whose transaction number lies below every transaction still
running, so a row never appears behind a position already read. Versions of one resource carry their own order.
"""

from __future__ import annotations

from dataclasses import dataclass

from fhir_server.store.tables import JOURNAL
from fhir_server.store.view import View


@dataclass(frozen=True, slots=True)
class JournalRow:
    """One version: `at` in microseconds, `method` POST, PUT, PATCH or DELETE."""

    txid: int
    seq: int
    rid: int
    version: int
    type: str
    at: int
    method: str

    @property
    def position(self) -> tuple[int, int]:
        return (self.txid, self.seq)


def append(view: View, rid: int, version: int, resource_type: str, at: int, method: str) -> None:
    view.db.stamp()
    view.db.fill(JOURNAL, [(rid, version, resource_type, at, method)])


def read(view: View, after: tuple[int, int] = (0, 0), limit: int = 500) -> list[JournalRow]:
    """The next rows behind a position, oldest first."""
    settled = view.db.dialect.settled.format(column="txid")
    rows = view.db.rows(
        "SELECT txid, seq, rid, version, type, at, method FROM journal "
        f"WHERE (txid, seq) > (?, ?) AND {settled} ORDER BY txid, seq LIMIT ?",
        (*after, limit),
    )
    return [JournalRow(*row) for row in rows]


def head(view: View) -> tuple[int, int]:
    """The last position that can be read now."""
    settled = view.db.dialect.settled.format(column="txid")
    row = view.db.one(f"SELECT txid, seq FROM journal WHERE {settled} ORDER BY txid DESC, seq DESC LIMIT 1")
    return (0, 0) if row is None else (int(row[0]), int(row[1]))
