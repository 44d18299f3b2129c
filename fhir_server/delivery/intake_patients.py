"""Who a message speaks of, what is now known of the person, and what was decided about the shared record (DMP).

Hides the way from a PID to a stored Patient: the match, the doubtful record, the identifier that was given up and still
comes, the fields a sender deletes, and the INS that leaves an identity which is no longer qualified.

Sources: IHE PAM France 2.11 (ITI-30, ITI-31); référentiel INS; RNIV; HL7 v2.5 chapter 2.5.3 (`""` deletes).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fhir_server.context import View
from fhir_server.delivery.arrivals import Arrival, Draft, Taken, rejected
from fhir_server.patients import identity, merge, traits
from fhir_server.patients.sites import Sites
from mappers.hl7v2_pid_to_fhir import DMP_STATUS, PatientResult
from mappers.hl7v2_to_fhir import AdtResult

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
    known = draft.get(person.reference) if person.reference else None
    reference = person.reference or f"Patient/{uuid.uuid4()}"
    taken.keys += [("patient", reference), *keys_of(result.ins, result.local_ids)]
    if person.followed:
        told = f"identifier {person.followed} was given up for that of {reference}: the stay is recorded there"
        taken.notes.append(f"PID-3: {told}, the traits are not taken")
        return reference
    patient = result.patient
    if person.doubt:
        taken.notes.append(f"PID-3: à rapprocher, {person.doubt}")
        patient = identity.to_reconcile(patient, person.doubt)
    whole = patient
    if known:
        whole = _deleted(identity.merged(known, patient, identity_change=identity_change), patient, result.nulls)
        taken.notes += identity.merge_notes(known, patient, identity_change=identity_change)
    if person.doubt:
        whole = {**whole, "meta": patient["meta"]}
    if result.drops_ins:
        # What has not left and still carries it is held when its turn comes (`teleexpertise.overtaken`).
        whole = merge.without_ins(whole)
    whole = {**whole, "id": reference.partition("/")[2], "managingOrganization": arrival.organization}
    draft.put(whole, identity_change=identity_change)
    _record_consents(arrival, draft, result, reference)
    return reference


def keys_of(ins: tuple[str, str] | None, local_ids: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """What a message can be found by in the inbox."""
    return ([("ins", ins[1])] if ins else []) + [("ipp", value) for _, value in local_ids]


def _deleted(whole: Resource, said: Resource, nulls: tuple[str, ...]) -> Resource:
    out = dict(whole)
    for place in nulls:
        for element in DELETES.get(place.partition("[")[0], ()):
            if element not in said:
                out.pop(element, None)
    return out


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
        elif held and held.get("status") == "active" and arrival.msg.text(place):
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
