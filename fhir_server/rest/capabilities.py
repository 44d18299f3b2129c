"""The CapabilityStatement, generated from the route table and the search parameters really indexed.

Source: https://hl7.org/fhir/R4/capabilitystatement.html
"""

from __future__ import annotations

import importlib.metadata
from functools import cache
from typing import Any

from fhir_server.changes import Hub
from fhir_server.rest.http import FHIR_JSON, Request, Response, check_accept, json_response
from fhir_server.search import index
from profiles import definitions, json_text

_TYPE_LEVEL = ("read", "vread", "update", "delete", "history-instance", "create", "search-type")
_PARAM_TYPES = ("number", "date", "string", "token", "reference", "composite", "quantity", "uri", "special")


def statement(hub: Hub, request: Request) -> Response:
    """GET [base]/metadata."""
    check_accept(request)
    resource = dict(_kind(_offered()))
    resource["implementation"] = {"description": hub.sites.default.name, "url": request.base}
    return json_response(request, 200, json_text.write(resource))


def _offered() -> tuple[str, ...]:
    from fhir_server.rest.routes import ROUTES

    return tuple(sorted({route.interaction for route in ROUTES if route.interaction}))


@cache
def _kind(offered: tuple[str, ...]) -> dict[str, Any]:
    interactions = [{"code": code} for code in _TYPE_LEVEL if code in offered]
    listed = []
    for name in sorted(definitions.resource_types()):
        listed.append(
            {
                "type": name,
                "interaction": [{"code": "read"}, {"code": "search-type"}] if name == "AuditEvent" else interactions,
                "versioning": "versioned-update",
                "readHistory": True,
                "updateCreate": True,
                "conditionalCreate": True,
                "conditionalUpdate": True,
                "conditionalDelete": "single",
                "searchParam": _parameters(name),
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
        "format": [FHIR_JSON, "json"],
        "rest": [
            {
                "mode": "server",
                "resource": listed,
                "interaction": [{"code": "transaction"}, {"code": "batch"}],
            }
        ],
    }


def _parameters(name: str) -> list[dict[str, str]]:
    found = index.parameters(name)
    return [{"name": code, "type": found[code].type} for code in sorted(found) if found[code].type in _PARAM_TYPES]
