"""The test data that checks send: an admission of IHE PAM France and a tiny ultrasound image. All of it fictitious.

IHE PAM National Extension France 2.11 (message ADT^A01^ADT_A01); HL7 v2.5 chapters 2 and 3;
PS3.3 A.6 (Ultrasound Image IOD), PS3.5 7.1 (data elements)
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from conformance.target import Options
from conformance.wire_dicom import IMPLICIT_LITTLE, ULTRASOUND_IMAGE

# HL7 table 0211 as French messages use it -> Python codec.
CHARSETS: Mapping[str, str] = {"UNICODE UTF-8": "utf-8", "8859/15": "iso8859-15", "8859/1": "iso8859-1"}
_ESCAPES = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\r": " ", "\n": " "})


@dataclass(frozen=True, slots=True)
class Admission:
    """What varies between admissions: MSH-9 parts, MSH-10, MSH-12, MSH-18, the local identifier, missing segments."""

    control_id: str
    patient_id: str
    event: str = "A01"
    structure: str = "ADT_A01"
    version: str = "2.5^FRA^2.11"
    charset: str = "UNICODE UTF-8"
    without: tuple[str, ...] = ()
    code: str = "ADT"
    # What further events need: the event cancelled (ZBE), the movement's own name, the identity replaced (MRG),
    # segments to add at the end, text to add to PV1.
    cancels: str = ""
    movement: str = ""
    replaced: str = ""
    more: tuple[str, ...] = ()
    tail: str = ""

    def message(self, options: Options) -> bytes:
        """The message in its charset, segments ended by CR."""
        now = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
        segments = [
            _header(self, options, now),
            _segment("EVN", {2: now, 6: now}),
            _patient(self, options, now),
            _segment(
                "PV1", {1: "1", 2: "I", 3: f"^^^{options.authority}", 19: f"V{self.patient_id}{_of(options, 'VN')}"}
            )
            + self.tail,
            _movement(self, options, now),
        ]
        kept = [one for one in segments if one[:3] not in self.without]
        kept += [_segment("MRG", {1: f"{self.replaced}{_of(options, 'PI')}"})] if self.replaced else []
        kept += self.more
        return "".join(f"{one}\r" for one in kept).encode(CHARSETS[self.charset], "replace")


def admission(options: Options, control_id: str, patient_id: str, **changes: Any) -> bytes:
    """An `ADT^A01` of PAM France, or what `changes` of `Admission` make of it."""
    return replace(Admission(control_id, patient_id), **changes).message(options)


def _segment(name: str, fields: Mapping[int, str]) -> str:
    return "|".join([name, *(fields.get(number, "") for number in range(1, max(fields) + 1))])


def _of(options: Options, kind: str) -> str:
    return f"^^^{options.authority}^{kind}"


def _header(one: Admission, options: Options, now: str) -> str:
    # MSH-1 is the separator itself, so the fields of the join begin with MSH-2.
    fields = {
        1: "^~\\&",
        2: options.sending_application,
        3: options.sending_facility,
        4: options.receiving_application,
        5: options.receiving_facility,
        6: now,
        8: f"{one.code}^{one.event}^{one.structure}",
        9: one.control_id,
        10: options.processing_id,
        11: one.version,
        16: "FRA",
        17: one.charset,
        18: "FR",
        20: "2.11^IHE_FRANCE-2.11-PAM",
    }
    return _segment("MSH", fields)


def _patient(one: Admission, options: Options, now: str) -> str:
    family, given = options.family.translate(_ESCAPES), options.given.translate(_ESCAPES)
    ids = f"{one.patient_id}{_of(options, 'PI')}"
    if options.ins:
        ids += f"~{options.ins}^^^ASIP-SANTE-INS-NIR&{options.ins_oid}&ISO^INS"
    fields = {
        1: "1",
        3: ids,
        5: f"{family}^{given}^{given}^^^^L",
        7: options.birth_date,
        8: options.sex,
        11: "1 rue de l'Essai^^PARIS^^75007^FRA^H~^^^^^^BDL^^63220",
        18: f"D{one.patient_id}{_of(options, 'AN')}",
        32: "VALI" if options.ins else "PROV",
        33: now,
    }
    return _segment("PID", fields)


def _movement(one: Admission, options: Options, now: str) -> str:
    name, _, rest = options.authority.partition("&")
    unit = f"Expertise^^^^^{options.authority}^UF^^^6268"
    movement = f"M{one.movement.removeprefix('A01')}{one.patient_id}^{name}^{rest.partition('&')[0]}"
    fields = {1: movement, 2: now, 4: "CANCEL" if one.cancels else "INSERT", 5: "N", 6: one.cancels}
    return _segment("ZBE", {**fields, 7: unit, 8: unit, 9: "HMS"})


def uid() -> str:
    """A new UID under 2.25 (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def ultrasound(options: Options, transfer_syntax: str) -> tuple[str, bytes]:
    """(SOP Instance UID, data set) of an 8 x 8 grey ultrasound image, uncompressed little endian."""
    instance = uid()
    now = datetime.now(UTC)
    implicit = transfer_syntax == IMPLICIT_LITTLE
    pixels = bytes((x * 16 + y * 16) & 0xFF for y in range(8) for x in range(8))
    elements: list[tuple[int, str, str | int | bytes]] = [
        (0x00080005, "CS", "ISO_IR 192"),
        (0x00080008, "CS", "ORIGINAL\\PRIMARY"),
        (0x00080016, "UI", ULTRASOUND_IMAGE),
        (0x00080018, "UI", instance),
        (0x00080020, "DA", now.strftime("%Y%m%d")),
        (0x00080030, "TM", now.strftime("%H%M%S")),
        (0x00080050, "SH", ""),
        (0x00080060, "CS", "US"),
        (0x00080070, "LO", "CONFORMANCE KIT"),
        (0x00080090, "PN", ""),
        (0x00100010, "PN", f"{options.family}^{options.given}"),
        (0x00100020, "LO", f"KIT{instance[-12:]}"),
        (0x00100030, "DA", options.birth_date),
        (0x00100040, "CS", options.sex if options.sex in {"F", "M"} else "O"),
        (0x0020000D, "UI", uid()),
        (0x0020000E, "UI", uid()),
        (0x00200010, "SH", "1"),
        (0x00200011, "IS", "1"),
        (0x00200013, "IS", "1"),
        (0x00200020, "CS", ""),
        (0x00280002, "US", 1),
        (0x00280004, "CS", "MONOCHROME2"),
        (0x00280010, "US", 8),
        (0x00280011, "US", 8),
        (0x00280100, "US", 8),
        (0x00280101, "US", 8),
        (0x00280102, "US", 7),
        (0x00280103, "US", 0),
        (0x7FE00010, "OW" if implicit else "OB", pixels),
    ]
    return instance, b"".join(_element(tag, vr, value, implicit=implicit) for tag, vr, value in elements)


def _element(tag: int, vr: str, value: str | int | bytes, *, implicit: bool) -> bytes:
    if isinstance(value, int):
        data = struct.pack("<H", value)
    else:
        data = value if isinstance(value, bytes) else value.encode()
        data += (b"\0" if vr in {"UI", "OB"} else b" ") * (len(data) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack("<I", len(data)) + data
    if vr in {"OB", "OW"}:
        return head + vr.encode() + struct.pack("<HI", 0, len(data)) + data
    return head + vr.encode() + struct.pack("<H", len(data)) + data
