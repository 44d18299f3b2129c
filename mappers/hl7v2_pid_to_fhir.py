"""PID, ROL, ZFA and ZFD as a Patient of FR Core.

Hides where the French profiles put each trait: birth name and used name, the list of birth given names, the place of
birth with its INSEE code, the reliability of the identity, the state of the DMP. The Patient has no id: which stored
Patient it is, is the hub's business.

Sources: HL7 v2-to-FHIR PID[Patient] (https://build.fhir.org/ig/HL7/v2-to-fhir/ConceptMap-segment-pid-to-patient.html);
IHE PAM France 2.11; FR Core 2.2.0 (https://hl7.fr/ig/fhir/core/StructureDefinition/fr-core-patient-ins).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from hl7v2.message import Message, Value
from mappers.hl7v2_ins_to_fhir import Ins, ins_of, is_ins, statuses_of
from mappers.hl7v2_types_to_fhir import (
    Element,
    Notes,
    address_of,
    compact,
    date_of,
    datetime_of,
    hd_of,
    identifier_of,
    name_of,
    name_use,
    practitioner_of,
    reps,
    telecom_of,
)
from mappers.identity import Site
from profiles.v2_maps import NONE, table

FR_CORE: Final = "https://hl7.fr/ig/fhir/core/StructureDefinition/"
FR_CODES: Final = "https://hl7.fr/ig/fhir/core/CodeSystem/"
PATIENT_INS: Final = FR_CORE + "fr-core-patient-ins"
RELIABILITY: Final = FR_CORE + "fr-core-identity-reliability"
STATUS_SYSTEM: Final = FR_CODES + "fr-core-cs-fiabilite-identite"
METHOD_SYSTEM: Final = FR_CODES + "fr-core-cs-method-collection"
PROOF_SYSTEM: Final = FR_CODES + "fr-core-cs-mode-validation-identity"
BIRTH_GIVENS: Final = FR_CORE + "fr-core-patient-birth-list-given-name"
BIRTH_PLACE: Final = "http://hl7.org/fhir/StructureDefinition/patient-birthPlace"
INSEE: Final = FR_CORE + "fr-core-address-insee-code"
INSEE_SYSTEM: Final = "https://mos.esante.gouv.fr/NOS/TRE_R13-CommuneOM/FHIR/TRE-R13-CommuneOM"
MARITAL_SYSTEM: Final = "http://terminology.hl7.org/CodeSystem/v3-MaritalStatus"
CONSENT_SCOPE: Final = "http://terminology.hl7.org/CodeSystem/consentscope"
LUNAR_DATE: Final = FR_CORE + "fr-core-lunar-date"
BIRTH_DATE_CORRECTED: Final = FR_CORE + "fr-core-patient-birthdate-update-indicator"
DMP_STATUS: Final = "urn:passerelle:dmp"
"""Our own extension: what ZFA says of the patient's shared record. Parts: status (ACTIF, FERME, INEXISTANT),
statusDate, closed, feed (NA, IO = opposed, INO = not opposed), feedDate, consultation, consultationDate."""

_INS_SEX: Final = "the INS knows male, female and unknown (indéterminé) only; the code is noted"
GENDERS: Final = table(
    "AdministrativeSex",
    {"A": (NONE, _INS_SEX), "O": (NONE, _INS_SEX), "I": ("unknown", _INS_SEX), "N": ("unknown", _INS_SEX)},
)
"""PID-8 (HL7 table 0001) -> Patient.gender."""
MARITAL: Final = table(
    "MaritalStatus",
    {
        "L": ("L", "legally separated under v3's own code"),
        "B": (NONE, "unmarried is not told from single, widowed or divorced"),
        "O": (NONE, "other is no code of the value set"),
        "T": (NONE, "unreported says nothing"),
        "U": (NONE, "unknown says nothing"),
    },
)
"""PID-16 (HL7 table 0002) -> v3 MaritalStatus."""
_UNTOLD: Final = frozenset({"U", "T"})
_ACQUISITION: Final = frozenset({"SM", "CV", "INSI", "CB", "RFID", "AV"})
_PROOFS: Final = frozenset({"AN", "CC", "CE", "CM", "CN", "CS", "LE", "PA", "PC", "TC"})

CARRIED: Final = frozenset({1, 3, 5, 7, 8, 11, 13, 14, 16, 18, 24, 25, 29, 30, 31, 32})
"""Fields of PID this mapper reads (PID-1 counts, PID-18 belongs to the stay)."""


@dataclass(frozen=True, slots=True)
class PatientResult:
    """The Patient, the INS in force, and the identifiers in declared namespaces as (system, value)."""

    patient: Element
    ins: Ins | None
    local_ids: tuple[tuple[str, str], ...]


def patient_of(msg: Message, site: Site, notes: Notes) -> PatientResult:
    """The Patient of a message. Raises Refused as `ins_of` does."""
    ins = ins_of(msg, site, notes)
    identifiers, local_ids = _identifiers(msg, site, notes)
    if ins:
        identifiers.insert(0, ins.identifier())
    names = _names(msg, notes)
    if msg.text("PID-31") == "Y":
        notes.add("PID-31", "the sender marks the identity as unknown")
    addresses, birth_place = _addresses(msg, notes)
    patient = compact(
        resourceType="Patient",
        meta={"profile": [PATIENT_INS]} if ins and _is_complete(msg, names, birth_place) else None,
        extension=[
            *_reliability(msg, ins, notes),
            *_about_birth_date(msg, notes),
            *birth_place,
            *_dmp(msg, site, notes),
        ],
        identifier=identifiers,
        active=True,
        name=names,
        telecom=_telecom(msg),
        gender=_gender(msg, notes),
        birthDate=_birth_date(msg, notes),
        **_deceased(msg, site),
        address=addresses,
        maritalStatus=_marital(msg, notes),
        **_multiple_birth(msg),
        generalPractitioner=_general_practitioner(msg, notes),
    )
    return PatientResult(patient, ins, tuple(dict.fromkeys(local_ids)))


def _is_complete(msg: Message, names: list[Element], birth_place: list[Element]) -> bool:
    """What fr-core-patient-ins demands beside the INS itself."""
    official = next((name for name in names if name.get("use") == "official"), {})
    coded = any("extension" in extension["valueAddress"] for extension in birth_place)
    traits = msg.text("PID-8") in GENDERS and date_of(msg.text("PID-7"))
    return bool(official.get("given") and official.get("extension") and coded and traits)


def _identifiers(msg: Message, site: Site, notes: Notes) -> tuple[list[Element], list[tuple[str, str]]]:
    out: list[Element] = []
    local: list[tuple[str, str]] = []
    for number, cx in enumerate(msg.at("PID-3").repetitions()[:200], 1):
        where = f"PID-3[{number}]"
        kind = cx.part(5).text.upper()
        if not cx.valued or not cx.part(1).text or is_ins(cx):
            continue
        if kind == "NH":
            # The billing NIR serves no purpose of care here, and the law limits its use.
            notes.add(where, "the billing NIR (NH) is not kept")
            continue
        if kind not in ("PI", ""):
            hd = str(hd_of(cx.part(4)))
            notes.add(f"{where}.5", f"identifier of type {kind} ({hd}) is kept as secondary, not matched on")
            oid, value = hd_of(cx.part(4)).oid, cx.part(1).text
            assigner = {"display": hd} if hd else None
            system = f"urn:oid:{oid}" if oid else ""
            out.append(compact(use="secondary", type=compact(text=kind), system=system, value=value, assigner=assigner))
            continue
        identifier, namespace = identifier_of(cx, where, site, "PI", "usual", notes)
        out.append(identifier)
        if namespace:
            local.append((namespace.fhir_system, identifier["value"]))
    return out, local


def _names(msg: Message, notes: Notes) -> list[Element]:
    out = []
    values = reps(msg.at("PID-5"))
    birth = next((xpn for xpn in values if xpn.part(7).text == "L"), None)
    if birth is None and values:
        birth = next((xpn for xpn in values if xpn.part(7).text in ("", "U")), None)
        if birth:
            notes.add("PID-5.7", "no name is marked as the birth name (L): the first one is taken for it")
    for xpn in values:
        code = xpn.part(7).text
        use = "official" if xpn is birth else name_use(code)
        if use == "official" and xpn is not birth:
            notes.add("PID-5", "a second birth name is not carried")
            continue
        if not use:
            notes.add("PID-5.7", f"name type {code!r} has no equivalent; the name is kept without a use")
        name = name_of(xpn, use)
        if use == "official":
            name = _birth_name(xpn, name)
        out.append(name)
    return sorted(out, key=lambda name: name.get("use") != "official")


def _birth_name(xpn: Value, name: Element) -> Element:
    """XPN-2 is the first birth given name, XPN-3 the complete list as in INSi."""
    givens = xpn.part(3).whole.strip()
    if not givens or givens == '""':
        return name
    first = name.get("given") or [givens.split()[0]]
    return {"extension": [{"url": BIRTH_GIVENS, "valueString": givens}], **name, "given": first}


def _addresses(msg: Message, notes: Notes) -> tuple[list[Element], list[Element]]:
    """(addresses, the extension birthPlace); BDL is the place of birth, its ninth component the INSEE code."""
    out: list[Element] = []
    birth: Element = {}
    for number, xad in enumerate(reps(msg.at("PID-11")), 1):
        where = f"PID-11[{number}]"
        if xad.part(7).text not in ("BDL", "N"):
            address = address_of(xad, where, notes)
            if {key for key in address if key not in ("use", "type")}:
                out.append(address)
            continue
        code = xad.part(9).text
        place = {"extension": [{"url": INSEE, "valueCoding": {"system": INSEE_SYSTEM, "code": code}}]} if code else {}
        place |= compact(city=xad.part(3).text, postalCode=xad.part(5).text, country=xad.part(6).text)
        birth = birth or place
    if not birth.get("city") and msg.text("PID-23"):
        birth = birth | {"city": msg.text("PID-23")}
    return out, [{"url": BIRTH_PLACE, "valueAddress": birth}] if birth else []


def _reliability(msg: Message, ins: Ins | None, notes: Notes) -> list[Element]:
    """One extension: the status that decides, and how the identity was obtained and proved (ZFD)."""
    statuses = statuses_of(msg)
    if not statuses:
        return []
    doubtful = [status for status in statuses if status in ("FICT", "DOUT")]
    main = doubtful[0] if doubtful else "VALI" if "VALI" in statuses else statuses[0]
    for status in dict.fromkeys(statuses):
        if status != main:
            notes.add("PID-32", f"beside {main}, the identity status {status} is not carried")
    if main == "VALI" and ins is None:
        notes.add("PID-32", "the identity is qualified but carries no usable INS")
    method, asked, proof = msg.text("ZFD-5").upper(), date_of(msg.text("ZFD-6")), msg.text("ZFD-7").upper()
    if method and method not in _ACQUISITION:
        notes.add("ZFD-5", f"acquisition mode {method!r} is unknown and not carried")
    if proof and proof not in _PROOFS:
        notes.add("ZFD-7", f"identity proof {proof!r} is unknown and not carried")
    parts = [
        ("methodCollection", "valueCoding", method in _ACQUISITION and {"system": METHOD_SYSTEM, "code": method}),
        ("dateCollection", "valueDate", asked),
        ("identityStatus", "valueCoding", {"system": STATUS_SYSTEM, "code": main}),
        ("validationMode", "valueCoding", proof in _PROOFS and {"system": PROOF_SYSTEM, "code": proof}),
    ]
    return [{"url": RELIABILITY, "extension": [{"url": url, name: value} for url, name, value in parts if value]}]


_LUNAR: Final = re.compile(r"[0-9]{0,4}(\^[0-9]{0,4}){0,2}|[0-9]{8}", re.ASCII)


def _about_birth_date(msg: Message, notes: Notes) -> list[Element]:
    """ZFD-1, a date that may not exist (30 February) or is known in part, as it is written; ZFD-4, whether PID-7 was
    corrected. They stand beside a birth date and change none."""
    out: list[Element] = []
    lunar, corrected = msg.at("ZFD-1"), msg.text("ZFD-4").upper()
    if lunar.valued and _LUNAR.fullmatch(lunar.encoded):
        out.append({"url": LUNAR_DATE, "valueString": lunar.encoded.replace("^", "-")})
    elif lunar.valued:
        notes.add("ZFD-1", f"{lunar.encoded[:30]!r} is no date of numbers and not carried")
    if corrected in ("Y", "N"):
        out.append({"url": BIRTH_DATE_CORRECTED, "valueBoolean": corrected == "Y"})
    elif corrected:
        notes.add("ZFD-4", f"{corrected[:30]!r} is neither Y nor N and not carried")
    return out


def _dmp(msg: Message, site: Site, notes: Notes) -> list[Element]:
    """ZFA: the patient's shared record (DMP): open or closed, feeding opposed or not, consultation."""
    if msg.first("ZFA") is None:
        return []
    codes = {1: ("status", "ACTIF FERME INEXISTANT"), 9: ("feed", "NA IO INO"), 11: ("consultation", "NA INC IC")}
    dates = {2: "statusDate", 3: "closed", 10: "feedDate", 12: "consultationDate"}
    parts: list[Element] = []
    for number in (1, 2, 3, 9, 10, 11, 12):
        text = msg.text(f"ZFA-{number}")
        if number in codes and text in codes[number][1].split():
            parts.append({"url": codes[number][0], "valueCode": text})
        elif number in dates and (moment := datetime_of(text, site.time_zone)):
            parts.append({"url": dates[number], "valueDateTime": moment})
        elif text:
            notes.add(f"ZFA-{number}", f"{text[:30]!r} is not understood and not carried")
    return [{"url": DMP_STATUS, "extension": parts}] if parts else []


TAKEN_BACK: Final = frozenset({"DE", "DC", "DP"})
"""ROL-2 (HL7 table 0287): delete, discontinue, deprecate."""

_CHOICES: Final = {
    "feed": (9, 10, {"INO": "permit", "IO": "deny"}, "Alimentation du DMP"),
    "consultation": (11, 12, {"IC": "permit", "INC": "deny"}, "Consultation du DMP"),
}
"""Part of ZFA -> its field, the field of its date, code -> provision, and what the person decided about."""


def consents_of(msg: Message, site: Site) -> tuple[Element, ...]:
    """What the patient decided about the DMP (ZFA-9, ZFA-11), one Consent each, without id and patient; NA: none."""
    out: list[Element] = []
    for name, (field, at, codes, text) in _CHOICES.items():
        provision = codes.get(msg.text(f"ZFA-{field}"))
        if provision is None:
            continue
        out.append(
            compact(
                resourceType="Consent",
                status="active",
                scope={"coding": [{"system": CONSENT_SCOPE, "code": "patient-privacy"}]},
                category=[{"coding": [{"system": DMP_STATUS, "code": name}], "text": text}],
                dateTime=datetime_of(msg.text(f"ZFA-{at}"), site.time_zone),
                policyRule={"text": text},
                provision={"type": provision},
            )
        )
    return tuple(out)


def _telecom(msg: Message) -> list[Element]:
    found = [telecom_of(xtn, work) for field, work in ((13, False), (14, True)) for xtn in reps(msg.at(f"PID-{field}"))]
    return [point for number, point in enumerate(found) if point and point not in found[:number]]


def _gender(msg: Message, notes: Notes) -> str:
    code = msg.text("PID-8").upper()
    if code and code not in ("F", "M", "U"):
        notes.add("PID-8", f"{code!r} is written as {GENDERS.get(code, 'unknown')}")
    return GENDERS.get(code, "unknown") if code else ""


def _birth_date(msg: Message, notes: Notes) -> str:
    text = msg.text("PID-7")
    found = date_of(text)
    if text and not found:
        notes.add("PID-7", f"{text[:30]!r} is no date and not carried")
    return found


def _deceased(msg: Message, site: Site) -> Element:
    moment = datetime_of(msg.text("PID-29"), site.time_zone)
    if moment:
        return {"deceasedDateTime": moment}
    return {"deceasedBoolean": msg.text("PID-30") == "Y"} if msg.text("PID-30") in ("Y", "N") else {}


def _marital(msg: Message, notes: Notes) -> Element:
    code = msg.text("PID-16").upper()
    if code in MARITAL:
        return {"coding": [{"system": MARITAL_SYSTEM, "code": MARITAL[code]}]}
    if code and code not in _UNTOLD:
        notes.add("PID-16", f"marital status {code!r} has no equivalent and is not carried")
    return {}


def _multiple_birth(msg: Message) -> Element:
    order = msg.text("PID-25")
    if order.isdigit() and 0 < int(order) < 20:
        return {"multipleBirthInteger": int(order)} if msg.text("PID-24") != "N" else {"multipleBirthBoolean": False}
    return {"multipleBirthBoolean": msg.text("PID-24") == "Y"} if msg.text("PID-24") in ("Y", "N") else {}


def _general_practitioner(msg: Message, notes: Notes) -> list[Element]:
    """ROL with role ODRP: the médecin traitant the patient declared."""
    out = []
    for segment in msg.all("ROL")[:50]:
        where = f"ROL[{segment.number}]"
        role = segment.text(3)
        if role != "ODRP":
            notes.add(f"{where}-3", f"the role {role!r} is not carried")
            continue
        if segment.text(2).upper() in TAKEN_BACK:
            notes.add(f"{where}-2", f"{segment.text(2)}: the declared doctor is taken back, so none is carried")
            continue
        for xcn in reps(segment.field(4)):
            out.append(practitioner_of(xcn, f"{where}-4", notes))
    return out
