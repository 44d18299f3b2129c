"""A request told to the expert's system as an order, taken back there, and answered under the number it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import EXPERT, REQUESTER, SYSTEM, directory, hub_on, put, read
from test_distribution import endpoint, notes, payload
from test_orders import EI, PLACER, asks_for

from fhir_server import outbox
from fhir_server.changes import Hub, view_of
from fhir_server.delivery import intake
from fhir_server.delivery.ports import Port
from fhir_server.demo import people
from fhir_server.errors import RuleBroken
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.teleexpertise.case import Context
from fhir_server.teleexpertise.orders import ORDERED
from fhir_server.teleexpertise.states import TRANSITIONS
from hl7v2 import ack
from hl7v2.check import check
from hl7v2.message import Message, parse
from mappers.fhir_to_report import own_root

LANE = "Endpoint/experts"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    hub = directory(hub_on(open_url(sqlite_url), site={"sending_applications": [["TLR", "EXPERTS"]]}))
    system = asks_for("tlr-1.0-orm", id="experts", address="mllp://127.0.0.1:9?application=TLR&facility=EXPERTS")
    group = read(hub, "HealthcareService/avis-echo") | {"endpoint": [{"reference": LANE}]}
    put(hub, SYSTEM, system, group, endpoint("dpi", status="off"), endpoint("pfi", status="off"))
    return hub


def ask(hub: Hub, **changes: Any) -> None:
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(**changes))


def change(hub: Hub, **changes: Any) -> None:
    put(hub, REQUESTER, read(hub, "ServiceRequest/r") | changes)


def told(hub: Hub) -> list[tuple[Delivery, Message]]:
    """What the expert's system is told, oldest first; each is sound."""
    found = [(one, parse(payload(hub, one))) for one in reversed(hubs.deliveries(hub)) if one.lane == LANE]
    for _, msg in found:
        assert check(msg) == []
    return found


def controls(hub: Hub) -> list[str]:
    return [msg.text("ORC-1") for _, msg in told(hub)]


def test_asking_is_told_with_who_asks_why_and_about_whom(hub: Hub) -> None:
    ask(hub, priority="urgent", note=[{"text": "Terme : 12 SA"}])
    ((delivery, msg),) = told(hub)
    assert (delivery.case_key, delivery.second_leg, msg.control_id) == ("ServiceRequest/r", "none", delivery.id)
    assert [msg.at(f"MSH-{n}").encoded for n in (5, 6, 9, 12)] == ["TLR", "EXPERTS", "ORM^O01^ORM_O01", "2.5.1"]
    number = f"r^^{own_root(hub.sites.default)}^ISO"
    assert msg.at("ORC-2").encoded == msg.at("OBR-2").encoded == number
    seen = [msg.text(place) for place in ("OBR-4", "OBR-5", "OBR-13", "ORC-12.2", "ORC-17", "NTE-3", "PID-5", "PV1-2")]
    assert seen == ["TRANSMISSION_DEMANDE", "UR", "Mesure à vérifier", "MOREAU", "STRUCTURE_IMAGERIE",
                    "Terme : 12 SA", people.PATIENTS[0][0], "N"]  # fmt: skip


def test_a_draft_is_told_when_it_goes_out_and_under_the_number_it_came_with(hub: Hub) -> None:
    ask(hub, status="draft", identifier=[PLACER])
    assert told(hub) == []
    change(hub, status="active")
    ((_, msg),) = told(hub)
    assert (msg.text("ORC-1"), msg.at("ORC-2").encoded) == ("NW", EI)


@pytest.mark.parametrize(
    ("status", "state"), [("revoked", "ready"), ("revoked", "taken"), ("entered-in-error", "ready")]
)
def test_what_was_out_is_taken_back_there_with_its_reason(hub: Hub, status: str, state: str) -> None:
    ask(hub)
    if state == "taken":
        hubs.take(hub)
        put(hub, EXPERT, hubs.message("q"))
    change(hub, status=status, note=[{"text": "Patiente transférée"}])
    assert controls(hub) == ["NW", "CA"]
    msg = told(hub)[1][1]
    assert (msg.text("OBR-4"), msg.text("ORC-16.2")) == ("ANNULATION_DEMANDE", "Patiente transférée")
    assert msg.at("ORC-2").encoded == told(hub)[0][1].at("ORC-2").encoded


def test_a_draft_that_is_given_up_and_an_expert_s_refusal_are_not_told(hub: Hub) -> None:
    ask(hub, status="draft")
    change(hub, status="revoked")
    assert told(hub) == []
    put(hub, REQUESTER, people.consent("s", 0), hubs.request("s"))
    put(hub, EXPERT, read(hub, "ServiceRequest/s") | {"status": "revoked", "note": [{"text": "Hors champ"}]})
    assert controls(hub) == ["NW"]


def test_every_step_is_an_order_or_named_as_none() -> None:
    steps = {one.name for one in TRANSITIONS}
    assert steps - set(ORDERED) == {
        "record", "take", "refuse", "question", "answer", "report", "amend", "withdraw",
    }  # fmt: skip


def test_the_asking_side_s_systems_get_no_order(hub: Hub) -> None:
    put(hub, SYSTEM, asks_for("tlr-1.0-orm", status="active"))
    desk = read(hub, "PractitionerRole/moreau") | {"endpoint": [{"reference": "Endpoint/dpi"}]}
    house = read(hub, "HealthcareService/avis-echo")
    put(hub, SYSTEM, desk, {name: part for name, part in house.items() if name != "providedBy"})
    ask(hub)
    assert {one.lane for one in hubs.deliveries(hub)} == {LANE}


def test_an_order_that_cannot_leave_stops_no_step_and_stands_on_the_task(hub: Hub) -> None:
    put(hub, SYSTEM, asks_for("tlr-1.0-orm", id="experts", status="off"))
    ask(hub)
    assert told(hub) == [] and hubs.status(hub) == "ready"
    (note,) = notes(hub)
    assert note.startswith("Demande non remise à ") and "statut off" in note


def answer(hub: Hub, control: str, **changes: str) -> ack.Ack:
    """The expert's system answers the order it was sent."""
    order = told(hub)[0][1]
    expert = changes.get("expert", read(hub, "Practitioner/garnier")["identifier"][0]["value"])
    lines = (
        f"MSH|^~\\&|TLR|EXPERTS|PASSERELLE|CH-DEMO|20261121090000||ORU^R01^ORU_R01|REP{control}{expert}|T|2.5.1"
        "|||||FRA|UNICODE UTF-8|||1.0^CISIS_TLR_HL7_V2",
        order.first("PID").raw.decode(),  # type: ignore[union-attr]  # told() checked it
        f"ORC|{control}|{changes.get('number', order.at('ORC-2').encoded)}||||||||||8{expert}^GARNIER^Hélène"
        "^^^^^^ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS||||^Hors champ",
        f"OBR|1|{changes.get('number', order.at('ORC-2').encoded)}||REPONSE_DEMANDE^^TLR_OBR_PROCEDURE",
    )
    return ack.read(intake.on_message(hub, ("\r".join(lines) + "\r").encode(), "peer", Port()))


@pytest.mark.parametrize(("control", "state"), [("OK", "in_progress"), ("OC", "revoked")])
def test_the_answer_of_that_system_finds_the_request_by_our_number(hub: Hub, control: str, state: str) -> None:
    ask(hub)
    assert answer(hub, control).code == "AA"
    assert hubs.status(hub) == state and controls(hub) == ["NW"]


def test_our_number_of_a_request_of_somebody_else_or_of_nothing_is_refused(hub: Hub) -> None:
    ask(hub)
    put(hub, REQUESTER, people.consent("t", 1), hubs.request("t", 1))
    root = own_root(hub.sites.default)
    other = answer(hub, "OK", number=f"t^^{root}^ISO")
    assert (other.code, other.errors[0].code) == ("AE", "207")
    hostile = answer(hub, "OC", number=f"../Patient/patient-01^^{root}^ISO")
    assert (hostile.code, hostile.errors[0].code) == ("AE", "204")
    assert hubs.status(hub) == "ready"


def test_a_held_order_is_made_again_while_it_is_true(hub: Hub) -> None:
    ask(hub)
    ((one, _),) = told(hub)

    def context(snapshot: Any) -> Context:
        return Context(SYSTEM, view_of(snapshot), hub.settings, hub.sites, hub.clock())

    outbox.OPERATIONS["outbox-hold"](hub.store, {"id": one.id})
    change(hub, priority="stat")
    outbox.outbox_regenerate(hub.store, {"id": one.id}, context)
    again = told(hub)[-1]
    assert again[0].id != one.id and (again[1].text("ORC-1"), again[1].text("OBR-5")) == ("NW", "S")
    outbox.OPERATIONS["outbox-hold"](hub.store, {"id": again[0].id})
    change(hub, status="revoked", note=[{"text": "Transférée"}])
    back = told(hub)[-1][0]
    outbox.OPERATIONS["outbox-hold"](hub.store, {"id": back.id})
    with pytest.raises(RuleBroken, match="is revoked now"):
        outbox.outbox_regenerate(hub.store, {"id": again[0].id}, context)
    outbox.outbox_regenerate(hub.store, {"id": back.id}, context)
    assert [told(hub)[-1][1].text(place) for place in ("ORC-1", "ORC-16.2")] == ["CA", "Transférée"]
