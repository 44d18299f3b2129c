"""A hub on a test's store with the demo's directory in it, and short ways to write, read and take a case along."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest

from fhir_server.app import seed_sites
from fhir_server.changes import Applied, Change, Hub, apply
from fhir_server.config import Settings
from fhir_server.context import SYSTEM, Caller, Clock, now
from fhir_server.demo import people, seed
from fhir_server.demo.run import SITES
from fhir_server.desk.outbox import outbox_replay
from fhir_server.errors import PasserelleError, Unavailable
from fhir_server.patients.sites import load_sites
from fhir_server.pending import view_of
from fhir_server.search.rows import IndexRows
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery, NewDelivery
from fhir_server.store.resources import Stored
from fhir_server.teleexpertise.consequences import Context

__all__ = ["SYSTEM", "IndexRows", "NewDelivery", "Settings", "people", "seed"]  # for the tests, which write with them

Resource = dict[str, Any]
T = TypeVar("T")
PARTNER = Caller("", "Logiciel", frozenset({"partner"}), channel="http")
REQUESTER = seed.caller("moreau")
OTHER_REQUESTER = seed.caller("lefevre")
EXPERT = seed.caller("garnier", "avis-echo")
OTHER_EXPERT = seed.caller("benali", "avis-cardio")
ADMIN = Caller("", "Exploitant", frozenset({"admin"}))
DEVICE = Caller("", "Échographe", frozenset({"device"}), channel="dicom")
CONSENT_URL = Settings().extension_patient_consent

OTHER_SITE: dict[str, Any] = dict(SITES[0]) | {
    "key": "autre",
    "name": "Clinique en production",
    "mode": "production",
    "finess_eg": "990000992",
    "finess_ej": "990000984",
    "namespaces": [{"name": "ipp", "kind": "PI", "hd": ["AUTRE", "990000992", "N"], "oid": "1.2.3.4.5"}],
}
"""A second establishment, which is not one of the demo's."""


class Ticking:
    """A clock that stands at one moment and moves a second each time it is looked at."""

    def __init__(self, start: datetime = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)) -> None:
        self.moment = start

    def __call__(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment


class Full:
    """A store that reads as ever, and whose every write fails for want of space."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, *_: Any) -> None:
        raise Unavailable("the disk is full")


def full(hub: Hub) -> Hub:
    """The same hub on a full disk."""
    store: Any = Full(hub.store)
    return dataclasses.replace(hub, store=store)


def hub_on(store: Store, *, site: dict[str, Any] | None = None, clock: Clock = now, **settings: Any) -> Hub:
    """A hub of the demo's establishment (or a changed one), with no mail operator unless the settings name one."""
    tables = (copy.deepcopy(dict(SITES[0])) | (site or {}),)
    chosen: dict[str, Any] = {"auth": "none", "sites": tables, "smtp": "127.0.0.1:1025", "smtp_security": "none"}
    hub = Hub(Settings(**(chosen | settings)), store, load_sites(tables), clock)
    seed_sites(hub, hub.sites)
    return hub


def directory(hub: Hub, patients: int = 2) -> Hub:
    """Structures, professionals, expert groups, the hospital's two Endpoints and some patients."""
    first = [*people.structures("127.0.0.1:9", "127.0.0.1:10"), *people.professionals()]
    first += [people.patient(i) for i in range(patients)]
    endpoints = [{"reference": "Endpoint/dpi"}, {"reference": "Endpoint/pfi"}]
    first.append(read(hub, "Organization/ch-demo") | {"endpoint": endpoints})
    put(hub, SYSTEM, *first)
    return hub


def read(hub: Hub, reference: str) -> Resource:
    """The current version without its meta."""
    found = stored(hub, reference)
    assert found is not None and not found.deleted, reference
    return {name: value for name, value in found.resource().items() if name != "meta"}


def stored(hub: Hub, reference: str) -> Stored | None:
    kind, _, key = reference.partition("/")
    return hub.store.get(SYSTEM, kind, key)


def put(hub: Hub, caller: Caller, *resources: Resource) -> list[Applied]:
    """PUT of each resource, in one transaction."""
    return apply(hub, caller, [Change("update", r["resourceType"], r["id"], copy.deepcopy(r)) for r in resources])


def post(hub: Hub, caller: Caller, resource: Resource, **more: Any) -> Applied:
    """POST of one resource."""
    content = {name: value for name, value in copy.deepcopy(resource).items() if name != "id"}
    return apply(hub, caller, [Change("create", content["resourceType"], resource=content, **more)])[0]


def delete(hub: Hub, caller: Caller, reference: str, **more: Any) -> Applied:
    kind, _, key = reference.partition("/")
    return apply(hub, caller, [Change("delete", kind, key, **more)])[0]


def found(hub: Hub, kind: str, query: str = "") -> list[Resource]:
    """What a search finds, at most 50."""
    from fhir_server.changes import plan_of

    with hub.store.read(SYSTEM) as snapshot:
        return [one.resource() for one in snapshot.search(plan_of(kind, query)).matches]


def deliveries(hub: Hub) -> list[Delivery]:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.deliveries()


def replayed(store: Store, args: Mapping[str, str]) -> Any:
    """An operator's `outbox-replay`, with the demo's establishments."""
    sites = load_sites(SITES)
    return outbox_replay(store, args, lambda snapshot: Context(SYSTEM, view_of(snapshot), Settings(), sites, now()))


def delivered(
    hub: Hub, protocol: str = "mail", second_leg: Any = "dsn", key: str = "", endpoint: str = "mllp://127.0.0.1:9"
) -> str:
    """A delivery of the case `ServiceRequest/r` whose second leg is awaited; its id. Nothing was rendered for it."""
    delivery = NewDelivery(
        f"lane-{protocol}",
        endpoint,
        protocol,
        b"x",
        id=key,
        patient="Patient/patient-01",
        case="ServiceRequest/r",
        second_leg=second_leg,
    )
    return hub.store.write(SYSTEM, lambda tx: tx.send(delivery))


def request(key: str = "r", patient: int = 0, status: str = "active", **changes: Any) -> Resource:
    """A request of the midwife to the ultrasound group; its consent is `Consent/<key>`."""
    return people.request(key, patient, "moreau", "avis-echo", "Mesure à vérifier", status) | changes


def asked(hub: Hub, key: str = "r", patient: int = 0, state: str = "ready") -> Resource:
    """A request taken to a state by the steps that lead there; the ServiceRequest."""
    draft = state == "draft"
    put(hub, REQUESTER, people.consent(key, patient), request(key, patient, "draft" if draft else "active"))
    if state in ("in_progress", "on-hold", "completed"):
        take(hub, key)
    if state == "on-hold":
        put(hub, EXPERT, message(f"{key}-question", key))
    if state == "completed":
        put(hub, EXPERT, opinion(hub, key))
    if state in ("revoked", "entered-in-error"):
        put(hub, REQUESTER, read(hub, f"ServiceRequest/{key}") | {"status": state})
    return read(hub, f"ServiceRequest/{key}")


def write_past_the_rules(hub: Hub, resource: Resource) -> None:
    """What an older release or another hand may have left in the store."""
    hub.store.write(SYSTEM, lambda tx: tx.update(resource, IndexRows()))


def take(hub: Hub, key: str = "r", caller: Caller = EXPERT) -> None:
    put(hub, caller, read(hub, f"Task/{key}") | {"status": "in-progress"})


def message(key: str, case: str = "r", text: str = "Quel est le terme ?", answers: str = "") -> Resource:
    """A Communication in a case; `answers` names the question."""
    out: Resource = {
        "resourceType": "Communication",
        "id": key,
        "status": "completed",
        "basedOn": [{"reference": f"ServiceRequest/{case}"}],
        "payload": [{"contentString": text}],
    }
    return out | ({"inResponseTo": [{"reference": f"Communication/{answers}"}]} if answers else {})


def opinion(hub: Hub, key: str = "r", **changes: Any) -> Resource:
    """A final DiagnosticReport of a stored request."""
    return seed.opinion(key, read(hub, f"ServiceRequest/{key}")) | changes


class Meddled:
    """A store where something happens once, between what a write read and its transaction."""

    def __init__(self, store: Store, meddle: Callable[[Store], object]) -> None:
        self._store, self._meddle = store, [meddle]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, caller: Caller, work: Callable[[Any], T]) -> T:
        while self._meddle:
            self._meddle.pop()(self._store)
        return self._store.write(caller, work)


def meddled(hub: Hub, meddle: Callable[[Store], object]) -> Hub:
    """The hub on a `Meddled` store."""
    return dataclasses.replace(hub, store=Meddled(hub.store, meddle))  # type: ignore[arg-type]  # a stand-in


def at_once(*works: Callable[[], T]) -> list[T | Exception]:
    """Runs every function in a thread of its own, started together; what each returned or raised."""
    outcomes: list[T | Exception] = [RuntimeError("did not end")] * len(works)
    gate = threading.Barrier(len(works))

    def run(number: int, work: Callable[[], T]) -> None:
        gate.wait(10)
        try:
            outcomes[number] = work()
        except Exception as problem:
            outcomes[number] = problem

    threads = [threading.Thread(target=run, args=(n, work)) for n, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


def results(outcomes: Sequence[T | Exception]) -> list[T]:
    """The results, when nothing was raised."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]


def refused(expected: type[PasserelleError], place: str, action: Callable[[], object]) -> str:
    """The words of a 422 that points at one element."""
    with pytest.raises(expected) as told:
        action()
    assert told.value.status == 422
    assert told.value.issues[0].expression == place
    return told.value.diagnostics


def status(hub: Hub, key: str = "r") -> str:
    """The state of a case, as its Task tells it."""
    return str(read(hub, f"Task/{key}")["businessStatus"]["text"])
