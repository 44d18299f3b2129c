"""The store: opens a database and a data folder, runs reads and writes, and owns what happens around a commit.

Everything outside this package sees `Store`, `Snapshot`, `Tx` and plain values; which database is underneath shows
nowhere else.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

from fhir_server.context import SYSTEM, Caller, Clock, micros, now
from fhir_server.search.plan import Plan
from fhir_server.store import audit, inbox, instances, lanes, leases, resources, schema, statistics
from fhir_server.store.arriving import Arriving
from fhir_server.store.bell import Bell, PostgresBell, SilentBell
from fhir_server.store.blobs import Blobs
from fhir_server.store.dialect import Dialect, Row, Session
from fhir_server.store.inbox import INLINE_BYTES, InboxState, Keys, NewMessage, Received
from fhir_server.store.instances import Study
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.leases import Claim, Outcome
from fhir_server.store.postgres import PostgresDatabase, connect
from fhir_server.store.query import Page, alone, is_single
from fhir_server.store.resources import Stored
from fhir_server.store.session import Snapshot, Tx
from fhir_server.store.sizes import Sizes
from fhir_server.store.sqlite import SqliteDatabase
from fhir_server.store.view import View

T = TypeVar("T")
log = logging.getLogger("passerelle.store")
Moment = int | datetime | None
Check = Callable[[Tx, Claim], Outcome | None]


class Database(Protocol):
    """What a database offers the store."""

    @property
    def dialect(self) -> Dialect: ...

    def transaction(self, work: Callable[[Session], T]) -> T: ...

    def snapshot(self) -> AbstractContextManager[Session]: ...

    def once(self, steady: bool = False) -> AbstractContextManager[Session]: ...

    async def soon(self, sql: str, params: Sequence[object]) -> Row | None:
        """The first row of one statement, without a thread. Raises NotSoon."""
        ...

    def close(self) -> None: ...


def open_store(
    url: str,
    data_dir: Path,
    *,
    migrate: bool = True,
    clock: Clock = now,
    connections: int = 12,
    statement_seconds: float = 30.0,
    blobs: Blobs | None = None,
) -> Store:
    """Opens `sqlite:///path` or `postgresql://...`, with the blobs of `data_dir` unless others are given.

    With `migrate` the schema is brought up to date first (SQLite: after a backup copy into `data_dir`/backups);
    without it, `Unavailable` says to run `passerelle db upgrade`. `connections` bounds the PostgreSQL pool, or
    SQLite's readers; a statement that runs longer than `statement_seconds` is stopped.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    status = schema.upgrade(url, backups=data_dir / "backups") if migrate else schema.require(url)
    blobs = blobs or Blobs(data_dir / "blobs")
    blobs.prepare()
    path = schema.sqlite_path(url)
    if path is None:
        postgres = PostgresDatabase(url, connections=connections, statement_seconds=statement_seconds)
        return Store(postgres, blobs, clock, status.needed, lambda heard: PostgresBell(url, heard), url)
    sqlite = SqliteDatabase(path, readers=connections, statement_seconds=statement_seconds)
    return Store(sqlite, blobs, clock, status.needed, lambda heard: SilentBell(), url)


class Store:
    """One open database. Safe to use from any thread."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        clock: Clock,
        schema_version: str,
        bell: Callable[[Callable[[], None]], Bell],
        address: str = "",
    ) -> None:
        """`address` is the database's URL. `bell` makes what tells other processes of work; it is handed what to call
        when they tell."""
        self._database = database
        self._clock = clock
        self._sizes = Sizes()
        self._bell = threading.Condition()
        self._rings = 0
        self._others = bell(self.wake)
        # SQLite commits every write together with those that wait.
        self._arriving = Arriving(lambda: database.once(steady=True)) if database.dialect.name == "postgresql" else None
        self.blobs = blobs
        self.schema_version = schema_version
        self.address = address

    @property
    def engine(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._database.dialect.name

    @property
    def epoch(self) -> int:
        """The number that changes when definitions, settings or grants do."""
        with self.read(SYSTEM) as snapshot:
            return snapshot.epoch()

    @cached_property
    def link_key(self) -> bytes:
        """What page links are signed with: drawn once, kept in the database, the same in every process."""
        names = ("link key 1", "link key 2")

        def drawn(tx: Tx) -> list[int]:
            for name in names:
                drawn = "INSERT INTO counter (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
                tx.view.db.run(drawn, (name, secrets.randbits(63)))
            return [tx.view.db.rows("SELECT value FROM counter WHERE name = ?", (name,))[0][0] for name in names]

        with self.read(SYSTEM) as snapshot:
            held = snapshot.view.db.rows("SELECT value FROM counter WHERE name IN (?, ?) ORDER BY name", names)
        values = [row[0] for row in held] if len(held) == len(names) else self.write(SYSTEM, drawn)
        return b"".join(int(value).to_bytes(8, "big") for value in values)

    def write(self, caller: Caller, work: Callable[[Tx], T]) -> T:
        """Runs `work` in one transaction, up to three times; returns after the commit.

        On SQLite the work may run on another thread that writes: keep it short, and start no other write in it.
        """

        def run(session: Session) -> tuple[T, bool]:
            view = self._view(session, caller)
            result = work(Tx(view))
            lanes.flush(view)
            return result, view.woken

        result, woken = self._database.transaction(run)
        if woken:
            self.wake()
            self._others.ring()
        return result

    @contextmanager
    def read(self, caller: Caller) -> Iterator[Snapshot]:
        """One consistent snapshot."""
        with self._database.snapshot() as session:
            yield Snapshot(self._view(session, caller))

    def search(self, caller: Caller, plan: Plan) -> Page:
        """A page of a search, in a single statement without a transaction where that is enough."""
        if is_single(plan):
            with self._database.once() as session:
                if (page := alone(self._view(session, caller), plan)) is not None:
                    return page
        with self.read(caller) as snapshot:
            return snapshot.search(plan)

    def _view(self, session: Session, caller: Caller) -> View:
        return View(session, caller, self.blobs, self._clock, self._sizes)

    def get(self, caller: Caller, resource_type: str, resource_id: str) -> Stored | None:
        """The current version in one statement: the hot path of a FHIR read."""
        with self._database.once() as session:
            return resources.get(self._view(session, caller), resource_type, resource_id)

    def version(self, caller: Caller, resource_type: str, resource_id: str, number: int) -> Stored | None:
        """One version in one statement."""
        with self._database.once() as session:
            return resources.version(self._view(session, caller), resource_type, resource_id, number)

    async def soon(self, caller: Caller, resource_type: str, resource_id: str, number: int = 0) -> Stored | None:
        """`get`, or `version` of a number, on the caller's event loop and without a thread.

        Raises `NotSoon` for whatever goes wrong: ask again in a thread.
        """
        if number:
            found = await self._database.soon(*resources.version_query(caller, resource_type, resource_id, number))
            return resources.at_version(found, number)
        found = await self._database.soon(*resources.get_query(caller, resource_type, resource_id))
        return None if found is None else resources.stored(found)

    def close(self) -> None:
        """Finishes running writes and closes the database."""
        self._database.close()
        self._others.close()
        self.wake()

    # inbox
    def receive(self, message: NewMessage, caller: Caller = SYSTEM) -> Received:
        """Stores the original bytes, or finds the same message again; on return they are safe."""
        large = len(message.raw) > INLINE_BYTES
        sha256 = self.blobs.put(message.raw) if large else inbox.sha256_of(message.raw)
        if not large and self._arriving is not None and (new := self._arriving.receive(message, sha256, self.moment())):
            return new
        return self.write(caller, lambda tx: inbox.receive(tx.view, message, sha256))

    def reject(
        self,
        inbox_id: str,
        error_text: str,
        location: str,
        ack: bytes | None,
        *,
        state: InboxState = "error",
        keys: Keys = (),
        caller: Caller = SYSTEM,
    ) -> None:
        """Records why a message was not taken in, and what was answered."""
        self.write(caller, lambda tx: tx.reject(inbox_id, error_text, location, ack, state=state, keys=keys))

    # lanes
    def keep(self, delivery: NewDelivery) -> NewDelivery:
        """The delivery as `Tx.send` takes it: a payload over 64 KiB is in the blobs from now on. Call it before the
        transaction: that is the slow part, and no lock is held meanwhile."""
        if len(delivery.payload) <= INLINE_BYTES:
            return delivery
        return replace(delivery, payload=b"", kept=self.blobs.keep(delivery.payload))

    def claim(self, worker: str, lease_seconds: float, at: Moment = None) -> Claim | None:
        """Leases a lane that has something to send; None when there is none. `at`: µs or datetime."""
        moment = self._moment(at)
        return self.write(SYSTEM, lambda tx: leases.claim(tx.view, worker, lease_seconds, moment))

    def take(
        self, worker: str, lease_seconds: float, check: Check, at: Moment = None, *, lane: str = ""
    ) -> Claim | None:
        """Claims a lane's next delivery and notes the attempt: send its bytes now. None when nothing is due.

        `check(tx, claim)` runs in the same transaction; an `Outcome` it returns settles the delivery unsent, and the
        next one is looked for. `lane` names a lane its partner fetches; without it, those are left out.
        """

        def work(tx: Tx) -> tuple[Claim | None, bool]:
            moment = self._moment(at)

            def asked(view: View, held: Claim) -> Outcome | None:
                return check(tx, held)

            if lane:
                return leases.take_pulled(tx.view, lane, worker, lease_seconds, moment, asked)
            return leases.take(tx.view, worker, lease_seconds, moment, asked)

        while True:
            claim, again = self.write(SYSTEM, work)
            if not again:
                return claim

    def renew(self, held: Sequence[Claim], lease_seconds: float, at: Moment = None) -> set[int]:
        """Prolongs leases; the ids of the lanes that are still ours."""
        moment = self._moment(at)
        return self.write(SYSTEM, lambda tx: leases.renew(tx.view, held, lease_seconds, moment))

    def next_due(self) -> int:
        """When the next lane may be claimed, µs; 0 when nothing waits for a time to come."""
        with self.read(SYSTEM) as snapshot:
            return leases.next_due(snapshot.view)

    def payload(self, held: Claim) -> bytes:
        """The frozen bytes of a claimed delivery. Raises as `lanes.unchanged`."""
        found = self.blobs.read(held.delivery.sha256) if held.inline is None else held.inline
        return lanes.unchanged(held.delivery.id, found, held.delivery.sha256)

    def start_attempt(self, held: Claim, at: Moment = None) -> int:
        """Notes that bytes are about to leave; `LeaseLost`: send nothing. Returns the attempt's number."""
        moment = self._moment(at)
        return self.write(SYSTEM, lambda tx: leases.start_attempt(tx.view, held, moment))

    def finish(self, held: Claim, outcome: Outcome, at: Moment = None) -> bool:
        """Records how the attempt ended and gives the lane back; False when the outcome settled nothing (the lane was
        lost, and it is only noted as late)."""
        moment = self._moment(at)
        return self.write(SYSTEM, lambda tx: leases.finish(tx.view, held, outcome, moment))

    def pass_on(
        self, held: Claim, outcome: Outcome, worker: str, lease_seconds: float, check: Check
    ) -> tuple[bool, Claim | None]:
        """`finish`, and `take` in the same transaction: one commit between two deliveries instead of two."""

        def work(tx: Tx) -> tuple[bool, Claim | None, bool]:
            moment = self._moment(None)
            settled = leases.finishing(tx.view, held, outcome, moment)
            claim, again = leases.take(tx.view, worker, lease_seconds, moment, lambda _, one: check(tx, one))
            return settled(), claim, again

        settled, claim, again = self.write(SYSTEM, work)
        if again:
            try:
                claim = self.take(worker, lease_seconds, check)
            except Exception as fault:  # the outcome stands: it must not be written again
                log.warning("delivery %s is settled; the next one could not be taken: %s", held.delivery.id, fault)
        return settled, claim

    def release(self, held: Claim) -> None:
        """Gives the lane back."""
        self.write(SYSTEM, lambda tx: leases.release(tx.view, held))

    def rings(self) -> int:
        """How often work was queued, as far as this process heard; read it before looking for work, pass it to
        `wait_for_work`."""
        return self._rings

    def wait_for_work(self, seen: int, seconds: float) -> None:
        """Returns at once when work was queued since `seen`, else when some is, or after `seconds`.

        Other processes are heard through PostgreSQL; what is lost on that way is found by looking again now and then.
        """
        self._others.listen()
        with self._bell:
            self._bell.wait_for(lambda: self._rings != seen, timeout=seconds)

    def wake(self) -> None:
        """Lets everybody who waits in this process look for work."""
        with self._bell:
            self._rings += 1
            self._bell.notify_all()

    def now(self) -> datetime:
        """The present of the store's clock."""
        return self._clock()

    def moment(self) -> int:
        """The present of the store's clock, in microseconds since 1970 UTC."""
        return micros(self._clock())

    def _moment(self, at: Moment) -> int:
        if isinstance(at, int):
            return at
        return micros(at or self._clock())

    # images
    def claim_dirty(self, at: Moment = None, quiet_seconds: float = 2.0, lease_seconds: float = 60.0) -> Study | None:
        """Takes one study that asked for matching and has been quiet since; None when there is none."""
        moment = self._moment(at)
        return self.write(SYSTEM, lambda tx: instances.claim_dirty(tx.view, moment, quiet_seconds, lease_seconds))

    # upkeep
    def analyse(self) -> None:
        """Has the database look at all its tables, for its plans. SQLite's are made without."""
        if self.engine == "postgresql":
            statistics.look(lambda: connect(self.address, statement_seconds=statistics.SECONDS))

    # audit
    def seal(self) -> int:
        """Seals every committed audit row; how many."""
        total = 0
        while sealed := self.write(SYSTEM, lambda tx: audit.seal(tx.view)):
            total += sealed
        return total

    def verify(self) -> audit.Verdict:
        """Recomputes the audit chain."""
        with self.read(SYSTEM) as snapshot:
            return audit.verify(snapshot.view)
