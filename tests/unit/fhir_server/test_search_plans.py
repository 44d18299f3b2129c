"""PostgreSQL plans the shapes of search by index, with the whole Synthea set loaded: no plan flips to a scan.

`PLANS_PATIENTS=8` loads fewer patients, to see that it runs; `pytest -s` shows the times.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import pytest
from search_samples import create, synthea

from fhir_server.context import SYSTEM
from fhir_server.search import index, query
from fhir_server.store.engine import Store
from profiles import json_text

PATIENTS = int(os.environ.get("PLANS_PATIENTS", "120"))
BODY_WEIGHT = "http://loinc.org|29463-7"
SHAPES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "token": ("Observation", [("code", BODY_WEIGHT)]),
    "string": ("Patient", [("family", "sch")]),
    "reference and code": ("Observation", [("subject", "{patient}"), ("code", BODY_WEIGHT)]),
    "date range": ("Observation", [("date", "ge2015-03-01"), ("date", "lt2015-03-08")]),
    "quantity": ("Observation", [("code", BODY_WEIGHT), ("value-quantity", "gt100||kg")]),
    "chain": ("Observation", [("subject:Patient.family", "sch"), ("code", BODY_WEIGHT)]),
    "_has": ("Patient", [("_has:Observation:subject:code", BODY_WEIGHT), ("family", "sch")]),
    "include": ("Observation", [("code", BODY_WEIGHT), ("_include", "Observation:subject")]),
    "revinclude": ("Patient", [("_id", "{id}"), ("_revinclude", "Observation:subject")]),
    "sorted": ("Observation", [("code", BODY_WEIGHT), ("_sort", "-date")]),
    "fan-out": ("Observation", [("subject", "{patient}"), ("_count", "200")]),
}


@pytest.mark.long(minutes=20)
@pytest.mark.timeout(3000)
@pytest.mark.needs("shared", "postgresql")
def test_no_shape_of_search_reads_a_whole_table(
    migrated_postgres: str, open_url: Callable[..., Store], shared: Path
) -> None:
    store = open_url(migrated_postgres)
    patient = _loaded(store, shared)
    with psycopg.connect(migrated_postgres, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
    slow: list[str] = []
    for name, (kind, pairs) in SHAPES.items():
        filled = [(key, text.format(patient=f"Patient/{patient}", id=patient)) for key, text in pairs]
        plan = query.parse(kind, [*filled, *([("_count", "20")] if "_count" not in dict(pairs) else [])])
        with store.read(SYSTEM) as snapshot:
            told = snapshot.explain(plan)
            started = time.perf_counter()
            snapshot.search(plan)
            seconds = time.perf_counter() - started
        print(f"{name:20} {seconds * 1000:8.1f} ms")
        scans = [line for line in told.plan if "Seq Scan on idx_" in line]
        if scans or seconds > 1.0:
            slow.append(f"{name}: {seconds:.3f} s\n" + "\n".join(told.plan))
    assert not slow, "\n\n".join(slow)
    _pages_cost_the_same(store)


def _pages_cost_the_same(store: Store) -> None:
    """The hundredth page of a walk takes no longer than the first, give or take the noise of a machine."""
    plan = replace(query.parse("Observation", [("status", "final")]), count=20)
    times: list[float] = []
    for _ in range(100):
        started = time.perf_counter()
        with store.read(SYSTEM) as snapshot:
            page = snapshot.search(plan)
        times.append(time.perf_counter() - started)
        if page.next is None:
            break
        plan = replace(plan, after=page.next)
    assert statistics.median(times[-20:]) < 5 * statistics.median(times[:20]) + 0.01


def _loaded(store: Store, shared: Path) -> str:
    resources = synthea(shared / "synthea-92k", PATIENTS, 5_000)
    began = time.perf_counter()
    for start in range(0, len(resources), 200):
        part = [json_text.parse(json_text.write(one)) for one in resources[start : start + 200]]
        rows = [index.rows(one) for one in part]
        pairs = list(zip(part, rows, strict=True))
        store.write(SYSTEM, partial(create, pairs))
    seconds = time.perf_counter() - began
    print(f"\n{len(resources)} resources in {seconds:.0f} s, {len(resources) / seconds:.0f} a second")
    return next(str(one["id"]) for one in resources if one["resourceType"] == "Patient")
