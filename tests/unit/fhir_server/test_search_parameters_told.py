"""Whoever posts a SearchParameter sees how far it is, and why one is refused: operation, command, audit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hubs import PARTNER, SYSTEM, hub_on
from rest_calls import PATIENT, stored

from fhir_server import cli
from fhir_server.changes import Hub
from fhir_server.commands.output import table
from fhir_server.rest import admin
from fhir_server.search import index
from fhir_server.store import parameters
from fhir_server.store.engine import Store

URL = "http://example.org/SearchParameter/"
MARITAL: dict[str, Any] = {
    "resourceType": "SearchParameter",
    "id": "marital",
    "url": f"{URL}marital",
    "name": "marital",
    "status": "active",
    "description": "marital status",
    "code": "marital",
    "base": ["Patient", "Group"],
    "type": "token",
    "expression": "Patient.maritalStatus | Group.code",
}
BROKEN = MARITAL | {"id": "broken", "url": f"{URL}broken", "code": "gender", "base": ["Patient"]}


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Iterator[Hub]:
    yield hub_on(open_url(sqlite_url))
    index.install(())


def told(hub: Hub) -> dict[str, dict[str, Any]]:
    rows = admin.run(hub, PARTNER, "parameters-list", {})
    assert json.loads(json.dumps(rows)) == rows
    return {row["code"]: row for row in rows}


def test_how_far_a_parameter_is_is_told_batch_by_batch(hub: Hub) -> None:
    assert told(hub) == {}
    stored(hub, PATIENT)
    people = [{"resourceType": "Group", "id": f"g{n}", "type": "person", "actual": True} for n in range(250)]
    hub.store.write(SYSTEM, lambda tx: [tx.create(one, index.rows(one)) for one in people])
    stored(hub, MARITAL)
    parameters.note(hub.store)
    parameters.refresh(hub.store, 0)
    begun = told(hub)["marital"]
    assert (begun["base"], begun["url"], begun["note"]) == ("Patient, Group", MARITAL["url"], "")
    assert (begun["state"], begun["seen"], begun["total"]) == ("indexing", 0, 251)
    steps = []
    while parameters.advance(hub.store, index.rows):
        steps.append(told(hub)["marital"])
    assert len(steps) > 1 and [one["seen"] for one in steps] == sorted(one["seen"] for one in steps)
    assert 0 < steps[0]["seen"] < 251 and steps[0]["state"] == "indexing"
    assert (steps[-1]["state"], steps[-1]["seen"]) == ("active", 251)


def test_a_parameter_that_cannot_be_used_is_told_with_the_reason(hub: Hub) -> None:
    stored(hub, BROKEN)
    parameters.note(hub.store)
    broken = told(hub)["gender"]
    assert broken["state"] == "refused" and broken["note"].startswith("SearchParameter.")
    stored(hub, BROKEN | {"status": "retired"})
    parameters.note(hub.store)
    assert told(hub) == {}


def test_the_command_shows_them_as_a_table(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [one for one in cli.COMMANDS if one.path == "parameters list"]
    assert command.operation == "parameters-list" and "parameters list" in cli.overview()
    stored(hub, MARITAL, BROKEN)
    parameters.note(hub.store)
    table(list(told(hub).values()), command.columns)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == list(command.columns)
    assert any("refused" in line and "SearchParameter." in line for line in lines)
    assert any("marital" in line and "indexing" in line for line in lines)


def test_looking_at_them_is_audited_as_reading(hub: Hub) -> None:
    told(hub)
    with hub.store.read(SYSTEM) as snapshot:
        (row,) = [one for one in snapshot.audit_rows() if one.event == "parameters-list"]
    assert (row.action, row.outcome) == ("R", "0")
