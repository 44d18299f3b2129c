"""What an operator asks of deliveries: why one waits, and to let it go, keep it back, send it again or make it anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fhir_server.context import SYSTEM
from fhir_server.desk.words import Args, Json, id_of, key_of, limit_of, plain, text_of, when, with_keys
from fhir_server.errors import Fault, NotFound, PasserelleError, RuleBroken
from fhir_server.search import index
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery, NewDelivery
from fhir_server.store.outbox_desk import OutboxFilter, Waiting
from fhir_server.store.resources import Stored, prepare
from fhir_server.store.session import Snapshot, Tx
from fhir_server.teleexpertise import documents, notes, order_record, orders, overtaken
from fhir_server.teleexpertise.consequences import Context
from fhir_server.teleexpertise.remade import remade
from fhir_server.teleexpertise.scopes import scopes


def outbox_list(store: Store, args: Args) -> Json:
    """Deliveries, newest first; `state`, `lane`, a business key by its name (`ins`...) or any (`key`), and `limit`
    narrow."""
    wanted = OutboxFilter(
        state=args.get("state", ""), lane=args.get("lane", ""), key=key_of(args), limit=limit_of(args)
    )
    with store.read(SYSTEM) as snapshot:
        return with_keys(snapshot, "out", snapshot.deliveries(wanted))


def outbox_show(store: Store, args: Args) -> Json:
    """One delivery with its attempts, its bytes (cut for the screen) and why it waits."""
    with store.read(SYSTEM) as snapshot:
        waiting = snapshot.waiting(id_of(args))
        shown = plain(waiting.delivery)
        shown["attempts"] = [plain(attempt) for attempt in snapshot.attempts(waiting.delivery.id)]
        shown["replays"] = snapshot.replays(waiting.delivery.id)
        shown["content"] = _content(snapshot, waiting.delivery.id)
        held = waiting.delivery.state == "held" and waiting.delivery.error_class == "overtaken"
        later = overtaken.later(snapshot, waiting.delivery) if held else []
        stays = overtaken.unreleasable(snapshot, waiting.delivery) if held else ""
        shown["why"] = why(waiting, [one.id for one in later], stays)
        task = snapshot.get("Task", waiting.delivery.case_key.partition("/")[2])
        shown["not_reached"] = notes.not_reached(task.resource()) if task and not task.deleted else []
    return shown


def _content(snapshot: Snapshot, delivery_id: str) -> str:
    """The bytes as text; of those that cannot be read, or are not those that were frozen, why."""
    try:
        return text_of(snapshot.payload(delivery_id))
    except PasserelleError as fault:
        return fault.diagnostics


def why(waiting: Waiting, later: Sequence[str] = (), stays: str = "") -> str:
    """Why a delivery has not left, in words; `later` are those of the same report that follow it, `stays` is why nobody
    can release it now."""
    delivery, lane = waiting.delivery, waiting.lane
    if delivery.state == "sent":
        legs = {"": "", "waiting": "; its confirmation is awaited", "confirmed": "; confirmed", "refused": "; refused"}
        return "handed over" + legs.get(delivery.leg_state, f"; {delivery.leg_state}")
    if delivery.state == "sending" and waiting.unanswered:
        again = "it goes again" if not lane.pull else "its partner may fetch it again"
        return f"it left, at {when(delivery.first_sent_at)} for the first time, and nobody answered; {again}"
    if delivery.state == "sending":
        return f"it is being sent, since {when(delivery.first_sent_at)} for the first time"
    if delivery.state == "held" and delivery.error_class == "overtaken":
        return _overtaken(delivery.error, later, stays)
    if delivery.state in ("error", "held", "cancelled"):
        return f"{delivery.state}: {delivery.error}"
    if waiting.blocked_by is not None:
        return f"waits behind {waiting.blocked_by.id}, which is {waiting.blocked_by.state}: {waiting.blocked_by.error}"
    if lane.paused:
        return f"its lane is paused: {lane.paused_note}"
    if waiting.ahead:
        return f"{waiting.ahead} deliveries of its lane go first"
    if lane.failures:
        return f"{lane.failures} attempts failed ({delivery.error}); next attempt {when(lane.ready_at)}"
    if lane.pull:
        return "it waits to be fetched by its partner"
    if lane.gap:
        return f"it is next; its destination takes {1_000_000 / lane.gap:g} a second"
    return "it is next"


def _overtaken(reason: str, later: Sequence[str], stays: str) -> str:
    if later:
        return f"held: {reason}; {later[0]} follows and tells what stands now: cancel this one"
    if stays:
        both = stays if stays.startswith(reason) else f"{reason}; {stays}"
        return f"held: {both}; nobody releases it while that is so"
    return f"held: {reason}; release it as it is, regenerate it, or cancel it"


def outbox_retry(store: Store, args: Args) -> Json:
    """Send a held or failed delivery again: the same bytes, at once."""

    def work(tx: Tx) -> None:
        _may_leave(tx, id_of(args))
        tx.retry(id_of(args))

    store.write(SYSTEM, work)
    return {"id": id_of(args), "state": "queued"}


def outbox_hold(store: Store, args: Args) -> Json:
    """Keep a delivery back for a person; one that is being sent, when the lease of whoever sends it is over."""

    def work(tx: Tx) -> None:
        tx.hold(id_of(args), _reason(tx, args, "held by an operator"))

    store.write(SYSTEM, work)
    return {"id": id_of(args), "state": "held"}


def outbox_cancel(store: Store, args: Args) -> Json:
    """Give a delivery up for good; one that is being sent, when the lease of whoever sends it is over."""

    def work(tx: Tx) -> None:
        found = tx.delivery(id_of(args))
        if found is not None:
            order_record.hold(tx, found)
        tx.cancel(id_of(args), _reason(tx, args, "cancelled by an operator"))
        if found is not None:
            order_record.note(tx, found)

    store.write(SYSTEM, work)
    return {"id": id_of(args), "state": "cancelled"}


def _reason(tx: Tx, args: Args, usual: str) -> str:
    """What a person says of a delivery they take out of the way; with it, that its end is unknown, when it left."""
    unanswered = tx.interrupt(id_of(args))
    return args.get("reason", usual) + ("; it left, and nobody answered: its partner may have it" if unanswered else "")


def outbox_release(store: Store, args: Args) -> Json:
    """Let a held delivery go as it is, in spite of the reason it was held for; not a report that another delivery hands
    over as a first document by now, nor one that was withdrawn and that nothing behind it takes back."""

    def work(tx: Tx) -> str:
        _may_leave(tx, id_of(args))
        return tx.release(id_of(args))

    return {"id": id_of(args), "state": "queued", "set_aside": store.write(SYSTEM, work)}


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
        found = tx.delivery(id_of(args))
        if found is not None:
            order_record.hold(tx, found)
            overtaken.hold(tx, found)
            if why_not := overtaken.unrepeatable(tx, found) or orders.past(tx, found, context(tx)):
                raise RuleBroken(f"Delivery {found.id} is not sent again: {why_not}.")
        again = tx.replay(id_of(args))
        if found is not None:
            order_record.note(tx, found, repeated=True)
        return again

    return {"id": store.write(SYSTEM, work), "parent": id_of(args), "state": "queued"}


def outbox_regenerate(store: Store, args: Args, context: Callable[[Snapshot], Context]) -> Json:
    """Render a held or failed delivery again from what is stored now: a new delivery; the old one is cancelled. It may
    be a report, the answer to an order, or what an agenda is told. `left_out` tells what the new bytes leave out.

    `context` makes the workflow's view of a snapshot. Raises RuleBroken, which says why, when there is nothing to
    render it from, when that is not so any more, or when it no longer goes to that destination.
    """
    with store.read(SYSTEM) as snapshot:
        old = snapshot.delivery(id_of(args))
        if old is None:
            raise NotFound(f"the outbox has no delivery {id_of(args)}; `passerelle outbox list` shows them")
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
    before = remade(snapshot, old, ctx.view)
    rendered = documents.again(sources[0].resource(), sources[1].id, ctx, before)
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
    return {"id": new.id, "parent": old.id, "state": "queued", "left_out": list(new.left_out)}
