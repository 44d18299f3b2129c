"""Searches for a token each, asked together and answered one by one.

A Bundle brings many that are alike: `If-None-Exist`, conditional updates and references mostly name one identifier.
One statement finds the index rows of all their values, bounded, and beside each the resource if it meets the rest; the
value tells whose answer it is. The database plans once, and one answer travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fhir_server.search.plan import Clause, Plan
from fhir_server.search.values import bounded
from fhir_server.store import dates
from fhir_server.store.conditions import Ground, conditions, is_hop
from fhir_server.store.query import Page
from fhir_server.store.query import search as search_one
from fhir_server.store.resources import COLUMNS, Stored, stored
from fhir_server.store.value_tests import VALUE_TESTS
from fhir_server.store.view import Fragment, View, visible

AT_ONCE = 200
"""Values one statement looks for."""
MOST_ROWS = 1_000
"""Index rows one statement brings; beyond, fewer values are asked for at once."""

_Wanted = dict[tuple[str | None, str], list[int]]


def is_alike(plan: Plan) -> bool:
    """Whether a search is for a token's values first, and wants no more than its newest matches: what others ask for
    may be asked with it."""
    if not plan.clauses or len(plan.types) != 1 or plan.contained or plan.sort or plan.includes or plan.after:
        return False
    first, *others = plan.clauses
    plain = first.type == "token" and first.pid != 0 and not (first.modifier or first.logic or first.pids)
    plain = plain and first.missing is None and not is_hop(first) and 0 < len(first.values) <= AT_ONCE
    exact = all(value.code is not None and not value.pid for value in first.values)
    alone = not any(one.logic or is_hop(one) for one in others)
    return plain and exact and alone and plan.count > 0 and plan.total == "none"


def search(view: View, plans: Sequence[Plan]) -> list[Page]:
    """What `query.search` finds for each of the plans, in their order, with few statements. Raises as it does."""
    pages: dict[Plan, Page] = {}
    groups: dict[Plan, list[Plan]] = {}
    for plan in dict.fromkeys(plans):
        if is_alike(plan):
            groups.setdefault(_bare(plan), []).append(plan)
        else:
            pages[plan] = search_one(view, plan)
    for group in groups.values():
        for block in _blocks(group):
            pages.update(zip(block, _answers(view, block), strict=True))
    return [pages[plan] for plan in plans]


def _bare(plan: Plan) -> Plan:
    """The plan without what alike ones differ by: two with the same one may be asked together."""
    first, *others = plan.clauses
    return replace(plan, clauses=(replace(first, values=()), *others), count=0, self_link=())


def _blocks(plans: Sequence[Plan]) -> list[list[Plan]]:
    """The plans in their order, as many together as have at most AT_ONCE values."""
    blocks: list[list[Plan]] = []
    room = 0
    for plan in plans:
        values = len(plan.clauses[0].values)
        if values > room:
            blocks.append([])
            room = AT_ONCE
        blocks[-1].append(plan)
        room -= values
    return blocks


def _answers(view: View, plans: Sequence[Plan]) -> list[Page]:
    """The pages of plans with one bare form. What is too much for one statement is asked in halves."""
    if len(plans) == 1:
        return [search_one(view, plans[0])]
    statement = _statement(view, plans)
    rows = view.db.rows(statement.sql, statement.params)
    if len(rows) > MOST_ROWS:
        middle = len(plans) // 2
        return _answers(view, plans[:middle]) + _answers(view, plans[middle:])
    wanted = _wanted(plans)
    found: list[dict[int, Stored]] = [{} for _ in plans]
    for system, code, *row in rows:
        if row[0] is not None:
            for number in (*wanted.get((system, code), ()), *wanted.get((None, code), ())):
                found[number][row[0]] = stored(row)
    return [_page(view, plan, list(one.values())) for plan, one in zip(plans, found, strict=True)]


def _wanted(plans: Sequence[Plan]) -> _Wanted:
    """Which plans look for a value, by system (None: any) and code as the index has them."""
    wanted: _Wanted = {}
    for number, plan in enumerate(plans):
        for value in plan.clauses[0].values:
            assert value.code is not None
            system = None if value.system is None else bounded(value.system)
            wanted.setdefault((system, bounded(value.code)), []).append(number)
    return wanted


def _page(view: View, plan: Plan, matches: list[Stored]) -> Page:
    if len(matches) > plan.count:
        return search_one(view, plan)  # it says where the next page begins
    return Page(tuple(sorted(matches, key=lambda one: (one.last_updated, one.rid), reverse=True)))


def _statement(view: View, plans: Sequence[Plan]) -> Fragment:
    """The index rows of all values, at most MOST_ROWS and one, each with its resource if that meets the other clauses:
    rows that meet nothing count too, so that what a statement reads is bounded."""
    dialect = view.db.dialect
    ground = Ground(view.caller, dialect.unindexed, dialect.words, dialect.alone)
    first, *others = plans[0].clauses
    values = dict.fromkeys(value for plan in plans for value in plan.clauses[0].values)
    sought: Clause = replace(first, values=tuple(values))
    test = VALUE_TESTS["token"](sought)
    met = conditions(dates.gathered(others), "r", ground, start=None)
    seen = visible(view.caller, "r")
    return Fragment(
        f"SELECT k.system, k.code, {COLUMNS} FROM (SELECT x.rid, x.system, x.code FROM idx_token x "
        f"WHERE x.pid = ? AND {test.sql} LIMIT {MOST_ROWS + 1}) k LEFT JOIN resource r "
        f"ON r.rid = k.rid AND {ground.plain('r.type')} = ? AND r.deleted = 0{met.sql}{seen.sql}",
        (first.pid, *test.params, plans[0].types[0], *met.params, *seen.params),
    )
