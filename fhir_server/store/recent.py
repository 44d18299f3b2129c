"""The newest of many: a page taken from the newest resources of a type, where a condition holds for enough of them.

PostgreSQL takes the columns of an index row for independent of one another. It so expects a handful of rows of a code
that has fifty thousand, and fetches and sorts them all for a page of twenty. A count that stops early tells few from
many; of many, the page is mostly among the newest resources, and if it is not, little was lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from fhir_server.search.plan import Clause, Plan
from fhir_server.store.conditions import Ground, conditions, is_set, probe
from fhir_server.store.dialect import Row
from fhir_server.store.ordered import at_least, question
from fhir_server.store.resources import COLUMNS
from fhir_server.store.view import Fragment, View, visible

# So many rows of the index are many, and so many resources are looked at: to fetch and sort these takes longer.
MANY = 2_000
LOOKED_AT = 2_000

# Where the first rows of an index are found without reading others.
_QUICK = frozenset(("token", "string", "reference", "uri"))


def page(view: View, plan: Plan, ground: Ground, limit: int, since: Fragment) -> Sequence[Row] | None:
    """A whole page, its rows as `query` has them; None when it is to be taken from all that match."""
    if not _fits(view, plan) or not view.sizes.get(_many(plan, ground)) or view.sizes.get(_lean(plan, limit)):
        return None
    asked = statement(view, plan, ground, limit, since)
    rows = view.db.rows(asked.sql, asked.params)
    if len(rows) == limit:
        return rows
    if not plan.after:
        view.sizes.keep(_lean(plan, limit), True)
    return None


def learn(view: View, plan: Plan, ground: Ground) -> None:
    """To be called behind a full page that was taken from all: whether its condition holds for many. What finds little
    is so never counted."""
    if _fits(view, plan):
        at_least(view, probe(plan.clauses[0], MANY, ground), MANY)


def is_quick(clause: Clause) -> bool:
    """Whether a database can start from the rows of the clause, and counting some of these reads no others."""
    plain = clause.missing is None and clause.modifier in ("", "exact")
    return plain and is_set(clause) and clause.type in _QUICK


def _fits(view: View, plan: Plan) -> bool:
    """Whether there is one condition, in order of the last change."""
    if view.db.dialect.name != "postgresql" or plan.contained or len(plan.types) != 1 or len(plan.clauses) != 1:
        return False
    if len(plan.sort) > 1 or (plan.after and len(plan.after) != 3):
        return False
    by_change = all(key.name == "_lastUpdated" and not key.pid and not key.chain for key in plan.sort)
    return by_change and is_quick(plan.clauses[0])


def _many(plan: Plan, ground: Ground) -> Hashable:
    return question(probe(plan.clauses[0], MANY, ground))


def _lean(plan: Plan, limit: int) -> Hashable:
    """That the newest have too few."""
    return ("newest", plan.types, plan.clauses, plan.sort, limit)


def statement(view: View, plan: Plan, ground: Ground, limit: int, since: Fragment) -> Fragment:
    """The matches among the newest (oldest) resources behind the page before, as `query` puts them in order."""
    down = not plan.sort or plan.sort[0].descending
    order = "r.last_updated DESC, r.rid DESC" if down else "r.last_updated, r.rid"
    behind = f" AND (r.last_updated, r.rid) {'<' if down else '>'} (?, ?)" if plan.after else ""
    now = "" if plan.after else f", ({view.db.dialect.snapshot}) AS seen"
    met, seen = conditions(plan.clauses, "r", ground, start=None), visible(view.caller, "r")
    return Fragment(
        f"SELECT {COLUMNS}, r.last_updated, r.rid{now} FROM (SELECT r.* FROM resource r WHERE r.type = ? "
        f"AND r.deleted = 0{behind} ORDER BY {order} LIMIT ?) r WHERE r.deleted = 0{met.sql}{seen.sql}{since.sql} "
        f"ORDER BY {order} LIMIT ?",
        (plan.types[0], *plan.after[1:], LOOKED_AT, *met.params, *seen.params, *since.params, limit),
    )
