"""The function library: existence, filtering, subsetting, combining, tree walking, types; and the table of all.

Sources: http://hl7.org/fhirpath/N1/ sections 5.1-5.4, 5.8, 5.9, 6.3, 7, 10; sort() is of the 3.0 draft.
"""

from __future__ import annotations

from collections import deque
from functools import cmp_to_key
from typing import Any

from profiles import definitions
from profiles.fhirpath import functions_fhir, functions_text, functions_value, operators
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.model import Collection, Node, TypeInfo, all_children, matches, system, type_of
from profiles.fhirpath.paths import split_reference
from profiles.fhirpath.scope import Closure, Function, Scope, each, single
from profiles.fhirpath.values import Temporal, temporal

# --- existence -------------------------------------------------------------------------------------------------------


def _empty(scope: Scope, items: Collection) -> Collection:
    return [not items]


def _exists(scope: Scope, items: Collection, criterion: Closure | None = None) -> Collection:
    if criterion is None:
        return [bool(items)]
    return [any(_holds(scope, item, index, criterion) for index, item in enumerate(items))]


def _holds(scope: Scope, item: Any, index: int, criterion: Closure) -> bool:
    return operators.boolean(criterion(each(scope, item, index)), "a criterion") is True


def _all(scope: Scope, items: Collection, criterion: Closure) -> Collection:
    return [all(_holds(scope, item, index, criterion) for index, item in enumerate(items))]


def _not(scope: Scope, items: Collection) -> Collection:
    answer = operators.boolean(items, "not()")
    return [] if answer is None else [not answer]


def _booleans(items: Collection, name: str) -> list[bool]:
    values = [system(item) for item in items]
    for value, item in zip(values, items, strict=True):
        if type(value) is not bool:
            raise FhirPathError(f"{name}() takes booleans, not {type_of(item).name}")
    return values


def _all_true(scope: Scope, items: Collection) -> Collection:
    return [all(_booleans(items, "allTrue"))]


def _any_true(scope: Scope, items: Collection) -> Collection:
    return [any(_booleans(items, "anyTrue"))]


def _all_false(scope: Scope, items: Collection) -> Collection:
    return [not any(_booleans(items, "allFalse"))]


def _any_false(scope: Scope, items: Collection) -> Collection:
    return [not all(_booleans(items, "anyFalse"))]


def _within(scope: Scope, items: Collection, other: Collection) -> bool:
    env = scope.env
    known = {mark for mark in (operators.key(item, env) for item in other) if mark is not None}
    for item in items:
        mark = operators.key(item, env)
        if not (mark in known if mark is not None else operators.contains(other, item, env)):
            return False
    return True


def _subset_of(scope: Scope, items: Collection, other: Closure) -> Collection:
    return [_within(scope, items, other(scope))]


def _superset_of(scope: Scope, items: Collection, other: Closure) -> Collection:
    return [_within(scope, other(scope), items)]


def _count(scope: Scope, items: Collection) -> Collection:
    return [len(items)]


def _distinct(scope: Scope, items: Collection) -> Collection:
    return operators.distinct(items, scope.env)


def _is_distinct(scope: Scope, items: Collection) -> Collection:
    return [len(operators.distinct(items, scope.env)) == len(items)]


# --- filtering and projection ----------------------------------------------------------------------------------------


def _where(scope: Scope, items: Collection, criterion: Closure) -> Collection:
    return [item for index, item in enumerate(items) if _holds(scope, item, index, criterion)]


def _select(scope: Scope, items: Collection, projection: Closure) -> Collection:
    found: Collection = []
    for index, item in enumerate(items):
        part = projection(each(scope, item, index))
        scope.env.spend(len(part))
        found += part
    return found


def _repeat(scope: Scope, items: Collection, projection: Closure) -> Collection:
    env = scope.env
    found: Collection = []
    seen: set[Any] = set()
    pending = deque(enumerate(items))
    while pending:
        index, item = pending.popleft()
        for child in projection(each(scope, item, index)):
            mark = operators.key(child, env)
            if mark in seen if mark is not None else operators.contains(found, child, env):
                continue
            seen.add(mark)
            found.append(child)
            pending.append((len(found) - 1, child))
    return found


def _aggregate(scope: Scope, items: Collection, step: Closure, start: Closure | None = None) -> Collection:
    total: Collection = start(scope) if start is not None else []
    for index, item in enumerate(items):
        turn = each(scope, item, index)
        turn.total = total
        total = step(turn)
    return total


def _sort(scope: Scope, items: Collection, keys: list[tuple[Closure, bool]]) -> Collection:
    """Items without a key come first, in both directions."""
    rows = []
    for index, item in enumerate(items):
        turn = each(scope, item, index)
        marks = [single(key(turn), "a sort key") for key, _ in keys] if keys else [item]
        rows.append((marks, item))
    downwards = [down for _, down in keys] or [False]

    def compare(left: tuple[list[Any], Any], right: tuple[list[Any], Any]) -> int:
        scope.env.spend(2)
        for a, b, down in zip(left[0], right[0], downwards, strict=True):
            if a is None or b is None:
                sign = (b is None) - (a is None)
            else:
                sign = (operators.order(a, b, scope.env) or 0) * (-1 if down else 1)
            if sign:
                return sign
        return 0

    return [item for _, item in sorted(rows, key=cmp_to_key(compare))]


def _iif(
    scope: Scope, items: Collection, criterion: Closure, then: Closure, otherwise: Closure | None = None
) -> Collection:
    single(items, "iif()")
    # Called on an item, its arguments see that item as $this; called bare, the focus stays as it is.
    inner = scope if items is scope.this else Scope(scope.env, items, scope.index, scope.total)
    if operators.boolean(criterion(inner), "the criterion of iif()"):
        return then(inner)
    return otherwise(inner) if otherwise is not None else []


# --- types -----------------------------------------------------------------------------------------------------------


def is_type(items: Collection, wanted: TypeInfo) -> Collection:
    """`is`: empty for no item, an error for more than one."""
    item = single(items, "is")
    return [] if item is None else [matches(item, wanted)]


def as_type(items: Collection, wanted: TypeInfo) -> Collection:
    """`as`: the item when it is of the type; an error for more than one."""
    item = single(items, "as")
    return [item] if item is not None and matches(item, wanted) else []


def of_type(items: Collection, wanted: TypeInfo) -> Collection:
    """The items of the type or of one derived from it."""
    return [item for item in items if matches(item, wanted)]


def _type(scope: Scope, items: Collection) -> Collection:
    return [type_of(item) for item in items]


def resolve_or_guess(scope: Scope, items: Collection) -> Collection:
    """resolve() for search: a reference nobody resolves stands for a resource of the type its text names."""
    found: Collection = []
    for item in items:
        known = functions_fhir.resolve(scope, [item])
        if not known and isinstance(item, Node) and type(item.value) is dict:
            said = item.value.get("type")
            split = split_reference(str(item.value.get("reference") or ""))
            name = said if isinstance(said, str) else split[1] if split else ""
            if name in definitions.resource_types():
                known = [Node({"resourceType": name}, name, name)]
        found += known
    return found


# --- subsetting and combining ----------------------------------------------------------------------------------------


def _integer(scope: Scope, closure: Closure, what: str) -> int | None:
    item = single(closure(scope), what)
    if item is None:
        return None
    value = system(item)
    if type(value) is not int:
        raise FhirPathError(f"{what} is an Integer, not {type_of(item).name}")
    return value


def _single(scope: Scope, items: Collection) -> Collection:
    single(items, "single()")
    return items


def _first(scope: Scope, items: Collection) -> Collection:
    return items[:1]


def _last(scope: Scope, items: Collection) -> Collection:
    return items[-1:]


def _tail(scope: Scope, items: Collection) -> Collection:
    return items[1:]


def _skip(scope: Scope, items: Collection, number: Closure) -> Collection:
    count = _integer(scope, number, "the number of skip()")
    return [] if count is None else items[max(0, count) :]


def _take(scope: Scope, items: Collection, number: Closure) -> Collection:
    count = _integer(scope, number, "the number of take()")
    return [] if count is None else items[: max(0, count)]


def _filtered(scope: Scope, items: Collection, other: Collection, keep: bool) -> Collection:
    env = scope.env
    known = {mark for mark in (operators.key(item, env) for item in other) if mark is not None}
    kept: Collection = []
    for item in items:
        mark = operators.key(item, env)
        if (mark in known if mark is not None else operators.contains(other, item, env)) is keep:
            kept.append(item)
    return kept


def _intersect(scope: Scope, items: Collection, other: Closure) -> Collection:
    return operators.distinct(_filtered(scope, items, other(scope), True), scope.env)


def _exclude(scope: Scope, items: Collection, other: Closure) -> Collection:
    return _filtered(scope, items, other(scope), False)


def _union(scope: Scope, items: Collection, other: Closure) -> Collection:
    return operators.distinct(items + other(scope), scope.env)


def _combine(scope: Scope, items: Collection, other: Closure) -> Collection:
    both = items + other(scope)
    scope.env.spend(len(both))
    return both


# --- tree ------------------------------------------------------------------------------------------------------------


def _children(scope: Scope, items: Collection) -> Collection:
    found: Collection = []
    for item in items:
        if isinstance(item, Node):
            below = all_children(item)
            scope.env.spend(len(below) + 1)
            found += below
    return found


def _descendants(scope: Scope, items: Collection) -> Collection:
    found: Collection = []
    pending: deque[Any] = deque(items)
    while pending:
        item = pending.popleft()
        if isinstance(item, Node):
            below = all_children(item)
            scope.env.spend(len(below) + 1)
            found += below
            pending.extend(below)
    return found


# --- utility ---------------------------------------------------------------------------------------------------------


def _trace(scope: Scope, items: Collection, name: Closure, projection: Closure | None = None) -> Collection:
    label = functions_text.string(scope, name, "the name of trace()")
    if scope.env.trace is not None:
        shown = items if projection is None else _select(scope, items, projection)
        scope.env.trace(label or "", shown)
    return items


# What the present instant costs, from clock to value.
_CLOCK = 8


def _now(scope: Scope, items: Collection) -> Collection:
    scope.env.spend(_CLOCK)
    return [temporal(scope.env.now.isoformat(timespec="milliseconds"), "DateTime")]


def _today(scope: Scope, items: Collection) -> Collection:
    scope.env.spend(_CLOCK)
    return [temporal(scope.env.now.date().isoformat(), "Date")]


def _time_of_day(scope: Scope, items: Collection) -> Collection:
    scope.env.spend(_CLOCK)
    moment = scope.env.now
    found: Temporal | None = temporal(moment.time().isoformat(timespec="milliseconds"), "Time")
    return [found]


FUNCTIONS: dict[str, Function] = {
    "empty": Function(_empty),
    "exists": Function(_exists, 0, 1),
    "all": Function(_all, 1, 1),
    "not": Function(_not),
    "allTrue": Function(_all_true),
    "anyTrue": Function(_any_true),
    "allFalse": Function(_all_false),
    "anyFalse": Function(_any_false),
    "subsetOf": Function(_subset_of, 1, 1),
    "supersetOf": Function(_superset_of, 1, 1),
    "count": Function(_count),
    "distinct": Function(_distinct),
    "isDistinct": Function(_is_distinct),
    "where": Function(_where, 1, 1),
    "select": Function(_select, 1, 1),
    "repeat": Function(_repeat, 1, 1),
    "aggregate": Function(_aggregate, 1, 2),
    "sort": Function(_sort, 0, 16, "sort"),
    "iif": Function(_iif, 2, 3),
    "is": Function(is_type, 1, 1, "type"),
    "as": Function(as_type, 1, 1, "type"),
    "ofType": Function(of_type, 1, 1, "type"),
    "type": Function(_type),
    "single": Function(_single),
    "first": Function(_first),
    "last": Function(_last),
    "tail": Function(_tail),
    "skip": Function(_skip, 1, 1),
    "take": Function(_take, 1, 1),
    "intersect": Function(_intersect, 1, 1),
    "exclude": Function(_exclude, 1, 1),
    "union": Function(_union, 1, 1),
    "combine": Function(_combine, 1, 1),
    "children": Function(_children),
    "descendants": Function(_descendants),
    "trace": Function(_trace, 1, 2),
    "now": Function(_now),
    "today": Function(_today),
    "timeOfDay": Function(_time_of_day),
    **functions_text.FUNCTIONS,
    **functions_value.FUNCTIONS,
    **functions_fhir.FUNCTIONS,
}
