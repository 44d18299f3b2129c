"""What a place for content offers, and how the copies in it are named.

A copy's name is the sha256 of the content, and an ending: nothing when it is as it is, `.KEY.gcm1` when it is encrypted
with that key. A bucket puts a number drawn for this copy in between; a folder does where another key of the same id has
the name already.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fhir_server.store.blob_seal import FORM, plain_size

_NAME = re.compile(r"([0-9a-f]{64})(?:[./][0-9a-f]{16})?(\.([a-z0-9][a-z0-9-]{0,31})\.gcm1)?\Z")


@dataclass(frozen=True, slots=True)
class Copy:
    """One stored copy of content: `size` as stored, `put_at` in seconds since 1970 UTC, `key` '' when not encrypted;
    `place` is what the place calls it."""

    name: str
    sha256: str
    ending: str
    key: str
    size: int
    put_at: float
    place: str

    @property
    def content(self) -> int:
        """Bytes of the content."""
        return plain_size(self.size) if self.key else self.size


@dataclass(frozen=True, slots=True)
class Form:
    """How content is stored, as the record tells it: `plain`, or `gcm-chunks-1` with the key of that id."""

    name: str = "plain"
    key_id: str = ""


def form_of(key: str) -> Form:
    """The form of what is encrypted with a key, '' = not at all."""
    return Form(FORM, key) if key else Form()


@dataclass(frozen=True, slots=True)
class Kept:
    """Content that lies in its place before a transaction tells of it; `size` in bytes."""

    sha256: str
    size: int
    form: Form


Sound = Callable[[Copy], bool]
"""Whether a copy can be read."""


def ending_of(key: str) -> str:
    """How the name of what is encrypted with a key ends."""
    return f".{key}.gcm1" if key else ""


def copy_of(name: str, place: str, size: int, put_at: float) -> Copy | None:
    """A copy from its name; None for a name no copy has."""
    found = _NAME.match(name)
    return Copy(name, found[1], found[2] or "", found[3] or "", size, put_at, place) if found else None


class Place(Protocol):
    """A folder or a bucket. Everything raises `Unavailable` when the place does not answer."""

    @property
    def told(self) -> str:
        """What to call it in a message."""
        ...

    def claim(self, owner: str) -> str:
        """Whose place this is; `owner`'s when it was nobody's."""
        ...

    def copies(self, sha256: str) -> list[Copy]:
        """All copies of one content."""
        ...

    def walk(self) -> Iterator[list[Copy]]:
        """All copies there are, content by content."""
        ...

    def renew(self, sha256: str, ending: str, sound: Sound) -> bool:
        """Whether a sound copy with that ending is there and counts as put now, or lately."""
        ...

    def write(self, sha256: str, ending: str, pieces: Iterable[bytes]) -> None:
        """Makes a copy, whole or not at all; on return it is safe."""
        ...

    def take(self, sha256: str, path: Path) -> None:
        """Makes a plain copy of a file, which may be moved."""
        ...

    def raw(self, copy: Copy, start: int, length: int) -> Iterator[bytes]:
        """Stored bytes, fewer at the end; `NotFound` when the copy has gone."""
        ...

    def remove(self, copy: Copy, before: float) -> bool:
        """Removes a copy unless it was put at or after `before`; False also when it had gone."""
        ...
