"""Reads a FHIRPath expression into a tree: a Pratt parser over the token list.

Hides precedence and the few context rules (keywords that may be names, units after numbers).

Source: http://hl7.org/fhirpath/N1/ (appendix B, grammar; section 6.8, operator precedence).
"""

from __future__ import annotations

from decimal import Decimal
from typing import NoReturn

from profiles.fhirpath import values
from profiles.fhirpath.errors import syntax_error
from profiles.fhirpath.lexer import Token, tokens
from profiles.fhirpath.syntax import (
    Binary,
    Call,
    Constants,
    Either,
    Expr,
    External,
    Item,
    Member,
    Sign,
    Special,
    TypeTest,
    children,
)

MAX_DEPTH = 100
MAX_HEIGHT = 200
MAX_DIGITS = 400

# Left binding power: a higher one binds tighter.
_POWER = {
    "implies": 10,
    "or": 20, "xor": 20,
    "and": 30,
    "in": 40, "contains": 40,
    "=": 50, "~": 50, "!=": 50, "!~": 50,
    "<": 60, "<=": 60, ">": 60, ">=": 60,
    "|": 70,
    "is": 80, "as": 80,
    "+": 90, "-": 90, "&": 90,
    "*": 100, "/": 100, "div": 100, "mod": 100,
    "[": 120,
    ".": 130,
}  # fmt: skip
_SIGN_POWER = 110
_WORDS = frozenset(("implies", "or", "xor", "and", "in", "contains", "is", "as", "div", "mod"))
_NAMES_TOO = frozenset(("as", "contains", "in", "is"))
_LITERALS = frozenset(("string", "external", "special", "number", "date", "datetime", "time"))
_RESERVED = (_WORDS - _NAMES_TOO) | {"true", "false"}


def parse(source: str) -> Expr:
    """The tree of `source`; raises FhirPathError (kind `syntax`) with line and column."""
    parser = _Parser(source)
    tree = parser.expression(0)
    if parser.token.kind != "end":
        parser.fail(f"unexpected {parser.token.text!r}")
    _measure(source, tree)
    return tree


def _measure(source: str, tree: Expr) -> None:
    """Refuses a tree so high (a chain of hundreds of steps) that walking it recursively would exhaust the stack."""
    pending: list[tuple[Expr, int]] = [(tree, 1)]
    while pending:
        node, height = pending.pop()
        if height > MAX_HEIGHT:
            raise syntax_error(source, node.at, f"more than {MAX_HEIGHT} operators and steps hang on one another")
        pending.extend((child, height + 1) for child in children(node))


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = tokens(source)
        self.place = 0
        self.token = self.tokens[0]
        self.depth = 0
        # Whether the token stands right behind a minus sign.
        self.below = False

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        if self.token.kind == "end" and at is None:
            message = "the expression ends too early"
        raise syntax_error(self.source, self.token.at if at is None else at, message)

    def advance(self) -> Token:
        token = self.token
        self.place += 1
        self.token = self.tokens[min(self.place, len(self.tokens) - 1)]
        return token

    def accept(self, text: str) -> bool:
        if self.token.kind == "op" and self.token.text == text:
            self.advance()
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"expected {text!r}, found {self.token.text!r}")

    def expression(self, power: int) -> Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH} levels", self.token.at)
        left = self.prefix()
        while (op := self.operator()) is not None and _POWER[op] > power:
            left = self.infix(left, op)
        self.depth -= 1
        return left

    def operator(self) -> str | None:
        token = self.token
        if (token.kind == "op" and token.text in _POWER) or (token.kind == "name" and token.text in _WORDS):
            return token.text
        return None

    def infix(self, left: Expr, op: str) -> Expr:
        at = self.advance().at
        if op == ".":
            return self.step(left)
        if op == "[":
            index = self.expression(0)
            self.expect("]")
            return Item(left, index, at)
        if op in ("is", "as"):
            return TypeTest(op, left, self.qualified(), at)
        right = self.expression(_POWER[op])
        if op == "|":
            return Either((*left.parts, right) if isinstance(left, Either) else (left, right), at)
        return Binary(op, left, right, at)

    def prefix(self) -> Expr:
        token, below = self.token, self.below
        self.below = False
        if token.kind == "op":
            if token.text in ("+", "-"):
                self.advance()
                self.below = token.text == "-"
                return Sign(token.text, self.expression(_SIGN_POWER), token.at)
            if self.accept("("):
                inner = self.expression(0)
                self.expect(")")
                return inner
            if self.accept("{"):
                self.expect("}")
                return Constants((), token.at)
            self.fail(f"unexpected {token.text!r}")
        if token.kind in ("name", "quoted"):
            if token.kind == "name" and token.text in ("true", "false"):
                self.advance()
                return Constants((token.text == "true",), token.at)
            return self.step(None)
        return self.literal(below)

    def step(self, left: Expr | None) -> Expr:
        """A name, a function call or (after a dot too, says the grammar) `$this`, `$index`, `$total`."""
        token = self.token
        if token.kind == "special" and left is not None:
            self.fail(f"{token.text} cannot follow a dot")
        if token.kind not in ("name", "quoted") or (token.kind == "name" and token.text in _RESERVED):
            self.fail(f"expected a name, found {token.text!r}")
        self.advance()
        if not self.accept("("):
            return Member(left, token.text, token.at)
        args: list[Expr] = []
        if not self.accept(")"):
            args.append(self.expression(0))
            while self.accept(","):
                args.append(self.expression(0))
            self.expect(")")
        return Call(left, token.text, tuple(args), token.at)

    def qualified(self) -> str:
        parts: list[str] = []
        while True:
            token = self.token
            if token.kind not in ("name", "quoted"):
                self.fail(f"expected a type name, found {token.text!r}")
            parts.append(self.advance().text)
            if len(parts) == 2 or not self.accept("."):
                return ".".join(parts)

    def literal(self, below: bool) -> Expr:
        token = self.token
        if token.kind not in _LITERALS:
            self.fail(f"unexpected {token.text!r}")
        self.advance()
        if token.kind not in ("string", "external") and len(token.text) > MAX_DIGITS:
            self.fail(f"a {token.kind} of more than {MAX_DIGITS} digits", token.at)
        if token.kind == "string":
            return Constants((token.text,), token.at)
        if token.kind == "external":
            return External(token.text, token.at)
        if token.kind == "special":
            return Special(token.text, token.at)
        if token.kind == "number":
            return self.number(token, below)
        value = values.temporal_literal(token.kind, token.text)
        if value is None:
            self.fail(f"{token.text} is no {token.kind} of the calendar", token.at)
        return Constants((value,), token.at)

    def number(self, token: Token, below: bool) -> Expr:
        number = values.exact(token.text) if "." in token.text else Decimal(int(token.text))
        unit = self.token
        if unit.kind == "string":
            self.advance()
            return Constants((values.Quantity(number, unit.text),), token.at)
        if unit.kind == "name" and unit.text in values.CALENDAR_UNITS:
            self.advance()
            return Constants((values.Quantity(number, unit.text),), token.at)
        if "." in token.text:
            return Constants((number,), token.at)
        whole = int(token.text)
        # Integer is 32 bits in the normative release; its least, -2147483648, is written as a sign and 2147483648, to
        # which the sign belongs unless a step or an indexer binds tighter.
        least = below and whole == 2**31 and not (self.token.kind == "op" and self.token.text in (".", "["))
        if whole > 2**31 - 1 and not least:
            self.fail(f"{token.text} does not fit a 32-bit Integer; write {token.text}.0 for a Decimal", token.at)
        return Constants((whole,), token.at)
