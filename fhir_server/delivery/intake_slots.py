"""SIU S12 to S15: a slot is booked, moved, changed or given up, under its own number.

Sources: HL7 v2.5 chapter 10; HL7 v2-to-FHIR SIU_S12; https://hl7.org/fhir/R4/appointment.html.
"""

from __future__ import annotations

from typing import Any

from fhir_server.delivery.arrivals import Arrival, Decide, Draft, Taken, rejected
from fhir_server.delivery.intake_documents import linked, stable_id
from fhir_server.delivery.intake_patients import patient_of
from fhir_server.patients.identity import identifier_query
from mappers.hl7v2_schedule_to_fhir import Slot, appointment

Resource = dict[str, Any]


def siu(arrival: Arrival) -> Decide:
    """What an SIU means. Raises Refused as the mapper does; Rejected for an unknown or a known number."""
    mapped = appointment(arrival.msg, arrival.site)
    said = mapped.value

    def decide(draft: Draft) -> Taken:
        taken = Taken()
        known = _known(draft, said)
        number = said.ids[0][1][:60]
        if said.action == "book" and known:
            raise rejected(f"the appointment {number} is booked already; move it with S13", "SCH^1^1", "205")
        if said.action != "book" and known is None:
            raise rejected(f"no appointment {number} is known here; book it with S12", "SCH^1^1", "204")
        patient = patient_of(arrival, draft, said.patient, taken, create=known is None) if said.patient else ""
        _check_patient(known, patient)
        draft.put(_whole(arrival, draft, said, known, patient, taken))
        taken.told(mapped.losses)
        return taken

    return decide


def _known(draft: Draft, said: Slot) -> Resource | None:
    """The appointment under one of its numbers that have an authority, else under the bare one."""
    for system, value in sorted(said.ids, reverse=True):
        for one in draft.find("Appointment", identifier_query(system, value)):
            return one
    return None


def _check_patient(known: Resource | None, patient: str) -> None:
    held = {one.get("actor", {}).get("reference", "") for one in (known or {}).get("participant", ())}
    patients = {reference for reference in held if reference.startswith("Patient/")}
    if patient and patients and patient not in patients:
        raise rejected("the appointment is that of another patient", "PID^1^3", "207", "904")


def _whole(arrival: Arrival, draft: Draft, said: Slot, known: Resource | None, patient: str, taken: Taken) -> Resource:
    new = dict(said.appointment.resource)
    held = {name: value for name, value in (known or {}).items() if name != "meta"}
    people = new.pop("participant", [])
    before = held.get("participant", [])
    of_patient = [one for one in before if one.get("actor", {}).get("reference", "").startswith("Patient/")]
    if patient:
        of_patient = [{"actor": {"reference": patient}, "status": "accepted"}]
    others = people or [one for one in before if one not in of_patient]
    if "basedOn" in new and patient:
        new["basedOn"] = linked(arrival, draft, new["basedOn"], patient, taken)
    key = held.get("id") or stable_id("appointment", *(part for pair in sorted(said.ids) for part in pair))
    return {**held, **new, "id": key, "participant": [*of_patient, *others]}
