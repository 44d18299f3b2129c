"""Which stored Patient an incoming one is: by qualified INS with agreeing strict traits, or by a local identifier.

Never a guess: whatever is doubtful becomes a record of its own, tagged "à rapprocher", for a person to settle. A
qualified identity is only changed by one that is qualified too, or by an event that is meant to change it.
Sources: RNIV (Référentiel national d'identitovigilance); référentiel INS; IHE PAM France 2.11 (A31, A47); FR Core 2.2.0
`fr-core-patient-ins`. How traits are compared stands in `traits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal
from urllib.parse import quote

from fhir_server.context import View
from fhir_server.patients.sites import Sites, is_ins
from fhir_server.patients.traits import BIRTH_PLACE, agree, birth_name, doubt, strict_traits
from fhir_server.search.values import bounded
from mappers.hl7v2_pid_to_fhir import BIRTH_DATE_CORRECTED, LUNAR_DATE

Patient = dict[str, Any]
Key = tuple[str, str]
RELIABILITY = "https://hl7.fr/ig/fhir/core/StructureDefinition/fr-core-identity-reliability"
RECONCILE_TAG = {"system": "urn:passerelle:identite", "code": "a-rapprocher", "display": "à rapprocher"}
QUALIFIED = frozenset({"VALI", "QUAL"})
_NIR, _NIA = "urn:oid:1.2.250.1.213.1.4.8", "urn:oid:1.2.250.1.213.1.4.9"
OF_BIRTH_DATE = (LUNAR_DATE, BIRTH_DATE_CORRECTED)
"""Extensions that say something of one birth date: true of no other one."""
_PARTS = (("birthPlace", BIRTH_PLACE), ("lunarDate", LUNAR_DATE), ("birthDateCorrected", BIRTH_DATE_CORRECTED))
MOST_OLD = 20
"""Numbers of one namespace that a record keeps as `old`, the latest first: a sender with another one in every message
makes no record grow without end."""
_CHOICES = (("deceasedBoolean", "deceasedDateTime"), ("multipleBirthBoolean", "multipleBirthInteger"))
"""Whether, and when or which: an element of which a Patient has one of the two."""
_DOUBTFUL = f"{RECONCILE_TAG['system']}|{RECONCILE_TAG['code']}"


@dataclass(frozen=True, slots=True)
class Match:
    """`same`: `reference` is the stored Patient. `new`: nobody is known. `reconcile`: a person must look at `reason`;
    `reference` is then the doubtful record of the same person that an earlier message left, or ''."""

    kind: Literal["same", "new", "reconcile"]
    reference: str = ""
    reason: str = ""


# --- what a Patient says of itself -----------------------------------------------------------------------------------


def status_of(patient: Patient) -> str:
    """The identityStatus (FR Core): a qualified one when there is any, else the first, '' when nothing is said."""
    statuses = [
        part.get("valueCoding", {}).get("code") or _first_code(part.get("valueCodeableConcept", {}))
        for extension in patient.get("extension", ())
        if extension.get("url") == RELIABILITY
        for part in extension.get("extension", ())
        if part.get("url") == "identityStatus"
    ]
    return next((status for status in statuses if status in QUALIFIED), next(iter(statuses), ""))


def qualified_ins(patient: Patient) -> Key | None:
    """(system, value) of the official INS of a qualified identity (`VALI` in FR Core 2.2, `QUAL` in 2.3), else None."""
    if status_of(patient) not in QUALIFIED:
        return None
    for identifier in patient.get("identifier", ()):
        if is_ins(identifier) and identifier.get("use", "official") == "official":
            return (identifier["system"], identifier["value"]) if identifier.get("value") else None
    return None


def local_identifiers(patient: Patient, sites: Sites) -> list[Key]:
    """(system, value) of the identifiers in a namespace that some site declares as patient identifier (PI)."""
    out = []
    for identifier in patient.get("identifier", ()):
        owner = sites.of_system(identifier.get("system", ""))
        in_force = identifier.get("value") and identifier.get("use") != "old"
        if owner and owner[1].kind == "PI" and in_force:
            out.append((identifier["system"], identifier["value"]))
    return out


def keys(patient: Patient, sites: Sites) -> list[Key]:
    """The (system, value) pairs no other active Patient may have: qualified INS and local identifiers in force.

    None for a doubtful or inactive record: it claims nobody's identity.
    """
    if not patient.get("active", True) or is_doubtful(patient):
        return []
    ins = qualified_ins(patient)
    return list(dict.fromkeys([*([ins] if ins else []), *local_identifiers(patient, sites)]))


def is_doubtful(patient: Patient) -> bool:
    """Whether the record is tagged "à rapprocher"; the letter case is ignored, as a search ignores it."""
    codes = (str(tag.get("code", "")) for tag in patient.get("meta", {}).get("tag", ()))
    return any(code.strip().casefold() == RECONCILE_TAG["code"] for code in codes)


def unclaimed_ins(patient: Patient, before: Patient | None) -> list[Key]:
    """The INS that a record carries without claiming it (on an inactive record, or as `old`) and did not carry
    `before` (what is stored): they are to be nobody else's."""
    carried, known = (
        {(i["system"], i.get("value", "")) for i in one.get("identifier", ()) if is_ins(i) and _is_unclaimed(i, one)}
        for one in (patient, before or {})
    )
    held = qualified_ins(before) if before else None
    return sorted(carried - known - ({held} if held else set()))


def _is_unclaimed(ins: Mapping[str, Any], patient: Patient) -> bool:
    in_force = qualified_ins(patient) == (ins["system"], ins.get("value"))
    return ins.get("use") == "old" or (in_force and not patient.get("active", True))


# --- looking people up -----------------------------------------------------------------------------------------------

_ESCAPES = str.maketrans({sign: f"\\{sign}" for sign in "\\|,$"})


def identifier_query(system: str, value: str) -> str:
    """The search query for exactly this identifier, whatever signs a hostile value holds."""
    escaped = [part.translate(_ESCAPES) for part in (system, value)]
    return "identifier=" + quote("|".join(escaped), safe=":|/.")


def claim_query(key: Key) -> str:
    """The search query for those who may claim an identifier: however many doubtful or inactive records repeat it,
    they do not hide the one who has it."""
    return f"{identifier_query(*key)}&active:not=false&_tag:not={_DOUBTFUL}"


def doubt_queries(patient: Patient, sites: Sites) -> list[str]:
    """The search queries for the doubtful records that may be of the same person (`same_doubt`): by birth date and
    family name, else by number; none for somebody of whom nothing is said, however many such records there are."""
    tagged, traits = f"_tag={_DOUBTFUL}", strict_traits(patient)
    if not (traits.family and traits.birth_date):
        return [f"{tagged}&{identifier_query(*key)}" for key in dict.fromkeys(local_identifiers(patient, sites))]
    family = quote(traits.family.split(" ")[0].translate(_ESCAPES))
    return [f"{tagged}{_around(traits.birth_date)}&family={family}"]


def _around(birth_date: str) -> str:
    """The day before to the day after: found on whatever clock the date was indexed and is searched for."""
    try:
        day = date.fromisoformat(birth_date)
        first, last = day - timedelta(days=1), day + timedelta(days=1)
    except (ValueError, OverflowError):  # to the month or the year only, or none
        return ""
    return f"&birthdate=ge{first}&birthdate=le{last}"


def patient_at(view: View, key: Key) -> list[Patient]:
    """The active Patients that carry this identifier (system, value) in force.

    Doubtful records do not count, nor does an INS on an identity that is not qualified (RNIV).
    """
    return [
        patient
        for patient in view.find("Patient", claim_query(key))
        if patient.get("active", True)
        and not is_doubtful(patient)
        and (not is_ins({"system": key[0]}) or qualified_ins(patient) == key)
        and key in _in_force(patient)
    ]


def keys_at(view: View, indexed: Key) -> set[Key]:
    """The identifiers in force that an index has under one (system, value): a long one is cut there."""
    held = (one for patient in view.find("Patient", claim_query(indexed)) for one in _in_force(patient))
    return {key for key in held if (bounded(key[0]), bounded(key[1])) == indexed}


def _in_force(patient: Patient) -> set[Key]:
    return {(i.get("system", ""), i.get("value", "")) for i in patient.get("identifier", ()) if i.get("use") != "old"}


def match(view: View, patient: Patient, sites: Sites, *, identity_change: bool = False) -> Match:
    """Find the stored Patient; local identifiers and INS must not point at different people.

    `identity_change`: the event is meant to change who somebody is (A47, the correction of an identity), so that
    another INS or other traits under a known local identifier are what it says and no doubt.
    """
    by_local = _unique(patient_at(view, key) for key in local_identifiers(patient, sites))
    ins = qualified_ins(patient)
    by_ins = _unique([patient_at(view, ins)]) if ins else []
    if len(by_local) > 1 or len(by_ins) > 1:
        return _doubt(view, patient, sites, "the identifiers point at several patients")
    if by_local and by_ins and by_local[0]["id"] != by_ins[0]["id"]:
        return _doubt(view, patient, sites, "the local identifier and the INS point at two people")
    if by_local:
        reason = "" if identity_change else change_of(by_local[0], patient)
        if reason:
            return _doubt(view, patient, sites, f"the local identifier is known with {reason}")
        return Match("same", f"Patient/{by_local[0]['id']}")
    if by_ins:
        if agree(by_ins[0], patient):
            return Match("same", f"Patient/{by_ins[0]['id']}")
        return _doubt(view, patient, sites, "the INS is known with other strict traits, or some are missing")
    if ins or local_identifiers(patient, sites):
        return Match("new")
    return _doubt(view, patient, sites, "no identifier in a declared namespace and no qualified INS")


def same_doubt(known: Patient, patient: Patient, sites: Sites) -> bool:
    """Whether two doubtful records are of one person: equal traits, and no number against another of its authority.

    Without a shared number in a declared namespace, birth family name and birth date must be known: two messages that
    say nothing of a person do not speak of one.
    """
    traits = strict_traits(known)
    if traits != strict_traits(patient):
        return False
    mine, theirs = (_by_system(local_identifiers(one, sites)) for one in (known, patient))
    if not (mine.keys() & theirs.keys() or (traits.family and traits.birth_date)):
        return False
    return not any(_contradict(*pair) for pair in ((mine, theirs), (_undeclared(known), _undeclared(patient))))


def _contradict(mine: Mapping[str, set[str]], theirs: Mapping[str, set[str]]) -> bool:
    return any(not mine[place] & theirs[place] for place in mine.keys() & theirs.keys())


def _undeclared(patient: Patient) -> Mapping[str, set[str]]:
    """The numbers in force without a namespace, by the authority as it was sent ('' for none)."""
    return _by_system(
        (one.get("assigner", {}).get("display", ""), one["value"])
        for one in patient.get("identifier", ())
        if one.get("value") and not one.get("system") and one.get("use") != "old"
    )


def _doubt(view: View, patient: Patient, sites: Sites, reason: str) -> Match:
    for known in (one for query in doubt_queries(patient, sites) for one in view.find("Patient", query)):
        if is_doubtful(known) and same_doubt(known, patient, sites):
            return Match("reconcile", f"Patient/{known['id']}", reason)
    return Match("reconcile", "", reason)


def change_of(stored: Patient, incoming: Patient) -> str:
    """What of a known identity an incoming one would turn into somebody else's; '' for nothing."""
    mine, theirs = qualified_ins(stored), qualified_ins(incoming)
    if mine and theirs and mine != theirs and not _succeeds(stored, incoming):
        return "another INS"
    return doubt(stored, incoming, qualified=mine is not None)


def _succeeds(stored: Patient, incoming: Patient) -> bool:
    """A provisional INS (NIA) becomes the definitive one (NIR) of the same person: IHE PAM France sends an A31."""
    mine, theirs = qualified_ins(stored), qualified_ins(incoming)
    return bool(mine and theirs and succeeded(mine[0], theirs)) and agree(stored, incoming)


def succeeded(system: str, ins: Key) -> bool:
    """Whether an INS of this system was provisional and gave way to the one in force: a NIA to a NIR."""
    return (system, ins[0]) == (_NIA, _NIR)


# --- what a stored Patient becomes -----------------------------------------------------------------------------------


def merged(stored: Patient, incoming: Patient, *, identity_change: bool = False) -> Patient:
    """The stored Patient with what the message says now; identifiers of other namespaces and unknown parts are kept,
    another number of the same namespace as `old`.

    A qualified identity keeps its INS, status and strict traits against a message that does not qualify it: silence
    takes nothing away, which `merge_notes` tells. A message that says a lower status takes the INS away (`lowered`).
    """
    if not identity_change and keeps(stored, incoming):
        incoming = _without_traits(stored, incoming)
    stored, incoming = _one_choice(stored, incoming)
    out = {key: value for key, value in stored.items() if key != "text"}
    kept = _not_said(stored, incoming)
    extensions = {extension["url"]: extension for extension in stored.get("extension", ())}
    if stored.get("birthDate") and incoming.get("birthDate", stored["birthDate"]) != stored["birthDate"]:
        extensions = {url: one for url, one in extensions.items() if url not in OF_BIRTH_DATE}
    extensions |= {extension["url"]: extension for extension in incoming.get("extension", ())}
    out |= {key: value for key, value in incoming.items() if key not in ("id", "identifier", "extension", "meta")}
    out["extension"] = list(extensions.values())
    out["identifier"] = list(incoming.get("identifier", ())) + _retired(kept, qualified_ins(incoming))
    if qualified_ins(out) is None or is_doubtful(incoming):
        out["identifier"] = [i for i in out["identifier"] if not is_ins(i)]
    for empty in [key for key in ("identifier", "extension") if not out[key]]:
        del out[empty]
    return out


def merge_notes(stored: Patient, incoming: Patient, *, identity_change: bool = False) -> tuple[str, ...]:
    """What `merged` does not take of a message, or takes out of force because of it, one sentence each, for its
    reader."""
    kept_ids = _not_said(stored, incoming)
    out = [
        f"Patient.identifier: {one['value']} is kept as an old number, another one of its namespace is said now"
        for one in kept_ids
        if one.get("use") == "old" and one not in stored["identifier"]
    ]
    values = {(_place(one), one.get("value")) for one in [*kept_ids, *incoming.get("identifier", ())]}
    out += [
        f"Patient.identifier: {one['value']} is forgotten, {MOST_OLD} later numbers of its namespace are kept as old"
        for one in stored.get("identifier", ())
        if _may_be_old(one) and (_place(one), one["value"]) not in values
    ]
    if identity_change or not keeps(stored, incoming):
        return tuple(out)
    kept = _without_traits(stored, incoming)
    for place, before, after in (
        ("Patient.name", birth_name(incoming), birth_name(kept)),
        ("Patient.birthDate", incoming.get("birthDate"), kept.get("birthDate")),
        ("Patient.gender", incoming.get("gender"), kept.get("gender")),
        *((f"Patient.extension({name})", _part(incoming, url), _part(kept, url)) for name, url in _PARTS),
    ):
        if before and before != after:
            out.append(f"{place}: the stored identity is qualified and this one is not: it is not taken")
    return tuple(out)


def keeps(stored: Patient, incoming: Patient) -> bool:
    """Whether a qualified identity meets silence: no usable INS and no lower status."""
    silent = status_of(incoming) in (*QUALIFIED, "")
    return qualified_ins(stored) is not None and qualified_ins(incoming) is None and silent


def lowered(stored: Patient, incoming: Patient, *, untold: bool) -> Patient:
    """A record whose identity is no longer qualified: without any INS, with the status that a message says now, and its
    traits as they are. `untold`: the message takes the status back (`""`)."""
    said = [one for one in incoming.get("extension", ()) if one["url"] == RELIABILITY]
    gone = {RELIABILITY} if said or untold else set()
    parts = {
        "extension": [*said, *(one for one in stored.get("extension", ()) if one["url"] not in gone)],
        "identifier": [one for one in stored.get("identifier", ()) if not is_ins(one)],
    }
    kept = {name: value for name, value in stored.items() if name not in parts}
    return kept | {name: value for name, value in parts.items() if value}


def _one_choice(stored: Patient, incoming: Patient) -> tuple[Patient, Patient]:
    """Both sides so that no element with a choice of types comes out twice: what is said now is true, and a plain
    "yes" leaves the stored date or birth order."""
    for whether, detail in _CHOICES:
        if incoming.get(whether) is True and detail in stored:
            incoming = {name: value for name, value in incoming.items() if name != whether}
        elif whether in incoming or detail in incoming:
            stored = {name: value for name, value in stored.items() if name not in (whether, detail)}
    return stored, incoming


def _not_said(stored: Patient, incoming: Patient) -> list[dict[str, Any]]:
    """The stored identifiers that the message does not replace. Another number in a namespace that it uses is `old`:
    late messages come under it. An INS, a secondary number and one without a namespace are replaced."""
    said = {(_place(one), one.get("value")) for one in incoming.get("identifier", ())}
    places = {place for place, _ in said}
    out, old = [], Counter[str]()
    for one in stored.get("identifier", ()):
        place = _place(one)
        if place not in places:
            out.append(one)
        elif (place, one.get("value")) not in said and _may_be_old(one) and old[place] < MOST_OLD:
            old[place] += 1
            out.append({**one, "use": "old"})
    return out


def _place(identifier: Mapping[str, Any]) -> str:
    """Where a number is from: its namespace, else its authority as it was sent."""
    return str(identifier.get("system") or identifier.get("assigner", {}).get("display", ""))


def _may_be_old(identifier: Mapping[str, Any]) -> bool:
    known = identifier.get("system") and identifier.get("value")
    return bool(known) and identifier.get("use") != "secondary" and not is_ins(identifier)


def _without_traits(stored: Patient, incoming: Patient) -> Patient:
    """The incoming Patient with the strict traits, status and INS of the stored one, as far as it knows them."""
    out = dict(incoming)
    official = birth_name(stored)
    if official and incoming.get("name"):
        others = [name for name in incoming["name"] if name != birth_name(incoming)]
        out["name"] = [official, *others]
    for trait in ("birthDate", "gender"):
        if stored.get(trait):
            out[trait] = stored[trait]
    kept = {extension["url"]: extension for extension in stored.get("extension", ())}
    fixed = {url: kept[url] for url in (RELIABILITY, BIRTH_PLACE, *OF_BIRTH_DATE) if url in kept}
    not_taken = {*fixed, *OF_BIRTH_DATE}
    out["extension"] = [*fixed.values(), *(e for e in incoming.get("extension", ()) if e["url"] not in not_taken)]
    out["identifier"] = [i for i in incoming.get("identifier", ()) if not is_ins(i)]
    return out


def _retired(kept: list[dict[str, Any]], ins: Key | None) -> list[dict[str, Any]]:
    """Stored identifiers beside another INS: a NIA stays as `old` beside its NIR, any other INS was somebody else's."""
    if ins is None:
        return kept
    out = []
    for identifier in kept:
        if not is_ins(identifier) or identifier.get("use") == "old":
            out.append(identifier)
        elif succeeded(identifier["system"], ins):
            out.append({**identifier, "use": "old"})
    return out


def _part(patient: Patient, url: str) -> Any:
    return next((e for e in patient.get("extension", ()) if e.get("url") == url), None)


def to_reconcile(patient: Patient, reason: str) -> Patient:
    """The same Patient without its INS (it belongs to someone else until a person decides), tagged and explained."""
    out = dict(patient)
    out["identifier"] = [i for i in patient.get("identifier", ()) if not is_ins(i)]
    if not out["identifier"]:
        del out["identifier"]
    out["meta"] = dict(patient.get("meta", {})) | {"tag": [*patient.get("meta", {}).get("tag", ()), RECONCILE_TAG]}
    return out


# --- of pairs and lists ----------------------------------------------------------------------------------------------


def _by_system(pairs: Iterable[Key]) -> Mapping[str, set[str]]:
    out: dict[str, set[str]] = {}
    for system, value in pairs:
        out.setdefault(system, set()).add(value)
    return out


def _unique(found: Iterable[list[Patient]]) -> list[Patient]:
    return list({patient["id"]: patient for patient in _flat(found)}.values())


def _flat(found: Iterable[list[Patient]]) -> Iterator[Patient]:
    for patients in found:
        yield from patients


def _first_code(concept: dict[str, Any]) -> str:
    return str(next((coding.get("code", "") for coding in concept.get("coding", ())), ""))
