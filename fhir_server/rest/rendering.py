"""The last step of every FHIR answer: the part of a resource that was asked for, its layout, JSON or XML.

Hides `_summary`, `_elements`, `_pretty` and the choice between JSON and XML from the interactions, which all answer
with compact JSON text. What is not asked for costs nothing: such an answer is passed on as it is.

Sources: https://hl7.org/fhir/R4/search.html#summary, https://hl7.org/fhir/R4/search.html#elements,
https://hl7.org/fhir/R4/http.html#mime-type, https://hl7.org/fhir/R4/http.html#parameters
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fhir_server.errors import Invalid, TooLarge, Unsupported
from fhir_server.rest.http import FHIR_JSON, FHIR_XML, Request, Response, negotiated
from profiles import definitions, json_text
from profiles.xml_text import XmlError, to_xml

Resource = dict[str, Any]
SUBSETTED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "SUBSETTED",
    "display": "Resource encoded in summary mode",
}
SUMMARIES = ("true", "text", "data", "count", "false")
MAX_ELEMENTS = 200
# What is stored was read within narrower limits; a Bundle of many may go beyond them.
_BYTES, _DEPTH, _VALUES = 1 << 30, 200, 1 << 30
_ALWAYS = frozenset(("resourceType", "id", "meta"))


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked of each resource: `summary` is one of SUMMARIES, `elements` top-level names or empty."""

    summary: str = "false"
    elements: frozenset[str] = frozenset()


def selection(request: Request) -> Selection | None:
    """What `_summary` and `_elements` ask for; None for everything. Raises Invalid (400)."""
    summary = request.arg("_summary") or "false"
    if summary not in SUMMARIES:
        raise Invalid(f"_summary={summary[:20]} is not known; it is one of {', '.join(SUMMARIES)}", http=400)
    listed = [name.strip() for key, text in request.query if key == "_elements" for name in text.split(",")]
    names = frozenset(name for name in listed if name)
    if len(names) > MAX_ELEMENTS:
        raise TooLarge(f"_elements names {len(names)} elements; at most {MAX_ELEMENTS}")
    if names and summary not in ("false", "count"):
        raise Invalid("_summary and _elements exclude each other; send one of them", http=400)
    if summary == "text" and any(key.partition(":")[0] in ("_include", "_revinclude") for key, _ in request.query):
        raise Invalid("_summary=text goes with no _include and no _revinclude; leave one of them out", http=400)
    kind = request.path_args.get("type", "")
    if names and kind in definitions.resource_types() and request.prefers().get("handling") != "lenient":
        known = {child.element.name for child in definitions.children(kind).values()} | set(definitions.children(kind))
        unknown = sorted(names - known - {"resourceType"})
        if unknown:
            raise Invalid(f"_elements={unknown[0][:64]}: {kind} has no such element", expression=kind, http=400)
    return None if summary in ("false", "count") and not names else Selection(summary, names)


def finished(request: Request, response: Response, wanted: Selection | None, *, many: bool = False) -> Response:
    """The answer as the client wants it; `many` says that it is a Bundle of search or history results.

    Raises Unsupported (406) for content that XML cannot hold.
    """
    kind = dict(response.headers).get("content-type", "")
    if response.stream is not None or not response.body or not kind.startswith(FHIR_JSON):
        return response
    chosen = negotiated(request) or FHIR_JSON
    pretty = request.arg("_pretty") == "true"
    wanted = wanted if response.status < 300 else None
    if wanted is None and not pretty and chosen == FHIR_JSON:
        return response
    resource = json_text.parse(response.body, max_bytes=_BYTES, max_depth=_DEPTH, max_values=_VALUES)
    if wanted is not None:
        resource = _narrowed_entries(resource, wanted) if many else narrowed(resource, wanted)
    if chosen == FHIR_XML:
        body = _xml(resource, pretty)
    else:
        body = (json_text.pretty(resource) if pretty else json_text.write(resource)).encode()
    rest = tuple(header for header in response.headers if header[0] != "content-type")
    return replace(response, headers=(("content-type", f"{chosen}; charset=utf-8"), *rest), body=body)


def _xml(resource: Resource, pretty: bool) -> bytes:
    try:
        return to_xml(resource, pretty=pretty)
    except XmlError as error:
        raise Unsupported(f"this content cannot be written as XML: {error}; ask for {FHIR_JSON}", http=406) from error


def _narrowed_entries(bundle: Resource, wanted: Selection) -> Resource:
    for entry in bundle.get("entry", ()):
        resource = entry.get("resource")
        # `_elements` names elements of the type that is searched, so what was included stays whole.
        included = entry.get("search", {}).get("mode") in ("include", "outcome")
        if resource is not None and not (included and wanted.elements):
            entry["resource"] = narrowed(resource, wanted)
    return bundle


def narrowed(resource: Resource, wanted: Selection) -> Resource:
    """The resource with the elements asked for, mandatory ones in any case, and the tag SUBSETTED."""
    kind = resource["resourceType"]
    if wanted.summary == "true":
        kept = {name: value for name, value in resource.items() if name in _ALWAYS}
        kept |= _summarised(resource, kind)
    else:
        keep = _KEEP["elements" if wanted.elements else wanted.summary](kind, wanted)
        named = ((name, name.lstrip("_")) for name in resource)
        kept = {name: resource[name] for name, bare in named if bare in _ALWAYS or keep(bare)}
    kept = {name: kept[name] for name in resource if name in kept}
    return marked(kept)


def marked(kept: Resource) -> Resource:
    """A part of a resource with the tag that says so."""
    meta = dict(kept.get("meta") or {})
    tags = [tag for tag in meta.get("tag", ()) if tag.get("code") != "SUBSETTED"]
    front = {name: kept[name] for name in ("resourceType", "id") if name in kept}
    return front | {"meta": meta | {"tag": [*tags, SUBSETTED]}} | {k: v for k, v in kept.items() if k != "meta"}


Keep = Callable[[str], bool]


def _keep_text(kind: str, wanted: Selection) -> Keep:
    return lambda name: name == "text" or name in _mandatory(kind)


def _keep_data(kind: str, wanted: Selection) -> Keep:
    return lambda name: name != "text"


def _keep_elements(kind: str, wanted: Selection) -> Keep:
    named = {
        name
        for name, child in definitions.children(kind).items()
        if name in wanted.elements or child.element.name in wanted.elements
    }
    return lambda name: name in named or name in _mandatory(kind)


_KEEP: Mapping[str, Callable[[str, Selection], Keep]] = {
    "text": _keep_text,
    "data": _keep_data,
    "elements": _keep_elements,
}


@cache
def _mandatory(place: str) -> frozenset[str]:
    return frozenset(name for name, child in definitions.children(place).items() if child.element.min > 0)


@cache
def _in_summary(place: str) -> Mapping[str, str]:
    """The JSON properties of a place that belong to a summary, and where each leads ('' for a primitive)."""
    return {
        name: "" if definitions.is_primitive(child.type) else child.place
        for name, child in definitions.children(place).items()
        if child.element.is_summary or child.element.min > 0
    }


def _summarised(node: Mapping[str, Any], place: str) -> Resource:
    allowed = _in_summary(place)
    kept: Resource = {}
    for name, value in node.items():
        inner = allowed.get(name.lstrip("_"))
        if inner is not None:
            kept[name] = value if name[0] == "_" or not inner else _deeper(value, inner)
    return kept


def _deeper(value: Any, place: str) -> Any:
    if isinstance(value, list):
        return [_deeper(item, place) for item in value]
    if not isinstance(value, dict) or "resourceType" in value or place in ("Extension", "Resource"):
        return value
    # An element none of whose content is marked stands for itself: an empty one would be no FHIR.
    return _summarised(value, place) or value
