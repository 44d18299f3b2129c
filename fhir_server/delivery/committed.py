"""Messages of a port in enhanced mode whose sender was told CA: from then on it is we who must take them in.

Hides how they keep the order of arrival. The thread of a connection takes its own message in, unless an earlier one was
left behind (a store that is full, a process that died): that one goes first, by the worker of the port, and the thread
waits a moment for it. Whatever is not settled then is the worker's, but for what had waited for a day when this process
started: its sender may have said otherwise since, so a person decides.

Sources: HL7 v2.5 chapter 2.9.3 (a commit accept releases the sender from resending), table 0155.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery.ports import Port
from fhir_server.errors import PasserelleError
from fhir_server.store import inbox
from fhir_server.store.inbox import InboxRow
from hl7v2 import ack

log = logging.getLogger("passerelle.hl7v2")
GRACE_SECONDS = 3.0
"""How old a message of another process is before it counts as left behind: its own thread goes first."""
PATIENCE_SECONDS = 5.0
"""How long a connection waits for the application's answer, when it cannot be given at once."""
OLD_SECONDS = 24 * 3600.0
"""How long a message had waited when this process started, to be a person's to take in."""
_PAUSE_SECONDS = 0.02
_LOOKED_AT = 50

_under_way: set[str] = set()
"""Inbox ids that a thread of this process takes in at this moment."""
_started = time.monotonic()


def promised(port: Port, raw: bytes) -> bool:
    """Whether nobody else sees to a stored message any more: CA is said, or its sender wants to hear of no failure."""
    asked = ack.wanted(raw) if port.mode == "enhanced" else None
    return asked is not None and (ack.due(asked[0], good=True) or not ack.due(asked[1], good=False))


@contextmanager
def at_hand(inbox_id: str) -> Iterator[None]:
    """While a thread of this process takes a message in: the worker leaves it alone, and nobody waits for it."""
    _under_way.add(inbox_id)
    try:
        yield
    finally:
        _under_way.discard(inbox_id)


def in_line(hub: Hub, port: Port, raw: bytes, inbox_id: str, settle: Callable[[], bytes]) -> bytes:
    """Settle a promised message in its order; its answer, or b'' when the worker of the port is to go on with it."""
    asked = ack.wanted(raw)
    listens = asked is not None and asked[1] != "NE"
    until = time.monotonic() + (PATIENCE_SECONDS if listens else 0.0)
    try:
        with at_hand(inbox_id):
            while _overtakes(hub, port, inbox_id):
                if time.monotonic() >= until:
                    return b""
                time.sleep(_PAUSE_SECONDS)
            answer = settle()
        if ack.read(answer).code != "AR":
            return answer
        while (row := _row(hub, inbox_id)) is not None and row.state == "received":
            if time.monotonic() >= until:
                return b""
            time.sleep(_PAUSE_SECONDS)
    except PasserelleError as fault:
        log.warning("message %s is not answered now: %s", inbox_id, fault.diagnostics)
        return b""
    if row is None:
        return b""
    return row.ack or (answer if row.state == "error" else b"")


def left_behind(hub: Hub, port: Port, waiting: list[InboxRow]) -> list[InboxRow]:
    """Of what waits at a port, oldest first, that which is the worker's: all of it where AA is said before; else up to
    the first message whose own thread may still be at it."""
    if port.answer != "integrated":
        return waiting
    limit = hub.store.moment() - int(GRACE_SECONDS * 1_000_000)
    return list(takewhile(lambda row: row.id not in _under_way and _came(row) <= limit, waiting))


def is_old(hub: Hub, port: Port, row: InboxRow) -> bool:
    """Whether a message of a port that answers when it is taken in had waited too long when this process started."""
    if port.answer != "integrated":
        return False
    waited = (hub.store.moment() - _came(row)) / 1_000_000
    return waited - (time.monotonic() - _started) > OLD_SECONDS


def _came(row: InboxRow) -> int:
    """When its sender last sent it."""
    return max(row.received_at, row.repeated_at)


def _overtakes(hub: Hub, port: Port, inbox_id: str) -> bool:
    """Whether an earlier message of the port waits and no thread of this process is at it."""
    with hub.store.read(SYSTEM) as snapshot:
        waiting = inbox.waiting(snapshot.view, "mllp", port.endpoint, _LOOKED_AT)
    if all(row.id != inbox_id for row in waiting):
        own = _row(hub, inbox_id) if len(waiting) >= _LOOKED_AT else None
        if own is None or own.state != "received" or own.endpoint != port.endpoint:
            return False  # settled meanwhile, in conflict, or in the line of another port
    return any(row.id not in _under_way for row in takewhile(lambda row: row.id != inbox_id, waiting))


def _row(hub: Hub, inbox_id: str) -> InboxRow | None:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.message(inbox_id)
