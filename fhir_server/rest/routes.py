"""The route table of the FHIR API and the one function that answers a request.

OpenAPI, the CapabilityStatement and the dispatcher read the same table.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from fhir_server.changes import Hub
from fhir_server.errors import Fault, Malformed, NotFound, PasserelleError, Unsupported
from fhir_server.rest import audit, bundle, capabilities, history, openapi, patch, rendering, resources, search
from fhir_server.rest.http import Request, Response, check_accept, error_response

log = logging.getLogger("passerelle.rest")
Handler = Callable[[Hub, Request], Response]


@dataclass(frozen=True, slots=True)
class Route:
    """One interaction: `pattern` uses `{type}`, `{id}`, `{vid}`; `interaction` is the R4 code (or '' for helpers).

    `many`: the answer is a Bundle of resources; `form`: the body holds further query parameters.
    """

    method: str
    pattern: str
    interaction: str
    handler: Handler
    summary: str
    many: bool = False
    form: bool = False

    def regex(self) -> re.Pattern[str]:
        """The compiled path pattern. No id begins with `_` or `$`, so that operations never look like one; the audit
        trail has routes of its own."""
        text = self.pattern.replace(".", r"\.").replace("{type}", r"(?P<type>(?!AuditEvent\b)[A-Z][A-Za-z]{0,79})")
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/_$][^/]{0,79})", text) + r"/?\Z")


ROUTES: tuple[Route, ...] = (
    Route("GET", "/metadata", "capabilities", capabilities.statement, "what this server can do"),
    Route("GET", "/openapi.json", "", openapi.document, "this interface as OpenAPI 3.1"),
    Route("GET", "/AuditEvent", "", audit.search, "search the audit trail", many=True),
    Route("POST", "/AuditEvent/_search", "", audit.search, "search the audit trail by form", many=True, form=True),
    Route("GET", "/AuditEvent/{id}", "", audit.read, "one audit event"),
    Route(
        "POST",
        "/",
        "transaction",
        lambda hub, request: bundle.post(hub, request, respond, answer),
        "batch, transaction",
    ),
    Route("GET", "/_history", "history-system", history.of_system, "every version of everything", many=True),
    Route("GET", "/{type}/_history", "history-type", history.of_type, "every version of a type", many=True),
    Route("GET", "/{type}", "search-type", search.search, "search one type", many=True),
    Route("POST", "/{type}/_search", "search-type", search.search, "search one type by form", many=True, form=True),
    Route("POST", "/{type}", "create", resources.create, "create"),
    Route("PUT", "/{type}", "update", resources.update_conditional, "conditional update"),
    Route("PATCH", "/{type}", "patch", patch.conditional, "conditional patch"),
    Route("DELETE", "/{type}", "delete", resources.delete_conditional, "conditional delete"),
    Route("GET", "/{type}/{id}", "read", resources.read, "read the current version"),
    Route("PUT", "/{type}/{id}", "update", resources.update, "update, or create at this id"),
    Route("PATCH", "/{type}/{id}", "patch", patch.patch, "change parts"),
    Route("DELETE", "/{type}/{id}", "delete", resources.delete, "delete"),
    Route("GET", "/{type}/{id}/_history", "history-instance", history.of_instance, "every version", many=True),
    Route("GET", "/{type}/{id}/_history/{vid}", "vread", resources.vread, "one version"),
)
_COMPILED = tuple((route, route.regex()) for route in ROUTES)


def answer(hub: Hub, request: Request) -> Response:
    """Answer one request; every 4xx and 5xx is an OperationOutcome."""
    try:
        return respond(hub, request)
    except PasserelleError as error:
        return failed(request, error)
    except RecursionError:
        return failed(request, Malformed("the content is nested too deeply to be handled; flatten it"))
    except Exception:
        log.exception("request %s failed", request.caller.request_id)
        text = f"a defect of this server; its log has the details under request id {request.caller.request_id}"
        return failed(request, Fault(text))


def failed(request: Request, error: PasserelleError) -> Response:
    """An error as OperationOutcome, in the client's format where that is possible."""
    response = error_response(request, error)
    if error.status == 405:
        response = response.with_headers(("allow", ", ".join(allowed(request.path))))
    try:
        return rendering.finished(request, response, None)
    except PasserelleError:
        return response


def respond(hub: Hub, request: Request) -> Response:
    """The answer to one request. Raises what goes wrong."""
    route, request = _routed(request)
    if route.form:
        request = search.with_form(request)
    if any("\0" in name or "\0" in value for name, value in request.query):
        raise Malformed("the address holds the character NUL; leave it out")
    reading = route.method == "GET" or route.form
    if not (reading and request.path_args.get("type") == "Binary"):
        check_accept(request)
    wanted = rendering.selection(request) if reading else None
    response = rendering.finished(request, route.handler(hub, request), wanted, many=route.many)
    if request.method == "HEAD" and response.stream is None:
        return replace(response, body=b"").with_headers(("content-length", str(len(response.body))))
    return response


def allowed(path: str) -> list[str]:
    """The methods offered at a path, for Allow."""
    found = {route.method for route, pattern in _COMPILED if pattern.match(path or "/")}
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


def _routed(request: Request) -> tuple[Route, Request]:
    method = "GET" if request.method == "HEAD" else request.method
    for route, pattern in _COMPILED:
        found = pattern.match(request.path or "/")
        if found and route.method == method:
            return route, replace(request, path_args=found.groupdict())
    offered = allowed(request.path)
    if offered:
        text = f"{request.method} is not offered at {request.path[:200]}; offered: {', '.join(offered)}"
        raise Unsupported(text, http=405)
    raise NotFound(f"nothing is served at {request.path[:200]}; /metadata says what is")
