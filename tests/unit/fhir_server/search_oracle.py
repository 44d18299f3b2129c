"""A second opinion on search: every resource looked at, one by one, with nothing of the server's own code.

Paths run on fhirpathpy, the definitions are read as data, and everything else (folding, dates, numbers, units, tokens,
references, chains) is written here again from the standard, as slow and plain as possible.

Where R4 leaves a choice, this is what the server promises and the oracle checks: `:text` and `:contains` look inside
folded text; a canonical is found with and without its version; a bare number of a quantity ignores units; a date
without an offset is read on the clock of `zone`; the first 40,000 characters are words (of a narrative, of its first
80,000 with markup); absent sort values come last.

Sources: https://hl7.org/fhir/R4/search.html, https://ucum.org/ucum
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import fhirpathpy
    from fhirpathpy.models import models

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


def _micros(moment: datetime) -> int:
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
        return tuple(_micros(datetime(d.year, d.month, d.day, tzinfo=zone)) for d in (first, after))  # type: ignore[return-value]
    clock = re.sub(r"(Z|[+-]\d\d:\d\d)$", "", text.split("T")[1])
    width = timedelta(minutes=1)
    if clock.count(":") == 2:
        fraction = clock.partition(".")[2]
        width = timedelta(microseconds=10 ** (6 - len(fraction))) if fraction else timedelta(seconds=1)
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    return _micros(moment), _micros(moment + width)


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
    ends = [instants(one, zone) for one in value.get("event", ())]
    ends += [one for p in [value.get("repeat", {}).get("boundsPeriod")] if p for one in periods(p, zone)]  # type: ignore[misc]
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
_RELATIVE = re.compile(r"([A-Z]\w+)/([A-Za-z0-9.-]{1,64})(?:/_history/.*)?(?:\|.*)?")


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
        relative = _RELATIVE.fullmatch(value)
        if relative:
            return [Pointer((relative[1], relative[2]))]
        return [Pointer(None, one) for one in dict.fromkeys((value, value.split("|")[0]))]
    if "resourceType" in value:
        return [Pointer((value["resourceType"], value["id"]))] if "id" in value else []
    text, said = value.get("reference", ""), value.get("identifier")
    identifier = (said.get("system", ""), said.get("value", "")) if said else None
    relative = _RELATIVE.fullmatch(text)
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


# --- the oracle ------------------------------------------------------------------------------------------------------

_RESOLVED = re.compile(r"^(.*)\.where\(resolve\(\) is (\w+)\)$")


class Oracle:
    """All resources by type and id; each question answered by looking at every one of them."""

    def __init__(self, archive: Path, resources: Sequence[Resource], *, zone: str, now: datetime) -> None:
        self.known = definitions(archive)
        self.by_url = {one.url: one for codes in self.known.values() for one in codes.values()}
        self.all: dict[Key, Resource] = {(one["resourceType"], one["id"]): one for one in resources}
        self.holders: dict[Key, Key] = {}
        self.held = dict(self._contained())
        self.zone, self.now = ZoneInfo(zone), now
        self._compiled: dict[tuple[str, str], list[tuple[Callable[..., Any], str]]] = {}
        self._values: dict[tuple[Key, str], list[Any]] = {}
        self._components: dict[str, Callable[..., Any]] = {}
        self._referring: dict[tuple[str, str], dict[Key, list[Key]]] = {}

    def _contained(self) -> Iterator[tuple[Key, Resource]]:
        """Contained resources, the id written `Type/id#inner`."""
        for (kind, name), one in self.all.items():
            for inner in one.get("contained", ()):
                if isinstance(inner.get("id"), str) and inner["resourceType"] in self.known:
                    key = inner["resourceType"], f"{kind}/{name}#{inner['id']}"
                    self.holders[key] = kind, name
                    yield key, inner

    def resource(self, key: Key) -> Resource:
        return self.all[key] if key in self.all else self.held[key]

    def target(self, key: Key, pointer: Pointer) -> Key | None:
        """The resource a reference of `key` leads to, a contained one for `#id`; None when there is none."""
        if pointer.key is not None:
            return pointer.key if pointer.key in self.all else None
        if not pointer.url.startswith("#"):
            return None
        kind, name = self.holders.get(key, key)
        inside = f"{kind}/{name}{pointer.url}"
        return next((one for one, holder in self.holders.items() if holder == (kind, name) and one[1] == inside), None)

    def search_contained(self, kind: str, pairs: Sequence[tuple[str, str]], *, both: bool, container: bool) -> set[Key]:
        """What `_contained` true or both finds."""
        inside = {key for key in self.held if key[0] == kind and all(self.meets(key, *pair) for pair in pairs)}
        found = {self.holders[key] for key in inside} if container else inside
        return found | self.search(kind, pairs) if both else found

    def parameter(self, kind: str, code: str) -> Definition | None:
        """What `code` means on a type."""
        for owner in (kind, "DomainResource", "Resource"):
            found = self.known.get(owner, {}).get(code)
            if found is not None:
                return found
        return None

    def search(self, kind: str, pairs: Sequence[tuple[str, str]]) -> set[Key]:
        """The resources of a type that meet every pair; result parameters are not looked at."""
        mine = [key for key in self.all if key[0] == kind]
        asked = [
            (name, text) for name, text in pairs if name not in ("_sort", "_count", "_total") and "include" not in name
        ]
        return {key for key in mine if all(self.meets(key, name, text) for name, text in asked)}

    def meets(self, key: Key, name: str, text: str) -> bool:
        """Whether one resource meets one `name=text`."""
        if name.startswith("_has:"):
            _, source, code, rest = name.split(":", 3)
            return any(self.meets(one, rest, text) for one in self._referring_to(source, code).get(key, ()))
        if name == "_filter":
            return self._filtered(key, text)
        if name in ("_text", "_content"):
            return set(text.split(" ")) <= set(words(self.resource(key), narrative=name == "_text"))
        head, _, rest = name.partition(".")
        code, _, modifier = head.partition(":")
        if rest:
            seen = (self.target(key, one) for one in self._pointers(key, code))
            return any(
                self.meets(one, rest, text)
                for one in seen
                if one is not None and modifier in ("", one[0]) and self._has_parameter(one[0], rest)
            )
        return self._plain(key, code, modifier, text)

    def _filtered(self, key: Key, text: str) -> bool:
        """`[not (]name operator "value"[)]`, joined by and and or, from left to right."""
        found, joined = False, "or"
        for part in re.finditer(r'(not \()?(\S+) (\w\w) (?:"((?:[^"\\]|\\.)*)"|(\w+))\)?(?: (and|or) |$)', text):
            value = re.sub(r"\\(.)", r"\1", part[4]) if part[4] is not None else part[5]
            held = self._compared(key, part[2], part[3], value) != bool(part[1])
            found = (found and held) if joined == "and" else (found or held)
            joined = part[6]
        return found

    def _compared(self, key: Key, code: str, operator: str, text: str) -> bool:
        if operator == "pr":
            return self._plain(key, code, "missing", "false" if text == "true" else "true")
        definition = self.parameter(key[0], code)
        assert definition is not None, (key, code)
        values = self.values(key, code)
        if definition.type == "string":
            spelled, wanted = [folded(one) for value in values for one in strings(value)], folded(text)
            test: dict[str, Callable[[str], bool]] = {
                "eq": lambda one: one == wanted,
                "ne": lambda one: one != wanted,
                "co": lambda one: wanted in one,
                "sw": lambda one: one.startswith(wanted),
                "ew": lambda one: one.endswith(wanted),
            }
            return any(map(test[operator], spelled))
        escaped = re.sub(r"([,$\\])", r"\\\1", text)
        if definition.type == "token":
            return any(self._is_token(key, definition, "", value, escaped) for value in values)
        return any(self._is_date(key, definition, "", value, operator + text) for value in values)

    def _has_parameter(self, kind: str, rest: str) -> bool:
        code = re.split(r"[.:]", rest)[0]
        return code in ("_id", "_has", "_lastUpdated", "_text", "_content") or self.parameter(kind, code) is not None

    def _plain(self, key: Key, code: str, modifier: str, text: str) -> bool:
        if code == "_id":
            return (key[1].rpartition("#")[2] in [bare(one) for one in pieces(text, ",")]) != (modifier == "not")
        definition = self.parameter(key[0], code)
        assert definition is not None, (key, code)
        values = self.values(key, code)
        if modifier == "missing":
            return (not self._indexable(key, definition, values)) == (text == "true")
        test = getattr(self, f"_is_{definition.type}")
        found = any(test(key, definition, modifier, value, one) for one in pieces(text, ",") for value in values)
        return not found if modifier == "not" else found

    def _indexable(self, key: Key, definition: Definition, values: list[Any]) -> bool:
        readers: dict[str, Callable[[Any], list[Any]]] = {
            "token": lambda v: tokens(v, ""),
            "string": strings,
            "date": lambda v: periods(v, self.zone),
            "quantity": measures,
            "reference": pointers,
        }
        read = readers.get(definition.type, lambda v: [v])
        return any(read(value) for value in values)

    # --- values

    def values(self, key: Key, code: str) -> list[Any]:
        """What the parameter's expression selects of a resource."""
        known = self._values.get((key, code))
        if known is None:
            known = self._values[key, code] = list(self._select(key, code))
        return known

    def _select(self, key: Key, code: str) -> Iterator[Any]:
        definition = self.parameter(key[0], code)
        # A contained resource is as old as the one that holds it.
        read = self.holders.get(key, key) if code == "_lastUpdated" else key
        for compiled, only in self._paths(read[0], code):
            for value in compiled(self.resource(read)):
                # Bundle.message and Bundle.composition are the same path: the targets tell them apart.
                held = value.get("resourceType") if isinstance(value, dict) else None
                if held and definition and definition.type == "reference" and held not in definition.targets:
                    continue
                if not only or any(self._leads_to(key, one, only) for one in pointers(value)):
                    yield value

    def _leads_to(self, key: Key, pointer: Pointer, kind: str) -> bool:
        """`resolve() is T`: what the reference says, or what a contained resource is."""
        found = pointer.key or self.target(key, pointer)
        return found is not None and found[0] == kind

    def _paths(self, kind: str, code: str) -> list[tuple[Callable[..., Any], str]]:
        known = self._compiled.get((kind, code))
        if known is None:
            definition = self.parameter(kind, code)
            assert definition is not None, (kind, code)
            known = self._compiled[kind, code] = list(self._compile(kind, definition.expression))
        return known

    def _compile(self, kind: str, expression: str) -> Iterator[tuple[Callable[..., Any], str]]:
        for part in self.branches(kind, expression):
            only = _RESOLVED.match(part)
            yield fhirpathpy.compile(only[1] if only else part, models["r4"]), only[2] if only else ""

    @staticmethod
    def branches(kind: str, expression: str) -> list[str]:
        """The parts of a union that speak of a type.

        HL7's expressions say `as` of many values, which FHIRPath refuses: `ofType` is meant. They also say `DateTime`.
        A canonical is a uri, which the library here does not know.
        """
        said = re.sub(r"\(([\w.]+) as (\w+)\)", r"\1.ofType(\2)", expression).replace(".as(", ".ofType(")
        parts = [one.strip() for one in said.split(" | ")]
        mine = [one for one in parts if re.match(rf"\(*{kind}\b", one)]
        mine += [re.sub(r"^(\(*)(Resource|DomainResource)\b", rf"\g<1>{kind}", p) for p in parts if "Resource." in p]
        mine += [one.replace("ofType(uri)", "ofType(canonical)") for one in mine if "ofType(uri)" in one]
        return [one.replace("DateTime", "dateTime") for one in mine]

    def _pointers(self, key: Key, code: str) -> list[Pointer]:
        return [one for value in self.values(key, code) for one in pointers(value)]

    def _referring_to(self, source: str, code: str) -> dict[Key, list[Key]]:
        known = self._referring.get((source, code))
        if known is None:
            known = self._referring[source, code] = defaultdict(list)
            for key in self.all:
                if key[0] == source:
                    for one in self._pointers(key, code):
                        if one.key is not None:
                            known[one.key].append(key)
        return known

    # --- one value against one searched text

    def _is_string(self, key: Key, definition: Definition, modifier: str, value: Any, text: str) -> bool:
        wanted = bare(text)
        if modifier == "exact":
            return wanted in strings(value)
        spelled = [folded(one) for one in strings(value)]
        if modifier == "contains":
            return any(folded(wanted) in one for one in spelled)
        return any(one.startswith(folded(wanted)) for one in spelled)

    def _is_token(self, key: Key, definition: Definition, modifier: str, value: Any, text: str) -> bool:
        system = CODE_SYSTEMS.get((key[0], definition.code), "")
        if modifier == "of-type":
            kind, code, number = (bare(one) for one in pieces(text, "|"))
            typed = value.get("type", {}).get("coding", ())
            return value.get("value") == number and any(
                c.get("code") == code and kind in ("", c.get("system")) for c in typed
            )
        if modifier == "text":
            return any(folded(bare(text)) in folded(one[2]) for one in tokens(value, system))
        asked = [bare(one) for one in pieces(text, "|")]
        for has_system, has_code, _ in tokens(value, system):
            if len(asked) == 1:
                matched = has_code == asked[0]
            else:
                matched = has_system == asked[0] and asked[1] in ("", has_code)
            if matched:
                return True
        return False

    def _is_date(self, key: Key, definition: Definition, modifier: str, value: Any, text: str) -> bool:
        prefix, rest = self._prefixed(text)
        first, last = instants(rest, self.zone)
        if prefix == "ap":
            margin = abs(_micros(self.now) - first) // 10
            first, last = first - margin, last + margin
        return any(compare(prefix, low, high, first, last, False) for low, high in periods(value, self.zone))

    @staticmethod
    def _prefixed(text: str) -> tuple[str, str]:
        return (text[:2], text[2:]) if text[:2] in PREFIXES else ("eq", text)

    @staticmethod
    def _searched(prefix: str, text: str) -> tuple[Decimal, Decimal]:
        exact = Decimal(text)
        if prefix in ("eq", "ne"):
            return exact - half_digit(text), exact + half_digit(text)
        if prefix == "ap":
            return exact - abs(exact) / 10, exact + abs(exact) / 10
        return exact, exact

    def _is_number(self, key: Key, definition: Definition, modifier: str, value: Any, text: str) -> bool:
        prefix, rest = self._prefixed(text)
        first, last = self._searched(prefix, rest)
        return any(compare(prefix, low, high, first, last, True) for low, high in numbers(value))

    def _is_quantity(self, key: Key, definition: Definition, modifier: str, value: Any, text: str) -> bool:
        amount, *unit = (bare(one) for one in pieces(text, "|"))
        prefix, rest = self._prefixed(amount)
        first, last = self._searched(prefix, rest)
        return any(self._measured(prefix, first, last, unit, one) for one in measures(value))

    @staticmethod
    def _measured(prefix: str, first: Decimal, last: Decimal, unit: list[str], stored: Measure) -> bool:
        if unit:
            system, code = unit
            wanted, has = UNITS.get(code), UNITS.get(stored.code)
            if wanted and has and system in ("", UCUM) and stored.system == UCUM:
                if wanted[1] == has[1]:
                    first, last, stored = first * wanted[0], last * wanted[0], stored.times(has[0])
                elif system or code != stored.unit:
                    return False
            elif (system and (system, code) != (stored.system, stored.code)) or code not in (stored.code, stored.unit):
                return False
        low, high = stored.low, stored.high
        tiny = Decimal("1e-20")
        return compare(prefix, low + tiny * stored.open_low, high - tiny * stored.open_high, first, last, True)

    def _is_reference(self, key: Key, definition: Definition, modifier: str, value: Any, text: str) -> bool:
        found = pointers(value)
        if modifier == "identifier":
            system, _, number = bare(text).rpartition("|")
            return any(p.identifier and p.identifier[1] == number and system in ("", p.identifier[0]) for p in found)
        relative = _RELATIVE.fullmatch(text)
        if relative:
            return any(p.key == (relative[1], relative[2]) for p in found)
        if "/" in text or ":" in text:
            return any(p.url == bare(text) for p in found)
        return any(p.key is not None and p.key[1] == text and modifier in ("", p.key[0]) for p in found)

    def _is_uri(self, key: Key, definition: Definition, modifier: str, value: Any, text: str) -> bool:
        wanted = bare(text)
        for one in {value, value.split("|")[0]}:
            if modifier == "below" and (one == wanted or one.startswith(wanted.rstrip("/") + "/")):
                return True
            if modifier == "above" and (one == wanted or wanted.startswith(one.rstrip("/") + "/")):
                return True
            if not modifier and one == wanted:
                return True
        return False

    def _is_composite(self, key: Key, definition: Definition, modifier: str, value: Any, text: str) -> bool:
        for at, part in enumerate(pieces(text, "$")):
            kind, found = self.component(key[0], definition, at, value, self.resource(key))
            inner = self.by_url[definition.components[at][0]]
            if not any(getattr(self, f"_is_{kind}")(key, inner, "", one, part) for one in found):
                return False
        return True

    def component(
        self, kind: str, definition: Definition, at: int, value: Any, resource: Resource | None = None
    ) -> tuple[str, list[Any]]:
        """The type and the values of one component of a composite, inside one element that holds both.

        `%resource` of a component is the resource itself; without it such a component has no values.
        """
        url, path = definition.components[at]
        if path.startswith("%resource."):
            said = kind + path.removeprefix("%resource")
            return self.by_url[url].type, fhirpathpy.evaluate(resource, said, {}, models["r4"]) if resource else []
        whole, start = value, kind
        if "resourceType" not in value:
            start = next(one for one in self.branches(kind, definition.expression) if "." in one)
            whole = {"resourceType": kind, start.partition(".")[2]: [value]}
        found: list[Any] = []
        for part in path.split(" | "):
            said = f"{start}.{part}".replace("DateTime", "dateTime").replace(".as(", ".ofType(")
            if said not in self._components:
                self._components[said] = fhirpathpy.compile(said, models["r4"])
            found += self._components[said](whole)
        types = {self.by_url[one].type for one, _ in definition.components}
        type_ = self.by_url[url].type
        if found and types == {"token", "reference"}:
            # HL7 has the two components of DocumentReference.relationship the wrong way round.
            type_ = "reference" if isinstance(found[0], dict) and "reference" in found[0] else "token"
        elif type_ == "token":  # `Group.characteristic.value` is also a Reference, which is no token
            found = [one for one in found if not isinstance(one, dict) or "reference" not in one]
        return type_, found

    def _is_special(self, key: Key, definition: Definition, modifier: str, value: Any, text: str) -> bool:
        latitude, longitude, distance, unit = (*pieces(text, "|"), "", "")[:4]
        reach = float(distance or 10) * {"": 1.0, "km": 1.0, "m": 0.001}[unit]
        a, b = (math.radians(float(one)) for one in (latitude, value["latitude"]))
        turn = math.radians(float(longitude) - float(value["longitude"]))
        haversine = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(turn / 2) ** 2
        return 2 * 6371.0088 * math.asin(min(1.0, math.sqrt(haversine))) <= reach

    # --- what comes with the matches

    def included(self, matches: set[Key], rules: Sequence[tuple[str, str]]) -> set[Key]:
        """What `_include` and `_revinclude` bring, the matches left out."""
        found, fresh, first = set(matches), set(matches), True
        while fresh:
            brought: set[Key] = set()
            for name, text in rules:
                head, _, modifier = name.partition(":")
                if first or modifier:
                    for key in fresh:
                        brought |= set(self._led(key, head == "_revinclude", text))
            fresh, first = brought - found, False
            found |= fresh
        return found - matches

    def _led(self, key: Key, back: bool, text: str) -> Iterator[Key]:
        source, code, target = (*text.split(":"), "", "")[:3]
        for kind in self._kinds() if source == "*" else [source]:
            wanted = [code] if code not in ("", "*") else self._references(kind)
            for one in wanted:
                if back:
                    if target in ("", key[0]):
                        yield from self._referring_to(kind, one).get(key, ())
                elif kind == key[0]:
                    for pointer in self._pointers(key, one):
                        if pointer.key in self.all and target in ("", pointer.key[0]):
                            yield pointer.key

    def _kinds(self) -> set[str]:
        return {key[0] for key in self.all}

    def _references(self, kind: str) -> list[str]:
        owners = (kind, "DomainResource", "Resource")
        codes = {code for owner in owners for code in self.known.get(owner, ())}
        return [code for code in codes if (one := self.parameter(kind, code)) is not None and one.type == "reference"]

    # --- order

    def sort_value(self, key: Key, code: str, *, descending: bool) -> Any:
        """What a resource is sorted by: its least value, or when descending its greatest; None when it has none."""
        if code == "_id":
            return key[1]
        way, dot, rest = code.partition(".")
        if dot:
            reference, _, kind = way.partition(":")
            led = {one.key for one in self._pointers(key, reference) if one.key in self.all and one.key[0] == kind}
            ranks = [self.sort_value(one, rest, descending=descending) for one in led if one is not None]
            known = [one for one in ranks if one is not None]
            return (max(known) if descending else min(known)) if known else None
        definition = self.parameter(key[0], code)
        assert definition is not None
        found = [one for value in self.values(key, code) for one in self._ranks(key, definition, value, descending)]
        return (max(found) if descending else min(found)) if found else None

    def _ranks(self, key: Key, definition: Definition, value: Any, descending: bool) -> list[Any]:
        end = 1 if descending else 0
        match definition.type:
            case "string":
                return [folded(one) for one in strings(value)]
            case "token":
                return [one[1] for one in tokens(value, "") if one[1]]
            case "date":
                return [one[end] for one in periods(value, self.zone)]
            case "number":
                return [one[end] for one in numbers(value)]
            case "quantity":
                return [one.high if descending else one.low for one in measures(value)]
            case "reference":
                return [one.key[1] for one in pointers(value) if one.key]
        return [value]
