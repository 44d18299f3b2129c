"""Search parameters of users, from posted to active.

A SearchParameter with status `active` is noted here; from then on every writer makes its rows, and a walk in the
background makes those of what was there before, batch by batch, its place written with each batch. A search by it is
refused until the walk is through: an answer would lack resources without saying so. One that is retired or deleted is
searched by no more at once; the same walk removes its rows, and then its note.

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
from fhir_server.store.check import END, START, Extract
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
        rows = [_row(snapshot.view, key, _plain(wanted[key])) for key in changed]
    if not rows and not gone:
        return False
    store.write(SYSTEM, partial(_write, rows=rows, gone=gone))
    return True


def _plain(text: str) -> str:
    """The definition without what a version changes."""
    resource = json_text.parse(text)
    return json_text.write({name: value for name, value in resource.items() if name not in ("meta", "text")})


def _row(view: View, key: str, text: str) -> Noted:
    now, resource = view.now(), json.loads(text)
    try:
        found = custom.definition(resource)
    except errors.Invalid as problem:
        url = str(resource.get("url") or f"SearchParameter/{key}")
        return Noted(url, key, text, "refused", problem.diagnostics, END, now, 0, 0)
    counted = view.db.one(
        f"SELECT count(*) FROM resource WHERE deleted = 0 AND type IN ({marks(found.bases)})", found.bases
    )
    return Noted(found.url, key, text, "indexing", "", START, now, 0, int(counted[0]) if counted else 0)


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
        tx.view.db.run("DELETE FROM search_parameter WHERE id = ? OR url = ?", (one.id, one.url))
        values = tuple(getattr(one, name) for name in _COLUMNS.split(", "))
        tx.view.db.run(f"INSERT INTO search_parameter ({_COLUMNS}) VALUES ({marks(values)})", values)
    tx.next_epoch()


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
