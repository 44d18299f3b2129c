"""The report as an MDM: two CI-SIS profiles, byte for byte, and what must never happen."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from report_sources import SITE, sources

from hl7v2.check import check
from hl7v2.frames import wrap
from hl7v2.message import Message, parse
from mappers.fhir_to_cda import cda
from mappers.fhir_to_hl7v2 import ACTIONS, METADATA, REPORT_STATUSES, Options, Visit, mdm, oru
from mappers.fhir_to_hl7v2_plain import plain
from mappers.fhir_to_report import Code, Report, oid_of, report
from mappers.french import VISIBILITY, VISIBILITY_OID
from mappers.identity import Mailbox
from mappers.mapped import Mapped

DATA = Path(__file__).resolve().parents[2] / "data" / "hl7v2"
CDA = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ClinicalDocument xmlns="urn:hl7-org:v3">échographie</ClinicalDocument>\n'
)
NOW = datetime(2025, 1, 10, 14, 30, 5, tzinfo=UTC)
REPORT: Report = report(sources()).value
SENDER = replace(SITE, mailboxes=(Mailbox("teleexpertise@ch-exemple.test.mssante.fr", "Téléexpertise"),))
VISIT = Visit("I", ("V77", ("CHEXEMPLE", "2.25.99", "ISO"), "VN"), ("D88", ("CHEXEMPLE", "2.25.98", "ISO"), "AN"),
              datetime(2025, 1, 9, 8, 0, tzinfo=UTC))  # fmt: skip


def build(value: Report = REPORT, **more: Any) -> Mapped[bytes]:
    arguments: dict[str, Any] = {
        "site": SENDER,
        "profile": "push-2.1",
        "control_id": "NB2HI4DTHIXS653XO4XA",
        "now": NOW,
        "receiving_application": "PFI",
        "receiving_facility": "CH EXEMPLE",
    }
    return mdm(value, CDA.encode(), **{**arguments, **more})


def message(value: Report = REPORT, **more: Any) -> Message:
    return parse(build(value, **more).value)


def names(msg: Message) -> list[str]:
    return [segment.name for segment in msg.segments]


def metadata(msg: Message) -> dict[str, str]:
    return {obx.text(3): obx.text(5) for obx in msg.all("OBX") if obx.text(3, 3) == "MetaDMPMSS"}


@pytest.mark.parametrize(("profile", "dmp"), [("push-2.1", True), ("lps-1.1", False)])
def test_the_message_is_the_expected_one_byte_for_byte(profile: str, dmp: bool) -> None:
    result = build(profile=profile, dmp=dmp)
    golden = (DATA / f"mdm-t02-{profile}.golden.hl7").read_bytes().replace(b"\n", b"\r")
    assert result.value == golden
    assert build(profile=profile, dmp=dmp).value == result.value
    wrap(result.value)


@pytest.mark.parametrize("profile", ["push-2.1", "lps-1.1"])
def test_our_own_check_finds_nothing_to_say(profile: str) -> None:
    assert check(message(profile=profile)) == []


def test_the_push_profile_has_its_segments_in_order() -> None:
    msg = message(dmp=True)
    assert names(msg) == ["MSH", "EVN", "PID", "PV1", "ORC", "OBR", "TXA", "OBX", "PRT", "PRT", *["OBX"] * 10]
    assert msg.at("MSH-21").encoded == "2.1^CISIS_CDA_HL7_V2"
    assert [prt.text(4) for prt in msg.all("PRT")] == ["SB", "REPLY"]
    assert [obx.text(1) for obx in msg.all("OBX")] == [str(number) for number in range(1, 12)]
    assert list(metadata(msg)) == [code for code, _ in METADATA]


def test_the_lps_profile_has_its_segments_in_order() -> None:
    msg = message(profile="lps-1.1")
    assert names(msg) == ["MSH", "EVN", "PID", "PV1", "ORC", "OBR", "TXA", "OBX", *["PRT"] * 3, *["OBX"] * 5]
    assert msg.at("MSH-21").encoded == "1.1^CISIS_CDA_HL7_LPS"
    assert msg.get("PV1-2") == "N"
    assert [(prt.text(4), prt.text(15, 4)) for prt in msg.all("PRT")] == [
        ("SB", "etienne.vasseur-kone@ch-exemple.test.mssante.fr"),
        ("RCT", "anouk.ferrandier@sage-femme.test.mssante.fr"),
        ("REPLY", "etienne.vasseur-kone@ch-exemple.test.mssante.fr"),
    ]
    letter = msg.all("OBX")[1]
    assert letter.text(3, 2) == "XDM/1.0/DDM+CR de télémédecine PAT-TROIS DOMINIQUE 28/03/1979"
    assert list(metadata(msg)) == ["MASQUE_PS", "INVISIBLE_PATIENT", "INVISIBLE_REP_LEGAUX", "MODIF_CONF_CODE"]


@pytest.mark.parametrize("profile", ["push-2.1", "lps-1.1"])
def test_the_header_says_who_what_and_in_which_mode(profile: str) -> None:
    msg = message(profile=profile)
    assert [msg.at(f"MSH-{n}").encoded for n in (3, 4, 5, 6, 7, 9, 10, 11, 12, 17, 18)] == [
        "PASSERELLE", "CH EXEMPLE", "PFI", "CH EXEMPLE", "20250110153005+0100", "MDM^T02^MDM_T02",
        "NB2HI4DTHIXS653XO4XA", "T", "2.6", "FRA", "UNICODE UTF-8",
    ]  # fmt: skip
    assert message(profile=profile, site=replace(SENDER, mode="production")).get("MSH-11") == "P"


@pytest.mark.parametrize("profile", ["push-2.1", "lps-1.1"])
def test_the_document_comes_back_unchanged(profile: str) -> None:
    msg = message(profile=profile)
    first = msg.all("OBX")[0]
    document = msg.encapsulated(first)
    assert (document.source, document.type, document.subtype, document.encoding) == ("", "text", "XML", "Base64")
    assert document.decode() == CDA.encode()
    assert first.field(3).encoded == msg.at("OBR-4").encoded == "85208-7^CR de télémédecine^LN"
    assert msg.get("TXA-2") == "85208-7"
    assert msg.get("TXA-12") == oid_of(REPORT.id)


def test_the_identifiers_are_those_of_the_cda_and_the_identity_is_qualified() -> None:
    msg = message()
    assert msg.at("PID-3").encoded == (
        "279035121518989^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
        "~IPP0001234^^^CHEXEMPLE&2.25.310000000000000000000000000000000002&ISO^PI"
    )
    assert msg.get("PID-32") == "VALI"
    assert msg.at("PID-5").encoded == ("PAT-TROIS^DOMINIQUE^DOMINIQUE MARIE-LOUISE^^^^L~LENŒUVILLE^DOMINIQUE^^^^^D")
    assert [msg.get(where) for where in ("PID-7", "PID-8", "PID-11.7", "PID-11.9")] == ["19790328", "F", "BDL", "51215"]


@pytest.mark.parametrize("qualified", [True, False])
def test_the_identifiers_are_read_back_from_the_cda_itself(qualified: bool) -> None:
    value = REPORT if qualified else replace(REPORT, patient=replace(REPORT.patient, ins=None))
    document = etree.fromstring(cda(value, b"%PDF-1.4", SENDER))
    ids = document.findall("{urn:hl7-org:v3}recordTarget/{urn:hl7-org:v3}patientRole/{urn:hl7-org:v3}id")
    sent = [(cx.part(4).part(2).text, cx.part(1).text) for cx in message(value).at("PID-3").repetitions()]
    assert sent == [(node.get("root"), node.get("extension")) for node in ids]
    assert message(value).get("TXA-12") == document.findall("{urn:hl7-org:v3}id")[0].get("root")


def test_without_a_qualified_ins_there_is_no_ins_and_no_dmp() -> None:
    value = replace(REPORT, patient=replace(REPORT.patient, ins=None))
    result = build(value, dmp=True)
    msg = parse(result.value)
    assert b"ASIP-SANTE-INS" not in result.value
    assert msg.get("PID-32") == "PROV"
    assert (metadata(msg)["DESTDMP"], metadata(msg)["ACK_RECEPTION"]) == ("N", "N")
    assert [loss.reason for loss in result.losses] == ["no qualified INS: N is sent"]


def test_nobody_is_mailed_by_the_platform_when_we_mail_ourselves() -> None:
    for dmp in (False, True):
        answers = metadata(message(dmp=dmp))
        assert (answers["DESTMSSANTEPS"], answers["DESTMSSANTEPAT"]) == ("N", "N")
        assert (answers["DESTDMP"], answers["ACK_RECEPTION"]) == (("Y", "Y") if dmp else ("N", "N"))
        assert "RCT" not in [prt.text(4) for prt in message(dmp=dmp).all("PRT")]


def test_a_platform_that_mails_gets_the_recipients() -> None:
    value = replace(REPORT, patient=replace(REPORT.patient, mailbox="279035121518989@patient.mssante.fr"))
    msg = message(value, options=Options(mail_professionals=True, mail_patient=True, acknowledge_reading=True))
    recipients = [(prt.text(5), prt.text(5, 13), prt.text(15, 4)) for prt in msg.all("PRT") if prt.text(4) == "RCT"]
    assert recipients == [
        ("899900000011", "IDNPS", "anouk.ferrandier@sage-femme.test.mssante.fr"),
        ("279035121518989", "INS", "279035121518989@patient.mssante.fr"),
    ]
    answers = metadata(msg)
    assert [answers[code] for code in ("DESTMSSANTEPS", "DESTMSSANTEPAT", "ACK_RECEPTION", "ACK_LECTURE_MSS")] == [
        "Y", "Y", "Y", "Y",
    ]  # fmt: skip


def hidden(*codes: str) -> Report:
    return replace(REPORT, visibility=tuple(Code(code, VISIBILITY[code], VISIBILITY_OID) for code in codes))


@pytest.mark.parametrize(
    ("code", "options"),
    [("INVISIBLE_PATIENT", Options(mail_patient=True)), ("MASQUE_PS", Options(mail_professionals=True))],
)
def test_contradicting_metadata_are_never_sent(code: str, options: Options) -> None:
    with pytest.raises(ValueError, match="cannot be mailed"):
        build(hidden(code), options=options)


@pytest.mark.parametrize("code", sorted(VISIBILITY))
def test_who_may_not_see_the_report_stands_in_its_own_metadata_of_every_profile(code: str) -> None:
    name = {"INVISIBLE_REPRESENTANTS_LEGAUX": "INVISIBLE_REP_LEGAUX"}.get(code, code)
    value = hidden(code)
    raws = [build(value, profile=profile).value for profile in ("push-2.1", "lps-1.1")]
    for raw in (*raws, result_message(value).value):
        msg = parse(raw)
        told = metadata(msg)
        seen = {one: told[one] for one in ("MASQUE_PS", "INVISIBLE_PATIENT", "INVISIBLE_REP_LEGAUX")}
        assert [one for one, answer in seen.items() if answer == "Y"] == [name]
        assert told["MODIF_CONF_CODE"] == "N" and check(msg) == []


def test_a_replacement_that_others_may_see_says_so() -> None:
    changed = Options(confidentiality_changed=True)
    for raw in (build(options=changed).value, build(profile="lps-1.1", options=changed).value,
                result_message(options=changed).value):  # fmt: skip
        assert metadata(parse(raw))["MODIF_CONF_CODE"] == "Y"


def test_a_plain_message_says_restricted_where_it_can_and_tells_what_it_cannot_say() -> None:
    value = replace(hidden("MASQUE_PS"), confidentiality=Code("V", "Très restreint", "2.16.840.1.113883.5.25"))
    mdm_, oru_ = plain_message(value, kind="MDM"), plain_message(value, kind="ORU")
    assert parse(mdm_.value).text("TXA-18") == "V"
    assert [one.source for one in mdm_.losses] == ["OBX-5", "Report.visibility MASQUE_PS"]
    assert [one.source for one in oru_.losses] == ["OBX-5", "Report.visibility MASQUE_PS", "Report.confidentiality"]


@pytest.mark.parametrize("profile", ["push-2.1", "lps-1.1"])
@pytest.mark.parametrize("trigger", ["T02", "T10", "T04"])
def test_trigger_order_control_and_result_status_tell_the_same_action(profile: str, trigger: str) -> None:
    value = replace(REPORT, replaces="3b241101-e2bb-4255-8caf-4136c566a962", version=2)
    msg = message(value, profile=profile, trigger=trigger)
    assert msg.at("MSH-9").encoded == f"MDM^{trigger}^MDM_T02"
    assert (msg.get("ORC-1"), msg.get("OBX-11")) == ACTIONS[trigger]
    assert bool(msg.get("TXA-13")) is (trigger == "T10")
    assert [obx.text(11) for obx in msg.all("OBX")[1:]] == ["F"] * (len(msg.all("OBX")) - 1)


def test_a_replacement_of_nothing_and_a_control_id_that_is_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="replaces"):
        build(replace(REPORT, replaces=""), trigger="T10")
    for wrong in ("", "X" * 21):
        with pytest.raises(ValueError, match="MSH-10"):
            build(control_id=wrong)


def test_a_known_stay_is_named_and_an_unknown_one_is_class_n() -> None:
    assert message().at("PV1-2").encoded == "N"
    msg = message(options=Options(visit=VISIT))
    assert [msg.at(where).encoded for where in ("PV1-2", "PV1-19", "PV1-44", "PID-18")] == [
        "I", "V77^^^CHEXEMPLE&2.25.99&ISO^VN", "20250109090000+0100", "D88^^^CHEXEMPLE&2.25.98&ISO^AN",
    ]  # fmt: skip


@pytest.mark.parametrize("profile", ["push-2.1", "lps-1.1"])
def test_every_coded_element_names_its_coding_system(profile: str) -> None:
    msg = message(profile=profile, dmp=profile == "push-2.1")
    coded = [obx.field(3) for obx in msg.all("OBX")] + [prt.field(4) for prt in msg.all("PRT")] + [msg.at("OBR-4")]
    coded += [obx.field(5) for obx in msg.all("OBX") if obx.text(2) == "CWE"]
    assert all(value.component(3).text for value in coded)


def test_a_latin_9_partner_gets_latin_9_and_losses_are_told() -> None:
    site = replace(SENDER, charset="8859/15", facility="CH D’EXEMPLE")
    result = build(site=site)
    msg = parse(result.value)
    assert msg.get("MSH-18") == "8859/15" and msg.charset.codec == "iso8859-15"
    assert msg.get("MSH-4") == "CH D'EXEMPLE"
    assert msg.get("PID-5[2]") == "LENŒUVILLE"
    assert ("MSH-4", "'’' is not in 8859/15 and was replaced") in [(loss.source, loss.reason) for loss in result.losses]
    assert msg.encapsulated(msg.all("OBX")[0]).decode() == CDA.encode()


def test_separators_and_line_ends_in_names_cannot_break_the_message() -> None:
    expert = replace(REPORT.expert, family="D|E^F&G~H\\I\rMSH|^~\\&|EVIL\x0b\x1c\r")
    msg = message(replace(REPORT, expert=expert))
    assert names(msg) == names(message())
    assert msg.get("PRT-5.2") == expert.family
    wrap(msg.raw)


def test_an_expert_without_mailbox_and_a_site_without_any_are_told() -> None:
    value = replace(REPORT, expert=replace(REPORT.expert, mailbox=""))
    assert message(value).get("PRT[2]-15.4") == "teleexpertise@ch-exemple.test.mssante.fr"
    result = build(value, profile="lps-1.1", site=SITE)
    assert [(loss.source, loss.reason) for loss in result.losses] == [("PRT-15", "no MSSanté mailbox is known")]
    assert [prt.text(4) for prt in parse(result.value).all("PRT")] == ["SB", "RCT"]


@pytest.mark.needs("shared")
def test_our_push_has_the_shape_of_the_national_sample(shared: Path) -> None:
    national = parse((shared / "ans-hl7v2" / "mdm-t02-initial-base64.er7").read_bytes())
    ours = message(dmp=True, options=Options(mail_professionals=True))
    assert [name for name in names(national) if name != "PRT"][:18] == [n for n in names(ours) if n != "PRT"]
    theirs = [obx.field(3).encoded for obx in national.all("OBX")[1:11]]
    assert [obx.field(3).encoded for obx in ours.all("OBX")[1:11]] == theirs
    for where in ("MSH-9", "MSH-12", "MSH-17", "MSH-18", "MSH-21", "ORC-1", "TXA-1", "TXA-3", "TXA-17", "OBX-2",
                  "OBX-5.2", "OBX-5.3", "OBX-5.4", "OBX-11", "OBX[2]-5.3", "PRT-2", "PRT-4.1", "PRT-4.3", "PID-8",
                  "PID-5[1].7", "PID-32"):  # fmt: skip
        assert ours.at(where).encoded == national.at(where).encoded, where


def test_the_base64_of_a_large_document_is_written_once() -> None:
    document = b"<x>" + b"A" * 5_000_000 + b"</x>"
    raw = mdm(
        REPORT, document, site=SENDER, profile="lps-1.1", control_id="BIG", now=NOW,
        receiving_application="DPI", receiving_facility="CH",
    ).value  # fmt: skip
    assert base64.b64encode(document) in raw


# --- replace and delete, byte for byte ---------------------------------------------------------------------------

SECOND = replace(REPORT, replaces="3b241101-e2bb-4255-8caf-4136c566a962", version=2)
PDF = b"%PDF-1.7\n\xe2\xe3 not a real one\n%%EOF\n"


def golden(name: str) -> bytes:
    return (DATA / f"{name}.golden.hl7").read_bytes().replace(b"\n", b"\r")


@pytest.mark.parametrize("profile", ["push-2.1", "lps-1.1"])
@pytest.mark.parametrize("trigger", ["T10", "T04"])
def test_a_replacement_and_a_deletion_are_the_expected_ones_byte_for_byte(profile: str, trigger: str) -> None:
    value = SECOND if trigger == "T10" else REPORT
    result = build(value, profile=profile, trigger=trigger)
    assert result.value == golden(f"mdm-{trigger.lower()}-{profile}")
    assert check(parse(result.value)) == []


@pytest.mark.parametrize("profile", ["push-2.1", "lps-1.1"])
def test_a_deletion_names_the_document_that_was_sent_and_a_replacement_its_parent(profile: str) -> None:
    created = message(REPORT, profile=profile).get("TXA-12")
    assert message(REPORT, profile=profile, trigger="T04").get("TXA-12") == created
    assert not message(SECOND, profile=profile, trigger="T04").get("TXA-13")
    replaced = message(SECOND, profile=profile, trigger="T10")
    assert replaced.get("TXA-13") == oid_of(SECOND.replaces) != replaced.get("TXA-12")


def test_the_mail_of_the_lps_profile_says_that_it_replaces_and_why() -> None:
    second = replace(SECOND, correction="erreur de mesure")
    for trigger, prefix in (("T02", ""), ("T10", "[Annule et remplace] "), ("T04", "")):
        told = message(second, profile="lps-1.1", trigger=trigger)
        mail = told.all("OBX")[1]
        assert mail.text(3, 2).startswith(f"{prefix}XDM/1.0/DDM+CR de télémédecine")
        body = told.encapsulated(mail).decode().decode()
        assert ("Motif de la correction : erreur de mesure" in body) is (trigger == "T10")


# --- ORU of the push profile -------------------------------------------------------------------------------------


def result_message(value: Report = REPORT, **more: Any) -> Mapped[bytes]:
    arguments: dict[str, Any] = {
        "site": SENDER, "control_id": "NB2HI4DTHIXS653XO4XA", "now": NOW,
        "receiving_application": "PFI", "receiving_facility": "CH EXEMPLE",
    }  # fmt: skip
    return oru(value, CDA.encode(), **{**arguments, **more})


def test_the_oru_is_the_expected_one_byte_for_byte() -> None:
    assert result_message(dmp=True).value == golden("oru-r01-push-2.1")
    assert check(parse(result_message(dmp=True).value)) == []


def test_the_oru_has_the_segments_and_types_of_version_2_5() -> None:
    msg = parse(result_message(dmp=True).value)
    assert names(msg) == ["MSH", "PID", "PV1", "ORC", "OBR", "OBX", "PRT", "PRT", *["OBX"] * 10]
    assert [msg.at(f"MSH-{n}").encoded for n in (9, 12, 21)] == ["ORU^R01^ORU_R01", "2.5", "2.1^CISIS_CDA_HL7_V2"]
    assert {obx.text(2) for obx in msg.all("OBX")[1:]} == {"CE"}
    assert [msg.get(f"OBX-5.{n}") for n in (2, 3, 4)] == ["TEXT", "XML", "Base64"]
    assert list(metadata(msg)) == [code for code, _ in METADATA]
    assert msg.encapsulated(msg.all("OBX")[0]).decode() == CDA.encode()


@pytest.mark.parametrize("trigger", ["T02", "T10", "T04"])
def test_the_oru_tells_the_action_in_orc_obr_and_obx(trigger: str) -> None:
    msg = parse(result_message(SECOND, trigger=trigger).value)
    assert (msg.get("ORC-1"), msg.get("OBX-11"), msg.get("OBR-25")) == (*ACTIONS[trigger], REPORT_STATUSES[trigger])
    assert msg.at("OBR-3").encoded == msg.at("ORC-3").encoded == oid_of(SECOND.set_id)
    assert msg.get("OBR-2") == REPORT.request_id


def test_mdm_and_oru_say_the_same_of_patient_stay_and_people() -> None:
    one = message(options=Options(visit=VISIT))
    two = parse(result_message(options=Options(visit=VISIT)).value)
    for name in ("PID", "PV1"):
        assert one.all(name)[0].raw == two.all(name)[0].raw
    assert [prt.raw for prt in one.all("PRT")] == [prt.raw for prt in two.all("PRT")]


def test_an_oru_that_cannot_be_right_is_refused() -> None:
    with pytest.raises(ValueError, match="replaces"):
        result_message(replace(REPORT, replaces=""), trigger="T10")
    with pytest.raises(ValueError, match="MSH-10"):
        result_message(control_id="X" * 21)
    with pytest.raises(ValueError, match="cannot be mailed"):
        result_message(hidden("MASQUE_PS"), options=Options(mail_professionals=True))


@pytest.mark.needs("shared")
def test_our_oru_has_the_shape_of_the_national_sample(shared: Path) -> None:
    national = parse((shared / "ans-hl7v2" / "oru-r01-initial.hl7").read_bytes())
    ours = parse(result_message(dmp=True).value)
    for where in ("MSH-9", "MSH-12", "MSH-17", "MSH-18", "MSH-21", "ORC-1", "OBR-25", "OBX-2", "OBX-5.2", "OBX-5.3",
                  "OBX-5.4", "OBX-11", "OBX[2]-2", "PRT-2", "PRT-4.1", "PRT-4.3", "PID-32"):  # fmt: skip
        assert ours.at(where).encoded == national.at(where).encoded, where
    theirs = [obx.field(3).encoded for obx in national.all("OBX")[1:11]]
    assert [obx.field(3).encoded for obx in ours.all("OBX")[1:11]] == theirs


# --- a plain message with the PDF --------------------------------------------------------------------------------


def plain_message(value: Report = REPORT, **more: Any) -> Mapped[bytes]:
    arguments: dict[str, Any] = {
        "site": SENDER, "kind": "MDM", "control_id": "NB2HI4DTHIXS653XO4XA", "now": NOW,
        "receiving_application": "DPI", "receiving_facility": "CH EXEMPLE",
    }  # fmt: skip
    return plain(value, PDF, **{**arguments, **more})


@pytest.mark.parametrize("kind", ["MDM", "ORU"])
def test_a_plain_message_is_the_expected_one_byte_for_byte(kind: str) -> None:
    result = plain_message(kind=kind)
    assert result.value == golden(f"plain-{kind.lower()}")
    assert [loss.source for loss in result.losses] == ["OBX-5"]
    assert check(parse(result.value)) == []


@pytest.mark.parametrize("kind", ["MDM", "ORU"])
def test_a_plain_message_carries_the_pdf_and_nothing_of_the_french_profiles(kind: str) -> None:
    msg = parse(plain_message(kind=kind).value)
    document = msg.encapsulated(msg.all("OBX")[0])
    assert (document.type, document.subtype, document.encoding) == ("application", "pdf", "Base64")
    assert document.decode() == PDF
    assert not msg.all("PRT") and not msg.at("MSH-21").valued and len(msg.all("OBX")) == 1
    old = parse(plain_message(kind=kind, media=("AP", "PDF"), version="2.3.1").value)
    assert (old.get("MSH-12"), old.get("OBX-5.2"), old.get("OBX-5.3")) == ("2.3.1", "AP", "PDF")
    assert msg.get("PV1-2") == "N"


@pytest.mark.parametrize("kind", ["MDM", "ORU"])
@pytest.mark.parametrize("trigger", ["T02", "T10", "T04"])
def test_a_plain_message_tells_one_action(kind: str, trigger: str) -> None:
    msg = parse(plain_message(SECOND, kind=kind, trigger=trigger).value)
    assert msg.get("OBX-11") == ACTIONS[trigger][1]
    if kind == "ORU":
        assert (msg.get("OBR-25"), msg.get("ORC-1")) == (REPORT_STATUSES[trigger], "RE")
    else:
        assert msg.trigger == trigger
        assert bool(msg.get("TXA-13")) is (trigger == "T10")
        assert msg.get("TXA-19") == ("CA" if trigger == "T04" else "AV")


def test_what_is_no_pdf_never_leaves_as_one() -> None:
    with pytest.raises(ValueError, match="no PDF"):
        plain(REPORT, CDA.encode(), site=SENDER, kind="MDM", control_id="A", now=NOW,
              receiving_application="D", receiving_facility="C")  # fmt: skip
    with pytest.raises(ValueError, match="replaces"):
        plain_message(replace(REPORT, replaces=""), trigger="T10")
    with pytest.raises(ValueError, match="MSH-10"):
        plain_message(control_id="")


def test_a_hostile_title_and_request_number_stay_in_their_fields() -> None:
    value = replace(REPORT, title="A|B\rPID|9\x1c\r", request_id="R^1~2&3")
    for kind in ("MDM", "ORU"):
        msg = parse(plain_message(value, kind=kind).value)
        assert len(msg.all("PID")) == 1
        assert (msg.at("TXA-14.1") if kind == "MDM" else msg.at("OBR-2.1")).text == "R^1~2&3"
        wrap(msg.raw)
