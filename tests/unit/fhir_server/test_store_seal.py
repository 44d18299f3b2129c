"""Encrypted content: every chunk is its own, and what was altered, moved, cut off or swapped is refused."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir_server import errors
from fhir_server.store import blob_seal
from fhir_server.store.blob_seal import CHUNK, HEADER, TAG, Damaged, Keys, MissingKey, plain_size, read_keys, unseal
from fhir_server.store.blobs import Blobs

KEYS = Keys({"k1": b"1" * 32, "k2": b"2" * 32}, "k2")
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 17)
STEP = CHUNK + TAG


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sealed(data: bytes, keys: Keys = KEYS) -> bytes:
    return b"".join(blob_seal.seal([data], sha(data), keys))


def opened(stored: bytes, name: str, keys: Keys = KEYS, start: int = 0, length: int = 1 << 40) -> bytes:
    def raw(begin: int, count: int) -> Iterable[bytes]:
        yield stored[begin : begin + count]

    return b"".join(unseal(raw, len(stored), name, keys, start, length))


@pytest.mark.parametrize("size", SIZES)
def test_content_comes_back_and_is_not_in_what_is_stored(size: int) -> None:
    data = os.urandom(size)
    stored = sealed(data)
    assert opened(stored, sha(data)) == data and plain_size(len(stored)) == size
    assert len(stored) == HEADER + size + TAG * max(1, -(-size // CHUNK))
    assert size < 32 or data[:32] not in stored
    assert sealed(data) != stored, "the same content twice has nothing in common"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3 * CHUNK + 20), st.integers(0, 3 * CHUNK + 20))
def test_a_range_is_that_of_the_content(start: int, length: int) -> None:
    assert opened(_STORED, sha(_DATA), start=start, length=length) == _DATA[start : start + length]


_DATA = os.urandom(3 * CHUNK + 17)
_STORED = sealed(_DATA)


def test_a_range_reads_only_the_chunks_that_hold_it() -> None:
    asked: list[tuple[int, int]] = []

    def raw(begin: int, count: int) -> Iterable[bytes]:
        asked.append((begin, count))
        yield _STORED[begin : begin + count]

    found = b"".join(unseal(raw, len(_STORED), sha(_DATA), KEYS, CHUNK + 5, 10))
    assert found == _DATA[CHUNK + 5 : CHUNK + 15]
    assert asked == [(0, HEADER), (HEADER + STEP, STEP)]


@pytest.mark.parametrize("at", [0, 15, 20, 50, 85, HEADER, HEADER + CHUNK, HEADER + STEP - 1, HEADER + STEP, -1])
def test_one_changed_bit_anywhere_is_noticed(at: int) -> None:
    altered = bytearray(_STORED)
    altered[at] ^= 1
    with pytest.raises((Damaged, MissingKey)):
        opened(bytes(altered), sha(_DATA))


@pytest.mark.parametrize("left", [0, HEADER - 1, HEADER, HEADER + TAG, HEADER + STEP, HEADER + 3 * STEP, -1])
def test_content_that_was_cut_off_is_noticed(left: int) -> None:
    with pytest.raises(Damaged):
        opened(_STORED[:left], sha(_DATA))


def test_chunks_that_changed_places_are_noticed() -> None:
    one, two = (_STORED[HEADER + n * STEP : HEADER + (n + 1) * STEP] for n in (0, 1))
    with pytest.raises(Damaged, match="chunk 0"):
        opened(_STORED[:HEADER] + two + one + _STORED[HEADER + 2 * STEP :], sha(_DATA))


def test_a_chunk_left_out_or_put_in_is_noticed() -> None:
    middle = _STORED[HEADER + STEP : HEADER + 2 * STEP]
    for spoilt in (_STORED.replace(middle, b""), _STORED.replace(middle, middle * 2), _STORED + middle):
        with pytest.raises(Damaged):
            opened(spoilt, sha(_DATA))


def test_content_under_the_name_of_another_is_noticed() -> None:
    with pytest.raises(Damaged):
        opened(sealed(b"one"), sha(b"two"))


def test_a_chunk_of_another_copy_of_the_same_content_is_noticed() -> None:
    other = sealed(_DATA)
    mixed = _STORED[: HEADER + STEP] + other[HEADER + STEP : HEADER + 2 * STEP] + _STORED[HEADER + 2 * STEP :]
    with pytest.raises(Damaged, match="chunk 1"):
        opened(mixed, sha(_DATA))


def test_content_can_not_be_said_to_be_of_another_key() -> None:
    renamed = _STORED.replace(b"k2", b"k1", 1)
    with pytest.raises(Damaged):
        opened(renamed, sha(_DATA))


def test_a_wrong_key_and_a_missing_key_are_told_apart() -> None:
    with pytest.raises(Damaged):
        opened(_STORED, sha(_DATA), Keys({"k2": b"x" * 32}, "k2"))
    with pytest.raises(MissingKey, match="the key k2, which blob_keys does not have"):
        opened(_STORED, sha(_DATA), Keys({"k1": b"1" * 32}, "k1"))


def written(*lines: tuple[str, bytes]) -> str:
    return "\n".join(f"{name} {base64.b64encode(key).decode()}" for name, key in lines)


def test_keys_are_read_the_newest_last() -> None:
    keys = read_keys("# since 2026\n" + written(("a", b"a" * 32), ("b-2", b"b" * 32)) + "\n\n")
    assert keys.newest == "b-2" and keys.of("a") == b"a" * 32
    assert read_keys("") == Keys() == read_keys("# none\n")
    assert "aaaa" not in repr(keys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "line 1"),
        ("a !!!!", "line 1"),
        (written(("a", b"short")), "line 1"),
        (written(("UPPER", b"a" * 32)), "line 1"),
        (written(("../x", b"a" * 32)), "line 1"),
        (written(("a", b"a" * 32), ("a", b"b" * 32)), "line 2: the id a is there twice"),
    ],
)
def test_keys_that_are_none_are_refused_without_being_shown(text: str, said: str) -> None:
    with pytest.raises(errors.Invalid, match=said) as refusal:
        read_keys(text)
    assert "!!!!" not in str(refusal.value) and "YWFh" not in str(refusal.value)


# --- in the folder ---------------------------------------------------------------------------------------------------


def blobs(root: Path, keys: Keys = KEYS) -> Blobs:
    made = Blobs(root, keys=keys)
    made.prepare()
    return made


def test_a_folder_keeps_what_is_put_and_adopted_encrypted(tmp_path: Path) -> None:
    store = blobs(tmp_path)
    (store.new_folder() / "file").write_bytes(_DATA)
    assert store.adopt(store.new_folder() / "file") == sha(_DATA) and store.put(b"small") == sha(b"small")
    files = [path for path in tmp_path.rglob("*.k2.gcm1") if path.is_file()]
    assert len(files) == 2 and not any(b"small" in path.read_bytes() for path in files)
    assert list(store.new_folder().iterdir()) == []
    assert store.read(sha(_DATA)) == _DATA and store.size(sha(_DATA)) == len(_DATA)
    assert store.range(sha(_DATA), CHUNK - 2, 4) == _DATA[CHUNK - 2 : CHUNK + 2]
    with store.file(sha(b"small")) as path:
        assert path.read_bytes() == b"small"
    assert not path.exists() and list(store.new_folder().iterdir()) == []


def test_new_content_gets_the_newest_key_and_old_content_stays_readable(tmp_path: Path) -> None:
    plain, first, both = (Keys(), Keys({"k1": KEYS.of("k1")}, "k1"), KEYS)
    assert (
        blobs(tmp_path, plain).put(b"as it is") and blobs(tmp_path, first).put(b"old") and blobs(tmp_path).put(b"new")
    )
    assert [blobs(tmp_path, both).read(sha(data)) for data in (b"as it is", b"old", b"new")] == [
        b"as it is",
        b"old",
        b"new",
    ]
    with pytest.raises(MissingKey, match="k2"):
        blobs(tmp_path, first).read(sha(b"new"))
    with pytest.raises(MissingKey, match="k1"):
        blobs(tmp_path, Keys({"k2": KEYS.of("k2")}, "k2")).size(sha(b"old"))


def test_content_put_again_in_another_form_supersedes_the_older_copy(tmp_path: Path) -> None:
    name = blobs(tmp_path, Keys()).put(b"twice")
    store = blobs(tmp_path)
    assert store.put(b"twice") == name and len(store.at.copies(name)) == 2
    first = min(copy.put_at for copy in store.at.copies(name))
    assert store.tidy(first) == 0 and len(store.at.copies(name)) == 2, "too young to go"
    assert blobs(tmp_path, Keys()).tidy(1e12) == 0, "who cannot read the newer copy leaves the older one"
    assert store.tidy(1e12) == 1
    (left,) = store.at.copies(name)
    assert left.key == "k2" and store.read(name) == b"twice" and list(store.names()) == [[name]]
    assert store.remove(name, 1e12) and not store.exists(name)


def test_damage_in_the_folder_is_told(tmp_path: Path) -> None:
    store = blobs(tmp_path)
    name = store.put(_DATA)
    path = Path(store.at.copies(name)[0].place)
    path.chmod(0o600)
    whole = path.read_bytes()
    path.write_bytes(whole[: HEADER + STEP + 9] + bytes([whole[HEADER + STEP + 9] ^ 4]) + whole[HEADER + STEP + 10 :])
    assert store.range(name, 0, CHUNK) == _DATA[:CHUNK], "the chunks beside it are good"
    with pytest.raises(Damaged, match="chunk 1"):
        store.read(name)
    path.write_bytes(whole[:-1])
    with pytest.raises(Damaged):
        store.read(name)
