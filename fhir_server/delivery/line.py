"""A running conversation as its process sees it: until when it may send, and the socket to cut it by.

Whether the lease still holds is asked from this machine's clock, without the database, at the last moment before bytes
leave: a process that was stopped (SIGSTOP, a frozen virtual machine) must not go on with what another has taken over.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fhir_server.store.leases import Claim
from fhir_server.store.view import LeaseLost

# It goes on while the machine sleeps, where the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def ticks() -> float:
    """Seconds that nothing stops."""
    return time.clock_gettime(_CLOCK)


class Line:
    """The right to one conversation, from `began` (`ticks()` before its lease was asked for)."""

    def __init__(self, claim: Claim, began: float, lease_seconds: float, limit_seconds: float) -> None:
        self.claim = claim
        self.began = began
        self._lease = lease_seconds
        self._until = began + lease_seconds
        self._limit = began + limit_seconds
        self._gate = threading.Lock()
        self._handle: socket.socket | None = None
        self._begun = False
        self._talks: float | None = None
        self._cut = ""

    def may_send(self, sock: socket.socket) -> None:
        """Called by the wire before bytes leave. Raises LeaseLost when they must not."""
        with self._gate:
            self._begun = True
            if self._handle is None:
                # One of our own: the wire may close its socket, or wrap it for TLS, at any moment.
                self._handle = socket.socket(fileno=os.dup(sock.fileno()))
            if self._cut:
                raise LeaseLost(self._cut)
            if ticks() > self._until:
                raise LeaseLost(f"The lease of lane {self.claim.lane} ended before {self.claim.delivery.id} was sent.")

    def renewed(self, began: float) -> None:
        """The lease was renewed, asked for at `began`."""
        self._until = max(self._until, began + self._lease)

    @contextmanager
    def talking(self) -> Iterator[None]:
        """While the partner is connected to, spoken to and waited for: not while the store is."""
        self._talks = ticks()
        try:
            yield
        finally:
            self._talks = None

    @property
    def waited(self) -> float:
        """For how many seconds the partner has kept us; 0 when it does not."""
        since = self._talks
        return 0.0 if since is None else ticks() - since

    @property
    def overdue(self) -> bool:
        """Whether the conversation lasts longer than any may."""
        return ticks() > self._limit

    def cut(self, reason: str) -> bool:
        """Ends the conversation from another thread: its wire sees a broken connection. False when none had begun (a
        name is looked up, or a connection made): then nothing was sent, and nothing will be."""
        with self._gate:
            self._cut = self._cut or reason
            if self._handle is not None:
                with suppress(OSError):
                    self._handle.shutdown(socket.SHUT_RDWR)
            return self._begun

    def let_go(self) -> None:
        """The partner has answered: its connection is no longer this conversation's to cut, and may serve another."""
        with self._gate:
            if self._handle is not None:
                self._handle.close()
                self._handle = None
