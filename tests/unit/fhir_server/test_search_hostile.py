"""Searches meant to hurt: answered in bounded time, or refused as too costly; never a failure of the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from operator import methodcaller

import pytest
from hubs import hub_on
from rest_calls import ask

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import index, query
from fhir_server.store.engine import Store

UCUM = "http://unitsofmeasure.org"


def put(store: Store) -> None:
    """Forty patients in a ring of links, each with an observation."""
    for n in range(40):
        for one in (
            {
                "resourceType": "Patient",
                "id": f"p{n}",
                "link": [{"other": {"reference": f"Patient/p{(n + 1) % 40}"}, "type": "seealso"}],
            },
            {
                "resourceType": "Observation",
                "id": f"o{n}",
                "subject": {"reference": f"Patient/p{n}"},
                "hasMember": [{"reference": f"Observation/o{(n + 1) % 40}"}],
            },
        ):
            store.write(SYSTEM, methodcaller("create", one, index.rows(one)))


def found(store: Store, kind: str, *pairs: tuple[str, str]) -> int:
    began = time.monotonic()
    with store.read(SYSTEM) as snapshot:
        count = len(snapshot.search(query.parse(kind, pairs)).matches)
    assert time.monotonic() - began < 60
    return count


def thousand(text: str) -> str:
    return ",".join(text.format(n=n) for n in range(1000))


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("Patient", "name", "a{n}"),
        ("Patient", "name:exact", "a{n}"),
        ("Patient", "name:contains", "a{n}"),
        ("Patient", "identifier", "urn:{n}|{n}"),
        ("Patient", "identifier:not", "urn:{n}|{n}"),
        ("Patient", "birthdate", "ne{n:04}"),
        ("RiskAssessment", "probability", "ge0.{n}"),
        ("Observation", "subject", "Patient/x{n}"),
        ("Observation", "subject:identifier", "urn:x|{n}"),
        ("ValueSet", "url", "http://x/{n}"),
        ("ValueSet", "url:below", "http://x/{n}"),
        ("ValueSet", "url:above", "http://x/{n}"),
        ("Observation", "subject:Patient.name", "a{n}"),
        ("Patient", "_has:Observation:subject:code", "a{n}"),
        ("Patient", "_id", "x{n}"),
        ("Patient", "_list", "x{n}"),
    ],
)
def test_a_thousand_alternatives_are_answered(store: Store, kind: str, name: str, text: str) -> None:
    asked = thousand(text) if "{n:" not in text else ",".join(text.format(n=n) for n in range(1, 1001))
    assert found(store, kind, (name, asked)) == 0


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("Observation", "value-quantity", "ge{n}||mg"),
        ("Observation", "combo-code-value-quantity", "c{n}$ge{n}||mg"),
        ("Location", "near", "1|1|{n}|km"),
    ],
)
def test_costly_values_are_answered_by_the_hundred(store: Store, kind: str, name: str, text: str) -> None:
    assert found(store, kind, (name, ",".join(text.format(n=n) for n in range(150)))) == 0
    with pytest.raises(errors.TooLarge, match="too many values"):
        query.parse(kind, [(name, thousand(text))])


def test_a_search_that_takes_too_long_is_stopped_and_says_so(open_at: Callable[..., Store]) -> None:
    people = [
        {"resourceType": "Patient", "id": f"p{n}", "name": [{"family": f"{n:06}" * 40, "given": [f"g{n}" * 40] * 3}]}
        for n in range(3000)
    ]
    made = [(one, index.rows(one)) for one in people]
    open_at().write(SYSTEM, lambda tx: [tx.create(one, rows) for one, rows in made])
    hub = hub_on(open_at(statement_seconds=0.1))
    slow = f"Patient?name:contains={thousand('zz{n}')}"
    began = time.monotonic()
    for _ in range(2):
        answer = ask(hub, "GET", slow)
        assert (answer.status, answer.issue["code"]) == (503, "timeout"), answer.body[:300]
    assert time.monotonic() - began < 60
    assert ask(hub, "GET", "Patient?_id=p7").json()["entry"][0]["resource"]["id"] == "p7"


def test_a_search_beyond_its_limits_is_refused_over_http(store: Store) -> None:
    hub = hub_on(store)
    nested = "(" * 21 + "code eq a" + ")" * 21
    deep = "_has:Patient:link:" * 21 + "_id=p3"
    many = ",".join(f"{n}||mg" for n in range(1000))
    for url in (
        f"Patient?{deep}",
        f"Observation?value-quantity={many}",
        f"Observation?_filter={nested}",
        f"Observation?{'&'.join(['code=a'] * 201)}",
    ):
        answer = ask(hub, "GET", url)
        assert (answer.status, answer.issue["code"]) == (413, "too-costly"), answer.body[:300]


def test_contained_resources_that_refer_to_one_another_cost_little(store: Store) -> None:
    """A thousand in one resource, each referring to the next two, and twenty steps through them."""
    held = [
        {
            "resourceType": "Patient",
            "id": f"c{n}",
            "link": [{"other": {"reference": f"#c{(n + step) % 1000}"}, "type": "seealso"} for step in (1, 2)],
        }
        for n in range(1000)
    ]
    one = {"resourceType": "Patient", "id": "p", "contained": held, "link": [{"other": {"reference": "#c0"}}]}
    store.write(SYSTEM, lambda tx: tx.create(one, index.rows(one)))
    assert found(store, "Patient", ("link:Patient." * 20 + "_id", "c30")) == 1
    assert found(store, "Patient", ("link:Patient." * 20 + "_id", "c60")) == 0
    assert found(store, "Patient", ("link:Patient." * 20 + "gender:missing", "true")) == 1


def test_brackets_that_lead_into_contained_resources_cost_little(store: Store) -> None:
    parts = [
        {"resourceType": "Organization", "id": f"c{n}", "partOf": {"reference": f"#c{(n + 1) % 50}"}} for n in range(50)
    ]
    one = {"resourceType": "Organization", "id": "o", "contained": parts, "partOf": {"reference": "#c0"}}
    store.write(SYSTEM, lambda tx: tx.create(one, index.rows(one)))
    nested = "partof[_id eq c9 or " * 5 + "_id eq c4" + "].name pr false" * 5
    assert found(store, "Organization", ("_filter", nested)) == 1
    nested = "partof[_id eq c9 or " * 19 + "_id eq c5" + "].name pr false" * 19
    with pytest.raises(errors.TooLarge, match="contained"):
        found(store, "Organization", ("_filter", nested))


def test_more_values_than_a_statement_takes_are_refused() -> None:
    for pairs in (
        [("value-quantity", ",".join(f"{n}||mg" for n in range(1001)))],
        [("value-quantity", thousand("{n}||mg"))] * 3,
        [("subject:Patient.name", thousand("a{n}"))] * 3,
    ):
        with pytest.raises(errors.TooLarge):
            query.parse("Observation", pairs)


def test_addresses_that_lie_under_too_many_are_refused(store: Store) -> None:
    deep = ",".join(f"http://x/{n}/" + "/".join("abcdefghij") for n in range(1000))
    with pytest.raises(errors.TooLarge, match="ask for fewer"):
        found(store, "ValueSet", ("url:above", deep))


def test_long_chains_are_followed_twenty_times_and_no_further(store: Store) -> None:
    put(store)
    assert found(store, "Patient", ("link:Patient." * 20 + "_id", "p3")) == 1
    assert found(store, "Patient", ("link:Patient." * 20 + "gender:missing", "true")) == 40
    assert found(store, "Observation", ("has-member:Observation." * 20 + "_id", "o3,o5")) == 2
    assert found(store, "Patient", ("_has:Patient:link:" * 20 + "_id", "p3")) == 1
    nested = "_has:Observation:patient:" + "_has:Observation:has-member:" * 18 + "_id"
    assert found(store, "Patient", (nested, "o3")) == 1
    for name in ("link:Patient." * 21 + "_id", "_has:Patient:link:" * 21 + "_id", "link:Patient." * 5000 + "_id"):
        with pytest.raises(errors.TooLarge) as caught:
            query.parse("Patient", [(name, "p3")])
        assert caught.value.issues[0].code == "too-costly"


def test_huge_counts_and_wildcards_are_cut(store: Store) -> None:
    put(store)
    for most in ("999999999", "99999999999999999999", "9" * 5_000):
        assert found(store, "Patient", ("_count", most)) == 40
    plan = query.parse("Observation", [("_include:iterate", "*"), ("_revinclude", "Observation:*"), ("_count", "5")])
    with store.read(SYSTEM) as snapshot:
        page = snapshot.search(plan)
    assert len(page.matches) == 5 and len(page.includes) <= 2000


def test_sorting_follows_references_and_only_a_few(store: Store) -> None:
    put(store)
    with store.read(SYSTEM) as snapshot:
        plan = query.parse("Observation", [("_sort", "-subject:Patient._id"), ("_count", "3")])
        assert [one.id for one in snapshot.search(plan).matches] == ["o9", "o8", "o7"]
        plan = query.parse("Observation", [("_sort", "patient.link:Patient._id"), ("_count", "3")])
        assert [one.id for one in snapshot.search(plan).matches] == ["o39", "o0", "o9"]
    with pytest.raises(errors.TooLarge):
        query.parse("Patient", [("_sort", "link:Patient." * 4 + "_id")])
    with pytest.raises(errors.Invalid, match="say which type"):
        query.parse("Observation", [("_sort", "subject._id")])


def test_an_estimate_counts_few_matches_exactly(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)
    plan = query.parse("Patient", [("_total", "estimate"), ("_count", "0")])
    with store.read(SYSTEM) as snapshot:
        assert snapshot.search(plan).total == 40
        monkeypatch.setattr("fhir_server.store.query.ESTIMATED", 10)
        estimated = snapshot.search(plan).total
    assert estimated is not None and estimated > 10


def test_the_items_of_a_list_are_found(store: Store) -> None:
    put(store)
    one = {
        "resourceType": "List",
        "id": "l",
        "entry": [{"item": {"reference": "Patient/p1"}}, {"item": {"reference": "Observation/o2"}}],
    }
    store.write(SYSTEM, lambda tx: tx.create(one, index.rows(one)))
    assert found(store, "Patient", ("_list", "l")) == 1
    assert found(store, "Observation", ("_list", "List/l,other")) == 1
    with pytest.raises(errors.Invalid, match="functional lists"):
        query.parse("Patient", [("_list", "$current-problems")])
