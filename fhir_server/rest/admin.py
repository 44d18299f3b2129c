"""The operator's JSON API: POST /admin/{operation} with the arguments as a JSON object. The command line speaks it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.changes import Hub
from fhir_server.errors import Fault, Malformed, NotFound, PasserelleError, Unsupported
from fhir_server.imaging import studies
from fhir_server.outbox import OPERATIONS
from fhir_server.rest.http import Request, Response

log = logging.getLogger("passerelle.admin")


def answer(hub: Hub, request: Request) -> Response:
    """Answer one operation; an error is `{"error": text}` with its HTTP status."""
    try:
        return _json(200, run(hub, request.path.strip("/"), _arguments(request)))
    except PasserelleError as error:
        return _json(error.status, {"error": error.diagnostics})
    except Exception:
        log.exception("operation %s failed", request.path)
        return _json(500, {"error": Fault().diagnostics})


def run(hub: Hub, name: str, args: Mapping[str, str]) -> Any:
    """Run one operation by name. Raises NotFound listing the known ones."""
    if name in OPERATIONS:
        return OPERATIONS[name](hub.store, args)
    if name in _HUB_OPERATIONS:
        return _HUB_OPERATIONS[name](hub, args)
    raise NotFound(f"no operation {name}; known: {', '.join(sorted([*OPERATIONS, *_HUB_OPERATIONS]))}")


def _studies_list(hub: Hub, args: Mapping[str, str]) -> Any:
    return studies.listed(hub.store, args)


def _studies_attach(hub: Hub, args: Mapping[str, str]) -> Any:
    return studies.attach(hub.store, args.get("study", ""), args.get("request", ""))


_HUB_OPERATIONS: Mapping[str, Callable[[Hub, Mapping[str, str]], Any]] = {
    "studies-list": _studies_list,
    "studies-attach": _studies_attach,
}


def _arguments(request: Request) -> Mapping[str, str]:
    if request.method != "POST":
        raise Unsupported("operations are called with POST", http=405)
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise Unsupported("send the arguments as application/json", http=415)
    try:
        args = json.loads(request.body or b"{}")
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the arguments are no JSON: {error}") from error
    if not isinstance(args, dict):
        raise Malformed("the arguments are a JSON object")
    return {_text(key): _text(value) for key, value in args.items()}


def _text(value: object) -> str:
    """An argument as text a database takes."""
    return str(value).encode(errors="replace").decode().replace("\0", "\ufffd")


def _json(status: int, value: Any) -> Response:
    text = json.dumps(value, ensure_ascii=False)
    return Response(status, (("content-type", "application/json; charset=utf-8"),), text.encode("utf-8"))
