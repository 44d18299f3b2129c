"""What an operator asks of a running process: is it ready, who may send images, is a partner there, also over TLS."""

from __future__ import annotations

import importlib.metadata
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from databases import empty_postgres, postgres_url  # noqa: F401 - fixtures
from servers import asked, starting

from conformance.peers.mllp import Peer
from dicom_node import scu
from fhir_server import cli, upkeep
from fhir_server.app import STALE, Server
from fhir_server.context import SYSTEM
from fhir_server.health import Health
from fhir_server.search import index
from fhir_server.store import reindex
from fhir_server.store.schema import upgrade
from hl7v2 import ack


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with starting(tmp_path / "data") as start:
        yield start


def heard(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and text."""
    status, _, body = asked(port, method, path)
    return status, body.decode()


# --- is it ready -----------------------------------------------------------------------------------------------------


def test_readyz_names_every_port(serve: Callable[..., Server]) -> None:
    server = serve(hl7_ports=({"port": 0, "name": "laboratoire"}, {"port": 0, "name": "imagerie"}))
    bound = server.bound
    assert list(bound.hl7) == ["mllp_port", "laboratoire", "imagerie"] and bound.mllp == bound.hl7["mllp_port"]
    hl7 = ", ".join(f"{port} ({name})" for name, port in bound.hl7.items())
    told = f"ready\nHTTP {bound.http}\nHL7 v2 (MLLP) {hl7}\nDICOM {bound.dicom}\n"
    assert heard(bound.http, "/readyz") == (200, told)


@pytest.mark.needs("postgresql")
def test_a_process_that_serves_no_api_answers_at_its_health_port(
    serve: Callable[..., Server],
    empty_postgres: str,  # noqa: F811 - the fixture
) -> None:
    upgrade(empty_postgres)
    server = serve(database_url=empty_postgres, roles="mllp", health_port=0)
    port = server.bound.health
    assert heard(port, "/livez") == (200, "ok\n")
    assert heard(port, "/readyz") == (200, f"ready\nHL7 v2 (MLLP) {server.bound.mllp} (mllp_port)\nhealth {port}\n")
    assert heard(port, "/readyz", "HEAD") == (200, "")
    assert heard(port, "/fhir/metadata")[0] == 404 and heard(port, "/readyz", "POST")[0] == 501
    server.ready = False
    assert heard(port, "/readyz") == (503, "starting or stopping\n")
    server.close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_a_caller_that_says_nothing_keeps_nobody_from_an_answer() -> None:
    health = Health(("127.0.0.1", 0), lambda: (True, "ready\n"))
    health.start()
    try:
        with socket.create_connection(("127.0.0.1", health.port)), socket.create_connection(("127.0.0.1", health.port)):
            assert heard(health.port, "/readyz") == (200, "ready\n")
    finally:
        health.close()


def test_rows_of_another_version_are_told_at_the_start_in_readyz_and_by_check(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = serve()
    assert STALE not in heard(first.bound.http, "/readyz")[1] and STALE not in caplog.text
    assert upkeep.check(first.hub, {}, lambda line: None)["stale"] is False
    first.close()
    monkeypatch.setattr(index, "EXTRACTOR", "another")
    second = serve()
    assert STALE in caplog.text
    assert heard(second.bound.http, "/readyz") == (200, "\n".join(["ready", *second.bound.told(), STALE, ""]))
    told = upkeep.check(second.hub, {}, lambda line: None)
    assert (told["ok"], told["stale"]) == (True, True)
    reindex.reindex(second.hub.store, upkeep.extract(second.hub), meaning=upkeep.meaning(second.settings))
    assert STALE not in heard(second.bound.http, "/readyz")[1]

    second.close()
    caplog.clear()
    third = serve(base_aliases="https://old.example.org/fhir")  # what is ours now was not when it was indexed
    assert STALE in caplog.text and STALE in heard(third.bound.http, "/readyz")[1]
    upkeep.reindex(third.hub, {}, lambda line: None)
    assert STALE not in heard(third.bound.http, "/readyz")[1]


def test_who_asks_at_the_wrong_port_is_told_where_the_server_of_the_folder_listens(
    serve: Callable[..., Server], free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PASSERELLE_AUTH", "none")
    wrong, server = ["readyz", "--port", str(free_port())], serve()
    assert cli.main([*wrong, "--data-dir", server.settings.data_dir]) == 1
    where = f"http://127.0.0.1:{server.bound.http}"
    assert f"--url {where}" in capsys.readouterr().err and cli.main(["readyz", "--url", where]) == 0
    assert cli.main([*wrong, "--data-dir", str(tmp_path / "none")]) == 1
    told = capsys.readouterr().err
    assert "passerelle demo" in told and "--port or --url" in told


# --- who may send images ---------------------------------------------------------------------------------------------


def test_images_come_from_admitted_networks_whatever_the_caller_is_called(serve: Callable[..., Server]) -> None:
    open_to_all = serve(dicom_networks="127.0.0.0/8")
    assert scu.echo(("127.0.0.1", open_to_all.bound.dicom), called="PASSERELLE", calling="ANYBODY") == 0
    open_to_all.close()
    elsewhere = serve(dicom_networks="192.0.2.0/24")
    with pytest.raises(scu.DicomFault, match="rejects"):
        scu.echo(("127.0.0.1", elsewhere.bound.dicom), called="PASSERELLE", calling="ANYBODY")
    with elsewhere.hub.store.read(SYSTEM) as snapshot:
        (seen,) = snapshot.partners()
    assert (seen.channel, seen.outcome) == ("dicom", "refused") and "no admitted network" in seen.reason


# --- is a partner there ----------------------------------------------------------------------------------------------


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    """A certificate for localhost with its key, which is its own authority."""
    path = tmp_path / "localhost.pem"
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*words.split(), "-keyout", path, "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (tmp_path / "cert.pem").read_bytes())
    return path


def test_images_and_an_echo_go_over_tls(
    serve: Callable[..., Server], pem: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(dicom_security="tls", server_certificate=str(pem))
    url = f"dicoms://PASSERELLE@localhost:{server.bound.dicom}"
    assert cli.main(["echo", url]) == 1, "nobody vouches for the certificate"
    monkeypatch.setenv("PASSERELLE_CLIENT_AUTHORITIES", str(pem))
    assert cli.main(["echo", url]) == 0 and "answers C-ECHO" in capsys.readouterr().out
    assert cli.main(["send", "dicom", str(pem), "--to", url]) == 1
    assert "read" in capsys.readouterr().err, "over TLS as well: a file that is no image"
    assert cli.main(["echo", url.replace("dicoms", "dicom")]) == 1, "TLS is what this port speaks"


def test_an_echo_to_an_hl7_port_only_connects_unless_it_may_ask(capsys: pytest.CaptureFixture[str]) -> None:
    with Peer(script=["AE"]) as peer:
        url = f"mllp://127.0.0.1:{peer.port}"
        assert cli.main(["echo", url]) == 0
        assert "nothing was sent" in capsys.readouterr().out and peer.received == []
        assert cli.main(["echo", url, "--exchange"]) == 0, "a refusal is an answer"
        assert "answers a query with AE" in capsys.readouterr().out
        (frame,) = peer.received
        assert frame.raw.startswith(b"MSH|^~\\&|PASSERELLE|") and b"|NMQ^N01^" in frame.raw
        assert len(ack.control_id_of(frame.raw)) == 20


def test_what_an_acknowledgement_says_at_two_places_is_shown_once(
    serve: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.er7"
    bad.write_bytes(b"MSH|^~\\&|DPI|X|||20261101||ADT^A99|S2|P|2.5\r")
    assert cli.main(["send", "hl7", str(bad), "--to", f"mllp://127.0.0.1:{serve().bound.mllp}"]) == 1
    line = capsys.readouterr().out
    assert "AE S2" in line and " 201" in line
    words = line.partition("AE S2")[2].partition("MSH")[0].strip()
    assert len(words) > 10 and line.count(words) == 1


@pytest.mark.parametrize("command", [["trace"], ["outbox", "show"], ["check"]])
def test_help_says_how_the_installation_is_named_and_hides_the_settings_of_a_server(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    told = capsys.readouterr().out
    assert "--data-dir" in told and "--database-url" in told and "--mllp-port" not in told


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"passerelle {importlib.metadata.version('passerelle')}\n")


def test_what_is_no_hl7_is_told(serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]) -> None:
    server = serve()
    assert cli.main(["echo", f"mllp://127.0.0.1:{server.bound.http}", "--exchange"]) == 1
    assert "something else than HL7" in capsys.readouterr().err
    assert cli.main(["echo", f"mllp://127.0.0.1:{server.bound.mllp}", "--exchange"]) == 0
    assert "AE" in capsys.readouterr().out
