"""The FHIRPath engine on our own data: every function, every error with its place, hostile expressions bounded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles import definitions, json_text
from profiles.fhirpath import check, engine, model, values
from profiles.fhirpath.engine import compile
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.functions import FUNCTIONS
from profiles.fhirpath.parser import parse

DATA = Path(__file__).resolve().parents[2] / "data" / "fhirpath"
PATIENT = json_text.parse((DATA / "patient.json").read_bytes())
NOW = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=timezone(timedelta(hours=1)))


class Codes:
    """A terminology that knows one code system."""

    def member_of(self, value_set: str, codings: Sequence[tuple[str | None, str]]) -> bool | None:
        known = definitions.value_set_codes(value_set)
        if known is None:
            return None
        return any(code in {c for s, c in known if system in (None, s)} for system, code in codings)

    def subsumes(self, system: str, ancestor: str, descendant: str) -> bool | None:
        return ancestor == descendant if system == "urn:essai" else None


class Ours:
    """Profiles: one is known, and everything conforms to it."""

    def conforms(self, element: Mapping[str, Any], profile: str) -> bool | None:
        return True if profile.endswith("/patient") else None


def services() -> dict[str, Any]:
    others = {"Patient/essai-2": {"resourceType": "Patient", "id": "essai-2"}}
    return {
        "resolve": others.get,
        "terminology": Codes(),
        "profiles": Ours(),
        "variables": {"mine": "given by the caller"},
        "now": NOW,
    }


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("\n", "⏎") + "'"
    if isinstance(value, values.Temporal):
        return ("@T" if value.kind == "Time" else "@") + str(value)
    if isinstance(value, values.Quantity):
        unit = value.unit if value.unit in values.CALENDAR_UNITS and value.unit != "day" else f"'{value.unit}'"
        return f"{value.value} {unit}"
    if isinstance(value, model.TypeInfo):
        return f"{value.namespace}.{value.name}"
    return str(value)


def table() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    pending = ""
    for line in (DATA / "cases.txt").read_text("utf-8").splitlines():
        if line.startswith("#") or not (line or pending):
            continue
        pending += line
        if " =>" in pending:
            expression, _, expected = pending.rpartition(" =>")
            found.append((expression, expected.strip()))
            pending = ""
        else:
            pending += "\n"
    return found


@pytest.mark.parametrize(("expression", "expected"), table())
def test_an_expression_gives_what_the_standard_says(expression: str, expected: str) -> None:
    if expected.startswith("!"):
        with pytest.raises(FhirPathError) as caught:
            compile(expression)(PATIENT, **services())
        assert caught.value.kind == expected[1:]
        assert caught.value.line >= 1
        assert caught.value.column >= 1
    else:
        assert " ; ".join(shown(one) for one in compile(expression)(PATIENT, **services())) == expected


def test_every_function_of_the_library_is_in_the_table() -> None:
    text = "\n".join(expression for expression, _ in table())
    assert [name for name in FUNCTIONS if f"{name}(" not in text] == []


def words(text: str) -> list[str]:
    return text.split()


# http://hl7.org/fhirpath/N1/ section 5 in its order, then 6.3.2, 6.3.4, 6.5.3, 7.1 and 10.2.
NORMATIVE = words("""
    empty exists all allTrue anyTrue allFalse anyFalse subsetOf supersetOf count distinct isDistinct
    where select repeat ofType single first last tail skip take intersect exclude union combine iif
    toBoolean convertsToBoolean toInteger convertsToInteger toDate convertsToDate toDateTime convertsToDateTime
    toDecimal convertsToDecimal toQuantity convertsToQuantity toString convertsToString toTime convertsToTime
    indexOf substring startsWith endsWith contains upper lower replace matches replaceMatches length toChars
    abs ceiling exp floor ln log power round sqrt truncate children descendants trace now timeOfDay today
    is as not aggregate type
""")
# https://hl7.org/fhir/R4/fhirpath.html#functions
OF_FHIR = words("""
    extension hasValue getValue resolve elementDefinition slice checkModifiers conformsTo memberOf subsumes subsumedBy
    htmlChecks
""")
# Of the draft that follows N1; the R4 suite has tests for most of them.
OF_THE_DRAFT = words("""
    comparable decode encode escape hasExtension highBoundary join lastIndexOf lowBoundary matchesFull precision sort
    split trim unescape
""")


def test_the_library_is_whole() -> None:
    assert sorted((*NORMATIVE, *OF_FHIR, *OF_THE_DRAFT)) == sorted(FUNCTIONS)


OPERATORS = ["=", "~", "!=", "!~", ">", "<", "<=", ">=", "is", "as", "|", "in", "contains", "and", "or", "xor",
             "implies", "*", "/", "+", "-", "div", "mod", "&"]  # fmt: skip


def test_every_operator_is_in_the_table() -> None:
    text = "\n".join(expression for expression, _ in table())
    assert [name for name in OPERATORS if f" {name} " not in text] == []


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_says_where_it_was_asked_for_too_much(name: str) -> None:
    with pytest.raises(FhirPathError, match=rf"{name}\(\) takes") as caught:
        compile("name\n  ." + name + "(" + ", ".join("a" * 70) + ")")
    assert (caught.value.kind, caught.value.line, caught.value.column) == ("semantic", 2, 4)


def test_a_wrong_name_is_answered_with_the_nearest_right_one() -> None:
    with pytest.raises(
        FhirPathError, match=r"line 2, column 7: there is no function frist\(\); did you mean first\(\)"
    ):
        compile("Patient\n.name.frist()")


def test_an_error_deep_in_an_expression_says_where_it_happened() -> None:
    with pytest.raises(FhirPathError) as caught:
        compile("name.where(use = 'usual')\n  .given.single() = name.given.single()")(PATIENT)
    assert (caught.value.line, caught.value.column) == (2, 32)


def test_the_fast_path_and_the_typed_path_agree_on_misshapen_json() -> None:
    odd = {
        "resourceType": "Patient",
        "name": {"given": "Ana"},
        "telecom": "x",
        "contact": [3, None, {"gender": "male"}],
    }
    assert compile("name.given")(odd) == ["Ana"]
    assert compile("telecom.system")(odd) == []
    assert compile("contact.gender")(odd) == ["male"]


def test_a_primitive_known_by_its_extension_only_has_no_plain_value() -> None:
    patient = {"resourceType": "Patient", "_birthDate": {"extension": [{"url": "u", "valueCode": "unknown"}]}}
    assert compile("birthDate")(patient) == []
    assert compile("birthDate.exists()")(patient) == [True]
    assert compile("birthDate.hasValue()")(patient) == [False]
    assert compile("birthDate.extension('u').value")(patient) == ["unknown"]


def test_a_node_knows_where_it_stands() -> None:
    nodes = compile("Patient.name.given").nodes(model.root_node(PATIENT))
    assert [model.location(node) for node in nodes][-1] == "Patient.name[1].given[0]"
    assert nodes[0].type == "string"


def test_decimals_keep_their_digits_through_arithmetic() -> None:
    observation = {"resourceType": "Observation", "valueQuantity": {"value": json_text.Number("72.50")}}
    assert str(compile("value.value")(observation)[0]) == "72.50"
    assert compile("value.value + 0.500")(observation) == [Decimal("73.000")]
    assert str(compile("value.value * 2")(observation)[0]) == "145.00"


@settings(deadline=None)
@given(st.decimals(-1000, 1000, places=5), st.integers(0, 5), st.integers(0, 8))
def test_a_value_lies_between_its_boundaries(value: Decimal, written: int, digits: int) -> None:
    number = values.rounded(value, written)
    given = {"resourceType": "Observation", "valueQuantity": {"value": json_text.Number(number)}}
    (low,) = compile(f"value.value.lowBoundary({digits})")(given)
    (high,) = compile(f"value.value.highBoundary({digits})")(given)
    assert low <= number <= high
    assert values.places(low) == values.places(high) == digits


def test_trace_reports_what_passes() -> None:
    heard: list[tuple[str, list[Any]]] = []
    compile("name.given.trace('g', $this.length())")(PATIENT, trace=lambda name, items: heard.append((name, items)))
    assert heard == [("g", [6, 3, 4])]


def test_an_expression_may_start_on_a_data_type() -> None:
    assert compile("family")({"family": "Noël"}, type_name="HumanName") == ["Noël"]
    assert compile("HumanName.given.first()")({"given": ["Ana"]}, type_name="HumanName") == ["Ana"]


def test_a_resource_without_a_known_type_is_an_error() -> None:
    with pytest.raises(FhirPathError, match="no type of FHIR R4"):
        compile("name.first()")({"resourceType": "Patiente", "name": []})


def test_an_entry_of_the_same_bundle_resolves() -> None:
    bundle = {
        "resourceType": "Bundle",
        "entry": [
            {"fullUrl": "urn:uuid:1", "resource": {"resourceType": "Patient", "id": "p", "gender": "other"}},
            {"resource": {"resourceType": "Observation", "subject": {"reference": "urn:uuid:1"}}},
        ],
    }
    assert compile("entry.resource.subject.resolve().gender")(bundle) == ["other"]


def test_as_filters_collections_only_where_it_is_asked_to() -> None:
    expression = "(Observation.component.value as Quantity).value"
    resource = {
        "resourceType": "Observation",
        "component": [{"valueQuantity": {"value": 1}}, {"valueString": "x"}, {"valueQuantity": {"value": 2}}],
    }
    with pytest.raises(FhirPathError, match="single item"):
        compile(expression)(resource)
    assert compile(expression, as_filters=True)(resource) == [1, 2]
    assert compile(expression, search=True)(resource) == [1, 2]


def test_every_invariant_of_r4_is_understood() -> None:
    names = definitions.resource_types() | definitions.data_types() | {"Resource", "DomainResource"}
    wrong: dict[str, str] = {}
    total = 0
    for name in names:
        for rule in definitions.invariants(name):
            total += 1
            compile(rule.expression)
            try:
                check.check(rule.expression, rule.path)
            except (FhirPathError, KeyError) as problem:
                wrong[rule.key] = str(problem)
    assert total > 900
    # cid-0 names an element that R4 does not have; ras-1 stands on a choice of types.
    assert sorted(wrong) == ["cid-0", "ras-1"]


@pytest.mark.parametrize(
    ("expression", "place", "message"),
    [
        ("name.given1", "Patient", "Patient.name|HumanName has no element given1; did you mean given"),
        ("Encounter.status", "Patient", "Encounter is not the type of the focus, which is Patient"),
        ("valueQuantity.unit", "Observation", "valueQuantity is spelled value in FHIRPath"),
        ("(value as Period).unit", "Observation", "Period has no element unit"),
        ("identifier.startsWith('x')", "Patient", r"startsWith\(\) takes a string, not Identifier"),
        ("iif('x', 1, 2)", "Patient", "the criterion of iif"),
        ("birthDate + 7", "Patient", "adds a duration"),
        ("name.familly.first()", "Patient.contact", "did you mean family"),
    ],
)
def test_the_static_check_finds_what_can_never_work(expression: str, place: str, message: str) -> None:
    with pytest.raises(FhirPathError, match=message) as caught:
        check.check(expression, place)
    assert caught.value.kind == "semantic"
    assert caught.value.line == 1


def test_the_static_check_minds_order_only_when_asked() -> None:
    check.check("Patient.children().skip(1)", "Patient")
    with pytest.raises(FhirPathError, match="needs an order"):
        check.check("Patient.children().skip(1)", "Patient", ordered=True)


# --- hostile expressions (more of them in test_hostile_input.py) -----------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)+$", "(a|a?)+$", "(.*a){20}", "a?" * 60 + "a" * 60 + "!", "(x+x+)+y", "([a-z]+)*[0-9]", "(a*)*b"],
)
def test_a_catastrophic_pattern_is_bounded(pattern: str) -> None:
    text = "a" * 3000 + "x" * 500
    started = time.monotonic()
    for expression in (f"'{text}'.matches('{pattern}')", f"'{text}'.replaceMatches('{pattern}', '-')"):
        try:
            assert len(compile(expression)(PATIENT)) == 1
        except FhirPathError as error:
            assert "costly" in error.message
    assert time.monotonic() - started < 60


def test_an_absurd_number_does_not_fill_the_memory() -> None:
    huge = {"resourceType": "Observation", "valueQuantity": {"value": json_text.Number("1e900")}}
    assert compile("value.value.toString()")(huge) == []
    assert compile("value.value = 1")(huge) == [False]
    with pytest.raises(FhirPathError, match="60 digits"):
        compile("value.value + 1")(huge)
    assert compile("2.power(2147483647)")(huge) == []


@settings(deadline=None)
@given(st.text(alphabet="ab.()[]'`|&+-*/=<>~!,${}@%0123456789 \\nTZ:", max_size=60))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    try:
        parse(text)
    except FhirPathError as error:
        assert error.kind == "syntax"
        assert error.line >= 1


@settings(deadline=None)
@given(st.sampled_from([e for e, r in table() if not r.startswith("!")]), st.data())
def test_a_damaged_expression_never_breaks_the_engine(expression: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(expression)))
    other = data.draw(st.sampled_from([e for e, _ in table()]))
    try:
        engine.evaluate(expression[:cut] + other, PATIENT, **services())
    except FhirPathError as error:
        assert error.message
