"""What the workflow tells by HL7 v2 beside reports: an order, the answer to one, the appointments of a request.

Everything it causes stands in three tables: `ORDERED` (steps of a request, told to who is asked), `ANSWERS` (steps of a
request that carries a placer number, told to who asks) and `fhir_to_hl7v2_schedule.event_of` (Appointments based on a
téléexpertise). When somebody else is asked, they get the order and its holder a cancellation; a cancellation goes where
an order stands (`order_record`), whoever is asked by then. One application is one addressee, by however many Endpoints
it is reached: it gets an order once, and all about it in one lane. What the receiver told us itself is not told back.
Messages are frozen in the transaction of the step, into the lane of the Endpoint that also gets the report: the answer
to an order never comes after the opinion. A message that cannot be written stops no step: the Task says so. What one
leaves out is told to who wrote the change.

An Endpoint asks for them in `payloadType` (`distribution.WORKFLOW`).

Sources: CI-SIS téléradiologie 1.0 (ballot), flows 1 to 3; HL7 v2.5 chapter 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args
from urllib.parse import quote

from fhir_server.context import new_delivery_id
from fhir_server.errors import RuleBroken
from fhir_server.store.lanes import Delivery, NewDelivery
from fhir_server.store.session import Snapshot
from fhir_server.teleexpertise import distribution, order_record, sides
from fhir_server.teleexpertise.accession import accessions
from fhir_server.teleexpertise.case import Consequences, Context, Ordered, based_on, is_case
from fhir_server.teleexpertise.distribution import Destination, Shut
from fhir_server.teleexpertise.documents import Rendered
from fhir_server.teleexpertise.freezing import stay_for
from fhir_server.teleexpertise.notes import told
from fhir_server.teleexpertise.order_record import Orders
from fhir_server.teleexpertise.parties import Candidate, candidates, site_at
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
from mappers.mapped import Loss, Mapped
from mappers.order_number import OrderNumber, filler_of, placer_of, under_oid

Resource = dict[str, Any]
Message = Callable[[PatientIdentity, Mapping[str, Any]], Mapped[bytes]]
"""Writes one message for a patient; the keyword arguments every mapper takes."""
ANSWERS: Mapping[str, Decision] = {"take": "accepted", "refuse": "refused", "cancel": "refused", "void": "refused"}
"""Step -> ORC-1 OK or OC. Other steps cause no answer: `record`, `ask` and `publish` are the order itself; the
guide has no flow for `question` and `answer` (`questions`); `report` is the report (`documents`)."""
ORDERED: Mapping[str, Order] = {"ask": "NW", "publish": "NW", "cancel": "CA", "void": "CA"}
"""Step -> ORC-1 of the order told to who is asked; CA only where an order stands."""
_ELSEWHERE = "Demande adressée à un autre destinataire"
_NOT_RECALLED = "Annulation de la demande non remise"
ANSWERED, ASKED, SLOTS = "tlr-1.0", "tlr-1.0-orm", "siu-2.5"
_REASON = 199  # characters of CE-2
_DECISIONS: Mapping[str, Decision] = {"OK": "accepted", "OC": "refused"}
_TRUE_WHILE: Mapping[Decision, frozenset[State]] = {
    "accepted": frozenset({"in_progress", "on-hold", "completed"}),
    "refused": frozenset({"revoked", "entered-in-error"}),
}
"""An answer -> the states of a request in which it can be said anew (of an order: `order_record.past`)."""


@dataclass(frozen=True, slots=True)
class _Telling:
    """Something to tell: `code` is what an Endpoint asks for, `most` how many are told, the nearest first; `shut` are
    those who are not, `what` their note says; `control` is ORC-1 of an order."""

    code: str
    request: Resource
    found: list[Candidate]
    message: Message
    most: int = 100
    control: Order | None = None
    what: str = ""
    shut: tuple[Shut, ...] = ()


@dataclass(frozen=True, slots=True)
class _Ordering:
    """The orders a change causes, and those before it, which that was decided on."""

    tellings: list[_Telling] = field(default_factory=list)
    before: Orders = field(default_factory=Orders)


def tell(before: Resource | None, outcome: Consequences, ctx: Context) -> Rendered:
    """The messages a decided change causes; `before` is what stood there. Raises nothing of its own."""
    if outcome.resource["resourceType"] == "Appointment":
        return _slot(before, outcome.resource, ctx)
    request = ctx.view.get(f"ServiceRequest/{outcome.request}") or {}
    ordering = _order(before, outcome, request, ctx)
    tellings = [*_answer(before, outcome, request, ctx), *ordering.tellings]
    rendered = _frozen(outcome.resource, request, tellings, ctx, ordering.before.settled)
    return replace(rendered, standing=ordering.before.standing, ended=tuple(sorted(ordering.before.ended)))


def _answer(before: Resource | None, outcome: Consequences, request: Resource, ctx: Context) -> Iterator[_Telling]:
    placer, decision = placer_of(request), ANSWERS.get(outcome.step)
    if decision is None or placer is None or (outcome.step == "cancel" and _told_us(request, ctx)):
        return
    reason = _reason(before, outcome.resource) if decision == "refused" else ""
    expert = _person(ctx.caller.who, _site(request, ctx), ctx) if "expert" in ctx.caller.roles else None
    yield _answering(request, placer, decision, reason, expert, ctx)


def _told_us(request: Resource, ctx: Context) -> bool:
    """Whether this very step came by HL7 v2 from the asking side, which knows then."""
    who = ctx.caller.who
    return ctx.caller.channel == "mllp" and (not who or sides.asks(request, who, ctx.view))


def _order(before: Resource | None, outcome: Consequences, request: Resource, ctx: Context) -> _Ordering:
    """CA to who holds an order and is not asked (any more), then NW to who is asked and holds none."""
    control = ORDERED.get(outcome.step)
    if control is None and not _others_asked(before, outcome, ctx):
        return _Ordering()
    case = f"ServiceRequest/{request['id']}"
    held = order_record.orders_of(case, ctx) if control != "NW" else Orders()  # not out before
    asked = _asked(request, ctx) if control != "CA" else []
    holders = held.holders
    gone = [one for one in holders if not any(order_record.same(one, _road(to)) for to in asked)]
    new = [one for one in asked if not any(order_record.same(had, _road(one)) for had in holders)]
    tellings: list[_Telling] = []
    if gone:
        reason = _reason(before, outcome.resource) if control == "CA" else _ELSEWHERE
        tellings.append(_recalling(request, reason, gone, ctx))
    if new:
        tellings.append(_ordering(request, "NW", "", [_kept_road(one, held, request, ctx) for one in new], ctx))
    return _Ordering(tellings, held)


def _road(candidate: Candidate) -> Destination:
    return distribution.hl7_road(candidate, ASKED)


def _kept_road(asked: Candidate, held: Orders, request: Resource, ctx: Context) -> Candidate:
    """Who was told of this request before is told by the same lane, while it leads there: two lanes keep no order."""
    lanes = (one.lane for one in reversed(held.lines) if order_record.same(one, _road(asked)))
    before = _at(next(lanes, asked.reference), request, ctx)
    return replace(before, site=before.site or asked.site) if not _why_not(before, _road(asked)) else asked


def _recalling(request: Resource, reason: str, holders: Sequence[Ordered], ctx: Context) -> _Telling:
    """CA by the lane the order went into; where that lane leads there no more, and the order has left, by another
    Endpoint of who is asked."""
    found: list[Candidate] = []
    shut: list[Shut] = []
    others = _performers(request, ctx)
    for holder in holders:
        ways = [_at(holder.lane, request, ctx), *(others if ctx.handed(holder.delivery) == "gone" else ())]
        way = next((one for one in ways if not _why_not(one, holder)), None)
        if way is not None:
            found.append(way)
        else:
            why = _why_not(ways[0], holder)
            shut.append(Shut(_road(ways[0]).display, why, _NOT_RECALLED, holder.lane))
    return replace(_ordering(request, "CA", reason, found, ctx), shut=tuple(shut))


def _why_not(candidate: Candidate, whom: Ordered | Destination) -> str:
    """Why an Endpoint leads no order to an addressee, or ''."""
    if why := distribution.out_of_service(candidate):
        return why
    if ASKED not in distribution.profiles(candidate.endpoint):
        return f"{candidate.reference} ne reçoit plus de demandes ({ASKED})"
    return "" if order_record.same(whom, _road(candidate)) else f"{candidate.reference} mène à une autre application"


def _others_asked(before: Resource | None, outcome: Consequences, ctx: Context) -> bool:
    """Whether a request that nobody took yet is for somebody else now."""
    after = outcome.resource
    if before is None or outcome.step or after["resourceType"] != "ServiceRequest" or not is_case(before):
        return False
    ready = state_of(before, ctx.settings) == state_of(after, ctx.settings) == "ready"
    held, now = ({one.get("reference") for one in request["performer"]} for request in (before, after))
    return ready and held != now


def _performers(request: Resource, ctx: Context) -> list[Candidate]:
    """The Endpoints of the side that is asked alone: what the asking side knows of the patient opens no road here."""
    return candidates({"performer": request.get("performer", ())}, {}, {}, ctx.view, ctx.sites)


def _asked(request: Resource, ctx: Context) -> list[Candidate]:
    """Who is to hold an order.

    Who ordered by HL7 v2 is not told their own order where the same house is asked: of the applications of both sides a
    group's own remains, unless it is also the one that gets the answer.
    """
    found = _performers(request, ctx)
    if placer_of(request) is None:
        return found
    groups = (ctx.view.get(str(one.get("reference", ""))) or {} for one in request.get("performer", ()))
    own = {item.get("reference") for group in groups for item in group.get("endpoint", ())}
    asking = _asking(request, ctx)
    roads = [_road(one) for one in asking]
    answered = [_road(one) for one in (*asking, *found) if ANSWERED in distribution.profiles(one.endpoint)]

    def among(one: Candidate, known: list[Destination]) -> bool:
        return any(order_record.same(_road(one), road) for road in known)

    return [one for one in found if not among(one, roads) or (one.reference in own and not among(one, answered))]


def _asking(request: Resource, ctx: Context) -> list[Candidate]:
    """The Endpoints of the side that asks: the requester, the place of the stay, the hospital whose patient number the
    request carries."""
    asking: Resource = {name: request[name] for name in ("requester", "encounter", "subject") if name in request}
    patient = ctx.view.get(request["subject"].get("reference", "")) or {}
    return candidates(asking, {}, patient, ctx.view, ctx.sites)


def _at(lane: str, request: Resource, ctx: Context) -> Candidate:
    """Who holds an order in a lane, as one who is asked where they still are."""
    endpoint = ctx.view.get(lane) or {}
    return next(
        (one for one in _performers(request, ctx) if one.reference == lane),
        Candidate(lane, endpoint, site_at(endpoint, ctx.view, ctx.sites)),
    )


def _ordering(request: Resource, control: Order, reason: str, found: list[Candidate], ctx: Context) -> _Telling:
    site = _site(request, ctx)
    number = placer_of(request) or under_oid(request["id"], own_root(site))
    requester = _person(request.get("requester", {}).get("reference", ""), site, ctx)

    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> Mapped[bytes]:
        return fhir_to_hl7v2_orders.order_request(control, number, whom, requester, request, reason=reason, **to)

    return _Telling(ASKED, request, found, message, control=control, what=_NOT_RECALLED if control == "CA" else "")


def _answering(
    request: Resource, placer: OrderNumber, decision: Decision, reason: str, expert: Professional | None, ctx: Context
) -> _Telling:
    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> Mapped[bytes]:
        return fhir_to_hl7v2_orders.order_answer(placer, decision, whom, expert, reason=reason, **to)

    return _Telling(ANSWERED, request, _asking(request, ctx), message, most=1)


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
    return _frozen(after, request, [_booking(event, after, request, ctx)], ctx)


def _booking(event: Event, after: Resource, request: Resource, ctx: Context) -> _Telling:
    site = _site(request, ctx)
    actors = (str(one.get("actor", {}).get("reference", "")) for one in after.get("participant", ()))
    people = [person for actor in actors if (person := _person(actor, site, ctx))]
    own = own_root(site)
    order = placer_of(request) or under_oid(request["id"], own)

    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> Mapped[bytes]:
        return siu(event, after, whom, people, order, own_oid=own, **to)

    patient = ctx.view.get(request["subject"]["reference"]) or {}
    found = candidates(request, {}, patient, ctx.view, ctx.sites)
    return _Telling(SLOTS, request, found, message)


def past(snapshot: Snapshot, delivery: Delivery, ctx: Context) -> str:
    """Why an order is not said once more, or '': as `order_record.past`, or it is an NW and nobody at the end of its
    lane is asked (any more), or a CA and somebody there is."""
    why = order_record.past(snapshot, delivery)
    control = "" if why else order_record.control_of(snapshot, delivery)
    if control not in ("NW", "CA"):
        return why
    whom = Ordered(control, delivery.lane, distribution.addressee_of(delivery.endpoint), delivery.id)
    if _still_said(control, whom, ctx.view.get(delivery.case_key) or {}, ctx):
        return ""
    now = "is not asked (any more)" if control == "NW" else "is asked now"
    return f"{delivery.title or delivery.lane} {now} by {delivery.case_key}"


def _still_said(control: str, whom: Ordered | Destination, request: Resource, ctx: Context) -> bool:
    """Whether an NW reaches somebody who is asked; a CA nobody who is, while the request is out."""
    if control == "CA" and request.get("status") not in order_record.OUT:
        return True
    return any(order_record.same(whom, _road(one)) for one in _asked(request, ctx)) is (control == "NW")


def again(frozen: bytes, request_id: str, ctx: Context, lane: str) -> tuple[NewDelivery, tuple[str, ...]]:
    """The same thing told once more from what is stored now: a delivery into the same lane, and what it was made from.

    `frozen` are the bytes of an answer to an order, of an SIU or of an order that is not `order_record.past`. Raises
    RuleBroken, which says why, when what caused them is not so any more, when they are something else, or when that
    lane is not told such things any more.
    """
    request = ctx.view.get(f"ServiceRequest/{request_id}") or {}
    try:
        msg = parse(frozen)
    except Unreadable as other:
        raise RuleBroken("it cannot be made again: it is no HL7 message; resend it as it is, or cancel it") from other
    telling, cause = _AGAIN.get(msg.kind, _answer_again)(msg, request, ctx)
    if telling.control:  # by the lane of what was told before: a cancellation follows its order
        here = _at(lane, request, ctx)
        said = _still_said(telling.control, _road(here), request, ctx)
        telling = replace(telling, found=[here] if said else [])
    made, shut, _ = _made(telling, ctx)
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
    return _ordering(request, control, msg.text("ORC-16.2"), [], ctx), ()


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


def _frozen(
    changed: Resource, request: Resource, tellings: Sequence[_Telling], ctx: Context, before: Sequence[Ordered] = ()
) -> Rendered:
    """The deliveries, the record of the orders among them behind those `before`, what the Task says of what could not
    be written, and what who wrote `changed` is told that they leave out."""
    made: list[NewDelivery] = []
    shut: list[Shut] = []
    left: list[str] = []
    orders: list[Ordered] = []
    for telling in tellings:
        more, closed, lost = _made(telling, ctx)
        made += more
        if telling.control:
            ends = ((one, distribution.addressee_of(one.endpoint)) for one in more)
            orders += [Ordered(telling.control, one.lane, end, one.id) for one, end in ends]
        shut += closed
        left += lost
    resources = told(request, distribution.Plan((), tuple(shut)), ctx, report=False) if is_case(request) else ()
    if orders:
        resources = (*resources, order_record.record(f"ServiceRequest/{request['id']}", (*before, *orders), ctx))
    notes = {f"{changed['resourceType']}/{changed['id']}": tuple(dict.fromkeys(left))} if left else {}
    return Rendered(resources, tuple(made), notes)


def _made(telling: _Telling, ctx: Context) -> tuple[list[NewDelivery], list[Shut], list[str]]:
    """One delivery for each Endpoint that asks for it, those that get none, with the reason, and what is left out."""
    code, request = telling.code, telling.request
    subject = request["subject"].get("reference", "")
    stored = ctx.view.get(subject) or {}
    site = _site(request, ctx)
    wanted = [one for one in telling.found if code in distribution.profiles(one.endpoint)]
    roads: dict[str, Destination] = {}
    shut = list(telling.shut)
    made: list[NewDelivery] = []
    left: list[str] = []
    for candidate in wanted:
        road = distribution.hl7_road(candidate, code)
        if len(roads) == telling.most or road.addressee in roads:
            continue
        roads[road.addressee] = road
        try:
            patient = patient_identity(stored, site, [])
            why = distribution.refusal(candidate, code, distribution.WORKFLOW[code], patient, ctx.sites)
            if not why:
                delivery, losses = _delivery(road, patient, request, telling.message, site, ctx)
                made.append(delivery)
                left += [f"{code}, {road.display}: {loss.source} {loss.reason}" for loss in losses]
        except (Incomplete, ValueError) as problem:
            why = str(problem)
        if why:
            shut.append(Shut(road.display, why, telling.what or distribution.WORKFLOW_NAMES[code]))
    return made, shut, left


def _delivery(
    road: Destination, patient: PatientIdentity, request: Resource, message: Message, site: Site, ctx: Context
) -> tuple[NewDelivery, tuple[Loss, ...]]:
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
    mapped = message(patient, to)
    delivery = NewDelivery(
        lane=road.lane,
        endpoint=road.endpoint,
        protocol="hl7",
        payload=mapped.value,
        id=key,
        media_type="x-application/hl7-v2+er7",
        title=road.display,
        keys=tuple(dict.fromkeys(keys)),
        patient=patient.reference,
        case=case,
        on_stuck="skip",
    )
    return delivery, mapped.losses


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
