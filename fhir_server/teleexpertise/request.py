"""Writing a ServiceRequest or its Task: what a request must say, what stays once it is out, who takes it.

Sources: draft guide, https://interop.esante.gouv.fr/ig/fhir/teleexpertise-confluence (profile cfl-ServiceRequest);
https://hl7.org/fhir/R4/servicerequest.html, /task.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fhir_server.errors import Conflict, Invalid, RuleBroken
from fhir_server.teleexpertise import readiness
from fhir_server.teleexpertise.accession import check_accessions, with_accession
from fhir_server.teleexpertise.belonging import begins_empty
from fhir_server.teleexpertise.case import (
    SERVER,
    Consequences,
    Context,
    Resource,
    all_here,
    is_case,
    provenance,
    task,
)
from fhir_server.teleexpertise.completion import completed
from fhir_server.teleexpertise.consent import consent_of, need_consent
from fhir_server.teleexpertise.scopes import case_of
from fhir_server.teleexpertise.states import (
    CORRECTION,
    FINAL,
    INDIRECT,
    TASK_STATUS,
    State,
    holder,
    is_caller,
    refusal,
    roles_in_case,
    state_of,
    step,
    with_state,
)

# Who asks, and who may do so in somebody's name; the others in a case are asked.
_ASKING = frozenset({"requester", "partner", "system", "admin"})
_QUESTION = (
    "code",
    "orderDetail",
    "reasonCode",
    "reasonReference",
    "bodySite",
    "occurrenceDateTime",
    "occurrencePeriod",
    "occurrenceTiming",
    "quantityQuantity",
    "patientInstruction",
    "encounter",
    "authoredOn",
)
_TASK_FIXED = ("focus", "for", "intent", "code", "requester", "owner", "authoredOn", "executionPeriod", "statusReason")


def service_request(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """Guards and consequences of writing a ServiceRequest. Raises RuleBroken, Invalid or Conflict."""
    held = before if before and is_case(before) else None
    if held is None and not is_case(after):
        return Consequences(after, claims=check_accessions(before, after, ctx))
    return _case(held, after, ctx)


def _case(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """`before` is None for a request that becomes a téléexpertise, new or not: it enters as a new one does."""
    source = state_of(before, ctx.settings) if before else None
    target = state_of(after, ctx.settings)
    _shape(after)
    ctx.view.get(after["subject"]["reference"])  # read, so that they are not deleted beside a draft either
    if before:
        _not_taken_by_another(before, target, source, "ServiceRequest.status", ctx)
        _unchanged(before, after, source, ctx)
    after, claims = with_accession(before, after, ctx)
    if source == target:
        if target in FINAL or (before and not roles_in_case(ctx.caller, before, ctx.view)):
            raise refusal(ctx.caller, before or after, source, "changing the request", "ServiceRequest", ctx.view)
        if before:
            after = after | {"performer": _performers(before, after, source, "", ctx)}
        if target != "draft":
            readiness.reason_given(after)
            _need_people(after, ctx)
            if before and _asked(before) != _asked(after):
                readiness.asked_here(after, ctx)
        stored = with_state(after, target, ctx.settings)
        rewritten = before is not None and source != "draft" and _rewritten(before, after)
        told = (provenance(stored, [f"ServiceRequest/{stored['id']}"], CORRECTION, ctx),) if rewritten else ()
        return Consequences(stored, told, "", after["id"], claims=claims)
    base = before or after
    claims += () if before else begins_empty(after, ctx)
    taken = step(ctx.caller, base, source, target, "ServiceRequest.status", ctx.view)
    if taken.name in INDIRECT:
        text = f"`{taken.name}` through the ServiceRequest alone (create the {INDIRECT[taken.name]} instead)"
        raise refusal(ctx.caller, base, source, text, "ServiceRequest.status", ctx.view)
    if before:
        after = after | {"performer": _performers(before, after, source, taken.name, ctx)}
    sources: tuple[str, ...] = ()
    if target == "ready":
        _need_people(after, ctx)
        consent, more = need_consent(after, ctx)
        readiness.request_complete(after, consent, ctx)
        claims += more
        sources = (f"Consent/{consent['id']}",) if consent.get("id") else ()
    stored = with_state(completed(after) if target == "ready" else after, target, ctx.settings)
    traced = provenance(stored, [f"ServiceRequest/{stored['id']}"], taken.name, ctx, sources)
    return Consequences(stored, (task(stored, target, ctx), traced), taken.name, stored["id"], claims=claims)


def task_rule(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """Guards and consequences of writing the Task of a request: a status of it is a step of the request."""
    request = ctx.view.get(case_of(before or after)) or {}
    if not is_case(request) or after["id"] != request["id"]:
        return Consequences(after)
    source = state_of(request, ctx.settings)
    if not roles_in_case(ctx.caller, request, ctx.view):
        raise refusal(ctx.caller, request, source, "changing the Task", "Task", ctx.view)
    if before:
        # What the Task says of the case follows from the request; the client's own words are the rest.
        own = {name: value for name, value in after.items() if name not in _TASK_FIXED}
        after = _with_our_notes(before, own | {name: before[name] for name in _TASK_FIXED if name in before})
    wanted = {"accepted": "in-progress", "rejected": "cancelled"}.get(after["status"], after["status"])
    target = next((state for state, status in TASK_STATUS.items() if status == wanted), None)
    _not_taken_by_another(request, target, source, "Task.status", ctx)
    if TASK_STATUS[source] == wanted:
        return Consequences(after, (), "", request["id"])
    if target is None:
        raise refusal(ctx.caller, request, source, f"Task.status {after['status']}", "Task.status", ctx.view)
    inner = service_request(request, with_state(request, target, ctx.settings), ctx)
    merged = {**after, **task(inner.resource, target, ctx, before or {})}
    rest = tuple(other for other in inner.others if other["resourceType"] != "Task")
    return Consequences(merged, (inner.resource, *rest), inner.step, request["id"], claims=inner.claims)


def _with_our_notes(before: Resource, after: Resource) -> Resource:
    """What this server noted on the Task stays, whatever the client sends."""
    ours = [note for note in before.get("note", ()) if note.get("authorString") == SERVER]
    notes = [note for note in after.get("note", ()) if note.get("authorString") != SERVER] + ours
    kept = {name: value for name, value in after.items() if name != "note"}
    if "coding" in before.get("businessStatus", {}):
        kept["businessStatus"] = before["businessStatus"]
    return kept | ({"note": notes} if notes else {})


def _not_taken_by_another(
    request: Resource, target: State | None, source: State | None, expression: str, ctx: Context
) -> None:
    """One expert has a request: a second who takes it is told who. Raises Conflict (409)."""
    who = holder(request, source)
    if target != "in_progress" or source not in ("in_progress", "on-hold") or not who:
        return
    if roles_in_case(ctx.caller, request, ctx.view) & _ASKING or is_caller(who["reference"], ctx.caller, ctx.view):
        return
    if "expert" in roles_in_case(ctx.caller, request, ctx.view):
        name = readiness.shown(who, ctx)
        text = f"{name} has taken ServiceRequest/{request['id']}; read it again, and ask them to hand it back"
        raise Conflict(text, expression=expression)


def _unchanged(before: Resource, after: Resource, source: State | None, ctx: Context) -> None:
    """What stands once a request is made: its kind and patient, and once it is out its requester and its consent."""
    if not is_case(after) and source not in FINAL:
        text = "a téléexpertise stays one: its category cannot change; void it (entered-in-error) and ask again"
        raise RuleBroken(text, expression="ServiceRequest.category")
    if _whom(before["subject"]) != _whom(after["subject"]):
        text = "the patient of a request cannot change; void it and ask again"
        raise RuleBroken(text, expression="ServiceRequest.subject")
    if before["requester"].get("reference") != after["requester"].get("reference"):
        if source != "draft":
            text = "the requester of a request that is out cannot change; cancel it and ask again"
            raise RuleBroken(text, expression="ServiceRequest.requester")
        if not roles_in_case(ctx.caller, after, ctx.view) & _ASKING:
            text = f"nobody asks in somebody else's name; the requester is {ctx.caller.who or 'who sends this'}"
            raise RuleBroken(text, expression="ServiceRequest.requester")
    if source == "draft":
        return
    changed = _rewritten(before, after)
    if changed and not roles_in_case(ctx.caller, before, ctx.view) & _ASKING:
        text = f"what was asked is the requester's to correct, not that of who answers; leave {changed} as it is"
        raise RuleBroken(text, expression=f"ServiceRequest.{changed}")
    covered = consent_of(before, ctx)
    if covered and consent_of(after, ctx) is None:
        text = "a request that is out keeps the consent it was sent with; cancel it if the patient withdrew"
        raise RuleBroken(text, expression="ServiceRequest.supportingInfo")


def _rewritten(before: Resource, after: Resource) -> str:
    """The first element of what is asked that differs, or ''."""
    return next((name for name in _QUESTION if before.get(name) != after.get(name)), "")


def _whom(reference: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in reference.items() if name != "display"}


def _asked(request: Resource) -> set[str]:
    return {str(performer.get("reference", "")) for performer in request["performer"]}


def _performers(
    before: Resource, after: Resource, source: State | None, name: str, ctx: Context
) -> list[dict[str, Any]]:
    """The performers as they are to be stored: who asks may choose others until somebody takes the request, and taking
    it adds the taker, last. Raises RuleBroken."""
    held, wanted = ({p.get("reference", ""): p for p in one["performer"]} for one in (before, after))
    own = is_caller(holder(before, source).get("reference", ""), ctx.caller, ctx.view)
    mine = ctx.caller.who if name == "take" or own else ""
    free = source in ("draft", "ready") and bool(roles_in_case(ctx.caller, before, ctx.view) & _ASKING)
    if (set(held) ^ set(wanted)) - {mine} and not free:
        text = "who is asked stays once the request is out of the requester's hands; cancel it and ask somebody else"
        raise RuleBroken(text, expression="ServiceRequest.performer")
    if name != "take":
        return list(after["performer"]) if free else list(before["performer"])
    readiness.expert_complete(ctx)
    taker = held.get(mine) or wanted.get(mine) or {"reference": mine}
    return [performer for key, performer in held.items() if key != mine] + [taker]


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
        (request.get("status") != "unknown", "status", "a téléexpertise has a known status: send draft or active"),
        (request.get("intent") == "proposal", "intent", "the intent of a téléexpertise is `proposal`"),
        (request.get("requester", {}).get("reference"), "requester", "name the requester (PractitionerRole)"),
        (request.get("subject", {}).get("reference"), "subject", "name the patient by a reference"),
        (request.get("performer"), "performer", "name the expert group (HealthcareService) that is asked"),
        (request.get("authoredOn"), "authoredOn", "say when it was asked (authoredOn)"),
    )
    for good, element, text in checks:
        if not good:
            raise Invalid(text, expression=f"ServiceRequest.{element}", code="required")
    all_here(request, "ServiceRequest", ("subject", "requester", "performer", "basedOn"))
