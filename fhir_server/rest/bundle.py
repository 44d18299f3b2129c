"""Batch and transaction: POST [base] with a Bundle.

A transaction is one `changes.apply`: all entries or none; entries are processed by verb in the order DELETE, POST,
PUT, GET (https://hl7.org/fhir/R4/http.html#trules). A batch is each entry on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from fhir_server.changes import Applied, Change, Hub, apply
from fhir_server.errors import Fault, Invalid, PasserelleError, TooLarge, Unsupported
from fhir_server.rest.http import Request, Response, instant_text, json_response, outcome, resource_body
from fhir_server.rest.resources import MIB, known_type
from fhir_server.rest.search import bundle_text
from profiles import json_text

_ORDER = ("DELETE", "POST", "PUT", "PATCH", "GET", "HEAD")


def post(hub: Hub, request: Request, dispatch: Any) -> Response:
    """POST [base]: a Bundle of type transaction or batch. `dispatch` answers one inner request."""
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
        members = _transaction(hub, request, entries, dispatch)
    else:
        members = [_batch_entry(hub, request, entry, index, dispatch) for index, entry in enumerate(entries)]
    return json_response(request, 200, bundle_text(hub, f"{kind}-response", [], members, None))


def _check_request(entry: Mapping[str, Any], index: int) -> None:
    told = entry.get("request")
    where = f"Bundle.entry[{index}].request"
    if not isinstance(told, dict) or told.get("method") not in _ORDER or not isinstance(told.get("url"), str):
        text = f"each entry says request.method ({', '.join(_ORDER[:5])}) and request.url"
        raise Invalid(text, expression=where, code="required", http=400)
    if told["method"] in ("POST", "PUT") and not isinstance(entry.get("resource"), dict):
        raise Invalid(f"{told['method']} needs a resource", expression=f"Bundle.entry[{index}].resource", http=400)


def _transaction(hub: Hub, request: Request, entries: list[dict[str, Any]], dispatch: Any) -> list[tuple[str, str]]:
    order = sorted(range(len(entries)), key=lambda i: _ORDER.index(entries[i]["request"]["method"]))
    writing = [i for i in order if entries[i]["request"]["method"] in ("DELETE", "POST", "PUT")]
    for i in order:
        if entries[i]["request"]["method"] == "PATCH":
            text = "PATCH inside a Bundle is not offered yet; send the whole resource with PUT"
            raise Unsupported(text, expression=f"Bundle.entry[{i}].request.method", http=405)
    applied = apply(hub, request.caller, [_change(entries[i], i) for i in writing]) if writing else []
    answers: dict[int, tuple[str, str]] = {}
    for i, done in zip(writing, applied, strict=True):
        answers[i] = "", _answer(request, done)
    for i in order:
        if i not in answers:
            answers[i] = _inner(request, entries[i], i, dispatch)
    return [answers[i] for i in range(len(entries))]


def _change(entry: Mapping[str, Any], index: int) -> Change:
    told = entry["request"]
    path, _, text = told["url"].partition("?")
    parts = [unquote(part) for part in path.strip("/").split("/")]
    kind = known_type(parts[0])
    where = f"Bundle.entry[{index}].resource"
    resource = entry.get("resource")
    if resource is not None and resource.get("resourceType") != kind:
        said = resource.get("resourceType")
        raise Invalid(f"request.url is about {kind}, the resource is a {said}", expression=where, http=400)
    full_url = entry.get("fullUrl", "") if isinstance(entry.get("fullUrl", ""), str) else ""
    version = str(told.get("ifMatch", "")).strip().removeprefix("W/").strip('"')
    match told["method"]:
        case "POST":
            none_exist = str(told.get("ifNoneExist", "")).lstrip("?")
            return Change(
                "create", kind, resource=resource, if_none_exist=none_exist, full_url=full_url, expression=where
            )
        case "PUT":
            key = parts[1] if len(parts) > 1 else str((resource or {}).get("id", ""))
            return Change(
                "update",
                kind,
                key,
                resource,
                if_match=int(version) if version.isdigit() else None,
                criteria=text,
                full_url=full_url,
                expression=where,
            )
        case _:
            key = parts[1] if len(parts) > 1 else ""
            return Change("delete", kind, key, criteria=text, full_url=full_url, expression=where)


def _answer(request: Request, done: Applied) -> str:
    stored = done.stored
    told: dict[str, Any] = {"status": {200: "200 OK", 201: "201 Created", 204: "204 No Content"}[done.status]}
    if stored is not None and done.status != 204:
        told["location"] = f"{stored.type}/{stored.id}/_history/{stored.version}"
        told["etag"] = f'W/"{stored.version}"'
        told["lastModified"] = instant_text(stored.last_updated)
    text = f'"response":{json_text.write(told)}'
    if stored is not None and request.prefers().get("return") == "representation" and not stored.deleted:
        text = f'"resource":{stored.text},' + text
    return text


def _inner(request: Request, entry: Mapping[str, Any], index: int, dispatch: Any) -> tuple[str, str]:
    told = entry["request"]
    path, _, text = told["url"].partition("?")
    headers = {"accept": "application/fhir+json"}
    for name, header in (("ifMatch", "if-match"), ("ifNoneExist", "if-none-exist"), ("ifNoneMatch", "if-none-match")):
        if told.get(name):
            headers[header] = str(told[name])
    body = json_text.write(entry["resource"]).encode() if entry.get("resource") else b""
    inner = Request(
        told["method"],
        "/" + path.strip("/"),
        tuple(parse_qsl(text, keep_blank_values=True)),
        headers,
        body,
        request.caller,
        request.base,
        {},
    )
    response = dispatch(inner)
    status = f"{response.status}"
    found = dict(response.headers)
    told_back: dict[str, Any] = {"status": status}
    if "location" in found:
        told_back["location"] = found["location"]
    if "etag" in found:
        told_back["etag"] = found["etag"]
    content = response.body.decode("utf-8")
    if response.status >= 400:
        return "", f'"response":{json_text.write(told_back)[:-1]},"outcome":{content}}}'
    if content:
        return "", f'"resource":{content},"response":{json_text.write(told_back)}'
    return "", f'"response":{json_text.write(told_back)}'


def _batch_entry(hub: Hub, request: Request, entry: Mapping[str, Any], index: int, dispatch: Any) -> tuple[str, str]:
    method = entry["request"]["method"]
    if method not in ("DELETE", "POST", "PUT") or "_search" in entry["request"]["url"]:
        return _inner(request, entry, index, dispatch)
    try:
        return "", _answer(request, apply(hub, request.caller, [_change(entry, index)])[0])
    except PasserelleError as error:
        return "", _failure(error)
    except RecursionError:
        return "", _failure(Fault())


def _failure(error: PasserelleError) -> str:
    told = json_text.write({"status": str(error.status)})[:-1]
    return f'"response":{told},"outcome":{json_text.write(outcome(error.issues))}}}'
