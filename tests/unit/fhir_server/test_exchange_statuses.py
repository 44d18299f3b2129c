"""Which Communications move a téléexpertise, and what an answer may answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hubs import EXPERT, OTHER_EXPERT, PARTNER, REQUESTER, asked, directory, found, hub_on, message, opinion, put, read

from fhir_server.changes import Hub
from fhir_server.errors import Invalid, RuleBroken
from fhir_server.store.engine import Store

Resource = dict[str, Any]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def status(hub: Hub) -> str:
    return str(read(hub, "Task/r")["businessStatus"]["text"])


@pytest.mark.parametrize("word", ["not-done", "entered-in-error", "unknown", "preparation", "on-hold", "stopped"])
@pytest.mark.parametrize(("state", "who"), [("in_progress", EXPERT), ("on-hold", REQUESTER)])
def test_what_was_not_sent_moves_nothing(hub: Hub, word: str, state: str, who: Any) -> None:
    asked(hub, state=state)
    steps = len(found(hub, "Provenance", "target=ServiceRequest/r"))
    put(hub, who, message("m") | {"status": word})
    assert status(hub) == state
    assert read(hub, "Communication/m")["status"] == word, "it is stored as it was said"
    assert len(found(hub, "Provenance", "target=ServiceRequest/r")) == steps


@pytest.mark.parametrize("word", ["completed", "in-progress"])
def test_what_was_prepared_moves_the_case_when_it_is_sent(hub: Hub, word: str) -> None:
    asked(hub, state="in_progress")
    put(hub, EXPERT, message("m") | {"status": "preparation"})
    put(hub, EXPERT, message("m", text="Mieux dit ?") | {"status": word})
    assert status(hub) == "on-hold"


@pytest.mark.parametrize(
    ("state", "who"), [("in_progress", OTHER_EXPERT), ("completed", EXPERT), ("revoked", REQUESTER)]
)
def test_not_even_a_draft_is_written_into_a_case_that_is_not_ones_own_or_over(hub: Hub, state: str, who: Any) -> None:
    asked(hub, state=state)
    with pytest.raises(RuleBroken, match="Legal steps"):
        put(hub, who, message("m") | {"status": "preparation"})


def test_the_sender_may_call_a_message_an_error_and_nothing_moves(hub: Hub) -> None:
    asked(hub, state="on-hold")
    said = read(hub, "Communication/r-question")
    for who, change in (
        (REQUESTER, {"status": "entered-in-error"}),
        (EXPERT, {"status": "not-done"}),
        (EXPERT, {"status": "entered-in-error", "payload": [{"contentString": "autre"}]}),
    ):
        with pytest.raises(RuleBroken):
            put(hub, who, said | change)
    put(hub, EXPERT, message("r-question") | {"status": "entered-in-error"})
    assert status(hub) == "on-hold"
    assert read(hub, "Communication/r-question") == said | {"status": "entered-in-error"}
    with pytest.raises(RuleBroken):
        put(hub, EXPERT, said)


def test_a_message_in_error_is_not_printed_in_the_report(hub: Hub) -> None:
    asked(hub, state="in_progress")
    put(hub, EXPERT, message("m", text="Jamais partie") | {"status": "unknown"})
    put(hub, EXPERT, opinion(hub))
    from test_documents import contents, pages

    assert "Jamais partie" not in pages(contents(hub)["application/pdf"])


@pytest.mark.parametrize(
    "answered",
    [
        "Communication/other-question",
        "Communication/none",
        "Communication/draft",
        "Patient/patient-01",
        "Communication/x/y",
    ],
)
def test_an_answer_names_a_message_of_its_own_case(hub: Hub, answered: str) -> None:
    asked(hub, "other", state="on-hold")
    asked(hub, state="in_progress")
    put(hub, EXPERT, message("draft") | {"status": "preparation"})
    put(hub, EXPERT, message("r-question"))
    for index, references in ((0, [answered]), (1, ["Communication/r-question", answered])):
        said = message("a") | {"inResponseTo": [{"reference": one} for one in references]}
        with pytest.raises(Invalid) as told:
            put(hub, REQUESTER, said)
        assert (told.value.status, told.value.issues[0].expression) == (422, f"Communication.inResponseTo[{index}]")
    assert status(hub) == "on-hold"


def test_a_question_too_refers_to_its_own_case_alone(hub: Hub) -> None:
    asked(hub, "other", state="on-hold")
    asked(hub, state="in_progress")
    with pytest.raises(Invalid):
        put(hub, EXPERT, message("q", answers="other-question"))
    assert status(hub) == "in_progress"


def test_a_message_is_about_the_patient_of_its_case(hub: Hub) -> None:
    asked(hub, state="in_progress")
    with pytest.raises(RuleBroken) as told:
        put(hub, EXPERT, message("q") | {"subject": {"reference": "Patient/patient-02"}})
    assert told.value.issues[0].expression == "Communication.subject"
    put(hub, PARTNER, message("elsewhere", "none") | {"subject": {"reference": "Patient/patient-02"}})
    put(hub, EXPERT, message("q") | {"subject": {"reference": "Patient/patient-01"}})
