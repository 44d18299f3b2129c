"""The function library: what FHIR R4 adds.

Source: https://hl7.org/fhir/R4/fhirpath.html#functions
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from profiles import definitions
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.functions_text import one, string
from profiles.fhirpath.model import Collection, Node, child_nodes, is_a, known_type, resource_of, root_node, root_of
from profiles.fhirpath.scope import Closure, Function, Scope, single
from profiles.fhirpath.xhtml import well_formed_narrative

# What a question to another room (a store, a terminology, a validator) costs, in elements of the budget.
_ASKING = 64


def _extension(scope: Scope, items: Collection, url: Closure) -> Collection:
    wanted = string(scope, url, "the url of extension()")
    found: Collection = []
    for item in items:
        if type(item) is Node:
            below = child_nodes(item, "extension")
            scope.env.spend(len(below) + 1)
            found += [node for node in below if node.value.get("url") == wanted]
    return found


def _has_extension(scope: Scope, items: Collection, url: Closure) -> Collection:
    return [bool(_extension(scope, items, url))]


def _has_value(scope: Scope, items: Collection) -> Collection:
    return [len(items) == 1 and _primitive(items[0])]


def _get_value(scope: Scope, items: Collection) -> Collection:
    return [items[0].value] if len(items) == 1 and _primitive(items[0]) and isinstance(items[0], Node) else []


def _primitive(item: Any) -> bool:
    if not isinstance(item, Node):
        return True
    return item.value is not None and definitions.is_primitive(item.type)


# --- references ------------------------------------------------------------------------------------------------------


def resolve(scope: Scope, items: Collection) -> Collection:
    """resolve(): contained resources and entries of the same Bundle by ourselves, the rest through the service."""
    found: Collection = []
    for item in items:
        text = _reference_text(item)
        if text:
            scope.env.spend(1)
            target = _resolved(scope, item, text)
            if target is not None:
                found.append(target)
    return found


def _reference_text(item: Any) -> str:
    if isinstance(item, Node):
        value = item.value.get("reference") if isinstance(item.value, dict) else item.value
        return value if isinstance(value, str) else ""
    return item if isinstance(item, str) else ""


def _resolved(scope: Scope, item: Any, text: str) -> Node | None:
    if isinstance(item, Node):
        if text.startswith("#"):
            return _contained(scope, root_of(item), text[1:])
        entry = _in_bundle(scope, item, text)
        if entry is not None:
            return entry
    if scope.env.resolve is None:
        return None
    scope.env.spend(_ASKING)
    found = scope.env.resolve(text)
    return None if found is None else root_node(found)


def _contained(scope: Scope, root: Node, wanted: str) -> Node | None:
    if not wanted:
        return root
    within = child_nodes(root, "contained")
    scope.env.spend(len(within))
    for node in within:
        if isinstance(node.value, dict) and node.value.get("id") == wanted:
            return node
    return None


def _in_bundle(scope: Scope, item: Node, text: str) -> Node | None:
    holder = resource_of(item)
    while holder.parent is not None and holder.type != "Bundle":
        holder = resource_of(holder.parent)
    if holder.type != "Bundle":
        return None
    entries = child_nodes(holder, "entry")
    scope.env.spend(len(entries))
    for entry in entries:
        url = entry.value.get("fullUrl") if isinstance(entry.value, dict) else None
        if isinstance(url, str) and (url == text or ("/" in text and url.endswith("/" + text))):
            resources = child_nodes(entry, "resource")
            return resources[0] if resources else None
    return None


# --- profiles --------------------------------------------------------------------------------------------------------


def _conforms_to(scope: Scope, items: Collection, profile: Closure) -> Collection:
    url = string(scope, profile, "the profile of conformsTo()")
    item = single(items, "conformsTo()")
    if item is None or url is None:
        return []
    name = url.partition("|")[0].removeprefix(definitions.CORE)
    if known_type(name):
        return [isinstance(item, Node) and is_a(item.type, name)]
    verdict = None
    if scope.env.profiles is not None and isinstance(item, Node) and isinstance(item.value, dict):
        scope.env.spend(_ASKING)
        verdict = scope.env.profiles.conforms(item.value, url)
    if verdict is None:
        raise FhirPathError(f"the profile {url} is not known here")
    return [verdict]


def _element_definition(scope: Scope, items: Collection) -> Collection:
    """The path of each element in its definition, as an ElementDefinition with id, path and cardinality."""
    found: Collection = []
    for item in items:
        if isinstance(item, Node) and item.parent is not None:
            scope.env.spend(4)
            child = definitions.children(item.parent.place).get(item.key)
            if child is not None:
                element = child.element
                top = "*" if element.max is None else str(element.max)
                body = {"id": element.path, "path": element.path, "min": element.min, "max": top}
                found.append(root_node(body, "ElementDefinition"))
    return found


def _check_modifiers(scope: Scope, items: Collection, *known: Closure) -> Collection:
    urls = {string(scope, url, "a modifier of checkModifiers()") for url in known}
    for item in items:
        if isinstance(item, Node):
            extensions = child_nodes(item, "modifierExtension")
            scope.env.spend(len(extensions) + 1)
            for extension in extensions:
                if extension.value.get("url") not in urls:
                    raise FhirPathError(f"the modifier extension {extension.value.get('url')} is not understood here")
    return items


def _slice(scope: Scope, items: Collection, structure: Closure, name: Closure) -> Collection:
    raise FhirPathError("slice() needs the slicing of a profile, which is not available here")


def _html_checks(scope: Scope, items: Collection) -> Collection:
    text = one(items, "the input of htmlChecks()")
    if text is None:
        return []
    scope.env.spend((len(text) >> 4) + 16)
    return [well_formed_narrative(text)]


# --- terminology -----------------------------------------------------------------------------------------------------


def _codings(item: Any) -> list[tuple[str | None, str]]:
    """(system, code) pairs of a code, Coding, CodeableConcept or string."""
    if isinstance(item, str):
        return [(None, item)]
    if not isinstance(item, Node):
        raise FhirPathError("a terminology function takes a code, Coding or CodeableConcept")
    value = item.value
    if isinstance(value, str):
        return [(None, value)]
    if is_a(item.type, "CodeableConcept"):
        return [pair for node in child_nodes(item, "coding") for pair in _codings(node)]
    if isinstance(value, Mapping) and isinstance(value.get("code"), str):
        return [(value.get("system") or "", value["code"])]
    return []


def _member_of(scope: Scope, items: Collection, value_set: Closure) -> Collection:
    url = string(scope, value_set, "the value set of memberOf()")
    item = single(items, "memberOf()")
    if item is None or url is None:
        return []
    codings = _codings(item)
    verdict = None
    if scope.env.terminology is not None:
        scope.env.spend(_ASKING)
        verdict = scope.env.terminology.member_of(url, codings)
    else:
        known = definitions.value_set_codes(url)
        if known is not None:
            verdict = any(
                (system, code) in known if system is not None else any(code == c for _, c in known)
                for system, code in codings
            )
    if verdict is None:
        raise FhirPathError(f"the value set {url} is not known here")
    return [verdict]


def _subsumption(scope: Scope, ancestors: Collection, descendants: Collection, name: str) -> Collection:
    above, below = single(ancestors, f"{name}()"), single(descendants, f"{name}()")
    if above is None or below is None:
        return []
    if scope.env.terminology is None:
        raise FhirPathError(f"{name}() needs a terminology service, which is not available here")
    verdicts = [
        scope.env.terminology.subsumes(system, ancestor, code)
        for system, ancestor in _codings(above)
        for other, code in _codings(below)
        if system and system == other
    ]
    known = [verdict for verdict in verdicts if verdict is not None]
    if verdicts and not known:
        raise FhirPathError(f"{name}(): the code system is not known here")
    return [any(known)]


def _subsumes(scope: Scope, items: Collection, other: Closure) -> Collection:
    return _subsumption(scope, items, other(scope), "subsumes")


def _subsumed_by(scope: Scope, items: Collection, other: Closure) -> Collection:
    return _subsumption(scope, other(scope), items, "subsumedBy")


FUNCTIONS: dict[str, Function] = {
    "extension": Function(_extension, 1, 1),
    "hasExtension": Function(_has_extension, 1, 1),
    "hasValue": Function(_has_value),
    "getValue": Function(_get_value),
    "resolve": Function(resolve),
    "conformsTo": Function(_conforms_to, 1, 1),
    "elementDefinition": Function(_element_definition),
    "checkModifiers": Function(_check_modifiers, 1, 64),
    "slice": Function(_slice, 2, 2),
    "htmlChecks": Function(_html_checks),
    "memberOf": Function(_member_of, 1, 1),
    "subsumes": Function(_subsumes, 1, 1),
    "subsumedBy": Function(_subsumed_by, 1, 1),
}
