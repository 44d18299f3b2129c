"""Which side of a request an establishment speaks for: the one that asks, the one that is asked, or both.

Hides where that stands: the requester's structure, the place of the stay and whoever gave the placer number ask;
whoever provides a group, employs a person or is the structure that the request names as performer is asked. A draft
that came without a group names the structure that ordered, which asks all the same.

Sources: https://hl7.org/fhir/R4/servicerequest.html (requester, performer);
https://hl7.org/fhir/R4/datatypes.html#Identifier (assigner).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fhir_server.context import View

Resource = Mapping[str, Any]
_HOUSES = 4  # Organization.partOf is followed this far


def asks(request: Resource, house: str, view: View) -> bool:
    """Whether an establishment (`Organization/x`) is on the asking side."""
    requester = _reference(request.get("requester"))
    stay = view.get(_reference(request.get("encounter"))) or {}
    gave = (_reference(one.get("assigner")) for one in request.get("identifier", ()) if _placer(one))
    return house in _with_parents((*_houses(requester, view), _reference(stay.get("serviceProvider")), *gave), view)


def only_asked(request: Resource, house: str, view: View) -> bool:
    """Whether an establishment answers a request and does not ask it, so that the request is not its own to change."""
    parties = (_reference(one) for one in request.get("performer", ()))
    asked = [one for party in parties for one in _houses(party, view)]
    return house in _with_parents(asked, view) and not asks(request, house, view)


def groups_of(request: Resource, house: str, view: View) -> frozenset[str]:
    """The groups and structures among those a request asks for which an establishment answers by HL7 v2: groups that it
    provides, itself, and what is part of it."""
    asked = (_reference(one) for one in request.get("performer", ()))
    parties = (one for one in asked if one.startswith(("HealthcareService/", "Organization/")))
    return frozenset(one for one in parties if house in _with_parents(_houses(one, view), view))


def belongs(role: Resource, parties: frozenset[str], view: View) -> bool:
    """Whether a PractitionerRole is of one of these groups, or works in one of these structures."""
    groups = {_reference(one) for one in role.get("healthcareService", ())}
    return bool(parties & (groups | _with_parents((_reference(role.get("organization")),), view)))


def _placer(identifier: Mapping[str, Any]) -> bool:
    return any(coding.get("code") == "PLAC" for coding in identifier.get("type", {}).get("coding", ()))


def _houses(party: str, view: View) -> list[str]:
    """The structure of a role or group, an Organization itself."""
    if party.startswith("Organization/"):
        return [party]
    held = view.get(party) or {}
    return [_reference(held.get(part)) for part in ("organization", "providedBy")]


def _with_parents(houses: Iterable[str], view: View) -> set[str]:
    found: set[str] = set()
    for house in houses:
        for _ in range(_HOUSES):
            if not house or house in found:
                break
            found.add(house)
            house = _reference((view.get(house) or {}).get("partOf"))
    return found


def _reference(value: Resource | None) -> str:
    return str((value or {}).get("reference", ""))
