"""Composite parameters: both values in the same element, with the prefixes and units of their types."""

from __future__ import annotations

from operator import methodcaller
from typing import Any

import pytest

from fhir_server.context import SYSTEM
from fhir_server.search import composites, index, query
from fhir_server.store.engine import Store
from profiles import json_text

UCUM = "http://unitsofmeasure.org"
LOINC = "http://loinc.org"


def coded(code: str, system: str = LOINC) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code} if system else {"code": code}]}


def measured(value: int, unit: str = "mm[Hg]") -> dict[str, Any]:
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def part(code: str, value: int) -> dict[str, Any]:
    return {"code": coded(code), "valueQuantity": measured(value)}


RESOURCES: list[dict[str, Any]] = [
    {
        "resourceType": "Observation",
        "id": "bp",
        "code": coded("85354-9"),
        "component": [part("8480-6", 120), part("8462-4", 60)],
        "subject": {"reference": "Patient/p"},
    },
    {
        "resourceType": "Observation",
        "id": "crossed",
        "code": coded("85354-9"),
        "component": [part("8480-6", 60), part("8462-4", 120)],
    },
    {"resourceType": "Observation", "id": "hb", "code": coded("718-7"), "valueQuantity": measured(50, "g/L")},
    {"resourceType": "Observation", "id": "bare", "code": coded("718-7", ""), "valueQuantity": measured(5, "g/dL")},
    {"resourceType": "Observation", "id": "concept", "code": coded("c"), "valueCodeableConcept": coded("y", "urn:v")},
    {"resourceType": "Observation", "id": "text", "code": coded("c"), "valueString": "Été, 5 $"},
    {"resourceType": "Observation", "id": "when", "code": coded("c"), "valueDateTime": "2026-01-02"},
    {
        "resourceType": "DocumentReference",
        "id": "new",
        "relatesTo": [
            {"code": "replaces", "target": {"reference": "DocumentReference/old"}},
            {"code": "appends", "target": {"reference": "DocumentReference/first"}},
        ],
    },
    {"resourceType": "Patient", "id": "p"},
    {
        "resourceType": "MolecularSequence",
        "id": "two",
        "coordinateSystem": 0,
        "referenceSeq": {
            "chromosome": coded("1", "urn:chr"),
            "referenceSeqId": coded("NC_1", ""),
            "windowStart": 100,
            "windowEnd": 200,
        },
        "variant": [{"start": 110, "end": 120}, {"start": 150, "end": 190}, {"start": 199}],
    },
    {
        "resourceType": "MolecularSequence",
        "id": "other",
        "coordinateSystem": 0,
        "referenceSeq": {"chromosome": coded("2", "urn:chr"), "windowStart": 100, "windowEnd": 200},
        "variant": [{"start": 110, "end": 120}],
    },
]


def ids(store: Store, kind: str, name: str, text: str) -> str:
    with store.read(SYSTEM) as snapshot:
        page = snapshot.search(query.parse(kind, [(name, text), ("_sort", "_id"), ("_total", "accurate")]))
    assert page.total == len(page.matches)
    return " ".join(one.id for one in page.matches)


@pytest.mark.parametrize(
    ("kind", "name", "text", "expected"),
    [
        ("Observation", "component-code-value-quantity", f"{LOINC}|8480-6$gt100", "bp"),
        ("Observation", "component-code-value-quantity", "8480-6$lt100", "crossed"),
        ("Observation", "component-code-value-quantity", f"{LOINC}|8480-6$16.0|{UCUM}|kPa", "bp"),
        ("Observation", "component-code-value-quantity", "8462-4$120,8480-6$120", "bp crossed"),
        ("Observation", "component-code-value-quantity", "718-7$gt0", ""),
        ("Observation", "code-value-quantity", f"{LOINC}|718-7$5|{UCUM}|g/dL", "hb"),
        ("Observation", "code-value-quantity", f"718-7$5|{UCUM}|g/dL", "bare hb"),
        ("Observation", "code-value-quantity", "|718-7$5", "bare"),
        ("Observation", "code-value-quantity", "85354-9$120", ""),
        ("Observation", "combo-code-value-quantity", "8480-6$120,718-7$50", "bp hb"),
        ("Observation", "code-value-concept", "c$urn:v|y", "concept"),
        ("Observation", "code-value-concept", "c$y", "concept"),
        ("Observation", "code-value-concept", "c$c", ""),
        ("Observation", "code-value-string", r"c$ete\, 5 \$", "text"),
        ("Observation", "code-value-date", "c$ge2026", "when"),
        ("Observation", "code-value-date", "c$lt2026", ""),
        ("DocumentReference", "relationship", "replaces$DocumentReference/old", "new"),
        ("DocumentReference", "relationship", "replaces$DocumentReference/first", ""),
        ("MolecularSequence", "chromosome-window-coordinate", "1$100$200", "two"),
        ("MolecularSequence", "chromosome-window-coordinate", "urn:chr|1$lt150$gt150", "two"),
        ("MolecularSequence", "chromosome-window-coordinate", "1$200$100", ""),
        ("MolecularSequence", "chromosome-variant-coordinate", "1$110$120,2$110$120", "other two"),
        ("MolecularSequence", "chromosome-variant-coordinate", "1$110$190", ""),
        ("MolecularSequence", "chromosome-variant-coordinate", "urn:chr|1$ge130$le190", "two"),
        ("MolecularSequence", "chromosome-variant-coordinate", "1$199$ge0", ""),
        ("MolecularSequence", "referenceseqid-window-coordinate", "|NC_1$ge100$le200", "two"),
        ("MolecularSequence", "referenceseqid-variant-coordinate", "NC_1$150$190", "two"),
        ("Patient", "_has:Observation:patient:component-code-value-quantity", "8480-6$120", "p"),
    ],
)
def test_both_values_are_those_of_one_element(store: Store, kind: str, name: str, text: str, expected: str) -> None:
    for one in RESOURCES:
        resource: dict[str, Any] = json_text.parse(json_text.write(one))
        store.write(SYSTEM, methodcaller("create", resource, index.rows(resource)))
    assert ids(store, kind, name, text) == expected


def test_a_pair_takes_two_rows_for_each_code_and_names_of_the_same_pair_share_them() -> None:
    rows = index.rows({"resourceType": "Observation", "code": coded("718-7"), "valueQuantity": measured(5)})
    plain = {index.pid("Observation", code) for code in ("value-quantity", "combo-value-quantity")}
    assert len([row for row in rows.quantity if row[0] not in plain]) == 2
    known = index.parameters("Observation")
    combo, alone = known["combo-code-value-quantity"].composite, known["code-value-quantity"].composite
    assert combo is not None and alone is not None
    assert alone.contexts[0].base in {context.base for context in combo.contexts}


def test_the_id_of_a_code_says_system_and_code() -> None:
    assert composites.pid(1, "a", "b") == composites.pid(1, "a", "b")
    assert len({composites.pid(1, "a", "b"), composites.pid(1, None, "b"), composites.pid(1, "", "b")}) == 3
    assert 0 < composites.pid(1, "a", "b") < 2**63


def test_many_components_with_many_codes_stay_within_the_bounds() -> None:
    codes = {"coding": [{"system": f"urn:{n}", "code": str(n)} for n in range(60)]}
    value = {"coding": [{"system": f"urn:{n}", "code": str(n)} for n in range(60)]}
    parts = [{"code": codes, "valueCodeableConcept": value} for _ in range(70)]
    with pytest.raises(Exception, match="searchable values"):
        index.rows({"resourceType": "Observation", "component": parts})
