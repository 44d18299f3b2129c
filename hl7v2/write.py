"""Write HL7 v2 segments from Python values.

Hides delimiters, escaping and trailing emptiness. A field is text, a tuple of components (a component may itself be
a tuple of subcomponents) or a list of repetitions; None and '' are empty. Text is escaped; `Raw` bytes are not (the
base64 of ED-5, a field copied from another message with the same delimiters).

Sources: HL7 v2.5 and v2.6 chapter 2 (message construction rules 2.6, DTM 2.A.22).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

from hl7v2.text import NULL, STANDARD, Separators, codec_of, encode, escape


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes to write as they are: never escaped, never encoded again."""

    data: bytes


Leaf = str | Raw | None
Component = Leaf | tuple[Leaf, ...]
Repetition = Leaf | tuple[Component, ...]
Field = Repetition | list[Repetition]
Fields = Mapping[int, Field]


@dataclass(frozen=True, slots=True)
class Written:
    """A finished message; `replaced` holds (location, sign) of what the character set could not express."""

    raw: bytes
    replaced: tuple[tuple[str, str], ...] = ()


_END: Final = b"\r"


def message(
    segments: Sequence[tuple[str, Fields]], *, charset: str = "UNICODE UTF-8", separators: Separators = STANDARD
) -> Written:
    """The segments in that order, each ended by CR; MSH-1 and MSH-2 are filled in.

    `charset` is the HL7 table 0211 value to encode with; the caller puts it into MSH-18. The bytes depend on the
    arguments only.
    """
    codec = codec_of(charset)
    if not codec:
        raise ValueError(f"unknown character set {charset!r}; use UNICODE UTF-8, 8859/15 or 8859/1")
    pen = _Pen(separators, codec, [])
    counts: dict[str, int] = {}
    parts: list[bytes] = []
    for name, fields in segments:
        counts[name] = counts.get(name, 0) + 1
        parts += [pen.segment(name, fields, counts[name]), _END]
    return Written(b"".join(parts), tuple(pen.replaced))


@dataclass(frozen=True, slots=True)
class _Pen:
    separators: Separators
    codec: str
    replaced: list[tuple[str, str]]

    def segment(self, name: str, fields: Fields, number: int) -> bytes:
        separator = self.separators.field.encode(self.codec)
        head = [name.encode("ascii")]
        if name == "MSH":
            head.append(self.separators.encoding_characters.encode("ascii"))
        first = len(head) + (name == "MSH")
        last = max(fields, default=0)
        where = name if number == 1 else f"{name}[{number}]"
        body = [self.field(fields.get(n), f"{where}-{n}") for n in range(first, last + 1)]
        return separator.join(_trimmed([*head, *body], keep=len(head)))

    def field(self, value: Field, where: str) -> bytes:
        reps = value if isinstance(value, list) else [value]
        written = [self.parts(rep, where, self.separators.component) for rep in reps]
        return self.separators.repetition.encode(self.codec).join(_trimmed(written))

    def parts(self, value: Repetition, where: str, separator: str) -> bytes:
        if not isinstance(value, tuple):
            return self.leaf(value, where)
        below = self.separators.subcomponent
        written = [
            self.parts(part, f"{where}.{n}", below) if isinstance(part, tuple) else self.leaf(part, f"{where}.{n}")
            for n, part in enumerate(value, 1)
        ]
        return separator.encode(self.codec).join(_trimmed(written))

    def leaf(self, value: Leaf, where: str) -> bytes:
        if value is None:
            return b""
        if isinstance(value, Raw):
            return value.data
        text = value if value == NULL else escape(value, self.separators)
        data, missing = encode(text, self.codec)
        self.replaced.extend((where, sign) for sign in missing)
        return data


def _trimmed(parts: list[bytes], keep: int = 0) -> list[bytes]:
    count = len(parts)
    while count > keep and not parts[count - 1]:
        count -= 1
    return parts[:count]


def dtm(moment: datetime) -> str:
    """`YYYYMMDDHHMMSS+ZZZZ` of an aware datetime in its own zone; without offset when it is naive."""
    return moment.strftime("%Y%m%d%H%M%S%z")


def day(when: date) -> str:
    """`YYYYMMDD`."""
    return when.strftime("%Y%m%d") if when.year > 999 else f"{when.year:04d}{when:%m%d}"


def lines(raw: bytes) -> Iterator[bytes]:
    """The segments of a written message without their CR, for showing."""
    return iter(raw.rstrip(_END).split(_END))
