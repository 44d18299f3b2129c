"""A signed report is withdrawn: each addressee is told to drop the version they hold, and nothing is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import hubs
import pytest
from corrected import (
    DPI,
    MAIL,
    PFI,
    because,
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
from hubs import ADMIN, EXPERT, PARTNER, SYSTEM, asked, directory, found, hub_on, opinion, put, read

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.desk import outbox
from fhir_server.errors import PasserelleError, RuleBroken
from fhir_server.store.engine import Store
from fhir_server.teleexpertise import notes as case_notes
from fhir_server.teleexpertise import overtaken
from hl7v2.message import parse
from mappers.fhir_to_report import oid_of


def test_who_holds_a_report_is_told_that_it_is_withdrawn(signed: Hub) -> None:
    first = record(signed)
    sent = {one.lane: parse(payload(signed, one)) for one in hubs.deliveries(signed) if one.protocol == "hl7"}
    withdraw(signed)
    for lane in (DPI, PFI):
        told = message(signed, lane)
        assert (told.text("MSH-9.2"), told.text("ORC-1"), told.text("OBX-11")) == ("T04", "CA", "D")
        assert told.text("TXA-12") == oid_of(first["id"]) and told.text("TXA-13") == ""
        assert told.text("PID-3") == sent[lane].text("PID-3")
        assert told.text("OBX-5.5") == sent[lane].text("OBX-5.5"), "the very document that is taken back"
    mail = letter(signed)
    assert mail.subject == "[Retrait] CR de télémédecine MARTIN-TEST LUCIE 11/02/1994"
    assert "mauvaise patiente" in mail.text and "ne doit plus être utilisé" in mail.text
    assert mail.xdm is None and mail.attachments == ()
    assert b"X-MSS-CODECDA" not in payload(signed, waiting(signed)[MAIL])


def test_a_withdrawal_marks_the_documents_and_keeps_their_content(signed: Hub) -> None:
    contents = [part["attachment"]["url"] for part in record(signed)["content"]]
    withdraw(signed)
    assert record(signed, "entered-in-error")["content"]
    assert all(read(signed, url)["data"] for url in contents)
    assert read(signed, "ServiceRequest/r")["status"] == "completed"
    assert notes(signed)[0].startswith("Compte rendu retiré le ") and notes(signed)[0].endswith(
        "(motif : mauvaise patiente)."
    )
    steps = [one["activity"]["coding"][0]["code"] for one in found(signed, "Provenance", "target=DiagnosticReport/r")]
    assert sorted(steps) == ["report", "withdraw"]
    with pytest.raises(RuleBroken, match="rests on"):
        put(signed, ADMIN, record(signed, "entered-in-error") | {"status": "current"})
    for url in contents:
        with pytest.raises(RuleBroken):
            hubs.delete(signed, ADMIN, url)


def test_each_addressee_is_asked_to_drop_the_version_they_hold(signed: Hub) -> None:
    first = record(signed)
    correct(signed)
    received(signed, DPI)
    withdraw(signed)
    second = record(signed, "entered-in-error")
    assert message(signed, DPI).text("TXA-12") == oid_of(second["id"])
    assert message(signed, PFI).text("TXA-12") == oid_of(first["id"]), "it never had the second"
    assert {one.state for one in hubs.deliveries(signed)} == {"sent", "queued", "cancelled"}


def test_a_report_nobody_received_is_withdrawn_in_silence(hub: Hub) -> None:
    asked(hub, state="completed")
    outbox.outbox_hold(hub.store, {"id": waiting(hub)[DPI].id, "reason": "relire"})
    withdraw(hub)
    assert {one.state for one in hubs.deliveries(hub)} == {"cancelled"} and len(hubs.deliveries(hub)) == 3


@pytest.mark.parametrize("code", ["plain-oru", "plain-mdm", "push-2.1-oru"])
def test_every_flavour_tells_the_same_action(hub: Hub, code: str) -> None:
    dpi = next(one for one in people.structures("127.0.0.1:9", "127.0.0.1:10") if one["id"] == "dpi")
    wanted = [{"coding": [{"system": "urn:passerelle:profil", "code": code}]}]
    put(hub, PARTNER, dpi | {"payloadType": wanted}, read(hub, "Endpoint/pfi") | {"status": "off"})
    asked(hub, state="completed")
    received(hub)
    told = []
    for act in (correct, withdraw):
        act(hub)
        said = message(hub, DPI)
        told.append((said.text("MSH-9.2"), said.text("OBX-11"), said.text("OBR-25") or said.text("TXA-19")))
        received(hub)
    wanted_words = {
        "plain-oru": [("R01", "C", "C"), ("R01", "D", "X")],
        "plain-mdm": [("T10", "C", "AV"), ("T04", "D", "CA")],
        "push-2.1-oru": [("R01", "C", "C"), ("R01", "D", "X")],
    }
    assert told == wanted_words[code]


def test_a_withdrawn_report_stays_withdrawn(signed: Hub) -> None:
    withdraw(signed)
    held = read(signed, "DiagnosticReport/r")
    before = hubs.deliveries(signed)
    (done,) = put(signed, EXPERT, held)
    assert (done.status, done.stored and done.stored.version) == (200, 2)
    for change in ({"status": "final"}, {"status": "amended", "conclusion": "A"}, {"extension": because("autre")}):
        with pytest.raises(PasserelleError, match="was withdrawn"):
            put(signed, EXPERT, held | change)
    assert hubs.deliveries(signed) == before
    with pytest.raises(RuleBroken):
        put(signed, EXPERT, opinion(signed, id="second"))


def test_a_recall_is_not_held_as_overtaken_by_itself(signed: Hub) -> None:
    withdraw(signed)
    put(signed, EXPERT, read(signed, "DiagnosticReport/r"))
    with signed.store.read(SYSTEM) as snapshot:
        assert [overtaken.overtaken(snapshot, one) for one in waiting(signed).values()] == ["", "", ""]
        sent = [one for one in hubs.deliveries(signed) if one.state == "sent"]
        assert all("is entered-in-error now" in overtaken.overtaken(snapshot, one) for one in sent)


def test_a_mail_operator_that_is_gone_is_told(open_url: Callable[..., Store], sqlite_url: str) -> None:
    hub = directory(hub_on(open_url(sqlite_url)))
    asked(hub, state="completed")
    received(hub)
    mute = dataclasses.replace(hub, settings=dataclasses.replace(hub.settings, smtp=""))
    withdraw(mute)
    assert set(waiting(hub)) == {DPI, PFI}
    (told,) = case_notes.not_reached(read(hub, "Task/r"))
    assert told.startswith("Retrait du compte rendu non remis à claire.moreau@") and "réglage smtp" in told
