"""X-Provenance: stored with what it is about, or not at all. On both databases."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hubs import hub_on
from rest_calls import OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.store.engine import Store

PROVENANCE: dict[str, Any] = {
    "resourceType": "Provenance",
    "recorded": "2026-11-21T08:00:00Z",
    "agent": [{"who": {"display": "Dr Léa Martin"}}],
}
HEADER = json.dumps(PROVENANCE)


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


def targets(hub: Hub) -> list[list[str]]:
    """The targets of every Provenance, oldest first."""
    found = ask(hub, "GET", "Provenance?_sort=_lastUpdated").entries
    return [[target["reference"] for target in entry["resource"]["target"]] for entry in found]


def test_a_provenance_in_the_header_is_about_what_the_request_wrote(hub: Hub) -> None:
    made = ask(hub, "POST", "Patient", PATIENT, x_provenance=HEADER)
    assert (made.status, made.json()["resourceType"]) == (201, "Patient")
    key = made.json()["id"]
    change = b'[{"op":"replace","path":"/active","value":false}]'
    ask(hub, "PUT", "Observation/o", OBSERVATION, x_provenance=HEADER)
    ask(hub, "PATCH", f"Patient/{key}", change, content_type="application/json-patch+json", x_provenance=HEADER)
    ask(hub, "DELETE", "Observation/o", x_provenance=HEADER)
    assert targets(hub) == [[f"Patient/{key}"], ["Observation/o"], [f"Patient/{key}"], ["Observation/o"]]


def test_one_provenance_is_about_all_that_a_transaction_writes(hub: Hub) -> None:
    entries = [
        {"fullUrl": "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a", "resource": PATIENT,
         "request": {"method": "POST", "url": "Patient"}},
        {"resource": OBSERVATION | {"subject": {"reference": "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a"}},
         "request": {"method": "PUT", "url": "Observation/o"}},
    ]  # fmt: skip
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    answer = ask(hub, "POST", "", bundle, x_provenance=HEADER)
    assert answer.status == 200, answer.body
    patient = answer.entries[0]["response"]["location"].split("/_history")[0]
    assert targets(hub) == [[patient, "Observation/o"]]
    refused = ask(hub, "POST", "", bundle | {"type": "batch"}, x_provenance=HEADER)
    assert refused.status == 400


def test_a_write_that_fails_leaves_no_provenance_and_the_other_way_round(hub: Hub) -> None:
    assert ask(hub, "PUT", "Patient/p", PATIENT | {"birthDate": "spring"}, x_provenance=HEADER).status == 422
    unrecorded = {name: value for name, value in PROVENANCE.items() if name != "recorded"}
    answer = ask(hub, "PUT", "Patient/p", PATIENT, x_provenance=json.dumps(unrecorded))
    assert (answer.status, answer.issue["expression"]) == (422, ["Provenance.recorded"])
    assert targets(hub) == []
    assert ask(hub, "GET", "Patient/p").status == 404


def test_what_was_found_and_not_written_has_no_provenance(hub: Hub) -> None:
    site = {"resourceType": "Organization", "identifier": [{"system": "urn:oid:1.2", "value": "1"}], "name": "a"}
    condition = "identifier=urn:oid:1.2|1"
    made = ask(hub, "POST", "Organization", site, if_none_exist=condition, x_provenance=HEADER)
    found = ask(hub, "POST", "Organization", site, if_none_exist=condition, x_provenance=HEADER)
    assert (made.status, found.status) == (201, 200)
    assert targets(hub) == [[f"Organization/{made.json()['id']}"]]


def test_a_delete_of_what_is_already_deleted_has_no_provenance(hub: Hub) -> None:
    stored(hub, PATIENT)
    for _ in range(2):
        assert ask(hub, "DELETE", "Patient/p", x_provenance=HEADER).status == 204
    assert targets(hub) == [["Patient/p"]]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", 400),
        ("nonsense", 400),
        ("[]", 400),
        ('{"resourceType":"Patient"}', 400),
        (json.dumps(PROVENANCE | {"target": [{"reference": "Patient/q"}]}), 400),
        (json.dumps(PROVENANCE | {"colour": "blue"}), 422),
        ('{"a":' * 5000, 400),
        (" " * 70_000, 400),
    ],
)
def test_a_header_that_holds_no_provenance_is_refused(hub: Hub, header: str, status: int) -> None:
    answer: Answer = ask(hub, "PUT", "Patient/p", PATIENT, x_provenance=header)
    assert answer.status == status, answer.body
    assert "Provenance" in json.dumps(answer.json())
    assert ask(hub, "GET", "Patient/p").status == 404


def test_a_conditional_delete_cannot_name_what_its_provenance_is_about(hub: Hub) -> None:
    stored(hub, PATIENT)
    assert ask(hub, "DELETE", "Patient?name=martin", x_provenance=HEADER).status == 400
    assert ask(hub, "GET", "Patient/p").status == 200
