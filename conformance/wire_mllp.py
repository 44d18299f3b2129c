"""A small MLLP client and just enough HL7 v2 reading to judge an acknowledgement.

Hides framing, time limits and separators. Independent of the product's own wire.

HL7 v2.5 chapter 2 (2.9 processing rules, 2.15 MSH, MSA, ERR); HL7 Transport Specification: MLLP, Release 1;
IHE ITI TF-2 appendix C, https://profiles.ihe.net/ITI/TF/Volume2/ch-C.html
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import NoReturn

from conformance.verdict import Deadline, Failed, NoAnswer, Transcript, Unreachable, expect

START, END, CARRIAGE_RETURN = b"\x0b", b"\x1c", b"\x0d"
ANSWER_LIMIT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Address:
    """Where the system listens."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"mllp{'s' if self.tls else ''}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Ack:
    """An acknowledgement, its fields readable by name: `ack("MSA", 2)`."""

    segments: tuple[tuple[str, ...], ...]
    component: str
    repetition: str

    def __call__(self, segment: str, number: int) -> str:
        """Field `number` of the first such segment, raw; '' when absent. MSH-1 is the separator itself."""
        for fields in self.segments:
            if fields[0] == segment:
                return fields[number] if number < len(fields) else ""
        return ""

    def components(self, segment: str, number: int) -> list[str]:
        """The components of the first repetition of a field."""
        return self(segment, number).split(self.repetition)[0].split(self.component)

    @property
    def code(self) -> str:
        return self("MSA", 1)

    @property
    def control_id(self) -> str:
        return self("MSA", 2)

    def summary(self) -> str:
        """MSA and ERR as they came, for a finding."""
        told = [self._line(fields) for fields in self.segments if fields[0] in {"MSA", "ERR"}]
        return " / ".join(told) or "neither MSA nor ERR"

    def _line(self, fields: tuple[str, ...]) -> str:
        return self("MSH", 1).join(fields)


def frame(message: bytes) -> bytes:
    """One MLLP block: VT, content, FS, CR."""
    return START + message + END + CARRIAGE_RETURN


def read_ack(content: bytes) -> Ack:
    """An acknowledgement from the content of a block; raises `Failed` when it is none."""
    text = content.decode("utf-8", "replace")
    expect(text.startswith("MSH") and len(text) > 8, "an acknowledgement that begins with MSH", repr(text[:80]))
    separator, component, repetition = text[3], text[4], text[5]
    segments = []
    for line in text.replace("\n", "\r").split("\r"):
        if line:
            fields = line.split(separator)
            # MSH-1 is the separator: put it in its place so that numbers are those of the standard.
            segments.append((fields[0], separator, *fields[1:]) if fields[0] == "MSH" else tuple(fields))
    ack = Ack(tuple(segments), component, repetition)
    expect(ack("MSA", 1), "an MSA segment with MSA-1", repr(text[:200]))
    return ack


@dataclass(slots=True)
class Connection:
    """One TCP connection that stays open until `close`; also a context manager."""

    address: Address
    timeout: float
    deadline: Deadline
    transcript: Transcript
    tls: ssl.SSLContext | None = None
    _socket: socket.socket | None = None
    _rest: bytearray = field(default_factory=bytearray)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Connection:
        """Connect; raises `Unreachable`."""
        until = self.deadline.within(self.timeout)
        try:
            raw = socket.create_connection((self.address.host, self.address.port), until.remaining())
        except OSError as error:
            raise Unreachable(f"no connection to {self.address}: {error}") from None
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = raw
            if self.tls is not None:
                self._socket = self.tls.wrap_socket(raw, server_hostname=self.address.host)
        except OSError as error:
            raw.close()
            self._socket = None
            raise Unreachable(f"no TLS with {self.address}: {error}") from None
        return self

    def send(self, data: bytes, *, pieces: int = 0) -> None:
        """Send raw bytes, in that many TCP segments 20 ms apart when `pieces` is given; raises `NoAnswer`."""
        self.transcript.sent(_shown(data))
        size = -(-len(data) // pieces) if pieces else len(data)
        try:
            for at in range(0, len(data), max(size, 1)):
                # The pause keeps the kernels on the way from putting the pieces together again.
                time.sleep(0.02 if pieces else 0)
                self._live().settimeout(self.deadline.within(self.timeout).remaining())
                self._live().sendall(data[at : at + size])
        except OSError as error:
            raise NoAnswer("a connection that takes the message", f"{type(error).__name__}: {error}") from None

    def receive(self, *, strict: bool = False) -> bytes:
        """The content of the next block. Raises `NoAnswer`.

        Bytes before its VT and a missing CR after its FS are tolerated, unless `strict`.
        """
        until = self.deadline.within(self.timeout)
        while True:
            begin = self._rest.find(START)
            end = self._rest.find(END, begin + 1) if begin >= 0 else -1
            if end >= 0 and not (strict and len(self._rest) == end + 1):
                content, after = bytes(self._rest[begin + 1 : end]), bytes(self._rest[end + 1 : end + 2])
                self.transcript.received(_shown(content))
                if strict:
                    expect(begin == 0, "VT as the first byte of the answer", repr(bytes(self._rest[:begin][:80])))
                    expect(after == CARRIAGE_RETURN, "FS followed by CR at the end of the block", f"FS {after!r}")
                del self._rest[: end + 1 + (after == CARRIAGE_RETURN)]
                return content
            self._more(until)

    def exchange(self, message: bytes) -> Ack:
        """Send one framed message and read its acknowledgement."""
        self.send(frame(message))
        return read_ack(self.receive())

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _live(self) -> socket.socket:
        if self._socket is None:
            self.open()
        if self._socket is None:
            raise Unreachable(f"no connection to {self.address}")
        return self._socket

    def _more(self, until: Deadline) -> None:
        left = until.remaining_or_zero()
        if not left:
            self._ended(f"silence for {self.timeout:g} s")
        try:
            self._live().settimeout(left)
            data = self._live().recv(65536)
        except TimeoutError:
            self._ended(f"silence for {self.timeout:g} s")
        except OSError as error:
            self._ended(f"{type(error).__name__}: {error}")
        if not data:
            self._ended("the connection was closed without an answer")
        self._rest += data
        if len(self._rest) > ANSWER_LIMIT:
            raise Failed(f"an acknowledgement of at most {ANSWER_LIMIT} bytes", "more")

    def _ended(self, why: str) -> NoReturn:
        self.transcript.received(why)
        with contextlib.suppress(OSError):
            self.close()
        got = f", after {bytes(self._rest[:80])!r}" if self._rest else ""
        raise NoAnswer("an acknowledgement in a block of its own (VT ... FS CR)", why + got)


def _shown(data: bytes) -> str:
    text = data[:16_000].decode("utf-8", "replace").replace("\r", "\n")
    return text.replace("\x0b", "<VT>").replace("\x1c", "<FS>").replace("\x00", "<NUL>").rstrip("\n")
