"""The route table of the FHIR API and the one function that answers a request.

OpenAPI, the CapabilityStatement and the dispatcher read the same table.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.errors import Fault, Malformed, NotFound, PasserelleError, Unsupported
from fhir_server.rest import (
    audit,
    bundle,
    capabilities,
    history,
    later,
    openapi,
    patch,
    rendering,
    resources,
    search,
    validation,
)
from fhir_server.rest.http import FHIR_JSON, Request, Response, check_accept, error_response, negotiated
from fhir_server.security import scopes
from fhir_server.store.engine import Store
from fhir_server.store.resources import Stored
from profiles import definitions

log = logging.getLogger("passerelle.rest")
Handler = Callable[[Hub, Request], Response]
_TYPES = definitions.resource_types()
VALIDATE = validation.DEFINITION


@dataclass(frozen=True, slots=True)
class Route:
    """One interaction: `pattern` uses `{type}`, `{id}`, `{vid}`; `interaction` is the R4 code (or '' for helpers).

    `many`: the answer is a Bundle of resources; `form`: the body holds further query parameters; `operation`: the
    OperationDefinition of what is no plain interaction.
    """

    method: str
    pattern: str
    interaction: str
    handler: Handler
    summary: str
    many: bool = False
    form: bool = False
    operation: str = ""

    def regex(self) -> re.Pattern[str]:
        """The compiled path pattern. No id begins with `_` or `$`, so that operations never look like one; the audit
        trail has routes of its own."""
        text = self.pattern.replace(".", r"\.").replace("$", r"\$").replace("*", r"\*")
        text = text.replace("{type}", r"(?P<type>(?!AuditEvent\b)[A-Z][A-Za-z]{0,79})")
        text = text.replace("{compartment}", r"(?P<compartment>[A-Z][A-Za-z]{0,79})")
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
    Route("GET", "/", "search-system", search.of_system, "search several types", many=True),
    Route("POST", "/_search", "search-system", search.of_system, "search several types by form", many=True, form=True),
    Route("GET", "/_async/{job}", "async", later.status, "how far an asynchronous request is"),
    Route("DELETE", "/_async/{job}", "async", later.cancel, "give up an asynchronous request"),
    Route("GET", "/_async/{job}/{part}", "async", later.result, "what came out of an asynchronous request"),
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
    Route("POST", "/{type}/$validate", "validate", validation.of_type, "try a write", operation=VALIDATE),
    Route("GET", "/{type}/{id}/$validate", "validate", validation.of_instance, "judge it", operation=VALIDATE),
    Route("POST", "/{type}/{id}/$validate", "validate", validation.of_instance, "try a write", operation=VALIDATE),
    Route("GET", "/{type}/{id}/_history", "history-instance", history.of_instance, "every version", many=True),
    Route("GET", "/{compartment}/{id}/*", "search-type", search.of_compartment, "all of a compartment", many=True),
    Route("GET", "/{compartment}/{id}/{type}", "search-type", search.of_compartment, "search a compartment", many=True),
    Route("GET", "/{type}/{id}/_history/{vid}", "vread", resources.vread, "one version"),
)
_COMPILED = tuple((route, route.regex()) for route in ROUTES)


def _by_length() -> dict[tuple[str, int], list[tuple[Route, re.Pattern[str]]]]:
    """The routes by method and number of slashes in the path, of which one may stand at its end."""
    found: dict[tuple[str, int], list[tuple[Route, re.Pattern[str]]]] = {}
    for route, pattern in _COMPILED:
        for more in (0, 1):
            found.setdefault((route.method, route.pattern.count("/") + more), []).append((route, pattern))
    return found


_BY_LENGTH = _by_length()


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


def by_key(request: Request) -> tuple[str, str, int] | None:
    """(type, id, version or 0) of a plain read of a current or past version: one row, given as it is stored.

    None for everything else, which may need more of the store or more work on the content.
    """
    if request.method not in ("GET", "HEAD") or request.query:
        return None
    parts = request.path.split("/")
    if len(parts) not in (3, 5) or parts[1] in ("AuditEvent", "Binary") or parts[1] not in _TYPES:
        return None
    if not resources.ID.fullmatch(parts[2]):
        return None
    if len(parts) == 3:
        number = 0
    elif parts[3] == "_history" and resources.VERSION.fullmatch(parts[4]):
        number = int(parts[4])
    else:
        return None
    return (parts[1], parts[2], number) if negotiated(request) == FHIR_JSON else None


def knowing(hub: Hub, stored: Stored | None) -> Hub:
    """The hub whose store knows what `by_key` asked for, so that the handlers need not ask it."""
    return replace(hub, store=cast(Store, _Known(hub.store, stored)))


class _Known:
    """The store for one read, answered already."""

    def __init__(self, store: Store, stored: Stored | None) -> None:
        self._store, self._stored = store, stored

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def get(self, caller: Caller, resource_type: str, resource_id: str) -> Stored | None:
        return self._stored

    def version(self, caller: Caller, resource_type: str, resource_id: str, number: int) -> Stored | None:
        return self._stored


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
    """The answer to one request; that to HEAD still has the body GET would send. Raises what goes wrong."""
    route, request = _routed(request)
    if route.form:
        request = search.with_form(request)
    scopes.check(request.caller, route.interaction, request.method, request.path_args.get("type", ""), request.query)
    if any("\0" in name or "\0" in value for name, value in request.query):
        raise Malformed("the address holds the character NUL; leave it out")
    if later.wanted(request, route.interaction):
        return later.start(hub, request, lambda again: answer(hub, again))
    reading = route.method == "GET" or route.form
    if not (reading and request.path_args.get("type") == "Binary"):
        check_accept(request)
    wanted = rendering.selection(request) if reading else None
    return rendering.finished(request, route.handler(hub, request), wanted, many=route.many)


def allowed(path: str) -> list[str]:
    """The methods offered at a path, for Allow."""
    found = {route.method for route, pattern in _COMPILED if pattern.match(path or "/")}
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


def _routed(request: Request) -> tuple[Route, Request]:
    method = "GET" if request.method == "HEAD" else request.method
    path = request.path or "/"
    for route, pattern in _BY_LENGTH.get((method, path.count("/")), ()):
        if found := pattern.match(path):
            return route, replace(request, path_args=found.groupdict())
    offered = allowed(request.path)
    if offered:
        text = f"{request.method} is not offered at {request.path[:200]}; offered: {', '.join(offered)}"
        raise Unsupported(text, http=405)
    raise NotFound(f"nothing is served at {request.path[:200]}; /metadata says what is")
