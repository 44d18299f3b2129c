"""Searches that look at contained resources: `_contained`, and `_containedType` for what is answered.

A contained resource has index rows like any other, under a number that no resource has (`tables.CONTAINED`): here it
stands for a resource of that number with the times and the visibility of the one that holds it.

Source: https://hl7.org/fhir/R4/search.html#contained
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from fhir_server.search.plan import Clause, Plan
from fhir_server.search.values import bounded
from fhir_server.store.conditions import Ground, conditions
from fhir_server.store.dialect import marks
from fhir_server.store.resources import Stored
from fhir_server.store.view import Fragment, View, visible
from profiles import json_text

_HELD = (
    "(SELECT c.number AS rid, c.rid AS holder, c.type, c.id, o.version, o.last_updated, o.deleted, o.method, o.text, "
    "o.txid FROM contained c JOIN resource o ON o.rid = c.rid WHERE o.deleted = 0{seen})"
)


# The distinct types, each found by one look at the index of types.
_TYPES = (
    "WITH RECURSIVE k(type) AS (SELECT min(type) FROM contained UNION ALL "
    "SELECT (SELECT min(c.type) FROM contained c WHERE c.type > k.type) FROM k WHERE k.type IS NOT NULL) "
    "SELECT type FROM k WHERE type IS NOT NULL"
)


def types(view: View) -> frozenset[str]:
    """The types of all contained resources there are: a chain to any other type need not look for them."""
    return frozenset(row[0] for row in view.db.rows(_TYPES))


def held(view: View, clauses: Sequence[Clause]) -> frozenset[str]:
    """The types of all contained resources, where a chain may lead to one."""
    return types(view) if list(led_to(clauses)) else frozenset()


def led_to(clauses: Sequence[Clause]) -> Iterator[tuple[str, ...]]:
    """The types that each reference which is followed forwards leads to; () where it may be any."""
    for clause in clauses:
        if clause.chain and clause.reverse is None:
            yield clause.chain_types
        yield from led_to((*clause.chain, *clause.parts))


def inside(clauses: Sequence[Clause]) -> Fragment | None:
    """The question whether there are contained resources of a type that a chain leads to; None without a chain."""
    led = list(led_to(clauses))
    if not led:
        return None
    kinds = () if () in led else tuple(sorted({kind for some in led for kind in some}))
    of_type = f" WHERE c.type IN ({marks(kinds)})" if kinds else ""
    return Fragment(f"EXISTS (SELECT 1 FROM contained c{of_type})", kinds)


def sources(plan: Plan, ground: Ground) -> tuple[Fragment, ...]:
    """What is searched, each `table r WHERE ...`: together they give every match once."""
    own = _met(plan, "r", ground, visible(ground.caller, "r"))
    seen = visible(ground.caller, "o")
    met = _met(plan, "r", dataclasses.replace(ground, within=True), Fragment(""))
    held = Fragment(f"{_HELD.format(seen=seen.sql)} r WHERE {met.sql}", (*seen.params, *met.params))
    every = (Fragment(f"resource r WHERE {own.sql}", own.params), held) if plan.contained == "both" else (held,)
    return (_holders(every, ground),) if plan.container else every


def _holders(every: tuple[Fragment, ...], ground: Ground) -> Fragment:
    """The resources themselves, and those that hold a match."""
    *own, held = every
    ways = [f"SELECT r.rid FROM {one.sql}" for one in own] + [f"SELECT r.holder FROM {held.sql}"]
    params = tuple(param for one in every for param in one.params)
    seen = visible(ground.caller, "r")
    sql = f"resource r WHERE r.deleted = 0 AND r.rid IN ({' UNION ALL '.join(ways)}){seen.sql}"
    return Fragment(sql, (*params, *seen.params))


def _met(plan: Plan, alias: str, ground: Ground, seen: Fragment) -> Fragment:
    met = conditions(plan.clauses, alias, ground)
    of_type = f"{alias}.type IN ({marks(plan.types)}) AND " if plan.types else ""
    return Fragment(f"{of_type}{alias}.deleted = 0{met.sql}{seen.sql}", (*plan.types, *met.params, *seen.params))


def shown(one: Stored) -> Stored:
    """A match as it is answered: of a contained resource its own text, and the resource that holds it."""
    if one.rid >= 0:
        return one
    holder = json_text.parse(one.text)
    text = next(
        json_text.write(inner)
        for inner in holder["contained"]
        if (inner.get("resourceType"), bounded(inner.get("id") or "")) == (one.type, one.id)
    )
    return dataclasses.replace(one, text=text, container=f"{holder['resourceType']}/{holder['id']}")
