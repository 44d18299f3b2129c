"""The rules of a téléexpertise as a client meets them: every resource that can take a step, by every role, and what
is refused with the legal steps told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import hubs
import pytest
from hubs import (
    ADMIN,
    CONSENT_URL,
    DEVICE,
    EXPERT,
    OTHER_EXPERT,
    OTHER_REQUESTER,
    PARTNER,
    REQUESTER,
    asked,
    delete,
    found,
    message,
    opinion,
    post,
    put,
    read,
    refused,
    request,
    status,
    take,
)

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.demo import people
from fhir_server.errors import Invalid, PasserelleError, RuleBroken

Resource = dict[str, Any]


@pytest.fixture
def hub(new_hub: Callable[..., Hub]) -> Hub:
    return new_hub()


# --- consent ---------------------------------------------------------------------------------------------------------


def boolean(value: bool, url: str = CONSENT_URL) -> Resource:
    return {"extension": [{"url": url, "valueBoolean": value}]}


def test_a_draft_waits_for_its_consent(hub: Hub) -> None:
    put(hub, REQUESTER, request(status="draft"))
    words = refused(RuleBroken, "ServiceRequest.supportingInfo", lambda: put(hub, REQUESTER, request()))
    assert "no consent" in words and "draft" in words
    put(hub, REQUESTER, people.consent("r", 0))
    put(hub, REQUESTER, request())
    assert status(hub) == "ready"


def test_the_boolean_of_the_draft_guide_is_a_consent_too(hub: Hub) -> None:
    bare = {name: value for name, value in request().items() if name != "supportingInfo"}
    put(hub, REQUESTER, bare | boolean(True))
    assert status(hub) == "ready"


def test_the_address_of_that_boolean_is_a_setting(new_hub: Callable[..., Hub]) -> None:
    hub = new_hub(extension_patient_consent="urn:mine")
    refused(RuleBroken, "ServiceRequest.supportingInfo", lambda: put(hub, REQUESTER, request(**boolean(True))))
    put(hub, REQUESTER, request(**boolean(True, "urn:mine")))
    assert status(hub) == "ready"


@pytest.mark.parametrize(
    "consent",
    [
        {"provision": {"type": "deny"}},
        {"status": "inactive"},
        {"status": "rejected"},
        {"patient": {"reference": "Patient/patient-02"}},
        {"patient": {"reference": "http://elsewhere/Patient/patient-01"}},
    ],
    ids=["refusal", "inactive", "rejected", "somebody else", "elsewhere"],
)
def test_what_is_no_consent_of_this_patient_does_not_count(hub: Hub, consent: Resource) -> None:
    put(hub, REQUESTER, people.consent("r", 0) | consent)
    refused(RuleBroken, "ServiceRequest.supportingInfo", lambda: put(hub, REQUESTER, request()))


@pytest.mark.parametrize(
    "more", [boolean(False), {"extension": [{"url": CONSENT_URL, "valueString": "true"}]}, {"supportingInfo": []}]
)
def test_a_no_or_a_word_is_no_consent(hub: Hub, more: Resource) -> None:
    with pytest.raises((RuleBroken, Invalid)):
        put(hub, REQUESTER, request(**more))
    assert hubs.stored(hub, "ServiceRequest/r") is None


def test_consent_and_request_may_come_together(hub: Hub) -> None:
    put(hub, REQUESTER, request(), people.consent("r", 0))
    assert status(hub) == "ready"


def test_a_request_that_is_out_keeps_its_consent(hub: Hub) -> None:
    current = asked(hub)
    bare = {name: value for name, value in current.items() if name != "supportingInfo"}
    refused(RuleBroken, "ServiceRequest.supportingInfo", lambda: put(hub, REQUESTER, bare))


# --- the ServiceRequest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "element"),
    [
        ({"intent": "order"}, "intent"),
        ({"requester": {"display": "somebody"}}, "requester"),
        ({"subject": {"display": "somebody"}}, "subject"),
        ({"performer": None}, "performer"),
        ({"authoredOn": None}, "authoredOn"),
    ],
)
def test_a_request_says_who_asks_whom_about_whom_and_when(hub: Hub, change: Resource, element: str) -> None:
    wanted = {name: value for name, value in (request() | change).items() if value is not None}
    refused(Invalid, f"ServiceRequest.{element}", lambda: put(hub, REQUESTER, wanted))


@pytest.mark.parametrize(
    ("change", "element"),
    [
        ({"subject": {"reference": "Patient/nobody"}}, "subject"),
        ({"requester": {"reference": "PractitionerRole/nobody"}}, "requester"),
        ({"performer": [{"reference": "HealthcareService/nobody"}]}, "performer[0]"),
    ],
)
def test_a_request_goes_out_only_between_people_who_are_stored(hub: Hub, change: Resource, element: str) -> None:
    put(hub, PARTNER, request(status="draft", **change))
    refused(Invalid, f"ServiceRequest.{element}", lambda: put(hub, PARTNER, request(**change, **boolean(True))))


def test_a_request_that_is_no_teleexpertise_is_left_alone(hub: Hub) -> None:
    plain = {
        "resourceType": "ServiceRequest",
        "id": "blood",
        "status": "active",
        "intent": "order",
        "subject": {"reference": "Patient/patient-01"},
    }
    put(hub, DEVICE, plain)
    assert read(hub, "ServiceRequest/blood") == plain
    assert hubs.stored(hub, "Task/blood") is None
    put(hub, DEVICE, message("m", "blood"), opinion(hub, "blood", id="d"))
    assert hubs.deliveries(hub) == []
    delete(hub, DEVICE, "ServiceRequest/blood")


@pytest.mark.parametrize("code", ["34", "35"])
def test_the_category_makes_the_teleexpertise_whatever_spelling_its_system_has(hub: Hub, code: str) -> None:
    oid = [{"coding": [{"system": "urn:oid:1.2.250.1.213.3.3.13", "code": code}]}]
    put(hub, REQUESTER, request(status="draft", category=oid))
    assert (hubs.stored(hub, "Task/r") is not None) == (code == "35")


def test_a_request_cannot_stop_being_a_teleexpertise_to_escape_its_rules(hub: Hub) -> None:
    current = asked(hub, state="completed")
    other = {name: value for name, value in current.items() if name != "category"} | {"status": "active"}
    refused(RuleBroken, "ServiceRequest.status", lambda: put(hub, REQUESTER, other))
    refused(RuleBroken, "ServiceRequest", lambda: put(hub, REQUESTER, other | {"status": "completed"}))


def test_the_patient_never_changes_and_the_requester_not_once_it_is_out(hub: Hub) -> None:
    draft = asked(hub, state="draft")
    other = {"reference": "PractitionerRole/lefevre"}
    put(hub, PARTNER, draft | {"requester": other})
    put(hub, PARTNER, draft)
    ready = asked(hub, "s")
    for current in (draft, ready):
        moved = current | {"subject": {"reference": "Patient/patient-02"}}
        refused(RuleBroken, "ServiceRequest.subject", partial(put, hub, PARTNER, moved))
    refused(RuleBroken, "ServiceRequest.requester", lambda: put(hub, PARTNER, ready | {"requester": other}))


@pytest.mark.parametrize("who", [OTHER_REQUESTER, OTHER_EXPERT, DEVICE], ids=["requester", "expert", "device"])
def test_who_has_no_part_in_a_case_changes_nothing_of_it(hub: Hub, who: Caller) -> None:
    current = asked(hub)
    mine = current | {"performer": [*current["performer"], {"reference": who.who or "Device/passerelle"}]}
    words = refused(RuleBroken, "ServiceRequest", lambda: put(hub, who, mine))
    assert "no role in this case" in words and "Legal steps" in words
    refused(RuleBroken, "Task", lambda: put(hub, who, read(hub, "Task/r") | {"description": "x"}))
    assert read(hub, "ServiceRequest/r") == current


def test_the_requester_may_correct_a_request_that_nobody_took(hub: Hub) -> None:
    current = asked(hub)
    put(hub, REQUESTER, current | {"reasonCode": [{"text": "Mesure corrigée"}]})
    assert read(hub, "ServiceRequest/r")["reasonCode"] == [{"text": "Mesure corrigée"}]
    told = [p["activity"]["coding"][0]["code"] for p in found(hub, "Provenance", "target=ServiceRequest/r")]
    assert sorted(told) == ["ask", "correct"], "no step, but traced"


@pytest.mark.parametrize("element", ["reasonCode", "orderDetail", "bodySite"])
@pytest.mark.parametrize("state", ["ready", "in_progress"])
def test_who_answers_does_not_rewrite_what_was_asked(hub: Hub, state: str, element: str) -> None:
    current = asked(hub, state=state)
    other = current | {element: [{"text": "Autre question"}]}
    words = refused(RuleBroken, f"ServiceRequest.{element}", lambda: put(hub, EXPERT, other))
    assert "requester's to correct" in words
    assert read(hub, "ServiceRequest/r") == current


# --- becoming a téléexpertise ----------------------------------------------------------------------------------------


def plain(**changes: Any) -> Resource:
    """The request without the category: anybody's order."""
    return {name: value for name, value in request(**changes).items() if name != "category"}


def test_a_request_that_becomes_a_teleexpertise_enters_as_a_new_one_does(hub: Hub) -> None:
    put(hub, REQUESTER, plain())
    refused(RuleBroken, "ServiceRequest.supportingInfo", lambda: put(hub, REQUESTER, request()))
    put(hub, REQUESTER, people.consent("r", 0))
    refused(RuleBroken, "ServiceRequest.status", lambda: put(hub, REQUESTER, request(status="completed")))
    refused(RuleBroken, "ServiceRequest.status", lambda: put(hub, EXPERT, request()))
    assert hubs.stored(hub, "Task/r") is None
    put(hub, REQUESTER, request())
    assert status(hub) == "ready" and accession(read(hub, "ServiceRequest/r"))
    assert [p["activity"]["coding"][0]["code"] for p in found(hub, "Provenance", "target=ServiceRequest/r")] == ["ask"]


def early(kind: str) -> Resource:
    """What somebody stored as that of a case before there was one."""
    if kind == "Communication":
        return message("early")
    return {
        "resourceType": "DiagnosticReport",
        "id": "early",
        "status": "final",
        "basedOn": [{"reference": "ServiceRequest/r"}],
        "code": {"text": "Avis"},
        "subject": {"reference": "Patient/patient-01"},
        "conclusion": "Rien à signaler",
    }


@pytest.mark.parametrize("kind", ["DiagnosticReport", "Communication"])
@pytest.mark.parametrize("ordered", [False, True], ids=["before the request", "on a plain request"])
def test_a_case_begins_without_a_report_that_its_steps_did_not_make(hub: Hub, kind: str, ordered: bool) -> None:
    if ordered:
        put(hub, REQUESTER, plain())
    put(hub, PARTNER, early(kind))
    put(hub, PARTNER, people.consent("r", 0))
    words = refused(RuleBroken, "ServiceRequest.id", lambda: put(hub, REQUESTER, request()))
    assert f"{kind}/early" in words
    put(hub, PARTNER, early(kind) | {"status": "entered-in-error"})
    put(hub, REQUESTER, request())
    assert status(hub) == "ready"


@pytest.mark.parametrize("kind", ["DiagnosticReport", "Communication"])
def test_a_report_that_comes_while_its_case_begins_is_seen(hub: Hub, kind: str) -> None:
    put(hub, REQUESTER, people.consent("r", 0))
    late = hubs.meddled(hub, lambda _: put(hub, PARTNER, early(kind)))
    refused(RuleBroken, "ServiceRequest.id", lambda: put(late, REQUESTER, request()))
    put(hub, REQUESTER, people.consent("s", 0))
    other = early(kind) | {"basedOn": [{"reference": "ServiceRequest/s"}], "id": "other"}
    late = hubs.meddled(hub, lambda _: put(hub, REQUESTER, request("s")))
    with pytest.raises(PasserelleError):
        put(late, PARTNER, other)


@pytest.mark.parametrize("state", ["completed", "revoked", "entered-in-error"])
def test_a_case_that_is_over_stays_as_it_is(hub: Hub, state: str) -> None:
    current = asked(hub, state=state)
    words = refused(RuleBroken, "ServiceRequest", lambda: put(hub, REQUESTER, current | {"note": [{"text": "x"}]}))
    final = "none, it is final"
    assert (final if state != "completed" else "DiagnosticReport.status amended or corrected") in words
    refused(RuleBroken, "ServiceRequest.status", lambda: put(hub, ADMIN, current | {"status": "draft"}))


@pytest.mark.parametrize(("state", "wanted"), [("in_progress", "completed"), ("in_progress", "on-hold")])
def test_steps_of_another_resource_cannot_be_taken_through_the_request(hub: Hub, state: str, wanted: str) -> None:
    current = asked(hub, state=state)
    words = refused(RuleBroken, "ServiceRequest.status", lambda: put(hub, EXPERT, current | {"status": wanted}))
    assert "through the ServiceRequest alone" in words
    answer = asked(hub, "s", state="on-hold") | {"status": "active", "extension": current["extension"]}
    refused(RuleBroken, "ServiceRequest.status", lambda: put(hub, REQUESTER, answer))


@pytest.mark.parametrize(
    ("state", "who", "wanted"),
    [
        ("ready", REQUESTER, "revoked"),
        ("ready", EXPERT, "revoked"),
        ("in_progress", EXPERT, "revoked"),
        ("on-hold", REQUESTER, "revoked"),
        ("ready", ADMIN, "entered-in-error"),
        ("on-hold", PARTNER, "entered-in-error"),
    ],
)
def test_cancelling_refusing_and_voiding_end_the_case(hub: Hub, state: str, who: Caller, wanted: str) -> None:
    current = asked(hub, state=state)
    put(hub, who, current | {"status": wanted})
    assert status(hub) == wanted
    task = read(hub, "Task/r")
    assert task["status"] == {"revoked": "cancelled"}.get(wanted, wanted)


@pytest.mark.parametrize(
    ("state", "who", "wanted"),
    [
        ("in_progress", REQUESTER, "revoked"),
        ("on-hold", EXPERT, "revoked"),
        ("ready", EXPERT, "entered-in-error"),
        ("draft", EXPERT, "revoked"),
    ],
)
def test_a_step_of_the_other_side_is_refused_with_the_legal_ones(
    hub: Hub, state: str, who: Caller, wanted: str
) -> None:
    current = asked(hub, state=state)
    words = refused(RuleBroken, "ServiceRequest.status", lambda: put(hub, who, current | {"status": wanted}))
    assert "Legal steps: " in words and " by " in words


# --- accession numbers -----------------------------------------------------------------------------------------------


def accession(current: Resource) -> str:
    return str(next(i["value"] for i in current["identifier"] if i["type"]["coding"][0]["code"] == "ACSN"))


def named(value: str) -> list[Resource]:
    kind = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}
    return [{"type": kind, "system": people.ACCESSION_SYSTEM, "value": value}]


def test_each_request_gets_an_accession_number_that_fits_into_dicom(hub: Hub) -> None:
    numbers = [accession(asked(hub, f"r{n}", state="draft")) for n in range(20)]
    assert len(set(numbers)) == 20
    assert all(len(number) <= 16 and number.isascii() and number.isalnum() for number in numbers)


def test_an_accession_number_lost_on_the_way_is_the_same_again(hub: Hub) -> None:
    current = asked(hub)
    put(hub, REQUESTER, {name: value for name, value in current.items() if name != "identifier"})
    assert accession(read(hub, "ServiceRequest/r")) == accession(current)


def test_an_accession_number_of_the_sender_is_kept(hub: Hub) -> None:
    put(hub, PARTNER, request(status="draft", identifier=named("RIS-2026-0001")))
    assert accession(read(hub, "ServiceRequest/r")) == "RIS-2026-0001"


def test_an_accession_number_too_long_for_dicom_or_used_before_is_refused(hub: Hub) -> None:
    place = "ServiceRequest.identifier[0].value"
    long = request(status="draft", identifier=named("X" * 17))
    assert "16 characters" in refused(Invalid, place, lambda: put(hub, PARTNER, long))
    put(hub, PARTNER, request(status="draft", identifier=named("X")))
    same = request("s", status="draft", identifier=named("X"))
    assert "another request" in refused(Invalid, place, lambda: put(hub, PARTNER, same))
    put(hub, PARTNER, request(status="draft", identifier=named("X"), note=[{"text": "the same again"}]))


@pytest.mark.parametrize("identifier", [{"value": "x"}, {"type": {"text": "x"}, "value": "x"}, {"system": "urn:x"}])
def test_other_identifiers_do_not_stand_for_the_accession_number(hub: Hub, identifier: Resource) -> None:
    put(hub, PARTNER, request(status="draft", identifier=[identifier]))
    kept = read(hub, "ServiceRequest/r")["identifier"]
    assert kept[0] == identifier and len(kept) == 2


# --- the Task --------------------------------------------------------------------------------------------------------


def test_taking_adds_the_performer_by_either_resource(hub: Hub) -> None:
    for key in ("r", "s"):
        asked(hub, key)
    take(hub, "r")
    split = hubs.Settings().extension_active_status
    taken = {"url": split, "valueCoding": {"code": "in_progress"}}
    put(hub, EXPERT, read(hub, "ServiceRequest/s") | {"extension": [taken]})
    for key in ("r", "s"):
        performers = [p["reference"] for p in read(hub, f"ServiceRequest/{key}")["performer"]]
        assert performers == ["HealthcareService/avis-echo", "PractitionerRole/garnier"]
        task = read(hub, f"Task/{key}")
        assert (task["status"], task["owner"]["reference"]) == ("in-progress", "PractitionerRole/garnier")
        assert task["executionPeriod"]["start"]


def test_a_step_leaves_in_the_task_what_others_wrote_there(hub: Hub) -> None:
    asked(hub)
    words = {"note": [{"text": "Rappeler le service"}], "statusReason": {"text": "en attente"}}
    put(hub, EXPERT, read(hub, "Task/r") | words)
    take(hub)
    task = read(hub, "Task/r")
    assert [note["text"] for note in task["note"]] == ["Rappeler le service"]
    assert (task["status"], "statusReason" in task) == ("in-progress", False), "the reason was the earlier state's"


def test_accepting_a_task_is_taking_and_rejecting_it_is_refusing(hub: Hub) -> None:
    for key, word, state in (("r", "accepted", "in_progress"), ("s", "rejected", "revoked")):
        asked(hub, key)
        put(hub, EXPERT, read(hub, f"Task/{key}") | {"status": word})
        assert status(hub, key) == state


@pytest.mark.parametrize(
    ("state", "who", "word"),
    [
        ("ready", REQUESTER, "in-progress"),
        ("ready", OTHER_EXPERT, "in-progress"),
        ("ready", EXPERT, "completed"),
        ("ready", EXPERT, "failed"),
        ("draft", EXPERT, "in-progress"),
        ("in_progress", EXPERT, "completed"),
        ("in_progress", EXPERT, "on-hold"),
        ("in_progress", EXPERT, "requested"),
        ("completed", EXPERT, "in-progress"),
    ],
)
def test_a_task_takes_no_step_that_its_request_may_not(hub: Hub, state: str, who: Caller, word: str) -> None:
    asked(hub, state=state)
    task = read(hub, "Task/r")
    with pytest.raises(RuleBroken, match="Legal steps"):
        put(hub, who, task | {"status": word})
    assert read(hub, "Task/r") == task


def test_what_a_task_says_of_its_case_is_not_the_clients_to_change(hub: Hub) -> None:
    asked(hub)
    task = read(hub, "Task/r")
    forged = {
        "for": {"reference": "Patient/patient-02"},
        "owner": {"reference": "PractitionerRole/benali"},
        "executionPeriod": {"start": "2001"},
        "focus": {"reference": "ServiceRequest/other"},
        "description": "une note à soi",
    }
    put(hub, EXPERT, task | forged)
    assert read(hub, "Task/r") == task | {"description": "une note à soi"}
    put(hub, EXPERT, task | forged | {"status": "in-progress"})
    taken = read(hub, "Task/r")
    assert taken["executionPeriod"]["start"] != "2001"
    assert taken["owner"]["reference"] == "PractitionerRole/garnier"
    assert taken["focus"] == task["focus"]


def test_a_task_of_somebodys_own_about_a_request_is_left_alone(hub: Hub) -> None:
    asked(hub)
    own = {"resourceType": "Task", "status": "completed", "intent": "order", "focus": {"reference": "ServiceRequest/r"}}
    done = post(hub, PARTNER, own)
    assert read(hub, f"Task/{done.id}") == own | {"id": done.id}
    assert status(hub) == "ready"
