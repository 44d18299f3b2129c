"""Who a message speaks of, what is now known of the person, and what was decided about the shared record (DMP).

Hides the way from a PID to a stored Patient: the match, the doubtful record, the identifier that was given up and still
comes, the fields a sender deletes, and the INS that leaves an identity which is no longer qualified.

Sources: IHE PAM France 2.11 (ITI-30, ITI-31); référentiel INS; RNIV; HL7 v2.5 chapter 2.5.3 (`""` deletes).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fhir_server.context import View
from fhir_server.delivery.arrivals import Arrival, Draft, Taken, rejected
from fhir_server.patients import identity, merge, stewards, traits
from fhir_server.patients.sites import Sites
from mappers.hl7v2_pid_to_fhir import BIRTH_DATE_CORRECTED, DMP_STATUS, LUNAR_DATE, PatientResult
from mappers.hl7v2_to_fhir import AdtResult
from mappers.identity import Site

Resource = dict[str, Any]

DELETES: Mapping[str, tuple[str, ...]] = {
    "PID-7": ("birthDate",),
    "PID-8": ("gender",),
    "PID-11": ("address",),
    "PID-13": ("telecom",),
    "PID-14": ("telecom",),
    "PID-16": ("maritalStatus",),
    "PID-24": ("multipleBirthBoolean", "multipleBirthInteger"),
    "PID-25": ("multipleBirthInteger",),
    "PID-29": ("deceasedDateTime",),
    "PID-30": ("deceasedBoolean", "deceasedDateTime"),
    "ROL": ("generalPractitioner",),
}
"""A field that says `""` -> what it deletes of the stored Patient, unless the message gives another value for it."""
WORDS: Mapping[str, str] = {"ZFD-1": LUNAR_DATE, "ZFD-4": BIRTH_DATE_CORRECTED}
"""A field that says `""` -> the extension it deletes; both leave with the birth date they are about."""
STRICT_TRAITS = frozenset({"birthDate", "gender"})
"""Elements that a qualified identity keeps against a message that does not qualify it."""


@dataclass(frozen=True, slots=True)
class Person:
    """Which Patient a message speaks of. `reference` '' = nobody known; `doubt` why it is "à rapprocher"; `followed`
    the identifier it came under, which was given up for that of `reference`."""

    reference: str
    doubt: str = ""
    followed: str = ""


def who(draft: View, patient: Resource, sites: Sites, *, identity_change: bool = False) -> Person:
    """The Patient of a message: matched, or found under an identifier it gave up, or nobody yet."""
    found = identity.match(draft, patient, sites, identity_change=identity_change)
    if found.kind == "reconcile":
        return Person(found.reference, doubt=found.reason)
    if found.kind == "new":
        for system, value in identity.local_identifiers(patient, sites):
            if target := _given_up(draft, patient, system, value):
                return Person(target, followed=value)
    return Person(found.reference)


def _given_up(draft: View, patient: Resource, system: str, value: str) -> str:
    """The one Patient for which an identifier was given up (A40, A47), unless it is somebody with other traits."""
    targets = merge.given_up_for(draft, (system, value))
    if len(targets) != 1:
        return ""
    (target,) = targets
    held = draft.get(target) or {}
    return "" if traits.doubt(held, patient, qualified=identity.qualified_ins(held) is not None) else target


def record_person(
    arrival: Arrival,
    draft: Draft,
    result: AdtResult,
    person: Person,
    taken: Taken,
    *,
    identity_change: bool = False,
) -> str:
    """Write what the message says of the person; the reference of the Patient. `identity_change` as in `identity`."""
    reference = person.reference or f"Patient/{uuid.uuid4()}"
    taken.keys += [("patient", reference), *keys_of(result.ins, result.local_ids)]
    if person.followed:
        _follow(arrival, draft, result, person, taken)
        return reference
    if result.drops_ins:
        _lower_named(arrival, draft, result, taken)
    if person.doubt:
        taken.notes.append(f"PID-3: à rapprocher, {person.doubt}")
        if result.drops_ins:
            _lower_doubted(arrival, draft, result, taken)
    known = draft.get(person.reference) if person.reference else None
    speaks = known is not None and stewards.speaks_for(arrival.site, known, numbers_of(arrival, result))
    if known and not (speaks or identity_change or person.doubt or stewards.shares_ins(known, result.patient)):
        named = ", ".join(value for _, value in stewards.of_others(arrival.site, numbers_of(arrival, result)))
        told = f"{named} is a number of another establishment: it finds {reference}"
        taken.notes.append(f"PID-3: {told}, and nothing of the record is changed")
        return reference
    patient = identity.to_reconcile(result.patient, person.doubt) if person.doubt else result.patient
    whole = _whole(arrival, known, patient, result, taken, identity_change=identity_change) if known else patient
    if person.doubt:
        whole = {**whole, "meta": patient["meta"]}
    held = known if known and not speaks else {}
    organization = held.get("managingOrganization", arrival.organization)
    whole = {**whole, "id": reference.partition("/")[2], "managingOrganization": organization}
    draft.put(whole, identity_change=identity_change or "PID-32" in result.nulls)
    _record_consents(arrival, draft, result, reference)
    return reference


def numbers_of(arrival: Arrival, result: AdtResult) -> list[tuple[str, str]]:
    """The patient numbers (PI) of declared namespaces in PID-3, whatever type the sender gave them."""
    return identity.local_identifiers(result.patient, arrival.hub.sites)


def _whole(
    arrival: Arrival, known: Resource, said: Resource, result: AdtResult, taken: Taken, *, identity_change: bool
) -> Resource:
    """The stored Patient with what the message says. A change of identity that brings no INS and takes none away
    changes the numbers only: an INS never stands on other traits than those it came with (RNIV)."""
    held = _lowered(known, result, taken) if result.drops_ins else known
    settles = result.ins or result.drops_ins or identity.qualified_ins(known) in result.prior_ids
    identity_change = identity_change and bool(settles)
    said = _without_others(arrival.site, held, said, taken)
    kept = not identity_change and identity.keeps(held, said)
    # Before the merge: what the message gives in the place of what it deletes must not go with it.
    held = _deleted(held, said, result.nulls, taken, kept=kept)
    taken.notes += identity.merge_notes(held, said, identity_change=identity_change)
    return identity.merged(held, said, identity_change=identity_change)


def _without_others(site: Site, known: Resource, said: Resource, taken: Taken) -> Resource:
    """What a message says without the numbers of other establishments that would take the place of those on record."""
    in_force = {(i.get("system", ""), i.get("value", "")) for i in known.get("identifier", ()) if i.get("use") != "old"}
    systems = {system for system, _ in in_force} if stewards.own_systems(site) else set()
    told = [(i.get("system", ""), i.get("value", "")) for i in said.get("identifier", ())]
    others = [key for key in stewards.of_others(site, told) if key[0] in systems]
    taken.notes += [
        f"PID-3: {value} is a number of another establishment, which gave this person another one: it is not taken"
        for system, value in others
        if (system, value) not in in_force
    ]
    return without_numbers(said, others)


def without_numbers(patient: Resource, numbers: Collection[tuple[str, str]]) -> Resource:
    """A Patient without some of its identifiers (system, value)."""
    left = [i for i in patient.get("identifier", ()) if (i.get("system", ""), i.get("value", "")) not in numbers]
    rest = {name: value for name, value in patient.items() if name != "identifier"}
    return rest | ({"identifier": left} if left else {})


def _follow(arrival: Arrival, draft: Draft, result: AdtResult, person: Person, taken: Taken) -> None:
    """A message under an identifier that was given up: a status that is not qualified counts under a number of the
    sender's own that the record itself kept as `old`, and not under that of a record which was merged away."""
    told = f"identifier {person.followed} was given up for that of {person.reference}: the stay is recorded there"
    taken.notes.append(f"PID-3: {told}, the traits are not taken")
    away = (merge.given_up_for(draft, key, renumbered=False) for key in result.local_ids)
    known = draft.get(person.reference)
    if (
        result.drops_ins
        and known
        and identity.qualified_ins(known)
        and stewards.speaks_for(arrival.site, known, numbers_of(arrival, result), old=True)
        and not any(person.reference in one for one in away)
    ):
        draft.put(_lowered(known, result, taken), identity_change=True)


def _lowered(known: Resource, result: AdtResult, taken: Taken) -> Resource:
    """A record of which its sender says that the identity is no longer qualified. What has not left and still carries
    the INS is held when its turn comes (`teleexpertise.overtaken`)."""
    out = identity.lowered(known, result.patient, untold="PID-32" in result.nulls)
    if identity.qualified_ins(known):
        status = identity.status_of(out) or "not told any more"
        told = f"the identity of Patient/{known['id']} is {status}, no longer qualified: its INS is removed"
        taken.notes.append(f"Patient.identifier: {told}")
    return out


def _lower_doubted(arrival: Arrival, draft: Draft, result: AdtResult, taken: Taken) -> None:
    """The records known by the sender's own numbers in a doubtful message are no longer qualified either, when it says
    so: whoever of the two is meant, their sender does not vouch for the INS. Their traits stay."""
    for key in numbers_of(arrival, result):
        for known in identity.patient_at(draft, key):
            if stewards.speaks_for(arrival.site, known, (key,)):
                _lower(draft, known, result, taken)


def _lower_named(arrival: Arrival, draft: Draft, result: AdtResult, taken: Taken) -> None:
    """The record of the sender that has an INS which the message names with a lower status, and nobody by a number of
    the sender's own."""
    if any(system in stewards.own_systems(arrival.site) for system, _ in numbers_of(arrival, result)):
        return
    for key in result.named_ins:
        for known in identity.patient_at(draft, key):
            if stewards.is_own(arrival.site, known):
                _lower(draft, known, result, taken)


def _lower(draft: Draft, known: Resource, result: AdtResult, taken: Taken) -> None:
    if identity.qualified_ins(known):
        taken.keys.append(("patient", f"Patient/{known['id']}"))
        draft.put(_lowered(known, result, taken), identity_change=True)


def keys_of(ins: tuple[str, str] | None, local_ids: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """What a message can be found by in the inbox."""
    return ([("ins", ins[1])] if ins else []) + [("ipp", value) for _, value in local_ids]


def _deleted(whole: Resource, said: Resource, nulls: tuple[str, ...], taken: Taken, *, kept: bool) -> Resource:
    """The Patient without what the message deletes. `kept`: the strict traits and what is said of the birth date stay,
    as the note tells."""
    fields = [place.partition("[")[0] for place in nulls]
    elements = {name for field in fields for name in DELETES.get(field, ())} & whole.keys() - said.keys()
    words = {WORDS[field] for field in fields if field in WORDS}
    if kept:
        why = "the stored identity is qualified and this one is not: it is not deleted"
        taken.notes += [f"Patient.{name}: {why}" for name in sorted(elements & STRICT_TRAITS)]
        elements, words = elements - STRICT_TRAITS, set()
    if "birthDate" in elements:
        words.update(identity.OF_BIRTH_DATE)
    words -= {one["url"] for one in said.get("extension", ())}
    out = {name: value for name, value in whole.items() if name not in elements}
    extensions = [one for one in out.pop("extension", ()) if one["url"] not in words]
    return out | ({"extension": extensions} if extensions else {})


def _record_consents(arrival: Arrival, draft: Draft, result: AdtResult, patient: str) -> None:
    """One Consent for each decision about the DMP, replaced by the next one; `NA` takes it out of force."""
    if arrival.msg.first("ZFA") is None:
        return
    said = {consent["category"][0]["coding"][0]["code"]: consent for consent in result.consents}
    for name, place in (("feed", "ZFA-9"), ("consultation", "ZFA-11")):
        key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{DMP_STATUS}:{name}:{patient}"))
        held = draft.get(f"Consent/{key}")
        about = {"id": key, "patient": {"reference": patient}, "organization": [arrival.organization]}
        if name in said:
            draft.put(said[name] | about)
        elif held and held.get("status") == "active" and arrival.msg.at(place).state in ("null", "valued"):
            draft.put({**held, "status": "inactive"})


def patient_of(arrival: Arrival, draft: Draft, said: PatientResult, taken: Taken, *, create: bool) -> str:
    """The Patient a result, a document or an order names: matched and never changed by it.

    An unknown one is recorded from the message when `create` says so. Raises Rejected (204, business code 902) else.
    """
    person = who(draft, said.patient, arrival.hub.sites)
    ins = (said.ins.system, said.ins.value) if said.ins else None
    if not person.reference and not create:
        text = "the patient of this message is not known here; send its identity (A28, A01) first, then this again"
        raise rejected(text, "PID^1^3", "204", "902")
    reference = person.reference or f"Patient/{uuid.uuid4()}"
    taken.keys += [("patient", reference), *keys_of(ins, said.local_ids)]
    if person.followed:
        taken.notes.append(f"PID-3: identifier {person.followed} was given up for that of {reference}")
    if person.doubt:
        taken.notes.append(f"PID-3: à rapprocher, {person.doubt}")
    if not person.reference:
        whole = identity.to_reconcile(said.patient, person.doubt) if person.doubt else said.patient
        draft.put({**whole, "id": reference.partition("/")[2], "managingOrganization": arrival.organization})
        taken.notes.append("PID-3: nobody known: the person is recorded from this message")
    return reference
