"""Composite parameters: two values of the same element, searched together.

Hides how both fit in one index row: the code chooses the row's parameter id, the other value stands in the row as it
always does. `code-value-quantity` of a haemoglobin makes rows of quantities under the id of "that code", one id for
system and code, one for the code alone. A search computes the same ids, so that prefixes, units and folding of the
other value work as everywhere else, and one index finds the pair.

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
from profiles.fhirpath.model import Property

# Changes with the meaning of the rows, as the extractor's own version does.
VERSION = "1"


@dataclass(frozen=True, slots=True)
class Side:
    """One component: its search type, and the ways from the element that holds both."""

    type: ParamType
    ways: tuple[paths.Route, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """One kind of element that holds both values: `Observation` itself, or its components. `base` names its rows."""

    base: int
    way: paths.Route
    code: Side
    other: Side


@dataclass(frozen=True, slots=True)
class Composite:
    """`code_at` is the position of the code among the two values; `type` the search type of the other one."""

    contexts: tuple[Context, ...]
    code_at: int
    type: ParamType


def analysed(resource_type: str, expression: str, components: Sequence[definitions.Component]) -> Composite | None:
    """The composite on one resource type; None for what is not a code beside one other value (MolecularSequence)."""
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
            identity = f"composite|{VERSION}|{text.removeprefix(resource_type)}|" + "|".join(
                one.expression for one in components
            )
            contexts.append(Context(_hash63(f"{identity}|{other.type}"), way, sides[code_at], other))
            places.add((code_at, other.type))
    if len(places) != 1:
        return None
    ((code_at, kind),) = places
    return Composite(tuple(contexts), code_at, kind)


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
    return Side(able[0] if able else "special", tuple(ways))  # type: ignore[arg-type]


def _searchable(kind: str, fhir: str) -> bool:
    return emitter(Want(kind, fhir)) is not None


def place_of(context: Context) -> Property:
    """The property at the end of a context's way."""
    return context.way.options[0]


@lru_cache(maxsize=65_536)
def pid(base: int, system: str | None, code: str) -> int:
    """The id of the rows that stand beside one code; system None for the code in any system."""
    return _hash63("\x1f".join((str(base), code) if system is None else (str(base), system, code)))


def _hash63(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 1) or 1
