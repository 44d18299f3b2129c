"""A final report becomes documents and deliveries, all frozen before the transaction that stores them.

PDF/A, CDA (TLM-CR), the HL7 messages and the mail say the same thing because they are rendered from one value.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from fhir_server.config import version
from fhir_server.context import instant, new_delivery_id
from fhir_server.errors import Invalid
from fhir_server.store.lanes import NewDelivery
from fhir_server.teleexpertise import distribution
from fhir_server.teleexpertise.case import SERVER, Context
from fhir_server.teleexpertise.consent import consent_of
from fhir_server.teleexpertise.distribution import Destination, Plan
from fhir_server.teleexpertise.parties import candidates
from fhir_server.teleexpertise.readiness import named, professional, site_of
from mappers import fhir_to_hl7v2, fhir_to_xdm
from mappers.fhir_to_cda import cda
from mappers.fhir_to_hl7v2_plain import plain
from mappers.fhir_to_pdf import pdf
from mappers.fhir_to_report import Incomplete, Report, Sources, report
from mappers.identity import Mailbox, Site
from mssante import envelope
from mssante.letter import Address

Resource = dict[str, Any]
LOINC = "http://loinc.org"
HANDED_OVER = "urn:passerelle:remise"
"""Task.businessStatus.coding: `partielle` when somebody does not get the report, `aucune` when nobody does."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a final report adds to its transaction; `notes` tell by report who does not get it and why."""

    resources: tuple[Resource, ...] = ()
    deliveries: tuple[NewDelivery, ...] = ()
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def render(opinion: Resource, request_id: str, ctx: Context) -> Rendered:
    """Render a request's final DiagnosticReport. Raises Invalid (422) naming what a document cannot do without."""
    request = ctx.view.get(f"ServiceRequest/{request_id}") or {}
    patient = ctx.view.get(request["subject"]["reference"]) or {}
    site = site_of(patient, ctx.sites)
    try:
        value = report(_sources(opinion, request, patient, site, ctx)).value
    except Incomplete as missing:
        raise Invalid(missing.text, expression=missing.expression, code="required") from missing
    document = pdf(value)
    clinical = cda(value, document, site)
    found = candidates(request, opinion, patient, ctx.view, ctx.sites)
    plan = distribution.plan(value, patient, found, request["requester"]["reference"], ctx.sites, ctx.settings)
    keys = _keys(value, request, ctx)
    frozen = []
    for destination in plan.destinations:
        try:
            frozen.append(_delivery(destination, value, document, clinical, site, keys, opinion, ctx))
        except ValueError as problem:
            text = f"the report cannot be written for {destination.display}: {problem}"
            raise Invalid(text, expression="DiagnosticReport", code="value") from problem
    records = _records(value, opinion, request, document, clinical, ctx)
    notes = {f"DiagnosticReport/{opinion['id']}": tuple(shut.text for shut in plan.shut)}
    return Rendered((*records, *told(request, plan, ctx)), tuple(frozen), notes)


def told(request: Resource, plan: Plan, ctx: Context, *, report: bool = True) -> tuple[Resource, ...]:
    """The case's Task with what did not reach somebody: a note each, and for its report a coded word that finds such
    cases."""
    task = ctx.view.get(f"Task/{request['id']}")
    if task is None or not plan.shut:
        return ()
    notes = [{"authorString": SERVER, "time": instant(ctx.now), "text": shut.text} for shut in plan.shut]
    out = task | {"note": [*task.get("note", ()), *notes]}
    if not report:
        return (out,)
    code = "partielle" if plan.destinations else "aucune"
    out["businessStatus"] = task.get("businessStatus", {}) | {"coding": [{"system": HANDED_OVER, "code": code}]}
    if not plan.destinations:
        out["statusReason"] = {"text": "Le compte rendu n'a de chemin vers personne ; voir les notes."}
    return (out,)


def not_reached(task: Resource) -> list[str]:
    """What this server noted on a Task: who did not get the report and why; nothing for any other resource."""
    notes = task.get("note", ()) if task.get("resourceType") == "Task" else ()
    return [str(note.get("text", "")) for note in notes if note.get("authorString") == SERVER]


def _sources(opinion: Resource, request: Resource, patient: Resource, site: Site, ctx: Context) -> Sources:
    expert = (opinion.get("resultsInterpreter") or opinion.get("performer") or [{}])[0].get("reference", "")
    requester_role, requester, requester_organization = professional(request["requester"]["reference"], ctx)
    expert_role, expert_person, expert_organization = professional(expert, ctx)
    task = ctx.view.get(f"Task/{request['id']}") or {}
    talk = ctx.view.find("Communication", f"based-on=ServiceRequest/{request['id']}")
    studies = ctx.view.find("ImagingStudy", f"basedon=ServiceRequest/{request['id']}")
    consent = consent_of(request, ctx)
    started = task.get("executionPeriod", {}).get("start")
    return Sources(
        service_request=request,
        diagnostic_report=opinion,
        patient=patient,
        requester_role=requester_role,
        requester=requester,
        requester_organization=requester_organization,
        expert_role=expert_role,
        expert=expert_person,
        expert_organization=expert_organization,
        site=site,
        document_id=str(uuid.uuid4()),
        set_id=set_id(ctx.settings.installation, request["id"]),
        consent=consent if consent and consent.get("id") else None,
        communications=tuple((message, _author(message, ctx)) for message in talk),
        imaging_studies=tuple(studies),
        started_at=_moment(started),
        ended_at=ctx.now,
        signed_at=ctx.now,
        consent_extension=ctx.settings.extension_patient_consent,
    )


def set_id(installation: str, request_id: str) -> str:
    """The UUID that all versions of a request's report share: the same request id elsewhere gives another."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:passerelle:installation:{installation}:report:{request_id}"))


def _moment(text: object) -> datetime | None:
    """A FHIR dateTime with its zone; None for a date alone."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _author(message: Resource, ctx: Context) -> str:
    sender = message.get("sender", {})
    if sender.get("display"):
        return str(sender["display"])
    _, person, _ = professional(sender.get("reference", ""), ctx)
    return named(person) or "auteur inconnu"


def _keys(value: Report, request: Resource, ctx: Context) -> tuple[tuple[str, str], ...]:
    """What the deliveries of a report can be found by in the outbox."""
    keys = [
        ("case", f"ServiceRequest/{request['id']}"),
        ("patient", value.patient.reference),
        ("rpps", value.expert.rpps),
    ]
    if value.patient.ins:
        keys.append(("ins", value.patient.ins[0]))
    if value.accession:
        keys.append(("accession", value.accession))
    keys += [("ipp", local[0]) for local in value.patient.local_ids]
    stay = ctx.view.get(request.get("encounter", {}).get("reference", "")) or {}
    keys += [("iep", str(number["value"])) for number in stay.get("identifier", ()) if number.get("value")]
    keys += [("finess", who.org.finess) for who in (value.expert, value.requester) if who.org.finess]
    return tuple(dict.fromkeys(keys))


def _delivery(
    destination: Destination,
    value: Report,
    document: bytes,
    clinical: bytes,
    site: Site,
    keys: tuple[tuple[str, str], ...],
    opinion: Resource,
    ctx: Context,
) -> NewDelivery:
    key = new_delivery_id()
    if destination.kind == "mail":
        payload, media = _mail(destination, key, value, document, clinical, site, ctx), "message/rfc822"
        endpoint = f"mssante:{destination.mailbox}?from={_sender(site).address}"
    else:
        payload = _message(destination, key, value, document, clinical, site, ctx)
        media, endpoint = "x-application/hl7-v2+er7", destination.endpoint
    return NewDelivery(
        lane=destination.lane,
        endpoint=endpoint,
        protocol=destination.kind,
        payload=payload,
        id=key,
        media_type=media,
        title=destination.display,
        keys=keys,
        patient=value.patient.reference,
        case=f"ServiceRequest/{value.request_id}",
        document=f"DiagnosticReport/{opinion['id']}",
        second_leg=destination.second_leg,
        on_stuck="skip",
    )


def _message(
    destination: Destination, key: str, value: Report, document: bytes, clinical: bytes, site: Site, ctx: Context
) -> bytes:
    """The HL7 message in the flavour the Endpoint asks for."""
    flavour = distribution.FLAVOURS[destination.flavour]
    to: dict[str, Any] = {
        "site": site,
        "control_id": key,
        "now": ctx.now,
        "receiving_application": destination.application,
        "receiving_facility": destination.facility,
    }
    match flavour.message:
        case "mdm":
            return fhir_to_hl7v2.mdm(
                value, clinical, profile=flavour.profile or "lps-1.1", dmp=destination.dmp, **to
            ).value
        case "oru":
            return fhir_to_hl7v2.oru(value, clinical, dmp=destination.dmp, **to).value
        case "plain-mdm":
            return plain(value, document, kind="MDM", **to).value
    return plain(value, document, kind="ORU", **to).value


def _sender(site: Site) -> Mailbox:
    box = next((box for box in site.mailboxes if box.kind == "APP"), None) or next(iter(site.mailboxes), None)
    if box is None:
        raise Invalid(
            f"{site.name} has no MSSanté mailbox to send from; add [[sites.mailboxes]] to the settings",
            expression="Organization.telecom",
        )
    return box


def _mail(
    destination: Destination, key: str, value: Report, document: bytes, clinical: bytes, site: Site, ctx: Context
) -> bytes:
    box = _sender(site)
    submission = str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:passerelle:submission:{key}"))
    software = fhir_to_xdm.Application(version=version(), vendor=ctx.settings.product_vendor)
    files = fhir_to_xdm.files(
        value, site, cda=clinical, submission_id=submission, submitted_at=ctx.now, application=software
    )
    us = Address(box.address, box.display)
    return envelope.mail(
        fhir_to_xdm.letter(value, site),
        delivery_id=key,
        date=ctx.now.astimezone(ZoneInfo(site.time_zone)),
        sender=us,
        recipients=(Address(destination.mailbox),),
        product=ctx.settings.mail_product,
        xdm=envelope.xdm_zip(files, at=ctx.now),
        pdf=document,
        reply_to=us,
        notify_to=us,
    )


def _records(
    value: Report, opinion: Resource, request: Resource, document: bytes, clinical: bytes, ctx: Context
) -> tuple[Resource, ...]:
    """The documents as Binary and DocumentReference, so that they can be read again by FHIR."""
    out: list[Resource] = []
    contents = []
    for data, media, title in ((document, "application/pdf", "PDF"), (clinical, "text/xml", "CDA")):
        digest = hashlib.sha256(data).hexdigest()
        encoded = base64.b64encode(data).decode("ascii")
        binary = {"resourceType": "Binary", "id": digest[:40], "contentType": media, "data": encoded}
        out.append(binary)
        attachment: dict[str, Any] = {
            "contentType": media,
            "language": "fr-FR",
            "url": f"Binary/{binary['id']}",
            "size": len(data),
            "hash": base64.b64encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode("ascii"),
            "title": f"{value.title} ({title})",
            "creation": instant(value.signed_at),
        }
        contents.append({"attachment": attachment})
    related = [{"reference": f"DiagnosticReport/{opinion['id']}"}, {"reference": f"ServiceRequest/{request['id']}"}]
    out.append(
        {
            "resourceType": "DocumentReference",
            "id": value.id,
            "masterIdentifier": {"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{value.id}"},
            "status": "current",
            "docStatus": "final",
            "type": {"coding": [{"system": LOINC, "code": value.type.code, "display": value.type.display}]},
            "subject": request["subject"],
            "date": instant(value.signed_at),
            "author": opinion.get("resultsInterpreter", []),
            "content": contents,
            "context": {"related": related},
        }
    )
    return tuple(out)
