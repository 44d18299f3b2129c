"""Every modifier issue 5 names, by what it finds: one row each, on both databases."""

from __future__ import annotations

from typing import Any

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import index, query
from fhir_server.store.engine import Store

MR = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "MR"}]}
STOCK: tuple[dict[str, Any], ...] = (
    {
        "resourceType": "Patient",
        "id": "p1",
        "name": [{"family": "Lefèvre", "given": ["Zoé"]}],
        "identifier": [{"type": MR, "system": "urn:ipp", "value": "42"}],
        "maritalStatus": {"coding": [{"system": "urn:m", "code": "M", "display": "Mariée"}], "text": "Épouse"},
    },
    {"resourceType": "Patient", "id": "p2", "name": [{"family": "LEFEVRE"}], "gender": "male"},
    {
        "resourceType": "Observation",
        "id": "o1",
        "status": "final",
        "code": {"coding": [{"system": "urn:c", "code": "x", "display": "Hémoglobine"}]},
        "subject": {"reference": "Patient/p1", "identifier": {"system": "urn:ipp", "value": "42"}},
    },
    {
        "resourceType": "Observation",
        "id": "o2",
        "status": "amended",
        "code": {"text": "Glycémie à jeun"},
        "subject": {"reference": "Group/p1", "display": "Un groupe"},
    },
    {"resourceType": "Group", "id": "p1", "type": "person", "actual": True},
    {"resourceType": "ValueSet", "id": "v1", "status": "draft", "url": "http://x.org/a/b"},
    {"resourceType": "ValueSet", "id": "v2", "status": "draft", "url": "http://x.org/a"},
)
OF_TYPE = "http://terminology.hl7.org/CodeSystem/v2-0203|MR|42"


@pytest.fixture
def stocked(store: Store) -> Store:
    store.write(SYSTEM, lambda tx: [tx.create(one, index.rows(one)) for one in STOCK] and None)
    return store


@pytest.mark.parametrize(
    ("kind", "name", "text", "found"),
    [
        ("Patient", "family", "lefe", "p1 p2"),
        ("Patient", "family:exact", "Lefèvre", "p1"),
        ("Patient", "family:exact", "LEFEVRE", "p2"),
        ("Patient", "family:contains", "èvr", "p1 p2"),
        ("Patient", "given:missing", "true", "p2"),
        ("Patient", "given:missing", "false", "p1"),
        ("Patient", "_id:missing", "true", ""),
        ("Patient", "_id:missing", "false", "p1 p2"),
        ("Patient", "_lastUpdated:missing", "true", ""),
        ("Patient", "_lastUpdated:missing", "false", "p1 p2"),
        ("Patient", "_tag:missing", "true", "p1 p2"),
        ("Patient", "_tag:missing", "false", ""),
        ("Patient", "_filter", "_id pr true and family eq lefevre", "p1 p2"),
        ("Patient", "_filter", "_id pr false or gender eq male", "p2"),
        ("Patient", "_filter", "not (_lastUpdated pr true)", ""),
        ("Observation", "subject:Patient._id:missing", "false", "o1"),
        ("Observation", "subject:Patient._lastUpdated:missing", "true", ""),
        ("Patient", "_has:Observation:subject:_id:missing", "false", "p1"),
        ("", "_id:missing", "true", ""),
        ("Patient", "gender:not", "male", "p1"),
        ("Observation", "status:not", "final,amended", ""),
        ("Observation", "code:text", "hemoglob", "o1"),
        ("Observation", "code:text", "jeun", "o2"),
        ("Patient", "identifier:of-type", OF_TYPE, "p1"),
        ("Patient", "identifier:of-type", OF_TYPE.replace("MR", "SS"), ""),
        ("Observation", "subject:identifier", "urn:ipp|42", "o1"),
        ("Observation", "subject:identifier", "urn:other|42", ""),
        ("Observation", "subject", "p1", "o1 o2"),
        ("Observation", "subject:Patient", "p1", "o1"),
        ("Observation", "subject:Group", "p1", "o2"),
        ("ValueSet", "url:below", "http://x.org/a", "v1 v2"),
        ("ValueSet", "url:above", "http://x.org/a/b", "v1 v2"),
        ("ValueSet", "url:above", "http://x.org/a", "v2"),
    ],
)
def test_a_modifier_finds_what_it_says(stocked: Store, kind: str, name: str, text: str, found: str) -> None:
    with stocked.read(SYSTEM) as snapshot:
        matches = snapshot.search(query.parse(kind, [(name, text), ("_sort", "_id")])).matches
    assert " ".join(one.id for one in matches) == found


@pytest.mark.parametrize(
    ("kind", "name"),
    [("Observation", f"code:{one}") for one in ("in", "not-in", "above", "below")]
    + [("Observation", f"subject:{one}") for one in ("above", "below")],
)
def test_a_modifier_that_needs_terminology_says_so(kind: str, name: str) -> None:
    with pytest.raises(errors.Invalid, match="needs the terminology service") as caught:
        query.parse(kind, [(name, "http://x.org/vs")])
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("key", "why"),
    [("code-value-quantity", "composite parameter"), ("-combo-code-value-concept", "composite parameter")],
)
def test_an_order_by_a_composite_is_refused_with_the_reason(key: str, why: str) -> None:
    with pytest.raises(errors.Invalid, match=why) as caught:
        query.parse("Observation", [("_sort", key)])
    assert caught.value.status == 400


def test_reference_text_is_no_modifier_of_r4s_references() -> None:
    with pytest.raises(errors.Invalid, match=":missing, :identifier, :\\[type\\]"):
        query.parse("Observation", [("subject:text", "groupe")])
