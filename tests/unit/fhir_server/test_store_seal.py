"""Encrypted content: every chunk is its own, and what was altered, moved, cut off or swapped is refused."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stocked import unreadable

from fhir_server import errors
from fhir_server.store import blob_folder, blob_seal
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
    with pytest.raises(MissingKey, match="another key than the one blob_keys has under the id k1"):
        opened(renamed, sha(_DATA), Keys({"k1": KEYS.of("k1")}, "k1"))
    for fingerprint in (bytes(4), renamed[12:16], blob_seal._fingerprint(KEYS.of("k1"))):
        with pytest.raises(Damaged):
            opened(renamed[:12] + fingerprint + renamed[16:], sha(_DATA))


def test_another_key_of_the_same_id_and_a_missing_key_are_told_apart() -> None:
    with pytest.raises(MissingKey, match=r"another key than .* the id k2: put that key back"):
        opened(_STORED, sha(_DATA), Keys({"k2": b"x" * 32}, "k2"))
    with pytest.raises(MissingKey, match="the key k2, which blob_keys does not have"):
        opened(_STORED, sha(_DATA), Keys({"k1": b"1" * 32}, "k1"))


_BEFORE = (
    b"gcm-chunks-1".ljust(16, b"\0")
    + b"k2".ljust(32, b"\0")
    + bytes.fromhex(
        "043d3d7e2fe3dc8e074c59e7be3658f50dfe4749f361ccd2dc78460380eab00ecb7d89a04a8e695e10c9e954e62bee4d06ec"
        "241e2d04784950480da122f0fd56a8f1ab6d5e333d68d554e2e1034fc71a4cdf9907eaea65b244fe07"
    )
)
"""What was written with the key k2 of `KEYS` when a header had zeros where the fingerprint stands now."""


def test_content_of_before_there_were_fingerprints_is_read() -> None:
    stored, data = _BEFORE, b"sealed before keys had a fingerprint"
    assert stored[12:16] == bytes(4) != sealed(data)[12:16]
    assert opened(stored, sha(data)) == data
    with pytest.raises(Damaged):
        opened(stored, sha(data), Keys({"k2": b"x" * 32}, "k2"))


def test_a_fingerprint_is_never_the_zeros_that_stand_for_none_and_not_the_key_itself() -> None:
    assert blob_seal._fingerprint(KEYS.of("k2")) == sealed(b"")[12:16] == sealed(b"other")[12:16]
    assert blob_seal._fingerprint(KEYS.of("k1")) not in (bytes(4), sealed(b"")[12:16], KEYS.of("k1")[:4])


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


CHANGED = Keys({"k1": KEYS.of("k1"), "k2": b"x" * 32}, "k2")
"""Somebody put another key under an id that is in use."""
MENDED = Keys({**KEYS.known, "k3": b"x" * 32}, "k3")
"""What operating.md then tells to do: the first key back under its id, the newer one under its own."""


def test_what_either_key_of_one_id_sealed_is_read_when_each_has_an_id_of_its_own(tmp_path: Path) -> None:
    before, meanwhile = blobs(tmp_path).put(b"before"), blobs(tmp_path, CHANGED).put(b"meanwhile")
    after = blobs(tmp_path, MENDED)
    assert after.read(before) == b"before" and after.read(meanwhile) == b"meanwhile"
    assert opened(_STORED, sha(_DATA), Keys({**CHANGED.known, "k3": KEYS.of("k2")}, "k3")) == _DATA, "or exchanged"


def test_what_another_key_of_the_same_id_sealed_is_no_copy_when_it_comes_again(tmp_path: Path) -> None:
    name = blobs(tmp_path).put(b"twice")
    changed = blobs(tmp_path, CHANGED)
    with pytest.raises(MissingKey, match="the id k2"):
        changed.read(name)
    for _ in range(2):  # the second time it has a copy, and keeps it
        assert changed.put(b"twice") == name and changed.read(name) == b"twice"
    assert len(changed.at.copies(name)) == 2
    (changed.new_folder() / "file").write_bytes(_DATA)
    blobs(tmp_path).put(_DATA)
    assert changed.adopt(changed.new_folder() / "file") == sha(_DATA) and changed.read(sha(_DATA)) == _DATA
    assert list(changed.new_folder().iterdir()) == []


def test_another_key_of_the_same_id_never_takes_away_what_the_first_one_sealed(tmp_path: Path) -> None:
    name = blobs(tmp_path).put(b"twice")
    changed, mended = blobs(tmp_path, CHANGED), blobs(tmp_path, MENDED)
    changed.put(b"twice")
    assert blobs(tmp_path).read(name) == b"twice", "`put` leaves it"
    assert changed.tidy(1e12) == 0 and blobs(tmp_path).read(name) == b"twice", "so does the clean-up"
    assert mended.tidy(1e12) == 1 and mended.read(name) == b"twice", "who has both keys needs one copy"
    assert list(mended.names()) == [[name]] and mended.remove(name, 1e12) and not mended.exists(name)


def test_two_keys_of_one_id_that_seal_the_same_content_at_once_keep_a_copy_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    look, both = blob_folder._of_other_keys, threading.Barrier(2)

    def slowly(arriving: Path, there: Path) -> bool:
        found = look(arriving, there)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # where both may look before either writes, they do
        return found

    monkeypatch.setattr(blob_folder, "_of_other_keys", slowly)
    ours, theirs = blobs(tmp_path), blobs(tmp_path, CHANGED)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(ours.put, b"at once"), pool.submit(theirs.put, b"at once")
    name = first.result()
    assert second.result() == name and len(ours.at.copies(name)) == 2
    assert ours.read(name) == theirs.read(name) == b"at once"
    assert "another key has the same id" in caplog.text and "give it its own id" in caplog.text


@pytest.mark.parametrize("keys", [Keys(), KEYS], ids=["plain", "encrypted"])
@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO], ids=["another user's", "a bad sector"])
def test_a_copy_that_cannot_be_read_is_no_copy(
    tmp_path: Path, keys: Keys, reason: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = blobs(tmp_path, keys)
    names = [store.put(data) for data in (b"put", b"adopted", b"tidied")]
    unreadable(monkeypatch, reason, *(Path(store.at.copies(name)[0].place) for name in names))
    assert store.put(b"put") == names[0] and store.read(names[0]) == b"put"
    (store.new_folder() / "file").write_bytes(b"adopted")
    assert store.adopt(store.new_folder() / "file") == names[1] and store.read(names[1]) == b"adopted"
    assert all(len(store.at.copies(name)) == 1 for name in names) and list(store.new_folder().iterdir()) == []
    other = blobs(tmp_path, Keys({**KEYS.known, "k3": b"3" * 32}, "k3"))
    assert other.put(b"tidied") == names[2] and other.tidy(1e12) == 1, "an older copy that cannot be read goes"


@pytest.mark.parametrize("keys", [Keys(), KEYS], ids=["plain", "encrypted"])
def test_the_older_copy_stays_when_the_newer_cannot_be_read(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = blobs(tmp_path, Keys({"k1": KEYS.of("k1")}, "k1")).put(b"twice")
    store = blobs(tmp_path, keys)
    store.put(b"twice")
    unreadable(monkeypatch, errno.EIO, *(Path(one.place) for one in store.at.copies(name) if one.key != "k1"))
    assert blobs(tmp_path).tidy(1e12) == 0 and len(store.at.copies(name)) == 2


@pytest.mark.parametrize("data", [b"", b"short", _DATA], ids=["empty", "short", "long"])
@pytest.mark.parametrize("keys", [Keys(), KEYS], ids=["plain", "encrypted"])
def test_a_spoilt_copy_is_no_copy_when_its_content_comes_again(tmp_path: Path, keys: Keys, data: bytes) -> None:
    store = blobs(tmp_path, keys)
    name = store.put(data)
    (copy,) = store.at.copies(name)
    written = Path(copy.place).stat().st_ino
    assert store.put(data) == name and Path(copy.place).stat().st_ino == written, "a whole one is"
    Path(copy.place).chmod(0o600)
    Path(copy.place).write_bytes(Path(copy.place).read_bytes()[:-1] if copy.size else b"x")
    assert store.put(data) == name and store.read(name) == data


def test_the_older_copy_stays_when_the_newer_does_not_open(tmp_path: Path) -> None:
    for number, keys in enumerate((CHANGED, Keys({"k2": KEYS.of("k2")}, "k2"))):
        root = tmp_path / str(number)
        name = blobs(root, Keys({"k1": KEYS.of("k1")}, "k1")).put(b"twice")
        assert blobs(root, keys).put(b"twice") == name
        store = blobs(root)  # has k1, and the first k2
        assert store.tidy(1e12) == number and store.read(name) == b"twice"


def test_the_older_copy_stays_when_the_newer_is_cut_off(tmp_path: Path) -> None:
    name, store = blobs(tmp_path).put(b"twice"), blobs(tmp_path, Keys())
    store.put(b"twice")
    plain = Path(next(copy.place for copy in store.at.copies(name) if not copy.key))
    plain.chmod(0o600)
    plain.write_bytes(b"twic")
    assert blobs(tmp_path).tidy(1e12) == 0 and len(store.at.copies(name)) == 2


def test_of_two_copies_the_one_that_opens_is_read(tmp_path: Path) -> None:
    name = blobs(tmp_path, Keys({"k1": KEYS.of("k1")}, "k1")).put(b"twice")
    blobs(tmp_path, CHANGED).put(b"twice")
    assert blobs(tmp_path).read(name) == b"twice"


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
