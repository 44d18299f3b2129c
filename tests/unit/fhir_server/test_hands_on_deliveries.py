"""What people may do with deliveries that are in doubt, forbidden or overtaken: take away what nobody answers, and let
nothing go that is barred or that something else overtook since."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from corrected import DPI, MAIL, PFI, correct, message, received, waiting, withdraw
from hubs import ADMIN, PARTNER, SYSTEM, asked, directory, hub_on, people, put, read
from test_correction_attacks import run
from test_correction_releases import shown, taken
from test_declared_doctor import DOCTOR, PRIVACY, declared, refusal
from test_distribution import endpoint, with_dmp
from test_report_holds import CLOSED, INS, renumbered

from fhir_server import pull
from fhir_server.changes import Hub
from fhir_server.context import Caller
from fhir_server.delivery import intake
from fhir_server.desk import outbox
from fhir_server.errors import RuleBroken
from fhir_server.rest import admin
from fhir_server.store.audit import AuditFilter
from fhir_server.store.engine import Store
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.leases import Claim, Outcome
from fhir_server.store.session import Tx
from hl7v2 import ack

PARTING = "UPDATE lane SET lease_until = 1 WHERE name = ?"
NO_ANSWER = "; it left, and nobody answered: its partner may have it"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


@pytest.fixture
def store(open_url: Callable[..., Store], database_url: str) -> Store:
    """One database, then the other."""
    return open_url(database_url)


def queued(store: Store, lane: str = "dpi", **more: Any) -> str:
    return store.write(SYSTEM, lambda tx: tx.send(NewDelivery(lane, "mllp://127.0.0.1:9", "hl7", b"MSH|", **more)))


def begun(store: Store, worker: str = "w") -> Claim:
    """The head of the lane that is due, in the hands of a worker."""
    held = store.claim(worker, 30)
    assert held is not None
    store.start_attempt(held)
    return held


def over(store: Store, lane: str = "dpi") -> None:
    """The lease of a lane has ended, and nobody gave it back."""
    store.write(SYSTEM, lambda tx: tx.view.db.run(PARTING, (lane,)))


def outcomes(store: Store, delivery: str) -> list[str]:
    with store.read(SYSTEM) as snapshot:
        return [one.outcome for one in snapshot.attempts(delivery)]


def state(store: Store, delivery: str) -> str:
    with store.read(SYSTEM) as snapshot:
        found = snapshot.delivery(delivery)
    assert found is not None
    return found.state


# --- what is being sent and nobody answers ---------------------------------------------------------------------------


ACTS = pytest.mark.parametrize(
    ("act", "after"), [(outbox.outbox_cancel, "cancelled"), (outbox.outbox_hold, "held")], ids=["cancel", "hold"]
)


@ACTS
def test_a_running_conversation_is_taken_from_nobody(store: Store, act: Callable[..., Any], after: str) -> None:
    key = queued(store)
    held = begun(store)
    with pytest.raises(RuleBroken, match="it is being sent, under a lease until 20"):
        act(store, {"id": key})
    assert (state(store, key), outcomes(store, key)) == ("sending", [""])
    assert store.renew([held], 30) == {held.lane_id}
    assert store.finish(held, Outcome("sent"))
    with pytest.raises(RuleBroken, match="is sent"):
        act(store, {"id": key})


@ACTS
def test_what_nobody_answers_is_taken_away_once_the_lease_is_over_and_may_have_arrived(
    store: Store, act: Callable[..., Any], after: str
) -> None:
    key = queued(store)
    held = begun(store)
    over(store)
    assert outbox.outbox_show(store, {"id": key})["why"].endswith("and nobody answered; it goes again")
    assert act(store, {"id": key, "reason": "perdu"}) == {"id": key, "state": after}
    told = outbox.outbox_show(store, {"id": key})
    assert (told["state"], told["error"]) == (after, "perdu" + NO_ANSWER)
    assert outcomes(store, key) == ["interrupted"]
    assert store.renew([held], 30) == set(), "who wakes up has lost the lane, and sends nothing"


@ACTS
def test_the_answer_of_who_wakes_up_is_noted_and_settles_nothing_a_person_settled(
    store: Store, act: Callable[..., Any], after: str
) -> None:
    key, behind = queued(store), queued(store)
    held = begun(store)
    over(store)
    act(store, {"id": key})
    assert store.finish(held, Outcome("sent")) is False
    assert (state(store, key), outcomes(store, key)) == (after, ["late: sent"])
    following = store.claim("w2", 30)
    assert (following and following.delivery.id) == (behind if after == "cancelled" else None)


def test_taking_one_away_leaves_the_conversation_about_another_alone(store: Store) -> None:
    """What failed before it in the lane was let go again, and is being sent now."""
    first, second = queued(store, on_stuck="skip", patient="Patient/1"), queued(store, patient="Patient/2")
    store.finish(begun(store), Outcome("error", "permanent", "AE"))
    begun(store)
    over(store)
    store.write(SYSTEM, lambda tx: tx.retry(first))
    held = begun(store)
    assert (held.delivery.id, state(store, second)) == (first, "sending")
    outbox.outbox_cancel(store, {"id": second})
    assert (state(store, second), outcomes(store, second)) == ("cancelled", ["interrupted"])
    assert store.renew([held], 30) == {held.lane_id} and store.finish(held, Outcome("sent"))


def test_taking_it_away_is_audited_with_who_did_it(hub: Hub) -> None:
    key = queued(hub.store)
    begun(hub.store)
    with pytest.raises(RuleBroken, match="under a lease"):
        admin.run(hub, ADMIN, "outbox-cancel", {"id": key, "reason": "trop tôt"})
    over(hub.store)
    admin.run(hub, ADMIN, "outbox-cancel", {"id": key, "reason": "perdu"})
    with hub.store.read(SYSTEM) as snapshot:
        rows = [one for one in snapshot.audit_rows(AuditFilter()) if one.event == "outbox-cancel"]
    done = {(one.outcome, one.entity_id, one.display, one.text.partition(":")[0]) for one in rows}
    assert done == {
        ("0", key, "Exploitant", "outbox-cancel reason=perdu"),
        ("8", key, "Exploitant", "outbox-cancel reason=trop tôt"),
    }


def fetched_and_silent(hub: Hub) -> tuple[str, int, Caller]:
    """A report that the partner fetched and did not acknowledge in time: its id and token, and who fetched it."""
    put(hub, SYSTEM, endpoint("dpi", address="pull:dpi?application=DPI&facility=CH-DEMO"))
    asked(hub, state="completed")
    software = Caller("", "dpi", frozenset({"partner"}), client="dpi")
    got = pull.fetch(hub.store, software)
    assert got is not None and got.id == shown(hub, got.id)["id"]
    return got.id, got.token, software


def moved(hub: Hub) -> str:
    """The application has another Endpoint, to which we send."""
    put(hub, SYSTEM, endpoint("dpi", status="off"), endpoint("dpi", id="dpi2"))
    listed = [{"reference": f"{DPI}2"}, {"reference": PFI}]
    put(hub, SYSTEM, read(hub, "Organization/ch-demo") | {"endpoint": listed})
    return f"{DPI}2"


def test_a_correction_is_freed_from_an_original_that_was_fetched_and_never_acknowledged(hub: Hub) -> None:
    first, token, software = fetched_and_silent(hub)
    with pytest.raises(RuleBroken, match="under a lease until"):
        outbox.outbox_cancel(hub.store, {"id": first})
    run(hub, "UPDATE lane SET lease_until = 1 WHERE name = ?", DPI)
    assert shown(hub, first)["why"].endswith("nobody answered; its partner may fetch it again")
    road = moved(hub)
    correct(hub)
    second = waiting(hub)[road].id
    assert second not in taken(hub) and f"{first} in {DPI}" in shown(hub, second)["error"]
    outbox.outbox_cancel(hub.store, {"id": first})
    outbox.outbox_release(hub.store, {"id": second})
    assert message(hub, road).text("MSH-9.2") == "T10", "the application may have the first one"
    assert second in taken(hub)
    assert pull.acknowledge(hub.store, software, first, token, "AA") == "cancelled"
    assert outcomes(hub.store, first) == ["late: sent"]


def test_what_was_taken_away_unanswered_is_replaced_and_not_sent_as_a_first_document(hub: Hub) -> None:
    first, *_ = fetched_and_silent(hub)
    run(hub, "UPDATE lane SET lease_until = 1 WHERE name = ?", DPI)
    outbox.outbox_cancel(hub.store, {"id": first})
    correct(hub)
    assert message(hub, DPI).text("MSH-9.2") == "T10"
    with hub.store.read(SYSTEM) as snapshot:
        assert shown(hub, first)["state"] == "cancelled" and len(snapshot.attempts(first)) == 1


# --- the DMP ---------------------------------------------------------------------------------------------------------


def replayed(hub: Hub, key: str) -> str:
    return str(hubs.replayed(hub.store, {"id": key})["id"])


@CLOSED
def test_what_is_sent_once_more_does_not_feed_a_dmp_that_was_closed_while_it_waited(
    hub: Hub, now: tuple[tuple[str, str], ...]
) -> None:
    asked(hub, state="completed")
    first = waiting(hub)[PFI].id
    received(hub)
    again = replayed(hub, first)
    assert shown(hub, again)["second_leg"] == "none"
    with_dmp(hub, *now)
    assert again not in taken(hub) and "the DMP of Patient/patient-01 is not open" in shown(hub, again)["error"]
    for act in (outbox.outbox_release, outbox.outbox_retry):
        with pytest.raises(RuleBroken, match="the DMP of Patient/patient-01 is not open"):
            act(hub.store, {"id": again})
    with_dmp(hub, ("status", "ACTIF"), ("feed", "INO"))
    outbox.outbox_release(hub.store, {"id": again})
    assert again in taken(hub)


def test_what_repeats_a_repetition_does_not_feed_a_closed_dmp_either(hub: Hub) -> None:
    asked(hub, state="completed")
    ids = [waiting(hub)[PFI].id]
    for _ in range(2):
        received(hub)
        ids.append(replayed(hub, ids[-1]))
    received(hub)
    with_dmp(hub, ("status", "FERME"))
    for one in ids:
        with pytest.raises(RuleBroken, match="is not sent again: the DMP"):
            replayed(hub, one)


def test_what_repeats_a_report_for_a_patient_file_has_nothing_to_do_with_the_dmp(hub: Hub) -> None:
    asked(hub, state="completed")
    first = waiting(hub)[DPI].id
    received(hub)
    with_dmp(hub, ("status", "FERME"))
    assert replayed(hub, first) in taken(hub)


def test_what_takes_a_document_back_once_more_reaches_a_closed_dmp(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    with_dmp(hub, ("status", "FERME"))
    withdraw(hub)
    back = waiting(hub)[PFI].id
    received(hub)
    assert replayed(hub, back) in taken(hub)


def test_the_dmp_is_not_fed_under_an_ins_that_the_patient_lost_whoever_lets_it_go(hub: Hub) -> None:
    asked(hub, state="completed")
    one, other = waiting(hub)[PFI].id, waiting(hub)[DPI].id
    renumbered(hub, ins=False)
    assert not {one, other} & set(taken(hub)) and "has no qualified INS any more" in shown(hub, one)["error"]
    for act in (outbox.outbox_release, outbox.outbox_retry):
        with pytest.raises(RuleBroken, match="the DMP takes nothing under an INS that Patient/patient-01 does not"):
            act(hub.store, {"id": one})
    assert shown(hub, one)["why"].endswith("nobody releases it while that is so")
    outbox.outbox_release(hub.store, {"id": other})
    assert other in taken(hub), "a patient file may have it: a person decided so"
    put(hub, PARTNER, people.patient(0))
    outbox.outbox_release(hub.store, {"id": one})
    assert one in taken(hub)


def test_the_dmp_is_not_fed_once_more_under_an_ins_that_the_patient_lost(hub: Hub) -> None:
    asked(hub, state="completed")
    first = waiting(hub)[PFI].id
    received(hub)
    renumbered(hub, ins=False)
    with pytest.raises(RuleBroken, match="is not sent again: the DMP takes nothing under an INS"):
        replayed(hub, first)


@pytest.mark.parametrize("smaller", [True, False])
def test_what_takes_back_a_document_once_more_is_held_for_the_ins_in_it(hub: Hub, smaller: bool) -> None:
    """Two INS are among its keys: that of the document, and that of the patient today."""
    asked(hub, state="completed")
    received(hub)
    others = [people.ins(one[5]) for one in people.PATIENTS[1:]]
    other = next(one for one in others if (one < INS) is smaller)
    patient = json.loads(json.dumps(read(hub, "Patient/patient-01")).replace(INS, other))
    hubs.write_past_the_rules(hub, patient)
    withdraw(hub)
    one = waiting(hub)[DPI]
    assert one.ins == INS and one.id not in taken(hub)
    outbox.outbox_cancel(hub.store, {"id": one.id})
    again = replayed(hub, one.id)
    assert shown(hub, again)["ins"] == INS
    assert again not in taken(hub) and "has another INS now" in shown(hub, again)["error"]
    with hub.store.read(SYSTEM) as snapshot:
        assert {("ins", INS), ("ins", other)} <= set(snapshot.delivery_keys(again))


def test_what_takes_a_document_back_waits_behind_what_the_closed_dmp_does_not_get(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    asked(hub, key="s", state="completed")
    stuck = waiting(hub)[PFI].id
    with_dmp(hub, ("status", "FERME"))
    assert stuck not in taken(hub)
    withdraw(hub)
    back = waiting(hub)[PFI].id
    assert back not in taken(hub) and f"waits behind {stuck}" in shown(hub, back)["why"]
    outbox.outbox_cancel(hub.store, {"id": stuck})
    assert back in taken(hub)


# --- several reasons at once -----------------------------------------------------------------------------------------


def merged(hub: Hub) -> None:
    """The hospital merges patient-01 into a record it opens with this message (A40)."""
    family, given, givens, gender, birth, *_ = people.PATIENTS[0]
    traits = f"{family}^{given}^{givens}^^^^L||{birth.replace('-', '')}|{'F' if gender == 'female' else 'M'}"
    lines = (
        "MSH|^~\\&|GAM|CH-DEMO|PASSERELLE|CH-DEMO|20261121090000||ADT^A40^ADT_A39|MAINS00001|T|2.5^FRA^2.11"
        "|||||FRA|UNICODE UTF-8|FR||2.11^IHE_FRANCE-2.11-PAM",
        "EVN||20261121090000",
        f"PID|1||NEUF9^^^CH-DEMO&990000018&N^PI||{traits}" + "|" * 23 + "N|PROV",
        "MRG|DEMO0001^^^CH-DEMO&990000018&N^PI",
    )
    told = ack.read(intake.on_message(hub, ("\r".join(lines) + "\r").encode(), "192.0.2.7:5001"))
    assert told.code == "AA", told
    assert read(hub, "Patient/patient-01")["link"][0]["type"] == "replaced-by"


def test_a_merge_is_one_reason_though_the_case_and_the_report_went_along(hub: Hub) -> None:
    asked(hub, state="completed")
    one = waiting(hub)[DPI].id
    merged(hub)
    assert read(hub, "DiagnosticReport/r")["subject"]["reference"] != "Patient/patient-01"
    assert one not in taken(hub) and "Patient/patient-01 was merged into" in shown(hub, one)["error"]
    outbox.outbox_release(hub.store, {"id": one})
    assert one in taken(hub)


def test_nobody_lets_go_what_feeds_the_dmp_of_a_record_that_was_merged_away(hub: Hub) -> None:
    """The record that stands for the patient has no DMP that is open."""
    with_dmp(hub, ("status", "ACTIF"), ("feed", "INO"))
    asked(hub, state="completed")
    one = waiting(hub)[PFI].id
    merged(hub)
    assert one not in taken(hub)
    with pytest.raises(RuleBroken, match="the DMP of Patient/patient-01"):
        outbox.outbox_release(hub.store, {"id": one})
    assert one not in taken(hub)


def test_a_doctor_whom_the_patient_refused_is_not_mailed_after_a_merge_either(hub: Hub) -> None:
    declared(hub, {"reference": "Practitioner/lefevre"})
    asked(hub, state="completed")
    one = waiting(hub)[DOCTOR].id
    put(hub, PARTNER, refusal("Practitioner/lefevre", scope=PRIVACY))
    merged(hub)
    assert one not in taken(hub)
    with pytest.raises(RuleBroken, match="opposes"):
        outbox.outbox_release(hub.store, {"id": one})


def test_what_a_merge_held_and_a_person_let_go_is_held_again_for_a_version_made_since(hub: Hub) -> None:
    asked(hub, state="completed")
    one = waiting(hub)[DPI].id
    merged(hub)
    taken(hub)
    outbox.outbox_release(hub.store, {"id": one})
    hubs.write_past_the_rules(hub, read(hub, "DiagnosticReport/r") | {"status": "corrected", "conclusion": "Autre."})
    assert one not in taken(hub) and "DiagnosticReport/r was replaced by version" in shown(hub, one)["error"]
    outbox.outbox_release(hub.store, {"id": one})
    assert one in taken(hub), "both reasons were set aside"


def test_what_a_merge_held_and_a_person_let_go_is_held_again_for_a_case_of_somebody_else(hub: Hub) -> None:
    asked(hub, state="completed")
    one = waiting(hub)[MAIL].id
    merged(hub)
    taken(hub)
    outbox.outbox_release(hub.store, {"id": one})
    elsewhere = {"subject": {"reference": "Patient/patient-02"}}
    hubs.write_past_the_rules(hub, read(hub, "ServiceRequest/r") | elsewhere)
    assert one not in taken(hub) and "ServiceRequest/r is about Patient/patient-02 now" in shown(hub, one)["error"]


def test_a_reason_that_comes_back_after_another_one_stays_set_aside(store: Store) -> None:
    key = queued(store)

    def holds(*reasons: str) -> Callable[[Tx, Claim], Outcome | None]:
        def check(_: Tx, claim: Claim) -> Outcome | None:
            new = [one for one in reasons if one not in claim.delivery.set_aside]
            return Outcome("held", "overtaken", new[0]) if new else None

        return check

    for reasons in (("merged",), ("merged", "replaced")):
        assert store.take("w", 30, holds(*reasons)) is None
        assert store.write(SYSTEM, lambda tx: tx.release(key)) == reasons[-1]
    held = store.take("w", 30, holds("replaced", "merged"))
    assert held is not None and held.delivery.set_aside == ("merged", "replaced")


# --- what an operator reads ------------------------------------------------------------------------------------------


def test_nobody_is_told_to_release_what_is_not_released(hub: Hub) -> None:
    asked(hub, state="completed")
    one = waiting(hub)[PFI].id
    with_dmp(hub, ("status", "FERME"))
    taken(hub)
    told = shown(hub, one)
    assert told["why"] == f"held: {told['error']}; nobody releases it while that is so"
    with_dmp(hub, ("status", "ACTIF"), ("feed", "INO"))
    assert shown(hub, one)["why"].endswith("; release it as it is, regenerate it, or cancel it")


def test_beside_the_reason_it_was_held_for_the_one_that_bars_it_is_told(hub: Hub) -> None:
    asked(hub, state="completed")
    one = waiting(hub)[PFI].id
    renumbered(hub, ins=False)
    taken(hub)
    with_dmp(hub, ("status", "FERME"))
    told = shown(hub, one)
    assert told["why"].startswith(f"held: {told['error']}; the DMP of Patient/patient-01 is not open any more")
