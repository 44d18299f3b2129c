"""Random searches, answered by the store on both databases and by a plain-Python oracle: no difference at all.

A difference is told with its seed and its query: `ORACLE_SEED=17 pytest -k oracle` asks those again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings, strategies
from oracle_values import Definition, Key
from search_oracle import Oracle
from search_questions import Asker, World, rules
from search_samples import create, dated, official, own, synthea

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search import index, query
from fhir_server.store.engine import Store
from profiles import json_text

ROOT = Path(__file__).resolve().parents[3]
ARCHIVE = ROOT / "profiles" / "data" / "r4.zip"
NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
ZONE = "Europe/Paris"
SEED = int(os.environ.get("ORACLE_SEED", "20260115"))


def world(store: Store, resources: list[dict[str, Any]]) -> World:
    stored: list[dict[str, Any]] = []
    for start in range(0, len(resources), 200):
        prepared = [json_text.parse(json.dumps(one, default=_lexeme)) for one in resources[start : start + 200]]
        store.write(SYSTEM, partial(create, [(one, index.rows(one, zone=ZONE)) for one in prepared]))
        with store.read(SYSTEM) as snapshot:
            for one in prepared:
                found = snapshot.get(one["resourceType"], one["id"])
                assert found is not None
                stored.append(json.loads(found.text, parse_float=Decimal))
    oracle = Oracle(ARCHIVE, stored, zone=ZONE, now=NOW)
    uses: dict[str, list[Definition]] = {}
    for kind in {key[0] for key in (*oracle.all, *oracle.held)}:
        codes = sorted({c for owner in (kind, "DomainResource", "Resource") for c in oracle.known.get(owner, ())})
        every = [known for code in codes if (known := oracle.parameter(kind, code)) is not None]
        uses[kind] = [one for one in every if index.parameters(kind).get(one.code) is not None and one.code != "_id"]
    return World(store, oracle, uses)


def _lexeme(value: Any) -> Any:
    assert isinstance(value, Decimal)
    return float(value)


# --- one question, asked of both -------------------------------------------------------------------------------------


def asked(world: World, kind: str, pairs: list[tuple[str, str]], page: int) -> list[Key]:
    """All pages of a search, in order."""
    plan = replace(query.parse(kind, pairs, zone=ZONE, now=NOW), count=page, total="none" if page < 50 else "accurate")
    total = world.store.search(SYSTEM, replace(plan, count=0)).total
    found: list[Key] = []
    while True:
        result = world.store.search(SYSTEM, plan)
        found += [(one.type, f"{one.container}#{one.id}" if one.container else one.id) for one in result.matches]
        if result.next is None:
            assert {total, result.total} - {None} == {len(found)}, f"total {total}, {result.total}, found {len(found)}"
            return found
        plan = replace(plan, after=result.next)


def misordered(oracle: Oracle, pairs: list[tuple[str, str]], found: list[Key]) -> bool:
    """Whether neighbours stand in the wrong order by `_sort`."""
    codes = next((text.split(",") for name, text in pairs if name == "_sort"), [])
    for one, other in pairwise(found):
        for code in codes:
            descending = code.startswith("-")
            left, right = (oracle.sort_value(k, code.lstrip("-"), descending=descending) for k in (one, other))
            if left == right:
                continue
            if left is None or (right is not None and (left < right) == descending):
                return True
            break
    return False


def compare(world: World, number: int, count: int) -> tuple[list[str], Counter[str]]:
    """What differs between the two, as `seed kind?query: ours, theirs`; and how many questions had answers."""
    asker, differences, tally = Asker(world, Random(number)), list[str](), Counter[str]()
    for n in range(count):
        wrong, answered = difference(world, asker)
        tally["answered"] += answered
        if wrong:
            differences.append(f"seed {number} #{n} {wrong}")
    return differences, tally


def difference(world: World, asker: Asker) -> tuple[str, bool]:
    """What differs in the answers to one question, '' for nothing; and whether the oracle had an answer."""
    kind, pairs = asker.question()
    told = f"{kind}?" + "&".join(f"{name}={text}" for name, text in pairs)
    expected = world.oracle.search(kind, pairs)
    page = asker.random.choice((3, 50, 1000)) if len(expected) < 1_000 else 1_000
    try:
        found = asked(world, kind, pairs, page)
    except (errors.PasserelleError, AssertionError) as problem:
        return f"{told}: {problem!r}", bool(expected)
    if set(found) != expected or len(found) != len(expected):
        more, less = sorted(set(found) - expected)[:3], sorted(expected - set(found))[:3]
        return f"{told}: {len(found)} and {len(expected)}; only ours {more}, only theirs {less}", bool(expected)
    return f"{told}: out of order" if misordered(world.oracle, pairs, found) else "", bool(expected)


def made_up(world: World, count: int) -> None:
    """So many questions that hypothesis makes up; one with a difference is made as small as it can be."""
    asker = Asker(world, Random(SEED))

    @seed(SEED)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategies.randoms(use_true_random=False))
    def ask(dice: Random) -> None:
        asker.random = dice
        wrong, _ = difference(world, asker)
        assert not wrong, wrong

    ask()


def compare_contained(world: World, number: int, count: int) -> tuple[list[str], int]:
    """What differs when contained resources are searched too, and how many questions had answers."""
    asker, differences, answered = Asker(world, Random(number)), list[str](), 0
    for n in range(count):
        kind, pairs = asker.question(asker.held)
        pairs = [pair for pair in pairs if pair[0] != "_sort"]
        both, container = asker.random.random() < 0.5, asker.random.random() < 0.5
        expected = world.oracle.search_contained(kind, pairs, both=both, container=container)
        how = [
            ("_contained", "both" if both else "true"),
            ("_containedType", "container" if container else "contained"),
        ]
        found = asked(world, kind, [*pairs, *how], asker.random.choice((3, 1000)))
        answered += bool(expected)
        if set(found) != expected or len(found) != len(expected):
            told = f"seed {number} #{n} {kind}?" + "&".join(f"{name}={text}" for name, text in (*pairs, *how))
            more, less = sorted(set(found) - expected)[:3], sorted(expected - set(found))[:3]
            differences.append(f"{told}: only ours {more}, only theirs {less}")
    return differences, answered


def compare_includes(world: World, number: int, count: int) -> list[str]:
    """What comes with the matches, ours and theirs."""
    asker, differences = Asker(world, Random(number)), list[str]()
    for n in range(count):
        kind, pairs = asker.question()
        pairs = [*[pair for pair in pairs if pair[0] != "_sort"], *rules(asker)]
        matches = world.oracle.search(kind, pairs)
        expected = world.oracle.included(matches, [pair for pair in pairs if "include" in pair[0]])
        page = world.store.search(SYSTEM, replace(query.parse(kind, pairs, zone=ZONE, now=NOW), count=1000))
        found = {(one.type, one.id) for one in page.includes}
        if page.next is None and not page.cut and (found != expected or len(found) != len(page.includes)):
            told = f"seed {number} #{n} {kind}?" + "&".join(f"{name}={text}" for name, text in pairs)
            more, less = sorted(found - expected)[:3], sorted(expected - found)[:3]
            differences.append(f"{told}: only ours {more}, only theirs {less}")
    return differences


def test_several_conditions_on_a_date_are_answered_as_the_oracle_says(store: Store) -> None:
    made, answered = world(store, [*own(), *dated()]), 0
    asker = Asker(made, Random(SEED))
    kinds = [kind for kind in asker.kinds if any(one.type == "date" for one in made.uses[kind])]
    for n in range(500):
        kind = asker.random.choice(("Encounter", asker.random.choice(kinds)))
        pairs = asker.stretch(kind)
        expected = made.oracle.search(kind, pairs) if pairs else set()
        if pairs:
            assert set(asked(made, kind, pairs, 1000)) == expected, f"seed {SEED} #{n} {kind}?{pairs}"
        answered += bool(expected)
    assert answered > 120


def test_what_is_included_is_what_the_oracle_includes(store: Store) -> None:
    differences = compare_includes(world(store, own()), SEED, 200)
    assert not differences, "\n".join(differences)


def test_contained_resources_are_found_as_the_oracle_says(store: Store) -> None:
    differences, answered = compare_contained(world(store, own()), SEED, 200)
    assert not differences, "\n".join(differences)
    assert answered > 80


def test_a_sample_of_the_official_examples_is_found_as_the_oracle_says(store: Store) -> None:
    made = world(store, official(step=30))
    differences, tally = compare(made, SEED, 200)
    differences += compare_contained(made, SEED, 60)[0]
    assert not differences, "\n".join(differences)
    assert tally["answered"] > 80


def test_our_own_examples_are_found_as_the_oracle_says(store: Store) -> None:
    made = world(store, own())
    differences, tally = compare(made, SEED, 400)
    assert not differences, "\n".join(differences)
    assert tally["answered"] > 150
    made_up(made, 100)


@pytest.mark.needs("shared")
def test_synthetic_patients_are_found_as_the_oracle_says(store: Store, shared: Path) -> None:
    everything = [*synthea(shared / "synthea-92k", 4, 25), *own()]
    differences, tally = compare(world(store, everything), SEED, 300)
    assert not differences, "\n".join(differences)
    assert tally["answered"] > 100


@pytest.mark.long(minutes=9)
@pytest.mark.timeout(3000)
@pytest.mark.needs("shared")
def test_thousands_of_searches_are_answered_as_the_oracle_says(store: Store, shared: Path) -> None:
    made = world(store, [*synthea(shared / "synthea-92k", 16, 388), *own()])
    for number in range(SEED + 1, SEED + 6):
        differences, _ = compare(made, number, 1000)
        assert not differences, "\n".join(differences)
        assert not compare_includes(made, number, 100)
    made_up(made, 1000)


@pytest.mark.long(minutes=19)
@pytest.mark.timeout(3600)
@pytest.mark.needs("shared")
def test_all_of_synthea_is_found_as_the_oracle_says(store: Store, shared: Path) -> None:
    everyone = 1_000_000
    made = world(store, synthea(shared / "synthea-92k", everyone, everyone))
    assert len(made.oracle.all) > 92_000
    differences, tally = compare(made, SEED + 9, 500)
    assert not differences, "\n".join(differences)
    assert tally["answered"] > 200


@pytest.mark.long(minutes=9)
@pytest.mark.timeout(3000)
def test_every_official_example_is_found_as_the_oracle_says(store: Store) -> None:
    made = world(store, official())
    for number in range(SEED + 1, SEED + 4):
        differences, _ = compare(made, number, 1000)
        differences += compare_contained(made, number, 300)[0]
        differences += compare_includes(made, number, 100)
        assert not differences, "\n".join(differences)
