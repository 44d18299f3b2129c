"""The value of a FHIRPath Patch operation as the JSON of the element it is for.

Hides how a part of Parameters carries content (one value[x], a resource, or parts named like the children for types
that value[x] lacks), and how its type is matched with what the element may hold.

Normative: https://hl7.org/fhir/R4/fhirpatch.html (anonymous types), https://hl7.org/fhir/R4/datatypes.html#open
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from profiles import definitions
from profiles.fhirpath.model import Property, properties
from profiles.validator.primitives import TESTS, explain
from profiles.xml_rules import nearest


class Misfit(Exception):
    """An operation does not fit the resource; `message` says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Content(NamedTuple):
    """A value for one JSON property; `beside` is the `_` sibling of a primitive; one of them may be None."""

    property: Property
    value: Any
    beside: dict[str, Any] | None = None


def options(place: str, name: str) -> tuple[Property, ...]:
    """The JSON properties an element name may mean at a place: `value`, `value[x]` all types, `valueCode` one."""
    known = properties(place)
    found = known.get(name.removesuffix("[x]")) or tuple(
        option for options in known.values() for option in options if option.json == name
    )
    if not found:
        raise Misfit(f"{place} has no element '{name[:64]}'{nearest(name, known)}")
    return found


def siblings(place: str, json: str) -> tuple[Property, ...]:
    """The properties of the element that has this JSON property: itself, or all types of the choice."""
    return next(found for found in properties(place).values() if any(option.json == json for option in found))


def content_of(part: Mapping[str, Any], choices: tuple[Property, ...]) -> Content:
    """The content of a part for an element that may be written as one of `choices`. Raises Misfit."""
    names = {key.removeprefix("_") for key in part if key.removeprefix("_").startswith("value")}
    given = [*names, *(key for key in ("resource", "part") if key in part)]
    if len(given) != 1:
        raise Misfit("the value must be one value[x], one resource, or parts named like the children")
    if "resource" in part:
        return _resource(part["resource"], choices)
    if "part" in part:
        return _built(part["part"], choices)
    return _typed(given[0], part.get(given[0]), part.get(f"_{given[0]}"), choices)


def _typed(key: str, value: Any, beside: Any, choices: tuple[Property, ...]) -> Content:
    child = definitions.children("Parameters.parameter").get(key)
    if child is None:
        raise Misfit(f"'{key[:64]}' is no value[x] of Parameters")
    chosen = _fitting(child.type, value, choices)
    if beside is not None and (not chosen.primitive or not isinstance(beside, dict)):
        raise Misfit(f"'_{key}' must be an object with id or extension, beside a primitive value")
    if value is None and beside is None:
        raise Misfit(f"'{key}' is null: give a value")
    if chosen.primitive and value is not None and not TESTS[chosen.type](value):
        raise Misfit(f"'{chosen.json}' ({chosen.type}) must be {explain(chosen.type, value)[1]}")
    if not chosen.primitive and not isinstance(value, dict):
        raise Misfit(f"'{key}' must be an object")
    return Content(chosen, value, beside)


def _fitting(given: str, value: Any, choices: tuple[Property, ...]) -> Property:
    for chosen in choices:
        if chosen.type == given:
            return chosen
    for chosen in choices:
        if definitions.is_a(given, chosen.type):
            return chosen
    # Another primitive type is forgiven where the value itself is right.
    only = choices[0] if len(choices) == 1 and choices[0].primitive and definitions.is_primitive(given) else None
    if only is not None and (value is None or TESTS[only.type](value)):
        return only
    types = ", ".join(option.type for option in choices[:12]) + (", …" if len(choices) > 12 else "")
    element = choices[0].json if len(choices) == 1 else "this element"
    raise Misfit(f"{element} takes {types}, not {given}: give the value in that type")


def _resource(value: Any, choices: tuple[Property, ...]) -> Content:
    if choices[0].type != "Resource":
        raise Misfit(f"'{choices[0].json}' holds no resource: give a value[x] or parts")
    if not isinstance(value, dict) or not isinstance(value.get("resourceType"), str):
        raise Misfit("the resource must be an object with a resourceType")
    return Content(choices[0], value)


def _built(parts: Any, choices: tuple[Property, ...]) -> Content:
    if len(choices) > 1:
        raise Misfit(f"the parts do not tell the type: name the element with it, such as '{choices[0].json}'")
    chosen = choices[0]
    if chosen.type == "Resource":
        raise Misfit(f"'{chosen.json}' holds a resource: give it as the resource of the part")
    if not isinstance(parts, list) or not parts:
        raise Misfit("the parts must be an array with at least one part")
    node: dict[str, Any] = {}
    for part in parts:
        name = part.get("name") if isinstance(part, dict) else None
        if not isinstance(name, str):
            raise Misfit("each part must have a name, that of the child it gives")
        _keep(node, content_of(part, options(chosen.place, name)))
    return Content(chosen, None, node) if chosen.primitive else Content(chosen, node)


def _keep(node: dict[str, Any], content: Content) -> None:
    name, beside_name = content.property.json, f"_{content.property.json}"
    if not content.property.many:
        if name in node or beside_name in node:
            raise Misfit(f"'{name}' stands twice among the parts, but may be given once")
        if content.value is not None:
            node[name] = content.value
        if content.beside is not None:
            node[beside_name] = content.beside
        return
    values, beside = node.setdefault(name, []), node.get(beside_name)
    values.append(content.value)
    if beside is None and content.beside is not None:
        beside = node[beside_name] = [None] * (len(values) - 1)
    if beside is not None:
        beside.append(content.beside)
