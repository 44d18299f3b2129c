"""What a change of one resource means for its téléexpertise: guards first, then the resources that follow.

Pure: it reads through a `View` and returns resources to write in the same transaction. The same function stands
behind a PUT, a PATCH, an operation, a Bundle entry and an HL7 message.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fhir_server.config import Settings
from fhir_server.context import Caller, View, instant
from fhir_server.errors import Conflict, Invalid, RuleBroken
from fhir_server.patients.identity import identifier_query
from fhir_server.patients.sites import Sites, namespace_of
from fhir_server.teleexpertise.scopes import case_of
from fhir_server.teleexpertise.states import (
    INDIRECT,
    TASK_STATUS,
    State,
    refusal,
    roles_in_case,
    state_of,
    step,
    with_state,
)

Resource = dict[str, Any]
CATEGORY = "35"
CATEGORY_OID = "urn:oid:1.2.250.1.213.3.3.13"
CATEGORY_NOS = "https://mos.esante.gouv.fr/NOS/TRE_R213-ModePriseEnCharge/FHIR/TRE-R213-ModePriseEnCharge"
CATEGORY_SYSTEMS = frozenset({CATEGORY_NOS, CATEGORY_OID, CATEGORY_NOS.replace("https://mos", "https://smt")})
ACCESSION_LENGTH = 16  # DICOM SH, and what a request's study carries in (0008,0050)
ACSN = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}


@dataclass(frozen=True, slots=True)
class Context:
    """What the rules need beside the resources."""

    caller: Caller
    view: View
    settings: Settings
    sites: Sites
    now: datetime


@dataclass(frozen=True, slots=True)
class Consequences:
    """`resource`: the changed resource as it is to be stored; `others`: resources to write beside it (with their ids);
    `step`: the name of the step taken or ''; `request`: the ServiceRequest id; `final`: a report to render and send."""

    resource: Resource
    others: tuple[Resource, ...] = ()
    step: str = ""
    request: str = ""
    final: bool = False


def consequences(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """Guards and consequences of writing `after` over `before`. Raises RuleBroken or Invalid (422)."""
    rule = _RULES.get(after["resourceType"])
    return rule(before, after, ctx) if rule else Consequences(after)


def guard_delete(before: Resource, ctx: Context) -> None:
    """A téléexpertise is voided, never deleted, nor is anything that belongs to it. Raises RuleBroken or Conflict."""
    if before["resourceType"] == "Patient":
        for request in ctx.view.find("ServiceRequest", f"subject=Patient/{before['id']}"):
            if is_case(request):
                text = f"this patient has the téléexpertise ServiceRequest/{request['id']}; set active to false instead"
                raise Conflict(text, expression="Patient")
    request = before if before["resourceType"] == "ServiceRequest" else ctx.view.get(case_of(before)) or {}
    if is_case(request):
        source = state_of(request, ctx.settings)
        raise refusal(ctx.caller, request, source, f"deleting a {before['resourceType']}", "id", ctx.view)


def is_case(request: Mapping[str, Any]) -> bool:
    """Whether a ServiceRequest is a téléexpertise: category TRE_R213 `35`."""
    return any(
        coding.get("code") == CATEGORY and coding.get("system") in CATEGORY_SYSTEMS
        for category in request.get("category", ())
        for coding in category.get("coding", ())
    )


def _service_request(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    if not is_case(after) and not (before and is_case(before)):
        return Consequences(after)
    source = state_of(before, ctx.settings) if before else None
    target = state_of(after, ctx.settings)
    _shape(after)
    if before:
        _unchanged(before, after, source, ctx)
    after = _with_accession(after, ctx)
    if source == target:
        final = target in ("completed", "revoked", "entered-in-error")
        if final or (before and not roles_in_case(ctx.caller, before, ctx.view)):
            raise refusal(ctx.caller, before or after, source, "changing the request", "ServiceRequest", ctx.view)
        return Consequences(with_state(after, target, ctx.settings), (), "", after["id"])
    base = before or after
    taken = step(ctx.caller, base, source, target, "ServiceRequest.status", ctx.view)
    if taken.name in INDIRECT:
        text = f"`{taken.name}` through the ServiceRequest alone (create the {INDIRECT[taken.name]} instead)"
        raise refusal(ctx.caller, base, source, text, "ServiceRequest.status", ctx.view)
    if target == "ready":
        _need_people(after, ctx)
        _need_consent(after, ctx)
    stored = with_state(after, target, ctx.settings)
    if taken.name == "take":
        stored = _with_performer(stored, ctx.caller.who)
    others = (_task(stored, target, ctx), _provenance(stored, [f"ServiceRequest/{stored['id']}"], taken.name, ctx))
    return Consequences(stored, others, taken.name, stored["id"])


def _task_rule(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    request = ctx.view.get(case_of(before or after)) or {}
    if not is_case(request) or after["id"] != request["id"]:
        return Consequences(after)
    source = state_of(request, ctx.settings)
    if not roles_in_case(ctx.caller, request, ctx.view):
        raise refusal(ctx.caller, request, source, "changing the Task", "Task", ctx.view)
    if before:
        # What the Task says of the case follows from the request; the client's own words are the rest.
        own = {name: value for name, value in after.items() if name not in _TASK_FIXED}
        after = own | {name: before[name] for name in _TASK_FIXED if name in before}
    wanted = {"accepted": "in-progress", "rejected": "cancelled"}.get(after["status"], after["status"])
    if TASK_STATUS[source] == wanted:
        return Consequences(after, (), "", request["id"])
    target = next((state for state, status in TASK_STATUS.items() if status == wanted), None)
    if target is None:
        raise refusal(ctx.caller, request, source, f"Task.status {after['status']}", "Task.status", ctx.view)
    inner = _service_request(request, with_state(request, target, ctx.settings), ctx)
    task = _task(inner.resource, target, ctx, before or {})
    rest = tuple(other for other in inner.others if other["resourceType"] != "Task")
    merged = {**after, **task}
    return Consequences(merged, (inner.resource, *rest), inner.step, request["id"])


def _communication(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    request = _case(before, after, "Communication", ctx)
    if request is None:
        return Consequences(after)
    source = state_of(request, ctx.settings)
    if before is not None:
        raise refusal(ctx.caller, request, source, "changing a message already sent", "Communication", ctx.view)
    target: State = "in_progress" if source == "on-hold" else "on-hold"
    taken = step(ctx.caller, request, source, target, "Communication", ctx.view)
    if taken.name == "answer" and not after.get("inResponseTo"):
        text = "an answer names the question: set inResponseTo to the Communication it answers"
        raise Invalid(text, expression="Communication.inResponseTo", code="required")
    if not after.get("payload"):
        text = "a question or an answer needs a payload (contentString or contentAttachment)"
        raise Invalid(text, expression="Communication.payload", code="required")
    stored = dict(after)
    stored.setdefault("sent", instant(ctx.now))
    if ctx.caller.who:
        sender = stored.setdefault("sender", {"reference": ctx.caller.who, "display": ctx.caller.display})
        _own_name([sender.get("reference", "")], ctx, "Communication.sender")
    updated = with_state(request, target, ctx.settings)
    targets = [f"ServiceRequest/{request['id']}", f"Communication/{after['id']}"]
    others = (updated, _task(updated, target, ctx), _provenance(updated, targets, taken.name, ctx))
    return Consequences(stored, others, taken.name, request["id"])


def _diagnostic_report(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    request = _case(before, after, "DiagnosticReport", ctx)
    if request is None:
        return Consequences(after)
    source = state_of(request, ctx.settings)
    if before and before.get("status") == "final":
        raise refusal(ctx.caller, request, source, "changing a report already sent", "DiagnosticReport", ctx.view)
    taken = step(ctx.caller, request, source, "completed", "DiagnosticReport.status", ctx.view)
    if after.get("status") != "final":
        return Consequences(after, (), "", request["id"])
    if not after.get("conclusion"):
        text = "a final report needs a conclusion: it is what the requester reads"
        raise Invalid(text, expression="DiagnosticReport.conclusion", code="required")
    if after.get("subject", {}).get("reference") != request["subject"].get("reference"):
        text = f"the report is about another patient than its request ({request['subject'].get('reference')})"
        raise RuleBroken(text, expression="DiagnosticReport.subject")
    stored = dict(after)
    stored.setdefault("issued", instant(ctx.now))
    if ctx.caller.who:
        signed = stored.setdefault("resultsInterpreter", [{"reference": ctx.caller.who, "display": ctx.caller.display}])
        _own_name([person.get("reference", "") for person in signed], ctx, "DiagnosticReport.resultsInterpreter")
    updated = with_state(request, "completed", ctx.settings)
    targets = [f"ServiceRequest/{request['id']}", f"DiagnosticReport/{after['id']}"]
    others = (updated, _task(updated, "completed", ctx), _provenance(updated, targets, taken.name, ctx))
    return Consequences(stored, others, taken.name, request["id"], final=True)


_RULES: Mapping[str, Callable[[Resource | None, Resource, Context], Consequences]] = {
    "ServiceRequest": _service_request,
    "Task": _task_rule,
    "Communication": _communication,
    "DiagnosticReport": _diagnostic_report,
}


_TASK_FIXED = ("focus", "for", "intent", "code", "requester", "owner", "authoredOn", "executionPeriod")


def _unchanged(before: Resource, after: Resource, source: State | None, ctx: Context) -> None:
    """What stands once a request is made: its patient, and once it is out its requester and its consent."""
    if before.get("subject") != after.get("subject"):
        text = "the patient of a request cannot change; void it and ask again"
        raise RuleBroken(text, expression="ServiceRequest.subject")
    if source == "draft":
        return
    if before["requester"].get("reference") != after["requester"].get("reference"):
        text = "the requester of a request that is out cannot change; cancel it and ask again"
        raise RuleBroken(text, expression="ServiceRequest.requester")
    covered = consent_of(before, ctx.view, ctx.settings)
    if covered and consent_of(after, ctx.view, ctx.settings) is None:
        text = "a request that is out keeps the consent it was sent with; cancel it if the patient withdrew"
        raise RuleBroken(text, expression="ServiceRequest.supportingInfo")


def _need_people(request: Resource, ctx: Context) -> None:
    """A request goes out only when patient, requester and the one who is asked are stored here. Raises Invalid."""
    named = (
        ("subject", request["subject"]),
        ("requester", request["requester"]),
        *((f"performer[{index}]", performer) for index, performer in enumerate(request["performer"])),
    )
    for element, value in named:
        reference = value.get("reference", "")
        if ctx.view.get(reference) is None:
            text = f"{reference or 'what stands here'} is not stored here; send it first, or in the same Bundle"
            raise Invalid(text, expression=f"ServiceRequest.{element}", code="not-found")


def _shape(request: Resource) -> None:
    """What the draft guide asks of a request beyond base FHIR. Raises Invalid naming the element."""
    checks = (
        (request.get("intent") == "proposal", "intent", "the intent of a téléexpertise is `proposal`"),
        (request.get("requester", {}).get("reference"), "requester", "name the requester (PractitionerRole)"),
        (request.get("subject", {}).get("reference"), "subject", "name the patient by a reference"),
        (request.get("performer"), "performer", "name the expert group (HealthcareService) that is asked"),
        (request.get("authoredOn"), "authoredOn", "say when it was asked (authoredOn)"),
    )
    for good, element, text in checks:
        if not good:
            raise Invalid(text, expression=f"ServiceRequest.{element}", code="required")


def _need_consent(request: Resource, ctx: Context) -> None:
    """CSP R.6316: no request goes out without the patient's consent on record. Raises RuleBroken."""
    if consent_of(request, ctx.view, ctx.settings) is None:
        raise RuleBroken(
            "no consent of the patient is recorded: send an active Consent of this patient that permits and that the "
            "request names in supportingInfo, or set the draft guide's patientConsent extension to true; "
            "until then the request can be kept as draft",
            expression="ServiceRequest.supportingInfo",
        )


def consent_of(request: Resource, view: View, settings: Settings) -> Resource | None:
    """The Consent that covers the request; a bare one stands for the draft guide's boolean; None without any."""
    patient = request["subject"].get("reference")
    for item in request.get("supportingInfo", ()):
        reference = item.get("reference", "")
        consent = view.get(reference) if reference.startswith("Consent/") else None
        if consent and _covers(consent, patient):
            return consent
    for extension in request.get("extension", ()):
        if extension.get("url") == settings.extension_patient_consent and extension.get("valueBoolean") is True:
            return {"resourceType": "Consent", "status": "active", "dateTime": request["authoredOn"]}
    return None


def _covers(consent: Resource, patient: str | None) -> bool:
    return (
        consent.get("status") == "active"
        and consent.get("patient", {}).get("reference") == patient
        and consent.get("provision", {}).get("type", "permit") == "permit"
    )


def _case(before: Resource | None, after: Resource, name: str, ctx: Context) -> Resource | None:
    """The téléexpertise a resource belongs to by basedOn, and cannot leave. Raises Invalid for two at once."""
    for resource in (before, after):
        cases = [found for reference in _based_on(resource or {}) if is_case(found := ctx.view.get(reference) or {})]
        if len(cases) > 1:
            text = f"a {name} belongs to one téléexpertise, not to {len(cases)}"
            raise Invalid(text, expression=f"{name}.basedOn")
        if cases:
            return cases[0]
    return None


def _based_on(resource: Mapping[str, Any]) -> list[str]:
    references = (item.get("reference", "") for item in resource.get("basedOn", ()))
    return list(dict.fromkeys(reference for reference in references if reference.startswith("ServiceRequest/")))


def _own_name(references: list[str], ctx: Context, expression: str) -> None:
    """Nobody signs for somebody else. Raises RuleBroken naming the element."""
    if references != [ctx.caller.who]:
        text = (
            f"a message or report is signed by who sends it ({ctx.caller.who}); leave the element out or name yourself"
        )
        raise RuleBroken(text, expression=expression)


def _with_performer(request: Resource, who: str) -> Resource:
    performers = request.get("performer", [])
    if not who or any(performer.get("reference") == who for performer in performers):
        return request
    return {**request, "performer": [*performers, {"reference": who}]}


def _with_accession(request: Resource, ctx: Context) -> Resource:
    """The request with an accession number: the one it brings, or ours, always the same for a request.

    Raises Invalid for one that does not fit into DICOM or that another request has.
    """
    namespace = namespace_of(ctx.sites.default, "ACSN")
    identifiers = request.get("identifier", [])
    for index, identifier in enumerate(identifiers):
        value = identifier.get("value", "")
        if not value or "ACSN" not in {coding.get("code") for coding in identifier.get("type", {}).get("coding", ())}:
            continue
        where = f"ServiceRequest.identifier[{index}].value"
        if len(value) > ACCESSION_LENGTH:
            text = f"an accession number has at most {ACCESSION_LENGTH} characters (DICOM SH); leave it out to get one"
            raise Invalid(text, expression=where, code="value")
        others = ctx.view.find("ServiceRequest", identifier_query(identifier.get("system", ""), value))
        if any(other["id"] != request["id"] for other in others):
            raise Invalid(f"another request has the accession number {value}", expression=where, code="duplicate")
        return request
    if namespace is None:
        return request
    digest = hashlib.sha256(request["id"].encode()).digest()
    value = "TLX" + base64.b32encode(digest)[:12].decode("ascii")
    return {**request, "identifier": [*identifiers, {"type": ACSN, "system": namespace.fhir_system, "value": value}]}


def _task(request: Resource, state: State, ctx: Context, before: Resource | None = None) -> Resource:
    """The group's Task; it shares the id of its request."""
    before = (ctx.view.get(f"Task/{request['id']}") or {}) if before is None else before
    group = next((p for p in request["performer"] if p.get("reference", "").startswith("HealthcareService/")), None)
    owner = request["performer"][-1] if state not in ("draft", "ready") else group or request["performer"][0]
    task: Resource = {
        "resourceType": "Task",
        "id": request["id"],
        "status": TASK_STATUS[state],
        "businessStatus": {"text": state},
        "intent": "proposal",
        "priority": request.get("priority", "routine"),
        "code": {"coding": [{"system": CATEGORY_NOS, "code": CATEGORY}], "text": "Téléexpertise"},
        "focus": {"reference": f"ServiceRequest/{request['id']}"},
        "for": request["subject"],
        "authoredOn": before.get("authoredOn", instant(ctx.now)),
        "lastModified": instant(ctx.now),
        "requester": request["requester"],
        "owner": {key: owner[key] for key in ("reference", "display") if key in owner},
    }
    period = dict(before.get("executionPeriod", {}))
    if state == "in_progress":
        period.setdefault("start", instant(ctx.now))
    if state in ("completed", "revoked") and period:
        period["end"] = instant(ctx.now)
    if period:
        task["executionPeriod"] = period
    return task


def _provenance(request: Resource, targets: list[str], name: str, ctx: Context) -> Resource:
    who: Resource = {"display": ctx.caller.display or "Passerelle"}
    if ctx.caller.who:
        who["reference"] = ctx.caller.who
    seed = f"{request['id']}|{name}|{instant(ctx.now)}"
    return {
        "resourceType": "Provenance",
        "id": hashlib.sha256(seed.encode()).hexdigest()[:32],
        "target": [{"reference": target} for target in targets],
        "recorded": instant(ctx.now),
        "activity": {"coding": [{"system": "urn:passerelle:etape", "code": name}]},
        "agent": [{"who": who}],
    }
