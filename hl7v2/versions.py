"""What base HL7 v2 demands of a message of its own version, 2.1 to 2.8.2.

Hides which version made a field required, let it repeat, or knew an event first. Everything here is a warning: senders
of every version break these rules, and nothing is lost by reading on. What cannot be integrated is an error elsewhere
(`hl7v2.tables`, `hl7v2.overlays`). A version nobody knows is judged as 2.5.

Sources: HL7 v2.1 to v2.8.2, chapters 2 to 4, 7, 9, 10 and 15 (https://www.hl7.org/implement/standards/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from hl7v2.findings import MOST_SEGMENTS, Finding, at, within
from hl7v2.message import Message, Segment

ORDER: Final = ("2.1", "2.2", "2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7", "2.7.1", "2.8", "2.8.1", "2.8.2")
_RANK: Final = {version: rank for rank, version in enumerate(ORDER)}
_USUAL: Final = "2.5"

REQUIRED: Final[Mapping[str, tuple[tuple[int, str, str], ...]]] = {
    "EVN": ((1, "2.1", "2.3"),),
    "MSA": ((1, "2.1", ""), (2, "2.1", "")),
    "ERR": ((3, "2.5", ""), (4, "2.5", "")),
    "ROL": ((2, "2.3", ""), (3, "2.3.1", ""), (4, "2.3", "")),
    "ORC": ((1, "2.1", ""),),
    "OBR": ((4, "2.1", ""),),
    "OBX": ((3, "2.1", ""), (2, "2.2", "2.3.1"), (11, "2.2", "")),
    "TXA": ((1, "2.3", ""), (2, "2.3", ""), (12, "2.3", ""), (17, "2.3", "")),
    "SCH": ((6, "2.3", ""), (11, "2.3", "2.4"), (16, "2.3", ""), (20, "2.3", "")),
    "RGS": ((1, "2.3", ""),),
    "AIS": ((1, "2.3", ""), (3, "2.3", "")),
    "AIP": ((1, "2.3", ""),),
    "AIL": ((1, "2.3", ""),),
    "IPC": ((1, "2.5", ""), (2, "2.5", ""), (3, "2.5", ""), (4, "2.5", "")),
    "SPM": ((4, "2.5", ""),),
    "PRT": ((2, "2.7", ""), (4, "2.7", "")),
}
"""Segment -> (field, first version that requires it, last one or ''). MSH, PID, PV1 and MRG: see `tables.REQUIRED`."""

REPEATING: Final[Mapping[str, Mapping[str, tuple[int, ...]]]] = {
    "MSH": {"2.3.1": (18,), "2.4": (21,)},
    "EVN": {"2.3.1": (5,), "2.7": (1,)},
    "PID": {"2.1": (9, 13, 14), "2.2": (3, 11, 26), "2.3": (16,), "2.3.1": (4, 5, 6, 10, 21, 22), "2.4": (32,),
            "2.5": (39,), "2.6": (38,), "2.7": (2, 12, 19, 20, 28, 40)},
    "PV1": {"2.1": (9, 20, 24, 25, 26, 27), "2.2": (15,), "2.3": (52,), "2.3.1": (7, 8, 17), "2.4": (45,),
            "2.7": (40,), "2.8": (50,)},
    "MRG": {"2.3": (1, 2), "2.3.1": (7,), "2.7": (4,), "2.8": (6,)},
    "ORC": {"2.1": (14,), "2.2": (7,), "2.3": (2, 12), "2.3.1": (10, 11, 19, 21, 22, 23, 24), "2.7": (33,),
            "2.8": (34,)},
    "OBR": {"2.1": (10, 16, 17, 27, 28, 31), "2.2": (33, 34, 35), "2.3": (2, 38, 39, 43), "2.3.1": (45,),
            "2.4": (46, 47), "2.7": (5, 6, 13, 14, 15, 53)},
    "OBX": {"2.1": (5, 8), "2.3": (17,), "2.3.1": (9, 16), "2.4": (18,), "2.5": (10,),
            "2.5.1": (20, 21, 22, 23, 24, 25), "2.7": (26,), "2.8": (4, 13, 28), "2.8.1": (29,), "2.8.2": (30,)},
    "NTE": {"2.1": (3,)},
    "TXA": {"2.3": (8, 10, 14, 17, 22, 23), "2.3.1": (5, 9, 11), "2.7": (24, 25)},
    "SCH": {"2.3": (11, 21), "2.3.1": (12, 14, 16, 18, 20), "2.4": (26, 27), "2.7": (9,)},
}  # fmt: skip
"""Segment -> first version -> fields that may repeat from then on. Segments that are not listed are not judged."""

SINCE: Final[Mapping[str, str]] = {
    **{f"ADT^A{number}": "2.2" for number in (25, 26, 27, 28, 31)},
    **{f"ADT^A{number}": "2.3" for number in (38, 40, 44, 47)},
    **{f"ADT^A{number}": "2.4" for number in (52, 53, 54, 55)},
    **{f"MDM^{event}": "2.3" for event in ("T02", "T04", "T10")},
    **{f"SIU^{event}": "2.3" for event in ("S12", "S13", "S14", "S15")},
    "OMI^O23": "2.5",
}
"""Events younger than version 2.1 -> the version that brought them."""


def judge(msg: Message) -> Iterator[Finding]:
    """What a message leaves out, repeats or uses that its own version (MSH-12) does not allow; warnings all."""
    version = msg.version if msg.version in _RANK else _USUAL
    rank = _RANK[version]
    born = SINCE.get(f"{msg.kind}^{msg.trigger}", ORDER[0])
    if rank < _RANK[born]:
        text = f"{msg.kind}^{msg.trigger} exists since version {born}; MSH-12 says {version}"
        yield at(msg, "MSH-12", "v2/MSH-9/since", "203", text, "warning")
    for name, fields in REQUIRED.items():
        wanted = [n for n, first, last in fields if _RANK[first] <= rank <= _RANK.get(last, rank)]
        for segment in msg.all(name)[:MOST_SEGMENTS] if wanted else ():
            yield from _required(segment, wanted, version)
    for name, by_version in REPEATING.items():
        free = {n for first, numbers in by_version.items() if _RANK[first] <= rank for n in numbers}
        for segment in msg.all(name)[:MOST_SEGMENTS]:
            yield from _repeated(segment, free, version)


def _required(segment: Segment, wanted: list[int], version: str) -> Iterator[Finding]:
    for number in wanted:
        value = segment.field(number)
        if not value.valued:
            told = f"{segment.name}-{number} is required in version {version}"
            rule = f"v2/{segment.name}-{number}/required"
            yield within(segment, f"-{number}", value, rule, "101", told, "warning")


def _repeated(segment: Segment, free: set[int], version: str) -> Iterator[Finding]:
    sign = segment.message.below[0]
    if not sign or segment.message.raw.find(sign, segment.start, segment.end) < 0:
        return
    for number, value in segment.fields():
        if number in free or value.verbatim or value.ed or (number < 3 and segment.name == "MSH"):
            continue
        if sign in value.raw:
            second = value.repetition(2)
            told = f"{segment.name}-{number} does not repeat in version {version}"
            rule = f"v2/{segment.name}-{number}/repeat"
            yield within(segment, f"-{number}[2]", second, rule, "198", told, "warning")
