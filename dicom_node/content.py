"""What a data set says, apart from how it is written: two files of one object can be compared without decoding either.

Hides explicit and implicit VR, the two ways to write the length of sequences and items, deflating, retired group
lengths and padding behind the last element: a sender may choose any of them anew each time. Values and pixel data are
taken as they are, byte for byte; encapsulated ones belong to their transfer syntax.

Source: PS3.5 sections 7.1, 7.2, 7.5 and annex A.
https://dicom.nema.org/medical/dicom/current/output/chtml/part05/chapter_7.html
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import zlib
from pathlib import Path
from typing import Any

from dicom_node.archive import file_meta
from dicom_node.contexts import TRANSFER_SYNTAXES
from dicom_node.elements import Buffer, Element, Encoding, Unreadable, elements, items

_PIXELS = range(0x7FE00008, 0x7FE00011)
_TRAILING = 0xFFFCFFFC
_MAX_DEPTH = 64
_MAX_INFLATED = 64 << 20
_CHUNK = 1 << 20
# Marks of the structure; each is followed by numbers of fixed width, so that no two data sets are told alike.
_VALUE, _OPEN, _ITEM, _CLOSE = b"V", b"(", b"I", b")"


def digest(path: Path) -> str:
    """SHA-256 (hex) of what a Part 10 file says; its file meta information does not count.

    Raises Unreadable for what cannot be walked and for big endian, whose values are written otherwise; OSError.
    """
    meta = file_meta(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        syntax = TRANSFER_SYNTAXES.get(meta.transfer_syntax_uid)
        if syntax is None or not syntax.little:
            raise Unreadable(f"the content in transfer syntax {meta.transfer_syntax_uid} cannot be compared")
        told = hashlib.sha256(syntax.uid.encode() if syntax.encapsulated else b"native")
        buffer: Buffer = data
        start = meta.offset
        if syntax.deflated:
            buffer, start = _inflated(data, start), 0
        _level(told, buffer, (start, len(buffer)), Encoding(syntax.explicit, True), 0)
        return told.hexdigest()


def _inflated(data: Buffer, start: int) -> bytes:
    reader = zlib.decompressobj(-15)
    try:
        found = reader.decompress(bytes(data[start : start + _MAX_INFLATED]), _MAX_INFLATED)
    except zlib.error as fault:
        raise Unreadable(f"the deflated data set cannot be inflated: {fault}") from fault
    if not reader.eof:
        raise Unreadable(f"the deflated data set is longer than {_MAX_INFLATED} bytes, or cut short")
    return found


def _level(told: Any, data: Buffer, span: tuple[int, int], encoding: Encoding, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise Unreadable(f"sequences are nested more than {_MAX_DEPTH} levels deep")
    for element in elements(data, *span, encoding):
        if not element.tag & 0xFFFF or element.tag == _TRAILING:
            continue
        if _is_sequence(element):
            told.update(_OPEN + struct.pack("<L", element.tag))
            inner = encoding if element.vr != b"UN" else Encoding(False, True)
            for item in items(data, element, encoding):
                told.update(_ITEM)
                _level(told, data, item, inner, depth + 1)
            told.update(_CLOSE)
        else:
            told.update(_VALUE + struct.pack("<LQ", element.tag, element.length))
            end = element.offset + element.length
            for position in range(element.offset, end, _CHUNK):
                told.update(data[position : min(position + _CHUNK, end)])


def _is_sequence(element: Element) -> bool:
    """Implicit VR does not say so; the data dictionary does, or an undefined length outside pixel data."""
    if element.vr not in (b"", b"UN"):
        return element.vr == b"SQ"
    if element.undefined and element.tag not in _PIXELS:
        return True
    from pydicom.datadict import DicomDictionary

    return bool(DicomDictionary.get(element.tag, ("",))[0] == "SQ")
