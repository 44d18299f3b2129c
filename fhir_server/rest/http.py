"""Our own Request and Response, content negotiation and the OperationOutcome every error becomes.

Sources: https://hl7.org/fhir/R4/http.html, https://hl7.org/fhir/R4/operationoutcome.html, RFC 9110.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

from fhir_server.context import Caller, instant
from fhir_server.errors import Issue, Malformed, PasserelleError, Unsupported
from fhir_server.store.resources import Stored
from profiles import json_text

FHIR_JSON = "application/fhir+json"
_JSON = ("application/fhir+json", "application/json", "text/json", "json", "application/json+fhir")
_XML = ("application/fhir+xml", "application/xml", "text/xml", "xml")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `path` is what follows the mount (`/Patient/1`); header names are lower case; `base` is the
    absolute URL of the mount without a trailing slash; `path_args` are filled by the route."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    body: bytes
    caller: Caller
    base: str
    path_args: Mapping[str, str]

    def arg(self, name: str) -> str | None:
        """The first query argument of that name."""
        return next((value for key, value in self.query if key == name), None)

    def prefers(self) -> dict[str, str]:
        """The `Prefer` header as a dict (`return`, `handling`, `respond-async`)."""
        items = (item.strip().partition("=") for item in self.headers.get("prefer", "").replace(";", ",").split(","))
        return {name.strip().lower(): value.strip().strip('"') for name, _, value in items if name.strip()}


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer; a `stream` is sent instead of `body` when it is set."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    stream: Iterable[bytes] | None = None

    def with_headers(self, *more: tuple[str, str]) -> Response:
        """The same answer with further headers."""
        return replace(self, headers=self.headers + more)


def json_response(request: Request | None, status: int, text: str, *headers: tuple[str, str]) -> Response:
    """FHIR JSON text as an answer, indented when `_pretty=true`."""
    if request is not None and request.arg("_pretty") == "true":
        text = json_text.pretty(json_text.parse(text))
    kind = ("content-type", FHIR_JSON + "; charset=utf-8")
    return Response(status, (kind, *headers), text.encode("utf-8"))


def check_accept(request: Request) -> None:
    """Raise Unsupported (406) when the client takes nothing but what is not offered."""
    wanted = request.arg("_format") or request.headers.get("accept", "")
    kinds = [item.split(";")[0].strip().lower().replace(" ", "+") for item in wanted.split(",") if item.strip()]
    if not kinds or any(kind in _JSON or kind in ("*/*", "application/*") for kind in kinds):
        return
    offered = "FHIR XML is not offered yet; " if any(kind in _XML for kind in kinds) else ""
    raise Unsupported(f"{offered}ask for {FHIR_JSON} (Accept or _format=json)", http=406)


def resource_body(request: Request, max_bytes: int) -> dict[str, Any]:
    """The request's body as a resource. Raises Unsupported (415) or Malformed with line and column."""
    kind = request.headers.get("content-type", FHIR_JSON).split(";")[0].strip().lower()
    if kind not in _JSON:
        raise Unsupported(f"the body is {kind}; send {FHIR_JSON}", http=415)
    if not request.body.strip():
        raise Malformed("the request has no body; send the resource as JSON")
    try:
        resource = json_text.parse(request.body, max_bytes=max_bytes)
    except json_text.JsonError as error:
        raise Malformed(str(error), expression=getattr(error, "path", "") or "") from error
    if not isinstance(resource.get("resourceType"), str):
        raise Malformed("the object has no resourceType; it is the first thing a FHIR resource says")
    return resource


def outcome(issues: Iterable[Issue]) -> dict[str, Any]:
    """An OperationOutcome resource."""
    listed = []
    for issue in issues:
        item: dict[str, Any] = {"severity": issue.severity, "code": issue.code, "diagnostics": issue.diagnostics}
        if issue.expression:
            item["expression"] = [issue.expression]
        listed.append(item)
    return {"resourceType": "OperationOutcome", "issue": listed}


def error_response(request: Request | None, error: PasserelleError) -> Response:
    """The answer for an error of the tree; every issue has an expression (the request's path when nothing closer)."""
    fallback = request.path.strip("/").split("/")[0] if request is not None else ""
    issues = [replace(issue, expression=issue.expression or fallback or "Bundle") for issue in error.issues]
    return json_response(request, error.status, json_text.write(outcome(issues)))


def version_headers(request: Request, stored: Stored) -> tuple[tuple[str, str], ...]:
    """ETag and Last-Modified of a version."""
    return ("etag", f'W/"{stored.version}"'), ("last-modified", http_date(stored.last_updated))


def location(request: Request, stored: Stored) -> str:
    """The absolute address of a version."""
    return f"{request.base}/{stored.type}/{quote(stored.id)}/_history/{stored.version}"


def http_date(micros: int) -> str:
    """IMF-fixdate of microseconds since 1970."""
    return format_datetime((EPOCH + timedelta(microseconds=micros)).replace(microsecond=0), usegmt=True)


def instant_text(micros: int) -> str:
    """FHIR instant of microseconds since 1970."""
    return instant(EPOCH + timedelta(microseconds=micros))


def if_match(request: Request) -> int | None:
    """The version of an If-Match header. Raises Malformed when it is no version."""
    raw = request.headers.get("if-match")
    if raw is None:
        return None
    digits = raw.strip().removeprefix("W/").strip('"')
    if not digits.isdigit() or len(digits) > 18:
        raise Malformed(f'If-Match {raw} is no version of ours; send W/"1" as the ETag said', expression="")
    return int(digits)


def entries(texts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Bundle.entry items from (address, rest of the entry's members as JSON text)."""
    for address, members in texts:
        head = f'"fullUrl":{json_text.write(address)},' if address else ""
        yield "{" + head + members + "}"
