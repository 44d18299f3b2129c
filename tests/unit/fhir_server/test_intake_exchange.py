"""Results, documents, orders and slots by HL7 v2: attached where they belong, corrected, withdrawn, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hubs import REQUESTER, deliveries, found, put, read, stored
from sylve import IPP, patient, person, sample, say, sylve, tell

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery.ports import Port
from fhir_server.demo import people
from fhir_server.desk import inbox
from fhir_server.store.engine import Store
from fhir_server.teleexpertise.distribution import PROFILE_SYSTEM
from hl7v2.message import parse
from mappers.fhir_to_hl7v2_orders import DETAIL
from mappers.hl7v2_orders_to_fhir import EXAMINATION

Resource = dict[str, Any]
PLACER = "urn:oid:2.25.4720"
REFUSAL = "oru-r01-tlr-refus"


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = sylve(store)
    tell(hub, "adt-a01-admission")
    put(hub, SYSTEM, *people.structures("127.0.0.1:9", "127.0.0.1:10"), *people.professionals())
    group = read(hub, "HealthcareService/avis-echo") | {"providedBy": {"reference": "Organization/sylve"}}
    finess = {"system": people.FINESS, "value": "990000018"}
    home = {"resourceType": "Organization", "id": "ch-demo", "name": "CH de démonstration", "identifier": [finess]}
    put(hub, SYSTEM, group, home)
    return hub


def case(hub: Hub, number: str = "DEM-2026-79", status: str = "active", who: str = "", **more: Any) -> str:
    """A téléexpertise about the admitted patient that carries a placer number, with `more` elements."""
    target = who or f"Patient/{patient(hub)['id']}"
    consent = people.consent("c1", 0) | {"patient": {"reference": target}}
    asked = people.request("c1", 0, "moreau", "avis-echo", "Avis", status) | {"subject": {"reference": target}}
    placer = {"type": {"coding": [{"code": "PLAC"}]}, "system": PLACER, "value": number}
    put(hub, REQUESTER, consent, asked | {"identifier": [placer]} | more)
    return "ServiceRequest/c1"


def one(hub: Hub, kind: str, query: str = "") -> Resource:
    held = found(hub, kind, query)
    assert len(held) == 1, held
    return held[0]


# --- results ---------------------------------------------------------------------------------------------------------


def test_a_laboratory_report_is_stored_with_its_results_specimen_and_document(hub: Hub) -> None:
    row = tell(hub, "oru-r01-biologie")
    who = f"Patient/{patient(hub)['id']}"
    report = one(hub, "DiagnosticReport")
    assert (report["status"], report["subject"]["reference"]) == ("final", who)
    assert report["encounter"]["reference"] == f"Encounter/{one(hub, 'Encounter')['id']}"
    assert len(report["result"]) == 7 == len(found(hub, "Observation", f"subject={who}"))
    assert one(hub, "Specimen")["subject"]["reference"] == who
    document = one(hub, "DocumentReference")
    assert document["context"]["related"][0]["reference"] == f"DiagnosticReport/{report['id']}"
    assert read(hub, document["content"][0]["attachment"]["url"])["contentType"] == "application/pdf"
    assert report["basedOn"][0]["identifier"]["value"] == "DEM-2026-77" and "no request DEM-2026-77" in row.note
    assert report["meta"]["source"].endswith(row.id)


def test_a_correction_is_a_new_version_of_the_same_results(hub: Hub) -> None:
    tell(hub, "oru-r01-biologie")
    before = one(hub, "DiagnosticReport")
    change = (("||5.20|", "||5.40|"), ("N^Normal^HL70078|||F", "H^High^HL70078|||C"), ("|CH|F|", "|CH|C|"))
    tell(hub, "oru-r01-biologie", *change)
    after = one(hub, "DiagnosticReport")
    assert (after["id"], after["status"]) == (before["id"], "corrected")
    assert len(found(hub, "Observation")) == 7
    corrected = [o for o in found(hub, "Observation") if o["code"]["coding"][0]["code"] == "2093-3"]
    assert [(o["status"], str(o["valueQuantity"]["value"])) for o in corrected] == [("corrected", "5.40")]


def test_a_result_that_names_a_request_of_another_patient_is_refused(hub: Hub) -> None:
    say(hub, person("000500"))
    other = one(hub, "Patient", f"identifier={IPP}|000500")
    case(hub, "DEM-2026-77", who=f"Patient/{other['id']}")
    told = say(hub, sample("oru-r01-biologie"))
    assert (told.code, told.application_code, told.errors[0].location) == ("AE", "900", "ORC^1^2")
    assert found(hub, "DiagnosticReport") == []


def test_a_result_about_a_teleexpertise_supports_it_and_never_answers_it(hub: Hub) -> None:
    asked = case(hub, "DEM-2026-77")
    tell(hub, "oru-r01-biologie")
    report = one(hub, "DiagnosticReport")
    request = read(hub, asked)
    assert {"reference": f"DiagnosticReport/{report['id']}"} in request["supportingInfo"]
    assert request["status"] == "active" and "basedOn" not in report


def test_results_of_an_unknown_patient_make_a_record_and_doubtful_ones_too(hub: Hub) -> None:
    row = tell(hub, "oru-r01-biologie", ("000417^", "000777^"), ("284056912345640^^^ASIP-SANTE-INS-NIR", "X^^^A"))
    assert "nobody known" in row.note and patient(hub, "000777")
    changed = (("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "AUTRE^Jean^Jean"), ("19840523|F", "19600101|M"))
    row = tell(hub, "oru-r01-cr-texte", *changed)
    assert "à rapprocher" in row.note
    held = [p for p in found(hub, "Patient", f"identifier={IPP}|000417") if "tag" not in p["meta"]]
    assert [p["name"][0]["family"] for p in held] == ["LECOCQ-MARAIS"], "nothing is overwritten"


def test_a_text_report_is_read_as_a_conclusion(hub: Hub) -> None:
    tell(hub, "oru-r01-cr-texte")
    assert "Échographie pelvienne" in one(hub, "DiagnosticReport")["conclusion"]


# --- the answer to a request -----------------------------------------------------------------------------------------


def test_a_refusal_revokes_the_request_with_its_reason(hub: Hub) -> None:
    asked = case(hub)
    row = tell(hub, REFUSAL)
    request = read(hub, asked)
    assert request["status"] == "revoked" and request["note"][-1]["text"] == "Refus : Appareil inadapté"
    assert row.case_key == asked
    told = say(hub, sample(REFUSAL))
    assert told.code == "AE", "it is refused already"


def test_an_acceptance_takes_the_request_for_the_expert_it_names(hub: Hub) -> None:
    asked = case(hub)
    accepted = (("ORC|OC|", "ORC|OK|"), ("|^Appareil inadapté|", "||"), ("99900000029^FERRAND", "99000000037^GARNIER"))
    tell(hub, REFUSAL, *accepted)
    request = read(hub, asked)
    assert "in_progress" in str(request["extension"])
    assert request["performer"][-1]["reference"] == "PractitionerRole/garnier"


def test_an_acceptance_by_nobody_of_the_group_is_refused(hub: Hub) -> None:
    asked = case(hub)
    told = say(hub, sample(REFUSAL, ("ORC|OC|", "ORC|OK|"), ("|^Appareil inadapté|", "||")))
    assert (told.code, told.errors[0].location) == ("AE", "ORC^1^12")
    assert "in_progress" not in str(read(hub, asked)["extension"])


NAMED = "99900000029^FERRAND^Paul^^^^^^ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO^D^^^RPPS||||^Appareil inadapté"


def test_an_acceptance_that_names_nobody_is_taken_for_nobody(hub: Hub) -> None:
    asked = case(hub)
    before = read(hub, asked)
    told = say(hub, sample(REFUSAL, (f"ORC|OC|DEM-2026-79^^2.25.4720^ISO||||||||||{NAMED}",
                                     "ORC|OK|DEM-2026-79^^2.25.4720^ISO||||||||||||||")))  # fmt: skip
    assert (told.code, told.errors[0].location) == ("AE", "ORC^1^12")
    assert read(hub, asked) == before


def test_a_refusal_that_names_nobody_is_signed_by_nobody(hub: Hub) -> None:
    asked = case(hub)
    tell(hub, REFUSAL, (f"||||||||||{NAMED}", "||||||||||||||^Appareil inadapté"))
    assert read(hub, asked)["status"] == "revoked"
    steps = [one for one in found(hub, "Provenance", f"target={asked}") if "refuse" in str(one.get("activity"))]
    assert steps and "PractitionerRole" not in str([one["agent"] for one in steps])


def test_an_acceptance_by_an_expert_who_has_left_is_refused(hub: Hub) -> None:
    asked = case(hub)
    put(hub, SYSTEM, read(hub, "PractitionerRole/garnier") | {"active": False})
    changes = (("ORC|OC|", "ORC|OK|"), ("|^Appareil inadapté|", "||"), ("99900000029^FERRAND", "99000000037^GARNIER"))
    told = say(hub, sample(REFUSAL, *changes))
    assert (told.code, told.errors[0].location) == ("AE", "ORC^1^12")
    assert "in_progress" not in str(read(hub, asked)["extension"])


def test_an_answer_to_nothing_or_by_a_stranger_is_refused(hub: Hub) -> None:
    told = say(hub, sample(REFUSAL))
    assert (told.code, told.application_code) == ("AE", "900")
    case(hub)
    group = read(hub, "HealthcareService/avis-echo") | {"providedBy": {"reference": "Organization/cabinet-lilas"}}
    put(hub, SYSTEM, group)
    assert say(hub, sample(REFUSAL)).application_code == "901"


SYLVE, ACCEPTED = {"reference": "Organization/sylve"}, (
    ("ORC|OC|", "ORC|OK|"), ("|^Appareil inadapté|", "||"), ("99900000029^FERRAND", "99000000037^GARNIER"),
)  # fmt: skip


def asked_itself(hub: Hub, *structures: str) -> str:
    """A request to structures, no group; Garnier works in the first of them."""
    home = {"organization": {"reference": structures[0]}, "healthcareService": []}
    role = {name: value for name, value in (read(hub, "PractitionerRole/garnier") | home).items() if value}
    put(hub, SYSTEM, role)
    return case(hub, performer=[{"reference": one} for one in structures])


def test_a_structure_that_is_asked_itself_accepts_in_the_name_of_who_works_there(hub: Hub) -> None:
    asked = asked_itself(hub, "Organization/sylve")
    tell(hub, REFUSAL, *ACCEPTED)
    request = read(hub, asked)
    assert "in_progress" in str(request["extension"])
    assert [one["reference"] for one in request["performer"]] == ["Organization/sylve", "PractitionerRole/garnier"]
    assert read(hub, f"Task/{request['id']}")["status"] == "in-progress"


def test_a_structure_answers_for_a_part_of_itself_that_is_asked(hub: Hub) -> None:
    put(hub, SYSTEM, {"resourceType": "Organization", "id": "pole", "name": "Pôle femme-enfant", "partOf": SYLVE})
    asked = asked_itself(hub, "Organization/pole")
    tell(hub, REFUSAL)
    assert read(hub, asked)["status"] == "revoked"


def test_a_structure_that_is_asked_itself_accepts_in_the_name_of_nobody_else(hub: Hub) -> None:
    asked = asked_itself(hub, "Organization/sylve")
    put(hub, SYSTEM, read(hub, "PractitionerRole/garnier") | {"organization": {"reference": "Organization/ch-demo"}})
    told = say(hub, sample(REFUSAL, *ACCEPTED))
    assert (told.code, told.errors[0].location) == ("AE", "ORC^1^12")
    assert "in_progress" not in str(read(hub, asked)["extension"])


@pytest.mark.parametrize("changes", [(), ACCEPTED], ids=["OC", "OK"])
def test_another_structure_than_the_one_that_is_asked_cannot_answer(hub: Hub, changes: Any) -> None:
    put(hub, SYSTEM, {"resourceType": "Organization", "id": "ght", "name": "GHT"})
    put(hub, SYSTEM, read(hub, "Organization/sylve") | {"partOf": {"reference": "Organization/ght"}})
    asked = asked_itself(hub, "Organization/cabinet-lilas", "Organization/ght")
    before = read(hub, asked)
    told = say(hub, sample(REFUSAL, *changes))
    assert (told.code, told.application_code, told.errors[0].location) == ("AE", "901", "ORC^1^21")
    assert read(hub, asked) == before, "a part does not answer for the whole"


# --- documents -------------------------------------------------------------------------------------------------------


def test_a_document_is_stored_replaced_and_withdrawn(hub: Hub) -> None:
    tell(hub, "mdm-t02-lps-recu")
    first = one(hub, "DocumentReference")
    assert first["status"] == "current" and first["masterIdentifier"]["value"] == "urn:oid:2.25.310001"
    assert "XDM/1.0/DDM" in str(first["content"][1]["attachment"]["title"])
    assert read(hub, first["content"][0]["attachment"]["url"])["contentType"] == "text/xml"
    tell(hub, "mdm-t10-lps-recu")
    second = one(hub, "DocumentReference", "status=current")
    assert second["relatesTo"] == [{"code": "replaces", "target": {"reference": f"DocumentReference/{first['id']}"}}]
    assert read(hub, f"DocumentReference/{first['id']}")["status"] == "superseded"
    told = say(hub, sample("mdm-t04-lps-recu"))
    assert (told.code, told.application_code, told.errors[0].location) == ("AE", "900", "TXA^1^12")
    tell(hub, "mdm-t04-lps-recu", ("2.25.310001", "2.25.310002"))
    assert read(hub, f"DocumentReference/{second['id']}")["status"] == "entered-in-error"


def test_a_document_sent_twice_or_replacing_nothing_or_of_a_stranger_is_refused(hub: Hub) -> None:
    tell(hub, "mdm-t02-lps-recu")
    assert say(hub, sample("mdm-t02-lps-recu")).errors[0].code == "205"
    told = say(hub, sample("mdm-t10-lps-recu", ("2.25.310001", "2.25.310009")))
    assert (told.code, told.application_code) == ("AE", "900")
    say(hub, person("000500"))
    other = ("000417^^^CH-SYLVE&990001234&N^PI~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS",
             "000500^^^CH-SYLVE&990001234&N^PI")  # fmt: skip
    traits = (("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "MARTIN^Luc^Luc"), ("19840523|F", "19700101|M"))
    assert say(hub, sample("mdm-t04-lps-recu", other, *traits)).application_code == "904"
    unknown = ("000417^", "000999^"), ("284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS", "9^^^X^PI")
    told = say(hub, sample("mdm-t02-lps-recu", *unknown, ("2.25.310001", "2.25.310008")))
    assert (told.code, told.application_code, told.errors[0].code) == ("AE", "902", "204")
    assert len(found(hub, "DocumentReference")) == 1


@pytest.mark.parametrize("name", ["mdm-t10-lps-recu", "mdm-t04-lps-recu"])
def test_a_document_is_changed_by_its_author_or_by_the_house_it_came_from(hub: Hub, name: str) -> None:
    """Neither: 901 and nothing changes. The author of TXA-9, or else of PRT, may also write from another house."""
    tell(hub, "mdm-t02-lps-recu")
    first = one(hub, "DocumentReference")
    elsewhere = first | {"custodian": {"reference": "Organization/ch-demo"}}
    put(hub, SYSTEM, elsewhere | {"author": [{"identifier": {"system": "urn:oid:2.25.1", "value": "autre"}}]})
    told = say(hub, sample(name))
    assert (told.code, told.application_code, told.errors[0].code) == ("AE", "901", "207")
    assert one(hub, "DocumentReference")["status"] == "current"
    put(hub, SYSTEM, elsewhere)
    assert say(hub, sample(name)).code == "AA"
    assert read(hub, f"DocumentReference/{first['id']}")["status"] in ("superseded", "entered-in-error")


def test_visibility_flags_become_security_labels(hub: Hub) -> None:
    tell(hub, "mdm-t02-lps-recu", ("MetaDMPMSS||N^^", "MetaDMPMSS||Y^^"))
    labels = one(hub, "DocumentReference")["securityLabel"]
    assert [label["coding"][0]["code"] for label in labels] == ["MASQUE_PS"]


# --- orders ----------------------------------------------------------------------------------------------------------


def asked_by_order(hub: Hub) -> Resource:
    return one(hub, "ServiceRequest", f"identifier={PLACER}|DEM-2026-90")


def test_an_order_opens_a_draft_that_says_what_is_missing(hub: Hub) -> None:
    raw = sample("orm-o01-tlr-demande", ("99900000029^FERRAND^Paul", "99000000011^MOREAU^Claire"))
    assert say(hub, raw, Port(group="avis-echo")).code == "AA"
    request = asked_by_order(hub)
    assert (request["status"], request["intent"], request["priority"]) == ("draft", "proposal", "stat")
    assert request["requester"]["reference"] == "PractitionerRole/moreau"
    assert request["performer"] == [{"reference": "HealthcareService/avis-echo"}]
    note = request["note"][-1]["text"]
    assert note == "À compléter avant envoi : le consentement du patient ; la question posée à l'expert"
    assert request["meta"]["tag"][0]["code"] == "a-completer"
    placer = next(one for one in request["identifier"] if one["type"]["coding"][0]["code"] == "PLAC")
    assert placer["assigner"] == {"reference": "Organization/sylve"}, "who ordered may take it back"
    (detail,) = request["orderDetail"]
    assert detail["extension"] == [{"url": DETAIL, "valueCode": "MODALITE_IMAGERIE"}]
    assert request["bodySite"][0]["id"] == "1.1"
    assert read(hub, f"Task/{request['id']}")["status"] == "draft"
    assert len(found(hub, "Observation", f"based-on=ServiceRequest/{request['id']}")) == 2
    told = {f"Observation/{one['id']}" for one in found(hub, "Observation", f"based-on=ServiceRequest/{request['id']}")}
    assert {one.get("reference") for one in request["supportingInfo"]} == told


def test_an_order_of_somebody_unknown_asks_in_the_name_of_the_establishment(hub: Hub) -> None:
    tell(hub, "orm-o01-tlr-demande")
    request = asked_by_order(hub)
    assert request["requester"] == {"reference": "Organization/sylve", "display": "Paul FERRAND"}
    assert "le professionnel requérant" in request["note"][-1]["text"]
    assert "le groupe d'experts" in request["note"][-1]["text"]


def test_the_same_order_again_is_refused_and_a_changed_one_rewrites_the_draft(hub: Hub) -> None:
    tell(hub, "orm-o01-tlr-demande")
    first = asked_by_order(hub)
    assert say(hub, sample("orm-o01-tlr-demande")).errors[0].code == "205"
    tell(hub, "orm-o01-tlr-demande", ("ORC|NW|", "ORC|XO|"), ("Métrorragies au 2e trimestre", "Placenta praevia ?"))
    again = asked_by_order(hub)
    assert again["id"] == first["id"] and again["reasonCode"] == [{"text": "Placenta praevia ?"}]


def test_who_ordered_and_provides_the_group_too_takes_the_order_back_whoever_the_requester_works_for(hub: Hub) -> None:
    raw = sample("orm-o01-tlr-demande", ("99900000029^FERRAND^Paul", "99000000011^MOREAU^Claire"))
    assert say(hub, raw, Port(group="avis-echo")).code == "AA"
    assert read(hub, "PractitionerRole/moreau")["organization"] == {"reference": "Organization/cabinet-lilas"}
    tell(hub, "orm-o01-tlr-annulation")
    assert asked_by_order(hub)["status"] == "revoked"


def test_a_cancellation_revokes_the_request_and_again_is_noted(hub: Hub) -> None:
    tell(hub, "orm-o01-tlr-demande")
    tell(hub, "orm-o01-tlr-annulation")
    assert asked_by_order(hub)["status"] == "revoked"
    assert asked_by_order(hub)["note"][-1]["text"] == "Annulation : Patiente transférée"
    assert "before" in tell(hub, "orm-o01-tlr-annulation").note


@pytest.mark.parametrize("name", ["orm-o01-tlr-annulation", "omi-o23-tlr-complement"])
def test_what_is_said_of_an_unknown_request_is_refused(hub: Hub, name: str) -> None:
    told = say(hub, sample(name))
    assert (told.code, told.errors[0].code, told.application_code) == ("AE", "204", "900")


def test_an_order_that_asks_for_nothing_we_do_is_refused(hub: Hub) -> None:
    told = say(hub, sample("orm-o01-tlr-annulation", ("ORC|CA|", "ORC|HD|"), ("TLR_OBR_PROCEDURE", "L")))
    assert (told.code, told.errors[0].code) == ("AE", "103")


def test_the_complement_adds_study_accession_and_viewer(hub: Hub) -> None:
    tell(hub, "orm-o01-tlr-demande")
    tell(hub, "omi-o23-tlr-complement")
    request = asked_by_order(hub)
    assert "ACN101" in {one["value"] for one in request["identifier"]}
    assert "urn:oid:2.25.999001" in str(request["supportingInfo"])
    assert request["note"][-1]["text"] == "Visionneuse : /viewer/ACN101"
    (message,) = inbox.inbox_list(hub.store, {"accession": "ACN101"})
    assert message["message_type"].startswith("OMI^O23"), "it is found by what it brought"
    version = stored(hub, f"ServiceRequest/{request['id']}")
    tell(hub, "omi-o23-tlr-complement")
    assert version and asked_by_order(hub)["note"] == request["note"], "the same complement adds nothing"
    tell(hub, "omi-o23-tlr-complement", ("|730^jours|", "|365^jours|"))
    (examined,) = [one for one in asked_by_order(hub)["extension"] if one["url"] == EXAMINATION]
    parts = {part["url"]: part for part in examined["extension"]}
    assert parts["performed"]["valueDateTime"] == "2026-03-02T18:44:18+01:00"
    assert parts["retention"]["valueDuration"]["value"] == 365, "what was said last"
    tell(hub, "orm-o01-tlr-annulation")
    assert say(hub, sample("omi-o23-tlr-complement")).errors[0].code == "207"


# --- slots -----------------------------------------------------------------------------------------------------------


def test_a_slot_is_booked_moved_changed_and_given_up(hub: Hub) -> None:
    tell(hub, "orm-o01-tlr-demande")
    tell(hub, "siu-s12-reservation")
    slot = one(hub, "Appointment")
    assert slot["participant"][0]["actor"]["reference"] == f"Patient/{patient(hub)['id']}"
    assert slot["basedOn"][0]["reference"] == f"ServiceRequest/{asked_by_order(hub)['id']}"
    assert say(hub, sample("siu-s12-reservation")).errors[0].code == "205"
    tell(hub, "siu-s13-deplacement")
    assert one(hub, "Appointment")["start"].startswith("2026-03-11T14:00")
    tell(hub, "siu-s14-modification")
    tell(hub, "siu-s15-annulation")
    given_up = one(hub, "Appointment")
    assert (given_up["id"], given_up["status"]) == (slot["id"], "cancelled")


@pytest.mark.parametrize("name", ["siu-s13-deplacement", "siu-s14-modification", "siu-s15-annulation"])
def test_an_unknown_slot_is_neither_moved_nor_given_up(hub: Hub, name: str) -> None:
    told = say(hub, sample(name))
    assert (told.code, told.errors[0].code, told.errors[0].location) == ("AE", "204", "SCH^1^1")
    assert found(hub, "Appointment") == []


@pytest.mark.parametrize(
    "name",
    ["oru-r01-biologie", "mdm-t02-lps-recu", "orm-o01-tlr-demande", "siu-s12-reservation", "oru-r01-cr-texte"],
)
def test_a_replay_gets_the_same_answer_and_changes_nothing(hub: Hub, name: str) -> None:
    kinds = ("DiagnosticReport", "Observation", "DocumentReference", "ServiceRequest", "Appointment")
    raw = sample(name)
    first = say(hub, raw)
    held = {kind: [(r["id"], r["meta"]["versionId"]) for r in found(hub, kind)] for kind in kinds}
    assert first.code == "AA" and say(hub, raw) == first
    assert {kind: [(r["id"], r["meta"]["versionId"]) for r in found(hub, kind)] for kind in kinds} == held


def test_an_order_by_hl7_is_answered_by_hl7_under_its_own_number(hub: Hub) -> None:
    kinds = [{"coding": [{"system": PROFILE_SYSTEM, "code": "tlr-1.0"}]}]
    desk = next(one for one in people.structures("127.0.0.1:9", "127.0.0.1:10") if one["id"] == "dpi")
    home = read(hub, "Organization/sylve") | {"endpoint": [{"reference": "Endpoint/dpi"}]}
    put(hub, SYSTEM, desk | {"payloadType": kinds, "managingOrganization": {"reference": "Organization/sylve"}}, home)
    tell(hub, "orm-o01-tlr-demande")
    tell(hub, "orm-o01-tlr-annulation")
    assert deliveries(hub) == []  # who took it back by HL7 v2 knows
    tell(hub, "orm-o01-tlr-demande", ("DEM-2026-90", "DEM-2026-91"), ("SYL0000000000000120", "SYL0000000000000991"))
    (request,) = [one for one in found(hub, "ServiceRequest") if one["status"] == "draft"]
    put(hub, SYSTEM, request | {"status": "revoked", "note": [{"text": "Examen déjà fait"}]})
    (answer,) = deliveries(hub)
    with hub.store.read(SYSTEM) as snapshot:
        msg = parse(snapshot.payload(answer.id))
    assert msg.at("ORC-2").encoded == "DEM-2026-91^^2.25.4720^ISO"
    assert (msg.get("ORC-1"), msg.get("ORC-16.2")) == ("OC", "Examen déjà fait")
    assert "000417" in msg.at("PID-3").encoded


# --- characters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("charset", "sent", "family"),
    [
        ("windows-1252", b"L\x92\xc9COLE", "L’ÉCOLE"),
        ("8859/15", b"LEC\xbcUR", "LECŒUR"),
        ("8859/15", b"L\x92\xc9COLE", "L’ÉCOLE"),
    ],
)
def test_bytes_that_are_not_what_they_say_are_read_as_the_ports_partner_writes(
    hub: Hub, charset: str, sent: bytes, family: str
) -> None:
    """And as windows-1252, where that character set has no sign for a byte."""
    raw = person("000777", "LECOLE").replace(b"LECOLE", sent)
    assert say(hub, raw, Port(name="vieux", charset=charset)).code == "AA"
    assert parse(raw, fallback=charset).text("PID-5") == family
    assert patient(hub, "000777")["name"][0]["family"] == family
