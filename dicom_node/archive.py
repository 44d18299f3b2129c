"""Stored Part 10 files, read in place: where each frame stands, a frame's bytes as they were sent, the metadata.

Hides file meta information, offset tables and fragments. Pixel data are never decoded or written anew; only
`metadata_json` builds a pydicom data set.

Sources: PS3.10 section 7.1, PS3.5 section 8 and annex A.4 (encapsulation), PS3.18 annex F (DICOM JSON).
https://dicom.nema.org/medical/dicom/current/output/chtml/part05/sect_A.4.html
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_node.contexts import EXPLICIT_LE, TRANSFER_SYNTAXES
from dicom_node.elements import UNDEFINED, Buffer, Element, Encoding, Truncated, Unreadable, elements

Span = tuple[int, int]

_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_FIRST_PIXELS = 0x7FE00008
_EXTENDED_OFFSETS, _EXTENDED_LENGTHS = 0x7FE00001, 0x7FE00002
_SAMPLES, _PHOTOMETRIC, _FRAMES = 0x00280002, 0x00280004, 0x00280008
_ROWS, _COLUMNS, _BITS = 0x00280010, 0x00280011, 0x00280100
_WANTED = frozenset(
    {_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _BITS, _EXTENDED_OFFSETS, _EXTENDED_LENGTHS, *_PIXELS}
)
_ITEM, _SEQUENCE_END = 0xE000, 0xE0DD
# First bytes of a compressed image: JPEG and JPEG-LS, JPEG 2000 code stream, JPEG XL code stream.
_IMAGE_STARTS = (b"\xff\xd8", b"\xff\x4f", b"\xff\x0a")
_MAX_HEADER = 64 << 20
_META = Encoding(True, True)
_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})


class NoFrames(ValueError):
    """The object has no pixel data, or its frames cannot be told apart."""


@dataclass(frozen=True, slots=True)
class FileMeta:
    """Group 0002. The data set starts at `offset`."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    offset: int


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Where the frames of a file are. Each frame is one or more (offset, length) pieces of the file, in order."""

    transfer_syntax: str
    frames: tuple[tuple[Span, ...], ...]
    photometric: str
    samples: int
    rows: int
    columns: int
    bits: int


def file_meta(path: Path) -> FileMeta:
    """Raises Unreadable when the file is not a Part 10 file, OSError when it cannot be read."""
    with _mapped(path) as data:
        return _file_meta(data)


def frame_table(path: Path) -> FrameTable:
    """Find the frames. Raises NoFrames, Unreadable or OSError."""
    with _mapped(path) as data:
        meta = _file_meta(data)
        syntax = TRANSFER_SYNTAXES.get(meta.transfer_syntax_uid)
        if syntax is None or syntax.deflated or not syntax.media_type:
            raise NoFrames(f"frames cannot be addressed in transfer syntax {meta.transfer_syntax_uid}")
        encoding = Encoding(syntax.explicit, syntax.little)
        walk = elements(data, meta.offset, len(data), encoding, stop=_FIRST_PIXELS)
        found = {e.tag: e for e in walk if e.tag in _WANTED}
        pixels = next((found[tag] for tag in sorted(_PIXELS & found.keys())), None)
        if pixels is None:
            raise NoFrames("the object has no pixel data")
        shape = _Shape(data, found, "<H" if syntax.little else ">H")
        count = shape.frames()
        if pixels.undefined:
            frames = _encapsulated(data, pixels, found, count)
        else:
            frames = _native(data, pixels, shape, count)
        return FrameTable(
            meta.transfer_syntax_uid,
            frames,
            shape.text(_PHOTOMETRIC),
            shape.number(_SAMPLES),
            shape.number(_ROWS),
            shape.number(_COLUMNS),
            shape.number(_BITS),
        )


def frame(path: Path, table: FrameTable, number: int) -> bytes:
    """Frame `number` (from 1) as stored. Raises IndexError, OSError."""
    if not 1 <= number <= len(table.frames):
        raise IndexError(f"frame {number}: this object has {len(table.frames)}")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(os.pread(fd, length, offset) for offset, length in table.frames[number - 1])
    finally:
        os.close(fd)


def metadata_json(path: Path) -> dict[str, Any]:
    """The DICOM JSON model object of PS3.18 F.2, without pixel data and without binary values.

    Available Transfer Syntax UID (0008,3002) is added, so that a viewer knows what the frames are. Values that break
    the standard are left out. Raises Unreadable or OSError.
    """
    import pydicom

    # A device's odd values are its own; pydicom would warn of each, on standard error.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    syntax = _bounded(path)
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        model: dict[str, Any] = ds.to_json_dict(
            bulk_data_threshold=0, bulk_data_element_handler=lambda _: "", suppress_invalid_tags=True
        )
    except OSError:
        raise
    except Exception as fault:
        raise Unreadable(f"the file cannot be read: {fault}") from fault
    model["00083002"] = {"vr": "UI", "Value": [syntax]}
    return dict(sorted(_without_binary(model).items()))


def _bounded(path: Path) -> str:
    """Transfer syntax of a file whose header pydicom can hold in memory. Raises Unreadable when it is too large."""
    with _mapped(path) as data:
        meta = _file_meta(data)
        syntax = TRANSFER_SYNTAXES.get(meta.transfer_syntax_uid, TRANSFER_SYNTAXES[EXPLICIT_LE])
        if syntax.deflated:
            inflater, size = zlib.decompressobj(-15), 0
            pending = bytes(data[meta.offset :])
            while pending and not inflater.eof and size <= _MAX_HEADER:
                size += len(inflater.decompress(pending, 1 << 20))
                pending = inflater.unconsumed_tail
        else:
            encoding, size = Encoding(syntax.explicit, syntax.little), 0
            for element in elements(data, meta.offset, len(data), encoding, stop=_FIRST_PIXELS):
                size = element.offset - meta.offset
        if size > _MAX_HEADER:
            raise Unreadable(f"the header is longer than {_MAX_HEADER} bytes")
        return meta.transfer_syntax_uid


def _without_binary(level: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for tag, element in level.items():
        if element.get("vr") in _BINARY or "BulkDataURI" in element:
            continue
        if element.get("vr") == "SQ":
            element = {**element, "Value": [_without_binary(item) for item in element.get("Value", ())]}
        kept[tag] = element
    return kept


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < 132:
            raise Unreadable("the file is too short to be a DICOM file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _file_meta(data: Buffer) -> FileMeta:
    if bytes(data[128:132]) != b"DICM":
        raise Unreadable("the file has no DICM mark")
    found: dict[int, str] = {}
    offset = 132
    # What follows group 0002 may be written otherwise, so its elements are taken one by one.
    while bytes(data[offset : offset + 2]) == b"\x02\0":
        element = next(elements(data, offset, len(data), _META))
        offset = element.offset + element.length
        if element.tag in (0x00020002, 0x00020003, 0x00020010):
            found[element.tag] = bytes(data[element.offset : offset])[:64].decode("latin_1").strip(" \0")
    if 0x00020010 not in found:
        raise Unreadable("the file does not say its transfer syntax")
    return FileMeta(found.get(0x00020002, ""), found.get(0x00020003, ""), found[0x00020010], offset)


@dataclass(frozen=True, slots=True)
class _Shape:
    data: Buffer
    found: dict[int, Element]
    us: str

    def number(self, tag: int) -> int:
        element = self.found.get(tag)
        if element is None or element.length < 2:
            return 0
        return int(struct.unpack_from(self.us, self.data, element.offset)[0])

    def text(self, tag: int) -> str:
        element = self.found.get(tag)
        if element is None:
            return ""
        return (
            bytes(self.data[element.offset : element.offset + min(element.length, 64)]).decode("latin_1").strip(" \0")
        )

    def frames(self) -> int:
        text = self.text(_FRAMES)
        if text and not (text.isdecimal() and 0 < int(text) < 1 << 31):
            raise NoFrames(f"Number of Frames {text!r} is no number")
        return int(text or "1")

    def frame_bits(self) -> int:
        """Bits of one native frame; PS3.3 C.7.6.3.1.2 for the subsampled colour models."""
        samples: float = self.number(_SAMPLES)
        if samples == 3:
            samples = {"YBR_FULL_422": 2, "YBR_PARTIAL_422": 2, "YBR_PARTIAL_420": 1.5}.get(self.text(_PHOTOMETRIC), 3)
        return int(self.number(_ROWS) * self.number(_COLUMNS) * samples) * self.number(_BITS)


def _native(data: Buffer, pixels: Element, shape: _Shape, count: int) -> tuple[tuple[Span, ...], ...]:
    bits = shape.frame_bits()
    size = -(-bits // 8)
    if not bits or (bits % 8 and count > 1):
        raise NoFrames("the frames do not begin at whole bytes")
    if count * size > pixels.length or pixels.offset + pixels.length > len(data):
        raise NoFrames(f"{count} frames of {size} bytes do not fit into {pixels.length} bytes of pixel data")
    return tuple(((pixels.offset + n * size, size),) for n in range(count))


def _encapsulated(data: Buffer, pixels: Element, found: dict[int, Element], count: int) -> tuple[tuple[Span, ...], ...]:
    fragments = _fragments(data, pixels.offset)
    table, fragments = fragments[0], fragments[1:]
    if not fragments:
        raise NoFrames("the pixel data are empty")
    if len(fragments) == count:
        return tuple((fragment,) for fragment in fragments)
    if count == 1:
        return (tuple(fragments),)
    starts = _basic_starts(data, table, fragments) or _extended_starts(data, found, fragments)
    if not starts:
        starts = [o for o, length in fragments if length >= 2 and bytes(data[o : o + 2]) in _IMAGE_STARTS]
    if len(starts) != count or starts[0] != fragments[0][0]:
        raise NoFrames(f"{len(fragments)} fragments cannot be told apart into {count} frames")
    frames: list[list[Span]] = [[] for _ in starts]
    for fragment in fragments:
        frames[bisect_right(starts, fragment[0]) - 1].append(fragment)
    return tuple(tuple(spans) for spans in frames)


def _fragments(data: Buffer, position: int) -> list[Span]:
    """(offset, length) of every item, the Basic Offset Table first. PS3.5 A.4."""
    found: list[Span] = []
    while True:
        if position + 8 > len(data):
            raise Truncated("the pixel data end without a delimiter")
        group, number, length = struct.unpack_from("<HHL", data, position)
        position += 8
        if group != 0xFFFE or number not in (_ITEM, _SEQUENCE_END):
            raise Unreadable("the pixel data hold something else than fragments")
        if number == _SEQUENCE_END:
            break
        if length == UNDEFINED or position + length > len(data):
            raise Truncated("a fragment is longer than the file")
        found.append((position, length))
        position += length
    if not found:
        raise NoFrames("the pixel data are empty")
    return found


def _basic_starts(data: Buffer, table: Span, fragments: list[Span]) -> list[int]:
    """Offsets of the first fragments by the Basic Offset Table, [] when there is none or it points elsewhere."""
    offset, length = table
    values = struct.unpack_from(f"<{length // 4}L", data, offset)
    return _starts(values, fragments)


def _extended_starts(data: Buffer, found: dict[int, Element], fragments: list[Span]) -> list[int]:
    """The same by the Extended Offset Table (7FE0,0001), PS3.3 C.7.6.3.1.8."""
    element = found.get(_EXTENDED_OFFSETS)
    if element is None:
        return []
    return _starts(struct.unpack_from(f"<{element.length // 8}Q", data, element.offset), fragments)


def _starts(values: tuple[int, ...], fragments: list[Span]) -> list[int]:
    base = fragments[0][0]
    known = {offset for offset, _ in fragments}
    starts = [base + value for value in values]
    return starts if all(s in known for s in starts) and starts == sorted(set(starts)) else []
