"""DIMSE command sets: a handful of elements in Implicit VR Little Endian, read and written as plain bytes.

Sources: PS3.7 sections 6.3.1, 9.1, 9.3 and annexes C (statuses) and E (command elements); PS3.4 annex B.2.3.
https://dicom.nema.org/medical/dicom/current/output/chtml/part07/chapter_E.html
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ, RESPONSE = 0x0001, 0x0030, 0x0FFF, 0x8000
NO_DATA_SET = 0x0101

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
UNRECOGNIZED_OPERATION = 0x0211
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

_GROUP_LENGTH = 0x0000
_AFFECTED_CLASS, _REQUESTED_CLASS, _COMMAND, _MESSAGE_ID, _RESPONDED = 0x0002, 0x0003, 0x0100, 0x0110, 0x0120
_PRIORITY, _DATA_SET, _STATUS, _COMMENT = 0x0700, 0x0800, 0x0900, 0x0902
_AFFECTED_INSTANCE, _REQUESTED_INSTANCE = 0x1000, 0x1001
_ELEMENT = struct.Struct("<HHL")


class CommandFault(ValueError):
    """The command set cannot be read."""


@dataclass(frozen=True, slots=True)
class Command:
    """A request or a response. `sop_class` and `sop_instance` are the affected ones, else the requested ones."""

    field: int
    message_id: int = 0
    responded_id: int = 0
    sop_class: str = ""
    sop_instance: str = ""
    has_data_set: bool = False
    status: int = 0
    comment: str = ""


def parse(data: bytes) -> Command:
    """Read a command set. Raises CommandFault."""
    found: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        if position + 8 > len(data):
            raise CommandFault("the command set is cut short")
        group, number, length = _ELEMENT.unpack_from(data, position)
        position += 8 + length
        if group != 0 or position > len(data):
            raise CommandFault("the command set holds something else than command elements")
        found[number] = data[position - length : position]
    if _COMMAND not in found:
        raise CommandFault("the command set has no command field")
    return Command(
        _number(found, _COMMAND),
        _number(found, _MESSAGE_ID),
        _number(found, _RESPONDED),
        _text(found, _AFFECTED_CLASS) or _text(found, _REQUESTED_CLASS),
        _text(found, _AFFECTED_INSTANCE) or _text(found, _REQUESTED_INSTANCE),
        _number(found, _DATA_SET, NO_DATA_SET) != NO_DATA_SET,
        _number(found, _STATUS),
        _text(found, _COMMENT),
    )


def echo_request(message_id: int, sop_class: str) -> bytes:
    """C-ECHO-RQ, PS3.7 section 9.3.5.1."""
    return _command(
        (_AFFECTED_CLASS, _ui(sop_class)),
        (_COMMAND, _us(C_ECHO_RQ)),
        (_MESSAGE_ID, _us(message_id)),
        (_DATA_SET, _us(NO_DATA_SET)),
    )


def store_request(message_id: int, sop_class: str, sop_instance: str) -> bytes:
    """C-STORE-RQ, medium priority, PS3.7 section 9.3.1.1."""
    return _command(
        (_AFFECTED_CLASS, _ui(sop_class)),
        (_COMMAND, _us(C_STORE_RQ)),
        (_MESSAGE_ID, _us(message_id)),
        (_PRIORITY, _us(0)),
        (_DATA_SET, _us(1)),
        (_AFFECTED_INSTANCE, _ui(sop_instance)),
    )


def response(request: Command, status: int, comment: str = "") -> bytes:
    """The response to any request, without a data set. `comment` is cut to 64 characters (VR LO)."""
    elements = [
        (_AFFECTED_CLASS, _ui(request.sop_class)),
        (_COMMAND, _us(request.field | RESPONSE)),
        (_RESPONDED, _us(request.message_id)),
        (_DATA_SET, _us(NO_DATA_SET)),
        (_STATUS, _us(status)),
    ]
    if comment:
        text = comment.replace("\\", "/").encode("ascii", "replace")[:64]
        elements.append((_COMMENT, text + b" " * (len(text) % 2)))
    if request.sop_instance:
        elements.append((_AFFECTED_INSTANCE, _ui(request.sop_instance)))
    return _command(*elements)


def _command(*elements: tuple[int, bytes]) -> bytes:
    content = b"".join(_ELEMENT.pack(0, number, len(value)) + value for number, value in elements)
    return _ELEMENT.pack(0, _GROUP_LENGTH, 4) + struct.pack("<L", len(content)) + content


def _number(found: dict[int, bytes], number: int, default: int = 0) -> int:
    value = found.get(number, b"")
    return int(struct.unpack_from("<H", value)[0]) if len(value) >= 2 else default


def _text(found: dict[int, bytes], number: int) -> str:
    return found.get(number, b"").decode("latin_1").strip(" \0")


def _us(number: int) -> bytes:
    return struct.pack("<H", number)


def _ui(uid: str) -> bytes:
    value = uid.encode("latin_1")
    return value + b"\0" * (len(value) % 2)
