"""A whole type in the order of one index: pages that cost the same whatever their number.

Sorting means to look at every match. Where the matches are most of a type, the index of the values already has them in
order: a page goes on in it from the last row of the page before. A resource with several values stands where its least
(descending: its greatest) one stands; those without any come last, in the order of their last change.

Source: https://hl7.org/fhir/R4/search.html#sort
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from fhir_server import errors
from fhir_server.search.plan import Plan
from fhir_server.store.conditions import TABLES, Ground, conditions, is_set, probe
from fhir_server.store.dialect import Row, marks
from fhir_server.store.resources import COLUMNS
from fhir_server.store.view import Fragment, View, visible

# Fewer resources than this are sorted: the index may belong to several types, and would be walked for few of them.
WALKED_FROM = 5_000

_THERE, _ABSENT = "there", "absent"


@dataclass(frozen=True, slots=True)
class _Way:
    """The columns in the order of the index, what else tells the rows of a resource apart, and which of them count."""

    columns: tuple[str, ...]
    others: tuple[str, ...] = ()
    counts: str = ""


_WAYS: dict[tuple[str, bool], _Way] = {
    ("string", False): _Way(("folded",), ("exact",)),
    ("string", True): _Way(("folded",), ("exact",)),
    ("token", False): _Way(("code", "system"), ("folded",), " AND {}.code <> ''"),
    ("token", True): _Way(("code", "system"), ("folded",), " AND {}.code <> ''"),
    ("date", False): _Way(("low", "high")),
    ("date", True): _Way(("high",), ("low",)),
    ("reference", False): _Way(("id", "type"), ("url", "system", "value"), " AND {}.id <> ''"),
    ("reference", True): _Way(("id", "type"), ("url", "system", "value"), " AND {}.id <> ''"),
    ("uri", False): _Way(("uri",)),
    ("uri", True): _Way(("uri",)),
}


@dataclass(frozen=True, slots=True)
class Found:
    """The rows of a page, `COLUMNS` first, with the position of each, the rest of `Plan.after`; what was visible on the
    first page."""

    rows: list[Row]
    positions: list[tuple[object, ...]]
    seen: object


def applies(view: View, plan: Plan, ground: Ground) -> bool:
    """Whether a page is taken from the index: decided on the first one, and kept by the links of the others."""
    if plan.contained or len(plan.types) != 1 or len(plan.sort) != 1:
        return False
    sort = plan.sort[0]
    if not sort.pid or sort.chain or sort.pids or (sort.type, sort.descending) not in _WAYS:
        return False
    if plan.after:  # where all matches are sorted by one key, a link has three values
        return len(plan.after) > 3 and plan.after[1] in (_THERE, _ABSENT)
    if len(plan.clauses) > 1 or not all(is_set(one) and one.type in TABLES for one in plan.clauses):
        return False
    of_type = "SELECT count(*) FROM (SELECT 1 FROM resource r WHERE r.type = ? AND r.deleted = 0 LIMIT ?) p"
    # What the condition finds is mostly less, and then the other need not be counted.
    tests = [probe(one, WALKED_FROM, ground) for one in plan.clauses]
    tests.append(Fragment(of_type, (plan.types[0], WALKED_FROM)))
    return all(at_least(view, test, WALKED_FROM) for test in tests)


def at_least(view: View, count: Fragment, many: int) -> bool:
    """Whether a count up to `many` gets there, or did so lately."""
    known = view.sizes.get(question(count))
    if known is not None:
        return known
    row = view.db.one(count.sql, count.params)
    return view.sizes.keep(question(count), row is not None and row[0] >= many)


def question(count: Fragment) -> Hashable:
    """What `Sizes` knows a count by."""
    return (count.sql, count.params)


def page(
    view: View, plan: Plan, ground: Ground, limit: int, since: Fragment, ask: Callable[[Fragment], Sequence[Row]]
) -> Found:
    """Up to `limit` rows: those that have a value first, then those that have none. `since` keeps what was visible on
    the first page; `ask` runs a statement."""
    rows: list[Row] = []
    positions: list[tuple[object, ...]] = []
    seen = plan.after[0] if plan.after else None
    for phase, statement in ((_THERE, there), (_ABSENT, absent)):
        if len(rows) == limit or (phase == _THERE and plan.after and plan.after[1] == _ABSENT):
            continue
        after = plan.after[2:] if plan.after and plan.after[1] == phase else ()
        asked = statement(view, plan, ground, limit - len(rows), since, after)
        for row in ask(asked):
            rows.append(row)
            positions.append((phase, *row[_WIDTH : None if plan.after else -1]))
            seen = plan.after[0] if plan.after else row[-1]
    return Found(rows, positions, seen)


def _now(view: View, plan: Plan) -> str:
    """A first page says by itself what it saw."""
    return "" if plan.after else f", ({view.db.dialect.snapshot}) AS seen"


_WIDTH = COLUMNS.count(",") + 1


def there(
    view: View, plan: Plan, ground: Ground, limit: int, since: Fragment, after: Sequence[object] = ()
) -> Fragment:
    """The resources with a value, in its order."""
    sort = plan.sort[0]
    way, table = _WAYS[sort.type, sort.descending], TABLES[sort.type]
    behind, before, down = ("<", ">", " DESC") if sort.descending else (">", "<", "")
    columns = [f"x.{name}" for name in (*way.columns, "rid")]
    every = (*way.columns, *way.others)
    others = (
        f"SELECT 1 FROM {table} y WHERE y.rid = x.rid AND {ground.plain('y.pid')} = ?{way.counts.format('y')} "
        f"AND {_tuple('y', every)} {before} {_tuple('x', every)}"
    )
    met, seen = conditions(plan.clauses, "r", ground, start=None), visible(view.caller, "r")
    further = _further(columns, behind, after)
    order = ", ".join(f"{column}{down}" for column in columns)
    return Fragment(
        f"SELECT {COLUMNS}, {', '.join(columns)}{_now(view, plan)} FROM {table} x CROSS JOIN resource r "
        f"WHERE x.pid = ?{way.counts.format('x')} AND r.rid = x.rid AND {ground.plain('r.type')} = ? AND r.deleted = 0"
        f"{met.sql}{seen.sql}{since.sql} AND NOT EXISTS ({others}){further.sql} ORDER BY {order} LIMIT ?",
        (sort.pid, plan.types[0], *met.params, *seen.params, *since.params, sort.pid, *further.params, limit),
    )


def absent(
    view: View, plan: Plan, ground: Ground, limit: int, since: Fragment, after: Sequence[object] = ()
) -> Fragment:
    """The resources without a value, what changed first before the others."""
    sort = plan.sort[0]
    way, table = _WAYS[sort.type, sort.descending], TABLES[sort.type]
    met, seen = conditions(plan.clauses, "r", ground, start=None), visible(view.caller, "r")
    columns = ("r.last_updated", "r.rid")
    further = _further(columns, ">", after)
    valued = f"SELECT 1 FROM {table} y WHERE y.rid = r.rid AND {ground.plain('y.pid')} = ?{way.counts.format('y')}"
    return Fragment(
        f"SELECT {COLUMNS}, {', '.join(columns)}{_now(view, plan)} FROM resource r WHERE r.type = ? AND r.deleted = 0"
        f"{met.sql}{seen.sql}{since.sql} AND NOT EXISTS ({valued}){further.sql} "
        f"ORDER BY {', '.join(columns)} LIMIT ?",
        (plan.types[0], *met.params, *seen.params, *since.params, sort.pid, *further.params, limit),
    )


def _further(columns: Sequence[str], sign: str, after: Sequence[object]) -> Fragment:
    if not after:
        return Fragment("")
    if len(after) != len(columns):
        raise errors.Malformed("This page link does not belong to this search; start the search again.")
    return Fragment(f" AND ({', '.join(columns)}) {sign} ({marks(columns)})", tuple(after))


def _tuple(alias: str, names: Sequence[str]) -> str:
    return f"({', '.join(f'{alias}.{name}' for name in names)})"
