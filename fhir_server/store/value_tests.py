"""One clause against one row of an index table, as SQL: the test each search type makes, by prefix and modifier.

Source: https://hl7.org/fhir/R4/search.html (prefixes 3.1.1.4.5, modifiers 3.1.1.4.4)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from fhir_server import errors
from fhir_server.search.plan import Clause, ParamType, Value
from fhir_server.search.values import bounded, fold
from fhir_server.store.dialect import like, marks
from fhir_server.store.view import Fragment

MAX_VALUES = 2_000

# Ranges of dates are half open, [low, high); those of numbers closed. L and H stand for the searched range. No date
# ends before it begins: so `eq`, `ge` and `le` name a bound that follows, for an index to begin or to end with.
DATE_TESTS = {
    "eq": ("{low} >= L AND {low} <= H AND {high} <= H"),
    "ne": ("NOT ({low} >= L AND {high} <= H)"),
    "gt": ("{high} > H"),
    "lt": ("{low} < L"),
    "ge": ("{high} >= L AND ({low} >= L OR {high} > H)"),
    "le": ("{low} <= H AND ({low} < L OR {high} <= H)"),
    "sa": ("{low} >= H"),
    "eb": ("{high} <= L"),
    "ap": ("{low} < H AND {high} > L"),
}
_NUMBER_TESTS = {
    "eq": ("{low} >= L AND {high} <= H"),
    "ne": ("NOT ({low} >= L AND {high} <= H)"),
    "gt": ("{high} > H"),
    "lt": ("{low} < L"),
    "ge": ("{high} > H OR ({low} >= L AND {high} <= H)"),
    "le": ("{low} < L OR ({low} >= L AND {high} <= H)"),
    "sa": ("{low} > H"),
    "eb": ("{high} < L"),
    "ap": ("{low} <= H AND {high} >= L"),
}


def any_of(tests: Sequence[Fragment]) -> Fragment:
    """The tests ORed as a balanced tree: SQLite bounds the depth of an expression at 1,000."""
    if len(tests) == 1:
        return tests[0]
    if not tests:
        return Fragment("1 = 0")
    middle = len(tests) // 2
    left, right = any_of(tests[:middle]), any_of(tests[middle:])
    return Fragment(f"({left.sql} OR {right.sql})", (*left.params, *right.params))


def in_range(value: Value, table: dict[str, str], low: str, high: str) -> Fragment:
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


def _ends(column: str, text: str) -> Fragment:
    return Fragment(f"{column} LIKE ? ESCAPE '\\'", (f"%{like(text)}",))


def _string(clause: Clause) -> Fragment:
    if clause.modifier == "exact":
        return any_of([_exact(value.text) for value in clause.values])
    if clause.modifier in ("contains", "text"):
        return any_of([_contains("x.folded", value.text) for value in clause.values])
    if clause.modifier == "ends":
        return any_of([_ends("x.folded", value.text) for value in clause.values])
    if clause.modifier == "equals":
        return _in("x.folded", [bounded(value.text) for value in clause.values])
    if clause.modifier:
        raise unsupported(clause)
    return any_of([_starts("x.folded", bounded(value.text)) for value in clause.values])


def _exact(text: str) -> Fragment:
    """The index is on the folded text: it finds the few rows whose spelling is then compared."""
    spelled = Fragment("x.exact = ?", (bounded(text),))
    if len(text.encode()) > 900:
        return spelled  # cut before or after folding, the two differ
    return both(Fragment("x.folded = ?", (fold(text),)), spelled)


def _in(column: str, values: Sequence[str]) -> Fragment:
    if len(values) == 1:
        return Fragment(f"{column} = ?", (values[0],))
    return Fragment(f"{column} IN ({marks(values)})", tuple(values))


def _token(clause: Clause) -> Fragment:
    if clause.modifier == "text":
        return any_of([_contains("x.folded", value.text) for value in clause.values])
    if clause.modifier not in ("", "not"):
        raise unsupported(clause)
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
            tests.append(by_code if by_system is None else both(by_code, by_system))
    return any_of(tests)


def both(left: Fragment, right: Fragment) -> Fragment:
    return Fragment(f"({left.sql} AND {right.sql})", (*left.params, *right.params))


def _date(clause: Clause) -> Fragment:
    return any_of([in_range(value, DATE_TESTS, "x.low", "x.high") for value in clause.values])


def _number(clause: Clause) -> Fragment:
    return any_of([_span(value) for value in clause.values])


def _span(value: Value) -> Fragment:
    """A number; of a span of two (`also`) the first is that of the row's beginning, the second of its end."""
    if not value.also:
        return in_range(value, _NUMBER_TESTS, "x.low", "x.high")
    first, last = in_range(value, _NUMBER_TESTS, "x.low", "x.low"), value.also[0]
    return both(first, in_range(last, _NUMBER_TESTS, "x.high", "x.high"))


def _quantity(clause: Clause) -> Fragment:
    return any_of([_measured(value) for value in clause.values])


def _measured(value: Value) -> Fragment:
    """By UCUM base units where the searched unit has them, so that 5 g/dL finds 50 g/L; else as spelled.

    Without a system the unit may be a word as well (`10||{score}`): both ways count.
    """
    if not value.unit:
        return _as_spelled(value)
    searched = replace(value, low=value.base_low, high=value.base_high)
    in_base = both(
        Fragment("x.unit <> '' AND x.unit = ?", (value.unit,)),
        in_range(searched, _NUMBER_TESTS, "x.canonical_low", "x.canonical_high"),
    )
    return in_base if value.system else any_of([in_base, _as_spelled(value)])


def _as_spelled(value: Value) -> Fragment:
    test = in_range(value, _NUMBER_TESTS, "x.low", "x.high")
    if value.code:
        test = both(test, Fragment("x.code = ?", (bounded(value.code),)))
    if value.system:
        test = both(test, Fragment("x.system = ?", (bounded(value.system),)))
    return test


def _reference(clause: Clause) -> Fragment:
    if clause.modifier == "identifier":
        return any_of([_identifier(value) for value in clause.values])
    tests: list[Fragment] = []
    for value in clause.values:
        if value.text and not value.id:
            tests.append(Fragment("(x.url <> '' AND x.url = ?)", (bounded(value.text),)))
        elif value.type:
            tests.append(Fragment("(x.id <> '' AND x.id = ? AND x.type = ?)", (value.id, value.type)))
        else:
            tests.append(Fragment("(x.id <> '' AND x.id = ?)", (value.id,)))
    return any_of(tests)


def _identifier(value: Value) -> Fragment:
    by_system = None if value.system is None else Fragment("x.system = ?", (bounded(value.system),))
    if value.code is None:
        return by_system or Fragment("1 = 0")
    by_value = Fragment("(x.value <> '' AND x.value = ?)", (bounded(value.code),))
    return by_value if by_system is None else both(by_value, by_system)


def _uri(clause: Clause) -> Fragment:
    if clause.modifier == "below":
        return any_of(
            [
                any_of([Fragment("x.uri = ?", (bounded(value.text),)), _starts("x.uri", value.text.rstrip("/") + "/")])
                for value in clause.values
            ]
        )
    if clause.modifier == "above":
        parts = list(dict.fromkeys(part for value in clause.values for part in _above(value.text)))
        if len(parts) > MAX_VALUES:
            raise errors.TooLarge(f"`{clause.name}:above` looks under more than {MAX_VALUES} addresses; ask for fewer.")
        return _in("x.uri", parts)
    if clause.modifier in ("starts", "contains", "ends"):
        test = {"starts": _starts, "contains": _contains, "ends": _ends}[clause.modifier]
        return any_of([test("x.uri", value.text) for value in clause.values])
    if clause.modifier:
        raise unsupported(clause)
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
    return any_of(tests)


def full_text(clause: Clause, test: str) -> Fragment:
    """Words in a row, the last one open when the value's code is `*`. `test` is the database's own."""
    phrases = [(value.text.split(" "), "*" if value.code == "*" else "") for value in clause.values]
    if "tsquery" in test:
        asked = [" <-> ".join(f"'{word}'" for word in words) + (":*" if more else "") for words, more in phrases]
    else:
        asked = [f'"{" ".join(words)}"{more}' for words, more in phrases]
    return any_of([Fragment(test, (text,)) for text in asked])


VALUE_TESTS: dict[ParamType, Callable[[Clause], Fragment]] = {
    "string": _string,
    "token": _token,
    "date": _date,
    "number": _number,
    "quantity": _quantity,
    "reference": _reference,
    "uri": _uri,
    "special": _near,
}


def unsupported(clause: Clause) -> errors.Unsupported:
    name = f"{clause.name}:{clause.modifier}" if clause.modifier else clause.name
    return errors.Unsupported(f"Search by `{name}` is not supported here.", http=400)
