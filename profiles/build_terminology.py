"""Condenses R4 CodeSystems and ValueSets: code lists of required bindings, and the rest in small buckets.

Hides which expansions can be trusted as complete, and what may not be passed on: SNOMED CT concepts are licensed by
country, so the lists of them that HL7's value sets hold are left out and only counted. Pure functions, dict in,
JSON-able value out.

Normative: https://hl7.org/fhir/R4/valueset.html, https://hl7.org/fhir/R4/codesystem.html
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]

INCOMPLETE = frozenset(
    {
        "http://hl7.org/fhir/StructureDefinition/valueset-toocostly",
        "http://hl7.org/fhir/StructureDefinition/valueset-unclosed",
    }
)
BUCKETS = 32
WITHHELD = frozenset({"http://snomed.info/sct"})


def bucket(url: str) -> int:
    """Where a canonical URL (without version) is kept."""
    return zlib.crc32(url.encode("utf-8")) % BUCKETS


def expansion(value_set: Json) -> dict[str, dict[str, str]] | None:
    """The complete expansion as system -> code -> display; None when it is partial or has no codes."""
    expanded = value_set.get("expansion", {})
    if any(item["url"] in INCOMPLETE for item in expanded.get("extension", ())):
        return None
    names = _english(value_set)
    codes: dict[str, dict[str, str]] = {}
    for item in _selectable(expanded.get("contains", ())):
        system, code = str(item.get("system", "")), str(item["code"])
        codes.setdefault(system, {})[code] = names.get((system, code)) or item.get("display", "")
    return codes or None


def _selectable(items: Iterable[Json]) -> Iterator[Json]:
    for item in items:
        if "code" in item and not item.get("abstract"):
            yield item
        yield from _selectable(item.get("contains", ()))


def _english(value_set: Json) -> dict[tuple[str, str], str]:
    """Displays of the definition itself: the published expansions carry translations for some systems."""
    return {
        (str(include.get("system", "")), str(concept["code"])): str(concept.get("display", ""))
        for include in value_set.get("compose", {}).get("include", ())
        for concept in include.get("concept", ())
    }


def value_set(definition: Json) -> dict[str, Any]:
    """A ValueSet's name and compose, without designations and extensions."""
    compose = definition.get("compose", {})
    document: dict[str, Any] = {"name": definition.get("title") or definition.get("name", "")}
    for key in ("include", "exclude"):
        if key in compose:
            document[key] = [_include(item) for item in compose[key]]
    return document


def _include(item: Json) -> dict[str, Any]:
    kept: dict[str, Any] = {key: item[key] for key in ("system", "version", "filter", "valueSet") if key in item}
    if item.get("system") in WITHHELD and "concept" in item:
        kept["withheld"] = len(item["concept"])
    elif "concept" in item:
        kept["concept"] = [[concept["code"], concept.get("display", "")] for concept in item["concept"]]
    return kept


def code_system(definition: Json) -> dict[str, Any]:
    """A CodeSystem's head and its concepts as rows: code, display, parents' row numbers, abstract (1) or not (0)."""
    document: dict[str, Any] = {
        "name": definition.get("title") or definition.get("name", ""),
        "content": definition["content"],
        "caseSensitive": bool(definition.get("caseSensitive", False)),
    }
    if "hierarchyMeaning" in definition:
        document["hierarchyMeaning"] = definition["hierarchyMeaning"]
    rows: list[list[Any]] = []
    _concepts(definition.get("concept", ()), [], rows)
    _subsumed(definition.get("concept", ()), rows)
    document["concept"] = rows
    return document


def _concepts(concepts: Iterable[Json], parents: list[int], rows: list[list[Any]]) -> None:
    for concept in concepts:
        here = len(rows)
        abstract = any(
            item["code"] in ("notSelectable", "abstract") and item.get("valueBoolean")
            for item in concept.get("property", ())
        )
        rows.append([concept["code"], concept.get("display", ""), list(parents), int(abstract)])
        _concepts(concept.get("concept", ()), [here], rows)


def _subsumed(concepts: Iterable[Json], rows: list[list[Any]]) -> None:
    """Add the parents that v3 code systems state by a `subsumedBy` property instead of nesting."""
    place = {row[0]: number for number, row in enumerate(rows)}
    for concept in _flat(concepts):
        for item in concept.get("property", ()):
            if item["code"] in ("subsumedBy", "parent"):
                parent = place.get(item.get("valueCode"))
                parents = rows[place[concept["code"]]][2]
                if parent is not None and parent not in parents:
                    parents.append(parent)


def _flat(concepts: Iterable[Json]) -> Iterator[Json]:
    for concept in concepts:
        yield concept
        yield from _flat(concept.get("concept", ()))


def buckets(documents: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The documents by URL, spread over the buckets so that one look-up parses a thirty-second of them."""
    spread: dict[int, dict[str, Any]] = {number: {} for number in range(BUCKETS)}
    for url in sorted(documents):
        spread[bucket(url)][url] = documents[url]
    return spread
