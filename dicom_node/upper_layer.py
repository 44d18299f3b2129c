"""The DICOM upper layer: protocol data units as bytes, and a connection that reads them without copying data sets.

Hides item encodings, partial reads, delayed acknowledgements and slow peers. Knows nothing of storage.

Sources: PS3.8 sections 9.2 and 9.3, annex D; PS3.7 annex D.3.3 (user information items).
https://dicom.nema.org/medical/dicom/current/output/chtml/part08/sect_9.3.html
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from dicom_node.contexts import (
    APPLICATION_CONTEXT,
    IMPLEMENTATION_UID,
    IMPLEMENTATION_VERSION,
    Answered,
    Proposed,
)

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
RELEASE_RQ_PDU = struct.pack(">BxLL", RELEASE_RQ, 4, 0)
RELEASE_RP_PDU = struct.pack(">BxLL", RELEASE_RP, 4, 0)
# Reasons of a provider-initiated A-ABORT, PS3.8 table 9-26.
UNSPECIFIED, UNRECOGNIZED_PDU, UNEXPECTED_PDU, UNEXPECTED_PARAMETER, INVALID_PARAMETER = 0, 1, 2, 5, 6
MAX_ASSOCIATE = 1 << 18  # bytes of an A-ASSOCIATE PDU we are willing to read: 128 contexts x 45 syntaxes need 150 kB
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_PDU = struct.Struct(">BxL")
_ITEM = struct.Struct(">BxH")
_PDV = struct.Struct(">LBB")


class PeerFault(Exception):
    """The peer broke the protocol; `reason` goes into our A-ABORT."""

    def __init__(self, text: str, reason: int = INVALID_PARAMETER) -> None:
        super().__init__(text)
        self.reason = reason


class PeerGone(Exception):
    """The connection ended, or the peer aborted."""


class PeerLate(Exception):
    """The peer sent nothing, or too little, for too long."""


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """A-ASSOCIATE-RQ. `max_length` is the longest P-DATA-TF body the peer reads, 0 = any; `operations` its wish of
    operations in flight (invoked, performed) or None."""

    version: int
    called: str
    calling: str
    application_context: str
    contexts: tuple[Proposed, ...]
    max_length: int
    implementation_uid: str = ""
    implementation_version: str = ""
    operations: tuple[int, int] | None = None


def parse_request(body: bytes) -> AssociateRequest:
    """Read the body of an A-ASSOCIATE-RQ. Raises PeerFault."""
    version, called, calling, items = _associate(body)
    contexts: list[Proposed] = []
    user: dict[int, bytes] = {}
    application = ""
    for kind, value in items:
        if kind == 0x10:
            application = _uid(value)
        elif kind == 0x20:
            contexts.append(_proposed(value))
        elif kind == 0x50:
            user = dict(_items(value))
    if len({context.id for context in contexts}) != len(contexts):
        raise PeerFault("two presentation contexts have the same id")
    operations = user.get(0x53)
    return AssociateRequest(
        version,
        called,
        calling,
        application,
        tuple(contexts),
        _max_length(user),
        _printable(user.get(0x52, b"")),
        _printable(user.get(0x55, b"")),
        struct.unpack(">HH", operations) if operations and len(operations) == 4 else None,
    )


def request_pdu(called: str, calling: str, contexts: Sequence[Proposed], max_length: int) -> bytes:
    """Build an A-ASSOCIATE-RQ. AE titles are at most 16 ASCII characters."""
    items = [_item(0x10, APPLICATION_CONTEXT.encode())]
    for context in contexts:
        content = _item(0x30, context.abstract_syntax.encode())
        content += b"".join(_item(0x40, syntax.encode()) for syntax in context.transfer_syntaxes)
        items.append(_item(0x20, bytes((context.id, 0, 0, 0)) + content))
    items.append(_item(0x50, _user_information(max_length)))
    return _associate_pdu(ASSOCIATE_RQ, _title(called), _title(calling), b"".join(items))


def accept_pdu(
    request: AssociateRequest, titles: bytes, answers: Sequence[Answered], max_length: int, in_flight: int
) -> bytes:
    """Build an A-ASSOCIATE-AC. `titles` are the 32 bytes of both AE titles, sent back untouched (PS3.8 9.3.3).

    When the peer asked for an asynchronous window it may have up to `in_flight` operations under way; we answer them
    in order.
    """
    items = [_item(0x10, APPLICATION_CONTEXT.encode())]
    for answer in answers:
        content = _item(0x40, answer.transfer_syntax.encode())
        items.append(_item(0x21, bytes((answer.id, 0, answer.result, 0)) + content))
    user = _user_information(max_length)
    if request.operations is not None:
        user += _item(0x53, struct.pack(">HH", min(request.operations[0] or in_flight, in_flight), 1))
    items.append(_item(0x50, user))
    return _associate_pdu(ASSOCIATE_AC, titles[:16], titles[16:32], b"".join(items))


def parse_accept(body: bytes) -> tuple[tuple[tuple[int, int, str], ...], int]:
    """((context id, result, transfer syntax)...) and the acceptor's max length. Raises PeerFault."""
    _, _, _, items = _associate(body)
    answers: list[tuple[int, int, str]] = []
    user: dict[int, bytes] = {}
    for kind, value in items:
        if kind == 0x21 and len(value) >= 4:
            syntax = next((_uid(v) for k, v in _items(value[4:]) if k == 0x40), "")
            answers.append((value[0], value[2], syntax))
        elif kind == 0x50:
            user = dict(_items(value))
    return tuple(answers), _max_length(user)


def reject_pdu(result: int, source: int, reason: int) -> bytes:
    """A-ASSOCIATE-RJ, PS3.8 table 9-21: result 1 permanent, 2 transient."""
    return struct.pack(">BxLxBBB", ASSOCIATE_RJ, 4, result, source, reason)


def abort_pdu(reason: int, source: int = 2) -> bytes:
    """A-ABORT; source 2 is the service provider, 0 the service user (then the reason is not significant)."""
    return struct.pack(">BxLxxBB", ABORT, 4, source, reason)


def data_pdu(context: int, control: int, content: bytes) -> bytes:
    """A P-DATA-TF with one PDV. `control`: bit 0 command, bit 1 last fragment."""
    return _PDU.pack(P_DATA, len(content) + 6) + _PDV.pack(len(content) + 2, context, control) + content


def _associate(body: bytes) -> tuple[int, str, str, list[tuple[int, bytes]]]:
    if len(body) < 68:
        raise PeerFault("an A-ASSOCIATE PDU is shorter than its fixed fields")
    called, calling = (_printable(body[start : start + 16]) for start in (4, 20))
    return struct.unpack_from(">H", body)[0], called, calling, list(_items(body[68:]))


def _associate_pdu(kind: int, called: bytes, calling: bytes, items: bytes) -> bytes:
    return _PDU.pack(kind, 68 + len(items)) + struct.pack(">Hxx16s16s32x", 1, called, calling) + items


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        if position + 4 > len(data):
            raise PeerFault("an association item is cut short")
        kind, length = _ITEM.unpack_from(data, position)
        position += 4 + length
        if position > len(data):
            raise PeerFault("an association item is longer than its PDU")
        yield kind, data[position - length : position]


def _proposed(value: bytes) -> Proposed:
    if len(value) < 4 or value[0] % 2 == 0:
        raise PeerFault("a presentation context has no odd id")
    abstract, syntaxes = "", []
    for kind, content in _items(value[4:]):
        if kind == 0x30:
            abstract = _uid(content)
        elif kind == 0x40:
            syntaxes.append(_uid(content))
    return Proposed(value[0], abstract, tuple(syntaxes))


def _user_information(max_length: int) -> bytes:
    return (
        _item(0x51, struct.pack(">L", max_length))
        + _item(0x52, IMPLEMENTATION_UID.encode())
        + _item(0x55, IMPLEMENTATION_VERSION.encode())
    )


def _max_length(user: dict[int, bytes]) -> int:
    value = user.get(0x51, b"")
    return int(struct.unpack(">L", value)[0]) if len(value) == 4 else 0


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _printable(value: bytes) -> str:
    """Text that may go into a log line as it is."""
    return "".join(c if c.isprintable() else "?" for c in value.decode("latin_1").strip(" \0"))


def _uid(value: bytes) -> str:
    return value.decode("latin_1").strip(" \0")


def _title(text: str) -> bytes:
    return text.encode("ascii")[:16].ljust(16)


class Connection:
    """A connected socket read in large pieces. Not shared between threads, except `socket.shutdown` from outside.

    `idle` is the longest wait for the next byte, in seconds. `restart` opens a message: it must then arrive at
    `min_rate` bytes per second or more on average, after `idle` seconds of grace.
    """

    def __init__(self, sock: socket.socket, *, size: int, idle: float, min_rate: float) -> None:
        self.socket = sock
        self._buffer = memoryview(bytearray(size))
        self._start = self._end = 0
        self._idle, self._seconds_a_byte = idle, 1.0 / min_rate
        self._deadline = monotonic() + idle
        sock.settimeout(idle)

    def restart(self, idle: float | None = None) -> None:
        """Begin a new allowance of time; `idle` replaces the longest wait."""
        if idle is not None and idle != self._idle:
            self._idle = idle
            self.socket.settimeout(idle)
        self._deadline = monotonic() + self._idle

    def pdu(self) -> tuple[int, int]:
        """(type, length of the body) of the next PDU; the body must then be taken."""
        kind, length = _PDU.unpack_from(self._need(6), self._start)
        self._start += 6
        return kind, length

    def take(self, count: int) -> bytes:
        """The next `count` bytes, copied."""
        parts = []
        while count:
            part = self.some(count)
            parts.append(bytes(part))
            count -= len(part)
        return b"".join(parts)

    def fragment(self) -> tuple[int, int, int]:
        """(length, context id, control) of the next PDV; its length counts the fragment's bytes alone."""
        length, context, control = _PDV.unpack_from(self._need(6), self._start)
        self._start += 6
        return length - 2, context, control

    def some(self, most: int) -> memoryview:
        """Between 1 and `most` next bytes, valid until the next call."""
        if self._start == self._end:
            self._start = self._end = 0
            self._fill()
        view = self._buffer[self._start : min(self._end, self._start + most)]
        self._start += len(view)
        return view

    def send(self, data: bytes) -> None:
        """Send all of `data` in one write. Raises PeerGone or PeerLate."""
        try:
            self.socket.sendall(data)
        except TimeoutError as fault:
            raise PeerLate("the peer does not read our answers") from fault
        except OSError as fault:
            raise PeerGone(str(fault)) from fault

    def drain(self, seconds: float) -> None:
        """Read and discard until the peer closes, so that our last bytes are not lost to a reset."""
        self._start = self._end = 0
        self._seconds_a_byte = 0.0
        self.restart(seconds)
        try:
            while True:
                self._fill()
                self._end = 0
        except (PeerGone, PeerLate):
            return

    def _need(self, count: int) -> memoryview:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + count > len(self._buffer):
            rest = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        while self._end - self._start < count:
            self._fill()
        return self._buffer

    def _fill(self) -> None:
        try:
            count = self.socket.recv_into(self._buffer[self._end :])
            if _QUICKACK is not None:
                # Peers with Nagle's algorithm on wait for this acknowledgement; the kernel forgets the flag.
                self.socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        except TimeoutError as fault:
            raise PeerLate("nothing came from the peer for too long") from fault
        except OSError as fault:
            raise PeerGone(str(fault)) from fault
        if count == 0:
            raise PeerGone("the peer closed the connection")
        self._end += count
        now = monotonic()
        self._deadline += count * self._seconds_a_byte
        if now > self._deadline:
            raise PeerLate("the peer sends too slowly")
