"""The data folder's lock: with SQLite one process serves a folder; others speak to it, or refuse.

The lock is `flock` on a file that also says who holds it, so a crash frees it at once and a stale text fools nobody.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from fhir_server import errors

NAME = "passerelle.lock"
_TRIES, _PAUSE_SECONDS = 5, 0.02


class DataFolderLock:
    """Held from construction to `close`; `Unavailable`, naming the holder, when another process serves the folder."""

    def __init__(self, data_dir: Path, *, http_url: str = "", token: str = "", certificate: str = "") -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._file = os.open(data_dir / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if not self._taken():
            os.close(self._file)
            who = _told(data_dir)
            where = f" at {who['http']}" if who.get("http") else ""
            raise errors.Unavailable(
                f"Process {who.get('pid', '?')} already serves {data_dir}{where}; use it, or stop it first."
            )
        self.describe(http_url, token, certificate)

    def _taken(self) -> bool:
        """Tries a few times: a `holder` that looks at this moment has the lock for an instant."""
        for _ in range(_TRIES):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_PAUSE_SECONDS)
            else:
                return True
        return False

    def describe(self, http_url: str, token: str = "", certificate: str = "") -> None:
        """Writes who holds the folder, where it answers, under which certificate (PEM), and the token of whoever may
        read this file."""
        told = {"pid": os.getpid(), "http": http_url, "token": token}
        text = json.dumps(told | ({"certificate": certificate} if certificate else {})).encode()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text, 0)

    def close(self) -> None:
        if self._file >= 0:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> DataFolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def holder(data_dir: Path) -> dict[str, Any] | None:
    """`{"pid": int, "http": str, "token": str}` of the process that serves the folder now; None when nobody does."""
    try:
        file = os.open(data_dir / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _told(data_dir)
    finally:
        os.close(file)
    return None


def _told(data_dir: Path) -> dict[str, Any]:
    try:
        told = json.loads((data_dir / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
