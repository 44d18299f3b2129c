"""A query string becomes a Plan.

Hides the order in which parameters are read, the parameters that shape the result, and what a search may cost. What
the server does not know is an error that lists what it knows, unless the client asked for lenience.

Source: https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from fhir_server import errors
from fhir_server.errors import Issue
from fhir_server.search import compartments, filters, literals, shaping
from fhir_server.search.clauses import RENDERING, Asked, NoModifier, absent, clause, has, no_modifier, refused
from fhir_server.search.literals import Reading
from fhir_server.search.plan import Clause, Include, Plan, Sort

# What a value costs in parameters of the one statement, and how much it may cost: SQLite takes 32,766 parameters, and
# its preparing time, which no time-out ends, grows with the square of their number (8,000 of them take 4 seconds).
MAX_COST = 2_500
_WEIGHTS = {"date": 2, "number": 2, "quantity": 8, "special": 8, "composite": 8, "text": 8}
MAX_PARAMETERS = 200
MAX_HOPS = 60
DEFAULT_COUNT = 50
MAX_COUNT = 1_000_000
MAX_SORT_KEYS = 16


@dataclass(slots=True)
class _Draft:
    clauses: list[Clause] = dataclasses.field(default_factory=list)
    sort: list[Sort] = dataclasses.field(default_factory=list)
    includes: list[Include] = dataclasses.field(default_factory=list)
    count: int = DEFAULT_COUNT
    total: str = "none"
    contained: str = ""
    container: bool = True


def parse(
    resource_type: str,
    pairs: Sequence[tuple[str, str]],
    *,
    lenient: bool = False,
    zone: str = "Europe/Paris",
    bases: Sequence[str] = (),
    now: datetime | None = None,
    compartment: tuple[str, str] | None = None,
) -> Plan:
    """The plan of decoded query parameters on one type ('' searches all types, narrowed by `_type`).

    `lenient` (Prefer: handling=lenient) leaves out what is unknown or cannot be read, but no modifier; `self_link` of
    the plan holds what was used. `zone` is the IANA zone of dates without one, `bases` the URLs of this server, `now`
    the instant that `ap` measures dates from. `compartment` (`("Patient", "1")`) keeps what belongs to it. Raises
    errors.Invalid (400) for unknown parameters, modifiers and values and for what R4 has and this server has not, one
    issue each; TooLarge (`too-costly`) beyond 200 parameters, 1,000 values, 20 references in a row or 60 in all.
    """
    if len(pairs) > MAX_PARAMETERS:
        raise errors.TooLarge(f"A search has at most {MAX_PARAMETERS} parameters, not {len(pairs)}.")
    if resource_type and not literals.is_resource_type(resource_type):
        raise refused(f"{resource_type!r} is no resource type of FHIR R4.")
    types = _types(resource_type, pairs, lenient)
    plan, used = _drafted(Asked(types, Reading(zone, bases, now)), pairs, lenient)
    if compartment is not None:
        types, within = compartments.within(*compartment, types)
        plan.clauses[:0] = within
    _bounded(plan.clauses)
    if plan.contained and any(key.pid or key.chain for key in plan.sort):
        raise refused("With `_contained` the order is that of `_lastUpdated` or `_id`: the answer is of many types.")
    return Plan(
        types=types,
        clauses=tuple(plan.clauses),
        sort=tuple(plan.sort),
        includes=tuple(dict.fromkeys(plan.includes)),
        count=plan.count,
        total=plan.total,  # type: ignore[arg-type]  # checked when it was read
        self_link=used,
        contained=plan.contained,  # type: ignore[arg-type]  # checked when it was read
        container=plan.container,
    )


def _bounded(clauses: Sequence[Clause]) -> None:
    if _cost(clauses) > MAX_COST:
        raise errors.TooLarge("This search has too many values in all; ask for fewer at a time.")
    if _hops(clauses) > MAX_HOPS:
        raise errors.TooLarge(f"This search follows more than {MAX_HOPS} references in all; ask in several steps.")


def _cost(clauses: Sequence[Clause]) -> int:
    """The weight of all values of a plan, which share one statement."""
    return sum(
        len(clause.values) * (_WEIGHTS["composite"] if clause.values and clause.values[0].pid else _weight(clause))
        + _cost(clause.chain)
        + _cost(clause.parts)
        for clause in clauses
    )


def _weight(clause: Clause) -> int:
    return _WEIGHTS.get(clause.type, 1)


def _hops(clauses: Sequence[Clause]) -> int:
    return sum(bool(clause.chain) + _hops(clause.chain) + _hops(clause.parts) for clause in clauses)


def _drafted(
    asked: Asked, pairs: Sequence[tuple[str, str]], lenient: bool
) -> tuple[_Draft, tuple[tuple[str, str], ...]]:
    """The draft of a plan and the parameters it uses; what cannot be used is an error, all of it at once."""
    plan = _Draft()
    problems: list[Issue] = []
    used: list[tuple[str, str]] = []
    for name, text in pairs:
        try:
            _one(plan, asked, name, text)
        except (errors.Invalid, errors.Unsupported) as problem:
            if not lenient or isinstance(problem, NoModifier):
                problems.extend(problem.issues)
        else:
            used.append((name, text))
    if problems:
        summary = (
            problems[0].diagnostics if len(problems) == 1 else f"{len(problems)} search parameters cannot be used."
        )
        raise refused(summary, tuple(problems))
    return plan, tuple(used)


def _types(resource_type: str, pairs: Sequence[tuple[str, str]], lenient: bool) -> tuple[str, ...]:
    if resource_type:
        return (resource_type,)
    named = [one for name, text in pairs if name == "_type" for one in text.split(",")]
    unknown = [one for one in named if not literals.is_resource_type(one)]
    if unknown and not lenient:
        raise refused(f"`_type` names {unknown[0]!r}, which is no resource type of FHIR R4.")
    return tuple(dict.fromkeys(one for one in named if one not in unknown))


def _one(plan: _Draft, asked: Asked, name: str, text: str) -> None:
    """Adds one parameter to the plan."""
    key, colon, modifier = name.partition(":")
    if colon and (key in RENDERING or (key in _SPECIAL and key not in _WITH_MODIFIERS)):
        raise no_modifier(key, modifier)
    if key in RENDERING or (key == "_type" and asked.types):
        return
    if not text:
        raise refused(f"`{name}` has no value; leave it out.")
    special = _SPECIAL.get(key)
    if special is not None:
        special(plan, asked, modifier, text)
    else:
        plan.clauses.append(clause(dataclasses.replace(asked, seen={}), name, text))


# --- parameters that are no clause of their own ----------------------------------------------------------------------


def _count(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    if not text.isascii() or not text.isdigit():
        raise refused(f"`_count={text[:20]}` is no number; it is 0 or more.")
    plan.count = min(int(text.lstrip("0")[:10] or "0"), MAX_COUNT)


def _total(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    if text not in ("none", "estimate", "accurate"):
        raise refused("`_total` is none, estimate or accurate.")
    plan.total = text


def _sort(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    keys = text.split(",")
    if len(keys) > MAX_SORT_KEYS:
        raise errors.TooLarge(f"`_sort` takes at most {MAX_SORT_KEYS} keys.")
    plan.sort.extend(shaping.sort_key(asked, key.removeprefix("-"), key.startswith("-")) for key in keys)


def _include(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    plan.includes.append(shaping.include("_include", modifier, text))


def _revinclude(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    plan.includes.append(shaping.include("_revinclude", modifier, text))


def _filter(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    plan.clauses.append(filters.clause(dataclasses.replace(asked, seen={}), text))


def _query(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    raise absent("This server has no named queries (`_query`).")


def _phonetic(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    raise absent("This server does not search by sound; `name` ignores case and accents, `name:contains` finds parts.")


def _list(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    """The resources that a List has among its items."""
    if text.startswith("$"):
        raise absent("`_list` takes the id of a List; functional lists ($current-...) are not offered.")
    ids = ",".join(one.removeprefix("List/") for one in text.split(","))
    plan.clauses.append(has(asked, "_has:List:item:_id", ids))


def _contained(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    if text not in ("true", "false", "both"):
        raise refused("`_contained` is false, true or both.")
    plan.contained = "" if text == "false" else text


def _contained_type(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    if text not in ("container", "contained"):
        raise refused("`_containedType` is container or contained.")
    plan.container = text == "container"


def _type(plan: _Draft, asked: Asked, modifier: str, text: str) -> None:
    """`_type` without a usable type: reported by `_types`, or left out when lenient."""
    raise refused("`_type` names no resource type.")


_SPECIAL: dict[str, Callable[[_Draft, Asked, str, str], None]] = {
    "_count": _count,
    "_total": _total,
    "_sort": _sort,
    "_include": _include,
    "_revinclude": _revinclude,
    "_type": _type,
    "_list": _list,
    "_filter": _filter,
    "_contained": _contained,
    "_containedType": _contained_type,
    "_query": _query,
    "phonetic": _phonetic,
}
# Those R4 gives modifiers: :iterate, and those of a string.
_WITH_MODIFIERS = frozenset(("_include", "_revinclude", "phonetic"))
