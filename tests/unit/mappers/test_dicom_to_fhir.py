"""ImagingStudy from DICOM headers: a golden file, then one behaviour a test."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import header as headers
from dicom_node import sample
from dicom_node.archive import file_meta
from dicom_node.header import Code, Header, Identifier
from mappers.dicom_to_fhir import (
    accession,
    display_name,
    human_names,
    identity,
    imaging_study,
    moment,
    patient_ids,
    study_id,
    study_record,
)
from mappers.identity import Namespace, Site
from mappers.mapped import Loss

GOLDEN = Path(__file__).parents[2] / "data" / "dicom" / "imaging_study.json"
INS_TEST = Namespace(
    "INS test", "INS-NIR-TEST", ("ASIP-SANTE-INS-NIR", "1.2.250.1.213.1.4.10", "ISO"), "1.2.250.1.213.1.4.10",
    "urn:oid:1.2.250.1.213.1.4.10", "INS", "INS-TEST",
)  # fmt: skip
IPP = Namespace(
    "IPP", "PI", ("CHU", "1.2.250.1.999.1", "ISO"), "1.2.250.1.999.1", "https://chu.example/ipp", "PI", "CHU"
)
CLINIC = Namespace(
    "IPP2", "PI", ("CLIN", "1.2.250.1.999.2", "ISO"), "1.2.250.1.999.2", "https://clin.example/ipp", "PI"
)
ACSN = Namespace(
    "ACSN", "ACSN", ("RIS", "1.2.250.1.999.9", "ISO"), "1.2.250.1.999.9", "https://chu.example/acsn", "", "RIS"
)
SITE = Site(
    "chu", "CHU", "010000001", "010000002", "test", "PASSERELLE", "CHU", (), ("PASSERELLE",), (("ECHO7", "IPP"),), (),
    (INS_TEST, IPP, CLINIC, ACSN), document_oid="1.2.250.1.999",
)  # fmt: skip
US = "1.2.840.10008.5.1.4.1.1.6.1"


def header(**values: Any) -> Header:
    base = {
        "sop_class_uid": US, "sop_instance_uid": "1.2.3.1.1", "study_instance_uid": "1.2.3",
        "series_instance_uid": "1.2.3.1", "modality": "US", "study_date": "20260302", "study_time": "0930",
        "patient_id": Identifier("8001"), "patient_name": "ÉLAN^Zoé",
    }  # fmt: skip
    return Header(**{**base, **values})


def study(*found: Header, **options: Any) -> tuple[dict[str, Any], tuple[Loss, ...]]:
    mapped = imaging_study(study_record(found or (header(),), SITE, "ECHO7"), site=SITE, **options)
    return mapped.value, mapped.losses


def test_the_clip_becomes_the_golden_study(tmp_path: Path) -> None:
    found = []
    for number in (2, 1):
        path = tmp_path / "clip.dcm"
        path.write_bytes(
            sample.clip(
                patient_id=Identifier("279035121518989", "", "1.2.250.1.213.1.4.10", "ISO"),
                patient_name="ÉLAN^Zoé",
                accession_number="TLX0000000000042",
                referrer="DURAND^Alix^^Dr",
                number=number,
            )
        )
        meta = file_meta(path)
        found.append(headers.read(path.read_bytes()[meta.offset :], meta.transfer_syntax_uid))
    made, losses = study(
        *found, subject="Patient/p1", based_on=("ServiceRequest/s1",), endpoints=("Endpoint/dicomweb",)
    )
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(made, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    assert made == json.loads(GOLDEN.read_text(encoding="utf-8")) and losses == ()


def test_the_golden_study_is_valid_r4() -> None:
    from fhir.resources.R4B.imagingstudy import ImagingStudy

    made = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert json.loads(ImagingStudy.model_validate(made).model_dump_json()) == made


def test_one_study_uid_has_one_logical_id() -> None:
    assert study_id("1.2.3") == study_id("1.2.3") != study_id("1.2.3.4")
    assert study()[0]["id"] == study_id("1.2.3")


def test_series_and_instances_are_sorted_by_number_and_counted() -> None:
    tenth = {"series_instance_uid": "9", "series_number": "10", "modality": "SR"}
    made, _ = study(
        header(**tenth, sop_instance_uid="9.1", instance_number="11"),
        header(**tenth, sop_instance_uid="9.2", instance_number="2"),
        header(series_instance_uid="5", series_number="9", sop_instance_uid="5.1"),
        header(**tenth, sop_instance_uid="9.2", instance_number="2"),
    )
    assert [series["uid"] for series in made["series"]] == ["5", "9"]
    assert [instance["uid"] for instance in made["series"][1]["instance"]] == ["9.2", "9.1"]
    assert (made["numberOfSeries"], made["numberOfInstances"]) == (2, 3)
    assert [m["code"] for m in made["modality"]] == ["SR", "US"]


@pytest.mark.parametrize(
    ("identifier", "calling", "expected"),
    [
        (Identifier("1", "", "1.2.250.1.213.1.4.10", "ISO"), "X", "urn:oid:1.2.250.1.213.1.4.10"),
        (Identifier("1", "", "1.2.250.1.999.1", ""), "X", "https://chu.example/ipp"),
        (Identifier("1", "CHU"), "X", "https://chu.example/ipp"),
        (Identifier("1", "CLIN"), "ECHO7", "https://clin.example/ipp"),
        (Identifier("1", "1.2.250.1.999.2"), "X", "https://clin.example/ipp"),
        (Identifier("1"), "ECHO7", "https://chu.example/ipp"),
        (Identifier("1", "", "1.2.3.4", "ISO"), "ECHO7", "urn:oid:1.2.3.4"),
        (Identifier(" 1 ", "CHU"), "X", "https://chu.example/ipp"),
    ],
)
def test_a_patient_id_takes_the_system_of_its_issuer(identifier: Identifier, calling: str, expected: str) -> None:
    assert patient_ids(header(patient_id=identifier), SITE, calling) == ((expected, "1"),)


@pytest.mark.parametrize(
    ("identifier", "calling", "reason"),
    [
        (Identifier("1"), "UNKNOWN", "no issuer"),
        (Identifier("1", "ELSEWHERE"), "ECHO7", "unknown"),
        (Identifier("1", "RIS"), "ECHO7", "unknown"),
        (Identifier("1", "", "not an oid", "DNS"), "ECHO7", "unknown"),
    ],
)
def test_a_doubtful_patient_id_is_never_given_a_system(identifier: Identifier, calling: str, reason: str) -> None:
    mapped = identity(header(patient_id=identifier), SITE, calling)
    assert mapped.value == () and reason in mapped.losses[0].reason


def test_a_production_site_refuses_test_identities() -> None:
    found = header(patient_id=Identifier("1", "INS-TEST"), other_patient_ids=(Identifier("2", "CHU"),))
    mapped = identity(found, replace(SITE, mode="production"), "ECHO7")
    assert mapped.value == (("https://chu.example/ipp", "2"),) and "test namespace" in mapped.losses[0].reason


@pytest.mark.parametrize("issuer", [Identifier("1", "INS-TEST"), Identifier("1", "", "1.2.250.1.213.1.4.10", "ISO")])
def test_a_production_site_keeps_no_test_identity_of_an_unmatched_study(issuer: Identifier) -> None:
    assert study_record((header(patient_id=issuer),), replace(SITE, mode="production"), "ECHO7").patient_ids == ()
    assert study_record((header(patient_id=issuer),), SITE, "ECHO7").patient_ids[0][0].startswith("urn:oid:")


def test_a_patient_id_of_nobody_we_know_is_kept_for_a_person_to_look_at() -> None:
    for site in (SITE, replace(SITE, mode="production")):
        found = study_record((header(patient_id=Identifier("1", "ELSEWHERE")),), site, "ECHO7")
        assert found.patient_ids == (("", "1"),)


def test_an_issuer_that_names_two_namespaces_is_ambiguous() -> None:
    twins = replace(SITE, namespaces=(IPP, replace(CLINIC, dicom_issuer="CHU")))
    assert "ambiguous" in identity(header(patient_id=Identifier("1", "CHU")), twins, "ECHO7").losses[0].reason


def test_other_patient_ids_need_their_own_issuer() -> None:
    found = header(other_patient_ids=(Identifier("2"), Identifier("3", "INS-TEST"), Identifier("8001", "CHU")))
    assert patient_ids(found, SITE, "ECHO7") == (
        ("https://chu.example/ipp", "8001"),
        ("urn:oid:1.2.250.1.213.1.4.10", "3"),
    )


def test_an_unmatched_study_keeps_identifier_and_name() -> None:
    made, _ = study()
    assert made["subject"] == {
        "display": "Zoé ÉLAN",
        "identifier": {"system": "https://chu.example/ipp", "value": "8001"},
    }
    unknown, _ = study(header(patient_id=Identifier("7", "ELSEWHERE"), patient_name=""))
    assert unknown["subject"] == {"display": "Patient non identifié", "identifier": {"value": "7"}}
    assert study(header(patient_id=Identifier(""), patient_name=""))[0]["subject"] == {
        "display": "Patient non identifié"
    }


def test_an_accession_number_takes_the_system_of_its_issuer() -> None:
    def system(identifier: Identifier) -> tuple[str | None, int]:
        made, losses = study(header(accession_number=identifier))
        (found,) = [i for i in made["identifier"] if i["value"] == "A1"]
        assert found["type"]["coding"][0]["code"] == "ACSN"
        return found.get("system"), len(losses)

    assert system(Identifier("A1")) == ("https://chu.example/acsn", 0)
    assert system(Identifier("A1", "RIS")) == ("https://chu.example/acsn", 0)
    assert system(Identifier("A1", "ELSEWHERE")) == (None, 1)
    assert system(Identifier("A1", "", "1.2.3", "ISO")) == ("urn:oid:1.2.3", 0)


def test_a_request_gives_the_accession_number_when_the_object_has_none() -> None:
    one = header(requested_accession_numbers=(Identifier("R1"), Identifier("R1")))
    assert accession(one) == Identifier("R1")
    assert accession(header(requested_accession_numbers=(Identifier("R1"), Identifier("R2")))) == Identifier("")
    assert (
        accession(header(accession_number=Identifier("A"), requested_accession_numbers=(Identifier("R"),))).value == "A"
    )


@pytest.mark.parametrize(
    ("date", "time", "offset", "zone", "expected"),
    [
        ("20260302", "093005", "", "Europe/Paris", "2026-03-02T09:30:05+01:00"),
        ("20260702", "093005.123456", "", "Europe/Paris", "2026-07-02T09:30:05.123456+02:00"),
        ("20260302", "09", "", "Indian/Reunion", "2026-03-02T09:00:00+04:00"),
        ("20260302", "0930", "", "America/Martinique", "2026-03-02T09:30:00-04:00"),
        ("20260302", "0930", "+0530", "Europe/Paris", "2026-03-02T09:30:00+05:30"),
        ("20260302", "0930", "-0330", "Europe/Paris", "2026-03-02T09:30:00-03:30"),
        ("20260302", "0930", "nonsense", "Europe/Paris", "2026-03-02T09:30:00+01:00"),
        ("2026.03.02", "09:30:05", "", "Europe/Paris", "2026-03-02T09:30:05+01:00"),
        ("20260302", "235960", "", "Europe/Paris", "2026-03-02T23:59:59+01:00"),
        ("18800302", "0930", "", "Europe/Paris", "1880-03-02T09:30:00+00:09"),
        ("20260302", "", "", "Europe/Paris", "2026-03-02"),
        ("", "0930", "", "Europe/Paris", ""),
    ],
)
def test_a_moment_takes_the_object_or_the_site_zone(
    date: str, time: str, offset: str, zone: str, expected: str
) -> None:
    losses: list[Loss] = []
    assert (moment(date, time, offset, zone, "x", losses), losses) == (expected, [])


@pytest.mark.parametrize(
    ("date", "time", "expected"),
    [
        ("20260230", "0930", ""),
        ("hier", "", ""),
        ("20260302", "2561", "2026-03-02"),
        ("20260302", "matin", "2026-03-02"),
    ],
)
def test_what_is_no_moment_is_dropped_and_noted(date: str, time: str, expected: str) -> None:
    losses: list[Loss] = []
    assert moment(date, time, "", "Europe/Paris", "x", losses) == expected and len(losses) == 1


def test_names_keep_their_groups() -> None:
    assert human_names("ÉLAN^Zoé^Marie^Dr^II ") == [
        {"family": "ÉLAN", "given": ["Zoé", "Marie"], "prefix": ["Dr"], "suffix": ["II"]}
    ]
    url = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
    assert human_names("Yamada^Tarou=山田^太郎=") == [
        {"extension": [{"url": url, "valueCode": "ABC"}], "family": "Yamada", "given": ["Tarou"]},
        {"extension": [{"url": url, "valueCode": "IDE"}], "family": "山田", "given": ["太郎"]},
    ]
    assert human_names("") == human_names("^^^^") == []
    assert (display_name("DURAND^Alix^^Dr"), display_name("SEUL"), display_name("")) == ("Dr Alix DURAND", "SEUL", "")


def test_codes_laterality_and_body_site_keep_their_systems() -> None:
    made, losses = study(
        header(
            laterality="L",
            anatomic_regions=(Code("80891009", "SCT", "Heart"),),
            procedure_codes=(Code("ECHO1", "99CHU", "Échographie"),),
            performing_physician_name="DURAND^Alix",
        )
    )
    (series,) = made["series"]
    assert series["bodySite"] == {"system": "http://snomed.info/sct", "code": "80891009", "display": "Heart"}
    assert series["laterality"]["code"] == "7771000"
    assert series["performer"] == [{"actor": {"display": "Alix DURAND"}}]
    assert made["procedureCode"] == [
        {"coding": [{"code": "ECHO1", "display": "Échographie"}], "text": "Échographie"},
    ]
    assert len(losses) == 1 and "99CHU" in losses[0].reason


def test_what_cannot_be_carried_is_noted_and_the_study_stands() -> None:
    made, losses = study(
        header(modality="", laterality="X", instance_number="-3", series_number="many", study_date="?")
    )
    assert made["series"][0]["modality"]["code"] == "OT" and "started" not in made
    assert {loss.reason.split(";")[0] for loss in losses} == {
        "the series has no modality",
        "laterality 'X' is no defined term",
        "'-3' is no unsigned number",
        "'many' is no unsigned number",
        "date '?' is no DICOM date",
    }


SENT_TEXT = (
    "study_date", "study_time", "patient_name", "series_number", "instance_number", "laterality",
    "timezone_offset_from_utc", "modality", "study_id",
)  # fmt: skip


@given(st.builds(Header, **{name: st.text(max_size=12) for name in SENT_TEXT}))
def test_any_header_becomes_a_study_without_empty_elements(found: Header) -> None:
    made, _ = study(found)

    def check(value: Any) -> None:
        assert value not in ("", [], {}, None)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    check({name: value for name, value in made.items() if name != "series"})


def test_the_mapper_opens_no_socket() -> None:
    code = "import sys, mappers.dicom_to_fhir; print('socket' in sys.modules, 'pydicom' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
