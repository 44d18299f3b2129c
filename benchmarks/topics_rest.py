"""Topics `rest-*`: interactions over HTTP, ours beside other servers and beside the limit, on one machine.

Ours is started here on PostgreSQL with fsync on and the shipped defaults; peers run already and are given by URL. Every
round drives one after the other for the same time; the order changes from round to round.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report, samples, servers
from benchmarks.fhir_target import FhirTarget
from benchmarks.limit import LimitTarget
from benchmarks.load import ceiling
from benchmarks.rounds import Effort, turns
from benchmarks.target import Outcome, Series, Target

OURS = "passerelle"
GOALS = {
    "read": "2x hapi, 0.7x wso2",
    "vread": "2x hapi, 0.7x wso2",
    "create": "2x hapi, 0.8x wso2, 0.5x the limit",
    "update": "2x hapi, 0.8x wso2, 0.5x the limit",
    "transaction": "2x hapi, 0.8x wso2, 0.5x the limit",
    "mixed": "2x hapi",
    "load": "2x hapi, 0.8x wso2, 0.5x the limit",
}
_TITLES = {
    "create": "REST: create (1 Patient to 4 Observations)",
    "read": "REST: read by id",
    "vread": "REST: read of a superseded version",
    "update": "REST: update",
    "transaction": "REST: small transaction (Patient + Observation)",
    "mixed": "REST: mixed (create 10, read 60, update 25, delete 5 of 100)",
    "load": "REST: load of Synthea Bundles as transactions",
}


_HEAD = (
    "Server, clients", "min to max", "p50 ms", "p95 ms", "p99 ms", "answers", "failures", "CPU ms", "generator",
)  # fmt: skip


@dataclass(slots=True)
class Field:
    """Everything that runs while the HTTP topics are measured."""

    cluster: servers.Cluster
    ours: servers.Ours
    targets: list[FhirTarget]
    limit: LimitTarget
    database: str
    peers: dict[str, str]


@contextlib.contextmanager
def field(peers: dict[str, str], effort: Effort) -> Iterator[Field]:
    """PostgreSQL, our server, the peers (checked to answer) and the limit's database."""
    with servers.cluster() as cluster, servers.ours(cluster) as ours, tempfile.TemporaryDirectory() as folder:
        targets = [FhirTarget(name, url, effort) for name, url in {OURS: ours.url, **peers}.items()]
        url = cluster.create("limit")
        limit = LimitTarget(url, Path(folder), effort)
        try:
            yield Field(cluster, ours, targets, limit, cluster.described(), peers)
        finally:
            limit.close()
            cluster.drop(url)


def interaction(work: str) -> Callable[[Field, Effort], report.Report]:
    """The topic of one kind of work."""

    def topic(ground: Field, effort: Effort) -> report.Report:
        targets: list[Target] = [*ground.targets] if work == "mixed" else [*ground.targets, ground.limit]
        for target in targets:
            target.run(work, max(effort.clients), effort.http_warm_up)
        deadline = time.monotonic() + effort.minutes * 60
        found = {(target.name, clients): Series() for target in targets for clients in effort.clients}
        done = 0
        while done < effort.rounds and (done == 0 or time.monotonic() < deadline):
            for clients in effort.clients:
                for place in turns(len(targets), done):
                    outcome = targets[place].run(work, clients, effort.seconds)
                    found[targets[place].name, clients].outcomes.append(outcome)
            done += 1
        names = [target.name for target in targets]
        grids = [_ratios(work, found, names, effort.clients), absolute(found, names, effort.clients)]
        return report.Report(f"rest-{work}", _TITLES[work], grids, _method(ground, effort, found, done))

    return topic


def _ratios(
    work: str, found: dict[tuple[str, int], Series], names: Sequence[str], clients: Sequence[int]
) -> report.Grid:
    others = [name for name in names if name != OURS]
    rows = [
        [str(count), *(report.ratio(found[OURS, count].rate, found[name, count].rate) for name in others)]
        for count in clients
    ]
    return report.Grid(
        f"Our requests a second, times the other's (goals: {GOALS[work]})",
        ["Clients", *(f"of {n}" for n in others)],
        rows,
    )


def absolute(
    found: dict[tuple[str, int], Series], names: Sequence[str], clients: Sequence[int], unit: str = "req/s"
) -> report.Grid:
    rows = []
    for count in clients:
        for name in names:
            series = found[name, count]
            rows.append(
                [
                    f"{name}, {count}",
                    report.rate(series.rate),
                    report.spread(series.low, series.high),
                    *(report.millis(seconds) for seconds in series.percentiles(50, 95, 99)),
                    str(series.answers),
                    str(series.failures),
                    report.millis(series.served) if series.served else "-",
                    f"{series.cpu_share:.0%}" if series.cpu_share else "-",
                ]
            )
    head = [
        "Server, clients",
        unit,
        "min to max",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "answers",
        "failures",
        "CPU ms",
        "generator",
    ]
    return report.Grid("Absolute", head, rows)


def _method(ground: Field, effort: Effort, found: dict[tuple[str, int], Series], rounds: int) -> list[str]:
    told = [
        f"Closed model: each client sends when its answer is there; {effort.seconds:g} s a round, {rounds} rounds, "
        "one server after the other in each; percentiles over all rounds.",
        "`CPU ms`: processor time of the server for one success, without PostgreSQL; `generator`: its part of a core.",
        "The limit repeats our write transactions' statements through psycopg, one process a client, nothing else; "
        "its reads are one SELECT.",
        samples.described(),
    ]
    if rounds < effort.rounds:
        told.append(f"The time for one topic was over after {rounds} of {effort.rounds} rounds.")
    for (name, clients), series in found.items():
        if series.failures:
            words = " ".join(series.first_failure.split())[:200].replace("|", "/")
            told.append(f"{name} failed {series.failures} of {series.answers} at {clients} clients, first: {words}")
    return told


def load_topic(ground: Field, effort: Effort) -> report.Report:
    """The patients' Bundles in five equal parts: a round is one part, sent once to every server."""
    clients = max(c for c in effort.clients if c <= 8) if min(effort.clients) <= 8 else effort.clients[0]
    bundles = samples.patients(effort.bundles)
    parts = [bundles[number :: effort.rounds] for number in range(effort.rounds)]
    targets: list[Target] = [*ground.targets, ground.limit]
    for target in ground.targets:
        directory = samples.directory()
        if directory:
            target.load(directory, 1)
    found = {(target.name, clients): Series() for target in targets}
    deadline, done = time.monotonic() + effort.minutes * 60, 0
    for number, part in enumerate(part for part in parts if part):
        started = time.monotonic()
        for place in turns(len(targets), number):
            found[targets[place].name, clients].outcomes.append(targets[place].load(part, clients))
        done += 1
        if time.monotonic() + (time.monotonic() - started) > deadline:
            break
    names = [target.name for target in targets]
    grids = [_ratios("load", found, names, [clients]), absolute(found, names, [clients], "resources/s")]
    grids.append(_sizes(ground, names, {name: found[name, clients].outcomes for name in names}))
    method = _method(ground, effort, found, done)
    method[0] = (
        f"{sum(map(len, parts[:done]))} Bundles of patients in {done} parts, each sent once by {clients} clients; "
        "hospitals and practitioners are stored before. Times are of whole Bundles."
    )
    method.append("The limit repeats four Bundles of less than median size, as many resources in all.")
    return report.Report("rest-load", _TITLES["load"], grids, method)


def _sizes(ground: Field, names: Sequence[str], outcomes: dict[str, list[Outcome]]) -> report.Grid:
    """Resources stored, and the database's size where it stands in the same cluster under the peer's name."""
    sizes = ground.cluster.sizes()
    databases = {name: name for name in names} | {OURS: ground.ours.database.rpartition("/")[2]}
    rows = []
    for name in names:
        stored = sum(outcome.weight for outcome in outcomes[name])
        size = sizes.get(databases[name], 0)
        rows.append([name, f"{stored:,}", f"{size / 1e6:,.0f}" if size else "-"])
    return report.Grid("Stored in this topic, and the whole database", ["Server", "resources", "MB on disk"], rows)


def start_topic(ground: Field, effort: Effort) -> report.Report:
    """Start-up time and memory: at rest, and after work."""
    seconds = {OURS: ground.ours.seconds} | _told_starts()
    pids = {target.name: target.pid for target in ground.targets if target.pid is not None}
    rest = {name: servers.memory(pid) for name, pid in pids.items()}
    for target in ground.targets:
        for work in ("create", "read"):
            target.run(work, max(effort.clients), effort.seconds)
    after = {name: servers.memory(pid) for name, pid in pids.items()}
    names = [target.name for target in ground.targets]
    ratios = [
        [
            name,
            report.ratio(seconds[OURS], seconds.get(name, 0.0)),
            report.ratio(rest.get(OURS, 0), rest.get(name, 0)),
            report.ratio(after.get(OURS, 0), after.get(name, 0)),
        ]
        for name in names[1:]
    ]
    rows = [
        [
            name,
            f"{seconds[name]:.1f}" if name in seconds else "-",
            f"{rest.get(name, 0) / 1e6:.0f}" if name in rest else "-",
            f"{after.get(name, 0) / 1e6:.0f}" if name in after else "-",
        ]
        for name in names
    ]
    return report.Report(
        "rest-start",
        "REST: start-up and memory",
        [
            report.Grid("Ours, times the other's (less is better)", ["Peer", "start", "MB before", "MB after"], ratios),
            report.Grid("Absolute", ["Server", "seconds to ready", "MB before", "MB after work"], rows),
        ],
        [
            "Memory is PSS of the process and its children, PostgreSQL not counted; `before` is before this topic's "
            f"work, `after` follows {effort.seconds:g} s of create and of read with {max(effort.clients)} clients. "
            "Start is on an existing schema.",
            "The peers' start times are those their operator measured (BENCH_STARTED='hapi=30.1 wso2=0.5').",
        ],
    )


def _told_starts() -> dict[str, float]:
    found = {}
    for word in os.environ.get("BENCH_STARTED", "").split():
        name, _, number = word.partition("=")
        with contextlib.suppress(ValueError):
            found[name] = float(number)
    return found


def generator_topic(ground: Field, effort: Effort) -> report.Report:
    """What the load generator could do at most: no server here comes near it, or the table would show it."""
    rows = []
    for clients in effort.clients:
        series = Series([ceiling(clients, effort.in_process) for _ in range(effort.rounds)])
        p50, p99 = series.percentiles(50, 99)
        rows.append([str(clients), report.rate(series.rate), report.millis(p50), report.millis(p99)])
    return report.Report(
        "rest-generator",
        "The load generator's ceiling",
        [report.Grid("Against a server that only answers", ["Clients", "req/s", "p50 ms", "p99 ms"], rows)],
        ["One process, one epoll loop; the answering process is Python too and takes the other core."],
    )
