"""Compartments over REST: one type of it, several, everything, in pages; and who may see them. On both databases."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hubs import PARTNER, hub_on
from rest_calls import BASE, OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.store.engine import Store

CONDITION: dict[str, Any] = {"resourceType": "Condition", "id": "c", "subject": {"reference": "Patient/p"}}
OTHERS = OBSERVATION | {"id": "not", "subject": {"reference": "Patient/other"}}


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = hub_on(store)
    stored(hub, PATIENT, PATIENT | {"id": "other"}, OBSERVATION, OBSERVATION | {"id": "o2"}, OTHERS, CONDITION)
    return hub


def found(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [f"{one['resource']['resourceType']}/{one['resource']['id']}" for one in answer.entries]


def links(answer: Answer) -> dict[str, str]:
    return {one["relation"]: str(one["url"]).removeprefix(f"{BASE}/") for one in answer.json()["link"]}


def test_a_star_means_everything_of_a_compartment(hub: Hub) -> None:
    whole = ["Condition/c", "Observation/o", "Observation/o2", "Patient/p"]
    assert sorted(found(ask(hub, "GET", "Patient/p/*?_count=100"))) == whole
    assert sorted(found(ask(hub, "GET", "Patient/p/*?_type=Observation,Condition"))) == whole[:3]
    assert found(ask(hub, "GET", "Patient/p/*?_lastUpdated=lt2000")) == []
    assert ask(hub, "GET", "Patient/p/*?_summary=count").json()["total"] == 4


def test_the_pages_of_everything_go_on(hub: Hub) -> None:
    seen: list[str] = []
    url = "Patient/p/*?_sort=_id&_count=1"
    assert links(ask(hub, "GET", url))["self"] == url
    while url:
        answer = ask(hub, "GET", url)
        seen += found(answer)
        url = links(answer).get("next", "")
    assert seen == ["Condition/c", "Observation/o", "Observation/o2", "Patient/p"]


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("Organization/p/*", 400, "there are Device, Encounter, Patient, Practitioner, RelatedPerson"),
        ("Organization/p/Observation", 400, "no compartment"),
        ("Patient/p/Organization", 400, "never belongs to a Patient"),
        ("Patient/p/*?name=x", 400, "needs a resource type"),
        ("Patient/p/*?_type=Organization", 400, "never belongs to a Patient"),
        ("Patient/a b/*", 404, "an id is"),
        ("Pizza/p/*", 404, "Pizza"),
    ],
)
def test_what_is_no_compartment_is_told(hub: Hub, path: str, status: int, says: str) -> None:
    answer = ask(hub, "GET", path)
    assert answer.status == status, answer.body
    assert says in answer.issue["diagnostics"]


def test_a_compartment_is_only_read(hub: Hub) -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer = ask(hub, method, "Patient/p/*", PATIENT)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_everything_is_for_who_may_search_everything(hub: Hub) -> None:
    def reader(*rights: str) -> Caller:
        return dataclasses.replace(PARTNER, rights=frozenset((kind, "s") for kind in rights))

    assert ask(hub, "GET", "Patient/p/*", caller=reader("*")).status == 200
    assert ask(hub, "GET", "Patient/p/*", caller=reader("Patient", "Observation", "Condition")).status == 403
    assert ask(hub, "GET", "Patient/p/Observation", caller=reader("Observation")).status == 200
    assert ask(hub, "GET", "Patient/p/Observation", caller=reader("Patient")).status == 403
