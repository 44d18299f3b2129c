"""Which side of a request an establishment speaks for, and that a draft is changed by HL7 v2 by who asks alone."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
from hubs import REQUESTER, SYSTEM, found, hub_on, put, read
from sylve import SITE, patient, sample, say, tell

from fhir_server.app import seed_sites
from fhir_server.changes import Hub
from fhir_server.context import View
from fhir_server.demo import people
from fhir_server.demo.run import SITES
from fhir_server.patients.sites import load_sites
from fhir_server.store.engine import Store
from fhir_server.teleexpertise.sides import asks, belongs, groups_of, only_asked

Resource = dict[str, Any]
HOUSE = "Organization/b"


class Shelf:
    """Some resources as a View."""

    def __init__(self, *resources: Resource) -> None:
        self._held = {f"{one['resourceType']}/{one['id']}": one for one in resources}

    def get(self, reference: str) -> Resource | None:
        return self._held.get(reference)


def view(*resources: Resource) -> View:
    return cast(View, Shelf(*resources))


def for_(*references: str, **more: Any) -> Resource:
    return {"performer": [{"reference": one} for one in references]} | more


def test_a_structure_that_is_asked_itself_is_on_the_asked_side() -> None:
    assert only_asked(for_(HOUSE), HOUSE, view())
    assert not only_asked(for_("Organization/c"), HOUSE, view())
    ward = {"resourceType": "Organization", "id": "ward", "partOf": {"reference": HOUSE}}
    assert only_asked(for_("Organization/ward"), HOUSE, view(ward)), "what is asked of a part is asked of the whole"


def test_an_establishment_answers_for_itself_its_parts_and_the_groups_they_provide() -> None:
    ward = {"resourceType": "Organization", "id": "ward", "partOf": {"reference": HOUSE}}
    group = {"resourceType": "HealthcareService", "id": "g", "providedBy": {"reference": "Organization/ward"}}
    other = group | {"id": "h", "providedBy": {"reference": "Organization/c"}}
    person = {"resourceType": "PractitionerRole", "id": "p", "organization": {"reference": HOUSE}}
    asked = for_("HealthcareService/g", "HealthcareService/h", HOUSE, "Organization/ward", "Organization/c",
                 "PractitionerRole/p")  # fmt: skip
    held = view(ward, group, other, person)
    assert groups_of(asked, HOUSE, held) == {"HealthcareService/g", HOUSE, "Organization/ward"}
    assert groups_of(asked, "Organization/ward", held) == {"HealthcareService/g", "Organization/ward"}
    assert groups_of(asked, "", held) == frozenset(), "nobody's establishment answers for nobody"


def test_who_works_in_a_structure_or_in_a_part_of_it_belongs_to_it_and_to_no_other() -> None:
    ward = {"resourceType": "Organization", "id": "ward", "partOf": {"reference": HOUSE}}
    mine = {
        "organization": {"reference": "Organization/ward"},
        "healthcareService": [{"reference": "HealthcareService/g"}],
    }
    for party, expected in ((HOUSE, True), ("Organization/ward", True), ("Organization/c", False),
                            ("HealthcareService/g", True), ("HealthcareService/h", False)):  # fmt: skip
        assert belongs(mine, frozenset({party}), view(ward)) is expected, party
    assert not belongs({}, frozenset({HOUSE}), view(ward))


def test_a_structure_that_asks_itself_is_on_both_sides() -> None:
    """So is a draft that came by HL7 v2 without a group: it names the structure that ordered until one is chosen."""
    asked = for_(HOUSE, requester={"reference": HOUSE})
    assert asks(asked, HOUSE, view()) and not only_asked(asked, HOUSE, view())
    placer = {"type": {"coding": [{"code": "PLAC"}]}, "value": "1", "assigner": {"reference": HOUSE}}
    assert not only_asked(for_(HOUSE, identifier=[placer]), HOUSE, view())


# --- drafts ----------------------------------------------------------------------------------------------------------

THIRD = SITE | {
    "key": "third", "name": "Clinique du Val", "finess_eg": "990005672", "finess_ej": "990005600", "facility": "VAL",
    "sending_applications": [["TLR", "VAL"]],
    "namespaces": [{"name": "ipp", "kind": "PI", "hd": ["VAL", "990005672", "N"], "oid": "2.25.990501"}],
}  # fmt: skip
FROM_THIRD = (("|RIS|CH-SYLVE|", "|TLR|VAL|"),)
CHANGES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "XO": ("orm-o01-tlr-demande", (("ORC|NW|", "ORC|XO|"),)),
    "RP": ("orm-o01-tlr-demande", (("ORC|NW|", "ORC|RP|"),)),
    "CA": ("orm-o01-tlr-annulation", ()),
    "SC": ("omi-o23-tlr-complement", ()),
}


@pytest.fixture
def hub(store: Store) -> Hub:
    """The hospital, and another establishment that knows the patient and the number of the order."""
    tables = [dict(SITES[0]) | one for one in (SITE, THIRD)]
    hub = dataclasses.replace(hub_on(store, site=SITE), sites=load_sites(tables))
    seed_sites(hub, hub.sites)
    tell(hub, "adt-a01-admission")
    return hub


def draft(hub: Hub) -> Resource:
    (found_,) = found(hub, "ServiceRequest", "identifier=urn:oid:2.25.4720|DEM-2026-90")
    return found_


@pytest.mark.parametrize("control", CHANGES)
def test_an_establishment_that_does_not_ask_changes_no_draft(hub: Hub, control: str) -> None:
    tell(hub, "orm-o01-tlr-demande")
    before = draft(hub)
    name, changes = CHANGES[control]
    answer = say(hub, sample(name, *changes, *FROM_THIRD))
    assert (answer.code, answer.errors[0].code, answer.application_code) == ("AE", "207", "901")
    assert "does not ask this request" in answer.errors[0].text and answer.errors[0].location == "ORC^1^1"
    assert draft(hub) == before, "and does not become who asks"
    tell(hub, name, *changes)
    assert draft(hub)["meta"]["versionId"] != before["meta"]["versionId"], "who ordered does"


def test_a_draft_that_was_made_here_is_changed_by_the_house_of_its_requester_alone(hub: Hub) -> None:
    put(hub, SYSTEM, *people.structures("127.0.0.1:9", "127.0.0.1:10"), *people.professionals())
    who = {"subject": {"reference": f"Patient/{patient(hub)['id']}"}}
    placer = {"type": {"coding": [{"code": "PLAC"}]}, "system": "urn:oid:2.25.4720", "value": "DEM-2026-90"}
    asked = people.request("c1", 0, "moreau", "avis-echo", "Avis", "draft") | who | {"identifier": [placer]}
    put(hub, REQUESTER, people.consent("c1", 0) | {"patient": who["subject"]}, asked)
    name, changes = CHANGES["XO"]
    for sender in ((), FROM_THIRD):
        assert say(hub, sample(name, *changes, *sender)).application_code == "901"
    assert read(hub, "ServiceRequest/c1")["requester"] == asked["requester"]
    home = {"organization": {"reference": "Organization/third"}}
    put(hub, SYSTEM, read(hub, "PractitionerRole/moreau") | home)
    assert say(hub, sample(name, *changes, *FROM_THIRD)).code == "AA"


@pytest.mark.parametrize(
    ("asked", "how"),
    [
        ("PractitionerRole/garnier", "by FHIR, since a person of it is asked"),
        ("Organization/third", "with ORC-1 OK or OC"),
        ("HealthcareService/avis-echo", "with ORC-1 OK or OC"),
    ],
)
def test_who_is_asked_and_takes_a_request_back_is_told_how_to_answer_it(hub: Hub, asked: str, how: str) -> None:
    put(hub, SYSTEM, *people.structures("127.0.0.1:9", "127.0.0.1:10"), *people.professionals())
    third = {"reference": "Organization/third"}
    put(hub, SYSTEM, read(hub, "HealthcareService/avis-echo") | {"providedBy": third})
    put(hub, SYSTEM, read(hub, "PractitionerRole/garnier") | {"organization": third})
    who = {"subject": {"reference": f"Patient/{patient(hub)['id']}"}}
    placer = {"type": {"coding": [{"code": "PLAC"}]}, "system": "urn:oid:2.25.4720", "value": "DEM-2026-90"}
    whole = people.request("c1", 0, "moreau", "avis-echo", "Avis") | who | for_(asked, identifier=[placer])
    put(hub, REQUESTER, people.consent("c1", 0) | {"patient": who["subject"]}, whole)
    answer = say(hub, sample("orm-o01-tlr-annulation", *FROM_THIRD))
    assert (answer.code, answer.application_code) == ("AE", "901")
    assert f"it answers it {how} and leaves it to who asks" in answer.errors[0].text


def test_who_ordered_asks_still_when_the_house_of_the_stay_changed_the_order(hub: Hub) -> None:
    assert say(hub, sample("orm-o01-tlr-demande", *FROM_THIRD)).code == "AA"
    (stay,) = found(hub, "Encounter")
    where = {"encounter": {"reference": f"Encounter/{stay['id']}"}}
    put(hub, SYSTEM, read(hub, f"ServiceRequest/{draft(hub)['id']}") | where)
    name, changes = CHANGES["XO"]
    tell(hub, name, *changes)
    (number,) = [one for one in draft(hub)["identifier"] if one["type"]["coding"][0]["code"] == "PLAC"]
    assert number["assigner"]["reference"] == "Organization/third"
    assert say(hub, sample("orm-o01-tlr-annulation", *FROM_THIRD)).code == "AA"
    assert draft(hub)["status"] == "revoked"
