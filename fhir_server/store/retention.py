"""What may go, and when: finished messages and deliveries after a time, content that nothing refers to.

Rows go in small transactions, oldest first, and rows that somebody holds are passed by: a writer waits for nothing, and
the next run finds what was passed. What a remaining row refers to stays: the message that settled a delivery's second
leg or that a conflict is about. A delivery goes together with all that repeats it or was made in its place, or not at
all: whether its addressee may have it is told by all of them (`overtaken.handed`).

Content goes after two looks a day apart. The first notes since when nothing refers to it, and takes files no
transaction ever recorded into the table; the second, if that is still so, removes the row, then the file. A file put
again meanwhile stays (see `blobs`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.store.blob_place import Kept
from fhir_server.store.dialect import Row, marks
from fhir_server.store.engine import Store
from fhir_server.store.installation import claim_content
from fhir_server.store.session import Tx
from fhir_server.store.view import View

DAY = 86_400.0
BATCH = 200


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows went."""

    messages: int = 0
    deliveries: int = 0


@dataclass(frozen=True, slots=True)
class _Box:
    """A table that is pruned: its states that need nobody any more, the order it is walked in (which follows time), and
    which of some rows may go, held from then on (`free`)."""

    table: str
    states: tuple[str, ...]
    since: str
    order: str
    first: tuple[object, ...]
    free: Callable[[View, Sequence[str], int], list[str]]
    box: str


_CHOSEN = "(SELECT k.value ->> 0 FROM {each} k)"


def _rows_of(ids: Iterable[str]) -> str:
    """The parameter of `_CHOSEN`."""
    return json.dumps([[key] for key in ids])


def _free_messages(view: View, ids: Sequence[str], limit: int) -> list[str]:
    """Those of `ids` that may go and that nobody holds. What refers to them is asked in a second statement, once they
    are locked: it sees what the last holder committed."""
    dialect = view.db.dialect
    chosen = _CHOSEN.format(each=dialect.each)
    held = view.db.rows(
        f"SELECT id FROM inbox WHERE id IN {chosen} AND {dialect.unindexed.format('state')} IN ('done', 'refused') "
        f"AND settled_at < ? ORDER BY id{dialect.skip_locked}",
        (_rows_of(ids), limit),
    )
    free = view.db.rows(
        f"SELECT b.id FROM inbox b WHERE b.id IN {chosen} AND b.repeated_at < ? "
        "AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.leg_inbox <> '' AND d.leg_inbox = b.id) "
        "AND NOT EXISTS (SELECT 1 FROM inbox o WHERE o.rival <> '' AND o.rival = b.id)",
        (json.dumps(held), limit),
    )
    return [row[0] for row in free]


def _free_deliveries(view: View, ids: Sequence[str], limit: int) -> list[str]:
    """Those of `ids` that repeat no other, with all that was made of them, where every one of these may go and nobody
    holds it. Who makes one more of them holds what it is made of: so they are asked for again, once they are locked."""
    dialect = view.db.dialect
    held = view.db.rows(
        f"SELECT id FROM delivery WHERE id IN {_CHOSEN.format(each=dialect.each)} "
        f"AND ({dialect.unindexed.format('state')} = 'cancelled' OR "
        f"{dialect.unindexed.format('state')} = 'sent' AND leg_state <> 'waiting') AND settled_at < ? "
        f"ORDER BY id{dialect.skip_locked}",
        (_rows_of({key for chain in _chains(view, ids) for key in chain}), limit),
    )
    locked = {row[0] for row in held}
    return [key for chain in _chains(view, ids) if locked.issuperset(chain) for key in chain]


def _chains(view: View, ids: Sequence[str]) -> list[list[str]]:
    """For each of `ids` that repeats no other: it and all that was made of it, of those, and so on."""
    rows = view.db.rows(
        "WITH RECURSIVE m(root, id) AS ("
        f"SELECT b.id, b.id FROM delivery b WHERE b.id IN {_CHOSEN.format(each=view.db.dialect.each)} "
        "AND NOT EXISTS (SELECT 1 FROM delivery p WHERE p.id = b.parent) "
        "UNION SELECT m.root, d.id FROM m JOIN delivery d ON d.parent <> '' AND d.parent = m.id) "
        "SELECT root, id FROM m",
        (_rows_of(ids),),
    )
    chains = defaultdict(list)
    for root, key in rows:
        chains[root].append(key)
    return list(chains.values())


_INBOX = _Box(
    table="inbox",
    states=("done", "refused"),
    since="received_at",
    order="seq",
    first=(0,),
    free=_free_messages,
    box="in",
)
_OUTBOX = _Box(
    table="delivery",
    states=("sent", "cancelled"),
    since="created_at",
    order="created_at, id",
    first=(0, ""),
    free=_free_deliveries,
    box="out",
)


def prune(store: Store, keep_seconds: float, *, batch: int = BATCH, stop: Callable[[], bool] = _never) -> Pruned:
    """Deletes messages taken in or refused, and deliveries sent (both legs) or cancelled, that were settled longer ago
    than `keep_seconds`, with their attempts and business keys. What failed or is held waits for a person and stays, and
    with it the deliveries it repeats or is repeated by.

    A message whose row is gone is taken as new when its sender repeats it: keep longer than partners repeat.
    """
    limit = store.moment() - int(keep_seconds * 1_000_000)
    return Pruned(_pruned(store, _INBOX, limit, batch, stop), _pruned(store, _OUTBOX, limit, batch, stop))


def _pruned(store: Store, box: _Box, limit: int, batch: int, stop: Callable[[], bool]) -> int:
    total = 0
    for state in box.states:
        for ids in _settled(store, box, state, limit, batch):
            if stop():
                return total
            total += store.write(SYSTEM, partial(_forget, box=box, ids=ids, limit=limit))
    return total


def _settled(store: Store, box: _Box, state: str, limit: int, batch: int) -> Iterator[list[str]]:
    """The ids that are old enough, a batch at a time; the walk ends where all rows are too young to be."""
    after, columns = box.first, box.order
    sql = (
        f"SELECT id, {box.since}, settled_at, {columns} FROM {box.table} "
        f"WHERE state = ? AND ({columns}) > ({marks(after)}) ORDER BY {columns} LIMIT ?"
    )
    while True:
        with store.read(SYSTEM) as snapshot:
            rows = snapshot.view.db.rows(sql, (state, *after, batch))
        old = [row for row in rows if row[1] < limit]
        ids = [row[0] for row in old if 0 < row[2] < limit]
        if ids:
            yield ids
        if not old or len(rows) < batch:
            return
        after = tuple(rows[-1][3:])


def _forget(tx: Tx, box: _Box, ids: Sequence[str], limit: int) -> int:
    """Deletes what may go of `ids`, with what hangs on it; how many rows."""
    view = tx.view
    free = box.free(view, ids, limit)
    chosen, gone = _CHOSEN.format(each=view.db.dialect.each), _rows_of(free)
    if box is _OUTBOX:
        view.db.run(f"DELETE FROM attempt WHERE delivery_id IN {chosen}", (gone,))
    view.db.run(f"DELETE FROM message_key WHERE message IN {chosen} AND box = ?", (gone, box.box))
    view.db.run(f"DELETE FROM {box.table} WHERE id IN {chosen}", (gone,))
    return len(free)


# --- content ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Collected:
    """`marked` at their first look, `deleted` at their second (`freed` bytes), `strays` files no transaction had
    recorded, `arrivals` half-written files of a crash, `superseded` copies of what was stored again in another form
    or, in a bucket, once more."""

    marked: int = 0
    deleted: int = 0
    freed: int = 0
    strays: int = 0
    arrivals: int = 0
    superseded: int = 0


_USES = (
    "SELECT 1 FROM inbox u WHERE u.raw IS NULL AND u.sha256 = b.sha256",
    "SELECT 1 FROM delivery u WHERE u.payload IS NULL AND u.sha256 = b.sha256",
    "SELECT 1 FROM dicom_instance u WHERE u.blob = b.sha256",
    "SELECT 1 FROM dicom_conflict u WHERE u.blob = b.sha256",
)
USED = "(b.kept = 1 OR " + " OR ".join(f"EXISTS ({use})" for use in _USES) + ")"
"""Whether anything refers to the row `b` of the blob table: every table that names content stands here."""


def collect(
    store: Store, *, age_seconds: float = DAY, batch: int = BATCH, stop: Callable[[], bool] = _never
) -> Collected:
    """One look at all content. Run it about once a day; each run does the second look for what earlier ones marked."""
    claim_content(store)
    now = store.moment()
    limit = now - int(age_seconds * 1_000_000)
    arrivals = _clear_arrivals(store, limit / 1e6)
    strays = _adopt_strays(store, now, limit, stop)
    marked = deleted = freed = 0
    for names in _looked_at(store, batch):
        if stop():
            break
        marked += store.write(SYSTEM, partial(_mark, names=names, now=now))
        lately = {name for name in names if (at := store.blobs.put_at(name)) is not None and at * 1e6 >= limit}
        gone = store.write(SYSTEM, partial(_drop, names=[name for name in names if name not in lately], limit=limit))
        for sha256, size in gone:
            if store.blobs.remove(sha256, limit / 1e6):
                freed += size
        deleted += len(gone)
    superseded = 0 if stop() else store.blobs.tidy(limit / 1e6)
    return Collected(marked, deleted, freed, strays, arrivals, superseded)


def _clear_arrivals(store: Store, before: float) -> int:
    count = 0
    for path in store.blobs.new_folder().iterdir():
        try:
            if path.is_file() and path.stat().st_ctime < before:
                path.unlink()
                count += 1
        except FileNotFoundError:  # it arrived
            continue
    return count


def _adopt_strays(store: Store, now: int, limit: int, stop: Callable[[], bool]) -> int:
    """Files without a row, put longer ago than the limit, get one, marked: what this run adopts a later one removes."""
    count = 0
    for names in store.blobs.names():
        for start in range(0, len(names), BATCH):
            if stop():
                return count
            part = names[start : start + BATCH]
            with store.read(SYSTEM) as snapshot:
                known = _known(snapshot.view, part)
            unknown = [name for name in part if name not in known]
            old = [name for name in unknown if (at := store.blobs.put_at(name)) is not None and at * 1e6 < limit]
            found = [kept for name in old if (kept := _kept(store, name)) is not None]
            if found:
                store.write(SYSTEM, partial(_adopt, found=found, now=now))
                count += len(found)
    return count


def _known(view: View, names: Sequence[str]) -> set[str]:
    asked = json.dumps([[name] for name in names])
    sql = f"SELECT sha256 FROM blob WHERE sha256 IN (SELECT k.value ->> 0 FROM {view.db.dialect.each} k)"
    return {row[0] for row in view.db.rows(sql, (asked,))}


def _kept(store: Store, sha256: str) -> Kept | None:
    """None when another clean-up was here, or this process lacks the key: one that has it will look too."""
    with suppress(errors.NotFound, errors.Unavailable):
        return store.blobs.kept(sha256)
    return None


def _adopt(tx: Tx, found: Sequence[Kept], now: int) -> None:
    for kept in found:
        tx.view.db.run(
            "INSERT INTO blob (sha256, size, form, key_id, created_at, idle_since) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (sha256) DO NOTHING",
            (kept.sha256, kept.size, kept.form.name, kept.form.key_id, now, now),
        )


def _looked_at(store: Store, batch: int) -> Iterator[list[str]]:
    """Rows nothing refers to, and those that were marked and are used again, as they are met on a walk over all."""
    after = ""
    while True:
        with store.read(SYSTEM) as snapshot:
            rows: list[Row] = snapshot.view.db.rows(
                f"SELECT b.sha256, b.idle_since, CASE WHEN {USED} THEN 1 ELSE 0 END FROM blob b "
                "WHERE b.sha256 > ? ORDER BY b.sha256 LIMIT ?",
                (after, batch),
            )
        if not rows:
            return
        if met := [row[0] for row in rows if row[1] or not row[2]]:
            yield met
        after = rows[-1][0]


def _held(view: View, names: Sequence[str]) -> list[tuple[str, int, int, bool]]:
    """(sha256, size, idle_since, used) of the rows that nobody else holds, locked. What refers to them is asked in a
    second statement: it sees what the last holder committed."""
    asked: tuple[Any, ...] = (json.dumps([[name] for name in names]),)
    chosen = f"(SELECT k.value ->> 0 FROM {view.db.dialect.each} k)"
    skip = view.db.dialect.skip_locked
    held = view.db.rows(f"SELECT sha256 FROM blob WHERE sha256 IN {chosen} ORDER BY sha256{skip}", asked)
    rows = view.db.rows(
        f"SELECT b.sha256, b.size, b.idle_since, CASE WHEN {USED} THEN 1 ELSE 0 END FROM blob b "
        f"WHERE b.sha256 IN {chosen}",
        (json.dumps(held),),
    )
    return [(row[0], int(row[1]), int(row[2]), row[3] == 1) for row in rows]


def _mark(tx: Tx, names: Sequence[str], now: int) -> int:
    """Notes what is unused since now, and takes the mark off what is used again."""
    changed = [(sha256, 0 if used else now) for sha256, _, idle, used in _held(tx.view, names) if used == (idle > 0)]
    for sha256, since in changed:
        tx.view.db.run("UPDATE blob SET idle_since = ? WHERE sha256 = ?", (since, sha256))
    return sum(1 for _, since in changed if since)


def _drop(tx: Tx, names: Sequence[str], limit: int) -> list[tuple[str, int]]:
    """Deletes the rows marked before the limit that are still unused. A file put again since this was asked keeps its
    place (see `blobs`), and whoever put it makes its row anew."""
    gone = []
    for sha256, size, idle, used in _held(tx.view, names):
        if not used and 0 < idle < limit:
            tx.view.db.run("DELETE FROM blob WHERE sha256 = ?", (sha256,))
            gone.append((sha256, size))
    return gone
