"""Mailboxes on disk for the sandbox operator: one folder an address, one file a message, durable before it is told.

A message's file name carries its UID and flags (`0000000012,S`), so a flag change is one rename. UIDs never come back,
even after an expunge and a restart (RFC 3501 2.3.1.1): the highest one given is kept in `last` before a file goes.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_ADDRESS = re.compile(r"[a-z0-9_+][a-z0-9._+-]{0,63}@[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){1,8}")
_FILE = re.compile(r"(\d{10}),([A-Z]*)")
FLAGS = {"\\Seen": "S", "\\Answered": "A", "\\Flagged": "F", "\\Draft": "D", "\\Deleted": "T"}


@dataclass(frozen=True, slots=True)
class Message:
    """One stored message: its UID, its flags in IMAP spelling, its size in bytes, its file."""

    uid: int
    flags: frozenset[str]
    size: int
    path: Path


def lock(root: Path) -> IO[bytes]:
    """Hold a data folder for one process; keep the handle. Raises BlockingIOError when another one holds it."""
    root.mkdir(parents=True, exist_ok=True)
    handle = (root / "lock").open("wb")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise
    return handle


def is_address(text: str) -> bool:
    """Whether a text is an address this operator could hold; it also makes a safe folder name."""
    return bool(_ADDRESS.fullmatch(text.lower()))


class Box:
    """The mailbox of one address. Not shared between processes: the folder is locked by `lock`."""

    def __init__(self, root: Path, address: str) -> None:
        if not is_address(address):
            raise ValueError(f"not an address of this operator: {address[:80]!r}")
        self.address = address.lower()
        self._folder = root / "boxes" / self.address
        self._messages = self._folder / "messages"
        self._new = self._folder / "new"
        for folder in (self._messages, self._new):
            folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / "validity").exists():
            self._write(self._folder / "validity", str(int(time.time())).encode())
        self.uid_validity = int((self._folder / "validity").read_text())

    def deliver(self, content: bytes) -> int:
        """Store a message for good (file and folder flushed to disk) and return its UID."""
        uid = self._highest() + 1
        self._write(self._messages / f"{uid:010d},", content)
        return uid

    def messages(self) -> list[Message]:
        """What the mailbox holds, by UID."""
        found = []
        for path in sorted(self._messages.iterdir()):
            named = _FILE.fullmatch(path.name)
            if named:
                flags = frozenset(flag for flag, letter in FLAGS.items() if letter in named.group(2))
                found.append(Message(int(named.group(1)), flags, path.stat().st_size, path))
        return found

    def next_uid(self) -> int:
        """The UID the next message will have."""
        return self._highest() + 1

    def set_flags(self, message: Message, flags: Iterable[str]) -> Message:
        """Replace a message's flags; unknown flags are left out."""
        kept = frozenset(flags) & FLAGS.keys()
        path = self._messages / f"{message.uid:010d},{''.join(sorted(FLAGS[flag] for flag in kept))}"
        if path != message.path:
            message.path.rename(path)
            _flush(self._messages)
        return Message(message.uid, kept, message.size, path)

    def expunge(self) -> list[int]:
        """Remove the messages marked as deleted; their UIDs, oldest first."""
        gone = [message for message in self.messages() if "\\Deleted" in message.flags]
        if gone:
            self._write(self._folder / "last", str(self._highest()).encode())
        for message in gone:
            message.path.unlink()
        return [message.uid for message in gone]

    def _highest(self) -> int:
        kept = self._folder / "last"
        last = int(kept.read_text()) if kept.exists() else 0
        held = (int(found.group(1)) for path in self._messages.iterdir() if (found := _FILE.fullmatch(path.name)))
        return max(last, *held, 0) if last else max(held, default=0)

    def _write(self, path: Path, content: bytes) -> None:
        draft = self._new / path.name
        with draft.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        draft.rename(path)
        _flush(path.parent)


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
