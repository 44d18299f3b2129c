"""DICOM instances and studies as stored: one row per SOP instance, one per study with the state of its matching.

A study that got images, or whose patient or request arrived, is dirty; a worker claims it once it has been quiet,
matches it and settles it, unless it changed meanwhile. The same SOP Instance UID with other data is a conflict that
is kept beside the first and never replaces it. Times are microseconds UTC.

Source: PS3.4 B.2 and PS3.3 C.7.6 (https://dicom.nema.org/medical/dicom/current/output/html/part04.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fhir_server import errors
from fhir_server.search.values import bounded
from fhir_server.store.blob_place import Kept
from fhir_server.store.dialect import Row
from fhir_server.store.inbox import add_keys, record_blob
from fhir_server.store.view import View, lock, printable

Arrived = Literal["new", "same", "conflict"]


@dataclass(frozen=True, slots=True)
class NewInstance:
    """One stored object. `blob` is the sha256 of the file as kept in the blobs, `data_sha256` of the data set
    without its file meta information; `header` the DICOM JSON of the attributes kept at hand, `frames` the JSON
    table of [offset, length] of each frame in the blob. `other_ids` are the patient's further identifiers (0010,1002),
    which wake the study too when their patient arrives."""

    sop_uid: str
    study_uid: str
    series_uid: str
    sop_class: str
    transfer_syntax: str
    blob: str
    size: int
    data_sha256: str
    header: str
    frames: str = "[]"
    patient_id: str = ""
    issuer: str = ""
    accession: str = ""
    calling_ae: str = ""
    peer: str = ""
    other_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as stored."""

    sop_uid: str
    study_uid: str
    series_uid: str
    sop_class: str
    transfer_syntax: str
    blob: str
    size: int
    data_sha256: str
    header: str
    frames: str
    patient_id: str
    issuer: str
    accession: str
    calling_ae: str
    peer: str
    received_at: int


@dataclass(frozen=True, slots=True)
class Conflicting:
    """Other data that came under a SOP Instance UID already stored."""

    sop_uid: str
    study_uid: str
    blob: str
    size: int
    data_sha256: str
    calling_ae: str
    peer: str
    received_at: int


@dataclass(frozen=True, slots=True)
class Study:
    """A study and its matching. `match_state`: new, matched, unmatched (à rapprocher), manual; `subject`, `request`,
    `imaging_study` are references or ''. `dirty_at` tells whether it changed since it was read."""

    study_uid: str
    accession: str
    patient_id: str
    issuer: str
    calling_ae: str
    instances: int
    series: int
    dirty: bool
    dirty_at: int
    match_state: str
    subject: str
    request: str
    imaging_study: str
    note: str
    first_at: int
    last_at: int


_INSTANCE = (
    "sop_uid, study_uid, series_uid, sop_class, transfer_syntax, blob, size, data_sha256, header, frames, patient_id, "
    "issuer, accession, calling_ae, peer, received_at"
)
_STUDY = (
    "study_uid, accession, patient_id, issuer, calling_ae, instances, series, dirty, dirty_at, match_state, subject, "
    "request, imaging_study, note, first_at, last_at"
)


def _study(row: Row) -> Study:
    return Study(*(*row[:7], bool(row[7]), *row[8:]))


BOX, OTHER_ID = "study", "patient-id"
"""How a study's further patient identifiers stand among the keys of messages."""


def add(view: View, new: NewInstance) -> Arrived:
    """Stores the instance's row and marks its study; the blob is on the disk before."""
    now = view.now()
    lock(view, f"study|{new.study_uid}")
    known_series = view.db.one(
        "SELECT 1 FROM dicom_instance WHERE study_uid = ? AND series_uid = ? LIMIT 1", (new.study_uid, new.series_uid)
    )
    inserted = view.db.one(
        f"INSERT INTO dicom_instance ({_INSTANCE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (sop_uid) DO NOTHING RETURNING sop_uid",
        (
            new.sop_uid, new.study_uid, new.series_uid, new.sop_class, new.transfer_syntax, new.blob, new.size,
            new.data_sha256, new.header, new.frames, new.patient_id, new.issuer, new.accession, new.calling_ae,
            new.peer, now,
        ),
    )  # fmt: skip
    if inserted is None:
        return _again(view, new, now)
    record_blob(view, Kept(new.blob, new.size, view.blobs.form), "application/dicom")
    view.db.run(
        "INSERT INTO dicom_study (study_uid, accession, patient_id, issuer, calling_ae, instances, series, dirty, "
        "dirty_at, first_at, last_at) VALUES (?, ?, ?, ?, ?, 1, 1, 1, ?, ?, ?) "
        "ON CONFLICT (study_uid) DO UPDATE SET instances = dicom_study.instances + 1, "
        "series = dicom_study.series + ?, dirty = 1, dirty_at = excluded.dirty_at, last_at = excluded.last_at, "
        "accession = CASE WHEN dicom_study.accession = '' THEN excluded.accession ELSE dicom_study.accession END, "
        "patient_id = CASE WHEN dicom_study.patient_id = '' THEN excluded.patient_id ELSE dicom_study.patient_id END, "
        "issuer = CASE WHEN dicom_study.issuer = '' THEN excluded.issuer ELSE dicom_study.issuer END",
        (
            new.study_uid, new.accession, new.patient_id, new.issuer, new.calling_ae, now, now, now,
            0 if known_series else 1,
        ),
    )  # fmt: skip
    add_keys(view, BOX, new.study_uid, [(OTHER_ID, value) for value in new.other_ids])
    view.woken = True
    return "new"


def _again(view: View, new: NewInstance, now: int) -> Arrived:
    row = view.db.one("SELECT data_sha256, study_uid FROM dicom_instance WHERE sop_uid = ?", (new.sop_uid,))
    if row is None:
        raise errors.Fault(f"instance {new.sop_uid} vanished")
    if row[0] == new.data_sha256 and row[1] == new.study_uid:
        return "same"
    record_blob(view, Kept(new.blob, new.size, view.blobs.form), "application/dicom")
    view.db.run(
        "INSERT INTO dicom_conflict (sop_uid, study_uid, blob, size, data_sha256, calling_ae, peer, received_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (sop_uid, data_sha256) DO NOTHING",
        (new.sop_uid, new.study_uid, new.blob, new.size, new.data_sha256, new.calling_ae, new.peer, now),
    )
    return "conflict"


def mark_dirty(view: View, accession: str, patient_ids: Sequence[tuple[str, str]], study_uid: str) -> int:
    """Marks the studies of an accession number, of patient ids (an issuer of '' matches any), or one study."""
    conditions: list[tuple[str, tuple[object, ...]]] = []
    if accession:
        conditions.append(("accession = ?", (accession,)))
    if study_uid:
        conditions.append(("study_uid = ?", (study_uid,)))
    for patient_id, issuer in patient_ids:
        patient_id = printable(patient_id, 200)
        if patient_id:
            by_key = (
                f"SELECT k.message FROM message_key k WHERE k.kind = '{OTHER_ID}' AND k.value = ? AND k.box = '{BOX}'"
            )
            conditions.append((f"study_uid IN ({by_key})", (bounded(patient_id),)))
        if patient_id and issuer:
            conditions.append(("patient_id = ? AND issuer IN (?, '')", (patient_id, issuer)))
        elif patient_id:
            conditions.append(("patient_id = ?", (patient_id,)))
    if not conditions:
        return 0
    wanted = " OR ".join(f"({sql})" for sql, _ in conditions)
    params = [value for _, values in conditions for value in values]
    changed = view.db.count(f"UPDATE dicom_study SET dirty = 1, dirty_at = ? WHERE {wanted}", (view.now(), *params))
    view.woken = view.woken or changed > 0
    return changed


def claim_dirty(view: View, now: int, quiet_seconds: float, lease_seconds: float) -> Study | None:
    """The study that has waited longest, quiet since `quiet_seconds`; others leave it alone for `lease_seconds`."""
    quiet = now - int(quiet_seconds * 1_000_000)
    row = view.db.one(
        "SELECT study_uid FROM dicom_study WHERE dirty = 1 AND dirty_at <= ? AND claimed_until <= ? "
        "ORDER BY dirty_at LIMIT 1" + view.db.dialect.skip_locked,
        (quiet, now),
    )
    if row is None:
        return None
    taken = view.db.one(
        f"UPDATE dicom_study SET claimed_until = ? WHERE study_uid = ? RETURNING {_STUDY}",
        (now + int(lease_seconds * 1_000_000), row[0]),
    )
    return None if taken is None else _study(taken)


_SETTLED = ("match_state", "subject", "request", "imaging_study", "note")


def settle(view: View, seen: Study, **found: str) -> bool:
    """Writes what matching found (`match_state`, `subject`, `request`, `imaging_study`, `note`) and clears the mark.

    False when images or a mark came after `seen` was read: what was found is kept, and the study stays dirty.
    """
    unknown = set(found) - set(_SETTLED)
    if unknown:
        raise errors.Fault(f"a study has no {', '.join(sorted(unknown))}")
    sets = "".join(f"{name} = ?, " for name in found)
    values = [printable(value, 1000) for value in found.values()]
    row = view.db.one(
        f"UPDATE dicom_study SET {sets}claimed_until = 0, dirty = CASE WHEN dirty_at = ? THEN 0 ELSE 1 END "
        "WHERE study_uid = ? RETURNING dirty",
        (*values, seen.dirty_at, seen.study_uid),
    )
    return row is not None and row[0] == 0


def get(view: View, sop_uid: str) -> Instance | None:
    row = view.db.one(f"SELECT {_INSTANCE} FROM dicom_instance WHERE sop_uid = ?", (sop_uid,))
    return None if row is None else Instance(*row)


def of_study(view: View, study_uid: str, series_uid: str = "") -> list[Instance]:
    """The instances of a study, or of one series, by series and order of arrival."""
    where, params = ("", (study_uid,)) if not series_uid else (" AND series_uid = ?", (study_uid, series_uid))
    rows = view.db.rows(
        f"SELECT {_INSTANCE} FROM dicom_instance WHERE study_uid = ?{where} ORDER BY series_uid, received_at, sop_uid",
        params,
    )
    return [Instance(*row) for row in rows]


def study(view: View, study_uid: str) -> Study | None:
    row = view.db.one(f"SELECT {_STUDY} FROM dicom_study WHERE study_uid = ?", (study_uid,))
    return None if row is None else _study(row)


@dataclass(frozen=True, slots=True)
class StudyFilter:
    """All conditions hold together; '' means any. `key` is any of a study's numbers and references; `before` the last
    row's (last_at, study_uid)."""

    match_state: str = ""
    key: str = ""
    accession: str = ""
    patient_id: str = ""
    issuer: str = ""
    subject: str = ""
    request: str = ""
    imaging_study: str = ""
    before: tuple[int, str] = (0, "")
    limit: int = 50


def studies(view: View, wanted: StudyFilter) -> list[Study]:
    """The latest first."""
    names = ("match_state", "accession", "patient_id", "issuer", "subject", "request", "imaging_study")
    kept = [(f"{name} = ?", getattr(wanted, name)) for name in names if getattr(wanted, name)]
    conditions = [sql for sql, _ in kept]
    params: list[object] = [value for _, value in kept]
    if wanted.key:
        numbers = ("study_uid", "accession", "patient_id", "subject", "request", "imaging_study")
        conditions.append(f"? IN ({', '.join(numbers)})")
        params.append(wanted.key)
    if wanted.before[0]:
        conditions.append("(last_at, study_uid) < (?, ?)")
        params.extend(wanted.before)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    rows = view.db.rows(
        f"SELECT {_STUDY} FROM dicom_study{where} ORDER BY last_at DESC, study_uid DESC LIMIT ?",
        (*params, wanted.limit),
    )
    return [_study(row) for row in rows]


def conflicts(view: View, study_uid: str = "", limit: int = 50) -> list[Conflicting]:
    """The latest first; '' means any study."""
    where, params = ("WHERE study_uid = ?", (study_uid,)) if study_uid else ("", ())
    rows = view.db.rows(
        "SELECT sop_uid, study_uid, blob, size, data_sha256, calling_ae, peer, received_at FROM dicom_conflict "
        f"{where} ORDER BY seq DESC LIMIT ?",
        (*params, limit),
    )
    return [Conflicting(*row) for row in rows]
