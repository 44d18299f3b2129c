"""The audit trail as AuditEvent: found by what it is about, read by its number, and written by nobody."""

from __future__ import annotations

from typing import Any

import pytest
from hubs import EXPERT, hub_on
from rest_calls import PATIENT, ask, stored

from fhir_server.changes import Hub
from fhir_server.store.engine import Store
from profiles.validator.structure import check

Resource = dict[str, Any]


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = hub_on(store)
    ask(hub, "PUT", "Patient/p", PATIENT, caller=EXPERT)
    ask(hub, "PUT", "Patient/p", PATIENT)
    ask(hub, "DELETE", "Patient/p")
    return hub


def events(hub: Hub, query: str) -> list[Resource]:
    answer = ask(hub, "GET", f"AuditEvent?{query}")
    assert answer.status == 200, answer.body
    return [one["resource"] for one in answer.entries]


def test_what_happened_to_a_resource_is_found_newest_first(hub: Hub) -> None:
    found = events(hub, "entity=Patient/p")
    assert [event["action"] for event in found] == ["D", "U", "C"]
    assert {event["entity"][0]["what"]["reference"] for event in found} == {"Patient/p"}
    assert found[2]["agent"][0]["who"] == {"reference": EXPERT.who, "display": EXPERT.display}
    assert found[0]["agent"][0]["who"]["display"] == "Logiciel"
    assert all(check(event) == [] for event in found)


def test_one_event_is_read_by_its_id(hub: Hub) -> None:
    event = events(hub, "entity=Patient/p&_count=1")[0]
    assert ask(hub, "GET", f"AuditEvent/{event['id']}").json() == event
    assert events(hub, f"_id={event['id']}") == [event]


@pytest.mark.parametrize("key", ["0", "99999999", "x", "-1", "9" * 30, "\u00b2", "1.0"])
def test_an_event_that_never_was_is_not_found(hub: Hub, key: str) -> None:
    answer = ask(hub, "GET", f"AuditEvent/{key}")
    assert answer.status == 404 and answer.issue["expression"] == ["AuditEvent"]
    assert events(hub, f"_id={key}") == []


def test_pages_hold_every_event_once(hub: Hub) -> None:
    seen: list[str] = []
    url = "AuditEvent?entity=Patient/p&_count=2"
    while url:
        page = ask(hub, "GET", url).json()
        seen += [one["resource"]["id"] for one in page["entry"]]
        following = [one["url"] for one in page["link"] if one["relation"] == "next"]
        url = following[0].partition("/fhir/")[2] if following else ""
    assert seen == [event["id"] for event in events(hub, "entity=Patient/p")]
    for damaged in ("x", "WzFd", "WyJhIiwxXQ"):
        assert ask(hub, "GET", f"AuditEvent?_page={damaged}").status == 400


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("nonsense=1", 400), ("_count=x", 400), ("_count=\u00b2", 400), ("_count=-1", 400), ("_id=", 400),
        ("entity=", 400), ("entity=Patient", 200), ("entity=Patient/nobody", 200), ("_count=0", 200),
        ("_count=99999999999", 200), ("_sort=-date", 400),
    ],
)  # fmt: skip
def test_a_strange_question_is_refused_or_finds_what_it_says(hub: Hub, query: str, status: int) -> None:
    answer = ask(hub, "GET", f"AuditEvent?{query}")
    assert answer.status == status, answer.body[:300]
    if status == 400:
        assert answer.issue["expression"] == ["AuditEvent"]


def test_the_self_link_says_what_was_asked_and_a_post_search_asks_the_same(hub: Hub) -> None:
    answer = ask(hub, "GET", "AuditEvent?entity=Patient/p&_count=2").json()
    assert answer["link"][0]["url"].endswith("/AuditEvent?entity=Patient%2Fp&_count=2")
    form = {"content_type": "application/x-www-form-urlencoded"}
    posted = ask(hub, "POST", "AuditEvent/_search", b"entity=Patient/p&_count=2", **form)
    assert [one["resource"]["id"] for one in posted.entries] == [one["resource"]["id"] for one in answer["entry"]]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "AuditEvent"), ("PUT", "AuditEvent/1"), ("DELETE", "AuditEvent/1"), ("PUT", "AuditEvent")],
)
def test_nobody_writes_the_audit_trail(hub: Hub, method: str, path: str) -> None:
    before = events(hub, "_count=1000")
    event = before[0] | {"id": "1"}
    answer = ask(hub, method, path, event if method != "DELETE" else None)
    assert answer.status == 405, answer.body[:300]
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert events(hub, "_count=1000") == before


def test_a_bundle_does_not_write_it_either(hub: Hub) -> None:
    event = events(hub, "_count=1")[0]
    for kind in ("transaction", "batch"):
        bundle = {
            "resourceType": "Bundle",
            "type": kind,
            "entry": [{"resource": event, "request": {"method": "POST", "url": "AuditEvent"}}],
        }
        answer = ask(hub, "POST", "", bundle)
        status = answer.status if kind == "transaction" else int(answer.entries[0]["response"]["status"][:3])
        assert status == 405
    stored(hub, PATIENT)
