"""Large content, addressed by its sha256, written once and never changed; in a folder or a bucket, plain or encrypted.

A copy appears under its name only when it is whole and safe, so a crash leaves at most garbage. Which blobs belong to
the record is said by the `blob` table, in the transaction that refers to them.

Between `put` and that transaction nothing refers to a blob, also when an older copy of the same bytes was found: a copy
says when it was last put, and `remove` spares what was put lately. Content is written in the form in force (see
`blob_seal`); older copies in other forms stay readable, and go when a newer copy is a day old.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fhir_server import errors
from fhir_server.config import Settings
from fhir_server.store.blob_folder import Folder
from fhir_server.store.blob_place import Copy, Form, Kept, Place, ending_of, form_of
from fhir_server.store.blob_seal import Damaged, Keys, MissingKey, read_keys, seal, unseal

CHUNK = 1 << 20
_SHA = re.compile(r"[0-9a-f]{64}\Z")
_NAMES = 500
_EVER = 1 << 62


def blobs_of(settings: Settings, data_dir: Path) -> Blobs:
    """The blobs the settings name. Nothing is asked of a bucket yet."""
    keys, root = read_keys(settings.blob_keys), data_dir / "blobs"
    if not settings.blob_url:
        return Blobs(root, keys=keys)
    from fhir_server.store.blob_bucket import connect  # its library is loaded only where it is used

    return Blobs(root, connect(settings), keys)


@dataclass(frozen=True, slots=True)
class Blobs:
    """`root` is the local folder: content arrives in `root`/new and, where `place` is None, stays in `root`."""

    root: Path
    place: Place | None = None
    keys: Keys = field(default_factory=Keys)

    @property
    def at(self) -> Place:
        return self.place or Folder(self.root)

    @property
    def form(self) -> Form:
        """In which form content is written now."""
        return form_of(self.keys.newest)

    def keep(self, data: bytes) -> Kept:
        """`put`, for a transaction that tells of the content afterwards."""
        return Kept(self.put(data), len(data), self.form)

    def kept(self, sha256: str) -> Kept:
        """What lies there. Raises NotFound, MissingKey."""
        copy = self._found(sha256)[0]
        return Kept(sha256, copy.content, form_of(copy.key))

    def claim(self, owner: str) -> str:
        """Whose content lies here, which is `owner`'s from now on where it was nobody's."""
        return self.at.claim(owner)

    def prepare(self) -> None:
        """Makes the folder for arrivals. What a crash left half-written there belongs to nothing and may be removed."""
        self.new_folder().mkdir(parents=True, exist_ok=True)

    def new_folder(self) -> Path:
        """Where a wire writes an arriving file before `adopt`: the file system of the folder, so that rename is
        atomic."""
        return self.root / "new"

    def put(self, data: bytes) -> str:
        """Stores the bytes and returns their sha256; on return they are safe."""
        sha256, ending = hashlib.sha256(data).hexdigest(), ending_of(self.keys.newest)
        try:
            if not self.at.renew(sha256, ending, partial(self._sound, size=len(data))):
                self.at.write(sha256, ending, self._written([data], sha256))
        except OSError as fault:
            raise errors.Unavailable(f"The blob folder cannot be written ({fault.strerror}).") from fault
        return sha256

    def adopt(self, path: Path, sha256: str = "") -> str:
        """Takes over a file of the same file system; `sha256` saves reading it when the writer hashed it already."""
        with path.open("rb") as file:
            name = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
        ending, size = ending_of(self.keys.newest), path.stat().st_size
        if self.at.renew(name, ending, partial(self._sound, size=size)):
            path.unlink()
        elif ending:
            self.at.write(name, ending, self._written(_pieces(path), name))
            path.unlink()
        else:
            self.at.take(name, path)
        return name

    def _written(self, pieces: Iterable[bytes], sha256: str) -> Iterator[bytes]:
        return seal(pieces, sha256, self.keys) if self.keys.newest else iter(pieces)

    def exists(self, sha256: str) -> bool:
        return bool(self._copies(sha256))

    def put_at(self, sha256: str) -> float | None:
        """When the blob was last put, in seconds since 1970 UTC; None when it is not there."""
        return max((copy.put_at for copy in self._copies(sha256)), default=None)

    def remove(self, sha256: str, before: float) -> bool:
        """Removes a blob that nothing refers to, unless it was put at or after `before` (seconds since 1970 UTC)."""
        gone = [self.at.remove(copy, before) for copy in self._copies(sha256)]
        return bool(gone) and all(gone)

    def names(self) -> Iterator[list[str]]:
        """The sha256 of every blob there is, some at a time."""
        found: list[str] = []
        for copies in self.at.walk():
            found.append(copies[0].sha256)
            if len(found) == _NAMES:
                yield found
                found = []
        if found:
            yield found

    def tidy(self, before: float) -> int:
        """Removes copies put before a time (seconds since 1970 UTC) of what has a newer copy that opens here, and is as
        long. What another key of an id of ours sealed stays: whoever has that key may not have ours."""
        count = 0
        for copies in self.at.walk():
            *others, newest = sorted(copies, key=lambda copy: copy.put_at)
            older = [copy for copy in others if copy.put_at < before and not self._foreign(copy)]
            if older and all(self._sound(newest, copy.content) for copy in older):
                count += sum(self.at.remove(copy, before) for copy in older)
        return count

    def clear(self) -> None:
        """Removes everything, for a restore that failed."""
        for copies in self.at.walk():
            for copy in copies:
                self.at.remove(copy, _EVER)
        shutil.rmtree(self.root, ignore_errors=True)

    def size(self, sha256: str) -> int:
        """Bytes of the content. Raises `Unavailable` when it is encrypted with a key that is not there."""
        return self._found(sha256)[0].content

    def read(self, sha256: str, *, max_bytes: int | None = None) -> bytes:
        """The whole blob; with `max_bytes`, `TooLarge` instead of filling the memory."""
        if max_bytes is not None and (size := self.size(sha256)) > max_bytes:
            raise errors.TooLarge(f"The content has {size} bytes; at most {max_bytes} are read here.")
        return b"".join(self.chunks(sha256))

    def range(self, sha256: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the end."""
        return b"".join(self.chunks(sha256, max(start, 0), max(length, 0)))

    def chunks(self, sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The content in pieces of some MiB at most; of encrypted content only what is needed is read and verified."""
        first, pieces = self._opened(sha256, start, _EVER if length is None else length)
        if first:
            yield first
        yield from pieces

    def _opened(self, sha256: str, start: int, length: int) -> tuple[bytes, Iterator[bytes]]:
        """The first piece and those that follow, of the newest copy that this process's keys open."""
        fault: errors.PasserelleError | None = None
        for _ in range(2):  # a clean-up may remove each copy that was listed, because there is a newer one
            try:
                for copy in self._found(sha256):
                    pieces = self._read(copy, start, length)
                    try:
                        return next(pieces, b""), pieces
                    except MissingKey as other:
                        fault = fault or other
            except errors.NotFound as gone:
                fault = fault or gone
        assert fault is not None
        raise fault

    def _sound(self, copy: Copy, size: int) -> bool:
        """Whether content of that size can be read from a copy. Of encrypted content the last chunk is opened, which
        proves the key and the length."""
        if copy.content != size:
            return False
        try:
            return len(b"".join(self._read(copy, max(size - 1, 0), 1))) == min(size, 1)
        except (errors.NotFound, Damaged, MissingKey, OSError):
            return False  # OSError: another user's file, or a bad sector

    def _foreign(self, copy: Copy) -> bool:
        """Whether a key that we do not have sealed a copy, though we have one of that id."""
        if copy.key not in self.keys.known:
            return False
        try:
            b"".join(self._read(copy, 0, 0))  # opens the header
        except MissingKey:
            return True
        except (errors.NotFound, Damaged, OSError):
            pass
        return False

    def _read(self, copy: Copy, start: int, length: int) -> Iterator[bytes]:
        if not copy.key:
            return self.at.raw(copy, start, min(length, max(0, copy.size - start)))
        raw = partial(self.at.raw, copy)
        return unseal(raw, copy.size, copy.sha256, self.keys, start, length)

    @contextmanager
    def file(self, sha256: str) -> Iterator[Path]:
        """The content as a file to be read, as long as the context lasts: the stored one, or a copy made for it."""
        copy = self._found(sha256)[0]
        if self.place is None and not copy.key:
            yield Path(copy.place)
            return
        with tempfile.NamedTemporaryFile(dir=self.new_folder(), prefix="read-") as made:
            for piece in self.chunks(sha256):
                made.write(piece)
            made.flush()
            yield Path(made.name)

    def _found(self, sha256: str) -> list[Copy]:
        """The copies whose key is there, at least one, the newest first."""
        copies = sorted(self._copies(sha256), key=lambda copy: copy.put_at, reverse=True)
        if not copies:
            raise errors.NotFound(f"The content {sha256} is not in {self.at.told}.")
        readable = [copy for copy in copies if not copy.key or copy.key in self.keys.known]
        if not readable:
            self.keys.of(copies[0].key)
        return readable

    def _copies(self, sha256: str) -> list[Copy]:
        if not _SHA.match(sha256):
            raise errors.Malformed("A blob's name is the 64 lower-case hexadecimal digits of its sha256.")
        return self.at.copies(sha256)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece
