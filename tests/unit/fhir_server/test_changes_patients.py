"""One person, one Patient: however many clients say the same INS at once, by POST, PUT or Bundle, on both databases."""

from __future__ import annotations

import copy
from typing import Any

import hubs
import pytest
from hubs import PARTNER, at_once, found, hub_on, post, put

from fhir_server.changes import Applied, Change, Hub, apply
from fhir_server.demo import people
from fhir_server.errors import Conflict, Invalid
from fhir_server.patients.identity import RECONCILE_TAG
from fhir_server.store.engine import Store

Resource = dict[str, Any]
INS = people.ins(people.PATIENTS[0][5])
QUERY = f"identifier={people.INS_SYSTEM}|{INS}"


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


def person(index: int = 0, *, without: str = "", **changes: Any) -> Resource:
    out = copy.deepcopy(people.patient(index))
    out["identifier"] = [i for i in out["identifier"] if i["system"] != without]
    return out | changes


def in_a_bundle(hub: Hub, *patients: Resource) -> list[Applied]:
    changes = [
        Change(
            "create", "Patient", resource=patient, full_url=f"urn:uuid:{n}", expression=f"Bundle.entry[{n}].resource"
        )
        for n, patient in enumerate(patients)
    ]
    return apply(hub, PARTNER, changes)


def test_the_same_qualified_ins_again_is_the_same_patient(hub: Hub) -> None:
    first = post(hub, PARTNER, person())
    again = post(hub, PARTNER, person(without=people.IPP_SYSTEM, maritalStatus={"text": "?"}))
    assert (first.status, again.status, again.id) == (201, 200, first.id)
    assert "maritalStatus" not in hubs.read(hub, f"Patient/{first.id}"), "a create changes nothing that is there"


def test_the_same_local_identifier_again_is_the_same_patient(hub: Hub) -> None:
    first = post(hub, PARTNER, person(without=people.INS_SYSTEM))
    assert post(hub, PARTNER, person(without=people.INS_SYSTEM)).id == first.id


def test_concurrent_posts_of_one_person_make_one_patient(hub: Hub) -> None:
    done = hubs.results(at_once(*[lambda: post(hub, PARTNER, person())] * 6))
    assert sorted(one.status for one in done) == [200] * 5 + [201]
    assert len(found(hub, "Patient", QUERY)) == 1


def test_concurrent_bundles_and_posts_of_one_person_make_one_patient(hub: Hub) -> None:
    case = {"resourceType": "Basic", "code": {"text": "x"}, "subject": {"reference": "urn:uuid:0"}}

    def bundle() -> Applied:
        changes = [
            Change("create", "Patient", resource=person(), full_url="urn:uuid:0"),
            Change("create", "Basic", resource=case),
        ]
        return apply(hub, PARTNER, changes)[1]

    done = hubs.results(at_once(*[bundle, lambda: post(hub, PARTNER, person())] * 3))
    patients = found(hub, "Patient", QUERY)
    assert len(patients) == 1
    cases = [hubs.read(hub, f"Basic/{one.id}") for one in done if one.type == "Basic"]
    assert [c["subject"]["reference"] for c in cases] == [f"Patient/{patients[0]['id']}"] * 3


def test_the_same_person_twice_in_one_bundle_is_one_patient(hub: Hub) -> None:
    done = in_a_bundle(hub, person(), person(1), person(without=people.IPP_SYSTEM))
    assert [one.status for one in done] == [201, 201, 200]
    assert done[0].id == done[2].id
    assert done[2].stored is not None
    assert len(found(hub, "Patient")) == 2


def test_two_people_with_one_ins_in_a_bundle_are_refused_together(hub: Hub) -> None:
    with pytest.raises(Conflict, match="an entry before this one") as refused:
        in_a_bundle(hub, person(), person(birthDate="1950-01-01"))
    assert refused.value.issues[0].expression == "Bundle.entry[1].resource.identifier"
    assert found(hub, "Patient") == []


@pytest.mark.parametrize("change", [{"birthDate": "1950-01-01"}, {"gender": "male"}])
def test_an_ins_with_other_traits_is_a_conflict_and_never_a_guess(hub: Hub, change: Resource) -> None:
    post(hub, PARTNER, person())
    other = person(without=people.IPP_SYSTEM, **change)
    with pytest.raises(Conflict, match="other strict traits") as refused:
        post(hub, PARTNER, other)
    assert refused.value.status == 409
    assert refused.value.issues[0].expression == "Patient.identifier"
    with pytest.raises(Conflict, match="other strict traits") as refused:
        in_a_bundle(hub, other)
    assert refused.value.issues[0].expression == "Bundle.entry[0].resource.identifier"
    assert len(found(hub, "Patient")) == 1


def test_the_identifiers_of_two_people_are_a_conflict(hub: Hub) -> None:
    for index in (0, 1):
        post(hub, PARTNER, person(index))
    mixed = person()
    mixed["identifier"][1] = person(1)["identifier"][1]
    with pytest.raises(Conflict, match="point at two people"):
        post(hub, PARTNER, mixed)


def test_a_put_under_another_id_does_not_make_a_second_one(hub: Hub) -> None:
    first = post(hub, PARTNER, person())
    with pytest.raises(Conflict, match=f"is that of Patient/{first.id}") as refused:
        put(hub, PARTNER, person(id="other"))
    assert (refused.value.status, hubs.stored(hub, "Patient/other")) == (409, None)


def test_concurrent_puts_of_one_person_under_two_ids_make_one_patient(hub: Hub) -> None:
    outcomes = at_once(*[lambda n=n: put(hub, PARTNER, person(id=f"p{n}"))[0] for n in range(4)])
    assert sum(isinstance(one, Applied) for one in outcomes) == 1
    assert all(isinstance(one, Applied | Conflict) for one in outcomes)
    assert len(found(hub, "Patient", QUERY)) == 1


def test_a_patient_keeps_its_own_identifiers(hub: Hub) -> None:
    first = post(hub, PARTNER, person())
    again = put(hub, PARTNER, person(id=first.id, telecom=[{"value": "1"}]))[0]
    assert again.status == 200


def test_an_update_cannot_take_the_ins_of_somebody_else(hub: Hub) -> None:
    first, second = (post(hub, PARTNER, person(index, without=people.IPP_SYSTEM)) for index in (0, 1))
    stolen = hubs.read(hub, f"Patient/{second.id}") | {"identifier": person()["identifier"][:1]}
    with pytest.raises(Conflict, match=f"is that of Patient/{first.id}"):
        put(hub, PARTNER, stolen)


def test_records_that_claim_nobodys_identity_may_repeat_it(hub: Hub) -> None:
    post(hub, PARTNER, person())
    put(hub, PARTNER, person(id="replaced", active=False), person(id="doubt", meta={"tag": [RECONCILE_TAG]}))
    provisional = person(id="provisional", without=people.IPP_SYSTEM)
    provisional["extension"][0]["extension"][0]["valueCoding"]["code"] = "PROV"
    put(hub, PARTNER, provisional)
    assert len(found(hub, "Patient")) == 4
    assert post(hub, PARTNER, person()).status == 200


def test_a_patient_replaced_in_the_same_bundle_frees_its_identifiers(hub: Hub) -> None:
    first = post(hub, PARTNER, person())
    done = apply(hub, PARTNER, [Change("delete", "Patient", first.id), Change("create", "Patient", resource=person())])
    assert [one.status for one in done] == [204, 201]
    assert [p["id"] for p in found(hub, "Patient", QUERY)] == [done[1].id]


@pytest.mark.parametrize("value", ["A&identifier=x", "A|B", "A,B", "A$B", "A%2CB", "A+B", "A\\", "é#", "?"])
def test_hostile_signs_in_an_identifier_match_only_themselves(hub: Hub, value: str) -> None:
    def named(text: str) -> Resource:
        return {"resourceType": "Patient", "identifier": [{"system": people.IPP_SYSTEM, "value": text}]}

    other = post(hub, PARTNER, named("A"))
    first = post(hub, PARTNER, named(value))
    assert first.id != other.id
    assert post(hub, PARTNER, named(value)).id == first.id


@pytest.mark.parametrize("verb", ["post", "put", "bundle", "condition"])
def test_a_production_site_takes_no_test_identity_by_any_door(store: Store, verb: str) -> None:
    hub = hub_on(store, site={"mode": "production"})
    doors = {
        "post": lambda: post(hub, PARTNER, person()),
        "put": lambda: put(hub, PARTNER, person()),
        "bundle": lambda: in_a_bundle(hub, person()),
        "condition": lambda: post(hub, PARTNER, person(), if_none_exist="identifier=urn:x|1"),
    }
    with pytest.raises(Invalid, match="production site") as refused:
        doors[verb]()
    place = "Bundle.entry[0].resource" if verb == "bundle" else "Patient"
    assert refused.value.issues[0].expression == f"{place}.identifier[0]"
    assert found(hub, "Patient") == []


@pytest.mark.parametrize(
    "broken",
    [
        {"identifier": "x"},
        {"identifier": [None]},
        {"extension": 5},
        {"meta": []},
        {"name": {"family": []}},
        {"active": 1},
    ],
)
def test_a_patient_of_the_wrong_shape_is_refused_before_anybody_is_matched(hub: Hub, broken: Resource) -> None:
    with pytest.raises(Invalid) as refused:
        post(hub, PARTNER, person(**broken))
    assert refused.value.status == 422
    assert refused.value.issues[0].expression.startswith("Patient.")
