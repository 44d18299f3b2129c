"""What a partner without an inbound port calls: POST /pull/next, POST /pull/{delivery}/ack, GET /pull.

The bytes come as they are, with what belongs to them in headers, or within JSON (base64) when Accept says so. An error
is `{"error": text}` with its HTTP status; docs/delivery.md has the table.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from fhir_server import pull
from fhir_server.changes import Hub
from fhir_server.errors import Fault, Invalid, Malformed, NotFound, PasserelleError, Unsupported
from fhir_server.rest.http import Request, Response, instant_text

log = logging.getLogger("passerelle.pull")
_TEXT_BYTES = 2_000
Handler = Callable[[Hub, Request, str], Response]


def answer(hub: Hub, request: Request) -> Response:
    """Answer one call of a partner's software."""
    try:
        steps = tuple(step for step in request.path.split("/") if step)
        method, handler, key = _route(steps)
        if request.method != method:
            raise Unsupported(f"call it with {method}", http=405)
        return handler(hub, request, key)
    except PasserelleError as error:
        return _json(error.status, {"error": error.diagnostics}, *(_LATER if error.status in (429, 503) else ()))
    except Exception:
        log.exception("pull %s failed", request.path)
        return _json(500, {"error": Fault().diagnostics})


_LATER = (("retry-after", "5"),)


def _route(steps: tuple[str, ...]) -> tuple[str, Handler, str]:
    match steps:
        case ():
            return "GET", _listed, ""
        case ("next",):
            return "POST", _next, ""
        case (key, "ack"):
            return "POST", _acknowledged, key
    raise NotFound("there are GET /pull, POST /pull/next and POST /pull/{delivery}/ack")


def _listed(hub: Hub, request: Request, _: str) -> Response:
    found = pull.own_lanes(hub.store, request.caller)
    return _json(
        200, [{"lane": one.name, "waiting": one.open, "stuck": one.stuck, "paused": one.paused} for one in found]
    )


def _next(hub: Hub, request: Request, _: str) -> Response:
    asked = _body(request)
    seconds = asked.get("lease_seconds", pull.LEASE_SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise Invalid("lease_seconds is a number", expression="lease_seconds", http=400)
    one = pull.fetch(hub.store, request.caller, str(asked.get("lane", "")), seconds)
    if one is None:
        return Response(204)
    about = {
        "id": one.id,
        "lane": one.lane,
        "token": one.token,
        "sha256": one.sha256,
        "lease_until": instant_text(one.lease_until),
    }
    if "application/json" in request.headers.get("accept", ""):
        content = base64.b64encode(one.payload).decode("ascii")
        return _json(200, about | {"media_type": one.media_type, "content": content})
    told = [(f"x-passerelle-{name.replace('_', '-')}", quote(str(value), safe="/:")) for name, value in about.items()]
    kind = one.media_type or "application/octet-stream"
    return Response(200, (("content-type", kind), ("cache-control", "no-store"), *told), one.payload)


def _acknowledged(hub: Hub, request: Request, key: str) -> Response:
    asked = _body(request)
    token, code = asked.get("token"), asked.get("code")
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 1 << 62:
        raise Invalid("token is the number that came with the delivery", expression="token", http=400)
    text = str(asked.get("text") or "").encode(errors="replace").decode().replace("\0", "\ufffd")[:_TEXT_BYTES]
    state = pull.acknowledge(hub.store, request.caller, key, token, str(code), text)
    return _json(200, {"id": key, "state": state})


def _body(request: Request) -> Mapping[str, Any]:
    """The body as a JSON object; none is an empty one."""
    if not request.body:
        return {}
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise Unsupported("send application/json", http=415)
    try:
        told = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise Malformed("the body is a JSON object")
    return told


def _json(status: int, value: Any, *headers: tuple[str, str]) -> Response:
    text = json.dumps(value, ensure_ascii=False)
    kind = ("content-type", "application/json; charset=utf-8")
    return Response(status, (kind, ("cache-control", "no-store"), *headers), text.encode("utf-8"))
