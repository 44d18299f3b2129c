"""PostgreSQL is told to look at what a load filled, soon, once in a while, and only where it grew."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from stocked import extract
from test_store_together import until

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import query
from fhir_server.store import schema
from fhir_server.store import statistics as looking_again
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


def slow(url: str) -> None:
    """A table of which any later look takes a minute: it computes what its index holds."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE a_slow_one (n int)")
        connection.execute(
            "CREATE FUNCTION dawdle(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
            "IF current_setting('test.dawdle', true) = 'on' THEN PERFORM pg_sleep(60); END IF; RETURN n; END $$"
        )
        connection.execute("CREATE INDEX slow_index ON a_slow_one (dawdle(n))")
        connection.execute("INSERT INTO a_slow_one SELECT generate_series(1, 10)")
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET test.dawdle = 'on'").format(name))


def analysing(url: str) -> bool:
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
            "AND query LIKE 'ANALYZE%'"
        ).fetchone()
    return found is not None


def test_a_stop_ends_the_look_that_is_under_way(empty_postgres: str, caplog: pytest.LogCaptureFixture) -> None:
    slow(empty_postgres)
    statistics = Statistics(lambda: connect(empty_postgres), rows=1, pause=0)
    statistics.wrote({"a_slow_one": 10})
    until(lambda: analysing(empty_postgres))
    looking = statistics._thread
    assert looking is not None
    began = time.monotonic()
    statistics.close()
    assert not looking.is_alive() and time.monotonic() - began < 4, "it is not waited for"
    until(lambda: not analysing(empty_postgres))
    assert caplog.messages == [], "that is no failure"


def test_what_nobody_expected_ends_one_look_and_not_the_later_ones(caplog: pytest.LogCaptureFixture) -> None:
    opened: list[int] = []

    def broken() -> Connection:
        opened.append(1)
        raise ValueError("nobody expected this")

    statistics = Statistics(broken, rows=1, pause=0)
    for n in (1, 2):
        statistics.wrote({"idx_token": 2})
        until(lambda n=n: len(opened) == n and statistics._thread is None)  # type: ignore[misc]  # a default has no type
    statistics.close()
    assert len(caplog.records) == 2 and "nobody expected this" in caplog.text


def upgraded(url: str, monkeypatch: pytest.MonkeyPatch) -> schema.SchemaStatus:
    """`db upgrade` of a database that says it is older."""
    real, said = schema._status, iter([schema.SchemaStatus("older", "0000", "0001")])
    monkeypatch.setattr(schema, "_status", lambda connection: next(said, None) or real(connection))
    return schema.upgrade(url)


def test_an_upgrade_that_is_done_is_not_failed_by_a_lock_and_says_what_was_not_looked_at(
    empty_postgres: str, looks: Looks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert schema.upgrade(empty_postgres).state == "current"
    before = looks()
    with psycopg.connect(empty_postgres) as other:
        other.execute("LOCK TABLE idx_token IN ACCESS EXCLUSIVE MODE")
        assert upgraded(empty_postgres, monkeypatch).state == "current"
    (told,) = caplog.messages
    assert "idx_token" in told and "did not look at a table" in told
    after = looks()
    assert after["idx_token"] == before["idx_token"] and after["idx_reference"] == before["idx_reference"] + 1


def test_an_upgrade_that_is_done_is_not_failed_by_a_time_limit_either(
    empty_postgres: str, looks: Looks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert schema.upgrade(empty_postgres).state == "current"
    slow(empty_postgres)
    before = looks()
    monkeypatch.setattr(looking_again, "SECONDS", 1.0)
    assert upgraded(empty_postgres, monkeypatch).state == "current"
    assert caplog.messages == ["the database did not look at table a_slow_one: QueryCanceled"]
    assert looks()["idx_token"] == before["idx_token"] + 1, "those behind it are looked at"


def test_what_a_restore_filled_is_there_although_a_table_cannot_be_looked_at(
    empty_postgres: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(url: str, **_: object) -> Connection:
        raise errors.Unavailable("The database does not answer.")

    monkeypatch.setattr(schema, "connect", gone)
    filled: list[object] = []
    schema.create(empty_postgres, schema.revisions()[-1], filled.append)
    assert len(filled) == 1 and schema.schema_status(empty_postgres).state == "current"
    assert caplog.messages == ["the database did not look at its tables anew: Unavailable"]
