"""What the hub needs to know of an object, read from the first bytes of its data set.

Hides the walk over the data set, character sets, issuer sequences and deflation. Values are the sender's, decoded
and stripped of padding; nothing is corrected.

Sources: PS3.3 C.2.2, C.2.3 (patient), C.7.2.1 (study), C.7.3.1 (series), C.7.6 (image), table 10-14 (HL7 designators).
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.2.3.html
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dicom_node import charset
from dicom_node.contexts import TRANSFER_SYNTAXES, TransferSyntax
from dicom_node.elements import Buffer, Element, Encoding, Unreadable, elements, items

_LAST_TAG = 0x00400276  # nothing of interest stands after RequestAttributesSequence (0040,0275)
_MAX_VALUE = 1024
_MAX_ITEMS = 16
_MAX_INFLATED = 16 << 20


@dataclass(frozen=True, slots=True)
class Identifier:
    """A Patient ID or Accession Number with its issuer: a local name, a universal id, or neither."""

    value: str
    issuer: str = ""
    universal_id: str = ""
    universal_id_type: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """The triplet of a code sequence item: (0008,0100), (0008,0102), (0008,0104)."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Header:
    """One object. Names are those of PS3.6 in snake case; dates, times and numbers are the sender's text.

    `tolerated` says in plain words what was read although the standard forbids it.
    """

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    specific_character_set: str = ""
    image_type: str = ""
    study_date: str = ""
    study_time: str = ""
    series_date: str = ""
    series_time: str = ""
    acquisition_date: str = ""
    acquisition_time: str = ""
    content_date: str = ""
    content_time: str = ""
    timezone_offset_from_utc: str = ""
    modality: str = ""
    manufacturer: str = ""
    manufacturer_model_name: str = ""
    institution_name: str = ""
    station_name: str = ""
    study_description: str = ""
    series_description: str = ""
    referring_physician_name: str = ""
    performing_physician_name: str = ""
    operators_name: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    body_part_examined: str = ""
    study_id: str = ""
    series_number: str = ""
    instance_number: str = ""
    laterality: str = ""
    samples_per_pixel: str = ""
    photometric_interpretation: str = ""
    number_of_frames: str = ""
    rows: str = ""
    columns: str = ""
    bits_allocated: str = ""
    patient_id: Identifier = Identifier("")
    other_patient_ids: tuple[Identifier, ...] = ()
    accession_number: Identifier = Identifier("")
    requested_accession_numbers: tuple[Identifier, ...] = ()
    procedure_codes: tuple[Code, ...] = ()
    anatomic_regions: tuple[Code, ...] = ()
    tolerated: tuple[str, ...] = ()


_TEXT_TAGS: dict[int, str] = {
    0x00080005: "specific_character_set", 0x00080008: "image_type", 0x00080016: "sop_class_uid",
    0x00080018: "sop_instance_uid", 0x00080020: "study_date", 0x00080021: "series_date",
    0x00080022: "acquisition_date", 0x00080023: "content_date", 0x00080030: "study_time",
    0x00080031: "series_time", 0x00080032: "acquisition_time", 0x00080033: "content_time", 0x00080060: "modality",
    0x00080070: "manufacturer", 0x00080080: "institution_name", 0x00080090: "referring_physician_name",
    0x00080201: "timezone_offset_from_utc", 0x00081010: "station_name", 0x00081030: "study_description",
    0x0008103E: "series_description", 0x00081050: "performing_physician_name", 0x00081070: "operators_name",
    0x00081090: "manufacturer_model_name", 0x00100010: "patient_name", 0x00100030: "patient_birth_date",
    0x00100040: "patient_sex", 0x00180015: "body_part_examined", 0x0020000D: "study_instance_uid",
    0x0020000E: "series_instance_uid", 0x00200010: "study_id", 0x00200011: "series_number",
    0x00200013: "instance_number", 0x00200060: "laterality", 0x00280004: "photometric_interpretation",
    0x00280008: "number_of_frames",
}  # fmt: skip
_NUMBER_TAGS = {
    0x00280002: "samples_per_pixel",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280100: "bits_allocated",
}
_PATIENT_ID, _ISSUER, _QUALIFIERS, _OTHER_IDS = 0x00100020, 0x00100021, 0x00100024, 0x00101002
_ACCESSION, _ACCESSION_ISSUER, _REQUESTS = 0x00080050, 0x00080051, 0x00400275
_LOCAL_ENTITY, _UNIVERSAL_ENTITY, _UNIVERSAL_TYPE = 0x00400031, 0x00400032, 0x00400033
_CODE_TAGS = {0x00081032: "procedure_codes", 0x00082218: "anatomic_regions"}
_WANTED = frozenset(
    {_PATIENT_ID, _ISSUER, _QUALIFIERS, _OTHER_IDS, _ACCESSION, _ACCESSION_ISSUER, _REQUESTS}
    | _TEXT_TAGS.keys() | _NUMBER_TAGS.keys() | _CODE_TAGS.keys()
)  # fmt: skip


def read(data: Buffer, transfer_syntax: str, start: int = 0) -> Header:
    """Header of the data set that starts at `start`. `data` may be its first bytes only.

    Raises Truncated when the header goes on after the last byte of `data`, Unreadable when it is no data set.
    """
    syntax = TRANSFER_SYNTAXES[transfer_syntax]
    if syntax.deflated:
        data, start = _inflate(data, start), 0
    if len(data) <= start:
        raise Unreadable("the data set is empty")
    encoding, tolerated = _encoding(data, start, syntax)
    found: dict[int, Element] = {}
    for element in elements(data, start, len(data), encoding, stop=_LAST_TAG):
        if element.tag in _WANTED and element.length:
            found.setdefault(element.tag, element)
    return _Reader(data, encoding, found).header(tolerated)


def as_dict(header: Header) -> dict[str, Any]:
    """A form that json can write; empty values are left out. `from_dict` reads it back."""
    return {name: value for name, value in asdict(header).items() if value and value != {**asdict(Identifier(""))}}


def from_dict(values: Mapping[str, Any]) -> Header:
    """The header `as_dict` was given, from the same dict or its JSON form. Unknown names are ignored."""
    made: dict[str, Any] = {}
    for name, default in _DEFAULTS.items():
        if name not in values:
            continue
        value = values[name]
        if isinstance(default, Identifier):
            made[name] = Identifier(**value)
        elif isinstance(default, tuple):
            kind = {"procedure_codes": Code, "anatomic_regions": Code, "tolerated": str}.get(name, Identifier)
            made[name] = tuple(item if kind is str else kind(**item) for item in value)
        else:
            made[name] = str(value)
    return Header(**made)


_DEFAULTS = {field.name: field.default for field in fields(Header)}


def _inflate(data: Buffer, start: int) -> bytes:
    """PS3.5 A.5: the whole data set is one raw deflate stream. Bounded: a bomb yields at most 16 MiB."""
    try:
        return zlib.decompressobj(-15).decompress(bytes(data[start : start + _MAX_INFLATED]), _MAX_INFLATED)
    except zlib.error as fault:
        raise Unreadable(f"the deflated data set cannot be inflated: {fault}") from fault


def _encoding(data: Buffer, start: int, syntax: TransferSyntax) -> tuple[Encoding, tuple[str, ...]]:
    """The announced encoding, unless the first element shows that the sender wrote the other VR form."""
    explicit, vr = syntax.explicit, bytes(data[start + 4 : start + 6])
    if vr.isalpha() and vr.isupper() and not explicit:
        return Encoding(True, syntax.little), ("explicit VR was sent under an implicit VR transfer syntax",)
    if explicit and syntax.little and not vr.isalpha() and bytes(data[start : start + 2]) == b"\x08\0":
        return Encoding(False, True), ("implicit VR was sent under an explicit VR transfer syntax",)
    return Encoding(explicit, syntax.little), ()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Values of found elements, decoded."""

    data: Buffer
    encoding: Encoding
    found: Mapping[int, Element]

    def header(self, tolerated: tuple[str, ...]) -> Header:
        declared = self._raw(self.found, 0x00080005).decode("latin_1").strip(" \0")
        values: dict[str, Any] = {}
        for tag in self.found:
            if tag in _TEXT_TAGS:
                values[_TEXT_TAGS[tag]] = self._text(self.found, tag, declared)
            elif tag in _NUMBER_TAGS:
                values[_NUMBER_TAGS[tag]] = self._number(tag)
            elif tag in _CODE_TAGS:
                values[_CODE_TAGS[tag]] = self._codes(tag, declared)
        return Header(
            **values,
            patient_id=self._patient(self.found, declared),
            other_patient_ids=tuple(self._patient(i, declared) for i in self._items(self.found, _OTHER_IDS)),
            accession_number=self._accession(self.found, declared),
            requested_accession_numbers=tuple(
                self._accession(i, declared) for i in self._items(self.found, _REQUESTS) if _ACCESSION in i
            ),
            tolerated=tolerated,
        )

    def _raw(self, level: Mapping[int, Element], tag: int) -> bytes:
        element = level.get(tag)
        if element is None:
            return b""
        return bytes(self.data[element.offset : element.offset + min(element.length, _MAX_VALUE)])

    def _text(self, level: Mapping[int, Element], tag: int, declared: str) -> str:
        return "" if tag not in level else charset.decode(self._raw(level, tag), declared)

    def _number(self, tag: int) -> str:
        raw = self._raw(self.found, tag)
        return str(struct.unpack_from("<H" if self.encoding.little else ">H", raw)[0]) if len(raw) >= 2 else ""

    def _items(self, level: Mapping[int, Element], tag: int) -> list[dict[int, Element]]:
        element = level.get(tag)
        if element is None or element.vr not in (b"", b"SQ", b"UN"):
            return []
        inner = Encoding(False, True) if element.vr == b"UN" else self.encoding
        made = []
        for start, end in items(self.data, element, self.encoding):
            made.append({e.tag: e for e in elements(self.data, start, end, inner) if e.length})
            if len(made) == _MAX_ITEMS:
                break
        return made

    def _patient(self, level: Mapping[int, Element], declared: str) -> Identifier:
        qualifier = next(iter(self._items(level, _QUALIFIERS)), {})
        return Identifier(
            self._text(level, _PATIENT_ID, declared),
            self._text(level, _ISSUER, declared),
            self._text(qualifier, _UNIVERSAL_ENTITY, declared),
            self._text(qualifier, _UNIVERSAL_TYPE, declared),
        )

    def _accession(self, level: Mapping[int, Element], declared: str) -> Identifier:
        issuer = next(iter(self._items(level, _ACCESSION_ISSUER)), {})
        return Identifier(
            self._text(level, _ACCESSION, declared),
            self._text(issuer, _LOCAL_ENTITY, declared),
            self._text(issuer, _UNIVERSAL_ENTITY, declared),
            self._text(issuer, _UNIVERSAL_TYPE, declared),
        )

    def _codes(self, tag: int, declared: str) -> tuple[Code, ...]:
        return tuple(
            Code(*(self._text(item, part, declared) for part in (0x00080100, 0x00080102, 0x00080104)))
            for item in self._items(self.found, tag)
        )
