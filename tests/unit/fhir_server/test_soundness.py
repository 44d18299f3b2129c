"""The check finds an identifier of two people and a case that lost what it rests on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import hubs
import pytest
from hubs import asked, directory, hub_on, put, read

from fhir_server import upkeep
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.demo import people
from fhir_server.search.index import rows
from fhir_server.store.engine import Store
from fhir_server.teleexpertise.scopes import scopes


@pytest.fixture
def hub(open_url: Callable[..., Store], database_url: str) -> Hub:
    return directory(hub_on(open_url(database_url)))


def problems(hub: Hub) -> list[tuple[str, str, str]]:
    report = upkeep.check(hub, {}, print)
    assert report["ok"] is not bool(report["problems"])
    return [(one["kind"], one["subject"], one["text"]) for one in report["problems"]]


def past_the_rules(hub: Hub, resource: hubs.Resource) -> None:
    found = rows(resource)
    found.scopes = scopes(resource)
    hub.store.write(SYSTEM, lambda tx: tx.create(resource, found))


def test_a_sound_store_has_no_findings(hub: Hub) -> None:
    asked(hub, state="completed")
    asked(hub, "s", 1, state="draft")
    known = people.patient(0)["identifier"][1] | {"use": "old"}
    put(hub, SYSTEM, {"resourceType": "Patient", "id": "other", "identifier": [known]})
    assert problems(hub) == []


@pytest.mark.parametrize("number", [0, 1])
def test_an_identifier_in_force_twice_is_found(hub: Hub, number: int) -> None:
    twin = copy.deepcopy(people.patient(0)) | {"id": "a-twin"}
    twin["identifier"] = [twin["identifier"][number]]
    past_the_rules(hub, twin)
    past_the_rules(hub, copy.deepcopy(twin) | {"id": "asleep", "active": False})
    ((kind, subject, text),) = problems(hub)
    assert (kind, subject) == ("identity", "Patient/a-twin")
    assert "Patient/a-twin, Patient/patient-01;" in text and "asleep" not in text
    assert twin["identifier"][0]["value"] not in text


@pytest.mark.parametrize("gone", ["Patient/patient-01", "Consent/r", "DiagnosticReport/r", "Binary"])
def test_a_case_that_lost_what_it_rests_on_is_found(hub: Hub, gone: str) -> None:
    asked(hub, state="completed")
    if gone == "Binary":
        (record,) = hubs.found(hub, "DocumentReference")
        gone = record["content"][0]["attachment"]["url"]
    hub.store.write(SYSTEM, lambda tx: tx.delete(*gone.split("/")))
    ((kind, subject, text),) = problems(hub)
    assert (kind, subject) == ("case", "ServiceRequest/r")
    assert gone in text or (gone.startswith("Diagnostic") and "its report is not here" in text)
    assert read(hub, "ServiceRequest/r")["status"] == "completed"
