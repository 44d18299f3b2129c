"""Does METADATA.XML say the same as the CDA it describes? The check no public validator makes.

A receiver files the document by its metadata and reads it by its header: where they differ, a report can land in the
wrong record. Attribute sources: IHE ITI TF-3 4.2.3.2 and the French volet Échange de documents de santé.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from lxml import etree

from mssante import xml_text
from mssante.metadata import Author, Entry, cx, unescape

CDA = {"h": "urn:hl7-org:v3"}
PDF_FORMAT = "urn:ihe:iti:xds-sd:pdf:2008"

# ASS_A12: what a level 1 body of that media type is called in formatCode.
FORMAT_OF_MEDIA = {
    "application/pdf": PDF_FORMAT,
    "text/plain": "urn:ihe:iti:xds-sd:text:2008",
    "text/rtf": "urn:ihe:iti-fr:xds-sd:rtf:2010",
    "image/jpeg": "urn:ihe:iti-fr:xds-sd:jpeg:2010",
    "image/tiff": "urn:ihe:iti-fr:xds-sd:tiff:2010",
}

_EVENT = "h:documentationOf[1]/h:serviceEvent/"
_ENCOUNTER = "h:componentOf/h:encompassingEncounter/"
_PATIENT = "h:recordTarget/h:patientRole/h:patient/"

_CODES = {
    "typeCode": "h:code/@code",
    "confidentialityCode": "h:confidentialityCode/@code",
    "healthcareFacilityTypeCode": _ENCOUNTER + "h:location/h:healthCareFacility/h:code/@code",
    "practiceSettingCode": _EVENT + "h:performer//h:representedOrganization/h:standardIndustryClassCode/@code",
}
_TIMES = {
    "creationTime": "h:effectiveTime/@value",
    "serviceStartTime": _EVENT + "h:effectiveTime/h:low/@value",
    "serviceStopTime": _EVENT + "h:effectiveTime/h:high/@value",
}
_TRAITS = {
    "birth_family": _PATIENT + "h:name/h:family[@qualifier='BR']",
    "birth_given": _PATIENT + "h:name/h:given[@qualifier='BR']",
    "birth_givens": _PATIENT + "h:name/h:given[not(@qualifier)]",
    "birth_date": _PATIENT + "h:birthTime/@value",
    "sex": _PATIENT + "h:administrativeGenderCode/@code",
    "birth_place": _PATIENT + "h:birthplace/h:place/h:addr/h:county",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One attribute on which the two disagree: what METADATA.XML states, what the document says."""

    attribute: str
    stated: str
    expected: str

    def __str__(self) -> str:
        return f"{self.attribute}: METADATA.XML says {self.stated!r}, the document says {self.expected!r}"


def incoherences(entry: Entry, document: bytes) -> tuple[Difference, ...]:
    """Each attribute of a DocumentEntry that contradicts the CDA file, empty when coherent.

    `document` is the exact file of the archive. Absent on both sides is coherent. `patientId`, `sourcePatientId` and
    `sourcePatientInfo` speak of the patient: a difference there must reach a person. Raises xml_text.XmlRefused when
    the document cannot be read.
    """
    root = clinical_document(xml_text.parse(document))
    pairs = (*_file(entry, document), *_header(entry, root), *_people(entry, root), *_patient(entry, root))
    return tuple(Difference(*pair) for pair in pairs if pair[1] != pair[2])


def clinical_document(root: etree._Element) -> etree._Element:
    """The ClinicalDocument element: the root, or inside the style sheet of a self-presenting document."""
    for element in root.iter("{urn:hl7-org:v3}ClinicalDocument"):
        return element
    raise xml_text.XmlRefused("the document holds no ClinicalDocument")


def utc(timestamp: str) -> str:
    """An HL7 time stamp with offset as UTC `yyyyMMddHHmmss`; a bare date or a stamp without offset is kept as it is.

    >>> utc("20200327153500+0100")
    '20200327143500'
    """
    text = timestamp.strip()
    digits, sign, offset = text, "", ""
    for mark in "+-":
        if mark in text:
            digits, sign, offset = text.partition(mark)
    digits = digits.partition(".")[0]
    if not sign or len(digits) < 10 or len(offset) != 4:
        return digits
    try:
        padded = digits.ljust(14, "0")
        return datetime.strptime(padded + sign + offset, "%Y%m%d%H%M%S%z").astimezone(UTC).strftime("%Y%m%d%H%M%S")
    except (ValueError, OverflowError):
        return digits


_Facts = Iterator[tuple[str, str, str]]


def _file(entry: Entry, document: bytes) -> _Facts:
    yield "hash", entry.slot("hash").lower(), hashlib.sha1(document, usedforsecurity=False).hexdigest()
    yield "size", entry.slot("size"), str(len(document))


def _header(entry: Entry, root: etree._Element) -> _Facts:
    for name, path in _CODES.items():
        coded = entry.code(name)
        yield name, coded.code if coded else "", _first(root, path)
    for name, path in _TIMES.items():
        yield name, entry.slot(name), utc(_first(root, path))
    yield "uniqueId", entry.unique_id, next((_identifier(item) for item in _all(root, "h:id")), "")
    yield "title", entry.title, _first(root, "h:title")
    yield "languageCode", entry.slot("languageCode"), _first(root, "h:languageCode/@code")
    # Metadata may say more than the acts of the header: modality, anatomical region, translations.
    events = {coded.code for coded in entry.codes.get("eventCodeList", ())}
    acts = {act.get("code", "") for act in _all(root, "h:documentationOf/h:serviceEvent/h:code[@code]")}
    yield "eventCodeList", " ".join(sorted(events & acts)), " ".join(sorted(acts))
    media = _first(root, "h:component/h:nonXMLBody/h:text/@mediaType")
    if media in FORMAT_OF_MEDIA:
        coded = entry.code("formatCode")
        yield "formatCode", coded.code if coded else "", FORMAT_OF_MEDIA[media]


def _people(entry: Entry, root: etree._Element) -> _Facts:
    stated = [author for author in entry.authors if not _is_device(author)]
    authors = _all(root, "h:author/h:assignedAuthor[h:assignedPerson]")
    signer = next(iter(_all(root, "h:legalAuthenticator/h:assignedEntity")), None)
    yield "author", "; ".join(_person(a.person) for a in stated), "; ".join(_named(a) for a in authors)
    yield (
        "authorInstitution",
        "; ".join((author.institution.split("^") + [""] * 10)[9] for author in stated),
        "; ".join(_first(author, "h:representedOrganization/h:id/@extension") for author in authors),
    )
    yield (
        "authorSpecialty",
        "; ".join(unescape(author.specialty.split("^")[0]) for author in stated),
        "; ".join(_first(author, "h:code/@code") for author in authors),
    )
    yield "legalAuthenticator", _person(entry.slot("legalAuthenticator")), "" if signer is None else _named(signer)


def _patient(entry: Entry, root: etree._Element) -> _Facts:
    known = [
        f"{item.get('extension', '')} of {item.get('root', '')}"
        for item in _all(root, "h:recordTarget/h:patientRole/h:id")
    ]
    for name, patient in (("patientId", entry.patient), ("sourcePatientId", cx(entry.slot("sourcePatientId")))):
        stated = f"{patient.value} of {patient.oid}" if patient else ""
        yield name, stated, stated if stated in known else ", ".join(known)
    day = entry.traits.birth_date
    for name, path in _TRAITS.items():
        said = _first(root, path)
        if name == "birth_date":
            yield "sourcePatientInfo birth_date", day.strftime("%Y%m%d") if day else "", said[:8]
        else:  # the CDA says UN where HL7 table 0001 says U
            yield f"sourcePatientInfo {name}", getattr(entry.traits, name), "U" if said == "UN" else said


def _is_device(author: Author) -> bool:
    parts = author.person.split("^")
    return len(parts) > 9 and parts[9] == "U"


def _person(xcn: str) -> str:
    parts = (xcn.split("^") + [""] * 3)[:3]
    return " ".join(unescape(part.strip()) for part in parts).strip()


def _named(holder: etree._Element) -> str:
    name = "h:assignedPerson/h:name/"
    parts = (_first(holder, "h:id/@extension"), _first(holder, name + "h:family"), _first(holder, name + "h:given"))
    return " ".join(parts).strip()


def _first(root: etree._Element, path: str) -> str:
    found = root.xpath(path, namespaces=CDA)
    if not isinstance(found, list) or not found:
        return ""
    value = found[0]
    text = str(value.xpath("string()")) if isinstance(value, etree._Element) else str(value)
    return " ".join(text.split())


def _all(root: etree._Element, path: str) -> list[etree._Element]:
    found = root.xpath(path, namespaces=CDA)
    return [item for item in found if isinstance(item, etree._Element)] if isinstance(found, list) else []


def _identifier(element: etree._Element) -> str:
    root, extension = element.get("root", ""), element.get("extension", "")
    return f"{root}^{extension}" if extension else root
