"""The story of one téléexpertise, in words and in order of time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fhir_server.context import SYSTEM
from fhir_server.desk.words import Args, Json, id_of, when
from fhir_server.errors import NotFound
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow
from fhir_server.store.instances import Study
from fhir_server.store.lanes import Delivery
from fhir_server.store.outbox_desk import Attempt
from fhir_server.store.resources import Stored
from fhir_server.store.session import Snapshot
from fhir_server.teleexpertise import notes


def trace(store: Store, args: Args) -> Json:
    """The story of one téléexpertise (ServiceRequest id) in order of time."""
    key = id_of(args).removeprefix("ServiceRequest/")
    with store.read(SYSTEM) as snapshot:
        if snapshot.get("ServiceRequest", key) is None:
            raise NotFound(f"no ServiceRequest {key} is known here; search /fhir/ServiceRequest")
        return _story(snapshot, key)


def _story(snapshot: Snapshot, key: str) -> Json:
    """The case's own events, and the messages that brought its patient."""
    events = snapshot.case(f"ServiceRequest/{key}")
    stored = snapshot.get("ServiceRequest", key)
    patient = stored.resource().get("subject", {}).get("reference", "") if stored and not stored.deleted else ""
    told = {event.record.id for event in events if isinstance(event.record, InboxRow)}
    before = snapshot.messages(InboxFilter(key=("patient", patient), limit=100)) if patient else []
    lines = [(event.at, event.kind, _line(event.record), event.source) for event in events if event.kind != "audit"]
    lines += [
        (row.received_at, "message", _line(row), f"{row.channel} {row.peer}") for row in before if row.id not in told
    ]
    return [
        {"at": when(at), "kind": kind, "text": text, "source": source}
        for at, kind, text, source in sorted(lines, key=lambda line: line[0])
    ]


def _line(record: Any) -> str:
    """One record of the story in words."""
    match record:
        case InboxRow():
            settles = (
                f" ({record.note})" if record.note and record.message_type.startswith(("ZAM", "dsn", "mdn")) else ""
            )
            return f"received {record.message_type} {record.control_id} from {record.sender}: {record.state}{settles}"
        case Stored():
            return f"{record.type}/{record.id} version {record.version}{_status(record)}"
        case Study():
            return (
                f"study {record.study_uid}: {record.instances} object(s), {record.match_state} {record.imaging_study}"
            )
        case Delivery():
            leg = (
                f"; second leg {record.leg_state} ({record.leg_text})"
                if record.leg_text or record.leg_state not in ("", "waiting")
                else ""
            )
            return f"delivery {record.id} to {record.title} ({record.protocol}): {record.state}{leg}"
        case Attempt():
            return (
                f"attempt {record.n} of {record.delivery_id}: {record.outcome or 'under way'} {record.error}".rstrip()
            )
    return str(record)


def _split(resource: Mapping[str, Any]) -> str:
    """Where an active request stands. The address of the extension is a setting; its codes are not."""
    if resource.get("resourceType") != "ServiceRequest" or resource["status"] != "active":
        return ""
    codes = (one.get("valueCoding", {}).get("code", "") for one in resource.get("extension", ()))
    return next((f" ({code})" for code in codes if code in ("ready", "in_progress")), "")


def _status(stored: Stored) -> str:
    if stored.deleted:
        return ", deleted"
    resource = stored.resource()
    status = [resource["status"] + _split(resource)] if isinstance(resource.get("status"), str) else []
    step = [word] if (word := notes.step_of(resource)) else []
    return "".join(f", {words}" for words in (*status, *step, *notes.noted(resource)))
