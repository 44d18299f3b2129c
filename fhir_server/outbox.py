"""What an operator asks of inbox and outbox: list, show, retry, hold, cancel, trace. One table for all faces.

Each operation takes the store and plain arguments and returns JSON-ready values; times are FHIR instants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from fhir_server.context import SYSTEM, instant
from fhir_server.errors import Invalid, NotFound
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow
from fhir_server.store.instances import Study
from fhir_server.store.lanes import Delivery
from fhir_server.store.outbox_desk import Attempt, OutboxFilter, Waiting
from fhir_server.store.resources import Stored
from fhir_server.store.session import Snapshot

Args = Mapping[str, str]
Json = Any
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN = 4000


def inbox_list(store: Store, args: Args) -> Json:
    """Messages received, newest first; `state`, `channel`, `key` (any business key) and `limit` narrow."""
    wanted = InboxFilter(
        state=args.get("state", ""),
        channel=args.get("channel", ""),
        key=("", args.get("key", "")),
        limit=_limit(args),
    )
    with store.read(SYSTEM) as snapshot:
        return [_plain(row) for row in snapshot.messages(wanted)]


def inbox_show(store: Store, args: Args) -> Json:
    """One message with its original bytes (as text, cut for the screen), its answer and its keys."""
    with store.read(SYSTEM) as snapshot:
        row = snapshot.message(_id(args))
        if row is None:
            raise NotFound(f"the inbox has no message {_id(args)}; `passerelle inbox list` shows them")
        shown = _plain(row)
        shown["keys"] = [list(pair) for pair in snapshot.message_keys(row.id)]
        shown["content"] = _text(snapshot.message_raw(row.id))
    return shown


def outbox_list(store: Store, args: Args) -> Json:
    """Deliveries, newest first; `state`, `lane`, `key` and `limit` narrow."""
    wanted = OutboxFilter(
        state=args.get("state", ""), lane=args.get("lane", ""), key=("", args.get("key", "")), limit=_limit(args)
    )
    with store.read(SYSTEM) as snapshot:
        return [_plain(row) for row in snapshot.deliveries(wanted)]


def outbox_show(store: Store, args: Args) -> Json:
    """One delivery with its attempts, its bytes (cut for the screen) and why it waits."""
    with store.read(SYSTEM) as snapshot:
        waiting = snapshot.waiting(_id(args))
        shown = _plain(waiting.delivery)
        shown["attempts"] = [_plain(attempt) for attempt in snapshot.attempts(waiting.delivery.id)]
        shown["content"] = _text(snapshot.payload(waiting.delivery.id))
        shown["why"] = why(waiting)
    return shown


def why(waiting: Waiting) -> str:
    """Why a delivery has not left, in words."""
    delivery, lane = waiting.delivery, waiting.lane
    if delivery.state == "sent":
        legs = {"": "", "waiting": "; its confirmation is awaited", "confirmed": "; confirmed", "refused": "; refused"}
        return "handed over" + legs.get(delivery.leg_state, f"; {delivery.leg_state}")
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
    return "it is next"


def outbox_retry(store: Store, args: Args) -> Json:
    """Send a held or failed delivery again: the same bytes, at once."""
    store.write(SYSTEM, lambda tx: tx.retry(_id(args)))
    return {"id": _id(args), "state": "queued"}


def outbox_hold(store: Store, args: Args) -> Json:
    """Keep a delivery back for a person."""
    store.write(SYSTEM, lambda tx: tx.hold(_id(args), args.get("reason", "held by an operator")))
    return {"id": _id(args), "state": "held"}


def outbox_cancel(store: Store, args: Args) -> Json:
    """Give a delivery up for good."""
    store.write(SYSTEM, lambda tx: tx.cancel(_id(args), args.get("reason", "cancelled by an operator")))
    return {"id": _id(args), "state": "cancelled"}


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
    lines = [(event.at, event.kind, _line(event.record)) for event in events if event.kind != "audit"]
    lines += [(row.received_at, "message", _line(row)) for row in before if row.id not in told]
    return [{"at": _when(at), "kind": kind, "text": text} for at, kind, text in sorted(lines, key=lambda line: line[0])]


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
                if record.leg_state not in ("", "waiting")
                else ""
            )
            return f"delivery {record.id} to {record.title} ({record.protocol}): {record.state}{leg}"
        case Attempt():
            return (
                f"attempt {record.n} of {record.delivery_id}: {record.outcome or 'under way'} {record.error}".rstrip()
            )
    return str(record)


def _status(stored: Stored) -> str:
    if stored.deleted:
        return ", deleted"
    resource = stored.resource()
    return f", {resource['status']}" if isinstance(resource.get("status"), str) else ""


OPERATIONS: Mapping[str, Callable[[Store, Args], Json]] = {
    "inbox-list": inbox_list,
    "inbox-show": inbox_show,
    "outbox-list": outbox_list,
    "outbox-show": outbox_show,
    "outbox-retry": outbox_retry,
    "outbox-hold": outbox_hold,
    "outbox-cancel": outbox_cancel,
    "trace": trace,
}


def _id(args: Args) -> str:
    if not args.get("id"):
        raise Invalid("name the id", expression="id", http=400)
    return args["id"]


def _limit(args: Args) -> int:
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
