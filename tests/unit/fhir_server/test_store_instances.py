"""DICOM instances and studies on both databases: repeats, conflicts, dirty studies, settling."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search.rows import IndexRows
from fhir_server.store.check import check
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter
from fhir_server.store.instances import NewInstance, Study, StudyFilter

SECOND = 1_000_000


def image(number: int = 1, study: str = "1.2", series: str = "1.2.3", **more: object) -> NewInstance:
    made = NewInstance(
        f"{series}.{number}", study, series, "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.1.2.4.50", "b" * 64, 9,
        f"{number:064}", "{}", patient_id="IPP1", issuer="HOSP", accession="ACC1", calling_ae="ECHO",
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]  # keywords of any type


def add(store: Store, instance: NewInstance) -> str:
    return store.write(SYSTEM, lambda tx: tx.add_instance(instance))


def study(store: Store, uid: str = "1.2") -> Study:
    with store.read(SYSTEM) as snapshot:
        found = snapshot.study(uid)
    assert found is not None
    return found


def quiet(store: Store, uid: str = "1.2") -> int:
    return study(store, uid).dirty_at + 10 * SECOND


def test_a_new_instance_makes_its_study_dirty(store: Store) -> None:
    assert add(store, image(1)) == "new"
    assert add(store, image(2)) == "new"
    assert add(store, image(1, series="1.2.4")) == "new"
    one = study(store)
    assert (one.instances, one.series, one.dirty, one.match_state) == (3, 2, True, "new")
    assert (one.accession, one.patient_id, one.issuer, one.calling_ae) == ("ACC1", "IPP1", "HOSP", "ECHO")
    with store.read(SYSTEM) as snapshot:
        assert [i.sop_uid for i in snapshot.instances("1.2")] == ["1.2.3.1", "1.2.3.2", "1.2.4.1"]
        assert [i.sop_uid for i in snapshot.instances("1.2", "1.2.4")] == ["1.2.4.1"]
        stored = snapshot.instance("1.2.3.1")
        assert stored is not None and stored.data_sha256 == f"{1:064}" and stored.received_at > 0
        assert snapshot.instance("9") is None and snapshot.study("9") is None


def test_the_same_data_again_changes_nothing(store: Store) -> None:
    add(store, image(1))
    before = study(store)
    assert add(store, image(1, peer="other")) == "same"
    assert study(store) == before


def test_other_data_under_the_same_uid_is_kept_as_a_conflict(store: Store) -> None:
    add(store, image(1))
    before = study(store)
    assert add(store, image(1, data_sha256="f" * 64, blob="c" * 64)) == "conflict"
    assert add(store, image(1, data_sha256="f" * 64, blob="c" * 64)) == "conflict"
    assert add(store, image(1, study_uid="9.9")) == "conflict"
    assert study(store) == before
    with store.read(SYSTEM) as snapshot:
        assert [c.blob for c in snapshot.conflicts("1.2")] == ["c" * 64]
        assert [c.study_uid for c in snapshot.conflicts()] == ["9.9", "1.2"], "the latest first"
        assert [c.study_uid for c in snapshot.conflicts(limit=1)] == ["9.9"]


def test_a_study_is_found_by_any_of_its_numbers(store: Store) -> None:
    add(store, image(1))
    add(store, image(1, study="2.2", series="2.2.3", accession="ACC2", patient_id="IPP2"))
    with store.read(SYSTEM) as snapshot:
        for key, expected in (
            ("ACC2", ["2.2"]),
            ("IPP1", ["1.2"]),
            ("2.2", ["2.2"]),
            ("IPP", []),
            ("", ["2.2", "1.2"]),
        ):
            assert [one.study_uid for one in snapshot.studies(StudyFilter(key=key))] == expected, key
        assert len(snapshot.studies(StudyFilter(key="IPP1", accession="ACC2"))) == 0


def test_a_study_is_claimed_once_quiet_and_by_one_worker(store: Store) -> None:
    add(store, image(1))
    at = study(store).dirty_at
    assert store.claim_dirty(at + SECOND, 2) is None
    claimed = store.claim_dirty(at + 2 * SECOND, 2)
    assert claimed is not None and claimed.study_uid == "1.2"
    assert store.claim_dirty(at + 3 * SECOND, 2) is None
    assert store.claim_dirty(at + 70 * SECOND, 2) is not None, "the lease of a worker that died runs out"


def test_settling_records_the_match_and_clears_the_mark(store: Store) -> None:
    add(store, image(1))
    claimed = store.claim_dirty(quiet(store))
    assert claimed is not None
    assert store.write(
        SYSTEM,
        lambda tx: tx.settle_study(claimed, match_state="matched", subject="Patient/1", request="ServiceRequest/1"),
    )
    settled = study(store)
    assert (settled.dirty, settled.match_state, settled.subject, settled.request) == (
        False, "matched", "Patient/1", "ServiceRequest/1",
    )  # fmt: skip
    assert store.claim_dirty(quiet(store)) is None
    with pytest.raises(errors.Fault):
        store.write(SYSTEM, lambda tx: tx.settle_study(claimed, dirty="0"))


def test_a_study_that_changed_while_it_was_matched_stays_dirty(store: Store) -> None:
    add(store, image(1))
    claimed = store.claim_dirty(quiet(store))
    assert claimed is not None
    add(store, image(2))
    assert not store.write(SYSTEM, lambda tx: tx.settle_study(claimed, match_state="unmatched", note="no such IPP"))
    again = store.claim_dirty(quiet(store))
    assert again is not None and again.instances == 2 and again.match_state == "unmatched"


def test_an_arriving_patient_or_request_marks_the_studies_that_wait_for_it(store: Store) -> None:
    add(store, image(1))
    add(store, image(1, study="2.2", series="2.2.3", accession="ACC2", patient_id="IPP2", issuer=""))

    def settle_all() -> None:
        with store.read(SYSTEM) as snapshot:
            found = snapshot.studies()
        for one in found:
            store.write(SYSTEM, lambda tx, one=one: tx.settle_study(one, match_state="unmatched"))  # type: ignore[misc]  # a default has no type

    def dirty() -> set[str]:
        with store.read(SYSTEM) as snapshot:
            found = {one.study_uid for one in snapshot.studies() if one.dirty}
        settle_all()
        return found

    settle_all()
    cases: list[tuple[dict[str, object], set[str]]] = [
        ({"accession": "ACC1"}, {"1.2"}),
        ({"patient_ids": [("IPP1", "HOSP")]}, {"1.2"}),
        ({"patient_ids": [("IPP1", "OTHER")]}, set()),
        ({"patient_ids": [("IPP2", "HOSP")]}, {"2.2"}),
        ({"patient_ids": [("IPP1", ""), ("IPP2", "")]}, {"1.2", "2.2"}),
        ({"study_uid": "2.2"}, {"2.2"}),
        ({"accession": "", "patient_ids": [("", "")]}, set()),
    ]
    for wanted, expected in cases:
        marked = store.write(SYSTEM, lambda tx, wanted=wanted: tx.mark_dirty(**wanted))  # type: ignore[misc]  # a default has no type
        assert (marked, dirty()) == (len(expected), expected), wanted


def test_studies_are_listed_latest_first(store: Store) -> None:
    for number in range(5):
        add(store, image(1, study=f"1.{number}", series=f"1.{number}.1", accession=f"A{number % 2}"))
    with store.read(SYSTEM) as snapshot:
        everything = snapshot.studies()
        assert [one.study_uid for one in everything] == ["1.4", "1.3", "1.2", "1.1", "1.0"]
        first = snapshot.studies(StudyFilter(limit=2))
        rest = snapshot.studies(StudyFilter(before=(first[-1].last_at, first[-1].study_uid)))
        assert first + rest == everything
        assert [one.study_uid for one in snapshot.studies(StudyFilter(accession="A1"))] == ["1.3", "1.1"]
        assert snapshot.studies(StudyFilter(match_state="matched")) == []


def test_instances_of_one_study_arriving_together_are_counted(store: Store) -> None:
    def send(worker: int) -> None:
        for number in range(10):
            add(store, image(number, series=f"1.2.{worker % 2}", sop_uid=f"{worker}.{number}"))

    threads = [threading.Thread(target=send, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (study(store).instances, study(store).series) == (40, 2)


def test_the_patient_of_another_identifier_of_the_images_wakes_their_study(store: Store) -> None:
    add(store, image(1, patient_id="LOCAL", other_ids=("IPP9", "INS9", "IPP9")))
    add(store, image(2, patient_id="LOCAL", other_ids=("IPP9", "OLD9")))
    for wanted, woken in (("IPP9", 1), ("OLD9", 1), ("LOCAL", 1), ("IPP", 0), ("", 0), ("x\0y", 0), ("x" * 9000, 0)):
        claimed = study(store)
        store.write(SYSTEM, lambda tx, one=claimed: tx.settle_study(one, match_state="unmatched"))  # type: ignore[misc]  # a default has no type
        marked = store.write(SYSTEM, lambda tx, value=wanted: tx.mark_dirty(patient_ids=[(value, "")]))  # type: ignore[misc]  # a default has no type
        assert (marked, study(store).dirty) == (woken, bool(woken)), wanted
    with store.read(SYSTEM) as snapshot:
        assert snapshot.messages(InboxFilter(key=("", "IPP9"))) == []
    assert check(store, lambda resource: IndexRows()).counts.get("study", 0) == 0
    store.write(SYSTEM, lambda tx: tx.view.db.run("DELETE FROM dicom_study"))
    told = check(store, lambda resource: IndexRows())
    assert [one.subject for one in told.problems if one.text == "keys of what is not there"] == ["1.2"]
