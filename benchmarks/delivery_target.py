"""What the delivery topics run against: partners on loopback, worker processes, and a database full of deliveries.

Partners live in one process of their own and answer AA at once; each worker process has its own connections and runs
the product's `Workers` while it is told to. Rows are written in bulk (COPY, executemany) as the outbox would have
written them, each with its business key, and with its attempt when it is finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import multiprocessing
import sqlite3
import time
from collections.abc import Iterator, Sequence
from ctypes import c_uint64
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import servers

_DELIVERY = (
    "id", "lane_id", "lane_seq", "state", "endpoint", "protocol", "media_type", "title", "payload", "sha256", "size",
    "created_at", "attempts", "first_sent_at", "settled_at", "error", "patient", "document_version",
)  # fmt: skip
_ATTEMPT = ("delivery_id", "n", "worker", "token", "started_at", "ended_at", "outcome", "error_class", "error")
_KEY = ("box", "message", "kind", "value")
_BLOCK = 20_000
_SPAWN = multiprocessing.get_context("spawn")


def message(key: str) -> bytes:
    """A document message of about 300 bytes, its control id `key`."""
    return (
        f"MSH|^~\\&|PASSERELLE|BENCH|DPI|BENCH|20260302083000||MDM^T02^MDM_T02|{key}|T|2.6|||AL|AL|FRA|UNICODE UTF-8\r"
        "EVN||20260302083000\rPID|1||P000000001^^^BENCH&2.25.4099&ISO^PI||LECOCQ^Noémie^^^^^L||19840523|F\r"
        f"PV1|1|N\rTXA|1|CN|TX|20260302083000||||||||{key}|||||AU\rOBX|1|TX|11488-4^Compte rendu^LN||RAS||||||F\r"
    ).encode()


# --- partners --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Partners:
    """Listening partners: one address each, and how many messages each has answered (written by their process)."""

    addresses: tuple[str, ...]
    answered: Any

    def count(self, first: int, last: int) -> int:
        """Messages answered by the partners `first` to `last - 1`."""
        return sum(self.answered[first:last])


@contextlib.contextmanager
def partners(count: int) -> Iterator[Partners]:
    """So many partners that answer AA, and one more, the last, that takes a message and never answers."""
    answered: Any = _SPAWN.RawArray(c_uint64, count)
    with _process(_listen, answered, count) as pipe:
        yield Partners(tuple(f"mllp://127.0.0.1:{port}" for port in pipe.recv()), answered)


def _listen(pipe: Connection, answered: Any, count: int) -> None:
    async def serve() -> None:
        async def talk(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    frame = await reader.readuntil(b"\x1c\r")
                    if number < count:
                        writer.write(_answer(frame))
                        answered[number] += 1
            writer.close()

        ports = []
        for number in range(count + 1):
            listening = await asyncio.start_server(
                partial(talk, number),
                "127.0.0.1",
                limit=1 << 20,
            )
            ports.append(listening.sockets[0].getsockname()[1])
        pipe.send(ports)
        with contextlib.suppress(EOFError):
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)

    asyncio.run(serve())


def _answer(frame: bytes) -> bytes:
    head = frame[1:].split(b"\r", 1)[0].split(b"|")
    return b"\x0bMSH|^~\\&|DPI|BENCH|PASSERELLE|BENCH|20260302083000||ACK|A%b|T|2.6\rMSA|AA|%b\r\x1c\r" % (
        head[9],
        head[9],
    )


# --- worker processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Crew:
    """Worker processes on one database; none works until told."""

    pipes: tuple[Connection, ...]

    @contextlib.contextmanager
    def working(self, processes: int) -> Iterator[None]:
        """The first `processes` of them deliver while the block runs."""
        told = self.pipes[:processes]
        for pipe in told:
            pipe.send("work")
        _heard(told)
        yield
        for pipe in told:
            pipe.send("rest")
        _heard(told)


@contextlib.contextmanager
def crew(url: str, folder: Path, processes: int) -> Iterator[Crew]:
    """Worker processes with the shipped settings (four conversations at a time each)."""
    with contextlib.ExitStack() as stack:
        pipes = tuple(stack.enter_context(_process(_work, url, str(folder))) for _ in range(processes))
        _heard(pipes)
        yield Crew(pipes)


def _heard(pipes: Sequence[Connection]) -> None:
    for pipe in pipes:
        try:
            if not pipe.poll(120):
                raise servers.Unable("a worker process did not answer within two minutes")
            pipe.recv()
        except EOFError as ended:
            raise servers.Unable("a worker process ended") from ended


def _work(pipe: Connection, url: str, folder: str) -> None:
    from benchmarks.topics_hl7 import SITE
    from fhir_server.app import open_hub
    from fhir_server.config import Settings
    from fhir_server.delivery.workers import Workers
    from fhir_server.patients.sites import load_sites

    settings = Settings(data_dir=folder, database_url=url, auth="none", sites=(SITE,))
    hub = open_hub(settings, load_sites((SITE,)), migrate=False)
    workers: Workers | None = None
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while (order := pipe.recv()) != "end":
            if order == "work":
                workers = Workers(hub, {}, senders=settings.senders)
                workers.start()
            elif workers is not None:
                workers.close()
            pipe.send(order)
    hub.store.close()


@contextlib.contextmanager
def _process(target: Any, *arguments: Any) -> Iterator[Connection]:
    """A process with a pipe; it ends with the block."""
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        yield here
        here.send("end")
        process.join(30)
    finally:
        if process.is_alive():
            process.kill()
            process.join(10)


# --- rows ------------------------------------------------------------------------------------------------------------


class Outbox:
    """The tables of the outbox, written and looked at past the product, by its driver."""

    def __init__(self, url: str) -> None:
        self._postgres = not url.startswith("sqlite")
        self._db: Any = (
            psycopg.connect(url, autocommit=True)
            if self._postgres
            else sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=60)
        )
        self._made = 0

    def close(self) -> None:
        self._db.close()

    def run(self, sql: str, *params: object) -> Any:
        """A statement with `?` for its values."""
        return self._db.execute(sql.replace("?", "%s") if self._postgres else sql, params)

    def lane(self, name: str, address: str, on_stuck: str = "block") -> int:
        """A new lane, paused; its id."""
        made = self.run(
            "INSERT INTO lane (name, endpoint, protocol, on_stuck, paused) VALUES (?, ?, 'hl7', ?, 1) RETURNING id",
            name,
            address,
            on_stuck,
        )
        return int(made.fetchone()[0])

    def open(self, lanes: Sequence[int]) -> None:
        """Pauses every lane but these, which are due at once."""
        self.run("UPDATE lane SET paused = 1")
        for lane in lanes:
            self.run("UPDATE lane SET paused = 0, ready_at = 0, lease_until = 0, failures = 0 WHERE id = ?", lane)

    def waiting(self, lane: int) -> int:
        """Deliveries of a lane that have not left."""
        sql = "SELECT count(*) FROM delivery WHERE lane_id = ? AND state IN ('queued', 'sending')"
        return int(self.run(sql, lane).fetchone()[0])

    def fill(self, lane: int, count: int, state: str = "queued") -> None:
        """So many more deliveries behind those of a lane, each about a patient of its own."""
        seq, address = self.run("SELECT next_seq, endpoint FROM lane WHERE id = ?", lane).fetchone()
        for start in range(0, count, _BLOCK):
            some = range(start, min(start + _BLOCK, count))
            rows = [self._delivery(lane, int(seq) + 1 + n, str(address), state) for n in some]
            keys = [("out", row[0], "msh-10", row[0]) for row in rows]
            attempts = [
                (row[0], 1, "bench", 1, row[11], row[11] + 1000, "sent", "", "") for row in rows if state == "sent"
            ]
            self._insert("delivery", _DELIVERY, rows)
            self._insert("message_key", _KEY, keys)
            self._insert("attempt", _ATTEMPT, attempts)
        self.run("UPDATE lane SET next_seq = next_seq + ? WHERE id = ?", count, lane)

    def settle(self) -> None:
        """Lets the planner see what is there, as the database's own housekeeping would have by then."""
        for table in ("delivery", "attempt", "message_key", "lane") if self._postgres else ():
            self.run(f"VACUUM ANALYZE {table}")

    def _delivery(self, lane: int, seq: int, address: str, state: str) -> tuple[Any, ...]:
        self._made += 1
        key = f"B{lane:05d}{seq:014d}"
        raw, now = message(key), int(time.time() * 1e6) - 60_000_000 + seq
        done = state == "sent"
        return (
            key, lane, seq, state, address, "hl7", "x-application/hl7-v2+er7", "bench", raw,
            hashlib.sha256(raw).hexdigest(), len(raw), now, int(done), now if done else 0, now if done else 0, "",
            f"Patient/b{self._made}", 0,
        )  # fmt: skip

    def _insert(self, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
        names = ", ".join(columns)
        if not rows:
            return
        if self._postgres:
            with self._db.cursor().copy(f"COPY {table} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            return
        self._db.execute("BEGIN")
        self._db.executemany(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})", rows)
        self._db.execute("COMMIT")
