"""A very small HL7 v2 receiver over MLLP that answers as a French port should, or wrong in one named way.

It keeps nothing but the answers it gave: it exists to prove that each check fails when it should.

HL7 v2.5 chapter 2; IHE ITI TF-2 C.2.3, https://profiles.ihe.net/ITI/TF/Volume2/ch-C.html
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Mapping
from functools import partial

from conformance.peers.fault import Fault
from conformance.peers.serving import Serving
from conformance.wire_mllp import END, START

_AA = (
    "hl7v2.adt-a01", "hl7v2.same-message-twice", "hl7v2.charsets", "hl7v2.keep-alive", "hl7v2.pipelined",
    "hl7v2.fragments", "hl7v2.stray-bytes", "hl7v2.unparsable", "hl7v2.two-connections", "hl7v2.identity",
    "hl7v2.merge", "hl7v2.stay", "hl7v2.cancelled-admission", "hl7v2.unknown-segment", "hl7v2.more-fields",
    "hl7v2.large", "hl7v2.cut-block", "hl7v2.simultaneous",
)  # fmt: skip
_ERRORS = ("hl7v2.missing-pid", "hl7v2.unknown-event", "hl7v2.unknown-version", "hl7v2.unknown-type")
FAULTS: Mapping[str, Fault] = {
    "aa-with-error": Fault("AA comes with an ERR of severity E", ("hl7v2.adt-a01",)),
    "commit-ack": Fault("CA instead of AA in original mode", _AA),
    "own-msa-2": Fault("MSA-2 is not the MSH-10 of the message", _AA + _ERRORS),
    "header-not-swapped": Fault("the acknowledgement repeats MSH-3 to MSH-6", ("hl7v2.ack-header",)),
    "ack-of-nothing": Fault("MSH-9 is ACK without the event", ("hl7v2.ack-header",)),
    "duplicate-refused": Fault("the same message again gets AE 205", ("hl7v2.same-message-twice",)),
    "missing-pid-ar": Fault("a missing PID is answered AR", ("hl7v2.missing-pid",)),
    "missing-pid-aa": Fault("a missing PID is not noticed", ("hl7v2.missing-pid", "hl7v2.error-location")),
    "error-without-code": Fault("ERR-3 is empty", _ERRORS),
    "error-as-warning": Fault("ERR-4 of a refused message is W", _ERRORS),
    "error-without-location": Fault("ERR-2 is empty", ("hl7v2.error-location",)),
    "unknown-event-aa": Fault("any event is answered AA", ("hl7v2.unknown-event",)),
    "any-version-aa": Fault("MSH-12 is not looked at", ("hl7v2.unknown-version",)),
    "utf-8-only": Fault("MSH-18 is not looked at: bytes that are no UTF-8 get AE", ("hl7v2.charsets",)),
    "answer-without-cr": Fault("the block ends with FS alone", ("hl7v2.block",), silent=True),
    "answer-after-newline": Fault("a line end goes before the block", ("hl7v2.block",)),
    "closes-after-two": Fault("the connection is closed after two answers", ("hl7v2.keep-alive",)),
    "one-block-per-read": Fault("a second block in the same read is lost", ("hl7v2.pipelined",), silent=True),
    "answers-reversed": Fault("blocks of one read are answered last first", ("hl7v2.pipelined",)),
    "read-is-a-message": Fault("what one read gives is taken for a whole block", ("hl7v2.fragments",)),
    "stray-bytes-close": Fault("a byte before VT ends the connection", ("hl7v2.stray-bytes",)),
    "silent-on-garbage": Fault("what is no message ends the connection", ("hl7v2.unparsable",)),
    "one-connection": Fault("one connection is served at a time", ("hl7v2.two-connections",), silent=True),
    "no-a31": Fault("A31 is refused", ("hl7v2.identity",)),
    "no-a40": Fault("A40 is refused", ("hl7v2.merge",)),
    "no-a03": Fault("A03 is refused", ("hl7v2.stay",)),
    "no-a11": Fault("A11 is refused", ("hl7v2.cancelled-admission",)),
    "segments-by-list": Fault("a segment that is not known is an error", ("hl7v2.unknown-segment",)),
    "fields-counted": Fault("PV1 with more fields than HL7 v2.5 has is an error", ("hl7v2.more-fields",)),
    "small-buffer": Fault("a message over 64 kB is an error", ("hl7v2.large",)),
    "any-code-aa": Fault("the message code is not looked at", ("hl7v2.unknown-type",)),
    "no-control-id-aa": Fault("MSH-10 is not required", ("hl7v2.no-control-id",)),
    "one-control-id": Fault("all acknowledgements share an MSH-10", ("hl7v2.own-control-id",)),
    "cut-block-kills": Fault("a block that breaks off ends the service", ("hl7v2.cut-block",)),
    "answers-mixed-up": Fault("simultaneous messages get one another's answer", ("hl7v2.simultaneous",)),
}

_CODECS = {"UNICODE UTF-8": "utf-8", "8859/15": "iso8859-15", "8859/1": "iso8859-1", "": "ascii"}
_EVENTS = {"A01", "A02", "A03", "A04", "A05", "A11", "A28", "A31", "A40", "A47"}
_READ = 65_536
_LIMIT = 1_000_000
_SMALL = 8_192


class Receiver:
    """Turns the content of one block into an acknowledgement."""

    def __init__(self, faults: frozenset[str]) -> None:
        self.faults = faults
        self.turn = threading.Lock()
        self.dead = False
        self.latest = ""
        self._answered: dict[str, bytes] = {}

    def answer(self, content: bytes) -> bytes | None:
        """The acknowledgement, or None where a fault says to hang up."""
        segments = [line.split("|") for line in content.decode("latin-1").split("\r") if line]
        header = segments[0] if segments else []
        if not header or header[0] != "MSH" or len(header) < 12:
            return None if "silent-on-garbage" in self.faults else self._ack([], "AE", ("", "100"))
        control_id = self.latest = header[9]
        if "answers-mixed-up" in self.faults:
            time.sleep(0.05)
            header[9] = self.latest
        if control_id in self._answered:
            if "duplicate-refused" in self.faults:
                return self._ack(header, "AE", ("MSH^1^10", "205"))
            return self._answered[control_id]
        code, error = self._judge(content, header, {one[0]: one for one in segments})
        self._answered[control_id] = self._ack(header, code, error)
        return self._answered[control_id]

    def _judge(
        self, content: bytes, header: list[str], names: Mapping[str, list[str]]
    ) -> tuple[str, tuple[str, str] | None]:
        event = _event(header)
        if not header[8].startswith("ADT^") and "any-code-aa" not in self.faults:
            return "AR", ("MSH^1^9^1^1", "200")
        if not header[9] and "no-control-id-aa" not in self.faults:
            return "AE", ("MSH^1^10", "101")
        wrong = {
            f"no-{event.lower()}": True,
            "small-buffer": len(content) > 65_536,
            "segments-by-list": "ZKI" in names,
            "fields-counted": len(names.get("PV1", ())) > 53,
        }
        if any(wrong.get(fault) for fault in self.faults):
            return "AE", ("", "207")
        if event not in _EVENTS and "unknown-event-aa" not in self.faults:
            return "AR", ("MSH^1^9^1^2", "201")
        if not header[11].startswith("2.") and "any-version-aa" not in self.faults:
            return "AR", ("MSH^1^12", "203")
        charset = header[17] if len(header) > 17 and "utf-8-only" not in self.faults else "UNICODE UTF-8"
        try:
            content.decode(_CODECS[charset])
        except (KeyError, UnicodeDecodeError):
            return "AE", ("MSH^1^18", "102")
        if "PID" not in names and "missing-pid-aa" not in self.faults:
            return "AR" if "missing-pid-ar" in self.faults else "AE", ("PID^1", "100")
        return "AA", ("", "0") if "aa-with-error" in self.faults else None

    def _ack(self, header: list[str], code: str, error: tuple[str, str] | None) -> bytes:
        got = header + [""] * (12 - len(header))
        parties = got[2:6] if "header-not-swapped" in self.faults else [*got[4:6], *got[2:4]]
        event = _event(got)
        kind = "ACK" if "ack-of-nothing" in self.faults or not event else f"ACK^{event}^ACK"
        own = "K1" if "one-control-id" in self.faults else f"K{got[9]}"[:20]
        lines = ["|".join(["MSH", "^~\\&", *parties, "20240306111154", "", kind, own, got[10], "2.5"])]
        if code == "AA" and "commit-ack" in self.faults:
            code = "CA"
        lines.append(f"MSA|{code}|{own if 'own-msa-2' in self.faults else got[9]}")
        if error is not None:
            location, number = error
            location = "" if "error-without-location" in self.faults else location
            number = "" if "error-without-code" in self.faults else f"{number}^error^HL70357"
            lines.append(f"ERR||{location}|{number}|{'W' if 'error-as-warning' in self.faults else 'E'}")
        return "".join(f"{line}\r" for line in lines).encode()


class _Handler(socketserver.BaseRequestHandler):
    request: socket.socket
    receiver: Receiver

    def handle(self) -> None:
        faults = self.receiver.faults
        turn = self.receiver.turn if "one-connection" in faults else contextlib.nullcontext()
        with turn, contextlib.suppress(OSError):
            if not self.receiver.dead:
                self._talk(faults)

    def _talk(self, faults: frozenset[str]) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rest = b""
        answered = 0
        while data := self.request.recv(_READ):
            rest += data
            if len(rest) > _LIMIT:
                return
            blocks, rest, stray = _blocks(rest)
            if stray and "stray-bytes-close" in faults:
                return
            if "read-is-a-message" in faults and 0 < len(rest) < _SMALL:
                blocks, rest = [*blocks, rest.lstrip(START)], b""
            if "one-block-per-read" in faults:
                del blocks[1:]
            answers = [self.receiver.answer(block) for block in blocks]
            for answer in reversed(answers) if "answers-reversed" in faults else answers:
                if answer is None:
                    return
                before = b"\n" if "answer-after-newline" in faults else b""
                self.request.sendall(before + START + answer + END + (b"" if "answer-without-cr" in faults else b"\r"))
                answered += 1
            if answered >= 2 and "closes-after-two" in faults:
                return
        self.receiver.dead = bool(rest) and "cut-block-kills" in faults


def _event(header: list[str]) -> str:
    return header[8].partition("^")[2].partition("^")[0]


def _blocks(data: bytes) -> tuple[list[bytes], bytes, bool]:
    """Whole blocks, what is left, and whether anything but the CR after FS stood outside of them."""
    blocks: list[bytes] = []
    stray = False
    while True:
        begin = data.find(START)
        before = data if begin < 0 else data[:begin]
        stray = stray or before.removeprefix(b"\r") != b""
        end = data.find(END, begin + 1) if begin >= 0 else -1
        if end < 0:
            return blocks, b"" if begin < 0 else data[begin:], stray
        blocks.append(data[begin + 1 : end])
        data = data[end + 1 :].removeprefix(b"\r")


def _handler(faults: frozenset[str]) -> type[_Handler]:
    return type("Handler", (_Handler,), {"receiver": Receiver(faults)})


BrokenHl7 = partial(Serving, _handler, FAULTS, "hl7v2=mllp{s}://127.0.0.1:{port}")
"""The receiver on a free loopback port, with the faults that are named."""
