"""Every ADT event of PAM France: what becomes of the Patient and of the stay. One sample of ours for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from adt_samples import ADMISSION, DATA, SITE, mapped, reasons, sample

from hl7v2 import tables
from hl7v2.check import check, errors
from hl7v2.message import Message, parse
from mappers.hl7v2_events_to_fhir import CANCELLED_BY, EVENTS
from mappers.hl7v2_to_fhir import Refused, split
from profiles.validator import structure

WANTED = {
    # sample: (patient, stay, Encounter.status, the state of a known stay is kept)
    "adt-a28-creation-provisoire": ("create", "none", "", False),
    "adt-a31-medecin-traitant-retire": ("update", "none", "", False),
    "adt-a40-fusion": ("merge", "none", "", False),
    "adt-a47-changement-ins": ("change-ids", "none", "", False),
    "adt-a01-admission": ("update", "create", "in-progress", False),
    "adt-a04-consultation": ("update", "create", "in-progress", False),
    "adt-a11-annulation": ("update", "cancel", "cancelled", False),
    "adt-a03-sortie": ("update", "update", "finished", False),
    "adt-a13-sortie-annulee": ("update", "update", "in-progress", False),
    "adt-a05-preadmission": ("update", "create", "planned", False),
    "adt-a38-preadmission-annulee": ("update", "cancel", "cancelled", False),
    "adt-a06-externe-devient-hospitalise": ("update", "update", "in-progress", False),
    "adt-a07-hospitalise-devient-externe": ("update", "update", "in-progress", False),
    "adt-a02-mutation": ("update", "update", "in-progress", False),
    "adt-a12-mutation-annulee": ("update", "update", "in-progress", False),
    "adt-a54-medecin-change": ("update", "update", "in-progress", False),
    "adt-a55-medecin-change-annule": ("update", "update", "in-progress", False),
    "adt-a21-permission": ("update", "update", "onleave", False),
    "adt-a52-permission-annulee": ("update", "update", "in-progress", False),
    "adt-a22-retour-de-permission": ("update", "update", "in-progress", False),
    "adt-a53-retour-annule": ("update", "update", "onleave", False),
    "adt-a44-dossier-deplace": ("keep", "move", "", False),
    "adt-z99-correction": ("update", "update", "in-progress", False),
    "adt-z99-mutation-annulee-historique": ("update", "update", "in-progress", True),
    "adt-a14-admission-annoncee": ("update", "create", "planned", True),
    "adt-a27-admission-annoncee-annulee": ("update", "cancel", "cancelled", False),
    "adt-a15-mutation-annoncee": ("update", "update", "in-progress", True),
    "adt-a26-mutation-annoncee-annulee": ("update", "update", "in-progress", True),
    "adt-a16-sortie-annoncee": ("update", "update", "in-progress", True),
    "adt-a25-sortie-annoncee-annulee": ("update", "update", "in-progress", True),
}


@pytest.mark.parametrize("name", WANTED)
def test_every_event_says_what_to_do_with_the_patient_and_the_stay(name: str) -> None:
    msg = sample(name)
    assert errors(check(msg)) == []
    result = mapped(msg).value
    status = result.encounter["status"] if result.encounter else ""
    assert (result.patient_action, result.stay_action, status, result.keeps_state) == WANTED[name]
    for resource in (result.patient, result.encounter):
        assert resource is None or [f for f in structure.check(resource) if f.severity == "error"] == []


def test_every_event_of_the_tables_is_in_the_effects_and_has_a_sample() -> None:
    assert set(EVENTS) == set(tables.ADT)
    seen = {sample(name).trigger for name in WANTED}
    assert set(EVENTS) - seen == {"A08"}


def test_a_cancellation_names_an_event_and_every_event_of_a_stay_can_be_taken_back_once() -> None:
    for trigger, event in EVENTS.items():
        if event.cancels:
            assert event.cancels in EVENTS and CANCELLED_BY[event.cancels] == trigger
    assert CANCELLED_BY["A04"] == "A11"


# --- what moves with an event ------------------------------------------------------------------------------------


def place(name: str) -> str:
    encounter = mapped(name).value.encounter
    assert encounter is not None
    return str(encounter["location"][-1]["location"]["display"]) if "location" in encounter else ""


def test_a_transfer_moves_and_its_cancellation_moves_back() -> None:
    assert place("adt-a02-mutation") == "CHIRURGIE / 204 / 1"
    assert place("adt-a12-mutation-annulee") == "MATERNITE / 101 / 2"
    assert place("adt-a15-mutation-annoncee") == ""


def test_a_stay_changes_class_with_a06_and_a07() -> None:
    for name, wanted in (
        ("adt-a06-externe-devient-hospitalise", "IMP"),
        ("adt-a07-hospitalise-devient-externe", "AMB"),
    ):
        encounter = mapped(name).value.encounter
        assert encounter is not None and encounter["class"]["code"] == wanted


def test_an_announced_discharge_does_not_end_the_stay() -> None:
    result = mapped("adt-a16-sortie-annoncee")
    assert result.value.encounter is not None and "end" not in result.value.encounter["period"]
    assert "PV1-45: A16 ends no stay" in reasons(result)


def test_a_cancelled_discharge_that_still_names_its_date_does_not_end_the_stay() -> None:
    msg = sample("adt-a13-sortie-annulee").set("PV1-45", "20260306104500")
    encounter = mapped(msg).value.encounter
    assert encounter is not None
    assert (encounter["status"], "end" in encounter["period"]) == ("in-progress", False)


def test_the_attending_doctor_follows_a54() -> None:
    encounter = mapped("adt-a54-medecin-change").value.encounter
    assert encounter is not None
    assert encounter["participant"][0]["individual"]["display"] == "Jeanne AUBRAC"


def test_a_moved_stay_names_the_patient_account_and_visit_it_leaves() -> None:
    result = mapped("adt-a44-dossier-deplace").value
    assert result.prior_ids == (("urn:oid:2.25.4711", "000399"),)
    assert result.prior_account_ids == (("urn:oid:2.25.4713", "26000099"),)
    assert result.prior_encounter_ids == (("urn:oid:2.25.4712", "V2026-0099"),)
    assert result.account_ids == (("urn:oid:2.25.4713", "26000123"),)
    assert result.encounter is None


def test_where_the_patient_came_from_is_kept_by_finess() -> None:
    encounter = mapped("adt-a05-preadmission").value.encounter
    assert encounter is not None
    assert encounter["hospitalization"]["origin"]["identifier"]["value"] == "990009999"
    odd = mapped(sample("adt-a05-preadmission").set("ZFV-1", "chez lui"))
    assert odd.value.encounter is not None and "hospitalization" not in odd.value.encounter
    assert "ZFV-1: 'chez lui' is no FINESS" in reasons(odd)
    assert "ZFV-1.2: when the patient last stayed there is not carried" in reasons(mapped("adt-a05-preadmission"))


def test_the_hospitals_own_word_for_how_a_stay_ended_stands_beside_the_code() -> None:
    left = sample("adt-a03-sortie")
    coded = mapped(left.set("PV1-36", "8")).value.encounter
    assert coded is not None
    both = mapped(parse(left.set("PV1-36", "8").raw.rstrip(b"\r") + b"\rZFV|||||||||SORTIE-UHCD\r")).value.encounter
    assert both is not None
    told = coded["hospitalization"]["dischargeDisposition"]
    assert both["hospitalization"]["dischargeDisposition"] == {**told, "text": "SORTIE-UHCD"}
    alone = mapped(parse(left.set("PV1-36", None).raw.rstrip(b"\r") + b"\rZFV|||||||||SORTIE-UHCD\r")).value.encounter
    assert alone is not None and alone["hospitalization"]["dischargeDisposition"] == {"text": "SORTIE-UHCD"}


# --- corrections -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "original", "stay", "status"),
    [
        ("UPDATE", "A01", "update", "in-progress"),
        ("UPDATE", "A02", "update", "in-progress"),
        ("UPDATE", "A21", "update", "onleave"),
        ("UPDATE", "A05", "update", "planned"),
        ("CANCEL", "A01", "cancel", "cancelled"),
        ("CANCEL", "A04", "cancel", "cancelled"),
        ("CANCEL", "A05", "cancel", "cancelled"),
        ("CANCEL", "A02", "update", "in-progress"),
        ("CANCEL", "A03", "update", "in-progress"),
        ("CANCEL", "A22", "update", "onleave"),
    ],
)
def test_a_correction_has_the_effect_of_the_event_it_names(action: str, original: str, stay: str, status: str) -> None:
    msg = sample("adt-z99-correction").set("ZBE-4", action).set("ZBE-6", original)
    result = mapped(msg).value
    assert result.encounter is not None
    assert (result.stay_action, result.encounter["status"]) == (stay, status)


def test_the_cancellation_of_nobody_knows_what_changes_no_state() -> None:
    msg = sample("adt-z99-correction").set("ZBE-4", "CANCEL").set("ZBE-6", None)
    result = mapped(msg)
    assert (result.value.stay_action, result.value.keeps_state) == ("update", True)
    assert "does not name the event" in reasons(result)


@pytest.mark.parametrize(
    ("trigger", "action", "original", "told"),
    [
        ("A01", "CANCEL", "", "ZBE-4: 'CANCEL' does not go with A01"),
        ("A11", "INSERT", "A01", "ZBE-4: 'INSERT' does not go with A11"),
        ("A11", "CANCEL", "A02", "ZBE-6: A11 takes back A01, not A02"),
        ("Z99", "INSERT", "A01", "ZBE-4: 'INSERT' does not go with Z99"),
        ("Z99", "UPDATE", "A99", "ZBE-6: the correction does not name"),
    ],
)
def test_a_movement_that_contradicts_its_trigger_is_told(trigger: str, action: str, original: str, told: str) -> None:
    msg = ADMISSION.set("MSH-9.2", trigger).set("ZBE-4", action).set("ZBE-6", original or None)
    assert told in reasons(mapped(msg))


@pytest.mark.parametrize("name", sorted(WANTED))
def test_an_honest_movement_contradicts_nothing(name: str) -> None:
    assert "does not go with" not in reasons(mapped(name)) and "ZBE-6" not in reasons(mapped(name))


# --- the DMP and the declared doctor -----------------------------------------------------------------------------


def test_what_the_patient_decided_about_the_dmp_becomes_consents() -> None:
    permitted = mapped("adt-a01-admission").value.consents
    assert [(c["category"][0]["text"], c["provision"]["type"]) for c in permitted] == [
        ("Alimentation du DMP", "permit"), ("Consultation du DMP", "permit"),
    ]  # fmt: skip
    denied = mapped("adt-a31-medecin-traitant-retire").value.consents
    assert [c["provision"]["type"] for c in denied] == ["deny", "deny"]
    assert denied[0]["dateTime"] == "2026-03-04"
    assert mapped(ADMISSION.set("ZFA-9", "NA").set("ZFA-11", "?")).value.consents == ()
    whole = {**denied[0], "patient": {"reference": "Patient/1"}}
    assert [finding for finding in structure.check(whole) if finding.severity == "error"] == []


def test_what_is_said_of_the_dmp_is_kept_field_by_field() -> None:
    msg = ADMISSION
    sent = {1: "FERME", 2: "20260101", 3: "20260102", 9: "IO", 10: "20260103", 11: "INC", 12: "20260104"}
    for field, value in sent.items():
        msg = msg.set(f"ZFA-{field}", value)
    (said,) = (one for one in mapped(msg).value.patient["extension"] if one["url"] == "urn:passerelle:dmp")
    told = {part["url"]: part.get("valueCode") or part.get("valueDateTime") for part in said["extension"]}
    assert told == {
        "status": "FERME", "statusDate": "2026-01-01", "closed": "2026-01-02", "feed": "IO", "feedDate": "2026-01-03",
        "consultation": "INC", "consultationDate": "2026-01-04",
    }  # fmt: skip


def test_a_doctor_who_is_taken_back_is_deleted_and_not_kept() -> None:
    result = mapped("adt-a31-medecin-traitant-retire")
    assert "generalPractitioner" not in result.value.patient
    assert result.value.nulls == ("ROL[1]",)


@pytest.mark.parametrize(
    ("msg", "drops"),
    [
        (ADMISSION, False),
        (ADMISSION.set("PID-32", None), False),
        (ADMISSION.set("PID-32", "PROV"), True),
        (sample("adt-a31-identite-douteuse"), True),
        (sample("adt-a47-changement-ins"), False),
        (sample("adt-a47-changement-ins").set("PID-3[2].1", '""'), True),
    ],
    ids=["qualified", "nothing-said", "provisional", "doubtful", "another-ins", "removed"],
)
def test_an_identity_that_is_no_longer_qualified_drops_its_ins(msg: Message, drops: bool) -> None:
    result = mapped(msg).value
    assert result.drops_ins is drops
    assert not (drops and result.ins)


# --- several patients in one message -----------------------------------------------------------------------------


def test_several_merges_in_one_message_are_read_one_by_one() -> None:
    msg = sample("adt-a40-deux-fusions")
    assert "a second patient" in reasons(mapped(msg))
    first, second = (mapped(part).value for part in split(msg))
    assert (first.local_ids, first.prior_ids) == (
        (("urn:oid:2.25.4711", "000417"),), (("urn:oid:2.25.4711", "000399"),),
    )  # fmt: skip
    assert (second.local_ids, second.prior_ids) == (
        (("urn:oid:2.25.4711", "000500"),), (("urn:oid:2.25.4711", "000501"),),
    )  # fmt: skip
    assert second.ins is None and first.control_id == second.control_id
    assert split(ADMISSION) == (ADMISSION,)


def test_a_message_of_endless_patients_is_refused() -> None:
    with pytest.raises(Refused, match="more than 50"):
        split(parse(ADMISSION.raw + b"PID|1\rMRG|1\r" * 60))


def test_a_merge_that_names_nobody_we_know_is_told() -> None:
    msg = parse((DATA / "adt-a40-fusion.er7").read_bytes().replace(b"000399^^^CH-SYLVE", b"000399^^^AILLEURS"))
    result = mapped(msg)
    assert result.value.prior_ids == () and "nothing can be merged" in reasons(result)


def test_events_keep_their_meaning_on_a_site_overseas() -> None:
    site = replace(SITE, time_zone="America/Martinique")
    encounter = mapped(sample("adt-a05-preadmission"), site).value.encounter
    assert encounter is not None and encounter["period"]["start"] == "2026-03-10T08:00:00-04:00"


def test_the_samples_are_our_own() -> None:
    assert all("SYL" in path.read_text(encoding="iso8859-15") for path in Path(DATA).glob("adt-*.er7"))
