"""Matching patients: by qualified INS with agreeing traits, by local identifier, and never by a guess."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from identities import (
    CHANGES,
    INS,
    NIA,
    NIR,
    SITES_,
    changed,
    named,
    person,
    unqualified,
    with_ins,
    with_status,
    without,
)
from shelves import Shelf

from fhir_server.demo import people
from fhir_server.patients.identity import (
    RECONCILE_TAG,
    Match,
    lowered,
    match,
    merge_notes,
    merged,
    qualified_ins,
    status_of,
    to_reconcile,
)
from fhir_server.patients.traits import agree, birth_name, differences, fold, strict_traits
from fhir_server.patients.writing import check_ins, check_update
from mappers.hl7v2_pid_to_fhir import BIRTH_DATE_CORRECTED, LUNAR_DATE


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
    assert match(Shelf(person()), foreign, SITES_).kind == "reconcile", "nobody declares the namespace"


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
    found = match(Shelf(person()), without(provisional, people.IPP_SYSTEM), SITES_)
    assert (found.kind, found.reference) == ("reconcile", ""), "nothing it could be known by is left"


def test_an_update_keeps_what_the_message_does_not_speak_of() -> None:
    stored = person(generalPractitioner=[{"reference": "Practitioner/lefevre"}])
    stored["identifier"].append({"system": "urn:oid:1.9", "value": "other hospital"})
    incoming = person(id="ignored", birthDate="1994-02-11")
    incoming["name"][0]["given"] = ["LUCIE-ANNE"]
    out = merged(stored, incoming)
    assert out["id"] == "patient-01"
    assert out["generalPractitioner"] == [{"reference": "Practitioner/lefevre"}]
    assert {"system": "urn:oid:1.9", "value": "other hospital"} in out["identifier"]
    assert strict_traits(out).given == "LUCIE ANNE"
    assert merge_notes(stored, incoming) == ()


def test_an_identity_that_is_no_longer_qualified_loses_its_ins() -> None:
    incoming = with_status(without(person(), people.INS_SYSTEM), "PROV")
    assert people.INS_SYSTEM not in {i["system"] for i in merged(person(), incoming)["identifier"]}
    held = lowered(person(), incoming, untold=False)
    assert status_of(held) == "PROV" and people.INS_SYSTEM not in {i["system"] for i in held["identifier"]}
    assert strict_traits(held) == strict_traits(person())
    assert status_of(lowered(person(), {"resourceType": "Patient"}, untold=True)) == ""


# --- what counts as a strict trait -----------------------------------------------------------------------------------


def test_a_used_name_is_no_strict_trait() -> None:
    married = person()
    married["name"].insert(0, {"use": "usual", "family": "DUPONT", "given": ["LUCIE"]})
    assert strict_traits(married) == strict_traits(person())
    assert birth_name({"name": [{"use": "usual", "family": "DUPONT"}]}) == {}
    assert strict_traits({"name": [{"use": "nickname", "given": ["LULU"]}]}) == ("", "", "", "")


@pytest.mark.parametrize(
    ("names", "family"),
    [
        ([{"family": "A"}], "A"),
        ([{"use": "maiden", "family": "B"}, {"family": "A"}], "B"),
        ([{"family": "A"}, {"use": "official", "family": "C"}, {"use": "maiden", "family": "B"}], "C"),
        ([{"use": "old", "family": "D"}], ""),
        ([{"use": "official"}], ""),
    ],
)
def test_the_birth_name_is_the_official_one_else_the_maiden_one(names: list[dict[str, Any]], family: str) -> None:
    assert strict_traits({"name": names}).family == family


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("JEAN-PIERRE", "Jean Pierre", True),
        ("JEAN", "JEAN-PIERRE", True),
        ("JEAN-PIERRE", "JEAN-PAUL", False),
        ("JEAN", "JEANNE", False),
        ("ÉLODIE", "ELODIE", True),
    ],
)
def test_a_first_given_name_may_be_the_beginning_of_a_composed_one(one: str, other: str, same: bool) -> None:
    first, second = named(given=one), named(given=other)
    assert agree(first, second) is agree(second, first) is same
    assert ("given" in differences(first, second)) is not same


MISSING: dict[str, dict[str, Any]] = {
    "birth name": {"name": [{"use": "official", "given": ["LUCIE"]}]},
    "given name": {"name": [{"use": "official", "family": "MARTIN-TEST"}]},
    "only a used name": {"name": [{"use": "usual", "family": "MARTIN-TEST", "given": ["LUCIE"]}]},
    "birth date": {"birthDate": ""},
    "month of birth only": {"birthDate": "1994-02"},
    "sex": {"gender": ""},
    "sex unknown": {"gender": "unknown"},
}


@pytest.mark.parametrize("missing", MISSING)
def test_an_ins_alone_does_not_match_when_a_strict_trait_is_missing_on_either_side(missing: str) -> None:
    whole, poor = without(person(), people.IPP_SYSTEM), without(person(**MISSING[missing]), people.IPP_SYSTEM)
    for stored, incoming in ((whole, poor), (poor, whole)):
        assert not agree(stored, incoming)
        assert match(Shelf(stored), incoming | {"id": "new"}, SITES_).kind == "reconcile"


@pytest.mark.parametrize("missing", ["birth name", "given name", "only a used name", "birth date", "sex"])
def test_a_strict_trait_that_both_sides_lack_is_no_agreement(missing: str) -> None:
    poor = without(person(**MISSING[missing]), people.IPP_SYSTEM)
    assert not agree(poor, poor)
    assert match(Shelf(poor), poor | {"id": "new"}, SITES_).kind == "reconcile"


# --- a known local identifier: which differences are one person ------------------------------------------------------


@pytest.mark.parametrize("trait", CHANGES)
def test_one_strict_trait_is_corrected_under_a_known_local_identifier(trait: str) -> None:
    assert differences(person(), changed(trait)) == {trait}
    assert match(Shelf(person()), changed(trait), SITES_) == Match("same", "Patient/patient-01")


@pytest.mark.parametrize("qualified", [True, False])
@pytest.mark.parametrize(
    "traits",
    [
        ("family", "gender"),
        ("given", "gender"),
        ("family", "birth_date"),
        ("given", "birth_date"),
        ("birth_date", "gender"),
        ("family", "given"),
        ("family", "given", "gender"),
        ("family", "given", "birth_date", "gender"),
    ],
)
def test_two_strict_traits_at_once_under_a_known_local_identifier_are_for_a_person(
    traits: tuple[str, ...], qualified: bool
) -> None:
    found = match(Shelf(person()), changed(*traits, qualified=qualified), SITES_)
    assert found.kind == "reconcile"
    assert found.reason.startswith("the local identifier is known with another ")
    assert ("sex" in found.reason) is ("gender" in traits)


def test_a_newborn_gets_its_names_while_its_identity_is_not_qualified() -> None:
    provisional = unqualified(person())
    assert match(Shelf(provisional), changed("family", "given", qualified=False), SITES_).kind == "same"
    for missing in ({"gender": "unknown"}, {"birthDate": "1994"}, {"birthDate": ""}):
        stored = provisional | missing
        assert match(Shelf(stored), changed("family", "given", qualified=False), SITES_).kind == "reconcile"
    assert match(Shelf(provisional), changed("family", "given", "gender", qualified=False), SITES_).kind == "reconcile"


def test_what_only_one_side_knows_is_no_difference_under_a_known_local_identifier() -> None:
    for poor in (*MISSING.values(), {"birthDate": "1994"}, {"gender": "other"}):
        incoming = unqualified(person(id="n", **poor))
        assert match(Shelf(person()), incoming, SITES_).kind == "same"


# --- another INS -----------------------------------------------------------------------------------------------------


def test_a_known_local_identifier_with_another_ins_is_for_a_person() -> None:
    found = match(Shelf(person()), with_ins("294029912300199", id="n"), SITES_)
    assert (found.kind, found.reason) == ("reconcile", "the local identifier is known with another INS")


def test_an_event_that_is_meant_to_change_an_identity_may_change_the_ins_and_the_traits() -> None:
    other = with_ins("294029912300199", id="n")
    assert match(Shelf(person()), other, SITES_, identity_change=True) == Match("same", "Patient/patient-01")
    assert qualified_ins(merged(person(), other, identity_change=True)) == (people.INS_SYSTEM, "294029912300199")
    swapped = changed("family", "given", "gender")
    assert match(Shelf(person()), swapped, SITES_, identity_change=True).kind == "same"
    taken = with_ins(people.ins(people.PATIENTS[1][5]))
    assert match(Shelf(person(), person(1)), taken, SITES_, identity_change=True).kind == "reconcile"


def test_a_provisional_matricule_becomes_the_definitive_one_of_the_same_person() -> None:
    nia, nir = with_ins(people.ins("7940299123001"), NIA), with_ins(INS, NIR, id="n")
    assert match(Shelf(nia), nir, SITES_).kind == "same"
    out = merged(nia, nir)
    assert qualified_ins(out) == (NIR, INS)
    assert [i.get("use") for i in out["identifier"] if i["system"] == NIA] == ["old"]
    check_ins(out)
    check_update(nia, out)
    back = match(Shelf(nir | {"id": "x"}), nia, SITES_)
    assert back.reason == "the local identifier is known with another INS"
    corrected = nir | {"birthDate": "1994-02-12"}
    assert match(Shelf(nia), corrected, SITES_).reason == "the local identifier is known with another INS"


def test_an_ins_of_another_kind_does_not_stay_beside_the_new_one() -> None:
    out = merged(person(), with_ins("294029912300199", NIR), identity_change=True)
    assert [i["system"] for i in out["identifier"] if i["system"] != people.IPP_SYSTEM] == [NIR]


# --- a message that does not qualify the identity --------------------------------------------------------------------


def test_silence_changes_no_strict_trait_of_a_qualified_identity_and_says_what_it_did_not_take() -> None:
    incoming = unqualified(named(given="LUCILE", family="MARTIN", birthDate="1994-02-12", gender="male"))
    incoming["extension"] = [{"url": people.FR.replace("hl7.fr", "x"), "valueString": "kept"}]
    place = {"extension": [{"url": people.FR + "fr-core-address-insee-code", "valueCoding": {"code": "75056"}}]}
    incoming["extension"].append(
        {"url": "http://hl7.org/fhir/StructureDefinition/patient-birthPlace", "valueAddress": place}
    )
    incoming |= {"telecom": [{"value": "0600000000"}], "address": [{"city": "Exempleville"}]}
    incoming["name"].append({"use": "usual", "family": "DUPONT", "given": ["LUCIE"]})
    out = merged(person(), incoming)
    assert strict_traits(out) == strict_traits(person())
    assert qualified_ins(out) == qualified_ins(person())
    assert [e for e in out["extension"] if "birthPlace" in e["url"]] == [person()["extension"][1]]
    assert (out["telecom"], out["address"]) == (incoming["telecom"], incoming["address"])
    assert out["name"] == [person()["name"][0], incoming["name"][1]]
    assert any(e.get("valueString") == "kept" for e in out["extension"])
    places = [note.partition(":")[0] for note in merge_notes(person(), incoming)]
    assert places == ["Patient.name", "Patient.birthDate", "Patient.gender", "Patient.extension(birthPlace)"]


def told_of_birth(patient: dict[str, Any], lunar: str = "1994-02-30") -> dict[str, Any]:
    """A Patient with what ZFD says of the birth date."""
    more = [{"url": LUNAR_DATE, "valueString": lunar}, {"url": BIRTH_DATE_CORRECTED, "valueBoolean": True}]
    return patient | {"extension": [*patient.get("extension", ()), *more]}


def of_birth(patient: dict[str, Any]) -> list[Any]:
    found = (one for one in patient.get("extension", ()) if one["url"] in (LUNAR_DATE, BIRTH_DATE_CORRECTED))
    return [one.get("valueString", one.get("valueBoolean")) for one in found]


def test_what_is_said_of_a_birth_date_leaves_with_it() -> None:
    stored = told_of_birth(unqualified(person()))
    assert of_birth(merged(stored, unqualified(person()))) == ["1994-02-30", True], "the date is the same"
    silent = {name: value for name, value in unqualified(person()).items() if name != "birthDate"}
    assert of_birth(merged(stored, silent)) == ["1994-02-30", True]
    other = unqualified(person()) | {"birthDate": "1994-03-01"}
    assert of_birth(merged(stored, other)) == []
    assert of_birth(merged(stored, told_of_birth(other, "1994-02-31"))) == ["1994-02-31", True]


@pytest.mark.parametrize("stored", [person(), told_of_birth(person())], ids=["nothing known", "known"])
def test_a_qualified_identity_takes_nothing_of_a_birth_date_from_silence(stored: dict[str, Any]) -> None:
    incoming = told_of_birth(unqualified(person()), "1990-01-30")
    assert of_birth(merged(stored, incoming)) == of_birth(stored)
    places = [note.partition(":")[0] for note in merge_notes(stored, incoming)]
    assert "Patient.extension(lunarDate)" in places


def test_silence_that_says_the_same_leaves_nothing_to_tell() -> None:
    assert merge_notes(person(), unqualified(person())) == ()
    assert merge_notes(person(), {"resourceType": "Patient", "telecom": [{"value": "1"}]}) == ()


def test_a_status_that_comes_without_a_usable_ins_is_silence() -> None:
    claims = without(changed("family"), people.INS_SYSTEM)
    assert status_of(claims) == "VALI"
    out = merged(person(), claims)
    assert strict_traits(out) == strict_traits(person())
    assert qualified_ins(out) == qualified_ins(person())


def test_a_trait_the_qualified_identity_lacks_is_taken() -> None:
    stored = {name: value for name, value in person().items() if name != "gender"}
    assert merged(stored, unqualified(person()))["gender"] == "female"
    assert merge_notes(stored, unqualified(person())) == ()


def test_strict_traits_change_when_the_stored_identity_is_not_qualified_or_the_event_means_to() -> None:
    incoming = unqualified(changed("family"))
    for stored, meant in ((unqualified(person()), False), (person(), True)):
        assert strict_traits(merged(stored, incoming, identity_change=meant)).family == "DURAND TEST"
        assert merge_notes(stored, incoming, identity_change=meant) == ()


# --- doubtful records ------------------------------------------------------------------------------------------------


def test_a_doubtful_record_is_found_again_unless_its_local_identifier_is_another() -> None:
    stranger = changed("family", "given", "gender")
    first = to_reconcile(stranger, "?") | {"id": "doubt"}
    assert match(Shelf(person(), first), stranger, SITES_).reference == "Patient/doubt"
    homonym = copy.deepcopy(first)
    homonym["identifier"][0]["value"] = "DEMO9999"
    assert match(Shelf(person(), homonym), stranger, SITES_) == Match(
        "reconcile", "", match(Shelf(person()), stranger, SITES_).reason
    )
