"""WADO-RS: frames and objects as they came, and an OperationOutcome for what is not there or not offered."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hubs
import pytest
from hubs import PARTNER, hub_on

from dicom_node import archive, sample, scu
from dicom_node.header import Identifier
from dicom_node.scp import Node
from fhir_server.changes import Hub
from fhir_server.delivery import images
from fhir_server.rest import dicomweb
from fhir_server.rest.http import Request, Response
from fhir_server.store.blob_seal import Keys
from fhir_server.store.blobs import Blobs
from fhir_server.store.engine import Store

STUDY, SERIES, INSTANCE = "2.25.1", "2.25.2", "2.25.3"
ONE = f"/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}"
JPEG = "image/jpeg; transfer-syntax=*"


@pytest.fixture(params=["plain", "encrypted"])
def hub(
    request: pytest.FixtureRequest, open_url: Callable[..., Store], sqlite_url: str, tmp_path: Path
) -> Iterator[Hub]:
    """A hub with one stored clip, kept as it is or encrypted."""
    keys = Keys({"k": b"k" * 32}, "k") if request.param == "encrypted" else Keys()
    made = hub_on(open_url(sqlite_url, blobs=Blobs(tmp_path / "data" / "blobs", keys=keys)))
    node = Node(("127.0.0.1", 0), images.policy(made.settings, tmp_path / "data"), images.receiver(made))
    node.start()
    assert [code for _, code in scu.store(("127.0.0.1", node.port), [clip(tmp_path)], called="PASSERELLE")] == [0]
    node.close()
    yield made
    gc.collect()  # an answer nobody read to its end lets go of its files
    assert list(made.store.blobs.new_folder().iterdir()) == []


def clip(folder: Path) -> Path:
    path = folder / "clip.dcm"
    uids = {"study_uid": STUDY, "series_uid": SERIES, "instance_uid": INSTANCE}
    path.write_bytes(sample.clip(patient_id=Identifier("X"), patient_name="X", **uids))
    return path


def get(hub: Hub, path: str, accept: str = "*/*", method: str = "GET") -> Response:
    return dicomweb.answer(hub, Request(method, path, (), {"accept": accept}, b"", PARTNER, "http://x/dicomweb", {}))


def content(response: Response) -> bytes:
    return response.body if response.stream is None else b"".join(response.stream)


def said(response: Response) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(response.body)
    assert outcome["resourceType"] == "OperationOutcome"
    assert outcome["issue"][0]["expression"] and outcome["issue"][0]["diagnostics"]
    return outcome


def test_a_frame_is_served_as_it_came(hub: Hub, tmp_path: Path) -> None:
    path = clip(tmp_path)
    for number in (1, 2, 30):
        answer = get(hub, f"{ONE}/frames/{number}", JPEG)
        assert answer.status == 200
        assert content(answer) == archive.frame(path, archive.frame_table(path), number)


def test_frames_asked_for_together_come_in_that_order(hub: Hub, tmp_path: Path) -> None:
    path = clip(tmp_path)
    table = archive.frame_table(path)
    body = content(get(hub, f"{ONE}/frames/3,1", 'multipart/related; type="image/jpeg"; transfer-syntax=*'))
    third, first = (archive.frame(path, table, number) for number in (3, 1))
    assert 0 < body.index(third) < body.index(first)


@pytest.mark.parametrize("level", [f"/studies/{STUDY}", f"/studies/{STUDY}/series/{SERIES}", ONE])
def test_an_object_is_served_whole_and_its_metadata_as_json(hub: Hub, tmp_path: Path, level: str) -> None:
    whole = get(hub, level, "multipart/related; type=application/dicom; transfer-syntax=*")
    assert whole.status == 200 and b"DICM" in content(whole)
    told = get(hub, f"{level}/metadata", "application/dicom+json")
    assert json.loads(content(told))[0]["0020000D"]["Value"] == [STUDY]


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "/studies", "/nothing", f"/studies/{STUDY}/nothing", "/studies/9.9", f"/studies/{STUDY}/series/9.9",
        f"/studies/{STUDY}/series/{SERIES}/instances/9.9", f"{ONE}/frames/31", f"{ONE}/frames/0",
        f"{ONE}/frames/999999999", f"{ONE}/frames/x", f"{ONE}/frames/1,", f"{ONE}/frames/" + "1," * 2000 + "1",
        f"{ONE}/frames/-1",
        "/studies/" + "1" * 65, "/studies/1.2'%20OR%201=1", "/studies/../admin",
        f"/studies/9.9/series/{SERIES}/instances/{INSTANCE}",
    ],
)  # fmt: skip
def test_what_is_not_there_is_404(hub: Hub, path: str) -> None:
    answer = get(hub, path)
    assert answer.status == 404
    said(answer)


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (f"{ONE}/frames/1", "image/png"),
        (f"{ONE}/frames/1", "text/html"),
        (ONE, "application/json"),
        (f"{ONE}/metadata", "application/dicom+xml"),
    ],
)
def test_a_form_that_is_not_offered_is_406(hub: Hub, path: str, accept: str) -> None:
    answer = get(hub, path, accept)
    assert answer.status == 406
    said(answer)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_images_are_only_read(hub: Hub, method: str) -> None:
    answer = get(hub, ONE, method=method)
    assert answer.status == 405
    said(answer)


def test_an_object_whose_file_is_gone_is_a_fault_of_ours_and_not_silence(hub: Hub) -> None:
    with hub.store.read(hubs.SYSTEM) as snapshot:
        blob = snapshot.instances(STUDY)[0].blob
    Path(hub.store.blobs.at.copies(blob)[0].place).unlink()
    for path in (f"{ONE}/frames/1", ONE, f"{ONE}/metadata"):
        answer = get(hub, path)
        assert answer.status == 500, path
        said(answer)


def test_an_answer_of_many_objects_holds_one_at_a_time(hub: Hub, tmp_path: Path) -> None:
    many = 40
    node = Node(("127.0.0.1", 0), images.policy(hub.settings, tmp_path / "data"), images.receiver(hub))
    node.start()
    files = []
    for number in range(many):
        files.append(tmp_path / f"{number}.dcm")
        uids = {"study_uid": "2.25.9", "series_uid": "2.25.8", "instance_uid": f"2.25.7.{number}"}
        files[-1].write_bytes(sample.clip(patient_id=Identifier("X"), patient_name="X", **uids))
    assert {code for _, code in scu.store(("127.0.0.1", node.port), files, called="PASSERELLE")} == {0}
    node.close()
    arriving, seen = hub.store.blobs.new_folder(), 0
    everything = "multipart/related; type=application/dicom; transfer-syntax=*"
    for path, accept in (("/studies/2.25.9", everything), ("/studies/2.25.9/metadata", "*/*")):
        for method in ("HEAD", "GET"):
            held = len(os.listdir("/proc/self/fd"))
            answer = get(hub, path, accept, method)
            assert answer.status == 200 and answer.stream is not None
            assert list(arriving.iterdir()) == [], "nothing is copied before the first byte is asked for"
            for _ in answer.stream if method == "GET" else ():
                seen = max(seen, len(list(arriving.iterdir())))
                assert len(os.listdir("/proc/self/fd")) <= held + 3
    assert seen <= 1


def test_a_refused_frame_leaves_no_copy(hub: Hub) -> None:
    gc.disable()
    try:
        for path, accept in ((f"{ONE}/frames/1", "text/html"), (f"{ONE}/frames/99", JPEG)):
            assert get(hub, path, accept).status in (404, 406)
            assert list(hub.store.blobs.new_folder().iterdir()) == []
    finally:
        gc.enable()
