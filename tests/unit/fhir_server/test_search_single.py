"""Searches in a single statement: what the statement takes for granted it asks itself, and pages keep their promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fhir_server.context import SYSTEM, Caller, now
from fhir_server.search import index, query
from fhir_server.search.plan import Plan
from fhir_server.search.rows import IndexRows
from fhir_server.store import ordered, recent, sizes
from fhir_server.store.engine import Store
from fhir_server.store.postgres import PostgresDatabase
from fhir_server.store.query import Page, alone, is_single
from fhir_server.store.sizes import Sizes
from fhir_server.store.view import View

Resource = dict[str, Any]
Opened = Callable[..., Store]
NURSE = Caller("nurse", "Nurse", frozenset(), frozenset(("HealthcareService/here",)), everything=False)


def put(store: Store, one: Resource, scope: str = "HealthcareService/here") -> None:
    rows = index.rows(one)
    rows.scopes = [("organisation", scope)]
    store.write(SYSTEM, lambda tx: tx.create(one, rows))


def patient(key: str, name: str, **more: Any) -> Resource:
    return {"resourceType": "Patient", "id": key, "name": [{"family": name}], **more}


def observation(key: str, subject: str, code: str, day: int, **more: Any) -> Resource:
    coded = {"coding": [{"system": "urn:c", "code": code}]}
    found: Resource = {"resourceType": "Observation", "id": key, "status": "final", "code": coded}
    return found | {"subject": {"reference": subject}, "effectiveDateTime": f"2026-03-{day:02}", **more}


def stock(store: Store) -> None:
    put(store, {"resourceType": "Practitioner", "id": "d", "name": [{"family": "Legrand"}]})
    put(store, patient("p1", "Kerbrat", generalPractitioner=[{"reference": "Practitioner/d"}]))
    put(store, patient("p2", "Kerbrat"), "HealthcareService/there")
    put(store, patient("p3", "Durand"))
    for n in range(12):
        put(store, observation(f"o{n:02}", f"Patient/p{n % 3 + 1}", "ab"[n % 2], n + 1))


def plan_of(kind: str, text: str, **more: Any) -> Plan:
    pairs = [(name, value) for name, _, value in (part.partition("=") for part in text.split("&")) if name]
    return replace(query.parse(kind, pairs), **more)


def ids(page: Page | None) -> list[str]:
    assert page is not None
    return [one.id for one in page.matches]


def in_one(url: str, store: Store, plan: Plan, caller: Caller = SYSTEM, learned: Sizes | None = None) -> Page | None:
    """The page outside a transaction; None where several statements are needed."""
    database = PostgresDatabase(url, connections=1)
    try:
        with database.once() as session:
            return alone(View(session, caller, store.blobs, now, learned or Sizes()), plan)
    finally:
        database.close()


SINGLE = [
    ("Observation", "subject:Patient.family=kerbrat&code=a"),
    ("Observation", "subject.name=kerbrat"),
    ("Observation", "subject:Patient.general-practitioner:Practitioner.family=legrand"),
    ("Observation", "subject:Patient.family=nobody"),
    ("Observation", "subject:Patient.family=kerbrat&_count=0"),
    ("Observation", "subject:Patient.family=kerbrat&_sort=-date&_count=3"),
    ("Observation", "_filter=patient[family sw ker].active pr false"),
    ("Observation", "subject=Patient/p1&code=a"),
    ("Observation", "code=a&_sort=-date"),
    ("Observation", "code=a&_sort=subject:Patient.family,-date"),
    ("Patient", "_has:Observation:subject:code=a&family=ker"),
    ("Patient", "_has:Observation:subject:subject:Patient.family=ker"),
]


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("caller", [SYSTEM, NURSE], ids=["all", "some"])
def test_one_statement_answers_what_several_do(migrated_postgres: str, open_url: Opened, caller: Caller) -> None:
    store = open_url(migrated_postgres)
    stock(store)
    for kind, text in SINGLE:
        plan = plan_of(kind, text)
        assert is_single(plan), text
        with store.read(caller) as snapshot:
            expected = snapshot.search(plan)
        found = in_one(migrated_postgres, store, plan, caller)
        assert found is not None, text
        assert (ids(found), found.total) == (ids(expected), expected.total), text
        assert (found.next is None) == (expected.next is None), text
        while found.next is not None:
            found = in_one(migrated_postgres, store, replace(plan, after=found.next), caller)
            assert expected.next is not None and found is not None
            with store.read(caller) as snapshot:
                expected = snapshot.search(replace(plan, after=expected.next))
            assert ids(found) == ids(expected), text


@pytest.mark.needs("postgresql")
def test_a_chain_that_may_lead_inside_is_asked_in_a_transaction(migrated_postgres: str, open_url: Opened) -> None:
    store = open_url(migrated_postgres)
    stock(store)
    chain = plan_of("Observation", "subject:Patient.family=ker")
    other = plan_of("Observation", "performer:Practitioner.family=leg")
    anywhere = plan_of("Observation", "focus._id=p9")
    learned = Sizes()
    assert len(ids(in_one(migrated_postgres, store, chain, learned=learned))) == 8
    held = observation("held", "#p", "a", 20, contained=[patient("p", "Kerbrat")])
    put(store, held)
    for asked in (chain, replace(chain, count=0), plan_of("Observation", "subject:Patient.family=nobody"), anywhere):
        assert in_one(migrated_postgres, store, asked, learned=learned) is None
    assert "held" in ids(store.search(SYSTEM, chain))
    assert store.search(SYSTEM, replace(chain, count=0)).total == 9
    assert ids(in_one(migrated_postgres, store, other)) == []
    put(store, observation("doctor", "Patient/p1", "a", 21, performer=[{"reference": "Practitioner/d"}]))
    assert ids(in_one(migrated_postgres, store, other)) == ["doctor"]


@pytest.mark.needs("postgresql")
def test_that_something_is_inside_is_remembered_for_a_minute(migrated_postgres: str, open_url: Opened) -> None:
    store, at = open_url(migrated_postgres), [100.0]
    stock(store)
    put(store, observation("held", "#p", "a", 20, contained=[patient("p", "Kerbrat")]))
    chain, learned = plan_of("Observation", "subject:Patient.family=ker"), Sizes(lambda: at[0])
    assert in_one(migrated_postgres, store, chain, learned=learned) is None
    store.write(SYSTEM, lambda tx: tx.delete("Observation", "held"))
    assert in_one(migrated_postgres, store, chain, learned=learned) is None
    at[0] += sizes.SECONDS
    assert len(ids(in_one(migrated_postgres, store, chain, learned=learned))) == 8


@pytest.mark.needs("postgresql")
def test_a_page_of_an_index_is_one_statement_unless_it_ends(
    migrated_postgres: str, open_url: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered, "WALKED_FROM", 0)
    store = open_url(migrated_postgres)
    stock(store)
    plan = plan_of("Observation", "code=a&_sort=-date", count=4)
    first = in_one(migrated_postgres, store, plan)
    assert first is not None and first.next is not None and len(first.next) > 3
    put(store, observation("late", "Patient/p1", "a", 1))
    assert in_one(migrated_postgres, store, replace(plan, after=first.next)) is None, "what has no date follows"
    second = store.search(SYSTEM, replace(plan, after=first.next))
    assert [*ids(first), *ids(second)] == ["o10", "o08", "o06", "o04", "o02", "o00"]


@pytest.mark.parametrize("sort", ["", "&_sort=_lastUpdated", "&_sort=-_lastUpdated"])
@pytest.mark.parametrize("text", ["code=a", "status=final", "subject=Patient/p1", "code=urn:c|b", "code=z"])
def test_the_newest_of_many_are_those_of_all(
    store: Store, monkeypatch: pytest.MonkeyPatch, text: str, sort: str
) -> None:
    stock(store)
    store.write(SYSTEM, lambda tx: tx.update(observation("o00", "Patient/p1", "a", 9), IndexRows()))
    store.write(SYSTEM, lambda tx: tx.delete("Observation", "o06"))
    for caller in (SYSTEM, NURSE):
        found: list[list[str]] = []
        for many, looked_at, count in ((1_000, 1, 2), (0, 3, 1), (0, 7, 3), (0, 100, 4)):
            monkeypatch.setattr(recent, "MANY", many)
            monkeypatch.setattr(recent, "LOOKED_AT", looked_at)
            plan, seen = plan_of("Observation", text + sort, count=count), list[str]()
            while True:
                page = store.search(caller, plan)
                seen += ids(page)
                if page.next is None:
                    break
                plan = replace(plan, after=page.next)
            found.append(seen)
        assert all(one == found[0] for one in found[1:])
        assert len(found[0]) == len(set(found[0])) and bool(found[0]) == (text != "code=z")


@pytest.mark.needs("postgresql")
def test_only_what_holds_for_many_is_looked_for_among_the_newest(
    migrated_postgres: str, open_url: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_url(migrated_postgres)
    stock(store)

    def told(text: str) -> bool:
        plan = plan_of("Observation", text, count=2)
        store.search(SYSTEM, plan)  # which learns
        with store.read(SYSTEM) as snapshot:
            return "SELECT r.* FROM" in snapshot.explain(plan).sql

    assert not told("code=a")
    monkeypatch.setattr(recent, "MANY", 5)
    assert told("code=a") and told("status=final&_sort=_lastUpdated")
    for other in ("subject=Patient/p1", "code:not=a", "code=a&status=final", "code=a&_sort=_id", "code:missing=true"):
        assert not told(other), other


@pytest.mark.needs("postgresql")
def test_a_rare_condition_is_started_from_beside_a_code_of_many(
    migrated_postgres: str, open_url: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MANY", 5)
    store = open_url(migrated_postgres)
    stock(store)

    def sets(text: str) -> int:
        with store.read(SYSTEM) as snapshot:
            return snapshot.explain(plan_of("Observation", text)).sql.count("r.rid IN (SELECT")

    assert sets("subject=Patient/p1&status=final&code=a") == 1
    assert sets("status=final&code=a") == 2, "both have many"
    assert sets("subject=Patient/p1&code=z") == 2, "both have few"
    assert sets("encounter:missing=false&code=a") == 1, "what is there at all is no set"
    assert sets("code=a&" * 8 + "subject=Patient/p1") == 8, "the ninth is asked row by row"
    both = "code=a&subject=Patient/p1"
    for text in ("subject=Patient/p1&code=a", f"{both}&_sort=-date", f"{both}&_count=0"):
        rare = store.search(SYSTEM, plan_of("Observation", text))
        monkeypatch.setattr(recent, "MANY", 1_000)
        usual = store.search(SYSTEM, plan_of("Observation", text))
        monkeypatch.setattr(recent, "MANY", 5)
        assert (ids(rare), rare.total) == (ids(usual), usual.total) and (rare.total == 2 or len(ids(rare)) == 2)


def test_what_was_learned_is_forgotten_in_time_and_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [5.0]
    learned = Sizes(lambda: at[0])
    assert learned.get("a") is None
    assert learned.keep("a", True) and not learned.keep(("b", (1,)), False)
    assert (learned.get("a"), learned.get(("b", (1,)))) == (True, False)
    at[0] += sizes.SECONDS
    assert learned.get("a") is None
    monkeypatch.setattr(sizes, "MOST", 10)
    for n in range(100):
        learned.keep(n, True)
        assert len(learned.known) <= 10 and learned.get(n)


@pytest.mark.needs("postgresql")
def test_no_statement_is_compiled(migrated_postgres: str, open_url: Opened) -> None:
    with open_url(migrated_postgres).read(SYSTEM) as snapshot:
        assert snapshot.view.db.one("SHOW jit") == ("off",)
