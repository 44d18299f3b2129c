"""Resources and versions on both databases."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM, Caller
from fhir_server.search.rows import IndexRows
from fhir_server.store.engine import Store
from fhir_server.store.resources import Stored, prepare
from fhir_server.store.session import Tx
from fhir_server.store.view import Stale
from profiles import json_text

NAME, GENDER = 11, 22


def patient(key: str, family: str = "Durand", **more: object) -> dict[str, object]:
    return {"resourceType": "Patient", "id": key, "name": [{"family": family}], **more}


def rows(family: str = "durand", **more: object) -> IndexRows:
    made = IndexRows(string=[(NAME, family, family.title())], token=[(GENDER, "", "female", "")])
    for name, value in more.items():
        setattr(made, name, value)
    return made


def create(store: Store, key: str, family: str = "Durand", **more: object) -> Stored:
    return store.write(SYSTEM, lambda tx: tx.create(patient(key, family, **more), rows(family.lower())))


def index_rows(store: Store, rid: int) -> dict[str, int]:
    tables = ("idx_string", "idx_token", "scope")
    with store.read(SYSTEM) as snapshot:
        db = snapshot.view.db
        return {name: db.rows(f"SELECT count(*) FROM {name} WHERE rid = ?", (rid,))[0][0] for name in tables}


def test_a_created_resource_is_read_back_with_version_one_and_an_instant(store: Store) -> None:
    made = create(store, "a")
    with store.read(SYSTEM) as snapshot:
        found = snapshot.get("Patient", "a")
    assert found == made == store.get(SYSTEM, "Patient", "a")
    assert made.version == 1 and made.method == "POST" and not made.deleted
    meta = made.resource()["meta"]
    assert meta["versionId"] == "1"
    assert meta["lastUpdated"].endswith("Z") and len(meta["lastUpdated"]) == len("2026-01-01T00:00:00.000000Z")


def test_the_text_keeps_numbers_order_and_other_meta(store: Store) -> None:
    text = (
        '{"id":"n","resourceType":"Observation","status":"final","meta":{"profile":["http://x"],"versionId":"77"},'
        '"valueQuantity":{"value":72.50,"unit":"é"},"note":[{"text":"0.000000100"}]}'
    )
    made = store.write(SYSTEM, lambda tx: tx.create(json_text.parse(text), IndexRows()))
    stamp = made.resource()["meta"]["lastUpdated"]
    assert made.text == (
        f'{{"resourceType":"Observation","id":"n","meta":{{"versionId":"1","lastUpdated":"{stamp}",'
        '"profile":["http://x"]},"status":"final","valueQuantity":{"value":72.50,"unit":"é"},'
        '"note":[{"text":"0.000000100"}]}'
    )


def test_a_resource_without_more_than_its_id_is_written(store: Store) -> None:
    made = store.write(SYSTEM, lambda tx: tx.create({"resourceType": "Basic", "id": "b"}, IndexRows()))
    assert made.resource()["id"] == "b"


def test_a_prepared_resource_is_stored_like_a_plain_one(store: Store) -> None:
    ready = prepare(patient("p"))
    made = store.write(SYSTEM, lambda tx: tx.create(ready, rows()))
    assert made.resource()["name"] == [{"family": "Durand"}]


def test_creating_under_an_id_in_use_is_a_conflict(store: Store) -> None:
    create(store, "a")
    with pytest.raises(errors.Conflict, match="Patient/a exists"):
        create(store, "a")


def test_an_update_makes_the_next_version_and_keeps_the_former(store: Store) -> None:
    first = create(store, "a")
    second = store.write(SYSTEM, lambda tx: tx.update(patient("a", "Martin"), rows("martin")))
    with store.read(SYSTEM) as snapshot:
        assert snapshot.version("Patient", "a", 1) == first
        assert snapshot.version("Patient", "a", 2) == second == snapshot.get("Patient", "a")
        assert snapshot.version("Patient", "a", 3) is None
        assert snapshot.version("Patient", "b", 1) is None
    assert second.version == 2 and second.method == "PUT" and second.last_updated > first.last_updated
    assert second.rid == first.rid


def test_last_updated_grows_even_when_the_clock_goes_back(open_at: Callable[..., Store]) -> None:
    from datetime import UTC, datetime

    store = open_at(clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    first = create(store, "a")
    second = store.write(SYSTEM, lambda tx: tx.update(patient("a"), rows()))
    third = store.write(SYSTEM, lambda tx: tx.delete("Patient", "a"))
    assert first.last_updated < second.last_updated < third.last_updated


def test_an_update_of_another_version_is_refused_and_changes_nothing(store: Store) -> None:
    create(store, "a")
    with pytest.raises(errors.Precondition, match="at version 1, not 4"):
        store.write(SYSTEM, lambda tx: tx.update(patient("a"), rows(), if_version=4))
    found = store.get(SYSTEM, "Patient", "a")
    assert found is not None and found.version == 1
    assert store.write(SYSTEM, lambda tx: tx.update(patient("a"), rows(), if_version=1)).version == 2


def test_updating_what_never_existed_is_not_found(store: Store) -> None:
    with pytest.raises(errors.NotFound):
        store.write(SYSTEM, lambda tx: tx.update(patient("a"), rows()))
    with pytest.raises(errors.NotFound):
        store.write(SYSTEM, lambda tx: tx.delete("Patient", "a"))


def test_a_deletion_keeps_history_and_scopes_and_removes_index_rows(store: Store) -> None:
    made = store.write(SYSTEM, lambda tx: tx.create(patient("a"), rows(scopes=[("case", "c1")])))
    assert index_rows(store, made.rid) == {"idx_string": 1, "idx_token": 1, "scope": 1}
    gone = store.write(SYSTEM, lambda tx: tx.delete("Patient", "a"))
    assert gone.deleted and gone.version == 2 and gone.text == ""
    assert index_rows(store, made.rid) == {"idx_string": 0, "idx_token": 0, "scope": 1}
    with store.read(SYSTEM) as snapshot:
        current = snapshot.get("Patient", "a")
        assert current == gone
        assert snapshot.version("Patient", "a", 1) == made
        assert [one.version for one in snapshot.history("Patient", "a").entries] == [2, 1]
    with pytest.raises(errors.Gone):
        gone.resource()
    assert store.write(SYSTEM, lambda tx: tx.delete("Patient", "a")).version == 2


@pytest.mark.parametrize("verb", ["create", "update"])
def test_writing_a_deleted_resource_revives_it(store: Store, verb: str) -> None:
    made = create(store, "a")
    store.write(SYSTEM, lambda tx: tx.delete("Patient", "a"))
    back = store.write(SYSTEM, lambda tx: getattr(tx, verb)(patient("a", "Petit"), rows("petit")))
    assert (back.rid, back.version, back.deleted) == (made.rid, 3, False)
    assert index_rows(store, made.rid)["idx_string"] == 1
    with store.read(SYSTEM) as snapshot:
        history = snapshot.history("Patient", "a").entries
    assert [(one.version, one.deleted) for one in history] == [(3, False), (2, True), (1, False)]


def test_history_pages_through_a_type_and_everything_newest_first(store: Store) -> None:
    for number in range(5):
        create(store, f"p{number}")
    store.write(SYSTEM, lambda tx: tx.update(patient("p0"), rows()))
    store.write(SYSTEM, lambda tx: tx.create({"resourceType": "Basic", "id": "b"}, IndexRows()))
    with store.read(SYSTEM) as snapshot:
        seen: list[str] = []
        after: tuple[int, ...] = ()
        while True:
            page = snapshot.history("Patient", count=2, after=after)
            seen += [f"{one.id}/{one.version}" for one in page.entries]
            if page.next is None:
                break
            after = page.next
        assert seen == ["p0/2", "p4/1", "p3/1", "p2/1", "p1/1", "p0/1"]
        everything = snapshot.history(count=3)
        assert [one.type for one in everything.entries] == ["Basic", "Patient", "Patient"]
        latest = everything.entries[0].last_updated
        assert [one.id for one in snapshot.history(since=latest).entries] == ["b"]
        one = snapshot.history("Patient", "p0", count=1)
        assert one.next == (2,)
        assert [entry.version for entry in snapshot.history("Patient", "p0", 1, one.next).entries] == [1]
        assert snapshot.history("Patient", "nobody").entries == ()


def test_the_journal_tells_every_version_in_order(store: Store) -> None:
    create(store, "a")
    store.write(SYSTEM, lambda tx: tx.update(patient("a"), rows()))
    store.write(SYSTEM, lambda tx: tx.delete("Patient", "a"))
    with store.read(SYSTEM) as snapshot:
        all_rows = snapshot.journal()
        assert [(row.method, row.version, row.type) for row in all_rows] == [
            ("POST", 1, "Patient"),
            ("PUT", 2, "Patient"),
            ("DELETE", 3, "Patient"),
        ]
        assert snapshot.journal(after=all_rows[0].position) == all_rows[1:]
        assert snapshot.journal_head() == all_rows[-1].position


def test_a_failing_work_leaves_nothing_behind(store: Store) -> None:
    def half(tx: Tx) -> None:
        tx.create(patient("a"), rows())
        raise errors.RuleBroken("no")

    with pytest.raises(errors.RuleBroken):
        store.write(SYSTEM, half)
    assert store.get(SYSTEM, "Patient", "a") is None
    with store.read(SYSTEM) as snapshot:
        assert snapshot.journal() == []


def test_expect_lets_the_current_version_pass_and_tells_a_stale_one(store: Store) -> None:
    create(store, "a")
    store.write(SYSTEM, lambda tx: tx.expect("Patient", "a", 1))
    store.write(SYSTEM, lambda tx: tx.update(patient("a"), rows()))
    with pytest.raises(Stale, match="version 2, no longer at 1"):
        store.write(SYSTEM, lambda tx: tx.expect("Patient", "a", 1))
    with pytest.raises(Stale):
        store.write(SYSTEM, lambda tx: tx.expect("Patient", "never", 1))


def test_several_resources_are_read_at_once(store: Store) -> None:
    for key in ("a", "b", "c"):
        create(store, key)
    with store.read(SYSTEM) as snapshot:
        found = snapshot.many([("Patient", "a"), ("Patient", "c"), ("Patient", "zz"), ("Group", "a")])
    assert set(found) == {("Patient", "a"), ("Patient", "c")}


def test_a_snapshot_does_not_see_later_writes(store: Store) -> None:
    create(store, "a")
    with store.read(SYSTEM) as snapshot:
        assert snapshot.get("Patient", "a") is not None
        create(store, "b")
        assert snapshot.get("Patient", "b") is None
    assert store.get(SYSTEM, "Patient", "b") is not None


def test_concurrent_counters_lose_no_update(store: Store) -> None:
    create(store, "n", count=0)

    def add(tx: Tx) -> None:
        tx.lock("counter")
        current = tx.get("Patient", "n")
        assert current is not None
        resource = current.resource()
        tx.update({**resource, "count": resource["count"] + 1}, rows(), if_version=current.version)

    run_together(8, lambda: [store.write(SYSTEM, add) for _ in range(10)])
    found = store.get(SYSTEM, "Patient", "n")
    assert found is not None and found.resource()["count"] == 80 and found.version == 81


def test_concurrent_updates_without_a_condition_make_one_version_each(store: Store) -> None:
    create(store, "n")
    run_together(8, lambda: [store.write(SYSTEM, lambda tx: tx.update(patient("n"), rows())) for _ in range(5)])
    with store.read(SYSTEM) as snapshot:
        versions = [one.version for one in snapshot.history("Patient", "n", count=100).entries]
    assert versions == list(range(41, 0, -1))


def test_of_concurrent_creations_of_one_id_exactly_one_wins(store: Store) -> None:
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            create(store, "same")
            outcomes.append("made")
        except errors.Conflict:
            outcomes.append("conflict")

    run_together(8, attempt)
    assert sorted(outcomes) == ["conflict"] * 7 + ["made"]


@pytest.mark.needs("postgresql")
def test_writers_that_lock_in_opposite_order_both_succeed(
    open_url: Callable[..., Store], migrated_postgres: str
) -> None:
    store = open_url(migrated_postgres)
    create(store, "a")
    create(store, "b")
    met = threading.Barrier(2)
    tries: list[str] = []

    def both(first: str, second: str) -> None:
        def work(tx: Tx) -> None:
            tries.append(first)
            tx.update(patient(first), rows())
            if len(tries) <= 2:
                met.wait(10)
            tx.update(patient(second), rows())

        store.write(SYSTEM, work)

    run_together(1, lambda: both("a", "b"), lambda: both("b", "a"))
    assert len(tries) == 3, "one of the two was chosen as the victim and ran again"
    for key in ("a", "b"):
        found = store.get(SYSTEM, "Patient", key)
        assert found is not None and found.version == 3


def run_together(threads: int, *works: Callable[[], object]) -> None:
    """Each work in `threads` threads, started at once; the first fault is raised."""
    barrier = threading.Barrier(threads * len(works))
    faults: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            barrier.wait(10)
            work()
        except BaseException as fault:
            faults.append(fault)

    running = [threading.Thread(target=run, args=(work,)) for work in works for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    if faults:
        raise faults[0]


def test_a_caller_sees_only_what_their_groups_may_see(store: Store) -> None:
    mine = rows(scopes=[("organisation", "HealthcareService/cardio")])
    theirs = rows(scopes=[("organisation", "HealthcareService/derm")])
    store.write(SYSTEM, lambda tx: tx.create(patient("mine"), mine))
    store.write(SYSTEM, lambda tx: tx.create(patient("theirs"), theirs))
    caller = Caller(
        "PractitionerRole/x", "X", frozenset({"expert"}), frozenset({"HealthcareService/cardio"}), everything=False
    )
    nobody = Caller("PractitionerRole/y", "Y", frozenset({"expert"}), everything=False)
    with store.read(caller) as snapshot:
        assert snapshot.get("Patient", "mine") is not None
        assert snapshot.get("Patient", "theirs") is None
        assert snapshot.version("Patient", "theirs", 1) is None
        assert [one.id for one in snapshot.history("Patient").entries] == ["mine"]
        assert snapshot.history("Patient", "theirs").entries == ()
        assert set(snapshot.many([("Patient", "mine"), ("Patient", "theirs")])) == {("Patient", "mine")}
    with pytest.raises(errors.NotFound):
        store.write(caller, lambda tx: tx.update(patient("theirs"), theirs))
    with pytest.raises(errors.NotFound):
        store.write(caller, lambda tx: tx.delete("Patient", "theirs"))
    store.write(caller, lambda tx: tx.delete("Patient", "mine"))
    with store.read(nobody) as snapshot:
        assert snapshot.history().entries == ()
        assert snapshot.get("Patient", "mine") is None


def test_long_and_odd_texts_are_indexed(store: Store) -> None:
    long = "é" * 5000
    made = IndexRows(string=[(NAME, long, long)], uri=[(33, "urn:" + long)], token=[(GENDER, long, long, long)])
    store.write(SYSTEM, lambda tx: tx.create(patient("long"), made))
    with store.read(SYSTEM) as snapshot:
        stored = snapshot.view.db.rows("SELECT folded FROM idx_string")[0][0]
    assert len(stored.encode()) <= 1000


def test_texts_that_differ_only_behind_the_cut_stay_apart(store: Store) -> None:
    """No compression helps PostgreSQL to keep these below its 2,704 bytes for an index row: they are random."""
    head = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyzéèü0123456789", k=3000))
    for key in ("one", "two"):
        rows = IndexRows(token=[(GENDER, head + key, head + key, head)], uri=[(33, head + key)])
        store.write(SYSTEM, lambda tx, key=key, rows=rows: tx.create(patient(key), rows))  # type: ignore[misc]  # a default has no type
    with store.read(SYSTEM) as snapshot:
        for column, table in (("code", "idx_token"), ("uri", "idx_uri")):
            texts = [row[0] for row in snapshot.view.db.rows(f"SELECT {column} FROM {table}")]
            assert len(set(texts)) == 2 and all(len(text.encode()) <= 1000 for text in texts)
