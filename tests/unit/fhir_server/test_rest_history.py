"""History of a resource, a type and everything: order, parameters, pages, deletions. On both databases."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hubs import hub_on
from rest_calls import BASE, OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.rest import history
from fhir_server.store.engine import Store


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


def versions(answer: Answer) -> list[tuple[str, str]]:
    """(reference, version) of each entry."""
    assert answer.status == 200, answer.body
    shown = []
    for entry in answer.entries:
        kind, key, _, version = entry["response"]["location"].split("/")
        shown.append((f"{kind}/{key}", version))
    return shown


def edited(hub: Hub, times: int, key: str = "p") -> list[str]:
    """A Patient written so many times; the instants of its versions, oldest first."""
    instants = []
    for turn in range(times):
        content = PATIENT | {"id": key, "multipleBirthInteger": turn}
        instants.append(ask(hub, "PUT", f"Patient/{key}", content).json()["meta"]["lastUpdated"])
    return instants


def next_url(answer: Answer) -> str | None:
    found = [link["url"] for link in answer.json()["link"] if link["relation"] == "next"]
    return str(found[0]).removeprefix(BASE + "/") if found else None


def test_every_version_of_a_resource_is_listed_newest_first_with_what_made_it(hub: Hub) -> None:
    edited(hub, 2)
    ask(hub, "DELETE", "Patient/p")
    answer = ask(hub, "GET", "Patient/p/_history")
    assert versions(answer) == [("Patient/p", "3"), ("Patient/p", "2"), ("Patient/p", "1")]
    assert [entry["request"]["method"] for entry in answer.entries] == ["DELETE", "PUT", "PUT"]
    assert [entry["response"]["status"] for entry in answer.entries] == ["204", "200", "201"]
    assert "resource" not in answer.entries[0]
    assert answer.entries[1]["resource"]["multipleBirthInteger"] == 1
    assert answer.entries[1]["fullUrl"] == f"{BASE}/Patient/p"
    assert answer.json()["total"] == 3
    assert answer.json()["type"] == "history"


def test_a_created_resource_says_post_and_a_patched_one_patch(hub: Hub) -> None:
    made = ask(hub, "POST", "Observation", OBSERVATION | {"subject": {"display": "Léa"}})
    key = made.json()["id"]
    patch = b'[{"op":"replace","path":"/status","value":"amended"}]'
    ask(hub, "PATCH", f"Observation/{key}", patch, content_type="application/json-patch+json")
    entries = ask(hub, "GET", f"Observation/{key}/_history").entries
    assert [entry["request"]["method"] for entry in entries] == ["PATCH", "POST"]
    assert [entry["request"]["url"] for entry in entries] == [f"Observation/{key}", "Observation"]
    assert entries[1]["response"]["status"] == "201"


def test_the_history_of_what_never_was_is_not_found(hub: Hub) -> None:
    assert ask(hub, "GET", "Patient/nobody/_history").status == 404
    assert ask(hub, "GET", "Patent/_history").status == 404


def test_type_and_system_history_hold_the_versions_of_many(hub: Hub) -> None:
    before = len(ask(hub, "GET", "_history?_count=1000").entries)
    stored(hub, PATIENT, OBSERVATION, PATIENT | {"active": False})
    assert versions(ask(hub, "GET", "Patient/_history")) == [("Patient/p", "2"), ("Patient/p", "1")]
    everything = versions(ask(hub, "GET", "_history?_count=1000"))
    assert everything[:3] == [("Patient/p", "2"), ("Observation/o", "1"), ("Patient/p", "1")]
    assert len(everything) == before + 3


@pytest.mark.parametrize("path", ["Patient/p/_history", "Patient/_history", "_history"])
def test_since_leaves_out_what_is_older(hub: Hub, path: str) -> None:
    instants = edited(hub, 3)
    answer = ask(hub, "GET", f"{path}?_since={instants[1]}")
    assert [version for reference, version in versions(answer) if reference == "Patient/p"] == ["3", "2"]
    assert versions(ask(hub, "GET", f"{path}?_since={instants[2].replace('2026', '2096')}")) == []


@pytest.mark.parametrize("path", ["Patient/p/_history", "Patient/_history", "_history?_count=900"])
def test_at_gives_the_versions_current_at_a_moment_or_in_a_period(hub: Hub, path: str) -> None:
    instants = edited(hub, 4)
    sign = "&" if "?" in path else "?"

    def at(moment: str) -> list[str]:
        answer = ask(hub, "GET", f"{path}{sign}_at={quote(moment)}")
        return [version for reference, version in versions(answer) if reference == "Patient/p"]

    assert at(instants[0]) == ["1"]
    assert at(instants[2]) == ["3"]
    assert at(instants[3][:4]) == ["4", "3", "2", "1"]
    assert at("2096") == ["4"]
    assert at("1996-01-01T00:00:00+02:00") == []


def test_a_deletion_is_what_was_current_after_it(hub: Hub) -> None:
    edited(hub, 1)
    ask(hub, "DELETE", "Patient/p")
    answer = ask(hub, "GET", "Patient/_history?_at=2096")
    assert [entry["request"]["method"] for entry in answer.entries] == ["DELETE"]


@pytest.mark.parametrize("path", ["Patient/p/_history", "Patient/_history"])
def test_pages_hold_every_version_once(hub: Hub, path: str) -> None:
    edited(hub, 7)
    seen: list[tuple[str, str]] = []
    url: str | None = f"{path}?_count=3"
    while url:
        answer = ask(hub, "GET", url)
        assert len(answer.entries) <= 3
        seen += versions(answer)
        url = next_url(answer)
        edited(hub, 1, "other")
    assert seen == [("Patient/p", str(number)) for number in range(7, 0, -1)]


def test_a_count_of_zero_and_a_summary_of_count_give_the_total_alone(hub: Hub) -> None:
    edited(hub, 2)
    for asked in ("_count=0", "_summary=count"):
        answer = ask(hub, "GET", f"Patient/p/_history?{asked}")
        assert (answer.json()["total"], answer.entries) == (2, [])


@pytest.mark.parametrize("path", ["Patient/p/_history", "Patient/_history", "_history"])
def test_the_oldest_come_first_when_asked_and_pages_hold_every_version_once(hub: Hub, path: str) -> None:
    edited(hub, 5)
    for asked in ("-_lastUpdated", "none"):
        assert versions(ask(hub, "GET", f"{path}?_sort={asked}"))[:2] == [("Patient/p", "5"), ("Patient/p", "4")]
    since = ask(hub, "GET", "Patient/p/_history/1").json()["meta"]["lastUpdated"]
    seen: list[tuple[str, str]] = []
    url: str | None = f"{path}?_sort=_lastUpdated&_count=2&_since={since}"
    while url:
        answer = ask(hub, "GET", url)
        assert len(answer.entries) <= 2
        seen += versions(answer)
        url = next_url(answer)
    assert seen == [("Patient/p", str(number)) for number in range(1, 6)]
    assert ask(hub, "GET", f"{path}?_sort=name").status == 400


@pytest.mark.parametrize("path", ["Patient/p/_history", "Patient/_history", "_history"])
def test_a_count_of_versions_counts_those_that_were_asked_for(hub: Hub, path: str) -> None:
    before = ask(hub, "GET", "_history?_summary=count").json()["total"]
    instants = edited(hub, 4)
    others = before if path == "_history" else 0
    for asked in ("_summary=count", "_count=0"):
        for more, expected in (("", 4 + others), (f"&_since={instants[1]}", 3), (f"&_at={instants[2]}", 1 + others)):
            answer = ask(hub, "GET", f"{path}?{asked}{more}")
            assert (answer.json().get("total"), answer.entries) == (expected, []), more
    ask(hub, "DELETE", "Patient/p")
    assert ask(hub, "GET", f"{path}?_summary=count").json()["total"] == 5 + others


@pytest.mark.parametrize(
    "bad",
    [
        "_since=yesterday",
        "_since=2026-13-01",
        "_at=" + "9" * 500,
        "_count=-1",
        "_count=ten",
        "_count=%D9%A3",
        "_page=damaged",
        "_page=W10",
        "_page=WzEsMiwzLDRd",
        "_page=WyJ4Il0",
        "_page=Wzk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTld",
        "_page=" + "W" * 20_000,
        "_page=" + "W1tbW1tb" * 900,
        "name=Martin",
        "_since=2026&_since=2027",
        "_since=2026&_at=2026",
    ],
)
def test_a_parameter_that_makes_no_sense_is_told(hub: Hub, bad: str) -> None:
    edited(hub, 1)
    for path in ("Patient/p/_history", "Patient/_history"):
        answer = ask(hub, "GET", f"{path}?{bad}")
        assert answer.status == 400, answer.body
        assert answer.issue["diagnostics"]


def test_leniency_leaves_unknown_parameters_out(hub: Hub) -> None:
    edited(hub, 1)
    assert ask(hub, "GET", "Patient/p/_history?name=Martin", prefer="handling=lenient").status == 200


def test_the_self_link_says_what_was_used(hub: Hub) -> None:
    edited(hub, 1)
    answer = ask(hub, "GET", "Patient/_history?_count=5&_since=2020")
    assert answer.json()["link"] == [{"relation": "self", "url": f"{BASE}/Patient/_history?_count=5&_since=2020"}]


def test_every_parameter_is_in_the_list_that_errors_show() -> None:
    assert {"_since", "_at", "_count", "_sort"} <= set(history.PARAMETERS)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_history_is_only_read(hub: Hub, method: str) -> None:
    for path in ("_history", "Patient/_history", "Patient/p/_history", "Patient/p/_history/1"):
        answer = ask(hub, method, path, PATIENT)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
