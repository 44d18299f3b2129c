"""The mailbox: delivery notices settle the second leg of a mail; everything else is kept in the inbox.

A notice settles a delivery only when it names both: its envelope (the delivery id) and its recipient. What is said of
anybody else (an alias, a forwarding, a forger) is kept with the delivery's case and shown.

A message is marked `\\Seen` only after the commit that stored what it says (design, invariant 1).
Sources: RFC 3464 (DSN), RFC 8098 (MDN).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from urllib.parse import urlsplit

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.errors import PasserelleError
from fhir_server.security.certificates import towards_partners
from fhir_server.security.identity import mailbox_reader
from fhir_server.store.audit import AuditRow
from fhir_server.store.inbox import NewMessage, Received
from fhir_server.store.lanes import Delivery
from fhir_server.store.session import Tx
from fhir_server.store.view import Stale
from mssante import received
from mssante.imap import ImapFault, Mailbox

log = logging.getLogger("passerelle.mail")
_READ = b""
"""What stands where another wire's acknowledgement does: a mail gets none, and was read."""


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
        with Mailbox(
            (host, int(port)),
            user,
            settings.mail_password,
            mechanism=settings.mail_mechanism,
            security=settings.imap_security,
            context=towards_partners(settings) if settings.imap_security != "none" else None,
        ) as mailbox:
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
    """Store one mail and settle what it settles, once; the same mail again changes nothing. Another one under a known
    Message-ID settles nothing: it is kept in state `conflict`, with the reason and what it says."""
    mail, caller = _read(raw), mailbox_reader(mailbox)
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
        ),
        caller,
    )
    if stored.state == "done" or stored.ack is not None:
        return

    twin = stored.conflict and _is_copy(hub, stored.rival, raw)
    try:
        hub.store.write(caller, lambda tx: _settle_mail(tx, mail, stored, mailbox, twin=twin))
    except Stale:
        log.info("mail %s was taken in meanwhile", stored.id)
        return
    if stored.conflict and not twin:
        log.warning("mail %s has the Message-ID of message %s and other content", stored.id, stored.rival)


def _is_copy(hub: Hub, first: str, raw: bytes) -> bool:
    """Whether a mail is a message that came before, delivered by another way; not where that one cannot be read."""
    try:
        with hub.store.read(SYSTEM) as snapshot:
            return received.carried(snapshot.message_raw(first)) == received.carried(raw)
    except PasserelleError:
        log.exception("message %s cannot be compared", first)
        return False


def _settle_mail(tx: Tx, mail: received.Received, stored: Received, mailbox: str, *, twin: bool) -> None:
    notes, keys = _told(tx, mail, stored)
    text = f"mail {mail.kind} {mail.message_id} of {mail.sender or 'nobody'} read from {mailbox}"
    case, outcome = next((value for kind, value in keys if kind == "case"), ""), "0"
    if twin:
        row = tx.message(stored.id)
        if row is not None and row.state == "conflict":
            tx.reopen(stored.id)
        tx.integrate(stored.id, _READ, keys=keys, note=f"the mail of message {stored.rival}, come by another way")
    elif stored.conflict:
        why = (
            f"its Message-ID came before with other content (message {stored.rival}): compare the two; "
            "`passerelle inbox replay` takes this one in all the same, `passerelle inbox refuse` puts it away"
        )
        tx.reject(stored.id, "\n".join([why, *notes]), "Message-ID", _READ, keys=keys)
        text, outcome = f"{text}; settles nothing, for {why}", "4"
    else:
        tx.integrate(stored.id, _READ, keys=keys, note="\n".join(notes) or f"{mail.kind}: kept for a person")
    tx.audit(AuditRow("E", event="mail-read", case_key=case, outcome=outcome, text=text))


def _told(tx: Tx, mail: received.Received, stored: Received) -> tuple[list[str], list[tuple[str, str]]]:
    """What a mail says of our deliveries, settled unless its Message-ID is another's, and the keys it is found by."""
    notes: list[str] = []
    keys: list[tuple[str, str]] = []
    for told in told_by(mail):
        delivery = _delivery(tx, told.delivery_id)
        if delivery is None:
            notes.append(f"{told.delivery_id}: not a delivery of ours")
            continue
        keys += [("delivery", delivery.id), ("case", delivery.case_key), ("patient", delivery.patient)]
        outcome = " (settles nothing)" if stored.conflict else _settle(tx, delivery, told, stored.id)
        notes.append(f"{told.delivery_id}: {told.text}{outcome}")
    return notes, keys


def _read(raw: bytes) -> received.Received:
    """What the mail is; one that breaks its reader is kept for a person, and the mails behind it are read."""
    try:
        return received.read(raw)
    except Exception:
        log.exception("a mail of %d bytes could not be read", len(raw))
        return received.Received("other")


@dataclass(frozen=True, slots=True)
class Told:
    """What a notice says of one recipient of one sending; `state` is '' when it settles nothing (a delay)."""

    delivery_id: str
    state: str
    text: str
    recipients: frozenset[str]


def told_by(mail: received.Received) -> list[Told]:
    """What a DSN or MDN says of our deliveries."""
    out = []
    if mail.dsn is not None:
        # Some operators lose the ENVID; the Message-ID of the mail they return begins with the same delivery id.
        key = mail.dsn.envelope_id or _delivery_id(mail.dsn.original_message_id)
        for notice in mail.dsn.recipients:
            text = f"{notice.action} {notice.status} {notice.recipient} {notice.diagnostic}".strip()
            about = frozenset({notice.recipient.lower(), notice.original_recipient.lower()})
            if key:
                out.append(Told(key, _ACTIONS.get(notice.action, ""), text, about))
    if mail.mdn is not None and mail.mdn.original_message_id:
        key = _delivery_id(mail.mdn.original_message_id)
        text = f"{mail.mdn.disposition} {mail.mdn.error_code} {mail.mdn.error_text}".strip()
        state = "refused" if mail.mdn.error_code else "confirmed"
        out.append(Told(key, state, text, frozenset({mail.mdn.recipient.lower()})))
    return out


def _delivery(tx: Tx, delivery_id: str) -> Delivery | None:
    """The mail a notice is about; for a replay (the same bytes once more) the first one, whose second leg it is."""
    found = tx.delivery(delivery_id)
    if found is not None and found.parent and found.second_leg == "none":
        first = tx.delivery(found.parent)
        found = first if first is not None and first.sha256 == found.sha256 else found
    return found if found is not None and found.protocol == "mail" else None


def _settle(tx: Tx, delivery: Delivery, told: Told, inbox_id: str) -> str:
    """Settles the second leg when the notice is about its recipient; else why not, in words."""
    recipient = urlsplit(delivery.endpoint).path.lower()
    if recipient not in told.recipients:
        return f" (settles nothing: it was sent to {recipient})"
    if not told.state:
        return " (settles nothing)"
    return "" if tx.confirm(delivery.id, told.state, told.text, inbox_id) else " (was settled before)"


def _delivery_id(message_id: str) -> str:
    return message_id.strip("<>").partition("@")[0]


_ACTIONS = {"delivered": "confirmed", "relayed": "confirmed", "expanded": "confirmed", "failed": "refused"}
