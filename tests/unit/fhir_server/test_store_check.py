"""`check` finds every disagreement, and `reindex` mends what can be made anew, on both databases."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stocked import LARGE, create, extract, fill, observation, patient, update

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search.rows import IndexRows
from fhir_server.store import check as checking
from fhir_server.store import derived
from fhir_server.store import reindex as reindexing
from fhir_server.store.blob_seal import Keys
from fhir_server.store.blobs import Blobs
from fhir_server.store.check import Report, check
from fhir_server.store.engine import Store
from fhir_server.store.inbox import sha256_of
from fhir_server.store.reindex import Reindexed, reindex, stale


@pytest.fixture
def stocked(store: Store) -> Store:
    fill(store)
    return store


def sql(store: Store, statement: str) -> None:
    store.write(SYSTEM, lambda tx: tx.view.db.run(statement))


def value(store: Store, statement: str) -> Any:
    with store.read(SYSTEM) as snapshot:
        return snapshot.view.db.rows(statement)[0][0]


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_store_has_no_problem(stocked: Store, deep: bool) -> None:
    report = check(stocked, extract, deep=deep)
    assert report.problems == [] and report.ok
    assert (report.resources, report.versions, report.journal) == (13, 19, 19)
    assert (report.messages, report.deliveries, report.instances, report.content) == (2, 2, 3, 6)
    assert (report.strays, report.audit) == (0, 13)


def test_an_empty_store_has_no_problem(store: Store) -> None:
    assert check(store, extract) == Report()


def test_small_batches_and_pages_see_the_same(stocked: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = check(stocked, extract)
    for resources, size, page in ((1, 10, 1), (3, 1 << 20, 2), (200, 2000, 7)):
        monkeypatch.setattr(derived, "RESOURCES", resources)
        monkeypatch.setattr(derived, "BYTES", size)
        monkeypatch.setattr(derived, "PAGE", page)
        assert check(stocked, extract) == whole


TAMPERED: list[tuple[str, str, str]] = [
    ("index", "DELETE FROM idx_token WHERE rid = (SELECT rid FROM resource WHERE id = 'o3')", "idx_token: "),
    ("index", "UPDATE idx_string SET folded = 'x' WHERE rid = (SELECT rid FROM resource WHERE id = 'p3')", "wrong"),
    ("index", "INSERT INTO idx_uri (pid, rid, uri) SELECT 1, rid, 'u' FROM resource WHERE id = 'p3'", "1 wrong"),
    ("index", "INSERT INTO idx_date (pid, rid, low, high) SELECT pid, rid, low, high FROM idx_date WHERE rid = "
     "(SELECT rid FROM resource WHERE id = 'p3')", "1 repeated"),
    ("index", "INSERT INTO idx_token (pid, rid, system, code, folded) SELECT 1, rid, '', 'x', '' FROM resource "
     "WHERE id = 'p1'", "1 wrong"),
    ("index", "INSERT INTO idx_number (pid, rid, low, high) VALUES (1, 999999, 0, 1)", "does not exist"),
    ("index", "UPDATE idx_coords SET latitude = 45.7500001", "1 missing, 1 wrong"),
    ("index", "UPDATE idx_quantity SET canonical_high = canonical_high * 2 WHERE rid = "
     "(SELECT rid FROM resource WHERE id = 'o5')", "wrong"),
    ("mask", "UPDATE resource SET mask = 0 WHERE id = 'o4'", "0 instead of"),
    ("scope", "DELETE FROM scope WHERE rid = (SELECT rid FROM resource WHERE id = 'o0')", "1 missing"),
    ("scope", "DELETE FROM scope WHERE rid = (SELECT rid FROM resource WHERE id = 'o1')", "1 missing"),
    ("scope", "INSERT INTO scope (rid, kind, key) VALUES (-5, 'case', 'x')", "does not exist"),
    ("text", "UPDATE resource SET version = 2 WHERE id = 'p5'", "another type, id, version"),
    ("text", "UPDATE resource SET text = replace(text, 'versionId', 'versionid') WHERE id = 'p5'", "another type"),
    ("text", "UPDATE resource SET text = text || '}' WHERE id = 'p5'", "cannot be read or indexed"),
    ("text", "UPDATE resource SET deleted = 1 WHERE id = 'p5'", "disagree"),
    ("text", "UPDATE history SET text = replace(text, '\"id\":\"p0\"', '\"id\":\"p9\"') WHERE version = 2",
     "not that of"),
    ("text", "UPDATE history SET method = 'DELETE' WHERE version = 1", "disagree"),
    ("history", "DELETE FROM history WHERE version = 2 AND rid = (SELECT rid FROM resource WHERE id = 'p0')", "follow"),
    ("history", "DELETE FROM history WHERE version = 1 AND rid = (SELECT rid FROM resource WHERE id = 'p0')",
     "follows"),
    ("history", "UPDATE history SET last_updated = last_updated * 2 WHERE version = 1", "not"),
    ("history", "UPDATE history SET rid = 999999 WHERE version = 2 AND deleted = 0", "does not exist"),
    ("journal", "DELETE FROM journal WHERE seq = (SELECT min(seq) FROM journal)", "0 times"),
    ("journal", "UPDATE journal SET method = 'PATCH' WHERE version = 2 AND method = 'PUT'", "0 times"),
    ("journal", "INSERT INTO journal (txid, rid, version, type, at, method) SELECT txid, rid, version, type, at, "
     "method FROM journal WHERE version = 1", "2 times"),
    ("journal", "INSERT INTO journal (txid, rid, version, type, at, method) SELECT txid, rid, version + 7, type, at, "
     "method FROM journal WHERE version = 1", "not there"),
    ("message", "UPDATE inbox SET raw = NULL WHERE control_id = 'M1'", "not on record"),
    ("message", "UPDATE inbox SET size = size + 1", "bytes are not"),
    ("message", "UPDATE message_key SET message = 'nobody' WHERE box = 'in' AND value = 'M1'", "not there"),
    ("delivery", "DELETE FROM blob WHERE sha256 IN (SELECT sha256 FROM delivery)", "not on record"),
    ("study", "UPDATE dicom_study SET instances = 4", "instead of 3 in 2"),
    ("content", "DELETE FROM blob WHERE sha256 = (SELECT min(blob) FROM dicom_instance)", "not on record"),
    ("content", "UPDATE blob SET size = 7 WHERE size = 4", "4 bytes instead of 7"),
    ("audit", "UPDATE audit SET who = 'nobody' WHERE seq = (SELECT min(seq) FROM audit)", "changed"),
]  # fmt: skip


EACH_KIND = list({kind: (kind, statement, text) for kind, statement, text in TAMPERED}.values())


@pytest.mark.parametrize(("kind", "statement", "text"), EACH_KIND, ids=[kind for kind, _, _ in EACH_KIND])
def test_what_disagrees_is_found_and_said(stocked: Store, kind: str, statement: str, text: str) -> None:
    found(stocked, kind, statement, text)


@pytest.mark.parametrize(("kind", "statement", "text"), [one for one in TAMPERED if one not in EACH_KIND])
def test_every_way_to_disagree_is_found(
    open_url: Callable[..., Store], sqlite_url: str, kind: str, statement: str, text: str
) -> None:
    store = open_url(sqlite_url)
    fill(store)
    found(store, kind, statement, text)


def found(store: Store, kind: str, statement: str, text: str) -> None:
    sql(store, statement)
    report = check(store, extract)
    assert not report.ok and kind in report.counts
    assert any(problem.kind == kind and text in problem.text for problem in report.problems), report.problems


def test_bytes_that_were_altered_are_found_by_the_deep_look(stocked: Store) -> None:
    """Same length, other bytes: in a row, in a file."""
    changed = b"MSH|2"
    stocked.write(SYSTEM, lambda tx: tx.view.db.run("UPDATE inbox SET raw = ? WHERE control_id = 'M1'", (changed,)))
    path = stocked.blobs.at.path(sha256_of(LARGE))
    path.chmod(0o600)
    path.write_bytes(LARGE.replace(b"9", b"8"))
    assert check(stocked, extract).ok
    report = check(stocked, extract, deep=True)
    assert {(one.kind, one.text[:25]) for one in report.problems} == {
        ("message", "its bytes are not those o"),
        ("content", "the file was altered"),
    }
    sql(stocked, "UPDATE history SET text = text || 'x' WHERE rid = (SELECT rid FROM resource WHERE id = 'p0')")
    assert check(stocked, extract).ok is True
    assert "text" in check(stocked, extract, deep=True).counts


def test_a_missing_file_and_a_stray_one_are_told_apart(stocked: Store) -> None:
    stocked.blobs.at.path(sha256_of(LARGE)).unlink()
    stocked.blobs.put(b"a transaction under way")
    report = check(stocked, extract)
    assert [(one.kind, one.subject, one.text) for one in report.problems] == [
        ("content", sha256_of(LARGE), "the file is missing")
    ]
    assert report.strays == 1


@pytest.mark.parametrize(("keys", "deep"), [(Keys(), True), (Keys({"k": b"k" * 32}, "k"), False)])
def test_content_that_cannot_be_read_is_named_and_the_check_goes_on(
    store: Store, keys: Keys, deep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.blobs = Blobs(store.blobs.root, keys=keys)
    fill(store)
    (copy,) = store.blobs.at.copies(sha256_of(LARGE))
    real = Path.open

    def refuse(path: Path, mode: str = "r") -> Any:
        if path == Path(copy.place):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, mode)

    monkeypatch.setattr(Path, "open", refuse)
    report = check(store, extract, deep=deep)
    assert [(one.kind, one.subject, one.text) for one in report.problems] == [
        ("content", sha256_of(LARGE), "the file cannot be read (Input/output error)")
    ]
    assert report.content == 6


def test_a_report_keeps_the_first_and_counts_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "KEPT", 5)
    store.write(SYSTEM, lambda tx: [create(tx, patient(f"p{n}")) for n in range(20)])
    sql(store, "UPDATE resource SET mask = 0")
    report = check(store, extract)
    assert report.counts == {"mask": 20} and len(report.problems) == 5


def test_a_check_ends_when_told(stocked: Store) -> None:
    report = check(stocked, extract, stop=lambda: True)
    assert report.resources == 13 and report.journal == 0


def test_memory_is_bounded_by_the_batch_and_not_by_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements hand out pages: none brings more rows than a page, however many there are."""
    monkeypatch.setattr(derived, "RESOURCES", 10)
    monkeypatch.setattr(derived, "PAGE", 50)
    for start in range(0, 120, 40):
        store.write(SYSTEM, lambda tx, start=start: [create(tx, patient(f"p{start + n}")) for n in range(40)])  # type: ignore[misc]  # a default has no type
    for _ in range(60):
        store.write(SYSTEM, lambda tx: update(tx, patient("p7")))
    with store.read(SYSTEM) as snapshot:
        kind = type(snapshot.view.db)
    real, most = kind.rows, [0]

    def counted(self: Any, statement: str, params: Any = ()) -> Any:
        found = real(self, statement, params)
        most[0] = max(most[0], len(found))
        return found

    kind.rows = counted  # type: ignore[method-assign,assignment]  # for the length of this test
    try:
        report = check(store, extract)
    finally:
        kind.rows = real  # type: ignore[method-assign]  # for the length of this test
    assert report.ok and report.versions == 180 and most[0] <= 50


def test_a_check_beside_writers_finds_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "RESOURCES", 5)
    fill(store, 10)
    done, faults = threading.Event(), list[BaseException]()

    def write(worker: int) -> None:
        number = 0
        try:
            while not done.is_set():
                key = f"w{worker}-{number % 5}"
                verb = (create, update, update, None)[number // 5 % 4]
                if verb is not None:
                    store.write(SYSTEM, lambda tx, key=key, verb=verb: verb(tx, patient(key, f"F{key}")))  # type: ignore[misc]  # a default has no type
                else:
                    store.write(SYSTEM, lambda tx, key=key: tx.delete("Patient", key))  # type: ignore[misc]  # a default has no type
                number += 1
        except BaseException as fault:
            faults.append(fault)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in writers:
        thread.start()
    reports = [check(store, extract) for _ in range(4)]
    done.set()
    for thread in writers:
        thread.join(30)
    assert faults == []
    assert [report.problems for report in reports] == [[]] * 4
    assert check(store, extract).ok


# --- reindex ---------------------------------------------------------------------------------------------------------

REPAIRED = [statement for kind, statement, _ in TAMPERED if kind in ("index", "mask", "scope")]


def test_a_reindex_mends_rows_scopes_and_masks(stocked: Store) -> None:
    for statement in REPAIRED:
        sql(stocked, statement)
    before = value(stocked, "SELECT max(txid) FROM resource")
    assert set(check(stocked, extract).counts) == {"index", "mask", "scope"}
    first = reindex(stocked, extract)
    assert first.done and first.seen == 13 and first.changed >= 6 and first.orphans == 2 and first.failed == ()
    assert check(stocked, extract).ok
    assert reindex(stocked, extract) == Reindexed(13, 0, 0, (), True)
    assert value(stocked, "SELECT max(txid) FROM resource") == before, "an index is not a version"
    assert value(stocked, "SELECT count(*) FROM journal") == 19


def other(resource: dict[str, Any]) -> IndexRows:
    """A later extraction: another meaning of the rows."""
    return IndexRows(token=[(77, "", resource["id"], "")], scopes=[("new", resource["resourceType"])])


def test_another_extraction_is_applied_everywhere(stocked: Store) -> None:
    assert stale(stocked, 1), "its rows were made before anybody noted their meaning"
    assert reindex(stocked, extract, meaning=1).changed == 0
    assert not stale(stocked, 1) and stale(stocked, 2)
    assert reindex(stocked, other, meaning=2) == Reindexed(13, 13, 0, (), True)
    assert not stale(stocked, 2) and check(stocked, other).ok
    assert (
        value(stocked, "SELECT count(*) FROM idx_token") == 11 and value(stocked, "SELECT count(*) FROM idx_date") == 0
    )
    assert value(stocked, "SELECT count(*) FROM scope") == 13


def test_a_new_store_has_the_meaning_of_its_program(store: Store) -> None:
    assert not stale(store, 5)
    fill(store)
    assert not stale(store, 5) and stale(store, 6)


def test_a_reindex_that_was_cut_off_goes_on_where_it_stopped(stocked: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "RESOURCES", 3)
    answers = iter([False, False, True])
    first = reindex(stocked, other, meaning=2, stop=lambda: next(answers))
    assert first == Reindexed(6, 6, 0, (), False) and stale(stocked, 2)
    seen: list[str] = []

    def crashing(resource: dict[str, Any]) -> IndexRows:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(resource["id"])
        return other(resource)

    with pytest.raises(KeyboardInterrupt):
        reindex(stocked, crashing, meaning=2)
    rest = reindex(stocked, other, meaning=2)
    assert rest.done and 4 <= rest.seen <= 7 and not stale(stocked, 2)
    assert check(stocked, other).ok


def test_large_resources_are_indexed_in_transactions_of_their_own(
    stocked: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindexing, "ROWS_A_TRANSACTION", 1)
    assert reindex(stocked, other).changed == 13 and check(stocked, other).ok


def test_what_cannot_be_indexed_is_named_and_the_rest_is_done(stocked: Store) -> None:
    def picky(resource: dict[str, Any]) -> IndexRows:
        if resource["id"] == "p3":
            raise errors.TooLarge("too many values")
        return other(resource)

    done = reindex(stocked, picky)
    assert done.failed == ("Patient/p3: too many values",) and done.changed == 12 and done.done


def test_what_is_written_during_a_reindex_keeps_its_writers_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison saw version 1; version 2 comes before the repair takes its lock."""
    monkeypatch.setattr(derived, "RESOURCES", 2)
    store.write(SYSTEM, lambda tx: [create(tx, patient(f"p{n}")) for n in range(4)])
    sql(store, "DELETE FROM idx_string")
    real = reindexing._compared

    def compared(*args: Any) -> Any:
        batch = real(*args)
        if batch.stale:
            store.write(SYSTEM, lambda tx: update(tx, patient(batch.stale[0][0].id, "Nouveau")))
        return batch

    monkeypatch.setattr(reindexing, "_compared", compared)
    assert reindex(store, extract).changed == 2
    assert check(store, extract).ok


def test_a_reindex_beside_writers_ends_in_agreement(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "RESOURCES", 4)
    store.write(SYSTEM, lambda tx: [create(tx, patient(f"p{n}")) for n in range(12)])
    sql(store, "DELETE FROM idx_token")
    sql(store, "UPDATE resource SET mask = 255")
    done, faults = threading.Event(), list[BaseException]()

    def write(worker: int) -> None:
        number = 0
        try:
            while not done.is_set():
                key = f"p{(worker * 5 + number) % 12}"
                if number % 7 == 6:
                    store.write(SYSTEM, lambda tx, key=key: tx.delete("Patient", key))  # type: ignore[misc]  # a default has no type
                else:
                    store.write(SYSTEM, lambda tx, key=key, n=number: update(tx, patient(key, f"N{n}")))  # type: ignore[misc]  # a default has no type
                number += 1
        except BaseException as fault:
            faults.append(fault)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in writers:
        thread.start()
    for _ in range(3):
        reindex(store, extract)
    done.set()
    for thread in writers:
        thread.join(30)
    assert faults == []
    reindex(store, extract)
    assert check(store, extract).ok


def test_two_reindexes_at_once_do_no_harm(stocked: Store) -> None:
    outcomes: list[Reindexed] = []
    threads = [threading.Thread(target=lambda: outcomes.append(reindex(stocked, other))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [one.done for one in outcomes] == [True] * 3
    assert check(stocked, other).ok


def test_the_text_of_a_version_begins_as_check_expects(store: Store) -> None:
    from fhir_server.store.resources import prefix

    made = store.write(SYSTEM, lambda tx: tx.create(observation("é-1"[2:], "p"), IndexRows()))
    assert made.text.startswith(prefix("Observation", made.id, 1, made.last_updated))
