"""The audit table shown as AuditEvent resources: searched by what they are about, read, and written by nobody else.

Source: https://hl7.org/fhir/R4/auditevent.html; DICOM PS3.15 A.5 for the event type codes.
"""

from __future__ import annotations

import re
from typing import Any, cast

from fhir_server.changes import Hub
from fhir_server.errors import Invalid, NotFound
from fhir_server.rest import pages
from fhir_server.rest.http import Request, Response, instant_text, json_response
from fhir_server.rest.pages import PAGE
from fhir_server.rest.search import MAX_COUNT, bundle_text
from fhir_server.store.audit import AuditFilter, AuditRow
from profiles import json_text

_PARAMS = ("entity", "_count", "_id", PAGE, "_format", "_pretty", "_summary", "_elements")
_NUMBER = re.compile(r"[0-9]{1,17}")
_REST = {"system": "http://terminology.hl7.org/CodeSystem/audit-event-type", "code": "rest"}
_CODES = {"C": "create", "R": "read", "U": "update", "D": "delete", "E": "operation"}


def search(hub: Hub, request: Request) -> Response:
    """GET [base]/AuditEvent?entity=Type/id&_count=n: newest first, in pages."""
    asked = _asked(request)
    count = min(int(asked.get("_count", "50")), MAX_COUNT)
    kind, key = (*asked.get("entity", "").rstrip("/").split("/")[-2:], "")[:2]
    kept = [(name, value) for name, value in asked.items() if name != PAGE]
    before = pages.position(hub, "AuditEvent", kept, asked.get(PAGE, ""))
    rows: list[AuditRow] = []
    if count and _exists(asked.get("_id")):
        wanted = AuditFilter(
            entity_type=kind,
            entity_id=key,
            seq=_number(asked.get("_id")),
            before=cast(tuple[int, int], before or (0, 0)),
            limit=count + 1,
        )
        with hub.store.read(request.caller) as snapshot:
            rows = snapshot.audit_rows(wanted)
    links = [("self", f"{request.base}/{pages.address('AuditEvent', kept)}")]
    if len(rows) > count:
        last = rows[count - 1]
        links.append(("next", pages.link(hub, request.base, "AuditEvent", kept, (last.recorded, last.seq))))
    texts = [
        (
            f"{request.base}/AuditEvent/{row.seq}",
            f'"resource":{json_text.write(event(row))},"search":{{"mode":"match"}}',
        )
        for row in rows[:count]
    ]
    return json_response(request, 200, bundle_text(hub, "searchset", links, texts, None))


def read(hub: Hub, request: Request) -> Response:
    """GET [base]/AuditEvent/[id]."""
    key = request.path_args["id"]
    with hub.store.read(request.caller) as snapshot:
        rows = snapshot.audit_rows(AuditFilter(seq=_number(key))) if _number(key) else []
    if not rows:
        raise NotFound(f"AuditEvent/{key[:64]} is not known here")
    return json_response(request, 200, json_text.write(event(rows[0])))


def _asked(request: Request) -> dict[str, str]:
    """The parameters by name. Raises Invalid (400) for one that is unknown, empty, or no number."""
    for name, value in request.query:
        problem = ""
        if name not in _PARAMS:
            problem = f"AuditEvent cannot be searched by `{name[:80]}`; valid: {', '.join(sorted(_PARAMS))}"
        elif not value:
            problem = f"`{name}` has no value; leave it out"
        elif name == "_count" and not _NUMBER.fullmatch(value):
            problem = f"`_count={value[:20]}` is no number; it is 0 or more"
        if problem:
            raise Invalid(problem, http=400, code="invalid", expression="AuditEvent")
    return dict(request.query)


def _exists(key: str | None) -> bool:
    """Whether an `_id` can be that of an event; no `_id` asks for all of them."""
    return key is None or _number(key) > 0


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
    return int(text) if text and _NUMBER.fullmatch(text) else 0
