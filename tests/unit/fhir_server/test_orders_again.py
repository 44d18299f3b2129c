"""Answers to orders and appointment messages that were held: made again from what is stored now, or why not."""

from __future__ import annotations

import dataclasses
from operator import methodcaller
from typing import Any

import hubs
import pytest
from hubs import EXPERT, REQUESTER, SYSTEM, opinion, put, read
from test_delivery_policies import context_of
from test_distribution import payload
from test_orders import answers, asks_for, hub, ordered, sent, slot, step

from fhir_server.changes import Hub
from fhir_server.desk import outbox
from fhir_server.errors import RuleBroken
from fhir_server.store.lanes import Delivery
from hl7v2.message import Message, parse

__all__ = ["hub"]
MOVED = {"start": "2026-12-02T09:30:00+01:00", "end": "2026-12-02T09:50:00+01:00"}


def hold(hub: Hub, *some: Delivery) -> None:
    for one in some:
        outbox.outbox_hold(hub.store, {"id": one.id, "reason": "relire"})


def again(hub: Hub, old: Delivery) -> tuple[Delivery, Message]:
    made = outbox.outbox_regenerate(hub.store, {"id": old.id}, context_of(hub))
    with hub.store.read(SYSTEM) as snapshot:
        new, before = snapshot.delivery(made["id"]), snapshot.delivery(old.id)
    assert new is not None and before is not None
    assert (new.state, new.parent, new.lane, new.patient) == ("queued", old.id, old.lane, old.patient)
    assert (before.state, before.error) == ("cancelled", f"regenerated as {new.id}; it was held: relire")
    msg = parse(payload(hub, new))
    assert msg.control_id == new.id != old.id
    return new, msg


def refused(hub: Hub, old: Delivery) -> str:
    with pytest.raises(RuleBroken) as told:
        outbox.outbox_regenerate(hub.store, {"id": old.id}, context_of(hub))
    with hub.store.read(SYSTEM) as snapshot:
        after = snapshot.delivery(old.id)
    assert after is not None and after.state == "held"
    return told.value.diagnostics


def same(one: Message, other: Message) -> bool:
    """Equal but for their ids and the moment they were made at."""
    plain = [
        [segment.raw for segment in m.set("MSH-10", "").set("MSH-7", "").set("ORC-9", "").segments]
        for m in (one, other)
    ]
    return plain[0] == plain[1]


def taken(hub: Hub) -> tuple[Delivery, Message]:
    ordered(hub)
    hubs.take(hub)
    (found,) = answers(hub)
    return found


def test_an_acceptance_is_made_again_with_the_identity_of_today(hub: Hub) -> None:
    old, before = taken(hub)
    hold(hub, old)
    patient = read(hub, "Patient/patient-01")
    name = [{**one, "family": "CORRIGE"} if one.get("use") == "official" else one for one in patient["name"]]
    put(hub, SYSTEM, patient | {"name": name})
    _, msg = again(hub, old)
    assert before.get("PID-5.1") != "CORRIGE" and msg.get("PID-5.1") == "CORRIGE"
    assert same(before.set("PID-5.1", "CORRIGE"), msg), "who decided, and the number of the order, are as they were"


def test_a_refusal_is_made_again_with_its_reason_and_who_refused(hub: Hub) -> None:
    ordered(hub)
    step(hub, status="revoked", note=[{"text": "Hors du champ"}])
    ((old, before),) = answers(hub)
    hold(hub, old)
    new, msg = again(hub, old)
    assert same(before, msg) and (msg.get("ORC-1"), msg.get("ORC-16.2")) == ("OC", "Hors du champ")
    assert msg.get("ORC-12.2") == "GARNIER" and new.case_key == "ServiceRequest/r"


def test_what_the_requester_took_back_is_made_again_without_an_expert(hub: Hub) -> None:
    ordered(hub)
    step(hub, status="revoked", by=REQUESTER)
    ((old, _),) = answers(hub)
    hold(hub, old)
    assert not again(hub, old)[1].get("ORC-12")


def test_an_acceptance_of_what_was_refused_since_is_a_thing_of_the_past(hub: Hub) -> None:
    old, _ = taken(hub)
    hold(hub, old)
    step(hub, status="revoked", note=[{"text": "Indisponible"}])
    hold(hub, *(one for one, _ in answers(hub)[1:]))
    told = refused(hub, old)
    assert "the request is revoked now" in told and "cancel it" in told
    assert again(hub, answers(hub)[1][0])[1].get("ORC-1") == "OC"


def test_what_is_true_of_the_past_only_is_not_sent_again_either(hub: Hub) -> None:
    """The bytes as they are: who ordered would hear last that it was accepted."""
    accepted, _ = taken(hub)
    sent(hub)
    hubs.replayed(hub.store, {"id": accepted.id})
    step(hub, status="revoked", note=[{"text": "Hors champ"}])
    refused_, _ = answers(hub)[-1]
    sent(hub)
    with pytest.raises(RuleBroken, match="the request is revoked now, so that it was accepted is true of the past"):
        hubs.replayed(hub.store, {"id": accepted.id})
    assert hubs.replayed(hub.store, {"id": refused_.id})["state"] == "queued"


def test_a_booking_that_was_given_up_is_not_sent_again_either(hub: Hub) -> None:
    (first, _), (last, _) = booked(hub, {"status": "cancelled"})
    sent(hub)
    with pytest.raises(RuleBroken, match="the appointment is cancelled now, S12 is true of the past only"):
        hubs.replayed(hub.store, {"id": first.id})
    assert hubs.replayed(hub.store, {"id": last.id})["state"] == "queued"


def test_an_answer_does_not_step_behind_the_report_that_waits_for_it(hub: Hub) -> None:
    old, _ = taken(hub)
    hold(hub, old)
    put(hub, EXPERT, opinion(hub))
    report = next(one for one in hubs.deliveries(hub) if one.lane == old.lane and one.document)
    told = refused(hub, old)
    assert report.id in told and "would go first" in told
    hold(hub, report)
    new, _ = again(hub, old)
    made = outbox.outbox_regenerate(hub.store, {"id": report.id}, context_of(hub))
    last = next(one for one in hubs.deliveries(hub) if one.id == made["id"])
    assert last.lane_seq > new.lane_seq


def test_an_endpoint_that_is_shut_or_no_longer_asks_is_told_nothing_anew(hub: Hub) -> None:
    old, _ = taken(hub)
    hold(hub, old)
    put(hub, SYSTEM, asks_for("tlr-1.0", status="off"))
    assert "statut off" in refused(hub, old)
    put(hub, SYSTEM, asks_for("lps-1.1"))
    assert "is not told about it any more" in refused(hub, old)


def test_an_order_without_its_number_is_answered_by_nobody(hub: Hub) -> None:
    old, _ = taken(hub)
    hold(hub, old)
    request = read(hub, "ServiceRequest/r")
    hubs.write_past_the_rules(hub, {name: value for name, value in request.items() if name != "identifier"})
    assert "no number of an order" in refused(hub, old)


def booked(hub: Hub, *changes: dict[str, Any]) -> list[tuple[Delivery, Message]]:
    hubs.asked(hub)
    for one in ({}, *changes):
        put(hub, REQUESTER, slot(**one))
    return answers(hub)


def test_a_booking_is_made_again_with_the_time_of_today_once_what_follows_is_held(hub: Hub) -> None:
    (old, before), (moved, _) = booked(hub, MOVED)
    hold(hub, old)
    assert moved.id in refused(hub, old)
    hold(hub, moved)
    new, msg = again(hub, old)
    assert msg.trigger == "S12" and before.get("SCH-11.4") != msg.get("SCH-11.4") == "20261202093000+0100"
    after, _ = again(hub, moved)
    assert after.lane_seq > new.lane_seq


def test_a_booking_that_was_given_up_is_a_thing_of_the_past_and_its_end_is_not(hub: Hub) -> None:
    (old, _), (ended, _) = booked(hub, {"status": "cancelled"})
    hold(hub, old, ended)
    assert "the appointment is cancelled now, S12" in refused(hub, old)
    assert again(hub, ended)[1].get("SCH-25") == "Cancelled"


def test_an_appointment_that_is_gone_is_told_in_words(hub: Hub) -> None:
    ((old, _),) = booked(hub)
    hold(hub, old)
    hubs.write_past_the_rules(hub, slot(basedOn=[{"reference": "ServiceRequest/other"}]))
    assert "no appointment a1 any more" in refused(hub, old)


def test_what_is_neither_report_nor_answer_nor_slot_cannot_be_made_again(hub: Hub) -> None:
    old, msg = taken(hub)
    other = dataclasses.replace(
        hubs.NewDelivery(old.lane, old.endpoint, "hl7", msg.set("ORC-1", "RE").raw, id="Z" * 20),
        case=old.case_key,
        patient=old.patient,
    )
    hub.store.write(SYSTEM, lambda tx: tx.send(other))
    found = next(one for one in hubs.deliveries(hub) if one.id == other.id)
    hold(hub, found)
    assert "no report, no answer to an order and no appointment" in refused(hub, found)


def test_nothing_of_one_patient_overtakes_an_answer_that_is_held(hub: Hub) -> None:
    old, _ = taken(hub)
    hold(hub, old)
    put(hub, EXPERT, opinion(hub))
    put(hub, REQUESTER, slot())
    waiting = [one for one in hubs.deliveries(hub) if one.lane == old.lane and one.state == "queued"]
    assert len(waiting) == 2 and all(not one.document or one.patient == old.patient for one in waiting)
    while (claim := hub.store.claim("w", 60.0)) is not None:
        assert claim.delivery.lane != old.lane
        hub.store.write(SYSTEM, methodcaller("cancel", claim.delivery.id, "essai"))
