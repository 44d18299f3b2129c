"""Orders, answers and appointments by whichever Endpoint of an application serves; what was booked and is no more."""

from __future__ import annotations

from typing import Any

import hubs
import pytest
from hubs import REQUESTER, SYSTEM, directory, hub_on, put, read
from test_distribution import notes, payload
from test_orders import PLACER, asks_for, slot

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.store.engine import Store
from hl7v2.message import parse

Resource = dict[str, Any]
LATER = {"start": "2026-12-01T10:00:00+01:00", "end": "2026-12-01T10:20:00+01:00"}


@pytest.fixture
def hub(store: Store) -> Hub:
    return directory(hub_on(store))


def moved(hub: Hub, code: str, holder: str, first: str, second: str) -> None:
    """The Endpoints of one application at two addresses, in this order."""
    ends = [
        asks_for(code, id=f"e{n}", address=f"mllp://127.0.0.1:{n}?application=APP&facility=X", status=status)
        for n, status in ((1, first), (2, second))
    ]
    named = {"endpoint": [{"reference": f"Endpoint/e{n}"} for n in (1, 2)]}
    put(hub, SYSTEM, *ends, read(hub, holder) | named)


def lanes(hub: Hub) -> list[str]:
    return [one.lane for one in hubs.deliveries(hub) if one.protocol == "hl7"]


@pytest.mark.parametrize(
    ("first", "second", "lane"), [("off", "active", "e2"), ("active", "off", "e1"), ("active", "active", "e1")]
)
def test_an_application_with_an_endpoint_that_is_off_is_told_by_its_other_one(
    hub: Hub, first: str, second: str, lane: str
) -> None:
    moved(hub, "tlr-1.0-orm", "HealthcareService/avis-echo", first, second)
    put(hub, REQUESTER, people.consent("r", 0), hubs.request())
    assert lanes(hub) == [f"Endpoint/{lane}"]
    assert not [note for note in notes(hub) if "e1" in note or "e2" in note]


def test_the_answer_to_an_order_goes_by_the_endpoint_that_serves(hub: Hub) -> None:
    moved(hub, "tlr-1.0", "PractitionerRole/moreau", "off", "active")
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(status="active", identifier=[PLACER]))
    hubs.take(hub)
    assert lanes(hub) == ["Endpoint/e2"]


def test_an_application_whose_endpoints_are_all_off_is_named_once_in_the_case(hub: Hub) -> None:
    moved(hub, "tlr-1.0-orm", "HealthcareService/avis-echo", "off", "suspended")
    put(hub, REQUESTER, people.consent("r", 0), hubs.request())
    assert lanes(hub) == []
    (note,) = notes(hub)
    assert note.startswith("Demande non remise à ") and "statut off" in note


@pytest.mark.parametrize("status", ["pending", "proposed", "waitlist"])
def test_an_appointment_that_is_put_back_frees_the_agenda_and_is_booked_anew(hub: Hub, status: str) -> None:
    desk = read(hub, "PractitionerRole/moreau") | {"endpoint": [{"reference": "Endpoint/dpi"}]}
    put(hub, SYSTEM, asks_for("siu-2.5"), desk)
    hubs.asked(hub)
    for change in ({}, {"status": status, **LATER}, {"status": status, "comment": "à voir", **LATER}, LATER):
        put(hub, REQUESTER, slot(**change))
    told = [parse(payload(hub, one)) for one in reversed(hubs.deliveries(hub)) if one.protocol == "hl7"]
    assert [(msg.trigger, msg.get("SCH-25")) for msg in told] == [
        ("S12", "Booked"), ("S15", "Cancelled"), ("S12", "Booked"),
    ]  # fmt: skip
