"""Large bodies on a real socket: they wait for room, small ones and reads do not, and who waits in vain is told."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fhir_server.app import Server
from fhir_server.config import Settings
from fhir_server.demo.run import DEFAULTS
from fhir_server.rest import asgi
from fhir_server.rest.room import LEAST, MOST, SMALL, Room

_QUIET: dict[str, Any] = {"http_port": 0, "mllp_port": 0, "dicom_port": 0, "smtp": "", "imap": "", "max_body_mib": 4}


def patient(size: int) -> bytes:
    return json.dumps({"resourceType": "Patient", "name": [{"family": "D" * size}]}).encode()


def asked(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
    """Status and Retry-After."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, {"content-type": "application/fhir+json"} | headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("retry-after", "")
    finally:
        connection.close()


def test_a_large_body_waits_for_room_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(patience=0.2)
    asyncio.run(room.enter(MOST))  # as if another request were worked on
    monkeypatch.setattr(asgi, "Room", lambda: room)
    server = Server(replace(Settings(**DEFAULTS), data_dir=str(tmp_path), **_QUIET))
    port = server.start().http
    large, packed = patient(2 * SMALL), {"content-encoding": "gzip"}
    try:
        assert asked(port, "POST", "/fhir/Basic", large) == (429, "5")
        assert asked(port, "POST", "/fhir/Patient", gzip.compress(large), **packed) == (429, "5")
        assert asked(port, "POST", "/fhir/Patient", gzip.compress(patient(1)), **packed)[0] == 201
        assert asked(port, "POST", "/fhir/Patient", patient(1))[0] == 201
        assert asked(port, "GET", "/fhir/Patient?_count=1")[0] == 200
        room.leave(MOST)  # nobody waits, so no task of the server's loop is touched
        for _ in range(2 * MOST // LEAST):  # more than fit at once: each gives back what it took, refused or not
            assert asked(port, "PATCH", "/fhir/Patient/none", large)[0] == 400
        assert asked(port, "POST", "/fhir/Patient/$validate", gzip.compress(large), **packed)[0] == 200
    finally:
        server.close()
