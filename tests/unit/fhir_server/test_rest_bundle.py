"""Batch and transaction: all or nothing against each for itself, the order of verbs, and the limits of a Bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hubs import EXPERT, REQUESTER, at_once, directory, hub_on, message, people, request
from rest_calls import BASE, OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server import changes
from fhir_server.changes import Hub
from fhir_server.store.engine import Store

Resource = dict[str, Any]
GROUP = {"resourceType": "Group", "type": "person", "actual": True}


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


@pytest.fixture
def light(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    """For what does not depend on the database."""
    return hub_on(open_url(sqlite_url))


def entry(method: str, url: str, resource: Any = None, full_url: str = "", **told: Any) -> Resource:
    out: Resource = {"request": {"method": method, "url": url} | told}
    if resource is not None:
        out["resource"] = resource
    return out | ({"fullUrl": full_url} if full_url else {})


def send(hub: Hub, kind: str, *entries: Any, **more: Any) -> Answer:
    return ask(hub, "POST", "", {"resourceType": "Bundle", "type": kind, "entry": list(entries)}, **more)


def statuses(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body[:500]
    return [one["response"]["status"][:3] for one in answer.entries]


def there(hub: Hub, *references: str) -> list[bool]:
    return [ask(hub, "GET", reference).status == 200 for reference in references]


BAD = entry("PUT", "Observation/o", OBSERVATION | {"status": "?"})


def test_a_transaction_is_all_or_nothing_and_names_the_entry(hub: Hub) -> None:
    refused = send(hub, "transaction", entry("PUT", "Patient/p", PATIENT), BAD)
    assert refused.status == 422
    assert refused.issue["expression"] == ["Bundle.entry[1].resource.status"]
    assert there(hub, "Patient/p") == [False]
    good = send(hub, "transaction", entry("PUT", "Patient/p", PATIENT), entry("PUT", "Observation/o", OBSERVATION))
    assert statuses(good) == ["201", "201"]
    assert good.json()["type"] == "transaction-response"


def test_each_entry_of_a_batch_stands_for_itself(hub: Hub) -> None:
    reads = [entry("GET", "Patient/p"), entry("GET", "Patient/q")]
    answer = send(hub, "batch", entry("PUT", "Patient/p", PATIENT), BAD, *reads)
    assert statuses(answer) == ["201", "422", "200", "404"]
    outcomes = [one["response"].get("outcome", {}).get("resourceType") for one in answer.entries]
    assert outcomes == [None, "OperationOutcome", None, "OperationOutcome"]
    assert answer.entries[1]["response"]["outcome"]["issue"][0]["expression"]
    assert answer.entries[2]["resource"]["id"] == "p"
    assert answer.json()["type"] == "batch-response"


def test_verbs_are_taken_in_the_order_of_the_standard_and_answered_in_that_of_the_bundle(hub: Hub) -> None:
    stored(hub, PATIENT)
    answer = send(
        hub,
        "transaction",
        entry("GET", "Group?type=person"),
        entry("PUT", "Observation/o", OBSERVATION),
        entry("POST", "Group", GROUP),
        entry("DELETE", "Patient/p"),
    )
    assert statuses(answer) == ["200", "201", "201", "204"]
    assert len(answer.entries[0]["resource"]["entry"]) == 1, "the read comes last and sees the writes"


def test_what_was_written_is_told_with_its_address_and_version(light: Hub) -> None:
    made = send(light, "transaction", entry("POST", "Group", GROUP)).entries[0]["response"]
    assert made["location"].startswith("Group/") and made["location"].endswith("/_history/1")
    assert made["etag"] == 'W/"1"' and made["lastModified"].endswith("Z")
    whole = send(light, "transaction", entry("POST", "Group", GROUP), prefer="return=representation").entries[0]
    assert whole["resource"]["type"] == "person"


def test_links_inside_a_transaction_lead_to_what_it_makes(hub: Hub) -> None:
    observation = {k: v for k, v in OBSERVATION.items() if k != "id"} | {"subject": {"reference": "urn:uuid:p"}}
    person = {k: v for k, v in PATIENT.items() if k != "id"}
    answer = send(
        hub,
        "transaction",
        entry("POST", "Observation", observation, "urn:uuid:o"),
        entry("POST", "Patient", person, "urn:uuid:p"),
    )
    made = [one["response"]["location"].split("/_history")[0] for one in answer.entries]
    assert ask(hub, "GET", made[0]).json()["subject"]["reference"] == made[1]


def test_a_batch_knows_no_links_between_its_entries(light: Hub) -> None:
    observation = OBSERVATION | {"subject": {"reference": "urn:uuid:p"}}
    answer = send(
        light, "batch", entry("PUT", "Observation/o", observation), entry("POST", "Patient", PATIENT, "urn:uuid:p")
    )
    assert statuses(answer) == ["422", "201"]


def test_conditions_hold_inside_a_bundle(hub: Hub) -> None:
    person = PATIENT | {"identifier": [{"system": "urn:x", "value": "1"}]}
    create = entry("POST", "Patient", person, ifNoneExist="identifier=urn:x|1")
    assert statuses(send(hub, "transaction", create)) == ["201"]
    assert statuses(send(hub, "transaction", create)) == ["200"]
    found = ask(hub, "GET", "Patient?identifier=urn:x|1").entries
    assert len(found) == 1
    key = found[0]["resource"]["id"]
    stale = entry("PUT", f"Patient/{key}", person | {"id": key}, ifMatch='W/"7"')
    assert send(hub, "transaction", stale).status == 412
    assert statuses(send(hub, "batch", stale)) == ["412"]
    assert statuses(send(hub, "transaction", entry("DELETE", "Patient?identifier=urn:x|1"))) == ["204"]


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_every_conditional_form_is_an_entry(hub: Hub, kind: str) -> None:
    def basic(code: str, **more: Any) -> Resource:
        return {"resourceType": "Basic", "code": {"coding": [{"system": "urn:x", "code": code}]}} | more

    for key in "abcd":
        stored(hub, basic(key, id=key))
    patch = {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": [
        {"name": "type", "valueCode": "add"}, {"name": "path", "valueString": "Basic"},
        {"name": "name", "valueString": "created"}, {"name": "value", "valueDate": "2026-11-22"}]}]}  # fmt: skip
    answer = send(
        hub,
        kind,
        entry("POST", "Basic", basic("a"), ifNoneExist="code=urn:x|a"),
        entry("POST", "Basic", basic("new"), ifNoneExist="code=urn:x|new"),
        entry("PUT", "Basic?code=urn:x|b", basic("b", created="2026-11-21")),
        entry("PUT", "Basic?code=urn:x|none", basic("none")),
        entry("PATCH", "Basic?code=urn:x|c", patch),
        entry("DELETE", "Basic?code=urn:x|d"),
        entry("DELETE", "Basic?code=urn:x|nobody"),
        entry("GET", "Basic/b", ifNoneMatch='W/"2"'),
        entry("HEAD", "Basic/a"),
        entry("GET", "Basic?code=urn:x|a&_summary=count"),
    )
    assert statuses(answer) == ["200", "201", "200", "201", "200", "204", "204", "304", "200", "200"]
    assert ask(hub, "GET", "Basic/c").json()["created"] == "2026-11-22"
    assert "resource" not in answer.entries[7] and "resource" not in answer.entries[8]
    assert answer.entries[9]["resource"]["total"] == 1
    assert [ask(hub, "GET", f"Basic/{key}").status for key in "abcd"] == [200, 200, 200, 410]
    refusals = [
        entry("PUT", "Basic?code=urn:x|a,urn:x|b", basic("a")),
        entry("PATCH", "Basic?code=urn:x|nobody", patch),
        entry("PUT", "Basic/a", basic("a", id="a"), ifMatch='W/"9"'),
        entry("GET", "Basic/d"),
    ]
    told = [statuses(send(hub, "batch", one))[0] for one in refusals]
    assert told == ["412", "404", "412", "410"]
    assert [send(hub, "transaction", one).status for one in refusals] == [412, 404, 412, 410]


def test_deletions_of_a_transaction_do_not_hide_that_a_condition_is_ambiguous(hub: Hub) -> None:
    for n in range(5):
        stored(hub, {"resourceType": "Basic", "id": f"b{n}", "code": {"coding": [{"system": "urn:x", "code": "y"}]}})
    gone = [entry("DELETE", f"Basic/b{n}") for n in range(3)]
    made = entry("POST", "Basic", {"resourceType": "Basic", "code": {"text": "new"}}, ifNoneExist="code=urn:x|y")
    answer = send(hub, "transaction", *gone, made)
    assert answer.status == 412, "two are left that match"
    answer = send(hub, "transaction", *gone, entry("DELETE", "Basic/b3"), made)
    assert statuses(answer) == ["204"] * 4 + ["200"]


def test_two_bundles_at_once_with_one_condition_make_one_resource(hub: Hub) -> None:
    person = PATIENT | {"identifier": [{"system": "urn:x", "value": "1"}]}
    create = entry("POST", "Patient", person, ifNoneExist="identifier=urn:x|1")
    answers = at_once(*[lambda: send(hub, "transaction", create)] * 5)
    told = sorted(statuses(one)[0] for one in answers if isinstance(one, Answer))
    assert told == ["200"] * 4 + ["201"]
    assert len(ask(hub, "GET", "Patient?identifier=urn:x|1").entries) == 1


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        ("x", 400),
        ([5], 400),
        ([None], 400),
        ([{}], 400),
        ([{"request": {"method": "GET"}}], 400),
        ([{"request": {"method": "FETCH", "url": "Patient"}}], 400),
        ([{"request": {"method": "get", "url": "Patient"}}], 400),
        ([{"request": {"method": ["GET"], "url": "Patient"}}], 400),
        ([{"request": {"method": "GET", "url": 5}}], 400),
        ([entry("POST", "Patient")], 400),
        ([entry("PUT", "Patient/p", "x")], 400),
        ([entry("DELETE", "Patient/p", ["x"])], 400),
        ([entry("PUT", "Patient/p", PATIENT | {"id": "q"})], 400),
        ([entry("PUT", "Patient/p", OBSERVATION)], 400),
        ([entry("PUT", "Pizza/p", PATIENT)], 400),
        ([entry("PUT", "Patient/p/q", PATIENT)], 400),
        ([entry("POST", "Patient/p", PATIENT)], 400),
        ([entry("DELETE", "Patient")], 400),
        ([entry("PUT", "", PATIENT)], 400),
        ([entry("PUT", "http://elsewhere.example/fhir/Patient/p", PATIENT)], 400),
        ([entry("PUT", "Patient/p", PATIENT, ifMatch="x")], 400),
        ([entry("PUT", "Patient/p", PATIENT), entry("PUT", "Patient/p", PATIENT)], 400),
        ([entry("POST", "Patient", PATIENT, "urn:uuid:a"), entry("POST", "Group", GROUP, "urn:uuid:a")], 400),
        ([entry("GET", "Patient/nobody")], 404),
        ([entry("GET", "Patient?nonsense=1")], 400),
    ],
)
def test_a_transaction_that_makes_no_sense_is_refused_with_its_place(light: Hub, entries: Any, status: int) -> None:
    answer = ask(light, "POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": entries})
    assert answer.status == status, answer.body[:300]
    assert answer.issue["expression"][0].startswith("Bundle")
    assert ask(light, "GET", "Patient?_summary=count").json()["total"] == 0


@pytest.mark.parametrize("kind", ["searchset", "document", "", None, 5])
def test_only_a_batch_or_a_transaction_is_taken_at_the_base(light: Hub, kind: Any) -> None:
    answer = ask(light, "POST", "", {"resourceType": "Bundle", "type": kind, "entry": []})
    assert answer.status == 400 and answer.issue["expression"] == ["Bundle.type"]
    assert ask(light, "POST", "", PATIENT).status == 400


def test_an_address_may_be_absolute_when_it_is_ours(light: Hub) -> None:
    assert statuses(send(light, "transaction", entry("PUT", f"{BASE}/Patient/p", PATIENT))) == ["201"]


def test_an_empty_bundle_is_done(light: Hub) -> None:
    for kind in ("transaction", "batch"):
        answer = ask(light, "POST", "", {"resourceType": "Bundle", "type": kind})
        assert answer.status == 200 and answer.entries == []


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_a_resource_beside_a_search_by_form_is_passed_over(light: Hub, kind: str) -> None:
    assert ask(light, "PUT", "Patient/p", PATIENT).status == 201
    parameters = {"resourceType": "Parameters"}
    found = send(light, kind, entry("POST", "Patient/_search?_id=p", parameters))
    assert statuses(found) == ["200"]
    assert [one["resource"]["id"] for one in found.entries[0]["resource"]["entry"]] == ["p"]


def test_more_entries_than_allowed_are_refused_before_any_is_taken(light: Hub) -> None:
    small = dataclasses.replace(light, settings=dataclasses.replace(light.settings, max_bundle_entries=2))
    answer = send(small, "batch", *[entry("POST", "Group", GROUP)] * 3)
    assert (answer.status, answer.issue["code"]) == (413, "too-costly")
    assert there(light, "Group") == [True]
    assert ask(light, "GET", "Group?_summary=count").json()["total"] == 0


def test_a_request_with_too_many_searchable_values_is_refused_whole(
    light: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MOST_ROWS", 30)
    entries = [entry("PUT", f"Patient/p{n}", PATIENT | {"id": f"p{n}"}) for n in range(30)]
    answer = send(light, "transaction", *entries)
    assert (answer.status, answer.issue["code"], answer.issue["expression"]) == (413, "too-costly", ["Bundle.entry"])
    assert ask(light, "GET", "Patient?_summary=count").json()["total"] == 0
    assert ask(light, "PUT", "Patient/p0", PATIENT | {"id": "p0"}).status == 201


def test_a_large_transaction_is_one_step(light: Hub) -> None:
    entries = [entry("PUT", f"Patient/p{n}", PATIENT | {"id": f"p{n}"}) for n in range(300)]
    assert statuses(send(light, "transaction", *entries)) == ["201"] * 300
    assert ask(light, "GET", "Patient?_summary=count").json()["total"] == 300


def test_a_whole_step_of_a_case_may_be_one_transaction(light: Hub) -> None:
    hub = directory(light)
    asked = send(
        hub,
        "transaction",
        entry("PUT", "Consent/r", people.consent("r", 0)),
        entry("PUT", "ServiceRequest/r", request()),
        caller=REQUESTER,
    )
    assert statuses(asked) == ["201", "201"]
    task = ask(hub, "GET", "Task/r").json() | {"status": "in-progress"}
    both = send(
        hub,
        "transaction",
        entry("PUT", "Communication/q", message("q")),
        entry("PUT", "Task/r", task),
        caller=EXPERT,
    )
    assert statuses(both) == ["201", "200"], "taken, then asked"
    assert ask(hub, "GET", "ServiceRequest/r").json()["status"] == "on-hold"


def test_a_stored_bundle_is_a_resource_like_another(light: Hub) -> None:
    document = {"resourceType": "Bundle", "id": "b", "type": "collection", "entry": [{"resource": PATIENT}]}
    stored(light, document)
    assert ask(light, "GET", "Bundle/b").json()["entry"][0]["resource"]["id"] == "p"
    assert there(light, "Patient/p") == [False]


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_an_entry_may_ask_whether_a_resource_would_be_taken(hub: Hub, kind: str) -> None:
    stored(hub, PATIENT)
    wrapped = {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": PATIENT}]}
    answer = send(
        hub,
        kind,
        entry("POST", "Patient/$validate", PATIENT | {"gender": "m"}),
        entry("POST", f"{BASE}/Patient/p/$validate?mode=update", PATIENT),
        entry("POST", "Patient/$validate", wrapped),
        entry("GET", "Patient/p/$validate"),
        entry("POST", "Patient/p/$validate?mode=delete"),
    )
    assert statuses(answer) == ["200"] * 5
    outcomes = [one["resource"] for one in answer.entries]
    assert [one["issue"][0]["severity"] for one in outcomes] == ["error", *["information"] * 4]
    assert outcomes[0]["issue"][0]["expression"] == ["Patient.gender"]
    assert ask(hub, "GET", "Patient/p").headers["etag"] == 'W/"1"'


def test_an_entry_that_names_no_known_operation_or_profile_says_so(hub: Hub) -> None:
    told = [
        entry("POST", "Patient/$validate?profile=http://example.org/x", PATIENT),
        entry("POST", "Patient/$everything", PATIENT),
        entry("POST", "Patient/$validate"),
    ]
    answer = send(hub, "batch", *told)
    assert statuses(answer) == ["422", "404", "400"]
    texts = [one["response"]["outcome"]["issue"][0]["diagnostics"] for one in answer.entries]
    assert "http://example.org/x is not known here" in texts[0] and "$everything" in texts[1] and "no body" in texts[2]
    for one, status in zip(told, (422, 404, 400), strict=True):
        refused = send(hub, "transaction", entry("PUT", "Patient/p", PATIENT), one)
        assert (refused.status, refused.issue["expression"]) == (status, ["Bundle.entry[1].request.url"])
    assert there(hub, "Patient/p") == [False]


@pytest.mark.parametrize("query", ["name=%E9", "&".join(["name=x"] * 2_001)])
def test_an_entry_whose_address_cannot_be_read_is_refused_and_no_defect(light: Hub, query: str) -> None:
    assert statuses(send(light, "batch", entry("GET", f"Patient?{query}"))) == ["400"]
    assert send(light, "transaction", entry("GET", f"Patient?{query}")).status == 400
