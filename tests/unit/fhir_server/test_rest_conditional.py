"""Conditions on requests: known versions and instants, searches instead of ids, absence. On both databases."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hubs import PARTNER, at_once, hub_on, results
from rest_calls import BASE, OBSERVATION, PATIENT, Answer, ask, stored

from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.pending import Pending
from fhir_server.search.plan import Plan
from fhir_server.store.engine import Store
from fhir_server.store.query import Page
from fhir_server.store.session import Tx
from fhir_server.targets import MOST_DELETED

SYSTEM = "urn:oid:1.2.250.1.999"
T = TypeVar("T")


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


def organization(value: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Organization", "identifier": [{"system": SYSTEM, "value": value}], "name": value} | more


def three(hub: Hub) -> None:
    """Organizations 1 to 3: `a` is the name of two."""
    stored(hub, *(organization(name, id=str(i)) for i, name in enumerate(("a", "a", "b"), 1)))


# --- read ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if_none_match": 'W/"1"'}, 304),
        ({"if_none_match": '"1"'}, 304),
        ({"if_none_match": "1"}, 304),
        ({"if_none_match": 'W/"7", W/"1"'}, 304),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": 'W/"2"'}, 200),
        ({"if_none_match": "nonsense"}, 200),
        ({"if_modified_since": "Fri, 01 Jan 2100 00:00:00 GMT"}, 304),
        ({"if_modified_since": "Thu, 01 Jan 2026 00:00:00 GMT"}, 200),
        ({"if_modified_since": "last year"}, 200),
        ({"if_modified_since": "Fri, 01 Jan 99999 00:00:00 GMT"}, 200),
        ({"if_none_match": 'W/"2"', "if_modified_since": "Fri, 01 Jan 2100 00:00:00 GMT"}, 200),
    ],
)
@pytest.mark.parametrize("path", ["Patient/p", "Patient/p/_history/1"])
def test_a_read_is_answered_304_when_the_client_has_it(hub: Hub, headers: Any, status: int, path: str) -> None:
    stored(hub, PATIENT)
    answer = ask(hub, "GET", path, **headers)
    assert answer.status == status
    assert answer.headers["etag"] == 'W/"1"'
    assert bool(answer.body) == (status == 200)


def test_the_last_modified_of_an_answer_is_what_304_is_given_for(hub: Hub) -> None:
    stored(hub, PATIENT)
    told = ask(hub, "GET", "Patient/p").headers["last-modified"]
    assert ask(hub, "GET", "Patient/p", if_modified_since=told).status == 304


# --- gone, not found, not allowed ------------------------------------------------------------------------------------


def test_what_was_deleted_is_gone_and_what_never_was_is_not_found(hub: Hub) -> None:
    stored(hub, PATIENT)
    deleted = ask(hub, "DELETE", "Patient/p")
    assert (deleted.status, deleted.headers["etag"]) == (204, 'W/"2"')
    gone = ask(hub, "GET", "Patient/p")
    assert (gone.status, gone.issue["code"]) == (410, "deleted")
    assert ask(hub, "GET", "Patient/p/_history/2").status == 410
    assert ask(hub, "GET", "Patient/p/_history/1").status == 200
    assert ask(hub, "GET", "Patient/p/_history/9").status == 404
    assert ask(hub, "GET", "Patient/q").status == 404
    assert ask(hub, "DELETE", "Patient/p").status == 204
    assert ask(hub, "PATCH", "Patient/p", b"[]", content_type="application/json-patch+json").status == 410
    revived = ask(hub, "PUT", "Patient/p", PATIENT)
    assert (revived.status, revived.headers["etag"]) == (201, 'W/"3"')


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "metadata", "GET, HEAD"),
        ("PUT", "", "GET, HEAD, POST"),
        ("POST", "Patient/p", "DELETE, GET, HEAD, PATCH, PUT"),
        ("OPTIONS", "Patient", "DELETE, GET, HEAD, PATCH, POST, PUT"),
        ("GET", "Patient/_search", "POST"),
    ],
)
def test_a_method_that_is_not_offered_is_told_what_is(hub: Hub, method: str, path: str, allow: str) -> None:
    answer = ask(hub, method, path)
    assert (answer.status, answer.headers["allow"], answer.issue["code"]) == (405, allow, "not-supported")


# --- update ----------------------------------------------------------------------------------------------------------


def test_if_match_lets_only_the_known_version_be_replaced(hub: Hub) -> None:
    stored(hub, PATIENT)
    assert ask(hub, "PUT", "Patient/p", PATIENT | {"active": False}, if_match='W/"1"').status == 200
    for method, body in (("PUT", PATIENT), ("DELETE", None)):
        answer = ask(hub, method, "Patient/p", body, if_match='W/"1"')
        assert (answer.status, answer.issue["code"]) == (412, "conflict")
    for bad in ("*", "W/", '"\u0663"', "x" * 5000):
        assert ask(hub, "PUT", "Patient/p", PATIENT, if_match=bad).status == 400
    assert ask(hub, "DELETE", "Patient/p", if_match='W/"2"').status == 204


def test_if_none_match_of_a_write_asks_for_absence(hub: Hub) -> None:
    assert ask(hub, "PUT", "Patient/p", PATIENT, if_none_match="*").status == 201
    assert ask(hub, "PUT", "Patient/p", PATIENT, if_none_match="*").status == 412
    assert ask(hub, "PUT", "Patient/p", PATIENT, if_none_match='W/"1"').status == 400


def test_of_two_that_ask_for_absence_one_writes(hub: Hub) -> None:
    def write() -> int:
        return ask(hub, "PUT", "Patient/p", PATIENT, if_none_match="*").status

    assert sorted(results(at_once(write, write, write))) == [201, 412, 412]


def test_a_conditional_update_updates_one_creates_one_and_refuses_many(hub: Hub) -> None:
    three(hub)
    updated = ask(hub, "PUT", f"Organization?identifier={SYSTEM}|b", organization("b", active=True))
    assert (updated.status, updated.json()["id"], updated.headers["etag"]) == (200, "3", 'W/"2"')
    made = ask(hub, "PUT", f"Organization?identifier={SYSTEM}|c", organization("c"))
    assert made.status == 201
    assert made.headers["location"] == f"{BASE}/Organization/{made.json()['id']}/_history/1"
    assert ask(hub, "PUT", f"Organization?identifier={SYSTEM}|a", organization("a")).status == 412
    other = ask(hub, "PUT", f"Organization?identifier={SYSTEM}|b", organization("b", id="9"))
    assert (other.status, other.issue["code"]) == (412, "conflict")
    assert ask(hub, "PUT", f"Organization?identifier={SYSTEM}|b", organization("b"), if_match='W/"1"').status == 412


def test_a_conditional_create_finds_creates_or_refuses(hub: Hub) -> None:
    three(hub)
    found = ask(hub, "POST", "Organization", organization("b"), if_none_exist=f"identifier={SYSTEM}|b")
    assert (found.status, found.json()["id"]) == (200, "3")
    made = ask(hub, "POST", "Organization", organization("c"), if_none_exist=f"?identifier={SYSTEM}|c")
    assert made.status == 201
    assert ask(hub, "POST", "Organization", organization("a"), if_none_exist=f"identifier={SYSTEM}|a").status == 412


@pytest.mark.parametrize(
    "before", ["Organization?", "/Organization?", f"{BASE}/Organization?", "https://other.example/r4/Organization?"]
)
def test_a_condition_of_a_create_may_come_as_an_address(hub: Hub, before: str) -> None:
    three(hub)
    condition = f"{before}identifier={SYSTEM}|b"
    found = ask(hub, "POST", "Organization", organization("b"), if_none_exist=condition)
    assert (found.status, found.json()["id"]) == (200, "3")
    entry = {"resource": organization("b"), "request": {"method": "POST", "url": "Organization"}}
    entry["request"]["ifNoneExist"] = condition
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    assert ask(hub, "POST", "", bundle).entries[0]["response"]["status"].startswith("200")


def test_a_question_mark_within_a_condition_is_part_of_its_value(hub: Hub) -> None:
    strange = organization("b?c")
    first, again = (ask(hub, "POST", "Organization", strange, if_none_exist=f"identifier={SYSTEM}|b?c") for _ in "12")
    assert (first.status, again.status) == (201, 200)


@pytest.mark.parametrize("condition", ["?", "Organization?", "Patient?identifier=1", f"{BASE}/Patient?identifier=1"])
def test_a_create_whose_condition_says_nothing_or_is_about_another_type_is_refused(hub: Hub, condition: str) -> None:
    answer = ask(hub, "POST", "Organization", organization("b"), if_none_exist=condition)
    assert answer.status == 400 and "If-None-Exist" in answer.issue["diagnostics"]
    assert ask(hub, "GET", f"Organization?identifier={SYSTEM}|").entries == []


def test_a_create_with_a_search_in_its_address_is_refused_rather_than_made_again(hub: Hub) -> None:
    answer = ask(hub, "POST", f"Organization?identifier={SYSTEM}|b", organization("b"))
    assert answer.status == 400 and "If-None-Exist" in answer.issue["diagnostics"]
    assert ask(hub, "POST", "Organization?_format=json&_pretty=true", organization("b")).status == 201


def test_an_update_says_which_version_it_made(hub: Hub) -> None:
    stored(hub, PATIENT)
    for told in ("representation", "minimal"):
        answer = ask(hub, "PUT", "Patient/p", PATIENT | {"active": told == "minimal"}, prefer=f"return={told}")
        version = answer.headers["etag"][3:-1]
        assert answer.headers["content-location"] == f"{BASE}/Patient/p/_history/{version}"
        assert answer.status == 200 and "location" not in answer.headers


def test_at_once_a_condition_creates_one_resource(hub: Hub) -> None:
    def make() -> Answer:
        return ask(hub, "POST", "Organization", organization("z"), if_none_exist=f"identifier={SYSTEM}|z")

    made = results(at_once(*[make] * 4))
    assert sorted(answer.status for answer in made) == [200, 200, 200, 201]
    assert len({answer.json()["id"] for answer in made}) == 1


class Between:
    """A store, and its transactions: something is begun right after the first searches of the first of them, and waited
    for until it is done or waits for that transaction itself."""

    def __init__(self, store: Store | Tx, others: list[threading.Thread]) -> None:
        self._inner, self._others = store, others

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, caller: Caller, work: Callable[[Any], T]) -> T:
        assert isinstance(self._inner, Store)
        return self._inner.write(caller, lambda tx: work(Between(tx, self._others)))

    def searches(self, plans: list[Plan]) -> list[Page]:
        assert isinstance(self._inner, Tx)
        pages = self._inner.searches(plans)
        while self._others:
            other = self._others.pop()
            other.start()
            deadline, waiting = time.monotonic() + 10, "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while other.is_alive() and self._inner.view.db.rows(waiting) == [(0,)]:
                assert time.monotonic() < deadline
        return pages


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("form", ["alone", "in a transaction"])
@pytest.mark.parametrize("meanwhile", ["DELETE", "PUT"])
def test_what_a_conditional_create_finds_stays_as_it_was_found_until_it_is_told(
    open_url: Callable[..., Store], migrated_postgres: str, meanwhile: str, form: str
) -> None:
    hub = hub_on(open_url(migrated_postgres))
    three(hub)
    later: list[Answer] = []
    body = organization("no longer b", id="3") if meanwhile == "PUT" else None
    other = threading.Thread(target=lambda: later.append(ask(hub, meanwhile, "Organization/3", body)))
    between = dataclasses.replace(hub, store=Between(hub.store, [other]))  # type: ignore[arg-type]  # a stand-in
    condition = f"identifier={SYSTEM}|b"
    if form == "alone":
        found = ask(between, "POST", "Organization", organization("b"), if_none_exist=condition)
        assert (found.status, found.headers["etag"], found.json()["name"]) == (200, 'W/"1"', "b")
    else:
        request = {"method": "POST", "url": "Organization", "ifNoneExist": condition}
        entries = [{"resource": organization("b"), "request": request}]
        told = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        (entry,) = ask(between, "POST", "", told, prefer="return=representation").entries
        assert (entry["response"]["etag"], entry["resource"]["name"]) == ('W/"1"', "b")
    other.join(60)
    assert later[0].headers["etag"] == 'W/"2"', "the other came after it"


@pytest.mark.parametrize("condition", ["", "?", "?_format=json", "?colour=blue", "?_count=1", "?identifier="])
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_a_condition_that_says_nothing_is_refused(hub: Hub, method: str, condition: str) -> None:
    three(hub)
    body = {"PUT": organization("a"), "PATCH": b"[]", "DELETE": None}[method]
    kind = "application/json-patch+json" if method == "PATCH" else "application/fhir+json"
    answer = ask(hub, method, f"Organization{condition}", body, content_type=kind)
    assert answer.status == 400, answer.body
    assert len(ask(hub, "GET", f"Organization?identifier={SYSTEM}|").entries) == 3


# --- delete ----------------------------------------------------------------------------------------------------------


def test_a_conditional_delete_takes_one_and_refuses_many(hub: Hub) -> None:
    three(hub)
    assert ask(hub, "DELETE", f"Organization?identifier={SYSTEM}|nothing").status == 204
    assert ask(hub, "DELETE", f"Organization?identifier={SYSTEM}|b").status == 204
    assert ask(hub, "GET", "Organization/3").status == 410
    assert ask(hub, "DELETE", f"Organization?identifier={SYSTEM}|a").status == 412
    assert ask(hub, "GET", "Organization/1").status == 200


def test_the_setting_multiple_deletes_every_match(store: Store) -> None:
    hub = hub_on(store, conditional_delete="multiple")
    three(hub)
    assert ask(hub, "DELETE", f"Organization?identifier={SYSTEM}|a").status == 204
    assert [ask(hub, "GET", f"Organization/{key}").status for key in "123"] == [410, 410, 200]


def test_more_matches_than_one_request_may_delete_are_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fhir_server.targets.MOST_DELETED", 2)
    hub = hub_on(store, conditional_delete="multiple")
    stored(hub, *(organization("a", id=str(i)) for i in range(3)))
    answer = ask(hub, "DELETE", f"Organization?identifier={SYSTEM}|a")
    assert (answer.status, answer.issue["code"]) == (413, "too-costly")
    assert [ask(hub, "GET", f"Organization/{i}").status for i in range(3)] == [200, 200, 200]
    assert MOST_DELETED == 1000


# --- integrity and own addresses -------------------------------------------------------------------------------------


def test_references_to_nothing_are_kept_by_default(hub: Hub) -> None:
    assert ask(hub, "PUT", "Observation/o", OBSERVATION).status == 201


def test_with_integrity_references_lead_somewhere_and_what_is_used_stays(store: Store) -> None:
    hub = hub_on(store, referential_integrity=True)
    refused = ask(hub, "PUT", "Observation/o", OBSERVATION)
    assert (refused.status, refused.issue["expression"]) == (422, ["Observation.subject.reference"])
    stored(hub, PATIENT, OBSERVATION)
    in_use = ask(hub, "DELETE", "Patient/p")
    assert in_use.status == 409
    assert "Observation/o" in in_use.issue["diagnostics"]
    assert ask(hub, "DELETE", "Observation/o").status == 204
    assert ask(hub, "DELETE", "Patient/p").status == 204
    assert ask(hub, "PUT", "Observation/o", OBSERVATION).status == 422
    elsewhere = OBSERVATION | {"subject": {"reference": "http://other.example.org/fhir/Patient/p"}}
    assert ask(hub, "PUT", "Observation/o", elsewhere).status == 201


def test_with_integrity_one_transaction_may_bring_or_take_both_ends(store: Store) -> None:
    hub = hub_on(store, referential_integrity=True)
    entries = [{"resource": r, "request": {"method": "PUT", "url": f"{r['resourceType']}/{r['id']}"}}
               for r in (OBSERVATION, PATIENT)]  # fmt: skip
    assert ask(hub, "POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": entries}).status == 200
    gone = [{"request": {"method": "DELETE", "url": url}} for url in ("Patient/p", "Observation/o")]
    assert ask(hub, "POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": gone}).status == 200


def test_with_integrity_a_reference_and_a_delete_at_once_leave_no_broken_link(store: Store) -> None:
    hub = hub_on(store, referential_integrity=True)
    for turn in range(4):
        key = f"p{turn}"
        stored(hub, PATIENT | {"id": key})
        content = OBSERVATION | {"id": key, "subject": {"reference": f"Patient/{key}"}}
        deleted, written = results(
            at_once(
                lambda key=key: ask(hub, "DELETE", f"Patient/{key}").status,  # type: ignore[misc]  # a default has no type
                lambda content=content, key=key: ask(hub, "PUT", f"Observation/{key}", content).status,  # type: ignore[misc]  # a default has no type
            )
        )
        assert (deleted, written) in ((204, 422), (409, 201))


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (f"{BASE}/Patient/p", "Patient/p"),
        (f"{BASE}/Patient/p/_history/2", "Patient/p/_history/2"),
        ("https://hub.example.org/fhir/Patient/p", "Patient/p"),
        ("http://alias.example.org/r4/Patient/p", "Patient/p"),
        ("http://alias.example.org/r4x/Patient/p", "http://alias.example.org/r4x/Patient/p"),
        (f"{BASE}/Patient?name=x", f"{BASE}/Patient?name=x"),
        ("http://elsewhere.example.org/Patient/p", "http://elsewhere.example.org/Patient/p"),
    ],
)
def test_absolute_references_to_this_server_become_relative(store: Store, sent: str, kept: str) -> None:
    hub = hub_on(
        store,
        public_url="https://hub.example.org/fhir/",
        base_aliases="http://alias.example.org/r4/, http://b.example.org",
    )
    answer = ask(hub, "PUT", "Observation/o", OBSERVATION | {"subject": {"reference": sent}})
    assert answer.json()["subject"]["reference"] == kept


@pytest.mark.parametrize("name", ["", f"{BASE}/", "https://hub.example.org/fhir/", "http://alias.example.org/r4/"])
def test_a_condition_knows_each_of_our_names(store: Store, name: str) -> None:
    hub = hub_on(store, public_url="https://hub.example.org/fhir", base_aliases="http://alias.example.org/r4")
    stored(hub, PATIENT, OBSERVATION)
    condition = f"subject={name}Patient/p"
    new = {key: value for key, value in OBSERVATION.items() if key != "id"}
    answer = ask(hub, "POST", "Observation", new, if_none_exist=condition)
    assert (answer.status, answer.json()["id"]) == (200, "o")
    assert ask(hub, "PUT", f"Observation?{condition}", new).status == 200
    assert ask(hub, "DELETE", f"Observation?{condition}").status == 204
    assert ask(hub, "GET", "Observation/o").status == 410


def test_a_condition_finds_what_was_stored_before_its_base_was_ours(store: Store) -> None:
    old = "https://old.example.org/fhir"
    before = hub_on(store, public_url="https://hub.example.org/fhir")
    stored(before, PATIENT, OBSERVATION | {"subject": {"reference": f"{old}/Patient/p"}})
    after = hub_on(store, public_url="https://hub.example.org/fhir", base_aliases=old)
    new = {key: value for key, value in OBSERVATION.items() if key != "id"}
    answer = ask(after, "POST", "Observation", new, if_none_exist=f"subject={old}/Patient/p")
    assert (answer.status, answer.json()["id"]) == (200, "o")


def test_a_condition_has_one_lock_whichever_of_our_names_it_is_spelled_with(store: Store) -> None:
    hub = hub_on(store, public_url="https://hub.example.org/fhir", base_aliases="http://alias.example.org/r4")
    bases = ("https://hub.example.org/fhir", "http://alias.example.org/r4")

    def locks(condition: str) -> set[str]:
        with store.read(PARTNER) as snapshot:
            pending = Pending(snapshot, hub.sites)
            pending.view.bases = bases
            pending.matching("Observation", condition)
            return pending.locks

    (plain,) = locks("status=final&subject=Patient/p,Patient/q")
    for base in bases:
        assert locks(f"subject={base}/Patient/p,{base}/Patient/q/_history/2&status=final") == {plain}
    for other in ("https://other.example.org/fhir/Patient/p", "https://hub.example.org/fhirs/Patient/p", "Patient/q"):
        assert locks(f"status=final&subject={other},Patient/q") != {plain}, other


def test_a_condition_that_is_no_utf_8_is_refused(hub: Hub) -> None:
    stored(hub, PATIENT)
    new = {key: value for key, value in PATIENT.items() if key != "id"}
    answer = ask(hub, "POST", "Patient", new, if_none_exist="given=L%E9a")
    assert answer.status == 400 and "UTF-8" in answer.issue["diagnostics"]
