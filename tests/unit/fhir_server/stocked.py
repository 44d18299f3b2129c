"""A store with something of everything in it, and the extraction its rows were made with."""

from __future__ import annotations

import os
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest

from fhir_server.context import SYSTEM
from fhir_server.search import index
from fhir_server.search.rows import IndexRows
from fhir_server.store.audit import AuditRow
from fhir_server.store.engine import Store
from fhir_server.store.inbox import NewMessage
from fhir_server.store.instances import NewInstance
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.leases import Outcome
from fhir_server.store.session import Tx
from profiles import json_text

LARGE = b"0123456789" * 10_000
PLACE = (
    '{"resourceType":"Location","id":"l","status":"active","name":"Lyon",'
    '"position":{"longitude":4.85,"latitude":45.750}}'
)


def extract(resource: dict[str, Any]) -> IndexRows:
    """The search rows, and the patient compartment as a scope."""
    rows = index.rows(resource)
    subject = resource.get("subject", {}).get("reference")
    rows.scopes = [("patient", subject)] if subject else []
    return rows


def patient(key: str, family: str = "Durand") -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": key,
        "identifier": [{"system": "urn:oid:1.2.3", "value": key}],
        "name": [{"family": family, "given": ["Zoé"]}],
        "birthDate": "1990-05-17",
        "gender": "female",
        "address": [{"city": "Besançon"}],
    }


def observation(key: str, subject: str, value: float = 72) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": key,
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}], "text": "Pouls"},
        "subject": {"reference": f"Patient/{subject}"},
        "effectiveDateTime": "2026-03-01T10:00:00+01:00",
        "valueQuantity": {"value": value, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"},
    }


def create(tx: Tx, resource: dict[str, Any]) -> None:
    tx.create(resource, extract(resource))
    tx.audit(AuditRow("C", entity_type=resource["resourceType"], entity_id=resource["id"]))


def update(tx: Tx, resource: dict[str, Any]) -> None:
    tx.update(resource, extract(resource))


def _create_both(one: dict[str, Any], other: dict[str, Any], tx: Tx) -> None:
    create(tx, one)
    create(tx, other)


def fill(store: Store, patients: int = 6) -> None:
    """Resources updated, deleted and revived; messages, deliveries, images, content, audit rows."""
    for number in range(patients):
        store.write(SYSTEM, partial(_create_both, patient(f"p{number}"), observation(f"o{number}", f"p{number}")))
    store.write(SYSTEM, lambda tx: update(tx, patient("p0", "Martin")))
    store.write(SYSTEM, lambda tx: update(tx, patient("p0", "Lefèvre")))
    store.write(SYSTEM, lambda tx: [tx.delete("Patient", "p1"), tx.delete("Observation", "o1")])
    store.write(SYSTEM, lambda tx: tx.delete("Patient", "p2"))
    store.write(SYSTEM, lambda tx: update(tx, patient("p2", "Revenue")))
    store.write(SYSTEM, lambda tx: create(tx, json_text.parse(PLACE)))
    for control_id, raw in (("M1", b"MSH|1"), ("M2", LARGE)):
        got = store.receive(NewMessage("mllp", raw, sender="A", control_id=control_id, keys=[("IPP", control_id)]))
        store.write(SYSTEM, methodcaller("integrate", got.id, b"AA"))
    for payload in (b"1", LARGE + b"!"):
        new = store.keep(NewDelivery("lane", "mllp://x", "mllp", payload, keys=[("INS", "1")]))
        store.write(SYSTEM, methodcaller("send", new))
    claim = store.claim("w", 30)
    assert claim is not None
    store.start_attempt(claim)
    store.finish(claim, Outcome("sent"))
    for number in range(3):
        image(store, number)
    kept = store.blobs.keep(b"%PDF")
    store.write(SYSTEM, lambda tx: tx.attach(kept, "application/pdf"))
    store.seal()


def image(store: Store, number: int) -> None:
    blob = store.blobs.put(b"DICM" + bytes([number]))
    new = NewInstance(f"1.2.{number}", "1.1", f"1.3.{number % 2}", "c", "t", blob, 5, str(number), "{}")
    store.write(SYSTEM, lambda tx: tx.add_instance(new))


def unreadable(monkeypatch: pytest.MonkeyPatch, reason: int, *paths: Path) -> None:
    """The system refuses to open these files, whoever asks; what takes their place opens."""
    inodes, real = {path.stat().st_ino for path in paths}, Path.open
    for path in paths:
        path.with_name(f"held-{path.name}").hardlink_to(path)  # no new file gets the same inode

    def refuse(path: Path, mode: str = "r", **more: Any) -> Any:
        if mode == "rb" and path.exists() and path.stat().st_ino in inodes:
            raise OSError(reason, os.strerror(reason), str(path))
        return real(path, mode, **more)

    monkeypatch.setattr(Path, "open", refuse)
