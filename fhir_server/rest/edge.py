"""What surrounds every HTTP answer, whatever is behind it: compression, request ids, calls from web pages.

Pure functions on headers and bytes: the composition root joins them to its web framework.

Sources: RFC 9110 sections 8.4 and 12.5.3, https://fetch.spec.whatwg.org/#http-cors-protocol,
https://hl7.org/fhir/R4/http.html#custom
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Mapping
from urllib.parse import urlsplit

from fhir_server.config import Settings, in_url
from fhir_server.context import new_request_id
from fhir_server.errors import Malformed, TooLarge, Unsupported
from fhir_server.rest.http import Response
from fhir_server.search.references import own_bases

Headers = tuple[tuple[str, str], ...]
MIB = 1024 * 1024
# Below this, packing costs more than it saves.
_SMALL = 1_024
_LEVEL = 4
# A packed body is read in pieces of so much; it may be so many gzip files one behind the other (bgzip makes one for
# every 64 KiB): beginning one takes longer than what little it may hold.
_PIECE, _MOST_FILES = 64 * 1024, 10_000
_PACKABLE = ("application/fhir+", "application/json", "application/xml", "application/dicom+json", "text/")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,64}")
_HOST = re.compile(r"[A-Za-z0-9._:\-\[\]]{1,255}")
_ALLOWED_HEADERS = (
    "Accept, Authorization, Content-Type, Content-Encoding, If-Match, If-Modified-Since, If-None-Exist, If-None-Match, "
    "Prefer, X-Provenance, X-Request-Id, X-Security-Context"
)
_EXPOSED = "ETag, Last-Modified, Location, Content-Location, Retry-After, X-Progress, X-Request-Id, X-Security-Context"


def request_id(headers: Mapping[str, str]) -> str:
    """The client's X-Request-Id when it is a plain one, else a new one."""
    told = headers.get("x-request-id", "")
    return told if _REQUEST_ID.fullmatch(told) else new_request_id()


def host(headers: Mapping[str, str], default: str) -> str:
    """The Host the client called. Raises Malformed for what is no host name."""
    told = headers.get("host") or default
    if not _HOST.fullmatch(told):
        raise Malformed("the Host header is no host name")
    return told


def base(settings: Settings, headers: Mapping[str, str], mount: str) -> str:
    """The absolute URL of a mount as the client is told it, without a trailing slash.

    That of the FHIR API is the public one, or the alias whose host the client called; without either, the host it
    called. Only names the operator declared can take the place of the public one. Raises Malformed for a Host that is
    no host name.
    """
    called = host(headers, f"{in_url(settings.bind)}:{settings.http_port}")
    if mount == "fhir":
        known = own_bases(settings)
        named = (one for one in known if urlsplit(one).netloc.lower() == called.lower())
        if found := next(named, settings.public_url.rstrip("/")):
            return found
    return f"{settings.web_scheme}://{called}/{mount}"


def unpacked(headers: Mapping[str, str], body: bytes, limit: int) -> bytes:
    """The body without its Content-Encoding, at most `limit` bytes however small it came.

    Raises Unsupported (415), Malformed, TooLarge.
    """
    coding = headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in ("gzip", "x-gzip"):
        raise Unsupported(f"the body is encoded as {coding[:40]}; send it as gzip or as it is", http=415)
    try:
        return _gunzipped(memoryview(body), limit)
    except zlib.error as error:
        raise Malformed(f"the body is no gzip: {error}") from error


def _gunzipped(body: memoryview, limit: int) -> bytes:
    found, size, at, files = io.BytesIO(), 0, 0, 0
    reader = None
    while at < len(body):
        if reader is None:
            reader, files = zlib.decompressobj(wbits=31), files + 1
            if files > _MOST_FILES:
                raise TooLarge(f"the body is more than {_MOST_FILES} gzip files one behind the other; send it as one")
        piece = body[at : at + _PIECE]
        size += found.write(reader.decompress(piece, limit - size + 1))
        if size > limit:
            raise TooLarge(f"unpacked, the body has more than {limit // MIB} MiB; send less in one request")
        at += len(piece) - len(reader.unused_data)
        if reader.eof:
            reader = None
    if reader is not None:
        raise Malformed("the gzip body ends too early; send it whole")
    return found.getvalue()


def packed(headers: Mapping[str, str], response: Response) -> Response:
    """The answer compressed when the client takes gzip and its kind and size are worth it."""
    found = dict(response.headers)
    if response.stream is not None or not found.get("content-type", "").startswith(_PACKABLE):
        return response
    response = response.with_headers(("vary", "accept, accept-encoding"))
    if len(response.body) < _SMALL or not _takes_gzip(headers.get("accept-encoding", "")):
        return response
    body = gzip.compress(response.body, _LEVEL, mtime=0)
    return Response(response.status, (*response.headers, ("content-encoding", "gzip")), body)


def _takes_gzip(accepted: str) -> bool:
    for item in accepted.lower().split(",")[:50]:
        name, _, quality = item.partition(";")
        if name.strip() in ("gzip", "x-gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def cors(settings: Settings, headers: Mapping[str, str]) -> Headers:
    """What lets a page of an allowed origin read the answer; nothing for any other. Cookies are never allowed."""
    allowed = [origin.strip().rstrip("/") for origin in settings.cors_origins.split(",") if origin.strip()]
    if not allowed:
        return ()
    origin = headers.get("origin", "")
    if origin not in allowed and "*" not in allowed:
        return (("vary", "origin"),)
    told = ("access-control-allow-origin", "*" if "*" in allowed else origin)
    return told, ("access-control-expose-headers", _EXPOSED), ("vary", "origin")


def preflight(settings: Settings, method: str, headers: Mapping[str, str], methods: str) -> Response | None:
    """The answer to a page's question whether it may call us; None when this is no such question."""
    if method != "OPTIONS" or not headers.get("origin") or not headers.get("access-control-request-method"):
        return None
    allowed = cors(settings, headers)
    if not any(name == "access-control-allow-origin" for name, _ in allowed):
        return Response(403, allowed)
    more = (
        ("access-control-allow-methods", methods),
        ("access-control-allow-headers", _ALLOWED_HEADERS),
        ("access-control-max-age", "600"),
    )
    return Response(204, (*allowed, *more))
