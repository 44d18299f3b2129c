"""Bodies that come packed: whole, in several files, cut off, hostile; bounded in memory and in time."""

from __future__ import annotations

import gzip
import random
import time

import pytest

from fhir_server.errors import Malformed, TooLarge
from fhir_server.rest.edge import _MOST_FILES, _PIECE, MIB, unpacked

GZIP = {"content-encoding": "gzip"}
NOISE = random.Random(7).randbytes(3 * _PIECE)


@pytest.mark.parametrize("size", [0, 1, _PIECE - 30, _PIECE, 2 * _PIECE, 3 * _PIECE])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_what_was_packed_comes_out_whatever_lies_on_the_edge_of_a_piece(size: int, level: int) -> None:
    for count in (1, 2, 5):
        packed = gzip.compress(NOISE[:size], level, mtime=0) * count
        assert unpacked(GZIP, packed, MIB) == NOISE[:size] * count


def test_as_much_as_may_be_comes_out_and_one_byte_more_does_not() -> None:
    half = gzip.compress(bytes(MIB // 2))
    assert len(unpacked(GZIP, half * 2, MIB)) == MIB
    for more in (half * 2 + gzip.compress(b"x"), gzip.compress(bytes(MIB + 1)), half * 3):
        with pytest.raises(TooLarge, match="1 MiB"):
            unpacked(GZIP, more, MIB)


def test_a_body_cut_off_at_any_byte_or_followed_by_something_else_is_refused() -> None:
    whole = gzip.compress(b"{}" * 50, mtime=0)
    for length in range(1, len(whole)):
        with pytest.raises(Malformed, match="ends too early"):
            unpacked(GZIP, whole + whole[:length], MIB)
    with pytest.raises(Malformed, match="no gzip"):
        unpacked(GZIP, whole + b"something else", MIB)


def test_many_files_one_behind_the_other_take_no_more_time_than_so_many_may() -> None:
    empty = gzip.compress(b"", mtime=0)
    assert unpacked(GZIP, empty * (_MOST_FILES - 1) + gzip.compress(b"x"), MIB) == b"x"
    began = time.process_time()
    with pytest.raises(TooLarge, match="send it as one"):
        unpacked(GZIP, empty * (64 * MIB // len(empty)), 64 * MIB)
    assert time.process_time() - began < 5, "beginning three million files took minutes"
