"""Tells other processes at once that work was queued, and hears it from them, through PostgreSQL's LISTEN and NOTIFY.

One thread with a connection of its own does both. A NOTIFY is sent after the commit it tells of, outside its
transaction: inside, all commits that notify would queue behind one lock of the whole cluster. Rings that come while one
is being told go together. What is lost (a crash between commit and NOTIFY, a broken connection) costs no more than the
wait of those who look again anyway.

Source: https://www.postgresql.org/docs/15/sql-notify.html
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable
from typing import Protocol

import psycopg

from fhir_server import errors
from fhir_server.store.postgres import Connection, connect

log = logging.getLogger("passerelle.store")
CHANNEL = "passerelle_work"
_QUIET_SECONDS = 60.0
_AGAIN_SECONDS = 1.0


class Bell(Protocol):
    """How a process tells others of work, and hears of theirs."""

    def listen(self) -> None:
        """From now on `heard` is called when another process rings."""
        ...

    def ring(self) -> None:
        """Tells the others; returns at once."""
        ...

    def close(self) -> None: ...


class SilentBell:
    """SQLite: there is no other process."""

    def listen(self) -> None:
        """Nothing to hear."""

    def ring(self) -> None:
        """Nobody to tell."""

    def close(self) -> None:
        """Nothing to end."""


class PostgresBell:
    """A `Bell` on one database. Its thread starts with the first `listen` or `ring`."""

    def __init__(self, url: str, heard: Callable[[], None]) -> None:
        self._url = url
        self._heard = heard
        self._gate = threading.Lock()
        self._asked = False
        self._closed = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._inside, self._outside = socket.socketpair()

    def listen(self) -> None:
        with self._gate:
            self._start()

    def ring(self) -> None:
        with self._gate:
            self._start()
            if not self._asked and not self._closed:
                self._asked = True
                self._outside.send(b".")

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._serve, name="store-bell", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the thread and its connection."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._ended.set()
            self._outside.send(b".")
        if self._thread is not None:
            self._thread.join(10)
        self._inside.close()
        self._outside.close()

    def _serve(self) -> None:
        told = False
        while not self._closed:
            try:
                with connect(self._url) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._heard()  # what was rung before could not be heard
                    told = False
                    self._attend(connection)
            except (psycopg.Error, errors.Unavailable) as fault:
                if not told:
                    log.warning("other processes are not told of work at once; they find it by looking (%s)", fault)
                told = True
                self._rest()

    def _attend(self, connection: Connection) -> None:
        own = connection.info.backend_pid
        watch = select.poll()
        for handle in (connection.fileno(), self._inside.fileno()):
            watch.register(handle, select.POLLIN)
        while not self._closed:
            ready = {handle for handle, _ in watch.poll(_QUIET_SECONDS * 1000)}
            if self._inside.fileno() in ready and self._taken():
                connection.execute(f"NOTIFY {CHANNEL}")
            elif not ready:
                connection.execute("SELECT 1")  # is it still there
            if any(notice.pid != own for notice in connection.notifies(timeout=0)):
                self._heard()

    def _taken(self) -> bool:
        """Whether somebody rang since the last look."""
        with self._gate:
            self._inside.recv(64)
            asked, self._asked = self._asked, False
        return asked and not self._closed

    def _rest(self) -> None:
        """A pause that `close` ends; a ring stays to be told."""
        self._ended.wait(_AGAIN_SECONDS)
