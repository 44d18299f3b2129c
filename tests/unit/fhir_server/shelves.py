"""A View over a few resources, for rules that look around without a store."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from fhir_server.patients.identity import RECONCILE_TAG

Resource = dict[str, Any]


class Shelf:
    """Understands `identifier=system|value`, and `_tag` for the records that a person must look at."""

    def __init__(self, *resources: Resource) -> None:
        self.resources = resources

    def get(self, reference: str) -> Resource | None:
        return next((r for r in self.resources if f"{r['resourceType']}/{r['id']}" == reference), None)

    def find(self, resource_type: str, query: str) -> list[Resource]:
        said, mine = dict(parse_qsl(query)), [r for r in self.resources if r["resourceType"] == resource_type]
        if "_tag" in said:
            return [r for r in mine if RECONCILE_TAG in r.get("meta", {}).get("tag", [])]
        system, _, value = said["identifier"].partition("|")
        return [r for r in mine if (system, value) in _identifiers(r)]

    def written(self, resource_type: str) -> list[Resource]:
        return []


def _identifiers(resource: Resource) -> list[tuple[str, str]]:
    return [(one.get("system", ""), one.get("value", "")) for one in resource.get("identifier", ())]
