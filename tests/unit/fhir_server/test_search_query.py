"""Query strings: what each parameter means, what is refused and how, and that no query grows out of bounds."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server import errors
from fhir_server.context import micros
from fhir_server.search import index, literals, query, values
from fhir_server.search.plan import Clause, Include, Plan, Sort, Value
from profiles import definitions


def plan(kind: str, *pairs: tuple[str, str], **options: Any) -> Plan:
    return query.parse(kind, pairs, **options)


def one(kind: str, name: str, text: str, **options: Any) -> Clause:
    (clause,) = plan(kind, (name, text), **options).clauses
    return clause


def refused(kind: str, *pairs: tuple[str, str]) -> list[str]:
    with pytest.raises(errors.PasserelleError) as caught:
        query.parse(kind, pairs)
    assert caught.value.status in (400, 413)
    return [issue.diagnostics for issue in caught.value.issues]


def utc(*parts: int) -> int:
    return micros(datetime(*parts, tzinfo=UTC))  # type: ignore[arg-type,misc]  # never so many as to reach the zone


# --- the nine types --------------------------------------------------------------------------------------------------


def test_a_string_is_folded_and_its_alternatives_are_ored() -> None:
    clause = one("Patient", "name", "  NOËL,Œuvrard")
    assert clause == Clause(
        "name", "string", index.pid("Patient", "name"), (Value(text="noel"), Value(text="oeuvrard"))
    )
    assert one("Patient", "name:exact", "Noël").values == (Value(text="Noël"),)
    assert one("Patient", "name:contains", "OË").values == (Value(text="oe"),)


@pytest.mark.parametrize(
    ("text", "system", "code"),
    [
        ("42", None, "42"),
        ("urn:oid:1.2|42", "urn:oid:1.2", "42"),
        ("|42", "", "42"),
        ("urn:oid:1.2|", "urn:oid:1.2", None),
        (r"a\|b", None, "a|b"),
        (r"a\,b\$c\\d", None, r"a,b$c\d"),
        (r"s\\|x", "s\\", "x"),
    ],
)
def test_a_token_is_system_and_code(text: str, system: str | None, code: str | None) -> None:
    assert one("Patient", "identifier", text).values == (Value(system=system, code=code),)


def test_token_modifiers() -> None:
    assert one("Patient", "gender:not", "male,female").modifier == "not"
    text = one("ServiceRequest", "code:text", "Échographie")
    assert (text.modifier, text.values) == ("text", (Value(text="echographie"),))
    typed = one("Patient", "identifier:of-type", "http://terminology.hl7.org/CodeSystem/v2-0203|MR|42")
    assert typed.pid == index.parameters("Patient")["identifier"].of_type
    assert typed.values == (Value(system="http://terminology.hl7.org/CodeSystem/v2-0203", code="MR|42"),)
    assert typed.modifier == ""


@pytest.mark.parametrize("prefix", literals.PREFIXES)
def test_every_prefix_works_for_dates_numbers_and_quantities(prefix: str) -> None:
    assert one("Patient", "birthdate", f"{prefix}1955-06").values[0].prefix == prefix
    assert one("RiskAssessment", "probability", f"{prefix}0.8").values[0].prefix == prefix
    assert one("Observation", "value-quantity", f"{prefix}5.4||mg").values[0].prefix == prefix


def test_a_date_is_an_interval_on_the_clock_of_the_zone() -> None:
    (value,) = one("Patient", "birthdate", "1955-06-15").values
    assert (value.low, value.high) == (utc(1955, 6, 14, 23), utc(1955, 6, 15, 23))
    (value,) = one("Patient", "birthdate", "ge1955-06-15", zone="UTC").values
    assert (value.prefix, value.low) == ("ge", utc(1955, 6, 15))
    # The plus of an offset becomes a space when a form is decoded.
    (value,) = one("Observation", "date", "2026-01-01T10:00 01:00").values
    assert (value.low, value.high) == (utc(2026, 1, 1, 9), utc(2026, 1, 1, 9, 1))


def test_an_approximate_date_widens_with_its_distance() -> None:
    now = datetime(2026, 1, 11, tzinfo=UTC)
    (value,) = one("Observation", "date", "ap2026-01-01T00:00:00Z", now=now).values
    assert value.low == utc(2025, 12, 31)
    assert value.high == utc(2026, 1, 2, 0, 0, 1)


def test_a_number_is_as_wide_as_it_is_precise_but_exact_for_comparisons() -> None:
    (value,) = one("RiskAssessment", "probability", "0.8").values
    assert value.low == 0.75
    assert 0.8499 < value.high < 0.85
    (value,) = one("RiskAssessment", "probability", "gt0.8").values
    assert (value.low, value.high) == (0.8, 0.8)
    (value,) = one("RiskAssessment", "probability", "ap100").values
    assert (value.low, value.high) == (90, 110)


def test_a_quantity_has_a_number_a_system_and_a_unit() -> None:
    (value,) = one("Observation", "value-quantity", "le5.4|http://unitsofmeasure.org|mg").values
    assert (value.prefix, value.high, value.system, value.code) == ("le", 5.4, "http://unitsofmeasure.org", "mg")
    (value,) = one("Observation", "value-quantity", "5.40||mg").values
    assert (value.system, value.code, value.low) == (None, "mg", 5.395)
    assert one("Observation", "value-quantity", "5").values[0].code is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("subject", "Patient/1", Value(type="Patient", id="1")),
        ("subject", "Patient/1/_history/3", Value(type="Patient", id="1")),
        ("subject", "1", Value(id="1")),
        ("patient", "1", Value(type="Patient", id="1")),
        ("subject:Patient", "1", Value(type="Patient", id="1")),
        ("subject", "http://alias:8080/fhir/v4/Patient/1", Value(text="http://alias:8080/fhir/v4/Patient/1")),
        ("subject", "https://ailleurs.fr/fhir/Patient/1", Value(text="https://ailleurs.fr/fhir/Patient/1")),
        ("subject", "urn:uuid:1", Value(text="urn:uuid:1")),
        ("subject:identifier", "urn:oid:1.2|42", Value(system="urn:oid:1.2", code="42")),
    ],
)
def test_a_reference_in_each_of_its_forms(name: str, text: str, value: Value) -> None:
    clause = one("Observation", name, text, bases=("https://ici.fr/fhir", "http://alias:8080/fhir"))
    assert clause.values == (value,)
    assert clause.modifier == ("identifier" if name.endswith("identifier") else "")


@pytest.mark.parametrize("version", ["", "/_history/2"])
@pytest.mark.parametrize("base", ["https://ici.fr/fhir", "http://alias:8080/fhir"])
def test_a_reference_to_this_server_by_its_url_means_the_url_as_well(base: str, version: str) -> None:
    clause = one("Observation", "subject", f"{base}/Patient/1{version}", bases=("https://ici.fr/fhir", base))
    assert clause.values == (Value(type="Patient", id="1"), Value(text=f"{base}/Patient/1"))


def test_a_uri_is_taken_as_it_stands() -> None:
    assert one("ValueSet", "url", "https://exemple.fr/A").values == (Value(text="https://exemple.fr/A"),)
    assert one("ValueSet", "url:below", "https://exemple.fr").modifier == "below"


def test_nearness_is_normalised_to_kilometres() -> None:
    assert one("Location", "near", "47.2|6.0|500|m").values == (Value(text="47.2|6.0|0.5"),)
    assert one("Location", "near", "47.2|6.0").values == (Value(text="47.2|6.0|10.0"),)


def test_missing_asks_for_presence() -> None:
    assert one("Patient", "birthdate:missing", "true").missing is True
    assert one("Patient", "birthdate:missing", "false").missing is False
    for name in ("_id:missing", "_lastUpdated:missing", "_tag:missing", "_profile:missing", "_source:missing"):
        assert one("Patient", name, "true").missing is True


def test_columns_have_no_index_id() -> None:
    clause = one("Patient", "_id", "a,b")
    assert (clause.pid, clause.type, clause.values) == (0, "token", (Value(code="a"), Value(code="b")))
    assert one("Patient", "_lastUpdated", "gt2026-01-01").pid == 0


# --- chains ----------------------------------------------------------------------------------------------------------


def test_a_chain_leads_to_the_clause_of_the_target() -> None:
    clause = one("Observation", "subject:Patient.name:exact", "Noël")
    assert (clause.name, clause.type, clause.chain_types) == ("subject", "reference", ("Patient",))
    (inner,) = clause.chain
    assert (inner.pid, inner.modifier) == (index.pid("Patient", "name"), "exact")


def test_a_chain_goes_on_through_several_references() -> None:
    clause = one("Observation", "patient.organization.address-city", "Besançon")
    (second,) = clause.chain
    (third,) = second.chain
    assert [clause.chain_types, second.chain_types] == [("Patient",), ("Organization",)]
    assert third.values == (Value(text="besancon"),)


def test_a_chain_over_several_types_looks_in_each() -> None:
    clause = one("Observation", "subject.identifier", "urn:oid:1.2|42")
    assert set(clause.chain_types) == {"Patient", "Group", "Device", "Location"}
    (inner,) = clause.chain
    assert set(inner.pids) == {index.pid(kind, "identifier") for kind in clause.chain_types}
    assert inner.pid == index.pid("Patient", "identifier")


def test_a_chain_over_types_that_disagree_must_say_which() -> None:
    # StructureDefinition.type is a uri, the others are tokens.
    assert "say which" in refused("Task", ("focus.type", "x"))[0]
    assert one("Task", "focus:Encounter.type", "x").chain_types == ("Encounter",)


def test_has_looks_from_the_other_side() -> None:
    clause = one("Patient", "_has:Observation:patient:code", "http://loinc.org|1")
    assert clause.reverse == ("Observation", index.pid("Observation", "patient"))
    (inner,) = clause.chain
    assert inner.pid == index.pid("Observation", "code")


def test_has_may_be_nested_and_chained() -> None:
    nested = one("Patient", "_has:Observation:patient:_has:Provenance:target:recorded", "2026")
    assert nested.chain[0].reverse == ("Provenance", index.pid("Provenance", "target"))
    chained = one("Patient", "_has:Observation:patient:performer:Practitioner.family", "Martin")
    assert chained.chain[0].chain[0].pid == index.pid("Practitioner", "family")
    through = one("Observation", "subject:Patient._has:Task:patient:status", "requested")
    assert through.chain[0].reverse == ("Task", index.pid("Task", "patient"))


# --- the result ------------------------------------------------------------------------------------------------------


def test_parameters_of_the_result() -> None:
    got = plan(
        "ServiceRequest",
        ("_sort", "-authored,status,_id"),
        ("_count", "7"),
        ("_total", "accurate"),
        ("_include", "ServiceRequest:patient"),
        ("_include:iterate", "Patient:organization:Organization"),
        ("_revinclude", "Task:focus"),
        ("_include", "*"),
    )
    assert got.sort == (
        Sort("authored", "date", index.pid("ServiceRequest", "authored"), True),
        Sort("status", "token", index.pid("ServiceRequest", "status")),
        Sort("_id", "token", 0),
    )
    assert (got.count, got.total) == (7, "accurate")
    assert got.includes == (
        Include("ServiceRequest", index.pid("ServiceRequest", "patient")),
        Include("Patient", index.pid("Patient", "organization"), ("Organization",), iterate=True),
        Include("Task", index.pid("Task", "focus"), reverse=True),
        Include("", 0),
    )
    assert plan("Patient").count == query.DEFAULT_COUNT
    assert plan("Patient", ("_count", "0")).count == 0


def test_rendering_parameters_are_accepted_and_left_alone() -> None:
    got = plan("Patient", ("_summary", "true"), ("_elements", "name"), ("_format", "json"), ("_pretty", "true"))
    assert got.clauses == ()
    assert len(got.self_link) == 4


def test_a_search_over_several_types() -> None:
    got = plan("", ("_type", "Patient,Practitioner"), ("name", "x"), ("_tag", "a"))
    assert got.types == ("Patient", "Practitioner")
    assert got.clauses[0].pids == (index.pid("Patient", "name"), index.pid("Practitioner", "name"))
    assert got.clauses[1].pids == ()
    assert plan("", ("_tag", "a")).types == ()
    assert "needs a resource type" in refused("", ("name", "x"))[0]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_an_unknown_parameter_is_an_error_that_lists_the_known_ones() -> None:
    (text,) = refused("Patient", ("nam", "x"))
    assert "`nam` is no search parameter of Patient. Did you mean `name`?" in text
    listed = text.partition("Known are: ")[2].rstrip(".").split(", ")
    assert listed == sorted(listed)
    assert {"name", "birthdate", "_has", "_lastUpdated", "identifier"} <= set(listed)


def test_every_problem_is_an_issue_of_its_own() -> None:
    texts = refused("Patient", ("foo", "1"), ("gender:in", "x"), ("birthdate", "hier"), ("_count", "x"), ("name", ""))
    assert len(texts) == 5


def test_lenience_leaves_out_what_cannot_be_used_and_says_so_in_the_self_link() -> None:
    got = plan("Patient", ("foo", "1"), ("name", "x"), ("birthdate", "hier"), ("_text", "("), lenient=True)
    assert [clause.name for clause in got.clauses] == ["name"]
    assert got.self_link == (("name", "x"),)


@pytest.mark.parametrize(
    ("kind", "name", "text", "says"),
    [
        ("Patient", "gender:in", "http://x", "terminology"),
        ("Condition", "code:below", "1", "terminology"),
        ("Patient", "gender:exact", "x", "it has :missing, :not, :text, :of-type"),
        ("Observation", "subject:foo", "1", ":[type]"),
        ("Observation", "subject:Practitioner", "1", "never refers to Practitioner"),
        ("Observation", "subject:Patient", "Group/1", "names a Group"),
        ("Observation", "subject", "Patiente/1", "no resource type"),
        ("Observation", "code.name", "x", "only references have chains"),
        ("Observation", "subject:Patient.foo", "x", "no search parameter of Patient"),
        ("Observation", "subject.zzz", "x", "none of"),
        ("MolecularSequence", "chromosome-variant-coordinate", "a$1", "three values"),
        ("MolecularSequence", "chromosome-variant-coordinate", "a$1$x", "a number is"),
        ("Observation", "code-value-quantity", "a", "with a $ between"),
        ("Observation", "code-value-quantity", "urn:s|$1", "its code is written"),
        ("Observation", "code-value-quantity:exact", "a$1", "no modifier"),
        ("Observation", "value-quantity", "x", "a number is written"),
        ("Observation", "value-quantity", "1|mg", "a quantity is"),
        ("Patient", "identifier", "|", "a token is"),
        ("Patient", "identifier", "a|b|c", "a token is"),
        ("Patient", "identifier:of-type", "a|b", "of-type takes"),
        ("Patient", "birthdate", "1955-13", "a date is"),
        ("Patient", "birthdate:missing", "yes", "true or false"),
        ("Patient", "_id:missing", "yes", "true or false"),
        ("Patient", "name", "a,,b", "empty value"),
        ("Patient", "name", "\u0301", "no letter"),
        ("Location", "near", "91|0|1|km", "latitude"),
        ("Patient", "_sort", "foo", "no search parameter"),
        ("Location", "_sort", "near", "cannot be sorted"),
        ("Patient", "_total", "yes", "none, estimate or accurate"),
        ("Patient", "_count", "-1", "no number"),
        ("Patient", "_include", "Patient", "not of the form"),
        ("Patient", "_include", "Patient:gender", "no reference parameter"),
        ("Patient", "_include:foo", "Patient:link", "only modifier is :iterate"),
        ("Patient", "_has:Observation:code:code", "x", "no reference parameter"),
        ("Patient", "_has:Observation:patient", "x", "not of the form"),
        ("Organization", "_has:Observation:patient:code", "x", "never refers to Organization"),
        ("Patient", "_text", "(a", "not closed"),
        ("Patient", "_content:exact", "a", "no modifier"),
        ("Patient", "_query", "x", "named queries"),
        ("Patient", "phonetic", "x", "by sound"),
        ("Patient", "_containedType", "x", "container or contained"),
        ("Patient", "_contained", "x", "false, true or both"),
        ("Patient", "_filter", "name", "an operator is expected"),
        ("Patiente", "name", "x", "no resource type"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_remedy(kind: str, name: str, text: str, says: str) -> None:
    assert says in refused(kind, (name, text))[0]


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_a_search_is_bounded() -> None:
    for kind, pairs in (
        ("Patient", [("name", ",".join(f"n{i}" for i in range(1001)))]),
        ("Patient", [("name", "n")] * 201),
        ("Patient", [("name", "n" * 10_001)]),
        ("Task", [("focus." * 21 + "_id", "x")]),
        ("Task", [("_has:Task:focus:" * 21 + "_id", "x")]),
        ("Task", [("part-of." * 16 + "_id", "x")] * 4),
        ("Patient", [("_sort", ",".join(["name"] * 17))]),
    ):
        with pytest.raises(errors.TooLarge) as caught:
            query.parse(kind, pairs)
        assert caught.value.status == 413


def test_a_deep_chain_through_every_type_is_worked_out_once() -> None:
    started = time.monotonic()
    clause = one("Task", "focus." * 9 + "identifier", "x")
    assert time.monotonic() - started < 60
    depth = 0
    while clause.chain:
        clause, depth = clause.chain[0], depth + 1
    assert depth == 9


def test_alternatives_are_kept_once() -> None:
    assert len(one("Patient", "name", ",".join(["Noël"] * 1000)).values) == 1


@settings(deadline=None)
@given(
    st.sampled_from(["Patient", "Observation", "Task", "ServiceRequest", "Location", ""]),
    st.text(alphabet="abcdenmis_:.-[]hasPtO", max_size=25),
    st.text(alphabet="ab12|,$\\-.:/éTZ% ", max_size=25),
)
def test_any_pair_is_a_plan_or_an_error_with_a_sentence(kind: str, name: str, text: str) -> None:
    try:
        assert isinstance(query.parse(kind, [(name, text)]), Plan)
    except errors.PasserelleError as problem:
        assert problem.status in (400, 413)
        assert problem.diagnostics


@settings(deadline=None)
@given(st.sampled_from(sorted(definitions.resource_types())), st.data())
def test_every_parameter_of_r4_can_be_asked_for(kind: str, data: st.DataObject) -> None:
    parameter = data.draw(st.sampled_from(list(index.parameters(kind).values())))
    sample = {"date": "2026", "number": "1", "quantity": "1||mg", "special": "1|1", "reference": "1"}
    if parameter.type == "composite":
        assert parameter.composite is not None
        other = parameter.composite.type
        rest = "$".join([sample.get(other, "x")] * (parameter.composite.parts - 1))
        clause = one(kind, parameter.code, f"a${rest}")
        assert (clause.pid, clause.type) == (parameter.pid, other)
        return
    clause = one(kind, parameter.code, sample.get(parameter.type, "x"))
    assert (clause.pid, clause.type) == (parameter.pid, parameter.type)


def test_what_is_indexed_is_what_is_asked() -> None:
    """The two sides agree: rows of a resource against values of a query, without a database."""
    patient = {
        "resourceType": "Patient",
        "name": [{"family": "NOËL"}],
        "birthDate": "1955-06-15",
        "identifier": [{"system": "urn:oid:1.2", "value": "42"}],
        "managingOrganization": {"reference": "Organization/o1/_history/2"},
    }
    rows = index.rows(patient)
    (text,) = one("Patient", "family", "noe").values
    assert any(pid == index.pid("Patient", "family") and folded.startswith(text.text) for pid, folded, _ in rows.string)
    (token,) = one("Patient", "identifier", "urn:oid:1.2|42").values
    assert (index.pid("Patient", "identifier"), token.system, token.code, "") in rows.token
    (date,) = one("Patient", "birthdate", "1955-06").values
    (row,) = rows.date
    assert date.low <= row[1]
    assert row[2] <= date.high
    (reference,) = one("Patient", "organization", "o1").values
    assert [(row[1], row[2]) for row in rows.reference] == [(reference.type, reference.id)]
    assert values.bounded("x") == "x"
