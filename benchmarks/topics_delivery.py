"""Topics `delivery-rate`, `delivery-dead` and `delivery-growth`: what the outbox gets out of the house, and what it
costs beside a destination that is dead and beside a million finished deliveries.

Worker processes with the shipped settings send to MLLP partners in a process of their own, on SQLite (synchronous FULL)
and PostgreSQL (fsync on). How many messages come in a second is topic `hl7-answered`.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import report, servers
from benchmarks.delivery_target import Crew, Outbox, Partners, crew, message, partners
from benchmarks.inserts import Insert, inserting
from benchmarks.rounds import Effort, Subject, measured, turns
from fhir_server.context import SYSTEM, new_delivery_id
from fhir_server.store.engine import Store, open_store
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.leases import Claim, Outcome
from fhir_server.store.schema import upgrade

LANES = (1, 10, 100)
PROCESSES = (1, 2, 4)
LIVE = 10
"""Lanes that go on beside the dead one."""
WRITERS = 4
"""Connections of the bare insert: as many as a process has conversations."""
_MEDPLUM = "Medplum publishes 300 to 400 messages a second for its agent's queue (its own machine and measurement)."


def _few(effort: Effort) -> bool:
    return effort.sample < 100


@dataclass(frozen=True, slots=True)
class _Place:
    """One database engine: its name in the tables, the store's address, a folder for files."""

    name: str
    url: str
    folder: Path


@contextlib.contextmanager
def _places(prefix: str, told: list[str]) -> Iterator[list[_Place]]:
    """A migrated database on each engine there is; what is missing or how it is set goes to `told`."""
    folder = Path(tempfile.mkdtemp(prefix="passerelle-bench-"))
    try:
        with contextlib.ExitStack() as stack:
            found = [_Place("SQLite FULL", f"sqlite:///{folder / 'passerelle.db'}", folder)]
            try:
                cluster = stack.enter_context(servers.cluster())
                told.append(f"{cluster.described()}.")
                found.append(_Place("PostgreSQL", cluster.create(prefix), folder))
                stack.callback(cluster.drop, found[-1].url)
            except servers.Unable as absent:
                told.append(f"PostgreSQL was left out: {absent}")
            for place in found:
                upgrade(place.url)
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- how many leave --------------------------------------------------------------------------------------------------


def rate_topic(effort: Effort) -> report.Report:
    """Deliveries a second over 1, 10 and 100 lanes, beside the bare insert."""
    groups = LANES[:2] if _few(effort) else LANES
    told: list[str] = []
    rows: list[list[str]] = []
    with _places("bench_out", told) as found, partners(sum(groups)) as there:
        for place in found:
            rows += _rates(place, there, groups, effort)
    method = [
        "A busy sender commits once for each delivery: the outcome of the last one, and the attempt of the next before "
        "its bytes leave. "
        f"The bare insert is one row of the same bytes and one commit, over {WRITERS} connections.",
        "Each process holds four conversations at a time, on a connection of their own each; partners and workers "
        f"share the machine. {_MEDPLUM}",
        *told,
    ]
    head = ["Work", "a second", "min to max", "of the bare insert", "ms between two of a lane"]
    return report.Report("delivery-rate", "Deliveries", [report.Grid("Handed over and answered", head, rows)], method)


def _rates(place: _Place, there: Partners, groups: Sequence[int], effort: Effort) -> list[list[str]]:
    processes = PROCESSES if place.name == "PostgreSQL" and not _few(effort) else PROCESSES[:1]
    with contextlib.ExitStack() as stack:
        outbox = stack.enter_context(contextlib.closing(Outbox(place.url)))
        lanes: dict[int, list[int]] = {}
        first = {count: sum(groups[:place]) for place, count in enumerate(groups)}
        for count in groups:
            addresses = there.addresses[first[count] : first[count] + count]
            lanes[count] = [outbox.lane(f"{count}-{n:03d}", address) for n, address in enumerate(addresses)]
        workers = stack.enter_context(crew(place.url, place.folder, max(processes)))
        pool = stack.enter_context(ThreadPoolExecutor(WRITERS))
        inserts = [stack.enter_context(contextlib.closing(inserting(place.url, place.folder))) for _ in range(WRITERS)]
        subjects: dict[str, Callable[[], float]] = {}
        for count in groups:
            for number in processes:
                name = f"{place.name}, {count} lane(s), {number} process(es)"
                window = _Window(outbox, workers, number, lanes[count], there, first[count])
                subjects[name] = partial(window.rate, effort.seconds)
        subjects[f"{place.name}, bare insert"] = lambda: _inserts(pool, inserts, effort.seconds)
        measures = _interleaved(subjects, effort.rounds)
    limit = statistics.median(measures[f"{place.name}, bare insert"])
    return [_row(name, rates, limit) for name, rates in measures.items()]


def _row(name: str, rates: Sequence[float], limit: float) -> list[str]:
    middle = statistics.median(rates)
    lanes = int(name.split(", ")[1].split()[0]) if "lane" in name else 0
    between = report.millis(lanes / middle) if lanes and middle else "-"
    return [name, report.rate(middle), report.spread(min(rates), max(rates)), report.ratio(middle, limit), between]


@dataclass(frozen=True, slots=True)
class _Window:
    """Some lanes that are let go while so many processes work, to the partners from number `first` on; `beside`: lanes
    that are let go too, and not counted."""

    outbox: Outbox
    workers: Crew
    processes: int
    lanes: Sequence[int]
    there: Partners
    first: int = 0
    beside: Sequence[int] = ()

    def rate(self, seconds: float) -> float:
        """Deliveries a second. Raises RuntimeError when a lane ran dry, which would flatter the others."""
        least = int(seconds * 2_500 / len(self.lanes)) + 50
        for lane in self.lanes:
            if (left := self.outbox.waiting(lane)) < least:
                self.outbox.fill(lane, 4 * least - left)
        self.outbox.settle()
        self.outbox.open([*self.lanes, *self.beside])
        last = self.first + len(self.lanes)
        with self.workers.working(self.processes):
            time.sleep(min(0.5, seconds))  # every process has its connections then
            before, began = self.there.count(self.first, last), time.perf_counter()
            time.sleep(seconds)
            after, ended = self.there.count(self.first, last), time.perf_counter()
        if not all(self.outbox.waiting(lane) for lane in self.lanes):
            raise RuntimeError("a lane ran dry; measure for a shorter time")
        return (after - before) / (ended - began)


def _inserts(pool: ThreadPoolExecutor, inserts: Sequence[Insert], seconds: float) -> float:
    until = time.perf_counter() + seconds

    def work(insert: Insert) -> int:
        count = 0
        while time.perf_counter() < until:
            insert.put(message(new_delivery_id()))
            count += 1
        return count

    return sum(pool.map(work, inserts)) / seconds


def _interleaved(subjects: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each subject found in each round; every round begins with another one."""
    names = list(subjects)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for place in turns(len(names), number):
            found[names[place]].append(subjects[names[place]]())
    return found


# --- beside a dead destination ---------------------------------------------------------------------------------------

_DEAD = {
    "nobody listens": "queued",
    "it never answers": "queued",
    "its first waits for a person": "error",
}


def dead_topic(effort: Effort) -> report.Report:
    """What other lanes lose beside one that is dead and holds 100,000 messages, and what a claim costs there."""
    many = 500 if _few(effort) else 100_000
    told: list[str] = []
    ratios: list[list[str]] = []
    claims: list[list[str]] = []
    with _places("bench_dead", told) as found, partners(LIVE) as there:
        for place in found:
            more, cost = _beside(place, there, many, effort)
            ratios += more
            claims += cost
    method = [
        f"{LIVE} lanes, one process; {many:,} messages wait in each dead lane. Nobody listens: refused at once, then "
        "the pause doubles. It never answers: one conversation takes `send_timeout_seconds` (30). Its first waits for "
        "a person: the lane is blocked.",
        "The share is taken in each round, of that round's rate without a dead lane. "
        "A claim is taken and given back, two commits; all three dead lanes are open beside it.",
        *told,
    ]
    share = ["Dead lane", "of the rate", "min to max", "a second"]
    grids = [
        report.Grid("The others, times without it (goal: 0.95)", share, ratios),
        report.Grid("A claim", ["Work", "ms", "min to max"], claims),
    ]
    return report.Report("delivery-dead", "Deliveries beside a dead destination", grids, method)


def _beside(place: _Place, there: Partners, many: int, effort: Effort) -> tuple[list[list[str]], list[list[str]]]:
    with contextlib.closing(Outbox(place.url)) as outbox:
        lanes = [outbox.lane(f"live-{n}", address) for n, address in enumerate(there.addresses[:LIVE])]
        addresses = (f"mllp://127.0.0.1:{servers.free_port()}", there.addresses[-1], there.addresses[0])
        dead = [outbox.lane(f"dead-{n}", address) for n, address in enumerate(addresses)]
        claims = _claims(place, outbox, lanes, "a claim, no dead lane", effort)
        for lane, state in zip(dead, _DEAD.values(), strict=True):
            outbox.fill(lane, 1, state)
            outbox.fill(lane, many)
        outbox.settle()
        with crew(place.url, place.folder, 1) as workers:
            beside = {"": [], **{name: [lane] for name, lane in zip(_DEAD, dead, strict=True)}}
            windows = {name: _Window(outbox, workers, 1, lanes, there, 0, some) for name, some in beside.items()}
            rates = _interleaved(
                {name: partial(window.rate, effort.seconds) for name, window in windows.items()},
                effort.rounds,
            )
        claims += _claims(place, outbox, lanes, f"a claim beside {len(dead)} dead lanes", effort, dead)
    shown = []
    for name, found in rates.items():
        shares = [one / alone for one, alone in zip(found, rates[""], strict=True)]
        share = report.spread(min(shares), max(shares)) if name else "-"
        rate = report.rate(statistics.median(found))
        shown.append([f"{place.name}, {name or 'none'}", report.ratio(statistics.median(shares), 1.0), share, rate])
    return shown, claims


def _claims(
    place: _Place, outbox: Outbox, lanes: Sequence[int], name: str, effort: Effort, dead: Sequence[int] = ()
) -> list[list[str]]:
    """A claim and its release, by the product's own store."""
    for lane in lanes:
        outbox.fill(lane, 10)
    outbox.open([*lanes, *dead])
    for lane in dead:
        outbox.run("UPDATE lane SET ready_at = ? WHERE id = ?", int((time.time() + 3600) * 1e6), lane)
    store = open_store(place.url, place.folder, migrate=False)
    try:

        def claim() -> int:
            held = store.claim("bench", 30.0)
            if held is None or held.lane_id not in lanes:
                raise RuntimeError("the claim found no live lane")
            store.release(held)
            return 1

        found = measured([Subject(name, claim)], effort)[name]
    finally:
        store.close()
    return [[f"{place.name}, {name}", report.millis(found.median), report.spread(found.low * 1e3, found.high * 1e3)]]


# --- beside a million finished ---------------------------------------------------------------------------------------


def growth_topic(effort: Effort) -> report.Report:
    """A whole turn (queued, taken, settled) and a scrape of the metrics, before and after a million deliveries."""
    many = 2_000 if _few(effort) else 1_000_000
    told: list[str] = []
    rows: list[list[str]] = []
    with _places("bench_many", told) as found:
        for place in found:
            rows += _grown(place, many, effort)
    method = [
        f"{many:,} finished deliveries of one lane, each with its bytes, its attempt and its business key. A turn is "
        "the product's own three transactions without a conversation: queue, take, settle.",
        *told,
    ]
    head = ["Work", "ms, empty", f"ms, {many:,} finished", "times"]
    grid = report.Grid("Growth (goal: flat)", head, rows)
    return report.Report("delivery-growth", "Deliveries beside a million finished ones", [grid], method)


def _grown(place: _Place, many: int, effort: Effort) -> list[list[str]]:
    from fhir_server import watch

    store = open_store(place.url, place.folder, migrate=False)
    try:
        store.write(SYSTEM, lambda tx: tx.send(_new()))
        subjects = [
            Subject("a turn", lambda: _turn(store)),
            Subject("the metrics", lambda: len(watch.metrics(store)) and 1),
        ]
        before = measured(subjects, effort)
        with contextlib.closing(Outbox(place.url)) as outbox:
            outbox.fill(outbox.run("SELECT id FROM lane WHERE name = 'grown'").fetchone()[0], many, "sent")
            outbox.settle()
        after = measured(subjects, effort)
    finally:
        store.close()
    return [
        [f"{place.name}, {name}", report.millis(before[name].median), report.millis(after[name].median),
         report.ratio(after[name].median, before[name].median)] for name in before
    ]  # fmt: skip


def _new() -> NewDelivery:
    key = new_delivery_id()
    return NewDelivery("grown", "mllp://127.0.0.1:1", "hl7", message(key), id=key, patient=f"Patient/{key}")


def _turn(store: Store) -> int:
    store.write(SYSTEM, lambda tx: tx.send(_new()))
    held = store.take("bench", 30.0, lambda snapshot, claim: None)
    if held is None:
        raise RuntimeError("nothing was due")
    settled(store, held)
    return 1


def settled(store: Store, held: Claim) -> None:
    """The delivery was answered AA."""
    store.finish(held, Outcome("sent", ack=b"MSA|AA"))
