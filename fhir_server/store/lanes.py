"""The outbox: frozen deliveries in lanes, one lane per destination.

A delivery's number in its lane is given under the lane's row lock, so the order of numbers is the order of commits.
Payload bytes never change. Who may send them, and when: `leases`; what people do to them: `outbox_desk`.

Times are microseconds UTC.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

from fhir_server import errors
from fhir_server.context import new_delivery_id
from fhir_server.store import inbox
from fhir_server.store.blob_place import Form, Kept
from fhir_server.store.dialect import marks
from fhir_server.store.view import View, printable

DeliveryState = Literal["queued", "sending", "sent", "held", "error", "cancelled"]
SecondLeg = Literal["none", "zam", "dsn"]
OnStuck = Literal["block", "skip"]
OnSilence = Literal["", "resend", "hold"]
INLINE_BYTES = inbox.INLINE_BYTES


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """Bytes to deliver. `id` (20 characters) is MSH-10 or Message-ID and stands in the payload already. `kept` is
    where a payload over 64 KiB lies instead (see `Store.keep`): its transfer is no part of a transaction.

    `endpoint` is an address URL or the reference of an Endpoint; `patient`, `case`, `document` are references;
    `parent` the delivery this one replays or replaces; `on_stuck` is taken when the lane is new. An `endpoint` that
    begins with `pull:` is fetched by the partner. The INS among the `keys` is what the bytes say of the patient;
    `left_out`, what they leave out of what they were made from.
    """

    lane: str
    endpoint: str
    protocol: str
    payload: bytes
    id: str = ""
    media_type: str = ""
    title: str = ""
    keys: inbox.Keys = ()
    patient: str = ""
    case: str = ""
    document: str = ""
    second_leg: SecondLeg = "none"
    parent: str = ""
    on_stuck: OnStuck = "block"
    kept: Kept | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery as listed; its bytes through `payload_of`. `leg_state` is '', waiting, confirmed, refused...;
    `left_out` has a line for each thing that the bytes leave out."""

    id: str
    lane: str
    lane_seq: int
    state: DeliveryState
    endpoint: str
    protocol: str
    media_type: str
    title: str
    sha256: str
    size: int
    patient: str
    case_key: str
    document: str
    parent: str
    second_leg: SecondLeg
    leg_state: str
    leg_text: str
    leg_at: int
    leg_inbox: str
    created_at: int
    attempts: int
    first_sent_at: int
    settled_at: int
    error_class: str
    error: str
    ack: bytes | None
    ins: str
    document_version: int
    cleared: str
    left_out: str = ""

    @property
    def set_aside(self) -> tuple[str, ...]:
        """The reasons for holding it that a person has set aside."""
        return tuple(self.cleared.split("\n")) if self.cleared else ()


COLUMNS = (
    "d.id, l.name, d.lane_seq, d.state, d.endpoint, d.protocol, d.media_type, d.title, d.sha256, d.size, d.patient, "
    "d.case_key, d.document, d.parent, d.second_leg, d.leg_state, d.leg_text, d.leg_at, d.leg_inbox, d.created_at, "
    "d.attempts, d.first_sent_at, d.settled_at, d.error_class, d.error, d.ack, d.ins, d.document_version, d.cleared, "
    "d.left_out"
)
FROM = "FROM delivery d JOIN lane l ON l.id = d.lane_id"
OPEN = "state IN ('queued', 'sending')"
STUCK = "state IN ('held', 'error')"


def send(view: View, delivery: NewDelivery) -> str:
    """Puts a delivery behind the others of its lane when the transaction ends; returns its id."""
    if delivery.id and len(delivery.id) != 20:
        raise errors.Fault("a delivery id has 20 characters (MSH-10 of HL7 v2.5)")
    if len(delivery.payload) > INLINE_BYTES:
        raise errors.Fault("a payload over 64 KiB is kept before the transaction: Store.keep")
    ready = delivery if delivery.id else replace(delivery, id=new_delivery_id())
    view.sends.append(ready)
    view.woken = True
    return ready.id


def flush(view: View) -> None:
    """Writes the transaction's deliveries, lane by lane in order of name: two writers never wait in a ring."""
    waiting, view.sends = view.sends, []
    if waiting:
        view.db.steady()
    for delivery in sorted(waiting, key=lambda one: one.lane):
        _enqueue(view, delivery)


_WRITTEN = (
    "id", "lane_id", "lane_seq", "endpoint", "protocol", "media_type", "title", "payload", "sha256", "size", "patient",
    "case_key", "document", "parent", "second_leg", "leg_state", "created_at", "ins", "document_version", "left_out",
)  # fmt: skip
_INSERT = (
    f"INSERT INTO delivery ({', '.join(_WRITTEN)}, state) VALUES ({marks(_WRITTEN)}, 'queued') "
    "ON CONFLICT (id) DO NOTHING RETURNING id"
)


def _enqueue(view: View, delivery: NewDelivery) -> None:
    if delivery.parent:  # held, so that no clean-up takes it away before this transaction ends
        held = view.db.one(f"SELECT 1 FROM delivery WHERE id = ?{view.db.dialect.for_share}", (delivery.parent,))
        if held is None:
            raise errors.NotFound(f"The outbox has no delivery {delivery.parent}.")
    lane_id, lane_seq = _next_number(view, delivery)
    inline: bytes | None = None
    if delivery.kept is None:
        inline, size = delivery.payload, len(delivery.payload)
        sha256 = hashlib.sha256(inline).hexdigest()
    else:
        sha256, size = delivery.kept.sha256, delivery.kept.size
        inbox.record_blob(view, delivery.kept, delivery.media_type)
    inserted = view.db.one(
        _INSERT,
        (
            delivery.id, lane_id, lane_seq, delivery.endpoint, delivery.protocol, delivery.media_type, delivery.title,
            inline, sha256, size, delivery.patient, delivery.case, delivery.document, delivery.parent,
            delivery.second_leg, "" if delivery.second_leg == "none" else "waiting", view.now(),
            next((value for kind, value in delivery.keys if kind == "ins"), ""), _version(view, delivery.document),
            printable("\n".join(dict.fromkeys(" ".join(said.split()) for said in delivery.left_out))),
        ),
    )  # fmt: skip
    if inserted is None:
        raise errors.Conflict(f"A delivery {delivery.id} exists already.")
    own = (("msh-10", delivery.id),) if delivery.protocol == "hl7" else ()
    inbox.add_keys(view, "out", delivery.id, (*delivery.keys, *own))


def _version(view: View, reference: str) -> int:
    """The version of a resource these bytes tell: the current one, as this transaction leaves it; 0 = none here."""
    kind, _, key = reference.partition("/")
    row = view.db.one("SELECT version FROM resource WHERE type = ? AND id = ?", (kind, key)) if key else None
    return 0 if row is None else int(row[0])


def _next_number(view: View, delivery: NewDelivery) -> tuple[int, int]:
    take = "UPDATE lane SET next_seq = next_seq + 1, endpoint = ?, pull = ? WHERE name = ? RETURNING id, next_seq"
    about = (delivery.endpoint, int(delivery.endpoint.startswith("pull:")), delivery.lane)
    row = view.db.one(take, about)
    if row is None:
        view.db.run(
            "INSERT INTO lane (name, endpoint, protocol, on_stuck) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
            (delivery.lane, delivery.endpoint, delivery.protocol, delivery.on_stuck),
        )
        row = view.db.one(take, about)
    if row is None:
        raise errors.Fault(f"lane {delivery.lane} vanished")
    return int(row[0]), int(row[1])


def frozen_of(view: View, delivery_id: str) -> tuple[bytes, Kept | None]:
    """The bytes, or where they lie, to be sent once more by a delivery that names this one as its parent."""
    row = view.db.one(
        "SELECT d.payload, d.sha256, d.size, b.form, b.key_id FROM delivery d LEFT JOIN blob b ON b.sha256 = d.sha256 "
        "WHERE d.id = ?",
        (delivery_id,),
    )
    if row is None or (row[0] is None and row[3] is None):
        raise errors.NotFound(f"The outbox has no delivery {delivery_id}, or its content is not on record.")
    if row[0] is not None:
        return unchanged(delivery_id, bytes(row[0]), row[1]), None
    return b"", Kept(row[1], int(row[2]), Form(row[3], row[4]))


def payload_of(view: View, delivery_id: str) -> bytes:
    """The frozen bytes. Raises as `unchanged`."""
    row = view.db.one("SELECT payload, sha256 FROM delivery WHERE id = ?", (delivery_id,))
    if row is None:
        raise errors.NotFound(f"The outbox has no delivery {delivery_id}.")
    return unchanged(delivery_id, bytes(row[0]) if row[0] is not None else view.content(row[1]), row[1])


def unchanged(delivery_id: str, found: bytes, sha256: str) -> bytes:
    """`found`. Raises Fault for bytes that are not those that were frozen."""
    if hashlib.sha256(found).hexdigest() != sha256:
        raise errors.Fault(f"the bytes of delivery {delivery_id} are not those that were frozen; restore a backup")
    return found


def get(view: View, delivery_id: str) -> Delivery | None:
    row = view.db.one(f"SELECT {COLUMNS} {FROM} WHERE d.id = ?", (delivery_id,))
    return None if row is None else Delivery(*row)
