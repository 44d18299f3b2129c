"""The CapabilityStatement, generated from the route table and the search parameters really indexed.

Source: https://hl7.org/fhir/R4/capabilitystatement.html
"""

from __future__ import annotations

import importlib.metadata
from functools import cache
from typing import Any

from fhir_server.changes import Hub
from fhir_server.config import Settings
from fhir_server.errors import PasserelleError, Unsupported
from fhir_server.rest import patch
from fhir_server.rest.http import FHIR_JSON, FHIR_XML, Request, Response, check_accept, json_response
from fhir_server.search import index, query
from fhir_server.search.index import Parameter
from profiles import definitions, json_text

_TYPE_LEVEL = (
    "read", "vread", "update", "patch", "delete", "history-instance", "history-type", "create", "search-type",
)  # fmt: skip
_SYSTEM_LEVEL = ("transaction", "search-system", "history-system")
_AUDIT = [{"code": "read"}, {"code": "search-type"}]
_AUDIT_PARAMETERS = [{"name": "_id", "type": "token"}, {"name": "entity", "type": "reference"}]
_PARAM_TYPES = ("number", "date", "string", "token", "reference", "quantity", "uri", "special")


def statement(hub: Hub, request: Request) -> Response:
    """GET [base]/metadata."""
    check_accept(request)
    settings = hub.settings
    rules = settings.conditional_delete, settings.referential_integrity, _cors(settings)
    resource = dict(_kind(_offered(), _operations(), *rules))
    resource["implementation"] = {"description": hub.sites.default.name, "url": request.base}
    return json_response(request, 200, json_text.write(resource))


def _offered() -> tuple[str, ...]:
    from fhir_server.rest.routes import ROUTES

    return tuple(sorted({route.interaction for route in ROUTES if route.interaction}))


def _operations() -> tuple[tuple[str, str], ...]:
    """(name, definition) of each operation on every type."""
    from fhir_server.rest.routes import ROUTES

    return tuple(sorted({(route.pattern.rpartition("$")[2], route.operation) for route in ROUTES if route.operation}))


def _cors(settings: Settings) -> bool:
    return bool(settings.cors_origins.strip())


@cache
def _kind(
    offered: tuple[str, ...],
    operations: tuple[tuple[str, str], ...],
    conditional_delete: str,
    integrity: bool,
    cors: bool,
) -> dict[str, Any]:
    listed: list[dict[str, Any]] = []
    called = [{"name": name, "definition": url} for name, url in operations]
    interactions = [{"code": code} for code in _TYPE_LEVEL if code in offered]
    for name in sorted(definitions.resource_types()):
        if name == "AuditEvent":
            # The audit trail: read and searched, never written.
            listed.append({"type": name, "interaction": _AUDIT, "searchParam": _AUDIT_PARAMETERS})
            continue
        listed.append(
            {
                "type": name,
                "interaction": interactions,
                "versioning": "versioned-update",
                "readHistory": True,
                "updateCreate": True,
                "conditionalCreate": True,
                "conditionalRead": "full-support",
                "conditionalUpdate": True,
                "conditionalDelete": conditional_delete,
                "referencePolicy": ["literal", "logical", "local"] + (["enforced"] if integrity else []),
                "searchParam": _parameters(name),
                "operation": called,
            }
        )
    version = importlib.metadata.version("passerelle")
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-11-21",
        "kind": "instance",
        "software": {"name": "Passerelle", "version": version},
        "fhirVersion": "4.0.1",
        "format": [FHIR_JSON, FHIR_XML, "json", "xml"],
        "patchFormat": list(patch.FORMATS),
        "rest": [
            {
                "mode": "server",
                "resource": listed,
                "security": {"cors": cors},
                "interaction": [{"code": code} for code in (*_SYSTEM_LEVEL, "batch") if code in (*offered, "batch")],
            }
        ],
    }


def _parameters(name: str) -> list[dict[str, str]]:
    found = index.parameters(name)
    return [{"name": code, "type": found[code].type} for code in sorted(found) if _is_searchable(name, found[code])]


def _is_searchable(name: str, parameter: Parameter) -> bool:
    """Whether a search by it is answered; of composites the parser says so."""
    if parameter.type != "composite":
        return parameter.type in _PARAM_TYPES
    try:
        query.parse(name, [(parameter.code, "a$b")])
    except Unsupported:
        return False
    except PasserelleError as error:
        return all(issue.code != "not-supported" for issue in error.issues)
    return True
