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
from fhir_server.delivery.intake_patients import patient_of
from fhir_server.delivery.intake_stays import encounter_of
from fhir_server.patients.identity import identifier_query
from fhir_server.teleexpertise.case import is_case
from fhir_server.teleexpertise.freezing import VISIBILITY
from mappers.fhir_to_hl7v2_segments import HIDDEN
from mappers.fhir_to_report import own_root
from mappers.french import VISIBILITY as HIDES
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
            _withdraw(draft, _latest(arrival, draft, said, said.identifier, patient, "TXA^1^12"), taken)
        else:
            _store(arrival, draft, said, patient, taken)
        taken.told(mapped.losses)
        return taken

    return decide


def _store(arrival: Arrival, draft: Draft, said: DocumentMessage, patient: str, taken: Taken) -> None:
    if _held(draft, said.identifier):
        text = f"the document {said.identifier[1][:60]} is here already; a new version has its own number (T10)"
        raise rejected(text, "TXA^1^12", "205")
    whole = dict(said.reference.resource)
    key = stable_id("document", *said.identifier)
    if said.action == "replace" and said.parent:
        old = _latest(arrival, draft, said, said.parent, patient, "TXA^1^13")
        draft.put({**old, "status": "superseded"})
        whole["relatesTo"] = [{"code": "replaces", "target": {"reference": f"DocumentReference/{old['id']}"}}]
    enclosed = [one for one in (said.document, *said.others) if one]
    contents = [content_of(draft, one, _title(whole)) for one in enclosed] or whole["content"]
    if said.letter:
        contents.append(_letter(said.letter.subject, said.letter.text))
        whole.setdefault("description", said.letter.subject)
    whole |= {"id": key, "subject": {"reference": patient}, "content": contents, "custodian": arrival.organization}
    labels = [code for name, code in HIDDEN.items() if said.flags.get(name)]
    if labels:
        coded = [{"coding": [{"system": VISIBILITY, "code": code, "display": HIDES[code]}]} for code in labels]
        whole["securityLabel"] = coded
    context = dict(whole.get("context", {}))
    stay = encounter_of(draft, said.encounter_ids, patient, taken)
    context |= {"encounter": [stay["encounter"]]} if stay else {}
    context["related"] = linked(arrival, draft, context.get("related", []), patient, taken)
    whole["context"] = {name: value for name, value in context.items() if value}
    if not whole["context"]:
        del whole["context"]
    draft.put(whole)


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


def _held(draft: Draft, identifier: tuple[str, str]) -> list[Resource]:
    return draft.find("DocumentReference", identifier_query(*identifier))


def _latest(
    arrival: Arrival, draft: Draft, said: DocumentMessage, identifier: tuple[str, str], patient: str, place: str
) -> Resource:
    """The version a message replaces or withdraws. Raises Rejected with 900, 901 or 904."""
    held = _held(draft, identifier)
    if not held:
        raise rejected(f"no document {identifier[1][:60]} is known here", place, "204", "900")
    current = [one for one in held if one.get("status") == "current"]
    if not current:
        text = f"document {identifier[1][:60]} is {held[0].get('status')}: it is not the latest version here"
        raise rejected(text, place, "207", "900")
    if current[0].get("subject", {}).get("reference") != patient:
        raise rejected(f"document {identifier[1][:60]} is that of another patient", place, "207", "904")
    if current[0].get("custodian") != arrival.organization and not _authors(current[0]) & _authors(
        said.reference.resource
    ):
        text = f"{arrival.site.name} neither wrote nor sent document {identifier[1][:60]}; its author changes it"
        raise rejected(text, place, "207", "901")
    return current[0]


def _authors(reference: Resource) -> set[tuple[str, str]]:
    """The authors of a document that have an identifier, as (system, value)."""
    said = (author.get("identifier", {}) for author in reference.get("author", ()))
    return {(str(one.get("system", "")), str(one["value"])) for one in said if one.get("value")}


def _withdraw(draft: Draft, held: Resource, taken: Taken) -> None:
    draft.put({**held, "status": "entered-in-error"})
    taken.notes.append(f"DocumentReference/{held['id']} was withdrawn")


def find_request(
    arrival: Arrival, draft: Draft, ids: Iterable[tuple[str, str]], patient: str, place: str
) -> Resource | None:
    """The request under one of its numbers, or the téléexpertise under our own as we tell it. Raises Rejected (207,
    900) when it is that of another patient.

    A number without an authority (a bare EI-1) is looked for among this patient's requests alone.
    """
    own = {f"urn:oid:{own_root(site)}" for site in arrival.hub.sites.all}
    for system, value in ids:
        found = draft.find("ServiceRequest", identifier_query(system, value))
        if not found and system in own:
            ours = draft.get(f"ServiceRequest/{value}") or {}
            found = [ours] if is_case(ours) else []
        mine = [one for one in found if one.get("subject", {}).get("reference") == patient]
        if mine:
            return mine[0]
        if found and system:
            text = f"the request {value[:60]} is that of another patient; nothing is attached to it"
            raise rejected(text, place, "207", "900")
    return None


def linked(arrival: Arrival, draft: Draft, named: list[Resource], patient: str, taken: Taken) -> list[Resource]:
    """References by order number turned into references to the stored request where it is known."""
    out = []
    for one in named:
        identifier = one.get("identifier", {})
        ids = [(str(identifier.get("system", "")), str(identifier.get("value", "")))]
        request = find_request(arrival, draft, ids, patient, "ORC^1^2")
        if request is None:
            out.append(one)
            taken.notes.append(f"ORC-2: no request {ids[0][1][:60]} is known here; it is kept as a number")
            continue
        out.append({**one, "reference": f"ServiceRequest/{request['id']}"})
        if is_case(request):
            taken.keys.append(("case", f"ServiceRequest/{request['id']}"))
    return out
