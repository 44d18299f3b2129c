"""The web framework's application with the interface in front of it, and connections that are bounded in time.

With `app` the only file that knows the framework. What the mounts answer passes no framework code: plain ASGI costs a
third of it (docs/adr/0037-reads-on-the-loop.md); health and the interface's description are the framework's.

Sources: https://asgi.readthedocs.io/en/latest/specs/www.html, RFC 9110 15.5.9, RFC 6585 section 5
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request as WebRequest
from starlette.responses import Response as WebResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fhir_server.errors import Malformed, PasserelleError, TooLarge, Unsupported
from fhir_server.rest.asgi import METHODS, Mounts
from fhir_server.rest.http import error_response
from fhir_server.rest.openapi import described

Application = Callable[[Any, Any, Any], Awaitable[None]]
# How long the request line and the headers of a request may take, and how large they may be.
HEAD_SECONDS, HEAD_BYTES = 20.0, 64 * 1024
# What a request line is looked for in when the parser could not read it.
_LINE_BYTES = 2048
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}) (/[^ \r\n]*)(?: HTTP/1\.[01]\r?\n|[^\n]*\Z)")
_LINES = re.compile(rb"^" + _LINE.pattern, re.MULTILINE)
_STEP = re.compile(rb"[/?#]")
# The mounts whose errors are OperationOutcomes.
_IN_FHIR = (b"fhir", b"dicomweb")


def application(mounts: Mounts, state: Callable[[], tuple[bool, str]], base: str) -> Application:
    """What the HTTP server runs. `state` says whether all is ready, and in words; `base` is the FHIR base URL in the
    description."""
    app = FastAPI(openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.openapi = lambda: described(base)  # type: ignore[method-assign]  # as FastAPI wants it

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
    """An HTTP connection whose request lines and headers are bounded in time and size, which uvicorn does not do; what
    cannot be read is refused in the language of the mount it was meant for."""

    _late: asyncio.TimerHandle | None = None
    _head = 0
    _start = b""
    _data = b""
    _body = False
    _later: bytes | None = None
    _before = url = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._later is not None:
            return  # nothing is read behind what could not be read
        self._data = data
        known = self._start if self._late is not None else b""
        self._start = known + data[: max(0, _LINE_BYTES - len(known))]
        super().data_received(data)
        if self.transport.is_closing() or self._later is not None:
            return
        if self._late is not None:
            # The rest of a body that was refused early is no head; it has the time of one to end.
            self._head += 0 if self._body else len(data)
            if self._head > HEAD_BYTES:
                self._refuse(_large(431))
        elif self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()  # something came that begins no request

    def on_message_begin(self) -> None:
        self._before = self.url
        super().on_message_begin()
        if self._late is None:
            self._wait_for_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) >= HEAD_BYTES:  # the parser ends here and asks for `send_400_response`
            raise ValueError("the address is too long")

    def send_400_response(self, msg: str) -> None:
        """What to say of a request the parser gave up."""
        line = None if self.url else _LINE.match(self._start)
        address = line[2] if line else b""
        if line and line[1].decode() in METHODS:  # that of a request before it, in the same breath
            line = next((one for one in _LINES.finditer(self._data) if one[1].decode() not in METHODS), None)
        if len(self.url) >= HEAD_BYTES:
            self._refuse(_large(414))
        elif line and line[1].decode() not in METHODS:
            text = f"{line[1][:20].decode()} is not offered here; offered: {', '.join(METHODS)}"
            self._refuse(Unsupported(text, http=405), line[2])
        else:
            text = "this is no HTTP request that can be read; look at its first line and its headers"
            self._refuse(Malformed(text), address)

    def on_headers_complete(self) -> None:
        self._end_waiting()
        self._body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._body = False
        super().on_message_complete()
        if self._late is not None and self.cycle.response_complete:  # refused early: it waits as after any answer
            self._end_waiting()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._later is not None and self.cycle.response_complete:
            self._end(self._later)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head = 0
        self._late = self.loop.call_later(HEAD_SECONDS, self._refuse, _SLOW)

    def _end_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, error: PasserelleError, address: bytes = b"") -> None:
        self._end_waiting()
        told = _refusal(error, address or self.url or self._before)
        if self.cycle is not None and not self.cycle.response_complete and not self._body:
            self._later = told  # requests before this one, sent in the same breath, are answered first
        else:
            self._end(told)

    def _end(self, told: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(told)
            self.transport.close()


_SLOW = Malformed("the request line and the headers came too slowly; send them in one go", http=408, code="timeout")


def _large(status: int) -> TooLarge:
    what = "address" if status == HTTPStatus.REQUEST_URI_TOO_LONG else "request line and the headers"
    text = f"the {what} may have {HEAD_BYTES // 1024} KiB; a long search is sent as POST to [type]/_search"
    return TooLarge(text, http=status)


def _path(address: bytes) -> str:
    """The first step behind the mount, where it is a plain name."""
    steps = _STEP.split(address[:_LINE_BYTES].lstrip(b"/"), maxsplit=2)
    name = steps[1].decode("latin-1") if len(steps) > 1 else ""
    return name if name.isascii() and name.isalpha() else ""


def _refusal(error: PasserelleError, address: bytes) -> bytes:
    """A whole HTTP answer after which the connection ends."""
    mount = _STEP.split(address.lstrip(b"/"), maxsplit=1)[0]
    if mount in _IN_FHIR:
        answer = error_response(None, error, path=_path(address))
        headers, body = list(answer.headers), answer.body
    else:
        headers, body = [("content-type", "text/plain; charset=utf-8")], f"{error.diagnostics}\n".encode()
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("allow", ", ".join(METHODS)))
    headers += [("connection", "close"), ("content-length", str(len(body)))]
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
    return (head + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n").encode("latin-1") + body
