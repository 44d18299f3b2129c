"""What an operator asks of the inbox: what came, what became of it, and taking it in once more or never."""

from __future__ import annotations

from collections.abc import Callable

from fhir_server.context import SYSTEM, new_message_id, now
from fhir_server.desk.words import Args, Json, id_of, key_of, limit_of, plain, text_of, with_keys
from fhir_server.errors import NotFound, RuleBroken
from fhir_server.store import inbox
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow
from fhir_server.store.session import Snapshot
from hl7v2 import ack
from hl7v2.ack import AckError


def inbox_list(store: Store, args: Args) -> Json:
    """Messages received, newest first; `state`, `channel`, a business key by its name (`ins`...) or any (`key`), and
    `limit` narrow."""
    wanted = InboxFilter(
        state=args.get("state", ""), channel=args.get("channel", ""), key=key_of(args), limit=limit_of(args)
    )
    with store.read(SYSTEM) as snapshot:
        return with_keys(snapshot, "in", snapshot.messages(wanted))


def inbox_show(store: Store, args: Args) -> Json:
    """One message with its original bytes (as text, cut for the screen), its answer and its keys."""
    with store.read(SYSTEM) as snapshot:
        row = _message(snapshot, args)
        shown = plain(row)
        shown["keys"] = [list(pair) for pair in snapshot.message_keys(row.id)]
        shown["content"] = text_of(snapshot.message_raw(row.id))
    return shown


def inbox_sources(store: Store, args: Args, explain: Callable[[InboxRow, bytes], Json]) -> Json:
    """Where each element that a message became came from; `explain(row, raw)` is the wire's own."""
    with store.read(SYSTEM) as snapshot:
        row = _message(snapshot, args)
        return explain(row, snapshot.message_raw(row.id))


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
    return {"id": row.id, "state": after.state if after else "", "ack": text_of(answer)}


def inbox_refuse(store: Store, args: Args) -> Json:
    """Say that a message in error or in conflict will not be taken in; it raises no alert, and goes in time.

    An HL7 v2 message that was not answered gets its AE by it: its sender hears so when it comes once more.
    """
    reason = f"refused: {args.get('reason', 'by an operator')}"
    with store.read(SYSTEM) as snapshot:
        row = _message(snapshot, args)
        bare = row.ack is None and row.channel == "mllp" and row.state in ("error", "conflict")
        answer = _no(snapshot.message_raw(row.id), reason) if bare else None
    store.write(SYSTEM, lambda tx: inbox.refuse(tx.view, row.id, reason, answer))
    return {"id": row.id, "state": "refused"}


def _no(raw: bytes, reason: str) -> bytes:
    """The answer to an HL7 v2 message that a person refuses."""
    told = [AckError("", RuleBroken.hl7_err, reason)]
    return ack.build(raw, "AE", text=reason, errors=told, now=now(), control_id=new_message_id())


def _message(snapshot: Snapshot, args: Args) -> InboxRow:
    row = snapshot.message(id_of(args))
    if row is None:
        raise NotFound(f"the inbox has no message {id_of(args)}; `passerelle inbox list` shows them")
    return row
