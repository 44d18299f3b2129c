"""X-Security-Context: the content of a Binary is for those who may read the resource it names, by every way."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hubs import PARTNER, hub_on
from rest_calls import PATIENT, ask, stored

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.store.engine import Store

SECRET = b"secret content"
DATA = base64.b64encode(SECRET).decode()
ELSEWHERE = "https://other.example.org/fhir/Patient/p"


def allowed(*rights: str) -> Caller:
    """A software whose token has these scopes, such as `Binary.crud`."""
    split = [one.split(".") for one in rights]
    return dataclasses.replace(PARTNER, rights=frozenset((kind, letter) for kind, all_ in split for letter in all_))


BINARIES_ONLY = allowed("Binary.cruds")
BOTH = allowed("Binary.cruds", "Patient.r")


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    opened = hub_on(open_url(sqlite_url), conditional_delete="multiple")
    stored(opened, PATIENT)
    for key, context in (("b", "Patient/p"), ("away", ELSEWHERE), ("open", "")):
        more = {"x_security_context": context} if context else {}
        assert ask(opened, "PUT", f"Binary/{key}", SECRET, content_type="application/pdf", **more).status == 201
    return opened


READS = [
    "Binary/b",
    "Binary/b?_format=json",
    "Binary/b?_format=xml",
    "Binary/b/_history/1",
    "Binary/b/_history/1?_format=json",
]
LISTS = ["Binary?_id=b", "Binary?_id=b&_summary=data", "Binary?_id=b&_elements=data", "Binary?_id=b&_format=xml",
         "Binary/b/_history", "Binary/_history", "_history", "?_type=Binary"]  # fmt: skip


@pytest.mark.parametrize("path", READS)
def test_who_may_not_read_the_context_reads_no_content(hub: Hub, path: str) -> None:
    for key, reader, status in (
        ("b", BINARIES_ONLY, 403),
        ("b", BOTH, 200),
        ("b", PARTNER, 200),
        ("away", BOTH, 403),
        ("away", PARTNER, 200),
        ("open", BINARIES_ONLY, 200),
    ):
        answer = ask(hub, "GET", path.replace("/b", f"/{key}"), caller=reader)
        assert answer.status == status, (key, answer.body)
        assert (SECRET in answer.body or DATA.encode() in answer.body) == (status == 200)
    assert b"Binary.securityContext" in ask(hub, "GET", path, caller=BINARIES_ONLY).body


@pytest.mark.parametrize("path", LISTS)
def test_lists_hold_the_binary_without_the_content(hub: Hub, path: str) -> None:
    everything = allowed("*.s", "Binary.cruds")
    shown = ask(hub, "GET", path, caller=everything)
    assert shown.status == 200
    hidden = shown.body.count(DATA.encode())
    seen = ask(hub, "GET", path, caller=allowed("*.cruds")).body.count(DATA.encode())
    expected = 2 if path in ("Binary/_history", "_history", "?_type=Binary") else 1
    assert seen - hidden == expected, "those with a context lose their content, the others keep it"
    if "xml" not in path:
        held = [e["resource"] for e in shown.entries if e["resource"]["id"] == "b"]
        assert all(one["meta"]["tag"][-1]["code"] == "SUBSETTED" for one in held) and held
        assert all("data" not in one for one in held)


def test_who_may_not_read_the_context_writes_nothing_over_it(hub: Hub) -> None:
    new = {"resourceType": "Binary", "id": "b", "contentType": "text/plain", "data": "eA=="}
    patch = b'[{"op":"remove","path":"/securityContext"}]'
    entries = [{"request": {"method": "GET", "url": "Binary/b"}}]
    put = [{"resource": new, "request": {"method": "PUT", "url": "Binary/b"}}]

    def attempts(caller: Caller) -> list[int]:
        told: dict[str, Any] = {"caller": caller}
        answers = [
            ask(hub, "PATCH", "Binary/b", patch, content_type="application/json-patch+json", **told),
            ask(hub, "PATCH", "Binary?_id=b", patch, content_type="application/json-patch+json", **told),
            ask(hub, "PUT", "Binary/b", new, **told),
            ask(hub, "PUT", "Binary?_id=b", new, **told),
            ask(hub, "POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": put}, **told),
            ask(hub, "POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": entries}, **told),
            ask(hub, "DELETE", "Binary?_id=b", **told),
            ask(hub, "DELETE", "Binary/b", **told),
        ]
        return [answer.status for answer in answers]

    assert attempts(BINARIES_ONLY) == [403] * 8
    batch = ask(
        hub, "POST", "", {"resourceType": "Bundle", "type": "batch", "entry": put + entries}, caller=BINARIES_ONLY
    )
    assert [entry["response"]["status"] for entry in batch.entries] == ["403", "403"]
    assert ask(hub, "GET", "Binary/b").headers["etag"] == 'W/"1"'
    assert ask(hub, "DELETE", "Binary/b", caller=BOTH).status == 204


def test_a_create_that_finds_it_gives_no_content_away(hub: Hub) -> None:
    new = {"resourceType": "Binary", "contentType": "text/plain", "data": "eA=="}
    found = ask(hub, "POST", "Binary", new, if_none_exist="_id=b", caller=BINARIES_ONLY)
    assert found.status == 200 and found.json()["id"] == "b" and "data" not in found.json()
    entry = {"resource": new, "request": {"method": "POST", "url": "Binary", "ifNoneExist": "_id=b"}}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    answer = ask(hub, "POST", "", bundle, caller=BINARIES_ONLY, prefer="return=representation")
    assert DATA.encode() not in answer.body and answer.entries[0]["resource"]["id"] == "b"
