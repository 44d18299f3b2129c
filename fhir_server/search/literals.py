r"""What the right side of a search parameter says: escapes, alternatives, prefixes, and the value of each type.

Sources: https://hl7.org/fhir/R4/search.html#escaping (`\,` `\|` `\$` `\\`), #prefix, #token, #reference, #quantity
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from fhir_server import errors
from fhir_server.context import micros, now
from fhir_server.search.extract import of_type_code
from fhir_server.search.measures import UCUM, base_unit
from fhir_server.search.plan import Prefix, Value
from fhir_server.search.values import (
    Convert,
    approximately,
    around,
    as_it_is,
    bounded,
    date_range,
    fold,
    nearest,
    number,
)
from profiles import definitions
from profiles.fhirpath.paths import split_reference
from profiles.ucum import units

MAX_VALUE = 10_000
PREFIXES: tuple[Prefix, ...] = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")
_KILOMETRES = {"": 1.0, "km": 1.0, "m": 0.001, "[mi_i]": 1.609344, "[mi_us]": 1.609347219, "mi": 1.609344}


@dataclass(frozen=True, slots=True)
class Reading:
    """How values are read: `zone` of dates without an offset, `bases` the URLs that mean this server, the present."""

    zone: str
    bases: Sequence[str] = ()
    now: datetime | None = None

    def as_written(self) -> Reading:
        """The same where no URL means this server: each stays what it is."""
        return replace(self, bases=())


class Unreadable(ValueError):
    """The value is none of its type; the text says what one looks like."""


def parts(text: str, mark: str) -> list[str]:
    """The text cut at every `mark` that no backslash precedes; the pieces are still escaped."""
    if "\\" not in text:
        return text.split(mark)
    found, piece, escaped = [], "", False
    for char in text:
        if char == mark and not escaped:
            found.append(piece)
            piece = ""
            continue
        escaped = char == "\\" and not escaped
        piece += char
    return [*found, piece]


_ESCAPED = re.compile(r"\\([,|$\\])")


def plain(text: str) -> str:
    """The text without its escapes."""
    return _ESCAPED.sub(r"\1", text) if "\\" in text else text


# --- one reader for each type ----------------------------------------------------------------------------------------


def string(text: str, reading: Reading) -> Value:
    """Folded; matches what begins with it."""
    folded = bounded(fold(plain(text)))
    if not folded:
        raise Unreadable("it has no letter, digit or sign to look for")
    return Value(text=folded)


def exact(text: str, reading: Reading) -> Value:
    """For :exact: as it stands."""
    return Value(text=bounded(plain(text)))


def token(text: str, reading: Reading) -> Value:
    """`code`, `system|code`, `|code` (explicitly no system), `system|` (any code)."""
    pieces = [plain(piece) for piece in parts(text, "|")]
    if len(pieces) == 1:
        return Value(code=bounded(pieces[0]))
    if len(pieces) != 2 or not (pieces[0] or pieces[1]):
        raise Unreadable("a token is code, system|code, |code or system| (write \\| for a bar inside a code)")
    return Value(system=bounded(pieces[0]), code=bounded(pieces[1]) if pieces[1] else None)


def of_type(text: str, reading: Reading) -> Value:
    """For :of-type: `system|code|value` of an identifier; system and code are those of Identifier.type."""
    pieces = [plain(piece) for piece in parts(text, "|")]
    if len(pieces) != 3 or not pieces[1] or not pieces[2]:
        raise Unreadable(
            ":of-type takes system|code|value, such as http://terminology.hl7.org/CodeSystem/v2-0203|MR|42"
        )
    return Value(system=bounded(pieces[0]) if pieces[0] else None, code=bounded(of_type_code(pieces[1], pieces[2])))


def _prefixed(text: str) -> tuple[Prefix, str]:
    for prefix in PREFIXES:
        if text.startswith(prefix):
            return prefix, text[2:]
    return "eq", text


def date(text: str, reading: Reading) -> Value:
    """A prefix and a date or time as precise as wished."""
    prefix, rest = _prefixed(plain(text))
    # A form decodes the plus of an offset to a space.
    interval = date_range(rest.replace(" ", "+"), reading.zone)
    if interval is None:
        raise Unreadable("a date is YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm[:ss[.fff]][Z|+hh:mm]")
    low, high = interval
    if prefix == "ap":
        # Ten per cent of the gap between now and the date, says the standard.
        margin = abs(micros(reading.now or now()) - low) // 10
        low, high = low - margin, high + margin
    return Value(prefix, low=low, high=high)


def _interval(prefix: Prefix, text: str, convert: Convert = as_it_is) -> tuple[float, float]:
    value = number(text)
    if value is None:
        raise Unreadable("a number is written like 100, 5.40 or 1e2")
    if prefix in ("eq", "ne"):
        return around(text, value, convert)
    if prefix == "ap":
        return approximately(value, convert)
    exact = nearest(convert(value))
    return exact, exact


def numeric(text: str, reading: Reading) -> Value:
    """A prefix and a number; equality takes the precision as written."""
    prefix, rest = _prefixed(plain(text))
    low, high = _interval(prefix, rest)
    return Value(prefix, low=low, high=high)


def quantity(text: str, reading: Reading) -> Value:
    """`number`, `number|system|code` or `number||unit`, each with a prefix; a UCUM unit also in base units."""
    pieces = [plain(piece) for piece in parts(text, "|")]
    prefix, rest = _prefixed(pieces[0])
    low, high = _interval(prefix, rest)
    if len(pieces) == 1:
        return Value(prefix, low=low, high=high)
    if len(pieces) != 3:
        raise Unreadable("a quantity is number, number|system|code or number||unit")
    system, code = (bounded(piece) or None for piece in pieces[1:])
    value = Value(prefix, system=system, code=code, low=low, high=high)
    unit = base_unit(pieces[2]) if pieces[2] and system in (None, UCUM) else ""
    if not unit:
        return value
    try:
        base_low, base_high = _interval(prefix, rest, lambda end: units.canonical(end, pieces[2])[0])
    except units.UcumError:
        return value
    return replace(value, unit=unit, base_low=base_low, base_high=base_high)


def reference(text: str, reading: Reading) -> Value:
    """`id`, `Type/id` or an absolute URL; a version is dropped, this server's own bases too."""
    spelled = plain(text)
    if not spelled:
        raise Unreadable("a reference is id, Type/id or a URL")
    found = split_reference(spelled)
    if found is not None:
        base, kind, key = found
        foreign = base and base not in reading.bases
        return Value(text=bounded(f"{base}/{kind}/{key}")) if foreign else Value(type=kind, id=key)
    if re.fullmatch(r"[A-Za-z0-9\-.]{1,64}", spelled):
        return Value(id=spelled)
    if "/" in spelled and ":" not in spelled.partition("/")[0]:
        raise Unreadable(f"{spelled.partition('/')[0]!r} is no resource type, or what follows no id")
    return Value(text=bounded(spelled))


def uri(text: str, reading: Reading) -> Value:
    """A URI, as it stands."""
    return Value(text=bounded(plain(text)))


def near(text: str, reading: Reading) -> Value:
    """`latitude|longitude[|distance[|unit]]` of Location.near, normalised to `latitude|longitude|kilometres`."""
    pieces = [plain(piece) for piece in parts(text, "|")]
    numbers = [number(piece) for piece in pieces[:3]]
    unit = pieces[3] if len(pieces) == 4 else ""
    if not 2 <= len(pieces) <= 4 or any(one is None for one in numbers) or unit not in _KILOMETRES:
        raise Unreadable("near is latitude|longitude|distance|km")
    latitude, longitude, *distance = (nearest(one) for one in numbers if one is not None)
    if abs(latitude) > 90 or abs(longitude) > 180:
        raise Unreadable("latitude is -90 to 90 and longitude -180 to 180")
    radius = distance[0] * _KILOMETRES[unit] if distance else 10.0
    if radius < 0:
        raise Unreadable("a distance is 0 or more")
    return Value(text=f"{latitude!r}|{longitude!r}|{radius!r}")


Reader = Callable[[str, Reading], Value]

READERS: dict[str, Reader] = {
    "string": string,
    "token": token,
    "date": date,
    "number": numeric,
    "quantity": quantity,
    "reference": reference,
    "uri": uri,
    "special": near,
}


def values(text: str, read: Reader, name: str, reading: Reading, most: int) -> tuple[Value, ...]:
    """All alternatives of one occurrence. errors.Invalid (400) when one cannot be read, TooLarge beyond `most`."""
    pieces = parts(text, ",")
    if len(pieces) > most:
        raise errors.TooLarge(f"`{name}` has {len(pieces)} values; at most {most} are accepted.")
    found: list[Value] = []
    for piece in pieces:
        if len(piece) > MAX_VALUE:
            raise errors.TooLarge(f"A value of `{name}` is longer than {MAX_VALUE} characters.")
        if not piece:
            raise errors.Invalid(f"`{name}` has an empty value; leave it out.", http=400)
        try:
            found.append(read(piece, reading))
        except Unreadable as problem:
            raise errors.Invalid(f"`{name}={piece[:200]}` cannot be read: {problem}.", http=400) from None
    return tuple(dict.fromkeys(found))


def typed(value: Value, kind: str) -> Value:
    """For :[type] on a reference: the id is one of this type."""
    if value.type and value.type != kind:
        raise Unreadable(f"it names a {value.type} and the modifier a {kind}")
    return Value(type=kind, id=value.id) if value.id else value


def is_resource_type(name: str) -> bool:
    """Whether R4 has this resource type."""
    return name in definitions.resource_types()
