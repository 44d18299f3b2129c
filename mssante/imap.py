"""One mailbox read over IMAP: unseen messages one by one, nothing marked until the caller has kept it.

A message is known by UIDVALIDITY and UID together; a server that renumbers changes the first. Bodies are fetched with
PEEK, after their size is known. Sources: RFC 3501, RFC 9051, RFC 7888; SASL as in `channel`.
"""

from __future__ import annotations

import contextlib
import imaplib
import re
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from mssante import channel
from mssante.channel import Credentials, Mechanism, Security

Stage = Literal["connect", "tls", "auth", "select", "validity", "search", "fetch", "store"]

MAX_BYTES = 40 * 1024 * 1024
_ANSWERS = 4 * 1024 * 1024
_UID = re.compile(rb"\bUID (\d{1,10})\b")
_SIZE = re.compile(rb"\bRFC822\.SIZE (\d{1,12})\b")


class ImapFault(Exception):
    """The mailbox could not be read. `stage` is where; `code` is NO, BAD or '' ; `text` the server's words."""

    def __init__(self, stage: Stage, code: str, text: str) -> None:
        super().__init__(f"{stage}: {code} {text}".replace("  ", " "))
        self.stage: Stage = stage
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Fetched:
    """One message. `raw` is None when it weighs more than the mailbox was allowed to read (`size` tells how much)."""

    uid: int
    uid_validity: int
    size: int
    raw: bytes | None


class _Wire(imaplib.IMAP4):
    """imaplib over a bounded reader. open, read, readline and shutdown are the seams imaplib offers for that."""

    def __init__(self, address: tuple[str, int], security: Security, context: ssl.SSLContext | None, timeout: float):
        self._how = (security, context)
        self._reader = channel.Reader(lambda: self.sock, timeout, _ANSWERS)
        super().__init__(address[0], address[1], timeout)

    def open(self, host: str = "", port: int = 143, timeout: float | None = None) -> None:
        self.host, self.port = host, port
        self.sock = channel.connect((host, port), *self._how, timeout or 60.0)
        self.file = self.sock.makefile("rb")  # imaplib closes it; reading goes through the bounded reader

    def read(self, size: int) -> bytes:
        if size > self._reader.budget:
            raise self.abort(f"the server announces {size} bytes, more than was agreed to read")
        return self._reader.read(size)

    def readline(self) -> bytes:
        return self._reader.readline(1024 * 1024)

    def allow(self, size: int) -> None:
        """How much the server may send until the next call."""
        self._reader.budget = size


class Mailbox:
    """An open mailbox; use it with `with`.

    `security` is none (loopback only), starttls or tls; `timeout` bounds each wait in seconds; messages beyond
    `max_bytes` are listed but not read. Every method raises ImapFault; opening in clear beyond loopback, ValueError.
    """

    uid_validity: int

    def __init__(
        self,
        address: tuple[str, int],
        user: str,
        secret: str,
        *,
        mechanism: Mechanism = "plain",
        folder: str = "INBOX",
        security: Security = "starttls",
        context: ssl.SSLContext | None = None,
        timeout: float = 60.0,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if any(not character.isprintable() for character in user + folder):
            raise ValueError("a user or folder name holds a control character")
        self._max_bytes = max_bytes
        try:
            self._wire = _Wire(address, security, context, timeout)
        except (imaplib.IMAP4.error, OSError) as problem:
            stage: Stage = "tls" if isinstance(problem, ssl.SSLError) else "connect"
            raise ImapFault(stage, "", _words(problem)) from None
        try:
            if security == "starttls":
                self._start_tls(context)
            self._authenticate(Credentials(user, secret, mechanism))
            self.uid_validity = self._select(folder)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Log out and close; never raises."""
        with contextlib.suppress(imaplib.IMAP4.error, OSError):
            self._wire.logout()
        with contextlib.suppress(imaplib.IMAP4.error, OSError):
            self._wire.shutdown()

    def unseen(self, after: int = 0) -> tuple[int, ...]:
        """The UIDs of the messages nobody marked as seen, oldest first, above `after`."""
        return self._search("UNSEEN", after)

    def uids(self, after: int = 0) -> tuple[int, ...]:
        """The UIDs of all messages, seen by another client too, oldest first, above `after`."""
        return self._search("ALL", after)

    def fetch(self, uid: int) -> Fetched | None:
        """One message whole, its flags untouched; None when it is there no more."""
        sizes = self._ask("fetch", "FETCH", str(uid), "(RFC822.SIZE)")
        size = next((int(found.group(1)) for line in _heads(sizes, uid) if (found := _SIZE.search(line))), None)
        if size is None:
            return None
        if size > self._max_bytes:
            return Fetched(uid, self.uid_validity, size, None)
        # The size is the server's word: a literal beyond it, with some room, is refused while it is read.
        self._wire.allow(_ANSWERS + self._max_bytes)
        answer = self._ask("fetch", "FETCH", str(uid), "(UID BODY.PEEK[])", keep=True)
        for item, after in zip(answer, [*answer[1:], b""], strict=True):
            # The UID may stand on either side of the body.
            around = item[0] + (after if isinstance(after, bytes) else b"") if isinstance(item, tuple) else b""
            if isinstance(item, tuple) and (found := _UID.search(around)) and int(found.group(1)) == uid:
                return Fetched(uid, self.uid_validity, len(item[1]), item[1])
        return None

    def unseen_messages(self, after: int = 0) -> Iterator[Fetched]:
        """Each unseen message, one in memory at a time; the caller keeps it, then calls `mark_seen`."""
        for uid in self.unseen(after):
            message = self.fetch(uid)
            if message is not None:
                yield message

    def mark_seen(self, uid: int, uid_validity: int | None = None) -> None:
        """Set \\Seen, after the caller's commit. `uid_validity`, when given, must still be the mailbox's own."""
        if uid_validity is not None and uid_validity != self.uid_validity:
            text = f"the mailbox was renumbered: UIDVALIDITY is {self.uid_validity}, the message was read under"
            raise ImapFault("validity", "", f"{text} {uid_validity}")
        self._ask("store", "STORE", str(uid), "+FLAGS.SILENT", "(\\Seen)")

    def _start_tls(self, context: ssl.SSLContext | None) -> None:
        try:
            self._wire.starttls(context or channel.tls_context())
        except (imaplib.IMAP4.error, OSError) as problem:
            raise ImapFault("tls", "", _words(problem)) from None

    def _authenticate(self, credentials: Credentials) -> None:
        mechanism = credentials.mechanism.upper()
        try:
            if credentials.mechanism == "plain" and "AUTH=PLAIN" not in self._wire.capabilities:
                self._wire.login(credentials.user, credentials.secret)
            else:
                answers = iter([credentials.initial_response()])
                # A second challenge is XOAUTH2 explaining a refusal: an empty answer ends the exchange.
                self._wire.authenticate(mechanism, lambda _: next(answers, b""))
        except imaplib.IMAP4.abort as problem:
            raise ImapFault("auth", "", _words(problem)) from None
        except imaplib.IMAP4.error as problem:
            raise ImapFault("auth", "NO", _words(problem)) from None
        except OSError as problem:
            raise ImapFault("auth", "", _words(problem)) from None

    def _select(self, folder: str) -> int:
        self._wire.allow(_ANSWERS)
        try:
            status, answer = self._wire.select('"' + folder.replace("\\", "\\\\").replace('"', '\\"') + '"')
            validity = self._wire.response("UIDVALIDITY")[1]
        except (imaplib.IMAP4.error, OSError) as problem:
            raise ImapFault("select", "", _words(problem)) from None
        if status != "OK":
            raise ImapFault("select", status, _text(answer))
        value = validity[-1] if validity else None
        if not isinstance(value, bytes) or not value.isdigit():
            raise ImapFault("select", "", "the server gives no UIDVALIDITY")
        return int(value)

    def _search(self, criterion: str, after: int) -> tuple[int, ...]:
        answer = self._ask("search", "SEARCH", *([f"UID {after + 1}:*"] if after else []), criterion)
        words = b" ".join(item for item in answer if isinstance(item, bytes)).split()
        # `n:*` always names the last message, even below n.
        return tuple(sorted({int(word) for word in words if word.isdigit() and int(word) > after}))

    def _ask(self, stage: Stage, *command: str, keep: bool = False) -> list[bytes | tuple[bytes, bytes]]:
        if not keep:
            self._wire.allow(_ANSWERS)
        try:
            status, answer = self._wire.uid(command[0], *command[1:])
        except (imaplib.IMAP4.error, OSError) as problem:
            raise ImapFault(stage, "BAD" if "BAD" in str(problem) else "", _words(problem)) from None
        if status != "OK":
            raise ImapFault(stage, status, _text(answer))
        return [item for item in answer if item is not None]


def _heads(answer: list[bytes | tuple[bytes, bytes]], uid: int) -> Iterator[bytes]:
    lines = (item[0] if isinstance(item, tuple) else item for item in answer)
    return (line for line in lines if (found := _UID.search(line)) and int(found.group(1)) == uid)


def _words(problem: Exception) -> str:
    return str(problem) or type(problem).__name__


def _text(answer: Sequence[object]) -> str:
    return b" ".join(item for item in answer if isinstance(item, bytes)).decode("utf-8", "replace")
