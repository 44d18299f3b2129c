"""What was answered before it was taken in: one process at a time, in the order of arrival, and as its port says."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from hubs import at_once, directory, hub_on, results

from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, Caller, now
from fhir_server.delivery import intake, turns
from fhir_server.delivery.ports import Port, load_ports
from fhir_server.delivery.turns import TurnLost
from fhir_server.demo import story
from fhir_server.desk import inbox
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow
from hl7v2 import ack

PEER = "192.0.2.1:5000"
TABLES = (
    {"port": 2601, "name": "later", "answer": "stored"},
    {"port": 2602, "name": "strict", "answer": "stored", "a08": "refuse"},
)
ADMIN = Caller("", "Exploitant", frozenset({"admin"}))


@pytest.fixture
def hub(store: Store) -> Hub:
    return directory(hub_on(store, hl7_ports=TABLES, lease_seconds=5.0))


def ports(hub: Hub) -> tuple[Port, ...]:
    return load_ports(hub.settings, hub.sites)


def say(hub: Hub, control_id: str, place: int = 1, *changes: tuple[str, str]) -> str:
    raw = story.admission(control_id)
    for old, new in changes:
        assert old.encode() in raw
        raw = raw.replace(old.encode(), new.encode())
    return ack.read(intake.on_message(hub, raw, PEER, ports(hub)[place])).code


def rows(hub: Hub, **wanted: Any) -> list[InboxRow]:
    """Oldest first."""
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.messages(InboxFilter(**wanted, limit=500))[::-1]


def test_several_workers_keep_the_order_of_arrival(hub: Hub) -> None:
    for number in range(24):
        assert say(hub, f"M{number}") == "AA"
    assert {row.state for row in rows(hub)} == {"received"}

    def work() -> int:
        done, pause = 0, threading.Event()
        while rows(hub, state="received"):
            done += intake.take_waiting(hub, ports(hub))
            pause.wait(0.005)
        return done

    assert sum(results(at_once(work, work, work, work))) >= 1
    settled = rows(hub)
    assert [row.state for row in settled] == ["done"] * 24
    assert [row.control_id for row in sorted(settled, key=lambda row: row.settled_at)] == [f"M{n}" for n in range(24)]


def test_a_turn_takes_a_few_messages_and_the_next_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "AT_A_TIME", 2)
    for number in range(5):
        say(hub, f"M{number}")
    left = []
    while intake.take_waiting(hub, ports(hub)):
        left.append(len(rows(hub, state="received")))
    assert left == [3, 1, 0]


def test_while_one_process_has_the_turn_no_other_takes_anything_in(hub: Hub) -> None:
    say(hub, "M1")
    turn = turns.taken(hub, ports(hub)[1].endpoint)
    assert turn is not None and turns.taken(hub, turn.name) is None
    assert intake.take_waiting(hub, ports(hub)) is False and rows(hub)[0].state == "received"
    assert turn.kept()
    turn.give_back()
    assert intake.take_waiting(hub, ports(hub)) is True and rows(hub)[0].state == "done"


@pytest.mark.parametrize("code", ["ADT^A01", "ADT^A99"])
def test_a_process_that_was_overtaken_settles_nothing_when_it_wakes(hub: Hub, code: str) -> None:
    say(hub, "M1", 1, ("ADT^A01", code))
    port, (row,) = ports(hub)[1], rows(hub)
    frozen = turns.taken(hub, port.endpoint)
    assert frozen is not None
    later = hub_on_clock(hub, seconds=60)
    second = turns.taken(later, port.endpoint)
    assert second is not None and second.token > frozen.token
    with hub.store.read(SYSTEM) as snapshot:
        raw = snapshot.message_raw(row.id)
    with pytest.raises(TurnLost):
        intake._settled(hub, raw, PEER, port, intake._head(hub, raw, port), row.id, frozen)
    assert rows(hub)[0].state == "received"
    assert not frozen.kept()
    frozen.give_back()
    assert second.kept(), "what is not ours is not given back"


def hub_on_clock(hub: Hub, seconds: float) -> Hub:
    """The same database, seen by a process so much later."""
    import copy
    import dataclasses

    store = copy.copy(hub.store)
    store._clock = lambda: now() + timedelta(seconds=seconds)
    return dataclasses.replace(hub, store=store)


def test_a_message_is_replayed_as_the_port_it_came_by_says(hub: Hub) -> None:
    update = ("ADT^A01^ADT_A01", "ADT^A08^ADT_A01")
    assert say(hub, "M1", 2, update) == "AA"
    assert intake.take_waiting(hub, ports(hub))
    (row,) = rows(hub)
    assert (row.state, row.endpoint) == ("error", "mllp:strict")
    told = operate(hub, ADMIN, "inbox-replay", {"id": row.id})
    assert told["state"] == "error" and "MSA|AE" in told["ack"] and "201" in told["ack"]
    assert say(hub, "M2", 0, update) == "AA", "the French port takes it for an A31"
    refused = rows(hub, state="error")[0]
    with hub.store.read(SYSTEM) as snapshot:
        raw = snapshot.message_raw(refused.id)
    inbox.inbox_replay(hub.store, {"id": refused.id}, lambda row, _: intake.on_message(hub, raw, row.peer))
    assert rows(hub)[0].state == "done", "by another port the same bytes would have been taken in"
