"""Peers and servers that several files of wire tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dicom_peers import PATIENT, Spy, Start, data_set_of, small
from edge_calls import settings

from dicom_node import sample
from dicom_node.scp import Node, Policy, StoreRequest
from fhir_server.app import Ports, Server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts DICOM nodes: `start(answer, policy...)`, each with the `Spy` that hears it."""
    spies: list[Spy] = []

    def make(answer: Callable[[StoreRequest], int] = lambda _: 0, **policy: Any) -> Spy:
        folder = tmp_path / f"node{len(spies)}"
        folder.mkdir()
        spy = Spy(folder, answer)
        settled = Policy(**{"spool": spy.spool, "called": None, "fsync": False, **policy})
        spy.node = Node(
            ("127.0.0.1", 0), settled, spy.store, spy.echoes.append, spy.heard.put, lambda *a: spy.ended.put(a)
        )
        spy.node.start()
        spies.append(spy)
        return spy

    yield make
    for spy in spies:
        spy.node.close(grace=5)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ultrasound clip of 30 frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.dcm"
    path.write_bytes(sample.clip(patient_id=PATIENT, patient_name="ÉLAN^Zoé", accession_number="TLX0000000000042"))
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The data set of a small still image."""
    return data_set_of(small(tmp_path_factory.mktemp("tiny"), 0))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Ports]]:
    """A whole server that takes bodies of 1 MiB."""
    server = Server(settings(tmp_path_factory.mktemp("edge")))
    yield server, server.start()
    server.close()


@pytest.fixture
def port(running: tuple[Server, Ports]) -> int:
    """Where it answers HTTP."""
    return running[1].http
