"""Which version of a report each addressee holds, and what a later one is to them: new, instead, or a recall.

Every DocumentReference of a report says who it goes to and by which delivery (extension `urn:passerelle:diffusion`,
written by this server alone), and every delivery of an earlier version. What became of each is asked again each time,
so that one kept back by a person, or refused late, is not forgotten; even when the outbox was cleaned nobody gets a
replacement of what they never had (ERR-5 900 of the LPS profile), and nobody a second first version.

Sources: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1 (T02, T10, T04; TXA-13 names the parent);
https://hl7.org/fhir/R4/documentreference.html (relatesTo, superseded).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fhir_server.context import View
from fhir_server.patients.sites import Sites
from fhir_server.teleexpertise.case import STEP_SYSTEM, Handed
from fhir_server.teleexpertise.distribution import (
    DMP,
    FLAVOURS,
    MAIL_LANE,
    MASKED,
    Destination,
    Plan,
    Shut,
    addressee_of,
    hl7_road,
    mail_road,
    nameless,
    refusal,
    report_flavour,
)
from fhir_server.teleexpertise.parties import Candidate, human, site_at
from mappers.fhir_to_report import PatientIdentity

Resource = Mapping[str, Any]
DISTRIBUTED = "urn:passerelle:diffusion"
_NAMED = "hl7:"
# The steps that make a version.
_VERSIONS = frozenset({"report", "amend"})
_TEXTS = ("lane", "addressee", "person", "display", "delivery", "held", "by", "site", "flavour")
NOT_REPLACED, NOT_RECALLED = "Correction du compte rendu non remise", "Retrait du compte rendu non remis"


@dataclass(frozen=True, slots=True)
class Holder:
    """An addressee and what they may hold: `document` is the UUID of a version, '' for none; `delivery` brought it.
    `site` is the key of the establishment whose patient and visit numbers they were told, or ''; `flavour` the form
    they were told in, '' by mail and in records older than this."""

    lane: str
    addressee: str
    person: str
    display: str
    document: str = ""
    delivery: str = ""
    site: str = ""
    flavour: str = ""

    @property
    def whom(self) -> str:
        """In French, for who reads the case."""
        named = self.display or self.lane
        return f"{named}, pour le DMP" if self.addressee == DMP else named


@dataclass(frozen=True, slots=True)
class Held:
    """What stands before a new version: the documents that are in force, the number of the last one, who holds what,
    every delivery so far (`past`, oldest first), those nobody received, which are given up (`unsent`), and those that a
    person keeps back (`kept`)."""

    documents: tuple[Resource, ...] = ()
    version: int = 0
    holders: tuple[Holder, ...] = ()
    unsent: tuple[str, ...] = ()
    recorded: bool = True
    past: tuple[Holder, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def latest(self) -> str:
        """The UUID of the last document in force, or ''."""
        return str(self.documents[-1]["id"]) if self.documents else ""

    def stands_at(self, lane: str, platform: bool) -> bool:
        """Whether a version is behind a lane, in the DMP (by a `platform`) or with an application; documents older than
        the record do not say it."""
        there = (one for one in self.holders if one.lane == lane)
        return not self.recorded or any((one.addressee == DMP) is platform for one in there)

    @property
    def reached(self) -> tuple[str, ...]:
        """The deliveries that brought what is held, or may be bringing it."""
        return tuple(one.delivery for one in self.holders if one.delivery)


def held(report: str, status: str, view: View, handed: Callable[[str], Handed], *, taken_back: bool = False) -> Held:
    """What stands of a report (`DiagnosticReport/x`): its documents of this `status`, oldest first. `taken_back`: what
    a person keeps back is given up too, since it will never be wanted."""
    found = [*view.find("DocumentReference", f"related={report}&status={status}")]
    if not all(map(_record, found)):
        steps = _steps(report, view)
        found = [one for one in found if _record(one) or one.get("date") in steps]
    found.sort(key=lambda one: (_number(one), str(one.get("date", ""))))
    told: dict[object, Holder] = {}
    for one in (one for document in found for one in _brought(document)):
        told.setdefault(one.delivery or (one.lane, one.document), one)
    past = tuple(_as_known(one, view) for one in told.values())
    holders: list[Holder] = []
    unsent: list[str] = []
    kept: list[str] = []
    for one in past:
        fate = handed(one.delivery) if one.delivery else "gone"
        if fate == "waits" or (fate == "kept" and taken_back):
            unsent.append(one.delivery)
        elif fate == "kept":
            kept.append(one.delivery)
        elif fate == "gone":
            holders = [had for had in holders if not same(had, one)] + [one]
    number = _number(found[-1]) if found else 0
    recorded = not found or any(_record(document) for document in found)
    given_up, stay = tuple(dict.fromkeys(unsent)), tuple(dict.fromkeys(kept))
    return Held(tuple(found), number, tuple(holders), given_up, recorded, past, stay)


def _as_known(one: Holder, view: View) -> Holder:
    """Somebody on record by what they are called today: a person as such, since in whichever role they get it they hold
    one version; the DMP also where the record is older than that word, and names the application of the platform."""
    one = replace(one, person=human(one.person, view) or one.person)
    if one.flavour or one.addressee == DMP or one.lane.startswith(MAIL_LANE):
        return one
    flavour = FLAVOURS.get(report_flavour(view.get(one.lane) or {}) or "")
    return replace(one, addressee=DMP) if flavour and flavour.platform else one


def _steps(report: str, view: View) -> frozenset[str]:
    """The instants at which this server recorded a version: a document older than the record bears one as date."""
    told = view.find("Provenance", f"target={report}")
    return frozenset(
        str(one.get("recorded", ""))
        for one in told
        for coding in one.get("activity", {}).get("coding", ())
        if coding.get("system") == STEP_SYSTEM and coding.get("code") in _VERSIONS
    )


def follow(plan: Plan, before: Held, *, mailing: bool, withheld: Callable[[str], str] = lambda _: "") -> Plan:
    """The plan of a later version: a replacement for who holds an earlier one, a first one for everybody else.

    Who holds one and has no road now is mailed where they were mailed, or told; not when it is `withheld` from that
    person, which says why in French. `mailing`: there is a mail operator.
    """
    holders = list(before.holders if before.recorded else assumed(plan, before))
    shut = [_of_holder(one) if _shuts(one, holders) else one for one in plan.shut]
    followed: dict[Destination, Holder] = {}
    for road in sorted(plan.destinations, key=lambda one: not one.dmp):  # what the DMP holds is nobody else's
        if had := _holder(road, holders):
            holders.remove(had)
            followed[road] = had
    bare = [road for road in plan.destinations if road not in followed and not road.named]
    shut += [Shut(road.display, nameless(road.lane), lane=road.lane) for road in bare]
    roads = [_instead(road, followed.get(road)) for road in plan.destinations if road not in bare]
    reached = plan.people | {road.person for road in roads if road.person}
    for had in holders:
        if had.person and had.person in reached:
            continue  # the same person, by another road now
        why = "une version précédente lui est parvenue, et plus aucun chemin ne mène à ce destinataire"
        if had.person and (reason := withheld(had.person)):
            why = reason
        elif had.lane.startswith(MAIL_LANE) and mailing:
            roads.append(_instead(mail_road(had.lane.partition(":")[2], had.person, had.display), had))
            continue
        if not any(_shuts(one, [had]) for one in shut):
            shut.append(_of_holder(Shut(had.whom, why, lane=had.lane, person=had.person)))
    return Plan(tuple(roads), tuple(shut), plan.people)


def _instead(road: Destination, had: Holder | None) -> Destination:
    """A road that brings what takes the place of what is held at its end."""
    return replace(road, trigger="T10", replaces=had.document, after=had.delivery) if had else road


def renamed(before: Held, plan: Plan, view: View) -> Held:
    """Who holds a version, by the role under which a plan names the same person."""
    found = (*(shut.person for shut in plan.shut), *plan.people, *(road.person for road in plan.destinations))
    named = {human(one, view): one for one in found if one}
    return replace(
        before, holders=tuple(replace(one, person=named.get(one.person, one.person)) for one in before.holders)
    )


def by_who_fed(found: Iterable[Candidate], before: Held) -> list[Candidate]:
    """The platform that fed the DMP before any other: it knows what it sent there."""
    fed = {one.lane for one in before.holders if one.addressee == DMP}
    return sorted(found, key=lambda one: one.reference not in fed)


def _of_holder(shut: Shut) -> Shut:
    """What is said of somebody who holds a version and does not get the next one: of one who is not to see it, that
    they go on reading what they have."""
    why = f"{shut.why} ; la version précédente reste entre ses mains" if shut.why == MASKED else shut.why
    return replace(shut, what=NOT_REPLACED, why=why)


def _shuts(shut: Shut, holders: Sequence[Holder]) -> bool:
    """Whether a road that is shut was that of a holder."""
    return any((shut.lane and shut.lane == one.lane) or (shut.person and shut.person == one.person) for one in holders)


def recall(
    before: Held,
    patient: PatientIdentity,
    view: View,
    sites: Sites,
    *,
    mailing: bool,
    found: Sequence[Candidate] = (),
    ins_in: Callable[[str], tuple[str, str] | None] = lambda _: None,
) -> Plan:
    """The plan of a withdrawal: everybody who holds a version is told, by the road it came, whatever has become of
    their part in the case since; the DMP by another platform among those `found`, where the one that fed it is gone,
    and under the INS in the document it holds (`ins_in`: (value, OID) by the UUID of a document)."""
    roads: list[Destination] = []
    shut: list[Shut] = []
    for had in before.holders:
        there = patient
        if had.addressee == DMP:
            there = replace(patient, ins=ins_in(had.document) or patient.ins)
        road, why = _way_back(had, there, view, sites, mailing)
        if road is None and had.addressee == DMP:
            road = _by_another(found, there, sites)
        if road is None:
            shut.append(Shut(had.whom, why, NOT_RECALLED, had.lane))
        else:
            roads.append(replace(road, trigger="T04", replaces=had.document, after=had.delivery))
    return Plan(tuple(roads), tuple(shut))


def assumed(plan: Plan, before: Held) -> tuple[Holder, ...]:
    """Who holds documents older than the record: whoever is served now is taken to have been served then."""
    return tuple(Holder(one.lane, one.addressee, one.person, one.display, before.latest) for one in plan.destinations)


def _way_back(
    had: Holder, patient: PatientIdentity, view: View, sites: Sites, mailing: bool
) -> tuple[Destination | None, str]:
    if had.lane.startswith(MAIL_LANE):
        road = mail_road(had.lane.partition(":")[2], had.person, had.display) if mailing else None
        return road, "aucun opérateur MSSanté n'est configuré (réglage smtp)"
    endpoint = view.get(had.lane) or {}
    if had.addressee != DMP and _strangers(had.addressee, addressee_of(str(endpoint.get("address", "")))):
        return None, f"{had.lane} mène maintenant à une autre application"
    code = report_flavour(endpoint) or ""
    flavour = FLAVOURS.get(code)
    if endpoint.get("status") != "active" or flavour is None or (had.addressee == DMP) != flavour.platform:
        return None, f"{had.lane} n'est plus en service"
    if patient.ins is None and (flavour.platform or not patient.local_ids):
        return None, "le patient n'a plus l'identifiant sous lequel il y était connu"
    found = Candidate(had.lane, endpoint, site_at(endpoint, view, sites) or had.site, had.person)
    return hl7_road(found, code, platform=flavour.platform), ""


def _by_another(found: Iterable[Candidate], patient: PatientIdentity, sites: Sites) -> Destination | None:
    """A platform that takes part and can tell the DMP what another one told it."""
    for candidate in found:
        code = report_flavour(candidate.endpoint) or ""
        flavour = FLAVOURS.get(code)
        if not flavour or not flavour.platform or patient.ins is None:
            continue
        if not refusal(candidate, code, flavour, patient, sites):
            return hl7_road(candidate, code, platform=True)
    return None


def _holder(road: Destination, holders: Sequence[Holder]) -> Holder | None:
    """Who is at the end of a road, by the first of the tests that finds somebody."""
    return next((one for test in _TESTS for one in holders if test(one, road)), None)


def same(had: Holder, other: Holder) -> bool:
    """Whether two deliveries go to one addressee, by whatever road."""
    return any(test(had, other) for test in _TESTS)


def _same_lane(had: Holder, other: Holder | Destination) -> bool:
    return had.lane == other.lane and not _strangers(had.addressee, other.addressee)


def _same_addressee(had: Holder, other: Holder | Destination) -> bool:
    return bool(had.addressee) and had.addressee == other.addressee


def _same_reader(had: Holder, other: Holder | Destination) -> bool:
    """The same person in another mailbox."""
    mails = had.lane.startswith(MAIL_LANE) and other.lane.startswith(MAIL_LANE)
    return mails and bool(had.person) and had.person == other.person


_TESTS = (_same_addressee, _same_lane, _same_reader)


def _strangers(one: str, other: str) -> bool:
    """Whether two addressees are applications with different names, or one of them the DMP: an address that moved is
    none."""
    return one != other and all(who == DMP or who.startswith(_NAMED) for who in (one, other))


# --- the record on the DocumentReference -----------------------------------------------------------------------------


def record(version: int, plan: Plan, ids: Mapping[Destination, str], before: Held) -> dict[str, Any]:
    """The extension that says to whom a version goes, by which delivery (`ids`), after every delivery before it."""
    lines: list[tuple[Holder | Destination, tuple[str, str, str]]] = []
    lines += [(one, ("", one.document, one.delivery)) for one in before.past]
    lines += [(one, (ids[one], one.replaces, one.after)) for one in plan.destinations]
    parts: list[dict[str, Any]] = [{"url": "version", "valuePositiveInt": version}]
    for who, which in lines:
        line = (who.lane, who.addressee, who.person, who.display, *which, who.site, who.flavour)
        told = [{"url": name, "valueString": value} for name, value in zip(_TEXTS, line, strict=True) if value]
        parts.append({"url": "destinataire", "extension": told})
    return {"url": DISTRIBUTED, "extension": parts}


def recorded(documents: Iterable[Resource]) -> Mapping[str, tuple[Holder, bool, str]]:
    """By delivery of these documents: who gets which document by it, whether as the first they get, and the delivery
    that it follows, or ''."""
    return {
        entry["delivery"]: (_who(entry, str(document["id"]), entry["delivery"]), not entry["held"], entry["by"])
        for document in documents
        for entry in _entries(document)
        if entry["delivery"]
    }


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


def _brought(document: Resource) -> list[Holder]:
    """Every delivery a document tells of, its own and those before it."""
    out = []
    for entry in _entries(document):
        if entry["held"]:
            out.append(_who(entry, entry["held"], entry["by"]))
        if entry["delivery"]:
            out.append(_who(entry, str(document["id"]), entry["delivery"]))
    return out


def _who(entry: Mapping[str, str], document: str, delivery: str) -> Holder:
    lane, addressee, person, display = (entry[name] for name in ("lane", "addressee", "person", "display"))
    return Holder(lane, addressee, person, display, document, delivery, entry["site"], entry["flavour"])


def _number(document: Resource) -> int:
    return next((int(part["valuePositiveInt"]) for part in _record(document) if part.get("url") == "version"), 1)
