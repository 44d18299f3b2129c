"""docs/hl7v2.md is complete: every event that is taken in stands there, and so does every key of a port."""

from __future__ import annotations

import re
from pathlib import Path

from fhir_server.delivery.intake import HANDLERS
from fhir_server.delivery.ports import Port
from fhir_server.teleexpertise.orders import ANSWERS, ORDERED
from mappers.fhir_to_hl7v2_orders import CONTROLS
from mappers.fhir_to_hl7v2_schedule import STANDING, STATUS, event_of

PAGE = (Path(__file__).parents[3] / "docs" / "hl7v2.md").read_text(encoding="utf-8")


def test_the_page_names_every_event_that_is_taken_in() -> None:
    told = set(re.findall(r"\b[A-Z]\d\d\b", PAGE))
    assert {name.partition("^")[2] for name in HANDLERS} <= told
    assert {name.partition("^")[0] for name in HANDLERS} - {"ADT"} <= set(re.findall(r"\b[A-Z]{3}\b", PAGE))


def test_the_page_names_every_key_of_a_port() -> None:
    assert set(Port.__dataclass_fields__) <= set(re.findall(r"`(\w+)`", PAGE))


def causes() -> list[tuple[str, str]]:
    """The rows of "What causes a message": what happens, and what is sent."""
    table = PAGE.partition("### What causes a message")[2].partition("\n\n- ")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines() if line[:1] == "|"]
    return [(row[0], row[1]) for row in rows[2:]]


def test_each_row_of_what_causes_an_order_or_an_answer_is_what_the_code_tells_and_no_row_is_missing() -> None:
    told = {
        (step, found[1])
        for what, message in causes()
        if (found := re.search(r"\b(?:ORM\^O01|ORU\^R01) (\w\w)\b", message))
        for step in re.findall(r"`(\w+)`", what)
    }
    assert told == {*ORDERED.items(), *((step, CONTROLS[decision]) for step, decision in ANSWERS.items())}


def test_each_row_of_what_happens_to_an_appointment_is_what_the_code_makes_of_it() -> None:
    rows = {message.removeprefix("SIU^"): what for what, message in causes() if message.startswith("SIU^")}
    assert set(rows) == {"S12", "S13", "S14", "S15"}
    booked = {"status": "booked", "start": "a", "end": "b", "minutesDuration": 1}
    ends = {status for status in STATUS if re.search(rf"\b{status}\b", rows["S15"])}
    assert ends == set(STATUS) - STANDING == {one for one in STATUS if event_of(booked, {"status": one}) == "S15"}
    assert "booked" in rows["S12"] and event_of(None, booked) == event_of({"status": "pending"}, booked) == "S12"
    assert rows["S13"] == "its start, end or duration changes"
    assert {event_of(booked, booked | {name: "c"}) for name in ("start", "end", "minutesDuration")} == {"S13"}
    assert event_of(booked, booked | {"comment": "x"}) == event_of(booked, booked | {"status": "noshow"}) == "S14"


def test_each_row_of_what_happens_to_a_report_names_its_step() -> None:
    about = [re.findall(r"`(\w+)`", what) for what, message in causes() if not re.match(r"[A-Z]{3}\^", message)]
    assert about == [["report"], ["amend"], ["withdraw"]]
