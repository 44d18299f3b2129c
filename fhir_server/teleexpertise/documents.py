"""A final report becomes documents and deliveries, all frozen before the transaction that stores them.

PDF/A, CDA (TLM-CR), the two HL7 messages and the mail say the same thing because they are rendered from one value.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from fhir_server.context import instant, new_delivery_id
from fhir_server.errors import Invalid
from fhir_server.patients.sites import Sites
from fhir_server.store.lanes import NewDelivery
from fhir_server.teleexpertise import distribution
from fhir_server.teleexpertise.consequences import Context, consent_of
from fhir_server.teleexpertise.distribution import Destination
from mappers import fhir_to_hl7v2, fhir_to_xdm
from mappers.fhir_to_cda import cda
from mappers.fhir_to_pdf import pdf
from mappers.fhir_to_report import Incomplete, Report, Sources, report
from mappers.identity import Mailbox, Site
from mssante import envelope
from mssante.letter import Address

Resource = dict[str, Any]
LOINC = "http://loinc.org"


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a final report adds to its transaction."""

    resources: tuple[Resource, ...] = ()
    deliveries: tuple[NewDelivery, ...] = ()


def render(opinion: Resource, request_id: str, ctx: Context) -> Rendered:
    """Render a request's final DiagnosticReport. Raises Invalid (422) naming what a document cannot do without."""
    request = ctx.view.get(f"ServiceRequest/{request_id}") or {}
    patient = ctx.view.get(request["subject"]["reference"]) or {}
    site = _site_of(patient, ctx.sites)
    try:
        value = report(_sources(opinion, request, patient, site, ctx)).value
    except Incomplete as missing:
        raise Invalid(missing.text, expression=missing.expression, code="required") from missing
    document = pdf(value)
    clinical = cda(value, document, site)
    destinations = distribution.plan(value, patient, ctx.view, ctx.sites, ctx.settings)
    keys = _keys(value, request)
    frozen = []
    for destination in destinations:
        try:
            frozen.append(_delivery(destination, value, document, clinical, site, keys, opinion, ctx))
        except ValueError as problem:
            text = f"the report cannot be written for {destination.display}: {problem}"
            raise Invalid(text, expression="DiagnosticReport", code="value") from problem
    return Rendered(_records(value, opinion, request, document, clinical, ctx), tuple(frozen))


def _site_of(patient: Mapping[str, Any], sites: Sites) -> Site:
    """The establishment that knows the patient by a local identifier, else the default one."""
    for identifier in patient.get("identifier", ()):
        owner = sites.of_system(identifier.get("system", ""))
        if owner and owner[1].kind == "PI":
            return owner[0]
    return sites.default


def _sources(opinion: Resource, request: Resource, patient: Resource, site: Site, ctx: Context) -> Sources:
    expert = (opinion.get("resultsInterpreter") or opinion.get("performer") or [{}])[0].get("reference", "")
    requester_role, requester, requester_organization = _professional(request["requester"]["reference"], ctx)
    expert_role, expert_person, expert_organization = _professional(expert, ctx)
    task = ctx.view.get(f"Task/{request['id']}") or {}
    talk = ctx.view.find("Communication", f"based-on=ServiceRequest/{request['id']}")
    studies = ctx.view.find("ImagingStudy", f"basedon=ServiceRequest/{request['id']}")
    consent = consent_of(request, ctx.view, ctx.settings)
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
        set_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:passerelle:report:{request['id']}")),
        consent=consent if consent and consent.get("id") else None,
        communications=tuple((message, _author(message, ctx)) for message in talk),
        imaging_studies=tuple(studies),
        started_at=_moment(started),
        ended_at=ctx.now,
        signed_at=ctx.now,
        consent_extension=ctx.settings.extension_patient_consent,
    )


def _moment(text: object) -> datetime | None:
    """A FHIR dateTime with its zone; None for a date alone."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _professional(reference: str, ctx: Context) -> tuple[Resource, Resource, Resource]:
    """PractitionerRole, Practitioner and Organization behind a reference."""
    role = ctx.view.get(reference) or {}
    if role.get("resourceType") == "Practitioner":
        return {"resourceType": "PractitionerRole"}, role, {}
    person = ctx.view.get(role.get("practitioner", {}).get("reference", "")) or {}
    organization = ctx.view.get(role.get("organization", {}).get("reference", "")) or {}
    return role, person, organization


def _author(message: Resource, ctx: Context) -> str:
    sender = message.get("sender", {})
    if sender.get("display"):
        return str(sender["display"])
    _, person, _ = _professional(sender.get("reference", ""), ctx)
    name = (person.get("name") or [{}])[0]
    parts = [*name.get("suffix", ()), *name.get("given", ()), name.get("family", "")]
    return " ".join(part for part in parts if part) or "auteur inconnu"


def _keys(value: Report, request: Resource) -> tuple[tuple[str, str], ...]:
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
        payload = fhir_to_hl7v2.mdm(
            value,
            clinical,
            site=site,
            profile=destination.profile,
            control_id=key,
            now=ctx.now,
            receiving_application=destination.application,
            receiving_facility=destination.facility,
            dmp=destination.dmp,
        ).value
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
    files = fhir_to_xdm.files(value, site, cda=clinical, submission_id=submission, submitted_at=ctx.now)
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
