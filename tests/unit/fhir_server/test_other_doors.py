"""Ways around the rules: an INS in another spelling or place, a directory written by who it empowers, an address of
our own in another spelling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import ADMIN, EXPERT, OTHER_REQUESTER, PARTNER, SYSTEM, asked, delete, directory, hub_on, put, read

from fhir_server.changes import Change, Hub, apply
from fhir_server.demo import people
from fhir_server.errors import Forbidden, Invalid
from fhir_server.patients.sites import is_test_ins
from fhir_server.search.references import own_bases
from fhir_server.store.engine import Store

Resource = dict[str, Any]
TEST = "1.2.250.1.213.1.4.10"
FRENCH_TYPES = "https://hl7.fr/ig/fhir/core/CodeSystem/fr-core-cs-v2-0203"
SPELLINGS = [
    f"urn:oid:{TEST}\u200b",
    f"urn:oid:\ufeff{TEST}",
    "urn:oid:1.2.250.1.213.1.4.010",
    "URN:OID:01.2.250.1.213.01.4.10",
    f" urn:oid:{TEST}\u00ad ",
    "urn:oid:1.2.250.1.213.1.4.１０",
    f"urn:oid:{TEST}.",
    TEST,
]
HIDDEN = {"system": SPELLINGS[0], "value": "x"}
SUBJECT: Resource = {"identifier": {"system": f"urn:oid:{TEST}", "value": "x"}}


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


@pytest.fixture
def production(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_on(open_url(sqlite_url), site={"mode": "production"})


# --- the INS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_ins_is_one_in_every_spelling_and_is_written_in_one(hub: Hub, spelling: str) -> None:
    assert is_test_ins({"system": spelling})
    patient = people.patient(0) | {"id": "second"}
    patient["identifier"] = [copy.deepcopy(patient["identifier"][0]) | {"system": spelling}]
    with pytest.raises(Invalid) as told:
        put(hub, PARTNER, patient)
    assert told.value.status == 422 and "system" in told.value.issues[0].expression


@pytest.mark.parametrize("system", ["urn:oid:1.2.250.1.213.1.4.100", "urn:oid:11.2.250.1.213.1.4.10", "urn:x", ""])
def test_other_systems_are_others(system: str) -> None:
    assert not is_test_ins({"system": system})


@pytest.mark.parametrize("code", ["INS-NIR-TEST", "INS-NIR", "ins-nia", "INS"])
def test_what_its_type_calls_an_ins_has_the_system_of_one(hub: Hub, code: str) -> None:
    typed = {"type": {"coding": [{"system": FRENCH_TYPES, "code": code}]}, "system": "urn:oid:1.2.3", "value": "x"}
    patient = people.patient(0) | {"id": "second", "identifier": [typed]}
    with pytest.raises(Invalid, match="the type says INS") as told:
        put(hub, PARTNER, patient)
    assert told.value.issues[0].expression == "Patient.identifier[0].system"


ELSEWHERE: tuple[tuple[Resource, str], ...] = (
    (
        {"resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": SUBJECT},
        "Observation.subject.identifier",
    ),
    ({"resourceType": "Person", "identifier": [HIDDEN]}, "Person.identifier[0]"),
    (
        {"resourceType": "RelatedPerson", "identifier": [HIDDEN], "patient": {"display": "x"}},
        "RelatedPerson.identifier[0]",
    ),
    (
        {
            "resourceType": "Observation",
            "status": "final",
            "code": {"text": "x"},
            "contained": [{"resourceType": "Patient", "id": "p", "identifier": [HIDDEN]}],
            "subject": {"reference": "#p"},
        },
        "Observation.contained[0].identifier[0]",
    ),
    (
        {
            "resourceType": "Bundle",
            "type": "collection",
            "entry": [{"fullUrl": "urn:uuid:1", "resource": {"resourceType": "Patient", "identifier": [HIDDEN]}}],
        },
        "Bundle.entry[0].resource.identifier[0]",
    ),
    (
        {
            "resourceType": "Patient",
            "contained": [{"resourceType": "Person", "id": "p", "identifier": [HIDDEN]}],
            "link": [{"type": "seealso", "other": {"reference": "#p"}}],
        },
        "Patient.contained[0].identifier[0]",
    ),
)


@pytest.mark.parametrize(("resource", "place"), ELSEWHERE, ids=[place for _, place in ELSEWHERE])
def test_a_production_site_takes_a_test_ins_by_no_door(
    production: Hub, hub: Hub, resource: Resource, place: str
) -> None:
    named = resource | {"id": "x"}
    put(hub, PARTNER, named)
    for change in (
        Change("update", named["resourceType"], "x", copy.deepcopy(named)),
        Change("create", named["resourceType"], resource=copy.deepcopy(resource)),
    ):
        with pytest.raises(Invalid, match="test or demonstration INS") as told:
            apply(production, PARTNER, [change])
        assert (told.value.status, told.value.issues[0].expression) == (422, place)


def test_nor_by_a_patch(production: Hub) -> None:
    plain = {"resourceType": "Person", "id": "x"}
    put(production, PARTNER, plain)
    change = Change("patch", "Person", "x", patch=lambda held: held | {"identifier": [HIDDEN]})
    with pytest.raises(Invalid, match="test or demonstration INS"):
        apply(production, PARTNER, [change])


# --- the directory ---------------------------------------------------------------------------------------------------


def test_who_asks_or_answers_does_not_write_the_directory(hub: Hub) -> None:
    asked(hub, state="in_progress")
    groups = read(hub, "PractitionerRole/garnier")["healthcareService"]
    grasps = (
        read(hub, "PractitionerRole/lefevre") | {"healthcareService": groups},
        read(hub, "PractitionerRole/garnier") | {"practitioner": {"reference": "Practitioner/lefevre"}},
        read(hub, "Practitioner/lefevre") | {"active": False},
        read(hub, "HealthcareService/avis-echo") | {"name": "x"},
        read(hub, "Organization/ch-demo") | {"name": "x"},
        read(hub, "Endpoint/dpi") | {"address": "mllp://192.0.2.1:1"},
        read(hub, "Endpoint/dpi") | {"id": "mine"},
    )
    for who in (OTHER_REQUESTER, EXPERT):
        for grasp in grasps:
            with pytest.raises(Forbidden, match="administrator") as told:
                put(hub, who, grasp)
            assert (told.value.status, told.value.issues[0].expression) == (403, grasp["resourceType"])
        with pytest.raises(Forbidden):
            delete(hub, who, "Practitioner/benali")
    put(hub, OTHER_REQUESTER, read(hub, "PractitionerRole/lefevre"))
    for who in (ADMIN, SYSTEM, PARTNER):
        put(hub, who, read(hub, "HealthcareService/avis-echo") | {"comment": who.display})


# --- our own address -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_every_name_of_loopback_is_ours_when_no_address_is_declared(hub: Hub, name: str) -> None:
    asked(hub, state="in_progress")
    report = hubs.opinion(hub) | {"basedOn": [{"reference": f"http://{name}:8123/fhir/ServiceRequest/r"}]}
    base = "http://127.0.0.1:8123/fhir"
    apply(hub, EXPERT, [Change("update", "DiagnosticReport", "r", report, base=base)])
    assert read(hub, "DiagnosticReport/r")["basedOn"] == [{"reference": "ServiceRequest/r"}]
    assert hubs.status(hub) == "completed"


def test_with_a_declared_address_loopback_is_not_ours_nor_is_another_port() -> None:
    settings = hubs.Settings(public_url="https://hub.example.org/fhir")
    assert own_bases(settings) == ("https://hub.example.org/fhir",)
    assert "http://localhost:8080/fhir" in own_bases(hubs.Settings())
    assert not [base for base in own_bases(hubs.Settings(), "http://hub.example.org/fhir") if ":1/" in base]


ABROAD = "https://elsewhere.example.org/fhir"


def test_a_case_is_about_what_is_stored_here(hub: Hub) -> None:
    for element, value in (
        ("subject", {"reference": f"{ABROAD}/Patient/patient-01"}),
        ("requester", {"reference": f"{ABROAD}/PractitionerRole/moreau"}),
        ("performer", [{"reference": f"{ABROAD}/HealthcareService/x"}]),
        ("basedOn", [{"reference": f"{ABROAD}/ServiceRequest/x"}]),
    ):
        with pytest.raises(Invalid, match="not this server's") as told:
            put(hub, PARTNER, hubs.request("new", status="draft") | {element: value})
        place = f"ServiceRequest.{element}" + ("[0]" if isinstance(value, list) else "")
        assert told.value.issues[0].expression == f"{place}.reference"
    asked(hub, state="in_progress")
    both = [{"reference": "ServiceRequest/r"}, {"reference": f"{ABROAD}/ServiceRequest/r"}]
    for change in ({"basedOn": both}, {"subject": {"reference": f"{ABROAD}/Patient/patient-01"}}):
        with pytest.raises(Invalid, match="not this server's"):
            put(hub, EXPERT, hubs.opinion(hub) | change)
