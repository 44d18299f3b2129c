"""An Appointment of a téléexpertise as SIU^S12 to S15 of base HL7 v2.5, for agendas that take no FHIR.

Hides chapter 10: which event a change of an Appointment is, its two numbers, and the resource segments. The
appointment's own numbers go back as they came (`order_number`); one that was made here carries our id as the filler's.

Sources: HL7 v2.5 chapter 10 (SIU_S12, SCH, RGS, AIS, AIP), HL7 tables 0206, 0276, 0278;
https://hl7.org/fhir/R4/appointment.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from hl7v2.write import Component, Fields, dtm
from mappers.fhir_to_hl7v2_segments import PERSONS, Envelope, Segments, Visit, finished, pid, pv1, xcn
from mappers.fhir_to_report import PatientIdentity, Professional
from mappers.identity import Site
from mappers.mapped import Loss, Mapped
from mappers.order_number import OrderNumber, filler_of, placer_of, under_oid

Resource = Mapping[str, Any]
Event = Literal["S12", "S13", "S14", "S15"]
STANDING: Final = frozenset({"booked", "arrived", "checked-in", "fulfilled", "noshow"})
"""Appointment.status of what was agreed; `proposed`, `pending` and `waitlist` are not told to anybody yet."""
STATUS: Final = {
    "booked": "Booked", "arrived": "Started", "checked-in": "Started", "fulfilled": "Complete", "noshow": "Noshow",
    "cancelled": "Cancelled", "entered-in-error": "Deleted",
    "proposed": "Cancelled", "pending": "Cancelled", "waitlist": "Cancelled",
}  # fmt: skip
"""Every Appointment.status -> SCH-25 (HL7 table 0278). What was put back is told by S15 alone: the booking is over."""
_ACTIONS: Final = {"S12": "A", "S13": "U", "S14": "U", "S15": "D"}
_WHY: Final = {"S12": "Réservation", "S13": "Déplacement", "S14": "Modification", "S15": "Annulation"}
"""SCH-6, which base HL7 requires, when the appointment says no reason of its own."""
_SYSTEMS: Final = {"http://snomed.info/sct": "SCT", "http://loinc.org": "LN"}


def event_of(before: Resource | None, after: Resource) -> Event | None:
    """What happened to an appointment: booked (S12), moved (S13), changed (S14), given up or put back (S15), or nothing
    to tell."""
    stood = before is not None and before.get("status") in STANDING
    stands = after.get("status") in STANDING
    if not stood or before is None:
        return "S12" if stands else None
    if not stands:
        return "S15"
    if any(before.get(name) != after.get(name) for name in ("start", "end", "minutesDuration")):
        return "S13"
    told = [{name: value for name, value in one.items() if name not in ("meta", "text")} for one in (before, after)]
    return "S14" if told[0] != told[1] else None


def siu(
    event: Event,
    appointment: Resource,
    patient: PatientIdentity,
    people: Sequence[Professional],
    order: OrderNumber,
    *,
    own_oid: str,
    site: Site,
    control_id: str,
    now: datetime,
    receiving_application: str,
    receiving_facility: str,
    visit: Visit | None = None,
) -> Mapped[bytes]:
    """The message, each segment ended by CR, in the character set of the site.

    `people` are the professionals who take part, `order` the number of the request it belongs to, `own_oid` what our
    own appointment ids are unique under. Raises ValueError for a control id that does not fit and for an appointment
    without an aware start.
    """
    envelope = Envelope(site, control_id, now, receiving_application, receiving_facility)
    losses: list[Loss] = []
    start = _instant(appointment, "start", envelope)
    if not start and event != "S15":
        raise ValueError("the appointment has no start with an offset")
    persons = [xcn(f"8{one.rpps}", one.family, one.given, PERSONS, "D", "IDNPS") for one in people]
    if not persons:
        losses.append(Loss("SCH-16", "no professional is known to take part"))
    sch = _sch(event, appointment, order, persons[0] if persons else None, own_oid, envelope)
    segments: Segments = [("MSH", envelope.msh(("SIU", event, "SIU_S12"), "2.5", None)), ("SCH", sch)]
    comment = str(appointment.get("comment") or appointment.get("description") or "")
    if comment:
        segments.append(("NTE", {1: "1", 3: comment}))
    action = _ACTIONS[event]
    segments += [("PID", pid(patient, visit, losses)), ("PV1", pv1(visit, envelope.zone, losses))]
    segments.append(("RGS", {1: "1", 2: action}))
    for number, service in enumerate(appointment.get("serviceType", ()), 1):
        segments.append(("AIS", {1: str(number), 2: action, 3: _concept(service), 4: start or None}))
    for number, person in enumerate(persons, 1):
        segments.append(("AIP", {1: str(number), 2: action, 3: person, 6: start or None}))
    return finished(segments, site, losses)


def _sch(
    event: Event,
    appointment: Resource,
    order: OrderNumber,
    contact: tuple[Component, ...] | None,
    own_oid: str,
    envelope: Envelope,
) -> Fields:
    placer = placer_of(appointment)
    filler = filler_of(appointment) or under_oid(str(appointment.get("id", "")), own_oid)
    start, end = (_instant(appointment, name, envelope) for name in ("start", "end"))
    minutes = str(appointment.get("minutesDuration") or _between(appointment) or "")
    return {
        1: placer.components if placer else None,
        2: filler.components,
        6: (_concept(appointment.get("cancelationReason")) if event == "S15" else None) or (None, _WHY[event]),
        7: _concept(next(iter(appointment.get("reasonCode", ())), None)),
        8: _concept(appointment.get("appointmentType")),
        9: minutes,
        10: "MIN" if minutes else None,
        11: (None, None, None, start, end) if start else None,
        16: contact,
        20: contact,
        25: STATUS[str(appointment.get("status"))],
        26: order.components,
    }


def _instant(appointment: Resource, name: str, envelope: Envelope) -> str:
    """An instant of the appointment on the site's clock; '' when it is not there or has no offset."""
    try:
        moment = datetime.fromisoformat(str(appointment.get(name) or ""))
    except ValueError:
        return ""
    return dtm(moment.astimezone(envelope.zone)) if moment.tzinfo else ""


def _between(appointment: Resource) -> int:
    try:
        start, end = (datetime.fromisoformat(str(appointment[name])) for name in ("start", "end"))
        return max(0, round((end - start).total_seconds() / 60))
    except (KeyError, ValueError, TypeError):
        return 0


def _concept(concept: Resource | None) -> tuple[Component, ...] | None:
    """A CodeableConcept as CE: its first coding, else its text alone."""
    coding: Resource = next(iter((concept or {}).get("coding", ())), {})
    text = str(coding.get("display") or (concept or {}).get("text") or "")
    if not coding.get("code"):
        return (None, text) if text else None
    system = str(coding.get("system") or "")
    return str(coding["code"]), text or None, _SYSTEMS.get(system, system.removeprefix("urn:oid:") or "L")
