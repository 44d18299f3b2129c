"""`_filter`: one expression with and, or, not, comparisons and brackets, as the clauses it means.

    filter     = term *(("and" / "or") term)            ; from left to right, neither binds tighter
    term       = "not" "(" filter ")" / "(" filter ")" / path operator value
    path       = name *(["[" filter "]"] "." name)      ; brackets: on the resource referred to

A comparison holds when one of the values does, `ne` too; `pr` asks whether there is any. What an operator means for a
type is the table below. Nesting, comparisons and length are bounded.

Source: https://hl7.org/fhir/R4/search_filter.html
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass

from fhir_server import errors
from fhir_server.search import literals
from fhir_server.search.clauses import TERMINOLOGY, Asked, absent, known, leads, merged, plain, refused
from fhir_server.search.index import Parameter
from fhir_server.search.plan import Clause, both, either, unless

MAX_NESTED = 20
MAX_COMPARISONS = 200
MAX_LENGTH = 20_000

_RANGES = ("eq", "ne", "gt", "lt", "ge", "le", "ap", "sa", "eb")

# What each type is compared by; the modifier or prefix that means the same.
OPERATORS: dict[str, dict[str, str]] = {
    "string": {"eq": "equals", "ne": "unequal", "co": "contains", "sw": "", "ew": "ends"},
    "token": {"eq": "", "ne": "unequal"},
    "date": {**{op: op for op in _RANGES}, "po": "po"},
    "number": {op: op for op in _RANGES},
    "quantity": {op: op for op in _RANGES},
    "reference": {"eq": "", "re": "", "ne": "unequal"},
    "uri": {"eq": "", "ne": "unequal", "sw": "starts", "co": "contains", "ew": "ends"},
    "special": {},
    "composite": {},
}
ALL = frozenset((*_RANGES, "co", "sw", "ew", "pr", "po", "ss", "sb", "in", "ni", "re"))
_NEEDS_TERMINOLOGY = frozenset(("ss", "sb", "in", "ni"))

_PIECE = re.compile(r'\s*(?:([()\[\]])|"((?:[^"\\]|\\.)*)"|([^\s()\[\]"]+))', re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Piece:
    kind: str  # a bracket, "word", "text" (quoted), or "end"
    text: str
    at: int


def clause(asked: Asked, text: str) -> Clause:
    """The clause of a filter. errors.Invalid (400) with the place of what is wrong; TooLarge beyond the bounds."""
    if len(text) > MAX_LENGTH:
        raise errors.TooLarge(f"`_filter` is longer than {MAX_LENGTH} characters.")
    pieces = _cut(text)
    if sum(piece.kind == "word" and piece.text in ALL for piece in pieces) > MAX_COMPARISONS:
        raise errors.TooLarge(f"`_filter` makes more than {MAX_COMPARISONS} comparisons.")
    reader = _Reader(text, pieces)
    found = reader.filter(asked, 0)
    if reader.piece.kind != "end":
        raise reader.wrong("`and`, `or` or the end is expected")
    return found


def _cut(text: str) -> list[_Piece]:
    found: list[_Piece] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _PIECE.match(text, at)
        if match is None:
            raise refused(f"`_filter`: the quote at character {at + 1} is not closed.")
        bracket, quoted, word = match.groups()
        start = match.end() - len(match[0].lstrip())
        if bracket:
            found.append(_Piece(bracket, bracket, start))
        elif quoted is not None:
            found.append(_Piece("text", re.sub(r'\\(["\\])', r"\1", quoted), start))
        else:
            found.append(_Piece("word", word, start))
        at = match.end()
    return [*found, _Piece("end", "", end)]


class _Reader:
    """Descends through the pieces; `piece` is the one at hand."""

    def __init__(self, text: str, pieces: list[_Piece]) -> None:
        self.text, self.pieces, self.place = text, pieces, 0

    @property
    def piece(self) -> _Piece:
        return self.pieces[self.place]

    def take(self) -> _Piece:
        found = self.piece
        self.place = min(self.place + 1, len(self.pieces) - 1)
        return found

    def wrong(self, why: str) -> errors.Invalid:
        at = self.piece.at
        return refused(f"`_filter` at character {at + 1}, before `{self.text[at : at + 30]}`: {why}.")

    def expect(self, kind: str) -> None:
        if self.piece.kind != kind:
            raise self.wrong(f"`{kind}` is expected")
        self.take()

    def filter(self, asked: Asked, depth: int) -> Clause:
        """From left to right: `a or b and c` is `(a or b) and c`."""
        if depth > MAX_NESTED:
            raise errors.TooLarge(f"`_filter` nests at most {MAX_NESTED} brackets.")
        found = self.term(asked, depth)
        while self.piece.kind == "word" and self.piece.text.lower() in ("and", "or"):
            joined = both if self.take().text.lower() == "and" else either
            found = _flat(joined, found, self.term(asked, depth))
        return found

    def term(self, asked: Asked, depth: int) -> Clause:
        negated = self.piece.kind == "word" and self.piece.text.lower() == "not"
        if negated:
            self.take()
            if self.piece.kind != "(":
                raise self.wrong("`(` is expected after not")
        if self.piece.kind == "(":
            self.take()
            found = self.filter(asked, depth + 1)
            self.expect(")")
            return unless(found) if negated else found
        return self.comparison(asked, depth)

    def comparison(self, asked: Asked, depth: int) -> Clause:
        """`name op value`, or a path to it through references."""
        if self.piece.kind != "word":
            raise self.wrong("the name of a search parameter is expected")
        name, dot, rest = self.take().text.partition(".")
        if dot or self.piece.kind == "[":
            return self.reference(asked, name, rest, depth)
        if self.piece.kind != "word" or self.piece.text.lower() not in ALL:
            raise self.wrong(f"an operator is expected: {', '.join(sorted(ALL))}")
        operator = self.take().text.lower()
        if self.piece.kind not in ("word", "text"):
            raise self.wrong("a value is expected")
        value = self.take()
        found = [_compared(asked, one, operator, value) for one in known(asked, name, name)]
        return merged(found, name)

    def reference(self, asked: Asked, name: str, rest: str, depth: int) -> Clause:
        """`subject.name eq x`, `subject[active eq true].name eq x`: both on the same resource referred to."""
        if asked.depth >= MAX_NESTED:
            raise errors.TooLarge(f"`_filter` follows at most {MAX_NESTED} references in a row.")
        every = known(asked, name, name)
        if any(one.type != "reference" for one in every):
            raise self.wrong(f"`{name[:60]}` is no reference; brackets and dots lead to the resource referred to")
        types = tuple(dict.fromkeys(kind for one in every for kind in one.targets))
        conditions: list[Clause] = []
        if self.piece.kind == "[":
            self.take()
            able = self.able(types, self.piece.text.partition(".")[0])
            conditions.append(self.filter(_beyond(asked, able), depth + 1))
            self.expect("]")
            if self.piece.kind != "word" or not self.piece.text.startswith("."):
                raise self.wrong("`.` and a search parameter are expected after the brackets")
            rest, types = self.take().text[1:], able
        self.pieces[self.place - 1 : self.place] = [_Piece("word", rest, self.pieces[self.place - 1].at)]
        self.place -= 1
        able = self.able(types, rest.partition(".")[0])
        conditions.append(self.comparison(_beyond(asked, able), depth))
        made = [
            Clause(one.code, "reference", one.pid, chain_types=able, chain=tuple(conditions))
            for one in dict.fromkeys(every)
        ]
        return merged(made, name)

    def able(self, types: tuple[str, ...], code: str) -> tuple[str, ...]:
        """The types among these that have the parameter."""
        found = types if code.startswith("_") else tuple(kind for kind in types if leads(kind, code, False))
        if not found:
            raise self.wrong(f"none of {', '.join(types[:10])} has a parameter `{code[:60]}`")
        return found


def _flat(joined: Callable[..., Clause], left: Clause, right: Clause) -> Clause:
    """`a and b and c` as one clause of three parts: a long filter is no deep one."""
    kind = "and" if joined is both else "or"
    parts = left.parts if left.logic == kind else (left,)
    return joined(*parts, right)


def _beyond(asked: Asked, types: tuple[str, ...]) -> Asked:
    return dataclasses.replace(asked, types=types, depth=asked.depth + 1)


def _compared(asked: Asked, parameter: Parameter, operator: str, value: _Piece) -> Clause:
    if operator == "pr":
        if value.text not in ("true", "false"):
            raise refused(f"`_filter`: `{parameter.code} pr` is followed by true or false.")
        return plain(asked, parameter, "missing", "false" if value.text == "true" else "true")
    if operator in _NEEDS_TERMINOLOGY and parameter.type in TERMINOLOGY:
        raise absent(f"`_filter`: `{operator}` needs the terminology service, which this server does not offer yet.")
    means = OPERATORS[parameter.type].get(operator)
    if means is None:
        has = ", ".join([*OPERATORS[parameter.type], "pr"])
        raise refused(f"`_filter`: {parameter.code} is a {parameter.type}, compared by {has}; not by {operator}.")
    text = _escaped(value, parameter.type)
    if parameter.type in ("date", "number", "quantity"):
        if text[:2].isalpha() and text[:2] in literals.PREFIXES:
            raise refused(f"`_filter`: `{value.text[:60]}` is written without a prefix; the operator says it.")
        if means == "po":
            found = plain(asked, parameter, "", f"eq{text}")
            return dataclasses.replace(
                found, values=tuple(dataclasses.replace(one, prefix="ap") for one in found.values)
            )
        return plain(asked, parameter, "", means + text)
    found = plain(asked, parameter, "", text)
    return dataclasses.replace(found, modifier=means)


def _escaped(value: _Piece, kind: str) -> str:
    """The one value as the right side of a parameter; bars part a token or quantity, elsewhere they are text."""
    signs = "\\,$" if kind in ("token", "quantity") else "\\,|$"
    return "".join(f"\\{sign}" if sign in signs else sign for sign in value.text)
