"""Whether somebody opposes that a report leaves, asked when its bytes are about to: they may have waited for long.

What the plan asked when the report was signed is asked again: a DMP that is fed was open (ZFA-1 ACTIF), its feeding not
opposed (ZFA-9) and the INS qualified, and the patient refused no doctor who did not ask (CSP L.1110-4: the person
concerned may oppose an exchange at any time).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from fhir_server.patients.identity import qualified_ins
from fhir_server.search import query
from fhir_server.store.lanes import Delivery
from fhir_server.store.query import MAX_COUNT
from fhir_server.store.session import Snapshot
from fhir_server.teleexpertise import parties
from fhir_server.teleexpertise.distribution import dmp_open

Resource = dict[str, Any]


def dmp_closed(delivery: Delivery, patient: Resource) -> str:
    """Why bytes that feed the DMP may not leave now, or '': the DMP is found by the qualified INS they carry."""
    if not dmp_open(patient):
        return f"the DMP of {delivery.patient} is not open any more, or its feeding is opposed; these bytes ask for it"
    ins = qualified_ins(patient)
    if ins is None or (delivery.ins and ins[1] != delivery.ins):
        return f"the DMP takes nothing under an INS that {delivery.patient} does not have; these bytes ask for it"
    return ""


def denied(snapshot: Snapshot, patient: Resource) -> bool:
    """Whether a patient refuses anything to anybody, which is rare: who it is about need not be looked up before."""
    found = _Stored(snapshot).find("Consent", f"patient=Patient/{patient.get('id', '')}&status=active")
    return any(one.get("provision", {}).get("type") == "deny" for one in found)


def opposed(snapshot: Snapshot, patient: Resource, person: str) -> bool:
    """Whether an active refusal of the patient names somebody, as a person or in a role of theirs."""
    return parties.opposed(patient, person, _Stored(snapshot))


class _Stored:
    """What is stored, as a View; nothing is being written."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def get(self, reference: str) -> Resource | None:
        kind, _, key = reference.partition("/")
        stored = self._snapshot.get(kind, key) if key else None
        return None if stored is None or stored.deleted else stored.resource()

    def find(self, resource_type: str, text: str) -> Iterator[Resource]:
        plan = replace(query.parse(resource_type, parse_qsl(text)), count=MAX_COUNT)
        while True:
            page = self._snapshot.search(plan)
            yield from (stored.resource() for stored in page.matches)
            if not page.next:
                return
            plan = replace(plan, after=page.next)

    def written(self, resource_type: str) -> list[Resource]:
        return []
