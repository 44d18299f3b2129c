"""Search clauses as SQL conditions on the resource table.

A clause that must hold becomes membership in the set of rids an index table gives, which the database may start
from; a clause that must not hold becomes NOT EXISTS on the rid. Chains nest the same conditions on the resource
referred to, each hop with the caller's predicate. Values are parameters, never text.

Source: https://hl7.org/fhir/R4/search.html (prefixes 3.1.1.4.5, modifiers 3.1.1.4.4, chaining 3.1.1.4.12, 3.1.1.4.13;
a chain looks inside contained resources: 3.1.1.5.7)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fhir_server import errors
from fhir_server.context import Caller
from fhir_server.search.plan import Clause, ParamType, Value
from fhir_server.store import dates
from fhir_server.store.dialect import marks
from fhir_server.store.resources import contained_numbers
from fhir_server.store.value_tests import (
    DATE_TESTS,
    MAX_VALUES,
    VALUE_TESTS,
    any_of,
    both,
    full_text,
    in_range,
    unsupported,
)
from fhir_server.store.view import Fragment, visible

MAX_DEPTH = 20
NESTED = 2

# Brackets in brackets of `_filter`, each of which may lead into contained resources: what SQLite's parser has room for,
# and PostgreSQL plans in time.
HELD_NESTED = 5

# Conditions that PostgreSQL may join; its planner takes minutes over a hundred, so the others are asked row by row.
JOINED = 8
ALL = -1

TABLES: dict[ParamType, str] = {
    "string": "idx_string",
    "token": "idx_token",
    "date": "idx_date",
    "number": "idx_number",
    "quantity": "idx_quantity",
    "reference": "idx_reference",
    "uri": "idx_uri",
    "special": "idx_coords",
    "text": "idx_text",
}


@dataclass(frozen=True, slots=True)
class Ground:
    """Who asks, how this database's planner is told to leave an index alone (`Dialect.unindexed`), and its test of
    full text (`Dialect.words`), and what keeps a condition out of the joins (`Dialect.alone`). `held`: the types of
    all contained resources there are; `within`: what is asked about may be a contained one."""

    caller: Caller
    unindexed: str = "{}"
    words: str = ""
    alone: str = ""
    held: frozenset[str] = frozenset()
    within: bool = False

    def plain(self, column: str) -> str:
        return self.unindexed.format(column)


def conditions(
    clauses: Sequence[Clause], alias: str, ground: Ground, *, start: int | None = ALL, depth: int = 0
) -> Fragment:
    """Every clause on the resource `alias`, each led by ` AND `.

    `start` is the clause whose rids the database shall start from; the others are then asked of each resource it
    meets (None: all of them). `ALL` leaves the choice to the database.
    """
    if depth > MAX_DEPTH:
        raise errors.TooLarge(f"A search may follow at most {MAX_DEPTH} references in a row.")
    parts = [
        _clause(clause, alias, ground, depth, by_row=(start != ALL and start != position) or position >= JOINED)
        for position, clause in enumerate(clauses)
    ]
    return Fragment("".join(f" AND {part.sql}" for part in parts), tuple(p for part in parts for p in part.params))


def is_set(clause: Clause) -> bool:
    """Whether the clause can be asked for its rids: it holds by what an index table has, not by what it lacks."""
    return clause.pid != 0 and clause.missing is not True and clause.modifier != "not" and not is_hop(clause)


def is_hop(clause: Clause) -> bool:
    """Whether the clause is about other resources (a chain, `_has`)."""
    return bool(clause.chain) or clause.reverse is not None


def is_seekable(clause: Clause) -> bool:
    """Whether a database can start from the clause: what it holds for is a set some index gives."""
    if clause.logic == "or":
        return all(is_seekable(part) for part in clause.parts)
    if clause.logic == "and":
        return any(is_seekable(part) for part in clause.parts)
    return not clause.logic and (is_set(clause) or is_hop(clause) or is_id(clause))


def is_id(clause: Clause) -> bool:
    """Whether the clause names the resources by id."""
    return clause.name == "_id" and clause.pid == 0 and bool(clause.values) and not clause.modifier


def probe(clause: Clause, limit: int, ground: Ground) -> Fragment:
    """Counts the index rows of a clause that `is_set`, or `dates.is_between`, up to `limit`."""
    if dates.is_between(clause):
        rids = dates.between(clause, ground.unindexed, ground.alone)
    else:
        test = _index_test(clause, ground)
        rids = Fragment(f"SELECT 1 FROM {TABLES[clause.type]} x WHERE {test.sql}", test.params)
    return Fragment(f"SELECT count(*) FROM ({rids.sql} LIMIT {int(limit)}) p", rids.params)


def _clause(clause: Clause, alias: str, ground: Ground, depth: int, *, by_row: bool) -> Fragment:
    if len(clause.values) > MAX_VALUES:
        raise errors.TooLarge(f"`{clause.name}` has {len(clause.values)} values; at most {MAX_VALUES} are accepted.")
    if clause.logic:
        return _logic(clause, alias, ground, depth, by_row=by_row)
    if is_hop(clause):
        return _hops(clause, alias, ground, depth)
    if clause.pid == 0:
        return _column(clause, alias, ground)
    if clause.type not in TABLES:
        raise unsupported(clause)
    table, absent = TABLES[clause.type], clause.missing is True or clause.modifier == "not"
    if absent or by_row or clause.missing is not None:
        test = _index_test(clause, ground, ground.plain("x.pid"))
        negate = "NOT " if absent else ""
        return Fragment(
            f"{negate}EXISTS (SELECT 1 FROM {table} x WHERE x.rid = {alias}.rid AND {test.sql}{ground.alone})",
            test.params,
        )
    test = _index_test(clause, ground)
    return Fragment(f"{alias}.rid IN (SELECT x.rid FROM {table} x WHERE {test.sql})", test.params)


def _logic(clause: Clause, alias: str, ground: Ground, depth: int, *, by_row: bool) -> Fragment:
    """What the parts say together. Alternatives that are all sets are one set: the planners join it as any other,
    while an OR of several makes PostgreSQL read every resource."""
    nested = alias.count("u") >= NESTED or ground.within
    if not by_row and not nested and dates.is_between(clause):
        found = dates.between(clause, ground.unindexed, ground.alone)
        return Fragment(f"{alias}.rid IN ({found.sql})", found.params)
    if clause.logic == "or" and not by_row and is_seekable(clause) and not nested:
        ways = [_rids(part, alias, ground, depth) for part in clause.parts]
        sql = " UNION ALL ".join(way.sql for way in ways)
        return Fragment(f"{alias}.rid IN ({sql})", tuple(param for way in ways for param in way.params))
    parts = [
        _clause(part, alias, ground, depth, by_row=by_row or position >= JOINED)
        for position, part in enumerate(clause.parts)
    ]
    params = tuple(param for part in parts for param in part.params)
    if clause.logic == "not":
        return Fragment(f"NOT ({parts[0].sql})", params)
    return Fragment(f"({f' {clause.logic.upper()} '.join(part.sql for part in parts)})", params)


def _rids(part: Clause, alias: str, ground: Ground, depth: int) -> Fragment:
    """A statement for the rids one of several alternatives holds for."""
    if is_set(part) and part.missing is None and part.type in TABLES:
        test = _index_test(part, ground)
        return Fragment(f"SELECT x.rid FROM {TABLES[part.type]} x WHERE {test.sql}", test.params)
    if dates.is_between(part):
        return dates.between(part, ground.unindexed, ground.alone)
    inner = f"{alias}u"
    parts = part.parts if part.logic == "and" else (part,)
    start = next((at for at, one in enumerate(parts) if is_seekable(one)), None)
    met = conditions(parts, inner, ground, start=start, depth=depth)
    return Fragment(f"SELECT {inner}.rid FROM resource {inner} WHERE {inner}.deleted = 0{met.sql}", met.params)


def _index_test(clause: Clause, ground: Ground, pid_column: str = "x.pid") -> Fragment:
    if clause.values and clause.values[0].pid:
        return any_of([_beside(clause, value, pid_column) for value in clause.values])
    pid = _pid(clause, pid_column)
    if clause.missing is not None:
        return pid
    if clause.type == "text":
        return both(pid, full_text(clause, ground.words))
    if clause.modifier == "unequal":
        test = VALUE_TESTS[clause.type](replace(clause, modifier="equals" if clause.type == "string" else ""))
        return both(pid, Fragment(f"NOT ({test.sql})", test.params))
    return both(pid, VALUE_TESTS[clause.type](clause))


def _beside(clause: Clause, value: Value, column: str) -> Fragment:
    """A composite: the rows beside the code, tested by the other value."""
    test = VALUE_TESTS[clause.type](replace(clause, values=(value,)))
    return both(Fragment(f"{column} = ?", (value.pid,)), test)


def _pid(clause: Clause, column: str = "x.pid") -> Fragment:
    """Whose index rows count: those of one parameter, or of the same name on several types."""
    if not clause.pids:
        return Fragment(f"{column} = ?", (clause.pid,))
    return Fragment(f"{column} IN ({marks(clause.pids)})", clause.pids)


# CROSS JOIN fixes the order of joins on SQLite, from the innermost condition outwards; PostgreSQL chooses itself.


def _hops(clause: Clause, alias: str, ground: Ground, depth: int) -> Fragment:
    """A chain or `_has` on `alias`.

    A few hops nest, and PostgreSQL plans them as one join. More are worked out one after the other from the far end:
    SQLite's parser has no room for deeper nesting, and a join of twenty tables is beyond any planner.
    """
    way = [clause]
    while len(way[-1].chain) == 1 and is_hop(way[-1].chain[0]):
        way.append(way[-1].chain[0])
    if depth + len(way) > MAX_DEPTH:
        raise errors.TooLarge(f"A search may follow at most {MAX_DEPTH} references in a row.")
    if alias.count("i") >= HELD_NESTED and any(_into_held(hop, ground) for hop in way):
        raise errors.TooLarge(f"Beyond {HELD_NESTED} brackets in brackets, none may lead into contained resources.")
    if len(way) <= NESTED:
        met = conditions(clause.chain, f"{alias}i", _beyond(clause, ground), depth=depth + 1)
        one = _hop(clause, alias, ground, met)
        return Fragment(f"{alias}.rid IN ({one.sql})", one.params)
    met = conditions(way[-1].chain, f"{alias}i", _beyond(way[-1], ground), depth=depth + len(way))
    steps: list[str] = []
    params: list[object] = []
    for n, hop in enumerate(reversed(way)):
        one = _hop(hop, alias, ground, met)
        steps.append(f"{alias}s{n} AS MATERIALIZED ({one.sql})")
        params.extend(one.params)
        met = Fragment(f" AND {alias}i.rid IN (SELECT rid FROM {alias}s{n})")
    return Fragment(
        f"{alias}.rid IN (WITH {', '.join(steps)} SELECT rid FROM {alias}s{len(way) - 1})",
        tuple(params),
    )


def _into_held(hop: Clause, ground: Ground) -> bool:
    """Whether a chain may lead into a contained resource: there are some of the types it leads to."""
    return hop.reverse is None and not ground.held.isdisjoint(hop.chain_types or ground.held)


def _beyond(hop: Clause, ground: Ground) -> Ground:
    """The ground at the far end of a hop."""
    return replace(ground, within=_into_held(hop, ground))


def _hop(clause: Clause, alias: str, ground: Ground, met: Fragment) -> Fragment:
    """The rids one reference away from the resources that meet `met`, a condition on `{alias}i`."""
    if clause.reverse is not None:
        return _backward(clause, alias, ground, met)
    return (_forward_or_inside if _into_held(clause, ground) else _forward)(clause, alias, ground, met)


def _forward(clause: Clause, alias: str, ground: Ground, met: Fragment) -> Fragment:
    """What refers to a resource that meets the condition."""
    inner = f"{alias}i"
    seen = visible(ground.caller, inner)
    pid = _pid(clause)
    typed = f" AND {ground.plain(inner + '.type')} IN ({marks(clause.chain_types)})" if clause.chain_types else ""
    return Fragment(
        f"SELECT x.rid FROM resource {inner} CROSS JOIN idx_reference x "
        f"WHERE {inner}.deleted = 0{typed}{met.sql}{seen.sql} "
        f"AND {pid.sql} AND x.id <> '' AND x.id = {inner}.id AND x.type = {inner}.type",
        (*clause.chain_types, *met.params, *seen.params, *pid.params),
    )


# Resources and contained ones as one table; the numbers of what the holder of a contained one contains follow from the
# holder's own (`resources.contained_numbers`). No holder: nothing is equal to NULL, and no index is looked at.
_RESOURCES = (
    "SELECT r.rid, r.type, r.id, r.last_updated, CAST(NULL AS bigint) AS holder FROM resource r "
    "WHERE r.deleted = 0{seen}"
)
_CONTAINED = (
    "SELECT c.number, c.type, c.id, (SELECT o.last_updated FROM resource o WHERE o.rid = c.rid), c.rid FROM contained c"
)
_PLACES = -contained_numbers(1)[1]
_REFERS = (
    "(({pid} AND x.id <> '' AND x.id = {i}.id AND x.type = {i}.type AND {i}.holder IS NULL) "
    "OR ({pid} AND x.rid = {i}.holder AND x.url <> '' AND x.url = '#' || {i}.id) "
    f"OR ({{pid}} AND x.rid BETWEEN -({{i}}.holder * {_PLACES} + {_PLACES - 1}) AND -({{i}}.holder * {_PLACES}) "
    "AND x.url <> '' AND x.url = '#' || {i}.id))"
)


def _forward_or_inside(clause: Clause, alias: str, ground: Ground, met: Fragment) -> Fragment:
    """What refers to a resource that meets the condition, or to such a one inside itself (`#id`)."""
    inner = f"{alias}i"
    seen = visible(ground.caller, "r")
    pid = _pid(clause)
    typed = f"{ground.plain(inner + '.type')} IN ({marks(clause.chain_types)})" if clause.chain_types else "1 = 1"
    refers = _REFERS.format(i=inner, pid=pid.sql)
    return Fragment(
        f"SELECT x.rid FROM ({_RESOURCES.format(seen=seen.sql)} UNION ALL {_CONTAINED}) {inner} "
        f"CROSS JOIN idx_reference x WHERE {typed}{met.sql} AND {refers}",
        (*seen.params, *clause.chain_types, *met.params, *(pid.params * 3)),
    )


def _backward(clause: Clause, alias: str, ground: Ground, met: Fragment) -> Fragment:
    """What a resource of another type that meets the condition refers to."""
    assert clause.reverse is not None
    inner, target = f"{alias}i", f"{alias}t"
    seen = visible(ground.caller, inner)
    source, pid = clause.reverse
    return Fragment(
        f"SELECT {target}.rid FROM resource {inner} CROSS JOIN idx_reference x "
        f"CROSS JOIN resource {target} WHERE {ground.plain(inner + '.type')} = ? AND {inner}.deleted = 0"
        f"{met.sql}{seen.sql} AND x.rid = {inner}.rid AND {ground.plain('x.pid')} = ? AND x.id <> '' "
        f"AND {target}.type = x.type AND {target}.id = x.id",
        (source, *met.params, *seen.params, pid),
    )


def _column(clause: Clause, alias: str, ground: Ground) -> Fragment:
    """`_id`, `_lastUpdated` and `_type`, which are columns."""
    if clause.name == "_type":
        kinds = [value.code or "" for value in clause.values]
        return Fragment(f"{ground.plain(alias + '.type')} IN ({marks(kinds)})", tuple(kinds))
    if clause.missing is not None:  # every resource has them
        return Fragment("1 = 0" if clause.missing else "1 = 1")
    if clause.name == "_id" and clause.modifier in ("", "not", "unequal"):
        ids = [value.code or "" for value in clause.values]
        negate = "NOT " if clause.modifier else ""
        return Fragment(f"{alias}.id {negate}IN ({marks(ids)})", tuple(ids))
    if clause.name == "_lastUpdated":
        column = f"{alias}.last_updated"
        return any_of([in_range(value, DATE_TESTS, column, f"({column} + 1)") for value in clause.values])
    raise unsupported(clause)
