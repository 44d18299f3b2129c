"""A signed report is corrected: each addressee gets the replacement of what they hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import hubs
import pytest
from corrected import (
    DPI,
    MAIL,
    PFI,
    archived,
    because,
    clinical,
    correct,
    letter,
    message,
    notes,
    payload,
    received,
    record,
    waiting,
    withdraw,
)
from hubs import (
    ADMIN,
    EXPERT,
    PARTNER,
    REQUESTER,
    SYSTEM,
    asked,
    found,
    meddled,
    put,
    read,
)
from lxml import etree
from pypdf import PdfReader

from fhir_server.changes import Hub, view_of
from fhir_server.context import Caller
from fhir_server.demo import people
from fhir_server.desk import outbox, story
from fhir_server.errors import Invalid, RuleBroken
from fhir_server.search import index
from fhir_server.store.session import Snapshot
from fhir_server.teleexpertise import notes as case_notes
from fhir_server.teleexpertise import overtaken
from fhir_server.teleexpertise.case import Context
from fhir_server.teleexpertise.distribution import Plan, mail_road
from fhir_server.teleexpertise.succession import Held, follow
from hl7v2.message import parse
from mappers.fhir_to_cda import check_header
from mappers.fhir_to_report import oid_of
from mssante import envelope
from profiles.validator.structure import check

Resource = dict[str, Any]
COLLEAGUE = Caller("PractitionerRole/benali", "Karim BENALI", frozenset({"expert"}), EXPERT.groups)


# --- correcting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["amended", "corrected", "appended"])
def test_who_received_a_report_gets_its_replacement(signed: Hub, status: str) -> None:
    first = record(signed)
    correct(signed, status=status)
    assert set(waiting(signed)) == {DPI, PFI, MAIL}
    for lane in (DPI, PFI):
        told = message(signed, lane)
        assert (told.text("MSH-9.2"), told.text("ORC-1")) == ("T10", "RO")
        assert told.text("OBX-11") == "C"
        assert told.text("TXA-12") == oid_of(record(signed)["id"])
        assert told.text("TXA-13") == oid_of(first["id"])
    assert next(o for o in message(signed, PFI).all("OBX") if o.text(3) == "DESTDMP").text(5) == "Y"


def test_who_may_see_a_report_is_told_alike_on_every_road(signed: Hub) -> None:
    assert "securityLabel" not in record(signed)
    a07 = "urn:oid:1.2.250.1.213.1.1.4.13"
    labels = [{"code": "R"}, {"system": a07, "code": "INVISIBLE_PATIENT"}]
    correct(signed, meta={"security": labels})
    for lane in (DPI, PFI):
        told = {obx.text(3): obx.text(5) for obx in message(signed, lane).all("OBX")}
        wanted = {"MASQUE_PS": "N", "INVISIBLE_PATIENT": "Y", "INVISIBLE_REP_LEGAUX": "N", "MODIF_CONF_CODE": "Y"}
        assert told | wanted == told, lane
    mail = letter(signed)
    assert mail.xdm is not None
    codes = mail.xdm.submission.entries[0].codes["confidentialityCode"]
    assert [one.code for one in codes] == ["R", "INVISIBLE_PATIENT"]
    held = [one["coding"][0] for one in record(signed)["securityLabel"]]
    assert [one["code"] for one in held] == ["R", "INVISIBLE_PATIENT"] and held[1]["system"] == a07
    assert check(record(signed)) == []
    received(signed)
    correct(signed, "Contrôle à 1 semaine.", meta={"security": labels})
    again = {obx.text(3): obx.text(5) for obx in message(signed, PFI).all("OBX")}
    assert (again["INVISIBLE_PATIENT"], again["MODIF_CONF_CODE"]) == ("Y", "N"), "it is hidden as it was"
    received(signed)
    taken_back = {"status": "entered-in-error", "extension": because("mauvaise patiente"), "meta": {"security": labels}}
    put(signed, EXPERT, read(signed, "DiagnosticReport/r") | taken_back)
    gone = message(signed, DPI)
    assert gone.text("MSH-9.2") == "T04"
    assert next(one for one in gone.all("OBX") if one.text(3) == "INVISIBLE_PATIENT").text(5) == "Y"


A07 = "urn:oid:1.2.250.1.213.1.1.4.13"
HIDDEN = {"security": [{"system": A07, "code": "INVISIBLE_PATIENT"}]}


def metadata(hub: Hub, lane: str = PFI) -> dict[str, str]:
    return {obx.text(3): obx.text(5) for obx in message(hub, lane).all("OBX")}


def test_a_correction_that_speaks_of_no_label_hides_what_was_hidden_and_a_normal_one_lifts_it(signed: Hub) -> None:
    correct(signed, meta=HIDDEN)
    received(signed)
    correct(signed, "Contrôle à 1 semaine.")
    told = metadata(signed)
    assert (told["INVISIBLE_PATIENT"], told["MODIF_CONF_CODE"]) == ("Y", "N")
    stored = hubs.stored(signed, "DiagnosticReport/r")
    assert stored is not None and stored.resource()["meta"]["security"] == HIDDEN["security"]
    received(signed)
    correct(signed, "Contrôle à 1 semaine.", meta={"tag": [{"code": "x"}]} | {"security": [{"code": "N"}]})
    told = metadata(signed)
    assert (told["INVISIBLE_PATIENT"], told["MODIF_CONF_CODE"]) == ("N", "Y")
    assert "securityLabel" not in record(signed)


def test_a_report_hidden_in_preparation_is_signed_hidden_unless_a_label_lifts_it(hub: Hub) -> None:
    asked(hub, state="in_progress")
    written = hubs.opinion(hub)
    put(hub, EXPERT, written | {"status": "preliminary", "meta": HIDDEN})
    put(hub, EXPERT, written | {"status": "preliminary", "conclusion": "Terme à revoir."})
    put(hub, EXPERT, written)
    stored = hubs.stored(hub, "DiagnosticReport/r")
    assert stored is not None and stored.resource()["meta"]["security"] == HIDDEN["security"]
    assert [one["coding"][0]["code"] for one in record(hub)["securityLabel"]] == ["N", "INVISIBLE_PATIENT"]
    assert metadata(hub)["INVISIBLE_PATIENT"] == "Y"
    asked(hub, "s", 1, state="in_progress")
    put(hub, EXPERT, hubs.opinion(hub, "s") | {"status": "preliminary", "meta": HIDDEN})
    put(hub, EXPERT, hubs.opinion(hub, "s") | {"meta": {"security": [{"code": "N"}]}})
    (shown,) = found(hub, "DocumentReference", "related=DiagnosticReport/s&status=current")
    assert "securityLabel" not in shown


def test_a_report_said_again_or_withdrawn_without_its_labels_keeps_them(signed: Hub) -> None:
    correct(signed, meta=HIDDEN)
    received(signed)
    put(signed, EXPERT, read(signed, "DiagnosticReport/r"))
    assert waiting(signed) == {}, "the same again"
    withdraw(signed)
    told = metadata(signed)
    assert (message(signed, PFI).text("MSH-9.2"), told["INVISIBLE_PATIENT"]) == ("T04", "Y")


def test_a_version_of_before_the_labels_is_compared_by_what_its_document_says(signed: Hub) -> None:
    restricted = {"security": [{"code": "R"}]}
    correct(signed, meta=restricted)
    assert metadata(signed)["MODIF_CONF_CODE"] == "Y"
    received(signed)
    older = {name: value for name, value in record(signed).items() if name != "securityLabel"}
    signed.store.write(SYSTEM, lambda tx: tx.update(older, index.rows(older)))
    correct(signed, "Contrôle à 1 semaine.")
    assert metadata(signed)["MODIF_CONF_CODE"] == "N", "restricted before, restricted now"


def test_who_writes_a_report_is_told_what_it_leaves_out_and_where_it_cannot_say_who_may_not_see_it(hub: Hub) -> None:
    flavour = [{"coding": [{"system": "urn:passerelle:profil", "code": "plain-oru"}]}]
    put(hub, SYSTEM, read(hub, "Endpoint/dpi") | {"payloadType": flavour})
    asked(hub, state="in_progress")
    labels = {
        "security": [{"code": "R"}, {"system": A07, "code": "INVISIBLE_PATIENT"}, {"system": "urn:x", "code": "PSY"}]
    }
    (done, *_) = put(hub, EXPERT, hubs.opinion(hub) | {"meta": labels, "specimen": [{"display": "Sang"}]})
    told = " / ".join(done.notes)
    whom = read(hub, "Endpoint/dpi")["name"]
    hidden = [
        f"Confidentialité non transmise à {whom} : son profil plain-oru n'a pas de place pour « {words} »."
        for words in ("Non visible par le patient", "Restreint")
    ]
    assert all(one in done.notes for one in hidden) and "the label 'PSY' has no place in the documents" in told
    assert "DiagnosticReport.specimen: stays in the record" in told and "OBX-5" not in told
    assert [one for one in notes(hub) if one in hidden] == hidden, "the case keeps who may not see it"
    assert case_notes.not_reached(read(hub, "Task/r")) == []


def test_a_sign_that_the_charset_of_a_site_lacks_is_told_to_who_writes_the_report(new_hub: Callable[..., Hub]) -> None:
    hub = new_hub(site={"charset": "8859/15"})
    asked(hub, state="in_progress")
    patient = read(hub, "Patient/patient-01")
    name = patient["name"][0] | {"family": patient["name"][0]["family"] + "Ł"}
    hubs.write_past_the_rules(hub, patient | {"name": [name, *patient["name"][1:]]})
    (done, *_) = put(hub, EXPERT, hubs.opinion(hub))
    assert [one for one in done.notes if one.startswith("lps-1.1, ") and "'Ł' is not in 8859/15" in one]


def test_a_label_that_would_hide_nothing_is_refused(signed: Hub) -> None:
    with pytest.raises(Invalid, match="MASQUE_PS"):
        correct(signed, meta={"security": [{"system": "urn:oid:1.2.250.1.213.1.1.4.13", "code": "MASQUE"}]})


def test_the_next_version_stands_in_the_place_of_the_one_before(signed: Hub) -> None:
    first = record(signed)
    correct(signed)
    second = record(signed)
    old = read(signed, f"DocumentReference/{first['id']}")
    assert old["status"] == "superseded"
    assert second["relatesTo"] == [{"code": "replaces", "target": {"reference": f"DocumentReference/{first['id']}"}}]
    assert check(second) == [] and check(old) == []
    headers = [etree.fromstring(clinical(signed, one)) for one in (first, second)]
    space = {"h": "urn:hl7-org:v3"}
    sets, numbers = ([one.find(f"h:{tag}", space) for one in headers] for tag in ("setId", "versionNumber"))
    assert sets[0].get("root") == sets[1].get("root")
    assert [one.get("value") for one in numbers] == ["1", "2"]
    link = headers[1].find("h:relatedDocument", space)
    assert link.get("typeCode") == "RPLC"
    assert link.find("h:parentDocument/h:id", space).get("root") == oid_of(first["id"])
    assert [one for one in check_header(clinical(signed, second)) if one.severity == "error"] == []
    correct(signed, "Contrôle à 1 semaine.")
    assert record(signed)["relatesTo"][0]["target"]["reference"] == f"DocumentReference/{second['id']}"


def test_the_mail_of_a_correction_says_so_to_people_and_to_software(signed: Hub) -> None:
    old = next(one for one in hubs.deliveries(signed) if one.lane == MAIL)
    first = envelope.read(payload(signed, old))
    correct(signed, extension=because("erreur de mesure"))
    mail = letter(signed)
    assert mail.subject.startswith("[Annule et remplace] XDM/1.0/DDM+CR de télémédecine MARTIN-TEST")
    raw = payload(signed, waiting(signed)[MAIL]).decode("ascii")
    assert f"In-Reply-To: <{old.id}@ch-demo.mssante.fr>" in raw
    assert "annule et remplace" in mail.text and "erreur de mesure" in mail.text
    assert mail.xdm is not None and first.xdm is not None
    described, before = (one.xdm.submission.entries[0].id for one in (mail, first))
    links = [
        one
        for one in etree.fromstring(archived(raw.encode(), "METADATA.XML")).iter("{*}Association")
        if one.get("associationType", "").endswith(":RPLC")
    ]
    assert [(one.get("sourceObject"), one.get("targetObject")) for one in links] == [(described, before)]


def test_the_documents_and_the_software_are_told_why(signed: Hub) -> None:
    correct(signed, extension=because("erreur de mesure"))
    told = message(signed, DPI).all("OBX")[1]
    assert told.text(3, 2).startswith("[Annule et remplace] XDM/1.0/DDM+")
    carried = etree.fromstring(clinical(signed, record(signed))).findtext(".//{urn:hl7-org:v3}nonXMLBody/{*}text")
    text = "".join(page.extract_text() for page in PdfReader(io.BytesIO(base64.b64decode(carried))).pages)
    assert "Motif de la correction : erreur de mesure" in text


def test_a_correction_is_traced_with_its_reason_and_the_case_stays_completed(signed: Hub) -> None:
    correct(signed, extension=because("erreur de mesure"))
    told = next(
        one
        for one in found(signed, "Provenance", "target=DiagnosticReport/r")
        if one["activity"]["coding"][0]["code"] == "amend"
    )
    assert told["reason"] == [{"text": "erreur de mesure"}]
    assert told["entity"] == [{"role": "revision", "what": {"reference": "DiagnosticReport/r/_history/1"}}]
    assert told["agent"][0]["who"]["reference"] == "PractitionerRole/garnier"
    assert read(signed, "ServiceRequest/r")["status"] == "completed"
    assert len(notes(signed)) == 1
    assert "la version 2 annule et remplace la précédente (motif : erreur de mesure)." in notes(signed)[0]
    assert case_notes.not_reached(read(signed, "Task/r")) == []
    lines = [line["text"] for line in story.trace(signed.store, {"id": "r"})]
    for word in ("avis demandé", "demande prise en charge", "compte rendu signé", "compte rendu corrigé"):
        assert any(word in line for line in lines), word


def test_who_never_received_the_first_version_gets_the_second_as_new(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub, DPI)
    correct(hub)
    given_up = [one for one in hubs.deliveries(hub) if one.state == "cancelled"]
    assert {one.lane for one in given_up} == {PFI, MAIL}
    assert all("nobody had received it" in one.error for one in given_up)
    assert message(hub, DPI).text("MSH-9.2") == "T10"
    new = message(hub, PFI)
    assert (new.text("MSH-9.2"), new.text("ORC-1"), new.text("TXA-13")) == ("T02", "NW", "")
    assert letter(hub).subject.startswith("XDM/1.0/DDM+")
    received(hub)
    correct(hub, "Encore autre.")
    assert {message(hub, lane).text("MSH-9.2") for lane in (DPI, PFI)} == {"T10"}


def test_a_correction_nobody_received_is_followed_by_one_that_replaces_what_they_hold(signed: Hub) -> None:
    first = record(signed)
    correct(signed)
    correct(signed, "Troisième.")
    for lane in (DPI, PFI):
        assert message(signed, lane).text("TXA-13") == oid_of(first["id"])
    states = sorted(one.state for one in hubs.deliveries(signed) if one.lane == DPI)
    assert states == ["cancelled", "queued", "sent"]


@pytest.mark.parametrize(
    ("attempt", "trigger"),
    [
        (("retry", "transient"), "T02"),
        (("error", "permanent"), "T02"),
        (("retry", "ambiguous"), "T10"),
        (("interrupted", ""), "T10"),
        (("", ""), "T10"),
    ],
)
def test_what_may_have_arrived_counts_as_received(hub: Hub, attempt: tuple[str, str], trigger: str) -> None:
    asked(hub, state="completed")
    one = waiting(hub)[DPI]
    tried = (
        "INSERT INTO attempt (delivery_id, n, worker, token, started_at, outcome, error_class) VALUES (?,1,'w',1,1,?,?)"
    )
    hub.store.write(SYSTEM, lambda tx: tx.view.db.run(tried, (one.id, *attempt)))
    correct(hub)
    last = max((d for d in hubs.deliveries(hub) if d.lane == DPI), key=lambda d: d.lane_seq)
    assert parse(payload(hub, last)).text("MSH-9.2") == trigger


def test_what_a_person_keeps_back_stays_and_what_follows_waits_behind_it(hub: Hub) -> None:
    asked(hub, state="completed")
    held = waiting(hub)[DPI]
    outbox.outbox_hold(hub.store, {"id": held.id, "reason": "relire"})
    correct(hub)
    assert outbox.outbox_show(hub.store, {"id": held.id})["state"] == "held"
    new = waiting(hub)[DPI]
    assert parse(payload(hub, new)).text("MSH-9.2") == "T02"
    assert "waits behind" in outbox.outbox_show(hub.store, {"id": new.id})["why"]


def test_a_first_version_that_leaves_at_the_last_moment_is_replaced(hub: Hub) -> None:
    asked(hub, state="completed")
    late = meddled(hub, lambda _: received(hub, DPI))
    put(late, EXPERT, read(hub, "DiagnosticReport/r") | {"status": "amended", "conclusion": "Autre."})
    assert message(hub, DPI).text("MSH-9.2") == "T10"
    assert message(hub, PFI).text("MSH-9.2") == "T02"


def test_a_new_addressee_gets_the_correction_as_a_first_version(signed: Hub) -> None:
    lgc = next(one for one in people.structures("127.0.0.1:9", "127.0.0.1:10") if one["id"] == "dpi")
    lgc = lgc | {
        "id": "lgc",
        "name": "Logiciel du cabinet",
        "address": "mllp://127.0.0.1:11?application=LGC&facility=CABINET",
    }
    served = read(signed, "Organization/cabinet-lilas") | {"endpoint": [{"reference": "Endpoint/lgc"}]}
    put(signed, PARTNER, lgc, served)
    correct(signed)
    assert message(signed, "Endpoint/lgc").text("MSH-9.2") == "T02"
    assert message(signed, DPI).text("MSH-9.2") == "T10"


def test_who_moved_to_another_mailbox_gets_the_replacement_there_alone(signed: Hub) -> None:
    role = read(signed, "PractitionerRole/moreau")
    role["telecom"][0]["value"] = "c.moreau@ch-demo.mssante.fr"
    put(signed, PARTNER, role)
    correct(signed)
    mails = [one for one in waiting(signed).values() if one.protocol == "mail"]
    assert [one.lane for one in mails] == ["mssante:c.moreau@ch-demo.mssante.fr"]
    assert envelope.read(payload(signed, mails[0])).subject.startswith("[Annule et remplace] ")


def test_who_holds_a_version_and_has_no_road_now_is_told_in_the_case(signed: Hub) -> None:
    dpi = next(one for one in people.structures("127.0.0.1:9", "127.0.0.1:10") if one["id"] == "dpi")
    put(signed, PARTNER, dpi | {"status": "off"})
    correct(signed)
    assert DPI not in waiting(signed)
    (told,) = case_notes.not_reached(read(signed, "Task/r"))
    assert told.startswith("Correction du compte rendu non remise à Dossier patient")
    put(signed, PARTNER, dpi)
    received(signed)
    correct(signed, "Troisième.")
    oldest = min(found(signed, "DocumentReference"), key=lambda one: one["date"])
    assert message(signed, DPI).text("TXA-13") == oid_of(oldest["id"]), "it still holds the first version"
    assert "coding" not in read(signed, "Task/r")["businessStatus"], "everybody has it now"


def test_documents_from_before_the_record_are_taken_as_received(signed: Hub) -> None:
    old = {name: value for name, value in record(signed).items() if name != "extension"}
    roads = (mail_road("a@b.mssante.fr", "Practitioner/a"), mail_road("c@d.mssante.fr", "Practitioner/c"))
    before = Held((old,), 1, (), (), recorded=False)
    told = follow(Plan(roads, ()), before, mailing=True).destinations
    assert [(road.trigger, road.replaces) for road in told] == [("T10", old["id"])] * 2


@pytest.mark.parametrize(
    ("who", "change", "place"),
    [
        (COLLEAGUE, {"status": "amended", "conclusion": "Autre."}, "DiagnosticReport.resultsInterpreter"),
        (COLLEAGUE, {"status": "entered-in-error", "extension": because("x")}, "DiagnosticReport.resultsInterpreter"),
        (REQUESTER, {"status": "amended", "conclusion": "Autre."}, "DiagnosticReport.status"),
        (ADMIN, {"status": "amended", "conclusion": "Autre."}, "DiagnosticReport.status"),
        (ADMIN, {"status": "entered-in-error"}, "DiagnosticReport.extension"),
        (EXPERT, {"status": "amended", "effectiveDateTime": "2026-01-01T10:00:00Z"}, "DiagnosticReport.conclusion"),
        (EXPERT, {"status": "amended", "conclusion": "A", "effectiveDateTime": "2026-01-01T10:00:00Z"},
         "DiagnosticReport.effectiveDateTime"),
        (EXPERT, {"status": "amended", "conclusion": "A", "code": {"text": "Autre chose"}}, "DiagnosticReport.code"),
        (EXPERT, {"status": "amended", "conclusion": "A", "performer": [{"reference": "PractitionerRole/benali"}]},
         "DiagnosticReport.performer"),
        (EXPERT, {"status": "entered-in-error", "extension": [*because("x"), {"url": "urn:x", "valueBoolean": True}]},
         "DiagnosticReport"),
        (EXPERT, {"status": "amended"}, "DiagnosticReport.conclusion"),
        (EXPERT, {"status": "amended", "conclusion": ""}, "DiagnosticReport.conclusion"),
        (EXPERT, {"status": "amended", "presentedForm": [{"title": "x"}]}, "DiagnosticReport.conclusion"),
        (EXPERT, {"status": "amended", "conclusion": "A", "subject": {"reference": "Patient/patient-02"}},
         "DiagnosticReport.subject"),
        (EXPERT, {"status": "amended", "conclusion": "A",
                  "resultsInterpreter": [{"reference": "PractitionerRole/benali"}]},
         "DiagnosticReport.resultsInterpreter"),
        (EXPERT, {"status": "entered-in-error"}, "DiagnosticReport.extension"),
        (EXPERT, {"status": "entered-in-error", "extension": because(" ")}, "DiagnosticReport.extension"),
        (EXPERT, {"status": "entered-in-error", "extension": because("x"), "conclusion": "A"}, "DiagnosticReport"),
        (EXPERT, {"status": "final", "conclusion": "Autre."}, "DiagnosticReport"),
        (EXPERT, {"status": "cancelled"}, "DiagnosticReport"),
        (EXPERT, {"status": "preliminary"}, "DiagnosticReport"),
    ],
)  # fmt: skip
def test_what_is_no_correction_of_ones_own_report_is_refused(
    signed: Hub, who: Caller, change: Resource, place: str
) -> None:
    put(signed, SYSTEM, read(signed, "PractitionerRole/benali") | {"active": True})
    before = hubs.deliveries(signed)
    wanted = {name: value for name, value in (read(signed, "DiagnosticReport/r") | change).items() if value != ""}
    with pytest.raises((RuleBroken, Invalid)) as told:
        put(signed, who, wanted)
    assert (told.value.status, told.value.issues[0].expression) == (422, place)
    assert hubs.deliveries(signed) == before and notes(signed) == []


def test_a_correction_said_again_sends_nothing_again(signed: Hub) -> None:
    first = read(signed, "DiagnosticReport/r")
    wanted = first | {"status": "corrected", "conclusion": "Contrôle à 2 semaines."}
    put(signed, EXPERT, wanted)
    assert read(signed, "DiagnosticReport/r")["issued"] > first["issued"], "signed again, now"
    before = hubs.deliveries(signed)
    for again in (wanted, {name: value for name, value in wanted.items() if name != "issued"}):
        (done,) = put(signed, EXPERT, again)
        assert done.stored is not None and (done.status, done.stored.version) == (200, 2)
    assert hubs.deliveries(signed) == before


def test_nobody_else_writes_who_got_a_document(signed: Hub) -> None:
    forged = record(signed) | {"id": "forged"}
    with pytest.raises(RuleBroken, match="told by this server") as told:
        put(signed, PARTNER, {name: value for name, value in forged.items() if name != "meta"})
    assert told.value.issues[0].expression == "DocumentReference.extension[0]"
    with pytest.raises(RuleBroken, match="rests on"):
        put(signed, PARTNER, record(signed) | {"status": "superseded"})


# --- rendered again for one destination ------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [correct, withdraw], ids=["correction", "withdrawal"])
def test_a_held_replacement_or_recall_is_rendered_again_as_what_it_is(signed: Hub, act: Callable[[Hub], None]) -> None:
    first = record(signed)
    act(signed)
    old = waiting(signed)[DPI]
    outbox.outbox_hold(signed.store, {"id": old.id})

    def context(snapshot: Snapshot) -> Context:
        handed = partial(overtaken.handed, snapshot)
        return Context(SYSTEM, view_of(snapshot), signed.settings, signed.sites, signed.clock(), handed)

    made = outbox.outbox_regenerate(signed.store, {"id": old.id}, context)
    again = message(signed, DPI)
    assert again.control_id == made["id"] != old.id
    assert again.text("MSH-9.2") == parse(payload(signed, old)).text("MSH-9.2")
    held = again.text("TXA-13") if act is correct else again.text("TXA-12")
    assert held == oid_of(first["id"])
    received(signed)
    if act is correct:
        correct(signed, "Troisième.")
        numbers = {one.text("TXA-13") for one in (message(signed, DPI), message(signed, PFI))}
        assert len(numbers) == 2, "each replaces the document it really got"
