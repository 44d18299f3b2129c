"""However much is written in front of it, what protects a case or a person is found."""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Callable
from operator import methodcaller
from typing import Any

import hubs
import pypdf
import pytest
from hubs import ADMIN, EXPERT, PARTNER, SYSTEM, asked, delete, directory, hub_on, message, opinion, post, put, read

from fhir_server import pending
from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.errors import Conflict, RuleBroken, TooLarge
from fhir_server.search.index import rows
from fhir_server.store.engine import Store
from mappers.ins import key_of

Resource = dict[str, Any]
MANY = pending.FOUND + 5
NIR, NIA = "urn:oid:1.2.250.1.213.1.4.8", "urn:oid:1.2.250.1.213.1.4.9"
DENIED = {"provision": {"type": "deny"}}


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def crowd(hub: Hub, like: Resource, **more: Any) -> None:
    """Newer resources of the same kind, each a little different."""
    put(hub, SYSTEM, *(copy.deepcopy(like) | {"id": f"decoy{number}"} | more for number in range(MANY)))


def test_a_patient_with_a_case_is_not_deleted_behind_newer_requests(hub: Hub) -> None:
    asked(hub)
    plain = {"resourceType": "ServiceRequest", "status": "active", "intent": "order"}
    crowd(hub, plain, subject={"reference": "Patient/patient-01"})
    with pytest.raises(Conflict, match="ServiceRequest/r"):
        delete(hub, ADMIN, "Patient/patient-01")


def test_a_refusal_counts_behind_newer_permissions(hub: Hub) -> None:
    permitted = people.consent("r", 0) | {"dateTime": "2026-11-01T08:00:00Z"}
    put(hub, PARTNER, permitted, permitted | {"id": "no", "dateTime": "2026-11-10T08:00:00Z"} | DENIED)
    crowd(hub, permitted)
    with pytest.raises(RuleBroken, match="no consent"):
        put(hub, PARTNER, hubs.request("r"))


def test_a_consent_in_use_stays_behind_newer_provenance(hub: Hub) -> None:
    asked(hub)
    told = {
        "resourceType": "Provenance",
        "target": [{"reference": "Patient/patient-01"}],
        "recorded": "2026-11-22T00:00:00Z",
        "agent": [{"who": {"display": "x"}}],
        "entity": [{"role": "source", "what": {"reference": "Consent/r"}}],
    }
    crowd(hub, told)
    with pytest.raises(RuleBroken, match="withdraw"):
        put(hub, PARTNER, read(hub, "Consent/r") | DENIED)


def documents(hub: Hub) -> str:
    """The Binary with the PDF of the report of `r`."""
    (record,) = hubs.found(hub, "DocumentReference", "related=DiagnosticReport/r")
    return str(record["content"][0]["attachment"]["url"])


def test_the_documents_of_a_report_stay_behind_newer_records(hub: Hub) -> None:
    asked(hub, state="completed")
    url = documents(hub)
    crowd(hub, {"resourceType": "DocumentReference", "status": "current", "content": [{"attachment": {"url": url}}]})
    with pytest.raises(RuleBroken, match="rests on"):
        put(hub, PARTNER, read(hub, url) | {"data": base64.b64encode(b"x").decode()})
    with pytest.raises(RuleBroken, match="deleting a Binary"):
        delete(hub, ADMIN, url)


def test_an_attachment_stays_behind_newer_messages(hub: Hub) -> None:
    put(hub, EXPERT, {"resourceType": "Binary", "id": "b", "contentType": "image/png", "data": "eA=="})
    asked(hub, state="in_progress")
    put(hub, EXPERT, message("q") | {"payload": [{"contentAttachment": {"url": "Binary/b"}}]})
    outside = {"resourceType": "Communication", "status": "completed"}
    crowd(hub, outside, payload=[{"contentAttachment": {"url": "Binary/b"}}])
    with pytest.raises(RuleBroken, match="deleting a Binary"):
        delete(hub, ADMIN, "Binary/b")


@pytest.mark.parametrize("party", ["PractitionerRole/moreau", "Practitioner/moreau", "HealthcareService/avis-echo"])
def test_who_takes_part_stays_behind_newer_requests_and_roles(hub: Hub, party: str) -> None:
    asked(hub)
    plain = {"resourceType": "ServiceRequest", "status": "active", "intent": "order"}
    about = {"subject": {"reference": "Patient/patient-01"}, "requester": {"reference": "PractitionerRole/moreau"}}
    crowd(hub, plain, **about, performer=[{"reference": "HealthcareService/avis-echo"}])
    crowd(hub, {"resourceType": "PractitionerRole"}, practitioner={"reference": "Practitioner/moreau"})
    with pytest.raises(Conflict, match="not over"):
        delete(hub, ADMIN, party)


def test_a_case_does_not_begin_on_a_report_behind_newer_void_ones(hub: Hub) -> None:
    based = {"basedOn": [{"reference": "ServiceRequest/r"}], "code": {"text": "x"}}
    about = {"resourceType": "DiagnosticReport", "subject": {"reference": "Patient/patient-01"}}
    put(hub, PARTNER, about | based | {"id": "there", "status": "final"})
    crowd(hub, about | based, status="entered-in-error")
    with pytest.raises(RuleBroken, match="DiagnosticReport/there is based on"):
        asked(hub)


def test_every_message_of_a_case_comes_into_its_report(hub: Hub) -> None:
    asked(hub, state="in_progress")
    for number in range(pending.FOUND // 2 + 2):
        put(hub, EXPERT, message(f"q{number}", text=f"Question numero {number}."))
        put(hub, PARTNER, message(f"a{number}", text=f"Reponse {number}.", answers=f"q{number}"))
    put(hub, EXPERT, opinion(hub))
    pdf = base64.b64decode(read(hub, documents(hub))["data"])
    text = " ".join(" ".join(page.extract_text().split()) for page in pypdf.PdfReader(io.BytesIO(pdf)).pages)
    for number in range(pending.FOUND // 2 + 2):
        assert f"Question numero {number}." in text and f"Reponse {number}." in text


def person(number: int, **more: Any) -> Resource:
    return people.patient(0) | more | {"id": f"p{number}"}


def ins(number: int, system: str = people.INS_SYSTEM) -> Resource:
    body = f"29402991{number:05}"
    return {"use": "official", "system": system, "value": body + key_of(body)}


def test_a_known_ins_is_found_behind_records_that_keep_it_as_old(hub: Hub) -> None:
    mine = ins(1, NIA)
    put(hub, PARTNER, person(1, identifier=[mine]))
    names = [{"use": "official", "family": "LEURRE-TEST", "given": ["ANNE"]}]
    decoy = person(0, identifier=[ins(2, NIR), mine | {"use": "old"}], name=names)
    with pytest.raises(Conflict, match="Patient/p1, a stored Patient"):
        put(hub, PARTNER, decoy)
    with pytest.raises(Conflict, match="Patient/p1, a stored Patient"):
        post(hub, PARTNER, decoy)
    for number in range(MANY):  # as an earlier release would have taken them
        content = decoy | {"id": f"decoy{number}", "identifier": [ins(100 + number, NIR), mine | {"use": "old"}]}
        hub.store.write(SYSTEM, methodcaller("create", content, rows(content)))
    assert post(hub, PARTNER, person(1, identifier=[mine])).id == "p1"


def test_a_local_number_is_found_behind_records_that_keep_it_as_old(hub: Hub) -> None:
    mine = {"system": people.IPP_SYSTEM, "value": "IPP-X"}
    plain = {name: value for name, value in people.patient(0).items() if name != "extension"}
    put(hub, PARTNER, plain | {"id": "p1", "identifier": [mine]})
    crowd(hub, plain, identifier=[mine | {"use": "old"}])
    assert post(hub, PARTNER, plain | {"identifier": [mine]}).id == "p1"


def test_what_is_too_much_to_decide_on_is_refused_and_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MOST_FOUND", 10)
    crowd(hub, people.consent("r", 0))
    with pytest.raises(TooLarge, match="more than 10 Consent match") as told:
        asked(hub)
    assert (told.value.status, told.value.issues[0].code) == (413, "too-costly")


def test_too_many_who_keep_an_identifier_are_refused_with_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MOST_FOUND", 10)
    mine = {"system": people.IPP_SYSTEM, "value": "IPP-X"}
    plain = {name: value for name, value in people.patient(0).items() if name != "extension"}
    crowd(hub, plain, identifier=[mine | {"use": "old"}])
    with pytest.raises(TooLarge, match="more than 10 Patient match") as told:
        post(hub, PARTNER, plain | {"identifier": [mine]})
    listed = told.value.diagnostics.partition("GET Patient?")[2].partition(",")[0]
    assert len(hubs.found(hub, "Patient", listed)) > 10, "the search named is one that can be sent"
    assert "send this again" in told.value.diagnostics
