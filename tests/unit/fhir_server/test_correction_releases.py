"""What a person kept back is let go, sent once more or rendered again after a correction: nobody gets two first
documents, and nothing of one report or one patient overtakes what was said before it."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from corrected import DPI, MAIL, PFI, correct, message, payload, received, record, waiting, withdraw
from hubs import SYSTEM, asked, at_once, directory, hub_on, meddled, put, read
from test_correction_attacks import TRIED, regenerate, run

from fhir_server.changes import Hub
from fhir_server.delivery.workers import before_sending
from fhir_server.desk import outbox
from fhir_server.errors import RuleBroken
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.store.leases import Claim
from fhir_server.store.session import Tx
from hl7v2.message import parse
from mappers.fhir_to_report import oid_of

HELD_AS_OVERTAKEN = "UPDATE delivery SET state = 'held', error_class = 'overtaken', error = 'old' WHERE id = ?"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


@pytest.fixture
def either(open_url: Callable[..., Store], database_url: str) -> Hub:
    """On one database, then the other."""
    return directory(hub_on(open_url(database_url)))


def kept(hub: Hub) -> Delivery:
    """The first version for the DPI, which a person keeps back."""
    asked(hub, state="completed")
    first = waiting(hub)[DPI]
    outbox.outbox_hold(hub.store, {"id": first.id, "reason": "relire"})
    return first


def shown(hub: Hub, delivery: str) -> Any:
    return outbox.outbox_show(hub.store, {"id": delivery})


def first_documents(hub: Hub) -> list[str]:
    """What may still hand the report to the DPI as a first document, or did."""
    live = [one for one in hubs.deliveries(hub) if one.lane == DPI and one.state in ("queued", "sending", "sent")]
    return [one.id for one in live if parse(payload(hub, one)).text("MSH-9.2") == "T02"]


def taken(hub: Hub) -> list[str]:
    """What leaves now, each lane taken once."""
    run(hub, "UPDATE lane SET lease_until = 0, ready_at = 0")
    out = []
    while (claim := hub.store.take("w", 30, before_sending)) is not None:
        out.append(claim.delivery.id)
    return out


# --- two first documents ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [outbox.outbox_release, outbox.outbox_retry, hubs.replayed])
def test_a_first_version_kept_back_is_let_go_no_more_after_a_correction(hub: Hub, act: Callable[..., Any]) -> None:
    first = kept(hub)
    correct(hub)
    new = waiting(hub)[DPI].id
    with pytest.raises(RuleBroken, match=new):
        act(hub.store, {"id": first.id})
    assert shown(hub, first.id)["state"] == "held" and first_documents(hub) == [new]
    outbox.outbox_cancel(hub.store, {"id": first.id})
    with pytest.raises(RuleBroken, match=new):
        hubs.replayed(hub.store, {"id": first.id})
    received(hub)
    correct(hub, "Troisième.")
    assert message(hub, DPI).text("MSH-9.2") == "T10"


def test_what_was_let_go_before_is_held_at_its_turn_whatever_was_set_aside(hub: Hub) -> None:
    first = kept(hub)
    correct(hub)
    run(hub, "UPDATE delivery SET state = 'queued', error_class = '', error = '' WHERE id = ?", first.id)
    for word in ("was replaced by version 2", "hands the report over as a first document"):
        claims: list[Claim] = []
        while (claim := hub.store.take("w", 30, before_sending)) is not None:
            claims.append(claim)
        assert first.id not in [one.delivery.id for one in claims]
        held = shown(hub, first.id)
        assert held["state"] == "held" and word in held["error"]
        # A person insists, past the operation that refuses it.
        hub.store.write(SYSTEM, lambda tx: tx.release(first.id))
        run(hub, "UPDATE lane SET lease_until = 0 WHERE name = ?", DPI)


def test_what_may_have_arrived_is_let_go_before_what_replaces_it(hub: Hub) -> None:
    asked(hub, state="completed")
    first = waiting(hub)[DPI].id
    run(hub, TRIED, first, "ambiguous")
    correct(hub)
    run(hub, HELD_AS_OVERTAKEN, first)
    assert outbox.outbox_release(hub.store, {"id": first})["state"] == "queued"


@pytest.mark.parametrize("arrives", [False, True], ids=["released", "released and sent"])
def test_a_release_while_the_correction_is_written_is_seen(either: Hub, arrives: bool) -> None:
    hub = either
    first = kept(hub)
    version = record(hub)["id"]

    def meddle(_: Store) -> None:
        outbox.outbox_release(hub.store, {"id": first.id})
        if arrives:
            received(hub, DPI)

    late = meddled(hub, meddle)
    correct(late)
    assert len(first_documents(hub)) == 1
    new = message(hub, DPI)
    assert new.text("MSH-9.2") == ("T10" if arrives else "T02")
    assert new.text("TXA-13") == (oid_of(version) if arrives else "")


def test_a_release_beside_the_correction_gives_one_first_document(either: Hub) -> None:
    hub = either
    first = kept(hub)
    release = at_once(lambda: correct(hub), lambda: outbox.outbox_release(hub.store, {"id": first.id}))[1]
    assert not isinstance(release, Exception) or isinstance(release, RuleBroken)
    while hub.store.take("w", 30, before_sending) is not None:
        pass
    leaving = [one for one in first_documents(hub) if shown(hub, one)["state"] != "held"]
    assert len(leaving) == 1


@pytest.mark.parametrize("state", ["held", "error"])
def test_what_was_not_sent_is_not_repeated_but_let_go_itself(hub: Hub, state: str) -> None:
    first = kept(hub)
    run(hub, "UPDATE delivery SET state = ? WHERE id = ?", state, first.id)
    with pytest.raises(RuleBroken, match="retry or release sends these bytes"):
        hubs.replayed(hub.store, {"id": first.id})
    outbox.outbox_retry(hub.store, {"id": first.id})
    assert first_documents(hub) == [first.id]
    assert taken(hub).count(first.id) == 1 and first_documents(hub) == [first.id]


# --- the same addressee by another road ------------------------------------------------------------------------------


def endpoint_replaced(hub: Hub) -> str:
    """The DPI is another Endpoint of the same application; its lane."""
    put(hub, SYSTEM, read(hub, DPI) | {"id": "dpi2"})
    moved = [{"reference": f"{DPI}2"}, {"reference": PFI}]
    put(hub, SYSTEM, read(hub, "Organization/ch-demo") | {"endpoint": moved})
    return f"{DPI}2"


def mailbox_moved(hub: Hub) -> str:
    """The requester is read in another mailbox; its lane."""
    old, new = "claire.moreau@", "c.moreau2@"
    for reference in ("Practitioner/moreau", "PractitionerRole/moreau"):
        put(hub, SYSTEM, json.loads(json.dumps(read(hub, reference)).replace(old, new)))
    return MAIL.replace(old, new)


ROADS = pytest.mark.parametrize(("lane", "move"), [(DPI, endpoint_replaced), (MAIL, mailbox_moved)])


def corrected_by_another_road(hub: Hub, lane: str, move: Callable[[Hub], str]) -> tuple[Delivery, str]:
    """A first version that a person keeps back, and the id of what its correction made on the addressee's new road."""
    asked(hub, state="completed")
    first = waiting(hub)[lane]
    outbox.outbox_hold(hub.store, {"id": first.id, "reason": "relire"})
    road = move(hub)
    correct(hub)
    new = waiting(hub)[road].id
    return first, new


@ROADS
def test_a_first_version_kept_back_is_let_go_no_more_after_a_correction_by_another_road(
    hub: Hub, lane: str, move: Callable[[Hub], str]
) -> None:
    first, new = corrected_by_another_road(hub, lane, move)
    for act in (outbox.outbox_release, outbox.outbox_retry):
        with pytest.raises(RuleBroken, match=f"{new} was made instead"):
            act(hub.store, {"id": first.id})
    with pytest.raises(RuleBroken, match=f"{new} of the same report follows for this addressee"):
        regenerate(hub, first.id)
    # A person insists, past the operation that refuses it.
    for word in ("was replaced by version 2", "hands the report over as a first document"):
        hub.store.write(SYSTEM, lambda tx: tx.release(first.id))
        assert first.id not in taken(hub)
        assert word in shown(hub, first.id)["error"] and new in shown(hub, first.id)["why"]


@ROADS
def test_of_two_first_versions_by_two_roads_the_one_given_up_is_sent_no_more(
    hub: Hub, lane: str, move: Callable[[Hub], str]
) -> None:
    first, new = corrected_by_another_road(hub, lane, move)
    outbox.outbox_cancel(hub.store, {"id": new})
    assert outbox.outbox_release(hub.store, {"id": first.id})["state"] == "queued"
    with pytest.raises(RuleBroken, match=f"{first.id} hands the report over as a first document already"):
        hubs.replayed(hub.store, {"id": new})
    outbox.outbox_hold(hub.store, {"id": first.id})
    again = hubs.replayed(hub.store, {"id": new})["id"]
    with pytest.raises(RuleBroken, match=f"{again} was made instead"):
        outbox.outbox_release(hub.store, {"id": first.id})


def test_another_application_behind_the_same_endpoint_is_another_addressee(hub: Hub) -> None:
    first = kept(hub)
    endpoint = read(hub, DPI)
    put(hub, SYSTEM, endpoint | {"address": endpoint["address"].replace("application=", "application=X")})
    correct(hub)
    assert message(hub, DPI).text("MSH-9.2") == "T02"
    assert outbox.outbox_release(hub.store, {"id": first.id})["state"] == "queued"


# --- withdrawn -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept_back", [False, True], ids=["queued", "held"])
def test_a_withdrawal_gives_up_what_repeats_a_delivery_that_was_given_up(hub: Hub, kept_back: bool) -> None:
    first = kept(hub)
    outbox.outbox_cancel(hub.store, {"id": first.id})
    again = hubs.replayed(hub.store, {"id": first.id})["id"]
    if kept_back:
        outbox.outbox_hold(hub.store, {"id": again})
    withdraw(hub)
    assert shown(hub, again)["state"] == "cancelled" and DPI not in waiting(hub)
    with pytest.raises(RuleBroken, match="is entered-in-error now"):
        hubs.replayed(hub.store, {"id": again})


def test_a_withdrawal_gives_up_what_was_rendered_again(hub: Hub) -> None:
    first = kept(hub)
    again = regenerate(hub, first.id)["id"]
    withdraw(hub)
    assert shown(hub, again)["state"] == "cancelled" and DPI not in waiting(hub)


def test_what_repeats_a_delivery_and_left_is_recalled(hub: Hub) -> None:
    first = kept(hub)
    outbox.outbox_cancel(hub.store, {"id": first.id})
    again = hubs.replayed(hub.store, {"id": first.id})["id"]
    received(hub, DPI)
    withdraw(hub)
    assert shown(hub, again)["state"] == "sent" and message(hub, DPI).text("MSH-9.2") == "T04"


def test_a_withdrawn_report_is_let_go_only_before_what_takes_it_back(hub: Hub) -> None:
    asked(hub, state="completed")
    first = waiting(hub)[DPI].id
    run(hub, TRIED, first, "ambiguous")
    withdraw(hub)
    (recall,) = (one.id for one in hubs.deliveries(hub) if one.lane == DPI and one.id != first)
    assert first not in taken(hub) and "is entered-in-error now" in shown(hub, first)["error"]
    outbox.outbox_release(hub.store, {"id": first})
    outbox.outbox_cancel(hub.store, {"id": recall})
    assert first not in taken(hub) and "nothing that waits behind it takes it back" in shown(hub, first)["error"]
    for act in (outbox.outbox_release, outbox.outbox_retry):
        with pytest.raises(RuleBroken, match="nothing that waits behind it takes it back"):
            act(hub.store, {"id": first})


@pytest.mark.needs("postgresql")
def test_a_replay_beside_a_withdrawal_is_refused_or_given_up(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    hub = directory(hub_on(open_url(migrated_postgres)))
    first, inside = kept(hub), threading.Event()
    for one in hubs.deliveries(hub):
        outbox.outbox_cancel(hub.store, {"id": one.id})

    def pause(tx: Tx) -> None:
        inside.set()
        somebody_waits(tx)

    def repeat() -> None:
        assert inside.wait(10)
        hubs.replayed(hub.store, {"id": first.id})

    writer = dataclasses.replace(hub, store=Watched(hub.store, pause))  # type: ignore[arg-type]  # a stand-in
    change, told = at_once(lambda: withdraw(writer), repeat)
    assert change is None and isinstance(told, RuleBroken), told
    assert "is entered-in-error now" in str(told) and waiting(hub) == {}


# --- overtaking ------------------------------------------------------------------------------------------------------


def test_a_report_is_not_sent_once_more_after_it_was_withdrawn(hub: Hub) -> None:
    asked(hub, state="completed")
    sent = [waiting(hub)[DPI].id]
    received(hub)
    correct(hub)
    sent.append(waiting(hub)[DPI].id)
    received(hub)
    for one in tuple(sent):  # a partner who lost its data gets both again, in their order
        sent.append(hubs.replayed(hub.store, {"id": one})["id"])
    received(hub)
    withdraw(hub)
    last = waiting(hub)[DPI].id
    received(hub)
    for one in sent:
        with pytest.raises(RuleBroken, match="is entered-in-error now"):
            hubs.replayed(hub.store, {"id": one})
    assert hubs.replayed(hub.store, {"id": last})["parent"] == last


def test_a_report_is_not_rendered_again_behind_another_of_the_same_patient(hub: Hub) -> None:
    first = kept(hub)
    asked(hub, "s", state="completed")
    second = waiting(hub)[DPI].id
    with pytest.raises(RuleBroken, match=f"{second} about the same patient wait behind"):
        regenerate(hub, first.id)
    outbox.outbox_hold(hub.store, {"id": second})
    made = [regenerate(hub, one)["id"] for one in (first.id, second)]
    lane = [one for one in hubs.deliveries(hub) if one.lane == DPI and one.state == "queued"]
    assert [one.id for one in sorted(lane, key=lambda one: one.lane_seq)] == made


def test_what_is_queued_while_a_report_is_rendered_again_is_seen(hub: Hub) -> None:
    first = kept(hub)
    before = len(hubs.deliveries(hub))
    other = hubs.NewDelivery(
        DPI, first.endpoint, "hl7", b"x", patient=first.patient, case=first.case_key, document=first.document
    )
    late = meddled(hub, lambda store: store.write(SYSTEM, lambda tx: tx.send(other)))
    with pytest.raises(RuleBroken, match="of the same report follows for this addressee"):
        regenerate(late, first.id)
    assert len(hubs.deliveries(hub)) == before + 1 and shown(hub, first.id)["state"] == "held"


# --- giving up beside those who hold a lane --------------------------------------------------------------------------


class Watched:
    """A store that counts how often its work runs, and may stop after the lanes are locked until somebody waits."""

    def __init__(self, store: Store, pause: Callable[[Tx], None] | None = None) -> None:
        self._store, self._pause, self.runs = store, pause, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, caller: Any, work: Callable[[Any], Any]) -> Any:
        def once(tx: Tx) -> Any:
            self.runs += 1
            return work(Pausing(tx, self._pause) if self._pause else tx)

        return self._store.write(caller, once)


class Pausing:
    """A transaction that does something right after its lanes are locked."""

    def __init__(self, tx: Tx, pause: Callable[[Tx], None]) -> None:
        self._tx, self._pause = tx, pause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)

    def lock_lanes(self, names: list[str]) -> None:
        self._tx.lock_lanes(names)
        self._pause(self._tx)


def somebody_waits(tx: Tx) -> None:
    deadline = time.monotonic() + 10
    while tx.view.db.rows("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
        assert time.monotonic() < deadline, "nobody waits for a lock"


@pytest.mark.needs("postgresql")
def test_a_correction_and_a_worker_who_holds_the_lane_never_wait_in_a_ring(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    hub = directory(hub_on(open_url(migrated_postgres)))
    asked(hub, state="completed")
    first, inside = waiting(hub)[DPI].id, threading.Event()

    def work(tx: Tx) -> None:
        tx.lock_lanes([DPI])
        inside.set()
        somebody_waits(tx)
        tx.hold(first, "relire")

    worker, writer = Watched(hub.store), Watched(hub.store)

    def change() -> None:
        assert inside.wait(10)
        correct(dataclasses.replace(hub, store=writer))  # type: ignore[arg-type]  # a stand-in

    assert at_once(lambda: worker.write(SYSTEM, work), change) == [None, None]
    assert (worker.runs, writer.runs) == (1, 1), "nobody was the victim of a deadlock"
    assert shown(hub, first)["state"] == "cancelled" and len(first_documents(hub)) == 1


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("act", [outbox.outbox_release, outbox.outbox_retry, hubs.replayed])
def test_a_correction_and_an_operator_never_wait_in_a_ring(
    open_url: Callable[..., Store], migrated_postgres: str, act: Callable[..., Any]
) -> None:
    hub = directory(hub_on(open_url(migrated_postgres)))
    asked(hub, state="completed")
    first, inside = waiting(hub)[PFI].id, threading.Event()
    run(hub, TRIED, first, "permanent")
    run(hub, "UPDATE delivery SET state = 'held', error_class = 'overtaken' WHERE id = ?", first)

    def pause(tx: Tx) -> None:
        inside.set()
        somebody_waits(tx)

    operator, writer = Watched(hub.store), Watched(hub.store, pause)

    def let_go() -> None:
        assert inside.wait(10)
        act(operator, {"id": first})

    change, told = at_once(lambda: correct(dataclasses.replace(hub, store=writer)), let_go)  # type: ignore[arg-type]  # a stand-in
    assert change is None and isinstance(told, RuleBroken), told
    assert (operator.runs, writer.runs) == (1, 1), "nobody was the victim of a deadlock"
    assert message(hub, PFI).text("MSH-9.2") == "T02"
