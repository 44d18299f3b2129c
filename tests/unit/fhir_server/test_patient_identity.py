"""Matching patients: by qualified INS with agreeing traits, by local identifier, and never by a guess."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fhir_server.demo import people
from fhir_server.demo.run import SITES
from fhir_server.errors import Invalid
from fhir_server.patients.identity import (
    RECONCILE_TAG,
    check_mode,
    fold,
    match,
    merged,
    qualified_ins,
    strict_traits,
    to_reconcile,
)
from fhir_server.patients.sites import load_sites

SITES_ = load_sites(SITES)


class Shelf:
    """A View over a list of patients; understands `identifier=system|value` and the doubtful tag."""

    def __init__(self, *patients: dict[str, Any]) -> None:
        self.patients = patients

    def get(self, reference: str) -> dict[str, Any] | None:
        return next((p for p in self.patients if f"Patient/{p['id']}" == reference), None)

    def find(self, resource_type: str, query: str) -> list[dict[str, Any]]:
        name, _, value = query.partition("=")
        if name == "_tag":
            return [p for p in self.patients if RECONCILE_TAG in p.get("meta", {}).get("tag", [])]
        system, _, key = value.partition("|")
        wanted = (system, key)
        return [p for p in self.patients if wanted in [(i["system"], i["value"]) for i in p.get("identifier", ())]]


def person(index: int = 0, **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(people.patient(index)) | changes


def without(patient: dict[str, Any], system: str) -> dict[str, Any]:
    return patient | {"identifier": [i for i in patient["identifier"] if i["system"] != system]}


def test_the_same_qualified_ins_with_the_same_traits_is_the_same_patient() -> None:
    stored = without(person(), people.IPP_SYSTEM)
    assert match(Shelf(stored), without(person(id="new"), people.IPP_SYSTEM), SITES_).reference == "Patient/patient-01"


def test_accents_hyphens_and_case_do_not_make_another_person() -> None:
    assert fold("d'Ébène-Noël") == "D EBENE NOEL"
    incoming = person(id="new")
    incoming["name"][0]["family"] = "martin test"
    assert match(Shelf(person()), without(incoming, people.IPP_SYSTEM), SITES_).kind == "same"


@pytest.mark.parametrize(
    "change",
    [
        {"birthDate": "1994-02-12"},
        {"gender": "male"},
        {"name": [{"use": "official", "family": "X", "given": ["LUCIE"]}]},
    ],
)
def test_the_same_ins_with_other_traits_is_never_guessed(change: dict[str, Any]) -> None:
    incoming = without(person(id="new", **change), people.IPP_SYSTEM)
    found = match(Shelf(person()), incoming, SITES_)
    assert (found.kind, found.reference) == ("reconcile", "")
    doubtful = to_reconcile(incoming, found.reason)
    assert qualified_ins(doubtful) is None
    assert RECONCILE_TAG in doubtful["meta"]["tag"]
    again = match(Shelf(person(), doubtful), incoming, SITES_)
    assert (again.kind, again.reference) == ("reconcile", "Patient/new")


def test_a_local_identifier_is_enough_in_its_own_namespace() -> None:
    assert match(Shelf(person()), without(person(id="n"), people.INS_SYSTEM), SITES_).kind == "same"
    foreign = without(person(id="n"), people.INS_SYSTEM)
    foreign["identifier"][0]["system"] = "urn:oid:9.9.9"
    assert match(Shelf(person()), foreign, SITES_).kind == "new"


def test_a_recycled_local_identifier_is_a_matter_for_a_person() -> None:
    other = person(1)
    other["identifier"] = [i for i in person()["identifier"] if i["system"] == people.IPP_SYSTEM]
    assert match(Shelf(person()), other, SITES_).kind == "reconcile"


def test_identifiers_of_two_people_are_never_joined() -> None:
    mixed = person(0)
    mixed["identifier"][1] = person(1)["identifier"][1]
    assert match(Shelf(person(0), person(1)), mixed, SITES_).kind == "reconcile"


def test_an_ins_without_a_qualified_identity_does_not_count() -> None:
    provisional = person(id="new")
    provisional["extension"][0]["extension"][0]["valueCoding"]["code"] = "PROV"
    assert qualified_ins(provisional) is None
    assert match(Shelf(person()), without(provisional, people.IPP_SYSTEM), SITES_).kind == "new"


def test_an_update_keeps_what_the_message_does_not_speak_of() -> None:
    stored = person(generalPractitioner=[{"reference": "Practitioner/lefevre"}])
    stored["identifier"].append({"system": "urn:oid:1.9", "value": "other hospital"})
    incoming = person(id="ignored", birthDate="1994-02-11")
    incoming["name"][0]["given"] = ["LUCIE-ANNE"]
    out = merged(stored, incoming)
    assert out["id"] == "patient-01"
    assert out["generalPractitioner"] == [{"reference": "Practitioner/lefevre"}]
    assert {"system": "urn:oid:1.9", "value": "other hospital"} in out["identifier"]
    assert strict_traits(out)[1] == "LUCIE"


def test_an_identity_that_is_no_longer_qualified_loses_its_ins() -> None:
    incoming = without(person(), people.INS_SYSTEM)
    incoming["extension"][0]["extension"][0]["valueCoding"]["code"] = "PROV"
    assert people.INS_SYSTEM not in {i["system"] for i in merged(person(), incoming)["identifier"]}


def test_a_production_site_refuses_test_identities() -> None:
    production = load_sites([dict(SITES[0]) | {"mode": "production"}]).default
    with pytest.raises(Invalid, match="production") as refused:
        check_mode(person(), production)
    assert refused.value.issues[0].expression == "Patient.identifier[0]"
    check_mode(person(), SITES_.default)
