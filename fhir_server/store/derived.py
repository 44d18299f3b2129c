"""Resources in batches, with the rows derived from them beside, and how these differ from those they ought to have.

What `check` tells and `reindex` makes anew. Resources are walked in order of their number, some hundred at a time, and
their index rows and scopes beside them in the same order: memory is bounded by the largest resource, and rows that
belong to no resource are met on the way. The rows a resource ought to have come from the caller's `Extract`, the same
function the writers use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fhir_server.search.rows import IndexRows
from fhir_server.store import dates
from fhir_server.store.dialect import Row
from fhir_server.store.resources import contained_numbers, index_values, mask_of
from fhir_server.store.tables import CONTAINED, IDX_DATE, INDEX_TABLES, SCOPE
from fhir_server.store.view import View
from profiles import json_text

Extract = Callable[[dict[str, Any]], IndexRows]
Derived = Literal["index", "scope", "mask"]
RESOURCES, BYTES, PAGE = 200, 16 << 20, 2000
END = (1 << 62) - 1
START = -END


class Cursor:
    """Rows in order of their first column, a resource's number, looked at one resource after the other."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def before(self, rid: int) -> Iterator[Row]:
        """The rows that belong to smaller numbers than the resource at hand: to none that exists."""
        while self._next is not None and self._next[0] < rid:
            yield self._next
            self._next = next(self._rows, None)

    def of(self, rid: int) -> Iterator[Row]:
        while self._next is not None and self._next[0] == rid:
            yield self._next
            self._next = next(self._rows, None)


@dataclass(frozen=True, slots=True)
class Current:
    """A row of the resource table; `told` counts the journal rows that tell of exactly this version."""

    rid: int
    type: str
    id: str
    version: int
    last_updated: int
    deleted: int
    method: str
    mask: int
    text: str | None
    told: int

    @property
    def reference(self) -> str:
        return f"{self.type}/{self.id}"


TOLD = (
    "(SELECT count(*) FROM journal j WHERE j.type = r.type AND j.at = {v}.last_updated AND j.rid = {v}.rid "
    "AND j.version = {v}.version AND j.method = {v}.method AND j.txid = {v}.txid)"
)
_CURRENT = (
    "SELECT r.rid, r.type, r.id, r.version, r.last_updated, r.deleted, r.method, r.mask, r.text, "
    f"{TOLD.format(v='r')} FROM resource r WHERE r.rid > ? AND r.rid <= ? ORDER BY r.rid"
)


def batch_end(view: View, after: int) -> int:
    """The last number of the next batch: so many resources, or so much text; `END` for the last batch."""
    rows = view.db.rows(
        "SELECT rid, coalesce(length(text), 0) FROM resource WHERE rid > ? ORDER BY rid LIMIT ?", (after, RESOURCES)
    )
    size = 0
    for rid, length in rows:
        size += length
        if size > BYTES:
            return int(rid)
    return int(rows[-1][0]) if len(rows) == RESOURCES else END


def currents(view: View, after: int, last: int) -> list[Current]:
    """The resources of a batch."""
    return [Current(*row) for row in view.db.rows(_CURRENT, (after, last))]


def index_cursors(view: View, after: int, last: int) -> list[Cursor]:
    """The index rows of a batch, table by table, scopes last; not those of contained resources (see `rows_of`)."""
    return [
        Cursor(_by_rid(view, f"SELECT {bulk.names} FROM {bulk.table} t", after, last))
        for bulk in (*INDEX_TABLES, SCOPE)
    ]


def rows_of(view: View, one: Current, cursors: Sequence[Cursor]) -> list[list[Row]]:
    """The index rows of a resource and of what it contains, table by table, scopes last."""
    found = [list(cursor.of(one.rid)) for cursor in cursors]
    if found[INDEX_TABLES.index(CONTAINED)] or one.mask >> INDEX_TABLES.index(CONTAINED) & 1:
        for bulk, rows in zip(INDEX_TABLES[:-1], found, strict=False):
            sql = f"SELECT {bulk.names} FROM {bulk.table} WHERE rid BETWEEN ? AND ?"
            rows.extend(view.db.rows(sql, contained_numbers(one.rid)))
    return found


def _by_rid(view: View, select: str, after: int, last: int) -> Iterator[Row]:
    known = "(t.rid > 0 OR NOT EXISTS (SELECT 1 FROM contained k WHERE k.number = t.rid))"
    sql = f"{select} WHERE t.rid > ? AND t.rid <= ? AND {known} ORDER BY t.rid LIMIT ?"
    while True:
        rows = view.db.rows(sql, (after, last, PAGE))
        if len(rows) < PAGE:
            yield from rows
            return
        cut = rows[-1][0]
        if rows[0][0] == cut:  # more rows of one resource than a page
            yield from view.db.rows(sql, (cut - 1, cut, 1 << 40))
            after = cut
        else:
            yield from (row for row in rows if row[0] < cut)
            after = cut - 1


def wanted(view: View, one: Current, extract: Extract) -> IndexRows:
    """The index rows a resource ought to have; of a deleted one, the scopes of its last version.

    Raises `errors.PasserelleError` or `ValueError` when the text cannot be read or indexed.
    """
    if not one.deleted:
        return extract(json_text.parse(one.text or ""))
    row = view.db.one(
        "SELECT text FROM history WHERE rid = ? AND deleted = 0 ORDER BY version DESC LIMIT 1", (one.rid,)
    )
    return IndexRows() if row is None else IndexRows(scopes=extract(json_text.parse(row[0] or "")).scopes)


def disagreements(one: Current, rows: IndexRows, found: Sequence[list[Row]]) -> list[tuple[Derived, str]]:
    """How the index rows, scopes and mask of a resource differ from those it ought to have."""
    told: list[tuple[Derived, str]] = []
    scopes = [(one.rid, *row) for row in rows.scopes]
    for bulk, values, there in zip((*INDEX_TABLES, SCOPE), (*index_values(one.rid, rows), scopes), found, strict=True):
        should, have = set(values), dates.agreed(values, there) if bulk is IDX_DATE else there
        lacking, surplus = len(should - set(have)), sum(1 for row in have if row not in should)
        twice = len(have) - len(set(have))
        if lacking or surplus or twice:
            kind: Derived = "scope" if bulk is SCOPE else "index"
            told.append((kind, f"{bulk.table}: {lacking} missing, {surplus} wrong, {twice} repeated"))
    if one.mask != mask_of(rows):
        told.append(("mask", f"{one.mask} instead of {mask_of(rows)}"))
    return told
