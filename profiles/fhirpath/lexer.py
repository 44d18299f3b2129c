"""Cuts a FHIRPath expression into tokens that know where they stand.

Hides the lexical grammar: comments, escapes, date and time literals, delimited identifiers.

Sources: http://hl7.org/fhirpath/N1/ (appendix B, grammar), section "Literals" and "Comments".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from profiles.fhirpath.errors import syntax_error

MAX_LENGTH = 65_536

Kind = Literal["name", "quoted", "string", "number", "date", "datetime", "time", "external", "special", "op", "end"]

_TOKEN = re.compile(
    r"""
    (?P<space>(?:[ \t\r\n\f\v\u00a0]+|//[^\r\n]*|/\*(?:[^*]|\*(?!/))*\*/)+)
  | (?P<datetime>@\d{4}(?:-\d{2}(?:-\d{2})?)?T(?:\d{2}(?::\d{2}(?::\d{2}(?:\.\d+)?)?)?(?:Z|[+-]\d{2}:\d{2})?)?)
  | (?P<date>@\d{4}(?:-\d{2}(?:-\d{2})?)?)
  | (?P<time>@T\d{2}(?::\d{2}(?::\d{2}(?:\.\d+)?)?)?)
  | (?P<number>\d+(?:\.\d+)?)
  | (?P<string>'(?:[^'\\]|\\.)*')
  | (?P<quoted>`(?:[^`\\]|\\.)*`)
  | (?P<external>%(?:[A-Za-z_][A-Za-z0-9_]*|`(?:[^`\\]|\\.)*`|'(?:[^'\\]|\\.)*'))
  | (?P<special>\$(?:this|index|total)\b)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<op><=|>=|!=|!~|/(?!\*)|[-+*&|=~<>.,()\[\]{}])
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)

_ESCAPES = {"'": "'", '"': '"', "`": "`", "\\": "\\", "/": "/", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
# What no FHIR string can hold: NUL, and half of a surrogate pair.
_NO_CHARACTER = re.compile("[\x00\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Token:
    """`text` is the content (unescaped for strings and delimited names) or the lexeme; `at` counts characters."""

    kind: Kind
    text: str
    at: int


def tokens(source: str) -> list[Token]:
    """All tokens of `source` and a closing `end` token; raises FhirPathError (syntax) with line and column."""
    if len(source) > MAX_LENGTH:
        raise syntax_error(source, MAX_LENGTH, f"the expression is longer than {MAX_LENGTH} characters")
    hostile = _NO_CHARACTER.search(source)
    if hostile is not None:
        raise syntax_error(source, hostile.start(), f"U+{ord(hostile.group()):04X} is no character of an expression")
    found: list[Token] = []
    at = 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            raise syntax_error(source, at, _complaint(source, at))
        kind = match.lastgroup
        if kind != "space":
            found.append(Token(kind, _content(source, at, str(kind), match.group()), at))  # type: ignore[arg-type]  # a group of _TOKEN
        at = match.end()
    found.append(Token("end", "", len(source)))
    return found


def _complaint(source: str, at: int) -> str:
    for start, what in (("/*", "comment"), ("'", "string"), ("`", "delimited identifier")):
        if source.startswith(start, at):
            return f"this {what} is never closed"
    return f"unexpected character {source[at]!r}"


def _content(source: str, at: int, kind: str, lexeme: str) -> str:
    if kind in ("string", "quoted"):
        return _unescape(source, at, lexeme[1:-1])
    if kind == "external":
        return _unescape(source, at, lexeme[2:-1]) if lexeme[1] in "`'" else lexeme[1:]
    return lexeme


def _unescape(source: str, at: int, body: str) -> str:
    if "\\" not in body:
        return body

    def char(match: re.Match[str]) -> str:
        code = match.group(1)
        if len(code) == 5:
            return chr(int(code[1:], 16))
        if code not in _ESCAPES:
            raise syntax_error(
                source, at, f"\\{code} is no escape; use one of \\' \\\" \\` \\\\ \\/ \\f \\n \\r \\t \\uXXXX"
            )
        return _ESCAPES[code]

    # Two \\u escapes may spell one character outside the BMP, as in JSON.
    try:
        text = _ESCAPE.sub(char, body).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise syntax_error(source, at, "a \\u escape spells half of a surrogate pair") from None
    if "\0" in text:
        raise syntax_error(source, at, "\\u0000 is no character of a string")
    return text
