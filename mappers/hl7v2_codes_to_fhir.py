"""Codes, numbers, order ids, notes and enclosed documents of HL7 v2 as FHIR elements.

Hides how v2 spells a coding system, a unit, a number and a MIME type. `Built` is a resource that holds
only what the message said; where each element came from is asked of the mappers (`hl7v2_sources`).

Sources: HL7 v2-to-FHIR datatype maps CWE, NM, SN, EI, ED
(https://build.fhir.org/ig/HL7/v2-to-fhir/datatype_maps.html); HL7 tables 0078, 0191, 0291, 0396.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from hl7v2.message import Message, Segment, Unreadable, Value
from mappers.hl7v2_types_to_fhir import V2_0203, Element, Notes, compact, hd_of, reps
from mappers.identity import Site
from profiles.json_text import Number
from profiles.v2_maps import table

Ids = tuple[tuple[str, str], ...]
"""(Identifier.system, value) pairs."""

SYSTEMS: Final = {
    "LN": "http://loinc.org",
    "LOINC": "http://loinc.org",
    "SCT": "http://snomed.info/sct",
    "SNM": "http://snomed.info/sct",
    "SNT": "http://snomed.info/sct",
    "UCUM": "http://unitsofmeasure.org",
    "I10": "http://hl7.org/fhir/sid/icd-10",
    "CIM10": "http://hl7.org/fhir/sid/icd-10",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "ATC": "http://www.whocc.no/atc",
    "CVX": "http://hl7.org/fhir/sid/cvx",
}
"""Coding system names (HL7 table 0396, and SNT as the téléradiologie guide writes it) -> Coding.system."""
_LOCAL: Final = ("TLR_OBR_PROCEDURE", "TLR_OBSERVATION", "TLR_TYPE_ORGANISATION", "TRE_A05", "MetaDMPMSS")
INTERPRETATION: Final = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
_IN_V3: Final = "of v3 under the same code; not in HL7's map"
INTERPRETATIONS: Final = table("InterpretationCodes", {"HX": ("HX", _IN_V3), "LX": ("LX", _IN_V3)})
"""OBX-8 (HL7 table 0078) -> v3 ObservationInterpretation."""
UCUM: Final = "http://unitsofmeasure.org"
_OID: Final = re.compile(r"[0-2](\.(0|[1-9]\d*))+\Z", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(\d{1,30})?(\.\d{0,30})?\Z", re.ASCII)
_RANGE: Final = re.compile(r"\s*(-?\d+(?:[.,]\d+)?)\s*(?:-|à|to)\s*(-?\d+(?:[.,]\d+)?)\s*\Z")
_BOUND: Final = re.compile(r"\s*(<=?|>=?|≤|≥)\s*(-?\d+(?:[.,]\d+)?)\s*\Z")


@dataclass(slots=True)
class Built:
    """A resource under construction."""

    resource: Element

    def put(self, element: str, value: Any) -> None:
        """Set an element, unless there is nothing to set."""
        if value not in (None, "", [], {}):
            self.resource[element] = value


def where(segment: Segment, number: int = 0) -> str:
    """`OBX[2]-5`, `OBX-5` for the first one, `OBX[2]` without a field."""
    name = segment.name if segment.number == 1 else f"{segment.name}[{segment.number}]"
    return f"{name}-{number}" if number else name


def system_of(name: str) -> str:
    """Coding.system of a coding system name or OID, '' when nobody here knows it."""
    if _OID.match(name):
        return f"urn:oid:{name}"
    if name.startswith(("http://", "https://", "urn:")):
        return name
    if re.fullmatch(r"HL7\d{4}", name):
        return f"http://terminology.hl7.org/CodeSystem/v2-{name[3:]}"
    return f"urn:passerelle:hl7v2:{name}" if name in _LOCAL else SYSTEMS.get(name.upper(), "")


def concept_of(value: Value, at: str, notes: Notes) -> Element:
    """CodeableConcept of a CE or CWE: both codings, CWE-9 or else the first text as text."""
    codings = []
    for first, version in ((1, 7), (4, 8)):
        code, display, name = (value.component(first + n).whole.strip() for n in range(3))
        if not code and not (display and name):
            continue
        system = system_of(name)
        if name and not system:
            notes.add(f"{at}.{first + 2}", f"the coding system {name[:40]!r} is unknown; the code is kept without one")
        codings.append(compact(system=system, version=value.component(version).text, code=code, display=display))
    text = value.component(9).whole.strip() or (value.component(2).whole.strip() if not codings else "")
    return compact(coding=codings, text=text)


def first_concept(field_: Value, at: str, notes: Notes) -> Element:
    """The first coded repetition, {} when there is none."""
    return next(iter(concepts_of(field_, at, notes)), {})


def concepts_of(field_: Value, at: str, notes: Notes) -> list[Element]:
    return [concept for rep in reps(field_) if (concept := concept_of(rep, at, notes))]


def number_of(text: str) -> Number | None:
    """An NM as a JSON number, digits as sent (`12.50` stays); None when it is none."""
    text = text.strip()
    if not _NUMBER.match(text) or not any(sign.isdigit() for sign in text):
        return None
    sign, digits = ("-" if text.startswith("-") else ""), text.lstrip("+-")
    whole, _, rest = digits.partition(".")
    try:
        return Number(f"{sign}{whole.lstrip('0') or '0'}{'.' + rest if rest else ''}")
    except (ValueError, InvalidOperation):
        return None


def quantity_of(text: str, units: Value, comparator: str = "") -> Element:
    """Quantity of a number and its OBX-6; the unit is coded only when it says UCUM. {} when it is no number."""
    number = number_of(text)
    if number is None:
        return {}
    code, display = units.component(1).whole.strip(), units.component(2).whole.strip()
    coded = units.component(3).text.upper() == "UCUM"
    parts: Element = {"value": number}
    parts |= compact(comparator=comparator, unit=display or code)
    return parts | (compact(system=UCUM, code=code) if coded and code else {})


def range_of(text: str, units: Value) -> Element:
    """Observation.referenceRange of OBX-7: the text always, bounds when it is `a-b`, `<b` or `>a`."""
    if not text:
        return {}
    out: Element = {}
    both, one = _RANGE.match(text), _BOUND.match(text)
    pairs: tuple[tuple[str, str], ...] = ()
    if both and Decimal(both[1].replace(",", ".")) <= Decimal(both[2].replace(",", ".")):
        pairs = (("low", both[1]), ("high", both[2]))
    elif one:
        pairs = ((("high" if one[1] in ("<", "<=", "≤") else "low"), one[2]),)
    for name, bound in pairs:
        out |= compact(**{name: quantity_of(bound.replace(",", "."), units)})
    return out | {"text": text}


def interpretation_of(field_: Value, at: str, notes: Notes) -> list[Element]:
    """OBX-8: codes of table 0078 as v3, any other coding as it is."""
    out = []
    for rep in reps(field_):
        code, system = rep.text, rep.component(3).text
        if code.upper() in INTERPRETATIONS and system in ("", "HL70078"):
            coded = INTERPRETATIONS[code.upper()]
            out.append({"coding": [compact(system=INTERPRETATION, code=coded, display=rep.component(2).text)]})
        elif concept := concept_of(rep, at, notes):
            out.append(concept)
    return out


def order_id(value: Value, kind: str, site: Site) -> Element:
    """Identifier of an EI; `kind` is PLAC, FILL or ''. An authority without OID is kept as the assigner."""
    number = value.component(1).whole.strip()
    if not number:
        return {}
    namespace, universal, universal_type = (value.component(n).text for n in (2, 3, 4))
    system = f"urn:oid:{universal}" if _OID.match(universal) else ""
    known = next((n for n in site.namespaces if n.kind == "ACSN" and namespace and n.hd[0] == namespace), None)
    system = system or (known.fhir_system if known else "")
    label = "&".join(part for part in (namespace, universal if not system else "", universal_type if not system else "")
                     if part)  # fmt: skip
    return compact(
        type={"coding": [{"system": V2_0203, "code": kind}]} if kind else None,
        system=system,
        value=number,
        assigner={"display": label} if label else None,
    )


def order_ids(pairs: Sequence[tuple[Value, str]], site: Site) -> list[Element]:
    """The different identifiers of several EI fields, in order."""
    out: list[Element] = []
    for value, kind in pairs:
        for rep in reps(value) or [value]:
            identifier = order_id(rep, kind, site)
            if identifier and identifier not in out:
                out.append(identifier)
    return out


def request_of(identifiers: list[Element]) -> list[Element]:
    """The requests an answer names, as logical references (placer numbers)."""
    return [
        {"type": "ServiceRequest", "identifier": identifier}
        for identifier in identifiers
        if any(coding["code"] == "PLAC" for coding in identifier.get("type", {}).get("coding", ()))
    ]


def person_of_ndl(value: Value) -> tuple[str, str, str]:
    """(number, family, given) of the CNN in NDL-1."""
    name = value.component(1)
    return name.part(1).text, name.part(2).text, name.part(3).text


def organization_of(xon: Value) -> Element:
    """A logical reference to a structure: FINESS, else the number under its authority, else only a name."""
    value, kind, hd = xon.part(10).text or xon.part(3).text, xon.part(7).text.upper(), hd_of(xon.part(6))
    system = (
        "https://finess.esante.gouv.fr" if kind in ("FINEG", "FINEJ") and re.fullmatch(r"[0-9AB]{9}", value) else ""
    )
    if not system and hd.oid:
        system = f"urn:oid:{hd.oid}"
    identifier = compact(system=system, value=value) if value and system else None
    return compact(type="Organization", identifier=identifier, display=xon.part(1).text)


_MIME: Final = {
    ("TEXT", "XML"): "text/xml",
    ("TEXT", "HTML"): "text/html",
    ("TEXT", "RTF"): "application/rtf",
    ("TEXT", ""): "text/plain",
    ("TEXT", "PLAIN"): "text/plain",
    ("APPLICATION", "PDF"): "application/pdf",
    ("AP", "PDF"): "application/pdf",
    ("PDF", ""): "application/pdf",
    ("IM", "JPEG"): "image/jpeg",
    ("IMAGE", "JPEG"): "image/jpeg",
    ("IM", "PNG"): "image/png",
    ("IMAGE", "PNG"): "image/png",
    ("APPLICATION", "DICOM"): "application/dicom",
    ("MULTIPART", "RELATED"): "multipart/related",
}
"""(ED-2, ED-3) in capitals -> MIME type (HL7 tables 0191 and 0291, and what senders write)."""


@dataclass(frozen=True, slots=True)
class Enclosed:
    """A document in an OBX-5 of type ED. `number` is OBX-1 in order, `media_type` a MIME type."""

    number: int
    media_type: str
    data: bytes
    code: Element
    status: str


def enclosed(msg: Message, obx: Segment, notes: Notes) -> Enclosed | None:
    """The document, decoded; None with a note when there is none or its encoding is not what it says."""
    at = where(obx, 5)
    held = msg.encapsulated(obx)
    if not len(held.data):
        notes.add(at, "the enclosed document is empty")
        return None
    try:
        data = held.decode()
    except Unreadable as error:
        notes.add(at, f"the enclosed document cannot be decoded: {str(error)[:100]}")
        return None
    media = _MIME.get((held.type.strip().upper(), held.subtype.strip().upper()), "")
    if not media:
        media = "application/pdf" if data.startswith(b"%PDF-") else "application/octet-stream"
        notes.add(f"{at}.2", f"{held.type[:20]}/{held.subtype[:20]} is no known type; taken as {media}")
    return Enclosed(obx.number, media, data, concept_of(obx.field(3).repetition(1), where(obx, 3), notes), obx.text(11))


_BREAK: Final = re.compile(r"\\\.(?:br|sp)\\")


def lines_of(obx: Segment) -> str:
    """The text of OBX-5: repetitions and `\\.br\\` are line ends."""
    return "\n".join(_BREAK.sub("\n", rep.whole).strip() for rep in obx.field(5).repetitions()[:1_000])


def flags_of(msg: Message) -> dict[str, bool]:
    """The metadata of the CI-SIS push (MASQUE_PS, DESTDMP ...) as yes or no, those that are there; of two that
    disagree, yes."""
    rows = [obx for obx in msg.all("OBX") if is_metadata(obx) and obx.text(5) in ("Y", "N")]
    yes = {obx.text(3) for obx in rows if obx.text(5) == "Y"}
    return {name: name in yes for name in (obx.text(3) for obx in rows)}


def is_metadata(obx: Segment) -> bool:
    return obx.text(3, 3) == "MetaDMPMSS"
