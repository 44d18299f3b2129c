"""A new file on the disk, its large content past the page cache.

Hides when that is possible. A file that is written once and read seldom has no use for the cache: filling fresh pages
costs the processor several times what the disk takes for them, and pushes out what is read often. What the file system
or the device does not take so is written the ordinary way.

Source: https://man7.org/linux/man-pages/man2/open.2.html (O_DIRECT: memory, offset and length in whole blocks).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

BLOCK: Final = 4096
"""No disk asks for more; memory of `mmap` begins at a multiple of it."""
HELD: Final = 1 << 20
"""Bytes written at once; what is not longer goes through the cache."""
_DIRECT: Final = getattr(os, "O_DIRECT", 0)  # not everywhere


def write_new(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a file that was not there; on return its content is on the disk. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _fill(handle, pieces, memoryview(mmap.mmap(-1, HELD)))
        os.fsync(handle)
    finally:
        os.close(handle)


def _fill(handle: int, pieces: Iterable[bytes], held: memoryview) -> None:
    used, direct = 0, None
    for piece in pieces:
        done = 0
        while taken := min(len(piece) - done, HELD - used):
            held[used : used + taken] = memoryview(piece)[done : done + taken]
            used, done = used + taken, done + taken
            if used == HELD:
                direct = _wanted(handle, _DIRECT) if direct is None else direct
                _write(handle, held)
                used = 0
    whole = used - used % BLOCK if direct else 0
    _write(handle, held[:whole])
    if direct:
        _wanted(handle, 0)
    _write(handle, held[whole:used])


def _wanted(handle: int, direct: int) -> bool:
    """Whether what is written from now on goes past the cache, as far as the file system says."""
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, direct)
    except OSError:
        return False
    return bool(direct)


def _write(handle: int, view: memoryview) -> None:
    """All of it. After a part of a block, or on a device of other blocks, the rest goes through the cache."""
    while view:
        try:
            view = view[os.write(handle, view) :]
        except OSError as fault:
            if fault.errno != errno.EINVAL or not fcntl.fcntl(handle, fcntl.F_GETFL) & _DIRECT:
                raise
            _wanted(handle, 0)
