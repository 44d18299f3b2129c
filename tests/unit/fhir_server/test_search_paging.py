"""The paging promise as a property: whatever is written between two pages, what did not change is seen exactly once
and what changed at most once, in every order, on both databases."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from operator import methodcaller

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhir_server.context import SYSTEM
from fhir_server.search.plan import Clause, Plan, Sort, Value
from fhir_server.search.rows import IndexRows
from fhir_server.store import ordered as index_order
from fhir_server.store.engine import Store
from fhir_server.store.session import Tx

NAME, GROUP, DAY, CODE = 101, 102, 103, 104
SORTS = (
    (),
    (Sort("_lastUpdated", "date", 0),),
    (Sort("_id", "token", 0, True),),
    (Sort("name", "string", NAME),),
    (Sort("name", "string", NAME, True), Sort("_id", "token", 0)),
)
BY_INDEX = tuple(
    (Sort(name, kind, pid, descending),)  # type: ignore[arg-type]  # the types of Sort
    for name, kind, pid in (("name", "string", NAME), ("day", "date", DAY), ("code", "token", CODE))
    for descending in (False, True)
)
ROUND = itertools.count()

# Between two pages: what happens to which of the twelve resources ("new" makes another one).
WRITES = st.lists(
    st.lists(st.tuples(st.sampled_from(("rename", "delete", "new", "same")), st.integers(0, 11)), max_size=4),
    max_size=8,
)


def rows(group: str, name: str) -> IndexRows:
    """Values of each type: none at all for the name '', two for each letter of a longer one."""
    found = IndexRows(token=[(GROUP, "", group, "")])
    for letter in name:
        for other in (letter, letter.upper()):
            found.string.append((NAME, letter, other))
            found.token.append((CODE, other, letter, ""))
            found.date.append((DAY, ord(letter), ord(letter) + len(found.date) + 1))
    return found


def ordered(keys: list[str], names: list[str], descending: bool) -> list[str]:
    """What is expected when nothing is written: by the least or the greatest letter, the others last."""
    best = {key: (max if descending else min)(name, default="") for key, name in zip(keys, names, strict=True)}
    there = sorted({best[key] for key in keys if best[key]}, reverse=descending)
    return [*there, ""] if "" in best.values() else there


def walk(
    store: Store, sort: tuple[Sort, ...], count: int, names: list[str], writes: list[list[tuple[str, int]]]
) -> None:
    """Reads page by page, and checks the promise. What was made goes in the end: the next round costs what this one
    did, however many came before."""
    group = f"g{next(ROUND)}"
    keys = [f"{group}-{n:02}" for n in range(12)]
    alive = set(keys)

    def put(tx: Tx, key: str, name: str, *, new: bool) -> None:
        one, found = {"resourceType": "Patient", "id": key}, rows(group, name)
        if new:
            tx.create(one, found)
        else:
            tx.update(one, found)

    def put_all(tx: Tx) -> None:
        for key, name in zip(keys, names, strict=True):
            put(tx, key, name, new=True)

    store.write(SYSTEM, put_all)
    plan = Plan(("Patient",), (Clause("g", "token", GROUP, (Value(code=group),)),), sort=sort, count=count)
    changed: set[str] = set()
    seen: list[str] = []
    made = 0
    for turn in itertools.count():
        page = store.search(SYSTEM, plan)
        seen += [one.id for one in page.matches]
        if page.next is None:
            break
        plan = replace(plan, after=page.next)
        for kind, number in writes[turn] if turn < len(writes) else ():
            key = keys[number]
            if kind == "new":
                made += 1
                store.write(SYSTEM, partial(put, key=f"{group}-new{made}", name="m", new=True))
            elif key in alive:
                changed.add(key)
                if kind == "delete":
                    store.write(SYSTEM, methodcaller("delete", "Patient", key))
                    alive.discard(key)
                else:
                    name = names[number] if kind == "same" else f"z{number}"
                    store.write(SYSTEM, partial(put, key=key, name=name, new=False))
    alive |= {f"{group}-new{n}" for n in range(1, made + 1)}
    store.write(SYSTEM, lambda tx: [tx.delete("Patient", key) for key in sorted(alive)])
    if sort in BY_INDEX and not changed and sort[0].type != "date":
        best = {key: (max if sort[0].descending else min)(n, default="") for key, n in zip(keys, names, strict=True)}
        assert [n for n, _ in itertools.groupby(best[key] for key in seen)] == ordered(
            keys, names, sort[0].descending
        ), "out of order"
    assert len(seen) == len(set(seen)), "seen twice"
    assert set(keys) - changed <= set(seen), "an unchanged one was not seen"
    assert set(seen) <= set(keys), "what came later was seen"


def check(store: Store, examples: int, sorts: tuple[tuple[Sort, ...], ...] = SORTS) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=examples < 100)
    @given(
        st.sampled_from(sorts),
        st.integers(1, 5),
        st.lists(st.sampled_from(("", "a", "b", "m", "z", "ma", "zab")), min_size=12, max_size=12),
        WRITES,
    )
    def paged(sort: tuple[Sort, ...], count: int, names: list[str], writes: list[list[tuple[str, int]]]) -> None:
        walk(store, sort, count, names, writes)

    paged()


def test_pages_keep_their_promise_under_writes(store: Store) -> None:
    check(store, 20)


@pytest.mark.long(minutes=2)
@pytest.mark.timeout(1800)
def test_pages_keep_their_promise_under_many_writes(store: Store) -> None:
    check(store, 1000)


def test_pages_in_the_order_of_an_index_keep_their_promise(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_order, "WALKED_FROM", 0)
    check(store, 30, BY_INDEX)


@pytest.mark.long(minutes=2)
@pytest.mark.timeout(1800)
def test_pages_in_the_order_of_an_index_keep_their_promise_under_many_writes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_order, "WALKED_FROM", 0)
    check(store, 1000, BY_INDEX)


@pytest.mark.parametrize("sort", BY_INDEX, ids=lambda sort: f"{sort[0].name} {sort[0].descending}")
def test_the_index_gives_the_order_that_sorting_gives(
    store: Store, monkeypatch: pytest.MonkeyPatch, sort: tuple[Sort, ...]
) -> None:
    names = ["b", "", "am", "z", "zb", "m", "", "bz", "a", "ma"]

    def make(tx: Tx) -> None:
        for n, name in enumerate(names):
            tx.create({"resourceType": "Patient", "id": f"p{n}"}, rows("g", name))
        tx.create({"resourceType": "Person", "id": "other"}, rows("g", "c"))

    store.write(SYSTEM, make)
    found: list[list[str]] = []
    for bound in (0, 1_000):
        monkeypatch.setattr(index_order, "WALKED_FROM", bound)
        plan, letters = Plan(("Patient",), sort=sort, count=3), list[str]()
        while True:
            page = store.search(SYSTEM, plan)
            for one in page.matches:
                name = names[int(one.id[1:])]
                letters.append((max if sort[0].descending else min)(name, default=""))
            if page.next is None:
                break
            assert (len(page.next) > 3) == (bound == 0)
            plan = replace(plan, after=page.next)
        found.append(letters)
    assert found[0] == found[1] and len(found[0]) == len(names)
