"""PATCH in its three languages, alone, conditional, in batches and transactions. On both databases."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hubs import at_once, hub_on, results
from rest_calls import BASE, OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.rest import patch
from fhir_server.store.engine import Store

JSON_PATCH, XML_PATCH = "application/json-patch+json", "application/xml-patch+xml"
INACTIVE = [{"op": "replace", "path": "/active", "value": False}]


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = hub_on(store)
    stored(hub, PATIENT)
    return hub


def json_patch(hub: Hub, path: str, operations: Any, **headers: str) -> Answer:
    body = operations if isinstance(operations, bytes) else json.dumps(operations).encode()
    return ask(hub, "PATCH", path, body, content_type=JSON_PATCH, **headers)


def parameters(kind: str, path: str, **more: Any) -> dict[str, Any]:
    """A FHIRPath Patch of one operation."""
    parts = [{"name": "type", "valueCode": kind}, {"name": "path", "valueString": path}]
    parts += [{"name": name} | value for name, value in more.items()]
    return {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": parts}]}


def binary(kind: str, data: bytes) -> dict[str, Any]:
    return {"resourceType": "Binary", "contentType": kind, "data": base64.b64encode(data).decode()}


def bundle(kind: str, *entries: tuple[str, str, Any]) -> dict[str, Any]:
    made = [
        {"request": {"method": method, "url": url}} | ({"resource": resource} if resource else {})
        for method, url, resource in entries
    ]
    return {"resourceType": "Bundle", "type": kind, "entry": made}


# --- the three languages ---------------------------------------------------------------------------------------------


def test_a_json_patch_makes_the_next_version(hub: Hub) -> None:
    answer = json_patch(hub, "Patient/p", INACTIVE)
    assert (answer.status, answer.headers["etag"]) == (200, 'W/"2"')
    assert answer.json()["active"] is False
    assert answer.json()["birthDate"] == "1990-05-17"
    assert ask(hub, "GET", "Patient?active=false").json()["entry"][0]["resource"]["id"] == "p"


def test_a_fhirpath_patch_in_json_or_xml(hub: Hub) -> None:
    change = parameters("replace", "Patient.birthDate", value={"valueDate": "1991-01-01"})
    assert ask(hub, "PATCH", "Patient/p", change).json()["birthDate"] == "1991-01-01"
    xml = (
        b'<Parameters xmlns="http://hl7.org/fhir"><parameter><name value="operation"/>'
        b'<part><name value="type"/><valueCode value="delete"/></part>'
        b'<part><name value="path"/><valueString value="Patient.contact[0]"/></part></parameter></Parameters>'
    )
    assert "contact" not in ask(hub, "PATCH", "Patient/p", xml, content_type="application/fhir+xml").json()


def test_an_xml_patch(hub: Hub) -> None:
    change = (
        b'<diff xmlns:f="http://hl7.org/fhir"><replace sel="f:Patient/f:birthDate/@value">1992-02-02</replace></diff>'
    )
    answer = ask(hub, "PATCH", "Patient/p", change, content_type=XML_PATCH)
    assert (answer.status, answer.json().get("birthDate")) == (200, "1992-02-02"), answer.body


def test_numbers_outside_the_patch_keep_their_spelling(hub: Hub) -> None:
    content = (
        b'{"resourceType":"Observation","id":"n","status":"final","code":{"text":"x"},"valueQuantity":{"value":72.50}}'
    )
    ask(hub, "PUT", "Observation/n", content)
    answer = json_patch(hub, "Observation/n", [{"op": "replace", "path": "/status", "value": "amended"}])
    assert b"72.50" in answer.body


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operations", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"{}", 400),
        (b"[1]", 400),
        (b'[{"op":"jump","path":"/active"}]', 400),
        (b'[{"op":"remove","path":"/nothing"}]', 422),
        (b'[{"op":"test","path":"/active","value":false}]', 422),
        (b'[{"op":"replace","path":"/active","value":"maybe"}]', 422),
        (b'[{"op":"add","path":"/colour","value":"blue"}]', 422),
        (b'[{"op":"replace","path":"/id","value":"q"}]', 422),
        (b'[{"op":"replace","path":"/resourceType","value":"Person"}]', 422),
        (b'[{"op":"replace","path":"","value":[]}]', 422),
        (b"[" + b'{"op":"test","path":"/active","value":true},' * 2000 + b'{"op":"remove","path":"/active"}]', 400),
        (b"[" * 5000, 400),
    ],
)
def test_a_patch_that_cannot_be_applied_changes_nothing(hub: Hub, operations: bytes, status: int) -> None:
    answer = json_patch(hub, "Patient/p", operations)
    assert answer.status == status, answer.body
    assert answer.issue["diagnostics"]
    assert answer.issue["expression"]
    assert ask(hub, "GET", "Patient/p").headers["etag"] == 'W/"1"'


def test_the_element_a_patch_makes_invalid_is_named(hub: Hub) -> None:
    answer = json_patch(hub, "Patient/p", [{"op": "replace", "path": "/birthDate", "value": "the spring"}])
    assert (answer.status, answer.issue["expression"]) == (422, ["Patient.birthDate"])


@pytest.mark.parametrize("kind", ["text/plain", "application/merge-patch+json", "application/json", ""])
def test_a_language_that_is_not_offered_is_415_and_the_offered_are_named(hub: Hub, kind: str) -> None:
    answer = ask(hub, "PATCH", "Patient/p", b"[]", content_type=kind)
    assert answer.status == 415
    assert JSON_PATCH in answer.issue["diagnostics"]


def test_a_fhirpath_patch_of_another_resource_is_refused(hub: Hub) -> None:
    assert ask(hub, "PATCH", "Patient/p", PATIENT).status == 400


def test_what_is_not_there_is_not_patched(hub: Hub) -> None:
    assert json_patch(hub, "Patient/nobody", INACTIVE).status == 404
    ask(hub, "DELETE", "Patient/p")
    assert json_patch(hub, "Patient/p", INACTIVE).status == 410


def test_if_match_holds_for_a_patch(hub: Hub) -> None:
    assert json_patch(hub, "Patient/p", INACTIVE, if_match='W/"4"').status == 412
    assert json_patch(hub, "Patient/p", INACTIVE, if_match='W/"1"').status == 200


def test_patches_at_once_are_all_applied(hub: Hub) -> None:
    def add(number: int) -> int:
        family = [{"op": "add", "path": "/name/-", "value": {"family": f"N{number}"}}]
        return json_patch(hub, "Patient/p", family).status

    assert results(at_once(*(lambda n=n: add(n) for n in range(4)))) == [200] * 4  # type: ignore[misc]  # a default has no type
    names = ask(hub, "GET", "Patient/p").json()["name"]
    assert {name["family"] for name in names} == {"Martin", "N0", "N1", "N2", "N3"}


# --- conditional -----------------------------------------------------------------------------------------------------


def test_a_conditional_patch_needs_exactly_one_match(hub: Hub) -> None:
    stored(hub, OBSERVATION, OBSERVATION | {"id": "o2", "status": "preliminary"})
    amended = [{"op": "replace", "path": "/status", "value": "amended"}]
    assert json_patch(hub, "Observation?status=preliminary", amended).json()["id"] == "o2"
    assert json_patch(hub, "Observation?status=preliminary", amended).status == 404
    assert json_patch(hub, "Observation?subject=Patient/p", amended).status == 412


# --- in bundles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_the_entries_of_a_bundle_may_patch(hub: Hub, kind: str) -> None:
    stored(hub, OBSERVATION)
    change = parameters("replace", "Observation.status", value={"valueCode": "amended"})
    answer = ask(
        hub,
        "POST",
        "",
        bundle(
            kind,
            ("GET", "Patient/p", None),
            ("PATCH", "Patient/p", binary(JSON_PATCH, json.dumps(INACTIVE).encode())),
            ("PATCH", f"{BASE}/Observation?subject=Patient/p", change),
        ),
        prefer="return=representation",
    )
    assert answer.status == 200, answer.body
    assert [entry["response"]["status"][:3] for entry in answer.entries] == ["200"] * 3
    assert answer.entries[1]["resource"]["active"] is False
    assert answer.entries[2]["resource"]["status"] == "amended"


def test_a_patch_that_fails_undoes_its_transaction_and_not_its_batch(hub: Hub) -> None:
    bad = binary(JSON_PATCH, b'[{"op":"remove","path":"/nothing"}]')
    entries = (("PUT", "Observation/o", OBSERVATION), ("PATCH", "Patient/p", bad))
    refused = ask(hub, "POST", "", bundle("transaction", *entries))
    assert (refused.status, refused.issue["expression"]) == (422, ["Bundle.entry[1].resource"])
    assert ask(hub, "GET", "Observation/o").status == 404
    done = ask(hub, "POST", "", bundle("batch", *entries))
    assert [entry["response"]["status"][:3] for entry in done.entries] == ["201", "422"]
    assert done.entries[1]["response"]["outcome"]["resourceType"] == "OperationOutcome"


@pytest.mark.parametrize(
    "resource",
    [None, PATIENT, binary("text/plain", b"[]"), {"resourceType": "Binary", "contentType": JSON_PATCH, "data": "?"}],
)
def test_an_entry_that_holds_no_patch_is_refused(hub: Hub, resource: Any) -> None:
    answer = ask(hub, "POST", "", bundle("transaction", ("PATCH", "Patient/p", resource)))
    assert answer.status == 400
    assert answer.issue["expression"][0].startswith("Bundle.entry[0].resource")


def test_a_read_in_a_transaction_sees_its_writes_and_undoes_them_when_it_fails(hub: Hub) -> None:
    seen = ask(
        hub, "POST", "", bundle("transaction", ("GET", "Observation/o", None), ("PUT", "Observation/o", OBSERVATION))
    )
    assert seen.entries[0]["resource"]["status"] == "final"
    failing = bundle("transaction", ("GET", "Patient/nobody", None), ("DELETE", "Observation/o", None))
    refused = ask(hub, "POST", "", failing)
    assert (refused.status, refused.issue["expression"]) == (404, ["Bundle.entry[0].request.url"])
    assert ask(hub, "GET", "Observation/o").status == 200


@pytest.mark.parametrize(
    ("method", "url", "more"),
    [
        ("PUT", "Patient", {}),
        ("DELETE", "Patient", {}),
        ("PUT", "Patient/q", {}),
        ("PUT", "Patent/p", {}),
        ("PUT", "Patient/p/x", {}),
        ("PUT", "Patient/p", {"ifMatch": "nonsense"}),
        ("PUT", "Observation/p", {}),
        ("POST", "", {}),
    ],
)
def test_an_entry_with_a_bad_address_is_refused_alone(hub: Hub, method: str, url: str, more: Any) -> None:
    content = {name: value for name, value in PATIENT.items() if name != "id" or url != "Patient"}
    entry = {"resource": content, "request": {"method": method, "url": url} | more}
    for kind, status in (("transaction", 400), ("batch", 200)):
        answer = ask(hub, "POST", "", {"resourceType": "Bundle", "type": kind, "entry": [entry]})
        assert answer.status == status, answer.body
        told = answer.issue if kind == "transaction" else answer.entries[0]["response"]["outcome"]["issue"][0]
        assert told["expression"][0].startswith("Bundle.entry[0]")
    assert ask(hub, "GET", "Patient/p").headers["etag"] == 'W/"1"'


def test_every_language_is_in_the_capability_statement(hub: Hub) -> None:
    assert ask(hub, "GET", "metadata").json()["patchFormat"] == list(patch.FORMATS)
