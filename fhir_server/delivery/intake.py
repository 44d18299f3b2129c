"""HL7 v2 messages coming in: stored first, then taken in as one transaction, then answered.

AA only after the commit that makes it true (CI-SIS: "integrated"); AE for what a resend cannot cure, AR for "not now".
Sources: IHE PAM France 2.11, CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1, HL7 v2.5 chapter 2.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhir_server.changes import ATTEMPTS, Applied, Change, Hub, apply, view_of
from fhir_server.context import SYSTEM, Caller, View, new_delivery_id
from fhir_server.errors import Conflict, Fault, Invalid, Malformed, PasserelleError, Precondition, Unavailable
from fhir_server.patients import identity
from fhir_server.security.identity import wire_caller
from fhir_server.store.inbox import NewMessage
from fhir_server.store.session import Snapshot, Tx
from fhir_server.store.view import Stale
from hl7v2 import ack, check, message
from hl7v2.ack import AckError
from hl7v2.message import Message
from mappers import hl7v2_to_fhir
from mappers.hl7v2_to_fhir import AdtResult, Refused
from mappers.identity import Site

log = logging.getLogger("passerelle.hl7v2")
Resource = dict[str, Any]
Keys = tuple[tuple[str, str], ...]
MEDIA = "x-application/hl7-v2+er7"


@dataclass(frozen=True, slots=True)
class _Arrival:
    """One message under way: its inbox row, who sent it and for which establishment."""

    hub: Hub
    caller: Caller
    inbox_id: str
    msg: Message
    site: Site


def on_message(hub: Hub, raw: bytes, peer: str) -> bytes:
    """Take one message in and return the acknowledgement's bytes. Never raises for what a peer sends."""
    head = _head(raw)
    received = hub.store.receive(
        NewMessage(
            channel="mllp",
            raw=raw,
            endpoint=f"mllp:{hub.settings.mllp_port}",
            peer=peer,
            sender=f"{head.get('MSH-3')}|{head.get('MSH-4')}" if head else "",
            control_id=head.text("MSH-10") if head else "",
            message_type=f"{head.kind}^{head.trigger}" if head else "",
            media_type=MEDIA,
            keys=(("msh-10", head.text("MSH-10")),) if head else (),
        )
    )
    if received.known and received.ack is not None:
        return received.ack
    try:
        if received.conflict:
            text = f"MSH-10 was used before with other content (message {received.rival}); take a new control id"
            raise Conflict(text, location="MSH^1^10")
        if head is None:
            raise Malformed("this is no HL7 v2 message: it does not begin with an MSH segment", location="MSH^1")
        return _take_in(hub, raw, head, received.id, peer)
    except _Settled:
        return _answer_of_the_first(hub, received.id, raw)
    except PasserelleError as error:
        return _refuse(hub, received.id, raw, error)
    except Exception:
        log.exception("message %s could not be taken in", received.id)
        return _refuse(hub, received.id, raw, Fault(f"a defect of the receiver; its log names message {received.id}"))


def _take_in(hub: Hub, raw: bytes, msg: Message, inbox_id: str, peer: str) -> bytes:
    site = hub.sites.of_message(msg.text("MSH-3"), msg.text("MSH-4")) or hub.sites.default
    caller = wire_caller("mllp", f"{msg.get('MSH-3')} {msg.get('MSH-4')}".strip(), peer)
    arrival = _Arrival(hub, caller, inbox_id, msg, site)
    handler = _handler(msg)
    _check_mode(msg, site)
    _check_structure(msg)
    try:
        return handler(arrival, raw)
    except Refused as refused:
        raise _Rejected([AckError(refused.location, refused.condition, refused.text)]) from refused


def _handler(msg: Message) -> Callable[[_Arrival, bytes], bytes]:
    """What takes this kind of message in; table 0357 tells a type from an event nobody here knows."""
    code, trigger = msg.text("MSH-9.1"), msg.text("MSH-9.2")
    handler = _HANDLERS.get(f"{code}^{trigger}")
    if handler is None:
        taken = [name for name in _HANDLERS if name.startswith(f"{code}^")]
        text = f"{code[:20]}^{trigger[:20]} is not taken in here; taken: {', '.join(sorted(taken or _HANDLERS))}"
        raise _Rejected([AckError("MSH^1^9", "201" if taken else "200", text)])
    return handler


def _adt(arrival: _Arrival, raw: bytes) -> bytes:
    """A patient and its stay: Patient and Encounter, with the acknowledgement, in one transaction."""
    hub = arrival.hub
    mapped = hl7v2_to_fhir.adt(arrival.msg, arrival.site)
    losses = [f"{loss.source}: {loss.reason}" for loss in mapped.losses]
    doubt: list[str] = []
    answer = ack.build(raw, "AA", now=hub.clock(), control_id=new_delivery_id())
    keys = _keys(mapped.value)

    def also(tx: Tx, applied: list[Applied]) -> None:
        patient = next((done.id for done in applied if done.type == "Patient"), "")
        found = (*keys, ("patient", f"Patient/{patient}"))
        _integrate(tx, arrival.inbox_id, answer, found, "\n".join([*doubt, *losses]))

    for attempt in range(ATTEMPTS):
        doubt.clear()
        changes = _adt_changes(arrival, mapped.value, doubt)
        try:
            apply(hub, arrival.caller, changes, also=also)
            return answer
        except Conflict as conflict:
            # Others write about the same person: look again. Who is never in luck may send again (AR).
            moved = isinstance(conflict, Precondition) or isinstance(conflict.__cause__, Stale)
            if attempt == ATTEMPTS - 1 and moved:
                raise Unavailable("the patient kept changing while this was taken in; send it again") from conflict
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _integrate(tx: Tx, inbox_id: str, answer: bytes, keys: Keys, note: str) -> None:
    """Settle the message in the transaction that took it in; of two that take it in at once, one does."""
    try:
        tx.integrate(inbox_id, answer, keys=keys, note=note)
    except Stale as stale:
        raise _Settled from stale


def _adt_changes(arrival: _Arrival, result: AdtResult, doubt: list[str]) -> list[Change]:
    """The Patient this is, a new one, or a doubtful record of its own; and its stay. `doubt` is told why."""
    hub = arrival.hub
    patient = result.patient
    with hub.store.read(arrival.caller) as snapshot:
        view = view_of(snapshot)
        found = identity.match(view, patient, hub.sites)
        known = view.get(found.reference) if found.reference else None
        reference = found.reference or f"Patient/{uuid.uuid4()}"
        if found.kind == "reconcile":
            doubt.append(f"PID-3: à rapprocher, {found.reason}")
            patient = identity.to_reconcile(patient, found.reason)
        whole = identity.merged(known, patient) if known else patient
        if found.kind == "reconcile":
            whole["meta"] = patient["meta"]
        key = reference.split("/")[1]
        organization = {"reference": f"Organization/{arrival.site.key}"}
        whole = {**whole, "id": key, "managingOrganization": organization}
        changes = [Change("update", "Patient", key, whole, if_match=_version(snapshot, reference))]
        if result.encounter is not None:
            changes.append(_encounter_change(snapshot, view, result.encounter, key, organization))
    return changes


def _encounter_change(
    snapshot: Snapshot, view: View, encounter: Resource, patient: str, organization: Resource
) -> Change:
    """The stay under its visit number: the same number is the same Encounter, and keeps what is not said again."""
    known: Resource = {}
    for identifier in encounter.get("identifier", ()):
        system, value = identifier.get("system", ""), identifier.get("value", "")
        found = view.find("Encounter", identity.identifier_query(system, value)) if system and value else []
        mine = [stay for stay in found if stay.get("subject", {}).get("reference") == f"Patient/{patient}"]
        if mine:
            known = {name: part for name, part in mine[0].items() if name != "meta"}
            break
    key = known.get("id") or str(uuid.uuid4())
    whole = {**known, **encounter, "id": key}
    whole |= {"subject": {"reference": f"Patient/{patient}"}, "serviceProvider": organization}
    if known.get("period") and encounter.get("period"):
        whole["period"] = {**known["period"], **encounter["period"]}
    return Change("update", "Encounter", key, whole, if_match=_version(snapshot, f"Encounter/{key}"))


def _zam(arrival: _Arrival, raw: bytes) -> bytes:
    """A business acknowledgement settles the second leg of the delivery whose MSH-10 it names."""
    hub = arrival.hub
    said = hl7v2_to_fhir.zam(arrival.msg)
    answer = ack.build(raw, "AA", now=hub.clock(), control_id=new_delivery_id())
    text = f"{said.event} {'accepted' if said.ok else 'refused'} {said.error_code} {said.error_text}".strip()

    def work(tx: Tx) -> None:
        delivery = tx.delivery(said.control_id)
        if delivery is None:
            told = f"no message with MSH-10 {said.control_id[:50]} was sent from here"
            raise _Rejected([AckError("OBX^1^4", "204", told)])
        awaited = delivery.second_leg == "zam" and said.event == "Z01"
        state = "confirmed" if said.ok else "refused"
        settled = awaited and tx.confirm(delivery.id, state, text, arrival.inbox_id)
        late = "was settled before" if awaited else "none was awaited"
        keys = (("delivery", delivery.id), ("case", delivery.case_key), ("patient", delivery.patient))
        _integrate(tx, arrival.inbox_id, answer, keys, text if settled else f"{text} ({late})")

    hub.store.write(arrival.caller, work)
    return answer


_HANDLERS: Mapping[str, Callable[[_Arrival, bytes], bytes]] = {
    **{f"ADT^{trigger}": _adt for trigger in ("A01", "A04", "A05", "A28", "A31", "A03", "A02", "A06", "A07")},
    **{f"ZAM^{trigger}": _zam for trigger in ("Z01", "Z02", "Z03")},
}


def _version(snapshot: Snapshot, reference: str) -> int | None:
    """The current version of a resource, None when there is none."""
    kind, _, key = reference.partition("/")
    stored = snapshot.get(kind, key)
    return None if stored is None or stored.deleted else stored.version


class _Settled(Exception):
    """Another connection took the same message in first."""


class _Rejected(Invalid):
    """A message that a resend does not cure, with an ERR for each finding."""

    def __init__(self, found: Sequence[AckError]) -> None:
        told = "; ".join(f"{error.location}: {error.text}" for error in found[:5])
        super().__init__(told, location=found[0].location)
        self.found = list(found)


def _check_structure(msg: Message) -> None:
    """Raise _Rejected with every structural error; the first one's ERR-2 location leads."""
    found = check.errors(check.check(msg))
    if found:
        raise _Rejected([AckError(finding.location, finding.code, finding.text) for finding in found])


def _check_mode(msg: Message, site: Site) -> None:
    processing = msg.text("MSH-11.1")
    if site.mode == "production" and processing != "P":
        text = f"MSH-11 is {processing!r} and {site.name} is a production site, which takes P only"
        raise _Rejected([AckError("MSH^1^11", "202", text)])


def _refuse(hub: Hub, inbox_id: str, raw: bytes, error: PasserelleError) -> bytes:
    answer = ack.build(
        raw,
        error.hl7_ack,
        text=error.diagnostics,
        errors=_errors(error),
        now=hub.clock(),
        control_id=new_delivery_id(),
    )
    kept = None if error.hl7_ack == "AR" else answer
    try:
        hub.store.reject(inbox_id, error.diagnostics, error.location, kept)
    except Stale:
        return _answer_of_the_first(hub, inbox_id, raw)
    except Exception:
        # Its row stays as received: an answer that forbids the resend would lose it.
        log.exception("the refusal of message %s could not be stored", inbox_id)
        return _busy(hub, raw, "the message could not be settled now; send it again")
    return answer


def _busy(hub: Hub, raw: bytes, text: str) -> bytes:
    told = [AckError("", Unavailable.hl7_err, text)]
    return ack.build(raw, "AR", text=text, errors=told, now=hub.clock(), control_id=new_delivery_id())


def _errors(error: PasserelleError) -> list[AckError]:
    if isinstance(error, _Rejected):
        return error.found
    return [AckError(error.location, error.hl7_err, error.diagnostics)]


def _keys(result: AdtResult) -> Keys:
    keys = [("ins", result.ins[1])] if result.ins else []
    return tuple(keys + [("ipp", value) for _, value in result.local_ids])


def _answer_of_the_first(hub: Hub, inbox_id: str, raw: bytes) -> bytes:
    """The same message was under way twice: both get the answer of the one that came first."""
    with hub.store.read(SYSTEM) as snapshot:
        row = snapshot.message(inbox_id)
    if row is not None and row.ack:
        return row.ack
    return _busy(hub, raw, "this message is being taken in by another connection; send it again")


def _head(raw: bytes) -> Message | None:
    try:
        msg = message.parse(raw)
    except message.Unreadable:
        return None
    return msg if msg.text("MSH-1") else None
