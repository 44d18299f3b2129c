"""The data folder's lock: one serving process, told by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fhir_server import errors
from fhir_server.store.folder import NAME, DataFolderLock, holder

HOLD = "import sys, pathlib; from fhir_server.store.folder import DataFolderLock as L; l = L(pathlib.Path(sys.argv[1]), http_url='http://127.0.0.1:8080'); print('held', flush=True); sys.stdin.read()"  # noqa: E501 - one program, one row


def test_a_folder_is_held_once_and_free_again(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with DataFolderLock(tmp_path / "data") as lock:
        lock.describe("http://127.0.0.1:9")
        assert holder(tmp_path / "data") == {"pid": os.getpid(), "http": "http://127.0.0.1:9", "token": ""}
        with pytest.raises(errors.Unavailable, match=f"Process {os.getpid()} already serves .* at http://127.0.0.1:9"):
            DataFolderLock(tmp_path / "data")
    assert holder(tmp_path / "data") is None
    DataFolderLock(tmp_path / "data").close()


def test_a_killed_process_leaves_the_folder_free(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"held\n"
    assert holder(tmp_path) == {"pid": process.pid, "http": "http://127.0.0.1:8080", "token": ""}
    with pytest.raises(errors.Unavailable, match=str(process.pid)):
        DataFolderLock(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdin.close()
    process.stdout.close()
    assert holder(tmp_path) is None
    DataFolderLock(tmp_path).close()


def test_a_lock_file_that_makes_no_sense_is_survived(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"\xff not json")
    assert holder(tmp_path) is None
    with DataFolderLock(tmp_path):
        (tmp_path / NAME).write_bytes(b"[]")
        assert holder(tmp_path) == {}
        with pytest.raises(errors.Unavailable, match=r"Process \?"):
            DataFolderLock(tmp_path)
