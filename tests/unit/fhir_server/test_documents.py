"""The documents of a final report: one value rendered once, frozen, stored, and the same on every road."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from typing import Any

import hubs
import pypdf
import pytest
from hubs import EXPERT, PARTNER, REQUESTER, SYSTEM, directory, found, hub_on, message, opinion, put, read

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.desk import outbox
from fhir_server.errors import Invalid
from fhir_server.store.engine import Store
from hl7v2.message import parse
from mappers.fhir_to_cda import check_header
from mssante import envelope
from profiles.validator.structure import check

Resource = dict[str, Any]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


def told(hub: Hub) -> None:
    """A case with a question, an answer and a final report."""
    hubs.asked(hub, state="on-hold")
    put(hub, REQUESTER, message("a", text="Le terme est de 22 SA.", answers="r-question"))
    put(hub, EXPERT, opinion(hub, conclusion="Contrôle à 4 semaines."))


def contents(hub: Hub) -> dict[str, bytes]:
    """Media type -> bytes of the stored report."""
    document = found(hub, "DocumentReference", "related=DiagnosticReport/r")[0]
    out = {}
    for content in document["content"]:
        attachment = content["attachment"]
        binary = read(hub, attachment["url"])
        data = base64.b64decode(binary["data"])
        assert binary["contentType"] == attachment["contentType"]
        assert (len(data), base64.b64encode(hashlib.sha1(data).digest()).decode()) == (
            attachment["size"],
            attachment["hash"],
        )
        out[attachment["contentType"]] = data
    return out


def payloads(hub: Hub) -> dict[str, bytes]:
    with hub.store.read(SYSTEM) as snapshot:
        return {one.lane: snapshot.payload(one.id) for one in snapshot.deliveries()}


def pages(pdf: bytes) -> str:
    return " ".join(" ".join(page.extract_text().split()) for page in pypdf.PdfReader(io.BytesIO(pdf)).pages)


def test_the_pdf_names_both_professionals_the_patient_the_consent_and_the_exchange(hub: Hub) -> None:
    told(hub)
    text = pages(contents(hub)["application/pdf"])
    for word in (
        "MOREAU", "99000000011", "GARNIER", "99000000037", "MARTIN-TEST", people.ins(people.PATIENTS[0][5])[:5],
        "Quel est le terme ?", "Le terme est de 22 SA.", "Contrôle à 4 semaines.", "Mesure à vérifier",
    ):  # fmt: skip
        assert word in text, word
    assert "consentement" in text.lower() or "accord" in text.lower()


def test_the_cda_has_the_header_the_national_rules_ask_for(hub: Hub) -> None:
    told(hub)
    clinical = contents(hub)["text/xml"]
    assert [finding for finding in check_header(clinical) if finding.severity == "error"] == []
    assert b"85208-7" in clinical
    assert base64.b64encode(contents(hub)["application/pdf"])[:60] in clinical.replace(b"\n", b"")


def test_every_road_carries_the_very_same_documents(hub: Hub) -> None:
    told(hub)
    stored, sent = contents(hub), payloads(hub)
    for lane in ("Endpoint/dpi", "Endpoint/pfi"):
        assert base64.b64encode(stored["text/xml"]) in parse(sent[lane]).raw
    mail = envelope.read(next(raw for lane, raw in sent.items() if lane.startswith("mssante:")))
    assert mail.refused is None and mail.xdm is not None
    assert [document.content for document in mail.xdm.documents] == [stored["text/xml"]]
    assert [a.content for a in mail.attachments if a.type == "application/pdf"] == [stored["application/pdf"]]


def test_the_record_of_the_documents_is_valid_fhir_and_points_back(hub: Hub) -> None:
    told(hub)
    document = found(hub, "DocumentReference", "related=ServiceRequest/r")[0]
    assert check(document) == []
    assert document["subject"]["reference"] == "Patient/patient-01"
    assert document["masterIdentifier"]["value"] == f"urn:uuid:{document['id']}"
    assert document["author"][0]["reference"] == "PractitionerRole/garnier"


def test_reports_of_two_cases_share_no_document(hub: Hub) -> None:
    for key in ("r", "s"):
        hubs.asked(hub, key, 0, "in_progress")
        put(hub, EXPERT, opinion(hub, key))
    documents = found(hub, "DocumentReference")
    urls = {content["attachment"]["url"] for document in documents for content in document["content"]}
    assert (len(documents), len(urls), len(hubs.deliveries(hub))) == (2, 4, 6)


def test_an_oral_consent_is_told_as_what_it_is(hub: Hub) -> None:
    bare = {name: value for name, value in hubs.request().items() if name != "supportingInfo"}
    put(hub, REQUESTER, bare | {"extension": [{"url": hubs.CONSENT_URL, "valueBoolean": True}]})
    hubs.take(hub)
    put(hub, EXPERT, opinion(hub))
    assert "consentement" in pages(contents(hub)["application/pdf"]).lower()


@pytest.mark.parametrize(
    ("reference", "missing", "place"),
    [
        ("Practitioner/garnier", "identifier", "identifier"),
        ("Practitioner/moreau", "name", "name"),
        ("Patient/patient-01", "gender", "gender"),
    ],
)
def test_what_a_document_cannot_do_without_is_named(hub: Hub, reference: str, missing: str, place: str) -> None:
    hubs.asked(hub, state="in_progress")
    put(hub, PARTNER, {name: value for name, value in read(hub, reference).items() if name != missing})
    with pytest.raises(Invalid) as refused:
        put(hub, EXPERT, opinion(hub))
    assert refused.value.status == 422
    assert place in refused.value.issues[0].expression
    assert (hubs.deliveries(hub), found(hub, "DocumentReference")) == ([], [])


def test_a_site_without_a_mailbox_says_so(open_url: Callable[..., Store], sqlite_url: str) -> None:
    hub = directory(hub_on(open_url(sqlite_url), site={"mailboxes": []}))
    hubs.asked(hub, state="in_progress")
    with pytest.raises(Invalid, match="no MSSanté mailbox to send from"):
        put(hub, EXPERT, opinion(hub))


@pytest.mark.parametrize("words", ["<script>alert(1)</script> & \"x\" 'y'", "a\tb\nc", "\U0001f600 é ﷺ", "x" * 20_000])
def test_any_words_of_an_expert_can_be_rendered(hub: Hub, words: str) -> None:
    hubs.asked(hub, state="in_progress")
    put(hub, EXPERT, opinion(hub, conclusion=words))
    assert contents(hub)["application/pdf"].startswith(b"%PDF-1.4")
    assert len(hubs.deliveries(hub)) == 3


def test_deliveries_are_found_by_stay_and_by_structure(hub: Hub) -> None:
    stay = {"resourceType": "Encounter", "id": "s", "status": "in-progress", "class": {"code": "IMP"}}
    number = {"identifier": [{"value": "V2026-1"}], "subject": {"reference": "Patient/patient-01"}}
    put(hub, PARTNER, stay | number)
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(encounter={"reference": "Encounter/s"}))
    hubs.take(hub)
    put(hub, EXPERT, opinion(hub))
    rows = outbox.outbox_list(hub.store, {"iep": "V2026-1"})
    assert len(rows) == len(hubs.deliveries(hub)) > 1
    (finess,) = {row["finess"] for row in rows}
    for one in finess.split(", "):
        assert len(outbox.outbox_list(hub.store, {"finess": one})) == len(rows)
    assert outbox.outbox_list(hub.store, {"iep": "V2026-2"}) == []
