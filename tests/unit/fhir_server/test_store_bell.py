"""Work that one process queues wakes those who wait in another, at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from fhir_server.context import SYSTEM
from fhir_server.store import bell
from fhir_server.store.engine import Store
from fhir_server.store.lanes import NewDelivery

SENDER = """
import sys
from pathlib import Path
from fhir_server.context import SYSTEM
from fhir_server.store.engine import open_store
from fhir_server.store.lanes import NewDelivery
store = open_store(sys.argv[1], Path(sys.argv[2]), migrate=False)
print("ready", flush=True)
sys.stdin.readline()
store.write(SYSTEM, lambda tx: tx.send(NewDelivery("lane", "mllp://x", "mllp", b"1")))
print("sent", flush=True)
sys.stdin.readline()
store.close()
"""


def send(store: Store) -> None:
    store.write(SYSTEM, lambda tx: tx.send(NewDelivery("lane", "mllp://x", "mllp", b"1")))


def listeners(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query ~ '^(LISTEN|NOTIFY)'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "condition not met in time"
        threading.Event().wait(0.005)


def listening(store: Store) -> int:
    """Waits until the store hears others; what to pass to `wait_for_work`."""
    store.wait_for_work(store.rings(), 0)
    wait_until(lambda: store.engine == "sqlite" or store.rings() > 0)
    return store.rings()


def woken(store: Store, seen: int) -> float:
    """Seconds until a waiter that looked at `seen` goes on, 20 at most."""
    began = time.monotonic()
    store.wait_for_work(seen, 20)
    return time.monotonic() - began


def test_work_of_the_same_process_wakes_at_once(store: Store) -> None:
    seen = listening(store)
    timer = threading.Timer(0.05, send, [store])
    timer.start()
    assert woken(store, seen) < 10
    timer.join()


@pytest.mark.needs("postgresql")
def test_work_of_another_process_wakes_at_once(
    open_url: Callable[..., Store], migrated_postgres: str, tmp_path: Path
) -> None:
    store = open_url(migrated_postgres)
    sender = subprocess.Popen(
        [sys.executable, "-c", SENDER, migrated_postgres, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert sender.stdin is not None and sender.stdout is not None
    assert sender.stdout.readline() == b"ready\n"
    seen = listening(store)
    sender.stdin.write(b"\n")
    sender.stdin.flush()
    assert woken(store, seen) < 10
    assert store.claim("w", 30) is not None
    assert sender.stdout.readline() == b"sent\n"
    sender.communicate(b"\n", timeout=20)
    assert sender.returncode == 0


@pytest.mark.needs("postgresql")
def test_own_rings_are_not_heard_twice(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    one, other = open_url(migrated_postgres), open_url(migrated_postgres)
    assert (listening(one), listening(other)) == (1, 1)
    send(one)
    wait_until(lambda: other.rings() == 2)
    assert one.rings() == 2
    send(other)
    wait_until(lambda: one.rings() == 3)
    assert other.rings() == 3


@pytest.mark.needs("postgresql")
def test_a_thousand_rings_at_once_are_told_in_a_few(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    store, heard = open_url(migrated_postgres), list[int]()
    assert listening(store) == 1
    ringing = bell.PostgresBell(migrated_postgres, lambda: heard.append(1))
    for _ in range(1000):
        ringing.ring()
    wait_until(lambda: store.rings() > 1)
    ringing.close()
    ringing.close()
    ringing.ring()
    assert store.rings() < 500
    assert heard == [1], "the others' bell rang only for its start"


@pytest.mark.needs("postgresql")
def test_a_broken_connection_is_made_again_and_what_was_missed_is_looked_for(
    open_url: Callable[..., Store], migrated_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bell, "_AGAIN_SECONDS", 0.05)
    one, other = open_url(migrated_postgres), open_url(migrated_postgres)
    assert listening(one) == 1
    with psycopg.connect(migrated_postgres, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query ~ '^LISTEN' "
            "AND datname = current_database()"
        )
    wait_until(lambda: one.rings() == 2)
    send(other)
    wait_until(lambda: one.rings() == 3)


@pytest.mark.needs("postgresql")
def test_a_closed_store_leaves_no_connection(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    store = open_url(migrated_postgres)
    send(store)
    wait_until(lambda: listeners(migrated_postgres) == 1)
    store.close()
    wait_until(lambda: listeners(migrated_postgres) == 0)


def test_a_waiter_goes_on_when_the_store_closes(open_at: Callable[..., Store]) -> None:
    store = open_at()
    seen = listening(store)
    timer = threading.Timer(0.05, store.close)
    timer.start()
    assert woken(store, seen) < 10
    timer.join()
