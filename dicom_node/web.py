"""DICOMweb answers as bytes: instances, frames and metadata, in the form the client accepts. No HTTP framework.

Hides media ranges, transfer syntax parameters and multipart framing. Nothing is ever transcoded: what a client could
only get by transcoding is refused with NotAcceptable, which says what is there.

Sources: PS3.18 sections 8.6.1.2 (multipart), 8.7.3 (media types, transfer syntaxes), 8.7.8 (selection), 10.4.
https://dicom.nema.org/medical/dicom/current/output/chtml/part18/sect_8.7.html
https://dicom.nema.org/medical/dicom/current/output/chtml/part18/sect_10.4.html
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_node import archive
from dicom_node.contexts import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, JPEG_BASELINE, TRANSFER_SYNTAXES

Answer = tuple[str, Iterator[bytes]]

DICOM, DICOM_JSON, OCTETS, MULTIPART = (
    "application/dicom",
    "application/dicom+json",
    "application/octet-stream",
    "multipart/related",
)
_MAX_RANGES = 64


class NotAcceptable(ValueError):
    """Nothing of what the client accepts can be given without transcoding (HTTP 406). `available` can be."""

    def __init__(self, available: Sequence[str]) -> None:
        super().__init__(
            "This server does not transcode. Available here: " + ", ".join(available) + ". Ask for one of them, "
            "or add transfer-syntax=* to take an object as it was received."
        )
        self.available = tuple(available)


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One element of an Accept header. For multipart/related, `inner` is its type parameter."""

    media_type: str
    inner: str
    transfer_syntax: str
    quality: float

    @property
    def part(self) -> str:
        """The media type wanted for the content itself."""
        return self.inner if self.media_type == MULTIPART else self.media_type


@dataclass(frozen=True, slots=True)
class Whole:
    """A stored object: the transfer syntax of its file, and what reads the file from its beginning."""

    transfer_syntax: str
    content: Callable[[], Iterator[bytes]]


def parse_accept(header: str) -> tuple[MediaRange, ...]:
    """Media ranges by falling quality, those with q=0 left out; an empty header accepts everything."""
    ranges = []
    for text in _split(header, ",")[:_MAX_RANGES]:
        media_type, _, parameters = text.partition(";")
        values = {}
        for parameter in _split(parameters, ";"):
            name, _, value = parameter.partition("=")
            values[name.strip().lower()] = value.strip().strip('"')
        try:
            quality = float(values.get("q", "1"))
        except ValueError:
            quality = 0.0
        inner = values.get("type", "*/*").lower()
        ranges.append(MediaRange(media_type.strip().lower(), inner, values.get("transfer-syntax", ""), quality))
    if not ranges:
        return (MediaRange("*/*", "*/*", "", 1.0),)
    return tuple(sorted((r for r in ranges if r.quality > 0), key=lambda r: -r.quality))


def instances(objects: Sequence[Whole], accept: str = "") -> Answer:
    """Whole objects, each opened when its turn comes. Raises NotAcceptable.

    One object may be asked for as plain application/dicom; several are always multipart/related.
    """
    syntaxes = [one.transfer_syntax for one in objects]
    for wanted in parse_accept(accept):
        single = wanted.media_type in (DICOM, "application/*") and len(objects) == 1
        if not single and not (_covers(wanted.media_type, MULTIPART) and _covers(wanted.part, DICOM)):
            continue
        if all(_given(wanted, syntax, DICOM) for syntax in syntaxes):
            if single:
                return f"{DICOM}; transfer-syntax={syntaxes[0]}", objects[0].content()
            parts = ((_described(DICOM, one.transfer_syntax), one.content()) for one in objects)
            return multipart(DICOM, parts)
    raise NotAcceptable(sorted({_described(DICOM, syntax) for syntax in syntaxes}))


def frames(path: Path, table: archive.FrameTable, numbers: Sequence[int], accept: str = "") -> Answer:
    """Frames by number (from 1), bytes as stored. One frame may be asked for without multipart.

    Raises NotAcceptable, or IndexError for a frame that does not exist (HTTP 404), before any byte is given.
    """
    for number in numbers:
        if not 1 <= number <= len(table.frames):
            raise IndexError(f"frame {number}: this object has {len(table.frames)}")
    syntax = table.transfer_syntax
    media_type = _frame_type(table)
    described = f"{media_type}; transfer-syntax={_content_syntax(syntax)}"
    for wanted in parse_accept(accept) if media_type else ():
        as_octets = wanted.part == OCTETS and wanted.transfer_syntax in ("*", syntax)
        if not (_covers(wanted.part, media_type) or as_octets) or not _given(wanted, syntax, media_type):
            continue
        if as_octets:
            described = f"{OCTETS}; transfer-syntax={_content_syntax(syntax)}"
        if _covers(wanted.media_type, MULTIPART):
            kind = OCTETS if as_octets else media_type
            return multipart(kind, ((described, iter((archive.frame(path, table, n),))) for n in numbers))
        if len(numbers) == 1:
            return described, iter((archive.frame(path, table, numbers[0]),))
    raise NotAcceptable([described] if media_type else [_described(DICOM, syntax)])


def rendered(path: Path, table: archive.FrameTable, number: int) -> Answer:
    """One frame as an image any browser shows, when the stored bytes are one: JPEG Baseline in a YCbCr or grey model.

    Raises NotAcceptable otherwise, IndexError for a frame that does not exist.
    """
    plain = table.photometric in ("YBR_FULL_422", "YBR_FULL", "MONOCHROME2")
    if table.transfer_syntax != JPEG_BASELINE or not plain:
        raise NotAcceptable([_described(_frame_type(table) or DICOM, table.transfer_syntax)])
    return "image/jpeg", iter((archive.frame(path, table, number),))


def metadata(models: Iterable[Mapping[str, Any]], accept: str = "") -> Answer:
    """DICOM JSON array of `archive.metadata_json` objects, written one by one. Raises NotAcceptable."""
    offered = {DICOM_JSON, "application/json", "application/*", "*/*"}
    wanted = next((r.media_type for r in parse_accept(accept) if r.media_type in offered), None)
    if wanted is None:
        raise NotAcceptable([DICOM_JSON])
    return ("application/json" if wanted == "application/json" else DICOM_JSON), _array(models)


def multipart(media_type: str, parts: Iterable[tuple[str, Iterator[bytes]]]) -> Answer:
    """multipart/related of (Content-Type, content) parts; the boundary is random, so content cannot contain it."""
    boundary = uuid.uuid4().hex
    return f'{MULTIPART}; type="{media_type}"; boundary={boundary}', _parts(boundary, parts)


def _parts(boundary: str, parts: Iterable[tuple[str, Iterator[bytes]]]) -> Iterator[bytes]:
    before = ""
    for content_type, content in parts:
        yield f"{before}--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode()
        yield from content
        before = "\r\n"
    yield f"{before}--{boundary}--\r\n".encode()


def _array(models: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    before = "["
    for model in models:
        yield (before + json.dumps(model, ensure_ascii=False, separators=(",", ":"))).encode()
        before = ","
    yield ("]" if before == "," else "[]").encode()


def _described(media_type: str, syntax: str) -> str:
    return f"{media_type}; transfer-syntax={syntax}"


def _covers(wanted: str, offered: str) -> bool:
    return wanted in (offered, "*/*", offered.partition("/")[0] + "/*")


def _given(wanted: MediaRange, syntax: str, media_type: str) -> bool:
    """PS3.18 8.7.3: without the parameter the default syntax is meant, unless only a lossy form exists here.

    Frames of a lossless form are given to a client that named their media type, as every archive does.
    """
    if wanted.transfer_syntax:
        return wanted.transfer_syntax in ("*", syntax, _content_syntax(syntax) if media_type != DICOM else syntax)
    known = TRANSFER_SYNTAXES.get(syntax)
    if media_type == DICOM:
        return syntax == EXPLICIT_LE or (known is not None and known.lossy)
    return True


def _content_syntax(syntax: str) -> str:
    """Syntax that names a frame's bytes: native little-endian frames are those of Explicit VR Little Endian."""
    return EXPLICIT_LE if syntax == IMPLICIT_LE else syntax


def _frame_type(table: archive.FrameTable) -> str:
    """Media type of a frame; '' when serving it would mean writing it anew (big-endian words)."""
    syntax = TRANSFER_SYNTAXES.get(table.transfer_syntax)
    if syntax is None or (syntax.uid == EXPLICIT_BE and table.bits > 8):
        return ""
    return syntax.media_type


def _split(text: str, separator: str) -> list[str]:
    """Split outside double quotes; empty pieces dropped."""
    pieces, quoted, current = [], False, ""
    for character in text:
        if character == '"':
            quoted = not quoted
        if character == separator and not quoted:
            pieces.append(current)
            current = ""
        else:
            current += character
    pieces.append(current)
    return [piece for piece in pieces if piece.strip()]
