"""Topic `search-growth`: what a search costs among ten thousand, a hundred thousand and a million resources.

Hides how a database grows in minutes: Bundles are stored over HTTP once, and the rows that were extracted from them are
copied inside PostgreSQL, with shifted row numbers and with ids that end in the number of the copy. References follow,
so that each copy is a world of its own and a search for one patient finds as much as before. The indexes are dropped
while much is copied, and made again.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import psycopg

from benchmarks import report, samples, servers
from benchmarks.fhir_target import FhirTarget
from benchmarks.load import Plan
from benchmarks.rounds import Effort
from benchmarks.target import Series
from benchmarks.topics_rest import OURS, Field

Query = tuple[str, list[tuple[str, str]]]
BASE = 10_000
COPIES = (1, 10, 100)
REQUESTS = 100
PAGES = (1, 10, 100, 1000)
MANY_COPIES = 20

# The tables of a resource, and what of their columns is another in copy k. Contained resources have negative numbers.
_ID = "{0} || '-{k}'"
_RID = "CASE WHEN {0} > 0 THEN {0} + {rows} ELSE {0} - {rows} * 1024 END"
_COLUMNS = {
    ("*", "rid"): _RID,
    ("contained", "number"): _RID,
    ("resource", "id"): _ID,
    ("resource", "text"): (
        r"""regexp_replace({0}, '("id":"|"reference":"[A-Za-z]+/)([A-Za-z0-9.-]+)', '\1\2-{k}', 'g')"""
    ),
    ("idx_reference", "id"): f"CASE WHEN {{0}} = '' THEN '' ELSE {_ID} END",
}
_TABLES = (
    "resource", "idx_string", "idx_token", "idx_date", "idx_number", "idx_quantity", "idx_reference", "idx_uri",
    "idx_coords", "idx_text", "contained", "scope",
)  # fmt: skip
# Given by the database itself.
_OWN = frozenset(("n",))


@dataclass(frozen=True, slots=True)
class _World:
    """What was stored over HTTP: `rows` is above every row number, `patients` and `codes` are what is asked for."""

    database: str
    rows: int
    count: int
    patients: tuple[str, ...]
    codes: tuple[str, ...]


def growth_topic(ground: Field, effort: Effort) -> report.Report:
    """Latency by size, and the cost of a page by its number at the greatest size; ours alone."""
    small = effort.sample < 100
    copies = (1, 3) if small else COPIES
    pages = PAGES[:2] if small else PAGES
    deadline = time.monotonic() + effort.minutes * 60
    found: dict[tuple[str, int], Series] = {}
    sizes: list[int] = []
    with servers.ours(ground.cluster) as ours:
        target = FhirTarget(OURS, ours.url, effort)
        world = _stored(target, ours.database, effort.bundles if small else 0)
        made = 1
        for wanted in copies:
            _grow(world, made, wanted)
            made = wanted
            _alike(target, world, made)
            sizes.append(world.count * made)
            for shape in _SHAPES:
                found[shape, sizes[-1]] = _asked(target, world, shape, made, effort)
            if time.monotonic() > deadline:
                break
        turned = [_turned(target, name, kind, pairs, pages, effort) for name, (kind, pairs) in _WALKS.items()]
    grids = [_flat(found, sizes), _latencies(found, sizes), _page_costs(turned, pages)]
    return report.Report("search-growth", "Search: among more and more resources", grids, _method(sizes, effort))


# --- storing and copying ---------------------------------------------------------------------------------------------


def _stored(target: FhirTarget, database: str, bundles: int) -> _World:
    """Whole patients until there are `BASE` resources, or as many Bundles as are said."""
    for directory in samples.directory():
        _load(target, [directory])
    chosen: list[bytes] = []
    count = 0
    for bundle in samples.patients(bundles or 1_000):
        if count >= BASE:
            break
        chosen.append(bundle)
        count += len(json.loads(bundle)["entry"])
    _load(target, chosen)
    with psycopg.connect(database) as connection:
        rows, stored = _one(connection, "SELECT max(rid) + 1, count(*) FROM resource WHERE deleted = 0")
        ids = connection.execute("SELECT id FROM resource WHERE type = 'Patient' AND deleted = 0 ORDER BY rid")
        patients = tuple(str(row[0]) for row in ids)
        texts = connection.execute("SELECT text FROM resource WHERE type = 'Observation' ORDER BY rid LIMIT 500")
        codings = [json.loads(row[0])["code"]["coding"][0] for row in texts]
    codes = tuple(sorted({f"{one['system']}|{one['code']}" for one in codings}))
    return _World(database, rows, stored, patients, codes)


def _load(target: FhirTarget, bundles: Sequence[bytes]) -> None:
    outcome = target.load(bundles, min(4, len(bundles)))
    if outcome.failures:
        raise RuntimeError(f"{target.name} refuses a Bundle: {outcome.first_failure}")


def _one(connection: psycopg.Connection[Any], statement: str) -> Any:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return row


def _grow(world: _World, made: int, wanted: int) -> None:
    """Copies what was stored until it is there `wanted` times."""
    with psycopg.connect(world.database, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET maintenance_work_mem = '256MB'")
        dropped = _without_indexes(connection) if wanted - made > MANY_COPIES else contextlib.nullcontext()
        with dropped:
            for number in range(made, wanted):
                for table in _TABLES:
                    connection.execute(_copying(connection, table, world.rows, number).encode())
        connection.execute("SELECT setval(pg_get_serial_sequence('resource', 'rid'), (SELECT max(rid) FROM resource))")
        connection.execute("VACUUM ANALYZE")


def _copying(connection: psycopg.Connection[Any], table: str, rows: int, number: int) -> str:
    """The statement that makes copy `number` of a table's first rows."""
    asked = connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = %s "
        "AND is_generated = 'NEVER' ORDER BY ordinal_position",
        (table,),
    )
    names = [str(row[0]) for row in asked if row[0] not in _OWN]
    values = [
        _COLUMNS.get((table, name), _COLUMNS.get(("*", name), "{0}")).format(name, k=number, rows=rows * number)
        for name in names
    ]
    first = f"rid < {rows} AND rid > {-rows * 1024}"
    told = f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(values)} FROM {table} WHERE {first}"
    return told + (" AND deleted = 0" if table == "resource" else "")


@contextlib.contextmanager
def _without_indexes(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """The tables of resources without the indexes that no constraint needs; they are made again afterwards."""
    found = connection.execute(
        "SELECT i.indexname, i.indexdef FROM pg_indexes i WHERE i.schemaname = current_schema() "
        "AND i.tablename = ANY(%s) AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conname = i.indexname)",
        (list(_TABLES),),
    ).fetchall()
    for name, _ in found:
        connection.execute(f'DROP INDEX "{name}"'.encode())
    yield
    for _, definition in found:
        connection.execute(str(definition).encode())


def _alike(target: FhirTarget, world: _World, made: int) -> None:
    """RuntimeError when the last copy of a patient has not what the first one has."""
    key, totals = world.patients[0], set[int]()
    for patient in (key, f"{key}-{made - 1}" if made > 1 else key):
        asked = urlencode({"subject:Patient._id": patient, "status": "final", "_summary": "count"})
        with urllib.request.urlopen(f"{target.address.url}/Observation?{asked}", timeout=60) as answer:
            totals.add(json.loads(answer.read())["total"])
    if len(totals) != 1 or 0 in totals:
        raise RuntimeError(f"the copies of a patient differ: {sorted(totals)} observations")


# --- asking ----------------------------------------------------------------------------------------------------------


def _of_one(patient: str, code: str) -> dict[str, Query]:
    """Searches that find as much whatever is stored beside."""
    key = patient.rpartition("/")[2]
    return {
        "reference and code": ("Observation", [("subject", patient), ("code", code)]),
        "fan-out": ("Observation", [("subject", patient), ("_count", "200")]),
        "in order of date": ("Observation", [("subject", patient), ("_sort", "-date"), ("_count", "20")]),
        "chain": ("Observation", [("subject:Patient._id", key), ("code", code)]),
        "`_has`": ("Patient", [("_has:Observation:subject:code", code), ("_id", key)]),
        "`_revinclude`": ("Patient", [("_id", key), ("_revinclude", "Observation:subject")]),
        "newest of a code": ("Observation", [("code", code), ("_count", "20")]),
    }


_SHAPES = tuple(_of_one("", ""))
_WALKS: dict[str, Query] = {
    "newest first": ("Observation", []),
    "a token, newest first": ("Observation", [("status", "final")]),
    "in order of date": ("Observation", [("_sort", "-date")]),
}


def _asked(target: FhirTarget, world: _World, shape: str, copies: int, effort: Effort) -> Series:
    """One client; patients of any copy."""
    dice = random.Random(13)
    requests = []
    for _ in range(REQUESTS):
        copy = dice.randrange(copies)
        patient = f"Patient/{dice.choice(world.patients)}{f'-{copy}' if copy else ''}"
        kind, pairs = _of_one(patient, dice.choice(world.codes))[shape]
        requests.append(target.address.request(b"GET", f"/{kind}?{urlencode(pairs)}".encode()))
    target.drive(Plan(target.address, requests, 1, min(effort.seconds, 2.0)))
    series = Series()
    for _ in range(effort.rounds):
        series.outcomes.append(target.drive(Plan(target.address, requests, 1, min(effort.seconds, 2.0))))
    if series.failures:
        raise RuntimeError(f"{target.name} refuses {shape}: {series.first_failure}")
    return series


def _turned(
    target: FhirTarget, name: str, kind: str, pairs: Sequence[tuple[str, str]], pages: Sequence[int], effort: Effort
) -> tuple[str, dict[int, float]]:
    """Seconds of each of these pages, by following links: the median of its neighbourhood and of the rounds."""
    times: dict[int, list[float]] = {page: [] for page in pages}
    for _ in range(min(effort.rounds, 3)):
        url = f"{target.address.url}/{kind}?{urlencode([*pairs, ('_count', '20')])}"
        for number in range(1, max(pages) + 6):
            started = time.perf_counter()
            with urllib.request.urlopen(url, timeout=60) as answer:
                page = json.loads(answer.read())
            spent = time.perf_counter() - started
            for wanted in pages:
                if wanted <= number < wanted + 5:
                    times[wanted].append(spent)
            url = next((one["url"] for one in page["link"] if one["relation"] == "next"), "")
            if not url:
                break
    return name, {page: statistics.median(spent) for page, spent in times.items() if spent}


# --- telling ---------------------------------------------------------------------------------------------------------


def _flat(found: dict[tuple[str, int], Series], sizes: Sequence[int]) -> report.Grid:
    rows = []
    for shape in _SHAPES:
        first = found[shape, sizes[0]].percentiles(50)[0]
        rows.append([shape, *(report.ratio(found[shape, size].percentiles(50)[0], first) for size in sizes)])
    return report.Grid("p50, times that at the smallest size (goal: flat)", _head(sizes), rows)


def _latencies(found: dict[tuple[str, int], Series], sizes: Sequence[int]) -> report.Grid:
    rows = []
    for shape in _SHAPES:
        told = (found[shape, size].percentiles(50, 99) for size in sizes)
        rows.append([shape, *(f"{report.millis(p50)} / {report.millis(p99)}" for p50, p99 in told)])
    return report.Grid("p50 / p99 in ms, one client", _head(sizes), rows)


def _head(sizes: Sequence[int]) -> list[str]:
    return ["Search", *(f"{size:,} resources" for size in sizes)]


def _page_costs(turned: Sequence[tuple[str, dict[int, float]]], pages: Sequence[int]) -> report.Grid:
    rows = [[name, *(report.millis(told[page]) if page in told else "-" for page in pages)] for name, told in turned]
    return report.Grid("A page of 20 at the greatest size, ms", ["Order", *(f"page {page:,}" for page in pages)], rows)


def _method(sizes: Sequence[int], effort: Effort) -> list[str]:
    return [
        f"{REQUESTS} different requests of each shape in a loop, one client, {effort.rounds} rounds; patients of any "
        "copy. Pages are reached by following links; a page's cost is the median of it and its four successors.",
        f"{sizes[0]:,} resources stored over HTTP; their extracted rows copied inside PostgreSQL, ids and references "
        "with them. VACUUM ANALYZE after each growth.",
        samples.described(),
    ]
