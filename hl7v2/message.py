"""HL7 v2 messages as they came: a lossless, lazy reader with copy-on-write changes.

Hides where things stand in the bytes. A message is its bytes plus the spans of its segments; fields, repetitions,
components and subcomponents are found when somebody asks. Whatever nobody changed comes back byte for byte:
unknown segments, any order, any version, line ends, trailing separators. Three states stay distinct: absent (the
message ends before it), empty, and the explicit null `""`.

Reading never judges: that is `hl7v2.check`. Only what cannot be read at all raises `Unreadable`.

Sources: HL7 v2.5 and v2.6 chapter 2, http://www.hl7.eu/HL7v2x/v25/std25/ch02.html.
"""

from __future__ import annotations

import binascii
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from hl7v2.layout import Unreadable, delimiters, header_start, segment_spans
from hl7v2.places import REMEMBERED, Path, beginnings, part_at, path
from hl7v2.text import NULL, STANDARD, Charset, Separators, detect, escape, unescape

MAX_PARTS: Final = 10_000
"""A bound that no honest element reaches; beyond it a message is refused instead of eating the memory."""

State = Literal["absent", "empty", "null", "valued"]

_LATIN: Final = Charset("latin-1", "")
"""What a header is read in to learn how the message is to be read."""
_LEVELS: Final = ("repetition", "component", "subcomponent")
_SHORT: Final = 512
"""Bytes of a field that are copied to be split, which is quicker than to look for each separator."""
_REMEMBERED_SEGMENTS: Final = 500
"""Segments of a message of which it is kept where their fields begin: some 5 MB at most."""


@dataclass(frozen=True, slots=True)
class Value:
    """A place in a message: a field (level 0), repetition (1), component (2) or subcomponent (3).

    `start < 0` means absent. `verbatim` marks data that has no escape sequences (MSH-2, ED-5); `ed` a field of
    type ED, whose fifth component is such data.
    """

    message: Message
    start: int
    end: int
    level: int
    verbatim: bool = False
    ed: bool = False

    @property
    def state(self) -> State:
        if self.start < 0:
            return "absent"
        if self.start == self.end:
            return "empty"
        return "null" if self.end - self.start == 2 and self.raw == b'""' else "valued"

    @property
    def valued(self) -> bool:
        """There is content: neither absent, nor empty, nor `""`, nor separators only."""
        return self.state == "valued" and (self.verbatim or bool(self.raw.strip(self.message.delimiters)))

    @property
    def raw(self) -> bytes:
        return self.message.raw[self.start : self.end] if self.start >= 0 else b""

    @property
    def view(self) -> memoryview:
        """The bytes without a copy."""
        return memoryview(self.message.raw)[max(self.start, 0) : max(self.end, 0)]

    @property
    def encoded(self) -> str:
        """The whole element as text, delimiters and escape sequences as they stand."""
        return self.message.charset.decode(self.raw)

    @property
    def value(self) -> str | None:
        """None = absent, '' = empty, `""` = null, else the text of the first leaf.

        Reading the first leaf of a richer element is the rule of HL7 for receivers of an older version (2.8.3).
        """
        if self.start < 0:
            return None
        if self.verbatim:
            return self.encoded
        message, end = self.message, self.end
        for separator in message.below[self.level :]:
            found = message.raw.find(separator, self.start, end) if separator else -1
            end = end if found < 0 else found
        text = message.charset.decode(message.raw[self.start : end])
        return unescape(text, message.separators, message.charset.codec)

    @property
    def whole(self) -> str:
        """The element as one text, its escape sequences read; delimiters that stand in it stay."""
        text = self.encoded
        if self.verbatim:
            return text
        return unescape(text, self.message.separators, self.message.charset.codec)

    @property
    def text(self) -> str:
        """The text of the first leaf without surrounding blanks; '' for absent, empty and null."""
        value = (self.value or "").strip()
        return "" if value == NULL else value

    def part(self, number: int) -> Value:
        """The 1-based child one level below."""
        if self.start < 0 or self.verbatim or self.level > 2:
            return Value(self.message, -1, -1, self.level + 1)
        start, end, missing = part_at(self.message.raw, self.start, self.end, self._below(), number)
        leaf = self.ed and self.level == 1 and number == 5
        if missing:
            return Value(self.message, -1, -1, self.level + 1)
        return Value(self.message, start, end, self.level + 1, leaf, self.ed)

    def parts(self) -> tuple[Value, ...]:
        """All children one level below; () for absent and empty. Raises Unreadable beyond MAX_PARTS."""
        if self.start < 0 or self.start == self.end or self.level > 2:
            return ()
        if self.verbatim:
            return (self,)
        separator = self._below()
        count = 1 + (self.message.raw.count(separator, self.start, self.end) if separator else 0)
        if count > MAX_PARTS:
            told = f"more than {MAX_PARTS} {_LEVELS[self.level]}s in one element"
            raise Unreadable(told, location=self.message.place(self.start), code="198")
        return tuple(self._walk(separator))

    def _walk(self, separator: bytes) -> Iterator[Value]:
        start, number = self.start, 0
        while True:
            number += 1
            found = self.message.raw.find(separator, start, self.end) if separator else -1
            end = self.end if found < 0 else found
            leaf = self.ed and self.level == 1 and number == 5
            yield Value(self.message, start, end, self.level + 1, leaf, self.ed)
            if found < 0:
                return
            start = found + 1

    def _below(self) -> bytes:
        return self.message.below[self.level]

    def repetitions(self) -> tuple[Value, ...]:
        """The repetitions of a field; () when it is absent or empty."""
        return self.parts() if self.level == 0 else (self,)

    def repetition(self, number: int) -> Value:
        return self.part(number) if self.level == 0 else (self if number == 1 else Value(self.message, -1, -1, 1))

    def component(self, number: int) -> Value:
        """Component `number` of this repetition (of the first repetition, when asked of a field)."""
        return self.repetition(1).part(number) if self.level == 0 else self.part(number)

    def sub(self, component: int, number: int) -> str:
        """Text of a subcomponent; '' when there is none."""
        return self.component(component).part(number).text


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: its name, its 1-based number among those of the same name, and its span."""

    message: Message
    name: str
    number: int
    start: int
    end: int

    @property
    def raw(self) -> bytes:
        return self.message.raw[self.start : self.end]

    def field(self, number: int) -> Value:
        """The field, 1-based as HL7 counts: MSH-1 is the separator itself."""
        ed = self.name == "OBX" and number == 5 and self.field(2).text == "ED"
        verbatim = self.name == "MSH" and number < 3
        if self.name == "MSH" and number == 1:
            return Value(self.message, self.start + 3, self.start + 4, 0, True)
        start, end = self._span(number)
        return Value(self.message, start, end, 0) if start < 0 else Value(self.message, start, end, 0, verbatim, ed)

    def _span(self, number: int) -> tuple[int, int]:
        """Where a field other than MSH-1 stands; (-1, -1) when the segment ends before it."""
        message = self.message
        # In MSH the first separator is itself field 1, so its second part is field 2.
        nth = number if self.name == "MSH" else number + 1
        begins = message._begins.get(self.start) or message.begins(self.start, self.end)
        if nth < len(begins):
            return begins[nth - 1], begins[nth] - 1
        if len(begins) <= REMEMBERED:
            return -1, -1
        start, end, missing = part_at(message.raw, self.start, self.end, message.field_separator, nth)
        return (-1, -1) if missing else (start, end)

    def text(self, number: int, component: int = 1, subcomponent: int = 1) -> str:
        """Text of a leaf of the first repetition; '' for absent, empty and null."""
        return self.leaf(number, 1, component, subcomponent)

    def leaf(self, number: int, repetition: int, component: int, subcomponent: int) -> str:
        """Text of a leaf, as `Value.text` says it, without the values on the way to it."""
        if (self.name == "MSH" and number < 3) or (self.name == "OBX" and number == 5):
            return self.field(number).repetition(repetition).part(component).part(subcomponent).text
        message, (start, end) = self.message, self._span(number)
        found = message.leaf_in(start, end, (repetition, component, subcomponent))
        text = (found or "").strip()
        return "" if text == NULL else text

    def repeated(self, number: int) -> int:
        """How many repetitions a field has; 0 when it is absent or empty."""
        if self.name == "MSH" and number < 3:
            return len(self.field(number).repetitions())
        start, end = self._span(number)
        if start == end:
            return 0
        separator = self.message.below[0]
        return 1 + (self.message.raw.count(separator, start, end) if separator else 0)

    def fields(self) -> Iterator[tuple[int, Value]]:
        """(number, field) of every field that is there, from 1. Stops at MAX_PARTS."""
        if self.name not in ("MSH", "OBX") and len(begins := self.message.begins(self.start, self.end)) <= REMEMBERED:
            for number in range(1, len(begins) - 1):
                yield number, Value(self.message, begins[number], begins[number + 1] - 1, 0)
            return
        count = self.message.raw.count(self.message.field_separator, self.start, self.end)
        start = self.start
        for number in range(min(count + 1, MAX_PARTS)):
            found = self.message.raw.find(self.message.field_separator, start, self.end)
            end = self.end if found < 0 else found
            if self.name == "MSH" and number == 1:
                yield 1, self.field(1)
                yield 2, self.field(2)
            elif number:
                nth = number + 1 if self.name == "MSH" else number
                ed = self.name == "OBX" and nth == 5 and self.field(2).text == "ED"
                yield nth, Value(self.message, start, end, 0, False, ed)
            start = end + 1


@dataclass(frozen=True, slots=True)
class Encapsulated:
    """An ED value. `data` is the text of ED-5 as sent, without a copy; `decode` gives the document."""

    source: str
    type: str
    subtype: str
    encoding: str
    data: memoryview

    def decode(self) -> bytes:
        """The document: ED-4 Base64, Hex or A. Raises Unreadable when the data are not what ED-4 says."""
        encoding = self.encoding.strip().upper()
        try:
            if encoding == "BASE64":
                return _from_base64(self.data)
            return bytes.fromhex(bytes(self.data).decode("ascii")) if encoding == "HEX" else bytes(self.data)
        except (binascii.Error, ValueError) as error:
            raise Unreadable(f"ED-5 is not {self.encoding}: {error}", location="OBX^1^5^1^5", code="102") from error


def _from_base64(data: memoryview) -> bytes:
    """The bytes; only what has blanks or line ends is copied first. Raises binascii.Error."""
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except binascii.Error:
        return binascii.a2b_base64(bytes(data).translate(None, b" \t\r\n"), strict_mode=True)


class Message:
    """An HL7 v2 message. Make one with `parse`; it never changes (`set` returns another)."""

    __slots__ = ("_begins", "_named", "_places", "_segments", "below", "charset", "delimiters", "field_separator",
                 "notes", "raw", "separators", "spans")  # fmt: skip

    def __init__(
        self,
        raw: bytes,
        separators: Separators,
        charset: Charset,
        spans: tuple[tuple[str, int, int], ...],
        notes: tuple[tuple[str, str], ...],
    ) -> None:
        self.raw = raw
        self.separators = separators
        self.charset = charset
        self.spans = spans
        self.notes = notes
        self.field_separator, self.below, self.delimiters = _signs(separators)
        self._segments: tuple[Segment, ...] | None = None
        self._places: dict[str, list[tuple[int, int]]] | None = None
        self._named: dict[str, tuple[Segment, ...]] = {}
        self._begins: dict[int, list[int]] = {}

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments in the order of the message."""
        if self._segments is None:
            seen: dict[str, int] = {}
            out = []
            for name, start, end in self.spans:
                seen[name] = seen.get(name, 0) + 1
                out.append(Segment(self, name, seen[name], start, end))
            self._segments = tuple(out)
        return self._segments

    def all(self, name: str) -> tuple[Segment, ...]:
        """The segments of that name, in order."""
        found = self._named.get(name)
        if found is None:
            if self._places is None:
                self._places = {}
                for called, start, end in self.spans:
                    self._places.setdefault(called, []).append((start, end))
            places = self._places.get(name)
            if places is None:
                return ()
            found = tuple([Segment(self, name, number, *place) for number, place in enumerate(places, 1)])
            self._named[name] = found
        return found

    def first(self, name: str) -> Segment | None:
        return next(iter(self.all(name)), None)

    def at(self, where: str) -> Value:
        """The element at a path; an absent `Value` when the message does not reach so far."""
        spot = path(where)
        candidates = self.all(spot.segment)
        if spot.nth > len(candidates):
            return Value(self, -1, -1, 0)
        value = candidates[spot.nth - 1].field(spot.field)
        if spot.rep or spot.comp:
            value = value if value.verbatim and spot.rep < 2 and spot.comp < 2 else value.repetition(spot.rep or 1)
        if spot.comp and not value.verbatim:
            value = value.part(spot.comp)
        return value.part(spot.sub) if spot.sub else value

    def begins(self, start: int, end: int) -> list[int]:
        """`beginnings` of a segment, kept once they were looked for."""
        found = self._begins.get(start)
        if found is None:
            found = beginnings(self.raw, start, end, self.field_separator)
            if len(self._begins) < _REMEMBERED_SEGMENTS:
                self._begins[start] = found
        return found

    def place(self, offset: int) -> str:
        """The path of the field, repetition and component in which a byte of `raw` stands; '' outside segments."""
        number = bisect_right(self.spans, offset, key=lambda span: span[1]) - 1
        if number < 0 or not self.spans[number][0] or offset >= self.spans[number][2]:
            return ""
        name, start, _ = self.spans[number]
        nth = sum(1 for span in self.spans[: number + 1] if span[0] == name)
        where = name if nth == 1 else f"{name}[{nth}]"
        field = self.raw.count(self.field_separator, start, offset)
        if not field:
            return where
        if name in ("MSH", "FHS", "BHS"):
            return f"{where}-{field + 1}"
        begin = self.raw.rfind(self.field_separator, start, offset) + 1
        repetition, component = self.below[0], self.below[1]
        one = 1 + (self.raw.count(repetition, begin, offset) if repetition else 0)
        begin = max(begin, self.raw.rfind(repetition, begin, offset) + 1) if repetition else begin
        part = 1 + (self.raw.count(component, begin, offset) if component else 0)
        return f"{where}-{field}[{one}].{part}" if one > 1 or part > 1 else f"{where}-{field}"

    def get(self, where: str) -> str | None:
        """None = absent, '' = empty, `""` = null, else the text of the element's first leaf.

        `PID-3[2].4.2` is the second subcomponent of the fourth component of the second repetition; numbers that
        are left out are 1; `OBX[3]-5` is field 5 of the third OBX. ED-5 comes as sent, never unescaped.
        """
        spot = path(where)
        candidates = self.all(spot.segment)
        if spot.nth > len(candidates):
            return None
        if (spot.segment == "MSH" and spot.field < 3) or (spot.segment == "OBX" and spot.field == 5):
            return self.at(where).value
        start, end = candidates[spot.nth - 1]._span(spot.field)
        return self.leaf_in(start, end, (spot.rep or 1, spot.comp or 1, spot.sub or 1))

    def leaf_in(self, start: int, end: int, numbers: tuple[int, int, int]) -> str | None:
        """Text of the leaf with these numbers (repetition, component, subcomponent) in the bytes of a field; None when
        it is absent."""
        if start < 0:
            return None
        if end - start <= _SHORT:
            piece = self.raw[start:end]
            if not piece or piece.isalnum():  # nothing that could separate or escape
                return self.charset.decode(piece) if numbers == (1, 1, 1) else None
            for separator, number in zip(self.below, numbers, strict=True):
                if separator and separator in piece:
                    parts = piece.split(separator, number)
                    if number > len(parts):
                        return None
                    piece = parts[number - 1]
                elif number > 1:
                    return None
        else:
            for separator, number in zip(self.below, numbers, strict=True):
                start, end, missing = part_at(self.raw, start, end, separator, number)
                if missing:
                    return None
            piece = self.raw[start:end]
        return unescape(self.charset.decode(piece), self.separators, self.charset.codec)

    def text(self, where: str) -> str:
        """Like `get`, without surrounding blanks; '' for absent, empty and null alike."""
        text = (self.get(where) or "").strip()
        return "" if text == NULL else text

    def set(self, where: str, value: str | None) -> Message:
        """A copy with one element changed; every other byte is the same.

        `value` is plain text (it gets escaped; ED-5 does not), NULL for `""`, None to empty the element. A path
        without a repetition means the first one; without a component the whole repetition. Raises KeyError when
        the segment is not there, ValueError when the character set of the message cannot hold the text.
        """
        spot = path(where)
        segment = next((s for s in self.all(spot.segment) if s.number == spot.nth), None)
        if segment is None:
            raise KeyError(f"there is no segment {spot.segment}[{spot.nth}] in this message")
        if spot.segment == "MSH" and spot.field < 3:
            raise ValueError("MSH-1 and MSH-2 declare the delimiters; write a new message to change them")
        plain = value is None or value == NULL or (spot.comp == 5 and segment.field(spot.field).ed)
        text = (value or "") if plain else escape(value or "", self.separators)
        new = text.encode(self.charset.codec)
        start, end, padding = self._place(segment, spot)
        return parse(
            b"".join((self.raw[:start], padding, new, self.raw[end:])),
            charset=self.charset.codec if self.charset.note else None,
        )

    def _place(self, segment: Segment, spot: Path) -> tuple[int, int, bytes]:
        """Where to write, and the delimiters to put before when the element does not exist yet."""
        nth = spot.field if segment.name == "MSH" else spot.field + 1
        numbers = [nth, spot.rep or 1, *([spot.comp] if spot.comp else []), *([spot.sub] if spot.sub else [])]
        start, end, padding = segment.start, segment.end, b""
        for separator, number in zip((self.field_separator, *self.below), numbers, strict=False):
            if number > 1 and not separator:
                raise ValueError("this message declares no delimiter for that level in MSH-2")
            if padding:
                padding += separator * (number - 1)
                continue
            start, end, missing = part_at(self.raw, start, end, separator, number)
            padding = separator * missing
        return start, end, padding

    def encapsulated(self, segment: Segment) -> Encapsulated:
        """OBX-5 of type ED."""
        value = segment.field(5).repetition(1)
        one, two, three, four = (value.part(n).text for n in (1, 2, 3, 4))
        return Encapsulated(one, two, three, four, value.part(5).view)

    # What every consumer asks first.

    @property
    def kind(self) -> str:
        """MSH-9.1, such as `ADT`."""
        return self.text("MSH-9.1")

    @property
    def trigger(self) -> str:
        """MSH-9.2, such as `A01` (EVN-1 when MSH-9 does not name it)."""
        return self.text("MSH-9.2") or self.text("EVN-1")

    @property
    def control_id(self) -> str:
        """MSH-10."""
        return self.text("MSH-10")

    @property
    def version(self) -> str:
        """MSH-12.1, such as `2.5`."""
        return self.text("MSH-12.1")


@lru_cache(maxsize=64)
def _signs(separators: Separators) -> tuple[bytes, tuple[bytes, ...], bytes]:
    """The separator of fields, those of the three levels below, and these with a blank."""
    below = tuple(
        sign.encode("ascii") for sign in (separators.repetition, separators.component, separators.subcomponent)
    )
    return separators.field.encode("ascii"), below, b"".join(below) + b" "


def parse(raw: bytes, *, charset: str | None = None, fallback: str = "windows-1252") -> Message:
    """Read a message without changing it.

    `charset` (an HL7 table 0211 value or a codec name) overrules MSH-18; `fallback` is what a
    message is read in that is neither what MSH-18 says nor UTF-8. Accepted: CR, LF and CRLF line ends, a
    byte order mark, a leading VT, blank lines, no last line end, any delimiters. What was tolerated stands in
    `Message.notes` as (location, remark). Raises Unreadable when there is no MSH or more than MAX_SEGMENTS lines.
    """
    begin, notes = header_start(raw)
    separators = delimiters(raw, begin)
    spans, more = segment_spans(raw, begin, separators.field.encode("ascii"))
    made = Message(raw, separators, _LATIN, spans, ())
    made.charset = found = detect(raw, Segment(made, "MSH", 1, *spans[0][1:]).text(18), charset, fallback)
    if found.note:
        more.append(("MSH-18", found.note))
    made.notes = (*notes, *more)
    return made


__all__ = [
    "NULL",
    "STANDARD",
    "Charset",
    "Encapsulated",
    "Message",
    "Path",
    "Segment",
    "Separators",
    "Unreadable",
    "Value",
    "escape",
    "parse",
    "path",
    "unescape",
]
