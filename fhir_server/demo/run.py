"""`passerelle demo`: the server on SQLite with fictitious people and partners, kept between starts."""

from __future__ import annotations

import shutil
import sys
import threading
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fhir_server.app import Ports, Server
from fhir_server.config import ConfigError, Settings
from fhir_server.context import SYSTEM
from fhir_server.demo import people
from fhir_server.demo.peers import Peers
from fhir_server.demo.seed import REQUESTS, seed

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


def run(settings: Settings, *, fresh: bool, stop: threading.Event) -> int:
    """Serve the demo until `stop`."""
    began = time.monotonic()
    data = Path(settings.data_dir).resolve()
    if fresh and data.exists():
        _forget(data)
    data.mkdir(parents=True, exist_ok=True)
    server = Server(settings)
    peers = peers_of(settings, data / "peers", settings.mllp_port)
    try:
        peers.start()
        ports = server.start()
        if is_empty(server):
            seed(server.hub, f"127.0.0.1:{peers.ports[0]}", f"127.0.0.1:{peers.ports[1]}")
        print(_table(settings, ports, time.monotonic() - began), flush=True)
        stop.wait()
    except TimeoutError as error:
        raise ConfigError(str(error)) from error
    finally:
        print("stopping ...", file=sys.stderr)
        server.close()
        peers.close()
    return 0


def peers_of(settings: Settings, folder: Path, mllp: int, dpi: int = DPI_PORT, pfi: int = PFI_PORT) -> Peers:
    """The partners on the ports the settings name."""
    smtp, imap = int(settings.smtp.rpartition(":")[2]), int(settings.imap.rpartition(":")[2])
    return Peers(folder, mllp=("127.0.0.1", mllp), dpi=dpi, pfi=pfi, smtp=smtp, imap=imap)


def is_empty(server: Server) -> bool:
    """Whether nobody was seeded yet."""
    with server.hub.store.read(SYSTEM) as snapshot:
        return snapshot.get("ServiceRequest", REQUESTS[-1][0]) is None


def _forget(data: Path) -> None:
    """Delete an earlier demo's folder, and nothing that is not one."""
    known = {"passerelle.db", "passerelle.db-wal", "passerelle.db-shm", "passerelle.lock"}
    known |= {"blobs", "spool", "peers", "backups", "later"}
    strange = [path.name for path in data.iterdir() if path.name not in known]
    if strange:
        raise ConfigError(f"{data} holds {strange[0]}, which no demo made; --fresh deletes demo folders only")
    shutil.rmtree(data)


def _table(settings: Settings, ports: Ports, seconds: float) -> str:
    web = f"http://{settings.bind}:{ports.http}"
    expert = "Authorization: Bearer demo:garnier"
    lines = [
        "",
        f"  Passerelle demo, ready in {seconds:.1f} s. Everything is fictitious. Ctrl-C ends it; data stay in "
        f"{settings.data_dir}.",
        "",
        f"  FHIR R4        {web}/fhir                     curl {web}/fhir/metadata",
        f"  DICOMweb       {web}/dicomweb                 studies, instances, frames (WADO-RS)",
        *(
            f"  HL7 v2 (MLLP)  mllp://{settings.bind}:{port}                   ADT, ORU, MDM, ORM, SIU, ZAM in ({name})"
            for name, port in ports.hl7.items()
        ),
        f"  DICOM          dicom://{settings.ae_title}@{settings.bind}:{ports.dicom}     C-STORE, C-ECHO",
        f"  Mail sandbox   SMTP {settings.smtp}, IMAP {settings.imap} (any user @ch-demo.mssante.fr, any password)",
        f"  Partners       DPI mllp://127.0.0.1:{DPI_PORT}, platform (PFI) mllp://127.0.0.1:{PFI_PORT}",
        "",
        f"  {len(people.PATIENTS)} patients, requests demo-01 to demo-09 in every state. Try:",
        "",
        f"    curl '{web}/fhir/Task?status=requested'                          what waits for an expert",
        f"    curl -H '{expert}' {web}/fhir/ServiceRequest/demo-02    as the expert",
        "    .venv/bin/passerelle trace demo-06                   the story of a finished request",
        "    .venv/bin/passerelle outbox list                     what went to the hospital and by mail",
        "    .venv/bin/passerelle inbox list                      what came in",
        "    .venv/bin/passerelle demo --play                     replay the whole story, step by step",
        "",
    ]
    return "\n".join(lines)
