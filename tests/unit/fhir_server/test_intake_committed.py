"""A port in enhanced mode that answered CA takes the message in, in its order, whatever becomes of the connection."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hubs import at_once, results
from sylve import row, sample, stays, sylve

from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, Caller
from fhir_server.delivery import committed, intake
from fhir_server.delivery.ports import Port
from fhir_server.errors import Unavailable
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow
from hl7v2 import ack

PEER = "192.0.2.7:5001"
PORT = Port(2701, "deux-temps", mode="enhanced")
ADMIN = Caller("", "Exploitant", frozenset({"admin"}))


@pytest.fixture
def hub(store: Store) -> Hub:
    table = {"port": PORT.port, "name": PORT.name, "mode": PORT.mode}
    return sylve(store, hl7_ports=(table,))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No age makes a message another process's here, and nobody waits long."""
    monkeypatch.setattr(committed, "GRACE_SECONDS", -1.0)
    monkeypatch.setattr(committed, "PATIENCE_SECONDS", 0.0)


def asking(name: str, accept: str = "AL", application: str = "AL") -> bytes:
    fields = sample(name).split(b"|")
    fields[14:16] = [accept.encode(), application.encode()]
    return b"|".join(fields)


def stored(hub: Hub, raw: bytes, port: Port = PORT) -> None:
    """The first half of the conversation: the sender hears CA."""
    store = intake.wired(hub, port)[1]
    assert store is not None and store(raw, PEER) == b""


def said(hub: Hub, raw: bytes, port: Port = PORT) -> str:
    """The whole of it: the code of the application's answer, '' when there is none."""
    answer, store = intake.wired(hub, port)
    assert store is not None and store(raw, PEER) == b""
    told = answer(raw, PEER)
    return ack.read(told).code if told else ""


def rows(hub: Hub) -> list[InboxRow]:
    """Oldest first."""
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.messages(InboxFilter(limit=500))[::-1]


def work(hub: Hub) -> None:
    while intake.take_waiting(hub, (PORT,)):
        pass


class Broken:
    """A store that journals and reads, and whose transactions fail for want of space as long as it is full."""

    def __init__(self, store: Store) -> None:
        self._store, self.full, self.journals = store, True, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def receive(self, message: Any) -> Any:
        if not self.journals:
            raise Unavailable("the disk is full")
        return self._store.receive(message)

    def write(self, caller: Any, todo: Callable[[Any], Any]) -> Any:
        if self.full:
            raise Unavailable("the disk is full")
        return self._store.write(caller, todo)


def breaking(hub: Hub) -> tuple[Hub, Broken]:
    store = Broken(hub.store)
    replaced: Any = store
    return dataclasses.replace(hub, store=replaced), store


@pytest.mark.parametrize("application", ["AL", "NE", ""])
def test_a_message_whose_process_died_after_ca_is_taken_in_by_the_worker(hub: Hub, application: str) -> None:
    stored(hub, asking("adt-a01-admission", "AL", application))
    assert [one.state for one in rows(hub)] == ["received"]
    assert intake.take_waiting(hub, (PORT,))
    (told,) = rows(hub)
    assert told.state == "done" and told.ack is not None and ack.read(told.ack).code == "AA"
    assert len(stays(hub)) == 1


def test_the_repeat_of_it_gets_the_answer_that_was_made_meanwhile(hub: Hub) -> None:
    raw = asking("adt-a01-admission")
    stored(hub, raw)
    work(hub)
    assert said(hub, raw) == "AA" and rows(hub)[0].repeats == 1


@pytest.mark.parametrize("application", ["AL", "NE"])
def test_what_a_full_store_could_not_take_in_after_ca_waits_and_is_no_error(hub: Hub, application: str) -> None:
    crowded, disk = breaking(hub)
    assert said(crowded, asking("adt-a01-admission", "AL", application)) == "", "neither AA, nor an AR that asks again"
    assert [(one.state, one.error) for one in rows(hub)] == [("received", "")]
    with pytest.raises(Unavailable, match="full"):
        intake.take_waiting(crowded, (PORT,))
    disk.full = False
    work(crowded)
    assert [one.state for one in rows(hub)] == ["done"]


def test_what_comes_later_does_not_overtake_what_was_left_behind(hub: Hub) -> None:
    crowded, disk = breaking(hub)
    names = ("adt-a01-admission", "adt-a02-mutation", "adt-a03-sortie", "adt-a13-sortie-annulee")
    assert said(crowded, asking(names[0])) == ""
    disk.full = False
    assert [said(crowded, asking(name)) for name in names[1:]] == ["", "", ""], "they stand in line"
    work(crowded)
    settled = rows(hub)
    assert [one.state for one in settled] == ["done"] * 4
    assert [one.id for one in sorted(settled, key=lambda one: one.settled_at)] == [one.id for one in settled]
    assert stays(hub)[0]["status"] == "in-progress"
    assert said(hub, asking("adt-a54-medecin-change")) == "AA", "nothing is left behind: at once again"


def test_who_stands_in_line_gets_the_answer_when_the_worker_is_quick(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed, "PATIENCE_SECONDS", 30.0)
    stored(hub, asking("adt-a01-admission"))
    waiting = threading.Event()

    def later() -> None:
        assert waiting.wait(10)
        work(hub)

    def second() -> str:
        waiting.set()
        return said(hub, asking("adt-a02-mutation"))

    assert results(at_once(later, second))[1] == "AA"
    assert [one.state for one in rows(hub)] == ["done", "done"]


def test_the_answer_follows_when_the_store_recovers_in_time(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed, "PATIENCE_SECONDS", 30.0)
    crowded, disk = breaking(hub)
    over = threading.Event()

    def worker() -> None:
        pause = threading.Event()
        while not over.is_set():
            if [one.state for one in rows(hub)] == ["received"]:
                disk.full = False
            intake.take_waiting(crowded, (PORT,))
            pause.wait(0.01)

    def sender() -> str:
        try:
            return said(crowded, asking("adt-a01-admission"))
        finally:
            over.set()

    assert results(at_once(worker, sender))[1] == "AA"
    assert [one.state for one in rows(hub)] == ["done"]


def test_who_was_told_no_ca_and_hears_ar_sends_again_himself(hub: Hub) -> None:
    crowded, _ = breaking(hub)
    assert said(crowded, asking("adt-a01-admission", "NE", "AL")) == "AR"


@pytest.mark.parametrize(("accept", "application"), [("NE", "NE"), ("ER", "SU"), ("NE", "SU")])
def test_who_asks_to_hear_of_no_failure_is_not_left_alone_with_one(hub: Hub, accept: str, application: str) -> None:
    crowded, disk = breaking(hub)
    assert said(crowded, asking("adt-a01-admission", accept, application)) == ""
    disk.full = False
    work(crowded)
    assert [one.state for one in rows(hub)] == ["done"]


def test_the_worker_leaves_a_message_to_its_own_thread_for_a_while(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed, "GRACE_SECONDS", 3600.0)
    stored(hub, asking("adt-a01-admission"))
    assert intake.take_waiting(hub, (PORT,)) is False
    assert [one.state for one in rows(hub)] == ["received"]


def test_the_worker_refuses_for_good_what_no_repeat_cures_and_goes_on(hub: Hub) -> None:
    stored(hub, asking("adt-a11-annulation"))
    stored(hub, asking("adt-a01-admission"))
    work(hub)
    first, second = rows(hub)
    assert (first.state, second.state) == ("error", "done")
    assert first.ack is not None and ack.read(first.ack).errors[0].code == "204"


def test_an_integrated_port_in_original_mode_leaves_the_repeat_to_its_sender(hub: Hub) -> None:
    port = dataclasses.replace(PORT, mode="original")
    raw = asking("adt-a01-admission")
    assert not committed.promised(port, raw) and not port.answers_early
    crowded, _ = breaking(hub)
    assert ack.read(intake.on_message(crowded, raw, PEER, port)).code == "AR"
    assert intake.take_waiting(hub, (port,)) is False


def test_a_replay_by_hand_answers_at_once_also_when_something_waits(hub: Hub) -> None:
    stored(hub, asking("adt-a11-annulation"))
    work(hub)
    assert said(hub, asking("adt-a01-admission")) == "AA"
    stored(hub, asking("adt-a02-mutation"))
    told = operate(hub, ADMIN, "inbox-replay", {"id": rows(hub)[0].id})
    assert told["state"] == "done" and "MSA|AA" in told["ack"]


def test_two_threads_with_the_same_message_take_it_in_once(hub: Hub) -> None:
    raw = asking("adt-a01-admission")
    told = results(at_once(*[lambda: said(hub, raw)] * 4))
    assert "AA" in told and set(told) <= {"AA", ""}
    work(hub)
    assert [one.state for one in rows(hub)] == ["done"] and len(stays(hub)) == 1


def test_a_store_that_cannot_even_journal_says_cr_and_promises_nothing(hub: Hub) -> None:
    crowded, disk = breaking(hub)
    disk.journals = False
    store = intake.wired(crowded, PORT)[1]
    assert store is not None and ack.read(store(asking("adt-a01-admission"), PEER)).code == "CR"
    assert rows(hub) == []


# --- MSH-9 of early versions --------------------------------------------------------------------------------------


def test_the_event_of_version_2_1_stands_in_evn_1(hub: Hub) -> None:
    old = (("ADT^A01^ADT_A01", "ADT"), ("EVN||", "EVN|A01|"), ("2.5^FRA^2.11", "2.1"), ("2.11^IHE_FRANCE-2.11-PAM", ""))
    told = ack.read(intake.on_message(hub, sample("adt-a01-admission", *old), PEER))
    assert told.code == "AA"
    assert row(hub, told.control_id).message_type == "ADT^A01" and stays(hub)[0]["status"] == "in-progress"


def test_without_an_event_anywhere_it_is_not_known(hub: Hub) -> None:
    old = (("ADT^A01^ADT_A01", "ADT"), ("2.5^FRA^2.11", "2.1"), ("2.11^IHE_FRANCE-2.11-PAM", ""))
    told = ack.read(intake.on_message(hub, sample("adt-a01-admission", *old), PEER))
    assert (told.code, told.errors[0].code) == ("AE", "201")
    assert told.errors[0].location.startswith("MSH^1^9^"), "ERR-1 of a version without ERR-2"
