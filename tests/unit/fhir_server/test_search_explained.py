"""Any search can be explained: by type, over several, within a compartment, with what is contained, of any type of
parameter; the rows are those the search meets. On both databases."""

from __future__ import annotations

from typing import Any

import pytest
from hubs import PARTNER, hub_on
from rest_calls import OBSERVATION, PATIENT, ask, stored

from fhir_server import errors, explaining
from fhir_server.changes import Hub
from fhir_server.store.engine import Store

HELD: dict[str, Any] = {"resourceType": "Patient", "id": "inside", "gender": "female"}
PLACE = {"resourceType": "Location", "id": "l", "position": {"latitude": 48.8, "longitude": 2.3}}


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = hub_on(store)
    stored(hub, PATIENT, PATIENT | {"id": "other"}, OBSERVATION | {"contained": [HELD]}, PLACE)
    return hub


@pytest.mark.parametrize(
    "asked",
    [
        "Patient?family=mart",
        "Patient?identifier:missing=true",
        "Patient?birthdate=ge1980&birthdate=lt2000",
        "Patient?_has:Observation:subject:status=final",
        "Patient?_id=p",
        "Patient?_filter=family sw mar and not (gender eq male)",
        "Observation?subject:Patient.family=martin",
        "Observation?_contained=true&_containedType=container&status=final",
        "Patient?_contained=both&gender=female",
        "Observation?_content=poids",
        "Location?near=48.8|2.3|5|km",
        "?_type=Patient,Observation&_lastUpdated=ge2020",
        "Patient/p/Observation",
        "Patient/p/Observation?status=final",
        "Patient/p/*?_lastUpdated=ge2020",
        "/Patient/p/*",
        "Patient?_sort=-birthdate,family",
    ],
)
def test_what_a_search_meets_is_explained(hub: Hub, asked: str) -> None:
    told = explaining.explain(hub, PARTNER, {"query": asked})
    found = ask(hub, "GET", asked.removeprefix("/"))
    assert found.status == 200, found.body
    assert told["rows"] == len(found.entries)
    assert told["sql"].startswith("SELECT") or told["sql"].startswith("WITH")
    assert told["plan"] and told["words"] and told["milliseconds"] >= 0
    assert told["database"] == hub.store.engine


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("Patient/p/Organization", "never belongs"),
        ("Organization/p/Patient", "no compartment"),
        ("Patient/p", "no resource type"),
        ("Patient/p/Pizza", "Pizza"),
        ("Patient?colour=blue", "Known are"),
    ],
)
def test_what_is_no_search_is_not_explained(hub: Hub, asked: str, says: str) -> None:
    with pytest.raises(errors.PasserelleError, match=says) as caught:
        explaining.explain(hub, PARTNER, {"query": asked})
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("asked", "total"),
    [
        ("", None),
        ("_total=none", None),
        ("_total=accurate", 2),
        ("_total=estimate", 2),
        ("_count=0", 2),
        ("_summary=count", 2),
    ],
)
def test_a_total_is_there_when_it_was_asked_for(hub: Hub, asked: str, total: int | None) -> None:
    answer = ask(hub, "GET", f"Patient?{asked}")
    assert answer.json().get("total") == total
    assert bool(answer.entries) == (asked not in ("_count=0", "_summary=count"))
