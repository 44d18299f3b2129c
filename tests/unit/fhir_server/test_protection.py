"""What a téléexpertise rests on stays: documents, Provenance, consent; and what is only said again changes nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

import hubs
import pytest
from hubs import (
    ADMIN,
    EXPERT,
    OTHER_REQUESTER,
    PARTNER,
    REQUESTER,
    SYSTEM,
    asked,
    delete,
    directory,
    found,
    hub_on,
    message,
    opinion,
    post,
    put,
    read,
    request,
)

from fhir_server.changes import Change, Hub, apply
from fhir_server.context import Caller
from fhir_server.demo import people
from fhir_server.errors import Conflict, Invalid, PasserelleError, RuleBroken
from fhir_server.store.audit import AuditRow
from fhir_server.store.engine import Store
from profiles.json_text import Number

Resource = dict[str, Any]
EVERYBODY = [REQUESTER, EXPERT, PARTNER, ADMIN, SYSTEM]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def version(hub: Hub, reference: str) -> int:
    stored = hubs.stored(hub, reference)
    assert stored is not None
    return stored.version


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(RuleBroken) as told:
        action()
    assert told.value.status == 422
    return told.value.diagnostics


def documents(hub: Hub) -> list[Resource]:
    """The DocumentReference of the report of `r`, and its two Binaries."""
    record = found(hub, "DocumentReference", "related=DiagnosticReport/r")[0]
    record.pop("meta")
    return [record, *(read(hub, content["attachment"]["url"]) for content in record["content"])]


def patched(reference: str, change: Callable[[Resource], Resource]) -> Change:
    kind, _, key = reference.partition("/")
    return Change("patch", kind, key, patch=change)


@pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.display)
def test_the_documents_of_a_report_are_neither_overwritten_nor_deleted(hub: Hub, who: Caller) -> None:
    asked(hub, state="completed")
    other = {"data": base64.b64encode(b"%PDF-1.4 forged").decode(), "status": "entered-in-error"}
    for document in documents(hub):
        kind, reference = document["resourceType"], f"{document['resourceType']}/{document['id']}"
        change = {"data": other["data"]} if kind == "Binary" else {"status": other["status"]}
        assert "rests on" in refused(partial(put, hub, who, document | change))
        refused(lambda r=reference, c=change: apply(hub, who, [patched(r, lambda held: held | c)]))
        assert f"deleting a {kind}" in refused(partial(delete, hub, who, reference))
        assert version(hub, reference) == 1


def test_a_deletion_in_a_bundle_with_its_case_is_refused_too(hub: Hub) -> None:
    asked(hub, state="completed")
    record, pdf, _ = documents(hub)
    both = [Change("delete", "DocumentReference", record["id"]), Change("delete", "Binary", pdf["id"])]
    refused(lambda: apply(hub, ADMIN, both))
    refused(lambda: apply(hub, ADMIN, list(reversed(both))))


def test_documents_of_nobodys_report_are_left_alone(hub: Hub) -> None:
    plain = {"resourceType": "Binary", "id": "b", "contentType": "text/plain", "data": "eA=="}
    put(hub, PARTNER, plain)
    put(hub, PARTNER, plain | {"data": "eQ=="})
    letter = {
        "resourceType": "DocumentReference",
        "id": "d",
        "status": "current",
        "content": [{"attachment": {"url": "Binary/b"}}],
        "context": {"related": [{"reference": "DiagnosticReport/none"}]},
    }
    put(hub, PARTNER, letter)
    put(hub, PARTNER, letter | {"status": "superseded"})
    delete(hub, PARTNER, "DocumentReference/d")
    delete(hub, PARTNER, "Binary/b")


def test_what_is_said_again_is_no_new_version(hub: Hub) -> None:
    asked(hub, state="on-hold")
    put(hub, REQUESTER, message("a", answers="r-question"))
    report = opinion(hub)
    put(hub, EXPERT, report)
    deliveries = hubs.deliveries(hub)
    again: list[tuple[Caller, Resource]] = [
        (EXPERT, message("r-question")),
        (EXPERT, read(hub, "Communication/r-question")),
        (REQUESTER, message("a", answers="r-question")),
        (EXPERT, report),
        (PARTNER, read(hub, "DiagnosticReport/r")),
        *((PARTNER, document) for document in documents(hub)),
        (PARTNER, read(hub, "Consent/r")),
    ]
    for who, resource in again:
        done = put(hub, who, resource)[0]
        assert done.status == 200 and done.stored is not None
        assert done.stored.version == 1, resource["resourceType"]
    assert hubs.deliveries(hub) == deliveries
    assert len(documents(hub)) == 3


def test_only_the_very_same_content_counts_as_said_again(hub: Hub) -> None:
    asked(hub, state="on-hold")
    said = read(hub, "Communication/r-question")
    tagged = said | {"meta": {"tag": [{"system": "urn:x", "code": "y"}]}}
    for change in (said | {"sent": "2020-01-01T00:00:00Z"}, said | {"topic": {"text": "x"}}, tagged):
        assert "already sent" in refused(partial(put, hub, EXPERT, change))
    assert "no role" in refused(lambda: put(hub, OTHER_REQUESTER, said))


def test_a_measure_with_another_precision_is_not_the_same_again(hub: Hub) -> None:
    def weighed(weight: str) -> Resource:
        question = message("r-question") | {"sent": "2026-11-21T09:00:00Z"}
        url, value = "urn:x:weight", {"value": Number(weight), "unit": "kg"}
        return question | {"extension": [{"url": url, "valueQuantity": value}]}

    asked(hub, state="in_progress")
    put(hub, EXPERT, weighed("1.0"))
    assert put(hub, EXPERT, weighed("1.0"))[0].status == 200, "sent twice"
    for other in ("1.00", "1", "1.01"):
        assert "already sent" in refused(partial(put, hub, EXPERT, weighed(other)))
    assert str(read(hub, "Communication/r-question")["extension"]).count("Number('1.0')") == 1


def test_a_report_is_changed_by_a_correction_or_a_withdrawal_alone(hub: Hub) -> None:
    asked(hub, state="completed")
    for status in ("final", "cancelled", "registered", "partial", "preliminary", "unknown"):
        wanted = read(hub, "DiagnosticReport/r") | {"status": status, "conclusion": "autre"}
        words = refused(partial(put, hub, EXPERT, wanted))
        assert "but by a correction or a withdrawal" in words and "its signer sets" in words


def test_a_first_report_cannot_correct_one_that_never_was(hub: Hub) -> None:
    asked(hub, state="in_progress")
    with pytest.raises(PasserelleError) as told:
        put(hub, EXPERT, opinion(hub, status="amended"))
    assert told.value.issues[0].expression == "DiagnosticReport.status"


# --- Provenance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", EVERYBODY, ids=lambda who: who.display)
def test_the_provenance_of_a_case_is_not_rewritten(hub: Hub, who: Caller) -> None:
    asked(hub, state="in_progress")
    for told in found(hub, "Provenance", "target=ServiceRequest/r"):
        forged = told | {"agent": [{"who": {"reference": "PractitionerRole/benali"}}]}
        refused(partial(put, hub, who, forged))
        moved = told | {"target": [{"reference": "Patient/patient-02"}]}
        refused(partial(put, hub, who, moved))
        assert version(hub, f"Provenance/{told['id']}") == 1


def of_case(target: str, who: str, **more: Any) -> Resource:
    agent = [{"who": {"reference": who}}]
    when = "2026-11-21T09:00:00Z"
    return {"resourceType": "Provenance", "target": [{"reference": target}], "recorded": when, "agent": agent} | more


def test_nobody_tells_of_a_case_in_somebody_elses_name(hub: Hub) -> None:
    asked(hub, state="completed")
    for target in ("ServiceRequest/r", "DiagnosticReport/r", "ServiceRequest/r/_history/1"):
        post(hub, EXPERT, of_case(target, "PractitionerRole/garnier"))
        post(hub, EXPERT, of_case(target, "Practitioner/garnier"))
        post(hub, PARTNER, of_case(target, "Device/x"))
        for who in (REQUESTER, PARTNER, ADMIN):
            refused(partial(post, hub, who, of_case(target, "PractitionerRole/garnier")))
    step = {"activity": {"coding": [{"system": "urn:passerelle:etape", "code": "take"}]}}
    refused(lambda: post(hub, EXPERT, of_case("ServiceRequest/r", "PractitionerRole/garnier", **step)))
    post(hub, PARTNER, of_case("Patient/patient-02", "PractitionerRole/garnier"))


def test_every_step_and_its_audit_name_the_person_who_took_it(hub: Hub) -> None:
    asked(hub, state="on-hold")
    put(hub, REQUESTER, message("a", answers="r-question"))
    put(hub, EXPERT, opinion(hub))
    told = {
        p["activity"]["coding"][0]["code"]: p["agent"][0]["who"]["reference"]
        for p in found(hub, "Provenance", "target=ServiceRequest/r")
    }
    asker, expert = "PractitionerRole/moreau", "PractitionerRole/garnier"
    assert told == {"ask": asker, "take": expert, "question": expert, "answer": asker, "report": expert}
    with hub.store.read(SYSTEM) as snapshot:
        rows = [event.record for event in snapshot.case("ServiceRequest/r")]
    wrote = {(row.entity_type, row.who) for row in rows if isinstance(row, AuditRow)}
    assert ("DiagnosticReport", expert) in wrote and ("DiagnosticReport", asker) not in wrote
    assert wrote >= {("Communication", asker), ("Communication", expert)}


@pytest.mark.parametrize(
    ("element", "people_", "place"),
    [
        ("resultsInterpreter", ["PractitionerRole/benali"], "resultsInterpreter"),
        ("resultsInterpreter", ["PractitionerRole/garnier", "PractitionerRole/benali"], "resultsInterpreter"),
        ("performer", ["PractitionerRole/benali"], "performer"),
        ("performer", ["Organization/ch-demo", "Practitioner/benali"], "performer"),
    ],
)
def test_nobody_signs_a_report_for_another(hub: Hub, element: str, people_: list[str], place: str) -> None:
    asked(hub, state="in_progress")
    changed: dict[str, Any] = {element: [{"reference": one} for one in people_]}
    with pytest.raises(RuleBroken) as told:
        put(hub, EXPERT, opinion(hub, **changed))
    assert told.value.issues[0].expression == f"DiagnosticReport.{place}"
    nobody = Caller("", "Le groupe", frozenset({"expert"}), EXPERT.groups)
    with pytest.raises(RuleBroken, match="signed by a person"):
        put(hub, nobody, opinion(hub, resultsInterpreter=[{"reference": "PractitionerRole/garnier"}]))
    put(hub, EXPERT, opinion(hub, performer=[{"reference": "Organization/ch-demo"}]))


@pytest.mark.parametrize("sender", ["PractitionerRole/garnier", "PractitionerRole/lefevre", "Patient/patient-01"])
def test_a_software_speaks_for_the_requesters_side_alone(hub: Hub, sender: str) -> None:
    asked(hub, state="on-hold")
    said = message("a", answers="r-question")
    with pytest.raises(RuleBroken) as told:
        put(hub, PARTNER, said | {"sender": {"reference": sender}})
    assert told.value.issues[0].expression == "Communication.sender"
    put(hub, PARTNER, said | {"sender": {"reference": "Practitioner/moreau"}})


# --- consent ---------------------------------------------------------------------------------------------------------


def test_a_consent_that_a_request_went_out_with_stays_and_can_be_withdrawn(hub: Hub) -> None:
    asked(hub)
    used = read(hub, "Consent/r")
    for change in (
        {"patient": {"reference": "Patient/patient-02"}},
        {"provision": {"type": "deny"}},
        {"dateTime": "2026-11-20T08:00:00Z"},
        {"status": "inactive", "dateTime": "2020-01-01T08:00:00Z"},
        {"status": "proposed"},
    ):
        assert "withdraw" in refused(partial(put, hub, PARTNER, used | change))
    refused(lambda: delete(hub, ADMIN, "Consent/r"))
    put(hub, PARTNER, used | {"status": "inactive"})
    assert read(hub, "Consent/r")["status"] == "inactive"


def test_a_consent_of_a_draft_is_still_its_writers(hub: Hub) -> None:
    put(hub, REQUESTER, people.consent("r", 0), request(status="draft"))
    put(hub, REQUESTER, people.consent("r", 0) | {"dateTime": "2026-11-01T08:00:00Z"})
    delete(hub, REQUESTER, "Consent/r")


# --- nothing changes its case ----------------------------------------------------------------------------------------


def of_request(kind: str, case: str, **more: Any) -> Resource:
    """Something in preparation that belongs to a case."""
    based = [{"reference": case}]
    about = {"reference": "Patient/patient-01"}
    made: dict[str, Resource] = {
        "DiagnosticReport": {"status": "preliminary", "basedOn": based, "code": {"text": "Avis"}, "subject": about},
        "Communication": {"status": "preparation", "basedOn": based, "payload": [{"contentString": "?"}]},
        "Task": {"status": "requested", "intent": "order", "focus": based[0]},
        "DocumentReference": {
            "status": "current",
            "content": [{"attachment": {"title": "x"}}],
            "context": {"related": based},
        },
        "ImagingStudy": {"status": "available", "basedOn": based, "subject": about},
        "Observation": {"status": "final", "basedOn": based, "code": {"text": "Poids"}, "subject": about},
    }
    return {"resourceType": kind, "id": "mv", **made[kind]} | more


PLACES = {"Task": "focus", "DocumentReference": "context.related"}


@pytest.mark.parametrize(
    "kind", ["DiagnosticReport", "Communication", "Task", "DocumentReference", "ImagingStudy", "Observation"]
)
@pytest.mark.parametrize("other", ["ServiceRequest/s", "ServiceRequest/s/_history/1", "ServiceRequest/none"])
def test_what_belongs_to_a_case_does_not_move_to_another(hub: Hub, kind: str, other: str) -> None:
    asked(hub, state="in_progress")
    asked(hub, "s", 1, state="in_progress")
    put(hub, EXPERT, of_request(kind, "ServiceRequest/r"))
    for who in EVERYBODY:
        with pytest.raises(RuleBroken, match="belongs to ServiceRequest/r") as told:
            put(hub, who, of_request(kind, other))
        assert told.value.issues[0].expression == f"{kind}.{PLACES.get(kind, 'basedOn')}"
    assert version(hub, f"{kind}/mv") == 1


def test_a_report_in_preparation_is_not_signed_into_another_patients_case(hub: Hub) -> None:
    asked(hub, state="in_progress")
    asked(hub, "s", 1, state="in_progress")
    put(hub, EXPERT, of_request("DiagnosticReport", "ServiceRequest/r"))
    with pytest.raises(RuleBroken, match="stays there"):
        put(hub, EXPERT, opinion(hub, "s", id="mv"))
    assert hubs.deliveries(hub) == [] and read(hub, "Task/s")["status"] == "in-progress"
    both = [{"reference": "ServiceRequest/r"}, {"reference": "ServiceRequest/s"}]
    with pytest.raises(PasserelleError):
        put(hub, EXPERT, of_request("DiagnosticReport", "ServiceRequest/r", basedOn=both))
    with pytest.raises(Invalid, match="one téléexpertise"):
        put(hub, EXPERT, of_request("DiagnosticReport", "", id="two", basedOn=both))
    wrong = of_request("DiagnosticReport", "ServiceRequest/r", id="w", subject={"reference": "Patient/patient-02"})
    with pytest.raises(RuleBroken, match="another patient"):
        put(hub, EXPERT, wrong)
    put(hub, EXPERT, opinion(hub, "r", id="mv"))


def test_a_report_that_names_a_version_of_its_request_belongs_to_it(hub: Hub) -> None:
    asked(hub)
    with pytest.raises(RuleBroken, match="Legal steps"):
        put(hub, PARTNER, opinion(hub, basedOn=[{"reference": "ServiceRequest/r/_history/1"}]))


def test_images_may_be_matched_again_by_their_own_wire(hub: Hub) -> None:
    asked(hub)
    asked(hub, "s", 1)
    put(hub, hubs.DEVICE, of_request("ImagingStudy", "ServiceRequest/r"))
    put(hub, hubs.DEVICE, of_request("ImagingStudy", "ServiceRequest/s"))
    assert version(hub, "ImagingStudy/mv") == 2


# --- the directory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "party",
    [
        "PractitionerRole/moreau",
        "Practitioner/moreau",
        "HealthcareService/avis-echo",
        "PractitionerRole/garnier",
        "Practitioner/garnier",
        "Organization/ch-demo",
    ],
)
def test_who_takes_part_in_a_case_stays_in_the_directory_until_it_is_over(hub: Hub, party: str) -> None:
    asked(hub, state="in_progress")
    with pytest.raises(Conflict, match="ServiceRequest/r, which is not over") as told:
        delete(hub, ADMIN, party)
    assert told.value.status == 409
    put(hub, SYSTEM, read(hub, party) | {"active": False})
    put(hub, SYSTEM, read(hub, party) | {"active": True})
    put(hub, EXPERT, opinion(hub))
    delete(hub, ADMIN, party)
