"""PostgreSQL is told to look at what a load filled, soon, once in a while, and only where it grew."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from stocked import extract
from test_store_together import until

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import query
from fhir_server.store.engine import Store, open_store
from fhir_server.store.postgres import Connection, connect
from fhir_server.store.reindex import reindex
from fhir_server.store.session import Tx
from fhir_server.store.statistics import Statistics

pytestmark = pytest.mark.needs("postgresql")
PATIENTS, EACH = 40, 40
Looks = Callable[[], Counter[str]]


@pytest.fixture
def looks(empty_postgres: str) -> Looks:
    """How often each table was looked at by order, not by the database's own daemon."""

    def told() -> Counter[str]:
        with psycopg.connect(empty_postgres) as connection:
            rows = connection.execute("SELECT relname, analyze_count FROM pg_stat_user_tables").fetchall()
        return Counter(dict(rows))

    return told


def load(tx: Tx) -> None:
    for n in range(PATIENTS):
        patient = {"resourceType": "Patient", "id": f"p{n}", "name": [{"family": f"Family{n}"}]}
        tx.create(patient, extract(patient), absent=True)
        for k in range(EACH):
            found = {"resourceType": "Observation", "id": f"o{n}-{k}", "status": "final",
                     "subject": {"reference": f"Patient/p{n}"}, "code": {"coding": [{"code": f"c{k}"}]}}  # fmt: skip
            tx.create(found, extract(found), absent=True)


def test_what_a_load_filled_is_looked_at_and_planned_for_what_it_is(
    empty_postgres: str, tmp_path: Path, looks: Looks
) -> None:
    store = open_store(empty_postgres, tmp_path)
    before = looks()
    assert before["idx_token"] == 1, "after the schema was made"
    store.write(SYSTEM, load)
    until(lambda: looks()["idx_reference"] > before["idx_reference"])
    with store.read(SYSTEM) as snapshot:
        db = snapshot.view.db
        (expected,) = db.rows("SELECT reltuples FROM pg_class WHERE relname = 'idx_reference'")
        assert expected[0] >= PATIENTS * EACH
        assert db.rows("SELECT 1 FROM pg_stats WHERE tablename = 'idx_reference' AND attname = 'pid'")
        plan = query.parse("Observation", [("subject:Patient.family", "Family7")])
        assert len(snapshot.search(plan).matches) > 1
    store.close()
    assert looks()["inbox"] == before["inbox"], "nothing was written there"


def test_a_reindex_ends_with_a_look_at_everything(empty_postgres: str, tmp_path: Path, looks: Looks) -> None:
    store = open_store(empty_postgres, tmp_path)
    before = looks()
    reindex(store, extract)
    assert all(count == before[table] + 1 for table, count in looks().items())
    store.close()


def test_looks_come_once_in_a_while_and_only_at_what_grew(empty_postgres: str, tmp_path: Path, looks: Looks) -> None:
    store: Store = open_store(empty_postgres, tmp_path)
    store.write(SYSTEM, load)
    until(lambda: looks()["idx_token"] == 2)
    opened: list[int] = []

    def noted() -> Connection:
        opened.append(1)
        return connect(empty_postgres)

    often, seldom = Statistics(noted, rows=10, pause=0), Statistics(noted, rows=10, pause=600)
    often.wrote({"idx_token": 10})
    assert opened == [], "too few"
    often.wrote({"idx_token": 10, "idx_reference": 1000})
    until(lambda: looks()["idx_reference"] == 3 and often._thread is None)
    assert looks()["idx_token"] == 2, "twenty rows are no tenth of what is there"
    seldom.wrote({"idx_reference": 1000})
    until(lambda: looks()["idx_reference"] == 4 and seldom._thread is None)
    seldom.wrote({"idx_reference": 1000})
    assert seldom._thread is not None and len(opened) == 2, "it waits"
    seldom.close()
    assert looks()["idx_reference"] == 4
    often.close()
    often.wrote({"idx_reference": 1000})
    assert len(opened) == 2
    store.close()


def test_a_database_that_is_gone_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def gone() -> Connection:
        raise errors.Unavailable("The database does not answer.")

    statistics = Statistics(gone, rows=1, pause=0)
    for n in range(1, 3):
        statistics.wrote({"idx_token": 2})
        until(lambda n=n: len(caplog.records) == n and statistics._thread is None)  # type: ignore[misc]  # a default has no type
    statistics.close()
    assert "Unavailable" in caplog.records[0].getMessage()


def test_a_thread_that_cannot_be_had_fails_no_commit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    statistics = Statistics(lambda: pytest.fail("no look without a thread"), rows=1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        statistics.wrote({"idx_token": 9})
    statistics.close()
    assert "can't start new thread" in caplog.text
