"""What part of a resource is sent, and how it is laid out: `_summary`, `_elements`, `_pretty`, `Prefer`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hubs import hub_on
from rest_calls import OBSERVATION, PATIENT, ask, stored

from fhir_server.changes import Hub
from fhir_server.rest import rendering
from fhir_server.rest.rendering import Selection, narrowed
from fhir_server.store.engine import Store, open_store
from profiles import definitions
from profiles.validator.structure import check

MEASURED: dict[str, Any] = {
    "resourceType": "Observation",
    "id": "o",
    "text": PATIENT["text"],
    "status": "final",
    "code": {"text": "poids"},
    "subject": {"reference": "Patient/p"},
    "note": [{"text": "à jeun"}],
    "component": [
        {"code": {"text": "a"}, "valueQuantity": {"value": 1, "unit": "kg"}, "interpretation": [{"text": "x"}]}
    ],
    "extension": [{"url": "http://example.org/e", "valueString": "x"}],
}


@pytest.fixture
def store(tmp_path: Path, sqlite_url: str) -> Iterator[Store]:
    opened = open_store(sqlite_url, tmp_path / "data", migrate=False)
    yield opened
    opened.close()


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = hub_on(store)
    stored(hub, PATIENT, MEASURED)
    return hub


def subsetted(resource: dict[str, Any]) -> bool:
    return [tag["code"] for tag in resource["meta"].get("tag", ())] == ["SUBSETTED"]


# --- _summary --------------------------------------------------------------------------------------------------------


def test_a_summary_holds_what_the_standard_marks(hub: Hub) -> None:
    found = ask(hub, "GET", "Observation/o?_summary=true").json()
    assert subsetted(found)
    assert list(found) == ["resourceType", "id", "meta", "status", "code", "subject", "component"]
    assert found["component"] == [{"code": {"text": "a"}, "valueQuantity": {"value": 1, "unit": "kg"}}]
    assert "text" not in ask(hub, "GET", "Patient/p?_summary=true").json()


def test_the_summary_of_text_holds_the_narrative_and_what_is_mandatory(hub: Hub) -> None:
    found = ask(hub, "GET", "Observation/o?_summary=text").json()
    assert subsetted(found)
    assert set(found) == {"resourceType", "id", "meta", "text", "status", "code"}


def test_the_summary_of_data_leaves_out_the_narrative_alone(hub: Hub) -> None:
    found = ask(hub, "GET", "Observation/o?_summary=data").json()
    assert subsetted(found)
    assert set(found) == {*MEASURED, "meta"} - {"text"}


def test_no_summary_is_the_whole_without_the_tag(hub: Hub) -> None:
    found = ask(hub, "GET", "Observation/o?_summary=false").json()
    assert set(found) == {*MEASURED, "meta"}
    assert "tag" not in found["meta"]


def test_the_summary_of_count_is_a_bundle_of_a_total(hub: Hub) -> None:
    found = ask(hub, "GET", "Observation?_summary=count").json()
    assert (found["total"], "entry" in found, found["type"]) == (1, False, "searchset")


def test_search_and_history_entries_are_summarised_one_by_one(hub: Hub) -> None:
    for path in ("Observation?_id=o&_summary=true", "Observation/o/_history?_summary=true"):
        (entry,) = ask(hub, "GET", path).entries
        assert subsetted(entry["resource"])
        assert "note" not in entry["resource"]
    form = b"_id=o&_summary=true"
    (entry,) = ask(hub, "POST", "Observation/_search", form, content_type="application/x-www-form-urlencoded").entries
    assert "note" not in entry["resource"]


def test_a_stored_bundle_is_summarised_as_one_resource(hub: Hub) -> None:
    bundle = {"resourceType": "Bundle", "id": "b", "type": "collection", "entry": [{"resource": MEASURED}]}
    stored(hub, bundle)
    assert "entry" in ask(hub, "GET", "Bundle/b").json()
    assert set(ask(hub, "GET", "Bundle/b?_summary=text").json()) == {"resourceType", "id", "meta", "type"}


def test_the_capability_statement_can_be_summarised(hub: Hub) -> None:
    found = ask(hub, "GET", "metadata?_summary=true").json()
    assert found["fhirVersion"] == "4.0.1"


@pytest.mark.parametrize("summary", ["true", "text", "data"])
def test_a_summary_is_still_valid_fhir(hub: Hub, summary: str) -> None:
    for path in ("Observation/o", "Patient/p"):
        found = ask(hub, "GET", f"{path}?_summary={summary}").json()
        assert [f for f in check(found) if f.severity == "error"] == []


@pytest.mark.parametrize("kind", sorted(definitions.resource_types()))
def test_mandatory_elements_of_every_type_stay_in_every_part(kind: str) -> None:
    needed = [name for name, child in definitions.children(kind).items() if child.element.min > 0]
    whole = {"resourceType": kind, "id": "x"} | dict.fromkeys(needed, "kept")
    for wanted in (Selection("true"), Selection("text"), Selection("data"), Selection("false", frozenset(("id",)))):
        assert set(needed) - {"text"} <= set(narrowed(whole, wanted))


# --- _elements -------------------------------------------------------------------------------------------------------


def test_elements_asked_for_come_with_the_mandatory_ones(hub: Hub) -> None:
    found = ask(hub, "GET", "Observation/o?_elements=subject,note").json()
    assert subsetted(found)
    assert set(found) == {"resourceType", "id", "meta", "status", "code", "subject", "note"}
    assert set(ask(hub, "GET", "Patient/p?_elements=name").json()) == {"resourceType", "id", "meta", "name"}


def test_a_choice_is_named_with_or_without_its_type(hub: Hub) -> None:
    stored(hub, OBSERVATION | {"id": "v", "valueString": "fort", "_valueString": {"id": "a"}})
    for name in ("value", "valueString"):
        found = ask(hub, "GET", f"Observation/v?_elements={name}").json()
        assert (found["valueString"], found["_valueString"]) == ("fort", {"id": "a"})


def test_included_resources_stay_whole_when_elements_are_named(hub: Hub) -> None:
    entries = ask(hub, "GET", "Observation?_id=o&_include=Observation:subject&_elements=subject").entries
    assert [entry["search"]["mode"] for entry in entries] == ["match", "include"]
    assert "note" not in entries[0]["resource"]
    assert entries[1]["resource"]["birthDate"] == "1990-05-17"


@pytest.mark.parametrize(
    "bad",
    [
        "_summary=all",
        "_elements=colour",
        "_elements=" + ",".join(f"e{i}" for i in range(300)),
        "_summary=true&_elements=status",
        "_summary=text&_include=Observation:subject",
    ],
)
def test_a_part_that_makes_no_sense_is_refused(hub: Hub, bad: str) -> None:
    assert ask(hub, "GET", f"Observation?{bad}").status in (400, 413)


def test_leniency_takes_no_notice_of_unknown_elements(hub: Hub) -> None:
    assert ask(hub, "GET", "Observation/o?_elements=colour", prefer="handling=lenient").status == 200


def test_an_error_is_never_cut(hub: Hub) -> None:
    assert ask(hub, "GET", "Patient/nobody?_summary=true").issue["code"] == "not-found"


def test_a_tag_is_given_once(hub: Hub) -> None:
    found = narrowed(PATIENT | {"meta": {"tag": [rendering.SUBSETTED]}}, Selection("data"))
    assert found["meta"]["tag"] == [rendering.SUBSETTED]


# --- layout, negotiation, Prefer -------------------------------------------------------------------------------------


def test_numbers_keep_their_spelling_through_every_layout(hub: Hub) -> None:
    content = (
        b'{"resourceType":"Observation","id":"n","status":"final","code":{"text":"x"},'
        b'"valueQuantity":{"value":72.50},"component":[{"code":{"text":"y"},"valueQuantity":{"value":0.000000100}}]}'
    )
    assert ask(hub, "PUT", "Observation/n", content).status == 201
    for asked in ("", "?_pretty=true", "?_summary=data", "?_elements=value,component", "?_format=xml"):
        body = ask(hub, "GET", f"Observation/n{asked}").body
        assert b"72.50" in body
        assert b"0.000000100" in body


def test_pretty_is_indented(hub: Hub) -> None:
    body = ask(hub, "GET", "Patient/p?_pretty=true").body
    assert body.startswith(b'{\n  "resourceType": "Patient"')
    assert ask(hub, "GET", "Patient/nobody?_pretty=true").body.startswith(b"{\n")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "application/fhir+json"),
        ("*/*", "application/fhir+json"),
        ("application/json", "application/fhir+json"),
        ("application/fhir+xml", "application/fhir+xml"),
        ("text/xml", "application/fhir+xml"),
        ("application/fhir+json;q=0.5, application/fhir+xml", "application/fhir+xml"),
        ("application/fhir+json;q=0.5, application/fhir+xml;q=0", "application/fhir+json"),
        ("image/png, application/fhir+json; fhirVersion=4.0", "application/fhir+json"),
        ("text/html, */*;q=0.1", "application/fhir+json"),
        ("application/fhir+json;q=nonsense, application/fhir+xml;q=0.1", "application/fhir+xml"),
    ],
)
def test_the_format_is_the_one_the_client_likes_best(hub: Hub, accept: str, kind: str) -> None:
    answer = ask(hub, "GET", "Patient/p", accept=accept)
    assert (answer.status, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")


@pytest.mark.parametrize("accept", ["image/png", "application/fhir+turtle", "application/fhir+json; fhirVersion=5.0"])
def test_a_format_that_is_not_offered_is_406_and_nothing_is_written(hub: Hub, accept: str) -> None:
    assert ask(hub, "GET", "Patient/p", accept=accept).status == 406
    assert ask(hub, "PUT", "Patient/new", PATIENT | {"id": "new"}, accept=accept).status == 406
    assert ask(hub, "GET", "Patient/new").status == 404


def test_format_is_stronger_than_accept(hub: Hub) -> None:
    for name in ("xml", "application/fhir+xml", "application/fhir%2Bxml", "text/xml"):
        answer = ask(hub, "GET", f"Patient/p?_format={name}", accept="application/fhir+json")
        assert answer.headers["content-type"].startswith("application/fhir+xml")
    assert ask(hub, "GET", "Patient/p?_format=turtle").status == 406


@pytest.mark.parametrize(
    ("wanted", "kind"), [("minimal", ""), ("representation", "Patient"), ("OperationOutcome", "OperationOutcome")]
)
def test_prefer_return_says_what_a_write_answers(hub: Hub, wanted: str, kind: str) -> None:
    for method, path, body in (("POST", "Patient", PATIENT), ("PUT", "Patient/p", PATIENT)):
        content = {name: value for name, value in body.items() if name != "identifier"}
        answer = ask(hub, method, path, content, prefer=f"return={wanted}")
        assert answer.status in (200, 201)
        assert answer.headers["etag"]
        assert (answer.json()["resourceType"] if answer.body else "") == kind


def test_prefer_handling_decides_over_unknown_parameters(hub: Hub) -> None:
    assert ask(hub, "GET", "Patient?colour=blue").status == 400
    assert ask(hub, "GET", "Patient?colour=blue", prefer="handling=strict").status == 400
    assert ask(hub, "GET", "Patient?colour=blue", prefer="handling=lenient").status == 200
