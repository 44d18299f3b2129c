"""`_filter`: its grammar, its operators on each type, brackets on references, and its bounds."""

from __future__ import annotations

import re
from decimal import Decimal
from operator import methodcaller
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import filters, index, query
from fhir_server.search.plan import Plan
from fhir_server.store.engine import Store

LOINC = "http://loinc.org"


def observation(key: str, code: str, value: str, day: str, patient: str) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": key,
        "status": "final",
        "code": {"coding": [{"system": LOINC, "code": code}]},
        "valueQuantity": {"value": Decimal(value), "unit": "g/L", "system": "http://unitsofmeasure.org", "code": "g/L"},
        "effectivePeriod": {"start": day, "end": day},
        "subject": {"reference": f"Patient/{patient}"},
    }


def resources() -> list[dict[str, Any]]:
    people = [("a", "Noël", "1950-03-01", "female"), ("b", "Durand", "1980", "male"), ("c", "", "", "")]
    found: list[dict[str, Any]] = []
    for key, name, born, gender in people:
        one: dict[str, Any] = {"resourceType": "Patient", "id": key}
        if name:
            one |= {"name": [{"family": name, "given": ["Zoé", "Ann"]}], "birthDate": born, "gender": gender}
        found.append(one)
    found.append(observation("o1", "718-7", "120", "2025-03-01", "a"))
    found.append(observation("o2", "718-7", "90", "2025-04-01", "b"))
    found.append(observation("o3", "2093-3", "5", "2025-03-15", "b"))
    found.append({"resourceType": "ValueSet", "id": "v", "status": "draft", "url": "http://x.org/vs/one"})
    return found


def ids(store: Store, kind: str, text: str) -> str:
    with store.read(SYSTEM) as snapshot:
        page = snapshot.search(query.parse(kind, [("_filter", text), ("_sort", "_id"), ("_total", "accurate")]))
    assert page.total == len(page.matches)
    return " ".join(one.id for one in page.matches)


CASES = [
    ("Patient", 'family eq "NOEL"', "a"),
    ("Patient", "family eq noe", ""),
    ("Patient", "family sw noe", "a"),
    ("Patient", "family ew ND", "b"),
    ("Patient", "family co ra", "b"),
    ("Patient", "family ne durand", "a"),
    ("Patient", "given ne zoe", "a b"),
    ("Patient", "gender eq female", "a"),
    ("Patient", "gender ne female", "b"),
    ("Patient", "gender pr false", "c"),
    ("Patient", "gender pr true", "a b"),
    ("Patient", "not (gender eq female)", "b c"),
    ("Patient", "birthdate lt 1960", "a"),
    ("Patient", "birthdate ge 1980-01", "b"),
    ("Patient", "birthdate gt 1981", ""),
    ("Patient", "birthdate po 1980-06", "b"),
    ("Patient", "birthdate ne 1980", "a"),
    ("Patient", "_id eq a or _id eq c", "a c"),
    ("Patient", "_id ne a", "b c"),
    ("Patient", "family sw d or family sw n and gender eq male", "b"),
    ("Patient", "family sw d or (family sw n and gender eq male)", "b"),
    ("Patient", "(family sw d or family sw n) and not (given co ann and gender eq male)", "a"),
    ("Observation", "code eq http://loinc.org|718-7", "o1 o2"),
    ("Observation", 'code eq "http://loinc.org|718-7" and value-quantity gt 100', "o1"),
    ("Observation", "value-quantity le 9|http://unitsofmeasure.org|g/dL", "o2 o3"),
    ("Observation", "value-quantity eq 0.5||g/dL", "o3"),
    ("Observation", "date sa 2025-03-10", "o2 o3"),
    ("Observation", "subject eq Patient/b", "o2 o3"),
    ("Observation", "subject re Patient/b and code eq 2093-3", "o3"),
    ("Observation", "subject ne Patient/b", "o1"),
    ("Observation", "patient.family sw d", "o2 o3"),
    ("Observation", "patient[family sw d].birthdate lt 1990 and code eq 718-7", "o2"),
    ("Observation", "patient[family sw d].birthdate lt 1960", ""),
    ("Observation", "patient[gender eq male or gender eq female]._id ne b", "o1"),
    ("Observation", "subject.family sw d", "o2 o3"),
    ("ValueSet", "url sw http://x.org", "v"),
    ("ValueSet", "url ew one or url co nothing", "v"),
]


def test_a_filter_finds_what_it_says(store: Store) -> None:
    for one in resources():
        store.write(SYSTEM, methodcaller("create", one, index.rows(one)))
    for kind, text, expected in CASES:
        assert ids(store, kind, text) == expected, text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no value"),
        ("name", "operator is expected"),
        ("name is x", "operator is expected"),
        ("name eq", "a value is expected"),
        ("name eq x y", "`and`, `or` or the end"),
        ("(name eq x", "`)` is expected"),
        ("not name eq x", "`(` is expected after not"),
        ('name eq "x', "not closed"),
        ("gender co x", "compared by eq, ne, pr; not by co"),
        ("birthdate gt lt2000", "without a prefix"),
        ("birthdate gt soon", "a date is"),
        ("zzz eq x", "no search parameter of Patient"),
        ("name.family eq x", "is no reference"),
        ("link[name eq x]", "`.` and a search parameter"),
        ("link.zzz eq x", "none of"),
        ("gender in http://x", "terminology"),
        ("gender pr maybe", "true or false"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str, says: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        query.parse("Patient", [("_filter", text)])
    assert caught.value.status == 400
    assert says in caught.value.diagnostics


def test_a_filter_is_bounded() -> None:
    for text in (
        "(" * 21 + "name eq x" + ")" * 21,
        " and ".join(["name eq x"] * 201),
        "name eq " + "x" * 20_000,
        "link." * 21 + "name eq x",
    ):
        with pytest.raises(errors.TooLarge):
            query.parse("Patient", [("_filter", text)])
    assert query.parse("Patient", [("_filter", " or ".join(["name eq x"] * 200))])


def test_two_hundred_comparisons_twenty_brackets_deep_are_answered(store: Store) -> None:
    for one in resources()[:3]:
        store.write(SYSTEM, methodcaller("create", one, index.rows(one)))
    assert ids(store, "Patient", "(" * 20 + "family sw noe" + ")" * 20) == "a"
    assert ids(store, "Patient", "not (" * 20 + "family sw noe" + ")" * 20) == "a"
    assert ids(store, "Patient", " or ".join(f"family eq x{n}" for n in range(200))) == ""
    assert ids(store, "Patient", " and ".join(f"family ne x{n}" for n in range(200))) == "a b"
    deep = "family eq x"
    for _ in range(19):
        deep = f"({deep} or gender eq male) and (gender pr true)"
    assert ids(store, "Patient", deep) == "b"


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet='namebirthdlink eqorpst()[].""\\|12-', max_size=40))
def test_any_text_is_a_filter_or_an_error_with_a_sentence(text: str) -> None:
    try:
        assert isinstance(query.parse("Patient", [("_filter", text)]), Plan)
    except errors.PasserelleError as problem:
        assert problem.status in (400, 413)
        assert re.search(r"[a-z] ", problem.diagnostics)


def test_every_type_of_parameter_says_what_it_is_compared_by() -> None:
    kinds = {one.type for kind in ("Location", "Observation", "ValueSet") for one in index.parameters(kind).values()}
    assert kinds <= set(filters.OPERATORS)
