"""What the workflow tells by HL7 v2 beside reports: an order, the answer to one, the appointments of a request.

Everything it causes stands in three tables: `ORDERED` (steps of a request, told to who is asked), `ANSWERS` (steps of a
request that carries a placer number, told to who asks) and `fhir_to_hl7v2_schedule.event_of` (Appointments based on a
téléexpertise). When somebody else is asked, they get the order and its holder a cancellation; so does every holder from
whom nothing is awaited any more, since somebody else took the request or it was refused. A cancellation goes where an
order stands (`order_record`), by the roads of `order_roads`. What the receiver told us itself is not told back.
Messages are frozen in the transaction of the step, into the lane of the Endpoint that also gets the report: the answer
to an order never comes after the opinion. A message that cannot be written stops no step: the Task says so. What one
leaves out is told to who wrote the change.

An Endpoint asks for them in `payloadType` (`distribution.WORKFLOW`).

Sources: CI-SIS téléradiologie 1.0 (ballot), flows 1 to 3; HL7 v2.5 chapter 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args
from urllib.parse import quote

from fhir_server.context import new_delivery_id
from fhir_server.errors import RuleBroken
from fhir_server.store.lanes import Delivery, NewDelivery
from fhir_server.store.session import Snapshot
from fhir_server.teleexpertise import distribution, order_record, order_roads
from fhir_server.teleexpertise.accession import accessions
from fhir_server.teleexpertise.case import Consequences, Context, Ordered, based_on, is_case
from fhir_server.teleexpertise.distribution import Destination, Shut
from fhir_server.teleexpertise.documents import Rendered
from fhir_server.teleexpertise.freezing import stay_for
from fhir_server.teleexpertise.notes import told
from fhir_server.teleexpertise.order_record import ASKED, Orders
from fhir_server.teleexpertise.order_roads import ANSWERED, asking
from fhir_server.teleexpertise.parties import Candidate, candidates
from fhir_server.teleexpertise.readiness import practising, site_of
from fhir_server.teleexpertise.states import State, state_of
from hl7v2.message import Message as HL7Message
from hl7v2.message import Unreadable, parse
from mappers import fhir_to_hl7v2_orders
from mappers.fhir_to_hl7v2_orders import Decision, Order
from mappers.fhir_to_hl7v2_schedule import STANDING, Event, event_of, siu
from mappers.fhir_to_identity import Incomplete, PatientIdentity, Professional, patient_identity
from mappers.fhir_to_report import own_root
from mappers.hl7v2_types_to_fhir import RPPS_SYSTEM
from mappers.identity import Site
from mappers.mapped import Mapped
from mappers.order_number import OrderNumber, filler_of, placer_of, under_oid

Resource = dict[str, Any]
Message = Callable[[PatientIdentity, Mapping[str, Any]], Mapped[bytes]]
"""Writes one message for a patient; the keyword arguments every mapper takes."""
ANSWERS: Mapping[str, Decision] = {"take": "accepted", "refuse": "refused", "cancel": "refused", "void": "refused"}
"""Step -> ORC-1 OK or OC. Other steps cause no answer: `record`, `ask` and `publish` are the order itself; the
guide has no flow for `question` and `answer` (`questions`); `report` is the report (`documents`)."""
ORDERED: Mapping[str, Order] = {
    "ask": "NW",
    "publish": "NW",
    "take": "CA",
    "refuse": "CA",
    "cancel": "CA",
    "void": "CA",
}
"""Step -> ORC-1 of the order told: NW to who is asked, CA to who holds an order and from whom nothing is awaited."""
_NO_MORE: Mapping[str, str] = {
    "": "Demande adressée à un autre destinataire",
    "take": "Demande prise en charge par un autre destinataire",
}
"""ORC-16 of a CA beside a step of nobody who asks: why the order is over for this holder."""
_REFUSED = "Demande refusée"
_NOT_RECALLED = "Annulation de la demande non remise"
SLOTS = "siu-2.5"
_REASON = 199  # characters of CE-2
_DECISIONS: Mapping[str, Decision] = {"OK": "accepted", "OC": "refused"}
_TRUE_WHILE: Mapping[Decision, frozenset[State]] = {
    "accepted": frozenset({"in_progress", "on-hold", "completed"}),
    "refused": frozenset({"revoked", "entered-in-error"}),
}
"""An answer -> the states of a request in which it can be said anew (of an order: `order_record.past`)."""


@dataclass(frozen=True, slots=True)
class _Telling:
    """Something to tell: `code` is what an Endpoint asks for, `nearest` says that it is for the first application alone
    that does, by whichever of its Endpoints; `shut` are those who are not told, `what` their note says; `control` is
    ORC-1 of an order."""

    code: str
    request: Resource
    found: list[Candidate]
    message: Message
    nearest: bool = False
    control: Order | None = None
    what: str = ""
    shut: tuple[Shut, ...] = ()


@dataclass(frozen=True, slots=True)
class _Ordering:
    """The orders a change causes, those before it, which that was decided on, and those among them that are given up
    instead of followed."""

    tellings: list[_Telling] = field(default_factory=list)
    before: Orders = field(default_factory=Orders)
    given_up: tuple[str, ...] = ()

    @property
    def told(self) -> tuple[Ordered, ...]:
        """What the record says of them from now on."""
        return self.before.without(self.given_up).settled


_NONE = _Ordering()


def tell(before: Resource | None, outcome: Consequences, ctx: Context) -> Rendered:
    """The messages a decided change causes; `before` is what stood there. Raises nothing of its own."""
    if outcome.resource["resourceType"] == "Appointment":
        return _slot(before, outcome.resource, ctx)
    request = ctx.view.get(f"ServiceRequest/{outcome.request}") or {}
    ordering = _order(before, outcome, request, ctx)
    tellings = [*_answer(before, outcome, request, ctx), *ordering.tellings]
    rendered = _frozen(outcome.resource, request, tellings, ctx, ordering)
    known = ordering.before
    return replace(rendered, standing=known.standing, ended=tuple(sorted(known.ended)), unsent=ordering.given_up)


def _answer(before: Resource | None, outcome: Consequences, request: Resource, ctx: Context) -> Iterator[_Telling]:
    placer, decision = placer_of(request), ANSWERS.get(outcome.step)
    told_us = outcome.step == "cancel" and ctx.caller.channel == "mllp"  # only who asks takes back by HL7 v2
    if decision is None or placer is None or told_us:
        return
    reason = _reason(before, outcome.resource) if decision == "refused" else ""
    expert = practising(ctx.caller.who, _site(request, ctx), ctx) if "expert" in ctx.caller.roles else None
    yield _answering(request, placer, decision, reason, expert, ctx)


def _order(before: Resource | None, outcome: Consequences, request: Resource, ctx: Context) -> _Ordering:
    """CA to who holds an order and from whom nothing is awaited (any more), then NW to who is asked and holds none."""
    control = ORDERED.get(outcome.step)
    if control is None and not _others_asked(before, outcome, ctx):
        return _NONE
    case = f"ServiceRequest/{request['id']}"
    held = order_record.orders_of(case, ctx) if control != "NW" else Orders()  # not out before
    asked = order_roads.asked(request, ctx)
    spoke = order_roads.spoke(held.holders, ctx)
    gone = [one for one in held.holders if one != spoke and not order_roads.among(one, asked)]
    tellings: list[_Telling] = []
    if gone:
        tellings.append(_recalling(request, _why_over(before, outcome), gone, ctx))
    new, after = _newly_asked(asked if control != "CA" else [], held, request, ctx)
    if new:
        tellings.append(_ordering(request, "NW", "", new, ctx))
    known = {one.delivery for one in held.settled if one.ended}
    return _Ordering(
        tellings, held, tuple(one.delivery for one in after.settled if one.ended and one.delivery not in known)
    )


def _newly_asked(
    asked: Iterable[Candidate], held: Orders, request: Resource, ctx: Context
) -> tuple[list[Candidate], Orders]:
    """Who is asked and holds no order, each by the Endpoint that is to tell them; and the orders without those that are
    given up for it. A cancellation that waits where no road leads any more would come behind the order and end it; an
    order before it that has arrived stands then."""
    found: list[Candidate] = []
    for one in asked:
        way = order_roads.kept(one, held, request, ctx)
        if not held.holds(order_roads.road(one)):
            held = held.without([line.delivery for line in order_roads.left_behind(way, held, ctx)])
        if not held.holds(order_roads.road(one)):
            found.append(way)
    return found, held


def _why_over(before: Resource | None, outcome: Consequences) -> str:
    """ORC-16 of a cancellation: the notes that came with the step, or that somebody else has the request."""
    if outcome.step in ("cancel", "void", "refuse"):
        refused = _REFUSED if outcome.step == "refuse" else ""
        return " ; ".join(filter(None, (refused, _reason(before, outcome.resource))))[:_REASON]
    return _NO_MORE[outcome.step]


def _recalling(request: Resource, reason: str, holders: Sequence[Ordered], ctx: Context) -> _Telling:
    """CA by the lane the order went into; where that lane leads there no more, and the order has left, by another
    Endpoint of who is asked."""
    found: list[Candidate] = []
    shut: list[Shut] = []
    others = order_roads.at_the_asked(request.get("performer", ()), ctx)
    for holder in holders:
        ways = [order_roads.at(holder.lane, request, ctx), *(others if ctx.handed(holder.delivery) == "gone" else ())]
        way = next((one for one in ways if not order_roads.why_not(one, holder)), None)
        if way is not None:
            found.append(way)
        else:
            why = order_roads.why_not(ways[0], holder)
            shut.append(Shut(order_roads.road(ways[0]).display, why, _NOT_RECALLED, holder.lane))
    return replace(_ordering(request, "CA", reason, found, ctx), shut=tuple(shut))


def _others_asked(before: Resource | None, outcome: Consequences, ctx: Context) -> bool:
    """Whether a request that nobody took yet is for somebody else now."""
    after = outcome.resource
    if before is None or outcome.step or after["resourceType"] != "ServiceRequest" or not is_case(before):
        return False
    ready = state_of(before, ctx.settings) == state_of(after, ctx.settings) == "ready"
    held, now = ({one.get("reference") for one in request["performer"]} for request in (before, after))
    return ready and held != now


def _ordering(request: Resource, control: Order, reason: str, found: list[Candidate], ctx: Context) -> _Telling:
    site = _site(request, ctx)
    number = placer_of(request) or under_oid(request["id"], own_root(site))
    requester = practising(request.get("requester", {}).get("reference", ""), site, ctx)

    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> Mapped[bytes]:
        return fhir_to_hl7v2_orders.order_request(control, number, whom, requester, request, reason=reason, **to)

    return _Telling(ASKED, request, found, message, control=control, what=_NOT_RECALLED if control == "CA" else "")


def _answering(
    request: Resource, placer: OrderNumber, decision: Decision, reason: str, expert: Professional | None, ctx: Context
) -> _Telling:
    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> Mapped[bytes]:
        return fhir_to_hl7v2_orders.order_answer(placer, decision, whom, expert, reason=reason, **to)

    return _Telling(ANSWERED, request, asking(request, ctx), message, nearest=True)


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
    people = [person for actor in actors if (person := practising(actor, site, ctx))]
    own = own_root(site)
    order = placer_of(request) or under_oid(request["id"], own)

    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> Mapped[bytes]:
        return siu(event, after, whom, people, order, own_oid=own, **to)

    patient = ctx.view.get(request["subject"]["reference"]) or {}
    found = candidates(request, {}, patient, ctx.view, ctx.sites)
    return _Telling(SLOTS, request, found, message)


def past(snapshot: Snapshot, delivery: Delivery, ctx: Context) -> str:
    """Why a message is not said once more, or '': what it says is true of the past only, or for an order, its
    addressee is not asked (any more), or asked now and told of an end."""
    msg = order_record.message_of(snapshot, delivery)
    if msg is None:
        return ""
    request = ctx.view.get(delivery.case_key) or {}
    if msg.kind != "ORM":
        known = _slot_past if msg.kind == "SIU" else _answer_past
        return known(msg, request, ctx) if request else ""
    control, why = msg.text("ORC-1"), order_record.past(snapshot, delivery)
    if why or control not in ("NW", "CA"):
        return why
    whom = Ordered(control, delivery.lane, distribution.addressee_of(delivery.endpoint), delivery.id)
    if _still_said(control, whom, request, ctx):
        return ""
    now = "is not asked (any more)" if control == "NW" else "is asked now"
    return f"{delivery.title or delivery.lane} {now} by {delivery.case_key}"


def _still_said(control: str, whom: Ordered | Destination, request: Resource, ctx: Context) -> bool:
    """Whether an NW reaches somebody of whom an answer is awaited, a CA nobody."""
    return order_roads.among(whom, order_roads.asked(request, ctx)) is (control == "NW")


def again(frozen: bytes, request_id: str, ctx: Context, lane: str) -> tuple[NewDelivery, tuple[str, ...]]:
    """The same thing told once more from what is stored now: a delivery into the same lane, and what it was made from.

    `frozen` are the bytes of an answer to an order, of an SIU or of an order, none of which is `past`. Raises
    RuleBroken, which says why, when they are something else, when what they name is gone, or when that lane is not told
    such things any more, or leads to somebody else.
    """
    request = ctx.view.get(f"ServiceRequest/{request_id}") or {}
    try:
        msg = parse(frozen)
    except Unreadable as other:
        raise RuleBroken("it cannot be made again: it is no HL7 message; resend it as it is, or cancel it") from other
    telling, cause = _AGAIN.get(msg.kind, _answer_again)(msg, request, ctx)
    if telling.control:  # by the lane of what was told before: a cancellation follows its order
        here = order_roads.at(lane, request, ctx)
        if why := order_roads.why_not(here, _receiver(telling.control, msg, lane)):
            raise RuleBroken(f"it cannot be made again: {why}")
        said = _still_said(telling.control, order_roads.road(here), request, ctx)
        telling = replace(telling, found=[here] if said else [])
    made, shut, _ = _made(telling, ctx)
    new = next((one for one in made if one.lane == lane), None)
    if new is None:
        why = "; ".join(f"{one.whom}: {one.why}" for one in shut) or f"{lane} is not told about it any more"
        raise RuleBroken(f"it cannot be made again: {why}")
    return new, (f"ServiceRequest/{request_id}", new.patient, *cause)


def _receiver(control: Order, msg: HL7Message, lane: str) -> Ordered:
    """Whom the frozen bytes of an order name (MSH-5, MSH-6): a lane may lead to another application by now."""
    application, facility = msg.text("MSH-5"), msg.text("MSH-6")
    return Ordered(control, lane, f"hl7:{application}|{facility}" if application and facility else "", "")


def _answer_past(msg: HL7Message, request: Resource, ctx: Context) -> str:
    decision, state = _DECISIONS.get(msg.text("ORC-1")), state_of(request, ctx.settings)
    if decision is None or not _answers(msg) or state in _TRUE_WHILE[decision]:
        return ""
    return f"the request is {state} now, so that it was {decision} is true of the past only"


def _answers(msg: HL7Message) -> bool:
    return msg.text("OBR-4") == fhir_to_hl7v2_orders.PROCEDURE[0]


def _answer_again(msg: HL7Message, request: Resource, ctx: Context) -> tuple[_Telling, tuple[str, ...]]:
    """Who decided and why stay as the frozen answer says; they are facts of that step."""
    decision = _DECISIONS.get(msg.text("ORC-1"))
    placer = placer_of(request)
    if decision is None or not _answers(msg):
        raise RuleBroken("it cannot be made again: it is no report, no answer to an order and no appointment")
    if placer is None:
        raise RuleBroken("it cannot be made again: the request has no number of an order any more; cancel it")
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
    found = (practising(reference, site, ctx) for reference in references if reference)
    return next((one for one in found if one is not None and one.rpps == rpps), None)


def _slot_past(msg: HL7Message, request: Resource, ctx: Context) -> str:
    found = _booked(msg, request, ctx)
    if found is None or (found.get("status") in STANDING) != (msg.trigger == "S15"):
        return ""
    return f"the appointment is {found.get('status')} now, {msg.trigger} is true of the past only"


def _booked(msg: HL7Message, request: Resource, ctx: Context) -> Resource | None:
    """The appointment that an SIU names."""
    number = msg.text("SCH-2.1")
    booked = ctx.view.find("Appointment", f"based-on=ServiceRequest/{request['id']}")
    return next((one for one in booked if number in (one["id"], getattr(filler_of(one), "number", ""))), None)


def _slot_again(msg: HL7Message, request: Resource, ctx: Context) -> tuple[_Telling, tuple[str, ...]]:
    found, event = _booked(msg, request, ctx), next(one for one in get_args(Event) if one == msg.trigger)
    if found is None:
        number = msg.text("SCH-2.1")
        raise RuleBroken(f"it cannot be made again: the request has no appointment {number} any more; cancel it")
    return _booking(event, found, request, ctx), (f"Appointment/{found['id']}",)


_AGAIN = {"SIU": _slot_again, "ORM": _order_again}


def _frozen(
    changed: Resource, request: Resource, tellings: Sequence[_Telling], ctx: Context, ordering: _Ordering = _NONE
) -> Rendered:
    """The deliveries, the record of the orders among them behind those before, what the Task says of what could not be
    written, and what who wrote `changed` is told that they leave out."""
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
    if orders or ordering.given_up:
        kept = order_record.record(f"ServiceRequest/{request['id']}", ordering.told, orders, ctx)
        resources = (*resources, kept)
    notes = {f"{changed['resourceType']}/{changed['id']}": tuple(dict.fromkeys(left))} if left else {}
    return Rendered(resources, tuple(made), notes)


def _made(telling: _Telling, ctx: Context) -> tuple[list[NewDelivery], list[Shut], list[str]]:
    """One delivery for each addressee that asks for it, by the first Endpoint that takes it; those that get none, with
    the reason; and what is left out."""
    code, request = telling.code, telling.request
    subject = request["subject"].get("reference", "")
    stored = ctx.view.get(subject) or {}
    site = _site(request, ctx)
    wanted = [
        (one, distribution.hl7_road(one, code)) for one in telling.found if code in distribution.profiles(one.endpoint)
    ]
    if telling.nearest:  # where it cannot be told, nobody is told in its place of what they did not ask
        wanted = [one for one in wanted if one[1].addressee == wanted[0][1].addressee]
    served: dict[str, NewDelivery] = {}
    refused: dict[str, Shut] = {}
    for candidate, road in wanted:
        if road.addressee in served:
            continue
        try:
            patient = patient_identity(stored, site, [])
            flavour, ends = distribution.WORKFLOW[code], telling.control == "CA"
            why = distribution.refusal(candidate, code, flavour, patient, ctx.sites, follows=ends)
            if not why:
                served[road.addressee] = _delivery(road, patient, request, telling.message, site, ctx)
        except (Incomplete, ValueError) as problem:
            why = str(problem)
        if why:  # by this Endpoint; another one may lead to the same application
            what = telling.what or distribution.WORKFLOW_NAMES[code]
            refused.setdefault(road.addressee, Shut(road.display, why, what))
    shut = [*telling.shut, *(one for whom, one in refused.items() if whom not in served)]
    made = list(served.values())
    return made, shut, [text for one in made for text in one.left_out]


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
    mapped = message(patient, to)
    return NewDelivery(
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
        left_out=tuple(f"{road.flavour}, {road.display}: {loss.source} {loss.reason}" for loss in mapped.losses),
    )


def _site(request: Resource, ctx: Context) -> Site:
    return site_of(ctx.view.get(request["subject"].get("reference", "")) or {}, ctx.sites)
