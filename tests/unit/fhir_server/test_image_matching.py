"""Where a study belongs: the rules of matching, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from shelves import Shelf

from dicom_node.header import Header, Identifier
from fhir_server.demo import people
from fhir_server.demo.run import SITES
from fhir_server.imaging import studies
from fhir_server.imaging.studies import Found
from fhir_server.patients.identity import RECONCILE_TAG
from fhir_server.patients.sites import load_sites
from fhir_server.store.instances import Study

Resource = dict[str, Any]
IPP = "DEMO0001"
HOSPITAL = Identifier(IPP, issuer="CH-DEMO")


def asking(key: str, patient: int = 0, number: str = "ACC1") -> Resource:
    return people.request(key, patient, "moreau", "avis-echo", "?") | {
        "identifier": [{"system": people.ACCESSION_SYSTEM, "value": number}]
    }


def plain(key: str, patient: int = 0) -> Resource:
    """An order outside any téléexpertise."""
    return {name: value for name, value in asking(key, patient).items() if name != "category"}


def bare(key: str, code: str = "ACSN") -> Resource:
    """A number without a system."""
    kind = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": code}]}
    return asking(key) | {"identifier": [{"type": kind, "value": "ACC1"}]}


MARTIN, BERNARD = people.patient(0), people.patient(1)
DOUBT = people.patient(0) | {"meta": {"tag": [RECONCILE_TAG]}}
OLD = people.patient(0) | {"identifier": [people.patient(0)["identifier"][1] | {"use": "old"}]}
MARRIED = MARTIN | {"name": [*MARTIN["name"], {"use": "usual", "family": "EPOUX-TEST"}]}
BY_OID = Identifier(IPP, universal_id="2.25.218173906210472563340846263146912093712", universal_id_type="ISO")
BY_INS = Identifier(people.ins(people.PATIENTS[0][5]), universal_id="1.2.250.1.213.1.4.10", universal_id_type="ISO")
FOREIGN = Identifier(IPP, issuer="AILLEURS")
BARE = Identifier(IPP)
NONE = Identifier("")
ASKED, OTHERS = "ServiceRequest/r", "ServiceRequest/s"
P1, P2 = "Patient/patient-01", "Patient/patient-02"

# What is stored; patient id, name, birth date, accession number, calling AE of the images; (state, subject, request).
CASES: Mapping[str, tuple[tuple[Resource, ...], Identifier, str, str, str, str, tuple[str, str, str]]] = {
    "patient by local issuer": ((MARTIN,), HOSPITAL, "X", "", "", "ECHO1", ("patient", P1, "")),
    "patient by OID": ((MARTIN,), BY_OID, "X", "", "", "ELSEWHERE", ("patient", P1, "")),
    "patient by INS": ((MARTIN,), BY_INS, "X", "", "", "ELSEWHERE", ("patient", P1, "")),
    "patient by the default of the AE": ((MARTIN,), BARE, "X", "", "", "ECHO1", ("patient", P1, "")),
    "no default for another AE": ((MARTIN,), BARE, "X", "", "", "ELSEWHERE", ("unmatched", "", "")),
    "a foreign issuer is not replaced": ((MARTIN,), FOREIGN, "X", "", "", "ECHO1", ("unmatched", "", "")),
    "a doubtful record does not count": ((DOUBT,), HOSPITAL, "X", "", "", "ECHO1", ("unmatched", "", "")),
    "an old number does not count": ((OLD,), HOSPITAL, "X", "", "", "ECHO1", ("unmatched", "", "")),
    "an inactive record does not count": (
        (MARTIN | {"active": False},), HOSPITAL, "X", "", "", "ECHO1", ("unmatched", "", ""),
    ),
    "one number, two patients": (
        (MARTIN, BERNARD | {"identifier": MARTIN["identifier"]}), HOSPITAL, "X", "", "", "ECHO1", ("unmatched", "", ""),
    ),
    "request and patient agree": ((MARTIN, asking("r")), HOSPITAL, "X", "", "ACC1", "ECHO1", ("matched", P1, ASKED)),
    "a number nobody has": ((MARTIN, asking("r")), HOSPITAL, "X", "", "ACC2", "ECHO1", ("patient", P1, "")),
    "the request of another patient": (
        (MARTIN, BERNARD, asking("r", 1)), HOSPITAL, "X", "", "ACC1", "ECHO1", ("unmatched", "", ""),
    ),
    "two requests, one number": (
        (MARTIN, asking("r"), asking("s")), HOSPITAL, "X", "", "ACC1", "ECHO1", ("unmatched", P1, ""),
    ),
    "an order beside the case": (
        (MARTIN, BERNARD, plain("o", 1), asking("r")), HOSPITAL, "X", "", "ACC1", "ECHO1", ("matched", P1, ASKED),
    ),
    "an order alone": ((MARTIN, plain("r")), HOSPITAL, "X", "", "ACC1", "ECHO1", ("matched", P1, ASKED)),
    "a number without a system": ((MARTIN, bare("r")), HOSPITAL, "X", "", "ACC1", "ECHO1", ("matched", P1, ASKED)),
    "a bare number of another kind": (
        (MARTIN, bare("r", "PLAC")), HOSPITAL, "X", "", "ACC1", "ECHO1", ("patient", P1, ""),
    ),
    "our number, a patient we do not know": (
        (BERNARD, asking("r", 1)), HOSPITAL, "X", "", "ACC1", "ECHO1", ("unmatched", "", ""),
    ),
    "our number, nobody named, name and birth agree": (
        (MARTIN, asking("r")), NONE, "martin test^LUCIE", "19940211", "ACC1", "ELSEWHERE", ("matched", P1, ASKED),
    ),
    "our number, foreign number, name and birth agree": (
        (MARTIN, asking("r")), FOREIGN, "MARTIN-TEST^L", "19940211", "ACC1", "ELSEWHERE", ("matched", P1, ASKED),
    ),
    "our number, name differs": (
        (MARTIN, asking("r")), NONE, "DUPONT^LUCIE", "19940211", "ACC1", "ELSEWHERE", ("unmatched", "", ""),
    ),
    "our number, birth date differs": (
        (MARTIN, asking("r")), NONE, "MARTIN-TEST^LUCIE", "19940212", "ACC1", "ELSEWHERE", ("unmatched", "", ""),
    ),
    "our number, no name": ((MARTIN, asking("r")), NONE, "", "19940211", "ACC1", "ELSEWHERE", ("unmatched", "", "")),
    "our number, no birth date": (
        (MARTIN, asking("r")), NONE, "MARTIN-TEST", "", "ACC1", "ELSEWHERE", ("unmatched", "", ""),
    ),
    "our number, the patient is gone": ((asking("r"),), NONE, "X", "", "ACC1", "ECHO1", ("unmatched", "", "")),
    "our number, nobody is named by the request": (
        ((asking("r") | {"subject": {"display": "?"}}),), NONE, "X", "", "ACC1", "ECHO1", ("unmatched", "", ""),
    ),
    "a number with signs is only itself": (
        (MARTIN, asking("r", number="A")), HOSPITAL, "X", "", "A&identifier=B", "ECHO1", ("patient", P1, ""),
    ),
    "a known number, another name and birth date": (
        (MARTIN, asking("r")), HOSPITAL, "DUPONT^ZOE", "19800101", "ACC1", "ECHO1", ("unmatched", "", ""),
    ),
    "a known number, another given name and birth date, no request": (
        (MARTIN,), HOSPITAL, "MARTIN-TEST^ZOE", "19800101", "", "ECHO1", ("unmatched", "", ""),
    ),
    "a known number, another birth date alone": (
        (MARTIN, asking("r")), HOSPITAL, "MARTIN-TEST^LUCIE", "19940212", "ACC1", "ECHO1", ("matched", P1, ASKED),
    ),
    "a known number, a used name and another birth date": (
        (MARRIED,), HOSPITAL, "EPOUX-TEST^LUCIE", "19940212", "", "ECHO1", ("patient", P1, ""),
    ),
    "a known number, a birth date that is none": (
        (MARTIN,), HOSPITAL, "DUPONT^LUCIE", "1994-2-1", "", "ECHO1", ("patient", P1, ""),
    ),
    "nothing is known": ((), NONE, "", "", "", "ELSEWHERE", ("unmatched", "", "")),
}  # fmt: skip


def a_study(**more: Any) -> Study:
    values: dict[str, Any] = {field.name: "" for field in dataclasses.fields(Study)}
    return Study(**(values | {"study_uid": "1.2", "match_state": "new", "calling_ae": "ECHO1"} | more))


def header(identifier: Identifier, name: str = "X", born: str = "", number: str = "") -> Header:
    return Header(
        patient_id=identifier, patient_name=name, patient_birth_date=born, accession_number=Identifier(number)
    )


@pytest.mark.parametrize("name", CASES)
def test_a_study_belongs_where_the_rules_say(name: str) -> None:
    stored, identifier, who, born, number, calling, wanted = CASES[name]
    seen = header(identifier, who, born, number)
    said = studies.match(a_study(calling_ae=calling), seen, Shelf(*stored), load_sites(SITES))
    assert (said.state, said.subject, said.request) == wanted
    assert said.note or said.state == "matched", "whatever is not whole says why"
    if said.state == "matched":
        assert ("the images show another" in said.note) == (who == "X" or name.endswith("birth date alone"))


def test_a_patient_is_found_by_an_other_identifier_of_the_images() -> None:
    """(0010,1002): each with its issuer; a bare one never takes the namespace of the calling AE."""
    shelf, sites = Shelf(MARTIN, BERNARD), load_sites(SITES)
    for others, wanted in (((BY_INS,), P1), ((FOREIGN, BY_OID), P1), ((BARE,), ""), ((FOREIGN,), "")):
        seen = dataclasses.replace(header(FOREIGN), other_patient_ids=others)
        assert studies.match(a_study(), seen, shelf, sites).subject == wanted
    both = dataclasses.replace(header(Identifier("DEMO0002", "CH-DEMO")), other_patient_ids=(BY_INS,))
    said = studies.match(a_study(), both, shelf, sites)
    assert (said.state, said.subject) == ("unmatched", "") and "several patients" in said.note


def test_a_persons_decision_is_never_overwritten() -> None:
    decided = a_study(match_state="manual", request=OTHERS, note="by hand")
    shelf = Shelf(MARTIN, BERNARD, asking("r"), asking("s", 1, "ACC2"))
    said = studies.match(decided, header(HOSPITAL, number="ACC1"), shelf, load_sites(SITES))
    assert said == Found("manual", P2, OTHERS, "by hand")


def test_images_of_one_study_must_all_say_the_same() -> None:
    shelf, sites = Shelf(MARTIN, BERNARD), load_sites(SITES)
    one, other = header(HOSPITAL), header(Identifier("DEMO0002", "CH-DEMO"))
    assert studies.match_all(a_study(), [one, one], shelf, sites).subject == P1
    assert studies.match_all(a_study(), [one, header(BY_INS)], shelf, sites).subject == P1
    assert studies.match_all(a_study(), [one, other], shelf, sites).state == "unmatched"


def test_the_imaging_study_of_a_study_is_always_the_same() -> None:
    assert studies.reference_of("1.2.3") == studies.reference_of("1.2.3") != studies.reference_of("1.2.4")
