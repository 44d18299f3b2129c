"""What a client says beside its request holds for every form of it: versions it knows, how it wants to be answered.

On a condition, in a Bundle, later: a precondition that is not looked at loses an update, a preference that is not
looked at loses what the server had to say.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

import pytest
from hubs import hub_on
from rest_calls import BASE, OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server import changes
from fhir_server.changes import Applied, Hub
from fhir_server.rest import bundle, resources
from fhir_server.store.engine import Store

Resource = dict[str, Any]
FORM = "application/x-www-form-urlencoded"
JSON_PATCH = "application/json-patch+json"
AMENDED = b'[{"op":"replace","path":"/status","value":"amended"}]'
ONE = "Observation?status=final"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    hub = hub_on(open_url(sqlite_url))
    stored(hub, PATIENT, OBSERVATION)
    return hub


def many(hub: Hub) -> Hub:
    """The same, where a conditional delete takes every match."""
    return dataclasses.replace(hub, settings=dataclasses.replace(hub.settings, conditional_delete="multiple"))


def entry(method: str, url: str, resource: Resource | None = None, **told: str) -> Resource:
    return {"request": {"method": method, "url": url} | told} | ({"resource": resource} if resource else {})


def send(hub: Hub, kind: str, *entries: Resource, **headers: Any) -> Answer:
    return ask(hub, "POST", "", {"resourceType": "Bundle", "type": kind, "entry": list(entries)}, **headers)


def version(hub: Hub) -> str:
    return ask(hub, "GET", "Observation/o").headers.get("etag", "gone")


def one_entry(hub: Hub, kind: str, one: Resource) -> str:
    """The status of the only entry, of the whole when that was refused."""
    answer = send(hub, kind, one)
    return str(answer.entries[0]["response"]["status"][:3]) if answer.status == 200 else str(answer.status)


# --- versions on conditions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["single", "multiple"])
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_if_match_holds_for_what_a_condition_finds(hub: Hub, method: str, setting: str) -> None:
    hub = many(hub) if setting == "multiple" else hub
    new = {name: value for name, value in OBSERVATION.items() if name != "id"}
    body, kind = {"PUT": (new, ""), "PATCH": (AMENDED, JSON_PATCH), "DELETE": (None, "")}[method]
    headers: dict[str, Any] = {"content_type": kind} if kind else {}
    stale = ask(hub, method, ONE, body, if_match='W/"7"', **headers)
    assert (stale.status, version(hub)) == (412, 'W/"1"'), stale.body
    assert ask(hub, method, ONE, body, if_match="nonsense", **headers).status == 400
    assert ask(hub, method, ONE, body, if_match='W/"1"', **headers).status == (204 if method == "DELETE" else 200)
    assert version(hub) == ("gone" if method == "DELETE" else 'W/"2"')


@pytest.mark.parametrize("kind", ["batch", "transaction"])
@pytest.mark.parametrize("setting", ["single", "multiple"])
def test_if_match_of_an_entry_holds_for_what_its_condition_finds(hub: Hub, kind: str, setting: str) -> None:
    hub = many(hub) if setting == "multiple" else hub
    patch = {"resourceType": "Binary", "contentType": JSON_PATCH, "data": "W10="}
    new = {name: value for name, value in OBSERVATION.items() if name != "id"}
    for one in (entry("PUT", ONE, new), entry("PATCH", ONE, patch), entry("DELETE", ONE)):
        one["request"]["ifMatch"] = 'W/"7"'
        assert one_entry(hub, kind, one) == "412", one
    assert version(hub) == 'W/"1"'
    assert one_entry(hub, kind, entry("DELETE", ONE, ifMatch='W/"1"')) == "204"


def test_a_version_is_the_version_of_one(hub: Hub) -> None:
    stored(hub, OBSERVATION | {"id": "o2"})
    assert ask(many(hub), "DELETE", ONE, if_match='W/"1"').status == 412
    assert [ask(hub, "GET", f"Observation/{key}").status for key in ("o", "o2")] == [200, 200]
    assert ask(many(hub), "DELETE", ONE).status == 204
    assert [ask(hub, "GET", f"Observation/{key}").status for key in ("o", "o2")] == [410, 410]


@pytest.mark.parametrize("form", ["alone", "batch", "transaction"])
def test_absence_may_be_asked_for_with_a_condition(hub: Hub, form: str) -> None:
    new = {name: value for name, value in OBSERVATION.items() if name != "id"}

    def put(condition: str, tag: str) -> str:
        if form == "alone":
            return str(ask(hub, "PUT", f"Observation?{condition}", new, if_none_match=tag).status)
        return one_entry(hub, form, entry("PUT", f"Observation?{condition}", new, ifNoneMatch=tag))

    assert (put("status=final", "*"), version(hub)) == ("412", 'W/"1"')
    assert put("status=final", 'W/"1"') == "400"
    assert put("status=registered", "*") == "201"


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_a_read_in_a_bundle_is_answered_304_for_the_instant_it_was_stored(hub: Hub, kind: str) -> None:
    stored_at = ask(hub, "GET", "Observation/o").json()["meta"]["lastUpdated"]
    for since, status in ((stored_at, "304"), ("2096-01-01T00:00:00Z", "304"), ("2001-01-01", "200"), ("soon", "200")):
        answer = send(hub, kind, entry("GET", "Observation/o", ifModifiedSince=since))
        assert answer.entries[0]["response"]["status"] == status, since
        assert ("resource" in answer.entries[0]) == (status == "200")
        assert answer.entries[0]["response"]["etag"] == 'W/"1"'


def test_the_last_second_before_it_was_stored_is_too_early_for_304(hub: Hub) -> None:
    moment = parsedate_to_datetime(ask(hub, "GET", "Observation/o").headers["last-modified"])
    before = format_datetime(moment.fromtimestamp(moment.timestamp() - 1, moment.tzinfo), usegmt=True)
    assert ask(hub, "GET", "Observation/o", if_modified_since=before).status == 200


# --- Prefer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["minimal", "representation", "OperationOutcome"])
def test_a_patch_is_answered_as_preferred(hub: Hub, wanted: str) -> None:
    answer = ask(hub, "PATCH", "Observation/o", AMENDED, content_type=JSON_PATCH, prefer=f"return={wanted}")
    kinds = {"minimal": "", "representation": "Observation", "OperationOutcome": "OperationOutcome"}
    assert (answer.json()["resourceType"] if answer.body else "") == kinds[wanted]
    assert (answer.status, answer.headers["etag"]) == (200, 'W/"2"')


@pytest.mark.parametrize("kind", ["batch", "transaction"])
@pytest.mark.parametrize("wanted", ["", "minimal", "representation", "OperationOutcome"])
def test_the_entries_of_a_bundle_are_answered_as_preferred(hub: Hub, kind: str, wanted: str) -> None:
    headers: dict[str, Any] = {"prefer": f"return={wanted}"} if wanted else {}
    patch = {"resourceType": "Binary", "contentType": JSON_PATCH, "data": "W10="}
    made = entry("POST", "Observation", {name: value for name, value in OBSERVATION.items() if name != "id"})
    answer = send(hub, kind, made, entry("PATCH", "Patient/p", patch), entry("DELETE", "Observation/o"), **headers)
    assert answer.status == 200, answer.body
    *written, deleted = answer.entries
    for one in written:
        assert ("resource" in one) == (wanted == "representation")
        outcome = one["response"].get("outcome")
        assert (outcome or {}).get("resourceType", "") == (wanted if wanted == "OperationOutcome" else "")
        assert outcome is None or outcome["issue"][0]["diagnostics"].startswith("stored as version")
    assert set(deleted) == {"response"} and "outcome" not in deleted["response"]


def test_what_a_person_should_know_of_a_write_is_told_in_a_bundle_too(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "the report did not reach everybody"

    def apply(*args: Any, **more: Any) -> list[Applied]:
        return [dataclasses.replace(one, notes=(note,)) for one in changes.apply(*args, **more)]

    monkeypatch.setattr(bundle, "apply", apply)
    monkeypatch.setattr(resources, "apply", apply)
    alone = ask(hub, "PUT", "Patient/p", PATIENT, prefer="return=OperationOutcome").json()
    for kind in ("batch", "transaction"):
        answer = send(hub, kind, entry("PUT", "Patient/p", PATIENT), prefer="return=OperationOutcome")
        told = answer.entries[0]["response"]["outcome"]["issue"]
        assert told[1] == {"severity": "warning", "code": "incomplete", "diagnostics": note}
        assert told[1] == alone["issue"][1]


LATER: dict[str, tuple[str, str, Any]] = {
    "a search": ("GET", "Observation?status=final", None),
    "a search by form": ("POST", "Observation/_search", b"status=final"),
    "a search of several types": ("GET", "?_type=Observation", None),
    "a search of several types by form": ("POST", "_search", b"_type=Observation"),
    "a compartment": ("GET", "Patient/p/Observation", None),
    "all of a compartment": ("GET", "Patient/p/*", None),
    "the history of a resource": ("GET", "Observation/o/_history", None),
    "the history of a type": ("GET", "Observation/_history", None),
    "the history of everything": ("GET", "_history", None),
    "a batch": ("POST", "", {"resourceType": "Bundle", "type": "batch", "entry": [entry("GET", "Observation/o")]}),
    "a transaction": (
        "POST",
        "",
        {"resourceType": "Bundle", "type": "transaction", "entry": [entry("GET", "Observation/o")]},
    ),
}


@pytest.mark.parametrize("name", LATER)
def test_whatever_may_be_long_is_answered_later_as_it_would_be_at_once(hub: Hub, name: str) -> None:
    method, url, body = LATER[name]
    headers: dict[str, Any] = {"content_type": FORM} if isinstance(body, bytes) else {}
    begun = ask(hub, method, url, body, prefer="respond-async", **headers)
    assert begun.status == 202, begun.body
    address = begun.headers["content-location"].removeprefix(f"{BASE}/")
    deadline = time.monotonic() + 60
    while (manifest := ask(hub, "GET", address)).status == 202:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    (output,) = manifest.json()["output"]
    (line,) = ask(hub, "GET", output["url"].removeprefix(f"{BASE}/")).body.splitlines()
    at_once = ask(hub, method, url, body, **headers).json()
    assert json.loads(line) | {"timestamp": ""} == at_once | {"timestamp": ""}
    assert at_once["entry"]
