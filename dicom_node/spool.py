"""An object on its way in: data set bytes go straight to a file while they are hashed and their header is kept.

Hides the Part 10 preamble and file meta information, which are ours, and what happens when the disk is full or the
object too large: the rest is counted, not kept. A file is named at random; nothing received ever enters a path.

Source: PS3.10 section 7.1. https://dicom.nema.org/medical/dicom/current/output/chtml/part10/chapter_7.html
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import time
import uuid
from pathlib import Path

from dicom_node import header
from dicom_node.contexts import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from dicom_node.elements import Truncated, Unreadable

HEAD = 65536
_SUFFIX = ".dcm"
_STALE_SECONDS = 3600.0


def file_meta(sop_class: str, sop_instance: str, transfer_syntax: str, calling: str, called: str) -> bytes:
    """Preamble and group 0002, Explicit VR Little Endian. AE titles are those of the association."""
    elements = b"\x02\0\x01\0OB\0\0\x02\0\0\0\0\x01" + b"".join(
        struct.pack("<HH2sH", 2, number, vr, len(value)) + value
        for number, vr, value in (
            (0x0002, b"UI", _even(sop_class, b"\0")),
            (0x0003, b"UI", _even(sop_instance, b"\0")),
            (0x0010, b"UI", _even(transfer_syntax, b"\0")),
            (0x0012, b"UI", _even(IMPLEMENTATION_UID, b"\0")),
            (0x0013, b"SH", _even(IMPLEMENTATION_VERSION, b" ")),
            (0x0016, b"AE", _even(calling, b" ")),
            (0x0018, b"AE", _even(called, b" ")),
        )
    )
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(elements)) + elements


def _even(text: str, padding: bytes) -> bytes:
    value = text.encode("latin_1", "replace")
    return value + padding * (len(value) % 2)


def sweep(folder: Path) -> int:
    """Remove what a killed process left behind: files nobody wrote to for an hour. Number of files removed."""
    removed = 0
    for path in folder.glob("*" + _SUFFIX):
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue
    return removed


class Spool:
    """One file being written. `size` and `sha256` are those of the data set alone, which starts at `offset`."""

    def __init__(self, folder: Path, meta: bytes, limit: int) -> None:
        """Raises OSError when the file cannot be made."""
        self.path = folder / (uuid.uuid4().hex + _SUFFIX)
        self.offset, self.size = len(meta), 0
        self.problem = ""
        self._limit, self._pending, self._head = limit, meta, bytearray()
        self._hash = hashlib.sha256()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, view: memoryview) -> None:
        """Add a fragment. Never raises OSError: a failure is kept in `problem` and the rest is dropped."""
        self.size += len(view)
        if self.problem:
            return
        if self.size > self._limit:
            self.problem = f"the object is larger than {self._limit} bytes"
            return
        self._hash.update(view)
        if len(self._head) < HEAD:
            self._head += view[: HEAD - len(self._head)]
        try:
            self._put(view)
        except OSError as fault:
            self.problem = f"the object cannot be written: {fault.strerror}"

    def finish(self, *, sync: bool) -> None:
        """Bring the bytes to the disk, as far as the kernel can promise."""
        try:
            if self._pending:
                self._put(memoryview(b""))
            if sync and not self.problem:
                os.fsync(self._fd)
        except OSError as fault:
            self.problem = f"the object cannot be written: {fault.strerror}"

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def header(self, transfer_syntax: str) -> header.Header:
        """Read the header from memory, or from the file when it is longer than that. Raises Unreadable."""
        try:
            return header.read(bytes(self._head), transfer_syntax)
        except Truncated:
            if self.size <= len(self._head):
                raise
        try:
            with mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) as whole:
                return header.read(whole, transfer_syntax, self.offset)
        except OSError as fault:
            raise Unreadable(str(fault)) from fault

    def close(self) -> None:
        """Release the file; what was not moved away is deleted."""
        os.close(self._fd)
        self.path.unlink(missing_ok=True)

    def _put(self, view: memoryview) -> None:
        if self._pending:
            written = os.writev(self._fd, (self._pending, view)) - len(self._pending)
            if written < 0:
                raise OSError(28, "no space left")
            self._pending = b""
            view = view[written:]
        while len(view):
            view = view[os.write(self._fd, view) :]
