"""The CDA document: byte for byte, by schema, by the national rules, and by our own check of what those miss."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lxml.isoschematron
import pytest
from lxml import etree
from report_sources import SITE, obstetric

from mappers.cda_to_fhir import patient_ids
from mappers.fhir_to_cda import CDA, cda, check_header
from mappers.fhir_to_identity import NO_CODE, Org, Professional
from mappers.fhir_to_pdf import pdf
from mappers.fhir_to_report import Report, oid_of
from mssante.xml_text import XmlRefused

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "cda" / "tlm_cr_obstetric_ultrasound.xml"
BODY = b"%PDF-1.4 <pdfaid:part>1</pdfaid:part><pdfaid:conformance>B</pdfaid:conformance>"
H = {"h": CDA}
HOSTILE = "\x00\x0b\ud800</title><evil/> & ]]> \u202e \ufffe\uffff 'é' \"œ\""


SURGERY = Org("Cabinet du bourg", "")
BY_NAME = Professional("", "PETIT", "Jean", NO_CODE, Org("", ""), suffix="DR")
"""All that may be known of a declared médecin traitant."""


def variants() -> dict[str, Report]:
    made = obstetric()
    return {
        "ordinary": made,
        "no INS": replace(made, patient=replace(made.patient, ins=None, birth_cog="", birth_city="")),
        "no local id": replace(made, patient=replace(made.patient, local_ids=(), used_family="", used_given="")),
        "sex unknown": replace(made, patient=replace(made.patient, gender="unknown")),
        "INS mailbox": replace(made, patient=replace(made.patient, mailbox="279035121518989@patient.mssante.fr")),
        "replacing": replace(made, version=2, replaces="11111111-2222-4333-8444-555555555555"),
        "restricted": replace(made, confidentiality=replace(made.confidentiality, code="R", display="Restreint")),
        "bare requester": replace(
            made, requester=replace(made.requester, mailbox="", prefix="", org=replace(
                made.requester.org, finess="", address="", telecom="")),
        ),
        "médecin traitant": replace(made, attending=(made.expert, replace(made.requester, mailbox=""))),
        "médecin traitant known by name": replace(made, attending=(BY_NAME, replace(BY_NAME, given="", org=SURGERY))),
        "requester of an older document": replace(
            made, requester=replace(made.requester, specialty=NO_CODE)),
        "no accession": replace(made, accession="", accession_oid=""),
        "request by name": replace(made, request_id="SR-2025-0001"),
        "overseas": replace(made, zone="America/Guadeloupe"),
        "hostile": replace(
            made, title=HOSTILE, patient=replace(made.patient, birth_family=HOSTILE, birth_given=HOSTILE),
            expert=replace(made.expert, org=replace(made.expert.org, name=HOSTILE, address=HOSTILE)),
        ),
    }  # fmt: skip


def parsed(document: bytes) -> Any:
    return etree.fromstring(document, etree.XMLParser(huge_tree=True, resolve_entities=False))


def at(document: bytes, path: str) -> list[str]:
    return [str(found) for found in parsed(document).xpath(path, namespaces=H)]


def test_the_document_is_byte_for_byte_the_reviewed_one() -> None:
    assert cda(obstetric(), BODY, SITE) == GOLDEN.read_bytes()
    assert cda(obstetric(), BODY, SITE) == cda(obstetric(), BODY, SITE)


def test_the_pdf_is_carried_as_it_is() -> None:
    made = pdf(obstetric())
    text = parsed(cda(obstetric(), made)).find(f".//{{{CDA}}}nonXMLBody/{{{CDA}}}text")
    assert base64.b64decode(text.text, validate=True) == made
    assert dict(text.attrib) == {"mediaType": "application/pdf", "representation": "B64"}


@pytest.mark.parametrize("name", variants())
def test_our_own_check_finds_nothing_in_our_documents(name: str) -> None:
    report = variants()[name]
    assert check_header(cda(report, pdf(report), SITE), report) == []


@pytest.mark.needs("shared")
@pytest.mark.parametrize("name", variants())
def test_every_variant_is_valid_against_the_national_schema(shared: Path, schema: Any, name: str) -> None:
    document = parsed(cda(variants()[name], BODY, SITE))
    assert schema.validate(document), schema.error_log


@pytest.fixture(scope="module")
def schema(shared: Path) -> Any:
    file = shared / "ans-cda" / "infrastructure" / "cda" / "CDA_extended.xsd"
    return etree.XMLSchema(etree.parse(file, etree.XMLParser(huge_tree=True)))


@pytest.mark.parametrize(
    ("zone", "winter", "summer"),
    [
        ("Europe/Paris", "20250110152900+0100", "20250710162900+0200"),
        ("Indian/Reunion", "20250110182900+0400", "20250710182900+0400"),
        ("America/Guadeloupe", "20250110102900-0400", "20250710102900-0400"),
    ],
)
def test_instants_are_on_the_wall_clock_of_the_site(zone: str, winter: str, summer: str) -> None:
    for month, expected in ((1, winter), (7, summer)):
        signed = datetime(2025, month, 10, 14, 29, tzinfo=UTC)
        document = cda(obstetric(zone=zone, signed_at=signed), BODY)
        assert at(document, "/h:ClinicalDocument/h:effectiveTime/@value") == [expected]
        assert at(document, "//h:legalAuthenticator/h:time/@value") == [expected]


def test_the_request_and_the_accession_number_are_the_orders_fulfilled() -> None:
    orders = "//h:inFulfillmentOf/h:order/h:id/concat(@root, ' ', @extension)"
    roots, extensions = orders.replace("concat(@root, ' ', @extension)", "@root"), orders.split("/concat")[0]
    document = cda(obstetric(), BODY)
    assert at(document, roots) == [oid_of("7c1e2f4a-3b5d-4c6e-8f70-91a2b3c4d5e6"), obstetric().accession_oid]
    assert at(document, f"{extensions}/@extension") == ["TLX2501100001"]
    named = cda(variants()["request by name"], BODY)
    assert at(named, f"{extensions}/@extension") == ["SR-2025-0001", "TLX2501100001"]
    assert at(named, roots)[0] == "2.25.310000000000000000000000000000000009"


def test_a_replacing_document_names_the_one_it_replaces() -> None:
    document = cda(variants()["replacing"], BODY)
    assert at(document, "//h:relatedDocument/@typeCode") == ["RPLC"]
    assert at(document, "//h:parentDocument/h:id/@root") == [oid_of("11111111-2222-4333-8444-555555555555")]
    assert at(document, "//h:parentDocument/h:versionNumber/@value") == ["1"]
    assert at(document, "/h:ClinicalDocument/h:setId/@root") == [oid_of(obstetric().set_id)]


def test_who_asked_and_the_declared_doctors_are_participants() -> None:
    doctor = obstetric().expert
    document = cda(variants()["médecin traitant"], BODY)
    entity = "//h:participant[@typeCode='{}']/h:associatedEntity[@classCode='PROV']"
    assert at(document, "//h:participant/@typeCode") == ["REF", "INF", "INF"]
    assert at(document, "//h:participant/h:functionCode/@code") == ["PCP", "PCP"]
    assert at(document, f"{entity.format('REF')}/h:code/@code") == [obstetric().requester.specialty.code]
    assert at(document, f"{entity.format('INF')}/h:id/@extension")[0] == f"8{doctor.rpps}"
    assert at(document, f"{entity.format('INF')}[1]/h:associatedPerson//h:family/text()")[0] == doctor.family
    assert at(document, f"{entity.format('INF')}[1]/h:scopingOrganization/h:name/text()")[0] == doctor.org.name
    assert at(cda(variants()["requester of an older document"], BODY), f"{entity.format('REF')}/h:code/@code") == []


def test_a_declared_doctor_without_a_national_number_is_named_without_an_id() -> None:
    document = cda(variants()["médecin traitant known by name"], BODY)
    entities = "//h:participant[@typeCode='INF']/h:associatedEntity[@classCode='PROV']"
    assert at(document, f"{entities}//h:name/h:family/text()") == ["PETIT", "PETIT"]
    assert at(document, f"{entities}[h:id or h:code]") == []
    assert at(document, f"{entities}/h:scopingOrganization/h:name/text()") == [SURGERY.name]
    assert check_header(document, variants()["médecin traitant known by name"]) == []


def test_the_site_completes_the_custodian_only_when_it_is_that_structure() -> None:
    bare = obstetric()
    bare = replace(bare, expert=replace(bare.expert, org=replace(bare.expert.org, address="", telecom="")))
    custodian = "//h:custodian//h:telecom/@value"
    assert at(cda(bare, BODY, SITE), custodian) == ["tel:0399002025"]
    assert at(cda(bare, BODY, replace(SITE, finess_eg="510999017")), custodian) == []
    assert at(cda(bare, BODY), custodian) == []


def test_the_patient_is_found_again_by_the_identifiers_written() -> None:
    assert patient_ids(cda(obstetric(), BODY)) == (
        ("279035121518989", "1.2.250.1.213.1.4.10"),
        ("IPP0001234", "2.25.310000000000000000000000000000000002"),
    )
    nobody = obstetric()
    nobody = replace(nobody, patient=replace(nobody.patient, ins=None, local_ids=()))
    assert patient_ids(cda(nobody, BODY)) == ()
    assert "identify the patient: INS or IPP" in [found.diagnostics for found in check_header(cda(nobody, BODY))]


XXE = (
    b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><ClinicalDocument xmlns="urn:hl7-org:v3">'
    b"&x;</ClinicalDocument>"
)


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"<a>", b"<a/>", XXE, b"\xff\xfe<", "<ClinicalDocument/>".encode("utf-16")]
)
def test_what_is_no_cda_is_refused_not_read(data: bytes) -> None:
    with pytest.raises(XmlRefused):
        patient_ids(data)
    assert [found.severity for found in check_header(data)] == ["fatal"]


# --- what validators miss: each fault, put into a right document, is found -------------------------------------------


def _drop(path: str) -> Callable[[Any], None]:
    def change(root: Any) -> None:
        for node in root.xpath(path, namespaces=H):
            node.getparent().remove(node)

    return change


def _set(path: str, **attributes: str) -> Callable[[Any], None]:
    def change(root: Any) -> None:
        for node in root.xpath(path, namespaces=H):
            node.attrib.update(attributes)

    return change


def _write(path: str, text: str) -> Callable[[Any], None]:
    def change(root: Any) -> None:
        for node in root.xpath(path, namespaces=H):
            node.text = text

    return change


ROLE, BODY_TEXT = "//h:recordTarget/h:patientRole", "//h:nonXMLBody/h:text"
AUTHOR, EVENT = "//h:author/h:assignedAuthor", "//h:documentationOf/h:serviceEvent"
FAULTS: list[tuple[Callable[[Any], None], str]] = [
    (_set("h:realmCode", code="US"), "realmCode"),
    (_drop("h:typeId"), "typeId"),
    (_drop("h:templateId[2]"), "three templateIds"),
    (_set("h:id", root="not-an-oid"), "root is an OID"),
    (_set("h:id", root="1.02.3"), "root is an OID"),
    (_set("h:code", code="11488-4"), "85208-7"),
    (_drop("h:title"), "title"),
    (_write("h:title", "  "), "title"),
    (_set("h:effectiveTime", value="20250110152900"), "UTC offset"),
    (_set("h:effectiveTime", value="202501101529+0100"), "UTC offset"),
    (_set("h:confidentialityCode", code="X"), "confidentialityCode"),
    (_set("h:languageCode", code="fr"), "languageCode"),
    (_drop("h:setId"), "setId"),
    (_set("h:versionNumber", value="0"), "versionNumber"),
    (_set("h:versionNumber", value="2"), "relatedDocument"),
    (_drop("h:recordTarget"), "recordTarget"),
    (_drop(f"{ROLE}/h:id"), "identify the patient"),
    (_drop(f"{ROLE}//h:family[@qualifier='BR']"), "birth name"),
    (_drop(f"{ROLE}//h:given[@qualifier='BR']"), "first birth given name"),
    (_drop(f"{ROLE}//h:given[not(@qualifier)]"), "all birth given names"),
    (_set(f"{ROLE}//h:administrativeGenderCode", code="U"), "the sex"),
    (_drop(f"{ROLE}//h:birthTime"), "birth date"),
    (_drop(f"{ROLE}//h:county"), "birth place"),
    (_set(f"{ROLE}/h:id[1]", extension="279035121518900"), "its key"),
    (_drop("h:author"), "name the author"),
    (_set("h:author/h:time", value="20250110"), "author/time"),
    (_set(f"{AUTHOR}/h:id", root="1.2.3"), "author's national id"),
    (_drop(f"{AUTHOR}/h:code"), "author's profession"),
    (_drop(f"{AUTHOR}/h:addr"), "addr and telecom"),
    (_drop(f"{AUTHOR}/h:telecom"), "addr and telecom"),
    (_drop(f"{AUTHOR}/h:representedOrganization"), "author's structure"),
    (_set("h:custodian//h:id", root="1.2.3"), "custodian"),
    (_drop("h:informationRecipient"), "informationRecipient"),
    (_drop("h:informationRecipient//h:name"), "name of the addressee"),
    (_drop("h:informationRecipient/h:intendedRecipient/h:id"), "addressee's national id"),
    (_drop("h:legalAuthenticator"), "legalAuthenticator"),
    (_set("h:legalAuthenticator/h:signatureCode", code="X"), "signatureCode"),
    (_drop("h:inFulfillmentOf"), "inFulfillmentOf"),
    (_drop("h:documentationOf"), "documentationOf"),
    (_drop(f"{EVENT}/h:code"), "NGAP letter"),
    (_drop(f"{EVENT}/h:effectiveTime"), "start of the act"),
    (_set(f"{EVENT}/h:effectiveTime/h:high", value="20250110145959+0100"), "ends before it starts"),
    (_drop(f"{EVENT}/h:performer"), "one performer"),
    (_drop(f"{EVENT}//h:standardIndustryClassCode"), "practice setting"),
    (_drop("h:componentOf"), "encompassingEncounter"),
    (_drop("h:componentOf//h:encompassingEncounter/h:code"), "kind of encounter"),
    (_drop("h:componentOf//h:effectiveTime"), "time of the encounter"),
    (_drop("h:componentOf//h:location"), "type of facility"),
    (_drop("h:component"), "nonXMLBody"),
    (_set(BODY_TEXT, mediaType="application/msword"), "mediaType application/pdf"),
    (_set(BODY_TEXT, representation="TXT"), "representation B64"),
    (_write(BODY_TEXT, "é"), "no base64"),
    (_write(BODY_TEXT, "AAAA"), "no PDF"),
    (_write(BODY_TEXT, base64.b64encode(b"%PDF-1.7 ordinary").decode()), "PDF/A-1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), FAULTS, ids=[f"{n}-{said}" for n, (_, said) in enumerate(FAULTS)])
def test_a_fault_put_into_a_right_document_is_found(change: Callable[[Any], None], said: str) -> None:
    root = parsed(GOLDEN.read_bytes())
    change(root)
    findings = check_header(etree.tostring(root))
    assert any(said in found.diagnostics for found in findings), findings
    assert all(found.expression for found in findings)


@pytest.mark.parametrize(
    "other",
    [
        {"id": "99999999-2222-4333-8444-555555555555"},
        {"version": 3},
        {"title": "Autre titre"},
        {"signed_at": datetime(2025, 1, 11, tzinfo=UTC)},
        {"requester": replace(obstetric().requester, rpps="99900000037")},
        {"expert": replace(obstetric().expert, rpps="99900000037")},
        {"patient": replace(obstetric().patient, ins=("180013701234567", "1.2.250.1.213.1.4.8"))},
        {"patient": replace(obstetric().patient, ins=None)},
        {"patient": replace(obstetric().patient, birth_family="AUTRE")},
        {"replaces": "11111111-2222-4333-8444-555555555555"},
    ],
    ids=str,
)
def test_a_document_of_another_report_is_found_out(other: dict[str, Any]) -> None:
    assert check_header(GOLDEN.read_bytes(), obstetric()) == []
    assert check_header(GOLDEN.read_bytes(), obstetric(**other))


@pytest.mark.needs("shared")
def test_the_check_names_what_the_national_sample_leaves_out(shared: Path) -> None:
    sample = (shared / "ans-cda" / "ExemplesCDA" / "TLM-CR_2022.01.xml").read_bytes()
    said = [found.diagnostics for found in check_header(sample)]
    assert len(said) <= 3, said
    assert patient_ids(sample)[0] == ("279035121518989", "1.2.250.1.213.1.4.10")


# --- the national schematrons ----------------------------------------------------------------------------------------

SKELETON = Path(lxml.isoschematron.__file__).parent / "resources" / "xsl" / "iso-schematron-xslt1"


class Rules:
    """ANS schematrons made runnable in a folder of their own, beside a link to their value sets.

    The ISO skeleton that lxml ships writes XSLT 1; the rules are XPath 2, so the result is declared version 2.0.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        from saxonche import PySaxonProcessor

        self.folder = folder
        (folder / "jeuxDeValeurs").symlink_to(source / "jeuxDeValeurs")
        shutil.copytree(source / "schematrons", folder / "schematrons")
        self._add_absent_vocabulary(source)
        self.saxon = PySaxonProcessor(license=False)
        self.xslt = self.saxon.new_xslt30_processor()

    def _add_absent_vocabulary(self, source: Path) -> None:
        """One rule of StrucMin reads a vocabulary file that its origin lacks: JDV_J07 in another spelling."""
        root = etree.Element("valueSets")
        concepts = etree.SubElement(etree.SubElement(root, "valueSet", id="1.2.250.1.213.1.1.5.471"), "conceptList")
        for concept in etree.parse(source / "jeuxDeValeurs" / "JDV_J07_XdsTypeCode_CISIS.xml").iter("{*}Concept"):
            held = {name: concept.get(name) for name in ("code", "codeSystem", "displayName")}
            etree.SubElement(concepts, "concept", level="0", type="L", **held)
        include = self.folder / "schematrons" / "profils" / "structurationMinimale" / "include"
        (include / "voc-1.2.250.1.213.1.1.5.471-DYNAMIC.xml").write_bytes(etree.tostring(root))

    def compiled(self, name: str) -> Any:
        schematron = self.folder / "schematrons" / name
        text = self._step("iso_dsdl_include.xsl", source_file=str(schematron)).replace('queryBinding="xslt2"', "")
        for step in ("iso_abstract_expand.xsl", "iso_svrl_for_xslt1.xsl"):
            text = self._step(step, xdm_node=self.saxon.parse_xml(xml_text=text))
        text = re.sub(r'(<xsl:stylesheet[^>]*version=")1\.0"', r'\g<1>2.0"', text, count=1)
        stylesheet = schematron.with_suffix(".xsl")
        stylesheet.write_text(text, encoding="utf-8")
        return self.xslt.compile_stylesheet(stylesheet_file=str(stylesheet))

    def _step(self, stylesheet: str, **source: Any) -> str:
        made = self.xslt.compile_stylesheet(stylesheet_file=str(SKELETON / stylesheet)).transform_to_string(**source)
        return str(made)

    def failures(self, compiled: Any, document: bytes) -> list[str]:
        file = self.folder / "document.xml"
        file.write_bytes(document)
        svrl = compiled.transform_to_string(source_file=str(file))
        assert "<svrl:active-pattern" in svrl, "the rules did not run"
        return [
            " ".join(text.split())
            for text in re.findall(r"<svrl:failed-assert.*?<svrl:text>(.*?)</svrl:text>", svrl, re.S)
        ]


@pytest.fixture(scope="module")
def rules(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rules]:
    yield Rules(shared / "ans-cda", tmp_path_factory.mktemp("schematrons"))


@pytest.mark.needs("shared")
@pytest.mark.parametrize(
    "name", ["CI-SIS_TLM-CR_2022.01.sch", "profils/CI-SIS_ModelesDeContenusCDA.sch", "profils/CI-SIS_Modeles_ANS.sch",
             "profils/IHE.sch"],
)  # fmt: skip
def test_the_national_rules_of_the_document_find_nothing(rules: Rules, name: str) -> None:
    compiled = rules.compiled(name)
    for variant, report in variants().items():
        assert rules.failures(compiled, cda(report, BODY, SITE)) == [], variant


@pytest.mark.needs("shared")
def test_the_national_rules_do_see_a_fault(rules: Rules) -> None:
    root = parsed(GOLDEN.read_bytes())
    _set(f"{EVENT}/h:code", code="ABC")(root)
    assert rules.failures(rules.compiled("CI-SIS_TLM-CR_2022.01.sch"), etree.tostring(root))


@pytest.mark.long
@pytest.mark.needs("shared")
@pytest.mark.timeout(300)
def test_the_national_rules_of_the_header_find_nothing_and_do_see_a_fault(rules: Rules) -> None:
    compiled = rules.compiled("profils/structurationMinimale/ASIP-STRUCT-MIN-StrucMin.sch")
    for variant, report in variants().items():
        assert rules.failures(compiled, cda(report, BODY, SITE)) == [], variant
    for path in ("h:title", "h:setId", f"{ROLE}//h:birthTime", "h:componentOf//h:location"):
        root = parsed(GOLDEN.read_bytes())
        _drop(path)(root)
        assert rules.failures(compiled, etree.tostring(root)), path
