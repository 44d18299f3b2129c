"""One consistent copy of every row as files in a folder, and a database made from them; each database in its own way.

SQLite: the online backup interface under one read transaction, so that writers go on and the copy is not begun again
for them. PostgreSQL: COPY of every table in one REPEATABLE READ transaction, compressed text, which a later major
version reads as well. Beside the rows stands `content.tsv`: sha256 and size of all content the copy refers to.

Sources: https://sqlite.org/backup.html, https://www.postgresql.org/docs/15/sql-copy.html
"""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, LiteralString, cast

import psycopg

from fhir_server import errors
from fhir_server.store import postgres, schema, sqlite
from fhir_server.store.blob_place import Form
from fhir_server.store.dialect import Row
from fhir_server.store.tables import METADATA

CONTENT = "content.tsv"
SQLITE_FILE = "passerelle.sqlite"
CHUNK = 1 << 20
PAGES = 4096
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a copy: its columns in the order of the file, and how many rows."""

    columns: tuple[str, ...]
    rows: int


def export(url: str, folder: Path, tell: Tell) -> dict[str, Table]:
    """Writes the copy into an empty folder; the tables in the order in which they can be filled again."""
    path = schema.sqlite_path(url)
    return _from_sqlite(path, folder, tell) if path is not None else _from_postgresql(url, folder, tell)


def load(
    url: str, folder: Path, revision: str, tables: Mapping[str, Table], *, note: str, form: Form, tell: Tell
) -> None:
    """Makes the database from the copy, whole or not at all; lanes are paused with the note unless it is ''."""
    path = schema.sqlite_path(url)
    try:
        if path is not None:
            _to_sqlite(folder / SQLITE_FILE, path, tables, note, form, tell)
        else:
            schema.create(url, revision, lambda connection: _fill(connection, folder, tables, note, form, tell))
    except (psycopg.Error, sqlite3.Error, EOFError, gzip.BadGzipFile) as fault:
        said = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise errors.Invalid(f"The rows of the backup cannot be loaded ({said}).") from fault


def empty(url: str) -> bool:
    """Whether there is no database yet: no file, or no table."""
    path = schema.sqlite_path(url)
    if path is not None:
        return not any(path.with_name(path.name + tail).exists() for tail in ("", "-wal", "-journal"))
    with postgres.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'v', 'm', 'S')"
        ).fetchone()
    return row == (0,)


# --- SQLite ----------------------------------------------------------------------------------------------------------


def _from_sqlite(path: Path, folder: Path, tell: Tell) -> dict[str, Table]:
    with (
        closing(sqlite.connect(path, read_only=True)) as source,
        closing(sqlite3.connect(folder / SQLITE_FILE, isolation_level=None)) as target,
    ):
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM counter").fetchall()  # the snapshot begins here

        def progress(_status: int, remaining: int, total: int) -> None:
            tell(f"database: page {total - remaining} of {total}")

        source.backup(target, pages=PAGES, progress=progress, sleep=0.0)
        source.execute("ROLLBACK")
        target.execute("PRAGMA journal_mode = DELETE")  # one file, no -wal beside it
        with (folder / CONTENT).open("w", encoding="ascii") as content:
            for sha256, size in target.execute("SELECT sha256, size FROM blob ORDER BY sha256"):
                content.write(f"{sha256}\t{size}\n")
        return _counted(target)


def _counted(connection: sqlite3.Connection) -> dict[str, Table]:
    found = {}
    for table in METADATA.sorted_tables:
        (rows,) = connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()
        found[table.name] = Table(tuple(table.columns.keys()), rows)
    return found


def _to_sqlite(source: Path, path: Path, tables: Mapping[str, Table], note: str, form: Form, tell: Tell) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arriving = path.with_name(path.name + ".restoring")
    try:
        with source.open("rb") as reading, arriving.open("wb") as writing:
            shutil.copyfileobj(reading, writing, CHUNK)
            os.fsync(writing.fileno())
        tell("database: checking")
        with closing(sqlite3.connect(arriving, isolation_level=None)) as connection:
            _check_sqlite(connection, tables)
            connection.execute("PRAGMA synchronous = FULL")
            _settle(note, form, tables, lambda sql, params: connection.execute(sql.replace("%s", "?"), params))
        arriving.rename(path)
    finally:
        arriving.unlink(missing_ok=True)


def _check_sqlite(connection: sqlite3.Connection, tables: Mapping[str, Table]) -> None:
    found = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        raise errors.Invalid(f"The database in the backup is damaged: {found[0]}.")
    for name, table in tables.items():
        (rows,) = connection.execute(f"SELECT count(*) FROM {name}").fetchone()
        _same_count(name, rows, table.rows)


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def _sql(text: str) -> LiteralString:
    """Every name that comes here is checked or our own."""
    return cast(LiteralString, text)  # type: ignore[redundant-cast]


def _from_postgresql(url: str, folder: Path, tell: Tell) -> dict[str, Table]:
    found = {}
    with postgres.connect(url, statement_seconds=0) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        for table in METADATA.sorted_tables:
            columns = tuple(table.columns.keys())
            with gzip.GzipFile(folder / f"{table.name}.copy.gz", "wb", compresslevel=1, mtime=0) as file:
                _copy_out(cursor, f"COPY {table.name} ({', '.join(columns)}) TO STDOUT", file)
            found[table.name] = Table(columns, cursor.rowcount)
            tell(f"database: {table.name}, {cursor.rowcount} rows")
        with (folder / CONTENT).open("wb") as content:
            _copy_out(cursor, "COPY (SELECT sha256, size FROM blob ORDER BY sha256) TO STDOUT", content)
        cursor.execute("ROLLBACK")
    return found


def _copy_out(cursor: psycopg.Cursor[Row], sql: str, file: IO[bytes] | gzip.GzipFile) -> None:
    with cursor.copy(_sql(sql)) as copy:
        for data in copy:
            file.write(data)


def _fill(
    connection: psycopg.Connection[Row], folder: Path, tables: Mapping[str, Table], note: str, form: Form, tell: Tell
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM counter")  # the migrations' first rows; the copy has its own
        for name, table in tables.items():
            with (
                gzip.open(folder / f"{name}.copy.gz", "rb") as file,
                cursor.copy(_sql(f"COPY {name} ({', '.join(table.columns)}) FROM STDIN")) as copy,
            ):
                while data := file.read(CHUNK):
                    copy.write(data)
            _same_count(name, cursor.rowcount, table.rows)
            tell(f"database: {name}, {table.rows} rows")
        _advance_identities(cursor)
        _settle(note, form, tables, lambda sql, params: cursor.execute(_sql(sql), params))


def _advance_identities(cursor: psycopg.Cursor[Row]) -> None:
    """COPY brought the numbers, not where to go on."""
    cursor.execute(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = current_schema() AND is_identity = 'YES'"
    )
    for table, column in cursor.fetchall():
        cursor.execute(
            _sql(
                f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), coalesce(max({column}), 0) + 1, false) "
                f"FROM {table}"
            )
        )


# --- both ------------------------------------------------------------------------------------------------------------


def _settle(note: str, form: Form, tables: Mapping[str, Table], run: Callable[[str, Sequence[object]], object]) -> None:
    """Pauses the lanes, and says how the content is stored now; a copy of before revision 0006 has no column for the
    key."""
    run("UPDATE blob SET form = %s", (form.name,))
    if "key_id" in tables["blob"].columns:
        run("UPDATE blob SET key_id = %s", (form.key_id,))
    if note:
        run("UPDATE lane SET paused = 1, paused_note = %s, lease_until = 0, lease_by = '' WHERE paused = 0", (note,))


def _same_count(name: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise errors.Invalid(f"The backup has {found} rows of {name}; it says {wanted}.")
