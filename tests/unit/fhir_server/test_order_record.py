"""Who holds an order of a case: known when the outbox has forgotten it, by addressee, and held to the commit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hubs
import pytest
from hubs import ADMIN, PARTNER, REQUESTER, SYSTEM, at_once, delete, directory, hub_on, meddled, put, read, refused
from test_delivery_policies import context_of
from test_distribution import endpoint, notes, payload
from test_orders import PLACER, asks_for, sent

from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.desk import outbox, table
from fhir_server.errors import PasserelleError, RuleBroken
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.store.retention import prune
from fhir_server.teleexpertise.order_record import ORDERS, in_outbox, orders_of
from hl7v2.message import parse

Resource = dict[str, Any]
ECHO, CARDIO = "Endpoint/echo", "Endpoint/cardio"
BOTH = ("echo", "cardio")


def ends_at(key: str, application: str, **changes: Any) -> Resource:
    """The Endpoint of a group, which takes orders for an application."""
    address = f"mllp://127.0.0.1:9?application={application}&facility=EXPERTS"
    return asks_for("tlr-1.0-orm", id=key, address=address, **changes)


def groups(hub: Hub, echo: str = "ECHO", cardio: str = "CARDIO") -> Hub:
    """Two groups with an Endpoint each, for these applications; nobody else is told anything."""
    with_endpoints = [
        read(hub, f"HealthcareService/avis-{key}") | {"endpoint": [{"reference": f"Endpoint/{key}"}]} for key in BOTH
    ]
    off = [endpoint(key, status="off") for key in ("dpi", "pfi")]
    put(hub, SYSTEM, ends_at("echo", echo), ends_at("cardio", cardio), *off, *with_endpoints)
    return hub


@pytest.fixture
def hub(open_url: Callable[..., Store], database_url: str) -> Hub:
    return groups(directory(hub_on(open_url(database_url))))


def ask(hub: Hub, key: str = "r", **changes: Any) -> None:
    put(hub, REQUESTER, people.consent(key, 0), hubs.request(key, **changes))


def change(hub: Hub, key: str = "r", **changes: Any) -> None:
    put(hub, REQUESTER, read(hub, f"ServiceRequest/{key}") | changes)


def of(*names: str) -> dict[str, Any]:
    """Whom a request is for."""
    return {"performer": [{"reference": f"HealthcareService/avis-{name}"} for name in names]}


BACK: dict[str, Any] = {"status": "revoked", "note": [{"text": "Transférée"}]}


def orders(hub: Hub, key: str = "r") -> list[Delivery]:
    """The order messages the outbox has of a case, oldest first; what sends one again is none of them."""
    with hub.store.read(SYSTEM) as snapshot:
        found = [snapshot.delivery(one.delivery) for one in in_outbox(snapshot, f"ServiceRequest/{key}")]
    return [one for one in found if one is not None]


def told(hub: Hub, key: str = "r") -> list[tuple[str, str]]:
    return [(one.lane, parse(payload(hub, one)).text("ORC-1")) for one in orders(hub, key)]


def forgotten(hub: Hub) -> None:
    """All that waits was sent, and retention has removed what was settled."""
    sent(hub)
    prune(hub.store, -3_600)
    assert hubs.deliveries(hub) == []


def records(hub: Hub, key: str = "r") -> list[Resource]:
    found = hubs.found(hub, "Provenance", f"target=ServiceRequest/{key}")
    return [one for one in found if any(part["url"] == ORDERS for part in one.get("extension", ()))]


def unrecorded(hub: Hub) -> None:
    """The case as a release without the record left it."""
    (record,) = records(hub)
    hub.store.write(SYSTEM, lambda tx: tx.delete("Provenance", record["id"]))


def act(hub: Hub | Store, operation: str, delivery: Delivery) -> Any:
    store = hub.store if isinstance(hub, Hub) else hub
    done = hubs.replayed if operation == "replay" else table.OPERATIONS[f"outbox-{operation}"]
    return done(store, {"id": delivery.id})


# --- the outbox has forgotten it -------------------------------------------------------------------------------------


def test_a_cancellation_follows_an_order_that_the_outbox_has_forgotten(hub: Hub) -> None:
    ask(hub)
    forgotten(hub)
    change(hub, **BACK)
    assert told(hub) == [(ECHO, "CA")] and notes(hub) == []


def test_who_is_asked_instead_is_told_and_the_first_one_too_when_the_outbox_has_forgotten_them(hub: Hub) -> None:
    ask(hub)
    forgotten(hub)
    change(hub, **of("cardio"))
    assert sorted(told(hub)) == [(CARDIO, "NW"), (ECHO, "CA")]
    forgotten(hub)
    change(hub, **of("echo", "cardio"))
    assert told(hub) == [(ECHO, "NW")], "who was told that it is over gets it again, the other one holds it"
    forgotten(hub)
    change(hub, **BACK)
    assert sorted(told(hub)) == [(CARDIO, "CA"), (ECHO, "CA")]


def test_a_group_that_is_added_brings_the_first_no_second_order(hub: Hub) -> None:
    ask(hub)
    forgotten(hub)
    change(hub, **of(*BOTH))
    assert told(hub) == [(CARDIO, "NW")]


def test_an_order_that_was_given_up_is_held_by_nobody_when_the_outbox_has_forgotten_that(hub: Hub) -> None:
    ask(hub)
    act(hub, "cancel", orders(hub)[0])
    forgotten(hub)
    change(hub, **of(*BOTH))
    assert sorted(told(hub)) == [(CARDIO, "NW"), (ECHO, "NW")]
    forgotten(hub)
    change(hub, **BACK)
    assert sorted(told(hub)) == [(CARDIO, "CA"), (ECHO, "CA")]


def test_an_order_that_was_given_up_and_sent_after_all_is_held(hub: Hub) -> None:
    ask(hub)
    (order,) = orders(hub)
    act(hub, "cancel", order)
    act(hub, "replay", order)
    forgotten(hub)
    change(hub, **BACK)
    assert told(hub) == [(ECHO, "CA")]


def test_an_order_made_again_and_given_up_then_is_held_by_nobody(hub: Hub) -> None:
    ask(hub)
    (order,) = orders(hub)
    act(hub, "hold", order)
    made = outbox.outbox_regenerate(hub.store, {"id": order.id}, context_of(hub))
    with hub.store.read(SYSTEM) as snapshot:
        new = snapshot.delivery(made["id"])
    assert new is not None
    act(hub, "cancel", new)
    change(hub, **BACK)
    assert told(hub) == [(ECHO, "NW"), (ECHO, "NW")] and {one.state for one in orders(hub)} == {"cancelled"}


def test_an_order_of_an_earlier_release_is_found_in_the_outbox_and_taken_over(hub: Hub) -> None:
    ask(hub)
    unrecorded(hub)
    change(hub, **of(*BOTH))
    assert told(hub) == [(ECHO, "NW"), (CARDIO, "NW")]
    forgotten(hub)
    change(hub, **BACK)
    assert sorted(told(hub)) == [(CARDIO, "CA"), (ECHO, "CA")]


def test_an_order_of_an_earlier_release_that_was_given_up_is_taken_over_as_such(hub: Hub) -> None:
    ask(hub)
    act(hub, "cancel", orders(hub)[0])
    unrecorded(hub)
    change(hub, **of("cardio"))
    forgotten(hub)
    change(hub, **BACK)
    assert told(hub) == [(CARDIO, "CA")], "the first group never had the order"


def test_bytes_beside_the_orders_that_are_none_stop_no_step(hub: Hub) -> None:
    ask(hub)
    unrecorded(hub)
    other = hubs.NewDelivery(ECHO, "mllp://127.0.0.1:9", "hl7", b"\xff no message", case="ServiceRequest/r")
    hub.store.write(SYSTEM, lambda tx: tx.send(other))
    change(hub, **BACK)
    assert told(hub) == [(ECHO, "NW"), (ECHO, "CA")]


# --- one application, one addressee ----------------------------------------------------------------------------------


def test_two_groups_with_one_application_get_one_order_and_one_cancellation(hub: Hub) -> None:
    groups(hub, cardio="ECHO")
    ask(hub)
    change(hub, **of("cardio"))
    assert told(hub) == [(ECHO, "NW")], "the application has the order already"
    change(hub, **of(*BOTH))
    assert told(hub) == [(ECHO, "NW")]
    change(hub, **BACK)
    assert told(hub) == [(ECHO, "NW"), (ECHO, "CA")], "in the lane of the order, which keeps the two in order"


def test_an_application_that_is_asked_again_by_another_endpoint_is_told_in_the_lane_of_its_cancellation(
    hub: Hub,
) -> None:
    ask(hub)
    change(hub, **of("cardio"))
    group = read(hub, "HealthcareService/avis-cardio")
    put(hub, SYSTEM, ends_at("other", "ECHO"), group | {"endpoint": [{"reference": "Endpoint/other"}]})
    change(hub, **of("echo", "cardio"))
    assert [one for one in told(hub) if one[0] == ECHO] == [(ECHO, "NW"), (ECHO, "CA"), (ECHO, "NW")]
    assert not [one for one in told(hub) if one[0] == "Endpoint/other"]
    change(hub, **BACK)
    assert told(hub)[-1] == (ECHO, "CA")


def test_an_application_whose_first_endpoint_is_shut_is_told_of_the_end_by_its_other_one(hub: Hub) -> None:
    groups(hub, cardio="ECHO")
    ask(hub, **of(*BOTH))
    ((lane, _),) = told(hub)
    other = {ECHO: CARDIO, CARDIO: ECHO}[lane]
    put(hub, SYSTEM, ends_at(lane.partition("/")[2], "ECHO", status="off"))
    forgotten(hub)
    change(hub, **BACK)
    assert told(hub) == [(other, "CA")]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"address": "mllp://127.0.0.1:9?application=AUTRE&facility=EXPERTS"}, "mène à une autre application"),
        ({"status": "off"}, "statut off"),
        ({"payloadType": asks_for("lps-1.1")["payloadType"]}, "ne reçoit plus de demandes"),
    ],
)
def test_a_cancellation_that_finds_no_way_is_told_in_the_case_and_goes_to_no_stranger(
    hub: Hub, changes: dict[str, Any], why: str
) -> None:
    ask(hub)
    put(hub, SYSTEM, ends_at("echo", "ECHO") | changes)
    change(hub, **BACK)
    assert told(hub) == [(ECHO, "NW")]
    (note,) = notes(hub)
    assert note.startswith("Annulation de la demande non remise à ") and why in note


def test_an_application_that_ordered_by_another_endpoint_does_not_get_its_order_back(hub: Hub) -> None:
    """The group's own Endpoint leads to the very application that the requester's house ordered with."""
    asking = asks_for("tlr-1.0", status="active", address=ends_at("x", "ECHO")["address"])
    desk = read(hub, "PractitionerRole/moreau") | {"endpoint": [{"reference": "Endpoint/dpi"}]}
    put(hub, SYSTEM, asking, desk)
    ask(hub, identifier=[PLACER])
    assert told(hub) == []
    ask(hub, "s")
    assert told(hub, "s") == [(ECHO, "NW")], "asked by FHIR, it is told"


# --- said again ------------------------------------------------------------------------------------------------------


def test_an_order_of_a_request_that_is_not_out_any_more_is_not_sent_again(hub: Hub) -> None:
    ask(hub)
    (order,) = orders(hub)
    act(hub, "cancel", order)
    change(hub, **BACK)
    with pytest.raises(RuleBroken, match="the request is revoked now, ORC-1 NW is true of the past only"):
        act(hub, "replay", order)


def test_an_order_whose_end_was_told_since_is_not_said_again_and_its_end_is(hub: Hub) -> None:
    ask(hub)
    forgotten_not = orders(hub)[0]
    change(hub, **of("cardio"))
    end = next(one for one in orders(hub) if one.lane == ECHO and one.id != forgotten_not.id)
    sent(hub)
    with pytest.raises(RuleBroken, match=f"{end.id} \\(ORC-1 CA\\) follows it"):
        act(hub, "replay", forgotten_not)
    act(hub, "replay", end)
    change(hub, **of(*BOTH))
    with pytest.raises(RuleBroken, match=r"\(ORC-1 NW\) follows it, ORC-1 CA is true of the past only"):
        act(hub, "replay", end)


def test_an_order_that_another_message_says_by_now_is_not_sent_again(hub: Hub) -> None:
    ask(hub)
    (first,) = orders(hub)
    act(hub, "cancel", first)
    change(hub, **of(*BOTH))
    second = next(one for one in orders(hub) if one.lane == ECHO and one.id != first.id)
    with pytest.raises(RuleBroken, match=f"{second.id} \\(ORC-1 NW\\) follows it, says the same"):
        act(hub, "replay", first)
    act(hub, "cancel", second)
    act(hub, "replay", first)
    assert [one.parent for one in hubs.deliveries(hub) if one.state == "queued" and one.lane == ECHO] == [first.id]


def test_an_order_is_sent_to_nobody_who_is_not_asked_any_more(hub: Hub) -> None:
    ask(hub)
    (first,) = orders(hub)
    act(hub, "cancel", first)
    change(hub, **of("cardio"))
    assert told(hub) == [(ECHO, "NW"), (CARDIO, "NW")], "nobody had the first, and nobody is told of its end"
    with pytest.raises(RuleBroken, match=r"is not asked \(any more\) by ServiceRequest/r"):
        operate(hub, ADMIN, "outbox-replay", {"id": first.id})
    assert {one.lane for one in hubs.deliveries(hub) if one.state == "queued"} == {CARDIO}


def test_an_order_of_an_earlier_release_is_sent_again_as_often_as_its_partner_loses_it(hub: Hub) -> None:
    ask(hub)
    unrecorded(hub)
    (first,) = orders(hub)
    for _ in range(2):
        sent(hub)
        operate(hub, ADMIN, "outbox-replay", {"id": first.id})
    assert [one.parent for one in hubs.deliveries(hub) if one.parent] == [first.id] * 2


def test_a_cancellation_for_who_is_not_asked_any_more_is_made_again_while_the_request_is_out(hub: Hub) -> None:
    ask(hub)
    change(hub, **of("cardio"))
    end = next(one for one in orders(hub) if told(hub)[orders(hub).index(one)] == (ECHO, "CA"))
    act(hub, "hold", end)
    outbox.outbox_regenerate(hub.store, {"id": end.id}, context_of(hub))
    assert told(hub)[-1] == (ECHO, "CA") and orders(hub)[-1].parent == end.id


@pytest.mark.parametrize("operation", ["outbox-replay", "outbox-regenerate"])
def test_a_cancellation_reaches_nobody_who_is_asked_now(hub: Hub, operation: str) -> None:
    """The later NW was given up: nothing follows the cancellation, but it would end what is asked of them."""
    ask(hub)
    (first,) = orders(hub)
    sent(hub)
    change(hub, **of("cardio"))
    end = next(one for one in orders(hub) if one.lane == ECHO and one.id != first.id)
    if operation == "outbox-regenerate":
        act(hub, "hold", end)
    sent(hub)
    change(hub, **of("echo"))
    for later in [one for one in orders(hub) if one.lane == ECHO and one.id not in (first.id, end.id)]:
        act(hub, "cancel", later)
    before = hubs.deliveries(hub)
    with pytest.raises(RuleBroken, match="is asked now by ServiceRequest/r"):
        operate(hub, ADMIN, operation, {"id": end.id})
    assert hubs.deliveries(hub) == before


def test_a_message_that_the_record_does_not_know_is_not_sent_again(hub: Hub) -> None:
    ask(hub)
    (order,) = orders(hub)
    other = hubs.NewDelivery(ECHO, order.endpoint, "hl7", payload(hub, order), case="ServiceRequest/r")
    stray = hub.store.write(SYSTEM, lambda tx: tx.send(other))
    with pytest.raises(RuleBroken, match="does not know it"):
        operate(hub, ADMIN, "outbox-replay", {"id": stray})


def test_only_the_last_word_to_an_addressee_is_asked_of_the_outbox(hub: Hub) -> None:
    ask(hub)
    for name in ("cardio", "echo", "cardio", "echo"):
        change(hub, **of(name))
    ctx, asked = context_of(hub), []
    with hub.store.read(SYSTEM) as snapshot:
        known = replace(ctx(snapshot), handed=lambda one: asked.append(one) or "gone")  # type: ignore[func-returns-value]
        held = orders_of("ServiceRequest/r", known)
    assert len(held.lines) == 9 and sorted(asked) == sorted(held.standing) and len(asked) == 2
    assert [one.lane for one in held.holders] == [ECHO]


def test_an_order_for_who_is_not_asked_any_more_is_not_made_again(hub: Hub) -> None:
    ask(hub)
    (order,) = orders(hub)
    act(hub, "hold", order)
    other = ends_at("new", "NEW")
    group = read(hub, "HealthcareService/avis-echo") | {"endpoint": [{"reference": "Endpoint/new"}]}
    put(hub, SYSTEM, other, group)
    with pytest.raises(RuleBroken, match=r"is not asked \(any more\) by ServiceRequest/r"):
        outbox.outbox_regenerate(hub.store, {"id": order.id}, context_of(hub))


# --- nobody else writes it, and nobody slips in ----------------------------------------------------------------------


def test_nobody_else_writes_who_holds_an_order(hub: Hub) -> None:
    ask(hub)
    (record,) = records(hub)
    forged = {name: value for name, value in record.items() if name not in ("meta", "activity")}
    forged["extension"] = [{"url": ORDERS, "valueString": "x"}]
    place = "Provenance.extension"
    refused(RuleBroken, place, lambda: put(hub, PARTNER, forged))
    refused(RuleBroken, place, lambda: put(hub, PARTNER, forged | {"id": "other"}))
    elsewhere = {"target": [{"reference": "Patient/patient-01"}], "id": "elsewhere"}
    refused(RuleBroken, place, lambda: put(hub, ADMIN, forged | elsewhere))
    plain = {name: value for name, value in forged.items() if name != "extension"} | elsewhere
    put(hub, ADMIN, plain)
    refused(RuleBroken, place, lambda: put(hub, ADMIN, plain | {"extension": forged["extension"]}))
    with pytest.raises(PasserelleError):
        delete(hub, ADMIN, f"Provenance/{record['id']}")
    put(hub, PARTNER, {name: value for name, value in record.items() if name != "meta"})
    assert records(hub) == [record], "the same again changes nothing"


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "of an earlier release"])
def test_an_order_that_is_given_up_while_its_request_is_taken_back_is_not_followed(hub: Hub, recorded: bool) -> None:
    ask(hub)
    (order,) = orders(hub)
    if not recorded:
        unrecorded(hub)
    change(meddled(hub, lambda store: act(store, "cancel", order)), **BACK)
    assert told(hub) == [(ECHO, "NW")]


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "of an earlier release"])
def test_an_order_that_is_sent_after_all_while_its_request_is_taken_back_is_followed(hub: Hub, recorded: bool) -> None:
    ask(hub)
    (order,) = orders(hub)
    act(hub, "cancel", order)
    if not recorded:
        unrecorded(hub)
    change(meddled(hub, lambda store: act(store, "replay", order)), **BACK)
    assert [control for _, control in told(hub)][-1] == "CA"


def test_a_request_that_is_taken_back_while_its_order_is_given_up_finds_both_done(hub: Hub) -> None:
    ask(hub)
    (order,) = orders(hub)
    act(meddled(hub, lambda _: change(hub, **BACK)), "cancel", order)
    assert told(hub) == [(ECHO, "NW"), (ECHO, "CA")], "the end was told first; it waits alone, which a person sees"
    (record,) = records(hub)
    lines = [{part["url"]: part for part in line["extension"]} for line in record["extension"][0]["extension"]]
    assert ["ended" in line for line in lines] == [True, False]


def test_given_up_and_taken_back_at_once_the_record_says_what_the_outbox_says(hub: Hub) -> None:
    for key in (f"k{number}" for number in range(4)):
        ask(hub, key)
        (order,) = orders(hub, key)
        outcomes = at_once(functools.partial(act, hub, "cancel", order), functools.partial(change, hub, key, **BACK))
        assert not [one for one in outcomes if isinstance(one, Exception)], outcomes
        (record,) = records(hub, key)
        lines = record["extension"][0]["extension"]
        assert {"url": "ended", "valueBoolean": True} in lines[0]["extension"]
        assert len(lines) == len(orders(hub, key)) and orders(hub, key)[0].state == "cancelled"


def test_two_changes_of_who_is_asked_at_once_leave_each_one_order_or_none(hub: Hub) -> None:
    for key in (f"k{number}" for number in range(3)):
        ask(hub, key)
        at_once(functools.partial(change, hub, key, **of("cardio")), functools.partial(change, hub, key, **of(*BOTH)))
        last: dict[str, str] = dict(told(hub, key))
        asked = {one["reference"].removeprefix("HealthcareService/avis-") for one in
                 read(hub, f"ServiceRequest/{key}")["performer"]}  # fmt: skip
        assert {lane.removeprefix("Endpoint/") for lane, control in last.items() if control == "NW"} == asked


def test_a_change_decided_on_an_earlier_record_is_decided_again(hub: Hub) -> None:
    ask(hub)
    change(meddled(hub, lambda _: change(hub, **of("cardio"))), **of(*BOTH))
    assert told(hub).count((CARDIO, "NW")) == 1 and told(hub)[-1] == (ECHO, "NW")
