"""Merges undone: what was moved goes back, with what was written since in a case that goes back."""

from __future__ import annotations

from typing import Any

import pytest
from hubs import (
    ADMIN,
    EXPERT,
    REQUESTER,
    delete,
    deliveries,
    found,
    message,
    opinion,
    put,
    read,
    take,
)
from merging import GIVEN_UP, SURVIVOR, ids, ref, two
from sylve import IPP, person, say, sylve, tell

from fhir_server.changes import Hub, view_of
from fhir_server.context import SYSTEM
from fhir_server.delivery.intake_merges import unmerge
from fhir_server.errors import Conflict, NotFound
from fhir_server.patients import merge
from fhir_server.store.engine import Store
from fhir_server.teleexpertise.overtaken import overtaken

Resource = dict[str, Any]


@pytest.fixture
def hub(store: Store) -> Hub:
    return sylve(store)


def test_a_list_of_an_earlier_version_in_any_order_still_permits_its_moves(hub: Hub) -> None:
    target, source = two(hub)
    tell(hub, "adt-a40-fusion")
    listed = read(hub, f"List/{merge.record_id('fusion', source, target)}")
    put(hub, SYSTEM, listed | {"entry": [listed["entry"][0], *reversed(listed["entry"][1:])]})
    done = unmerge(hub, ADMIN, target, source)
    assert done.lost == [] and "ServiceRequest/fusion" in done.back


def test_a_merge_is_undone_and_nothing_is_lost(hub: Hub) -> None:
    target, source = two(hub)
    before = {name: read(hub, name) for name in (source, "Observation/o1", "ServiceRequest/fusion")}
    tell(hub, "adt-a40-fusion")
    done = unmerge(hub, ADMIN, target, source)
    assert {"Observation/o1", "ServiceRequest/fusion", "Task/fusion", "Consent/fusion"} <= set(done.back)
    assert (done.lost, done.followed, done.left) == ([], [], [])
    for name, held in before.items():
        now = read(hub, name)
        assert now == held, name
    assert ids(read(hub, target)) == {SURVIVOR: "usual"} and "link" not in read(hub, target)
    assert read(hub, f"List/{merge.record_id('fusion', source, target)}")["status"] == "retired"
    with pytest.raises(Conflict):
        unmerge(hub, ADMIN, target, source)
    with pytest.raises(NotFound):
        unmerge(hub, ADMIN, target, "Patient/nobody")
    tell(hub, "adt-a40-fusion")
    assert read(hub, source)["active"] is False, "it can be merged again"


def test_what_was_changed_since_the_merge_and_is_gone_is_told(hub: Hub) -> None:
    target, source = two(hub)
    tell(hub, "adt-a40-fusion")
    delete(hub, SYSTEM, "Observation/o1")
    assert unmerge(hub, ADMIN, target, source).lost == ["Observation/o1"]


def merged_further(hub: Hub, survivor: str = "000700") -> str:
    """The survivor of `adt-a40-fusion` is given up for a third record; that one."""
    assert say(hub, person(survivor, "LECOCQ", "Noémie", "19840523")).code == "AA"
    lines = person(survivor, "LECOCQ", "Noémie", "19840523", more=f"MRG|{SURVIVOR}^^^CH-SYLVE&990001234&N^PI")
    told = say(hub, lines.replace(b"ADT^A28^ADT_A05", b"ADT^A40^ADT_A39"))
    assert told.code == "AA", told
    return ref(hub, survivor)


def who_it_is(hub: Hub, reference: str) -> Resource:
    """What a merge changes of a record, and its parting gives back."""
    held = read(hub, reference)
    return {name: held.get(name) for name in ("identifier", "link", "active")}


def test_merges_in_a_row_are_undone_from_the_last_and_leave_each_what_was_its_own(hub: Hub) -> None:
    second, first = two(hub)
    own = "000700"
    assert say(hub, person(own, "LECOCQ", "Noémie", "19840523")).code == "AA"
    whole = {name: read(hub, name) for name in (first, "Observation/o1", "Task/fusion")}
    people_then = {name: who_it_is(hub, name) for name in (first, second, ref(hub, own))}
    tell(hub, "adt-a40-fusion")
    third = merged_further(hub, own)
    assert read(hub, "Observation/o1")["subject"]["reference"] == third
    with pytest.raises(Conflict, match=f"{second} was itself merged into {third} since; undo that merge first"):
        unmerge(hub, ADMIN, second, first)
    assert read(hub, first)["active"] is False and read(hub, "Observation/o1")["subject"]["reference"] == third
    assert unmerge(hub, ADMIN, third, second).lost == []
    assert unmerge(hub, ADMIN, second, first).lost == []
    for name, held in whole.items():
        assert read(hub, name) == held, name
    assert {name: who_it_is(hub, name) for name in people_then} == people_then


def test_what_was_written_since_in_a_request_goes_back_with_it(hub: Hub) -> None:
    """A case is about one person: its report, its messages and its documents are not left to somebody else."""
    target, source = two(hub)
    about = {"code": {"text": "Taille"}, "subject": {"reference": target}}
    mine = {"resourceType": "Observation", "status": "final"} | about
    put(hub, SYSTEM, read(hub, "Organization/sylve") | {"id": "ch-demo"}, mine | {"id": "before"})
    tell(hub, "adt-a40-fusion")
    put(hub, SYSTEM, *(mine | {"id": name} for name in ("of-the-report", "named", "own", "shared")))
    put(hub, SYSTEM, mine | {"id": "elsewhere", "derivedFrom": [{"reference": "Observation/shared"}]})
    request = read(hub, "ServiceRequest/fusion")
    named = [*request.get("supportingInfo", ()), {"reference": "Observation/named"}]
    put(hub, REQUESTER, request | {"status": "active", "supportingInfo": named})
    take(hub, "fusion")
    put(hub, EXPERT, message("question", "fusion"))
    put(hub, REQUESTER, message("answer", "fusion", answers="question"))
    made_of = [{"reference": f"Observation/{name}"} for name in ("of-the-report", "before", "shared")]
    put(hub, EXPERT, opinion(hub, "fusion", result=made_of))
    documents = found(hub, "DocumentReference", "related=DiagnosticReport/fusion")
    since = [f"DocumentReference/{one['id']}" for one in documents]
    since += ["DiagnosticReport/fusion", "Observation/of-the-report"]
    assert len(since) == 3 and {read(hub, name)["subject"]["reference"] for name in since} == {target}
    done = unmerge(hub, ADMIN, target, source)
    assert set(since) <= set(done.followed) and done.lost == []
    expected = ["Observation/before", "Observation/named", "Observation/shared"]
    assert done.left == expected, "the survivor's own, named in the case of another"
    assert {read(hub, name)["subject"]["reference"] for name in since} == {source}
    stay = ("own", "named", "before", "shared", "elsewhere")
    assert {read(hub, f"Observation/{name}")["subject"]["reference"] for name in stay} == {target}
    listed = read(hub, f"List/{merge.record_id('fusion', source, target)}")
    assert listed["status"] == "retired"
    flags = {entry["item"]["reference"]: entry.get("flag", {}).get("text", "") for entry in listed["entry"]}
    assert {flags[name] for name in since} == {"écrit depuis la fusion"}
    with hub.store.read(SYSTEM) as snapshot:
        frozen = [one for one in deliveries(hub) if one.document == "DiagnosticReport/fusion"]
        assert frozen and {one.patient for one in frozen} == {target}
        words = f"ServiceRequest/fusion is about {source} now; these bytes name {target}"
        assert {overtaken(snapshot, one) for one in frozen} == {words}


def test_what_was_written_since_goes_back_although_the_record_of_the_merge_was_changed_after_it(hub: Hub) -> None:
    """The merge was made when it was put on record, not when its List was last changed; made again, it is made then."""
    target, source = two(hub)

    def observed(key: str) -> str:
        about = {"code": {"text": "Taille"}, "basedOn": [{"reference": "ServiceRequest/fusion"}]}
        made = {"resourceType": "Observation", "id": key, "status": "final", "subject": {"reference": target}} | about
        put(hub, SYSTEM, made)
        return f"Observation/{key}"

    tell(hub, "adt-a40-fusion")
    since = observed("since")
    key = merge.record_id("fusion", source, target)
    for note in ("vérifié", "vérifié deux fois"):
        put(hub, SYSTEM, read(hub, f"List/{key}") | {"note": [{"text": note}]})
    done = unmerge(hub, ADMIN, target, source)
    assert (done.followed, done.left) == ([since], [])
    assert read(hub, since)["subject"] == {"reference": source}
    tell(hub, "adt-a40-fusion")
    later = observed("later")
    again = unmerge(hub, ADMIN, target, source)
    assert since in again.back and again.followed == [later]


def test_the_images_of_a_merged_patient_are_those_of_the_survivor(hub: Hub) -> None:
    target, source = two(hub)
    with hub.store.read(SYSTEM) as snapshot:
        assert merge.given_up_for(view_of(snapshot), (IPP, GIVEN_UP)) == frozenset()
    tell(hub, "adt-a40-fusion")
    with hub.store.read(SYSTEM) as snapshot:
        assert merge.given_up_for(view_of(snapshot), (IPP, GIVEN_UP)) == {target}
        assert merge.given_up_for(view_of(snapshot), (IPP, SURVIVOR)) == frozenset(), "it is in force"
    unmerge(hub, ADMIN, target, source)
    with hub.store.read(SYSTEM) as snapshot:
        assert merge.given_up_for(view_of(snapshot), (IPP, GIVEN_UP)) == frozenset()
