"""Search clauses as SQL conditions on the resource table.

A clause that must hold becomes membership in the set of rids an index table gives, which the database may start
from; a clause that must not hold becomes NOT EXISTS on the rid. Chains nest the same conditions on the resource
referred to, each hop with the caller's predicate. Values are parameters, never text.

Source: https://hl7.org/fhir/R4/search.html (prefixes 3.1.1.4.5, modifiers 3.1.1.4.4, chaining 3.1.1.4.12, 3.1.1.4.13)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from fhir_server import errors
from fhir_server.context import Caller
from fhir_server.search.plan import Clause, ParamType, Value
from fhir_server.search.values import bounded, fold
from fhir_server.store.dialect import like, marks
from fhir_server.store.view import Fragment, visible

MAX_DEPTH = 20
MAX_VALUES = 2_000
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
    if clause.reverse is not None:
        return _has(clause, alias, ground, depth)
    if clause.chain:
        return _chain(clause, alias, ground, depth)
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
    pid = _pid(clause, pid_column)
    return pid if clause.missing is not None else _both(pid, _VALUE_TESTS[clause.type](clause))


def _pid(clause: Clause, column: str = "x.pid") -> Fragment:
    """Whose index rows count: those of one parameter, or of the same name on several types."""
    if not clause.pids:
        return Fragment(f"{column} = ?", (clause.pid,))
    return Fragment(f"{column} IN ({marks(clause.pids)})", clause.pids)


# CROSS JOIN fixes the order of joins on SQLite, from the innermost condition outwards; PostgreSQL chooses itself.


def _chain(clause: Clause, alias: str, ground: Ground, depth: int) -> Fragment:
    """`alias` refers to a resource that meets the inner clauses."""
    inner = f"{alias}c"
    met = conditions(clause.chain, inner, ground, depth=depth + 1)
    seen = visible(ground.caller, inner)
    pid = _pid(clause)
    typed = f" AND {ground.plain(inner + '.type')} IN ({marks(clause.chain_types)})" if clause.chain_types else ""
    return Fragment(
        f"{alias}.rid IN (SELECT x.rid FROM resource {inner} CROSS JOIN idx_reference x "
        f"WHERE {inner}.deleted = 0{typed}{met.sql}{seen.sql} "
        f"AND {pid.sql} AND x.id <> '' AND x.id = {inner}.id AND x.type = {inner}.type)",
        (*clause.chain_types, *met.params, *seen.params, *pid.params),
    )


def _has(clause: Clause, alias: str, ground: Ground, depth: int) -> Fragment:
    """A resource of another type refers to `alias` and meets the inner clauses."""
    assert clause.reverse is not None
    inner, target = f"{alias}h", f"{alias}t"
    met = conditions(clause.chain, inner, ground, depth=depth + 1)
    seen = visible(ground.caller, inner)
    source, pid = clause.reverse
    return Fragment(
        f"{alias}.rid IN (SELECT {target}.rid FROM resource {inner} CROSS JOIN idx_reference x "
        f"CROSS JOIN resource {target} WHERE {ground.plain(inner + '.type')} = ? AND {inner}.deleted = 0"
        f"{met.sql}{seen.sql} AND x.rid = {inner}.rid AND {ground.plain('x.pid')} = ? AND x.id <> '' "
        f"AND {target}.type = x.type AND {target}.id = x.id)",
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
    tests: list[Fragment] = []
    for value in clause.values:
        test = _range(value, _NUMBER_TESTS, "x.low", "x.high")
        if value.code:
            test = _both(test, Fragment("x.code = ?", (bounded(value.code),)))
        if value.system:
            test = _both(test, Fragment("x.system = ?", (bounded(value.system),)))
        tests.append(test)
    return _any(tests)


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
        return _in("x.uri", [part for value in clause.values for part in _above(value.text)])
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


_KM_A_DEGREE = 111.195


def _near(clause: Clause) -> Fragment:
    """Within so many kilometres of a point, on a plane around it: exact enough where a hospital is looked for."""
    tests: list[Fragment] = []
    for value in clause.values:
        latitude, longitude, radius = (float(part) for part in value.text.split("|"))
        reach = radius / _KM_A_DEGREE
        squeeze = max(math.cos(math.radians(latitude)), 0.01) ** 2
        away = "abs(x.longitude - ?)"
        shorter = f"CASE WHEN {away} > 180 THEN 360 - {away} ELSE {away} END"
        tests.append(
            Fragment(
                "(x.latitude BETWEEN ? AND ? AND (x.latitude - ?) * (x.latitude - ?) "
                f"+ ({shorter}) * ({shorter}) * ? <= ?)",
                (latitude - reach, latitude + reach, latitude, latitude, *(longitude,) * 6, squeeze, reach * reach),
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
