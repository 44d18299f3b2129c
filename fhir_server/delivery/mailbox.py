"""The mailbox: delivery notices settle the second leg of a mail; everything else is kept in the inbox.

A message is marked `\\Seen` only after the commit that stored what it says (design, invariant 1).
Sources: RFC 3464 (DSN), RFC 8098 (MDN).
"""

from __future__ import annotations

import hashlib
import logging

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.store.inbox import NewMessage
from fhir_server.store.session import Tx
from fhir_server.store.view import Stale
from mssante import received
from mssante.imap import ImapFault, Mailbox

log = logging.getLogger("passerelle.mail")


def poll(hub: Hub) -> bool:
    """Read what is new; False when there was nothing (or no mailbox is configured)."""
    settings = hub.settings
    if not settings.imap:
        return False
    host, _, port = settings.imap.rpartition(":")
    if not host or not port.isdigit():
        log.warning("setting imap is %r; write host:port", settings.imap)
        return False
    boxes = [box.address for box in hub.sites.default.mailboxes if box.kind == "APP"]
    user = settings.mail_user or next(iter(boxes), "")
    try:
        with Mailbox((host, int(port)), user, settings.mail_password, security=settings.imap_security) as mailbox:
            done = 0
            for mail in mailbox.unseen_messages():
                if mail.raw is None:
                    log.warning("mail %d of %s weighs %d bytes and stays in the mailbox", mail.uid, user, mail.size)
                    continue
                take_in(hub, mail.raw, user)
                mailbox.mark_seen(mail.uid, mail.uid_validity)
                done += 1
            return done > 0
    except ImapFault as fault:
        log.warning("mailbox %s: %s %s %s", user, fault.stage, fault.code, fault.text)
        return False


def take_in(hub: Hub, raw: bytes, mailbox: str) -> None:
    """Store one mail and settle what it settles, once; the same bytes again change nothing."""
    mail = _read(raw)
    stored = hub.store.receive(
        NewMessage(
            channel="mail",
            raw=raw,
            endpoint=mailbox,
            peer=mail.sender,
            sender=mail.sender or "mail",
            control_id=mail.message_id or hashlib.sha256(raw).hexdigest(),
            message_type=mail.kind,
            media_type="message/rfc822",
        )
    )
    if stored.state == "done":
        return

    def work(tx: Tx) -> None:
        notes: list[str] = []
        keys: list[tuple[str, str]] = []
        for delivery_id, state, text in settled_by(mail):
            delivery = tx.delivery(delivery_id)
            if delivery is None or delivery.protocol != "mail":
                notes.append(f"{delivery_id}: not a delivery of ours")
                continue
            tx.confirm(delivery.id, state, text, stored.id)
            keys += [("delivery", delivery.id), ("case", delivery.case_key), ("patient", delivery.patient)]
            notes.append(f"{delivery_id}: {text}")
        tx.integrate(stored.id, b"", keys=keys, note="\n".join(notes) or f"{mail.kind}: kept for a person")

    try:
        hub.store.write(SYSTEM, work)
    except Stale:
        log.info("mail %s was taken in meanwhile", stored.id)


def _read(raw: bytes) -> received.Received:
    """What the mail is; one that breaks its reader is kept for a person, and the mails behind it are read."""
    try:
        return received.read(raw)
    except Exception:
        log.exception("a mail of %d bytes could not be read", len(raw))
        return received.Received("other")


def settled_by(mail: received.Received) -> list[tuple[str, str, str]]:
    """(delivery id, state, words) that a DSN or MDN says of our deliveries."""
    out = []
    if mail.dsn is not None:
        # Some operators lose the ENVID; the Message-ID of the mail they return begins with the same delivery id.
        key = mail.dsn.envelope_id or _delivery_id(mail.dsn.original_message_id)
        for notice in mail.dsn.recipients:
            state = _ACTIONS.get(notice.action, "")
            if state and key:
                text = f"{notice.action} {notice.status} {notice.recipient} {notice.diagnostic}".strip()
                out.append((key, state, text))
    if mail.mdn is not None and mail.mdn.original_message_id:
        key = _delivery_id(mail.mdn.original_message_id)
        text = f"{mail.mdn.disposition} {mail.mdn.error_code} {mail.mdn.error_text}".strip()
        out.append((key, "refused" if mail.mdn.error_code else "confirmed", text))
    return out


def _delivery_id(message_id: str) -> str:
    return message_id.strip("<>").partition("@")[0]


_ACTIONS = {"delivered": "confirmed", "relayed": "confirmed", "expanded": "confirmed", "failed": "refused"}
