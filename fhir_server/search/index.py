"""Index rows of a resource, and the table of search parameters of each type.

Hides how SearchParameter expressions become a walk: all expressions of a resource type are merged into one tree of JSON
keys, so that a resource is walked once, along its own content, and each value is converted once for all parameters that
want it. The few expressions that are no mere path run on the FHIRPath engine.

Sources: https://hl7.org/fhir/R4/search.html#ptypes, https://hl7.org/fhir/R4/searchparameter-registry.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from fhir_server import errors
from fhir_server.search import composites, extract
from fhir_server.search.plan import ParamType
from fhir_server.search.rows import IndexRows
from profiles import definitions
from profiles.fhirpath import engine, paths
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.model import Property

# Changes with the meaning of the rows: every parameter gets a new id, and a reindex.
EXTRACTOR = "2"
MAX_ROWS = 200_000

# Parameters without rows: columns of the resource table, or asked of other parts of the server.
COLUMNS = frozenset(("_id", "_lastUpdated"))
_ELSEWHERE = frozenset(("_text", "_content", "_filter", "_query", "phonetic"))

Emit = Callable[[IndexRows, tuple[int, ...], Any, str], None]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A search parameter of a type: `pid` identifies its index rows (0: a column); `targets` the types it refers to.

    `of_type` is the id of the rows for the modifier :of-type (0: none); `composite` says how the values of a
    composite are found (None: of another type, or not searched by).
    """

    pid: int
    code: str
    type: ParamType
    targets: tuple[str, ...] = ()
    url: str = ""
    expression: str = ""
    of_type: int = 0
    composite: composites.Composite | None = None


def pid(resource_type: str, code: str) -> int:
    """The id of a parameter's index rows: a positive 63-bit number; 0 for `_id` and `_lastUpdated`, which are columns.

    Parameters that share a SearchParameter (`Patient.birthdate`, `Person.birthdate`) share the id. KeyError when the
    type has no such parameter.
    """
    return parameters(resource_type)[code].pid


@cache
def parameters(resource_type: str) -> Mapping[str, Parameter]:
    """Code -> parameter, of one resource type (also the abstract `Resource` and `DomainResource`)."""
    found: dict[str, Parameter] = {}
    for definition in definitions.search_parameters(resource_type):
        if definition.code not in _ELSEWHERE and definition.expression and definition.code not in found:
            found[definition.code] = _parameter(definition, resource_type)
    return MappingProxyType(found)


def _parameter(definition: definitions.SearchParameter, resource_type: str) -> Parameter:
    identity = f"{definition.url}|{definition.expression}|{EXTRACTOR}"
    composite = definition.type == "composite"
    return Parameter(
        pid=0 if definition.code in COLUMNS else hash63(identity),
        code=definition.code,
        type=definition.type,  # type: ignore[arg-type]
        targets=_targets(definition, resource_type) if definition.type == "reference" else (),
        url=definition.url,
        expression=definition.expression,
        of_type=hash63(f"{identity}|of-type") if definition.type == "token" else 0,
        composite=composites.analysed(resource_type, definition.expression, definition.components)
        if composite
        else None,
    )


def _targets(definition: definitions.SearchParameter, resource_type: str) -> tuple[str, ...]:
    """The types a reference parameter leads to from this type: by its elements, its definition and resolve() is X."""
    ways = paths.routes(engine.compile(definition.expression, search=True).tree, resource_type, search=True)
    found: set[str] = set()
    for way in ways or ():
        refers = {step.spec[1] for step in way.steps if isinstance(step, paths.Filter) and step.spec[0] == "refers"}
        found |= refers or set(_element_targets(way, resource_type)) or set(definition.targets)
    if "Resource" in found:
        found = set(definitions.resource_types())
    allowed = set(definition.targets)
    return tuple(sorted(found & allowed if found & allowed else found or allowed))


def _element_targets(way: paths.Route, resource_type: str) -> tuple[str, ...]:
    owner, found = resource_type, list[str]()
    for step in way.steps:
        if isinstance(step, paths.Keys):
            children = definitions.children(owner)
            found = [t for o in step.options for t in (*children[o.json].element.targets, *_canonicals(children, o))]
            owner = step.options[0].place
    return tuple(found)


def _canonicals(children: Mapping[str, definitions.Child], option: Property) -> tuple[str, ...]:
    return children[option.json].element.canonicals if option.type in ("canonical", "uri") else ()


def hash63(text: str) -> int:
    """A positive 63-bit number, the same for the same text on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1


def rows(resource: Mapping[str, Any], *, zone: str = "Europe/Paris") -> IndexRows:
    """The index rows of a resource (scopes left empty), without repeats.

    `zone` is the IANA time zone of dates that say none. Raises errors.Invalid for an unknown resource type and
    errors.TooLarge beyond 200,000 rows. Values that are not what the model says are left out.
    """
    kind = resource.get("resourceType")
    if not isinstance(kind, str) or kind not in definitions.resource_types():
        raise errors.Invalid(f"{kind!r} is no resource type of FHIR R4.", expression="resourceType")
    tree = _tree(kind)
    found = IndexRows()
    _walk(tree.root, resource, found, zone)
    for parameter, compiled, emit in tree.computed:
        _compute(parameter, compiled, emit, resource, found, zone)
    _check(found)
    for name in _LISTS:
        kept = getattr(found, name)
        if len(kept) > 1:
            setattr(found, name, list(dict.fromkeys(kept)))
    return found


_LISTS = ("string", "token", "date", "number", "quantity", "reference", "uri", "coords")


def _check(found: IndexRows) -> None:
    total = sum(len(getattr(found, name)) for name in _LISTS)
    if total > MAX_ROWS:
        raise errors.TooLarge(f"This resource has more than {MAX_ROWS} searchable values; split it.")


def _compute(
    parameter: Parameter,
    compiled: engine.Compiled,
    emit: Emit,
    resource: Mapping[str, Any],
    found: IndexRows,
    zone: str,
) -> None:
    try:
        values = compiled(resource)
    except FhirPathError:
        return  # the resource is not what the expression expects: nothing to find it by
    for value in values:
        emit(found, (parameter.pid,), value, zone)


# --- the walk --------------------------------------------------------------------------------------------------------


class _Place:
    """A place of the tree: what to do with a value that gets here, and where its children lead."""

    __slots__ = ("edges", "filters", "picks", "sinks")

    def __init__(self) -> None:
        self.edges: dict[str, _Place] = {}
        self.filters: list[tuple[paths.Test, _Place, tuple[str, ...]]] = []
        self.picks: list[tuple[int, _Place]] = []
        self.sinks: list[tuple[Emit, tuple[int, ...]]] = []


@dataclass(frozen=True, slots=True)
class _Tree:
    root: _Place
    computed: tuple[tuple[Parameter, engine.Compiled, Emit], ...]


def _walk(place: _Place, value: Any, found: IndexRows, zone: str) -> None:
    for emit, pids in place.sinks:
        emit(found, pids, value, zone)
    for test, below, _ in place.filters:
        if type(value) is dict and test(value):
            _walk(below, value, found, zone)
    edges = place.edges
    if not edges or type(value) is not dict:
        return
    for key, inner in value.items():
        next_place = edges.get(key)
        if next_place is None:
            continue
        if type(inner) is list:
            for element in inner:
                if element is not None:
                    _walk(next_place, element, found, zone)
            if next_place.picks:
                for index, picked in next_place.picks:
                    if index < len(inner) and inner[index] is not None:
                        _walk(picked, inner[index], found, zone)
            if len(inner) > 64:
                _check(found)
        elif inner is not None:
            _walk(next_place, inner, found, zone)


@cache
def _tree(resource_type: str) -> _Tree:
    root, whole = _Place(), Property("", resource_type, resource_type, False, False)
    wanted: _Wanted = {}
    computed: list[tuple[Parameter, engine.Compiled, Emit]] = []
    for parameter in parameters(resource_type).values():
        if parameter.pid == 0 or parameter.type == "composite":
            continue
        compiled = engine.compile(parameter.expression, search=True)
        ways = paths.routes(compiled.tree, resource_type, search=True)
        if ways is None:
            computed.append((parameter, compiled, extract.boolean))
            continue
        for way in ways:
            for place, option, owner in _planted(root, way, whole):
                for want, one in _wants(parameter, option, owner):
                    wanted.setdefault(place, {}).setdefault(want, []).append(one)
    _sunk(wanted)
    _plant_composites(root, whole, parameters(resource_type).values())
    return _Tree(root, tuple(computed))


_Wanted = dict[_Place, dict[extract.Want, list[int]]]


def _sunk(wanted: _Wanted) -> None:
    """What is wanted at each place as functions to call there."""
    for place, wants in wanted.items():
        for want, pids in wants.items():
            emit = extract.emitter(want)
            if emit is not None:
                place.sinks.append((emit, tuple(dict.fromkeys(pids))))


def _plant_composites(root: _Place, whole: Property, known: Iterable[Parameter]) -> None:
    """At each element that holds both values of some composites: one small tree for the values of all of them."""
    held: dict[_Place, tuple[dict[int, int], _Place, _Wanted]] = {}
    for parameter in known:
        for context in parameter.composite.contexts if parameter.composite else ():
            for place, option, _ in _planted(root, context.way, whole):
                bases, inner, wanted = held.setdefault(place, ({}, _Place(), {}))
                if context.base in bases:
                    continue  # the same pair under another name
                bases[context.base] = codes = hash63(f"codes of {context.code}")
                for side, one in ((context.code, codes), (context.other, context.base)):
                    stand_in = Parameter(one, "", side.type, parameter.targets)
                    for way in side.ways:
                        for end, value, owner in _planted(inner, way, option):
                            for want, _ in _wants(stand_in, value, owner)[:1]:
                                wanted.setdefault(end, {}).setdefault(want, []).append(one)
    for place, (bases, inner, wanted) in held.items():
        _sunk(wanted)
        place.sinks.append((_paired(bases, inner), ()))


def _paired(bases: dict[int, int], inner: _Place) -> Emit:
    """The rows of composites: each code of the element beside each other value of it."""

    def emit(found: IndexRows, pids: tuple[int, ...], value: Any, zone: str) -> None:
        seen = IndexRows()
        _walk(inner, value, seen, zone)
        by_code: dict[int, list[tuple[str, str]]] = {}
        for one, system, code, _ in seen.token:
            if code:
                by_code.setdefault(one, []).append((system, code))
        if not by_code:
            return
        for name in _LISTS:
            rows = getattr(found, name)
            for row in getattr(seen, name):
                codes = by_code.get(bases.get(row[0], 0), ())
                for system, code in codes:
                    rows.append((composites.pid(row[0], system, code), *row[1:]))
                    rows.append((composites.pid(row[0], None, code), *row[1:]))

    return emit


def _wants(parameter: Parameter, option: Property, owner: str) -> list[tuple[extract.Want, int]]:
    """What a parameter makes of a property: the rows of its type, and for identifiers those of :of-type."""
    value_set = ""
    if parameter.type == "token" and option.type == "code":
        element = definitions.children(owner)[option.json].element
        value_set = element.binding_value_set if element.binding_strength == "required" else ""
    targets = parameter.targets if option.type == "Resource" else ()
    found = [(extract.Want(parameter.type, option.type, value_set, targets), parameter.pid)]
    if parameter.type == "token" and option.type == "Identifier":
        found.append((extract.Want("of-type", option.type), parameter.of_type))
    return found


def _planted(root: _Place, way: paths.Route, start: Property) -> list[tuple[_Place, Property, str]]:
    """The places at the end of a route, made where they are missing; each with its property and what holds it."""
    ends: list[tuple[_Place, Property, str]] = [(root, start, "")]
    for step in way.steps:
        following: list[tuple[_Place, Property, str]] = []
        for place, option, owner in ends:
            if isinstance(step, paths.Keys):
                for child in step.options:
                    below = place.edges.setdefault(child.json, _Place())
                    following.append((below, child, option.place))
            elif isinstance(step, paths.Filter):
                following.append((_filtered(place, step), option, owner))
            else:
                picked = _Place()
                place.picks.append((step.place, picked))
                following.append((picked, option, owner))
        ends = following
    return ends


def _filtered(place: _Place, step: paths.Filter) -> _Place:
    for _, below, spec in place.filters:
        if spec == step.spec:
            return below
    below = _Place()
    place.filters.append((step.test, below, step.spec))
    return below
