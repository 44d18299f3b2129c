"""Who holds an order of a case: every NW and CA that was frozen for it, for whom and by which delivery.

Hides where that stands: in a Provenance of the case that this server alone writes, in the transaction that freezes the
messages, so that it outlives the outbox (setting `keep_days`). What became of a delivery is asked each time, as for
reports (`succession`); that one was given up is written down too, since the outbox forgets it. A case of a release
without this record is read from the outbox until its next order is frozen, which takes over what was found there.

Sources: HL7 table 0119 (NW, CA); https://hl7.org/fhir/R4/provenance.html.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from fhir_server.context import instant
from fhir_server.errors import Fault
from fhir_server.search import index
from fhir_server.store.lanes import Delivery
from fhir_server.store.outbox_desk import OutboxFilter
from fhir_server.store.resources import prepare
from fhir_server.store.session import Snapshot, Tx
from fhir_server.store.view import Stale
from fhir_server.teleexpertise import overtaken, succession
from fhir_server.teleexpertise.case import SERVER, STEP_SYSTEM, Context, Ordered
from fhir_server.teleexpertise.distribution import Destination, addressee_of, profiles
from fhir_server.teleexpertise.scopes import scopes
from fhir_server.teleexpertise.succession import Holder
from hl7v2.message import Message, Unreadable, parse

Resource = dict[str, Any]
ORDERS = "urn:passerelle:ordres"
ASKED = "tlr-1.0-orm"
"""What an Endpoint asks for that takes orders."""
_MOST = 1_000  # deliveries of one case that are looked through for its orders
_TEXTS = ("control", "lane", "addressee", "delivery")
OUT = frozenset({"active", "on-hold"})
"""ServiceRequest.status of a request that somebody may still answer."""


@dataclass(frozen=True, slots=True)
class Orders:
    """The order messages of a case, oldest first, and which of their deliveries the outbox says were given up."""

    lines: tuple[Ordered, ...] = ()
    ended: frozenset[str] = frozenset()
    last: frozenset[str] | None = None
    """The deliveries of the last word to each addressee, where nothing before it was asked for."""

    @property
    def holders(self) -> list[Ordered]:
        """The last word to each addressee, where that is an NW; what was given up was never said."""
        last: list[Ordered] = []
        for line in self.settled:
            if not line.ended:
                last = [one for one in last if not same(one, line)] + [line]
        return [one for one in last if one.control == "NW"]

    def holds(self, whom: Ordered | Destination) -> bool:
        """Whether an addressee has an order that stands."""
        return any(same(one, whom) for one in self.holders)

    def without(self, deliveries: Iterable[str]) -> Orders:
        """The same when these are given up."""
        names = frozenset(deliveries)
        return replace(self, lines=tuple(replace(one, ended=one.ended or one.delivery in names) for one in self.lines))

    @property
    def standing(self) -> tuple[str, ...]:
        """The deliveries it was decided on that were not given up."""
        known = (one.delivery for one in self.settled if not one.ended)
        return tuple(one for one in known if self.last is None or one in self.last)

    @property
    def settled(self) -> tuple[Ordered, ...]:
        """The lines as they are written: what the outbox says of them now, it may have forgotten when they are read."""
        return tuple(replace(one, ended=one.ended or one.delivery in self.ended) for one in self.lines)


def orders_of(case: str, ctx: Context) -> Orders:
    """What was told of a case (`ServiceRequest/x`) to those who were asked."""
    lines = _lines(ctx.view.get(_name(case)) or {})
    if not lines:  # nobody wrote down what was given up: the outbox is asked of every one
        lines = ctx.ordered(case)
        return Orders(lines, frozenset(one.delivery for one in lines if ctx.handed(one.delivery) == "ended"))
    last: list[Ordered] = []
    ended: set[str] = set()
    for line in reversed(lines):  # what stands before the last word to an addressee decides nothing
        if any(same(one, line) for one in last):
            continue
        if ctx.handed(line.delivery) == "ended":
            ended.add(line.delivery)
        elif not line.ended:
            last.append(line)
    return Orders(lines, frozenset(ended), frozenset(one.delivery for one in last))


def same(one: Ordered | Destination, other: Ordered | Destination) -> bool:
    """Whether two roads lead to one addressee: the lane alone does not tell."""
    had, has = (Holder(road.lane, road.addressee, "", "") for road in (one, other))
    return succession.same(had, has)


def record(case: str, before: Sequence[Ordered], new: Sequence[Ordered], ctx: Context) -> Resource:
    """The Provenance that keeps what was said `before`, as far as that decides anything yet, and what is `new`."""
    lines = (*_needed(before, ctx), *new)
    return {
        "resourceType": "Provenance",
        "id": _name(case).partition("/")[2],
        "extension": [_extension(lines)],
        "target": [{"reference": case}],
        "recorded": instant(ctx.now),
        "activity": {"coding": [{"system": STEP_SYSTEM, "code": "orders"}]},
        "agent": [{"who": {"display": SERVER}}],
    }


def _needed(lines: Sequence[Ordered], ctx: Context) -> list[Ordered]:
    """Without what no step and no repetition can depend on any more, so that a record does not grow with its age.

    What was given up counts until the outbox has forgotten it. What an addressee was told counts until two later words
    of one lane got there: a lane sends one after the other, so the first of the two cannot be given up any more, and
    stands for all before it.
    """
    there = _there(lines, ctx)
    out: list[Ordered] = []
    for place, line in enumerate(lines):
        if line.ended:
            out += [line] if line.delivery not in there else []
            continue
        later = [one for one in lines[place + 1 :] if one.delivery in there and not one.ended and same(line, one)]
        lanes = [one.lane for one in later]
        # Being the same addressee is not handed on: what overrides an earlier line stays as long as that one.
        if len(lanes) == len(set(lanes)) or any(same(one, line) for one in out if not one.ended):
            out.append(line)
    return out


def _there(lines: Sequence[Ordered], ctx: Context) -> frozenset[str]:
    """Of these deliveries those that the partner may have, or the outbox has forgotten; behind one that waits in a lane
    nothing is looked for."""
    found: set[str] = set()
    waiting: set[str] = set()
    for line in lines:
        fate = "waits" if line.lane in waiting and not line.ended else ctx.handed(line.delivery)
        if fate == "gone":
            found.add(line.delivery)
        elif fate != "ended":
            waiting.add(line.lane)
    return frozenset(found)


def in_outbox(snapshot: Snapshot, case: str) -> tuple[Ordered, ...]:
    """The order messages of a case that the outbox still has, oldest first. Damaged bytes that went to who takes orders
    count as an order that stands: its holder is rather told of an end that they know than of none."""
    found = snapshot.deliveries(OutboxFilter(case_key=case, limit=_MOST))
    made = sorted(found, key=lambda one: (one.created_at, one.lane_seq))
    controls = ((one, control_of(snapshot, one, damaged=_to_who_takes_orders(snapshot, one.lane))) for one in made)
    return tuple(Ordered(said, one.lane, addressee_of(one.endpoint), one.id) for one, said in controls if said)


def _to_who_takes_orders(snapshot: Snapshot, lane: str) -> Literal["NW", ""]:
    kind, _, key = lane.partition("/")
    endpoint = snapshot.get(kind, key) if kind == "Endpoint" else None
    return "NW" if endpoint and not endpoint.deleted and ASKED in profiles(endpoint.resource()) else ""


def control_of(snapshot: Snapshot, delivery: Delivery, *, damaged: str = "") -> str:
    """ORC-1 of an order message; '' for any other delivery. `damaged`: what stands for bytes nobody can read."""
    try:
        msg = _parsed(snapshot, delivery)
    except Fault:  # `check` and the delivery itself tell of it
        return damaged
    return msg.text("ORC-1") if msg is not None and msg.kind == "ORM" else ""


def message_of(snapshot: Snapshot, delivery: Delivery) -> Message | None:
    """A message of the workflow; None for a report, and for what is no HL7 message, or none any more."""
    with suppress(Fault):
        return _parsed(snapshot, delivery)
    return None


def _parsed(snapshot: Snapshot, delivery: Delivery) -> Message | None:
    if delivery.protocol != "hl7" or not delivery.case_key or delivery.document:  # a report is no order, and large
        return None
    with suppress(Unreadable):
        return parse(snapshot.payload(delivery.id))
    return None


def past(snapshot: Snapshot, delivery: Delivery) -> str:
    """Why an order message is not to be said again, or '': the request is not out any more, or its addressee was told
    the contrary, or the same by another message, since."""
    control = control_of(snapshot, delivery)
    if not control:
        return ""
    kind, _, key = delivery.case_key.partition("/")
    stored = snapshot.get(kind, key)
    status = "" if stored is None or stored.deleted else str(stored.resource().get("status", ""))
    if control == "NW" and status not in OUT:
        return f"the request is {status or 'gone'} now, ORC-1 NW is true of the past only"
    recorded = _lines(_stored(snapshot, delivery.case_key))
    lines = recorded or in_outbox(snapshot, delivery.case_key)
    chain = set(_chain(snapshot, delivery))
    if recorded and all(one.delivery not in chain for one in recorded):
        return f"the record of the orders of {delivery.case_key} does not know it"
    own = next((place for place, one in enumerate(lines) if one.delivery in chain), len(lines))
    for line in lines[own + 1 :]:
        if line.ended or not same(lines[own], line) or _repeats(snapshot, line, chain):
            continue
        if overtaken.handed(snapshot, line.delivery) != "ended":
            why = "says the same" if line.control == control else f"ORC-1 {control} is true of the past only"
            return f"{line.delivery} (ORC-1 {line.control}) follows it, {why}"
    return ""


def _repeats(snapshot: Snapshot, line: Ordered, chain: set[str]) -> bool:
    """Whether a line is one of these messages once more: an outbox that is read for orders shows what repeats them."""
    delivery = snapshot.delivery(line.delivery)
    return delivery is not None and not chain.isdisjoint(_chain(snapshot, delivery))


def hold(tx: Tx, delivery: Delivery) -> None:
    """Hold what an order of a case is decided on, in the order of whoever takes a step: the record, the request that
    says who is asked, then the lane."""
    if delivery.case_key and not delivery.document:
        for reference in (_name(delivery.case_key), delivery.case_key):
            kind, _, key = reference.partition("/")
            with suppress(Stale):  # held all the same, and what is asked after this sees what changed
                tx.expect(kind, key, 0)
        tx.lock_lanes([delivery.lane])


def note(tx: Tx, delivery: Delivery, *, repeated: bool = False) -> None:
    """Let the record say what became of an order now that a delivery was given up, or is to be `repeated`: for when
    the outbox has forgotten it."""
    held = _stored(tx, delivery.case_key) if delivery.case_key and not delivery.document else {}
    lines, chain = _lines(held), set(_chain(tx, delivery))
    now = tuple(
        replace(one, ended=not repeated and overtaken.handed(tx, one.delivery) == "ended")
        if one.delivery in chain
        else one
        for one in lines
    )
    if now != lines:
        record = held | {"extension": [_extension(now)]}
        rows = index.rows(record)
        rows.scopes = scopes(record)
        tx.update(prepare(record), rows)


def _chain(snapshot: Snapshot, delivery: Delivery) -> Iterator[str]:
    """A delivery and those it was made of, up to the first that the outbox has forgotten."""
    name = delivery.id
    while name:
        yield name
        found = snapshot.delivery(name)
        name = found.parent if found is not None else ""


def _name(case: str) -> str:
    """The record of a case: always the same one, so that the step that writes it finds whoever wrote it meanwhile."""
    return f"Provenance/{uuid.uuid5(uuid.NAMESPACE_URL, f'{ORDERS}:{case}')}"


def _stored(snapshot: Snapshot, case: str) -> Resource:
    stored = snapshot.get(*_name(case).split("/"))
    return {} if stored is None or stored.deleted else stored.resource()


def _extension(lines: Sequence[Ordered]) -> Resource:
    parts = []
    for line in lines:
        said = [{"url": name, "valueString": value} for name in _TEXTS if (value := getattr(line, name))]
        ended = [{"url": "ended", "valueBoolean": True}] if line.ended else []
        parts.append({"url": "ordre", "extension": [*said, *ended]})
    return {"url": ORDERS, "extension": parts}


def _lines(held: Mapping[str, Any]) -> tuple[Ordered, ...]:
    parts = (one.get("extension", ()) for one in held.get("extension", ()) if one.get("url") == ORDERS)
    return tuple(_line(part.get("extension", ())) for part in next(parts, ()))


def _line(parts: Sequence[Mapping[str, Any]]) -> Ordered:
    told = {str(part.get("url")): str(part.get("valueString", "")) for part in parts}
    control, lane, addressee, delivery = (told.get(name, "") for name in _TEXTS)
    ended = any(part.get("url") == "ended" and part.get("valueBoolean") is True for part in parts)
    return Ordered(control, lane, addressee, delivery, ended)
