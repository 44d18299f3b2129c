"""The interface as an OpenAPI 3.1 document, from the route table that answers the requests.

Resources are described as far as any client needs to find its way (`resourceType`, `id`, `meta`); what they hold is
defined by FHIR itself, to which the schemas point.

Sources: https://spec.openapis.org/oas/v3.1.0, https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fhir_server.changes import Hub
from fhir_server.rest import patch
from fhir_server.rest.history import SORTS
from fhir_server.rest.http import FHIR_JSON, FHIR_XML, Request, Response
from fhir_server.rest.search import FORM
from profiles import definitions, json_text

if TYPE_CHECKING:
    from fhir_server.rest.routes import Route

Schema = dict[str, Any]
_ID = {"type": "string", "pattern": r"^[A-Za-z0-9\-.]{1,64}$"}
_PATH_ARGS: dict[str, tuple[str, Schema]] = {
    "type": ("a resource type of R4", {"type": "string"}),
    "id": ("the logical id", _ID),
    "compartment": ("the type of the compartment", {"type": "string"}),
    "job": ("an asynchronous request", {"type": "string"}),
    "part": ("an output of it", {"type": "string"}),
    "vid": ("a version, as the ETag says", {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"}),
}
_QUERY: dict[str, tuple[str, Schema]] = {
    "_format": ("json or xml, stronger than Accept", {"type": "string", "enum": ["json", "xml", FHIR_JSON, FHIR_XML]}),
    "_pretty": ("indent the answer", {"type": "string", "enum": ["true", "false"]}),
    "_summary": ("a part of each resource", {"type": "string", "enum": ["true", "text", "data", "count", "false"]}),
    "_elements": ("top-level elements, with commas", {"type": "string"}),
    "_count": ("entries of one page", {"type": "integer", "minimum": 0, "maximum": 999_999_999}),
    "_type": ("the types to search, with commas", {"type": "string"}),
    "_since": ("versions stored since then", {"type": "string", "format": "date-time"}),
    "mode": (
        "what is tried: create, update, delete; profile judges what is stored",
        {"type": "string", "enum": ["create", "update", "delete", "profile"]},
    ),
    "profile": ("the profile to judge by; only the base definition of the type", {"type": "string"}),
    "_at": ("versions that were current then", {"type": "string"}),
    "_sort": ("the order of versions, the newest first by default", {"type": "string", "enum": list(SORTS)}),
}
_HEADERS: dict[str, str] = {
    "If-None-Match": "the ETag the client holds",
    "If-Modified-Since": "the Last-Modified the client holds",
    "If-Match": 'the version that is to be changed, W/"1"',
    "If-None-Exist": "a search: create only when it finds nothing",
    "Prefer": "return=minimal, representation or OperationOutcome; handling=strict or lenient; for a search, a history "
    "or a Bundle also respond-async",
    "X-Provenance": "a Provenance without target, as JSON, stored in the same transaction",
}
_RENDERING = ("_format", "_pretty")
_PARTS = (*_RENDERING, "_summary", "_elements")
_HISTORY = (*_PARTS, "_count", "_since", "_at", "_sort")
# Query parameters and headers by interaction of the route table.
_TAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "capabilities": (_PARTS, ()),
    "read": (_PARTS, ("If-None-Match", "If-Modified-Since")),
    "vread": (_PARTS, ("If-None-Match", "If-Modified-Since")),
    "search-type": ((*_PARTS, "_count"), ("Prefer",)),
    "search-system": ((*_PARTS, "_type", "_count"), ("Prefer",)),
    "history-instance": (_HISTORY, ("Prefer",)),
    "history-type": (_HISTORY, ("Prefer",)),
    "history-system": (_HISTORY, ("Prefer",)),
    "create": (_RENDERING, ("If-None-Exist", "Prefer", "X-Provenance")),
    "update": (_RENDERING, ("If-Match", "If-None-Match", "Prefer", "X-Provenance")),
    "patch": (_RENDERING, ("If-Match", "Prefer", "X-Provenance")),
    "delete": (_RENDERING, ("If-Match", "X-Provenance")),
    "transaction": (_RENDERING, ("Prefer", "X-Provenance")),
    "validate": ((*_RENDERING, "mode", "profile"), ()),
}
_SUCCESS: dict[str, tuple[str, ...]] = {
    "create": ("200", "201"),
    "update": ("200", "201"),
    "delete": ("204",),
    "async": ("200", "202"),
    "read": ("200", "304"),
    "vread": ("200", "304"),
}


def document(hub: Hub, request: Request) -> Response:
    """GET [base]/openapi.json."""
    text = json_text.write(described(request.base))
    return Response(200, (("content-type", "application/json; charset=utf-8"),), text.encode())


def described(base: str) -> Schema:
    """The OpenAPI document for a base URL."""
    from fhir_server.rest.routes import ROUTES

    paths: Schema = {}
    for route in ROUTES:
        item = paths.setdefault(route.pattern, {})
        item[route.method.lower()] = _operation(route)
        if route.method == "GET":
            item["head"] = _operation(route, "head")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Passerelle: FHIR R4",
            "version": importlib.metadata.version("passerelle"),
            "description": "HL7 FHIR 4.0.1 over HTTP. Every error is an OperationOutcome.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "externalDocs": {"url": "https://hl7.org/fhir/R4/http.html"},
        "servers": [{"url": base}],
        "paths": paths,
        "components": {"schemas": _schemas(), "responses": {"Error": _content("OperationOutcome", "what went wrong")}},
    }


def _operation(route: Route, method: str = "") -> Schema:
    query, headers = _TAKES.get(route.interaction, ((), ()))
    name = re.sub(r"[^a-z]+", "-", f"{method or route.method} {route.pattern}".lower()).strip("-")
    parameters = [_parameter(arg, "path", *_path_arg(arg)) for arg in re.findall(r"\{(\w+)\}", route.pattern)]
    parameters += [_parameter(arg, "query", *_QUERY[arg]) for arg in query]
    parameters += [_parameter(header, "header", _HEADERS[header], {"type": "string"}) for header in headers]
    answer = "Bundle" if route.many or route.pattern == "/" else "OperationOutcome" if route.operation else "Resource"
    operation: Schema = {"operationId": name or route.method.lower(), "summary": route.summary}
    if route.interaction:
        operation["tags"] = [route.interaction]
    if parameters:
        operation["parameters"] = parameters
    body = _body(route)
    if body:
        operation["requestBody"] = {"required": not (route.form or route.operation), "content": body}
    codes = _SUCCESS.get(route.interaction, ("200",))
    operation["responses"] = {code: _answer(code, answer, method) for code in codes}
    operation["responses"]["default"] = {"$ref": "#/components/responses/Error"}
    return operation


def _path_arg(name: str) -> tuple[str, Schema]:
    text, schema = _PATH_ARGS[name]
    return text, schema | ({"enum": _ENUMS[name]()} if name in _ENUMS else {})


_ENUMS: dict[str, Callable[[], list[str]]] = {
    "type": lambda: sorted(definitions.resource_types()),
    "compartment": lambda: sorted(definitions.compartments()),
}


def _parameter(name: str, place: str, text: str, schema: Schema) -> Schema:
    found: Schema = {"name": name, "in": place, "description": text, "schema": schema}
    return found | ({"required": True} if place == "path" else {})


def _body(route: Route) -> Schema:
    if route.form:
        return {FORM: {"schema": {"type": "object", "additionalProperties": {"type": "string"}}}}
    if route.method == "PATCH":
        array = {"type": "array", "items": {"type": "object"}}
        other = {patch.XML_PATCH: {"schema": {"type": "string"}}, FHIR_XML: {"schema": {"type": "string"}}}
        resource = {"schema": {"$ref": "#/components/schemas/Parameters"}}
        return {patch.JSON_PATCH: {"schema": array}, FHIR_JSON: resource, **other}
    if route.method in ("POST", "PUT"):
        kind = "Bundle" if route.pattern == "/" else "Resource"
        return {
            FHIR_JSON: {"schema": {"$ref": f"#/components/schemas/{kind}"}},
            FHIR_XML: {"schema": {"type": "string"}},
        }
    return {}


def _answer(code: str, kind: str, method: str) -> Schema:
    if code in ("204", "304") or method == "head":
        return {"description": "no content"}
    return _content(kind, "created" if code == "201" else "done")


def _content(kind: str, text: str) -> Schema:
    json_schema = {"$ref": f"#/components/schemas/{kind}"}
    return {
        "description": text,
        "content": {FHIR_JSON: {"schema": json_schema}, FHIR_XML: {"schema": {"type": "string"}}},
    }


def _schemas() -> Schema:
    def resource(kind: str, **more: Schema) -> Schema:
        told = {"const": kind} if kind else {"type": "string", "enum": sorted(definitions.resource_types())}
        url = f"https://hl7.org/fhir/R4/{(kind or 'resourcelist').lower()}.html"
        properties = {"resourceType": told, "id": _ID, "meta": {"type": "object"}, **more}
        return {
            "type": "object",
            "required": ["resourceType"],
            "properties": properties,
            "externalDocs": {"url": url},
        }

    entries = {"type": "array", "items": {"type": "object"}}
    return {
        "Resource": resource(""),
        "Bundle": resource("Bundle", type={"type": "string"}, entry=entries),
        "Parameters": resource("Parameters", parameter=entries),
        "OperationOutcome": resource("OperationOutcome", issue=entries | {"minItems": 1}),
    }
