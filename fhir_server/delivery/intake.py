"""HL7 v2 messages coming in: stored first, then taken in as one transaction, then answered.

AA only after the commit that makes it true (CI-SIS: "integrated"); AE for what a resend cannot cure, AR for "not now".
A port may promise less (`ports`): then AA says stored or validated, and `take_waiting` takes the message in later. So
it does with what was answered CA and is not settled (`committed`).
Sources: IHE PAM France 2.11, CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1, HL7 v2.5 chapter 2.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, new_message_id
from fhir_server.delivery import committed, message_keys
from fhir_server.delivery.arrivals import Arrival, Decide, Rejected, Settled, rejected, take
from fhir_server.delivery.intake_acks import zam
from fhir_server.delivery.intake_adt import adt
from fhir_server.delivery.intake_documents import mdm
from fhir_server.delivery.intake_requests import orders
from fhir_server.delivery.intake_results import oru
from fhir_server.delivery.intake_slots import siu
from fhir_server.delivery.places import located
from fhir_server.delivery.ports import Port, load_ports, read
from fhir_server.delivery.turns import Turn, TurnLost, taken
from fhir_server.errors import Conflict, Fault, NotFound, PasserelleError, RuleBroken, Throttled, Unavailable
from fhir_server.security.identity import wire_caller
from fhir_server.store import inbox
from fhir_server.store.blob_seal import Damaged
from fhir_server.store.inbox import InboxRow, NewMessage, Received
from fhir_server.store.session import Tx
from fhir_server.store.view import Stale, instant_of
from hl7v2 import ack, check
from hl7v2.ack import AckError
from hl7v2.message import Message, Unreadable
from mappers.hl7v2_events_to_fhir import EVENTS
from mappers.hl7v2_to_fhir import Refused
from mappers.identity import Site

log = logging.getLogger("passerelle.hl7v2")
MEDIA = "x-application/hl7-v2+er7"
OnMessage = Callable[[bytes, str], bytes]

HANDLERS: Mapping[str, Callable[[Arrival], Decide]] = {
    # Patient, Encounter, Consent; A40 A44 A47 also List and Provenance
    **{f"ADT^{trigger}": adt for trigger in EVENTS},
    # DiagnosticReport, Observation, Specimen, DocumentReference, Binary; or the step of a ServiceRequest (OK, OC)
    "ORU^R01": oru,
    # DocumentReference, Binary
    **{f"MDM^{trigger}": mdm for trigger in ("T02", "T04", "T10")},
    # ServiceRequest (draft, revoked, completed), Observation
    "ORM^O01": orders,
    "OMI^O23": orders,
    # Appointment
    **{f"SIU^{trigger}": siu for trigger in ("S12", "S13", "S14", "S15")},
    # the second leg of a delivery
    **{f"ZAM^{trigger}": zam for trigger in ("Z01", "Z02", "Z03")},
}
"""What is taken in, by whom, and what comes out of it. Anything else: AE (AR on a base-HL7 port) with 200 or 201."""


def on_message(hub: Hub, raw: bytes, peer: str, port: Port | None = None) -> bytes:
    """Take one message in and return the acknowledgement's bytes. Never raises for what a peer sends."""
    port = port or Port(hub.settings.mllp_port)
    head = _head(hub, raw, port)
    return _answered(hub, raw, peer, port, head, _received(hub, raw, peer, port, head))


def wired(hub: Hub, port: Port) -> tuple[OnMessage, OnMessage | None]:
    """`on_message` and, for a port in enhanced mode, `on_store` of its Listener.

    Both are called for the same message by the same thread, one after the other, so that it is journalled once. The
    first gives b'' for a message that was answered CA and is not settled yet: `take_waiting` goes on with it.
    """
    if port.mode == "original":
        return (lambda raw, peer: on_message(hub, raw, peer, port)), None
    under_way = threading.local()

    def store(raw: bytes, peer: str) -> bytes:
        try:
            under_way.held = raw, _received(hub, raw, peer, port, _head(hub, raw, port))
        except PasserelleError as error:
            told = [AckError("", Unavailable.hl7_err, error.diagnostics)]
            return ack.build(
                raw, "CR", text=error.diagnostics, errors=told, now=hub.clock(), control_id=new_message_id()
            )
        return b""

    def answer(raw: bytes, peer: str) -> bytes:
        held, received = getattr(under_way, "held", (None, None))
        under_way.held = None, None
        head = _head(hub, raw, port)
        if held is not raw or received is None:
            received = _received(hub, raw, peer, port, head)
        return _answered(hub, raw, peer, port, head, received)

    return answer, store


def take_waiting(hub: Hub, ports: tuple[Port, ...]) -> bool:
    """Take in what was answered when it was only stored or validated, oldest first; True when there was any.

    One process at a time does so for a port. A few messages at a time: whoever waits for a stop waits for one of them.
    """
    some: list[bool] = []
    faults: list[Exception] = []
    for port in ports:
        try:
            some.append(port.answers_early and _taken_in(hub, port))
        except Exception as fault:
            faults.append(fault)  # the other ports go on all the same
    if faults:
        raise faults[0]
    return any(some)


def again(hub: Hub, row: InboxRow, raw: bytes) -> bytes:
    """Take a message in once more, as the port it came by would, and at once; the acknowledgement."""
    known = {port.endpoint: port for port in load_ports(hub.settings, hub.sites)}
    port = known.get(row.endpoint) or Port(hub.settings.mllp_port)
    return on_message(hub, raw, row.peer, replace(port, answer="integrated", mode="original"))


AT_A_TIME = 50


def _taken_in(hub: Hub, port: Port) -> bool:
    """The next messages of a port, as long as it is this process's turn and nothing makes them wait."""
    if not _waiting(hub, port) or (turn := taken(hub, port.endpoint)) is None:
        return False
    try:
        rows = _waiting(hub, port)  # seen before the turn, they may be another's work
        for row in rows:
            if not turn.kept():
                return False
            _next(hub, port, row, turn)
            with hub.store.read(SYSTEM) as snapshot:
                settled = snapshot.message(row.id)
            if settled is not None and settled.state == "received":
                return False  # not now; nobody overtakes it
        return bool(rows)
    except TurnLost:
        log.warning("port %s: another process went on with what waits", port.endpoint)
        return False
    finally:
        turn.give_back()


def _next(hub: Hub, port: Port, row: InboxRow, turn: Turn) -> None:
    """Take in a message that waits; one that is lost, or has waited too long, is left to a person."""
    try:
        with hub.store.read(SYSTEM) as snapshot:
            raw = snapshot.message_raw(row.id)
    except (NotFound, Damaged) as lost:
        log.error("message %s of %s cannot be taken in: %s", row.id, port.endpoint, lost.diagnostics)
        _leave(hub, row, lost, turn)
        return
    if committed.is_old(hub, port, row):
        text = f"not taken in since {instant_of(row.received_at)}, before this server started: a person decides"
        log.warning("message %s (%s %s of %s): %s", row.id, row.message_type, row.control_id, row.sender, text)
        _leave(hub, row, RuleBroken(text), turn)
    else:
        _settled(hub, raw, row.peer, port, _head(hub, raw, port), row.id, turn)


def _leave(hub: Hub, row: InboxRow, why: PasserelleError, turn: Turn) -> None:
    """Leave a message to a person, without an answer: when its sender sends it again, it is taken in."""
    with suppress(Stale):
        _reject(hub, row.id, why, None, turn)


def _waiting(hub: Hub, port: Port) -> list[InboxRow]:
    with hub.store.read(SYSTEM) as snapshot:
        waiting = inbox.waiting(snapshot.view, "mllp", port.endpoint, AT_A_TIME)
    return committed.left_behind(hub, port, waiting)


def _received(hub: Hub, raw: bytes, peer: str, port: Port, head: _Head) -> Received:
    """Store a message, or find it again. One that failed for a defect of ours waits again, where it is promised."""
    msg = head.msg
    received = hub.store.receive(
        NewMessage(
            channel="mllp",
            raw=raw,
            endpoint=port.endpoint,
            peer=peer,
            sender=f"{msg.get('MSH-3')}|{msg.get('MSH-4')}" if msg else "",
            control_id=msg.text("MSH-10") if msg else "",
            message_type=f"{msg.kind}^{msg.trigger}" if msg else "",
            media_type=MEDIA,
            keys=message_keys.keys(msg, _site(hub, port, msg).finess_eg) if msg else (),
        )
    )
    promised = port.answer != "integrated" or committed.promised(port, raw)
    if promised and received.state == "error" and received.ack is None:
        with suppress(RuleBroken):  # another connection brought it too, and it is taken in by now
            hub.store.write(SYSTEM, lambda tx: tx.reopen(received.id))
    return received


def _answered(hub: Hub, raw: bytes, peer: str, port: Port, head: _Head, received: Received) -> bytes:
    """The answer the port promises to a message that is stored."""
    if received.known and received.ack is not None:
        return received.ack
    settle = partial(_settled, hub, raw, peer, port, head, received.id)
    if received.conflict:
        text = f"MSH-10 was used before with other content (message {received.rival}); take a new control id"
        settle = partial(_refuse, hub, received.id, raw, port, Conflict(text, location="MSH^1^10"))
    if port.answer == "integrated" or head.fault is not None or received.conflict:
        if port.answer == "integrated" and committed.promised(port, raw):
            return committed.in_line(hub, port, raw, received.id, settle)
        with committed.at_hand(received.id):
            return settle()
    if port.answer == "validated":
        try:
            _prepared(_arrival(hub, head.whole(), received.id, peer, port))
        except PasserelleError as error:
            return _refuse(hub, received.id, raw, port, error)
    return ack.build(raw, "AA", now=hub.clock(), control_id=new_message_id())


def _settled(
    hub: Hub, raw: bytes, peer: str, port: Port, head: _Head, inbox_id: str, turn: Turn | None = None
) -> bytes:
    """Take a stored message in, or say why not; both are recorded. Raises TurnLost when `turn` is another's by then."""
    try:
        arrival = replace(_arrival(hub, head.whole(), inbox_id, peer, port), turn=turn)
        decide = _prepared(arrival)
        try:
            return take(arrival, raw, decide)
        except Refused as refused:
            raise _of_mapper(refused) from refused
        except Unreadable as unreadable:
            raise _unreadable(unreadable) from unreadable
    except Settled:
        return _answer_of_the_first(hub, inbox_id, raw)
    except TurnLost:
        raise
    except PasserelleError as error:
        return _refuse(hub, inbox_id, raw, port, located(error, head.msg), turn)
    except Exception:
        log.exception("message %s could not be taken in", inbox_id)
        fault = Fault(f"a defect of the receiver; its log names message {inbox_id}")
        return _refuse(hub, inbox_id, raw, port, fault, turn)


def _arrival(hub: Hub, msg: Message, inbox_id: str, peer: str, port: Port) -> Arrival:
    site = _site(hub, port, msg)
    caller = wire_caller("mllp", f"{msg.get('MSH-3')} {msg.get('MSH-4')}".strip(), peer)
    return Arrival(hub, caller, inbox_id, msg, site, port)


def _site(hub: Hub, port: Port, msg: Message) -> Site:
    """The establishment whose software sends, else the port's."""
    default = hub.sites.by_key(port.site) if port.site else hub.sites.default
    return hub.sites.of_message(msg.text("MSH-3"), msg.text("MSH-4")) or default


def _prepared(arrival: Arrival) -> Decide:
    """What the message means, once it is known, allowed and sound. Raises PasserelleError."""
    handler = _handler(arrival.msg)
    _check_mode(arrival.msg, arrival.site)
    found = check.errors(check.check(arrival.msg))
    if found:
        raise Rejected([AckError(finding.location, finding.code, finding.text) for finding in found])
    try:
        return handler(arrival)
    except Refused as refused:
        raise _of_mapper(refused) from refused
    except Unreadable as fault:
        raise _unreadable(fault) from fault


def _unreadable(fault: Unreadable) -> Rejected:
    return rejected(fault.text, fault.location, fault.code)


def _of_mapper(refused: Refused) -> Rejected:
    return rejected(refused.text, refused.location, refused.condition)


def _handler(msg: Message) -> Callable[[Arrival], Decide]:
    """What takes this kind of message in; table 0357 tells a type from an event nobody here knows."""
    code, trigger = msg.kind, msg.trigger
    handler = HANDLERS.get(f"{code}^{trigger}")
    if handler is None:
        taken = [name for name in HANDLERS if name.startswith(f"{code}^")]
        known = sorted(taken) or sorted({name.partition("^")[0] for name in HANDLERS})
        text = f"{code[:20]}^{trigger[:20]} is not taken in here; taken: {', '.join(known)}"
        raise rejected(text, "MSH^1^9", "201" if taken else "200")
    return handler


def _check_mode(msg: Message, site: Site) -> None:
    processing = msg.text("MSH-11.1")
    if site.mode == "production" and processing != "P":
        text = f"MSH-11 is {processing!r} and {site.name} is a production site, which takes P only"
        raise rejected(text, "MSH^1^11", "202")


_BASE_REJECTS = frozenset({"200", "201", "202", "203"})


def _refuse(hub: Hub, inbox_id: str, raw: bytes, port: Port, error: PasserelleError, turn: Turn | None = None) -> bytes:
    told = error.found if isinstance(error, Rejected) else [AckError(error.location, error.hl7_err, error.diagnostics)]
    # Base HL7 (2.5, chapter 2.9.2) rejects what it does not support; a resend cures nothing all the same.
    base = port.refusals == "base" and told[0].code in _BASE_REJECTS
    code = "AR" if base else error.hl7_ack
    answer = ack.build(raw, code, text=error.diagnostics, errors=told, now=hub.clock(), control_id=new_message_id())
    promised = turn is not None or port.answer != "integrated" or committed.promised(port, raw)
    if promised and isinstance(error, (Unavailable, Throttled)):
        # AA or CA was said already: the message waits for its next turn.
        return answer
    kept = None if error.hl7_ack == "AR" else answer
    try:
        _reject(hub, inbox_id, error, kept, turn)
    except Stale:
        return _answer_of_the_first(hub, inbox_id, raw)
    except TurnLost:
        raise
    except Exception:
        # Its row stays as received: an answer that forbids the resend would lose it.
        log.exception("the refusal of message %s could not be stored", inbox_id)
        return _busy(hub, raw, "the message could not be settled now; send it again")
    return answer


def _reject(hub: Hub, inbox_id: str, error: PasserelleError, kept: bytes | None, turn: Turn | None) -> None:
    """Record why a message is not taken in. Raises Stale when it was settled before, TurnLost."""
    if turn is None:
        hub.store.reject(inbox_id, error.diagnostics, error.location, kept)
        return

    def reject(tx: Tx, turn: Turn = turn) -> None:
        turn.check(tx)
        tx.reject(inbox_id, error.diagnostics, error.location, kept)

    hub.store.write(SYSTEM, reject)


def _busy(hub: Hub, raw: bytes, text: str, code: Literal["AR", "CR"] = "AR") -> bytes:
    told = [AckError("", Unavailable.hl7_err, text)]
    return ack.build(raw, code, text=text, errors=told, now=hub.clock(), control_id=new_message_id())


def _answer_of_the_first(hub: Hub, inbox_id: str, raw: bytes) -> bytes:
    """The same message was under way twice: both get the answer of the one that came first."""
    with hub.store.read(SYSTEM) as snapshot:
        row = snapshot.message(inbox_id)
    if row is not None and row.ack:
        return row.ack
    return _busy(hub, raw, "this message is being taken in by another connection; send it again")


@dataclass(frozen=True, slots=True)
class _Head:
    """What can be read of a message: all of it; else with the `fault` its MSH alone, or nothing."""

    msg: Message | None
    fault: Unreadable | None = None

    def whole(self) -> Message:
        """All of it. Raises Rejected with what is wrong."""
        if self.fault is not None or self.msg is None:
            raise _unreadable(self.fault or Unreadable("nothing can be read"))
        return self.msg


def _head(hub: Hub, raw: bytes, port: Port) -> _Head:
    try:
        return _Head(read(raw, port, hub.sites))
    except Unreadable as fault:
        # Beyond a bound: the beginning is sound.
        return _Head(ack.header_of(raw) if fault.code == "198" else None, fault)
