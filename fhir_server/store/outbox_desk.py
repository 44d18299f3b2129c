"""What people and late answers do to deliveries: list, explain, confirm, retry, hold, cancel, pause.

Times are microseconds UTC.
"""

from __future__ import annotations

from dataclasses import dataclass

from fhir_server import errors
from fhir_server.store.inbox import filtered
from fhir_server.store.lanes import COLUMNS, FROM, OPEN, STUCK, Delivery, DeliveryState
from fhir_server.store.view import View, printable


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt; `outcome` '' while it runs, `late: sent` when its worker had lost the lane."""

    delivery_id: str
    n: int
    worker: str
    started_at: int
    ended_at: int
    outcome: str
    error_class: str
    error: str
    ack: bytes | None


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane with its counts; `oldest` is the creation of its oldest open delivery, 0 when none."""

    id: int
    name: str
    endpoint: str
    protocol: str
    on_stuck: str
    ready_at: int
    lease_until: int
    lease_by: str
    paused: bool
    paused_note: str
    failures: int
    open: int
    stuck: int
    oldest: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The facts behind "why is it waiting": the lane, how many go first, and the stuck delivery in the way."""

    delivery: Delivery
    lane: Lane
    ahead: int
    blocked_by: Delivery | None


@dataclass(frozen=True, slots=True)
class OutboxFilter:
    """All conditions hold together; '' and 0 mean any. `before` is the last row's (created_at, id)."""

    state: str = ""
    lane: str = ""
    case_key: str = ""
    document: str = ""
    leg_state: str = ""
    key: tuple[str, str] = ("", "")
    since: int = 0
    until: int = 0
    before: tuple[int, str] = (0, "")
    limit: int = 50


def listed(view: View, wanted: OutboxFilter) -> list[Delivery]:
    """Newest first."""
    tests: list[tuple[str, object]] = [
        ("d.state = ?", wanted.state),
        ("l.name = ?", wanted.lane),
        ("d.case_key <> '' AND d.case_key = ?", wanted.case_key),
        ("d.document = ?", wanted.document),
        ("d.leg_state = ?", wanted.leg_state),
        ("d.created_at >= ?", wanted.since),
        ("d.created_at < ?", wanted.until),
    ]
    if wanted.before[0]:
        tests.append(("d.created_at <= ?", wanted.before[0]))
        tests.append((f"(d.created_at < {int(wanted.before[0])} OR d.id < ?)", wanted.before[1]))
    select = f"SELECT {COLUMNS} {FROM}"
    rows = view.db.rows(
        *filtered(select, "d.id", "out", tests, wanted.key, wanted.limit, "d.created_at DESC, d.id DESC")
    )
    return [Delivery(*row) for row in rows]


def attempts(view: View, delivery_id: str) -> list[Attempt]:
    rows = view.db.rows(
        "SELECT delivery_id, n, worker, started_at, ended_at, outcome, error_class, error, ack FROM attempt "
        "WHERE delivery_id = ? ORDER BY n",
        (delivery_id,),
    )
    return [Attempt(*row) for row in rows]


def lanes(view: View, name: str = "") -> list[Lane]:
    """Every lane by name, or the one asked for."""
    where, params = (" WHERE l.name = ?", (name,)) if name else ("", ())
    rows = view.db.rows(
        "SELECT l.id, l.name, l.endpoint, l.protocol, l.on_stuck, l.ready_at, l.lease_until, l.lease_by, l.paused, "
        "l.paused_note, l.failures, "
        f"(SELECT count(*) FROM delivery d WHERE d.lane_id = l.id AND d.{OPEN}), "
        f"(SELECT count(*) FROM delivery d WHERE d.lane_id = l.id AND d.{STUCK}), "
        f"(SELECT coalesce(min(d.created_at), 0) FROM delivery d WHERE d.lane_id = l.id AND d.{OPEN}) "
        f"FROM lane l{where} ORDER BY l.name",
        params,
    )
    return [Lane(*(*row[:8], bool(row[8]), *row[9:])) for row in rows]


def waiting(view: View, delivery_id: str) -> Waiting:
    """Why a delivery has not left."""
    row = view.db.one(f"SELECT {COLUMNS} {FROM} WHERE d.id = ?", (delivery_id,))
    if row is None:
        raise errors.NotFound(f"The outbox has no delivery {delivery_id}.")
    delivery = Delivery(*row)
    lane = lanes(view, delivery.lane)[0]
    ahead = view.db.one(
        f"SELECT count(*) FROM delivery WHERE lane_id = ? AND {OPEN} AND lane_seq < ?", (lane.id, delivery.lane_seq)
    )
    block = view.db.one(
        f"SELECT {COLUMNS} {FROM} WHERE d.lane_id = ? AND d.{STUCK} AND d.lane_seq < ? "
        "AND (l.on_stuck = 'block' OR (d.document <> '' AND d.document = ?) OR (d.patient <> '' AND d.patient = ?)) "
        "ORDER BY d.lane_seq LIMIT 1",
        (lane.id, delivery.lane_seq, delivery.document, delivery.patient),
    )
    return Waiting(delivery, lane, int(ahead[0]) if ahead else 0, None if block is None else Delivery(*block))


def confirm(view: View, delivery_id: str, leg_state: str, text: str, inbox_id: str = "") -> bool:
    """Settles the second leg (business acknowledgement, DSN); False when no such delivery or it has no second leg.

    A confirmed leg stays confirmed: a late contrary answer is the caller's to show, from its inbox row.
    """
    return bool(
        view.db.count(
            "UPDATE delivery SET leg_state = ?, leg_text = ?, leg_at = ?, leg_inbox = ? "
            "WHERE id = ? AND second_leg <> 'none' AND leg_state <> 'confirmed'",
            (leg_state, printable(text), view.now(), inbox_id, delivery_id),
        )
    )


_FROM_STATES: dict[str, tuple[tuple[DeliveryState, ...], str]] = {
    "queued": (("held", "error"), "only a held or failed delivery can be sent again; replay makes a new one"),
    "held": (("queued", "error"), "only a delivery that waits or failed can be held"),
    "cancelled": (("queued", "held", "error"), "only a delivery that has not left can be cancelled"),
}


def retry(view: View, delivery_id: str) -> None:
    """Sends a held or failed delivery again: same bytes, same place in its lane, at once."""
    lane_id = _move(view, delivery_id, "queued", "")
    view.db.run("UPDATE lane SET ready_at = 0, failures = 0 WHERE id = ?", (lane_id,))
    view.woken = True


def hold(view: View, delivery_id: str, reason: str) -> None:
    """Keeps a delivery back for a person, with the reason shown."""
    _move(view, delivery_id, "held", reason)


def cancel(view: View, delivery_id: str, reason: str) -> None:
    """Gives a delivery up for good; those behind it go on."""
    _move(view, delivery_id, "cancelled", reason)
    view.woken = True


def _move(view: View, delivery_id: str, state: str, reason: str) -> int:
    allowed, rule = _FROM_STATES[state]
    row = view.db.one(f"SELECT lane_id, state FROM delivery WHERE id = ?{view.db.dialect.for_update}", (delivery_id,))
    if row is None:
        raise errors.NotFound(f"The outbox has no delivery {delivery_id}.")
    if row[1] not in allowed:
        raise errors.RuleBroken(f"Delivery {delivery_id} is {row[1]}: {rule}.")
    view.db.run(
        "UPDATE delivery SET state = ?, error_class = ?, error = ?, settled_at = ? WHERE id = ?",
        (state, "" if state == "queued" else "person", printable(reason), 0 if state == "queued" else view.now(),
         delivery_id),
    )  # fmt: skip
    return int(row[0])


def pause(view: View, lane: str, note: str) -> None:
    """Stops a lane before its next delivery."""
    _set_lane(view, "UPDATE lane SET paused = 1, paused_note = ? WHERE name = ?", (printable(note), lane), lane)


def resume(view: View, lane: str) -> None:
    """Lets a lane go on, at once."""
    _set_lane(view, "UPDATE lane SET paused = 0, paused_note = '', ready_at = 0 WHERE name = ?", (lane,), lane)
    view.woken = True


def _set_lane(view: View, sql: str, params: tuple[object, ...], lane: str) -> None:
    if not view.db.count(sql, params):
        raise errors.NotFound(f"There is no lane {lane}.")


def counts(view: View) -> dict[tuple[str, str], int]:
    """Deliveries by (lane, state)."""
    rows = view.db.rows(f"SELECT l.name, d.state, count(*) {FROM} GROUP BY l.name, d.state")
    return {(row[0], row[1]): int(row[2]) for row in rows}
