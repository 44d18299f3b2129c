"""What the report reads, from where, and what it refuses to go without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from report_sources import SITE, resources, sources

from mappers.fhir_to_identity import ins_key_holds
from mappers.fhir_to_report import Code, Incomplete, Org, Report, oid_of, report

Data = dict[str, Any]


def read(change: Callable[[Data], object] | None = None, **changes: Any) -> Report:
    data = resources()
    if change:
        change(data)
    return report(sources(data, **changes)).value


def losses(change: Callable[[Data], object] | None = None, **changes: Any) -> str:
    data = resources()
    if change:
        change(data)
    return "\n".join(f"{loss.source}: {loss.reason}" for loss in report(sources(data, **changes)).losses)


def test_the_people_are_read_from_the_french_profiles() -> None:
    value = read()
    assert value.patient.reference == "Patient/pat-trois"
    assert (value.patient.birth_family, value.patient.birth_given) == ("PAT-TROIS", "DOMINIQUE")
    assert value.patient.birth_givens == "DOMINIQUE MARIE-LOUISE"
    assert (value.patient.used_family, value.patient.birth_date) == ("LENŒUVILLE", date(1979, 3, 28))
    assert (value.patient.birth_cog, value.patient.birth_city) == ("51215", "DOMPREMY")
    assert value.patient.ins == ("279035121518989", "1.2.250.1.213.1.4.10")
    assert value.patient.local_ids[0][0] == "IPP0001234"
    assert value.patient.local_ids[0][2][0] == "CHEXEMPLE"
    assert (value.requester.rpps, value.expert.rpps) == ("99900000011", "99900000029")
    assert value.requester.specialty == Code("G15_50", "Sage-femme", "1.2.250.1.213.1.1.4.5")
    assert value.expert.specialty.code == "G15_10/SM20"
    assert value.expert.specialty.display == "Médecin - Gynécologie-obstétrique (SM)"
    assert (value.requester.prefix, value.requester.suffix) == ("MME", "")
    assert (value.expert.prefix, value.expert.suffix) == ("M", "DR")
    assert value.requester.mailbox == "anouk.ferrandier@sage-femme.test.mssante.fr"
    assert value.expert.mailbox == "etienne.vasseur-kone@ch-exemple.test.mssante.fr"
    assert value.expert.org.finess == "510999025"
    assert value.requester.org.facility_type.code == "SA52"
    assert value.requester.org.practice_setting.code == "AMBULATOIRE"
    assert value.requester.org.telecom == "tel:0399001017"


def test_the_texts_and_instants_are_read_and_nothing_is_lost() -> None:
    made = report(sources())
    value = made.value
    assert made.losses == ()
    assert value.title == "Compte rendu de téléexpertise - échographie obstétricale du 2e trimestre"
    assert value.reason.startswith("Grossesse unique, 22 SA + 3 j.")
    assert "Primipare" in value.reason
    assert value.conclusion.endswith("Conclusion codée : Anatomie cardiaque fœtale sans anomalie visible")
    assert [message.author for message in value.exchange] == ["Dr Étienne VASSEUR-KONÉ", "Mme Anouk FERRANDIER"]
    assert value.exchange[1].attachments == ("Réglages échographe.jpg",)
    assert value.requested_at.isoformat() == "2025-01-10T09:12:00+01:00"
    assert value.started_at == datetime(2025, 1, 10, 14, 0, tzinfo=UTC)
    assert value.ended_at == datetime(2025, 1, 10, 14, 20, tzinfo=UTC)
    assert value.signed_at == datetime(2025, 1, 10, 14, 29, tzinfo=UTC)
    assert "La patiente, informée" in value.consent
    assert "10 janvier 2025 à 09 h 05 (UTC+01:00)" in value.consent
    assert "partage des données de santé" in value.consent
    assert value.accession == "TLX2501100001"
    assert value.accession_oid == "2.25.310000000000000000000000000000000001"
    assert value.studies == ("2.25.310000000000000000000000000000000003",)
    assert "Échographie · Échographie obstétricale T2" in value.images[0]
    assert "1 série, 3 objets" in value.images[0]
    assert value.test


def test_reading_changes_nothing_and_says_the_same_twice() -> None:
    data = resources()
    before = copy.deepcopy(data)
    assert report(sources(data)) == report(sources(data))
    assert data == before


INCOMPLETE: list[tuple[str, Callable[[Data], object], str]] = [
    ("report not final", lambda d: d["diagnosticReport"].update(status="preliminary"), "DiagnosticReport.status"),
    ("no conclusion", lambda d: [d["diagnosticReport"].pop(k) for k in ("conclusion", "conclusionCode")],
     "DiagnosticReport.conclusion"),
    ("no issued", lambda d: d["diagnosticReport"].pop("issued"), "DiagnosticReport.issued"),
    ("no start", lambda d: d["diagnosticReport"].pop("effectivePeriod"), "DiagnosticReport.effectivePeriod.start"),
    ("partial date", lambda d: d["serviceRequest"].update(authoredOn="2025-01"), "ServiceRequest.authoredOn"),
    ("no authoredOn", lambda d: d["serviceRequest"].pop("authoredOn"), "ServiceRequest.authoredOn"),
    ("no id", lambda d: d["serviceRequest"].pop("id"), "ServiceRequest.id"),
    ("no reason", lambda d: [d["serviceRequest"].pop(k) for k in ("reasonCode", "note")], "ServiceRequest.reasonCode"),
    ("no consent", lambda d: d.update(consent=None), "ServiceRequest.extension(patientConsent)"),
    ("refused", lambda d: d["consent"].update(provision={"type": "deny"}), "Consent.status"),
    ("withdrawn", lambda d: d["consent"].update(status="inactive"), "Consent.status"),
    ("no name", lambda d: d["patient"].pop("name"), "Patient.name.where(use='official')"),
    ("no birth date", lambda d: d["patient"].pop("birthDate"), "Patient.birthDate"),
    ("birth year", lambda d: d["patient"].update(birthDate="1979"), "Patient.birthDate"),
    ("INS, no sex", lambda d: d["patient"].pop("gender"), "Patient.gender"),
    ("INS, no birth place", lambda d: d["patient"]["extension"].pop(1),
     "Patient.extension('http://hl7.org/fhir/StructureDefinition/patient-birthPlace')"),
    ("no RPPS", lambda d: d["expert"].pop("identifier"), "Practitioner.identifier"),
    ("short RPPS", lambda d: d["requester"]["identifier"][0].update(value="123"), "Practitioner.identifier"),
    ("no family", lambda d: d["requester"].pop("name"), "Practitioner.name.family"),
    ("no specialty", lambda d: d["expertRole"].pop("specialty"), "PractitionerRole.specialty"),
    ("no structure name", lambda d: d["requesterOrganization"].pop("name"), "Organization.name"),
    ("no FINESS", lambda d: d["expertOrganization"].pop("identifier"), "Organization.identifier"),
    ("message without instant", lambda d: d["communications"][0]["communication"].pop("sent"), "Communication.sent"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "element"), [row[1:] for row in INCOMPLETE], ids=[row[0] for row in INCOMPLETE])
def test_a_missing_fact_is_refused_by_the_name_of_its_element(change: Callable[[Data], object], element: str) -> None:
    with pytest.raises(Incomplete) as caught:
        read(change)
    assert caught.value.expression == element
    assert ":" in str(caught.value)
    assert len(caught.value.text) > 20


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every element below a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def test_any_single_element_may_be_absent_without_a_crash() -> None:
    paths = [path for path in _paths(resources()) if len(path) > 1]
    assert len(paths) > 250
    for path in paths:
        data = resources()
        holder: Any = data
        for key in path[:-1]:
            holder = holder[key]
        if path[-1] in ("communication", "author"):
            continue
        del holder[path[-1]]
        try:
            report(sources(data))
        except Incomplete as refusal:
            assert refusal.expression, path


def _status(code: str) -> Callable[[Data], object]:
    return lambda d: d["patient"]["extension"][0]["extension"][0]["valueCoding"].update(code=code)


def _ins(oid: str, value: str, **more: str) -> Callable[[Data], object]:
    return lambda d: d["patient"]["identifier"][0].update(
        system=f"urn:oid:1.2.250.1.213.1.4.{oid}", value=value, **more
    )


def test_the_ins_circulates_only_when_the_identity_is_qualified() -> None:
    assert read(_status("VALI")).patient.ins
    assert read(_status("QUAL")).patient.ins
    for status in ("PROV", "RECUP", "DOUT", "VIDE"):
        assert read(_status(status)).patient.ins is None
        assert "not qualified" in losses(_status(status))
    assert read(lambda d: d["patient"].pop("extension")).patient.ins is None
    assert read(_ins("10", "279035121518989", use="old")).patient.ins is None


def test_a_production_site_never_sends_a_test_identity() -> None:
    production = replace(SITE, mode="production")
    assert read(site=production).patient.ins is None
    assert "test INS" in losses(site=production)
    assert not read(site=production).test
    assert read(_ins("8", "279035121518989"), site=production).patient.ins == ("279035121518989", "1.2.250.1.213.1.4.8")


def test_a_wrong_ins_key_is_a_note_in_test_and_a_refusal_elsewhere() -> None:
    wrong = "279035121518900"
    assert read(_ins("10", wrong)).patient.ins == (wrong, "1.2.250.1.213.1.4.10")
    assert "key of the test INS" in losses(_ins("10", wrong))
    assert read(_ins("8", wrong)).patient.ins is None
    assert "key of the INS" in losses(_ins("8", wrong))


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ("279035121518989", True),
        ("279035121518988", False),
        ("2790351215189", False),
        ("27903512151898A", False),
        ("", False),
        ("279035121518989 ", False),
        ("٢٧٩٠٣٥١٢١٥١٨٩٨٩", False),
    ],
)
def test_the_ins_key(value: str, holds: bool) -> None:
    assert ins_key_holds(value) is holds


@pytest.mark.parametrize(("department", "counted"), [("2A", "19"), ("2B", "18")])
def test_the_ins_key_of_a_corsican_birth_place(department: str, counted: str) -> None:
    key = 97 - int(f"17901{counted}004025") % 97
    assert ins_key_holds(f"17901{department}004025{key:02d}")
    assert not ins_key_holds(f"1792A{counted}004025{key:02d}")


def test_the_consent_of_the_draft_guide_is_enough() -> None:
    url = "http://example.org/fhir/fish/StructureDefinition/fr-coreServiceRequest-patientConsent"

    def declare(given: bool, where: str = url) -> Callable[[Data], object]:
        return lambda d: d["serviceRequest"].update(extension=[{"url": where, "valueBoolean": given}])

    assert "déclaré avec sa demande" in read(declare(True), consent=None).consent
    elsewhere = "https://example.test/consent"
    assert read(declare(True, elsewhere), consent=None, consent_extension=elsewhere).consent
    with pytest.raises(Incomplete, match="patientConsent"):
        read(declare(False), consent=None)


@pytest.mark.parametrize(
    ("coding", "code"),
    [
        ({"system": "https://mos.esante.gouv.fr/NOS/TRE_R38-SpecialiteOrdinale/FHIR/TRE-R38-SpecialiteOrdinale",
          "code": "SM44"}, "G15_10/SM44"),
        ({"system": "https://mos.esante.gouv.fr/NOS/TRE_R38-SpecialiteOrdinale", "code": "SCD01"}, "G15_40/SCD01"),
        ({"system": "https://mos.esante.gouv.fr/NOS/TRE_G15-ProfessionSante", "code": "10"}, "G15_10"),
        ({"system": "urn:oid:1.2.250.1.213.1.1.4.5", "code": "G15_10/SM54"}, "G15_10/SM54"),
    ],
)  # fmt: skip
def test_a_specialty_is_spelled_as_documents_spell_it(coding: Data, code: str) -> None:
    value = read(lambda d: d["expertRole"].update(specialty=[{"coding": [coding]}]))
    assert value.expert.specialty.code == code


def test_the_specialty_wins_over_the_profession_wherever_it_stands() -> None:
    def change(data: Data) -> None:
        data["expertRole"].pop("specialty")
        data["expertRole"]["code"] = [{"coding": [{"system": "x/TRE_G15-ProfessionSante", "code": "10"}]}]
        known = {"system": "x/TRE_R38-SpecialiteOrdinale", "code": "SM99", "display": "Spécialité à venir"}
        data["expert"]["qualification"] = [{"code": {"coding": [known]}}]

    assert read(change).expert.specialty == Code("G15_10/SM99", "Spécialité à venir", "1.2.250.1.213.1.1.4.5")


def test_a_doctor_written_as_prefix_is_still_a_title() -> None:
    def change(data: Data) -> None:
        data["expert"]["name"][0].update(prefix=["Mme", "Dr."], suffix=["PhD"])

    value = read(change)
    assert (value.expert.prefix, value.expert.suffix) == ("MME", "DR")
    assert "PhD" in losses(change)


def test_the_mailbox_is_the_mssante_one_of_the_role_then_person_then_structure() -> None:
    def change(data: Data) -> None:
        point = data["requesterRole"].pop("telecom")[0]
        data["requester"]["telecom"] = [{"system": "email", "value": "ordinary@example.test"}]
        data["requesterOrganization"]["telecom"].append({**point, "value": "mailto:accueil@tilleuls.test.mssante.fr"})

    assert read(change).requester.mailbox == "accueil@tilleuls.test.mssante.fr"


def test_a_requester_without_finess_is_named_and_noted() -> None:
    def change(data: Data) -> None:
        data["requesterOrganization"]["identifier"] = [{"system": "https://sirene.fr", "value": "99900000000017"}]

    assert read(change).requester.org.finess == ""
    assert "has no FINESS" in losses(change)


def test_the_structure_identifier_with_its_prefix_is_read() -> None:
    national = {"system": "urn:oid:1.2.250.1.71.4.2.2", "value": "12A0999025"}
    value = read(lambda d: d["expertOrganization"].update(identifier=[national]))
    assert value.expert.org == Org(
        name=value.expert.org.name, finess="2A0999025", address=value.expert.org.address,
        telecom=value.expert.org.telecom, practice_setting=value.expert.org.practice_setting,
    )  # fmt: skip


def test_the_site_completes_the_kind_of_its_own_structure() -> None:
    value = read(site=replace(SITE, facility_type="SA04", practice_setting="HAD"))
    assert (value.expert.org.facility_type.code, value.expert.org.practice_setting.code) == ("SA04", "HAD")


def test_a_message_withdrawn_is_left_out_and_said() -> None:
    def change(data: Data) -> None:
        data["communications"][0]["communication"]["status"] = "entered-in-error"
        data["communications"][1]["communication"]["payload"] = []

    assert read(change).exchange == ()
    assert "entered-in-error" in losses(change)
    assert "empty message" in losses(change)


def test_what_the_report_does_not_print_is_said() -> None:
    def change(data: Data) -> None:
        data["diagnosticReport"]["result"] = [{"reference": "Observation/1"}]
        data["serviceRequest"]["supportingInfo"] = [{"reference": "DocumentReference/1"}]
        data["patient"]["identifier"].append({"system": "urn:oid:1.2.3", "value": "other"})

    said = losses(change)
    assert "DiagnosticReport.result" in said
    assert "ServiceRequest.supportingInfo" in said
    assert "urn:oid:1.2.3" in said


def test_instants_of_the_caller_win_and_stay_in_order() -> None:
    start = datetime(2025, 1, 10, 13, 0, tzinfo=UTC)
    assert read(started_at=start).started_at == start
    late = datetime(2025, 1, 10, 14, 40, tzinfo=UTC)
    value = read(started_at=late, ended_at=late)
    assert value.started_at == value.ended_at == value.signed_at
    assert "is after" in losses(started_at=late)


def test_a_date_without_time_is_local_midnight_and_said() -> None:
    def change(data: Data) -> None:
        data["serviceRequest"]["authoredOn"] = "2025-07-10"

    overseas = replace(SITE, time_zone="America/Cayenne")
    assert read(change, site=overseas).requested_at.isoformat() == "2025-07-10T00:00:00-03:00"
    assert "no offset" in losses(change)


def test_a_sex_the_documents_do_not_know_is_written_unknown() -> None:
    assert read(lambda d: d["patient"].update(gender="other")).patient.gender == "unknown"
    assert "'other'" in losses(lambda d: d["patient"].update(gender="other"))


def test_an_accession_number_finds_the_root_it_is_unique_under() -> None:
    def plain_acsn(data: Data) -> None:
        data["serviceRequest"]["identifier"][0].update(system="https://ris.example.test/acsn")

    assert read(plain_acsn).accession_oid == SITE.document_oid
    assert read(plain_acsn, site=replace(SITE, document_oid="")).accession_oid == "1.2.250.1.71.4.2.2.1510999025"
    corsican = replace(SITE, document_oid="", finess_eg="2A0999025")
    assert read(plain_acsn, site=corsican).accession_oid.startswith("2.25.")
    assert read(lambda d: d["serviceRequest"].pop("identifier")).accession == ""


def test_a_restricted_report_stays_restricted() -> None:
    label = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
    value = read(lambda d: d["diagnosticReport"].update(meta={"security": [label]}))
    assert (value.confidentiality.code, value.confidentiality.display) == ("R", "Restreint")


A07 = "urn:oid:1.2.250.1.213.1.1.4.13"


def labelled(*labels: dict[str, str]) -> Any:
    return lambda data: data["diagnosticReport"].update(meta={"security": list(labels)})


def test_who_may_not_see_a_report_is_read_from_its_labels() -> None:
    masked, hidden = {"system": A07, "code": "MASQUE_PS"}, {"code": "INVISIBLE_PATIENT"}
    value = read(labelled(hidden, {"code": "V"}, masked, hidden))
    assert [one.code for one in value.visibility] == ["MASQUE_PS", "INVISIBLE_PATIENT"]
    assert {one.system for one in value.visibility} == {A07.removeprefix("urn:oid:")}
    assert value.confidentiality.code == "V" and read().visibility == ()


def test_a_label_that_no_document_can_tell_is_a_loss_and_one_that_would_hide_nothing_is_refused() -> None:
    other = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "PSY"}
    told = losses(labelled({"code": "R"}, other, {"code": "N"}))
    assert "DiagnosticReport.meta.security[1]: the label 'PSY' has no place" in told
    assert "DiagnosticReport.meta.security[2]: the label 'N'" in told and "security[0]" not in told
    for system in (A07, "https://mos.esante.gouv.fr/NOS/TRE_A07-StatusVisibiliteDocument/FHIR/TRE-A07"):
        with pytest.raises(Incomplete, match="INVISIBLE_REPRESENTANTS_LEGAUX"):
            read(labelled({"system": system, "code": "INVISIBLE_REP_LEGAUX"}))


def test_a_label_of_a_system_whose_oid_only_begins_alike_is_not_judged_as_a_visibility() -> None:
    assert "'INTERNE' has no place" in losses(labelled({"system": f"{A07}0", "code": "INTERNE"}))


def test_the_oid_of_a_uuid_is_its_value() -> None:
    assert oid_of("00000000-0000-0000-0000-0000000000ff") == "2.25.255"
