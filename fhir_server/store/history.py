"""Past versions: of one resource, of a type, of everything, in either order, page by page.

Versions of one resource are found by its row number; those of many in the journal, below every transaction that still
runs, so that no page misses one.

Source: https://hl7.org/fhir/R4/http.html#history
"""

from __future__ import annotations

from dataclasses import dataclass

from fhir_server.store.dialect import Row
from fhir_server.store.resources import COLUMNS, OLD, Stored, get, stored
from fhir_server.store.view import Fragment, View, visible


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which versions: of a resource (type and id), a type, or everything; stored `since` (microseconds, inclusive);
    `at` (low, high exclusive, in microseconds): current at some time in between."""

    type: str | None = None
    id: str | None = None
    since: int = 0
    at: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Versions in order, and where the next page begins (`after`), or None."""

    entries: tuple[Stored, ...]
    next: tuple[int, ...] | None


def history(
    view: View, wanted: Wanted, count: int = 50, after: tuple[int, ...] = (), *, oldest_first: bool = False
) -> HistoryPage:
    """A page of the versions wanted, newest first unless `oldest_first`."""
    order, beyond = ("ASC", ">") if oldest_first else ("DESC", "<")
    rows: list[Row] = []
    keys: list[tuple[int, ...]] = []
    if wanted.type is not None and wanted.id is not None:
        found = _of_one(view, wanted, (beyond, after))
        if found.sql:
            rows = view.db.rows(f"{found.sql} ORDER BY 4 {order} LIMIT ?", (*found.params, count + 1))
            keys = [(int(row[3]),) for row in rows]
    else:
        found = _of_many(view, wanted, (beyond, after))
        ordered = f"SELECT {_JOURNALED} {found.sql} ORDER BY j.at {order}, j.seq {order} LIMIT ?"
        told = view.db.rows(ordered, (*found.params, count + 1))
        rows = [row[1:] for row in told]
        keys = [(int(row[5]), int(row[0])) for row in told]
    more = len(rows) > count > 0
    return HistoryPage(tuple(stored(row) for row in rows[:count]), keys[count - 1] if more else None)


def total(view: View, wanted: Wanted) -> int:
    """How many versions all pages hold together."""
    if wanted.type is not None and wanted.id is not None:
        found = _of_one(view, wanted, (">", ()))
        row = view.db.one(f"SELECT COUNT(*) FROM ({found.sql}) v", found.params) if found.sql else None
    else:
        found = _of_many(view, wanted, (">", ()))
        row = view.db.one(f"SELECT COUNT(*) {found.sql}", found.params)
    return int(row[0]) if row else 0


_Beyond = tuple[str, tuple[int, ...]]
"""Behind which position, in which direction."""


def _of_one(view: View, wanted: Wanted, beyond: _Beyond) -> Fragment:
    """The statement for the versions of one resource, without its order; empty when nothing is known of it."""
    current = get(view, wanted.type or "", wanted.id or "")
    if current is None:
        return Fragment("")
    now, old = (_current_between(wanted.at, alias) for alias in ("r", "h"))
    sign, after = beyond
    behind = [f" AND {alias}.version {sign} ?" if after else "" for alias in ("r", "h")]
    where = (current.rid, *after[:1], wanted.since)
    return Fragment(
        f"SELECT {COLUMNS} FROM resource r WHERE r.rid = ?{behind[0]} AND r.last_updated >= ?{now.sql} "
        f"UNION ALL SELECT {OLD} FROM history h JOIN resource r ON r.rid = h.rid "
        f"WHERE h.rid = ?{behind[1]} AND h.last_updated >= ?{old.sql}",
        (*where, *now.params, *where, *old.params),
    )


_JOURNALED = (
    "j.seq, r.rid, r.type, r.id, j.version, j.at, CASE WHEN h.rid IS NULL THEN r.deleted ELSE h.deleted END, j.method, "
    "CASE WHEN h.rid IS NULL THEN r.text ELSE h.text END"
)


def _of_many(view: View, wanted: Wanted, beyond: _Beyond) -> Fragment:
    """What follows the columns in the statement for the versions of many, without its order."""
    seen, then = visible(view.caller, "r"), _current_between(wanted.at, "j")
    sign, after = beyond
    conditions = [view.db.dialect.settled.format(column="j.txid")]
    params: list[object] = []
    if wanted.type is not None:
        conditions.append("j.type = ?")
        params.append(wanted.type)
    if wanted.since:
        conditions.append("j.at >= ?")
        params.append(wanted.since)
    if after:
        conditions.append(f"(j.at, j.seq) {sign} (?, ?)")
        params.extend(after)
    return Fragment(
        "FROM journal j JOIN resource r ON r.rid = j.rid "
        "LEFT JOIN history h ON h.rid = j.rid AND h.version = j.version "
        f"WHERE {' AND '.join(conditions)}{then.sql}{seen.sql}",
        (*params, *then.params, *seen.params),
    )


def _current_between(at: tuple[int, int] | None, alias: str) -> Fragment:
    """The condition that a version (`alias`: r the current one, h an old one, j in the journal) was current then.

    It begins with the version and ends with the one that superseded it: the next in history, else the current one.
    """
    if at is None:
        return Fragment("")
    begins = f"{alias}.{'at' if alias == 'j' else 'last_updated'}"
    following = f"(SELECT n.last_updated FROM history n WHERE n.rid = {alias}.rid AND n.version = {alias}.version + 1)"
    if alias == "r":
        return Fragment(f" AND {begins} < ?", (at[1],))
    ended = f"r.version <> {alias}.version AND COALESCE({following}, r.last_updated) <= ?"
    return Fragment(f" AND {begins} < ? AND NOT ({ended})", (at[1], at[0]))
