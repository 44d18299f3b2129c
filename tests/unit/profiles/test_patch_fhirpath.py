"""FHIRPath Patch: the official cases, our own, and hostile patches."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.json_edit import differences, same
from profiles.json_text import parse, parse_list, pretty, write
from profiles.patch import fhirpath_patch
from profiles.patch.errors import PatchError

CASES: list[dict[str, Any]] = parse_list(
    (Path(__file__).resolve().parents[2] / "data" / "patch" / "fhirpath.json").read_bytes()
)
_TYPES = {"index": "valueInteger", "source": "valueInteger", "destination": "valueInteger", "type": "valueCode"}


def parameters(operations: list[dict[str, Any]]) -> dict[str, Any]:
    """The Parameters resource of operations written short (tests/data/patch/README.md)."""
    listed = []
    for operation in operations:
        parts = [
            {"name": name, **value} if name == "value" else {"name": name, _TYPES.get(name, "valueString"): value}
            for name, value in operation.items()
        ]
        listed.append({"name": "operation", "part": parts})
    return {"resourceType": "Parameters", "parameter": listed} if listed else {"resourceType": "Parameters"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["title"])
def test_own_case(case: dict[str, Any]) -> None:
    before, patch = copy.deepcopy(case["from"]), parameters(case["patch"])
    if "error" in case:
        with pytest.raises(PatchError) as caught:
            fhirpath_patch.apply(case["from"], patch)
        assert case["error"] in caught.value.message
        number = case.get("at", 0)
        assert (caught.value.operation, caught.value.path) == (number, case["patch"][number]["path"])
    else:
        result = fhirpath_patch.apply(case["from"], patch)
        assert differences(case["to"], result.value) == []
        for text in (write(case["from"]), pretty(case["from"])):
            assert differences(case["to"], parse(fhirpath_patch.apply(text, patch).text(text))) == []
    assert same(case["from"], before), "the resource was changed"


def test_untouched_text_stays_byte_for_byte() -> None:
    text = (
        '{ "resourceType":"Patient",\n "birthDate" :"1970", "name":[ {"family":"\\u0041"} , {"family":"B"}],"x":1.50e0}'
    )
    patch = parameters(
        [
            {"type": "replace", "path": "Patient.name[1].family", "value": {"valueString": "C"}},
            {"type": "move", "path": "Patient.name", "source": 1, "destination": 0},
            {"type": "delete", "path": "Patient.birthDate"},
        ]
    )
    assert fhirpath_patch.apply(text, patch).text(text) == (
        '{ "resourceType":"Patient", "name":[ {"family":"C"}, {"family":"\\u0041"} ],"x":1.50e0}'
    )


def _operation(*parts: Any) -> dict[str, Any]:
    return {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": list(parts)}]}


TYPE = {"name": "type", "valueCode": "delete"}
PATH = {"name": "path", "valueString": "Patient.active"}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({}, "is a Parameters resource"),
        ([], "is a Parameters resource"),
        ({"resourceType": "Patient"}, "is a Parameters resource"),
        ({"resourceType": "Parameters", "parameter": {}}, "must be an array"),
        ({"resourceType": "Parameters", "parameter": [1]}, "named 'operation'"),
        ({"resourceType": "Parameters", "parameter": [{"name": "op"}]}, "named 'operation'"),
        ({"resourceType": "Parameters", "parameter": [{"name": "operation"}]}, "the type of an operation"),
        ({"resourceType": "Parameters", "parameter": [{"name": "operation", "part": "x"}]}, "the type of an operation"),
        (_operation(7), "the parts of an operation are"),
        (_operation({"name": ["type"]}), "the parts of an operation are"),
        (_operation({"name": "type"}), "must have one value, a string"),
        (_operation({"name": "type", "valueCode": ["delete"]}), "must have one value, a string"),
        (_operation({"name": "type", "valueCode": "delete", "valueString": "add"}), "must have one value, a string"),
        (_operation({"name": "type", "valueCode": "erase"}), "must be one of add, insert"),
        (_operation(TYPE), "needs the part 'path'"),
        (_operation(TYPE, PATH, PATH), "stands twice"),
        (_operation(TYPE, PATH, {"name": "value", "valueString": "x"}), "takes no part 'value'"),
        (_operation(TYPE, PATH, {"name": "when", "valueString": "x"}), "the parts of an operation are"),
        (_operation({"name": "index", "valueString": "1"}), "an integer"),
        (_operation({"name": "index", "valueBoolean": True}), "an integer"),
        (_operation({"name": "index", "valueDecimal": 1.5}), "an integer"),
        (_operation(TYPE, {"name": "path", "valueString": "x" * 5000}), "longer than 4000"),
        ({"resourceType": "Parameters", "parameter": [{"name": "operation"}] * 1001}, "more than 1000 operations"),
    ],
)
def test_a_patch_that_is_none_is_refused_as_malformed(patch: Any, message: str) -> None:
    with pytest.raises(PatchError) as caught:
        fhirpath_patch.apply({"resourceType": "Patient", "active": True}, patch)
    assert message in caught.value.message
    assert caught.value.malformed


@pytest.mark.parametrize("value", [{"resourceType": "Nothing"}, {"resourceType": 1}, {}])
def test_what_is_no_resource_cannot_be_patched(value: dict[str, Any]) -> None:
    with pytest.raises(PatchError, match="no type of FHIR R4"):
        fhirpath_patch.apply(value, _operation(TYPE, PATH))


MANY = {"resourceType": "Patient", "name": [{"given": ["A"] * 50} for _ in range(200)]}
LONG_NAME = {"valueHumanName": {"text": "x" * 1_000_000}}
SQUARES = "Patient.name.where(%resource.name.where(%resource.name.exists()).exists())"
COSTLY = "Patient.name.given.select($this & 'x').where($this = 'y')"
ATTACKS: dict[str, list[dict[str, Any]]] = {
    "squares": [{"type": "delete", "path": SQUARES}],
    "repeats": [{"type": "delete", "path": "Patient.name.repeat($this | %resource.name)"}] * 100,
    "nesting": [{"type": "delete", "path": "(" * 1500 + "Patient" + ")" * 1500}],
    "length": [{"type": "delete", "path": "Patient" + ".name" * 700}],
    "costly, many times": [{"type": "delete", "path": COSTLY}] * 1000,
    "NUL": [{"type": "delete", "path": "Patient.\0"}],
    "surrogate": [{"type": "delete", "path": "Patient.\ud800"}],
    "quotes": [{"type": "delete", "path": "'" * 3999}],
    "huge index": [{"type": "insert", "path": "Patient.name", "index": 10**300, "value": LONG_NAME}],
    "deep parts": [{"type": "add", "path": "Patient", "name": "extension", "value": {"part": []}}],
    "too much": [{"type": "add", "path": "Patient", "name": "name", "value": LONG_NAME}] * 100,
}


def _deep_parts(levels: int) -> dict[str, Any]:
    part: dict[str, Any] = {"name": "url", "valueUri": "u"}
    for _ in range(levels):
        part = {"name": "extension", "part": [{"name": "url", "valueUri": "u"}, part]}
    return {"part": [{"name": "url", "valueUri": "u"}, part]}


ATTACKS["deep parts"][0]["value"] = _deep_parts(120)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_in_bounded_time(name: str) -> None:
    started = time.process_time()
    with pytest.raises(PatchError) as caught:
        fhirpath_patch.apply(MANY, parameters(ATTACKS[name]))
    assert time.process_time() - started < 40
    assert len(str(caught.value)) < 5000


VALUE = st.sampled_from(
    [{"valueString": "x"}, {"valueBoolean": True}, {"valueHumanName": {"family": "B"}}, {"valueDate": "1970"},
     {"part": [{"name": "family", "valueString": "P"}]}, {"_valueString": {"id": "i"}}, {}]
)  # fmt: skip
PATHS = st.sampled_from(
    ["Patient", "Patient.name", "Patient.name[0]", "Patient.name.given", "Patient.name[1].given[0]", "Patient.active",
     "Patient.birthDate", "Patient.birthDate.extension", "Patient.name.given.first().extension", "Patient.deceased",
     "Patient.name.family", "Patient.contained", "name.last()"]
)  # fmt: skip
NAMES = st.sampled_from(["name", "given", "family", "active", "birthDate", "deceased", "extension", "id", "div"])
SMALL = st.integers(-1, 3)
OPERATIONS = st.one_of(
    st.fixed_dictionaries({"type": st.just("add"), "path": PATHS, "name": NAMES, "value": VALUE}),
    st.fixed_dictionaries({"type": st.just("insert"), "path": PATHS, "index": SMALL, "value": VALUE}),
    st.fixed_dictionaries({"type": st.just("delete"), "path": PATHS}),
    st.fixed_dictionaries({"type": st.just("replace"), "path": PATHS, "value": VALUE}),
    st.fixed_dictionaries({"type": st.just("move"), "path": PATHS, "source": SMALL, "destination": SMALL}),
)
PATIENTS = st.fixed_dictionaries(
    {"resourceType": st.just("Patient")},
    optional={
        "active": st.booleans(),
        "birthDate": st.just("1970"),
        "_birthDate": st.sampled_from([{"id": "b"}, {"extension": [{"url": "u", "valueCode": "c"}]}]),
        "deceasedBoolean": st.booleans(),
        "name": st.lists(
            st.sampled_from(
                [
                    {"family": "A"},
                    {"given": ["A", "B"]},
                    {"given": ["A", None], "_given": [None, {"extension": [{"url": "u", "valueCode": "c"}]}]},
                    {"_given": [{"id": "a"}]},
                ]
            ),
            min_size=1,
            max_size=3,
        ),
    },
)


@given(PATIENTS, st.lists(OPERATIONS, max_size=4))
@settings(deadline=None, max_examples=200)
def test_value_and_text_agree_whatever_the_patch(resource: dict[str, Any], operations: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(resource)
    try:
        result = fhirpath_patch.apply(resource, parameters(operations))
    except PatchError as problem:
        assert problem.operation is not None
    else:
        assert same(parse(result.text(write(resource))), result.value)
        assert "{}" not in write(result.value)
        assert "[]" not in write(result.value)
        for name in result.value.get("name", ()):
            if "given" in name and "_given" in name:
                assert len(name["given"]) == len(name["_given"])
    assert resource == before
