"""What an operator asks of inbox, outbox and destinations, and what monitoring asks. One table for all faces.

Each operation takes the store and plain arguments and returns JSON-ready values; times are FHIR instants. What needs
another room is handed it: `inbox_replay` how to take a message in, `outbox_replay` and `outbox_regenerate` how the
workflow looks at resources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from fhir_server import watch
from fhir_server.context import SYSTEM, instant
from fhir_server.errors import Fault, Invalid, NotFound, PasserelleError, RuleBroken
from fhir_server.search import index
from fhir_server.store import inbox
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow
from fhir_server.store.instances import Study
from fhir_server.store.lanes import Delivery, NewDelivery, OnSilence, OnStuck
from fhir_server.store.outbox_desk import Attempt, Lane, OutboxFilter, Policy, Waiting
from fhir_server.store.resources import Stored, prepare
from fhir_server.store.session import Snapshot, Tx
from fhir_server.teleexpertise import documents, notes, order_record, orders, overtaken
from fhir_server.teleexpertise.consequences import Context
from fhir_server.teleexpertise.scopes import scopes

Args = Mapping[str, str]
Json = Any
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The business keys every list has as columns, and can be narrowed by.
KEYS = ("ins", "ipp", "iep", "accession", "rpps", "finess", "msh-10")
_SHOWN = 4000


def inbox_list(store: Store, args: Args) -> Json:
    """Messages received, newest first; `state`, `channel`, a business key by its name (`ins`...) or any (`key`), and
    `limit` narrow."""
    wanted = InboxFilter(
        state=args.get("state", ""), channel=args.get("channel", ""), key=_key(args), limit=limit_of(args)
    )
    with store.read(SYSTEM) as snapshot:
        return _with_keys(snapshot, "in", snapshot.messages(wanted))


def inbox_show(store: Store, args: Args) -> Json:
    """One message with its original bytes (as text, cut for the screen), its answer and its keys."""
    with store.read(SYSTEM) as snapshot:
        row = _message(snapshot, args)
        shown = _plain(row)
        shown["keys"] = [list(pair) for pair in snapshot.message_keys(row.id)]
        shown["content"] = _text(snapshot.message_raw(row.id))
    return shown


def inbox_sources(store: Store, args: Args, explain: Callable[[InboxRow, bytes], Json]) -> Json:
    """Where each element that a message became came from; `explain(row, raw)` is the wire's own."""
    with store.read(SYSTEM) as snapshot:
        row = _message(snapshot, args)
        return explain(row, snapshot.message_raw(row.id))


def outbox_list(store: Store, args: Args) -> Json:
    """Deliveries, newest first; `state`, `lane`, a business key by its name (`ins`...) or any (`key`), and `limit`
    narrow."""
    wanted = OutboxFilter(state=args.get("state", ""), lane=args.get("lane", ""), key=_key(args), limit=limit_of(args))
    with store.read(SYSTEM) as snapshot:
        return _with_keys(snapshot, "out", snapshot.deliveries(wanted))


def outbox_show(store: Store, args: Args) -> Json:
    """One delivery with its attempts, its bytes (cut for the screen) and why it waits."""
    with store.read(SYSTEM) as snapshot:
        waiting = snapshot.waiting(_id(args))
        shown = _plain(waiting.delivery)
        shown["attempts"] = [_plain(attempt) for attempt in snapshot.attempts(waiting.delivery.id)]
        shown["replays"] = snapshot.replays(waiting.delivery.id)
        shown["content"] = _content(snapshot, waiting.delivery.id)
        later = overtaken.later(snapshot, waiting.delivery) if waiting.delivery.error_class == "overtaken" else []
        shown["why"] = why(waiting, [one.id for one in later])
        task = snapshot.get("Task", waiting.delivery.case_key.partition("/")[2])
        shown["not_reached"] = notes.not_reached(task.resource()) if task and not task.deleted else []
    return shown


def _content(snapshot: Snapshot, delivery_id: str) -> str:
    """The bytes as text; of those that cannot be read, or are not those that were frozen, why."""
    try:
        return _text(snapshot.payload(delivery_id))
    except PasserelleError as fault:
        return fault.diagnostics


def why(waiting: Waiting, later: Sequence[str] = ()) -> str:
    """Why a delivery has not left, in words; `later` are those of the same report that follow it."""
    delivery, lane = waiting.delivery, waiting.lane
    if delivery.state == "sent":
        legs = {"": "", "waiting": "; its confirmation is awaited", "confirmed": "; confirmed", "refused": "; refused"}
        return "handed over" + legs.get(delivery.leg_state, f"; {delivery.leg_state}")
    if delivery.state == "sending":
        return f"it is being sent, since {_when(delivery.first_sent_at)} for the first time"
    if delivery.state == "held" and delivery.error_class == "overtaken" and later:
        return f"held: {delivery.error}; {later[0]} follows and tells what stands now: cancel this one"
    if delivery.state == "held" and delivery.error_class == "overtaken":
        return f"held: {delivery.error}; release it as it is, regenerate it, or cancel it"
    if delivery.state in ("error", "held", "cancelled"):
        return f"{delivery.state}: {delivery.error}"
    if waiting.blocked_by is not None:
        return f"waits behind {waiting.blocked_by.id}, which is {waiting.blocked_by.state}: {waiting.blocked_by.error}"
    if lane.paused:
        return f"its lane is paused: {lane.paused_note}"
    if waiting.ahead:
        return f"{waiting.ahead} deliveries of its lane go first"
    if lane.failures:
        return f"{lane.failures} attempts failed ({delivery.error}); next attempt {_when(lane.ready_at)}"
    if lane.pull:
        return "it waits to be fetched by its partner"
    if lane.gap:
        return f"it is next; its destination takes {1_000_000 / lane.gap:g} a second"
    return "it is next"


def outbox_retry(store: Store, args: Args) -> Json:
    """Send a held or failed delivery again: the same bytes, at once."""

    def work(tx: Tx) -> None:
        _may_leave(tx, _id(args))
        tx.retry(_id(args))

    store.write(SYSTEM, work)
    return {"id": _id(args), "state": "queued"}


def outbox_hold(store: Store, args: Args) -> Json:
    """Keep a delivery back for a person."""
    store.write(SYSTEM, lambda tx: tx.hold(_id(args), args.get("reason", "held by an operator")))
    return {"id": _id(args), "state": "held"}


def outbox_cancel(store: Store, args: Args) -> Json:
    """Give a delivery up for good."""

    def work(tx: Tx) -> None:
        found = tx.delivery(_id(args))
        if found is not None:
            order_record.hold(tx, found)
        tx.cancel(_id(args), args.get("reason", "cancelled by an operator"))
        if found is not None:
            order_record.note(tx, found)

    store.write(SYSTEM, work)
    return {"id": _id(args), "state": "cancelled"}


def outbox_release(store: Store, args: Args) -> Json:
    """Let a held delivery go as it is, in spite of the reason it was held for; not a report that another delivery hands
    over as a first document by now, nor one that was withdrawn and that nothing behind it takes back."""

    def work(tx: Tx) -> str:
        _may_leave(tx, _id(args))
        return tx.release(_id(args))

    return {"id": _id(args), "state": "queued", "set_aside": store.write(SYSTEM, work)}


def _may_leave(tx: Tx, delivery_id: str) -> None:
    """Whether a delivery that was held may go, decided once for all who decide about its report."""
    found = tx.delivery(delivery_id)
    if found is None:
        return
    overtaken.hold(tx, found)
    if why_not := overtaken.unreleasable(tx, found):
        raise RuleBroken(f"Delivery {delivery_id} is {found.state}: {why_not}.")


def outbox_replay(store: Store, args: Args, context: Callable[[Snapshot], Context]) -> Json:
    """Send the same bytes to the same destination once more, as a new delivery; not those of a report that was
    withdrawn since, or that another delivery hands over as a first document, nor an order that was overtaken or whose
    addressee is not asked any more. `context` is that of `outbox_regenerate`."""

    def work(tx: Tx) -> str:
        found = tx.delivery(_id(args))
        if found is not None:
            order_record.hold(tx, found)
            overtaken.hold(tx, found)
            if why_not := overtaken.unrepeatable(tx, found) or orders.past(tx, found, context(tx)):
                raise RuleBroken(f"Delivery {found.id} is not sent again: {why_not}.")
        again = tx.replay(_id(args))
        if found is not None:
            order_record.note(tx, found, repeated=True)
        return again

    return {"id": store.write(SYSTEM, work), "parent": _id(args), "state": "queued"}


def outbox_regenerate(store: Store, args: Args, context: Callable[[Snapshot], Context]) -> Json:
    """Render a held or failed delivery again from what is stored now: a new delivery; the old one is cancelled. It may
    be a report, the answer to an order, or what an agenda is told.

    `context` makes the workflow's view of a snapshot. Raises RuleBroken, which says why, when there is nothing to
    render it from, when that is not so any more, or when it no longer goes to that destination.
    """
    with store.read(SYSTEM) as snapshot:
        old = snapshot.delivery(_id(args))
        if old is None:
            raise NotFound(f"the outbox has no delivery {_id(args)}; `passerelle outbox list` shows them")
        _unfollowed(snapshot, old)
        again = _report_again if old.document else _message_again
        new, sources, records = again(snapshot, old, context(snapshot))
    new = store.keep(replace(new, parent=old.id))
    return store.write(SYSTEM, lambda tx: _regenerated(tx, old, new, sources, records, context))


def _place(snapshot: Snapshot, delivery: Delivery) -> int:
    """Where it stood in its lane when it was made for the first time."""
    while delivery.parent and (before := snapshot.delivery(delivery.parent)) is not None:
        delivery = before
    return delivery.lane_seq


Again = tuple[NewDelivery, list[Stored], Sequence[dict[str, Any]]]
"""A delivery made again, what it was made from, and the documents to store with it."""


def _report_again(snapshot: Snapshot, old: Delivery, ctx: Context) -> Again:
    sources = [_current(snapshot, reference) for reference in (old.document, old.case_key, old.patient)]
    rendered = documents.again(sources[0].resource(), sources[1].id, ctx, old.lane)
    new = next(iter(rendered.deliveries), None)
    if new is None:
        raise RuleBroken(f"the report does not go to {old.title or old.lane} any more; cancel this delivery")
    return new, sources, rendered.resources


def _message_again(snapshot: Snapshot, old: Delivery, ctx: Context) -> Again:
    request = _current(snapshot, old.case_key)
    _still_so(snapshot, old, ctx)
    try:
        frozen = snapshot.payload(old.id)
    except Fault as damaged:
        raise RuleBroken(f"it cannot be made again: {damaged.diagnostics}, or cancel it") from damaged
    new, made_from = orders.again(frozen, request.id, ctx, old.lane)
    return new, [_current(snapshot, reference) for reference in made_from], ()


def _still_so(snapshot: Snapshot, old: Delivery, ctx: Context) -> None:
    """Raises RuleBroken for an order that says what is true of the past only."""
    if why_not := orders.past(snapshot, old, ctx):
        raise RuleBroken(f"it cannot be made again: {why_not}; release it as it is, or cancel it")


def _unfollowed(snapshot: Snapshot, old: Delivery) -> None:
    """What is made again goes to the end of its lane: a later word of the same report has been said instead, and what
    waits there about the same patient must not come before it. Raises RuleBroken."""
    if later := [one.id for one in overtaken.later(snapshot, old)]:
        text = f"{', '.join(later[:5])} of the same report follows for this addressee and tells what stands now"
        raise RuleBroken(f"{text}: cancel this one (and regenerate the last, if need be)")
    waiting = snapshot.deliveries(
        OutboxFilter(state="queued", lane=old.lane, key=("patient", old.patient), limit=1_000)
    )
    place = _place(snapshot, old)
    behind = [one.id for one in reversed(waiting) if one.lane_seq > old.lane_seq and _place(snapshot, one) > place]
    if behind:
        text = f"{', '.join(behind[:5])} about the same patient wait behind it and would go first"
        raise RuleBroken(f"{text}: hold them, regenerate this one, then them in their order")


def _current(snapshot: Snapshot, reference: str) -> Stored:
    kind, _, key = reference.partition("/")
    stored = snapshot.get(kind, key) if key else None
    if stored is None or stored.deleted:
        raise RuleBroken(f"{reference or 'what it was made from'} is not stored (any more): it cannot be made again")
    return stored


def _regenerated(
    tx: Tx,
    old: Delivery,
    new: NewDelivery,
    sources: Sequence[Stored],
    records: Sequence[dict[str, Any]],
    context: Callable[[Snapshot], Context],
) -> Json:
    for stored in sources:
        tx.expect(stored.type, stored.id, stored.version)
    tx.lock_lanes([old.lane, new.lane])
    now = tx.delivery(old.id)
    if now is None or now.state not in ("held", "error"):
        text = "is gone" if now is None else f"is {now.state}"
        raise RuleBroken(f"delivery {old.id} {text}: only a held or failed one is regenerated")
    _unfollowed(tx, old)
    _still_so(tx, old, context(tx))
    for record in records:
        if tx.get(record["resourceType"], record["id"]) is None:
            rows = index.rows(record)
            rows.scopes = scopes(record)
            tx.create(prepare(record), rows)
    tx.send(new)
    tx.cancel(old.id, f"regenerated as {new.id}; it was {now.state}: {now.error}")
    return {"id": new.id, "parent": old.id, "state": "queued"}


def inbox_replay(store: Store, args: Args, take_in: Callable[[InboxRow, bytes], bytes]) -> Json:
    """Process a message that was not taken in once more, from its original bytes.

    `take_in(row, raw)` is the wire's own way in, and returns the acknowledgement.
    """
    with store.read(SYSTEM) as snapshot:
        row = _message(snapshot, args)
        raw = snapshot.message_raw(row.id)
    store.write(SYSTEM, lambda tx: tx.reopen(row.id))
    answer = take_in(row, raw)
    with store.read(SYSTEM) as snapshot:
        after = snapshot.message(row.id)
    return {"id": row.id, "state": after.state if after else "", "ack": _text(answer)}


def inbox_refuse(store: Store, args: Args) -> Json:
    """Say that a message in error or in conflict will not be taken in; it raises no alert, and goes in time."""
    with store.read(SYSTEM) as snapshot:
        row = _message(snapshot, args)
    reason = f"refused: {args.get('reason', 'by an operator')}"
    store.write(SYSTEM, lambda tx: inbox.refuse(tx.view, row.id, reason))
    return {"id": row.id, "state": "refused"}


# --- destinations ----------------------------------------------------------------------------------------------------


def lane_list(store: Store, args: Args) -> Json:
    """Every destination with its policy and its counts, or the one named `lane`."""
    with store.read(SYSTEM) as snapshot:
        return [_lane(lane) for lane in snapshot.lanes(args.get("lane", ""))]


def lane_pause(store: Store, args: Args) -> Json:
    """Stop a destination before its next delivery; `reason` is shown to whoever asks why."""
    store.write(SYSTEM, lambda tx: tx.pause(_lane_name(args), args.get("reason", "maintenance")))
    return {"lane": _lane_name(args), "paused": True}


def lane_resume(store: Store, args: Args) -> Json:
    """Let a paused destination go on, at once."""
    store.write(SYSTEM, lambda tx: tx.resume(_lane_name(args)))
    return {"lane": _lane_name(args), "paused": False}


def lane_policy(store: Store, args: Args) -> Json:
    """Change what a destination wants: `on_stuck` block|skip, `on_silence` resend|hold|default, `per_second` (0: no
    limit), `answer_seconds` (0: the installation's), `keep_open_seconds` (0: a connection a message). What is not named
    stays."""
    silence = args.get("on_silence")
    policy = Policy(
        on_stuck=_choice(args.get("on_stuck"), "on_stuck", get_args(OnStuck)),
        on_silence=_choice("" if silence == "default" else silence, "on_silence", get_args(OnSilence)),
        per_second=_number(args, "per_second"),
        answer_seconds=_number(args, "answer_seconds"),
        keep_open_seconds=_number(args, "keep_open_seconds"),
    )
    store.write(SYSTEM, lambda tx: tx.set_policy(_lane_name(args), policy))
    return lane_list(store, args)[0]


def _choice(value: str | None, name: str, allowed: Sequence[str]) -> Any:
    if value is not None and value not in allowed:
        raise Invalid(f"{name} is one of {', '.join(filter(None, allowed))}, not {value}", expression=name, http=400)
    return value


def _number(args: Args, name: str, default: float | None = None) -> float | None:
    if name not in args:
        return default
    try:
        return float(args[name])
    except ValueError as error:
        raise Invalid(f"{name} must be a number, not {args[name]}", expression=name, http=400) from error


def _lane_name(args: Args) -> str:
    if not args.get("lane"):
        raise Invalid("name the lane; `passerelle lane list` shows them", expression="lane", http=400)
    return args["lane"]


def _lane(lane: Lane) -> dict[str, Any]:
    shown = _plain(lane)
    shown["oldest"] = _when(lane.oldest)
    shown["per_second"] = 1_000_000 / lane.gap if lane.gap else 0
    shown["answer_seconds"] = shown.pop("answer_within") / 1_000_000
    shown["keep_open_seconds"] = shown.pop("keep_open") / 1_000_000
    return shown


def metrics(store: Store, args: Args) -> Json:
    """What `/metrics` shows, as data; `name` narrows."""
    found = [one for one in watch.metrics(store) if args.get("name", "") in one.name]
    return [{"name": one.name, "labels": dict(one.labels), "value": one.value} for one in found]


def trace(store: Store, args: Args) -> Json:
    """The story of one téléexpertise (ServiceRequest id) in order of time."""
    key = _id(args).removeprefix("ServiceRequest/")
    with store.read(SYSTEM) as snapshot:
        if snapshot.get("ServiceRequest", key) is None:
            raise NotFound(f"no ServiceRequest {key} is known here; search /fhir/ServiceRequest")
        return _story(snapshot, key)


def _story(snapshot: Snapshot, key: str) -> Json:
    """The case's own events, and the messages that brought its patient."""
    events = snapshot.case(f"ServiceRequest/{key}")
    stored = snapshot.get("ServiceRequest", key)
    patient = stored.resource().get("subject", {}).get("reference", "") if stored and not stored.deleted else ""
    told = {event.record.id for event in events if isinstance(event.record, InboxRow)}
    before = snapshot.messages(InboxFilter(key=("patient", patient), limit=100)) if patient else []
    lines = [(event.at, event.kind, _line(event.record), event.source) for event in events if event.kind != "audit"]
    lines += [
        (row.received_at, "message", _line(row), f"{row.channel} {row.peer}") for row in before if row.id not in told
    ]
    return [
        {"at": _when(at), "kind": kind, "text": text, "source": source}
        for at, kind, text, source in sorted(lines, key=lambda line: line[0])
    ]


def _line(record: Any) -> str:
    """One record of the story in words."""
    match record:
        case InboxRow():
            settles = (
                f" ({record.note})" if record.note and record.message_type.startswith(("ZAM", "dsn", "mdn")) else ""
            )
            return f"received {record.message_type} {record.control_id} from {record.sender}: {record.state}{settles}"
        case Stored():
            return f"{record.type}/{record.id} version {record.version}{_status(record)}"
        case Study():
            return (
                f"study {record.study_uid}: {record.instances} object(s), {record.match_state} {record.imaging_study}"
            )
        case Delivery():
            leg = (
                f"; second leg {record.leg_state} ({record.leg_text})"
                if record.leg_text or record.leg_state not in ("", "waiting")
                else ""
            )
            return f"delivery {record.id} to {record.title} ({record.protocol}): {record.state}{leg}"
        case Attempt():
            return (
                f"attempt {record.n} of {record.delivery_id}: {record.outcome or 'under way'} {record.error}".rstrip()
            )
    return str(record)


def _split(resource: Mapping[str, Any]) -> str:
    """Where an active request stands. The address of the extension is a setting; its codes are not."""
    if resource.get("resourceType") != "ServiceRequest" or resource["status"] != "active":
        return ""
    codes = (one.get("valueCoding", {}).get("code", "") for one in resource.get("extension", ()))
    return next((f" ({code})" for code in codes if code in ("ready", "in_progress")), "")


def _status(stored: Stored) -> str:
    if stored.deleted:
        return ", deleted"
    resource = stored.resource()
    status = [resource["status"] + _split(resource)] if isinstance(resource.get("status"), str) else []
    step = [word] if (word := notes.step_of(resource)) else []
    return "".join(f", {words}" for words in (*status, *step, *notes.noted(resource)))


OPERATIONS: Mapping[str, Callable[[Store, Args], Json]] = {
    "inbox-list": inbox_list,
    "inbox-refuse": inbox_refuse,
    "inbox-show": inbox_show,
    "outbox-list": outbox_list,
    "outbox-show": outbox_show,
    "outbox-retry": outbox_retry,
    "outbox-hold": outbox_hold,
    "outbox-cancel": outbox_cancel,
    "outbox-release": outbox_release,
    "lane-list": lane_list,
    "lane-pause": lane_pause,
    "lane-resume": lane_resume,
    "lane-policy": lane_policy,
    "alerts": watch.alerts,
    "metrics": metrics,
    "trace": trace,
}


def _message(snapshot: Snapshot, args: Args) -> InboxRow:
    row = snapshot.message(_id(args))
    if row is None:
        raise NotFound(f"the inbox has no message {_id(args)}; `passerelle inbox list` shows them")
    return row


def _id(args: Args) -> str:
    if not args.get("id"):
        raise Invalid("name the id", expression="id", http=400)
    return args["id"]


def _key(args: Args) -> tuple[str, str]:
    """The business key a list is narrowed by: by its kind, or any kind."""
    named = [(kind, args[kind]) for kind in KEYS if args.get(kind)]
    if len(named) > 1:
        raise Invalid(f"one business key at a time, not {' and '.join(kind for kind, _ in named)}", http=400)
    return named[0] if named else ("", args.get("key", ""))


def _with_keys(snapshot: Snapshot, box: str, rows: Sequence[Any]) -> Json:
    """Rows with their business keys as columns; several values of a kind are joined."""
    keys = snapshot.keys_of_many(box, [row.id for row in rows])
    return [
        _plain(row) | {kind: ", ".join(value for name, value in keys[row.id] if name == kind) for kind in KEYS}
        for row in rows
    ]


def limit_of(args: Args) -> int:
    text = args.get("limit", "50")
    return max(1, min(int(text), 1000)) if text.isdecimal() else 50


def _when(moment: int) -> str:
    return instant(EPOCH + timedelta(microseconds=moment)) if moment else ""


def _plain(row: Any) -> dict[str, Any]:
    """A store row as JSON-ready values: microseconds become instants, bytes become text."""
    out: dict[str, Any] = {}
    for name, value in asdict(row).items():
        if name == "at" or name.endswith(("_at", "_until")):
            out[name] = _when(value)
        elif isinstance(value, bytes):
            out[name] = _text(value)
        else:
            out[name] = value
    return out


def _text(raw: bytes) -> str:
    text = raw[:_SHOWN].decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    return text if len(raw) <= _SHOWN else f"{text}\n... ({len(raw)} bytes)"
