"""Question, answer and report: who may send them when, what stays once sent, and what each step leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import hubs
import pytest
from hubs import (
    ADMIN,
    EXPERT,
    OTHER_EXPERT,
    OTHER_REQUESTER,
    PARTNER,
    REQUESTER,
    Ticking,
    asked,
    delete,
    found,
    message,
    opinion,
    put,
    read,
    refused,
    request,
    status,
)

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, Caller
from fhir_server.demo import people
from fhir_server.errors import Conflict, Invalid, RuleBroken

Resource = dict[str, Any]


@pytest.fixture
def hub(new_hub: Callable[..., Hub]) -> Hub:
    return new_hub()


# --- the exchange ----------------------------------------------------------------------------------------------------


def test_question_and_answer_pause_and_resume_the_case(hub: Hub) -> None:
    asked(hub, state="in_progress")
    put(hub, EXPERT, message("q"))
    assert status(hub) == "on-hold"
    question = read(hub, "Communication/q")
    assert question["sender"]["reference"] == "PractitionerRole/garnier" and question["sent"]
    put(hub, REQUESTER, message("a", answers="q"))
    assert status(hub) == "in_progress"
    steps = {p["activity"]["coding"][0]["code"] for p in found(hub, "Provenance", "target=ServiceRequest/r")}
    assert steps == {"ask", "take", "question", "answer"}


@pytest.mark.parametrize(
    ("state", "who"),
    [
        ("draft", EXPERT),
        ("ready", EXPERT),
        ("in_progress", REQUESTER),
        ("in_progress", OTHER_EXPERT),
        ("on-hold", EXPERT),
        ("on-hold", OTHER_REQUESTER),
        ("completed", EXPERT),
        ("revoked", REQUESTER),
    ],
)
def test_a_message_in_the_wrong_state_or_of_the_wrong_side_is_refused(hub: Hub, state: str, who: Caller) -> None:
    asked(hub, state=state)
    words = refused(RuleBroken, "Communication", lambda: put(hub, who, message("m", answers="r-question")))
    assert "Legal steps" in words


def test_an_answer_names_its_question_and_a_message_says_something(hub: Hub) -> None:
    asked(hub, state="on-hold")
    refused(Invalid, "Communication.inResponseTo", lambda: put(hub, REQUESTER, message("a")))
    empty = {name: value for name, value in message("a", answers="r-question").items() if name != "payload"}
    refused(Invalid, "Communication.payload", lambda: put(hub, REQUESTER, empty))


def test_a_message_that_was_sent_stays_and_does_not_leave_its_case(hub: Hub) -> None:
    asked(hub, state="on-hold")
    said = read(hub, "Communication/r-question")
    other = {name: value for name, value in said.items() if name != "basedOn"}
    change = said | {"payload": [{"contentString": "autre"}]}
    assert "already sent" in refused(RuleBroken, "Communication", lambda: put(hub, EXPERT, change))
    assert "stays there" in refused(RuleBroken, "Communication.basedOn", lambda: put(hub, EXPERT, other))


def test_a_message_belongs_to_one_case(hub: Hub) -> None:
    for key in ("r", "s"):
        asked(hub, key, state="in_progress")
    both = message("m") | {"basedOn": [{"reference": "ServiceRequest/r"}, {"reference": "ServiceRequest/s"}]}
    refused(Invalid, "Communication.basedOn", lambda: put(hub, EXPERT, both))


# --- the report ------------------------------------------------------------------------------------------------------


def test_a_preliminary_report_is_kept_and_nothing_leaves(hub: Hub) -> None:
    asked(hub, state="in_progress")
    put(hub, EXPERT, opinion(hub, status="preliminary"))
    assert (status(hub), hubs.deliveries(hub)) == ("in_progress", [])
    put(hub, EXPERT, opinion(hub))
    assert status(hub) == "completed" and len(hubs.deliveries(hub)) == 3


@pytest.mark.parametrize(
    ("state", "who"),
    [
        ("ready", EXPERT),
        ("in_progress", REQUESTER),
        ("in_progress", OTHER_EXPERT),
        ("on-hold", EXPERT),
        ("draft", PARTNER),
    ],
)
def test_a_report_in_the_wrong_state_or_of_the_wrong_side_is_refused(hub: Hub, state: str, who: Caller) -> None:
    asked(hub, state=state)
    words = refused(RuleBroken, "DiagnosticReport.status", lambda: put(hub, who, opinion(hub)))
    assert "Legal steps" in words
    assert hubs.deliveries(hub) == []


def test_a_report_of_another_patient_is_refused(hub: Hub) -> None:
    asked(hub, state="in_progress")
    for subject in ({"reference": "Patient/patient-02"}, {"display": "?"}):
        wrong = opinion(hub, subject=subject)
        words = refused(RuleBroken, "DiagnosticReport.subject", partial(put, hub, EXPERT, wrong))
        assert "another patient" in words


def test_a_final_report_needs_a_conclusion(hub: Hub) -> None:
    asked(hub, state="in_progress")
    silent = {name: value for name, value in opinion(hub).items() if name != "conclusion"}
    refused(Invalid, "DiagnosticReport.conclusion", lambda: put(hub, EXPERT, silent))


def test_a_report_that_was_sent_stays_and_does_not_leave_its_case(hub: Hub) -> None:
    asked(hub, state="completed")
    said = read(hub, "DiagnosticReport/r")
    other = {name: value for name, value in said.items() if name != "basedOn"}
    for change in (said | {"conclusion": "autre"}, said | {"status": "preliminary"}):
        words = refused(RuleBroken, "DiagnosticReport", partial(put, hub, EXPERT, change))
        assert "already sent" in words
    assert "stays there" in refused(RuleBroken, "DiagnosticReport.basedOn", lambda: put(hub, EXPERT, other))
    assert len(hubs.deliveries(hub)) == 3


def test_the_case_is_found_behind_other_references_of_the_report(hub: Hub) -> None:
    asked(hub, state="in_progress")
    based = [{"display": "a call"}, {"reference": "CarePlan/x"}, {"reference": "ServiceRequest/r"}]
    put(hub, EXPERT, opinion(hub, basedOn=based))
    assert status(hub) == "completed"


def test_a_report_belongs_to_one_case(hub: Hub) -> None:
    for key in ("r", "s"):
        asked(hub, key, state="in_progress")
    both = opinion(hub, basedOn=[{"reference": "ServiceRequest/r"}, {"reference": "ServiceRequest/s"}])
    refused(Invalid, "DiagnosticReport.basedOn", lambda: put(hub, EXPERT, both))


def test_a_report_the_documents_cannot_be_made_of_is_refused_with_the_element(hub: Hub) -> None:
    asked(hub, state="in_progress")
    nameless = {name: value for name, value in read(hub, "Patient/patient-01").items() if name != "birthDate"}
    put(hub, PARTNER, nameless)
    with pytest.raises(Invalid) as told:
        put(hub, EXPERT, opinion(hub))
    assert "birthDate" in told.value.issues[0].expression
    assert status(hub) == "in_progress"


def test_a_start_without_a_time_is_asked_for_and_can_be_given(hub: Hub) -> None:
    asked(hub, state="in_progress")
    task = read(hub, "Task/r") | {"executionPeriod": {"start": "2026-11"}}
    hub.store.write(SYSTEM, lambda tx: tx.update(task, hubs.IndexRows()))
    refused(Invalid, "DiagnosticReport.effectivePeriod.start", lambda: put(hub, EXPERT, opinion(hub)))
    period = {"start": "2026-11-21T09:00:00+01:00", "end": "2026-11-21T09:30:00+01:00"}
    put(hub, EXPERT, opinion(hub, effectivePeriod=period))
    assert status(hub) == "completed"


# --- deleting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ServiceRequest", "Task", "DiagnosticReport", "Communication", "Provenance"])
def test_nothing_of_a_case_can_be_deleted(hub: Hub, kind: str) -> None:
    asked(hub, state="in_progress")
    put(hub, EXPERT, message("q"))
    put(hub, REQUESTER, message("a", answers="q"))
    put(hub, EXPERT, opinion(hub))
    keys = {"Communication": "q", "Provenance": found(hub, "Provenance")[0]["id"]}
    for who in (REQUESTER, EXPERT, PARTNER, ADMIN):
        words = refused(RuleBroken, "id", partial(delete, hub, who, f"{kind}/{keys.get(kind, 'r')}"))
        assert f"deleting a {kind}" in words


def test_the_documents_of_a_report_cannot_be_deleted(hub: Hub) -> None:
    asked(hub, state="completed")
    document = found(hub, "DocumentReference", "related=DiagnosticReport/r")[0]
    refused(RuleBroken, "id", lambda: delete(hub, PARTNER, f"DocumentReference/{document['id']}"))


def test_a_patient_with_a_case_cannot_be_deleted_and_another_one_can(hub: Hub) -> None:
    asked(hub, state="draft")
    with pytest.raises(Conflict, match="ServiceRequest/r") as told:
        delete(hub, ADMIN, "Patient/patient-01")
    assert told.value.status == 409
    assert delete(hub, ADMIN, "Patient/patient-02").status == 204


# --- what is told of a step ------------------------------------------------------------------------------------------


def test_every_step_is_told_in_order_with_who_took_it(new_hub: Callable[..., Hub]) -> None:
    clock = Ticking()
    hub = new_hub(clock=clock)
    began = clock.moment
    asked(hub, state="completed")
    told = sorted(found(hub, "Provenance", "target=ServiceRequest/r"), key=lambda p: str(p["recorded"]))
    steps = [(p["activity"]["coding"][0]["code"], p["agent"][0]["who"]["reference"]) for p in told]
    assert steps == [
        ("ask", "PractitionerRole/moreau"),
        ("take", "PractitionerRole/garnier"),
        ("report", "PractitionerRole/garnier"),
    ]
    task = read(hub, "Task/r")
    assert task["authoredOn"] < task["executionPeriod"]["start"] < task["executionPeriod"]["end"]
    assert clock.moment - began < timedelta(minutes=5)


def test_a_step_names_the_software_when_no_person_is_known(hub: Hub) -> None:
    put(hub, PARTNER, people.consent("r", 0), request())
    who = found(hub, "Provenance", "target=ServiceRequest/r")[0]["agent"][0]["who"]
    assert who == {"display": "Logiciel"}


def test_a_report_of_a_patient_without_ins_still_goes_out(hub: Hub, tmp_path: Path) -> None:
    plain = people.patient(1)
    plain["identifier"] = [i for i in plain["identifier"] if i["system"] == people.IPP_SYSTEM]
    plain["extension"][0]["extension"][0]["valueCoding"]["code"] = "PROV"
    put(hub, PARTNER, plain)
    asked(hub, patient=1, state="completed")
    assert {d.protocol for d in hubs.deliveries(hub)} == {"hl7", "mail"}
