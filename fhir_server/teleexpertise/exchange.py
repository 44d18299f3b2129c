"""Writing a Communication of a téléexpertise: a question pauses the case, an answer resumes it.

Only a message that was sent is a step: one in preparation, given up (`not-done`), wrong (`entered-in-error`) or of
unknown fate moves nothing. What was sent stays; its sender may only mark it as entered in error.
Source: https://hl7.org/fhir/R4/valueset-event-status.html.
"""

from __future__ import annotations

from fhir_server.context import instant
from fhir_server.errors import Invalid, RuleBroken
from fhir_server.teleexpertise.attachments import need_attachments
from fhir_server.teleexpertise.belonging import outside_claims
from fhir_server.teleexpertise.case import (
    Consequences,
    Context,
    Resource,
    based_on,
    case_by_basis,
    own_name,
    provenance,
    same,
    task,
)
from fhir_server.teleexpertise.states import (
    FINAL,
    State,
    is_caller,
    refusal,
    roles_in_case,
    state_of,
    step,
    with_state,
)

SENT = frozenset({"completed", "in-progress"})
_FILLED = ("sent", "sender")


def communication(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """Guards and consequences of writing a Communication. Raises RuleBroken or Invalid."""
    request = case_by_basis(before, after, "Communication", ctx.view)
    if request is None:
        return Consequences(after, claims=outside_claims(after))
    source = state_of(request, ctx.settings)
    if before is not None and before.get("status") in SENT | {"entered-in-error"}:
        return _already_sent(before, after, request, ctx)
    if after.get("status") not in SENT:
        if source in FINAL or not roles_in_case(ctx.caller, request, ctx.view):
            raise refusal(ctx.caller, request, source, "writing a message", "Communication", ctx.view)
        _belongs(after, request, ctx)
        return Consequences(_signed(after, request, ctx), (), "", request["id"])
    target: State = "in_progress" if source == "on-hold" else "on-hold"
    taken = step(ctx.caller, request, source, target, "Communication", ctx.view)
    _belongs(after, request, ctx)
    if taken.name == "answer" and not after.get("inResponseTo"):
        text = "an answer names the question: set inResponseTo to the Communication it answers"
        raise Invalid(text, expression="Communication.inResponseTo", code="required")
    if not after.get("payload"):
        text = "a question or an answer needs a payload (contentString or contentAttachment)"
        raise Invalid(text, expression="Communication.payload", code="required")
    need_attachments(after, ctx)
    stored = _signed(after, request, ctx)
    stored.setdefault("sent", instant(ctx.now))
    updated = with_state(request, target, ctx.settings)
    targets = [f"ServiceRequest/{request['id']}", f"Communication/{after['id']}"]
    others = (updated, task(updated, target, ctx), provenance(updated, targets, taken.name, ctx))
    return Consequences(stored, others, taken.name, request["id"])


def _already_sent(before: Resource, after: Resource, request: Resource, ctx: Context) -> Consequences:
    """The same again is no change; its sender may say that it was an error; everything else is refused."""
    source = state_of(request, ctx.settings)
    if roles_in_case(ctx.caller, request, ctx.view) and same(before, after, _FILLED):
        return Consequences(before, (), "", request["id"], unchanged=True)
    error = {"status": "entered-in-error"}
    mine = is_caller(before.get("sender", {}).get("reference", ""), ctx.caller, ctx.view)
    if mine and source not in FINAL and same(before | error, after, (*_FILLED, "statusReason")):
        kept = {name: before[name] for name in _FILLED if name in before}
        return Consequences(after | kept, (), "", request["id"])
    wanted = "changing a message already sent (its sender may set status entered-in-error and nothing else)"
    raise refusal(ctx.caller, request, source, wanted, "Communication", ctx.view)


def _belongs(message: Resource, request: Resource, ctx: Context) -> None:
    """It answers messages of its own case, and is about the patient of the case. Raises Invalid."""
    case = f"ServiceRequest/{request['id']}"
    for index, item in enumerate(message.get("inResponseTo", ())):
        named = item.get("reference", "")
        answered = ctx.view.get(named) if named.startswith("Communication/") else None
        if answered is None or case not in based_on(answered) or answered.get("status") not in SENT:
            text = f"{named or 'what stands here'} is no message sent in {case}; name the question it answers"
            raise Invalid(text, expression=f"Communication.inResponseTo[{index}]", code="value")
    about = message.get("subject", {}).get("reference", "")
    if about and about != request["subject"].get("reference"):
        text = f"the message is about another patient than its request ({request['subject'].get('reference')})"
        raise RuleBroken(text, expression="Communication.subject")


def _signed(message: Resource, request: Resource, ctx: Context) -> Resource:
    """The message with its sender: the caller, or for a software without a person somebody of the requester's side."""
    stored = dict(message)
    if ctx.caller.who:
        sender = stored.setdefault("sender", {"reference": ctx.caller.who, "display": ctx.caller.display})
        own_name([sender.get("reference", "")], ctx, "Communication.sender")
        return stored
    sender = stored.get("sender", {}).get("reference", "")
    if sender and not _asks(sender, request, ctx):
        text = f"a software of the requester speaks for {request['requester'].get('reference')} and their structure"
        raise RuleBroken(text, expression="Communication.sender")
    return stored


def _asks(sender: str, request: Resource, ctx: Context) -> bool:
    """Whether a sender is the requester, in any of their roles, their structure, or a colleague there."""
    asker = request["requester"].get("reference", "")
    role, other = ctx.view.get(asker) or {}, ctx.view.get(sender) or {}
    person = role.get("practitioner", {}).get("reference", "")
    house = role.get("organization", {}).get("reference", "")
    known = {asker, person, house} - {""}
    links = {other.get(name, {}).get("reference", "") for name in ("practitioner", "organization")}
    return bool(({sender} | links) & known)
