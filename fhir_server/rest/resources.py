"""The interactions on one resource: read, vread, create, update, delete and their conditional forms.

Source: https://hl7.org/fhir/R4/http.html sections 3.1.0.1 to 3.1.0.8.
"""

from __future__ import annotations

import base64
from typing import Any

from fhir_server.changes import Applied, Change, Hub, apply, read_current
from fhir_server.errors import Gone, Invalid, Malformed, NotFound, Unsupported
from fhir_server.rest.http import (
    FHIR_JSON,
    Request,
    Response,
    check_accept,
    http_date,
    if_match,
    json_response,
    location,
    resource_body,
    version_headers,
)
from fhir_server.store.resources import Stored
from profiles import definitions

MIB = 1024 * 1024


def known_type(name: str) -> str:
    """The resource type, or NotFound naming it."""
    if name not in definitions.resource_types():
        raise NotFound(f"{name[:80]} is no FHIR R4 resource type", code="not-supported")
    return name


def read(hub: Hub, request: Request) -> Response:
    """GET [base]/[type]/[id]; If-None-Match and If-Modified-Since give 304."""
    kind, key = known_type(request.path_args["type"]), request.path_args["id"]
    stored = read_current(hub, request.caller, kind, key)
    if request.headers.get("if-none-match", "").strip() in (f'W/"{stored.version}"', f'"{stored.version}"'):
        return Response(304, version_headers(request, stored))
    if request.headers.get("if-modified-since") == http_date(stored.last_updated):
        return Response(304, version_headers(request, stored))
    return _content(request, stored)


def vread(hub: Hub, request: Request) -> Response:
    """GET [base]/[type]/[id]/_history/[vid]."""
    kind, key, vid = known_type(request.path_args["type"]), request.path_args["id"], request.path_args["vid"]
    with hub.store.read(request.caller) as snapshot:
        stored = snapshot.version(kind, key, int(vid)) if vid.isdigit() and len(vid) < 18 else None
    if stored is None:
        raise NotFound(f"{kind}/{key} has no version {vid[:64]}; its history lists them")
    if stored.deleted:
        raise Gone(f"version {vid} of {kind}/{key} is its deletion")
    return _content(request, stored)


def create(hub: Hub, request: Request) -> Response:
    """POST [base]/[type], with If-None-Exist."""
    kind = known_type(request.path_args["type"])
    resource = body_of(hub, request, kind)
    change = Change("create", kind, resource=resource, if_none_exist=request.headers.get("if-none-exist", ""))
    return applied_response(request, apply(hub, request.caller, [change])[0])


def update(hub: Hub, request: Request) -> Response:
    """PUT [base]/[type]/[id], with If-Match; creates at an unknown id."""
    kind, key = known_type(request.path_args["type"]), request.path_args["id"]
    resource = body_of(hub, request, kind)
    if resource.get("id") != key:
        raise Invalid(
            f"the address says {kind}/{key}, the resource says id {resource.get('id')!r}; send the same id in both",
            expression=f"{kind}.id",
            http=400,
        )
    change = Change("update", kind, key, resource, if_match=if_match(request))
    return applied_response(request, apply(hub, request.caller, [change])[0])


def update_conditional(hub: Hub, request: Request) -> Response:
    """PUT [base]/[type]?[criteria]."""
    kind = known_type(request.path_args["type"])
    resource = body_of(hub, request, kind)
    change = Change("update", kind, resource.get("id", ""), resource, criteria=_criteria(request, "update"))
    return applied_response(request, apply(hub, request.caller, [change])[0])


def delete(hub: Hub, request: Request) -> Response:
    """DELETE [base]/[type]/[id]; a second time it is still 204."""
    kind, key = known_type(request.path_args["type"]), request.path_args["id"]
    return applied_response(
        request, apply(hub, request.caller, [Change("delete", kind, key, if_match=if_match(request))])[0]
    )


def delete_conditional(hub: Hub, request: Request) -> Response:
    """DELETE [base]/[type]?[criteria]: none or one."""
    kind = known_type(request.path_args["type"])
    change = Change("delete", kind, criteria=_criteria(request, "delete"))
    return applied_response(request, apply(hub, request.caller, [change])[0])


def body_of(hub: Hub, request: Request, kind: str) -> dict[str, Any]:
    """The body as a resource of that type (a Binary may come as itself)."""
    content_type = request.headers.get("content-type", FHIR_JSON).split(";")[0].strip().lower()
    if kind == "Binary" and "json" not in content_type:
        return {
            "resourceType": "Binary",
            "contentType": content_type,
            "data": base64.b64encode(request.body).decode("ascii"),
        }
    resource = resource_body(request, hub.settings.max_body_mib * MIB)
    if resource["resourceType"] != kind:
        raise Malformed(
            f"the address is about {kind}, the body is a {str(resource['resourceType'])[:80]}; use its own address",
            expression=str(resource["resourceType"])[:80],
        )
    return resource


def applied_response(request: Request, applied: Applied) -> Response:
    """Status, Location, ETag and the body `Prefer: return` asks for (default representation)."""
    stored = applied.stored
    if applied.status == 204 or stored is None:
        headers = version_headers(request, stored)[:1] if stored is not None else ()
        return Response(204, headers)
    headers = version_headers(request, stored)
    if applied.status == 201:
        headers = (("location", location(request, stored)), *headers)
    wanted = request.prefers().get("return", "representation")
    if wanted == "minimal":
        return Response(applied.status, headers)
    if wanted == "OperationOutcome":
        text = '{"resourceType":"OperationOutcome","issue":[{"severity":"information","code":"informational",' + (
            f'"diagnostics":"stored as version {stored.version}"' + "}]}"
        )
        return json_response(request, applied.status, text, *headers)
    return json_response(request, applied.status, stored.text, *headers)


def not_offered(hub: Hub, request: Request) -> Response:
    """What the standard knows and this server does not do yet."""
    raise Unsupported(f"{request.method} {request.path} is not offered yet; see /metadata", http=405)


def _content(request: Request, stored: Stored) -> Response:
    headers = version_headers(request, stored)
    if stored.type == "Binary" and "json" not in (request.arg("_format") or request.headers.get("accept", "*/*")):
        resource = stored.resource()
        kind = ("content-type", resource.get("contentType", "application/octet-stream"))
        return Response(200, (kind, *headers), base64.b64decode(resource.get("data", "")))
    check_accept(request)
    return json_response(request, 200, stored.text, *headers)


def _criteria(request: Request, verb: str) -> str:
    from urllib.parse import urlencode

    pairs = [(name, value) for name, value in request.query if name not in ("_format", "_pretty")]
    if not pairs:
        raise Malformed(f"a conditional {verb} needs a condition, e.g. ?identifier=system|value")
    return urlencode(pairs)
