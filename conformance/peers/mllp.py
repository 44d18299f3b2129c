"""A partner on MLLP that does what a script says: a hospital's DPI, or a platform (PFI) that sends business acks back.

Shares no code with the product: framing, parsing and answers are its own, kept as simple as the standard allows.
Every frame is recorded (and written to disk when a folder is given) before it is answered, as the partners must do.

    python -m conformance.peers.mllp --port 2600 --role pfi --zam-to 127.0.0.1:2575 --script AR,AA

Steps of a script: AA AE AR CA CE CR (that code) · late:SECONDS (AA after a pause) · silence · half (half an answer,
then close) · trickle (AA byte by byte) · wrong-msa-2 · no-msa · garbage · two (a stray AA for another message, then
AA) · CA+AA CA+AE CA+AR (enhanced mode: stored, then that code) · latin (AA in 8859/15) · close · reset. When the
script is used up, the default step answers.

Sources: HL7 v2 MLLP release 1; CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1, business acknowledgements
(https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-r2/volume2.html).
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import secrets
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

Event = Literal["Z01", "Z02", "Z03"]
VT, FS, CR = b"\x0b", b"\x1c", b"\r"
CODES = ("AA", "AE", "AR", "CA", "CE", "CR")
STEPS = (*CODES, "silence", "half", "trickle", "wrong-msa-2", "no-msa", "garbage", "two", "latin", "close", "reset",
         "CA+AA", "CA+AE", "CA+AR")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Received:
    """One recorded frame. `at` is time.monotonic(); `step` how it was answered; `connection` a running number."""

    raw: bytes
    at: float
    step: str
    connection: int

    def field(self, segment: str, number: int, nth: int = 1) -> str:
        """A field as text, '' when absent (MSH-1 is the separator)."""
        return _field(self.raw, segment, number, nth)

    @property
    def control_id(self) -> str:
        return self.field("MSH", 10)


@dataclass(frozen=True, slots=True)
class Zam:
    """A business acknowledgement to send: `Z01` DMP, `Z02` received, `Z03` read; `ok` is OBX-5 Y or N."""

    event: Event
    ok: bool = True
    recipient: str = ""


class Peer:
    """The scripted partner; also a context manager. All counters are safe to read from another thread."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        script: Sequence[str] = (),
        default: str = "AA",
        role: Literal["dpi", "pfi"] = "dpi",
        zam_to: tuple[str, int] | None = None,
        zam: Sequence[Zam] | None = None,
        record: Path | None = None,
    ) -> None:
        """`zam` sends exactly those business acks for each accepted document; None derives them from its OBX."""
        for step in (*script, default):
            if step not in STEPS and not step.startswith("late:"):
                raise ValueError(f"unknown step {step!r}; known: {' '.join(STEPS)} late:SECONDS")
        self._address = (host, port)
        self._script = iter(script)
        self._default = default
        self._role = role
        self._zam_to = zam_to
        self._zam = zam
        self._record = record
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()
        self._queue: queue.Queue[bytes | None] = queue.Queue()
        self._numbers = itertools.count(1)
        self._recorded = 0
        self._token = secrets.token_hex(4).upper()
        self._listening: socket.socket | None = None
        self.port = port
        self.received: list[Received] = []
        self.zam_answers: list[tuple[bytes, bytes]] = []

    def start(self) -> Peer:
        listening = socket.socket()
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(self._address)
            listening.listen(64)
        except OSError:
            listening.close()
            raise
        self._recorded = _highest(self._record)
        self.port = int(listening.getsockname()[1])
        self._listening = listening
        self._spawn(self._accept)
        if self._zam_to:
            self._spawn(self._send_zams)
        return self

    def close(self) -> None:
        """Stop and release everything."""
        self._stopping.set()
        self._queue.put(None)
        if self._listening:
            with suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
        with self._changed:
            open_sockets = list(self._sockets)
        for sock in open_sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Peer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_for(self, count: int, seconds: float = 10.0) -> list[Received]:
        """The recorded frames once there are `count`; TimeoutError otherwise."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.received) >= count, seconds):
                raise TimeoutError(f"{len(self.received)} of {count} messages came within {seconds:g} s")
            return list(self.received)

    def wait_for_zam(self, count: int, seconds: float = 10.0) -> list[tuple[bytes, bytes]]:
        """(business ack, its answer) pairs once `count` were answered; TimeoutError otherwise."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.zam_answers) >= count, seconds):
                raise TimeoutError(f"{len(self.zam_answers)} of {count} business acks were answered")
            return list(self.zam_answers)

    def send_zam(self, original: bytes, zam: Zam) -> None:
        """Queue a business ack for a document message, as a PFI does minutes or hours later."""
        self._queue.put(zam_message(original, zam, f"PFI{self._token}{next(self._numbers):06d}"))

    def _spawn(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True, name="mllp-peer")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        assert self._listening is not None
        for connection in itertools.count(1):
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            with self._changed:
                self._sockets.add(sock)
            self._spawn(self._serve, sock, connection)

    def _serve(self, sock: socket.socket, connection: int) -> None:
        with sock, suppress(OSError):
            for raw in frames(sock):
                step = self._keep(raw, connection)
                if not self._answer(sock, raw, step):
                    break
                if self._role == "pfi" and step in ("AA", "trickle", "two", "latin"):
                    self._business(raw)
        with self._changed:
            self._sockets.discard(sock)

    def _keep(self, raw: bytes, connection: int) -> str:
        """Record first, then say how to answer."""
        with self._changed:
            step = next(self._script, self._default)
            if self._record:
                self._recorded += 1
                self._record.mkdir(parents=True, exist_ok=True)
                with (self._record / f"{self._recorded:06d}.hl7").open("xb") as file:
                    file.write(raw)
                    file.flush()
                    os.fsync(file.fileno())
            self.received.append(Received(raw, time.monotonic(), step, connection))
            self._changed.notify_all()
        return step

    def _answer(self, sock: socket.socket, raw: bytes, step: str) -> bool:
        """Answer by the script; false when the connection is over."""
        if step.startswith("late:"):
            self._stopping.wait(float(step.partition(":")[2]))
            step = "AA"
        answer = VT + acknowledgement(raw, step) + FS + CR
        if step == "silence":
            return True
        if step == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if step == "close":
            return False
        if step == "half":
            sock.sendall(answer[: len(answer) // 2])
            return False
        if step == "trickle":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in answer:
                sock.sendall(bytes([byte]))
            return True
        if step.startswith("CA+"):
            sock.sendall(VT + acknowledgement(raw, "CA") + FS + CR + VT + acknowledgement(raw, step[3:]) + FS + CR)
            return True
        if step == "two":
            sock.sendall(VT + acknowledgement(raw, "wrong-msa-2") + FS + CR)
        sock.sendall(VT + b"%PDF-1.4 this is no answer" + FS + CR if step == "garbage" else answer)
        return True

    def _business(self, raw: bytes) -> None:
        if _field(raw, "MSH", 9).startswith(("MDM", "ORU")):
            for zam in self._zam if self._zam is not None else asked_for(raw):
                self.send_zam(raw, zam)

    def _send_zams(self) -> None:
        assert self._zam_to is not None
        while (message := self._queue.get()) is not None:
            answer = self._deliver(message)
            with self._changed:
                self.zam_answers.append((message, answer))
                self._changed.notify_all()

    def _deliver(self, message: bytes) -> bytes:
        """Send until somebody answers; b'' after 30 s."""
        deadline = time.monotonic() + 30
        while not self._stopping.is_set() and time.monotonic() < deadline:
            with suppress(OSError):
                assert self._zam_to is not None
                with socket.create_connection(self._zam_to, timeout=5) as sock:
                    sock.sendall(VT + message + FS + CR)
                    answer = next(frames(sock), b"")
                    if answer:
                        return answer
            self._stopping.wait(0.1)
        return b""


def _highest(record: Path | None) -> int:
    """The number of the last recording an earlier run left in the folder; 0 when there is none."""
    if record is None or not record.is_dir():
        return 0
    return max((int(path.stem) for path in record.glob("*.hl7") if path.stem.isdecimal()), default=0)


def frames(sock: socket.socket) -> Iterator[bytes]:
    """The contents of the frames of a connection, until it ends."""
    buffer, seen = bytearray(), 0
    while True:
        while (end := buffer.find(FS + CR, seen)) < 0:
            seen = max(len(buffer) - 1, 0)
            data = sock.recv(1 << 20)
            if not data:
                return
            buffer += data
        content = bytes(buffer[:end])
        del buffer[: end + 2]
        seen = 0
        yield content.partition(VT)[2]


def acknowledgement(raw: bytes, step: str = "AA") -> bytes:
    """The answer to a message; `step` is a code or one of the faults that concern the content."""
    charset = "8859/15" if step == "latin" else "UNICODE UTF-8"
    code = step if step in CODES else "AA"
    control_id = _field(raw, "MSH", 10)
    trigger = _field(raw, "MSH", 9).partition("^")[2].partition("^")[0]
    sender = [_field(raw, "MSH", n) for n in (5, 6, 3, 4)]
    now = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
    msh = ["MSH", "^~\\&", *sender, now, "", f"ACK^{trigger}^ACK", f"R{control_id}"[:20]]
    msh += [_field(raw, "MSH", 11), _field(raw, "MSH", 12), "", "", "", "", "FRA", charset]
    lines = ["|".join(msh)]
    if step != "no-msa":
        lines.append(f"MSA|{code}|{'NOT' + control_id if step == 'wrong-msa-2' else control_id}")
    if code in ("AE", "CE"):
        lines.append("ERR||PID^1^3|207^Application error^messageErrorCondition|E|902^Patient inconnu^HL70533||refusé")
    if code in ("AR", "CR"):
        lines.append("ERR|||207^Application error^messageErrorCondition|E|||momentanément indisponible")
    return ("\r".join(lines) + "\r").encode("iso8859-15" if step == "latin" else "utf-8")


def asked_for(raw: bytes) -> list[Zam]:
    """The business acks a document message asks for: ACK_RECEPTION and ACK_LECTURE_MSS with their destinations."""
    flags = {}
    for line in raw.split(CR):
        fields = line.decode("utf-8", "replace").split("|")
        if fields[0] == "OBX" and len(fields) > 5 and "MetaDMPMSS" in fields[3]:
            flags[fields[3].split("^")[0]] = fields[5].split("^")[0] == "Y"
    mailed = flags.get("DESTMSSANTEPS") or flags.get("DESTMSSANTEPAT")
    out = [Zam("Z01")] if flags.get("ACK_RECEPTION") and flags.get("DESTDMP") else []
    out += [Zam("Z02")] if flags.get("ACK_RECEPTION") and mailed else []
    return out + ([Zam("Z03")] if flags.get("ACK_LECTURE_MSS") and mailed else [])


_ZAM: Mapping[Event, tuple[str, str, str]] = {
    "Z01": ("ACK_RECEPTION_DMP^Accusé de réception DMP", "", "DMPClosed^DMP fermé^DMPERRORCODE"),
    "Z02": ("ACK_RECEPTION_MSS^Accusé de réception MSSanté", "DESTINATAIRE_MSS^Destinataire MSSanté",
            "550^Boîte aux lettres non disponible^SMTPERRORCODE"),
    "Z03": ("ACK_LECTURE_MSS^Accusé de lecture", "LECTEUR_MSS^Lecteur du courriel MSSanté",
            "902^Identifiant patient inconnu^applicationErrorCondition"),
}  # fmt: skip


def zam_message(original: bytes, zam: Zam, control_id: str) -> bytes:
    """A ZAM as a PFI writes it: OBX-4 is the MSH-10 of the document message."""
    reception, person, failure = _ZAM[zam.event]
    now = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
    sender = [_field(original, "MSH", n) for n in (5, 6, 3, 4)]
    msh = ["MSH", "^~\\&", *sender, now, "", f"ZAM^{zam.event}^ZAM_Z01", control_id, _field(original, "MSH", 11), "2.6"]
    msh += ["", "", "", "", "FRA", "UNICODE UTF-8", "", "", "2.1^CISIS_CDA_HL7_V2"]
    asked = _field(original, "MSH", 10)
    answer = f"{'Y' if zam.ok else 'N'}^^expandedYes-NoIndicator"
    lines = ["|".join(msh), f"EVN||{now}", f"OBX|1|CWE|{reception}^AckMetierZAM|{asked}|{answer}||||||F|"]
    if person:
        address = zam.recipient or "medecin@test-ci-sis.mssante.fr"
        lines.append(f"OBX|2|XTN|{person}^AckMetierZAM||^^X.400^{address}||||||F|")
    if not zam.ok:
        lines.append(f"ERR|||207^Application error^messageErrorCondition|E|{failure}")
    return ("\r".join(lines) + "\r").encode()


def _field(raw: bytes, segment: str, number: int, nth: int = 1) -> str:
    for line in raw.replace(b"\n", CR).split(CR):
        fields = line.decode("utf-8", "replace").split("|")
        if fields[0] != segment:
            continue
        nth -= 1
        if not nth:
            index = number - 1 if segment == "MSH" else number
            return fields[index] if index < len(fields) else ""
    return ""


def _zam_of(text: str) -> Zam:
    name, _, result = text.partition(":")
    event = next((one for one in _ZAM if one == name), None)
    if event is None:
        raise argparse.ArgumentTypeError("write Z01, Z02:Y or Z03:N")
    return Zam(event, result != "N")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the peer as a process until SIGINT or SIGTERM; prints one line a frame."""
    parser = argparse.ArgumentParser(prog="python -m conformance.peers.mllp", description="a scripted MLLP partner")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--role", choices=("dpi", "pfi"), default="dpi")
    parser.add_argument("--script", default="", help="steps separated by commas")
    parser.add_argument("--default", default="AA", help="the step after the script")
    parser.add_argument("--zam-to", default="", help="host:port that gets the business acks")
    parser.add_argument("--zam", type=_zam_of, action="append", help="Z01, Z02:N ...; default: what the message asks")
    parser.add_argument("--record", type=Path, help="folder for the frames received")
    options = parser.parse_args(arguments)
    host, _, port = options.zam_to.rpartition(":")
    stop = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stop.set())
    peer = Peer(
        host=options.host,
        port=options.port,
        script=[step for step in options.script.split(",") if step],
        default=options.default,
        role=options.role,
        zam_to=(host, int(port)) if port else None,
        zam=options.zam,
        record=options.record,
    )
    try:
        peer.start()
    except OSError as problem:
        print(f"mllp: port {options.port}: {problem.strerror or problem}", file=sys.stderr)
        return 1
    with closing(peer):
        print(f"listening on {options.host}:{peer.port} as {options.role}", flush=True)
        shown = 0
        while not stop.wait(0.05):
            for message in peer.received[shown:]:
                shown += 1
                print(f"{message.field('MSH', 9)} {message.control_id} -> {message.step}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
