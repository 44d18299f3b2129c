"""Search: a query string to a plan to a Bundle of matches, and the links of its pages.

Source: https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from urllib.parse import quote

from fhir_server.changes import Hub
from fhir_server.context import instant
from fhir_server.errors import Malformed, Unsupported
from fhir_server.rest import binary, pages
from fhir_server.rest.http import Request, Response, check_accept, check_charset, entries, json_response, pairs
from fhir_server.rest.pages import PAGE
from fhir_server.rest.resources import known_id, known_type
from fhir_server.search import query
from fhir_server.search.plan import elsewhere
from fhir_server.search.references import own_bases
from fhir_server.security.scopes import demand
from fhir_server.store.resources import Stored
from profiles import json_text

MAX_COUNT = 1000
FORM = "application/x-www-form-urlencoded"


def search(hub: Hub, request: Request) -> Response:
    """GET [base]/[type]?... and POST [base]/[type]/_search."""
    kind = known_type(request.path_args["type"])
    return _answer(hub, request, kind, kind)


def of_system(hub: Hub, request: Request) -> Response:
    """GET [base]?_type=... and POST [base]/_search: several types at once, or all."""
    return _answer(hub, request, "", "_search" if request.path.strip("/") else "")


def of_compartment(hub: Hub, request: Request) -> Response:
    """GET [base]/[compartment]/[id]/[type]?..., and `*` for every type."""
    of, key = known_type(request.path_args["compartment"]), request.path_args["id"]
    named = request.path_args.get("type", "")
    kind = known_type(named) if named else ""
    return _answer(hub, request, kind, f"{of}/{quote(known_id(of, key))}/{kind or '*'}", (of, key))


def _answer(hub: Hub, request: Request, kind: str, path: str, within: tuple[str, str] | None = None) -> Response:
    check_accept(request)
    # The pages of a search by form are fetched by GET.
    path = path.removesuffix("_search")
    lenient = request.prefers().get("handling") == "lenient"
    asked = [(name, value) for name, value in request.query if name != PAGE]
    zone = hub.sites.default.time_zone
    bases = own_bases(hub.settings, request.base)
    plan = query.parse(kind, asked, lenient=lenient, zone=zone, bases=bases, compartment=within)
    if elsewhere(plan):
        demand(request.caller, "", "s")
    used = plan.self_link
    after = pages.position(hub, path, used, request.arg(PAGE) or "")
    counted = request.arg("_summary") == "count"
    plan = dataclasses.replace(plan, count=0 if counted else min(plan.count, MAX_COUNT), after=after)
    page = hub.store.search(request.caller, plan)
    links = [("self", f"{request.base}/{pages.address(path, used)}")]
    if page.next:
        links.append(("next", pages.link(hub, request.base, path, used, page.next)))
    texts = [_match(hub, request, stored, "match") for stored in page.matches]
    texts += [_match(hub, request, stored, "include") for stored in page.includes]
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


def _match(hub: Hub, request: Request, stored: Stored, mode: str) -> tuple[str, str]:
    address = f"{request.base}/{stored.type}/{quote(stored.id)}"
    if stored.container:
        address = f"{request.base}/{quote(stored.container)}#{quote(stored.id)}"
    return address, f'"resource":{binary.listed(hub, request, stored)},"search":{{"mode":"{mode}"}}'


def with_form(request: Request) -> Request:
    """A POST search as the GET it stands for: the form's parameters join those of the address.

    Raises Unsupported (415) for another media type or charset, Malformed for a form that cannot be read.
    """
    kind = request.headers.get("content-type", FORM).split(";")[0].strip().lower()
    if kind != FORM:
        raise Unsupported(f"a POST search sends {FORM}, not {kind[:100]}", http=415)
    check_charset(request)
    try:
        told = pairs(request.body.decode("utf-8"))
    except ValueError as error:
        raise Malformed(f"the search form cannot be read: {error}") from error
    return dataclasses.replace(request, query=(*request.query, *told), body=b"")
