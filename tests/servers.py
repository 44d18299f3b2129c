"""A server that a test starts beside others, with the demo's settings on free ports and without mail, and asking it."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fhir_server.app import Server
from fhir_server.config import Settings
from fhir_server.demo.run import DEFAULTS


def quiet(data: Path | str, **more: Any) -> Settings:
    """The demo's settings over its own folder `data`; every port is free to be any, and nobody polls a mailbox."""
    chosen: dict[str, Any] = {"http_port": 0, "mllp_port": 0, "dicom_port": 0, "smtp": "", "imap": ""}
    return replace(Settings(**DEFAULTS), data_dir=str(data), **(chosen | more))


@contextmanager
def starting(data: Path, **always: Any) -> Iterator[Callable[..., Server]]:
    """What starts a server on `data`, with the settings that are `always` so and more of them at each call; all are
    closed at the end."""
    made: list[Server] = []

    def start(**more: Any) -> Server:
        made.append(Server(quiet(data, **(always | more))))
        made[-1].start()
        return made[-1]

    try:
        yield start
    finally:
        for server in made:
            server.close()


def asked(
    port: int, method: str, path: str, body: str | None = None, *, trusted: Path | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own, over TLS where a certificate is `trusted`: status, headers by their names
    in lower case, body. A header's name is given with _ for -."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    if trusted is not None:
        context = ssl.create_default_context(cafile=str(trusted))
        line = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    try:
        line.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = line.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        line.close()
