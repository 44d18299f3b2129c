"""Content in a bucket of a real S3-compatible server: the same store, and what a bucket can do wrong."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bucket_server
import pytest
from bucket_server import BucketServer
from stocked import LARGE, extract, fill

from fhir_server import errors
from fhir_server.app import open_hub
from fhir_server.changes import Hub
from fhir_server.config import Settings
from fhir_server.context import SYSTEM
from fhir_server.demo.run import SITES
from fhir_server.patients.sites import load_sites
from fhir_server.store.backup import backup, restore, verify
from fhir_server.store.blob_place import Copy
from fhir_server.store.blob_seal import CHUNK, HEADER, Damaged, MissingKey
from fhir_server.store.blobs import Blobs, blobs_of
from fhir_server.store.check import check
from fhir_server.store.engine import Store, open_store
from fhir_server.store.inbox import NewMessage, sha256_of
from fhir_server.store.installation import Elsewhere, claim_content
from fhir_server.store.retention import DAY, collect

KEYS = "k1 MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=\n"
NEWER = KEYS + "k2 MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjI=\n"
pytestmark = [pytest.mark.needs("java"), pytest.mark.xdist_group("bucket")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    made = bucket_server.start(tmp_path_factory.mktemp("s3"))
    yield made
    made.process.kill()
    made.process.wait(20)


@pytest.fixture(params=["plain", "encrypted"])
def settings(server: BucketServer, request: pytest.FixtureRequest) -> Settings:
    """A prefix of its own for each test."""
    return server.settings(f"t/{secrets.token_hex(4)}", blob_keys=KEYS if request.param == "encrypted" else "")


@pytest.fixture
def blobs(settings: Settings, tmp_path: Path) -> Blobs:
    made = blobs_of(settings, tmp_path)
    made.prepare()
    return made


def objects(server: BucketServer, settings: Settings) -> list[Path]:
    return server.files(settings.blob_url.split("?")[0].removeprefix("s3://content/"))


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def test_content_is_put_read_in_parts_listed_and_removed(
    blobs: Blobs, settings: Settings, server: BucketServer
) -> None:
    data = os.urandom(20 << 20)  # several parts, several reads
    name, small, empty = blobs.put(data), blobs.put(b"small"), blobs.put(b"")
    assert blobs.read(name) == data and blobs.read(small) == b"small" and blobs.read(empty) == b""
    assert [blobs.size(sha) for sha in (name, small, empty)] == [len(data), 5, 0]
    for start, length in ((0, 1), (CHUNK - 1, 2), (8 << 20, 100), (len(data) - 3, 10), (len(data) + 3, 10), (5, 0)):
        assert blobs.range(name, start, length) == data[start : start + length]
    assert sorted(sha for names in blobs.names() for sha in names) == sorted((name, small, empty))
    if blobs.keys.newest:
        assert not any(b"small" in path.read_bytes() for path in objects(server, settings))
    assert blobs.remove(small, time.time() + 3600) and not blobs.exists(small) and blobs.put_at(small) is None
    assert not blobs.remove(small, time.time() + 3600)
    with pytest.raises(errors.NotFound):
        blobs.read(small)
    with pytest.raises(errors.TooLarge):
        blobs.read(name, max_bytes=100)


def test_a_file_is_uploaded_and_read_as_a_file(blobs: Blobs) -> None:
    data = os.urandom(9 << 20)
    (blobs.new_folder() / "clip").write_bytes(data)
    name = blobs.adopt(blobs.new_folder() / "clip")
    assert name == sha256_of(data) and list(blobs.new_folder().iterdir()) == []
    with blobs.file(name) as path:
        assert path.read_bytes() == data
    assert list(blobs.new_folder().iterdir()) == [], "the copy that was read is gone"


def test_the_same_content_is_uploaded_once_in_ten_minutes(
    blobs: Blobs, settings: Settings, server: BucketServer, tmp_path: Path
) -> None:
    name = blobs.put(b"twice")
    assert blobs.put(b"twice") == name == blobs_of(settings, tmp_path).put(b"twice")
    assert len(objects(server, settings)) == 1


def test_content_put_again_while_a_clean_up_removes_it_stays(
    blobs: Blobs, settings: Settings, server: BucketServer, tmp_path: Path
) -> None:
    """The clean-up looked, and decided; then the content came again: another object, which nobody removes."""
    name = blobs.put(b"again")
    (path,) = objects(server, settings)
    os.utime(path, (time.time() - 3 * DAY,) * 2)
    (seen,) = blobs.at.copies(name)
    assert seen.put_at < time.time() - 2 * DAY
    other = blobs_of(settings, tmp_path)
    assert other.put(b"again") == name and len(objects(server, settings)) == 2
    assert blobs.at.remove(seen, time.time() - DAY)
    assert other.read(name) == b"again" == blobs.read(name) and not blobs.remove(name, time.time() - DAY)


def test_an_older_copy_goes_when_the_newer_is_there(
    blobs: Blobs, settings: Settings, server: BucketServer, tmp_path: Path
) -> None:
    name = blobs.put(b"again")
    (path,) = objects(server, settings)
    os.utime(path, (time.time() - 3 * DAY,) * 2)
    blobs_of(settings, tmp_path).put(b"again")
    assert blobs.tidy(time.time() - DAY) == 1 and blobs.tidy(time.time() - DAY) == 0
    assert not path.exists() and blobs.read(name) == b"again"


def test_a_reader_whose_copy_is_removed_takes_the_newer_one(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    name = blobs.put(b"moving")
    (old,) = blobs.at.copies(name)
    blobs.at.write(name, old.ending, blobs._written([b"moving"], name))
    real, seen = type(blobs.at).copies, [[old]]
    monkeypatch.setattr(type(blobs.at), "copies", lambda place, sha: seen.pop() if seen else real(place, sha))
    blobs.at.remove(old, time.time() + 3600)
    assert blobs.read(name) == b"moving" and seen == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"blob_url": ("content/", "nowhere/")},
            "There is no bucket of s3://nowhere/texts: create it, or correct blob",
        ),
        (
            {"blob_secret_key": ("secret-of-tests", "wrong")},
            r"refuses .*403.*SignatureDoesNotMatch.*see blob_access_key",
        ),
        ({"blob_access_key": ("local", "nobody")}, r"refuses .*403.*InvalidAccessKeyId.*see blob_access_key"),
    ],
)
def test_what_is_wrong_with_the_bucket_is_said_whatever_is_asked(
    server: BucketServer, tmp_path: Path, change: dict[str, tuple[str, str]], said: str
) -> None:
    settings = server.settings("texts")
    wrong = {name: getattr(settings, name).replace(*pair) for name, pair in change.items()}
    blobs = blobs_of(replace(settings, **wrong), tmp_path)
    copy = Copy("n", "0" * 64, "", "", 5, 0.0, f"00/{'0' * 64}/{'0' * 16}")
    for ask in (
        lambda: blobs.claim("us"),
        lambda: blobs.put(b"x"),
        lambda: blobs.at.write("0" * 64, "", [b"x"]),
        lambda: blobs.read("0" * 64),
        lambda: list(blobs.at.raw(copy, 0, 5)),
        lambda: list(blobs.names()),
    ):
        with pytest.raises(errors.Unavailable, match=said) as refusal:
            ask()
        assert "wrong" not in str(refusal.value), "the secret is not shown"


def test_a_file_that_cannot_be_read_here_is_not_said_to_be_the_buckets_fault(
    server: BucketServer, tmp_path: Path
) -> None:
    def failing() -> Iterator[bytes]:
        yield b"1"
        raise OSError(5, "Input/output error")

    blobs = blobs_of(server.settings("texts"), tmp_path)
    for ask in (
        lambda: blobs.at.take("0" * 64, tmp_path / "gone"),
        lambda: blobs.at.write("0" * 64, "", failing()),
    ):
        with pytest.raises(errors.Unavailable, match="cannot be read on this machine"):
            ask()
    assert list(blobs.names()) == []


def test_what_another_key_of_the_same_id_sealed_is_put_again(server: BucketServer, tmp_path: Path) -> None:
    """Two hosts whose files of keys differ: each reads what it put, and says what the other did."""
    ours, theirs = (
        blobs_of(server.settings("twokeys", blob_keys=keys), tmp_path)
        for keys in (KEYS, KEYS.replace("MTEx", "MTEy", 1))
    )
    name = theirs.put(b"same")
    with pytest.raises(MissingKey, match="the id k1"):
        ours.read(name)
    assert ours.put(b"same") == name and len(ours.at.copies(name)) == 2
    assert ours.read(name) == b"same" == theirs.read(name)
    assert ours.tidy(time.time() + DAY) + theirs.tidy(time.time() + DAY) == 0, "neither removes what the other needs"
    both = KEYS + KEYS.replace("MTEx", "MTEy", 1).replace("k1", "k2", 1)
    mended = blobs_of(server.settings("twokeys", blob_keys=both), tmp_path)
    assert mended.read(name) == b"same" and mended.tidy(time.time() + DAY) == 1 and mended.read(name) == b"same"


def test_damage_in_the_bucket_is_told(server: BucketServer, tmp_path: Path) -> None:
    settings = server.settings("damage", blob_keys=KEYS)
    blobs, data = blobs_of(settings, tmp_path), os.urandom(3 * CHUNK)
    name = blobs.put(data)
    (path,) = objects(server, settings)
    whole = path.read_bytes()
    for change in (
        lambda raw: raw[: HEADER + 9] + bytes([raw[HEADER + 9] ^ 1]) + raw[HEADER + 10 :],
        lambda raw: raw[:-20],
        lambda raw: raw[: HEADER + CHUNK + 16],
        lambda raw: raw[:40],
        lambda raw: b"",
    ):
        spoil(path, change)
        with pytest.raises(Damaged):
            blobs.read(name)
        path.write_bytes(whole)
    assert blobs.read(name) == data


def test_a_new_key_takes_over_and_the_old_one_still_opens(server: BucketServer, tmp_path: Path) -> None:
    old, new = server.settings("keys", blob_keys=KEYS), server.settings("keys", blob_keys=NEWER)
    first, second = blobs_of(old, tmp_path).put(b"first"), blobs_of(new, tmp_path).put(b"second")
    assert blobs_of(new, tmp_path).read(first) == b"first"
    assert [copy.key for copy in blobs_of(new, tmp_path).at.copies(second)] == ["k2"]
    with pytest.raises(errors.Unavailable, match="the key k2, which blob_keys does not have"):
        blobs_of(old, tmp_path).read(second)


def test_a_server_that_never_answers_is_given_up_in_bounded_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"s3://content?endpoint=http://127.0.0.1:{deaf.getsockname()[1]}"
        slow = Settings(blob_url=url, blob_access_key="a", blob_secret_key="b", blob_timeout_seconds=0.5)
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match="cannot do this now"):
            blobs_of(slow, tmp_path).put(b"x")
        assert time.monotonic() - began < 20


def test_a_server_that_is_not_there_is_told(tmp_path: Path, free_port: Callable[[], int]) -> None:
    url = f"s3://content?endpoint=http://127.0.0.1:{free_port()}"
    gone = Settings(blob_url=url, blob_access_key="a", blob_secret_key="b", blob_timeout_seconds=0.5)
    with pytest.raises(errors.Unavailable, match="cannot do this now"):
        blobs_of(gone, tmp_path).read("0" * 64)


# --- the whole store on it -------------------------------------------------------------------------------------------


Open = Callable[..., Store]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens a store by database, data folder and settings; closes what is still open."""
    made: list[Store] = []

    def again(url: str, data: Path, settings: Settings, **more: object) -> Store:
        made.append(open_store(url, data, migrate=False, blobs=blobs_of(settings, data), **more))  # type: ignore[arg-type]  # keywords of any type
        return made[-1]

    yield again
    for store in made:
        store.close()


def test_a_store_on_a_bucket_is_whole_and_says_how_its_content_is_kept(
    opened: Open, database_url: str, settings: Settings, server: BucketServer, tmp_path: Path
) -> None:
    store = opened(database_url, tmp_path / "data", settings)
    fill(store)
    with store.read(SYSTEM) as snapshot:
        rows = snapshot.view.db.rows("SELECT DISTINCT form, key_id FROM blob")
        assert snapshot.message_raw(snapshot.messages()[0].id) == LARGE
    assert rows == [("gcm-chunks-1", "k1") if settings.blob_keys else ("plain", "")]
    assert check(store, extract, deep=True).ok and len(objects(server, settings)) == 6
    path = next(path for path in objects(server, settings) if sha256_of(LARGE) in str(path))
    spoil(path, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]))
    (problem,) = check(store, extract, deep=True).problems
    assert problem.kind == "content" and problem.subject == sha256_of(LARGE) and "altered" in problem.text
    path.unlink()
    assert [one.text for one in check(store, extract).problems] == ["the file is missing"]
    store.close()


def test_a_check_names_content_whose_key_is_missing(
    opened: Open, sqlite_url: str, server: BucketServer, tmp_path: Path
) -> None:
    store = opened(sqlite_url, tmp_path / "data", server.settings("lost", blob_keys=KEYS))
    fill(store)
    store.close()
    other = NEWER.splitlines()[1]
    again = opened(sqlite_url, tmp_path / "data", server.settings("lost", blob_keys=other))
    report = check(again, extract)
    assert report.counts == {"content": 6} and "the key k1" in report.problems[0].text
    again.close()


FORMS = ["folder", "encrypted folder", "bucket", "encrypted bucket"]


def placed(server: BucketServer, kind: str, prefix: str) -> Settings:
    keys = KEYS if "encrypted" in kind else ""
    return server.settings(prefix, blob_keys=keys) if "bucket" in kind else Settings(blob_keys=keys)


@pytest.mark.parametrize(("source", "target"), list(zip(FORMS, FORMS[1:] + FORMS[:1], strict=True)))
def test_a_backup_of_any_kind_of_store_is_restored_into_any_other(
    opened: Open, sqlite_url: str, server: BucketServer, tmp_path: Path, source: str, target: str
) -> None:
    number = FORMS.index(source)
    store = opened(sqlite_url, tmp_path / "data", placed(server, source, f"from{number}"))
    fill(store)
    made = backup(store, tmp_path / "backup")
    assert (made.content, made.damaged) == (6, ()) and verify(tmp_path / "backup") == made
    store.close()
    into, url = placed(server, target, f"into{number}"), f"sqlite:///{tmp_path}/new/p.sqlite"
    restore(tmp_path / "backup", tmp_path / "new", url, blobs=blobs_of(into, tmp_path / "new"))
    new = opened(url, tmp_path / "new", into)
    assert check(new, extract, deep=True).ok
    with new.read(SYSTEM) as snapshot:
        rows = snapshot.view.db.rows("SELECT DISTINCT form, key_id FROM blob")
    assert rows == [("gcm-chunks-1", "k1") if into.blob_keys else ("plain", "")]
    assert sorted(sha for names in new.blobs.names() for sha in names) == sorted(
        path.name for path in (tmp_path / "backup" / "content").rglob("*") if path.is_file()
    )
    new.close()


def test_a_restore_that_fails_leaves_the_bucket_empty(
    opened: Open, sqlite_url: str, server: BucketServer, tmp_path: Path
) -> None:
    store = opened(sqlite_url, tmp_path / "data", Settings())
    fill(store)
    backup(store, tmp_path / "backup")
    store.close()
    last = max((tmp_path / "backup" / "content").rglob("*" + "?" * 60))
    last.unlink()
    into = server.settings("failed")
    with pytest.raises(errors.Invalid, match="missing or was altered"):
        restore(
            tmp_path / "backup", tmp_path / "new", f"sqlite:///{tmp_path}/new/p", blobs=blobs_of(into, tmp_path / "new")
        )
    assert objects(server, into) == [] and not (tmp_path / "new" / "p").exists()
    blobs_of(into, tmp_path).put(b"somebody's")
    with pytest.raises(errors.Conflict, match="s3://content/failed is not empty"):
        restore(
            tmp_path / "backup", tmp_path / "new", f"sqlite:///{tmp_path}/new/p", blobs=blobs_of(into, tmp_path / "new")
        )


_CRASH = """
import os, signal, sys
from pathlib import Path
from fhir_server.config import Settings
from fhir_server.context import SYSTEM
from fhir_server.store.blobs import blobs_of
from fhir_server.store.engine import open_store
url, folder, blob_url, who, secret, keys = sys.argv[1:]
made = Settings(blob_url=blob_url, blob_access_key=who, blob_secret_key=secret, blob_keys=keys)
store = open_store(url, Path(folder), migrate=False, blobs=blobs_of(made, Path(folder)))
kept = store.blobs.keep(b"uploaded, never committed" * 10_000)
def work(tx):
    tx.attach(kept, "text/plain")
    os.kill(os.getpid(), signal.SIGKILL)
store.write(SYSTEM, work)
"""


def test_a_crash_between_upload_and_commit_leaves_only_garbage_that_goes(
    opened: Open, database_url: str, settings: Settings, server: BucketServer, tmp_path: Path
) -> None:
    told = (settings.blob_url, settings.blob_access_key, settings.blob_secret_key, settings.blob_keys)
    command = [sys.executable, "-c", _CRASH, database_url, str(tmp_path / "data"), *told]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    store = opened(database_url, tmp_path / "data", settings)
    report = check(store, extract, deep=True)
    assert report.ok and report.strays == 1 and len(objects(server, settings)) == 1
    store.receive(NewMessage("mllp", LARGE, sender="A", control_id="M1"))
    kept = sha256_of(LARGE)
    store.close()
    for path in objects(server, settings):
        os.utime(path, (time.time() - 3 * DAY,) * 2)
    later = opened(database_url, tmp_path / "data", settings)
    assert collect(later).strays == 1
    later.close()
    after = opened(database_url, tmp_path / "data", settings, clock=lambda: datetime.now(UTC) + timedelta(days=1.5))
    assert collect(after).deleted == 1
    assert [path for path in objects(server, settings) if kept not in str(path) and path.name != "installation"] == []
    assert check(after, extract, deep=True).ok and after.blobs.read(kept) == LARGE
    after.close()


def test_threads_that_put_and_read_at_once_all_succeed(blobs: Blobs) -> None:
    data, faults = [os.urandom(200_000) for _ in range(4)], list[BaseException]()

    def work(number: int) -> None:
        try:
            for turn in range(6):
                one = data[(number + turn) % len(data)]
                assert blobs.read(blobs.put(one)) == one
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []


def test_a_prefix_belongs_to_one_installation(settings: Settings, tmp_path: Path) -> None:
    """A clean-up removes what its database does not know: it must not meet another's content."""
    first, second = (
        open_store(f"sqlite:///{tmp_path}/{name}/p", tmp_path / name, blobs=blobs_of(settings, tmp_path / name))
        for name in ("one", "two")
    )
    try:
        claim_content(first)
        kept = first.blobs.put(b"of the first")
        claim_content(first)
        with pytest.raises(Elsewhere, match="belongs to installation"):
            claim_content(second)
        with pytest.raises(Elsewhere):
            collect(second, age_seconds=-DAY)
        assert first.blobs.read(kept) == b"of the first"
        assert [name for names in first.blobs.names() for name in names] == [kept], "the mark is no content"
    finally:
        first.close()
        second.close()


def test_a_start_on_another_installations_prefix_is_refused_and_leaves_nothing_open(
    server: BucketServer, tmp_path: Path
) -> None:
    prefix = f"start/{secrets.token_hex(4)}"

    def started(name: str) -> Hub:
        return open_hub(server.settings(prefix, data_dir=str(tmp_path / name)), load_sites(SITES), migrate=True)

    first = started("one")
    try:
        threads = threading.active_count()
        with pytest.raises(
            Elsewhere, match=f"{prefix} belongs to installation {first.settings.installation}, and this is"
        ):
            started("two")
        assert threading.active_count() == threads, "the database it opened is closed again"
        kept = first.store.blobs.put(b"of the first")
        assert [name for names in first.store.blobs.names() for name in names] == [kept]
    finally:
        first.store.close()
    again = started("one")
    assert again.settings.installation == first.settings.installation
    again.store.close()


def test_a_start_beside_a_bucket_that_does_not_answer_goes_on_and_says_so(
    free_port: Callable[[], int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages are taken in meanwhile as far as they need no content; the clean-up asks again."""
    url = f"s3://content?endpoint=http://127.0.0.1:{free_port()}"
    settings = Settings(
        blob_url=url, blob_access_key="a", blob_secret_key="b", blob_timeout_seconds=0.5, data_dir=str(tmp_path)
    )
    hub = open_hub(settings, load_sites(SITES), migrate=True)
    try:
        assert "whose content it is cannot be looked up now" in caplog.text
        with pytest.raises(errors.Unavailable):
            collect(hub.store)
    finally:
        hub.store.close()
