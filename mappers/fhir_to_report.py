"""A finished téléexpertise as one plain value: what the PDF, the CDA, the XDM metadata, the MDM and the mail say.

The value is read once from the FHIR resources (`report`), so that every rendering says the same thing. Hidden here:
where the profiles put the texts, instants and identifiers of a request and its opinion. The people are read in
`mappers.fhir_to_identity`, whose dataclasses are part of the value.

Sources: https://hl7.org/fhir/R4/servicerequest.html, /diagnosticreport.html, /communication.html, /consent.html,
https://interop.esante.gouv.fr/ig/fhir/teleexpertise-confluence (draft; its extensions still live on example.org),
code de la santé publique R.6316-1 to -4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_OID, uuid5
from zoneinfo import ZoneInfo

from mappers import french
from mappers.fhir_to_identity import (
    FINESS_SYSTEM,
    STRUCTURES_OID,
    Resource,
    bystander,
    concept_text,
    find_extension,
    patient_identity,
    professional,
)
from mappers.fhir_to_identity import Code as Code
from mappers.fhir_to_identity import Incomplete as Incomplete
from mappers.fhir_to_identity import Org as Org
from mappers.fhir_to_identity import PatientIdentity as PatientIdentity
from mappers.fhir_to_identity import Professional as Professional
from mappers.identity import Site
from mappers.mapped import Loss, Mapped
from mappers.order_number import OrderNumber, placer_of

CONSENT_EXTENSION = "http://example.org/fhir/fish/StructureDefinition/fr-coreServiceRequest-patientConsent"
TELEEXPERTISE = Code("TE2", "Acte de téléexpertise", "1.2.250.1.215.200.3.3")
TELEMEDICINE_REPORT = Code("85208-7", "CR de télémédecine", "2.16.840.1.113883.6.1")
NORMAL = Code("N", french.CONFIDENTIALITY["N"], french.CONFIDENTIALITY_OID)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One message of the conversation, oldest first. `attachments` are titles."""

    at: datetime
    author: str
    text: str
    attachments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a rendering needs. All datetimes are aware; `id` and `set_id` are UUIDs (OID form `2.25.<int>`).

    `replaces` is the UUID of the version this one replaces, or ''. `request_oid` and `accession_oid` are the bare OIDs
    under which `request_id` and `accession` are unique ('' when unknown). `studies` are Study Instance UIDs.
    `incidents` are technical incidents to be kept on record (CSP R.6316-4). `placer` is the number of the order that
    the request came as, if it did. `correction` says why it replaces a version, in a line, or ''. `attending` are the
    declared médecins traitants that are known. `visibility` are codes of TRE_A07: who may not see it.
    """

    id: str
    set_id: str
    version: int
    title: str
    patient: PatientIdentity
    requester: Professional
    expert: Professional
    request_id: str
    accession: str
    requested_at: datetime
    started_at: datetime
    ended_at: datetime
    signed_at: datetime
    consent: str
    reason: str
    exchange: tuple[Exchange, ...]
    conclusion: str
    images: tuple[str, ...] = ()
    act: Code = TELEEXPERTISE
    type: Code = TELEMEDICINE_REPORT
    confidentiality: Code = NORMAL
    replaces: str = ""
    test: bool = True
    zone: str = "Europe/Paris"
    request_oid: str = ""
    accession_oid: str = ""
    studies: tuple[str, ...] = ()
    incidents: tuple[str, ...] = ()
    placer: OrderNumber | None = None
    correction: str = ""
    attending: tuple[Professional, ...] = ()
    visibility: tuple[Code, ...] = ()


@dataclass(frozen=True, slots=True)
class Sources:
    """The FHIR resources of one finished request, as plain dicts, and what only the caller knows.

    `document_id`, `set_id` and `replaces` are UUIDs; `version` counts from 1. `communications` are pairs of a
    Communication and the name its sender is shown under. Instants that are None are read from the DiagnosticReport
    (effective, issued). `consent_extension` is the URL of the draft guide's boolean. `requester_before` and
    `expert_before` are who asked and who signed as the version before names them, and stand when the record cannot say
    it any more. `correction` is why that version is replaced. `attending` are the role, the person and the structure
    of each declared médecin traitant.
    """

    service_request: Resource
    diagnostic_report: Resource
    patient: Resource
    requester_role: Resource
    requester: Resource
    requester_organization: Resource
    expert_role: Resource
    expert: Resource
    expert_organization: Resource
    site: Site
    document_id: str
    set_id: str
    version: int = 1
    consent: Resource | None = None
    communications: tuple[tuple[Resource, str], ...] = ()
    imaging_studies: tuple[Resource, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    signed_at: datetime | None = None
    replaces: str = ""
    incidents: tuple[str, ...] = ()
    consent_extension: str = CONSENT_EXTENSION
    requester_before: Professional | None = None
    expert_before: Professional | None = None
    correction: str = ""
    attending: tuple[tuple[Resource, Resource, Resource], ...] = ()


def report(sources: Sources) -> Mapped[Report]:
    """Read the finished request once; raises Incomplete for a fact no rendering can do without.

    Losses name what a source says and the report does not, and what was adapted.
    """
    notes: list[Loss] = []
    if not sources.service_request.get("id"):
        raise Incomplete("ServiceRequest.id", "the report names the request it answers: store the request first")
    site, request, opinion = sources.site, sources.service_request, sources.diagnostic_report
    zone = ZoneInfo(site.time_zone)
    status = opinion.get("status")
    if status not in ("final", "amended", "corrected", "appended"):
        raise Incomplete("DiagnosticReport.status", f"a report in status {status!r} is not signed: finalise it first")
    _report_left_behind(sources, notes)
    started, ended, signed = _instants(sources, zone, notes)
    accession, accession_oid = accession_of(request, site)
    value = Report(
        id=sources.document_id,
        set_id=sources.set_id,
        version=sources.version,
        title=_title(request),
        patient=patient_identity(sources.patient, site, notes),
        requester=_requester(sources, notes),
        expert=_expert(sources, notes),
        request_id=str(request["id"]),
        request_oid=own_root(site),
        accession=accession,
        accession_oid=accession_oid,
        requested_at=_instant(request.get("authoredOn"), "ServiceRequest.authoredOn", zone, notes),
        started_at=started,
        ended_at=ended,
        signed_at=signed,
        consent=_consent(sources, zone, notes),
        reason=reason_of(request),
        exchange=_exchange(sources.communications, zone, notes),
        conclusion=_conclusion(opinion),
        images=tuple(_image(study, zone, notes) for study in sources.imaging_studies),
        studies=tuple(uid for study in sources.imaging_studies if (uid := _study_uid(study))),
        confidentiality=_confidentiality(opinion, notes),
        replaces=sources.replaces,
        test=site.mode != "production",
        zone=site.time_zone,
        incidents=sources.incidents,
        placer=placer_of(request),
        correction=" ".join(sources.correction.split()) if sources.replaces else "",
        attending=_attending(sources, notes),
        visibility=_visibility(opinion),
    )
    return Mapped(value, tuple(notes))


def request_complete_in(sources: Sources) -> None:
    """Raises Incomplete for a fact of the request, its patient or its requester that the report will need.

    The expert and the opinion of `sources` are not looked at: they come later.
    """
    notes: list[Loss] = []
    zone = ZoneInfo(sources.site.time_zone)
    patient_identity(sources.patient, sources.site, notes)
    _requester(sources, notes)
    reason_of(sources.service_request)
    _instant(sources.service_request.get("authoredOn"), "ServiceRequest.authoredOn", zone, notes)
    _consent(sources, zone, notes)


def expert_complete_in(role: Resource, person: Resource, organization: Resource, site: Site) -> None:
    """Raises Incomplete for a fact of the expert that the report will need."""
    _signing_expert(role, person, organization, site, [])


# What a rendering cannot show: (source attribute, resource type, elements).
_LEFT_BEHIND = (
    ("service_request", "ServiceRequest", ("orderDetail", "bodySite", "specimen", "supportingInfo", "insurance")),
    ("diagnostic_report", "DiagnosticReport", ("result", "media", "presentedForm", "specimen")),
)


def _report_left_behind(sources: Sources, notes: list[Loss]) -> None:
    for attribute, kind, elements in _LEFT_BEHIND:
        resource: Resource = getattr(sources, attribute)
        for element in elements:
            if resource.get(element):
                notes.append(Loss(f"{kind}.{element}", "stays in the record: the report does not print it"))


def _instants(sources: Sources, zone: ZoneInfo, notes: list[Loss]) -> tuple[datetime, datetime, datetime]:
    """Start, end and signature of the opinion: the caller's instants, else the DiagnosticReport's; always in order."""
    opinion = sources.diagnostic_report
    period = opinion.get("effectivePeriod") or {}
    issued, effective = opinion.get("issued"), opinion.get("effectiveDateTime")
    signed = sources.signed_at or _instant(issued, "DiagnosticReport.issued", zone, notes)
    ended = sources.ended_at
    if ended is None:
        end = period.get("end") or effective
        ended = _instant(end, "DiagnosticReport.effectivePeriod.end", zone, notes) if end else signed
    start = period.get("start") or effective
    started = sources.started_at or _instant(start, "DiagnosticReport.effectivePeriod.start", zone, notes)
    for name, at, limit in (("end", ended, signed), ("start", started, min(ended, signed))):
        if at > limit:
            notes.append(
                Loss("DiagnosticReport.effectivePeriod", f"{name} {at} is after {limit}: the latter is written")
            )
    ended = min(ended, signed)
    started = min(started, ended)
    return started, ended, signed


def _instant(text: object, expression: str, zone: ZoneInfo, notes: list[Loss]) -> datetime:
    """A FHIR instant or dateTime as an aware datetime; a date alone becomes local midnight, with a note."""
    if not isinstance(text, str) or not text:
        raise Incomplete(expression, "the report needs this instant: give date, time and offset")
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise Incomplete(expression, f"{text!r} is not a complete date: give date, time and offset") from None
    if value.tzinfo is None:
        notes.append(Loss(expression, f"{text!r} has no time or no offset: read as local time of {zone.key}"))
        value = value.replace(tzinfo=zone)
    return value


# --- texts ---------------------------------------------------------------------------------------------------------


def _title(request: Resource) -> str:
    subject = concept_text(request.get("code"))
    return f"Compte rendu de téléexpertise - {subject}" if subject else "Compte rendu de téléexpertise"


def reason_of(request: Resource) -> str:
    """Why an opinion is asked for; raises Incomplete when the request does not say."""
    reasons = [concept_text(concept) for concept in request.get("reasonCode") or ()]
    notes = [str(note.get("text") or "") for note in request.get("note") or ()]
    text = "\n\n".join(part for part in (*reasons, *notes) if part)
    if not text:
        remedy = "the requester states why an opinion is asked for: fill reasonCode.text (or note.text)"
        raise Incomplete("ServiceRequest.reasonCode", remedy)
    return text


def _conclusion(opinion: Resource) -> str:
    coded = [concept_text(concept) for concept in opinion.get("conclusionCode") or ()]
    text = str(opinion.get("conclusion") or "").strip()
    parts = [text] if text else []
    if any(coded):
        parts.append("Conclusion codée : " + " ; ".join(filter(None, coded)))
    if not parts:
        raise Incomplete("DiagnosticReport.conclusion", "the expert's opinion is empty: write the conclusion")
    return "\n\n".join(parts)


def _exchange(pairs: Iterable[tuple[Resource, str]], zone: ZoneInfo, notes: list[Loss]) -> tuple[Exchange, ...]:
    messages: list[Exchange] = []
    for communication, author in pairs:
        here = f"Communication/{communication.get('id', '')}"
        if communication.get("status") not in ("completed", "in-progress"):
            notes.append(Loss(here, f"left out: its status is {communication.get('status')}"))
            continue
        sent = communication.get("sent") or communication.get("received")
        at = _instant(sent, "Communication.sent", zone, notes)
        texts: list[str] = []
        attachments: list[str] = []
        for payload in communication.get("payload") or ():
            attachment = payload.get("contentAttachment")
            reference = payload.get("contentReference")
            if payload.get("contentString"):
                texts.append(str(payload["contentString"]))
            if attachment:
                attachments.append(str(attachment.get("title") or attachment.get("contentType") or "pièce jointe"))
            if reference:
                attachments.append(str(reference.get("display") or reference.get("reference") or "pièce jointe"))
        if not texts and not attachments:
            notes.append(Loss(f"{here}.payload", "empty message, left out"))
            continue
        messages.append(Exchange(at, author, "\n".join(texts), tuple(attachments)))
    return tuple(sorted(messages, key=lambda message: message.at))


def _image(study: Resource, zone: ZoneInfo, notes: list[Loss]) -> str:
    codes = [str(coding.get("code") or "") for coding in study.get("modality") or ()]
    codes = codes or [str((series.get("modality") or {}).get("code") or "") for series in study.get("series") or ()]
    names = dict.fromkeys(french.MODALITIES.get(code, code) for code in codes if code)
    parts = [", ".join(names) or "Imagerie"]
    described = str(study.get("description") or "")
    if described:
        parts.append(described)
    if study.get("started"):
        parts.append(french.instant(_instant(study["started"], "ImagingStudy.started", zone, notes), zone.key))
    series, instances = study.get("numberOfSeries"), study.get("numberOfInstances")
    if series is not None and instances is not None:
        parts.append(f"{_counted(series, 'série')}, {_counted(instances, 'objet')}")
    uid = _study_uid(study)
    if uid:
        parts.append(f"Study\u00a0Instance\u00a0UID\u00a0{uid}")
    return " · ".join(parts)


def _study_uid(study: Resource) -> str:
    for identifier in study.get("identifier") or ():
        if identifier.get("system") == "urn:dicom:uid":
            return str(identifier.get("value") or "").removeprefix("urn:oid:")
    return ""


def _consent(sources: Sources, zone: ZoneInfo, notes: list[Loss]) -> str:
    """One French sentence: who consented, when and on what record. A refusal or no record at all is Incomplete."""
    female = sources.patient.get("gender") == "female"
    who = "La patiente, informée" if female else "Le patient, informé"
    said = f"{who} du recours à la téléexpertise et des données transmises, y a consenti"
    consent = sources.consent
    if consent is None:
        given = find_extension(sources.service_request, sources.consent_extension).get("valueBoolean")
        if given is not True:
            remedy = "no consent is recorded: add a Consent, or the draft guide's patientConsent extension set to true"
            raise Incomplete("ServiceRequest.extension(patientConsent)", remedy)
        return f"{said} ; consentement recueilli par le professionnel requérant et déclaré avec sa demande."
    if consent.get("status") != "active" or (consent.get("provision") or {}).get("type") == "deny":
        raise Incomplete("Consent.status", "the consent is not active or is a refusal: record the consent first")
    if consent.get("dateTime"):
        said += f" le {french.instant(_instant(consent['dateTime'], 'Consent.dateTime', zone, notes), zone.key)}"
    codes = [str(coding.get("code") or "") for coding in (consent.get("scope") or {}).get("coding") or ()]
    scope = next((french.CONSENT_SCOPES[code] for code in codes if code in french.CONSENT_SCOPES), "")
    record = f"enregistré sous la référence Consent/{consent.get('id', '')}"
    return f"{said}. Consentement {f'au titre de : {scope}, ' if scope else ''}{record}."


def _requester(sources: Sources, notes: list[Loss]) -> Professional:
    role, person, house = sources.requester_role, sources.requester, sources.requester_organization
    try:
        return professional("requester", role, person, house, sources.site, notes)
    except Incomplete as missing:
        return _as_before("requester", sources.requester_before, missing, notes)


def _expert(sources: Sources, notes: list[Loss]) -> Professional:
    """A correction is signed by who signed before: what their first signature demanded was given then."""
    role, person, house = sources.expert_role, sources.expert, sources.expert_organization
    try:
        return _signing_expert(role, person, house, sources.site, notes)
    except Incomplete as missing:
        return _as_before("expert", sources.expert_before, missing, notes)


def _as_before(who: str, before: Professional | None, missing: Incomplete, notes: list[Loss]) -> Professional:
    if before is None:
        raise missing
    notes.append(Loss(missing.expression, f"missing now: the {who} is named as in the version before"))
    return before


def _attending(sources: Sources, notes: list[Loss]) -> tuple[Professional, ...]:
    """Those a document can name; the national number, the profession and the structure of such a participant are
    left out where they are not known."""
    found: dict[str, Professional] = {}
    for role, person, house in sources.attending:
        try:
            one = bystander("médecin traitant", role, person, house, sources.site, notes)
        except Incomplete as missing:
            notes.append(Loss("Patient.generalPractitioner", f"not named in the document: {missing}"))
        else:
            found.setdefault(one.rpps or str(person.get("id")), one)
    return tuple(found.values())


def _signing_expert(
    role: Resource, person: Resource, organization: Resource, site: Site, notes: list[Loss]
) -> Professional:
    expert = professional("expert", role, person, organization, site, notes)
    if not expert.org.finess:
        remedy = f"the expert's structure signs and keeps the report: add its FINESS ({FINESS_SYSTEM}, 9 digits)"
        raise Incomplete("Organization.identifier", remedy)
    return expert


def accession_of(request: Resource, site: Site) -> tuple[str, str]:
    """The accession number and the OID it is unique under: ServiceRequest.identifier of type ACSN."""
    declared = {namespace.fhir_system: namespace.oid for namespace in site.namespaces if namespace.kind == "ACSN"}
    for identifier in request.get("identifier") or ():
        system, value = str(identifier.get("system") or ""), str(identifier.get("value") or "")
        codes = {coding.get("code") for coding in (identifier.get("type") or {}).get("coding") or ()}
        if value and ("ACSN" in codes or system in declared):
            oid = system.removeprefix("urn:oid:") if system.startswith("urn:oid:") else ""
            return value, declared.get(system) or oid or own_root(site)
    return "", ""


def own_root(site: Site) -> str:
    """The OID arc of the site's own identifiers: configured, else made from its FINESS (which may hold a letter)."""
    national = f"{STRUCTURES_OID}.1{site.finess_eg}"
    return site.document_oid or (national if site.finess_eg.isdigit() else oid_of(str(uuid5(NAMESPACE_OID, national))))


# How a label says that it is of TRE_A07: its OID, or how its name in the nomenclature of the health sector begins.
_VISIBILITY_SYSTEM, _VISIBILITY_NAME = f"urn:oid:{french.VISIBILITY_OID}", "https://mos.esante.gouv.fr/NOS/TRE_A07-"


def _confidentiality(opinion: Resource, notes: list[Loss]) -> Code:
    """The first of N, R, V among the labels. One that no document can tell is a loss."""
    found = NORMAL
    seen = False
    for number, label in enumerate(_labels(opinion)):
        code = str(label.get("code") or "")
        if code in french.CONFIDENTIALITY and not seen:
            found, seen = Code(code, french.CONFIDENTIALITY[code], french.CONFIDENTIALITY_OID), True
        elif code not in french.VISIBILITY:
            where = f"DiagnosticReport.meta.security[{number}]"
            notes.append(Loss(where, f"the label {code[:40]!r} has no place in the documents"))
    return found


def _visibility(opinion: Resource) -> tuple[Code, ...]:
    """Who may not see it. Raises Incomplete for a label of that system with another code: it would hide nothing."""
    for number, label in enumerate(_labels(opinion)):
        code, system = str(label.get("code") or ""), str(label.get("system") or "")
        theirs = system == _VISIBILITY_SYSTEM or system.startswith(_VISIBILITY_NAME)
        if theirs and code not in french.VISIBILITY:
            remedy = f"{code[:40]!r} is none of {', '.join(french.VISIBILITY)}: correct the label, or leave it out"
            raise Incomplete(f"DiagnosticReport.meta.security[{number}]", remedy)
    return hidden_from(_labels(opinion))


def _labels(opinion: Resource) -> tuple[Resource, ...]:
    return tuple((opinion.get("meta") or {}).get("security") or ())


def hidden_from(labels: Iterable[Mapping[str, Any]]) -> tuple[Code, ...]:
    """The codes of TRE_A07 among some Codings, in the order of the table; their system is not looked at."""
    said = {str(label.get("code") or "") for label in labels}
    return tuple(Code(code, text, french.VISIBILITY_OID) for code, text in french.VISIBILITY.items() if code in said)


def _counted(number: object, noun: str) -> str:
    return f"{number} {noun}{'s' if str(number) not in ('0', '1') else ''}"


def oid_of(uuid_text: str) -> str:
    """The ITU-T X.667 OID of a UUID: `2.25.` and its 128-bit value in decimal."""
    return f"2.25.{int(uuid_text.replace('-', ''), 16)}"
