"""What stored values and searched texts mean, for the second opinion on search: nothing of the server's own code.

Folding, dates, numbers, units, tokens, references and words are written here again from the standard, as slow and plain
as possible; `search_oracle` says which value of a resource meets which question.

Sources: https://hl7.org/fhir/R4/search.html, https://ucum.org/ucum
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

Resource = dict[str, Any]
Key = tuple[str, str]
SPECIAL_VALUES = "http://terminology.hl7.org/CodeSystem/special-values"
UCUM = "http://unitsofmeasure.org"
PREFIXES = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")

# Elements of type code have no system of their own; their required binding names it.
CODE_SYSTEMS = {
    ("Patient", "gender"): "http://hl7.org/fhir/administrative-gender",
    ("Encounter", "status"): "http://hl7.org/fhir/encounter-status",
    ("Observation", "status"): "http://hl7.org/fhir/observation-status",
    ("DiagnosticReport", "status"): "http://hl7.org/fhir/diagnostic-report-status",
    ("Procedure", "status"): "http://hl7.org/fhir/event-status",
    # The name HL7 gives to the code of DocumentReference.relatesTo in its composite.
    ("DocumentReference", "relatesto"): "http://hl7.org/fhir/document-relationship-type",
    ("DocumentReference", "relation"): "http://hl7.org/fhir/document-relationship-type",
    ("Claim", "use"): "http://hl7.org/fhir/claim-use",
    ("Claim", "status"): "http://hl7.org/fhir/fm-status",
}

# Unit: (factor, base unit); enough of UCUM for the data at hand, worked out by hand.
UNITS = {
    "g/dL": (Decimal(10000), "g.m-3"),
    "g/L": (Decimal(1000), "g.m-3"),
    "mg/dL": (Decimal(10), "g.m-3"),
    "mg/L": (Decimal(1), "g.m-3"),
    "ug/mL": (Decimal(1), "g.m-3"),
    "kg": (Decimal(1000), "g"),
    "g": (Decimal(1), "g"),
    "mg": (Decimal("0.001"), "g"),
    "cm": (Decimal("0.01"), "m"),
    "mm": (Decimal("0.001"), "m"),
    "m": (Decimal(1), "m"),
    "ng/mL": (Decimal("0.001"), "g.m-3"),
    "pg": (Decimal("1e-12"), "g"),
    "mm[Hg]": (Decimal(133322), "g.m-1.s-2"),
    "kPa": (Decimal(1000000), "g.m-1.s-2"),
    "kg/m2": (Decimal(1000), "g.m-2"),
    "fL": (Decimal("1e-18"), "m3"),
    "10*3/uL": (Decimal(1000000000000), "m-3"),
    "10*6/uL": (Decimal(1000000000000000), "m-3"),
    "10*9/L": (Decimal(1000000000000), "m-3"),
    "{T-score}": (Decimal(1), "1"),
    "1": (Decimal(1), "1"),
    "mmol/L": (Decimal("602214076000000000000000"), "m-3"),
    "mol/m3": (Decimal("602214076000000000000000"), "m-3"),
    "/min": (Decimal(1) / 60, "s-1"),
    "{score}": (Decimal(1), "1"),
    "%": (Decimal("0.01"), "1"),
    "mg/g": (Decimal("0.001"), "1"),
    **dict.fromkeys(("{nominal}", "{INR}", "{count}", "{#}"), (Decimal(1), "1")),
    "s": (Decimal(1), "s"),
    "pg/mL": (Decimal("1e-6"), "g.m-3"),
    "ug/L": (Decimal("0.001"), "g.m-3"),
    "ug/dL": (Decimal("0.01"), "g.m-3"),
    "U/L": (Decimal("602214076000000000000") / 60, "m-3.s-1"),
    "kU/L": (Decimal("602214076000000000000000") / 60, "m-3.s-1"),
    **dict.fromkeys(("mL/min", "mL/min/{1.73_m2}"), (Decimal("1e-6") / 60, "m3.s-1")),
}


@dataclass(frozen=True)
class Definition:
    """A search parameter as the standard's file has it."""

    url: str
    code: str
    type: str
    expression: str
    targets: tuple[str, ...]
    components: tuple[tuple[str, str], ...]


def definitions(archive: Path) -> dict[str, dict[str, Definition]]:
    """Type -> code -> parameter, without those that no index of values answers."""
    with zipfile.ZipFile(archive) as opened:
        rows = json.loads(opened.read("search.json"))
    found: dict[str, dict[str, Definition]] = defaultdict(dict)
    for url, code, kind, expression, bases, targets, components, *_, standard in rows:
        if standard and expression and code not in ("phonetic", "_text", "_content", "_query"):
            one = Definition(url, code, kind, expression, tuple(targets), tuple(map(tuple, components)))
            for base in bases:
                found[base].setdefault(code, one)
    return dict(found)


# --- text, time and numbers ------------------------------------------------------------------------------------------

_LETTERS = {"œ": "oe", "æ": "ae", "ø": "o", "đ": "d", "ð": "d", "ł": "l", "þ": "th", "ı": "i", "’": "'", "–": "-"}


def folded(text: str) -> str:
    """Without case, marks and doubled spaces."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(_LETTERS.get(c, c) for c in parts if unicodedata.category(c) != "Mn")
    return re.sub(r"\s+", " ", bare).strip()


def micros(moment: datetime) -> int:
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


DATE = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d.*)?)?)?")


def instants(text: str, zone: ZoneInfo) -> tuple[int, int]:
    """[first, after the last] microsecond of a date or time as precise as it is written."""
    if "T" not in text:
        numbers = [int(one) for one in text.split("-")]
        first = date(*[*numbers, 1, 1][:3])
        if len(numbers) == 3:
            after = first + timedelta(days=1)
        elif len(numbers) == 2:
            after = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        else:
            after = date(first.year + 1, 1, 1)
        begin, end = (micros(datetime(d.year, d.month, d.day, tzinfo=zone)) for d in (first, after))
        return begin, end
    clock = re.sub(r"(Z|[+-]\d\d:\d\d)$", "", text.split("T")[1])
    width = timedelta(minutes=1)
    if clock.count(":") == 2:
        fraction = clock.partition(".")[2]
        width = timedelta(microseconds=10 ** (6 - len(fraction))) if fraction else timedelta(seconds=1)
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return micros(moment), micros(moment + width)


def half_digit(text: str) -> Decimal:
    """Half a unit of the last digit written."""
    mantissa, _, exponent = text.lower().partition("e")
    places = len(mantissa.partition(".")[2])
    return Decimal(5).scaleb(int(exponent or 0) - places - 1)


INFINITY = Decimal("Infinity")


def compare(prefix: str, low: Any, high: Any, first: Any, last: Any, closed: bool) -> bool:
    """A stored range [low, high] against the searched [first, last); `closed`: the ends of the stored one are in."""
    inside = first <= low and (high < last or (not closed and high == last) or (first == last == high))
    if prefix == "eq":
        return bool(inside)
    if prefix == "ne":
        return not inside
    above, below = high > last, low < first
    if prefix in ("gt", "ge"):
        return bool(above or (prefix == "ge" and inside))
    if prefix in ("lt", "le"):
        return bool(below or (prefix == "le" and inside))
    if prefix == "sa":
        return bool(low > last if closed else low >= last)
    if prefix == "eb":
        return bool(high < first if closed else high <= first)
    return bool(low <= last and high >= first if closed else low < last and high > first)


def pieces(text: str, mark: str) -> list[str]:
    """Cut where no backslash stands before the mark; the pieces keep their escapes."""
    found = [""]
    for one in re.findall(r"\\.|.", text, re.DOTALL):
        if one == mark:
            found.append("")
        else:
            found[-1] += one
    return found


def bare(text: str) -> str:
    """Without escapes."""
    return re.sub(r"\\([,|$\\])", r"\1", text)


# --- values of a resource, by the type of the parameter --------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A stored quantity: `low` to `high`, `open_*` when the end is left out."""

    system: str
    code: str
    unit: str
    low: Decimal
    high: Decimal
    open_low: bool = False
    open_high: bool = False

    def times(self, factor: Decimal) -> Measure:
        return Measure("", "", "", self.low * factor, self.high * factor, self.open_low, self.open_high)


def tokens(value: Any, system: str) -> list[tuple[str, str, str]]:
    """(system, code, text)"""
    if isinstance(value, bool):
        return [(SPECIAL_VALUES, str(value).lower(), "")]
    if isinstance(value, str):
        return [(system, value, "")]
    if "coding" in value or set(value) <= {"text", "id", "extension"}:
        found = [(c.get("system", ""), c.get("code", ""), c.get("display", "")) for c in value.get("coding", ())]
        return [*found, *([("", "", value["text"])] if "text" in value else [])]
    if "value" in value:
        return [(value.get("system", ""), value["value"], value.get("type", {}).get("text", ""))]
    return [(value.get("system", ""), value.get("code", ""), value.get("display", ""))]


def strings(value: Any) -> list[str]:
    """A text, or the parts of a name or an address."""
    if isinstance(value, str):
        return [value]
    names = ("family", "given", "prefix", "suffix", "text", "line", "city", "district", "state", "postalCode")
    found: list[str] = []
    for name in (*names, "country"):
        part = value.get(name, [])
        found += [part] if isinstance(part, str) else [one for one in part if one is not None]
    return found


def periods(value: Any, zone: ZoneInfo) -> list[tuple[float, float]]:
    """[first, after the last] microsecond of a date, a Period or a Timing's outer limits."""
    if isinstance(value, str):  # an element may be a date or a mere text (`performedString`)
        return [instants(value, zone)] if DATE.fullmatch(value) else []
    if "start" in value or "end" in value:
        first = instants(value["start"], zone)[0] if "start" in value else -math.inf
        last = instants(value["end"], zone)[1] if "end" in value else math.inf
        return [(first, max(first, last))]
    ends: list[tuple[float, float]] = [instants(one, zone) for one in value.get("event", ())]
    bounds = value.get("repeat", {}).get("boundsPeriod")
    ends += periods(bounds, zone) if bounds else []
    return [(min(e[0] for e in ends), max(e[1] for e in ends))] if ends else []


def numbers(value: Any) -> list[tuple[Decimal, Decimal]]:
    if isinstance(value, dict):
        low, high = value.get("low", {}).get("value"), value.get("high", {}).get("value")
        return [(-INFINITY if low is None else Decimal(low), INFINITY if high is None else Decimal(high))]
    return [(Decimal(value), Decimal(value))]


def measures(value: Any) -> list[Measure]:
    if "currency" in value:
        return [
            Measure("urn:iso:std:iso:4217", value["currency"], "", Decimal(value["value"]), Decimal(value["value"]))
        ]
    if "origin" in value:
        origin, factor = value["origin"], Decimal(value.get("factor", 1))
        seen = [Decimal(one) for one in value["data"].split() if one not in "EUL"]
        ends = sorted(Decimal(origin["value"]) + factor * one for one in (min(seen), max(seen)))
        return [_measure(origin, ends[0], ends[1])]
    if "low" in value or "high" in value:
        low, high = numbers(value)[0]
        return [_measure(value.get("low") or value["high"], low, high)]
    if "value" not in value:
        return []
    exact = Decimal(value["value"])
    match value.get("comparator"):
        case "<":
            return [_measure(value, -INFINITY, exact, open_high=True)]
        case "<=":
            return [_measure(value, -INFINITY, exact)]
        case ">":
            return [_measure(value, exact, INFINITY, open_low=True)]
        case ">=":
            return [_measure(value, exact, INFINITY)]
    return [_measure(value, exact, exact)]


def _measure(unit: Resource, low: Decimal, high: Decimal, **ends: bool) -> Measure:
    return Measure(unit.get("system", ""), unit.get("code", ""), unit.get("unit", ""), low, high, **ends)


_ABSOLUTE = re.compile(r"https?://.*/([A-Z]\w+)/([A-Za-z0-9.-]{1,64})(?:/_history/.*)?")
RELATIVE = re.compile(r"([A-Z]\w+)/([A-Za-z0-9.-]{1,64})(?:/_history/.*)?(?:\|.*)?")


@dataclass(frozen=True)
class Pointer:
    """A stored reference: to a resource of this server (`key`), to a URL or inside (`#id`), or by identifier."""

    key: Key | None
    url: str = ""
    identifier: tuple[str, str] | None = None


def pointers(value: Any) -> list[Pointer]:
    if isinstance(value, str):
        if value.startswith("#"):
            return [Pointer(None, value)]
        relative = RELATIVE.fullmatch(value)
        if relative:
            return [Pointer((relative[1], relative[2]))]
        return [Pointer(None, one) for one in dict.fromkeys((value, value.split("|")[0]))]
    if "resourceType" in value:
        return [Pointer((value["resourceType"], value["id"]))] if "id" in value else []
    text, said = value.get("reference", ""), value.get("identifier")
    identifier = (said.get("system", ""), said.get("value", "")) if said else None
    relative = RELATIVE.fullmatch(text)
    if relative:
        return [Pointer((relative[1], relative[2]), "", identifier)]
    return [Pointer(None, text, identifier)]


# --- words -----------------------------------------------------------------------------------------------------------

_FOR_MACHINES = {"resourceType", "id", "meta", "system", "url", "reference", "contentType", "data", "hash", "status"}


def words(resource: Resource, *, narrative: bool) -> list[str]:
    """The folded words of the narrative, or of all else that people read."""
    if narrative:
        text = resource.get("text", {}).get("div", "")
        texts = [re.sub(r"<[^>]*>|&#?\w+;", " ", text[:80_000])]
    else:
        texts = list(_said(resource))
    return re.findall(r"[^\W_]+", folded(" ".join(texts)[:40_000]))


def _said(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _said(inner)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in _FOR_MACHINES and name not in ("div", "versionId"):
                yield from _said(inner)
