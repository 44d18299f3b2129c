"""The grammar of UCUM codes: text in, tree out, with bounds for hostile text.

Hides the lexical rules: brackets belong to a symbol, digits that end a symbol are its exponent, annotations end a
symbol and mean nothing. Which symbols exist is not decided here (see `profiles.ucum.table`).
The grammar is the Backus-Naur form of the specification, plus an annotation after a number (`1{cells}`), which the
official functional tests ask for; an exponent after a number or a closing parenthesis is refused, as there.

Normative: https://ucum.org/ucum sections 3 to 10 and exhibit 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LENGTH = 255
MAX_NESTING = 16
MAX_EXPONENT = 99
MAX_DIGITS = 30

# A symbol character outside brackets; inside brackets every printable ASCII character but a bracket.
_SYMBOL = re.compile(r"(?:[!#-'*,0-9:;<>?@A-Z\\^_`a-z|~]|\[[!-Z\\^-~]*\])+")
_EXPONENT = re.compile(r"[+-]?[0-9]*")
_ANNOTATION = re.compile(r"\{[!-z|~]*\}")
_DIGITS = "0123456789"


class UcumError(ValueError):
    """A code that is no UCUM unit, or a conversion that has no meaning; the message says what to write instead.

    `code` is the text refused (cut when long); `position` counts its characters from 1, and is 0 when the whole is
    meant.
    """

    def __init__(self, message: str, code: str = "", position: int = 0) -> None:
        shown = code if len(code) <= 60 else code[:57] + "..."
        where = f" at character {position}" if position else ""
        super().__init__(f"'{shown}'{where}: {message}" if code else message)
        self.message = message
        self.code = code
        self.position = position


@dataclass(frozen=True, slots=True)
class Number:
    """A positive integer factor."""

    value: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A unit atom with or without prefix, raised to `exponent`; `at` is its offset in the code, from 0."""

    text: str
    exponent: int
    at: int


@dataclass(frozen=True, slots=True)
class Group:
    """A term in parentheses."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One component of a term: `divided` when a solidus stands before it; `annotation` without its braces or None."""

    body: Number | Symbol | Group
    divided: bool
    annotation: str | None = None


ONE = Number(1)


def read(code: str) -> tuple[Part, ...]:
    """The components of `code`, in order.

    Raises UcumError at the first character that breaks the grammar, and beyond MAX_LENGTH characters, MAX_NESTING
    parentheses, exponents of MAX_EXPONENT or numbers of MAX_DIGITS digits.
    """
    if not code:
        raise UcumError("the unit is empty: write 1 for a plain number")
    if len(code) > MAX_LENGTH:
        raise UcumError(f"longer than {MAX_LENGTH} characters", code)
    parts, end = _term(code, 0, 0)
    if end < len(code):
        raise UcumError("a closing parenthesis without an opening one", code, end + 1)
    return parts


def _term(code: str, at: int, depth: int) -> tuple[tuple[Part, ...], int]:
    """The components from offset `at` to the end of the text or of the parentheses, and where that is."""
    parts: list[Part] = []
    divided = depth == 0 and code.startswith("/", at)
    at += divided
    while True:
        part, at = _component(code, at, depth, divided)
        parts.append(part)
        if at == len(code) or code[at] == ")":
            return tuple(parts), at
        if code[at] not in "./":
            raise _unexpected(code, at)
        divided = code[at] == "/"
        at += 1


def _component(code: str, at: int, depth: int, divided: bool) -> tuple[Part, int]:
    body: Number | Symbol | Group
    if code.startswith("{", at):
        body = ONE
    elif code.startswith("(", at):
        if depth == MAX_NESTING:
            raise UcumError(f"more than {MAX_NESTING} parentheses inside each other", code, at + 1)
        inner, at = _term(code, at + 1, depth + 1)
        if at == len(code):
            raise UcumError("a parenthesis is not closed", code, at)
        return Part(Group(inner), divided), at + 1
    else:
        body, at = _simple(code, at)
    if code.startswith("{", at):
        found = _ANNOTATION.match(code, at)
        if found is None:
            raise _bad_annotation(code, at)
        return Part(body, divided, found.group()[1:-1]), found.end()
    return Part(body, divided), at


def _simple(code: str, at: int) -> tuple[Number | Symbol, int]:
    found = _SYMBOL.match(code, at)
    if found is None:
        raise _unexpected(code, at)
    run = found.group()
    end = found.end()
    name = run.rstrip(_DIGITS)
    if not name:
        if len(run) > MAX_DIGITS:
            raise UcumError(f"a number of more than {MAX_DIGITS} digits", code, at + 1)
        if int(run) == 0:
            raise UcumError("a factor of 0 makes no unit", code, at + 1)
        return Number(int(run)), end
    digits = run[len(name) :]
    if not digits:
        digits = _EXPONENT.match(code, end).group()  # type: ignore[union-attr]  # it may match nothing, never fail
        if digits in ("+", "-"):
            raise UcumError("an exponent needs digits after its sign", code, end + 1)
        end += len(digits)
    if len(digits) > MAX_DIGITS or abs(int(digits or 1)) > MAX_EXPONENT:
        raise UcumError(f"an exponent beyond {MAX_EXPONENT}", code, at + len(name) + 1)
    return Symbol(name, int(digits or 1), at), end


def _unexpected(code: str, at: int) -> UcumError:
    if at == len(code):
        return UcumError("a unit is missing at the end", code, at)
    char = code[at]
    known = {
        "\u00b5": "u (micro)",
        "\u03bc": "u (micro)",
        "\u00b0": "Cel or deg",
        "\u03a9": "Ohm",
        "\u00b2": "2",
        "\u00b3": "3",
    }
    if char in known:
        message = f"'{char}' is not ASCII: write {known[char]}"
    elif not "!" <= char <= "~":
        message = f"{char!r} cannot stand in a unit: only printable ASCII without spaces"
    elif char in "+-":
        message = f"'{char}' follows no unit: powers of ten are written 10*3, 10*-3"
    elif char in "[]":
        message = "square brackets must stand in pairs, not inside each other"
    elif char == ")":
        message = "a unit is missing before the parenthesis"
    elif char in "./":
        message = f"a unit is missing before '{char}'"
    else:
        message = f"'{char}' cannot stand here: units are joined by '.' or '/'"
    return UcumError(message, code, at + 1)


def _bad_annotation(code: str, at: int) -> UcumError:
    end = code.find("}", at)
    inside = code[at + 1 : end if end > 0 else len(code)]
    for offset, char in enumerate(inside):
        if not "!" <= char <= "~":
            return UcumError(f"{char!r} in an annotation: only printable ASCII without spaces", code, at + 2 + offset)
    return UcumError("an annotation is not closed, or holds another one", code, at + 1)
