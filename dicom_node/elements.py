"""A reader of data elements that copies nothing: it yields where each value stands, and skips sequences by count.

Hides explicit and implicit VR, byte order, and undefined lengths. Works on any buffer (bytes, memoryview, mmap), in
one pass without recursion, so that a hostile data set costs no more than its length.

Source: PS3.5 sections 6.2, 7.1, 7.5 and annex A.
https://dicom.nema.org/medical/dicom/current/output/chtml/part05/chapter_7.html
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import NamedTuple

Buffer = bytes | memoryview | mmap.mmap

UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_MAX_DEPTH = 64
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())


class Unreadable(ValueError):
    """The bytes are not a data set in the announced transfer syntax."""


class Truncated(Unreadable):
    """The bytes end inside a data element."""


class Encoding(NamedTuple):
    """How element headers are written."""

    explicit: bool
    little: bool


class Element(NamedTuple):
    """A data element: its value is `buffer[offset:offset + length]`; `length` excludes a sequence's own delimiter.

    `vr` is b'' under implicit VR. `undefined` tells that the length was not written in the header.
    """

    tag: int
    vr: bytes
    offset: int
    length: int
    undefined: bool


_TAG = {True: struct.Struct("<HH"), False: struct.Struct(">HH")}
_U16 = {True: struct.Struct("<H"), False: struct.Struct(">H")}
_U32 = {True: struct.Struct("<L"), False: struct.Struct(">L")}


def elements(data: Buffer, start: int, end: int, encoding: Encoding, *, stop: int = 1 << 32) -> Iterator[Element]:
    """Yield the elements of one level in order. Raises Truncated or Unreadable.

    The first element whose tag is `stop` or more is yielded unchecked (an undefined length reads as 0) and ends the
    walk: pixel data may be cut short, or not here yet.
    """
    position = start
    while position < end:
        tag, vr, offset, length = _header(data, position, end, encoding)
        if tag in (_ITEM_END, _SEQUENCE_END):
            return
        undefined = length == UNDEFINED
        if tag >= stop:
            yield Element(tag, vr, offset, 0 if undefined else length, undefined)
            return
        if undefined:
            position = _after(data, offset, end, encoding if vr != b"UN" else Encoding(False, True))
            yield Element(tag, vr, offset, position - offset - 8, True)
        else:
            position = offset + length
            if position > end:
                raise Truncated(f"element {tag >> 16:04X},{tag & 0xFFFF:04X} is longer than the data set")
            yield Element(tag, vr, offset, length, False)


def items(data: Buffer, element: Element, encoding: Encoding) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each item of a sequence found by `elements`."""
    inner = encoding if element.vr != b"UN" else Encoding(False, True)
    position, end = element.offset, element.offset + element.length
    while position < end:
        tag, _, offset, length = _header(data, position, end, inner)
        if tag != _ITEM:
            raise Unreadable(f"a sequence holds tag {tag:08X} where an item was expected")
        if length == UNDEFINED:
            position = _after(data, offset, end, inner, b"I")
            yield offset, position - 8
        else:
            position = offset + length
            if position > end:
                raise Truncated("an item is longer than its sequence")
            yield offset, position


def _header(data: Buffer, position: int, end: int, encoding: Encoding) -> tuple[int, bytes, int, int]:
    """(tag, vr, offset of the value, length as written)."""
    if position + 8 > end:
        raise Truncated("the bytes end inside an element header")
    explicit, little = encoding
    group, number = _TAG[little].unpack_from(data, position)
    if group == 0xFFFE or not explicit:
        return group << 16 | number, b"", position + 8, _U32[little].unpack_from(data, position + 4)[0]
    vr = bytes(data[position + 4 : position + 6])
    if vr in _SHORT:
        return group << 16 | number, vr, position + 8, _U16[little].unpack_from(data, position + 6)[0]
    if not (vr.isalpha() and vr.isupper()):
        raise Unreadable(f"element {group:04X},{number:04X} has no value representation")
    if position + 12 > end:
        raise Truncated("the bytes end inside an element header")
    # PS3.5 section 6.2: every VR that is not in the short list, future ones included, has a 4-byte length.
    return group << 16 | number, vr, position + 12, _U32[little].unpack_from(data, position + 8)[0]


def _after(data: Buffer, position: int, end: int, encoding: Encoding, opened: bytes = b"S") -> int:
    """Position after the delimiter that closes the sequence (b'S') or item (b'I') whose content starts here."""
    stack = [(opened, encoding)]
    while True:
        kind, current = stack[-1]
        tag, vr, offset, length = _header(data, position, end, current)
        position = offset
        if tag in (_ITEM_END, _SEQUENCE_END):
            if (tag == _ITEM_END) != (kind == b"I"):
                raise Unreadable("a sequence and its items are not properly closed")
            stack.pop()
            if not stack:
                return position
        elif length == UNDEFINED:
            if len(stack) >= _MAX_DEPTH:
                raise Unreadable(f"sequences are nested more than {_MAX_DEPTH} levels deep")
            inner = Encoding(False, True) if vr == b"UN" else current
            stack.append((b"I" if tag == _ITEM else b"S", inner))
        else:
            position += length
