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
        # fhirpy sends the bare version, without the quotes of an ETag.
        tags = [tag.strip().removeprefix("W/").strip('"') for tag in known.split(",")[:_MOST_TAGS]]
        return "*" in tags or str(stored.version) in tags
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


def refuse_criteria(request: Request) -> None:
    """Raise Malformed when a create carries a search: ignoring it would store what the client wants once twice."""
    if name := next((name for name, _ in request.query if name not in RENDERING), ""):
        raise Malformed(f"a create takes no {name[:80]} in its address; a condition goes in the header If-None-Exist")


def none_exist_asked(raw: str, kind: str, expression: str = "") -> str:
    """The search of an If-None-Exist. Raises Malformed when it is about another type.

    It comes as the bare query FHIR describes, after a `?`, after the type, or after a whole address (HAPI's client).
    """
    before, mark, query = raw.strip().partition("?")
    if not mark or "=" in before:  # a question mark within a value
        return raw.strip()
    if before and before.rpartition("/")[2] != kind:
        raise Malformed(f"If-None-Exist is about {before[:80]}, the create about {kind}", expression=expression)
    if not query:
        raise Malformed("If-None-Exist names no search, e.g. identifier=system|value", expression=expression)
    return query


def criteria(request: Request, verb: str) -> str:
    """The search of a conditional interaction. Raises Malformed when there is none."""
    pairs = [(name, value) for name, value in request.query if name not in RENDERING]
    if not pairs:
        raise Malformed(f"a conditional {verb} needs a condition, e.g. ?identifier=system|value")
    return urlencode(pairs)
