"""`python -m benchmarks`: run topics, print their tables, put them into docs/performance.md.

python -m benchmarks --only json --only rest-read --peer hapi=http://127.0.0.1:8080/fhir
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from benchmarks import (
    report,
    servers,
    topics_delivery,
    topics_growth,
    topics_hl7,
    topics_hl7_answered,
    topics_paths,
    topics_rest,
    topics_search,
    topics_text,
)
from benchmarks.machine import machine
from benchmarks.rounds import QUICK, Effort
from benchmarks.target import Address

LOCAL: dict[str, Callable[[Effort], report.Report]] = {
    "definitions": topics_paths.definitions_topic,
    "json": topics_text.json_topic,
    "xml": topics_text.xml_topic,
    "fhirpath": topics_paths.fhirpath_topic,
    "fhirpath-compile": topics_paths.compile_topic,
    "extract": topics_paths.extract_topic,
    "ucum": topics_paths.ucum_topic,
    "hl7-parse": topics_hl7.parse_topic,
    "hl7-answered": topics_hl7_answered.answered_topic,
    "delivery-rate": topics_delivery.rate_topic,
    "delivery-dead": topics_delivery.dead_topic,
    "delivery-growth": topics_delivery.growth_topic,
}
HTTP: dict[str, Callable[[topics_rest.Field, Effort], report.Report]] = {
    "rest-generator": topics_rest.generator_topic,
    "rest-start": topics_rest.start_topic,
    **{f"rest-{work}": topics_rest.interaction(work) for work in topics_rest.GOALS if work != "load"},
    "rest-load": topics_rest.load_topic,
    **{f"search-{shape}": topics_search.search(shape) for shape in topics_search.SHAPES},
    "search-growth": topics_growth.growth_topic,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the topics asked for. Exit code 0, 1 when a topic could not run, 2 for a wrong command line."""
    parser = _parser()
    told = parser.parse_args(arguments)
    if told.list:
        print("\n".join([*LOCAL, *HTTP]))
        return 0
    wanted = [pattern for group in told.only or [["*"]] for pattern in group]
    chosen = [name for name in (*LOCAL, *HTTP) if any(fnmatch.fnmatch(name, pattern) for pattern in wanted)]
    if not chosen:
        parser.error(f"no topic is called {' or '.join(wanted)}; --list names them")
    try:
        peers = dict(_peer(text) for text in told.peer)
    except ValueError as error:
        parser.error(str(error))
    effort = _effort(told)
    write = not (told.quick or told.print)
    missed = [name for name in chosen if name in LOCAL and not _run(name, partial(LOCAL[name], effort), effort, write)]
    http = [name for name in chosen if name in HTTP]
    if http:
        missed += _over_http(http, peers, effort, write)
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Passerelle, beside its peers.")
    parser.add_argument("--only", action="append", nargs="+", metavar="TOPIC", help="topics; `rest-*` is a pattern")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL", help="a FHIR server on loopback")
    parser.add_argument("--quick", action="store_true", help="tiny counts, to see that everything runs; writes nothing")
    parser.add_argument("--print", action="store_true", help="print only; leave docs/performance.md as it is")
    parser.add_argument("--rounds", type=int, help="rounds of each subject (5)")
    parser.add_argument("--seconds", type=float, help="length of a round over HTTP (4)")
    parser.add_argument("--clients", type=int, nargs="+", help="numbers of clients over HTTP (1 8 16)")
    parser.add_argument("--bundles", type=int, help="patients' Bundles of rest-load (120)")
    parser.add_argument("--list", action="store_true", help="name the topics")
    return parser


def _effort(told: argparse.Namespace) -> Effort:
    effort = QUICK if told.quick else Effort()
    given = {name: getattr(told, name) for name in ("rounds", "seconds", "bundles") if getattr(told, name) is not None}
    if told.clients:
        given["clients"] = tuple(told.clients)
    return replace(effort, **given)


def _peer(text: str) -> tuple[str, str]:
    name, found, url = text.partition("=")
    if not found or name in ("", topics_rest.OURS, "limit"):
        raise ValueError(f"a peer is NAME=URL, such as hapi=http://127.0.0.1:8080/fhir; got {text}")
    Address.of(url)
    return name, url


def _run(name: str, topic: Callable[[], report.Report], effort: Effort, write: bool, database: str = "") -> bool:
    print(f"{name} ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        found = topic()
    except (ImportError, AttributeError, servers.Unable, RuntimeError) as error:
        print(f"{name} was skipped: {error}", file=sys.stderr, flush=True)
        return False
    where = machine(database, effort.rounds)
    print(report.markdown(found, where), flush=True)
    if write:
        report.write(found, where)
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return True


def _over_http(names: Sequence[str], peers: dict[str, str], effort: Effort, write: bool) -> list[str]:
    missed = []
    try:
        with topics_rest.field(peers, effort) as ground:
            for name in names:
                if not _run(name, partial(HTTP[name], ground, effort), effort, write, ground.database):
                    missed.append(name)
    except servers.Unable as error:
        print(f"the HTTP topics cannot run: {error}", file=sys.stderr)
        return list(names)
    return missed


if __name__ == "__main__":
    sys.exit(main())
