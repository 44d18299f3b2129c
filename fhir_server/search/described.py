"""A plan in words: what a search was understood as, one line a clause, for `explain`.

Source: https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from collections.abc import Iterator

from fhir_server.search.plan import Clause, Include, Plan, Sort, Value

SHOWN = 5


def described(plan: Plan) -> list[str]:
    """The types, the clauses (indented by chain and bracket), the order, the includes."""
    lines = [f"of {', '.join(plan.types)}" if plan.types else "of every type"]
    for clause in plan.clauses:
        lines += _clause(clause, 0)
    lines += [_sort(key) for key in plan.sort] or ["in order of _lastUpdated, newest first"]
    lines += [_include(one) for one in plan.includes]
    lines.append(f"{plan.count} a page, total {plan.total}")
    return lines


def _clause(clause: Clause, depth: int) -> Iterator[str]:
    lead = "  " * depth
    if clause.logic:
        yield f"{lead}{ {'and': 'all of', 'or': 'any of', 'not': 'none of'}[clause.logic] }"
        for part in clause.parts:
            yield from _clause(part, depth + 1)
    elif clause.reverse is not None:
        yield f"{lead}is referred to by a {clause.reverse[0]} that has"
        for part in clause.chain:
            yield from _clause(part, depth + 1)
    elif clause.chain:
        yield f"{lead}{clause.name} refers to a {' or '.join(clause.chain_types[:SHOWN]) or 'resource'} that has"
        for part in clause.chain:
            yield from _clause(part, depth + 1)
    elif clause.missing is not None:
        yield f"{lead}{clause.name} ({clause.type}) is {'missing' if clause.missing else 'there'}"
    else:
        said = " or ".join(_value(value, clause.type) for value in clause.values[:SHOWN])
        more = f" or {len(clause.values) - SHOWN} more" if len(clause.values) > SHOWN else ""
        modifier = f":{clause.modifier}" if clause.modifier else ""
        yield f"{lead}{clause.name}{modifier} ({clause.type}) {said}{more}"


def _value(value: Value, kind: str) -> str:
    if kind in ("date", "number", "quantity"):
        unit = f" {value.system or ''}|{value.code}" if value.code else ""
        return f"{value.prefix} [{value.low}, {value.high}]{unit}"
    if value.text:
        return repr(value.text) + ("..." if value.code == "*" else "")
    if value.id:
        return f"{value.type or '(any type)'}/{value.id}"
    system = "(any system)" if value.system is None else value.system or "(no system)"
    return f"{system}|{'(any code)' if value.code is None else value.code}"


def _sort(key: Sort) -> str:
    way = f"{len(key.chain)} reference(s) away, " if key.chain else ""
    return f"in order of {way}{key.name}{', greatest first' if key.descending else ''}"


def _include(one: Include) -> str:
    target = f" to {', '.join(one.target)}" if one.target else ""
    what = "what refers to a match" if one.reverse else "what a match refers to"
    again = ", again and again" if one.iterate else ""
    return f"with {what}, from {one.source or 'every type'}{target}{again}"
