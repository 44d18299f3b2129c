"""Contained resources: found only when asked for, each by its own values, answered alone or with what holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM, Caller
from fhir_server.search import index, query
from fhir_server.store.check import check
from fhir_server.store.engine import Store
from fhir_server.store.reindex import reindex
from profiles import json_text

Resource = dict[str, Any]


def medication(key: str, code: str, status: str = "active") -> Resource:
    coded = {"coding": [{"system": "urn:c", "code": code, "display": f"Produit {code}"}]}
    return {"resourceType": "Medication", "id": key, "status": status, "code": coded}


def request(key: str, *held: Resource) -> Resource:
    return {
        "resourceType": "MedicationRequest",
        "id": key,
        "status": "active",
        "intent": "order",
        "subject": {"reference": "Patient/p"},
        "contained": list(held),
        "medicationReference": {"reference": "#m1"},
    }


def put(store: Store, one: Resource, *, new: bool = True) -> None:
    rows = index.rows(one)
    rows.scopes = [("organisation", "here" if one["id"] != "r3" else "there")]
    store.write(SYSTEM, lambda tx: tx.create(one, rows) if new else tx.update(one, rows))


@pytest.fixture
def stocked(store: Store) -> Iterator[Store]:
    for one in (
        medication("own", "a"),
        request("r1", medication("m1", "a"), medication("m2", "b", "inactive")),
        request("r2", medication("m1", "b")),
        request("r3", medication("m1", "a"), medication("m2", "a")),
        request("r4"),
    ):
        put(store, one)
    yield store


def asked(store: Store, kind: str, *pairs: tuple[str, str], caller: Caller = SYSTEM) -> list[str]:
    """Every page of one, as `Type/id` or `container#id`; the total agrees."""
    plan = replace(query.parse(kind, pairs), count=1, total="accurate")
    found: list[str] = []
    with store.read(caller) as snapshot:
        while True:
            page = snapshot.search(plan)
            found += [f"{one.container}#{one.id}" if one.container else one.reference for one in page.matches]
            if page.next is None:
                assert page.total == len(found) == len(set(found))
                return sorted(found)
            plan = replace(plan, after=page.next)


def test_without_asking_contained_resources_are_not_found(stocked: Store) -> None:
    for pairs in ((), (("_contained", "false"),), (("code", "a"),), (("status:not", "inactive"),)):
        assert asked(stocked, "Medication", *pairs) == ["Medication/own"]
    assert asked(stocked, "Medication", ("code", "b")) == []
    assert asked(stocked, "Medication", ("_id", "m1")) == []


@pytest.mark.parametrize(
    ("pairs", "containers", "inside"),
    [
        ((), "r1 r2 r3", "r1#m1 r1#m2 r2#m1 r3#m1 r3#m2"),
        ((("code", "urn:c|a"),), "r1 r3", "r1#m1 r3#m1 r3#m2"),
        ((("code", "b"), ("status", "active")), "r2", "r2#m1"),
        ((("code", "b"), ("status:not", "active")), "r1", "r1#m2"),
        ((("code:text", "produit b"),), "r1 r2", "r1#m2 r2#m1"),
        ((("_id", "m2"),), "r1 r3", "r1#m2 r3#m2"),
        ((("_content", "produit"), ("_filter", "code eq b")), "r1 r2", "r1#m2 r2#m1"),
        ((("manufacturer:missing", "true"), ("code", "a")), "r1 r3", "r1#m1 r3#m1 r3#m2"),
        ((("_id:missing", "false"), ("code", "a")), "r1 r3", "r1#m1 r3#m1 r3#m2"),
    ],
)
def test_contained_resources_are_found_each_by_its_own_values(
    stocked: Store, pairs: tuple[tuple[str, str], ...], containers: str, inside: str
) -> None:
    holders = [f"MedicationRequest/{one}" for one in containers.split()]
    assert asked(stocked, "Medication", ("_contained", "true"), *pairs) == holders
    alone = [f"MedicationRequest/{one}" for one in inside.split()]
    within = ("_containedType", "contained")
    assert asked(stocked, "Medication", ("_contained", "true"), within, *pairs) == alone
    own = asked(stocked, "Medication", *pairs)
    assert asked(stocked, "Medication", ("_contained", "both"), *pairs) == sorted([*holders, *own])
    assert asked(stocked, "Medication", ("_contained", "both"), within, *pairs) == sorted([*alone, *own])


def test_a_contained_resource_is_answered_as_it_stands_in_its_container(stocked: Store) -> None:
    pairs = [("_contained", "true"), ("_containedType", "contained"), ("code", "b"), ("status", "inactive")]
    with stocked.read(SYSTEM) as snapshot:
        (one,) = snapshot.search(query.parse("Medication", pairs)).matches
    assert json_text.parse(one.text) == medication("m2", "b", "inactive")
    assert (one.type, one.container) == ("Medication", "MedicationRequest/r1")


def test_who_may_not_see_the_container_does_not_find_what_it_holds(stocked: Store) -> None:
    caller = Caller("nurse", "Nurse", frozenset(), frozenset(("here",)), everything=False)
    for within in ("container", "contained"):
        found = asked(
            stocked, "Medication", ("_contained", "both"), ("code", "a"), ("_containedType", within), caller=caller
        )
        assert [one.partition("#")[0] for one in found] == ["Medication/own", "MedicationRequest/r1"]


def test_rows_follow_the_container_when_it_changes_and_goes(stocked: Store) -> None:
    every = (("_contained", "true"), ("code", "a"), ("_containedType", "contained"))
    put(stocked, request("r1", medication("m9", "a")), new=False)
    stocked.write(SYSTEM, lambda tx: tx.delete("MedicationRequest", "r3"))
    assert asked(stocked, "Medication", *every) == ["MedicationRequest/r1#m9"]
    report = check(stocked, lambda one: _scoped(one))
    assert report.ok, report.problems


def _scoped(one: Resource) -> Any:
    rows = index.rows(one)
    rows.scopes = [("organisation", "here" if one["id"] != "r3" else "there")]
    return rows


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM idx_token WHERE rid < 0",
        "DELETE FROM contained",
        "UPDATE contained SET type = 'Patient'",
        "INSERT INTO idx_uri (pid, rid, uri) VALUES (1, -5, 'x')",
    ],
)
def test_damage_to_rows_of_contained_resources_is_seen_and_repaired(stocked: Store, damage: str) -> None:
    stocked.write(SYSTEM, lambda tx: tx.view.db.run(damage))
    assert "index" in check(stocked, _scoped).counts
    reindex(stocked, _scoped)
    report = check(stocked, _scoped)
    assert report.ok, report.problems
    assert len(asked(stocked, "Medication", ("_contained", "true"))) == 3


def chained() -> list[Resource]:
    """A request whose medication refers to its maker beside it, one whose maker is a resource, and one that has both
    elsewhere; observations of a contained patient and of a patient of the same name."""
    made: Resource = medication("m1", "a") | {"manufacturer": {"reference": "#o1"}}
    here: Resource = {"resourceType": "Organization", "id": "o1", "name": "Pharmacie interne"}
    away: Resource = medication("m1", "a") | {"manufacturer": {"reference": "Organization/big"}}
    person = {"resourceType": "Patient", "id": "p1", "name": [{"family": "Kerbrat"}]}
    seen = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}
    return [
        request("inside", made, here),
        request("mixed", away),
        request("outside") | {"medicationReference": {"reference": "Medication/m1"}},
        request("other", medication("m1", "b"), medication("m2", "a")),
        medication("m1", "a") | {"manufacturer": {"reference": "Organization/big"}},
        {"resourceType": "Organization", "id": "big", "name": "Pharmacie du monde"},
        seen | {"id": "ob1", "contained": [person], "subject": {"reference": "#p1"}},
        seen | {"id": "ob2", "subject": {"reference": "Patient/p1"}},
        seen | {"id": "ob3", "contained": [person], "subject": {"reference": "Patient/p1"}},
        person,
    ]


@pytest.mark.parametrize(
    ("kind", "pairs", "expected"),
    [
        ("MedicationRequest", (("medication.code", "a"),), "inside mixed outside"),
        ("MedicationRequest", (("medication:Medication.code", "b"),), "other"),
        ("MedicationRequest", (("medication.code", "a"), ("medication.status", "active")), "inside mixed outside"),
        ("MedicationRequest", (("medication._id", "m1"),), "inside mixed other outside"),
        ("MedicationRequest", (("medication.code:not", "a"),), "other"),
        ("MedicationRequest", (("medication.manufacturer:missing", "true"),), "other"),
        ("MedicationRequest", (("medication.manufacturer.name", "pharmacie"),), "inside mixed outside"),
        ("MedicationRequest", (("medication.manufacturer.name", "pharmacie int"),), "inside"),
        ("MedicationRequest", (("_filter", "medication.manufacturer.name sw pharmacie"),), "inside mixed outside"),
        ("MedicationRequest", (("_filter", "medication[code eq b or manufacturer.name co du].status eq active"),),
         "mixed other outside"),
        ("Observation", (("subject.name", "kerb"),), "ob1 ob2 ob3"),
        ("Observation", (("subject:Patient.name", "kerb"),), "ob1 ob2 ob3"),
        ("Observation", (("patient.name", "kerb"),), "ob1 ob2 ob3"),
        ("Observation", (("subject:Group.code", "kerb"),), ""),
        ("Observation", (("subject.name:missing", "true"),), ""),
        ("Patient", (("_has:Observation:subject:_id", "ob1"),), ""),
        ("Patient", (("_has:Observation:subject:_id", "ob3"),), "p1"),
    ],
)  # fmt: skip
def test_a_chain_looks_inside_contained_resources(
    store: Store, kind: str, pairs: tuple[tuple[str, str], ...], expected: str
) -> None:
    for one in chained():
        put(store, one)
    assert asked(store, kind, *pairs) == [f"{kind}/{one}" for one in expected.split()]


def test_long_chains_lead_through_contained_resources(store: Store) -> None:
    """A ring of two inside one resource, and from it to a resource and back."""
    part = {"resourceType": "Organization", "id": "a", "name": "a", "partOf": {"reference": "#b"}}
    other = {"resourceType": "Organization", "id": "b", "name": "b", "partOf": {"reference": "Organization/top"}}
    top = {"resourceType": "Organization", "id": "top", "name": "top", "partOf": {"reference": "Organization/low"}}
    put(store, top)
    put(store, {"resourceType": "Organization", "id": "low", "contained": [part, other], "name": "low"}
        | {"partOf": {"reference": "#a"}})  # fmt: skip
    steps = (
        (1, "a", "low"), (2, "b", "low"), (3, "top", "low"), (4, "low", "low"), (2, "a", "top"), (18, "b", "low"),
        (18, "low", ""), (19, "b", "top"), (20, "low", "low"),
    )  # fmt: skip
    for hops, name, expected in steps:
        found = asked(store, "Organization", ("partof:Organization." * hops + "name", name))
        assert found == [f"Organization/{one}" for one in expected.split()], (hops, name)


def test_alternatives_of_any_kind_are_asked_of_contained_resources(stocked: Store) -> None:
    inside = [("_contained", "true"), ("_containedType", "contained")]
    for text, expected in (
        ("_id eq m2 or code eq b", ["r1#m2", "r2#m1", "r3#m2"]),
        ("_id eq m2 or (code eq b and status eq active)", ["r1#m2", "r2#m1", "r3#m2"]),
    ):
        found = asked(stocked, "Medication", *inside, ("_filter", text))
        assert found == [f"MedicationRequest/{one}" for one in expected]


def test_a_chain_into_contained_resources_starts_at_what_the_caller_may_see(store: Store) -> None:
    for key in ("r3", "r5"):
        put(store, request(key, medication("m1", "a")))
    caller = Caller("nurse", "Nurse", frozenset(), frozenset(("here",)), everything=False)
    assert asked(store, "MedicationRequest", ("medication.code", "a"), caller=caller) == ["MedicationRequest/r5"]


def test_an_order_by_values_of_mixed_types_is_refused() -> None:
    with pytest.raises(errors.Invalid, match="order is that of"):
        query.parse("Medication", [("_contained", "true"), ("_sort", "code")])


def test_rows_of_hostile_contained_resources_are_bounded() -> None:
    held: list[Any] = [{"resourceType": "Medication", "id": f"m{n}"} for n in range(3_000)]
    rows = index.rows({"resourceType": "MedicationRequest", "id": "x", "contained": held})
    assert len(rows.contained) == index.MAX_CONTAINED
    odd: list[Any] = [1, None, {}, {"resourceType": "X", "id": "a"}, {"resourceType": "Patient"}, [], {"id": 5}]
    assert index.rows({"resourceType": "Patient", "id": "x", "contained": odd}).contained == []
