"""Search expressions: the fast loops give what the typed evaluation gives, and what another engine gives."""

from __future__ import annotations

import bz2
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from profiles import definitions, json_text
from profiles.fhirpath import model, paths
from profiles.fhirpath.engine import compile
from profiles.fhirpath.parser import parse

DATA = Path(__file__).resolve().parents[2] / "data"


def own_resources() -> Iterator[dict[str, Any]]:
    """The resources of our own test data, one or several a file."""
    yield json_text.parse((DATA / "fhirpath" / "patient.json").read_bytes())
    yield from json_text.parse((DATA / "search" / "resources.json").read_bytes())["entry"]


def expressions(resource: dict[str, Any]) -> Iterator[str]:
    for parameter in definitions.search_parameters(resource["resourceType"]):
        if parameter.expression:
            yield parameter.expression


def plain(items: list[Any]) -> list[Any]:
    found = [item.value if isinstance(item, model.Node) else item for item in items]
    return [value for value in found if value is not None]


def test_every_search_expression_of_r4_is_a_path_but_one() -> None:
    found = {
        parameter.expression
        for kind in definitions.resource_types()
        for parameter in definitions.search_parameters(kind)
        if parameter.expression and paths.routes(parse(parameter.expression), kind, search=True) is None
    }
    assert found == {"Patient.deceased.exists() and Patient.deceased != false"}


def test_the_fast_loops_give_what_the_typed_evaluation_gives() -> None:
    compared = 0
    for resource in own_resources():
        for expression in expressions(resource):
            compiled = compile(expression, search=True)
            values = compiled(resource)
            assert values == plain(compiled.nodes(model.root_node(resource))), expression
            compared += len(values)
    assert compared > 50


def test_every_type_of_search_expression_runs_on_every_resource_type() -> None:
    """A resource of each type with every element empty: nothing found, nothing broken."""
    for kind in definitions.resource_types():
        for expression in expressions({"resourceType": kind}):
            found = compile(expression, search=True)({"resourceType": kind})
            assert found in ([], [False]) or expression in ("Observation", "Observation | Observation.component")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Patient/1", ("", "Patient", "1")),
        ("Patient/1/_history/2", ("", "Patient", "1")),
        ("https://exemple.fr/fhir/Patient/a-1.b", ("https://exemple.fr/fhir", "Patient", "a-1.b")),
        ("urn:uuid:0b1e3a4c-0000-4000-8000-000000000000", None),
        ("#contained", None),
        ("Patiente/1", None),
        ("Patient/", None),
        ("Patient/1/2", None),
        ("", None),
    ],
)
def test_a_reference_is_taken_apart(text: str, parts: tuple[str, str, str] | None) -> None:
    assert paths.split_reference(text) == parts


def test_a_reference_is_of_a_type_by_what_it_says() -> None:
    task = {"resourceType": "Task"}
    expression = compile("Task.for.where(resolve() is Patient)", search=True)
    for reference, counts in (
        ({"reference": "Patient/1"}, True),
        ({"reference": "https://exemple.fr/Patient/1"}, True),
        ({"reference": "Group/1"}, False),
        ({"reference": "urn:uuid:1", "type": "Patient"}, True),
        ({"reference": "urn:uuid:1"}, False),
        ({"identifier": {"value": "1"}}, False),
        ({"type": "Patient", "identifier": {"value": "1"}}, True),
        ({"type": "Group", "identifier": {"value": "1"}}, False),
        ({"display": "x"}, False),
    ):
        assert bool(expression({**task, "for": reference})) is counts, reference


def test_equal_content_is_kept_once_whatever_the_order_of_its_keys() -> None:
    values = [
        {"a": 1, "b": True},
        {"b": True, "a": 1},
        {"a": 1, "b": 1},
        1,
        True,
        "1",
        json_text.Number("1.0"),
        [1],
        [1],
    ]
    assert paths.distinct_json(values) == [{"a": 1, "b": True}, {"a": 1, "b": 1}, 1, True, "1", [1]]


# --- against another engine ------------------------------------------------------------------------------------------


def comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted((key, comparable(inner)) for key, inner in value.items()))
    if isinstance(value, list):
        return tuple(comparable(inner) for inner in value)
    return value if isinstance(value, bool | str) else float(value)


def other_engine() -> Callable[[str], Callable[[dict[str, Any]], list[Any]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fhirpathpy import compile as other
        from fhirpathpy.models import models

    def prepared(expression: str) -> Callable[[dict[str, Any]], list[Any]]:
        # It takes a leading Resource for an element name, and refuses `as` on collections.
        run: Callable[[dict[str, Any]], list[Any]] = other(expression.replace("Resource.", ""), models["r4"])
        return run

    return prepared


@pytest.mark.needs("shared")
def test_extraction_agrees_with_fhirpathpy_on_synthea(shared: Path) -> None:
    prepared = other_engine()
    known: dict[str, Any] = {}
    seen: Counter[str] = Counter()
    compared, unequal = 0, list[str]()
    for file in sorted((shared / "synthea-92k").glob("*.bz2"))[2:4]:
        raw = bz2.decompress(file.read_bytes())
        for ours, theirs in zip(json_text.parse(raw)["entry"], json.loads(raw)["entry"], strict=True):
            resource = ours["resource"]
            seen[resource["resourceType"]] += 1
            if seen[resource["resourceType"]] > 12:
                continue
            for expression in expressions(resource):
                if "resolve()" in expression:
                    continue
                if expression not in known:
                    known[expression] = prepared(expression)
                try:
                    wanted = known[expression](theirs["resource"])
                except ValueError:
                    continue
                compared += 1
                found = compile(expression, search=True)(resource)
                if sorted(map(repr, map(comparable, found))) != sorted(map(repr, map(comparable, wanted))):
                    unequal.append(f"{expression}: {found!r} and {wanted!r}")
    assert unequal == []
    assert compared > 2000
