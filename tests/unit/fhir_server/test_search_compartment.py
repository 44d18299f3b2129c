"""Compartments: one type of a patient, and everything of a patient."""

from __future__ import annotations

from operator import methodcaller
from typing import Any

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import index, query
from fhir_server.store.engine import Store

PATIENT: dict[str, Any] = {"reference": "Patient/p"}
RESOURCES: list[dict[str, Any]] = [
    {"resourceType": "Patient", "id": "p"},
    {"resourceType": "Patient", "id": "q", "link": [{"other": PATIENT, "type": "seealso"}]},
    {"resourceType": "Patient", "id": "r"},
    {"resourceType": "Observation", "id": "mine", "subject": PATIENT, "status": "final"},
    {"resourceType": "Observation", "id": "done", "performer": [PATIENT], "status": "final"},
    {"resourceType": "Observation", "id": "focus", "focus": [PATIENT], "status": "final"},
    {"resourceType": "Appointment", "id": "a", "participant": [{"actor": PATIENT, "status": "accepted"}]},
    {"resourceType": "Task", "id": "t", "for": PATIENT},
    {"resourceType": "Organization", "id": "p"},
]


def found(store: Store, kind: str, *pairs: tuple[str, str], of: tuple[str, str] = ("Patient", "p")) -> str:
    plan = query.parse(kind, [*pairs, ("_sort", "_id"), ("_total", "accurate")], compartment=of)
    with store.read(SYSTEM) as snapshot:
        page = snapshot.search(plan)
    assert page.total == len(page.matches)
    return " ".join(one.reference for one in page.matches)


def test_what_belongs_to_a_patient_is_found_by_type_and_all_together(store: Store) -> None:
    for one in RESOURCES:
        store.write(SYSTEM, methodcaller("create", one, index.rows(one)))
    assert found(store, "Observation") == "Observation/done Observation/mine"
    assert found(store, "Observation", ("_id", "mine,focus")) == "Observation/mine"
    assert found(store, "Patient") == "Patient/p Patient/q"
    # Task has no place in R4's Patient compartment.
    assert found(store, "") == "Appointment/a Observation/done Observation/mine Patient/p Patient/q"
    assert found(store, "", ("_type", "Observation,Appointment")) == ("Appointment/a Observation/done Observation/mine")
    assert found(store, "", of=("Patient", "nobody")) == ""
    assert found(store, "Observation", of=("Device", "d")) == ""


@pytest.mark.parametrize(
    ("kind", "of", "says"),
    [
        ("Organization", ("Patient", "p"), "never belongs to a Patient"),
        ("Observation", ("Group", "p"), "no compartment"),
    ],
)
def test_what_has_no_compartment_is_refused(kind: str, of: tuple[str, str], says: str) -> None:
    with pytest.raises(errors.Invalid, match=says) as caught:
        query.parse(kind, [], compartment=of)
    assert caught.value.status == 400
