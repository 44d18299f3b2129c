"""Two conditions on one date, and searches that take one statement: what they find, and what finding it costs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import pytest

from fhir_server.context import SYSTEM, now
from fhir_server.search import query as asking
from fhir_server.search.plan import Clause, Plan, Prefix, Sort, Value
from fhir_server.search.rows import IndexRows
from fhir_server.store import dates
from fhir_server.store.derived import END, START, currents, disagreements, index_cursors, rows_of
from fhir_server.store.engine import Store
from fhir_server.store.query import is_single, search
from fhir_server.store.reindex import reindex
from fhir_server.store.session import Tx
from fhir_server.store.sqlite import SqliteSession, connect
from fhir_server.store.view import View

WHEN, OTHER = 201, 202
DAY = 86_400_000_000
Rows = list[tuple[int, int, int]]


def on(*days: tuple[int, int]) -> IndexRows:
    """The rows of days since 1970, each from the first to before the second."""
    return IndexRows(date=[(WHEN, first * DAY, after * DAY) for first, after in days])


def date(prefix: Prefix, first: int, after: int = 0, *, pid: int = WHEN) -> Clause:
    return Clause("when", "date", pid, (Value(prefix, low=first * DAY, high=(after or first + 1) * DAY),))


def put(store: Store, key: str, rows: IndexRows) -> None:
    resource = {"resourceType": "Encounter", "id": key}
    store.write(SYSTEM, lambda tx: (tx.update if tx.get("Encounter", key) else tx.create)(resource, rows))


def found(store: Store, *clauses: Clause) -> str:
    page = store.search(SYSTEM, Plan(("Encounter",), clauses, (Sort("_id", "token", 0),)))
    return " ".join(one.id for one in page.matches)


def marks(store: Store) -> list[tuple[int, int]]:
    with store.read(SYSTEM) as snapshot:
        rows = snapshot.view.db.rows("SELECT low, loose FROM idx_date ORDER BY low")
    return [(low // DAY, loose) for low, loose in rows]


def visits(store: Store) -> None:
    put(store, "before", on((90, 91)))
    put(store, "day", on((100, 101)))
    put(store, "month", on((90, 120)))
    put(store, "twice", on((50, 51), (150, 151)))
    put(store, "after", on((110, 111)))


def test_rows_are_marked_by_length_and_number() -> None:
    two_days, longer = (WHEN, 0, 2 * DAY), (OTHER, 0, 2 * DAY + 1)
    assert dates.stored(7, [two_days, longer, two_days]) == [
        (7, *two_days, dates.TIGHT),
        (7, *longer, dates.ALONE),
    ]
    several = dates.stored(7, [two_days, (WHEN, 5, 6), longer])
    assert [row[-1] for row in several] == [dates.SEVERAL, dates.SEVERAL, dates.ALONE]


def test_two_conditions_may_hold_by_two_values(store: Store) -> None:
    visits(store)
    assert found(store, date("ge", 100), date("le", 100)) == "day month twice"
    assert found(store, date("ge", 100), date("lt", 111)) == "after day month twice"
    assert found(store, date("sa", 99), date("eb", 101)) == "day twice"
    assert found(store, date("gt", 100), date("lt", 100)) == "month twice"
    assert found(store, date("ge", 100), date("le", 100), date("ge", 101)) == "month twice"
    assert found(store, date("eq", 100), date("ge", 90)) == "day"
    assert found(store, date("ge", 200), date("le", 210)) == ""


def test_a_new_value_beside_an_old_one_is_found_with_it(store: Store) -> None:
    put(store, "v", on((50, 51)))
    assert found(store, date("ge", 100), date("le", 100)) == ""
    assert marks(store) == [(50, dates.TIGHT)]
    put(store, "v", on((50, 51), (150, 151)))
    assert found(store, date("ge", 100), date("le", 100)) == "v"
    assert marks(store) == [(50, dates.SEVERAL), (150, dates.SEVERAL)]
    put(store, "v", on((150, 151)))
    assert found(store, date("ge", 100), date("le", 100)) == ""
    assert marks(store) == [(150, dates.TIGHT)]


def test_rows_nobody_looked_at_are_found_and_a_reindex_looks_at_them(store: Store) -> None:
    """As after an upgrade, and as the version before writes them."""
    visits(store)
    marked = marks(store)
    store.write(SYSTEM, lambda tx: tx.view.db.run("UPDATE idx_date SET loose = 1"))
    assert found(store, date("ge", 100), date("le", 100)) == "day month twice"
    rows = {"before": on((90, 91)), "day": on((100, 101)), "month": on((90, 120)), "after": on((110, 111))}
    rows["twice"] = on((50, 51), (150, 151))
    assert wrong(store, rows) == []
    result = reindex(store, lambda resource: rows[resource["id"]])
    assert (result.changed, marks(store)) == (0, marked)
    assert found(store, date("ge", 100), date("le", 100)) == "day month twice"


@pytest.mark.needs("postgresql")
def test_rows_a_writer_is_changing_are_not_looked_at(open_url: Callable[..., Store], migrated_postgres: str) -> None:
    """It may be putting a second one beside the first, which stays one of several."""
    store = open_url(migrated_postgres)
    visits(store)
    store.write(SYSTEM, lambda tx: tx.view.db.run("UPDATE idx_date SET loose = 1"))
    with psycopg.connect(migrated_postgres) as writer:
        row = writer.execute("SELECT rid FROM resource WHERE id = 'after' FOR UPDATE").fetchone()
        second = "INSERT INTO idx_date (rid, pid, low, high, loose) VALUES (%s, %s, %s, %s, 1)"
        writer.execute(second, (*(row or ()), WHEN, 90 * DAY, 91 * DAY))
        store.write(SYSTEM, lambda tx: dates.tighten(tx.view, START, END))
        writer.commit()
    assert found(store, date("ge", 100), date("le", 100)) == "after day month twice"
    assert {(90, dates.SEVERAL), (110, dates.SEVERAL), (100, dates.TIGHT)} <= set(marks(store))
    store.write(SYSTEM, lambda tx: dates.tighten(tx.view, START, END))
    assert found(store, date("ge", 100), date("le", 100)) == "after day month twice"


@pytest.mark.parametrize(("key", "mark"), [("twice", 0), ("month", 0), ("twice", 2), ("day", 2)])
def test_a_mark_that_would_hide_a_row_is_reported(store: Store, key: str, mark: int) -> None:
    visits(store)
    rows = {"twice": on((50, 51), (150, 151)), "month": on((90, 120)), "day": on((100, 101))}
    only = f"WHERE rid = (SELECT rid FROM resource WHERE id = '{key}')"
    store.write(SYSTEM, lambda tx: tx.view.db.run(f"UPDATE idx_date SET loose = {mark} {only}"))
    assert len(wrong(store, {key: rows[key]})) == 1


def wrong(store: Store, rows: dict[str, IndexRows]) -> list[object]:
    """What `check` would say of the index rows."""
    told: list[object] = []
    with store.read(SYSTEM) as snapshot:
        cursors = index_cursors(snapshot.view, START, END)
        for one in currents(snapshot.view, START, END):
            there = rows_of(snapshot.view, one, cursors)
            told += disagreements(one, rows[one.id], there) if one.id in rows else []
    return told


def test_contained_dates_are_looked_at_too(store: Store) -> None:
    rows = on((100, 101))
    rows.contained = [("Encounter", "in", on((90, 91), (92, 93))), ("Encounter", "out", on((94, 95)))]
    put(store, "holder", rows)
    before = marks(store)
    store.write(SYSTEM, lambda tx: tx.view.db.run("UPDATE idx_date SET loose = 1"))
    assert reindex(store, lambda resource: rows).changed == 0
    assert marks(store) == before == [(90, 1), (92, 1), (94, 0), (100, 0)]


def test_only_what_bounds_one_parameter_on_both_sides_is_gathered() -> None:
    first, last = date("ge", 100), date("le", 100)
    name = Clause("name", "string", 5, (Value(text="a"),))
    together = dates.gathered((first, name, last))
    assert together[1] is name and together[0].parts == (first, last) and len(together) == 2
    assert dates.is_between(together[0])
    for clauses in (
        (first, date("ge", 101)),
        (first, date("le", 100, pid=OTHER)),
        (first, date("ne", 100)),
        (first, replace(last, missing=True)),
        (first, replace(last, pids=(WHEN, OTHER))),
        (first, replace(last, values=(*last.values, *date("ne", 3).values))),
        (first, Clause("_lastUpdated", "date", 0, last.values)),
        (first, replace(last, values=tuple(Value("le", low=n, high=n + 1) for n in range(dates.MOST)))),
        (first,),
    ):
        assert dates.gathered(clauses) == clauses
    either = replace(last, values=(*last.values, *date("lt", 300).values))
    assert len(dates.gathered((first, either))) == 1


@pytest.mark.parametrize(
    "clauses", [(date("ge", 100), date("le", 100)), (date("eq", 100),)], ids=["both ends", "one day"]
)
def test_a_day_costs_the_same_among_ten_times_as_many(
    sqlite_url: str, tmp_path: Path, open_url: object, clauses: tuple[Clause, ...]
) -> None:
    """Counted in steps of SQLite's virtual machine, which are the same on every machine."""
    store: Store = open_url(sqlite_url)  # type: ignore[operator]  # a fixture, called
    costs = []
    for start, end in ((0, 300), (300, 3000)):
        store.write(SYSTEM, partial(days, first=start, last=end))
        costs.append(steps(store, tmp_path / "passerelle.sqlite", Plan(("Encounter",), clauses)))
    assert 0 < costs[1] < 1.5 * costs[0]


def days(tx: Tx, first: int, last: int) -> None:
    for n in range(first, last):
        tx.create({"resourceType": "Encounter", "id": f"e{n}"}, on((n + 1, n + 2)))


def steps(store: Store, path: Path, plan: Plan) -> int:
    counted = [0]

    def step() -> int:
        counted[0] += 1
        return 0

    connection: sqlite3.Connection = connect(path, read_only=True)
    try:
        session = SqliteSession(connection, 30.0)
        connection.set_progress_handler(step, 1)
        assert len(search(View(session, SYSTEM, store.blobs, now), plan).matches) == 1
    finally:
        connection.close()
    return counted[0]


@pytest.mark.parametrize(
    ("pairs", "single"),
    [
        ([("family", "du")], True),
        ([("family", "du"), ("_sort", "-_lastUpdated")], True),
        ([("general-practitioner:Practitioner.name", "du"), ("_count", "0")], True),
        ([("family", "du"), ("_count", "0")], True),
        ([("family", "du"), ("_count", "0"), ("_total", "accurate")], True),
        ([("family", "du"), ("_total", "accurate")], False),
        ([("family", "du"), ("_sort", "birthdate")], True),
        ([("family", "du"), ("_revinclude", "Observation:subject")], False),
        ([("_has:Observation:subject:code", "x")], True),
        ([("_contained", "true")], False),
    ],
)
def test_what_one_statement_may_answer_takes_no_transaction(pairs: list[tuple[str, str]], single: bool) -> None:
    assert is_single(asking.parse("Patient", pairs)) is single


def test_a_link_of_a_single_statement_keeps_what_was_visible_then(store: Store) -> None:
    for n in range(6):
        put(store, f"e{n}", on((n, n + 1)))
    plan = Plan(("Encounter",), sort=(Sort("_id", "token", 0),), count=2)
    first = store.search(SYSTEM, plan)
    put(store, "e4", on((9, 10)))
    put(store, "e9", on((9, 10)))
    seen = [one.id for one in first.matches]
    while first.next is not None:
        first = store.search(SYSTEM, replace(plan, after=first.next))
        seen += [one.id for one in first.matches]
    assert seen == ["e0", "e1", "e2", "e3", "e5"]
