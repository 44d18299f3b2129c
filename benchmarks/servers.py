"""What the HTTP topics run against: a PostgreSQL cluster with fsync on, our server as an operator starts it, processes.

The cluster is a private one on a free loopback port, or the one that BENCH_POSTGRES names (then ours and the peers
share it). Our server is `passerelle serve` with the shipped defaults, without authentication, on loopback.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.machine import ROOT

_BIN = Path("/usr/lib/postgresql")
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
}
_TOLD = ("fsync", "synchronous_commit", "shared_buffers")
_PROC = Path("/proc")


class Unable(Exception):
    """A topic cannot run here; the text says why and what to install or start."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running PostgreSQL: `url` is that of its `postgres` database."""

    url: str

    def create(self, prefix: str) -> str:
        """The address of a new, empty database."""
        name = f"{prefix}_{secrets.token_hex(4)}"
        self._run(f"CREATE DATABASE {name}")
        return self.url.rpartition("/")[0] + "/" + name

    def drop(self, url: str) -> None:
        self._run(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def _run(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def described(self) -> str:
        """Version and the settings that decide the cost of a commit."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute("SHOW server_version").fetchone()
            version = str(row[0]).split()[0] if row else "?"
            told = []
            for name in _TOLD:
                value = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
                told.append(f"{name} {value[0] if value else '?'}")
        return f"PostgreSQL {version} ({', '.join(told)})"

    def sizes(self) -> dict[str, int]:
        """Bytes on disk of each database, by name."""
        with psycopg.connect(self.url) as connection:
            rows = connection.execute("SELECT datname, pg_database_size(oid) FROM pg_database").fetchall()
        return {str(name): int(size) for name, size in rows}


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """The cluster of BENCH_POSTGRES, or a private one that is removed afterwards. Raises Unable."""
    told = os.environ.get("BENCH_POSTGRES", "")
    if told:
        yield Cluster(told)
        return
    found = sorted(_BIN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise Unable(
            "install the Debian package postgresql, or set BENCH_POSTGRES=postgresql://USER@127.0.0.1/postgres"
        )
    folder = Path(tempfile.mkdtemp(prefix="passerelle-bench-"))
    data, programs, port = folder / "data", found[-1].parent, free_port()
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    _as_postgres(programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
    options = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
    control = (programs / "pg_ctl", "-D", data, "-w", "-t", "60", "-l", folder / "log")
    _as_postgres(*control, "-o", f"-p {port} -k {folder} {options}", "start")
    try:
        yield Cluster(f"postgresql://postgres@127.0.0.1:{port}/postgres")
    finally:
        _as_postgres(*control, "-m", "fast", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _as_postgres(*command: str | Path) -> None:
    """PostgreSQL refuses to run as root; anybody else runs it as themselves."""
    root = os.geteuid() == 0
    done = subprocess.run(
        [str(part) for part in command],
        user="postgres" if root else None,
        group="postgres" if root else None,
        extra_groups=[] if root else None,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise Unable(f"{Path(command[0]).name} failed: {done.stderr.strip()}")


def free_port() -> int:
    """A loopback TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Ours:
    """Our server while it runs. `seconds` is how long it took to be ready, after `db upgrade`."""

    url: str
    pid: int
    seconds: float
    database: str


@contextlib.contextmanager
def ours(postgres: Cluster) -> Iterator[Ours]:
    """`passerelle db upgrade` on a new database, then `passerelle serve`; both end with the block."""
    folder = Path(tempfile.mkdtemp(prefix="passerelle-bench-"))
    shutil.copy(ROOT / "fhir_server" / "demo" / "site.toml", folder / "passerelle.toml")
    database, port = postgres.create("bench"), free_port()
    settings = {
        "CONFIG": folder / "passerelle.toml",
        "DATABASE_URL": database,
        "DATA_DIR": folder / "data",
        "AUTH": "none",
        "HTTP_PORT": port,
        "MLLP_PORT": free_port(),
        "DICOM_PORT": free_port(),
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PASSERELLE_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # users start from bytecode files
    environment |= {f"PASSERELLE_{name}": str(value) for name, value in settings.items()}
    program = [sys.executable, "-c", "import sys; from fhir_server.cli import main; sys.exit(main(sys.argv[1:]))"]
    try:
        upgraded = subprocess.run(
            [*program, "db", "upgrade"], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        if upgraded.returncode:
            raise Unable(f"passerelle db upgrade failed: {upgraded.stderr.strip()}")
        with (folder / "log").open("wb") as log:
            started = time.perf_counter()
            process = subprocess.Popen([*program, "serve"], env=environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            seconds = _ready(process, f"http://127.0.0.1:{port}/readyz", started, folder / "log")
            yield Ours(f"http://127.0.0.1:{port}/fhir", process.pid, seconds, database)
        finally:
            _ended(process)
    finally:
        postgres.drop(database)
        shutil.rmtree(folder, ignore_errors=True)


def _ready(process: subprocess.Popen[bytes], url: str, started: float, log: Path) -> float:
    while time.perf_counter() - started < 60:
        with contextlib.suppress(OSError, urllib.error.HTTPError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return time.perf_counter() - started
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise Unable(f"passerelle serve did not become ready: {log.read_text('utf-8', 'replace')[-2000:]}")


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


# --- processes -------------------------------------------------------------------------------------------------------


def listener(port: int) -> int | None:
    """The process that listens on a local TCP port, when it may be seen."""
    nodes = set()
    for table in ("tcp", "tcp6"):
        for line in (_PROC / "net" / table).read_text("ascii").splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and int(parts[1].rpartition(":")[2], 16) == port:
                nodes.add(f"socket:[{parts[9]}]")
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if any(str(link.readlink()) in nodes for link in (folder / "fd").iterdir()):
                    return int(folder.name)
    return None


def memory(pid: int) -> int:
    """Bytes of memory of a process and its children, pages they share counted once (PSS)."""
    return sum(_own_memory(member) for member in _family(pid))


def processor(pid: int) -> float:
    """Seconds of processor time that a process and its children have used so far."""
    ticks = 0
    for member in _family(pid):
        with contextlib.suppress(OSError):
            fields = (_PROC / str(member) / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    found = [pid]
    for member in found:
        with contextlib.suppress(OSError):
            for thread in (_PROC / str(member) / "task").iterdir():
                found += [int(child) for child in (thread / "children").read_text("ascii").split()]
    return found


def _own_memory(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
