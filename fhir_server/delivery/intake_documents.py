"""MDM and enclosed documents: a DocumentReference with its bytes, its versions, and the request it belongs to.

Hides where bytes are kept and when a version may be replaced or withdrawn: only the latest one, of the same patient, by
its author or by the establishment it came from (CI-SIS business codes 900, 901 and 904).

Sources: CI-SIS "Transmission au LPS d'un document CDA provenant d'un courriel MSSanté" 1.1, error codes 900 to 906;
HL7 v2-to-FHIR MDM_T02; https://hl7.org/fhir/R4/documentreference.html.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Iterable
from typing import Any

from fhir_server.delivery.arrivals import Arrival, Decide, Draft, Taken, rejected
from fhir_server.delivery.intake_labels import Flags, document_labelled
from fhir_server.delivery.intake_patients import patient_of
from fhir_server.delivery.intake_stays import encounter_of
from fhir_server.delivery.order_numbers import Number, carries, given, number_of
from fhir_server.patients.identity import identifier_query
from fhir_server.teleexpertise.case import is_case
from mappers.fhir_to_report import own_root
from mappers.hl7v2_codes_to_fhir import Enclosed
from mappers.hl7v2_documents_to_fhir import DocumentMessage, document

Resource = dict[str, Any]
Ids = tuple[tuple[str, str], ...]


def stable_id(*parts: str) -> str:
    """The same id for the same numbers, so that a correction is a new version of what it corrects."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "urn:passerelle:hl7v2:" + "|".join(parts)))


def mdm(arrival: Arrival) -> Decide:
    """What an MDM^T02, T10 or T04 means. Raises Refused as the mapper does; Rejected when it does not fit."""
    mapped = document(arrival.msg, arrival.site)
    said = mapped.value

    def decide(draft: Draft) -> Taken:
        taken = Taken()
        patient = patient_of(arrival, draft, said.patient, taken, create=False)
        if said.action == "delete":
            number = number_of(_named(arrival, said.reference.resource["masterIdentifier"]))
            _withdraw(draft, _latest(arrival, draft, said, number, patient, "TXA^1^12"), said.flags, taken)
        else:
            _store(arrival, draft, said, patient, taken)
        taken.told(mapped.losses)
        return taken

    return decide


def _store(arrival: Arrival, draft: Draft, said: DocumentMessage, patient: str, taken: Taken) -> None:
    whole = dict(said.reference.resource)
    whole["masterIdentifier"] = _named(arrival, whole["masterIdentifier"])
    number = number_of(whole["masterIdentifier"])
    if _held(draft, number, patient):
        text = f"the document {number.value[:60]} is here already; a new version has its own number (T10)"
        raise rejected(text, "TXA^1^12", "205")
    key = stable_id("document", *number.parts, *([] if number.system else [patient]))
    old: Resource = {}
    if said.action == "replace" and said.parent:
        parent = number_of(_named(arrival, whole["relatesTo"][0]["target"]["identifier"]))
        old = _latest(arrival, draft, said, parent, patient, "TXA^1^13")
        draft.put({**old, "status": "superseded"})
        whole["relatesTo"] = [{"code": "replaces", "target": {"reference": f"DocumentReference/{old['id']}"}}]
    enclosed = [one for one in (said.document, *said.others) if one]
    contents = [content_of(draft, one, _title(whole)) for one in enclosed] or whole["content"]
    if said.letter:
        contents.append(_letter(said.letter.subject, said.letter.text))
        whole.setdefault("description", said.letter.subject)
    whole |= {"id": key, "subject": {"reference": patient}, "content": contents, "custodian": arrival.organization}
    context = dict(whole.get("context", {}))
    stay = encounter_of(draft, said.encounter_ids, patient, taken)
    context |= {"encounter": [stay["encounter"]]} if stay else {}
    context["related"] = linked(arrival, draft, context.get("related", []), patient, taken)
    whole["context"] = {name: value for name, value in context.items() if value}
    if not whole["context"]:
        del whole["context"]
    draft.put(document_labelled(whole, said.flags, old.get("securityLabel", ())))


def _title(reference: Resource) -> str:
    coding = (reference.get("type", {}).get("coding") or [{}])[0]
    return str(coding.get("display") or reference.get("description") or "Document")


def _letter(subject: str, text: str) -> Resource:
    data = base64.b64encode(text.encode("utf-8")).decode("ascii")
    return {"attachment": {"contentType": "text/plain; charset=utf-8", "title": subject, "data": data}}


def content_of(draft: Draft, enclosed: Enclosed, title: str) -> Resource:
    """DocumentReference.content of enclosed bytes, which are kept as a Binary under their digest. What somebody wrote
    there that is something else is replaced: what a document names is what was sent."""
    digest = hashlib.sha256(enclosed.data).hexdigest()[:40]
    encoded = base64.b64encode(enclosed.data).decode("ascii")
    kept = draft.get(f"Binary/{digest}") or {}
    told = {"resourceType": "Binary", "id": digest, "contentType": enclosed.media_type, "data": encoded}
    if kept | told != kept:
        draft.put(kept | told)
    sha1 = hashlib.sha1(enclosed.data, usedforsecurity=False).digest()
    attachment = {
        "contentType": enclosed.media_type,
        "url": f"Binary/{digest}",
        "size": len(enclosed.data),
        "hash": base64.b64encode(sha1).decode("ascii"),
        "title": title,
    }
    return {"attachment": attachment}


def _named(arrival: Arrival, identifier: Resource) -> Resource:
    """The number of a document; one without an OID is that of its sender."""
    return given(arrival, [identifier], "")[0]


def _held(draft: Draft, number: Number, patient: str) -> list[Resource]:
    """The documents of a number; one without an OID is its patient's, or surely that of the same sender."""
    found = draft.find("DocumentReference", identifier_query(number.system, number.value))
    if number.system:
        return found
    return [
        one
        for one in found
        if number.agrees(
            number_of(one.get("masterIdentifier", {})), surely=one.get("subject", {}).get("reference") != patient
        )
    ]


def _latest(
    arrival: Arrival, draft: Draft, said: DocumentMessage, number: Number, patient: str, place: str
) -> Resource:
    """The version a message replaces or withdraws. Raises Rejected with 900, 901 or 904."""
    held = _held(draft, number, patient)
    named = number.value[:60]
    if not held:
        raise rejected(f"no document {named} is known here", place, "204", "900")
    current = [one for one in held if one.get("status") == "current"]
    if not current:
        text = f"document {named} is {held[0].get('status')}: it is not the latest version here"
        raise rejected(text, place, "207", "900")
    if current[0].get("subject", {}).get("reference") != patient:
        raise rejected(f"document {named} is that of another patient", place, "207", "904")
    if current[0].get("custodian") != arrival.organization and not _authors(current[0]) & _authors(
        said.reference.resource
    ):
        text = f"{arrival.site.name} neither wrote nor sent document {named}; its author changes it"
        raise rejected(text, place, "207", "901")
    return current[0]


def _authors(reference: Resource) -> set[tuple[str, str]]:
    """The authors of a document that have an identifier, as (system, value)."""
    said = (author.get("identifier", {}) for author in reference.get("author", ()))
    return {(str(one.get("system", "")), str(one["value"])) for one in said if one.get("value")}


def _withdraw(draft: Draft, held: Resource, flags: Flags, taken: Taken) -> None:
    labelled = document_labelled(held, flags, held.get("securityLabel", ()))
    draft.put({**labelled, "status": "entered-in-error"})
    taken.notes.append(f"DocumentReference/{held['id']} was withdrawn")


def find_request(
    arrival: Arrival, draft: Draft, numbers: Iterable[Number], patient: str, place: str
) -> Resource | None:
    """The request under one of its numbers, or the téléexpertise under our own as we tell it. Raises Rejected (207,
    900) when it is that of another patient, or when a number without an OID is that of several."""
    for number in numbers:
        mine = _requests(arrival, draft, number, patient, place)
        if len(mine) > 1 and not number.system:
            text = f"{len(mine)} requests of this patient have the number {number.value[:60]}: say whose it is (EI-2)"
            raise rejected(text, place, "207", "900")
        if mine:
            return mine[0]
    return None


def _requests(arrival: Arrival, draft: Draft, number: Number, patient: str, place: str) -> list[Resource]:
    """The requests of a patient with a number; one without an OID is looked for among this patient's alone."""
    query = identifier_query(number.system, number.value)
    if not number.system:
        held = [one for one in draft.find("ServiceRequest", f"{query}&subject={patient}") if carries(one, number)]
        return [one for one in held if carries(one, number, surely=True)] or held
    found = draft.find("ServiceRequest", query)
    if not found and number.system in {f"urn:oid:{own_root(site)}" for site in arrival.hub.sites.all}:
        ours = draft.get(f"ServiceRequest/{number.value}") or {}
        found = [ours] if is_case(ours) else []
    mine = [one for one in found if one.get("subject", {}).get("reference") == patient]
    if found and not mine:
        text = f"the request {number.value[:60]} is that of another patient; nothing is attached to it"
        raise rejected(text, place, "207", "900")
    return mine


def linked(arrival: Arrival, draft: Draft, named: list[Resource], patient: str, taken: Taken) -> list[Resource]:
    """References by order number turned into references to the stored request where one is known."""
    out = []
    for one in named:
        number = number_of(one.get("identifier", {}))
        held = _requests(arrival, draft, number, patient, "ORC^1^2")
        if not held or (len(held) > 1 and not number.system):
            out.append(one)
            what = "more than one request" if held else "no request"
            taken.notes.append(f"ORC-2: {what} {number.value[:60]} is known here; it is kept as a number")
            continue
        out.append({**one, "reference": f"ServiceRequest/{held[0]['id']}"})
        if is_case(held[0]):
            taken.keys.append(("case", f"ServiceRequest/{held[0]['id']}"))
    return out
