"""PATCH: JSON Patch, FHIRPath Patch and XML Patch, on a resource named by its id or by a condition.

A patch is read before anything is looked up, and applied to the version it is written over: when that moved, it is
applied again.

Sources: https://hl7.org/fhir/R4/http.html#patch, https://hl7.org/fhir/R4/fhirpatch.html, RFC 6902, RFC 5261.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.changes import Change, Hub
from fhir_server.errors import Invalid, Malformed, Unsupported
from fhir_server.rest import resources
from fhir_server.rest.conditional import criteria, version_asked
from fhir_server.rest.http import FHIR_JSON, FHIR_XML, Request, Response, check_charset, media_type, parsed
from profiles.json_edit import Edited
from profiles.patch import fhirpath_patch, json_patch, xml_patch
from profiles.patch.errors import PatchError

Resource = dict[str, Any]
Patch = Callable[[Resource], Resource]
JSON_PATCH, XML_PATCH = "application/json-patch+json", "application/xml-patch+xml"
FORMATS = (JSON_PATCH, XML_PATCH, FHIR_JSON, FHIR_XML)


def patch(hub: Hub, request: Request) -> Response:
    """PATCH [base]/[type]/[id], with If-Match."""
    kind = resources.known_type(request.path_args["type"])
    key = resources.known_id(kind, request.path_args["id"])
    asked = version_asked(request.headers.get("if-match"))
    return resources.write(hub, request, Change("patch", kind, key, if_match=asked, patch=_of_body(hub, request)))


def conditional(hub: Hub, request: Request) -> Response:
    """PATCH [base]/[type]?[criteria]: exactly one must match."""
    kind = resources.known_type(request.path_args["type"])
    asked = version_asked(request.headers.get("if-match"))
    made, condition = _of_body(hub, request), criteria(request, "patch")
    return resources.write(hub, request, Change("patch", kind, if_match=asked, criteria=condition, patch=made))


def of_entry(hub: Hub, resource: Resource, expression: str) -> Patch:
    """The patch of a Bundle entry: Parameters (FHIRPath Patch), or a Binary that holds a JSON or XML Patch."""
    if resource.get("resourceType") == "Parameters":
        return _fhirpath_patch(resource, expression)
    kind = str(resource.get("contentType", "")).split(";")[0].strip().lower()
    if resource.get("resourceType") != "Binary" or kind not in _OF_BYTES:
        text = f"PATCH takes Parameters (FHIRPath Patch) or a Binary of {JSON_PATCH} or {XML_PATCH}"
        raise Invalid(text, expression=expression, http=400, code="value")
    try:
        data = base64.b64decode(str(resource.get("data", "")), validate=True)
    except binascii.Error as error:
        raise Malformed(f"the data is no base64: {error}", expression=f"{expression}.data") from error
    return _OF_BYTES[kind](data)


def _of_body(hub: Hub, request: Request) -> Patch:
    kind = media_type(request) if request.headers.get("content-type") else ""
    if not request.body.strip():
        raise Malformed("the request has no body; send the patch")
    check_charset(request)
    if kind in _OF_BYTES:
        return _OF_BYTES[kind](request.body)
    if kind in (FHIR_JSON, FHIR_XML):
        limit = hub.settings.max_body_mib * resources.MIB
        return _fhirpath_patch(parsed(request.body, xml=kind == FHIR_XML, max_bytes=limit), "")
    raise Unsupported(f"a patch is sent as one of {', '.join(FORMATS)}, not as {kind[:100] or 'nothing'}", http=415)


def _json_patch(data: bytes) -> Patch:
    return _applied(lambda resource: json_patch.apply(resource, data))


def _xml_patch(data: bytes) -> Patch:
    return _applied(lambda resource: xml_patch.apply(resource, data))


def _fhirpath_patch(parameters: Resource, expression: str) -> Patch:
    if parameters.get("resourceType") != "Parameters":
        where = expression or str(parameters.get("resourceType", ""))[:80]
        raise Invalid("a FHIRPath Patch is a Parameters resource", expression=where, http=400)
    return _applied(lambda resource: fhirpath_patch.apply(resource, parameters))


def _applied(apply: Callable[[Resource], Edited]) -> Patch:
    """The patch as a function of the resource, whose refusals are errors of the tree."""

    def run(resource: Resource) -> Resource:
        try:
            value: Resource = apply(resource).value
        except PatchError as error:
            told = str(resource.get("resourceType", ""))
            if error.malformed:
                raise Malformed(str(error), expression=told) from error
            raise Invalid(str(error), expression=told, code="processing") from error
        return value

    return run


_OF_BYTES: Mapping[str, Callable[[bytes], Patch]] = {JSON_PATCH: _json_patch, XML_PATCH: _xml_patch}
