"""Which stored Patient an incoming one is: by qualified INS with agreeing strict traits, or by a local identifier.

Never a guess: whatever is doubtful becomes a record of its own, tagged "à rapprocher", for a person to settle.
Sources: RNIV (Référentiel national d'identitovigilance), strict traits; FR Core 2.2.0 `fr-core-patient-ins`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from fhir_server.context import View
from fhir_server.errors import Invalid
from fhir_server.patients.sites import INS_SYSTEMS, TEST_INS, Sites
from mappers.identity import Site

Patient = dict[str, Any]
RELIABILITY = "https://hl7.fr/ig/fhir/core/StructureDefinition/fr-core-identity-reliability"
RECONCILE_TAG = {"system": "urn:passerelle:identite", "code": "a-rapprocher", "display": "à rapprocher"}
QUALIFIED = frozenset({"VALI", "QUAL"})


@dataclass(frozen=True, slots=True)
class Match:
    """`same`: `reference` is the stored Patient. `new`: nobody is known. `reconcile`: a person must look at `reason`;
    `reference` is then the doubtful record of the same person that an earlier message left, or ''."""

    kind: Literal["same", "new", "reconcile"]
    reference: str = ""
    reason: str = ""


def qualified_ins(patient: Patient) -> tuple[str, str] | None:
    """(system, value) of the official INS of a qualified identity (`VALI` in FR Core 2.2, `QUAL` in 2.3), else None."""
    statuses = {
        part.get("valueCoding", {}).get("code") or _first_code(part.get("valueCodeableConcept", {}))
        for extension in patient.get("extension", ())
        if extension.get("url") == RELIABILITY
        for part in extension.get("extension", ())
        if part.get("url") == "identityStatus"
    }
    if not statuses & QUALIFIED:
        return None
    for identifier in patient.get("identifier", ()):
        if identifier.get("system") in INS_SYSTEMS and identifier.get("use", "official") == "official":
            return identifier["system"], identifier.get("value", "")
    return None


def local_identifiers(patient: Patient, sites: Sites) -> list[tuple[str, str]]:
    """(system, value) of the identifiers in a namespace that some site declares as patient identifier (PI)."""
    out = []
    for identifier in patient.get("identifier", ()):
        owner = sites.of_system(identifier.get("system", ""))
        in_force = identifier.get("value") and identifier.get("use") != "old"
        if owner and owner[1].kind == "PI" and in_force:
            out.append((identifier["system"], identifier["value"]))
    return out


def keys(patient: Patient, sites: Sites) -> list[tuple[str, str]]:
    """The (system, value) pairs no other active Patient may have: qualified INS and local identifiers in force.

    None for a doubtful or inactive record: it claims nobody's identity.
    """
    if not patient.get("active", True) or is_doubtful(patient):
        return []
    ins = qualified_ins(patient)
    return list(dict.fromkeys([*([ins] if ins else []), *local_identifiers(patient, sites)]))


def is_doubtful(patient: Patient) -> bool:
    """Whether the record is tagged "à rapprocher"."""
    return any(tag.get("code") == RECONCILE_TAG["code"] for tag in patient.get("meta", {}).get("tag", ()))


def identifier_query(system: str, value: str) -> str:
    """The search query for exactly this identifier, whatever signs a hostile value holds."""
    escaped = [part.translate(_ESCAPES) for part in (system, value)]
    return "identifier=" + quote("|".join(escaped), safe=":|/.")


_ESCAPES = str.maketrans({sign: f"\\{sign}" for sign in "\\|,$"})


def strict_traits(patient: Patient) -> tuple[str, str, str, str]:
    """Birth family name and first birth given name (folded), birth date and gender: what must agree with an INS."""
    names = patient.get("name", ())
    official = next((name for name in names if name.get("use") == "official"), names[0] if names else {})
    given = official.get("given") or [""]
    first = fold(given[0]).split(" ")[0]
    return fold(official.get("family", "")), first, patient.get("birthDate", ""), patient.get("gender", "")


def fold(text: str) -> str:
    """Upper case without accents, hyphens and apostrophes as blanks: how RNIV compares names."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.upper()) if not unicodedata.combining(c))
    return " ".join(plain.replace("-", " ").replace("'", " ").replace("’", " ").split())


def match(view: View, patient: Patient, sites: Sites) -> Match:
    """Find the stored Patient; local identifiers and INS must not point at different people."""
    by_local = _unique(patient_at(view, key) for key in local_identifiers(patient, sites))
    ins = qualified_ins(patient)
    by_ins = _unique([patient_at(view, ins)]) if ins else []
    if len(by_local) > 1 or len(by_ins) > 1:
        return _doubt(view, patient, "the identifiers point at several patients")
    if by_local and by_ins and by_local[0]["id"] != by_ins[0]["id"]:
        return _doubt(view, patient, "the local identifier and the INS point at two people")
    if by_local:
        mine, theirs = strict_traits(by_local[0]), strict_traits(patient)
        if mine[0] != theirs[0] and mine[2] != theirs[2]:
            return _doubt(view, patient, "the local identifier is known with another birth name and birth date")
        return Match("same", f"Patient/{by_local[0]['id']}")
    if by_ins:
        if agree(by_ins[0], patient):
            return Match("same", f"Patient/{by_ins[0]['id']}")
        return _doubt(view, patient, "the INS is known with other strict traits (name, birth date or gender)")
    return Match("new")


def _doubt(view: View, patient: Patient, reason: str) -> Match:
    query = f"_tag={RECONCILE_TAG['system']}|{RECONCILE_TAG['code']}"
    if patient.get("birthDate"):
        query += f"&birthdate={patient['birthDate']}"
    for known in view.find("Patient", query):
        if strict_traits(known) == strict_traits(patient):
            return Match("reconcile", f"Patient/{known['id']}", reason)
    return Match("reconcile", "", reason)


def patient_at(view: View, key: tuple[str, str]) -> list[Patient]:
    """The active Patients that carry this identifier (system, value) in force.

    Doubtful records do not count, nor does an INS on an identity that is not qualified (RNIV).
    """
    system, value = key
    found = view.find("Patient", identifier_query(system, value))
    return [
        patient
        for patient in found
        if patient.get("active", True)
        and not is_doubtful(patient)
        and (system not in INS_SYSTEMS or qualified_ins(patient) == key)
        and any(
            i.get("system") == system and i.get("value") == value and i.get("use") != "old"
            for i in patient.get("identifier", ())
        )
    ]


def merged(stored: Patient, incoming: Patient) -> Patient:
    """The stored Patient with what the message says now; identifiers of other namespaces and unknown parts are kept."""
    out = {key: value for key, value in stored.items() if key != "text"}
    said = {identifier.get("system") for identifier in incoming.get("identifier", ())}
    kept = [identifier for identifier in stored.get("identifier", ()) if identifier.get("system") not in said]
    extensions = {extension["url"]: extension for extension in stored.get("extension", ())}
    extensions |= {extension["url"]: extension for extension in incoming.get("extension", ())}
    out |= {key: value for key, value in incoming.items() if key not in ("id", "identifier", "extension", "meta")}
    out["identifier"] = list(incoming.get("identifier", ())) + kept
    if qualified_ins(out | {"extension": list(extensions.values())}) is None:
        out["identifier"] = [i for i in out["identifier"] if i.get("system") not in INS_SYSTEMS]
    out["extension"] = list(extensions.values())
    for empty in [key for key in ("identifier", "extension") if not out[key]]:
        del out[empty]
    return out


def to_reconcile(patient: Patient, reason: str) -> Patient:
    """The same Patient without its INS (it belongs to someone else until a person decides), tagged and explained."""
    out = dict(patient)
    out["identifier"] = [i for i in patient.get("identifier", ()) if i.get("system") not in INS_SYSTEMS]
    if not out["identifier"]:
        del out["identifier"]
    out["meta"] = dict(patient.get("meta", {})) | {"tag": [*patient.get("meta", {}).get("tag", ()), RECONCILE_TAG]}
    return out


def check_mode(patient: Patient, site: Site) -> None:
    """A production site refuses test and demonstration INS. Raises Invalid naming the identifier."""
    if site.mode != "production":
        return
    for index, identifier in enumerate(patient.get("identifier", ())):
        if str(identifier.get("system", "")).removeprefix("urn:oid:") in TEST_INS:
            raise Invalid(
                f"{identifier['system']} is a test or demonstration INS and {site.name} is a production site; "
                "send the real INS or leave it out",
                expression=f"Patient.identifier[{index}]",
                code="value",
            )


def agree(stored: Patient, incoming: Patient) -> bool:
    """Whether no strict trait that both records hold differs."""
    return all(a == b or not a or not b for a, b in zip(strict_traits(stored), strict_traits(incoming), strict=True))


def _unique(found: Iterable[list[Patient]]) -> list[Patient]:
    return list({patient["id"]: patient for patient in _flat(found)}.values())


def _flat(found: Iterable[list[Patient]]) -> Iterator[Patient]:
    for patients in found:
        yield from patients


def _first_code(concept: dict[str, Any]) -> str:
    return str(next((coding.get("code", "") for coding in concept.get("coding", ())), ""))
