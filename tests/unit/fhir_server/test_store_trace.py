"""The story of a case on both databases."""

from __future__ import annotations

import pytest

from fhir_server.context import SYSTEM, Caller
from fhir_server.search.rows import IndexRows
from fhir_server.store import trace
from fhir_server.store.audit import AuditRow
from fhir_server.store.engine import Store
from fhir_server.store.inbox import NewMessage
from fhir_server.store.instances import NewInstance
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.leases import Outcome
from fhir_server.store.resources import Stored
from fhir_server.store.session import Tx

CASE = "ServiceRequest/1"


def of_case(case: str = CASE) -> IndexRows:
    return IndexRows(scopes=[("case", case)])


def test_a_case_is_told_in_order(store: Store) -> None:
    got = store.receive(NewMessage("mllp", b"ADT", sender="a", control_id="1"))
    store.write(SYSTEM, lambda tx: tx.integrate(got.id, b"AA", keys=[("case", CASE)]))

    def request(tx: Tx) -> None:
        tx.create({"resourceType": "ServiceRequest", "id": "1"}, of_case())
        tx.create({"resourceType": "ServiceRequest", "id": "2"}, of_case("ServiceRequest/2"))
        tx.audit(AuditRow("C", entity_type="ServiceRequest", entity_id="1", case_key=CASE))

    store.write(SYSTEM, request)
    instance = NewInstance("1.1", "1", "1", "c", "t", "b" * 64, 1, "d" * 64, "{}")
    store.write(SYSTEM, lambda tx: tx.add_instance(instance))
    with store.read(SYSTEM) as snapshot:
        study = snapshot.study("1")
    assert study is not None
    store.write(SYSTEM, lambda tx: tx.settle_study(study, match_state="matched", request=CASE))
    store.write(SYSTEM, lambda tx: tx.update({"resourceType": "ServiceRequest", "id": "1"}, of_case()))
    key = store.write(SYSTEM, lambda tx: tx.send(NewDelivery("dpi", "e", "mllp", b"1", case=CASE, second_leg="zam")))
    held = store.claim("w", 30)
    assert held is not None
    store.start_attempt(held)
    store.finish(held, Outcome("sent", ack=b"AA"))
    store.write(SYSTEM, lambda tx: tx.confirm(key, "confirmed", "Z01"))
    store.write(SYSTEM, lambda tx: tx.delete("ServiceRequest", "1"))
    with store.read(SYSTEM) as snapshot:
        story = snapshot.case(CASE)
        assert snapshot.case("") == [] == snapshot.case("ServiceRequest/none")
    assert [event.kind for event in story] == [
        "message", "resource", "audit", "study", "resource", "delivery", "attempt", "confirmation", "resource",
    ]  # fmt: skip
    assert [event.at for event in story] == sorted(event.at for event in story)
    versions = [event.record for event in story if isinstance(event.record, Stored)]
    assert [(one.version, one.method) for one in versions] == [(1, "POST"), (2, "PUT"), (3, "DELETE")]


def test_a_case_shows_a_caller_only_the_resources_they_may_see(store: Store) -> None:
    mine = IndexRows(scopes=[("case", CASE), ("organisation", "HealthcareService/c")])
    store.write(SYSTEM, lambda tx: tx.create({"resourceType": "Task", "id": "mine"}, mine))
    store.write(SYSTEM, lambda tx: tx.create({"resourceType": "Task", "id": "theirs"}, of_case()))
    caller = Caller("P/x", "X", frozenset({"expert"}), frozenset({"HealthcareService/c"}), everything=False)
    with store.read(caller) as snapshot:
        assert [event.record.id for event in snapshot.case(CASE) if isinstance(event.record, Stored)] == ["mine"]
    stranger = Caller("P/y", "Y", frozenset({"expert"}), everything=False)
    store.write(SYSTEM, lambda tx: tx.audit(AuditRow("U", case_key=CASE)))
    with store.read(stranger) as snapshot:
        assert snapshot.case(CASE) == []


def test_a_case_tells_the_consents_its_request_names_and_who_did_what(store: Store) -> None:
    consent = {"resourceType": "Consent", "id": "c", "status": "active"}
    named = {"resourceType": "ServiceRequest", "id": "1", "supportingInfo": [{"reference": "Consent/c"}, {}]}
    nurse = Caller("PractitionerRole/n", "Claire", frozenset({"requester"}), channel="http", peer="192.0.2.7")

    def write(tx: Tx) -> None:
        tx.create(consent, IndexRows())
        tx.create(named, of_case())
        tx.audit(AuditRow("C", entity_type="Consent", entity_id="c", entity_version=1))
        tx.audit(AuditRow("C", entity_type="ServiceRequest", entity_id="1", entity_version=1, case_key=CASE))

    store.write(nurse, write)
    store.write(SYSTEM, lambda tx: tx.update(consent | {"status": "inactive"}, IndexRows()))
    with store.read(SYSTEM) as snapshot:
        story = snapshot.case(CASE)
    told = [(e.record.reference, e.record.version, e.source) for e in story if isinstance(e.record, Stored)]
    assert told == [
        ("Consent/c", 1, "Claire http 192.0.2.7"),
        ("ServiceRequest/1", 1, "Claire http 192.0.2.7"),
        ("Consent/c", 2, ""),
    ]


def test_a_case_tells_the_binaries_its_resources_point_to_and_no_other(store: Store) -> None:
    def write(tx: Tx) -> None:
        for key in ("pdf", "photo", "other"):
            tx.create({"resourceType": "Binary", "id": key, "contentType": "text/plain"}, IndexRows())
        attachments = [{"attachment": {"url": url}} for url in ("Binary/pdf", "https://h/fhir/Binary/photo/_history/1")]
        tx.create({"resourceType": "DocumentReference", "id": "d", "content": attachments}, of_case())

    store.write(SYSTEM, write)
    store.write(SYSTEM, lambda tx: tx.delete("Binary", "photo"))
    with store.read(SYSTEM) as snapshot:
        story = snapshot.case(CASE)
    versions = [event.record for event in story if isinstance(event.record, Stored)]
    assert all(one.resource() == {} for one in versions if one.type == "Binary" and not one.deleted), "no content"
    told = [(one.reference, one.version) for one in versions]
    assert sorted(told) == [("Binary/pdf", 1), ("Binary/photo", 1), ("Binary/photo", 2), ("DocumentReference/d", 1)]


def test_the_versions_of_binaries_a_case_tells_are_bounded_in_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "LIMIT", 5)

    def write(tx: Tx) -> None:
        for key in ("a", "b"):
            tx.create({"resourceType": "Binary", "id": key, "data": "AA=="}, IndexRows())
            for _ in range(3):
                tx.update({"resourceType": "Binary", "id": key, "data": "AAAA"}, IndexRows())
        attachments = [{"attachment": {"url": f"Binary/{key}"}} for key in ("a", "b")]
        tx.create({"resourceType": "DocumentReference", "id": "d", "content": attachments}, of_case())

    store.write(SYSTEM, write)
    with store.read(SYSTEM) as snapshot:
        story = snapshot.case(CASE)
    told = [(one.id, one.version) for e in story if isinstance(one := e.record, Stored) and one.type == "Binary"]
    assert told == [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 1)]


def test_the_binaries_of_a_case_are_shown_to_those_who_may_see_them(store: Store) -> None:
    mine = [("organisation", "HealthcareService/c")]

    def write(tx: Tx) -> None:
        tx.create({"resourceType": "Binary", "id": "mine"}, IndexRows(scopes=list(mine)))
        tx.create({"resourceType": "Binary", "id": "theirs"}, IndexRows())
        attachments = [{"attachment": {"url": f"Binary/{key}"}} for key in ("mine", "theirs")]
        resource = {"resourceType": "DocumentReference", "id": "d", "content": attachments}
        tx.create(resource, IndexRows(scopes=[("case", CASE), *mine]))

    store.write(SYSTEM, write)
    caller = Caller("P/x", "X", frozenset({"expert"}), frozenset({"HealthcareService/c"}), everything=False)
    with store.read(caller) as snapshot:
        told = [event.record.reference for event in snapshot.case(CASE) if isinstance(event.record, Stored)]
    assert sorted(told) == ["Binary/mine", "DocumentReference/d"]
