"""Which data a command works on: one's own, or the demo's while no establishment of one's own is configured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fhir_server import cli
from fhir_server.store.schema import upgrade

Run = Callable[..., tuple[int, str, str]]
DEMO = Path("passerelle-data/demo")
LOOKS = (("db", "current"), ("db", "status"), ("inbox", "list"), ("outbox", "list"), ("backup", "copy"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in a folder with an empty demo: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    DEMO.mkdir(parents=True)
    upgrade(f"sqlite:///{DEMO.resolve()}/passerelle.db")

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(words)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def test_commands_look_at_the_demo_without_an_establishment_of_ones_own_and_say_so(run: Run) -> None:
    for command in LOOKS:
        code, _, err = run(*command)
        assert code == 0 and err.count(str(DEMO.resolve())) == 1, (command, err)
    code, out, err = run("inbox", "list", "--json")
    assert (json.loads(out), err.count("the demo in")) == ([], 1)
    code, _, err = run("inbox", "list", "--data-dir", str(DEMO))
    assert (code, err) == (0, ""), "a folder that is named needs no explanation"


def test_commands_leave_the_demo_alone_once_an_establishment_of_ones_own_is_configured(run: Run) -> None:
    assert run("config", "init")[0] == 0
    code, out, err = run("db", "current")
    assert (code, out.strip(), err) == (1, "(none)", ""), "one's own database is not there yet"
    for command in LOOKS[2:]:
        code, _, err = run(*command)
        assert code == 1 and "the demo in" not in err, command
    shutil.copy(DEMO / "passerelle.db", DEMO.parent / "passerelle.db")
    shutil.rmtree(DEMO)
    assert [run(*command)[0] for command in LOOKS[:4]] == [0, 0, 0, 0]
