"""A signed report becomes documents and deliveries, all frozen before the transaction that stores them.

PDF/A, CDA (TLM-CR), the HL7 messages and the mail say the same thing because they are rendered from one value. A
correction is the next version of the same set, in the place of the one before; a withdrawal renders nothing new: it
takes back, from each addressee, the version they hold.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from fhir_server.context import instant, new_delivery_id
from fhir_server.errors import Invalid
from fhir_server.store.lanes import NewDelivery
from fhir_server.teleexpertise import distribution, parties, succession
from fhir_server.teleexpertise.case import Context, Handed
from fhir_server.teleexpertise.consent import consent_of, consent_sent_with
from fhir_server.teleexpertise.distribution import Destination, Plan
from fhir_server.teleexpertise.freezing import (
    Content,
    Frozen,
    enclosed,
    freeze,
    labels_of,
    security_labels,
)
from fhir_server.teleexpertise.notes import NOBODY_TOLD, step_of, told
from fhir_server.teleexpertise.opinion import CORRECTING, WITHDRAWN
from fhir_server.teleexpertise.parties import Candidate, Doctor
from fhir_server.teleexpertise.readiness import named, professional, site_of
from fhir_server.teleexpertise.remade import Remade
from fhir_server.teleexpertise.succession import Held
from mappers import french
from mappers.cda_to_report import expert_sent, patient_sent, requester_sent, sent_report
from mappers.fhir_to_cda import cda
from mappers.fhir_to_identity import identifiers, patient_identity
from mappers.fhir_to_pdf import rendering
from mappers.fhir_to_report import Incomplete, PatientIdentity, Professional, Report, Sources, hidden_from, report
from mappers.identity import Site
from mappers.mapped import Mapped

Resource = dict[str, Any]
LOINC = "http://loinc.org"
RENUMBERED = (
    "Le document retiré porte des identifiants que le patient n'a plus ; le message de retrait porte ceux du jour "
    "(au DMP, l'INS du document)."
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a report adds to its transaction; `notes` tell by report who does not get it and why; `unsent` are earlier
    deliveries that nobody received and that are given up for these; `kept` are those a person keeps back, `reached`
    those that may have got there, `standing` orders that were not given up and `ended` those that were: all must be so
    still when this is written."""

    resources: tuple[Resource, ...] = ()
    deliveries: tuple[NewDelivery, ...] = ()
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unsent: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    reached: tuple[str, ...] = ()
    standing: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Case:
    """A report with what it is rendered from."""

    opinion: Resource
    request: Resource
    patient: Resource
    site: Site
    ctx: Context

    @property
    def reference(self) -> str:
        return f"DiagnosticReport/{self.opinion['id']}"

    @property
    def withdrawn(self) -> bool:
        return self.opinion.get("status") == WITHDRAWN


def render(opinion: Resource, request_id: str, ctx: Context) -> Rendered:
    """Render a request's signed or withdrawn DiagnosticReport for everybody. Raises Invalid (422) naming what a
    document cannot do without."""
    case = _case(opinion, request_id, ctx)
    if opinion.get("status") == WITHDRAWN:
        return _taken_back(case)
    before = _before(case) if opinion.get("status") in CORRECTING else Held()
    replaced = [str(one["id"]) for one in before.documents]
    mapped = _value(case, before.version + 1, before.latest)
    value, content = mapped.value, _content(case, mapped)
    plan = _following(case, value, before)
    ids = {road: new_delivery_id() for road in plan.destinations}
    frozen = _frozen(plan.destinations, ids, content, ctx)
    documents = _records(content, case, succession.record(value.version, plan, ids, before), replaced)
    old = tuple({**one, "status": "superseded"} for one in before.documents)
    notes = [_corrected(value, opinion, content.reason)] if before.documents else []
    task = told(case.request, plan, ctx, also=[*notes, *(said for one in frozen for said in one.unheard)])
    left_out = _notes(case, plan, frozen, content.left_out)
    deliveries = tuple(one.delivery for one in frozen)
    return Rendered((*documents, *old, *task), deliveries, left_out, before.unsent, before.kept, before.reached)


def again(opinion: Resource, request_id: str, ctx: Context, old: Remade) -> Rendered:
    """Render the report as it stands for one destination once more: a document of the same version, told as what it is
    to who holds an earlier one. What was for the DMP goes to the platform that leads there now. No delivery when the
    report does not go there any more."""
    case = _case(opinion, request_id, ctx)
    if case.withdrawn:
        return _recalled(case, _before(case), old)
    before = _before(case, lost=old.lost)
    replaced = [
        related["target"]["reference"].partition("/")[2]
        for one in before.documents
        for related in one.get("relatesTo", ())
    ]
    mapped = _value(case, max(before.version, 1), replaced[-1] if replaced else "")
    value, content = mapped.value, _content(case, mapped)
    plan = _following(case, value, before)
    plan = Plan(_once_more(plan, old), ())
    ids = {road: new_delivery_id() for road in plan.destinations}
    documents = _records(content, case, succession.record(value.version, plan, ids, Held()), replaced)
    return Rendered(documents, tuple(one.delivery for one in _frozen(plan.destinations, ids, content, ctx)))


def _once_more(plan: Plan, old: Remade) -> tuple[Destination, ...]:
    """The road of a plan that one delivery takes again, if any."""
    alike = [road for road in plan.destinations if road.dmp == old.fed]
    return tuple([road for road in alike if road.lane == old.lane] or (alike if old.fed else ()))


def _before(case: _Case, status: str = "", *, taken_back: bool = False, lost: frozenset[str] = frozenset()) -> Held:
    """What stands of the report: the documents of this status, by default that of the report. What is `lost` counts as
    given up."""

    def handed(delivery: str) -> Handed:
        return "ended" if delivery in lost else case.ctx.handed(delivery)

    status = status or (WITHDRAWN if case.withdrawn else "current")
    return succession.held(case.reference, status, case.ctx.view, handed, taken_back=taken_back)


def _following(case: _Case, value: Report, before: Held) -> Plan:
    plan, mailing = _plan(case, value, before), bool(case.ctx.settings.smtp)
    before = succession.renamed(before, plan, case.ctx.view)
    return succession.follow(plan, before, mailing=mailing, withheld=partial(_withheld, case, value))


def _withheld(case: _Case, value: Report, person: str) -> str:
    """Why somebody who holds a version, and has no part in the case (any more), does not get the next one, or ''."""
    if parties.opposed(case.patient, person, case.ctx.view):
        return parties.OPPOSED
    signers = (str(one.get("reference", "")) for one in case.opinion.get("resultsInterpreter", ()))
    theirs = person in (case.request["requester"]["reference"], *signers)
    return distribution.MASKED if distribution.is_masked(value) and not theirs else ""


def _taken_back(case: _Case) -> Rendered:
    """The withdrawal of a report: its documents are marked, whoever holds one is told, the content stays."""
    before = _before(case, "current", taken_back=True)
    back = _recalled(case, before)
    marked = tuple({**one, "status": WITHDRAWN} for one in before.documents)
    return replace(back, resources=(*marked, *back.resources), unsent=before.unsent, reached=before.reached)


def _recalled(case: _Case, before: Held, old: Remade | None = None) -> Rendered:
    """A delivery to everybody who holds a version, or instead of an `old` one, that takes back the very document they
    hold.

    Nothing is asked of the resources the report was made from, but under which numbers the patient is known today: the
    rest stands in what was sent."""
    ctx = case.ctx
    versions: dict[str, Content] = {}
    if not before.recorded:
        versions[before.latest] = _content_of(before.latest, case)
        plan = _plan(case, versions[before.latest].value, before)
        before = replace(before, holders=succession.assumed(plan, before))
    plan = Plan((), ())
    if before.holders:
        patient = _patient(case, before.latest)
        found = _candidates(case, [])
        mailing, ins_in = bool(ctx.settings.smtp), partial(_ins_in, case)
        plan = succession.recall(before, patient, ctx.view, ctx.sites, mailing=mailing, found=found, ins_in=ins_in)
    out: list[Frozen] = []
    for road in _once_more(plan, old) if old else plan.destinations:
        if road.replaces not in versions:
            versions[road.replaces] = _content_of(road.replaces, case)
        out += _frozen((road,), {road: new_delivery_id()}, versions[road.replaces], ctx)
    deliveries = tuple(one.delivery for one in out)
    if old:
        return Rendered((), deliveries)
    when = french.instant(ctx.now, case.site.time_zone)
    note = f"Compte rendu retiré le {when}, il ne doit plus être utilisé (motif : {_why(case)})."
    renumbered = [RENUMBERED for one in versions.values() if one.renumbered]
    task = told(case.request, plan, ctx, also=[note, *renumbered[:1]], nobody=NOBODY_TOLD)
    return Rendered(task, deliveries, _notes(case, plan, out))


def _content_of(document_id: str, case: _Case) -> Content:
    """A version as it was sent, read from its record. Raises Invalid when its content is gone."""
    found = _stored(document_id, case)
    document, clinical = found.get("application/pdf"), found.get("text/xml")
    if not document or not clinical:
        text = f"DocumentReference/{document_id} has lost its content, and its readers cannot be told what is withdrawn"
        raise Invalid(text, expression="DiagnosticReport.status", code="not-found")
    try:
        today = _patient(case, document_id)
        then = patient_sent(clinical, today.reference, case.site)
        value = sent_report(clinical, document_id, case.request, _as_filed(today, then), case.site)
    except ValueError as problem:
        text = (
            f"the CDA of DocumentReference/{document_id} cannot be read, and nobody told what is withdrawn: {problem}"
        )
        raise Invalid(text, expression="DiagnosticReport.status", code="value") from problem
    # Who may not see it stands in no CDA.
    labels = labels_of(case.ctx.view.get(f"DocumentReference/{document_id}") or {})
    content = _content(case, Mapped(replace(value, visibility=hidden_from(labels))), document, clinical)
    return replace(content, sent_ins=then.ins, renumbered=_numbers(value.patient) != _numbers(then))


def _ins_in(case: _Case, document_id: str) -> tuple[str, str] | None:
    """The INS in a document that was sent, with its OID; None where there is none (any more)."""
    clinical = _stored(document_id, case).get("text/xml", b"")
    try:
        return patient_sent(clinical, f"Patient/{case.patient.get('id', '')}", case.site).ins
    except ValueError:
        return None


def _numbers(patient: PatientIdentity) -> list[tuple[str, str]]:
    """The values of a patient's identifiers, with the OID of who gives them, in the order they are written."""
    return [*([patient.ins] if patient.ins else []), *(local[:2] for local in patient.local_ids)]


def _as_filed(today: PatientIdentity, then: PatientIdentity) -> PatientIdentity:
    """The patient under the identifiers that a document bears, while all of them are theirs still: a recall names whom
    the document names. Else under those of today."""
    if not set(_numbers(then)) <= set(_numbers(today)):
        return today
    local = {one[:2]: one for one in today.local_ids}
    return replace(today, ins=then.ins, local_ids=tuple(local[one[:2]] for one in then.local_ids))


def _stored(document_id: str, case: _Case) -> Mapping[str, bytes]:
    """The content of a DocumentReference by its media type."""
    return enclosed(case.ctx.view.get(f"DocumentReference/{document_id}") or {}, case.ctx)


def _patient(case: _Case, document_id: str) -> PatientIdentity:
    """Who the patient is today; where a trait is missing now, as that version told, under the numbers of today."""
    try:
        return patient_identity(case.patient, case.site, [])
    except Incomplete as missing:
        clinical = _stored(document_id, case).get("text/xml", b"")
        try:
            then = patient_sent(clinical, f"Patient/{case.patient.get('id', '')}", case.site)
        except ValueError:
            raise Invalid(missing.text, expression=missing.expression, code="required") from missing
        ins, local_ids = identifiers(case.patient, case.site, [])
        return replace(then, ins=ins, local_ids=local_ids)


def _why(case: _Case) -> str:
    """The reason of the last step, as its Provenance tells it: the report may still carry that of an earlier one."""
    query = f"target={case.reference}"
    told = {one["id"]: one for one in case.ctx.view.find("Provenance", query)}
    told |= {one["id"]: one for one in case.ctx.view.written("Provenance") if _about(one, case.reference)}
    steps = sorted((one for one in told.values() if step_of(one)), key=lambda one: str(one.get("recorded", "")))
    reasons = steps[-1].get("reason", ()) if steps else ()
    return str(reasons[0].get("text", "")) if reasons else ""


def _about(told: Resource, reference: str) -> bool:
    return any(one.get("reference") == reference for one in told.get("target", ()))


def _case(opinion: Resource, request_id: str, ctx: Context) -> _Case:
    request = ctx.view.get(f"ServiceRequest/{request_id}") or {}
    patient = ctx.view.get(request["subject"]["reference"]) or {}
    return _Case(opinion, request, patient, site_of(patient, ctx.sites), ctx)


def _value(case: _Case, version: int, replaces: str = "") -> Mapped[Report]:
    with _complete():
        return report(_sources(case, version, replaces))


@contextmanager
def _complete() -> Iterator[None]:
    """What a document cannot do without is a 422."""
    try:
        yield
    except Incomplete as missing:
        raise Invalid(missing.text, expression=missing.expression, code="required") from missing


def _content(case: _Case, mapped: Mapped[Report], document: bytes = b"", clinical: bytes = b"") -> Content:
    value = mapped.value
    drawn = Mapped(document) if document else rendering(value)
    clinical = clinical or cda(value, drawn.value, case.site)
    keys = _keys(value, case.request, case.ctx)
    losses = (*mapped.losses, *drawn.losses)
    return Content(value, drawn.value, clinical, case.site, case.opinion, keys, _why(case), losses)


def _candidates(case: _Case, doctors: Sequence[Doctor]) -> list[Candidate]:
    ctx = case.ctx
    return parties.candidates(case.request, case.opinion, case.patient, ctx.view, ctx.sites, doctors)


def _plan(case: _Case, value: Report, before: Held) -> Plan:
    ctx, request = case.ctx, case.request
    doctors = parties.doctors(request, case.opinion, case.patient, ctx.view)
    found = succession.by_who_fed(_candidates(case, doctors), before)
    asker = request["requester"]["reference"]
    return distribution.plan(value, case.patient, found, asker, ctx.sites, ctx.settings, doctors, before.stands_at)


def _frozen(
    roads: Sequence[Destination], ids: Mapping[Destination, str], content: Content, ctx: Context
) -> tuple[Frozen, ...]:
    frozen = []
    for road in roads:
        try:
            frozen.append(freeze(road, ids[road], content, ctx))
        except ValueError as problem:
            text = f"the report cannot be written for {road.display}: {problem}"
            raise Invalid(text, expression="DiagnosticReport", code="value") from problem
    return tuple(frozen)


def _notes(
    case: _Case, plan: Plan, frozen: Sequence[Frozen], everywhere: Sequence[str] = ()
) -> Mapping[str, tuple[str, ...]]:
    """What who wrote the report is told: who does not get it, and what it leaves out, for all or on one road."""
    apiece = (said for one in frozen for said in (*one.unheard, *one.left_out))
    return {case.reference: tuple(dict.fromkeys([*(shut.text for shut in plan.shut), *everywhere, *apiece]))}


def _corrected(value: Report, opinion: Resource, reason: str) -> str:
    """The note of a correction, in French."""
    when, done = (
        french.instant(value.signed_at, value.zone),
        "complété" if opinion["status"] == "appended" else "corrigé",
    )
    text = f"Compte rendu {done} le {when} : la version {value.version} annule et remplace la précédente"
    return f"{text} (motif : {reason})." if reason else f"{text}."


def _sources(case: _Case, version: int, replaces: str) -> Sources:
    ctx, request, opinion = case.ctx, case.request, case.opinion
    expert = (opinion.get("resultsInterpreter") or opinion.get("performer") or [{}])[0].get("reference", "")
    requester_role, requester, requester_organization = professional(request["requester"]["reference"], ctx)
    expert_role, expert_person, expert_organization = professional(expert, ctx)
    period = (ctx.view.get(f"Task/{request['id']}") or {}).get("executionPeriod", {})
    talk = list(ctx.view.find("Communication", f"based-on=ServiceRequest/{request['id']}"))
    studies = list(ctx.view.find("ImagingStudy", f"basedon=ServiceRequest/{request['id']}"))
    consent = (consent_sent_with(request, ctx) if replaces else None) or consent_of(request, ctx)
    requester_before, expert_before = _people_before(replaces, case)
    return Sources(
        service_request=request,
        diagnostic_report=opinion,
        patient=case.patient,
        requester_role=requester_role,
        requester=requester,
        requester_organization=requester_organization,
        expert_role=expert_role,
        expert=expert_person,
        expert_organization=expert_organization,
        site=case.site,
        document_id=str(uuid.uuid4()),
        set_id=set_id(ctx.settings.installation, request["id"]),
        version=version,
        replaces=replaces,
        consent=consent if consent and consent.get("id") else None,
        communications=tuple((message, _author(message, ctx)) for message in talk),
        imaging_studies=tuple(studies),
        started_at=_moment(period.get("start")),
        ended_at=_moment(period.get("end")) or ctx.now,
        signed_at=ctx.now,
        consent_extension=ctx.settings.extension_patient_consent,
        requester_before=requester_before,
        expert_before=expert_before,
        correction=_why(case) if replaces else "",
        attending=_attending(case),
    )


def _people_before(replaces: str, case: _Case) -> tuple[Professional | None, Professional | None]:
    """Who asked and who signed, as the version before names them."""
    clinical = _stored(replaces, case).get("text/xml") if replaces else None
    try:
        return (requester_sent(clinical), expert_sent(clinical)) if clinical else (None, None)
    except ValueError:
        return None, None


def _attending(case: _Case) -> tuple[tuple[Resource, Resource, Resource], ...]:
    """The declared médecins traitants: not one whom the patient does not want to know of it."""
    declared = parties.doctors(case.request, case.opinion, case.patient, case.ctx.view)
    return tuple(professional(one.person, case.ctx) for one in declared if not one.refusal)


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


def _records(content: Content, case: _Case, record: Resource, replaced: Sequence[str]) -> tuple[Resource, ...]:
    """The documents as Binary and DocumentReference, so that they can be read again by FHIR."""
    value, opinion, request = content.value, case.opinion, case.request
    out: list[Resource] = []
    contents = []
    for data, media, title in ((content.pdf, "application/pdf", "PDF"), (content.cda, "text/xml", "CDA")):
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
    links = [{"code": "replaces", "target": {"reference": f"DocumentReference/{one}"}} for one in replaced]
    labels = security_labels(value)
    out.append(
        {
            "resourceType": "DocumentReference",
            "id": value.id,
            "extension": [record],
            "masterIdentifier": {"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{value.id}"},
            "status": "current",
            "docStatus": "final",
            "type": {"coding": [{"system": LOINC, "code": value.type.code, "display": value.type.display}]},
            "subject": request["subject"],
            "date": instant(value.signed_at),
            "author": opinion.get("resultsInterpreter", []),
            **({"relatesTo": links} if links else {}),
            **({"securityLabel": labels} if labels else {}),
            "content": contents,
            "context": {"related": related},
        }
    )
    return tuple(out)
