"""What the report will need is asked for when the request goes out or is taken, with element and remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import EXPERT, OTHER_SITE, PARTNER, REQUESTER, SYSTEM, asked, directory, hub_on, opinion, put, read, request
from rest_calls import ask

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.demo import people
from fhir_server.demo.run import SITES
from fhir_server.errors import Invalid, RuleBroken
from fhir_server.patients.sites import load_sites
from fhir_server.store.engine import Store

Resource = dict[str, Any]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def without(resource: Resource, name: str) -> Resource:
    return {key: value for key, value in resource.items() if key != name}


# What is missing where, the element that is named, a word of the remedy.
REQUEST_NEEDS = [
    ("Practitioner/moreau", "identifier", "Practitioner.identifier", "RPPS"),
    ("Practitioner/moreau", "name", "Practitioner.name.family", "name"),
    ("Practitioner/moreau", "qualification", "PractitionerRole.specialty", "specialty"),
    ("PractitionerRole/moreau", "organization", "Organization.name", "structure"),
    ("Patient/patient-01", "birthDate", "Patient.birthDate", "YYYY-MM-DD"),
    ("Patient/patient-01", "gender", "Patient.gender", "sex"),
    ("Patient/patient-01", "name", "Patient.name.where(use='official')", "birth name"),
]


@pytest.mark.parametrize(("reference", "missing", "place", "word"), REQUEST_NEEDS)
def test_a_request_goes_out_only_with_what_its_report_needs(
    hub: Hub, reference: str, missing: str, place: str, word: str
) -> None:
    whole = read(hub, reference)
    put(hub, PARTNER, people.consent("r", 0), request(status="draft"))
    hubs.write_past_the_rules(hub, without(whole, missing))
    with pytest.raises(Invalid) as told:
        put(hub, REQUESTER, request())
    assert (told.value.status, told.value.issues[0].expression) == (422, place)
    assert word in told.value.diagnostics
    assert read(hub, "ServiceRequest/r")["status"] == "draft"
    hubs.write_past_the_rules(hub, whole)
    put(hub, REQUESTER, request())
    hubs.take(hub)
    put(hub, EXPERT, opinion(hub))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"reasonCode": None}, "ServiceRequest.reasonCode"),
        ({"reasonCode": [{"coding": [{"system": "urn:x"}]}]}, "ServiceRequest.reasonCode"),
        ({"authoredOn": "2026"}, "ServiceRequest.authoredOn"),
    ],
)
def test_a_request_says_why_and_when(hub: Hub, change: Resource, place: str) -> None:
    wanted = {name: value for name, value in (request() | change).items() if value is not None}
    put(hub, PARTNER, people.consent("r", 0), wanted | {"status": "draft"})
    with pytest.raises(Invalid) as told:
        put(hub, REQUESTER, wanted)
    assert told.value.issues[0].expression == place


def test_a_consent_whose_date_no_report_can_print_is_told(hub: Hub) -> None:
    put(hub, PARTNER, people.consent("r", 0) | {"dateTime": "2026"})
    with pytest.raises(Invalid) as told:
        put(hub, REQUESTER, request())
    assert told.value.issues[0].expression == "Consent.dateTime"


def test_a_request_that_is_out_keeps_its_reason(hub: Hub) -> None:
    current = asked(hub)
    with pytest.raises(Invalid) as told:
        put(hub, REQUESTER, without(current, "reasonCode"))
    assert told.value.issues[0].expression == "ServiceRequest.reasonCode"
    put(hub, REQUESTER, without(current, "reasonCode") | {"note": [{"text": "en note"}]})


@pytest.mark.parametrize(
    ("reference", "missing", "place"),
    [
        ("Practitioner/garnier", "identifier", "Practitioner.identifier"),
        ("Practitioner/garnier", "qualification", "PractitionerRole.specialty"),
        ("PractitionerRole/garnier", "organization", "Organization.name"),
        ("Organization/ch-demo", "identifier", "Organization.identifier"),
    ],
)
@pytest.mark.parametrize("by", ["Task", "ServiceRequest"])
def test_an_expert_takes_only_what_they_can_sign(hub: Hub, reference: str, missing: str, place: str, by: str) -> None:
    current = asked(hub)
    hubs.write_past_the_rules(hub, without(read(hub, reference), missing))
    split = {"url": hubs.Settings().extension_active_status, "valueCoding": {"code": "in_progress"}}
    wanted = {
        "Task": read(hub, "Task/r") | {"status": "in-progress"},
        "ServiceRequest": current | {"extension": [split]},
    }[by]
    with pytest.raises(Invalid) as told:
        put(hub, EXPERT, wanted)
    assert (told.value.status, told.value.issues[0].expression) == (422, place)
    assert read(hub, "Task/r")["status"] == "requested"


def test_nobody_takes_a_request_without_being_somebody(hub: Hub) -> None:
    asked(hub)
    nobody = Caller("", "Le groupe", frozenset({"expert"}), EXPERT.groups)
    with pytest.raises(RuleBroken, match="taken by a person"):
        hubs.take(hub, caller=nobody)


# --- test identities and production ----------------------------------------------------------------------------------


@pytest.fixture
def two_sites(hub: Hub) -> Hub:
    """A second establishment, in production, with an expert group."""
    both = dataclasses.replace(hub, sites=load_sites((SITES[0], OTHER_SITE)))
    house = {"resourceType": "Organization", "id": "autre", "name": "Clinique en production", "active": True}
    group = read(hub, "HealthcareService/avis-echo") | {"id": "prod", "providedBy": {"reference": "Organization/autre"}}
    put(both, SYSTEM, house, group)
    return both


PRODUCTION = [{"reference": "HealthcareService/prod"}]


def test_nobody_asks_a_production_site_about_a_test_identity(two_sites: Hub) -> None:
    put(two_sites, REQUESTER, people.consent("r", 0))
    answer = ask(two_sites, "PUT", "ServiceRequest/r", request(performer=PRODUCTION), caller=REQUESTER)
    assert answer.status == 422
    (issue,) = answer.json()["issue"]
    assert issue["expression"] == ["ServiceRequest.subject"] and "production site" in issue["diagnostics"]
    put(two_sites, REQUESTER, request(status="draft", performer=PRODUCTION))


def test_a_request_that_is_out_is_not_turned_to_a_production_site_either(two_sites: Hub) -> None:
    current = asked(two_sites)
    for performer in (PRODUCTION, [*current["performer"], *PRODUCTION]):
        answer = ask(two_sites, "PUT", "ServiceRequest/r", current | {"performer": performer}, caller=REQUESTER)
        assert answer.status == 422
        assert answer.json()["issue"][0]["expression"] == ["ServiceRequest.subject"]
    patch = [{"op": "replace", "path": "/performer/0/reference", "value": "HealthcareService/prod"}]
    kind = {"content_type": "application/json-patch+json"}
    assert ask(two_sites, "PATCH", "ServiceRequest/r", patch, caller=REQUESTER, **kind).status == 422
    assert read(two_sites, "ServiceRequest/r")["performer"] == current["performer"]
    cardiology = [{"reference": "HealthcareService/avis-cardio"}]
    assert (
        ask(two_sites, "PUT", "ServiceRequest/r", current | {"performer": cardiology}, caller=REQUESTER).status == 200
    )
