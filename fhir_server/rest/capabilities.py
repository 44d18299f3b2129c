"""The CapabilityStatement, generated from the route table and the search parameters really indexed.

Source: https://hl7.org/fhir/R4/capabilitystatement.html
"""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from typing import Any

from fhir_server.changes import Hub
from fhir_server.config import Settings
from fhir_server.context import instant, now
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
_SERVICE = {"system": "http://terminology.hl7.org/CodeSystem/restful-security-service", "code": "OAuth"}
_TOKENS = {"service": [{"coding": [_SERVICE]}], "description": "an access token (Bearer) with scopes of SMART 2"}
_COMPARTMENT = "http://hl7.org/fhir/CompartmentDefinition/"
_PARAM_TYPES = ("number", "date", "string", "token", "reference", "quantity", "uri", "special")


def statement(hub: Hub, request: Request) -> Response:
    """GET [base]/metadata."""
    check_accept(request)
    settings = hub.settings
    rules = settings.conditional_delete, settings.referential_integrity, _cors(settings), settings.auth != "none"
    resource = dict(_kind(_offered(), _operations(), index.installed(), *rules))
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


@lru_cache(maxsize=4)
def _kind(
    offered: tuple[str, ...],
    operations: tuple[tuple[str, str], ...],
    added: index.Installed,
    conditional_delete: str,
    integrity: bool,
    cors: bool,
    tokens: bool,
) -> dict[str, Any]:
    """The statement without its address. `added`: the search parameters of users, which `index` knows meanwhile."""
    common = {
        "interaction": [{"code": code} for code in _TYPE_LEVEL if code in offered],
        "versioning": "versioned-update",
        "readHistory": True,
        "updateCreate": True,
        "conditionalCreate": True,
        "conditionalRead": "full-support",
        "conditionalUpdate": True,
        "conditionalDelete": conditional_delete,
        "referencePolicy": ["literal", "logical", "local"] + (["enforced"] if integrity else []),
        "operation": [{"name": name, "definition": url} for name, url in operations],
    }
    version = importlib.metadata.version("passerelle")
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": instant(now()),
        "kind": "instance",
        "software": {"name": "Passerelle", "version": version},
        "fhirVersion": "4.0.1",
        "format": [FHIR_JSON, FHIR_XML, "json", "xml"],
        "patchFormat": list(patch.FORMATS),
        "rest": [
            {
                "mode": "server",
                "resource": [_resource(name, common) for name in sorted(definitions.resource_types())],
                "security": {"cors": cors} | (_TOKENS if tokens else {}),
                "interaction": [{"code": code} for code in (*_SYSTEM_LEVEL, "batch") if code in (*offered, "batch")],
                "compartment": [_compartment(name) for name in sorted(definitions.compartments())],
            }
        ],
    }


def _compartment(name: str) -> str:
    """The canonical of a CompartmentDefinition of R4: `.../relatedPerson`."""
    return f"{_COMPARTMENT}{name[0].lower()}{name[1:]}"


def _resource(name: str, common: dict[str, Any]) -> dict[str, Any]:
    """What is said of a type. The audit trail is read and searched, never written."""
    if name == "AuditEvent":
        return {"type": name, "interaction": _AUDIT, "searchParam": _AUDIT_PARAMETERS}
    included = {"searchInclude": _include(name), "searchRevInclude": _reverse_include(name)}
    return {"type": name, **common, **included, "searchParam": _parameters(name)}


def _parameters(name: str) -> list[dict[str, str]]:
    found = index.parameters(name)
    able = (found[code] for code in sorted(found) if _is_searchable(name, found[code]))
    return [{"name": one.code, "definition": one.url, "type": one.type} for one in able]


def _include(name: str) -> list[str]:
    """The `_include` values of a type."""
    return ["*", *(f"{name}:{one.code}" for one in _references(name))]


def _reverse_include(name: str) -> list[str]:
    """The `_revinclude` values of a type: those whose parameter is of references to it. What refers to any type is
    taken as well and is told by `*` alone: with each of it under every type the statement were twice as long."""
    kinds = definitions.resource_types() - {"Parameters"}  # nothing refers to that
    of_some = ((kind, one) for kind in sorted(kinds) for one in _references(kind) if kinds - set(one.targets))
    return ["*", *(f"{kind}:{one.code}" for kind, one in of_some if name in one.targets)]


def _references(name: str) -> list[Parameter]:
    """The reference parameters that are searched by. The audit trail is no resource of the store: nothing of it comes
    along."""
    found = index.parameters(name) if name != "AuditEvent" else {}
    return [found[code] for code in sorted(found) if found[code].type == "reference" and found[code].ready]


def _is_searchable(name: str, parameter: Parameter) -> bool:
    """Whether a search by it is answered; of composites the parser says so."""
    if not parameter.ready:
        return False
    if parameter.type != "composite":
        return parameter.type in _PARAM_TYPES
    try:
        query.parse(name, [(parameter.code, "a$b")])
    except Unsupported:
        return False
    except PasserelleError as error:
        return all(issue.code != "not-supported" for issue in error.issues)
    return True
