"""The way of a request from the wire to a handler and back, as plain ASGI: no framework stands in between.

Reads by id and version are answered on the event loop itself, by a statement that needs no thread; everything else runs
in threads. Both go through the same handlers. Bodies are bounded in size and in time.

Sources: https://asgi.readthedocs.io/en/latest/specs/www.html, docs/adr/0037-reads-on-the-loop.md
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any, TypeVar

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, Caller
from fhir_server.errors import Fault, Malformed, PasserelleError, TooLarge, Unsupported
from fhir_server.rest import edge, routes
from fhir_server.rest.hands import Hands
from fhir_server.rest.http import Request, Response, error_response, pairs
from fhir_server.rest.room import SMALL, Arriving, Inflow, Room, weight
from fhir_server.store.soon import NotSoon

log = logging.getLogger("passerelle.rest")
T = TypeVar("T")
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Handler = Callable[[Hub, Request], Response]
Who = Callable[[str, Request, str], Caller]
"""Who calls, by mount, request and address of the peer; raises Unauthenticated or Forbidden."""
MIB = 1024 * 1024
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# How long a body may take: this many seconds, and more for every byte that came.
BODY_SECONDS, BODY_RATE = 30.0, 16 * 1024
# Large bodies that came packed are unpacked one after the other; so many wait for their turn.
MOST_PACKED = 64
# What a body is said to weigh before it is unpacked.
PACKED = -1
# An answer of more than this is packed in a thread.
_PACKED_HERE = 64 * 1024
THREADS = 16


class Mounts:
    """The parts of the interface by the first step of their path. `hub` is asked for at each request.

    `operators` are mounts that no web page may call; `at_hand` says by a request's headers whether `who` answers
    without waiting for anything.
    """

    def __init__(
        self,
        hub: Callable[[], Hub],
        mounts: Mapping[str, Handler],
        who: Who,
        operators: frozenset[str] = frozenset(),
        at_hand: Callable[[Mapping[str, str]], bool] = lambda headers: "authorization" not in headers,
    ) -> None:
        self._hub, self._mounts, self._who, self._operators = hub, mounts, who, operators
        self._at_hand = at_hand
        self.names = tuple(mounts)
        self.hands, self.inflow, self.room = Hands(THREADS), Inflow(), Room()
        self.unpacking = Room(1, waiting=MOST_PACKED)

    def handles(self, path: str) -> bool:
        """Whether a path belongs to a mount."""
        return path.lstrip("/").partition("/")[0] in self._mounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of a path that `handles` knows."""
        mount, _, rest = str(scope["path"]).lstrip("/").partition("/")
        hub, headers = self._hub(), merged(scope["headers"])
        headers["x-request-id"] = request_id = edge.request_id(headers)
        method = scope["method"]
        pages = () if mount in self._operators else edge.cors(hub.settings, headers)
        response = edge.preflight(hub.settings, method, headers, ", ".join(METHODS)) if pages else None
        if response is None:
            arriving = self.inflow.open()
            try:
                response = await self._answer(hub, mount, "/" + rest, scope, headers, receive, arriving)
            except PasserelleError as error:
                response = error_response(None, error, path=rest)
            finally:
                arriving.close()
            if response.status == 408:
                response = response.with_headers(("connection", "close"))
            response = response.with_headers(*pages, ("x-request-id", request_id))
        await self._send(send, response, bodiless=method == "HEAD")

    async def _answer(
        self,
        hub: Hub,
        mount: str,
        path: str,
        scope: Scope,
        headers: Mapping[str, str],
        receive: Receive,
        arriving: Arriving,
    ) -> Response:
        if scope["method"] not in METHODS:
            text = f"{scope['method'][:20]} is not offered here; offered: {', '.join(METHODS)}"
            raise Unsupported(text, http=405)
        bodiless = "content-length" not in headers and "transfer-encoding" not in headers
        body = b"" if bodiless else await _body(headers, receive, hub.settings.max_body_mib * MIB, arriving)
        request = _request(hub, mount, path, scope, headers)
        peer = scope["client"][0] if scope.get("client") else ""
        wanted = routes.by_key(request) if mount == "fhir" and bodiless and self._at_hand(headers) else None
        if wanted is not None and (response := await self._at_once(hub, mount, request, peer, wanted)):
            return response
        handler = self._mounts[mount]
        if len(body) < SMALL and "content-encoding" not in headers:
            return await self.hands.run(
                lambda: _handled(hub, handler, request, body, lambda: self._who(mount, request, peer))
            )
        admitted = await self._admitted(hub, request, body, lambda: self._who(mount, request, peer))
        body = b""  # what follows may wait, and holds the unpacked one
        arriving.close()  # the room counts it from here on
        return admitted if isinstance(admitted, Response) else await self._weighed(hub, handler, *admitted)

    async def _at_once(
        self, hub: Hub, mount: str, request: Request, peer: str, wanted: tuple[str, str, int]
    ) -> Response | None:
        """The answer to a read by key, on the event loop; None when it takes a thread after all."""
        try:
            caller = self._who(mount, request, peer)
            stored = await hub.store.soon(caller, *wanted)
            response = routes.answer(routes.knowing(hub, stored), replace(request, caller=caller))
            if len(response.body) <= _PACKED_HERE:
                return edge.packed(request.headers, response)
            return await self.hands.run(lambda: edge.packed(request.headers, response))
        except NotSoon:
            return None
        except PasserelleError as error:
            return routes.failed(request, error)

    async def _admitted(
        self, hub: Hub, request: Request, body: bytes, who: Callable[[], Caller]
    ) -> tuple[Request, int] | Response:
        """`_admitted` in a thread. What is large once unpacked waits for its turn: a thousandth of that is sent, so all
        threads at once could fill the memory before any is weighed."""
        admitted = await self.hands.run(lambda: _admitted(hub, request, body, who, SMALL))
        if isinstance(admitted, Response) or admitted[1] != PACKED:
            return admitted
        known = admitted[0]
        try:
            await self.unpacking.enter(1)
        except PasserelleError as error:
            return routes.failed(known, error)
        return await self._within(self.unpacking, 1, lambda: _admitted(hub, known, body, lambda: known.caller))

    async def _weighed(self, hub: Hub, handler: Handler, request: Request, heavy: int) -> Response:
        """The answer to a request known to be allowed, once there is room for its body."""
        if not heavy:
            return await self.hands.run(lambda: _answered(hub, handler, request))
        try:
            await self.room.enter(heavy)
        except PasserelleError as error:
            return routes.failed(request, error)
        return await self._within(self.room, heavy, lambda: _answered(hub, handler, request))

    async def _within(self, room: Room, heavy: int, work: Callable[[], T]) -> T:
        """The outcome of work in a thread, for which there is room. A client that goes away does not stop the thread,
        which needs its room until it is done."""
        try:
            outcome = self.hands.run(work)
        except BaseException:
            room.leave(heavy)
            raise
        outcome.add_done_callback(lambda _: room.leave(heavy))
        return await asyncio.shield(outcome)

    async def _send(self, send: Send, response: Response, *, bodiless: bool) -> None:
        """`bodiless`: with the headers of the whole answer, which here alone are all known, and nothing else."""
        stream = response.stream
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in _joined(response)]
        if stream is None and response.status not in (204, 304) and not any(n == b"content-length" for n, _ in headers):
            headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        if stream is not None and not bodiless:
            parts = iter(stream)
            while (part := await self.hands.run(lambda: next(parts, None))) is not None:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"" if bodiless else response.body})


def merged(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by lower-case name; of one sent twice the values are joined, as RFC 9110 5.3 says."""
    found: dict[str, str] = {}
    for raw, value in pairs:
        name, text = raw.decode("latin-1"), value.decode("latin-1")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def _joined(response: Response) -> list[tuple[str, str]]:
    """The headers, those that add up as one."""
    found: dict[str, str] = {}
    for name, value in response.headers:
        found[name] = f"{found[name]}, {value}" if name == "vary" and name in found else value
    return list(found.items())


def _request(hub: Hub, mount: str, path: str, scope: Scope, headers: Mapping[str, str]) -> Request:
    """The request without its caller and body. Raises Malformed for an address that cannot be read."""
    settings = hub.settings
    base = edge.base(settings, headers, mount)
    query: tuple[tuple[str, str], ...] = ()
    if scope["query_string"]:
        try:
            query = tuple(pairs(scope["query_string"].decode("utf-8")))
        except ValueError as error:
            raise Malformed(f"the address cannot be read: {error}") from error
    return Request(scope["method"], path, query, headers, b"", SYSTEM, base, {})


def _handled(hub: Hub, handler: Handler, request: Request, body: bytes, who: Callable[[], Caller]) -> Response:
    """The answer to a request, in a thread."""
    admitted = _admitted(hub, request, body, who)
    return admitted if isinstance(admitted, Response) else _answered(hub, handler, admitted[0])


def _admitted(
    hub: Hub, request: Request, body: bytes, who: Callable[[], Caller], most: int = 0
) -> tuple[Request, int] | Response:
    """The request with its caller and unpacked body, and what that weighs: PACKED, and no body, when more than `most`
    bytes come out. The answer when it may go no further."""
    limit = hub.settings.max_body_mib * MIB
    try:
        request = replace(request, caller=who())
        try:
            content = edge.unpacked(request.headers, body, most or limit)
        except TooLarge:
            if most and most < limit:
                return request, PACKED
            raise
        return replace(request, body=content), weight(content)
    except PasserelleError as error:
        response = routes.failed(request, error)
    except Exception:
        log.exception("request failed at the edge")
        response = routes.failed(request, Fault())
    return edge.packed(request.headers, response)


def _answered(hub: Hub, handler: Handler, request: Request) -> Response:
    """What the handler answers, packed as the client takes it; in a thread."""
    try:
        response = handler(hub, request)
    except PasserelleError as error:
        response = routes.failed(request, error)
    except Exception:
        log.exception("request failed at the edge")
        response = routes.failed(request, Fault())
    return edge.packed(request.headers, response)


async def _body(headers: Mapping[str, str], receive: Receive, limit: int, arriving: Arriving) -> bytes:
    """The body, at most `limit` bytes (the rest is thrown away unread), no slower than BODY_RATE and, with all others,
    no more than `arriving` takes."""
    told = headers.get("content-length", "")
    size = int(told) if told.isascii() and told.isdigit() and len(told) < 18 else 0
    parts: list[bytes] = []
    read = 0
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(began + BODY_SECONDS) as patience:
            while size <= limit:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Malformed("the client hung up before its body was whole")
                part = message.get("body", b"")
                arriving.add(len(part))
                parts.append(part)
                read += len(part)
                size = max(size, read)
                if not message.get("more_body"):
                    if read <= limit:
                        return parts[0] if len(parts) == 1 else b"".join(parts)
                    break
                patience.reschedule(began + BODY_SECONDS + read / BODY_RATE)
    except TimeoutError as late:
        raise Malformed("the body came too slowly; send it again in one go", http=408, code="timeout") from late
    raise TooLarge(f"the body has more than {limit // MIB} MiB; send less in one request")
