"""The values that `profiles.definitions` answers with: types, elements, search parameters, extensions, codes.

Normative: https://hl7.org/fhir/R4/elementdefinition.html, https://hl7.org/fhir/R4/searchparameter.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["resource", "complex-type", "primitive-type"]
# Types whose content is spelled out where they stand.
INLINE = frozenset({"BackboneElement", "Element"})


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a type, inherited elements included.

    `path` in StructureDefinition spelling; `order` is its place among all elements of the structure (XML order);
    `max` None means `*`; `types` are type names, with `System.String` and the like only for the `value` of a primitive;
    `targets` are the resource types a Reference may point to (`Resource` = any), `canonicals` likewise for canonicals;
    `profiles` names data type profiles such as `SimpleQuantity`; `content_reference` is the path whose children this
    element shares, or ''; bindings are canonical URLs without version, '' when none.
    """

    path: str
    order: int
    min: int
    max: int | None
    types: tuple[str, ...]
    choice: bool
    is_modifier: bool
    is_summary: bool
    xml_attribute: bool
    xhtml: bool
    short: str
    targets: tuple[str, ...] = ()
    canonicals: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    content_reference: str = ""
    binding_strength: str = ""
    binding_value_set: str = ""
    binding_max_value_set: str = ""

    @property
    def name(self) -> str:
        """The element's name in FHIRPath and, but for a choice, in JSON: `value` for `Observation.value[x]`."""
        return self.path.rpartition(".")[2].removesuffix("[x]")

    @property
    def many(self) -> bool:
        """True when JSON holds it in an array: its base definition allows more than one."""
        return self.max is None or self.max > 1


class Child(NamedTuple):
    """One JSON property of a place: its element and the one type that the property's name selects."""

    element: Element
    type: str

    @property
    def place(self) -> str:
        """What to give to `children` to go deeper: the shared or own path of an inline element, else the type."""
        if self.element.content_reference:
            return self.element.content_reference
        return self.element.path if self.type in INLINE else self.type


@dataclass(frozen=True, slots=True)
class Structure:
    """A resource or data type with all its elements by path, in order; `base` is '' for Resource and Element."""

    name: str
    kind: Kind
    abstract: bool
    base: str
    elements: Mapping[str, Element]


@dataclass(frozen=True, slots=True)
class Primitive:
    """A primitive type. `regex` is HL7's own: some backtrack badly, so never run it on foreign text."""

    name: str
    base: str
    regex: str
    system: str


@dataclass(frozen=True, slots=True)
class Invariant:
    """A rule of the standard on one element, as a FHIRPath expression."""

    path: str
    key: str
    severity: str
    human: str
    expression: str


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a composite search parameter: its definition's URL and its expression within the composite's."""

    definition: str
    expression: str


@dataclass(frozen=True, slots=True)
class SearchParameter:
    """A search parameter; `bases` and `targets` are resource types; `standard` is False for HL7's mere examples."""

    url: str
    code: str
    type: str
    expression: str
    bases: tuple[str, ...]
    targets: tuple[str, ...]
    components: tuple[Component, ...]
    comparators: tuple[str, ...]
    modifiers: tuple[str, ...]
    multiple_or: bool
    multiple_and: bool
    standard: bool


@dataclass(frozen=True, slots=True)
class ExtensionPart:
    """What an extension holds: a value of one of `types`, or nested `parts`. `max` None means `*`."""

    url: str
    min: int
    max: int | None
    is_modifier: bool
    types: tuple[str, ...]
    targets: tuple[str, ...]
    binding_strength: str
    binding_value_set: str
    parts: tuple[ExtensionPart, ...]


@dataclass(frozen=True, slots=True)
class ExtensionDefinition:
    """An extension that HL7 defines in R4; `contexts` are (type, expression) pairs, such as ('element', 'Patient')."""

    url: str
    title: str
    contexts: tuple[tuple[str, str], ...]
    root: ExtensionPart


@dataclass(frozen=True, slots=True)
class Concept:
    """A code of a code system; `parents` are codes of the same system."""

    code: str
    display: str
    parents: tuple[str, ...]
    abstract: bool


@dataclass(frozen=True, slots=True)
class CodeSystem:
    """A code system; `content` is complete, not-present, example, fragment or supplement."""

    url: str
    name: str
    content: str
    case_sensitive: bool
    concepts: Mapping[str, Concept]
