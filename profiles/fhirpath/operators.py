"""The operators of FHIRPath on collections: equality, equivalence, order, arithmetic, logic, membership.

Every function takes and returns collections (lists); an empty list is the standard's "empty".

Sources: http://hl7.org/fhirpath/N1/ sections 4.5 (singletons), 5.6, 6.1-6.6; https://hl7.org/fhir/R4/fhirpath.html
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from profiles.fhirpath import values
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.model import Collection, Item, Node, all_children, is_a, system, type_of
from profiles.fhirpath.paths import json_key
from profiles.fhirpath.scope import Env, operand, reading, room, single
from profiles.fhirpath.values import MATHS, Quantity, Temporal

_NUMBERS = (int, Decimal)
_INTEGER_LIMIT = 2**31
MAX_UNIT = 255
# What a decimal of many digits costs when it is computed or hashed, and a unit when it is converted.
_COMPUTING, _CONVERTING = 2, 4


def boolean(items: Collection, what: str) -> bool | None:
    """Singleton evaluation of a condition: None when empty, True for one item that is no boolean, error for more."""
    item = single(items, what)
    if item is None:
        return None
    value = system(item)
    return value if type(value) is bool else True


def truth(answer: bool | None) -> Collection:
    """A three-valued answer as a collection."""
    return [] if answer is None else [answer]


def is_number(value: Any) -> bool:
    """Whether a System value is an Integer or Decimal."""
    return isinstance(value, _NUMBERS) and type(value) is not bool


# --- equality --------------------------------------------------------------------------------------------------------


def same(left: Item, right: Item, env: Env) -> bool | None:
    """Equality of two items (6.1.1); None when precision or units leave it open."""
    a, b = system(left), system(right)
    if type(a) is str and type(b) is str:
        reading(env, a)
        return a == b
    if type(a) is bool or type(b) is bool:
        return type(a) is type(b) and a == b
    if is_number(a) and is_number(b):
        return bool(a == b)
    if isinstance(a, Temporal) and isinstance(b, Temporal):
        env.spend(1)
        return values.same_temporal(a, b)
    if isinstance(a, Quantity) or isinstance(b, Quantity):
        env.spend(_CONVERTING)
        return _same_quantity(a, b, env)
    if isinstance(a, Node) and isinstance(b, Node):
        return _same_nodes(a, b, env)
    return bool(a == b) if type(a) is type(b) else False


def _same_quantity(a: Any, b: Any, env: Env) -> bool | None:
    left, right = _as_quantity(a), _as_quantity(b)
    if left is None or right is None:
        return False
    order = values.compare_quantity(left, right, env.units)
    if order is None:
        # Two units of different dimensions can never be equal; an unknown or variable one leaves it open.
        return (
            None if values.calendar_unit(left.unit) or values.calendar_unit(right.unit) else _unlike(left, right, env)
        )
    return order == 0


def _unlike(left: Quantity, right: Quantity, env: Env) -> bool | None:
    if isinstance(env.units, values.NoUnits):
        return None
    known = all(env.units.convert(Decimal(1), unit, unit) is not None for unit in (left.unit, right.unit))
    return False if known else None


def _as_quantity(value: Any) -> Quantity | None:
    if isinstance(value, Quantity):
        return value
    return Quantity(Decimal(value), "1") if is_number(value) else None


def _same_nodes(a: Node, b: Node, env: Env) -> bool:
    if a.value is b.value and a.extra is b.extra:
        return True
    env.spend(1)
    if json_key(a.value, env.spend) != json_key(b.value, env.spend):
        return False
    return bool(json_key(a.extra, env.spend) == json_key(b.extra, env.spend))


def equal(left: Collection, right: Collection, env: Env) -> bool | None:
    """`=` on collections: None when either is empty; item by item, in order."""
    if not left or not right:
        return None
    if len(left) != len(right):
        return False
    verdict: bool | None = True
    for a, b in zip(left, right, strict=True):
        env.spend(1)
        answer = same(a, b, env)
        if answer is False:
            return False
        if answer is None:
            verdict = None
    return verdict


def key(item: Item, env: Env) -> Any:
    """A hashable stand-in for an item whose equality is plain; None for those that must be compared pairwise."""
    env.spend(2)
    value = system(item)
    reading(env, value)
    if isinstance(value, Decimal):
        env.spend(_COMPUTING)
    if type(value) in (str, bool) or is_number(value):
        return (type(value) is bool, value)
    if isinstance(value, Node):
        return ("node", json_key(value.value, env.spend), json_key(value.extra, env.spend))
    return None


def distinct(items: Collection, env: Env) -> Collection:
    """The items without repeats (by equality), first ones kept."""
    if len(items) < 2:
        return items
    seen: set[Any] = set()
    fuzzy: Collection = []
    kept: Collection = []
    for item in items:
        mark = key(item, env)
        if mark is not None:
            if mark in seen:
                continue
            seen.add(mark)
        else:
            env.spend(len(fuzzy))
            plain = system(item)
            if any(same(plain, other, env) for other in fuzzy):
                continue
            fuzzy.append(plain)
        kept.append(item)
    return kept


def contains(items: Collection, wanted: Item, env: Env) -> bool:
    """Whether `wanted` equals an item of the collection."""
    env.spend(len(items))
    plain = system(wanted)
    return any(same(item, plain, env) for item in items)


# --- equivalence -----------------------------------------------------------------------------------------------------


def alike(left: Item, right: Item, env: Env) -> bool:
    """Equivalence of two items (6.1.2): case, spacing, order and extra precision do not count."""
    a, b = system(left), system(right)
    if type(a) is str and type(b) is str:
        # Normal forms take a hundred times as long as a look at the characters.
        env.spend((len(a) + len(b)) >> 2)
        return _plain_text(a) == _plain_text(b)
    if type(a) is bool or type(b) is bool:
        return type(a) is type(b) and a == b
    if is_number(a) and is_number(b):
        return values.alike_number(a, b)
    if isinstance(a, Temporal) and isinstance(b, Temporal):
        return values.alike_temporal(a, b)
    if isinstance(a, Quantity) or isinstance(b, Quantity):
        first, second = _as_quantity(a), _as_quantity(b)
        env.spend(2 * _CONVERTING)
        return first is not None and second is not None and values.alike_quantity(first, second, env.units)
    if isinstance(a, Node) and isinstance(b, Node):
        return _alike_nodes(a, b, env)
    return bool(a == b)


def _plain_text(value: str) -> str:
    return " ".join(unicodedata.normalize("NFC", value).casefold().split())


def _alike_nodes(a: Node, b: Node, env: Env) -> bool:
    env.spend(1)
    if is_a(a.type, "Coding") and is_a(b.type, "Coding") and isinstance(a.value, dict) and isinstance(b.value, dict):
        # R4: two Codings are equivalent when code and system are, whatever display and version say.
        return all(a.value.get(name) == b.value.get(name) for name in ("system", "code"))
    first, second = all_children(a), all_children(b)
    env.spend(len(first) + len(second))
    if not first and not second:
        return bool(a.value == b.value)
    for name in {child.key for child in (*first, *second)}:
        if not equivalent([c for c in first if c.key == name], [c for c in second if c.key == name], env):
            return False
    return True


def equivalent(left: Collection, right: Collection, env: Env) -> bool:
    """`~` on collections: same items in any order; two empty ones are equivalent."""
    if len(left) != len(right):
        return False
    rest = list(right)
    for item in left:
        env.spend(len(rest))
        for place, other in enumerate(rest):
            if alike(item, other, env):
                del rest[place]
                break
        else:
            return False
    return True


# --- order -----------------------------------------------------------------------------------------------------------


def order(left: Item, right: Item, env: Env) -> int | None:
    """-1, 0 or 1; None when open; FhirPathError when the two types have no common order."""
    a, b = system(left), system(right)
    reading(env, a)
    if (is_number(a) and is_number(b)) or (type(a) is str and type(b) is str):
        return int(a > b) - int(a < b)
    if isinstance(a, Temporal) and isinstance(b, Temporal) and (a.kind == "Time") == (b.kind == "Time"):
        return values.compare_temporal(a, b)
    env.spend(_CONVERTING)
    first, second = _as_quantity(a), _as_quantity(b)
    if first is not None and second is not None:
        return values.compare_quantity(first, second, env.units)
    raise FhirPathError(f"{type_of(left).name} and {type_of(right).name} have no common order")


_ORDERS: dict[str, Callable[[int], bool]] = {
    "<": lambda sign: sign < 0,
    "<=": lambda sign: sign <= 0,
    ">": lambda sign: sign > 0,
    ">=": lambda sign: sign >= 0,
}


def compare(op: str, left: Collection, right: Collection, env: Env) -> Collection:
    """`<`, `<=`, `>`, `>=`."""
    a, b = operand(left, f"the left side of {op}"), operand(right, f"the right side of {op}")
    if a is None or b is None:
        return []
    sign = order(a, b, env)
    return [] if sign is None else [_ORDERS[op](sign)]


# --- arithmetic ------------------------------------------------------------------------------------------------------


def arithmetic(op: str, left: Collection, right: Collection, env: Env) -> Collection:
    """`+ - * / div mod`; overflow and division by zero are empty."""
    a, b = operand(left, f"the left side of {op}"), operand(right, f"the right side of {op}")
    if a is None or b is None:
        return []
    a, b = system(a), system(b)
    env.spend(_COMPUTING)
    if is_number(a) and is_number(b):
        return _numbers(op, a, b)
    if op == "+" and type(a) is str and type(b) is str:
        room(env, len(a) + len(b))
        return [a + b]
    if isinstance(a, Temporal) and isinstance(b, Quantity) and op in "+-":
        return _moved(a, b, 1 if op == "+" else -1)
    first, second = _as_quantity(a), _as_quantity(b)
    if first is not None and second is not None:
        return _quantities(op, first, second, env)
    raise FhirPathError(f"{op} does not work on {type_of(left[0]).name} and {type_of(right[0]).name}")


def number(value: Decimal | int) -> Collection:
    """A numeric result: empty when an Integer leaves 32 bits or a Decimal is not finite or absurdly large."""
    if isinstance(value, Decimal):
        return [value] if values.sane(value) else []
    return [value] if -_INTEGER_LIMIT <= value < _INTEGER_LIMIT else []


def _numbers(op: str, a: Any, b: Any) -> Collection:
    whole = isinstance(a, int) and isinstance(b, int)
    if op in ("/", "div", "mod") and b == 0:
        return []
    if not whole or op == "/":
        a, b = Decimal(a), Decimal(b)
        if not (values.sane(a) and values.sane(b)):
            raise FhirPathError("a decimal beyond 60 digits cannot be computed with")
    if op == "+":
        return number(a + b if whole else MATHS.add(a, b))
    if op == "-":
        return number(a - b if whole else MATHS.subtract(a, b))
    if op == "*":
        return number(a * b if whole else MATHS.multiply(a, b))
    if op == "/":
        return number(MATHS.divide(a, b))
    if not whole:
        result = MATHS.divide_int(a, b) if op == "div" else MATHS.remainder(a, b)
        if not values.sane(result):
            return []
        return number(int(result)) if op == "div" else [result]
    quotient = abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)
    return number(quotient if op == "div" else a - b * quotient)


def _moved(moment: Temporal, amount: Quantity, sign: int) -> Collection:
    try:
        moved = values.add_duration(moment, amount, sign)
    except ValueError as problem:
        raise FhirPathError(str(problem)) from None
    return [] if moved is None else [moved]


def _quantities(op: str, a: Quantity, b: Quantity, env: Env) -> Collection:
    env.spend(2 * _CONVERTING)
    if op in "+-":
        # The result has the finer unit of the two: 3 'm' + 3 'cm' is 303 'cm'.
        step = values.convert(Quantity(Decimal(1), a.unit), b.unit, env.units)
        unit = b.unit if step is not None and step > 1 else a.unit
        left, right = values.convert(a, unit, env.units), values.convert(b, unit, env.units)
        if left is None or right is None:
            return []
        return quantity(MATHS.add(left, right) if op == "+" else MATHS.subtract(left, right), unit)
    if op == "*":
        return quantity(MATHS.multiply(a.value, b.value), _product(a.unit, b.unit))
    if op == "/":
        return quantity(MATHS.divide(a.value, b.value), _quotient(a.unit, b.unit)) if b.value != 0 else []
    raise FhirPathError(f"{op} does not work on quantities")


def quantity(value: Decimal, unit: str) -> Collection:
    """A quantity as a result: empty when its number is not finite or absurdly large.

    A unit longer than UCUM codes may be is an error: products of products would double it at every step.
    """
    if len(unit) > MAX_UNIT:
        raise FhirPathError(f"the result has a unit of more than {MAX_UNIT} characters")
    return [Quantity(value, unit)] if values.sane(value) else []


def _product(a: str, b: str) -> str:
    if "1" in (a, b):
        return b if a == "1" else a
    return f"{_grouped(a)}.{_grouped(b)}"


def _quotient(a: str, b: str) -> str:
    if b == "1":
        return a
    return "1" if a == b else f"{a}/{_grouped(b)}"


def _grouped(unit: str) -> str:
    return f"({unit})" if "/" in unit or "." in unit else unit


def negated(items: Collection) -> Collection:
    """Unary minus."""
    item = operand(items, "the minus sign")
    if item is None:
        return []
    value = system(item)
    if isinstance(value, Quantity):
        return [Quantity(value.value.copy_negate(), value.unit)]
    if is_number(value):
        return [value.copy_negate()] if isinstance(value, Decimal) else number(-value)
    raise FhirPathError(f"a minus sign cannot stand before a {type_of(item).name}")


def concatenated(left: Collection, right: Collection, env: Env) -> Collection:
    """`&`: strings joined, empty counts as ''."""
    parts = []
    for side in (left, right):
        item = operand(side, "&")
        value = "" if item is None else system(item)
        if type(value) is not str:
            raise FhirPathError(f"& joins strings, not {type_of(item).name}")
        parts.append(value)
    room(env, len(parts[0]) + len(parts[1]))
    return [parts[0] + parts[1]]


# --- logic -----------------------------------------------------------------------------------------------------------


def conjunction(left: bool | None, right: bool | None) -> bool | None:
    """`and` with unknown."""
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def disjunction(left: bool | None, right: bool | None) -> bool | None:
    """`or` with unknown."""
    if left is True or right is True:
        return True
    return None if left is None or right is None else False


def exclusive(left: bool | None, right: bool | None) -> bool | None:
    """`xor` with unknown."""
    return None if left is None or right is None else left != right


def implication(left: bool | None, right: bool | None) -> bool | None:
    """`implies` with unknown."""
    if left is False or right is True:
        return True
    return None if left is None or right is None else False


LOGIC: dict[str, Callable[[bool | None, bool | None], bool | None]] = {
    "and": conjunction,
    "or": disjunction,
    "xor": exclusive,
    "implies": implication,
}
