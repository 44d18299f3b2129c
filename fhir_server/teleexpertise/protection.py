"""What a téléexpertise rests on stays: the documents of a report, its Provenance, the consent it went out with.

A téléexpertise is voided, never deleted (CSP R.6316-4 asks for a trace; HAS guide of May 2019). Repeating what is
stored is no change; a patient may always withdraw a consent.
"""

from __future__ import annotations

from fhir_server.errors import Conflict, Forbidden, RuleBroken
from fhir_server.teleexpertise.attachments import case_of_attachment
from fhir_server.teleexpertise.case import (
    IS_CASE,
    STEP_SYSTEM,
    Consequences,
    Context,
    Resource,
    based_on,
    is_case,
    same,
)
from fhir_server.teleexpertise.opinion import SIGNED, WITHDRAWN
from fhir_server.teleexpertise.order_record import ORDERS
from fhir_server.teleexpertise.scopes import case_of
from fhir_server.teleexpertise.states import FINAL, refusal, state_of
from fhir_server.teleexpertise.succession import DISTRIBUTED

_SENT = SIGNED | {WITHDRAWN}
_OF_A_REPORT = f"related:DiagnosticReport.based-on:ServiceRequest.{IS_CASE}"
_TAKEN_BACK = ("inactive", "rejected", "entered-in-error")
_PEOPLE = ("Practitioner/", "PractitionerRole/")
_DIRECTORY = frozenset({"Practitioner", "PractitionerRole", "Organization", "HealthcareService"})
WRITTEN_BY_OTHERS = _DIRECTORY | {"Endpoint", "OrganizationAffiliation"}
"""What nobody writes as a person who asks or answers; it says who may see, take and sign, and where reports go."""
_PERSONAL = frozenset({"requester", "expert"})
_LIVE = "draft,active,on-hold"
# Type, search parameter, and what else is asked: that the case is one, and not over.
_USES = (
    ("ServiceRequest", "requester", f"status={_LIVE}&{IS_CASE}"),
    ("ServiceRequest", "performer", f"status={_LIVE}&{IS_CASE}"),
    ("Task", "owner", f"status=draft,requested,in-progress,on-hold&focus:ServiceRequest.{IS_CASE}"),
)
# What stands for a structure or a person in a case: themselves, or a role of theirs.
_ROLE_OF = {"Practitioner": ":PractitionerRole.practitioner", "Organization": ":PractitionerRole.organization"}


def directory(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """Who belongs to which group, and where things are sent, is not for those who ask and answer to say. Raises
    Forbidden."""
    if before is None or not same(before, after):
        _not_by_a_person(after["resourceType"], ctx)
    return Consequences(after)


def _not_by_a_person(kind: str, ctx: Context) -> None:
    if ctx.caller.roles and ctx.caller.roles <= _PERSONAL:
        text = f"{kind} is part of the directory: an administrator (role admin) or a system with the right changes it"
        raise Forbidden(text, expression=kind)


def document_reference(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """The record of a report's documents is written by this server alone, and nothing joins them. Raises RuleBroken."""
    held, wanted = (
        [(index, one) for index, one in enumerate(document.get("extension", ())) if one.get("url") == DISTRIBUTED]
        for document in (before or {}, after)
    )
    if [one for _, one in held] != [one for _, one in wanted]:
        text = "who got a document is told by this server; leave the extension as it is, or out of a document of yours"
        place = f"DocumentReference.extension[{wanted[0][0]}]" if wanted else "DocumentReference.extension"
        raise RuleBroken(text, expression=place)
    request = _case_of_documents(before, ctx) if before else None
    if request is None and _case_of_documents(after, ctx):
        text = "the documents of a signed report are made by this server; relate yours to the ServiceRequest"
        raise RuleBroken(text, expression="DocumentReference.context.related")
    return _kept(before, after, request, ctx)


def binary(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """The PDF and the CDA of a report stay as they were sent."""
    return _kept(before, after, _case_of_binary(before, ctx) if before else None, ctx)


def consent(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """A consent that a request went out with stays, but can be withdrawn by its status alone."""
    request = _case_of_consent(before, ctx) if before else None
    withdrawn = after.get("status") in _TAKEN_BACK
    if before and request and withdrawn and same(before | {"status": after["status"]}, after):
        return Consequences(after)
    return _kept(before, after, request, ctx, "; set its status to inactive to withdraw it, or record a new one")


def provenance(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """Provenance of a case is written once, and only about oneself; who holds an order stands in one of ours."""
    held, wanted = (
        [one for one in told.get("extension", ()) if one.get("url") == ORDERS] for told in (before or {}, after)
    )
    if held != wanted:
        text = "who holds an order is told by this server; leave the extension as it is, or out of yours"
        raise RuleBroken(text, expression="Provenance.extension")
    if before:
        return _kept(before, after, _case_of_provenance(before, ctx), ctx)
    if _case_of_provenance(after, ctx) is None:
        return Consequences(after)
    if any(coding.get("system") == STEP_SYSTEM for coding in after.get("activity", {}).get("coding", ())):
        text = "the steps of a téléexpertise are told by this server; use another activity"
        raise RuleBroken(text, expression="Provenance.activity")
    for index, agent in enumerate(after.get("agent", ())):
        who = agent.get("who", {}).get("reference", "")
        if who.startswith(_PEOPLE) and who not in (ctx.caller.who, ctx.caller.practitioner):
            text = f"{who} is not who sends this ({ctx.caller.who or ctx.caller.display}); name yourself"
            raise RuleBroken(text, expression=f"Provenance.agent[{index}].who")
    return Consequences(after)


def guard_delete(before: Resource, ctx: Context) -> None:
    """A téléexpertise is voided, never deleted, nor is anything that belongs to it. Raises RuleBroken or Conflict."""
    kind = before["resourceType"]
    if kind in WRITTEN_BY_OTHERS:
        _not_by_a_person(kind, ctx)
    if kind == "Patient":
        for request in ctx.view.find("ServiceRequest", f"subject=Patient/{before['id']}&{IS_CASE}"):
            if is_case(request):
                text = f"this patient has the téléexpertise ServiceRequest/{request['id']}; set active to false instead"
                raise Conflict(text, expression="Patient")
    _not_in_use(before, ctx)
    finder = _CASES.get(kind)
    found = finder(before, ctx) if finder else None
    own = before if kind == "ServiceRequest" else ctx.view.get(case_of(before))
    request = found or own or {}
    if is_case(request):
        source = state_of(request, ctx.settings)
        raise refusal(ctx.caller, request, source, f"deleting a {kind}", "id", ctx.view)


def _not_in_use(before: Resource, ctx: Context) -> None:
    """Who asks, is asked or answers in a case that is not over stays in the directory. Raises Conflict."""
    kind, own = before["resourceType"], f"{before['resourceType']}/{before['id']}"
    if kind not in _DIRECTORY:
        return
    for other, element, live in _USES:
        for chain in ("", _ROLE_OF.get(kind)):
            if chain is None:
                continue
            for found in ctx.view.find(other, f"{element}{chain}={own}&{live}"):
                request = found if other == "ServiceRequest" else ctx.view.get(case_of(found)) or {}
                if is_case(request) and state_of(request, ctx.settings) not in FINAL:
                    case, whose = f"ServiceRequest/{request['id']}", "a role of " if chain else ""
                    text = f"{whose}{own} is {element} of {case}, which is not over; set active to false instead"
                    raise Conflict(text, expression=kind)


def _kept(
    before: Resource | None, after: Resource, request: Resource | None, ctx: Context, remedy: str = ""
) -> Consequences:
    if before is None or request is None:
        return Consequences(after)
    if same(before, after):
        return Consequences(before, unchanged=True)
    kind = before["resourceType"]
    text = f"changing {kind}/{before['id']}, which ServiceRequest/{request['id']} rests on{remedy}"
    raise refusal(ctx.caller, request, state_of(request, ctx.settings), text, kind, ctx.view)


def _case_of_documents(document: Resource, ctx: Context) -> Resource | None:
    """The case whose signed report a DocumentReference records."""
    for item in document.get("context", {}).get("related", ()):
        reference = item.get("reference", "")
        report = ctx.view.get(reference) if reference.startswith("DiagnosticReport/") else None
        if report and report.get("status") in _SENT:
            for key in based_on(report):
                if is_case(request := ctx.view.get(key) or {}):
                    return request
    return None


def _case_of_binary(found: Resource, ctx: Context) -> Resource | None:
    """The case of the report whose documents lie in a Binary, or of a message that brings it along."""
    documents = ctx.view.find("DocumentReference", f"location=Binary/{found['id']}&{_OF_A_REPORT}")
    cases = (_case_of_documents(document, ctx) for document in documents)
    return next((request for request in cases if request), None) or case_of_attachment(found, ctx)


def _case_of_consent(found: Resource, ctx: Context) -> Resource | None:
    """A case that went out with a Consent: the Provenance of that step names it."""
    for told in ctx.view.find("Provenance", f"entity=Consent/{found['id']}&target:ServiceRequest.{IS_CASE}"):
        if is_case(request := ctx.view.get(case_of(told)) or {}):
            return request
    return None


def _case_of_provenance(found: Resource, ctx: Context) -> Resource | None:
    """The case a Provenance tells of, by the request itself or by what is based on it."""
    for item in found.get("target", ()):
        reference = item.get("reference", "").split("/_history/")[0]
        target = ctx.view.get(reference) or {}
        for key in (reference, *based_on(target)):
            if key.startswith("ServiceRequest/") and is_case(request := ctx.view.get(key) or {}):
                return request
    return None


_CASES = {"Binary": _case_of_binary, "Consent": _case_of_consent, "Provenance": _case_of_provenance}
