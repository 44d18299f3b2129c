"""HL7 v2 messages coming in: stored first, then taken in as one transaction, then answered.

AA only after the commit that makes it true (CI-SIS: "integrated"); AE for what a resend cannot cure, AR for "not now".
Sources: IHE PAM France 2.11, CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1, HL7 v2.5 chapter 2.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fhir_server.changes import Applied, Change, Hub, apply, view_of
from fhir_server.context import SYSTEM, Caller, View, new_delivery_id
from fhir_server.errors import (
    Conflict,
    Fault,
    Invalid,
    Malformed,
    PasserelleError,
    RuleBroken,
    Unavailable,
    Unsupported,
)
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
            raise Conflict(
                f"MSH-10 {head.get('MSH-10') if head else ''} was used before with other content "
                f"(message {received.rival}); send this message under a new control id",
                location="MSH^1^10",
            )
        if head is None:
            raise Malformed("this is no HL7 v2 message: it does not begin with an MSH segment", location="MSH^1")
        return _take_in(hub, raw, head, received.id, peer)
    except Stale:
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
    _check_mode(msg, site)
    code, trigger = msg.text("MSH-9.1"), msg.text("MSH-9.2")
    handler = _HANDLERS.get(f"{code}^{trigger}")
    if handler is None:
        known = ", ".join(sorted(_HANDLERS))
        raise Unsupported(f"{code}^{trigger} is not taken in here; taken: {known}", location="MSH^1^9")
    return handler(arrival, raw)


def _adt(arrival: _Arrival, raw: bytes) -> bytes:
    """A patient and its stay: Patient and Encounter, with the acknowledgement, in one transaction."""
    hub, msg = arrival.hub, arrival.msg
    _check_structure(msg)
    try:
        mapped = hl7v2_to_fhir.adt(msg, arrival.site)
    except Refused as refused:
        raise Invalid(refused.text, location=refused.location, code=refused.code or "value") from refused
    notes = [f"{loss.source}: {loss.reason}" for loss in mapped.losses]
    answer = ack.build(raw, "AA", now=hub.clock(), control_id=new_delivery_id())
    keys = _keys(mapped.value)

    def also(tx: Tx, applied: list[Applied]) -> None:
        patient = next((done.id for done in applied if done.type == "Patient"), "")
        tx.integrate(arrival.inbox_id, answer, keys=(*keys, ("patient", f"Patient/{patient}")), note="\n".join(notes))

    for attempt in range(3):
        changes = _adt_changes(arrival, mapped.value, notes)
        try:
            apply(hub, arrival.caller, changes, also=also)
            return answer
        except Conflict:
            if attempt == 2:
                raise
    raise AssertionError("unreachable")


def _adt_changes(arrival: _Arrival, result: AdtResult, notes: list[str]) -> list[Change]:
    hub = arrival.hub
    patient = result.patient
    with hub.store.read(arrival.caller) as snapshot:
        view = view_of(snapshot)
        found = identity.match(view, patient, hub.sites)
        known = view.get(found.reference) if found.reference else None
        reference = found.reference or f"Patient/{uuid.uuid4()}"
        if found.kind == "reconcile":
            notes.append(f"PID-3: à rapprocher, {found.reason}")
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
    """The stay under its visit number: the same number is the same Encounter."""
    key = ""
    for identifier in encounter.get("identifier", ()):
        system, value = identifier.get("system", ""), identifier.get("value", "")
        found = view.find("Encounter", f"identifier={system}|{value}") if system and value else []
        if found:
            key = found[0]["id"]
            break
    key = key or str(uuid.uuid4())
    whole = {**encounter, "id": key, "subject": {"reference": f"Patient/{patient}"}, "serviceProvider": organization}
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
            raise RuleBroken(f"no message with MSH-10 {said.control_id} was sent from here", location="OBX-4")
        settled = tx.confirm(delivery.id, "confirmed" if said.ok else "refused", text, arrival.inbox_id)
        keys = (("delivery", delivery.id), ("case", delivery.case_key), ("patient", delivery.patient))
        tx.integrate(arrival.inbox_id, answer, keys=keys, note=text if settled else f"{text} (was settled before)")

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


def _check_structure(msg: Message) -> None:
    """Raise Invalid carrying every structural error; its first ERR-2 location leads."""
    found = check.errors(check.check(msg))
    if found:
        told = "; ".join(f"{f.location}: {f.text}" for f in found[:5])
        raise _Findings(told, found)


class _Findings(Invalid):
    """The message does not hold what its type needs."""

    def __init__(self, text: str, found: list[check.Finding]) -> None:
        super().__init__(text, location=found[0].location, code="required")
        self.found = found


def _check_mode(msg: Message, site: Site) -> None:
    processing = msg.text("MSH-11.1")
    if site.mode == "production" and processing != "P":
        text = f"MSH-11 is {processing!r} and {site.name} is a production site, which takes P only"
        raise Invalid(text, location="MSH^1^11", code="value")


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
    except PasserelleError:
        log.warning("message %s was settled meanwhile", inbox_id)
    return answer


def _errors(error: PasserelleError) -> list[AckError]:
    if isinstance(error, _Findings):
        return [AckError(f.location, f.code, f.text) for f in error.found]
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
    return _refuse(
        hub, inbox_id, raw, Unavailable("this message is being taken in by another connection; send it again")
    )


def _head(raw: bytes) -> Message | None:
    try:
        msg = message.parse(raw)
    except message.Unreadable:
        return None
    return msg if msg.text("MSH-1") else None
