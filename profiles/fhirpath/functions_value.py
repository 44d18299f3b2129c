"""The function library: conversions, mathematics, precision and boundaries.

Sources: http://hl7.org/fhirpath/N1/ sections 5.5 and 5.7; precision(), lowBoundary(), highBoundary() and comparable()
are of the 3.0 draft, which the test suite of R4 uses.
"""

from __future__ import annotations

import calendar
import decimal
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from profiles.fhirpath import operators, values
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.functions_text import string
from profiles.fhirpath.model import Collection, Node, system, type_of
from profiles.fhirpath.scope import Closure, Function, Scope, operand, reading, single
from profiles.fhirpath.values import MATHS, Kind, Quantity, Temporal

_TRUE = frozenset(("true", "t", "yes", "y", "1", "1.0"))
_FALSE = frozenset(("false", "f", "no", "n", "0", "0.0"))
_INTEGER = re.compile(r"[+-]?\d{1,400}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?\d{1,400}(?:\.\d{1,400})?", re.ASCII)
_QUANTITY = re.compile(r"([+-]?\d{1,400}(?:\.\d{1,400})?)\s*(?:'([^']+)'|([a-zA-Z]+))?", re.ASCII)
_WIDEST = 31
# What a series of many digits costs (logarithms, powers, roots), a boundary, and a text read as a value.
_SERIES, _EDGE, _PARSING = 80, 8, 4

# --- conversion ------------------------------------------------------------------------------------------------------


def _to_boolean(value: Any) -> bool | None:
    if type(value) is bool:
        return value
    if operators.is_number(value):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        word = value.lower()
        return True if word in _TRUE else False if word in _FALSE else None
    return None


def _to_integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if type(value) is int and -(2**31) <= value < 2**31:
        return value
    return None


def _to_decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool):
        return Decimal("1.0") if value else Decimal("0.0")
    if isinstance(value, (int, Decimal)) or (isinstance(value, str) and _DECIMAL.fullmatch(value)):
        number = Decimal(value)
        return number if values.sane(number) else None
    return None


def _to_string(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if type(value) is bool:
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return values.decimal_text(value) if values.sane(value) else None
    if isinstance(value, (int, Temporal)):
        return str(value)
    if isinstance(value, Quantity) and values.sane(value.value):
        unit = value.unit if value.unit in values.CALENDAR_UNITS else f"'{value.unit}'"
        return f"{values.decimal_text(value.value)} {unit}"
    return None


def _to_date(value: Any) -> Temporal | None:
    if isinstance(value, Temporal) and value.kind != "Time":
        return Temporal("Date", value.parts[:3])
    if isinstance(value, str):
        moment = values.temporal(value, "Date") or values.temporal(value, "DateTime")
        return Temporal("Date", moment.parts[:3]) if moment is not None else None
    return None


def _to_datetime(value: Any) -> Temporal | None:
    if isinstance(value, Temporal) and value.kind != "Time":
        return Temporal("DateTime", value.parts, value.offset)
    return values.temporal(value, "DateTime") if isinstance(value, str) else None


def _to_time(value: Any) -> Temporal | None:
    if isinstance(value, Temporal):
        return value if value.kind == "Time" else None
    return values.temporal(value.removeprefix("T"), "Time") if isinstance(value, str) else None


def _to_quantity(value: Any) -> Quantity | None:
    if isinstance(value, Quantity):
        return value
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match is None or (match[3] and match[3] not in values.CALENDAR_UNITS):
            return None
        return Quantity(Decimal(match[1]), match[2] or match[3] or "1")
    number = _to_decimal(value)
    return None if number is None else Quantity(number, "1")


def _to(convert: Callable[[Any], Any], name: str) -> Callable[[Scope, Collection], Collection]:
    def call(scope: Scope, items: Collection) -> Collection:
        item = operand(items, f"{name}()")
        value = None if item is None else system(item)
        scope.env.spend(_PARSING)
        reading(scope.env, value)
        result = None if value is None else convert(value)
        return [] if result is None else [result]

    return call


def _converts(convert: Callable[[Any], Any], name: str) -> Callable[[Scope, Collection], Collection]:
    def call(scope: Scope, items: Collection) -> Collection:
        item = operand(items, f"{name}()")
        value = None if item is None else system(item)
        scope.env.spend(_PARSING)
        reading(scope.env, value)
        return [] if value is None else [convert(value) is not None]

    return call


def _quantity(scope: Scope, items: Collection, unit: Closure | None = None) -> Collection:
    item = operand(items, "toQuantity()")
    given = None if item is None else system(item)
    scope.env.spend(2 * _PARSING)
    reading(scope.env, given)
    amount = None if given is None else _to_quantity(given)
    wanted = string(scope, unit, "the unit") if unit is not None else None
    if amount is None or wanted is None:
        return [] if amount is None else [amount]
    number = values.convert(amount, wanted, scope.env.units)
    return [] if number is None else operators.quantity(number, wanted)


def _converts_quantity(scope: Scope, items: Collection, unit: Closure | None = None) -> Collection:
    return [bool(_quantity(scope, items, unit))] if items else []


# --- mathematics -----------------------------------------------------------------------------------------------------


def _number(items: Collection, name: str) -> Any:
    """The single number (int, Decimal) or Quantity of the input, None when empty."""
    item = operand(items, f"{name}()")
    value = None if item is None else system(item)
    if value is None:
        return None
    number = value.value if isinstance(value, Quantity) else value
    if not operators.is_number(number):
        raise FhirPathError(f"{name}() takes a number, not {type_of(item).name}")
    if isinstance(number, Decimal) and not values.sane(number):
        raise FhirPathError("a decimal beyond 60 digits cannot be computed with")
    return value


def _abs(scope: Scope, items: Collection) -> Collection:
    value = _number(items, "abs")
    if isinstance(value, Quantity):
        return [Quantity(value.value.copy_abs(), value.unit)]
    return [] if value is None else operators.number(value.copy_abs() if isinstance(value, Decimal) else abs(value))


def _whole(name: str, rounding: str) -> Callable[[Scope, Collection], Collection]:
    def call(scope: Scope, items: Collection) -> Collection:
        value = _number(items, name)
        if isinstance(value, Quantity):
            return [Quantity(values.rounded(value.value, 0, rounding), value.unit)]
        return [] if value is None else operators.number(int(values.rounded(Decimal(value), 0, rounding)))

    return call


def _round(scope: Scope, items: Collection, digits: Closure | None = None) -> Collection:
    value = _number(items, "round")
    places = system(single(digits(scope), "the precision")) if digits is not None else 0
    if value is None or places is None:
        return []
    if type(places) is not int or places < 0:
        raise FhirPathError("the precision of round() is a whole number, 0 or more")
    places = min(places, _WIDEST)
    if isinstance(value, Quantity):
        return [Quantity(values.rounded(value.value, places), value.unit)]
    return operators.number(values.rounded(Decimal(value), places))


def _real(name: str, compute: Callable[[Decimal], Decimal]) -> Callable[[Scope, Collection], Collection]:
    def call(scope: Scope, items: Collection) -> Collection:
        scope.env.spend(_SERIES)
        value = _number(items, name)
        if isinstance(value, Quantity):
            raise FhirPathError(f"{name}() takes a number without a unit")
        return [] if value is None else operators.number(_tidy(compute(Decimal(value))))

    return call


def _tidy(number: Decimal) -> Decimal:
    """Drops the last, uncertain digits of a series and the zeros they leave."""
    number = decimal.Context(prec=30, Emin=-400, Emax=400, traps=[]).plus(number)
    if not values.sane(number):
        return number
    if number == number.to_integral_value():
        return values.rounded(number, 1)
    return number.normalize() if values.places(number) > 8 else number


def _log(scope: Scope, items: Collection, base: Closure) -> Collection:
    scope.env.spend(2 * _SERIES)
    value, other = _number(items, "log"), _number(base(scope), "log")
    if value is None or other is None:
        return []
    if isinstance(value, Quantity) or isinstance(other, Quantity):
        raise FhirPathError("log() takes numbers without a unit")
    if value <= 0 or other <= 0 or other == 1:
        return []
    return operators.number(_tidy(MATHS.divide(MATHS.ln(Decimal(value)), MATHS.ln(Decimal(other)))))


def _power(scope: Scope, items: Collection, exponent: Closure) -> Collection:
    scope.env.spend(_SERIES)
    value, other = _number(items, "power"), _number(exponent(scope), "power")
    if value is None or other is None:
        return []
    if isinstance(value, Quantity) or isinstance(other, Quantity):
        raise FhirPathError("power() takes numbers without a unit")
    result = MATHS.power(Decimal(value), Decimal(other))
    if type(value) is int and type(other) is int:
        whole = values.sane(result) and result == result.to_integral_value()
        return operators.number(int(result)) if whole else []
    return operators.number(_tidy(result))


# --- precision and boundaries ----------------------------------------------------------------------------------------


def _precision(scope: Scope, items: Collection) -> Collection:
    item = operand(items, "precision()")
    value = None if item is None else system(item)
    if value is None:
        return []
    if isinstance(value, Temporal):
        return [value.digits]
    if operators.is_number(value):
        return [values.places(value)]
    raise FhirPathError(f"precision() takes a Decimal, Date, DateTime or Time, not {type_of(item).name}")


def _boundary(high: bool) -> Callable[..., Collection]:
    name = "highBoundary" if high else "lowBoundary"

    def call(scope: Scope, items: Collection, digits: Closure | None = None) -> Collection:
        scope.env.spend(_EDGE)
        item = operand(items, f"{name}()")
        value = None if item is None else system(item)
        wanted = None
        if digits is not None:
            given = single(digits(scope), f"the precision of {name}()")
            wanted = None if given is None else system(given)
            if wanted is not None and type(wanted) is not int:
                raise FhirPathError(f"the precision of {name}() is an Integer")
        if value is None:
            return []
        if isinstance(value, Temporal):
            edge: Any = _moment_boundary(value, wanted, high)
        elif isinstance(value, Quantity):
            number = _decimal_boundary(value.value, wanted, high)
            edge = None if number is None else Quantity(number, value.unit)
        elif operators.is_number(value):
            edge = _decimal_boundary(Decimal(value), wanted, high)
        else:
            raise FhirPathError(f"{name}() takes a Decimal, Quantity, Date, DateTime or Time, not {type_of(item).name}")
        return [] if edge is None else [edge]

    return call


def _decimal_boundary(number: Decimal, digits: int | None, high: bool) -> Decimal | None:
    digits = 8 if digits is None else digits
    if not 0 <= digits <= _WIDEST or not values.sane(number):
        return None
    half = Decimal(5).scaleb(-values.places(number) - 1)
    edge = MATHS.add(number, half) if high else MATHS.subtract(number, half)
    return values.rounded(edge, digits, decimal.ROUND_CEILING if high else decimal.ROUND_FLOOR)


_WIDTHS: dict[Kind, tuple[int, ...]] = {"Date": (4, 6, 8), "DateTime": (4, 6, 8, 10, 12, 14), "Time": (2, 4, 6)}
_FINEST: dict[Kind, int] = {"Date": 8, "DateTime": 17, "Time": 9}


def _moment_boundary(value: Temporal, digits: int | None, high: bool) -> Temporal | None:
    digits = _FINEST[value.kind] if digits is None else digits
    widths = _WIDTHS[value.kind]
    if not widths[0] <= digits <= _FINEST[value.kind]:
        return None
    parts = list(value.parts)
    lead = 3 if value.kind == "Time" else 0
    while len(parts) < len(widths):
        parts.append(_edge(parts, len(parts) + lead, high))
    if len(parts) == (3 if lead else 6):
        parts[-1] = _second_edge(Decimal(parts[-1]), len(value.parts) == len(widths), high)
    length = sum(1 for width in widths if width <= digits)
    parts = parts[:length]
    if length == len(widths) and value.kind != "Date":
        places = digits - widths[-1]
        parts[-1] = values.rounded(Decimal(parts[-1]), min(places, 3), decimal.ROUND_DOWN)
    offset = value.offset
    if value.kind == "DateTime" and len(parts) > 3 and offset is None:
        offset = -12 * 60 if high else 14 * 60
    return Temporal(value.kind, tuple(parts), offset if len(parts) > 3 else None)


def _edge(parts: list[int | Decimal], place: int, high: bool) -> int | Decimal:
    """The first or last value of the part at `place` (0 year ... 5 second)."""
    if not high:
        return 1 if place in (1, 2) else 0
    if place == 2:
        return calendar.monthrange(int(parts[0]), int(parts[1]))[1]
    return {1: 12, 3: 23, 4: 59, 5: 59}[place]


def _second_edge(second: Decimal, known: bool, high: bool) -> Decimal:
    digits = values.places(second) if known else 0
    if digits >= 3:
        return second
    return second + (Decimal(1).scaleb(-digits) - Decimal("0.001") if high else 0)


def _comparable(scope: Scope, items: Collection, other: Closure) -> Collection:
    left, right = single(items, "comparable()"), single(other(scope), "comparable()")
    if left is None or right is None:
        return []
    a, b = _to_quantity(_amount(left)), _to_quantity(_amount(right))
    if a is None or b is None:
        return [False]
    return [values.convert(Quantity(Decimal(1), a.unit), b.unit, scope.env.units) is not None]


def _amount(item: Any) -> Any:
    value = system(item)
    return None if isinstance(value, (Node, str, bool)) else value


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "Boolean": _to_boolean,
    "Integer": _to_integer,
    "Decimal": _to_decimal,
    "String": _to_string,
    "Date": _to_date,
    "DateTime": _to_datetime,
    "Time": _to_time,
}

FUNCTIONS: dict[str, Function] = {
    **{f"to{name}": Function(_to(run, f"to{name}")) for name, run in _CONVERSIONS.items()},
    **{f"convertsTo{name}": Function(_converts(run, f"convertsTo{name}")) for name, run in _CONVERSIONS.items()},
    "toQuantity": Function(_quantity, 0, 1),
    "convertsToQuantity": Function(_converts_quantity, 0, 1),
    "abs": Function(_abs),
    "ceiling": Function(_whole("ceiling", decimal.ROUND_CEILING)),
    "floor": Function(_whole("floor", decimal.ROUND_FLOOR)),
    "truncate": Function(_whole("truncate", decimal.ROUND_DOWN)),
    "round": Function(_round, 0, 1),
    "exp": Function(_real("exp", MATHS.exp)),
    "ln": Function(_real("ln", lambda number: MATHS.ln(number) if number > 0 else Decimal("NaN"))),
    "sqrt": Function(_real("sqrt", lambda number: MATHS.sqrt(number) if number >= 0 else Decimal("NaN"))),
    "log": Function(_log, 1, 1),
    "power": Function(_power, 1, 1),
    "precision": Function(_precision),
    "lowBoundary": Function(_boundary(False), 0, 1),
    "highBoundary": Function(_boundary(True), 0, 1),
    "comparable": Function(_comparable, 1, 1),
}
