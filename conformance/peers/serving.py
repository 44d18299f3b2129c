"""A deliberately broken peer that listens: on a loopback port, a thread for each connection, until it is closed.

Hides the server and its thread; what a peer answers, and what is wrong with it, is its handler's.
"""

from __future__ import annotations

import socketserver
import ssl
import threading
from collections.abc import Callable, Mapping

from conformance.peers.fault import Fault, chosen

Handler = Callable[[frozenset[str]], type[socketserver.BaseRequestHandler]]


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 32


class Serving:
    """The peer; a context manager. `target` is what `--target` takes."""

    def __init__(
        self,
        handler: Handler,
        known: Mapping[str, Fault],
        target: str,
        *faults: str,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`handler` makes the handler of the chosen faults; in `target`, {s} is `s` over TLS and {port} the port."""
        self._server = _Server(("127.0.0.1", port), handler(chosen(faults, known)))
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self.target = target.format(s="s" if tls else "", port=self.port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
