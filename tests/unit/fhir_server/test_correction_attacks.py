"""What must not stop, divert or double a correction or a withdrawal: lost resources, forged records, late events."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import hubs
import pytest
from corrected import (
    DPI,
    MAIL,
    PFI,
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
from hubs import ADMIN, EXPERT, PARTNER, REQUESTER, SYSTEM, asked, found, meddled, opinion, put, read
from test_declared_doctor import DOCTOR, PRIVACY, declared, refusal

from fhir_server.changes import Hub, view_of
from fhir_server.delivery.workers import before_sending
from fhir_server.demo import people
from fhir_server.desk import outbox
from fhir_server.errors import Invalid, RuleBroken
from fhir_server.search import index
from fhir_server.store.leases import Outcome
from fhir_server.store.session import Snapshot
from fhir_server.teleexpertise import overtaken
from fhir_server.teleexpertise.case import Context
from fhir_server.teleexpertise.succession import DISTRIBUTED
from hl7v2.message import parse
from mappers.cda_to_report import expert_sent, requester_sent
from mappers.fhir_to_report import oid_of

Resource = dict[str, Any]
TRIED = (
    "INSERT INTO attempt (delivery_id, n, worker, token, started_at, outcome, error_class) "
    "VALUES (?, 1, 'w', 1, 1, 'retry', ?)"
)


def without(hub: Hub, reference: str, element: str) -> None:
    put(hub, PARTNER, {name: value for name, value in read(hub, reference).items() if name != element})


def run(hub: Hub, sql: str, *values: str) -> None:
    hub.store.write(SYSTEM, lambda tx: tx.view.db.run(sql, values))


def regenerate(hub: Hub, delivery: str) -> Any:
    def context(snapshot: Snapshot) -> Context:
        handed = partial(overtaken.handed, snapshot)
        return Context(SYSTEM, view_of(snapshot), hub.settings, hub.sites, hub.clock(), handed)

    return outbox.outbox_regenerate(hub.store, {"id": delivery}, context)


# --- what is lost since ----------------------------------------------------------------------------------------------


LOSSES: dict[str, Callable[[Hub], object]] = {
    "consent set inactive": lambda hub: put(hub, PARTNER, read(hub, "Consent/r") | {"status": "inactive"}),
    "later refusal": lambda hub: put(hub, PARTNER, people.consent("refus", 0) | {"provision": {"type": "deny"}}),
    "requester's RPPS": lambda hub: without(hub, "Practitioner/moreau", "identifier"),
    "requester's role": lambda hub: hubs.delete(hub, SYSTEM, "PractitionerRole/moreau"),
    "signer's RPPS": lambda hub: without(hub, "Practitioner/garnier", "identifier"),
    "FINESS of the signer's structure": lambda hub: without(hub, "Organization/ch-demo", "identifier"),
}


@pytest.mark.parametrize("act", [correct, withdraw], ids=["correction", "withdrawal"])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_what_is_lost_since_stops_neither(signed: Hub, loss: str, act: Callable[[Hub], None]) -> None:
    first = record(signed)
    LOSSES[loss](signed)
    act(signed)
    told = message(signed, DPI)
    assert MAIL in waiting(signed)
    held = told.text("TXA-13") if act is correct else told.text("TXA-12")
    assert held == oid_of(first["id"])
    assert letter(signed).subject.startswith("[Annule et remplace] " if act is correct else "[Retrait] ")


def test_a_correction_names_who_asked_and_signed_as_before_when_the_record_cannot(signed: Hub) -> None:
    first = clinical(signed, record(signed))
    without(signed, "Practitioner/garnier", "identifier")
    hubs.delete(signed, SYSTEM, "PractitionerRole/moreau")
    correct(signed)
    second = clinical(signed, record(signed))
    assert expert_sent(second) == expert_sent(first)
    assert requester_sent(second) == requester_sent(first) and requester_sent(second).specialty.code == "G15_50"


def test_a_first_signature_demands_what_a_correction_takes_from_it(hub: Hub) -> None:
    asked(hub, state="in_progress")
    without(hub, "Practitioner/garnier", "identifier")
    hubs.refused(Invalid, "Practitioner.identifier", lambda: put(hub, EXPERT, opinion(hub)))


@pytest.mark.parametrize("element", ["name", "birthDate", "gender", "extension"])
def test_a_withdrawal_takes_the_traits_that_were_sent_when_the_record_lost_them(signed: Hub, element: str) -> None:
    sent = {one.lane: parse(payload(signed, one)) for one in hubs.deliveries(signed) if one.protocol == "hl7"}
    bare = {name: value for name, value in read(signed, "Patient/patient-01").items() if name != element}
    hubs.write_past_the_rules(signed, bare)
    withdraw(signed)
    told = waiting(signed)
    assert MAIL in told and DPI in told
    for field in ("PID-5", "PID-7", "PID-8", "OBX-5.5"):
        assert message(signed, DPI).text(field) == sent[DPI].text(field), field
    assert letter(signed).subject == "[Retrait] CR de télémédecine MARTIN-TEST LUCIE 11/02/1994"
    lost = element == "extension"  # the INS is qualified by one: without it the number is not told any more
    assert (sent[DPI].text("PID-3") == message(signed, DPI).text("PID-3")) is not lost
    assert message(signed, PFI).text("PID-3.1") == sent[PFI].text("PID-3.1"), "the DMP has it under that INS"


def test_a_withdrawal_without_traits_or_documents_that_tell_them_names_the_trait(signed: Hub) -> None:
    emptied = {name: value for name, value in record(signed).items() if name != "content"}
    signed.store.write(SYSTEM, lambda tx: tx.update(emptied, index.rows(emptied)))
    hubs.write_past_the_rules(signed, {k: v for k, v in read(signed, "Patient/patient-01").items() if k != "name"})
    hubs.refused(Invalid, "Patient.name.where(use='official')", lambda: withdraw(signed))


def test_a_withdrawal_says_what_was_sent_of_those_who_wrote_and_asked(signed: Hub) -> None:
    sent = next(one for one in hubs.deliveries(signed) if one.lane == DPI)
    first = parse(payload(signed, sent))
    without(signed, "Practitioner/garnier", "identifier")
    withdraw(signed)
    told = message(signed, DPI)
    for field in ("PID-3", "PID-5", "TXA-4", "TXA-22", "OBR-2", "OBX-5.5"):
        assert told.text(field) == first.text(field), field
    assert [one.text(5) for one in told.all("PRT")] == [one.text(5) for one in first.all("PRT")]


# --- what is forged --------------------------------------------------------------------------------------------------


def forged(first: Resource) -> Resource:
    told = {"lane": "mssante:evil@evil.mssante.fr", "addressee": "mailto:evil@evil.mssante.fr", "held": first["id"]}
    parts = [{"url": name, "valueString": value} for name, value in told.items()]
    return {"url": DISTRIBUTED, "extension": [{"url": "destinataire", "extension": parts}]}


BARE = {
    "resourceType": "DocumentReference",
    "id": "forged",
    "status": "current",
    "content": [{"attachment": {"contentType": "text/plain", "title": "x"}}],
}
JOINED = {"context": {"related": [{"reference": "DiagnosticReport/r"}]}}


@pytest.mark.parametrize("who", [REQUESTER, PARTNER, SYSTEM, ADMIN], ids=["asker", "partner", "system", "admin"])
def test_nobody_slips_an_addressee_into_a_report(signed: Hub, who: Any) -> None:
    put(signed, who, BARE)
    extension = {"extension": [forged(record(signed))]}
    with pytest.raises(RuleBroken, match="told by this server"):
        put(signed, who, BARE | extension)
    with pytest.raises(RuleBroken, match="made by this server"):
        put(signed, who, BARE | JOINED)
    with pytest.raises(RuleBroken):
        put(signed, who, BARE | extension | JOINED)
    with pytest.raises(RuleBroken, match="told by this server"):
        put(signed, who, {name: value for name, value in record(signed).items() if name not in ("extension", "meta")})
    correct(signed)
    assert not [one for one in hubs.deliveries(signed) if "evil" in one.lane]


@pytest.mark.parametrize("key", ["forged", "7f1c3b1e-5f0a-4b53-9b7e-2d8d1a2b3c4d"])
def test_a_document_that_lay_there_before_is_no_version(hub: Hub, key: str) -> None:
    put(hub, REQUESTER, BARE | JOINED | {"id": key, "masterIdentifier": {"value": f"urn:uuid:{key}"}})
    asked(hub, state="completed")
    assert message(hub, DPI).text("MSH-9.2") == "T02" and notes(hub) == []
    received(hub)
    correct(hub)
    current = found(hub, "DocumentReference", "related=DiagnosticReport/r&status=current")
    (second,) = [one for one in current if one["id"] != key]
    assert [one["target"]["reference"] for one in second["relatesTo"]] != [f"DocumentReference/{key}"]
    assert message(hub, DPI).text("TXA-13") == oid_of(second["relatesTo"][0]["target"]["reference"].partition("/")[2])


def test_documents_from_before_the_record_are_known_by_the_step_that_made_them(signed: Hub) -> None:
    old = {name: value for name, value in record(signed).items() if name not in ("extension", "meta")}
    signed.store.write(SYSTEM, lambda tx: tx.update(old, index.rows(old)))
    withdraw(signed)
    told = waiting(signed)[DPI]
    assert message(signed, DPI).text("TXA-12") == oid_of(old["id"])
    outbox.outbox_hold(signed.store, {"id": told.id})
    made = regenerate(signed, told.id)
    assert message(signed, DPI).control_id == made["id"]
    assert message(signed, DPI).text("TXA-12") == oid_of(old["id"])


# --- who may not, or may ---------------------------------------------------------------------------------------------


def test_a_doctor_the_patient_opposes_since_gets_no_correction_but_the_withdrawal(hub: Hub) -> None:
    declared(hub, {"reference": "Practitioner/lefevre"})
    asked(hub, state="completed")
    received(hub)
    put(hub, PARTNER, refusal("Practitioner/lefevre", scope=PRIVACY))
    correct(hub)
    assert DOCTOR not in waiting(hub) and MAIL in waiting(hub)
    (told,) = [one for one in notes(hub) if "LEFEVRE" in one]
    assert told.startswith("Correction du compte rendu non remise à") and "opposition" in told
    declared(hub)
    received(hub)
    correct(hub, "Troisième.")
    assert DOCTOR not in waiting(hub), "neither when they are declared no more"
    withdraw(hub)
    assert DOCTOR in waiting(hub)


def test_the_signer_answers_for_a_report_after_leaving_the_group(signed: Hub) -> None:
    left = dataclasses.replace(EXPERT, groups=frozenset())
    wanted = read(signed, "DiagnosticReport/r") | {"status": "corrected", "conclusion": "Autre."}
    put(signed, left, wanted)
    (again,) = put(signed, left, wanted)
    assert again.status == 200 and message(signed, DPI).text("MSH-9.2") == "T10"


def test_an_administrator_takes_a_report_back_with_a_reason(signed: Hub) -> None:
    change = {"status": "entered-in-error", "extension": because("expert parti")}
    put(signed, ADMIN, read(signed, "DiagnosticReport/r") | change)
    assert message(signed, DPI).text("MSH-9.2") == "T04" and "expert parti" in letter(signed).text


def test_the_reason_of_an_earlier_correction_is_none_of_a_later_step(signed: Hub) -> None:
    correct(signed, extension=because("erreur de mesure"))
    received(signed)
    correct(signed, "Troisième.")
    assert "erreur de mesure" not in notes(signed)[-1] and "erreur de mesure" not in letter(signed).text
    told = [one for one in found(signed, "Provenance", "target=DiagnosticReport/r") if one.get("reason")]
    assert len(told) == 1
    with pytest.raises(Exception, match="say why the report is withdrawn now"):
        put(signed, EXPERT, read(signed, "DiagnosticReport/r") | {"status": "entered-in-error"})


# --- what happens late -----------------------------------------------------------------------------------------------


def test_a_first_version_a_person_keeps_is_cancelled_by_the_withdrawal_after_a_correction(hub: Hub) -> None:
    asked(hub, state="completed")
    held = waiting(hub)[DPI]
    outbox.outbox_hold(hub.store, {"id": held.id, "reason": "relire"})
    correct(hub)
    withdraw(hub)
    assert {one.state for one in hubs.deliveries(hub) if one.lane == DPI} == {"cancelled"}


def test_what_was_under_way_and_is_refused_late_was_never_received(hub: Hub) -> None:
    asked(hub, state="completed")
    first = waiting(hub)[DPI].id
    run(hub, "UPDATE delivery SET state = 'sending' WHERE id = ?", first)
    correct(hub)
    assert message(hub, DPI).text("MSH-9.2") == "T10"
    run(hub, TRIED, first, "transient")
    run(hub, "UPDATE delivery SET state = 'held', error_class = 'overtaken' WHERE id = ?", first)
    correct(hub, "Troisième.")
    assert message(hub, DPI).text("MSH-9.2") == "T02"
    withdraw(hub)
    assert {one.state for one in hubs.deliveries(hub) if one.lane == DPI} == {"cancelled"}


@pytest.mark.parametrize("act", [correct, withdraw], ids=["correction", "withdrawal"])
def test_what_was_under_way_when_its_report_changed_and_did_not_get_there_is_given_up(
    hub: Hub, act: Callable[[Hub], None]
) -> None:
    """The report is made anew for a third of a second: an attempt may be refused meanwhile."""
    asked(hub, state="completed")
    received(hub, PFI, MAIL)
    claim = hub.store.take("w", 30, before_sending)
    assert claim is not None and claim.lane == DPI
    refused = Outcome("retry", "transient", "refused", None, 0)
    act(meddled(hub, lambda store: store.finish(claim, refused)))
    states = {one.id: one.state for one in hubs.deliveries(hub) if one.lane == DPI}
    assert states.pop(claim.delivery.id) == "cancelled"
    if act is correct:
        assert list(states.values()) == ["queued"] and message(hub, DPI).text("MSH-9.2") == "T02"
    else:
        assert states == {}, "nobody is told to forget what they never had"


@pytest.mark.parametrize("why", ["kept", "unsure"])
def test_what_a_later_version_follows_is_not_rendered_again(hub: Hub, why: str) -> None:
    asked(hub, state="completed")
    first = waiting(hub)[DPI].id
    if why == "kept":
        outbox.outbox_hold(hub.store, {"id": first})
        correct(hub)
    else:
        run(hub, TRIED, first, "ambiguous")
        correct(hub)
        run(hub, "UPDATE delivery SET state = 'held', error_class = 'overtaken' WHERE id = ?", first)
        assert "cancel this one" in outbox.outbox_show(hub.store, {"id": first})["why"]
    before = len(hubs.deliveries(hub))
    with pytest.raises(RuleBroken, match="cancel this one"):
        regenerate(hub, first)
    assert len(hubs.deliveries(hub)) == before


def test_an_endpoint_that_names_another_application_is_somebody_new(signed: Hub) -> None:
    other = "mllp://10.0.0.9:2575?application=NOUVEAU&facility=AUTRE"
    put(signed, PARTNER, read(signed, DPI) | {"address": other})
    correct(signed)
    assert (message(signed, DPI).text("MSH-9.2"), message(signed, DPI).text("TXA-13")) == ("T02", "")
    assert [one for one in notes(signed) if "plus aucun chemin ne mène" in one]
    received(signed)
    withdraw(signed)
    (told,) = [one for one in hubs.deliveries(signed) if one.lane == DPI and one.state == "queued"]
    assert parse(payload(signed, told)).text("TXA-12") == oid_of(record(signed, "entered-in-error")["id"])
    assert [one for one in notes(signed) if "autre application" in one]


def test_a_consent_that_becomes_a_refusal_while_a_report_is_signed_is_seen(hub: Hub) -> None:
    declared(hub, {"reference": "Practitioner/lefevre"})
    permit = refusal("Practitioner/lefevre", scope=PRIVACY)
    put(hub, PARTNER, permit | {"provision": permit["provision"] | {"type": "permit"}})
    asked(hub, state="in_progress")
    late = meddled(hub, lambda _: put(hub, PARTNER, permit))
    put(late, EXPERT, opinion(hub))
    assert DOCTOR not in waiting(hub) and MAIL in waiting(hub)


def test_a_withdrawal_nobody_can_be_told_of_says_so(signed: Hub) -> None:
    for one in (DPI, "Endpoint/pfi"):
        put(signed, PARTNER, read(signed, one) | {"status": "off"})
    mute = dataclasses.replace(signed, settings=dataclasses.replace(signed.settings, smtp=""))
    withdraw(mute)
    assert read(signed, "Task/r")["statusReason"]["text"].startswith("Le retrait n'a pu être annoncé à personne")


def test_an_addition_is_called_one(signed: Hub) -> None:
    correct(signed, status="appended")
    assert notes(signed)[0].startswith("Compte rendu complété le ")
