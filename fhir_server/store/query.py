"""A search plan run as SQL: matches, their order and pages, totals, and what comes with them.

Pages follow one another by the values of the last row (keyset), and carry what was visible on the first page: what
did not change meanwhile appears exactly once, what changed at most once, and the cost of a page does not grow with
its number.

Source: https://hl7.org/fhir/R4/search.html#return
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from fhir_server import errors
from fhir_server.search.described import described
from fhir_server.search.plan import Clause, Include, Plan, Sort
from fhir_server.store import contained, dates, ordered, recent
from fhir_server.store.conditions import ALL, JOINED, TABLES, Ground, conditions, is_hop, is_id, is_seekable, probe
from fhir_server.store.dialect import Row, marks
from fhir_server.store.resources import COLUMNS, Stored, stored
from fhir_server.store.view import Fragment, View, visible

MAX_COUNT = 1_000
MAX_INCLUDED = 2_000
MAX_ROUNDS = 10
FEW = 2_000
ESTIMATED = 10_000

_WIDTH = COLUMNS.count(",") + 1


@dataclass(frozen=True, slots=True)
class Page:
    """One page. `next` is the `Plan.after` of the following page (JSON-able values), None on the last one; `total`
    None when not asked; `cut` says that more includes exist than are returned."""

    matches: tuple[Stored, ...] = ()
    includes: tuple[Stored, ...] = ()
    total: int | None = None
    next: tuple[object, ...] | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Explained:
    """A search in words, its statement with its parameters, and the database's own plan, line by line. `rows`: how
    many resources the statement gave, one more than a page at most, and the `seconds` that took."""

    words: tuple[str, ...]
    sql: str
    params: tuple[object, ...]
    plan: tuple[str, ...]
    rows: int
    seconds: float


def search(view: View, plan: Plan) -> Page:
    """Runs the plan for the caller. `TooLarge` and `Unavailable` (code timeout) bound what it may cost."""
    plan = replace(plan, clauses=dates.gathered(plan.clauses))
    ground = _ground(view, contained.held(view, plan.clauses))
    return _page(view, plan, ground, lambda asked, order="": view.db.rows(asked.sql, asked.params))


def is_single(plan: Plan) -> bool:
    """Whether it is worth trying `alone`."""
    return not plan.contained and (plan.count == 0 or (plan.total == "none" and not plan.includes))


def alone(view: View, plan: Plan) -> Page | None:
    """`search` outside a transaction, by a single statement; None where it takes several that must see the same."""
    if view.db.dialect.name == "sqlite":
        return search(view, plan)  # always inside one
    plan = replace(plan, clauses=dates.gathered(plan.clauses))
    inside = contained.inside(plan.clauses)
    if inside and view.sizes.get((inside.sql, inside.params)):
        return None
    try:
        return _page(view, plan, _ground(view, frozenset()), _Single(view, inside).rows)
    except _Several:
        return None


class _Several(Exception):
    """One statement is not enough."""


class _Single:
    """Asks one statement, and with it whether what it takes for granted holds: that no contained resource is of a type
    a chain leads to."""

    def __init__(self, view: View, inside: Fragment | None) -> None:
        self._view, self._inside, self._asked = view, inside, False

    def rows(self, asked: Fragment, order: str = "") -> Sequence[Row]:
        """The rows of the statement, which are in this order. Raises _Several when it was not to be the only one."""
        if self._asked:
            raise _Several
        self._asked, db, inside = True, self._view.db, self._inside
        if inside is None:
            return db.rows(asked.sql, asked.params)
        guarded = f"SELECT m.*, g.inside FROM (SELECT {inside.sql} AS inside) g LEFT JOIN ({asked.sql}) m"
        rows = db.rows(f"{guarded} ON NOT g.inside{order}", (*inside.params, *asked.params))
        if rows[0][-1]:
            self._view.sizes.keep((inside.sql, inside.params), True)
            raise _Several
        return [row[:-1] for row in rows if row[0] is not None]


Ask = Callable[..., Sequence[Row]]


def _page(view: View, plan: Plan, ground: Ground, ask: Ask) -> Page:
    """`ask` takes a statement, and how its rows are in order."""
    total = _total(view, plan, ground, ask) if plan.total != "none" or plan.count == 0 else None
    if plan.count == 0:
        return Page(total=total)
    count = min(plan.count, MAX_COUNT)
    rows, positions, seen = _rows(view, plan, ground, count + 1, ask)
    matches = tuple(contained.shown(stored(row[:_WIDTH])) for row in rows[:count])
    following = (seen, *positions[count - 1]) if len(rows) > count else None
    included, cut = _included(view, plan, matches) if plan.includes and matches else ((), False)
    return Page(matches, included, total, following, cut)


def _rows(
    view: View, plan: Plan, ground: Ground, limit: int, ask: Ask
) -> tuple[Sequence[Row], Sequence[tuple[object, ...]], object]:
    """The rows of a page, `COLUMNS` first, the position each is at, and what was visible on the first page."""
    since = _same_snapshot(view, plan)
    if ordered.applies(view, plan, ground):
        found = ordered.page(view, plan, ground, limit, since, ask)
        return found.rows, found.positions, found.seen
    rows = recent.page(view, plan, ground, limit, since)
    if rows is None:
        keys = _keys(plan, ground)
        rows = ask(_statement(view, plan, ground, keys, limit), _positions(keys))
        if len(rows) == limit:
            recent.learn(view, plan, ground)
    if plan.after:
        return rows, [row[_WIDTH:] for row in rows], plan.after[0]
    return rows, [row[_WIDTH:-1] for row in rows], rows[0][-1] if rows else None


def explain(view: View, plan: Plan) -> Explained:
    """What `search` runs, and what it meets."""
    plan = replace(plan, clauses=dates.gathered(plan.clauses))
    ground, limit = _ground(view, contained.held(view, plan.clauses)), min(plan.count or 1, MAX_COUNT) + 1
    since = _same_snapshot(view, plan)
    if ordered.applies(view, plan, ground):
        statement = ordered.there(view, plan, ground, limit, Fragment(""))
    elif recent.page(view, plan, ground, limit, since) is not None:
        statement = recent.statement(view, plan, ground, limit, since)
    else:
        statement = _statement(view, plan, ground, _keys(plan, ground), limit)
    word = "EXPLAIN QUERY PLAN " if view.db.dialect.name == "sqlite" else "EXPLAIN "
    lines = view.db.rows(word + statement.sql, statement.params)
    started = time.perf_counter()
    found = len(view.db.rows(statement.sql, statement.params))
    seconds = time.perf_counter() - started
    told = tuple(str(line[-1]) for line in lines)
    return Explained(tuple(described(plan)), statement.sql, statement.params, told, found, seconds)


def _sources(view: View, plan: Plan, ground: Ground, *, whole: bool) -> tuple[Fragment, ...]:
    """What is searched, each `table r WHERE ...`; `whole` when every match is needed anyway (a count, an order by
    index values). Together they give every match once."""
    if plan.contained:
        return contained.sources(plan, ground)
    start = _start(view, plan.clauses, ground, whole)
    seeking = start not in (None, ALL) and not is_id(plan.clauses[start])
    column = ground.plain("r.type") if seeking else "r.type"
    if len(plan.types) == 1:
        of_type = f"{column} = ? AND "
    else:
        of_type = f"{column} IN ({marks(plan.types)}) AND " if plan.types else ""
    met = conditions(plan.clauses, "r", ground, start=start)
    seen = visible(view.caller, "r")
    sql = f"resource r WHERE {of_type}r.deleted = 0{met.sql}{seen.sql}"
    return (Fragment(sql, (*plan.types, *met.params, *seen.params)),)


def _start(view: View, clauses: Sequence[Clause], ground: Ground, whole: bool) -> int | None:
    """The clause to start from: the one with the fewest rows, if few; None to walk the resources, newest first.

    PostgreSQL decides by its statistics, but for `_rare`. SQLite has none worth the name, so a look at up to `FEW`
    index rows a clause decides: few rows are fetched and sorted, many mean that a walk soon fills the page.
    """
    if view.db.dialect.name == "postgresql":
        return _rare(view, clauses, ground)
    found: list[tuple[int, int]] = []
    for position, clause in enumerate(clauses):
        size = _size(view, clause, ground)
        if size is not None and (size <= FEW or whole):
            found.append((size, position))
    return min(found)[1] if found else None


def _rare(view: View, clauses: Sequence[Clause], ground: Ground) -> int:
    """The clause that holds for few where a code holds for many; else `ALL`.

    PostgreSQL's statistics take the columns of an index row for independent of one another: a code that many have
    looks rare to it, and is started from.
    """

    def many(clause: Clause) -> bool:
        return ordered.at_least(view, probe(clause, recent.MANY, ground), recent.MANY)

    quick = [position for position, clause in enumerate(clauses[:JOINED]) if recent.is_quick(clause)]
    if len(quick) < 2 or not any(clauses[at].type == "token" and many(clauses[at]) for at in quick):
        return ALL
    return next((at for at in quick if not many(clauses[at])), ALL)


def _size(view: View, clause: Clause, ground: Ground) -> int | None:
    """About how many index rows a clause gives, counted up to `FEW` + 1; None when no index gives them."""
    if not is_seekable(clause):
        return None
    if dates.is_between(clause):
        return _probed(view, clause, ground)
    sizes = [size for part in clause.parts if (size := _size(view, part, ground)) is not None]
    if clause.logic:
        return sum(sizes) if clause.logic == "or" else min(sizes)
    if clause.pid == 0 and not is_hop(clause):
        return 0
    if is_hop(clause):
        return FEW
    if clause.type not in TABLES:
        return None
    return _probed(view, clause, ground)


def _probed(view: View, clause: Clause, ground: Ground) -> int:
    test = probe(clause, FEW + 1, ground)
    row = view.db.one(test.sql, test.params)
    return int(row[0]) if row else 0


def _ground(view: View, held: frozenset[str]) -> Ground:
    dialect = view.db.dialect
    return Ground(view.caller, dialect.unindexed, dialect.words, dialect.alone, held)


def _total(view: View, plan: Plan, ground: Ground, ask: Ask) -> int:
    """Every match; for an estimate, beyond `ESTIMATED` what PostgreSQL's planner expects."""
    return sum(_count(view, plan, source, ask) for source in _sources(view, plan, ground, whole=True))


def _count(view: View, plan: Plan, source: Fragment, ask: Ask) -> int:
    if plan.total == "estimate" and view.db.dialect.name == "postgresql":
        few = f"SELECT count(*) FROM (SELECT 1 FROM {source.sql} LIMIT {ESTIMATED + 1}) q"
        counted = int(ask(Fragment(few, source.params))[0][0])
        if counted <= ESTIMATED:
            return counted
        told = view.db.one(f"EXPLAIN (FORMAT JSON) SELECT 1 FROM {source.sql}", source.params)
        return max(ESTIMATED + 1, int(told[0][0]["Plan"]["Plan Rows"]) if told else 0)
    return int(ask(Fragment(f"SELECT count(*) FROM {source.sql}", source.params))[0][0])


@dataclass(frozen=True, slots=True)
class _Key:
    """One ordering expression; only an index value may be absent, and absent values come last."""

    expression: Fragment
    descending: bool
    nullable: bool


# The value a sort uses: the least of several when ascending, the greatest when descending. What has only a text has
# no code, what refers by URL no id: absent.
_SORTED_BY: dict[str, tuple[str, str]] = {
    "string": ("folded", "folded"),
    "token": ("code", "code"),
    "date": ("low", "high"),
    "number": ("low", "high"),
    "quantity": ("low", "high"),
    "reference": ("id", "id"),
    "uri": ("uri", "uri"),
}
_EMPTY = frozenset(("code", "id"))


def _keys(plan: Plan, ground: Ground) -> tuple[_Key, ...]:
    sorts = plan.sort or (Sort("_lastUpdated", "date", 0, True),)
    keys = [_key(sort, ground) for sort in sorts]
    return (*keys, _Key(Fragment("r.rid"), sorts[-1].descending, False))


def _positions(keys: Sequence[_Key]) -> str:
    """The order of a page by the places of its keys behind `COLUMNS`."""
    signs = (f"{' DESC' if key.descending else ''}{' NULLS LAST' if key.nullable else ''}" for key in keys)
    return " ORDER BY " + ", ".join(f"{_WIDTH + place}{sign}" for place, sign in enumerate(signs, 1))


def _key(sort: Sort, ground: Ground) -> _Key:
    if sort.pid == 0:
        column = {"_lastUpdated": "last_updated", "_id": "id"}.get(sort.name, "")
    else:
        column = _SORTED_BY.get(sort.type, ("", ""))[sort.descending]
    if not column:
        raise errors.Unsupported(f"Sorting by `{sort.name}` is not supported.", http=400)
    if sort.pid == 0 and not sort.chain:
        return _Key(Fragment(f"r.{column}"), sort.descending, False)
    way, last = _way(sort, ground)
    value = f"{last}.{column}" if sort.pid == 0 else f"nullif(x.{column}, '')" if column in _EMPTY else f"x.{column}"
    tables = [f"idx_reference f{i} CROSS JOIN resource t{i}" for i in range(len(sort.chain))]
    if sort.pid:
        tables.append(f"{TABLES[sort.type]} x")
        pids = sort.pids or (sort.pid,)
        way = _and(way, Fragment(f"x.rid = {last}.rid AND {ground.plain('x.pid')} IN ({marks(pids)})", pids))
    function = "max" if sort.descending else "min"
    sql = f"(SELECT {function}({value}) FROM {' CROSS JOIN '.join(tables)} WHERE {way.sql})"
    return _Key(Fragment(sql, way.params), sort.descending, True)


def _way(sort: Sort, ground: Ground) -> tuple[Fragment, str]:
    """The conditions that lead from `r` along the references of a chained sort, and the alias it ends at."""
    way, last = Fragment(""), "r"
    for i, (pid, types) in enumerate(sort.chain):
        seen = visible(ground.caller, f"t{i}")
        typed = f" AND f{i}.type IN ({marks(types)})" if types else ""
        step = Fragment(
            f"f{i}.rid = {last}.rid AND {ground.plain(f'f{i}.pid')} = ? AND f{i}.id <> ''{typed} "
            f"AND t{i}.type = f{i}.type AND t{i}.id = f{i}.id AND t{i}.deleted = 0{seen.sql}",
            (pid, *types, *seen.params),
        )
        way, last = _and(way, step), f"t{i}"
    return way, last


def _and(left: Fragment, right: Fragment) -> Fragment:
    return Fragment(f"{left.sql} AND {right.sql}", (*left.params, *right.params)) if left.sql else right


def _statement(view: View, plan: Plan, ground: Ground, keys: Sequence[_Key], limit: int) -> Fragment:
    by_values = any(key.nullable for key in keys)
    sources, since = _sources(view, plan, ground, whole=by_values), _same_snapshot(view, plan)
    # The first page says by itself what it saw, so that it takes one statement.
    now = "" if plan.after else f", ({view.db.dialect.snapshot}) AS seen"
    if not by_values:
        return _merged([_by_columns(plan, source, since, keys, limit, now) for source in sources], keys, limit)
    (where,) = sources  # several only with `_contained`, which is sorted by columns alone
    return _by_values(plan, where, since, keys, limit, now)


def _by_values(plan: Plan, where: Fragment, since: Fragment, keys: Sequence[_Key], limit: int, now: str) -> Fragment:
    """Order by values of the index. What matches is put in order by number and values alone; only the resources of
    the page are then read."""
    named = ", ".join(f"{key.expression.sql} AS k{i}" for i, key in enumerate(keys))
    key_params = tuple(param for key in keys for param in key.expression.params)
    behind = _behind(plan.after[1:], keys) if plan.after else Fragment("1 = 1")
    order = ", ".join(
        f"q.k{i}{' DESC' if key.descending else ''}{' NULLS LAST' if key.nullable else ''}"
        for i, key in enumerate(keys)
    )
    columns = [f"q.k{i}" for i in range(len(keys))] + (["q.seen"] if now else [])
    return Fragment(
        f"SELECT {COLUMNS}, {', '.join(columns)} FROM (SELECT q.* FROM "
        f"(SELECT {named}{now} FROM {where.sql}{since.sql}) q "
        f"WHERE {behind.sql} ORDER BY {order} LIMIT ?) q CROSS JOIN resource r WHERE r.rid = {columns[len(keys) - 1]} "
        f"ORDER BY {order}",
        (*key_params, *where.params, *since.params, *behind.params, limit),
    )


def _merged(statements: Sequence[Fragment], keys: Sequence[_Key], limit: int) -> Fragment:
    """The rows of several statements in one order."""
    if len(statements) == 1:
        return statements[0]
    ways = " UNION ALL ".join(f"SELECT * FROM ({one.sql}) s{n}" for n, one in enumerate(statements))
    order = ", ".join(f"{_WIDTH + i}{' DESC' if key.descending else ''}" for i, key in enumerate(keys, 1))
    params = tuple(param for one in statements for param in one.params)
    return Fragment(f"{ways} ORDER BY {order} LIMIT ?", (*params, limit))


def _by_columns(plan: Plan, source: Fragment, since: Fragment, keys: Sequence[_Key], limit: int, now: str) -> Fragment:
    """Order by columns of the resource itself: the index of recent resources can give it without sorting."""
    columns = [key.expression.sql for key in keys]
    directions = {key.descending for key in keys}
    if not plan.after:
        behind = Fragment("")
    elif len(directions) == 1:
        sign = "<" if directions == {True} else ">"
        behind = Fragment(f" AND ({', '.join(columns)}) {sign} ({marks(columns)})", tuple(plan.after[1:]))
    else:
        step = _behind(plan.after[1:], keys, columns)
        behind = Fragment(f" AND {step.sql}", step.params)
    order = ", ".join(f"{key.expression.sql}{' DESC' if key.descending else ''}" for key in keys)
    return Fragment(
        f"SELECT {COLUMNS}, {', '.join(columns)}{now} FROM {source.sql}{since.sql}{behind.sql} "
        f"ORDER BY {order} LIMIT ?",
        (*source.params, *since.params, *behind.params, limit),
    )


def _behind(values: Sequence[object], keys: Sequence[_Key], columns: Sequence[str] = ()) -> Fragment:
    """The rows that come after these key values, in the keys' order, absent values last."""
    if len(values) != len(keys):
        raise errors.Malformed("This page link does not belong to this search; start the search again.")
    branches: list[str] = []
    params: list[object] = []
    same: list[str] = []
    same_params: list[object] = []
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        column = columns[i] if columns else f"q.k{i}"
        if value is not None:
            step = f"{column} {'<' if key.descending else '>'} ?"
            step = f"({step} OR {column} IS NULL)" if key.nullable else step
            branches.append("(" + " AND ".join([*same, step]) + ")")
            params.extend([*same_params, value])
            same.append(f"{column} = ?")
            same_params.append(value)
        else:
            same.append(f"{column} IS NULL")
    return Fragment("(" + (" OR ".join(branches) or "1 = 0") + ")", tuple(params))


def _same_snapshot(view: View, plan: Plan) -> Fragment:
    """On later pages: only versions that were visible on the first."""
    if not plan.after:
        return Fragment("")
    return Fragment(" AND " + view.db.dialect.visible.format(column="r.txid"), (plan.after[0],))


def _included(view: View, plan: Plan, matches: Sequence[Stored]) -> tuple[tuple[Stored, ...], bool]:
    """What the includes bring, each resource once and no match again; iterating ones start from what they brought."""
    known = {one.rid for one in matches}
    found: list[Stored] = []
    fresh: Sequence[Stored] = matches
    for turn in range(MAX_ROUNDS):
        wanted = [include for include in plan.includes if turn == 0 or include.iterate]
        brought: list[Stored] = []
        for include in wanted:
            for one in _follow(view, include, [*fresh, *brought] if include.iterate else fresh):
                if one.rid in known:
                    continue
                if len(found) + len(brought) >= MAX_INCLUDED:
                    return (*found, *brought), True
                known.add(one.rid)
                brought.append(one)
        found.extend(brought)
        fresh = brought
        if not brought:
            break
    return tuple(found), False


def _follow(view: View, include: Include, sources: Sequence[Stored]) -> Iterable[Stored]:
    seen = visible(view.caller, "r")
    by_pid = "x.pid = ? AND " if include.pid else ""
    pid = (include.pid,) if include.pid else ()
    targets = f" AND r.type IN ({marks(include.target)})" if include.target and not include.reverse else ""
    usable = [one for one in sources if include.reverse or not include.source or one.type == include.source]
    if include.reverse and include.target:
        usable = [one for one in sources if one.type in include.target]
    for start in range(0, len(usable), 200):
        part = usable[start : start + 200]
        if include.reverse:
            pairs = ", ".join("(?, ?)" for _ in part)
            of_type = "r.type = ? AND " if include.source else ""
            sql = (
                f"SELECT {COLUMNS} FROM resource r WHERE r.deleted = 0 AND {of_type}r.rid IN (SELECT x.rid "
                f"FROM idx_reference x WHERE {by_pid}x.id <> '' AND (x.type, x.id) IN (VALUES {pairs})){seen.sql} "
                "ORDER BY r.rid LIMIT ?"
            )
            named = [text for one in part for text in (one.type, one.id)]
            source = (include.source,) if include.source else ()
            params: tuple[object, ...] = (*source, *pid, *named, *seen.params, MAX_INCLUDED + 1)
        else:
            sql = (
                f"SELECT DISTINCT {COLUMNS} FROM idx_reference x JOIN resource r ON r.type = x.type AND r.id = x.id "
                f"WHERE {by_pid}x.id <> '' AND x.rid IN ({marks(part)}) AND r.deleted = 0{targets}{seen.sql} "
                "ORDER BY r.rid LIMIT ?"
            )
            params = (*pid, *(one.rid for one in part), *include.target, *seen.params, MAX_INCLUDED + 1)
        yield from (stored(row) for row in view.db.rows(sql, params))
