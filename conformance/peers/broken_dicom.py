"""A very small DICOM acceptor (Verification, Ultrasound Image Storage) that is right, or wrong in one named way.

What it receives it counts and forgets: it exists to prove that each check fails when it should.

PS3.8 chapter 9, PS3.7 9.1.1 and 9.1.5
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
from collections.abc import Mapping
from functools import partial

from conformance.peers.fault import Fault
from conformance.peers.serving import Serving
from conformance.wire_dicom import (
    ABORT,
    APPLICATION_CONTEXT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    ASSOCIATE_RQ,
    ECHO_RQ,
    ECHO_RSP,
    EXPLICIT_LITTLE,
    IMPLEMENTATION,
    IMPLICIT_LITTLE,
    NO_DATA_SET,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    STORE_RSP,
    ULTRASOUND_IMAGE,
    VERIFICATION,
    command,
    item,
    items,
    pdu,
    pdvs,
    read_command,
    read_pdvs,
    title,
)

_STORE = ("dicom.store", "dicom.fragments")
_PDU = ("dicom.unexpected-pdu",)
FAULTS: Mapping[str, Fault] = {
    "echo-fails": Fault("C-ECHO is answered 0x0110", ("dicom.echo",)),
    "echo-other-message": Fault("C-ECHO-RSP answers another message id", ("dicom.echo",)),
    "no-release": Fault("A-RELEASE-RQ is answered A-ABORT", ("dicom.release", *_STORE)),
    "release-ignored-when-idle": Fault("a release before any data is not answered", ("dicom.release",)),
    "explicit-only": Fault("Implicit VR Little Endian alone is refused", ("dicom.default-transfer-syntax",)),
    "knows-everything": Fault("any SOP class is accepted", ("dicom.unknown-abstract-syntax",)),
    "all-or-nothing": Fault("one unknown SOP class rejects the association", ("dicom.unknown-abstract-syntax",)),
    "any-called-ae": Fault("any called AE title is accepted", ("dicom.called-ae",)),
    "no-reason": Fault("a wrong called AE title is rejected for no reason given", ("dicom.called-ae",)),
    "own-transfer-syntax": Fault("a syntax that was not offered is chosen", ("dicom.transfer-syntax",)),
    "store-out-of-resources": Fault("C-STORE is answered 0xA700", _STORE),
    "store-warning": Fault("an unfragmented C-STORE is answered 0xB000", ("dicom.store",)),
    "one-value-per-pdu": Fault("only the first value of a PDU is read", ("dicom.fragments",), silent=True),
    "ignores-unknown-pdu": Fault("a PDU of unknown type ends the connection without A-ABORT", _PDU),
    "dies-of-unknown-pdu": Fault("after a PDU of unknown type every association is rejected", _PDU),
}

AE_TITLE = "BROKEN"
_SYNTAXES = {
    VERIFICATION: (IMPLICIT_LITTLE, EXPLICIT_LITTLE),
    ULTRASOUND_IMAGE: (IMPLICIT_LITTLE, EXPLICIT_LITTLE),
}
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_LIMIT = 1_000_000


class Acceptor:
    """What outlives an association."""

    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.dead = False


class _Handler(socketserver.BaseRequestHandler):
    request: socket.socket
    acceptor: Acceptor

    def setup(self) -> None:
        self._command: list[bytes] = []
        self._data: list[bytes] = []
        self._asked: dict[int, int | str] = {}
        self._stored = False

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request.settimeout(10)
        with contextlib.suppress(OSError, ValueError):
            kind, body = self._receive()
            if kind == ASSOCIATE_RQ and self._associate(body):
                self._serve()

    def _receive(self) -> tuple[int, bytes]:
        kind, _, length = struct.unpack(">BBI", self._exactly(6))
        if length > _LIMIT:
            raise ValueError("a PDU too long")
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self.request.recv(count - len(data))
            if not chunk:
                raise ConnectionError("closed")
            data += chunk
        return data

    def _reject(self, source: int, reason: int) -> bool:
        self.request.sendall(pdu(ASSOCIATE_RJ, bytes([0, 1, source, reason])))
        return False

    def _associate(self, body: bytes) -> bool:
        faults = self.acceptor.faults
        called = body[4:20].decode("ascii", "replace").strip()
        if self.acceptor.dead:
            return self._reject(3, 1)
        if called != AE_TITLE and "any-called-ae" not in faults:
            return self._reject(*((1, 1) if "no-reason" in faults else (1, 7)))
        answers = b""
        for kind, content in items(body[68:]):
            if kind == 0x20:
                abstract = "".join(_uids(content[4:], 0x30)[:1])
                if abstract not in _SYNTAXES and "all-or-nothing" in faults:
                    return self._reject(1, 1)
                result, syntax = self._settle(abstract, _uids(content[4:], 0x40))
                answers += item(0x21, bytes([content[0], 0, result, 0]) + item(0x40, syntax.encode()))
        user = item(0x51, struct.pack(">I", 16_384)) + item(0x52, IMPLEMENTATION.encode())
        head = struct.pack(">HH", 1, 0) + title(called) + body[20:36] + bytes(32)
        context = item(0x10, APPLICATION_CONTEXT.encode())
        self.request.sendall(pdu(ASSOCIATE_AC, head + context + answers + item(0x50, user)))
        return True

    def _settle(self, abstract: str, offered: list[str]) -> tuple[int, str]:
        faults = self.acceptor.faults
        if abstract not in _SYNTAXES:
            return (0, offered[0]) if "knows-everything" in faults else (3, offered[0])
        if "explicit-only" in faults and abstract == VERIFICATION and offered == [IMPLICIT_LITTLE]:
            return 4, offered[0]
        if "own-transfer-syntax" in faults and IMPLICIT_LITTLE in offered and abstract == ULTRASOUND_IMAGE:
            return 0, _BIG_ENDIAN
        common = next((one for one in offered if one in _SYNTAXES[abstract]), None)
        return (4, offered[0]) if common is None else (0, common)

    def _serve(self) -> None:
        faults = self.acceptor.faults
        while True:
            kind, body = self._receive()
            if kind == P_DATA:
                values = list(read_pdvs(body))
                self._take(values[:1] if "one-value-per-pdu" in faults else values)
            elif kind == RELEASE_RQ:
                if "release-ignored-when-idle" not in faults or self._stored:
                    self.request.sendall(pdu(ABORT if "no-release" in faults else RELEASE_RP, bytes(4)))
                return
            elif kind == ABORT:
                return
            else:
                self.acceptor.dead = "dies-of-unknown-pdu" in faults
                if "ignores-unknown-pdu" not in faults:
                    self.request.sendall(pdu(ABORT, bytes([0, 0, 2, 1])))
                return

    def _take(self, values: list[tuple[int, bool, bool, bytes]]) -> None:
        for context, is_command, is_last, content in values:
            parts = self._command if is_command else self._data
            parts.append(content)
            if sum(map(len, self._command)) + sum(map(len, self._data)) > _LIMIT:
                raise ValueError("a message too long")
            if is_last and is_command:
                self._asked = read_command(b"".join(self._command))
                self._command.clear()
            if is_last and (not is_command or self._asked.get(0x0800) == NO_DATA_SET):
                self._respond(context, self._asked, fragmented=len(self._data) > 1)
                self._stored = self._stored or not is_command
                self._data.clear()

    def _respond(self, context: int, asked: Mapping[int, int | str], *, fragmented: bool) -> None:
        faults = self.acceptor.faults
        message = int(asked.get(0x0110, 0))
        answer: dict[int, int | str] = {0x0002: asked.get(0x0002, ""), 0x0800: NO_DATA_SET, 0x0900: 0}
        if asked.get(0x0100) == ECHO_RQ:
            answer |= {0x0100: ECHO_RSP, 0x0120: message + ("echo-other-message" in faults)}
            if "echo-fails" in faults:
                answer[0x0900] = 0x0110
        else:
            answer |= {0x0100: STORE_RSP, 0x0120: message, 0x1000: asked.get(0x1000, "")}
            if "store-out-of-resources" in faults:
                answer[0x0900] = 0xA700
            if "store-warning" in faults and not fragmented:
                answer[0x0900] = 0xB000
        self.request.sendall(pdu(P_DATA, pdvs(context, command(answer), is_command=True, size=16_000)[0]))


def _uids(data: bytes, wanted: int) -> list[str]:
    return [text.decode("ascii", "replace").rstrip("\0 ") for kind, text in items(data) if kind == wanted]


def _handler(faults: frozenset[str]) -> type[_Handler]:
    return type("Handler", (_Handler,), {"acceptor": Acceptor(faults)})


BrokenDicom = partial(Serving, _handler, FAULTS, f"dicom=dicom{{s}}://{AE_TITLE}@127.0.0.1:{{port}}")
"""The acceptor on a free loopback port, with the faults that are named."""
