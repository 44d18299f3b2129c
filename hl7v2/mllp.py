"""MLLP over TCP: a listener that always answers. The sending side is `hl7v2.sending`, and is offered here too.

Hides sockets, threads, time limits and TLS. The listener is handed one function, `on_message(raw, peer) -> ACK`, and
calls it for one frame at a time per connection: while it works, nothing more is read, so a slow store slows the
partners down instead of filling the memory. Whatever goes wrong is answered as far as anybody still listens.

Source: HL7 v2 transport specification MLLP release 1; HL7 v2.5 chapter 2 (2.9 acknowledgement rules).
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from hl7v2.conversation import CHUNK, Conversation, Link, Policy, close, refusal, shut, tune
from hl7v2.frames import wrap
from hl7v2.secured import NoTls, common_name, welcome
from hl7v2.sending import Exchange, MllpFault, Sender, Stage, correlate, send

log = logging.getLogger(__name__)

OnMessage = Callable[[bytes, str], bytes]


class Listener:
    """An MLLP port. `on_message(raw, peer)` returns the bytes of the answer; it may be called by many threads.

    `peer` is `host:port`, followed by ` CN=...` when a client certificate was checked. An exception of `on_message`
    or an empty answer becomes AR 207, the message may come again; after a CA it becomes no answer.
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
        except NoTls as told:
            log.warning("MLLP connection of %s refused: %s", link.peer, told)
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
        patience = min(10.0, self._policy.silence_seconds)
        # Ours to close before the handshake begins: a stop must find the socket that is waited on.
        link.sock = secured = self._policy.tls.wrap_socket(link.sock, server_side=True, do_handshake_on_connect=False)
        if self._stopping.is_set():
            return
        welcome(secured, patience, self._policy.farewell_seconds, self._stopping)
        name = common_name(secured)
        link.peer += f" CN={name}" if name else ""

    def _reserve(self, link: Link, size: int) -> bool:
        """Account for what a connection holds; false when all together would hold too much."""
        if size == link.held:
            return True
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
            return wrap(answer) if answer else b""
        except Exception:
            # No answer: an AR where the message may be sent again, nothing where CA was said (`Conversation`).
            log.exception("a message of %s could not be handled", peer)
            return b""

    def _store(self, raw: bytes, peer: str) -> bytes:
        assert self._on_store is not None
        try:
            refused = self._on_store(raw, peer)
        except Exception:
            log.exception("a message of %s could not be stored", peer)
            return refusal(self._policy, raw, "CR", "the message could not be stored; it may be sent again")
        return wrap(refused) if refused else b""


def _join(link: Link, seconds: float) -> None:
    if link.thread and link.thread is not threading.current_thread():
        link.thread.join(max(seconds, 0.0))


__all__ = ["Exchange", "Listener", "MllpFault", "OnMessage", "Policy", "Sender", "Stage", "correlate", "send"]
