"""The right to send: a worker takes a lane, notes an attempt, and says how it ended.

A lane is leased with a fencing token that is checked at every step and renewed while a conversation runs. A worker that
lost its lease moves no lane; but what its conversation ended with is a fact, and settles the delivery when nothing else
has. Backoff and throttle belong to the lane (`ready_at`): what waits behind the head costs nothing. A held or failed
delivery blocks its lane (`on_stuck` block), or lets others pass (`skip`) except those of the same document or patient.

Times are microseconds UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from fhir_server import errors
from fhir_server.store.lanes import COLUMNS, OPEN, STUCK, Delivery, OnSilence
from fhir_server.store.view import LeaseLost, View, instant_of, printable


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to send the head of one lane until `lease_until`. `interrupted`: an earlier attempt began and its
    end is unknown, so the partner may have the bytes already. `failures` counts attempts in a row that failed,
    `on_silence` is the destination's policy, `inline` the bytes unless they are in the blobs. Microseconds that its
    destination wants: `gap` between two beginnings, `answer_within` for an answer (0: as the installation says),
    `keep_open` for an idle connection."""

    lane_id: int
    lane: str
    token: int
    worker: str
    lease_until: int
    failures: int
    on_silence: OnSilence
    delivery: Delivery
    inline: bytes | None
    interrupted: bool
    gap: int = 0
    answer_within: int = 0
    keep_open: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `retry` puts the lane to sleep until `retry_at`; `held` waits for a person; `error` is
    the partner's refusal, in its own words in `text`."""

    state: Literal["sent", "retry", "held", "error"]
    error_class: str = ""
    text: str = ""
    ack: bytes | None = None
    retry_at: int = 0


_FIRST_STUCK = f"(SELECT s.lane_seq FROM delivery s WHERE s.lane_id = l.id AND s.{STUCK} ORDER BY s.lane_seq LIMIT 1)"
_FREE = (
    f"d.lane_id = l.id AND d.{OPEN} AND NOT EXISTS (SELECT 1 FROM delivery s WHERE s.lane_id = d.lane_id "
    f"AND s.{STUCK} AND s.lane_seq < d.lane_seq AND (l.on_stuck = 'block' "
    "OR (s.document <> '' AND s.document = d.document) OR (s.patient <> '' AND s.patient = d.patient)))"
)
# Where the delivery stands that may leave next; NULL when none may. Under `block` two index look-ups decide, however
# many deliveries wait behind the stuck one.
_NEXT = (
    "(CASE WHEN l.on_stuck = 'block' THEN (SELECT o.lane_seq FROM delivery o WHERE o.lane_id = l.id "
    f"AND o.{OPEN} AND o.lane_seq < coalesce({_FIRST_STUCK}, 9223372036854775807) ORDER BY o.lane_seq LIMIT 1) "
    f"ELSE (SELECT d.lane_seq FROM delivery d WHERE {_FREE} ORDER BY d.lane_seq LIMIT 1) END)"
)
_DUE = "l.paused = 0 AND l.ready_at <= ? AND l.lease_until <= ?"
_LANE = "l.id, l.name, l.token, l.failures, l.on_silence, l.gap, l.answer_within, l.keep_open"
# The lanes that have waited longest and have something to send. The inner query is sorted first (OFFSET keeps it
# apart), so that no more lanes than are asked for are looked into.
_LONGEST = (
    f"longest AS MATERIALIZED (SELECT l.id FROM (SELECT l.id, l.on_stuck FROM lane l WHERE l.pull = 0 AND {_DUE} "
    f"ORDER BY l.ready_at, l.id LIMIT 1000000 OFFSET 0) l WHERE {_NEXT} IS NOT NULL LIMIT ?), "
)
# Others may be claiming these just now: only who finds all of them taken looks at every lane.
_FEW, _ALL = 8, 1_000_000


Check = Callable[[View, Claim], Outcome | None]


def take(view: View, worker: str, lease_seconds: float, now: int, check: Check) -> tuple[Claim | None, bool]:
    """Claims a lane and notes the attempt in one transaction: bytes leave only after its commit.

    `check` looks at the claimed delivery in the same transaction; an outcome it returns settles the delivery unsent,
    and the second value is True: take again.
    """
    held = _longest_waiting(view, worker, lease_seconds, now)
    return (None, False) if held is None else _begun(view, held, now, check)


def take_pulled(
    view: View, lane: str, worker: str, lease_seconds: float, now: int, check: Check
) -> tuple[Claim | None, bool]:
    """`take` for one lane that its partner fetches."""
    held, _ = _locked(view, f"l.name = ? AND l.pull = 1 AND {_DUE}", (lane, now, now), worker, lease_seconds, now)
    return (None, False) if held is None else _begun(view, held, now, check)


def _begun(view: View, held: Claim, now: int, check: Check) -> tuple[Claim | None, bool]:
    # The check comes while the database waits for us, and knows it: it ends the session of a process that freezes here,
    # which it does not while statements that nobody has asked the answer of are under way.
    stopped = check(view, held)
    _lease(view, held)
    if stopped is not None:
        finish(view, held, stopped, now)
        return None, True
    if not _note_attempt(view, held, now):
        release(view, held)
        return None, True
    return held, False


def claim(view: View, worker: str, lease_seconds: float, now: int) -> Claim | None:
    """Leases the lane that has waited longest for a sender and has something to send; None when there is none."""
    held = _longest_waiting(view, worker, lease_seconds, now)
    if held is not None:
        _lease(view, held)
    return held


def _longest_waiting(view: View, worker: str, lease_seconds: float, now: int) -> Claim | None:
    which = f"l.id IN (SELECT id FROM longest) AND {_DUE} ORDER BY l.ready_at, l.id LIMIT 1"
    for many in (_FEW, _ALL):
        found, met = _locked(view, which, (now, now, many, now, now), worker, lease_seconds, now, _LONGEST)
        if found is not None or met < many:
            return found
    return None


def _lease(view: View, held: Claim) -> None:
    """Writes what a claim says in the row of its lane, which is locked."""
    lease = (held.token, held.worker, held.lease_until, held.lane_id)
    view.db.run("UPDATE lane SET token = ?, lease_by = ?, lease_until = ? WHERE id = ?", lease)


def _locked(
    view: View,
    which: str,
    params: tuple[object, ...],
    worker: str,
    lease_seconds: float,
    now: int,
    among: str = "",
) -> tuple[Claim | None, int]:
    """Locks the first of some lanes that nobody holds just now, with its next delivery: what a claim of it will be. A
    lane without one stays as it is. Beside it, how many lanes `among` gave to choose from.

    What the row of the lane says is what it says once it is locked; the delivery may have been moved or sent since the
    statement began, which `_note_attempt` finds out.
    """
    view.db.steady()
    met = "(SELECT count(*) FROM longest)" if among else "0"
    row = view.db.one(
        f"WITH {among}l AS MATERIALIZED (SELECT {_LANE}, l.on_stuck FROM lane l "
        f"WHERE {which}{view.db.dialect.skip_locked}) SELECT m.met, {_LANE}, d.payload, {COLUMNS} FROM "
        f"(SELECT {met} AS met) m LEFT JOIN l ON 1 = 1 LEFT JOIN delivery d ON d.lane_id = l.id "
        f"AND d.lane_seq = {_NEXT}",
        params,
    )
    if row is None or row[10] is None:
        return None, 0 if row is None else int(row[0])
    (lane_id, name, token, failures, on_silence, *times), inline, delivery = row[1:9], row[9], Delivery(*row[10:])
    until = now + int(lease_seconds * 1_000_000)
    claim = Claim(
        int(lane_id), str(name), int(token) + 1, worker, until, int(failures), on_silence, delivery,
        None if inline is None else bytes(inline), delivery.state == "sending", *map(int, times),
    )  # fmt: skip
    return claim, int(row[0])


def renew(view: View, held: Iterable[Claim], lease_seconds: float, now: int) -> set[int]:
    """Prolongs leases while their conversations run; the lane ids that are still ours."""
    until = now + int(lease_seconds * 1_000_000)
    sql = "UPDATE lane SET lease_until = ? WHERE id = ? AND token = ? AND lease_until > 0"
    return {
        one.lane_id
        for one in sorted(held, key=lambda one: one.lane_id)
        if view.db.count(sql, (until, one.lane_id, one.token))
    }


def next_due(view: View) -> int:
    """When the next lane with something to send may be claimed; 0 = none is waiting for a time to come. A lane whose
    next delivery waits for a person has nothing to send: who asked for it again and again would never sleep."""
    view.db.steady()
    row = view.db.one(
        "SELECT min(CASE WHEN l.ready_at > l.lease_until THEN l.ready_at ELSE l.lease_until END) FROM lane l "
        f"WHERE l.paused = 0 AND l.pull = 0 AND {_NEXT} IS NOT NULL"
    )
    return 0 if row is None or row[0] is None else int(row[0])


def start_attempt(view: View, held: Claim, now: int) -> int:
    """Notes that bytes are about to leave; commit before they do. Returns the attempt's number, from 1.

    An attempt that was interrupted is closed as such. `LeaseLost` when the lane is no longer ours, or when a person
    held or cancelled the delivery meanwhile: send nothing.
    """
    own = f"SELECT token FROM lane WHERE id = ?{view.db.dialect.for_update}"
    if view.db.one(own, (held.lane_id,)) != (held.token,):
        raise LeaseLost(f"Lane {held.lane} was taken over by another worker.")
    number = _note_attempt(view, held, now)
    if not number:
        raise LeaseLost(f"Delivery {held.delivery.id} was held or cancelled, settled by a late answer, or sent anew.")
    return number


def _note_attempt(view: View, held: Claim, now: int) -> int:
    """`start_attempt` in a transaction that holds the lane's row; 0 when the delivery is to be sent no more, or was
    sent since it was read: another attempt may have been cut off then, which the claim does not know."""
    row = view.db.one(
        "UPDATE delivery SET state = 'sending', attempts = attempts + 1, "
        "first_sent_at = CASE WHEN first_sent_at = 0 THEN ? ELSE first_sent_at END "
        f"WHERE id = ? AND {OPEN} AND attempts = ? RETURNING attempts",
        (now, held.delivery.id, held.delivery.attempts),
    )
    if row is None:
        return 0
    if held.interrupted:
        _cut_off(view, held.delivery.id, now)
    view.db.run(
        "INSERT INTO attempt (delivery_id, n, worker, token, started_at) VALUES (?, ?, ?, ?, ?)",
        (held.delivery.id, row[0], held.worker, held.token, now),
    )
    if held.gap:
        view.db.run("UPDATE lane SET ready_at = ? + gap WHERE id = ?", (now, held.lane_id))
    return int(row[0])


def _cut_off(view: View, delivery_id: str, now: int) -> None:
    """Closes the attempt whose end is unknown: the partner may have the bytes."""
    view.db.run(
        "UPDATE attempt SET outcome = 'interrupted', ended_at = ? WHERE delivery_id = ? AND outcome = ''",
        (now, delivery_id),
    )


def interrupt(view: View, delivery_id: str, now: int) -> bool:
    """Takes a delivery out of the hands of a worker that fell silent, or of a partner that fetched it and did not
    answer, once their lease is over: it waits again, and its attempt ends as `interrupted`, since they may have it.
    False for one that is not being sent. Raises RuleBroken while the lease runs.

    The token of the lane moves on, as when another worker takes it: who wakes up can neither renew its lease nor send.
    """
    lane_of = "SELECT id, token, lease_until FROM lane WHERE id = (SELECT lane_id FROM delivery WHERE id = ?)"
    lane = view.db.one(f"{lane_of}{view.db.dialect.for_update}", (delivery_id,))
    sending = "SELECT 1 FROM delivery WHERE id = ? AND state = 'sending'"
    if lane is None or view.db.one(f"{sending}{view.db.dialect.for_update}", (delivery_id,)) is None:
        return False
    if view.db.one("SELECT 1 FROM attempt WHERE delivery_id = ? AND token = ?", (delivery_id, lane[1])) is not None:
        if lane[2] > now:
            lease = f"it is being sent, under a lease until {instant_of(lane[2])}"
            raise errors.RuleBroken(f"Delivery {delivery_id}: {lease}; wait for its end, or for the answer.")
        view.db.run("UPDATE lane SET token = token + 1, lease_until = 0, lease_by = '' WHERE id = ?", (lane[0],))
    _cut_off(view, delivery_id, now)
    view.db.run("UPDATE delivery SET state = 'queued' WHERE id = ?", (delivery_id,))
    return True


def finish(view: View, held: Claim, outcome: Outcome, now: int) -> bool:
    """Records how the attempt ended, in the attempt, the delivery and the lane, and gives the lane back.

    When the lane has gone to another worker, only what the partner itself said (sent, error) counts: it settles a
    delivery that nothing else has settled, since sending it again cures nothing. False when the outcome only stands in
    the attempt.
    """
    return finishing(view, held, outcome, now)()


def finishing(view: View, held: Claim, outcome: Outcome, now: int) -> Callable[[], bool]:
    """`finish`, whose answer is asked for when more has been done in the transaction."""
    view.db.steady()
    retry = outcome.state == "retry"
    ready_at = outcome.retry_at if retry else now
    own = view.db.one(
        "UPDATE lane SET failures = CASE WHEN ? = 1 THEN failures + 1 ELSE 0 END, "
        "ready_at = CASE WHEN ready_at > ? THEN ready_at ELSE ? END, lease_until = 0, lease_by = '' "
        "WHERE id = ? AND token = ? RETURNING id",
        (int(retry), ready_at, ready_at, held.lane_id, held.token),
    )
    _end_attempt(view, held, outcome, outcome.state if own else "late: " + outcome.state, now)
    if own:
        changed = _settle(view, held, outcome, now)
        return lambda: bool(changed())
    settled = outcome.state in ("sent", "error") and bool(_settle(view, held, outcome, now)())
    view.woken = view.woken or settled
    return lambda: settled


# What a definite answer settles beside what is open: a delivery that is only held because nobody knew the answer, and
# one refused in another attempt, when the partner has taken it after all.
_UNKNOWN = "(state = 'held' AND error_class = 'ambiguous')"
_SETTLES = {
    "sent": f"({OPEN} OR {_UNKNOWN} OR (state = 'error' AND error_class = 'permanent'))",
    "error": f"({OPEN} OR {_UNKNOWN})",
}


def _settle(view: View, held: Claim, outcome: Outcome, now: int) -> Callable[[], int]:
    state, sent = "queued" if outcome.state == "retry" else outcome.state, outcome.state == "sent"
    return view.db.later(
        "UPDATE delivery SET state = ?, settled_at = ?, error_class = ?, error = ?, ack = ? "
        f"WHERE id = ? AND {_SETTLES.get(outcome.state, OPEN)}",
        (
            state,
            0 if state == "queued" else now,
            "" if sent else outcome.error_class,
            "" if sent else printable(outcome.text),
            outcome.ack,
            held.delivery.id,
        ),
    )


def _end_attempt(view: View, held: Claim, outcome: Outcome, told: str, now: int) -> None:
    view.db.run(
        "UPDATE attempt SET ended_at = ?, outcome = ?, error_class = ?, error = ?, ack = ? "
        "WHERE delivery_id = ? AND token = ? AND outcome IN ('', 'interrupted')",
        (now, told, outcome.error_class, printable(outcome.text), outcome.ack, held.delivery.id, held.token),
    )


def release(view: View, held: Claim) -> None:
    """Gives the lease back; nothing when it is not ours any more."""
    view.db.run("UPDATE lane SET lease_until = 0, lease_by = '' WHERE id = ? AND token = ?", (held.lane_id, held.token))
