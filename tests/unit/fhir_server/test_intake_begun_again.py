"""ITI-31: an admission that comes late, or once more, reopens no stay; a new one begins it again."""

from __future__ import annotations

from typing import Any

import pytest
from sylve import sample, say, stays, sylve, tell

from fhir_server.app import operate
from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.delivery import intake
from fhir_server.delivery.intake_stays import MOVEMENT, part_of
from fhir_server.store.engine import Store

ADMIN = Caller("", "Exploitant", frozenset({"admin"}))
BASE = (("2.5^FRA^2.11", "2.5"), ("2.11^IHE_FRANCE-2.11-PAM", ""))
NUMBER = ("ZBE|M1^", "ZBE|M9^")
KEPT = "it stays as it is"


@pytest.fixture
def hub(store: Store) -> Hub:
    return sylve(store)


def state(hub: Hub) -> dict[str, Any]:
    (stay,) = stays(hub)
    return {name: part for name, part in stay.items() if name not in ("meta", "extension")}


def movements(hub: Hub) -> list[tuple[str, str]]:
    told = [one for one in stays(hub)[0].get("extension", ()) if one["url"] == MOVEMENT]
    return [(part_of(one, "id").partition("^")[0], part_of(one, "state")) for one in told]


def without_zbe(name: str, *changes: tuple[str, str]) -> bytes:
    """As base HL7 sends it."""
    lines = sample(name, *BASE, *changes).decode().split("\r")
    return "\r".join(line for line in lines if not line.startswith("ZBE")).encode()


def test_an_admission_that_comes_after_the_discharge_reopens_nothing(hub: Hub) -> None:
    tell(hub, "adt-a03-sortie")
    before = state(hub)
    assert KEPT in tell(hub, "adt-a01-admission").note
    assert state(hub) == before and before["status"] == "finished"
    assert movements(hub) == [("M3", "active"), ("M1", "active")], "it is written down"


def test_an_admission_that_comes_late_says_when_the_stay_began_if_nobody_has(hub: Hub) -> None:
    tell(hub, "adt-a03-sortie", ("|20260302081500|20260306104500", "||20260306104500"))
    (before,) = stays(hub)
    assert set(before["period"]) == {"end"}
    assert KEPT in tell(hub, "adt-a01-admission").note
    (after,) = stays(hub)
    assert after["status"] == "finished" and after["period"]["end"] == before["period"]["end"]
    assert after["period"]["start"].startswith("2026-03-02T08:15:00")


@pytest.mark.parametrize("begin", ["adt-a01-admission", "adt-a04-consultation"])
def test_the_same_admission_once_more_reopens_nothing(hub: Hub, begin: str) -> None:
    visit = ("V2026-0418", "V2026-0417") if "a04" in begin else ("V2026-0417", "V2026-0417")
    tell(hub, begin, visit)
    tell(hub, "adt-a03-sortie")
    before = state(hub)
    assert KEPT in tell(hub, begin, visit).note
    assert state(hub) == before and len(movements(hub)) == 2


def test_the_replay_of_an_admission_that_failed_reopens_no_finished_stay(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> bytes:
        raise ValueError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(intake, "take", broken)
        failed = sample("adt-a01-admission")
        assert say(hub, failed).code == "AR"
    tell(hub, "adt-a03-sortie")
    with hub.store.read(ADMIN) as snapshot:
        (row,) = [one for one in snapshot.messages() if one.state == "error"]
    assert operate(hub, ADMIN, "inbox-replay", {"id": row.id})["state"] == "done"
    assert state(hub)["status"] == "finished" and "end" in state(hub)["period"]


@pytest.mark.parametrize(
    ("start", "after"),
    [
        ("20260306104500", "finished"),
        ("20260306104501", "in-progress"),
        ("20260306", "finished"),
        ("20260307", "in-progress"),
        ("20260305", "finished"),
    ],
)
def test_an_admission_after_the_end_begins_the_stay_again(hub: Hub, start: str, after: str) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a03-sortie")
    tell(hub, "adt-a01-admission", NUMBER, ("|20260302081500||INSERT", f"|{start}||INSERT"))
    assert state(hub)["status"] == after
    assert ("end" in state(hub)["period"]) == (after == "finished")


def test_without_zbe_the_date_of_admission_tells_a_late_one_from_a_new_one(hub: Hub) -> None:
    for raw in (without_zbe("adt-a01-admission"), without_zbe("adt-a03-sortie"), without_zbe("adt-a01-admission")):
        assert say(hub, raw).code == "AA"
    assert state(hub)["status"] == "finished"
    later = ("|20260302081500\rZBE", "|20260309081500\rZBE")
    assert say(hub, without_zbe("adt-a01-admission", later)).code == "AA"
    assert state(hub)["status"] == "in-progress" and state(hub)["period"]["start"].startswith("2026-03-09")


@pytest.mark.parametrize(
    ("begin", "end", "taken_back"),
    [
        ("adt-a01-admission", "adt-a11-annulation", "M1^"),
        ("adt-a05-preadmission", "adt-a38-preadmission-annulee", "M21^"),
        ("adt-a14-admission-annoncee", "adt-a27-admission-annoncee-annulee", "M23^"),
    ],
)
def test_a_beginning_that_was_taken_back_does_not_come_back_by_a_repeat(
    hub: Hub, begin: str, end: str, taken_back: str
) -> None:
    number = sample(begin).partition(b"ZBE|")[2].partition(b"^")[0].decode()
    tell(hub, begin)
    tell(hub, end, (taken_back, f"{number}^"))
    before = state(hub)
    assert KEPT in tell(hub, begin).note
    assert state(hub) == before and before["status"] == "cancelled"
    assert movements(hub) == [(number, "cancelled")]
    tell(hub, begin, (f"ZBE|{number}^", "ZBE|M9^"))
    assert state(hub)["status"] != "cancelled", "a movement with a number of its own is a new beginning"
