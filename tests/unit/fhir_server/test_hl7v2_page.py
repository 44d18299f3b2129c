"""docs/hl7v2.md is complete: every event that is taken in stands there, and so does every key of a port."""

from __future__ import annotations

import re
from pathlib import Path

from fhir_server.delivery.intake import HANDLERS
from fhir_server.delivery.ports import Port

PAGE = (Path(__file__).parents[3] / "docs" / "hl7v2.md").read_text(encoding="utf-8")


def test_the_page_names_every_event_that_is_taken_in() -> None:
    told = set(re.findall(r"\b[A-Z]\d\d\b", PAGE))
    assert {name.partition("^")[2] for name in HANDLERS} <= told
    assert {name.partition("^")[0] for name in HANDLERS} - {"ADT"} <= set(re.findall(r"\b[A-Z]{3}\b", PAGE))


def test_the_page_names_every_key_of_a_port() -> None:
    assert set(Port.__dataclass_fields__) <= set(re.findall(r"`(\w+)`", PAGE))
