"""Versions and criteria held to the end of a transaction, on both databases."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM, Caller
from fhir_server.search.rows import IndexRows
from fhir_server.store.engine import Store
from fhir_server.store.session import Tx
from fhir_server.store.view import Stale


def patient(key: str) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": key}


def create(store: Store, *keys: str) -> None:
    store.write(SYSTEM, lambda tx: [tx.create(patient(key), IndexRows()) for key in keys])


def together(*works: Callable[[], object]) -> list[object]:
    """Every work in a thread, started at once; what each returned or raised."""
    gate, outcomes = threading.Barrier(len(works)), list[object](works)

    def run(number: int) -> None:
        gate.wait(10)
        try:
            outcomes[number] = works[number]()
        except Exception as fault:
            outcomes[number] = fault

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return outcomes


def test_versions_that_are_current_pass_whether_read_or_written(store: Store) -> None:
    create(store, "a", "b")
    store.write(SYSTEM, lambda tx: tx.update(patient("b"), IndexRows()))
    store.write(SYSTEM, lambda tx: tx.create(patient("gone"), IndexRows()))
    store.write(SYSTEM, lambda tx: tx.delete("Patient", "gone"))
    held = {
        ("Patient", "a"): 1,
        ("Patient", "b"): 2,
        ("Patient", "gone"): 2,
        ("Patient", "never"): 0,
        ("Group", "a"): 0,
    }
    store.write(SYSTEM, lambda tx: tx.expect_many(held))
    store.write(SYSTEM, lambda tx: tx.expect_many(held, writing={("Patient", "a"), ("Patient", "never")}))
    store.write(SYSTEM, lambda tx: tx.expect_many({}))


@pytest.mark.parametrize("writing", [False, True])
@pytest.mark.parametrize(
    ("key", "version", "text"),
    [
        ("a", 2, "Patient/a is at version 1, no longer at 2"),
        ("a", 0, "Patient/a is at version 1, no longer at 0"),
        ("never", 1, "Patient/never is at version 0, no longer at 1"),
    ],
)
def test_what_moved_is_stale_and_named(store: Store, key: str, version: int, text: str, writing: bool) -> None:
    create(store, "a", "b")
    held = {("Patient", key): version, ("Patient", "b"): 1}
    chosen = list(held) if writing else []
    with pytest.raises(Stale, match=text) as caught:
        store.write(SYSTEM, lambda tx: tx.expect_many(held, writing=chosen))
    assert "Patient/b" not in str(caught.value)


def test_a_thousand_versions_are_held_in_one_statement(store: Store) -> None:
    keys = [f"p{number}" for number in range(1000)]
    create(store, *keys)
    statements: list[str] = []

    def work(tx: Tx) -> None:
        real = tx.view.db.rows
        tx.view.db.rows = lambda sql, params=(): statements.append(sql) or real(sql, params)  # type: ignore  # listened to
        tx.expect_many({("Patient", key): 1 for key in keys})

    store.write(SYSTEM, work)
    assert len(statements) == 1
    with pytest.raises(Stale, match="and 995 more"):
        store.write(SYSTEM, lambda tx: tx.expect_many({("Patient", key): 2 for key in keys}))


def test_a_caller_is_told_nothing_of_what_is_not_theirs(store: Store) -> None:
    create(store, "a")
    nobody = Caller("PractitionerRole/y", "Y", frozenset({"expert"}), everything=False)
    with pytest.raises(Stale, match="at version 0"):
        store.write(nobody, lambda tx: tx.expect_many({("Patient", "a"): 1}))
    store.write(nobody, lambda tx: tx.expect_many({("Patient", "a"): 0}))


@pytest.mark.needs("postgresql")
def test_readers_hold_a_resource_together_and_a_writer_waits(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    store = open_url(migrated_postgres)
    create(store, "a")
    met, done = threading.Barrier(3), list[str]()

    def reader(tx: Tx) -> None:
        tx.expect_many({("Patient", "a"): 1})
        met.wait(10)  # both readers are inside at once, and the writer begins
        deadline = time.monotonic() + 10
        while tx.view.db.rows("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
            assert time.monotonic() < deadline, "the writer does not wait"
        done.append("reader")

    def writer() -> None:
        met.wait(10)
        store.write(SYSTEM, lambda tx: tx.update(patient("a"), IndexRows()))
        done.append("writer")

    outcomes = together(lambda: store.write(SYSTEM, reader), lambda: store.write(SYSTEM, reader), writer)
    assert outcomes == [None, None, None]
    assert done == ["reader", "reader", "writer"]


@pytest.mark.needs("postgresql")
def test_a_version_that_moves_while_waited_for_is_stale(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    store = open_url(migrated_postgres)
    create(store, "a", "b")
    updated, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        tx.update(patient("a"), IndexRows())
        tx.get("Patient", "a")
        updated.set()
        assert go_on.wait(10)

    def waiter() -> None:
        assert updated.wait(10)
        threading.Timer(0.1, go_on.set).start()
        store.write(SYSTEM, lambda tx: tx.expect_many({("Patient", "a"): 1, ("Patient", "b"): 1}))

    outcomes = together(lambda: store.write(SYSTEM, slow), waiter)
    assert outcomes[0] is None
    assert isinstance(outcomes[1], Stale) and "Patient/a is at version 2" in str(outcomes[1])


def test_what_one_reads_another_writes_and_the_other_way_round_never_deadlocks(store: Store) -> None:
    """Each transaction checks a random set of versions, then writes some of them: counters lose no update."""
    keys = [f"c{number}" for number in range(6)]
    store.write(SYSTEM, lambda tx: [tx.create({**patient(key), "n": 0}, IndexRows()) for key in keys])
    written: list[list[str]] = [[] for _ in range(6)]
    tries = itertools.count()

    def one(number: int, dice: random.Random) -> None:
        chosen = dice.sample(keys, 4)
        mine = set(chosen[:2])
        with store.read(SYSTEM) as snapshot:
            before = snapshot.many([("Patient", key) for key in chosen])

        def work(tx: Tx) -> None:
            next(tries)
            tx.expect_many({at: one.version for at, one in before.items()}, writing={("Patient", key) for key in mine})
            for key in dice.sample(sorted(mine), len(mine)):
                resource = before["Patient", key].resource()
                tx.update({**resource, "n": resource["n"] + 1}, IndexRows())

        try:
            store.write(SYSTEM, work)
            written[number].extend(mine)
        except Stale:
            pass

    def many(number: int) -> None:
        dice = random.Random(number)
        for _ in range(15):
            one(number, dice)

    faults = together(*(lambda number=number: many(number) for number in range(6)))  # type: ignore[misc]  # a default has no type
    assert faults == [None] * 6
    assert next(tries) == 6 * 15, "the victim of a deadlock would have run again"
    flat = [key for one in written for key in one]
    assert flat
    for key in keys:
        found = store.get(SYSTEM, "Patient", key)
        assert found is not None
        assert found.resource()["n"] == flat.count(key) == found.version - 1


def test_more_criteria_than_the_database_has_locks_are_held(store: Store) -> None:
    """Default PostgreSQL settings leave memory for some 6,000 locks; a Bundle may have 10,000 conditions."""
    store.write(SYSTEM, lambda tx: tx.lock(*(f"Patient?identifier={number}" for number in range(50_000))))


def test_few_criteria_and_many_criteria_keep_each_other_out(store: Store) -> None:
    create(store, "n")
    many = [f"criterion {number}" for number in range(1000)]

    def add(*criteria: str) -> Callable[[], None]:
        def work(tx: Tx) -> None:
            tx.lock(*criteria)
            found = tx.get("Patient", "n")
            assert found is not None
            resource = found.resource()
            tx.update({**resource, "n": resource.get("n", 0) + 1}, IndexRows(), if_version=found.version)

        def run() -> None:
            for _ in range(5):
                store.write(SYSTEM, work)

        return run

    assert together(add(*many), add(many[7]), add(*many), add("criterion 7", "x"), add(many[7])) == [None] * 5
    found = store.get(SYSTEM, "Patient", "n")
    assert found is not None and found.resource()["n"] == 25


def test_a_conflict_of_one_criterion_leaves_the_others_free(store: Store) -> None:
    """Both hold a shared lock on everything; only the same criterion waits."""
    if store.engine == "sqlite":
        return
    inside = threading.Barrier(2)

    def work(name: str) -> Callable[[Tx], None]:
        def run(tx: Tx) -> None:
            tx.lock(name)
            tx.get("Patient", "a")
            inside.wait(10)

        return run

    assert together(lambda: store.write(SYSTEM, work("a")), lambda: store.write(SYSTEM, work("b"))) == [None, None]


def test_a_name_locked_for_its_absence_is_created_once(store: Store) -> None:
    """`expect_many` holds nothing for a 0; the lock on the name does."""

    def attempt() -> str:
        def work(tx: Tx) -> None:
            tx.lock("Patient/new")
            tx.expect_many({("Patient", "new"): 0})
            tx.create(patient("new"), IndexRows())

        try:
            store.write(SYSTEM, work)
        except Stale:
            return "stale"
        except errors.Conflict:
            return "conflict"
        return "made"

    assert sorted(map(str, together(*[attempt] * 5))) == ["made"] + ["stale"] * 4
