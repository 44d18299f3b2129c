"""Schema versions: what the database has, what this program needs, and the way from one to the other.

SQLite upgrades itself, after a backup copy of an existing file. PostgreSQL upgrades only when told to. A schema newer
than the program is refused. Source: https://alembic.sqlalchemy.org/
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from fhir_server import errors
from fhir_server.store import statistics
from fhir_server.store.postgres import connect

MIGRATIONS = Path(__file__).parent / "migrations"
_UPGRADE_LOCK = 5_021_977_311
State = Literal["empty", "older", "current", "newer"]


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """`found` is the database's revision ('' when empty), `needed` this program's."""

    state: State
    found: str
    needed: str


def sqlite_path(url: str) -> Path | None:
    """The file of a `sqlite:///path` URL; None for another database."""
    if not url.startswith("sqlite:"):
        return None
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path == ":memory:":
        raise errors.Invalid("PASSERELLE_DATABASE_URL must be sqlite:///path/to/file or postgresql://...")
    return Path(path)


def schema_status(url: str) -> SchemaStatus:
    """Compares the database with this program; a file that is not there counts as empty."""
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return SchemaStatus("empty", "", revisions()[-1])
    with _connected(url) as connection:
        return _status(connection)


def upgrade(url: str, *, backups: Path | None = None) -> SchemaStatus:
    """Brings the schema up to date; an existing SQLite file is first copied into `backups`."""
    path = sqlite_path(url)
    with _connected(url) as connection:
        if path is None:
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
        before = _status(connection)
        if before.state == "newer":
            raise errors.Unavailable(_newer(before))
        if before.state == "current":
            return before
        if path is not None and before.state == "older" and backups is not None:
            _copy(path, backups / f"{path.stem}-{before.found}-{datetime.now(UTC):%Y%m%dT%H%M%S}.sqlite")
        _alembic(connection)
        connection.commit()
        _looked_at(url)
        return _status(connection)


def revisions() -> list[str]:
    """Every revision, the oldest first: that of `versions/r0006_content.py` is 0006, and each follows the one before.

    Alembic would tell the same after it was loaded, which takes a tenth of a start that has nothing to upgrade.
    """
    return sorted(path.name[1:5] for path in (MIGRATIONS / "versions").glob("r[0-9]*_*.py"))


def known(revision: str) -> bool:
    """Whether this program has the revision, as its own or one it can upgrade from."""
    return revision in revisions()


def create(url: str, revision: str, fill: Callable[[Any], None]) -> None:
    """Makes the tables of a revision in an empty PostgreSQL database and fills them, in one transaction.

    `fill` is handed the driver's connection.
    """
    with _connected(url) as connection:
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})"))
        if _status(connection).state != "empty":
            raise errors.Conflict("The database is not empty.")
        _alembic(connection, revision)
        fill(connection.connection.driver_connection)
        connection.commit()
    _looked_at(url)


def require(url: str) -> SchemaStatus:
    """The status when the schema is the one needed; `Unavailable` with the remedy otherwise."""
    status = schema_status(url)
    if status.state == "newer":
        raise errors.Unavailable(_newer(status))
    if status.state != "current":
        found = f"at {status.found}" if status.found else "empty"
        raise errors.Unavailable(
            f"The database is {found}, this program needs {status.needed}: run `passerelle db upgrade`."
        )
    return status


def _newer(status: SchemaStatus) -> str:
    return f"The database is at {status.found}, newer than this program ({status.needed}): install the newer program."


def _alembic(connection: sa.Connection, revision: str = "head") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except sa.exc.DBAPIError as fault:
        said = (str(fault.orig).strip().splitlines() or [type(fault).__name__])[0]
        raise errors.Fault(f"The schema could not be upgraded, and nothing was changed ({said}).") from fault


def _looked_at(url: str) -> None:
    """Has PostgreSQL look at what was moved or filled: it plans by that, and would come by on its own after a while.
    What was done stands; a table that somebody locks, or that takes too long, is told and left to the database."""
    if sqlite_path(url) is None:
        statistics.look(lambda: connect(url, statement_seconds=statistics.SECONDS))


def _status(connection: sa.Connection) -> SchemaStatus:
    ours = revisions()
    needed, found = ours[-1], ""
    if sa.inspect(connection).has_table("alembic_version"):
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() or ""
    if found == needed:
        return SchemaStatus("current", found, needed)
    if not found:
        return SchemaStatus("empty", found, needed)
    return SchemaStatus("older" if found in ours else "newer", found, needed)


@contextmanager
def _connected(url: str) -> Iterator[sa.Connection]:
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            yield connection
    except sa.exc.OperationalError as fault:
        raise errors.Unavailable(
            f"The database does not answer ({str(fault.orig).strip().splitlines()[0]}); check PASSERELLE_DATABASE_URL."
        ) from fault
    finally:
        engine.dispose()


def _engine(url: str) -> sa.Engine:
    path = sqlite_path(url)
    if path is None:
        return sa.create_engine(_sqlalchemy_url(url), poolclass=sa.NullPool)
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    # The driver would open no transaction before DDL: a migration must be whole or absent, and run once at a time.
    sa.event.listen(engine, "connect", _leave_transactions_to_us)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _leave_transactions_to_us(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _sqlalchemy_url(url: str) -> str:
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    raise errors.Invalid("PASSERELLE_DATABASE_URL must be sqlite:///path/to/file or postgresql://...")


def _copy(source: Path, target: Path) -> None:
    """A whole copy through SQLite's backup interface, safe beside a running writer."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(source) as reading, sqlite3.connect(target) as writing:
        reading.backup(writing)
    reading.close()
    writing.close()
