"""DICOM objects coming in over a real association: kept before 0x0000, summed up, matched by rule and never by a
guess."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import hubs
import pydicom
import pytest
from hubs import ADMIN, PARTNER, REQUESTER, directory, found, hub_on, post, put, read

from dicom_node import archive, sample, scu
from dicom_node.contexts import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from dicom_node.header import Header, Identifier
from dicom_node.scp import Node, StoreRequest
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery import images
from fhir_server.demo import people
from fhir_server.errors import Invalid, NotFound
from fhir_server.imaging import studies
from fhir_server.rest import admin
from fhir_server.store.engine import Store
from fhir_server.store.instances import Instance, Study

Resource = dict[str, Any]
IPP = "DEMO0001"
HOSPITAL = Identifier(IPP, issuer="CH-DEMO")


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store, study_quiet_seconds=0.0)


@pytest.fixture
def node(hub: Hub, tmp_path: Path) -> Iterator[Node]:
    listening = Node(("127.0.0.1", 0), images.policy(hub.settings, tmp_path / "data"), images.receiver(hub))
    listening.start()
    yield listening
    listening.close()


def clip(folder: Path, name: str = "clip.dcm", **more: Any) -> Path:
    who: dict[str, Any] = {"patient_id": HOSPITAL, "patient_name": "MARTIN-TEST^LUCIE", "birth_date": "19940211"}
    path = folder / name
    path.write_bytes(sample.clip(**(who | more)))
    return path


# The ways a sender may write one and the same content.
WRITTEN: dict[str, dict[str, Any]] = {
    "implicit": {"syntax": IMPLICIT_LE},
    "deflated": {"syntax": DEFLATED_LE},
    "undefined": {"undefined": True},
    "implicit-undefined": {"syntax": IMPLICIT_LE, "undefined": True},
    "padded": {"padding": b"\0" * 10},
}


def still(
    path: Path, *, syntax: str = EXPLICIT_LE, undefined: bool = False, padding: bytes = b"", pixels: bytes = b"\0" * 16
) -> Path:
    """An uncompressed image of 4 x 4 pixels with nested sequences, written as told."""
    ds = pydicom.dcmread(BytesIO(sample.clip(patient_id=Identifier(IPP, universal_id="1.2.3"), patient_name="A^B")))
    ds.file_meta.TransferSyntaxUID = syntax
    ds.NumberOfFrames, ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, 4, 4, 1, "MONOCHROME2"
    del ds["PlanarConfiguration"]
    ds.add_new(0x7FE00010, "OB", pixels)
    for sequence in (ds.IssuerOfPatientIDQualifiersSequence, ds.SequenceOfUltrasoundRegions):
        sequence.is_undefined_length = undefined
        for item in sequence:
            item.is_undefined_length_sequence_item = undefined
    if padding:
        ds.add_new(0xFFFCFFFC, "OB", padding)
    ds.walk(lambda _, element: element.value)  # read as values, not bytes: the order of bytes may change
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


def send(node: Node, *paths: Path, calling: str = "ECHO1") -> list[int]:
    return [code for _, code in scu.store(("127.0.0.1", node.port), list(paths), called="PASSERELLE", calling=calling)]


def the_study(hub: Hub) -> Study:
    with hub.store.read(SYSTEM) as snapshot:
        rows = snapshot.studies()
    assert len(rows) == 1
    return rows[0]


def instances(hub: Hub) -> list[Instance]:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.instances(the_study(hub).study_uid)


def work_off(hub: Hub) -> None:
    while images.project_one(hub):
        pass


# --- arrival ---------------------------------------------------------------------------------------------------------


def test_an_object_is_kept_whole_before_it_is_accepted(hub: Hub, node: Node, tmp_path: Path) -> None:
    path = clip(tmp_path, accession_number="ACC1")
    assert send(node, path) == [0x0000]
    kept = instances(hub)[0]
    assert (kept.patient_id, kept.issuer, kept.accession, kept.calling_ae) == (IPP, "CH-DEMO", "ACC1", "ECHO1")
    with hub.store.blobs.file(kept.blob) as blob:
        assert archive.frame(blob, archive.frame_table(blob), 2) == archive.frame(path, archive.frame_table(path), 2)
    assert the_study(hub).dirty
    assert list((tmp_path / "data" / "spool").iterdir()) == [], "nothing is left behind"


def test_the_same_object_again_changes_nothing(hub: Hub, node: Node, tmp_path: Path) -> None:
    path = clip(tmp_path)
    assert send(node, path, path) == [0x0000, 0x0000]
    before = the_study(hub)
    assert send(node, path) == [0x0000]
    assert the_study(hub) == before and len(instances(hub)) == 1


def test_other_data_under_a_known_uid_is_kept_beside_the_first(hub: Hub, node: Node, tmp_path: Path) -> None:
    send(node, clip(tmp_path, instance_uid="2.25.1", study_uid="2.25.2", series_uid="2.25.3"))
    first = instances(hub)
    other = {"description": "autre", "instance_uid": "2.25.1", "study_uid": "2.25.2", "series_uid": "2.25.3"}
    assert send(node, clip(tmp_path, **other)) == [0x0000], "by policy: a resend would change nothing"
    assert instances(hub) == first
    with hub.store.read(SYSTEM) as snapshot:
        conflict = snapshot.conflicts()[0]
        rows = [row.text for row in snapshot.audit_rows()]
    assert conflict.sop_uid == "2.25.1" and hub.store.blobs.exists(conflict.blob)
    assert conflict.blob != first[0].blob
    assert any("conflict of 2.25.1" in text for text in rows)
    assert send(node, clip(tmp_path, **other | {"study_uid": "2.25.9"})) == [0x0000]
    latest, shown = admin.run(hub, ADMIN, "conflicts-list", {})
    assert (latest["study_uid"], latest["same_study"]) == ("2.25.9", False)
    assert (shown["sop_uid"], shown["blob"], shown["calling_ae"]) == ("2.25.1", conflict.blob, "ECHO1")
    assert shown["same_study"] and shown["received_at"] > shown["first"]["received_at"]
    assert (shown["first"]["blob"], shown["first"]["study_uid"]) == (first[0].blob, "2.25.2")
    assert admin.run(hub, ADMIN, "conflicts-list", {"study": "2.25.2", "limit": "5"}) == [shown]
    assert admin.run(hub, ADMIN, "conflicts-list", {"limit": "1"}) == [latest]


def test_the_same_content_written_otherwise_is_the_same_object(hub: Hub, node: Node, tmp_path: Path) -> None:
    first = still(tmp_path / "first.dcm")
    send(node, first)
    before = instances(hub)
    for name, change in WRITTEN.items():
        assert send(node, still(tmp_path / f"{name}.dcm", **change)) == [0x0000]
    assert send(node, still(tmp_path / "pixel.dcm", pixels=b"\1" * 16)) == [0x0000]
    with hub.store.read(SYSTEM) as snapshot:
        assert len(snapshot.conflicts()) == 1, "the one with another pixel"
    assert instances(hub) == before


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ({"syntax": DEFLATED_LE}, {}, "same"),
        ({"syntax": DEFLATED_LE}, {"syntax": IMPLICIT_LE, "undefined": True}, "same"),
        ({"syntax": DEFLATED_LE}, {"syntax": DEFLATED_LE, "padding": b"\0" * 10}, "same"),
        ({}, {"syntax": DEFLATED_LE, "pixels": b"\1" * 16}, "beside"),
        ({"syntax": EXPLICIT_BE}, {"syntax": EXPLICIT_BE}, "same"),
        ({}, {"syntax": EXPLICIT_BE}, "beside"),
        ({"syntax": EXPLICIT_BE}, {}, "beside"),
        ({"syntax": EXPLICIT_BE}, {"syntax": DEFLATED_LE}, "beside"),
    ],
)
def test_an_object_that_comes_again_in_another_syntax_is_the_same_or_kept_beside_the_first(
    hub: Hub, node: Node, tmp_path: Path, first: dict[str, Any], second: dict[str, Any], kept: str
) -> None:
    """Big endian is not compared element by element: other bytes are another object there. Either way the sender hears
    0x0000 and both forms are kept as they came."""
    one, other = still(tmp_path / "one.dcm", **first), still(tmp_path / "other.dcm", **second)
    assert send(node, one) == [0x0000]
    before = instances(hub)
    for _ in range(2):
        assert send(node, other) == [0x0000]
    assert instances(hub) == before and before[0].transfer_syntax == first.get("syntax", EXPLICIT_LE)
    with hub.store.read(SYSTEM) as snapshot:
        conflicts = snapshot.conflicts()
    assert len(conflicts) == (kept == "beside")
    for conflict in conflicts:
        with hub.store.blobs.file(conflict.blob) as path:
            assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == second.get("syntax", EXPLICIT_LE)
    work_off(hub)
    assert not the_study(hub).dirty and the_study(hub).instances == 1


def test_nothing_is_accepted_when_the_commit_fails(hub: Hub, tmp_path: Path) -> None:
    broken = Node(("127.0.0.1", 0), images.policy(hub.settings, tmp_path / "data"), images.receiver(hubs.full(hub)))
    broken.start()
    try:
        assert send(broken, clip(tmp_path)) == [0xA700]
    finally:
        broken.close()
    with hub.store.read(SYSTEM) as snapshot:
        assert snapshot.studies() == []


@pytest.mark.parametrize("sign", ["A\x01B", "é" * 60, "' OR 1=1 --", "A|B,C$D\\", "%00"])
def test_hostile_identifiers_are_kept_and_match_nobody(hub: Hub, node: Node, tmp_path: Path, sign: str) -> None:
    put(hub, PARTNER, people.patient(0))
    path = clip(tmp_path, patient_id=Identifier(sign), patient_name=f"{sign}^X", accession_number=sign[:16])
    assert send(node, path) == [0x0000]
    work_off(hub)
    assert the_study(hub).match_state == "unmatched"
    assert read(hub, the_study(hub).imaging_study)["status"]


def test_unprintable_identifiers_break_no_database(hub: Hub, tmp_path: Path) -> None:
    """What a lenient header reader might hand over: NUL and lone surrogates."""
    path = clip(tmp_path, study_uid="2.25.2", series_uid="2.25.3")
    header = Header(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.3.1",
        sop_instance_uid="2.25.1",
        study_instance_uid="2.25.2",
        series_instance_uid="2.25.3",
        patient_id=Identifier("A\x00\ud800"),
        patient_name="A\x00\ud800",
        accession_number=Identifier("A\x00"),
    )
    syntax = "1.2.840.10008.1.2.4.50"
    arrived = StoreRequest(
        path, header.sop_class_uid, "2.25.1", syntax, "ECHO1", "PASSERELLE", "192.0.2.1", "0" * 64, 1, 0, header
    )
    assert images.receive(hub, arrived) == 0x0000
    work_off(hub)
    assert the_study(hub).match_state == "unmatched"


# --- from study to ImagingStudy --------------------------------------------------------------------------------------


def test_a_study_is_summed_up_and_linked_to_patient_and_request(hub: Hub, node: Node, tmp_path: Path) -> None:
    directory(hub)
    number = next(i["value"] for i in hubs.asked(hub)["identifier"])
    send(node, clip(tmp_path, accession_number=number), clip(tmp_path, "2.dcm", accession_number=number, number=2))
    work_off(hub)
    state = the_study(hub)
    assert (state.match_state, state.dirty) == ("matched", False)
    assert (state.subject, state.request) == ("Patient/patient-01", "ServiceRequest/r")
    shown = found(hub, "ImagingStudy", "basedon=ServiceRequest/r")[0]
    assert shown["subject"]["reference"] == "Patient/patient-01"
    assert shown["numberOfInstances"] == 2 and shown["numberOfSeries"] == 1
    with hub.store.read(SYSTEM) as snapshot:
        assert "study" in {event.kind for event in snapshot.case("ServiceRequest/r")}


def test_a_study_that_came_first_is_matched_when_its_patient_and_request_arrive(
    hub: Hub, node: Node, tmp_path: Path
) -> None:
    number = "EARLY-1"
    send(node, clip(tmp_path, accession_number=number))
    work_off(hub)
    assert (the_study(hub).match_state, the_study(hub).subject) == ("unmatched", "")
    directory(hub)
    work_off(hub)
    assert (the_study(hub).match_state, the_study(hub).subject) == ("patient", "Patient/patient-01")
    kind = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}
    identifier = [{"type": kind, "system": people.ACCESSION_SYSTEM, "value": number}]
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(identifier=identifier))
    work_off(hub)
    assert the_study(hub).match_state == "matched"
    assert len(found(hub, "ImagingStudy")) == 1, "one ImagingStudy through all of it"


def test_images_of_two_people_in_one_study_are_a_matter_for_a_person(hub: Hub, node: Node, tmp_path: Path) -> None:
    directory(hub)
    one = clip(tmp_path, study_uid="2.25.2", instance_uid="2.25.21")
    other = clip(
        tmp_path, "2.dcm", study_uid="2.25.2", instance_uid="2.25.22", patient_id=Identifier("DEMO0002", "CH-DEMO")
    )
    send(node, one, other)
    work_off(hub)
    assert (the_study(hub).match_state, the_study(hub).subject) == ("unmatched", "")
    assert "several patients" in the_study(hub).note
    assert "reference" not in found(hub, "ImagingStudy")[0]["subject"]


def test_images_that_come_while_a_study_is_summed_up_are_not_forgotten(hub: Hub, node: Node, tmp_path: Path) -> None:
    send(node, clip(tmp_path, study_uid="2.25.2"))
    second = clip(tmp_path, "2.dcm", study_uid="2.25.2", instance_uid="2.25.9", number=2)
    images.project_one(hubs.meddled(hub, lambda store: send(node, second)))
    assert the_study(hub).dirty
    work_off(hub)
    assert found(hub, "ImagingStudy")[0]["numberOfInstances"] == 2


def test_a_study_that_changed_under_its_summing_up_comes_again(hub: Hub, node: Node, tmp_path: Path) -> None:
    send(node, clip(tmp_path))
    work_off(hub)
    shown = found(hub, "ImagingStudy")[0]
    hub.store.write(SYSTEM, lambda tx: tx.mark_dirty(study_uid=the_study(hub).study_uid))
    late = hubs.meddled(hub, lambda store: put(hub, PARTNER, shown | {"description": "by hand"}))
    assert images.project_one(late) is True
    assert the_study(hub).dirty, "the other writer won; it is looked at again"
    work_off(hub)
    assert not the_study(hub).dirty


def test_a_study_that_cannot_be_shown_says_so_and_waits(hub: Hub, node: Node, tmp_path: Path) -> None:
    send(node, clip(tmp_path))
    uid = the_study(hub).study_uid
    broken = dataclasses.replace(instances(hub)[0], header='{"study_instance_uid": 5}')
    hub.store.write(SYSTEM, lambda tx: tx.view.db.run("UPDATE dicom_instance SET header = ?", (broken.header,)))
    work_off(hub)
    state = the_study(hub)
    assert (state.study_uid, state.dirty, state.match_state) == (uid, False, "unmatched")
    assert "cannot be shown" in state.note


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_person_says_where_a_study_belongs_and_that_stays(hub: Hub, node: Node, tmp_path: Path) -> None:
    directory(hub)
    hubs.asked(hub)
    send(node, clip(tmp_path, patient_id=Identifier("unknown"), patient_name="X"))
    work_off(hub)
    uid = the_study(hub).study_uid
    assert studies.attach(hub.store, uid, "r")["state"] == "manual"
    work_off(hub)
    assert found(hub, "ImagingStudy", "basedon=ServiceRequest/r")[0]["subject"]["reference"] == "Patient/patient-01"
    hub.store.write(SYSTEM, lambda tx: tx.mark_dirty(study_uid=uid))
    work_off(hub)
    assert (the_study(hub).match_state, the_study(hub).request) == ("manual", "ServiceRequest/r")
    assert [row["match_state"] for row in studies.listed(hub.store, {"state": "manual"}, 10)] == ["manual"]


def test_a_decision_taken_while_the_study_is_matched_is_not_overwritten(hub: Hub, node: Node, tmp_path: Path) -> None:
    directory(hub)
    hubs.asked(hub)
    send(node, clip(tmp_path, patient_id=Identifier("unknown"), patient_name="X"))
    uid = the_study(hub).study_uid
    images.project_one(hubs.meddled(hub, lambda store: studies.attach(store, uid, "ServiceRequest/r")))
    assert (the_study(hub).match_state, the_study(hub).dirty) == ("manual", True)
    work_off(hub)
    assert the_study(hub).request == "ServiceRequest/r"
    assert len(found(hub, "ImagingStudy", "basedon=ServiceRequest/r")) == 1


def test_what_cannot_be_attached_is_told(hub: Hub, node: Node, tmp_path: Path) -> None:
    directory(hub)
    send(node, clip(tmp_path))
    uid = the_study(hub).study_uid
    with pytest.raises(NotFound, match=r"no study 1\.2\.3"):
        studies.attach(hub.store, "1.2.3", "r")
    with pytest.raises(NotFound, match="ServiceRequest/r is not known"):
        studies.attach(hub.store, uid, "r")
    nobody = post(
        hub,
        PARTNER,
        {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": {"display": "?"}},
    )
    with pytest.raises(Invalid, match="is no téléexpertise"):
        studies.attach(hub.store, uid, nobody.id)


def test_who_attaches_images_of_somebody_else_is_told(hub: Hub, node: Node, tmp_path: Path) -> None:
    directory(hub)
    hubs.asked(hub)
    hubs.asked(hub, "s", 1)
    send(node, clip(tmp_path))
    work_off(hub)
    uid = the_study(hub).study_uid
    (had,) = (one["subject"]["reference"] for one in found(hub, "ImagingStudy"))
    case, other = ("s", "Patient/patient-02") if had == "Patient/patient-01" else ("r", "Patient/patient-01")
    told = studies.attach(hub.store, uid, case)["note"]
    assert told.endswith(f"the images were those of {had} and are those of {other} now")
    assert the_study(hub).note == told
