"""Quantities by what they measure: every UCUM spelling of an amount finds the others, with every prefix."""

from __future__ import annotations

from operator import methodcaller
from typing import Any

import pytest

from fhir_server.context import SYSTEM
from fhir_server.search import index, query
from fhir_server.search.plan import Value
from fhir_server.store.engine import Store
from profiles import json_text

UCUM = "http://unitsofmeasure.org"
STORED = {
    "gdl": '{"value": 5, "unit": "g/dL", "system": "%s", "code": "g/dL"}',
    "gl": '{"value": 50, "unit": "g/L", "system": "%s", "code": "g/L"}',
    "precise": '{"value": 50.04, "unit": "g/L", "system": "%s", "code": "g/L"}',
    "more": '{"value": 5100, "unit": "mg par dL", "system": "%s", "code": "mg/dL"}',
    "length": '{"value": 5, "unit": "g/dL", "system": "%s", "code": "cm"}',
    "word": '{"value": 5, "unit": "g/dL"}',
    "local": '{"value": 5, "system": "urn:units", "code": "g/dL"}',
    "below": '{"value": 40, "comparator": "<", "system": "%s", "code": "g/L"}',
    "fever": '{"value": 38.5, "system": "%s", "code": "Cel"}',
    "acid": '{"value": 7.4, "system": "%s", "code": "[pH]"}',
}


def ids(store: Store, text: str, name: str = "value-quantity") -> str:
    with store.read(SYSTEM) as snapshot:
        page = snapshot.search(query.parse("Observation", [(name, text), ("_sort", "_id")]))
    return " ".join(one.id for one in page.matches)


def put(store: Store, **stored: str) -> None:
    for key, text in stored.items():
        quantity = text % UCUM if "%s" in text else text
        raw = f'{{"resourceType": "Observation", "id": "{key}", "valueQuantity": {quantity}}}'
        one: dict[str, Any] = json_text.parse(raw)
        store.write(SYSTEM, methodcaller("create", one, index.rows(one)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"5|{UCUM}|g/dL", "gdl gl more precise"),
        (f"5.0|{UCUM}|g/dL", "gdl gl precise"),
        (f"5.000|{UCUM}|g/dL", "gdl gl"),
        (f"50.04|{UCUM}|g/L", "precise"),
        (f"5000|{UCUM}|mg/dL", "gdl gl"),
        (f"gt5|{UCUM}|g/dL", "more precise"),
        (f"ge5|{UCUM}|g/dL", "gdl gl more precise"),
        (f"lt50.04|{UCUM}|g/L", "below gdl gl"),
        (f"le5|{UCUM}|g/dL", "below gdl gl"),
        (f"sa5.05|{UCUM}|g/dL", "more"),
        (f"eb5|{UCUM}|g/dL", "below"),
        (f"ne5.0|{UCUM}|g/dL", "below more"),
        (f"ap5|{UCUM}|g/dL", "gdl gl more precise"),
        ("5.000||g/dL", "gdl gl length local word"),
        ("5.1||g/dL", "more"),
        ("5100||mg par dL", "more"),
        ("5.0|urn:units|g/dL", "local"),
        ("5.0|urn:units|mg/dL", ""),
        ("5.0", "gdl length local word"),
        (f"0.05|{UCUM}|m", "length"),
        (f"311.65|{UCUM}|K", "fever"),
        (f"gt100|{UCUM}|[degF]", "fever"),
        (f"7.4|{UCUM}|[pH]", "acid"),
        (f"5|{UCUM}|furlong-per-fortnight", ""),
    ],
)
def test_an_amount_is_found_in_any_unit(store: Store, text: str, expected: str) -> None:
    put(store, **STORED)
    assert ids(store, text) == expected


def test_a_searched_quantity_knows_its_base_units() -> None:
    (value,) = query.parse("Observation", [("value-quantity", f"gt5|{UCUM}|g/dL")]).clauses[0].values
    assert value == Value("gt", system=UCUM, code="g/dL", low=5, high=5, unit="g.m-3", base_low=5e4, base_high=5e4)
    for text in ("5", f"5|{UCUM}|[pH]", f"5|{UCUM}|nonsense", "5|urn:x|kg", f"1e999|{UCUM}|10*999"):
        (value,) = query.parse("Observation", [("value-quantity", text)]).clauses[0].values
        assert value.unit == ""
