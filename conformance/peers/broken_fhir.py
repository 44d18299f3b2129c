"""A very small FHIR server in memory that is right about what the checks look at, or wrong in one named way.

Not a server to store anything in: it exists to prove that each check fails when it should.

https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from conformance.peers import small_search
from conformance.peers.fault import Fault
from conformance.peers.serving import Serving
from conformance.wire_fhir import MEDIA_TYPE, Lexeme, from_json, to_json

_IF_MATCH = ("fhir.stale-if-match", "fhir.lost-update", "fhir.transaction-atomic")
FAULTS: Mapping[str, Fault] = {
    "fhir-version-5": Fault("the CapabilityStatement says 5.0.0", ("fhir.metadata",)),
    "formats-without-json": Fault("the CapabilityStatement offers XML only", ("fhir.metadata",)),
    "plain-json": Fault("resources are served as application/json", ("fhir.media-type",)),
    "create-answers-200": Fault("a create is answered 200", ("fhir.create",)),
    "location-without-version": Fault("Location of a create ends with the id", ("fhir.create-version",)),
    "etag-of-another-version": Fault("ETag of a create does not fit Location", ("fhir.create-version",)),
    "keeps-client-id": Fault("a create takes the id that the client wished for", ("fhir.create-ignores-id",)),
    "decimals-as-floats": Fault("72.50 is stored as a binary float", ("fhir.read-back",)),
    "drops-extensions": Fault("extensions are not stored", ("fhir.read-back",)),
    "latin-1": Fault("text outside ISO 8859-1 becomes question marks", ("fhir.read-back",)),
    "read-without-etag": Fault("a read has no ETag", ("fhir.read-headers",)),
    "plain-404": Fault("404 for an unknown id has no OperationOutcome", ("fhir.unknown-id",)),
    "unknown-type-500": Fault("an unknown type ends in an exception", ("fhir.unknown-type",)),
    "vread-gives-latest": Fault("vread gives the latest version", ("fhir.vread",)),
    "update-without-etag": Fault("an update has no ETag", ("fhir.update",)),
    "update-not-stored": Fault("an update is answered 200 and forgotten", (
        "fhir.update", "fhir.history", "fhir.stale-if-match", "fhir.lost-update", "fhir.conditional-update",
        "fhir.transaction-atomic")),
    "read-without-date": Fault("a read has no Last-Modified", ("fhir.read-headers",)),
    "put-create-200": Fault("an update that creates is answered 200", ("fhir.update-creates",)),
    "accepts-id-mismatch": Fault("the id in the body of an update is not looked at", ("fhir.id-mismatch",)),
    "id-mismatch-stored": Fault("an update with another id is answered 400 and stored", ("fhir.id-mismatch",)),
    "deleted-404": Fault("a deleted resource is answered 404", ("fhir.deleted",)),
    "history-oldest-first": Fault("the history begins with the oldest version", ("fhir.history",)),
    "history-latest-only": Fault("the history has the latest version only", ("fhir.history",)),
    "history-without-request": Fault("history entries have no request", ("fhir.history",)),
    "invalid-json-500": Fault("a body that is no JSON ends in an exception", ("fhir.invalid-json",)),
    "accepts-other-type": Fault("the type in the body of a create is not looked at", ("fhir.other-type-in-body",)),
    "accepts-bad-date": Fault("dates are not checked", ("fhir.bad-date",)),
    "accepts-wrong-cardinality": Fault("an object passes for a list", ("fhir.wrong-cardinality",)),
    "accepts-any-media-type": Fault("Content-Type is not looked at", ("fhir.unsupported-media-type",)),
    "stale-answers-400": Fault("a stale If-Match is answered 400", ("fhir.stale-if-match",)),
    "ignores-if-match": Fault("If-Match is not looked at", _IF_MATCH),
    "if-match-not-atomic": Fault("If-Match is compared well before the write", ("fhir.lost-update",)),
    "ignores-if-none-match": Fault("If-None-Match is not looked at", ("fhir.conditional-read",)),
    "ignores-if-none-exist": Fault("If-None-Exist is not looked at", ("fhir.conditional-create",)),
    "several-matches-first-wins": Fault("a conditional update takes the first match", ("fhir.conditional-update",)),
    "several-matches-create": Fault("a conditional create with two matches creates", ("fhir.conditional-create",)),
    "conditional-update-creates": Fault("a conditional update always creates", ("fhir.conditional-update",)),
    "post-search-ignores-form": Fault("POST _search does not read its form", ("fhir.search-post",)),
    "search-finds-deleted": Fault("a search finds deleted resources", ("fhir.deleted-not-found",)),
    "transaction-keeps-part": Fault("entries before the faulty one stay", ("fhir.transaction-atomic",)),
    "failed-transaction-200": Fault("a failed transaction is undone and answered 200", ("fhir.transaction-atomic",)),
    "responses-out-of-order": Fault("response entries stand in another order", (
        "fhir.transaction-references",)),
    "keeps-urn-uuid": Fault("references inside a transaction stay as they are", ("fhir.transaction-references",)),
    "batch-stops-at-error": Fault("a batch ends at its first failing entry", ("fhir.batch-independent",)),
    "outcome-without-issue": Fault("OperationOutcomes have no issue", (
        "fhir.unknown-id", "fhir.unknown-type", "fhir.invalid-json", "fhir.other-type-in-body", "fhir.bad-date",
        "fhir.wrong-cardinality", "fhir.unknown-parameter", "fhir.transaction-atomic", "fhir.search-bad-value",
        "fhir.search-unknown-modifier")),
    **small_search.FAULTS,
}  # fmt: skip

TYPES = ("Patient", "Observation", "Basic")
BASE = "/fhir"
_COMPARTMENT = "http://hl7.org/fhir/CompartmentDefinition/patient"
_LISTS = {"name", "identifier", "extension", "referenceRange"}
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")
_INTERACTIONS = ("read", "vread", "update", "delete", "history-instance", "create", "search-type")


@dataclass(frozen=True, slots=True)
class Version:
    """One version; `resource` is None for a deletion."""

    number: str
    when: datetime
    method: str
    resource: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back to the client; a str body is served as text."""

    status: int
    body: dict[str, Any] | str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An answer of 400 or more, with an OperationOutcome."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        issue = {"severity": "error", "code": code, "diagnostics": text}
        self.reply = Reply(status, {"resourceType": "OperationOutcome", "issue": [issue]})


class Store:
    """The resources and every rule, right or wrong."""

    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.versions: dict[tuple[str, str], list[Version]] = {}
        self.lock = threading.RLock()

    def handle(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answer one request; header names in lower case."""
        parts = urlsplit(url)
        path = [one for one in parts.path.removeprefix(BASE).split("/") if one]
        query = parse_qsl(parts.query, keep_blank_values=True)
        # Without the lock four writers pass the same comparison before the first of them writes.
        with nullcontext() if "if-match-not-atomic" in self.faults else self.lock:
            try:
                return self._route(method, path, query, headers, body)
            except Refusal as refusal:
                if "outcome-without-issue" in self.faults:
                    return Reply(refusal.reply.status, {"resourceType": "OperationOutcome", "issue": []})
                return refusal.reply

    def _route(
        self, method: str, path: list[str], query: list[tuple[str, str]], headers: Mapping[str, str], body: bytes
    ) -> Reply:
        if path == ["metadata"]:
            return Reply(200, self._statement())
        if method == "POST" and path[1:] == ["_search"]:
            form = [] if "post-search-ignores-form" in self.faults else parse_qsl(body.decode())
            return self._search(path[0], query + form)
        resource = self._read_body(headers, body) if method in {"POST", "PUT"} else {}
        if not path:
            return self._bundle(resource)
        if path[0] not in TYPES:
            raise Refusal(500 if "unknown-type-500" in self.faults else 404, "not-supported", f"no type {path[0]}")
        match method, len(path):
            case "GET", 1:
                return self._search(path[0], query)
            case "POST", 1:
                return self._create(path[0], resource, headers)
            case "PUT", 1:
                return self._conditional_update(path[0], resource, query)
            case "GET", 2:
                return self._read(path[0], path[1], headers)
            case "PUT", 2:
                return self._update(path[0], path[1], resource, headers)
            case "DELETE", 2:
                return self._delete(path[0], path[1])
            case "GET", 3 if path[2] != "_history":
                mine = [] if "compartment-of-all" in self.faults else [("subject", f"{path[0]}/{path[1]}")]
                return self._search(path[2], query + mine)
            case "GET", 3:
                return self._history(path[0], path[1])
            case "GET", 4:
                return self._vread(path[0], path[1], path[3])
        raise Refusal(405, "not-supported", f"{method} is not offered here")

    def _statement(self) -> dict[str, Any]:
        able = {"versioning": "versioned", "conditionalCreate": True, "conditionalUpdate": True}
        able |= {"conditionalRead": "not-match", "updateCreate": True}
        common = {"interaction": [{"code": one} for one in _INTERACTIONS], **able}
        known = small_search.PARAMETERS
        parameters = {one: [{"name": name, "type": known[one][name][0]} for name in known[one]] for one in TYPES}
        entries = [{"type": one, **common, "searchParam": parameters[one]} for one in TYPES]
        system = [{"code": "transaction"}, {"code": "batch"}]
        return {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": "2024-01-01",
            "kind": "instance",
            "fhirVersion": "5.0.0" if "fhir-version-5" in self.faults else "4.0.1",
            "format": ["application/fhir+xml" if "formats-without-json" in self.faults else MEDIA_TYPE],
            "rest": [{"mode": "server", "resource": entries, "interaction": system, "compartment": [_COMPARTMENT]}],
        }

    def _read_body(self, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        kind = headers.get("content-type", "").partition(";")[0]
        if kind not in {MEDIA_TYPE, "application/json"} and "accepts-any-media-type" not in self.faults:
            raise Refusal(415, "not-supported", f"no media type {kind}")
        try:
            resource = from_json(body)
        except ValueError as error:
            raise Refusal(500 if "invalid-json-500" in self.faults else 400, "structure", str(error)) from None
        if not isinstance(resource, dict):
            raise Refusal(400, "structure", "not an object")
        return resource

    def _check(self, kind: str, resource: dict[str, Any]) -> None:
        if resource.get("resourceType") != kind and "accepts-other-type" not in self.faults:
            raise Refusal(400, "invalid", f"resourceType is not {kind}")
        born = resource.get("birthDate", "1900")
        if not (isinstance(born, str) and _DATE.fullmatch(born)) and "accepts-bad-date" not in self.faults:
            raise Refusal(400, "value", "birthDate is no date")
        lists = all(isinstance(resource.get(name, []), list) for name in _LISTS)
        if not lists and "accepts-wrong-cardinality" not in self.faults:
            raise Refusal(400, "structure", "a list is expected")

    def _damaged(self, value: Any) -> Any:
        if isinstance(value, dict):
            drop = "extension" if "drops-extensions" in self.faults else None
            return {name: self._damaged(one) for name, one in value.items() if name != drop}
        if isinstance(value, list):
            return [self._damaged(one) for one in value]
        if isinstance(value, Lexeme) and "decimals-as-floats" in self.faults:
            return Lexeme(repr(float(value.text)))
        if isinstance(value, str) and "latin-1" in self.faults:
            return value.encode("latin-1", "replace").decode("latin-1")
        return value

    def _write(self, kind: str, rid: str, resource: dict[str, Any], method: str) -> Version:
        known = self.versions.setdefault((kind, rid), [])
        when = datetime.now(UTC)
        number = str(len(known) + 1)
        body = {name: value for name, value in self._damaged(deepcopy(resource)).items() if name not in {"id", "meta"}}
        meta = {"versionId": number, "lastUpdated": when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        version = Version(number, when, method, {"resourceType": kind, "id": rid, "meta": meta, **body})
        if not (known and "update-not-stored" in self.faults):
            known.append(version)
        return version

    def _current(self, kind: str, rid: str) -> Version | None:
        known = self.versions.get((kind, rid))
        return known[-1] if known else None

    def _reply(self, status: int, version: Version) -> Reply:
        headers = {"ETag": f'W/"{version.number}"', "Last-Modified": format_datetime(version.when, usegmt=True)}
        return Reply(status, version.resource, headers)

    def _create(self, kind: str, resource: dict[str, Any], headers: Mapping[str, str]) -> Reply:
        self._check(kind, resource)
        condition = headers.get("if-none-exist", "")
        if condition and "ignores-if-none-exist" not in self.faults:
            ids = self._matching(kind, dict(parse_qsl(condition)).get("identifier", ""))
            if len(ids) > 1 and "several-matches-create" not in self.faults:
                raise Refusal(412, "multiple-matches", "several matches")
            if len(ids) == 1:
                return self._reply(200, self.versions[kind, ids[0]][-1])
        return self._created(kind, str(uuid.uuid4()), resource, "POST", bool(condition))

    def _created(self, kind: str, rid: str, resource: dict[str, Any], method: str, conditional: bool = True) -> Reply:
        if "keeps-client-id" in self.faults and method == "POST":
            rid = resource.get("id", rid)
        version = self._write(kind, rid, resource, method)
        reply = self._reply(201, version)
        location = f"{BASE}/{kind}/{rid}"
        location += "" if "location-without-version" in self.faults else f"/_history/{version.number}"
        headers = {**reply.headers, "Location": location}
        if "etag-of-another-version" in self.faults and not conditional:
            headers["ETag"] = 'W/"77"'
        plain = method == "POST" and not conditional
        return Reply(200 if plain and "create-answers-200" in self.faults else 201, reply.body, headers)

    def _read(self, kind: str, rid: str, headers: Mapping[str, str]) -> Reply:
        version = self._current(kind, rid)
        if version is None:
            if "plain-404" in self.faults:
                return Reply(404, "not found")
            raise Refusal(404, "not-found", f"no {kind}/{rid}")
        if version.resource is None:
            raise Refusal(404 if "deleted-404" in self.faults else 410, "deleted", f"{kind}/{rid} was deleted")
        reply = self._reply(200, version)
        if headers.get("if-none-match") == reply.headers["ETag"] and "ignores-if-none-match" not in self.faults:
            return Reply(304, None, reply.headers)
        missing = {"read-without-etag": "ETag", "read-without-date": "Last-Modified"}
        left_out = {name for fault, name in missing.items() if fault in self.faults}
        return Reply(200, reply.body, {name: v for name, v in reply.headers.items() if name not in left_out})

    def _vread(self, kind: str, rid: str, number: str) -> Reply:
        known = self.versions.get((kind, rid), [])
        if "vread-gives-latest" in self.faults and known:
            return self._reply(200, known[-1])
        for version in known:
            if version.number == number and version.resource is not None:
                return self._reply(200, version)
        raise Refusal(404, "not-found", f"no version {number}")

    def _update(self, kind: str, rid: str, resource: dict[str, Any], headers: Mapping[str, str]) -> Reply:
        self._check(kind, resource)
        if resource.get("id") != rid and "accepts-id-mismatch" not in self.faults:
            if "id-mismatch-stored" in self.faults:
                self._write(kind, rid, resource, "PUT")
            raise Refusal(400, "invalid", "the id in the body is not that of the address")
        current = self._current(kind, rid)
        wanted = headers.get("if-match", "")
        if wanted and "ignores-if-match" not in self.faults and (not current or wanted != f'W/"{current.number}"'):
            raise Refusal(400 if "stale-answers-400" in self.faults else 412, "conflict", "another version is current")
        if "if-match-not-atomic" in self.faults and wanted:
            time.sleep(0.2)
        if current is None:
            reply = self._created(kind, rid, resource, "PUT")
            return Reply(200, reply.body, reply.headers) if "put-create-200" in self.faults else reply
        reply = self._reply(200, self._write(kind, rid, resource, "PUT"))
        return Reply(200, reply.body) if "update-without-etag" in self.faults else reply

    def _conditional_update(self, kind: str, resource: dict[str, Any], query: list[tuple[str, str]]) -> Reply:
        ids = self._matching(kind, dict(query).get("identifier", ""))
        if len(ids) > 1 and "several-matches-first-wins" not in self.faults:
            raise Refusal(412, "multiple-matches", "several matches")
        if not ids or "conditional-update-creates" in self.faults:
            return self._created(kind, str(uuid.uuid4()), resource, "PUT")
        return self._update(kind, ids[0], {**resource, "id": ids[0]}, {})

    def _delete(self, kind: str, rid: str) -> Reply:
        known = self.versions.get((kind, rid))
        if known and known[-1].resource is not None:
            known.append(Version(str(len(known) + 1), datetime.now(UTC), "DELETE", None))
        return Reply(204)

    def _history(self, kind: str, rid: str) -> Reply:
        known = list(reversed(self.versions.get((kind, rid), [])))
        if not known:
            raise Refusal(404, "not-found", f"no {kind}/{rid}")
        if "history-oldest-first" in self.faults:
            known.reverse()
        if "history-latest-only" in self.faults:
            del known[1:]
        entries = []
        for one in known:
            entry: dict[str, Any] = {"request": {"method": one.method, "url": f"{kind}/{rid}"}}
            if "history-without-request" in self.faults:
                entry.clear()
            entries.append(entry | ({"resource": one.resource} if one.resource else {}))
        return Reply(200, {"resourceType": "Bundle", "type": "history", "total": len(entries), "entry": entries})

    def _searched(self) -> small_search.Search:
        """What a search looks at: the current versions."""
        current = []
        for versions in self.versions.values():
            resource = versions[-1].resource
            if resource is None and "search-finds-deleted" in self.faults:
                resource = versions[-2].resource
            current += [resource] if resource else []
        return small_search.Search(current, self.faults, BASE)

    def _matching(self, kind: str, identifier: str) -> list[str]:
        return [one["id"] for one in self._searched().matches(kind, [("identifier", identifier)])]

    def _search(self, kind: str, query: list[tuple[str, str]]) -> Reply:
        try:
            return Reply(200, self._searched().bundle(kind, query))
        except small_search.BadQuery as error:
            raise Refusal(400, "not-supported", str(error)) from None

    def _bundle(self, bundle: dict[str, Any]) -> Reply:
        kind = bundle.get("type")
        if kind not in {"batch", "transaction"}:
            raise Refusal(400, "value", "Bundle.type is neither batch nor transaction")
        entries: list[dict[str, Any]] = deepcopy(bundle.get("entry", []))
        before = {key: list(versions) for key, versions in self.versions.items()}
        if kind == "transaction":
            self._assign_ids(entries)
        order = sorted(range(len(entries)), key=lambda n: _ORDER.index(entries[n]["request"]["method"]))
        answers: dict[int, dict[str, Any]] = {}
        for number in order if kind == "transaction" else range(len(entries)):
            try:
                answers[number] = self._entry(entries[number])
            except Refusal as refusal:
                if kind == "transaction":
                    if "transaction-keeps-part" not in self.faults:
                        self.versions = before
                    if "failed-transaction-200" in self.faults:
                        return Reply(200, refusal.reply.body)
                    raise
                answers[number] = {"response": {"status": str(refusal.reply.status), "outcome": refusal.reply.body}}
                if "batch-stops-at-error" in self.faults:
                    break
        told = [answers[n] for n in (order[::-1] if "responses-out-of-order" in self.faults else sorted(answers))]
        return Reply(200, {"resourceType": "Bundle", "type": f"{kind}-response", "entry": told})

    def _assign_ids(self, entries: list[dict[str, Any]]) -> None:
        assigned = {}
        for one in entries:
            if one["request"]["method"] == "POST":
                one["assigned"] = str(uuid.uuid4())
                assigned[one.get("fullUrl")] = f"{one['resource']['resourceType']}/{one['assigned']}"
        for one in entries:
            reference = one.get("resource", {}).get("subject", {})
            if reference.get("reference") in assigned and "keeps-urn-uuid" not in self.faults:
                reference["reference"] = assigned[reference["reference"]]

    def _entry(self, entry: dict[str, Any]) -> dict[str, Any]:
        request, resource = entry["request"], entry.get("resource", {})
        kind, _, rid = request["url"].partition("/")
        match request["method"]:
            case "POST":
                self._check(kind, resource)
                reply = self._created(kind, entry.get("assigned") or str(uuid.uuid4()), resource, "POST")
            case "PUT":
                reply = self._update(kind, rid, resource, {"if-match": request.get("ifMatch", "")})
            case "DELETE":
                reply = self._delete(kind, rid)
            case _:
                reply = self._read(kind, rid, {})
        response = {"status": str(reply.status), "etag": reply.headers.get("ETag", "")}
        return {"response": response | ({"location": reply.headers["Location"]} if "Location" in reply.headers else {})}


_ORDER = ("DELETE", "POST", "PUT", "GET")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: Store

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(min(length, 1_000_000))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.store.handle(self.command, self.path, headers, body)
        kind = "application/json" if "plain-json" in self.store.faults else MEDIA_TYPE
        if isinstance(reply.body, str):
            kind, data = "text/plain", reply.body.encode()
        else:
            data = to_json(reply.body) if reply.body is not None else b""
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if data:
            self.send_header("Content-Type", kind)
        if reply.status not in {204, 304}:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the names the server looks for

    def log_message(self, format: str, *args: object) -> None:
        pass


def _handler(faults: frozenset[str]) -> type[_Handler]:
    return type("Handler", (_Handler,), {"store": Store(faults)})


BrokenFhir = partial(Serving, _handler, FAULTS, f"fhir=http{{s}}://127.0.0.1:{{port}}{BASE}")
"""The server on a free loopback port, with the faults that are named."""
