"""Bytes to and from one connection within a time limit, by one system call where the kernel keeps the time.

Hides how a limit is told. A socket with a time limit of Python's own costs a call that looks whether it is ready before
each call that reads or writes, and one more whenever the limit changes. Each gives other threads the turn, which with
many connections costs more than the call. TLS has a socket of its own kind, whose limit is Python's.

Source: https://man7.org/linux/man-pages/man7/socket.7.html (SO_RCVTIMEO, SO_SNDTIMEO).
"""

from __future__ import annotations

import socket
import ssl
import struct
import sys
import time
from typing import Final

_KERNEL: Final = sys.platform == "linux" and sys.maxsize > 1 << 32
_LEAST: Final = 0.001
_SLACK: Final = 0.01
"""The share by which a limit in force may miss the one that is asked for."""


class Timed:
    """One connection, used by one thread. Raises TimeoutError when the time is over, else what sockets raise."""

    __slots__ = ("_kernel", "_limit", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        """`sock` is in blocking mode from here on, unless it is of TLS."""
        self._sock = sock
        self._kernel = _KERNEL and not isinstance(sock, ssl.SSLSocket)
        self._limit = 0.0
        if self._kernel:
            sock.settimeout(None)

    def receive(self, size: int, seconds: float) -> bytes:
        """At most so many bytes, waited for so long; b'' when the peer has ended."""
        seconds = max(seconds, _LEAST)
        if not self._kernel:
            self._sock.settimeout(seconds)
            return self._sock.recv(size)
        if abs(seconds - self._limit) > _SLACK * self._limit:
            self._tell(socket.SO_RCVTIMEO, seconds)
            self._limit = seconds
        try:
            return self._sock.recv(size)
        except BlockingIOError as over:
            raise TimeoutError("nothing came in time") from over

    def send(self, data: bytes, seconds: float) -> None:
        """All of it, within so long."""
        if not self._kernel:
            self._sock.settimeout(seconds)
            self._sock.sendall(data)
            return
        left = memoryview(data)[self._at_once(data) :]
        deadline = time.monotonic() + seconds
        while left:
            self._tell(socket.SO_SNDTIMEO, max(deadline - time.monotonic(), _LEAST))
            try:
                left = left[self._sock.send(left) :]
            except BlockingIOError as over:
                raise TimeoutError("the peer does not read") from over
            if left and time.monotonic() > deadline:
                raise TimeoutError("the peer reads too slowly")

    def _at_once(self, data: bytes) -> int:
        """How much leaves without waiting: of an answer as a rule all, so that no limit need be told."""
        try:
            return self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def _tell(self, option: int, seconds: float) -> None:
        """A limit in seconds, more than 0: to the kernel 0 is none at all."""
        whole, part = divmod(int(seconds * 1_000_000), 1_000_000)
        self._sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, part))
