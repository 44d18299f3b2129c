"""XML in and out: the same resources, the same errors, with line and column; and Binary, whose content is no FHIR."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hubs import PARTNER, hub_on
from rest_calls import BASE, OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.store.engine import Store, open_store
from profiles import json_text
from profiles.xml_text import from_xml, to_xml

XML = "application/fhir+xml"
LEA = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Patient xmlns="http://hl7.org/fhir">\n  <id value="x"/>\n'
    b'  <active value="true"/>\n  <name><family value="L\xc3\xa9a &lt;3"/></name>\n</Patient>\n'
)


@pytest.fixture
def store(tmp_path: Path, sqlite_url: str) -> Iterator[Store]:
    opened = open_store(sqlite_url, tmp_path / "data", migrate=False)
    yield opened
    opened.close()


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


def value(answer: Answer) -> dict[str, Any]:
    """An XML answer as the value its JSON has."""
    assert answer.headers["content-type"] == f"{XML}; charset=utf-8", answer.body
    return from_xml(answer.body)


# --- resources -------------------------------------------------------------------------------------------------------


def test_xml_comes_in_and_goes_out_and_is_json_to_others(hub: Hub) -> None:
    made = ask(hub, "PUT", "Patient/x", LEA, content_type=XML, accept=XML)
    assert (made.status, value(made)["name"]) == (201, [{"family": "Léa <3"}])
    assert value(made)["meta"]["versionId"] == "1"
    assert ask(hub, "GET", "Patient/x").json()["name"] == [{"family": "Léa <3"}]
    again = ask(hub, "GET", "Patient/x", accept=XML)
    posted = ask(hub, "POST", "Patient", again.body, content_type="text/xml; charset=utf-8", accept=XML)
    assert posted.status == 201
    assert value(posted)["id"] != "x"


def test_every_kind_of_answer_can_be_xml(hub: Hub) -> None:
    stored(hub, PATIENT, OBSERVATION)
    for path, kind in (
        ("metadata", "CapabilityStatement"),
        ("Patient?name=martin", "Bundle"),
        ("Patient/p/_history", "Bundle"),
        ("_history", "Bundle"),
        ("Observation/o?_summary=true", "Observation"),
        ("AuditEvent?_count=3", "Bundle"),
    ):
        assert value(ask(hub, "GET", path, accept=XML))["resourceType"] == kind


def test_an_answer_in_xml_says_what_the_answer_in_json_says(hub: Hub) -> None:
    stored(hub, PATIENT, OBSERVATION)
    for path in ("Patient/p", "Observation?_id=o&_include=Observation:subject", "Observation/o/_history"):
        in_json = json_text.parse(ask(hub, "GET", path).body)
        in_xml = value(ask(hub, "GET", path, accept=XML))
        in_json.pop("timestamp", None), in_xml.pop("timestamp", None)
        assert in_xml == in_json


def test_a_transaction_may_be_xml(hub: Hub) -> None:
    entries = [{"resource": r, "request": {"method": "PUT", "url": f"{r['resourceType']}/{r['id']}"}}
               for r in (PATIENT, OBSERVATION)]  # fmt: skip
    bundle = to_xml({"resourceType": "Bundle", "type": "transaction", "entry": entries})
    answer = ask(hub, "POST", "", bundle, content_type=XML, accept=XML)
    assert [entry["response"]["status"] for entry in value(answer)["entry"]] == ["201 Created"] * 2


def test_pretty_xml_is_indented_and_the_same(hub: Hub) -> None:
    stored(hub, PATIENT)
    plain, pretty = (ask(hub, "GET", f"Patient/p?_format=xml{more}") for more in ("", "&_pretty=true"))
    assert pretty.body.count(b"\n") > plain.body.count(b"\n")
    assert value(pretty) == value(plain)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'<Patient xmlns="http://hl7.org/fhir">\n <active value="true">\n</Patient>', "line 3"),
        (b'<Patient xmlns="http://hl7.org/fhir">\n  <colour value="blue"/></Patient>', "line 2, column 3"),
        (b'<Patient xmlns="http://hl7.org/fhir"><birthDate value="2020"', "line 1"),
        (b'<!DOCTYPE lolz [<!ENTITY a "b">]><Patient xmlns="http://hl7.org/fhir"/>', "line 1"),
        (b'<Patient xmlns="urn:other"/>', "line 1"),
        (b"\xff\xfe<", "line 1"),
        (b"<a>" * 100_000, "line 1"),
        (b"not xml", "line 1"),
    ],
)
def test_xml_that_cannot_be_read_is_told_with_line_and_column(hub: Hub, body: bytes, where: str) -> None:
    answer = ask(hub, "POST", "Patient", body, content_type=XML, accept=XML)
    assert answer.status == 400
    (issue,) = value(answer)["issue"]
    assert where in issue["diagnostics"]
    assert issue["code"] == "structure"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"resourceType":"Patient",\n "active": tru}', "line 2, column 12"),
        (b'{"resourceType":"Patient","active":true,\n"active":false}', "line 2, column 1"),
        (b'{"resourceType":"Patient","name":[{"family":"\\ud800"}]}', "line 1"),
        (b'{"a":' * 5000, "line 1"),
    ],
)
def test_json_that_cannot_be_read_is_told_with_line_and_column(hub: Hub, body: bytes, where: str) -> None:
    answer = ask(hub, "POST", "Patient", body)
    assert answer.status == 400
    assert where in answer.issue["diagnostics"]


def test_an_error_is_xml_to_who_wants_xml(hub: Hub) -> None:
    for method, path in (
        ("GET", "Patient/nobody"),
        ("GET", "nothing/at/all"),
        ("TRACE", "Patient"),
        ("GET", "Patient?x=y"),
    ):
        answer = ask(hub, method, path, accept=XML)
        assert answer.status >= 400
        assert value(answer)["resourceType"] == "OperationOutcome"


def test_a_rule_of_fhir_broken_in_xml_names_the_element(hub: Hub) -> None:
    body = b'<Patient xmlns="http://hl7.org/fhir"><birthDate value="spring"/></Patient>'
    answer = ask(hub, "POST", "Patient", body, content_type=XML)
    assert (answer.status, answer.issue["expression"]) == (422, ["Patient.birthDate"])


@pytest.mark.parametrize("kind", ["text/plain", "application/fhir+turtle", "application/fhir+xml; fhirVersion=3.0"])
def test_a_body_of_another_kind_is_415(hub: Hub, kind: str) -> None:
    assert ask(hub, "POST", "Patient", LEA, content_type=kind).status == 415


def test_a_body_over_the_limit_is_refused(store: Store) -> None:
    hub = hub_on(store, max_body_mib=1)
    for kind, body in ((XML, LEA + b" " * 1_100_000), ("application/fhir+json", b" " * 1_100_000 + b"{}")):
        assert ask(hub, "POST", "Patient", body, content_type=kind).status in (400, 413)


# --- Binary ----------------------------------------------------------------------------------------------------------

PDF = b"%PDF-1.7 \x00\xff content"


def test_a_binary_comes_and_goes_as_its_content(hub: Hub) -> None:
    made = ask(hub, "POST", "Binary", PDF, content_type="application/pdf")
    key = made.json()["id"]
    for accept in ("", "*/*", "application/pdf", "image/png"):
        answer = ask(hub, "GET", f"Binary/{key}", accept=accept)
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/pdf", PDF)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == "attachment"
    old = ask(hub, "PUT", f"Binary/{key}", b"<ClinicalDocument/>", content_type="text/xml")
    assert old.status == 200
    assert ask(hub, "GET", f"Binary/{key}").body == b"<ClinicalDocument/>"
    assert ask(hub, "GET", f"Binary/{key}/_history/1").body == PDF


def test_a_binary_is_a_resource_to_who_names_fhir(hub: Hub) -> None:
    key = ask(hub, "POST", "Binary", PDF, content_type="application/pdf").json()["id"]
    told = {"contentType": "application/pdf", "data": base64.b64encode(PDF).decode()}
    assert ask(hub, "GET", f"Binary/{key}", accept="application/fhir+json").json().items() >= told.items()
    assert value(ask(hub, "GET", f"Binary/{key}?_format=xml")).items() >= told.items()
    resource = {"resourceType": "Binary", "id": "b"} | told
    assert ask(hub, "PUT", "Binary/b", to_xml(resource), content_type=XML).status == 201
    assert ask(hub, "GET", "Binary/b").body == PDF


def test_the_security_context_travels_in_its_header(hub: Hub) -> None:
    stored(hub, PATIENT)
    sent = f"{BASE}/Patient/p"
    key = ask(hub, "POST", "Binary", PDF, content_type="application/pdf", x_security_context=sent).json()["id"]
    answer = ask(hub, "GET", f"Binary/{key}")
    assert answer.headers["x-security-context"] == "Patient/p"
    shown = ask(hub, "GET", f"Binary/{key}", accept="application/fhir+json").json()
    assert shown["securityContext"] == {"reference": "Patient/p"}


def test_who_may_not_read_the_context_does_not_read_the_content(hub: Hub) -> None:
    stored(hub, PATIENT)
    ask(hub, "PUT", "Binary/b", PDF, content_type="application/pdf", x_security_context="Patient/p")
    stranger = replace(PARTNER, everything=False)
    assert ask(hub, "GET", "Binary/b", caller=stranger).status in (403, 404)


@pytest.mark.parametrize("kind", ["text/html\r\nset-cookie: a=b", "nonsense", "é/é", "a/b" + ";x=y" * 50])
def test_a_media_type_that_is_none_is_refused(hub: Hub, kind: str) -> None:
    assert ask(hub, "POST", "Binary", PDF, content_type=kind).status == 415


def test_a_stored_media_type_never_becomes_a_header_it_should_not(hub: Hub) -> None:
    stored(hub, {"resourceType": "Binary", "id": "b", "contentType": "text/html é", "data": "YQ=="})
    answer = ask(hub, "GET", "Binary/b")
    assert (answer.headers["content-type"], answer.body) == ("application/octet-stream", b"a")
