"""Peers of the DICOM node: a node that keeps all it hears, a socket that speaks only when told, and small objects."""

from __future__ import annotations

import os
import queue
import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom

from dicom_node import archive, dimse
from dicom_node import upper_layer as ul
from dicom_node.contexts import EXPLICIT_LE, Proposed
from dicom_node.header import Identifier
from dicom_node.scp import AssociationInfo, StoreRequest

EXAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
CLIP_CLASS, SC_CLASS = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.7"
PATIENT = Identifier("8001234", "CHU")


@dataclass
class Spy:
    """A node whose callbacks keep everything they hear."""

    folder: Path
    answer: Callable[[StoreRequest], int] = lambda _: 0
    stored: list[StoreRequest] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    heard: queue.Queue[AssociationInfo] = field(default_factory=queue.Queue)
    ended: queue.Queue[tuple[AssociationInfo, tuple[str, ...]]] = field(default_factory=queue.Queue)
    echoes: list[AssociationInfo] = field(default_factory=list)
    node: Any = None

    def store(self, request: StoreRequest) -> int:
        self.stored.append(request)
        status = self.answer(request)
        target = self.folder / f"{request.path.stem}.kept"
        request.path.rename(target)
        self.kept.append(target)
        return status

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def end(self) -> tuple[AssociationInfo, tuple[str, ...]]:
        return self.ended.get(timeout=20)

    def data_set(self, number: int = -1) -> bytes:
        return self.kept[number].read_bytes()[self.stored[number].offset :]


Start = Callable[..., Spy]


def data_set_of(path: Path) -> bytes:
    return path.read_bytes()[archive.file_meta(path).offset :]


def small(folder: Path, number: int) -> Path:
    """A tiny secondary capture object with its own UIDs."""
    ds = pydicom.dcmread(EXAMPLES / "SC_rgb_small_odd.dcm")
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
    path = folder / f"small{number:04}.dcm"
    ds.save_as(path)
    return path


def run(*command: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"} | environment
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60, env=env, check=False)


class Peer:
    """A socket that speaks only when told."""

    def __init__(self, spy: Spy, *contexts: Proposed, calling: str = "RAW") -> None:
        self.socket = socket.create_connection(("127.0.0.1", spy.node.port), timeout=20)
        if contexts:
            self.socket.sendall(ul.request_pdu("PASSERELLE", calling, contexts, 16384))
            self.opening = self.pdu()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def pdu(self) -> tuple[int, bytes]:
        """(type, body); (0, b'') when the node has closed."""
        try:
            kind, length = struct.unpack(">BxL", self.exactly(6))
            return kind, self.exactly(length)
        except (EOFError, ConnectionResetError):
            return 0, b""

    def store(self, data: bytes, *, uid: str = "1.2.3.4.0", sop_class: str = SC_CLASS, context: int = 1) -> None:
        self.socket.sendall(ul.data_pdu(context, 3, dimse.store_request(9, sop_class, uid)))
        self.socket.sendall(ul.data_pdu(context, 2, data))

    def answer(self) -> dimse.Command:
        kind, body = self.pdu()
        assert kind == ul.P_DATA, (kind, body)
        return dimse.parse(body[6:])


STORAGE = Proposed(1, SC_CLASS, (EXPLICIT_LE,))


def nothing_left(spy: Spy) -> bool:
    return not spy.kept and not list(spy.spool.iterdir())
