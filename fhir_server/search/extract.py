"""One value of a resource becomes index rows: a function for each pair of search type and FHIR type.

Every function takes the rows being made, the ids of the parameters that want the value, the value as plain JSON and the
zone of dates that have none. What is not of the expected shape gives no row.

Source: https://hl7.org/fhir/R4/search.html#ptypes (which FHIR types each search type covers, and how)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from fhir_server.search import measures
from fhir_server.search.rows import Emit, IndexRows, Pids
from fhir_server.search.values import (
    OPEN_HIGH,
    OPEN_LOW,
    bounded,
    date_range,
    fold,
    nearest,
)
from profiles import definitions
from profiles.fhirpath.paths import split_reference

SPECIAL_VALUES = "http://terminology.hl7.org/CodeSystem/special-values"


# Characters that are few enough for an index whatever they are (`bounded`).
_SHORT = 250


class Want(NamedTuple):
    """Rows of `search` type ('of-type' for that modifier's rows) out of values of `fhir` type.

    `value_set`: the required binding of a code, or ''; `targets`: the resource types wanted of a whole resource.
    """

    search: str
    fhir: str
    value_set: str = ""
    targets: tuple[str, ...] = ()


def emitter(want: Want) -> Emit | None:
    """The function that makes the rows; None when such values are not searched by (an Age as a date)."""
    if want.fhir == "code" and want.search == "token":
        return _code(want.value_set)
    if want.fhir == "Resource":
        return _whole(frozenset(want.targets))
    return _EMITTERS.get((want.search, want.fhir))


def _list(value: Any) -> list[Any]:
    return value if type(value) is list else []


# --- string ----------------------------------------------------------------------------------------------------------


def _string(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is str:
        folded, exact = bounded(fold(value)), bounded(value)
        for pid in pids:
            found.string.append((pid, folded, exact))


_NAME = ("family", "given", "prefix", "suffix", "text")
_ADDRESS = ("line", "city", "district", "state", "postalCode", "country", "text")


def _parts(names: tuple[str, ...]) -> Emit:
    def emit(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
        if type(value) is not dict:
            return
        for name in names:
            part = value.get(name)
            if part is None:
                continue
            for one in part if type(part) is list else (part,):
                _string(found, pids, one, zone)

    return emit


# --- token -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16_384)
def _folded(text: str) -> str:
    return bounded(fold(text))


def _text(value: Any) -> str:
    """What a code is called, folded: the same few thousand names come again and again."""
    if type(value) is not str:
        return ""
    return _folded(value) if len(value) <= _SHORT else bounded(fold(value))


def _token(found: IndexRows, pids: Pids, system: Any, code: Any, folded: str) -> None:
    if type(system) is not str:
        system = ""
    elif len(system) > _SHORT:
        system = bounded(system)
    if type(code) is not str:
        code = ""
    elif len(code) > _SHORT:
        code = bounded(code)
    for pid in pids:
        found.token.append((pid, system, code, folded))


def _coding(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is dict:
        _token(found, pids, value.get("system"), value.get("code"), _text(value.get("display")))


def _concept(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is not dict:
        return
    shown = set()
    for coding in _list(value.get("coding")):
        if type(coding) is dict:
            display = _text(coding.get("display"))
            shown.add(display)
            _token(found, pids, coding.get("system"), coding.get("code"), display)
    text = _text(value.get("text"))
    if text and text not in shown:
        # Without a code: found by :text, and the element counts as present.
        _token(found, pids, "", "", text)


def _identifier(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is dict:
        kind = value.get("type")
        text = _text(kind.get("text")) if type(kind) is dict else ""
        _token(found, pids, value.get("system"), value.get("value"), text)


def of_type_code(code: str, value: str) -> str:
    """What stands in the code column of :of-type rows: the code of the identifier's type, and its value."""
    return f"{code}|{value}"


def _identifier_of_type(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is not dict or type(value.get("type")) is not dict or type(value.get("value")) is not str:
        return
    for coding in _list(value["type"].get("coding")):
        if type(coding) is dict and type(coding.get("code")) is str:
            _token(found, pids, coding.get("system"), of_type_code(coding["code"], value["value"]), "")


def _contact(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is dict:
        _token(found, pids, value.get("system"), value.get("value"), "")


def _code(value_set: str) -> Emit:
    """Codes carry no system in JSON; the required binding says it."""
    systems: dict[str, str] = {}
    if value_set:
        for system, code in definitions.value_set_codes(value_set) or ():
            systems[code] = system

    def emit(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
        if type(value) is str:
            _token(found, pids, systems.get(value, ""), value, "")

    return emit


def boolean(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    """A boolean as a token."""
    if type(value) is bool:
        _token(found, pids, SPECIAL_VALUES, "true" if value else "false", "")


def _plain_token(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is str:
        _token(found, pids, "", value, "")


# --- date ------------------------------------------------------------------------------------------------------------


def _date(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is str:
        interval = date_range(value, zone)
        if interval is not None:
            for pid in pids:
                found.date.append((pid, *interval))


def _period_range(value: Any, zone: str) -> tuple[int, int] | None:
    if type(value) is not dict:
        return None
    start, end = value.get("start"), value.get("end")
    first = date_range(start, zone) if type(start) is str else None
    last = date_range(end, zone) if type(end) is str else None
    if first is None and last is None:
        return None
    low = first[0] if first else OPEN_LOW
    return low, max(last[1], low) if last else OPEN_HIGH


def _period(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    interval = _period_range(value, zone)
    if interval is not None:
        for pid in pids:
            found.date.append((pid, *interval))


def _timing(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    """Only the outer limits of a Timing count."""
    if type(value) is not dict:
        return
    events = [date_range(event, zone) for event in _list(value.get("event")) if type(event) is str]
    repeat = value.get("repeat")
    if type(repeat) is dict:
        events.append(_period_range(repeat.get("boundsPeriod"), zone))
    limits = [one for one in events if one is not None]
    if limits:
        low, high = min(one[0] for one in limits), max(one[1] for one in limits)
        for pid in pids:
            found.date.append((pid, low, high))


# --- reference and uri -----------------------------------------------------------------------------------------------


def _referred(text: str) -> tuple[str, str, str]:
    """(type, id, '') of this server's own, ('type', '', url) of all else."""
    parts = split_reference(text)
    if parts is None:
        return "", "", bounded(text)
    base, kind, key = parts
    return (kind, "", bounded(f"{base}/{kind}/{key}")) if base else (kind, key, "")


_referred_often = lru_cache(maxsize=8_192)(_referred)


def _reference(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is not dict:
        return
    said, text, identifier = value.get("type"), value.get("reference"), value.get("identifier")
    kind, key, url, system, number = "", "", "", "", ""
    if type(text) is str and text:
        kind, key, url = _referred_often(text) if len(text) <= 120 else _referred(text)
    if type(said) is str and not kind:
        kind = bounded(said)
    if type(identifier) is dict:
        system = bounded(identifier["system"]) if type(identifier.get("system")) is str else ""
        number = bounded(identifier["value"]) if type(identifier.get("value")) is str else ""
    # Without any of these (a mere display): nothing to find it by, but not missing either.
    for pid in pids:
        found.reference.append((pid, kind, key, url, system, number))


def _canonical_reference(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    """A canonical: by its url with and without the version; a relative one (`Questionnaire/1`) by type and id."""
    if type(value) is not str or not value:
        return
    parts = split_reference(value)
    if parts is not None and not parts[0]:
        for pid in pids:
            found.reference.append((pid, parts[1], parts[2], "", "", ""))
        return
    for url in _spellings(value):
        for pid in pids:
            found.reference.append((pid, "", "", bounded(url), "", ""))


def _spellings(canonical: str) -> tuple[str, ...]:
    bare = canonical.partition("|")[0]
    return (canonical,) if bare == canonical else (canonical, bare)


def _whole(targets: frozenset[str]) -> Emit:
    """A resource held inside (Bundle.entry[0].resource): a reference to it, when it is of a wanted type."""

    def emit(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
        if type(value) is dict and value.get("resourceType") in targets and type(value.get("id")) is str:
            for pid in pids:
                found.reference.append((pid, value["resourceType"], bounded(value["id"]), "", "", ""))

    return emit


def _uri(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is str and value:
        for pid in pids:
            found.uri.append((pid, bounded(value)))


def _canonical(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    if type(value) is str and value:
        for url in _spellings(value):
            for pid in pids:
                found.uri.append((pid, bounded(url)))


# --- special ---------------------------------------------------------------------------------------------------------


def _position(found: IndexRows, pids: Pids, value: Any, zone: str) -> None:
    """Location.position in degrees (WGS 84); impossible coordinates give no row."""
    if type(value) is dict and measures.is_number(value.get("latitude")) and measures.is_number(value.get("longitude")):
        latitude, longitude = nearest(value["latitude"]), nearest(value["longitude"])
        if abs(latitude) <= 90 and abs(longitude) <= 180:
            for pid in pids:
                found.coords.append((pid, latitude, longitude))


_EMITTERS: dict[tuple[str, str], Emit] = {
    **{("string", fhir): _string for fhir in ("string", "markdown", "code", "uri", "id")},
    ("string", "HumanName"): _parts(_NAME),
    ("string", "Address"): _parts(_ADDRESS),
    ("token", "Coding"): _coding,
    ("token", "CodeableConcept"): _concept,
    ("token", "Identifier"): _identifier,
    ("of-type", "Identifier"): _identifier_of_type,
    ("token", "ContactPoint"): _contact,
    ("token", "boolean"): boolean,
    **{("token", fhir): _plain_token for fhir in ("string", "id", "uri", "url", "canonical", "oid", "uuid")},
    **{("date", fhir): _date for fhir in ("date", "dateTime", "instant")},
    ("date", "Period"): _period,
    ("date", "Timing"): _timing,
    **{("number", fhir): measures.numeric for fhir in ("decimal", "integer", "positiveInt", "unsignedInt")},
    ("number", "Range"): measures.numeric_range,
    **{("quantity", fhir): measures.quantity for fhir in ("Quantity", "Age", "Duration", "Count", "Distance")},
    ("quantity", "Range"): measures.quantity_range,
    ("quantity", "Money"): measures.money,
    ("quantity", "SampledData"): measures.sampled,
    ("reference", "Reference"): _reference,
    **{("reference", fhir): _canonical_reference for fhir in ("canonical", "uri", "url")},
    **{("uri", fhir): _uri for fhir in ("uri", "url", "oid", "uuid")},
    ("uri", "canonical"): _canonical,
    ("special", "BackboneElement"): _position,
}
