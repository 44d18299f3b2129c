"""Schema versions: from empty, older with a backup, newer refused, PostgreSQL only when told."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.store import schema
from fhir_server.store.engine import open_store
from fhir_server.store.tables import METADATA


def test_sqlite_creates_its_own_schema(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deep/er/p.sqlite"
    assert schema.schema_status(url).state == "empty"
    store = open_store(url, tmp_path / "data")
    assert store.schema_version == schema.schema_status(url).needed != ""
    assert store.engine == "sqlite"
    store.close()
    assert not (tmp_path / "data" / "backups").exists()
    open_store(url, tmp_path / "data", migrate=False).close()


def test_sqlite_without_migration_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="passerelle db upgrade"):
        open_store(f"sqlite:///{tmp_path}/p.sqlite", tmp_path, migrate=False)


def test_an_older_sqlite_file_is_copied_before_its_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, path = f"sqlite:///{tmp_path}/p.sqlite", tmp_path / "p.sqlite"
    open_store(url, tmp_path).close()
    status = schema.SchemaStatus("older", "0000", "0001")
    real = schema._status
    answers = iter([status])
    monkeypatch.setattr(schema, "_status", lambda connection: next(answers, None) or real(connection))
    schema.upgrade(url, backups=tmp_path / "backups")
    (copy,) = (tmp_path / "backups").iterdir()
    assert copy.name.startswith("p-0000-")
    with sqlite3.connect(copy) as connection:
        assert connection.execute("SELECT count(*) FROM resource").fetchone() == (0,)
    connection.close()
    assert path.exists()


@pytest.mark.needs("postgresql")
def test_postgresql_is_upgraded_only_when_told(empty_postgres: str, tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match=r"is empty.*passerelle db upgrade"):
        open_store(empty_postgres, tmp_path, migrate=False)
    assert schema.schema_status(empty_postgres).state == "empty"
    assert schema.upgrade(empty_postgres).state == "current"
    store = open_store(empty_postgres, tmp_path, migrate=False)
    assert store.epoch == 1
    store.close()


def test_a_newer_schema_is_refused(database_url: str, tmp_path: Path) -> None:
    engine = schema._engine(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    for migrate in (True, False):
        with pytest.raises(errors.Unavailable, match="9999, newer than this program"):
            open_store(database_url, tmp_path / "data", migrate=migrate)


def test_the_migrations_give_the_tables_the_code_names(database_url: str) -> None:
    engine = schema._engine(database_url)
    with engine.connect() as connection:
        # Each database has some of its own kind, which are no part of the tables both have.
        own = ("idx_text_words", "resource_live")
        options = {"include_name": lambda name, kind, parents: not str(name).startswith(own)}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)
    engine.dispose()
    assert differences == []


@pytest.mark.needs("postgresql")
def test_text_compares_byte_by_byte_on_postgresql(migrated_postgres: str) -> None:
    engine = schema._engine(migrated_postgres)
    with engine.connect() as connection:
        wrong = connection.execute(
            sa.text(
                "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
                "AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'"
            )
        ).all()
    engine.dispose()
    assert wrong == []


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://x", "nothing"])
def test_another_address_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(errors.Invalid, match="PASSERELLE_DATABASE_URL"):
        open_store(url, tmp_path)


def test_a_database_that_does_not_answer_is_told(tmp_path: Path, free_port: object) -> None:
    port = free_port()  # type: ignore[operator]  # a fixture, called
    with pytest.raises(errors.Unavailable, match="does not answer"):
        open_store(f"postgresql://nobody@127.0.0.1:{port}/x", tmp_path, migrate=False)


def test_a_migrated_database_starts_with_an_epoch(database_url: str, tmp_path: Path) -> None:
    store = open_store(database_url, tmp_path / "data", migrate=False)
    with store.read(SYSTEM) as snapshot:
        assert snapshot.epoch() == 1
    store.close()
