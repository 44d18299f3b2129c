"""The composition root: joins the store, the wires, the workers and the HTTP edge into one running server.

The only file that knows the web framework. Listening sockets are bound here, so that a port in use is a clear error
before anything starts, and port 0 gives a free one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.requests import Request as WebRequest
from starlette.responses import Response as WebResponse
from starlette.responses import StreamingResponse

from dicom_node.scp import Node
from fhir_server.changes import Change, Hub, apply
from fhir_server.config import ConfigError, Settings
from fhir_server.context import SYSTEM
from fhir_server.delivery import images, intake, mailbox
from fhir_server.delivery.workers import Workers
from fhir_server.errors import Fault, Malformed, PasserelleError, TooLarge, Unsupported
from fhir_server.patients.sites import Sites, load_sites, naming_systems, organization
from fhir_server.rest import admin, dicomweb, routes
from fhir_server.rest import edge as http_edge
from fhir_server.rest.http import Request, Response, error_response
from fhir_server.security.identity import http_caller
from fhir_server.store.engine import open_store
from fhir_server.store.folder import DataFolderLock
from hl7v2.conversation import Policy
from hl7v2.mllp import Listener

log = logging.getLogger("passerelle")
MIB = 1024 * 1024
# How long a body may take: this many seconds, and more for every byte that came.
BODY_SECONDS, BODY_RATE = 30.0, 16 * 1024
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_MOUNTS: dict[str, Callable[[Hub, Request], Response]] = {
    "fhir": routes.answer,
    "dicomweb": dicomweb.answer,
    "admin": admin.answer,
}


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports really bound."""

    http: int
    mllp: int
    dicom: int


class Server:
    """One process with every role. `start` returns when it is ready; `close` finishes what is under way."""

    def __init__(self, settings: Settings) -> None:
        if settings.auth != "none":
            raise ConfigError(
                "auth=smart is not available in this version; run on loopback with PASSERELLE_AUTH=none "
                "(`passerelle demo` does)"
            )
        self.settings = settings
        self.sites = load_sites(settings.sites, settings.default_site)
        self.closing: list[Callable[[], object]] = []
        self.ready = False

    def start(self) -> Ports:
        """Open the store, bind every listener, start the workers. Raises ConfigError for a taken port."""
        sys.setswitchinterval(0.0005)
        settings = self.settings
        data = Path(settings.data_dir).resolve()
        data.mkdir(parents=True, exist_ok=True)
        web = _bind(settings.bind, settings.http_port, "http_port")
        port = int(web.getsockname()[1])
        self.closing.append(web.close)
        try:
            self._open(data, port)
            ports = Ports(port, self._start_mllp(), self._start_dicom(data))
            self._start_http(web)
            workers = Workers(
                self.hub,
                {
                    "studies": (images.project_one, 0.2),
                    "mailbox": (mailbox.poll, settings.mail_poll_seconds),
                    "sealer": (_seal, 5.0),
                },
            )
            workers.start()
            self.closing.append(workers.close)
        except BaseException:
            self.close()
            raise
        self.ready = True
        return ports

    def _open(self, data: Path, port: int) -> None:
        sqlite = self.settings.database.startswith("sqlite")
        if sqlite:
            lock = DataFolderLock(data, http_url=f"http://{self.settings.bind}:{port}")
            self.closing.append(lock.close)
        store = open_store(self.settings.database, data, migrate=sqlite)
        self.closing.append(store.close)
        self.hub = Hub(self.settings, store, self.sites)
        seed_sites(self.hub, self.sites)

    def _start_mllp(self) -> int:
        settings = self.settings
        listener = Listener(
            (settings.bind, settings.mllp_port),
            lambda raw, peer: intake.on_message(self.hub, raw, peer),
            policy=Policy(max_frame=settings.max_body_mib * MIB),
        )
        _started(listener.start, "mllp_port", settings.mllp_port)
        self.closing.append(listener.close)
        return listener.port

    def _start_dicom(self, data: Path) -> int:
        settings = self.settings
        node = Node((settings.bind, settings.dicom_port), images.policy(settings, data), images.receiver(self.hub))
        _started(node.start, "dicom_port", settings.dicom_port)
        self.closing.append(node.close)
        return node.port

    def _start_http(self, web: socket.socket) -> None:
        config = uvicorn.Config(
            _web_app(self),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=65,
            timeout_graceful_shutdown=20,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[web]), name="http", daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise ConfigError("the HTTP listener did not start; the log says why")
            time.sleep(0.005)

        def stop() -> None:
            server.should_exit = True
            thread.join(25)

        self.closing.append(stop)

    def close(self) -> None:
        """Stop in the reverse order of starting."""
        self.ready = False
        while self.closing:
            try:
                self.closing.pop()()
            except Exception:
                log.exception("closing")


def seed_sites(hub: Hub, sites: Sites) -> None:
    """Store each establishment as Organization and NamingSystem when it is new or its record changed."""
    changes = []
    with hub.store.read(SYSTEM) as snapshot:
        for site in sites.all:
            for wanted in (organization(site), *naming_systems(site)):
                stored = snapshot.get(wanted["resourceType"], wanted["id"])
                held = stored.resource() if stored and not stored.deleted else {}
                if any(held.get(name) != value for name, value in wanted.items()):
                    kept = {name: value for name, value in held.items() if name not in ("meta",)}
                    changes.append(Change("update", wanted["resourceType"], wanted["id"], kept | wanted))
        device = snapshot.get("Device", "passerelle")
    if device is None:
        name = [{"name": "Passerelle", "type": "user-friendly-name"}]
        us = {"resourceType": "Device", "id": "passerelle", "status": "active", "deviceName": name}
        changes.append(Change("update", "Device", "passerelle", us))
    if changes:
        apply(hub, SYSTEM, changes)


def _seal(hub: Hub) -> bool:
    return bool(hub.store.seal())


def _bind(host: str, port: int, name: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        _started(lambda: listening.bind((host, port)), name, port)
    except ConfigError:
        listening.close()
        raise
    return listening


def _started(start: Callable[[], object], name: str, port: int) -> None:
    try:
        start()
    except OSError as error:
        raise ConfigError(
            f"port {port} ({name}) cannot be opened: {error.strerror or error}; stop the program that uses it, "
            f"or set PASSERELLE_{name.upper()} to another port (0 takes any free one)"
        ) from error


def _web_app(server: Server) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    async def livez(_: WebRequest) -> WebResponse:
        return WebResponse("ok\n", media_type="text/plain")

    async def readyz(_: WebRequest) -> WebResponse:
        return WebResponse("ready\n" if server.ready else "starting\n", 200 if server.ready else 503)

    app.add_route("/livez", livez, methods=["GET"])
    app.add_route("/readyz", readyz, methods=["GET"])
    app.add_route("/{path:path}", _edge(server), methods=_METHODS)

    async def unknown_method(web: WebRequest, _: Exception) -> WebResponse:
        text = f"{web.method[:20]} is not offered here; offered: {', '.join(_METHODS)}"
        return _web_response(error_response(None, Unsupported(text, http=405)))

    app.add_exception_handler(405, unknown_method)
    return app


def _edge(server: Server) -> Callable[[WebRequest], Awaitable[WebResponse]]:
    limit = server.settings.max_body_mib * MIB

    async def edge(web: WebRequest) -> WebResponse:
        # Not `web.url.path`: a decoded `?` in it would end the path.
        mount, _, rest = str(web.scope["path"]).lstrip("/").partition("/")
        handler = _MOUNTS.get(mount)
        if handler is None:
            text = {"error": f"nothing is served at /{mount}", "try": [f"/{name}" for name in _MOUNTS]}
            return WebResponse(json.dumps(text), 404, media_type="application/json")
        headers = {name.lower(): value for name, value in web.headers.items()}
        headers["x-request-id"] = request_id = http_edge.request_id(headers)
        pages = () if mount == "admin" else http_edge.cors(server.settings, headers)
        asked = http_edge.preflight(server.settings, web.method, headers, ", ".join(_METHODS)) if pages else None
        if asked is not None:
            return _web_response(asked)
        try:
            body = await _body(web, limit)
            response = await run_in_threadpool(_answer, server, handler, web, "/" + rest, mount, headers, body)
        except PasserelleError as error:
            response = error_response(None, error)
        if response.status == 408:
            response = response.with_headers(("connection", "close"))
        return _web_response(response.with_headers(*pages, ("x-request-id", request_id)))

    return edge


def _answer(
    server: Server,
    handler: Callable[[Hub, Request], Response],
    web: WebRequest,
    path: str,
    mount: str,
    headers: dict[str, str],
    body: bytes,
) -> Response:
    settings = server.settings
    peer = web.client.host if web.client else ""
    try:
        host = http_edge.host(headers, f"{settings.bind}:{settings.http_port}")
        base = settings.public_url.rstrip("/") if settings.public_url and mount == "fhir" else f"http://{host}/{mount}"
        text = web.scope["query_string"].decode("latin-1")
        query = tuple(parse_qsl(text, keep_blank_values=True, max_num_fields=2000))
        request = Request(web.method, path, query, headers, b"", SYSTEM, base, {})
    except PasserelleError as error:
        return error_response(None, error)
    except ValueError as error:
        return error_response(None, Malformed(f"the address cannot be read: {error}"))
    try:
        caller = http_caller(server.hub.store, settings, headers, peer)
        content = http_edge.unpacked(headers, body, settings.max_body_mib * MIB)
        response = handler(server.hub, replace(request, caller=caller, body=content))
    except PasserelleError as error:
        response = routes.failed(request, error)
    except Exception:
        log.exception("request failed at the edge")
        response = routes.failed(request, Fault())
    return http_edge.packed(headers, response)


async def _body(web: WebRequest, limit: int) -> bytes:
    """The body, at most `limit` bytes (the rest is thrown away unread) and no slower than BODY_RATE."""
    told = web.headers.get("content-length", "")
    size = int(told) if told.isascii() and told.isdigit() and len(told) < 18 else 0
    parts: list[bytes] = []
    began, read = time.monotonic(), 0
    stream = web.stream()
    while size <= limit:
        left = began + BODY_SECONDS + read / BODY_RATE - time.monotonic()
        try:
            part = await asyncio.wait_for(anext(stream, None), left)
        except TimeoutError as late:
            raise Malformed("the body came too slowly; send it again in one go", http=408, code="timeout") from late
        except ClientDisconnect as gone:
            raise Malformed("the client hung up before its body was whole") from gone
        if part is None:
            return b"".join(parts)
        parts.append(part)
        read += len(part)
        size = max(size, read)
    raise TooLarge(f"the body has more than {limit // MIB} MiB; send less in one request")


def _web_response(response: Response) -> WebResponse:
    headers: dict[str, str] = {}
    for name, value in response.headers:
        headers[name] = f"{headers[name]}, {value}" if name == "vary" and name in headers else value
    if response.stream is not None:
        return StreamingResponse(_iterate(response.stream), response.status, headers)
    return WebResponse(response.body, response.status, headers)


def _iterate(stream: object) -> Iterator[bytes]:
    yield from stream  # type: ignore[misc]


def serve_until(server: Server, stop: threading.Event) -> None:
    """Wait for the signal, then close in order."""
    while not stop.wait(0.5):
        pass
    server.close()
