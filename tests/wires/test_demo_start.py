"""The demo's start and its partners: what is taken by somebody else is told, and nothing is deleted or believed."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

from conformance.peers import mail, mllp
from dicom_node import archive
from fhir_server import cli
from fhir_server.app import Server
from fhir_server.commands import serving
from fhir_server.config import ConfigError, Settings
from fhir_server.context import SYSTEM
from fhir_server.demo import peers as partners
from fhir_server.demo import people, story
from fhir_server.demo import run as demo
from fhir_server.demo.peers import Peers
from fhir_server.demo.seed import REQUESTS
from fhir_server.store.folder import DataFolderLock
from hl7v2 import ack
from hl7v2 import mllp as wire

ROOT = Path(__file__).resolve().parent.parent.parent
HOST = "127.0.0.1"
PORTS = ("http", "mllp", "dicom", "dpi", "pfi", "smtp", "imap")
ADT = b"MSH|^~\\&|A|B|C|D|20261121||ADT^A01|1|P|2.5\r"


@pytest.fixture
def ports(free_port: Callable[[], int]) -> dict[str, int]:
    return {name: free_port() for name in PORTS}


@pytest.fixture
def words(tmp_path: Path, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A call of the demo on ports of its own, in a folder with content of an earlier one."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    (data / "blobs").mkdir(parents=True)
    (data / "passerelle.db").write_bytes(b"an earlier demo")
    (data / "blobs" / "one").write_bytes(b"content")
    options = [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    return ["demo", "--data-dir", str(data), *options]


def kept(folder: Path) -> bool:
    data = folder / "data"
    return (data / "passerelle.db").read_bytes() == b"an earlier demo" and (data / "blobs" / "one").exists()


@contextlib.contextmanager
def stranger(port: int) -> Iterator[None]:
    """Somebody else who listens."""
    with socket.create_server((HOST, port)):
        yield


def test_a_fresh_demo_deletes_nothing_of_one_that_runs(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with DataFolderLock(tmp_path / "data", http_url="http://127.0.0.1:8080"):
        assert cli.main([*words, "--fresh"]) == 1
        assert kept(tmp_path)
    told = capsys.readouterr().err
    assert f"Process {os.getpid()} already serves" in told and "stop it first" in told


@pytest.mark.parametrize("taken", PORTS)
def test_a_port_of_somebody_else_is_named_before_anything_is_deleted(
    tmp_path: Path, words: list[str], ports: dict[str, int], taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with stranger(ports[taken]):
        assert cli.main([*words, "--fresh"]) == 2
    told = capsys.readouterr().err
    assert f"port {ports[taken]} " in told and f"--{taken}-port" in told and "Traceback" not in told
    assert kept(tmp_path)


@pytest.mark.parametrize(("taken", "option"), [("dpi", "--dpi-port"), ("pfi", "--pfi-port"), ("imap", "--imap-port")])
def test_a_partner_is_ready_only_when_it_says_so_itself(
    tmp_path: Path, ports: dict[str, int], taken: str, option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    numbers = {name: ports[name] for name in ("dpi", "pfi", "smtp", "imap")}
    started = Peers(tmp_path, mllp=(HOST, ports["mllp"]), **numbers)
    try:
        with stranger(ports[taken]), pytest.raises(ConfigError, match=f"{ports[taken]}.*{option}"):
            started.start()
    finally:
        started.close()
    assert "Traceback" not in capfd.readouterr().err


def test_fresh_forgets_and_kept_data_follow_the_partners_to_other_ports(
    tmp_path: Path, ports: dict[str, int], free_port: Callable[[], int]
) -> None:
    data = tmp_path / "data"
    (data / "later").mkdir(parents=True)
    own: dict[str, Any] = {f"{name}_port": ports[name] for name in ("http", "mllp", "dicom")}
    mailed: dict[str, Any] = {name: f"{HOST}:{ports[name]}" for name in ("smtp", "imap")}
    settings = replace(Settings(**demo.DEFAULTS), data_dir=str(data), **own, **mailed)
    ended = threading.Event()
    ended.set()
    assert demo.run(settings, fresh=True, stop=ended, dpi=ports["dpi"], pfi=ports["pfi"]) == 0
    assert not (data / "later").exists()
    moved = free_port()
    assert demo.run(settings, fresh=False, stop=ended, dpi=moved, pfi=ports["pfi"]) == 0
    server = Server(settings)
    server.start()
    try:
        with server.hub.store.read(SYSTEM) as snapshot:
            stored = snapshot.get("Endpoint", "dpi")
        assert stored is not None and str(moved) in stored.resource()["address"]
    finally:
        server.close()


def test_recordings_go_on_after_those_of_an_earlier_start(tmp_path: Path) -> None:
    for turn in range(2):
        with mllp.Peer(record=tmp_path) as peer, socket.create_connection((HOST, peer.port), timeout=10) as sock:
            sock.sendall(b"\x0b" + ADT.replace(b"|1|", b"|%d|" % turn) + b"\x1c\r")
            peer.wait_for(1)
    assert [raw.split(b"|")[9] for raw in partners.received(tmp_path, ".")] == [b"0", b"1"]


def test_a_partner_without_its_port_says_so_in_one_line(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    call = [sys.executable, "-m", "conformance.peers.mllp", "--port", str(port)]
    with stranger(port):
        ended = subprocess.run(call, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 1 and ended.stderr.count(b"\n") == 1 and str(port).encode() in ended.stderr


def test_the_mail_operator_ends_quietly_while_somebody_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        operator = mail.Running(mail.Settings(tmp_path, 0, 0))
        with socket.create_connection((HOST, operator.imap_port), timeout=10) as client:
            assert client.recv(1000).startswith(b"* OK")
            operator.stop()
    assert not caplog.records, caplog.text


@pytest.mark.parametrize("debug", [False, True])
def test_a_step_that_breaks_the_story_is_told_in_one_line(
    debug: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def step(_: story.World) -> str:
        raise KeyError("identifier")

    monkeypatch.setattr(story, "STEPS", (("Directory", step),))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    assert cli.main(["demo", "--play", *(["--debug"] if debug else [])]) == 1
    assert handlers == {number: signal.getsignal(number) for number in handlers}
    told = capfd.readouterr().err
    assert "the story broke: step 1. Directory: KeyError: 'identifier'" in told
    assert ("Traceback" in told) is debug


def admission() -> bytes:
    """The message that docs/tour.md sends."""
    page = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("printf 'MSH"))
    return line.split("'")[1].replace("\\\\", "\\").replace("\\r", "\r").encode()


def test_the_demo_tells_commands_that_find_it_and_ports_by_its_address(
    tmp_path: Path, ports: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    own: dict[str, Any] = {f"{name}_port": ports[name] for name in ("http", "mllp", "dicom")}
    mailed: dict[str, Any] = {name: f"{HOST}:{ports[name]}" for name in ("smtp", "imap")}
    folder = tmp_path / "a folder"
    settings = replace(Settings(**demo.DEFAULTS), data_dir=str(folder), bind="::1", **own, **mailed)
    ended = threading.Event()
    ended.set()
    assert demo.run(settings, fresh=False, stop=ended, dpi=ports["dpi"], pfi=ports["pfi"]) == 0
    told = capsys.readouterr().out
    assert f"http://[::1]:{ports['http']}/fhir" in told and f"mllp://[::1]:{ports['mllp']}" in told
    for words in ("trace demo-06", "outbox list", "inbox list"):
        line = next(line for line in told.splitlines() if f"passerelle {words}" in line)
        call = shlex.split(line.strip().partition("   ")[0])
        assert call[1:] == [*words.split(), "--data-dir", str(folder)]
        assert cli.main(call[1:]) == 0
    assert "demo-06" in capsys.readouterr().out


def test_the_admission_of_the_tour_leaves_no_note(tmp_path: Path, ports: dict[str, int]) -> None:
    own: dict[str, Any] = {f"{name}_port": ports[name] for name in ("http", "mllp", "dicom")}
    server = Server(replace(Settings(**demo.DEFAULTS), data_dir=str(tmp_path), smtp="", imap="", **own))
    server.start()
    try:
        answer = wire.send((HOST, ports["mllp"]), admission(), timeout=20)
        with server.hub.store.read(SYSTEM) as snapshot:
            row = snapshot.messages()[0]
    finally:
        server.close()
    assert ack.read(answer).code == "AA" and (row.state, row.note) == ("done", "")


def test_the_ready_line_writes_an_ipv6_address_as_a_url(
    tmp_path: Path, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    ended.set()
    monkeypatch.setattr(serving, "until_signalled", lambda: ended)
    monkeypatch.chdir(tmp_path)
    site = (ROOT / "fhir_server" / "demo" / "site.toml").read_text(encoding="utf-8")
    (tmp_path / "passerelle.toml").write_text(f'auth = "none"\nbind = "::1"\n{site}', encoding="utf-8")
    own = [word for name in ("http", "mllp", "dicom") for word in (f"--{name}-port", str(ports[name]))]
    assert cli.main(["serve", *own]) == 0
    assert f"ready: http://[::1]:{ports['http']}/fhir" in capsys.readouterr().out


def test_help_names_every_port_of_the_demo_and_the_tour_does_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    told = capsys.readouterr().out
    page = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    for name in PORTS:
        assert f"--{name}-port" in told and f"--{name}-port" in page
    for port in (8080, 2575, 11112, demo.DPI_PORT, demo.PFI_PORT, demo.SMTP_PORT, demo.IMAP_PORT):
        assert str(port) in told and str(port) in page


def test_the_demo_writes_a_clip_of_the_patient_who_waits(tmp_path: Path) -> None:
    assert cli.main(["demo", "--clip", str(tmp_path / "clip.dcm")]) == 0
    assert len(archive.frame_table(tmp_path / "clip.dcm").frames) == 30
    found = pydicom.dcmread(tmp_path / "clip.dcm", stop_before_pixels=True)
    assert (found.PatientID, found.IssuerOfPatientID) == (people.PATIENTS[people.SCANNED][-1], "CH-DEMO")
    waiting = next(one for one in REQUESTS if one[0] == people.WAITING)
    assert waiting[1] == people.SCANNED and waiting[5] == ()
