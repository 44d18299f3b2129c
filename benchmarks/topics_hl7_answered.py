"""Topic `hl7-answered`: how many messages are answered a second.

Our listener runs in another process on a store of its own, stored and integrated, on SQLite (synchronous FULL) and
PostgreSQL (fsync on). Beside it: the two limits of `inserts`, over as many connections, and HAPI's server, which parses
and answers and keeps nothing. The senders are one epoll loop (`mllp_load`); what it costs, and what the listener costs,
is told in processor time. Whatever is measured takes the same messages from one line, each as soon as it is free: none
waits for the others' round to end.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import itertools
import multiprocessing
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from benchmarks import report, servers
from benchmarks.inserts import Insert, inserting, storing
from benchmarks.machine import ROOT
from benchmarks.mllp_load import Numbered, Senders
from benchmarks.rounds import Effort, Subject, Timing, measured
from benchmarks.topics_hl7 import KEY, SITE, numbered
from fhir_server.store.schema import upgrade

_WARM = 500  # messages that a Java machine needs before it runs at its own speed
_PAST = 1 << 20  # numbers of one subject never meet those of another
SIZES = ("600-byte ADT", "10 MB report")
WHEN: tuple[Literal["stored", "integrated"], ...] = ("stored", "integrated")
HAPI = "HAPI HL7 v2, answers only"
ROWS, ROW = "limit, the same rows", "limit, a bare row"
_PEER = ROOT / "tests" / "peers" / "hapi_hl7v2" / "build.py"
_numbers = itertools.count(_PAST)


@dataclass(slots=True)
class Cost:
    """Processor seconds so far of whoever answers (`server`) and of the senders, for so many messages."""

    server: float = 0.0
    senders: float = 0.0
    messages: int = 0


@dataclass(slots=True)
class Place:
    """A database: our ports on it with their process, and the addresses and folder of the limits."""

    url: str
    rows_url: str
    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)


def answered_topic(effort: Effort) -> report.Report:
    """Messages answered a second, as share of what the database can insert."""
    quick = effort.sample < 100
    sizes, clients = (SIZES[:1], (2,)) if quick else (SIZES, (1, 16))
    ratios: list[list[str]] = []
    rows: list[list[str]] = []
    method: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="passerelle-bench-"))
    try:
        with contextlib.ExitStack() as stack:
            for name, place in _places(folder, stack, method).items():
                for size, count in itertools.product(sizes, clients):
                    found, costs = _measured(place, size, count, effort)
                    work = f"{name}, {size}, {count} connection(s)"
                    for what in place.ports:
                        shares = [f"{found[limit].median / found[what].median:.2f}" for limit in (ROWS, ROW)]
                        ratios.append([f"{work}, {what}", *shares])
                    rows += [[f"{work}, {what}", *_told(timing, costs[what])] for what, timing in found.items()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    grids = [
        report.Grid("Share of the insert limit", ["Work", "of the same rows", "of a bare row"], ratios),
        report.Grid("Absolute", ["Work", "ms each", "a second", "CPU ms", "senders' CPU ms"], rows),
    ]
    return report.Report("hl7-answered", "HL7 v2: answered messages", grids, [*method, *_METHOD])


_METHOD = (
    "Goal for `stored`: 0.6 on PostgreSQL, 0.7 on SQLite. Both limits commit each message alone and do nothing else. "
    "The bare row is the message's bytes in a table without a further index; the same rows are what is stored of a "
    "message: its row in the inbox and three search keys, with all columns and indexes (and 10 MB as a file).",
    "`integrated` writes a new patient, a stay and their index (or a result with its PDF) as well. "
    f"`{HAPI}` keeps no message: its number says what parsing and answering cost there, not what storing does.",
    "Senders, listener and database share the machine. `CPU ms`: processor time of the listener for one message, "
    "without PostgreSQL; of the whole process for a limit. SQLite's limits wait for each other outside the database.",
)


def _places(folder: Path, stack: contextlib.ExitStack, method: list[str]) -> dict[str, Place]:
    """The databases there are, with everybody who answers on them."""
    rows = f"sqlite:///{folder / 'rows.db'}"
    places = {"SQLite FULL": Place(f"sqlite:///{folder / 'passerelle.db'}", rows, folder)}
    try:
        cluster = stack.enter_context(servers.cluster())
        method.append(cluster.described() + ".")
        places["PostgreSQL"] = Place(cluster.create("bench_hl7"), cluster.create("bench_hl7_rows"), folder)
    except servers.Unable as absent:
        method.append(f"PostgreSQL was left out: {absent}")
    peer: tuple[int, int] | None = None
    try:
        peer = stack.enter_context(_hapi(folder))
    except servers.Unable as absent:
        method.append(f"{HAPI}: left out: {absent}")
    for place in places.values():
        upgrade(place.rows_url)
        place.ports, pid = stack.enter_context(_served(place.url, folder))
        place.pids = dict.fromkeys(place.ports, pid)
        if peer is not None:
            place.ports[HAPI], place.pids[HAPI] = peer
    return places


def _told(timing: Timing, cost: Cost) -> list[str]:
    each = max(cost.messages, 1)
    senders = report.millis(cost.senders / each) if cost.senders else "-"
    return [report.millis(timing.median), report.rate(1 / timing.median), report.millis(cost.server / each), senders]


def _measured(place: Place, size: str, count: int, effort: Effort) -> tuple[dict[str, Timing], dict[str, Cost]]:
    """Seconds for one message: the limits, and whoever answers; and the processor time of each."""
    body = base64.b64encode(b"%PDF-1.4 " + bytes(7_500_000)) if size == SIZES[1] else b""
    batch = count if body else max(64, 16 * count)
    costs: dict[str, Cost] = {}
    subjects: list[Subject] = []

    def messages() -> Iterator[Numbered]:
        return (numbered(number, body) for number in itertools.islice(_numbers, batch))

    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(count))
        for name, url, opened in ((ROW, place.url, inserting), (ROWS, place.rows_url, storing)):
            lines = [stack.enter_context(contextlib.closing(opened(url, place.folder))) for _ in range(count)]
            costs[name] = Cost()
            subjects.append(Subject(name, _limit(pool, lines, messages, costs[name])))
        for name, port in place.ports.items():
            senders = stack.enter_context(contextlib.closing(Senders(port, count)))
            costs[name] = Cost()
            subjects.append(Subject(name, _asked(senders, messages, place.pids[name], costs[name])))
        return measured(subjects, effort), costs


def _limit(
    pool: ThreadPoolExecutor, lines: list[Insert], messages: Callable[[], Iterator[Numbered]], cost: Cost
) -> Callable[[], int]:
    lock = threading.Lock()

    def run() -> int:
        before, left = time.process_time(), messages()

        def work(line: Insert) -> int:
            done = 0
            while True:
                with lock:
                    message = next(left, None)
                if message is None:
                    return done
                line.put(b"".join(message[1]))
                done += 1

        done = sum(pool.map(work, lines))
        cost.server += time.process_time() - before
        cost.messages += done
        return done

    return run


def _asked(senders: Senders, messages: Callable[[], Iterator[Numbered]], pid: int, cost: Cost) -> Callable[[], int]:
    def run() -> int:
        served, own = servers.processor(pid), time.process_time()
        done = senders.send(messages())
        cost.senders += time.process_time() - own
        cost.server += servers.processor(pid) - served
        cost.messages += done
        return done

    return run


@contextlib.contextmanager
def _hapi(folder: Path) -> Iterator[tuple[int, int]]:
    """HAPI's own server with an application that answers: its port and process. Raises Unable."""
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
        with contextlib.closing(Senders(port, 1)) as warming:
            warming.send(numbered(number) for number in range(_WARM))
        yield port, process.pid
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
def _served(url: str, folder: Path) -> Iterator[tuple[dict[str, int], int]]:
    """Our two listeners on a store at `url`, in a process of their own: the port of each answer, and the process."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(url, str(folder), there), daemon=True)
    process.start()
    try:
        if not here.poll(60):
            raise servers.Unable("the HL7 listeners did not start within a minute")
        yield dict(here.recv()), process.pid or 0
        here.send("stop")
        process.join(30)
    finally:
        if process.is_alive():
            process.kill()
            process.join(10)


def _serve(url: str, folder: str, pipe: Connection) -> None:
    from fhir_server.app import open_hub, seed_sites
    from fhir_server.commands.serving import settled
    from fhir_server.config import Settings
    from fhir_server.delivery.intake import wired
    from fhir_server.delivery.ports import Port
    from fhir_server.patients.sites import load_sites
    from hl7v2.mllp import Listener

    sites = load_sites((SITE,))
    settings = Settings(data_dir=folder, database_url=url, auth="none", sites=(SITE,))
    hub = open_hub(settings, sites, migrate=True)
    seed_sites(hub, sites)
    listeners = {}
    for when in WHEN:
        port = Port(name=when, answer=when, site=KEY)
        listeners[when] = Listener(("127.0.0.1", 0), wired(hub, port)[0])
        listeners[when].start()
    settled()  # as `passerelle serve` does
    pipe.send({when: listener.port for when, listener in listeners.items()})
    with contextlib.suppress(EOFError):
        pipe.recv()
    for listener in listeners.values():
        listener.close()
    hub.store.close()
