"""A filled database of every schema there was: upgraded, it has lost nothing and agrees with itself."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from stocked import create, extract, fill, patient

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.store import copies, schema
from fhir_server.store.blobs import Blobs
from fhir_server.store.check import check
from fhir_server.store.engine import Store, open_store
from fhir_server.store.reindex import reindex
from fhir_server.store.tables import METADATA

REVISIONS = schema.revisions()
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def filled(sqlite_url: str, tmp_path: Path) -> tuple[Rows, Blobs]:
    """Every row of a store with something of everything, as this version writes it."""
    store = open_store(sqlite_url, tmp_path / "source", migrate=False)
    fill(store)
    store.close()
    engine = schema._engine(sqlite_url)
    with engine.connect() as connection:
        rows = {
            table.name: [dict(row._mapping) for row in connection.execute(table.select())]
            for table in METADATA.sorted_tables
        }
    engine.dispose()
    return rows, store.blobs


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/old/passerelle.db"
    return str(request.getfixturevalue("empty_postgres"))


def old_database(url: str, revision: str, rows: Rows) -> dict[str, list[str]]:
    """A database as that revision had it, with the rows it could hold; the columns of each table."""
    columns: dict[str, list[str]] = {}
    engine = schema._engine(url)
    with engine.connect() as connection:
        schema._alembic(connection, revision)
        connection.commit()
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM counter"))
        seen = sa.inspect(connection)
        for table in METADATA.sorted_tables:
            if not seen.has_table(table.name):
                continue
            columns[table.name] = [one["name"] for one in seen.get_columns(table.name)]
            there = [{name: row[name] for name in columns[table.name]} for row in rows[table.name]]
            if there:
                reduced = sa.table(table.name, *(sa.column(name) for name in columns[table.name]))
                connection.execute(reduced.insert(), there)
        if "contained" not in columns:  # a bit of the mask for each index table, and those were not there
            old = (1 << 8) - 1
            connection.execute(sa.text(f"UPDATE resource SET mask = mask & {old}"))
        if schema.sqlite_path(url) is None:
            driver = connection.connection.driver_connection
            assert driver is not None
            copies._advance_identities(driver.cursor())
    engine.dispose()
    return columns


def kept(store: Store, columns: dict[str, list[str]]) -> Rows:
    with store.read(SYSTEM) as snapshot:
        return {
            name: [
                dict(zip(names, row, strict=True))
                for row in snapshot.view.db.rows(f"SELECT {', '.join(names)} FROM {name}")
            ]
            for name, names in columns.items()
        }


def same(one: Rows, other: Rows) -> bool:
    return {name: sorted(map(repr, rows)) for name, rows in one.items()} == {
        name: sorted(map(repr, rows)) for name, rows in other.items()
    }


def test_the_revisions_told_by_their_names_are_those_alembic_goes_through() -> None:
    walked = [one.revision for one in ScriptDirectory(str(schema.MIGRATIONS)).walk_revisions()]
    assert walked[::-1] == REVISIONS


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_filled_database_of_every_revision_is_upgraded_and_agrees(
    filled: tuple[Rows, Blobs], empty_url: str, revision: str, tmp_path: Path
) -> None:
    rows, blobs = filled
    columns = old_database(empty_url, revision, rows)
    older = revision != REVISIONS[-1]
    if older:
        with pytest.raises(errors.Unavailable, match=rf"is at {revision}.*passerelle db upgrade"):
            open_store(empty_url, tmp_path / "data", migrate=False)
    assert schema.upgrade(empty_url, backups=tmp_path / "data" / "backups").state == "current"
    store = open_store(empty_url, tmp_path / "data", migrate=False, blobs=blobs)
    try:
        wanted = {name: [{one: row[one] for one in names} for row in rows[name]] for name, names in columns.items()}
        found = kept(store, columns)
        if "contained" not in columns:
            for row in wanted["resource"]:
                row["mask"] &= 255
        assert same(found, wanted), "an upgrade loses and changes nothing"
        report = check(store, extract, deep=True)
        assert set(report.counts) <= ({"index", "mask"} if "contained" not in columns else set()), report.problems
        reindex(store, extract, meaning=7)
        assert check(store, extract, deep=True).ok and store.verify().ok
        store.write(SYSTEM, lambda tx: create(tx, patient("later")))
        store.seal()
        assert check(store, extract, deep=True).ok
    finally:
        store.close()
    copied = list((tmp_path / "data" / "backups").glob("*"))
    if empty_url.startswith("sqlite") and older:
        with sqlite3.connect(copied[0]) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (revision,)
            assert connection.execute("SELECT count(*) FROM resource").fetchone() == (len(rows["resource"]),)
        connection.close()
    else:
        assert copied == []


def test_an_upgrade_that_fails_changes_nothing(filled: tuple[Rows, Blobs], empty_url: str, tmp_path: Path) -> None:
    """A table of that name is in the way of a later step: the steps before it are taken back as well."""
    old_database(empty_url, "0002", filled[0])
    engine = schema._engine(empty_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE search_parameter (x integer)"))
        before = set(sa.inspect(connection).get_table_names())
    with pytest.raises(errors.Fault, match=r"nothing was changed .*already exists"):
        schema.upgrade(empty_url)
    with engine.begin() as connection:
        assert set(sa.inspect(connection).get_table_names()) == before
        connection.execute(sa.text("DROP TABLE search_parameter"))
    engine.dispose()
    assert schema.schema_status(empty_url).found == "0002"
    assert schema.upgrade(empty_url).state == "current"


def test_every_step_only_adds(tmp_path: Path) -> None:
    """The version before goes on working on the newer schema until it is stopped: what is dropped, renamed or made
    narrower waits for a later release."""
    for revision in REVISIONS[1:]:
        (path,) = (schema.MIGRATIONS / "versions").glob(f"r{revision}_*.py")
        text = path.read_text(encoding="utf-8")
        for word in ("drop_", "alter_column", "rename_", "DROP ", "ALTER "):
            assert word not in text, f"{path.name}: {word}"
        for column in text.split("op.add_column(")[1:]:
            assert "server_default" in column.split("\n")[0] or "nullable=True" in column.split("\n")[0], path.name
