"""The floor under every write of a message: its rows inserted and committed, with nothing around.

`inserting` writes the bare bytes as one row of a table without a further index. `storing` writes what the store keeps
of a message it has just received, which is what a store of ours can be compared with: the rows of the inbox and of its
search keys, with their columns and indexes, in a database of its own, and content over 64 KiB as a file. Both commit
each message alone, by the fewest waits there are (one statement on PostgreSQL), over as many connections as there are
senders; our store may commit several messages at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from fhir_server.store.dialect import Row, insert_sqlite, marks, pyformat
from fhir_server.store.inbox import COLUMNS, NewMessage, key_rows, new_row
from fhir_server.store.tables import MESSAGE_KEY

_ROW = f"INSERT INTO inbox ({', '.join(COLUMNS)}) VALUES ({marks(COLUMNS)})"
_ROWS = pyformat(
    f"WITH kept AS ({_ROW} RETURNING id) INSERT INTO message_key (box, message, kind, value) "
    "SELECT 'in', kept.id, k.kind, k.value FROM kept, (VALUES (?, ?), (?, ?), (?, ?)) AS k(kind, value)"
)


class Insert:
    """One message, one commit."""

    lock = threading.Lock()

    def __init__(self, connection: Any, write: Callable[[bytes], None], alone: bool) -> None:
        self._connection, self._write, self._alone = connection, write, alone

    def put(self, raw: bytes) -> None:
        # SQLite has one writer at a time: waiting for it outside is kinder than its busy handler.
        with self.lock if self._alone else contextlib.nullcontext():
            self._write(raw)

    def close(self) -> None:
        self._connection.close()


def inserting(url: str, folder: Path) -> Insert:
    """A connection beside the store at `url`: PostgreSQL's own cluster, or an SQLite file of its own in `folder`."""
    if url.startswith("sqlite"):
        plain = _sqlite(folder / "limit.db")
        plain.execute("CREATE TABLE IF NOT EXISTS bench (id INTEGER PRIMARY KEY, raw BLOB)")
        return Insert(plain, lambda raw: _done(plain.execute("INSERT INTO bench (raw) VALUES (?)", (raw,))), True)
    connection = psycopg.connect(url, autocommit=True)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(1)")
        connection.execute("CREATE TABLE IF NOT EXISTS bench (id bigserial PRIMARY KEY, raw bytea)")
    return Insert(
        connection, lambda raw: _done(connection.execute("INSERT INTO bench (raw) VALUES (%s)", (raw,))), False
    )


def storing(url: str, folder: Path) -> Insert:
    """A connection to the database at `url`, which has the store's schema and is used by nobody else; `folder` is for
    content."""
    if url.startswith("sqlite"):
        plain = _sqlite(Path(url.removeprefix("sqlite:///")))
        keys = insert_sqlite(MESSAGE_KEY)

        def write(raw: bytes) -> None:
            row, own = _rows(raw, folder)
            plain.execute("BEGIN IMMEDIATE")
            plain.execute(_ROW, row)
            plain.executemany(keys, own)
            plain.execute("COMMIT")

        return Insert(plain, write, True)
    connection = psycopg.connect(url, autocommit=True)

    def send(raw: bytes) -> None:
        row, own = _rows(raw, folder)
        connection.execute(_ROWS, [*row, *(part for key in own for part in key[2:])])

    return Insert(connection, send, False)


def _rows(raw: bytes, folder: Path) -> tuple[Row, list[Row]]:
    """Those of a message; its content is on the disk when it is no part of them."""
    sha256, control_id = hashlib.sha256(raw).hexdigest(), raw[:200].split(b"|")[9].decode()
    keys = (("msh-10", control_id), ("iep", f"V{control_id[-9:]}"), ("finess", "990009999"))
    row = new_row(NewMessage("mllp", raw, "mllp:bench", "127.0.0.1:1", "GAM|BENCH", control_id, keys=keys), sha256, 1)
    if row[COLUMNS.index("raw")] is None:
        with (folder / sha256).open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
    return row, key_rows("in", row[0], keys)


def _sqlite(path: Path) -> sqlite3.Connection:
    plain = sqlite3.connect(path, check_same_thread=False, timeout=60, isolation_level=None)
    plain.execute("PRAGMA journal_mode = WAL")
    plain.execute("PRAGMA synchronous = FULL")
    return plain


def _done(_: object) -> None:
    """A statement in autocommit is committed when it returns."""
