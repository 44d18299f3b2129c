"""Topics `hl7-parse` and `hl7-answered`: what a message costs, and how many are answered a second.

`hl7-answered` runs our listener on a store of its own in another process, stored and integrated, on SQLite (synchronous
FULL) and PostgreSQL (fsync on), and beside it the limit: the same bytes inserted as one row, one commit each, over as
many connections, and HAPI's server, which parses and answers and keeps nothing. Every message has a new patient and a
new control id.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.util
import itertools
import multiprocessing
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from benchmarks import report, servers
from benchmarks.inserts import inserting
from benchmarks.machine import ROOT
from benchmarks.rounds import Effort, Subject, Timing, measured
from hl7v2 import ack
from hl7v2.message import parse
from hl7v2.mllp import Listener, Sender

_KEY = "bench-hl7"
_WARM = 500  # messages that a Java machine needs before it runs at its own speed
_PAST = 1 << 20  # numbers of one subject never meet those of another
SIZES = ("600-byte ADT", "10 MB report")
WHEN: tuple[Literal["stored", "integrated"], ...] = ("stored", "integrated")
HAPI = "HAPI HL7 v2, answers only"
_PEER = ROOT / "tests" / "peers" / "hapi_hl7v2" / "build.py"


def adt(number: int) -> bytes:
    """An admission of about 600 bytes about a patient of that number."""
    return (
        f"MSH|^~\\&|GAM|BENCH|PASSERELLE|BENCH|20260302083000||ADT^A01^ADT_A01|B{number:018d}|T|2.5^FRA^2.11|||||FRA"
        "|UNICODE UTF-8|||2.11^IHE_FRANCE-2.11-PAM\rEVN||20260302083000||||20260302083000\r"
        f"PID|||P{number:09d}^^^BENCH&2.25.4099&ISO^PI||LECOCQ^Noémie^Noémie^^^^L||19840523|F|||12 rue des Lilas^^"
        f"SYLVELANDE^^99123^FRA^H|||||||S{number:09d}^^^BENCH&2.25.4098&ISO^AN|||||||||||||N|PROV\r"
        f"PV1|1|I|CARDIO^201^1||||||||||||||||V{number:09d}^^^BENCH&2.25.4097&ISO^VN|||||||||||||||||||||||||20260302083000\r"
        f"ZBE|M{number:09d}^GAM^2.25.4096^ISO|20260302083000||INSERT|N||^^^^^^UF^^^CARDIO||HMS\r"
    ).encode()


def oru(number: int, enclosed: bytes = b"") -> bytes:
    """A laboratory result of ten observations; `enclosed` is a PDF carried as a further OBX."""
    lines = [
        f"MSH|^~\\&|LABO|BENCH|PASSERELLE|BENCH|20260302083000||ORU^R01^ORU_R01|R{number:018d}|T|2.5"
        "|||||FRA|UNICODE UTF-8",
        f"PID|1||Q{number:09d}^^^BENCH&2.25.4099&ISO^PI||LECOCQ^Noémie^^^^^L||19840523|F|||||||||||||||||||||||PROV",
        "PV1|1|N",
        f"ORC|RE||F{number:09d}^^2.25.4095^ISO",
        f"OBR|1||F{number:09d}^^2.25.4095^ISO|24323-8^Bilan^LN|||20260302080000|||||||||||||||20260302083000||CH|F",
    ]
    lines += [
        f"OBX|{n}|NM|{2000 + n}-3^Analyse {n}^LN||{n}.20|mmol/L|1.0-9.0|N^Normal^HL70078|||F" for n in range(1, 11)
    ]
    head = ("\r".join(lines) + "\r").encode()
    if not enclosed:
        return head
    return head + b"OBX|11|ED|11502-2^Compte rendu^LN||^application^pdf^Base64^" + enclosed + b"||||||F\r"


def parse_topic(effort: Effort) -> report.Report:
    """Parsing and mapping one ADT and one ORU, beside the public Python parsers, which map nothing."""
    from mappers.hl7v2_results_to_fhir import results
    from mappers.hl7v2_to_fhir import adt as read_adt

    site = _site()
    kinds: tuple[tuple[str, bytes, Callable[[Any, Any], object]], ...] = (
        ("ADT", adt(1), read_adt),
        ("ORU", oru(1), results),
    )
    subjects: list[Subject] = []
    absent = [name for name in ("hl7apy", "hl7") if importlib.util.find_spec(name) is None]
    for kind, raw, read in kinds:
        subjects += _parsers(kind, raw, read, site, absent)
    found = measured(subjects, effort)
    ratios = [
        [name, report.ratio(timing.median, found[f"{name.partition(',')[0]}, passerelle, parse and map"].median)]
        for name, timing in found.items()
        if "passerelle" not in name
    ]
    method = [
        f"{len(adt(1))} and {len(oru(1))} bytes. Our parse walks every field of every segment; ours is lazy otherwise. "
        "The peers map nothing, so their time to parse stands beside our time to parse and map.",
        *(f"{'python-hl7' if name == 'hl7' else name} is not installed (`pip install {name}`)." for name in absent),
    ]
    grids = [
        report.Grid("Time of the peer's parse, times our parse and map", ["Peer", "times ours"], ratios),
        _absolute("Absolute", found),
    ]
    return report.Report("hl7-parse", "HL7 v2: parse and map", grids, method)


def _parsers(
    kind: str, raw: bytes, read: Callable[[Any, Any], object], site: Any, absent: list[str]
) -> Iterator[Subject]:
    text = raw.decode()
    yield Subject(f"{kind}, passerelle, parse", _many(lambda: _walked(raw)))
    yield Subject(f"{kind}, passerelle, parse and map", _many(lambda: read(parse(raw), site)))
    if "hl7apy" not in absent:
        hl7apy: Any = importlib.import_module("hl7apy.parser")
        yield Subject(f"{kind}, hl7apy, parse", _many(lambda: hl7apy.parse_message(text, find_groups=False), 3))
    if "hl7" not in absent:
        hl7: Any = importlib.import_module("hl7")
        yield Subject(f"{kind}, python-hl7, parse", _many(lambda: hl7.parse(text)))


def answered_topic(effort: Effort) -> report.Report:
    """Messages answered a second, as share of the bare insert limit."""
    sizes = SIZES[:1] if effort.sample < 100 else SIZES
    clients = (2,) if effort.sample < 100 else (1, 16)
    ratios, rows, told, method = [], [], "", []
    folder = Path(tempfile.mkdtemp(prefix="passerelle-bench-"))
    try:
        with contextlib.ExitStack() as stack:
            places = {"SQLite FULL": f"sqlite:///{folder / 'passerelle.db'}"}
            try:
                cluster = stack.enter_context(servers.cluster())
                told = cluster.described()
                places["PostgreSQL"] = cluster.create("bench_hl7")
            except servers.Unable as absent:
                method.append(f"PostgreSQL was left out: {absent}")
            peer = {}
            try:
                peer = {HAPI: stack.enter_context(_hapi(folder))}
            except servers.Unable as absent:
                method.append(f"{HAPI}: left out: {absent}")
            for name, url in places.items():
                ports = stack.enter_context(_served(url, folder)) | peer
                for size, count in itertools.product(sizes, clients):
                    found = _measured(url, folder, ports, size, count, effort)
                    limit = found["limit"].median
                    for when in (*WHEN, *peer):
                        ratios.append([f"{name}, {size}, {count} connection(s), {when}",
                                       f"{limit / found[when].median:.2f}"])  # fmt: skip
                    rows += [[f"{name}, {size}, {count} connection(s), {what}", report.millis(timing.median),
                              report.rate(1 / timing.median)] for what, timing in found.items()]  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    method.append(
        "Goal for `stored`: 0.6 on PostgreSQL, 0.7 on SQLite. The limit is one row of the same bytes and one commit "
        "each; `integrated` writes a new patient, a stay and their index (or a result with its PDF) as well. "
        f"`{HAPI}` keeps no message: its number says what parsing and answering cost there, not what storing does. "
        f"Sender and listener share the machine. {told}".strip()
    )
    grids = [
        report.Grid("Share of the bare insert limit", ["Work", "of the limit"], ratios),
        report.Grid("Absolute", ["Work", "ms each", "a second"], rows),
    ]
    return report.Report("hl7-answered", "HL7 v2: answered messages", grids, method)


def _measured(
    url: str, folder: Path, ports: dict[str, int], size: str, count: int, effort: Effort
) -> dict[str, Timing]:
    """Seconds for one message: the limit, stored, integrated."""
    body = base64.b64encode(b"%PDF-1.4 " + bytes(7_500_000)) if size == SIZES[1] else b""
    batch = 1 if body else 10
    numbers = next(_blocks)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(count))
        inserts = [stack.enter_context(contextlib.closing(inserting(url, folder))) for _ in range(count)]
        subjects = [Subject("limit", lambda: _all(pool, inserts, batch, numbers, body))]
        for when in ports:
            links = [stack.enter_context(contextlib.closing(_Link(ports[when]))) for _ in range(count)]
            subjects.append(Subject(when, partial(_all, pool, links, batch, numbers, body)))
        return measured(subjects, effort)


_blocks = (itertools.count(start) for start in itertools.count(0, _PAST))


def _all(pool: ThreadPoolExecutor, links: Any, batch: int, numbers: Iterator[int], body: bytes) -> int:
    def work(link: Any) -> int:
        for _ in range(batch):
            number = next(numbers)
            link.put(oru(number, body) if body else adt(number))
        return batch

    return sum(pool.map(work, links))


class _Link:
    """A connection of a sender that stops the run when a message is refused."""

    def __init__(self, port: int) -> None:
        self._sender = Sender(("127.0.0.1", port), timeout=120)

    def put(self, raw: bytes) -> None:
        answer = ack.read(self._sender.send(raw))
        if answer.code != "AA":
            raise RuntimeError(f"a message was answered {answer.code}: {answer.text} {answer.errors}")

    def close(self) -> None:
        self._sender.close()


@contextlib.contextmanager
def _hapi(folder: Path) -> Iterator[int]:
    """HAPI's own server with an application that answers; its port. Raises Unable."""
    if not shutil.which("javac"):
        raise servers.Unable("it needs a Java development kit")
    spec = importlib.util.spec_from_file_location("hapi_hl7v2_build", _PEER)
    if spec is None or spec.loader is None:
        raise servers.Unable(f"{_PEER} is not there")
    sys.path.append(str(ROOT / "tests"))  # where the peer's own imports are
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    classes, port = folder / "classes", servers.free_port()
    classes.mkdir()
    try:
        words = build.command(classes)
    except build.maven.pytest.skip.Exception as absent:  # the tests' own words for a jar that is not to be had
        raise servers.Unable(str(absent)) from absent
    # A 10 MB message is several strings of 20 MB while HAPI parses it, on each of 16 connections.
    words = ["-Xmx4g" if word.startswith("-Xmx") else word for word in words]
    process = subprocess.Popen([*words, "Hl7Peer", "answer", str(port), "plain"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    try:
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise servers.Unable("it did not start")
        _reached(port)
        with contextlib.closing(_Link(port)) as link:
            for number in range(_PAST, _PAST + _WARM):
                link.put(adt(number))
        yield port
    finally:
        process.communicate()  # the end of its input is the end of its service
        process.wait(30)


def _reached(port: int) -> None:
    """HAPI says that it is ready a moment before its port is open."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        except ConnectionRefusedError as refused:
            if time.monotonic() > deadline:
                raise servers.Unable("its port did not open within half a minute") from refused
            time.sleep(0.05)


@contextlib.contextmanager
def _served(url: str, folder: Path) -> Iterator[dict[str, int]]:
    """Our two listeners on a store at `url`, in a process of their own; the port of each answer."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(url, str(folder), there), daemon=True)
    process.start()
    try:
        if not here.poll(60):
            raise servers.Unable("the HL7 listeners did not start within a minute")
        yield dict(here.recv())
        here.send("stop")
        process.join(30)
    finally:
        if process.is_alive():
            process.kill()
            process.join(10)


def _serve(url: str, folder: str, pipe: Connection) -> None:
    from fhir_server.app import open_hub, seed_sites
    from fhir_server.config import Settings
    from fhir_server.delivery.intake import wired
    from fhir_server.delivery.ports import Port
    from fhir_server.patients.sites import load_sites

    sites = load_sites((SITE,))
    settings = Settings(data_dir=folder, database_url=url, auth="none", sites=(SITE,))
    hub = open_hub(settings, sites, migrate=True)
    seed_sites(hub, sites)
    listeners = {}
    for when in WHEN:
        port = Port(name=when, answer=when, site=_KEY)
        listeners[when] = Listener(("127.0.0.1", 0), wired(hub, port)[0])
        listeners[when].start()
    pipe.send({when: listener.port for when, listener in listeners.items()})
    with contextlib.suppress(EOFError):
        pipe.recv()
    for listener in listeners.values():
        listener.close()
    hub.store.close()


SITE: dict[str, Any] = {
    "key": _KEY,
    "name": "Banc d'essai",
    "finess_eg": "990009999",
    "finess_ej": "990009998",
    "mode": "test",
    "application": "PASSERELLE",
    "facility": "BENCH",
    "sending_applications": [["GAM", "BENCH"], ["LABO", "BENCH"]],
    "namespaces": [
        {"name": name, "kind": kind, "hd": ["BENCH", oid, "ISO"], "oid": oid, "fhir_system": f"urn:oid:{oid}"}
        for name, kind, oid in (
            ("ipp", "PI", "2.25.4099"), ("dossier", "AN", "2.25.4098"), ("sejour", "VN", "2.25.4097")
        )
    ],
}  # fmt: skip


def _site() -> Any:
    from fhir_server.patients.sites import load_sites

    return load_sites((SITE,)).default


def _walked(raw: bytes) -> int:
    return sum(1 for segment in parse(raw).segments for _, value in segment.fields() if value.valued)


def _many(work: Callable[[], object], times: int = 20) -> Callable[[], int]:
    def run() -> int:
        for _ in range(times):
            work()
        return times

    return run


def _absolute(caption: str, found: dict[str, Timing]) -> report.Grid:
    rows = [
        [name, report.micros(t.median), report.spread(t.low * 1e6, t.high * 1e6), report.rate(1 / t.median)]
        for name, t in found.items()
    ]
    return report.Grid(caption, ["Work", "µs a message", "min to max", "a second"], rows)
