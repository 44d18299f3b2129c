"""What the workflow tells by HL7 v2 beside reports: an order, the answer to one, the appointments of a request.

Everything it causes stands in three tables: `ORDERED` (steps of a request, told to who is asked), `ANSWERS` (steps of a
request that carries a placer number, told to who asks) and `fhir_to_hl7v2_schedule.event_of` (Appointments based on a
téléexpertise). What the receiver told us itself is not told back. Messages are frozen in the transaction of the step,
into the lane of the Endpoint that also gets the report: the answer to an order never comes after the opinion. A message
that cannot be written stops no step: the Task says so.

An Endpoint asks for them in `payloadType` (`distribution.WORKFLOW`).

Sources: CI-SIS téléradiologie 1.0 (ballot), flows 1 to 3; HL7 v2.5 chapter 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import quote

from fhir_server.context import new_delivery_id
from fhir_server.errors import RuleBroken
from fhir_server.store.lanes import NewDelivery
from fhir_server.teleexpertise import distribution
from fhir_server.teleexpertise.accession import accessions
from fhir_server.teleexpertise.case import STEP_SYSTEM, Consequences, Context, based_on, is_case
from fhir_server.teleexpertise.distribution import Destination, Shut
from fhir_server.teleexpertise.documents import Rendered
from fhir_server.teleexpertise.freezing import stay_for
from fhir_server.teleexpertise.notes import told
from fhir_server.teleexpertise.parties import Candidate, candidates
from fhir_server.teleexpertise.readiness import professional, site_of
from fhir_server.teleexpertise.states import State, state_of
from hl7v2.message import Message as HL7Message
from hl7v2.message import Unreadable, parse
from mappers import fhir_to_hl7v2_orders
from mappers.fhir_to_hl7v2_orders import Decision, Order
from mappers.fhir_to_hl7v2_schedule import STANDING, Event, event_of, siu
from mappers.fhir_to_identity import Incomplete, PatientIdentity, Professional, patient_identity
from mappers.fhir_to_identity import professional as read_professional
from mappers.fhir_to_report import own_root
from mappers.hl7v2_types_to_fhir import RPPS_SYSTEM
from mappers.identity import Site
from mappers.order_number import OrderNumber, filler_of, placer_of, under_oid

Resource = dict[str, Any]
Message = Callable[[PatientIdentity, Mapping[str, Any]], bytes]
"""Writes one message for a patient; the keyword arguments every mapper takes."""
ANSWERS: Mapping[str, Decision] = {"take": "accepted", "refuse": "refused", "cancel": "refused", "void": "refused"}
"""Step -> ORC-1 OK or OC. Other steps cause no answer: `record`, `ask` and `publish` are the order itself; the
guide has no flow for `question` and `answer` (`questions`); `report` is the report (`documents`)."""
ORDERED: Mapping[str, Order] = {"ask": "NW", "publish": "NW", "cancel": "CA", "void": "CA"}
"""Step -> ORC-1 of the order told to who is asked; CA only for a request that was out."""
_OUT = frozenset(step for step, control in ORDERED.items() if control == "NW")
ANSWERED, ASKED, SLOTS = "tlr-1.0", "tlr-1.0-orm", "siu-2.5"
_REASON = 199  # characters of CE-2
_DECISIONS: Mapping[str, Decision] = {"OK": "accepted", "OC": "refused"}
_TRUE_WHILE: Mapping[Decision, frozenset[State]] = {
    "accepted": frozenset({"in_progress", "on-hold", "completed"}),
    "refused": frozenset({"revoked", "entered-in-error"}),
}
"""An answer -> the states of a request in which it can be said anew."""
_ORDER_WHILE: Mapping[Order, frozenset[State]] = {
    "NW": frozenset({"ready", "in_progress", "on-hold"}),
    "CA": frozenset({"revoked", "entered-in-error"}),
}
"""The same of an order."""


@dataclass(frozen=True, slots=True)
class _Telling:
    """Something to tell: `code` is what an Endpoint asks for, `most` how many are told, the nearest first."""

    code: str
    request: Resource
    found: list[Candidate]
    message: Message
    most: int = 100


def tell(before: Resource | None, outcome: Consequences, ctx: Context) -> Rendered:
    """The messages a decided change causes; `before` is what stood there. Raises nothing of its own."""
    if outcome.resource["resourceType"] == "Appointment":
        return _slot(before, outcome.resource, ctx)
    request = ctx.view.get(f"ServiceRequest/{outcome.request}") or {}
    return _frozen(request, [*_answer(before, outcome, request, ctx), *_order(before, outcome, request, ctx)], ctx)


def _answer(before: Resource | None, outcome: Consequences, request: Resource, ctx: Context) -> Iterator[_Telling]:
    placer, decision = placer_of(request), ANSWERS.get(outcome.step)
    if decision is None or placer is None or (outcome.step == "cancel" and ctx.caller.channel == "mllp"):
        return
    reason = _reason(before, outcome.resource) if decision == "refused" else ""
    expert = _person(ctx.caller.who, _site(request, ctx), ctx) if "expert" in ctx.caller.roles else None
    yield _answering(request, placer, decision, reason, expert, ctx)


def _order(before: Resource | None, outcome: Consequences, request: Resource, ctx: Context) -> Iterator[_Telling]:
    control = ORDERED.get(outcome.step)
    if control == "NW" or (control == "CA" and _was_out(request, ctx)):
        yield _ordering(request, control, _reason(before, outcome.resource) if control == "CA" else "", ctx)


def _was_out(request: Resource, ctx: Context) -> bool:
    """Whether a request was ever sent to who is asked, as its trace tells."""
    about = f"ServiceRequest/{request['id']}"
    told = [*ctx.view.find("Provenance", f"target={about}"), *ctx.view.written("Provenance")]
    return any(
        coding.get("system") == STEP_SYSTEM and coding.get("code") in _OUT
        for one in told
        if any(target.get("reference") == about for target in one.get("target", ()))
        for coding in one.get("activity", {}).get("coding", ())
    )


def _ordering(request: Resource, control: Order, reason: str, ctx: Context) -> _Telling:
    site = _site(request, ctx)
    number = placer_of(request) or under_oid(request["id"], own_root(site))
    requester = _person(request.get("requester", {}).get("reference", ""), site, ctx)

    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> bytes:
        return fhir_to_hl7v2_orders.order_request(control, number, whom, requester, request, reason=reason, **to).value

    # The side that is asked alone: what the asking side knows of the patient opens no road here.
    found = candidates({"performer": request.get("performer", ())}, {}, {}, ctx.view, ctx.sites)
    return _Telling(ASKED, request, found, message)


def _answering(
    request: Resource, placer: OrderNumber, decision: Decision, reason: str, expert: Professional | None, ctx: Context
) -> _Telling:
    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> bytes:
        return fhir_to_hl7v2_orders.order_answer(placer, decision, whom, expert, reason=reason, **to).value

    # The side that asks: the requester, the place of the stay, the hospital whose patient number the request carries.
    asking: Resource = {name: request[name] for name in ("requester", "encounter", "subject") if name in request}
    patient = ctx.view.get(request["subject"].get("reference", "")) or {}
    found = candidates(asking, {}, patient, ctx.view, ctx.sites)
    return _Telling(ANSWERED, request, found, message, most=1)


def _reason(before: Resource | None, after: Resource) -> str:
    """The notes that came with the step."""
    held = (before or {}).get("note", ())
    texts = [str(note.get("text", "")) for note in after.get("note", ()) if note not in held]
    return " ; ".join(filter(None, texts))[:_REASON]


def _slot(before: Resource | None, after: Resource, ctx: Context) -> Rendered:
    event = event_of(before, after)
    based = [ctx.view.get(key) or {} for key in based_on(after)] if event else []
    request = next((one for one in based if is_case(one)), None)
    if event is None or request is None or ctx.caller.channel == "mllp":
        return Rendered()
    return _frozen(request, [_booking(event, after, request, ctx)], ctx)


def _booking(event: Event, after: Resource, request: Resource, ctx: Context) -> _Telling:
    site = _site(request, ctx)
    actors = (str(one.get("actor", {}).get("reference", "")) for one in after.get("participant", ()))
    people = [person for actor in actors if (person := _person(actor, site, ctx))]
    own = own_root(site)
    order = placer_of(request) or under_oid(request["id"], own)

    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> bytes:
        return siu(event, after, whom, people, order, own_oid=own, **to).value

    patient = ctx.view.get(request["subject"]["reference"]) or {}
    found = candidates(request, {}, patient, ctx.view, ctx.sites)
    return _Telling(SLOTS, request, found, message)


def again(frozen: bytes, request_id: str, ctx: Context, lane: str) -> tuple[NewDelivery, tuple[str, ...]]:
    """The same thing told once more from what is stored now: a delivery into the same lane, and what it was made from.

    `frozen` are the bytes of an answer to an order or of an SIU. Raises RuleBroken, which says why, when what caused
    them is not so any more, when they are something else, or when that lane is not told such things any more.
    """
    request = ctx.view.get(f"ServiceRequest/{request_id}") or {}
    try:
        msg = parse(frozen)
    except Unreadable as other:
        raise RuleBroken("it cannot be made again: it is no HL7 message; resend it as it is, or cancel it") from other
    telling, cause = _AGAIN.get(msg.kind, _answer_again)(msg, request, ctx)
    made, shut = _made(telling, ctx)
    new = next((one for one in made if one.lane == lane), None)
    if new is None:
        why = "; ".join(f"{one.whom}: {one.why}" for one in shut) or f"{lane} is not told about it any more"
        raise RuleBroken(f"it cannot be made again: {why}")
    return new, (f"ServiceRequest/{request_id}", new.patient, *cause)


def _answer_again(msg: HL7Message, request: Resource, ctx: Context) -> tuple[_Telling, tuple[str, ...]]:
    """Who decided and why stay as the frozen answer says; they are facts of that step."""
    decision = _DECISIONS.get(msg.text("ORC-1"))
    placer = placer_of(request)
    if decision is None or msg.text("OBR-4") != fhir_to_hl7v2_orders.PROCEDURE[0]:
        raise RuleBroken("it cannot be made again: it is no report, no answer to an order and no appointment")
    if placer is None:
        raise RuleBroken("it cannot be made again: the request has no number of an order any more; cancel it")
    state = state_of(request, ctx.settings)
    if state not in _TRUE_WHILE[decision]:
        text = (
            f"it cannot be made again: the request is {state} now, so that it was {decision} is true of the past only"
        )
        raise RuleBroken(f"{text}; release it as it is, or cancel it")
    rpps = msg.text("ORC-12.1")[1:]
    expert = _by_number(rpps, request, ctx) if rpps else None
    if rpps and expert is None:
        raise RuleBroken(f"it cannot be made again: {rpps}, who decided, is not in the directory any more")
    return _answering(request, placer, decision, msg.text("ORC-16.2"), expert, ctx), ()


def _order_again(msg: HL7Message, request: Resource, ctx: Context) -> tuple[_Telling, tuple[str, ...]]:
    control: Order = "CA" if msg.text("ORC-1") == "CA" else "NW"
    state = state_of(request, ctx.settings)
    if state not in _ORDER_WHILE[control]:
        text = f"it cannot be made again: the request is {state} now, ORC-1 {control} is true of the past only"
        raise RuleBroken(f"{text}; release it as it is, or cancel it")
    return _ordering(request, control, msg.text("ORC-16.2"), ctx), ()


def _by_number(rpps: str, request: Resource, ctx: Context) -> Professional | None:
    """A professional by the national number: in the place in which the request is handled, else in any other."""
    people = ctx.view.find("Practitioner", f"identifier={quote(f'{RPPS_SYSTEM}|{rpps}')}")
    roles = (ctx.view.find("PractitionerRole", f"practitioner=Practitioner/{one['id']}") for one in people)
    references = [str(one.get("reference", "")) for one in request.get("performer", ())]
    references += [f"PractitionerRole/{role['id']}" for some in roles for role in some]
    references += [f"Practitioner/{one['id']}" for one in people]
    site = _site(request, ctx)
    found = (_person(reference, site, ctx) for reference in references if reference)
    return next((one for one in found if one is not None and one.rpps == rpps), None)


def _slot_again(msg: HL7Message, request: Resource, ctx: Context) -> tuple[_Telling, tuple[str, ...]]:
    number, event = msg.text("SCH-2.1"), next(one for one in get_args(Event) if one == msg.trigger)
    booked = ctx.view.find("Appointment", f"based-on=ServiceRequest/{request['id']}")
    found = next((one for one in booked if number in (one["id"], getattr(filler_of(one), "number", ""))), None)
    if found is None:
        raise RuleBroken(f"it cannot be made again: the request has no appointment {number} any more; cancel it")
    if (found.get("status") in STANDING) == (event == "S15"):
        text = (
            f"it cannot be made again: the appointment is {found.get('status')} now, {event} is true of the past only"
        )
        raise RuleBroken(f"{text}; release it as it is, or cancel it")
    return _booking(event, found, request, ctx), (f"Appointment/{found['id']}",)


_AGAIN = {"SIU": _slot_again, "ORM": _order_again}


def _frozen(request: Resource, tellings: Sequence[_Telling], ctx: Context) -> Rendered:
    """The deliveries, and what the Task says of those that could not be written."""
    made: list[NewDelivery] = []
    shut: list[Shut] = []
    for telling in tellings:
        more, closed = _made(telling, ctx)
        made += more
        shut += closed
    resources = told(request, distribution.Plan((), tuple(shut)), ctx, report=False) if is_case(request) else ()
    return Rendered(resources, tuple(made))


def _made(telling: _Telling, ctx: Context) -> tuple[list[NewDelivery], list[Shut]]:
    """One delivery for each Endpoint that asks for it, and those that get none, with the reason."""
    code, request = telling.code, telling.request
    subject = request["subject"].get("reference", "")
    stored = ctx.view.get(subject) or {}
    site = _site(request, ctx)
    wanted = [one for one in telling.found if code in distribution.profiles(one.endpoint)]
    roads: dict[str, Destination] = {}
    shut: list[Shut] = []
    made: list[NewDelivery] = []
    for candidate in wanted:
        road = distribution.hl7_road(candidate, code)
        if len(roads) == telling.most or road.addressee in roads:
            continue
        roads[road.addressee] = road
        try:
            patient = patient_identity(stored, site, [])
            why = distribution.refusal(candidate, code, distribution.WORKFLOW[code], patient, ctx.sites)
            if not why:
                made.append(_delivery(road, patient, request, telling.message, site, ctx))
        except (Incomplete, ValueError) as problem:
            why = str(problem)
        if why:
            shut.append(Shut(road.display, why, distribution.WORKFLOW_NAMES[code]))
    return made, shut


def _delivery(
    road: Destination, patient: PatientIdentity, request: Resource, message: Message, site: Site, ctx: Context
) -> NewDelivery:
    key = new_delivery_id()
    case = f"ServiceRequest/{request['id']}"
    keys = [("case", case), ("patient", patient.reference), *(("ipp", local[0]) for local in patient.local_ids)]
    keys += [("ins", patient.ins[0])] if patient.ins else []
    keys += [("accession", str(one["value"])) for _, one in accessions(request, ctx.sites)]
    stay = ctx.view.get(request.get("encounter", {}).get("reference", "")) or {}
    keys += [("iep", str(one["value"])) for one in stay.get("identifier", ()) if one.get("value")]
    keys.append(("finess", site.finess_eg))
    to = {
        "site": site,
        "control_id": key,
        "now": ctx.now,
        "receiving_application": road.application,
        "receiving_facility": road.facility,
        "visit": stay_for(road, request, ctx),
    }
    # No `document`: an answer stays true when the request moves on, and the patient keeps the order in the lane.
    return NewDelivery(
        lane=road.lane,
        endpoint=road.endpoint,
        protocol="hl7",
        payload=message(patient, to),
        id=key,
        media_type="x-application/hl7-v2+er7",
        title=road.display,
        keys=tuple(dict.fromkeys(keys)),
        patient=patient.reference,
        case=case,
        on_stuck="skip",
    )


def _site(request: Resource, ctx: Context) -> Site:
    return site_of(ctx.view.get(request["subject"].get("reference", "")) or {}, ctx.sites)


def _person(reference: str, site: Site, ctx: Context) -> Professional | None:
    """A professional of the directory with an RPPS; None for anybody else."""
    role, person, organization = professional(reference, ctx)
    if person.get("resourceType") != "Practitioner":
        return None
    try:
        return read_professional("participant", role, person, organization, site, [])
    except Incomplete:
        return None
