"""Numbers without an OID: those of two senders are never taken for each other, those of one are found again."""

from __future__ import annotations

from typing import Any

import pytest
from hubs import found, put, read
from sylve import IPP, patient, person, sample, say, sylve, tell

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery.intake_documents import stable_id
from fhir_server.delivery.order_numbers import GIVEN_BY
from fhir_server.store.engine import Store

Resource = dict[str, Any]
FILLER, PLACER = "LAB-4411^SIL^2.25.4721^ISO", "DEM-2026-90^^2.25.4720^ISO"
LUC = "PID|1||000500^^^CH-SYLVE&990001234&N^PI||MARTIN^Luc^Luc^^M^^L||19700101|M"


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = sylve(store)
    tell(hub, "adt-a01-admission")
    say(hub, person("000500"))
    return hub


def about_luc(raw: bytes) -> bytes:
    """The same message about the other patient."""
    lines = raw.decode().split("\r")
    return "\r".join(LUC if line.startswith("PID") else line for line in lines).encode()


def unsigned(resource: Resource) -> Resource:
    """As it was stored before the givers of numbers were kept."""
    numbers = [{k: v for k, v in one.items() if k != "extension"} for one in resource["identifier"]]
    return {**{k: v for k, v in resource.items() if k != "meta"}, "identifier": numbers}


def luc(hub: Hub) -> str:
    return f"Patient/{found(hub, 'Patient', f'identifier={IPP}|000500')[0]['id']}"


# --- results ---------------------------------------------------------------------------------------------------------

LABS = [
    (((FILLER, "4411^LABO-A"),), ((FILLER, "4411^LABO-B"),)),
    (((FILLER, "4411"), ("|SIL|", "|SIL-A|")), ((FILLER, "4411"), ("|SIL|", "|SIL-B|"))),
]


@pytest.mark.parametrize(("one", "two"), LABS, ids=["namespace", "sender"])
def test_the_same_filler_number_of_two_laboratories_is_two_reports(hub: Hub, one: Any, two: Any) -> None:
    tell(hub, "oru-r01-biologie", *one)
    tell(hub, "oru-r01-biologie", *two, ("||5.20|", "||6.10|"))
    reports = found(hub, "DiagnosticReport")
    assert len(reports) == 2 and len(found(hub, "Observation", "code=2093-3")) == 2
    assert say(hub, about_luc(sample("oru-r01-biologie", *two, ("4411", "4412")))).code == "AA"
    assert say(hub, about_luc(sample("oru-r01-biologie", *one, ("4411", "4412")))).code == "AA", "of another patient"
    assert len(found(hub, "DiagnosticReport", f"subject={luc(hub)}")) == 2


@pytest.mark.parametrize("changes", [LABS[0][0], LABS[1][0]], ids=["namespace", "sender"])
def test_a_correction_under_a_number_without_an_oid_is_a_new_version(hub: Hub, changes: Any) -> None:
    tell(hub, "oru-r01-biologie", *changes)
    tell(hub, "oru-r01-biologie", *changes, ("|CH|F|", "|CH|C|"))
    (report,) = found(hub, "DiagnosticReport")
    assert report["status"] == "corrected" and len(found(hub, "Observation")) == 7
    told = say(hub, about_luc(sample("oru-r01-biologie", *changes)))
    assert (told.code, told.application_code) == ("AE", "904"), "one laboratory gives a number once"


def test_a_report_stored_before_senders_were_kept_is_corrected_by_who_may_have_given_its_number(hub: Hub) -> None:
    bare = ((FILLER, "4411"),)
    tell(hub, "oru-r01-biologie", *bare)
    (report,) = found(hub, "DiagnosticReport")
    old = {**report, "id": stable_id("report", "sylve", "", "4411", "24331-1")}
    assert old["id"] != report["id"] and GIVEN_BY in str(report["identifier"])
    put(hub, SYSTEM, unsigned(old))
    tell(hub, "oru-r01-biologie", *bare, ("|CH|F|", "|CH|C|"))
    assert read(hub, f"DiagnosticReport/{old['id']}")["status"] == "corrected"
    tell(hub, "oru-r01-biologie", *bare, ("|SIL|", "|SIL-B|"), ("|CH|F|", "|CH|P|"))
    assert read(hub, f"DiagnosticReport/{old['id']}")["status"] == "corrected", "it is the first one's since"


def series(*hours: str) -> bytes:
    """One OBR and its first result for each hour, under one filler number and code."""
    lines = sample("oru-r01-biologie").decode().split("\r")
    obr = next(line for line in lines if line.startswith("OBR"))
    obx = next(line for line in lines if line.startswith("OBX"))
    rows = [row for hour in hours for row in (obr.replace("20260302073000", f"20260302{hour}3000"), obx)]
    return ("\r".join([*lines[:4], *rows]) + "\r").encode()


def test_two_orders_of_one_number_and_code_in_one_message_are_two_reports_found_again_by_their_time(hub: Hub) -> None:
    assert say(hub, series("07", "09")).code == "AA"
    first = {one["effectiveDateTime"][11:13]: one["id"] for one in found(hub, "DiagnosticReport")}
    assert sorted(first) == ["07", "09"] and len(found(hub, "Observation")) == 2
    assert say(hub, series("09", "07")).code == "AA"
    assert say(hub, series("09")).code == "AA"
    again = {one["effectiveDateTime"][11:13]: one["id"] for one in found(hub, "DiagnosticReport")}
    assert again == first and len(found(hub, "Observation")) == 2


# --- orders ----------------------------------------------------------------------------------------------------------

DPIS = [
    (((PLACER, "90^DPI-A"),), ((PLACER, "90^DPI-B"),)),
    (((PLACER, "90"), ("|RIS|", "|DPI-A|")), ((PLACER, "90"), ("|RIS|", "|DPI-B|"))),
]


@pytest.mark.parametrize(("one", "two"), DPIS, ids=["namespace", "sender"])
def test_the_same_placer_number_of_two_applications_is_two_requests(hub: Hub, one: Any, two: Any) -> None:
    tell(hub, "orm-o01-tlr-demande", *one)
    tell(hub, "orm-o01-tlr-demande", *two, ("Métrorragies", "Placenta bas"))
    assert len(found(hub, "ServiceRequest")) == 2
    assert say(hub, sample("orm-o01-tlr-demande", *one)).errors[0].code == "205"
    tell(hub, "orm-o01-tlr-annulation", *two)
    status = {str(r["reasonCode"][0]["text"])[:12]: r["status"] for r in found(hub, "ServiceRequest")}
    assert status == {"Métrorragies": "draft", "Placenta bas": "revoked"}


def test_a_number_whose_giver_is_not_known_is_still_that_of_its_patient(hub: Hub) -> None:
    tell(hub, "orm-o01-tlr-demande", (PLACER, "90"))
    (request,) = found(hub, "ServiceRequest")
    assert GIVEN_BY in str(request["identifier"])
    put(hub, SYSTEM, unsigned(request))
    tell(hub, "orm-o01-tlr-annulation", (PLACER, "90"), ("|RIS|", "|DPI-B|"))
    assert found(hub, "ServiceRequest")[0]["status"] == "revoked"


def test_a_result_names_the_number_of_who_ordered_and_not_its_own(hub: Hub) -> None:
    """A laboratory repeats the placer's number: bare, when the order was; two orders of that number are not guessed."""
    tell(hub, "orm-o01-tlr-demande", (PLACER, "90"), ("|RIS|", "|DPI-A|"))
    (request,) = found(hub, "ServiceRequest")
    placed = ("DEM-2026-77^CH-SYLVE^2.25.4720^ISO", "90")
    tell(hub, "oru-r01-biologie", placed)
    (report,) = found(hub, "DiagnosticReport")
    named = {"reference": f"DiagnosticReport/{report['id']}"}
    assert named in found(hub, "ServiceRequest")[0]["supportingInfo"]
    tell(hub, "orm-o01-tlr-demande", (PLACER, "90"), ("|RIS|", "|DPI-B|"))
    row = tell(hub, "oru-r01-biologie", placed, ("LAB-4411", "LAB-4412"))
    assert "more than one request 90" in row.note
    other = next(one for one in found(hub, "ServiceRequest") if one["id"] != request["id"])
    assert "DiagnosticReport" not in str(other["supportingInfo"])
    told = say(hub, sample("oru-r01-tlr-refus", ("DEM-2026-79^^2.25.4720^ISO", "90")))
    assert (told.code, told.application_code, told.errors[0].location) == ("AE", "900", "ORC^1^2")
    assert "EI-2" in told.text


def test_a_number_with_an_oid_is_that_of_nobody_else(hub: Hub) -> None:
    tell(hub, "orm-o01-tlr-demande")
    told = say(hub, about_luc(sample("orm-o01-tlr-demande", ("|RIS|", "|DPI-B|"))))
    assert (told.code, told.application_code) == ("AE", "900")
    (request,) = found(hub, "ServiceRequest")
    assert GIVEN_BY not in str(request)


# --- documents -------------------------------------------------------------------------------------------------------


def test_the_same_number_of_two_archives_is_two_documents(hub: Hub) -> None:
    number = "2.25.310001"
    for name in ("310001^GED-A", "310001^GED-B"):
        tell(hub, "mdm-t02-lps-recu", (number, name))
    assert len(found(hub, "DocumentReference")) == 2
    assert say(hub, sample("mdm-t02-lps-recu", (number, "310001^GED-A"))).errors[0].code == "205"
    told = say(hub, sample("mdm-t04-lps-recu", (number, "310001^GED-C")))
    assert (told.code, told.application_code) == ("AE", "900")
    tell(hub, "mdm-t04-lps-recu", (number, "310001^GED-B"))
    status = {one["masterIdentifier"]["assigner"]["display"]: one["status"] for one in found(hub, "DocumentReference")}
    assert status == {"GED-A": "current", "GED-B": "entered-in-error"}


def test_a_bare_number_of_a_document_is_that_of_its_sender(hub: Hub) -> None:
    for sender in ("GED-A", "GED-B"):
        raw = sample("mdm-t02-lps-recu", ("2.25.310001", "310001")).split(b"|", 3)
        assert say(hub, b"|".join([*raw[:2], sender.encode(), raw[3]])).code == "AA"
    assert len(found(hub, "DocumentReference")) == 2
    told = say(hub, about_luc(b"|".join([*raw[:2], b"GED-A", raw[3].replace(b"|N0", b"|M0")])))
    assert told.code == "AE" and "is here already" in told.text, "one archive gives a number once"


# --- slots -----------------------------------------------------------------------------------------------------------

BOTH = "RDV-501^AGENDA^2.25.4730^ISO|9001^PASSERELLE^2.25.4731^ISO"
AGENDAS = [
    (((BOTH, "|501^AGENDA-A"),), ((BOTH, "|501^AGENDA-B"),)),
    (((BOTH, "|501"), ("|AGENDA|", "|AGENDA-A|")), ((BOTH, "|501"), ("|AGENDA|", "|AGENDA-B|"))),
]


def without_patient(raw: bytes) -> bytes:
    return ("\r".join(x for x in raw.decode().split("\r") if x[:3] in ("MSH", "SCH")) + "\r").encode()


@pytest.mark.parametrize(("one", "two"), AGENDAS, ids=["namespace", "sender"])
def test_the_same_number_of_two_agendas_is_two_appointments(hub: Hub, one: Any, two: Any) -> None:
    tell(hub, "siu-s12-reservation", *one)
    tell(hub, "siu-s12-reservation", *two)
    assert say(hub, about_luc(sample("siu-s12-reservation", *two))).code == "AA", "of another patient"
    assert len(found(hub, "Appointment")) == 3
    assert say(hub, sample("siu-s12-reservation", *one)).errors[0].code == "205"
    tell(hub, "siu-s13-deplacement", *one)
    assert sorted(a["start"][:10] for a in found(hub, "Appointment")) == ["2026-03-10", "2026-03-10", "2026-03-11"]


@pytest.mark.parametrize(("one", "two"), AGENDAS, ids=["namespace", "sender"])
def test_an_agenda_gives_up_its_own_appointments_only(hub: Hub, one: Any, two: Any) -> None:
    tell(hub, "siu-s12-reservation", *one)
    for raw in (without_patient(sample("siu-s15-annulation", *two)), sample("siu-s15-annulation", *two)):
        told = say(hub, raw)
        assert (told.code, told.errors[0].code, told.errors[0].location) == ("AE", "204", "SCH^1^1")
    assert found(hub, "Appointment")[0]["status"] == "booked"
    assert say(hub, without_patient(sample("siu-s15-annulation", *one))).code == "AA"
    assert found(hub, "Appointment")[0]["status"] == "cancelled"


def test_an_appointment_whose_agenda_is_not_known_is_given_up_only_by_a_message_that_names_its_patient(
    hub: Hub,
) -> None:
    bare = ((BOTH, "|501"),)
    tell(hub, "siu-s12-reservation", *bare)
    (slot,) = found(hub, "Appointment")
    put(hub, SYSTEM, unsigned(slot))
    assert say(hub, without_patient(sample("siu-s15-annulation", *bare))).errors[0].code == "204"
    tell(hub, "siu-s15-annulation", *bare)
    assert found(hub, "Appointment")[0]["status"] == "cancelled"


def test_a_slot_without_a_patient_is_found_again_by_its_own_agenda_and_gets_one(hub: Hub) -> None:
    bare, theirs = AGENDAS[1]
    assert say(hub, without_patient(sample("siu-s12-reservation", *bare))).code == "AA"
    assert say(hub, sample("siu-s13-deplacement", *theirs)).errors[0].code == "204"
    tell(hub, "siu-s13-deplacement", *bare)
    (slot,) = found(hub, "Appointment")
    assert slot["start"].startswith("2026-03-11") and slot["participant"][0]["actor"]["reference"].startswith(
        "Patient/"
    )


def test_an_unknown_patient_of_an_unknown_slot_is_not_recorded_by_giving_it_up(hub: Hub) -> None:
    before = len(found(hub, "Patient"))
    assert say(hub, about_luc(sample("siu-s15-annulation")).replace(b"000500", b"000999")).code == "AE"
    assert len(found(hub, "Patient")) == before and patient(hub)


def test_a_slot_that_is_booked_again_has_no_reason_for_being_given_up(hub: Hub) -> None:
    tell(hub, "siu-s12-reservation")
    tell(hub, "siu-s15-annulation")
    assert "cancelationReason" in found(hub, "Appointment")[0]
    tell(hub, "siu-s13-deplacement")
    (slot,) = found(hub, "Appointment")
    assert slot["status"] == "booked" and "cancelationReason" not in slot


def test_a_moved_slot_lasts_as_long_as_the_message_says(hub: Hub) -> None:
    tell(hub, "siu-s12-reservation")
    assert found(hub, "Appointment")[0]["minutesDuration"] == 20
    longer = ("|20|MIN|^^^20260311140000+0100", "|||^^^20260311140000+0100^20260311150000+0100")
    tell(hub, "siu-s13-deplacement", longer)
    (slot,) = found(hub, "Appointment")
    assert (slot["start"][11:16], slot["end"][11:16]) == ("14:00", "15:00") and "minutesDuration" not in slot
