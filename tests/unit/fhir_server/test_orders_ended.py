"""An order is ended for who holds it when nothing is awaited of them: taken by somebody else, refused by anybody."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import hubs
import pytest
from hubs import ADMIN, EXPERT, OTHER_EXPERT, SYSTEM, directory, hub_on, put, read
from test_distribution import notes, payload
from test_order_record import (
    BACK,
    BOTH,
    CARDIO,
    ECHO,
    act,
    ask,
    change,
    ends_at,
    forgotten,
    groups,
    of,
    orders,
    records,
    told,
    unrecorded,
)
from test_orders import sent

from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.delivery import intake
from fhir_server.delivery.ports import Port
from fhir_server.demo.run import SITES
from fhir_server.errors import RuleBroken
from fhir_server.patients.sites import load_sites
from fhir_server.store.engine import Store
from fhir_server.store.leases import Outcome
from fhir_server.teleexpertise import order_record
from fhir_server.teleexpertise.case import Context, Ordered
from hl7v2 import ack
from hl7v2.message import parse

SENDERS = [["ECHO", "EXPERTS"], ["CARDIO", "EXPERTS"]]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return groups(directory(hub_on(open_url(sqlite_url), site={"sending_applications": SENDERS})))


def refuse(hub: Hub) -> None:
    put(hub, EXPERT, read(hub, "ServiceRequest/r") | {"status": "revoked", "note": [{"text": "Hors champ"}]})


def why(hub: Hub) -> str:
    return parse(payload(hub, orders(hub)[-1])).text("ORC-16.2")


def answer(hub: Hub, control: str, application: str = "ECHO", expert: str = "garnier") -> None:
    """The system of a group answers the order it was sent."""
    order = parse(payload(hub, orders(hub)[0]))
    number, rpps = order.at("ORC-2").encoded, read(hub, f"Practitioner/{expert}")["identifier"][0]["value"]
    lines = (
        f"MSH|^~\\&|{application}|EXPERTS|PASSERELLE|CH-DEMO|20261121090000||ORU^R01^ORU_R01|REP{control}|T|2.5.1"
        "|||||FRA|UNICODE UTF-8|||1.0^CISIS_TLR_HL7_V2",
        order.first("PID").raw.decode(),  # type: ignore[union-attr]  # ours has one
        f"ORC|{control}|{number}||||||||||8{rpps}^X^Y^^^^^^ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS"
        "||||^Hors champ",
        f"OBR|1|{number}||REPONSE_DEMANDE^^TLR_OBR_PROCEDURE",
    )
    said = ack.read(intake.on_message(hub, ("\r".join(lines) + "\r").encode(), "peer", Port()))
    assert said.code == "AA", said


# --- refused ---------------------------------------------------------------------------------------------------------


def test_who_refuses_by_hl7_is_told_nothing_and_every_other_holder_that_it_is_over(hub: Hub) -> None:
    ask(hub, **of(*BOTH))
    answer(hub, "OC")
    assert hubs.status(hub) == "revoked"
    assert sorted(told(hub)) == [(CARDIO, "CA"), (CARDIO, "NW"), (ECHO, "NW")]
    assert why(hub) == "Demande refusée ; Refus : Hors champ"


def test_a_refusal_in_the_console_is_told_to_every_holder_since_no_application_knows_of_it(hub: Hub) -> None:
    ask(hub, **of(*BOTH))
    refuse(hub)
    assert sorted(told(hub)) == [(CARDIO, "CA"), (CARDIO, "NW"), (ECHO, "CA"), (ECHO, "NW")]
    assert why(hub) == "Demande refusée ; Hors champ" and notes(hub) == []


def test_a_refusal_after_the_request_was_taken_ends_the_order_of_who_took_it(hub: Hub) -> None:
    ask(hub, **of(*BOTH))
    hubs.take(hub)
    refuse(hub)
    assert sorted(told(hub)) == [(CARDIO, "CA"), (CARDIO, "NW"), (ECHO, "CA"), (ECHO, "NW")], "each holder once"


def test_an_application_that_answers_under_another_name_is_known_by_the_group_it_answers_for(hub: Hub) -> None:
    """An interface engine that signs what passes through it: as long as one application alone can have said it."""
    ask(hub)
    answer(hub, "OC", "PASSAGE")
    assert told(hub) == [(ECHO, "NW")]


def test_an_answer_that_may_be_of_two_applications_ends_the_orders_of_both(hub: Hub) -> None:
    """Both groups are of one house, which answers for both under another name."""
    ask(hub, **of(*BOTH))
    answer(hub, "OC", "PASSAGE")
    assert sorted(told(hub)) == [(CARDIO, "CA"), (CARDIO, "NW"), (ECHO, "CA"), (ECHO, "NW")]


# --- taken -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["hl7", "console"])
def test_who_takes_a_request_keeps_the_order_and_every_other_holder_is_told_that_it_is_over(hub: Hub, by: str) -> None:
    ask(hub, **of(*BOTH))
    if by == "hl7":
        answer(hub, "OK")
    else:
        hubs.take(hub)
    assert hubs.status(hub) == "in_progress"
    assert sorted(told(hub)) == [(CARDIO, "CA"), (CARDIO, "NW"), (ECHO, "NW")]
    assert why(hub) == "Demande prise en charge par un autre destinataire"
    change(hub, **BACK | {"status": "entered-in-error"})
    assert sorted(told(hub)) == [(CARDIO, "CA"), (CARDIO, "NW"), (ECHO, "CA"), (ECHO, "NW")]


def test_the_other_group_takes_it_and_the_first_one_is_told(hub: Hub) -> None:
    ask(hub, **of(*BOTH))
    hubs.take(hub, caller=OTHER_EXPERT)
    assert sorted(told(hub)) == [(CARDIO, "NW"), (ECHO, "CA"), (ECHO, "NW")]


def test_the_one_group_that_was_asked_takes_it_and_nobody_is_told(hub: Hub) -> None:
    ask(hub)
    answer(hub, "OK")
    put(hub, EXPERT, hubs.message("q"))
    assert told(hub) == [(ECHO, "NW")]


def test_two_groups_of_one_application_keep_their_order_when_one_of_them_takes_it(hub: Hub) -> None:
    groups(hub, cardio="ECHO")
    ask(hub, **of(*BOTH))
    lanes = told(hub)
    hubs.take(hub, caller=OTHER_EXPERT)
    assert told(hub) == lanes and len(lanes) == 1


def test_a_person_who_was_asked_beside_a_group_takes_it_and_the_group_is_told(hub: Hub) -> None:
    role = read(hub, "PractitionerRole/benali")
    person = {name: value for name, value in role.items() if name != "healthcareService"}
    put(hub, SYSTEM, person | {"endpoint": [{"reference": CARDIO}]})
    asked = [{"reference": "HealthcareService/avis-echo"}, {"reference": "PractitionerRole/benali"}]
    ask(hub, performer=asked)
    hubs.take(hub, caller=replace(OTHER_EXPERT, groups=frozenset()))
    assert sorted(told(hub)) == [(CARDIO, "NW"), (ECHO, "CA"), (ECHO, "NW")]


@pytest.mark.parametrize("state", ["in_progress", "on-hold"])
def test_what_was_taken_by_one_group_is_said_to_no_other_again(hub: Hub, state: str) -> None:
    """The first order to the other group was given up, so it got no cancellation that would stop it."""
    ask(hub, **of(*BOTH))
    (given_up,) = [one for one in orders(hub) if one.lane == CARDIO]
    act(hub, "cancel", given_up)
    hubs.take(hub)
    if state == "on-hold":
        put(hub, EXPERT, hubs.message("q"))
    assert [lane for lane, _ in told(hub)].count(CARDIO) == 1
    with pytest.raises(RuleBroken, match=r"is not asked \(any more\) by ServiceRequest/r"):
        operate(hub, ADMIN, "outbox-replay", {"id": given_up.id})


def test_the_end_that_was_told_when_somebody_else_took_it_is_told_again_if_it_got_lost(hub: Hub) -> None:
    ask(hub, **of(*BOTH))
    hubs.take(hub)
    sent(hub)
    end = next(one for one in orders(hub) if one.lane == CARDIO and parse(payload(hub, one)).text("ORC-1") == "CA")
    operate(hub, ADMIN, "outbox-replay", {"id": end.id})
    assert [one.parent for one in hubs.deliveries(hub) if one.state == "queued"] == [end.id]


def test_an_end_is_made_again_for_nobody_but_who_it_was_for(hub: Hub) -> None:
    """The Endpoint leads to another application by now, which knows nothing of the patient."""
    ask(hub)
    sent(hub)
    change(hub, **BACK)
    end = orders(hub)[-1]
    act(hub, "hold", end)
    put(hub, SYSTEM, ends_at("echo", "AUTRE"))
    with pytest.raises(RuleBroken, match="mène à une autre application"):
        operate(hub, ADMIN, "outbox-regenerate", {"id": end.id})
    put(hub, SYSTEM, ends_at("echo", "ECHO"))
    operate(hub, ADMIN, "outbox-regenerate", {"id": end.id})
    assert told(hub)[-1] == (ECHO, "CA")


# --- what waits where no road leads any more --------------------------------------------------------------------------


def elsewhere(hub: Hub) -> None:
    """The application of the ultrasound group is reached by another Endpoint; the first one is shut."""
    group = read(hub, "HealthcareService/avis-echo") | {"endpoint": [{"reference": "Endpoint/other"}]}
    put(hub, SYSTEM, ends_at("echo", "ECHO", status="off"), ends_at("other", "ECHO"), group)


def states(hub: Hub) -> list[tuple[str, str, str]]:
    said = zip(told(hub), orders(hub), strict=True)
    return [(lane.removeprefix("Endpoint/"), control, one.state) for (lane, control), one in said]


def test_an_end_that_waits_in_a_shut_lane_does_not_come_behind_the_order_it_would_end(hub: Hub) -> None:
    """The first order arrived and stands once its end is given up: no second one."""
    ask(hub)
    sent(hub)
    change(hub, **of("cardio"))
    elsewhere(hub)
    change(hub, **of(*BOTH))
    assert states(hub)[0] == ("echo", "NW", "sent") and ("echo", "CA", "cancelled") in states(hub)
    assert not [one for one in states(hub) if one[0] == "other"]
    change(hub, **BACK)
    assert ("cardio", "CA", "queued") in states(hub)
    assert ("other", "CA", "queued") in states(hub), "the order stood, and its end goes where a road leads"


def test_an_order_and_its_end_that_both_wait_in_a_shut_lane_are_given_up_for_a_new_order(hub: Hub) -> None:
    ask(hub)
    change(hub, **of("cardio"))
    elsewhere(hub)
    change(hub, **of(*BOTH))
    assert [one for one in states(hub) if one[0] != "cardio"] == [
        ("echo", "NW", "cancelled"), ("echo", "CA", "cancelled"), ("other", "NW", "queued"),
    ]  # fmt: skip
    first = orders(hub)[0]
    with pytest.raises(RuleBroken, match="follows it"):
        act(hub, "replay", first)


def test_an_end_that_leaves_while_its_group_is_asked_again_is_followed_by_a_new_order(hub: Hub) -> None:
    ask(hub)
    sent(hub)
    change(hub, **of("cardio"))
    elsewhere(hub)

    change(hubs.meddled(hub, lambda _: sent(hub)), **of(*BOTH))
    assert [one for one in states(hub) if one[0] != "cardio"] == [
        ("echo", "NW", "sent"), ("echo", "CA", "sent"), ("other", "NW", "queued"),
    ]  # fmt: skip


# --- the record stays short -------------------------------------------------------------------------------------------


def lines(hub: Hub) -> int:
    (record,) = records(hub)
    return len(record["extension"][0]["extension"])


@pytest.mark.parametrize("cleaned", [False, True], ids=["the outbox has them", "the outbox has forgotten them"])
def test_a_record_does_not_grow_with_what_arrived(hub: Hub, cleaned: bool) -> None:
    ask(hub)
    for _ in range(6):
        for name in ("cardio", "echo"):
            (forgotten if cleaned else sent)(hub)
            change(hub, **of(name))
    assert lines(hub) <= 6, "of each of the two: two that arrived and what is new"
    (forgotten if cleaned else sent)(hub)
    before = len(told(hub))
    change(hub, **BACK)
    assert told(hub)[before:] == [(ECHO, "CA")], "it is known as ever who holds an order"


def test_a_record_keeps_what_may_still_be_given_up(hub: Hub) -> None:
    """Nothing has left: the last word may be taken back by hand, and the one before it counts then."""
    ask(hub)
    for name in ("cardio", "echo", "cardio"):
        change(hub, **of(name))
    assert lines(hub) == len(orders(hub)) == 7
    end = orders(hub)[told(hub).index((ECHO, "CA"), 3)]
    act(hub, "cancel", end)
    change(hub, **BACK)
    assert [lane for lane, control in told(hub)[7:] if control == "CA"].count(ECHO) == 1


def test_what_is_under_way_does_not_stand_for_what_was_said_before_it(hub: Hub) -> None:
    """The end is refused after the next order was decided on, and both are given up by hand: the first order stands."""
    ask(hub)
    sent(hub)
    change(hub, **of("cardio"))
    claims = [hub.store.take("w", 60.0, lambda *_: None) for _ in BOTH]
    change(hub, **of(*BOTH))
    for claim in claims:
        assert claim is not None
        hub.store.finish(claim, Outcome("error" if claim.lane == ECHO else "sent", "refused", "AE"))
    first, *later = [one for one in orders(hub) if one.lane == ECHO]
    for one in later:
        act(hub, "cancel", one)
    assert (first.state, len(later)) == ("sent", 2)
    change(hub, **BACK)
    assert ("echo", "CA", "queued") in states(hub)


def test_a_record_forgets_what_was_given_up_with_the_outbox(hub: Hub) -> None:
    for _ in range(3):
        ask(hub) if not hubs.stored(hub, "ServiceRequest/r") else change(hub, **of("echo"))
        act(hub, "cancel", orders(hub)[-1])
        change(hub, **of("cardio"))
        forgotten(hub)
    change(hub, **of(*BOTH))
    assert lines(hub) <= 5


def test_what_an_addressee_was_told_is_kept_as_long_as_anything_it_overrides() -> None:
    """Two Endpoints became one application and parted again: the middle line alone links the outer ones."""
    first = Ordered("NW", "Endpoint/a", "hl7:A|X", "d1")
    end = Ordered("CA", "Endpoint/b", "hl7:A|X", "d2")
    later = [Ordered(control, "Endpoint/b", "mllp://b:1", f"d{n}") for n, control in enumerate(("NW", "CA", "NW"), 3)]
    said = (first, end, *later)
    kept: dict[str, Any] = {}
    shelf: Any = SimpleNamespace(get=lambda _: kept)
    ctx = Context(SYSTEM, shelf, hubs.Settings(), load_sites(SITES), hubs.Ticking()())
    kept |= order_record.record("ServiceRequest/r", said, (), ctx)
    held = order_record.orders_of("ServiceRequest/r", ctx)
    assert held.holders == order_record.Orders(said).holders and first not in held.holders


# --- damaged bytes ----------------------------------------------------------------------------------------------------


def test_a_damaged_order_of_an_earlier_release_is_taken_as_one_that_stands(hub: Hub, sqlite_url: str) -> None:
    ask(hub)
    unrecorded(hub)
    (order,) = orders(hub)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as db:
        assert db.execute("UPDATE delivery SET payload = CAST(payload || x'0d' AS BLOB)").rowcount == 1
    change(hub, **BACK)
    (end,) = [one for one in orders(hub) if one.id != order.id]
    assert (end.lane, parse(payload(hub, end)).text("ORC-1")) == (ECHO, "CA")


def test_damaged_bytes_for_who_takes_no_orders_are_none(hub: Hub, sqlite_url: str) -> None:
    ask(hub)
    unrecorded(hub)
    put(hub, SYSTEM, ends_at("echo", "ECHO") | {"payloadType": read(hub, "Endpoint/dpi")["payloadType"]})
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as db:
        db.execute("UPDATE delivery SET payload = CAST(payload || x'0d' AS BLOB)")
    change(hub, **BACK)
    assert orders(hub) == [] and notes(hub) == []
