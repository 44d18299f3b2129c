"""A server that stopped between CA and AA: the next one takes the message in, and tells it to who asks again."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fhir_server.app import Server
from fhir_server.config import Settings
from fhir_server.context import SYSTEM
from fhir_server.delivery import committed, intake
from fhir_server.store.inbox import InboxFilter, InboxRow
from hl7v2 import ack
from hl7v2.frames import END, VT, wrap

sys.path.append(str(Path(__file__).parents[1] / "unit" / "fhir_server"))
from sylve import SITE, sample

from fhir_server.demo.run import SITES


def server(data: Path) -> Server:
    site = dict(SITES[0]) | SITE
    ports = ({"port": 0, "name": "enhanced", "mode": "enhanced"},)
    settings: dict[str, Any] = {"auth": "none", "http_port": 0, "dicom_port": 0, "mllp_port": 0}
    made = Server(Settings(**settings, data_dir=str(data), sites=(site,), hl7_ports=ports))
    made.start()
    return made


def asking(name: str) -> bytes:
    fields = sample(name).split(b"|")
    fields[14:16] = [b"AL", b"AL"]
    return b"|".join(fields)


def codes(made: Server, raw: bytes) -> list[str]:
    """Both answers of the enhanced port."""
    with socket.create_connection(("127.0.0.1", list(made.bound.hl7.values())[1]), timeout=20) as wire:
        wire.sendall(wrap(raw))
        wire.shutdown(socket.SHUT_WR)
        got = b""
        while more := wire.recv(65536):
            got += more
    return [ack.read(part.partition(VT)[2]).code for part in got.split(END)[:-1]]


def rows(made: Server) -> list[InboxRow]:
    with made.hub.store.read(SYSTEM) as snapshot:
        return snapshot.messages(InboxFilter())[::-1]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_what_was_answered_ca_before_a_stop_is_taken_in_after_it_and_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committed, "GRACE_SECONDS", 3600.0)
    first, second = asking("adt-a01-admission"), asking("adt-a02-mutation")
    before = server(tmp_path)
    port = before.hl7_ports[1]
    store = intake.wired(before.hub, port)[1]
    assert store is not None and store(first, "192.0.2.7:5001") == b"", "CA is said, and then nothing more happens"
    before.close()
    monkeypatch.setattr(committed, "GRACE_SECONDS", 0.0)
    after = server(tmp_path)
    try:
        assert codes(after, second) == ["CA", "AA"]
        until(lambda: [row.state for row in rows(after)] == ["done", "done"])
        one, two = rows(after)
        assert one.settled_at <= two.settled_at
        assert codes(after, first) == ["CA", "AA"]
        assert rows(after)[0].repeats == 1
    finally:
        after.close()
