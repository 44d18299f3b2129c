"""METADATA.XML: the ebRIM vocabulary of XDS and a tolerant reader of what real senders write.

Attributes are found by the nesting of the elements, never by `classifiedObject` or `registryObject`: 110 of 110
published national samples point those at the wrong object, and 103 break the schema (Name before Slot).
Sources: IHE ITI TF-3 4.2.3 (https://profiles.ihe.net/ITI/TF/Volume3/ch-4.2.html), OASIS ebRIM 3.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from lxml import etree

from mssante import xml_text

RIM = "urn:oasis:names:tc:ebxml-regrep:xsd:rim:3.0"
LCM = "urn:oasis:names:tc:ebxml-regrep:xsd:lcm:3.0"
MAX_BYTES = 5 * 1024 * 1024

APPROVED = "urn:oasis:names:tc:ebxml-regrep:StatusType:Approved"
HAS_MEMBER = "urn:oasis:names:tc:ebxml-regrep:AssociationType:HasMember"
SUBMISSION_SET = "urn:uuid:a54d6aa5-d40d-43f9-88c5-b4633d873bdd"
STABLE_DOCUMENT = "urn:uuid:7edca82f-054d-47f2-a032-9b2a5b5186c1"

# Classification and identification schemes, ITI TF-3 tables 4.2.3.2-1 and 4.2.3.3-1.
SET_SCHEMES = {
    "author": "urn:uuid:a7058bb9-b4e4-4307-ba5b-e3f0ab85e12d",
    "contentTypeCode": "urn:uuid:aa543740-bdda-424e-8c96-df4873be8500",
    "patientId": "urn:uuid:6b5aea1a-874d-4603-a4bc-96a0a7b38446",
    "sourceId": "urn:uuid:554ac39e-e3fe-47fe-b233-965d2a147832",
    "uniqueId": "urn:uuid:96fdda7c-d067-4183-912e-bf5ee74998a8",
}
ENTRY_SCHEMES = {
    "author": "urn:uuid:93606bcf-9494-43ec-9b4e-a7748d1a838d",
    "classCode": "urn:uuid:41a5887f-8865-4c09-adf7-e362475b143a",
    "confidentialityCode": "urn:uuid:f4f85eac-e6cb-4883-b524-f2705394840f",
    "eventCodeList": "urn:uuid:2c6b8cb7-8b2a-4051-b291-b1ae6a575ef4",
    "formatCode": "urn:uuid:a09d5840-386c-46f2-b5ad-9c3699a4309d",
    "healthcareFacilityTypeCode": "urn:uuid:f33fb8ac-18af-42cc-ae0e-ed0b0bdb91e1",
    "practiceSettingCode": "urn:uuid:cccf5598-8b07-4b77-a05e-ae952c785ead",
    "typeCode": "urn:uuid:f0306f51-975f-434e-a61c-c59651d33983",
    "patientId": "urn:uuid:58a6f841-87b3-4a3e-92fd-a8ffeff98427",
    "uniqueId": "urn:uuid:2e82c1f6-a085-4c72-9da3-8640a32e42ab",
}

INS_OIDS = frozenset(f"1.2.250.1.213.1.4.{last}" for last in (8, 9, 10, 11))

_ESCAPES = (("\\", "\\E\\"), ("^", "\\S\\"), ("&", "\\T\\"), ("|", "\\F\\"), ("~", "\\R\\"))
_ESCAPED = re.compile(r"\\([ESTFR])\\")
_DELIMITERS = {"E": "\\", "S": "^", "T": "&", "F": "|", "R": "~"}


@dataclass(frozen=True, slots=True)
class CodedValue:
    """A coded attribute; `system` is the codingScheme as written, normally a bare OID."""

    code: str
    system: str
    display: str


@dataclass(frozen=True, slots=True)
class Author:
    """One author, as the raw XON, XCN and coded strings of the slots."""

    institution: str
    person: str
    role: str
    specialty: str


@dataclass(frozen=True, slots=True)
class PatientId:
    """One CX: `value`, the assigning authority's bare `oid`, and the `type` (NH for an INS, PI for an IPP)."""

    value: str
    oid: str
    type: str

    @property
    def is_ins(self) -> bool:
        """Whether the authority is one of the four INS registers (two of them for tests)."""
        return self.oid in INS_OIDS


@dataclass(frozen=True, slots=True)
class Traits:
    """The identity traits of sourcePatientInfo. `sex` is F, M, U..., `birth_place` an INSEE code, empty when absent."""

    birth_family: str = ""
    birth_given: str = ""
    birth_givens: str = ""
    used_family: str = ""
    used_given: str = ""
    birth_date: date | None = None
    sex: str = ""
    birth_place: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One DocumentEntry. `slots` keeps every slot; times are UTC `yyyyMMddHHmmss` as written."""

    id: str
    title: str
    mime_type: str
    unique_id: str
    patient: PatientId | None
    traits: Traits
    authors: tuple[Author, ...]
    codes: dict[str, tuple[CodedValue, ...]]
    slots: dict[str, tuple[str, ...]]

    def slot(self, name: str) -> str:
        """The first value of a slot, or ''."""
        return next(iter(self.slots.get(name, ())), "")

    def code(self, name: str) -> CodedValue | None:
        """The first coded value of an attribute such as `typeCode`, or None."""
        return next(iter(self.codes.get(name, ())), None)


@dataclass(frozen=True, slots=True)
class Submission:
    """One SubmissionSet and its documents."""

    id: str
    unique_id: str
    source_id: str
    title: str
    patient: PatientId | None
    authors: tuple[Author, ...]
    content_type: CodedValue | None
    time: str
    entries: tuple[Entry, ...]


def read(data: bytes) -> Submission:
    """Read a METADATA.XML of any prefix, order or reference quality. Raises xml_text.XmlRefused (a ValueError)."""
    root = xml_text.parse(data, max_bytes=MAX_BYTES)
    named: dict[str, list[etree._Element]] = {"RegistryPackage": [], "ExtrinsicObject": []}
    for element in root.iter(etree.Element):
        named.get(xml_text.local(element), []).append(element)
    if not named["ExtrinsicObject"]:
        raise xml_text.XmlRefused("METADATA.XML describes no document")
    entries = tuple(_entry(element) for element in named["ExtrinsicObject"])
    package = named["RegistryPackage"][0] if named["RegistryPackage"] else etree.Element("none")
    ids = _identifiers(package, SET_SCHEMES)
    codes = _codes(package, SET_SCHEMES)
    patient = cx(ids.get("patientId", "")) or next((entry.patient for entry in entries if entry.patient), None)
    return Submission(
        id=package.get("id", ""), unique_id=ids.get("uniqueId", ""), source_id=ids.get("sourceId", ""),
        title=_name(package), patient=patient, authors=_authors(package, SET_SCHEMES),
        content_type=next(iter(codes.get("contentTypeCode", ())), None),
        time=next(iter(_slots(package).get("submissionTime", ())), ""), entries=entries,
    )  # fmt: skip


def cx(text: str) -> PatientId | None:
    """Read `value^^^&oid&ISO^type`; None when there is no value."""
    parts = (text.split("^") + [""] * 5)[:5]
    authority = (parts[3].split("&") + [""] * 3)[:3]
    value = unescape(parts[0].strip())
    return PatientId(value, unescape(authority[1].strip()), unescape(parts[4].strip())) if value else None


def escape(text: str) -> str:
    """HL7 v2 escapes for a component of a CX, XCN or XON (ITI TF-3 4.2.3.1.7 takes the data types of HL7 v2.5)."""
    for character, code in _ESCAPES:
        text = text.replace(character, code)
    return text


def unescape(text: str) -> str:
    """Undo `escape`."""
    return _ESCAPED.sub(lambda found: _DELIMITERS[found.group(1)], text)


def traits(values: tuple[str, ...]) -> Traits:
    """Read sourcePatientInfo: `PID-5|NOM^PRENOM^PRENOMS^^^^L`, `PID-7|...`, `PID-8|...`, `PID-11|...BDL^^cog`."""
    found: dict[str, str] = {}
    birth: date | None = None
    for field, content in (value.strip().partition("|")[::2] for value in values):
        parts = ([unescape(part.strip()) for part in content.split("^")] + [""] * 9)[:9]
        if field == "PID-5" and parts[6] in {"L", ""}:
            found |= {"birth_family": parts[0], "birth_given": parts[1], "birth_givens": parts[2] or parts[1]}
        elif field == "PID-5":
            found |= {"used_family": parts[0], "used_given": parts[1]}
        elif field == "PID-7":
            birth = _day(parts[0])
        elif field == "PID-8":
            found["sex"] = parts[0]
        elif field == "PID-11" and parts[6] in {"BDL", "BR"}:
            found["birth_place"] = parts[8]
    return Traits(birth_date=birth, **found)


def _entry(element: etree._Element) -> Entry:
    slots = _slots(element)
    ids = _identifiers(element, ENTRY_SCHEMES)
    patient = cx(ids.get("patientId", ""))
    return Entry(
        id=element.get("id", ""), title=_name(element), mime_type=element.get("mimeType", ""),
        unique_id=ids.get("uniqueId", ""), patient=patient, traits=traits(slots.get("sourcePatientInfo", ())),
        authors=_authors(element, ENTRY_SCHEMES), codes=_codes(element, ENTRY_SCHEMES), slots=slots,
    )  # fmt: skip


def _day(text: str) -> date | None:
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        return None


def _children(element: etree._Element, name: str) -> Iterator[etree._Element]:
    return (child for child in element.iterchildren(etree.Element) if xml_text.local(child) == name)


def _slots(element: etree._Element) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for slot in _children(element, "Slot"):
        values = (value.text or "" for value in slot.iter(etree.Element) if xml_text.local(value) == "Value")
        name = slot.get("name", "")
        found[name] = (*found.get(name, ()), *(value.strip() for value in values if value.strip()))
    return found


def _name(element: etree._Element) -> str:
    for name in _children(element, "Name"):
        for text in _children(name, "LocalizedString"):
            return " ".join((text.get("value") or "").split())
    return ""


def _classified(element: etree._Element, schemes: dict[str, str]) -> Iterator[tuple[str, etree._Element]]:
    by_scheme = {scheme: name for name, scheme in schemes.items()}
    for child in _children(element, "Classification"):
        name = by_scheme.get((child.get("classificationScheme") or "").strip().lower())
        if name:
            yield name, child


def _codes(element: etree._Element, schemes: dict[str, str]) -> dict[str, tuple[CodedValue, ...]]:
    found: dict[str, tuple[CodedValue, ...]] = {}
    for name, child in _classified(element, schemes):
        if name == "author":
            continue
        system = next(iter(_slots(child).get("codingScheme", ())), "")
        coded = CodedValue((child.get("nodeRepresentation") or "").strip(), system, _name(child))
        found[name] = (*found.get(name, ()), coded)
    return found


def _authors(element: etree._Element, schemes: dict[str, str]) -> tuple[Author, ...]:
    authors = []
    for name, child in _classified(element, schemes):
        if name == "author":
            slots = _slots(child)
            keys = ("authorInstitution", "authorPerson", "authorRole", "authorSpecialty")
            authors.append(Author(*(next(iter(slots.get(key, ())), "") for key in keys)))
    return tuple(authors)


def _identifiers(element: etree._Element, schemes: dict[str, str]) -> dict[str, str]:
    by_scheme = {scheme: name for name, scheme in schemes.items()}
    found: dict[str, str] = {}
    for child in _children(element, "ExternalIdentifier"):
        name = by_scheme.get((child.get("identificationScheme") or "").strip().lower())
        if name:
            found.setdefault(name, (child.get("value") or "").strip())
    return found
