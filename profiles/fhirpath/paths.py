"""Expressions that are mere paths, turned into loops over JSON keys: no typed nodes, no scopes.

Nearly every search expression is one: `Patient.name.given`, `(Observation.value as Quantity) | ...`,
`Patient.telecom.where(system='email')`, `Task.for.where(resolve() is Patient)`. `routes` recognises them against the
model of one resource type; `runner` makes the loop. What it does not recognise (None) the engine evaluates in full.

Sources: https://hl7.org/fhir/R4/fhirpath.html, https://hl7.org/fhir/R4/searchparameter-registry.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from profiles import definitions
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.model import Property, is_a, known_type, properties, resolve_type
from profiles.fhirpath.syntax import Binary, Call, Constants, Either, Expr, Item, Member, TypeTest, type_name

Test = Callable[[Any], bool]


class Keys(NamedTuple):
    """A step to a child: its JSON spellings, one for each possible type."""

    options: tuple[Property, ...]


class Filter(NamedTuple):
    """A step that keeps the elements that pass; `spec` identifies the test (equal specs test the same)."""

    test: Test
    spec: tuple[str, ...]


class Pick(NamedTuple):
    """A step that keeps one element of the collection so far."""

    place: int


Step = Keys | Filter | Pick


@dataclass(frozen=True, slots=True)
class Route:
    """One way through the JSON; `options` are the possible properties (so types) at its end."""

    steps: tuple[Step, ...]
    options: tuple[Property, ...]


class _NotPlain(Exception):
    """The expression is more than a path."""


def routes(tree: Expr, resource_type: str, *, search: bool = False) -> tuple[Route, ...] | None:
    """The routes of an expression for one resource type, in union order; None when it is more than a path.

    `search` reads it as a search parameter does: `as` filters collections instead of refusing them, and
    `resolve() is T` is judged by the text of the reference. Elements of other resource types give no route.
    """
    if not known_type(resource_type):
        return None
    walk = _Walk(resource_type, search)
    parts = tree.parts if isinstance(tree, Either) else (tree,)
    try:
        return tuple(route for part in parts for route in walk.routes(part))
    except _NotPlain:
        return None


class _Walk:
    def __init__(self, resource_type: str, search: bool) -> None:
        self.root = Route((), (Property("", resource_type, resource_type, False, False),))
        self.type = resource_type
        self.search = search

    def routes(self, node: Expr) -> list[Route]:
        if isinstance(node, Either) and self.search:
            # Further in, a union would have to drop repeats on the way; index rows do not mind them.
            return [route for part in node.parts for route in self.routes(part)]
        if isinstance(node, Member):
            return self.member(node)
        if isinstance(node, TypeTest) and node.op == "as":
            return self.narrowed(self.routes(node.left), node.name, "as")
        if isinstance(node, Item):
            return self.item(node)
        if isinstance(node, Call):
            return self.call(node)
        raise _NotPlain

    def member(self, node: Member) -> list[Route]:
        if node.left is None:
            if known_type(node.name) and is_a(self.type, node.name):
                return [self.root]
            return self.extended([self.root], node.name)
        return self.extended(self.routes(node.left), node.name)

    def extended(self, before: list[Route], name: str) -> list[Route]:
        found: list[Route] = []
        for route in before:
            ways = []
            for option in route.options:
                if option.primitive or option.place == "Resource":
                    raise _NotPlain
                below = properties(option.place).get(name)
                if below:
                    ways.append((option, below))
            if len(ways) > 1 and not self.search:
                raise _NotPlain
            for option, below in ways:
                steps = _restricted(route.steps, (option,))
                found.append(Route((*steps, Keys(below)), below))
        return found

    def narrowed(self, before: list[Route], name: str, op: str) -> list[Route]:
        try:
            wanted = resolve_type(name)
        except FhirPathError:
            raise _NotPlain from None
        found: list[Route] = []
        for route in before:
            if op == "as" and not self.search and _many(route):
                raise _NotPlain
            if any(option.place == "Resource" for option in route.options):
                raise _NotPlain
            kept = tuple(o for o in route.options if wanted.namespace != "System" and is_a(o.type, wanted.name))
            if kept:
                found.append(Route(_restricted(route.steps, kept), kept))
        return found

    def item(self, node: Item) -> list[Route]:
        if isinstance(node.index, Constants) and len(node.index.values) == 1 and type(node.index.values[0]) is int:
            return self.picked(self.routes(node.left), node.index.values[0])
        raise _NotPlain

    def picked(self, before: list[Route], index: int) -> list[Route]:
        if len(before) > 1:
            raise _NotPlain
        return [Route((*route.steps, Pick(index)), route.options) for route in before]

    def call(self, node: Call) -> list[Route]:
        before = self.routes(node.left) if node.left is not None else [self.root]
        if node.name in ("as", "ofType") and len(node.args) == 1:
            return self.narrowed(before, type_name(node.args[0]), node.name)
        if node.name == "where" and len(node.args) == 1:
            return [self.filtered(route, node.args[0]) for route in before]
        if node.name == "extension" and len(node.args) == 1:
            url = _text(node.args[0])
            return [_with(route, _field_is("url", url)) for route in self.extended(before, "extension")]
        if node.name == "first" and not node.args:
            return self.picked(before, 0)
        raise _NotPlain

    def filtered(self, route: Route, criterion: Expr) -> Route:
        if isinstance(criterion, Binary) and criterion.op == "=":
            return _with(route, _field_filter(route, criterion))
        if self.search and isinstance(criterion, TypeTest) and criterion.op == "is":
            target = criterion.left
            resolves = isinstance(target, Call) and target.left is None and target.name == "resolve"
            plain = criterion.name in definitions.resource_types() and not any(o.primitive for o in route.options)
            if resolves and plain:
                return _with(route, Filter(_refers_to(criterion.name), ("refers", criterion.name)))
        raise _NotPlain


def _with(route: Route, test: Filter) -> Route:
    return Route((*route.steps, test), route.options)


def _restricted(steps: tuple[Step, ...], options: tuple[Property, ...]) -> tuple[Step, ...]:
    """The steps with the last key step narrowed to `options` (the root has none)."""
    for place in range(len(steps) - 1, -1, -1):
        if isinstance(steps[place], Keys):
            return (*steps[:place], Keys(options), *steps[place + 1 :])
    return steps


def _many(route: Route) -> bool:
    return any(option.many for step in route.steps if isinstance(step, Keys) for option in step.options)


def _text(node: Expr) -> str:
    if isinstance(node, Constants) and len(node.values) == 1 and isinstance(node.values[0], str):
        return node.values[0]
    raise _NotPlain


def _field_filter(route: Route, criterion: Binary) -> Filter:
    """`where(field = 'text')` for a field that is one string-like primitive at every end of the route."""
    if not isinstance(criterion.left, Member) or criterion.left.left is not None:
        raise _NotPlain
    wanted, field = _text(criterion.right), criterion.left.name
    for option in route.options:
        below = properties(option.place).get(field, ()) if option.place != "Resource" else ()
        if len(below) != 1 or not below[0].primitive or below[0].many:
            raise _NotPlain
        if below[0].type not in ("string", "code", "uri", "url", "canonical", "id", "oid", "uuid", "markdown"):
            raise _NotPlain
    return _field_is(field, wanted)


def _field_is(field: str, wanted: str) -> Filter:
    return Filter(lambda element: element.get(field) == wanted, ("field", field, wanted))


# --- references judged by their text ---------------------------------------------------------------------------------

_REFERENCE = re.compile(r"(?:(.*)/)?([A-Z][A-Za-z]{1,63})/([A-Za-z0-9\-.]{1,64})(?:/_history/[A-Za-z0-9\-.]{1,64})?")


def split_reference(text: str) -> tuple[str, str, str] | None:
    """(server base or '', type, id) of `Patient/1`, `http://h/fhir/Patient/1/_history/2`; None for other texts.

    The version is dropped; the base has no slash at its end.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or match[2] not in definitions.resource_types():
        return None
    return match[1] or "", match[2], match[3]


def _refers_to(wanted: str) -> Test:
    """Whether a Reference points to a resource of type `wanted`, as its own text says.

    A reference that does not say (an identifier alone, a `urn:uuid:`, a contained resource) is not taken for one.
    """

    def test(element: Any) -> bool:
        said = element.get("type")
        if said is not None:
            return bool(said == wanted)
        text = element.get("reference")
        found = split_reference(text) if isinstance(text, str) else None
        return found is not None and found[1] == wanted

    return test


# --- running ---------------------------------------------------------------------------------------------------------


def runner(ways: tuple[Route, ...], *, distinct: bool) -> Callable[[dict[str, Any]], list[Any]]:
    """The loop over the JSON of one resource: its values as plain JSON, without repeats when `distinct` (a union).

    Raises AttributeError or TypeError for JSON of another shape than the model's; then the engine decides.
    """
    if not ways:
        return lambda resource: []
    if not distinct:
        return _single(ways[0])
    singles = [_single(way) for way in ways]

    def union(resource: dict[str, Any]) -> list[Any]:
        found: list[Any] = []
        for single in singles:
            found += single(resource)
        return found if len(found) < 2 else distinct_json(found)

    return union


def _single(way: Route) -> Callable[[dict[str, Any]], list[Any]]:
    if all(isinstance(step, Keys) and len(step.options) == 1 for step in way.steps):
        return _plain_keys(tuple(step.options[0].json for step in way.steps if isinstance(step, Keys)))
    return _stepwise(way.steps)


def _plain_keys(keys: tuple[str, ...]) -> Callable[[dict[str, Any]], list[Any]]:
    if not keys:
        return lambda resource: [resource]
    first, *rest = keys

    def run(resource: dict[str, Any]) -> list[Any]:
        value = resource.get(first)
        if value is None:
            return []
        level: list[Any] = value if type(value) is list else [value]
        for key in rest:
            below: list[Any] = []
            for element in level:
                value = element.get(key)
                if value is None:
                    continue
                if type(value) is list:
                    below += value
                else:
                    below.append(value)
            level = below
        return [value for value in level if value is not None] if None in level else list(level)

    return run


def _stepwise(steps: tuple[Step, ...]) -> Callable[[dict[str, Any]], list[Any]]:
    plan = [
        (tuple(option.json for option in step.options), None, 0) if isinstance(step, Keys)
        else (None, step.test, 0) if isinstance(step, Filter)
        else (None, None, step.place)
        for step in steps
    ]  # fmt: skip

    def run(resource: dict[str, Any]) -> list[Any]:
        level: list[Any] = [resource]
        for keys, test, index in plan:
            if keys is not None:
                below: list[Any] = []
                for element in level:
                    for key in keys:
                        value = element.get(key)
                        if value is None:
                            continue
                        if type(value) is list:
                            below += value
                        else:
                            below.append(value)
                level = below
            elif test is not None:
                level = [element for element in level if element is not None and test(element)]
            else:
                level = level[index : index + 1] if index >= 0 else []
            if not level:
                return level
        return [value for value in level if value is not None]

    return run


# --- sameness of plain JSON ------------------------------------------------------------------------------------------


def _free(amount: int) -> None:
    """For who may look at everything."""


def json_key(value: Any, pay: Callable[[int], None] = _free) -> Any:
    """A hashable stand-in: two JSON values have equal keys when they are the same content, key order aside.

    `pay` hears beforehand of the members that are looked at, and may refuse.
    """
    if isinstance(value, dict):
        pay(2 * len(value) + 1)
        return ("{", frozenset((name, json_key(inner, pay)) for name, inner in value.items()))
    if isinstance(value, list):
        pay(2 * len(value) + 1)
        return ("[", tuple(json_key(inner, pay) for inner in value))
    if isinstance(value, bool):
        return ("b", value)
    if isinstance(value, (int, Decimal)):
        return ("n", value)
    return value


def distinct_json(values: list[Any]) -> list[Any]:
    """The values without repeats, first ones kept."""
    seen: set[Any] = set()
    kept: list[Any] = []
    for value in values:
        key = value if type(value) is str else json_key(value)
        if key not in seen:
            seen.add(key)
            kept.append(value)
    return kept
