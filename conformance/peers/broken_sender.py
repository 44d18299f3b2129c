"""A very small HL7 v2 sender over MLLP with a queue that never ends, right about answers or wrong in one named way.

It keeps trying to connect to the port where the kit will listen: it exists to prove that each check fails when it
should.

HL7 v2.5 2.9.2; CI-SIS "Transmission d'un document CDA-R2 en HL7 v2", acknowledgements
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Mapping
from datetime import UTC, datetime

from conformance.peers.fault import Fault, chosen
from conformance.samples import admission
from conformance.target import Options
from conformance.wire_mllp import END, START, frame

FAULTS: Mapping[str, Fault] = {
    "noise-before-block": Fault("a line end goes before each block", ("hl7v2-sender.block",)),
    "sends-ahead": Fault("the next message follows when the answer is a little late", ("hl7v2-sender.waits",)),
    "sends-twice": Fault("the first message is sent again after AA", ("hl7v2-sender.after-aa",)),
    "one-read": Fault("what one read gives is taken for the whole answer", ("hl7v2-sender.answer-in-pieces",)),
    "utf-8-only": Fault("an answer that is no UTF-8 counts as none", ("hl7v2-sender.answer-in-latin-9",)),
    "slow-to-reconnect": Fault("a closed connection is not opened again at once", (
        "hl7v2-sender.reconnects",), silent=True),
    "ar-dropped": Fault("a message answered AR is given up", ("hl7v2-sender.after-ar",)),
    "silence-dropped": Fault("a message without an answer is given up", ("hl7v2-sender.after-silence",)),
    "any-aa": Fault("MSA-2 is not looked at", ("hl7v2-sender.wrong-msa-2",)),
    "closed-is-aa": Fault("a connection closed without answer counts as AA", ("hl7v2-sender.closed",)),
    "half-is-aa": Fault("the beginning of an answer counts as AA", ("hl7v2-sender.half-an-answer",)),
    "block-is-aa": Fault("any block counts as AA", ("hl7v2-sender.garbage",)),
    "new-time": Fault("a message sent again has a new MSH-7", ("hl7v2-sender.same-bytes",)),
    "ae-again": Fault("a message answered AE is sent again", ("hl7v2-sender.after-ae",)),
}  # fmt: skip
ANSWER_SECONDS = 1.0
"""How long it waits for an answer."""
_PAUSE = 0.02


class Sender:
    """One lane: a message, its answer, the next message."""

    def __init__(self, address: tuple[str, int], faults: frozenset[str], tls: ssl.SSLContext | None) -> None:
        self.address = address
        self.faults = faults
        self.tls = tls
        self.stopping = threading.Event()
        self.line: socket.socket | None = None
        self.asked = False

    def run(self) -> None:
        """Send until told to stop."""
        number, raw = 0, b""
        while not self.stopping.is_set():
            raw = raw or self._message(number)
            try:
                done = self._exchange(raw, number)
            except OSError:
                done = False
                self._hang_up()
            if done:
                number, raw = number + 1, b""
            else:
                raw = self._again(raw)
                self.stopping.wait(_PAUSE)
        self._hang_up()

    def _message(self, number: int) -> bytes:
        return admission(Options(), f"SENT{id(self) % 10**8:08d}{number:06d}", f"P{number:09d}")

    def _again(self, raw: bytes) -> bytes:
        if "new-time" not in self.faults:
            return raw
        fields = raw.split(b"|")
        fields[6] = datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f")[:19].encode()
        return b"|".join(fields)

    def _exchange(self, raw: bytes, number: int) -> bool:
        """True when the message is done with."""
        line = self._connected()
        line.sendall((b"\n" if "noise-before-block" in self.faults else b"") + frame(raw))
        if "sends-ahead" in self.faults and not select.select([line], [], [], 0.1)[0]:
            line.sendall(frame(self._message(number + 1)))
        answer = self._answer(line)
        if answer is None:
            self._hang_up()
            return "silence-dropped" in self.faults
        if not answer.endswith(END + b"\r"):
            self._hang_up()
            if not answer:
                return "closed-is-aa" in self.faults
            return "half-is-aa" in self.faults
        code, names = _read(answer, raw)
        if not code:
            return "block-is-aa" in self.faults
        if not names:
            return "any-aa" in self.faults
        if "utf-8-only" in self.faults and not _is_utf_8(answer):
            return False
        if code == "AA" and "sends-twice" in self.faults and self._once():
            line.sendall(frame(raw))
            self._answer(line)
        done = {"AA": True, "AE": "ae-again" not in self.faults, "AR": "ar-dropped" in self.faults}
        return done.get(code, False)

    def _once(self) -> bool:
        """Whether this is the first time it is asked."""
        self.asked, before = True, self.asked
        return not before

    def _answer(self, line: socket.socket) -> bytes | None:
        """What came up to FS CR; shorter when the connection was closed, None when nothing came in time."""
        found = b""
        try:
            while not found.endswith(END + b"\r"):
                data = line.recv(4096)
                if not data or "one-read" in self.faults:
                    return found + data
                found += data
        except TimeoutError:
            return None
        return found

    def _connected(self) -> socket.socket:
        if self.line is None:
            line = socket.create_connection(self.address, ANSWER_SECONDS)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.line = self.tls.wrap_socket(line, server_hostname=self.address[0]) if self.tls else line
        return self.line

    def _hang_up(self) -> None:
        if self.line is not None:
            self.line.close()
            self.line = None
            if "slow-to-reconnect" in self.faults and self._once():
                self.stopping.wait(3 * ANSWER_SECONDS)


def _read(answer: bytes, raw: bytes) -> tuple[str, bool]:
    """MSA-1 ('' when there is none), and whether MSA-2 names the message."""
    for segment in answer.strip(START + END + b"\r").split(b"\r"):
        fields = segment.split(b"|")
        if fields[0] == b"MSA" and len(fields) > 2:
            return fields[1].decode("latin-1"), fields[2] == raw.split(b"|")[9]
    return "", False


def _is_utf_8(answer: bytes) -> bool:
    try:
        answer.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"8859" not in answer


class BrokenSender:
    """The sender and the address it sends to; a context manager. `target` is what `--target` takes."""

    def __init__(self, *faults: str, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._secure = "s" if tls else ""
        self.port = port or _free()
        self._sender = Sender(("127.0.0.1", self.port), chosen(faults, FAULTS), tls)
        self._thread = threading.Thread(target=self._sender.run, daemon=True)
        self._thread.start()

    @property
    def target(self) -> str:
        return f"hl7v2-sender=mllp{self._secure}://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop sending."""
        self._sender.stopping.set()
        with contextlib.suppress(OSError):
            if self._sender.line is not None:
                self._sender.line.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    def __enter__(self) -> BrokenSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])
