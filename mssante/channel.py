"""How a mail wire is opened and listened to: plain on loopback only, STARTTLS or TLS, every wait bounded.

Requirements ECO.1.1 of the référentiel socle MSSanté #2: TLS 1.2 at least, four cipher suites, chain to IGC-Santé.
RFC 8314 (implicit TLS), RFC 3207 and RFC 9051 (STARTTLS). Used by `smtp` and `imap`.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Security = Literal["none", "starttls", "tls"]
Mechanism = Literal["plain", "xoauth2", "external"]

# ECO.1.1.3, in OpenSSL's names: 0xC030, 0xC02F, 0xC028, 0xC027. TLS 1.3 suites are set apart and stay allowed.
CIPHERS = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-SHA384:ECDHE-RSA-AES128-SHA256"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who opens a mailbox. `secret` is a password (plain) or a Pro Santé Connect access token (xoauth2).

    `external` is for an applicative mailbox: the TLS client certificate says who we are. Never shown, never stored.
    """

    user: str
    secret: str = field(default="", repr=False)
    mechanism: Mechanism = "plain"

    def initial_response(self) -> bytes:
        """The SASL initial response (RFC 4616, RFC 4422 appendix A, XOAUTH2 as operators implement it)."""
        return {
            "plain": f"\0{self.user}\0{self.secret}",
            "xoauth2": f"user={self.user}\x01auth=Bearer {self.secret}\x01\x01",
            "external": self.user,
        }[self.mechanism].encode()


def tls_context(
    *,
    authorities: Path | str | None = None,
    certificate: Path | str | None = None,
    key: Path | str | None = None,
    password: str | None = None,
) -> ssl.SSLContext:
    """A client context by the national rules: TLS 1.2 or better, the four suites, host name and chain checked.

    `authorities` is a PEM file of the accepted authorities (IGC-Santé; the system's own when absent); `certificate`
    and `key` are our PEM files for mutual authentication (applicative mailbox). Raises OSError, ssl.SSLError.
    """
    context = ssl.create_default_context(cafile=None if authorities is None else str(authorities))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    if certificate is not None:
        context.load_cert_chain(str(certificate), None if key is None else str(key), password)
    return context


def is_loopback(host: str) -> bool:
    """Whether a host name can only mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def connect(
    address: tuple[str, int], security: Security, context: ssl.SSLContext | None, timeout: float
) -> socket.socket:
    """A connected socket, already encrypted for `tls`. Raises ValueError for plain text beyond loopback, OSError."""
    host, port = address
    if security == "none" and not is_loopback(host):
        raise ValueError(f"mail in clear is only accepted on loopback, not to {host}: set starttls or tls")
    raw = socket.create_connection((host, port), timeout)
    if security != "tls":
        return raw
    try:
        return encrypt(raw, host, context)
    except BaseException:
        raw.close()
        raise


def encrypt(raw: socket.socket, host: str, context: ssl.SSLContext | None) -> ssl.SSLSocket:
    """Begin TLS on a connected socket, checking the server's name."""
    return (context or tls_context()).wrap_socket(raw, server_hostname=host)


class Reader:
    """Lines and blocks from a socket, with a total time a wait and a total size, whatever the server drips.

    `socket_of` gives the socket at each read, so that STARTTLS may change it. Offers what smtplib and imaplib call.
    """

    def __init__(self, socket_of: Callable[[], socket.socket], timeout: float, budget: int) -> None:
        self._socket_of = socket_of
        self._source: socket.socket | None = None
        self._buffer = bytearray()
        self.timeout = timeout
        self.budget = budget

    def readline(self, limit: int = 65536) -> bytes:
        """One line with its end, or `limit` bytes of it; b"" when the server closed. Raises TimeoutError, OSError."""
        self._notice_tls()
        deadline = time.monotonic() + self.timeout
        seen = 0
        while True:
            at = self._buffer.find(b"\n", seen)
            if at >= 0 or len(self._buffer) >= limit:
                return self._take(min(at + 1 if at >= 0 else limit, limit))
            seen = len(self._buffer)
            if not self._fill(deadline):
                return self._take(len(self._buffer))

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer when the server closed. Allows `timeout` and the time of 8 KiB a second."""
        self._notice_tls()
        deadline = time.monotonic() + self.timeout + size / 8192
        while len(self._buffer) < size:
            if not self._fill(deadline):
                break
        return self._take(min(size, len(self._buffer)))

    def close(self) -> None:
        """Forget what was read ahead; the socket belongs to the caller."""
        self._buffer.clear()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _notice_tls(self) -> None:
        """What was sent in clear before TLS began must not be taken for what comes after (RFC 3207 section 6)."""
        source = self._socket_of()
        if source is not self._source and self._buffer:
            raise OSError("the server sent bytes in clear after STARTTLS")
        self._source = source

    def _fill(self, deadline: float) -> bool:
        source = self._socket_of()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no complete answer in time")
        source.settimeout(min(left, self.timeout))
        piece = source.recv(65536)
        self.budget -= len(piece)
        if self.budget < 0:
            raise OSError("the server sent more than was agreed to read")
        self._buffer += piece
        return bool(piece)
