"""The operator's JSON API: called by name with a JSON object, and refused in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hubs import PARTNER, hub_on

from fhir_server.changes import Hub
from fhir_server.rest import admin
from fhir_server.rest.http import Request
from fhir_server.store.engine import Store


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_on(open_url(sqlite_url))


def call(
    hub: Hub, name: str, body: bytes = b"{}", method: str = "POST", kind: str = "application/json"
) -> tuple[int, Any]:
    headers = {"content-type": kind}
    answer = admin.answer(hub, Request(method, f"/{name}", (), headers, body, PARTNER, "http://x/admin", {}))
    assert dict(answer.headers)["content-type"].startswith("application/json")
    return answer.status, json.loads(answer.body)


def test_an_operation_is_called_by_its_name(hub: Hub) -> None:
    assert call(hub, "inbox-list") == (200, [])
    assert call(hub, "outbox-list", b"") == (200, [])
    assert call(
        hub, "studies-list", '{"state":"à rapprocher","limit":5}'.encode(), kind="application/json; charset=utf-8"
    ) == (200, [])


@pytest.mark.parametrize(
    ("name", "body", "method", "kind", "status", "word"),
    [
        ("nothing", b"{}", "POST", "application/json", 404, "inbox-list"),
        ("", b"{}", "POST", "application/json", 404, "known:"),
        ("inbox-show", b"{}", "POST", "application/json", 400, "name the id"),
        ("inbox-show", b'{"id":"x"}', "POST", "application/json", 404, "passerelle inbox list"),
        ("inbox-list", b"{}", "GET", "application/json", 405, "POST"),
        ("inbox-list", b"{}", "POST", "text/plain", 415, "application/json"),
        ("inbox-list", b"{}", "POST", "", 415, "application/json"),
        ("inbox-list", b"{", "POST", "application/json", 400, "no JSON"),
        ("inbox-list", b"[]", "POST", "application/json", 400, "object"),
        ("inbox-list", b"\xff", "POST", "application/json", 400, "no JSON"),
        ("inbox-list", b"[" * 100_000, "POST", "application/json", 400, "no JSON"),
        ("outbox-hold", b'{"id":"x\\u0000y"}', "POST", "application/json", 404, "x"),
        ("outbox-hold", b'{"id":"\\ud800"}', "POST", "application/json", 404, ""),
        ("trace", b'{"id":["a"]}', "POST", "application/json", 404, "ServiceRequest"),
    ],
)
def test_a_call_that_makes_no_sense_is_told_what_would(
    hub: Hub, name: str, body: bytes, method: str, kind: str, status: int, word: str
) -> None:
    told = call(hub, name, body, method, kind)
    assert told[0] == status, told
    assert word in told[1]["error"]
