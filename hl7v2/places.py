"""Addresses inside a message, and where a part of an element stands in its bytes.

Hides how parts are found: by looking for separators, which are ASCII in every accepted character set.

Source: HL7 v2.5 chapter 2 (2.5.4 delimiters), http://www.hl7.eu/HL7v2x/v25/std25/ch02.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Final

REMEMBERED: Final = 256
"""Parts of a segment whose places are kept once one of them was looked for."""
_COPIED: Final = 64 << 10
"""Bytes of a segment that may be copied to find its fields at once."""
_PATH: Final = re.compile(
    r"(?P<segment>[A-Z][A-Z0-9]{2})(?:\[(?P<nth>\d+)\])?-(?P<field>\d+)(?:\[(?P<rep>\d+)\])?"
    r"(?:\.(?P<comp>\d+)(?:\.(?P<sub>\d+))?)?\Z"
)


@dataclass(frozen=True, slots=True)
class Path:
    """An address inside a message, all numbers 1-based: `OBX[3]-5[1].2.1`. 0 = not given."""

    segment: str
    nth: int
    field: int
    rep: int
    comp: int
    sub: int


@lru_cache(maxsize=4096)
def path(text: str) -> Path:
    """Read `PID-3`, `PID-3[2].4.2`, `OBX[3]-5`. Raises ValueError for anything else."""
    match = _PATH.match(text)
    if not match:
        raise ValueError(f"{text!r} is no HL7 path; write it like PID-3[2].4.2 or OBX[3]-5")
    part = match.groupdict()
    numbers = {key: int(part[key] or 0) for key in ("field", "rep", "comp", "sub")}
    if not numbers["field"] or any(part[key] is not None and not int(part[key]) for key in ("nth", *numbers)):
        raise ValueError(f"{text!r}: HL7 counts from 1")
    return Path(part["segment"], int(part["nth"] or 1), **numbers)


def beginnings(raw: bytes, start: int, end: int, separator: bytes) -> list[int]:
    """Where the parts of a segment begin, its name first, and one byte behind the end of the last; of the first
    REMEMBERED parts when there are more."""
    begins = [start]
    for length in islice(_lengths(raw, start, end, separator), REMEMBERED):
        start += length + 1
        begins.append(start)
    return begins


def _lengths(raw: bytes, start: int, end: int, separator: bytes) -> Iterator[int]:
    """How long the parts are."""
    if end - start <= _COPIED:
        return map(len, raw[start:end].split(separator, REMEMBERED))
    return _looked_for(raw, start, end, separator)


def _looked_for(raw: bytes, start: int, end: int, separator: bytes) -> Iterator[int]:
    found = raw.find(separator, start, end)
    while found >= 0:
        yield found - start
        start, found = found + 1, raw.find(separator, found + 1, end)
    yield end - start


def part_at(raw: bytes, start: int, end: int, separator: bytes, number: int) -> tuple[int, int, int]:
    """Span of the 1-based part, and how many separators are missing before it could exist."""
    if number > 1:
        for passed in range(number - 1):
            found = raw.find(separator, start, end) if separator else -1
            if found < 0:
                return end, end, number - 1 - passed
            start = found + 1
    found = raw.find(separator, start, end) if separator else -1
    return start, end if found < 0 else found, 0
