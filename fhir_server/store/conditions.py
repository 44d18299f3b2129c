"""Search clauses as SQL conditions on the resource table.

A clause that must hold becomes membership in the set of rids an index table gives, which the database may start
from; a clause that must not hold becomes NOT EXISTS on the rid. Chains nest the same conditions on the resource
referred to, each hop with the caller's predicate. Values are parameters, never text.

Source: https://hl7.org/fhir/R4/search.html (prefixes 3.1.1.4.5, modifiers 3.1.1.4.4, chaining 3.1.1.4.12, 3.1.1.4.13)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from fhir_server import errors
from fhir_server.context import Caller
from fhir_server.search.plan import Clause, ParamType, Value
from fhir_server.search.values import bounded, fold
from fhir_server.store.dialect import like, marks
from fhir_server.store.view import Fragment, visible

MAX_DEPTH = 20
MAX_VALUES = 2_000
NESTED = 2
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
}

# Ranges of dates are half open, [low, high); those of numbers closed. L and H stand for the searched range.
_DATE_TESTS = {
    "eq": ("{low} >= L AND {high} <= H"),
    "ne": ("NOT ({low} >= L AND {high} <= H)"),
    "gt": ("{high} > H"),
    "lt": ("{low} < L"),
    "ge": ("{high} > H OR ({low} >= L AND {high} <= H)"),
    "le": ("{low} < L OR ({low} >= L AND {high} <= H)"),
    "sa": ("{low} >= H"),
    "eb": ("{high} <= L"),
    "ap": ("{low} < H AND {high} > L"),
}
_NUMBER_TESTS = {
    **_DATE_TESTS,
    "sa": ("{low} > H"),
    "eb": ("{high} < L"),
    "ap": ("{low} <= H AND {high} >= L"),
}


@dataclass(frozen=True, slots=True)
class Ground:
    """Who asks, and how this database's planner is told to leave an index alone (`Dialect.unindexed`)."""

    caller: Caller
    unindexed: str = "{}"

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
        _clause(clause, alias, ground, depth, by_row=start != ALL and start != position)
        for position, clause in enumerate(clauses)
    ]
    return Fragment("".join(f" AND {part.sql}" for part in parts), tuple(p for part in parts for p in part.params))


def is_set(clause: Clause) -> bool:
    """Whether the clause can be asked for its rids: it holds by what an index table has, not by what it lacks."""
    return clause.pid != 0 and clause.missing is not True and clause.modifier != "not" and not is_hop(clause)


def is_hop(clause: Clause) -> bool:
    """Whether the clause is about other resources (a chain, `_has`)."""
    return bool(clause.chain) or clause.reverse is not None


def probe(clause: Clause, limit: int) -> Fragment:
    """Counts the index rows of a clause that `is_set`, up to `limit`."""
    test = _index_test(clause)
    return Fragment(
        f"SELECT count(*) FROM (SELECT 1 FROM {TABLES[clause.type]} x WHERE {test.sql} LIMIT {int(limit)}) p",
        test.params,
    )


def _clause(clause: Clause, alias: str, ground: Ground, depth: int, *, by_row: bool) -> Fragment:
    if len(clause.values) > MAX_VALUES:
        raise errors.TooLarge(f"`{clause.name}` has {len(clause.values)} values; at most {MAX_VALUES} are accepted.")
    if is_hop(clause):
        return _hops(clause, alias, ground, depth)
    if clause.pid == 0:
        return _column(clause, alias)
    if clause.type not in TABLES:
        raise _unsupported(clause)
    table, absent = TABLES[clause.type], clause.missing is True or clause.modifier == "not"
    if absent or by_row or clause.missing is not None:
        test = _index_test(clause, ground.plain("x.pid"))
        negate = "NOT " if absent else ""
        return Fragment(
            f"{negate}EXISTS (SELECT 1 FROM {table} x WHERE x.rid = {alias}.rid AND {test.sql})", test.params
        )
    test = _index_test(clause)
    return Fragment(f"{alias}.rid IN (SELECT x.rid FROM {table} x WHERE {test.sql})", test.params)


def _index_test(clause: Clause, pid_column: str = "x.pid") -> Fragment:
    if clause.values and clause.values[0].pid:
        return _any([_beside(clause, value, pid_column) for value in clause.values])
    pid = _pid(clause, pid_column)
    return pid if clause.missing is not None else _both(pid, _VALUE_TESTS[clause.type](clause))


def _beside(clause: Clause, value: Value, column: str) -> Fragment:
    """A composite: the rows beside the code, tested by the other value."""
    test = _VALUE_TESTS[clause.type](replace(clause, values=(value,)))
    return _both(Fragment(f"{column} = ?", (value.pid,)), test)


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
    if len(way) <= NESTED:
        met = conditions(clause.chain, f"{alias}i", ground, depth=depth + 1)
        one = _hop(clause, alias, ground, met)
        return Fragment(f"{alias}.rid IN ({one.sql})", one.params)
    if depth + len(way) > MAX_DEPTH:
        raise errors.TooLarge(f"A search may follow at most {MAX_DEPTH} references in a row.")
    met = conditions(way[-1].chain, f"{alias}i", ground, depth=depth + len(way))
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


def _hop(clause: Clause, alias: str, ground: Ground, met: Fragment) -> Fragment:
    """The rids one reference away from the resources that meet `met`, a condition on `{alias}i`."""
    return (_forward if clause.reverse is None else _backward)(clause, alias, ground, met)


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


def _column(clause: Clause, alias: str) -> Fragment:
    """`_id` and `_lastUpdated`, which are columns."""
    if clause.name == "_id" and clause.modifier in ("", "not"):
        ids = [value.code or "" for value in clause.values]
        negate = "NOT " if clause.modifier == "not" else ""
        return Fragment(f"{alias}.id {negate}IN ({marks(ids)})", tuple(ids))
    if clause.name == "_lastUpdated":
        column = f"{alias}.last_updated"
        return _any([_range(value, _DATE_TESTS, column, f"({column} + 1)") for value in clause.values])
    raise _unsupported(clause)


def _any(tests: Sequence[Fragment]) -> Fragment:
    """The tests ORed as a balanced tree: SQLite bounds the depth of an expression at 1,000."""
    if len(tests) == 1:
        return tests[0]
    if not tests:
        return Fragment("1 = 0")
    middle = len(tests) // 2
    left, right = _any(tests[:middle]), _any(tests[middle:])
    return Fragment(f"({left.sql} OR {right.sql})", (*left.params, *right.params))


def _range(value: Value, table: dict[str, str], low: str, high: str) -> Fragment:
    """One prefix test with its parameters in the order they stand."""
    template = table[value.prefix]
    params: list[object] = []
    sql: list[str] = []
    for sign in template:
        if sign == "L" or sign == "H":
            params.append(value.low if sign == "L" else value.high)
            sql.append("?")
        else:
            sql.append(sign)
    return Fragment(f"({''.join(sql)})".format(low=low, high=high), tuple(params))


def prefix_end(prefix: str) -> str | None:
    """The smallest text greater than every text with this prefix, byte by byte in UTF-8; None when there is none."""
    signs = list(prefix)
    while signs:
        following = ord(signs[-1]) + 1
        if 0xD800 <= following <= 0xDFFF:
            following = 0xE000
        if following <= 0x10FFFF:
            signs[-1] = chr(following)
            return "".join(signs)
        signs.pop()
    return None


def _starts(column: str, prefix: str) -> Fragment:
    end = prefix_end(prefix)
    if end is None:
        return Fragment(f"{column} >= ?", (prefix,))
    return Fragment(f"({column} >= ? AND {column} < ?)", (prefix, end))


def _contains(column: str, text: str) -> Fragment:
    return Fragment(f"{column} LIKE ? ESCAPE '\\'", (f"%{like(text)}%",))


def _string(clause: Clause) -> Fragment:
    if clause.modifier == "exact":
        return _any([_exact(value.text) for value in clause.values])
    if clause.modifier in ("contains", "text"):
        return _any([_contains("x.folded", value.text) for value in clause.values])
    if clause.modifier:
        raise _unsupported(clause)
    return _any([_starts("x.folded", bounded(value.text)) for value in clause.values])


def _exact(text: str) -> Fragment:
    """The index is on the folded text: it finds the few rows whose spelling is then compared."""
    spelled = Fragment("x.exact = ?", (bounded(text),))
    if len(text.encode()) > 900:
        return spelled  # cut before or after folding, the two differ
    return _both(Fragment("x.folded = ?", (fold(text),)), spelled)


def _in(column: str, values: Sequence[str]) -> Fragment:
    if len(values) == 1:
        return Fragment(f"{column} = ?", (values[0],))
    return Fragment(f"{column} IN ({marks(values)})", tuple(values))


def _token(clause: Clause) -> Fragment:
    if clause.modifier == "text":
        return _any([_contains("x.folded", value.text) for value in clause.values])
    if clause.modifier not in ("", "not"):
        raise _unsupported(clause)
    ordered = sorted(clause.values, key=lambda value: (value.system is not None, value.system or ""))
    tests: list[Fragment] = []
    for system, group in groupby(ordered, key=lambda value: value.system):
        values = list(group)
        codes = [bounded(value.code) for value in values if value.code is not None]
        any_code = len(codes) < len(values)
        by_system = None if system is None else Fragment("x.system = ?", (bounded(system),))
        if any_code and by_system is not None:
            tests.append(by_system)
        elif codes:
            by_code = _in("x.code", codes)
            tests.append(by_code if by_system is None else _both(by_code, by_system))
    return _any(tests)


def _both(left: Fragment, right: Fragment) -> Fragment:
    return Fragment(f"({left.sql} AND {right.sql})", (*left.params, *right.params))


def _date(clause: Clause) -> Fragment:
    return _any([_range(value, _DATE_TESTS, "x.low", "x.high") for value in clause.values])


def _number(clause: Clause) -> Fragment:
    return _any([_range(value, _NUMBER_TESTS, "x.low", "x.high") for value in clause.values])


def _quantity(clause: Clause) -> Fragment:
    return _any([_measured(value) for value in clause.values])


def _measured(value: Value) -> Fragment:
    """By UCUM base units where the searched unit has them, so that 5 g/dL finds 50 g/L; else as spelled.

    Without a system the unit may be a word as well (`10||{score}`): both ways count.
    """
    if not value.unit:
        return _as_spelled(value)
    searched = replace(value, low=value.base_low, high=value.base_high)
    in_base = _both(
        Fragment("x.unit <> '' AND x.unit = ?", (value.unit,)),
        _range(searched, _NUMBER_TESTS, "x.canonical_low", "x.canonical_high"),
    )
    return in_base if value.system else _any([in_base, _as_spelled(value)])


def _as_spelled(value: Value) -> Fragment:
    test = _range(value, _NUMBER_TESTS, "x.low", "x.high")
    if value.code:
        test = _both(test, Fragment("x.code = ?", (bounded(value.code),)))
    if value.system:
        test = _both(test, Fragment("x.system = ?", (bounded(value.system),)))
    return test


def _reference(clause: Clause) -> Fragment:
    if clause.modifier == "identifier":
        return _any([_identifier(value) for value in clause.values])
    tests: list[Fragment] = []
    for value in clause.values:
        if value.text and not value.id:
            tests.append(Fragment("(x.url <> '' AND x.url = ?)", (bounded(value.text),)))
        elif value.type:
            tests.append(Fragment("(x.id <> '' AND x.id = ? AND x.type = ?)", (value.id, value.type)))
        else:
            tests.append(Fragment("(x.id <> '' AND x.id = ?)", (value.id,)))
    return _any(tests)


def _identifier(value: Value) -> Fragment:
    by_system = None if value.system is None else Fragment("x.system = ?", (bounded(value.system),))
    if value.code is None:
        return by_system or Fragment("1 = 0")
    by_value = Fragment("(x.value <> '' AND x.value = ?)", (bounded(value.code),))
    return by_value if by_system is None else _both(by_value, by_system)


def _uri(clause: Clause) -> Fragment:
    if clause.modifier == "below":
        return _any(
            [
                _any([Fragment("x.uri = ?", (bounded(value.text),)), _starts("x.uri", value.text.rstrip("/") + "/")])
                for value in clause.values
            ]
        )
    if clause.modifier == "above":
        parts = list(dict.fromkeys(part for value in clause.values for part in _above(value.text)))
        if len(parts) > MAX_VALUES:
            raise errors.TooLarge(f"`{clause.name}:above` looks under more than {MAX_VALUES} addresses; ask for fewer.")
        return _in("x.uri", parts)
    if clause.modifier:
        raise _unsupported(clause)
    return _in("x.uri", [bounded(value.text) for value in clause.values])


def _above(uri: str) -> list[str]:
    """The URI and those it lies under, segment by segment."""
    found, rest = [uri], uri
    while "/" in rest.split("://", 1)[-1]:
        rest = rest.rsplit("/", 1)[0]
        found.append(rest)
    return found[:50]


EARTH_KM = 6371.0088


def _near(clause: Clause) -> Fragment:
    """Within so many kilometres of a point, along the great circle of a sphere.

    The band of latitudes is what the index answers; the rest is the haversine formula, right across the date line.
    """
    tests: list[Fragment] = []
    half_north = "sin(radians(x.latitude - ?) / 2)"
    half_east = "sin(radians(x.longitude - ?) / 2)"
    for value in clause.values:
        latitude, longitude, radius = (float(part) for part in value.text.split("|"))
        reach = math.degrees(radius / EARTH_KM) + 1e-9
        most = math.sin(min(radius / (2 * EARTH_KM), math.pi / 2)) ** 2
        shrunk = math.cos(math.radians(latitude))
        tests.append(
            Fragment(
                f"(x.latitude BETWEEN ? AND ? AND {half_north} * {half_north} "
                f"+ cos(radians(x.latitude)) * ? * {half_east} * {half_east} <= ?)",
                (latitude - reach, latitude + reach, latitude, latitude, shrunk, longitude, longitude, most),
            )
        )
    return _any(tests)


_VALUE_TESTS: dict[ParamType, Callable[[Clause], Fragment]] = {
    "string": _string,
    "token": _token,
    "date": _date,
    "number": _number,
    "quantity": _quantity,
    "reference": _reference,
    "uri": _uri,
    "special": _near,
}


def _unsupported(clause: Clause) -> errors.Unsupported:
    name = f"{clause.name}:{clause.modifier}" if clause.modifier else clause.name
    return errors.Unsupported(f"Search by `{name}` is not supported here.", http=400)
