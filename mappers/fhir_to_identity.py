"""The people of a report, read from FHIR: patient, professionals, structures.

Hidden here: in which of several places and spellings the French profiles put a name, an identifier, a specialty or a
mailbox, and when an INS may circulate.

Sources: https://hl7.fr/ig/fhir/core (FR Core 2.2.0: patient-ins, practitioner, practitioner-role, organization,
contact-point), https://mos.esante.gouv.fr/NOS (TRE_R38, TRE_G15, TRE_R02, TRE_R256), référentiel INS (key of the
matricule), JDV_J01 for the spelling of specialties in documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from mappers import french
from mappers.identity import Site
from mappers.ins import fault
from mappers.mapped import Loss

Resource = Mapping[str, Any]

INS_OIDS = tuple(f"1.2.250.1.213.1.4.{arc}" for arc in (8, 9, 10, 11))
"""NIR, NIA, test, démonstration: in the order of preference when a patient carries several."""
TEST_INS_OIDS = INS_OIDS[2:]
QUALIFIED = ("VALI", "QUAL")
"""identityStatus codes under which an INS may circulate: FR Core 2.2.0, and its development branch."""
PROFESSIONALS_OID = "1.2.250.1.71.4.2.1"
STRUCTURES_OID = "1.2.250.1.71.4.2.2"
RPPS_SYSTEM = "https://rpps.esante.gouv.fr"
FINESS_SYSTEM = "https://finess.esante.gouv.fr"
FR_CORE = "https://hl7.fr/ig/fhir/core/StructureDefinition/"
BIRTH_PLACE = "http://hl7.org/fhir/StructureDefinition/patient-birthPlace"


class Incomplete(ValueError):
    """A fact the report cannot do without is missing; `expression` names the FHIR element, `text` the remedy."""

    def __init__(self, expression: str, text: str) -> None:
        super().__init__(f"{expression}: {text}")
        self.expression = expression
        self.text = text


@dataclass(frozen=True, slots=True)
class Code:
    """A coded value; `system` is a bare OID."""

    code: str
    display: str
    system: str


NO_CODE = Code("", "", "")


@dataclass(frozen=True, slots=True)
class Org:
    """A structure. `finess` is 9 digits (FINESS géographique) or ''; its national id is `1` + FINESS.

    `address` is one line; `telecom` a URL such as `tel:0123456789`, or ''.
    """

    name: str
    finess: str
    address: str = ""
    telecom: str = ""
    facility_type: Code = Code("SA01", "Etablissement public de santé", "1.2.250.1.71.4.2.4")
    practice_setting: Code = Code("ETABLISSEMENT", "Établissement de santé", "1.2.250.1.213.1.1.4.9")


@dataclass(frozen=True, slots=True)
class Professional:
    """A professional. `rpps` is 11 digits; its national id is `8` + RPPS. `specialty` is a JDV_J01 code. Who only is
    named (`bystander`) may have an `rpps` of '', NO_CODE for a specialty and a structure without a name.

    `prefix` is a civility (`M`, `MME`), `suffix` a title (`DR`, `PR`, ...); `mailbox` an MSSanté address or ''.
    """

    rpps: str
    family: str
    given: str
    specialty: Code
    org: Org
    prefix: str = ""
    suffix: str = ""
    mailbox: str = ""


@dataclass(frozen=True, slots=True)
class PatientIdentity:
    """Strict traits and identifiers. `ins` is (value, bare OID) only when the identity is qualified.

    `local_ids` are (value, bare OID, HL7 HD triple, CX-5 type) such as the IPP. `gender` is FHIR's
    (male, female, unknown); `birth_givens` is the complete list as in INSi; `birth_cog` the INSEE code.
    """

    reference: str
    birth_family: str
    birth_given: str
    birth_givens: str
    gender: str
    birth_date: date
    birth_cog: str = ""
    birth_city: str = ""
    used_family: str = ""
    used_given: str = ""
    ins: tuple[str, str] | None = None
    local_ids: tuple[tuple[str, str, tuple[str, str, str], str], ...] = ()
    mailbox: str = ""


def patient_identity(patient: Resource, site: Site, notes: list[Loss]) -> PatientIdentity:
    """Strict traits and identifiers of a Patient on fr-core-patient-ins; `notes` receives what is left out.

    Raises Incomplete when a trait is missing that the identity, qualified or not, cannot do without.
    """
    names = patient.get("name") or ()
    official = next((name for name in names if name.get("use") == "official"), names[0] if names else {})
    usual: Resource = next((name for name in names if name.get("use") == "usual"), {})
    family, given = str(official.get("family") or ""), joined(official.get("given"), first=True)
    if not family or not given:
        remedy = "the identity needs the birth name and the first given name, in the name of use 'official'"
        raise Incomplete("Patient.name.where(use='official')", remedy)
    ins = _ins(patient, site, notes)
    gender = patient.get("gender")
    if gender not in ("male", "female", "unknown"):
        if ins and gender is None:
            raise Incomplete("Patient.gender", "a qualified identity has a sex: male, female or unknown")
        notes.append(Loss("Patient.gender", f"{gender!r} is written as unknown (Indéterminé)"))
        gender = "unknown"
    place = find_extension(patient, BIRTH_PLACE).get("valueAddress") or {}
    cog = coded_value(find_extension(place, FR_CORE + "fr-core-address-insee-code"))
    if ins and not cog:
        remedy = (
            "a qualified identity has its INSEE birth place code: add fr-core-address-insee-code (99999 if unknown)"
        )
        raise Incomplete(f"Patient.extension('{BIRTH_PLACE}')", remedy)
    givens = find_extension(official, FR_CORE + "fr-core-patient-birth-list-given-name").get("valueString")
    if not givens:
        givens = joined(official.get("given"))
        if ins:
            notes.append(
                Loss("Patient.name.extension", "no list of birth given names: name.given is taken as complete")
            )
    return PatientIdentity(
        reference=f"Patient/{patient.get('id', '')}",
        birth_family=family,
        birth_given=given,
        birth_givens=str(givens),
        gender=str(gender),
        birth_date=_birth_date(patient),
        birth_cog=cog,
        birth_city=str(place.get("city") or ""),
        used_family=str(usual.get("family") or ""),
        used_given=joined(usual.get("given"), first=True),
        ins=ins,
        local_ids=_local_ids(patient, site, notes),
        mailbox=mailbox_of(patient) if ins else "",
    )


def identifiers(
    patient: Resource, site: Site, notes: list[Loss]
) -> tuple[tuple[str, str] | None, tuple[tuple[str, str, tuple[str, str, str], str], ...]]:
    """`ins` and `local_ids` of a PatientIdentity, also where a trait is missing."""
    return _ins(patient, site, notes), _local_ids(patient, site, notes)


def _birth_date(patient: Resource) -> date:
    text = str(patient.get("birthDate") or "")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Incomplete("Patient.birthDate", f"{text!r} is not a full date: the identity needs YYYY-MM-DD") from None


def _ins(patient: Resource, site: Site, notes: list[Loss]) -> tuple[str, str] | None:
    """The INS that may circulate: identity qualified, official, key right, and of the kind the site works with."""
    held = {
        str(identifier.get("system") or "").removeprefix("urn:oid:"): str(identifier.get("value") or "")
        for identifier in patient.get("identifier") or ()
        if identifier.get("use", "official") == "official"
    }
    oid = next((oid for oid in INS_OIDS if held.get(oid)), "")
    if not oid:
        return None
    statuses = {
        coded_value(find_extension(extension, "identityStatus"))
        for extension in patient.get("extension") or ()
        if extension.get("url") == FR_CORE + "fr-core-identity-reliability"
    }
    value, refusal = held[oid], ""
    if not statuses & set(QUALIFIED):
        refusal = "the identity is not qualified (identityStatus VALI or QUAL): the INS is not sent"
    elif oid in TEST_INS_OIDS and site.mode == "production":
        refusal = "a test INS is not sent from a production site"
    elif not ins_key_holds(value):
        if oid not in TEST_INS_OIDS:
            refusal = "the key of the INS is wrong: it is not sent"
        else:
            notes.append(Loss("Patient.identifier", "the key of the test INS is wrong"))
    if refusal:
        notes.append(Loss("Patient.identifier", refusal))
        return None
    return value, oid


def ins_key_holds(value: str) -> bool:
    """Whether a matricule INS has 13 characters and the two-digit key 97 - (N mod 97); 2A counts as 19, 2B as 18."""
    return not fault(value)


def _local_ids(
    patient: Resource, site: Site, notes: list[Loss]
) -> tuple[tuple[str, str, tuple[str, str, str], str], ...]:
    """Identifiers of type PI or of a declared namespace, in every spelling the site declares for them."""
    declared = {namespace.fhir_system: namespace for namespace in site.namespaces if namespace.kind == "PI"}
    found: list[tuple[str, str, tuple[str, str, str], str]] = []
    for identifier in patient.get("identifier") or ():
        system, value = str(identifier.get("system") or ""), str(identifier.get("value") or "")
        if not value or identifier.get("use") == "old":
            continue
        codes = {coding.get("code") for coding in (identifier.get("type") or {}).get("coding") or ()}
        namespace, oid = declared.get(system), system.removeprefix("urn:oid:")
        if namespace is not None:
            found.append((value, namespace.oid, namespace.hd, namespace.cx_type))
        elif "PI" in codes and system.startswith("urn:oid:"):
            found.append((value, oid, ("", oid, "ISO"), "PI"))
        elif oid not in INS_OIDS:
            notes.append(Loss("Patient.identifier", f"{system or 'no system'}: no namespace of the site, left out"))
    return tuple(found)


def professional(
    who: str, role: Resource, person: Resource, org: Resource, site: Site, notes: list[Loss]
) -> Professional:
    """A PractitionerRole, its Practitioner and its Organization as one professional; `who` is a word for messages.

    Raises Incomplete without a name, an RPPS, a profession or a named structure.
    """
    here = _here(who, person)
    return replace(
        _named(here, person, notes),
        rpps=_rpps(person, here),
        specialty=_specialty(role, person, here),
        org=_org(org, who, site, notes),
        mailbox=mailbox_of(role) or mailbox_of(person) or mailbox_of(org),
    )


def bystander(who: str, role: Resource, person: Resource, org: Resource, site: Site, notes: list[Loss]) -> Professional:
    """A professional who is named and neither asks, signs nor is addressed: the name is enough, and what else is
    missing is '' and told in `notes`.

    Raises Incomplete without a name.
    """
    here = _here(who, person)
    named = _named(here, person, notes)
    found: dict[str, Any] = {"mailbox": mailbox_of(role) or mailbox_of(person) or mailbox_of(org)}
    reading: tuple[tuple[str, Callable[[], object]], ...] = (
        ("rpps", lambda: _rpps(person, here)),
        ("specialty", lambda: _specialty(role, person, here)),
        ("org", lambda: _org(org, who, site, notes)),
    )
    for name, read in reading:
        try:
            found[name] = read()
        except Incomplete as missing:
            notes.append(Loss(missing.expression, missing.text))
    return replace(named, **found)


def _here(who: str, person: Resource) -> str:
    return f"the {who} (Practitioner/{person.get('id', '')})"


def _named(here: str, person: Resource, notes: list[Loss]) -> Professional:
    """The name of a Practitioner, and nothing else yet. Raises Incomplete without a family name."""
    names = person.get("name") or ()
    name = next((name for name in names if name.get("use") in (None, "official", "usual")), names[0] if names else {})
    family, given = str(name.get("family") or ""), joined(name.get("given"), first=True)
    if not family:
        raise Incomplete("Practitioner.name.family", f"{here} has no name: add it")
    if not given:
        notes.append(Loss("Practitioner.name.given", f"{here} has no given name"))
    prefix = suffix = ""
    for word in (*(name.get("prefix") or ()), *(name.get("suffix") or ())):
        folded = str(word).upper().strip(". ")
        if folded in french.CIVILITIES:
            prefix = french.CIVILITIES[folded]
        elif folded in french.TITLES:
            suffix = french.TITLES[folded]
        else:
            notes.append(Loss("Practitioner.name.prefix", f"{word!r} is no civility or title of JDV_J245 or JDV_J246"))
    return Professional("", family, given, NO_CODE, Org("", ""), prefix, suffix)


def _rpps(person: Resource, here: str) -> str:
    for identifier in person.get("identifier") or ():
        value = re.sub(r"\s", "", str(identifier.get("value") or ""))
        if identifier.get("system") == RPPS_SYSTEM and re.fullmatch(r"[0-9]{11}", value):
            return value
        if identifier.get("system") == f"urn:oid:{PROFESSIONALS_OID}" and re.fullmatch(r"8[0-9]{11}", value):
            return value[1:]
    remedy = f"{here} has no RPPS: add an identifier of system {RPPS_SYSTEM} (11 digits)"
    raise Incomplete("Practitioner.identifier", remedy)


def _specialty(role: Resource, person: Resource, here: str) -> Code:
    """The JDV_J01 code: a specialty (`G15_10/SM20`) when one is known, else the profession (`G15_50`)."""
    concepts = [*(role.get("specialty") or ()), *(role.get("code") or ())]
    concepts += [qualification.get("code") or {} for qualification in person.get("qualification") or ()]
    found: list[tuple[str, str]] = []
    for concept in concepts:
        for coding in concept.get("coding") or ():
            code = _author_specialty(str(coding.get("system") or ""), str(coding.get("code") or ""))
            if code:
                found.append((code, str(coding.get("display") or concept.get("text") or code)))
    found.sort(key=lambda pair: "/" not in pair[0])
    if not found:
        remedy = f"{here} has no profession or specialty: add PractitionerRole.specialty (TRE_R38) or code (TRE_G15)"
        raise Incomplete("PractitionerRole.specialty", remedy)
    code, display = found[0]
    return Code(code, french.SPECIALTIES.get(code, display), french.SPECIALTY_OID)


def _author_specialty(system: str, code: str) -> str:
    """The JDV_J01 spelling of a TRE_R38 or TRE_G15 code, '' for any other coding."""
    folded = system.lower().replace("_", "-")
    if re.fullmatch(r"G15_[0-9]{2}(/[A-Z]+[0-9]+)?", code):
        return code
    if "tre-g15" in folded and re.fullmatch(r"[0-9]{2}", code):
        return f"G15_{code}"
    ranks = re.fullmatch(r"(SM|SCD|SI)[0-9]{2}", code)
    return f"{french.SPECIALTY_PROFESSIONS[ranks[1]]}/{code}" if "tre-r38" in folded and ranks else ""


def _org(org: Resource, who: str, site: Site, notes: list[Loss]) -> Org:
    name = str(org.get("name") or "")
    if not name:
        raise Incomplete(
            "Organization.name", f"the structure of the {who} (Organization/{org.get('id', '')}) has no name"
        )
    finess = _finess(org)
    if not finess:
        notes.append(Loss("Organization.identifier", f"the structure of the {who} has no FINESS"))
    facility, setting = _facility(org, finess, site)
    address: Resource = next(iter(org.get("address") or ()), {})
    town = " ".join(str(address[part]) for part in ("postalCode", "city") if address.get(part))
    lines = [str(line) for line in address.get("line") or ()]
    phones = [str(point.get("value")) for point in org.get("telecom") or () if point.get("system") == "phone"]
    return Org(
        name=name,
        finess=finess,
        address=str(address.get("text") or ", ".join(filter(None, (*lines, town)))),
        telecom="tel:" + re.sub(r"[^+0-9]", "", phones[0]) if phones else "",
        facility_type=Code(facility, french.FACILITY_TYPES[facility][0], french.FACILITY_TYPE_OID),
        practice_setting=Code(setting, french.PRACTICE_SETTINGS[setting], french.PRACTICE_SETTING_OID),
    )


def _facility(org: Resource, finess: str, site: Site) -> tuple[str, str]:
    """Facility type (TRE_R02) and practice setting: the structure's own, else the site's when it is the site."""
    types = [str(coding.get("code")) for concept in org.get("type") or () for coding in concept.get("coding") or ()]
    for code in types:
        if code in french.FACILITY_TYPES:
            return code, french.FACILITY_TYPES[code][1]
    known = site.facility_type in french.FACILITY_TYPES and site.practice_setting in french.PRACTICE_SETTINGS
    if known and finess and finess == site.finess_eg:
        return site.facility_type, site.practice_setting
    return "SA01", "ETABLISSEMENT"


def _finess(org: Resource) -> str:
    """FINESS géographique before juridique, 9 digits or ''. The second system holds `1` + FINESS."""
    candidates: list[tuple[bool, str]] = []
    for identifier in org.get("identifier") or ():
        value = re.sub(r"\s", "", str(identifier.get("value") or "")).upper()
        if identifier.get("system") == f"urn:oid:{STRUCTURES_OID}" and value.startswith("1"):
            value = value[1:]
        elif identifier.get("system") != FINESS_SYSTEM:
            continue
        codes = {coding.get("code") for coding in (identifier.get("type") or {}).get("coding") or ()}
        if re.fullmatch(r"[0-9][0-9AB][0-9]{7}", value):
            candidates.append(("FINEJ" in codes, value))
    return min(candidates)[1] if candidates else ""


def mailbox_of(resource: Resource) -> str:
    """The MSSanté address of a Patient, Practitioner, PractitionerRole or Organization, or ''."""
    for point in resource.get("telecom") or ():
        kind = coded_value(find_extension(point, FR_CORE + "fr-core-contact-point-email-type"))
        if point.get("system") == "email" and kind == "MSSANTE":
            return str(point.get("value") or "").removeprefix("mailto:").strip()
    return ""


# --- small readers -------------------------------------------------------------------------------------------------


def find_extension(element: Resource, url: str) -> Resource:
    return next((item for item in element.get("extension") or () if item.get("url") == url), {})


def coded_value(extension: Resource) -> str:
    """The code of an extension whose value is a Coding, a CodeableConcept, a code or a string."""
    coding: Resource = extension.get("valueCoding") or next(
        iter((extension.get("valueCodeableConcept") or {}).get("coding") or ()), {}
    )
    return str(coding.get("code") or extension.get("valueCode") or extension.get("valueString") or "")


def concept_text(concept: Resource | None) -> str:
    if not concept:
        return ""
    coded = (coding.get("display") or coding.get("code") for coding in concept.get("coding") or ())
    return str(concept.get("text") or next(filter(None, coded), "")).strip()


def joined(values: Sequence[object] | None, *, first: bool = False) -> str:
    words = [str(value) for value in values or () if value]
    return " ".join(words[:1] if first else words)
