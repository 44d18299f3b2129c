"""The blob folder: addressed by content, whole or absent, never changed."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from fhir_server import errors
from fhir_server.store.blobs import Blobs


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    made = Blobs(tmp_path / "blobs")
    made.prepare()
    return made


def test_bytes_are_found_under_their_hash(blobs: Blobs) -> None:
    sha256 = blobs.put(b"clip")
    assert sha256 == hashlib.sha256(b"clip").hexdigest()
    assert blobs.at.path(sha256) == blobs.root / sha256[:2] / sha256[2:4] / sha256
    assert blobs.exists(sha256) and blobs.size(sha256) == 4 and blobs.read(sha256) == b"clip"
    assert blobs.put(b"") and blobs.read(hashlib.sha256(b"").hexdigest()) == b""


def test_the_same_bytes_again_touch_nothing(blobs: Blobs) -> None:
    sha256 = blobs.put(b"clip")
    before = blobs.at.path(sha256).stat()
    assert blobs.put(b"clip") == sha256
    after = blobs.at.path(sha256).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert list(blobs.new_folder().iterdir()) == []


def test_a_file_is_taken_over(blobs: Blobs) -> None:
    for known in ("", hashlib.sha256(b"file").hexdigest()):
        arriving = blobs.new_folder() / "arriving"
        arriving.write_bytes(b"file")
        sha256 = blobs.adopt(arriving, known)
        assert blobs.read(sha256) == b"file" and not arriving.exists()


def test_ranges_and_chunks(blobs: Blobs) -> None:
    data = bytes(range(256)) * 10_000
    sha256 = blobs.put(data)
    assert blobs.range(sha256, 300, 10) == data[300:310]
    assert blobs.range(sha256, len(data) - 3, 10) == data[-3:]
    assert blobs.range(sha256, len(data) + 3, 10) == b"" == blobs.range(sha256, 0, -1)
    assert b"".join(blobs.chunks(sha256)) == data
    assert b"".join(blobs.chunks(sha256, 5, 1_500_000)) == data[5:1_500_005]
    assert b"".join(blobs.chunks(sha256, len(data) - 2)) == data[-2:]


def test_what_is_not_there_and_what_is_too_large(blobs: Blobs) -> None:
    with pytest.raises(errors.NotFound):
        blobs.read("0" * 64)
    with pytest.raises(errors.TooLarge, match="5 bytes; at most 4"):
        blobs.read(blobs.put(b"12345"), max_bytes=4)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 65])
def test_a_name_that_is_no_hash_is_refused(blobs: Blobs, name: str) -> None:
    with pytest.raises(errors.Malformed):
        blobs.exists(name)


def test_threads_storing_the_same_bytes_all_succeed(blobs: Blobs) -> None:
    data, got = os.urandom(100_000), []
    threads = [threading.Thread(target=lambda: got.append(blobs.put(data))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert set(got) == {hashlib.sha256(data).hexdigest()} and len(got) == 8
    assert blobs.read(got[0]) == data and list(blobs.new_folder().iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file where the folder should be")
    with pytest.raises(errors.Unavailable, match="blob folder"):
        Blobs(tmp_path / "blobs").put(b"x")


def test_stored_files_are_read_only(blobs: Blobs) -> None:
    assert blobs.at.path(blobs.put(b"x")).stat().st_mode & 0o222 == 0
