"""MLLP over TCP, the sending side: a connection to one partner, and what it answered as plain facts.

Hides the socket, its time limits, TLS, and whether a connection that was kept is still one. What a fact means for a
resend is the caller's decision.

Source: HL7 v2 transport specification MLLP release 1; HL7 v2.5 chapter 2 (2.9 acknowledgement rules).
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hl7v2 import ack
from hl7v2.conversation import CHUNK, Policy, close, commit, tune
from hl7v2.frames import Frame, FrameTooLarge, NotMllp, Reader, wrap
from hl7v2.message import Unreadable
from hl7v2.secured import no_tls, refused_unread

log = logging.getLogger(__name__)

Stage = Literal["connect", "send", "answer", "ack"]


class MllpFault(Exception):
    """A plain fact about a failed sending. What it means for a resend is the caller's decision.

    `stage`: connect (nothing was sent), send (not everything was sent), answer (sent, no answer), ack (answered, but
    not to this message). `code`: refused, unreachable, name, tls, timeout, reset, closed, framing, incomplete,
    too-large, unreadable, wrong-msa-2. `answer` holds the bytes of the stage ack.
    """

    def __init__(self, stage: Stage, code: str, text: str, answer: bytes = b"") -> None:
        super().__init__(f"{stage}: {text}")
        self.stage = stage
        self.code = code
        self.text = text
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Exchange:
    """The answers of enhanced mode, as bytes without frame: stored (CA, CE, CR), and what became of it (AA, AE, AR)."""

    accept: bytes | None
    application: bytes | None


class Sender:
    """A connection to one partner, kept open between messages. Not for use by two threads at a time."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        timeout: float = 30.0,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        max_answer: int = 1 << 20,
        before_send: Callable[[socket.socket], None] | None = None,
    ) -> None:
        """`timeout` (seconds) is for connecting and for the handshake, ten at most each, and for an answer for which
        no other is given. `before_send` is handed the connected socket before the first byte leaves, and again before
        the end of a large frame: what it raises stops the sending there, with nothing a partner could take for a
        message. It may be replaced between two messages."""
        self.before_send = before_send
        self._address = address
        self._timeout = timeout
        self._tls = tls
        self._server_name = server_name or address[0]
        self._max_answer = max_answer
        self._sock: socket.socket | None = None
        self._heard = False
        self._version = ""

    def send(self, raw: bytes, *, timeout: float | None = None) -> bytes:
        """Send one message and return the bytes of its answer (without frame), whatever its MSA-1 says.

        The answer must carry our MSH-10 in MSA-2. `timeout` (seconds) is for the answer alone. Raises MllpFault; after
        one the connection is closed, so that a late answer can never be taken for another message's.
        """
        reader = Reader(self._max_answer)
        answer = self._ask(raw, self._timeout if timeout is None else timeout, reader)
        if reader.size:
            # More than one answer came: whatever follows is not for the next message.
            self.close()
        return answer

    def _ask(self, raw: bytes, patience: float, reader: Reader) -> bytes:
        try:
            framed = wrap(raw)
        except ValueError as error:
            raise MllpFault("send", "framing", str(error)) from error
        try:
            self.connect()
            self._transmit(framed, patience)
            answer = self._receive(patience, reader)
            correlate(raw, answer)
        except MllpFault as fault:
            self.close()
            if fault.stage == "send" and fault.answer:
                correlate(raw, fault.answer)
                return fault.answer
            raise
        except BaseException:
            self.close()
            raise
        return answer

    def exchange(self, raw: bytes, *, timeout: float | None = None) -> Exchange:
        """Send a message that asks for enhanced mode (MSH-15, MSH-16) and collect its two answers.

        Raises MllpFault as `send` does while nothing was answered. Once a CA came, the message is the partner's: an
        application answer that stays out is no fault but `application` None, and the connection is closed so that it
        cannot be taken for the answer to another message. An application answer that asks for one is answered CA.
        """
        patience = self._timeout if timeout is None else timeout
        reader = Reader(self._max_answer)
        first = self._ask(raw, patience, reader)
        code, asked = ack.read(first).code, ack.wanted(raw)
        second: bytes | None = None
        if code == "CA" and asked is not None and asked[1] == "AL":
            second = self._later(raw, patience, reader)
        # ER and SU may bring an answer or none: none may be taken for the answer to the next message.
        if reader.size or (code == "CA" and asked is not None and asked[1] in ("ER", "SU")):
            self.close()
        return Exchange(first, second) if code in ("CA", "CE", "CR") else Exchange(None, first)

    def _later(self, raw: bytes, patience: float, reader: Reader) -> bytes | None:
        """The application's answer after a CA, or None when it stays out."""
        try:
            second = self._receive(patience, reader)
            correlate(raw, second)
            if (ack.wanted(second) or ("", ""))[0] in ("AL", "SU"):
                self._transmit(commit(Policy(), second), patience)
        except MllpFault as fault:
            log.info("MLLP: %s was committed, no application answer: %s", ack.control_id_of(raw)[:50], fault)
            self.close()
            return None
        except BaseException:
            self.close()
            raise
        return second

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self._sock is not None

    def close(self, patience: float = 0.5) -> None:
        """Leave; a partner that does not answer the farewell of TLS is waited for so many seconds."""
        if self._sock is not None:
            close(self._sock, patience)
            self._sock = None

    def connect(self) -> None:
        """Connect now, when there is no connection that may be used. Raises MllpFault of the stage connect."""
        if self._sock is not None and not _fresh(self._sock):
            self.close()
        if self._sock is not None:
            return
        where = f"{self._address[0]}:{self._address[1]}"
        try:
            sock = socket.create_connection(self._address, timeout=min(self._timeout, 10.0))
        except OSError as error:
            raise MllpFault("connect", _cause(error), f"cannot connect to {where}: {error}") from error
        tune(sock, 180)
        self._sock, self._heard, self._version = sock, False, ""
        if self._tls is not None:
            try:
                self._sock = secured = self._tls.wrap_socket(sock, server_hostname=self._server_name)
                self._version = secured.version() or ""
            except (OSError, ValueError) as error:
                told = no_tls(error) if isinstance(error, OSError) else ""
                raise MllpFault("connect", "tls", f"no TLS with {where}: {told or error}") from error

    def _may_send(self) -> None:
        if self.before_send is not None and self._sock is not None:
            self.before_send(self._sock)

    def _transmit(self, framed: bytes, timeout: float) -> None:
        assert self._sock is not None
        whole, end = memoryview(framed), len(framed) - 2 if len(framed) > CHUNK else 0
        # A slow line gets its time: at least 1 Mbit/s is expected.
        limit = timeout + len(framed) / 125_000
        try:
            if end:
                self._may_send()
                self._sock.settimeout(limit)
                self._sock.sendall(whole[:end])
            rest = whole[end + self._sent_at_once(whole[end:]) :]
            self._sock.settimeout(limit)
            if rest:
                self._sock.sendall(rest)
        except OSError as error:
            fault = MllpFault("send", _cause(error), f"the message could not be sent: {error}")
            # A partner that refuses a message half way (too large) answers before it has read it all.
            try:
                fault.answer = self._receive(0.5, Reader(self._max_answer))
            except MllpFault as told:
                raise (told if told.stage == "connect" else fault) from error
            raise fault from error

    def _sent_at_once(self, end: memoryview) -> int:
        """How many bytes of what makes a message of a frame the system took, in one call right behind the last look
        whether we may: a socket with a time limit is polled first, and other threads run before its bytes leave."""
        assert self._sock is not None
        self._sock.setblocking(False)
        self._may_send()
        try:
            return self._sock.send(end)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def _receive(self, timeout: float, reader: Reader) -> bytes:
        """The next answer; what came behind it stays in `reader`."""
        if self._sock is None:
            raise MllpFault("answer", "closed", "the connection is closed")
        waiting = _next(reader) if reader.size else None
        if waiting is not None:
            return waiting.content
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                self._sock.settimeout(min(0.25, left) if reader.ending else max(left, 0.001))
                data = self._sock.recv(CHUNK)
            except TimeoutError as error:
                frame = reader.flush()
                if frame is not None:
                    return frame.content
                what = "half an answer came" if reader.inside else "no answer came"
                raise MllpFault("answer", "timeout", f"{what} within {timeout:g} s") from error
            except OSError as error:
                if not self._heard and (told := refused_unread(self._version, error)):
                    # By TLS 1.3 this comes behind a handshake that was over for us; it was not for the partner.
                    raise MllpFault("connect", "tls", f"no TLS with the partner: {told}") from error
                raise MllpFault("answer", "reset", f"the connection broke before the answer: {error}") from error
            self._heard = True
            reader.feed(data)
            frame = _next(reader) if data else reader.flush()
            if frame is not None:
                return frame.content
            if not data:
                code = "incomplete" if reader.inside else "closed"
                raise MllpFault("answer", code, "the partner closed the connection before its answer was complete")


def send(
    address: tuple[str, int],
    raw: bytes,
    *,
    timeout: float = 30.0,
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
    before_send: Callable[[socket.socket], None] | None = None,
) -> bytes:
    """Send one message over a connection of its own; see `Sender.send`."""
    sender = Sender(address, timeout=timeout, tls=tls, server_name=server_name, before_send=before_send)
    try:
        return sender.send(raw)
    finally:
        sender.close()


def _next(reader: Reader) -> Frame | None:
    try:
        return reader.next()
    except (FrameTooLarge, NotMllp) as error:
        raise MllpFault("ack", "unreadable", f"the answer is no MLLP frame we accept: {error}", error.head) from error


def correlate(raw: bytes, answer: bytes) -> None:
    """Raise MllpFault of the stage ack unless `answer` has our MSH-10 in MSA-2."""
    try:
        read = ack.read(answer)
    except Unreadable as error:
        raise MllpFault("ack", "unreadable", f"the answer cannot be read: {error}", answer) from error
    sent = ack.control_id_of(raw)
    if read.control_id != sent:
        told = f"the answer is for message {read.control_id[:50]!r}, {sent[:50]!r} was sent"
        raise MllpFault("ack", "wrong-msa-2", told, answer)


def _fresh(sock: socket.socket) -> bool:
    """Nothing waits on the connection: no end of stream and no late answer of an earlier message."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return not selector.select(0)


def _cause(error: OSError) -> str:
    table: tuple[tuple[type[OSError], str], ...] = (
        (TimeoutError, "timeout"),
        (socket.gaierror, "name"),
        (ConnectionRefusedError, "refused"),
        (ConnectionResetError, "reset"),
        (BrokenPipeError, "reset"),
        (ssl.SSLError, "tls"),
    )
    return next((name for kind, name in table if isinstance(error, kind)), "unreachable")
