"""`passerelle demo`: the server on SQLite with fictitious people and partners, kept between starts."""

from __future__ import annotations

import shlex
import shutil
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fhir_server.app import Ports, Server
from fhir_server.config import ConfigError, Settings, in_url
from fhir_server.context import SYSTEM
from fhir_server.demo import people
from fhir_server.demo.peers import Peers
from fhir_server.demo.seed import REQUESTS, moved, seed
from fhir_server.store import folder

DPI_PORT, PFI_PORT, SMTP_PORT, IMAP_PORT = 2576, 2577, 1025, 1143
SITES = tuple(tomllib.loads((Path(__file__).parent / "site.toml").read_text(encoding="utf-8"))["sites"])
DEFAULTS: Mapping[str, Any] = {
    "data_dir": "passerelle-data/demo",
    "auth": "none",
    "sites": SITES,
    "smtp": f"127.0.0.1:{SMTP_PORT}",
    "smtp_security": "none",
    "imap": f"127.0.0.1:{IMAP_PORT}",
    "imap_security": "none",
    "mail_password": "demo",
    "mail_poll_seconds": 2.0,
    "retry_first_seconds": 2.0,
}


def run(settings: Settings, *, fresh: bool, stop: threading.Event, dpi: int = DPI_PORT, pfi: int = PFI_PORT) -> int:
    """Serve the demo until `stop`. Raises Unavailable while another process serves the folder, ConfigError for a port
    in use; nothing was deleted then."""
    began = time.monotonic()
    data = Path(settings.data_dir).resolve()
    server = Server(settings)
    peers = peers_of(settings, data / "peers", settings.mllp_port, dpi, pfi)
    _prepare(server, data, peers.ports, fresh=fresh)
    try:
        peers.start()
        ports = server.start()
        hospital = (f"127.0.0.1:{dpi}", f"127.0.0.1:{pfi}")
        if is_empty(server):
            seed(server.hub, *hospital)
        moved(server.hub, *hospital)
        print(_table(settings, ports, (dpi, pfi), time.monotonic() - began), flush=True)
        stop.wait()
    finally:
        print("stopping ...", file=sys.stderr)
        server.close()
        peers.close()
    return 0


def peers_of(settings: Settings, folder: Path, mllp: int, dpi: int = DPI_PORT, pfi: int = PFI_PORT) -> Peers:
    """The partners on the ports the settings name."""
    smtp, imap = int(settings.smtp.rpartition(":")[2]), int(settings.imap.rpartition(":")[2])
    return Peers(folder, mllp=(settings.bind, mllp), dpi=dpi, pfi=pfi, smtp=smtp, imap=imap)


def is_empty(server: Server) -> bool:
    """Whether nobody was seeded yet."""
    with server.hub.store.read(SYSTEM) as snapshot:
        return snapshot.get("ServiceRequest", REQUESTS[-1][0]) is None


def _prepare(server: Server, data: Path, peers: tuple[int, int, int, int], *, fresh: bool) -> None:
    """See that nobody serves the folder and that every port is free; only then forget, when that was asked for."""
    if fresh and data.exists():
        _only_ours(data)
    with folder.DataFolderLock(data):
        _ports_free(server, peers)
        if fresh:
            _forget(data)


def _ports_free(server: Server, peers: tuple[int, int, int, int]) -> None:
    """Raises ConfigError naming the port and the remedy. One taken a moment later is found by its listener."""
    settings = server.settings
    wanted = [
        ("127.0.0.1", port, f"the demo's {name}", f"--{option}-port")
        for port, name, option in zip(
            peers,
            ("DPI", "platform (PFI)", "mail sandbox, SMTP", "mail sandbox, IMAP"),
            ("dpi", "pfi", "smtp", "imap"),
            strict=True,
        )
    ]
    ours = [("api", settings.http_port, "http_port"), ("dicom", settings.dicom_port, "dicom_port")]
    ours += [("mllp", port.port, port.name or "mllp_port") for port in server.hl7_ports]
    for duty, port, name in ours:
        if duty in settings.duties and port:
            option = f"--{name.replace('_', '-')}" if name.endswith("_port") else "hl7_ports"
            wanted.append((settings.bind, port, name, option))
    for host, port, name, option in wanted:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} ({name}) cannot be opened: {error.strerror or error}; stop the program that uses it, "
                    f"or choose another port with {option}"
                ) from error


def _only_ours(data: Path) -> None:
    """Raises ConfigError for a folder that is no demo's."""
    known = {"passerelle.db", "passerelle.db-wal", "passerelle.db-shm", "passerelle.lock"}
    known |= {"blobs", "spool", "peers", "backups", "later", "jobs"}
    strange = [path.name for path in data.iterdir() if path.name not in known]
    if strange:
        raise ConfigError(f"{data} holds {strange[0]}, which no demo made; --fresh deletes demo folders only")


def _forget(data: Path) -> None:
    """Delete what an earlier demo left; its lock, which the caller holds, stays."""
    for path in data.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != folder.NAME:
            path.unlink()


def _table(settings: Settings, ports: Ports, hospital: tuple[int, int], seconds: float) -> str:
    host = in_url(settings.bind)
    web = f"{settings.web_scheme}://{host}:{ports.http}"
    expert = "Authorization: Bearer demo:garnier"
    # A command finds a demo in its usual folder by itself.
    elsewhere = settings.data_dir != DEFAULTS["data_dir"]
    where = f" --data-dir {shlex.quote(str(Path(settings.data_dir).resolve()))}" if elsewhere else ""
    ours = [
        (f"trace demo-06{where}", "the story of a finished request"),
        (f"outbox list{where}", "what went to the hospital and by mail"),
        (f"inbox list{where}", "what came in"),
        ("demo --play", "replay the whole story, step by step"),
    ]
    width = max(len(words) for words, _ in ours) + 4
    lines = [
        "",
        f"  Passerelle demo, ready in {seconds:.1f} s. Everything is fictitious. Ctrl-C ends it; data stay in "
        f"{settings.data_dir}.",
        "",
        f"  FHIR R4        {web}/fhir                     curl {web}/fhir/metadata",
        f"  DICOMweb       {web}/dicomweb                 studies, instances, frames (WADO-RS)",
        *(
            f"  HL7 v2 (MLLP)  mllp://{host}:{port}                   ADT, ORU, MDM, ORM, SIU, ZAM in ({name})"
            for name, port in ports.hl7.items()
        ),
        f"  DICOM          dicom://{settings.ae_title}@{host}:{ports.dicom}     C-STORE, C-ECHO",
        f"  Mail sandbox   SMTP {settings.smtp}, IMAP {settings.imap} (any user @ch-demo.mssante.fr, any password)",
        f"  Partners       DPI mllp://127.0.0.1:{hospital[0]}, platform (PFI) mllp://127.0.0.1:{hospital[1]}",
        "",
        f"  {len(people.PATIENTS)} patients, requests demo-01 to demo-09 in every state. Try:",
        "",
        f"    curl '{web}/fhir/Task?status=requested'                          what waits for an expert",
        f"    curl -H '{expert}' {web}/fhir/ServiceRequest/demo-02    as the expert",
        *(f"    .venv/bin/passerelle {words:{width}}{told}" for words, told in ours),
        "",
    ]
    return "\n".join(lines)
