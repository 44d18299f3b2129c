"""$validate: what the write itself would say, and nothing is written."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hubs import EXPERT, PARTNER, REQUESTER, asked, directory, hub_on, opinion, people, read
from rest_calls import OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, Caller
from fhir_server.errors import Fault, Throttled, Unavailable
from fhir_server.store.engine import Store
from profiles.validator.structure import check
from profiles.xml_text import to_xml

Resource = dict[str, Any]
BASE_PROFILE = "http://hl7.org/fhir/StructureDefinition/"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_on(open_url(sqlite_url))


def parameters(resource: Resource | None = None, **values: str) -> Resource:
    parts: list[Resource] = [{"name": name, "valueCode": value} for name, value in values.items()]
    return {
        "resourceType": "Parameters",
        "parameter": parts + ([{"name": "resource", "resource": resource}] if resource else []),
    }


def verdict(answer: Answer) -> list[tuple[str, str]]:
    """(code, expression) of each error; [] for a resource that would be taken."""
    assert answer.status == 200, answer.body
    outcome = answer.json()
    assert outcome["resourceType"] == "OperationOutcome" and check(outcome) == []
    return [
        (issue["code"], issue.get("expression", [""])[0])
        for issue in outcome["issue"]
        if issue["severity"] in ("error", "fatal")
    ]


def versions(hub: Hub) -> int:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.history_total()


@pytest.mark.parametrize("path", ["Patient/$validate", "Patient/p/$validate"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_resource_is_judged_and_not_stored(hub: Hub, path: str, wrapped: bool) -> None:
    before = versions(hub)
    bad = PATIENT | {"birthDate": "spring", "colour": "blue"}
    for resource, expected in ((PATIENT, []), (bad, ["Patient.birthDate", "Patient.colour"])):
        body = parameters(resource) if wrapped else resource
        assert sorted(place for _, place in verdict(ask(hub, "POST", path, body))) == expected
        xml = ask(hub, "POST", path, to_xml(body), content_type="application/fhir+xml") if resource is PATIENT else None
        assert xml is None or verdict(xml) == []
    assert versions(hub) == before


@pytest.mark.parametrize("mode", ["", "create", "update"])
def test_every_fault_the_write_names_is_named(hub: Hub, mode: str) -> None:
    bad = OBSERVATION | {"status": "?", "valueBoolean": "yes"}
    written = {tuple(issue["expression"]) for issue in ask(hub, "PUT", "Observation/o", bad).json()["issue"]}
    query = f"?mode={mode}" if mode else ""
    assert {(place,) for _, place in verdict(ask(hub, "POST", f"Observation/o/$validate{query}", bad))} == written


def test_a_mode_may_come_in_the_address_or_in_the_parameters(hub: Hub) -> None:
    other = PATIENT | {"id": "q"}
    for answer in (
        ask(hub, "POST", "Patient/p/$validate?mode=update", other),
        ask(hub, "POST", "Patient/p/$validate", parameters(other, mode="update")),
    ):
        assert verdict(answer) == [("value", "Patient.id")]
    assert verdict(ask(hub, "POST", "Patient/$validate?mode=update", PATIENT)) == []
    nameless = {name: value for name, value in PATIENT.items() if name != "id"}
    assert verdict(ask(hub, "POST", "Patient/$validate?mode=update", nameless)) == [("value", "Patient.id")]
    assert verdict(ask(hub, "POST", "Patient/$validate?mode=create", nameless)) == []


def test_what_is_stored_is_judged_without_a_body(hub: Hub) -> None:
    stored(hub, PATIENT)
    for method, query in (("GET", ""), ("GET", "?mode=profile"), ("POST", "?mode=delete"), ("GET", "?mode=delete")):
        assert verdict(ask(hub, method, f"Patient/p/$validate{query}")) == []
    assert ask(hub, "GET", "Patient/p").status == 200
    assert ask(hub, "GET", "Patient/nobody/$validate").status == 404
    assert [code for code, _ in verdict(ask(hub, "GET", "Patient/nobody/$validate?mode=delete"))] == ["not-found"]


def test_the_rules_of_a_case_are_tried_too(hub: Hub) -> None:
    directory(hub)
    asked(hub, state="in_progress")
    before, report = versions(hub), opinion(hub)
    for caller, expected in ((EXPERT, []), (REQUESTER, ["business-rule"]), (PARTNER, ["business-rule"])):
        answer = ask(hub, "POST", "DiagnosticReport/r/$validate?mode=update", report, caller=caller)
        assert [code for code, _ in verdict(answer)] == expected
    assert verdict(ask(hub, "GET", "ServiceRequest/r/$validate?mode=delete", caller=REQUESTER))[0][0] == "business-rule"
    assert versions(hub) == before
    assert read(hub, "ServiceRequest/r")["status"] == "active"


def test_identities_and_integrity_are_tried_too(open_url: Callable[..., Store], sqlite_url: str) -> None:
    hub = hub_on(open_url(sqlite_url), referential_integrity=True)
    answer = ask(hub, "POST", "Observation/$validate?mode=create", OBSERVATION)
    assert verdict(answer) == [("not-found", "Observation.subject.reference")]
    stored(hub, PATIENT, OBSERVATION)
    assert [code for code, _ in verdict(ask(hub, "GET", "Patient/p/$validate?mode=delete"))] == ["conflict"]
    first = people.patient(0)
    stored(hub, first)
    thief = first | {"id": "thief", "name": [{"use": "official", "family": "AUTRE", "given": ["Zoé"]}]}
    assert verdict(ask(hub, "POST", "Patient/$validate?mode=create", thief))[0] == ("conflict", "Patient.identifier")


def test_profiles_that_were_not_looked_at_are_told(hub: Hub) -> None:
    for profile in (BASE_PROFILE + "Patient", BASE_PROFILE + "Patient|4.0.1"):
        assert verdict(ask(hub, "POST", f"Patient/$validate?profile={profile}", PATIENT)) == []
    for body, query in (
        (PATIENT, "?profile=http://example.org/StructureDefinition/x"),
        (parameters(PATIENT, profile="http://example.org/StructureDefinition/x"), ""),
        (PATIENT, "?profile=" + BASE_PROFILE + "Observation"),
    ):
        answer = ask(hub, "POST", f"Patient/$validate{query}", body)
        assert (answer.status, answer.issue["code"]) == (422, "not-supported")
        assert "yet" in answer.issue["diagnostics"] and answer.issue["expression"]
    claimed = PATIENT | {"meta": {"profile": ["http://example.org/StructureDefinition/x"]}}
    answer = ask(hub, "POST", "Patient/$validate", claimed)
    assert verdict(answer) == []
    assert answer.issue["severity"] == "information" and "not checked yet" in answer.issue["diagnostics"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "Patient/$validate", b"", 400),
        ("POST", "Patient/$validate", b"{", 400),
        ("POST", "Patient/$validate", b'{"resourceType":"Patient","active":true,"active":false}', 400),
        ("POST", "Patient/$validate", {"resourceType": "Parameters"}, 200),
        ("POST", "Patient/$validate", {"resourceType": "Parameters", "parameter": []}, 400),
        ("POST", "Patient/$validate", {"resourceType": "Parameters", "parameter": "x"}, 400),
        ("POST", "Patient/$validate", parameters(PATIENT, colour="blue"), 400),
        ("POST", "Patient/$validate", parameters(PATIENT, mode="destroy"), 400),
        ("POST", "Patient/$validate?mode=create", parameters(PATIENT, mode="create"), 400),
        ("POST", "Patient/$validate?colour=blue", PATIENT, 400),
        ("POST", "Patient/$validate?mode=delete", None, 400),
        ("POST", "Patient/p/$validate?mode=create", None, 400),
        ("GET", "Patient/p/$validate?mode=update", None, 400),
        ("POST", "Pizza/$validate", PATIENT, 404),
        ("POST", "AuditEvent/$validate", {"resourceType": "AuditEvent"}, 404),
        ("GET", "Patient/$validate", None, 405),
        ("PUT", "Patient/$validate", PATIENT, 405),
        ("GET", "Patient/p/$everything", None, 404),
    ],
)
def test_what_cannot_be_judged_is_an_error(hub: Hub, method: str, path: str, body: Any, status: int) -> None:
    answer = ask(hub, method, path, body)
    assert answer.status == status, answer.body
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert answer.issue["expression"] and (status == 200) == bool(verdict(answer) if status == 200 else False)


def test_a_parameters_resource_is_judged_like_any_other(hub: Hub) -> None:
    own = {"resourceType": "Parameters", "parameter": [{"name": "x", "valueString": "y"}]}
    assert verdict(ask(hub, "POST", "Parameters/$validate", own)) == []
    bad = {"resourceType": "Parameters", "parameter": [{"valueString": "y"}]}
    assert verdict(ask(hub, "POST", "Parameters/$validate", bad)) == [("required", "Parameters.parameter[0].name")]
    assert verdict(ask(hub, "POST", "Parameters/$validate", parameters(bad))) != []


@pytest.mark.parametrize(("mode", "letter"), [("", "r"), ("create", "c"), ("update", "u"), ("delete", "d")])
def test_a_token_needs_the_right_of_what_is_tried(hub: Hub, mode: str, letter: str) -> None:
    stored(hub, PATIENT)
    path = f"Patient/p/$validate?mode={mode}" if mode else "Patient/p/$validate"

    def allowed(letters: str) -> Caller:
        return dataclasses.replace(PARTNER, rights=frozenset(("Patient", one) for one in letters))

    assert ask(hub, "POST", path, PATIENT, caller=allowed("crud".replace(letter, ""))).status == 403
    assert ask(hub, "POST", path, PATIENT, caller=allowed(letter)).status == 200


def test_the_operation_is_declared_where_clients_look(hub: Hub) -> None:
    (rest,) = ask(hub, "GET", "metadata").json()["rest"]
    told = {one["type"]: one.get("operation") for one in rest["resource"]}
    definition = "http://hl7.org/fhir/OperationDefinition/Resource-validate"
    assert told["Patient"] == [{"name": "validate", "definition": definition}] and told["AuditEvent"] is None
    paths = ask(hub, "GET", "openapi.json").json()["paths"]
    assert set(paths["/{type}/{id}/$validate"]) == {"get", "head", "post"}
    assert set(paths["/{type}/$validate"]) == {"post"}


def test_a_binary_is_judged_as_a_resource(hub: Hub) -> None:
    binary = {"resourceType": "Binary", "contentType": "text/plain", "data": base64.b64encode(b"x").decode()}
    assert verdict(ask(hub, "POST", "Binary/$validate?mode=create", binary)) == []
    assert ask(hub, "POST", "Binary/$validate", b"x", content_type="text/plain").status == 415


def test_a_mode_that_is_no_text_is_refused(hub: Hub) -> None:
    parts = [{"name": "mode", "valueCoding": {"code": "create"}}, {"name": "resource", "resource": PATIENT}]
    assert ask(hub, "POST", "Patient/$validate", {"resourceType": "Parameters", "parameter": parts}).status == 400


@pytest.mark.parametrize("claimed", [5, "http://x", [None], {"a": 1}])
def test_profiles_that_are_no_list_are_told_as_the_fault_they_are(hub: Hub, claimed: Any) -> None:
    found = ask(hub, "POST", "Patient/$validate", PATIENT | {"meta": {"profile": claimed}})
    assert found.status == 200 and verdict(found)
    assert "profiles are not checked" not in found.body.decode()


@pytest.mark.parametrize("fault", [Unavailable, Throttled, Fault])
def test_what_could_not_be_judged_is_no_verdict(hub: Hub, monkeypatch: pytest.MonkeyPatch, fault: type) -> None:
    def failing(*_: object) -> None:
        raise fault("not now")

    monkeypatch.setattr(hub.store, "read", failing)
    assert ask(hub, "POST", "Patient/$validate?mode=create", PATIENT).status == fault.http
