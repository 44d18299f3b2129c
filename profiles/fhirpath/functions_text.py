"""The function library: strings.

Sources: http://hl7.org/fhirpath/N1/ section 5.6; matchesFull, lastIndexOf, encode, decode, escape, unescape, trim,
split and join are of the 3.0 draft, which the test suite of R4 uses.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Callable
from typing import Any

from profiles.fhirpath import regex
from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.model import Collection, system, type_of
from profiles.fhirpath.scope import Closure, Function, Scope, operand, reading, room, single, text


def string(scope: Scope, closure: Closure, what: str) -> str | None:
    """The string an argument gives, None when it is empty; FhirPathError for another type."""
    return one(closure(scope), what)


def one(items: Collection, what: str) -> str | None:
    """The only string of a collection, None when it is empty; FhirPathError for more, or for another type."""
    item = operand(items, what)
    if item is None:
        return None
    value = system(item)
    if isinstance(value, str):
        return value
    # A date that FHIR keeps as text is no string; everything else has its own functions.
    raise FhirPathError(f"{what} is a String, not {type_of(item).name}")


def _integer(scope: Scope, closure: Closure, what: str) -> int | None:
    item = single(closure(scope), what)
    value = None if item is None else system(item)
    if value is not None and type(value) is not int:
        raise FhirPathError(f"{what} is an Integer, not {type_of(item).name}")
    return value


def _with_text(name: str, run: Callable[[str, str], Any]) -> Callable[[Scope, Collection, Closure], Collection]:
    """A function of the input string and one string argument; empty when either is."""

    def call(scope: Scope, items: Collection, argument: Closure) -> Collection:
        subject, other = one(items, f"the input of {name}()"), string(scope, argument, f"the argument of {name}()")
        if subject is None or other is None:
            return []
        reading(scope.env, subject, other)
        result = run(subject, other)
        return text(scope.env, result) if isinstance(result, str) else [result]

    return call


def _with_pattern(name: str, run: Callable[..., bool]) -> Callable[[Scope, Collection, Closure], Collection]:
    """A test of the input string by a regular expression; empty when either is."""

    def call(scope: Scope, items: Collection, argument: Closure) -> Collection:
        subject, pattern = one(items, f"the input of {name}()"), string(scope, argument, "the pattern")
        if subject is None or pattern is None:
            return []
        reading(scope.env, subject)
        return [run(pattern, subject, scope.env.spend)]

    return call


def _plain(name: str, run: Callable[[str], Any]) -> Callable[[Scope, Collection], Collection]:
    """A function of the input string alone."""

    def call(scope: Scope, items: Collection) -> Collection:
        subject = one(items, f"the input of {name}()")
        if subject is None:
            return []
        reading(scope.env, subject)
        result = run(subject)
        return text(scope.env, result) if isinstance(result, str) else [result]

    return call


def _substring(scope: Scope, items: Collection, start: Closure, length: Closure | None = None) -> Collection:
    subject = one(items, "the input of substring()")
    begin = _integer(scope, start, "the start of substring()")
    many = _integer(scope, length, "the length of substring()") if length is not None else None
    if subject is None or begin is None or not 0 <= begin < len(subject):
        return []
    end = len(subject) if many is None else min(len(subject), begin + max(0, many))
    room(scope.env, max(0, end - begin))
    return [subject[begin:end]]


def _replace(scope: Scope, items: Collection, pattern: Closure, substitution: Closure) -> Collection:
    subject = one(items, "the input of replace()")
    old, new = string(scope, pattern, "the pattern"), string(scope, substitution, "the substitution")
    if subject is None or old is None or new is None:
        return []
    growth = (subject.count(old) if old else len(subject) + 1) * len(new)
    room(scope.env, len(subject) - subject.count(old) * len(old) + growth)
    return [subject.replace(old, new)]


def _replace_matches(scope: Scope, items: Collection, pattern: Closure, substitution: Closure) -> Collection:
    subject = one(items, "the input of replaceMatches()")
    old, new = string(scope, pattern, "the pattern"), string(scope, substitution, "the substitution")
    if subject is None or old is None or new is None:
        return []
    return text(scope.env, regex.replace(old, new, subject, scope.env.spend))


def _to_chars(scope: Scope, items: Collection) -> Collection:
    subject = one(items, "the input of toChars()")
    scope.env.spend(len(subject or ""))
    return list(subject or "")


def _split(scope: Scope, items: Collection, separator: Closure) -> Collection:
    subject, mark = one(items, "the input of split()"), string(scope, separator, "the separator")
    if subject is None or mark is None:
        return []
    parts = subject.split(mark) if mark else list(subject)
    reading(scope.env, subject)
    scope.env.spend(len(parts))
    return list(parts)


def _join(scope: Scope, items: Collection, separator: Closure | None = None) -> Collection:
    mark = string(scope, separator, "the separator") if separator is not None else ""
    parts = [one([item], "an item of join()") or "" for item in items]
    if not parts:
        return []
    # One long string may stand in the collection a million times: the sum comes first.
    room(scope.env, sum(map(len, parts)) + len(mark or "") * (len(parts) - 1))
    return [(mark or "").join(parts)]


_ENCODERS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "base64": (base64.b64encode, lambda data: base64.b64decode(data, validate=True)),
    "urlbase64": (base64.urlsafe_b64encode, lambda data: base64.b64decode(data, altchars=b"-_", validate=True)),
    "hex": (binascii.hexlify, binascii.unhexlify),
}


def _encode(value: str, form: str) -> str:
    return _coder(form)[0](value.encode("utf-8")).decode("ascii")


def _decode(value: str, form: str) -> str:
    try:
        return _coder(form)[1](value.encode("ascii")).decode("utf-8")
    except ValueError:
        raise FhirPathError(f"the input of decode() is no {form} text") from None


def _coder(form: str) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    if form not in _ENCODERS:
        raise FhirPathError(f"{form!r} is no encoding; use base64, urlbase64 or hex")
    return _ENCODERS[form]


def _escape(value: str, target: str) -> str:
    if target == "html":
        return html.escape(value, quote=True)
    if target == "json":
        return json.dumps(value, ensure_ascii=False)[1:-1]
    raise FhirPathError(f"{target!r} is no target of escape(); use html or json")


def _unescape(value: str, target: str) -> str:
    if target == "html":
        return html.unescape(value)
    if target != "json":
        raise FhirPathError(f"{target!r} is no target of unescape(); use html or json")
    try:
        return str(json.loads('"' + _PIECE.sub(_quoted, value) + '"', strict=False))
    except ValueError:
        raise FhirPathError("the input of unescape() is no JSON string content") from None


# A quote that is not escaped is tolerated: the FHIRPath literal may have resolved its escape already.
_PIECE = re.compile(r'\\.|"', re.DOTALL)


def _quoted(match: re.Match[str]) -> str:
    return '\\"' if match.group() == '"' else match.group()


FUNCTIONS: dict[str, Function] = {
    "indexOf": Function(_with_text("indexOf", str.find), 1, 1),
    "lastIndexOf": Function(_with_text("lastIndexOf", str.rfind), 1, 1),
    "startsWith": Function(_with_text("startsWith", str.startswith), 1, 1),
    "endsWith": Function(_with_text("endsWith", str.endswith), 1, 1),
    "contains": Function(_with_text("contains", str.__contains__), 1, 1),
    "matches": Function(_with_pattern("matches", regex.search), 1, 1),
    "matchesFull": Function(_with_pattern("matchesFull", regex.fullmatch), 1, 1),
    "encode": Function(_with_text("encode", _encode), 1, 1),
    "decode": Function(_with_text("decode", _decode), 1, 1),
    "escape": Function(_with_text("escape", _escape), 1, 1),
    "unescape": Function(_with_text("unescape", _unescape), 1, 1),
    "substring": Function(_substring, 1, 2),
    "replace": Function(_replace, 2, 2),
    "replaceMatches": Function(_replace_matches, 2, 2),
    "upper": Function(_plain("upper", str.upper)),
    "lower": Function(_plain("lower", str.lower)),
    "trim": Function(_plain("trim", str.strip)),
    "length": Function(_plain("length", len)),
    "toChars": Function(_to_chars),
    "split": Function(_split, 1, 1),
    "join": Function(_join, 0, 1),
}
