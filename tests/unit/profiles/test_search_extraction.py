"""Every search parameter of R4 finds its value: each type is filled from its definition, nothing may stay without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fhir_server.search import composites, index
from fhir_server.search.rows import IndexRows
from profiles import definitions
from profiles.fhirpath.engine import compile
from profiles.json_text import Number

VARIANTS = 14
SAMPLES: dict[str, Any] = {
    "boolean": True,
    "integer": 1,
    "positiveInt": 1,
    "unsignedInt": 1,
    "decimal": Number("1.50"),
    "date": "2020-02-03",
    "dateTime": "2020-02-03T04:05:06Z",
    "instant": "2020-02-03T04:05:06Z",
    "time": "04:05:06",
    "base64Binary": "AAAA",
    "xhtml": '<div xmlns="http://www.w3.org/1999/xhtml">x</div>',
    "oid": "urn:oid:1.2.3",
    "uuid": "urn:uuid:0b1e3a4c-0000-4000-8000-000000000000",
    "uri": "https://exemple.fr/x",
    "url": "https://exemple.fr/x",
    "canonical": "https://exemple.fr/x",
    "markdown": "texte",
    "string": "texte",
    "code": "code",
    "id": "a-1",
}
# These two are columns of every resource, not index rows.
COLUMNS = frozenset(("_id", "_lastUpdated"))
WITHOUT = {"_content", "_filter", "_query", "_text"}
# The algorithm is the server's choice; this one chooses none, and refuses the parameter.
NOT_OFFERED = frozenset(("phonetic",))
_LEFT_OUT = frozenset(("extension", "modifierExtension", "contained"))


def filled(place: str, variant: int, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object with every element of `place`; of choices, codes and targets of references the one of this variant."""
    found: dict[str, Any] = {}
    options: dict[str, list[tuple[str, definitions.Child]]] = {}
    for name, child in definitions.children(place).items():
        options.setdefault(child.element.path, []).append((name, child))
    for choice in options.values():
        name, child = choice[variant % len(choice)]
        if name not in _LEFT_OUT and child.place not in above:
            value = sample(child, variant, (*above, place))
            found[name] = [value] if child.element.many else value
    if place == "Reference":
        found = {"reference": "Patient/a-1"}
    return found


def sample(child: definitions.Child, variant: int, above: tuple[str, ...]) -> Any:
    element = child.element
    if child.type == "code" and element.binding_strength == "required" and element.binding_value_set:
        codes = sorted(code for _, code in definitions.value_set_codes(element.binding_value_set) or ())
        return codes[variant % len(codes)] if codes else "code"
    if definitions.is_primitive(child.type):
        return SAMPLES[child.type]
    if child.type == "Resource":
        return {"resourceType": ("Composition", "MessageHeader")[variant % 2], "id": "a-1"}
    if child.type == "Reference" and element.targets:
        target = element.targets[variant % len(element.targets)]
        return {"reference": f"{'Patient' if target == 'Resource' else target}/a-1"}
    return filled(child.place, variant, above)


def resources(kind: str) -> Iterator[dict[str, Any]]:
    for variant in range(VARIANTS):
        yield {"resourceType": kind, **filled(kind, variant)}


def tables(found: IndexRows) -> Iterator[tuple[Any, ...]]:
    """The rows of all search types."""
    for table in (found.string, found.token, found.date, found.number, found.quantity, found.reference, found.uri):
        yield from table
    yield from found.coords


def ids(parameter: index.Parameter, found: IndexRows) -> set[int]:
    """The ids under which rows of the parameter may stand: for a composite, of the codes beside the other value."""
    if parameter.composite is None:
        return {parameter.pid}
    codes = {(row[1], row[2]) for row in found.token}
    return {composites.pid(one.base, *code) for one in parameter.composite.contexts for code in codes}


def missing(kind: str, samples: list[dict[str, Any]]) -> list[str]:
    """The parameters with an expression that finds nothing in any sample, or that leaves no index row."""
    rows = [index.rows(one) for one in samples]
    known = index.parameters(kind)
    found: list[str] = []
    for definition in definitions.search_parameters(kind):
        code, expression = definition.code, definition.expression
        if not expression:
            continue
        if not any(compile(expression, search=True)(one) for one in samples):
            found.append(f"{code} selects nothing: {expression}")
        elif code in NOT_OFFERED or code in COLUMNS:
            continue
        elif not any(ids(known[code], one) & {row[0] for row in tables(one)} for one in rows):
            found.append(f"{code} ({definition.type}) leaves no row: {expression}")
    return found


@pytest.mark.parametrize("kind", sorted(definitions.resource_types()))
def test_every_parameter_of_a_type_extracts_index_values(kind: str) -> None:
    assert missing(kind, list(resources(kind))) == []


def test_a_parameter_that_finds_nothing_would_be_noticed() -> None:
    samples = list(resources("Patient"))
    for one in samples:
        del one["birthDate"], one["name"]
    lost = [line.partition(" ")[0] for line in missing("Patient", samples)]
    assert sorted(lost) == ["birthdate", "family", "given", "name", "phonetic"]


def test_what_has_no_rows_is_kept_elsewhere_or_not_offered() -> None:
    for kind in definitions.resource_types():
        known = index.parameters(kind)
        assert all(known[code].pid == 0 for code in COLUMNS)
        assert NOT_OFFERED.isdisjoint(known)


def test_parameters_without_an_expression_are_those_that_have_none_in_r4() -> None:
    found = {
        known.code
        for kind in definitions.resource_types()
        for known in definitions.search_parameters(kind)
        if not known.expression
    }
    assert found == WITHOUT
