"""What is looked at once more before frozen bytes leave: do they still say the truth (design, invariant 3).

Bytes that name a patient who was merged away or has lost the INS in them, or a report that was replaced or withdrawn
since, are held for a person, who releases them as they are, regenerates them (a new delivery) or cancels them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from fhir_server.errors import RuleBroken
from fhir_server.patients.identity import qualified_ins
from fhir_server.store.lanes import Claim, Delivery, Outcome
from fhir_server.store.outbox_desk import Attempt
from fhir_server.store.session import Snapshot, Tx
from fhir_server.store.view import Stale
from fhir_server.teleexpertise.case import Handed

log = logging.getLogger("passerelle.delivery")
Resource = dict[str, Any]
# Statuses of DiagnosticReport, DocumentReference and Composition under which the content no longer stands.
_WITHDRAWN = frozenset({"entered-in-error", "cancelled", "superseded"})


def held_back(snapshot: Snapshot, claim: Claim) -> Outcome | None:
    """Why a claimed delivery does not leave now; None when it may. Runs in the transaction that notes the attempt."""
    try:
        reason = overtaken(snapshot, claim.delivery)
    except (ValueError, KeyError, TypeError, AttributeError) as defect:
        log.exception("delivery %s could not be compared with what is stored", claim.delivery.id)
        return Outcome("held", "exception", f"a defect of this server ({type(defect).__name__}); its log has more")
    if not reason or reason == claim.delivery.cleared:
        return None
    log.warning("delivery %s is held: %s", claim.delivery.id, reason)
    return Outcome("held", "overtaken", reason)


def overtaken(snapshot: Snapshot, delivery: Delivery) -> str:
    """What happened since the bytes were frozen that makes them untrue, in words; '' when nothing did."""
    return _patient(snapshot, delivery) or _report(snapshot, delivery)


def _patient(snapshot: Snapshot, delivery: Delivery) -> str:
    kind, _, key = delivery.patient.partition("/")
    stored = snapshot.get(kind, key) if key else None
    if stored is None:
        return ""
    if stored.deleted:
        return f"{delivery.patient} was deleted after these bytes were made"
    patient = stored.resource()
    for link in patient.get("link", ()):
        if link.get("type") == "replaced-by":
            return f"{delivery.patient} was merged into {link.get('other', {}).get('reference', 'another record')}"
    ins = qualified_ins(patient)
    if delivery.ins and (ins is None or ins[1] != delivery.ins):
        now = "has no qualified INS any more" if ins is None else "has another INS now"
        return f"{delivery.patient} {now}; these bytes carry {delivery.ins}"
    return ""


def _report(snapshot: Snapshot, delivery: Delivery) -> str:
    kind, _, key = delivery.document.partition("/")
    stored = snapshot.get(kind, key) if key else None
    if stored is None:
        return ""
    if stored.deleted:
        return f"{delivery.document} was deleted after these bytes were made"
    report = stored.resource()
    status, told = str(report.get("status", "")), delivery.document_version
    if told:
        # What takes a report back tells that very status: only another content than the frozen one overtakes.
        frozen = stored if stored.version == told else snapshot.version(kind, key, told)
        if frozen is not None and not frozen.deleted and _told(frozen.resource()) == _told(report):
            return ""
    if status in _WITHDRAWN:
        return f"{delivery.document} is {status} now"
    if not told:
        return ""
    return f"{delivery.document} was replaced by version {stored.version} ({status}); these bytes tell version {told}"


def _told(report: Resource) -> Resource:
    """What a document says of it: not its tags, its narrative, nor what this server notes about it."""
    return {name: value for name, value in report.items() if name not in ("meta", "text", "extension")}


def handed(snapshot: Snapshot, delivery_id: str) -> Handed:
    """Whether the partner may have a delivery. One the outbox no longer knows was settled and cleaned away: it may."""
    delivery = snapshot.delivery(delivery_id) if delivery_id else None
    if delivery is None or delivery.state in ("sending", "sent"):
        return "gone"
    if not all(_refused(one) for one in snapshot.attempts(delivery_id)):
        return "gone"
    if any(handed(snapshot, again) == "gone" for again in snapshot.replays(delivery_id)):
        return "gone"
    if delivery.state == "cancelled":
        return "ended"
    return "kept" if delivery.state == "held" and delivery.error_class == "person" else "waits"


def _refused(attempt: Attempt) -> bool:
    """Whether an attempt ended with a definite no: not connected, or the partner's own refusal."""
    return attempt.outcome.removeprefix("late: ") in ("retry", "error", "held") and attempt.error_class != "ambiguous"


def give_up(tx: Tx, delivery_ids: Iterable[str], reason: str) -> None:
    """Cancel deliveries nobody received, in the transaction that makes what comes instead. Raises Stale when one of
    them has begun to leave since it was looked at."""
    for delivery_id in delivery_ids:
        if handed(tx, delivery_id) not in ("waits", "kept"):
            raise Stale(f"delivery {delivery_id} left meanwhile")
        try:
            tx.cancel(delivery_id, reason)
        except RuleBroken as moved:
            raise Stale(f"delivery {delivery_id} left meanwhile") from moved
        # The row is locked now: an attempt that ended between the look and the lock shows itself.
        if handed(tx, delivery_id) != "ended":
            raise Stale(f"delivery {delivery_id} was tried meanwhile")
