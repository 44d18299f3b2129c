"""The structural check: every R4 type accepted when right, every kind of fault named with its element."""

from __future__ import annotations

import bz2
import copy
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import r4_package
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles import build, definitions
from profiles.definitions import Child
from profiles.issues import Finding
from profiles.json_text import Number, parse
from profiles.validator import primitives
from profiles.validator.structure import MAX_FINDINGS, check

DATA = Path(__file__).resolve().parents[2] / "data" / "profiles"
VALID = sorted((DATA / "valid").glob("*.json"))
CASES: list[dict[str, Any]] = parse((DATA / "structure-cases.json").read_bytes())["cases"]

SAMPLES: dict[str, Any] = {
    "base64Binary": "QUJD",
    "boolean": False,
    "canonical": "http://example.org/fhir/ValueSet/a|1.0",
    "code": "a",
    "date": "2024-02-29",
    "dateTime": "2024-02-29T23:59:60.123456789-11:30",
    "decimal": Number("0.000000100"),
    "id": "A-1.b",
    "instant": "2024-02-29T10:00:00.5Z",
    "integer": -2147483648,
    "markdown": "# a\n\tb",
    "oid": "urn:oid:2.16.0.1",
    "positiveInt": 2147483647,
    "string": " é😀 ",
    "time": "23:59:60",
    "unsignedInt": 0,
    "uri": "urn:x",
    "url": "mailto:a@example.org",
    "uuid": "urn:uuid:0b9fbd5c-9d92-4a73-8a30-4b2c3b2f8f01",
    "xhtml": '<div xmlns="http://www.w3.org/1999/xhtml">a</div>',
}


def codes(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.code, finding.expression) for finding in findings]


# --- what is right --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", VALID, ids=lambda file: file.stem)
def test_a_right_resource_has_no_findings(file: Path) -> None:
    text = file.read_bytes()
    assert check(parse(text)) == []
    assert check(json.loads(text)) == [] or file.stem == "parameters"  # plain json loses the sign of -0, no more


class Maker:
    """Makes resources that hold every element of their type once, each choice in turn with another of its types."""

    def __init__(self, turn: int = 0) -> None:
        self.turn = turn

    def resource(self, name: str, depth: int) -> dict[str, Any]:
        return {"resourceType": name, **self.inner(name, depth)}

    def inner(self, place: str, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, child in self.chosen(place):
            if depth > 0 or child.element.min > 0 or (place, name) == ("Extension", "valueString"):
                value = self.value(child, depth - 1)
                made[name] = [value] if child.element.many else value
                if definitions.is_primitive(child.type) and depth > 1 and child.type != "xhtml":
                    more = {"id": "p", "extension": [{"url": "http://example.org/x", "valueString": "a"}]}
                    made["_" + name] = [more] if child.element.many else more
        return made

    def chosen(self, place: str) -> Iterator[tuple[str, Child]]:
        choices: dict[str, list[tuple[str, Child]]] = {}
        for name, child in definitions.children(place).items():
            if (place, name) == ("Extension", "extension"):
                continue
            if child.element.choice:
                choices.setdefault(child.element.name, []).append((name, child))
            else:
                yield name, child
        for offered in choices.values():
            wanted = [item for item in offered if place == "Extension" and item[0] == "valueString"] or offered
            yield wanted[self.turn % len(wanted)]

    def value(self, child: Child, depth: int) -> Any:
        element, type_name = child
        if type_name == "Resource":
            return {"resourceType": "Basic", "id": "a", "code": {"text": "a"}}
        bound = element.binding_strength == "required"
        pairs = sorted(definitions.value_set_codes(element.binding_value_set) or ()) if bound else []
        if type_name == "code" and pairs:
            return pairs[self.turn % len(pairs)][1]
        if type_name == "CodeableConcept" and pairs:
            system, code = pairs[self.turn % len(pairs)]
            return {"coding": [{"system": system, "code": code}]}
        if definitions.is_primitive(type_name):
            return SAMPLES[type_name]
        made = self.inner(child.place, depth)
        if "SimpleQuantity" in element.profiles:
            made = {name: value for name, value in made.items() if name not in ("comparator", "_comparator")}
        return made or {"id": "a"}


@pytest.mark.parametrize("name", sorted(definitions.resource_types()))
def test_every_element_of_every_resource_type_is_accepted_and_missed_when_required(name: str) -> None:
    for turn in range(3):
        assert check(Maker(turn).resource(name, 5)) == []
    assert check(Maker().resource(name, 0)) == []
    full = Maker().resource(name, 2)
    full["nonesuch"] = 1
    assert codes(check(full)) == [("structure", f"{name}.nonesuch")]
    for prop, child in Maker().chosen(name):
        if child.element.min:
            less = {key: value for key, value in Maker().resource(name, 1).items() if key != prop}
            assert codes(check(less)) == [("required", f"{name}.{child.element.name}")]


@pytest.mark.parametrize("name", sorted(definitions.data_types() - {"Element", "BackboneElement"}))
def test_every_data_type_is_accepted_with_each_of_its_choices(name: str) -> None:
    for turn in range(50):
        value = Maker(turn).inner(name, 3)
        prop = "value" + name
        if prop in definitions.children("Extension"):
            extension = {"url": "http://example.org/x", prop: value}
            assert check({"resourceType": "Basic", "code": {"text": "a"}, "extension": [extension]}) == []


def test_every_type_of_extension_value_is_accepted() -> None:
    for turn in range(50):
        offered = [item for item in definitions.children("Extension").items() if item[1].element.choice]
        name, child = offered[turn % len(offered)]
        extension = {"url": "http://example.org/x", name: Maker(turn).value(child, 2)}
        assert check({"resourceType": "Basic", "code": {"text": "a"}, "extension": [extension]}) == []


# --- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_a_fault_is_named_with_its_element(case: dict[str, Any]) -> None:
    found = check(case["resource"])
    assert [list(pair) for pair in codes(found)] == case["expect"]
    assert all(finding.severity == "error" for finding in found)
    assert case.get("says", "") in found[0].diagnostics
    assert all(5 < len(finding.diagnostics) < 500 for finding in found)


@pytest.mark.parametrize("value", [None, [], "Patient", 7, True, {}, Number("1.0")], ids=repr)
def test_what_is_no_resource_is_refused(value: Any) -> None:
    assert codes(check(value)) == [("structure", "")]


GOOD_AND_BAD: dict[str, tuple[list[Any], list[Any]]] = {
    "base64Binary": (
        ["QQ==", "QUI=", "QU\nJD", " QUJD "],
        ["Q", "QQ=", "=QQ=", "QQ===", "QUJD=", "QUJD====", "====", "QUé=", "", "Q U", 1],
    ),
    "boolean": ([True, False], [0, 1, "true", None, Number("1.0")]),
    "canonical": (["http://a|1", "#a"], ["", " ", "a b", 1]),
    "code": (["a", "a b", "mm[Hg]", "日本"], ["", " a", "a ", "a  b", "a\t\tb", 1]),
    "date": (
        ["2024", "2024-02", "2024-02-29", "9999-12-31"],
        ["24", "2024-2", "2023-02-29", "2024-04-31", "2024-00", "0000"],
    ),
    "dateTime": (
        ["2024", "2024-02", "2024-02-29", "2024-02-29T00:00:00Z", "2024-02-29T23:59:59.0+14:00"],
        [
            "2024-02-29T00:00:00",
            "2024-02-29T00:00Z",
            "2024-02-29 00:00:00Z",
            "2024-02-30T00:00:00Z",
            "2024-02T00:00:00Z",
        ],
    ),
    "decimal": ([0, -1, Number("1.50"), Number("1e2"), 0.5, 10**30], ["1", True, None, float("nan"), float("inf")]),
    "id": (["a", "A.1-b", "x" * 64], ["", "x" * 65, "a_b", "a b", "é", 1]),
    "instant": (["2024-02-29T00:00:00Z", "2024-02-29T00:00:00.123456789-03:00"], ["2024-02-29", "2024-02-29T00:00:00"]),
    "integer": (
        [0, -(2**31), 2**31 - 1, Number("-0")],
        [2**31, -(2**31) - 1, Number("1.0"), Number("1e2"), True, "1", 1.0],
    ),
    "markdown": (["a", " ", "a\r\n\tb", "x" * 1048576], ["", "x" * 1048577, "a\x0c", "a\x1fb", 1]),
    "oid": (
        ["urn:oid:0.0", "urn:oid:2.16.840"],
        ["1.2", "urn:oid:3.1", "urn:oid:1", "urn:oid:1.02", "urn:oid:1.", "urn:oid:"],
    ),
    "positiveInt": ([1, 2**31 - 1], [0, -1, 2**31, Number("1.0"), True, "1"]),
    "string": (["a", " ", "\u00a0", "a\nb"], ["", "\x00", "a\x08", "a\x0bb", 1, None]),
    "time": (["00:00:00", "23:59:60.999"], ["24:00:00", "1:00:00", "10:00", "10:00:00Z"]),
    "unsignedInt": ([0, 2**31 - 1], [-1, 2**31, Number("-0"), "0", False]),
    "uri": (["a", "urn:oid:1.2", "http://é"], ["", "a b", "\n", "a\u2003b", 1]),
    "url": (["http://a"], ["", "http://a b"]),
    "uuid": (
        ["urn:uuid:0b9fbd5c-9d92-4a73-8a30-4b2c3b2f8f01"],
        ["0b9fbd5c-9d92-4a73-8a30-4b2c3b2f8f01", "urn:uuid:0b9f"],
    ),
    "xhtml": (
        ['<div xmlns="http://www.w3.org/1999/xhtml">a</div>', ' <div\nxmlns="http://www.w3.org/1999/xhtml"> a </div>'],
        [
            "",
            "div",
            "<div",
            "<p/>",
            "<div>\x00</div>",
            1,
            "<div>a</div>",
            '<div xmlns="http://www.w3.org/1999/xhtml"/>',
        ],
    ),
}


@pytest.mark.parametrize("name", sorted(definitions.primitives()))
def test_a_primitive_type_takes_the_right_and_refuses_the_wrong(name: str) -> None:
    test = primitives.TESTS[name]
    good, bad = GOOD_AND_BAD[name]
    assert test(SAMPLES[name])
    assert [value for value in good if not test(value)] == []
    assert [value for value in bad if test(value)] == []
    for value in bad:
        code, wanted = primitives.explain(name, value)
        assert code in ("structure", "value", "invariant")
        assert 5 < len(wanted) < 300


@given(st.sampled_from(sorted(set(definitions.primitives()) - {"base64Binary", "xhtml"})), st.text(max_size=12))
@settings(deadline=None, max_examples=400)
def test_the_text_tests_agree_with_the_regular_expressions_of_hl7(name: str, text: str) -> None:
    """Ours may only be stricter: calendar, control characters, white space beyond ASCII."""
    if primitives.TESTS[name](text):
        assert re.fullmatch(definitions.primitives()[name].regex, text, re.ASCII)


@given(st.dates(), st.times(), st.sampled_from(["Z", "+00:00", "-13:59", "+14:00"]))
@settings(deadline=None)
def test_every_real_date_and_time_is_accepted(day: Any, clock: Any, zone: str) -> None:
    moment = f"{day.isoformat()}T{clock.isoformat()}{zone}"
    assert primitives.TESTS["date"](day.isoformat())
    assert primitives.TESTS["dateTime"](moment)
    assert primitives.TESTS["instant"](moment)
    assert primitives.TESTS["time"](clock.isoformat())


# --- attacks --------------------------------------------------------------------------------------------------------

PATIENT: dict[str, Any] = {"resourceType": "Patient"}
LONG = 1_000_000
HOSTILE: dict[str, dict[str, Any]] = {
    "unknown elements": PATIENT | {f"unknown{number}": 1 for number in range(200_000)},
    "faulty items": PATIENT | {"name": [{"given": [1] * 300_000}]},
    "empty objects": PATIENT | {"name": [{}] * 300_000},
    "a long unknown name": PATIENT | {"x" * LONG: 1},
    "a long code of words": PATIENT | {"language": "a " * LONG},
    "a long required code": PATIENT | {"gender": "male" * LONG},
    "a long resourceType": {"resourceType": "Patient" * LONG},
    "a long date": PATIENT | {"birthDate": "2024-02-29T00:00:00." + "0" * LONG + "x"},
    "a long OID": {
        "resourceType": "Parameters",
        "parameter": [{"name": "a", "valueOid": "urn:oid:1" + ".1" * LONG + "x"}],
    },
    "a long URI": PATIENT | {"implicitRules": "x" * LONG + " "},
    "long base64": {"resourceType": "Binary", "contentType": "a/b", "data": "AAAA " * LONG + "A"},
    "base64 of white space": {"resourceType": "Binary", "contentType": "a/b", "data": " " * LONG},
    "a long integer": PATIENT | {"multipleBirthInteger": 10**900},
    "a long narrative": PATIENT | {"text": {"status": "generated", "div": " " * LONG + "<x>"}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content_is_refused_in_bounded_time(name: str) -> None:
    started = time.process_time()
    found = check(HOSTILE[name])
    assert time.process_time() - started < 60
    assert 0 < len(found) <= MAX_FINDINGS
    assert all(len(finding.diagnostics) + len(finding.expression) < 700 for finding in found)


def test_findings_stop_at_the_limit() -> None:
    assert len(check(HOSTILE["faulty items"], limit=3)) == 3


def test_endless_nesting_ends_in_a_finding() -> None:
    extension: dict[str, Any] = {"url": "a", "valueString": "a"}
    for _ in range(20_000):
        extension = {"url": "a", "extension": [extension]}
    found = check(PATIENT | {"extension": [extension]})
    assert codes(found) == [("too-costly", "")]


NOISE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just(Number("1.0"))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["id", "extension", "url", "given", "_given", "valueString", "_x", ""]), inner),
    ),
    max_leaves=10,
)


@given(st.sampled_from(VALID), st.data())
@settings(deadline=None, max_examples=300)
def test_a_resource_damaged_anywhere_is_judged_without_failing(file: Path, data: st.DataObject) -> None:
    resource: Any = parse(file.read_bytes())
    node = resource
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = data.draw(NOISE)
        break
    before = copy.deepcopy(resource)
    for finding in check(resource):
        assert finding.severity == "error"
        assert finding.code in ("structure", "required", "value", "code-invalid", "invalid")
        assert finding.diagnostics
    assert resource == before


# --- speed and real data --------------------------------------------------------------------------------------------


def _synthea(shared: Path) -> list[Path]:
    return sorted((shared / "synthea-92k").glob("*.json.bz2"))


@pytest.mark.needs("shared")
def test_a_sample_of_synthea_has_no_findings(shared: Path) -> None:
    files = _synthea(shared)
    assert len(files) == 122
    for file in [*files[:2], *sorted(files, key=lambda item: item.stat().st_size)[2:8]]:
        assert check(parse(bz2.decompress(file.read_bytes()))) == [], file.name


@pytest.mark.long
@pytest.mark.needs("shared")
@pytest.mark.timeout(900)
def test_all_of_synthea_has_no_findings(shared: Path) -> None:
    count = 0
    for file in _synthea(shared):
        bundle = parse(bz2.decompress(file.read_bytes()))
        assert check(bundle) == [], file.name
        count += len(bundle["entry"])
    assert count == 92_114


@pytest.mark.long
@pytest.mark.timeout(900)
def test_only_the_known_defective_official_examples_are_refused() -> None:
    rows = [
        [part.strip() for part in line.split("|")][:4]
        for line in (DATA / "defective-examples.txt").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    refused = []
    count = 0
    for name, data in build.files(r4_package.located()):
        found = check(parse(data))
        count += 1
        if found:
            refused.append([name, str(len(found)), found[0].code, found[0].expression])
    assert count == 5306
    assert sorted(refused) == sorted(rows)
