"""One person, one Patient: however many clients say the same INS at once, by POST, PUT or Bundle, on both databases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import hubs
import pytest
from hubs import OTHER_SITE, PARTNER, at_once, found, hub_on, post, put, results
from identities import QUERY, about, doubtful, in_a_bundle, person, provisional

from fhir_server.changes import Applied, Change, Hub, apply, view_of
from fhir_server.context import SYSTEM
from fhir_server.demo import people
from fhir_server.demo.run import SITES
from fhir_server.errors import Conflict, Invalid
from fhir_server.patients import identity
from fhir_server.patients.identity import RECONCILE_TAG, doubt_queries
from fhir_server.patients.sites import load_sites
from fhir_server.pending import Overlay, plan_of
from fhir_server.store.engine import Store
from fhir_server.store.postgres import PostgresSession
from fhir_server.store.sqlite import SqliteSession

Resource = dict[str, Any]


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


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


@pytest.mark.parametrize("taken", [people.IPP_SYSTEM, people.INS_SYSTEM])
def test_an_update_cannot_take_an_identifier_of_somebody_else(hub: Hub, taken: str) -> None:
    first = post(hub, PARTNER, person())
    put(hub, PARTNER, provisional(1, id="second"))
    left = people.INS_SYSTEM if taken == people.IPP_SYSTEM else people.IPP_SYSTEM
    with pytest.raises(Conflict, match=f"is that of Patient/{first.id}, a stored Patient"):
        put(hub, PARTNER, person(without=left, id="second"))


def test_records_that_claim_nobodys_identity_may_repeat_it(hub: Hub) -> None:
    post(hub, PARTNER, person())
    put(hub, SYSTEM, doubtful("doubt"), provisional(id="replaced", active=False))
    put(hub, PARTNER, provisional(id="elsewhere", identifier=[{"system": "urn:oid:1.9", "value": "DEMO0001"}]))
    assert len(found(hub, "Patient")) == 4
    assert post(hub, PARTNER, person()).status == 200


def test_any_number_of_doubtful_records_does_not_hide_the_one_who_has_the_identifier(hub: Hub) -> None:
    doubtful = [
        person(id=f"d{n}", birthDate=f"19{n:02d}-01-01", meta={"tag": [RECONCILE_TAG]}, without=people.INS_SYSTEM)
        for n in range(60)
    ]
    before = post(hub, PARTNER, person(without=people.INS_SYSTEM))
    put(hub, SYSTEM, *doubtful)
    assert post(hub, PARTNER, person(without=people.INS_SYSTEM)).id == before.id
    hubs.delete(hub, PARTNER, f"Patient/{before.id}")
    after = post(hub, PARTNER, person(without=people.INS_SYSTEM))
    assert (after.status, post(hub, PARTNER, person(without=people.INS_SYSTEM)).id) == (201, after.id)


# --- an INS needs a qualified identity -------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["post", "put", "bundle", "patch"])
def test_an_ins_on_an_identity_that_is_not_qualified_is_refused_by_any_door(hub: Hub, verb: str) -> None:
    put(hub, PARTNER, provisional(id="p"))
    wrong = person(id="p")
    wrong["extension"][0]["extension"][0]["valueCoding"]["code"] = "RECUP"
    doors: dict[str, Callable[[], object]] = {
        "post": lambda: post(hub, PARTNER, wrong),
        "put": lambda: put(hub, PARTNER, wrong),
        "bundle": lambda: in_a_bundle(hub, wrong),
        "patch": lambda: apply(hub, PARTNER, [Change("patch", "Patient", "p", patch=lambda _: wrong)]),
    }
    with pytest.raises(Invalid, match="qualified identity only") as refused:
        doors[verb]()
    place = "Bundle.entry[0].resource" if verb == "bundle" else "Patient"
    assert (refused.value.status, refused.value.issues[0].expression) == (422, f"{place}.identifier[0]")
    assert found(hub, "Patient", QUERY) == []


BEDSIDE: dict[str, Resource] = {
    "inactive": {"active": False},
    "doubtful": {"meta": {"tag": [RECONCILE_TAG]}, "identifier": person(without=people.INS_SYSTEM)["identifier"]},
}


@pytest.mark.parametrize("kind", BEDSIDE)
@pytest.mark.parametrize("system", [people.INS_SYSTEM, people.IPP_SYSTEM])
def test_a_record_that_claims_nobodys_identity_makes_no_condition_ambiguous(hub: Hub, kind: str, system: str) -> None:
    query = f"identifier={system}|{next(i['value'] for i in person()['identifier'] if i['system'] == system)}"
    put(hub, SYSTEM, person(id="beside", **BEDSIDE[kind]))
    with pytest.raises(Invalid, match="no resource matches"):
        apply(hub, PARTNER, [about(query)])
    first = post(hub, PARTNER, person())
    done = apply(hub, PARTNER, [about(query)])[0]
    assert hubs.read(hub, f"Basic/{done.id}")["subject"]["reference"] == f"Patient/{first.id}"
    again = post(hub, PARTNER, person(1), if_none_exist=query)
    assert (again.status, again.id) == (200, first.id)


def test_if_none_exist_finds_no_doubtful_record_and_makes_the_person(hub: Hub) -> None:
    put(hub, SYSTEM, doubtful("beside"))
    assert post(hub, PARTNER, person(), if_none_exist=QUERY).status == 201


@pytest.mark.parametrize("system", ["urn:x", people.IPP_SYSTEM])
def test_if_none_exist_finds_an_identifier_that_the_index_holds_cut(hub: Hub, system: str) -> None:
    value, other = ("A" * 1_500 + end for end in "xy")
    query = f"identifier={system}|{value}"
    long = person(without=people.INS_SYSTEM, identifier=[{"system": system, "value": value}])

    def bundled() -> Applied:
        whom = {"resourceType": "Basic", "code": {"text": "x"}, "subject": {"reference": "urn:uuid:0"}}
        made = Change("create", "Patient", resource=long, if_none_exist=query, full_url="urn:uuid:0")
        return apply(hub, PARTNER, [made, Change("create", "Basic", resource=whom)])[0]

    done = [bundled(), bundled(), bundled(), *(post(hub, PARTNER, long, if_none_exist=query) for _ in range(3))]
    assert [one.status for one in done] == [201] + [200] * 5 and len({one.id for one in done}) == 1
    assert len(found(hub, "Patient", query)) == 1
    (basic,) = apply(hub, PARTNER, [about(query)])
    assert hubs.read(hub, f"Basic/{basic.id}")["subject"]["reference"] == f"Patient/{done[0].id}"
    another = person(1, without=people.INS_SYSTEM, identifier=[{"system": system, "value": other}])
    assert post(hub, PARTNER, another, if_none_exist=f"identifier={system}|{other}").status == 201, "alike for long"


def test_a_condition_that_says_more_than_an_identifier_is_an_ordinary_search(hub: Hub) -> None:
    put(hub, PARTNER, person(id="beside", active=False))
    done = apply(hub, PARTNER, [about(f"{QUERY}&active=false")])[0]
    assert hubs.read(hub, f"Basic/{done.id}")["subject"]["reference"] == "Patient/beside"


# --- doubtful records ------------------------------------------------------------------------------------------------


def test_two_doubtful_records_of_one_person_at_once_become_one(hub: Hub) -> None:
    """Each message finds nobody and makes a record under an id of its own; only the first comes to exist."""
    outcomes = at_once(*[lambda n=n: put(hub, SYSTEM, doubtful(f"d{n}"))[0] for n in range(6)])
    assert sum(isinstance(one, Applied) for one in outcomes) == 1
    refused = [one for one in outcomes if isinstance(one, Conflict)]
    assert len(refused) == 5
    assert all("is a doubtful record of the same person" in one.diagnostics for one in refused)
    assert len(found(hub, "Patient")) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"birthDate": "1994-02-12"},
        {"gender": "male"},
        {"name": [{"use": "official", "family": "MARTIN-TEST", "given": ["ANNE"]}]},
        {"identifier": [{"system": people.IPP_SYSTEM, "value": "DEMO9999"}]},
    ],
)
def test_doubtful_records_of_two_people_stand_beside_each_other(hub: Hub, other: Resource) -> None:
    put(hub, SYSTEM, doubtful("a"))
    put(hub, SYSTEM, doubtful("b") | other)
    assert put(hub, SYSTEM, doubtful("a", telecom=[{"value": "1"}]))[0].status == 200
    assert len(found(hub, "Patient")) == 2


@pytest.mark.parametrize("family", ["D'ÉBÈNE", "A,B|C$D", "O&active=x", "ŒUVRE", "Ł", "%2C", "\\", "*", "e\u0301"])
def test_hostile_names_of_doubtful_people_are_found_again_all_the_same(hub: Hub, family: str) -> None:
    name = [{"use": "official", "family": family, "given": ["X"]}]
    put(hub, SYSTEM, doubtful("a", name=name))
    with pytest.raises(Conflict, match="Patient/a is a doubtful record of the same person"):
        put(hub, SYSTEM, doubtful("b", name=name))


def test_a_doubtful_person_of_whom_little_is_known_is_found_again(hub: Hub) -> None:
    nobody = {"name": [], "birthDate": "", "gender": ""}
    poor = {key: value for key, value in (doubtful("a") | nobody).items() if value}
    put(hub, SYSTEM, poor)
    with pytest.raises(Conflict, match="doubtful record of the same person"):
        put(hub, SYSTEM, poor | {"id": "b"})


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
    doors: dict[str, Callable[[], object]] = {
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


def test_with_two_sites_the_one_that_owns_the_patient_decides_about_test_identities(store: Store) -> None:
    """The default site is a test site; a Patient nobody can place is judged by the strictest of all."""
    hub = hub_on(store)
    hub = dataclasses.replace(hub, sites=load_sites([*hub.settings.sites, OTHER_SITE]))
    assert post(hub, PARTNER, person()).status == 201
    theirs = [*person(1)["identifier"][:1], {"system": "urn:oid:1.2.3.4.5", "value": "1"}]
    unplaced = {name: value for name, value in person(2, without=people.IPP_SYSTEM).items() if "managing" not in name}
    for patient in (person(1, identifier=theirs), unplaced):
        with pytest.raises(Invalid, match="Clinique en production is a production site") as refused:
            post(hub, PARTNER, patient)
        assert refused.value.issues[0].expression == "Patient.identifier[0]"
    for managing in ({"reference": "Organization/autre"}, {"identifier": FINESS | {"value": "990000984"}}):
        with pytest.raises(Invalid, match="Clinique en production is a production site"):
            post(hub, PARTNER, person(3, managingOrganization=managing))
    loud = person(1, identifier=[person(1)["identifier"][0] | {"system": people.INS_SYSTEM.upper()}, theirs[1]])
    with pytest.raises(Invalid, match="Clinique en production is a production site"):
        post(hub, PARTNER, loud)
    put(hub, PARTNER, {"resourceType": "Organization", "id": "service", "identifier": [FINESS]})
    placed = unplaced | {"managingOrganization": {"reference": "Organization/service"}}
    assert post(hub, PARTNER, placed).status == 201


@pytest.mark.parametrize("zone", ["Indian/Reunion", "America/Cayenne", "Pacific/Noumea"])
def test_a_birth_date_is_found_on_the_one_clock_of_the_server(store: Store, zone: str) -> None:
    """By a condition, by the lock on doubtful records, and for a patient of a site elsewhere."""
    hub = hub_on(store, site={"time_zone": zone})
    first = post(hub, PARTNER, person())
    done = apply(hub, PARTNER, [about("birthdate=1994-02-11&family=martin")])[0]
    assert hubs.read(hub, f"Basic/{done.id}")["subject"]["reference"] == f"Patient/{first.id}"
    with pytest.raises(Invalid, match="no resource matches"):
        apply(hub, PARTNER, [about("birthdate=1994-02-12")])
    put(hub, SYSTEM, doubtful("a"))
    with hub.store.read(SYSTEM) as snapshot:
        (asked,) = doubt_queries(doubtful("b"), hub.sites)
        assert [p["id"] for p in view_of(snapshot).find("Patient", asked)] == ["a"]


FINESS = {"system": people.FINESS, "value": SITES[0]["finess_ej"]}


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


# --- many at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "A b", "é|,$\\", "a%00", "x" * 300, "ÀÉ", "1&active=false", "+"])
def test_a_plan_made_from_another_is_the_one_its_query_means(hub: Hub, value: str) -> None:
    key = ("urn:oid:1.2.250.1.213.1.4.8", value)
    with hub.store.read(SYSTEM) as snapshot:
        made = Overlay(snapshot).claim_plan(key)
    assert made == dataclasses.replace(plan_of("Patient", identity.claim_query(key)), self_link=())


def bundle_of(numbers: Iterable[int]) -> list[Change]:
    """Patients with an IPP each, all different people."""
    out = []
    for number in numbers:
        patient = people.patient(0)
        del patient["id"]
        kept = [i for i in patient["identifier"] if "213.1.4" not in i["system"]]
        patient["identifier"] = [{**i, "value": f"{i['value']}-{number}"} for i in kept]
        patient["extension"] = [e for e in patient.get("extension", ()) if e["url"] != identity.RELIABILITY]
        patient["name"] = [{"use": "official", "family": f"NOM{'ABCDEFGHIJ'[number % 10]}", "given": ["Léa"]}]
        out.append(Change("create", "Patient", "", patient))
    return out


def test_the_patients_of_a_request_are_looked_up_together(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many statements look for identifiers does not grow with the Patients."""
    asked = 0

    def counting(real: Any) -> Any:
        def counted(self: Any, sql: str, params: Any = ()) -> Any:
            nonlocal asked
            asked += "FROM idx_token x WHERE" in sql
            return real(self, sql, params)

        return counted

    for session in (SqliteSession, PostgresSession):
        for name in ("rows", "one"):
            monkeypatch.setattr(session, name, counting(getattr(session, name)))
    apply(hub, SYSTEM, bundle_of(range(60)))
    assert 0 < asked <= 4
    again = apply(hub, SYSTEM, bundle_of(range(50, 70)))
    assert [one.status for one in again] == [200] * 10 + [201] * 10


def test_two_requests_that_bring_the_same_patients_at_once_make_each_once(hub: Hub) -> None:
    first, second = results(at_once(*[lambda: apply(hub, SYSTEM, bundle_of(range(12)))] * 2))
    assert [one.id for one in first] == [one.id for one in second]
    assert sorted([first[0].status, second[0].status]) == [200, 201]
