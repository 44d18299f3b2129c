"""Large bodies on a real socket: they wait for room, small ones and reads do not, and who waits in vain is told; what
all clients together send at the same time is bounded."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fhir_server.app import Server
from fhir_server.config import Settings
from fhir_server.demo.run import DEFAULTS
from fhir_server.rest import asgi
from fhir_server.rest.room import LEAST, MIB, MOST, SMALL, Inflow, Room

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
    monkeypatch.setattr(asgi, "Room", lambda *most, **more: Room(*most, **more) if most else room)
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


def until(held: Inflow, least: int, most: int) -> None:
    """Wait until so many bytes are on their way in."""
    deadline = time.monotonic() + 20
    while not least <= held._held <= most:
        assert time.monotonic() < deadline, held._held
        threading.Event().wait(0.01)


def test_what_all_clients_send_at_the_same_time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inflow = Inflow(most=4 * MIB, kept_free=MIB)
    monkeypatch.setattr(asgi, "Inflow", lambda: inflow)
    server = Server(replace(Settings(**DEFAULTS), data_dir=str(tmp_path), **_QUIET))
    port = server.start().http
    large = patient(1) + b" " * 2 * MIB
    head = b"PUT /fhir/Patient/x HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n" % (4 * MIB)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
            slow.sendall(head + b" " * 2 * MIB)
            until(inflow, 2 * MIB, 2 * MIB)
            for _ in range(3):  # each gives back what came of it
                assert asked(port, "POST", "/fhir/Patient", large) == (503, "5")
            assert asked(port, "POST", "/fhir/Patient", patient(MIB // 2))[0] == 201
            assert asked(port, "GET", "/fhir/Patient?_count=1")[0] == 200
        until(inflow, 0, 0)
        assert asked(port, "POST", "/fhir/Patient", large)[0] == 201
        assert inflow._held == 0
    finally:
        server.close()
