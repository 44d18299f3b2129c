"""SQLite: one writer thread with group commit, and a small pool of readers.

All writes queue in order of arrival. The writer runs each work in a savepoint and commits a group at once: a
failing work undoes only itself, and nobody hears of success before the group's COMMIT is on the disk
(WAL, synchronous=FULL). A statement that is stopped while it writes undoes the whole transaction; the group's other
works then run again. Readers see the snapshot of their first statement and never wait for the writer.

Sources: https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous,
https://sqlite.org/c3ref/interrupt.html
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fhir_server import errors
from fhir_server.store.dialect import SQLITE, TOO_LONG, Dialect, Row, Session, insert_sqlite
from fhir_server.store.soon import NotSoon
from fhir_server.store.tables import Bulk

T = TypeVar("T")
GROUP_WORKS = 128
GROUP_SECONDS = 0.02
BUSY_SECONDS = 10.0
_STEPS_BETWEEN_CLOCK_LOOKS = 100_000


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection with our settings; `read_only` refuses writes but may maintain the shared-memory index."""
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = {-8_192 if read_only else -32_768}")
    connection.execute("PRAGMA temp_store = MEMORY")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    return connection


class SqliteSession:
    """A `Session` over sqlite3. Whoever ends it takes the connection's progress handler away."""

    dialect: Dialect = SQLITE

    def __init__(self, connection: sqlite3.Connection, statement_seconds: float) -> None:
        self._connection = connection
        self._stamped = False
        self._seconds = statement_seconds
        self._limit = 0.0
        connection.set_progress_handler(self._late, _STEPS_BETWEEN_CLOCK_LOOKS)

    def _late(self) -> int:
        return int(time.monotonic() > self._limit)

    def _execute(self, sql: str, params: Sequence[object]) -> sqlite3.Cursor:
        self._limit = time.monotonic() + self._seconds
        return self._connection.execute(sql, params)

    def rows(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        return self._execute(sql, params).fetchall()

    def one(self, sql: str, params: Sequence[object] = ()) -> Row | None:
        found: list[Row] = self._execute(sql, params).fetchmany(1)
        return found[0] if found else None

    def run(self, sql: str, params: Sequence[object] = ()) -> None:
        self._execute(sql, params)

    def count(self, sql: str, params: Sequence[object] = ()) -> int:
        return self._execute(sql, params).rowcount

    def fill(self, bulk: Bulk, rows: Sequence[Row]) -> None:
        self._limit = time.monotonic() + self._seconds
        self._connection.executemany(insert_sqlite(bulk), rows)

    def clear(self, bulks: Sequence[Bulk], rid: int) -> None:
        for bulk in bulks:
            self._execute(f"DELETE FROM {bulk.table} WHERE rid = ?", (rid,))

    def next_rid(self) -> None:
        """The database gives it with the row."""

    def linger(self) -> None:
        """Nothing to do: a transaction may stand idle."""

    def stamp(self) -> None:
        if not self._stamped:
            self._execute("UPDATE counter SET value = value + 1 WHERE name = 'tx'", ())
            self._stamped = True

    def lock(self, keys: Sequence[int]) -> None:
        """Nothing to do: one writer."""


@dataclass(slots=True)
class _Job:
    work: Callable[[Session], Any]
    future: Future[Any] = field(default_factory=Future)
    value: Any = None
    fault: BaseException | None = None


class _Undone(Exception):
    """The transaction is gone with the last work of its group, which knows why; the others are to run again."""


class SqliteDatabase:
    """The writer thread and the readers of one database file."""

    dialect = SQLITE

    def __init__(self, path: Path, *, readers: int = 8, statement_seconds: float = 30.0) -> None:
        self._path = path
        self._statement_seconds = statement_seconds
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._slots = threading.BoundedSemaphore(readers)
        self._closed = False
        self._gate = threading.Lock()
        self._writer = connect(path)
        self._thread = threading.Thread(target=self._serve, name="store-writer", daemon=True)
        self._thread.start()

    def transaction(self, work: Callable[[Session], T]) -> T:
        """Runs `work` on the writer thread; returns or raises once the outcome is on the disk."""
        if threading.current_thread() is self._thread:
            raise errors.Fault("a write was started inside a write; pass the running transaction on instead")
        job = _Job(work)
        with self._gate:
            if self._closed:
                raise errors.Unavailable("The server is stopping; repeat the request in a moment.")
            self._jobs.put(job)
        result: T = job.future.result()
        return result

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A read transaction; statements over the time limit raise `Unavailable` with the FHIR code `timeout`."""
        if not self._slots.acquire(timeout=self._statement_seconds):
            raise errors.Throttled("Too many searches are running; repeat in a moment.")
        try:
            with self._reader() as connection:
                yield SqliteSession(connection, self._statement_seconds)
        except sqlite3.OperationalError as fault:
            raise translated(fault) from fault
        finally:
            self._slots.release()

    def once(self) -> AbstractContextManager[Session]:
        """For a single statement; a read transaction costs nothing here."""
        return self.snapshot()

    async def soon(self, sql: str, params: Sequence[object]) -> Row | None:
        """The first row of one statement by key. Raises NotSoon when all readers are busy.

        It runs where it is asked: a lookup costs less than a change of thread, and waits for no writer.
        """
        if not self._slots.acquire(blocking=False):
            raise NotSoon("all readers are busy")
        try:
            with self._reader() as connection:
                return SqliteSession(connection, self._statement_seconds).one(sql, params)
        except (sqlite3.OperationalError, errors.Unavailable) as fault:
            raise NotSoon(str(fault)) from fault
        finally:
            self._slots.release()

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        if self._closed:
            raise errors.Unavailable("The server is stopping; repeat the request in a moment.")
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = connect(self._path, read_only=True)
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.set_progress_handler(None, 0)
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._give_back(connection)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if self._closed:
            connection.close()
        else:
            self._idle.put(connection)

    def close(self) -> None:
        """Finishes the queued writes, then closes every connection that is not in use."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        self._writer.close()
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _serve(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            again = [job]
            while again:
                again = self._served(again)

    def _served(self, first: list[_Job]) -> list[_Job]:
        """Runs a group that begins with these works; those of it that must run again."""
        group: list[_Job] = []
        try:
            self._group(first, group)
        except _Undone:
            last = group.pop()
            last.future.set_exception(last.fault)
            return [*(_Job(one.work, one.future) for one in group), *first[len(group) + 1 :]]
        except BaseException as fault:
            self._abandon([*group, *first[len(group) :]], fault)
        return []

    def _group(self, first: list[_Job], group: list[_Job]) -> None:
        """Runs the first works and those waiting behind them, commits, answers; `group` tells who was run."""
        connection = self._writer
        connection.execute("BEGIN IMMEDIATE")
        deadline = time.monotonic() + GROUP_SECONDS
        for job in first:
            group.append(job)
            self._one(job)
        while len(group) < GROUP_WORKS and time.monotonic() < deadline:
            try:
                following = self._jobs.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._jobs.put(None)
                break
            group.append(following)
            self._one(following)
        connection.execute("COMMIT")
        for job in group:
            if job.fault is not None:
                job.future.set_exception(job.fault)
            else:
                job.future.set_result(job.value)

    def _one(self, job: _Job) -> None:
        connection = self._writer
        connection.execute("SAVEPOINT work")
        try:
            job.value = job.work(SqliteSession(connection, self._statement_seconds))
        except BaseException as fault:
            job.fault = translated(fault) if isinstance(fault, sqlite3.OperationalError) else fault
        finally:
            connection.set_progress_handler(None, 0)
        if not connection.in_transaction:
            job.fault = job.fault or errors.Unavailable("The database undid the transaction; repeat it.")
            raise _Undone
        if job.fault is not None:
            connection.execute("ROLLBACK TO work")
        connection.execute("RELEASE work")

    def _abandon(self, group: list[_Job], fault: BaseException) -> None:
        """The whole group is undone (disk full, I/O error): nobody was told of success, everybody may repeat."""
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")
        told = translated(fault) if isinstance(fault, sqlite3.Error) else fault
        for job in group:
            job.future.set_exception(job.fault or told)


def translated(fault: sqlite3.Error) -> errors.PasserelleError:
    """sqlite3's operational errors as ours."""
    text = str(fault)
    if text == "interrupted":
        return errors.Unavailable(TOO_LONG, code="timeout")
    return errors.Unavailable(f"The database could not do this now ({text}); nothing was written.")
