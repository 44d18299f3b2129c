"""The accession number of a request: the one it brings, or ours, and never that of another request.

An identifier is one when its type says ACSN or its system is an accession namespace of an establishment. Images carry
the bare number (0008,0050), so a number without a system competes with ours. PS3.3 C.7.2.1; IHE RAD TF-2 4.2.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator

from fhir_server.errors import Invalid
from fhir_server.patients.identity import identifier_query
from fhir_server.patients.sites import Sites, namespace_of
from fhir_server.teleexpertise.case import Context, Resource

LENGTH = 16  # DICOM SH, and what a request's study carries in (0008,0050)
ACSN = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}
Claims = tuple[tuple[str, str], ...]
_TRIES = 100


def with_accession(before: Resource | None, request: Resource, ctx: Context) -> tuple[Resource, Claims]:
    """The request of a téléexpertise with an accession number, and the claims that keep it its own.

    Raises Invalid for one that does not fit into DICOM or that another request has.
    """
    claims = _checked(before, request, accessions(request, ctx.sites), ctx)
    namespace = namespace_of(ctx.sites.default, "ACSN")
    if namespace is None or any(accessions(request, ctx.sites)):
        return request, claims
    for attempt in range(_TRIES):
        value = _own(request["id"], attempt)
        found = list(_queries(namespace.fhir_system, value, ctx.sites))
        if not _taken(found, request, ctx):
            break
    made = {"type": ACSN, "system": namespace.fhir_system, "value": value}
    numbered = {**request, "identifier": [*request.get("identifier", []), made]}
    return numbered, tuple(("ServiceRequest", query) for query in found)


def check_accessions(before: Resource | None, request: Resource, ctx: Context) -> Claims:
    """The claims of a request that is no téléexpertise on the numbers that images know ours by. Raises Invalid."""
    return _checked(before, request, bare_or_ours(request, ctx.sites), ctx)


def _checked(before: Resource | None, request: Resource, found: Iterable[tuple[int, Resource]], ctx: Context) -> Claims:
    """One that is left as it was is not looked at again: what another request does never blocks this one."""
    kept = {(one.get("system", ""), one["value"]) for _, one in accessions(before or {}, ctx.sites)}
    claims: list[tuple[str, str]] = []
    for index, identifier in found:
        system, value = identifier.get("system", ""), identifier["value"]
        if (system, value) in kept:
            continue
        where = f"ServiceRequest.identifier[{index}].value"
        if refused := misspelt(value):
            raise Invalid(f"{refused}; leave it out to get one", expression=where, code="value")
        queries = list(_queries(system, value, ctx.sites))
        if _taken(queries, request, ctx):
            raise Invalid(f"another request has the accession number {value}", expression=where, code="duplicate")
        claims += [("ServiceRequest", query) for query in queries]
    return tuple(claims)


def misspelt(value: str) -> str:
    """Why a number cannot stand in (0008,0050) as it is, or '': PS3.5 6.2 (SH), whose outer spaces say nothing."""
    if len(value) > LENGTH:
        return f"an accession number has at most {LENGTH} characters (DICOM SH)"
    if value != value.strip():
        return "an accession number neither begins nor ends with a space (DICOM SH)"
    if "\\" in value or not value.isprintable():
        return "an accession number holds no backslash and no control or invisible character (DICOM SH)"
    return ""


def bare_or_ours(request: Resource, sites: Sites) -> Iterator[tuple[int, Resource]]:
    """Those of the accession numbers that images know: in a namespace of ours, or without any."""
    own = ("", *_own_systems(sites))
    return ((index, one) for index, one in accessions(request, sites) if one.get("system", "") in own)


def number_queries(value: str, sites: Sites) -> Iterator[str]:
    """Where the number that images carry may stand: in each of our namespaces, or bare."""
    return _queries("", value, sites)


def accessions(request: Resource, sites: Sites) -> Iterator[tuple[int, Resource]]:
    """(place, identifier) of each accession number a request carries."""
    own = _own_systems(sites)
    for index, identifier in enumerate(request.get("identifier", ())):
        codes = {coding.get("code") for coding in identifier.get("type", {}).get("coding", ())}
        if identifier.get("value") and ("ACSN" in codes or identifier.get("system") in own):
            yield index, identifier


def _own_systems(sites: Sites) -> tuple[str, ...]:
    spaces = (namespace for site in sites.all for namespace in site.namespaces)
    return tuple(dict.fromkeys(namespace.fhir_system for namespace in spaces if namespace.kind == "ACSN"))


def _queries(system: str, value: str, sites: Sites) -> Iterator[str]:
    """Where the same number may stand: in its own system, and when it is ours or bare, in each of ours and bare."""
    own = _own_systems(sites)
    systems = ("", *own) if not system or system in own else (system,)
    return (identifier_query(one, value) for one in systems)


def _taken(queries: list[str], request: Resource, ctx: Context) -> bool:
    """Whether a stored request, or another one that is being written with this one, has the number."""
    stored = (one for query in queries for one in ctx.view.find("ServiceRequest", query))
    if any(one["id"] != request["id"] for one in stored):
        return True
    others = (one for one in ctx.view.written("ServiceRequest") if one["id"] != request["id"])
    held = (identifier for other in others for _, identifier in accessions(other, ctx.sites))
    return any(identifier_query(one.get("system", ""), one["value"]) in queries for one in held)


def _own(key: str, attempt: int) -> str:
    """A number of ours, always the same for a request unless somebody else has it."""
    digest = hashlib.sha256(f"{key}{attempt or ''}".encode()).digest()
    return "TLX" + base64.b32encode(digest)[:12].decode("ascii")
