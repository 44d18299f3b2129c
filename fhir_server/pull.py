"""Lanes that a partner fetches: a hospital with no inbound port asks for its next message and acknowledges it.

The lane is the same as any other: in order, one at a time, held deliveries block or let others pass, attempts are
recorded. Fetching is the sending; the acknowledgement is the partner's answer. Who fetches and does not acknowledge
gets the same bytes again when the lease ends: once at least, and the receiver knows MSH-10.

A lane belongs to the software its address names: `pull:NAME` is fetched by the caller whose token says NAME as client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import unquote, urlsplit

from fhir_server.context import Caller
from fhir_server.errors import Conflict, Forbidden, Invalid, NotFound, PasserelleError, Throttled, Unavailable
from fhir_server.store import leases
from fhir_server.store.audit import AuditRow
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.store.leases import Claim, Outcome
from fhir_server.store.outbox_desk import Lane
from fhir_server.store.session import Tx
from fhir_server.teleexpertise.overtaken import held_back

Answer = Literal["AA", "AE", "AR"]
LEASE_SECONDS, AGAIN_SECONDS = 60.0, 60.0
LONGEST_LEASE = 600.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """One delivery in the partner's hands: acknowledge it with `token` before `lease_until` (µs UTC), or it is handed
    out again. `sha256` is that of `payload`."""

    id: str
    lane: str
    token: int
    media_type: str
    sha256: str
    payload: bytes
    lease_until: int


def own_lanes(store: Store, caller: Caller, name: str = "") -> Sequence[Lane]:
    """The lanes a caller fetches, or the one called `name`.

    Raises Forbidden for a caller that is no software with a name, NotFound when it has no such lane (what other
    partners have is not told).
    """
    if not caller.client or caller.who:
        raise Forbidden("messages are fetched by a partner's software: its token names it (client_id) and no person")
    with store.read(caller) as snapshot:
        found = [lane for lane in snapshot.lanes(name) if lane.pull and owner(lane.endpoint) == caller.client]
    if not found:
        asked = f"lane {name[:80]} is not yours" if name else f"nothing was ever addressed to pull:{caller.client}"
        raise NotFound(f"{asked}; the address of your Endpoint must be pull:{caller.client}")
    return found


def owner(endpoint: str) -> str:
    """The software an address `pull:NAME` (a query may follow) is for; '' for any other address."""
    parts = urlsplit(endpoint)
    return unquote(parts.path) if parts.scheme == "pull" else ""


def fetch(store: Store, caller: Caller, lane: str = "", lease_seconds: float = LEASE_SECONDS) -> Fetched | None:
    """The next delivery of a lane, or of any of the caller's lanes; None when there is none, or the one before is not
    acknowledged yet. Handing it out is audited. Raises as `own_lanes`, and Invalid for a lease nobody may have."""
    if not 1 <= lease_seconds <= LONGEST_LEASE:
        raise Invalid(f"lease_seconds is from 1 to {LONGEST_LEASE:g}", expression="lease_seconds", http=400)

    def check(tx: Tx, claim: Claim) -> Outcome | None:
        held = held_back(tx, claim) or _addressed(claim.delivery, caller)
        if held is None:
            told = f"delivery {claim.delivery.id} of {claim.lane} handed to {caller.client}"
            tx.audit(_row("pull-next", "R", claim.delivery, told, caller))
        return held

    for one in own_lanes(store, caller, lane):
        claim = store.take(f"pull {caller.client}", lease_seconds, check, lane=one.name)
        if claim is not None:
            of, content = claim.delivery, _content(store, claim)
            if content is not None:
                return Fetched(of.id, one.name, claim.token, of.media_type, of.sha256, content, claim.lease_until)
    return None


def _content(store: Store, claim: Claim) -> bytes | None:
    """The bytes; None for damaged ones, which wait for a person. What only cannot be read now is due again at once."""
    try:
        return store.payload(claim)
    except (Unavailable, Throttled) as fault:
        store.finish(
            claim, Outcome("retry", "transient", f"not handed over: {fault.diagnostics}", None, store.moment())
        )
        raise
    except PasserelleError as damaged:
        store.finish(claim, Outcome("held", "held", f"content {damaged.diagnostics}"))
        return None


def acknowledge(store: Store, caller: Caller, delivery_id: str, token: int, answer: str, text: str = "") -> str:
    """The partner's answer: AA taken in, AE a resend cures nothing, AR not now. The delivery's state after it.

    An answer after the lease still counts as the partner's word; after one that counted, another changes nothing.
    Raises Forbidden, NotFound, Conflict when this delivery was not handed out under this token, Invalid for another
    answer.
    """
    if answer not in get_args(Answer):
        raise Invalid(f"acknowledge with {', '.join(get_args(Answer))}, not {answer[:20]}", expression="code", http=400)
    mine = {lane.name: lane.id for lane in own_lanes(store, caller)}
    with store.read(caller) as snapshot:
        delivery = snapshot.delivery(delivery_id)
        if delivery is None or delivery.lane not in mine:
            raise NotFound(f"no delivery {delivery_id[:40]} was handed to you")
        attempt = next((one for one in snapshot.attempts(delivery_id) if one.token == token), None)
    if attempt is None:
        raise Conflict(f"delivery {delivery_id} was not handed out under token {token}; fetch it first")
    if attempt.ended_at and attempt.outcome != "interrupted":
        return delivery.state
    held = Claim(mine[delivery.lane], delivery.lane, token, attempt.worker, 0, 0, "", delivery, None, False)
    outcome = _outcome(store, answer, text)

    def work(tx: Tx) -> str:
        leases.finish(tx.view, held, outcome, store.moment())
        tx.audit(_row("pull-ack", "E", delivery, f"delivery {delivery.id}: {outcome.text}", caller))
        after = tx.delivery(delivery_id)
        return after.state if after else ""

    return store.write(caller, work)


def _addressed(delivery: Delivery, caller: Caller) -> Outcome | None:
    """What was made for another partner, before the Endpoint changed hands, waits for a person."""
    reason = f"it was made for {delivery.endpoint}, and its lane is fetched by pull:{caller.client} now"
    if owner(delivery.endpoint) == caller.client or reason in delivery.set_aside:
        return None
    return Outcome("held", "overtaken", reason)


def _row(event: str, action: str, delivery: Delivery, text: str, caller: Caller) -> AuditRow:
    """Who took what, in the caller's name whoever the transaction belongs to."""
    return AuditRow(
        action,
        event=event,
        entity_type="Communication",
        entity_id=delivery.id,
        case_key=delivery.case_key,
        text=text,
        display=caller.display,
        role=",".join(sorted(caller.roles)),
        channel=caller.channel,
        peer=caller.peer,
        request_id=caller.request_id,
    )


def _outcome(store: Store, answer: str, text: str) -> Outcome:
    words, ack = f"{answer} {text}".strip(), text.encode(errors="replace") or None
    if answer == "AA":
        return Outcome("sent", "", words, ack)
    if answer == "AE":
        return Outcome("error", "permanent", words, ack)
    return Outcome("retry", "transient", words, ack, store.moment() + int(AGAIN_SECONDS * 1_000_000))
