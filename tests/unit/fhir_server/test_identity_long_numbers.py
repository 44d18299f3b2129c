"""Numbers longer than an index holds: what the index makes of one is not that number."""

from __future__ import annotations

import copy

import pytest
from hubs import found, hub_on
from sylve import IPP, patient, person, say, sylve
from test_soundness import past_the_rules, problems

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.search.values import bounded
from fhir_server.store.engine import Store

LONG = "A" * 1100
CUT = bounded(LONG)


@pytest.mark.parametrize(("first", "then"), [(LONG, CUT), (CUT, LONG)], ids=["long first", "short first"])
def test_a_number_that_reads_like_the_index_of_a_long_one_is_another(store: Store, first: str, then: str) -> None:
    hub = sylve(store)
    assert [say(hub, person(number)).code for number in (first, then, first)] == ["AA", "AA", "AA"]
    held = [[one["value"] for one in each["identifier"]] for each in found(hub, "Patient")]
    assert sorted(held) == sorted([[first], [then]])


def test_a_long_number_finds_its_patient(store: Store) -> None:
    hub = sylve(store)
    for family in ("MARTIN", "MARTIN"):
        assert say(hub, person(LONG, family)).code == "AA"
    assert len(found(hub, "Patient")) == 1 and patient(hub, LONG)["identifier"][0]["system"] == IPP


@pytest.fixture
def demo(store: Store) -> Hub:
    return hub_on(store)


def test_the_check_finds_a_long_number_of_two_people_and_not_one_that_reads_like_its_index(demo: Hub) -> None:
    known = copy.deepcopy(people.patient(0))
    local = known["identifier"][1]
    for key, value in (("a", LONG), ("b", CUT)):
        past_the_rules(demo, known | {"id": key, "identifier": [local | {"value": value}]})
    assert problems(demo) == []
    past_the_rules(demo, known | {"id": "c", "identifier": [local | {"value": LONG}]})
    ((kind, subject, text),) = problems(demo)
    assert (kind, subject) == ("identity", "Patient/a") and "Patient/a, Patient/c;" in text
