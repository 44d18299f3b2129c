"""The command line, and the documentation page it generates."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conformance import report, runner
from conformance.__main__ import BEGIN, END, main
from conformance.peers.broken_dicom import BrokenDicom
from conformance.target import Options

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "conformance.md"


def test_a_run_that_passes_exits_0_and_prints_a_line_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    with BrokenDicom() as peer:
        assert main(["run", "--target", peer.target, "--only", "dicom.*"]) == 0
    told = capsys.readouterr().out
    assert "ok    dicom.echo" in told
    assert "conforms to every check that could be run" in told


def test_a_run_that_fails_exits_1_and_leaves_its_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junit, kept = tmp_path / "junit.xml", tmp_path / "run.json"
    with BrokenDicom("echo-fails") as peer:
        words = ["run", "--target", peer.target, "--only", "dicom.echo", "--junit", str(junit), "--out", str(kept)]
        assert main(words) == 1
    assert "status 0x0000 (Success)" in capsys.readouterr().out
    assert ElementTree.parse(junit).getroot().attrib["failures"] == "1"  # noqa: S314 - our own report
    assert main(["report", str(kept)]) == 1
    assert "FAIL  dicom.echo" in capsys.readouterr().out
    assert main(["report", str(kept), "--format", "junit"]) == 1
    assert capsys.readouterr().out == junit.read_text(encoding="utf-8")


def test_json_goes_to_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with BrokenDicom() as peer:
        assert main(["run", "--target", peer.target, "--only", "dicom.echo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["pass"] == 1


def test_a_system_that_is_not_there_exits_1_with_the_address(
    free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert main(["run", "--target", f"dicom=dicom://AE@127.0.0.1:{port}", "--only", "dicom.echo"]) == 1
    assert f"no connection to dicom://AE@127.0.0.1:{port}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        [], ["nonsense"], ["run"], ["run", "--target", "x"], ["run", "--target", "hl7v2=mllp://h:1", "--set", "x=1"],
        ["run", "--target", "hl7v2=mllp://h:1", "--only", "typo"], ["report", "/no/such/file"], ["report", __file__],
        ["list", "--into", __file__ + ".absent"], ["run", "--target", "hl7v2=mllp://h:1", "--level", "N9"],
    ],
)  # fmt: skip
def test_a_wrong_command_line_exits_2_and_says_why(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err


def test_help_exits_0_and_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"], prog="passerelle conformance") == 0
    told = capsys.readouterr().out
    assert "passerelle conformance run" in told
    for one in dataclasses.fields(Options):
        assert one.name in told


def test_the_module_can_be_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "conformance", "list"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("fhir.metadata")


def test_the_page_has_every_check_with_its_clauses() -> None:
    page = PAGE.read_text(encoding="utf-8")
    _, _, rest = page.partition(BEGIN)
    table, _, _ = rest.partition(END)
    wanted = report.markdown(runner.load())
    assert table.strip() == wanted.strip(), "run: python -m conformance list --into docs/conformance.md"


def test_the_page_names_every_setting_and_every_outcome() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for one in dataclasses.fields(Options):
        assert f"`{one.name}`" in page, one.name
    for status in runner.STATUSES:
        assert f"**{status}**" in page, status


def test_the_table_is_written_between_the_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    assert main(["list", "--into", str(page)]) == 0
    assert main(["list", "--into", str(page)]) == 0
    told = page.read_text(encoding="utf-8")
    assert told.startswith(f"before\n{BEGIN}\n")
    assert told.endswith(f"{END}\nafter\n")
    assert "old" not in told
    assert told.count("`fhir.metadata`") == 1
