"""What was answered CA is taken in or left to a person, whatever is lost, fails or comes once more meanwhile."""

from __future__ import annotations

import copy
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hubs import at_once, found, results
from sylve import stays, sylve
from test_intake_committed import ADMIN, PEER, PORT, asking, breaking, rows, said, stored, work

from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, now
from fhir_server.delivery import arrivals, committed, intake
from fhir_server.delivery.ports import Port
from fhir_server.errors import Unavailable
from fhir_server.store.engine import Store
from hl7v2 import ack

OTHER = dataclasses.replace(PORT, port=2702, name="autre")
LARGE = b"ZZZ|" + b"x" * 70_000 + b"\r"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    tables = tuple({"port": one.port, "name": one.name, "mode": one.mode} for one in (PORT, OTHER))
    return sylve(open_url(sqlite_url), hl7_ports=tables)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed, "GRACE_SECONDS", -1.0)
    monkeypatch.setattr(committed, "PATIENCE_SECONDS", 0.0)


def states(hub: Hub) -> list[str]:
    return [row.state for row in rows(hub)]


def replaced(hub: Hub, store: Any) -> Hub:
    return dataclasses.replace(hub, store=store)


def later(hub: Hub, hours: float) -> Hub:
    """The same database, so much later."""
    store = copy.copy(hub.store)
    store._clock = lambda: now() + timedelta(hours=hours)
    return replaced(hub, store)


class Unreadable:
    """A store that writes, and whose reads fail as long as it is away."""

    def __init__(self, store: Store) -> None:
        self._store, self.away = store, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, caller: Any) -> Any:
        if self.away:
            raise Unavailable("the database is away")
        return self._store.read(caller)


def failing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    def broken(*_: Any, **__: Any) -> bytes:
        raise ValueError("a defect")

    monkeypatch.setattr(intake, "take", broken)
    return monkeypatch


def crowd(hub: Hub, monkeypatch: pytest.MonkeyPatch, seen: int) -> None:
    """Two messages were left behind at the port; `seen` is how many of those that wait are looked at."""
    monkeypatch.setattr(committed, "_LOOKED_AT", seen)
    stored(hub, asking("adt-a02-mutation"))
    stored(hub, asking("adt-a03-sortie"))


def emptied(hub: Hub) -> None:
    """Every large content is gone from the disk."""
    gone = [path for path in Path(hub.store.blobs.at.told).rglob("*") if path.is_file()]
    assert gone
    for path in gone:
        path.unlink()


# --- reads that fail --------------------------------------------------------------------------------------------------


def test_no_ar_follows_a_ca_when_the_store_cannot_be_read(hub: Hub) -> None:
    store = Unreadable(hub.store)
    answer, keep = intake.wired(replaced(hub, store), PORT)
    raw = asking("adt-a01-admission")
    assert keep is not None and keep(raw, PEER) == b""
    store.away = True
    assert answer(raw, PEER) == b"" and states(hub) == ["received"]
    store.away = False
    work(hub)
    assert states(hub) == ["done"] and said(hub, raw) == "AA"


# --- what failed for a defect of ours ---------------------------------------------------------------------------------


def test_a_message_that_failed_for_a_defect_is_promised_again_by_the_next_ca(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = asking("adt-a01-admission")
    with monkeypatch.context() as patched:
        failing(patched)
        assert said(hub, raw) == "AR" and states(hub) == ["error"]
    stored(hub, raw)
    assert states(hub) == ["received"], "a CA says that it is taken in"
    stored(hub, asking("adt-a02-mutation"))
    assert said(hub, raw) == "AA", "what came later does not keep it waiting"
    work(hub)
    assert states(hub) == ["done", "done"]


@pytest.mark.parametrize("port", [Port(2703, "dépôt", answer="stored"), Port(2703, "dépôt", answer="validated")])
def test_aa_for_what_is_only_stored_is_kept_as_well(hub: Hub, monkeypatch: pytest.MonkeyPatch, port: Port) -> None:
    raw = asking("adt-a01-admission", "", "")
    with monkeypatch.context() as patched:
        failing(patched)
        assert ack.read(intake.on_message(hub, raw, PEER, port)).code == "AA"
        assert intake.take_waiting(hub, (port,)) and states(hub) == ["error"]
    assert ack.read(intake.on_message(hub, raw, PEER, port)).code == "AA" and states(hub) == ["received"]
    assert intake.take_waiting(hub, (port,)) and states(hub) == ["done"]


@pytest.mark.parametrize("seen", [50, 2], ids=["few wait", "more wait than are looked at"])
def test_a_message_that_the_worker_settled_meanwhile_waits_for_nothing_that_came_later(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    raw = asking("adt-a01-admission")
    answer, keep = intake.wired(hub, PORT)
    assert keep is not None and keep(raw, PEER) == b""
    work(hub)
    crowd(hub, monkeypatch, seen)
    assert ack.read(answer(raw, PEER)).code == "AA"


@pytest.mark.parametrize("seen", [50, 2], ids=["few wait", "more wait than are looked at"])
def test_other_content_under_a_taken_number_is_refused_at_once_whoever_waits(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    raw = asking("adt-a01-admission")
    assert said(hub, raw) == "AA"
    crowd(hub, monkeypatch, seen)
    rival = raw.replace(b"MATERNITE", b"CHIRURGIE")
    assert said(hub, rival) == "AE"
    assert states(hub) == ["done", "received", "received", "conflict"] and rows(hub)[3].ack is not None


@pytest.mark.parametrize("seen", [50, 2], ids=["few wait", "more wait than are looked at"])
def test_what_first_came_by_another_port_waits_for_nothing_of_this_one(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    raw = asking("adt-a01-admission")
    stored(hub, raw, OTHER)
    crowd(hub, monkeypatch, seen)
    assert said(hub, raw) == "AA"


def test_of_a_crowd_the_last_still_overtakes_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(hub, monkeypatch, 2)
    assert said(hub, asking("adt-a01-admission")) == "" and states(hub) == ["received"] * 3


def test_other_content_that_cannot_be_refused_now_gets_no_ar_after_its_ca(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = asking("adt-a01-admission")
    assert said(hub, raw) == "AA"
    crowded, disk = breaking(hub)
    rival = raw.replace(b"MATERNITE", b"CHIRURGIE")

    def full(*_: Any, **__: Any) -> None:
        raise Unavailable("the disk is full")

    monkeypatch.setattr(disk, "reject", full, raising=False)
    assert said(crowded, rival) == "" and rows(hub)[1].ack is None
    assert said(hub, rival) == "AE" and states(hub) == ["done", "conflict"]


# --- what is lost -----------------------------------------------------------------------------------------------------


def test_a_message_whose_content_is_lost_holds_nobody_and_its_repeat_brings_it_back(hub: Hub) -> None:
    lost = asking("adt-a01-admission") + LARGE
    stored(hub, lost)
    stored(hub, asking("adt-a02-mutation"))
    emptied(hub)
    work(hub)
    assert states(hub) == ["error", "done"] and "is not in" in rows(hub)[0].error
    assert said(hub, lost) == "AA" and states(hub) == ["done", "done"]


def test_a_port_that_fails_does_not_keep_the_others_from_going_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(hub, asking("adt-a01-admission"))
    stored(hub, asking("adt-a02-mutation"), OTHER)
    whole = intake._next

    def broken(hub: Hub, port: Port, *more: Any) -> None:
        if port == PORT:
            raise Unavailable("the disk is full")
        whole(hub, port, *more)

    monkeypatch.setattr(intake, "_next", broken)
    with pytest.raises(Unavailable):
        intake.take_waiting(hub, (PORT, OTHER))
    assert states(hub) == ["received", "done"]


# --- what is old ------------------------------------------------------------------------------------------------------


def test_what_had_waited_for_a_day_when_the_server_started_is_left_to_a_person(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    stored(hub, asking("adt-a01-admission"))
    with caplog.at_level(logging.WARNING):
        work(later(hub, 25))
    (row,) = rows(hub)
    assert row.state == "error" and "a person decides" in row.error and found(hub, "Encounter") == []
    assert row.id in caplog.text and row.control_id in caplog.text
    told = operate(hub, ADMIN, "inbox-replay", {"id": row.id})
    assert told["state"] == "done" and len(stays(hub)) == 1


@pytest.mark.parametrize("application", ["AL", "NE"])
def test_what_is_left_to_a_person_is_taken_in_when_its_sender_sends_it_again(hub: Hub, application: str) -> None:
    raw = asking("adt-a01-admission", "AL", application)
    stored(hub, raw)
    work(later(hub, 25))
    assert states(hub) == ["error"] and rows(hub)[0].ack is None
    assert said(hub, raw) == "AA" and states(hub) == ["done"] and len(stays(hub)) == 1


def test_a_person_can_say_that_it_will_never_be_taken_in(hub: Hub) -> None:
    raw = asking("adt-a01-admission")
    stored(hub, raw)
    work(later(hub, 25))
    assert operate(hub, ADMIN, "inbox-refuse", {"id": rows(hub)[0].id, "reason": "dépassé"})["state"] == "refused"
    assert said(hub, raw) == "AE" and states(hub) == ["refused"] and found(hub, "Encounter") == []
    told = ack.read(rows(hub)[0].ack or b"")
    assert told.errors[0].code == "207" and "dépassé" in told.errors[0].text
    assert told.control_id == rows(hub)[0].control_id


def test_a_refusal_keeps_the_answer_that_was_given(hub: Hub) -> None:
    assert said(hub, asking("adt-a11-annulation")) == "AE"
    (before,) = rows(hub)
    operate(hub, ADMIN, "inbox-refuse", {"id": before.id})
    (after,) = rows(hub)
    assert after.state == "refused" and after.ack == before.ack


def test_what_a_person_puts_back_is_not_old_any_more(hub: Hub) -> None:
    stored(hub, asking("adt-a01-admission"))
    work(later(hub, 25))
    later(hub, 50).store.write(SYSTEM, lambda tx: tx.reopen(rows(hub)[0].id))
    work(later(hub, 51))
    assert states(hub) == ["done"], "whoever put it back died before it was taken in"


def test_what_waited_while_the_server_ran_is_taken_in_however_long_that_was(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(hub, asking("adt-a01-admission"))
    monkeypatch.setattr(committed, "_started", time.monotonic() - 2 * 3600)
    work(later(hub, 25))
    assert states(hub) == ["done"]


def test_what_waited_for_less_than_a_day_or_was_sent_again_since_is_taken_in(hub: Hub) -> None:
    raw = asking("adt-a01-admission")
    stored(hub, raw)
    stored(later(hub, 24), raw)
    stored(later(hub, 24), asking("adt-a02-mutation"))
    work(later(hub, 25))
    assert states(hub) == ["done", "done"]


# --- what is promised nothing -----------------------------------------------------------------------------------------


def test_the_worker_and_promised_messages_leave_one_alone_that_was_promised_nothing_and_is_under_way(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, promised = asking("adt-a01-admission", "", ""), asking("adt-a02-mutation")
    inside, on, whole = threading.Event(), threading.Event(), arrivals.take

    def slow(arrival: Any, raw: bytes, decide: Any) -> bytes:
        if raw == plain:
            inside.set()
            assert on.wait(60)
        return whole(arrival, raw, decide)

    monkeypatch.setattr(intake, "take", slow)

    def first() -> str:
        return ack.read(intake.on_message(hub, plain, PEER, PORT)).code

    def second() -> str:
        try:
            assert inside.wait(60)
            assert intake.take_waiting(hub, (PORT,)) is False, "its own thread is at it"
            return said(hub, promised)
        finally:
            on.set()

    assert results(at_once(first, second)) == ["AA", "AA"]
