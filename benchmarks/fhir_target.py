"""A FHIR server as a target: what is stored in it first, and the requests of each kind of work.

Bodies are Synthea's Patients and Observations, without what would tie them to other resources. Each request carries a
number of its own in an identifier, so that no update is a repetition that a server could skip. Requests say nothing in
`Prefer`: each server answers a write as it ships.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import samples
from benchmarks.load import DELETE, MARK, Plan, drive
from benchmarks.rounds import Effort
from benchmarks.servers import listener, processor
from benchmarks.target import Address, Outcome

Resource = dict[str, Any]
_NUMBER = {"system": "urn:passerelle:bench", "value": MARK.decode()}
_MIX = ["create"] * 2 + ["read"] * 12 + ["update"] * 5 + ["delete"]


def patients(most: int) -> list[Resource]:
    """Patients to create: without id and narrative, with our number."""
    return [_bare(resource) for resource in samples.of_type("Patient", most)]


def observations(most: int, subjects: Sequence[str]) -> list[Resource]:
    """Observations to create, about these patients in turn (`Patient/1`)."""
    made = []
    for resource, subject in zip(samples.of_type("Observation", most), itertools.cycle(subjects), strict=False):
        made.append(_bare(resource) | {"subject": {"reference": subject}})
    return made


def _bare(resource: Resource) -> Resource:
    kept = {name: value for name, value in resource.items() if name not in ("id", "meta", "text", "encounter")}
    kept = copy.deepcopy(kept)
    kept["identifier"] = [*kept.get("identifier", []), _NUMBER]
    return kept


def bodies(subjects: Sequence[str], most: int) -> list[Resource]:
    """What `create` creates: one Patient, four Observations, and so on."""
    people, facts = itertools.cycle(patients(120)), observations(most, subjects)
    return list(itertools.chain.from_iterable((next(people), *facts[i : i + 4]) for i in range(0, len(facts), 4)))


def small_bundles(most: int) -> list[Resource]:
    """The small transaction: a Patient and an Observation about it, which refers to it by urn:uuid."""
    person = "urn:uuid:5b0c1e9a-2f6e-4f0f-9b0e-0d2b9f1c7a11"
    fact = "urn:uuid:5b0c1e9a-2f6e-4f0f-9b0e-0d2b9f1c7a12"
    made = []
    for patient, observation in zip(itertools.cycle(patients(120)), observations(most, [person]), strict=False):
        entries = [
            {"fullUrl": person, "resource": patient, "request": {"method": "POST", "url": "Patient"}},
            {"fullUrl": fact, "resource": observation, "request": {"method": "POST", "url": "Observation"}},
        ]
        made.append({"resourceType": "Bundle", "type": "transaction", "entry": entries})
    return made


def encoded(resource: Resource) -> bytes:
    return json.dumps(resource, ensure_ascii=False, separators=(",", ":")).encode()


class FhirTarget:
    """One server under its base URL."""

    def __init__(self, name: str, url: str, effort: Effort) -> None:
        self.name = name
        self.address = Address.of(url)
        self.effort = effort
        self.pid = listener(self.address.port)
        self.marks = 0
        self.stocked = False
        self.seeds: list[tuple[str, Resource]] = []
        self._made: dict[str, list[bytes]] = {}

    def seed(self) -> None:
        """Store what is read and updated later, each resource in two versions. RuntimeError when refused."""
        if self.seeds:
            return
        people = patients(max(4, min(120, self.effort.seeds // 10)))
        subjects = [path.lstrip("/") for path in self._created(people)]
        facts = observations(self.effort.seeds, subjects)
        paths = [f"/{subject}" for subject in subjects] + self._created(facts)
        self.seeds = list(zip(paths, people + facts, strict=True))
        again = self.drive(Plan(self.address, self._updates(), 1, count=len(self.seeds)))
        if again.failures:
            raise RuntimeError(f"{self.name} refuses updates: {again.first_failure}")

    def _created(self, resources: Sequence[Resource]) -> list[str]:
        # One client: the answers come in the order of the requests.
        requests = [self._post(resource) for resource in resources]
        outcome = self.drive(Plan(self.address, requests, 1, count=len(requests), keep_locations=True))
        if outcome.failures or len(outcome.locations) != len(resources):
            raise RuntimeError(f"{self.name} refuses to create: {outcome.first_failure or 'no Location header'}")
        return outcome.locations

    def _post(self, resource: Resource) -> bytes:
        return self.address.request(b"POST", b"/" + resource["resourceType"].encode(), encoded(resource))

    def run(self, work: str, clients: int, seconds: float) -> Outcome:
        """Do one kind of work in a loop."""
        self.seed()
        if work not in self._made:
            self._made[work] = _WORK[work](self)
        return self.drive(Plan(self.address, self._made[work], clients, seconds))

    def load(self, bundles: Sequence[bytes], clients: int) -> Outcome:
        """POST each Bundle once."""
        requests = [self.address.request(b"POST", b"", bundle) for bundle in bundles]
        weights = [len(json.loads(bundle)["entry"]) for bundle in bundles]
        plan = Plan(self.address, requests, min(clients, len(requests)), count=len(requests), weights=weights)
        return self.drive(plan)

    def drive(self, plan: Plan) -> Outcome:
        """Send the requests of a plan; the server's own processor time is in the outcome."""
        plan.first_mark = self.marks
        before = processor(self.pid) if self.pid else 0.0
        outcome = drive(plan)
        outcome.served = processor(self.pid) - before if self.pid else 0.0
        self.marks += len(outcome.times) + plan.clients
        return outcome

    # --- the requests ---

    def _creates(self) -> list[bytes]:
        subjects = [path.lstrip("/") for path, resource in self.seeds if resource["resourceType"] == "Patient"]
        return [self._post(resource) for resource in bodies(subjects, self.effort.sample)]

    def _reads(self) -> list[bytes]:
        return [self.address.request(b"GET", path.encode()) for path in self._picked()]

    def _vreads(self) -> list[bytes]:
        return [self.address.request(b"GET", path.encode() + b"/_history/1") for path in self._picked()]

    def _picked(self) -> list[str]:
        return random.Random(3).choices([path for path, _ in self.seeds], k=2000)

    def _updates(self) -> list[bytes]:
        made = []
        for path, resource in self.seeds:
            body = {"resourceType": resource["resourceType"], "id": path.rpartition("/")[2]} | resource
            made.append(self.address.request(b"PUT", path.encode(), encoded(body)))
        return made

    def _transactions(self) -> list[bytes]:
        return [self.address.request(b"POST", b"", encoded(bundle)) for bundle in small_bundles(self.effort.sample)]

    def _mixture(self) -> list[bytes]:
        supplies = {
            "create": itertools.cycle(self._creates()),
            "read": itertools.cycle(self._reads()),
            "update": itertools.cycle(self._updates()),
            "delete": itertools.cycle([DELETE]),
        }
        order = _MIX * 100
        random.Random(4).shuffle(order)
        return [next(supplies[kind]) for kind in order]


_WORK: dict[str, Callable[[FhirTarget], list[bytes]]] = {
    "create": FhirTarget._creates,
    "read": FhirTarget._reads,
    "vread": FhirTarget._vreads,
    "update": FhirTarget._updates,
    "transaction": FhirTarget._transactions,
    "mixed": FhirTarget._mixture,
}
WORK = tuple(_WORK)
