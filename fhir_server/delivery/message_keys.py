"""What a received HL7 v2 message can be found by before anybody knows what it means, also when it is refused.

Hides where a message names its control id, its stay, its sender and the professionals it speaks of.

Sources: HL7 v2.5 chapters 3, 4, 7, 9, 10 and 15 (the fields of type XCN); ANS "Types de données des échanges HL7 v2":
a professional is named by RPPS or by the national id `8` + RPPS under the authority ASIP-SANTE-PS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hl7v2.message import Message

Keys = tuple[tuple[str, str], ...]
# The fields that name a professional: the author, who asks, who answers for it, who is told.
_PEOPLE = (
    ("ORC", (10, 11, 12)),
    ("OBR", (10, 16, 28)),
    ("TXA", (5, 9, 10, 11, 22)),
    ("PV1", (7, 8, 9, 17)),
    ("ROL", (4,)),
    ("PRT", (5,)),
    ("SCH", (12, 16, 20)),
    ("AIP", (3,)),
    ("EVN", (5,)),
    ("OBX", (16,)),
)
_SEGMENTS, _REPETITIONS, MOST_PEOPLE = 20, 5, 20
_RPPS = re.compile(r"8?([0-9]{11})")
_AUTHORITY = frozenset({"ASIP-SANTE-PS", "1.2.250.1.71.4.2.1"})
_KINDS = frozenset({"RPPS", "IDNPS"})


def keys(msg: Message, finess: str) -> Keys:
    """Control id, stay, the establishment (`finess`) and at most MOST_PEOPLE professionals, as (kind, value)."""
    own = (("msh-10", msg.text("MSH-10")), ("iep", msg.text("PV1-19.1").strip('"')), ("finess", finess))
    people: dict[str, None] = {}
    for rpps in _named(msg):
        people[rpps] = None
        if len(people) == MOST_PEOPLE:
            break
    return (*own, *(("rpps", rpps) for rpps in people))


def _named(msg: Message) -> Iterator[str]:
    """The RPPS numbers a message names, 11 digits each; of a long message those of its first segments."""
    for name, fields in _PEOPLE:
        for segment in msg.all(name)[:_SEGMENTS]:
            for field in fields:
                for nth in range(1, min(segment.repeated(field), _REPETITIONS) + 1):
                    value = segment.leaf(field, nth, 1, 1)
                    found = _RPPS.fullmatch(value)
                    if found and _is_rpps(*(segment.leaf(field, nth, *spot) for spot in ((13, 1), (9, 1), (9, 2)))):
                        yield found[1]


def _is_rpps(kind: str, authority: str, oid: str) -> bool:
    """Whether an identifier is said to be one: by its type, or where that is left out by who gave it."""
    return kind.upper() in _KINDS or (not kind and bool(_AUTHORITY & {authority, oid}))
