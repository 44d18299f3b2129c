"""The two descriptions of the API agree with the route table, and the API with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import hypothesis
import openapi_spec_validator
import pytest
from hubs import PARTNER, hub_on
from rest_calls import BASE, OBSERVATION, PATIENT, ask, stored

from fhir_server.changes import Hub
from fhir_server.rest import openapi, routes
from fhir_server.rest.http import Request
from fhir_server.store.engine import Store, open_store
from profiles.validator.structure import check

Document = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path, sqlite_url: str) -> Iterator[Store]:
    opened = open_store(sqlite_url, tmp_path / "data", migrate=False)
    yield opened
    opened.close()


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


@pytest.fixture(scope="module")
def document() -> Document:
    return json.loads(json.dumps(openapi.described(BASE)))  # type: ignore[no-any-return]  # parsed JSON


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def walked(value: Any) -> Iterator[Document]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from walked(item)
    elif isinstance(value, list):
        for item in value:
            yield from walked(item)


# --- OpenAPI ---------------------------------------------------------------------------------------------------------


def test_the_document_is_served_beside_the_capability_statement(hub: Hub) -> None:
    answer = ask(hub, "GET", "openapi.json")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert (answer.json()["openapi"], answer.json()["servers"]) == ("3.1.0", [{"url": BASE}])


def test_every_route_is_an_operation_and_no_other(document: Document) -> None:
    told = {(path, method) for path, method, _ in operations(document)}
    served = {(route.pattern, route.method.lower()) for route in routes.ROUTES}
    assert told == served | {(path, "head") for path, method in served if method == "get"}


def test_operations_have_a_name_of_their_own_and_every_path_argument(document: Document) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for path, _, operation in operations(document):
        declared = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert declared == {part[1:-1] for part in path.split("/") if part.startswith("{")}
        assert "default" in operation["responses"]


def test_every_reference_leads_somewhere(document: Document) -> None:
    for node in walked(document):
        if "$ref" in node:
            here: Any = document
            for step in node["$ref"].removeprefix("#/").split("/"):
                here = here[step]


def test_the_document_is_valid_openapi_3_1(document: Document) -> None:
    openapi_spec_validator.validate(document)


# --- CapabilityStatement ---------------------------------------------------------------------------------------------


def test_the_capability_statement_is_valid_fhir(hub: Hub) -> None:
    assert [f for f in check(ask(hub, "GET", "metadata").json()) if f.severity == "error"] == []


# What a claim of the statement means in requests: (method, path, body) and the statuses that keep it.
_CLAIMS: dict[str, list[tuple[str, str, Any, tuple[int, ...]]]] = {
    "read": [("GET", "Patient/p", None, (200,))],
    "vread": [("GET", "Patient/p/_history/1", None, (200,))],
    "update": [("PUT", "Patient/p", PATIENT, (200,))],
    "patch": [("PATCH", "Patient/p", {"resourceType": "Parameters"}, (200,))],
    "delete": [("DELETE", "Observation/o", None, (204,))],
    "history-instance": [("GET", "Patient/p/_history", None, (200,))],
    "history-type": [("GET", "Patient/_history", None, (200,))],
    "history-system": [("GET", "_history", None, (200,))],
    "create": [("POST", "Observation", OBSERVATION, (201,))],
    "search-system": [("GET", "?_type=Patient", None, (200,))],
    "search-type": [("GET", "Patient", None, (200,)), ("GET", "AuditEvent", None, (200,))],
    "transaction": [("POST", "", {"resourceType": "Bundle", "type": "transaction"}, (200,))],
    "batch": [("POST", "", {"resourceType": "Bundle", "type": "batch"}, (200,))],
}


def test_every_interaction_that_is_claimed_is_served_and_the_other_way_round(hub: Hub) -> None:
    stored(hub, PATIENT, OBSERVATION)
    (rest,) = ask(hub, "GET", "metadata").json()["rest"]
    claimed = {i["code"] for r in rest["resource"] for i in r["interaction"]} | {i["code"] for i in rest["interaction"]}
    assert claimed == set(_CLAIMS)
    for code in claimed:
        for method, path, body, statuses in _CLAIMS[code]:
            answer = ask(hub, method, path, body)
            assert answer.status in statuses, (code, answer.body)
    served = {route.interaction for route in routes.ROUTES} - {"", "capabilities", "async", "validate"}
    assert served | {"batch"} == claimed


def test_the_formats_that_are_claimed_are_answered(hub: Hub) -> None:
    told = ask(hub, "GET", "metadata").json()
    for name in told["format"]:
        answer = ask(hub, "GET", f"metadata?_format={name.replace('+', '%2B')}")
        assert answer.status == 200
        assert name.split("+")[-1] in answer.headers["content-type"]


@pytest.mark.parametrize("kind", ["Patient", "Observation"])
def test_every_search_parameter_that_is_claimed_can_be_searched_by(hub: Hub, kind: str) -> None:
    (rest,) = ask(hub, "GET", "metadata").json()["rest"]
    (told,) = [r for r in rest["resource"] if r["type"] == kind]
    values = {"date": "2026", "number": "1", "quantity": "1", "reference": "Patient/p", "uri": "urn:x"}
    for parameter in told["searchParam"]:
        if parameter["type"] != "composite":
            answer = ask(hub, "GET", f"{kind}?{parameter['name']}={values.get(parameter['type'], 'a')}")
            assert answer.status == 200, (parameter, answer.body)


def test_settings_show_in_the_statement(store: Store) -> None:
    hub = hub_on(store, conditional_delete="multiple", referential_integrity=True, cors_origins="https://a.example")
    (rest,) = ask(hub, "GET", "metadata").json()["rest"]
    assert rest["resource"][-1]["conditionalDelete"] == "multiple"
    assert "enforced" in rest["resource"][-1]["referencePolicy"]
    assert rest["security"]["cors"] is True


# --- requests nobody meant -------------------------------------------------------------------------------------------


def sent(case: Any) -> bytes:
    """The body of a case as its media type spells it."""
    if not case.media_type:
        return b""
    if isinstance(case.body, str):
        return case.body.encode(errors="replace")
    if case.media_type.endswith("urlencoded"):
        return urlencode(case.body, errors="replace").encode() if isinstance(case.body, dict) else b""
    return json.dumps(case.body, default=str).encode()


@pytest.mark.long(minutes=4)
@pytest.mark.timeout(1800)
def test_requests_made_up_from_the_document_are_answered_as_it_says(hub: Hub) -> None:
    """Schemathesis over the whole document: never a 5xx, every error an OperationOutcome."""
    import schemathesis

    schema = schemathesis.openapi.from_dict(openapi.described(BASE))
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=8,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def one(case: Any) -> None:
            path = case.path
            for name, value in (case.path_parameters or {}).items():
                path = path.replace(f"{{{name}}}", str(value))
            query = tuple((str(name), str(value)) for name, value in (case.query or {}).items())
            headers = {str(name).lower(): str(value) for name, value in (case.headers or {}).items()}
            body = sent(case)
            if body:
                headers["content-type"] = case.media_type
            answer = routes.answer(hub, Request(case.method, path, query, headers, body, PARTNER, BASE, {}))
            assert answer.status < 500, (case.method, path, query, headers, body, answer.body)
            if answer.status >= 400 and case.method.upper() != "HEAD":
                assert b"OperationOutcome" in answer.body

        one()
