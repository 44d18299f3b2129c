"""`passerelle readyz` asks where it is told to: at the port of the settings, another one, or another address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fhir_server import cli
from fhir_server.health import Health


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def port() -> Iterator[int]:
    """Where a process says that it is ready."""
    health = Health(("127.0.0.1", 0), lambda: (True, "ready\n"))
    health.start()
    with closing(health):
        yield health.port


def test_a_server_elsewhere_is_asked_by_its_port_or_its_address(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    whole = f"http://127.0.0.1:{port}"
    for words in (["--port", str(port)], ["--url", whole], ["--url", f"{whole}/readyz"]):
        # These settings name no place to ask.
        assert cli.main(["readyz", "--roles", "workers", *words]) == 0, words
        assert capsys.readouterr().out == "ready\n"
    Path("passerelle.toml").write_text(f'roles = "workers"\nhealth_port = {port}\n')
    assert cli.main(["readyz"]) == 0 and capsys.readouterr().out == "ready\n"
    assert cli.main(["echo", whole]) == 0 and capsys.readouterr().out == "ready\n"


def test_a_port_or_an_address_where_nobody_answers_is_named(
    free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    taken = free_port()
    for words in (["--port", str(taken)], ["--url", f"http://127.0.0.1:{taken}"]):
        assert cli.main(["readyz", *words]) == 1
        assert f"http://127.0.0.1:{taken}/readyz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--port", "0"], 2),
        (["--port", "70000"], 2),
        (["--port", "1", "--url", "http://127.0.0.1:1"], 2),
        (["--url", "file:///etc/hostname"], 1),
        (["--url", "127.0.0.1:8080"], 1),
        (["--url", "http://127.0.0.1:99999"], 1),
        (["--url", "http://[::1"], 1),
        (["--url", ""], 1),
        (["--roles", "workers"], 1),
    ],
)
def test_what_names_no_place_to_ask_is_refused_in_a_line(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["readyz", *words]) == code
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("passerelle: ") and "Traceback" not in told.err
