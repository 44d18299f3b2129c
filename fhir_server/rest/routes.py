"""The route table of the FHIR API and the one function that answers a request.

OpenAPI, the CapabilityStatement and the dispatcher read the same table.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from fhir_server.changes import Hub
from fhir_server.errors import Fault, NotFound, PasserelleError, Unsupported
from fhir_server.rest import audit, bundle, capabilities, resources, search
from fhir_server.rest.http import Request, Response, error_response

log = logging.getLogger("passerelle.rest")
Handler = Callable[[Hub, Request], Response]


@dataclass(frozen=True, slots=True)
class Route:
    """One interaction: `pattern` uses `{type}`, `{id}`, `{vid}`; `interaction` is the R4 code (or '' for helpers)."""

    method: str
    pattern: str
    interaction: str
    handler: Handler
    summary: str

    def regex(self) -> re.Pattern[str]:
        """The compiled path pattern."""
        text = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]{1,80})", self.pattern)
        return re.compile(text + r"/?\Z")


ROUTES: tuple[Route, ...] = (
    Route("GET", "/metadata", "capabilities", capabilities.statement, "what this server can do"),
    Route("GET", "/AuditEvent", "", audit.search, "search the audit trail"),
    Route("GET", "/AuditEvent/{id}", "", audit.read, "one audit event"),
    Route("POST", "/", "transaction", lambda hub, request: bundle.post(hub, request, bind(hub)), "batch, transaction"),
    Route("GET", "/{type}", "search-type", search.search, "search one type"),
    Route("POST", "/{type}/_search", "search-type", search.search, "search one type by form"),
    Route("POST", "/{type}", "create", resources.create, "create"),
    Route("PUT", "/{type}", "update", resources.update_conditional, "conditional update"),
    Route("DELETE", "/{type}", "delete", resources.delete_conditional, "conditional delete"),
    Route("GET", "/{type}/{id}", "read", resources.read, "read the current version"),
    Route("PUT", "/{type}/{id}", "update", resources.update, "update, or create at this id"),
    Route("DELETE", "/{type}/{id}", "delete", resources.delete, "delete"),
    Route("GET", "/{type}/{id}/_history", "history-instance", search.history, "every version"),
    Route("GET", "/{type}/{id}/_history/{vid}", "vread", resources.vread, "one version"),
)
_COMPILED = tuple((route, route.regex()) for route in ROUTES)


def answer(hub: Hub, request: Request) -> Response:
    """Answer one request; every 4xx and 5xx is an OperationOutcome."""
    try:
        return _dispatch(hub, request)
    except PasserelleError as error:
        return error_response(request, error)
    except RecursionError:
        return error_response(request, Fault("the content is nested too deeply to be handled"))
    except Exception:
        log.exception("request %s failed", request.caller.request_id)
        text = f"a defect of this server; its log has the details under request id {request.caller.request_id}"
        return error_response(request, Fault(text))


def bind(hub: Hub) -> Callable[[Request], Response]:
    """`answer` for the inner requests of a Bundle."""
    return lambda request: answer(hub, request)


def _dispatch(hub: Hub, request: Request) -> Response:
    head = request.method == "HEAD"
    method = "GET" if head else request.method
    allowed = []
    for route, pattern in _COMPILED:
        found = pattern.match(request.path or "/")
        if not found:
            continue
        if route.method == method:
            response = route.handler(hub, replace(request, path_args=found.groupdict()))
            return replace(response, body=b"") if head else response
        allowed.append(route.method)
    if allowed:
        text = f"{request.method} is not offered at {request.path}; offered: {', '.join(sorted(set(allowed)))}"
        raise Unsupported(text, http=405)
    raise NotFound(f"nothing is served at {request.path[:200]}; /metadata says what is")
