"""The story of one case: everything that carries its key, in order of time.

A case key is what the scope rows of kind `case`, the inbox, the deliveries and the audit rows of one request share
(`ServiceRequest/<id>`). Times are microseconds UTC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fhir_server.store import audit, history, inbox, instances, lanes, outbox_desk
from fhir_server.store.audit import AuditRow
from fhir_server.store.inbox import InboxRow
from fhir_server.store.instances import Study
from fhir_server.store.lanes import Delivery
from fhir_server.store.outbox_desk import Attempt
from fhir_server.store.resources import COLUMNS, OLD, Stored, stored
from fhir_server.store.view import View, visible

Kind = Literal["message", "resource", "study", "delivery", "attempt", "confirmation", "audit"]
LIMIT = 2000
_BINARY = re.compile(r'"(?:[^"\\]*/)?Binary/([A-Za-z0-9\-.]{1,64})(?:/_history/[^"]*)?"')
_RANK: dict[Kind, int] = {
    "message": 0, "study": 1, "resource": 2, "delivery": 3, "attempt": 4, "confirmation": 5, "audit": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One thing that happened. `record` is the inbox row, the resource version (a Binary's without its content), the
    study, the delivery (also of a confirmation: its second leg), the attempt or the audit row. `source` says who or
    what made it happen."""

    at: int
    kind: Kind
    record: InboxRow | Stored | Study | Delivery | Attempt | AuditRow
    source: str = ""


def case(view: View, case_key: str) -> list[TraceEvent]:
    """At most 2,000 of each kind; at the same microsecond causes come before effects.

    A caller who may see no resource of the case is told nothing of it.
    """
    versions = _versions(view, case_key) if case_key else []
    if not case_key or (not versions and not view.caller.everything):
        return []
    audited = audit.listed(view, audit.AuditFilter(case_key=case_key, limit=LIMIT))
    beside = [*_consents(view, versions), *_binaries(view, versions)]
    about = dict.fromkeys((one.type, one.id) for one in beside)
    told = [*audited, *(row for kind, key in about for row in _audit_of(view, kind, key))]
    authors = {(row.entity_type, row.entity_id, row.entity_version): by(row) for row in told}
    events = [
        TraceEvent(one.last_updated, "resource", one, authors.get((one.type, one.id, one.version), ""))
        for one in dict.fromkeys([*versions, *beside])
    ]
    for message in inbox.listed(view, inbox.InboxFilter(case_key=case_key, limit=LIMIT)):
        events.append(TraceEvent(message.received_at, "message", message, f"{message.channel} {message.peer}".strip()))
    for study in instances.studies(view, instances.StudyFilter(request=case_key, limit=LIMIT)):
        events.append(TraceEvent(study.first_at, "study", study, f"dicom {study.calling_ae}".strip()))
    for delivery in outbox_desk.listed(view, outbox_desk.OutboxFilter(case_key=case_key, limit=LIMIT)):
        events.extend(_of_delivery(view, delivery))
    events.extend(TraceEvent(row.recorded, "audit", row, by(row)) for row in audited)
    return sorted(events, key=_order)


def _order(event: TraceEvent) -> tuple[int, int, int]:
    seq = event.record.seq if isinstance(event.record, AuditRow | InboxRow) else 0
    return (event.at, _RANK[event.kind], seq)


def _of_delivery(view: View, delivery: lanes.Delivery) -> list[TraceEvent]:
    events = [TraceEvent(delivery.created_at, "delivery", delivery)]
    for attempt in outbox_desk.attempts(view, delivery.id):
        events.append(TraceEvent(attempt.started_at, "attempt", attempt, f"work {attempt.worker}"))
    if delivery.leg_at:
        told = f"message {delivery.leg_inbox}" if delivery.leg_inbox else ""
        events.append(TraceEvent(delivery.leg_at, "confirmation", delivery, told))
    return events


def by(row: AuditRow) -> str:
    """Who did what an audit row tells: name, by which way, from where."""
    return " ".join(part for part in (row.display or row.who, row.channel, row.peer) if part)


def _consents(view: View, versions: Sequence[Stored]) -> list[Stored]:
    """Every version of the consents the request ever named: they belong to the patient and to many cases."""
    named: dict[str, None] = {}
    for one in versions:
        if one.type == "ServiceRequest" and not one.deleted:
            for item in one.resource().get("supportingInfo", ()):
                reference = str(item.get("reference", "")) if isinstance(item, dict) else ""
                if reference.startswith("Consent/"):
                    named[reference.split("/")[1]] = None
    return [one for key in named for one in history.history(view, history.Wanted("Consent", key), LIMIT).entries]


def _binaries(view: View, versions: Sequence[Stored]) -> list[Stored]:
    """The versions of the Binaries that the case's resources point to, at most 2,000 in all; a Binary itself names no
    case. What they hold is left out."""
    named = dict.fromkeys(key for one in versions if not one.deleted for key in _BINARY.findall(one.text))
    if not named:
        return []
    seen, asked = visible(view.caller, "r"), json.dumps([[key] for key in list(named)[:LIMIT]])
    chosen = f"r.type = 'Binary' AND r.id IN (SELECT k.value ->> 0 FROM {view.db.dialect.each} k){seen.sql}"
    rows = view.db.rows(
        f"SELECT {_light(COLUMNS, 'r')} FROM resource r WHERE {chosen} "
        f"UNION ALL SELECT {_light(OLD, 'h')} FROM history h JOIN resource r ON r.rid = h.rid WHERE {chosen} "
        "ORDER BY 5, 1 LIMIT ?",
        (asked, *seen.params, asked, *seen.params, LIMIT),
    )
    return [stored(row) for row in rows]


def _light(columns: str, table: str) -> str:
    """The columns of a version with an empty object for its text."""
    return columns.replace(f"{table}.text", f"CASE WHEN {table}.deleted = 1 THEN NULL ELSE '{{}}' END")


def _audit_of(view: View, entity_type: str, entity_id: str) -> list[AuditRow]:
    return audit.listed(view, audit.AuditFilter(entity_type=entity_type, entity_id=entity_id, limit=LIMIT))


def _versions(view: View, case_key: str) -> list[Stored]:
    seen = visible(view.caller, "r")
    of_case = "r.rid IN (SELECT c.rid FROM scope c WHERE c.kind = 'case' AND c.key = ?)"
    rows = view.db.rows(
        f"SELECT {COLUMNS} FROM resource r WHERE {of_case}{seen.sql} "
        f"UNION ALL SELECT {OLD} FROM history h JOIN resource r ON r.rid = h.rid WHERE {of_case}{seen.sql} "
        "ORDER BY 5, 1 LIMIT ?",
        (case_key, *seen.params, case_key, *seen.params, LIMIT),
    )
    return [stored(row) for row in rows]
