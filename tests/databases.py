"""Databases for tests: a private PostgreSQL cluster for the session, a fresh database for each test, an open store.

`database_url` and `store` run their test twice, on SQLite and on PostgreSQL. The cluster listens on a free loopback
port and a socket in a temporary folder, trusts loopback and does without fsync.
"""

from __future__ import annotations

import functools
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fhir_server.store.engine import Store, open_store
from fhir_server.store.schema import schema_status, upgrade
from fhir_server.store.tables import METADATA

_BIN = Path("/usr/lib/postgresql")
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "logging_collector": "off",
}


def _programs() -> Path:
    found = sorted(_BIN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent


def _as_postgres(*command: str | Path) -> None:
    """PostgreSQL refuses to run as root; anybody else runs it as themselves."""
    root = os.geteuid() == 0
    done = subprocess.run(
        [str(part) for part in command],
        user="postgres" if root else None,
        group="postgres" if root else None,
        extra_groups=[] if root else None,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{Path(command[0]).name} failed: {done.stdout}{done.stderr}")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The address of a private cluster's `postgres` database. Mark the test `needs("postgresql")`."""
    folder = Path(tempfile.mkdtemp(prefix="passerelle-pg-"))
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, programs = folder / "data", _programs()
    _as_postgres(
        programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"
    )
    options = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
    control = (programs / "pg_ctl", "-D", data, "-w", "-t", "50", "-l", folder / "log")
    _as_postgres(*control, "-o", f"-p {port} -k {folder} {options}", "start")
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        _as_postgres(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _admin(postgres_url: str, statement: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(statement)


@contextmanager
def fresh_postgres(postgres_url: str) -> Iterator[str]:
    """The address of a database with no tables, as long as it is needed."""
    name = f"t_{secrets.token_hex(6)}"
    _admin(postgres_url, f"CREATE DATABASE {name}")
    try:
        yield postgres_url.removesuffix("postgres") + name
    finally:
        _admin(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_postgres(postgres_url: str) -> Iterator[str]:
    """The address of a database with no tables."""
    with fresh_postgres(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def shared_postgres(postgres_url: str) -> str:
    """The address of the migrated database that tests use one after the other."""
    _admin(postgres_url, "CREATE DATABASE passerelle")
    url = postgres_url.removesuffix("postgres") + "passerelle"
    upgrade(url)
    return url


@pytest.fixture(scope="session")
def sweep_postgres(shared_postgres: str) -> Iterator[Callable[[], None]]:
    """Empties the shared database, by one connection for all tests: a new one learns every table anew, which takes
    twenty times as long as emptying them."""
    others = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    emptied = [f"DELETE FROM {table.name}" for table in reversed(METADATA.sorted_tables)]
    emptied.append("INSERT INTO counter (name, value) VALUES ('tx', 0), ('epoch', 1)")
    emptied.append(f"UPDATE alembic_version SET version_num = '{schema_status('sqlite:///nowhere').needed}'")
    held = [psycopg.connect(shared_postgres, autocommit=True)]

    def sweep() -> None:
        try:
            held[0].execute(others)
        except psycopg.OperationalError:  # a test cut every connection of the database
            held[0].close()
            held[0] = psycopg.connect(shared_postgres, autocommit=True)
            held[0].execute(others)
        held[0].execute("; ".join(emptied))

    yield sweep
    held[0].close()


@pytest.fixture
def migrated_postgres(shared_postgres: str, sweep_postgres: Callable[[], None]) -> str:
    """The address of a database with our tables, empty: emptying takes a fraction of the time of making one."""
    sweep_postgres()
    return shared_postgres


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "passerelle.sqlite"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The address of a file with our tables, empty."""
    path = tmp_path / "passerelle.sqlite"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def database_url(request: pytest.FixtureRequest) -> str:
    """The address of a fresh database with our tables: the test runs on SQLite and on PostgreSQL."""
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "migrated_postgres"}[request.param])
    return url


@pytest.fixture
def open_url(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Opens a database by its address, as often as wanted; closes what was opened."""
    opened: list[Store] = []

    def again(url: str, **settings: Any) -> Store:
        store = open_store(url, tmp_path / "data", migrate=False, **settings)
        opened.append(store)
        return store

    yield again
    for store in opened:
        store.close()


@pytest.fixture
def open_at(open_url: Callable[..., Store], database_url: str) -> Callable[..., Store]:
    """Opens the test's database, as often as wanted."""
    return functools.partial(open_url, database_url)


@pytest.fixture
def store(open_at: Callable[..., Store]) -> Store:
    """An open store on a fresh database: the test runs on SQLite and on PostgreSQL."""
    return open_at()
