"""Composite parameters: two values of the same element, searched together.

Hides how both fit in one index row: the code chooses the row's parameter id, the other value stands in the row as it
always does. `code-value-quantity` of a haemoglobin makes rows of quantities under the id of "that code", one id for
system and code, one for the code alone. A search computes the same ids, so that prefixes, units and folding of the
other value work as everywhere else, and one index finds the pair. Of the three-part ones (a code, a start and an end,
all of MolecularSequence) the two numbers are the ends of one row.

Sources: https://hl7.org/fhir/R4/search.html#composite, https://hl7.org/fhir/R4/observation.html#search
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fhir_server.search.extract import Want, emitter
from fhir_server.search.plan import ParamType
from profiles import definitions
from profiles.fhirpath import engine, paths

# Changes with the meaning of the rows, as the extractor's own version does.
VERSION = "1"


@dataclass(frozen=True, slots=True)
class Side:
    """One component: its search type, and the ways from the element that holds both.

    `ends`: the two properties at the end of the ways that are the first and the last number of a span.
    """

    type: ParamType
    ways: tuple[paths.Route, ...]
    ends: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """One kind of element that holds both values: `Observation` itself, or its components. `base` names its rows."""

    base: int
    way: paths.Route
    code: Side
    other: Side


@dataclass(frozen=True, slots=True)
class Composite:
    """`code_at` is the position of the code among the `parts` values; `type` the search type of the others."""

    contexts: tuple[Context, ...]
    code_at: int
    type: ParamType
    parts: int = 2


def analysed(resource_type: str, expression: str, components: Sequence[definitions.Component]) -> Composite | None:
    """The composite on one resource type; None for what is no code beside another value or beside two numbers."""
    if len(components) == 3:
        return _spanning(resource_type, expression, components)
    if len(components) != 2 or any("%" in one.expression for one in components):
        return None
    contexts: list[Context] = []
    places: set[tuple[int, ParamType]] = set()
    for text in _branches(resource_type, expression):
        for way in _ways(text, resource_type):
            sides = [_side(way, text, component, resource_type) for component in components]
            code_at = next((at for at, side in enumerate(sides) if side.type == "token"), -1)
            if code_at < 0:
                return None
            other = sides[1 - code_at]
            base = _base(text.removeprefix(resource_type), components, other.type)
            contexts.append(Context(base, way, sides[code_at], other))
            places.add((code_at, other.type))
    if len(places) != 1:
        return None
    ((code_at, kind),) = places
    return Composite(tuple(contexts), code_at, kind)


def _spanning(resource_type: str, expression: str, components: Sequence[definitions.Component]) -> Composite | None:
    """A code, a first and a last number: `MolecularSequence.variant`, whose code stands elsewhere in the resource."""
    code, *numbers = components
    kinds = [definition.type for one in components if (definition := definitions.search_parameter(one.definition))]
    if kinds != ["token", "number", "number"] or not all(one.expression.isidentifier() for one in numbers):
        return None
    whole = _ways(resource_type, resource_type)[0]
    start, end = (one.expression for one in numbers)
    contexts: list[Context] = []
    for text in _branches(resource_type, expression):
        outside = code.expression.startswith("%resource.")
        codes = _ways(
            code.expression.replace("%resource", resource_type) if outside else f"{text}.{code.expression}",
            resource_type,
        )
        ways = _ways(text, resource_type)
        if not codes or not ways or not all(_ways(f"{text}.{one}", resource_type) for one in (start, end)):
            return None
        base = _base(text.removeprefix(resource_type), components, "number")
        contexts.append(Context(base, whole, Side("token", codes), Side("number", ways, (start, end))))
    return Composite(tuple(contexts), 0, "number", 3) if contexts else None


def _base(place: str, components: Sequence[definitions.Component], kind: ParamType) -> int:
    return hash63(f"composite|{VERSION}|{place}|{'|'.join(one.expression for one in components)}|{kind}")


def _branches(resource_type: str, expression: str) -> list[str]:
    parts = [part.strip() for part in expression.split("|")]
    return [part for part in parts if part == resource_type or part.startswith(resource_type + ".")]


def _ways(expression: str, resource_type: str) -> tuple[paths.Route, ...]:
    # One of HL7's expressions says DateTime where the type is dateTime.
    spelled = expression.replace("as(DateTime)", "as(dateTime)")
    return paths.routes(engine.compile(spelled, search=True).tree, resource_type, search=True) or ()


def _side(context: paths.Route, text: str, component: definitions.Component, resource_type: str) -> Side:
    """The component's type by what the element really holds: the standard swaps those of DocumentReference."""
    ways: list[paths.Route] = []
    for part in component.expression.split("|"):
        for way in _ways(f"{text}.{part.strip()}", resource_type):
            ways.append(paths.Route(way.steps[len(context.steps) :], way.options))
    definition = definitions.search_parameter(component.definition)
    said = definition.type if definition is not None else ""
    found = [option.type for way in ways for option in way.options]
    kinds = (said, *(kind for kind in ("token", "reference") if kind != said))
    able = [kind for kind in kinds if any(_searchable(kind, fhir) for fhir in found)]
    return Side(able[0] if able else "special", tuple(ways))  # type: ignore[arg-type]  # a type of the standard


def _searchable(kind: str, fhir: str) -> bool:
    return emitter(Want(kind, fhir)) is not None


@lru_cache(maxsize=65_536)
def pid(base: int, system: str | None, code: str) -> int:
    """The id of the rows that stand beside one code; system None for the code in any system."""
    return hash63("\x1f".join((str(base), code) if system is None else (str(base), system, code)))


def hash63(text: str) -> int:
    """A positive 63-bit number, the same for the same text on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1
