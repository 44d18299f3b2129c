"""One téléexpertise while rules look at it: what they are given, what they answer, and the resources of every step.

Sources: HAS, "Guide de bonnes pratiques" of May 2019 (each step is traced); draft guide
https://interop.esante.gouv.fr/ig/fhir/teleexpertise-confluence (category TRE_R213 `35`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from fhir_server.config import Settings
from fhir_server.context import Caller, View, instant
from fhir_server.errors import Invalid, RuleBroken
from fhir_server.patients.sites import Sites
from fhir_server.teleexpertise.states import TASK_STATUS, State
from profiles import json_edit

Resource = dict[str, Any]
CATEGORY = "35"
CATEGORY_OID = "urn:oid:1.2.250.1.213.3.3.13"
CATEGORY_NOS = "https://mos.esante.gouv.fr/NOS/TRE_R213-ModePriseEnCharge/FHIR/TRE-R213-ModePriseEnCharge"
CATEGORY_SYSTEMS = frozenset({CATEGORY_NOS, CATEGORY_OID, CATEGORY_NOS.replace("https://mos", "https://smt")})
IS_CASE = "category=" + ",".join(f"{system}|{CATEGORY}" for system in sorted(CATEGORY_SYSTEMS))
"""The search for what `is_case` says, also at the end of a chain."""
STEP_SYSTEM = "urn:passerelle:etape"
SERVER = "Passerelle"
"""Annotation.authorString of what this server notes on a Task."""


Handed = Literal["gone", "waits", "kept", "ended"]
"""Whether the partner may have a delivery (`gone`); if not, whether it waits, a person keeps it back, or it was given
up."""


def _handed(delivery_id: str) -> Handed:
    """Where no outbox is at hand, whatever was made is taken as received."""
    return "gone"


@dataclass(frozen=True, slots=True)
class Ordered:
    """One order message of a case: ORC-1, its lane, who is at the end of it, and the delivery that brings it. `ended`:
    that one was given up before anybody had it."""

    control: str
    lane: str
    addressee: str
    delivery: str
    ended: bool = False


def _nowhere(case: str) -> tuple[Ordered, ...]:
    """Where no outbox is at hand, nobody is known to hold an order."""
    return ()


@dataclass(frozen=True, slots=True)
class Context:
    """What the rules need beside the resources; `handed` tells what became of a delivery, `ordered` which orders of
    a case (`ServiceRequest/x`) the outbox has."""

    caller: Caller
    view: View
    settings: Settings
    sites: Sites
    now: datetime
    handed: Callable[[str], Handed] = _handed
    ordered: Callable[[str], tuple[Ordered, ...]] = _nowhere


@dataclass(frozen=True, slots=True)
class Consequences:
    """`resource`: the changed resource as it is to be stored; `others`: resources to write beside it (with their ids);
    `step`: the name of the step taken or ''; `request`: the ServiceRequest id; `final`: a report to render and send, or
    to take back; `claims`: (type, search query) whose answer the decision stands on, looked up again under a lock when
    writing; `unchanged`: the very same content again, which needs no new version."""

    resource: Resource
    others: tuple[Resource, ...] = ()
    step: str = ""
    request: str = ""
    final: bool = False
    claims: tuple[tuple[str, str], ...] = ()
    unchanged: bool = False


def is_case(request: Mapping[str, Any]) -> bool:
    """Whether a ServiceRequest is a téléexpertise: category TRE_R213 `35`."""
    return any(
        coding.get("code") == CATEGORY and coding.get("system") in CATEGORY_SYSTEMS
        for category in request.get("category", ())
        for coding in category.get("coding", ())
    )


def case_by_basis(before: Resource | None, after: Resource, name: str, view: View) -> Resource | None:
    """The téléexpertise a resource belongs to by basedOn. Raises Invalid for two at once."""
    wanted, held = (
        [found for key in based_on(resource or {}) if is_case(found := view.get(key) or {})]
        for resource in (after, before)
    )
    if wanted or held:
        all_here(after, name, ("basedOn", "subject"))
    if len(wanted) > 1:
        text = f"a {name} belongs to one téléexpertise, not to {len(wanted)}"
        raise Invalid(text, expression=f"{name}.basedOn")
    return next(iter([*wanted, *held]), None)


def all_here(resource: Mapping[str, Any], name: str, elements: Iterable[str]) -> None:
    """What belongs to a téléexpertise names it and its patient by references to this server. Raises Invalid."""
    for element in elements:
        value = resource.get(element, ())
        for index, one in enumerate(value if isinstance(value, list) else [value]):
            reference = str(one.get("reference", "")) if isinstance(one, Mapping) else ""
            if ":" in reference:
                text = f"{reference} is not this server's: a téléexpertise is about what is stored here"
                place = f"{name}.{element}" + (f"[{index}]" if isinstance(value, list) else "")
                raise Invalid(text, expression=f"{place}.reference", code="value")


def based_on(resource: Mapping[str, Any]) -> list[str]:
    """The ServiceRequests a resource is based on, whatever version it names of them."""
    references = (item.get("reference", "").split("/_history/")[0] for item in resource.get("basedOn", ()))
    return list(dict.fromkeys(reference for reference in references if reference.startswith("ServiceRequest/")))


def same(before: Resource, after: Resource, filled: Iterable[str] = ()) -> bool:
    """Whether `after` says again what is stored, to the last digit: `1.00` is another measure than `1.0`. `filled`:
    elements this server adds when the client leaves them out; version and instant of the stored one do not count.

    Source: https://hl7.org/fhir/R4/datatypes.html#decimal
    """
    said = {name: value for name, value in after.items() if name != "meta"}
    said |= {name: before[name] for name in filled if name not in said and name in before}
    kept = {name: value for name, value in before.items() if name != "meta"}
    return json_edit.same(said, kept) and json_edit.same(_own_meta(before), _own_meta(after))


def _own_meta(resource: Resource) -> Resource:
    meta = resource.get("meta", {})
    return {name: value for name, value in meta.items() if name not in ("versionId", "lastUpdated") and value}


def own_name(references: Iterable[str], ctx: Context, expression: str) -> None:
    """Nobody signs for somebody else. Raises RuleBroken naming the element."""
    if any(reference != ctx.caller.who for reference in references):
        text = (
            f"a message or report is signed by who sends it ({ctx.caller.who}); leave the element out or name yourself"
        )
        raise RuleBroken(text, expression=expression)


# What of a Task says how far its request is, or shows it: true for that state alone.
_OF_THE_STATE = frozenset({"status", "statusReason", "businessStatus", "executionPeriod", "text"})


def task(request: Resource, state: State, ctx: Context, before: Resource | None = None) -> Resource:
    """The group's Task; it shares the id of its request. What others wrote into it stays."""
    before = (ctx.view.get(f"Task/{request['id']}") or {}) if before is None else before
    group = next((p for p in request["performer"] if p.get("reference", "").startswith("HealthcareService/")), None)
    owner = request["performer"][-1] if state not in ("draft", "ready") else group or request["performer"][0]
    kept = {key: value for key, value in before.items() if key not in _OF_THE_STATE}
    made: Resource = kept | {
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
        made["executionPeriod"] = period
    return made


def provenance(
    request: Resource,
    targets: Iterable[str],
    name: str,
    ctx: Context,
    sources: Iterable[str] = (),
    *,
    revised: Resource | None = None,
    reason: str = "",
) -> Resource:
    """Who took the step `name`, when, on what and why; `sources` are what it stands on (the consent of a request),
    `revised` is the version it replaces."""
    who: Resource = {"display": ctx.caller.display or "Passerelle"}
    if ctx.caller.who:
        who["reference"] = ctx.caller.who
    seed = f"{request['id']}|{name}|{instant(ctx.now)}"
    made: Resource = {
        "resourceType": "Provenance",
        "id": hashlib.sha256(seed.encode()).hexdigest()[:32],
        "target": [{"reference": target} for target in targets],
        "recorded": instant(ctx.now),
        "activity": {"coding": [{"system": STEP_SYSTEM, "code": name}]},
        "agent": [{"who": who}],
    }
    entities = [{"role": "source", "what": {"reference": source}} for source in sources]
    if revised is not None:
        version = revised.get("meta", {}).get("versionId", "")
        old = f"{revised['resourceType']}/{revised['id']}" + (f"/_history/{version}" if version else "")
        entities.append({"role": "revision", "what": {"reference": old}})
    if reason:
        made["reason"] = [{"text": reason}]
    return made | ({"entity": entities} if entities else {})
