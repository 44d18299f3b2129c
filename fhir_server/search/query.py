"""A query string becomes a Plan.

Hides the left side of search parameters: modifiers, chains, `_has`, and the parameters that shape the result. What the
server does not know is an error that lists what it knows, unless the client asked for lenience.

Source: https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from fhir_server import errors
from fhir_server.errors import Issue
from fhir_server.search import composites, index, literals
from fhir_server.search.index import Parameter
from fhir_server.search.literals import Reading, Unreadable
from fhir_server.search.plan import Clause, Include, Plan, Sort, Value

MAX_VALUES = 1_000

# What a value costs in parameters of the one statement, and how much it may cost: SQLite takes 32,766 parameters, and
# its preparing time, which no time-out ends, grows with the square of their number (8,000 of them take 4 seconds).
MAX_COST = 2_500
_WEIGHTS = {"date": 2, "number": 2, "quantity": 8, "special": 8, "composite": 8}
MAX_PARAMETERS = 200
MAX_DEPTH = 10
DEFAULT_COUNT = 50
MAX_SORT_HOPS = 3
MAX_COUNT = 1_000_000

# Modifiers of each type, :missing apart, with the reader of their values (None: the type's own).
_MODIFIERS: dict[str, dict[str, literals.Reader | None]] = {
    "string": {"exact": literals.exact, "contains": literals.string},
    "token": {"not": None, "text": literals.string, "of-type": literals.of_type},
    "date": {},
    "number": {},
    "quantity": {},
    "reference": {"identifier": literals.token},
    "uri": {"below": None, "above": None},
    "special": {},
    "composite": {},
}
_TERMINOLOGY = {"token": ("in", "not-in", "above", "below"), "reference": ("above", "below")}

# Accepted here and obeyed elsewhere (rendering), or without meaning for the matches.
_RENDERING = frozenset(("_format", "_pretty", "_summary", "_elements", "_contained", "_containedType"))
_LATER = frozenset(("_text", "_content", "_filter", "_query", "phonetic"))
_RESULT = ("_count", "_include", "_revinclude", "_sort", "_total", "_type")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a name is asked on: the types searched (any of them), how values are read, and how deep we are.

    `seen` keeps what the rest of a chain means on a set of types: worked out once, however many ways lead there.
    """

    types: tuple[str, ...]
    reading: Reading
    depth: int = 0
    seen: dict[tuple[tuple[str, ...], str], Clause] = dataclasses.field(default_factory=dict)

    def beyond(self, types: tuple[str, ...], rest: str, text: str) -> Clause:
        """The clause of the rest of a chain on the resources referred to."""
        known = self.seen.get((types, rest))
        if known is None:
            inner = dataclasses.replace(self, types=types, depth=self.depth + 1)
            known = self.seen[types, rest] = _clause(inner, rest, text)
        return known


def parse(
    resource_type: str,
    pairs: Sequence[tuple[str, str]],
    *,
    lenient: bool = False,
    zone: str = "Europe/Paris",
    base: str = "",
    now: datetime | None = None,
) -> Plan:
    """The plan of decoded query parameters on one type ('' searches all types, narrowed by `_type`).

    `lenient` (Prefer: handling=lenient) leaves out what is unknown or cannot be read; `self_link` of the plan holds
    what was used. `zone` is the IANA zone of dates without one, `base` the URL of this server, `now` the instant that
    `ap` measures dates from. Raises errors.Invalid (400) for unknown parameters, modifiers and values, one issue each;
    Unsupported (400) for what R4 has and this server has not; TooLarge beyond 200 parameters, 1,000 values or 10 hops.
    """
    if len(pairs) > MAX_PARAMETERS:
        raise errors.TooLarge(f"A search has at most {MAX_PARAMETERS} parameters, not {len(pairs)}.")
    if resource_type and not literals.is_resource_type(resource_type):
        raise _refused(f"{resource_type!r} is no resource type of FHIR R4.")
    types = _types(resource_type, pairs, lenient)
    plan, used = _drafted(_Asked(types, Reading(zone, base, now)), pairs, lenient)
    if _cost(plan.clauses) > MAX_COST:
        raise errors.TooLarge("This search has too many values in all; ask for fewer at a time.")
    return Plan(
        types=types,
        clauses=tuple(plan.clauses),
        sort=tuple(plan.sort),
        includes=tuple(dict.fromkeys(plan.includes)),
        count=plan.count,
        total=plan.total,  # type: ignore[arg-type]
        self_link=used,
    )


def _cost(clauses: Sequence[Clause]) -> int:
    """The weight of all values of a plan, which share one statement."""
    return sum(
        len(clause.values) * (_WEIGHTS["composite"] if clause.values and clause.values[0].pid else _weight(clause))
        + _cost(clause.chain)
        for clause in clauses
    )


def _weight(clause: Clause) -> int:
    return _WEIGHTS.get(clause.type, 1)


def _drafted(
    asked: _Asked, pairs: Sequence[tuple[str, str]], lenient: bool
) -> tuple[_Draft, tuple[tuple[str, str], ...]]:
    """The draft of a plan and the parameters it uses; what cannot be used is an error, all of it at once."""
    plan = _Draft()
    problems: list[Issue] = []
    used: list[tuple[str, str]] = []
    for name, text in pairs:
        try:
            _one(plan, asked, name, text)
        except (errors.Invalid, errors.Unsupported) as problem:
            problems.extend(problem.issues)
        else:
            used.append((name, text))
    if problems and not lenient:
        summary = (
            problems[0].diagnostics if len(problems) == 1 else f"{len(problems)} search parameters cannot be used."
        )
        raise _refused(summary, tuple(problems))
    return plan, tuple(used)


@dataclass(slots=True)
class _Draft:
    clauses: list[Clause] = dataclasses.field(default_factory=list)
    sort: list[Sort] = dataclasses.field(default_factory=list)
    includes: list[Include] = dataclasses.field(default_factory=list)
    count: int = DEFAULT_COUNT
    total: str = "none"


def _refused(text: str, issues: tuple[Issue, ...] = ()) -> errors.Invalid:
    """What the client asked makes no sense."""
    return errors.Invalid(text, issues=issues, http=400)


def _absent(text: str) -> errors.Unsupported:
    """R4 has it, this server has not."""
    return errors.Unsupported(text, http=400)


def _types(resource_type: str, pairs: Sequence[tuple[str, str]], lenient: bool) -> tuple[str, ...]:
    if resource_type:
        return (resource_type,)
    named = [one for name, text in pairs if name == "_type" for one in text.split(",")]
    unknown = [one for one in named if not literals.is_resource_type(one)]
    if unknown and not lenient:
        raise _refused(f"`_type` names {unknown[0]!r}, which is no resource type of FHIR R4.")
    return tuple(dict.fromkeys(one for one in named if one not in unknown))


def _one(plan: _Draft, asked: _Asked, name: str, text: str) -> None:
    """Adds one parameter to the plan."""
    key, _, modifier = name.partition(":")
    if key in _RENDERING or (key == "_type" and asked.types):
        return
    if not text:
        raise _refused(f"`{name}` has no value; leave it out.")
    special = _SPECIAL.get(key)
    if special is not None:
        special(plan, asked, modifier, text)
    else:
        plan.clauses.append(_clause(dataclasses.replace(asked, seen={}), name, text))


# --- parameters of the result ----------------------------------------------------------------------------------------


def _count(plan: _Draft, asked: _Asked, modifier: str, text: str) -> None:
    if modifier or not text.isascii() or not text.isdigit() or len(text) > 9:
        raise _refused(f"`_count={text[:20]}` is no number; it is 0 or more.")
    plan.count = min(int(text), MAX_COUNT)


def _total(plan: _Draft, asked: _Asked, modifier: str, text: str) -> None:
    if modifier or text not in ("none", "estimate", "accurate"):
        raise _refused("`_total` is none, estimate or accurate.")
    plan.total = text


def _sort(plan: _Draft, asked: _Asked, modifier: str, text: str) -> None:
    keys = text.split(",")
    if len(keys) > 16:
        raise errors.TooLarge("`_sort` takes at most 16 keys.")
    plan.sort.extend(_sort_key(asked, key.removeprefix("-"), key.startswith("-")) for key in keys)


def _sort_key(asked: _Asked, key: str, descending: bool) -> Sort:
    """`birthdate`, or `subject:Patient.birthdate`: the value of the resources referred to."""
    *hops, code = key.split(".")
    if len(hops) > MAX_SORT_HOPS:
        raise errors.TooLarge(f"`_sort` follows at most {MAX_SORT_HOPS} references.")
    chain: list[tuple[int, tuple[str, ...]]] = []
    for hop, following in zip(hops, [*hops, code][1:], strict=True):
        reference, _, kind = hop.partition(":")
        parameter = _sorted_by(asked, reference, key)
        if parameter.type != "reference" or (kind and kind not in parameter.targets):
            raise _refused(f"`_sort={key[:200]}`: `{hop[:100]}` leads nowhere; a chain is reference:Type.parameter.")
        types = (
            (kind,)
            if kind
            else tuple(one for one in parameter.targets if _leads(one, following.partition(":")[0], False))
        )
        if len(types) != 1:
            raise _refused(f"`_sort={key[:200]}`: say which type `{reference}` refers to, as in {reference}:Patient.")
        chain.append((parameter.pid, types))
        asked = dataclasses.replace(asked, types=types)
    found = _sorted_by(asked, code, key)
    if found.type in ("composite", "special"):
        raise _refused(f"`{code}` cannot be sorted by; it is a {found.type} parameter.")
    return Sort(found.code, found.type, found.pid, descending, tuple(chain))


def _sorted_by(asked: _Asked, code: str, key: str) -> Parameter:
    found = _known(asked, code, "_sort")
    if len({parameter.pid for parameter in found}) > 1:
        raise _refused(f"`_sort={key[:200]}` means different things on different types.")
    return found[0]


def _include(plan: _Draft, asked: _Asked, modifier: str, text: str) -> None:
    _add_include(plan, asked, "_include", modifier, text)


def _revinclude(plan: _Draft, asked: _Asked, modifier: str, text: str) -> None:
    _add_include(plan, asked, "_revinclude", modifier, text)


def _add_include(plan: _Draft, asked: _Asked, name: str, modifier: str, text: str) -> None:
    if modifier not in ("", "iterate", "recurse"):
        raise _refused(f"`{name}:{modifier}` is not known; the only modifier is :iterate.")
    reverse, iterate = name == "_revinclude", bool(modifier)
    if len(plan.includes) >= MAX_PARAMETERS:
        raise errors.TooLarge("too many includes")
    if text == "*" and not reverse:
        plan.includes.append(Include("", 0, (), False, iterate))
        return
    source, _, rest = text.partition(":")
    code, _, target = rest.partition(":")
    if not literals.is_resource_type(source) or not code or (target and not literals.is_resource_type(target)):
        raise _refused(f"`{name}={text[:200]}` is not of the form Type:parameter or Type:parameter:Target.")
    if code == "*":
        plan.includes.append(Include(source, 0, (target,) if target else (), reverse, iterate))
        return
    parameter = _parameter(source, code)
    if parameter is None or parameter.type != "reference":
        known = sorted(one.code for one in index.parameters(source).values() if one.type == "reference")
        raise _refused(
            f"`{name}={text[:200]}`: {source} has no reference parameter `{code}`. It has: {', '.join(known)}."
        )
    plan.includes.append(Include(source, parameter.pid, (target,) if target else (), reverse, iterate))


def _unsupported(plan: _Draft, asked: _Asked, modifier: str, text: str) -> None:
    raise _absent("This server does not search by full text or filter expression.")


def _list(plan: _Draft, asked: _Asked, modifier: str, text: str) -> None:
    """The resources that a List has among its items."""
    if modifier or text.startswith("$"):
        raise _absent("`_list` takes the id of a List; functional lists ($current-...) are not offered.")
    ids = ",".join(one.removeprefix("List/") for one in text.split(","))
    plan.clauses.append(_has(asked, "_has:List:item:_id", ids))


def _type(plan: _Draft, asked: _Asked, modifier: str, text: str) -> None:
    """`_type` without a usable type: reported by `_types`, or left out when lenient."""
    raise _refused("`_type` names no resource type.")


_SPECIAL: dict[str, Callable[[_Draft, _Asked, str, str], None]] = {
    "_count": _count,
    "_total": _total,
    "_sort": _sort,
    "_include": _include,
    "_revinclude": _revinclude,
    "_type": _type,
    "_list": _list,
    **dict.fromkeys(_LATER, _unsupported),
}


# --- parameters of the matches ---------------------------------------------------------------------------------------


def _clause(asked: _Asked, name: str, text: str) -> Clause:
    """The clause of one name and its text on any of the asked types."""
    if asked.depth > MAX_DEPTH:
        raise errors.TooLarge(f"A search follows at most {MAX_DEPTH} references in a row.")
    if name.startswith("_has:"):
        return _has(asked, name, text)
    head, dot, rest = name.partition(".")
    code, colon, modifier = head.partition(":")
    found = _known(asked, code, code)
    if not dot:
        return _merged([_plain(asked, one, modifier if colon else "", text) for one in found], name)
    made: list[Clause] = []
    problems: list[errors.PasserelleError] = []
    for one in found:
        try:
            made.append(_chain(asked, one, modifier, rest, text))
        except errors.Invalid as problem:
            problems.append(problem)  # of several types, some may lead nowhere
    if not made:
        raise problems[0]
    return _merged(made, name)


def _plain(asked: _Asked, parameter: Parameter, modifier: str, text: str) -> Clause:
    """A parameter without a chain."""
    name = f"{parameter.code}:{modifier}" if modifier else parameter.code
    if modifier == "missing":
        if text not in ("true", "false") or parameter.pid == 0:
            raise _refused(f"`{name}` is true or false, and only for parameters that may be missing.")
        return Clause(parameter.code, parameter.type, parameter.pid, missing=text == "true")
    if parameter.type == "composite":
        return _composite(asked, parameter, modifier, text)
    kind = modifier if parameter.type == "reference" and literals.is_resource_type(modifier) else ""
    if kind:
        if parameter.targets and kind not in parameter.targets:
            raise _no_target(parameter, kind)
        modifier = ""
    read = _reader(parameter, modifier)
    values = literals.values(text, read, name, asked.reading, MAX_VALUES)
    if parameter.type == "reference" and not modifier:
        values = _pointed(parameter, kind, values, name)
    pid = parameter.of_type if modifier == "of-type" else parameter.pid
    return Clause(parameter.code, parameter.type, pid, values, "" if modifier == "of-type" else modifier)


def _composite(asked: _Asked, parameter: Parameter, modifier: str, text: str) -> Clause:
    """`code$value`: what is searched for stands in the rows beside the code."""
    shape = parameter.composite
    if shape is None:
        raise _absent(f"`{parameter.code}` is a composite parameter this server does not offer; use its parts.")
    if modifier:
        raise _refused(f"`{parameter.code}` is a composite parameter and has no modifier :{modifier[:50]}.")

    found: list[Value] = []
    for context in shape.contexts:
        found += literals.values(text, _pair_reader(shape, context.base), parameter.code, asked.reading, MAX_VALUES)
    return Clause(parameter.code, shape.type, parameter.pid, tuple(found))


def _pair_reader(shape: composites.Composite, base: int) -> literals.Reader:
    def read(piece: str, reading: Reading) -> Value:
        pair = literals.parts(piece, "$")
        if len(pair) != 2:
            raise Unreadable("a composite is two values with a $ between them (write \\$ for one inside a value)")
        code = literals.token(pair[shape.code_at], reading)
        if not code.code:
            raise Unreadable("its code is written code, system|code or |code")
        other = literals.READERS[shape.type](pair[1 - shape.code_at], reading)
        return dataclasses.replace(other, pid=composites.pid(base, code.system, code.code))

    return read


def _reader(parameter: Parameter, modifier: str) -> literals.Reader:
    own = literals.READERS[parameter.type]
    if not modifier:
        return own
    known = _MODIFIERS[parameter.type]
    if modifier in known:
        return known[modifier] or own
    if modifier in _TERMINOLOGY.get(parameter.type, ()):
        raise _absent(
            f"`{parameter.code}:{modifier}` needs the terminology service, which this server does not offer yet."
        )
    names = [":missing", *(f":{one}" for one in known)]
    if parameter.type == "reference":
        names.append(":[type]")
    raise _refused(
        f"`{parameter.code}` is a {parameter.type} parameter and has no modifier :{modifier[:50]}; "
        f"it has {', '.join(names)}."
    )


def _pointed(parameter: Parameter, kind: str, values: tuple[Value, ...], name: str) -> tuple[Value, ...]:
    """References with the type that the modifier, or the only possible target, gives them."""
    only = kind or (parameter.targets[0] if len(parameter.targets) == 1 else "")
    if not only:
        return values
    try:
        return tuple(literals.typed(value, only) if kind or not value.type else value for value in values)
    except Unreadable as problem:
        raise _refused(f"`{name}` cannot be read: {problem}.") from None


def _chain(asked: _Asked, parameter: Parameter, modifier: str, rest: str, text: str) -> Clause:
    """`subject.name`, `subject:Patient.name`: the clause on the resources referred to."""
    if parameter.type != "reference":
        raise _refused(f"`{parameter.code}` is a {parameter.type} parameter; only references have chains.")
    if modifier and not literals.is_resource_type(modifier):
        raise _refused(f"`{parameter.code}:{modifier}` in a chain: {modifier!r} is no resource type.")
    if modifier and parameter.targets and modifier not in parameter.targets:
        raise _no_target(parameter, modifier)
    targets = (modifier,) if modifier else parameter.targets
    head, further, _ = rest.partition(".")
    code = head.partition(":")[0]
    if code.startswith("_") or len(targets) == 1:
        able = targets
    else:
        able = tuple(kind for kind in targets if _leads(kind, code, bool(further)))
    if not able:
        raise _refused(
            f"`{parameter.code}.{rest}`: none of {', '.join(targets) or 'the targets'} has a parameter `{code}`."
        )
    # Patient first, so that the clause reads as people expect.
    ordered = tuple(sorted(able, key=lambda kind: (kind != "Patient", kind)))
    inner = asked.beyond(ordered, rest, text)
    return Clause(parameter.code, "reference", parameter.pid, chain_types=ordered, chain=(inner,))


def _leads(kind: str, code: str, further: bool) -> bool:
    """Whether a type has the parameter, and as a reference when the chain goes on."""
    parameter = _parameter(kind, code)
    return parameter is not None and (parameter.type == "reference" or not further)


def _no_target(parameter: Parameter, kind: str) -> errors.Invalid:
    return _refused(f"`{parameter.code}` never refers to {kind}. It refers to: {', '.join(parameter.targets)}.")


def _has(asked: _Asked, name: str, text: str) -> Clause:
    """`_has:Observation:patient:code`: a resource that refers to the match and meets the rest."""
    pieces = name.split(":", 3)
    if len(pieces) != 4 or not literals.is_resource_type(pieces[1]) or not pieces[3]:
        raise _refused(f"`{name[:200]}` is not of the form _has:Type:reference:parameter.")
    _, source, code, rest = pieces
    parameter = _parameter(source, code)
    if parameter is None or parameter.type != "reference":
        known = sorted(one.code for one in index.parameters(source).values() if one.type == "reference")
        raise _refused(f"{source} has no reference parameter `{code}`. It has: {', '.join(known)}.")
    if asked.types and parameter.targets and not set(asked.types) & set(parameter.targets):
        raise _no_target(parameter, asked.types[0])
    inner = asked.beyond((source,), rest, text)
    return Clause("_has", "reference", parameter.pid, chain=(inner,), reverse=(source, parameter.pid))


# --- names -----------------------------------------------------------------------------------------------------------


def _parameter(resource_type: str, code: str) -> Parameter | None:
    return index.parameters(resource_type).get(code)


def _known(asked: _Asked, code: str, name: str) -> list[Parameter]:
    """The parameter of this code on every asked type; errors.Invalid that lists what they have."""
    types = asked.types or ("Resource",)
    found = [_parameter(kind, code) for kind in types]
    if all(found):
        return [one for one in found if one is not None]
    lacking = next(kind for kind, one in zip(types, found, strict=True) if one is None)
    shared = set.intersection(*(set(index.parameters(kind)) for kind in types))
    if asked.depth == 0 and name != "_sort":
        shared |= {"_has", *_RESULT, *_RENDERING} - ({"_type"} if asked.types else set())
    close = get_close_matches(code, sorted(shared), n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    what = (
        f"`{code[:100]}` is no search parameter of {lacking}."
        if asked.types
        else f"`{code[:100]}` needs a resource type."
    )
    raise _refused(f"{what}{hint} Known are: {', '.join(sorted(shared))}.")


def _merged(made: list[Clause], name: str) -> Clause:
    """One clause for several types, whose index ids differ and nothing else."""
    first = made[0]
    for other in made[1:]:
        joined = _joined(first, other)
        if joined is None:
            raise _refused(
                f"`{name}` means different things on different types; say which, as in `subject:Patient.name`."
            )
        first = joined
    return first


def _joined(left: Clause, right: Clause) -> Clause | None:
    if left == right:
        return left
    if len(left.chain) != len(right.chain):
        return None
    inner: list[Clause] = []
    for a, b in zip(left.chain, right.chain, strict=True):
        joined = _joined(a, b)
        if joined is None:
            return None
        inner.append(joined)
    same = {"pid": 0, "pids": (), "chain": (), "chain_types": ()}
    if dataclasses.replace(left, **same) != dataclasses.replace(right, **same):  # type: ignore[arg-type]
        return None
    pids = tuple(dict.fromkeys((*(left.pids or (left.pid,)), *(right.pids or (right.pid,)))))
    kinds = tuple(dict.fromkeys((*left.chain_types, *right.chain_types)))
    return dataclasses.replace(left, pids=pids if len(pids) > 1 else (), chain=tuple(inner), chain_types=kinds)
