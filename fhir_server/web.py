"""The web framework's application with the interface in front of it, and connections that are bounded in time.

With `app` the only file that knows the framework. What the mounts answer passes no framework code: plain ASGI costs a
third of it (docs/adr/0037-reads-on-the-loop.md); health and the interface's description are the framework's.

Sources: https://asgi.readthedocs.io/en/latest/specs/www.html, RFC 9110 15.5.9, RFC 6585 section 5
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request as WebRequest
from starlette.responses import Response as WebResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fhir_server.rest.asgi import Mounts
from fhir_server.rest.openapi import described

Application = Callable[[Any, Any, Any], Awaitable[None]]
# How long the request line and the headers of a request may take, and how large they may be.
HEAD_SECONDS, HEAD_BYTES = 20.0, 64 * 1024


def application(mounts: Mounts, state: Callable[[], tuple[bool, str]], base: str) -> Application:
    """What the HTTP server runs. `state` says whether all is ready, and in words; `base` is the FHIR base URL in the
    description."""
    app = FastAPI(openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.openapi = lambda: described(base)  # type: ignore[method-assign]

    async def livez(_: WebRequest) -> WebResponse:
        return WebResponse("ok\n", media_type="text/plain")

    async def readyz(_: WebRequest) -> WebResponse:
        ready, text = await mounts.hands.run(state)
        return WebResponse(text, 200 if ready else 503, media_type="text/plain")

    async def nowhere(web: WebRequest, _: Exception) -> WebResponse:
        mount = str(web.scope["path"]).lstrip("/").partition("/")[0]
        text = {"error": f"nothing is served at /{mount}", "try": [f"/{name}" for name in mounts.names]}
        return WebResponse(json.dumps(text), 404, media_type="application/json")

    app.add_route("/livez", livez, methods=["GET"])
    app.add_route("/readyz", readyz, methods=["GET"])
    app.add_exception_handler(404, nowhere)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and mounts.handles(scope["path"]):
            await mounts(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer


class Connection(HttpToolsProtocol):
    """An HTTP connection whose request lines and headers are bounded in time and size, which uvicorn does not do."""

    _late: asyncio.TimerHandle | None = None
    _head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._late is not None:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")
        elif self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()  # something came that begins no request

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._late is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        self._end_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head = 0
        self._late = self.loop.call_later(HEAD_SECONDS, self._refuse, b"408 Request Timeout")

    def _end_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: bytes) -> None:
        self._end_waiting()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()
