"""A listener that waits for a foreign sender's messages and answers each as a check wants, wrongly where it wants.

Hides connections (several, kept or reopened), framing, TLS and time limits. One thread: a check reads what came and
says how to answer.

HL7 Transport Specification: MLLP, Release 1; HL7 v2.5 2.9.2
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

from conformance.message import Message
from conformance.peers.mllp import acknowledgement
from conformance.verdict import Deadline, NoAnswer, Transcript, Unreachable
from conformance.wire_mllp import CARRIAGE_RETURN, END, START, Address, frame

MESSAGE_LIMIT = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Arrived:
    """One block: its message, what stood before its VT, and the connection it came over."""

    message: Message
    before: bytes
    line: socket.socket

    @property
    def control_id(self) -> str:
        return self.message.control_id


@dataclass(slots=True)
class Listener:
    """Listens while it is open; a context manager. `record`: a folder that keeps each message, for `hl7v2-files`."""

    address: Address
    deadline: Deadline
    transcript: Transcript
    tls: ssl.SSLContext | None = None
    record: str = ""
    _server: socket.socket | None = None
    _lines: dict[socket.socket, bytearray] = field(default_factory=dict)

    def __enter__(self) -> Listener:
        try:
            self._server = socket.create_server((self.address.host, self.address.port), backlog=16)
        except OSError as error:
            raise Unreachable(f"cannot listen at {self.address}: {error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        for line in (*self._lines, *filter(None, [self._server])):
            line.close()
        self._lines.clear()

    def arrive(self, seconds: float, what: str = "a message of the sender") -> Arrived:
        """The next block within `seconds`. Raises `NoAnswer` when none comes."""
        found = self.perhaps(seconds)
        if found is None:
            self.transcript.received(f"nothing for {seconds:g} s")
            raise NoAnswer(f"{what} at {self.address}", f"nothing for {seconds:g} s")
        return found

    def perhaps(self, seconds: float) -> Arrived | None:
        """The next block, or None when none comes within `seconds`."""
        assert self._server is not None
        server, until = self._server, self.deadline.within(seconds)
        while True:
            for line, rest in self._lines.items():
                if (found := self._block(line, rest)) is not None:
                    return found
            left = until.remaining_or_zero()
            if not left:
                return None
            ready, _, _ = select.select([*self._lines, server], [], [], left)
            for one in ready:
                if one is server:
                    self._accept(server, until)
                else:
                    self._read(one)

    def answer(self, arrived: Arrived, step: str = "AA") -> None:
        """Answer with a code, or wrongly: `wrong-msa-2`, `latin`, `garbage`, `half`, `pieces`, `close`."""
        content = b"%PDF-1.4 no answer" if step == "garbage" else acknowledgement(arrived.message.raw, step)
        data = frame(content)
        self.transcript.sent(f"({step}) " + data.decode("latin-1").replace("\r", "\n"))
        with contextlib.suppress(OSError):
            if step == "pieces":
                arrived.line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for at in range(0, len(data), 20):
                    arrived.line.sendall(data[at : at + 20])
                    # The pause keeps the kernels from putting the pieces together again.
                    time.sleep(0.005)
            elif step != "close":
                arrived.line.sendall(data[: len(data) // 2] if step == "half" else data)
        if step in {"close", "half"}:
            self.hang_up(arrived)

    def hang_up(self, arrived: Arrived) -> None:
        """Close the connection a block came over."""
        self._lines.pop(arrived.line, None)
        arrived.line.close()

    def _block(self, line: socket.socket, rest: bytearray) -> Arrived | None:
        end = rest.find(END + CARRIAGE_RETURN)
        if end < 0:
            return None
        before, _, content = bytes(rest[:end]).partition(START)
        del rest[: end + 2]
        message = Message(f"message {time.time_ns()}", content)
        self.transcript.received(content[:8000].decode("utf-8", "replace").replace("\r", "\n"))
        if self.record:
            folder = Path(self.record)
            folder.mkdir(parents=True, exist_ok=True)
            # A message sent again is one message: its control id names the file.
            name = "".join(c if c.isalnum() else "-" for c in message.control_id)[:60] or "none"
            (folder / f"{name}.hl7").write_bytes(content)
        return Arrived(message, before, line)

    def _accept(self, server: socket.socket, until: Deadline) -> None:
        line, _ = server.accept()
        try:
            line.settimeout(max(until.remaining_or_zero(), 0.1))
            if self.tls is not None:
                line = self.tls.wrap_socket(line, server_side=True)
        except OSError as error:
            self.transcript.received(f"no TLS with the sender: {error}")
            line.close()
            return
        self._lines[line] = bytearray()

    def _read(self, line: socket.socket) -> None:
        try:
            data = line.recv(65536)
            while isinstance(line, ssl.SSLSocket) and line.pending():
                data += line.recv(line.pending())
        except OSError:
            data = b""
        rest = self._lines[line]
        rest += data
        if not data or len(rest) > MESSAGE_LIMIT:
            del self._lines[line]
            line.close()
