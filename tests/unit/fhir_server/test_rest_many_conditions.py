"""Conditions of one Bundle are looked up together: a few statements for all, each answered as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hubs import hub_on
from rest_calls import Answer, Resource, ask

from fhir_server.changes import Hub, plan_of
from fhir_server.context import SYSTEM, Caller
from fhir_server.search import query
from fhir_server.search.plan import Plan
from fhir_server.security import scopes
from fhir_server.store import apiece
from fhir_server.store.engine import Store
from fhir_server.store.postgres import PostgresSession
from fhir_server.store.sqlite import SqliteSession

OID = "urn:oid:1.2.250.1.999.7"
MANY = 240
Entry = dict[str, Any]


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every statement that reads, on either database."""
    statements: list[str] = []
    for session in (SqliteSession, PostgresSession):
        for name in ("rows", "one"):
            real = getattr(session, name)

            def listening(self: Any, sql: str, params: Any = (), *, real: Any = real) -> Any:
                statements.append(sql)
                return real(self, sql, params)

            monkeypatch.setattr(session, name, listening)
    yield statements


def searches(asked: list[str]) -> int:
    """How many of the statements look resources up; numbering and index rows to write are asked otherwise."""
    return sum("resource r" in sql or "FROM idx_token x WHERE" in sql for sql in asked)


def organization(number: int, **more: Any) -> Resource:
    return {"resourceType": "Organization", "identifier": [{"system": OID, "value": str(number)}], "name": "A"} | more


def patient(number: int) -> Resource:
    return {
        "resourceType": "Patient",
        "identifier": [{"system": OID, "value": str(number)}],
        "name": [{"family": "Martin", "given": ["Léa"]}],
        "birthDate": "1990-05-17",
    }


def updating(number: int) -> Entry:
    url = f"Organization?identifier={OID}|{number}"
    return {"resource": organization(number), "request": {"method": "PUT", "url": url}}


def creating(number: int) -> Entry:
    request = {"method": "POST", "url": "Organization", "ifNoneExist": f"identifier={OID}|{number}"}
    return {"resource": organization(number), "request": request}


def creating_people(number: int) -> Entry:
    request = {"method": "POST", "url": "Patient", "ifNoneExist": f"identifier={OID}|{number}"}
    return {"resource": patient(number), "request": request}


def observation(reference: str) -> Entry:
    resource = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "poids"},
        "performer": [{"reference": reference}],
    }
    return {"resource": resource, "request": {"method": "POST", "url": "Observation"}}


def referring(number: int) -> Entry:
    return observation(f"Organization?identifier={OID}|{number}")


def referring_to_people(number: int) -> Entry:
    return observation(f"Patient?identifier={OID}|{number}")


def send(hub: Hub, entries: list[Entry], *, prefer: str = "return=minimal") -> Answer:
    return ask(hub, "POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": entries}, prefer=prefer)


def statuses(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body[:500]
    return [one["response"]["status"][:3] for one in answer.entries]


def ids(hub: Hub, kind: str) -> dict[str, str]:
    """`Type/id` of what is stored, by the value of its identifier."""
    held = ask(hub, "GET", f"{kind}?identifier={OID}|&_count=1000").entries
    return {one["resource"]["identifier"][0]["value"]: f"{kind}/{one['resource']['id']}" for one in held}


@pytest.mark.parametrize("made", [updating, creating, creating_people])
def test_what_a_condition_costs_is_a_fraction_of_a_statement(
    hub: Hub, asked: list[str], made: Callable[[int], Entry]
) -> None:
    entries = [made(number) for number in range(MANY)]
    for status in ("201", "200"):
        asked.clear()
        assert statuses(send(hub, entries)) == [status] * MANY
        assert 0 < searches(asked) <= 12


@pytest.mark.parametrize(("held", "made"), [(creating, referring), (creating_people, referring_to_people)])
def test_what_a_conditional_reference_costs_is_a_fraction_of_a_statement(
    hub: Hub, asked: list[str], held: Callable[[int], Entry], made: Callable[[int], Entry]
) -> None:
    assert statuses(send(hub, [held(number) for number in range(MANY)])) == ["201"] * MANY
    asked.clear()
    answer = send(hub, [made(number) for number in range(MANY)], prefer="return=representation")
    assert statuses(answer) == ["201"] * MANY
    assert 0 < searches(asked) <= 12
    wanted = ids(hub, "Patient" if held is creating_people else "Organization")
    got = [one["resource"]["performer"][0]["reference"] for one in answer.entries]
    assert got == [wanted[str(number)] for number in range(MANY)]


def test_each_condition_gets_its_own_answer(hub: Hub) -> None:
    """Some find one, some nothing, one finds two: that one is refused, at its place, and nothing is written."""
    assert statuses(send(hub, [creating(number) for number in range(0, 40, 2)])) == ["201"] * 20
    before = ids(hub, "Organization")
    assert ask(hub, "POST", "Organization", organization(6)).status == 201
    refused = send(hub, [updating(number) for number in range(40)])
    assert (refused.status, refused.issue["expression"]) == (412, ["Bundle.entry[6].resource"])
    answer = send(hub, [updating(number) for number in range(40) if number != 6])
    assert statuses(answer) == ["201" if number % 2 else "200" for number in range(40) if number != 6]
    where = [one["response"]["location"].partition("/_history")[0] for one in answer.entries]
    after = {str(number): at for number, at in zip((n for n in range(40) if n != 6), where, strict=True)}
    assert {value: at for value, at in after.items() if int(value) % 2 == 0} == {
        value: at for value, at in before.items() if value != "6"
    }


def test_what_cannot_be_asked_is_refused_where_it_stands(hub: Hub) -> None:
    assert statuses(send(hub, [creating(number) for number in range(3)])) == ["201"] * 3
    wrong = [observation("Organization?nonsense=1"), observation("Nothing?identifier=x|1")]
    for one in wrong:
        refused = send(hub, [referring(0), referring(1), one])
        assert refused.status == 422
        assert refused.issue["expression"] == ["Bundle.entry[2].resource.performer[0].reference"]
    assert ids(hub, "Observation") == {}


def test_what_a_transaction_deletes_is_there_no_more_for_its_conditions(hub: Hub) -> None:
    assert statuses(send(hub, [creating(number) for number in range(3)])) == ["201"] * 3
    gone = {"request": {"method": "DELETE", "url": f"Organization?identifier={OID}|1"}}
    assert statuses(send(hub, [creating(0), creating(1), creating(2), gone])) == ["200", "201", "200", "204"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The type of every search text that is read to a plan."""
    types: list[str] = []
    real = query.parse

    def listening(resource_type: str, *args: Any, **more: Any) -> Plan:
        types.append(resource_type)
        return real(resource_type, *args, **more)

    monkeypatch.setattr(query, "parse", listening)
    return types


def group(numbers: range) -> Entry:
    members = [{"entity": {"reference": f"Patient?identifier={OID}|{number}"}} for number in numbers]
    resource = {"resourceType": "Group", "type": "person", "actual": True, "member": members}
    return {"resource": resource, "request": {"method": "POST", "url": "Group"}}


@pytest.mark.parametrize(("before", "blocks"), [(1, 1), (250, 2)])
def test_a_refusal_costs_what_stands_before_it_however_much_stands_behind(
    hub: Hub, asked: list[str], read: list[str], before: int, blocks: int
) -> None:
    """`before` conditional references find somebody, the next one nobody; those behind it are not even read."""
    assert statuses(send(hub, [creating_people(number) for number in range(before)])) == ["201"] * before
    asked.clear()
    read.clear()
    refused = send(hub, [creating(0), group(range(1_500))])
    assert refused.status == 422
    assert refused.issue["expression"] == [f"Bundle.entry[1].resource.member[{before}].entity.reference"]
    assert before < len(read) <= blocks * apiece.AT_ONCE + 10
    assert searches(asked) <= 6


def test_what_its_condition_refuses_reads_no_reference(hub: Hub, read: list[str]) -> None:
    for _ in range(2):
        assert ask(hub, "POST", "Organization", organization(0)).status == 201
    read.clear()
    assert send(hub, [creating(0), group(range(1_500))]).status == 412
    assert 0 < len(read) <= 10


def test_nothing_is_read_or_asked_ahead_that_the_caller_may_not_search(hub: Hub, read: list[str]) -> None:
    assert statuses(send(hub, [creating(number) for number in range(4)])) == ["201"] * 4
    rights = scopes.rights(["user/Organization.cruds", "user/Observation.cruds"])
    caller = Caller("", "x", frozenset({"partner"}), channel="http", rights=rights)
    entries = [one for number in range(4) for one in (referring(number), referring_to_people(number))]
    read.clear()
    body = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    refused = ask(hub, "POST", "", body, caller=caller)
    assert (refused.status, refused.issue["expression"]) == (403, ["Bundle.entry[1].resource.performer[0].reference"])
    assert read and set(read) == {"Organization"}


QUERIES = [
    f"identifier={OID}|1", f"identifier={OID}|2", "identifier=3", "identifier=|4", f"identifier={OID}|1,{OID}|5",
    f"identifier={OID}|1&active=true", f"identifier={OID}|2&active=true", f"identifier={OID}|2&name=B",
    f"identifier={OID}|1&name=A", f"identifier={OID}|", "identifier=nobody", f"identifier={OID}|1&active:not=true",
    f"identifier={OID}|7&active:not=true", "name=A", f"identifier:not={OID}|1", "identifier=LÉa", "identifier=léa",
    f"identifier={OID}|1&partof.name=A", f"identifier={OID}|2&partof.name=A", "active=true", "active=false", "_id=o1",
]  # fmt: skip


def stocked(hub: Hub) -> None:
    kinds: list[Resource] = [
        organization(number, id=f"o{number}", active=number % 2 == 0, name="AB"[number % 2]) for number in range(9)
    ]
    kinds += [organization(1, id="twin", identifier=[{"system": OID, "value": str(n)} for n in (1, 5)])]
    kinds += [organization(4, id="bare", identifier=[{"value": "4"}, {"value": "Léa"}])]
    kinds += [organization(2, id="inside", contained=[{"resourceType": "Organization", "id": "x", "name": "A"}])]
    entries = [{"resource": one, "request": {"method": "PUT", "url": f"Organization/{one['id']}"}} for one in kinds]
    assert statuses(send(hub, entries)) == ["201"] * len(kinds)
    assert ask(hub, "DELETE", "Organization/o3").status == 204


def plans(count: int) -> list[Plan]:
    return [plan_of("Organization", query, count) for query in QUERIES] * 2


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("most", [apiece.MOST_ROWS, 3])
def test_together_as_each_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch, count: int, most: int) -> None:
    """Also where one statement would bring too much, and for who sees nothing."""
    stocked(hub)
    monkeypatch.setattr(apiece, "MOST_ROWS", most)
    assert sum(map(apiece.is_alike, plans(count))) > 20
    nobody = Caller("PractitionerRole/y", "Y", frozenset({"expert"}), everything=False)
    for caller in (SYSTEM, nobody):
        with hub.store.read(caller) as snapshot:
            alone = [snapshot.search(plan) for plan in plans(count)]
            together = snapshot.searches(plans(count))
        assert [one.matches for one in together] == [one.matches for one in alone]
        assert [bool(one.next) for one in together] == [bool(one.next) for one in alone]
        assert any(one.matches for one in together) == (caller is SYSTEM)
