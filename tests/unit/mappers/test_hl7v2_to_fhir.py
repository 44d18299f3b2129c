"""ADT of PAM France and business acks as FHIR. `golden` files beside the messages hold the expected resources."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from adt_samples import ADMISSION, DATA, SITE, TEST_INS, mapped, reasons, sample, status

from hl7v2.check import check, errors
from hl7v2.message import Message, parse
from mappers.hl7v2_to_fhir import Refused
from mappers.hl7v2_types_to_fhir import date_of, datetime_of
from mappers.identity import Namespace
from profiles.validator import structure

# --- the whole thing ---------------------------------------------------------------------------------------------


def test_an_admission_becomes_the_expected_patient_and_stay() -> None:
    result = mapped(ADMISSION).value
    expected = json.loads((DATA / "adt-a01-admission.golden.json").read_text(encoding="utf-8"))
    assert {"patient": result.patient, "encounter": result.encounter} == expected


def test_what_to_match_on_is_given_apart() -> None:
    result = mapped(ADMISSION).value
    assert result.ins == TEST_INS
    assert result.local_ids == (("urn:oid:2.25.4711", "000417"),)
    assert result.encounter_ids == (("urn:oid:2.25.4712", "V2026-0417"),)
    assert (result.trigger, result.action, result.control_id) == ("A01", "movement", "SYL0000000000000001")
    assert result.event_time == "2026-03-02T08:15:00+01:00"
    assert "id" not in result.patient and "subject" not in (result.encounter or {})


def test_what_is_not_carried_is_said_segment_by_segment() -> None:
    told = reasons(mapped(ADMISSION))
    assert "EVN: not carried: field 5" in told
    assert "ROL: not carried: fields 11, 12" in told
    assert "ZFD: not carried: field 3" in told
    extra = parse(ADMISSION.raw + b"ZFM|8\rZFP|OUV\r")
    assert "ZFM: the segment is not carried" in reasons(mapped(extra))


FR_CORE = "https://hl7.fr/ig/fhir/core/StructureDefinition/"


@pytest.mark.parametrize(
    ("lunar", "corrected", "kept"),
    [
        ("30^02^1950", "Y", {"fr-core-lunar-date": "30-02-1950", "fr-core-patient-birthdate-update-indicator": True}),
        ("^^1950", "N", {"fr-core-lunar-date": "--1950", "fr-core-patient-birthdate-update-indicator": False}),
        ("19500230", None, {"fr-core-lunar-date": "19500230"}),
        (None, None, {}),
        ("vers 1950", "peut-être", {}),
    ],
)
def test_what_is_known_of_a_birth_date_stands_beside_it(
    lunar: str | None, corrected: str | None, kept: dict[str, object]
) -> None:
    result = mapped(ADMISSION.set("ZFD-4", corrected) if lunar is None else with_lunar(lunar).set("ZFD-4", corrected))
    found = {
        one["url"].removeprefix(FR_CORE): one.get("valueString", one.get("valueBoolean"))
        for one in result.value.patient["extension"]
        if one["url"].endswith(("lunar-date", "update-indicator"))
    }
    assert found == kept and result.value.patient["birthDate"] == "1984-05-23"
    assert ("ZFD-1: 'vers 1950' is no date" in reasons(result)) is (lunar == "vers 1950")
    assert ("ZFD-4: 'PEUT-ÊTRE' is neither Y nor N" in reasons(result)) is (lunar == "vers 1950")


def with_lunar(text: str) -> Message:
    """The admission with that ZFD-1, its components as they are."""
    return parse(ADMISSION.raw.replace(b"\rZFD|", f"\rZFD|{text}".encode()))


@pytest.mark.parametrize("path", sorted(DATA.glob("adt-*.er7")), ids=lambda path: path.stem)
@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"], ids=["CR", "LF", "CRLF"])
def test_every_sample_maps_to_the_same_whatever_its_line_ends(path: Path, end: bytes) -> None:
    raw = path.read_bytes()
    assert mapped(parse(raw.replace(b"\n", end))).value == mapped(parse(raw)).value


@pytest.mark.parametrize("path", sorted(DATA.glob("adt-*.er7")), ids=lambda path: path.stem)
def test_every_mapped_resource_is_valid_r4(path: Path) -> None:
    result = mapped(parse(path.read_bytes())).value
    for resource in (result.patient, result.encounter):
        if resource is not None:
            assert [finding for finding in structure.check(resource) if finding.severity == "error"] == []


@pytest.mark.needs("shared")
@pytest.mark.parametrize("end", [b"\n", b"\r"], ids=["LF", "CR"])
@pytest.mark.parametrize("name", ["sgl-adt-a01-admission", "adt-a01-consentement-dmp"])
def test_the_national_admissions_are_integrated(shared: Path, name: str, end: bytes) -> None:
    msg = parse((shared / "ans-hl7v2" / f"{name}.er7").read_bytes().replace(b"\n", end))
    site = replace(
        SITE,
        namespaces=(
            Namespace("ipp", "PI", ("CHU-X", "000897406", "N"), "2.25.1", "urn:oid:2.25.1", "PI"),
            Namespace("venue", "VN", ("CHU-X", "000897406", "M"), "2.25.2", "urn:oid:2.25.2", "VN"),
        ),
    )
    assert errors(check(msg)) == []
    result = mapped(msg, site)
    patient, encounter = result.value.patient, result.value.encounter
    assert result.value.ins == ("urn:oid:1.2.250.1.213.1.4.10", "279035121518989")
    assert result.value.local_ids == (("urn:oid:2.25.1", "000003"),)
    assert (patient["gender"], patient["birthDate"], status(patient)) == ("female", "1979-03-28", "VALI")
    assert patient["name"][0]["family"] == "PAT-TROIS"
    assert encounter is not None
    assert (encounter["status"], encounter["class"]["code"]) == ("in-progress", "IMP")
    assert encounter["identifier"][0]["value"] == "000897406"
    assert encounter["period"] == {"start": "2024-03-06T11:00:00+01:00"}
    assert "dates of the INS" in reasons(result)
    dmp = next(extension for extension in patient["extension"] if extension["url"] == "urn:passerelle:dmp")
    assert {"url": "feed", "valueCode": "INO"} in dmp["extension"]


def test_the_mapper_needs_no_socket() -> None:
    code = "import sys, mappers.hl7v2_to_fhir, mappers.fhir_to_hl7v2; sys.exit('socket' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- identifiers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authority", "known"),
    [
        ("CH-SYLVE&990001234&N", True),
        ("CH-SYLVE&990001234&M", True),
        ("ch-sylve", True),
        ("&990001234&N", True),
        ("AUTRE NOM&2.25.4711&ISO", True),
        ("CH-SYLVE&990009999&N", False),
        ("LABO&990001234&N", False),
        ("", False),
    ],
)
def test_a_local_identifier_counts_in_a_declared_namespace_only(authority: str, known: bool) -> None:
    msg = parse(ADMISSION.raw.replace(b"000417^^^CH-SYLVE&990001234&N^PI", f"000417^^^{authority}^PI".encode()))
    result = mapped(msg)
    assert (result.value.local_ids == (("urn:oid:2.25.4711", "000417"),)) is known
    kept = next(i for i in result.value.patient["identifier"] if i["value"] == "000417")
    assert ("system" in kept) is known
    assert ("is no declared namespace" in reasons(result)) is not known
    if authority and not known:
        assert kept["assigner"] == {"display": authority}


def test_the_billing_number_is_not_kept_and_other_types_are_secondary() -> None:
    more = b"000417^^^CH-SYLVE&990001234&N^PI~284056912345640^^^CNAM&1.2.250.1.213.1.4.13&ISO^NH~P1^^^X&1.2.3&ISO^PPN"
    result = mapped(parse(ADMISSION.raw.replace(b"000417^^^CH-SYLVE&990001234&N^PI", more)))
    values = [(i["use"], i["value"], i.get("system")) for i in result.value.patient["identifier"]]
    assert values == [
        ("official", "284056912345640", TEST_INS[0]),
        ("usual", "000417", "urn:oid:2.25.4711"),
        ("secondary", "P1", "urn:oid:1.2.3"),
    ]
    assert "billing NIR" in reasons(result)


# --- traits ------------------------------------------------------------------------------------------------------


def test_names_are_told_apart_by_their_type() -> None:
    patient = mapped(
        ADMISSION.set("PID-5[3].1", "CAPUCINE").set("PID-5[3].7", "S").set("PID-5[4].1", "X").set("PID-5[4].7", "Z")
    ).value.patient
    assert [(name.get("use"), name["family"]) for name in patient["name"]] == [
        ("official", "LECOCQ-MARAIS"), ("usual", "D’ARC"), ("anonymous", "CAPUCINE"), (None, "X"),
    ]  # fmt: skip
    only = mapped(parse(ADMISSION.raw.replace(b"^MME^^L~", b"^MME~")))
    assert only.value.patient["name"][0]["use"] == "official"
    assert "no name is marked as the birth name" in reasons(only)


def test_without_the_list_of_given_names_there_is_no_extension_and_no_claim_of_the_profile() -> None:
    patient = mapped(ADMISSION.set("PID-5[1].3", None)).value.patient
    assert patient["name"][0] == {"use": "official", "family": "LECOCQ-MARAIS", "given": ["Noémie"], "prefix": ["MME"]}
    assert "meta" not in patient


@pytest.mark.parametrize(
    ("code", "gender"), [("F", "female"), ("M", "male"), ("U", "unknown"), ("O", "unknown"), (None, None)]
)
def test_gender(code: str | None, gender: str | None) -> None:
    assert mapped(ADMISSION.set("PID-8", code)).value.patient.get("gender") == gender


def test_the_birth_place_carries_the_insee_code() -> None:
    patient = mapped(ADMISSION).value.patient
    place = next(e["valueAddress"] for e in patient["extension"] if e["url"].endswith("patient-birthPlace"))
    assert place["city"] == "SYLVELANDE"
    assert place["extension"][0]["valueCoding"]["code"] == "99321"
    assert [address["use"] for address in patient["address"]] == ["home"]


def test_an_mssante_address_is_marked_and_a_mobile_is_one() -> None:
    telecom = mapped(ADMISSION).value.patient["telecom"]
    assert [(point["system"], point["use"]) for point in telecom] == [
        ("phone", "home"), ("phone", "mobile"), ("email", "home"),
    ]  # fmt: skip
    assert telecom[2]["extension"][0]["valueCoding"]["code"] == "MSSANTE"


def test_null_values_are_told_and_never_stored() -> None:
    result = mapped("adt-a31-identite-douteuse")
    assert result.value.nulls == ("PID-13",)
    assert '""' not in json.dumps(result.value.patient)
    assert "telecom" not in result.value.patient


def test_death_multiple_birth_and_marital_status() -> None:
    dead = mapped(ADMISSION.set("PID-30", "Y")).value.patient
    assert dead["deceasedBoolean"] is True
    dated = mapped(ADMISSION.set("PID-29", "202603010415").set("PID-30", "Y")).value.patient
    assert dated["deceasedDateTime"] == "2026-03-01T04:15:00+01:00"
    twin = mapped(ADMISSION.set("PID-24", "Y").set("PID-25", "2").set("PID-16", "S")).value.patient
    assert twin["multipleBirthInteger"] == 2
    assert twin["maritalStatus"]["coding"][0]["code"] == "S"


def test_the_declared_doctor_and_the_attending_one_are_logical_references() -> None:
    result = mapped(ADMISSION).value
    doctor = result.patient["generalPractitioner"][0]
    assert doctor["identifier"]["system"] == "https://rpps.esante.gouv.fr"
    assert (doctor["identifier"]["value"], doctor["display"]) == ("99900000029", "Paul FERRAND")
    assert result.encounter is not None
    attending = result.encounter["participant"][0]["individual"]
    assert attending["identifier"]["value"] == "01999000123"


# --- stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "state", "period"),
    [
        ("adt-a01-admission", "in-progress", {"start": "2026-03-02T08:15:00+01:00"}),
        ("adt-a04-consultation", "in-progress", {"start": "2026-03-02T08:15:00+01:00"}),
        ("adt-a03-sortie", "finished", {"start": "2026-03-02T08:15:00+01:00", "end": "2026-03-06T10:45:00+01:00"}),
        ("adt-a11-annulation", "cancelled", {"start": "2026-03-02T08:15:00+01:00"}),
        ("adt-z99-correction", "in-progress", {"start": "2026-03-02T09:00:00+01:00"}),
    ],
)
def test_the_trigger_decides_the_state_of_the_stay(name: str, state: str, period: dict[str, str]) -> None:
    encounter = mapped(name).value.encounter
    assert encounter is not None
    assert (encounter["status"], encounter["period"]) == (state, period)
    assert encounter["serviceProvider"]["identifier"]["value"] == "990001234"


@pytest.mark.parametrize(
    ("trigger", "state"),
    [("A02", "in-progress"), ("A05", "planned"), ("A13", "in-progress"), ("A21", "onleave"), ("A22", "in-progress"),
     ("A52", "in-progress"), ("A53", "onleave"), ("A38", "cancelled"), ("A27", "cancelled"), ("A54", "in-progress")],
)  # fmt: skip
def test_every_movement_of_pam_france_has_a_state(trigger: str, state: str) -> None:
    encounter = mapped(ADMISSION.set("MSH-9.2", trigger)).value.encounter
    assert encounter is not None and encounter["status"] == state


def test_a_cancelling_correction_has_the_effect_of_the_cancellation() -> None:
    msg = sample("adt-z99-correction").set("ZBE-4", "CANCEL")
    encounter = mapped(msg).value.encounter
    assert encounter is not None and encounter["status"] == "cancelled"


@pytest.mark.parametrize(("code", "wanted"), [("I", "IMP"), ("O", "AMB"), ("E", "EMER"), ("R", "AMB"), ("?", "AMB")])
def test_the_class_of_the_stay(code: str, wanted: str) -> None:
    encounter = mapped(ADMISSION.set("PV1-2", code)).value.encounter
    assert encounter is not None and encounter["class"]["code"] == wanted


def test_no_stay_without_a_number_that_finds_it_again() -> None:
    for msg, told in (
        (ADMISSION.set("PV1-2", "N"), "class N"),
        (ADMISSION.set("PV1-19", None), "no visit number"),
        (parse(ADMISSION.raw.replace(b"V2026-0417^^^CH-SYLVE", b"V2026-0417^^^AILLEURS")), "no visit number"),
    ):
        result = mapped(msg)
        assert result.value.encounter is None and told in reasons(result)
    assert mapped("adt-a28-creation-provisoire").value.encounter is None


def test_the_movement_is_kept_for_those_who_follow_movements() -> None:
    movement = mapped("adt-z99-correction").value.movement
    assert movement is not None
    assert (movement.action, movement.original_trigger, movement.historic) == ("UPDATE", "A01", False)
    assert movement.units == (("4102", "Maternité"), ("4103", "Maternité soins"))
    assert movement.ids == ("M1^CH-SYLVE^990001234^N",)


def test_overseas_times_are_local_to_the_site() -> None:
    encounter = mapped(ADMISSION, replace(SITE, time_zone="Indian/Reunion")).value.encounter
    assert encounter is not None and encounter["period"] == {"start": "2026-03-02T08:15:00+04:00"}


# --- identity messages -------------------------------------------------------------------------------------------


def test_merges_and_changes_of_identifier_name_the_old_one() -> None:
    merge = mapped("adt-a40-fusion").value
    assert (merge.action, merge.prior_ids) == ("merge", (("urn:oid:2.25.4711", "000399"),))
    change = mapped("adt-a47-changement-ins").value
    assert (change.action, change.prior_ids) == ("change-ids", ((TEST_INS[0], "284056912345543"),))


def test_a_message_without_patient_is_refused_and_a08_is_noted() -> None:
    with pytest.raises(Refused) as caught:
        mapped(parse(ADMISSION.raw.split(b"PID|")[0]))
    assert caught.value.location == "PID^1"
    assert "A08 is outside" in reasons(mapped(ADMISSION.set("MSH-9.2", "A08")))


def test_a_latin_9_message_keeps_its_accents_and_its_ligature() -> None:
    result = mapped("adt-a01-latin9")
    assert [name["family"] for name in result.value.patient["name"]] == ["LECOCQ-MARAIS", "L'HŒUVRE"]
    assert "MSH-18" not in reasons(result)


def test_a_broken_message_still_maps_and_says_so() -> None:
    result = mapped("adt-a01-sans-nom")
    assert "birthDate" not in result.value.patient
    assert "'1984-05-23' is no date" in reasons(result)


def test_hostile_repetitions_are_bounded() -> None:
    raw = ADMISSION.raw.replace(b"PID|1||", b"PID|1||" + b"1^^^A^PI~" * 5_000)
    assert len(mapped(parse(raw)).value.patient["identifier"]) <= 200
    many = mapped(parse(ADMISSION.raw + b"ZZZ|1\r" * 50_000))
    assert len(many.losses) < 400


# --- times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "day", "moment"),
    [
        ("2026", "2026", "2026"),
        ("202603", "2026-03", "2026-03"),
        ("20260302", "2026-03-02", "2026-03-02"),
        ("2026030208", "2026-03-02", "2026-03-02T08:00:00+01:00"),
        ("202607020830", "2026-07-02", "2026-07-02T08:30:00+02:00"),
        ("20260302083011.5", "2026-03-02", "2026-03-02T08:30:11+01:00"),
        ("20260302083011-0500", "2026-03-02", "2026-03-02T08:30:11-05:00"),
        ("20260230", "", ""),
        ("2026030299", "2026-03-02", ""),
        ("demain", "", ""),
        ("", "", ""),
    ],
)
def test_hl7_times_as_fhir(text: str, day: str, moment: str) -> None:
    assert (date_of(text), datetime_of(text, "Europe/Paris")) == (day, moment)
