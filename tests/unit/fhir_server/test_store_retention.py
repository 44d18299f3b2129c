"""What may go goes, what is referred to stays, on both databases, also when writers come in between."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.store import retention
from fhir_server.store.blob_seal import Keys
from fhir_server.store.blobs import Blobs
from fhir_server.store.engine import Store
from fhir_server.store.inbox import NewMessage, sha256_of
from fhir_server.store.instances import NewInstance
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.leases import Outcome
from fhir_server.store.retention import Collected, Pruned, collect, prune
from fhir_server.store.session import Tx
from fhir_server.store.tables import METADATA

DAY = 86_400.0
LARGE = 100_000


class Clock:
    """The real clock, moved by hand: files' times are the system's."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def days(self, number: float) -> None:
        self.ahead += timedelta(days=number)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(open_at: Callable[..., Store], clock: Clock) -> Store:
    return open_at(clock=clock)


def received(store: Store, control_id: str, raw: bytes = b"MSH|", state: str = "done") -> str:
    got = store.receive(NewMessage("mllp", raw, sender="A", control_id=control_id, keys=[("IPP", control_id)]))
    if state == "done":
        store.write(SYSTEM, lambda tx: tx.integrate(got.id, b"AA"))
    elif state != "received":
        store.reject(got.id, "no", "PID", b"AE", state=state)  # type: ignore[arg-type]  # a word the test gives
    return got.id


def sent(store: Store, payload: bytes = b"1", state: str = "sent", **more: Any) -> str:
    more = {"lane": "l", "keys": [("INS", "1")]} | more
    new = store.keep(NewDelivery(endpoint="mllp://x", protocol="mllp", payload=payload, **more))
    key = store.write(SYSTEM, lambda tx: tx.send(new))
    if state in ("sent", "error"):
        claim = store.claim("w", 30)
        assert claim is not None and claim.delivery.id == key
        store.start_attempt(claim)
        store.finish(claim, Outcome(state))  # type: ignore[arg-type]  # a word the test gives
    elif state == "cancelled":
        store.write(SYSTEM, lambda tx: tx.cancel(key, "no"))
    return key


def messages(store: Store) -> set[str]:
    with store.read(SYSTEM) as snapshot:
        return {row[0] for row in snapshot.view.db.rows("SELECT id FROM inbox")}


def deliveries(store: Store) -> set[str]:
    with store.read(SYSTEM) as snapshot:
        return {row[0] for row in snapshot.view.db.rows("SELECT id FROM delivery")}


def rows(store: Store, table: str) -> int:
    with store.read(SYSTEM) as snapshot:
        return int(snapshot.view.db.rows(f"SELECT count(*) FROM {table}")[0][0])


# --- rows ------------------------------------------------------------------------------------------------------------


def test_finished_rows_go_when_their_time_is_over_with_all_that_hangs_on_them(store: Store, clock: Clock) -> None:
    for number in range(7):
        received(store, f"M{number}", state="done" if number % 2 else "refused")
        sent(store, str(number).encode(), state="sent" if number % 2 else "cancelled", lane=f"l{number}")
    clock.days(29)
    assert prune(store, 30 * DAY, batch=2) == Pruned(0, 0)
    young = received(store, "young"), sent(store, b"young", lane="young")
    clock.days(2)
    assert prune(store, 30 * DAY, batch=2) == Pruned(7, 7)
    assert (messages(store), deliveries(store)) == ({young[0]}, {young[1]})
    assert rows(store, "message_key") == 2 and rows(store, "attempt") == 1
    assert prune(store, 30 * DAY) == Pruned(0, 0)


@pytest.mark.parametrize("state", ["received", "error", "conflict"])
def test_a_message_that_needs_somebody_stays(store: Store, clock: Clock, state: str) -> None:
    received(store, "M1", state="done" if state == "conflict" else state)
    if state == "conflict":
        received(store, "M1", b"other bytes", state="received")
    clock.days(400)
    assert prune(store, DAY).messages == 0


@pytest.mark.parametrize("state", ["queued", "held", "error"])
def test_a_delivery_that_needs_somebody_stays(store: Store, clock: Clock, state: str) -> None:
    key = sent(store, state="error" if state == "error" else "queued")
    if state == "held":
        store.write(SYSTEM, lambda tx: tx.hold(key, "merged"))
    clock.days(400)
    assert prune(store, DAY).deliveries == 0


def test_a_delivery_whose_second_leg_is_open_stays_until_it_is_confirmed(store: Store, clock: Clock) -> None:
    key = sent(store, second_leg="zam")
    clock.days(400)
    assert prune(store, DAY) == Pruned(0, 0)
    answer = received(store, "zam")
    store.write(SYSTEM, lambda tx: tx.confirm(key, "confirmed", "ok", answer))
    assert prune(store, DAY) == Pruned(0, 1), "the delivery goes; the answer is still young"
    clock.days(2)
    assert prune(store, DAY) == Pruned(1, 0)


def test_what_a_remaining_row_refers_to_stays(store: Store, clock: Clock) -> None:
    original = received(store, "M1")
    received(store, "M1", b"other bytes", state="received")
    answer = received(store, "zam")
    confirmed = sent(store, second_leg="zam")
    store.write(SYSTEM, lambda tx: tx.confirm(confirmed, "confirmed", "ok", answer))
    parent = sent(store, lane="second")
    child = sent(store, state="queued", parent=parent, lane="third")
    held = sent(store, state="queued", lane="fourth")
    store.write(SYSTEM, lambda tx: tx.view.db.run("UPDATE delivery SET leg_inbox = ? WHERE id = ?", (answer, held)))
    clock.days(400)
    assert prune(store, DAY) == Pruned(0, 1)
    assert {original, answer} <= messages(store)
    assert deliveries(store) == {parent, child, held}
    store.write(SYSTEM, lambda tx: tx.cancel(child, "no"))
    clock.days(2)
    assert prune(store, DAY) == Pruned(0, 2)
    assert deliveries(store) == {held}


def chain(store: Store, *states: str) -> list[str]:
    """Deliveries in these states, each of which repeats the one before."""
    made, parent = [], ""
    for number, state in enumerate(states):
        parent = sent(store, state=state, parent=parent, lane=f"chain{number}")
        made.append(parent)
    return made


@pytest.mark.parametrize("states", [("cancelled", "cancelled", "sent"), ("cancelled", "sent"), ("sent", "cancelled")])
def test_a_delivery_goes_in_one_run_with_all_that_repeats_it(
    store: Store, clock: Clock, states: tuple[str, ...]
) -> None:
    chain(store, *states)
    clock.days(40)
    assert prune(store, DAY, batch=1) == Pruned(0, len(states))
    assert rows(store, "attempt") == rows(store, "message_key") == 0


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("state", ["queued", "error"])
def test_a_chain_stays_whole_while_one_of_it_needs_somebody(store: Store, clock: Clock, where: int, state: str) -> None:
    states = ["cancelled"] * 3
    states[where] = state
    made = chain(store, *states)
    clock.days(40)
    assert prune(store, DAY) == Pruned(0, 0)
    assert deliveries(store) == set(made)


def test_a_chain_stays_whole_while_its_last_is_young(store: Store, clock: Clock) -> None:
    made = chain(store, "cancelled")
    clock.days(40)
    made.append(sent(store, parent=made[0]))
    assert prune(store, DAY) == Pruned(0, 0)
    assert deliveries(store) == set(made)
    clock.days(2)
    assert prune(store, DAY) == Pruned(0, 2)


def test_a_run_that_is_stopped_leaves_no_part_of_a_chain(store: Store, clock: Clock) -> None:
    chains = [set(chain(store, "cancelled", "sent")), set(chain(store, "sent", "cancelled"))]
    clock.days(40)
    answers = iter([False, False, True])
    prune(store, DAY, batch=1, stop=lambda: next(answers, True))
    assert all(one <= deliveries(store) or not one & deliveries(store) for one in chains)


def test_a_message_its_sender_still_repeats_stays_known(store: Store, clock: Clock) -> None:
    received(store, "M1")
    clock.days(40)
    assert store.receive(NewMessage("mllp", b"MSH|", sender="A", control_id="M1")).known
    clock.days(0.5)
    assert prune(store, DAY).messages == 0
    clock.days(1)
    assert prune(store, DAY).messages == 1


def test_a_row_dated_in_the_future_does_not_stop_the_walk(store: Store, clock: Clock) -> None:
    for number in range(4):
        received(store, f"M{number}")
    store.write(
        SYSTEM, lambda tx: tx.view.db.run("UPDATE inbox SET received_at = received_at * 2 WHERE control_id = 'M1'")
    )
    clock.days(40)
    assert prune(store, DAY, batch=2).messages == 3


def test_pruning_stops_when_told(store: Store, clock: Clock) -> None:
    for number in range(6):
        received(store, f"M{number}")
    clock.days(40)
    answers = iter([False, True])
    assert prune(store, DAY, batch=2, stop=lambda: next(answers)) == Pruned(2, 0)


def test_writers_go_on_while_rows_are_pruned(store: Store, clock: Clock) -> None:
    """Messages come in between the batches while thousands go, and nothing new is lost."""
    now = store.moment()

    def fill(tx: Tx) -> None:
        for number in range(3000):
            tx.view.db.run(
                "INSERT INTO inbox (id, channel, endpoint, sha256, size, raw, received_at, state, settled_at) "
                "VALUES (?, 'mllp', 'e', '', 0, ?, ?, 'done', ?)",
                (f"old{number:05}", b"", now, now),
            )

    store.write(SYSTEM, fill)
    clock.days(40)
    kept, done = list[str](), threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set() or number < 20:
            kept.append(received(store, f"N{threading.get_ident()}-{number}"))
            number += 1

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(kept) > 3)
    before = len(kept)
    assert prune(store, DAY, batch=100) == Pruned(3000, 0)
    assert len(kept) > before + 3
    done.set()
    for thread in threads:
        thread.join(60)
    assert messages(store) == set(kept)


@pytest.mark.needs("postgresql")
def test_a_chain_one_of_which_somebody_holds_is_passed_by(
    open_url: Callable[..., Store], migrated_postgres: str, clock: Clock
) -> None:
    store = open_url(migrated_postgres, clock=clock)
    made = chain(store, "cancelled", "sent")
    clock.days(40)

    def hold_last(tx: Tx) -> Pruned:
        tx.view.db.rows("SELECT 1 FROM delivery WHERE id = ? FOR SHARE", (made[1],))
        return prune(store, DAY)

    assert store.write(SYSTEM, hold_last) == Pruned(0, 0)
    assert deliveries(store) == set(made)
    assert prune(store, DAY) == Pruned(0, 2)


@pytest.mark.needs("postgresql")
def test_a_row_somebody_holds_is_passed_by(
    open_url: Callable[..., Store], migrated_postgres: str, clock: Clock
) -> None:
    store = open_url(migrated_postgres, clock=clock)
    held, free = received(store, "M1"), received(store, "M2")
    clock.days(40)
    entered, go_on = threading.Event(), threading.Event()

    def hold(tx: Tx) -> None:
        tx.view.db.rows("SELECT 1 FROM inbox WHERE id = ? FOR UPDATE", (held,))
        entered.set()
        assert go_on.wait(20)

    thread = threading.Thread(target=lambda: store.write(SYSTEM, hold))
    thread.start()
    assert entered.wait(10)
    assert prune(store, DAY) == Pruned(1, 0)
    assert messages(store) == {held} != {free}
    go_on.set()
    thread.join(20)
    assert prune(store, DAY) == Pruned(1, 0)


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("kind", ["rival", "parent"])
def test_a_reference_made_while_pruning_keeps_its_target(
    open_url: Callable[..., Store], migrated_postgres: str, clock: Clock, kind: str
) -> None:
    """A conflict arrives, a delivery is replayed: its transaction is open while the pruning runs."""
    store = open_url(migrated_postgres, clock=clock)
    target = received(store, "M1") if kind == "rival" else sent(store)
    clock.days(40)
    entered, go_on = threading.Event(), threading.Event()

    def refer(tx: Tx) -> None:
        if kind == "rival":
            from fhir_server.store import inbox

            inbox.receive(tx.view, NewMessage("mllp", b"other", sender="A", control_id="M1"), sha256_of(b"other"))
        else:
            from fhir_server.store import lanes

            tx.send(NewDelivery("other", "mllp://x", "mllp", b"again", parent=target))
            lanes.flush(tx.view)
        tx.get("Patient", "a")
        entered.set()
        assert go_on.wait(20)

    thread = threading.Thread(target=lambda: store.write(SYSTEM, refer))
    thread.start()
    assert entered.wait(10)
    assert prune(store, DAY) == Pruned(0, 0)
    go_on.set()
    thread.join(20)
    assert prune(store, DAY) == Pruned(0, 0)
    assert target in messages(store) | deliveries(store)


def test_a_delivery_that_was_pruned_can_not_be_replayed(store: Store, clock: Clock) -> None:
    key = sent(store)
    clock.days(40)
    assert prune(store, DAY).deliveries == 1
    with pytest.raises(errors.NotFound):
        sent(store, state="queued", parent=key)


def test_pruning_costs_the_same_however_many_finished_rows_are_young(store: Store) -> None:
    """The walk ends at the first batch that is too young: few rows are read of many."""
    for number in range(30):
        received(store, f"M{number}")
    read: list[int] = []
    with store.read(SYSTEM) as snapshot:
        kind = type(snapshot.view.db)
    real = kind.rows

    def counted(self: Any, sql: str, params: Any = ()) -> Any:
        found = real(self, sql, params)
        read.append(len(found))
        return found

    kind.rows = counted  # type: ignore[method-assign,assignment]  # for the length of this test
    try:
        prune(store, DAY, batch=3)
    finally:
        kind.rows = real  # type: ignore[method-assign]  # for the length of this test
    assert sum(read) == 3


# --- content ---------------------------------------------------------------------------------------------------------


def content(number: int) -> bytes:
    return f"{number:07}".encode() * (LARGE // 7)


def instance(store: Store, blob: str, number: str = "1", data: str = "d") -> NewInstance:
    return NewInstance(f"1.2.{number}", "1.1", "1.3", "c", "t", blob, store.blobs.size(blob), data, "{}")


def test_every_table_that_names_content_is_asked(store: Store) -> None:
    naming = {
        table.name
        for table in METADATA.tables.values()
        if table.name != "blob" and {"sha256", "blob"} & set(table.columns.keys())
    }
    assert naming == {"inbox", "delivery", "dicom_instance", "dicom_conflict"}
    for name in naming:
        assert f"FROM {name} u" in retention.USED


def test_content_goes_after_two_looks_a_day_apart(store: Store, clock: Clock) -> None:
    received(store, "M1", content(1))
    received(store, "M2", content(2))
    sent(store, content(3))
    shas = [sha256_of(content(number)) for number in (1, 2, 3)]
    clock.days(40)
    assert collect(store) == Collected()
    assert prune(store, DAY) == Pruned(2, 1)
    assert collect(store) == Collected(marked=3)
    clock.days(0.9)
    assert collect(store) == Collected()
    assert all(store.blobs.exists(sha) for sha in shas)
    clock.days(0.2)
    assert collect(store) == Collected(deleted=3, freed=sum(len(content(n)) for n in (1, 2, 3)))
    assert not any(store.blobs.exists(sha) for sha in shas) and rows(store, "blob") == 0
    assert collect(store) == Collected()


def test_what_is_used_again_between_the_looks_stays(store: Store, clock: Clock) -> None:
    sent(store, content(1))
    clock.days(40)
    prune(store, DAY)
    assert collect(store) == Collected(marked=1)
    again = sent(store, content(1))
    clock.days(2)
    assert collect(store) == Collected() and collect(store) == Collected()
    with store.read(SYSTEM) as snapshot:
        assert snapshot.payload(again) == content(1)


def test_content_in_use_stays_whoever_uses_it(store: Store, clock: Clock) -> None:
    received(store, "M1", content(1), state="error")
    sent(store, content(2), state="queued")
    image, other = (store.blobs.put(content(number)) for number in (3, 4))
    store.write(
        SYSTEM, lambda tx: [tx.add_instance(instance(store, image)), tx.add_instance(instance(store, other, data="e"))]
    )
    attached = store.blobs.keep(content(5))
    store.write(SYSTEM, lambda tx: tx.attach(attached, "application/pdf"))
    for _ in range(3):
        clock.days(2)
        prune(store, DAY)
        assert collect(store) == Collected()
    assert rows(store, "dicom_conflict") == 1
    for sha in (image, other, attached.sha256, sha256_of(content(1)), sha256_of(content(2))):
        assert store.blobs.exists(sha)


def test_files_that_no_transaction_recorded_go_too(store: Store, clock: Clock) -> None:
    stray = store.blobs.put(content(1))
    half = store.blobs.new_folder() / "half"
    half.write_bytes(b"x")
    assert collect(store) == Collected(), "they may belong to a transaction that is under way"
    clock.days(1.1)
    assert collect(store) == Collected(strays=1, arrivals=1) and not half.exists()
    assert store.blobs.exists(stray)
    clock.days(1.1)
    assert collect(store) == Collected(deleted=1, freed=len(content(1)))
    assert not store.blobs.exists(stray)


def test_a_file_that_no_transaction_recorded_is_recorded_as_it_is_stored(store: Store, clock: Clock) -> None:
    plain, keys = store.blobs, Keys({"k": b"k" * 32}, "k")
    as_it_is, store.blobs = plain.put(content(1)), Blobs(plain.root, keys=keys)
    sealed, store.blobs = store.blobs.put(content(2)), plain
    clock.days(1.1)
    assert collect(store) == Collected(strays=1), "without the key nobody knows how long the other is"
    store.blobs = Blobs(plain.root, keys=keys)
    assert collect(store) == Collected(strays=1)
    with store.read(SYSTEM) as snapshot:
        told = snapshot.view.db.rows("SELECT sha256, size, form, key_id FROM blob ORDER BY key_id")
    size = len(content(1))
    assert told == [(as_it_is, size, "plain", ""), (sealed, size, "gcm-chunks-1", "k")]


def test_content_put_again_but_not_yet_recorded_stays(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between `put` and its transaction only the file's time tells that somebody needs it."""
    sha = store.blobs.put(content(1))
    clock.days(1.1)
    assert collect(store) == Collected(strays=1)
    clock.days(1.1)
    real = store.blobs.put_at(sha)
    assert real is not None
    # the file is put at the moment of the second look, by the store's clock
    monkeypatch.setattr(type(store.blobs), "put_at", lambda self, sha256: clock().timestamp())
    assert collect(store) == Collected()
    monkeypatch.undo()
    assert store.blobs.exists(sha)
    # and here after the row is gone, just before the file would be removed
    assert not store.blobs.remove(sha, real - 1)
    assert store.blobs.exists(sha) and store.blobs.remove(sha, real + 3600) and not store.blobs.exists(sha)
    assert not store.blobs.remove(sha, real + 3600) and store.blobs.put_at(sha) is None


def test_content_put_again_between_the_last_look_and_the_removal_stays(
    open_at: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second stands for the day; the file is put again when its row is gone already."""
    store = open_at()
    sha = store.blobs.put(content(1))

    def older() -> bool:
        at = store.blobs.put_at(sha)
        return at is not None and time.time() - at > 0.5

    wait_until(older)
    assert collect(store, age_seconds=0.5) == Collected(strays=1)
    marked = store.moment()
    wait_until(lambda: store.moment() - marked > 600_000)
    real = type(store.blobs).remove

    def remove(self: Any, sha256: str, before: float) -> bool:
        assert rows(store, "blob") == 0
        assert self.put(content(1)) == sha256
        return real(self, sha256, before)

    monkeypatch.setattr(type(store.blobs), "remove", remove)
    assert collect(store, age_seconds=0.5) == Collected(deleted=1, freed=0)
    assert store.blobs.read(sha) == content(1)


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "condition not met in time"
        threading.Event().wait(0.01)


def test_putting_known_content_renews_it(store: Store) -> None:
    sha = store.blobs.put(content(1))
    before = store.blobs.put_at(sha)
    assert before is not None
    deadline = time.monotonic() + 10
    while store.blobs.put(content(1)) and store.blobs.put_at(sha) == before:
        assert time.monotonic() < deadline
    arriving = store.blobs.new_folder() / "a"
    arriving.write_bytes(content(1))
    middle = store.blobs.put_at(sha)
    while True:
        arriving.write_bytes(content(1))
        store.blobs.adopt(arriving)
        if store.blobs.put_at(sha) != middle:
            break
        assert time.monotonic() < deadline


@pytest.mark.needs("postgresql")
def test_content_recorded_while_a_clean_up_looks_stays(
    open_url: Callable[..., Store], migrated_postgres: str, clock: Clock
) -> None:
    """The transaction that uses known content again is open while the second look comes by, and commits after."""
    store = open_url(migrated_postgres, clock=clock)
    sent(store, content(1))
    clock.days(40)
    prune(store, DAY)
    collect(store)
    clock.days(2)
    entered, go_on = threading.Event(), threading.Event()

    again = store.blobs.keep(content(1))

    def use(tx: Tx) -> None:
        tx.attach(again, "text/plain")
        tx.get("Patient", "a")
        entered.set()
        assert go_on.wait(20)

    thread = threading.Thread(target=lambda: store.write(SYSTEM, use))
    thread.start()
    assert entered.wait(10)
    assert collect(store).deleted == 0
    go_on.set()
    thread.join(20)
    assert collect(store) == Collected()
    assert store.blobs.exists(sha256_of(content(1))) and rows(store, "blob") == 1


def test_content_that_comes_and_goes_at_once_is_never_lost(store: Store) -> None:
    """Writers send contents of a small set while pruning and clean-up run without pause, with a second for a day: what
    goes comes again, and every message that is there has its bytes."""
    faults: list[BaseException] = []
    done, deleted = threading.Event(), [0]

    def write(worker: int) -> None:
        dice, number = random.Random(worker), 0
        try:
            while not done.is_set():
                payload = content(dice.randrange(40))
                got = store.receive(NewMessage("mllp", payload, sender=f"{worker}", control_id=str(number)))
                if dice.random() < 0.9:
                    store.write(SYSTEM, lambda tx, got=got: tx.integrate(got.id, b"AA"))  # type: ignore[misc]  # a default has no type
                else:
                    with store.read(SYSTEM) as snapshot:
                        assert snapshot.message_raw(got.id) == payload
                    store.reject(got.id, "later", "", b"AR", state="refused")
                number += 1
                done.wait(dice.random() * 0.2)
        except BaseException as fault:
            faults.append(fault)

    def clean() -> None:
        try:
            while deleted[0] < 12:
                prune(store, 0.0)
                deleted[0] += collect(store, age_seconds=1.0).deleted
                assert not faults
        except BaseException as fault:
            faults.append(fault)
        done.set()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    threads.append(threading.Thread(target=clean))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == [] and deleted[0] >= 12
    with store.read(SYSTEM) as snapshot:
        left = snapshot.view.db.rows("SELECT id, sha256 FROM inbox")
        for key, sha in left:
            assert hashlib.sha256(snapshot.message_raw(key)).hexdigest() == sha
        recorded = {row[0] for row in snapshot.view.db.rows("SELECT sha256 FROM blob")}
    assert {sha for _, sha in left} <= recorded


def test_names_walks_all_content_and_nothing_else(store: Store, tmp_path: Path) -> None:
    shas = sorted(store.blobs.put(content(number)) for number in range(20))
    (store.blobs.root / "ab").mkdir(exist_ok=True)
    (store.blobs.root / "README").write_text("x")
    (store.blobs.at.path(shas[0]).parent / "note").write_text("x")
    assert sorted(name for names in store.blobs.names() for name in names) == shas
    assert os.listdir(store.blobs.new_folder()) == []
