"""What is looked at once more before frozen bytes leave: do they still say the truth (design, invariant 3).

Bytes that name a patient who was merged away or has lost the INS in them, or a report that was replaced or withdrawn
since, are held for a person, who releases them as they are, regenerates them (a new delivery) or cancels them.
"""

from __future__ import annotations

import logging
from typing import Any

from fhir_server.patients.identity import qualified_ins
from fhir_server.store.lanes import Claim, Delivery, Outcome
from fhir_server.store.session import Snapshot

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
    status = str(report.get("status", ""))
    if status in _WITHDRAWN:
        return f"{delivery.document} is {status} now"
    if not delivery.document_version or stored.version == delivery.document_version:
        return ""
    told = delivery.document_version
    frozen = snapshot.version(kind, key, told)
    if frozen is not None and not frozen.deleted and _told(frozen.resource()) == _told(report):
        return ""
    return f"{delivery.document} was replaced by version {stored.version} ({status}); these bytes tell version {told}"


def _told(report: Resource) -> Resource:
    """What a document says of it: not its tags, its narrative, nor what this server notes about it."""
    return {name: value for name, value in report.items() if name not in ("meta", "text", "extension")}
