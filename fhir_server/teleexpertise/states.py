"""The states of a téléexpertise and who may take which step: one literal table.

The state is read from ServiceRequest.status and the draft guide's split of `active`
(https://interop.esante.gouv.fr/ig/fhir/teleexpertise-confluence, life cycle of the statuses; HAS guide of May 2019:
an acceptance or a refusal is traced).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fhir_server.config import Settings
from fhir_server.context import Caller, Role, View
from fhir_server.errors import Issue, RuleBroken

State = Literal["draft", "ready", "in_progress", "on-hold", "completed", "revoked", "entered-in-error"]


@dataclass(frozen=True, slots=True)
class Step:
    """One legal step: `by` are the roles that may take it; `how` tells an integrator which request does it."""

    name: str
    source: State | None
    target: State
    by: frozenset[Role]
    how: str


_ROLES: Mapping[str, Role] = {
    "requester": "requester",
    "expert": "expert",
    "partner": "partner",
    "system": "system",
    "admin": "admin",
}


def _step(name: str, source: State | None, target: State, by: str, how: str) -> Step:
    return Step(name, source, target, frozenset(_ROLES[word] for word in by.split()), how)


TRANSITIONS: tuple[Step, ...] = (
    _step("record", None, "draft", "requester partner system", "create the ServiceRequest with status draft"),
    _step(
        "ask", None, "ready", "requester partner system", "create the ServiceRequest with status active and a consent"
    ),
    _step("publish", "draft", "ready", "requester partner system", "set status active with a recorded consent"),
    _step("cancel", "draft", "revoked", "requester partner system", "set status revoked"),
    _step("take", "ready", "in_progress", "expert", "set the active status in_progress, or Task.status in-progress"),
    _step("refuse", "ready", "revoked", "expert", "set status revoked with a statusReason in a note"),
    _step("cancel", "ready", "revoked", "requester partner system", "set status revoked"),
    _step("question", "in_progress", "on-hold", "expert", "create a Communication based on the request"),
    _step("refuse", "in_progress", "revoked", "expert", "set status revoked with a statusReason in a note"),
    _step("report", "in_progress", "completed", "expert", "create a DiagnosticReport with status final"),
    _step(
        "answer", "on-hold", "in_progress", "requester partner", "create a Communication with inResponseTo the question"
    ),
    _step("cancel", "on-hold", "revoked", "requester partner system", "set status revoked"),
    _step("amend", "completed", "completed", "expert", "its signer sets DiagnosticReport.status amended or corrected"),
    _step(
        "withdraw", "completed", "completed", "expert admin", "its signer sets DiagnosticReport.status entered-in-error"
    ),
    _step("void", "draft", "entered-in-error", "requester partner admin", "set status entered-in-error"),
    _step("void", "ready", "entered-in-error", "requester partner admin", "set status entered-in-error"),
    _step("void", "in_progress", "entered-in-error", "requester partner admin", "set status entered-in-error"),
    _step("void", "on-hold", "entered-in-error", "requester partner admin", "set status entered-in-error"),
)
FINAL: frozenset[State] = frozenset({"completed", "revoked", "entered-in-error"})
# Steps that only another resource can cause: a PUT of the ServiceRequest alone is refused.
INDIRECT: Mapping[str, str] = {
    "question": "Communication",
    "answer": "Communication",
    "report": "DiagnosticReport",
    "amend": "DiagnosticReport",
    "withdraw": "DiagnosticReport",
}
CORRECTION = "correct"
"""Provenance.activity when the asking side rewrites the question of a request that is out; no step, nothing moves."""
FRENCH: Mapping[str, str] = {
    "record": "demande préparée",
    "ask": "avis demandé",
    "publish": "demande envoyée",
    "cancel": "demande annulée",
    "take": "demande prise en charge",
    "refuse": "demande refusée",
    "question": "question posée",
    "answer": "réponse donnée",
    "report": "compte rendu signé",
    "amend": "compte rendu corrigé",
    "withdraw": "compte rendu retiré",
    "void": "demande saisie par erreur",
    CORRECTION: "question rectifiée",
}
"""What a clinician reads for each step in the trace of a case."""
TASK_STATUS: Mapping[State, str] = {
    "draft": "draft",
    "ready": "requested",
    "in_progress": "in-progress",
    "on-hold": "on-hold",
    "completed": "completed",
    "revoked": "cancelled",
    "entered-in-error": "entered-in-error",
}


def state_of(request: Mapping[str, Any], settings: Settings) -> State:
    """The state a ServiceRequest stands in; `active` without a split status counts as `ready`."""
    status = request.get("status")
    if status != "active":
        return next((state for state in TASK_STATUS if state == status), "draft")
    for extension in request.get("extension", ()):
        if extension.get("url") == settings.extension_active_status:
            code = extension.get("valueCoding", {}).get("code") or extension.get("valueCode")
            return "in_progress" if code == "in_progress" else "ready"
    return "ready"


def with_state(request: Mapping[str, Any], state: State, settings: Settings) -> dict[str, Any]:
    """The same ServiceRequest standing in `state`."""
    out = dict(request)
    others = [e for e in request.get("extension", ()) if e.get("url") != settings.extension_active_status]
    if state in ("ready", "in_progress"):
        out["status"] = "active"
        coding = {"system": settings.system_active_status, "code": state}
        out["extension"] = [*others, {"url": settings.extension_active_status, "valueCoding": coding}]
    else:
        out["status"] = state
        out["extension"] = others
    if not out["extension"]:
        del out["extension"]
    return out


def roles_in_case(caller: Caller, request: Mapping[str, Any], view: View) -> frozenset[Role]:
    """The roles the caller really has towards this request: its own requester, a member of the group asked, ...

    `partner` is a requester's software (DPI, LGC): it may take the requester's steps for any of its users.
    """
    everywhere: tuple[Role, ...] = ("system", "admin", "partner")
    found: set[Role] = {role for role in everywhere if role in caller.roles}
    if "requester" in caller.roles and is_caller(request.get("requester", {}).get("reference", ""), caller, view):
        found.add("requester")
    performers = {performer.get("reference", "") for performer in request.get("performer", ())}
    if "expert" in caller.roles and (performers & caller.groups or caller.who in performers):
        found.add("expert")
    return frozenset(found)


def is_caller(reference: str, caller: Caller, view: View) -> bool:
    """Whether a PractitionerRole or Practitioner is the person who calls, be it in another of their roles."""
    if not reference or not caller.who:
        return False
    role = view.get(reference) or {}
    person = role.get("practitioner", {}).get("reference", "")
    return bool({reference, person} & ({caller.who, caller.practitioner} - {""}))


def holder(request: Mapping[str, Any], state: State | None) -> Mapping[str, Any]:
    """The performer who took the request, the last one; nothing before it is taken."""
    performers = request.get("performer") or [{}]
    taken = state in ("in_progress", "on-hold", "completed")
    found: Mapping[str, Any] = performers[-1] if taken else {}
    return found if found.get("reference", "").startswith(("PractitionerRole/", "Practitioner/")) else {}


def step(
    caller: Caller,
    request: Mapping[str, Any],
    source: State | None,
    target: State,
    expression: str,
    view: View,
    name: str = "",
) -> Step:
    """The legal step from `source` to `target` for this caller, the one called `name` where there are several. Raises
    RuleBroken that lists the legal steps."""
    roles = roles_in_case(caller, request, view)
    for legal in TRANSITIONS:
        if (legal.source, legal.target) == (source, target) and legal.by & roles and name in ("", legal.name):
            return legal
    raise refusal(caller, request, source, f"a step from {source or 'nothing'} to {target}", expression, view)


def refusal(
    caller: Caller, request: Mapping[str, Any], source: State | None, wanted: str, expression: str, view: View
) -> RuleBroken:
    """The 422 for a step that is not legal: what was wanted, by whom, and what is legal from here."""
    roles = roles_in_case(caller, request, view)
    who = f"{caller.display or caller.who or 'this caller'} ({', '.join(sorted(roles)) or 'no role in this case'})"
    legal = [s for s in TRANSITIONS if s.source == source]
    lines = "; ".join(f"{s.name} -> {s.target} by {' or '.join(sorted(s.by))}: {s.how}" for s in legal)
    text = f"{wanted} is not open to {who} in state {source or 'new'}. Legal steps: {lines or 'none, it is final'}"
    return RuleBroken(text, issues=(Issue("error", "business-rule", text, expression),))
