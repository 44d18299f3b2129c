"""Search: a query string to a plan to a Bundle of matches, and the links of its pages.

Source: https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, urlencode

from fhir_server.changes import Hub
from fhir_server.context import instant
from fhir_server.errors import Malformed, Unsupported
from fhir_server.rest.http import Request, Response, check_accept, entries, json_response
from fhir_server.rest.resources import known_type
from fhir_server.search import query
from fhir_server.search.plan import Plan, Sort
from fhir_server.store.resources import Stored
from profiles import json_text

MAX_COUNT = 1000
PAGE = "_page"
FORM = "application/x-www-form-urlencoded"
_LONGEST_TOKEN = 8_000
_INT64 = 1 << 63
_SNAPSHOT = re.compile(r"[0-9]{1,19}:[0-9]{1,19}:[0-9,]{0,4000}", re.ASCII)
_KEY_TYPES: dict[str, type | tuple[type, ...]] = {"date": int, "number": (int, float), "quantity": (int, float)}


def search(hub: Hub, request: Request) -> Response:
    """GET [base]/[type]?... and POST [base]/[type]/_search."""
    check_accept(request)
    kind = known_type(request.path_args["type"])
    pairs = list(request.query)
    lenient = request.prefers().get("handling") == "lenient"
    after = page_position(next((value for name, value in pairs if name == PAGE), ""))
    asked = [(name, value) for name, value in pairs if name != PAGE]
    plan = query.parse(kind, asked, lenient=lenient, zone=hub.sites.default.time_zone, base=request.base)
    if after and not _fits(after, plan, hub.store.engine):
        raise Malformed("this page link does not belong to this search; start again without it")
    counted = request.arg("_summary") == "count"
    plan = dataclasses.replace(plan, count=0 if counted else min(plan.count, MAX_COUNT), after=after)
    with hub.store.read(request.caller) as snapshot:
        page = snapshot.search(plan)
    used = plan.self_link
    links = [("self", f"{request.base}/{kind}?{urlencode(used)}")]
    if page.next:
        links.append(("next", f"{request.base}/{kind}?{urlencode([*used, (PAGE, page_token(page.next))])}"))
    texts = [_match(request, stored, "match") for stored in page.matches]
    texts += [_match(request, stored, "include") for stored in page.includes]
    return json_response(request, 200, bundle_text(hub, "searchset", links, texts, page.total))


def bundle_text(
    hub: Hub, kind: str, links: Sequence[tuple[str, str]], texts: Sequence[tuple[str, str]], total: int | None
) -> str:
    """The text of a Bundle whose entries are given as (fullUrl, member text)."""
    head = {"resourceType": "Bundle", "type": kind, "timestamp": instant(hub.clock())}
    text = json_text.write(head)[:-1]
    if total is not None:
        text += f',"total":{total}'
    link = [{"relation": relation, "url": url} for relation, url in links]
    if link:
        text += ',"link":' + json_text.write(link)
    if texts:
        text += ',"entry":[' + ",".join(entries(texts)) + "]"
    return text + "}"


def _match(request: Request, stored: Stored, mode: str) -> tuple[str, str]:
    address = f"{request.base}/{stored.type}/{quote(stored.id)}"
    return address, f'"resource":{stored.text},"search":{{"mode":"{mode}"}}'


def with_form(request: Request) -> Request:
    """A POST search as the GET it stands for: the form's parameters join those of the address.

    Raises Unsupported (415) for another media type, Malformed for a form that cannot be read.
    """
    kind = request.headers.get("content-type", FORM).split(";")[0].strip().lower()
    if kind != FORM:
        raise Unsupported(f"a POST search sends {FORM}, not {kind[:100]}", http=415)
    try:
        pairs = parse_qsl(request.body.decode("utf-8"), keep_blank_values=True, max_num_fields=1000)
    except ValueError as error:
        raise Malformed(f"the search form cannot be read: {error}") from error
    return dataclasses.replace(request, query=(*request.query, *pairs), body=b"")


def page_token(position: tuple[object, ...]) -> str:
    """A position as the opaque value of a page link."""
    return base64.urlsafe_b64encode(json.dumps(position, separators=(",", ":")).encode()).decode("ascii").rstrip("=")


def page_position(token: str) -> tuple[object, ...]:
    """The position a page link carries, () for the first page. Raises Malformed for what no link of ours holds."""
    if not token:
        return ()
    try:
        if len(token) > _LONGEST_TOKEN or not token.isascii():
            raise ValueError
        value = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, RecursionError) as error:
        raise Malformed("this page link is damaged; start again without it") from error
    if not isinstance(value, list) or not value or not all(_plain(item) for item in value):
        raise Malformed("this page link is damaged; start again without it")
    return tuple(value)


def _fits(position: tuple[object, ...], plan: Plan, engine: str) -> bool:
    """Whether a position is one that this search gives on this database: what was visible, the sort keys, the row."""
    keys = position[1:-1]
    seen = position[0]
    if len(position) < 2 or len(keys) != max(len(plan.sort), 1) or not isinstance(position[-1], int):
        return False
    if not (isinstance(seen, int) if engine == "sqlite" else isinstance(seen, str) and _SNAPSHOT.fullmatch(seen)):
        return False
    sorts = plan.sort or (Sort("_lastUpdated", "date", 0, True),)
    return all(
        (key is None and sort.pid != 0) or isinstance(key, _KEY_TYPES.get(sort.type if sort.name != "_id" else "", str))
        for sort, key in zip(sorts, keys, strict=True)
    )


def _plain(item: object) -> bool:
    if isinstance(item, bool):
        return False
    if isinstance(item, int | float):
        return -_INT64 < item < _INT64
    return item is None or isinstance(item, str)
