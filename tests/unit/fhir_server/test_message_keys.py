"""What a received message can be found by: its control id, its stay, its sender, and the professionals it names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sylve import sample, say, sylve

from fhir_server import app
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery.message_keys import MOST_PEOPLE, keys
from fhir_server.store.engine import Store
from hl7v2.message import parse

HEAD = "MSH|^~\\&|GAM|CH-SYLVE|PASSERELLE|CH-SYLVE|20260302083011+0100||ADT^A01^ADT_A01|K1|T|2.5\r"
WHO = "^FERRAND^Paul^^^^^^ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO^D^^^"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return sylve(open_url(sqlite_url))


def people(*segments: str) -> list[str]:
    msg = parse((HEAD + "\r".join(segments) + "\r").encode())
    return [value for kind, value in keys(msg, "990001234") if kind == "rpps"]


def at(field: int, value: str, segment: str) -> str:
    return segment + "|" * field + value


@pytest.mark.parametrize(
    ("segment", "field"),
    [
        ("ORC", 10), ("ORC", 11), ("ORC", 12), ("OBR", 10), ("OBR", 16), ("OBR", 28), ("TXA", 5), ("TXA", 9),
        ("TXA", 10), ("TXA", 11), ("SCH", 12), ("SCH", 20),
        ("TXA", 22), ("PV1", 7), ("PV1", 8), ("PV1", 9), ("PV1", 17), ("ROL", 4), ("PRT", 5), ("SCH", 16), ("AIP", 3),
        ("EVN", 5), ("OBX", 16),
    ],
)  # fmt: skip
def test_whoever_a_message_names_by_rpps_is_a_key(segment: str, field: int) -> None:
    assert people(at(field, f"99900000029{WHO}RPPS", segment)) == ["99900000029"]


@pytest.mark.parametrize(
    ("person", "found"),
    [
        (f"99900000029{WHO}RPPS", ["99900000029"]),
        (f"899900000029{WHO}IDNPS", ["99900000029"]),
        (f"899900000029{WHO}", ["99900000029"]),
        ("899900000029^FERRAND^^^^^^^ASIP-SANTE-PS", ["99900000029"]),
        ("99900000029^FERRAND^^^^^^^&1.2.250.1.71.4.2.1&ISO", ["99900000029"]),
        ("99900000029^FERRAND", []),
        ("99900000029^FERRAND^^^^^^^CH-SYLVE&990001234&M^^^^EI", []),
        (f"0990000299{WHO}ADELI", []),
        (f"9990000002X{WHO}RPPS", []),
        ('""', []),
        (f"99900000029{WHO}RPPS~99900000037{WHO}RPPS~99900000029{WHO}RPPS", ["99900000029", "99900000037"]),
    ],
)
def test_a_number_is_an_rpps_only_where_it_is_said_to_be_one(person: str, found: list[str]) -> None:
    assert people(at(12, person, "ORC")) == found


def test_a_message_that_names_a_crowd_gives_some_keys() -> None:
    crowd = [at(16, f"{10_000_000_000 + n}{WHO}RPPS", "OBX") for n in range(3_000)]
    assert people(*crowd) == [str(10_000_000_000 + n) for n in range(MOST_PEOPLE)]
    echo = "~".join(f"{20_000_000_000 + n}{WHO}RPPS" for n in range(3_000))
    assert len(people(at(12, echo, "ORC"))) <= MOST_PEOPLE


def test_a_message_is_found_by_whom_it_names_also_when_it_is_refused(hub: Hub) -> None:
    assert say(hub, sample("orm-o01-tlr-demande")).code == "AA"
    assert say(hub, sample("adt-a01-admission", ("ADT^A01^ADT_A01", "ADT^Z77^ADT_A01"))).code == "AE"
    ask = [app.operate(hub, SYSTEM, "inbox-list", {name: "99900000029"}) for name in ("key", "rpps")]
    assert ask[0] == ask[1] and [one["message_type"] for one in ask[0]] == ["ADT^Z77", "ORM^O01"]
    assert all("99900000029" in one["rpps"].split(", ") for one in ask[0])
    (refused,) = app.operate(hub, SYSTEM, "inbox-list", {"key": "01999000123"})
    assert (refused["message_type"], refused["state"]) == ("ADT^Z77", "error")
