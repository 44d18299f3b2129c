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

FROM: Mapping[str, frozenset[str]] = {
    "A11": frozenset({"in-progress", "onleave", "arrived", "triaged", "planned", "finished"}),
    "A38": frozenset({"planned"}),
    "A27": frozenset({"planned"}),
    "A13": frozenset({"finished"}),
    "A52": frozenset({"onleave"}),
    "A53": frozenset({"in-progress"}),
}
"""A cancellation -> the states of the stay it can take back. In any other it changes no state and is noted."""
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
    if _keeps(trigger, result, known, taken):
        whole |= {name: part for name, part in held.items() if name in STATE_PARTS}
        for name in STATE_PARTS - set(held):
            whole.pop(name, None)
    elif known:
        _deleted(whole, said, result.nulls)
        period = {**held.get("period", {}), **said.get("period", {})}
        if whole["status"] not in ENDED:
            period.pop("end", None)
        whole["period"] = period
        if not period:
            del whole["period"]
    if result.movement:
        _with_movement(whole, result.movement, trigger, result, taken)
    draft.put(whole)


def _keeps(trigger: str, result: AdtResult, known: Resource | None, taken: Taken) -> bool:
    """Whether the state of a known stay stays as it is; a cancellation of what is not so is noted."""
    if known is None:
        return False
    allowed = FROM.get(trigger)
    if allowed is not None and known["status"] not in allowed:
        text = f"{trigger} takes back {EVENTS[trigger].cancels}, but the stay is {known['status']}: it stays as it is"
        taken.notes.append(f"MSH-9.2: {text}")
        return True
    return result.keeps_state and EVENTS.get(trigger, EVENTS["Z99"]).stay != "cancel"


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
