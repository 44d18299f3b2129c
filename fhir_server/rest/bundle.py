"""Batch and transaction: POST [base] with a Bundle.

A transaction is one `changes.apply`: all entries or none; entries are processed by verb in the order DELETE, POST,
PUT, GET (https://hl7.org/fhir/R4/http.html#trules). A batch is each entry on its own.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import unquote

from fhir_server.changes import Applied, Change, Hub, apply
from fhir_server.context import Caller
from fhir_server.errors import Fault, Invalid, Malformed, PasserelleError, TooLarge
from fhir_server.rest import binary, patch, provenance
from fhir_server.rest.conditional import absent_asked, none_exist_asked, version_asked
from fhir_server.rest.http import (
    FHIR_JSON,
    Request,
    Response,
    http_date,
    instant_text,
    json_response,
    outcome,
    pairs,
    resource_body,
)
from fhir_server.rest.resources import MIB, takes_many, told_of
from fhir_server.rest.search import FORM, bundle_text
from fhir_server.search.plan import Plan
from fhir_server.search.references import own_bases
from fhir_server.search.values import date_range
from fhir_server.security.scopes import demand
from fhir_server.store.engine import Store
from fhir_server.store.query import Page
from fhir_server.store.resources import Stored
from fhir_server.store.session import Snapshot, Tx
from profiles import definitions, json_text

log = logging.getLogger("passerelle.rest")
Handler = Callable[[Hub, Request], Response]
_ORDER = ("DELETE", "POST", "PUT", "PATCH", "GET", "HEAD")
# What a writing entry needs of an access token's rights.
_LETTER = {"DELETE": "d", "POST": "c", "PUT": "u", "PATCH": "u"}


def post(hub: Hub, request: Request, respond: Handler, answer: Handler) -> Response:
    """POST [base]: a Bundle of type transaction or batch.

    `respond` answers one inner request and raises what goes wrong, `answer` puts that into its answer.
    """
    bundle = resource_body(request, hub.settings.max_body_mib * MIB)
    kind = bundle.get("type")
    if bundle["resourceType"] != "Bundle" or kind not in ("transaction", "batch"):
        text = "POST to the base takes a Bundle of type transaction or batch"
        raise Invalid(text, expression="Bundle.type", code="value", http=400)
    entries = bundle.get("entry", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Invalid("Bundle.entry is a list of objects", expression="Bundle.entry", http=400, code="structure")
    if len(entries) > hub.settings.max_bundle_entries:
        text = f"{len(entries)} entries; at most {hub.settings.max_bundle_entries} go in one Bundle, send several"
        raise TooLarge(text, expression="Bundle.entry")
    for index, entry in enumerate(entries):
        _check_request(entry, index)
    if kind == "transaction":
        members = _transaction(hub, request, entries, respond)
    else:
        if provenance.HEADER in request.headers:
            raise Invalid("X-Provenance goes with a transaction, not with a batch", expression="Bundle.type", http=400)
        members = [_batch_entry(hub, request, entry, index, answer) for index, entry in enumerate(entries)]
    return json_response(request, 200, bundle_text(hub, f"{kind}-response", [], members, None))


def _check_request(entry: Mapping[str, Any], index: int) -> None:
    told = entry.get("request")
    where = f"Bundle.entry[{index}].request"
    if not isinstance(told, dict) or told.get("method") not in _ORDER or not isinstance(told.get("url"), str):
        text = f"each entry says request.method ({', '.join(_ORDER[:5])}) and request.url"
        raise Invalid(text, expression=where, code="required", http=400)
    resource = entry.get("resource")
    if resource is not None and not isinstance(resource, dict):
        raise Invalid("a resource is an object", expression=f"Bundle.entry[{index}].resource", http=400)
    if told["method"] != "DELETE" and _writes(entry) and resource is None:
        raise Invalid(f"{told['method']} needs a resource", expression=f"Bundle.entry[{index}].resource", http=400)


def _transaction(hub: Hub, request: Request, entries: list[dict[str, Any]], respond: Handler) -> list[tuple[str, str]]:
    order = sorted(range(len(entries)), key=lambda i: _ORDER.index(entries[i]["request"]["method"]))
    writing = [i for i in order if _writes(entries[i])]
    reading = [i for i in order if not _writes(entries[i])]
    answers: dict[int, tuple[str, str]] = {}

    link_key = hub.store.link_key if reading else b""

    def read(tx: Tx, _: list[Applied]) -> None:
        # Inside the transaction, so that reads see its writes and one that fails undoes them.
        inside = dataclasses.replace(hub, store=cast(Store, _Within(tx, hub.store.engine, link_key)))
        for i in reading:
            answers[i] = _read_within(inside, request, entries[i], i, respond)

    if writing:
        changes = [_change(hub, request, entries[i], i) for i in writing]
        applied = apply(hub, request.caller, provenance.woven(request, changes), also=read if reading else None)
        for i, done in zip(writing, applied, strict=False):
            answers[i] = "", _answer(hub, request, done)
    else:
        for i in reading:
            answers[i] = _read_within(hub, request, entries[i], i, respond)
    return [answers[i] for i in range(len(entries))]


def _writes(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is no read: a POST of a search or of an operation is one ($validate is all there is)."""
    told = entry["request"]
    asking = told["method"] == "POST" and (_last(told["url"]) == "_search" or _operation(told))
    return told["method"] not in ("GET", "HEAD") and not asking


def _operation(told: Mapping[str, Any]) -> bool:
    """Whether a request sends its resource to an operation; a search by form has all it asks in its url."""
    return told["method"] == "POST" and _last(told["url"]).startswith("$")


def _last(url: str) -> str:
    """The last part of the path."""
    return url.partition("?")[0].rstrip("/").rpartition("/")[2]


class _Within:
    """The store as one transaction sees it, for the interactions that only read."""

    def __init__(self, tx: Tx, engine: str, link_key: bytes) -> None:
        self._tx = tx
        self.engine = engine
        self.link_key = link_key

    @contextmanager
    def read(self, caller: Caller) -> Iterator[Snapshot]:
        yield self._tx

    def get(self, caller: Caller, resource_type: str, resource_id: str) -> Stored | None:
        return self._tx.get(resource_type, resource_id)

    def version(self, caller: Caller, resource_type: str, resource_id: str, number: int) -> Stored | None:
        return self._tx.version(resource_type, resource_id, number)

    def search(self, caller: Caller, plan: Plan) -> Page:
        return self._tx.search(plan)


def _read_within(hub: Hub, request: Request, entry: Mapping[str, Any], index: int, respond: Handler) -> tuple[str, str]:
    """The answer to a reading entry of a transaction; what fails, fails the whole."""
    try:
        return _inner(hub, request, entry, respond)
    except PasserelleError as error:
        where = f"Bundle.entry[{index}].request.url"
        issues = tuple(dataclasses.replace(issue, expression=where) for issue in error.issues)
        raise type(error)(error.diagnostics, issues=issues, http=error.status) from error


def _change(hub: Hub, request: Request, entry: Mapping[str, Any], index: int) -> Change:
    """The change an entry asks for. Raises Invalid or Malformed (400) with the place in the Bundle."""
    told, where = entry["request"], f"Bundle.entry[{index}]"
    kind, key, text = _address(hub, request, told["url"], f"{where}.request.url")
    method, resource = told["method"], entry.get("resource")
    demand(request.caller, kind, _LETTER[method])
    full_url = entry.get("fullUrl", "") if isinstance(entry.get("fullUrl", ""), str) else ""
    common: dict[str, Any] = {"full_url": full_url, "base": request.base}
    if method == "POST":
        if key or text:
            problem = f"POST creates a {kind} under an id of the server's; the url is {kind} alone"
            raise Invalid(problem, expression=f"{where}.request.url", http=400, code="value")
        none_exist = none_exist_asked(str(told.get("ifNoneExist", "")), kind, f"{where}.request.ifNoneExist")
        _check_type(resource, kind, where)
        return Change("create", kind, "", resource, if_none_exist=none_exist, expression=f"{where}.resource", **common)
    if method == "PUT" and not key and not text:
        key = str((resource or {}).get("id", ""))
    if not key and not text:
        problem = f"{method} names an id or a condition, such as {kind}/1 or {kind}?identifier=system|value"
        raise Invalid(problem, expression=f"{where}.request.url", http=400, code="value")
    common["if_match"] = version_asked(told.get("ifMatch") and str(told["ifMatch"]), f"{where}.request.ifMatch")
    common["criteria"] = text
    if method == "DELETE":
        many = takes_many(hub, common["if_match"])
        return Change("delete", kind, key, expression=where, many=many, **common)
    if method == "PATCH":
        made = patch.of_entry(hub, resource or {}, f"{where}.resource")
        return Change("patch", kind, key, patch=made, expression=f"{where}.resource", **common)
    _check_type(resource, kind, where)
    named = (resource or {}).get("id")
    if key and named is not None and named != key:
        problem = f"request.url says {kind}/{key}, the resource says id {str(named)[:80]}; send the same id in both"
        raise Invalid(problem, expression=f"{where}.resource.id", http=400, code="value")
    common["if_absent"] = absent_asked(told.get("ifNoneMatch"), f"{where}.request.ifNoneMatch")
    return Change("update", kind, key or str(named or ""), resource, expression=f"{where}.resource", **common)


def _check_type(resource: Mapping[str, Any] | None, kind: str, where: str) -> None:
    said = (resource or {}).get("resourceType")
    if said != kind:
        text = f"request.url is about {kind}, the resource is a {str(said)[:80]}"
        raise Invalid(text, expression=f"{where}.resource", http=400)


def _address(hub: Hub, request: Request, url: str, expression: str) -> tuple[str, str, str]:
    """(type, id or '', condition or '') of an entry's url, which may begin with one of our bases."""
    path, _, text = _without_base(hub, request, url).partition("?")
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if len(parts) > 2 or (len(parts) == 2 and text):
        problem = f"{url[:200]} is no address to write to; send Type, Type/id or Type?condition"
        raise Invalid(problem, expression=expression, http=400, code="value")
    if parts[0] not in definitions.resource_types():
        raise Invalid(f"{parts[0][:80]} is no FHIR R4 resource type", expression=expression, http=400, code="value")
    return parts[0], parts[1] if len(parts) == 2 else "", text


def _without_base(hub: Hub, request: Request, url: str) -> str:
    for base in own_bases(hub.settings, request.base):
        if url.startswith(base + "/"):
            return url[len(base) + 1 :]
    return url


def _answer(hub: Hub, request: Request, done: Applied) -> str:
    stored = done.stored
    told: dict[str, Any] = {"status": {200: "200 OK", 201: "201 Created", 204: "204 No Content"}[done.status]}
    if stored is not None and done.status != 204:
        told["location"] = f"{stored.type}/{stored.id}/_history/{stored.version}"
        told["etag"] = f'W/"{stored.version}"'
        told["lastModified"] = instant_text(stored.last_updated)
        if request.prefers().get("return") == "OperationOutcome":
            told["outcome"] = told_of(stored, done.notes)
    text = f'"response":{json_text.write(told)}'
    if stored is not None and request.prefers().get("return") == "representation" and not stored.deleted:
        text = f'"resource":{binary.listed(hub, request, stored)},' + text
    return text


def _inner(hub: Hub, request: Request, entry: Mapping[str, Any], handle: Handler) -> tuple[str, str]:
    """The answer to an entry that reads."""
    told = entry["request"]
    path, _, text = _without_base(hub, request, told["url"]).partition("?")
    resource = entry.get("resource")
    body = json_text.write(resource).encode() if resource is not None and _operation(told) else b""
    headers = {"accept": FHIR_JSON, "content-type": FHIR_JSON if body else FORM}
    if request.headers.get("prefer"):
        headers["prefer"] = request.headers["prefer"]
    if told.get("ifNoneMatch"):
        headers["if-none-match"] = str(told["ifNoneMatch"])
    if told.get("ifModifiedSince") and (span := date_range(str(told["ifModifiedSince"])[:64], "UTC")):
        headers["if-modified-since"] = http_date(span[0])
    try:
        asked = tuple(pair for pair in pairs(text) if pair[0] not in ("_format", "_pretty"))
    except ValueError as error:
        raise Malformed(f"the url cannot be read: {error}") from error
    path = "/" + unquote(path.strip("/"))
    response = handle(hub, Request(told["method"], path, asked, headers, body, request.caller, request.base, {}))
    status = f"{response.status}"
    found = dict(response.headers)
    told_back: dict[str, Any] = {"status": status}
    if "location" in found:
        told_back["location"] = found["location"]
    if "etag" in found:
        told_back["etag"] = found["etag"]
    if "last-modified" in found:
        moment = parsedate_to_datetime(found["last-modified"])
        told_back["lastModified"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    content = "" if told["method"] == "HEAD" and response.status < 400 else response.body.decode("utf-8")
    if response.status >= 400:
        return "", f'"response":{json_text.write(told_back)[:-1]},"outcome":{content}}}'
    if content:
        return "", f'"resource":{content},"response":{json_text.write(told_back)}'
    return "", f'"response":{json_text.write(told_back)}'


def _batch_entry(hub: Hub, request: Request, entry: Mapping[str, Any], index: int, answer: Handler) -> tuple[str, str]:
    """The answer to an entry of a batch, which fails alone."""
    try:
        if not _writes(entry):
            return _inner(hub, request, entry, answer)
        return "", _answer(hub, request, apply(hub, request.caller, [_change(hub, request, entry, index)])[0])
    except PasserelleError as error:
        return "", _failure(error)
    except RecursionError:
        return "", _failure(Malformed("the content is nested too deeply to be handled; flatten it"))
    except Exception:
        log.exception("entry %d of request %s failed", index, request.caller.request_id)
        return "", _failure(Fault(f"a defect of this server; its log has request id {request.caller.request_id}"))


def _failure(error: PasserelleError) -> str:
    told = json_text.write({"status": str(error.status)})[:-1]
    return f'"response":{told},"outcome":{json_text.write(outcome(error.issues))}}}'
