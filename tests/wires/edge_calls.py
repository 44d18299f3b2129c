"""Requests written by hand to the HTTP edge, and what it answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servers import quiet

from fhir_server.config import Settings

HOST = "127.0.0.1"
PATIENT = b'{"resourceType":"Patient","id":"p","name":[{"family":"DURAND"}]}'


def settings(folder: Path, **more: Any) -> Settings:
    return quiet(folder, **({"max_body_mib": 1} | more))


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, port), timeout=20) as sock:
        yield sock


def answer_of(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One HTTP answer: status, headers, body."""
    reply = http.client.HTTPResponse(sock)
    reply.begin()
    return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()


def raw(port: int, *lines: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """A request written by hand."""
    with connected(port) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return answer_of(sock)


def get(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    told = {"Host": f"{HOST}:{port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return raw(port, f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items()))


def said(answer: tuple[int, dict[str, str], bytes]) -> str:
    """The words of an OperationOutcome; every error under /fhir is one, with an expression."""
    outcome = json.loads(answer[2])
    assert outcome["resourceType"] == "OperationOutcome", outcome
    assert all(issue["expression"] for issue in outcome["issue"])
    assert answer[1]["content-type"].startswith("application/fhir+json")
    return str(outcome["issue"][0]["diagnostics"])


def put_head(port: int, *more: str) -> list[str]:
    return ["PUT /fhir/Patient/big HTTP/1.1", f"Host: {HOST}:{port}", "Content-Type: application/fhir+json", *more]


def closed(sock: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    received = b""
    sock.settimeout(15)
    while part := sock.recv(65536):
        received += part
    return received
