"""PV1, ZBE and PID-18 as an Encounter of FR Core.

Hides the movement logic of IHE PAM: which trigger leaves a stay in which state, where its beginning and end stand,
and that a correction (Z99, ZBE-4 UPDATE or CANCEL) speaks of another trigger. The Encounter has neither id nor
subject: the hub adds both.

Sources: HL7 v2-to-FHIR PV1[Encounter] (https://build.fhir.org/ig/HL7/v2-to-fhir/ConceptMap-segment-pv1-to-encounter.html);
IHE PAM France 2.11 (PV1-19, PID-18, ZBE); FR Core 2.2.0 fr-core-encounter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from hl7v2.check import is_pam_fr
from hl7v2.message import Message, Segment
from mappers import hl7v2_events_to_fhir as events
from mappers.hl7v2_events_to_fhir import EVENTS, StayAction
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
from profiles.v2_maps import NONE, table

ACT_CODE: Final = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
DISPOSITION: Final = "http://terminology.hl7.org/CodeSystem/v2-0112"
PARTICIPATION: Final = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"

_NO_V3: Final = "the published code is of table 0004, not of the value set that FR Core binds; N is no stay"
CLASSES: Final = table(
    "PatientClass[EncounterClass]",
    {
        "R": ("AMB", "séances have no class of their own in v3: ambulatory"),
        **dict.fromkeys("BCNU", (NONE, _NO_V3)),
    },
)
"""PV1-2 (HL7 table 0004) -> Encounter.class."""
_DISPLAYS: Final = {
    "AMB": "ambulatory",
    "EMER": "emergency",
    "IMP": "inpatient encounter",
    "PRENC": "pre-admission",
}

CARRIED: Final = frozenset({1, 2, 3, 7, 17, 19, 36, 44, 45})


Ids = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Movement:
    """ZBE: a movement of the stay. `units` are the medical and the nursing unit (UF) as (code, name).

    `action` is INSERT, UPDATE (this movement, known by its ids, is now so) or CANCEL (it never was); `historic` says
    that it is not the current one: the state of the stay stays as it is.
    """

    ids: tuple[str, ...]
    action: str
    historic: bool
    original_trigger: str
    start: str
    nature: str
    units: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class StayResult:
    """The Encounter (None when the message speaks of no stay), its identifiers (system, value), the movement.

    `account_ids` is PID-18 in a declared namespace. `action` says what becomes of the stay.
    """

    encounter: Element | None
    ids: tuple[tuple[str, str], ...]
    movement: Movement | None
    action: StayAction = "none"
    account_ids: tuple[tuple[str, str], ...] = ()


def stay_of(msg: Message, site: Site, notes: Notes) -> StayResult:
    """The stay of a movement message."""
    movement = movement_of(msg, site)
    trigger = effective_trigger(msg, movement)
    event = EVENTS.get(trigger)
    identifiers, ids, accounts = _identifiers(msg, site, notes)
    action, original = (movement.action, movement.original_trigger) if movement else ("", "")
    what = events.stay_action(msg.trigger, action, original)
    if movement:
        _consistent(msg, movement, notes)
    if event is None or what == "move":
        return StayResult(None, tuple(ids), movement, what, tuple(accounts))
    if msg.trigger == "A08" and is_pam_fr(msg):
        notes.add("MSH-9.2", "A08 is outside IHE PAM France; taken as A31: PV1 and ZBE change no stay")
        return StayResult(None, (), movement, account_ids=tuple(accounts))
    if not event.status or msg.first("PV1") is None:
        return StayResult(None, (), movement, account_ids=tuple(accounts))
    if msg.text("PV1-2") == "N":
        notes.add("PV1-2", "class N: no stay is recorded")
        return StayResult(None, (), movement, account_ids=tuple(accounts))
    if not ids:
        notes.add("PV1-19", "no visit number in a declared namespace: the stay is not recorded")
        return StayResult(None, (), movement, account_ids=tuple(accounts))
    if movement and movement.historic:
        notes.add("ZBE-5", "a historic movement: the state of the stay is that of its own time")
    period = _period(msg, site, movement, notes)
    status = "finished" if event.status in ("in-progress", "unknown") and "end" in period else event.status
    encounter = compact(
        resourceType="Encounter",
        identifier=identifiers,
        status=status,
        class_=_class(msg, notes),
        participant=_participants(msg, notes),
        period=period,
        hospitalization=_hospitalization(msg, notes),
        location=[] if event.pending else _locations(msg, movement),
        serviceProvider=provider_of(site),
    )
    return StayResult(encounter, tuple(ids), movement, what, tuple(accounts))


def effective_trigger(msg: Message, movement: Movement | None) -> str:
    """The trigger whose effect the message has: that of ZBE-6 for a correction, its cancellation for CANCEL."""
    if movement is None:
        return "A01" if msg.trigger == "Z99" else msg.trigger
    return events.effective(msg.trigger, movement.action, movement.original_trigger)


def _consistent(msg: Message, movement: Movement, notes: Notes) -> None:
    """ZBE-4 and ZBE-6 must tell what the trigger tells; the trigger decides, the contradiction is told."""
    event = EVENTS.get(msg.trigger)
    if event is None or msg.trigger == "A44":
        return
    wanted = {"Z99": ("UPDATE", "CANCEL")}.get(msg.trigger, ("CANCEL",) if event.cancels else ("INSERT",))
    if movement.action not in wanted:
        notes.add("ZBE-4", f"{movement.action!r} does not go with {msg.trigger} ({' or '.join(wanted)} is expected)")
    if msg.trigger == "Z99" and movement.original_trigger not in EVENTS:
        told = "the stay stays as it is" if movement.action == "CANCEL" else "read as that of an admission"
        notes.add("ZBE-6", f"the correction does not name the event it is about: {told}")
    backwards = events.CANCELLED_BY.get(movement.original_trigger) == msg.trigger
    if event.cancels and movement.original_trigger and not backwards:
        notes.add("ZBE-6", f"{msg.trigger} takes back {event.cancels}, not {movement.original_trigger[:3]}")


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


def _identifiers(msg: Message, site: Site, notes: Notes) -> tuple[list[Element], Ids, Ids]:
    """PV1-19 (VN) and PID-18 (AN); only the visit number in a declared namespace finds the stay again."""
    out: list[Element] = []
    ids: Ids = []
    accounts: Ids = []
    visit = msg.at("PV1-19").repetition(1)
    if visit.valued and visit.part(1).text:
        identifier, namespace = identifier_of(visit, "PV1-19", site, "VN", "usual", notes)
        out.append(identifier)
        ids += [(namespace.fhir_system, identifier["value"])] if namespace else []
    account = msg.at("PID-18").repetition(1)
    if account.valued and account.part(1).text:
        identifier, namespace = identifier_of(account, "PID-18", site, "AN", "secondary", notes)
        out.append(identifier)
        accounts += [(namespace.fhir_system, identifier["value"])] if namespace else []
    return out, ids, accounts


def _class(msg: Message, notes: Notes) -> Element:
    code = msg.text("PV1-2").upper()
    if code == "R":
        notes.add("PV1-2", "recurring stays (R) are shown as ambulatory")
    if code not in CLASSES:
        notes.add("PV1-2", f"patient class {code!r} is unknown; ambulatory is assumed")
    name = CLASSES.get(code, CLASSES["O"])
    return {"system": ACT_CODE, "code": name, "display": _DISPLAYS[name]}


def _period(msg: Message, site: Site, movement: Movement | None, notes: Notes) -> Element:
    zone = site.time_zone
    begin = datetime_of(msg.text("PV1-44"), zone)
    end = datetime_of(msg.text("PV1-45"), zone)
    trigger = effective_trigger(msg, movement)
    if end and not EVENTS[trigger].ends:
        notes.add("PV1-45", f"{trigger} ends no stay: the date of discharge is not carried")
        end = ""
    moved = movement.start if movement else datetime_of(msg.text("EVN-6"), zone)
    if not begin and trigger in ("A01", "A04", "A05"):
        begin = moved or datetime_of(msg.text("EVN-2"), zone)
    if not end and trigger == "A03":
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


def _hospitalization(msg: Message, notes: Notes) -> Element:
    """ZFV-1 (DLD): the FINESS of the establishment the patient comes from; PV1-36: how the stay ended, and ZFV-9 the
    same by a name that the hospital alone knows."""
    finess = msg.text("ZFV-1.1")
    out: Element = {}
    if re.fullmatch(r"[0-9AB]{9}", finess):
        coding = {"system": FR_V2_0203, "code": "FINEG"}
        identifier = {"type": {"coding": [coding]}, "system": FINESS_SYSTEM, "value": finess}
        out["origin"] = {"type": "Organization", "identifier": identifier}
    elif finess:
        notes.add("ZFV-1", f"{finess[:30]!r} is no FINESS and not carried")
    if msg.text("ZFV-1.2"):
        notes.add("ZFV-1.2", "when the patient last stayed there is not carried")
    disposition, own = msg.at("PV1-36"), msg.text("ZFV-9")
    ended = compact(system=DISPOSITION, code=disposition.text, display=disposition.component(2).text)
    told = compact(coding=[ended] if disposition.valued else [], text=own)
    if told:
        out["dischargeDisposition"] = told
    return out
