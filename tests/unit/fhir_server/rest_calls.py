"""Requests to the FHIR API without a socket: what the HTTP edge hands to the route table, and the answer apart."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, unquote

from hubs import PARTNER

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.rest import routes
from fhir_server.rest.http import Request, Response

Resource = dict[str, Any]
BASE = "http://fhir.example.org/fhir"
JSON = "application/fhir+json"
PATIENT: Resource = {
    "resourceType": "Patient",
    "id": "p",
    "text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">Léa</div>'},
    "active": True,
    "name": [{"family": "Martin", "given": ["Léa"]}],
    "birthDate": "1990-05-17",
    "contact": [{"name": {"text": "Sa mère"}}],
}
OBSERVATION: Resource = {
    "resourceType": "Observation",
    "id": "o",
    "status": "final",
    "code": {"text": "poids"},
    "subject": {"reference": "Patient/p"},
}


class Answer:
    """One answer: `status`, `headers` by lower-case name, `body` bytes, `json()` the resource."""

    def __init__(self, response: Response) -> None:
        self.status = response.status
        self.headers = dict(response.headers)
        self.body = response.body

    def json(self) -> Resource:
        found: Resource = json.loads(self.body)
        return found

    @property
    def entries(self) -> list[Resource]:
        return list(self.json().get("entry", []))

    @property
    def issue(self) -> Resource:
        """The first issue of an OperationOutcome."""
        outcome = self.json()
        assert outcome["resourceType"] == "OperationOutcome", outcome
        first: Resource = outcome["issue"][0]
        return first


def ask(hub: Hub, method: str, url: str, body: Any = None, *, caller: Caller = PARTNER, **headers: str) -> Answer:
    """One request. `body` is a resource (sent as JSON) or bytes; `if_match` and the like become headers."""
    path, _, query = url.partition("?")
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body, ensure_ascii=False).encode()
    if body is not None:
        sent.setdefault("content-type", JSON)
    pairs = tuple(parse_qsl(query, keep_blank_values=True))
    return Answer(routes.answer(hub, Request(method, "/" + unquote(path), pairs, sent, body or b"", caller, BASE, {})))


def stored(hub: Hub, *contents: Resource) -> None:
    """PUT of each, which must succeed."""
    for content in contents:
        answer = ask(hub, "PUT", f"{content['resourceType']}/{content['id']}", content)
        assert answer.status in (200, 201), answer.body
