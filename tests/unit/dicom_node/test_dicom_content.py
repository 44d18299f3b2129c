"""What a data set says apart from how it is written; what cannot be walked is refused in bounded time."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from dicom_node import content, spool
from dicom_node.contexts import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, JPEG_BASELINE
from dicom_node.elements import Unreadable

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


def tag(number: int) -> bytes:
    return struct.pack("<HH", number >> 16, number & 0xFFFF)


def long(number: int, value: bytes, vr: bytes = b"") -> bytes:
    """An element with a 4-byte length; explicit with a `vr`."""
    return tag(number) + (vr + b"\0\0" if vr else b"") + struct.pack("<L", len(value)) + value


def short(number: int, vr: bytes, value: bytes) -> bytes:
    return tag(number) + vr + struct.pack("<H", len(value)) + value


def file(folder: Path, data: bytes, syntax: str = EXPLICIT_LE, calling: str = "A") -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.dcm"
    path.write_bytes(spool.file_meta("1.2", "1.3", syntax, calling, "B") + data)
    return path


def test_how_an_object_is_written_does_not_count_and_what_it_says_does(tmp_path: Path) -> None:
    inner = short(0x00400031, b"LO", b"ab")
    explicit = long(0x00100024, long(_ITEM, inner), b"SQ") + long(0x7FE00010, b"1234", b"OB")
    open_ended = tag(0x00100024) + b"SQ\0\0\xff\xff\xff\xff" + tag(_ITEM) + b"\xff\xff\xff\xff" + inner
    open_ended += long(_ITEM_END, b"") + long(_SEQUENCE_END, b"") + long(0x7FE00010, b"1234", b"OW")
    plain = long(0x00100024, long(_ITEM, long(0x00400031, b"ab"))) + long(0x7FE00010, b"1234")
    grouped = short(0x00100000, b"UL", b"\x1a\0\0\0") + explicit + long(0xFFFCFFFC, b"\0" * 8, b"OB")
    deflater = zlib.compressobj(wbits=-15)
    packed = deflater.compress(explicit) + deflater.flush()
    same = [
        file(tmp_path, explicit),
        file(tmp_path, explicit, calling="ANOTHER"),
        file(tmp_path, open_ended),
        file(tmp_path, plain, IMPLICIT_LE),
        file(tmp_path, grouped),
        file(tmp_path, packed, DEFLATED_LE),
    ]
    assert len({content.digest(path) for path in same}) == 1
    others = [
        file(tmp_path, explicit.replace(b"1234", b"1235")),
        file(tmp_path, explicit.replace(b"ab", b"ac")),
        file(tmp_path, explicit, JPEG_BASELINE),
        file(
            tmp_path, long(0x00100024, long(_ITEM, b"") + long(_ITEM, inner), b"SQ") + long(0x7FE00010, b"1234", b"OB")
        ),
        file(tmp_path, long(0x00100024, b"", b"SQ") + inner + long(0x7FE00010, b"1234", b"OB")),
    ]
    assert len({content.digest(path) for path in [same[0], *others]}) == 1 + len(others)


@pytest.mark.parametrize(
    ("data", "syntax"),
    [
        (short(0x00100020, b"LO", b"ab"), EXPLICIT_BE),
        (short(0x00100020, b"LO", b"ab"), "1.2.3.4"),
        (tag(0x00100020) + b"LO\xff\x00ab", EXPLICIT_LE),
        (long(0x00100024, b"no items", b"SQ"), EXPLICIT_LE),
        (b"no deflate", DEFLATED_LE),
        (zlib.compress(bytes(70 << 20))[2:-4], DEFLATED_LE),
    ],
)
def test_what_cannot_be_walked_is_unreadable(tmp_path: Path, data: bytes, syntax: str) -> None:
    with pytest.raises(Unreadable):
        content.digest(file(tmp_path, data, syntax))


def test_sequences_nested_without_end_are_unreadable(tmp_path: Path) -> None:
    nested = b""
    for _ in range(500):
        nested = long(0x00100024, long(_ITEM, nested), b"SQ")
    with pytest.raises(Unreadable, match="nested"):
        content.digest(file(tmp_path, nested))
