"""Where each element a message became came from, found by asking the mappers themselves.

Hides how: every value of the message is altered, one at a time, the altered message is mapped again, and what is then
different came from that value. Nothing is written down beside the mappers, so nothing can say something else than they
do, and a message that is taken in pays nothing for it. What no value changes is fixed by the mapper (the system of a
code, the status of a record).

A long message is explained by its first segments of each name and the beginning of its documents: `Explained.cut`
says what was left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final, Literal

from hl7v2.message import Message, Unreadable, Value, parse
from hl7v2.text import NULL
from mappers import hl7v2_to_fhir
from mappers.hl7v2_codes_to_fhir import Built
from mappers.hl7v2_documents_to_fhir import CONSISTENT, document
from mappers.hl7v2_events_to_fhir import EVENTS
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_orders_to_fhir import orders
from mappers.hl7v2_results_to_fhir import results
from mappers.hl7v2_schedule_to_fhir import ACTIONS as SLOTS
from mappers.hl7v2_schedule_to_fhir import appointment
from mappers.identity import Site
from mappers.mapped import Mapped
from profiles.json_text import Number

Leaves = dict[str, str]
Asked = Callable[[Callable[[], Message]], Leaves | None]
"""Maps what a function makes of the message; None when nobody would take that in."""
How = Literal["value", "condition", "fixed"]


def _adt(msg: Message, site: Site) -> Any:
    said = [hl7v2_to_fhir.adt(part, site) for part in hl7v2_to_fhir.split(msg)]
    return said if len(said) > 1 else said[0]


READERS: Final[Mapping[str, Callable[[Message, Site], Any]]] = {
    "ADT": _adt,
    "ORU": results,
    "MDM": document,
    "ORM": orders,
    "OMI": orders,
    "SIU": appointment,
    "ZAM": lambda msg, _: hl7v2_to_fhir.zam(msg),
}
"""MSH-9.1 -> what maps such a message."""
_CODES: Final = {
    "PID-13.2": ("WPN",), "PID-14.2": ("PRN",), "PID-13.3": ("FX",), "PID-14.3": ("FX",), "PID-24": ("Y", "N"),
    "PID-30": ("Y", "N"), "PID-32": ("VALI",), "ZFD-4": ("Y", "N"), "ZFA-9": ("IO", "INO"), "ZFA-11": ("IC", "INC"),
    "SPM-20": ("Y", "N"), "TXA-17": ("AU", "DO"), "OBX-5": ("Y", "N"), "OBX-5.1": ("Y", "N"), "OBX-8": ("H", "N"),
    "OBX-8.1": ("H", "N"), "SCH-25": ("Complete",),
}  # fmt: skip
"""Codes whose neighbours in the alphabet mean nothing: others of their tables, tried as well."""
_ORDERS: Final = tuple(
    {"ORC-1": code, "OBR-4.1": name}
    for code, name in (("NW", "TRANSMISSION_DEMANDE"), ("CA", "ANNULATION_DEMANDE"), ("SR", "COMPLEMENT_POST_ACTE"))
)
_TOGETHER: Final[Mapping[str, Sequence[Mapping[str, str]]]] = {
    "ADT": tuple({"MSH-9.2": trigger} for trigger in EVENTS),
    "SIU": tuple({"MSH-9.2": trigger} for trigger in SLOTS),
    "MDM": tuple({"MSH-9.2": trigger, "ORC-1": orc, "OBX-11": obx} for trigger, (orc, obx) in CONSISTENT.items()),
    "ORM": _ORDERS,
    "OMI": _ORDERS,
    "ZAM": ({"MSH-9.2": "Z01", "OBX-3.1": "ACK_RECEPTION_DMP"}, {"MSH-9.2": "Z03", "OBX-3.1": "ACK_LECTURE_MSS"}),
}
"""Values that decide together: whoever changes one alone is refused."""
MOST_OF_A_NAME: Final = 10
"""Segments of one name that are looked at. The work grows with the square of a message's length."""
_MOST_DATA: Final = 1 << 12
_TOLD: Final = 120
_INDEX: Final = re.compile(r"\[\d+\]")
_NUMBERED: Final = re.compile(r"\[\d+\]|\(\d+\)")
_WORD: Final = 6


@dataclass(frozen=True, slots=True)
class Origin:
    """One element and the places of the message it came from (`PID-5.1`; `[2]` numbers what repeats, from 1).

    `how` says whether the places hold its value, or only decide that it is there, or that it is fixed (no places).
    `element` is a FHIR path with 0-based indexes (`Patient.name[0].family`, the second of a type `Observation(2)`), or
    in small letters a fact that the mapper tells beside its resources (`prior_ids[0][1]`).
    """

    element: str
    value: str
    places: tuple[str, ...]
    how: How


@dataclass(frozen=True, slots=True)
class Explained:
    """The origins in the order of the mapper's result; `cut` says in words what was not looked at."""

    origins: tuple[Origin, ...]
    cut: tuple[str, ...]


@dataclass(slots=True)
class _Effects:
    """What the alterations of the message changed: element -> places."""

    values: dict[str, list[str]] = field(default_factory=dict)
    conditions: dict[str, list[str]] = field(default_factory=dict)

    def note(self, place: str, found: _Difference) -> None:
        for path in found.values:
            self.values.setdefault(path, []).append(place)
        for path in found.conditions - found.values:
            self.conditions.setdefault(path, []).append(place)

    def knows(self, path: str) -> bool:
        return path in self.values or path in self.conditions


@dataclass(slots=True)
class _Difference:
    """Elements that have another value in an unchanged whole, and elements that went away."""

    values: set[str] = field(default_factory=set)
    conditions: set[str] = field(default_factory=set)

    def add(self, other: _Difference) -> None:
        self.values |= other.values
        self.conditions |= other.conditions


def explain(msg: Message, site: Site) -> Explained:
    """The origin of every element of what the message maps to. Raises Refused as its mapper does; a kind of message
    that nobody maps raises KeyError."""
    read = READERS[msg.kind]
    shown = leaves(read(msg, site))
    short, cut = _shortened(msg)
    asked = partial(_mapped, lambda altered: read(altered, site))
    base = leaves(read(short, site)) if short is not msg else shown
    effects = _Effects()
    held = list(places(short))
    for place, text in held:
        effects.note(place, _changed(short, place, text, base, asked))
    _decided(short, dict(held), base, asked, effects)
    _repeated(short, held, base, asked, effects)
    origins = tuple(_origin(path, shown.get(path, value), effects) for path, value in base.items())
    return Explained(origins, cut)


def _origin(path: str, value: str, effects: _Effects) -> Origin:
    told = value if len(value) <= _TOLD else f"{value[:_TOLD]}... ({len(value)} characters)"
    ways: tuple[tuple[How, Mapping[str, Sequence[str]]], ...] = (
        ("value", effects.values),
        ("condition", effects.conditions),
    )
    for how, found in ways:
        if path in found:
            return Origin(path, told, tuple(dict.fromkeys(found[path])), how)
    return Origin(path, told, (), "fixed")


# --- what a mapper made ----------------------------------------------------------------------------------------------


def leaves(result: Any) -> Leaves:
    """Path -> value of everything a mapper's result says; what is empty, false or None says nothing."""
    return dict(_leaves("", result, Counter()))


def _leaves(path: str, value: Any, seen: Counter[str]) -> Iterator[tuple[str, str]]:
    match value:
        case Mapped():
            yield from _leaves(path, value.value, seen)
        case Built():
            yield from _leaves(path, value.resource, seen)
        case {"resourceType": str(kind)}:
            seen[kind] += 1
            name = kind if seen[kind] == 1 else f"{kind}({seen[kind]})"
            for key, item in value.items():
                if key != "resourceType":
                    yield from _leaves(f"{name}.{key}", item, seen)
        case dict():
            for key, item in value.items():
                yield from _leaves(f"{path}.{key}", item, seen)
        case list() | tuple():
            for number, item in enumerate(value):
                yield from _leaves(f"{path}[{number}]", item, seen)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, Number):
            for one in dataclasses.fields(value):
                yield from _leaves(f"{path}.{one.name}".lstrip("."), getattr(value, one.name), seen)
        case _ if value not in (None, "", False):
            yield path, _told(value)


def _told(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()[:16]}"
    return "true" if value is True else str(getattr(value, "lexeme", value))


# --- the message, altered --------------------------------------------------------------------------------------------


def places(msg: Message) -> Iterator[tuple[str, str]]:
    """(path, text) of every value of a message, the declaration of its delimiters left out."""
    for segment in msg.segments:
        if not segment.name:
            continue
        name = segment.name if segment.number == 1 else f"{segment.name}[{segment.number}]"
        for number, value in segment.fields():
            if value.encoded and (segment.name != "MSH" or number > 2):
                yield from _within(f"{name}-{number}", value)


def _within(path: str, value: Value) -> Iterator[tuple[str, str]]:
    repetitions = value.repetitions()
    for r, rep in enumerate(repetitions, 1):
        components = rep.parts()
        # A path without a repetition means the first one; components are said only where there are several.
        where = f"{path}[{r}]" if len(repetitions) > 1 else path
        for c, component in enumerate(components, 1):
            subs = component.parts()
            spot = f"{where}.{c}" if len(components) > 1 or len(subs) > 1 else where
            for s, sub in enumerate(subs, 1):
                if sub.value:
                    yield (f"{spot}.{s}" if len(subs) > 1 else spot), sub.value


def _alternatives(text: str) -> Iterator[str]:
    """Other values of the same look: dates stay dates most of the time, numbers numbers; at last none."""
    if text != NULL:
        marks = [number for number, sign in enumerate(text) if sign.isascii() and sign.isalnum()]
        for at, step in ((-1, 1), (-1, -1), (0, 1)) if marks else ():
            yield text[: marks[at]] + _next(text[marks[at]], step) + text[marks[at] + 1 :]
    yield ""


def _next(sign: str, step: int) -> str:
    for first, size in (("0", 10), ("a", 26), ("A", 26)):
        number = ord(sign) - ord(first)
        if 0 <= number < size:
            return chr(ord(first) + (number + step) % size)
    return sign


def _changed(msg: Message, place: str, text: str, base: Leaves, asked: Asked) -> _Difference:
    """What came from a place: whatever another value changes, and what goes away with it."""
    out = _Difference()
    if place.startswith("MSH-9"):
        return out  # another type is mapped by another mapper; another event by `_decided`
    for number, other in enumerate((*_alternatives(text), *_CODES.get(_INDEX.sub("", place), ()))):
        # A second neighbour is for days beyond the end of a month, no value at all for what nothing else changes.
        if (number == 1 and out.values) or (not other and (out.values or out.conditions)):
            continue
        new = asked(partial(msg.set, place, other or None))
        if new is None:
            continue
        found = _difference(base, new)
        # A value that goes away with its text, while its resource stays, was that text (an INS without its key).
        stay = {_resource(path) for path in new}
        found.values |= {path for path in found.conditions if _resource(path) in stay and holds(text, base[path])}
        out.add(found)
    return out


def _repeated(msg: Message, held: list[tuple[str, str]], base: Leaves, asked: Asked, effects: _Effects) -> None:
    """What is said several times, and stays when one of them changes: an order number in ORC-2 and OBR-2."""
    by_text: dict[str, list[str]] = {}
    for place, text in held:
        by_text.setdefault(text, []).append(place)
    for text, spots in by_text.items():
        told = {path for path, value in base.items() if not effects.knows(path) and holds(text, value)}
        if told:
            other = dict.fromkeys(spots, next(_alternatives(text)))
            new = asked(partial(_all_set, msg, other))
            found = _difference(base, new or base)
            effects.values.update(dict.fromkeys(told & (found.values | found.conditions), spots))


def _all_set(msg: Message, values: Mapping[str, str]) -> Message:
    for place, value in values.items():
        msg = msg.set(place, value)
    return msg


def _mapped(read: Callable[[Message], Any], altered: Callable[[], Message]) -> Leaves | None:
    """What an altered message maps to; None when nobody would take it in."""
    try:
        return leaves(read(altered()))
    except (Refused, Unreadable, ValueError):
        return None


def _difference(base: Leaves, new: Leaves) -> _Difference:
    """What is different; what only moved is not."""
    out = _Difference()
    other = {path for path, value in base.items() if new.get(path) != value}
    if not other:
        return out
    lost = Counter(_pairs(base))
    lost.subtract(_pairs(new))
    tops = {_top(path) for path in other}
    shape, shape_then = _shape(base, tops), _shape(new, tops)
    for path in other:
        if lost[_NUMBERED.sub("", path), base[path]] > 0:
            same = shape[_top(path)] == shape_then.get(_top(path))
            (out.values if same else out.conditions).add(path)
    return out


def _pairs(found: Leaves) -> Iterator[tuple[str, str]]:
    return ((_NUMBERED.sub("", path), value) for path, value in found.items())


@lru_cache(maxsize=4096)
def _top(path: str) -> str:
    """The element of the resource (`Patient.name`) or fact that a path is in."""
    return _INDEX.sub("", ".".join(path.split(".")[:2]))


def _resource(path: str) -> str:
    return path.partition(".")[0]


def _shape(found: Leaves, tops: set[str]) -> dict[str, set[str]]:
    """The paths within each of some elements."""
    out: dict[str, set[str]] = {}
    for path in found:
        if (top := _top(path)) in tops:
            out.setdefault(top, set()).add(path)
    return out


def _decided(msg: Message, held: Mapping[str, str], base: Leaves, asked: Asked, effects: _Effects) -> None:
    """What the event decides, alone or with the codes that must agree with it, where no single value does."""
    open_ = {path for path in base if not effects.knows(path)}
    for values in _TOGETHER.get(msg.kind, ()):
        spots = {place: value for place, value in values.items() if place in held}
        new = asked(partial(_all_set, msg, spots))
        found = _difference(base, new or base)
        for path in (found.values - effects.values.keys()) | (open_ & found.conditions):
            says = [place for place in spots if holds(held[place], base[path])]
            effects.values[path] = says or list(spots)


def _shortened(msg: Message) -> tuple[Message, tuple[str, ...]]:
    """The message without the segments beyond the first ones of a name, and with the beginning of long documents."""
    cut = [f"{name}[{MOST_OF_A_NAME + 1}] and the {len(msg.all(name)) - MOST_OF_A_NAME - 1} after it"
           for name in dict.fromkeys(segment.name for segment in msg.segments)
           if name and len(msg.all(name)) > MOST_OF_A_NAME]  # fmt: skip
    if cut:
        kept = b"".join(msg.raw[start:end].rstrip(b"\r\n") + b"\r" for start, end in _kept(msg))
        msg = parse(kept, charset=msg.charset.codec if msg.charset.note else None)
    for obx in msg.all("OBX"):
        held = obx.field(5).repetition(1).part(5) if obx.text(2) == "ED" else None
        if held is not None and held.end - held.start > _MOST_DATA:
            place = f"OBX[{obx.number}]-5.5"
            cut.append(f"{place} after its first {_MOST_DATA} characters")
            msg = msg.set(place, bytes(held.view[:_MOST_DATA]).decode("ascii", "replace"))
    return msg, tuple(cut)


def _kept(msg: Message) -> Sequence[tuple[int, int]]:
    return [(one.start, one.end) for one in msg.segments if one.number <= MOST_OF_A_NAME]


def holds(text: str, value: str) -> bool:
    """Whether a text and a value say the same, separators and case aside, or one contains the other as a word."""
    one, other = sorted((re.sub(r"[\W_]", "", part).casefold() for part in (text, value)), key=len)
    return bool(one) and (one == other or (len(one) >= _WORD and one in other))
