"""What an operator does about merged records: sees them, undoes one, and is told what could not go back."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hubs import SYSTEM, read
from merging import two
from sylve import sylve, tell

from fhir_server import app, cli
from fhir_server.changes import Hub
from fhir_server.errors import Conflict, Invalid, NotFound
from fhir_server.patients import merge
from fhir_server.security.identity import operator
from fhir_server.store.engine import Store

OPERATOR = operator("durand")


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return sylve(open_url(sqlite_url))


def merges(hub: Hub, **args: str) -> list[dict[str, object]]:
    rows = app.operate(hub, OPERATOR, "merges-list", args)
    json.dumps(rows)
    return list(rows)


def test_a_merge_is_listed_for_either_patient_and_undone_by_its_id(hub: Hub) -> None:
    survivor, given_up = two(hub)
    assert merges(hub) == []
    before = read(hub, given_up)
    tell(hub, "adt-a40-fusion")
    key = merge.record_id("fusion", given_up, survivor)
    (row,) = merges(hub)
    assert row == {"id": key, "survivor": survivor, "given_up": given_up, "state": "merged"} | {
        name: row[name] for name in ("date", "moved")
    }
    assert int(str(row["moved"])) >= 3 and row["date"]
    assert merges(hub, patient=survivor) == merges(hub, patient=given_up.partition("/")[2]) == [row]
    assert merges(hub, patient="Patient/nobody") == []
    with pytest.raises(Invalid):
        merges(hub, patient="Patient/nobody&code=x")
    told = app.operate(hub, OPERATOR, "merges-undo", {"id": f"List/{key}"})
    assert told["state"] == "undone" and "Observation/o1" in told["moved_back"]
    assert (told["followed"], told["left"], told["not_moved"]) == ([], [], [])
    assert read(hub, given_up) == before
    assert [one["state"] for one in merges(hub)] == ["undone"]
    with pytest.raises(Conflict):
        app.operate(hub, OPERATOR, "merges-undo", {"id": key})


def test_undoing_is_audited_in_the_name_of_who_asked(hub: Hub) -> None:
    survivor, given_up = two(hub)
    tell(hub, "adt-a40-fusion")
    key = merge.record_id("fusion", given_up, survivor)
    app.operate(hub, OPERATOR, "merges-undo", {"id": key})
    with hub.store.read(SYSTEM) as snapshot:
        rows = [one for one in snapshot.audit_rows() if one.event == "merges-undo"]
    assert [(one.entity_type, one.entity_id, one.outcome) for one in rows] == [("List", key, "0")]


@pytest.mark.parametrize("key", ["", "nothing", "x" * 500])
def test_what_is_no_merge_on_record_is_told_with_where_to_look(hub: Hub, key: str) -> None:
    with pytest.raises(NotFound, match="merges list"):
        app.operate(hub, OPERATOR, "merges-undo", {"id": key})


def test_the_command_line_names_both() -> None:
    paths = {one.path: one.operation for one in cli.COMMANDS}
    assert (paths["merges list"], paths["merges undo"]) == ("merges-list", "merges-undo")
    assert "merges list" in cli.overview()
