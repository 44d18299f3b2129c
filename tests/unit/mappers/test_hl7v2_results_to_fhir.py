"""Results and documents by HL7 v2 as FHIR: what each field becomes, and what a hostile sender cannot do."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from adt_samples import DATA, SITE, reasons, sample

from hl7v2.check import check, errors
from hl7v2.message import Message, parse
from mappers.hl7v2_codes_to_fhir import Built, number_of, range_of, system_of
from mappers.hl7v2_documents_to_fhir import document
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_results_to_fhir import OBSERVATION_STATUS, REPORT_STATUS, OrderResult, results
from mappers.hl7v2_types_to_fhir import Notes
from profiles.json_text import write
from profiles.validator import structure

LAB = sample("oru-r01-biologie")
MAIL = sample("mdm-t02-lps-recu")


def order(msg: Message = LAB) -> OrderResult:
    return results(msg, SITE).value.orders[0]


def first(msg: Message) -> dict[str, Any]:
    return order(msg).observations[0].resource


def valid(built: Built) -> list[Any]:
    return [finding for finding in structure.check(built.resource) if finding.severity == "error"]


# --- laboratory --------------------------------------------------------------------------------------------------


def test_a_laboratory_report_names_the_request_it_answers_and_its_own_number() -> None:
    found = order()
    assert found.requests == (("urn:oid:2.25.4720", "DEM-2026-77"),)
    assert found.fillers == (("urn:oid:2.25.4721", "LAB-4411"),)
    report = found.report.resource
    assert report["basedOn"][0]["identifier"]["value"] == "DEM-2026-77"
    assert (report["status"], report["issued"]) == ("final", "2026-03-02T09:55:00+01:00")
    assert report["effectiveDateTime"] == "2026-03-02T07:30:00+01:00"
    assert report["category"][0]["coding"][0]["code"] == "CH"
    assert report["resultsInterpreter"][0]["display"] == "Élodie SOUBIRAN"
    assert found.notes == ("Prélèvement à jeun.",)


def test_a_measured_value_keeps_its_digits_unit_limits_and_remarks() -> None:
    value = first(LAB)
    assert '"value":5.20' in write(value)
    assert value["valueQuantity"]["code"] == "mmol/L"
    assert value["valueQuantity"]["unit"] == "millimole par litre"
    assert value["referenceRange"][0]["text"] == "3.50-5.20"
    assert str(value["referenceRange"][0]["low"]["value"].lexeme) == "3.50"
    assert value["interpretation"][0]["coding"][0]["code"] == "N"
    assert [note["text"] for note in value["note"]] == ["Contrôlé deux fois.", "Voir bilan du 1er mars."]
    assert [who["type"] for who in value["performer"]] == ["Practitioner", "Organization"]
    assert value["effectiveDateTime"] == "2026-03-02T09:10:00+01:00"


def test_every_type_of_value_has_its_place() -> None:
    found = [built.resource for built in order().observations]
    kinds = [next((key for key in one if key.startswith("value")), "") for one in found]
    assert kinds == ["valueQuantity", "valueString", "valueQuantity", "valueRatio", "valueCodeableConcept",
                     "valueString", ""]  # fmt: skip
    assert found[2]["valueQuantity"]["comparator"] == "<"
    assert found[3]["valueRatio"]["denominator"]["value"] == 128
    assert found[5]["valueString"] == "Sérum lipémique.\nÀ recontrôler."
    assert found[6]["dataAbsentReason"]["coding"][0]["code"] == "not-performed"
    assert found[1]["effectiveDateTime"] == "2026-03-02T07:30:00+01:00"


def test_a_decimal_comma_is_never_guessed() -> None:
    result = results(LAB, SITE)
    assert result.value.orders[0].observations[1].resource["valueString"] == "1,7"
    assert "OBX[2]-5: the value is not of the type 'NM'" in reasons(result)


def test_the_enclosed_report_and_the_specimen_come_with_it() -> None:
    found = order()
    assert [(one.media_type, one.data) for one in found.documents] == [("application/pdf", b"%PDF-1.4 essai")]
    specimen = found.specimens[0].resource
    assert specimen["type"]["coding"][0]["display"] == "Sérum"
    assert specimen["collection"]["collectedDateTime"] == "2026-03-02T07:30:00+01:00"
    assert [one["value"] for one in specimen["identifier"]] == ["PREL-1", "PREL-9"]


@pytest.mark.parametrize("path", sorted(DATA.glob("oru-*.er7")), ids=lambda path: path.stem)
def test_every_result_is_valid_r4(path: Path) -> None:
    msg = parse(path.read_bytes())
    assert errors(check(msg)) == []
    for found in results(msg, SITE).value.orders:
        assert [valid(built) for built in (found.report, *found.observations, *found.specimens) if valid(built)] == []


# --- other reports, and the answer to a request ------------------------------------------------------------------


def test_a_report_of_nothing_but_text_is_its_conclusion() -> None:
    report = order(sample("oru-r01-cr-texte")).report.resource
    assert report["conclusion"].splitlines() == [
        "Échographie pelvienne.", "Utérus de taille normale.", "Conclusion : ", "pas d'anomalie & à revoir.",
    ]  # fmt: skip
    assert report["status"] == "preliminary"


def test_a_refused_request_says_why() -> None:
    found = order(sample("oru-r01-tlr-refus"))
    assert (found.decision, found.reason) == ("refused", "Appareil inadapté")
    accepted = order(sample("oru-r01-tlr-refus").set("ORC-1", "OK").set("ORC-16.2", None))
    assert (accepted.decision, accepted.reason) == ("accepted", "")
    assert order(LAB).decision == ""


@pytest.mark.parametrize("code", sorted(OBSERVATION_STATUS))
def test_every_result_status_is_a_fhir_status(code: str) -> None:
    made = order(LAB.set("OBX-11", code)).observations[0]
    assert made.resource["status"] in {OBSERVATION_STATUS[code], "preliminary"} and valid(made) == []


@pytest.mark.parametrize("code", [*sorted(REPORT_STATUS), "?"])
def test_every_report_status_is_a_fhir_status(code: str) -> None:
    made = order(LAB.set("OBR-25", code)).report
    assert made.resource["status"] == REPORT_STATUS.get(code, "unknown") and valid(made) == []


@pytest.mark.parametrize(
    ("kind", "value", "element"),
    [
        ("NM", "-0.50", "valueQuantity"), ("NM", "beaucoup", "valueString"), ("DT", "20260302", "valueDateTime"),
        ("TM", "0830", "valueTime"), ("TM", "9999", "valueString"), ("ST", "négatif", "valueString"),
        ("XX", "quoi", "valueString"), ("", "quoi", "valueString"), ("DT", "demain", "valueString"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_of_its_type_is_kept_as_text(kind: str, value: str, element: str) -> None:
    made = order(LAB.set("OBX-2", kind or None).set("OBX-5", value)).observations[0]
    assert element in made.resource and valid(made) == []


@pytest.mark.parametrize(
    ("text", "lexeme"),
    [("5.20", "5.20"), ("+7", "7"), ("007.0", "7.0"), (".5", "0.5"), ("-.5", "-0.5"), ("5.", "5"), ("", None),
     (".", None), ("1e5", None), ("1,7", None), ("NaN", None), ("٣", None), ("9" * 40, None), ("--1", None)],
)  # fmt: skip
def test_numbers_are_json_numbers_or_none(text: str, lexeme: str | None) -> None:
    number = number_of(text)
    assert (number.lexeme if number is not None else None) == lexeme


@pytest.mark.parametrize(
    ("text", "bounds"),
    [("3.5-5.2", {"low", "high"}), ("4.3 to 6.2", {"low", "high"}), ("<1.7", {"high"}), ("≥ 60", {"low"}),
     ("-2--1", {"low", "high"}), ("5-3", set()), ("négatif", set()), ("1-2-3", set())],
)  # fmt: skip
def test_limits_have_bounds_only_when_they_are_sure(text: str, bounds: set[str]) -> None:
    assert set(range_of(text, LAB.at("OBX-6"))) == bounds | {"text"}


def test_coding_systems_are_named_or_left_out_with_a_note() -> None:
    assert system_of("LN") == "http://loinc.org" and system_of("HL70078").endswith("/v2-0078")
    assert system_of("2.16.840.1.113883.6.1") == "urn:oid:2.16.840.1.113883.6.1"
    assert system_of("L") == "" and system_of("SNT") == "http://snomed.info/sct"
    result = results(LAB.set("OBX-3.3", "LOCAL"), SITE)
    assert "the coding system 'LOCAL' is unknown" in reasons(result)


# --- documents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trigger", "action", "status"),
    [("t02", "create", "current"), ("t10", "replace", "current"), ("t04", "delete", "entered-in-error")],
)
def test_a_document_received_by_mail_is_read_with_its_mail(trigger: str, action: str, status: str) -> None:
    msg = sample(f"mdm-{trigger}-lps-recu")
    assert errors(check(msg)) == []
    said = document(msg, SITE).value
    assert (said.action, said.reference.resource["status"]) == (action, status)
    assert said.document is not None and said.document.media_type == "text/xml"
    assert said.document.data.startswith(b"<ClinicalDocument")
    assert said.letter is not None and said.letter.text == "Bonjour, voici le compte rendu."
    assert (said.sender, said.reply_to) == (
        "elodie.soubiran@test-ci-sis.mssante.fr", "secretariat@test-ci-sis.mssante.fr",
    )  # fmt: skip
    assert said.requests == (("urn:oid:2.25.4720", "DEM-2026-80"),)
    assert said.flags == {"MASQUE_PS": False} and said.others == ()
    assert valid(said.reference) == []


def test_a_replacement_names_its_parent_and_must() -> None:
    msg = sample("mdm-t10-lps-recu")
    said = document(msg, SITE).value
    assert said.parent == ("urn:ietf:rfc:3986", "urn:oid:2.25.310001")
    assert said.reference.resource["relatesTo"][0]["target"]["identifier"]["value"] == "urn:oid:2.25.310001"
    with pytest.raises(Refused) as caught:
        document(msg.set("TXA-13", None), SITE)
    assert caught.value.location == "TXA^1^13"


@pytest.mark.parametrize(
    ("where", "value", "location"),
    [("ORC-1", "RO", "ORC^1^1"), ("OBX-11", "D", "OBX^1^11"), ("TXA-12", None, "TXA^1^12"),
     ("MSH-9.2", "T01", "MSH^1^9"), ("OBX-2", "NM", "OBX^1^5"), ("OBX-5.5", "£££", "OBX^1^5")],
)  # fmt: skip
def test_a_document_that_tells_two_things_or_nothing_is_refused(where: str, value: str | None, location: str) -> None:
    with pytest.raises(Refused) as caught:
        document(MAIL.set(where, value), SITE)
    assert caught.value.location == location


def test_a_document_typed_into_the_message_is_plain_text() -> None:
    raw = MAIL.raw.split(b"OBX|")[0].replace(b"1.1^CISIS_CDA_HL7_LPS", b"")
    said = document(
        parse(raw + "OBX|1|TX|A^B^LN||Première ligne~deux||||||F\rOBX|2|FT|A^B^LN||trois||||||F\r".encode()), SITE
    )
    assert said.value.document is not None and said.value.document.media_type == "text/plain"
    assert said.value.document.data.decode() == "Première ligne\ndeux\ntrois"


def test_a_plain_sender_may_contradict_itself_and_is_told() -> None:
    result = document(MAIL.set("MSH-21", None).set("ORC-1", "RE"), SITE)
    assert "T02 goes with NW, not with RE" in reasons(result)


def test_every_message_we_send_can_be_read_back() -> None:
    for path in sorted(DATA.glob("mdm-*.golden.hl7")) + sorted(DATA.glob("plain-mdm.golden.hl7")):
        said = document(parse(path.read_bytes()), SITE).value
        assert (
            said.document is not None
            and said.action == {"02": "create", "10": "replace", "04": "delete"}[parse(path.read_bytes()).trigger[1:]]
        )
    for name in ("oru-r01-push-2.1", "plain-oru"):
        found = results(parse((DATA / f"{name}.golden.hl7").read_bytes()), SITE).value.orders[0]
        assert len(found.documents) == 1 and found.requests and found.observations == ()


@pytest.mark.needs("shared")
def test_the_national_documents_are_read(shared: Path) -> None:
    said = document(parse((shared / "ans-hl7v2" / "mdm-t02-initial-base64.er7").read_bytes()), SITE).value
    assert said.document is not None
    assert said.document.data.startswith(b"<ClinicalDocument") and said.document.media_type == "text/xml"
    assert said.flags["DESTDMP"] and said.recipients == ("adam.hoda@test-ci-sis.mssante.fr",)
    lab = results(parse((shared / "ans-hl7v2" / "oru-r01-initial.hl7").read_bytes()), SITE)
    found = lab.value.orders[0]
    assert b"<ClinicalDocument" in found.documents[0].data[:2_000] and found.documents[0].media_type == "text/xml"
    assert found.requests == (("", "98765431"),) and lab.value.flags["ACK_LECTURE_MSS"]
    assert lab.value.patient.ins is not None


# --- hostile senders ---------------------------------------------------------------------------------------------


def test_results_without_patient_or_order_are_refused() -> None:
    for name in ("PID", "OBR"):
        lines = [line for line in LAB.raw.split(b"\r") if not line.startswith(name.encode())]
        with pytest.raises(Refused) as caught:
            results(parse(b"\r".join(lines)), SITE)
        assert caught.value.location == f"{name}^1"


def test_endless_results_are_refused() -> None:
    row = b"OBX|1|NM|1^a^LN||1||||||F\r"
    with pytest.raises(Refused, match="more than 5000"):
        results(parse(LAB.raw + row * 6_000), SITE)
    with pytest.raises(Refused, match="200 orders"):
        results(parse(LAB.raw + b"OBR|1|A\r" * 300), SITE)
    assert len(results(parse(LAB.raw + row * 1_000), SITE).value.orders[0].observations) > 1_000


def test_a_broken_document_is_told_and_the_rest_is_kept() -> None:
    raw = LAB.raw.replace(b"^Base64^" + base64.b64encode(b"%PDF-1.4 essai"), b"^Base64^%%%")
    result = results(parse(raw), SITE)
    assert result.value.orders[0].documents == () and len(result.value.orders[0].observations) == 7
    assert "cannot be decoded" in reasons(result)


def test_text_of_a_sender_never_becomes_structure() -> None:
    hostile = '"}],"x":<script>|^~\\&\x00'
    value = first(LAB.set("OBX-2", "ST").set("OBX-5", hostile.replace("\x00", "")))
    assert value["valueString"].startswith('"}],"x":<script>|^~\\&')
    assert Notes().losses == []
