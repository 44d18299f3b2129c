"""The audit table shown as AuditEvent resources: search by date, entity, patient-independent, and read.

Source: https://hl7.org/fhir/R4/auditevent.html; DICOM PS3.15 A.5 for the event type codes.
"""

from __future__ import annotations

from typing import Any

from fhir_server.changes import Hub
from fhir_server.errors import Invalid, NotFound
from fhir_server.rest.http import Request, Response, check_accept, instant_text, json_response
from fhir_server.rest.search import bundle_text
from fhir_server.store.audit import AuditFilter, AuditRow
from profiles import json_text

_PARAMS = ("entity", "_count", "_id", "_format", "_pretty")
_REST = {"system": "http://terminology.hl7.org/CodeSystem/audit-event-type", "code": "rest"}
_CODES = {"C": "create", "R": "read", "U": "update", "D": "delete", "E": "operation"}


def search(hub: Hub, request: Request) -> Response:
    """GET [base]/AuditEvent?entity=Type/id&_count=n: newest first."""
    check_accept(request)
    unknown = [name for name, _ in request.query if name not in _PARAMS]
    if unknown:
        text = f"AuditEvent cannot be searched by `{unknown[0]}`; valid: {', '.join(sorted(_PARAMS))}"
        raise Invalid(text, http=400, code="invalid", expression="AuditEvent")
    count = int(request.arg("_count") or 50) if (request.arg("_count") or "50").isdigit() else 50
    kind, _, key = (request.arg("entity") or "").partition("/")
    with hub.store.read(request.caller) as snapshot:
        rows = snapshot.audit_rows(
            AuditFilter(
                entity_type=kind, entity_id=key, seq=_number(request.arg("_id")), limit=max(1, min(count, 1000))
            )
        )
    texts = [
        (
            f"{request.base}/AuditEvent/{row.seq}",
            f'"resource":{json_text.write(event(row))},"search":{{"mode":"match"}}',
        )
        for row in rows
    ]
    return json_response(
        request, 200, bundle_text(hub, "searchset", [("self", f"{request.base}/AuditEvent")], texts, None)
    )


def read(hub: Hub, request: Request) -> Response:
    """GET [base]/AuditEvent/[id]."""
    check_accept(request)
    key = request.path_args["id"]
    with hub.store.read(request.caller) as snapshot:
        rows = snapshot.audit_rows(AuditFilter(seq=_number(key))) if _number(key) else []
    if not rows:
        raise NotFound(f"AuditEvent/{key} is not known here")
    return json_response(request, 200, json_text.write(event(rows[0])))


def event(row: AuditRow) -> dict[str, Any]:
    """One row as AuditEvent."""
    who: dict[str, Any] = {"display": row.display or "Passerelle"}
    if row.who:
        who["reference"] = row.who
    agent: dict[str, Any] = {"who": who, "requestor": True}
    if row.peer:
        agent["network"] = {"address": row.peer, "type": "2"}
    out: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": str(row.seq),
        "type": _REST,
        "subtype": [{"system": "http://hl7.org/fhir/restful-interaction", "code": _CODES.get(row.action, "operation")}],
        "action": row.action,
        "recorded": instant_text(row.recorded),
        "outcome": row.outcome or "0",
        "agent": [agent],
        "source": {"observer": {"reference": "Device/passerelle"}},
    }
    if row.text:
        out["outcomeDesc"] = row.text
    if row.entity_type:
        entity: dict[str, Any] = {"what": {"reference": f"{row.entity_type}/{row.entity_id}"}}
        if row.request_id:
            entity["detail"] = [{"type": "X-Request-Id", "valueString": row.request_id}]
        out["entity"] = [entity]
    return out


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() and len(text) < 18 else 0
