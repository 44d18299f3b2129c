"""Index rows: what each search type keeps of each FHIR type, and that no resource can make too many."""

from __future__ import annotations

import copy
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server import errors
from fhir_server.context import micros
from fhir_server.search import index, values
from fhir_server.search.rows import IndexRows
from profiles import definitions, json_text

DATA = Path(__file__).resolve().parents[2] / "data" / "search"
RESOURCES: list[dict[str, Any]] = json_text.parse((DATA / "resources.json").read_bytes())["entry"]
UCUM = "http://unitsofmeasure.org"


def resource(kind: str, key: str = "") -> dict[str, Any]:
    return copy.deepcopy(
        next(one for one in RESOURCES if one["resourceType"] == kind and (not key or one["id"] == key))
    )


def found(kind: str, code: str, table: str, key: str = "", zone: str = "Europe/Paris") -> list[tuple[Any, ...]]:
    """The rows of one parameter, without its id."""
    pid = index.pid(kind, code)
    rows = getattr(index.rows(resource(kind, key), zone=zone), table)
    return [row[1:] for row in rows if row[0] == pid]


def utc(*parts: int) -> int:
    return micros(datetime(*parts, tzinfo=UTC))  # type: ignore[arg-type,misc]  # never so many as to reach the zone


# --- string ----------------------------------------------------------------------------------------------------------


def test_a_name_is_found_by_each_of_its_parts_without_accents_or_case() -> None:
    assert found("Patient", "name", "string") == [
        ("noel", "NOËL"),
        ("elodie", "Élodie"),
        ("zoe", "Zoé"),
        ("mme", "Mme"),
        ("mme elodie noel", "Mme Élodie NOËL"),
    ]
    assert found("Patient", "family", "string") == [("noel", "NOËL")]
    assert found("Patient", "given", "string") == [("elodie", "Élodie"), ("zoe", "Zoé")]


def test_an_address_is_found_by_its_parts() -> None:
    assert [row[0] for row in found("Patient", "address", "string")] == [
        "1 rue des oeillets",
        "besancon",
        "25000",
        "fra",
    ]
    assert found("Patient", "address-city", "string") == [("besancon", "Besançon")]


def test_a_value_string_is_folded_with_its_spaces_collapsed() -> None:
    assert found("Observation", "value-string", "string", "o3") == [("peau erythemateuse", "Peau  ÉRYTHÉMATEUSE")]
    assert found("Observation", "value-string", "string", "o4") == [("positif", "Positif")]


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("  Jean-François\tL’Hôpital ", "jean-francois l'hopital"),
        ("STRASSE straße", "strasse strasse"),
        ("Œuvre ÆTHER", "oeuvre aether"),
        ("ﬁn ①", "fin 1"),
        ("Ἀθῆναι", "αθηναι"),
        ("İstanbul", "istanbul"),
        ("山田", "山田"),
        ("", ""),
    ],
)
def test_text_is_folded(text: str, folded: str) -> None:
    assert values.fold(text) == folded


@settings(deadline=None)
@given(st.text(max_size=80))
def test_folding_twice_changes_nothing(text: str) -> None:
    once = values.fold(text)
    assert values.fold(once) == once


def test_a_long_text_is_cut_at_a_character_and_told_apart_by_its_hash() -> None:
    first, second = "é" * 5000 + "a", "é" * 5000 + "b"
    for text in (first, second):
        assert len(values.bounded(text).encode()) <= 1000
        assert values.bounded(values.bounded(text)) == values.bounded(text)
    assert values.bounded(first) != values.bounded(second)
    assert values.bounded("é" * 500) == "é" * 500
    organisation = {"resourceType": "Organization", "name": "N" * 3000}
    (row,) = index.rows(organisation).string
    assert row[1].startswith("n" * 960 + "#")


# --- token -----------------------------------------------------------------------------------------------------------


def test_tokens_of_each_kind() -> None:
    assert found("Patient", "identifier", "token") == [("urn:oid:1.2.3", "42", "n° de dossier")]
    assert found("Patient", "gender", "token") == [("http://hl7.org/fhir/administrative-gender", "female", "")]
    assert found("Patient", "active", "token") == [("http://terminology.hl7.org/CodeSystem/special-values", "true", "")]
    assert found("Patient", "email", "token") == [("email", "e.noel@exemple.fr", "")]
    assert found("Patient", "phone", "token") == [("phone", "0123456789", "")]
    assert found("Patient", "_tag", "token") == [("urn:t", "x", "etiquette")]
    assert found("Observation", "code", "token", "o1") == [
        ("http://loinc.org", "85354-9", "blood pressure"),
        ("urn:local", "PA", ""),
    ]
    assert found("Encounter", "class", "token") == [("http://terminology.hl7.org/CodeSystem/v3-ActCode", "AMB", "")]
    assert found("ValueSet", "version", "token") == [("", "1", "")]
    assert found("ValueSet", "code", "token") == [("", "a", ""), ("", "b", "")]
    assert found("MessageHeader", "event", "token") == [("", "urn:evenement", "")]


def test_a_concept_without_a_code_is_found_by_its_text() -> None:
    assert found("ServiceRequest", "code", "token") == [("", "", "avis echographique")]
    assert found("Observation", "value-concept", "token", "o4") == [("urn:v", "pos", ""), ("", "", "positif")]


def test_an_identifier_is_found_by_its_type_too() -> None:
    parameter = index.parameters("Patient")["identifier"]
    rows = [row for row in index.rows(resource("Patient")).token if row[0] == parameter.of_type]
    assert rows == [(parameter.of_type, "http://terminology.hl7.org/CodeSystem/v2-0203", "MR|42", "")]


def test_being_dead_is_computed() -> None:
    special = "http://terminology.hl7.org/CodeSystem/special-values"
    assert found("Patient", "deceased", "token") == [(special, "true", "")]
    for said, dead in (({"deceasedBoolean": False}, "false"), ({"deceasedBoolean": True}, "true"), ({}, "false")):
        rows = index.rows({"resourceType": "Patient", **said}).token
        assert [row[2] for row in rows] == [dead]


# --- date ------------------------------------------------------------------------------------------------------------


def test_dates_are_intervals_on_the_clock_of_the_zone() -> None:
    assert found("Patient", "birthdate", "date") == [(utc(1955, 6, 14, 23), utc(1955, 6, 15, 23))]
    assert found("Patient", "birthdate", "date", zone="Indian/Reunion") == [
        (utc(1955, 6, 14, 20), utc(1955, 6, 15, 20))
    ]
    assert found("Observation", "date", "date", "o4") == [(utc(2026, 1, 31, 23), utc(2026, 2, 28, 23))]
    assert found("ServiceRequest", "authored", "date") == [(utc(2026, 1, 2, 9) + 250_000, utc(2026, 1, 2, 9) + 251_000)]


def test_periods_and_timings_give_their_outer_limits() -> None:
    assert found("Observation", "date", "date", "o1") == [(utc(2025, 12, 31, 23), utc(2026, 1, 2, 11, 0, 1))]
    assert found("Encounter", "date", "date") == [(utc(2026, 1, 1, 9), values.OPEN_HIGH)]
    assert found("Task", "period", "date") == [(values.OPEN_LOW, utc(2026, 12, 31, 23))]
    assert found("ServiceRequest", "occurrence", "date") == [(utc(2026, 1, 4, 8), values.OPEN_HIGH)]


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("2026", (utc(2026, 1, 1), utc(2027, 1, 1))),
        ("2024-02", (utc(2024, 2, 1), utc(2024, 3, 1))),
        ("2024-12-31", (utc(2024, 12, 31), utc(2025, 1, 1))),
        ("2026-01-01T10:30", (utc(2026, 1, 1, 10, 30), utc(2026, 1, 1, 10, 31))),
        ("2026-01-01T10:30:05Z", (utc(2026, 1, 1, 10, 30, 5), utc(2026, 1, 1, 10, 30, 6))),
        ("2026-01-01T10:30:05.1234567Z", (utc(2026, 1, 1, 10, 30, 5) + 123_456, utc(2026, 1, 1, 10, 30, 5) + 123_457)),
        ("2026-01-01T00:30:00-03:30", (utc(2026, 1, 1, 4), utc(2026, 1, 1, 4, 0, 1))),
        ("0001-01-01", (utc(1, 1, 1), utc(1, 1, 2))),
        ("9999", (utc(9999, 1, 1), utc(9999, 12, 31) + 86_400_000_000)),
        ("2026-13", None),
        ("2026-02-30", None),
        ("2026-01-01T25:00:00Z", None),
        ("2026-01-01T10:61:00Z", None),
        ("hier", None),
        ("", None),
        ("2026-01-01T10:00:00+0100", None),
    ],
)
def test_a_date_is_read(text: str, interval: tuple[int, int] | None) -> None:
    assert values.date_range(text, "UTC") == interval


def test_the_night_of_the_clock_change_is_an_hour_longer_or_shorter() -> None:
    summer, winter = values.date_range("2026-03-29", "Europe/Paris"), values.date_range("2026-10-25", "Europe/Paris")
    assert summer is not None
    assert winter is not None
    assert (summer[1] - summer[0]) // 3_600_000_000 == 23
    assert (winter[1] - winter[0]) // 3_600_000_000 == 25


def test_the_first_and_last_days_of_the_calendar_have_rows_in_every_zone() -> None:
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago", "Europe/Paris"):
        for text in ("0001-01-01", "9999-12-31", "0001-01-01T00:00:00", "9999-12-31T23:59:59"):
            interval = values.date_range(text, zone)
            assert interval is not None
            assert interval[0] < interval[1]


def test_an_unknown_zone_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="Mars/Olympus"):
        values.date_range("2026-01-01", "Mars/Olympus")


# --- number, quantity ------------------------------------------------------------------------------------------------


def test_numbers_are_exact_and_ranges_open() -> None:
    assert found("RiskAssessment", "probability", "number") == [(0.000168, 0.000168), (0.2, values.NUMBER_HIGH)]


def test_quantities_keep_unit_and_comparator() -> None:
    rows = found("Observation", "component-value-quantity", "quantity", "o1")
    assert rows[0] == (UCUM, "mm[Hg]", 120.5, 120.5, "g.m-1.s-2", 16065301.0, 16065301.0)
    assert rows[1] == ("", "mm Hg", 120.5, 120.5, "", 0.0, 0.0)
    system, code, low, high, *_ = rows[2]
    assert (system, code, low) == ("", "mm[Hg]", values.NUMBER_LOW)
    assert 79.999 < high < 80
    assert found("Encounter", "length", "quantity")[0][:4] == (UCUM, "min", 45.0, 45.0)
    assert found("Condition", "onset-age", "quantity")[0][:4] == (UCUM, "a", 52.0, 52.0)
    assert found("Invoice", "totalnet", "quantity") == [("urn:iso:std:iso:4217", "EUR", 23.5, 23.5, "", 0.0, 0.0)]
    assert found("ValueSet", "context-quantity", "quantity") == [("", "", 1.0, 9.0, "", 0.0, 0.0)]
    assert found("Observation", "value-quantity", "quantity", "o2")[0][:4] == (UCUM, "mV", 6.0, 17.0)


def canonical(value: str, code: str, **more: Any) -> tuple[Any, ...]:
    quantity = {"value": json_text.Number(value), "system": UCUM, "code": code, **more}
    rows = index.rows({"resourceType": "Observation", "valueQuantity": quantity}).quantity
    return rows[0][5:]


def test_a_measurement_has_one_canonical_form_however_it_is_spelled() -> None:
    assert canonical("1.5", "kg") == canonical("1500", "g") == ("g", 1500.0, 1500.0)
    assert canonical("37", "Cel") == ("K", 310.15, 310.15)
    unit, low, high = canonical("2", "kg", comparator="<")
    assert (unit, low) == ("g", values.NUMBER_LOW)
    assert 1999.99 < high < 2000


def test_a_unit_that_is_none_or_whose_scale_falls_has_no_canonical_form() -> None:
    for code in ("furlong", "", "[pH]", "kg" * 5000, "m" + "2" * 400):
        assert canonical("7", code) == ("", 0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "double"), [("1e900", values.NUMBER_HIGH), ("-1e900", values.NUMBER_LOW), ("1e-900", 0)]
)
def test_a_number_beyond_the_doubles_is_kept_at_the_end(text: str, double: float) -> None:
    assert values.nearest(Decimal(text)) == double
    observation = {"resourceType": "Observation", "valueQuantity": {"value": json_text.Number(text)}}
    assert {row[3] for row in index.rows(observation).quantity} == {double}


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("100", 99.5, 100.5), ("100.00", 99.995, 100.005), ("1e2", 95, 105), ("-5.4", -5.45, -5.35)],
)
def test_a_searched_number_is_as_wide_as_it_is_precise(text: str, low: float, high: float) -> None:
    number = values.number(text)
    assert number is not None
    interval = values.around(text, number)
    assert interval[0] == low
    assert low < interval[1] < high
    assert high - interval[1] < 1e-12


# --- reference, uri, coordinates -------------------------------------------------------------------------------------


def test_references_of_each_form() -> None:
    assert found("ServiceRequest", "subject", "reference") == [("Patient", "p1", "", "urn:oid:1.2.3", "42")]
    assert found("ServiceRequest", "encounter", "reference") == [("Encounter", "e1", "", "", "")]
    assert found("ServiceRequest", "requester", "reference") == [
        ("PractitionerRole", "", "https://ailleurs.fr/fhir/PractitionerRole/r9", "", "")
    ]
    assert found("ServiceRequest", "performer", "reference") == [("HealthcareService", "", "", "urn:g", "dermato")]
    # A contained resource is found by chains alone.
    assert found("ServiceRequest", "specimen", "reference") == [("", "", "#echantillon", "", "")]
    assert found("ServiceRequest", "patient", "reference") == found("ServiceRequest", "subject", "reference")
    assert found("Bundle", "composition", "reference") == [("Composition", "comp1", "", "", "")]
    assert found("Bundle", "message", "reference") == []


def test_canonicals_are_found_with_and_without_their_version() -> None:
    assert [row[2] for row in found("ServiceRequest", "instantiates-canonical", "reference")] == [
        "https://exemple.fr/PlanDefinition/p|1.2",
        "https://exemple.fr/PlanDefinition/p",
    ]
    assert [row[2] for row in found("QuestionnaireResponse", "questionnaire", "reference")][1].endswith(
        "Questionnaire/q"
    )
    assert found("CarePlan", "instantiates-canonical", "reference") == [("PlanDefinition", "pd1", "", "", "")]
    assert found("Patient", "_profile", "uri") == [("https://exemple.fr/p|2",), ("https://exemple.fr/p",)]


def test_uris_and_places() -> None:
    assert found("Patient", "_source", "uri") == [("urn:source",)]
    assert found("ValueSet", "url", "uri") == [("https://exemple.fr/ValueSet/v",)]
    assert found("DocumentReference", "location", "uri") == [("Binary/1",)]
    assert found("MessageHeader", "source-uri", "uri") == [("mllp://127.0.0.1:2575",)]
    assert found("Location", "near", "coords") == [(47.237829, 6.0240539)]


# --- the whole -------------------------------------------------------------------------------------------------------


def test_the_id_of_a_parameter_is_stable_and_its_own() -> None:
    urls: dict[int, str] = {}
    for kind in definitions.resource_types():
        for parameter in index.parameters(kind).values():
            if parameter.pid:
                assert 0 < parameter.pid < 2**63
                assert urls.setdefault(parameter.pid, parameter.url) == parameter.url
    assert index.pid("Patient", "_id") == index.pid("Task", "_lastUpdated") == 0
    assert index.pid("Patient", "birthdate") == index.pid("Person", "birthdate")
    # A database holds these numbers: they change with the expression or EXTRACTOR, and with nothing else.
    assert index.pid("Patient", "identifier") == index.hash63(
        "http://hl7.org/fhir/SearchParameter/Patient-identifier|Patient.identifier|2"
    )
    assert index.hash63("a") == 2340832890917691671


def test_a_reference_parameter_knows_where_it_leads() -> None:
    observation = index.parameters("Observation")
    assert observation["subject"].targets == ("Device", "Group", "Location", "Patient")
    assert observation["patient"].targets == ("Patient",)
    assert "Patient" in index.parameters("Task")["focus"].targets
    assert index.parameters("QuestionnaireResponse")["questionnaire"].targets == ("Questionnaire",)


def test_every_resource_type_has_a_tree_and_an_empty_resource_no_rows() -> None:
    for kind in definitions.resource_types():
        rows = index.rows({"resourceType": kind})
        assert [row[2] for row in rows.token] == (["false"] if kind == "Patient" else [])
        assert not (rows.string or rows.date or rows.number or rows.quantity or rows.reference or rows.uri)


def test_rows_come_once_each() -> None:
    patient = {"resourceType": "Patient", "name": [{"family": "A"}] * 50}
    assert len(index.rows(patient).string) == 2


def test_an_unknown_type_is_refused() -> None:
    for kind in ("Patiente", "", None, 3, "HumanName", "Resource"):
        with pytest.raises(errors.Invalid):
            index.rows({"resourceType": kind})


def test_a_resource_with_too_many_values_is_refused_soon() -> None:
    flat = {"resourceType": "Patient", "identifier": [{"value": str(i)} for i in range(250_000)]}
    given_names = [f"n{i}" for i in range(60)]
    deep = {"resourceType": "Patient", "name": [{"given": [f"{g}-{i}" for g in given_names]} for i in range(3000)]}
    for resource in (flat, deep):
        started = time.monotonic()
        with pytest.raises(errors.TooLarge):
            index.rows(resource)
        assert time.monotonic() - started < 60


def _wrong_shapes(value: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(
        [None, True, 3, "x", "", [], {}, [[]], [None], {"value": {}}, json_text.Number("1.5"), value]
    )


@settings(deadline=None)
@given(st.data())
def test_misshapen_content_gives_fewer_rows_and_no_crash(data: st.DataObject) -> None:
    broken = copy.deepcopy(data.draw(st.sampled_from(RESOURCES)))
    holder: Any = broken
    for _ in range(data.draw(st.integers(1, 5))):
        if isinstance(holder, dict) and holder:
            key: Any = data.draw(st.sampled_from(sorted(holder)))
        elif isinstance(holder, list) and holder:
            key = data.draw(st.integers(0, len(holder) - 1))
        else:
            break
        if key == "resourceType":
            break
        if data.draw(st.booleans()):
            holder[key] = data.draw(_wrong_shapes(holder[key]))
            break
        holder = holder[key]
    assert isinstance(index.rows(broken), IndexRows)
