"""Dates that a short stretch of the index finds, although an interval has two ends.

Two conditions on a date (`date=ge2025-03-01&date=le2025-03-01`) each hold for half of all rows, and a resource may meet
them by two rows. Nearly every row is tight: short, and the only one its resource has for the parameter. What is tight
and meets both lies between the two, so that a range of `low` finds it; the others, marked `loose`, have an index of
their own. Rows that nobody looked at yet are marked as if there were several: that is never wrong, and costs time only.

Source: https://hl7.org/fhir/R4/search.html#date
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from fhir_server.search.plan import Clause, Value
from fhir_server.search.plan import both as all_of
from fhir_server.store.dialect import Row
from fhir_server.store.value_tests import DATE_TESTS, any_of, in_range
from fhir_server.store.view import Fragment, View

# In microseconds: a day of 25 hours is tight, and so is a visit that goes on into the next one.
LONG = 2 * 86_400_000_000

# Each value stands three times in the statement, which must stay small: see `MAX_COST` of searches.
MOST = 100

# The marks: what `low` finds; one of several, or not looked at; the only one, and longer than `LONG`.
TIGHT, SEVERAL, ALONE = 0, 1, 2

# What a row must at least be to meet a prefix: `high` no less than the first, `low` no more than the second.
_REACH = {
    "eq": ("low", "high"), "ap": ("low", "high"), "ge": ("low", ""), "gt": ("high", ""), "sa": ("high", ""),
    "lt": ("", "low"), "eb": ("", "low"), "le": ("", "high"), "ne": ("", ""),
}  # fmt: skip


def stored(number: int, rows: Sequence[tuple[int, int, int]]) -> list[Row]:
    """The rows (pid, low, high) of one resource as they are stored under its number, repeats left out."""
    unique = dict.fromkeys(rows)
    several = Counter(pid for pid, _, _ in unique)
    return [
        (number, pid, low, high, SEVERAL if several[pid] > 1 else ALONE if high - low > LONG else TIGHT)
        for pid, low, high in unique
    ]


def agreed(should: Sequence[Row], have: Sequence[Row]) -> list[Row]:
    """The stored rows, those that were not looked at marked as they should be."""
    marks = {row[:-1]: row for row in should}
    return [marks.get(row[:-1], row) if row[-1] == SEVERAL else row for row in have]


def tighten(view: View, after: int, last: int) -> int:
    """Looks at the rows, marked as several, of the resources behind `after` up to `last` and of what these contain; how
    many are not.

    The resources are held meanwhile, by a statement before, so that no writer puts a second row beside one that is
    found to be alone. What a writer holds is left as it is: it stays right, and the next run looks at it.
    """
    held = view.db.rows(
        f"SELECT rid FROM resource WHERE rid > ? AND rid <= ? ORDER BY rid{view.db.dialect.skip_locked}", (after, last)
    )
    if not held:
        return 0
    among = f"SELECT CAST(k.value ->> 0 AS bigint) FROM {view.db.dialect.each} k"
    named = json.dumps(held)
    return _tightened(view, among, named) + _tightened(
        view, f"SELECT c.number FROM contained c WHERE c.rid IN ({among})", named
    )


def _tightened(view: View, among: str, named: str) -> int:
    others = "SELECT 1 FROM idx_date y WHERE y.rid = x.rid AND y.pid = x.pid AND (y.low <> x.low OR y.high <> x.high)"
    return view.db.count(
        f"UPDATE idx_date AS x SET loose = CASE WHEN x.high - x.low > ? THEN {ALONE} ELSE {TIGHT} END "
        f"WHERE x.rid IN ({among}) AND x.loose = {SEVERAL} AND NOT EXISTS ({others})",
        (LONG, named),
    )


def gathered(clauses: Sequence[Clause]) -> tuple[Clause, ...]:
    """The clauses, those on one date parameter that together bound it on both sides as one."""
    of_pid: dict[int, list[Clause]] = {}
    for clause in clauses:
        if _plain(clause):
            of_pid.setdefault(clause.pid, []).append(clause)
    made = {pid: all_of(*some) for pid, some in of_pid.items() if is_between(all_of(*some))}
    found: list[Clause] = []
    for clause in clauses:
        if not _plain(clause) or clause.pid not in made:
            found.append(clause)
        elif clause is of_pid[clause.pid][0]:
            found.append(made[clause.pid])
    return tuple(found)


def is_between(clause: Clause) -> bool:
    """Whether the clause is several on one date parameter that bound it on both sides, with few enough values."""
    if clause.logic != "and" or not all(map(_plain, clause.parts)):
        return False
    few = sum(len(part.values) for part in clause.parts) <= MOST
    return few and len({part.pid for part in clause.parts}) == 1 and None not in _window(clause.parts)


def between(clause: Clause, unindexed: str, alone: str) -> Fragment:
    """The statement for the rids that meet such a clause; see `Dialect.unindexed` and `Dialect.alone`."""
    floor, ceiling = _window(clause.parts)
    assert floor is not None
    pid = clause.parts[0].pid
    tests = [_test(part, "x.low", "x.high") for part in clause.parts]
    all_tests = " AND ".join(test.sql for test in tests)
    all_params = [param for test in tests for param in test.params]
    first = _test(clause.parts[0], unindexed.format("x.low"), unindexed.format("x.high"))
    others = [_test(part, "y.low", "y.high") for part in clause.parts[1:]]
    of_y = unindexed.format("y.pid")
    exists = "".join(
        f" AND EXISTS (SELECT 1 FROM idx_date y WHERE y.rid = x.rid AND {of_y} = ? AND {test.sql}{alone})"
        for test in others
    )
    return Fragment(
        f"SELECT x.rid FROM idx_date x WHERE x.pid = ? AND x.low >= ? AND x.low <= ? AND {all_tests} "
        f"UNION ALL SELECT x.rid FROM idx_date x WHERE {_LOOSE.format(ALONE)} AND x.low <= ? AND {all_tests} "
        f"UNION ALL SELECT x.rid FROM idx_date x WHERE {_LOOSE.format(SEVERAL)} AND {first.sql}{exists}",
        (
            *(pid, floor - LONG, ceiling, *all_params),
            *(pid, ceiling, *all_params),
            *(pid, *first.params),
            *(param for test in others for param in (pid, *test.params)),
        ),
    )


# The words of the partial index: SQLite takes it for a condition that has the same.
_LOOSE = "x.pid = ? AND x.loose > 0 AND x.loose = {}"


def _plain(clause: Clause) -> bool:
    """Whether it is a condition on the values of one date parameter and nothing else."""
    if clause.type != "date" or not clause.pid or not clause.values:
        return False
    return replace(clause, values=()) == Clause(clause.name, "date", clause.pid)


def _window(parts: Sequence[Clause]) -> tuple[float | None, float | None]:
    """The least `high` and the greatest `low` a row may have that meets all of the parts; None where any will do."""
    floors = [[_edge(value, 0) for value in part.values] for part in parts]
    ceilings = [[_edge(value, 1) for value in part.values] for part in parts]
    least = [min(one for one in some if one is not None) for some in floors if None not in some]
    most = [max(one for one in some if one is not None) for some in ceilings if None not in some]
    return max(least, default=None), min(most, default=None)


def _edge(value: Value, side: int) -> float | None:
    return {"low": value.low, "high": value.high}.get(_REACH[value.prefix][side])


def _test(clause: Clause, low: str, high: str) -> Fragment:
    return any_of([in_range(value, DATE_TESTS, low, high) for value in clause.values])
