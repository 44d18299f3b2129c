"""Index rows, scopes and masks made anew where they do not agree with their resource.

Rows are compared batch by batch in short snapshots with no lock held; what differs is replaced in a short transaction
that passes by what was written meanwhile (its writer made its rows). The position is written with each batch, so that
a run that was cut off goes on where it stopped. A number the caller chooses, the rows' meaning (it changes with the
parameters and with how values are extracted), is noted when a run is through: another number says that rows are stale.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search.rows import IndexRows
from fhir_server.store import dates, derived, resources
from fhir_server.store.derived import END, START, Current, Extract
from fhir_server.store.engine import Store
from fhir_server.store.session import Tx
from fhir_server.store.view import View

POSITION, MEANING = "reindex position", "index meaning"
ROWS_A_TRANSACTION = 20_000
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Reindexed:
    """`seen` resources compared, `changed` of them made anew, `orphans` index rows' owners that do not exist, `failed`
    references whose text cannot be indexed. `done`: the whole database was walked, not only a part."""

    seen: int
    changed: int
    orphans: int
    failed: tuple[str, ...]
    done: bool


def stale(store: Store, meaning: int) -> bool:
    """Whether rows may have another meaning than the program's: a reindex is due. A database without resources is
    marked with the meaning and is not stale."""
    with store.read(SYSTEM) as snapshot:
        noted = _noted(snapshot.view, MEANING)
        filled = snapshot.view.db.one("SELECT 1 FROM resource LIMIT 1")
    if noted is None and filled is None:
        store.write(SYSTEM, partial(_note, name=MEANING, value=meaning))
        return False
    return noted != meaning


def reindex(
    store: Store,
    extract: Extract,
    *,
    meaning: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    tell: Tell = lambda line: None,
) -> Reindexed:
    """Makes the rows agree with `extract`, from where the last run stopped.

    Start it when every writer uses this `extract`. `stop` is asked between batches; the next run goes on from there.
    """
    with store.read(SYSTEM) as snapshot:
        after = _noted(snapshot.view, POSITION) or START
    seen = changed = orphans = 0
    failed: list[str] = []
    while after < END:
        if stop():
            return Reindexed(seen, changed, orphans, tuple(failed), False)
        batch = _compared(store, extract, after)
        store.write(SYSTEM, partial(_tighten, after=after, last=batch.last))
        if batch.orphans:
            store.write(SYSTEM, partial(_clear, orphans=batch.orphans))
        for part in _parts(batch.stale):
            changed += store.write(SYSTEM, partial(_make_anew, part=part))
        store.write(SYSTEM, partial(_note, name=POSITION, value=batch.last))
        seen, orphans, after = seen + batch.seen, orphans + len(batch.orphans), batch.last
        failed.extend(batch.failed)
        tell(f"{seen} resources seen, {changed} indexed anew")
    store.write(SYSTEM, partial(_through, meaning=meaning))
    store.analyse()
    return Reindexed(seen, changed, orphans, tuple(failed), True)


def index_batch(store: Store, extract: Extract, after: int, types: frozenset[str]) -> tuple[int, dict[str, int]]:
    """Makes the rows of the next batch behind `after` agree with `extract`, as far as it is of `types`.

    Returns the position behind it (`END` after the last) and how many resources of each type it had.
    """
    batch = _compared(store, extract, after, types)
    for part in _parts(batch.stale):
        store.write(SYSTEM, partial(_make_anew, part=part))
    return batch.last, batch.types


@dataclass(frozen=True, slots=True)
class _Batch:
    last: int
    seen: int
    stale: list[tuple[Current, IndexRows]]
    orphans: list[int]
    failed: list[str]
    types: dict[str, int]


def _compared(store: Store, extract: Extract, after: int, types: frozenset[str] | None = None) -> _Batch:
    found: list[tuple[Current, IndexRows]] = []
    orphans: set[int] = set()
    failed: list[str] = []
    counts: dict[str, int] = {}
    with store.read(SYSTEM) as snapshot:
        view = snapshot.view
        last = derived.batch_end(view, after)
        cursors = derived.index_cursors(view, after, last)
        batch = derived.currents(view, after, last)
        for one in batch:
            orphans.update(row[0] for cursor in cursors for row in cursor.before(one.rid))
            there = derived.rows_of(view, one, cursors)
            if types is not None and one.type not in types:
                continue
            counts[one.type] = counts.get(one.type, 0) + (not one.deleted)
            try:
                rows = derived.wanted(view, one, extract)
            except (errors.PasserelleError, ValueError) as fault:
                failed.append(f"{one.reference}: {fault}")
                continue
            if derived.disagreements(one, rows, there):
                found.append((one, rows))
        orphans.update(row[0] for cursor in cursors for row in cursor.before(last + 1))
    return _Batch(last, len(batch), found, sorted(orphans), failed, counts)


def _parts(found: Sequence[tuple[Current, IndexRows]]) -> list[list[tuple[Current, IndexRows]]]:
    """Pieces of which each is a short transaction."""
    parts: list[list[tuple[Current, IndexRows]]] = [[]]
    size = 0
    for one, rows in found:
        count = sum(len(values) for values in resources.index_values(one.rid, rows))
        if parts[-1] and size + count > ROWS_A_TRANSACTION:
            parts.append([])
            size = 0
        parts[-1].append((one, rows))
        size += count
    return parts if found else []


def _make_anew(tx: Tx, part: Sequence[tuple[Current, IndexRows]]) -> int:
    """Replaces the rows of those that are still at the version that was compared; how many."""
    dialect = tx.view.db.dialect
    named = json.dumps([[one.rid] for one, _ in part])
    held = tx.view.db.rows(
        f"SELECT rid, version FROM resource WHERE rid IN (SELECT CAST(k.value ->> 0 AS bigint) FROM {dialect.each} k) "
        f"ORDER BY rid{dialect.for_update}",
        (named,),
    )
    unchanged = set(held)
    chosen = [(one, rows) for one, rows in part if (one.rid, one.version) in unchanged]
    for one, rows in chosen:
        resources.index_anew(tx.view, one.rid, rows)
    return len(chosen)


def _tighten(tx: Tx, after: int, last: int) -> None:
    dates.tighten(tx.view, after, last)


def _clear(tx: Tx, orphans: Sequence[int]) -> None:
    """Removes rows that belong to nothing, before others may get the same number of a contained resource."""
    for rid in orphans:
        if rid > 0 or tx.view.db.one("SELECT 1 FROM contained WHERE number = ?", (rid,)) is None:
            resources.unindex(tx.view, rid)


def _through(tx: Tx, meaning: int | None) -> None:
    tx.view.db.run("DELETE FROM counter WHERE name = ?", (POSITION,))
    if meaning is not None:
        _note(tx, MEANING, meaning)


def _noted(view: View, name: str) -> int | None:
    row = view.db.one("SELECT value FROM counter WHERE name = ?", (name,))
    return None if row is None else int(row[0])


def _note(tx: Tx, name: str, value: int) -> None:
    tx.view.db.run(
        "INSERT INTO counter (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )
