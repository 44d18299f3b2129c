"""PostgreSQL: a small bounded pool of connections, retries where the database asks for them.

Writes run READ COMMITTED and lock the rows they change: a criterion locked first is then searched with a fresh
snapshot, which REPEATABLE READ would not give. Reads run in one REPEATABLE READ snapshot. Plans are made for each
statement's values: a generic plan can be hundreds of times slower on skewed index tables.

Sources: https://www.postgresql.org/docs/15/transaction-iso.html, https://www.psycopg.org/psycopg3/docs/
"""

from __future__ import annotations

import random
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import LiteralString, TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg.types.numeric import Int8Dumper

from fhir_server import errors
from fhir_server.store.dialect import (
    TOO_LONG,
    Dialect,
    Row,
    Session,
    delete_postgresql,
    postgresql,
    pyformat,
)
from fhir_server.store.gathered import LARGE, Gathered
from fhir_server.store.soon import GOOD, SoonReads, numbered, row_of
from fhir_server.store.statistics import SECONDS, Statistics
from fhir_server.store.tables import RESOURCE, VERSION, Bulk
from fhir_server.store.view import Stale

T = TypeVar("T")
Connection = psycopg.Connection[Row]
TRIES = 3
_PEER_CLOSED: int = getattr(select, "POLLRDHUP", select.POLLHUP)  # the first is Linux's
_OPEN = psycopg.pq.TransactionStatus.INTRANS
_NOT_NOW = (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout)
_RETRIED = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


# A plan that is kept must not read a whole table because the table was small when it was made.
_STEADY = (
    "SELECT set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true), "
    "set_config('jit', 'off', true)"
)
_OF_NEW = [name for name, _ in RESOURCE.columns]
_PUT_NEW = f"INSERT INTO resource ({', '.join(_OF_NEW)}, txid) VALUES ({'%s, ' * len(_OF_NEW)}{{txid}})"
_OLD = ", ".join(name for name, _ in VERSION.columns if name != "mask")
_KEEP_OLD = f"INSERT INTO history ({_OLD}, txid) SELECT {_OLD}, txid FROM resource WHERE rid = %s"
_NEXT = ", ".join(f"{name} = %s" for name, _ in VERSION.columns if name != "rid")
_PUT_NEXT = f"UPDATE resource SET {_NEXT}, txid = {{txid}} WHERE rid = %s"
_LINGER = "SET LOCAL idle_in_transaction_session_timeout = '10min'"
_RID_BLOCK, _MOST_RIDS = 64, 1024
_DRAW = "SELECT nextval(pg_get_serial_sequence('resource', 'rid')) FROM generate_series(1, ?)"
# A single key is taken alone; of several the first is shared.
_LOCK = (
    "SELECT CASE WHEN n = 1 AND %s::bigint > 1 THEN pg_advisory_xact_lock_shared(k) ELSE pg_advisory_xact_lock(k) END "
    "FROM unnest(%s::bigint[]) WITH ORDINALITY AS t(k, n)"
)


def _query(sql: str) -> LiteralString:
    """psycopg asks for literal SQL; every text that comes here is built by this package with placeholders."""
    return cast(LiteralString, sql)  # type: ignore[redundant-cast]


def connect(url: str, *, statement_seconds: float = 30.0) -> Connection:
    """A connection with our settings. Raises `Unavailable` when the server does not answer."""
    limit = int(statement_seconds * 1000)
    # A process that is frozen within a transaction holds its locks, a lane's or a turn's, until the server ends it. A
    # transaction that writes waits for nothing but the database, and ten seconds are long for that; one that reads
    # content meanwhile says so (`linger`).
    options = (
        f"-c statement_timeout={limit} -c lock_timeout={limit} -c idle_in_transaction_session_timeout=10000"
        " -c plan_cache_mode=force_custom_plan -c jit=off -c timezone=UTC -c client_min_messages=warning"
    )
    try:
        connection = psycopg.connect(
            url, autocommit=True, options=options, application_name="passerelle", client_encoding="UTF8"
        )
    except psycopg.OperationalError as fault:
        raise errors.Unavailable(
            f"The database does not answer ({_first_line(fault)}); check PASSERELLE_DATABASE_URL."
        ) from fault
    connection.adapters.register_dumper(int, Int8Dumper)
    return connection


_NUMBERS = (
    "SELECT coalesce((SELECT value FROM counter WHERE name = 'txid base'), 0), "
    "greatest((SELECT max(txid) FROM journal), (SELECT max(txid) FROM audit), 0), "
    "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
)


def numbering(connection: Connection) -> int:
    """What this database adds to its cluster's transaction numbers so that they follow those it has stored.

    0 until rows come from another cluster (a restore, a dump): that one's numbers may be far ahead of this one's, and
    readers of the journal would wait for them to come.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(5021977312)")
        row = connection.execute(_NUMBERS).fetchone()
        assert row is not None
        base, stored, following = (int(value) for value in row)
        if stored < base + following:
            return base
        base = stored + 1
        connection.execute(
            "INSERT INTO counter (name, value) VALUES ('txid base', %s) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (base,),
        )
    return base


class PostgresSession:
    """A `Session` over psycopg."""

    def __init__(
        self,
        opened: Callable[[], tuple[Connection, psycopg.Pipeline | None]],
        dialect: Dialect,
        rids: deque[int] | None = None,
        names: dict[str, bytes] | None = None,
    ) -> None:
        """`opened` gives the connection; it is called when the first statement comes, so that none costs nothing.
        `names`: the statements prepared on a connection whose `rows` are always of the same few."""
        self.dialect = dialect
        self._opened = opened
        self._connection: Connection | None = None
        self._pipeline: psycopg.Pipeline | None = None
        self._rids, self._names = rids, names
        self._steady = False
        self._gathered, self._block = Gathered(), _RID_BLOCK
        self.written: Counter[str] = Counter()

    def _execute(self, sql: str, params: Sequence[object]) -> psycopg.Cursor[Row]:
        if self._connection is None:
            self._connection, self._pipeline = self._opened()
        return self._connection.execute(_query(sql), params)

    def _answered(self, sql: str, params: Sequence[object]) -> psycopg.Cursor[Row]:
        """The statement with its answer, which may depend on what was gathered."""
        self.flush()
        return self._looked_up(sql, params)

    def _looked_up(self, sql: str, params: Sequence[object]) -> psycopg.Cursor[Row]:
        """The statement with its answer. A Sync brings it, not a Flush, at the same cost: only then does the server
        know that it waits for us, and count the seconds of `idle_in_transaction_session_timeout`."""
        cursor = self._execute(pyformat(sql), params)
        if self._pipeline is not None:
            self._pipeline.sync()
        return cursor

    def rows(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        if self._names is not None:
            return self._prepared(self._names, sql, params)
        return self._answered(sql, params).fetchall()

    def _prepared(self, names: dict[str, bytes], sql: str, params: Sequence[object]) -> list[Row]:
        """Without the driver's cursor, which costs the processor more than the rest of a short statement."""
        connection, _ = self._opened()
        name = names.get(sql)
        if name is None:
            name = f"kept{len(names)}".encode()
            _good(connection, connection.pgconn.prepare(name, numbered(sql)))
            names[sql] = name
        asked = [str(one).encode() for one in params]
        if any(b"\0" in one for one in asked):
            raise psycopg.DataError("PostgreSQL text cannot contain NUL")  # libpq would end the value there
        result = _good(connection, connection.pgconn.exec_prepared(name, asked))
        return [row_of(result, number) for number in range(result.ntuples)]

    def one(self, sql: str, params: Sequence[object] = ()) -> Row | None:
        return self._answered(sql, params).fetchone()

    def run(self, sql: str, params: Sequence[object] = ()) -> None:
        if not sql.startswith("INSERT"):
            self.flush()
        self._execute(pyformat(sql), params)

    def count(self, sql: str, params: Sequence[object] = ()) -> int:
        return self._answered(sql, params).rowcount

    def later(self, sql: str, params: Sequence[object] = ()) -> Callable[[], int]:
        self.flush()
        cursor = self._execute(pyformat(sql), params)

        def changed() -> int:
            if self._pipeline is not None and cursor.pgresult is None:
                self._pipeline.sync()
            return cursor.rowcount

        return changed

    def fill(self, bulk: Bulk, rows: Sequence[Row]) -> None:
        """Gathered: the rows of a whole transaction travel in one statement, at the latest before its commit."""
        if bulk is RESOURCE and any(len(row[-1]) > LARGE for row in rows):
            for row in rows:
                self._execute(_PUT_NEW.format(txid=self.dialect.txid), row)
            return
        self._gathered.fill(bulk, rows)
        if self._gathered.heavy:
            self.flush()

    def supersede(self, row: Row) -> None:
        if len(row[-1] or "") > LARGE:
            self._execute(_KEEP_OLD, (row[0],))
            self._execute(_PUT_NEXT.format(txid=self.dialect.txid), (*row[1:], row[0]))
            return
        self._gathered.supersede(row)
        if self._gathered.heavy:
            self.flush()

    def agree(self, rid: int, wanted: Mapping[Bulk, Sequence[Row]]) -> None:
        self._gathered.agree(rid, wanted)

    def flush(self, *, last: bool = False) -> None:
        """Sends what was gathered. Call before anything that may look at it. `last`: nothing else comes."""
        if self._gathered:
            gathered, self._gathered = self._gathered, Gathered()
            self.written.update(gathered.sizes)
            if last:
                self.steady()
            self._execute(*gathered.statement(self.dialect.txid))

    def clear(self, bulks: Sequence[Bulk], rid: int) -> None:
        if bulks:
            self.flush()
            self._execute(delete_postgresql(tuple(bulks)), [rid] * len(bulks))

    def next_rid(self) -> int | None:
        """From a block that this process drew, so that a row need not be written before its number is known; who
        needs many draws larger ones."""
        if self._rids is None:
            return None
        while True:
            try:
                return self._rids.popleft()
            except IndexError:
                drawn = self._looked_up(_DRAW, (self._block,))
                self._rids.extend(int(row[0]) for row in drawn)
                self._block = min(4 * self._block, _MOST_RIDS)

    def steady(self) -> None:
        if not self._steady:
            self.flush()
            self._steady = True
            self._execute(_STEADY, ())

    def linger(self) -> None:
        if self._pipeline is not None:
            self._answered(_LINGER, ())

    def stamp(self) -> None:
        """Nothing to do: the database numbers its transactions."""

    def lock(self, keys: Sequence[int]) -> None:
        self._execute(_LOCK, [len(keys), list(keys)])


class PostgresDatabase:
    """The pool of one process."""

    def __init__(self, url: str, *, connections: int = 12, statement_seconds: float = 30.0) -> None:
        self._url = url
        self._statement_seconds = statement_seconds
        # Lists: what they do at their end, no two threads do at once.
        self._idle: list[Connection] = []
        self._steady: list[Connection] = []
        self._names: WeakKeyDictionary[Connection, dict[str, bytes]] = WeakKeyDictionary()
        self._slots = threading.BoundedSemaphore(connections)
        self._closed = False
        first = connect(url, statement_seconds=statement_seconds)
        self.dialect = postgresql(numbering(first))
        self._idle.append(first)
        self._rids: deque[int] = deque()
        self._soon = SoonReads(self._line)
        self._statistics = Statistics(lambda: connect(url, statement_seconds=SECONDS))

    def _line(self) -> Connection:
        """A connection for statements whose plan suits all values: it is made once, which costs the server less."""
        connection = connect(self._url, statement_seconds=self._statement_seconds)
        connection.execute("SET plan_cache_mode = force_generic_plan")
        return connection

    def _impatient(self) -> Connection:
        """A line for what many have a part in: it waits for whoever holds a lock no longer than all of them can."""
        connection = self._line()
        connection.execute("SET lock_timeout = '500ms'")
        return connection

    async def soon(self, sql: str, params: Sequence[object]) -> Row | None:
        """The first row of one statement by key, on the running event loop. Raises NotSoon."""
        return await self._soon.one(sql, params)

    def transaction(self, work: Callable[[Session], T]) -> T:
        """Runs `work` in a transaction, again after a deadlock or serialisation failure, up to three times."""
        for attempt in range(1, TRIES + 1):
            try:
                with self._connection() as connection:
                    return self._once(connection, work)
            except psycopg.errors.UniqueViolation as fault:
                if fault.diag.constraint_name != "resource_type_id":
                    raise
                raise Stale("a resource of that id has come into being") from fault
            except _RETRIED as fault:
                if attempt == TRIES:
                    raise errors.Unavailable("Too many changes at once on the same data; repeat.") from fault
                time.sleep(random.uniform(0.002, 0.02) * attempt)
        raise AssertionError("unreachable")

    def _once(self, connection: Connection, work: Callable[[Session], T]) -> T:
        """In pipeline mode: what returns nothing travels with what follows, BEGIN and COMMIT too."""
        committing = False
        try:
            with connection.pipeline() as pipeline:
                connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                session = PostgresSession(lambda: (connection, pipeline), self.dialect, self._rids)
                result = work(session)
                session.flush(last=True)
                if _ended(connection):
                    raise errors.Unavailable("The database ended the transaction; nothing was written: repeat it.")
                committing = True
                connection.execute("COMMIT")
        except BaseException as fault:
            broken = connection.closed
            _undo(connection, fault)
            if committing and broken and isinstance(fault, psycopg.OperationalError):
                raise errors.Unavailable("The connection broke during the commit; read before repeating.") from fault
            raise
        self._statistics.wrote(session.written)
        return result

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A read-only transaction with one snapshot, that of its first statement; none when there is no statement."""
        if self._closed:
            raise _stopping()
        with ExitStack() as stack:
            yield PostgresSession(lambda: stack.enter_context(self._reading()), self.dialect)

    @contextmanager
    def _reading(self) -> Iterator[tuple[Connection, psycopg.Pipeline]]:
        with self._connection() as connection:
            try:
                with connection.pipeline() as pipeline:
                    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    yield connection, pipeline
                    connection.execute("COMMIT")  # the driver forgets its prepared statements at a ROLLBACK
            except BaseException as fault:
                _undo(connection, fault)
                raise

    @contextmanager
    def once(self, steady: bool = False) -> Iterator[Session]:
        """For a single statement: its own snapshot, no transaction to open and close; `steady` as in `Session`, and
        `LockNotAvailable` where it would wait long for a lock."""
        with self._connection(steady) as connection:
            names = self._names.setdefault(connection, {}) if steady else None
            yield PostgresSession(lambda: (connection, None), self.dialect, names=names)

    @contextmanager
    def _connection(self, steady: bool = False) -> Iterator[Connection]:
        impatient = (psycopg.errors.LockNotAvailable,) if steady else ()
        if not self._slots.acquire(timeout=self._statement_seconds):
            raise errors.Throttled("Every database connection is busy; repeat in a moment.")
        connection = None
        try:
            connection = self._take(steady)
            yield connection
        except (*_RETRIED, *impatient):
            raise
        except psycopg.errors.QueryCanceled as fault:
            raise errors.Unavailable(TOO_LONG, code="timeout") from fault
        except _NOT_NOW as fault:
            raise errors.Unavailable(f"The database could not do this now ({_first_line(fault)}).") from fault
        finally:
            self._give_back(connection, self._steady if steady else self._idle)
            self._slots.release()

    def _take(self, steady: bool) -> Connection:
        if self._closed:
            raise _stopping()
        idle = self._steady if steady else self._idle
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                if steady:
                    return self._impatient()
                return connect(self._url, statement_seconds=self._statement_seconds)
            if _alive(connection):
                return connection
            connection.close()

    def _give_back(self, connection: Connection | None, idle: list[Connection]) -> None:
        if connection is None:
            return
        sound = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if self._closed or connection.closed or not sound:
            connection.close()
        else:
            idle.append(connection)

    def close(self) -> None:
        """Closes idle connections; those in use close when given back."""
        self._closed = True
        self._soon.close()
        self._statistics.close()
        for idle in (self._idle, self._steady):
            with suppress(IndexError):
                while True:
                    idle.pop().close()


def _stopping() -> errors.Unavailable:
    return errors.Unavailable("The server is stopping; repeat the request in a moment.")


def _undo(connection: Connection, fault: BaseException | None) -> None:
    """Ends a transaction that is not to stay. After a statement failed the connection is given up: the driver (3.3)
    remembers as prepared what it sent behind the failure, and the server never saw it."""
    if isinstance(fault, psycopg.Error) or connection.info.transaction_status != _OPEN:
        connection.close()
        return
    connection.pgconn.exec_(b"ROLLBACK")  # unseen by the driver, which would forget its prepared statements


def _alive(connection: Connection) -> bool:
    """Whether the server still holds this idle connection: on one that asked nothing, anything to read is its end."""
    if connection.closed:
        return False
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN)
    return not watch.poll(0)


def _ended(connection: Connection) -> bool:
    """Whether the server closed a connection that is in use; answers may wait there unread."""
    if connection.closed:
        return True
    watch = select.poll()
    watch.register(connection.fileno(), _PEER_CLOSED)
    return bool(watch.poll(0))


def _good(connection: Connection, result: psycopg.pq.abc.PGresult) -> psycopg.pq.abc.PGresult:
    """The result of a statement that went well. Raises what the driver would."""
    if result.status in GOOD:
        return result
    if connection.closed:
        raise psycopg.OperationalError(result.error_message.decode("utf-8", "replace"))
    raise psycopg.errors.error_from_result(result)


def _first_line(fault: Exception) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0]
