"""Whether the system offers what a check builds on: answers from its CapabilityStatement and the user's settings.

A need is written `fhir:Patient.create` (an interaction of a type), `fhir:Patient.conditionalCreate` (a declared
ability), `fhir:Patient?identifier` (a search parameter), `fhir:transaction` (a system interaction),
`fhir:compartment/patient` (a compartment) or `set:ins` (a setting the user must give). A statement that cannot be read
holds no check back: the verdict then rests on the wire.

https://hl7.org/fhir/R4/capabilitystatement.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from conformance.target import Context, Target
from conformance.verdict import Failed

ABILITIES: Mapping[str, tuple[str, frozenset[object]]] = {
    # name of the need -> element of CapabilityStatement.rest.resource, values that mean yes
    "conditionalCreate": ("conditionalCreate", frozenset({True})),
    "conditionalUpdate": ("conditionalUpdate", frozenset({True})),
    "conditionalRead": ("conditionalRead", frozenset({"not-match", "full-support"})),
    "updateCreate": ("updateCreate", frozenset({True})),
    "versioned": ("versioning", frozenset({"versioned", "versioned-update"})),
}


def statement(target: Target) -> dict[str, Any] | None:
    """The CapabilityStatement, or None when it cannot be had or read."""
    if target.fhir is None:
        return None
    context = Context(target)
    try:
        with contextlib.suppress(Failed):
            answer = context.fhir.get("metadata")
            if answer.status == 200:
                return answer.resource("CapabilityStatement")
        return None
    finally:
        context.close()


def absent(need: str, declared: Mapping[str, Any] | None, target: Target) -> str:
    """Why the need is not met, as a sentence; '' when it is met or nothing is known."""
    kind, _, name = need.partition(":")
    if kind == "set":
        return "" if getattr(target.options, name) else f"the check needs --set {name}=..."
    if declared is None:
        return ""
    rest = _server(declared)
    if name.startswith("compartment/"):
        urls = rest.get("compartment")
        met = any(str(url).endswith(f"/{name[12:]}") for url in urls) if isinstance(urls, list) else False
        return "" if met else f"the CapabilityStatement declares no compartment {name[12:]}"
    if "." not in name and "?" not in name:
        met = name in _codes(rest.get("interaction"))
        return "" if met else f"the CapabilityStatement declares no {name}"
    return _absent_of_type(name, rest)


def _absent_of_type(name: str, rest: Mapping[str, Any]) -> str:
    resource_type, _, wanted = name.replace("?", ".").partition(".")
    entry = next((one for one in _list(rest.get("resource")) if one.get("type") == resource_type), None)
    if entry is None:
        return f"the CapabilityStatement declares no {resource_type}"
    if "?" in name:
        met = wanted in {one.get("name") for one in _list(entry.get("searchParam"))}
        return "" if met else f"the CapabilityStatement declares no search parameter {wanted} of {resource_type}"
    if wanted in ABILITIES:
        element, values = ABILITIES[wanted]
        value = entry.get(element)
        met = isinstance(value, str | bool) and value in values
        return "" if met else f"the CapabilityStatement says {element} {value!r} of {resource_type}"
    met = wanted in _codes(entry.get("interaction"))
    return "" if met else f"the CapabilityStatement declares no {wanted} of {resource_type}"


def _server(declared: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((one for one in _list(declared.get("rest")) if one.get("mode") == "server"), {})


def _codes(interactions: object) -> set[object]:
    return {one.get("code") for one in _list(interactions)}


def _list(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
