"""Writing the DiagnosticReport of a téléexpertise: signed once, by the expert in person, about the case's patient.

Correcting a report that was sent (amended, corrected) is not offered yet: it would need documents that replace the
first ones on every road. Source: https://hl7.org/fhir/R4/valueset-diagnostic-report-status.html.
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
from fhir_server.teleexpertise.states import refusal, roles_in_case, state_of, step, with_state

SIGNED = frozenset({"final", "amended", "corrected", "appended"})
_FILLED = ("issued", "resultsInterpreter")
_PEOPLE = ("Practitioner/", "PractitionerRole/")


def diagnostic_report(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """Guards and consequences of writing a DiagnosticReport. Raises RuleBroken or Invalid."""
    request = case_by_basis(before, after, "DiagnosticReport", ctx.view)
    if request is None:
        return Consequences(after, claims=outside_claims(after))
    source = state_of(request, ctx.settings)
    if before and before.get("status") in SIGNED:
        if roles_in_case(ctx.caller, request, ctx.view) and same(before, after, _FILLED):
            return Consequences(before, (), "", request["id"], unchanged=True)
        wanted = "changing a report already sent (corrections are not offered yet: ask and answer in a new request)"
        raise refusal(ctx.caller, request, source, wanted, "DiagnosticReport", ctx.view)
    taken = step(ctx.caller, request, source, "completed", "DiagnosticReport.status", ctx.view)
    if after.get("status") in SIGNED - {"final"}:
        text = f"`{after['status']}` corrects a report that was sent, and none was; sign it as final"
        raise Invalid(text, expression="DiagnosticReport.status", code="value")
    _about_the_patient(after, request)
    if after.get("status") != "final":
        return Consequences(after, (), "", request["id"])
    if not after.get("conclusion"):
        text = "a final report needs a conclusion: it is what the requester reads"
        raise Invalid(text, expression="DiagnosticReport.conclusion", code="required")
    stored = _signed(after, ctx)
    updated = with_state(request, "completed", ctx.settings)
    targets = [f"ServiceRequest/{request['id']}", f"DiagnosticReport/{after['id']}"]
    others = (updated, task(updated, "completed", ctx), provenance(updated, targets, taken.name, ctx))
    return Consequences(stored, others, taken.name, request["id"], final=True)


def _about_the_patient(report: Resource, request: Resource) -> None:
    """The patient of the case and no other; one in preparation need not name them yet. Raises RuleBroken."""
    about = report.get("subject", {}).get("reference")
    if (about or report.get("status") == "final") and about != request["subject"].get("reference"):
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
