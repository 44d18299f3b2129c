"""MLLP over TCP: a listener that always answers, and a sender that knows what it was answered.

Hides sockets, threads, time limits and TLS. The listener is handed one function, `on_message(raw, peer) -> ACK`, and
calls it for one frame at a time per connection: while it works, nothing more is read, so a slow store slows the
partners down instead of filling the memory. Whatever goes wrong is answered as far as anybody still listens.

Source: HL7 v2 transport specification MLLP release 1; HL7 v2.5 chapter 2 (2.9 acknowledgement rules).
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hl7v2 import ack
from hl7v2.conversation import CHUNK, Conversation, Link, Policy, close, commit, refusal, shut, tune
from hl7v2.frames import Frame, FrameTooLarge, NotMllp, Reader, wrap
from hl7v2.message import Unreadable

log = logging.getLogger(__name__)

OnMessage = Callable[[bytes, str], bytes]


class Listener:
    """An MLLP port. `on_message(raw, peer)` returns the bytes of the answer; it may be called by many threads.

    `peer` is `host:port`, followed by ` CN=...` when a client certificate was checked. An exception of `on_message`
    or an empty answer becomes AR 207: the message may come again.
    """

    def __init__(
        self,
        address: tuple[str, int],
        on_message: OnMessage,
        *,
        policy: Policy | None = None,
        on_store: OnMessage | None = None,
    ) -> None:
        """`on_store` serves enhanced mode (`Policy.enhanced`): it commits the bytes and returns b'', or the bytes of
        a CE (never) or CR (not now). `on_message` follows with the same bytes: it must know what is stored already.
        """
        if policy is not None and policy.enhanced and on_store is None:
            raise ValueError("enhanced mode needs on_store: a CA may only follow a commit")
        self._address = address
        self._on_message = on_message
        self._on_store = on_store
        self._policy = policy or Policy()
        self._lock = threading.Lock()
        self._links: set[Link] = set()
        self._per_host: Counter[str] = Counter()
        self._buffered = 0
        self._stopping = threading.Event()
        self._socket: socket.socket | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._accepting: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The TCP port in force (also when 0 was asked for). Raises RuntimeError before `start`."""
        if self._socket is None:
            raise RuntimeError("the listener is not started")
        return int(self._socket.getsockname()[1])

    @property
    def connections(self) -> int:
        """Open connections."""
        with self._lock:
            return len(self._links)

    def start(self) -> None:
        """Bind and listen; OSError when the port is taken."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(self._address)
            listening.listen(128)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self._wake = socket.socketpair()
        self._stopping.clear()
        self._accepting = threading.Thread(target=self._accept_all, name=f"mllp-{self.port}", daemon=True)
        self._accepting.start()

    def close(self, timeout: float = 10.0) -> bool:
        """Stop accepting, let running messages be answered, close everything; true when no thread is left."""
        if self._socket is None or self._wake is None or self._accepting is None:
            return True
        self._stopping.set()
        self._wake[1].send(b"x")
        deadline = time.monotonic() + timeout
        self._accepting.join(timeout)
        for waking in (self._socket, *self._wake):
            waking.close()
        self._socket = None
        with self._lock:
            links = list(self._links)
        for link in links:
            if link.idle:
                shut(link.sock, socket.SHUT_RD)
        for link in links:
            _join(link, deadline - time.monotonic())
        for link in links:
            if link.thread and link.thread.is_alive():
                shut(link.sock, socket.SHUT_RDWR)
                _join(link, 1.0)
        left = [link.peer for link in links if link.thread and link.thread.is_alive()]
        if left:
            log.warning("MLLP connections still busy after %.1f s: %s", timeout, ", ".join(left))
        return not left

    def _accept_all(self) -> None:
        assert self._socket is not None and self._wake is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._wake[0], selectors.EVENT_READ)
            while not self._stopping.is_set():
                selector.select()
                if self._stopping.is_set():
                    return
                try:
                    sock, address = self._socket.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    # Out of file descriptors, or the peer left: neither may end the listener.
                    log.warning("MLLP accept failed: %s", error)
                    time.sleep(0.05)
                    continue
                try:
                    self._welcome(sock, str(address[0]), int(address[1]))
                except Exception:
                    # Not one connection more (no thread left, for instance) must not end the listener.
                    log.exception("MLLP connection of %s could not be served", address[0])
                    sock.close()

    def _welcome(self, sock: socket.socket, host: str, port: int) -> None:
        link = Link(sock, host, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        with self._lock:
            total, own = len(self._links), self._per_host[host]
            busy = total >= self._policy.max_connections or own >= self._policy.max_per_peer
            # A few connections more are taken in, to be told that there is no room.
            refused = total >= self._policy.max_connections + 16 or own >= self._policy.max_per_peer + 4
            if not refused:
                self._links.add(link)
                self._per_host[host] += 1
        if refused:
            log.warning("MLLP connection of %s refused: %d are open", link.peer, total)
            sock.close()
            return
        link.thread = threading.Thread(target=self._serve, args=(link, busy), name=f"mllp-{link.peer}", daemon=True)
        try:
            link.thread.start()
        except RuntimeError:
            link.thread = None
            self._forget(link)
            raise

    def _serve(self, link: Link, busy: bool) -> None:
        try:
            self._prepare(link)
            store = self._store if self._on_store else None
            Conversation(link, self._policy, self._answer, self._reserve, self._stopping, store).run(busy=busy)
        except OSError as error:
            log.info("MLLP connection of %s ended: %s", link.peer, error)
        except Exception:
            log.exception("MLLP connection of %s failed", link.peer)
        finally:
            close(link.sock)
            self._forget(link)

    def _forget(self, link: Link) -> None:
        with self._lock:
            self._links.discard(link)
            self._per_host[link.host] -= 1
            self._buffered -= link.held
            if not self._per_host[link.host]:
                del self._per_host[link.host]

    def _prepare(self, link: Link) -> None:
        link.sock.setblocking(True)
        tune(link.sock, self._policy.keep_alive_seconds)
        if self._policy.tls is None:
            return
        link.sock.settimeout(min(10.0, self._policy.silence_seconds))
        link.sock = self._policy.tls.wrap_socket(link.sock, server_side=True, do_handshake_on_connect=False)
        link.sock.do_handshake()
        name = _common_name(link.sock.getpeercert() or {})
        link.peer += f" CN={name}" if name else ""

    def _reserve(self, link: Link, size: int) -> bool:
        """Account for what a connection holds; false when all together would hold too much."""
        with self._lock:
            grows = size - link.held
            if grows > 0 and size > CHUNK and self._buffered + grows > self._policy.max_buffered:
                return False
            self._buffered += grows
            link.held = size
            return True

    def _answer(self, raw: bytes, peer: str) -> bytes:
        try:
            answer = self._on_message(raw, peer)
            return wrap(answer) if answer else self._fault(raw, "no answer was made")
        except Exception:
            log.exception("a message of %s could not be handled", peer)
            return self._fault(raw, "internal fault; the message may be sent again")

    def _store(self, raw: bytes, peer: str) -> bytes:
        assert self._on_store is not None
        try:
            refused = self._on_store(raw, peer)
        except Exception:
            log.exception("a message of %s could not be stored", peer)
            return refusal(self._policy, raw, "CR", "the message could not be stored; it may be sent again")
        return wrap(refused) if refused else b""

    def _fault(self, raw: bytes, text: str) -> bytes:
        return refusal(self._policy, raw, "AR", text)


def _join(link: Link, seconds: float) -> None:
    if link.thread and link.thread is not threading.current_thread():
        link.thread.join(max(seconds, 0.0))


def _common_name(certificate: Mapping[str, Any]) -> str:
    names = (pair for rdn in certificate.get("subject", ()) for pair in rdn)
    return next((str(value) for key, value in names if key == "commonName"), "")


# --- sending ---------------------------------------------------------------------------------------------------

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
        """`before_send` is handed the connected socket before the first byte leaves, and again before the end of a
        large frame: what it raises stops the sending there, with nothing a partner could take for a message."""
        self._before_send = before_send
        self._address = address
        self._timeout = timeout
        self._tls = tls
        self._server_name = server_name or address[0]
        self._max_answer = max_answer
        self._sock: socket.socket | None = None

    def send(self, raw: bytes, *, timeout: float | None = None) -> bytes:
        """Send one message and return the bytes of its answer (without frame), whatever its MSA-1 says.

        The answer must carry our MSH-10 in MSA-2. `timeout` (seconds) is for the answer. Raises MllpFault; after
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
            self._connect(patience)
            self._may_send()
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

    def close(self) -> None:
        if self._sock is not None:
            close(self._sock)
            self._sock = None

    def _connect(self, timeout: float) -> None:
        if self._sock is not None and not _fresh(self._sock):
            self.close()
        if self._sock is not None:
            return
        where = f"{self._address[0]}:{self._address[1]}"
        try:
            sock = socket.create_connection(self._address, timeout=min(timeout, 10.0))
        except OSError as error:
            raise MllpFault("connect", _cause(error), f"cannot connect to {where}: {error}") from error
        tune(sock, 180)
        self._sock = sock
        if self._tls is not None:
            try:
                self._sock = self._tls.wrap_socket(sock, server_hostname=self._server_name)
            except (OSError, ValueError) as error:
                raise MllpFault("connect", "tls", f"no TLS with {where}: {error}") from error

    def _may_send(self) -> None:
        if self._before_send is not None and self._sock is not None:
            self._before_send(self._sock)

    def _transmit(self, framed: bytes, timeout: float) -> None:
        assert self._sock is not None
        end = len(framed) - 2 if len(framed) > CHUNK else 0
        # A slow line gets its time: at least 1 Mbit/s is expected.
        self._sock.settimeout(timeout + len(framed) / 125_000)
        try:
            if end:
                self._sock.sendall(memoryview(framed)[:end])
                self._may_send()
            self._sock.sendall(memoryview(framed)[end:])
        except OSError as error:
            fault = MllpFault("send", _cause(error), f"the message could not be sent: {error}")
            # A partner that refuses a message half way (too large) answers before it has read it all.
            try:
                fault.answer = self._receive(0.5, Reader(self._max_answer))
            except MllpFault:
                raise fault from error
            raise fault from error

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
                raise MllpFault("answer", "reset", f"the connection broke before the answer: {error}") from error
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


__all__ = ["Exchange", "Listener", "MllpFault", "OnMessage", "Policy", "Sender", "Stage", "correlate", "send"]
