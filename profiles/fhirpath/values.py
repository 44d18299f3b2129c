"""The System types of FHIRPath that Python lacks: dates and times known in part, quantities, exact decimals.

Booleans, integers, strings and decimals are Python's own (`bool`, `int`, `str`, `decimal.Decimal`; never float).
A comparison answers None where the standard says "empty": the known parts do not decide.

Sources: http://hl7.org/fhirpath/N1/ sections 2.1.2 (time-valued types), 5.5 (conversion), 6.1-6.2 (equality,
comparison), 6.7 (date and time arithmetic).
"""

from __future__ import annotations

import calendar
import decimal
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Literal, Protocol

Kind = Literal["Date", "DateTime", "Time"]

# 40 digits leave room above the 28 the standard asks for; the traps a sum of two hostile numbers could spring are off.
MATHS = decimal.Context(prec=40, rounding=decimal.ROUND_HALF_UP, Emin=-400, Emax=400, traps=[])
LARGEST_EXPONENT = 60

CALENDAR_UNITS: dict[str, str] = {
    word: unit
    for unit in ("year", "month", "week", "day", "hour", "minute", "second", "millisecond")
    for word in (unit, unit + "s")
}
# The UCUM spelling of the calendar units whose length never varies (section 6.7); `mo` and `a` are averages.
_UCUM_DURATIONS = {"wk": "week", "d": "day", "h": "hour", "min": "minute", "s": "second", "ms": "millisecond"}
_AVERAGES = {"mo": "month", "a": "year"}
_SECONDS = {
    "week": Decimal(604_800), "day": Decimal(86_400), "hour": Decimal(3_600), "minute": Decimal(60),
    "second": Decimal(1), "millisecond": Decimal("0.001"), "month": Decimal(2_592_000), "year": Decimal(31_536_000),
}  # fmt: skip

_TEMPORAL = re.compile(
    r"(?:(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?)?(T)?(?:(\d{2})(?::(\d{2})(?::(\d{2}(?:\.\d+)?))?)?(Z|[+-]\d{2}:\d{2})?)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """`unit` is a UCUM code (`mg`, `1`) or a calendar word as written (`day`, `weeks`)."""

    value: Decimal
    unit: str


@dataclass(frozen=True, slots=True)
class Temporal:
    """A Date, DateTime or Time as far as it is known.

    `parts`: year, month, day, hour, minute (int) and second (Decimal, with its digits), cut where knowledge ends; a
    Time starts at the hour. `offset`: minutes east of UTC, None when unknown.
    """

    kind: Kind
    parts: tuple[int | Decimal, ...]
    offset: int | None = None

    def __str__(self) -> str:
        return _written(self)

    @property
    def digits(self) -> int:
        """The precision as the standard counts it: the number of digits written (`@2014` has 4, milliseconds 17)."""
        count = sum((4 if self.kind != "Time" and i == 0 else 2) for i in range(len(self.parts)))
        return count + (_fraction_digits(self.parts[-1]) if _has_seconds(self) else 0)


class Units(Protocol):
    """What the engine asks of a unit table (UCUM)."""

    def convert(self, value: Decimal, source: str, target: str) -> Decimal | None:
        """`value` of unit `source` in unit `target`; None when a unit is unknown or they do not measure the same."""


class NoUnits:
    """The unit table of an installation without UCUM: a unit converts to itself only."""

    def convert(self, value: Decimal, source: str, target: str) -> Decimal | None:
        """See `Units.convert`."""
        return value if source == target else None


def exact(text: str) -> Decimal:
    """The Decimal with exactly the digits of `text`."""
    return Decimal(text)


def sane(number: Decimal) -> bool:
    """Whether `number` may be written out in full: finite, and no exponent that would fill the memory with zeros."""
    exponent = number.as_tuple().exponent  # no number when it is not finite
    return isinstance(exponent, int) and abs(number.adjusted()) <= LARGEST_EXPONENT and exponent >= -400


def decimal_text(number: Decimal) -> str:
    """Plain notation, digits kept: `1.50`, never `1.5E+3`."""
    return format(number, "f")


def places(number: Decimal | int) -> int:
    """Digits after the decimal point, as written."""
    if isinstance(number, int):
        return 0
    exponent = number.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


# --- reading and writing dates and times -----------------------------------------------------------------------------


def temporal_literal(kind: str, lexeme: str) -> Temporal | None:
    """The value of a literal such as `@2015-02T`; None when the calendar has no such day or hour."""
    wanted: Kind = "Time" if kind == "time" else "DateTime" if kind == "datetime" else "Date"
    return temporal(lexeme[1:], wanted)


def temporal(text: str, kind: Kind) -> Temporal | None:
    """Reads ISO 8601 text as a value of `kind` (`2015`, `2015-02-04T14:34Z`, `14:34`); None if it is not."""
    match = _TEMPORAL.fullmatch(text)
    if match is None or not text:
        return None
    year, month, day, t, hour, minute, second, zone = match.groups()
    if kind == "Time":
        return None if year or zone or not hour else _checked(kind, (hour, minute, second), None)
    if not year or (hour and not (day and t)) or (kind == "Date" and (t or hour)):
        return None
    return _checked(kind, (year, month, day, hour, minute, second), zone)


def _checked(kind: Kind, raw: tuple[str | None, ...], zone: str | None) -> Temporal | None:
    parts: list[int | Decimal] = [int(p) for p in raw[:-1] if p]
    if raw[-1]:
        parts.append(Decimal(raw[-1]))
    clock = parts if kind == "Time" else parts[3:]
    if any(part >= limit for part, limit in zip(clock, (24, 60, 60), strict=False)):
        return None
    if kind != "Time":
        if parts[0] < 1 or (len(parts) > 1 and not 1 <= parts[1] <= 12):
            return None
        if len(parts) > 2 and not 1 <= parts[2] <= calendar.monthrange(int(parts[0]), int(parts[1]))[1]:
            return None
    offset = None
    if zone:
        offset = 0 if zone == "Z" else (1 if zone[0] == "+" else -1) * (int(zone[1:3]) * 60 + int(zone[4:]))
        if abs(offset) > 14 * 60:
            return None
    return Temporal(kind, tuple(parts), offset)


def _written(value: Temporal) -> str:
    day = [] if value.kind == "Time" else list(value.parts[:3])
    clock = list(value.parts if value.kind == "Time" else value.parts[3:])
    text = "-".join(f"{p:04d}" if i == 0 else f"{p:02d}" for i, p in enumerate(day))
    spelled = ":".join(_second(p) if isinstance(p, Decimal) else f"{p:02d}" for p in clock)
    if value.kind == "Time":
        return spelled
    if not clock:
        return text
    return f"{text}T{spelled}{_zone(value.offset)}"


def _second(part: Decimal) -> str:
    text = format(part, "f")
    return text if len(text.partition(".")[0]) == 2 else "0" + text


def _zone(offset: int | None) -> str:
    if offset is None:
        return ""
    return "Z" if offset == 0 else f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02d}:{abs(offset) % 60:02d}"


def _has_seconds(value: Temporal) -> bool:
    return len(value.parts) == (3 if value.kind == "Time" else 6)


def _fraction_digits(part: int | Decimal) -> int:
    return places(part)


# --- comparing -------------------------------------------------------------------------------------------------------


def compare_temporal(left: Temporal, right: Temporal) -> int | None:
    """-1, 0 or 1; None when one is known less precisely up to where they agree, or a missing zone leaves it open.

    A missing offset on one side only may be anything from -12:00 to +14:00: decided when both ends agree.
    """
    if (left.kind == "Time") != (right.kind == "Time"):
        raise TypeError(f"a {left.kind} cannot be compared with a {right.kind}")
    if left.kind == "Time" or left.offset == right.offset:
        return _by_parts(left.parts, right.parts)
    if left.offset is not None and right.offset is not None:
        return _by_parts(_shifted(left, -left.offset), _shifted(right, -right.offset))
    if left.offset is None:
        other = compare_temporal(right, left)
        return None if other is None else -other
    assert left.offset is not None
    ends = {_by_parts(_shifted(left, zone - left.offset), right.parts) for zone in (-12 * 60, 14 * 60)}
    return ends.pop() if len(ends) == 1 else None


def same_temporal(left: Temporal, right: Temporal) -> bool | None:
    """Equality (6.1.1): a Time and a Date differ; None where precision or a missing zone leaves it open."""
    if (left.kind == "Time") != (right.kind == "Time"):
        return False
    order = compare_temporal(left, right)
    return None if order is None else order == 0


def alike_temporal(left: Temporal, right: Temporal) -> bool:
    """Equivalence (6.1.2): different precisions are not equivalent."""
    return same_temporal(left, right) is True


def _by_parts(left: tuple[int | Decimal, ...], right: tuple[int | Decimal, ...]) -> int | None:
    for a, b in zip(left, right, strict=False):
        if a != b:
            return -1 if a < b else 1
    return 0 if len(left) == len(right) else None


def _shifted(value: Temporal, minutes: int) -> tuple[int | Decimal, ...]:
    """The parts of `value` on a clock `minutes` further east; same precision (a day or less known: unchanged)."""
    if minutes == 0 or len(value.parts) < 4:
        return value.parts
    moved = _from_seconds(_to_seconds(value) + minutes * 60, value)
    return value.parts if moved is None else moved


# --- arithmetic ------------------------------------------------------------------------------------------------------


def add_duration(value: Temporal, amount: Quantity, sign: int) -> Temporal | None:
    """`value` plus (`sign` 1) or minus (-1) a duration; None when the result leaves years 1 to 9999.

    Raises ValueError for a unit that is no calendar duration (`mo` and `a` are averages: not usable). The decimal part
    counts for seconds only; a value known to the month moves by whole months, and so on.
    """
    unit = calendar_unit(amount.unit)
    if unit is None:
        raise ValueError(f"{amount.unit!r} is no calendar duration; use year, month, week, day, hour, minute or second")
    number = amount.value * sign
    if abs(number) > 10**15:
        return None
    if unit not in ("second", "millisecond"):
        number = Decimal(int(number))
    if value.kind == "Time":
        if unit in ("year", "month", "week", "day"):
            raise ValueError(f"a Time has no {unit}")
        return _time_plus(value, number * _SECONDS[unit])
    if unit in ("year", "month"):
        return _months_plus(value, int(number) * (12 if unit == "year" else 1))
    if value.kind == "Date" and unit not in ("week", "day"):
        raise ValueError(f"a Date has no {unit}")
    seconds = number * _SECONDS[unit]
    if len(value.parts) < 3:
        days = int(seconds / 86_400)
        return _months_plus(value, int(days / 30) if len(value.parts) == 2 else int(days / 365) * 12)
    step = _step(value)
    seconds = Decimal(int(seconds / step)) * step if step else seconds
    parts = _from_seconds(_to_seconds(value) + seconds, value)
    return None if parts is None else Temporal(value.kind, parts, value.offset)


def calendar_unit(unit: str) -> str | None:
    """The calendar word a unit stands for in arithmetic: `days` and `d` are `day`; None for the rest."""
    return CALENDAR_UNITS.get(unit) or _UCUM_DURATIONS.get(unit)


def _step(value: Temporal) -> Decimal | None:
    """Seconds in the smallest known part, None when seconds are known (they and their fractions are one precision)."""
    known = len(value.parts) + (3 if value.kind == "Time" else 0)
    return {3: Decimal(86_400), 4: Decimal(3_600), 5: Decimal(60)}.get(known)


def _time_plus(value: Temporal, seconds: Decimal) -> Temporal:
    step = _step(value)
    seconds = Decimal(int(seconds / step)) * step if step else seconds
    total = (_clock_seconds(value.parts) + seconds) % 86_400
    total += 86_400 if total < 0 else 0
    return Temporal("Time", _clock(total, len(value.parts)))


def _months_plus(value: Temporal, months: int) -> Temporal | None:
    parts = list(value.parts)
    if len(parts) == 1:
        parts[0] += int(months / 12)
        return Temporal(value.kind, tuple(parts), value.offset) if 1 <= parts[0] <= 9999 else None
    total = int(parts[0]) * 12 + int(parts[1]) - 1 + months
    parts[0], parts[1] = total // 12, total % 12 + 1
    if not 1 <= parts[0] <= 9999:
        return None
    if len(parts) > 2:
        parts[2] = min(int(parts[2]), calendar.monthrange(int(parts[0]), int(parts[1]))[1])
    return Temporal(value.kind, tuple(parts), value.offset)


def _clock_seconds(clock: tuple[int | Decimal, ...]) -> Decimal:
    hour, minute, second = (*clock, 0, 0, 0)[:3]
    return Decimal(hour) * 3600 + Decimal(minute) * 60 + Decimal(second)


def _clock(total: Decimal, length: int) -> tuple[int | Decimal, ...]:
    minutes, second = int(total // 60), total % 60
    return (minutes // 60, minutes % 60, second)[:length]


def _to_seconds(value: Temporal) -> Decimal:
    year, month, day = (*value.parts, 1, 1)[:3]
    return Decimal(date(int(year), int(month), int(day)).toordinal()) * 86_400 + _clock_seconds(value.parts[3:])


def _from_seconds(total: Decimal, like: Temporal) -> tuple[int | Decimal, ...] | None:
    days, rest = int(total // 86_400), total % 86_400
    if not 1 <= days <= date.max.toordinal():
        return None
    moved = date.fromordinal(days)
    return (moved.year, moved.month, moved.day, *_clock(rest, 3))[: len(like.parts)]


# --- quantities ------------------------------------------------------------------------------------------------------


def convert(amount: Quantity, target: str, units: Units) -> Decimal | None:
    """The number of `target` units in `amount`; None when they do not measure the same or a unit is unknown.

    Calendar years and months convert among themselves and to other calendar words, never to UCUM `a` and `mo`.
    """
    if amount.unit == target:
        return amount.value
    source, goal = CALENDAR_UNITS.get(amount.unit), CALENDAR_UNITS.get(target)
    if source is None and goal is None:
        if amount.unit in _UCUM_DURATIONS and target in _UCUM_DURATIONS:
            return _ratio(amount.value, _UCUM_DURATIONS[amount.unit], _UCUM_DURATIONS[target])
        return units.convert(amount.value, amount.unit, target)
    source = source or _UCUM_DURATIONS.get(amount.unit)
    goal = goal or _UCUM_DURATIONS.get(target)
    if source is None or goal is None:
        return None
    varying = {"year", "month"}
    both_words = amount.unit in CALENDAR_UNITS and target in CALENDAR_UNITS
    if not both_words and (source in varying or goal in varying):
        return None
    return _ratio(amount.value, source, goal)


def _ratio(value: Decimal, source: str, goal: str) -> Decimal:
    if {source, goal} == {"year", "month"}:
        return value * 12 if source == "year" else MATHS.divide(value, Decimal(12))
    return value if source == goal else MATHS.divide(value * _SECONDS[source], _SECONDS[goal])


def compare_quantity(left: Quantity, right: Quantity, units: Units) -> int | None:
    """-1, 0 or 1; None when the units do not compare."""
    converted = convert(right, left.unit, units)
    if converted is None:
        return None
    return (left.value > converted) - (left.value < converted)


def alike_quantity(left: Quantity, right: Quantity, units: Units) -> bool:
    """Equivalence: equal to the precision of the less precise value; here a `year` is an `a`."""
    words = (
        Quantity(left.value, _AVERAGES.get(left.unit, left.unit)),
        Quantity(right.value, _AVERAGES.get(right.unit, right.unit)),
    )
    converted = convert(words[1], words[0].unit, units)
    if converted is None:
        return False
    if words[0].unit == words[1].unit:
        return alike_number(left.value, right.value)
    # The precision of a converted number is that of the number as written, moved by the conversion.
    if alike_number(left.value, _rounded(converted, places(left.value))):
        return True
    backwards = convert(words[0], words[1].unit, units)
    return backwards is not None and alike_number(right.value, _rounded(backwards, places(right.value)))


def alike_number(left: Decimal | int, right: Decimal | int) -> bool:
    """Equivalence of numbers: equal once rounded to the digits of the less precise one."""
    digits = min(places(left), places(right))
    return _rounded(Decimal(left), digits) == _rounded(Decimal(right), digits)


def _rounded(number: Decimal, digits: int) -> Decimal:
    if not sane(number):
        return number
    return number.quantize(Decimal(1).scaleb(-digits), rounding=decimal.ROUND_HALF_UP, context=_WIDE)


_WIDE = decimal.Context(prec=600, Emin=-1000, Emax=1000)


def rounded(number: Decimal, digits: int, rounding: str = decimal.ROUND_HALF_UP) -> Decimal:
    """`number` with exactly `digits` places after the point."""
    return number.quantize(Decimal(1).scaleb(-digits), rounding=rounding, context=_WIDE)


Number = Decimal | int
Fold = Callable[[str], str]
