"""What the workflow tells by HL7 v2 beside reports: the answer to an order, and the appointments of a request.

Everything it causes stands in two tables: `ANSWERS` (steps of a request that carries a placer number) and
`fhir_to_hl7v2_schedule.event_of` (Appointments based on a téléexpertise). What the receiver told us itself is not told
back. Messages are frozen in the transaction of the step, into the lane of the Endpoint that also gets the report: the
answer to an order never comes after the opinion. A message that cannot be written stops no step: the Task says so.

An Endpoint asks for them in `payloadType` (`distribution.WORKFLOW`).

Sources: CI-SIS téléradiologie 1.0 (ballot), flow 3; HL7 v2.5 chapter 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.context import new_delivery_id
from fhir_server.store.lanes import NewDelivery
from fhir_server.teleexpertise import distribution
from fhir_server.teleexpertise.case import Consequences, Context, based_on, is_case
from fhir_server.teleexpertise.distribution import Destination, Shut
from fhir_server.teleexpertise.documents import Rendered, told
from fhir_server.teleexpertise.parties import Candidate, candidates
from fhir_server.teleexpertise.readiness import professional, site_of
from mappers import fhir_to_hl7v2_orders
from mappers.fhir_to_hl7v2_orders import Decision
from mappers.fhir_to_hl7v2_schedule import event_of, siu
from mappers.fhir_to_identity import Incomplete, PatientIdentity, Professional, patient_identity
from mappers.fhir_to_identity import professional as read_professional
from mappers.fhir_to_report import own_root
from mappers.identity import Site
from mappers.order_number import placer_of, under_oid

Resource = dict[str, Any]
Message = Callable[[PatientIdentity, Mapping[str, Any]], bytes]
"""Writes one message for a patient; the keyword arguments every mapper takes."""
ANSWERS: Mapping[str, Decision] = {"take": "accepted", "refuse": "refused", "cancel": "refused", "void": "refused"}
"""Step -> ORC-1 OK or OC. Other steps cause no order message: `record`, `ask` and `publish` are the order itself; the
guide has no flow for `question` and `answer`; `report` is the report (`documents`)."""
ORDERS, SLOTS = "tlr-1.0", "siu-2.5"
_REASON = 199  # characters of CE-2


def tell(before: Resource | None, outcome: Consequences, ctx: Context) -> Rendered:
    """The messages a decided change causes; `before` is what stood there. Raises nothing of its own."""
    if outcome.resource["resourceType"] == "Appointment":
        return _slot(before, outcome.resource, ctx)
    if outcome.step in ANSWERS:
        return _answer(before, outcome, ctx)
    return Rendered()


def _answer(before: Resource | None, outcome: Consequences, ctx: Context) -> Rendered:
    request = ctx.view.get(f"ServiceRequest/{outcome.request}") or {}
    placer = placer_of(request)
    if placer is None or (outcome.step == "cancel" and ctx.caller.channel == "mllp"):
        return Rendered()
    decision = ANSWERS[outcome.step]
    reason = _reason(before, outcome.resource) if decision == "refused" else ""
    site = _site(request, ctx)
    expert = _person(ctx.caller.who, site, ctx) if "expert" in ctx.caller.roles else None

    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> bytes:
        return fhir_to_hl7v2_orders.order_answer(placer, decision, whom, expert, reason=reason, **to).value

    # The side that asks: the requester, the place of the stay, the hospital whose patient number the request carries.
    asking: Resource = {name: request[name] for name in ("requester", "encounter", "subject") if name in request}
    patient = ctx.view.get(request["subject"].get("reference", "")) or {}
    found = candidates(asking, {}, patient, ctx.view, ctx.sites)
    return _frozen(ORDERS, found, request, message, ctx, most=1)


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
    site = _site(request, ctx)
    actors = (str(one.get("actor", {}).get("reference", "")) for one in after.get("participant", ()))
    people = [person for actor in actors if (person := _person(actor, site, ctx))]
    own = own_root(site)
    order = placer_of(request) or under_oid(request["id"], own)

    def message(whom: PatientIdentity, to: Mapping[str, Any]) -> bytes:
        return siu(event, after, whom, people, order, own_oid=own, **to).value

    patient = ctx.view.get(request["subject"]["reference"]) or {}
    found = candidates(request, {}, patient, ctx.view, ctx.sites)
    return _frozen(SLOTS, found, request, message, ctx)


def _frozen(
    code: str, found: list[Candidate], request: Resource, message: Message, ctx: Context, most: int = 100
) -> Rendered:
    """One delivery for each Endpoint that asks for `code`; `most` bounds them, the nearest first."""
    subject = request["subject"].get("reference", "")
    stored = ctx.view.get(subject) or {}
    site = _site(request, ctx)
    wanted = [one for one in found if code in distribution.profiles(one.endpoint)]
    roads: dict[str, Destination] = {}
    shut: list[Shut] = []
    made: list[NewDelivery] = []
    for candidate in wanted:
        road = distribution.hl7_road(candidate, code)
        if len(roads) == most or road.addressee in roads:
            continue
        roads[road.addressee] = road
        try:
            patient = patient_identity(stored, site, [])
            why = distribution.refusal(candidate, code, distribution.WORKFLOW[code], patient, ctx.sites)
            if not why:
                made.append(_delivery(road, patient, request, message, site, ctx))
        except (Incomplete, ValueError) as problem:
            why = str(problem)
        if why:
            shut.append(Shut(road.display, why, distribution.WORKFLOW_NAMES[code]))
    resources = told(request, distribution.Plan((), tuple(shut)), ctx, report=False) if is_case(request) else ()
    return Rendered(resources, tuple(made))


def _delivery(
    road: Destination, patient: PatientIdentity, request: Resource, message: Message, site: Site, ctx: Context
) -> NewDelivery:
    key = new_delivery_id()
    case = f"ServiceRequest/{request['id']}"
    keys = [("case", case), ("patient", patient.reference), *(("ipp", local[0]) for local in patient.local_ids)]
    keys += [("ins", patient.ins[0])] if patient.ins else []
    to = {
        "site": site,
        "control_id": key,
        "now": ctx.now,
        "receiving_application": road.application,
        "receiving_facility": road.facility,
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
