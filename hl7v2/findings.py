"""One remark about a message, and how a remark is made from a place in it.

Hides how a place becomes a path and a span of bytes. Every rule book (`check`, `versions`, `overlays`) speaks in these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hl7v2.message import Message, Segment, Value
from hl7v2.tables import Severity

MOST_SEGMENTS: Final = 20
"""Segments of one name that are judged; a message of thousands is not judged thousands of times."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark. `location` is a path (`PID-5[1].1`), `code` from table 0357, `rule` such as `pam.fr/ZBE-4/table`,
    `span` the bytes it speaks of; (-1, -1) = they are not there."""

    location: str
    rule: str
    code: str
    text: str
    severity: Severity = "error"
    span: tuple[int, int] = (-1, -1)


def at(msg: Message, where: str, rule: str, code: str, text: str, severity: Severity = "error") -> Finding:
    """A remark about the element at a path."""
    value: Value = msg.at(where)
    return Finding(where, rule, code, text, severity, (value.start, value.end))


def within(
    segment: Segment, tail: str, value: Value, rule: str, code: str, text: str, severity: Severity = "error"
) -> Finding:
    """A remark about an element of a segment; `tail` is the path behind the segment's name (`-5[1].1`)."""
    return Finding(name_of(segment) + tail, rule, code, text, severity, (value.start, value.end))


def name_of(segment: Segment) -> str:
    """`OBX` for the first, `OBX[2]` for the second."""
    return segment.name if segment.number == 1 else f"{segment.name}[{segment.number}]"
