"""Messages that arrive at once on PostgreSQL, stored by one statement, which is one wait and one commit for all.

Hides who sends it: a thread that brings a message does so for those that came meanwhile (see `together`). Only what is
new is stored here: a repeat, a conflict and what does not fit a row are left to `inbox.receive`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache

from fhir_server import errors
from fhir_server.store.dialect import Row, Session, marks
from fhir_server.store.inbox import COLUMNS, ONCE, NewMessage, Received, key_rows, new_row
from fhir_server.store.together import Together, Turn

log = logging.getLogger("passerelle.store")
AT_A_TIME = 64

_TYPES = {"size": "bigint", "received_at": "bigint", "original": "smallint"}
_LISTS = ", ".join(f"?::{_TYPES.get(name, 'text')}[]" for name in COLUMNS)
_VALUES = ", ".join("decode(x.raw, 'hex')" if name == "raw" else f"x.{name}" for name in COLUMNS)
# Numbers are given in the order of arrival. Each message's own control id decides, in one order for all processes, so
# that no two wait for each other in a ring.
_STORE = (
    f"WITH kept AS (INSERT INTO inbox (seq, {', '.join(COLUMNS)}) SELECT x.seq, {_VALUES} FROM "
    "(SELECT nextval(pg_get_serial_sequence('inbox', 'seq')) AS seq, r.* "
    f"FROM unnest({_LISTS}) AS r({', '.join(COLUMNS)}) OFFSET 0) x ORDER BY x.sender, x.control_id {ONCE} "
    "RETURNING id), "
    "keyed AS (INSERT INTO message_key (box, message, kind, value) SELECT k.box, k.message, k.kind, k.value "
    "FROM unnest(?::text[], ?::text[], ?::text[], ?::text[]) AS k(box, message, kind, value) "
    "JOIN kept ON kept.id = k.message) SELECT id FROM kept"
)
_RAW = COLUMNS.index("raw")


@dataclass(frozen=True, slots=True)
class _Arrival:
    """The rows of a message: made by the thread that brings it, while others wait for the database."""

    row: Row
    keys: Sequence[Row]


class Arriving:
    """The messages that wait for the next statement. `once` opens a session for one statement, which is its own
    transaction."""

    def __init__(self, once: Callable[[], AbstractContextManager[Session]]) -> None:
        self._once = once
        self._line = Together(self._stored)

    def receive(self, message: NewMessage, sha256: str, received_at: int) -> Received | None:
        """Once it is stored; None when it is not new, or could not be stored together with others."""
        row = new_row(message, sha256, received_at)
        received: Received | None = self._line.do(_Arrival(row, key_rows("in", row[0], message.keys)))
        return received

    def _stored(self, first: Turn[_Arrival], line: Together[_Arrival]) -> None:
        turns = [first]
        while len(turns) < AT_A_TIME and (turn := line.following()) is not None:
            turns.append(turn)
        arrivals = [turn.work for turn in turns]
        try:
            stored = self._store(arrivals)
        except errors.PasserelleError as fault:
            line.fail(turns, fault)
        except Exception as fault:
            # One that cannot be stored, or whose like another process is storing, or a deadlock: alone, each learns
            # what is wrong with it. What the database says of it may show its content.
            told = type(fault).__name__, getattr(fault, "sqlstate", None) or "-"
            log.warning("%d messages could not be stored together: %s (%s)", len(turns), *told)
            for turn in turns:
                line.settle(turn)
        else:
            for turn, received in zip(turns, stored, strict=True):
                line.settle(turn, received)

    def _store(self, arrivals: Sequence[_Arrival]) -> list[Received | None]:
        rows, keys = [one.row for one in arrivals], [key for one in arrivals for key in one.keys]
        sql, params = _of_one(rows[0], keys) if len(rows) == 1 else _of_many(rows, keys)
        with self._once() as session:
            kept = {found[0] for found in session.rows(sql, params)}
        return [Received(row[0], "received", False, None) if row[0] in kept else None for row in rows]


def _of_one(row: Row, keys: Sequence[Row]) -> tuple[str, Sequence[object]]:
    """What stores a message that comes alone: plain values, the least to read."""
    values = list(row)
    values[_RAW] = "\\x" + row[_RAW].hex()
    return _single(len(keys)), [*values, *(part for key in keys for part in key[2:])]


@lru_cache(maxsize=64)
def _single(keys: int) -> str:
    """The statement for one message with so many keys."""
    kept = f"INSERT INTO inbox ({', '.join(COLUMNS)}) VALUES ({marks(COLUMNS)}) {ONCE} RETURNING id"
    if not keys:
        return kept
    pairs = ", ".join(["(?, ?)"] * keys)
    return (
        f"WITH kept AS ({kept}), keyed AS (INSERT INTO message_key (box, message, kind, value) "
        f"SELECT 'in', kept.id, k.kind, k.value FROM kept, (VALUES {pairs}) AS k(kind, value)) SELECT id FROM kept"
    )


def _of_many(rows: Sequence[Row], keys: Sequence[Row]) -> tuple[str, Sequence[object]]:
    """What stores several: a list for each column, so that one statement serves for any number of them."""
    columns = list(zip(*rows, strict=True))
    columns[_RAW] = tuple(raw.hex() for raw in columns[_RAW])
    return _STORE, [_list(values) for values in (*columns, *(zip(*keys, strict=True) if keys else ((),) * 4))]


def _list(values: Sequence[object]) -> str:
    """An array as PostgreSQL reads it (https://www.postgresql.org/docs/15/arrays.html#ARRAYS-IO)."""
    if not values:
        return "{}"
    texts = [str(value) for value in values]
    together = "".join(texts)
    if '"' in together or "\\" in together:
        texts = [text.replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    return '{"' + '","'.join(texts) + '"}'
