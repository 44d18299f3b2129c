"""What FHIR R4 4.0.1 says about types, elements, search parameters and codes, as frozen values.

Hides the data file `profiles/data/r4.zip` (built by `python -m profiles.build`) and its lazy loading: importing this
module reads nothing; the first question opens the file, and each type is read when it is first asked for, then kept.
Paths are spelled as in the StructureDefinitions (`Patient.contact.name`, `Observation.value[x]`); a *place* is a path
that has children or the name of a type, and `children(place)` is the one question that the checker, the FHIRPath typing
and the XML writer ask. Unknown types and places raise KeyError.

Measured on 2 cores, CPython 3.11: import 10 ms, first question 4 ms, one type 0.3 ms (Patient) to 1.3 ms
(ExplanationOfBenefit), all types and their children 50 ms, all search parameters 9 ms.

Normative: https://hl7.org/fhir/R4/elementdefinition.html, https://hl7.org/fhir/R4/datatypes.html,
https://hl7.org/fhir/R4/json.html, https://hl7.org/fhir/R4/searchparameter-registry.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from profiles.definition_values import (
    INLINE,
    Child,
    CodeSystem,
    Component,
    Concept,
    Element,
    ExtensionDefinition,
    ExtensionPart,
    Invariant,
    Kind,
    Primitive,
    SearchParameter,
    Structure,
)

if TYPE_CHECKING:
    from zipfile import ZipFile

__all__ = [
    "Child",
    "CodeSystem",
    "Component",
    "Concept",
    "Element",
    "ExtensionDefinition",
    "ExtensionPart",
    "Invariant",
    "Primitive",
    "SearchParameter",
    "Structure",
]

DATA = Path(__file__).parent / "data" / "r4.zip"
CORE = "http://hl7.org/fhir/StructureDefinition/"
# Terminology is spread over this many members by the CRC-32 of its URL (profiles/build_terminology.py).
_BUCKETS = 32


# --- the file -------------------------------------------------------------------------------------------------------


@cache
def _archive() -> ZipFile:
    # The bytes are held in memory so that processes forked later never share a file position.
    from io import BytesIO
    from zipfile import ZipFile

    return ZipFile(BytesIO(DATA.read_bytes()))


def _load(member: str) -> Any:
    return json.loads(_archive().read(member))


@cache
def _index() -> dict[str, Any]:
    index: dict[str, Any] = _load("index.json")
    return index


# --- types ----------------------------------------------------------------------------------------------------------


@cache
def resource_types() -> frozenset[str]:
    """The names of the 146 concrete resource types."""
    return frozenset(name for name, (kind, abstract, _) in _types().items() if kind == "resource" and not abstract)


@cache
def data_types() -> frozenset[str]:
    """The names of the complex data types, the abstract Element and BackboneElement included."""
    return frozenset(name for name, (kind, _, _) in _types().items() if kind == "complex-type")


@cache
def primitives() -> Mapping[str, Primitive]:
    """The twenty primitive types by name."""
    return MappingProxyType({row[0]: Primitive(*row) for row in _index()["primitives"]})


def is_primitive(type_name: str) -> bool:
    """True for `string`, `code` and the like."""
    return type_name in primitives()


def base_of(type_name: str) -> str:
    """The type this one specialises: Patient -> DomainResource, Age -> Quantity, code -> string; '' at the top."""
    base: str = _types()[type_name][2]
    return base


@cache
def ancestry(type_name: str) -> tuple[str, ...]:
    """The type itself and all it specialises, nearest first."""
    base = base_of(type_name)
    return (type_name, *ancestry(base)) if base else (type_name,)


def is_a(type_name: str, ancestor: str) -> bool:
    """True when `type_name` is `ancestor` or specialises it."""
    return ancestor in ancestry(type_name)


def _types() -> dict[str, tuple[Kind, bool, str]]:
    types: dict[str, tuple[Kind, bool, str]] = _index()["types"]
    return types


@cache
def structure(type_name: str) -> Structure:
    """The structure of a resource or data type, primitives and abstract types included. KeyError when unknown."""
    kind, abstract, base = _types()[type_name]
    rows = _load(f"type/{type_name}.json")
    elements = {row[0]: _element(number, row) for number, row in enumerate(rows)}
    return Structure(type_name, kind, abstract, base, MappingProxyType(elements))


def _element(order: int, row: list[Any]) -> Element:
    path, low, high, types, flags, short, rare = row
    strength, value_set, maximum = (*rare.get("binding", ()), "", "", "")[:3]
    return Element(
        path=path,
        order=order,
        min=low,
        max=None if high < 0 else high,
        types=tuple(types),
        choice=bool(flags & 4),
        is_modifier=bool(flags & 1),
        is_summary=bool(flags & 2),
        xml_attribute=bool(flags & 8),
        xhtml=bool(flags & 16),
        short=short,
        targets=tuple(rare.get("targets", ())),
        canonicals=tuple(rare.get("canonicals", ())),
        profiles=tuple(rare.get("profiles", ())),
        content_reference=rare.get("reference", ""),
        binding_strength=strength,
        binding_value_set=value_set,
        binding_max_value_set=maximum,
    )


@cache
def children(place: str) -> Mapping[str, Child]:
    """The JSON properties of a type or inner path, in XML order; a choice gives one property for each of its types.

    `children("Observation")["valueQuantity"]` is (the value[x] element, "Quantity"); `children("Bundle.entry")["link"]`
    leads, through its `place`, to `Bundle.link`. The `value` of a primitive is no property and is left out, and so is
    what the type forbids (`xhtml.extension`).
    """
    root = place.partition(".")[0]
    known = structure(root).elements
    if place != root:
        shared = known[place].content_reference
        if shared:
            return children(shared)
        if known[place].types[0] not in INLINE:
            if len(known[place].types) > 1:
                raise KeyError(f"{place} has several types: ask for the children of one of them")
            return children(known[place].types[0])
    depth = place.count(".") + 1
    found: dict[str, Child] = {}
    for path, element in known.items():
        if path.startswith(place + ".") and path.count(".") == depth and not _is_no_property(element):
            found.update(_properties(element, known))
    return MappingProxyType(found)


def _is_no_property(element: Element) -> bool:
    return element.max == 0 or (element.types != () and element.types[0].startswith("System."))


def _properties(element: Element, known: Mapping[str, Element]) -> Iterator[tuple[str, Child]]:
    if element.choice:
        for type_name in element.types:
            yield element.name + type_name[0].upper() + type_name[1:], Child(element, type_name)
    else:
        types = known[element.content_reference].types if element.content_reference else element.types
        yield element.name, Child(element, types[0])


@cache
def members(place: str, name: str) -> tuple[Child, ...]:
    """What the FHIRPath name may mean at this place: one Child, one for each type of a choice, none when unknown."""
    return tuple(child for child in children(place).values() if child.element.name == name)


@cache
def invariants(type_name: str) -> tuple[Invariant, ...]:
    """The standard's rules on the type's own elements; those of an element's type are found on that type."""
    member = f"rules/{type_name}.json"
    structure(type_name)
    return tuple(Invariant(*row) for row in _load(member)) if member in _archive().NameToInfo else ()


# --- search, operations, compartments -------------------------------------------------------------------------------


@cache
def _search() -> Mapping[str, SearchParameter]:
    return {row[0]: _search_parameter(row) for row in _load("search.json")}


def _search_parameter(row: list[Any]) -> SearchParameter:
    url, code, kind, expression, bases, targets, components, comparators, modifiers, many_or, many_and, standard = row
    return SearchParameter(
        url=url,
        code=code,
        type=kind,
        expression=expression,
        bases=tuple(bases),
        targets=tuple(targets),
        components=tuple(Component(*component) for component in components),
        comparators=tuple(comparators),
        modifiers=tuple(modifiers),
        multiple_or=many_or,
        multiple_and=many_and,
        standard=standard,
    )


@cache
def _search_by_base() -> Mapping[str, tuple[SearchParameter, ...]]:
    found: dict[str, list[SearchParameter]] = {}
    for parameter in _search().values():
        for base in parameter.bases if parameter.standard else ():
            found.setdefault(base, []).append(parameter)
    return {base: tuple(sorted(items, key=lambda item: item.code)) for base, items in found.items()}


@cache
def search_parameters(resource_type: str) -> tuple[SearchParameter, ...]:
    """The standard's search parameters of a type, then those of DomainResource and Resource, each by code."""
    return tuple(item for name in ancestry(resource_type) for item in _search_by_base().get(name, ()))


def all_search_parameters() -> tuple[SearchParameter, ...]:
    """All 1,400, examples included, by URL."""
    return tuple(_search().values())


def search_parameter(url: str) -> SearchParameter | None:
    """The search parameter with this canonical URL (a version is ignored)."""
    return _search().get(_canonical(url))


@cache
def search_parameter_text(url: str) -> str:
    """HL7's description of a search parameter (English, may be Markdown); '' when unknown."""
    text: str = _load("search_text.json").get(_canonical(url), "")
    return text


@cache
def operations() -> tuple[Mapping[str, Any], ...]:
    """HL7's OperationDefinitions without their prose, as plain JSON values."""
    return tuple(MappingProxyType(item) for item in _load("operations.json"))


@cache
def compartments() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Compartment (`Patient`) -> resource type -> codes of the search parameters that make it a member."""
    content = _load("compartments.json")
    return {name: {kind: tuple(codes) for kind, codes in parts.items()} for name, parts in content.items()}


# --- profiles and extensions ----------------------------------------------------------------------------------------


@cache
def _extensions() -> Mapping[str, list[Any]]:
    return {row[0]: row for row in _load("extensions.json")}


@cache
def extension(url: str) -> ExtensionDefinition | None:
    """HL7's definition of an extension; None for others."""
    row = _extensions().get(url)
    if row is None:
        return None
    return ExtensionDefinition(url, row[1], tuple((kind, path) for kind, path in row[2]), _part(row[3]))


def _part(row: list[Any]) -> ExtensionPart:
    url, low, high, modifier, types, rare, parts = row
    strength, value_set = (*rare.get("binding", ()), "", "")[:2]
    limit = None if high < 0 else high
    targets = tuple(rare.get("targets", ()))
    inner = tuple(_part(part) for part in parts)
    return ExtensionPart(url, low, limit, modifier, tuple(types), targets, strength, value_set, inner)


@cache
def profile(url: str) -> Mapping[str, Any] | None:
    """HL7's own constraint profile (such as bp) as a StructureDefinition without prose; None for others."""
    member = _load("profiles.json").get(_canonical(url))
    return MappingProxyType(_load(member)) if member else None


# --- codes ----------------------------------------------------------------------------------------------------------


def _canonical(url: str) -> str:
    return url.partition("|")[0]


@cache
def _codes() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    content: Mapping[str, Mapping[str, Mapping[str, str]]] = _load("codes.json")
    return content


@cache
def value_set_codes(url: str) -> frozenset[tuple[str, str]] | None:
    """All (system, code) pairs of a value set that a required binding names.

    None when the set is no such set or cannot be enumerated (MIME types, UCUM units).
    """
    codes = _codes().get(_canonical(url))
    return None if codes is None else frozenset((system, code) for system, inner in codes.items() for code in inner)


def value_set_displays(url: str) -> Mapping[str, Mapping[str, str]]:
    """System -> code -> English display of an enumerable set of a required binding, in the set's order; else empty."""
    return _codes().get(_canonical(url), {})


@cache
def _bucket(folder: str, url: str) -> Mapping[str, Any]:
    from zlib import crc32

    content: Mapping[str, Any] = _load(f"{folder}/{crc32(url.encode('utf-8')) % _BUCKETS:02d}.json")
    return content


@cache
def code_system(url: str) -> CodeSystem | None:
    """HL7's code system (R4, THO as of R4, v2 tables, v3) with its concepts in order; None when not among them."""
    row = _bucket("systems", _canonical(url)).get(_canonical(url))
    if row is None:
        return None
    concepts: dict[str, Concept] = {}
    for code, display, parents, abstract in row["concept"]:
        above = tuple(row["concept"][number][0] for number in parents)
        concepts[code] = Concept(code, display, above, bool(abstract))
    return CodeSystem(_canonical(url), row["name"], row["content"], row["caseSensitive"], MappingProxyType(concepts))


def value_set(url: str) -> Mapping[str, Any] | None:
    """HL7's value set as its compose: `name`, `include`, `exclude`, concepts as [code, display]; None for others.

    An include with `withheld` named that many SNOMED CT concepts, which are not in the file (licence).
    """
    row: Mapping[str, Any] | None = _bucket("sets", _canonical(url)).get(_canonical(url))
    return row
