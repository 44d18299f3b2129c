"""Our own server before the judge: every check of the kit passes, those it cannot ask are named."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest

from conformance import __main__ as kit
from conformance import report, runner
from conformance.target import target
from fhir_server.app import Ports, Server
from fhir_server.config import Settings
from fhir_server.context import SYSTEM
from fhir_server.demo.run import DEFAULTS
from fhir_server.store.lanes import NewDelivery

ROOT = Path(__file__).resolve().parent.parent.parent
MESSAGES = ROOT / "tests" / "data" / "hl7v2"


def settings(folder: Path, **changes: Any) -> Settings:
    ports: dict[str, Any] = {"http_port": 0, "mllp_port": 0, "dicom_port": 0, "smtp": "", "imap": ""}
    return replace(Settings(**DEFAULTS), data_dir=str(folder), **ports, **changes)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(settings(tmp_path))
    yield running
    running.close()


def documented(ports: Ports) -> list[str]:
    """The words of the command that docs/conformance.md gives for the demo, on the ports of this server."""
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    line = page.partition("start our demo")[2].partition("```\n")[2].partition("```")[0]
    for usual, real in ((8080, ports.http), (2575, ports.mllp), (11112, ports.dicom)):
        assert f":{usual}" in line
        line = line.replace(f":{usual}", f":{real}")
    words = shlex.split(line.replace("\\\n", " "))
    assert words[1:4] == ["-m", "conformance", "run"]
    return words[3:]


def test_the_documented_command_finds_nothing_wrong_with_us(server: Server, tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    code = kit.main([*documented(server.start()), "--out", str(kept)])
    run = report.read(kept.read_text(encoding="utf-8"))
    text = report.text(run)
    assert code == 0 and {r.id for r in run.results if r.status not in ("pass", "skip")} == set(), text
    skipped = {r.id for r in run.results if r.status == "skip"}
    assert {one for one in skipped if not one.startswith(("hl7v2-sender.", "hl7v2-files."))} == set(), text


def test_the_documents_we_send_pass_every_check_of_files(tmp_path: Path) -> None:
    for number, path in enumerate(sorted(MESSAGES.glob("*-push-2.1.golden.hl7"))):
        # Kept with line ends instead of CR, and with one fixed MSH-10: each gets its own, as deliveries have.
        raw = (
            path.read_bytes().replace(b"\n", b"\r").replace(b"NB2HI4DTHIXS653XO4XA", b"NB2HI4DTHIXS653XO%03d" % number)
        )
        (tmp_path / path.name).write_bytes(raw.removesuffix(b"\r") + b"\r")
    run = runner.run(target([f"hl7v2-files={tmp_path}"]), only=["hl7v2-files.*"])
    text = report.text(run)
    assert {r.id for r in run.results if r.status not in ("pass", "skip")} == set(), text
    assert {r.id for r in run.results if r.status == "skip"} == {"hl7v2-files.movement"}, text


def test_our_deliveries_pass_every_check_of_senders(tmp_path: Path, free_port: Callable[[], int]) -> None:
    raw = (MESSAGES / "mdm-t02-push-2.1.golden.hl7").read_bytes().replace(b"\n", b"\r").removesuffix(b"\r") + b"\r"
    address = f"mllp://127.0.0.1:{free_port()}"
    # The pauses between attempts are short, so that the kit need not wait for them.
    sender = Server(settings(tmp_path, retry_first_seconds=0.05, retry_cap_seconds=0.05, send_timeout_seconds=1.0))
    try:
        sender.start()
        for number in range(40):
            key = f"KIT{number:017d}".replace("0", "A").replace("1", "B").replace("8", "C").replace("9", "D")
            payload = raw.replace(b"NB2HI4DTHIXS653XO4XA", key.encode())
            delivery = NewDelivery("dpi", address, "hl7", payload, id=key, on_stuck="skip")
            sender.hub.store.write(SYSTEM, methodcaller("send", delivery))
        patience = ["send_wait=20", "resend_wait=5", "quiet=0.5"]
        run = runner.run(target([f"hl7v2-sender={address}"], patience), only=["hl7v2-sender.*"])
    finally:
        sender.close()
    text = report.text(run)
    assert {r.status for r in run.results} == {"pass"}, text
