"""The tree that all search expressions of a resource type are merged into, and the walk of a resource along it.

Hides why extraction is fast: a resource is walked once, along its own content; a value is converted once for all
parameters that want it; a place where nothing goes on costs no call of its own; composites are made where the element
that holds both values stands, from rows already made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhir_server import errors
from fhir_server.search import composites, extract, measures
from fhir_server.search.rows import Emit, IndexRows
from profiles import definitions
from profiles.fhirpath import paths
from profiles.fhirpath.model import Property

MAX_ROWS = 200_000
Sink = tuple[Emit, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Rows of one id: `type` of search, `of_type` the id of the rows for :of-type, `targets` of a reference."""

    pid: int
    type: str
    targets: tuple[str, ...] = ()
    of_type: int = 0


class Place:
    """A place of the tree: what to do with a value that gets here, and where its children lead.

    `steps` is what a walk reads, made by `settle`: for each key the sinks of a mere leaf (else None), and the place.
    """

    __slots__ = ("edges", "filters", "picks", "sinks", "steps")

    def __init__(self) -> None:
        self.edges: dict[str, Place] = {}
        self.filters: list[tuple[paths.Test, Place, tuple[str, ...]]] = []
        self.picks: list[tuple[int, Place]] = []
        self.sinks: list[Sink] = []
        self.steps: dict[str, tuple[tuple[Sink, ...] | None, Place]] = {}

    def settle(self) -> None:
        """Call once when nothing more is planted."""
        for _, below, _ in self.filters:
            below.settle()
        for _, below in self.picks:
            below.settle()
        for key, below in self.edges.items():
            below.settle()
            leaf = not (below.edges or below.filters or below.picks)
            self.steps[key] = (tuple(below.sinks) if leaf else None, below)


def walk(place: Place, value: Any, found: IndexRows, zone: str) -> None:
    """Adds the rows of a value that stands at `place`."""
    for emit, pids in place.sinks:
        emit(found, pids, value, zone)
    if type(value) is not dict:
        return
    if place.filters:
        for test, filtered, spec in place.filters:
            if test(value) or (found.inside and _refers_inside(spec, value, found.inside)):
                walk(filtered, value, found, zone)
    steps = place.steps
    if not steps:
        return
    for key, inner in value.items():
        step = steps.get(key)
        if step is None:
            continue
        sinks, below = step
        if type(inner) is not list:
            if inner is None:
                continue
            if sinks is None:
                walk(below, inner, found, zone)
            else:
                for emit, pids in sinks:
                    emit(found, pids, inner, zone)
            continue
        for element in inner:
            if element is None:
                continue
            if sinks is None:
                walk(below, element, found, zone)
            else:
                for emit, pids in sinks:
                    emit(found, pids, element, zone)
        if below.picks:
            for index, picked in below.picks:
                if index < len(inner) and inner[index] is not None:
                    walk(picked, inner[index], found, zone)
        if len(inner) > 64:
            check(found)


def _refers_inside(spec: tuple[str, ...], value: Mapping[str, Any], inside: Mapping[str, str]) -> bool:
    """Whether `resolve() is T` holds because a contained resource is a T, which the reference alone does not say."""
    text = value.get("reference")
    return spec[0] == "refers" and type(text) is str and text[:1] == "#" and inside.get(text[1:]) == spec[1]


def check(found: IndexRows) -> None:
    """errors.TooLarge for more rows than one resource may have."""
    total = len(found.string) + len(found.token) + len(found.date) + len(found.number) + len(found.quantity)
    total += len(found.reference) + len(found.uri) + len(found.coords)
    if total > MAX_ROWS:
        raise errors.TooLarge(f"This resource has more than {MAX_ROWS} searchable values; split it.")


# --- planting --------------------------------------------------------------------------------------------------------

Plan = dict[Place, dict[extract.Want, list[int]]]


def root_of(resource_type: str) -> Property:
    """The property a resource of this type is."""
    return Property("", resource_type, resource_type, False, False)


def plant(root: Place, plan: Plan, ways: Iterable[paths.Route], start: Property, wanted: Wanted) -> None:
    """Notes in `plan` what is wanted at the end of each way from `root`."""
    for way in ways:
        for place, option, owner in _planted(root, way, start):
            for want, pid in _wants(wanted, option, owner):
                plan.setdefault(place, {}).setdefault(want, []).append(pid)


def sink(plan: Plan) -> None:
    """What is wanted at each place as functions to call there."""
    for place, wants in plan.items():
        for want, pids in wants.items():
            emit = extract.emitter(want)
            if emit is not None:
                place.sinks.append((emit, tuple(dict.fromkeys(pids))))


def plant_composites(root: Place, whole: Property, known: Iterable[composites.Composite]) -> None:
    """At each element that holds the values of some composites: one small tree for the values of all of them."""
    held: dict[Place, tuple[dict[int, int], set[str], Place, Plan]] = {}
    for composite in known:
        for context in composite.contexts:
            for place, option, _ in _planted(root, context.way, whole):
                bases, tables, inner, plan = held.setdefault(place, ({}, set(), Place(), {}))
                if context.base in bases:
                    continue  # the same pair under another name
                bases[context.base] = codes = hash_of_codes(context)
                tables.add("coords" if context.other.type == "special" else context.other.type)
                plant(inner, plan, context.code.ways, option, Wanted(codes, context.code.type))
                if context.other.ends is None:
                    other = Wanted(context.base, context.other.type)
                    plant(inner, plan, context.other.ways, option, other)
                else:
                    emit, ways = measures.span(*context.other.ends), context.other.ways
                    for end in (end for way in ways for end, _, _ in _planted(inner, way, option)):
                        end.sinks.append((emit, (context.base,)))
    for place, (bases, tables, inner, plan) in held.items():
        sink(plan)
        inner.settle()
        place.sinks.append((_paired(bases, tuple(sorted(tables)), inner), ()))


def hash_of_codes(context: composites.Context) -> int:
    """The id that the codes of an element have while its pairs are made: one for all that take the same codes."""
    return composites.hash63(f"codes of {context.code}")


def _paired(bases: Mapping[int, int], tables: Sequence[str], inner: Place) -> Emit:
    """The rows of composites: each code of the element beside each other value of it."""

    def emit(found: IndexRows, pids: tuple[int, ...], value: Any, zone: str) -> None:
        seen = IndexRows()
        walk(inner, value, seen, zone)
        by_code: dict[int, list[tuple[str, str]]] = {}
        for one, system, code, _ in seen.token:
            if code and one not in bases:
                by_code.setdefault(one, []).append((system, code))
        if not by_code:
            return
        for name in tables:
            rows = getattr(found, name)
            for row in getattr(seen, name):
                codes = by_code.get(bases.get(row[0], 0), ())
                for system, code in codes:
                    rest = row[1:]
                    rows.append((composites.pid(row[0], system, code), *rest))
                    rows.append((composites.pid(row[0], None, code), *rest))

    return emit


def _wants(wanted: Wanted, option: Property, owner: str) -> list[tuple[extract.Want, int]]:
    """What a parameter makes of a property: the rows of its type, and for identifiers those of :of-type."""
    value_set = ""
    if wanted.type == "token" and option.type == "code":
        element = definitions.children(owner)[option.json].element
        value_set = element.binding_value_set if element.binding_strength == "required" else ""
    targets = wanted.targets if option.type == "Resource" else ()
    found = [(extract.Want(wanted.type, option.type, value_set, targets), wanted.pid)]
    if wanted.of_type and option.type == "Identifier":
        found.append((extract.Want("of-type", option.type), wanted.of_type))
    return found


def _planted(root: Place, way: paths.Route, start: Property) -> list[tuple[Place, Property, str]]:
    """The places at the end of a route, made where they are missing; each with its property and what holds it."""
    ends: list[tuple[Place, Property, str]] = [(root, start, "")]
    for step in way.steps:
        following: list[tuple[Place, Property, str]] = []
        for place, option, owner in ends:
            if isinstance(step, paths.Keys):
                for child in step.options:
                    below = place.edges.setdefault(child.json, Place())
                    following.append((below, child, option.place))
            elif isinstance(step, paths.Filter):
                following.append((_filtered(place, step), option, owner))
            else:
                picked = Place()
                place.picks.append((step.place, picked))
                following.append((picked, option, owner))
        ends = following
    return ends


def _filtered(place: Place, step: paths.Filter) -> Place:
    for _, below, spec in place.filters:
        if spec == step.spec:
            return below
    below = Place()
    place.filters.append((step.test, below, step.spec))
    return below
