"""The largest Bundles the defaults allow are taken, on both databases, and one more of anything is refused whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hubs import hub_on
from rest_calls import Answer, Resource, ask

from fhir_server import changes, upkeep
from fhir_server.changes import Hub
from fhir_server.config import Settings
from fhir_server.store.engine import Store

MOST = Settings().max_bundle_entries
OID = "urn:oid:1.2.250.1.999.7"
pytestmark = [pytest.mark.long(minutes=3), pytest.mark.timeout(900)]
Entry = dict[str, Any]


@pytest.fixture
def hub(open_at: Callable[..., Store]) -> Hub:
    return hub_on(open_at(statement_seconds=300.0))  # the bounds are meant, not the machine's haste


def plain(number: int) -> Entry:
    """A resource of which nothing is known, and hardly anything is searched."""
    resource = {"resourceType": "Basic", "code": {"text": f"many {number}"}}
    return {"resource": resource, "request": {"method": "POST", "url": "Basic"}}


def linked(number: int) -> Entry:
    """Of ten entries one is a Patient, created unless there; nine are Observations that refer to it by its fullUrl."""
    key = f"00000000-0000-4000-8000-{number // 10:012}"
    if number % 10 == 0:
        identifier = {"system": OID, "value": f"p{number}"}
        resource: Resource = {
            "resourceType": "Patient",
            "identifier": [identifier],
            "name": [{"family": f"Essai{number}", "given": ["Léa"]}],
            "birthDate": "1990-05-17",
        }
        request = {"method": "POST", "url": "Patient", "ifNoneExist": f"identifier={OID}|p{number}"}
        return {"fullUrl": f"urn:uuid:{key}", "resource": resource, "request": request}
    resource = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "29463-7"}], "text": "poids"},
        "subject": {"reference": f"urn:uuid:{key}"},
        "effectiveDateTime": "2026-11-21T08:00:00Z",
        "valueQuantity": {"value": number, "unit": "kg", "system": "http://unitsofmeasure.org", "code": "kg"},
    }
    return {"resource": resource, "request": {"method": "POST", "url": "Observation"}}


def conditional(number: int) -> Entry:
    """A resource with a condition of its own."""
    resource = {
        "resourceType": "Organization",
        "identifier": [{"system": OID, "value": str(number)}],
        "name": f"Service {number}",
    }
    url = f"Organization?identifier={OID}|{number}"
    return {"resource": resource, "request": {"method": "PUT", "url": url}}


def sent(hub: Hub, kind: str, entries: list[Entry]) -> Answer:
    return ask(hub, "POST", "", {"resourceType": "Bundle", "type": kind, "entry": entries}, prefer="return=minimal")


def total(hub: Hub, query: str) -> int:
    found: int = ask(hub, "GET", f"{query}&_summary=count").json()["total"]
    return found


@pytest.mark.parametrize("made", [plain, linked, conditional])
def test_a_transaction_of_so_many_entries_is_taken_and_one_more_is_not(hub: Hub, made: Callable[[int], Entry]) -> None:
    entries = [made(number) for number in range(MOST + 1)]
    every = "?_type=Patient,Basic,Observation,Organization"
    before = total(hub, every)
    refused = sent(hub, "transaction", entries)
    assert (refused.status, refused.issue["expression"]) == (413, ["Bundle.entry"])
    assert total(hub, every) == before
    answer = sent(hub, "transaction", entries[:MOST])
    assert answer.status == 200, answer.body[:500]
    assert [one["response"]["status"][:3] for one in answer.entries] == ["201"] * MOST
    if made is linked:
        (one,) = ask(hub, "GET", f"Patient?identifier={OID}|p9990").entries
        assert total(hub, f"Observation?subject=Patient/{one['resource']['id']}") == 9
        assert upkeep.check(hub, {}, lambda line: None)["ok"]
    if made is conditional:
        again = sent(hub, "transaction", entries[:MOST])
        assert [one["response"]["status"][:3] for one in again.entries] == ["200"] * MOST


def test_a_batch_of_so_many_entries_is_taken_and_one_more_is_not(hub: Hub) -> None:
    entries = [plain(number) for number in range(MOST + 1)]
    assert sent(hub, "batch", entries).status == 413
    answer = sent(hub, "batch", entries[:MOST])
    assert [one["response"]["status"][:3] for one in answer.entries] == ["201"] * MOST


def rows(hub: Hub, resource: Resource) -> int:
    """How many index rows a resource makes."""
    made = upkeep.extract(hub)(resource | {"id": "x"})
    return sum(len(getattr(made, name) or ()) for name in made.__dataclass_fields__)


def test_so_many_searchable_values_are_taken_and_one_more_is_not(hub: Hub) -> None:
    def person(families: int) -> Entry:
        resource = {"resourceType": "Patient", "name": [{"family": f"f{n}"} for n in range(families)]}
        return {"resource": resource, "request": {"method": "POST", "url": "Patient"}}

    def filling(names: int) -> Entry:
        identifiers = [{"system": OID, "value": str(n)} for n in range(names)]
        resource = {"resourceType": "Basic", "identifier": identifiers, "code": {"coding": [{"code": "x"}]}}
        return {"resource": resource, "request": {"method": "POST", "url": "Basic"}}

    each, one, two = rows(hub, person(1_000)["resource"]), rows(hub, filling(1)["resource"]), 0
    two = rows(hub, filling(2)["resource"]) - one
    many = (changes.MOST_ROWS - 10_000) // each
    left = changes.MOST_ROWS - many * each
    assert (left - one) % two == 0, "the last row counts"
    entries = [person(1_000) for _ in range(many)]
    fitting = filling(1 + (left - one) // two)
    assert rows(hub, fitting["resource"]) + many * each == changes.MOST_ROWS
    over = json.loads(json.dumps(fitting))
    over["resource"]["meta"] = {"tag": [{"code": "one more"}]}
    assert sent(hub, "transaction", [*entries, over]).status == 413
    assert total(hub, "?_type=Patient,Basic") == 0
    assert sent(hub, "transaction", [*entries, fitting]).status == 200
    assert total(hub, "?_type=Patient,Basic") == many + 1
