"""Appointments as SIU: which event a change is, and what the receiver reads back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from report_sources import SITE, obstetric

from hl7v2.check import check
from hl7v2.message import Message, parse
from mappers.fhir_to_hl7v2_schedule import event_of, siu
from mappers.hl7v2_schedule_to_fhir import appointment
from mappers.order_number import under_oid

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
REPORT = obstetric()
BOOKED: dict[str, Any] = {
    "resourceType": "Appointment", "id": "a1", "status": "booked",
    "start": "2026-03-10T09:30:00+01:00", "end": "2026-03-10T09:50:00+01:00",
    "serviceType": [{"coding": [{"code": "TE2", "display": "Acte de téléexpertise"}]}],
    "reasonCode": [{"text": "Avis échographique"}], "comment": "Apporter le carnet",
}  # fmt: skip


def written(event: Any = "S12", people: Any = (REPORT.expert,), **changes: Any) -> Message:
    mapped = siu(
        event, BOOKED | changes, REPORT.patient, people, under_oid("DEM-1", "2.25.4"), own_oid="2.25.7", site=SITE,
        control_id="NB2HI4DTHIXS653XO4XA", now=NOW, receiving_application="AGENDA", receiving_facility="CH",
    )  # fmt: skip
    msg = parse(mapped.value)
    # SCH-16 and SCH-20 name a person: where none takes part they stay empty, which is told as a loss.
    unnamed = [] if people else ["SCH-16", "SCH-20"]
    assert [finding.location for finding in check(msg)] == unnamed
    return msg


def test_the_message_is_the_golden_one() -> None:
    golden = Path(__file__).parents[2] / "data" / "hl7v2" / "siu-s12.golden.hl7"
    assert written().raw == golden.read_bytes().replace(b"\n", b"\r")


@pytest.mark.parametrize("event", ["S12", "S13", "S14", "S15"])
def test_what_is_sent_is_read_back_by_our_own_intake(event: str) -> None:
    cancelled = {"status": "cancelled", "cancelationReason": {"text": "Empêchement"}} if event == "S15" else {}
    msg = written(event, **cancelled)
    assert msg.at("MSH-9").encoded == f"SIU^{event}^SIU_S12"
    read = appointment(msg, SITE).value
    told = read.appointment.resource
    assert (told["status"], told["start"], told["end"]) == (
        cancelled.get("status", "booked"), "2026-03-10T09:30:00+01:00", "2026-03-10T09:50:00+01:00"
    )  # fmt: skip
    assert (read.ids, read.requests) == ((("urn:oid:2.25.7", "a1"),), (("urn:oid:2.25.4", "DEM-1"),))
    assert told["comment"] == "Apporter le carnet" and told["minutesDuration"] == 20
    assert told["participant"][0]["actor"]["identifier"]["value"] == REPORT.expert.rpps
    if cancelled:
        assert told["cancelationReason"]["text"] == "Empêchement"


def test_the_numbers_an_agenda_gave_go_back_as_they_came() -> None:
    numbers = [
        {"type": {"coding": [{"code": kind}]}, "system": f"urn:oid:2.25.{n}", "value": f"N{n}"}
        for n, kind in ((1, "PLAC"), (2, "FILL"))
    ]
    msg = written(identifier=numbers)
    assert (msg.at("SCH-1").encoded, msg.at("SCH-2").encoded) == ("N1^^2.25.1^ISO", "N2^^2.25.2^ISO")


def test_a_booking_without_a_start_is_never_sent_but_a_cancellation_is() -> None:
    with pytest.raises(ValueError, match="no start"):
        written(start="2026-03-10")
    assert written("S15", start="", status="entered-in-error", people=()).get("SCH-25") == "Deleted"


def test_text_from_outside_stays_in_its_field() -> None:
    msg = written(comment="a|b\rMSH|^~\\&|EVIL")
    assert len(msg.all("MSH")) == 1 and msg.get("NTE-3") == "a|b\rMSH|^~\\&|EVIL"


@pytest.mark.parametrize(
    ("before", "changes", "event"),
    [
        (None, {}, "S12"),
        ("proposed", {}, "S12"),
        ("cancelled", {}, "S12"),
        (None, {"status": "proposed"}, None),
        ("proposed", {"status": "cancelled"}, None),
        ("booked", {"start": "2026-03-11T09:30:00+01:00"}, "S13"),
        ("booked", {"comment": "autre"}, "S14"),
        ("booked", {"meta": {"tag": []}}, None),
        ("booked", {"status": "noshow"}, "S14"),
        ("booked", {"status": "cancelled"}, "S15"),
        ("booked", {"status": "entered-in-error"}, "S15"),
        ("booked", {"status": "pending"}, "S15"),
        ("booked", {"status": "waitlist", "start": "2026-03-11T09:30:00+01:00"}, "S15"),
        ("pending", {"status": "proposed"}, None),
        ("pending", {}, "S12"),
    ],
)
def test_each_change_of_an_appointment_is_one_event_or_none(before: str | None, changes: Any, event: Any) -> None:
    assert event_of(BOOKED | {"status": before} if before else None, BOOKED | changes) == event
