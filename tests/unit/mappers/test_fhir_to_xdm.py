"""METADATA.XML, the two reader's files and the letter, from one report."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from lxml import etree
from report_sources import SITE as EXAMPLE_SITE
from report_sources import obstetric

from mappers import fhir_to_cda, fhir_to_xdm
from mappers.fhir_to_report import Code, Org, PatientIdentity, Professional, Report
from mappers.french import VISIBILITY, VISIBILITY_OID
from mappers.identity import Site
from mssante import coherence, metadata
from mssante.letter import pdf_name, subject

DATA = Path(__file__).resolve().parents[2] / "data" / "mssante"
CDA = (DATA / "doc0001.xml").read_bytes()
PARIS = timezone(timedelta(hours=1))
SUBMISSION = "5c0f3a4e-8a1b-4f7e-9c2d-6d1f0b7a9e55"
SUBMITTED = datetime(2025, 1, 10, 14, 31, tzinfo=UTC)

EXPERT = Professional(
    rpps="01234567123", family="DUMAS", given="Olivier",
    specialty=Code("G15_10/SM26", "Médecin - Qualifié en Médecine Générale (SM)", "1.2.250.1.213.1.1.4.5"),
    org=Org("CH Expert & Fils", "750803447"), suffix="DR",
)  # fmt: skip
PATIENT = PatientIdentity(
    reference="Patient/1", birth_family="PAT-TROIS", birth_given="DOMINIQUE", birth_givens="DOMINIQUE MARIE-LOUISE",
    gender="female", birth_date=date(1979, 3, 28), birth_cog="51215", ins=("279035121518989", "1.2.250.1.213.1.4.10"),
    local_ids=(("IPP0001", "2.25.222222222222222222222222222222222222", ("", "", ""), "PI"),),
)  # fmt: skip
REPORT = Report(
    id=str(UUID(int=31415926535897932384626433832795028841)), set_id=str(UUID(int=2)), version=1,
    title="Compte rendu de téléexpertise", patient=PATIENT,
    requester=replace(EXPERT, rpps="01234567897", family="VACQUIER", given="Bernard"), expert=EXPERT,
    request_id="SR-1", accession="ACC1", requested_at=datetime(2025, 1, 9, 9, tzinfo=PARIS),
    started_at=datetime(2025, 1, 10, 15, tzinfo=PARIS), ended_at=datetime(2025, 1, 10, 15, 20, tzinfo=PARIS),
    signed_at=datetime(2025, 1, 10, 15, 30, tzinfo=PARIS), consent="", reason="", exchange=(), conclusion="",
)  # fmt: skip
SITE = Site(
    key="expert", name="CH Expert & Fils", finess_eg="750803447", finess_ej="750000001", mode="test",
    application="PASSERELLE", facility="EXPERT", sending_applications=(), ae_titles=(), ae_namespaces=(), mailboxes=(),
    namespaces=(),
)  # fmt: skip


def written(report: Report = REPORT, cda: bytes = CDA) -> bytes:
    return fhir_to_xdm.metadata(report, SITE, cda=cda, submission_id=SUBMISSION, submitted_at=SUBMITTED)


def test_the_metadata_say_the_same_as_the_document() -> None:
    submission = metadata.read(written())
    assert coherence.incoherences(submission.entries[0], CDA) == ()


def test_the_metadata_are_those_of_the_golden_file() -> None:
    assert written() == (DATA / "metadata.golden.xml").read_bytes()


def test_two_writings_of_one_submission_are_the_same_bytes_and_of_two_submissions_are_not() -> None:
    other = fhir_to_xdm.metadata(REPORT, SITE, cda=CDA, submission_id=str(UUID(int=5)), submitted_at=SUBMITTED)
    assert written() == written()
    assert written() != other


@pytest.mark.needs("shared")
def test_the_metadata_are_valid_against_the_ebxml_schema(shared: Path) -> None:
    schema = etree.XMLSchema(etree.parse(shared / "ebrim-xsd" / "lcm.xsd"))
    long = replace(REPORT, expert=replace(EXPERT, family="D" * 300, org=Org("É" * 400, "750803447")))
    for report in (REPORT, replace(REPORT, patient=replace(PATIENT, ins=None, birth_cog="", used_family="X")), long):
        schema.assertValid(etree.fromstring(written(report)))
    schema.assertValid(etree.fromstring(replacing(SUBMISSION_BEFORE)))


SUBMISSION_BEFORE = str(UUID(int=7))


def replacing(submission: str) -> bytes:
    return fhir_to_xdm.metadata(
        REPORT, SITE, cda=CDA, submission_id=SUBMISSION, submitted_at=SUBMITTED, replaced_submission=submission
    )


def test_a_replacement_names_the_entry_of_the_submission_before() -> None:
    before = fhir_to_xdm.metadata(REPORT, SITE, cda=CDA, submission_id=SUBMISSION_BEFORE, submitted_at=SUBMITTED)
    old, new = (metadata.read(one).entries[0].id for one in (before, replacing(SUBMISSION_BEFORE)))
    links = [dict(one.attrib) for one in etree.fromstring(replacing(SUBMISSION_BEFORE)).iter("{*}Association")]
    assert len(links) == 2 and old != new
    assert (links[1]["sourceObject"], links[1]["targetObject"]) == (new, old)
    assert links[1]["associationType"] == "urn:ihe:iti:2007:AssociationType:RPLC"
    assert replacing("") == written()


def test_every_id_is_a_new_uuid_and_every_reference_points_inside_the_file() -> None:
    root = etree.fromstring(written())
    ids = [element.get("id") for element in root.iter(etree.Element) if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", str(found)) for found in ids)
    for name in ("classifiedObject", "registryObject", "sourceObject", "targetObject"):
        pointed = {element.get(name) for element in root.iter(etree.Element) if element.get(name)}
        assert pointed <= set(ids)


def test_the_submission_names_patient_source_author_and_times() -> None:
    submission = metadata.read(written())
    entry = submission.entries[0]
    assert submission.patient == metadata.PatientId("279035121518989", "1.2.250.1.213.1.4.10", "NH")
    assert submission.source_id == "1.2.250.1.71.4.2.2.1750803447"
    assert submission.unique_id == f"2.25.{UUID(SUBMISSION).int}"
    assert submission.time == "20250110143100"
    assert submission.content_type == metadata.CodedValue("SA01", "1.2.250.1.71.4.2.4", "Etablissement public de santé")
    assert entry.unique_id == "2.25.31415926535897932384626433832795028841"
    assert entry.slot("creationTime") == "20250110143000"
    assert entry.slot("serviceStartTime") == "20250110140000"
    assert entry.slot("sourcePatientId") == "IPP0001^^^&2.25.222222222222222222222222222222222222&ISO^PI"
    assert entry.slot("hash") == hashlib.sha1(CDA, usedforsecurity=False).hexdigest()
    assert entry.authors[0].person == "801234567123^DUMAS^Olivier^^^^^^&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS"
    assert entry.authors[0].institution == ("CH Expert \\T\\ Fils^^^^^&1.2.250.1.71.4.2.2&ISO^IDNST^^^1750803447")
    assert entry.code("typeCode") == metadata.CodedValue("85208-7", "2.16.840.1.113883.6.1", "CR de télémédecine")
    assert entry.code("classCode") == metadata.CodedValue("10", "1.2.250.1.213.1.1.4.1", "Compte rendu")
    held = entry.code("formatCode")
    assert held and (held.code, held.system) == ("urn:ihe:iti:xds-sd:pdf:2008", "1.3.6.1.4.1.19376.1.2.3")


def test_without_a_qualified_ins_the_patient_is_named_by_the_local_number() -> None:
    submission = metadata.read(written(replace(REPORT, patient=replace(PATIENT, ins=None))))
    assert submission.patient == metadata.PatientId("IPP0001", "2.25.222222222222222222222222222222222222", "PI")


def test_a_patient_with_no_identifier_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a qualified INS nor a local identifier"):
        written(replace(REPORT, patient=replace(PATIENT, ins=None, local_ids=())))


def test_a_document_type_without_class_is_refused() -> None:
    with pytest.raises(ValueError, match="99999-9"):
        written(replace(REPORT, type=Code("99999-9", "?", "2.16.840.1.113883.6.1")))


def test_names_cannot_add_a_component_an_element_or_a_line() -> None:
    hostile = replace(PATIENT, birth_family='O^B&C|D~E\\F"<x/>\r\nG', birth_given="\x00\x1f\ufffe\ud800z")
    read = metadata.read(written(replace(REPORT, patient=hostile))).entries[0].traits
    assert read.birth_family == 'O^B&C|D~E\\F"<x/> G'
    assert read.birth_given == "z"


@pytest.mark.parametrize(
    ("attribute", "changed"),
    [
        ("patientId", CDA.replace(b"279035121518989", b"179035121518989")),
        ("uniqueId", CDA.replace(b"2.25.3141", b"2.25.4141")),
        ("creationTime", CDA.replace(b"20250110153000+0100", b"20250110153000+0000")),
        ("title", CDA.replace(b"<title>Compte", b"<title>Conte")),
        ("typeCode", CDA.replace(b'code="85208-7"', b'code="11488-4"')),
        ("confidentialityCode", CDA.replace(b'code="N"', b'code="R"')),
        ("author", CDA.replace(b"Olivier", b"Olive")),
        ("authorInstitution", CDA.replace(b"1750803447", b"1750803448")),
        ("authorSpecialty", CDA.replace(b"SM26", b"SM20")),
        ("legalAuthenticator", CDA.replace(b"801234567123", b"801234567124")),
        ("serviceStartTime", CDA.replace(b'<low value="2025', b'<low value="2024')),
        ("serviceStopTime", CDA.replace(b'<high value="2025', b'<high value="2024')),
        ("healthcareFacilityTypeCode", CDA.replace(b"SA01", b"SA04")),
        ("practiceSettingCode", CDA.replace(b'"ETABLISSEMENT"', b'"AMBULATOIRE"')),
        ("eventCodeList", CDA.replace(b'"TE2"', b'"TE1"')),
        ("formatCode", CDA.replace(b"application/pdf", b"text/plain")),
        ("languageCode", CDA.replace(b'"fr-FR"', b'"en-US"')),
        ("sourcePatientInfo birth_family", CDA.replace(b">PAT-TROIS<", b">PAT-QUATRE<")),
        ("sourcePatientInfo birth_date", CDA.replace(b"19790328", b"19790329")),
        ("sourcePatientInfo sex", CDA.replace(b'Code code="F"', b'Code code="M"')),
        ("sourcePatientInfo birth_place", CDA.replace(b"51215", b"51216")),
    ],
)
def test_a_document_that_says_otherwise_is_never_packed(attribute: str, changed: bytes) -> None:
    assert changed != CDA
    with pytest.raises(fhir_to_xdm.Incoherent) as caught:
        fhir_to_xdm.files(REPORT, SITE, cda=changed, submission_id=SUBMISSION, submitted_at=SUBMITTED)
    assert attribute in {difference.attribute for difference in caught.value.differences}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {
            "version": 2,
            "replaces": str(UUID(int=9)),
            "confidentiality": Code("R", "Restreint", "2.16.840.1.113883.5.25"),
        },
        {"title": "Avis  sur\tl’échographie <& co>", "zone": "Indian/Reunion"},
    ],
)
def test_the_document_our_own_mapper_writes_is_packed(changed: dict[str, Any]) -> None:
    report = obstetric(**changed)
    cda = fhir_to_cda.cda(report, b"%PDF-1.4", EXAMPLE_SITE)
    made = fhir_to_xdm.files(report, EXAMPLE_SITE, cda=cda, submission_id=SUBMISSION, submitted_at=SUBMITTED)
    entry = metadata.read(made["METADATA.XML"]).entries[0]
    assert entry.patient and entry.patient.is_ins
    assert entry.slots["urn:ihe:iti:xds:2013:referenceIdList"] == fhir_to_xdm.references(report)


def test_who_may_not_see_the_document_follows_the_confidentiality_of_the_cda() -> None:
    who = tuple(Code(code, text, VISIBILITY_OID) for code, text in VISIBILITY.items())
    report = obstetric(visibility=who)
    cda = fhir_to_cda.cda(report, b"%PDF-1.4", EXAMPLE_SITE)
    assert cda.count(b"confidentialityCode") == 1 and b"MASQUE_PS" not in cda, "the CDA says N, R or V alone"
    made = fhir_to_xdm.files(report, EXAMPLE_SITE, cda=cda, submission_id=SUBMISSION, submitted_at=SUBMITTED)
    told = metadata.read(made["METADATA.XML"]).entries[0].codes["confidentialityCode"]
    assert [(one.code, one.system) for one in told] == [
        ("N", "2.16.840.1.113883.5.25"), *((one.code, VISIBILITY_OID) for one in who),
    ]  # fmt: skip
    ids = [one.get("id") for one in etree.fromstring(made["METADATA.XML"]).iter() if one.get("id")]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "changed",
    [
        {"ins": None},
        {"ins": None, "gender": "unknown", "birth_cog": ""},
        {"gender": "unknown"},
        {"used_family": "D’ÉTÉ"},
    ],
)
def test_every_kind_of_identity_is_packed(changed: dict[str, Any]) -> None:
    report = obstetric()
    report = replace(report, patient=replace(report.patient, **changed))
    cda = fhir_to_cda.cda(report, b"%PDF-1.4", EXAMPLE_SITE)
    fhir_to_xdm.files(report, EXAMPLE_SITE, cda=cda, submission_id=SUBMISSION, submitted_at=SUBMITTED)


def test_a_structure_without_finess_is_named_without_number() -> None:
    report = obstetric()
    report = replace(report, expert=replace(report.expert, org=replace(report.expert.org, finess="")))
    cda = fhir_to_cda.cda(report, b"%PDF-1.4", EXAMPLE_SITE)
    made = fhir_to_xdm.files(report, EXAMPLE_SITE, cda=cda, submission_id=SUBMISSION, submitted_at=SUBMITTED)
    assert metadata.read(made["METADATA.XML"]).authors[0].institution == report.expert.org.name
    assert b"()" not in made["INDEX.HTM"] + made["README.TXT"]


def test_the_request_the_order_and_the_studies_are_listed() -> None:
    report = replace(REPORT, request_oid="2.25.1", accession_oid="2.25.2", studies=("1.2.3",))
    assert fhir_to_xdm.references(report) == (
        "SR-1^^^&2.25.1&ISO^urn:ihe:iti:xds:2013:order",
        "ACC1^^^&2.25.2&ISO^urn:ihe:iti:xds:2013:accession",
        "1.2.3^^^^urn:ihe:iti:xds:2016:studyInstanceUID",
    )
    assert fhir_to_xdm.references(REPORT) == ()


def test_the_files_of_the_archive_are_texts_with_dos_line_ends() -> None:
    made = fhir_to_xdm.files(REPORT, SITE, cda=CDA, submission_id=SUBMISSION, submitted_at=SUBMITTED)
    assert set(made) == {"INDEX.HTM", "README.TXT", "DOC0001.XML", "METADATA.XML"}
    assert made["DOC0001.XML"] == CDA
    for name in ("INDEX.HTM", "README.TXT", "METADATA.XML"):
        assert made[name].count(b"\n") == made[name].count(b"\r\n") > 0
        made[name].decode("utf-8")


def test_the_index_names_the_sender_links_the_readme_and_escapes() -> None:
    page = etree.fromstring(fhir_to_xdm.index_htm(REPORT, SITE))
    text = "".join(map(str, page.itertext()))
    assert "CH Expert & Fils (1750803447)" in text
    assert [link.get("href") for link in page.iter("{http://www.w3.org/1999/xhtml}a")] == ["README.TXT"]
    assert "patient fictif" in text
    real = fhir_to_xdm.index_htm(replace(REPORT, test=False), replace(SITE, mode="production")).decode()
    assert "fictif" not in real and "secret professionnel" in real


def test_the_readme_names_sender_software_and_files() -> None:
    software = fhir_to_xdm.Application("Passerelle", "0.1.0", "Atelier")
    text = fhir_to_xdm.readme_txt(REPORT, SITE, application=software).decode()
    for expected in ("DR DUMAS Olivier", "1750803447", "Version : 0.1.0", "Éditeur : Atelier", "DOC0001.XML"):
        assert expected in text


def test_the_letter_gives_the_national_subject_and_pdf_name() -> None:
    letter = fhir_to_xdm.letter(REPORT, SITE)
    assert subject(letter) == "XDM/1.0/DDM+CR de télémédecine PAT-TROIS DOMINIQUE 28/03/1979"
    assert pdf_name(letter) == "20250110_CR de télémédecine_PAT-TROIS_DOMINIQUE.pdf"
    assert letter.qualified and letter.codes == ("85208-7",)
    assert "DR Olivier DUMAS" in letter.text and "patient fictif" in letter.text
    assert fhir_to_xdm.letter(replace(REPORT, replaces="x"), SITE).replaces


def test_the_day_of_the_act_is_that_of_the_report_s_own_zone() -> None:
    late = replace(REPORT, started_at=datetime(2025, 1, 10, 23, 30, tzinfo=UTC), zone="Indian/Reunion")
    assert fhir_to_xdm.letter(late, SITE).performed == date(2025, 1, 11)


def test_a_corsican_structure_still_gives_a_numeric_source() -> None:
    corsican = replace(SITE, finess_eg="2A0000014")
    assert re.fullmatch(r"2\.25\.\d+", fhir_to_xdm.source_id(corsican))
    assert fhir_to_xdm.source_id(replace(corsican, document_oid="1.2.250.1.999.1")) == "1.2.250.1.999.1"
