"""The outbox lanes on both databases: order, leases, fencing, stuck deliveries, two legs."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM, micros, new_delivery_id, now
from fhir_server.search.rows import IndexRows
from fhir_server.store import leases
from fhir_server.store.blob_seal import Keys
from fhir_server.store.blobs import Blobs
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery, NewDelivery
from fhir_server.store.leases import Claim, Outcome
from fhir_server.store.outbox_desk import OutboxFilter, Policy
from fhir_server.store.postgres import PostgresSession
from fhir_server.store.session import Tx
from fhir_server.store.view import LeaseLost

SECOND = 1_000_000
NOON = 1_800_000_000 * SECOND
SENT = Outcome("sent", ack=b"AA")


def queued(store: Store, lane: str = "dpi", payload: bytes = b"MSH|", **more: object) -> str:
    delivery = store.keep(NewDelivery(lane, "mllp://dpi:2575", "mllp", payload, **more))  # type: ignore[arg-type]  # keywords of any type
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


def may(_: Tx, __: Claim) -> None:
    """Nothing speaks against sending."""


def all_sent(store: Store, at: int = NOON) -> list[str]:
    """Sends whatever may be sent now; the ids in order."""
    sent: list[str] = []
    while (held := store.take("w1", 30, may, at)) is not None:
        sent.append(held.delivery.id)
        store.finish(held, SENT, at)
    return sent


def test_a_delivery_is_sent_once_and_its_attempt_recorded(store: Store) -> None:
    key = queued(store, media_type="application/hl7-v2", case="ServiceRequest/1", keys=[("MSH-10", "x")])
    assert len(key) == 20
    held = claimed(store)
    assert (held.delivery.id, store.payload(held), held.interrupted) == (key, b"MSH|", False)
    assert store.start_attempt(held, NOON) == 1
    assert shown(store, key).state == "sending"
    assert store.finish(held, SENT, NOON + SECOND)
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
    assert store.payload(claimed(store)) == b"L" * 300_000


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
    assert all_sent(store) == live
    assert store.claim("w1", 30, NOON + 59 * SECOND) is None
    retried = claimed(store, at=NOON + 60 * SECOND)
    assert retried.delivery.id == dead[0] and retried.failures == 1 and not retried.interrupted
    waiting = shown(store, dead[0])
    assert (waiting.state, waiting.error_class, waiting.error) == ("queued", "transient", "connection refused")


def test_finishing_gives_the_lane_back(store: Store) -> None:
    keys = [queued(store) for _ in range(2)]
    held = claimed(store, "w1")
    assert store.claim("w2", 30, NOON) is None
    store.finish(held, SENT, NOON)
    assert claimed(store, "w2").delivery.id == keys[1]


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
    assert store.renew([slow, quick], 10, later) == {quick.lane_id}
    assert store.start_attempt(quick, later) == 2
    assert store.finish(slow, Outcome("retry", "ambiguous", "no answer", retry_at=NOON), later) is False
    store.release(slow)
    assert shown(store, key).state == "sending"
    assert store.claim("third", 10, later) is None
    assert store.finish(quick, SENT, later)
    assert shown(store, key).state == "sent"
    with store.read(SYSTEM) as snapshot:
        assert [attempt.outcome for attempt in snapshot.attempts(key)] == ["late: retry", "sent"]


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
    assert all_sent(store) == [other, nothing_in_common]
    store.write(SYSTEM, lambda tx: tx.retry(stuck))
    assert all_sent(store) == [stuck, same_patient, same_document]


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


def test_what_is_remarked_of_a_second_leg_stands_behind_what_settles_it(store: Store) -> None:
    key, plain = queued(store, second_leg="zam"), queued(store)
    for text in ("Z03 read", "Z02 full"):
        store.write(SYSTEM, lambda tx, text=text: tx.remark(key, text))
    store.write(SYSTEM, lambda tx: tx.remark(plain, "Z03"))
    assert (shown(store, key).leg_state, shown(store, key).leg_text) == ("waiting", "Z03 read; Z02 full")
    assert shown(store, plain).leg_text == ""
    assert store.write(SYSTEM, lambda tx: tx.confirm(key, "confirmed", "Z01"))
    store.write(SYSTEM, lambda tx: tx.remark(key, "Z03 again"))
    assert shown(store, key).leg_text == "Z01; Z03 read; Z02 full; Z03 again"
    assert not store.write(SYSTEM, lambda tx: tx.confirm("nobody", "confirmed", ""))
    assert shown(store, key).leg_state == "confirmed"


def test_what_was_said_of_a_second_leg_that_was_refused_stands_behind_what_settles_it(store: Store) -> None:
    key = queued(store, second_leg="zam")
    assert store.write(SYSTEM, lambda tx: tx.confirm(key, "refused", "Z01 refused 207"))
    store.write(SYSTEM, lambda tx: tx.remark(key, "Z02 refused 422"))
    assert store.write(SYSTEM, lambda tx: tx.confirm(key, "confirmed", "Z01 accepted"))
    assert shown(store, key).leg_text == "Z01 accepted; Z01 refused 207; Z02 refused 422"


def test_what_is_said_of_a_second_leg_is_bounded_however_long_an_answer_is(store: Store) -> None:
    first, second = queued(store, second_leg="zam"), queued(store, second_leg="zam")
    store.write(SYSTEM, lambda tx: tx.remark(first, "a" * 300_000))
    assert shown(store, first).leg_text == "a" * 500
    store.write(SYSTEM, lambda tx: tx.remark(second, "Z02"))
    store.write(SYSTEM, lambda tx: tx.remark(second, "b" * 300_000))
    assert shown(store, second).leg_text == "Z02; " + "b" * 495
    store.write(SYSTEM, lambda tx: tx.remark(second, "late"))
    for key, said in ((first, "Z01 accepted"), (second, "c" * 300_000)):
        assert store.write(SYSTEM, lambda tx, key=key, said=said: tx.confirm(key, "confirmed", said))
    assert shown(store, first).leg_text == "Z01 accepted; " + "a" * 486
    assert shown(store, second).leg_text == "c" * 500


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
        assert [(lane.name, lane.open, lane.stuck) for lane in snapshot.lanes()] == [("lane0", 3, 0), ("lane1", 3, 0)]
        assert snapshot.totals() == (0, 6, 0)
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
            held = store.take(name, 30, may, micros(now()))
            if held is None:
                return
            with guard:
                wire[held.lane].append(held.delivery.id)
            store.finish(held, SENT)

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


# --- late outcomes: what the partner said is a fact, whoever holds the lane ----------------------------------------

LATE = NOON + 11 * SECOND
REFUSED = Outcome("error", "permanent", "AE 207 unknown patient", b"AE")
UNKNOWN = Outcome("held", "ambiguous", "no answer")
AGAIN = Outcome("retry", "transient", "refused", retry_at=LATE)


def overtaken_worker(store: Store) -> tuple[str, Claim, Claim]:
    """A delivery, the claim of a worker that slept while sending it, and the claim of the one that took over."""
    key = queued(store)
    slow = store.take("slow", 10, may, NOON)
    quick = store.claim("quick", 10, LATE)
    assert slow is not None and quick is not None and quick.interrupted
    return key, slow, quick


@pytest.mark.parametrize(("late", "state"), [(SENT, "sent"), (REFUSED, "error")], ids=["sent", "refused"])
def test_a_late_definite_answer_settles_the_delivery_and_nothing_is_sent_again(
    store: Store, late: Outcome, state: str
) -> None:
    key, slow, quick = overtaken_worker(store)
    assert store.finish(slow, late, LATE) is True
    assert (shown(store, key).state, shown(store, key).ack) == (state, late.ack)
    with pytest.raises(LeaseLost, match="settled by a late answer"):
        store.start_attempt(quick, LATE)
    store.release(quick)
    assert store.claim("third", 10, LATE) is None
    with store.read(SYSTEM) as snapshot:
        assert [one.outcome for one in snapshot.attempts(key)] == [f"late: {late.state}"]


@pytest.mark.parametrize(
    ("first", "late", "state", "settles"),
    [
        (SENT, REFUSED, "sent", False),
        (SENT, UNKNOWN, "sent", False),
        (REFUSED, SENT, "sent", True),
        (REFUSED, AGAIN, "error", False),
        (UNKNOWN, SENT, "sent", True),
        (UNKNOWN, REFUSED, "error", True),
        (AGAIN, SENT, "sent", True),
        (AGAIN, UNKNOWN, "queued", False),
    ],
)
def test_of_two_attempts_the_partners_own_word_counts(
    store: Store, first: Outcome, late: Outcome, state: str, settles: bool
) -> None:
    key, slow, quick = overtaken_worker(store)
    store.start_attempt(quick, LATE)
    assert store.finish(quick, first, LATE) is True
    assert store.finish(slow, late, LATE) is settles
    assert shown(store, key).state == state


def test_what_a_person_settled_stays_whatever_comes_late(store: Store) -> None:
    key, slow, quick = overtaken_worker(store)
    store.start_attempt(quick, LATE)
    store.finish(quick, UNKNOWN, LATE)
    store.write(SYSTEM, lambda tx: tx.cancel(key, "given up"))
    assert store.finish(slow, SENT, LATE) is False
    assert shown(store, key).state == "cancelled"


def test_a_renewed_lease_keeps_others_away_and_a_lost_one_is_not_renewed(store: Store) -> None:
    queued(store)
    held = claimed(store, lease=10)
    for moment in range(9, 90, 9):
        assert store.renew([held], 10, NOON + moment * SECOND) == {held.lane_id}
        assert store.claim("w2", 10, NOON + moment * SECOND) is None
    store.finish(held, SENT, NOON)
    assert store.renew([held], 10, NOON) == set()


# --- held before sending ---------------------------------------------------------------------------------------------


def test_a_delivery_that_may_not_leave_is_settled_in_the_claiming_transaction(store: Store) -> None:
    first, second = queued(store, on_stuck="skip", patient="Patient/1"), queued(store, patient="Patient/2")

    def check(tx: Tx, held: Claim) -> Outcome | None:
        return Outcome("held", "overtaken", "merged") if held.delivery.patient == "Patient/1" else None

    held = store.take("w", 30, check, NOON)
    assert held is not None and held.delivery.id == second
    stopped = shown(store, first)
    assert (stopped.state, stopped.error_class, stopped.error, stopped.attempts) == ("held", "overtaken", "merged", 0)
    with store.read(SYSTEM) as snapshot:
        assert snapshot.attempts(first) == []


def test_a_released_delivery_remembers_the_reason_that_was_set_aside(store: Store) -> None:
    key = queued(store)
    assert store.take("w", 30, lambda tx, held: Outcome("held", "overtaken", "merged"), NOON) is None
    assert store.write(SYSTEM, lambda tx: tx.release(key)) == "merged"
    assert (shown(store, key).state, shown(store, key).cleared) == ("queued", "merged")
    with pytest.raises(errors.RuleBroken, match="is queued"):
        store.write(SYSTEM, lambda tx: tx.release(key))
    with pytest.raises(errors.NotFound):
        store.write(SYSTEM, lambda tx: tx.release("nobody"))


def test_the_ins_and_the_version_of_the_report_are_frozen_with_the_bytes(store: Store) -> None:
    def work(tx: Tx) -> str:
        report = {"resourceType": "DiagnosticReport", "id": "d", "status": "final"}
        tx.create(report, IndexRows())
        delivery = NewDelivery("x", "mllp://x:1", "hl7", b"1", document="DiagnosticReport/d", keys=[("ins", "279")])
        return tx.send(delivery)

    key = store.write(SYSTEM, work)
    assert (shown(store, key).ins, shown(store, key).document_version) == ("279", 1)
    with store.read(SYSTEM) as snapshot:
        assert snapshot.delivery_keys(key) == (("ins", "279"), ("msh-10", key))
    assert shown(store, queued(store, document="DiagnosticReport/none")).document_version == 0


# --- destinations ----------------------------------------------------------------------------------------------------


def test_a_throttled_lane_begins_so_many_a_second_and_no_more(store: Store) -> None:
    keys = [queued(store) for _ in range(3)]
    store.write(SYSTEM, lambda tx: tx.set_policy("dpi", Policy(per_second=4)))
    sent = []
    for quarter in range(6):
        sent += all_sent(store, NOON + quarter * SECOND // 8)
    assert sent == keys
    assert [shown(store, key).first_sent_at - NOON for key in keys] == [0, SECOND // 4, SECOND // 2]
    with pytest.raises(errors.Invalid):
        store.write(SYSTEM, lambda tx: tx.set_policy("dpi", Policy(per_second=-1)))
    with pytest.raises(errors.NotFound):
        store.write(SYSTEM, lambda tx: tx.set_policy("nobody", Policy()))


def test_a_policy_changes_what_it_names_and_leaves_the_rest(store: Store) -> None:
    queued(store)
    store.write(SYSTEM, lambda tx: tx.set_policy("dpi", Policy("skip", "hold", 2)))
    store.write(SYSTEM, lambda tx: tx.set_policy("dpi", Policy(per_second=0)))
    with store.read(SYSTEM) as snapshot:
        (lane,) = snapshot.lanes()
    assert (lane.on_stuck, lane.on_silence, lane.gap) == ("skip", "hold", 0)
    assert claimed(store).on_silence == "hold"


def test_the_next_due_time_is_that_of_the_first_lane_that_waits(store: Store) -> None:
    assert store.next_due() == 0
    queued(store, "a")
    assert store.next_due() == 0, "now"
    queued(store, "b")
    for lane, seconds in (("a", 60), ("b", 20)):
        held = claimed(store)
        assert held.lane == lane
        store.finish(held, Outcome("retry", "transient", "", retry_at=NOON + seconds * SECOND), NOON)
    assert store.next_due() == NOON + 20 * SECOND
    store.write(SYSTEM, lambda tx: tx.pause("b", ""))
    assert store.next_due() == NOON + 60 * SECOND


@pytest.mark.parametrize("on_stuck", ["block", "skip"])
def test_a_lane_whose_next_delivery_waits_for_a_person_is_due_at_no_time(store: Store, on_stuck: str) -> None:
    first = queued(store, on_stuck=on_stuck, patient="Patient/1")
    queued(store, patient="Patient/1")
    store.finish(claimed(store), Outcome("retry", "transient", "", retry_at=NOON + SECOND), NOON)
    assert store.next_due() == NOON + SECOND
    store.write(SYSTEM, lambda tx: tx.hold(first, "look"))
    assert store.next_due() == 0 and store.claim("w", 30, NOON + SECOND) is None
    queued(store, patient="Patient/2")
    assert store.next_due() == (NOON + SECOND if on_stuck == "skip" else 0)


def test_claims_at_once_find_a_lane_each_however_many(open_at: Callable[..., Store]) -> None:
    store = open_at(connections=30)
    lanes_there = {f"lane {n}" for n in range(24)}
    for lane in sorted(lanes_there):
        queued(store, lane)
    together, found = threading.Barrier(24, timeout=60), []

    def work(tx: Tx) -> str:
        held = leases.claim(tx.view, "w", 30, NOON)
        if tx.view.db.dialect.skip_locked:
            together.wait()  # all transactions are open, each with the lanes it has locked
        return held.lane if held else ""

    def one() -> None:
        found.append(store.write(SYSTEM, work))

    threads = [threading.Thread(target=one) for _ in lanes_there]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(found) == lanes_there and len(found) == len(lanes_there)


@pytest.mark.parametrize("change", ["held", "cancelled"])
def test_a_delivery_moved_while_it_is_claimed_is_left_and_its_lane_goes_on(store: Store, change: str) -> None:
    first, second = queued(store, on_stuck="skip"), queued(store)
    moved: list[str] = []

    def move(tx: Tx, claim: Claim) -> None:
        """As another transaction did that was committed since the claim's statement began."""
        if not moved:
            moved.append(claim.delivery.id)
            tx.view.db.run("UPDATE delivery SET state = ? WHERE id = ?", (change, claim.delivery.id))

    held = store.take("w", 30, move, NOON)
    assert (moved, held and held.delivery.id) == ([first], second)
    with store.read(SYSTEM) as snapshot:
        assert (shown(store, first).attempts, snapshot.attempts(first)) == (0, [])
    assert held is not None and store.finish(held, SENT, NOON)
    with store.read(SYSTEM) as snapshot:
        assert [(lane.lease_until, lane.failures) for lane in snapshot.lanes()] == [(0, 0)]


def test_an_attempt_that_began_while_its_lane_was_being_claimed_is_known_as_cut_off(store: Store) -> None:
    """The claim read the delivery before the lane was taken, sent on and given back; it is taken again as it is."""
    key, seen = queued(store), list[tuple[bool, int]]()

    def sent_on(tx: Tx, claim: Claim) -> None:
        seen.append((claim.interrupted, claim.delivery.attempts))
        if len(seen) == 1:
            tx.view.db.run("UPDATE delivery SET state = 'sending', attempts = 1 WHERE id = ?", (key,))
            tx.view.db.run(
                "INSERT INTO attempt (delivery_id, n, worker, token, started_at) VALUES (?, 1, 'other', 1, 1)", (key,)
            )

    held = store.take("w", 30, sent_on, NOON)
    assert held is not None and held.interrupted and seen == [(False, 0), (True, 1)]
    with store.read(SYSTEM) as snapshot:
        assert [(one.worker, one.outcome) for one in snapshot.attempts(key)] == [("other", "interrupted"), ("w", "")]


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize(("lanes_there", "looks"), [(0, 1), (3, 1), (8, 2)])
def test_who_finds_nothing_looks_again_only_where_more_lanes_may_have_something(
    open_url: Callable[..., Store],
    migrated_postgres: str,
    monkeypatch: pytest.MonkeyPatch,
    lanes_there: int,
    looks: int,
) -> None:
    store, asked = open_url(migrated_postgres), list[str]()
    for n in range(lanes_there):
        queued(store, f"lane {n}")
    answered = PostgresSession._answered

    def noted(self: PostgresSession, sql: str, params: Sequence[object]) -> Any:
        asked.append(sql)
        return answered(self, sql, params)

    monkeypatch.setattr(PostgresSession, "_answered", noted)
    with psycopg.connect(migrated_postgres) as other:
        other.execute("SELECT 1 FROM lane FOR UPDATE")
        assert store.claim("w", 30, NOON) is None
    assert len(asked) == looks


def test_a_lane_without_a_next_delivery_is_not_leased(store: Store) -> None:
    key = queued(store)
    store.write(SYSTEM, lambda tx: tx.hold(key, "look"))
    assert store.claim("w", 30, NOON) is None and store.take("w", 30, may, NOON) is None
    with store.read(SYSTEM) as snapshot:
        (lane,) = snapshot.lanes()
    assert (lane.lease_until, lane.lease_by) == (0, "")


def test_a_replay_sends_the_same_bytes_under_a_new_id_and_is_counted(store: Store) -> None:
    key = queued(store, payload=b"L" * 100_000, second_leg="zam", patient="Patient/1", keys=[("ins", "279")])
    with pytest.raises(errors.RuleBroken, match="leaves anyway"):
        store.write(SYSTEM, lambda tx: tx.replay(key))
    all_sent(store)
    again = store.write(SYSTEM, lambda tx: tx.replay(key))
    one, other = shown(store, key), shown(store, again)
    assert (other.parent, other.sha256, other.patient, other.ins, other.second_leg) == (
        key, one.sha256, "Patient/1", "279", "none",
    )  # fmt: skip
    with store.read(SYSTEM) as snapshot:
        assert snapshot.replays(key) == [again]
    assert all_sent(store) == [again]


def test_large_bytes_are_put_before_the_transaction_never_in_it(store: Store) -> None:
    delivery = NewDelivery("dpi", "mllp://dpi:2575", "mllp", b"L" * 65_537)
    with pytest.raises(errors.Fault, match=r"before the transaction: Store\.keep"):
        store.write(SYSTEM, lambda tx: tx.send(delivery))
    assert list(store.blobs.names()) == []
    kept, small = store.keep(delivery), NewDelivery("dpi", "mllp://dpi:2575", "mllp", b"S" * 65_536)
    assert store.keep(small) is small and kept.payload == b"" and kept.kept is not None
    key = store.write(SYSTEM, lambda tx: tx.send(kept))
    with store.read(SYSTEM) as snapshot:
        assert snapshot.payload(key) == delivery.payload and shown(store, key).size == 65_537


def test_a_replay_moves_no_content_and_says_how_it_is_stored(store: Store) -> None:
    key = queued(store, payload=b"L" * 100_000)
    all_sent(store)
    plain, store.blobs = store.blobs, Blobs(store.blobs.root, keys=Keys({"k": b"k" * 32}, "k"))
    again = store.write(SYSTEM, lambda tx: tx.replay(key))
    with store.read(SYSTEM) as snapshot:
        assert snapshot.view.db.rows("SELECT form, key_id FROM blob") == [("plain", "")], "nothing was encrypted anew"
        assert len(store.blobs.at.copies(shown(store, again).sha256)) == 1
    store.blobs = plain
    held = claimed(store)
    assert held.delivery.id == again and store.payload(held) == b"L" * 100_000
    store.finish(held, SENT)
    store.write(SYSTEM, lambda tx: tx.view.db.run("DELETE FROM blob"))
    with pytest.raises(errors.NotFound, match="not on record"):
        store.write(SYSTEM, lambda tx: tx.replay(key))


def test_a_pull_lane_is_left_to_its_partner(store: Store) -> None:
    delivery = NewDelivery("pull-1", "pull:CH-NORD", "hl7", b"MSH|")
    key = store.write(SYSTEM, lambda tx: tx.send(delivery))
    assert store.claim("w", 30, NOON) is None and store.next_due() == 0
    held = store.take("partner", 30, may, NOON, lane="pull-1")
    assert held is not None and held.delivery.id == key
    assert store.take("partner", 30, may, NOON, lane="pull-1") is None, "taken, until its lease ends"
    assert store.finish(held, SENT, NOON)
    queued(store, "dpi")
    assert store.take("partner", 30, may, NOON, lane="dpi") is None, "that one is sent"


def test_the_rates_and_the_second_legs_are_counted(store: Store) -> None:
    for lane in ("a", "b"):
        queued(store, lane, second_leg="zam")
    for outcome in (AGAIN, SENT):
        held = store.take("w", 30, may, NOON)
        assert held is not None
        store.finish(held, outcome, NOON)
    with store.read(SYSTEM) as snapshot:
        assert [(rate.lane, rate.ended, rate.failed) for rate in snapshot.attempt_rates()] == [("a", 1, 1), ("b", 1, 0)]
        (leg,) = snapshot.waiting_legs()
        assert (leg.kind, leg.count, leg.oldest > 0) == ("zam", 1, True)


# --- an outcome and the next claim in one transaction ----------------------------------------------------------------


def taken(store: Store) -> Claim:
    held = store.take("w1", 30, may)
    assert held is not None
    return held


def test_an_outcome_and_the_next_claim_are_written_together(store: Store) -> None:
    first, second, other = queued(store), queued(store), queued(store, "other")
    settled, following = store.pass_on(taken(store), SENT, "w2", 30, may)
    assert settled and following is not None
    assert following.delivery.id == other, "the lane that has waited longest"
    settled, following = store.pass_on(following, SENT, "w3", 30, may)
    assert settled and following is not None and following.delivery.id == second
    assert [shown(store, key).state for key in (first, other, second)] == ["sent", "sent", "sending"]
    assert store.pass_on(following, SENT, "w4", 30, may) == (True, None)
    with store.read(SYSTEM) as snapshot:
        assert [snapshot.attempts(key)[0].worker for key in (first, other, second)] == ["w1", "w2", "w3"]
        assert [(lane.lease_until, lane.open) for lane in snapshot.lanes()] == [(0, 0), (0, 0)]


def test_a_following_delivery_that_may_not_leave_is_passed_by(store: Store) -> None:
    queued(store)
    held, third = queued(store, on_stuck="skip", patient="Patient/1"), queued(store, "other")
    with_reason = Outcome("held", "overtaken", "merged")
    _, following = store.pass_on(
        taken(store), SENT, "w2", 30, lambda _, claim: with_reason if claim.delivery.id == held else None
    )
    assert following is not None and following.delivery.id == third
    store.finish(following, SENT)
    assert store.take("w3", 30, lambda _, claim: with_reason) is None
    assert shown(store, held).error == "merged"


def test_a_defect_while_the_next_is_taken_undoes_both(store: Store) -> None:
    first, second = queued(store), queued(store)

    def broken(_: Tx, __: Claim) -> None:
        raise KeyError("defect")

    claim = taken(store)
    with pytest.raises(KeyError):
        store.pass_on(claim, SENT, "w2", 30, broken)
    assert (shown(store, first).state, shown(store, second).state) == ("sending", "queued")
    assert store.finish(claim, SENT) and shown(store, first).state == "sent"


def test_a_worker_that_lost_its_lane_still_takes_the_next(store: Store) -> None:
    first, other = queued(store), queued(store, "other")
    late = taken(store)
    store.claim("thief", 30, micros(now()) + 31 * SECOND)
    settled, following = store.pass_on(late, Outcome("retry", "transient", "x"), "w2", 30, may)
    assert not settled and following is not None and following.delivery.id == other
    with store.read(SYSTEM) as snapshot:
        assert snapshot.attempts(first)[0].outcome == "late: retry"


def test_a_pause_stops_a_lane_behind_the_delivery_that_is_under_way(store: Store) -> None:
    first, second = queued(store), queued(store)
    claim = taken(store)
    store.write(SYSTEM, lambda tx: tx.pause("dpi", "travaux"))
    assert store.pass_on(claim, SENT, "w2", 30, may) == (True, None)
    assert (shown(store, first).state, shown(store, second).state) == ("sent", "queued")
    store.write(SYSTEM, lambda tx: tx.resume("dpi"))
    assert taken(store).delivery.id == second


@pytest.mark.needs("postgresql")
def test_what_senders_ask_again_and_again_is_planned_once_and_waited_for_three_times(
    open_url: Callable[..., Store], migrated_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning these statements anew each time took PostgreSQL longer than doing what they say. A plan that is kept
    goes by the indexes although the tables are small when it is made: they may grow before they are looked at again."""
    store, waits = open_url(migrated_postgres, connections=1), [0]
    for _ in range(14):
        queued(store)
    with psycopg.connect(migrated_postgres, autocommit=True) as other:
        other.execute("ANALYZE")
    claim: Claim | None = taken(store)
    answered = PostgresSession._answered

    def counted(self: PostgresSession, sql: str, params: Sequence[object]) -> Any:
        waits[0] += 1
        return answered(self, sql, params)

    monkeypatch.setattr(PostgresSession, "_answered", counted)
    for _ in range(10):
        assert claim is not None
        settled, claim = store.pass_on(claim, SENT, "w2", 30, may)
        assert settled
    assert waits[0] == 10 * 3, "the lane given back, the next one, its attempt; the commit beside"
    asked = (
        "SELECT statement, generic_plans, custom_plans, name, cardinality(parameter_types) FROM pg_prepared_statements"
    )
    with store.read(SYSTEM) as snapshot:
        db = snapshot.view.db
        plans = [row for row in db.rows(asked) if "lane" in row[0] or "delivery" in row[0]]
        assert len(plans) >= 6 and all(generic > 0 == custom for _, generic, custom, *_ in plans), plans
        db.steady()
        for _, _, _, name, count in plans:
            values = ", ".join(["NULL"] * count)
            shown = "\n".join(row[0] for row in db.rows(f"EXPLAIN EXECUTE {name} ({values})"))
            assert "Scan" in shown or "Insert" in shown, shown
            assert not re.search("Seq Scan on (delivery|attempt)", shown), shown
