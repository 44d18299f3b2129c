"""What the bytes of a delivery leave out stands with it: for whoever looks at it, sends it again or makes it anew."""

from __future__ import annotations

from typing import Any

import hubs
from corrected import received
from hubs import EXPERT, REQUESTER, SYSTEM, put, read
from test_delivery_policies import context_of
from test_orders import asks_for, hub, slot

from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.desk import outbox
from fhir_server.store.lanes import Delivery, NewDelivery

__all__ = ["hub"]
NOT_PRINTED = "ServiceRequest.supportingInfo: stays in the record: the report does not print it"
BEYOND, UNSAID = "1 notes beyond", "Confidentialité non transmise"


def left_out(hub: Hub, delivery_id: str) -> list[str]:
    return list(outbox.outbox_show(hub.store, {"id": delivery_id})["left_out"])


def asked_experts(hub: Hub, **changes: Any) -> tuple[Delivery, list[str]]:
    """The order the asked experts get, and what who asked was told."""
    put(hub, SYSTEM, asks_for("tlr-1.0-orm", id="experts", address="mllp://127.0.0.1:9?application=RIS&facility=X"))
    put(hub, SYSTEM, read(hub, "HealthcareService/avis-echo") | {"endpoint": [{"reference": "Endpoint/experts"}]})
    put(hub, REQUESTER, people.consent("r", 0))
    (applied,) = put(hub, REQUESTER, hubs.request(**changes))
    (order,) = (one for one in hubs.deliveries(hub) if one.lane == "Endpoint/experts")
    return order, list(applied.notes)


def test_what_an_order_leaves_out_stands_with_its_delivery_as_who_asked_is_told(hub: Hub) -> None:
    order, told = asked_experts(hub, priority="urgent", note=[{"text": "x"}] * 21)
    assert left_out(hub, order.id) == told
    assert any("ServiceRequest.priority" in one for one in told) and any(BEYOND in one for one in told)
    (row,) = outbox.outbox_list(hub.store, {"lane": order.lane})
    assert row["left_out"] == told


def test_what_an_appointment_leaves_out_stands_with_its_delivery(hub: Hub) -> None:
    hubs.asked(hub)
    patient = {"actor": {"reference": "Patient/patient-01"}, "status": "accepted"}
    (applied,) = put(hub, EXPERT, slot(participant=[patient]))
    (message,) = (one for one in hubs.deliveries(hub) if one.protocol == "hl7")
    assert applied.notes and left_out(hub, message.id) == list(applied.notes)


def test_what_a_report_leaves_out_stands_with_each_of_its_deliveries(hub: Hub) -> None:
    hubs.asked(hub, state="in_progress")
    (done, *_) = put(hub, EXPERT, hubs.opinion(hub))
    found = hubs.deliveries(hub)
    assert {one.protocol for one in found} == {"hl7", "mail"} and NOT_PRINTED in done.notes
    for one in found:
        told = left_out(hub, one.id)
        assert NOT_PRINTED in told and set(told) <= set(done.notes)


def test_a_report_made_anew_tells_what_the_new_bytes_leave_out_which_the_old_ones_told(hub: Hub) -> None:
    hubs.asked(hub, state="in_progress")
    put(hub, EXPERT, hubs.opinion(hub) | {"meta": {"security": [{"code": "R"}]}})
    old = next(one for one in hubs.deliveries(hub) if one.lane == "Endpoint/dpi")
    assert UNSAID not in " ".join(left_out(hub, old.id))
    outbox.outbox_hold(hub.store, {"id": old.id})
    put(hub, SYSTEM, asks_for("plain-oru"))
    made = operate(hub, SYSTEM, "outbox-regenerate", {"id": old.id})
    assert made["left_out"] == left_out(hub, made["id"])
    assert NOT_PRINTED in made["left_out"] and UNSAID in " ".join(made["left_out"])


def test_an_order_made_anew_tells_what_it_leaves_out_and_sent_again_it_still_does(hub: Hub) -> None:
    order, _ = asked_experts(hub)
    assert BEYOND not in " ".join(left_out(hub, order.id))
    outbox.outbox_hold(hub.store, {"id": order.id})
    put(hub, REQUESTER, read(hub, "ServiceRequest/r") | {"note": [{"text": "x"}] * 21})
    made = outbox.outbox_regenerate(hub.store, {"id": order.id}, context_of(hub))
    assert BEYOND in " ".join(made["left_out"]) and made["left_out"] == left_out(hub, made["id"])
    received(hub)
    again = hubs.replayed(hub.store, {"id": made["id"]})["id"]
    assert left_out(hub, again) == made["left_out"]


def test_what_is_left_out_is_one_line_each_bounded_and_said_once(hub: Hub) -> None:
    said = ("a\nb\0", "a\u2028b\0", "c", "d" * 9_000)
    new = NewDelivery("lane", "mllp://127.0.0.1:9", "hl7", b"MSH", left_out=said)
    key = hub.store.write(SYSTEM, lambda tx: tx.send(new))
    first, second, *others = left_out(hub, key)
    assert (first, second) == ("a b\ufffd", "c") and len(others) == 1 and len(others[0]) < 4_000
