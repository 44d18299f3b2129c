"""What a received message lost on its way into resources, and what it made us send leaves out, stands with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hubs import SYSTEM, put, read
from sylve import sample, say, sylve
from test_orders_told import ask, controls, order
from test_orders_told import hub as asking_hub

from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.store.engine import Store
from hl7v2.message import parse
from mappers.hl7v2_to_fhir import adt

__all__ = ["asking_hub"]


def shown(hub: Hub) -> dict[str, Any]:
    """The newest message, as the command and `/admin/inbox-show` tell it."""
    (newest, *_) = operate(hub, SYSTEM, "inbox-list", {"limit": "1"})
    told: dict[str, Any] = operate(hub, SYSTEM, "inbox-show", {"id": newest["id"]})
    json.dumps(told)
    return told


def test_what_a_message_lost_is_shown_with_it(open_url: Callable[..., Store], sqlite_url: str) -> None:
    hub = sylve(open_url(sqlite_url))
    raw = sample("adt-a01-admission", ("1.2.250.1.213.1.4.10", "1.2.250.1.213.1.4.010"))
    lost = adt(parse(raw), hub.sites.default).losses
    assert any(loss.source.startswith("PID-3") for loss in lost)
    assert say(hub, raw).code == "AA"
    told = shown(hub)
    assert told["state"] == "done"
    assert {f"{loss.source}: {loss.reason}" for loss in lost} <= set(told["note"].split("\n"))


def test_what_a_message_it_caused_leaves_out_is_shown_with_it(asking_hub: Hub) -> None:
    """The establishment of the stay takes its order back: the expert's system is told without the profile's name."""
    hub, home = asking_hub, {"reference": "Organization/ch-demo"}
    practice = read(hub, "PractitionerRole/moreau")["organization"]["reference"]
    nameless = {name: part for name, part in read(hub, practice).items() if name != "identifier"}
    stay = {
        "resourceType": "Encounter", "id": "stay", "status": "in-progress", "class": {"code": "AMB"},
        "subject": {"reference": "Patient/patient-01"}, "serviceProvider": home,
    }  # fmt: skip
    put(hub, SYSTEM, stay)
    ask(hub, encounter={"reference": "Encounter/stay"})
    put(hub, SYSTEM, nameless)
    assert order(hub, "CA").code == "AA" and controls(hub) == ["NW", "CA"]
    note = shown(hub)["note"]
    assert "tlr-1.0-orm, " in note and "MSH-21 left out, the profile requires a requester with a structure" in note
