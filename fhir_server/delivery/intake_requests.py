"""ORM^O01 and OMI^O23: a téléexpertise is asked for, taken back or completed by HL7 v2.

Hides what an order cannot say. A request made from one is a draft, tagged and noted "à compléter" with what is missing:
no order carries the patient's consent, so none goes out before somebody completes it (by FHIR). An order is changed,
taken back and completed by the asking side alone: whoever is asked answers it (ORU^R01), and nobody else touches it.

Sources: CI-SIS téléradiologie 1.0 (ballot), flows 1, 2 and 4; HL7 table 0119; CSP R.6316-2 (consent).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fhir_server.context import instant
from fhir_server.delivery.arrivals import Arrival, Decide, Draft, Taken, rejected
from fhir_server.delivery.intake_documents import find_request, stable_id
from fhir_server.delivery.intake_patients import patient_of
from fhir_server.delivery.intake_stays import encounter_of
from fhir_server.delivery.order_drafts import orders_of, rewritten
from fhir_server.delivery.order_numbers import Number, carries, given, numbers_of
from fhir_server.delivery.ports import read
from fhir_server.patients.identity import identifier_query
from fhir_server.teleexpertise.case import CATEGORY, CATEGORY_NOS, is_case
from fhir_server.teleexpertise.completion import completed, to_complete
from fhir_server.teleexpertise.sides import asks, groups_of, only_asked
from fhir_server.teleexpertise.states import FINAL, state_of, with_state
from hl7v2.message import Unreadable
from mappers.fhir_to_hl7v2_orders import DETAIL, REGION
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_orders_to_fhir import EXAMINATION, Order, OrderMessage
from mappers.hl7v2_orders_to_fhir import orders as read_orders

Resource = dict[str, Any]
STUDY = "urn:dicom:uid"
ACSN = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}


def orders(arrival: Arrival) -> Decide:
    """What an ORM^O01 or OMI^O23 means. Raises Refused as the mapper does; Rejected when no order can be followed."""
    mapped = read_orders(arrival.msg, arrival.site)
    said = mapped.value
    controls = [orc.text(1).upper() for orc in arrival.msg.all("ORC")]
    if all(order.action == "other" for order in said.orders):
        raise rejected(f"order control {controls[0][:5]!r} asks for nothing that is done here", "ORC^1^1", "103")

    def decide(draft: Draft) -> Taken:
        taken = Taken()
        new = any(order.action == "request" for order in said.orders)
        patient = patient_of(arrival, draft, said.patient, taken, create=new)
        for number, order in enumerate(said.orders, 1):
            numbers = numbers_of(_identifiers(arrival, order), "PLAC", "FILL")
            if order.action == "request":
                _once(draft, numbers, f"ORC^{number}^2")
            held = find_request(arrival, draft, numbers, patient, f"ORC^{number}^2")
            if held and order.action != "other":
                _by_who_asks(arrival, draft, held, number)
            if order.action == "request":
                _asked(arrival, draft, said, order, held, controls[number - 1], patient, taken)
            elif order.action != "other":
                known = _known(held, order, number)
                taken.keys.append(("case", f"ServiceRequest/{known['id']}"))
                if order.action == "cancel":
                    # Named, for the trace of the case.
                    taken.caller = dataclasses.replace(arrival.caller, who=arrival.organization["reference"])
                    _cancelled(arrival, draft, known, order, taken)
                else:
                    _completed(arrival, draft, known, order, patient, taken)
        taken.told(mapped.losses)
        return taken

    return decide


def _identifiers(arrival: Arrival, order: Order) -> list[Resource]:
    """The numbers of an order; the placer's are the sender's own."""
    return given(arrival, order.request.resource.get("identifier", ()), "PLAC")


def _known(held: Resource | None, order: Order, number: int) -> Resource:
    if held is None or not is_case(held):
        named = ", ".join(value for _, value in (*order.placer, *order.filler))[:60]
        raise rejected(f"no request {named} of this patient is known here", f"ORC^{number}^2", "204", "900")
    return held


def _once(draft: Draft, numbers: list[Number], place: str) -> None:
    """Raises Rejected (205) when an earlier order of the same message has one of these numbers."""
    for number in numbers:
        if any(carries(one, number) for one in draft.written("ServiceRequest")):
            raise rejected(f"the message has two orders with the number {number.value[:60]}", place, "205")


def _by_who_asks(arrival: Arrival, draft: Draft, held: Resource, number: int) -> None:
    """Raises Rejected (207, 901) when the sender's establishment does not ask the request."""
    house = arrival.organization["reference"]
    text = ""
    if only_asked(held, house, draft):
        how = "with ORC-1 OK or OC" if groups_of(held, house, draft) else "by FHIR, since a person of it is asked"
        text = f"{arrival.site.name} is asked by this request; it answers it {how} and leaves it to who asks"
    elif is_case(held) and not asks(held, house, draft):
        text = f"{arrival.site.name} does not ask this request, which belongs to who asks it"
    if text:
        raise rejected(text, f"ORC^{number}^1", "207", "901")


def _asked(
    arrival: Arrival,
    draft: Draft,
    said: OrderMessage,
    order: Order,
    held: Resource | None,
    control: str,
    patient: str,
    taken: Taken,
) -> None:
    """A new draft; XO and RP rewrite one that is still a draft."""
    settings = arrival.hub.settings
    if held and control == "NW":
        raise rejected(f"the request is known as ServiceRequest/{held['id']}; change it with XO", "ORC^1^2", "205")
    if held and not is_case(held):
        raise rejected("the number is that of a request that asks for no téléexpertise", "ORC^1^2", "207")
    if held and state_of(held, settings) != "draft":
        text = f"ServiceRequest/{held['id']} is out already; cancel it (CA) and ask again"
        raise rejected(text, "ORC^1^1", "207")
    whole = _ordered(arrival, draft, said, order, held, patient, taken)
    if held is None and draft.get(f"ServiceRequest/{whole['id']}"):
        number = (*order.placer, *order.filler)[0][1]
        text = f"the order {number[:60]} is known as ServiceRequest/{whole['id']}, which another patient has by now"
        raise rejected(text, "ORC^1^2", "205")
    for told in _observations(arrival, whole["id"], order, patient):
        draft.put(told)
    if held:
        whole = rewritten(completed(held), _said_before(arrival, draft, held, patient), whole)
    whole.setdefault("authoredOn", instant(arrival.hub.clock()))
    missing = _missing(arrival, order, whole)
    reference = draft.put(with_state(to_complete(whole, missing), "draft", settings))
    taken.keys.append(("case", reference))
    taken.notes.append(f"{reference} is a draft; missing: {', '.join(missing)}")


def _said_before(arrival: Arrival, draft: Draft, held: Resource, patient: str) -> Resource:
    """The request as the last order said it, read again from its bytes; {} when they are gone."""
    for raw in orders_of(draft, f"ServiceRequest/{held['id']}"):
        try:
            earlier = dataclasses.replace(arrival, msg=read(raw, arrival.port, arrival.hub.sites))
            said = read_orders(earlier.msg, arrival.site).value
        except (Unreadable, Refused):
            continue  # read by an earlier version of this server, or of the site's declaration
        for order in said.orders:
            numbers = numbers_of(_identifiers(earlier, order), "PLAC", "FILL")
            if order.action == "request" and any(carries(held, number) for number in numbers):
                return _ordered(earlier, draft, said, order, held, patient, Taken())
    return {}


def _ordered(
    arrival: Arrival,
    draft: Draft,
    said: OrderMessage,
    order: Order,
    held: Resource | None,
    patient: str,
    taken: Taken,
) -> Resource:
    """The request as the order says it."""
    whole = {name: value for name, value in order.request.resource.items() if name not in ("requester", "status")}
    identifiers = _identifiers(arrival, order)
    parts = [part for number in numbers_of(identifiers, "PLAC", "FILL") for part in number.parts]
    whole |= {
        "id": held["id"] if held else stable_id("request", *parts, patient),
        "identifier": [_ordered_by(arrival, one, held) for one in identifiers],
        "status": "draft",
        "intent": "proposal",
        "category": [{"coding": [{"system": CATEGORY_NOS, "code": CATEGORY, "display": "Téléexpertise"}]}],
        "subject": {"reference": patient},
        "requester": _requester(arrival, draft, order),
        "performer": [_performer(arrival, draft)],
        **encounter_of(draft, said.encounter_ids, patient, taken),
    }
    _add_details(whole, order)
    _point_at(whole, _observations(arrival, whole["id"], order, patient))
    return whole


def _missing(arrival: Arrival, order: Order, whole: Resource) -> list[str]:
    """What the request lacks still, whether the order or a person said what it has."""
    house = arrival.organization["reference"]
    there = {"requester": whole["requester"].get("reference") != house, "reason": "reasonCode" in whole}
    missing = [name for name, _ in order.missing if name != "requester" and not there.get(name)]
    missing += [] if there["requester"] else ["requester"]
    return [*missing, "performer"] if whole["performer"] == [arrival.organization] else missing


def _ordered_by(arrival: Arrival, identifier: Resource, held: Resource | None) -> Resource:
    """A placer number with the establishment that ordered under it: it speaks for the asking side from then on, also
    when another one that asks changes the order."""
    if not any(one.get("code") == "PLAC" for one in identifier.get("type", {}).get("coding", ())):
        return identifier
    number = (identifier.get("system"), identifier.get("value"))
    known = [one for one in (held or {}).get("identifier", ()) if (one.get("system"), one.get("value")) == number]
    gave = (one.get("assigner", {}).get("reference") for one in known)
    reference = next(filter(None, gave), arrival.organization["reference"])
    return {**identifier, "assigner": {**identifier.get("assigner", {}), "reference": reference}}


def _requester(arrival: Arrival, draft: Draft, order: Order) -> Resource:
    """The asking professional of the directory; else the establishment, with the name the order gives."""
    told = order.request.resource.get("requester", {})
    identifier = told.get("identifier", {})
    if identifier.get("value") and identifier.get("system"):
        query = identifier_query(identifier["system"], identifier["value"])
        found = [one for one in draft.find("PractitionerRole", query) if one.get("active", True)]
        if len(found) == 1:
            name = {"display": told["display"]} if told.get("display") else {}
            return {"reference": f"PractitionerRole/{found[0]['id']}", **name}
    return {**arrival.organization, **({"display": told["display"]} if told.get("display") else {})}


def _performer(arrival: Arrival, draft: Draft) -> Resource:
    """The expert group that the port names; else the establishment, until somebody chooses one."""
    group = arrival.port.group
    if group and draft.get(f"HealthcareService/{group}"):
        return {"reference": f"HealthcareService/{group}"}
    return arrival.organization


def _add_details(request: Resource, order: Order) -> None:
    """The coded rows of the profile: the region is a body site, the others are details of the order with their code."""
    for code, value in order.details:
        element = "bodySite" if code == REGION else "orderDetail"
        held = request.get(element, [])
        told = value if code == REGION else value | {"extension": [{"url": DETAIL, "valueCode": code}]}
        if told not in held and value not in held:
            request[element] = [*held, told]


def _observations(arrival: Arrival, request: str, order: Order, patient: str) -> list[Resource]:
    """Height, weight, history...: Observations of the patient."""
    about = {"subject": {"reference": patient}, "basedOn": [{"reference": f"ServiceRequest/{request}"}]}
    return [
        {**built.resource, "id": stable_id("told", request, arrival.msg.kind, str(number)), **about}
        for number, built in enumerate(order.observations, 1)
    ]


def _point_at(request: Resource, observations: list[Resource]) -> None:
    held = request.get("supportingInfo", [])
    told = [{"reference": f"Observation/{one['id']}"} for one in observations]
    if info := [*held, *(one for one in told if one not in held)]:
        request["supportingInfo"] = info


def _cancelled(arrival: Arrival, draft: Draft, known: Resource, order: Order, taken: Taken) -> None:
    settings = arrival.hub.settings
    if state_of(known, settings) == "revoked":
        taken.notes.append(f"ServiceRequest/{known['id']} was revoked before")
        return
    if state_of(known, settings) in FINAL:
        text = f"ServiceRequest/{known['id']} is {state_of(known, settings)}: it cannot be taken back any more"
        raise rejected(text, "ORC^1^1", "207")
    text = f"Annulation : {order.reason}" if order.reason else "Annulation par le demandeur"
    noted = {**known, "note": [*known.get("note", ()), {"text": text}]}
    draft.put(with_state(noted, "revoked", settings))
    taken.notes.append(f"ServiceRequest/{known['id']} was revoked")


def _completed(arrival: Arrival, draft: Draft, known: Resource, order: Order, patient: str, taken: Taken) -> None:
    """The examination was done: its accession number, study, viewer and details, and what EXAMINATION holds."""
    if state_of(known, arrival.hub.settings) in FINAL:
        raise rejected(f"ServiceRequest/{known['id']} is closed: nothing can be added", "ORC^1^1", "207")
    whole = dict(known)
    study = order.study
    if study and study.accession[1]:
        system, value = study.accession
        taken.keys.append(("accession", value))
        number = {"type": ACSN, **({"system": system} if system else {}), "value": value}
        held = whole.get("identifier", [])
        if all((one.get("system", ""), one.get("value")) != study.accession for one in held):
            whole["identifier"] = [*held, number]
    if study and study.uid:
        uid = {"system": STUDY, "value": f"urn:oid:{study.uid}"}
        about = {"type": "ImagingStudy", "identifier": uid, "display": study.modality or "Examen"}
        held = whole.get("supportingInfo", [])
        whole["supportingInfo"] = held if about in held else [*held, about]
    if order.viewer:
        note = {"text": f"Visionneuse : {order.viewer}"}
        held = whole.get("note", [])
        whole["note"] = held if note in held else [*held, note]
    if order.examination:
        others = [one for one in whole.get("extension", ()) if one.get("url") != EXAMINATION]
        whole["extension"] = [*others, order.examination]
    _add_details(whole, order)
    observations = _observations(arrival, whole["id"], order, patient)
    _point_at(whole, observations)
    for one in (*observations, whole):
        draft.put(one)
    taken.notes.append(f"ServiceRequest/{known['id']} was completed")
