"""What surrounds a commit, on both databases: grouping, failures, limits, closing, and SIGKILL."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from test_store_together import until

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search.plan import Plan
from fhir_server.search.rows import IndexRows
from fhir_server.store.engine import Store
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.session import Tx

WRITER = Path(__file__).parent / "store_writer.py"


def basic(key: str) -> dict[str, object]:
    return {"resourceType": "Basic", "id": key}


def made(store: Store, key: str) -> bool:
    return store.get(SYSTEM, "Basic", key) is not None


def test_a_failing_work_in_a_group_undoes_only_itself(store: Store) -> None:
    entered, go_on = threading.Event(), threading.Event()
    outcomes: dict[str, object] = {}

    def first(tx: Tx) -> None:
        entered.set()
        assert go_on.wait(10)
        tx.create(basic("first"), IndexRows())

    def good(tx: Tx) -> None:
        tx.create(basic("good"), IndexRows())

    def bad(tx: Tx) -> None:
        tx.create(basic("bad"), IndexRows())
        tx.send(NewDelivery("lane", "e", "mllp", b"1"))
        raise ValueError("a defect")

    def run(name: str, work: Callable[[Tx], None]) -> None:
        try:
            outcomes[name] = store.write(SYSTEM, work)
        except ValueError as fault:
            outcomes[name] = str(fault)

    threads = [threading.Thread(target=run, args=("first", first))]
    threads[0].start()
    assert entered.wait(10)
    threads += [threading.Thread(target=run, args=(work.__name__, work)) for work in (bad, good)]
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert outcomes == {"first": None, "bad": "a defect", "good": None}
    assert made(store, "first") and made(store, "good") and not made(store, "bad")
    with store.read(SYSTEM) as snapshot:
        assert snapshot.deliveries() == []


def test_a_group_whose_first_work_fails_keeps_what_follows(
    open_url: Callable[..., Store], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of a transaction is undone with all of it: those behind it begin another."""
    monkeypatch.setattr("fhir_server.store.sqlite.GROUP_SECONDS", 20.0)
    store = open_url(sqlite_url)
    entered, go_on, faults = threading.Event(), threading.Event(), list[str]()

    def bad(tx: Tx) -> None:
        entered.set()
        assert go_on.wait(10)
        tx.create(basic(f"bad{len(faults)}"), IndexRows())
        raise ValueError("a defect")

    def run(work: Callable[[Tx], object]) -> None:
        try:
            store.write(SYSTEM, work)
        except ValueError as fault:
            faults.append(str(fault))

    works = [bad, bad, lambda tx: tx.create(basic("good"), IndexRows()), bad]
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for number, thread in enumerate(threads):
        thread.start()
        assert entered.wait(10)
        wait_until(lambda number=number: store._database._line.waiting == number)  # type: ignore[misc, attr-defined]  # a default has no type; SQLite's own
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert faults == ["a defect"] * 3 and made(store, "good")
    with store.read(SYSTEM) as snapshot:
        assert snapshot.view.db.rows("SELECT id FROM resource") == [("good",)]


def test_a_statement_that_fails_last_fails_the_work(store: Store) -> None:
    """Statements without a result travel late on PostgreSQL; their faults still arrive before success is told."""

    def work(tx: Tx) -> None:
        tx.create(basic("a"), IndexRows())
        tx.view.db.run("INSERT INTO resource (type, id) VALUES ('Basic', 'b')")

    with pytest.raises(Exception, match=r"(?i)null"):
        store.write(SYSTEM, work)
    assert not made(store, "a")
    store.write(SYSTEM, lambda tx: tx.create(basic("a"), IndexRows()))
    assert made(store, "a")


def test_a_transaction_reads_and_searches_its_own_writes(store: Store) -> None:
    def work(tx: Tx) -> tuple[int, int]:
        tx.create(basic("a"), IndexRows())
        return len(tx.search(Plan(("Basic",))).matches), len(tx.history("Basic", "a").entries)

    assert store.write(SYSTEM, work) == (1, 1)


def test_writes_after_a_failure_go_on(store: Store) -> None:
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            store.write(SYSTEM, lambda tx: 1 // 0)
    store.write(SYSTEM, lambda tx: tx.create(basic("a"), IndexRows()))
    assert made(store, "a")


def test_a_closed_store_says_so(open_at: Callable[..., Store]) -> None:
    store = open_at()
    store.close()
    store.close()
    with pytest.raises(errors.Unavailable, match="stopping"):
        store.write(SYSTEM, lambda tx: None)
    with pytest.raises(errors.Unavailable, match="stopping"), store.read(SYSTEM):
        pass


def test_data_survive_closing_and_opening(open_at: Callable[..., Store]) -> None:
    store = open_at()
    store.write(SYSTEM, lambda tx: tx.create(basic("a"), IndexRows()))
    store.close()
    assert made(open_at(), "a")


def test_a_statement_over_its_time_is_stopped_and_told(open_at: Callable[..., Store]) -> None:
    store = open_at(statement_seconds=0.3)
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) SELECT count(*) FROM n"
    )
    with pytest.raises(errors.Unavailable, match="narrow") as caught, store.read(SYSTEM) as snapshot:
        snapshot.view.db.rows(endless)
    assert caught.value.issues[0].code == "timeout"
    store.write(SYSTEM, lambda tx: tx.create(basic("a"), IndexRows()))
    assert made(store, "a")


def test_the_epoch_counts_up(store: Store) -> None:
    before = store.epoch
    assert store.write(SYSTEM, lambda tx: tx.next_epoch()) == before + 1 == store.epoch


def test_an_attachment_is_kept_with_the_record(store: Store) -> None:
    kept = store.blobs.keep(b"%PDF")
    store.write(SYSTEM, lambda tx: tx.attach(kept, "application/pdf"))
    assert store.blobs.read(kept.sha256) == b"%PDF"
    with store.read(SYSTEM) as snapshot:
        assert snapshot.view.db.rows("SELECT sha256, size, media_type, form FROM blob") == [
            (kept.sha256, 4, "application/pdf", "plain")
        ]


def test_readers_that_exceed_the_pool_are_told_to_wait(open_at: Callable[..., Store]) -> None:
    store = open_at(connections=1, statement_seconds=0.2)
    with store.read(SYSTEM) as first:
        first.epoch()
        with pytest.raises(errors.Throttled), store.read(SYSTEM) as second:
            second.epoch()


def test_a_write_inside_a_write_is_refused_on_sqlite(open_url: Callable[..., Store], sqlite_url: str) -> None:
    store = open_url(sqlite_url)
    with pytest.raises(errors.Fault, match="inside a write"):
        store.write(SYSTEM, lambda tx: store.write(SYSTEM, lambda inner: None))


def test_a_locked_sqlite_file_is_an_error_one_may_repeat(
    open_url: Callable[..., Store], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fhir_server.store.sqlite.BUSY_SECONDS", 0.05)
    store = open_url(sqlite_url)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(errors.Unavailable, match="nothing was written"):
        store.write(SYSTEM, lambda tx: tx.create(basic("a"), IndexRows()))
    other.execute("ROLLBACK")
    other.close()
    store.write(SYSTEM, lambda tx: tx.create(basic("a"), IndexRows()))
    assert made(store, "a")


def test_an_interrupt_ends_the_thread_it_was_meant_for_whoever_s_work_it_met(
    open_url: Callable[..., Store], sqlite_url: str, request: pytest.FixtureRequest
) -> None:
    """The main thread leads, and Ctrl-C finds it doing the work of another, who is told to look."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    store, outcomes = open_url(sqlite_url), list[object]()
    line = store._database._line  # type: ignore[attr-defined]  # SQLite's own

    def interrupted(tx: Tx) -> None:
        tx.create(basic("theirs"), IndexRows())
        assert threading.current_thread() is threading.main_thread()
        signal.raise_signal(signal.SIGINT)

    def their_thread() -> None:
        try:
            outcomes.append(store.write(SYSTEM, interrupted))
        except BaseException as fault:
            outcomes.append(fault)

    def own(tx: Tx) -> None:
        tx.create(basic("own"), IndexRows())
        other.start()
        until(lambda: bool(line.waiting))

    other = threading.Thread(target=their_thread, daemon=True)
    with pytest.raises(KeyboardInterrupt):
        store.write(SYSTEM, own)
    other.join(20)
    assert [type(one) for one in outcomes] == [errors.Unavailable] and "read before" in str(outcomes[0])
    assert not made(store, "own") and not made(store, "theirs")
    store.write(SYSTEM, lambda tx: tx.create(basic("next"), IndexRows()))
    assert made(store, "next")


def test_a_full_disk_undoes_the_group_and_the_store_goes_on(open_url: Callable[..., Store], sqlite_url: str) -> None:
    store = open_url(sqlite_url)
    store.write(SYSTEM, lambda tx: tx.create(basic("before"), IndexRows()))

    def limit(tx: Tx, pages: int) -> None:
        tx.view.db.rows(f"PRAGMA max_page_count = {pages}")

    pages = store.write(SYSTEM, lambda tx: tx.view.db.rows("PRAGMA page_count")[0][0])
    store.write(SYSTEM, lambda tx: limit(tx, pages))
    big = {**basic("big"), "text": {"div": "x" * 500_000}}
    with pytest.raises(errors.Unavailable, match="full"):
        store.write(SYSTEM, lambda tx: tx.create(big, IndexRows()))
    store.write(SYSTEM, lambda tx: limit(tx, 1_000_000))
    store.write(SYSTEM, lambda tx: tx.create(big, IndexRows()))
    assert made(store, "before") and made(store, "big")


_ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"


@pytest.mark.parametrize("method", ["rows", "one", "run", "count"])
@pytest.mark.parametrize("writing", [False, True])
def test_a_statement_of_a_write_that_takes_too_long_is_stopped_and_harms_no_other_write(
    open_at: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, method: str, writing: bool
) -> None:
    """On SQLite a statement stopped while it writes takes the transaction of the whole group along."""
    monkeypatch.setattr("fhir_server.store.sqlite.GROUP_SECONDS", 20.0)
    store = open_at(connections=3, statement_seconds=0.3)
    endless = _ENDLESS.format("count(*)")
    if writing:
        text = "'' || i" if store.engine == "sqlite" else "i::text"
        endless = f"INSERT INTO counter (name, value) {_ENDLESS.format(f'{text}, 1')}"
    entered, go_on, faults = threading.Event(), threading.Event(), list[BaseException]()

    def first(tx: Tx) -> None:
        entered.set()
        assert go_on.wait(20)

    def slow(tx: Tx) -> None:
        tx.create(basic("slow"), IndexRows())
        getattr(tx.view.db, method)(endless)
        tx.view.db.rows("SELECT 1")

    def write(work: Callable[[Tx], object]) -> None:
        try:
            store.write(SYSTEM, work)
        except BaseException as fault:
            faults.append(fault)

    works = [first, lambda tx: tx.create(basic("a"), IndexRows()), slow, lambda tx: tx.create(basic("b"), IndexRows())]
    threads = [threading.Thread(target=write, args=(work,)) for work in works]
    for thread in threads[:1] if store.engine == "sqlite" else threads:
        thread.start()
    assert entered.wait(10)
    for thread in threads[1:] if store.engine == "sqlite" else ():
        before = store._database._line.waiting  # type: ignore[attr-defined]  # SQLite's own
        thread.start()
        wait_until(lambda before=before: store._database._line.waiting > before)  # type: ignore[misc, attr-defined]  # a default has no type; SQLite's own
    go_on.set()
    for thread in threads:
        thread.join(20)
    (fault,) = faults
    assert isinstance(fault, errors.Unavailable) and "too long" in str(fault) and fault.issues[0].code == "timeout"
    assert made(store, "a") and made(store, "b")
    with store.read(SYSTEM) as snapshot:
        assert snapshot.get("Basic", "slow") is None
        assert snapshot.view.db.rows("SELECT count(*) FROM counter WHERE name = '1'") == [(0,)]


def test_a_statement_that_takes_its_time_between_two_others_is_no_slow_one(open_at: Callable[..., Store]) -> None:
    """The limit is for each statement, not for the work, nor for the commit behind it."""
    store = open_at(connections=1, statement_seconds=0.2)
    counted = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT count(*) FROM n"

    def work(tx: Tx) -> None:
        tx.view.db.rows(counted)
        threading.Event().wait(0.3)
        tx.create(basic("a"), IndexRows())
        tx.view.db.rows(counted)

    store.write(SYSTEM, work)
    assert made(store, "a")


@pytest.mark.needs("postgresql")
def test_a_broken_postgresql_connection_is_replaced(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    store = open_url(migrated_postgres, connections=1)
    store.write(SYSTEM, lambda tx: tx.create(basic("a"), IndexRows()))
    killing = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    with psycopg.connect(migrated_postgres, autocommit=True) as other:
        other.execute(killing + " AND pid <> pg_backend_pid()")
        gone = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        wait_until(lambda: other.execute(gone).fetchone() == (0,))
    assert made(store, "a")

    def suicide(tx: Tx) -> None:
        tx.view.db.rows("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(errors.Unavailable):
        store.write(SYSTEM, suicide)
    assert made(store, "a")


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "condition not met in time"
        threading.Event().wait(0.005)


def test_writes_that_wait_share_one_commit_on_sqlite(
    open_url: Callable[..., Store], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fhir_server.store.sqlite.GROUP_SECONDS", 20.0)
    store = open_url(sqlite_url)
    entered, go_on, commits = threading.Event(), threading.Event(), list[str]()
    store._database._writer.set_trace_callback(  # type: ignore[attr-defined]  # SQLite's own
        lambda sql: commits.append(sql) if sql == "COMMIT" else None
    )

    def first(tx: Tx) -> None:
        entered.set()
        deadline = time.monotonic() + 10
        while store._database._line.waiting < 8 and time.monotonic() < deadline:  # type: ignore[attr-defined]  # SQLite's own
            go_on.wait(0.005)
        tx.create(basic("first"), IndexRows())

    threads = [threading.Thread(target=lambda: store.write(SYSTEM, first))]
    threads[0].start()
    assert entered.wait(10)
    for number in range(8):
        key = f"n{number}"
        threads.append(
            threading.Thread(target=lambda key=key: store.write(SYSTEM, lambda tx: tx.create(basic(key), IndexRows())))
        )
        threads[-1].start()
    for thread in threads:
        thread.join(20)
    assert all(made(store, f"n{number}") for number in range(8)) and made(store, "first")
    assert commits == ["COMMIT"]


@pytest.mark.needs("postgresql")
def test_the_journal_stops_below_a_running_transaction(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    store = open_url(migrated_postgres)
    entered, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        tx.create(basic("slow"), IndexRows())
        entered.set()
        assert go_on.wait(20)

    running = threading.Thread(target=lambda: store.write(SYSTEM, slow))
    running.start()
    assert entered.wait(10)
    store.write(SYSTEM, lambda tx: tx.create(basic("quick"), IndexRows()))
    with store.read(SYSTEM) as snapshot:
        assert snapshot.get("Basic", "quick") is not None
        assert snapshot.journal() == []
    go_on.set()
    running.join(20)
    with store.read(SYSTEM) as snapshot:
        assert len(snapshot.journal()) == 2


@pytest.mark.parametrize("kills", [3])
def test_sigkill_leaves_every_transaction_whole_or_absent(
    database_url: str, open_at: Callable[..., Store], tmp_path: Path, kills: int
) -> None:
    """A process writes groups of five resources, says each after its commit, and is killed at odd moments."""
    told: set[int] = set()
    for turn in range(kills):
        writer = subprocess.Popen(
            [sys.executable, str(WRITER), database_url, str(tmp_path / "data"), str(turn * 1_000_000)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(7 + 13 * turn)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.stdout.close()
        writer.wait(10)
        told |= {int(line) for line in lines if line.endswith(b"\n") and line.strip()}
    store = open_at()
    with store.read(SYSTEM) as snapshot:
        groups: dict[int, int] = {}
        for (key,) in snapshot.view.db.rows("SELECT id FROM resource"):
            groups[int(key.split("-")[0])] = groups.get(int(key.split("-")[0]), 0) + 1
        assert set(groups.values()) == {5}
        assert told <= set(groups)
        for table in ("idx_token", "journal", "audit"):
            assert snapshot.view.db.rows(f"SELECT count(*) FROM {table}") == [(5 * len(groups),)], table
        assert len(snapshot.deliveries()) == min(50, len(groups))
    assert store.seal() == 5 * len(groups) and store.verify().ok
