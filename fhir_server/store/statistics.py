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
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import LiteralString, cast

import psycopg

from fhir_server import errors
from fhir_server.store.dialect import Row

log = logging.getLogger("passerelle.store")
Connect = Callable[[], AbstractContextManager["psycopg.Connection[Row]"]]
# A look at a table reads a sample of it, whatever its size: seconds at most.
SECONDS = 600.0
_ROWS, _PAUSE = 5_000, 60.0
# A stop ends the look that is under way, again and again: what it says between two statements nobody hears.
_STOP_SECONDS, _AGAIN_SECONDS = 5.0, 0.1
_ALL = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1"
# Below a tenth of what is there, the statistics still hold.
_GROWN = (
    "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "JOIN unnest(%s::text[], %s::bigint[]) AS w(name, rows) ON w.name = c.relname "
    "WHERE n.nspname = current_schema() AND c.reltuples < 10 * w.rows ORDER BY 1"
)


def look(connect: Connect, written: Mapping[str, int] | None = None, ended: threading.Event | None = None) -> None:
    """Has the database look at its tables; only those that grew by what was `written`, table by table, if that is
    given. What goes wrong is told in the log and fails nothing: the daemon will come. No further table is looked at
    once `ended` is set."""
    ended = ended or threading.Event()
    try:
        with connect() as connection:
            if written is None:
                rows = connection.execute(_ALL).fetchall()
                connection.add_notice_handler(_skipped)
            else:
                rows = connection.execute(_GROWN, (list(written), list(written.values()))).fetchall()
            for (table,) in rows:  # one by one: what keeps us from one keeps us not from the others
                if ended.is_set():
                    return
                _analyse(connection, str(table), ended)
    except (psycopg.Error, errors.PasserelleError) as fault:
        if not ended.is_set():
            log.warning("the database did not look at its tables anew: %s", type(fault).__name__)


def _analyse(connection: psycopg.Connection[Row], table: str, ended: threading.Event) -> None:
    try:
        connection.execute(cast(LiteralString, f"ANALYZE (SKIP_LOCKED) {table}"))  # type: ignore[redundant-cast]
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable) as fault:
        if not ended.is_set():
            log.warning("the database did not look at table %s: %s", table, type(fault).__name__)


def _skipped(notice: psycopg.errors.Diagnostic) -> None:
    """A table that somebody has locked. While a server runs that is the daemon's own look, most of the time, and not
    worth a line; of all tables none should be missed unseen."""
    log.warning("the database did not look at a table: %s", notice.message_primary)


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
        self._connection: psycopg.Connection[Row] | None = None

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
            try:
                look(self._opened, written, self._ended)
            except Exception:  # of this look alone: the next load is looked at all the same
                log.exception("the database did not look at its tables anew")
            with self._lock:
                self._looked = time.monotonic()
                if self._written.total() <= self._rows:
                    self._thread = None
                    return

    @contextmanager
    def _opened(self) -> Iterator[psycopg.Connection[Row]]:
        """A connection whose statement `close` can end; it is there for as long as it is held under the lock."""
        with self._connect() as connection:
            with self._lock:
                self._connection = connection
            try:
                yield connection
            finally:
                with self._lock:
                    self._connection = None

    def close(self) -> None:
        """Ends a look that is under way, and waits until it has; not for long where the database does not answer."""
        with self._lock:
            self._ended.set()
            thread = self._thread
        until = time.monotonic() + _STOP_SECONDS
        while thread is not None and thread.is_alive() and time.monotonic() < until:
            with self._lock, suppress(psycopg.Error):
                if self._connection is not None:
                    self._connection.cancel_safe(timeout=1.0)
            thread.join(_AGAIN_SECONDS)
