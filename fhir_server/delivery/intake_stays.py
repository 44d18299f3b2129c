"""ADT: the stay under its visit number, and the movements that were told of it.

Hides what a cancellation needs, what a historic or announced movement leaves alone, and how the movements (ZBE) are
kept on the Encounter: an extension each, with its number, event and state, so that a correction finds what it corrects.

Sources: IHE PAM France 2.11 (ITI-31, ZBE-1, ZBE-4, ZBE-5, ZBE-6); FR Core 2.2.0 fr-core-encounter.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from fhir_server.delivery.arrivals import Arrival, Draft, Taken, rejected
from fhir_server.patients.identity import identifier_query
from fhir_server.search.values import date_range
from mappers.hl7v2_events_to_fhir import EVENTS
from mappers.hl7v2_pv1_to_fhir import Movement, effective_trigger
from mappers.hl7v2_to_fhir import AdtResult

Resource = dict[str, Any]
Ids = tuple[tuple[str, str], ...]
MOVEMENT = "urn:passerelle:mouvement"
"""Our own extension of Encounter: parts `id` (ZBE-1), `event`, `start`, `state`."""
MOST_MOVEMENTS = 200
ENDED = frozenset({"finished", "cancelled", "entered-in-error"})
STATE_PARTS = frozenset({"status", "class", "location", "participant", "period", "hospitalization"})
"""What a historic or announced movement does not change on a stay that is known."""

_OPEN = frozenset({"planned", "arrived", "triaged", "in-progress", "onleave", "unknown"})
_BEGINS = frozenset({"A01", "A04"})

FROM: Mapping[str, frozenset[str]] = {
    **{trigger: _OPEN for trigger, event in EVENTS.items() if event.stay == "update" and trigger not in ("A08", "Z99")},
    "A03": _OPEN | {"finished"},
    **dict.fromkeys(("A05", "A14"), frozenset({"planned", "unknown", "cancelled", "entered-in-error"})),
    "A11": _OPEN | {"finished"},
    "A38": frozenset({"planned", "unknown"}),
    "A27": frozenset({"planned", "unknown"}),
    "A13": frozenset({"finished"}),
    "A52": frozenset({"onleave", "unknown"}),
    "A53": frozenset({"in-progress", "unknown"}),
}
"""An event -> the states of a known stay it can change. A stay in any other stays as it is, and that is noted. An
admission (A01, A04) begins every stay; whether also one that ended is `_begins_again`'s."""
_DELETES: Mapping[str, tuple[str, str]] = {"PV1-7": ("participant", "ATND"), "PV1-17": ("participant", "ADM")}


def find_stay(draft: Draft, ids: Ids, patient: str) -> Resource | None:
    """The patient's Encounter under one of its numbers."""
    for system, value in ids:
        for stay in draft.find("Encounter", identifier_query(system, value)):
            if stay.get("subject", {}).get("reference") == patient:
                return stay
    return None


def encounter_of(draft: Draft, ids: Ids, patient: str, taken: Taken) -> Resource:
    """{"encounter": reference} of the stay a result or a document names, {} when there is none."""
    stay = find_stay(draft, ids, patient) if ids else None
    if ids and stay is None:
        taken.notes.append(f"PV1-19: no stay {ids[0][1]} of this patient is known; none is named")
    return {"encounter": {"reference": f"Encounter/{stay['id']}"}} if stay else {}


def check_cancel(arrival: Arrival, draft: Draft, result: AdtResult, patient: str) -> None:
    """A cancellation needs the stay it is about. Raises Rejected (101 without a number, 204 for an unknown stay)."""
    event = EVENTS.get(effective_trigger(arrival.msg, result.movement))
    if event is None or not event.cancels or (result.keeps_state and event.pending and not result.encounter_ids):
        return
    told = f"{result.trigger} takes back {event.cancels} of a stay"
    if not result.encounter_ids:
        raise rejected(f"{told}, but PV1-19 names none in a declared namespace", "PV1^1^19", "101")
    if not patient or find_stay(draft, result.encounter_ids, patient) is None:
        number = result.encounter_ids[0][1][:50]
        raise rejected(f"{told}, but no stay {number} of this patient is known here", "PV1^1^19", "204")


def record_stay(arrival: Arrival, draft: Draft, result: AdtResult, patient: str, taken: Taken) -> None:
    """The stay under its visit number: the same number is the same Encounter, and keeps what is not said again."""
    said = dict(result.encounter or {})
    known = find_stay(draft, result.encounter_ids, patient)
    trigger = effective_trigger(arrival.msg, result.movement)
    held = {name: part for name, part in (known or {}).items() if name != "meta"}
    whole = {**held, **said, "id": held.get("id") or str(uuid.uuid4())}
    whole |= {"subject": {"reference": patient}, "serviceProvider": arrival.organization}
    kept = known is not None and _keeps(arrival, trigger, result, held, said, taken)
    if kept:
        _held(whole, held, STATE_PARTS)
        _begun(whole, said, trigger, result)
    elif known:
        _deleted(whole, said, result.nulls)
        _lasted(whole, held, said)
        _left(whole, held, said, trigger, taken)
        if trigger == "A08" and known["status"] != "unknown":
            _unmoved(whole, held, said, taken)
    if result.movement and not (kept and _repeats(result.movement, held)):
        _with_movement(whole, result.movement, trigger, result, taken)
    draft.put(whole)


def _keeps(arrival: Arrival, trigger: str, result: AdtResult, held: Resource, said: Resource, taken: Taken) -> bool:
    """Whether a known stay stays as it is; when the event cannot change the state it is in, that is noted."""
    event, status = EVENTS[trigger], held["status"]
    historic = result.movement is not None and result.movement.historic
    begins = event.stay == "create" and status in ENDED and not historic
    if not _changes(trigger, status, corrects=_corrects(trigger, result)) or (
        begins and not _begins_again(result.movement, held, said, arrival.site.time_zone)
    ):
        does = f"takes back {event.cancels}" if event.cancels else f"tells {event.name}"
        taken.notes.append(f"MSH-9.2: {trigger} {does}, but the stay is {status}: it stays as it is")
        return True
    if begins:
        return False  # announced anew
    return result.keeps_state and event.stay != "cancel"


def _begins_again(movement: Movement | None, held: Resource, said: Resource, zone: str) -> bool:
    """Whether a beginning is a new one of a stay that ended, not an earlier one that comes late or once more: it is
    after the end; of a stay that was cancelled, it is a movement that was not told of it yet."""
    if held["status"] != "finished":
        return movement is None or not _is_on(held, movement)
    period = held.get("period", {})
    start = (movement.start if movement else "") or said.get("period", {}).get("start", "")
    begun, ended = date_range(start, zone), date_range(period.get("end") or period.get("start", ""), zone)
    return begun is not None and ended is not None and begun[0] >= ended[1]


def _repeats(movement: Movement, held: Resource) -> bool:
    """Whether a movement that was told of a stay before comes once more, now that it has ended."""
    return held["status"] in ENDED and movement.action == "INSERT" and _is_on(held, movement)


def _is_on(stay: Resource, movement: Movement) -> bool:
    """Whether a movement of this number was told of the stay before."""
    told = (part_of(one, "id") for one in stay.get("extension", ()) if one.get("url") == MOVEMENT)
    return bool(movement.ids) and movement.ids[0] in told


def _changes(trigger: str, status: str, *, corrects: bool) -> bool:
    """Whether an event can change a stay in this state. What corrects an earlier movement ends or reopens none."""
    if corrects and status in ENDED:
        return (trigger, status) == ("A03", "finished")
    return status in FROM.get(trigger, {status})


def _corrects(trigger: str, result: AdtResult) -> bool:
    return result.trigger == "Z99" and not EVENTS[trigger].cancels


def _held(whole: Resource, held: Resource, parts: frozenset[str]) -> None:
    """These parts are those that are stored, or not there."""
    for name in parts:
        whole.pop(name, None)
    whole |= {name: part for name, part in held.items() if name in parts}


def _begun(whole: Resource, said: Resource, trigger: str, result: AdtResult) -> None:
    """An admission that comes late says when the stay began, if nobody has; a correction of the one admission says so
    whatever came since."""
    begins = [
        one for one in whole.get("extension", ()) if one.get("url") == MOVEMENT and part_of(one, "event") in _BEGINS
    ]
    start, period = said.get("period", {}).get("start"), whole.get("period", {})
    corrects = len(begins) <= 1 and _corrects(trigger, result)
    if start and trigger in _BEGINS and (corrects or "start" not in period):
        whole["period"] = {**period, "start": start}


def _lasted(whole: Resource, held: Resource, said: Resource) -> None:
    """The time of the stay; one that goes on has no end."""
    period = {**held.get("period", {}), **said.get("period", {})}
    if whole["status"] not in ENDED:
        period.pop("end", None)
    whole["period"] = period
    if not period:
        del whole["period"]


def _left(whole: Resource, held: Resource, said: Resource, trigger: str, taken: Taken) -> None:
    """Where the patient came from and how the stay ended; one that goes on has not ended in any way."""
    told = dict(said.get("hospitalization", {}))
    kept = dict(held.get("hospitalization", {}))
    if whole["status"] != "finished" and trigger != "A08":
        kept.pop("dischargeDisposition", None)
    if trigger in ("A11", "A13") and told.pop("dischargeDisposition", None):
        taken.notes.append(f"PV1-36: {trigger} takes back how the stay ended; it is not carried")
    whole["hospitalization"] = kept | told
    if not whole["hospitalization"]:
        del whole["hospitalization"]


def _unmoved(whole: Resource, held: Resource, said: Resource, taken: Taken) -> None:
    """A08 tells no movement: the state and the time of the stay are those that are known."""
    _held(whole, held, frozenset({"status", "period"}))
    if not said.get("period", {}).items() <= held.get("period", {}).items():
        taken.notes.append("PV1-44: an A08 changes neither the state nor the dates of a known stay")


def _deleted(whole: Resource, said: Resource, nulls: tuple[str, ...]) -> None:
    """PV1 fields that say `""`: the doctor or the place is no more."""
    for place in nulls:
        if place == "PV1-3" and "location" not in said:
            whole.pop("location", None)
        if place in _DELETES and whole.get("participant"):
            name, code = _DELETES[place]
            kept = [one for one in whole[name] if code not in {c.get("code") for t in one["type"] for c in t["coding"]}]
            whole[name] = kept
            if not kept:
                del whole[name]


def _with_movement(whole: Resource, movement: Movement, trigger: str, result: AdtResult, taken: Taken) -> None:
    """Add the movement, or correct or cancel the one with its number."""
    extensions = [one for one in whole.get("extension", ()) if one.get("url") != MOVEMENT]
    held = [one for one in whole.get("extension", ()) if one.get("url") == MOVEMENT]
    number = movement.ids[0] if movement.ids else ""
    known = [one for one in held if part_of(one, "id") == number]
    if movement.action in ("UPDATE", "CANCEL") and not known:
        taken.notes.append(f"ZBE-1: the movement {number[:40]} was not received here before")
    cancelled = movement.action == "CANCEL"
    event = part_of(known[0], "event") if known else movement.original_trigger or result.trigger
    pending = trigger in EVENTS and EVENTS[trigger].pending
    state = "cancelled" if cancelled else "announced" if pending else "historic" if movement.historic else "active"
    parts: list[Resource] = [
        {"url": "id", "valueString": number or "sans numéro"},
        {"url": "event", "valueCode": event},
        {"url": "state", "valueCode": state},
    ]
    if movement.start:
        parts.insert(2, {"url": "start", "valueDateTime": movement.start})
    told = {"url": MOVEMENT, "extension": parts}
    if known:
        held = [told if one is known[0] else one for one in held]
    else:
        held.append(told)
    whole["extension"] = [*extensions, *held[-MOST_MOVEMENTS:]]


def part_of(extension: Resource, name: str) -> str:
    """The value of one part of a movement."""
    for part in extension.get("extension", ()):
        if part.get("url") == name:
            return str(part.get("valueString") or part.get("valueCode") or part.get("valueDateTime") or "")
    return ""
