"""Correcting and withdrawing the report of the case `r`, and reading what each addressee is then told."""

from __future__ import annotations

import base64
import email
import io
import zipfile
from typing import Any

import hubs
from hubs import EXPERT, SYSTEM, found, put, read

from fhir_server.changes import Hub
from fhir_server.store.lanes import Delivery
from fhir_server.teleexpertise import notes as case_notes
from fhir_server.teleexpertise.opinion import REASON
from hl7v2.message import Message, parse
from mssante import envelope
from mssante.received import Received

Resource = dict[str, Any]
DPI, PFI, MAIL = "Endpoint/dpi", "Endpoint/pfi", "mssante:claire.moreau@ch-demo.mssante.fr"


def received(hub: Hub, *lanes: str) -> None:
    """What waits was handed over, in all lanes or in some."""
    for one in hubs.deliveries(hub):
        if one.state == "queued" and (not lanes or one.lane in lanes):
            sql = "UPDATE delivery SET state = 'sent', attempts = 1 WHERE id = ?"
            hub.store.write(SYSTEM, lambda tx, sql=sql, key=one.id: tx.view.db.run(sql, (key,)))


def because(words: str) -> list[Resource]:
    return [{"url": REASON, "valueCodeableConcept": {"text": words}}]


def correct(hub: Hub, conclusion: str = "Contrôle à 2 semaines.", status: str = "corrected", **more: Any) -> None:
    put(hub, EXPERT, read(hub, "DiagnosticReport/r") | {"status": status, "conclusion": conclusion} | more)


def withdraw(hub: Hub, words: str = "mauvaise patiente") -> None:
    put(hub, EXPERT, read(hub, "DiagnosticReport/r") | {"status": "entered-in-error", "extension": because(words)})


def waiting(hub: Hub) -> dict[str, Delivery]:
    return {one.lane: one for one in hubs.deliveries(hub) if one.state == "queued"}


def payload(hub: Hub, one: Delivery) -> bytes:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.payload(one.id)


def message(hub: Hub, lane: str) -> Message:
    return parse(payload(hub, waiting(hub)[lane]))


def letter(hub: Hub) -> Received:
    return envelope.read(payload(hub, waiting(hub)[MAIL]))


def archived(mail: bytes, name: str) -> bytes:
    """One file of the archive in a mail."""
    parts = email.message_from_bytes(mail).walk()
    data = next(part.get_payload(decode=True) for part in parts if part.get_content_type() == "application/zip")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(next(one for one in archive.namelist() if one.endswith(name)))


def record(hub: Hub, status: str = "current") -> Resource:
    (one,) = found(hub, "DocumentReference", f"related=DiagnosticReport/r&status={status}")
    return one


def notes(hub: Hub) -> list[str]:
    return case_notes.noted(read(hub, "Task/r"))


def clinical(hub: Hub, reference: Resource) -> bytes:
    url = next(c["attachment"]["url"] for c in reference["content"] if c["attachment"]["contentType"] == "text/xml")
    return base64.b64decode(read(hub, url)["data"])
