"""A search as pure data: what `search/query` parses a query string into and `store/query` turns into SQL.

Source: https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ParamType = Literal["string", "token", "date", "number", "quantity", "reference", "uri", "special", "composite", "text"]
Prefix = Literal["eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"]


@dataclass(frozen=True, slots=True)
class Value:
    """One OR alternative, already parsed for its type.

    token: `system` None = any system, '' = explicitly no system; `code` None = any code of the system.
    string, uri: `text` (folded for string). reference: `type` and `id`, or `text` = absolute URL.
    date: `low`/`high` int microseconds, `high` exclusive. number, quantity: `low`/`high` floats, with `system`, `code`;
    a quantity whose code is a UCUM unit also has `unit`, the base units, and `base_low`/`base_high` in them.
    composite: `pid` is the id of the index rows beside the code searched, the rest is the other value, and `also` the
    third one. text: `text` is words with a space between them, `code` '*' when the last may go on.
    """

    prefix: Prefix = "eq"
    text: str = ""
    system: str | None = None
    code: str | None = None
    type: str = ""
    id: str = ""
    low: float | int = 0
    high: float | int = 0
    unit: str = ""
    base_low: float = 0
    base_high: float = 0
    pid: int = 0
    also: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Clause:
    """One parameter occurrence: `values` are ORed, clauses ANDed. `pid` is the index parameter id (0 for column
    parameters `_id`, `_lastUpdated`). `chain`: the clauses the referenced resource (`chain_types`) must meet.
    `pids`: every index id that may match, when there is more than one (the same name on several types); else empty.
    `logic`: the clause is what its `parts` say together (`not` has one part, which must not hold); all else is unused.
    """

    name: str
    type: ParamType
    pid: int
    values: tuple[Value, ...] = ()
    modifier: str = ""
    missing: bool | None = None
    chain_types: tuple[str, ...] = ()
    chain: tuple[Clause, ...] = ()
    reverse: tuple[str, int] | None = None
    pids: tuple[int, ...] = ()
    logic: Literal["", "and", "or", "not"] = ""
    parts: tuple[Clause, ...] = ()


def both(*parts: Clause) -> Clause:
    """All of the parts."""
    return parts[0] if len(parts) == 1 else Clause("", "special", 0, logic="and", parts=parts)


def either(*parts: Clause) -> Clause:
    """Any of the parts."""
    return parts[0] if len(parts) == 1 else Clause("", "special", 0, logic="or", parts=parts)


def unless(part: Clause) -> Clause:
    """Not the part."""
    return Clause("", "special", 0, logic="not", parts=(part,))


@dataclass(frozen=True, slots=True)
class Sort:
    """`pid` 0 with name `_id` or `_lastUpdated` sorts on the column.

    `chain`: the references on the way to the resources whose values count, each by its index id and target types.
    `pids`: every index id whose values count, when several types are sorted together; else empty.
    """

    name: str
    type: ParamType
    pid: int
    descending: bool = False
    chain: tuple[tuple[int, tuple[str, ...]], ...] = ()
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Include:
    """`_include` (reverse False: from `source` by `pid` to `target` types) or `_revinclude` (reverse True)."""

    source: str
    pid: int
    target: tuple[str, ...] = ()
    reverse: bool = False
    iterate: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole search. `types` empty = every type. `after` is the keyset position of the previous page's last row.

    `contained`: contained resources are searched (true), or they and all others (both); `container`: the answer has the
    resources that hold them, not they themselves.
    """

    types: tuple[str, ...]
    clauses: tuple[Clause, ...] = ()
    sort: tuple[Sort, ...] = ()
    includes: tuple[Include, ...] = ()
    count: int = 50
    total: Literal["none", "estimate", "accurate"] = "none"
    after: tuple[object, ...] = ()
    self_link: tuple[tuple[str, str], ...] = field(default=())
    contained: Literal["", "true", "both"] = ""
    container: bool = True


def elsewhere(plan: Plan) -> bool:
    """Whether a search looks at resources of other types than those asked for, or answers with them: by chains, `_has`,
    `_list`, a chained order, includes, or what holds a contained resource."""
    return bool(plan.includes or plan.contained) or any(key.chain for key in plan.sort) or _leads(plan.clauses)


def _leads(clauses: tuple[Clause, ...]) -> bool:
    return any(one.chain or one.reverse or _leads(one.parts) for one in clauses)
