"""Full text: the words of a resource, and what `_text` and `_content` ask of them.

Words are folded as strings are (no case, no accents) and cut at everything that is no letter and no digit, by this
module alone: both databases are given words with spaces between them. A query is words (all of them), `"a phrase"`,
`word*`, `OR`, `NOT` or `-`, and parentheses; AND may be written.

Source: https://hl7.org/fhir/R4/search.html#content (its example: `_text=(bone OR liver) and metastases`)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fhir_server import errors
from fhir_server.search.plan import Clause, Value, both, either, unless
from fhir_server.search.values import fold

# Changes with how words are cut: a reindex is then due.
VERSION = "1"

# The ids of the two kinds of rows, as those of parameters.
NAMES = {"_text": 1, "_content": 2}
MAX_TERMS = 50
MAX_NESTED = 20

# What is read of one resource: a longer text is found by its beginning.
MAX_CHARACTERS = 40_000
MAX_WORD = 60
_DEEPEST = 100
_WORD = re.compile(r"[^\W_]+")
_TAG = re.compile(r"<[^>]*>|&#?\w+;")

# Values that name a thing for machines, found by their own parameters, not as words; and the narrative.
_NOT_READ = frozenset(
    (
        "resourceType", "id", "meta", "system", "url", "reference", "contentType", "data", "hash", "versionId",
        "status", "div",
    )
)  # fmt: skip


def rows(resource: Mapping[str, Any]) -> list[tuple[int, str]]:
    """The index rows of a resource's words."""
    kinds = ((NAMES["_text"], narrative(resource)), (NAMES["_content"], content(resource)))
    return [row for row in kinds if row[1]]


def narrative(resource: Mapping[str, Any]) -> str:
    """The words of the narrative, '' without one."""
    text = resource.get("text")
    div = text.get("div") if type(text) is dict else None
    return words(_TAG.sub(" ", div[: MAX_CHARACTERS * 2])) if type(div) is str else ""


def content(resource: Mapping[str, Any]) -> str:
    """The words of the whole resource but its narrative: names, titles, displays, notes, identifiers, codes."""
    found: list[str] = []
    _gather(resource, found.append, 0)
    return words(" ".join(found)) if found else ""


def _gather(value: Mapping[str, Any], add: Callable[[str], object], depth: int) -> None:
    if depth > _DEEPEST:
        return
    for name, inner in value.items():
        kind = type(inner)
        if kind is str:
            if name not in _NOT_READ:
                add(inner)
        elif kind is list:
            for one in inner:
                if type(one) is dict:
                    _gather(one, add, depth + 1)
                elif type(one) is str and name not in _NOT_READ:
                    add(one)
        elif kind is dict and name not in _NOT_READ:
            _gather(inner, add, depth + 1)


def words(text: str) -> str:
    """The folded words of a text with a space between them, in their order; what is longer than a word is left out."""
    found = _WORD.findall(fold(text[:MAX_CHARACTERS]))
    if len(max(found, key=len, default="")) > MAX_WORD:
        found = [word for word in found if len(word) <= MAX_WORD]
    return " ".join(found)


# --- what is asked ---------------------------------------------------------------------------------------------------

_PIECE = re.compile(r'\s*(?:(\()|(\))|"([^"]*)"|(-(?=[\w"(]))|([^\s()"]+))')


def clause(name: str, text: str) -> Clause:
    """The clause of `_text=...` or `_content=...`. errors.Invalid (400) with the form, TooLarge beyond 50 terms."""
    pieces = list(_pieces(text, name))
    if sum(kind in ("word", "phrase") for kind, _ in pieces) > MAX_TERMS:
        raise errors.TooLarge(f"`{name}` looks for at most {MAX_TERMS} words at once.")
    found, rest = _alternatives(name, pieces, 0, 0)
    if rest != len(pieces):
        raise _unreadable(name, f"`{pieces[rest][1]}` comes where a word is expected")
    return found


def _pieces(text: str, name: str) -> Iterator[tuple[str, str]]:
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _PIECE.match(text, at)
        if match is None:
            raise _unreadable(name, "a quote is not closed")
        at = match.end()
        opening, closing, phrase, minus, word = match.groups()
        if opening or closing:
            yield ("(" if opening else ")"), match[0].strip()
        elif phrase is not None:
            yield "phrase", phrase
        elif minus:
            yield "not", minus
        elif word.upper() in ("AND", "OR", "NOT"):
            yield word.lower(), word
        else:
            yield "word", word


def _alternatives(name: str, pieces: list[tuple[str, str]], at: int, depth: int) -> tuple[Clause, int]:
    found: list[Clause] = []
    while True:
        one, at = _together(name, pieces, at, depth)
        found.append(one)
        if at >= len(pieces) or pieces[at][0] != "or":
            return either(*found), at
        at += 1


def _together(name: str, pieces: list[tuple[str, str]], at: int, depth: int) -> tuple[Clause, int]:
    found: list[Clause] = []
    while at < len(pieces) and pieces[at][0] not in ("or", ")"):
        if pieces[at][0] == "and" and found:
            at += 1
        one, at = _term(name, pieces, at, depth)
        found.append(one)
    if not found:
        raise _unreadable(name, "a word is missing")
    return both(*found), at


def _term(name: str, pieces: list[tuple[str, str]], at: int, depth: int) -> tuple[Clause, int]:
    if depth > MAX_NESTED:
        raise errors.TooLarge(f"`{name}` nests at most {MAX_NESTED} parentheses.")
    if at >= len(pieces):
        raise _unreadable(name, "a word is missing at the end")
    kind, text = pieces[at]
    if kind == "not":
        one, at = _term(name, pieces, at + 1, depth + 1)
        return unless(one), at
    if kind == "(":
        one, at = _alternatives(name, pieces, at + 1, depth + 1)
        if at >= len(pieces) or pieces[at][0] != ")":
            raise _unreadable(name, "a parenthesis is not closed")
        return one, at + 1
    if kind not in ("word", "phrase"):
        raise _unreadable(name, f"`{text}` comes where a word is expected")
    open_ended = kind == "word" and text.endswith("*")
    looked = words(text)
    if not looked:
        raise _unreadable(name, f"`{text[:100]}` has no letter and no digit")
    value = Value(text=looked, code="*" if open_ended else None)
    return Clause(name, "text", NAMES[name], (value,)), at + 1


def _unreadable(name: str, why: str) -> errors.Invalid:
    text = f'`{name}` cannot be read: {why}. It takes words, "a phrase", begin*, OR, NOT and parentheses.'
    return errors.Invalid(text, http=400)
