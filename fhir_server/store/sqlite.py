"""SQLite: one writer at a time with group commit, and a small pool of readers.

All writes queue in order of arrival (see `together`): a thread that writes does the work of those that wait behind it,
and commits the group at once. Each work is undone alone when it fails, and nobody hears of success before the group's
COMMIT is on the disk (WAL, synchronous=FULL). A statement that is stopped while it writes undoes the whole transaction;
the group's other works then run again. Readers see the snapshot of their first statement and never wait for the writer.

Sources: https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous,
https://sqlite.org/c3ref/interrupt.html
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fhir_server import errors
from fhir_server.store.dialect import SQLITE, TOO_LONG, Dialect, Row, Session, insert_sqlite
from fhir_server.store.soon import NotSoon
from fhir_server.store.tables import VERSION, Bulk
from fhir_server.store.together import Together, Turn

T = TypeVar("T")
_Work = Callable[["SqliteSession"], Any]
_Turn = Turn[_Work]
GROUP_WORKS = 128
GROUP_SECONDS = 0.02
BUSY_SECONDS = 10.0
_INTERRUPTED = "The server was interrupted while it wrote; read before repeating."
_STEPS_BETWEEN_CLOCK_LOOKS = 100_000
_OLD = ", ".join(name for name, _ in VERSION.columns if name != "mask")
_KEEP_OLD = f"INSERT INTO history ({_OLD}, txid) SELECT {_OLD}, txid FROM resource WHERE rid = ?"
_NEW = ", ".join(f"{name} = ?" for name, _ in VERSION.columns if name != "rid")
_PUT_NEW = f"UPDATE resource SET {_NEW}, txid = {SQLITE.txid} WHERE rid = ?"


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

    def later(self, sql: str, params: Sequence[object] = ()) -> Callable[[], int]:
        changed = self.count(sql, params)
        return lambda: changed

    def fill(self, bulk: Bulk, rows: Sequence[Row]) -> None:
        self._limit = time.monotonic() + self._seconds
        self._connection.executemany(insert_sqlite(bulk), rows)

    def supersede(self, row: Row) -> None:
        self._execute(_KEEP_OLD, (row[0],))
        self._execute(_PUT_NEW, (*row[1:], row[0]))

    def agree(self, rid: int, wanted: Mapping[Bulk, Sequence[Row]]) -> None:
        for bulk, rows in wanted.items():
            held = self._execute(f"SELECT rowid, {bulk.names} FROM {bulk.table} WHERE rid = ?", (rid,)).fetchall()
            should, kept, gone = set(rows), set[Row](), list[tuple[int]]()
            for number, *columns in held:
                row = tuple(columns)
                if row in should and row not in kept:
                    kept.add(row)
                else:
                    gone.append((number,))
            if gone:
                self._connection.executemany(f"DELETE FROM {bulk.table} WHERE rowid = ?", gone)
            if new := [row for row in rows if row not in kept]:
                self.fill(bulk, new)

    def clear(self, bulks: Sequence[Bulk], rid: int) -> None:
        for bulk in bulks:
            self._execute(f"DELETE FROM {bulk.table} WHERE rid = ?", (rid,))

    def next_rid(self) -> None:
        """The database gives it with the row."""

    def steady(self) -> None:
        """Nothing to do: a statement is planned once for all values."""

    def linger(self) -> None:
        """Nothing to do: a transaction may stand idle."""

    def stamp(self) -> None:
        if not self._stamped:
            self._execute("UPDATE counter SET value = value + 1 WHERE name = 'tx'", ())
            self._stamped = True

    def lock(self, keys: Sequence[int]) -> None:
        """Nothing to do: one writer."""


class _Undone(Exception):
    """The transaction is gone with the last work of its group, which knows why; the others are to run again."""


class SqliteDatabase:
    """The writer and the readers of one database file."""

    dialect = SQLITE

    def __init__(self, path: Path, *, readers: int = 8, statement_seconds: float = 30.0) -> None:
        self._path = path
        self._statement_seconds = statement_seconds
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._slots = threading.BoundedSemaphore(readers)
        self._closed = False
        self._writer = connect(path)
        self._line = Together(self._serve)

    def transaction(self, work: Callable[[Session], T]) -> T:
        """Runs `work` on this thread or on one that writes; returns or raises once the outcome is on the disk."""
        if self._line.inside:
            raise errors.Fault("a write was started inside a write; pass the running transaction on instead")
        result: T = self._line.do(work)
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

    def once(self, steady: bool = False) -> AbstractContextManager[Session]:
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
        self._line.close()
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _serve(self, first: _Turn, line: Together[_Work]) -> None:
        again = [first]
        while again:
            again = self._served(again, line)

    def _served(self, first: list[_Turn], line: Together[_Work]) -> list[_Turn]:
        """Runs a group that begins with these works; those of it that must run again."""
        group: list[_Turn] = []
        try:
            self._group(first, group, line)
        except _Undone:
            last = group.pop()
            line.settle(last, fault=last.fault)
            for one in group:
                one.value = one.fault = None
            return [*group, *first[len(group) + 1 :]]
        except BaseException as fault:
            self._abandon([*group, *first[len(group) :]], fault, line)
            if not isinstance(fault, Exception):
                raise  # it was meant for this thread, whoever's work it met
        return []

    def _group(self, first: list[_Turn], group: list[_Turn], line: Together[_Work]) -> None:
        """Runs the first works and those waiting behind them, commits, answers; `group` tells who was run."""
        connection = self._writer
        connection.execute("BEGIN IMMEDIATE")
        deadline = time.monotonic() + GROUP_SECONDS
        kept = False
        for one in first:
            group.append(one)
            kept = self._one(one, kept)
        while len(group) < GROUP_WORKS and (turn := line.following()) is not None:
            group.append(turn)
            kept = self._one(turn, kept)
            if time.monotonic() > deadline:
                break
        connection.execute("COMMIT")
        for turn in group:
            line.settle(turn, turn.value, turn.fault)

    def _one(self, turn: _Turn, kept: bool) -> bool:
        """Runs one work, and undoes it alone when it fails; `kept`: whether there is anything else to be kept in this
        transaction. Returns whether there is now."""
        connection = self._writer
        if kept:
            connection.execute("SAVEPOINT work")
        try:
            turn.value = turn.work(SqliteSession(connection, self._statement_seconds))
        except Exception as fault:
            turn.fault = translated(fault) if isinstance(fault, sqlite3.OperationalError) else fault
        finally:
            connection.set_progress_handler(None, 0)
        if not connection.in_transaction:
            turn.fault = turn.fault or errors.Unavailable("The database undid the transaction; repeat it.")
            raise _Undone
        if not kept and turn.fault is not None:
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            return False
        if turn.fault is not None:
            connection.execute("ROLLBACK TO work")
        if kept:
            connection.execute("RELEASE work")
        return True

    def _abandon(self, group: list[_Turn], fault: BaseException, line: Together[_Work]) -> None:
        """The whole group is undone (disk full, I/O error): nobody was told of success, everybody may repeat."""
        if self._writer.in_transaction:
            with suppress(sqlite3.Error):  # the next BEGIN says so again
                self._writer.execute("ROLLBACK")
        if isinstance(fault, sqlite3.Error):
            told: BaseException = translated(fault)
        else:
            told = fault if isinstance(fault, Exception) else errors.Unavailable(_INTERRUPTED)
        left = [turn for turn in group if not turn.settled]
        for turn in left:
            if turn.fault is not None:
                line.settle(turn, fault=turn.fault)
        line.fail((turn for turn in left if turn.fault is None), told)


def translated(fault: sqlite3.Error) -> errors.PasserelleError:
    """sqlite3's operational errors as ours."""
    text = str(fault)
    if text == "interrupted":
        return errors.Unavailable(TOO_LONG, code="timeout")
    return errors.Unavailable(f"The database could not do this now ({text}); nothing was written.")
