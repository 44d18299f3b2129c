"""One MLLP connection on the listening side: frames in, answers out, limits kept.

Hides the clock and the order of things: how long a peer may be silent, when a frame took too long, what is said to a
peer that breaks the rules, and how to leave so that the last answer still arrives.

Source: HL7 v2 transport specification MLLP release 1.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

from hl7v2 import ack
from hl7v2.frames import MAX_FRAME, Frame, FrameTooLarge, NotMllp, Reader, wrap
from hl7v2.message import Unreadable
from hl7v2.timed import Timed

log = logging.getLogger(__name__)

CHUNK: Final = 1 << 16
_LARGE: Final = 1 << 20
"""Bytes read at once; more of a frame that is large already."""


def new_control_id() -> str:
    """20 characters of base32: fits MSH-10 of every version."""
    return base64.b32encode(secrets.token_bytes(13)).decode("ascii")[:20]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits of one port. Seconds and bytes; `tls` is a server context (with CERT_REQUIRED for mutual TLS).

    `frame_seconds` bounds a whole frame, `silence_seconds` a pause inside one, `idle_seconds` the pause between two
    frames (partners keep connections open for hours; keep-alive finds the dead ones), `lone_fs_seconds` how long to
    wait for the CR after an FS. `max_buffered` bounds what all connections together hold of unfinished frames.

    `enhanced` honours MSH-15 and MSH-16: a commit answer (CA) once the message is stored, the application's answer
    (AA) once it is integrated, both on the same connection. It needs a Listener with `on_store`; messages that ask
    for nothing still get the one answer of original mode.
    """

    max_frame: int = MAX_FRAME
    idle_seconds: float = 3600.0
    silence_seconds: float = 30.0
    frame_seconds: float = 300.0
    lone_fs_seconds: float = 0.25
    answer_seconds: float = 30.0
    max_connections: int = 200
    max_per_peer: int = 50
    max_buffered: int = 512 << 20
    keep_alive_seconds: int = 180
    farewell_seconds: float = 5.0
    enhanced: bool = False
    tls: ssl.SSLContext | None = None
    application: str = "PASSERELLE"
    clock: Callable[[], datetime] = field(default=utc_now)
    new_id: Callable[[], str] = field(default=new_control_id)


class Link:
    """One accepted connection."""

    __slots__ = ("held", "host", "idle", "peer", "sock", "thread")

    def __init__(self, sock: socket.socket, host: str, peer: str) -> None:
        self.sock = sock
        self.host = host
        self.peer = peer
        self.idle = True
        self.held = 0
        self.thread: threading.Thread | None = None


def refusal(policy: Policy, raw: bytes, code: Literal["AE", "AR", "CR"], text: str, location: str = "") -> bytes:
    """A framed answer of the wire itself, made when nobody above could make one.

    `location` is the segment in which a broken frame stops. Where none is at fault (too large, too many, no frame)
    ERR-2 stays empty: it is optional, and one that is there names a segment (HL7 v2.5 2.15.5.2, ERL-1). A sound MSH is
    not blamed.
    """
    made = ack.build(
        raw, code, now=policy.clock(), control_id=policy.new_id(), text=text, err_code="207", err_location=location,
        application=policy.application,
    )  # fmt: skip
    return wrap(made)


def commit(policy: Policy, raw: bytes) -> bytes:
    """A framed CA: the message is stored safely; what becomes of it is told later."""
    made = ack.build(raw, "CA", now=policy.clock(), control_id=policy.new_id(), application=policy.application)
    return wrap(made)


def _read(framed: bytes) -> ack.Ack:
    return ack.read(framed.strip(b"\x0b\x1c\r") + b"\r")


def _is_good(framed: bytes) -> bool:
    try:
        return _read(framed).code in ("AA", "CA")
    except Unreadable:
        return False


class Conversation:
    """What happens on one connection: read a frame, answer it, read the next."""

    __slots__ = (
        "_answer",
        "_busy",
        "_link",
        "_policy",
        "_reader",
        "_reserve",
        "_since",
        "_stopping",
        "_store",
        "_timed",
    )

    def __init__(
        self,
        link: Link,
        policy: Policy,
        answer: Callable[[bytes, str], bytes],
        reserve: Callable[[Link, int], bool],
        stopping: threading.Event,
        store: Callable[[bytes, str], bytes] | None = None,
    ) -> None:
        """`answer` gives a framed answer, or b'' when there is none yet; `store` keeps the message and gives b'', or a
        framed CE or CR."""
        self._link = link
        self._policy = policy
        self._answer = answer
        self._reserve = reserve
        self._stopping = stopping
        self._store = store if policy.enhanced else None
        self._reader = Reader(policy.max_frame)
        self._timed = Timed(link.sock)
        self._since = time.monotonic()
        self._busy = False

    def run(self, *, busy: bool) -> None:
        """Until the peer leaves, a limit is reached or the listener stops. `busy`: say so once and leave."""
        self._busy = busy
        while not self._stopping.is_set():
            try:
                frame = self._reader.next() or self._read()
            except FrameTooLarge as error:
                return self._leave(error.head, "AE", f"the message exceeds {self._policy.max_frame} bytes")
            except NotMllp as error:
                return self._stray(error.head)
            if frame is None:
                return None
            self._link.idle = False
            if not frame.complete:
                where = ack.stops_in(frame.content)
                told = "a new frame began before this one had ended"
                self._send(refusal(self._policy, frame.content, "AR", told, where))
            elif busy:
                return self._leave(frame.content, "AR", "too many connections; try again later")
            else:
                self._reply(frame.content)
            self._reserve(self._link, self._reader.size)
            self._since = time.monotonic()
        return None

    def _reply(self, raw: bytes) -> None:
        """One answer in original mode; in enhanced mode first that it is stored, then what became of it."""
        asked = ack.wanted(raw) if self._store else None
        if self._store is None or asked is None:
            self._send(self._answer(raw, self._link.peer) or self._nothing_made(raw))
            return
        refused = self._store(raw, self._link.peer)
        if refused:
            self._refused(raw, refused, asked)
            return
        committed = ack.due(asked[0], good=True)
        if committed:
            self._send(commit(self._policy, raw))
        # After a CA there may be no answer yet: the message is ours, and nobody is to send it again.
        answer = self._answer(raw, self._link.peer) or (b"" if committed else self._nothing_made(raw))
        if answer and ack.due(asked[1], good=_is_good(answer)):
            self._send(answer)

    def _refused(self, raw: bytes, refused: bytes, asked: tuple[str, str]) -> None:
        """Say that a message is not stored, as MSH-15 asks; else as the application, when MSH-16 asks for bad news."""
        if ack.due(asked[0], good=False):
            self._send(refused)
        elif ack.due(asked[1], good=False):
            told = _read(refused)
            code: Literal["AE", "AR"] = "AE" if told.code == "CE" else "AR"
            self._send(refusal(self._policy, raw, code, told.text))

    def _nothing_made(self, raw: bytes) -> bytes:
        return refusal(self._policy, raw, "AR", "no answer was made")

    def _read(self) -> Frame | None:
        """Bytes until there is a frame. None when the conversation is over (and all was said)."""
        began = time.monotonic() if self._reader.inside else 0.0
        while True:
            reader = self._reader
            self._link.idle = not reader.inside
            if self._link.idle and self._stopping.is_set():
                # Looked at after `idle` was set: the listener, which stops first and looks then, cannot miss us.
                return None
            try:
                data = self._timed.receive(CHUNK if reader.size < _LARGE else _LARGE, self._patience(began))
            except TimeoutError:
                frame = reader.flush()
                if frame is None:
                    self._too_slow()
                return frame
            if not data:
                frame = reader.flush()
                if frame is None and reader.inside and not self._stopping.is_set():
                    told = "the connection ended inside a frame"
                    self._send(refusal(self._policy, reader.head, "AR", told, self._stop()))
                return frame
            reader.feed(data)
            frame = reader.next()
            if frame is not None:
                return frame
            if reader.inside and not began:
                began = time.monotonic()
            if not self._reserve(self._link, reader.size):
                self._leave(reader.head, "AR", "too much is being received at this moment; try again later")
                return None

    def _patience(self, began: float) -> float:
        now = time.monotonic()
        if not self._reader.inside:
            idle = min(self._policy.idle_seconds, 10.0) if self._busy else self._policy.idle_seconds
            return self._since + idle - now
        if self._reader.ending:
            return self._policy.lone_fs_seconds
        return min(self._policy.silence_seconds, began + self._policy.frame_seconds - now)

    def _too_slow(self) -> None:
        if self._reader.inside:
            self._leave(self._reader.head, "AR", "the frame was not finished in time", self._stop())
        else:
            self._stray(self._reader.stray_head)

    def _stop(self) -> str:
        """The segment in which the unfinished frame stops; '' for one of which only the beginning is at hand."""
        head = self._reader.head
        return ack.stops_in(head) if len(head) == self._reader.size else ""

    def _stray(self, head: bytes) -> None:
        log.info("MLLP: %s sent %d bytes without a start block", self._link.peer, len(head))
        if head.startswith(b"MSH"):
            self._leave(head, "AE", "the message is not in an MLLP frame (VT ... FS CR)")

    def _leave(self, raw: bytes, code: Literal["AE", "AR"], text: str, location: str = "") -> None:
        """Answer, then read on for a moment: closing on unread bytes would reset the answer away."""
        self._send(refusal(self._policy, raw, code, text, location))
        log.info("MLLP: closing %s: %s", self._link.peer, text)
        shut(self._link.sock, socket.SHUT_WR)
        deadline = time.monotonic() + self._policy.farewell_seconds
        with contextlib.suppress(OSError, ValueError):
            while not self._stopping.is_set() and (left := deadline - time.monotonic()) > 0:
                if not self._timed.receive(CHUNK, left):
                    return

    def _send(self, framed: bytes) -> None:
        self._timed.send(framed, self._policy.answer_seconds)


def tune(sock: socket.socket, keep_alive: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", keep_alive), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def shut(sock: socket.socket, how: int) -> None:
    """Shut the TCP connection below TLS: SSLSocket.shutdown would drop the encryption of a running answer."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, how)


def close(sock: socket.socket, patience: float = 0.5) -> None:
    """Leave; under TLS with a word of farewell, whose answer is waited for so many seconds."""
    if isinstance(sock, ssl.SSLSocket):
        with contextlib.suppress(OSError, ValueError):
            sock.settimeout(patience)
            sock.unwrap().close()
    with contextlib.suppress(OSError):
        sock.close()
