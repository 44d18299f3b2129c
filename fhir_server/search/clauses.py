"""One search parameter, its left side read: modifiers, chains, `_has`, on one type or on several at once.

What the server does not know is an error that lists what it knows.

Source: https://hl7.org/fhir/R4/search.html#modifiers, #chaining, #has
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from fhir_server import errors
from fhir_server.errors import Issue
from fhir_server.search import composites, fulltext, index, literals
from fhir_server.search.index import Parameter
from fhir_server.search.literals import Reading, Unreadable
from fhir_server.search.plan import Clause, ParamType, Value

MAX_VALUES = 1_000
MAX_DEPTH = 20

# Names that are no parameters of a resource: they shape the result, its rendering, or ask in other ways.
RENDERING = frozenset(("_format", "_pretty", "_summary", "_elements"))
RESULT = ("_count", "_include", "_revinclude", "_sort", "_total", "_type", "_contained", "_containedType")
ASKING = ("_filter", "_text", "_content", "_list", "_has")

# Modifiers of each type, :missing apart, with the reader of their values (None: the type's own).
MODIFIERS: dict[str, dict[str, literals.Reader | None]] = {
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
TERMINOLOGY = {"token": ("in", "not-in", "above", "below"), "reference": ("above", "below")}


@dataclass(frozen=True, slots=True)
class Asked:
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
            known = self.seen[types, rest] = clause(inner, rest, text)
        return known


class NoModifier(errors.Invalid):
    """The parameter has no such modifier. R4 has a server refuse that whatever else it may leave out: without it the
    search would find more than was asked for."""


def no_modifier(name: str, modifier: str) -> NoModifier:
    """Of a parameter that has none."""
    return NoModifier(f"`{name[:100]}` has no modifier :{modifier[:50]}.", http=400)


def refused(text: str, issues: tuple[Issue, ...] = ()) -> errors.Invalid:
    """What the client asked makes no sense."""
    return errors.Invalid(text, issues=issues, http=400)


def absent(text: str) -> errors.Unsupported:
    """R4 has it, this server has not."""
    return errors.Unsupported(text, http=400)


def clause(asked: Asked, name: str, text: str) -> Clause:
    """The clause of one name and its text on any of the asked types."""
    if name.partition(":")[0] in fulltext.NAMES:
        return _full_text(name, text)
    if asked.depth > MAX_DEPTH:
        raise errors.TooLarge(f"A search follows at most {MAX_DEPTH} references in a row.")
    if name.startswith("_has:"):
        return has(asked, name, text)
    head, dot, rest = name.partition(".")
    code, colon, modifier = head.partition(":")
    found = known(asked, code, code)
    if not dot:
        return merged([plain(asked, one, modifier if colon else "", text) for one in found], name)
    made: list[Clause] = []
    problems: list[errors.PasserelleError] = []
    for one in found:
        try:
            made.append(_chain(asked, one, modifier, rest, text))
        except errors.Invalid as problem:
            problems.append(problem)  # of several types, some may lead nowhere
    if not made:
        raise problems[0]
    return merged(made, name)


def _full_text(name: str, text: str) -> Clause:
    code, colon, modifier = name.partition(":")
    if colon:
        raise no_modifier(code, modifier)
    return fulltext.clause(code, text)


def plain(asked: Asked, parameter: Parameter, modifier: str, text: str) -> Clause:
    """A parameter without a chain."""
    name = f"{parameter.code}:{modifier}" if modifier else parameter.code
    if parameter.type == "composite":
        return _composite(asked, parameter, modifier, text)
    if modifier == "missing":
        if text not in ("true", "false"):
            raise refused(f"`{name}` is true or false.")
        return Clause(parameter.code, parameter.type, parameter.pid, missing=text == "true")
    kind = modifier if parameter.type == "reference" and literals.is_resource_type(modifier) else ""
    if kind:
        if parameter.targets and kind not in parameter.targets:
            raise _no_target(parameter, kind)
        modifier = ""
    read = _reader(parameter, modifier)
    values = _values(asked, parameter.type, text, read, name)
    if parameter.type == "reference" and not modifier:
        values = _pointed(parameter, kind, values, name)
    pid = parameter.of_type if modifier == "of-type" else parameter.pid
    return Clause(parameter.code, parameter.type, pid, values, "" if modifier == "of-type" else modifier)


def _values(asked: Asked, kind: ParamType, text: str, read: literals.Reader, name: str) -> tuple[Value, ...]:
    """The alternatives; a reference to this server by its URL also as it is written.

    A canonical stays a URL for good, and a reference that was stored before its base became this server's has it still.
    """
    values = literals.values(text, read, name, asked.reading, MAX_VALUES)
    if kind != "reference" or ":" not in text:
        return values
    as_written = literals.values(text, read, name, asked.reading.as_written(), MAX_VALUES)
    return tuple(dict.fromkeys((*values, *as_written)))


def _composite(asked: Asked, parameter: Parameter, modifier: str, text: str) -> Clause:
    """`code$value`: what is searched for stands in the rows beside the code."""
    shape = parameter.composite
    if shape is None:
        raise absent(f"`{parameter.code}` is a composite parameter this server does not offer; use its parts.")
    if modifier:
        text = f"`{parameter.code}` is a composite parameter and has no modifier :{modifier[:50]}."
        raise NoModifier(text, http=400)

    found: list[Value] = []
    for context in shape.contexts:
        found += _values(asked, shape.type, text, _pair_reader(shape, context.base), parameter.code)
    return Clause(parameter.code, shape.type, parameter.pid, tuple(found))


def _pair_reader(shape: composites.Composite, base: int) -> literals.Reader:
    def read(piece: str, reading: Reading) -> Value:
        pair = literals.parts(piece, "$")
        if len(pair) != shape.parts:
            several = ("two", "three")[shape.parts - 2]
            raise Unreadable(f"it is {several} values with a $ between them (write \\$ for one inside a value)")
        code = literals.token(pair[shape.code_at], reading)
        if not code.code:
            raise Unreadable("its code is written code, system|code or |code")
        del pair[shape.code_at]
        other, *also = (literals.READERS[shape.type](one, reading) for one in pair)
        pid = composites.pid(base, code.system, code.code)
        return dataclasses.replace(other, pid=pid, also=tuple(also))

    return read


def _reader(parameter: Parameter, modifier: str) -> literals.Reader:
    own = literals.READERS[parameter.type]
    if not modifier:
        return own
    known = MODIFIERS[parameter.type]
    if modifier in known:
        return known[modifier] or own
    if modifier in TERMINOLOGY.get(parameter.type, ()):
        text = f"`{parameter.code}:{modifier}` needs the terminology service, which this server does not offer yet."
        raise NoModifier(text, code="not-supported", http=400)
    names = [":missing", *(f":{one}" for one in known)]
    if parameter.type == "reference":
        names.append(":[type]")
    text = f"`{parameter.code}` is a {parameter.type} parameter and has no modifier :{modifier[:50]}; "
    raise NoModifier(f"{text}it has {', '.join(names)}.", http=400)


def _pointed(parameter: Parameter, kind: str, values: tuple[Value, ...], name: str) -> tuple[Value, ...]:
    """References with the type that the modifier, or the only possible target, gives them."""
    only = kind or (parameter.targets[0] if len(parameter.targets) == 1 else "")
    if not only:
        return values
    try:
        return tuple(literals.typed(value, only) if kind or not value.type else value for value in values)
    except Unreadable as problem:
        raise refused(f"`{name}` cannot be read: {problem}.") from None


def _chain(asked: Asked, parameter: Parameter, modifier: str, rest: str, text: str) -> Clause:
    """`subject.name`, `subject:Patient.name`: the clause on the resources referred to."""
    if parameter.type != "reference":
        raise refused(f"`{parameter.code}` is a {parameter.type} parameter; only references have chains.")
    if modifier and not literals.is_resource_type(modifier):
        raise NoModifier(f"`{parameter.code}:{modifier}` in a chain: {modifier!r} is no resource type.", http=400)
    if modifier and parameter.targets and modifier not in parameter.targets:
        raise _no_target(parameter, modifier)
    targets = (modifier,) if modifier else parameter.targets
    head, further, _ = rest.partition(".")
    code = head.partition(":")[0]
    if code.startswith("_") or len(targets) == 1:
        able = targets
    else:
        able = tuple(kind for kind in targets if leads(kind, code, bool(further)))
    if not able:
        raise refused(
            f"`{parameter.code}.{rest}`: none of {', '.join(targets) or 'the targets'} has a parameter `{code}`."
        )
    # Patient first, so that the clause reads as people expect.
    ordered = tuple(sorted(able, key=lambda kind: (kind != "Patient", kind)))
    inner = asked.beyond(ordered, rest, text)
    return Clause(parameter.code, "reference", parameter.pid, chain_types=ordered, chain=(inner,))


def leads(kind: str, code: str, further: bool) -> bool:
    """Whether a type has the parameter, and as a reference when the chain goes on."""
    parameter = parameter_of(kind, code)
    return parameter is not None and (parameter.type == "reference" or not further)


def _no_target(parameter: Parameter, kind: str) -> NoModifier:
    return NoModifier(_never(parameter, kind), http=400)


def _never(parameter: Parameter, kind: str) -> str:
    return f"`{parameter.code}` never refers to {kind}. It refers to: {', '.join(parameter.targets)}."


def has(asked: Asked, name: str, text: str) -> Clause:
    """`_has:Observation:patient:code`: a resource that refers to the match and meets the rest."""
    pieces = name.split(":", 3)
    if len(pieces) != 4 or not literals.is_resource_type(pieces[1]) or not pieces[3]:
        raise refused(f"`{name[:200]}` is not of the form _has:Type:reference:parameter.")
    _, source, code, rest = pieces
    parameter = parameter_of(source, code)
    if parameter is None or parameter.type != "reference":
        known = sorted(one.code for one in index.parameters(source).values() if one.type == "reference")
        raise refused(f"{source} has no reference parameter `{code}`. It has: {', '.join(known)}.")
    if asked.types and parameter.targets and not set(asked.types) & set(parameter.targets):
        raise refused(_never(parameter, asked.types[0]))
    ready(parameter)
    inner = asked.beyond((source,), rest, text)
    return Clause("_has", "reference", parameter.pid, chain=(inner,), reverse=(source, parameter.pid))


# --- names -----------------------------------------------------------------------------------------------------------


def parameter_of(resource_type: str, code: str) -> Parameter | None:
    """The parameter of a type; None when it has none of that code."""
    return index.parameters(resource_type).get(code)


def known(asked: Asked, code: str, name: str) -> list[Parameter]:
    """The parameter of this code on every asked type; errors.Invalid that lists what they have."""
    types = asked.types or ("Resource",)
    found = [parameter_of(kind, code) for kind in types]
    if all(found):
        return [ready(one) for one in found if one is not None]
    lacking = next(kind for kind, one in zip(types, found, strict=True) if one is None)
    shared = set.intersection(*(set(index.parameters(kind)) for kind in types))
    if asked.depth == 0 and name != "_sort":
        shared |= {*ASKING, *RESULT, *RENDERING} - ({"_type"} if asked.types else set())
    close = get_close_matches(code, sorted(shared), n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    what = (
        f"`{code[:100]}` is no search parameter of {lacking}."
        if asked.types
        else f"`{code[:100]}` needs a resource type."
    )
    raise refused(f"{what}{hint} Known are: {', '.join(sorted(shared))}.")


def ready(parameter: Parameter) -> Parameter:
    """errors.Unsupported while the rows of a new parameter are still being made: an answer would lack resources."""
    if not parameter.ready:
        raise absent(
            f"`{parameter.code}` ({parameter.url}) is being indexed; search by it when the reindex is through."
        )
    return parameter


def merged(made: list[Clause], name: str) -> Clause:
    """One clause for several types, whose index ids differ and nothing else."""
    first = made[0]
    for other in made[1:]:
        joined = _joined(first, other)
        if joined is None:
            raise refused(
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
    same: dict[str, Any] = {"pid": 0, "pids": (), "chain": (), "chain_types": ()}
    if dataclasses.replace(left, **same) != dataclasses.replace(right, **same):
        return None
    pids = tuple(dict.fromkeys((*(left.pids or (left.pid,)), *(right.pids or (right.pid,)))))
    kinds = tuple(dict.fromkeys((*left.chain_types, *right.chain_types)))
    return dataclasses.replace(left, pids=pids if len(pids) > 1 else (), chain=tuple(inner), chain_types=kinds)
