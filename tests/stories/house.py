"""A Passerelle of its own for a story: a server process on free ports, the hospital's peers, a mail operator."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mail_servers import DOMAIN as REAL
from mail_servers import PASSWORD, mail_servers

from conformance.peers.mllp import Peer
from fhir_server.demo.play import free_ports
from fhir_server.demo.run import SITES
from fhir_server.demo.story import World

DOMAIN = "ch-demo.mssante.fr"


@dataclass
class Mail:
    """A running mail operator: Postfix and Dovecot, or the sandbox."""

    smtp_port: int
    imap_port: int
    domain: str
    secret: str
    stop: Callable[[], None]


@dataclass
class House:
    """One server and its partners. `start`, `kill` and `stop` are for the server; `close` ends everything."""

    folder: Path
    database_url: str
    mail: Mail
    ports: Mapping[str, int]
    site: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    peers: dict[str, Peer] = field(default_factory=dict)
    starts: int = 0

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        config = self.folder / "passerelle.toml"
        values: dict[str, Any] = {
            "data_dir": str(self.folder / "data"),
            "auth": "none",
            "http_port": self.ports["http"],
            "mllp_port": self.ports["mllp"],
            "dicom_port": self.ports["dicom"],
            "smtp": f"127.0.0.1:{self.mail.smtp_port}",
            "smtp_security": "none",
            "imap": f"127.0.0.1:{self.mail.imap_port}",
            "imap_security": "none",
            "mail_password": self.mail.secret,
            "mail_poll_seconds": 0.3,
            "retry_first_seconds": 0.5,
            "retry_cap_seconds": 2.0,
            "lease_seconds": 2.0,
            "study_quiet_seconds": 0.3,
        } | self.settings
        if self.database_url:
            values["database_url"] = self.database_url
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        config.write_text("\n".join(lines) + "\n" + _toml_site(self.site), encoding="utf-8")
        self.starts += 1
        with (self.folder / f"server-{self.starts}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fhir_server.cli", "serve", "--config", str(config), "--verbose"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={k: v for k, v in os.environ.items() if not k.startswith("PASSERELLE_")},
            )
        self.wait()

    def wait(self, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['http']}/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            ended = self.process is None or self.process.poll() is not None
            assert not ended and time.monotonic() < deadline, self.log()[-3000:]
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a power cut."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def peer(self, name: str, **script: Any) -> Peer:
        """Start one of the hospital's peers (`dpi` or `pfi`) on its port."""
        zam_to = ("127.0.0.1", self.ports["mllp"]) if name == "pfi" else None
        role: Literal["pfi", "dpi"] = "pfi" if name == "pfi" else "dpi"
        self.peers[name] = Peer(port=self.ports[name], role=role, zam_to=zam_to, **script)
        return self.peers[name].start()

    def world(self, **more: Any) -> World:
        """How the partners find this house."""
        partners = self.folder / "partners"
        partners.mkdir(exist_ok=True)
        return World(
            web=f"http://127.0.0.1:{self.ports['http']}",
            mllp=("127.0.0.1", self.ports["mllp"]),
            dicom=("127.0.0.1", self.ports["dicom"]),
            ae_title="PASSERELLE",
            folder=partners,
            dpi=f"127.0.0.1:{self.ports['dpi']}",
            pfi=f"127.0.0.1:{self.ports['pfi']}",
            imap=("127.0.0.1", self.mail.imap_port),
            domain=self.mail.domain,
            secret=self.mail.secret,
            frames=lambda name: [frame.raw for frame in self.peers[name].received],
            **more,
        )

    def log(self) -> str:
        """What the server processes logged."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("server-*.log")))

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        for peer in self.peers.values():
            peer.close()
        self.mail.stop()


def sandbox(folder: Path) -> Mail:
    """The demo's own mail process."""
    smtp, imap = free_ports(2)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "conformance.peers.mail", "--data", str(folder / "mail")),
            *("--smtp-port", str(smtp), "--imap-port", str(imap)),
        ],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert b"ready" in process.stdout.readline()

    def stop() -> None:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()

    return Mail(smtp, imap, DOMAIN, "demo", stop)


def operators(folder: Path) -> Mail:
    """Postfix and Dovecot."""
    users = ("teleexpertise", "claire.moreau", "paul.lefevre", "helene.garnier", "karim.benali")
    servers = mail_servers(folder, lambda: free_ports(1)[0], tuple(f"{user}@{REAL}" for user in users))
    return Mail(servers.smtp_port, servers.imap_port, REAL, PASSWORD, servers.stop)


def demo_site(domain: str = DOMAIN, **changes: Any) -> dict[str, Any]:
    """The demo's establishment with its mailbox in another domain, or other changes."""
    site = copy.deepcopy(dict(SITES[0]))
    site["mailboxes"][0]["address"] = f"teleexpertise@{domain}"
    return site | changes


def _toml_site(site: Mapping[str, Any]) -> str:
    """One `[[sites]]` table as TOML."""
    plain = {key: value for key, value in site.items() if key not in ("namespaces", "mailboxes", "ae_namespaces")}
    out = ["[[sites]]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in plain.items())]
    pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in site.get("ae_namespaces", {}).items())
    out.append(f"ae_namespaces = {{ {pairs} }}")
    for name in ("mailboxes", "namespaces"):
        for table in site.get(name, ()):
            out.append(f"[[sites.{name}]]")
            out += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    return "\n".join(out) + "\n"
