"""Binary in its own media type: the one resource whose bytes come and go as they are.

Hides which media types mean "a FHIR resource" here. `application/xml` and `text/xml` are content (a CDA document),
`application/fhir+xml` and every JSON type are the resource. Stored content is never trusted: it is served as a download
that no browser runs.

Source: https://hl7.org/fhir/R4/binary.html#rest
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

from fhir_server.changes import Hub
from fhir_server.errors import Malformed, Unsupported
from fhir_server.rest.http import FHIR_XML, Request, Response, media_type
from fhir_server.rest.rendering import marked
from fhir_server.search.references import own_bases, relative
from fhir_server.security.binaries import context_of, demand_context, may_see
from fhir_server.store.resources import Stored
from profiles import json_text

_NAME = r"[A-Za-z0-9!#$&^_.+-]{1,127}"
_MEDIA_TYPE = re.compile(_NAME + "/" + _NAME + r"( ?; ?[A-Za-z0-9_.=\"+-]{1,100}){0,5}")
_HEADER = "x-security-context"
_HARMLESS = (
    ("x-content-type-options", "nosniff"),
    ("content-disposition", "attachment"),
    ("content-security-policy", "default-src 'none'; sandbox"),
)


def is_native(request: Request) -> bool:
    """Whether a Binary's body is its content and no FHIR resource."""
    kind = media_type(request)
    return "json" not in kind and kind != FHIR_XML


def from_body(hub: Hub, request: Request) -> dict[str, Any]:
    """The Binary of a native body, with the X-Security-Context that came along."""
    kind = request.headers["content-type"].strip()
    if not _MEDIA_TYPE.fullmatch(kind):
        raise Unsupported("the Content-Type is no media type; send for example application/pdf", http=415)
    resource: dict[str, Any] = {"resourceType": "Binary"}
    if request.path_args.get("id"):
        resource["id"] = request.path_args["id"]
    resource["contentType"] = kind
    context = request.headers.get(_HEADER)
    if context is not None:
        bases = own_bases(hub.settings, request.base)
        resource["securityContext"] = {"reference": relative(context.strip(), bases) or context.strip()}
    return resource | {"data": base64.b64encode(request.body).decode("ascii")}


def wants_native(request: Request) -> bool:
    """Whether a reader of a Binary takes its content: unless a FHIR media type is named."""
    named = request.arg("_format") or request.headers.get("accept", "")
    kinds = [item.split(";")[0].strip().lower().replace(" ", "+") for item in named.split(",")]
    return not any("json" in kind or kind == FHIR_XML or (kind == "xml" and request.arg("_format")) for kind in kinds)


def check_context(hub: Hub, request: Request, resource: dict[str, Any]) -> str:
    """The security context of a Binary, '' for none. Raises Forbidden to who may not read that resource."""
    demand_context(request.caller, resource, _known(hub, request))
    return context_of(resource)


def listed(hub: Hub, request: Request, stored: Stored) -> str:
    """The text of a version in a list or an answer to a write: a Binary's content only for who may read its context."""
    if stored.type != "Binary" or stored.deleted or '"securityContext"' not in stored.text:
        return stored.text
    resource = stored.resource()
    if may_see(request.caller, resource, _known(hub, request)):
        return stored.text
    resource.pop("data", None)
    return json_text.write(marked(resource))


def _known(hub: Hub, request: Request) -> Callable[[str, str], Stored | None]:
    return lambda kind, key: hub.store.get(request.caller, kind, key)


def content(hub: Hub, request: Request, stored: Stored, headers: tuple[tuple[str, str], ...]) -> Response:
    """The bytes of a Binary in their own media type. Raises Malformed when its data cannot be decoded."""
    resource = stored.resource()
    context = check_context(hub, request, resource)
    kind = str(resource.get("contentType", ""))
    if not _MEDIA_TYPE.fullmatch(kind):
        kind = "application/octet-stream"
    try:
        data = base64.b64decode(str(resource.get("data", "")))
    except binascii.Error as error:
        text = "the stored data is no base64 that can be read; ask for application/fhir+json to see it"
        raise Malformed(text, expression="Binary.data", http=406) from error
    shown = (("x-security-context", context),) if context and context.isascii() and context.isprintable() else ()
    return Response(200, (("content-type", kind), *_HARMLESS, *shown, *headers), data)
