"""ADT A40, A47, A44: two records become one, a person gets other identifiers, a stay turns out to be somebody else's.

Hides how references are moved, written down and moved back. Nothing is guessed: a merge whose surviving identity cannot
be told is refused, with the words a person needs to do it by hand.

Sources: IHE PAM (ITI-30 A40 "merge", A47 "change"; ITI-31 A44), IHE PAM France 2.11; HL7 v2.5 chapter 3 (MRG).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fhir_server.changes import Hub, apply
from fhir_server.context import Caller, View, instant
from fhir_server.delivery.arrivals import MOST_MOVED, Arrival, Draft, Resource, Taken, rejected
from fhir_server.delivery.intake_patients import Person, numbers_of, record_person, who, without_numbers
from fhir_server.errors import Conflict, NotFound
from fhir_server.patients import identity, merge, stewards
from fhir_server.patients.identity import identifier_query
from fhir_server.patients.sites import INS_SYSTEMS, Sites
from fhir_server.patients.traits import agree
from fhir_server.store.session import Snapshot
from fhir_server.teleexpertise.scopes import scopes
from mappers.hl7v2_to_fhir import AdtResult

Ids = tuple[tuple[str, str], ...]
_PARTS = ("Observation/", "Specimen/", "ImagingStudy/", "Media/")
"""What a report is made of."""
_REFERENCE = re.compile(r"([A-Z][A-Za-z]+/[A-Za-z0-9.-]{1,64})(/_history/.*)?\Z")


def merged(arrival: Arrival, draft: Draft, result: AdtResult, taken: Taken) -> None:
    """A40: what belonged to the identifiers of MRG-1 belongs to the person of PID from now on."""
    result = _own_numbers(arrival, draft, result, taken)
    own = {*result.local_ids, *((result.ins,) if result.ins else ())}
    priors = [key for key in result.prior_ids if key not in own]
    if not priors:
        raise rejected("MRG-1 names no identifier but those of PID in a declared namespace", "MRG^1^1", "204")
    _check_ins(arrival, draft, result, priors)
    hidden = {holder for key in priors for holder in _holders(draft, key)}
    person = _told(_Without(draft, hidden), result, arrival)
    if not person.reference:
        # Nobody else is known: perhaps one record has both identifiers, and gives one up.
        held = _told(draft, result, arrival, own=hidden)
        person = held if _is_known_as(draft, held.reference, result.local_ids) else person
    its_own = _in_force(draft, person.reference)
    target = record_person(arrival, draft, result, person, taken, identity_change=True)
    for key in priors:
        sources = _holders(draft, key) - {target}
        if key in its_own:
            _give_up(draft, target, key)
            taken.notes.append(f"MRG-1: {key[1]} was an identifier of the surviving record; it is old now")
            _write_number(arrival, draft, target, key)
        if doubtful := _doubtful(draft, key) - {target, *sources}:
            taken.notes.append(f"MRG-1: {key[1]} also stands on {', '.join(sorted(doubtful))}, still à rapprocher")
        if len(sources) > 1:
            raise rejected(f"{key[1]} is known for {len(sources)} patients; merge them by hand", "MRG^1^1", "207")
        if sources:
            _merge(arrival, draft, sources.pop(), target, taken)
        else:
            _held_by_nobody(draft, target, key, taken)


def _own_numbers(arrival: Arrival, draft: Draft, result: AdtResult, taken: Taken) -> AdtResult:
    """What an A40, A44 or A47 says under the sender's own numbers: those of another establishment are left out of PID,
    as they are of MRG-1. Raises Rejected when it has no other ones."""
    numbers = numbers_of(arrival, result)
    others = stewards.of_others(arrival.site, numbers)
    if not stewards.own_systems(arrival.site):
        holders = (draft.get(holder) or {} for key in others for holder in _holders(draft, key))
        others = others if not all(stewards.is_own(arrival.site, one) for one in holders) else []
    if not others:
        return result
    named = ", ".join(value for _, value in others)[:80]
    told = f"{named} is a number of another establishment"
    if len(others) == len(numbers):
        raise rejected(f"{told}, which alone sends an {result.trigger} about it", "PID^1^3", "204")
    taken.notes.append(f"PID-3: {told}: it is not read in an {result.trigger}")
    left = tuple(key for key in result.local_ids if key not in others)
    return replace(result, patient=without_numbers(result.patient, others), local_ids=left)


def _check_ins(arrival: Arrival, draft: Draft, result: AdtResult, priors: Iterable[tuple[str, str]]) -> None:
    """An INS in MRG-1 names a record of the sender's own, or one with the traits of PID. Raises Rejected."""
    for key in priors:
        for holder in _holders(draft, key) if key[0] in INS_SYSTEMS else ():
            known = draft.get(holder) or {}
            if not (stewards.is_own(arrival.site, known) or agree(known, result.patient)):
                text = f"the INS of MRG-1 is that of {holder}, which has no number of the sender's and other traits"
                raise rejected(text, "MRG^1^1", "204")


def _held_by_nobody(draft: Draft, target: str, key: tuple[str, str], taken: Taken) -> None:
    """A number of MRG-1 that no record has in force."""
    known = {f"Patient/{one['id']}" for one in draft.find("Patient", identifier_query(*key))}
    if not known:
        _remember(draft, target, key)
        taken.notes.append(f"MRG-1: nobody known had {key[1]}; it is kept as an old identifier of {target}")
    elif target not in known:
        told = f"{key[1]} is an old identifier of {', '.join(sorted(known))}: nothing is merged, look at it"
        taken.notes.append(f"MRG-1: {told}")


class _Without:
    """A view that does not see some patients: those that are about to be given up."""

    def __init__(self, draft: Draft, hidden: set[str]) -> None:
        self._draft, self._hidden = draft, hidden

    def get(self, reference: str) -> Resource | None:
        return None if reference in self._hidden else self._draft.get(reference)

    def find(self, resource_type: str, query: str) -> list[Resource]:
        found = self._draft.find(resource_type, query)
        return [one for one in found if f"{resource_type}/{one['id']}" not in self._hidden]

    def written(self, resource_type: str) -> list[Resource]:
        return self._draft.written(resource_type)


def _is_known_as(draft: View, reference: str, local_ids: Ids) -> bool:
    """Whether a record has one of these numbers: in force, or as `old` when nobody else has it, so that it was given up
    for another number of the same record and not with a record of its own."""
    held = _numbers(draft, reference)
    return any(key in held and (held[key] != "old" or not _holders(draft, key)) for key in local_ids)


def _numbers(draft: View, reference: str) -> dict[tuple[str, str], str]:
    """The identifiers of a stored Patient -> their use."""
    held = (draft.get(reference) or {}).get("identifier", ()) if reference else ()
    return {(str(one.get("system", "")), str(one.get("value", ""))): str(one.get("use", "")) for one in held}


def _in_force(draft: View, reference: str) -> frozenset[tuple[str, str]]:
    return frozenset(key for key, use in _numbers(draft, reference).items() if use != "old")


def _told(
    draft: View, result: AdtResult, arrival: Arrival, own: Collection[str] = (), *, identity_change: bool = False
) -> Person:
    """The surviving person of an A40 or A47, when it can be told. `own` are the records that MRG-1 names: one of them
    may go by a number again that it keeps as `old`. `identity_change` as in `identity`. Raises Rejected."""
    person = who(draft, result.patient, arrival.hub.sites, identity_change=identity_change)
    if person.doubt:
        text = f"{result.trigger}: the identity of PID cannot be told ({person.doubt}); reconcile it first"
        raise rejected(text, "PID^1^3", "207", "904")
    if person.followed and person.reference in own and _is_known_as(draft, person.reference, result.local_ids):
        return Person(person.reference)
    if person.followed:
        text = f"{result.trigger}: {person.followed} was itself given up for {person.reference}"
        raise rejected(text, "PID^1^3", "205")
    return person


def _holders(draft: View, key: tuple[str, str]) -> set[str]:
    """Every Patient that has an identifier in force, whether its record is active or was given up before. A record "à
    rapprocher" claims nobody's number: it counts when nobody else has it."""
    return (_having(draft, key) - (doubtful := _doubtful(draft, key))) or doubtful


def _doubtful(draft: View, key: tuple[str, str]) -> set[str]:
    return {one for one in _having(draft, key) if identity.is_doubtful(draft.get(one) or {})}


def _having(draft: View, key: tuple[str, str]) -> set[str]:
    found = (f"Patient/{one['id']}" for one in draft.find("Patient", identifier_query(*key)))
    return {reference for reference in found if key in _in_force(draft, reference)}


def _merge(arrival: Arrival, draft: Draft, source: str, target: str, taken: Taken) -> None:
    given_up, survivor = draft.get(source) or {}, draft.get(target) or {}
    if (already := merge.replaced_by(given_up)) == target:
        taken.notes.append(f"MRG-1: {source} was merged into {target} before")
        return
    if already:
        raise rejected(f"{source} was merged into {already} before, not into {target}", "MRG^1^1", "205")
    both = identity.qualified_ins(given_up), identity.qualified_ins(survivor)
    if both[0] and both[1] and both[0] != both[1]:
        taken.notes.append(f"MRG-1: the two records had two qualified INS ({both[0][1]}, {both[1][1]}); look at them")
    users = [one for one in draft.referring(source) if merge.movable(one)]
    remains, left = merge.joined(survivor, given_up, _local_systems(arrival.hub.sites))
    draft.put(remains, identity_change=True)
    draft.put(left, identity_change=True)
    moved = _move(draft, users, source, target)
    _write_down(arrival.hub, arrival.caller, draft, "fusion", source, target, moved)
    taken.keys.append(("patient", source))
    taken.notes.append(f"{source} was merged into {target}; {len(moved)} resources follow")


def _move(draft: Draft, users: Iterable[Resource], source: str, target: str) -> list[str]:
    """Turn the references of resources; what was moved."""
    out = []
    for one in users:
        changed = merge.swapped(one, source, target)
        if changed != one:
            out.append(draft.put(changed))
    return out


def _write_down(
    hub: Hub, caller: Caller, draft: Draft, kind: merge.Kind, source: str, target: str, moved: list[str]
) -> None:
    when = instant(hub.clock())
    held = draft.get(f"List/{merge.record_id(kind, source, target)}")
    listed = draft.put(merge.record(kind, source, target, moved, when, held))
    draft.put(_provenance(caller, kind, [target, source, listed], when))


def _write_number(arrival: Arrival, draft: Draft, reference: str, key: tuple[str, str]) -> None:
    """A number that a record gave up for another one of its own can be taken back; an INS is said again."""
    if key in _numbers(draft, reference):
        when = instant(arrival.hub.clock())
        listed = draft.put(merge.number_record(reference, key, when))
        draft.put(_provenance(arrival.caller, "numero", [reference, listed], when))


def _provenance(caller: Caller, activity: str, targets: list[str], when: str) -> Resource:
    return {
        "resourceType": "Provenance",
        "id": str(uuid.uuid4()),
        "target": [{"reference": target} for target in targets],
        "recorded": when,
        "activity": {"coding": [{"system": merge.RECORD_SYSTEM, "code": activity}]},
        "agent": [{"who": {"reference": caller.who} if caller.who else {"display": caller.display or "Passerelle"}}],
    }


def _local_systems(sites: Sites) -> frozenset[str]:
    return frozenset(ns.fhir_system for site in sites.all for ns in site.namespaces if ns.kind == "PI")


def _give_up(draft: Draft, reference: str, key: tuple[str, str]) -> None:
    """An identifier of this record is no longer in force; an INS leaves altogether."""
    patient = draft.get(reference) or {}
    ids = []
    for one in patient.get("identifier", ()):
        if (one.get("system"), one.get("value")) != key:
            ids.append(one)
        elif key[0] not in INS_SYSTEMS:
            ids.append({**one, "use": "old"})
    draft.put({**patient, "identifier": ids} if ids else {k: v for k, v in patient.items() if k != "identifier"})


def _remember(draft: Draft, reference: str, key: tuple[str, str]) -> None:
    """Keep an identifier as old, so that a late message under it finds the person; never an INS."""
    if key[0] in INS_SYSTEMS:
        return
    patient = draft.get(reference) or {}
    old = {"use": "old", "system": key[0], "value": key[1]}
    draft.put({**patient, "identifier": [*patient.get("identifier", ()), old]})


def renamed(arrival: Arrival, draft: Draft, result: AdtResult, taken: Taken) -> None:
    """A47: the person known by MRG-1 has the identifiers of PID from now on (INS, IPP). When nobody
    has MRG-1, PID is an update like any other."""
    result = _own_numbers(arrival, draft, result, taken)
    _check_ins(arrival, draft, result, result.prior_ids)
    priors = {holder: key for key in result.prior_ids for holder in _active(draft, _holders(draft, key))}
    nameless = not identity.keys(result.patient, arrival.hub.sites)
    person = Person("") if nameless else _told(draft, result, arrival, own=priors, identity_change=bool(priors))
    if len(priors) > 1:
        raise rejected("MRG-1 names several patients; send an A40 for each", "MRG^1^1", "207")
    prior = next(iter(priors), "")
    if prior and person.reference and prior != person.reference:
        text = f"the identifiers of PID are those of {person.reference}, MRG-1 is {prior}; two people merge by A40"
        raise rejected(text, "PID^1^3", "205")
    if not prior and not person.reference:
        named = ", ".join(value for _, value in result.prior_ids) or "MRG-1"
        raise rejected(f"nobody known has {named[:80]}: there is nothing to change", "MRG^1^1", "204", "902")
    if not prior:
        taken.notes.append("MRG-1: nobody known had the old identifier; PID is taken as an update")
    target = prior or person.reference
    before = draft.get(target) or {}
    in_force = {(one.get("system"), one.get("value")) for one in result.patient.get("identifier", ())}
    record_person(arrival, draft, result, Person(target), taken, identity_change=bool(prior))
    for key in result.prior_ids:
        if key in in_force:
            continue
        _give_up(draft, target, key)
        whole = draft.get(target) or {}
        was = any((one.get("system"), one.get("value")) == key for one in before.get("identifier", ()))
        if was and not any((one.get("system"), one.get("value")) == key for one in whole.get("identifier", ())):
            _remember(draft, target, key)


def _active(draft: Draft, references: set[str]) -> set[str]:
    return {reference for reference in references if (draft.get(reference) or {}).get("active", True)}


def moved(arrival: Arrival, draft: Draft, result: AdtResult, taken: Taken) -> None:
    """A44: the stays of a visit or account number were recorded for the wrong patient, and go to the right one."""
    result = _own_numbers(arrival, draft, result, taken)
    person = _told(draft, result, arrival)
    sources = _active(draft, {holder for key in result.prior_ids for holder in _holders(draft, key)})
    if len(sources) != 1:
        text = "MRG-1 names nobody known here" if not sources else "MRG-1 names several patients"
        raise rejected(f"{text}: no stay can be moved", "MRG^1^1", "204", "902")
    source = sources.pop()
    numbers = (*result.prior_encounter_ids, *result.prior_account_ids)
    stays = _stays(draft, numbers or (*result.encounter_ids, *result.account_ids), source)
    if not stays:
        named = ", ".join(value for _, value in numbers)[:80] or "no number"
        raise rejected(f"no stay of {source} is known under {named}", "MRG^1^3", "204")
    target = record_person(arrival, draft, result, person, taken)
    if target == source:
        taken.notes.append("MRG-1: it is the same person; the numbers alone change")
    users = [u for stay in stays for u in draft.referring(f"Encounter/{stay['id']}") if merge.movable(u)]
    follow = _move(draft, [*stays, *users], source, target) if target != source else []
    _renumber(draft, stays, result)
    if follow:
        _write_down(arrival.hub, arrival.caller, draft, "deplacement", source, target, follow)
    taken.keys.append(("patient", source))
    taken.notes.append(f"{len(stays)} stays and {len(follow) - len(stays)} resources moved from {source} to {target}")


def _stays(draft: Draft, numbers: Ids, patient: str) -> list[Resource]:
    found = {one["id"]: one for number in numbers for one in draft.find("Encounter", identifier_query(*number))}
    return [one for one in found.values() if one.get("subject", {}).get("reference") == patient]


def _renumber(draft: Draft, stays: list[Resource], result: AdtResult) -> None:
    """The visit or account number of PID in the place of that of MRG."""
    pairs = [
        *zip(result.prior_encounter_ids, result.encounter_ids, strict=False),
        *zip(result.prior_account_ids, result.account_ids, strict=False),
    ]
    for stay in stays:
        whole = draft.get(f"Encounter/{stay['id']}") or stay
        for old, new in pairs:
            ids = whole.get("identifier", [])
            renamed_ids = [
                {**one, "system": new[0], "value": new[1]} if (one.get("system"), one.get("value")) == old else one
                for one in ids
            ]
            whole = {**whole, "identifier": renamed_ids}
        draft.put(whole)


@dataclass(frozen=True, slots=True)
class Parted:
    """What undoing a merge did, as references: what went `back`; what was written since in a case that went back, and
    `followed` it; what such a case names and was `left` to the survivor, for a person to look at; and what was `lost`
    to it, being gone or no longer the survivor's."""

    back: list[str]
    followed: list[str]
    left: list[str]
    lost: list[str]


def unmerge(hub: Hub, caller: Caller, survivor: str, given_up: str) -> Parted:
    """Part two merged records (`Patient/x` both): the references that were moved go back, and what was written since
    in a request that goes back goes with it, since a case is about one person.

    What else came for the survivor after the merge stays there. Raises NotFound without such a merge, Conflict when it
    was undone before, or when the survivor was itself merged since: the later merge is undone first.
    """
    key = merge.record_id("fusion", survivor, given_up)
    with hub.store.read(caller) as snapshot:
        draft = Draft(snapshot)
        listed, remains, left = draft.get(f"List/{key}"), draft.get(survivor), draft.get(given_up)
        if listed is None or remains is None or left is None:
            raise NotFound(f"no merge of {given_up} into {survivor} is on record")
        source, moved_then = merge.moved_of(listed)
        if listed.get("status") != "current" or source != given_up or merge.replaced_by(left) != survivor:
            raise Conflict(f"the merge of {given_up} into {survivor} is not in force")
        if further := merge.replaced_by(remains):
            raise Conflict(f"{survivor} was itself merged into {further} since; undo that merge first")
        parted = _parted(
            draft, moved_then, survivor, given_up, partial(_made_since, snapshot, _merged_at(snapshot, key))
        )
        for patient in merge.parted(remains, left):
            draft.put(patient, identity_change=True)
        draft.put(merge.with_followers(listed, parted.followed) | {"status": "retired"})
        draft.put(_provenance(caller, "defusion", [survivor, given_up, f"List/{key}"], instant(hub.clock())))
        changes = draft.changes()
    apply(hub, caller, changes, upon=draft.upon)
    return parted


def unnumber(hub: Hub, caller: Caller, key: str) -> None:
    """Undo a merge within one record (the id of its List): the number that it gave up is in force again.

    Raises NotFound without such a merge, Conflict when it was undone before, when the record was merged since, or when
    the number is somebody else's by now.
    """
    with hub.store.read(caller) as snapshot:
        draft = Draft(snapshot)
        listed = draft.get(f"List/{key}") or {}
        number, holder = merge.number_of(listed), str(listed.get("subject", {}).get("reference", ""))
        held = draft.get(holder) if holder else None
        if number is None or held is None:
            raise NotFound(f"no merge {key[:80]!r} within one record is on file")
        if listed.get("status") != "current" or _numbers(draft, holder).get(number) != "old":
            raise Conflict(f"{holder} does not keep {number[1]} as an old number: there is nothing to undo")
        if further := merge.replaced_by(held):
            raise Conflict(f"{holder} was itself merged into {further} since; undo that merge first")
        if others := _holders(draft, number):
            raise Conflict(f"{number[1]} is that of {', '.join(sorted(others))} now")
        draft.put(merge.with_number(held, number), identity_change=True)
        draft.put({**listed, "status": "retired"})
        draft.put(_provenance(caller, "defusion", [holder, f"List/{key}"], instant(hub.clock())))
        changes = draft.changes()
    apply(hub, caller, changes, upon=draft.upon)


def _merged_at(snapshot: Snapshot, key: str) -> int:
    """When the merge was made that a List has on record: with the first version since which the List is in force. It
    may have been changed after that."""
    at = snapshot.get("List", key)
    while at is not None and at.version > 1:
        before = snapshot.version("List", key, at.version - 1)
        if before is None or before.deleted or before.resource().get("status") != "current":
            break
        at = before
    return at.last_updated if at else 0


def _made_since(snapshot: Snapshot, merged_at: int, reference: str) -> bool:
    """Whether a resource was made after a merge."""
    kind, _, key = reference.partition("/")
    first = snapshot.version(kind, key, 1)
    return first is not None and first.last_updated > merged_at


def _parted(
    draft: Draft, moved_then: Iterable[str], survivor: str, given_up: str, made_since: Callable[[str], bool]
) -> Parted:
    """Turn what a merge moved back, and what was written since in the requests among it."""
    back, lost = [], []
    for reference in moved_then:
        one = draft.get(reference)
        turned = merge.swapped(one, survivor, given_up) if one else None
        if turned is None or turned == one:
            lost.append(reference)
        else:
            back.append(draft.put(turned))
    case = _case_of(draft, back, survivor)
    its_own = {name: one for name, one in case.items() if ("patient", survivor) in scopes(one)}
    since = {name: one for name, one in sorted(its_own.items()) if made_since(name)}
    followed = [draft.put(merge.swapped(one, survivor, given_up)) for one in since.values()]
    named = {reference for one in case.values() for reference in _named(one)} - {survivor, *case}
    left = {name for name in named if ("patient", survivor) in _scopes_of(draft, name)} | its_own.keys() - since.keys()
    return Parted(back, followed, sorted(left), lost)


def _named(one: Resource) -> set[str]:
    """The resources of this server that one refers to, whatever the version."""
    return {found[1] for reference in merge.references(one) if (found := _REFERENCE.match(reference))}


def _case_of(draft: Draft, back: Sequence[str], survivor: str) -> dict[str, Resource]:
    """The requests among what goes back and whatever hangs on them, in one step or several: what goes back with them
    and what is the survivor's yet; with a report that is, what it was made of."""
    gone, found = set(back), dict[str, Resource]()
    waiting = [one for name in back if name.startswith("ServiceRequest/") and (one := draft.get(name))]
    while waiting:
        one = waiting.pop()
        name = _name(one)
        if name in found or not merge.movable(one):
            continue
        if name.startswith("ServiceRequest/") and name not in gone:
            continue  # a case of its own
        its_own = ("patient", survivor) in scopes(one)
        if name not in gone and not its_own:
            continue
        found[name] = one
        if len(found) > MOST_MOVED:
            raise Conflict(f"more than {MOST_MOVED} resources hang on what goes back; a person must move them")
        if not name.startswith(_PARTS):
            waiting += draft.referring(name)
        if one["resourceType"] == "DiagnosticReport" and its_own:
            waiting += [part for made in _named(one) if made.startswith(_PARTS) and (part := draft.get(made))]
    parts = [name for name in found if name.startswith(_PARTS) and name not in gone]
    by = {name: [_name(one) for one in draft.referring(name) if merge.movable(one)] for name in parts}
    shared = {name for name, naming in by.items() if not found.keys() >= set(naming)}  # by another case too
    return {name: one for name, one in found.items() if name not in shared}


def _name(one: Resource) -> str:
    return f"{one['resourceType']}/{one['id']}"


def _scopes_of(draft: Draft, reference: str) -> list[tuple[str, str]]:
    """Whose a stored resource is; nobody's when it is not here."""
    one = draft.get(reference)
    return scopes(one) if one and merge.movable(one) else []
