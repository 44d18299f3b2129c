"""The HTTP port with a certificate of its own, no proxy in front: what partners, and the commands beside it, get."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from databases import empty_postgres, postgres_url  # noqa: F401 - fixtures
from delivery_hub import FIRST, queue, row
from servers import asked, quiet, starting

from fhir_server import cli
from fhir_server.app import Server
from fhir_server.config import ConfigError, Settings, startable
from fhir_server.store.schema import upgrade

PATIENT = json.dumps({"resourceType": "Patient", "name": [{"family": "Lecocq"}]})


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("keys") / "ours.pem", days=2)


def certificate(place: Path, days: int) -> Path:
    """A key and its certificate in one file."""
    if not shutil.which("openssl") and os.environ.get("REQUIRE_ALL") != "1":
        pytest.skip("needs openssl: install the Debian package openssl")
    named, asked_for, made = (place.with_suffix(end) for end in (".names", ".csr", ".cert"))
    named.write_text("subjectAltName=DNS:fhir.example.org,IP:127.0.0.1")
    for command in (
        ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=fhir.example.org", "-keyout", place,
         "-out", asked_for],
        ["x509", "-req", "-in", asked_for, "-signkey", place, "-days", str(days), "-extfile", named, "-out", made],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    place.write_bytes(place.read_bytes() + made.read_bytes())
    return place


@pytest.fixture
def serve(tmp_path: Path, ours: Path) -> Iterator[Callable[..., Server]]:
    with starting(tmp_path / "data", http_security="tls", server_certificate=str(ours)) as start:
        yield start


def told_by(server: Server, trusted: Path, *request: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return asked(server.bound.http, *request, trusted=trusted, **headers)


def test_links_and_locations_say_https(serve: Callable[..., Server], ours: Path) -> None:
    server = serve()
    own = f"https://127.0.0.1:{server.bound.http}/fhir"
    status, headers, _ = told_by(server, ours, "POST", "/fhir/Patient", PATIENT, content_type="application/fhir+json")
    assert status == 201 and headers["location"].startswith(f"{own}/Patient/")
    found = json.loads(told_by(server, ours, "GET", "/fhir/Patient?family=lecocq&_count=1")[2])
    assert found["link"][0]["url"].startswith(own) and found["entry"][0]["fullUrl"].startswith(f"{own}/Patient/")
    assert json.loads(told_by(server, ours, "GET", "/fhir/metadata")[2])["implementation"]["url"] == own
    named = {"resourceType": "Observation", "status": "final", "code": {"text": "x"},
             "subject": {"reference": found["entry"][0]["fullUrl"]}}  # fmt: skip
    status, _, body = told_by(
        server, ours, "POST", "/fhir/Observation", json.dumps(named), content_type="application/fhir+json"
    )
    assert (status, json.loads(body)["subject"]["reference"]) == (
        201,
        found["entry"][0]["fullUrl"].removeprefix(f"{own}/"),
    )


def test_a_hospital_fetches_and_acknowledges_over_https(serve: Callable[..., Server], ours: Path) -> None:
    server = serve()
    queue(server.hub, "pull:CH-NORD", FIRST, lane="Endpoint/nord")
    who = {"authorization": "Bearer pull:CH-NORD", "content_type": "application/json"}
    status, headers, body = told_by(server, ours, "POST", "/pull/next", **who)
    assert (status, headers["x-passerelle-id"]) == (200, FIRST) and FIRST.encode() in body
    told = json.dumps({"token": int(headers["x-passerelle-token"]), "code": "AA"})
    assert told_by(server, ours, "POST", f"/pull/{FIRST}/ack", told, **who)[0] == 200
    assert row(server.hub, FIRST).state == "sent"


def test_nothing_is_said_in_clear_or_by_what_is_out_of_date(serve: Callable[..., Server], ours: Path) -> None:
    server = serve()
    with socket.create_connection(("127.0.0.1", server.bound.http), timeout=20) as line:
        line.sendall(b"GET /fhir/metadata HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            assert b"HTTP/" not in line.recv(1000)
        except ConnectionResetError:
            pass
    with pytest.raises(ssl.SSLCertVerificationError):
        told_by(
            server, Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"), "GET", "/livez"
        )
    old = ssl.create_default_context(cafile=str(ours))
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        with socket.create_connection(("127.0.0.1", server.bound.http), timeout=20) as line:
            old.wrap_socket(line, server_hostname="127.0.0.1").close()
    assert told_by(server, ours, "GET", "/livez")[2] == b"ok\n"


def test_commands_ask_the_server_beside_them(
    serve: Callable[..., Server], ours: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.setenv("PASSERELLE_HTTP_SECURITY", "tls")
    monkeypatch.setenv("PASSERELLE_SERVER_CERTIFICATE", str(ours))
    monkeypatch.setenv("PASSERELLE_AUTH", "none")
    data = server.settings.data_dir
    assert cli.main(["readyz", "--port", str(server.bound.http)]) == 0
    queue(server.hub, "pull:CH-NORD", FIRST, lane="Endpoint/nord")
    assert cli.main(["outbox", "hold", FIRST, "--reason", "on attend", "--data-dir", data]) == 0
    assert row(server.hub, FIRST).state == "held"
    kept = ours.read_bytes()
    ours.write_text("renewed, and not shown before the next start")
    try:
        assert cli.main(["outbox", "release", FIRST, "--data-dir", data]) == 0
        assert cli.main(["readyz", "--port", str(server.bound.http)]) == 0
    finally:
        ours.write_bytes(kept)
    monkeypatch.setenv("PASSERELLE_HTTP_SECURITY", "none")
    capsys.readouterr()
    assert cli.main(["readyz", "--port", str(server.bound.http)]) == 1


def test_a_certificate_whose_time_is_over_keeps_no_command_out(tmp_path: Path) -> None:
    ended = certificate(tmp_path / "ended.pem", days=-1)
    server = Server(quiet(tmp_path / "data", http_security="tls", server_certificate=str(ended)))
    server.start()
    try:
        queue(server.hub, "pull:CH-NORD", FIRST, lane="Endpoint/nord")
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            told_by(server, ended, "GET", "/livez")
        assert cli.main(["outbox", "hold", FIRST, "--reason", "on attend", "--data-dir", server.settings.data_dir]) == 0
        assert row(server.hub, FIRST).state == "held"
    finally:
        server.close()


@pytest.mark.needs("postgresql")
def test_several_processes_answer_over_tls(
    serve: Callable[..., Server],
    ours: Path,
    empty_postgres: str,  # noqa: F811 - the fixture
) -> None:
    upgrade(empty_postgres)
    server = serve(database_url=empty_postgres, http_processes=2)
    for _ in range(4):
        assert told_by(server, ours, "GET", "/fhir/metadata")[0] == 200


def test_a_server_that_cannot_show_a_certificate_does_not_start(tmp_path: Path, ours: Path) -> None:
    def judged(**more: Any) -> None:
        startable(Settings(auth="none", http_security="tls", **more))

    judged(server_certificate=str(ours))
    with pytest.raises(ConfigError, match="http_security=tls needs server_certificate"):
        judged()
    with pytest.raises(ConfigError, match="public_url=http://x/fhir says http"):
        judged(server_certificate=str(ours), public_url="http://x/fhir")
    smart: dict[str, Any] = {
        "auth_issuer": "https://a.example",
        "auth_audience": "x",
        "auth_jwks": "keys.json",
        "bind": "0.0.0.0",
    }
    near: dict[str, Any] = {"mllp_networks": "10.0.0.0/8", "dicom_networks": "10.0.0.0/8"}
    startable(Settings(**smart, **near, http_security="tls", server_certificate=str(ours)))
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    server = Server(quiet(tmp_path / "data", http_security="tls", server_certificate=str(wrong)))
    with pytest.raises(ConfigError, match="server_certificate"):
        server.start()
