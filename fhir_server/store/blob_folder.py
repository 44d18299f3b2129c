"""Content as files of a local folder: whole or absent, on the disk before it has its name.

`root`/ab/cd/abcd...: two levels of folders named by the hash's first bytes; content that is encrypted has an ending
(see `blobs`), and a number before it when its name was taken by what another key of the same id sealed. A file's
status-change time (ctime) says when it was last put, also when it was there before.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fhir_server import errors
from fhir_server.store.blob_direct import write_new
from fhir_server.store.blob_place import Copy, Sound, copy_of
from fhir_server.store.blob_seal import NAMED

log = logging.getLogger("passerelle.store")
PIECE = 1 << 20
LOCK = "blobs.lock"


@dataclass(frozen=True, slots=True)
class Folder:
    """`root`, with `new` in it for what is being written. What is put again keeps its copy."""

    root: Path

    @property
    def told(self) -> str:
        return str(self.root)

    def claim(self, owner: str) -> str:
        """A data folder is of one installation, as its database is."""
        return owner

    def path(self, sha256: str, ending: str = "") -> Path:
        return self.root / sha256[:2] / sha256[2:4] / (sha256 + ending)

    def copies(self, sha256: str) -> list[Copy]:
        plain = self.path(sha256)
        try:
            names = [entry.name for entry in os.scandir(plain.parent) if entry.name.startswith(sha256)]
        except FileNotFoundError:
            return []
        return list(self._seen(plain.parent, names))

    def _seen(self, folder: Path, names: Iterable[str]) -> Iterator[Copy]:
        for name in names:
            with suppress(FileNotFoundError):
                stat = (folder / name).stat()
                if copy := copy_of(name, str(folder / name), stat.st_size, stat.st_ctime):
                    yield copy

    def walk(self) -> Iterator[list[Copy]]:
        for outer in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            for inner in sorted(outer.glob("[0-9a-f][0-9a-f]")):
                found = sorted(self._seen(inner, (path.name for path in inner.iterdir())), key=lambda copy: copy.name)
                for _, copies in groupby(found, key=lambda copy: copy.sha256):
                    yield list(copies)

    def renew(self, sha256: str, ending: str, sound: Sound) -> bool:
        there = (copy for copy in self.copies(sha256) if copy.ending == ending and sound(copy))
        copy = next(there, None)
        if copy is None:
            return False
        path = Path(copy.place)
        with self._locked(fcntl.LOCK_SH):
            try:
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            except (FileNotFoundError, PermissionError):
                return False  # removed meanwhile, or another user's: a new file takes its place
        return True

    def write(self, sha256: str, ending: str, pieces: Iterable[bytes]) -> None:
        arriving = self.root / "new" / f"{sha256}.{secrets.token_hex(8)}"
        try:
            arriving.parent.mkdir(parents=True, exist_ok=True)
            write_new(arriving, pieces)
            self._publish(arriving, sha256, ending)
        except OSError as fault:
            with suppress(OSError):
                arriving.unlink()
            raise errors.Unavailable(f"The blob folder cannot be written ({fault.strerror}).") from fault

    def take(self, sha256: str, path: Path) -> None:
        """The file itself gets the content's name."""
        with path.open("rb") as file:
            os.fsync(file.fileno())
        self._publish(path, sha256, "")

    def _publish(self, arriving: Path, sha256: str, ending: str) -> None:
        final = self.path(sha256, ending)
        if not final.parent.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            _sync_folder(final.parent.parent)
            _sync_folder(self.root)
        arriving.chmod(0o440)
        if ending:
            self._publish_sealed(arriving, final, ending)
        else:
            arriving.rename(final)
        _sync_folder(final.parent)

    def _publish_sealed(self, arriving: Path, final: Path, ending: str) -> None:
        """Alone, since another process may bring the same content at the same moment, sealed with another key."""
        with self._locked(fcntl.LOCK_EX):
            if _of_other_keys(arriving, final):
                log.warning("another key has the same id as ours and sealed %s too: give it its own id", final)
                final = final.with_name(arriving.name + ending)
            arriving.rename(final)

    def raw(self, copy: Copy, start: int, length: int) -> Iterator[bytes]:
        try:
            file = Path(copy.place).open("rb")  # noqa: SIM115
        except FileNotFoundError:
            raise errors.NotFound(f"The content {copy.sha256} is not in the blob folder.") from None
        with file:
            file.seek(start)
            while length > 0 and (piece := file.read(min(PIECE, length))):
                length -= len(piece)
                yield piece

    def remove(self, copy: Copy, before: float) -> bool:
        path = Path(copy.place)
        with self._locked(fcntl.LOCK_EX):
            try:
                if path.stat().st_ctime >= before:
                    return False
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        """Putting again (shared) and removing (alone) keep each other out, across processes."""
        handle = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(handle, mode)
            yield
        finally:
            os.close(handle)


def _of_other_keys(arriving: Path, there: Path) -> bool:
    """Whether what is there may open with another key than what arrives; what cannot be read opens with none."""
    try:
        with arriving.open("rb") as new, there.open("rb") as old:
            named = old.read(NAMED)
            return len(named) == NAMED and named != new.read(NAMED)
    except OSError:
        return False


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
