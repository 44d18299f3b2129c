"""Condenses R4 StructureDefinitions, SearchParameters, operations and compartments into rows of the data file.

Hides which parts of HL7's verbose resources are worth keeping, and repairs three known slips of R4 4.0.1: `Resource.id`
is said to be a string (it is an `id`), `positiveInt` and `unsignedInt` are said to hold a System.String, and system
types are spelled as FHIRPath URLs. Pure functions, dict in, JSON-able value out; `profiles/definitions.py` reads the
rows back, in the same column order.

Normative: https://hl7.org/fhir/R4/elementdefinition.html, https://hl7.org/fhir/R4/datatypes.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]

CORE = "http://hl7.org/fhir/StructureDefinition/"
SYSTEM = "http://hl7.org/fhirpath/System."
FHIR_TYPE = CORE + "structuredefinition-fhir-type"
REGEX = CORE + "regex"
MAX_VALUE_SET = CORE + "elementdefinition-maxValueSet"

# Bits of the flags column.
MODIFIER, SUMMARY, CHOICE, XML_ATTRIBUTE, XHTML = 1, 2, 4, 8, 16

# Prose that no rule needs; `short` is kept because it makes a good error message.
PROSE = ("definition", "comment", "requirements", "alias", "mapping", "example", "meaningWhenMissing")


def tail(url: str) -> str:
    """The last segment of a core URL, so `Patient` for HL7's own profile; any other URL whole."""
    return url.removeprefix(CORE) if url.startswith(CORE) else url


def canonical(url: str) -> str:
    """A canonical reference without its `|version`."""
    return url.partition("|")[0]


def element_rows(definition: Json) -> list[list[Any]]:
    """One row per snapshot element but the root: path, min, max (-1 = *), types, flags, short, rare columns by name."""
    root = str(definition["type"])
    resource = definition["kind"] == "resource"
    rows: list[list[Any]] = []
    for element in definition["snapshot"]["element"][1:]:
        path = str(element["path"])
        is_resource_id = resource and path == f"{root}.id"
        types = ["id"] if is_resource_id else _types(element.get("type", []), path)
        maximum = -1 if element["max"] == "*" else int(element["max"])
        rows.append(
            [path, int(element["min"]), maximum, types, _flags(element), element.get("short", ""), _rare(element)]
        )
    return rows


def _types(types: Sequence[Json], path: str) -> list[str]:
    names: list[str] = []
    for item in types:
        code = str(item["code"])
        if code.startswith(SYSTEM):
            # The `value` of a primitive really is of a system type; elsewhere the FHIR type is meant.
            inner = "System." + code.removeprefix(SYSTEM)
            code = inner if path.endswith(".value") else str(_extension(item, FHIR_TYPE) or "string")
        if code not in names:
            names.append(code)
    return names


def _flags(element: Json) -> int:
    representation = element.get("representation", ())
    return (
        MODIFIER * bool(element.get("isModifier"))
        | SUMMARY * bool(element.get("isSummary"))
        | CHOICE * str(element["path"]).endswith("[x]")
        | XML_ATTRIBUTE * ("xmlAttr" in representation)
        | XHTML * ("xhtml" in representation)
    )


def _rare(element: Json) -> dict[str, Any]:
    rare: dict[str, Any] = {}
    types = element.get("type", [])
    for column, code in (("targets", "Reference"), ("canonicals", "canonical")):
        targets = [tail(url) for item in types if item["code"] == code for url in item.get("targetProfile", ())]
        if targets:
            rare[column] = list(dict.fromkeys(targets))
    profiles = [tail(url) for item in types for url in item.get("profile", ())]
    if profiles:
        rare["profiles"] = profiles
    if "contentReference" in element:
        rare["reference"] = str(element["contentReference"]).removeprefix("#")
    binding = element.get("binding", {})
    if "valueSet" in binding:
        rare["binding"] = [binding["strength"], canonical(binding["valueSet"])]
        maximum = _extension(binding, MAX_VALUE_SET)
        if maximum:
            rare["binding"].append(canonical(str(maximum)))
    return rare


def _extension(holder: Json, url: str) -> Any:
    for item in holder.get("extension", ()):
        if item["url"] == url:
            return next((value for key, value in item.items() if key.startswith("value")), None)
    return None


def invariant_rows(definition: Json) -> list[list[str]]:
    """Rules of this type's own elements: path, key, severity, human, expression.

    A rule inherited from the element's own type (such as ele-1, ext-1) is found on that type and not repeated.
    """
    own = str(definition["url"])
    name = str(definition["type"])
    rows: list[list[str]] = []
    for element in definition["snapshot"]["element"]:
        for rule in element.get("constraint", ()):
            source = rule.get("source", own)
            if source in (own, name) or (element["path"] == name and source.startswith(CORE)):
                rows.append([element["path"], rule["key"], rule["severity"], rule["human"], rule.get("expression", "")])
    return rows


def primitive_row(definition: Json) -> list[str]:
    """Name, base, regex ('' when none), FHIRPath system type."""
    name = str(definition["type"])
    value = next(item for item in definition["snapshot"]["element"] if item["path"] == f"{name}.value")
    kind = value["type"][0]
    system = str(kind["code"]).removeprefix(SYSTEM)
    if name in ("positiveInt", "unsignedInt"):
        system = "Integer"
    return [name, tail(definition["baseDefinition"]), str(_extension(kind, REGEX) or ""), system]


def extension_definition(definition: Json) -> list[Any]:
    """Url, title, contexts, and the tree of what the extension holds."""
    contexts = [[item["type"], item["expression"]] for item in definition.get("context", ())]
    elements = {str(item["id"]): item for item in definition["snapshot"]["element"]}
    title = definition.get("title") or definition["name"]
    return [definition["url"], title, contexts, _extension_node("Extension", elements)]


def _extension_node(ident: str, elements: Mapping[str, Json]) -> list[Any]:
    root = elements[ident]
    value = elements.get(f"{ident}.value[x]", {"max": "0", "path": "", "type": []})
    allowed = value["max"] != "0"
    parts = [
        key
        for key in elements
        if key.startswith(f"{ident}.extension:") and "." not in key.removeprefix(f"{ident}.extension:")
    ]
    return [
        elements.get(f"{ident}.url", {}).get("fixedUri", ""),
        int(root["min"]),
        -1 if root["max"] == "*" else int(root["max"]),
        bool(root.get("isModifier")),
        _types(value["type"], "") if allowed else [],
        _rare(value) if allowed else {},
        [_extension_node(key, elements) for key in parts],
    ]


def profile_document(definition: Json) -> dict[str, Any]:
    """A constraint profile as a StructureDefinition without prose: its snapshot, else its differential."""
    kept = ("url", "name", "title", "kind", "abstract", "type", "baseDefinition", "derivation", "context")
    document: dict[str, Any] = {key: definition[key] for key in kept if key in definition}
    view = "snapshot" if "snapshot" in definition else "differential"
    elements = definition[view]["element"]
    document[view] = {
        "element": [{key: value for key, value in element.items() if key not in PROSE} for element in elements]
    }
    return document


def search_parameter(parameter: Json, standard: bool) -> list[Any]:
    """Url, code, type, expression, bases, targets, components, comparators, modifiers, multiple or/and, standard."""
    components = [[item["definition"], item["expression"]] for item in parameter.get("component", ())]
    return [
        parameter["url"],
        parameter["code"],
        parameter["type"],
        parameter.get("expression", ""),
        parameter.get("base", []),
        parameter.get("target", []),
        components,
        parameter.get("comparator", []),
        parameter.get("modifier", []),
        parameter.get("multipleOr", True),
        parameter.get("multipleAnd", True),
        standard,
    ]


def operation(definition: Json) -> dict[str, Any]:
    """An OperationDefinition without its prose."""
    kept = ("url", "name", "code", "kind", "affectsState", "resource", "system", "type", "instance")
    document: dict[str, Any] = {key: definition[key] for key in kept if key in definition}
    document["parameter"] = [_parameter(item) for item in definition.get("parameter", ())]
    return document


def _parameter(item: Json) -> dict[str, Any]:
    kept = {key: value for key, value in item.items() if key not in ("documentation", "part", "extension")}
    if "part" in item:
        kept["part"] = [_parameter(part) for part in item["part"]]
    return kept


def compartment(definition: Json) -> list[Any]:
    """Code and, by resource type, the search parameters that make a resource a member (absent when never one)."""
    members = {item["code"]: item["param"] for item in definition["resource"] if item.get("param")}
    return [definition["code"], members]
