"""Index rows of a resource, and the table of search parameters of each type.

Hides how SearchParameter expressions become a walk: all expressions of a resource type are merged into one tree of JSON
keys, so that a resource is walked once, along its own content, and each value is converted once for all parameters that
want it. The few expressions that are no mere path run on the FHIRPath engine.

Sources: https://hl7.org/fhir/R4/search.html#ptypes, https://hl7.org/fhir/R4/searchparameter-registry.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

from fhir_server import errors
from fhir_server.search import composites, extract, fulltext, ours
from fhir_server.search import walk as walking
from fhir_server.search.composites import hash63 as hash63
from fhir_server.search.plan import ParamType
from fhir_server.search.rows import Emit, IndexRows
from fhir_server.search.values import bounded
from fhir_server.search.walk import Place, walk
from profiles import definitions
from profiles.fhirpath import engine, paths
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.model import Property

# Changes with the meaning of the rows: every parameter gets a new id, and a reindex.
EXTRACTOR = "2"
# The contained resources of one resource that are searched; changes of how they are read need a reindex.
MAX_CONTAINED = 1_000
_CONTAINED = "contained 2"
# What the store notes beside a row for itself: a reindex looks at rows that have none.
_NOTED = "marked dates"
T = TypeVar("T")

# Parameters without rows: columns of the resource table, or asked of other parts of the server.
COLUMNS = frozenset(("_id", "_lastUpdated"))
_ELSEWHERE = frozenset(("_text", "_content", "_filter", "_query", "phonetic"))


@dataclass(frozen=True, slots=True)
class Parameter:
    """A search parameter of a type: `pid` identifies its index rows (0: a column); `targets` the types it refers to.

    `of_type` is the id of the rows for the modifier :of-type (0: none); `composite` says how the values of a
    composite are found (None: of another type, or not searched by). `ready`: False while rows are still being made.
    """

    pid: int
    code: str
    type: ParamType
    targets: tuple[str, ...] = ()
    url: str = ""
    expression: str = ""
    of_type: int = 0
    composite: composites.Composite | None = None
    ready: bool = True


def meaning() -> int:
    """A number that changes when index rows mean something else, or when there are rows of a new kind."""
    return hash63(f"rows {EXTRACTOR} {composites.VERSION} {fulltext.VERSION} {ours.VERSION} {_CONTAINED} {_NOTED}")


def pid(resource_type: str, code: str) -> int:
    """The id of a parameter's index rows: a positive 63-bit number; 0 for `_id` and `_lastUpdated`, which are columns.

    Parameters that share a SearchParameter (`Patient.birthdate`, `Person.birthdate`) share the id. KeyError when the
    type has no such parameter.
    """
    return parameters(resource_type)[code].pid


@dataclass(frozen=True, slots=True, eq=False)
class Installed:
    """The `parameters` beside the standard's, each with whether it may be searched by. Compared by identity: what was
    worked out for one is never taken for what another says, though they hold the same."""

    parameters: tuple[tuple[definitions.SearchParameter, bool], ...] = ()


def parameters(resource_type: str) -> Mapping[str, Parameter]:
    """Code -> parameter, of one resource type (also the abstract `Resource` and `DomainResource`)."""
    return _in_force(resource_type, _installed)


@cache
def _in_force(resource_type: str, added: Installed) -> Mapping[str, Parameter]:
    found: dict[str, Parameter] = {}
    for definition in definitions.search_parameters(resource_type):
        if definition.code not in _ELSEWHERE and definition.expression and definition.code not in found:
            found[definition.code] = _parameter(definition, resource_type)
    for definition, ready in (*((one, True) for one in ours.PARAMETERS), *added.parameters):
        if resource_type in definition.bases and definition.code not in found:
            found[definition.code] = replace(_parameter(definition, resource_type), ready=ready)
    return MappingProxyType(found)


_installed = Installed()


def installed() -> Installed:
    """The parameters beside the standard's in this process."""
    return _installed


def install(added: Sequence[tuple[definitions.SearchParameter, bool]]) -> None:
    """Makes these the parameters beside the standard's, in this process: each with whether it may be searched by.

    Rows of all of them are made from now on. The truth is in the store; this is the copy that it keeps fresh.
    """
    global _installed
    if _installed.parameters != tuple(added):
        _installed = Installed(tuple(added))
        # Room only: whoever is at work with the former ones leaves what they make under these.
        _in_force.cache_clear()
        _tree.cache_clear()
        _reference_pids.cache_clear()


def reference_pids() -> tuple[int, ...]:
    """The ids of all reference parameters of all types."""
    return _reference_pids(_installed)


@cache
def _reference_pids(added: Installed) -> tuple[int, ...]:
    every = (one for kind in definitions.resource_types() for one in _in_force(kind, added).values())
    return tuple(sorted({one.pid for one in every if one.type == "reference"}))


def _parameter(definition: definitions.SearchParameter, resource_type: str) -> Parameter:
    identity = f"{definition.url}|{definition.expression}|{EXTRACTOR}"
    composite = definition.type == "composite"
    return Parameter(
        pid=0 if definition.code in COLUMNS else hash63(identity),
        code=definition.code,
        type=definition.type,  # type: ignore[arg-type]  # one of the standard's nine
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


def rows(resource: Mapping[str, Any], *, zone: str = "Europe/Paris") -> IndexRows:
    """The index rows of a resource (scopes left empty), without repeats.

    `zone` is the IANA time zone of dates that say none. Raises errors.Invalid for an unknown resource type and
    errors.TooLarge beyond 200,000 rows. Values that are not what the model says are left out. Contained resources have
    rows of their own, the first 1,000 of them.
    """
    kind = resource.get("resourceType")
    if not isinstance(kind, str) or kind not in definitions.resource_types():
        raise errors.Invalid(f"{kind!r} is no resource type of FHIR R4.", expression="resourceType")
    if not resource.get("contained"):
        return _rows(kind, resource, zone, None)
    held = _contained(resource["contained"])
    inside = {key: inner for inner, key, _ in held}
    found = _rows(kind, resource, zone, inside)
    found.contained = [(inner, bounded(key), _rows(inner, one, zone, inside)) for inner, key, one in held]
    return found


def _contained(held: Any) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(type, id, resource) of the contained resources that are searched."""
    found: list[tuple[str, str, Mapping[str, Any]]] = []
    for one in held[:MAX_CONTAINED] if isinstance(held, list) else ():
        kind, key = (one.get("resourceType"), one.get("id")) if isinstance(one, dict) else (None, None)
        if isinstance(kind, str) and isinstance(key, str) and kind in definitions.resource_types():
            found.append((kind, key, one))
    return found


def _rows(kind: str, resource: Mapping[str, Any], zone: str, inside: Mapping[str, str] | None) -> IndexRows:
    """The rows of one resource, without those of what it contains; `inside`: the type of each of these, by id."""
    tree = _tree(kind, _installed)
    found = IndexRows(inside=inside)
    walk(tree.root, resource, found, zone)
    for parameter, compiled, emit in tree.computed:
        _compute(parameter, compiled, emit, resource, found, zone)
    walking.check(found)
    found.string, found.token = _once(found.string), _once(found.token)
    found.date, found.number = _once(found.date), _once(found.number)
    found.quantity, found.reference = _once(found.quantity), _once(found.reference)
    found.uri, found.coords = _once(found.uri), _once(found.coords)
    found.words = fulltext.rows(resource)
    return found


def _once(rows: list[T]) -> list[T]:
    return list(dict.fromkeys(rows)) if len(rows) > 1 else rows


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


@dataclass(frozen=True, slots=True)
class _Tree:
    root: Place
    computed: tuple[tuple[Parameter, engine.Compiled, Emit], ...]


@cache
def _tree(resource_type: str, added: Installed) -> _Tree:
    root, whole = Place(), walking.root_of(resource_type)
    plan: walking.Plan = {}
    computed: list[tuple[Parameter, engine.Compiled, Emit]] = []
    known = _in_force(resource_type, added).values()
    for parameter in known:
        if parameter.pid == 0 or parameter.type == "composite":
            continue
        compiled = engine.compile(parameter.expression, search=True)
        ways = paths.routes(compiled.tree, resource_type, search=True)
        if ways is None:
            computed.append((parameter, compiled, extract.boolean))
            continue
        wanted = walking.Wanted(parameter.pid, parameter.type, parameter.targets, parameter.of_type)
        walking.plant(root, plan, ways, whole, wanted)
    walking.sink(plan)
    walking.plant_composites(root, whole, [one.composite for one in known if one.composite is not None])
    root.settle()
    return _Tree(root, tuple(computed))
