"""What people and late answers do to deliveries and destinations: list, explain, confirm, retry, hold, release, replay,
cancel, pause; and the numbers that are watched.

Times are microseconds UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fhir_server import errors
from fhir_server.store.inbox import filtered, keys_of
from fhir_server.store.lanes import (
    COLUMNS,
    FROM,
    OPEN,
    STUCK,
    Delivery,
    DeliveryState,
    NewDelivery,
    OnSilence,
    OnStuck,
    frozen_of,
    get,
    send,
)
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
    token: int


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
    on_silence: str
    gap: int
    pull: bool
    answer_within: int
    keep_open: int
    open: int
    stuck: int
    oldest: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What a destination wants; None leaves a value as it is. `on_stuck`: a held delivery blocks its lane or lets
    others pass. `on_silence`: what was sent and not answered is sent again or held, '' = as its transport does.
    `per_second`: how many deliveries may begin in a second, 0 = no limit. `answer_seconds`: how long it has to answer,
    0 = as the installation says. `keep_open_seconds`: how long an idle connection to it is kept, 0 = one a message."""

    on_stuck: OnStuck | None = None
    on_silence: OnSilence | None = None
    per_second: float | None = None
    answer_seconds: float | None = None
    keep_open_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """The latest attempts of a lane: how many ended, and how many of them not with "sent"."""

    lane: str
    ended: int
    failed: int


@dataclass(frozen=True, slots=True)
class WaitingLeg:
    """Deliveries handed over and not confirmed: zam or dsn, how many, and when the oldest was made."""

    kind: str
    count: int
    oldest: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The facts behind "why is it waiting": the lane, how many go first, and the stuck delivery in the way; of one
    that is being sent, whether the lease it was begun under is over."""

    delivery: Delivery
    lane: Lane
    ahead: int
    blocked_by: Delivery | None
    unanswered: bool = False


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
        "SELECT delivery_id, n, worker, started_at, ended_at, outcome, error_class, error, ack, token "
        "FROM attempt "
        "WHERE delivery_id = ? ORDER BY n",
        (delivery_id,),
    )
    return [Attempt(*row) for row in rows]


def lanes(view: View, name: str = "") -> list[Lane]:
    """Every lane by name, or the one asked for."""
    where, params = (" WHERE l.name = ?", (name,)) if name else ("", ())
    rows = view.db.rows(
        "SELECT l.id, l.name, l.endpoint, l.protocol, l.on_stuck, l.ready_at, l.lease_until, l.lease_by, l.paused, "
        "l.paused_note, l.failures, l.on_silence, l.gap, l.pull, l.answer_within, l.keep_open, "
        f"(SELECT count(*) FROM delivery d WHERE d.lane_id = l.id AND d.{OPEN}), "
        f"(SELECT count(*) FROM delivery d WHERE d.lane_id = l.id AND d.{STUCK}), "
        f"(SELECT coalesce(min(d.created_at), 0) FROM delivery d WHERE d.lane_id = l.id AND d.{OPEN}) "
        f"FROM lane l{where} ORDER BY l.name",
        params,
    )
    return [Lane(*(*row[:8], bool(row[8]), *row[9:13], bool(row[13]), *row[14:])) for row in rows]


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
    running = view.db.one(
        "SELECT 1 FROM lane l JOIN attempt a ON a.token = l.token WHERE l.id = ? AND l.lease_until > ? "
        "AND a.delivery_id = ?",
        (lane.id, view.now(), delivery_id),
    )
    return Waiting(
        delivery,
        lane,
        int(ahead[0]) if ahead else 0,
        None if block is None else Delivery(*block),
        delivery.state == "sending" and running is None,
    )


_LONGEST_LEG = 500  # characters of `leg_text`


def confirm(view: View, delivery_id: str, leg_state: str, text: str, inbox_id: str = "") -> bool:
    """Settles the second leg (business acknowledgement, DSN); False when no such delivery or it has no second leg.

    A confirmed leg stays confirmed: a late contrary answer is the caller's to show, from its inbox row. What was said
    before, a refusal or a remark, stays behind the text, as far as there is room.
    """
    said = printable(text)[:_LONGEST_LEG]
    return bool(
        view.db.count(
            "UPDATE delivery SET leg_state = ?, leg_text = CASE WHEN leg_text <> '' "
            f"THEN substr(? || '; ' || leg_text, 1, {_LONGEST_LEG}) ELSE ? END, leg_at = ?, leg_inbox = ? "
            "WHERE id = ? AND second_leg <> 'none' AND leg_state <> 'confirmed'",
            (leg_state, said, said, view.now(), inbox_id, delivery_id),
        )
    )


def remark(view: View, delivery_id: str, text: str) -> None:
    """Puts a text behind what the second leg says, and changes nothing else: a further answer beside that which
    settles. What there is no room for is cut; the answer itself stands in its inbox row."""
    said = printable(text)[:_LONGEST_LEG]
    view.db.count(
        "UPDATE delivery SET leg_text = CASE WHEN leg_text = '' THEN ? "
        f"ELSE substr(leg_text || '; ' || ?, 1, {_LONGEST_LEG}) END "
        "WHERE id = ? AND second_leg <> 'none' AND length(leg_text) < ?",
        (said, said, delivery_id, _LONGEST_LEG),
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


def lock_lanes(view: View, names: Iterable[str]) -> None:
    """Holds lanes to the end of the transaction, in one order for all and before any of their deliveries: as a worker
    does, who takes the lane first."""
    for name in sorted(set(names)):
        view.db.one(f"SELECT id FROM lane WHERE name = ?{view.db.dialect.for_update}", (name,))


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


def release(view: View, delivery_id: str) -> str:
    """Lets a delivery go that was overtaken by events, as it is: the reason for which it was held counts no more for
    it, beside those that were set aside before (another one does). The reason."""
    found = get(view, delivery_id)
    if found is None:
        raise errors.NotFound(f"The outbox has no delivery {delivery_id}.")
    if found.state != "held":
        raise errors.RuleBroken(f"Delivery {delivery_id} is {found.state}: only a held delivery is released.")
    if found.error_class == "overtaken" and found.error not in found.set_aside:
        cleared = "\n".join((*found.set_aside, found.error))
        view.db.run("UPDATE delivery SET cleared = ? WHERE id = ?", (cleared, delivery_id))
    retry(view, delivery_id)
    return found.error


def replay(view: View, delivery_id: str) -> str:
    """Sends the same bytes to the same destination once more, behind what waits there: a new delivery that names the
    first as its parent, and awaits no second leg (what the partner says names the first). The new id."""
    first = get(view, delivery_id)
    if first is None:
        raise errors.NotFound(f"The outbox has no delivery {delivery_id}.")
    if first.state not in ("sent", "cancelled"):
        leaves = "it leaves anyway" if first.state in ("queued", "sending") else "retry or release sends these bytes"
        raise errors.RuleBroken(f"Delivery {delivery_id} is {first.state}: {leaves}.")
    keys = [key for key in keys_of(view, "out", delivery_id) if key[0] != "msh-10"]
    keys.sort(key=lambda key: key != ("ins", first.ins))  # of two, the one in the bytes is that of the delivery
    payload, kept = frozen_of(view, delivery_id)
    again = NewDelivery(
        lane=first.lane,
        endpoint=first.endpoint,
        protocol=first.protocol,
        payload=payload,
        media_type=first.media_type,
        title=first.title,
        keys=tuple(keys),
        patient=first.patient,
        case=first.case_key,
        document=first.document,
        parent=delivery_id,
        kept=kept,
        left_out=tuple(first.left_out.splitlines()),
    )
    return send(view, again)


def replays(view: View, delivery_id: str) -> list[str]:
    """The deliveries that replay or replace this one, oldest first."""
    rows = view.db.rows(
        "SELECT id FROM delivery WHERE parent <> '' AND parent = ? ORDER BY created_at, id", (delivery_id,)
    )
    return [row[0] for row in rows]


# What a policy may ask for: the least and the most beside 0. Under a second for an answer would doubt every delivery.
_BOUNDS: Mapping[str, tuple[float, float, str]] = {
    "per_second": (0, 1_000, "between 0 (no limit) and 1000 deliveries a second"),
    "answer_seconds": (1, 600, "0 (send_timeout_seconds) or 1 to 600 seconds"),
    "keep_open_seconds": (0, 3_600, "between 0 (a connection a message) and 3600 seconds"),
}
# What cannot be wanted of a destination, by the scheme of its address, and why.
_IDLE: Mapping[str, Mapping[str, str]] = {
    "pull": {
        "answer_seconds": "its partner fetches and says for how long (lease_seconds): nobody waits for an answer",
        "keep_open_seconds": "its partner fetches: there is no connection to keep",
    },
    "mssante": {"keep_open_seconds": "a mail has a session of its own: there is no connection to keep"},
}


def set_policy(view: View, lane: str, policy: Policy) -> None:
    """Changes what a destination wants; it holds from the next delivery on. Raises Invalid for what means nothing there
    (0, which means nothing everywhere, may be said)."""
    row = view.db.one(f"SELECT endpoint FROM lane WHERE name = ?{view.db.dialect.for_update}", (lane,))
    for name, words in _IDLE.get(str(row[0]).partition(":")[0] if row else "", {}).items():
        if getattr(policy, name):
            raise errors.Invalid(f"{name} of {lane}: {words}", expression=name)
    for name, (least, most, words) in _BOUNDS.items():
        value = getattr(policy, name)
        if value is not None and value != 0 and not least <= value <= most:
            raise errors.Invalid(words, expression=name)
    gap = None if policy.per_second is None else int(1_000_000 / policy.per_second) if policy.per_second else 0
    _set_lane(
        view,
        "UPDATE lane SET on_stuck = coalesce(?, on_stuck), on_silence = coalesce(?, on_silence), "
        "gap = coalesce(?, gap), answer_within = coalesce(?, answer_within), keep_open = coalesce(?, keep_open) "
        "WHERE name = ?",
        (policy.on_stuck, policy.on_silence, gap, _micros(policy.answer_seconds), _micros(policy.keep_open_seconds),
         lane),
        lane,
    )  # fmt: skip
    view.woken = True


def _micros(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1_000_000)


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


def rates(view: View, last: int = 2_000) -> list[Rate]:
    """How the latest attempts of the whole outbox ended, lane by lane. The newest is asked for first: PostgreSQL takes
    a limit it does not know for a third of the table, and reads all of it."""
    newest = view.db.one("SELECT coalesce(max(seq), 0) FROM attempt")
    rows = view.db.rows(
        "SELECT l.name, count(*), sum(CASE WHEN a.outcome IN ('sent', 'late: sent') THEN 0 ELSE 1 END) "
        "FROM attempt a JOIN delivery d ON d.id = a.delivery_id JOIN lane l ON l.id = d.lane_id "
        "WHERE a.seq > ? AND a.outcome <> '' GROUP BY l.name ORDER BY l.name",
        ((newest[0] if newest else 0) - last,),
    )
    return [Rate(row[0], int(row[1]), int(row[2])) for row in rows]


def waiting_legs(view: View) -> list[WaitingLeg]:
    """The second legs nobody has settled. The state is spelled so that no planner walks the index of all that was ever
    sent: the few that wait have an index of their own."""
    rows = view.db.rows(
        "SELECT second_leg, count(*), min(created_at) FROM delivery "
        "WHERE leg_state = 'waiting' AND state || '' = 'sent' GROUP BY second_leg ORDER BY second_leg"
    )
    return [WaitingLeg(row[0], int(row[1]), int(row[2])) for row in rows]


def totals(view: View) -> tuple[int, int, int]:
    """How many messages were received, deliveries made and attempts begun, ever: no row is counted."""
    row = view.db.one(
        "SELECT (SELECT coalesce(max(seq), 0) FROM inbox), (SELECT coalesce(sum(next_seq), 0) FROM lane), "
        "(SELECT coalesce(max(seq), 0) FROM attempt)"
    )
    return (0, 0, 0) if row is None else (int(row[0]), int(row[1]), int(row[2]))
