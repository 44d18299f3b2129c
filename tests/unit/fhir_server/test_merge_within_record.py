"""An A40 of two numbers that one record has: it gives one up, on record, and an operator puts it back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hubs import found, read
from merging import GIVEN_UP, SURVIVOR, ids, ref
from sylve import person, sample, say, sylve, tell

from fhir_server import app
from fhir_server.changes import Hub
from fhir_server.errors import Conflict
from fhir_server.patients import merge
from fhir_server.security.identity import operator
from fhir_server.store.engine import Store

OPERATOR = operator("durand")
PI = "^^^CH-SYLVE&990001234&N^PI"
BOTH = (f"000417{PI}", f"000417{PI}~{GIVEN_UP}{PI}")


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return sylve(open_url(sqlite_url))


def given_up(hub: Hub) -> tuple[str, str]:
    """One record with both numbers, of which an A40 gave one up: the Patient and the id of the merge."""
    tell(hub, "adt-a01-admission", BOTH)
    who = ref(hub, SURVIVOR)
    assert ids(read(hub, who)) == {SURVIVOR: "usual", GIVEN_UP: "usual"}
    tell(hub, "adt-a40-fusion")
    assert ids(read(hub, who)) == {SURVIVOR: "usual", GIVEN_UP: "old"}
    (row,) = app.operate(hub, OPERATOR, "merges-list", {"patient": who})
    assert (row["survivor"], row["moved"], row["state"]) == (who, 0, "merged")
    assert str(row["given_up"]).endswith(f"|{GIVEN_UP}")
    return who, str(row["id"])


def undo(hub: Hub, key: str) -> str:
    return str(app.operate(hub, OPERATOR, "merges-undo", {"id": key})["state"])


def test_a_number_that_a_record_gave_up_is_in_force_again_when_the_merge_is_undone(hub: Hub) -> None:
    who, key = given_up(hub)
    assert undo(hub, key) == "undone"
    assert ids(read(hub, who)) == {SURVIVOR: "usual", GIVEN_UP: "usual"}
    told = [one["activity"]["coding"][0]["code"] for one in found(hub, "Provenance", f"target={who}")]
    assert sorted(told) == ["defusion", "numero"]
    with pytest.raises(Conflict):
        undo(hub, key)
    tell(hub, "adt-a40-fusion")
    assert ids(read(hub, who))[GIVEN_UP] == "old", "the same merge may be said again"
    assert undo(hub, key) == "undone"


def test_a_number_that_is_somebody_elses_by_now_is_not_put_back(hub: Hub) -> None:
    who, key = given_up(hub)
    say(hub, person(GIVEN_UP, "DURAND", "Zoé", "19990101"))
    before = read(hub, who)
    with pytest.raises(Conflict, match=f"{GIVEN_UP} is that of Patient/"):
        undo(hub, key)
    assert read(hub, who) == before


def test_a_merge_within_a_record_that_was_merged_since_waits_for_the_later_one(hub: Hub) -> None:
    who, key = given_up(hub)
    assert say(hub, person("000700", "LECOCQ-MARAIS", "Noémie", "19840523")).code == "AA"
    raw = person("000700", "LECOCQ-MARAIS", "Noémie", "19840523", more=f"MRG|000417{PI}")
    assert say(hub, raw.replace(b"ADT^A28^ADT_A05", b"ADT^A40^ADT_A39")).code == "AA"
    with pytest.raises(Conflict, match="undo that merge first"):
        undo(hub, key)
    assert undo(hub, merge.record_id("fusion", who, ref(hub, "000700"))) == "undone"
    assert undo(hub, key) == "undone"
    assert ids(read(hub, who)) == {SURVIVOR: "usual", GIVEN_UP: "usual"}


def test_an_ins_that_is_given_up_leaves_no_number_to_put_back(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    ins = "284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
    changes = ((f"~{ins}", ""), ("|VALI|", "|PROV|"), (f"{GIVEN_UP}{PI}~ABC^^^INCONNU^PI", ins))
    assert say(hub, sample("adt-a40-fusion", *changes)).code == "AA"
    assert found(hub, "List") == []
