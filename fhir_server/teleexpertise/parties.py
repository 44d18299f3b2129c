"""Who takes part in a téléexpertise, and at which Endpoints their systems are reached.

A report goes to those who take part, not to whoever knows the patient: the group that was asked and its establishment,
the expert who answers, the requester and theirs, the place of the stay, and the hospital whose patient number the
request carries (`ServiceRequest.subject.identifier`). Endpoints are read where FHIR puts them: HealthcareService,
Organization (else the one it is part of) and PractitionerRole.

Source: https://hl7.org/fhir/R4/endpoint.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fhir_server.context import View
from fhir_server.patients.sites import Sites

Resource = Mapping[str, Any]
_HOUSES = 4  # Organization.partOf is followed this far
FINESS = ("https://finess.esante.gouv.fr", "urn:oid:1.2.250.1.71.4.2.2")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An Endpoint somebody has who takes part. `endpoint` is {} when its reference leads nowhere; `site` is the key of
    the establishment whose patient numbers are known there, or ''; `person` is the requester's or expert's own role,
    as a reference, when the Endpoint is theirs and not their structure's."""

    reference: str
    endpoint: Resource = field(default_factory=dict)
    site: str = ""
    person: str = ""


def candidates(request: Resource, opinion: Resource, patient: Resource, view: View, sites: Sites) -> list[Candidate]:
    """The Endpoints of those who take part, each reference once, the expert's side first."""
    found: dict[str, Candidate] = {}
    for owner, person in _owners(request, opinion, patient, view, sites):
        house = _house(owner, view)
        for item in owner.get("endpoint", ()):
            reference = str(item.get("reference", ""))
            if reference and reference not in found:
                endpoint = view.get(reference) or {}
                key = _site(view.get(endpoint.get("managingOrganization", {}).get("reference", "")) or {}, sites)
                found[reference] = Candidate(reference, endpoint, key or _site(house, sites), person)
    return list(found.values())


def _owners(
    request: Resource, opinion: Resource, patient: Resource, view: View, sites: Sites
) -> Iterator[tuple[Resource, str]]:
    """Whatever may carry an Endpoint, and whose own it is."""
    experts = [p.get("reference", "") for p in (opinion.get("resultsInterpreter") or opinion.get("performer") or ())]
    asked = [p.get("reference", "") for p in request.get("performer", ())]
    requester = request.get("requester", {}).get("reference", "")
    for reference in dict.fromkeys([*experts, *reversed(asked), requester]):
        party = view.get(reference) or {}
        own = reference if reference in (requester, *experts) and reference.startswith("PractitionerRole/") else ""
        yield party, own
        for part in ("organization", "providedBy"):
            house = view.get(party.get(part, {}).get("reference", "")) or {}
            yield _nearest(house, view), ""
    stay = view.get(request.get("encounter", {}).get("reference", "")) or {}
    yield _nearest(view.get(stay.get("serviceProvider", {}).get("reference", "")) or {}, view), ""
    carried = _carried(request, patient, sites)
    if carried:
        yield _nearest(view.get(f"Organization/{carried}") or {}, view), ""


def _nearest(house: Resource, view: View) -> Resource:
    """The organisation itself when it has Endpoints, else the nearest it is part of that has."""
    for _ in range(_HOUSES):
        above = house.get("partOf", {}).get("reference", "")
        if house.get("endpoint") or not above:
            break
        house = view.get(above) or {}
    return house


def _house(owner: Resource, view: View) -> Resource:
    if owner.get("resourceType") == "Organization":
        return owner
    reference = (owner.get("organization") or owner.get("providedBy") or {}).get("reference", "")
    return view.get(reference) or {}


def _site(house: Resource, sites: Sites) -> str:
    """The key of the declared establishment an Organization is, by its id or its FINESS."""
    if house.get("id") in {site.key for site in sites.all}:
        return str(house["id"])
    for identifier in house.get("identifier", ()):
        if identifier.get("system") in FINESS:
            value = str(identifier.get("value", ""))
            site = sites.of_finess(value[1:] if identifier["system"] == FINESS[1] else value)
            if site:
                return site.key
    return ""


def _carried(request: Resource, patient: Resource, sites: Sites) -> str:
    """The establishment whose number of this very patient the request was asked with, or ''."""
    said = request.get("subject", {}).get("identifier", {})
    owner = sites.of_system(said.get("system", ""))
    if owner is None or owner[1].kind != "PI" or not said.get("value"):
        return ""
    held = {(i.get("system"), i.get("value")) for i in patient.get("identifier", ()) if i.get("use") != "old"}
    return owner[0].key if (said["system"], said["value"]) in held else ""
