"""SIU S12 to S15 as an Appointment: a slot is booked, moved, changed or given up.

Hides the resource segments (AIS, AIP, AIL, AIG) and the two places a slot's time may stand in. The Appointment has no
id, and its patient is a participant whoever stores it must fill in.

Sources: HL7 v2.5 chapter 10; HL7 v2-to-FHIR SCH, AIS, AIP, AIL, AIG[Appointment] and FillerStatusCodes[Appointment]
(https://build.fhir.org/ig/HL7/v2-to-fhir/); HL7 tables 0276, 0277, 0278.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from hl7v2.message import Message, Segment
from mappers.hl7v2_codes_to_fhir import Built, Ids, concept_of, concepts_of, order_ids, where
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_pid_to_fhir import PatientResult, patient_of
from mappers.hl7v2_types_to_fhir import Element, Notes, compact, datetime_of, practitioner_of, reps
from mappers.identity import Site
from mappers.mapped import Mapped
from profiles.v2_maps import table

Action = Literal["book", "move", "change", "cancel"]
ACTIONS: Final[Mapping[str, Action]] = {"S12": "book", "S13": "move", "S14": "change", "S15": "cancel"}
_NEAREST: Final = "the nearest state; HL7's map is empty"
STATUS: Final = table(
    "FillerStatusCodes[Appointment]",
    {
        "DISCONTINUED": ("cancelled", _NEAREST),
        "BLOCKED": ("cancelled", _NEAREST),
        "OVERBOOK": ("booked", _NEAREST),
    },
)
"""SCH-25 (HL7 table 0278) -> Appointment.status."""
_UNITS: Final = {"": 1.0, "MIN": 1.0, "M": 1.0, "S": 1 / 60, "SEC": 1 / 60, "H": 60.0, "HR": 60.0, "D": 1440.0}
_PARTICIPATION: Final = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
_SEGMENTS: Final = frozenset({"MSH", "SCH", "NTE", "PID", "PV1", "RGS", "AIS", "AIP", "AIL", "AIG"})
MAX_RESOURCES: Final = 100
_LONGEST: Final = 60 * 24 * 31


@dataclass(frozen=True, slots=True)
class Slot:
    """What an SIU says. `ids` are SCH-1 and SCH-2: what finds the Appointment again; `requests` the order numbers.

    `patient` is None when the message has no PID (a slot without a patient). A `move` or `cancel` of an appointment
    nobody here knows is answered by the port's policy.
    """

    action: Action
    control_id: str
    appointment: Built
    ids: Ids
    patient: PatientResult | None
    requests: Ids


def appointment(msg: Message, site: Site) -> Mapped[Slot]:
    """The Appointment of an SIU^S12 to S15.

    Raises Refused for another event, without SCH or an appointment number, for a booking without a beginning, and as
    `ins_of` does.
    """
    notes = Notes()
    action = ACTIONS.get(msg.trigger)
    if action is None:
        raise Refused(f"SIU^{msg.trigger[:10]} is not taken in; S12 to S15 are", "MSH^1^9", condition="201",
                      code="not-supported")  # fmt: skip
    sch = msg.first("SCH")
    if sch is None:
        raise Refused("SCH is missing", "SCH^1", condition="100", code="required")
    identifiers = order_ids([(sch.field(1), "PLAC"), (sch.field(2), "FILL")], site)
    if not identifiers:
        raise Refused("the appointment has no number (SCH-1, SCH-2)", "SCH^1^1", condition="101", code="required")
    out = Built({"resourceType": "Appointment"})
    out.put("identifier", identifiers)
    out.put("status", _status(sch, action, notes))
    _what(out, msg, sch, action, notes)
    _when(out, msg, sch, action, site, notes)
    texts = [text for nte in msg.all("NTE")[:50] if (text := nte.field(3).whole.strip())]
    out.put("comment", "\n".join(texts))
    orders = order_ids([(sch.field(26), "PLAC"), (sch.field(27), "FILL")], site)
    based = [{"type": "ServiceRequest", "identifier": one} for one in orders]
    out.put("basedOn", based)
    out.put("participant", _participants(msg, sch, notes))
    patient = patient_of(msg, site, notes) if msg.first("PID") is not None else None
    _left_behind(msg, notes)
    value = Slot(action, msg.control_id, out, _pairs(identifiers), patient, _pairs(orders))
    return Mapped(value, tuple(dict.fromkeys(notes.losses)))


def _pairs(identifiers: list[Element]) -> Ids:
    return tuple((str(one.get("system", "")), str(one["value"])) for one in identifiers)


def _what(out: Built, msg: Message, sch: Segment, action: Action, notes: Notes) -> None:
    """SCH-7 is the reason of the appointment, SCH-6 that of the event: why it is given up."""
    services = [first for ais in msg.all("AIS")[:20] if (first := concept_of(ais.field(3), where(ais, 3), notes))]
    out.put("serviceType", services)
    out.put("appointmentType", concept_of(sch.field(8).repetition(1), "SCH-8", notes))
    out.put("reasonCode", concepts_of(sch.field(7), "SCH-7", notes))
    if action == "cancel":
        out.put("cancelationReason", concept_of(sch.field(6).repetition(1), "SCH-6", notes))


def _when(out: Built, msg: Message, sch: Segment, action: Action, site: Site, notes: Notes) -> None:
    begin, end, minutes = _times(msg, sch, site, notes)
    if not begin and action != "cancel":
        raise Refused("the appointment has no beginning (SCH-11.4 or AIS-4)", "SCH^1^11", condition="101",
                      code="required")  # fmt: skip
    out.put("start", begin)
    out.put("end", end)
    out.put("minutesDuration", minutes or None)


def _status(sch: Segment, action: Action, notes: Notes) -> str:
    """A cancellation cancels whatever SCH-25 says; else SCH-25, else booked."""
    if action == "cancel":
        return "cancelled"
    code = sch.text(25).upper()
    if code and code not in STATUS:
        notes.add("SCH-25", f"filler status {code[:15]!r} is not in table 0278; booked is assumed")
    return STATUS.get(code, "booked")


def _times(msg: Message, sch: Segment, site: Site, notes: Notes) -> tuple[str, str, int]:
    """(start, end, minutes) as FHIR instants of SCH-11, else of AIS-4 or AIP-6."""
    options = [(sch.text(11, 4), "SCH-11"), *((ais.text(4), where(ais, 4)) for ais in msg.all("AIS")[:20])]
    options += [(aip.text(6), where(aip, 6)) for aip in msg.all("AIP")[:20]]
    begin, at = next(((text, place) for raw, place in options if "T" in (text := _instant(raw, site))), ("", ""))
    end = _instant(sch.text(11, 5), site)
    unit = sch.text(10).upper()
    minutes = _minutes(sch.text(9), unit)
    if not minutes:
        minutes = next((found for ais in msg.all("AIS")[:20] if (found := _minutes(ais.text(7), ais.text(8)))), 0)
    if sch.text(9) and unit not in _UNITS:
        notes.add("SCH-10", f"duration unit {unit[:10]!r} is unknown; the duration is not carried")
    if begin and "T" not in end:
        end = (datetime.fromisoformat(begin) + timedelta(minutes=minutes)).isoformat() if minutes else ""
    if begin and not end:
        # Appointment demands both or neither (app-3): a slot of unknown length is given none.
        notes.add(at, "neither end nor duration is known; 30 minutes are assumed")
        end = (datetime.fromisoformat(begin) + timedelta(minutes=30)).isoformat()
    if begin and datetime.fromisoformat(end) < datetime.fromisoformat(begin):
        raise Refused("the appointment ends before it begins", "SCH^1^11", condition="102")
    return begin, end if begin else "", minutes


def _instant(text: str, site: Site) -> str:
    found = datetime_of(text, site.time_zone)
    return found if "T" in found else ""


def _minutes(text: str, unit: str) -> int:
    factor = _UNITS.get(unit.upper(), 0.0)
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        return 0
    minutes = round(int(text) * factor)
    return minutes if 0 < minutes <= _LONGEST else 0


def _participants(msg: Message, sch: Segment, notes: Notes) -> list[Element]:
    """AIP people, AIL and AIG places, and the contact of SCH-16 when no AIP names anybody."""
    out: list[Element] = []
    for aip in msg.all("AIP")[:MAX_RESOURCES]:
        for xcn in reps(aip.field(3)):
            kind = concepts_of(aip.field(4), where(aip, 4), notes)
            out.append(compact(type=kind[:1], actor=practitioner_of(xcn, where(aip, 3), notes), status="accepted"))
    if not out:
        for xcn in reps(sch.field(16)):
            contact = {"coding": [{"system": _PARTICIPATION, "code": "PPRF"}]}
            out.append({"type": [contact], "actor": practitioner_of(xcn, "SCH-16", notes), "status": "accepted"})
    for name in ("AIL", "AIG"):
        for segment in msg.all(name)[:MAX_RESOURCES]:
            place = " / ".join(text for n in (1, 2, 3) if (text := segment.text(3, n)))
            if place:
                out.append({"actor": {"type": "Location" if name == "AIL" else "Device", "display": place},
                            "status": "accepted"})  # fmt: skip
    return out


def _left_behind(msg: Message, notes: Notes) -> None:
    for name in sorted({segment.name for segment in msg.segments[:500]} - _SEGMENTS):
        notes.add(name or "MSH", "the segment is not carried")
