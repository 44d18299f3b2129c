"""Whether everything agrees with everything else: what `passerelle check` asks.

Resources are walked in batches (see `derived`), each in a short snapshot of its own, with their history beside them in
the same order; the other tables and the content are walked by their keys. Writers are not held up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.store import derived
from fhir_server.store.blob_seal import Damaged, MissingKey
from fhir_server.store.derived import END, START, Current, Cursor, Extract
from fhir_server.store.dialect import Row
from fhir_server.store.engine import Store
from fhir_server.store.resources import prefix
from fhir_server.store.tables import INDEX_TABLES, SCOPE
from fhir_server.store.view import View
from profiles import json_text

Kind = Literal[
    "text",
    "index",
    "mask",
    "scope",
    "history",
    "journal",
    "message",
    "delivery",
    "study",
    "content",
    "audit",
    "identity",
    "case",
    "endpoint",
]
KEPT = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """One disagreement: `subject` is a reference, an id or a sha256."""

    kind: Kind
    subject: str
    text: str


@dataclass(slots=True)
class Report:
    """What was looked at, and what disagrees: how many of each kind, and the first 200 in full. `strays` are content
    files that no transaction recorded; the clean-up removes them, they are no problem."""

    resources: int = 0
    versions: int = 0
    journal: int = 0
    messages: int = 0
    deliveries: int = 0
    instances: int = 0
    content: int = 0
    strays: int = 0
    audit: int = 0
    counts: dict[Kind, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.counts

    def add(self, kind: Kind, subject: str, text: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(self.problems) < KEPT:
            self.problems.append(Problem(kind, subject, text))


def _never() -> bool:
    return False


def check(store: Store, extract: Extract, *, deep: bool = False, stop: Callable[[], bool] = _never) -> Report:
    """Looks at everything while the server runs. `deep` also hashes all content and reads every old version.

    `stop` is asked between batches; the report then covers what was seen.
    """
    report = Report()
    walks = (_resources(store, extract, report, deep), *_tables(store, report, deep), _files(store, report, deep))
    for walk in walks:
        for _ in walk:
            if stop():
                return report
    verdict = store.verify()
    report.audit = verdict.sealed + verdict.unsealed
    if not verdict.ok:
        report.add("audit", f"seal {verdict.broken}", verdict.text)
    return report


# --- resources -------------------------------------------------------------------------------------------------------

_OLD = (
    "SELECT h.rid, h.version, h.last_updated, h.deleted, h.method, {text}, "
    f"CASE WHEN r.rid IS NULL THEN 1 ELSE {derived.TOLD.format(v='h')} END "
    "FROM history h LEFT JOIN resource r ON r.rid = h.rid AND r.rid >= ? AND r.rid <= ? "
    "WHERE (h.rid, h.version) > (?, ?) AND h.rid <= ? ORDER BY h.rid, h.version LIMIT ?"
)


def _history(view: View, after: int, last: int, deep: bool) -> Iterator[Row]:
    sql = _OLD.format(text="h.text" if deep else "substr(h.text, 1, 400)")
    at = (after, END)
    while True:
        rows = view.db.rows(sql, (at[0], last, *at, last, 100 if deep else derived.PAGE))
        yield from rows
        if not rows:
            return
        at = (rows[-1][0], rows[-1][1])


def _resources(store: Store, extract: Extract, report: Report, deep: bool) -> Iterator[None]:
    after = START
    while after < END:
        with store.read(SYSTEM) as snapshot:
            view = snapshot.view
            last = derived.batch_end(view, after)
            cursors = derived.index_cursors(view, after, last)
            history = Cursor(_history(view, after, last, deep))
            for one in derived.currents(view, after, last):
                _no_owner(cursors, history, one.rid, report)
                _check_current(one, report)
                _check_history(one, history.of(one.rid), report, deep)
                _check_rows(view, one, derived.rows_of(view, one, cursors), extract, report)
                report.resources += 1
            _no_owner(cursors, history, last + 1, report)
        after = last
        yield


def _no_owner(cursors: Sequence[Cursor], history: Cursor, rid: int, report: Report) -> None:
    """Reports rows whose resource does not exist."""
    for bulk, cursor in zip((*INDEX_TABLES, SCOPE), cursors, strict=True):
        for row in cursor.before(rid):
            kind: Kind = "scope" if bulk is SCOPE else "index"
            report.add(kind, f"rid {row[0]}", f"{bulk.table} has a row of a resource that does not exist")
    for row in history.before(rid):
        report.add("history", f"rid {row[0]}", f"version {row[1]} of a resource that does not exist")


def _check_current(one: Current, report: Report) -> None:
    report.versions += 1
    at = f"{one.reference} version {one.version}"
    if one.deleted != int(one.text is None) or (one.method == "DELETE") != bool(one.deleted):
        report.add("text", at, "whether it is a deletion, its method and its text disagree")
    elif one.text and not one.text.startswith(prefix(one.type, one.id, one.version, one.last_updated)):
        report.add("text", at, "its text says another type, id, version or time than its row")
    if one.told != 1:
        report.add("journal", at, f"the journal tells of it {one.told} times")


def _check_history(one: Current, rows: Iterator[Row], report: Report, deep: bool) -> None:
    number, at, gone = 0, -1, 1
    for _, version, last_updated, deleted, method, text, told in rows:
        report.versions += 1
        subject = f"{one.reference} version {version}"
        if version != number + 1:
            report.add("history", subject, f"it follows version {number}")
        if last_updated <= at:
            report.add("history", subject, "it is not later than the version before it")
        if deleted and gone:
            report.add("history", subject, "a deletion follows a deletion, or nothing")
        if deleted != int(text is None) or (method == "DELETE") != bool(deleted):
            report.add("text", subject, "whether it is a deletion, its method and its text disagree")
        elif text and not (text.startswith(prefix(one.type, one.id, version, last_updated)) and _reads(text, deep)):
            report.add("text", subject, "its text is not that of this version")
        if told != 1:
            report.add("journal", subject, f"the journal tells of it {told} times")
        number, at, gone = version, last_updated, deleted
    if one.version != number + 1 or one.last_updated <= at or (one.deleted and gone):
        report.add("history", one.reference, f"version {one.version} does not follow version {number}")


def _reads(text: str, deep: bool) -> bool:
    if not deep:
        return True
    try:
        json_text.parse(text)
    except ValueError:
        return False
    return True


def _check_rows(view: View, one: Current, found: Sequence[list[Row]], extract: Extract, report: Report) -> None:
    try:
        rows = derived.wanted(view, one, extract)
    except (errors.PasserelleError, ValueError) as fault:
        report.add("text", one.reference, f"it cannot be read or indexed: {fault}")
        return
    for kind, text in derived.disagreements(one, rows, found):
        report.add(kind, one.reference, text)


# --- the other tables ------------------------------------------------------------------------------------------------

_IN_RECORD = "(SELECT b.size FROM blob b WHERE b.sha256 = t.{column})"


@dataclass(frozen=True, slots=True)
class _Walk:
    """A walk over a table by its key. The columns after it: what to name, sha256, size, bytes when they are in the
    row (or their length), and the size the record of content says."""

    table: str
    key: str
    first: object
    kind: Kind
    count: str
    subject: str
    sha256: str
    inline: str


_WALKS = (
    _Walk("inbox", "seq", 0, "message", "messages", "id", "sha256", "raw"),
    _Walk("delivery", "id", "", "delivery", "deliveries", "id", "sha256", "payload"),
    _Walk("dicom_instance", "sop_uid", "", "content", "instances", "sop_uid", "blob", "NULL"),
    _Walk("dicom_conflict", "seq", 0, "content", "instances", "sop_uid", "blob", "NULL"),
)


def _tables(store: Store, report: Report, deep: bool) -> tuple[Iterator[None], ...]:
    return (
        _journal(store, report),
        *(_bytes(store, walk, report, deep) for walk in _WALKS),
        _studies(store, report),
        _keys(store, report),
    )


def _pages(store: Store, sql: str, first: Sequence[object], size: int = 0) -> Iterator[list[Row]]:
    """Pages of a statement `... > (?, ?) ... LIMIT ?` whose first columns are its key, each in its own snapshot."""
    at, size = tuple(first), size or derived.PAGE
    while True:
        with store.read(SYSTEM) as snapshot:
            rows = snapshot.view.db.rows(sql, (*at, size))
        if not rows:
            return
        yield rows
        at = tuple(rows[-1][: len(at)])


def _journal(store: Store, report: Report) -> Iterator[None]:
    """Every journal row tells of a version there is; that each version is told of was asked with the resources."""
    sql = (
        "SELECT j.seq, j.type, j.rid, j.version, CASE WHEN EXISTS (SELECT 1 FROM resource r WHERE r.rid = j.rid "
        "AND r.version = j.version AND r.type = j.type AND r.last_updated = j.at) OR EXISTS (SELECT 1 FROM history h "
        "WHERE h.rid = j.rid AND h.version = j.version AND h.last_updated = j.at) THEN 1 ELSE 0 END "
        "FROM journal j WHERE j.seq > ? ORDER BY j.seq LIMIT ?"
    )
    for rows in _pages(store, sql, (0,)):
        for seq, kind, rid, version, there in rows:
            report.journal += 1
            if not there:
                report.add(
                    "journal", f"row {seq}", f"it tells of {kind} rid {rid} version {version}, which is not there"
                )
        yield


def _bytes(store: Store, walk: _Walk, report: Report, deep: bool) -> Iterator[None]:
    """Bytes are those their row names: in the row itself, or recorded as content of that size."""
    inline = walk.inline if deep or walk.inline == "NULL" else f"length({walk.inline})"
    recorded = _IN_RECORD.format(column=walk.sha256)
    sql = (
        f"SELECT t.{walk.key}, t.{walk.subject}, t.{walk.sha256}, t.size, {inline}, {recorded} "
        f"FROM {walk.table} t WHERE t.{walk.key} > ? ORDER BY t.{walk.key} LIMIT ?"
    )
    for rows in _pages(store, sql, (walk.first,), 100 if deep else derived.PAGE):
        for _, subject, sha256, size, data, told in rows:
            setattr(report, walk.count, getattr(report, walk.count) + 1)
            if data is None and told != size:
                report.add(walk.kind, subject, "its content is not on record" if told is None else "another size")
            elif data is not None and not _same(data, sha256, size):
                report.add(walk.kind, subject, f"its bytes are not those of {sha256}")
        yield


def _same(data: object, sha256: str, size: int) -> bool:
    """`data` are the bytes, or how many there are."""
    if isinstance(data, int):
        return data == size
    raw = bytes(data)  # type: ignore[call-overload]
    return len(raw) == size and hashlib.sha256(raw).hexdigest() == sha256


def _studies(store: Store, report: Report) -> Iterator[None]:
    sql = (
        "SELECT s.study_uid, s.instances, s.series, "
        "(SELECT count(*) FROM dicom_instance i WHERE i.study_uid = s.study_uid), "
        "(SELECT count(DISTINCT i.series_uid) FROM dicom_instance i WHERE i.study_uid = s.study_uid) "
        "FROM dicom_study s WHERE s.study_uid > ? ORDER BY s.study_uid LIMIT ?"
    )
    for rows in _pages(store, sql, ("",), 100):
        for uid, instances, series, are, in_series in rows:
            if (instances, series) != (are, in_series):
                text = f"{instances} instances in {series} series instead of {are} in {in_series}"
                report.add("study", uid, text)
        yield


_KEYED: Mapping[str, Kind] = {"in": "message", "out": "delivery", "study": "study"}


def _keys(store: Store, report: Report) -> Iterator[None]:
    """Business keys belong to a message, a delivery or a study that is there."""
    sql = (
        "SELECT DISTINCT k.message, k.box, CASE WHEN k.box = 'in' THEN (SELECT 1 FROM inbox i WHERE i.id = k.message) "
        "WHEN k.box = 'study' THEN (SELECT 1 FROM dicom_study s WHERE s.study_uid = k.message) "
        "ELSE (SELECT 1 FROM delivery d WHERE d.id = k.message) END "
        "FROM message_key k WHERE (k.message, k.box) > (?, ?) ORDER BY k.message, k.box LIMIT ?"
    )
    for rows in _pages(store, sql, ("", "")):
        for message, box, there in rows:
            if not there:
                report.add(_KEYED.get(box, "delivery"), message, "keys of what is not there")
        yield


# --- files -----------------------------------------------------------------------------------------------------------


def _files(store: Store, report: Report, deep: bool) -> Iterator[None]:
    """Recorded content is in the folder, whole; files that no row records are counted."""
    sql = "SELECT sha256, size FROM blob WHERE sha256 > ? ORDER BY sha256 LIMIT ?"
    for rows in _pages(store, sql, ("",), 100 if deep else derived.PAGE):
        for sha256, size in rows:
            report.content += 1
            if (text := _file(store, sha256, size, deep)) and _recorded(store, [sha256]):
                report.add("content", sha256, text)
        yield
    for names in store.blobs.names():
        if names:
            report.strays += len(set(names) - _recorded(store, names))
            yield


def _file(store: Store, sha256: str, size: int, deep: bool) -> str:
    """What is wrong with a file, or ''."""
    try:
        kept = store.blobs.kept(sha256)
        if kept.size != size:
            return f"the file has {kept.size} bytes instead of {size}"
        if kept.form.key_id and not deep:
            store.blobs.range(sha256, max(size - 1, 0), 1)  # its last chunk proves the key and the length
        if deep:
            digest = hashlib.sha256()
            for data in store.blobs.chunks(sha256):
                digest.update(data)
            return "" if digest.hexdigest() == sha256 else "the file was altered"
    except errors.NotFound:
        return "the file is missing"
    except (Damaged, MissingKey) as fault:
        return fault.diagnostics
    except OSError as fault:
        return f"the file cannot be read ({fault.strerror})"
    return ""


def _recorded(store: Store, names: Sequence[str]) -> set[str]:
    """Those that are on record now: a clean-up may have been there since."""
    with store.read(SYSTEM) as snapshot:
        view = snapshot.view
        marks = ", ".join("?" for _ in names)
        return {row[0] for row in view.db.rows(f"SELECT sha256 FROM blob WHERE sha256 IN ({marks})", tuple(names))}
