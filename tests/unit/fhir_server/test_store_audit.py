"""The audit trail on both databases: written with its transaction, sealed, and tampering noticed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM, Caller
from fhir_server.store import audit
from fhir_server.store.audit import AuditFilter, AuditRow
from fhir_server.store.engine import Store
from fhir_server.store.session import Tx

EXPERT = Caller("PractitionerRole/e", "Dr É", frozenset({"expert"}), channel="http", peer="10.0.0.1", request_id="r1")


def note(store: Store, count: int = 1, **more: object) -> None:
    def work(tx: Tx) -> None:
        for number in range(count):
            tx.audit(AuditRow("U", entity_type="Task", entity_id=str(number), entity_version=2, **more))  # type: ignore[arg-type]  # keywords of any type

    store.write(EXPERT, work)


def test_a_row_takes_who_and_where_from_the_caller(store: Store) -> None:
    note(store, case_key="ServiceRequest/1", text="accept\x00ed")
    with store.read(SYSTEM) as snapshot:
        (row,) = snapshot.audit_rows()
    assert (row.who, row.display, row.role, row.channel, row.peer, row.request_id) == (
        "PractitionerRole/e", "Dr É", "expert", "http", "10.0.0.1", "r1",
    )  # fmt: skip
    assert (row.action, row.entity_type, row.entity_id, row.entity_version) == ("U", "Task", "0", 2)
    assert (row.case_key, row.outcome, row.text) == ("ServiceRequest/1", "0", "accept\ufffded")
    assert row.recorded > 0 and row.seq > 0


def test_a_row_is_undone_with_its_transaction(store: Store) -> None:
    def work(tx: Tx) -> None:
        tx.audit(AuditRow("C"))
        raise errors.Conflict("no")

    with pytest.raises(errors.Conflict):
        store.write(EXPERT, work)
    with store.read(SYSTEM) as snapshot:
        assert snapshot.audit_rows() == []


def test_the_list_filters_and_pages(store: Store) -> None:
    note(store, 5, case_key="c1")
    store.write(SYSTEM, lambda tx: tx.audit(AuditRow("E", event="login", outcome="8", request_id="r2")))
    with store.read(SYSTEM) as snapshot:
        rows = snapshot.audit_rows()
        assert len(rows) == 6 and rows[0].event == "login"
        first = snapshot.audit_rows(AuditFilter(limit=4))
        rest = snapshot.audit_rows(AuditFilter(before=(first[-1].recorded, first[-1].seq)))
        assert first + rest == rows
        assert len(snapshot.audit_rows(AuditFilter(case_key="c1", entity_id="3"))) == 1
        assert snapshot.audit_rows(AuditFilter(request_id="r2", action="E")) == rows[:1]
        assert snapshot.audit_rows(AuditFilter(seq=rows[2].seq)) == rows[2:3]
        assert snapshot.audit_rows(AuditFilter(since=rows[0].recorded + 1)) == []


def sealed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SEAL_ROWS", 4)
    for _ in range(5):
        note(store, 2)
    assert store.seal() == 10
    assert store.seal() == 0
    note(store, 2)


def test_an_untouched_chain_is_intact(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.verify().ok and store.seal() == 0
    sealed(store, monkeypatch)
    verdict = store.verify()
    assert (verdict.ok, verdict.sealed, verdict.unsealed) == (True, 10, 2)
    store.seal()
    again = store.verify()
    assert (again.ok, again.sealed, again.unsealed) == (True, 12, 0) and again.head != verdict.head


@pytest.mark.parametrize(
    ("tampering", "broken", "text"),
    [
        ("UPDATE audit SET text = 'never happened' WHERE seq = (SELECT min(seq) + 5 FROM audit)", 2, "was changed"),
        ("DELETE FROM audit WHERE seq = (SELECT min(seq) + 8 FROM audit)", 3, "1 audit row(s) missing"),
        ("DELETE FROM audit WHERE seq <= (SELECT min(seq) + 3 FROM audit)", 1, "4 audit row(s) missing"),
        ("UPDATE audit_seal SET hash = previous WHERE n = 2", 2, "was changed"),
        ("DELETE FROM audit_seal WHERE n = 2", 3, "does not follow"),
        (
            "INSERT INTO audit (txid, recorded, action) SELECT txid, recorded, 'R' FROM audit "
            "WHERE seq = (SELECT min(seq) FROM audit)",
            1,
            "were added",
        ),
    ],
)
def test_tampering_is_noticed(
    store: Store, monkeypatch: pytest.MonkeyPatch, tampering: str, broken: int, text: str
) -> None:
    sealed(store, monkeypatch)
    store.write(SYSTEM, lambda tx: tx.view.db.run(tampering))
    verdict = store.verify()
    assert (verdict.ok, verdict.broken) == (False, broken)
    assert text in verdict.text


@pytest.mark.needs("postgresql")
def test_the_sealer_leaves_out_what_a_running_transaction_may_still_precede(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    """A row with a smaller number that commits later would otherwise stand inside a sealed batch."""
    store = open_url(migrated_postgres)
    entered, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        tx.audit(AuditRow("C", text="slow"))
        assert len(tx.audit_rows()) == 1  # it travelled: the transaction has its number
        entered.set()
        assert go_on.wait(20)

    running = threading.Thread(target=lambda: store.write(SYSTEM, slow))
    running.start()
    assert entered.wait(10)
    note(store, 3)
    assert store.seal() == 0 and store.verify().unsealed == 3
    go_on.set()
    running.join(20)
    assert store.seal() == 4
    verdict = store.verify()
    assert (verdict.ok, verdict.sealed, verdict.unsealed) == (True, 4, 0)
