"""Single statements asked from an event loop without a thread: the hot path of a FHIR read on PostgreSQL.

Handing a read to a thread and its answer back costs more than the read itself (ADR 0037). Each connection here sends
one prepared statement at a time and lets the loop watch its socket. What goes wrong is `NotSoon`: ask again through the
ordinary pool, which tells a lost database from a slow one.

Source: https://www.postgresql.org/docs/15/libpq-async.html
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache

import psycopg
from psycopg import pq

from fhir_server.store.dialect import Row

_INTEGERS = (20, 21, 23)
GOOD = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
Connect = Callable[[], "psycopg.Connection[Row]"]


class NotSoon(Exception):
    """This cannot be answered here now; ask through the pool."""


@lru_cache(maxsize=256)
def numbered(sql: str) -> bytes:
    """The statement with PostgreSQL's own placeholders."""
    head, *rest = sql.split("?")
    return (head + "".join(f"${n}{part}" for n, part in enumerate(rest, 1))).encode()


class _Line:
    """One connection watched by the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: psycopg.Connection[Row]) -> None:
        self._loop, self._connection, self._names = loop, connection, dict[str, bytes]()
        self._asked: asyncio.Future[pq.abc.PGresult] | None = None
        self._result: pq.abc.PGresult | None = None
        self._pg = connection.pgconn
        self._pg.nonblocking = 1
        self._socket = self._pg.socket
        self.open = True
        loop.add_reader(self._socket, self._readable)

    async def one(self, sql: str, params: Sequence[object]) -> Row | None:
        name = self._names.get(sql)
        if name is None:
            name = f"soon{len(self._names)}".encode()
            self._pg.send_prepare(name, numbered(sql))
            await self._answer()
            self._names[sql] = name
        self._pg.send_query_prepared(name, [str(one).encode() for one in params])
        result = await self._answer()
        return row_of(result, 0) if result.ntuples else None

    async def _answer(self) -> pq.abc.PGresult:
        asked: asyncio.Future[pq.abc.PGresult] = self._loop.create_future()
        self._asked = asked
        if self._pg.flush():
            raise NotSoon("the statement does not fit the socket")
        result: pq.abc.PGresult = await asked
        if result.status not in GOOD:
            raise NotSoon(result.error_message.decode("utf-8", "replace"))
        return result

    def _readable(self) -> None:
        """Called by the loop; on a line that asked nothing, anything to read is its end."""
        lost = self._asked is None
        try:
            self._pg.consume_input()
            while self._asked is not None and not self._pg.is_busy():
                found = self._pg.get_result()
                if found is None:
                    self._settle()
                else:
                    self._result = found
        except psycopg.Error:
            lost = True
        if lost:
            self._lose()

    def _settle(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and self._result is not None and not asked.done():
            asked.set_result(self._result)

    def _lose(self) -> None:
        asked, self._asked = self._asked, None
        self.close()
        if asked is not None and not asked.done():
            asked.set_exception(NotSoon("the connection is lost"))

    def close(self) -> None:
        if self.open:
            self.open = False
            self._loop.remove_reader(self._socket)
            self._connection.close()


def row_of(result: pq.abc.PGresult, number: int) -> Row:
    """One row of a result, its integers as such and the rest as text."""
    values: list[object] = []
    for column in range(result.nfields):
        value = result.get_value(number, column)
        if value is None:
            values.append(None)
        else:
            values.append(int(value) if result.ftype(column) in _INTEGERS else value.decode())
    return tuple(values)


class SoonReads:
    """A few connections of one event loop; more requests than lines wait in order of arrival."""

    def __init__(self, connect: Connect, lines: int = 4) -> None:
        self._connect = connect
        self._most, self._made = lines, 0
        self._idle: list[_Line] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def one(self, sql: str, params: Sequence[object]) -> Row | None:
        """The first row of a statement. Raises NotSoon."""
        line = await self._take()
        done = False
        try:
            row = await line.one(sql, params)
            done = True
            return row
        except psycopg.Error as fault:
            raise NotSoon(str(fault)) from fault
        finally:
            self._give_back(line, whole=done)

    async def _take(self) -> _Line:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._closed or self._loop is not loop:
            raise NotSoon("closed")
        while True:
            while self._idle:
                line = self._idle.pop()
                if line.open:
                    return line
                self._made -= 1
            if self._made < self._most:
                return await self._opened(loop)
            turn = loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._next()
                raise

    async def _opened(self, loop: asyncio.AbstractEventLoop) -> _Line:
        self._made += 1
        try:
            return _Line(loop, await loop.run_in_executor(None, self._connect))
        except BaseException as fault:
            self._made -= 1
            self._next()
            if isinstance(fault, Exception):
                raise NotSoon(str(fault)) from fault
            raise

    def _give_back(self, line: _Line, *, whole: bool) -> None:
        if not whole or self._closed:
            line.close()
        if line.open:
            self._idle.append(line)
        else:
            self._made -= 1
        self._next()

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def close(self) -> None:
        """Closes idle lines; those in use close when given back. Call from any thread, best when the loop has ended."""
        self._closed = True
        while self._idle:
            line = self._idle.pop()
            if self._loop is not None and self._loop.is_running():
                self._loop.call_soon_threadsafe(line.close)
            else:
                line.close()
