"""PostgreSQL plans by what it knows of its tables: tells it to look again after a load.

Its own daemon comes by once a minute; until then a table that was just filled counts as empty, and a search of it is
planned for one row. So much written is noted here, and a thread that lives no longer than this looks at the tables that
grew by it: after the commit, in nobody's time, and once in a while at most.

Source: https://www.postgresql.org/docs/15/sql-analyze.html
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import LiteralString, cast

import psycopg

from fhir_server import errors
from fhir_server.store.dialect import Row

log = logging.getLogger("passerelle.store")
Connect = Callable[[], "psycopg.Connection[Row]"]
# A look at a table reads a sample of it, whatever its size: seconds at most.
SECONDS = 600.0
_ROWS, _PAUSE = 5_000, 60.0
_ALL = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1"
# Below a tenth of what is there, the statistics still hold.
_GROWN = (
    "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "JOIN unnest(%s::text[], %s::bigint[]) AS w(name, rows) ON w.name = c.relname "
    "WHERE n.nspname = current_schema() AND c.reltuples < 10 * w.rows ORDER BY 1"
)


def look(connect: Connect, written: Mapping[str, int] | None = None) -> None:
    """Has the database look at its tables; only those that grew by what was `written`, table by table, if that is
    given. What goes wrong is told in the log: the daemon will come."""
    try:
        with connect() as connection:
            if written is None:
                rows = connection.execute(_ALL).fetchall()
            else:
                rows = connection.execute(_GROWN, (list(written), list(written.values()))).fetchall()
            _analyse(connection, [name for (name,) in rows])
    except (psycopg.Error, errors.PasserelleError) as fault:
        log.warning("the database did not look at its tables anew: %s", type(fault).__name__)


def _analyse(connection: psycopg.Connection[Row], tables: Sequence[str]) -> None:
    for table in tables:  # one by one: a lock on one keeps nobody from the others
        connection.execute(cast(LiteralString, f"ANALYZE (SKIP_LOCKED) {table}"))  # type: ignore[redundant-cast]


class Statistics:
    """What one process wrote since the last look."""

    def __init__(self, connect: Connect, *, rows: int = _ROWS, pause: float = _PAUSE) -> None:
        """A look is due after so many `rows`, `pause` seconds after the one before at the earliest."""
        self._connect, self._rows, self._pause = connect, rows, pause
        self._lock = threading.Lock()
        self._written: Counter[str] = Counter()
        self._looked = -pause
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def wrote(self, rows: Mapping[str, int]) -> None:
        """So many rows were committed, by table; returns at once."""
        with self._lock:
            self._written.update(rows)
            if self._thread is None and not self._ended.is_set() and self._written.total() > self._rows:
                thread = threading.Thread(target=self._look, name="store-statistics", daemon=True)
                try:
                    thread.start()
                except RuntimeError as fault:  # the rows are committed: that no thread can be had must not fail them
                    log.warning("the database did not look at its tables anew: %s", fault)
                else:
                    self._thread = thread

    def _look(self) -> None:
        while not self._ended.wait(max(0.0, self._looked + self._pause - time.monotonic())):
            with self._lock:
                written, self._written = self._written, Counter()
            look(self._connect, written)
            with self._lock:
                self._looked = time.monotonic()
                if self._written.total() <= self._rows:
                    self._thread = None
                    return

    def close(self) -> None:
        """Waits for a look that is under way, for a moment."""
        with self._lock:
            self._ended.set()
            thread = self._thread
        if thread is not None:
            thread.join(10)
