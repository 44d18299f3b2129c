"""The conditions a client puts on a request: versions it knows, instants it knows, searches.

Sources: https://hl7.org/fhir/R4/http.html#cread, https://hl7.org/fhir/R4/http.html#concurrency, RFC 9110 section 13.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlencode

from fhir_server.context import micros
from fhir_server.errors import Malformed
from fhir_server.rest.http import Request
from fhir_server.store.resources import Stored

RENDERING = ("_format", "_pretty", "_summary", "_elements")
_MOST_TAGS = 100


def not_modified(request: Request, stored: Stored) -> bool:
    """Whether the client has this version already; If-None-Match outweighs If-Modified-Since."""
    known = request.headers.get("if-none-match")
    if known is not None:
        tags = [tag.strip().removeprefix("W/") for tag in known.split(",")[:_MOST_TAGS]]
        return "*" in tags or f'"{stored.version}"' in tags
    since = request.headers.get("if-modified-since")
    if since is None:
        return False
    try:
        moment = parsedate_to_datetime(since)
    except (ValueError, OverflowError):
        return False  # RFC 9110 13.1.3: what is no date is ignored
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    # HTTP dates have no fractions, so the stored instant is compared without its own.
    return stored.last_updated // 1_000_000 * 1_000_000 <= micros(moment)


def version_asked(raw: str | None, expression: str = "") -> int | None:
    """The version of an If-Match. Raises Malformed when it is none of ours."""
    if raw is None:
        return None
    digits = raw.strip().removeprefix("W/").strip('"')
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        text = f'If-Match {raw[:40]} is no version of ours; send W/"1" as the ETag said'
        raise Malformed(text, expression=expression)
    return int(digits)


def absent_asked(raw: str | None, expression: str = "") -> bool:
    """Whether If-None-Match of a write asks for nothing to be there. Raises Malformed for anything but `*`."""
    if raw is None:
        return False
    if raw.strip() != "*":
        raise Malformed("If-None-Match of a write is `*`; send If-Match to name a version", expression=expression)
    return True


def criteria(request: Request, verb: str) -> str:
    """The search of a conditional interaction. Raises Malformed when there is none."""
    pairs = [(name, value) for name, value in request.query if name not in RENDERING]
    if not pairs:
        raise Malformed(f"a conditional {verb} needs a condition, e.g. ?identifier=system|value")
    return urlencode(pairs)
