"""Answers that come by ORU: each speaks by its own ORC, once, for one expert; who has left takes nothing."""

from __future__ import annotations

import pytest
from hubs import REQUESTER, found, put, read, stored
from sylve import patient, sample, say, sylve, tell
from test_intake_exchange import ACCEPTED, PLACER, REFUSAL, case

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.demo import people
from fhir_server.store.engine import Store


@pytest.fixture
def hub(store: Store) -> Hub:
    """Two requests about one patient, DEM-2026-79 to a group and DEM-2026-80 to another, both of one house."""
    hub = sylve(store)
    tell(hub, "adt-a01-admission")
    put(hub, SYSTEM, *people.structures("127.0.0.1:9", "127.0.0.1:10"), *people.professionals())
    for group in ("avis-echo", "avis-cardio"):
        provided = read(hub, f"HealthcareService/{group}") | {"providedBy": {"reference": "Organization/sylve"}}
        put(hub, SYSTEM, provided)
    finess = {"system": people.FINESS, "value": "990000018"}
    home = {"resourceType": "Organization", "id": "ch-demo", "name": "CH de démonstration", "identifier": [finess]}
    put(hub, SYSTEM, home)
    case(hub)
    return hub


def second(hub: Hub, group: str) -> None:
    """The request DEM-2026-80."""
    target = {"subject": {"reference": f"Patient/{patient(hub)['id']}"}}
    consent = people.consent("c2", 0) | {"patient": target["subject"]}
    placer = {"type": {"coding": [{"code": "PLAC"}]}, "system": PLACER, "value": "DEM-2026-80"}
    asked = people.request("c2", 0, "moreau", group, "Avis", "active") | target
    put(hub, REQUESTER, consent, asked | {"identifier": [placer]})


def colleague(hub: Hub) -> None:
    """A second expert of the first group, RPPS 99000000999."""
    number = {"identifier": [{"system": people.RPPS, "value": "99000000999"}]}
    role = {name: value for name, value in read(hub, "PractitionerRole/garnier").items() if name != "meta"}
    person = {"resourceType": "Practitioner", "id": "second", "name": [{"family": "SECOND"}]}
    here = {"id": "second", "practitioner": {"reference": "Practitioner/second"}}
    put(hub, SYSTEM, person | number, role | here | number)


def twice(raw: bytes, *changes: tuple[str, str]) -> bytes:
    """A message whose order comes again, changed."""
    lines = raw.decode().rstrip("\r").split("\r")
    again = "\r".join(lines[2:])
    for old, new in changes:
        assert old in again, old
        again = again.replace(old, new)
    return ("\r".join([*lines, again]) + "\r").encode()


OTHER = ("DEM-2026-79", "DEM-2026-80")


def test_one_message_answers_requests_to_two_groups_of_a_house(hub: Hub) -> None:
    second(hub, "avis-cardio")
    assert say(hub, twice(sample(REFUSAL), OTHER)).code == "AA"
    assert [read(hub, f"ServiceRequest/{one}")["status"] for one in ("c1", "c2")] == ["revoked", "revoked"]


def test_one_expert_takes_two_requests_in_one_message(hub: Hub) -> None:
    second(hub, "avis-echo")
    assert say(hub, twice(sample(REFUSAL, *ACCEPTED), OTHER)).code == "AA"
    for one in ("c1", "c2"):
        assert read(hub, f"ServiceRequest/{one}")["performer"][-1]["reference"] == "PractitionerRole/garnier"


@pytest.mark.parametrize("named", [("99000000037^GARNIER", "99000000999^SECOND"), ("99000000037", "99000000000")])
def test_no_request_is_taken_for_the_expert_of_another_answer(hub: Hub, named: tuple[str, str]) -> None:
    second(hub, "avis-echo")
    colleague(hub)
    before = [stored(hub, f"ServiceRequest/{one}").version for one in ("c1", "c2")]
    told = say(hub, twice(sample(REFUSAL, *ACCEPTED), OTHER, named))
    assert (told.code, told.errors[0].location) == ("AE", "ORC^2^12")
    assert [stored(hub, f"ServiceRequest/{one}").version for one in ("c1", "c2")] == before


def test_the_place_of_what_is_refused_is_that_of_its_own_order(hub: Hub) -> None:
    told = say(hub, twice(sample(REFUSAL), OTHER))
    assert (told.code, told.application_code, told.errors[0].location) == ("AE", "900", "ORC^2^2")
    assert read(hub, "ServiceRequest/c1")["status"] == "active"


def test_a_refusal_that_is_said_twice_is_noted_once(hub: Hub) -> None:
    assert say(hub, twice(sample(REFUSAL))).code == "AA"
    assert [one["text"] for one in read(hub, "ServiceRequest/c1")["note"]] == ["Refus : Appareil inadapté"]


def test_a_message_that_takes_and_refuses_one_request_does_neither(hub: Hub) -> None:
    told = say(hub, twice(sample(REFUSAL, *ACCEPTED), ("ORC|OK|", "ORC|OC|")))
    assert (told.code, told.errors[0].location) == ("AE", "ORC^2^1")
    assert "in_progress" not in str(read(hub, "ServiceRequest/c1"))


def test_an_acceptance_by_a_professional_who_has_left_is_refused(hub: Hub) -> None:
    person = read(hub, read(hub, "PractitionerRole/garnier")["practitioner"]["reference"])
    put(hub, SYSTEM, person | {"active": False})
    told = say(hub, sample(REFUSAL, *ACCEPTED))
    assert (told.code, told.errors[0].location) == ("AE", "ORC^1^12")
    assert "in_progress" not in str(read(hub, "ServiceRequest/c1")["extension"])


# --- results and drafts ----------------------------------------------------------------------------------------------


def test_a_result_of_another_house_leaves_a_draft_alone(hub: Hub) -> None:
    case(hub, "DEM-2026-77", status="draft", id="c3")
    before = stored(hub, "ServiceRequest/c3")
    row = tell(hub, "oru-r01-biologie")
    after = stored(hub, before.reference)
    assert (after.version, after.text) == (before.version, before.text)
    assert "is a draft of who asks" in row.note and len(found(hub, "DiagnosticReport")) == 1


def test_a_result_of_the_house_that_asks_is_shown_in_its_draft(hub: Hub) -> None:
    placer = {"type": {"coding": [{"code": "PLAC"}]}, "system": PLACER, "value": "DEM-2026-77"}
    mine = placer | {"assigner": {"reference": "Organization/sylve"}}
    case(hub, status="draft", id="c3", identifier=[mine])
    tell(hub, "oru-r01-biologie")
    (report,) = found(hub, "DiagnosticReport")
    shown = read(hub, "ServiceRequest/c3")["supportingInfo"]
    assert {"reference": f"DiagnosticReport/{report['id']}"} in shown


def test_an_answer_behind_a_result_about_the_same_request_is_heard(hub: Hub) -> None:
    lines = sample("oru-r01-biologie", ("DEM-2026-77", "DEM-2026-79")).decode().rstrip("\r").split("\r")
    answer = sample(REFUSAL).decode().rstrip("\r").split("\r")[2:]
    assert say(hub, ("\r".join([*lines, *answer]) + "\r").encode()).code == "AA"
    assert read(hub, "ServiceRequest/c1")["status"] == "revoked"
