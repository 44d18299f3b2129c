"""/livez and /readyz of a process that serves no HTTP otherwise: what orchestrators ask workers and listeners.

Two fixed paths, GET and HEAD, one short answer a connection; nothing of the interface is here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

State = Callable[[], tuple[bool, str]]
_SECONDS = 5.0


class Health:
    """A listener with the two paths. `state` tells whether all is ready, and in words (lines of text)."""

    def __init__(self, address: tuple[str, int], state: State) -> None:
        """Raises OSError for a port that is taken."""
        self._server = _Bound(address, _handler(state))
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port really bound."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_SECONDS)


class _Bound(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def _handler(state: State) -> type[BaseHTTPRequestHandler]:
    class Answer(BaseHTTPRequestHandler):
        timeout = _SECONDS
        server_version = sys_version = ""

        def do_GET(self) -> None:
            status, text = self._told()
            body = text.encode()
            self.send_response(status)
            self.send_header("content-type", "text/plain; charset=utf-8")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name the server looks for

        def _told(self) -> tuple[int, str]:
            path = self.path.partition("?")[0]
            if path == "/livez":
                return 200, "ok\n"
            if path != "/readyz":
                return 404, "there are /livez and /readyz\n"
            ready, text = state()
            return (200 if ready else 503), text

        def log_message(self, *_: object) -> None:
            """No line for each look."""

    return Answer
