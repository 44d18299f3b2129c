"""SIU S12 to S15 as an Appointment: booked, moved, changed, given up."""

from __future__ import annotations

from pathlib import Path

import pytest
from adt_samples import DATA, SITE, reasons, sample

from hl7v2.check import check, errors
from hl7v2.message import Message, parse
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_schedule_to_fhir import STATUS, Slot, appointment
from profiles.validator import structure

BOOKING = sample("siu-s12-reservation")


def slot(msg: Message = BOOKING) -> Slot:
    return appointment(msg, SITE).value


def test_a_booking_says_when_who_where_what_for_and_for_which_request() -> None:
    said = slot()
    made = said.appointment.resource
    assert (said.action, made["status"]) == ("book", "booked")
    assert said.ids == (("urn:oid:2.25.4730", "RDV-501"), ("urn:oid:2.25.4731", "9001"))
    assert said.requests == (("urn:oid:2.25.4720", "DEM-2026-90"),)
    assert (made["start"], made["end"]) == ("2026-03-10T09:30:00+01:00", "2026-03-10T09:50:00+01:00")
    assert made["minutesDuration"] == 20 and made["comment"] == "Apporter le carnet de grossesse."
    assert made["serviceType"][0]["coding"][0]["code"] == "TE2"
    assert [part["actor"]["display"] for part in made["participant"]] == ["Paul FERRAND", "CONSULT / B12"]
    assert said.patient is not None and said.patient.local_ids == (("urn:oid:2.25.4711", "000417"),)


@pytest.mark.parametrize(
    ("name", "action", "status", "start"),
    [
        ("siu-s13-deplacement", "move", "booked", "2026-03-11T14:00:00+01:00"),
        ("siu-s14-modification", "change", "booked", "2026-03-11T14:00:00+01:00"),
        ("siu-s15-annulation", "cancel", "cancelled", "2026-03-11T14:00:00+01:00"),
    ],
)
def test_the_same_appointment_is_moved_changed_and_given_up(name: str, action: str, status: str, start: str) -> None:
    said = slot(sample(name))
    made = said.appointment.resource
    assert (said.action, made["status"], made["start"]) == (action, status, start)
    assert said.ids == slot().ids
    assert ("cancelationReason" in made) is (action == "cancel")


@pytest.mark.parametrize("path", sorted(DATA.glob("siu-*.er7")), ids=lambda path: path.stem)
def test_every_appointment_is_valid_r4(path: Path) -> None:
    msg = parse(path.read_bytes())
    assert errors(check(msg)) == []
    made = appointment(msg, SITE).value.appointment.resource
    assert [finding for finding in structure.check(made) if finding.severity == "error"] == []


@pytest.mark.parametrize("code", [*sorted(STATUS), "Nimporte"])
def test_every_filler_status_is_a_fhir_status(code: str) -> None:
    made = slot(BOOKING.set("SCH-25", code)).appointment.resource
    assert made["status"] == STATUS.get(code, "booked")
    assert slot(sample("siu-s15-annulation").set("SCH-25", code)).appointment.resource["status"] == "cancelled"


def test_the_time_may_stand_with_the_service_or_the_person() -> None:
    service = slot(BOOKING.set("SCH-11.4", None))
    assert service.appointment.resource["start"] == "2026-03-10T09:30:00+01:00"
    person = slot(BOOKING.set("SCH-11.4", None).set("AIS-4", None).set("AIP-6", "20260310093000"))
    assert person.appointment.resource["start"] == "2026-03-10T09:30:00+01:00"


@pytest.mark.parametrize(
    ("length", "unit", "end"),
    [("1", "H", "10:30:00"), ("90", "MIN", "11:00:00"), ("1800", "S", "10:00:00"), ("45", "", "10:15:00")],
)
def test_the_length_has_a_unit(length: str, unit: str, end: str) -> None:
    made = slot(BOOKING.set("SCH-9", length).set("SCH-10", unit or None)).appointment.resource
    assert made["end"] == f"2026-03-10T{end}+01:00"


@pytest.mark.parametrize("length", ["", "x", "-5", "٣", "9999999", "999999"])
def test_a_length_nobody_understands_is_told(length: str) -> None:
    result = appointment(BOOKING.set("SCH-9", length or None), SITE)
    assert result.value.appointment.resource["end"] == "2026-03-10T10:00:00+01:00"
    assert "30 minutes are assumed" in reasons(result)


@pytest.mark.parametrize(
    ("where", "value", "location"),
    [("MSH-9.2", "S26", "MSH^1^9"), ("SCH-11.5", "20260309093000+0100", "SCH^1^11")],
)
def test_a_slot_that_cannot_be_is_refused(where: str, value: str, location: str) -> None:
    with pytest.raises(Refused) as caught:
        slot(BOOKING.set(where, value))
    assert caught.value.location == location


def test_a_slot_without_number_beginning_or_segment_is_refused() -> None:
    for msg, location in (
        (BOOKING.set("SCH-1", None).set("SCH-2", None), "SCH^1^1"),
        (BOOKING.set("SCH-11.4", None).set("AIS-4", None), "SCH^1^11"),
        (parse(b"\r".join(line for line in BOOKING.raw.split(b"\r") if not line.startswith(b"SCH"))), "SCH^1"),
    ):
        with pytest.raises(Refused) as caught:
            slot(msg)
        assert caught.value.location == location


def test_a_free_slot_has_no_patient_and_hostile_resources_are_bounded() -> None:
    lines = [line for line in BOOKING.raw.split(b"\r") if not line.startswith((b"PID", b"PV1"))]
    assert slot(parse(b"\r".join(lines))).patient is None
    many = slot(parse(BOOKING.raw + b"AIL|1||SALLE\r" * 5_000))
    assert len(many.appointment.resource["participant"]) <= 102
