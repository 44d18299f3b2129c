"""Everything received, original bytes first: the inbox journal every wire writes before it answers.

A message is the pair (sender key, control id). The same pair with the same bytes is the same message: its earlier
row and the acknowledgement stored there are returned, and the repeat is counted. The same pair with other bytes is
kept as a conflict. A message without control id is always new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from fhir_server import errors
from fhir_server.context import new_message_id
from fhir_server.search.values import bounded
from fhir_server.store.blob_place import Kept
from fhir_server.store.dialect import Row, marks
from fhir_server.store.tables import MESSAGE_KEY
from fhir_server.store.view import Stale, View, lock, printable

INLINE_BYTES = 64 * 1024
InboxState = Literal["received", "done", "error", "refused", "conflict"]
Keys = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class NewMessage:
    """What a wire hands over. `endpoint` is our listener or mailbox, `peer` the other side as the wire saw it,
    `sender` the key under which control ids are unique (MSH-3/MSH-4, a mail address), `keys` (kind, value) pairs
    that can be searched: INS, IPP, IEP, accession, RPPS, FINESS, MSH-10, case."""

    channel: str
    raw: bytes
    endpoint: str = ""
    peer: str = ""
    sender: str = ""
    control_id: str = ""
    message_type: str = ""
    media_type: str = ""
    request_id: str = ""
    keys: Keys = ()


@dataclass(frozen=True, slots=True)
class Received:
    """The outcome of `receive`: `known` when these bytes came before; a `rival` is the id of the message that
    has the same control id and other bytes."""

    id: str
    state: InboxState
    known: bool
    ack: bytes | None
    rival: str = ""

    @property
    def conflict(self) -> bool:
        return self.state == "conflict"


@dataclass(frozen=True, slots=True)
class InboxRow:
    """One message as listed. Times in microseconds UTC, 0 = not yet; `raw` through `raw_of`."""

    seq: int
    id: str
    channel: str
    endpoint: str
    peer: str
    media_type: str
    sha256: str
    size: int
    sender: str
    control_id: str
    message_type: str
    received_at: int
    request_id: str
    state: InboxState
    rival: str
    repeats: int
    repeated_at: int
    settled_at: int
    ack: bytes | None
    note: str
    error: str
    location: str
    case_key: str


_COLUMNS = (
    "seq, id, channel, endpoint, peer, media_type, sha256, size, sender, control_id, message_type, received_at, "
    "request_id, state, rival, repeats, repeated_at, settled_at, ack, note, error, location, case_key"
)


COLUMNS = (
    "id", "channel", "endpoint", "peer", "media_type", "sha256", "size", "raw", "sender", "control_id", "message_type",
    "received_at", "request_id", "state", "original", "rival", "case_key",
)  # fmt: skip
ONCE = "ON CONFLICT (sender, control_id) WHERE original = 1 AND control_id <> '' DO NOTHING"
"""An original is stored unless there is one: what comes under its control id is a repeat of it, or a rival to it, and
no clean-up removes an original before its rivals."""
_STORE = f"INSERT INTO inbox ({', '.join(COLUMNS)}) VALUES ({marks(COLUMNS)}) {ONCE}"
_LOOKS = 3


def new_row(message: NewMessage, sha256: str, received_at: int, rival: str = "") -> Row:
    """The row of a message by COLUMNS, with an id of its own: an original, unless it has a `rival`."""
    return (
        new_message_id(),
        message.channel,
        message.endpoint,
        printable(message.peer, 200),
        message.media_type,
        sha256,
        len(message.raw),
        message.raw if len(message.raw) <= INLINE_BYTES else None,
        bounded(printable(message.sender)),
        bounded(printable(message.control_id)),
        printable(message.message_type, 100),
        received_at,
        message.request_id,
        "conflict" if rival else "received",
        0 if rival else 1,
        rival,
        next((bounded(printable(value)) for kind, value in reversed(message.keys) if kind == "case" and value), ""),
    )


def receive(view: View, message: NewMessage, sha256: str) -> Received:
    """Stores a message, or finds it again. Content over 64 KiB must be in the blobs under `sha256` before."""
    rival = ""
    for _ in range(_LOOKS):
        row = new_row(message, sha256, view.now(), rival)
        if view.db.count(_STORE, row):
            if len(message.raw) > INLINE_BYTES:
                record_blob(view, Kept(sha256, len(message.raw), view.blobs.form), message.media_type)
            if keys := key_rows("in", row[0], message.keys):
                view.db.fill(MESSAGE_KEY, keys)
            return Received(row[0], "conflict" if rival else "received", False, None, rival)
        earlier = _earlier(view, message, sha256)
        if isinstance(earlier, Received):
            return earlier
        rival = earlier
    raise errors.Unavailable("the same control id came and went; send the message again")


def _earlier(view: View, message: NewMessage, sha256: str) -> Received | str:
    """The same message seen before, or the id of its rival, or ''."""
    sender, control_id = bounded(printable(message.sender)), bounded(printable(message.control_id))
    lock(view, f"inbox|{sender}|{control_id}")
    rows = view.db.rows(
        "SELECT id, sha256, state, ack, rival, original FROM inbox WHERE sender = ? AND control_id = ? ORDER BY seq"
        + view.db.dialect.for_update,
        (sender, control_id),
    )
    for row in rows:
        if row[1] == sha256:
            view.db.run("UPDATE inbox SET repeats = repeats + 1, repeated_at = ? WHERE id = ?", (view.now(), row[0]))
            return Received(row[0], row[2], True, row[3], row[4])
    return str(rows[0][0]) if rows else ""


def integrate(
    view: View, inbox_id: str, ack: bytes, *, state: InboxState = "done", keys: Keys = (), note: str = ""
) -> None:
    """Marks the message as taken in, with its acknowledgement, in the transaction that took it in.

    `Stale` when another thread or process settled it first: roll back and answer with the acknowledgement stored.
    """
    _settle(view, inbox_id, ack, state, note, "", "", from_states=("received", "error", "refused"))
    add_keys(view, "in", inbox_id, keys)


def reject(
    view: View,
    inbox_id: str,
    error_text: str,
    location: str,
    ack: bytes | None,
    *,
    state: InboxState = "error",
    keys: Keys = (),
) -> None:
    """Records why the message was not taken in; `location` is the wire's own (ERR-2). Done messages stay done."""
    _settle(view, inbox_id, ack, state, "", error_text, location, ("received", "error", "refused", "conflict"))
    add_keys(view, "in", inbox_id, keys)


def _settle(
    view: View,
    inbox_id: str,
    ack: bytes | None,
    state: InboxState,
    note: str,
    error: str,
    location: str,
    from_states: tuple[InboxState, ...],
) -> None:
    row = view.db.one(f"SELECT state FROM inbox WHERE id = ?{view.db.dialect.for_update}", (inbox_id,))
    if row is None:
        raise errors.NotFound(f"The inbox has no message {inbox_id}.")
    if row[0] not in from_states:
        raise Stale(f"Message {inbox_id} was settled before ({row[0]}).")
    kept = "conflict" if row[0] == "conflict" else state
    view.db.run(
        "UPDATE inbox SET state = ?, ack = ?, note = ?, error = ?, location = ?, settled_at = ? WHERE id = ?",
        (kept, ack, printable(note), printable(error), printable(location, 200), view.now(), inbox_id),
    )


def reopen(view: View, inbox_id: str) -> None:
    """Puts a message that was not taken in back to `received`, to be processed again from its original bytes; it waits
    from now on."""
    changed = view.db.count(
        "UPDATE inbox SET state = 'received', error = '', location = '', ack = NULL, repeated_at = ? WHERE id = ? "
        "AND state IN ('error', 'refused', 'conflict', 'received')",
        (view.now(), inbox_id),
    )
    if not changed:
        raise errors.RuleBroken(f"Message {inbox_id} was taken in, or does not exist: it cannot be replayed.")


def refuse(view: View, inbox_id: str, reason: str, ack: bytes | None = None) -> None:
    """A person's word that a message that was not taken in never will be: it waits for nobody, and goes in time.

    `ack` is the answer from now on where none was given. What has none is not refused: its sender's repeat would find
    no answer and be taken in.
    """
    changed = view.db.count(
        "UPDATE inbox SET state = 'refused', error = error || ?, settled_at = ?, ack = COALESCE(ack, ?) WHERE id = ? "
        "AND state IN ('error', 'conflict') AND COALESCE(ack, ?) IS NOT NULL",
        (printable(f"\n{reason}"), view.now(), ack, inbox_id, ack),
    )
    if not changed:
        raise errors.RuleBroken(f"Message {inbox_id} waits for nobody, or was not answered yet: it cannot be refused.")


def add_keys(view: View, box: str, message: str, keys: Keys) -> None:
    """Adds (kind, value) pairs to a message; a `case` key also marks its row."""
    wanted = key_rows(box, message, keys)
    known = set(view.db.rows("SELECT kind, value FROM message_key WHERE message = ? AND box = ?", (message, box)))
    fresh = [row for row in wanted if (row[2], row[3]) not in known]
    if fresh:
        view.db.fill(MESSAGE_KEY, fresh)
    table = "inbox" if box == "in" else "delivery"
    for _, _, kind, value in fresh:
        if kind == "case":
            view.db.run(f"UPDATE {table} SET case_key = ? WHERE id = ?", (value, message))


def key_rows(box: str, message: str, keys: Keys) -> list[Row]:
    """The rows of the keys that have a value, each once."""
    found = {(kind, bounded(printable(value))): None for kind, value in keys if value}
    return [(box, message, kind, value) for kind, value in found]


def keys_of(view: View, box: str, message: str) -> tuple[tuple[str, str], ...]:
    rows = view.db.rows(
        "SELECT kind, value FROM message_key WHERE message = ? AND box = ? ORDER BY kind, value", (message, box)
    )
    return tuple((row[0], row[1]) for row in rows)


def keys_of_many(view: View, box: str, messages: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """The keys of several messages of one box."""
    out: dict[str, list[tuple[str, str]]] = {message: [] for message in messages}
    for start in range(0, len(messages), 500):
        some = messages[start : start + 500]
        sql = f"SELECT message, kind, value FROM message_key WHERE message IN ({marks(some)}) AND box = ?"
        for message, kind, value in view.db.rows(f"{sql} ORDER BY kind, value", (*some, box)):
            out[message].append((kind, value))
    return out


def get(view: View, inbox_id: str) -> InboxRow | None:
    row = view.db.one(f"SELECT {_COLUMNS} FROM inbox WHERE id = ?", (inbox_id,))
    return None if row is None else InboxRow(*row)


def raw_of(view: View, inbox_id: str) -> bytes:
    """The original bytes."""
    row = view.db.one("SELECT raw, sha256 FROM inbox WHERE id = ?", (inbox_id,))
    if row is None:
        raise errors.NotFound(f"The inbox has no message {inbox_id}.")
    return bytes(row[0]) if row[0] is not None else view.content(row[1])


@dataclass(frozen=True, slots=True)
class InboxFilter:
    """All conditions hold together; '' and 0 mean any. `key` is (kind or '', value); `before` is a `seq`."""

    state: str = ""
    channel: str = ""
    message_type: str = ""
    control_id: str = ""
    case_key: str = ""
    key: tuple[str, str] = ("", "")
    since: int = 0
    until: int = 0
    before: int = 0
    limit: int = 50


def listed(view: View, wanted: InboxFilter) -> list[InboxRow]:
    """Newest first; the next page begins before the last row's `seq`."""
    tests: list[tuple[str, object]] = [
        ("state = ?", wanted.state),
        ("channel = ?", wanted.channel),
        ("message_type = ?", wanted.message_type),
        ("control_id = ?", wanted.control_id),
        ("case_key <> '' AND case_key = ?", wanted.case_key),
        ("received_at >= ?", wanted.since),
        ("received_at < ?", wanted.until),
        ("seq < ?", wanted.before),
    ]
    rows = view.db.rows(*filtered("SELECT " + _COLUMNS + " FROM inbox", "id", "in", tests, wanted.key, wanted.limit))
    return [InboxRow(*row) for row in rows]


def waiting(view: View, channel: str, endpoint: str, limit: int) -> list[InboxRow]:
    """Messages of one listener that are not settled, oldest first."""
    rows = view.db.rows(
        f"SELECT {_COLUMNS} FROM inbox WHERE state = 'received' AND channel = ? AND endpoint = ? ORDER BY seq LIMIT ?",
        (channel, endpoint, limit),
    )
    return [InboxRow(*row) for row in rows]


def turn(view: View, name: str, token: int, seconds: float) -> int:
    """Takes a turn (`token` 0) or prolongs it by `seconds`, 0 = gives it back; its new token, 0 when it is another's.

    The token is the moment the turn ends, which only grows. Clocks of several hosts must agree within a third of it.
    """
    now, row_name = view.now(), f"turn {name}"
    until = now + int(seconds * 1_000_000)
    if token:
        told = "UPDATE counter SET value = ? WHERE name = ? AND value = ?"
        return until if view.db.count(told, (max(until, 1), row_name, token)) else 0
    row = view.db.one(
        "INSERT INTO counter (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value "
        "WHERE counter.value <= ? RETURNING value",
        (row_name, until, now),
    )
    return 0 if row is None else int(row[0])


def has_turn(view: View, name: str, token: int) -> bool:
    """Whether a turn stands; it then does to the end of this transaction."""
    sql = f"SELECT value FROM counter WHERE name = ?{view.db.dialect.for_share}"
    row = view.db.one(sql, (f"turn {name}",))
    return row is not None and int(row[0]) == token


def filtered(
    select: str,
    id_column: str,
    box: str,
    tests: Iterable[tuple[str, object]],
    key: tuple[str, str],
    limit: int,
    order: str = "seq DESC",
) -> tuple[str, list[object]]:
    """A statement with the tests whose value is set, and the business key when one is given."""
    kept = [(condition, value) for condition, value in tests if value]
    conditions = [condition for condition, _ in kept]
    params = [value for _, value in kept]
    if key[1]:
        kind = "k.kind = ? AND " if key[0] else ""
        conditions.append(
            f"{id_column} IN (SELECT k.message FROM message_key k WHERE {kind}k.value = ? AND k.box = '{box}')"
        )
        params.extend([key[0], bounded(key[1])] if key[0] else [bounded(key[1])])
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"{select}{where} ORDER BY {order} LIMIT ?", [*params, limit]


def counts(view: View) -> dict[tuple[str, str], int]:
    """Messages that are not taken in, by (channel, state): what is done is found by no index, and not counted."""
    rows: list[Row] = view.db.rows(
        "SELECT channel, state, count(*) FROM inbox WHERE state IN ('received', 'error', 'refused', 'conflict') "
        "GROUP BY channel, state"
    )
    return {(row[0], row[1]): int(row[2]) for row in rows}


def record_blob(view: View, content: Kept, media_type: str, *, for_good: bool = False) -> None:
    """Says that content belongs to the record: as long as a row refers to it, or for good.

    The row stays locked to the end of the transaction, so that a clean-up looks at it before or after, not meanwhile.
    """
    view.db.run(
        "INSERT INTO blob (sha256, size, media_type, form, key_id, created_at, kept) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (sha256) DO UPDATE SET idle_since = 0, form = excluded.form, key_id = excluded.key_id, "
        "kept = CASE WHEN excluded.kept = 1 THEN 1 ELSE blob.kept END",
        (
            content.sha256,
            content.size,
            media_type,
            content.form.name,
            content.form.key_id,
            view.now(),
            int(for_good),
        ),
    )


def sha256_of(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
