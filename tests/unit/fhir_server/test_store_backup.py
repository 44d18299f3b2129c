"""A backup made while the server runs, restored elsewhere, is the same store; and what is refused."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stocked import LARGE, create, extract, fill, patient, unreadable, update

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search.rows import IndexRows
from fhir_server.store import copies, schema
from fhir_server.store.backup import Backup, backup, read_header, restore, verify
from fhir_server.store.blob_place import Kept
from fhir_server.store.check import check
from fhir_server.store.engine import Store, open_store
from fhir_server.store.folder import DataFolderLock
from fhir_server.store.inbox import NewMessage, sha256_of
from fhir_server.store.session import Tx
from fhir_server.store.tables import METADATA


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> str:
    """The address of a database of the same engine that does not exist yet (SQLite) or is empty."""
    if database_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path}/new/passerelle.sqlite"
    return str(request.getfixturevalue("empty_postgres"))


@pytest.fixture
def stocked(store: Store) -> Store:
    fill(store)
    return store


def everything(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    with store.read(SYSTEM) as snapshot:
        return {
            name: sorted(snapshot.view.db.rows(f"SELECT {', '.join(table.columns.keys())} FROM {name}"), key=repr)
            for name, table in METADATA.tables.items()
        }


def restored(source: Path, tmp_path: Path, url: str, **settings: Any) -> Store:
    restore(source, tmp_path / "new", url, **settings)
    return open_store(url, tmp_path / "new", migrate=False)


def test_a_restored_backup_is_the_same_store(stocked: Store, tmp_path: Path, elsewhere: str) -> None:
    made = backup(stocked, tmp_path / "backup")
    assert read_header(tmp_path / "backup") == made == verify(tmp_path / "backup")
    assert (made.engine, made.content, made.damaged) == (stocked.engine, 6, ())
    assert made.tables["resource"].rows == 13 and made.tables["history"].rows == 6
    new = restored(tmp_path / "backup", tmp_path, elsewhere, pause=False)
    before, after = everything(stocked), everything(new)
    if stocked.engine == "postgresql":  # numbered on from the other database's transactions
        after["counter"] = [row for row in after["counter"] if row[0] != "txid base"]
    assert after == before
    assert check(new, extract, deep=True).ok and new.verify().sealed == 13
    with stocked.read(SYSTEM) as one, new.read(SYSTEM) as other:
        assert one.history("Patient", "p0") == other.history("Patient", "p0")
        assert one.message_raw(one.messages()[0].id) == other.message_raw(one.messages()[0].id) == LARGE
    new.close()


def test_a_restored_store_goes_on(stocked: Store, tmp_path: Path, elsewhere: str) -> None:
    backup(stocked, tmp_path / "backup")
    new = restored(tmp_path / "backup", tmp_path, elsewhere)
    new.write(SYSTEM, lambda tx: [create(tx, patient("later")), update(tx, patient("p0", "Encore"))])
    new.receive(NewMessage("mllp", b"MSH|3", sender="A", control_id="M3"))
    assert not new.receive(NewMessage("mllp", b"MSH|9", sender="A", control_id="M1")).known
    with new.read(SYSTEM) as snapshot:
        rows = snapshot.journal(limit=1000)
        assert len(rows) == 21 and [row.method for row in rows[-2:]] == ["POST", "PUT"]
        assert [one.version for one in snapshot.history("Patient", "p0").entries] == [4, 3, 2, 1]
        (lane,) = snapshot.lanes()
        assert lane.paused and "restored from the backup of 20" in lane.paused_note and lane.open == 1
    assert new.claim("w", 30) is None
    new.write(SYSTEM, lambda tx: tx.resume("lane"))
    claim = new.claim("w", 30)
    assert claim is not None and new.payload(claim) == LARGE + b"!"
    assert new.seal() == 1 and new.verify().ok and check(new, extract, deep=True).ok
    new.close()


def test_a_backup_holds_what_was_committed_together(
    store: Store, tmp_path: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions write three resources and a content each while the backup is made: all of a group, or nothing."""
    monkeypatch.setattr(copies, "PAGES", 4)
    done, faults, told = threading.Event(), list[BaseException](), list[str]()

    def group(tx: Tx, number: int, kept: Kept) -> None:
        for part in range(3):
            key = f"{number}-{part}"
            tx.create(
                {"resourceType": "Basic", "id": key, "text": {"div": "x" * 3000}}, IndexRows(token=[(1, "", key, "")])
            )
        tx.attach(kept, "text/plain")

    def write(worker: int) -> None:
        number = worker * 1_000_000
        try:
            while not done.is_set():
                kept = store.blobs.keep(f"{number}".encode() * 20_000)
                store.write(SYSTEM, lambda tx, n=number, kept=kept: group(tx, n, kept))  # type: ignore[misc]  # a default has no type
                number += 1
        except BaseException as fault:
            faults.append(fault)

    for number in range(60):
        kept = store.blobs.keep(f"{9_000_000 + number}".encode() * 20_000)
        store.write(SYSTEM, lambda tx, n=number, kept=kept: group(tx, 9_000_000 + n, kept))  # type: ignore[misc]  # a default has no type
    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in writers:
        thread.start()
    made = backup(store, tmp_path / "backup", tell=told.append)
    done.set()
    for thread in writers:
        thread.join(30)
    assert faults == [] and made.damaged == ()
    if store.engine == "sqlite":
        pages = [int(line.split()[2]) for line in told if "page" in line]
        assert len(pages) > 10 and pages == sorted(pages), "writers did not make it begin again"
    new = restored(tmp_path / "backup", tmp_path, elsewhere)
    report = check(new, lambda resource: IndexRows(token=[(1, "", resource["id"], "")]), deep=True)
    assert report.ok and report.resources == 3 * report.content == made.tables["resource"].rows
    with new.read(SYSTEM) as snapshot:
        groups = [row[0].split("-")[0] for row in snapshot.view.db.rows("SELECT id FROM resource")]
    assert {groups.count(one) for one in groups} == {3} and len(set(groups)) >= 60
    new.close()


def test_a_backup_is_verified_with_common_tools(stocked: Store, tmp_path: Path) -> None:
    backup(stocked, tmp_path / "backup")
    command = ["sha256sum", "--check", "--quiet", "--strict", "MANIFEST.sha256"]
    subprocess.run(command, cwd=tmp_path / "backup", check=True, timeout=30)
    listed = {line.split("  ")[1] for line in (tmp_path / "backup" / "MANIFEST.sha256").read_text().splitlines()}
    files = {str(path.relative_to(tmp_path / "backup")) for path in (tmp_path / "backup").rglob("*") if path.is_file()}
    assert files == listed | {"MANIFEST.sha256", "backup.json"}


def test_content_that_is_missing_or_altered_is_named_and_the_rest_is_kept(
    stocked: Store, tmp_path: Path, elsewhere: str
) -> None:
    gone, altered = sha256_of(LARGE), sha256_of(b"%PDF")
    stocked.blobs.at.path(gone).unlink()
    path = stocked.blobs.at.path(altered)
    path.chmod(0o600)
    path.write_bytes(b"%PDf")
    made = backup(stocked, tmp_path / "backup")
    assert set(made.damaged) == {gone, altered} and made.content == 4
    assert verify(tmp_path / "backup") == made
    new = restored(tmp_path / "backup", tmp_path, elsewhere)
    assert {one.subject for one in check(new, extract).problems} == {gone, altered}
    new.close()


def test_content_on_a_bad_sector_is_named_and_the_rest_is_kept(
    stocked: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = sha256_of(LARGE)
    unreadable(monkeypatch, errno.EIO, Path(stocked.blobs.at.copies(gone)[0].place))
    made = backup(stocked, tmp_path / "backup")
    assert made.damaged == (gone,) and made.content == 5 and verify(tmp_path / "backup") == made


def test_content_this_user_may_not_read_stops_a_backup_which_leaves_nothing(
    stocked: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, path = tmp_path / "backup", stocked.blobs.at.copies(sha256_of(LARGE))[0].place
    with monkeypatch.context() as patched:
        unreadable(patched, errno.EACCES, Path(path))
        with pytest.raises(errors.Unavailable, match="Permission denied") as told:
            backup(stocked, target)
    assert path in told.value.diagnostics and "as the user the server runs as" in told.value.diagnostics
    assert list(target.iterdir()) == []
    assert backup(stocked, target).damaged == (), "the same folder serves once the rights are mended"


def test_a_backup_goes_into_a_folder_of_its_own(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    backup(store, target)
    with pytest.raises(errors.Conflict, match="not empty"):
        backup(store, target)
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.Conflict, match="not empty"):
        backup(store, tmp_path / "file")
    (tmp_path / "there").mkdir()
    assert backup(store, tmp_path / "there").content == 0


def test_a_restore_replaces_nothing(stocked: Store, tmp_path: Path, elsewhere: str) -> None:
    source = tmp_path / "backup"
    backup(stocked, source)
    before = everything(stocked)
    with pytest.raises(errors.Conflict, match="database is not empty"):
        restore(source, tmp_path / "new", stocked.address)
    with pytest.raises(errors.Conflict, match="blobs is not empty"):
        restore(source, tmp_path / "data", elsewhere)
    assert everything(stocked) == before and check(stocked, extract).ok
    with DataFolderLock(tmp_path / "new"), pytest.raises(errors.Unavailable, match="already serves"):
        restore(source, tmp_path / "new", elsewhere)
    restore(source, tmp_path / "new", elsewhere)
    with pytest.raises(errors.Conflict, match="not empty"):
        restore(source, tmp_path / "third", elsewhere)


def test_what_is_left_of_another_database_is_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "p.db-wal").write_bytes(b"")
    assert not copies.empty(f"sqlite:///{tmp_path}/p.db") and copies.empty(f"sqlite:///{tmp_path}/q.db")


def rewrite(source: Path, name: str, data: bytes, **header: Any) -> None:
    """Replaces a file of the backup and makes manifest and header agree with it."""
    (source / name).write_bytes(data)
    told = read_header(source)
    lines = (source / "MANIFEST.sha256").read_text().splitlines()
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}" if line.endswith("  " + name) else line for line in lines]
    (source / "MANIFEST.sha256").write_text("\n".join(lines) + "\n")
    edit(source, manifest=hashlib.sha256((source / "MANIFEST.sha256").read_bytes()).hexdigest(), **header)
    assert isinstance(told, Backup)


def edit(source: Path, **header: Any) -> None:
    told = json.loads((source / "backup.json").read_text())
    (source / "backup.json").write_text(json.dumps(told | header))


def database_file(source: Path) -> Path:
    return next(
        path for path in (source / "database").iterdir() if path.name in ("passerelle.sqlite", "resource.copy.gz")
    )


def content_file(source: Path) -> Path:
    return next(path for path in sorted((source / "content").rglob("*")) if path.is_file())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit in the rows": (lambda source: flip(database_file(source)), "missing or was altered"),
    "a flipped bit in content": (lambda source: flip(content_file(source)), "missing or was altered"),
    "missing content": (lambda source: content_file(source).unlink(), "missing or was altered"),
    "missing rows": (lambda source: database_file(source).unlink(), "missing or was altered"),
    "a changed manifest": (lambda source: flip(source / "MANIFEST.sha256"), "missing or was changed"),
    "no manifest": (lambda source: (source / "MANIFEST.sha256").unlink(), "missing or was changed"),
    "no header": (lambda source: (source / "backup.json").unlink(), "not finished"),
    "a broken header": (lambda source: (source / "backup.json").write_text("{"), "cannot be read"),
    "a header of something else": (lambda source: (source / "backup.json").write_text("{}"), "not what this program"),
    "a header that is a list": (lambda source: (source / "backup.json").write_text("[]"), "not what this program"),
    "a later format": (lambda source: edit(source, format=2), "format 2; this program reads 1"),
    "a newer schema": (lambda source: edit(source, schema="9999"), "newer than this program"),
    "another engine": (lambda source: edit(source, engine="oracle"), "backup is of oracle"),
    "a table that is none": (lambda source: edit(source, tables={"a;b": {"columns": [], "rows": 0}}), "table's name"),
    "another number of rows": (
        lambda source: edit(source, tables={"resource": {"columns": ["rid"], "rows": 12}}), "rows of resource|cannot be loaded"  # noqa: E501 - one program, one row
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_backup_is_refused_and_leaves_nothing(
    stocked: Store, tmp_path: Path, elsewhere: str, damage: str
) -> None:
    source, new = tmp_path / "backup", tmp_path / "new"
    backup(stocked, source)
    harm, text = DAMAGES[damage]
    harm(source)
    with pytest.raises(Exception, match=text) as caught:
        restore(source, new, elsewhere)
    assert isinstance(caught.value, errors.Invalid | errors.Unavailable)
    assert copies.empty(elsewhere)
    assert {path.name for path in new.rglob("*")} <= {"passerelle.lock"}
    if damage not in ("a newer schema", "another engine", "another number of rows"):
        with pytest.raises(errors.Invalid, match=text):
            verify(source)


def test_a_manifest_that_leads_out_of_its_folder_is_refused(stocked: Store, tmp_path: Path, elsewhere: str) -> None:
    source = tmp_path / "backup"
    backup(stocked, source)
    digest = hashlib.sha256(b"x").hexdigest()
    for line in (
        f"{digest}  ../outside",
        f"{digest}  content/../../etc/passwd",
        f"{digest}  /etc/passwd",
        f"{digest}  content/ab/cd/{'abcd' + '0' * 60}",
        "",
    ):
        manifest = (source / "MANIFEST.sha256").read_text().splitlines()[:2]
        manifest.append(line)
        (source / "MANIFEST.sha256").write_text("\n".join(manifest) + "\n")
        edit(source, manifest=hashlib.sha256((source / "MANIFEST.sha256").read_bytes()).hexdigest())
        with pytest.raises(errors.Invalid, match="does not write"):
            restore(source, tmp_path / "new", elsewhere)


def test_a_database_that_is_whole_in_its_hash_but_broken_inside_is_refused(
    stocked: Store, tmp_path: Path, elsewhere: str
) -> None:
    """The manifest was made anew over rows that do not load: what was restored is undone."""
    source = tmp_path / "backup"
    backup(stocked, source)
    path = database_file(source)
    if stocked.engine == "sqlite":
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 4096] = b"\xff" * 4096
        rewrite(source, f"database/{path.name}", bytes(data))
    else:
        rows = gzip.decompress(path.read_bytes()).splitlines()
        rewrite(source, f"database/{path.name}", gzip.compress(b"\n".join([*rows, rows[0]]) + b"\n"))
    with pytest.raises(errors.PasserelleError):
        restore(source, tmp_path / "new", elsewhere)
    assert copies.empty(elsewhere) and not (tmp_path / "new" / "blobs").exists()


def test_a_full_disk_is_told(store: Store, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    target = tmp_path / "backup"
    target.mkdir()
    real = copies.export

    def export(url: str, folder: Path, tell: Any) -> Any:
        found = real(url, folder, tell)
        (target / "MANIFEST.sha256").symlink_to("/dev/full")
        return found

    copies.export = export
    try:
        with pytest.raises(errors.Unavailable, match="No space left"):
            backup(store, target)
    finally:
        copies.export = real
    with pytest.raises(errors.Invalid, match="not finished"):
        read_header(target)
    assert list(target.iterdir()) == [], "what was written is taken away again: the disk is full"


def first_release(tmp_path: Path) -> dict[str, set[str]]:
    """The tables of the first release and their columns."""
    path = tmp_path / "first.sqlite"
    with schema._connected(f"sqlite:///{path}") as connection:
        schema._alembic(connection, "0001")
        connection.commit()
    with sqlite3.connect(path) as found:
        names = [row[0] for row in found.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {name: {row[1] for row in found.execute(f"PRAGMA table_info({name})")} for name in names}
    found.close()
    return columns


@pytest.mark.needs("postgresql")
def test_an_older_backup_is_restored_and_then_upgraded(
    open_url: Callable[..., Store], migrated_postgres: str, empty_postgres: str, tmp_path: Path
) -> None:
    """As the first release would have written it: without the tables and columns that came later."""
    store, source = open_url(migrated_postgres), tmp_path / "backup"
    fill(store)
    made = backup(store, source)
    first, tables = first_release(tmp_path), json.loads((source / "backup.json").read_text())["tables"]
    for name in tables.keys() - first.keys():
        del tables[name]
    for name, table in tables.items():
        kept = [number for number, column in enumerate(table["columns"]) if column in first[name]]
        table["columns"] = [table["columns"][number] for number in kept]
        lines = gzip.decompress((source / f"database/{name}.copy.gz").read_bytes()).splitlines()
        rows = (line.split(b"\t") for line in lines)
        old = b"".join(b"\t".join(row[number] for number in kept) + b"\n" for row in rows)
        rewrite(source, f"database/{name}.copy.gz", gzip.compress(old), tables=tables, schema="0001")
    assert restore(source, tmp_path / "new", empty_postgres).schema == "0001" != made.schema
    assert schema.schema_status(empty_postgres).state == "older"
    with pytest.raises(errors.Unavailable, match="db upgrade"):
        open_store(empty_postgres, tmp_path / "new", migrate=False)
    new = open_store(empty_postgres, tmp_path / "new", migrate=True)
    told = check(new, extract, deep=True)
    new.close()
    # An index table that came later is empty until a reindex.
    assert {problem.text.partition(":")[0] for problem in told.problems} <= METADATA.tables.keys() - first.keys()


@pytest.mark.needs("postgresql")
def test_rows_of_a_busier_cluster_do_not_hide_the_journal(
    open_url: Callable[..., Store], migrated_postgres: str, empty_postgres: str, tmp_path: Path
) -> None:
    """Transaction numbers are the cluster's. Those of the old one are far ahead: the new one goes on behind them."""
    store, source = open_url(migrated_postgres), tmp_path / "backup"
    fill(store)
    ahead = 5_000_000_000
    for table in ("journal", "audit", "resource", "history"):
        store.write(SYSTEM, lambda tx, table=table: tx.view.db.run(f"UPDATE {table} SET txid = txid + {ahead}"))  # type: ignore[misc]  # a default has no type
    store.write(SYSTEM, lambda tx: tx.view.db.run("DELETE FROM audit_seal"))
    with store.read(SYSTEM) as snapshot:
        assert snapshot.journal() == [], "which is what a copy by other means gives, until the store is opened again"
    store.close()
    for url in (migrated_postgres, empty_postgres):
        if url == empty_postgres:
            backup(open_url(migrated_postgres), source)
            restore(source, tmp_path / "new", url)
        new = open_store(url, tmp_path / ("data" if url == migrated_postgres else "new"), migrate=False)
        with new.read(SYSTEM) as snapshot:
            known = snapshot.journal(limit=1000)
            head = snapshot.journal_head()
            assert len(known) >= 19 and head == known[-1].position
        new.write(SYSTEM, lambda tx, url=url: create(tx, patient(f"new{len(url)}")))  # type: ignore[misc]  # a default has no type
        with new.read(SYSTEM) as snapshot:
            (row,) = snapshot.journal(after=head)
            assert row.txid > ahead and len(snapshot.history("Patient").entries) > 9
            first = snapshot.search(plan())
            assert first.next is not None
            assert len(snapshot.search(plan(first.next)).matches) == 2
        assert new.seal() > 0 and new.verify().ok and check(new, extract).ok
        new.close()
        again = open_store(url, tmp_path / "again", migrate=False)
        with again.read(SYSTEM) as snapshot:
            assert snapshot.journal(after=head) == [row]
        again.close()
        shutil.rmtree(tmp_path / "again")


def plan(after: tuple[object, ...] = ()) -> Any:
    from fhir_server.search.plan import Plan

    return Plan(("Patient",), count=2, after=after)
