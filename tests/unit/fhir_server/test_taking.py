"""Who has a request: taken once, by one, and nobody is put in somebody else's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import EXPERT, OTHER_EXPERT, PARTNER, REQUESTER, asked, at_once, directory, hub_on, message, put, read

from fhir_server.changes import Applied, Hub
from fhir_server.context import Caller
from fhir_server.demo import people, seed
from fhir_server.errors import Conflict, PasserelleError, RuleBroken
from fhir_server.store.engine import Store

Resource = dict[str, Any]
COLLEAGUE = seed.caller("benali", "avis-echo")
SPLIT = hubs.Settings().extension_active_status


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def taken_by_put(current: Resource) -> Resource:
    return current | {"status": "active", "extension": [{"url": SPLIT, "valueCoding": {"code": "in_progress"}}]}


def taking(hub: Hub, who: Caller, by: str, current: Resource, task: Resource) -> Callable[[], list[Applied]]:
    wanted = taken_by_put(current) if by == "ServiceRequest" else task | {"status": "in-progress"}
    return lambda: put(hub, who, wanted)


@pytest.mark.parametrize("by", [("Task", "Task"), ("ServiceRequest", "ServiceRequest"), ("Task", "ServiceRequest")])
def test_of_two_experts_who_take_at_once_exactly_one_wins(
    open_url: Callable[..., Store], database_url: str, by: tuple[str, str]
) -> None:
    hub = directory(hub_on(open_url(database_url)))
    for round_ in range(4):
        key = f"r{round_}"
        current, task = asked(hub, key), read(hub, f"Task/{key}")
        people_ = (EXPERT, COLLEAGUE, EXPERT, COLLEAGUE)
        works = [taking(hub, who, by[n % 2], current, task) for n, who in enumerate(people_)]
        outcomes = at_once(*works)
        request = read(hub, f"ServiceRequest/{key}")
        group, winner = (performer["reference"] for performer in request["performer"])
        assert group == "HealthcareService/avis-echo"
        assert read(hub, f"Task/{key}")["owner"]["reference"] == winner
        for who, outcome in zip(people_, outcomes, strict=True):
            if who.who == winner:
                assert not isinstance(outcome, Exception), "the one who has it may say it again"
            else:
                assert isinstance(outcome, Conflict), outcome
                assert winner in outcome.diagnostics
        steps = hubs.found(hub, "Provenance", f"target=ServiceRequest/{key}")
        names = [step["activity"]["coding"][0]["code"] for step in steps]
        assert sorted(names) == ["ask", "take"]


@pytest.mark.parametrize("state", ["in_progress", "on-hold"])
@pytest.mark.parametrize("by", ["Task", "ServiceRequest"])
def test_a_second_taker_is_told_who_has_it(hub: Hub, state: str, by: str) -> None:
    current = asked(hub, state=state)
    task = read(hub, "Task/r")
    with pytest.raises(Conflict) as told:
        taking(hub, COLLEAGUE, by, current, task)()
    assert told.value.status == 409
    assert "GARNIER (PractitionerRole/garnier)" in told.value.diagnostics
    assert read(hub, "ServiceRequest/r") == current


@pytest.mark.parametrize("who", [REQUESTER, OTHER_EXPERT])
def test_who_cannot_take_at_all_hears_of_the_legal_steps(hub: Hub, who: Caller) -> None:
    asked(hub, state="in_progress")
    task = read(hub, "Task/r")
    if who is REQUESTER:
        put(hub, who, task | {"description": "une note"})
    else:
        with pytest.raises(RuleBroken, match="no role in this case"):
            put(hub, who, task)


def performers(*keys: str) -> dict[str, Any]:
    return {"performer": [{"reference": key} for key in keys]}


GROUP, OWNER, OTHER = "HealthcareService/avis-echo", "PractitionerRole/garnier", "PractitionerRole/benali"
CARDIO = "HealthcareService/avis-cardio"


@pytest.mark.parametrize("state", ["in_progress", "on-hold"])
@pytest.mark.parametrize(
    "who", [REQUESTER, EXPERT, PARTNER, COLLEAGUE], ids=["requester", "holder", "partner", "colleague"]
)
@pytest.mark.parametrize("wanted", [(GROUP, OTHER), (GROUP,), (OWNER,), (CARDIO, OWNER), (GROUP, OWNER, OTHER)])
def test_performers_stay_once_the_request_is_taken(hub: Hub, state: str, who: Caller, wanted: tuple[str, ...]) -> None:
    current = asked(hub, state=state)
    if who is EXPERT and wanted == (GROUP,):
        put(hub, who, current | performers(*wanted))  # what they sent when they took it, once more
        assert read(hub, "ServiceRequest/r") == current
        return
    with pytest.raises(PasserelleError) as told:
        put(hub, who, current | performers(*wanted))
    assert told.value.status in (409, 422)
    if who is not COLLEAGUE:  # who is told first that somebody else has it
        assert told.value.issues[0].expression == "ServiceRequest.performer"
    assert read(hub, "ServiceRequest/r") == current


@pytest.mark.parametrize("wanted", [(GROUP, OTHER), (OTHER,), (CARDIO, OWNER)])
def test_nobody_takes_a_request_for_somebody_else(hub: Hub, wanted: tuple[str, ...]) -> None:
    current = asked(hub)
    with pytest.raises(RuleBroken) as told:
        put(hub, EXPERT, taken_by_put(current) | performers(*wanted))
    assert told.value.issues[0].expression == "ServiceRequest.performer"
    assert read(hub, "ServiceRequest/r") == current


def test_refusing_a_request_does_not_move_it(hub: Hub) -> None:
    current = asked(hub)
    with pytest.raises(RuleBroken) as told:
        put(hub, EXPERT, current | {"status": "revoked"} | performers(CARDIO))
    assert told.value.issues[0].expression == "ServiceRequest.performer"


def test_before_it_is_taken_who_asks_may_ask_others_and_who_is_asked_may_not(hub: Hub) -> None:
    current = asked(hub)
    with pytest.raises(RuleBroken):
        put(hub, EXPERT, current | performers(GROUP, OTHER))
    put(hub, REQUESTER, current | performers(CARDIO))
    assert read(hub, "Task/r")["status"] == "requested"
    with pytest.raises(RuleBroken, match="no role in this case"):
        hubs.take(hub, caller=EXPERT)


def test_an_expert_who_was_asked_by_name_becomes_the_one_who_has_it(hub: Hub) -> None:
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(**performers(OWNER, GROUP, OTHER)))
    hubs.take(hub)
    assert [p["reference"] for p in read(hub, "ServiceRequest/r")["performer"]] == [GROUP, OTHER, OWNER]
    assert read(hub, "Task/r")["owner"]["reference"] == OWNER


def test_the_holder_writes_on_and_the_group_may_ask(hub: Hub) -> None:
    asked(hub, state="in_progress")
    hubs.take(hub)
    put(hub, COLLEAGUE, message("q"))
    assert read(hub, "Communication/q")["sender"]["reference"] == OTHER
    assert read(hub, "Task/r")["owner"]["reference"] == OWNER


# --- what a request cannot lose --------------------------------------------------------------------------------------

CARE_34 = [{"coding": [{"system": people.R213, "code": "34"}]}]


@pytest.mark.parametrize("state", ["draft", "ready", "in_progress", "on-hold", "completed", "revoked"])
@pytest.mark.parametrize(
    ("element", "value"),
    [
        ("category", None),
        ("category", CARE_34),
        ("intent", "order"),
        ("subject", {"reference": "Patient/patient-02"}),
        ("subject", None),
        ("requester", {"reference": "PractitionerRole/lefevre"}),
        ("requester", None),
    ],
)
def test_what_makes_a_request_what_it_is_stays(hub: Hub, state: str, element: str, value: Any) -> None:
    current = asked(hub, state=state)
    changed = {name: item for name, item in (current | {element: value}).items() if item is not None}
    for who in (REQUESTER, EXPERT, hubs.ADMIN):
        with pytest.raises(PasserelleError) as told:
            put(hub, who, changed)
        if state not in ("completed", "revoked") and who is REQUESTER and value is not None:
            assert told.value.issues[0].expression == f"ServiceRequest.{element}"
        if (state, element, who) == ("draft", "requester", REQUESTER):
            break  # a software of the requester's side may hand a draft on: it asks in the name of all its users
    assert read(hub, "ServiceRequest/r") == current
    assert read(hub, "Task/r")["focus"] == {"reference": "ServiceRequest/r"}


def test_nobody_asks_in_the_name_of_somebody_else_on_the_way_out(hub: Hub) -> None:
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(status="draft"))
    with pytest.raises(RuleBroken) as told:
        put(hub, REQUESTER, hubs.request(requester={"reference": "PractitionerRole/lefevre"}))
    assert told.value.issues[0].expression == "ServiceRequest.requester"


@pytest.mark.parametrize("state", ["new", "draft", "ready"])
def test_a_status_unknown_is_not_a_draft(hub: Hub, state: str) -> None:
    current = hubs.request() if state == "new" else asked(hub, state=state)
    with pytest.raises(PasserelleError) as told:
        put(hub, REQUESTER, current | {"status": "unknown"})
    assert (told.value.status, told.value.issues[0].expression) == (422, "ServiceRequest.status")
