"""The mailbox: notices settle the second leg of a mail, everything else is kept, and nothing is seen before it is
stored."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hubs
import pytest
from hubs import at_once, hub_on

from conformance.peers import mail as operator
from conformance.peers.mailbox import Box
from fhir_server import app
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery import mailbox
from fhir_server.desk.table import OPERATIONS
from fhir_server.errors import RuleBroken, Unavailable
from fhir_server.rest import admin
from fhir_server.store import retention
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow, NewMessage
from fhir_server.store.leases import Outcome

DATA = Path(__file__).parents[2] / "data" / "mssante"
BOX = "teleexpertise@ch-demo.mssante.fr"
SAMPLE_ID = b"AB7K2M4QX9ZT3WLR6PCD"
RECIPIENT = "Sage-Femme@cabinet.mssante.fr"
# Who the sample notices are about.
OTHERS = (
    rb"(?i)bernard\.vacquier@medecin\.mssante\.fr|nobody@medecin\.mssante\.fr|integration\.app@requerant\.mssante\.fr"
)


@pytest.fixture
def sent(store: Store) -> tuple[Hub, str]:
    """A hub and the id of a mail that waits for its notice."""
    hub = hub_on(store)
    return hub, hubs.delivered(hub, endpoint=f"mssante:{RECIPIENT}?from={BOX}")


def sample(name: str, about: str, recipient: str = RECIPIENT.lower()) -> bytes:
    """One of our sample notices, about this delivery to this recipient."""
    raw = (DATA / name).read_bytes().replace(b"\r\n", b"\n").replace(SAMPLE_ID, about.encode())
    return re.sub(OTHERS, recipient.encode(), raw)


def rows(hub: Hub) -> list[InboxRow]:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.messages(InboxFilter(channel="mail"))


def leg(hub: Hub, key: str) -> tuple[str, str]:
    delivery = next(d for d in hubs.deliveries(hub) if d.id == key)
    return delivery.leg_state, delivery.leg_text


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("dsn-delivered.eml", "confirmed", "2.0.0"),
        ("dsn-failed.eml", "refused", "5."),
        ("mdn-displayed.eml", "confirmed", "displayed"),
        ("mdn-902.eml", "refused", "902 Identifiant de patient inconnu"),
    ],
)
def test_a_notice_settles_the_mail_it_names(sent: tuple[Hub, str], name: str, state: str, words: str) -> None:
    hub, key = sent
    mailbox.take_in(hub, sample(name, key), BOX)
    settled, text = leg(hub, key)
    assert settled == state and words in text
    row = rows(hub)[0]
    assert (row.state, row.case_key) == ("done", "ServiceRequest/r")
    assert hubs.deliveries(hub)[0].leg_inbox in ("", row.id)


@pytest.mark.parametrize("name", ["dsn-delivered.eml", "dsn-failed.eml", "mdn-displayed.eml", "mdn-902.eml"])
def test_a_notice_about_another_recipient_is_kept_with_the_case_and_settles_nothing(
    sent: tuple[Hub, str], name: str
) -> None:
    hub, key = sent
    mailbox.take_in(hub, sample(name, key, "somebody.else@cabinet.mssante.fr"), BOX)
    assert leg(hub, key) == ("waiting", "")
    (row,) = rows(hub)
    assert (row.state, row.case_key) == ("done", "ServiceRequest/r")
    assert f"settles nothing: it was sent to {RECIPIENT.lower()}" in row.note


def test_a_delay_is_kept_and_settles_nothing(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    mailbox.take_in(hub, sample("dsn-failed.eml", key).replace(b"Action: Failed", b"Action: delayed"), BOX)
    assert leg(hub, key) == ("waiting", "")
    assert rows(hub)[0].note.count("settles nothing") == 2


def test_a_notice_about_a_replay_settles_the_first_sending(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    claim = hub.store.claim("w", 60)
    assert claim is not None
    hub.store.finish(claim, Outcome("sent"))
    again = hub.store.write(SYSTEM, lambda tx: tx.replay(key))
    mailbox.take_in(hub, sample("dsn-delivered.eml", again), BOX)
    assert leg(hub, key)[0] == "confirmed" and leg(hub, again)[0] == ""


def test_the_same_notice_again_changes_nothing(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    notice = sample("dsn-delivered.eml", key)
    hubs.results(at_once(*[lambda: mailbox.take_in(hub, notice, BOX)] * 3))
    mailbox.take_in(hub, notice, BOX)
    assert [(row.state, row.repeats) for row in rows(hub)] == [("done", 3)]
    assert leg(hub, key)[0] == "confirmed"


def test_another_mail_under_a_known_message_id_settles_nothing_and_is_seen(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    first, other = sample("dsn-delivered.eml", "NEVERSENTNEVERSENT22"), sample("dsn-delivered.eml", key)
    for raw in (first, other, other):
        mailbox.take_in(hub, raw, BOX)
    assert leg(hub, key) == ("waiting", "")
    kept, earlier = rows(hub)
    assert (earlier.state, kept.state, kept.rival, kept.repeats) == ("done", "conflict", earlier.id, 1)
    assert kept.location == "Message-ID" and kept.case_key == "ServiceRequest/r" and kept.settled_at
    assert kept.error.startswith(f"its Message-ID came before with other content (message {earlier.id})")
    assert "(settles nothing)" in kept.error
    with hub.store.read(SYSTEM) as snapshot:
        assert [snapshot.message_raw(row.id) for row in (earlier, kept)] == [first, other]
        audited = [(row.outcome, row.case_key) for row in snapshot.audit_rows() if row.event == "mail-read"]
    assert sorted(audited) == [("0", ""), ("4", "ServiceRequest/r")]
    shown = OPERATIONS["inbox-list"](hub.store, {"state": "conflict"})
    assert [row["error"] for row in shown] == [kept.error]
    assert "1 messages of mail are in state conflict" in str(OPERATIONS["alerts"](hub.store, {}))


def test_one_mail_that_came_by_two_of_our_addresses_is_no_conflict(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    first = b"Received: from a\n by b; now\n" + sample("dsn-delivered.eml", key)
    other = (
        b"Return-Path: <>\nDelivered-To: alias@x.fr\nReceived: from c\n\tby d; later\n" + first.partition(b"now\n")[2]
    )
    for raw in (first, other, other):
        mailbox.take_in(hub, raw, BOX)
    assert leg(hub, key)[0] == "confirmed"
    again, earlier = rows(hub)
    assert (earlier.state, again.state, again.case_key) == ("done", "done", "ServiceRequest/r")
    assert again.note == f"the mail of message {earlier.id}, come by another way"
    assert OPERATIONS["inbox-list"](hub.store, {"state": "conflict"}) == []


def test_a_mail_whose_first_copy_cannot_be_read_any_more_is_left_to_a_person(sent: tuple[Hub, str]) -> None:
    hub, _ = sent
    large = sample("dsn-delivered.eml", "NEVERSENTNEVERSENT22") + b"x\n" * 50_000
    mailbox.take_in(hub, b"Received: a\n" + large, BOX)
    assert hub.store.blobs.remove(rows(hub)[0].sha256, 1e12)
    mailbox.take_in(hub, b"Received: b\n" + large, BOX)
    assert rows(hub)[0].state == "conflict" and "came before" in rows(hub)[0].error


def test_a_mail_in_conflict_that_was_stored_before_a_crash_is_settled_when_it_is_read_again(
    sent: tuple[Hub, str],
) -> None:
    hub, key = sent
    mailbox.take_in(hub, sample("dsn-delivered.eml", "NEVERSENTNEVERSENT22"), BOX)
    (first,), raw = rows(hub), sample("dsn-delivered.eml", key)
    other = NewMessage("mail", raw, sender=first.sender, control_id=first.control_id)
    assert hub.store.receive(other).conflict, "stored, and then the process died"
    with pytest.raises(Unavailable):
        mailbox.take_in(hubs.full(hub), raw, BOX)
    assert (rows(hub)[0].state, rows(hub)[0].error) == ("conflict", "")
    mailbox.take_in(hub, raw, BOX)
    assert "came before" in rows(hub)[0].error


def test_a_person_may_have_a_mail_in_conflict_taken_in_all_the_same(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    for about in ("NEVERSENTNEVERSENT22", key):
        mailbox.take_in(hub, sample("dsn-delivered.eml", about), BOX)
    assert admin.run(hub, hubs.ADMIN, "inbox-show", {"id": rows(hub)[0].id})["error"].endswith("(settles nothing)")
    app.operate(hub, hubs.ADMIN, "inbox-replay", {"id": rows(hub)[0].id})
    assert (rows(hub)[0].state, leg(hub, key)[0]) == ("done", "confirmed")


def test_a_person_puts_a_forged_mail_away_and_it_settles_nothing_whatever_comes_after(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    forged = sample("dsn-delivered.eml", key)
    for raw in (sample("dsn-delivered.eml", "NEVERSENTNEVERSENT22"), forged):
        mailbox.take_in(hub, raw, BOX)
    told = app.operate(hub, hubs.ADMIN, "inbox-refuse", {"id": rows(hub)[0].id, "reason": "expéditeur inconnu"})
    refused = rows(hub)[0]
    assert told == {"id": refused.id, "state": "refused"} and refused.state == "refused"
    assert refused.error.startswith("its Message-ID came before")
    assert refused.error.endswith("\nrefused: expéditeur inconnu")
    assert OPERATIONS["alerts"](hub.store, {}) == []
    with hub.store.read(SYSTEM) as snapshot:
        (row,) = [one for one in snapshot.audit_rows() if one.event == "inbox-refuse"]
    assert (row.entity_id, row.outcome) == (refused.id, "0") and "expéditeur inconnu" in row.text
    mailbox.take_in(hub, forged, BOX)
    assert (rows(hub)[0].state, rows(hub)[0].repeats, leg(hub, key)) == ("refused", 1, ("waiting", ""))
    for wrong in (refused.id, rows(hub)[1].id):
        with pytest.raises(RuleBroken, match="cannot be refused"):
            app.operate(hub, hubs.ADMIN, "inbox-refuse", {"id": wrong})
    # It waits for nobody now, and goes in time; the first one after it.
    long_ago = "UPDATE inbox SET received_at = 1, settled_at = 1, repeated_at = 0"
    hub.store.write(SYSTEM, lambda tx: tx.view.db.run(long_ago))
    gone = [retention.prune(hub.store, 1.0).messages for _ in range(2)]
    assert sum(gone) == 2 and rows(hub) == []


def test_what_was_not_answered_yet_is_not_refused(sent: tuple[Hub, str]) -> None:
    """Its sender's repeat would be taken for a message nobody has decided about."""
    hub, key = sent
    mailbox.take_in(hub, sample("dsn-delivered.eml", "NEVERSENTNEVERSENT22"), BOX)
    (first,) = rows(hub)
    other = NewMessage("mail", sample("dsn-delivered.eml", key), sender=first.sender, control_id=first.control_id)
    pending = hub.store.receive(other)
    with pytest.raises(RuleBroken, match="cannot be refused"):
        app.operate(hub, hubs.ADMIN, "inbox-refuse", {"id": pending.id})
    assert rows(hub)[0].state == "conflict"


def test_a_failure_told_after_a_success_does_not_undo_it(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    mailbox.take_in(hub, sample("dsn-delivered.eml", key), BOX)
    mailbox.take_in(hub, sample("mdn-902.eml", key), BOX)
    assert leg(hub, key)[0] == "confirmed"
    assert len(rows(hub)) == 2


def test_a_success_told_after_a_failure_counts(sent: tuple[Hub, str]) -> None:
    hub, key = sent
    mailbox.take_in(hub, sample("dsn-failed.eml", key), BOX)
    mailbox.take_in(hub, sample("dsn-delivered.eml", key), BOX)
    assert leg(hub, key)[0] == "confirmed"


def test_a_notice_does_not_settle_a_delivery_of_another_wire(sent: tuple[Hub, str]) -> None:
    hub, _ = sent
    other = hubs.delivered(hub, "hl7", "zam")
    before = leg(hub, other)
    mailbox.take_in(hub, sample("dsn-delivered.eml", other), BOX)
    assert leg(hub, other) == before
    assert "not a delivery of ours" in rows(hub)[0].note


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff" * 100,
        b"Subject: bonjour\r\n\r\nUn mot de la sage-femme.\r\n",
        b"Content-Type: multipart/report; boundary=x\r\n\r\n--x\r\n" * 500,
        b"From: " + b"a" * 100_000,
    ],
    ids=["empty", "binary", "letter", "nested", "long"],
)
def test_a_mail_of_another_kind_is_kept_whole_for_a_person(sent: tuple[Hub, str], raw: bytes) -> None:
    hub, key = sent
    mailbox.take_in(hub, raw, BOX)
    row = rows(hub)[0]
    assert (row.state, "kept for a person" in row.note) == ("done", True)
    with hub.store.read(SYSTEM) as snapshot:
        assert snapshot.message_raw(row.id) == raw
    mailbox.take_in(hub, raw, BOX)
    assert len(rows(hub)) == 1, "without a Message-ID the bytes themselves tell the same mail"
    assert leg(hub, key)[0] == "waiting"


def test_a_notice_about_nothing_of_ours_is_kept(sent: tuple[Hub, str]) -> None:
    hub, _ = sent
    mailbox.take_in(hub, sample("dsn-delivered.eml", "NEVERSENTNEVERSENT22"), BOX)
    assert "not a delivery of ours" in rows(hub)[0].note


# --- the mailbox over IMAP -------------------------------------------------------------------------------------------


@pytest.fixture
def post(tmp_path: Path) -> Iterator[operator.Running]:
    running = operator.Running(operator.Settings(tmp_path / "post", 0, 0))
    yield running
    running.stop()


def listening(hub: Hub, post: operator.Running) -> Hub:
    """The hub reading the sandbox's mailbox."""
    changed: dict[str, Any] = {"imap": f"127.0.0.1:{post.imap_port}", "imap_security": "none", "mail_password": "x"}
    settings = dataclasses.replace(hub.settings, **changed)
    return dataclasses.replace(hub, settings=settings)


def seen(post: operator.Running) -> list[bool]:
    return ["\\Seen" in message.flags for message in Box(post.settings.data, BOX).messages()]


def deliver(post: operator.Running, *mails: bytes) -> None:
    for raw in mails:
        Box(post.settings.data, BOX).deliver(raw.replace(b"\n", b"\r\n"))


def test_new_mails_are_taken_in_and_then_seen(sent: tuple[Hub, str], post: operator.Running) -> None:
    hub, key = sent
    deliver(post, b"Subject: bonjour\n\nUn mot.\n", sample("dsn-delivered.eml", key))
    reading = listening(hub, post)
    assert mailbox.poll(reading) is True
    assert (seen(post), leg(hub, key)[0], len(rows(hub))) == ([True, True], "confirmed", 2)
    assert mailbox.poll(reading) is False, "nothing is new"


def test_a_mail_is_not_seen_before_the_commit_that_keeps_it(sent: tuple[Hub, str], post: operator.Running) -> None:
    hub, key = sent
    deliver(post, sample("dsn-delivered.eml", key))
    with pytest.raises(Unavailable):
        mailbox.poll(listening(hubs.full(hub), post))
    assert (seen(post), leg(hub, key)[0]) == ([False], "waiting")
    assert mailbox.poll(listening(hub, post)) is True
    assert (seen(post), leg(hub, key)[0]) == ([True], "confirmed")
    assert [(row.state, row.repeats) for row in rows(hub)] == [("done", 1)]


def test_a_hostile_mail_does_not_keep_the_next_one_from_being_read(
    sent: tuple[Hub, str], post: operator.Running
) -> None:
    hub, key = sent
    bomb = b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\nContent-Type: message/rfc822\n\n" * 3000
    deliver(post, bomb, b"\xff\xfe\x00", sample("dsn-delivered.eml", key))
    mailbox.poll(listening(hub, post))
    assert leg(hub, key)[0] == "confirmed" and seen(post) == [True] * 3


@pytest.mark.parametrize("imap", ["", "nowhere", "127.0.0.1:x"])
def test_without_a_mailbox_nothing_is_read(sent: tuple[Hub, str], imap: str) -> None:
    hub, _ = sent
    settings = dataclasses.replace(hub.settings, imap=imap)
    assert mailbox.poll(dataclasses.replace(hub, settings=settings)) is False


def test_a_mailbox_that_does_not_answer_is_tried_again_later(sent: tuple[Hub, str], free_port: Any) -> None:
    hub, _ = sent
    settings = dataclasses.replace(hub.settings, imap=f"127.0.0.1:{free_port()}", imap_security="none")
    assert mailbox.poll(dataclasses.replace(hub, settings=settings)) is False
