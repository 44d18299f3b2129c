"""Content becomes a file past the page cache, whatever its size and wherever the file system does not take that."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fhir_server.store import blob_direct
from fhir_server.store.blob_direct import BLOCK, HELD, write_new

SIZES = (0, 1, BLOCK, HELD - 1, HELD, HELD + 1, HELD + BLOCK, 2 * HELD + BLOCK + 777)


def _pieces(content: bytes, length: int) -> Iterator[bytes]:
    return (content[start : start + length] for start in range(0, len(content), length))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [7_001, HELD, 1 << 30])
def test_a_file_holds_exactly_what_was_given_in_whatever_pieces(tmp_path: Path, size: int, length: int) -> None:
    content = os.urandom(size)
    write_new(tmp_path / "new", _pieces(content, length))
    assert (tmp_path / "new").read_bytes() == content


def test_large_content_goes_past_the_page_cache_in_whole_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the last part of a block, wherever the file system says that it can."""
    seen: list[tuple[int, bool]] = []
    whole = blob_direct._write

    def noted(handle: int, view: memoryview) -> None:
        seen.append((len(view), bool(fcntl.fcntl(handle, fcntl.F_GETFL) & blob_direct._DIRECT)))
        whole(handle, view)

    monkeypatch.setattr(blob_direct, "_write", noted)
    write_new(tmp_path / "new", [os.urandom(2 * HELD + BLOCK + 5)])
    able = _past_the_cache(tmp_path / "able")
    assert [one for one in seen if one[0]] == (
        [(HELD, True), (HELD, True), (BLOCK, True), (5, False)]
        if able
        else [(HELD, False), (HELD, False), (BLOCK + 5, False)]
    )


def _past_the_cache(path: Path) -> bool:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        return blob_direct._wanted(handle, blob_direct._DIRECT)
    finally:
        os.close(handle)


def test_what_the_device_does_not_take_past_the_cache_goes_through_it(tmp_path: Path) -> None:
    handle = os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT)
    try:
        blob_direct._wanted(handle, blob_direct._DIRECT)
        blob_direct._write(handle, memoryview(b"odd" * 1001))
    finally:
        os.close(handle)
    assert (tmp_path / "new").read_bytes() == b"odd" * 1001


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"first")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "new", [b"second"])
    assert (tmp_path / "new").read_bytes() == b"first"


def test_a_disk_that_is_full_is_told_as_such() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError) as told:
            blob_direct._fill(full, [bytes(2 * HELD)], memoryview(bytearray(HELD)))
    finally:
        os.close(full)
    assert told.value.errno == errno.ENOSPC
