"""The CapabilityStatement says what is really on: each claim is put to the server, and what is on is claimed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import pytest
from hubs import SYSTEM, hub_on
from rest_calls import BASE, OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.errors import PasserelleError
from fhir_server.rest import capabilities, history, openapi
from fhir_server.search import custom, index, query
from fhir_server.store import parameters
from fhir_server.store.engine import Store
from profiles import definitions
from profiles.fhirpath import paths
from profiles.validator.structure import check

Resource = dict[str, Any]
_OF_A_TYPE = ("searchParam", "searchInclude", "searchRevInclude")
PATCHED = {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": [
    {"name": "type", "valueCode": "replace"}, {"name": "path", "valueString": "Patient.active"},
    {"name": "value", "valueBoolean": False}]}]}  # fmt: skip
PATCHES = {
    "application/json-patch+json": b'[{"op":"replace","path":"/active","value":false}]',
    "application/xml-patch+xml": b'<diff xmlns:f="http://hl7.org/fhir">'
    b'<replace sel="f:Patient/f:active/@value">false</replace></diff>',
    "application/fhir+json": PATCHED,
    "application/fhir+xml": b'<Parameters xmlns="http://hl7.org/fhir"><parameter><name value="operation"/>'
    b'<part><name value="type"/><valueCode value="replace"/></part>'
    b'<part><name value="path"/><valueString value="Patient.active"/></part>'
    b'<part><name value="value"/><valueBoolean value="false"/></part></parameter></Parameters>',
}


@pytest.fixture
def store(open_url: Callable[..., Store], sqlite_url: str) -> Store:
    return open_url(sqlite_url)


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = hub_on(store)
    stored(hub, PATIENT, OBSERVATION)
    return hub


def statement(hub: Hub) -> Resource:
    return ask(hub, "GET", "metadata").json()


def claimed(hub: Hub, kind: str) -> Resource:
    """What is said of a resource type."""
    found: list[Resource] = [one for one in statement(hub)["rest"][0]["resource"] if one["type"] == kind]
    (told,) = found
    return told


# --- what a claim means ----------------------------------------------------------------------------------------------


def test_every_type_but_the_audit_trail_is_claimed_alike(hub: Hub) -> None:
    told = {one["type"]: one for one in statement(hub)["rest"][0]["resource"]}
    assert set(told) == definitions.resource_types()
    alike = {
        repr({name: value for name, value in one.items() if name not in ("type", *_OF_A_TYPE)})
        for kind, one in told.items()
        if kind != "AuditEvent"
    }
    assert len(alike) == 1


def test_versions_and_their_history_are_kept_as_claimed(hub: Hub) -> None:
    told = claimed(hub, "Patient")
    assert (told["versioning"], told["readHistory"]) == ("versioned-update", True)
    assert ask(hub, "PUT", "Patient/p", PATIENT | {"active": False}, if_match='W/"1"').status == 200
    assert ask(hub, "PUT", "Patient/p", PATIENT, if_match='W/"1"').status == 412
    assert ask(hub, "GET", "Patient/p/_history/1").json()["active"] is True


def test_an_update_creates_as_claimed(hub: Hub) -> None:
    assert claimed(hub, "Basic")["updateCreate"] is True
    assert ask(hub, "PUT", "Basic/new", {"resourceType": "Basic", "id": "new", "code": {"text": "x"}}).status == 201


def test_conditions_of_a_read_hold_as_claimed(hub: Hub) -> None:
    assert claimed(hub, "Patient")["conditionalRead"] == "full-support"
    told = ask(hub, "GET", "Patient/p").headers
    assert ask(hub, "GET", "Patient/p", if_none_match=told["etag"]).status == 304
    assert ask(hub, "GET", "Patient/p", if_modified_since=told["last-modified"]).status == 304


def test_creates_and_updates_take_conditions_as_claimed(hub: Hub) -> None:
    told = claimed(hub, "Observation")
    assert (told["conditionalCreate"], told["conditionalUpdate"]) == (True, True)
    new = {name: value for name, value in OBSERVATION.items() if name != "id"}
    assert ask(hub, "POST", "Observation", new, if_none_exist="status=final").headers["etag"] == 'W/"1"'
    answer = ask(hub, "PUT", "Observation?status=final", new | {"status": "amended"})
    assert (answer.status, answer.json()["id"]) == (200, "o")


@pytest.mark.parametrize(("setting", "left"), [("single", 2), ("multiple", 0)])
def test_a_conditional_delete_takes_as_many_as_claimed(store: Store, setting: str, left: int) -> None:
    hub = hub_on(store, conditional_delete=setting)
    stored(hub, *({"resourceType": "Basic", "id": key, "code": {"text": "x"}} for key in "ab"))
    assert claimed(hub, "Basic")["conditionalDelete"] == setting
    assert ask(hub, "DELETE", "Basic?code:text=x").status == (412 if left else 204)
    assert ask(hub, "GET", "Basic?_summary=count").json()["total"] == left


@pytest.mark.parametrize("enforced", [False, True])
def test_references_are_enforced_where_that_is_claimed(store: Store, enforced: bool) -> None:
    hub = hub_on(store, referential_integrity=enforced)
    assert ("enforced" in claimed(hub, "Observation")["referencePolicy"]) == enforced
    assert ask(hub, "PUT", "Observation/o", OBSERVATION).status == (422 if enforced else 201)


def test_each_format_of_a_patch_that_is_claimed_is_applied_and_no_other_is(hub: Hub) -> None:
    assert set(statement(hub)["patchFormat"]) == set(PATCHES)
    for kind, body in PATCHES.items():
        stored(hub, PATIENT)
        answer = ask(hub, "PATCH", "Patient/p", body, content_type=kind)
        assert (answer.status, answer.json().get("active")) == (200, False), (kind, answer.body)
    assert ask(hub, "PATCH", "Patient/p", b"{}", content_type="application/merge-patch+json").status == 415


def test_each_operation_that_is_claimed_is_answered(hub: Hub) -> None:
    (operation,) = claimed(hub, "Patient")["operation"]
    assert operation["definition"].startswith("http://hl7.org/fhir/OperationDefinition/")
    assert ask(hub, "POST", f"Patient/${operation['name']}", PATIENT).status == 200


def test_each_compartment_that_is_claimed_is_searched_and_no_other_is(hub: Hub) -> None:
    urls = statement(hub)["rest"][0]["compartment"]
    assert set(urls) == {  # the canonical URLs of the definitions of R4
        "http://hl7.org/fhir/CompartmentDefinition/patient",
        "http://hl7.org/fhir/CompartmentDefinition/encounter",
        "http://hl7.org/fhir/CompartmentDefinition/relatedPerson",
        "http://hl7.org/fhir/CompartmentDefinition/practitioner",
        "http://hl7.org/fhir/CompartmentDefinition/device",
    }
    names = {url.rpartition("/")[2].lower() for url in urls}
    for kind in sorted(definitions.resource_types() - {"AuditEvent"}):
        answer = ask(hub, "GET", f"{kind}/x/*")
        assert (answer.status == 200) == (kind.lower() in names), (kind, answer.body[:200])
        assert answer.status == 200 or "compartment" in answer.issue["diagnostics"]


def test_the_audit_trail_is_searched_by_what_is_claimed(hub: Hub) -> None:
    told = claimed(hub, "AuditEvent")
    assert {one["code"] for one in told["interaction"]} == {"read", "search-type"}
    (event,) = ask(hub, "GET", "AuditEvent?entity=Patient/p").entries
    values = {"_id": event["resource"]["id"], "entity": "Patient/p"}
    assert {one["name"] for one in told["searchParam"]} == set(values)
    for name, value in values.items():
        assert [one["fullUrl"] for one in ask(hub, "GET", f"AuditEvent?{name}={value}").entries] == [event["fullUrl"]]
    for method, path in (("POST", "AuditEvent"), ("PUT", "AuditEvent/1"), ("DELETE", "AuditEvent/1")):
        assert ask(hub, method, path, {"resourceType": "AuditEvent", "id": "1"}).status == 405


def accepts(kind: str, name: str, value: str) -> bool:
    try:
        query.parse(kind, [(name, value)])
    except PasserelleError:
        return False
    return True


def test_what_may_come_along_is_claimed_as_a_search_accepts_it(hub: Hub) -> None:
    told = {one["type"]: one for one in statement(hub)["rest"][0]["resource"] if one["type"] != "AuditEvent"}
    for kind, one in told.items():
        able = {f"{kind}:{code}" for code in index.parameters(kind) if accepts(kind, "_include", f"{kind}:{code}")}
        assert set(one["searchInclude"]) == able | {"*"}
        assert all(accepts(kind, "_revinclude", value) for value in one["searchRevInclude"])
    assert {"*", "Observation:subject", "Patient:link"} <= set(told["Patient"]["searchRevInclude"])
    assert not {"Organization:partof", "List:item", "AuditEvent:patient"} & set(told["Patient"]["searchRevInclude"])
    reached = {value for one in told.values() for value in one["searchRevInclude"]}
    narrow = {
        f"{kind}:{one.code}"
        for kind in told
        for one in index.parameters(kind).values()
        if one.type == "reference" and 0 < len(one.targets) < 100
    }
    assert reached == narrow | {"*"}
    for asked in ("Observation?_include=Observation:subject", "Observation?_include=*"):
        assert [one["resource"]["id"] for one in ask(hub, "GET", asked).entries] == ["o", "p"]
    for asked in ("Patient?_revinclude=Observation:subject", "Patient?_revinclude=*"):
        assert [one["resource"]["id"] for one in ask(hub, "GET", asked).entries] == ["p", "o"]


@pytest.mark.parametrize("auth", ["none", "smart"])
def test_access_tokens_are_claimed_where_they_are_asked_for(store: Store, auth: str) -> None:
    security = statement(hub_on(store, auth=auth))["rest"][0]["security"]
    codes = [one["coding"][0]["code"] for one in security.get("service", ())]
    assert codes == ([] if auth == "none" else ["OAuth"])
    assert [one for one in check(statement(hub_on(store, auth=auth))) if one.severity == "error"] == []


def test_the_date_is_that_of_the_statement_and_stays_while_it_says_the_same(hub: Hub) -> None:
    capabilities._kind.cache_clear()
    began = datetime.now(UTC)
    first, second = statement(hub), statement(hub)
    assert began <= datetime.fromisoformat(first["date"]) <= datetime.now(UTC)
    assert first == second


# --- search parameters of users --------------------------------------------------------------------------------------

MARITAL: Resource = {
    "resourceType": "SearchParameter",
    "id": "marital",
    "url": "http://example.org/SearchParameter/marital",
    "name": "marital",
    "status": "active",
    "description": "marital status",
    "code": "marital",
    "base": ["Patient"],
    "type": "token",
    "expression": "Patient.maritalStatus",
}


def parameter(hub: Hub, code: str, kind: str = "Patient") -> Resource | None:
    return next((one for one in claimed(hub, kind)["searchParam"] if one["name"] == code), None)


def searched(hub: Hub) -> Answer:
    return ask(hub, "GET", "Patient?marital=M")


def test_a_parameter_of_users_is_claimed_from_when_it_is_answered_until_it_is_gone(hub: Hub) -> None:
    try:
        assert parameter(hub, "marital") is None and searched(hub).status == 400
        stored(hub, MARITAL)
        parameters.note(hub.store)
        parameters.refresh(hub.store, 0)
        assert parameter(hub, "marital") is None and searched(hub).status == 400, "its rows are being made"
        while parameters.advance(hub.store, index.rows):
            pass
        parameters.refresh(hub.store, 0)
        assert parameter(hub, "marital") == {"name": "marital", "definition": MARITAL["url"], "type": "token"}
        assert searched(hub).status == 200 and parameter(hub, "marital", "Group") is None
        assert [one for one in check(statement(hub)) if one.severity == "error"] == []
        stored(hub, MARITAL | {"status": "retired"})
        parameters.note(hub.store)
        parameters.refresh(hub.store, 0)
        assert parameter(hub, "marital") is None and searched(hub).status == 400
    finally:
        index.install(())


def test_each_parameter_names_the_definition_it_has(hub: Hub) -> None:
    for kind in ("Patient", "Location"):
        for told in claimed(hub, kind)["searchParam"]:
            known = index.parameters(kind)[told["name"]]
            assert (told["definition"], told["type"]) == (known.url, known.type)
    with hub.store.read(SYSTEM) as snapshot:
        assert snapshot.get("SearchParameter", "marital") is None


def test_a_reference_that_is_being_indexed_brings_nothing_along_and_is_not_claimed(hub: Hub) -> None:
    keeper = {"code": "keeper", "type": "reference", "expression": "Patient.managingOrganization"}
    added = custom.definition(MARITAL | keeper | {"target": ["Organization"]})
    asked = ("Patient?_include=Patient:keeper", "Organization?_revinclude=Patient:keeper",
             "Organization?_has:Patient:keeper:_id=p")  # fmt: skip
    try:
        for ready in (False, True):
            index.install([(added, ready)])
            assert [ask(hub, "GET", one).status for one in asked] == [200 if ready else 400] * 3
            assert ("Patient:keeper" in claimed(hub, "Patient")["searchInclude"]) is ready
            assert ("Patient:keeper" in claimed(hub, "Organization")["searchRevInclude"]) is ready
    finally:
        index.install(())


def test_whenever_a_request_comes_what_it_keeps_is_of_the_parameters_in_force(hub: Hub) -> None:
    """A request at each line of `install`, as another thread makes them."""
    added = custom.definition(MARITAL)

    def traced(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code is index.install.__code__:
            statement(hub)
            return traced
        return None

    try:
        for parameters_of_users in ([(added, True)], [], [(added, True)], []):
            before = sys.gettrace()
            sys.settrace(traced)
            try:
                index.install(parameters_of_users)
            finally:
                sys.settrace(before)
            assert (parameter(hub, "marital") is not None) == bool(parameters_of_users)
            assert (searched(hub).status == 200) == bool(parameters_of_users)
    finally:
        index.install(())


def test_rows_are_of_the_parameters_in_force_whenever_these_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come while the walk over a type is being worked out."""
    patient = PATIENT | {"maritalStatus": {"coding": [{"code": "M"}]}}
    real = paths.routes
    late = iter([[(custom.definition(MARITAL), True)]])

    def routes(*args: Any, **more: Any) -> Any:
        for one in late:
            index.install(one)
        return real(*args, **more)

    try:
        other = {"code": "other", "url": f"{MARITAL['url']}-other"}
        index.install([(custom.definition(MARITAL | other), True)])  # so that nothing is worked out yet
        index.parameters("Patient")
        with monkeypatch.context() as patched:
            patched.setattr(paths, "routes", routes)
            index.rows(patient)
        pid = index.pid("Patient", "marital")
        assert pid in {row[0] for row in index.rows(patient).token}
    finally:
        index.install(())


# --- OpenAPI ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/_history", "/{type}/_history", "/{type}/{id}/_history"])
def test_the_document_names_the_parameters_history_takes_and_no_other(path: str) -> None:
    told = openapi.described(BASE)["paths"][path]["get"]["parameters"]
    assert {one["name"] for one in told if one["in"] == "query"} == set(history.PARAMETERS) - {"_page"}
