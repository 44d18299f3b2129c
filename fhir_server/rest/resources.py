"""The interactions on one resource: read, vread, create, update, delete and their conditional forms.

Source: https://hl7.org/fhir/R4/http.html sections 3.1.0.1 to 3.1.0.8.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from fhir_server.changes import Applied, Change, Hub, apply, read_current
from fhir_server.errors import Gone, Invalid, Issue, Malformed, NotFound
from fhir_server.rest import binary, provenance
from fhir_server.rest.conditional import (
    absent_asked,
    criteria,
    none_exist_asked,
    not_modified,
    refuse_criteria,
    version_asked,
)
from fhir_server.rest.http import (
    Request,
    Response,
    check_accept,
    json_response,
    location,
    outcome,
    resource_body,
    version_headers,
)
from fhir_server.store.resources import Stored
from profiles import definitions, json_text

MIB = 1024 * 1024
VERSION = re.compile("[1-9][0-9]{0,8}")
ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


def known_type(name: str) -> str:
    """The resource type, or NotFound naming it."""
    if name not in definitions.resource_types():
        raise NotFound(f"{name[:80]} is no FHIR R4 resource type", code="not-supported")
    return name


def known_id(kind: str, key: str) -> str:
    """The id, or NotFound for what can be none."""
    if not ID.fullmatch(key):
        raise NotFound(f"{kind}/{key} is not known here; an id is 1 to 64 of the characters A-Z a-z 0-9 - and .")
    return key


def read(hub: Hub, request: Request) -> Response:
    """GET [base]/[type]/[id]; If-None-Match and If-Modified-Since give 304."""
    kind, key = _named(request)
    stored = read_current(hub, request.caller, kind, key)
    if not_modified(request, stored):
        return Response(304, version_headers(request, stored))
    return _content(hub, request, stored)


def vread(hub: Hub, request: Request) -> Response:
    """GET [base]/[type]/[id]/_history/[vid]."""
    (kind, key), vid = _named(request), request.path_args["vid"]
    stored = hub.store.version(request.caller, kind, key, int(vid)) if VERSION.fullmatch(vid) else None
    if stored is None:
        raise NotFound(f"{kind}/{key} has no version {vid[:64]}; its history lists them")
    if stored.deleted:
        raise Gone(f"version {vid} of {kind}/{key} is its deletion")
    if not_modified(request, stored):
        return Response(304, version_headers(request, stored))
    return _content(hub, request, stored)


def create(hub: Hub, request: Request) -> Response:
    """POST [base]/[type], with If-None-Exist."""
    kind = known_type(request.path_args["type"])
    refuse_criteria(request)
    resource = body_of(hub, request, kind)
    condition = none_exist_asked(request.headers.get("if-none-exist", ""), kind)
    return write(hub, request, Change("create", kind, resource=resource, if_none_exist=condition))


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
    absent = absent_asked(request.headers.get("if-none-match"))
    return write(hub, request, Change("update", kind, key, resource, if_match=_if_match(request), if_absent=absent))


def update_conditional(hub: Hub, request: Request) -> Response:
    """PUT [base]/[type]?[criteria]."""
    kind = known_type(request.path_args["type"])
    resource = body_of(hub, request, kind)
    named = resource.get("id", "")
    condition = criteria(request, "update")
    absent = absent_asked(request.headers.get("if-none-match"))
    known = _if_match(request)
    return write(
        hub, request, Change("update", kind, named, resource, if_match=known, if_absent=absent, criteria=condition)
    )


def delete(hub: Hub, request: Request) -> Response:
    """DELETE [base]/[type]/[id]; a second time it is still 204."""
    kind, key = _named(request)
    return write(hub, request, Change("delete", kind, key, if_match=_if_match(request)))


def delete_conditional(hub: Hub, request: Request) -> Response:
    """DELETE [base]/[type]?[criteria]: none, one, or by the setting `conditional_delete` every match."""
    kind, known = known_type(request.path_args["type"]), _if_match(request)
    many = takes_many(hub, known)
    return write(hub, request, Change("delete", kind, if_match=known, criteria=criteria(request, "delete"), many=many))


def takes_many(hub: Hub, if_match: int | None) -> bool:
    """Whether a conditional delete takes every match: a version that is named is the version of one."""
    return hub.settings.conditional_delete == "multiple" and if_match is None


def write(hub: Hub, request: Request, change: Change) -> Response:
    """Apply one change, with the Provenance of the request's header, and answer as `Prefer` asks."""
    changes = provenance.woven(request, [dataclasses.replace(change, base=request.base)])
    return applied_response(hub, request, apply(hub, request.caller, changes)[0])


def body_of(hub: Hub, request: Request, kind: str) -> dict[str, Any]:
    """The body as a resource of that type (a Binary may come as itself)."""
    if kind == "Binary" and binary.is_native(request):
        return binary.from_body(hub, request)
    resource = resource_body(request, hub.settings.max_body_mib * MIB)
    if resource["resourceType"] != kind:
        raise Malformed(
            f"the address is about {kind}, the body is a {str(resource['resourceType'])[:80]}; use its own address",
            expression=str(resource["resourceType"])[:80],
        )
    return resource


def applied_response(hub: Hub, request: Request, applied: Applied) -> Response:
    """Status, address, ETag and the body `Prefer: return` asks for (default representation).

    The address of the version is Location of what is new and Content-Location of what was there (RFC 9110 8.7); HAPI's
    client knows the id and version of an update by it.
    """
    stored = applied.stored
    if applied.status == 204 or stored is None:
        headers = version_headers(request, stored)[:1] if stored is not None else ()
        return Response(204, headers)
    address = "location" if applied.status == 201 else "content-location"
    headers = ((address, location(request, stored)), *version_headers(request, stored))
    wanted = request.prefers().get("return", "representation")
    if wanted == "minimal":
        return Response(applied.status, headers)
    if wanted == "OperationOutcome":
        return json_response(request, applied.status, json_text.write(told_of(stored, applied.notes)), *headers)
    return json_response(request, applied.status, binary.listed(hub, request, stored), *headers)


def told_of(stored: Stored, notes: Sequence[str]) -> dict[str, Any]:
    """The OperationOutcome of a write that was done, with what a person should know of it."""
    issues = [Issue("information", "informational", f"stored as version {stored.version}")]
    return outcome([*issues, *(Issue("warning", "incomplete", note) for note in notes)])


def _named(request: Request) -> tuple[str, str]:
    kind = known_type(request.path_args["type"])
    return kind, known_id(kind, request.path_args["id"])


def _if_match(request: Request) -> int | None:
    return version_asked(request.headers.get("if-match"))


def _content(hub: Hub, request: Request, stored: Stored) -> Response:
    headers = version_headers(request, stored)
    if stored.type == "Binary":
        if binary.wants_native(request):
            return binary.content(hub, request, stored, headers)
        binary.check_context(hub, request, stored.resource())
    check_accept(request)
    return json_response(request, 200, stored.text, *headers)
