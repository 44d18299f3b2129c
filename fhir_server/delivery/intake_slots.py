"""SIU S12 to S15: a slot is booked, moved, changed or given up, under its own number.

Sources: HL7 v2.5 chapter 10; HL7 v2-to-FHIR SIU_S12; https://hl7.org/fhir/R4/appointment.html.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Final

from fhir_server.delivery.arrivals import Arrival, Decide, Draft, Taken, rejected
from fhir_server.delivery.intake_documents import linked, stable_id
from fhir_server.delivery.intake_patients import patient_of
from fhir_server.delivery.order_numbers import Number, carries, given, numbers_of
from fhir_server.patients.identity import identifier_query
from mappers.hl7v2_schedule_to_fhir import appointment

Resource = dict[str, Any]
_GIVEN_UP: Final = frozenset({"cancelled", "entered-in-error"})
"""What S12 books again; an appointment in any other state stands."""


def siu(arrival: Arrival) -> Decide:
    """What an SIU means. Raises Refused as the mapper does; Rejected for an unknown or a known number."""
    mapped = appointment(arrival.msg, arrival.site)
    said = mapped.value

    def decide(draft: Draft) -> Taken:
        taken = Taken()
        books = said.action == "book"
        patient = patient_of(arrival, draft, said.patient, taken, create=books) if said.patient else ""
        identifiers = given(arrival, said.appointment.resource["identifier"], "PLAC", "FILL")
        numbers = numbers_of(identifiers)
        known = _known(draft, numbers, patient)
        number = said.ids[0][1][:60]
        if books and known and known.get("status") not in _GIVEN_UP:
            raise rejected(f"the appointment {number} is booked already; move it with S13", "SCH^1^1", "205")
        if not books and known is None:
            raise rejected(f"no appointment {number} is known here; book it with S12", "SCH^1^1", "204")
        _check_patient(known, patient)
        new = {**said.appointment.resource, "identifier": identifiers}
        key = known["id"] if known else _new_id(numbers, patient)
        if books and known:
            taken.notes.append(f"SCH-1: the appointment {number} was given up; it is booked again")
        elif books and draft.get(f"Appointment/{key}"):
            text = f"the appointment {number} is known as Appointment/{key}, which another patient has by now"
            raise rejected(text, "SCH^1^1", "205")
        draft.put({**_whole(arrival, draft, new, known, patient, taken), "id": key})
        taken.told(mapped.losses)
        return taken

    return decide


def _known(draft: Draft, numbers: list[Number], patient: str) -> Resource | None:
    """The appointment under one of its numbers: first those that have an OID.

    One without is looked for among the patient's appointments, and among those that name no patient or when the message
    names none, only where it is surely the same agenda's.
    """
    for number in sorted(numbers, key=lambda one: one.system, reverse=True):
        query = identifier_query(number.system, number.value)
        whose = [""] if number.system or not patient else [f"&patient={patient}", "&patient:missing=true"]
        for one in chain.from_iterable(draft.find("Appointment", query + narrower) for narrower in whose):
            if number.system or carries(one, number, surely=patient not in _patients(one)):
                return one
    return None


def _new_id(numbers: list[Number], patient: str) -> str:
    """The id of a new appointment; a number without an OID is one of its patient, its agenda and its kind."""
    inorder = sorted(numbers, key=lambda one: (one.parts, one.kind))
    parts = [part for number in inorder for part in number.parts]
    bare = [] if all(one.system for one in numbers) else [*(one.kind for one in inorder), patient]
    return stable_id("appointment", *parts, *bare)


def _patients(appointment: Resource) -> set[str]:
    held = {one.get("actor", {}).get("reference", "") for one in appointment.get("participant", ())}
    return {reference for reference in held if reference.startswith("Patient/")}


def _check_patient(known: Resource | None, patient: str) -> None:
    patients = _patients(known or {})
    if patient and patients and patient not in patients:
        raise rejected("the appointment is that of another patient", "PID^1^3", "207", "904")


def _whole(
    arrival: Arrival, draft: Draft, said: Resource, known: Resource | None, patient: str, taken: Taken
) -> Resource:
    new = dict(said)
    untrue = {"meta"}
    if new["status"] != "cancelled":
        untrue.add("cancelationReason")
    if "start" in new:
        untrue |= {"end", "minutesDuration"}  # of the slot as it was before
    held = {name: value for name, value in (known or {}).items() if name not in untrue}
    people = new.pop("participant", [])
    before = held.get("participant", [])
    of_patient = [one for one in before if one.get("actor", {}).get("reference", "").startswith("Patient/")]
    if patient:
        of_patient = [{"actor": {"reference": patient}, "status": "accepted"}]
    others = people or [one for one in before if one not in of_patient]
    if "basedOn" in new and patient:
        new["basedOn"] = linked(arrival, draft, new["basedOn"], patient, taken)
    return {**held, **new, "participant": [*of_patient, *others]}
