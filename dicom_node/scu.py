"""A small DICOM requester: is a node there (C-ECHO), and please keep these files (C-STORE).

Hides contexts, fragments and message ids. Files are sent as they are; a peer that refuses a file's transfer syntax
does not get the file. Faults are plain facts for the caller to classify.

Sources: PS3.7 sections 9.1.1 and 9.3.1; PS3.8 sections 9.2 and 9.3.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from dicom_node import dimse
from dicom_node import upper_layer as ul
from dicom_node.archive import FileMeta, file_meta
from dicom_node.contexts import ACCEPTED, IMPLICIT_LE, VERIFICATION, Proposed
from dicom_node.elements import Unreadable

Stage = Literal["read", "connect", "associate", "send", "answer", "release"]
_MAX_PDU = 1 << 17
_MAX_CONTEXTS = 128


class DicomFault(Exception):
    """What went wrong, where: `code` is `refused`, `timeout`, `closed`, `reject 1/1/7`, `abort 2/0`, `protocol`..."""

    def __init__(self, stage: Stage, code: str, text: str) -> None:
        super().__init__(f"{stage}: {text}")
        self.stage, self.code, self.text = stage, code, text


@dataclass(slots=True)
class _Open:
    """An established association: (SOP class, transfer syntax) -> context id, and the longest PDV content."""

    wire: ul.Connection
    contexts: dict[tuple[str, str], int]
    most: int
    message_id: int = 0

    def next_id(self) -> int:
        self.message_id = self.message_id % 0xFFFF + 1
        return self.message_id


def echo(
    address: tuple[str, int],
    called: str,
    calling: str = "PASSERELLE",
    *,
    timeout: float = 30.0,
    tls: ssl.SSLContext | None = None,
) -> int:
    """C-ECHO; returns the status (0 = success). `timeout` in seconds, for each step. Raises DicomFault."""
    with _associate(address, called, calling, [(VERIFICATION, IMPLICIT_LE)], timeout, tls) as association:
        context = association.contexts.get((VERIFICATION, IMPLICIT_LE))
        if context is None:
            raise DicomFault("associate", "context", "the peer does not offer C-ECHO")
        with _stage("send"):
            request = dimse.echo_request(association.next_id(), VERIFICATION)
            association.wire.send(ul.data_pdu(context, 3, request))
        return _response(association)


def store(
    address: tuple[str, int],
    files: Iterable[Path],
    called: str,
    calling: str = "PASSERELLE",
    *,
    timeout: float = 30.0,
    tls: ssl.SSLContext | None = None,
) -> list[tuple[str, int]]:
    """C-STORE of Part 10 files over one association; (SOP Instance UID, status) of each, in order.

    A file whose SOP class and transfer syntax the peer did not accept has status 0x0122. At most 128 different pairs
    of them. `timeout` in seconds, for each answer. Raises DicomFault; then the files after the fault were not sent.
    """
    metas = [(path, _meta(path)) for path in files]
    pairs = list(dict.fromkeys((meta.sop_class_uid, meta.transfer_syntax_uid) for _, meta in metas))
    if len(pairs) > _MAX_CONTEXTS:
        raise DicomFault("read", "contexts", f"{len(pairs)} kinds of objects do not fit into one association")
    done: list[tuple[str, int]] = []
    with _associate(address, called, calling, pairs, timeout, tls) as association:
        for path, meta in metas:
            context = association.contexts.get((meta.sop_class_uid, meta.transfer_syntax_uid))
            if context is None:
                done.append((meta.sop_instance_uid, dimse.SOP_CLASS_NOT_SUPPORTED))
                continue
            with path.open("rb") as file, _stage("send"):
                _send(association, context, meta, file)
            done.append((meta.sop_instance_uid, _response(association)))
    return done


def _meta(path: Path) -> FileMeta:
    try:
        return file_meta(path)
    except (OSError, Unreadable) as fault:
        raise DicomFault("read", "file", f"{path.name}: {fault}") from fault


def _send(association: _Open, context: int, meta: FileMeta, file: BinaryIO) -> None:
    request = dimse.store_request(association.next_id(), meta.sop_class_uid, meta.sop_instance_uid)
    association.wire.send(ul.data_pdu(context, 3, request))
    left = os.fstat(file.fileno()).st_size - meta.offset
    file.seek(meta.offset)
    while True:
        content = file.read(min(left, association.most))
        left -= len(content)
        last = left <= 0 or not content
        association.wire.send(ul.data_pdu(context, 2 if last else 0, content))
        if last:
            return


def _response(association: _Open) -> int:
    with _stage("answer"):
        association.wire.restart()
        content = b""
        while True:
            left = _expect(association.wire, ul.P_DATA)
            while left:
                count, _, control = association.wire.fragment()
                left -= count + 6
                if count < 0 or left < 0 or not control & 1:
                    raise ul.PeerFault("the answer is no command")
                content += association.wire.take(count)
                if control & 2:
                    command = dimse.parse(content)
                    if command.responded_id != association.message_id:
                        raise ul.PeerFault("the answer is to another request")
                    return command.status


@contextmanager
def _associate(
    address: tuple[str, int],
    called: str,
    calling: str,
    pairs: Sequence[tuple[str, str]],
    timeout: float,
    tls: ssl.SSLContext | None,
) -> Iterator[_Open]:
    with _stage("connect"):
        sock = socket.create_connection(address, timeout)
    try:
        with _stage("connect"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_hostname=address[0])
        wire = ul.Connection(sock, size=65536, idle=timeout, min_rate=256.0)
        with _stage("associate"):
            association = _negotiated(wire, called, calling, pairs)
        try:
            yield association
        except DicomFault as fault:
            if fault.code in ("protocol", "timeout"):
                with _stage("release"):
                    wire.send(ul.abort_pdu(0, source=0))
            raise
        with _stage("release"):
            _release(wire)
    finally:
        sock.close()


def _negotiated(wire: ul.Connection, called: str, calling: str, pairs: Sequence[tuple[str, str]]) -> _Open:
    proposed = [Proposed(2 * n + 1, abstract, (syntax,)) for n, (abstract, syntax) in enumerate(pairs)]
    wire.send(ul.request_pdu(called, calling, proposed, _MAX_PDU))
    length = _expect(wire, ul.ASSOCIATE_AC)
    if length > ul.MAX_ASSOCIATE:
        raise ul.PeerFault("the A-ASSOCIATE-AC is too long")
    answers, max_length = ul.parse_accept(wire.take(length))
    accepted = {identifier for identifier, result, _ in answers if result == ACCEPTED}
    contexts = {pair: context.id for pair, context in zip(pairs, proposed, strict=True) if context.id in accepted}
    return _Open(wire, contexts, max(128, min(max_length or _MAX_PDU, _MAX_PDU) - 6))


def _expect(wire: ul.Connection, wanted: int) -> int:
    """Body length of the next PDU, which must be of type `wanted`; a rejection or abort becomes a DicomFault."""
    kind, length = wire.pdu()
    if kind == wanted:
        return length
    if kind == ul.ASSOCIATE_RJ and length >= 4:
        result, source, reason = wire.take(4)[1:4]
        raise DicomFault(
            "associate", f"reject {result}/{source}/{reason}", "the peer rejects the association"
        ) from None
    if kind == ul.ABORT and length >= 4:
        source, reason = wire.take(4)[2:4]
        raise DicomFault("answer", f"abort {source}/{reason}", "the peer aborted the association") from None
    raise ul.PeerFault(f"PDU type {kind} came where {wanted} was expected")


def _release(wire: ul.Connection) -> None:
    """PS3.8 section 7.2: on a collision the requester answers first, then waits for its own answer."""
    wire.restart()
    wire.send(ul.RELEASE_RQ_PDU)
    while True:
        kind, length = wire.pdu()
        if length > _MAX_PDU:
            raise ul.PeerFault("a PDU is too long")
        wire.take(length)
        if kind == ul.RELEASE_RP:
            return
        if kind == ul.RELEASE_RQ:
            wire.send(ul.RELEASE_RP_PDU)
        elif kind != ul.P_DATA:
            raise ul.PeerFault(f"PDU type {kind} came where a release was expected")


@contextmanager
def _stage(stage: Stage) -> Iterator[None]:
    """Turn what the layers below raise into a fact about this stage."""
    try:
        yield
    except DicomFault:
        raise
    except (TimeoutError, ul.PeerLate) as fault:
        raise DicomFault(stage, "timeout", str(fault) or "no answer in time") from fault
    except ConnectionRefusedError as fault:
        raise DicomFault(stage, "refused", "nobody listens there") from fault
    except (ul.PeerFault, dimse.CommandFault, UnicodeError) as fault:
        raise DicomFault(stage, "protocol", str(fault)) from fault
    except ssl.SSLError as fault:
        raise DicomFault(stage, "tls", str(fault)) from fault
    except (ul.PeerGone, OSError) as fault:
        raise DicomFault(stage, "closed", str(fault)) from fault
