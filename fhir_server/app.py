"""The composition root: joins the store, the wires, the workers and the HTTP edge into one running server.

The only file that knows the web framework. Listening sockets are bound here, so that a port in use is a clear error
before anything starts, and port 0 gives a free one.
"""

from __future__ import annotations

import logging
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_node.scp import Node
from fhir_server import upkeep
from fhir_server.changes import Change, Hub, apply
from fhir_server.config import ConfigError, Settings, in_url, listed, startable
from fhir_server.context import SYSTEM, Caller
from fhir_server.delivery import images, intake, intake_sources, mailbox, merge_desk, partner_desk
from fhir_server.delivery.knocks import Knocks
from fhir_server.delivery.listening import listeners
from fhir_server.delivery.ports import load_ports
from fhir_server.delivery.workers import Workers
from fhir_server.desk.inbox import inbox_replay, inbox_sources
from fhir_server.desk.outbox import outbox_replay
from fhir_server.errors import PasserelleError, Unavailable
from fhir_server.health import Health
from fhir_server.patients.sites import Sites, load_sites, naming_systems, organization
from fhir_server.pending import view_of
from fhir_server.processes import Family
from fhir_server.rest import admin, dicomweb, pulling, routes
from fhir_server.rest.asgi import Handler, Mounts
from fhir_server.rest.http import Request
from fhir_server.security import scopes
from fhir_server.security.certificates import on_port, shown
from fhir_server.security.identity import Gate, at_hand, http_caller
from fhir_server.store import parameters, reindex
from fhir_server.store.blobs import blobs_of
from fhir_server.store.engine import Store, open_store
from fhir_server.store.folder import DataFolderLock
from fhir_server.store.inbox import InboxRow
from fhir_server.store.installation import Elsewhere, claim_content, identity
from fhir_server.store.session import Snapshot
from fhir_server.teleexpertise.consequences import Context

if TYPE_CHECKING:
    from fhir_server.security.tokens import Verifier

log = logging.getLogger("passerelle")
MIB = 1024 * 1024
BACKLOG = 2048
STALE = (
    "index rows were made by another version or under other base URLs, searches may find too little: run "
    "`passerelle reindex`"
)


def operate(hub: Hub, caller: Caller, name: str, args: Mapping[str, str]) -> Any:
    """Run an operator's operation by its name, those of the wires among them. Raises NotFound listing what there is."""
    return admin.run(hub, caller, name, args, _WIRES)


def _replay(hub: Hub, _: Caller, args: Mapping[str, str]) -> Any:
    """Process a received message once more, the way it came."""

    def take_in(row: InboxRow, raw: bytes) -> bytes:
        if row.channel == "mail":
            mailbox.take_in(hub, raw, row.endpoint)
            return b""
        return intake.again(hub, row, raw)

    return inbox_replay(hub.store, args, take_in)


def _said_again(hub: Hub, caller: Caller, args: Mapping[str, str]) -> Any:
    """Send the bytes of a delivery once more."""

    def context(snapshot: Snapshot) -> Context:
        return Context(caller, view_of(snapshot), hub.settings, hub.sites, hub.clock())

    return outbox_replay(hub.store, args, context)


def _sources(hub: Hub, _: Caller, args: Mapping[str, str]) -> Any:
    """Where the elements of a received message came from."""
    return inbox_sources(hub.store, args, partial(intake_sources.sources, hub))


_WIRES: Mapping[str, admin.Operation] = {
    "inbox-replay": _replay,
    "lane-echo": partner_desk.reached,
    "merges-list": merge_desk.listed,
    "merges-undo": merge_desk.undone,
    "outbox-replay": _said_again,
    "send-hl7": partner_desk.sent,
    "sources-show": _sources,
}
_MOUNTS: dict[str, Handler] = {
    "fhir": routes.answer,
    "dicomweb": dicomweb.answer,
    "admin": lambda hub, request: admin.answer(hub, request, _WIRES),
    "metrics": admin.metrics,
    "pull": pulling.answer,
}


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports really bound; `hl7` names every MLLP port, `mllp` is that of the setting `mllp_port`."""

    http: int
    mllp: int
    dicom: int
    hl7: Mapping[str, int] = field(default_factory=dict)
    health: int = 0

    def told(self) -> list[str]:
        """A line for each wire that listens."""
        hl7 = ", ".join(f"{port} ({name})" for name, port in self.hl7.items())
        wires = (("HTTP", self.http), ("HL7 v2 (MLLP)", hl7), ("DICOM", self.dicom), ("health", self.health))
        return [f"{name} {port}" for name, port in wires if port]


class Server:
    """One process with some or all roles. `start` returns when it is ready; `close` finishes what is under way."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError for settings no server may start with."""
        startable(settings)
        self.settings = settings
        self.sites = load_sites(settings.sites, settings.default_site)
        self.hl7_ports = load_ports(settings, self.sites)
        self.bound = Ports(0, 0, 0)
        self.gate = Gate(settings, _verifier(settings), secrets.token_urlsafe(32))
        self.ready = False
        # What takes work from outside, closed first and all at once; then what it works on, in reverse order.
        self.taking: list[Callable[[], object]] = []
        self.closing: list[Callable[[], object]] = []

    def start(self, web: socket.socket | None = None) -> Ports:
        """Open the store, bind every listener, start the workers. Raises ConfigError for a taken port.

        `web` is the listening socket of one HTTP process among several; else the setting's port is opened.
        """
        sys.setswitchinterval(0.0005)
        settings, duties = self.settings, self.settings.duties
        data = Path(settings.data_dir).resolve()
        data.mkdir(parents=True, exist_ok=True)
        family = settings.web_processes if web is None else 1
        web = web or (_bind(settings.bind, settings.http_port, "http_port") if "api" in duties else None)
        try:
            children = self._launch(web, family) if web and family > 1 else None
            self._open(data, int(web.getsockname()[1]) if web else 0)
            self.knocks = Knocks(self.hub)
            hl7 = self._start_mllp() if "mllp" in duties else {}
            self.bound = Ports(
                int(web.getsockname()[1]) if web else 0,
                next(iter(hl7.values()), 0),
                self._start_dicom(data) if "dicom" in duties else 0,
                hl7,
                0 if web else self._start_health(),
            )
            if web and children:
                web.listen(BACKLOG)
                children.start(self._told())
            elif web:
                self._start_http(web)
            self._start_workers()
        except BaseException:
            self.close()
            if web:
                web.close()
            raise
        self.ready = True
        return self.bound

    def state(self) -> tuple[bool, str]:
        """Whether every listener is bound and the database answers; and in words, a line for each thing."""
        if not self.ready:
            return False, "starting or stopping\n"
        try:
            stale = reindex.stale(self.hub.store, upkeep.meaning(self.settings))
        except PasserelleError as fault:
            return False, f"not ready: {fault.diagnostics}\n"
        return True, "\n".join(["ready", *self.bound.told(), *([STALE] if stale else []), ""])

    def _open(self, data: Path, port: int) -> None:
        sqlite = self.settings.database.startswith("sqlite")
        if sqlite:
            own = f"{self.settings.web_scheme}://{in_url(self.settings.bind)}:{port}"
            lock = DataFolderLock(data, http_url=own, token=self.gate.local_token, certificate=shown(self.settings))
            self.closing.append(lock.close)
        self.hub = open_hub(self.settings, self.sites, migrate=sqlite)
        self.closing.append(self.hub.store.close)
        # Asked before the first resource, which is of this version.
        if reindex.stale(self.hub.store, upkeep.meaning(self.settings)):
            log.warning("%s", STALE)
        seed_sites(self.hub, self.sites)

    def _start_mllp(self) -> dict[str, int]:
        """Every MLLP port by the name its messages have in the inbox."""
        bound: dict[str, int] = {}
        for port, listener in listeners(self.hub, self.hl7_ports, self.knocks):
            _started(listener.start, "hl7_ports" if port.name else "mllp_port", port.port)
            self.taking.append(listener.close)
            bound[port.name or "mllp_port"] = listener.port
        return bound

    def _start_dicom(self, data: Path) -> int:
        settings = self.settings
        declared = [title for site in self.sites.all for title in site.ae_titles]
        known = {title: listed(settings.dicom_networks) for title in declared}
        policy = replace(
            images.policy(settings, data),
            # Of its own: a node empties its spool when it starts, and another may work beside it.
            spool=data / "spool" / f"{socket.gethostname()}-{settings.dicom_port}",
            callers=None if settings.auth == "none" or settings.dicom_unknown_callers else known,
            networks=listed(settings.dicom_networks),
            tls=on_port(settings, settings.dicom_security),
        )
        address = (settings.bind, settings.dicom_port)
        node = Node(address, policy, images.receiver(self.hub), on_association=self.knocks.association)
        _started(node.start, "dicom_port", settings.dicom_port)
        self.taking.append(node.close)
        return node.port

    def _start_health(self) -> int:
        """What an orchestrator asks a process without the role api."""
        settings = self.settings
        if settings.health_port < 0:
            return 0
        made: list[Health] = []
        address = (settings.bind, settings.health_port)
        _started(lambda: made.append(Health(address, self.state)), "health_port", settings.health_port)
        made[0].start()
        self.closing.append(made[0].close)
        return made[0].port

    def _launch(self, web: socket.socket, count: int) -> Family:
        """HTTP in processes of its own; this one keeps the other wires and the workers, and watches over them."""
        family = Family(web, count, self.settings.stop_seconds)
        self.taking.append(family.close)
        family.launch()
        return family

    def _told(self) -> dict[str, Any]:
        """What an HTTP process is told at its start."""
        settings = replace(self.settings, roles="api", http_processes=1, health_port=-1)
        level = logging.getLogger().getEffectiveLevel()
        return {"settings": asdict(settings), "bound": asdict(self.bound), "level": level}

    def _start_http(self, web: socket.socket) -> None:
        import uvicorn  # a third of what is loaded, and not for workers, nor for the parent of several HTTP processes

        from fhir_server.web import Connection, application

        operators = frozenset({"admin", "metrics", "pull"})
        who, quick = partial(_caller, self), partial(at_hand, self.gate)
        mounts = Mounts(lambda: self.hub, _MOUNTS, who, operators, at_hand=quick)
        settings, tls = self.settings, on_port(self.settings, self.settings.http_security)
        base = f"{settings.web_scheme}://{in_url(settings.bind)}:{web.getsockname()[1]}/fhir"
        config = uvicorn.Config(
            application(mounts, self.state, base),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            http=Connection,
            ssl_context_factory=None if tls is None else lambda *_: tls,
            backlog=1,  # so many connections are taken in one go: another process may be less busy
            timeout_keep_alive=65,
            timeout_graceful_shutdown=max(1, int(settings.stop_seconds * 0.6)),
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[web]), name="http", daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise ConfigError("the HTTP listener did not start; the log says why")
            time.sleep(0.005)
        web.listen(BACKLOG)

        def stop() -> None:
            server.should_exit = True
            thread.join(self.settings.stop_seconds)
            mounts.hands.close()

        self.taking.append(stop)

    def _start_workers(self) -> None:
        """The sending of deliveries with what else nobody waits for; the mailbox may be a process of its own."""
        settings, duties = self.settings, self.settings.duties
        tasks: dict[str, tuple[Callable[[Hub], bool], float]] = {
            "parameters": (_parameters(walking="workers" in settings.duties), 2.0)
        }
        if "mailbox" in duties:
            tasks["mailbox"] = (mailbox.poll, settings.mail_poll_seconds)
        if "workers" in duties:
            tasks |= {"studies": (images.project_one, 0.2), "sealer": (_seal, 5.0)}
            if any(port.answers_early for port in self.hl7_ports):
                tasks["hl7"] = (partial(intake.take_waiting, ports=self.hl7_ports), 0.2)
            if settings.keep_days:
                tasks["retention"] = (_retain, 6 * 3600.0)
        if tasks:
            workers = Workers(self.hub, tasks, senders=settings.senders if "workers" in duties else 0)
            workers.start()
            self.taking.append(workers.close)

    def close(self) -> None:
        """Stop taking work, let what is under way end within `stop_seconds`, then close the store."""
        self.ready = False
        stopping = [threading.Thread(target=_quietly, args=(one,), daemon=True) for one in self.taking]
        self.taking.clear()
        for thread in stopping:
            thread.start()
        deadline = time.monotonic() + self.settings.stop_seconds
        for thread in stopping:
            thread.join(max(0.0, deadline - time.monotonic()))
        while self.closing:
            _quietly(self.closing.pop())


def _quietly(close: Callable[[], object]) -> None:
    try:
        close()
    except Exception:
        log.exception("closing")


def _verifier(settings: Settings) -> Verifier | None:
    """What checks access tokens. Its library is loaded only where tokens are used."""
    if settings.auth != "smart" or "api" not in settings.duties:
        return None
    from fhir_server.security.tokens import verifier_of

    return verifier_of(settings)


def open_hub(settings: Settings, sites: Sites, *, migrate: bool) -> Hub:
    """The store the settings name, and what works on it. The settings then say which installation this is."""
    data = Path(settings.data_dir).resolve()
    seconds = settings.statement_timeout_seconds
    blobs = blobs_of(settings, data)
    store = open_store(settings.database, data, migrate=migrate, statement_seconds=seconds, blobs=blobs)
    parameters.refresh(store, 0)
    _claim(store)
    known = settings.installation or identity(store)
    return Hub(replace(settings, installation=known), store, sites)


def _claim(store: Store) -> None:
    """Refuses to start on another installation's content; a bucket that does not answer is asked by the clean-up."""
    try:
        claim_content(store)
    except Elsewhere:
        store.close()
        raise
    except Unavailable as fault:
        log.warning("whose content it is cannot be looked up now: %s", fault.diagnostics)


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


def _parameters(*, walking: bool) -> Callable[[Hub], bool]:
    """What keeps the search parameters of users as the store notes them; one process also walks to index them."""
    seen = 0

    def task(hub: Hub) -> bool:
        nonlocal seen
        if walking:
            parameters.note(hub.store)
        seen = parameters.refresh(hub.store, seen)
        return walking and parameters.advance(hub.store, upkeep.extract(hub))

    return task


def _seal(hub: Hub) -> bool:
    return bool(hub.store.seal())


def _retain(hub: Hub) -> bool:
    done = upkeep.retain(hub, {}, log.info)
    log.info("retention: %s", done)
    return False


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


def _caller(server: Server, mount: str, request: Request, peer: str) -> Caller:
    """Who calls; what the server can do is told to anybody. Images are ImagingStudy to an access token."""
    if mount == "fhir" and request.path == "/metadata" and server.gate.verifier:
        return Caller("", "(anonymous)", frozenset(), channel="http", peer=peer, rights=frozenset())
    caller = http_caller(server.hub.store, server.gate, request.headers, peer)
    if mount == "dicomweb":
        scopes.demand(caller, "ImagingStudy", "r")
    return caller
