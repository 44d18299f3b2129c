"""History of a resource, of a type, of everything: versions newest first, or oldest first when asked, in pages.

Sources: https://hl7.org/fhir/R4/http.html#history, https://hl7.org/fhir/R4/bundle.html#history; `_sort` is that of
https://hl7.org/fhir/R5/http.html#history.
"""

from __future__ import annotations

from typing import cast
from urllib.parse import quote

from fhir_server.changes import Hub
from fhir_server.errors import Invalid, NotFound
from fhir_server.rest import binary, pages
from fhir_server.rest.http import Request, Response, check_accept, instant_text, json_response
from fhir_server.rest.pages import PAGE
from fhir_server.rest.resources import known_id, known_type
from fhir_server.rest.search import MAX_COUNT, bundle_text
from fhir_server.search.values import date_range
from fhir_server.store.resources import Stored
from profiles import json_text

PARAMETERS = ("_since", "_at", "_count", "_sort", PAGE, "_format", "_pretty", "_summary", "_elements")
_OLDEST_FIRST = "_lastUpdated"
SORTS = ("-_lastUpdated", "none", _OLDEST_FIRST)
_STATUS = {"POST": "201", "DELETE": "204"}


def of_instance(hub: Hub, request: Request) -> Response:
    """GET [base]/[type]/[id]/_history; NotFound when the resource never was."""
    kind = known_type(request.path_args["type"])
    key = known_id(kind, request.path_args["id"])
    return _answer(hub, request, f"{kind}/{quote(key)}/_history", kind, key)


def of_type(hub: Hub, request: Request) -> Response:
    """GET [base]/[type]/_history."""
    kind = known_type(request.path_args["type"])
    return _answer(hub, request, f"{kind}/_history", kind)


def of_system(hub: Hub, request: Request) -> Response:
    """GET [base]/_history."""
    return _answer(hub, request, "_history")


def _answer(hub: Hub, request: Request, path: str, kind: str | None = None, key: str | None = None) -> Response:
    check_accept(request)
    asked = _asked(request)
    zone = hub.sites.default.time_zone
    since, at = _moment(asked, "_since", zone), _moment(asked, "_at", zone)
    kept = [(name, value) for name, value in asked.items() if name != PAGE]
    after = cast(tuple[int, ...], pages.position(hub, path, kept, asked.get(PAGE, "")))
    count = 0 if asked.get("_summary") == "count" else _count(asked)
    with hub.store.read(request.caller) as snapshot:
        current = snapshot.get(kind, key) if kind is not None and key is not None else None
        if key is not None and current is None:
            raise NotFound(f"{kind}/{key} is not known here; search for it or check the id")
        low = since[0] if since else 0
        oldest_first = asked.get("_sort") == _OLDEST_FIRST
        page = snapshot.history(kind, key, count, after, since=low, at=at, oldest_first=oldest_first)
        if current is not None and not low and at is None:
            total: int | None = current.version  # versions count from one
        elif current is not None or count == 0:
            total = snapshot.history_total(kind, key, since=low, at=at)
        else:
            total = None  # of many it is counted only when nothing else is asked for
    links = [("self", f"{request.base}/{pages.address(path, kept)}")]
    if page.next:
        links.append(("next", pages.link(hub, request.base, path, kept, page.next)))
    entries = [_entry(hub, request, stored) for stored in page.entries]
    return json_response(request, 200, bundle_text(hub, "history", links, entries, total))


def _asked(request: Request) -> dict[str, str]:
    """The parameters, each at most once. Raises Invalid (400) for others unless `Prefer: handling=lenient`."""
    asked: dict[str, str] = {}
    lenient = request.prefers().get("handling") == "lenient"
    for name, value in request.query:
        problem = ""
        if name not in PARAMETERS:
            problem = f"history has no parameter `{name[:64]}`; valid: {', '.join(PARAMETERS)}"
        elif name in asked:
            problem = f"`{name}` stands twice; send it once"
        elif name == "_sort" and value not in SORTS:
            problem = f"history is sorted by time alone; send _sort={_OLDEST_FIRST}, or leave `_sort` out"
        if problem and not lenient:
            raise Invalid(problem, http=400)
        if not problem:
            asked[name] = value
    if "_since" in asked and "_at" in asked and not lenient:
        raise Invalid("_since and _at exclude each other; send one of them", http=400)
    return asked


def _moment(asked: dict[str, str], name: str, zone: str) -> tuple[int, int] | None:
    """A date or instant as the microseconds it spans; None when it is not asked for."""
    text = asked.get(name)
    if text is None:
        return None
    # A form decodes the plus of an offset to a space.
    span = date_range(text.strip().replace(" ", "+"), zone) if len(text) < 64 else None
    if span is None:
        raise Invalid(f"{name}={text[:64]} is no date; send for example {name}=2026-11-21T08:00:00Z", http=400)
    return span


def _count(asked: dict[str, str]) -> int:
    raw = asked.get("_count", "50")
    if not raw.isascii() or not raw.isdigit() or len(raw) > 9:
        raise Invalid(f"_count={raw[:20]} is no number; it is 0 or more", http=400)
    return min(int(raw), MAX_COUNT)


def _entry(hub: Hub, request: Request, stored: Stored) -> tuple[str, str]:
    address = f"{request.base}/{stored.type}/{quote(stored.id)}"
    url = stored.type if stored.method == "POST" else f"{stored.type}/{stored.id}"
    created = stored.method == "PUT" and stored.version == 1
    status = "201" if created else _STATUS.get(stored.method, "200")
    members = f'"resource":{binary.listed(hub, request, stored)},' if not stored.deleted else ""
    members += f'"request":{{"method":"{stored.method}","url":{json_text.write(url)}}},'
    members += (
        f'"response":{{"status":"{status}","location":"{stored.type}/{stored.id}/_history/{stored.version}",'
        f'"etag":"W/\\"{stored.version}\\"","lastModified":"{instant_text(stored.last_updated)}"}}'
    )
    return address, members
