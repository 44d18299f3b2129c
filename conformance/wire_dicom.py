"""A small DICOM SCU: the upper layer, C-ECHO and C-STORE, over one socket. Sizes in bytes, numbers as in the standard.

Hides PDU and PDV layout, the command set, time limits. Independent of the product's own node and of any DICOM library.

PS3.8 chapter 9 and annex D (PDUs), https://dicom.nema.org/medical/dicom/current/output/chtml/part08/chapter_9.html
PS3.7 9.1.1, 9.1.5, annex E (C-STORE, C-ECHO, command dictionary)
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from conformance.verdict import Deadline, Failed, NoAnswer, Transcript, Unreachable, expect

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"
ULTRASOUND_IMAGE = "1.2.840.10008.5.1.4.1.1.6.1"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
IMPLEMENTATION = "2.25.248063118479023905417216380492731058464"

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
ECHO_RQ, ECHO_RSP, STORE_RQ, STORE_RSP = 0x0030, 0x8030, 0x0001, 0x8001
NO_DATA_SET = 0x0101
PDU_LIMIT = 1024 * 1024

# PS3.7 table E.1-1: (group 0000) element -> how its value is written.
_UID_ELEMENTS = {0x0002, 0x0003, 0x1000, 0x1001}
_TEXT_ELEMENTS = {0x0902}


class Rejected(Exception):
    """A-ASSOCIATE-RJ: result, source and reason/diagnostic of PS3.8 table 9-21."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        super().__init__(f"A-ASSOCIATE-RJ result {result}, source {source}, reason {reason}")
        self.result, self.source, self.reason = result, source, reason


class Aborted(NoAnswer):
    """The system sent A-ABORT instead of an answer."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the system listens and how it is called."""

    ae_title: str
    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"dicom{'s' if self.tls else ''}://{self.ae_title}@{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Proposal:
    """One proposed presentation context; `id` is odd, 1 to 255."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """What the acceptor answered for one context: result 0 is acceptance (PS3.8 table 9-18)."""

    result: int
    transfer_syntax: str


def pdu(kind: int, body: bytes) -> bytes:
    """A PDU: type, reserved byte, 32-bit length, body."""
    return struct.pack(">BBI", kind, 0, len(body)) + body


def item(kind: int, body: bytes) -> bytes:
    """A variable item of an A-ASSOCIATE PDU."""
    return struct.pack(">BBH", kind, 0, len(body)) + body


def items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The variable items in `data`; raises `ValueError` when one is cut short."""
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise ValueError("an item header is cut short")
        kind, _, length = struct.unpack_from(">BBH", data, at)
        body = data[at + 4 : at + 4 + length]
        if len(body) < length:
            raise ValueError(f"item {kind:#04x} is cut short")
        yield kind, body
        at += 4 + length


def title(text: str) -> bytes:
    """An AE title in its 16 bytes."""
    return text.encode("ascii", "replace")[:16].ljust(16)


def associate_rq(calling: str, called: str, proposals: Sequence[Proposal], max_length: int) -> bytes:
    """A-ASSOCIATE-RQ, PS3.8 9.3.2."""
    body = struct.pack(">HH", 1, 0) + title(called) + title(calling) + bytes(32)
    body += item(0x10, APPLICATION_CONTEXT.encode())
    for one in proposals:
        syntaxes = b"".join(item(0x40, uid.encode()) for uid in one.transfer_syntaxes)
        body += item(0x20, bytes([one.id, 0, 0, 0]) + item(0x30, one.abstract_syntax.encode()) + syntaxes)
    user = (
        item(0x51, struct.pack(">I", max_length)) + item(0x52, IMPLEMENTATION.encode()) + item(0x55, b"CONFORMANCE_1")
    )
    return pdu(ASSOCIATE_RQ, body + item(0x50, user))


def read_accept(body: bytes) -> tuple[dict[int, Settled], int]:
    """Contexts and the maximum PDU length the acceptor can receive (0: no limit), from an A-ASSOCIATE-AC body."""
    contexts: dict[int, Settled] = {}
    longest = 0
    for kind, content in items(body[68:]):
        if kind == 0x21 and len(content) >= 4:
            syntax = next((text for sub, text in items(content[4:]) if sub == 0x40), b"")
            contexts[content[0]] = Settled(content[2], syntax.decode("ascii", "replace").rstrip("\0 "))
        elif kind == 0x50:
            for sub, value in items(content):
                if sub == 0x51 and len(value) == 4:
                    longest = struct.unpack(">I", value)[0]
    return contexts, longest


def command(elements: Mapping[int, int | str]) -> bytes:
    """A command set in Implicit VR Little Endian, with its group length."""
    body = b""
    for number in sorted(elements):
        value = elements[number]
        if isinstance(value, str):
            data = value.encode("ascii")
            data += (b"\0" if number in _UID_ELEMENTS else b" ") * (len(data) % 2)
        else:
            data = struct.pack("<H", value)
        body += struct.pack("<HHI", 0, number, len(data)) + data
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def read_command(data: bytes) -> dict[int, int | str]:
    """Element number -> value of a command set; raises `ValueError` when it is malformed."""
    found: dict[int, int | str] = {}
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("a command element is cut short")
        group, number, length = struct.unpack_from("<HHI", data, at)
        value = data[at + 8 : at + 8 + length]
        if group != 0 or len(value) < length:
            raise ValueError(f"({group:04X},{number:04X}) is no whole command element")
        if number in _UID_ELEMENTS | _TEXT_ELEMENTS or length not in (2, 4):
            found[number] = value.decode("ascii", "replace").rstrip("\0 ")
        else:
            found[number] = int.from_bytes(value, "little")
        at += 8 + length
    return found


def pdvs(context: int, data: bytes, *, is_command: bool, size: int) -> list[bytes]:
    """`data` as presentation data values of at most `size` bytes of content each."""
    chunks = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    last = len(chunks) - 1
    return [
        struct.pack(">IBB", len(chunk) + 2, context, (2 if number == last else 0) | is_command) + chunk
        for number, chunk in enumerate(chunks)
    ]


def read_pdvs(body: bytes) -> Iterator[tuple[int, bool, bool, bytes]]:
    """(context, is command, is last, content) of each PDV in a P-DATA-TF body; `ValueError` when malformed."""
    at = 0
    while at < len(body):
        if at + 6 > len(body):
            raise ValueError("a PDV header is cut short")
        length, context, header = struct.unpack_from(">IBB", body, at)
        if length < 2 or at + 4 + length > len(body):
            raise ValueError(f"a PDV of length {length} does not fit its PDU")
        yield context, bool(header & 1), bool(header & 2), body[at + 6 : at + 4 + length]
        at += 4 + length


@dataclass(slots=True)
class Association:
    """One connection and, once `request`ed, one association; also a context manager that closes the socket.

    `timeout` bounds the wait for one PDU, in seconds.
    """

    address: Address
    timeout: float
    deadline: Deadline
    transcript: Transcript
    tls: ssl.SSLContext | None = None
    contexts: dict[int, Settled] = field(default_factory=dict)
    peer_max: int = 0
    _socket: socket.socket | None = None
    _message: int = 0

    def __enter__(self) -> Association:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, calling: str, proposals: Sequence[Proposal], *, called: str | None = None) -> Association:
        """Connect and associate; raises `Unreachable`, `Rejected`, `NoAnswer`."""
        self._connect()
        called = self.address.ae_title if called is None else called
        told = "; ".join(f"{one.id} {one.abstract_syntax} [{' '.join(one.transfer_syntaxes)}]" for one in proposals)
        self.transcript.sent(f"A-ASSOCIATE-RQ {calling} -> {called}: {told}")
        self.send(associate_rq(calling, called, proposals, 16_384))
        kind, body = self.receive()
        if kind == ASSOCIATE_RJ and len(body) >= 4:
            raise Rejected(body[1], body[2], body[3])
        expect(kind == ASSOCIATE_AC, "A-ASSOCIATE-AC or A-ASSOCIATE-RJ", f"a PDU of type {kind:#04x}")
        try:
            self.contexts, self.peer_max = read_accept(body)
        except ValueError as error:
            raise Failed("a well-formed A-ASSOCIATE-AC", error) from None
        told = "; ".join(f"{n} result {one.result} {one.transfer_syntax}" for n, one in self.contexts.items())
        self.transcript.received(f"A-ASSOCIATE-AC {told}; max length {self.peer_max}")
        return self

    def echo(self, context: int) -> int:
        """C-ECHO; the status."""
        self._message += 1
        request: dict[int, int | str] = {
            0x0002: VERIFICATION,
            0x0100: ECHO_RQ,
            0x0110: self._message,
            0x0800: NO_DATA_SET,
        }
        self.transcript.sent(f"C-ECHO-RQ message {self._message}")
        self.send(pdu(P_DATA, pdvs(context, command(request), is_command=True, size=16_000)[0]))
        return self._response(ECHO_RSP)

    def store(self, context: int, sop_class: str, instance: str, data: bytes, *, fragment: int = 0) -> int:
        """C-STORE; the status. With `fragment`, values of that many bytes, three to a PDU."""
        self._message += 1
        request: dict[int, int | str] = {
            0x0002: sop_class,
            0x0100: STORE_RQ,
            0x0110: self._message,
            0x0700: 0,
            0x0800: 0x0000,
            0x1000: instance,
        }
        size = fragment or min(16_000, (self.peer_max or 16_384) - 12)
        self.transcript.sent(f"C-STORE-RQ message {self._message}, {instance}, {len(data)} bytes, values of {size}")
        values = pdvs(context, command(request), is_command=True, size=size)
        values += pdvs(context, data, is_command=False, size=size)
        group = 3 if fragment else 1
        for at in range(0, len(values), group):
            self.send(pdu(P_DATA, b"".join(values[at : at + group])))
        return self._response(STORE_RSP, instance)

    def release(self) -> None:
        """A-RELEASE-RQ; raises `Failed` unless A-RELEASE-RP comes back."""
        self.transcript.sent("A-RELEASE-RQ")
        self.send(pdu(RELEASE_RQ, bytes(4)))
        kind, _ = self.receive()
        expect(kind == RELEASE_RP, "A-RELEASE-RP", f"a PDU of type {kind:#04x}")
        self.transcript.received("A-RELEASE-RP")
        self._live().close()
        self._socket = None

    def send(self, data: bytes) -> None:
        """Send raw bytes; raises `NoAnswer`."""
        try:
            sock = self._live()
            sock.settimeout(self.deadline.within(self.timeout).remaining())
            sock.sendall(data)
        except OSError as error:
            raise NoAnswer("a connection that takes the PDU", f"{type(error).__name__}: {error}") from None

    def receive(self) -> tuple[int, bytes]:
        """Type and body of the next PDU; raises `Aborted` on A-ABORT, `NoAnswer` on silence or a closed connection."""
        until = self.deadline.within(self.timeout)
        kind, _, length = struct.unpack(">BBI", self._exactly(6, until))
        expect(length <= PDU_LIMIT, f"a PDU of at most {PDU_LIMIT} bytes", f"type {kind:#04x}, length {length}")
        body = self._exactly(length, until)
        if kind == ABORT:
            source, reason = (body[2], body[3]) if len(body) >= 4 else (0, 0)
            self.transcript.received(f"A-ABORT source {source}, reason {reason}")
            raise Aborted("an answer", f"A-ABORT source {source}, reason {reason}")
        return kind, body

    def close(self) -> None:
        """Close the connection, with A-ABORT when it is still up."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.settimeout(1.0)
                self._socket.sendall(pdu(ABORT, bytes(4)))
            self._socket.close()
            self._socket = None

    def _connect(self) -> None:
        until = self.deadline.within(self.timeout)
        try:
            raw = socket.create_connection((self.address.host, self.address.port), until.remaining())
        except OSError as error:
            raise Unreachable(f"no connection to {self.address}: {error}") from None
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = self.tls.wrap_socket(raw, server_hostname=self.address.host) if self.tls else raw
        except OSError as error:
            raw.close()
            raise Unreachable(f"no TLS with {self.address}: {error}") from None

    def _live(self) -> socket.socket:
        if self._socket is None:
            raise OSError("the connection is closed")
        return self._socket

    def _exactly(self, count: int, until: Deadline) -> bytes:
        data = bytearray()
        try:
            while len(data) < count:
                left = until.remaining_or_zero()
                if not left:
                    raise TimeoutError
                self._live().settimeout(left)
                chunk = self._live().recv(count - len(data))
                if not chunk:
                    raise ConnectionError("closed")
                data += chunk
        except TimeoutError:
            why = f"silence for {self.timeout:g} s"
        except OSError as error:
            why = f"the connection ended: {error}"
        else:
            return bytes(data)
        self.transcript.received(why)
        raise NoAnswer("a PDU in answer", why)

    def _response(self, wanted: int, instance: str = "") -> int:
        data = bytearray()
        while True:
            kind, body = self.receive()
            expect(kind == P_DATA, "P-DATA-TF with the response", f"a PDU of type {kind:#04x}")
            try:
                for _, is_command, is_last, content in read_pdvs(body):
                    expect(is_command, "a response command", "a data set")
                    data += content
                    if is_last:
                        return self._status(read_command(bytes(data)), wanted, instance)
            except ValueError as error:
                raise Failed("a well-formed response", error) from None
            expect(len(data) <= PDU_LIMIT, "a response command of reasonable size", f"{len(data)} bytes")

    def _status(self, answer: Mapping[int, int | str], wanted: int, instance: str) -> int:
        told = ", ".join(f"(0000,{n:04X}) {v if isinstance(v, str) else hex(v)}" for n, v in answer.items())
        self.transcript.received(f"response: {told}")
        expect(answer.get(0x0100) == wanted, f"Command Field {wanted:#06x}", told)
        expect(answer.get(0x0120) == self._message, f"Message ID Being Responded To {self._message}", told)
        if instance and 0x1000 in answer:
            expect(answer[0x1000] == instance, f"Affected SOP Instance UID {instance}", told)
        status = answer.get(0x0900)
        if not isinstance(status, int):
            raise Failed("a Status (0000,0900)", told)
        return status
