"""A question to somebody who asked by HL7 v2: their software cannot show it, so it goes to their MSSanté mailbox.

A request that was made here (FHIR, the console) shows its questions itself; one that came as an order carries a placer
number, and its requester is told by mail, in the transaction of the step. What cannot be written stops no step: the
Task says so. The answer is a Communication as ever, written by whoever reads the mail or by the expert.

Source: CI-SIS téléradiologie 1.0 (ballot), which has no flow for a question.
"""

from __future__ import annotations

from typing import Any

from fhir_server.context import new_delivery_id
from fhir_server.errors import PasserelleError
from fhir_server.store.lanes import NewDelivery
from fhir_server.teleexpertise import distribution
from fhir_server.teleexpertise.case import Consequences, Context
from fhir_server.teleexpertise.distribution import Shut
from fhir_server.teleexpertise.documents import Rendered
from fhir_server.teleexpertise.freezing import letterhead, mail_endpoint
from fhir_server.teleexpertise.notes import told
from fhir_server.teleexpertise.readiness import named, professional, site_of
from mappers.fhir_to_identity import mailbox_of, patient_identity
from mappers.fhir_to_identity import professional as read_professional
from mappers.fhir_to_question import PREFIX, question
from mappers.order_number import OrderNumber, placer_of
from mssante import envelope
from mssante.letter import Address

Resource = dict[str, Any]
NOT_TOLD = "Question non remise"


def tell(_: Resource | None, outcome: Consequences, ctx: Context) -> Rendered:
    """The mail that a question causes, or the note that it reaches nobody. Raises nothing of its own."""
    request = ctx.view.get(f"ServiceRequest/{outcome.request}") or {}
    order = placer_of(request)
    if outcome.step != "question" or order is None:
        return Rendered()
    parties = professional(request["requester"]["reference"], ctx)
    mailbox = next(filter(None, map(mailbox_of, parties)), "")
    whom = named(parties[1]) or str(
        parties[0].get("name") or request["requester"].get("display") or "un requérant sans nom"
    )
    why = "" if mailbox else "aucune boîte MSSanté n'est connue pour le professionnel requérant"
    if mailbox and not ctx.settings.smtp:
        why = "aucun opérateur MSSanté n'est configuré (réglage smtp)"
    made: tuple[NewDelivery, ...] = ()
    if not why:
        try:
            made = (_mailed(outcome.resource, request, order, mailbox, ctx),)
        except (PasserelleError, ValueError) as problem:
            why = str(problem)
    shut = (Shut(whom, why, NOT_TOLD),) if why else ()
    return Rendered(told(request, distribution.Plan((), shut), ctx, report=False), made)


def _mailed(message: Resource, request: Resource, order: OrderNumber, mailbox: str, ctx: Context) -> NewDelivery:
    stored = ctx.view.get(request["subject"].get("reference", "")) or {}
    site = site_of(stored, ctx.sites)
    patient = patient_identity(stored, site, [])
    role, person, organization = professional(ctx.caller.who, ctx)
    expert = read_professional("expert", role, person, organization, site, [])
    key, case = new_delivery_id(), f"ServiceRequest/{request['id']}"
    head = letterhead(mailbox, key, site, ctx)
    if expert.mailbox:
        head["reply_to"] = Address(expert.mailbox)
    phone = next(filter(None, map(_phone_of, (role, person, organization))), "")
    answer_to = head["reply_to"].address
    letter = question(message, order, patient, expert, site=site, asked_at=ctx.now, answer_to=answer_to, phone=phone)
    road = distribution.mail_road(mailbox, request["requester"]["reference"])
    keys = [("case", case), ("patient", patient.reference), ("rpps", expert.rpps)]
    keys += [("ipp", local[0]) for local in patient.local_ids]
    keys += [("ins", patient.ins[0])] if patient.ins else []
    return NewDelivery(
        lane=road.lane,
        endpoint=mail_endpoint(road, site),
        protocol=road.kind,
        payload=envelope.notice(letter, prefix=PREFIX, **head),
        id=key,
        media_type="message/rfc822",
        title=road.display,
        keys=tuple(dict.fromkeys(keys)),
        patient=patient.reference,
        case=case,
        second_leg=road.second_leg,
        on_stuck="skip",
    )


def _phone_of(party: Resource) -> str:
    """The number at which somebody is called at work, or ''."""
    points = [one for one in party.get("telecom", ()) if one.get("system") == "phone" and one.get("value")]
    chosen = [one for one in points if one.get("use") not in ("home", "old", "temp")]
    return str(chosen[0]["value"]).strip() if chosen else ""
