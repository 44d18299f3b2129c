"""A second opinion on search: every resource looked at, one by one, with nothing of the server's own code.

Paths run on fhirpathpy, the definitions are read as data, and everything else (values in `oracle_values`; chains, order
and what is included here) is written again from the standard, as slow and plain as possible.

Where R4 leaves a choice, this is what the server promises and the oracle checks: `:text` and `:contains` look inside
folded text; a canonical is found with and without its version; a bare number of a quantity ignores units; a date
without an offset is read on the clock of `zone`; the first 40,000 characters are words (of a narrative, of its first
80,000 with markup); absent sort values come last.

Sources: https://hl7.org/fhir/R4/search.html, https://ucum.org/ucum
"""

from __future__ import annotations

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from oracle_values import (
    CODE_SYSTEMS,
    PREFIXES,
    RELATIVE,
    UCUM,
    UNITS,
    Definition,
    Key,
    Measure,
    Pointer,
    Resource,
    bare,
    compare,
    definitions,
    folded,
    half_digit,
    instants,
    measures,
    micros,
    numbers,
    periods,
    pieces,
    pointers,
    strings,
    tokens,
    words,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import fhirpathpy
    from fhirpathpy.models import models

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
            margin = abs(micros(self.now) - first) // 10
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
        relative = RELATIVE.fullmatch(text)
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
