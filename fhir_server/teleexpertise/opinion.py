"""Writing the DiagnosticReport of a téléexpertise: signed by the expert in person, who alone corrects it.

A correction (amended, corrected, appended) is a new version of the documents for everybody who has one; a withdrawal
(entered-in-error) takes them back, by the signer or by an administrator. Neither moves the case: it stays completed, as
the draft guide has no step from there. Every new version, the signed one too, keeps the security labels when it gives
none. The reason stands in the extension statusReason; one that was there before is no reason of this change.

Sources: https://hl7.org/fhir/R4/valueset-diagnostic-report-status.html;
https://hl7.org/fhir/R4/extension-event-statusreason.html.
"""

from __future__ import annotations

from fhir_server.context import instant
from fhir_server.errors import Invalid, RuleBroken
from fhir_server.teleexpertise.belonging import outside_claims
from fhir_server.teleexpertise.case import (
    Consequences,
    Context,
    Resource,
    case_by_basis,
    own_name,
    provenance,
    same,
    task,
)
from fhir_server.teleexpertise.states import State, is_caller, refusal, roles_in_case, state_of, step, with_state

CORRECTING = frozenset({"amended", "corrected", "appended"})
SIGNED = CORRECTING | {"final"}
WITHDRAWN = "entered-in-error"
REASON = "http://hl7.org/fhir/StructureDefinition/event-statusReason"
_FILLED = ("issued", "resultsInterpreter")
_PEOPLE = ("Practitioner/", "PractitionerRole/")
# What the documents print of a report: a correction changes one of these.
_TOLD = ("conclusion", "conclusionCode")
# What a correction may change beside: the rest is what was signed. The narrative repeats what is told.
_BESIDE = ("status", "extension", "meta", "text", *_FILLED)


def diagnostic_report(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """Guards and consequences of writing a DiagnosticReport. Raises RuleBroken or Invalid."""
    request = case_by_basis(before, after, "DiagnosticReport", ctx.view)
    if request is None:
        return Consequences(after, claims=outside_claims(after))
    if before is not None:
        after = _labelled(before, after)
    source = state_of(request, ctx.settings)
    over = before is not None and before.get("status") == WITHDRAWN and source == "completed"
    if before is not None and (over or before.get("status") in SIGNED):
        return _signed_before(before, after, request, source, ctx)
    taken = step(ctx.caller, request, source, "completed", "DiagnosticReport.status", ctx.view, "report")
    if after.get("status") in CORRECTING:
        text = f"`{after['status']}` corrects a report that was sent, and none was; sign it as final"
        raise Invalid(text, expression="DiagnosticReport.status", code="value")
    _about_the_patient(after, request)
    if after.get("status") != "final":
        return Consequences(after, (), "", request["id"])
    _need_conclusion(after)
    stored = _signed(after, ctx)
    updated = with_state(request, "completed", ctx.settings)
    targets = [f"ServiceRequest/{request['id']}", f"DiagnosticReport/{after['id']}"]
    others = (updated, task(updated, "completed", ctx), provenance(updated, targets, taken.name, ctx))
    return Consequences(stored, others, taken.name, request["id"], final=True)


def _signed_before(before: Resource, after: Resource, request: Resource, source: State, ctx: Context) -> Consequences:
    """What was sent is said again, corrected or taken back; everything else is refused."""
    if (_signed_it(before, ctx) or roles_in_case(ctx.caller, request, ctx.view)) and _said_again(before, after):
        return Consequences(before, (), "", request["id"], unchanged=True)
    if before["status"] == WITHDRAWN:
        wanted = "changing a report that was withdrawn (ask and answer in a new request)"
    elif after.get("status") in CORRECTING:
        return _corrected(before, after, request, source, ctx)
    elif after.get("status") == WITHDRAWN:
        return _withdrawn(before, after, request, source, ctx)
    else:
        wanted = "changing a report already sent, but by a correction or a withdrawal,"
    raise refusal(ctx.caller, request, source, wanted, "DiagnosticReport", ctx.view)


def _labelled(before: Resource, after: Resource) -> Resource:
    """Who says nothing of who may see it (`meta.security`) leaves it hidden from whom it was; a label lifts that."""
    labels = before.get("meta", {}).get("security")
    meta = after.get("meta", {})
    return after | {"meta": meta | {"security": labels}} if labels and not meta.get("security") else after


def _said_again(before: Resource, after: Resource) -> bool:
    """The same again; a correction that is repeated may carry the instant of the version it was made from."""
    if before["status"] in CORRECTING and after.get("status") == before["status"] and "issued" in before:
        after = after | {"issued": before["issued"]}
    return same(before, after, _FILLED)


def _corrected(before: Resource, after: Resource, request: Resource, source: State, ctx: Context) -> Consequences:
    _may("amend", before, request, source, ctx)
    _about_the_patient(after, request)
    _need_conclusion(after)
    labels = (one.get("meta", {}).get("security") for one in (before, after))
    if all(before.get(name) == after.get(name) for name in _TOLD) and len({str(label) for label in labels}) == 1:
        text = "a correction changes what the report says (conclusion, conclusionCode, security label)"
        raise Invalid(text, expression="DiagnosticReport.conclusion", code="value")
    kept = {name: value for name, value in after.items() if name != "issued" or value != before.get("issued")}
    signers = before.get("resultsInterpreter", [])
    if after.get("resultsInterpreter", signers) != signers:
        text = "who signed a report stays; leave the element out or send it back as it is"
        raise RuleBroken(text, expression="DiagnosticReport.resultsInterpreter")
    for name in sorted({*before, *after} - {*_TOLD, *_BESIDE}):
        if before.get(name) != after.get(name):
            text = "a correction changes what the report concludes, not what it is about; ask and answer again for that"
            raise RuleBroken(text, expression=f"DiagnosticReport.{name}")
    stored = {"issued": instant(ctx.now), **kept, "resultsInterpreter": signers}
    return _traced(before, stored, request, "amend", ctx)


def _withdrawn(before: Resource, after: Resource, request: Resource, source: State, ctx: Context) -> Consequences:
    _may("withdraw", before, request, source, ctx)
    if not _new_reason(before, after):
        text = f"say why the report is withdrawn now: its readers are told ({REASON}, valueCodeableConcept.text)"
        raise Invalid(text, expression="DiagnosticReport.extension", code="required")
    was, now = (_without_status(one) for one in (before, after))
    if not same(was, now, _FILLED):
        text = "a withdrawal changes the status and gives the reason, nothing else; what was said stays on record"
        raise RuleBroken(text, expression="DiagnosticReport")
    stored = after | {name: before[name] for name in _FILLED if name in before}
    return _traced(before, stored, request, "withdraw", ctx)


def _traced(before: Resource, stored: Resource, request: Resource, name: str, ctx: Context) -> Consequences:
    targets = [f"ServiceRequest/{request['id']}", f"DiagnosticReport/{stored['id']}"]
    told = provenance(request, targets, name, ctx, revised=before, reason=_new_reason(before, stored))
    return Consequences(stored, (told,), name, request["id"], final=True)


def reason_of(report: Resource) -> str:
    """Why a report has its status, in the words of who changed it, or ''."""
    for extension in report.get("extension", ()):
        if extension.get("url") == REASON:
            concept = extension.get("valueCodeableConcept", {})
            displays = (coding.get("display", "") for coding in concept.get("coding", ()))
            return str(concept.get("text") or next(filter(None, displays), "")).strip()
    return ""


def _new_reason(before: Resource, after: Resource) -> str:
    """The reason of this change: what stands there from the one before is none."""
    said = reason_of(after)
    return "" if said == reason_of(before) else said


def _without_status(report: Resource) -> Resource:
    """A report without its status and the reason for it."""
    others = [one for one in report.get("extension", ()) if one.get("url") != REASON]
    kept = {name: value for name, value in report.items() if name not in ("status", "extension")}
    return kept | ({"extension": others} if others else {})


def _signed_it(report: Resource, ctx: Context) -> bool:
    """Whether the caller signed it, and still works as an expert: in which group does not matter any more."""
    signers = (one.get("reference", "") for one in report.get("resultsInterpreter", ()))
    return "expert" in ctx.caller.roles and any(is_caller(one, ctx.caller, ctx.view) for one in signers)


def _may(name: str, before: Resource, request: Resource, source: State, ctx: Context) -> None:
    """Whoever signed answers for it; an administrator may take it back when nobody else can. Raises RuleBroken."""
    signed = _signed_it(before, ctx)
    if source == "completed" and signed:
        return
    step(ctx.caller, request, source, "completed", "DiagnosticReport.status", ctx.view, name)
    if not signed and not (name == "withdraw" and "admin" in ctx.caller.roles):
        signers = [one.get("reference", "") for one in before.get("resultsInterpreter", ())]
        text = f"a report is corrected or withdrawn by who signed it ({', '.join(signers) or 'nobody is named'})"
        raise RuleBroken(text, expression="DiagnosticReport.resultsInterpreter")


def _need_conclusion(report: Resource) -> None:
    if not report.get("conclusion"):
        text = "a final report needs a conclusion: it is what the requester reads"
        raise Invalid(text, expression="DiagnosticReport.conclusion", code="required")


def _about_the_patient(report: Resource, request: Resource) -> None:
    """The patient of the case and no other; one in preparation need not name them yet. Raises RuleBroken."""
    about = report.get("subject", {}).get("reference")
    if (about or report.get("status") in SIGNED) and about != request["subject"].get("reference"):
        text = f"the report is about another patient than its request ({request['subject'].get('reference')})"
        raise RuleBroken(text, expression="DiagnosticReport.subject")


def _signed(report: Resource, ctx: Context) -> Resource:
    """The report with its instant and its author: the caller, whoever else the content names."""
    if not ctx.caller.who:
        text = "a report is signed by a person: sign in as the expert"
        raise RuleBroken(text, expression="DiagnosticReport.resultsInterpreter")
    stored = dict(report)
    stored.setdefault("issued", instant(ctx.now))
    author = [{"reference": ctx.caller.who, "display": ctx.caller.display}]
    signed = stored.setdefault("resultsInterpreter", author)
    own_name([person.get("reference", "") for person in signed], ctx, "DiagnosticReport.resultsInterpreter")
    issuers = [issuer.get("reference", "") for issuer in stored.get("performer", ())]
    own_name([one for one in issuers if one.startswith(_PEOPLE)], ctx, "DiagnosticReport.performer")
    return stored
