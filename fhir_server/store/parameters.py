"""Search parameters of users, from posted to active.

A SearchParameter with status `active` is noted here; from then on every writer makes its rows, and a walk in the
background makes those of what was there before, batch by batch, its place written with each batch. A search by it is
refused until the walk is through: an answer would lack resources without saying so. One that is retired or deleted is
searched by no more at once; the same walk removes its rows, and then its note. So it is with the types a changed one
is no parameter of any more: they are noted beside it as what was before.

Every process looks at the epoch and takes over what is noted (`refresh`). The walk begins some seconds after that, so
that no writer is left that does not make the rows. Source: https://hl7.org/fhir/R4/searchparameter.html
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import custom, index
from fhir_server.search.plan import Clause, Plan, Value
from fhir_server.store import reindex
from fhir_server.store.derived import END, START, Extract
from fhir_server.store.dialect import marks
from fhir_server.store.engine import Store
from fhir_server.store.session import Tx
from fhir_server.store.view import View
from profiles import definitions, json_text

MOST = 200
GRACE_SECONDS = {"sqlite": 0.0, "postgresql": 10.0}
_ACTIVE = Plan(
    ("SearchParameter",),
    (Clause("status", "token", index.pid("SearchParameter", "status"), (Value(code="active"),)),),
    count=MOST,
)
_COLUMNS = "url, id, definition, state, note, position, since, seen, total"


@dataclass(frozen=True, slots=True)
class Noted:
    """One parameter: `state` is indexing, active, removed (its rows go) or refused (`note` says why); `seen` of `total`
    resources done."""

    url: str
    id: str
    definition: str
    state: str
    note: str
    position: int
    since: int
    seen: int
    total: int

    def read(self) -> definitions.SearchParameter:
        return custom.built(json.loads(self.definition))


def listed(store: Store) -> list[Noted]:
    """Every parameter of users, with how far its indexing is."""
    with store.read(SYSTEM) as snapshot:
        return _noted(snapshot.view)


def _noted(view: View) -> list[Noted]:
    return [Noted(*row) for row in view.db.rows(f"SELECT {_COLUMNS} FROM search_parameter ORDER BY url")]


def refresh(store: Store, seen: int) -> int:
    """Takes over what is noted when the epoch is another than `seen`; returns the epoch. Call it in every process."""
    with store.read(SYSTEM) as snapshot:
        epoch = snapshot.epoch()
        if epoch == seen:
            return seen
        noted = _noted(snapshot.view)
    index.install([(one.read(), one.state == "active") for one in noted if one.state in ("indexing", "active")])
    return epoch


def note(store: Store) -> bool:
    """Notes what the stored SearchParameters ask for; whether anything changed."""
    with store.read(SYSTEM) as snapshot:
        wanted = {one.id: one.text for one in snapshot.search(_ACTIVE).matches}
        there = {one.id: one for one in _noted(snapshot.view)}
        kept = {key for key, one in there.items() if one.state != "removed"}
        changed = [key for key, text in wanted.items() if key not in kept or there[key].definition != _plain(text)]
        gone = [there[key] for key in kept if key not in wanted]
        owners = {there[key].url: key for key in kept if key in wanted}
        rows = [_row(snapshot.view, key, _plain(wanted[key]), owners) for key in changed]
    if not rows and not gone:
        return False
    store.write(SYSTEM, partial(_write, rows=rows, gone=gone))
    return True


def _plain(text: str) -> str:
    """The definition without what a version changes."""
    resource = json_text.parse(text)
    return json_text.write({name: value for name, value in resource.items() if name not in ("meta", "text")})


def _row(view: View, key: str, text: str, owners: dict[str, str]) -> Noted:
    """The note of a parameter; `owners` says whose each URL is, and is told of this one's."""
    now, resource = view.now(), json.loads(text)
    try:
        found = custom.definition(resource)
        owner = owners.setdefault(found.url, key)
        if owner != key:
            raise errors.Invalid(f"SearchParameter.url: it is that of SearchParameter/{owner}.")
    except errors.Invalid as problem:
        return Noted(f"SearchParameter/{key}", key, text, "refused", problem.diagnostics, END, now, 0, 0)
    return Noted(found.url, key, text, "indexing", "", START, now, 0, _count(view, found.bases))


def _count(view: View, bases: Sequence[str]) -> int:
    sql = f"SELECT count(*) FROM resource WHERE deleted = 0 AND type IN ({marks(bases)})"
    row = view.db.one(sql, tuple(bases))
    return int(row[0]) if row else 0


def _write(tx: Tx, rows: Sequence[Noted], gone: Sequence[Noted]) -> None:
    for one in gone:
        if one.state == "refused":
            tx.view.db.run("DELETE FROM search_parameter WHERE url = ?", (one.url,))
        else:
            tx.view.db.run(
                "UPDATE search_parameter SET state = 'removed', position = ?, since = ?, seen = 0 WHERE url = ?",
                (START, tx.view.now(), one.url),
            )
    for one in rows:
        where = "WHERE id = ? OR url = ?"
        old = tx.view.db.rows(f"SELECT {_COLUMNS} FROM search_parameter {where}", (one.id, one.url))
        tx.view.db.run(f"DELETE FROM search_parameter {where}", (one.id, one.url))
        _insert(tx, one)
        for former in (Noted(*row) for row in old):
            _note_former(tx, former, one)
    tx.next_epoch()


def _insert(tx: Tx, one: Noted) -> None:
    values = tuple(getattr(one, name) for name in _COLUMNS.split(", "))
    tx.view.db.run(f"INSERT INTO search_parameter ({_COLUMNS}) VALUES ({marks(values)})", values)


def _note_former(tx: Tx, former: Noted, present: Noted) -> None:
    """Notes that rows go of the types that the walk for `present` does not come to."""
    if former.state == "refused":
        return
    walked = () if present.state == "refused" else present.read().bases
    lost = [base for base in former.read().bases if base not in walked]
    if lost:
        definition = json_text.write(json.loads(former.definition) | {"base": lost})
        now, total = tx.view.now(), _count(tx.view, lost)
        url, key = (f"{text} before {now}" for text in (former.url, former.id))
        _insert(tx, Noted(url, key, definition, "removed", "", START, now, 0, total))


def advance(store: Store, extract: Extract) -> bool:
    """Indexes one batch for the parameters that are furthest behind, or clears it of the rows of those that are gone;
    False when there is nothing to do now.

    `extract` must be the writers' own, after `refresh`. A run that is cut off goes on from the batch it was at.
    """
    ready = store.moment() - int(GRACE_SECONDS[store.engine] * 1e6)
    waiting = [one for one in listed(store) if one.state in ("indexing", "removed") and one.since <= ready]
    if not waiting:
        return False
    position = min(one.position for one in waiting)
    group = [one for one in waiting if one.position == position]
    types = frozenset(kind for one in group for kind in one.read().bases)
    last, counts = reindex.index_batch(store, extract, position, types)
    store.write(SYSTEM, partial(_progress, group=group, last=last, counts=counts))
    return True


def _progress(tx: Tx, group: Sequence[Noted], last: int, counts: dict[str, int]) -> None:
    through = last >= END
    for one in group:
        if through and one.state == "removed":
            tx.view.db.run(
                "DELETE FROM search_parameter WHERE url = ? AND position = ? AND state = 'removed'",
                (one.url, one.position),
            )
            continue
        seen = one.seen + sum(counts.get(kind, 0) for kind in one.read().bases)
        tx.view.db.run(
            "UPDATE search_parameter SET position = ?, seen = ?, total = CASE WHEN total < ? THEN ? ELSE total END, "
            "state = ? WHERE url = ? AND position = ? AND definition = ? AND state = ?",
            (
                last,
                seen,
                seen,
                seen,
                "active" if through else one.state,
                one.url,
                one.position,
                one.definition,
                one.state,
            ),
        )
    if through:
        tx.next_epoch()
