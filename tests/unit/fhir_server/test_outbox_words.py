"""What an operator reads: every state of a delivery, a message and a case in words, and every operation by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import methodcaller
from typing import Any

import hubs
import pytest
from hubs import SYSTEM, hub_on

from fhir_server.changes import Hub
from fhir_server.delivery import intake
from fhir_server.demo import story
from fhir_server.desk.outbox import why
from fhir_server.desk.table import OPERATIONS
from fhir_server.errors import Invalid, NotFound, PasserelleError, RuleBroken
from fhir_server.store.engine import Store
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.leases import Outcome
from fhir_server.store.outbox_desk import Policy
from fhir_server.store.session import Tx

A, B, C = ("A" * 20, "B" * 20, "C" * 20)


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_on(open_url(sqlite_url))


def send(hub: Hub, *keys: str, lane: str = "dpi", on_stuck: Any = "block", **more: Any) -> None:
    for key in keys:
        one = NewDelivery(lane, "mllp://h:1", "hl7", key.encode(), id=key, on_stuck=on_stuck, **more)
        hub.store.write(SYSTEM, methodcaller("send", one))


def ended(hub: Hub, outcome: Outcome) -> None:
    """One attempt on whatever is due, with this outcome."""
    claim = hub.store.claim("w", 60.0)
    assert claim is not None
    hub.store.start_attempt(claim)
    hub.store.finish(claim, outcome)


def words(hub: Hub, key: str) -> str:
    with hub.store.read(SYSTEM) as snapshot:
        return why(snapshot.waiting(key))


def op(hub: Hub, name: str, **args: str) -> Any:
    found = OPERATIONS[name](hub.store, args)
    json.dumps(found)
    return found


def test_a_delivery_says_why_it_has_not_left(hub: Hub) -> None:
    send(hub, A, B)
    assert words(hub, A) == "it is next"
    assert words(hub, B) == "1 deliveries of its lane go first"
    hub.store.write(SYSTEM, lambda tx: tx.pause("dpi", "travaux"))
    assert words(hub, A) == "its lane is paused: travaux"
    hub.store.write(SYSTEM, lambda tx: tx.resume("dpi"))
    ended(hub, Outcome("retry", "transient", "refused", retry_at=1))
    assert words(hub, A).startswith("1 attempts failed (refused); next attempt 1970")
    ended(hub, Outcome("error", "permanent", "AE 207 patient inconnu"))
    assert words(hub, A) == "error: AE 207 patient inconnu"
    assert words(hub, B) == f"waits behind {A}, which is error: AE 207 patient inconnu"
    op(hub, "outbox-cancel", id=A, reason="doublon")
    assert words(hub, A) == "cancelled: doublon"
    ended(hub, Outcome("sent"))
    assert words(hub, B) == "handed over"


def test_the_rarer_reasons_are_told_too(hub: Hub) -> None:
    send(hub, A)
    claim = hub.store.claim("w", 60.0)
    assert claim is not None
    hub.store.start_attempt(claim)
    assert words(hub, A).startswith("it is being sent, since 20")
    hub.store.finish(claim, Outcome("held", "overtaken", "Patient/x was merged into Patient/y"))
    assert words(hub, A).endswith("release it as it is, regenerate it, or cancel it")
    with hub.store.read(SYSTEM) as snapshot:
        told = why(snapshot.waiting(A), [B])
    assert told == f"held: Patient/x was merged into Patient/y; {B} follows and tells what stands now: cancel this one"
    one = NewDelivery("nord", "pull:CH-NORD", "hl7", b"x", id=C)
    hub.store.write(SYSTEM, methodcaller("send", one))
    assert words(hub, C) == "it waits to be fetched by its partner"
    send(hub, B, lane="slow")
    hub.store.write(SYSTEM, lambda tx: tx.set_policy("slow", Policy(per_second=0.5)))
    assert words(hub, B) == "it is next; its destination takes 0.5 a second"


def test_under_skip_what_waits_names_the_one_of_its_patient_or_report(hub: Hub) -> None:
    send(hub, A, on_stuck="skip", patient="Patient/1")
    send(hub, B, patient="Patient/1")
    send(hub, C, patient="Patient/2")
    op(hub, "outbox-hold", id=A, reason="relire")
    assert words(hub, B) == f"waits behind {A}, which is held: relire"
    assert words(hub, C) == "1 deliveries of its lane go first"
    ended(hub, Outcome("sent"))
    assert (words(hub, C), words(hub, B)) == ("handed over", f"waits behind {A}, which is held: relire")


@pytest.mark.parametrize(
    ("leg", "told"),
    [
        ("", "handed over; its confirmation is awaited"),
        ("confirmed", "handed over; confirmed"),
        ("refused", "handed over; refused"),
        ("expired", "handed over; expired"),
    ],
)
def test_a_delivery_that_left_tells_of_its_second_leg(hub: Hub, leg: str, told: str) -> None:
    send(hub, A, second_leg="zam")
    ended(hub, Outcome("sent"))
    if leg:
        hub.store.write(SYSTEM, lambda tx: tx.confirm(A, leg, "said so"))
    assert words(hub, A) == told


def test_every_operation_on_a_delivery_names_what_it_did(hub: Hub) -> None:
    send(hub, A, keys=(("ins", "2790"), ("case", "ServiceRequest/r")))
    assert op(hub, "outbox-hold", id=A, reason="relire") == {"id": A, "state": "held"}
    assert op(hub, "outbox-retry", id=A) == {"id": A, "state": "queued"}
    assert op(hub, "outbox-hold", id=A)["state"] == "held"
    shown = op(hub, "outbox-show", id=A)
    assert (shown["why"], shown["content"]) == ("held: held by an operator", A)
    assert shown["created_at"].endswith("Z") and shown["settled_at"].endswith("Z") and shown["leg_at"] == ""
    assert op(hub, "outbox-cancel", id=A)["state"] == "cancelled"
    for name in ("outbox-hold", "outbox-retry", "outbox-cancel"):
        with pytest.raises(RuleBroken, match="is cancelled"):
            op(hub, name, id=A)
    for key, count in (("2790", 1), ("ServiceRequest/r", 1), ("x", 0)):
        assert len(op(hub, "outbox-list", key=key)) == count


def test_attempts_are_told_with_the_partners_own_words(hub: Hub) -> None:
    send(hub, A)
    ended(hub, Outcome("retry", "transient", "AR occupé", b"MSH|\xe9", retry_at=1))
    ended(hub, Outcome("sent", "", "AA", b"MSH|"))
    told = op(hub, "outbox-show", id=A)["attempts"]
    assert [(one["n"], one["outcome"], one["error"]) for one in told] == [(1, "retry", "AR occupé"), (2, "sent", "AA")]
    assert "\ufffd" in told[0]["ack"]


@pytest.mark.parametrize(
    ("limit", "count"),
    [("1", 1), ("0", 1), ("2", 2), ("x", 3), ("-1", 3), ("\u00b2", 3), ("9" * 30, 3), ("", 3)],
)
def test_a_strange_limit_lists_as_usual(hub: Hub, limit: str, count: int) -> None:
    send(hub, A, B, C)
    assert len(op(hub, "outbox-list", limit=limit)) == count


def test_lists_can_be_narrowed(hub: Hub) -> None:
    send(hub, A)
    send(hub, B, lane="pfi")
    op(hub, "outbox-hold", id=B)
    assert [row["id"] for row in op(hub, "outbox-list", state="held")] == [B]
    assert [row["id"] for row in op(hub, "outbox-list", lane="dpi")] == [A]
    assert op(hub, "outbox-list", state="held", lane="dpi") == []


def test_the_inbox_shows_what_came_whole_as_far_as_a_screen_goes(hub: Hub) -> None:
    intake.on_message(hub, story.admission(), "192.0.2.1:1")
    intake.on_message(hub, b"\xff\x00" + b"x" * 10_000, "192.0.2.1:1")
    large, good = op(hub, "inbox-list")
    assert (large["state"], good["state"], good["message_type"]) == ("error", "done", "ADT^A01")
    shown = op(hub, "inbox-show", id=good["id"])
    assert shown["content"].startswith("MSH|^~\\&|GAM|CH-DEMO|") and "\r" not in shown["content"]
    assert ["ins", story.INS] in shown["keys"]
    assert "MSA|AA|HISTOIRE0001" in shown["ack"]
    assert op(hub, "inbox-show", id=large["id"])["content"].endswith("... (10002 bytes)")
    assert [row["id"] for row in op(hub, "inbox-list", key=story.INS)] == [good["id"]]
    assert op(hub, "inbox-list", channel="mail") == []


@pytest.mark.parametrize("name", ["inbox-show", "outbox-show", "outbox-retry", "outbox-hold", "outbox-cancel", "trace"])
def test_an_operation_without_or_with_an_unknown_id_says_so(hub: Hub, name: str) -> None:
    with pytest.raises(Invalid, match="name the id"):
        op(hub, name)
    for key in ("nothing", "a/b", "x" * 5000, "\u00e9'\"; --"):
        with pytest.raises(NotFound):
            op(hub, name, id=key)


def test_the_trace_tells_resources_messages_images_and_deliveries_in_order(hub: Hub) -> None:
    intake.on_message(hub, story.admission(), "192.0.2.1:1")
    patient = hubs.found(hub, "Patient")[0]["id"]
    hubs.put(hub, SYSTEM, *hubs.people.structures("h:1", "h:2"), *hubs.people.professionals())
    subject = {"reference": f"Patient/{patient}"}
    consent = hubs.people.consent("r", 0) | {"patient": subject}
    hubs.put(hub, hubs.REQUESTER, consent, hubs.request(subject=subject))
    hubs.put(hub, hubs.EXPERT, hubs.read(hub, "Task/r") | {"status": "in-progress"})
    delivery = hubs.delivered(hub, "hl7", "zam")
    ended(hub, Outcome("sent", "", "AA"))
    hub.store.write(SYSTEM, lambda tx: tx.confirm(delivery, "confirmed", "Z01 accepted"))
    lines = op(hub, "trace", id="ServiceRequest/r")
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    text = "\n".join(f"{line['kind']} {line['text']}" for line in lines)
    for told in (
        "received ADT^A01 HISTOIRE0001 from GAM|CH-DEMO: done",
        "ServiceRequest/r version 1, active (ready)",
        "ServiceRequest/r version 2, active (in_progress)",
        "Task/r version 1, requested",
        f"delivery {delivery}",
        "second leg confirmed (Z01 accepted)",
        f"attempt 1 of {delivery}: sent",
    ):
        assert told in text, told
    assert "audit" not in {line["kind"] for line in lines}
    assert op(hub, "trace", id="r") == lines


def test_a_fault_of_the_store_is_one_of_ours(hub: Hub) -> None:
    def fails(tx: Tx) -> None:
        tx.retry("nothing")

    with pytest.raises(PasserelleError):
        hub.store.write(SYSTEM, fails)
