"""The limit: the same rows through the same driver, in the same transactions, with no FHIR around.

The write path runs once for each sample, in this process, on a database of its own; every statement of its write
transaction that changes something is noted with its parameters. The limit then repeats those statements through psycopg
in pipeline mode, as the store sends them, from as many processes as there are clients, with new row ids, resource ids
and version numbers put in. What only looks (locks, conditions read again) is left out, so that the limit does not
flatter us. A read is the one SELECT by type and id.
"""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import random
import re
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from benchmarks import fhir_target, samples
from benchmarks.load import MARK
from benchmarks.machine import ROOT
from benchmarks.rounds import Effort
from benchmarks.target import Outcome
from fhir_server.changes import Applied, Change, Hub, apply
from fhir_server.config import Settings
from fhir_server.context import SYSTEM
from fhir_server.patients.sites import load_sites
from fhir_server.store.dialect import Row, Session, delete_postgresql, pyformat
from fhir_server.store.engine import Database, open_store
from fhir_server.store.gathered import Gathered
from fhir_server.store.postgres import connect
from fhir_server.store.schema import upgrade
from fhir_server.store.tables import RESOURCE, Bulk
from profiles import json_text

T = TypeVar("T")
_FIRST_RID = 7_000_000_000_000
_FIRST_VERSION = 1_500_000_001
_SELECT = "SELECT r.rid, r.version, r.last_updated, r.deleted, r.text FROM resource r WHERE r.type = %s AND r.id = %s"
# The cost of a superseded version: the same row found through a second table.
_SELECT_OLD = (
    "SELECT r.rid, h.version, r.text FROM resource r LEFT JOIN history h ON h.rid = r.rid AND h.version = 1 "
    "WHERE r.type = %s AND r.id = %s"
)
_CONTAINED = re.compile(r"-\d{13,19}\b")
_DRAW = "SELECT nextval(pg_get_serial_sequence('resource', 'rid')) FROM generate_series(1, 64)"
_CHANGES = ("INSERT", "UPDATE", "DELETE")


@dataclass(slots=True)
class Step:
    """A statement and its parameters; `answer` are the rows it returned when it was noted; `texts`: its parameters are
    JSON, in which ids and numbers stand; `rids`: the row ids that the store drew for it."""

    sql: str
    params: list[Any]
    answer: list[Any] | None = None
    texts: bool = False
    rids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Note:
    """One write transaction: its statements, the ids of its resources, and what it counts for (`Outcome.weight`)."""

    steps: list[Step] = field(default_factory=list)
    ids: frozenset[str] = frozenset()
    weight: int = 1

    def drawn(self) -> list[int]:
        """The row ids that the store drew before it wrote the rows."""
        return [rid for step in self.steps for rid in step.rids]


class _NotingSession:
    """A store session that notes what changes something."""

    def __init__(self, inner: Session, steps: list[Step]) -> None:
        self._inner, self._steps = inner, steps
        self.dialect = inner.dialect
        self.stamp, self.lock, self.next_rid = inner.stamp, inner.lock, inner.next_rid
        self.linger, self.steady, self.later = inner.linger, inner.steady, inner.later
        self._gathered, self._rids = Gathered(), list[int]()

    def _noted(self, sql: str, params: Sequence[object]) -> Step | None:
        if not sql.lstrip().upper().startswith(_CHANGES):
            return None
        step = Step(pyformat(sql), list(params))
        self._steps.append(step)
        return step

    def rows(self, sql: str, params: Sequence[object] = ()) -> list[Any]:
        step, found = self._noted(sql, params), self._inner.rows(sql, params)
        if step:
            step.answer = list(found)
        return found

    def one(self, sql: str, params: Sequence[object] = ()) -> Any:
        step, found = self._noted(sql, params), self._inner.one(sql, params)
        if step:
            step.answer = [found]
        return found

    def run(self, sql: str, params: Sequence[object] = ()) -> None:
        self._noted(sql, params)
        self._inner.run(sql, params)

    def count(self, sql: str, params: Sequence[object] = ()) -> int:
        self._noted(sql, params)
        return self._inner.count(sql, params)

    def fill(self, bulk: Bulk, rows: Sequence[Row]) -> None:
        if bulk is RESOURCE:
            self._rids += [row[0] for row in rows]
        self._gathered.fill(bulk, rows)
        self._inner.fill(bulk, rows)

    def supersede(self, row: Row) -> None:
        self._gathered.supersede(row)
        self._inner.supersede(row)

    def agree(self, rid: int, wanted: Mapping[Bulk, Sequence[Row]]) -> None:
        self._gathered.agree(rid, wanted)
        self._inner.agree(rid, wanted)

    def clear(self, bulks: Sequence[Bulk], rid: int) -> None:
        if bulks:
            self._steps.append(Step(delete_postgresql(tuple(bulks)), [rid] * len(bulks)))
        self._inner.clear(bulks, rid)

    def close(self) -> None:
        """Note what was gathered: the store sends it in one statement at the end."""
        if self._gathered:
            sql, params = self._gathered.statement(self.dialect.txid)
            self._steps.append(Step(sql, list(params), texts=True, rids=self._rids))


class _NotingDatabase:
    """A store database that notes the statements of its last write transaction."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner
        self.dialect = inner.dialect
        self.steps: list[Step] = []

    def transaction(self, work: Callable[[Session], T]) -> T:
        def noting(session: Session) -> T:
            self.steps = []
            noted = _NotingSession(session, self.steps)
            result = work(noted)
            noted.close()
            return result

        return self._inner.transaction(noting)

    def snapshot(self) -> AbstractContextManager[Session]:
        return self._inner.snapshot()

    def once(self, steady: bool = False) -> AbstractContextManager[Session]:
        return self._inner.once(steady)

    async def soon(self, sql: str, params: Sequence[object]) -> Row | None:
        return await self._inner.soon(sql, params)

    def close(self) -> None:
        self._inner.close()


class LimitTarget:
    """The limit, driven like a server. `url` is the address of an empty database."""

    name = "limit"

    def __init__(self, url: str, folder: Path, effort: Effort) -> None:
        upgrade(url)
        self.url, self.effort = url, effort
        with psycopg.connect(url, autocommit=True) as connection:
            # Row ids that nothing else in a statement can be mistaken for.
            connection.execute(f"ALTER TABLE resource ALTER COLUMN rid RESTART WITH {_FIRST_RID}")
        store = open_store(url, folder, migrate=False)
        # The one place where a statement can be heard: between the store and its database.
        self._database = store._database = _NotingDatabase(store._database)
        site = tomllib.loads((ROOT / "fhir_server" / "demo" / "site.toml").read_text("utf-8"))["sites"]
        self._hub = Hub(Settings(sites=tuple(site)), store, load_sites(site))
        self._notes: dict[str, list[Note]] = {}
        self._versions = itertools.count(_FIRST_VERSION + 10, 100_000)
        self._keys: list[tuple[str, str]] = []
        self._directory_stored = False

    def close(self) -> None:
        self._hub.store.close()

    def run(self, work: str, clients: int, seconds: float) -> Outcome:
        """As fast as the driver goes; `mixed` is not defined."""
        if work in ("read", "vread"):
            self._noted("create")
            return self._forked(clients, seconds, 0, lambda share: _reading(self._keys, old=work == "vread"))
        notes = self._noted(work)
        first = next(self._versions)
        return self._forked(clients, seconds, 0, lambda share: _writing(itertools.cycle(notes[share::clients]), first))

    def load(self, bundles: Sequence[bytes], clients: int) -> Outcome:
        """Repeat a sample of the Bundles until as many resources are stored as the Bundles hold."""
        if "load" not in self._notes:
            self._note_load(bundles)
        notes = self._notes["load"]
        wanted = sum(len(json.loads(bundle)["entry"]) for bundle in bundles)
        repeats = max(1, round(wanted / sum(note.weight for note in notes)))
        work = notes * repeats
        return self._forked(clients, 0, len(work), lambda share: _writing(iter(work[share::clients]), 0))

    # --- noting ---

    def _noted(self, work: str) -> list[Note]:
        if work not in self._notes:
            most = max(16, min(200, self.effort.sample // 4))
            if work == "transaction":
                bundles = fhir_target.small_bundles(most)[:most]
                self._notes[work] = [self._note(_changes(bundle), 1) for bundle in bundles]
            elif work == "update":
                self._notes[work] = self._note_updates()
            else:
                subject = self._apply([Change("create", "Patient", resource=fhir_target.patients(1)[0])])[0].id
                made = fhir_target.bodies([f"Patient/{subject}"], most)[:most]
                self._notes[work] = [self._note([Change("create", r["resourceType"], resource=r)], 1) for r in made]
        return self._notes[work]

    def _apply(self, changes: list[Change]) -> list[Applied]:
        done = apply(self._hub, SYSTEM, copy.deepcopy(changes))
        self._keys += [(one.type, one.id) for one in done]
        return done

    def _note(self, changes: list[Change], weight: int) -> Note:
        done = self._apply(changes)
        return Note(self._database.steps, frozenset(one.id for one in done if one.status == 201), weight)

    def _note_updates(self) -> list[Note]:
        """Updates of resources whose version is raised first to a number that nothing else can be mistaken for; the
        same number stands in their identifier, so that each repetition changes what the server's changes."""
        self._noted("create")
        keys = self._keys[-max(16, min(200, self.effort.sample // 4)) :]
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("UPDATE resource SET version = %s", (_FIRST_VERSION,))
        found = []
        for kind, key in keys:
            with self._hub.store.read(SYSTEM) as snapshot:
                stored = snapshot.get(kind, key)
            assert stored is not None
            resource = json_text.parse(stored.text.replace(MARK.decode(), f"bench-{_FIRST_VERSION + 1}"))
            apply(self._hub, SYSTEM, [Change("update", kind, key, resource)])
            found.append(Note(self._database.steps))
        return found

    def _note_load(self, bundles: Sequence[bytes]) -> None:
        if not self._directory_stored:
            for raw in samples.directory():
                for change in _changes(json.loads(raw)):
                    self._apply([change])
            self._directory_stored = True
        by_size = sorted(bundles, key=len)
        middle = by_size[len(by_size) // 4 : len(by_size) // 4 + 4] or by_size
        self._notes["load"] = []
        for raw in middle:
            changes = _changes(json.loads(raw))
            self._notes["load"].append(self._note(changes, len(changes)))

    # --- repeating ---

    def _forked(
        self, clients: int, seconds: float, count: int, work_of: Callable[[int], Callable[[Any], Iterator[int]]]
    ) -> Outcome:
        context = multiprocessing.get_context("fork")
        workers, ends = [], []
        start = time.perf_counter()
        for share in range(min(clients, count) if count else clients):
            mine, theirs = context.Pipe(duplex=False)
            worker = context.Process(target=_child, args=(self.url, seconds, work_of(share), theirs), daemon=True)
            worker.start()
            theirs.close()
            workers.append(worker)
            ends.append(mine)
        total = Outcome()
        longest = 0.0
        for end in ends:
            times, weight, wall = end.recv()
            total.times.extend(times)
            total.weight += weight
            longest = max(longest, wall)
        for worker in workers:
            worker.join(30)
        total.wall = longest or time.perf_counter() - start
        return total


def _changes(bundle: dict[str, Any]) -> list[Change]:
    found = []
    for entry in bundle["entry"]:
        told, resource = entry["request"], entry["resource"]
        none_exist = told.get("ifNoneExist", "")
        found.append(
            Change(
                "create",
                resource["resourceType"],
                resource=resource,
                if_none_exist=none_exist,
                full_url=entry["fullUrl"],
            )
        )
    return found


def _child(url: str, seconds: float, work: Callable[[Any], Iterator[int]], out: Connection) -> None:
    random.seed(os.getpid())
    connection = connect(url)
    turns = work(connection)
    times: list[float] = []
    weight, start = 0, time.perf_counter()
    before = start
    for done in turns:
        after = time.perf_counter()
        times.append(after - before)
        weight += done
        before = after
        if seconds and after - start >= seconds:
            break
    out.send((times, weight, time.perf_counter() - start))
    out.close()
    connection.close()


def _reading(keys: Sequence[tuple[str, str]], *, old: bool) -> Callable[[Any], Iterator[int]]:
    sql = _SELECT_OLD if old else _SELECT

    def turns(connection: Any) -> Iterator[int]:
        while True:
            connection.execute(sql, random.choice(keys)).fetchone()
            yield 1

    return turns


def _writing(notes: Iterator[Note], first_version: int) -> Callable[[Any], Iterator[int]]:
    def turns(connection: Any) -> Iterator[int]:
        versions = itertools.count(first_version)
        rids: list[int] = []
        for note in notes:
            while len(rids) < len(note.drawn()):
                rids += [row[0] for row in connection.execute(_DRAW).fetchall()]
            _repeat(connection, note, next(versions), rids)
            yield note.weight

    return turns


def _repeat(connection: Any, note: Note, version: int, rids: list[int]) -> None:
    """One transaction again, for new resources (or new versions of the same ones)."""
    put: dict[Any, Any] = {key: str(uuid.uuid4()) for key in note.ids}
    put |= {old: rids.pop() for old in note.drawn()}
    put[_FIRST_VERSION + 1] = version
    with connection.pipeline():
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        for step in note.steps:
            fill = _rewritten if step.texts else _filled
            done = connection.execute(step.sql, [fill(value, put) for value in step.params])
            if step.answer is not None:
                for old, new in zip(step.answer, done.fetchall(), strict=True):
                    put[old[0]] = new[0]
        connection.execute("COMMIT")


def _rewritten(text: str, put: dict[Any, Any]) -> str:
    text = _CONTAINED.sub(lambda found: _contained(found[0], put), text)
    for old, new in put.items():
        text = text.replace(str(old), str(new))
    return text


def _contained(number: str, put: dict[Any, Any]) -> str:
    """The number of a contained resource, `-(rid * 1024 + place)`, beside another rid (ADR 0057)."""
    rid, place = divmod(-int(number), 1024)
    return f"{-(put[rid] * 1024 + place)}" if rid in put else number


def _filled(value: Any, put: dict[Any, Any]) -> Any:
    if type(value) is list:
        first = value[0] if value else None
        if first in put and value.count(first) == len(value):
            return [put[first]] * len(value)
        if type(first) is int and first >= _FIRST_RID:
            return [put.get(item, item) for item in value]
        return value
    return put.get(value, value) if type(value) in (int, str) else value
