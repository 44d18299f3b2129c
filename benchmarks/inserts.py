"""The floor under every write of a message: its bytes inserted as one row, one commit each, with nothing around."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

import psycopg


class Insert:
    """One row, one commit: what no store of messages can be faster than."""

    lock = threading.Lock()

    def __init__(self, connection: Any, statement: str, alone: bool) -> None:
        self._connection, self._statement, self._alone = connection, statement, alone

    def put(self, raw: bytes) -> None:
        # SQLite has one writer at a time: waiting for it outside is kinder than its busy handler.
        with self.lock if self._alone else contextlib.nullcontext():
            self._connection.execute(self._statement, (raw,))
            self._connection.commit()

    def close(self) -> None:
        self._connection.close()


def inserting(url: str, folder: Path) -> Insert:
    """A connection beside the store at `url`: PostgreSQL's own cluster, or an SQLite file of its own in `folder`."""
    if url.startswith("sqlite"):
        plain = sqlite3.connect(folder / "limit.db", check_same_thread=False, timeout=60)
        plain.execute("PRAGMA journal_mode = WAL")
        plain.execute("PRAGMA synchronous = FULL")
        plain.execute("CREATE TABLE IF NOT EXISTS bench (id INTEGER PRIMARY KEY, raw BLOB)")
        return Insert(plain, "INSERT INTO bench (raw) VALUES (?)", True)
    connection = psycopg.connect(url)
    connection.execute("SELECT pg_advisory_xact_lock(1)")
    connection.execute("CREATE TABLE IF NOT EXISTS bench (id bigserial PRIMARY KEY, raw bytea)")
    connection.commit()
    return Insert(connection, "INSERT INTO bench (raw) VALUES (%s)", False)
