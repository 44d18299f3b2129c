"""No check is a rubber stamp: each passes against a right peer and fails against a peer that is wrong in its way."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conformance import runner
from conformance.peers.broken_dicom import FAULTS as DICOM_FAULTS
from conformance.peers.broken_dicom import BrokenDicom
from conformance.peers.broken_fhir import FAULTS as FHIR_FAULTS
from conformance.peers.broken_fhir import BrokenFhir
from conformance.peers.broken_files import FAULTS as FILES_FAULTS
from conformance.peers.broken_files import BrokenFiles
from conformance.peers.broken_hl7 import FAULTS as HL7_FAULTS
from conformance.peers.broken_hl7 import BrokenHl7
from conformance.peers.broken_sender import FAULTS as SENDER_FAULTS
from conformance.peers.broken_sender import BrokenSender
from conformance.peers.fault import Fault
from conformance.target import target

PEERS: dict[str, tuple[Callable[..., Any], dict[str, Fault]]] = {
    "fhir": (BrokenFhir, dict(FHIR_FAULTS)),
    "hl7v2": (BrokenHl7, dict(HL7_FAULTS)),
    "hl7v2-sender": (BrokenSender, dict(SENDER_FAULTS)),
    "hl7v2-files": (BrokenFiles, dict(FILES_FAULTS)),
    "dicom": (BrokenDicom, dict(DICOM_FAULTS)),
}
TLS = Path(__file__).resolve().parent.parent / "data" / "conformance" / "tls"
# Senders and those who judge them mostly wait for each other: all their faults are judged side by side, by one process.
SIDE_BY_SIDE = "hl7v2-sender"
EVERY_FAULT = [
    pytest.param(wire, name, id=f"{wire}-{name}", marks=[pytest.mark.xdist_group(wire)] if wire == SIDE_BY_SIDE else [])
    for wire, (_, faults) in PEERS.items()
    for name in faults
]
EVERY_CHECK = [pytest.param(one, id=one.id) for one in runner.load()]


def judge(address: str, *settings: str, seconds: float = 10.0, **chosen: Any) -> runner.Run:
    """One run against a peer that has no search index to wait for."""
    waits = [f"timeout={seconds}", f"send_wait={seconds}", f"resend_wait={min(seconds, 3)}", "quiet=0.3", "settle=0.02"]
    return runner.run(target([address], [*waits, *settings]), **chosen)


def by_status(run: runner.Run) -> dict[str, list[str]]:
    """Status -> ids and messages, so that a failing assertion explains itself."""
    told: dict[str, list[str]] = {}
    for one in run.results:
        told.setdefault(one.status, []).append(f"{one.id} {one.message}".strip())
    return told


@pytest.mark.parametrize("wire", PEERS)
def test_a_right_peer_passes_every_check_of_its_wire(wire: str) -> None:
    peer, _ = PEERS[wire]
    with peer() as right:
        run = judge(right.target, only=[f"{wire}.*"])
    assert by_status(run).keys() == {"pass"}, by_status(run)
    assert run.exit_code == 0


@pytest.mark.parametrize("one", EVERY_CHECK)
def test_a_check_passes_alone_without_those_before_it(one: runner.Check) -> None:
    peer, _ = PEERS[one.wire]
    with peer() as right:
        assert by_status(judge(right.target, only=[one.id])) == {"pass": [one.id]}


def judge_fault(wire: str, name: str) -> tuple[runner.Run, runner.Run]:
    """The checks that must notice the fault, and all others of the wire."""
    peer, faults = PEERS[wire]
    fault = faults[name]
    with peer(name) as wrong:
        caught = judge(wrong.target, seconds=1.0 if fault.silent else 10.0, only=fault.caught_by)
    others = [one.id for one in runner.load() if one.wire == wire and one.id not in fault.caught_by]
    with peer(name) as wrong:
        return caught, judge(wrong.target, only=others)


@pytest.fixture(scope="module")
def judged() -> Iterator[Callable[[str, str], tuple[runner.Run, runner.Run]]]:
    """`judge_fault`; with the first fault of those judged side by side all of them begin."""
    begun: dict[str, Future[tuple[runner.Run, runner.Run]]] = {}
    names = PEERS[SIDE_BY_SIDE][1]
    with ThreadPoolExecutor(len(names)) as pool:

        def find(wire: str, name: str) -> tuple[runner.Run, runner.Run]:
            if wire != SIDE_BY_SIDE:
                return judge_fault(wire, name)
            if not begun:
                runner.load()  # not by several threads
                begun.update({one: pool.submit(judge_fault, wire, one) for one in names})
            return begun[name].result()

        yield find


@pytest.mark.parametrize(("wire", "name"), EVERY_FAULT)
def test_a_fault_fails_just_the_checks_that_look_at_it_and_they_say_why(
    wire: str, name: str, judged: Callable[[str, str], tuple[runner.Run, runner.Run]]
) -> None:
    caught, rest = judged(wire, name)
    assert by_status(caught).keys() == {"fail"}, by_status(caught)
    assert caught.exit_code == 1
    assert by_status(rest).keys() == {"pass"}, by_status(rest)
    for result in caught.results:
        assert result.expected, result.id
        assert result.found, result.id
        assert result.clause.startswith("http") or result.clause in result.verifies
        assert result.evidence, result.id


@pytest.mark.parametrize("one", EVERY_CHECK)
def test_a_check_has_a_fault_that_no_other_check_would_notice(one: runner.Check) -> None:
    faults = PEERS[one.wire][1].values()
    assert any(fault.caught_by == (one.id,) for fault in faults)


@pytest.mark.parametrize("wire", ["fhir", "hl7v2", "dicom"])
def test_every_wire_can_be_judged_over_mutual_tls(wire: str) -> None:
    peer, _ = PEERS[wire]
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=TLS / "peer.pem")
    server.load_cert_chain(TLS / "peer.pem", TLS / "peer.key")
    server.verify_mode = ssl.CERT_REQUIRED
    files = [f"ca_file={TLS / 'peer.pem'}", f"cert_file={TLS / 'peer.pem'}", f"key_file={TLS / 'peer.key'}"]
    with peer(tls=server) as right:
        run = judge(right.target, *files, only=[f"{wire}.*"])
        stranger = judge(right.target, only=[f"{wire}.*"])
    assert by_status(run).keys() == {"pass"}, by_status(run)
    assert by_status(stranger).keys() == {"error"}, by_status(stranger)
    assert "certificate verify failed" in stranger.results[0].message


def test_a_sender_can_be_judged_over_mutual_tls() -> None:
    client = ssl.create_default_context(cafile=TLS / "peer.pem")
    client.load_cert_chain(TLS / "peer.pem", TLS / "peer.key")
    files = [f"ca_file={TLS / 'peer.pem'}", f"cert_file={TLS / 'peer.pem'}", f"key_file={TLS / 'peer.key'}"]
    with BrokenSender(tls=client) as right:
        run = judge(right.target, *files, only=["hl7v2-sender.after-a*"])
    assert by_status(run).keys() == {"pass"}, by_status(run)
    stranger = ssl.create_default_context(cafile=TLS / "peer.pem")
    with BrokenSender(tls=stranger) as unknown:
        run = judge(unknown.target, *files, seconds=1.0, only=["hl7v2-sender.block"])
    assert by_status(run).keys() == {"fail"}, by_status(run)


def test_what_a_sender_sent_is_recorded_once_and_judged_as_files(tmp_path: Path) -> None:
    folder = tmp_path / "sent"
    with BrokenSender() as peer:
        judge(peer.target, f"record={folder}", only=["hl7v2-sender.after-ar", "hl7v2-sender.after-aa"])
    assert 2 <= len(list(folder.iterdir())) <= 4
    run = judge(f"hl7v2-files={folder}", only=["hl7v2-files.*"])
    assert set(by_status(run)) == {"pass", "skip"}, by_status(run)


def test_an_unknown_fault_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no fault is called no-such-fault"):
        BrokenHl7("no-such-fault")


def test_a_declared_policy_of_any_called_ae_title_passes() -> None:
    with BrokenDicom("any-called-ae") as peer:
        declared = target([peer.target], ["any_called_ae=yes"])
        assert by_status(runner.run(declared, only=["dicom.called-ae"])) == {"pass": ["dicom.called-ae"]}


@pytest.fixture
def pynetdicom_acceptor() -> Iterator[tuple[str, list[Any]]]:
    """An acceptor of another make; what it stored comes along."""
    from pynetdicom import AE, evt
    from pynetdicom.sop_class import UltrasoundImageStorage, Verification

    stored: list[Any] = []
    there = threading.Event()

    def keep(event: Any) -> int:
        stored.append(event.dataset)
        there.set()
        return 0x0000

    entity = AE("OTHERMAKE")
    entity.require_called_aet = True
    entity.add_supported_context(Verification)
    entity.add_supported_context(UltrasoundImageStorage, ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        yield f"dicom=dicom://OTHERMAKE@127.0.0.1:{server.socket.getsockname()[1]}", stored
    finally:
        server.shutdown()


def test_an_acceptor_of_another_make_passes_and_can_read_the_image(
    pynetdicom_acceptor: tuple[str, list[Any]],
) -> None:
    address, stored = pynetdicom_acceptor
    run = judge(address, only=["dicom.*"])
    assert by_status(run).keys() == {"pass"}, by_status(run)
    assert [image.Modality for image in stored] == ["US"] * 3
    assert len(stored[0].PixelData) == 64


@pytest.mark.needs("dcmtk")
def test_dcmtk_can_verify_and_store_at_the_right_peer(tmp_path: Path) -> None:
    from pydicom import dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_dataset
    from pydicom.uid import ExplicitVRLittleEndian

    from conformance.samples import ultrasound
    from conformance.target import Options

    instance, data = ultrasound(Options(), str(ExplicitVRLittleEndian))
    image = read_dataset(DicomBytesIO(data), is_implicit_VR=False, is_little_endian=True)
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = instance
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(tmp_path / "image.dcm", image, enforce_file_format=True)
    with BrokenDicom() as peer:
        place = ["-aec", "BROKEN", "127.0.0.1", str(peer.port)]
        for words in (["echoscu", *place], ["storescu", *place, str(tmp_path / "image.dcm")]):
            done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 0, done.stderr
