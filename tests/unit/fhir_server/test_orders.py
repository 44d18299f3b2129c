"""What the workflow tells by HL7 v2 beside reports: answers to orders, and appointments."""

from __future__ import annotations

from typing import Any

import hubs
import pytest
from hubs import EXPERT, REQUESTER, SYSTEM, directory, hub_on, opinion, put, read
from test_distribution import endpoint, notes, payload

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.desk import outbox, words
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.store.leases import Outcome
from fhir_server.teleexpertise.distribution import PROFILE_SYSTEM, WORKFLOW
from fhir_server.teleexpertise.orders import ANSWERS
from fhir_server.teleexpertise.states import TRANSITIONS
from hl7v2.message import Message, parse

Resource = dict[str, Any]
PLACER = {"type": {"coding": [{"code": "PLAC"}]}, "system": "urn:oid:2.25.4720", "value": "DEM-7"}
EI = "DEM-7^^2.25.4720^ISO"


def asks_for(*codes: str, **changes: Any) -> Resource:
    kinds = [{"coding": [{"system": PROFILE_SYSTEM, "code": code}]} for code in codes]
    return endpoint("dpi", payloadType=kinds, **changes)


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = directory(hub_on(store))
    desk = read(hub, "PractitionerRole/moreau") | {"endpoint": [{"reference": "Endpoint/dpi"}]}
    put(hub, SYSTEM, asks_for("lps-1.1", "tlr-1.0", "siu-2.5"), desk)
    return hub


def ordered(hub: Hub, status: str = "active") -> None:
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(status=status, identifier=[PLACER]))


def answers(hub: Hub) -> list[tuple[Delivery, Message]]:
    """The order and schedule messages frozen so far, oldest first."""
    found = [one for one in reversed(hubs.deliveries(hub)) if one.protocol == "hl7"]
    messages = [(one, parse(payload(hub, one))) for one in found]
    return [(one, msg) for one, msg in messages if msg.first("ORC") is None or msg.get("ORC-1") in ("OK", "OC")]


def sent(hub: Hub) -> None:
    """All that waits has left."""
    while (claim := hub.store.claim("w", 60.0)) is not None:
        hub.store.finish(claim, Outcome("sent"))


def step(hub: Hub, **changes: Any) -> None:
    put(hub, changes.pop("by", EXPERT), read(hub, "ServiceRequest/r") | changes)


def test_taking_an_order_is_told_to_who_ordered_before_the_report(hub: Hub) -> None:
    ordered(hub)
    assert answers(hub) == []
    hubs.take(hub)
    ((delivery, msg),) = answers(hub)
    assert (delivery.lane, delivery.case_key, delivery.second_leg) == ("Endpoint/dpi", "ServiceRequest/r", "none")
    assert msg.control_id == delivery.id and msg.at("MSH-9").encoded == "ORU^R01^ORU_R01"
    assert (msg.get("ORC-1"), msg.at("ORC-2").encoded, msg.get("ORC-12.2")) == ("OK", EI, "GARNIER")
    put(hub, EXPERT, opinion(hub))
    lane = [one for one in hubs.deliveries(hub) if one.lane == "Endpoint/dpi"]
    assert sorted(one.lane_seq for one in lane)[0] == delivery.lane_seq and len(lane) == 2


def test_every_message_about_an_order_names_its_own_number(hub: Hub) -> None:
    put(hub, SYSTEM, endpoint("pfi", payloadType=asks_for("push-2.1-oru")["payloadType"]))
    ordered(hub)
    hubs.take(hub)
    put(hub, EXPERT, opinion(hub))
    told = [parse(payload(hub, one)) for one in hubs.deliveries(hub) if one.protocol == "hl7"]
    assert len(told) >= 2
    assert {(msg.at("ORC-2").encoded, msg.at("OBR-2").encoded) for msg in told} == {(EI, EI)}


def test_whatever_is_sent_is_found_by_each_business_key(hub: Hub) -> None:
    stay = {
        "resourceType": "Encounter", "id": "stay", "status": "in-progress", "class": {"code": "AMB"},
        "subject": {"reference": "Patient/patient-01"}, "identifier": [{"system": "urn:oid:2.25.47", "value": "SEJ-7"}],
    }  # fmt: skip
    put(hub, SYSTEM, stay)
    asked = hubs.request(status="active", identifier=[PLACER], encounter={"reference": "Encounter/stay"})
    put(hub, REQUESTER, people.consent("r", 0), asked)
    hubs.take(hub)
    put(hub, EXPERT, opinion(hub))
    (answer, _), *_ = answers(hub)
    sent = {one.id for one in hubs.deliveries(hub)}
    number = read(hub, "ServiceRequest/r")["identifier"][-1]["value"]
    person = people.patient(0)["identifier"]
    by_key = {"iep": "SEJ-7", "accession": number, "finess": hub.sites.default.finess_eg}
    by_key |= {kind: person[place]["value"] for place, kind in enumerate(("ins", "ipp"))}

    def listed(kind: str, value: str) -> set[str]:
        return {row["id"] for row in outbox.outbox_list(hub.store, {kind: value})}

    assert {kind: listed(kind, value) for kind, value in by_key.items()} == dict.fromkeys(by_key, sent)
    assert listed("rpps", "99000000037") == sent - {answer.id}, "who wrote a report; an answer has no author"
    assert listed("msh-10", answer.id) == {answer.id}
    assert set(words.KEYS) == {*by_key, "rpps", "msh-10"}


def test_a_refusal_carries_its_reason(hub: Hub) -> None:
    ordered(hub)
    step(hub, status="revoked", note=[{"text": "Hors du champ de l'échographie"}])
    ((_, msg),) = answers(hub)
    assert (msg.get("ORC-1"), msg.get("ORC-16.2")) == ("OC", "Hors du champ de l'échographie")


def test_what_the_requester_takes_back_elsewhere_is_told_without_an_expert(hub: Hub) -> None:
    ordered(hub)
    step(hub, status="revoked", by=REQUESTER)
    ((_, msg),) = answers(hub)
    assert msg.get("ORC-1") == "OC" and not msg.get("ORC-12")


def test_a_request_nobody_ordered_and_an_endpoint_that_does_not_ask_cause_nothing(hub: Hub) -> None:
    hubs.asked(hub, state="in_progress")
    assert answers(hub) == []
    put(hub, SYSTEM, asks_for("lps-1.1"))
    put(hub, REQUESTER, people.consent("q", 0), hubs.request("q", identifier=[PLACER]))
    hubs.take(hub, "q")
    assert answers(hub) == [] and notes(hub, "q") == []


def test_an_answer_that_cannot_leave_stops_no_step_and_stands_on_the_task(hub: Hub) -> None:
    put(hub, SYSTEM, asks_for("tlr-1.0", status="off"))
    ordered(hub)
    hubs.take(hub)
    assert answers(hub) == [] and read(hub, "Task/r")["status"] == "in-progress"
    (note,) = notes(hub)
    assert note.startswith("Réponse à la demande non remise à ") and "statut off" in note
    assert "coding" not in read(hub, "Task/r")["businessStatus"]


def test_a_report_goes_nowhere_by_an_endpoint_that_asks_for_answers_alone(hub: Hub) -> None:
    put(hub, SYSTEM, asks_for("tlr-1.0"))
    ordered(hub)
    hubs.take(hub)
    put(hub, EXPERT, opinion(hub))
    told = [one for one in hubs.deliveries(hub) if one.lane == "Endpoint/dpi"]
    assert len(told) == 1 and not any("dpi" in note for note in notes(hub))


def test_every_step_is_either_told_or_named_as_silent() -> None:
    steps = {one.name for one in TRANSITIONS}
    assert set(ANSWERS) <= steps and steps - set(ANSWERS) == {
        "record", "ask", "publish", "question", "answer", "report", "amend", "withdraw"
    }  # fmt: skip
    assert set(WORKFLOW) == {"tlr-1.0", "tlr-1.0-orm", "siu-2.5"}


def slot(**changes: Any) -> Resource:
    return {
        "resourceType": "Appointment", "id": "a1", "status": "booked", "start": "2026-12-01T09:30:00+01:00",
        "end": "2026-12-01T09:50:00+01:00", "basedOn": [{"reference": "ServiceRequest/r"}],
        "participant": [
            {"actor": {"reference": "PractitionerRole/garnier"}, "status": "accepted"},
            {"actor": {"reference": "Patient/patient-01"}, "status": "accepted"},
        ],
    } | changes  # fmt: skip


def test_an_appointment_of_a_case_is_told_as_it_changes(hub: Hub) -> None:
    hubs.asked(hub)
    put(hub, REQUESTER, slot(status="proposed"))
    put(hub, REQUESTER, slot())
    put(hub, REQUESTER, slot(start="2026-12-01T10:00:00+01:00", end="2026-12-01T10:20:00+01:00"))
    put(hub, REQUESTER, slot(start="2026-12-01T10:00:00+01:00", end="2026-12-01T10:20:00+01:00", comment="À jeun"))
    put(hub, REQUESTER, slot(status="cancelled"))
    told = [msg for _, msg in answers(hub)]
    assert [msg.trigger for msg in told] == ["S12", "S13", "S14", "S15"]
    assert {msg.get("SCH-2.1") for msg in told} == {"a1"} and {msg.get("SCH-26.1") for msg in told} == {"r"}
    assert told[0].get("AIP-3.2") == "GARNIER" and told[0].get("PID-3")


def test_an_appointment_of_nothing_and_one_the_agenda_told_us_are_not_told(hub: Hub) -> None:
    hubs.asked(hub)
    put(hub, REQUESTER, {k: v for k, v in slot().items() if k != "basedOn"})
    agenda = hubs.PARTNER.__class__("", "Agenda", frozenset({"partner"}), channel="mllp")
    put(hub, agenda, slot(id="a2"))
    assert answers(hub) == []
