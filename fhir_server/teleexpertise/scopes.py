"""Which case, patient and organisation a resource belongs to: the rows that access rules and the trace read.

The elements are those of the R4 patient compartment for the types the workflow writes
(https://hl7.org/fhir/R4/compartmentdefinition-patient.html), and `basedOn` or `focus` for the case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Element names that lead from a resource to its patient and to its téléexpertise, any type.
_PATIENT = ("subject", "patient", "for", "beneficiary", "individual")
_ORGANISATION = ("managingOrganization", "custodian", "serviceProvider")
_OWN = {"case": "ServiceRequest", "patient": "Patient", "organisation": "Organization"}
_CASE = ("basedOn", "focus", "target", "request", "related")


def scopes(resource: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(kind, key) rows; the keys are references (`ServiceRequest/1`, `Patient/2`, `Organization/3`)."""
    found: set[tuple[str, str]] = set()
    own = f"{resource['resourceType']}/{resource['id']}"
    for kind, target in _OWN.items():
        if resource["resourceType"] == target:
            found.add((kind, own))
    for name in _PATIENT:
        found |= {("patient", key) for key in _references(resource.get(name), "Patient")}
    for name in _CASE:
        found |= {("case", key) for key in _references(resource.get(name), "ServiceRequest")}
    context = resource.get("context")
    if isinstance(context, Mapping):
        found |= {("case", key) for key in _references(context.get("related"), "ServiceRequest")}
    for name in _ORGANISATION:
        found |= {("organisation", key) for key in _references(resource.get(name), "Organization")}
    return sorted(found)


def case_of(resource: Mapping[str, Any]) -> str:
    """The case a resource belongs to, as `ServiceRequest/1`, or ''."""
    return next((key for kind, key in scopes(resource) if kind == "case"), "")


def _references(value: Any, kind: str) -> Iterable[str]:
    for item in value if isinstance(value, list) else [value]:
        reference = item.get("reference") if isinstance(item, Mapping) else None
        if isinstance(reference, str) and reference.startswith(kind + "/"):
            yield "/".join(reference.split("/")[:2])
