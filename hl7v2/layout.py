"""Where an HL7 v2 message begins, which delimiters it declares, and where its segments stand.

Hides the line ends and dirt of real senders: CR (the standard), LF, CRLF, a byte order mark, a start block left in,
blank lines, a missing last line end. Works on bytes: delimiters are ASCII in every accepted character set.

Source: HL7 v2.5 chapter 2 (2.5.4, 2.6.1), http://www.hl7.eu/HL7v2x/v25/std25/ch02.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from hl7v2.text import Separators

MAX_SEGMENTS: Final = 100_000
"""A bound that no honest message reaches; beyond it a message is refused instead of eating the memory."""

_BOM: Final = b"\xef\xbb\xbf"
_SEGMENT_NAME: Final = re.compile(rb"[A-Z][A-Z0-9]{2}\Z")
_HEADERS: Final = (b"MSH", b"FHS", b"BHS")
_BLANK: Final = re.compile(rb"[\x0b\r\n \0]*")

Span = tuple[str, int, int]
"""(segment name or '' when it is none, start, end)."""
Note = tuple[str, str]
"""(location, remark)."""


class Unreadable(ValueError):
    """These bytes are no HL7 v2 message. `code` is from HL7 table 0357, `location` an ERR-2 such as `MSH^1^2`."""

    def __init__(self, text: str, *, location: str = "MSH^1", code: str = "100") -> None:
        super().__init__(text)
        self.text = text
        self.location = location
        self.code = code


def header_start(raw: bytes) -> tuple[int, list[Note]]:
    """Offset of MSH, and what stood before it."""
    notes: list[Note] = []
    if raw.startswith(b"MSH") and len(raw) >= 5:
        return 0, notes
    begin = 0
    if raw.startswith(_BOM):
        begin = len(_BOM)
        notes.append(("MSH", "byte order mark before the message"))
    blank = _BLANK.match(raw, begin)
    begin = blank.end() if blank else begin
    if begin and b"\x0b" in raw[:begin]:
        notes.append(("MSH", "start block (VT) inside the message"))
    name = raw[begin : begin + 3]
    if name in _HEADERS[1:]:
        raise Unreadable(f"a batch ({name.decode()}) is not accepted; send its messages one by one", code="200")
    if name != b"MSH" or len(raw) < begin + 5:
        raise Unreadable("no MSH segment at the beginning: this is no HL7 v2 message")
    return begin, notes


def delimiters(raw: bytes, begin: int) -> Separators:
    """What MSH-1 and MSH-2 declare; a sign that is missing, not printable or used twice counts as not declared."""
    return _declared(raw[begin + 3 : begin + 16])


@lru_cache(maxsize=64)
def _declared(signed: bytes) -> Separators:
    """`signed` begins with MSH-1."""
    field = signed[:1]
    if not field.isascii() or field.isalnum() or field in (b"\r", b"\n", b"\0"):
        raise Unreadable("MSH-1 is no usable field separator", location="MSH^1^1")
    tail = re.split(rb"[\r\n]", signed[1:].partition(field)[0])[0]
    signs = [chr(code) if 0x20 < code < 0x7F and not chr(code).isalnum() else "" for code in tail[:5]]
    seen = {field.decode("ascii")}
    for number, sign in enumerate(signs):
        # A sign used twice would make two levels indistinguishable: the first one keeps it.
        signs[number] = "" if sign in seen else sign
        seen.add(sign)
    signs += [""] * (5 - len(signs))
    return Separators(field.decode("ascii"), *signs)


def segment_spans(raw: bytes, begin: int, field: bytes) -> tuple[tuple[Span, ...], list[Note]]:
    """Spans of the segments. CR always ends one; LF does where the message uses LF, or a segment name follows."""
    notes: list[Note] = []
    cr, lf = b"\r" in raw, b"\n" in raw
    if lf:
        notes.append(("MSH", f"segments end with {'CRLF' if cr else 'LF'} instead of CR"))
    spans: list[Span] = []
    start = begin
    ends = _mixed_ends(raw, begin, field) if cr and lf else _plain_ends(raw, begin, b"\r" if cr else b"\n")
    for number, (end, after) in enumerate(ends):
        if number > MAX_SEGMENTS:
            raise Unreadable(f"more than {MAX_SEGMENTS} lines", code="198")
        _add(spans, raw, start, end, field)
        start = after
    if start < len(raw):
        _add(spans, raw, start, len(raw), field)
        notes.append(("MSH", "no segment end after the last segment"))
    return tuple(spans), notes


def _plain_ends(raw: bytes, begin: int, sign: bytes) -> Iterator[tuple[int, int]]:
    end = raw.find(sign, begin)
    while end >= 0:
        yield end, end + 1
        end = raw.find(sign, end + 1)


def _mixed_ends(raw: bytes, begin: int, field: bytes) -> Iterator[tuple[int, int]]:
    ends = re.compile(rb"\r[\r\n]*|\n(?=[A-Z][A-Z0-9]{2}" + re.escape(field) + rb"|[\r\n]|\Z)")
    return ((match.start(), match.end()) for match in ends.finditer(raw, begin))


def _add(spans: list[Span], raw: bytes, start: int, end: int, field: bytes) -> None:
    name = _named(raw[start : min(end, start + 4)], field)
    if name or raw[start : min(end, start + 64)].strip(b" \t\0\x0b\x1c"):
        spans.append((name, start, end))


@lru_cache(maxsize=512)
def _named(begin: bytes, field: bytes) -> str:
    """The segment name with which a line begins, '' when it is none; `begin` is at most four bytes of it."""
    name = begin if len(begin) <= 3 else begin.partition(field)[0]
    return name.decode("latin-1") if _SEGMENT_NAME.match(name) else ""
