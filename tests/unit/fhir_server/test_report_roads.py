"""What a report is told as when its road changed: what never came, who holds it by an older record, a platform that
became something else, and the DMP behind platforms that come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from corrected import DPI, MAIL, PFI, correct, message, notes, payload, received, record, waiting, withdraw
from hubs import PARTNER, SYSTEM, asked, directory, found, hub_on, put
from test_correction_attacks import regenerate, run
from test_correction_releases import endpoint_replaced, mailbox_moved, shown, taken
from test_distribution import endpoint, flag
from test_report_holds import INS, SECOND, actions, in_doubt, other_platform, renumbered

from fhir_server.changes import Hub
from fhir_server.delivery.workers import before_sending
from fhir_server.demo import people
from fhir_server.desk import outbox
from fhir_server.errors import RuleBroken
from fhir_server.search import index
from fhir_server.store.engine import Store
from fhir_server.store.leases import Outcome
from fhir_server.store.resources import prepare
from fhir_server.store.session import Tx
from hl7v2 import ack
from hl7v2.ack import AckError
from mappers.fhir_to_report import oid_of

Resource = dict[str, Any]


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


@pytest.fixture
def either(open_url: Callable[..., Store], database_url: str) -> Hub:
    """On one database, then the other."""
    return directory(hub_on(open_url(database_url)))


def ended(hub: Hub, delivery: str, outcome: Outcome) -> None:
    """The delivery is sent now, and its conversation ends so."""
    run(hub, "UPDATE lane SET lease_until = 0, ready_at = 0")
    while (claim := hub.store.take("w", 30, before_sending)) is not None:
        if claim.delivery.id == delivery:
            hub.store.finish(claim, outcome)
            return
    raise AssertionError(f"{delivery} does not leave: {shown(hub, delivery)['error']}")


def refused(hub: Hub, delivery: str, code: str, business: str, place: str = "") -> None:
    """The application at the other end answers AE with these codes of ERR-3 and ERR-5."""
    with hub.store.read(SYSTEM) as snapshot:
        sent = snapshot.payload(delivery)
    said = [AckError(place, code, "refused", business=business)]
    answer = ack.build(sent, "AE", now=hub.clock(), control_id="A1", errors=said)
    ended(hub, delivery, Outcome("error", "permanent", f"AE {code}", answer))


# --- what never came -------------------------------------------------------------------------------------------------


def given_up_then_refused(hub: Hub, code: str, business: str, place: str = "") -> tuple[str, str]:
    """A first version in doubt, which a person gives up, and its replacement by another lane, which the application
    refuses; the lane and the id of the replacement."""
    first = in_doubt(hub, DPI)
    road = endpoint_replaced(hub)
    put(hub, SYSTEM, endpoint("dpi", status="off"))
    correct(hub)
    second = waiting(hub)[road].id
    assert second not in taken(hub)
    outbox.outbox_cancel(hub.store, {"id": first})
    outbox.outbox_release(hub.store, {"id": second})
    refused(hub, second, code, business, place)
    return road, second


UNKNOWN = pytest.mark.parametrize(("code", "business", "place"), [("207", "900", ""), ("204", "", "TXA-13")])


@UNKNOWN
def test_a_replacement_refused_since_its_original_never_came_is_made_again_as_a_first_document(
    hub: Hub, code: str, business: str, place: str
) -> None:
    road, second = given_up_then_refused(hub, code, business, place)
    version = record(hub)["id"]
    new = regenerate(hub, second)["id"]
    again = message(hub, road)
    assert (again.text("MSH-9.2"), again.text("TXA-13")) == ("T02", "")
    ended(hub, new, Outcome("sent"))
    (held,) = [one["id"] for one in found(hub, "DocumentReference", "status=current") if one["id"] != version]
    correct(hub, "Contrôle à 3 semaines.")
    third = message(hub, road)
    assert (third.text("MSH-9.2"), third.text("TXA-13")) == ("T10", oid_of(held)), "that one came"


def test_what_is_made_again_as_a_first_document_stays_one_when_it_is_made_once_more(hub: Hub) -> None:
    road, second = given_up_then_refused(hub, "207", "900")
    new = regenerate(hub, second)["id"]
    refused(hub, new, "101", "")
    regenerate(hub, new)
    assert message(hub, road).text("MSH-9.2") == "T02"


@pytest.mark.parametrize("act", [outbox.outbox_retry, outbox.outbox_release])
def test_what_is_made_again_as_a_first_document_may_be_tried_again_by_a_person(
    hub: Hub, act: Callable[[Store, dict[str, Any]], object]
) -> None:
    _, second = given_up_then_refused(hub, "207", "900")
    new = regenerate(hub, second)["id"]
    if act is outbox.outbox_release:
        outbox.outbox_hold(hub.store, {"id": new})
    else:
        refused(hub, new, "101", "")
    act(hub.store, {"id": new})
    assert new in taken(hub)


SOMETHING_ELSE = [
    ("101", "", ""),
    ("205", "", ""),
    ("207", "902", ""),
    ("204", "904", ""),
    ("207", "", ""),  # whatever went wrong there
    ("204", "", ""),
    ("204", "", "PID-3"),  # the patient
]


@pytest.mark.parametrize(("code", "business", "place"), SOMETHING_ELSE)
def test_a_replacement_that_is_refused_for_something_else_is_made_again_as_one(
    hub: Hub, code: str, business: str, place: str
) -> None:
    road, second = given_up_then_refused(hub, code, business, place)
    regenerate(hub, second)
    assert message(hub, road).text("MSH-9.2") == "T10", "the original may be there"


def test_a_replacement_made_of_its_own_original_says_nothing_of_it_when_it_is_refused(hub: Hub) -> None:
    """Nobody gave the original up: it was cancelled for what was made of it, and may have arrived."""
    first = in_doubt(hub, DPI)
    outbox.outbox_hold(hub.store, {"id": first})
    again = regenerate(hub, first)["id"]
    assert message(hub, DPI).text("MSH-9.2") == "T10"
    refused(hub, again, "207", "900")
    regenerate(hub, again)
    assert message(hub, DPI).text("MSH-9.2") == "T10"


def test_a_replacement_that_is_refused_though_its_original_came_is_made_again_as_one(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    correct(hub)
    second = waiting(hub)[DPI].id
    refused(hub, second, "207", "900")
    regenerate(hub, second)
    assert message(hub, DPI).text("MSH-9.2") == "T10", "nobody said that it did not come"


def test_a_letter_that_a_mail_server_refuses_says_nothing_of_the_one_before(hub: Hub) -> None:
    first = in_doubt(hub, MAIL)
    road = mailbox_moved(hub)
    correct(hub)
    second = waiting(hub)[road].id
    assert second not in taken(hub)
    outbox.outbox_cancel(hub.store, {"id": first})
    outbox.outbox_release(hub.store, {"id": second})
    ended(hub, second, Outcome("error", "permanent", "550 no such user", None))
    regenerate(hub, second)
    assert f"<{first}@".encode() in payload(hub, waiting(hub)[road]), "In-Reply-To"


# --- records of before -----------------------------------------------------------------------------------------------


def of_before(hub: Hub) -> None:
    """The record of the report as releases before this one wrote it: the platform is an application like any."""
    documents = found(hub, "DocumentReference", "related=DiagnosticReport/r")
    for document in documents:
        for line in document["extension"][0]["extension"]:
            parts = [one for one in line.get("extension", ()) if one["url"] != "flavour"]
            for one in parts:
                one["valueString"] = "hl7:PFI|CH-DEMO" if one["valueString"] == "dmp" else one["valueString"]
            if parts:
                line["extension"] = parts

    def work(tx: Tx) -> None:
        for document in documents:
            tx.update(prepare(document), index.rows(document))

    hub.store.write(SYSTEM, work)


def test_what_a_platform_of_before_fed_the_dmp_with_is_replaced_by_the_next_one(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    of_before(hub)
    version = oid_of(record(hub)["id"])
    other_platform(hub, PFI, SECOND, status="off")
    correct(hub)
    assert actions(hub) == {SECOND: ("T10", version)}


def test_a_platform_of_before_goes_before_one_that_is_listed_first(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    of_before(hub)
    version = oid_of(record(hub)["id"])
    other_platform(hub, SECOND, PFI)
    correct(hub)
    assert actions(hub) == {PFI: ("T10", version)}


def test_what_a_platform_of_before_fed_the_dmp_with_is_taken_back_by_the_next_one(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    of_before(hub)
    other_platform(hub, PFI, SECOND, status="off")
    withdraw(hub)
    assert [trigger for trigger, _ in actions(hub).values()] == ["T04"] and SECOND in actions(hub)


def test_what_was_kept_back_of_before_is_not_let_go_after_the_next_platform_fed_the_dmp(hub: Hub) -> None:
    asked(hub, state="completed")
    first = waiting(hub)[PFI].id
    outbox.outbox_hold(hub.store, {"id": first})
    of_before(hub)
    other_platform(hub, PFI, SECOND, status="off")
    correct(hub)
    with pytest.raises(RuleBroken, match="was made instead and hands the report over as a first document"):
        outbox.outbox_release(hub.store, {"id": first})


def test_an_application_that_became_a_platform_holds_what_it_got_as_an_application(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    put(hub, SYSTEM, endpoint("pfi", status="off"), endpoint("dpi", payloadType=endpoint("pfi")["payloadType"]))
    version = oid_of(record(hub)["id"])
    correct(hub)
    sent = message(hub, DPI)
    assert (sent.text("MSH-9.2"), sent.text("TXA-13")) == ("T10", version), "the DMP has it, by another platform"
    assert flag(sent, "DESTDMP") == "Y"
    assert any("Correction du compte rendu non remise à Dossier patient" in one for one in notes(hub)), notes(hub)


def test_what_an_application_got_is_not_taken_back_as_if_it_were_the_dmp(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub, DPI)
    put(hub, SYSTEM, endpoint("pfi", status="off"), endpoint("dpi", payloadType=endpoint("pfi")["payloadType"]))
    withdraw(hub)
    assert DPI not in waiting(hub)
    assert any("Retrait du compte rendu non remis" in one and DPI in one for one in notes(hub)), notes(hub)


# --- a platform that became something else ---------------------------------------------------------------------------


def test_a_platform_that_became_a_patient_file_gets_a_first_document_and_that_the_dmp_is_left_is_told(
    hub: Hub,
) -> None:
    asked(hub, state="completed")
    received(hub)
    put(hub, SYSTEM, endpoint("pfi", payloadType=endpoint("dpi")["payloadType"]))
    correct(hub)
    sent = message(hub, PFI)
    assert (sent.text("MSH-9.2"), sent.text("TXA-13")) == ("T02", "")
    (said,) = [one for one in notes(hub) if "Correction du compte rendu non remise" in one]
    assert "pour le DMP" in said


# --- taking back what the DMP holds ----------------------------------------------------------------------------------


def test_what_the_dmp_holds_under_an_ins_the_patient_lost_is_taken_back_once_a_person_lets_it_go(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    renumbered(hub, ins=False)
    withdraw(hub)
    one = waiting(hub)[PFI]
    sent = message(hub, PFI)
    assert (sent.text("MSH-9.2"), sent.text("PID-3.1"), flag(sent, "DESTDMP")) == ("T04", INS, "Y")
    assert one.ins == INS and one.id not in taken(hub)
    assert "has no qualified INS any more" in shown(hub, one.id)["error"]
    assert not any("Retrait du compte rendu non remis" in said for said in notes(hub))


def test_what_the_dmp_is_to_lose_leaves_when_the_ins_is_the_patients_again(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    renumbered(hub, ins=False)
    withdraw(hub)
    one = waiting(hub)[PFI].id
    assert one not in taken(hub)
    put(hub, PARTNER, people.patient(0))
    outbox.outbox_release(hub.store, {"id": one})
    assert one in taken(hub)


def test_a_document_whose_patient_lost_the_ins_is_taken_back_by_another_platform_too(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    renumbered(hub, ins=False)
    other_platform(hub, PFI, SECOND, status="off")
    withdraw(hub)
    assert actions(hub) == {SECOND: ("T04", "")} and message(hub, SECOND).text("PID-3.1") == INS


def test_a_platform_without_a_name_takes_nothing_back_for_another(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    other_platform(hub, PFI, SECOND, status="off")
    put(hub, SYSTEM, endpoint("pfi", id="pfi2", name="Autre", address="mllp://127.0.0.1:77"))
    withdraw(hub)
    assert actions(hub) == {}
    assert any("Retrait du compte rendu non remis" in said and PFI in said for said in notes(hub)), notes(hub)


def test_what_takes_it_back_is_made_again_for_the_platform_that_leads_to_the_dmp_now(either: Hub) -> None:
    hub = either
    asked(hub, state="completed")
    received(hub)
    other_platform(hub, PFI, SECOND, status="off")
    withdraw(hub)
    failed = waiting(hub)[SECOND].id
    refused(hub, failed, "207", "")
    put(hub, SYSTEM, endpoint("pfi"))
    new = regenerate(hub, failed)["id"]
    assert waiting(hub)[PFI].id == new and actions(hub) == {PFI: ("T04", "")}
    assert shown(hub, failed)["state"] == "cancelled"


def test_what_feeds_the_dmp_is_made_again_for_the_platform_that_leads_there_now(hub: Hub) -> None:
    asked(hub, state="completed")
    failed = waiting(hub)[PFI].id
    refused(hub, failed, "101", "")
    other_platform(hub, PFI, SECOND, status="off")
    regenerate(hub, failed)
    assert actions(hub) == {SECOND: ("T02", "")} and flag(message(hub, SECOND), "DESTDMP") == "Y"


def test_what_failed_for_the_dmp_is_not_made_again_for_a_patient_file_at_that_endpoint(hub: Hub) -> None:
    asked(hub, state="completed")
    failed = waiting(hub)[PFI].id
    refused(hub, failed, "101", "")
    put(hub, SYSTEM, endpoint("pfi", payloadType=endpoint("dpi")["payloadType"]))
    with pytest.raises(RuleBroken, match="any more; cancel this delivery"):
        regenerate(hub, failed)
