"""The DICOM node on real sockets with dcmtk and pynetdicom as peers, and its end."""

import hashlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicom_peers import CLIP_CLASS, EXAMPLES, PATIENT, STORAGE, Peer, Start, data_set_of, run, small
from pydicom.encaps import generate_frames
from pynetdicom import AE

from dicom_node import archive, dimse, scu
from dicom_node import upper_layer as ul
from dicom_node.contexts import IMPLICIT_LE, JPEG_BASELINE, TRANSFER_SYNTAXES, VERIFICATION
from dicom_node.scp import Node, Policy, StoreRequest
from dicom_node.spool import sweep

TLS = Path(__file__).parent.parent / "data" / "dicom" / "tls"


# --- dcmtk -----------------------------------------------------------------------------------------------------------


@pytest.mark.needs("dcmtk")
def test_echoscu_gets_an_answer(start: Start) -> None:
    spy = start()
    done = run("echoscu", "-v", "-aet", "ECHO7", "-aec", "PASSERELLE", "127.0.0.1", spy.node.port)
    assert done.returncode == 0 and "Success" in done.stderr
    info, studies = spy.end()
    assert (info.calling, info.called, info.ended, info.known, studies) == (
        "ECHO7",
        "PASSERELLE",
        "released",
        False,
        (),
    )
    assert len(spy.echoes) == 1 and "DCMTK" in info.implementation


@pytest.mark.needs("dcmtk")
@pytest.mark.parametrize("nodelay", ["0", "1"])
@pytest.mark.parametrize("pdu", ["4096", "131072"])
def test_a_jpeg_clip_of_storescu_is_accepted_and_playable(start: Start, clip: Path, nodelay: str, pdu: str) -> None:
    spy = start(fsync=True)
    environment = {"TCP_NODELAY": "1"} if nodelay == "1" else {}
    done = run("storescu", "-v", "-xy", "--max-send-pdu", pdu, "127.0.0.1", spy.node.port, clip, **environment)
    assert done.returncode == 0 and "Received Store Response (Success)" in done.stderr
    (request,) = spy.stored
    sent = data_set_of(clip)
    assert spy.data_set() == sent
    assert (request.sha256, request.size) == (hashlib.sha256(sent).hexdigest(), len(sent))
    assert (request.sop_class_uid, request.transfer_syntax_uid) == (CLIP_CLASS, JPEG_BASELINE)
    assert request.header.patient_name == "ÉLAN^Zoé" and request.header.patient_id == PATIENT
    assert request.header.accession_number.value == "TLX0000000000042"
    table = archive.frame_table(spy.kept[0])
    originals = generate_frames(pydicom.dcmread(clip).PixelData, number_of_frames=30)
    assert [archive.frame(spy.kept[0], table, n) for n in range(1, 31)] == list(originals)
    assert spy.end()[1] == (request.header.study_instance_uid,)
    assert not list(spy.spool.iterdir())


@pytest.mark.needs("dcmtk")
def test_the_stored_file_is_read_by_dcmtk_and_pydicom(start: Start, clip: Path) -> None:
    spy = start()
    assert run("storescu", "-xy", "-aet", "ECHO7", "127.0.0.1", spy.node.port, clip).returncode == 0
    spy.end()
    dumped = run("dcmdump", "-M", spy.kept[0])
    assert dumped.returncode == 0 and "E:" not in dumped.stderr and "W:" not in dumped.stderr
    ds = pydicom.dcmread(spy.kept[0])
    assert ds.NumberOfFrames == 30 and ds.file_meta.SourceApplicationEntityTitle == "ECHO7"
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


@pytest.mark.needs("dcmtk")
def test_a_sender_with_nagle_on_does_not_stall(start: Start, tmp_path: Path) -> None:
    spy = start()
    files = [small(tmp_path, number) for number in range(100)]
    began = time.monotonic()
    assert run("storescu", "127.0.0.1", spy.node.port, *files).returncode == 0
    assert len(spy.stored) == 100
    assert time.monotonic() - began < 3.0, "delayed acknowledgements cost 44 ms an object"


@pytest.mark.needs("dcmtk")
def test_parallel_senders_lose_nothing(start: Start, tmp_path: Path) -> None:
    spy = start()
    files = [small(tmp_path, number) for number in range(80)]
    senders = [
        subprocess.Popen(["storescu", "127.0.0.1", str(spy.node.port), *map(str, files[n::4])], stderr=subprocess.PIPE)
        for n in range(4)
    ]
    for sender in senders:
        assert sender.communicate(timeout=60) == (None, b"") and sender.returncode == 0
    assert {r.sop_instance_uid for r in spy.stored} == {f"1.2.3.4.{n}" for n in range(80)}
    assert {spy.end()[1] for _ in senders} == {("1.2.3.4",)}


@pytest.mark.needs("dcmtk")
def test_a_wrong_called_title_is_rejected_with_its_reason(start: Start) -> None:
    spy = start(called=frozenset({"SITE_A"}))
    done = run("echoscu", "-aec", "WRONG", "127.0.0.1", spy.node.port)
    assert done.returncode != 0 and "Called AE Title Not Recognized" in done.stderr
    info = spy.heard.get(timeout=20)
    assert info.ended == "rejected" and "WRONG" in info.reason
    for title in ("SITE_A", "PASSERELLE"):
        assert run("echoscu", "-aec", title, "127.0.0.1", spy.node.port).returncode == 0


@pytest.mark.needs("dcmtk")
@pytest.mark.parametrize(
    ("callers", "known"),
    [
        ({"ECHO7": ()}, True),
        ({"ECHO7": ("127.0.0.0/8",)}, True),
        ({"ECHO7": ("10.0.0.0/8", "::1/128")}, False),
        ({"OTHER": ()}, False),
        ({}, False),
    ],
)
def test_only_callers_of_the_table_are_let_in(start: Start, callers: dict[str, Any], known: bool) -> None:
    spy = start(callers=callers)
    done = run("echoscu", "-aet", "ECHO7", "127.0.0.1", spy.node.port)
    assert (done.returncode == 0) == known
    info = spy.heard.get(timeout=20)
    assert info.known == known
    if not known:
        assert "Calling AE Title Not Recognized" in done.stderr and info.ended == "rejected"


def test_a_wrong_table_of_callers_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/99"):
        Node(("127.0.0.1", 0), Policy(tmp_path, callers={"A": ("10.0.0.0/99",)}), lambda _: 0)


@pytest.mark.needs("dcmtk")
@pytest.mark.parametrize("trusted", [True, False])
def test_tls_asks_for_a_certificate_we_know(start: Start, clip: Path, trusted: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "node.crt", TLS / "node.key")
    context.load_verify_locations(TLS / "node.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    spy = start(tls=context)
    name = "node" if trusted else "stranger"
    keys = ("+tls", TLS / f"{name}.key", TLS / f"{name}.crt", "+cf", TLS / "node.crt")
    done = run("storescu", "-xy", *keys, "127.0.0.1", spy.node.port, clip)
    assert (done.returncode == 0) == trusted
    if trusted:
        assert spy.end()[0].certificate == "localhost" and spy.data_set() == data_set_of(clip)
    else:
        assert not spy.stored


@pytest.mark.parametrize("name", ["node", "stranger"])
def test_our_requester_speaks_tls_with_the_certificate_it_was_given(start: Start, clip: Path, name: str) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(TLS / "node.crt", TLS / "node.key")
    client = ssl.create_default_context(cafile=str(TLS / f"{name}.crt"))
    spy = start(tls=server)
    address = ("127.0.0.1", spy.node.port)
    if name == "node":
        assert scu.store(address, [clip], "PASSERELLE", tls=client)[0][1] == dimse.SUCCESS
        assert spy.data_set() == data_set_of(clip)
    else:
        with pytest.raises(scu.DicomFault) as caught:
            scu.echo(address, "PASSERELLE", tls=client)
        assert (caught.value.stage, caught.value.code) == ("connect", "tls")


# --- pynetdicom ------------------------------------------------------------------------------------------------------


def test_every_example_of_pydicom_arrives_byte_for_byte(start: Start) -> None:
    spy = start()
    files: list[Path] = []
    for path in sorted(EXAMPLES.rglob("*.dcm")):
        try:
            meta = archive.file_meta(path)
        except ValueError:
            continue
        if meta.transfer_syntax_uid in TRANSFER_SYNTAXES and meta.sop_instance_uid and path.stat().st_size > 500:
            files.append(path)
    done = scu.store(("127.0.0.1", spy.node.port), files, "PASSERELLE")
    sent = [path for path, (_, status) in zip(files, done, strict=True) if status == dimse.SUCCESS]
    for number, path in enumerate(sent):
        assert spy.data_set(number) == data_set_of(path), path.name
    # The others have no study, or their file meta information names another object.
    others = {status for _, status in done} - {dimse.SUCCESS}
    assert others <= {dimse.DATA_SET_DOES_NOT_MATCH, dimse.SOP_CLASS_NOT_SUPPORTED}
    assert len(sent) == len(spy.stored) > 55
    assert len({request.transfer_syntax_uid for request in spy.stored}) >= 9


def test_pynetdicom_stores_and_echoes(start: Start, clip: Path) -> None:
    spy = start()
    ae = AE(ae_title="PYNETDICOM")
    ae.add_requested_context(VERIFICATION)
    ae.add_requested_context(CLIP_CLASS, [IMPLICIT_LE, JPEG_BASELINE])
    ae.add_requested_context(CLIP_CLASS, [JPEG_BASELINE, IMPLICIT_LE])
    ae.add_requested_context("1.2.840.10008.5.1.4.1.2.2.1")
    association = ae.associate("127.0.0.1", spy.node.port, ae_title="PASSERELLE")
    assert association.is_established
    accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts}
    assert accepted == {(VERIFICATION, IMPLICIT_LE), (CLIP_CLASS, IMPLICIT_LE), (CLIP_CLASS, JPEG_BASELINE)}
    assert [c.result for c in association.rejected_contexts] == [3]
    assert association.send_c_echo().Status == 0
    assert association.send_c_store(clip).Status == 0
    association.release()
    assert spy.end()[0].ended == "released"
    assert pydicom.dcmread(spy.kept[0]).PixelData == pydicom.dcmread(clip).PixelData


# --- the end ---------------------------------------------------------------------------------------------------------


def test_closing_ends_idle_associations_at_once_and_objects_under_way_in_order(start: Start, tiny: bytes) -> None:
    inside, gate = threading.Event(), threading.Event()

    def wait(_: StoreRequest) -> int:
        inside.set()
        return 0 if gate.wait(20) else 0xA700

    spy = start(wait)
    port = spy.node.port
    with Peer(spy, STORAGE) as idle, Peer(spy, STORAGE) as busy, Peer(spy) as silent:
        busy.store(tiny)
        assert inside.wait(20)
        closer = threading.Thread(target=spy.node.close)
        closer.start()
        assert idle.pdu()[0] == ul.ABORT
        assert silent.pdu()[0] in (ul.ABORT, 0)
        gate.set()
        assert busy.answer().status == dimse.SUCCESS
        assert busy.pdu()[0] == ul.ABORT
        closer.join(20)
        assert not closer.is_alive()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_full_disk_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from dicom_node.spool import Spool\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "spool = Spool(Path(sys.argv[1]), b'meta', 1 << 30)\n"
        "for _ in range(10): spool.write(memoryview(bytes(50_000)))\n"
        "spool.finish(sync=True); spool.close(); print(spool.size, spool.problem)"
    )
    done = run(sys.executable, "-c", code, tmp_path)
    assert done.stdout.startswith("500000 the object cannot be written"), done
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    old, fresh, foreign = tmp_path / "a.dcm", tmp_path / "b.dcm", tmp_path / "c.txt"
    for path in (old, fresh, foreign):
        path.write_bytes(b"x")
    for path in (old, foreign):
        os.utime(path, (1, 1))
    assert sweep(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == [fresh, foreign]
