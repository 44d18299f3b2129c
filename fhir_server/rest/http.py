"""Our own Request and Response, content negotiation and the OperationOutcome every error becomes.

Sources: https://hl7.org/fhir/R4/http.html, https://hl7.org/fhir/R4/operationoutcome.html, RFC 9110.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote

from fhir_server.context import Caller, instant
from fhir_server.errors import Issue, Malformed, PasserelleError, Unsupported
from fhir_server.store.resources import Stored
from profiles import json_text
from profiles.xml_text import XmlError, from_xml

FHIR_JSON = "application/fhir+json"
FHIR_XML = "application/fhir+xml"
_JSON = ("application/fhir+json", "application/json", "text/json", "json", "application/json+fhir")
_XML = ("application/fhir+xml", "application/xml", "text/xml", "xml", "application/xml+fhir")
_VERSIONS = ("4.0", "4.0.1")
_CHARSETS = ("utf-8", "utf8", "us-ascii")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MOST_RANGES = 50
# Clients send the same few headers again and again; longer ones are read each time.
_USUAL_ACCEPT = 200
_MOST_PAIRS = 2_000
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_LONGEST_TEXT = 4_000
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


def pairs(text: str) -> list[tuple[str, str]]:
    """The parameters of an address or a form. Raises ValueError for too many, and for escapes that are no UTF-8: read
    as something else they would find nothing, and say nothing."""
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_PAIRS, errors="strict")
    except UnicodeDecodeError as error:
        told = quote(error.object[error.start : error.start + 1])
        raise ValueError(f"{told} begins no character of UTF-8; percent-encode it in UTF-8") from error


def json_response(request: Request | None, status: int, text: str, *headers: tuple[str, str]) -> Response:
    """FHIR JSON text as an answer; `rendering` lays it out as the client wishes."""
    kind = ("content-type", FHIR_JSON + "; charset=utf-8")
    return Response(status, (kind, *headers), text.encode("utf-8"))


def negotiated(request: Request) -> str:
    """FHIR_JSON or FHIR_XML, as `_format` or else Accept asks; '' when neither will do."""
    asked = request.arg("_format") or request.headers.get("accept", "")
    if not asked.strip():
        return FHIR_JSON
    for kind in _media_ranges(asked):
        if kind in _JSON or kind in ("*/*", "application/*"):
            return FHIR_JSON
        if kind in _XML:
            return FHIR_XML
    return ""


def _media_ranges(text: str) -> tuple[str, ...]:
    """The media types of an Accept header that are wanted, most wanted first (RFC 9110 12.5.1)."""
    return _known_ranges(text) if len(text) <= _USUAL_ACCEPT else _read_ranges(text)


def _read_ranges(text: str) -> tuple[str, ...]:
    found: list[tuple[float, str]] = []
    for item in text.split(",")[:_MOST_RANGES]:
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        known = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            quality = float(known.get("q", "1"))
        except ValueError:
            quality = 0.0
        if quality > 0 and known.get("fhirversion", "4.0").strip('"') in _VERSIONS:
            # A form decodes the plus of `_format=application/fhir+json` to a space.
            found.append((quality, kind.replace(" ", "+")))
    return tuple(kind for _, kind in sorted(found, key=lambda one: -one[0]))


_known_ranges = lru_cache(maxsize=256)(_read_ranges)


def check_accept(request: Request) -> None:
    """Raise Unsupported (406) when the client takes nothing that is offered."""
    if not negotiated(request):
        raise Unsupported(f"ask for {FHIR_JSON} or {FHIR_XML} of FHIR 4.0 (Accept or _format)", http=406)


def media_type(request: Request) -> str:
    """The body's media type in lower case, without parameters; FHIR JSON when it is not told."""
    return request.headers.get("content-type", FHIR_JSON).split(";")[0].strip().lower()


def check_charset(request: Request) -> None:
    """Raise Unsupported (415) for a body that says it is in another charset than UTF-8, the only one of FHIR."""
    parameters = (item.strip().partition("=")[::2] for item in request.headers.get("content-type", "").split(";")[1:])
    told = next((value.strip().strip('"') for name, value in parameters if name.strip().lower() == "charset"), "")
    if told and told.lower() not in _CHARSETS:
        raise Unsupported(f"the body is in the charset {told[:40]}; send it in UTF-8", http=415)


def resource_body(request: Request, max_bytes: int) -> dict[str, Any]:
    """The request's body as a resource. Raises Unsupported (415), or Malformed with line, column and path."""
    kind, *parameters = (part.strip().lower() for part in request.headers.get("content-type", FHIR_JSON).split(";"))
    if kind not in _JSON and kind not in _XML:
        raise Unsupported(f"the body is {kind[:100]}; send {FHIR_JSON} or {FHIR_XML}", http=415)
    version = dict(parameter.partition("=")[::2] for parameter in parameters).get("fhirversion", "4.0").strip('"')
    if version not in _VERSIONS:
        raise Unsupported(f"the body is FHIR {version[:20]}; this server speaks 4.0", http=415)
    check_charset(request)
    if not request.body.strip():
        raise Malformed("the request has no body; send the resource as JSON or XML")
    resource = parsed(request.body, xml=kind in _XML, max_bytes=max_bytes)
    if not isinstance(resource.get("resourceType"), str):
        raise Malformed("the object has no resourceType; it is the first thing a FHIR resource says")
    return resource


def parsed(body: bytes, *, xml: bool, max_bytes: int) -> dict[str, Any]:
    """A resource from JSON or XML bytes. Raises Malformed with line, column and path."""
    try:
        return from_xml(body, max_bytes=max_bytes) if xml else json_text.parse(body, max_bytes=max_bytes)
    except (json_text.JsonError, XmlError) as error:
        raise Malformed(str(error), expression=error.path) from error


def outcome(issues: Iterable[Issue]) -> dict[str, Any]:
    """An OperationOutcome resource."""
    listed = []
    for issue in issues:
        item: dict[str, Any] = {"severity": issue.severity, "code": issue.code, "diagnostics": _fit(issue.diagnostics)}
        if issue.expression:
            item["expression"] = [_fit(issue.expression)]
        listed.append(item)
    return {"resourceType": "OperationOutcome", "issue": listed}


def _fit(text: str) -> str:
    """Text that quotes a client, made fit for JSON and XML."""
    return _UNFIT.sub("\ufffd", text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…")


_ERROR_HEADERS: Mapping[int, tuple[tuple[str, str], ...]] = {
    401: (("www-authenticate", "Bearer"),),
    429: (("retry-after", "5"),),
    503: (("retry-after", "5"),),
}


def error_response(request: Request | None, error: PasserelleError, *, path: str = "") -> Response:
    """The answer for an error of the tree; every issue has an expression: when nothing is closer what the address
    names first, which is a resource type, or the Bundle that the base takes. `path` is that of a request which could
    not be made."""
    fallback = (path if request is None else request.path).strip("/").split("/")[0]
    issues = [replace(issue, expression=issue.expression or fallback or "Bundle") for issue in error.issues]
    return json_response(request, error.status, json_text.write(outcome(issues)), *_ERROR_HEADERS.get(error.status, ()))


def version_headers(request: Request, stored: Stored) -> tuple[tuple[str, str], ...]:
    """ETag and Last-Modified of a version."""
    return ("etag", f'W/"{stored.version}"'), ("last-modified", http_date(stored.last_updated))


def location(request: Request, stored: Stored) -> str:
    """The absolute address of a version."""
    return f"{request.base}/{stored.type}/{quote(stored.id)}/_history/{stored.version}"


def http_date(micros: int) -> str:
    """IMF-fixdate of microseconds since 1970 (RFC 9110 5.6.7)."""
    at = time.gmtime(micros // 1_000_000)
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]
    return f"{day}, {at.tm_mday:02} {month} {at.tm_year:04} {at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"


def instant_text(micros: int) -> str:
    """FHIR instant of microseconds since 1970."""
    return instant(EPOCH + timedelta(microseconds=micros))


def entries(texts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Bundle.entry items from (address, rest of the entry's members as JSON text)."""
    for address, members in texts:
        head = f'"fullUrl":{json_text.write(address)},' if address else ""
        yield "{" + head + members + "}"
