"""What a port refuses, AE on a French one and AR on a base-HL7 one; and a document that a result takes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hubs import found
from sylve import sample, say, sylve

from fhir_server.changes import Hub
from fhir_server.delivery.ports import Port
from fhir_server.store.engine import Store


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return sylve(open_url(sqlite_url))


@pytest.mark.parametrize(
    ("old", "new", "condition", "on_base"),
    [
        ("ADT^A01^ADT_A01", "QRY^A19^QRY_A19", "200", "AR"),
        ("ADT^A01^ADT_A01", "ADT^A24^ADT_A24", "201", "AR"),
        ("|T|2.5^FRA", "|X|2.5^FRA", "202", "AR"),
        ("2.5^FRA^2.11", "9.9^FRA^2.11", "203", "AR"),
        ("INSERT", "PERHAPS", "103", "AE"),
    ],
)
def test_each_port_refuses_in_its_own_words(hub: Hub, old: str, new: str, condition: str, on_base: str) -> None:
    for refusals, code in (("french", "AE"), ("base", on_base)):
        told = say(hub, sample("adt-a01-admission", (old, new)), Port(name=refusals, refusals=refusals))  # type: ignore[arg-type]  # a choice of the table
        assert (told.code, told.errors[0].code) == (code, condition), refusals


@pytest.mark.parametrize(("status", "wanted"), [("F", "current"), ("D", "entered-in-error"), ("X", "entered-in-error")])
def test_a_document_within_results_is_withdrawn_where_its_row_says_so(hub: Hub, status: str, wanted: str) -> None:
    end = "JVBERi0xLjQgZXNzYWk=||||||"
    for told in ("F", status):
        assert say(hub, sample("oru-r01-biologie", (end + "F", end + told))).code == "AA"
    assert [one["status"] for one in found(hub, "DocumentReference")] == [wanted]
