"""The outbox lanes on both databases: order, leases, fencing, stuck deliveries, two legs."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM, micros, new_delivery_id, now
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Claim, Delivery, NewDelivery, Outcome
from fhir_server.store.outbox_desk import OutboxFilter
from fhir_server.store.session import Tx
from fhir_server.store.view import LeaseLost

SECOND = 1_000_000
NOON = 1_800_000_000 * SECOND
SENT = Outcome("sent", ack=b"AA")


def queued(store: Store, lane: str = "dpi", payload: bytes = b"MSH|", **more: object) -> str:
    delivery = NewDelivery(lane, "mllp://dpi:2575", "mllp", payload, **more)  # type: ignore[arg-type]
    return store.write(SYSTEM, lambda tx: tx.send(delivery))


def shown(store: Store, delivery_id: str) -> Delivery:
    with store.read(SYSTEM) as snapshot:
        found = snapshot.delivery(delivery_id)
    assert found is not None
    return found


def claimed(store: Store, worker: str = "w1", at: int = NOON, lease: float = 30) -> Claim:
    held = store.claim(worker, lease, at)
    assert held is not None
    return held


def test_a_delivery_is_sent_once_and_its_attempt_recorded(store: Store) -> None:
    key = queued(store, media_type="application/hl7-v2", case="ServiceRequest/1", keys=[("MSH-10", "x")])
    assert len(key) == 20
    held = claimed(store)
    assert (held.delivery.id, held.payload, held.interrupted) == (key, b"MSH|", False)
    assert store.start_attempt(held, NOON) == 1
    assert shown(store, key).state == "sending"
    assert store.finish(held, SENT, NOON + SECOND)
    assert store.advance(held, 30, NOON + SECOND) is None
    done = shown(store, key)
    assert (done.state, done.attempts, done.first_sent_at, done.ack, done.error) == ("sent", 1, NOON, b"AA", "")
    with store.read(SYSTEM) as snapshot:
        (attempt,) = snapshot.attempts(key)
        assert snapshot.delivery_keys(key) == (("MSH-10", "x"),)
    assert (attempt.outcome, attempt.started_at, attempt.ended_at) == ("sent", NOON, NOON + SECOND)
    assert store.claim("w1", 30, NOON + 2 * SECOND) is None


def test_payload_bytes_are_frozen_inline_and_in_the_blobs(store: Store) -> None:
    small, large = queued(store, payload=b"\x0bsmall"), queued(store, payload=b"L" * 300_000)
    with store.read(SYSTEM) as snapshot:
        assert snapshot.payload(small) == b"\x0bsmall"
        assert snapshot.payload(large) == b"L" * 300_000
        found = snapshot.delivery(large)
    assert found is not None and found.sha256 == hashlib.sha256(b"L" * 300_000).hexdigest() and found.size == 300_000
    held = claimed(store)
    store.finish(held, SENT, NOON)
    following = store.advance(held, 30, NOON)
    assert following is not None and following.payload == b"L" * 300_000


def test_a_delivery_of_a_failed_transaction_does_not_exist(store: Store) -> None:
    def work(tx: Tx) -> None:
        tx.send(NewDelivery("dpi", "x", "mllp", b"1"))
        raise errors.RuleBroken("no")

    with pytest.raises(errors.RuleBroken):
        store.write(SYSTEM, work)
    with store.read(SYSTEM) as snapshot:
        assert snapshot.deliveries() == [] and snapshot.lanes() == []


def test_a_delivery_id_of_another_length_or_used_before_is_refused(store: Store) -> None:
    with pytest.raises(errors.Fault):
        queued(store, id="short")
    key = queued(store, id=new_delivery_id())
    with pytest.raises(errors.Conflict, match="exists already"):
        queued(store, id=key)


def test_a_lane_is_sent_in_order_and_a_dead_one_costs_the_others_nothing(store: Store) -> None:
    dead = [queued(store, "dead") for _ in range(3)]
    live = [queued(store, "live") for _ in range(3)]
    held = claimed(store)
    assert held.lane == "dead"
    store.start_attempt(held, NOON)
    store.finish(held, Outcome("retry", "transient", "connection refused", retry_at=NOON + 60 * SECOND), NOON)
    assert store.advance(held, 30, NOON) is None
    sent: list[str] = []
    current: Claim | None = claimed(store)
    while current is not None:
        sent.append(current.delivery.id)
        store.start_attempt(current, NOON)
        store.finish(current, SENT, NOON, keep=True)
        current = store.advance(current, 30, NOON)
    assert sent == live
    assert store.claim("w1", 30, NOON + 59 * SECOND) is None
    retried = claimed(store, at=NOON + 60 * SECOND)
    assert retried.delivery.id == dead[0] and retried.failures == 1 and not retried.interrupted
    waiting = shown(store, dead[0])
    assert (waiting.state, waiting.error_class, waiting.error) == ("queued", "transient", "connection refused")


def test_finishing_gives_the_lane_back_unless_it_is_kept(store: Store) -> None:
    keys = [queued(store) for _ in range(3)]
    store.finish(claimed(store, "w1"), SENT, NOON)
    held = claimed(store, "w2")
    assert held.delivery.id == keys[1]
    store.finish(held, SENT, NOON, keep=True)
    assert store.claim("w1", 30, NOON) is None
    following = store.advance(held, 30, NOON)
    assert following is not None and following.delivery.id == keys[2]


def test_no_two_workers_hold_one_lane(store: Store) -> None:
    queued(store, "a")
    queued(store, "a")
    assert claimed(store, "w1").lane == "a"
    assert store.claim("w2", 30, NOON) is None


def test_a_worker_that_outlived_its_lease_is_fenced_off(store: Store) -> None:
    key = queued(store)
    slow = claimed(store, "slow", lease=10)
    store.start_attempt(slow, NOON)
    later = NOON + 11 * SECOND
    quick = claimed(store, "quick", at=later)
    assert quick.token > slow.token and quick.interrupted
    with pytest.raises(LeaseLost):
        store.start_attempt(slow, later)
    with pytest.raises(LeaseLost):
        store.advance(slow, 10, later)
    assert store.start_attempt(quick, later) == 2
    assert store.finish(slow, Outcome("error", "permanent", "AE"), later) is False
    store.release(slow)
    assert shown(store, key).state == "sending"
    assert store.claim("third", 10, later) is None
    assert store.finish(quick, SENT, later)
    assert shown(store, key).state == "sent"
    with store.read(SYSTEM) as snapshot:
        assert [attempt.outcome for attempt in snapshot.attempts(key)] == ["late: error", "sent"]


def test_an_attempt_cut_off_by_a_crash_is_told_as_interrupted(store: Store) -> None:
    key = queued(store)
    store.start_attempt(claimed(store, lease=10), NOON)
    again = claimed(store, at=NOON + 11 * SECOND)
    assert again.interrupted and again.delivery.id == key
    store.start_attempt(again, NOON + 11 * SECOND)
    with store.read(SYSTEM) as snapshot:
        assert [attempt.outcome for attempt in snapshot.attempts(key)] == ["interrupted", ""]


def test_a_failed_delivery_blocks_its_lane_until_a_person_acts(store: Store) -> None:
    first, second = queued(store), queued(store)
    held = claimed(store)
    store.start_attempt(held, NOON)
    store.finish(held, Outcome("error", "permanent", "AE|unknown patient"), NOON)
    assert store.advance(held, 30, NOON) is None
    assert store.claim("w1", 30, NOON) is None
    with store.read(SYSTEM) as snapshot:
        why = snapshot.waiting(second)
    assert why.ahead == 0 and why.blocked_by is not None and why.blocked_by.id == first
    assert why.blocked_by.error == "AE|unknown patient"
    store.write(SYSTEM, lambda tx: tx.cancel(first, "patient created by hand"))
    assert claimed(store).delivery.id == second
    assert shown(store, first).state == "cancelled"


def test_under_skip_only_the_same_document_or_patient_waits(store: Store) -> None:
    stuck = queued(store, on_stuck="skip", patient="Patient/1", document="DocumentReference/1")
    same_patient = queued(store, patient="Patient/1")
    same_document = queued(store, document="DocumentReference/1")
    other = queued(store, patient="Patient/2")
    nothing_in_common = queued(store)
    held = claimed(store)
    store.start_attempt(held, NOON)
    store.finish(held, Outcome("held", "ambiguous", "no answer"), NOON)
    sent: list[str] = []
    current = store.advance(held, 30, NOON)
    while current is not None:
        sent.append(current.delivery.id)
        store.finish(current, SENT, NOON, keep=True)
        current = store.advance(current, 30, NOON)
    assert sent == [other, nothing_in_common]
    store.write(SYSTEM, lambda tx: tx.retry(stuck))
    order = []
    current = store.claim("w1", 30, NOON)
    while current is not None:
        order.append(current.delivery.id)
        store.finish(current, SENT, NOON, keep=True)
        current = store.advance(current, 30, NOON)
    assert order == [stuck, same_patient, same_document]


def test_holding_pausing_and_resuming(store: Store) -> None:
    key = queued(store)
    store.write(SYSTEM, lambda tx: tx.hold(key, "patient merged"))
    assert store.claim("w1", 30, NOON) is None
    assert shown(store, key).error == "patient merged"
    store.write(SYSTEM, lambda tx: tx.retry(key))
    store.write(SYSTEM, lambda tx: tx.pause("dpi", "maintenance until noon"))
    assert store.claim("w1", 30, NOON) is None
    with store.read(SYSTEM) as snapshot:
        (lane,) = snapshot.lanes()
        assert (lane.paused, lane.paused_note, lane.open, lane.stuck) == (True, "maintenance until noon", 1, 0)
        assert lane.oldest > 0
    store.write(SYSTEM, lambda tx: tx.resume("dpi"))
    held = claimed(store)
    store.write(SYSTEM, lambda tx: tx.hold(key, "report replaced"))
    with pytest.raises(LeaseLost, match="held or cancelled"):
        store.start_attempt(held, NOON)
    store.release(held)
    with pytest.raises(errors.NotFound):
        store.write(SYSTEM, lambda tx: tx.pause("nobody", ""))
    with pytest.raises(errors.NotFound):
        store.write(SYSTEM, lambda tx: tx.retry("nobody"))


def test_what_has_left_cannot_be_retried_held_or_cancelled(store: Store) -> None:
    key = queued(store)
    held = claimed(store)
    store.start_attempt(held, NOON)
    store.finish(held, SENT, NOON)
    for act in (lambda tx: tx.retry(key), lambda tx: tx.hold(key, ""), lambda tx: tx.cancel(key, "")):
        with pytest.raises(errors.RuleBroken, match="is sent"):
            store.write(SYSTEM, act)


def test_the_second_leg_is_settled_apart(store: Store) -> None:
    key, plain = queued(store, second_leg="zam"), queued(store)
    assert shown(store, key).leg_state == "waiting"
    assert store.write(SYSTEM, lambda tx: tx.confirm(key, "refused", "Z03 unknown patient", "in1"))
    refused = shown(store, key)
    assert (refused.leg_state, refused.leg_text, refused.leg_inbox) == ("refused", "Z03 unknown patient", "in1")
    assert refused.leg_at > 0 and refused.state == "queued"
    assert store.write(SYSTEM, lambda tx: tx.confirm(key, "confirmed", "Z01"))
    assert not store.write(SYSTEM, lambda tx: tx.confirm(key, "refused", "late"))
    assert not store.write(SYSTEM, lambda tx: tx.confirm(plain, "confirmed", ""))
    assert not store.write(SYSTEM, lambda tx: tx.confirm("nobody", "confirmed", ""))
    assert shown(store, key).leg_state == "confirmed"


def test_a_replay_is_a_new_delivery_of_the_same_bytes(store: Store) -> None:
    key = queued(store, payload=b"frozen")
    with store.read(SYSTEM) as snapshot:
        payload = snapshot.payload(key)
    again = queued(store, payload=payload, parent=key)
    assert shown(store, again).parent == key and shown(store, again).sha256 == shown(store, key).sha256


def test_the_list_filters_and_pages(store: Store) -> None:
    ids = [queued(store, f"lane{n % 2}", case=f"c{n % 3}", keys=[("IPP", str(n))]) for n in range(6)]
    with store.read(SYSTEM) as snapshot:
        newest = snapshot.deliveries()
        assert {one.id for one in newest} == set(ids)
        first = snapshot.deliveries(OutboxFilter(limit=4))
        rest = snapshot.deliveries(OutboxFilter(limit=4, before=(first[-1].created_at, first[-1].id)))
        assert [one.id for one in first + rest] == [one.id for one in newest]
        assert {one.id for one in snapshot.deliveries(OutboxFilter(lane="lane1"))} == set(ids[1::2])
        assert {one.id for one in snapshot.deliveries(OutboxFilter(case_key="c0"))} == {ids[0], ids[3]}
        assert [one.id for one in snapshot.deliveries(OutboxFilter(key=("IPP", "4")))] == [ids[4]]
        assert snapshot.deliveries(OutboxFilter(state="error")) == []
        assert snapshot.delivery_counts() == {("lane0", "queued"): 3, ("lane1", "queued"): 3}
        assert snapshot.delivery("nobody") is None


def test_enqueueing_from_many_threads_to_shared_lanes_keeps_each_lane_whole(store: Store) -> None:
    def enqueue(number: int) -> None:
        names = ["x", "y", "z"] if number % 2 else ["z", "y", "x"]
        for _ in range(5):
            store.write(SYSTEM, lambda tx: [tx.send(NewDelivery(name, "e", "mllp", b"1")) for name in names])

    threads = [threading.Thread(target=enqueue, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with store.read(SYSTEM) as snapshot:
        numbers = defaultdict(list)
        for one in snapshot.deliveries(OutboxFilter(limit=500)):
            numbers[one.lane].append(one.lane_seq)
    assert {name: sorted(seqs) for name, seqs in numbers.items()} == {n: list(range(1, 31)) for n in "xyz"}


def test_two_workers_empty_all_lanes_in_order_without_sending_twice(store: Store) -> None:
    expected = defaultdict(list)
    for number in range(40):
        lane = f"lane{number % 4}"
        expected[lane].append(queued(store, lane, payload=b"%d" % number))
    wire: dict[str, list[str]] = defaultdict(list)
    guard = threading.Lock()

    def work(name: str) -> None:
        while True:
            held = store.claim(name, 30, micros(now()))
            if held is None:
                return
            current: Claim | None = held
            while current is not None:
                store.start_attempt(current)
                with guard:
                    wire[current.lane].append(current.delivery.id)
                store.finish(current, SENT, keep=True)
                current = store.advance(current, 30)

    workers = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert dict(wire) == dict(expected)


def test_queueing_wakes_a_waiting_worker(store: Store) -> None:
    seen, woke = store.rings(), threading.Event()

    def wait() -> None:
        store.wait_for_work(seen, 30)
        woke.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    queued(store)
    assert woke.wait(10)
    waiting.join()


def test_a_claim_stays_quick_beside_a_blocked_lane_with_many_waiting(store: Store) -> None:
    first = queued(store, "blocked")

    def many(tx: Tx) -> None:
        for _ in range(500):
            tx.send(NewDelivery("blocked", "e", "mllp", b"1"))

    store.write(SYSTEM, many)
    store.write(SYSTEM, lambda tx: tx.hold(first, "look"))
    other = queued(store, "other")
    held = claimed(store)
    assert held.delivery.id == other
    store.finish(held, SENT, NOON)
    store.release(held)
    assert store.claim("w1", 30, NOON) is None
