"""Large content in a local folder, addressed by its sha256, written once and never changed.

A file appears under its name only when it is whole and on the disk, so a crash leaves at most a file in `new/`.
Which blobs belong to the record is said by the `blob` table, in the transaction that refers to them.

Between `put` and that transaction nothing refers to a blob, also when an older file with the same bytes was found: its
status-change time (ctime) says when it was last put, and `remove` spares what was put lately.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fhir_server import errors

CHUNK = 1 << 20
LOCK = "blobs.lock"
_SHA = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Blobs:
    """`root`/ab/cd/abcd...: two levels of folders named by the hash's first bytes, and `root`/new for arrivals."""

    root: Path

    def prepare(self) -> None:
        """Makes the folder for arrivals. What a crash left half-written there belongs to nothing and may be removed."""
        self.new_folder().mkdir(parents=True, exist_ok=True)

    def new_folder(self) -> Path:
        """Where a wire writes an arriving file before `adopt`: the same file system, so that rename is atomic."""
        return self.root / "new"

    def path(self, sha256: str) -> Path:
        """Where the blob is, whether it exists or not."""
        if not _SHA.match(sha256):
            raise errors.Malformed("A blob's name is the 64 lower-case hexadecimal digits of its sha256.")
        return self.root / sha256[:2] / sha256[2:4] / sha256

    def exists(self, sha256: str) -> bool:
        return self.path(sha256).exists()

    def put(self, data: bytes) -> str:
        """Stores the bytes and returns their sha256; on return they are on the disk."""
        sha256 = hashlib.sha256(data).hexdigest()
        arriving = self.new_folder() / f"{sha256}.{secrets.token_hex(8)}"
        try:
            if self._renewed(sha256):
                return sha256
            self.new_folder().mkdir(parents=True, exist_ok=True)
            with arriving.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._publish(arriving, sha256)
        except OSError as fault:
            with suppress(OSError):
                arriving.unlink()
            raise errors.Unavailable(f"The blob folder cannot be written ({fault.strerror}).") from fault
        return sha256

    def adopt(self, path: Path, sha256: str = "") -> str:
        """Takes over a file of the same file system; `sha256` saves reading it when the writer hashed it already."""
        with path.open("rb") as file:
            name = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if self._renewed(name):
            path.unlink()
        else:
            self._publish(path, name)
        return name

    def _renewed(self, sha256: str) -> bool:
        """Whether the blob is there; if so, it counts as put now."""
        path = self.path(sha256)
        if not path.exists():
            return False
        with self._locked(fcntl.LOCK_SH):
            try:
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            except (FileNotFoundError, PermissionError):
                return False  # removed meanwhile, or another user's: a new file takes its place
        return True

    def remove(self, sha256: str, before: float) -> bool:
        """Removes a blob that nothing refers to, unless it was put at or after `before` (seconds since 1970 UTC)."""
        path = self.path(sha256)
        with self._locked(fcntl.LOCK_EX):
            try:
                if path.stat().st_ctime >= before:
                    return False
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def put_at(self, sha256: str) -> float | None:
        """When the blob was last put, in seconds since 1970 UTC; None when it is not there."""
        try:
            return self.path(sha256).stat().st_ctime
        except FileNotFoundError:
            return None

    def names(self) -> Iterator[list[str]]:
        """The sha256 of every blob there is, folder by folder."""
        for outer in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            for inner in sorted(outer.glob("[0-9a-f][0-9a-f]")):
                yield sorted(path.name for path in inner.iterdir() if _SHA.match(path.name))

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        """Putting again (shared) and removing (alone) keep each other out, across processes."""
        handle = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(handle, mode)
            yield
        finally:
            os.close(handle)

    def _publish(self, arriving: Path, sha256: str) -> None:
        final = self.path(sha256)
        if not final.parent.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            _sync_folder(final.parent.parent)
            _sync_folder(self.root)
        arriving.chmod(0o440)
        arriving.rename(final)
        _sync_folder(final.parent)

    def size(self, sha256: str) -> int:
        return self._found(sha256).stat().st_size

    def read(self, sha256: str, *, max_bytes: int | None = None) -> bytes:
        """The whole blob; with `max_bytes`, `TooLarge` instead of filling the memory."""
        path = self._found(sha256)
        if max_bytes is not None and path.stat().st_size > max_bytes:
            raise errors.TooLarge(f"The content has {path.stat().st_size} bytes; at most {max_bytes} are read here.")
        return path.read_bytes()

    def range(self, sha256: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the end."""
        with self._found(sha256).open("rb") as file:
            return os.pread(file.fileno(), max(length, 0), max(start, 0))

    def chunks(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The content in pieces of at most 1 MiB."""
        with self._found(sha256).open("rb") as file:
            file.seek(start)
            left = length
            while left is None or left > 0:
                piece = file.read(CHUNK if left is None else min(CHUNK, left))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece

    def _found(self, sha256: str) -> Path:
        path = self.path(sha256)
        if not path.exists():
            raise errors.NotFound(f"The content {sha256} is not in the blob folder.")
        return path


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
