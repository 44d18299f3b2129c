"""How search sees text, dates and numbers: folded strings, microsecond intervals, intervals of doubles.

One spelling for both sides: the index rows of a resource and the values of a query go through these functions.

Sources: https://hl7.org/fhir/R4/search.html#string, #date, #number, #prefix; Unicode TR 15 (NFKD).
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

# The bounds of open intervals: far outside years 1 to 9999, inside a 64-bit integer.
OPEN_LOW, OPEN_HIGH = -(2**62), 2**62
NUMBER_LOW, NUMBER_HIGH = -1.7976931348623157e308, 1.7976931348623157e308

MAX_TEXT_BYTES = 1_000
_HEAD_BYTES = 960

_DAY = 86_400_000_000
_EPOCH = date(1970, 1, 1).toordinal()
_LAST = date.max.toordinal()

# Letters that Unicode does not take apart, and the typographic signs of French text.
_PLAIN = str.maketrans(
    {
        "œ": "oe", "æ": "ae", "ø": "o", "đ": "d", "ð": "d", "ł": "l", "þ": "th", "ı": "i", "ŋ": "n", "ħ": "h",
        "\u2019": "'", "\u02bc": "'", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-",
    }
)  # fmt: skip


def fold(text: str) -> str:
    """The text without case, accents and superfluous spaces: `  Élodie  NOËL-Œuvrard` is `elodie noel-oeuvrard`."""
    if text.isascii():
        return " ".join(text.lower().split())
    parts = unicodedata.normalize("NFKD", text)
    plain = "".join(char for char in parts if not unicodedata.combining(char)) if not parts.isascii() else parts
    return " ".join(plain.casefold().translate(_PLAIN).split())


def bounded(text: str) -> str:
    """The text as an index holds it: at most 1,000 bytes of UTF-8, a longer one cut and closed with its hash."""
    if len(text) * 4 <= MAX_TEXT_BYTES:
        return text
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    head = encoded[:_HEAD_BYTES].decode("utf-8", "ignore")
    return f"{head}#{hashlib.sha256(encoded).hexdigest()[:32]}"


# --- dates -----------------------------------------------------------------------------------------------------------

_DATE = re.compile(
    r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?:T(\d{2}):(\d{2})(?::(\d{2})(?:\.(\d{1,30}))?)?(Z|[+-]\d{2}:\d{2})?)?)?)?",
    re.ASCII,
)


def date_range(text: str, zone: str) -> tuple[int, int] | None:
    """The interval [low, high) of a FHIR date, dateTime or instant, in microseconds since 1970 UTC; None if it is none.

    What is not known is every value it may have: a year is the whole year, a second is the whole second. A value
    without an offset is read on the clock of `zone` (an IANA name).
    """
    return _cached_range(text, zone) if len(text) <= 10 else _range(text, zone)


@lru_cache(maxsize=16_384)
def _cached_range(text: str, zone: str) -> tuple[int, int] | None:
    return _range(text, zone)


def _range(text: str, zone: str) -> tuple[int, int] | None:
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    try:
        day_number = date(int(year), int(month or 1), int(day or 1)).toordinal() - _EPOCH
    except ValueError:
        return None
    if hour is None:
        return _days(day_number, int(year), month, day, zone)
    start = day_number * _DAY
    h, m, s = int(hour), int(minute), int(second or 0)
    if h > 24 or m > 59 or s > 60 or (h == 24 and (m or s)):
        return None
    start += ((h * 60 + m) * 60 + s) * 1_000_000
    width = 60_000_000
    if second is not None:
        width = 1_000_000
        if fraction:
            start += int(fraction[:6].ljust(6, "0"))
            width = 10 ** max(0, 6 - len(fraction))
    if offset is None:
        start -= _offset_at(zone, start)
    elif offset != "Z":
        away = (int(offset[1:3]) * 60 + int(offset[4:])) * 60_000_000
        start += away if offset[0] == "-" else -away
    return start, start + width


def _days(first: int, year: int, month: str | None, day: str | None, zone: str) -> tuple[int, int]:
    """The interval of the day, month or year that begins on day `first` since 1970."""
    after = first + 1
    if not day:
        months = 1 if month else 12
        total = year * 12 + int(month or 1) - 1 + months
        after = (date(total // 12, total % 12 + 1, 1).toordinal() if total < 120_000 else _LAST + 1) - _EPOCH
    low, high = first * _DAY, after * _DAY
    return low - _offset_at(zone, low), high - _offset_at(zone, high)


def _offset_at(zone: str, wall: int) -> int:
    """Microseconds that the clock of `zone` is ahead of UTC when it shows `wall` (microseconds since 1970, no zone)."""
    days, rest = divmod(wall, _DAY)
    ordinal = min(max(days + _EPOCH, 2), date.max.toordinal() - 1)
    day = date.fromordinal(ordinal)
    hours, rest = divmod(rest // 1_000_000, 3600)
    moment = datetime(day.year, day.month, day.day, hours, rest // 60, rest % 60, tzinfo=zone_info(zone))
    offset = moment.utcoffset()
    return 0 if offset is None else (offset.days * 86_400 + offset.seconds) * 1_000_000


@lru_cache(maxsize=64)
def zone_info(zone: str) -> tzinfo:
    """The time zone of an IANA name; ValueError when this system does not know it."""
    if zone in ("UTC", "Z"):
        return UTC
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as problem:
        raise ValueError(f"{zone!r} is no time zone known here") from problem


# --- numbers ---------------------------------------------------------------------------------------------------------


def nearest(number: Decimal | int) -> float:
    """The nearest double; a number beyond all doubles becomes the last one."""
    try:
        value = float(number)
    except OverflowError:
        value = math.inf if number > 0 else -math.inf
    return min(max(value, NUMBER_LOW), NUMBER_HIGH)


_NUMBER = re.compile(r"[+-]?(?:\d{1,60}(?:\.\d{0,60})?|\.\d{1,60})(?:[eE]([+-]?\d{1,3}))?", re.ASCII)


def number(text: str) -> Decimal | None:
    """The number a query writes (`100`, `5.40`, `1e2`), digits kept; None when it is none."""
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


Convert = Callable[[Decimal], Decimal]


def as_it_is(number: Decimal) -> Decimal:
    """No conversion."""
    return number


def around(text: str, value: Decimal, convert: Convert = as_it_is) -> tuple[float, float]:
    """The closed interval of doubles that a searched number stands for: half a unit of its last digit either way.

    The upper end does not belong to it (`100` is [99.5, 100.5)), so the double just below is given. The exponential
    form counts one digit more, as the standard's example has it: `1e2` is [95, 105). `convert` takes the ends to
    another unit.
    """
    exponent = value.as_tuple().exponent
    digits = exponent if isinstance(exponent, int) else 0
    if "e" in text.lower():
        digits -= 1
    half = Decimal(5).scaleb(digits - 1)
    low, high = nearest(convert(value - half)), nearest(convert(value + half))
    return low, max(low, math.nextafter(high, -math.inf))


def approximately(value: Decimal, convert: Convert = as_it_is) -> tuple[float, float]:
    """The closed interval of `ap`: ten per cent either way."""
    tenth = abs(value) / 10
    return nearest(convert(value - tenth)), nearest(convert(value + tenth))
