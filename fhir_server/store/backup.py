"""Backups while the server runs, and restores: the database and all content it refers to, in one folder.

    backup.json       what it is: engine, schema, time, tables; written last, so a backup without it is incomplete
    MANIFEST.sha256   sha256 of every other file, as `sha256sum -c` reads it
    database/         one consistent copy of all rows (see `copies`)
    content/ab/cd/    the content, under its sha256

The rows are copied first, then the content they refer to, which never changes: what arrives meanwhile belongs to the
next backup. Content is hashed while it is copied; what is missing or altered is named and left out.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from fhir_server import errors
from fhir_server.context import instant
from fhir_server.store import copies, schema
from fhir_server.store.blob_seal import Damaged
from fhir_server.store.blobs import Blobs
from fhir_server.store.copies import CONTENT, Table, Tell
from fhir_server.store.engine import Store
from fhir_server.store.folder import DataFolderLock

FORMAT = 1
_PART = ".part"
_SPOILT = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})
"""What the system says of a file that is there and of which a sector is lost."""
HEADER, MANIFEST, DATABASE, BLOBS = "backup.json", "MANIFEST.sha256", "database", "content"
_LINE = re.compile(
    r"([0-9a-f]{64})  (database/[a-z_]+\.(?:sqlite|copy\.gz|tsv)|content/(..)/(..)/(\3\4[0-9a-f]{60}))\Z"
)
_NAME = re.compile(r"[a-z_][a-z0-9_]*\Z")


def _quiet(_line: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds. `damaged` is the sha256 of each content that was missing or altered at its source;
    `manifest` the sha256 of the manifest; `bytes` counts all files."""

    engine: str
    schema: str
    made_at: str
    tables: dict[str, Table]
    content: int
    bytes: int
    damaged: tuple[str, ...]
    manifest: str
    format: int = FORMAT


def backup(store: Store, target: Path, *, tell: Tell = _quiet) -> Backup:
    """Writes a backup into a folder that is new or empty. `tell` hears a line now and then.

    On SQLite the store may be a second one beside the server's: nothing is written to the database. A backup that
    fails leaves the folder empty. Raises Unavailable when the folder cannot be written or content cannot be read.
    """
    _new_folder(target)
    try:
        return _written(store, target, tell)
    except BaseException as fault:
        _emptied(target)
        if isinstance(fault, OSError):
            raise errors.Unavailable(f"The backup cannot be written ({fault.strerror or fault}).") from fault
        raise


def _written(store: Store, target: Path, tell: Tell) -> Backup:
    made_at = instant(store.now())
    folder = target / DATABASE
    folder.mkdir()
    tables = copies.export(store.address, folder, tell)
    size, count, damaged = 0, 0, []
    with (target / MANIFEST).open("w", encoding="ascii") as manifest:
        for path in sorted(folder.iterdir()):
            size += path.stat().st_size
            manifest.write(f"{_hashed(path)}  {DATABASE}/{path.name}\n")
        for sha256 in _listed(folder / CONTENT):
            copied = _copied(store.blobs, sha256, target)
            if copied is None:
                damaged.append(sha256)
                continue
            size, count = size + copied, count + 1
            manifest.write(f"{sha256}  {BLOBS}/{sha256[:2]}/{sha256[2:4]}/{sha256}\n")
            if count % 1000 == 0:
                tell(f"content: {count}")
        _to_disk(manifest)
    made = Backup(
        store.engine, store.schema_version, made_at, tables, count, size, tuple(damaged), _hashed(target / MANIFEST)
    )
    _write_header(target, made)
    return made


def _emptied(target: Path) -> None:
    """Takes away what a failed backup wrote, as far as it can be."""
    for name in (DATABASE, BLOBS):
        shutil.rmtree(target / name, ignore_errors=True)
    for name in (MANIFEST, HEADER, HEADER + _PART):
        with suppress(OSError):
            (target / name).unlink()


def _new_folder(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise errors.Conflict(f"{target} is not empty; a backup goes into a folder of its own.")
    target.mkdir(parents=True, exist_ok=True, mode=0o700)


def _listed(path: Path) -> Iterator[str]:
    with path.open(encoding="ascii") as lines:
        for line in lines:
            yield line.split("\t")[0]


def _copied(blobs: Blobs, sha256: str, target: Path) -> int | None:
    """Copies one content; its size, None when it is missing or not what its name says."""
    final = target / BLOBS / sha256[:2] / sha256[2:4] / sha256
    final.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with final.open("xb") as file:
            for data in _read(blobs, sha256):
                digest.update(data)
                size += file.write(data)
            _to_disk(file)
    except (errors.NotFound, Damaged):
        digest = hashlib.sha256(b"missing")
    if digest.hexdigest() == sha256:
        return size
    final.unlink()
    return None


def _read(blobs: Blobs, sha256: str) -> Iterator[bytes]:
    """The content. Raises Damaged when a disk has lost it, Unavailable when this user may not read it."""
    try:
        yield from blobs.chunks(sha256)
    except OSError as fault:
        if fault.errno in _SPOILT:
            raise Damaged(f"The content {sha256} cannot be read ({fault.strerror}).") from fault
        raise errors.Unavailable(
            f"{fault.filename or sha256} belongs to the record and cannot be read ({fault.strerror or fault}); make "
            "the backup as the user the server runs as, or let this one read the folder of content. Nothing was kept."
        ) from fault


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_header(target: Path, made: Backup) -> None:
    arriving = target / (HEADER + _PART)
    with arriving.open("w", encoding="utf-8") as file:
        json.dump(asdict(made), file, indent=2)
        _to_disk(file)
    arriving.rename(target / HEADER)
    handle = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_header(source: Path) -> Backup:
    """What a backup says of itself; `Invalid` when it is none, incomplete, or of a later format."""
    try:
        told = json.loads((source / HEADER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise errors.Invalid(f"{source} has no {HEADER}: it is no backup, or one that was not finished.") from None
    except (OSError, ValueError) as fault:
        raise errors.Invalid(f"{source / HEADER} cannot be read ({fault}).") from fault
    try:
        if told["format"] != FORMAT:
            raise errors.Invalid(f"The backup has format {told['format']}; this program reads {FORMAT}.")
        tables = {name: Table(tuple(table["columns"]), int(table["rows"])) for name, table in told["tables"].items()}
        if not all(_NAME.match(name) for one, table in tables.items() for name in (one, *table.columns)):
            raise ValueError("a table's name")
        return Backup(**{**told, "tables": tables, "damaged": tuple(told["damaged"])})
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise errors.Invalid(f"{source / HEADER} is not what this program writes ({fault}).") from fault


def _entries(source: Path, header: Backup) -> Iterator[tuple[str, str]]:
    """(sha256, path) of every file of the manifest; `Invalid` when it is not the one the header names."""
    path = source / MANIFEST
    if not path.exists() or _hashed(path) != header.manifest:
        raise errors.Invalid(f"{path} is missing or was changed.")
    with path.open(encoding="ascii") as lines:
        for line in lines:
            matched = _LINE.match(line.rstrip("\n"))
            if matched is None or (matched[5] and matched[5] != matched[1]):
                raise errors.Invalid(f"{path} has a line this program does not write: {line.strip()[:200]}")
            yield matched[1], matched[2]


def verify(source: Path, *, tell: Tell = _quiet) -> Backup:
    """Reads the whole backup again; `Invalid` names the first file that is missing or altered."""
    header = read_header(source)
    for number, (sha256, name) in enumerate(_entries(source, header), 1):
        _verify_file(source / name, sha256)
        if number % 1000 == 0:
            tell(f"verified: {number}")
    return header


def _verify_file(path: Path, sha256: str) -> None:
    if not path.is_file() or _hashed(path) != sha256:
        raise errors.Invalid(f"{path} is missing or was altered; this backup cannot be restored whole.")


def restore(
    source: Path, data_dir: Path, url: str, *, blobs: Blobs | None = None, pause: bool = True, tell: Tell = _quiet
) -> Backup:
    """Makes database and content from a backup, verifying every file; `Conflict` unless both places are empty.

    With `pause` every lane is paused: what was sent after the backup would be sent again, and a person decides. The
    database keeps the backup's schema; an older one is then upgraded as ever. Content goes into `blobs`, by default
    the folder of `data_dir`, in the form they write now.
    """
    header = read_header(source)
    _suits(header, url)
    blobs = blobs or Blobs(data_dir / "blobs")
    with DataFolderLock(data_dir):
        _refuse_filled(url, blobs)
        blobs.prepare()
        try:
            _take_content(source, header, blobs, tell)
            note = (
                f"restored from the backup of {header.made_at}: see what was sent since, then resume" if pause else ""
            )
            copies.load(url, source / DATABASE, header.schema, header.tables, note=note, form=blobs.form, tell=tell)
        except BaseException:
            blobs.clear()
            raise
    return header


def _suits(header: Backup, url: str) -> None:
    engine = "postgresql" if schema.sqlite_path(url) is None else "sqlite"
    if engine != header.engine:
        raise errors.Invalid(f"The backup is of {header.engine}; PASSERELLE_DATABASE_URL names {engine}.")
    if not schema.known(header.schema):
        raise errors.Unavailable(f"The backup has schema {header.schema}, newer than this program: install the newer.")


def _refuse_filled(url: str, blobs: Blobs) -> None:
    if not copies.empty(url):
        raise errors.Conflict("The database is not empty; a restore makes a new one, it replaces nothing.")
    if any(blobs.names()):
        raise errors.Conflict(f"{blobs.at.told} is not empty; restore into a new one.")


def _take_content(source: Path, header: Backup, blobs: Blobs, tell: Tell) -> None:
    taken = 0
    for sha256, name in _entries(source, header):
        if name.startswith(DATABASE):
            _verify_file(source / name, sha256)
            continue
        arriving = blobs.new_folder() / sha256
        with suppress(FileNotFoundError):
            shutil.copyfile(source / name, arriving)
        if not arriving.exists() or blobs.adopt(arriving) != sha256:
            raise errors.Invalid(f"{source / name} is missing or was altered; nothing was restored.")
        taken += 1
        if taken % 1000 == 0:
            tell(f"content: {taken} of {header.content}")
