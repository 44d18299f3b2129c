r"""Reads a regular expression into a tree.

Accepts what PCRE, XML Schema and ECMAScript share: literals, `.`, classes, `\d \w \s \b`, `\p{L}`, anchors, groups
(capturing, named, not capturing), look-ahead, `* + ? {n,m}` greedy and lazy, and `(?i)` at the start. Back-references,
look-behind, possessive and atomic groups are refused by name.

Source: https://www.pcre.org/current/doc/html/pcre2syntax.html
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

from profiles.fhirpath.errors import FhirPathError

MAX_PATTERN = 10_000
MAX_COUNT = 1_000
MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class CharSet:
    """One character out of a set; `source` is Python's notation, '' when it has none."""

    source: str
    test: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Assert:
    """A place: start, end, word boundary."""

    source: str
    check: Callable[[str, int], bool]


@dataclass(frozen=True, slots=True)
class Seq:
    """One after the other."""

    parts: tuple[Regex, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of several."""

    parts: tuple[Regex, ...]


@dataclass(frozen=True, slots=True)
class Rep:
    """`least` to `most` times (None: no limit)."""

    body: Regex
    least: int
    most: int | None
    greedy: bool


@dataclass(frozen=True, slots=True)
class Group:
    """A group; `number` 0 when it does not capture."""

    body: Regex
    number: int


@dataclass(frozen=True, slots=True)
class Look:
    """Look-ahead; `wanted` False for the negative one."""

    body: Regex
    wanted: bool


Regex: TypeAlias = CharSet | Assert | Seq | Alt | Rep | Group | Look


@dataclass(frozen=True, slots=True)
class Pattern:
    """A whole pattern: its tree, how many groups it captures, their names, and whether case counts."""

    root: Regex
    groups: int
    ignore_case: bool
    names: dict[str, int] = field(default_factory=dict)


def parse(pattern: str) -> Pattern:
    """The tree of `pattern`; FhirPathError naming the character where it goes wrong."""
    if len(pattern) > MAX_PATTERN:
        raise FhirPathError(f"a regular expression of more than {MAX_PATTERN} characters")
    reader = _Reader(pattern)
    root = reader.alternatives()
    if reader.at < len(pattern):
        reader.fail("an unmatched )")
    return Pattern(root, reader.groups, reader.ignore_case, reader.names)


def _word(char: str) -> bool:
    return char == "_" or char.isalnum()


def _boundary(text: str, at: int) -> bool:
    before = at > 0 and _word(text[at - 1])
    after = at < len(text) and _word(text[at])
    return before != after


_START = Assert(r"\A", lambda text, at: at == 0)
_END = Assert(r"\Z", lambda text, at: at == len(text))
_ASSERTS = {
    "b": Assert(r"\b", _boundary),
    "B": Assert(r"(?!\b)", lambda text, at: not _boundary(text, at)),
    "A": _START,
    "z": _END,
    "Z": _END,
}
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": lambda char: char.isdecimal(),
    "w": _word,
    "s": lambda char: char.isspace(),
    "D": lambda char: not char.isdecimal(),
    "W": lambda char: not _word(char),
    "S": lambda char: not char.isspace(),
}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "e": "\x1b", "a": "\a", "0": "\0"}


_TWO_HEX, _FOUR_HEX = re.compile(r"[0-9A-Fa-f]{2}"), re.compile(r"[0-9A-Fa-f]{4}")


class _Reader:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.groups = 0
        self.depth = 0
        self.names: dict[str, int] = {}
        self.ignore_case = pattern.startswith("(?i)")
        if self.ignore_case:
            self.at = 4

    def fail(self, what: str) -> NoReturn:
        raise FhirPathError(f"the regular expression has {what} at character {self.at + 1}")

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def accept(self, text: str) -> bool:
        if self.peek(text):
            self.at += len(text)
            return True
        return False

    def alternatives(self) -> Regex:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"more than {MAX_DEPTH} nested groups")
        parts = [self.sequence()]
        while self.accept("|"):
            parts.append(self.sequence())
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))

    def sequence(self) -> Regex:
        parts: list[Regex] = []
        while self.at < len(self.pattern) and not self.peek("|") and not self.peek(")"):
            parts.append(self.repeated(self.atom()))
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def repeated(self, body: Regex) -> Regex:
        while (counts := self.counts()) is not None:
            if isinstance(body, (Assert, Look)):
                self.fail("a repetition of a place")
            greedy = not self.accept("?")
            if self.peek("+"):
                self.fail("a possessive repetition, which is not supported")
            body = Rep(body, counts[0], counts[1], greedy)
        return body

    def counts(self) -> tuple[int, int | None] | None:
        for mark, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.accept(mark):
                return counts
        match = re.compile(r"\{(\d{1,6})(?:(,)(\d{1,6})?)?\}").match(self.pattern, self.at)
        if match is None:
            return None
        least = int(match[1])
        most = int(match[3]) if match[3] else (None if match[2] else least)
        if least > MAX_COUNT or (most is not None and (most > MAX_COUNT or most < least)):
            self.fail(f"a count that is out of order or above {MAX_COUNT}")
        self.at = match.end()
        return least, most

    def atom(self) -> Regex:
        char = self.pattern[self.at]
        if char in "*+?":
            self.fail(f"a {char} with nothing to repeat")
        self.at += 1
        if char == "(":
            return self.group()
        if char == "[":
            return self.char_class()
        if char == ".":
            return CharSet(r"[\s\S]", lambda _: True)
        if char == "^":
            return _START
        if char == "$":
            return _END
        if char == "\\":
            return self.escape()
        return self.literal(char)

    def literal(self, char: str) -> CharSet:
        if self.ignore_case:
            folded = char.casefold()
            return CharSet(re.escape(char), lambda other: other.casefold() == folded)
        return CharSet(re.escape(char), char.__eq__)

    def group(self) -> Regex:
        number = 0
        look: bool | None = None
        if self.accept("?:"):
            pass
        elif self.accept("?="):
            look = True
        elif self.accept("?!"):
            look = False
        elif self.peek("?P<") or (self.peek("?<") and not self.peek("?<=") and not self.peek("?<!")):
            number = self.named()
        elif self.peek("?"):
            self.fail("a kind of group that is not supported (look-behind, atomic, conditional, inline flags)")
        else:
            number = self.groups = self.groups + 1
        body = self.alternatives()
        if not self.accept(")"):
            self.fail("a group that is never closed")
        return Group(body, number) if look is None else Look(body, look)

    def named(self) -> int:
        match = re.compile(r"\?P?<([A-Za-z_][A-Za-z0-9_]*)>").match(self.pattern, self.at)
        if match is None:
            self.fail("a group with a bad name")
        self.at = match.end()
        self.groups += 1
        self.names[match[1]] = self.groups
        return self.groups

    def escape(self) -> Regex:
        if self.at >= len(self.pattern):
            self.fail("a backslash at its end")
        char = self.pattern[self.at]
        if char in _ASSERTS:
            self.at += 1
            return _ASSERTS[char]
        if char in "123456789" or char in "kg":
            self.fail("a back-reference, which is not supported")
        source, test = self.escaped()
        return CharSet(source, test)

    def escaped(self) -> tuple[str, Callable[[str], bool]]:
        """(Python source or '', test) of an escape that stands for one character or a class; the backslash is read."""
        char = self.pattern[self.at]
        self.at += 1
        if char in _CLASSES:
            return "\\" + char, _CLASSES[char]
        if char in "pP":
            return "", self.category(char == "P")
        spelled = self.spelled(char)
        found = self.literal(spelled)
        return found.source, found.test

    def category(self, inverse: bool) -> Callable[[str], bool]:
        match = re.compile(r"\{(\^?)([A-Z][a-z]?|Is\w+)\}|([A-Z])").match(self.pattern, self.at)
        if match is None or (match[2] or match[3]).startswith("Is"):
            self.fail("a character property that is not supported")
        self.at = match.end()
        wanted, negative = match[2] or match[3], inverse != bool(match[1])
        return lambda char: unicodedata.category(char).startswith(wanted) != negative

    def spelled(self, char: str) -> str:
        """The character an escape such as `\\n`, `\\x41`, `\\u0041` or `\\.` spells; the letter is read already."""
        if char in "xu":
            match = (_TWO_HEX if char == "x" else _FOUR_HEX).match(self.pattern, self.at)
            if match is None:
                self.fail(f"a \\{char} without its digits")
            self.at = match.end()
            return chr(int(match[0], 16))
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char.isalnum():
            self.fail(f"an escape \\{char} that is not supported")
        return char

    def char_class(self) -> CharSet:
        inverse = self.accept("^")
        tests: list[Callable[[str], bool]] = []
        sources: list[str] = []
        first = True
        while first or not self.peek("]"):
            if self.at >= len(self.pattern):
                self.fail("a class that is never closed")
            if self.peek("[:"):
                self.fail("a POSIX class, which is not supported")
            first = False
            source, test = self.class_item()
            sources.append(source)
            tests.append(test)
        self.at += 1
        body = "" if "" in sources else f"[{'^' if inverse else ''}{''.join(sources)}]"
        kept = tuple(tests)
        return CharSet(body, lambda char: any(test(char) for test in kept) != inverse)

    def class_item(self) -> tuple[str, Callable[[str], bool]]:
        low = self.class_char()
        if not isinstance(low, str):
            return low
        if self.peek("-") and not self.peek("-]"):
            mark = self.at
            self.at += 1
            high = self.class_char()
            if isinstance(high, str):
                if high < low:
                    self.fail("a range that runs backwards")
                return f"{_quoted(low)}-{_quoted(high)}", self.ranged(low, high)
            self.at = mark
        return _quoted(low), self.ranged(low, low)

    def ranged(self, low: str, high: str) -> Callable[[str], bool]:
        if self.ignore_case:
            return lambda char: any(low <= form <= high for form in (char, char.lower(), char.upper()))
        return lambda char: low <= char <= high

    def class_char(self) -> str | tuple[str, Callable[[str], bool]]:
        """One character of a class, or (source, test) of a class escape within it."""
        if self.at >= len(self.pattern):
            self.fail("a class that is never closed")
        char = self.pattern[self.at]
        self.at += 1
        if char != "\\":
            return char
        if self.at >= len(self.pattern):
            self.fail("a backslash at its end")
        char = self.pattern[self.at]
        if char in _CLASSES or char in "pP":
            return self.escaped()
        self.at += 1
        return "\b" if char == "b" else self.spelled(char)


def _quoted(char: str) -> str:
    return "\\" + char if char in "\\]^-[&~|" else char
