"""PV1, ZBE and PID-18 as an Encounter of FR Core.

Hides the movement logic of IHE PAM: which trigger leaves a stay in which state, where its beginning and end stand,
and that a correction (Z99, ZBE-4 UPDATE or CANCEL) speaks of another trigger. The Encounter has neither id nor
subject: the hub adds both.

Sources: HL7 v2-to-FHIR PV1[Encounter] (https://build.fhir.org/ig/HL7/v2-to-fhir/ConceptMap-segment-pv1-to-encounter.html);
IHE PAM France 2.11 (PV1-19, PID-18, ZBE); FR Core 2.2.0 fr-core-encounter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hl7v2.message import Message, Segment
from mappers.hl7v2_types_to_fhir import (
    FINESS_SYSTEM,
    FR_V2_0203,
    Element,
    Notes,
    compact,
    datetime_of,
    identifier_of,
    practitioner_of,
    reps,
)
from mappers.identity import Site

ACT_CODE: Final = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
PARTICIPATION: Final = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"

CLASSES: Final = {
    "I": ("IMP", "inpatient encounter"),
    "O": ("AMB", "ambulatory"),
    "E": ("EMER", "emergency"),
    "R": ("AMB", "ambulatory"),
    "P": ("PRENC", "pre-admission"),
}
"""PV1-2 (HL7 table 0004) -> Encounter.class. R (séances) has no code of its own; N is no encounter."""

STATUSES: Final = {
    **dict.fromkeys(("A01", "A02", "A04", "A06", "A07", "A08", "A12", "A13", "A15", "A16", "A22", "A25", "A26", "A44",
                     "A52", "A54", "A55"), "in-progress"),
    "A03": "finished",
    **dict.fromkeys(("A05", "A14"), "planned"),
    **dict.fromkeys(("A11", "A27", "A38"), "cancelled"),
    **dict.fromkeys(("A21", "A53"), "onleave"),
}  # fmt: skip
"""State of the stay after the trigger. The cancellation of a leave (A52) puts the patient back in, of a return (A53)
out again, of a discharge (A13) in again; pending events (A15, A16 and their cancellations) change nothing."""
_CANCELS: Final = {"A01": "A11", "A02": "A12", "A03": "A13", "A04": "A11", "A05": "A38", "A14": "A27", "A15": "A26",
                   "A16": "A25", "A21": "A52", "A22": "A53", "A54": "A55"}  # fmt: skip

CARRIED: Final = frozenset({1, 2, 3, 7, 17, 19, 44, 45})


@dataclass(frozen=True, slots=True)
class Movement:
    """ZBE: a movement of the stay. `units` are the medical and the nursing unit (UF) as (code, name)."""

    ids: tuple[str, ...]
    action: str
    historic: bool
    original_trigger: str
    start: str
    nature: str
    units: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class StayResult:
    """The Encounter (None when the message speaks of no stay), its identifiers (system, value), the movement."""

    encounter: Element | None
    ids: tuple[tuple[str, str], ...]
    movement: Movement | None


def stay_of(msg: Message, site: Site, notes: Notes) -> StayResult:
    """The stay of a movement message."""
    movement = movement_of(msg, site)
    status = STATUSES.get(effective_trigger(msg, movement), "")
    if not status or msg.first("PV1") is None:
        return StayResult(None, (), movement)
    if msg.text("PV1-2") == "N":
        notes.add("PV1-2", "class N: no stay is recorded")
        return StayResult(None, (), movement)
    identifiers, ids = _identifiers(msg, site, notes)
    if not ids:
        notes.add("PV1-19", "no visit number in a declared namespace: the stay is not recorded")
        return StayResult(None, (), movement)
    if movement and movement.historic:
        notes.add("ZBE-5", "a historic movement: the state of the stay is that of its own time")
    period = _period(msg, site, movement)
    if status == "in-progress" and "end" in period:
        status = "finished"
    encounter = compact(
        resourceType="Encounter",
        identifier=identifiers,
        status=status,
        class_=_class(msg, notes),
        participant=_participants(msg, notes),
        period=period,
        location=_locations(msg, movement),
        serviceProvider=provider_of(site),
    )
    return StayResult(encounter, tuple(ids), movement)


def effective_trigger(msg: Message, movement: Movement | None) -> str:
    """The trigger whose effect the message has: that of ZBE-6 for a correction, its cancellation for CANCEL."""
    original = movement.original_trigger if movement else ""
    if msg.trigger == "Z99" and original:
        return _CANCELS.get(original, original) if movement and movement.action == "CANCEL" else original
    return "A01" if msg.trigger == "Z99" else msg.trigger


def movement_of(msg: Message, site: Site) -> Movement | None:
    segment = msg.first("ZBE")
    if segment is None:
        return None
    return Movement(
        ids=tuple(rep.encoded for rep in reps(segment.field(1))),
        action=segment.text(4).upper(),
        historic=segment.text(5).upper() == "Y",
        original_trigger=segment.text(6).upper(),
        start=datetime_of(segment.text(2), site.time_zone),
        nature=segment.text(9).upper(),
        units=tuple(unit for number in (7, 8) if (unit := _unit(segment, number)) != ("", "")),
    )


def _unit(segment: Segment, number: int) -> tuple[str, str]:
    """XON of a unité fonctionnelle: code in component 10 (3 in older messages), name in component 1."""
    return segment.text(number, 10) or segment.text(number, 3), segment.text(number, 1)


def provider_of(site: Site) -> Element:
    """The establishment as a logical reference by FINESS."""
    coding = {"system": FR_V2_0203, "code": "FINEG"}
    identifier = {"type": {"coding": [coding]}, "system": FINESS_SYSTEM, "value": site.finess_eg}
    return compact(type="Organization", identifier=identifier, display=site.name)


def _identifiers(msg: Message, site: Site, notes: Notes) -> tuple[list[Element], list[tuple[str, str]]]:
    """PV1-19 (VN) and PID-18 (AN); only the visit number in a declared namespace finds the stay again."""
    out: list[Element] = []
    ids: list[tuple[str, str]] = []
    visit = msg.at("PV1-19").repetition(1)
    if visit.valued and visit.part(1).text:
        identifier, namespace = identifier_of(visit, "PV1-19", site, "VN", "usual", notes)
        out.append(identifier)
        ids += [(namespace.fhir_system, identifier["value"])] if namespace else []
    account = msg.at("PID-18").repetition(1)
    if account.valued and account.part(1).text:
        identifier, _ = identifier_of(account, "PID-18", site, "AN", "secondary", notes)
        out.append(identifier)
    return out, ids


def _class(msg: Message, notes: Notes) -> Element:
    code = msg.text("PV1-2").upper()
    if code == "R":
        notes.add("PV1-2", "recurring stays (R) are shown as ambulatory")
    if code not in CLASSES:
        notes.add("PV1-2", f"patient class {code!r} is unknown; ambulatory is assumed")
    name, display = CLASSES.get(code, CLASSES["O"])
    return {"system": ACT_CODE, "code": name, "display": display}


def _period(msg: Message, site: Site, movement: Movement | None) -> Element:
    zone = site.time_zone
    begin = datetime_of(msg.text("PV1-44"), zone)
    end = datetime_of(msg.text("PV1-45"), zone)
    moved = movement.start if movement else datetime_of(msg.text("EVN-6"), zone)
    if not begin and effective_trigger(msg, movement) in ("A01", "A04", "A05"):
        begin = moved or datetime_of(msg.text("EVN-2"), zone)
    if not end and effective_trigger(msg, movement) == "A03":
        end = moved or datetime_of(msg.text("EVN-2"), zone)
    return compact(start=begin, end=end)


def _participants(msg: Message, notes: Notes) -> list[Element]:
    """PV1-7 attending (ATND), PV1-17 admitting (ADM)."""
    out = []
    for number, code, display in ((7, "ATND", "attender"), (17, "ADM", "admitter")):
        for xcn in reps(msg.at(f"PV1-{number}")):
            kind = {"coding": [{"system": PARTICIPATION, "code": code, "display": display}]}
            out.append({"type": [kind], "individual": practitioner_of(xcn, f"PV1-{number}", notes)})
    return out


def _locations(msg: Message, movement: Movement | None) -> list[Element]:
    """PV1-3 (unit, room, bed) and the unit of the movement, as names."""
    place = " / ".join(part for part in (msg.text(f"PV1-3.{n}") for n in (1, 2, 3)) if part)
    units = [" ".join(part for part in (name, f"(UF {code})" if code else "") if part) for code, name in
             dict.fromkeys(movement.units if movement else ())]  # fmt: skip
    return [{"location": {"display": name}} for name in dict.fromkeys([*units, place]) if name]
