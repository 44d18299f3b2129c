"""An id stays one person's: after a deletion, and in small steps while a téléexpertise is open."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import ADMIN, PARTNER, REQUESTER, SYSTEM, asked, delete, directory, hub_on, put, read

from fhir_server.changes import Change, Hub, apply
from fhir_server.demo import people
from fhir_server.errors import Conflict, Invalid
from fhir_server.patients.identity import RELIABILITY
from fhir_server.store.engine import Store
from mappers.ins import key_of

Resource = dict[str, Any]
BODY = "2940299123007"
ME = "Patient/patient-01"
OTHER_INS = {"use": "official", "system": people.INS_SYSTEM, "value": BODY + key_of(BODY)}
OTHER_NAME = [{"use": "official", "family": "AUTRE-TEST", "given": ["ZOE"]}]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def provisional(patient: Resource) -> Resource:
    """The same person, no longer qualified."""
    out = copy.deepcopy(patient)
    out["identifier"] = [one for one in out["identifier"] if one["system"] != people.INS_SYSTEM]
    for extension in out["extension"]:
        for part in extension.get("extension", ()) if extension["url"] == RELIABILITY else ():
            if part["url"] == "identityStatus":
                part["valueCoding"]["code"] = "PROV"
    return out


def with_other_ins(patient: Resource) -> Resource:
    local = [one for one in patient["identifier"] if one["system"] != people.INS_SYSTEM]
    return copy.deepcopy(patient) | {"identifier": [OTHER_INS, *local]}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (with_other_ins, Conflict),
        (lambda patient: patient | {"name": OTHER_NAME, "birthDate": "1980-01-01"}, Conflict),
        (lambda patient: provisional(patient) | {"name": OTHER_NAME, "birthDate": "1980-01-01"}, Conflict),
        (lambda patient: with_other_ins(patient) | {"name": OTHER_NAME}, Conflict),
        (lambda patient: {"resourceType": "Patient", "id": patient["id"]}, Invalid),
    ],
)
def test_a_deleted_patient_does_not_come_back_as_somebody_else(
    hub: Hub, change: Callable[[Resource], Resource], error: type[Conflict] | type[Invalid]
) -> None:
    before = read(hub, ME)
    stay = {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"}}
    put(hub, PARTNER, stay | {"subject": {"reference": ME}})
    delete(hub, ADMIN, ME)
    delete(hub, ADMIN, ME)
    for who in (PARTNER, SYSTEM):
        with pytest.raises(error):
            put(hub, who, change(before))
    put(hub, PARTNER, before)
    assert read(hub, ME) == before
    delete(hub, ADMIN, ME)
    with pytest.raises(error):
        put(hub, PARTNER, change(before))


def test_an_unqualified_patient_does_not_come_back_as_somebody_else_either(hub: Hub) -> None:
    before = provisional(read(hub, ME))
    put(hub, PARTNER, before)
    delete(hub, ADMIN, ME)
    with pytest.raises(Conflict, match="an id of their own") as told:
        put(hub, PARTNER, with_other_ins(read_first(hub)) | {"name": OTHER_NAME, "birthDate": "1980-01-01"})
    assert (told.value.status, told.value.issues[0].expression) == (409, "Patient.id")
    put(hub, PARTNER, before | {"birthDate": "1991-01-01"})


def read_first(hub: Hub) -> Resource:
    with hub.store.read(SYSTEM) as snapshot:
        stored = snapshot.version("Patient", "patient-01", 1)
    assert stored is not None
    return {name: value for name, value in stored.resource().items() if name != "meta"}


@pytest.mark.parametrize("state", ["draft", "ready", "in_progress", "on-hold"])
def test_the_patient_of_an_open_case_stays_the_same_person(hub: Hub, state: str) -> None:
    asked(hub, state=state)
    before = read(hub, ME)
    put(hub, PARTNER, provisional(before))
    for change in (
        with_other_ins(before) | {"name": OTHER_NAME, "birthDate": "1980-01-01"},
        with_other_ins(before),
        provisional(before) | {"name": OTHER_NAME, "birthDate": "1980-01-01"},
    ):
        with pytest.raises(Conflict, match=r"has an open téléexpertise .* A47") as told:
            put(hub, PARTNER, change)
        assert (told.value.status, told.value.issues[0].expression) == (409, "Patient")
    put(hub, PARTNER, before)


def test_small_steps_do_not_add_up_to_somebody_else_while_a_case_is_open(hub: Hub) -> None:
    asked(hub)
    now = provisional(read(hub, ME))
    put(hub, PARTNER, now)
    put(hub, PARTNER, now := now | {"birthDate": "1980-01-01"})
    with pytest.raises(Conflict, match="another birth name, another birth date"):
        put(hub, PARTNER, now | {"name": [now["name"][0] | {"family": "AUTRE-TEST"}]})
    put(hub, PARTNER, now | {"telecom": [{"system": "phone", "value": "0123456789"}]})


def test_over_a_closed_case_and_on_purpose_an_identity_changes(hub: Hub) -> None:
    asked(hub)
    before = read(hub, ME)
    other = with_other_ins(before) | {"name": OTHER_NAME, "birthDate": "1980-01-01"}
    apply(hub, SYSTEM, [Change("update", "Patient", "patient-01", copy.deepcopy(other), identity_change=True)])
    apply(hub, SYSTEM, [Change("update", "Patient", "patient-01", copy.deepcopy(before), identity_change=True)])
    put(hub, REQUESTER, read(hub, "ServiceRequest/r") | {"status": "revoked"})
    put(hub, PARTNER, provisional(before))
    put(hub, PARTNER, other)
    assert read(hub, ME)["birthDate"] == "1980-01-01"


def test_a_case_that_began_after_a_correction_does_not_look_at_what_was_before(hub: Hub) -> None:
    put(hub, PARTNER, provisional(read(hub, ME)))
    put(hub, PARTNER, now := provisional(read(hub, ME)) | {"name": OTHER_NAME, "birthDate": "1980-01-01"})
    asked(hub)
    put(hub, PARTNER, now | {"telecom": [{"system": "phone", "value": "0123456789"}]})
    with pytest.raises(Conflict):
        put(hub, PARTNER, read_first(hub))
    assert hubs.status(hub) == "ready"
