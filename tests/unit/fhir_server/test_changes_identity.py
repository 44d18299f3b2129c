"""An identity that is stored changes on purpose only, by every door; and nobody takes another's identifiers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from hubs import ADMIN, PARTNER, found, hub_on, post, put
from identities import INS, QUERY, doubtful, in_a_bundle, person, provisional

from fhir_server.changes import Change, Hub, apply
from fhir_server.context import SYSTEM
from fhir_server.demo import people
from fhir_server.errors import Conflict, Invalid, RuleBroken
from fhir_server.patients.identity import RECONCILE_TAG
from fhir_server.store.engine import Store

Resource = dict[str, Any]


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


def another_ins(**changes: Any) -> Resource:
    out = person(**changes)
    out["identifier"][0]["value"] = people.ins("2940299123099")
    return out


@pytest.mark.parametrize("verb", ["put", "patch", "condition", "bundle"])
def test_no_door_gives_a_qualified_patient_another_ins(hub: Hub, verb: str) -> None:
    first = post(hub, PARTNER, person())
    wrong = another_ins(id=first.id)
    by_ipp = f"identifier={people.IPP_SYSTEM}|DEMO0001"
    doors = {
        "put": Change("update", "Patient", first.id, wrong),
        "patch": Change("patch", "Patient", first.id, patch=lambda _: wrong),
        "condition": Change("update", "Patient", "", wrong, criteria=by_ipp),
        "bundle": Change("update", "Patient", first.id, wrong, expression="Bundle.entry[0].resource"),
    }
    with pytest.raises(Conflict, match="another INS") as refused:
        apply(hub, PARTNER, [doors[verb]])
    place = "Bundle.entry[0].resource" if verb == "bundle" else "Patient"
    assert (refused.value.status, refused.value.issues[0].expression) == (409, f"{place}.identifier")
    assert hubs.read(hub, f"Patient/{first.id}")["identifier"] == person()["identifier"]


def test_a_change_of_identity_may_give_it_another_ins(hub: Hub) -> None:
    first = post(hub, PARTNER, person())
    change = Change("update", "Patient", first.id, another_ins(id=first.id), identity_change=True)
    assert apply(hub, PARTNER, [change])[0].status == 200
    assert hubs.read(hub, f"Patient/{first.id}")["identifier"][0]["value"] == people.ins("2940299123099")
    assert post(hub, PARTNER, person(without=people.IPP_SYSTEM)).status == 201, "the INS that was given up is free"


def test_an_identity_is_corrected_in_two_steps_that_both_say_so(hub: Hub) -> None:
    first = post(hub, PARTNER, person())
    silent = {name: value for name, value in provisional(id=first.id).items() if name != "extension"}
    with pytest.raises(Invalid, match="send its INS and identityStatus back") as refused:
        put(hub, PARTNER, silent)
    assert refused.value.status == 422
    put(hub, PARTNER, provisional(id=first.id))
    assert put(hub, PARTNER, another_ins(id=first.id))[0].status == 200


def test_a_qualified_identity_is_not_replaced_on_the_way_through_inactive(hub: Hub) -> None:
    first = post(hub, PARTNER, person())
    other = another_ins(id=first.id, name=person(1)["name"], birthDate="1950-01-01")
    with pytest.raises(Conflict, match="another INS"):
        put(hub, PARTNER, other | {"active": False})
    with pytest.raises(Invalid, match="send its INS and identityStatus back"):
        put(hub, PARTNER, person(id=first.id, without=people.INS_SYSTEM, active=False))
    assert put(hub, PARTNER, person(id=first.id, active=False))[0].status == 200
    with pytest.raises(Conflict, match="another INS"):
        put(hub, PARTNER, other | {"active": True})
    assert put(hub, PARTNER, person(id=first.id, active=True))[0].status == 200


def test_a_record_that_becomes_active_again_finds_its_ins_taken_meanwhile(hub: Hub) -> None:
    first = post(hub, PARTNER, person())
    put(hub, PARTNER, person(id=first.id, active=False))
    second = post(hub, PARTNER, person())
    assert second.status == 201
    with pytest.raises(Conflict, match=f"is that of Patient/{second.id}"):
        put(hub, PARTNER, person(id=first.id, active=True))
    kept = put(hub, PARTNER, person(id=first.id, active=False, telecom=[{"value": "1"}]))[0]
    assert kept.status == 200, "an INS it had before may stay on an inactive record"


@pytest.mark.parametrize("verb", ["post", "put", "update", "bundle"])
def test_an_inactive_record_takes_no_ins_of_an_active_patient(hub: Hub, verb: str) -> None:
    first = post(hub, PARTNER, person())
    put(hub, PARTNER, provisional(id="p", identifier=[{"system": "urn:oid:1.9", "value": "1"}]))
    hidden = person(active=False, without=people.IPP_SYSTEM)
    doors: dict[str, Callable[[], object]] = {
        "post": lambda: post(hub, PARTNER, hidden),
        "put": lambda: put(hub, PARTNER, hidden | {"id": "new"}),
        "update": lambda: put(hub, PARTNER, hidden | {"id": "p"}),
        "bundle": lambda: in_a_bundle(hub, hidden),
    }
    with pytest.raises(Conflict, match=f"is that of Patient/{first.id}") as refused:
        doors[verb]()
    assert refused.value.status == 409
    assert [one["id"] for one in found(hub, "Patient", QUERY)] == [first.id]


@pytest.mark.parametrize("code", ["a-rapprocher", "A-Rapprocher"])
@pytest.mark.parametrize("verb", ["post", "put", "update", "patch"])
def test_a_client_does_not_tag_a_record_as_doubtful(hub: Hub, verb: str, code: str) -> None:
    put(hub, PARTNER, provisional(id="p"))
    tagged = provisional(id="p", meta={"tag": [RECONCILE_TAG | {"code": code}]})
    doors: dict[str, Callable[[], object]] = {
        "post": lambda: post(hub, PARTNER, tagged),
        "put": lambda: put(hub, PARTNER, tagged | {"id": "new"}),
        "update": lambda: put(hub, PARTNER, tagged),
        "patch": lambda: apply(hub, PARTNER, [Change("patch", "Patient", "p", patch=lambda _: tagged)]),
    }
    with pytest.raises(RuleBroken, match="set by this server") as refused:
        doors[verb]()
    assert (refused.value.status, refused.value.issues[0].expression) == (422, "Patient.meta")


def test_only_an_administrator_takes_the_tag_of_a_doubtful_record_away(hub: Hub) -> None:
    put(hub, SYSTEM, doubtful("a"))
    settled = person(id="a")
    with pytest.raises(RuleBroken, match="send it back as it is"):
        put(hub, PARTNER, settled)
    assert put(hub, PARTNER, doubtful("a", telecom=[{"value": "1"}]))[0].status == 200
    assert put(hub, dataclasses.replace(ADMIN, channel="http"), settled)[0].status == 200


def test_a_doubtful_record_has_no_ins_whoever_writes_it(hub: Hub) -> None:
    with pytest.raises(Invalid, match="until a person has settled") as refused:
        put(hub, SYSTEM, person(id="a", meta={"tag": [RECONCILE_TAG]}))
    assert (refused.value.status, refused.value.issues[0].expression) == (422, "Patient.identifier[0]")


@pytest.mark.parametrize("value", [f"{INS} ", f" {INS}", f"{INS[:5]} {INS[5:]}", f"{INS}\u00a0", INS[:13]])
def test_a_test_ins_with_blanks_or_without_its_key_makes_no_second_patient(hub: Hub, value: str) -> None:
    post(hub, PARTNER, person())
    spaced = person(without=people.IPP_SYSTEM)
    spaced["identifier"][0]["value"] = value
    with pytest.raises(Invalid, match="13 characters and a key") as refused:
        post(hub, PARTNER, spaced)
    assert (refused.value.status, refused.value.issues[0].expression) == (422, "Patient.identifier[0].value")
    assert len(found(hub, "Patient")) == 1


def test_a_known_local_identifier_with_another_ins_is_a_conflict(hub: Hub) -> None:
    post(hub, PARTNER, person())
    with pytest.raises(Conflict, match="the local identifier is known with another INS") as refused:
        post(hub, PARTNER, another_ins())
    assert refused.value.issues[0].expression == "Patient.identifier"


def test_two_records_of_one_person_become_one_in_one_request_whatever_the_order(hub: Hub) -> None:
    for turn in ("survivor first", "survivor last"):
        put(hub, PARTNER, provisional(id="left", identifier=[{"system": people.IPP_SYSTEM, "value": turn}]))
        put(hub, PARTNER, provisional(id="stays", identifier=[{"system": "urn:oid:1.9", "value": turn}]))
        taken = [{"system": people.IPP_SYSTEM, "value": turn}]
        both = [provisional(id="stays", identifier=taken), provisional(id="left", identifier=taken, active=False)]
        put(hub, PARTNER, *(both if turn == "survivor first" else both[::-1]))
        assert hubs.read(hub, "Patient/stays")["identifier"] == taken
        put(hub, PARTNER, provisional(id="stays", identifier=[{"system": "urn:oid:1.9", "value": turn}]))


def test_two_patients_of_one_request_do_not_take_the_same_identifier(hub: Hub) -> None:
    with pytest.raises(Conflict, match="is that of Patient/b, another entry"):
        put(hub, PARTNER, person(id="a"), person(id="b"))
    assert found(hub, "Patient") == []
