"""Resources and their versions: the served text, the index rows, the journal, in one transaction.

The text is the client's, compacted, with `id` first and `meta.versionId` and `meta.lastUpdated` written in; a
version that is replaced moves to `history`, unchanged. A deleted resource keeps its row, its history and its
scopes, and loses its index rows; writing it again revives it with the next version.

Source: https://hl7.org/fhir/R4/http.html#versions
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhir_server import errors
from fhir_server.context import Caller
from fhir_server.search.rows import IndexRows
from fhir_server.search.values import bounded
from fhir_server.store import dates, journal
from fhir_server.store.dialect import Row
from fhir_server.store.tables import CONTAINED, IDX_DATE, INDEX_TABLES, RESOURCE, SCOPE, Bulk
from fhir_server.store.view import HeldRow, Stale, View, instant_of, visible
from profiles import json_text

Resource = dict[str, Any]
COLUMNS = "r.rid, r.type, r.id, r.version, r.last_updated, r.deleted, r.method, r.text"
OLD = "h.rid, r.type, r.id, h.version, h.last_updated, h.deleted, h.method, h.text"


@dataclass(frozen=True, slots=True)
class Stored:
    """One version. `last_updated` in microseconds UTC; `text` is the JSON served, '' for a deletion. `container`: the
    resource (`Type/id`) that holds this one, '' for a resource of its own."""

    rid: int
    type: str
    id: str
    version: int
    last_updated: int
    deleted: bool
    method: str
    text: str
    container: str = ""

    @property
    def reference(self) -> str:
        return f"{self.type}/{self.id}"

    @property
    def etag(self) -> str:
        return f'W/"{self.version}"'

    def resource(self) -> Resource:
        """The resource as a new dict; `Gone` for a deletion."""
        if self.deleted:
            raise errors.Gone(f"{self.reference} was deleted.")
        return json_text.parse(self.text)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A resource written out before its transaction, open where the version and the instant go in."""

    type: str
    id: str
    head: str
    tail: str

    def text(self, version: int, at: int) -> str:
        return f'{self.head}"versionId":"{version}","lastUpdated":"{instant_of(at)}"{self.tail}'


def prefix(resource_type: str, resource_id: str, version: int, at: int) -> str:
    """How the text of a version begins."""
    opening = json_text.write({"resourceType": resource_type, "id": resource_id})[:-1]
    return f'{opening},"meta":{{"versionId":"{version}","lastUpdated":"{instant_of(at)}"'


_STORE_SETS = ("versionId", "lastUpdated", "_versionId", "_lastUpdated")


def prepare(resource: Resource) -> Prepared:
    """Writes the resource out once. It carries `resourceType` and `id`; the store owns versionId and lastUpdated."""
    kind, key = resource["resourceType"], resource["id"]
    meta = {name: value for name, value in (resource.get("meta") or {}).items() if name not in _STORE_SETS}
    rest = {name: value for name, value in resource.items() if name not in ("resourceType", "id", "meta")}
    more_meta = "," + json_text.write(meta)[1:-1] if meta else ""
    more = "," + json_text.write(rest)[1:-1] if rest else ""
    opening = json_text.write({"resourceType": kind, "id": key})[:-1]
    return Prepared(kind, key, f'{opening},"meta":{{', f"{more_meta}}}{more}}}")


def stored(row: Sequence[Any]) -> Stored:
    """A `COLUMNS` row as a value."""
    return Stored(row[0], row[1], row[2], row[3], row[4], bool(row[5]), row[6], row[7] or "")


def get_query(caller: Caller, resource_type: str, resource_id: str) -> tuple[str, tuple[object, ...]]:
    """The statement of `get`, with its parameters."""
    seen = visible(caller, "r")
    sql = f"SELECT {COLUMNS} FROM resource r WHERE r.type = ? AND r.id = ?{seen.sql}"
    return sql, (resource_type, resource_id, *seen.params)


def get(view: View, resource_type: str, resource_id: str) -> Stored | None:
    """The current version (a deletion too); None when it never existed or is not for this caller."""
    row = view.db.one(*get_query(view.caller, resource_type, resource_id))
    return None if row is None else stored(row)


def many(view: View, references: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Stored]:
    """The current versions of several (type, id) at once; those not found are absent."""
    found: dict[tuple[str, str], Stored] = {}
    seen = visible(view.caller, "r")
    wanted = sorted(set(references))
    for start in range(0, len(wanted), 200):
        part = wanted[start : start + 200]
        pairs = ", ".join("(?, ?)" for _ in part)
        params = [text for pair in part for text in pair]
        sql = f"SELECT {COLUMNS} FROM resource r WHERE (r.type, r.id) IN (VALUES {pairs}){seen.sql}"
        for row in view.db.rows(sql, (*params, *seen.params)):
            one = stored(row)
            found[one.type, one.id] = one
    return found


# A version that is not superseded has no row in history.
_ANY_VERSION = "r.rid, r.type, r.id, " + ", ".join(
    f"CASE WHEN h.rid IS NULL THEN r.{name} ELSE h.{name} END"
    for name in ("version", "last_updated", "deleted", "method", "text")
)


def version_query(caller: Caller, resource_type: str, resource_id: str, number: int) -> tuple[str, tuple[object, ...]]:
    """The statement of `version`, with its parameters; it gives the current version when the number is none."""
    seen = visible(caller, "r")
    sql = (
        f"SELECT {_ANY_VERSION} FROM resource r LEFT JOIN history h ON h.rid = r.rid AND h.version = ? "
        f"WHERE r.type = ? AND r.id = ?{seen.sql}"
    )
    return sql, (number, resource_type, resource_id, *seen.params)


def at_version(row: Row | None, number: int) -> Stored | None:
    """The version that `version_query` found, None when it is another than asked."""
    return stored(row) if row is not None and row[3] == number else None


def version(view: View, resource_type: str, resource_id: str, number: int) -> Stored | None:
    """One version, current or superseded; None when there is none."""
    return at_version(view.db.one(*version_query(view.caller, resource_type, resource_id, number)), number)


def create(
    view: View, resource: Resource | Prepared, rows: IndexRows, *, method: str = "POST", absent: bool = False
) -> Stored:
    """A new resource under the id it carries; `Conflict` when that id is in use.

    `absent`: the caller knows that nothing has this id, by holding it (`expect_many`) or because it is a new random
    one. Then nothing is waited for; should it be there after all, the transaction ends with `Stale`.
    """
    ready = resource if isinstance(resource, Prepared) else prepare(resource)
    view.db.stamp()
    at, mask = view.now(), mask_of(rows)
    text = ready.text(1, at)
    number = view.db.next_rid() if absent else None
    if number is not None:
        view.db.fill(RESOURCE, [(number, ready.type, ready.id, 1, at, 0, method, mask, text)])
        return _created(view, number, ready, rows, at, method, text)
    inserted = view.db.one(
        "INSERT INTO resource (type, id, version, last_updated, deleted, method, mask, txid, text) "
        f"VALUES (?, ?, 1, ?, 0, ?, ?, {view.db.dialect.txid}, ?) ON CONFLICT (type, id) DO NOTHING RETURNING rid",
        (ready.type, ready.id, at, method, mask, text),
    )
    if inserted is None:
        current = _current(view, ready.type, ready.id, everything=True)
        if not current.deleted:
            raise errors.Conflict(f"{ready.type}/{ready.id} exists already; update it, or choose another id.")
        return _replace(view, current, ready, rows, method)
    return _created(view, int(inserted[0]), ready, rows, at, method, text)


def _created(view: View, rid: int, ready: Prepared, rows: IndexRows, at: int, method: str, text: str) -> Stored:
    _index(view, rid, rows)
    journal.append(view, rid, 1, ready.type, at, method)
    return Stored(rid, ready.type, ready.id, 1, at, False, method, text)


def update(
    view: View, resource: Resource | Prepared, rows: IndexRows, *, if_version: int | None = None, method: str = "PUT"
) -> Stored:
    """The next version (a deleted resource comes back); `Precondition` when the version is another than asked."""
    ready = resource if isinstance(resource, Prepared) else prepare(resource)
    current = _current(view, ready.type, ready.id)
    _check_version(current, if_version)
    return _replace(view, current, ready, rows, method)


def delete(view: View, resource_type: str, resource_id: str, *, if_version: int | None = None) -> Stored:
    """The deletion as the next version; of a resource already deleted, its deletion."""
    current = _current(view, resource_type, resource_id)
    if current.deleted:
        gone = (current.version, current.last_updated, True, "DELETE", "")
        return Stored(current.rid, resource_type, resource_id, *gone)
    _check_version(current, if_version)
    at, following = _next_instant(view, current), current.version + 1
    view.db.stamp()
    view.db.supersede((current.rid, following, at, 1, "DELETE", 0, None))
    if current.mask & _HOLDS:
        _unindex(view, current)
    else:
        view.db.agree(current.rid, dict.fromkeys(_marked(current.mask), ()))
    journal.append(view, current.rid, following, resource_type, at, "DELETE")
    return Stored(current.rid, resource_type, resource_id, following, at, True, "DELETE", "")


def expect(view: View, resource_type: str, resource_id: str, number: int) -> None:
    """Holds the resource to the end of the transaction; `Stale` unless this is its current version."""
    try:
        current = _current(view, resource_type, resource_id)
    except errors.NotFound:
        raise Stale(f"{resource_type}/{resource_id} is not there any more.") from None
    if current.version != number:
        raise Stale(f"{resource_type}/{resource_id} is now at version {current.version}, no longer at {number}.")


_FACTS = ("version", "rid", "last_updated", "deleted", "mask")
# One text, for a subquery gives one value. Of texts: other sums cost PostgreSQL more to plan than finding the row.
_TOLD = " || ' ' || ".join(f"CAST(r.{name} AS text)" for name in _FACTS)
_NAMED = "FROM resource r WHERE r.type = k.value ->> 0 AND r.id = k.value ->> 1"
_HELD = (
    f"SELECT k.value ->> 0, k.value ->> 1, CASE WHEN k.value ->> 2 = 'w' THEN (SELECT {_TOLD} {_NAMED}{{seen}}"
    f"{{update}}) ELSE (SELECT {_TOLD} {_NAMED}{{seen}}{{share}}) END FROM {{each}} k"
)


def expect_many(
    view: View, versions: Mapping[tuple[str, str], int], *, writing: Collection[tuple[str, str]] = ()
) -> None:
    """Holds every (type, id) against change; `Stale` unless all are at these versions, 0 = never written.

    One statement, which takes the rows in one fixed order: those of `writing` for this transaction alone, the others
    together with whoever also only reads them. Nothing can be held that is not there: who relies on a 0 locks the
    name too.
    """
    if not versions:
        return
    changed = []
    for kind, key, facts in _facts(view, versions, writing):
        found = facts[0] if facts else 0
        if found != versions[kind, key]:
            changed.append(f"{kind}/{key} is at version {found}, no longer at {versions[kind, key]}")
        elif facts and (kind, key) in writing:
            _, rid, last_updated, deleted, mask = facts
            view.held[kind, key] = HeldRow(rid, kind, key, found, last_updated, bool(deleted), mask)
    if changed:
        raise Stale("; ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "") + ".")


def _facts(view: View, wanted: Collection[tuple[str, str]], writing: Collection[tuple[str, str]]) -> Iterator[Row]:
    """(type, id, `_FACTS` or ()) of each, held from now on."""
    dialect, seen = view.db.dialect, visible(view.caller, "r")
    if len(wanted) == 1:  # the most frequent case, said so that it costs little to plan
        (name,) = wanted
        lock = dialect.for_update if name in writing else dialect.for_share
        facts = ", ".join(f"r.{fact}" for fact in _FACTS)
        sql = f"SELECT {facts} FROM resource r WHERE r.type = ? AND r.id = ?{seen.sql}{lock}"
        yield (*name, view.db.one(sql, (*name, *seen.params)) or ())
        return
    sql = _HELD.format(seen=seen.sql, update=dialect.for_update, share=dialect.for_share, each=dialect.each)
    asked = json.dumps([(*key, "w" if key in writing else "r") for key in sorted(wanted)])
    for kind, key, told in view.db.rows(sql, (*seen.params, *seen.params, asked)):
        yield kind, key, tuple(map(int, (told or "").split()))


def _current(view: View, resource_type: str, resource_id: str, *, everything: bool = False) -> HeldRow:
    """The row to change, locked to the end of the transaction."""
    if held := view.held.pop((resource_type, resource_id), None):
        return held
    seen = visible(view.caller, "r")
    sql, params = ("", ()) if everything else (seen.sql, seen.params)
    row = view.db.one(
        "SELECT r.rid, r.version, r.last_updated, r.deleted, r.mask FROM resource r "
        f"WHERE r.type = ? AND r.id = ?{sql}{view.db.dialect.for_update}",
        (resource_type, resource_id, *params),
    )
    if row is None:
        raise errors.NotFound(f"{resource_type}/{resource_id} does not exist.")
    return HeldRow(row[0], resource_type, resource_id, row[1], row[2], bool(row[3]), row[4])


def _check_version(current: HeldRow, if_version: int | None) -> None:
    if if_version is not None and if_version != current.version:
        raise errors.Precondition(
            f"{current.type}/{current.id} is at version {current.version}, not {if_version}; "
            "read it again and repeat the change.",
        )


def _next_instant(view: View, current: HeldRow) -> int:
    return max(view.now(), current.last_updated + 1)


def _replace(view: View, current: HeldRow, ready: Prepared, rows: IndexRows, method: str) -> Stored:
    view.db.stamp()
    at, following, mask = _next_instant(view, current), current.version + 1, mask_of(rows)
    text = ready.text(following, at)
    view.db.supersede((current.rid, following, at, 0, method, mask, text))
    if (current.mask | mask) & _HOLDS:
        _unindex(view, current, SCOPE)
        _index(view, current.rid, rows)
    else:
        made = dict(zip(INDEX_TABLES, index_values(current.rid, rows), strict=True))
        wanted = {bulk: made[bulk] for bulk in _marked(current.mask | mask)}
        view.db.agree(current.rid, wanted | {SCOPE: _scopes(current.rid, rows)})
    journal.append(view, current.rid, following, ready.type, at, method)
    return Stored(current.rid, ready.type, ready.id, following, at, False, method, text)


def _tables(rows: IndexRows) -> tuple[list[Any], ...]:
    return (
        rows.string, rows.token, rows.date, rows.number, rows.quantity, rows.reference, rows.uri, rows.coords,
        rows.words,
    )  # fmt: skip


_HOLDS = 1 << INDEX_TABLES.index(CONTAINED)


def mask_of(rows: IndexRows) -> int:
    """Which index tables get rows of the resource itself, one bit each; the last one when it contains others."""
    own = sum(1 << bit for bit, values in enumerate(_tables(rows)) if values)
    return own | _HOLDS if rows.contained else own


def _marked(mask: int) -> list[Bulk]:
    """The index tables a mask tells of."""
    return [bulk for bit, bulk in enumerate(INDEX_TABLES) if mask & (1 << bit)]


_PLACES = 1024


def contained_numbers(rid: int) -> tuple[int, int]:
    """The first and the last of the numbers that the contained resources of a resource may have."""
    return -(rid * _PLACES + _PLACES - 1), -rid * _PLACES


def index_values(rid: int, rows: IndexRows) -> tuple[list[Row], ...]:
    """The rows of each index table, as they are stored for the resource `rid` and what it contains."""
    made = _values(rid, rows)
    held: list[Row] = []
    for place, (kind, key, inner) in enumerate(rows.contained[:_PLACES]):
        number = -(rid * _PLACES + place)
        held.append((rid, number, kind, key))
        for values, more in zip(made, _values(number, inner), strict=True):
            values.extend(more)
    return (*made, held)


def _values(number: int, rows: IndexRows) -> list[list[Row]]:
    *cut, words = _tables(rows)
    made: list[list[Row]] = [[(number, *_fitting(row)) for row in dict.fromkeys(values)] for values in cut]
    made[INDEX_TABLES.index(IDX_DATE)] = dates.stored(number, rows.date)
    return [*made, [(number, *row) for row in dict.fromkeys(words)]]


def _index(view: View, rid: int, rows: IndexRows) -> None:
    for bulk, values in zip(INDEX_TABLES, index_values(rid, rows), strict=True):
        if values:
            view.db.fill(bulk, values)
    if rows.scopes:
        view.db.fill(SCOPE, _scopes(rid, rows))


def _scopes(rid: int, rows: IndexRows) -> list[Row]:
    return [(rid, *row) for row in dict.fromkeys(rows.scopes)]


def unindex(view: View, rid: int) -> None:
    """Removes every index and scope row of a number, whatever its mask says."""
    _empty(view, rid)
    view.db.clear((*INDEX_TABLES, SCOPE), rid)


def _empty(view: View, rid: int) -> None:
    """Removes the index rows of what a resource contains; `contained` itself still says what that was."""
    for (number,) in view.db.rows("SELECT number FROM contained WHERE rid = ?", (rid,)):
        view.db.clear(INDEX_TABLES[:-1], number)


def index_anew(view: View, rid: int, rows: IndexRows) -> None:
    """Replaces every index and scope row of a resource, and its mask. Hold the resource before."""
    unindex(view, rid)
    _index(view, rid, rows)
    view.db.run("UPDATE resource SET mask = ? WHERE rid = ?", (mask_of(rows), rid))


def _fitting(row: Row) -> Row:
    return tuple(bounded(part) if isinstance(part, str) else part for part in row)


def _unindex(view: View, current: HeldRow, *more: Bulk) -> None:
    if current.mask & _HOLDS:
        _empty(view, current.rid)
    view.db.clear((*_marked(current.mask), *more), current.rid)
