"""Which version of a report each addressee holds, and what a later one is to them: new, instead, or a recall.

Every DocumentReference of a report says who it goes to and by which delivery (extension `urn:passerelle:diffusion`,
written by this server alone), and what they held before. With what became of the deliveries this tells who holds what,
even when the outbox was cleaned: nobody gets a replacement of what they never had (ERR-5 900 of the LPS profile), and
nobody a second first version.

Sources: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1 (T02, T10, T04; TXA-13 names the parent);
https://hl7.org/fhir/R4/documentreference.html (relatesTo, superseded).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fhir_server.context import View
from fhir_server.teleexpertise.case import Handed
from fhir_server.teleexpertise.distribution import (
    FLAVOURS,
    MAIL_LANE,
    Destination,
    Plan,
    Shut,
    hl7_road,
    mail_road,
    report_flavour,
)
from fhir_server.teleexpertise.parties import Candidate
from mappers.fhir_to_report import PatientIdentity

Resource = Mapping[str, Any]
DISTRIBUTED = "urn:passerelle:diffusion"
_TEXTS = ("lane", "addressee", "person", "display", "delivery", "held", "by")
NOT_REPLACED, NOT_RECALLED = "Correction du compte rendu non remise", "Retrait du compte rendu non remis"


@dataclass(frozen=True, slots=True)
class Holder:
    """An addressee and what they may hold: `document` is the UUID of a version, '' for none; `delivery` brought it."""

    lane: str
    addressee: str
    person: str
    display: str
    document: str = ""
    delivery: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What stands before a new version: the documents that are in force, the number of the last one, who holds what,
    and the deliveries nobody received, which are given up."""

    documents: tuple[Resource, ...] = ()
    version: int = 0
    holders: tuple[Holder, ...] = ()
    unsent: tuple[str, ...] = ()
    recorded: bool = True

    @property
    def latest(self) -> str:
        """The UUID of the last document in force, or ''."""
        return str(self.documents[-1]["id"]) if self.documents else ""


def held(report: str, status: str, view: View, handed: Callable[[str], Handed], *, taken_back: bool = False) -> Held:
    """What stands of a report (`DiagnosticReport/x`): its documents of this `status`, oldest first. `taken_back`: what
    a person keeps back is given up too, since it will never be wanted."""
    found = [one for one in view.find("DocumentReference", f"related={report}&status={status}") if _ours(one)]
    found.sort(key=lambda one: (_number(one), str(one.get("date", ""))))
    holders: dict[str, Holder] = {}
    unsent: list[str] = []
    for document in found:
        for entry in _entries(document):
            delivery = entry["delivery"]
            fate = handed(delivery) if delivery else "ended"
            if fate == "waits" or (fate == "kept" and taken_back):
                unsent.append(delivery)
            who = Holder(entry["lane"], entry["addressee"], entry["person"], entry["display"])
            if fate == "gone":
                holders[who.lane] = replace(who, document=str(document["id"]), delivery=delivery)
            elif not holders.get(who.lane, who).document:
                holders[who.lane] = replace(who, document=entry["held"], delivery=entry["by"])
    number = _number(found[-1]) if found else 0
    recorded = not found or any(_record(document) for document in found)
    return Held(tuple(found), number, tuple(holders.values()), tuple(unsent), recorded)


def follow(plan: Plan, before: Held, *, mailing: bool) -> Plan:
    """The plan of a later version: a replacement for who holds an earlier one, a first one for everybody else.

    Who holds one and has no road now is mailed where they were mailed, or told. `mailing`: there is a mail operator.
    """
    holders = [one for one in before.holders if one.document]
    if not before.recorded:
        holders = list(assumed(plan, before))
    roads: list[Destination] = []
    shut = [replace(one, what=NOT_REPLACED) for one in plan.shut] if holders else list(plan.shut)
    for road in plan.destinations:
        had = _holder(road, holders)
        if had is not None:
            holders.remove(had)
            road = replace(road, trigger="T10", replaces=had.document, after=had.delivery)
        roads.append(road)
    reached = plan.people | {road.person for road in roads if road.person}
    for had in holders:
        if had.person and had.person in reached:
            continue  # the same person, by another road now
        if had.lane.startswith(MAIL_LANE) and mailing:
            old = mail_road(had.lane.partition(":")[2], had.person, had.display)
            roads.append(replace(old, trigger="T10", replaces=had.document, after=had.delivery))
        elif not any(one.lane == had.lane for one in shut):
            why = "une version précédente lui a été envoyée, et plus aucun chemin n'y mène"
            shut.append(Shut(had.display or had.lane, why, NOT_REPLACED, had.lane))
    return Plan(tuple(roads), tuple(shut), plan.people)


def recall(before: Held, patient: PatientIdentity, view: View, *, mailing: bool) -> Plan:
    """The plan of a withdrawal: everybody who holds a version is told, by the road it came, whatever has become of
    their part in the case since."""
    roads: list[Destination] = []
    shut: list[Shut] = []
    for had in (one for one in before.holders if one.document):
        road, why = _way_back(had, patient, view, mailing)
        if road is None:
            shut.append(Shut(had.display or had.lane, why, NOT_RECALLED, had.lane))
        else:
            roads.append(replace(road, trigger="T04", replaces=had.document, after=had.delivery))
    return Plan(tuple(roads), tuple(shut))


def assumed(plan: Plan, before: Held) -> tuple[Holder, ...]:
    """Who holds documents older than the record: whoever is served now is taken to have been served then."""
    return tuple(Holder(one.lane, one.addressee, one.person, one.display, before.latest) for one in plan.destinations)


def _way_back(had: Holder, patient: PatientIdentity, view: View, mailing: bool) -> tuple[Destination | None, str]:
    if had.lane.startswith(MAIL_LANE):
        road = mail_road(had.lane.partition(":")[2], had.person, had.display) if mailing else None
        return road, "aucun opérateur MSSanté n'est configuré (réglage smtp)"
    endpoint = view.get(had.lane) or {}
    code = report_flavour(endpoint) or ""
    flavour = FLAVOURS.get(code)
    if endpoint.get("status") != "active" or flavour is None:
        return None, f"{had.lane} n'est plus en service"
    if patient.ins is None and (flavour.platform or not patient.local_ids):
        return None, "le patient n'a plus l'identifiant sous lequel il y était connu"
    return hl7_road(Candidate(had.lane, endpoint), code, platform=flavour.platform), ""


def _holder(road: Destination, holders: Sequence[Holder]) -> Holder | None:
    """Who is at the end of a road: the same lane, the same addressee, or the same person in another mailbox."""
    tests: tuple[Callable[[Holder], bool], ...] = (
        lambda one: one.lane == road.lane,
        lambda one: one.addressee == road.addressee,
        lambda one: bool(one.person) and one.person == road.person and one.lane.startswith(MAIL_LANE),
    )
    wanted = tests if road.kind == "mail" else tests[:2]
    return next((one for test in wanted for one in holders if test(one)), None)


# --- the record on the DocumentReference -----------------------------------------------------------------------------


def record(version: int, plan: Plan, ids: Mapping[Destination, str], before: Held) -> dict[str, Any]:
    """The extension that says to whom a version goes, by which delivery (`ids`); and who keeps an earlier one."""
    sent = [
        (road.lane, road.addressee, road.person, road.display, ids[road], road.replaces, road.after)
        for road in plan.destinations
    ]
    replaced = {(road.replaces, road.after) for road in plan.destinations}
    kept = [
        (one.lane, one.addressee, one.person, one.display, "", one.document, one.delivery)
        for one in before.holders
        if one.document and (one.document, one.delivery) not in replaced
    ]
    parts: list[dict[str, Any]] = [{"url": "version", "valuePositiveInt": version}]
    for line in (*sent, *kept):
        told = [{"url": name, "valueString": value} for name, value in zip(_TEXTS, line, strict=True) if value]
        parts.append({"url": "destinataire", "extension": told})
    return {"url": DISTRIBUTED, "extension": parts}


def _record(document: Resource) -> Sequence[Resource]:
    """The parts of the record, or nothing."""
    for extension in document.get("extension", ()):
        if extension.get("url") == DISTRIBUTED:
            parts: Sequence[Resource] = extension.get("extension", ())
            return parts
    return ()


def _entries(document: Resource) -> list[dict[str, str]]:
    found = []
    for part in _record(document):
        if part.get("url") == "destinataire":
            told = {one.get("url"): str(one.get("valueString", "")) for one in part.get("extension", ())}
            found.append({name: told.get(name, "") for name in _TEXTS})
    return found


def _number(document: Resource) -> int:
    return next((int(part["valuePositiveInt"]) for part in _record(document) if part.get("url") == "version"), 1)


def _ours(document: Resource) -> bool:
    """Whether a DocumentReference records a report of ours: named by its own id, or with a record."""
    own = f"urn:uuid:{document.get('id', '')}"
    return bool(_record(document)) or document.get("masterIdentifier", {}).get("value") == own
