"""Search and history: the interactions that answer with a Bundle of many.

Sources: https://hl7.org/fhir/R4/search.html, https://hl7.org/fhir/R4/http.html#history.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, urlencode

from fhir_server.changes import Hub
from fhir_server.context import instant
from fhir_server.errors import Malformed, NotFound
from fhir_server.rest.http import Request, Response, check_accept, entries, instant_text, json_response
from fhir_server.rest.resources import known_type
from fhir_server.search import query
from fhir_server.store.resources import Stored
from profiles import json_text

MAX_COUNT = 1000
_PAGE = "_page"
_FORM = "application/x-www-form-urlencoded"


def search(hub: Hub, request: Request) -> Response:
    """GET [base]/[type]?... and POST [base]/[type]/_search."""
    check_accept(request)
    kind = known_type(request.path_args["type"])
    pairs = list(request.query)
    if request.method == "POST":
        pairs += _form(request)
    lenient = request.prefers().get("handling") == "lenient"
    after = _after(next((value for name, value in pairs if name == _PAGE), ""))
    asked = [(name, value) for name, value in pairs if name != _PAGE]
    plan = query.parse(kind, asked, lenient=lenient, zone=hub.sites.default.time_zone, base=request.base)
    plan = dataclasses.replace(plan, count=min(plan.count, MAX_COUNT), after=after)
    with hub.store.read(request.caller) as snapshot:
        page = snapshot.search(plan)
    links = [("self", f"{request.base}/{kind}?{urlencode(asked)}")]
    if page.next:
        links.append(("next", f"{request.base}/{kind}?{urlencode([*asked, (_PAGE, _token(page.next))])}"))
    texts = [_match(request, stored, "match") for stored in page.matches]
    texts += [_match(request, stored, "include") for stored in page.includes]
    return json_response(request, 200, bundle_text(hub, "searchset", links, texts, page.total))


def history(hub: Hub, request: Request) -> Response:
    """GET [base]/[type]/[id]/_history: every version, newest first."""
    check_accept(request)
    kind, key = known_type(request.path_args["type"]), request.path_args["id"]
    count = _count(request)
    with hub.store.read(request.caller) as snapshot:
        versions = snapshot.history(kind, key, count=count).entries
    if not versions:
        raise NotFound(f"{kind}/{key} is not known here")
    links = [("self", f"{request.base}/{kind}/{quote(key)}/_history")]
    texts = [_version(request, stored) for stored in versions]
    return json_response(request, 200, bundle_text(hub, "history", links, texts, len(versions)))


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


def _version(request: Request, stored: Stored) -> tuple[str, str]:
    address = f"{request.base}/{stored.type}/{quote(stored.id)}"
    method = {"create": "POST", "update": "PUT", "delete": "DELETE"}.get(stored.method, stored.method)
    url = stored.type if method == "POST" else f"{stored.type}/{stored.id}"
    status = {"POST": "201", "DELETE": "204"}.get(method, "200")
    members = f'"resource":{stored.text},' if not stored.deleted else ""
    when = instant_text(stored.last_updated)
    members += f'"request":{{"method":"{method}","url":{json_text.write(url)}}},'
    members += f'"response":{{"status":"{status}","etag":"W/\\"{stored.version}\\"","lastModified":"{when}"}}'
    return address, members


def _form(request: Request) -> list[tuple[str, str]]:
    kind = request.headers.get("content-type", _FORM).split(";")[0].strip().lower()
    if kind != _FORM:
        raise Malformed(f"a POST search sends {_FORM}, not {kind}")
    try:
        return parse_qsl(request.body.decode("utf-8"), keep_blank_values=True, max_num_fields=1000)
    except ValueError as error:
        raise Malformed(f"the search form cannot be read: {error}") from error


def _token(position: tuple[object, ...]) -> str:
    return base64.urlsafe_b64encode(json.dumps(position, separators=(",", ":")).encode()).decode("ascii").rstrip("=")


def _after(token: str) -> tuple[object, ...]:
    if not token:
        return ()
    try:
        value = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except ValueError as error:
        raise Malformed("this page link is damaged; start the search again") from error
    if not isinstance(value, list) or not all(isinstance(item, str | int | float | None) for item in value):
        raise Malformed("this page link is damaged; start the search again")
    return tuple(value)


def _count(request: Request) -> int:
    raw = request.arg("_count") or "50"
    if not raw.isdigit() or len(raw) > 6:
        raise Malformed(f"_count={raw[:20]} is no number")
    return max(1, min(int(raw), MAX_COUNT))
