"""The one reader and writer of FHIR JSON text: what it reads, it writes back with every number as it was spelled.

Hides how numbers keep their lexemes (`72.50`, `1e2`, `0.000000100`, `-0`), and how hostile text is refused in bounded
time and memory: size, depth and count limits are checked before anything is built, and every refusal says where.
Duplicate keys, NUL, lone surrogates, NaN and Infinity are refused, in both directions where a direction can make them.

Normative: https://hl7.org/fhir/R4/json.html, https://hl7.org/fhir/R4/datatypes.html#decimal (precision is to be kept),
RFC 8259, RFC 7493 (duplicate names, surrogates).
"""

from __future__ import annotations

import json
import re
import secrets
from array import array
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from itertools import accumulate, islice
from typing import Any, Self

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 100
# 64 MiB of real resources hold 2.4 million values (146 MiB of Synthea Bundles, compact), and the widest object of all
# examples at hand has 21 members. A value takes up to 250 bytes of memory, whatever its text takes.
MAX_VALUES = 3_000_000
MAX_MEMBERS = 1_000
# Longest number accepted, and the largest power of ten on either side: far beyond any measure, and small enough that
# no later conversion to an integer or to fixed notation can fill the memory.
MAX_DIGITS = 1_000
MAX_EXPONENT = 1_000


class JsonError(ValueError):
    """The text is no acceptable JSON; `line` and `column` count from 1, `path` is like `Patient.name[0].family`."""

    def __init__(self, message: str, line: int = 1, column: int = 1, path: str = "") -> None:
        where = f"line {line}, column {column}" + (f", at {path}" if path else "")
        super().__init__(f"{message} ({where})")
        self.message = message
        self.line = line
        self.column = column
        self.path = path


class Number(Decimal):
    """A decimal that remembers how it was spelled; compares and computes as the Decimal it is.

    Made from a JSON number lexeme, or from an int or a finite Decimal (then spelled in plain notation).
    """

    __slots__ = ("lexeme",)

    lexeme: str

    def __new__(cls, value: str | int | Decimal) -> Self:
        lexeme = value if isinstance(value, str) else _plain(value)
        problem = _number_problem(lexeme)
        if problem:
            raise ValueError(problem)
        return cls._spelled(lexeme)

    @classmethod
    def _spelled(cls, lexeme: str) -> Self:
        number = Decimal.__new__(cls, lexeme)
        number.lexeme = lexeme
        return number

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return (type(self), (self.lexeme,))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        return f"Number({self.lexeme!r})"


def _plain(value: int | Decimal) -> str:
    if isinstance(value, Decimal) and (not value.is_finite() or abs(value.adjusted()) > MAX_EXPONENT):
        return str(value)
    return format(value, "f") if isinstance(value, Decimal) else str(value)


_LEXEME = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)


def _number_problem(lexeme: str) -> str:
    """Why this spelling is refused; '' when it is fine."""
    if len(lexeme) > MAX_DIGITS:
        return f"this number has more than {MAX_DIGITS} characters: shorten it"
    if not _LEXEME.fullmatch(lexeme):
        return f"'{lexeme[:40]}' is no JSON number: write it with digits, as in -12.50"
    try:
        number = Decimal(lexeme)
    except InvalidOperation:
        number = Decimal("NaN")
    if number.is_finite() and abs(number.adjusted()) <= MAX_EXPONENT:
        return ""
    return f"the number {lexeme[:40]} lies beyond 1e{MAX_EXPONENT} or 1e-{MAX_EXPONENT}: no measure needs that"


# --- reading --------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """Raised inside the decoder's hooks with a sentence: they know what is wrong but not where."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Refused("a property stands twice in one object: keep one of them")
    return made


def _decimal(lexeme: str) -> Number:
    # Eighteen characters cannot spell an exponent that Decimal itself refuses.
    if len(lexeme) > 18 and _number_problem(lexeme):
        raise _Refused(_number_problem(lexeme))
    number = Decimal.__new__(Number, lexeme)
    if not -MAX_EXPONENT <= number.adjusted() <= MAX_EXPONENT:
        raise _Refused(_number_problem(lexeme))
    number.lexeme = lexeme
    return number


def _integer(lexeme: str) -> int | Number:
    # The length is checked first because the conversion costs the square of it.
    if len(lexeme) > MAX_DIGITS:
        raise _Refused(_number_problem(lexeme))
    return Number._spelled(lexeme) if lexeme == "-0" else int(lexeme)


def _constant(name: str) -> None:
    raise _Refused(_literal_problem(name))


def _narrow(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_MEMBERS:
        raise _Refused(f"an object has more than {MAX_MEMBERS} members: no resource has")
    return _object(pairs)


def _scanner(hook: Callable[[list[tuple[str, Any]]], dict[str, Any]]) -> Any:
    """The decoder's scanner without the decoder's own frame: (text, position) -> (value, end)."""
    return json.JSONDecoder(
        object_pairs_hook=hook, parse_float=_decimal, parse_int=_integer, parse_constant=_constant
    ).scan_once  # type: ignore[attr-defined]  # not in the stubs


# A text shorter than this cannot hold too wide an object: `"":1,` is the shortest member.
_SHORT = 5 * MAX_MEMBERS
_scan_short, _scan_long = _scanner(_object), _scanner(_narrow)

_SPACE = re.compile(r"[ \t\n\r]*")


def parse(
    data: bytes | str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES
) -> dict[str, Any]:
    """Read one JSON object: dict, list, str, int, bool, None, and Number for every number that is no plain integer.

    Bytes are UTF-8, with or without a byte order mark. `max_values` bounds the members of all objects and arrays
    together; an object has at most MAX_MEMBERS. Raises JsonError with the place of a fault.
    """
    result: dict[str, Any] = _read(data, "{", "object", max_bytes, max_depth, max_values)
    return result


def parse_list(
    data: bytes | str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES
) -> list[Any]:
    """Read one JSON array (a JSON Patch) as `parse` reads an object. Raises JsonError."""
    result: list[Any] = _read(data, "[", "array", max_bytes, max_depth, max_values)
    return result


def number(lexeme: str) -> int | Number:
    """The value of a number as `parse` gives it: int for a plain integer, else Number. ValueError when it is none."""
    problem = _number_problem(lexeme)
    if problem:
        raise ValueError(problem)
    return int(lexeme) if lexeme.lstrip("-").isdigit() and lexeme != "-0" else Number._spelled(lexeme)


def _read(data: bytes | str, opening: str, name: str, max_bytes: int, max_depth: int, max_values: int) -> Any:
    if len(data) > max_bytes:
        raise JsonError(f"the text is longer than {max_bytes} bytes: send it in smaller parts")
    text = _text(data)
    start = 0 if text[:1] == opening else _past_space(text, 0)
    if text[start : start + 1] != opening:
        raise _error(text, start, f"a JSON {name} is expected, beginning with {opening}")
    # A small text with few brackets cannot break a limit; only others are measured.
    if text.count("{") + text.count("[") > max_depth or len(text) > max_values:
        _check_sizes(text, max_depth, max_values)
    if "\\" in text and ("\\u0000" in text or "\\ud" in text or "\\uD" in text):
        _check_escapes(text)
    try:
        value, end = (_scan_short if len(text) < _SHORT else _scan_long)(text, start)
    except json.JSONDecodeError as problem:
        raise _error(text, problem.pos, _SENTENCES.get(problem.msg, "this is no JSON")) from None
    except StopIteration as problem:
        raise _error(text, problem.value, _SENTENCES["Expecting value"]) from None
    except _Refused as problem:
        raise _refusal(text, max_depth, str(problem)) from None
    except RecursionError:
        raise _refusal(text, max_depth) from None
    if end != len(text):
        end = _past_space(text, end)
        if end != len(text):
            raise _error(text, end, f"text follows the end of the {name}: send one JSON {name} only")
    return value


_SENTENCES = {
    "Expecting property name enclosed in double quotes": "a property name in double quotes is expected here",
    "Illegal trailing comma before end of object": "a property name in double quotes is expected here",
    "Illegal trailing comma before end of array": "a value is expected here",
    "Expecting ':' delimiter": "a colon is expected here",
    "Expecting ',' delimiter": "a comma or a closing bracket is expected here",
    "Expecting value": "a value is expected here",
    "Unterminated string starting at": "the string that begins here has no closing quote",
    "Invalid control character at": "a raw control character stands in a string: write it as an escape such as \\n",
    "Invalid \\escape": "this backslash begins no JSON escape: double it to mean a backslash",
    "Invalid \\uXXXX escape": "four hexadecimal digits are expected after \\u",
}


def _past_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _text(data: bytes | str) -> str:
    if isinstance(data, bytes):
        try:
            return str(data, "utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as problem:
            before = data[: problem.start].decode("utf-8")
            raise _error(before, len(before), "the text is not UTF-8: encode it as UTF-8") from None
    if not data.isascii():
        try:
            data.encode("utf-8")
        except UnicodeEncodeError as problem:
            raise _error(data, problem.start, _LONE) from None
    return data.removeprefix("\ufeff")


_STEPS = bytes(1 if byte in b"{[" else 255 if byte in b"}]" else byte for byte in range(256))
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b"{}[],")
_MANY_MARKS = 200_000
# Measured so many characters at a time: between two slices other threads have their turn.
_SLICE = 1024 * 1024


def _check_sizes(text: str, max_depth: int, max_values: int) -> None:
    """Measure depth, count and width on the text without its strings, in steps that no nesting can slow down."""
    marks = _marks(text, max_values)
    # Fewer values can be built before the decoder's hook counts the members of each object, which costs less.
    if len(marks) > _MANY_MARKS and _too_wide(marks):
        raise _refusal(text, max_depth, f"an object has more than {MAX_MEMBERS} members")
    if max(accumulate(array("b", marks.translate(_STEPS, b","))), default=0) > max_depth:
        raise _refusal(text, max_depth)


def _marks(text: str, max_values: int) -> bytes:
    """The brackets and commas outside strings. Raises JsonError when they are those of too many values."""
    if "\\" in text:
        text = text.replace("\\\\", "").replace('\\"', "")
    found: list[bytes] = []
    values = inside = 0
    for start in range(0, len(text), _SLICE):
        parts = text[start : start + _SLICE].split('"')
        marks = "".join(parts[inside::2]).encode("ascii", "replace").translate(None, _NO_MARKS)
        inside ^= (len(parts) - 1) & 1
        values += marks.count(b",") + marks.count(b"{") + marks.count(b"[")
        if values > max_values:
            raise _too_many(max_values)
        found.append(marks)
    return b"".join(found)


# A bracket, commas, or at once all of an object or array that is narrow and holds no other.
_MARK_RUN = re.compile(rb"[{\[],{0,%d}[}\]]|[{}\[\]]|,+" % (MAX_MEMBERS - 1))


def _too_wide(marks: bytes) -> bool:
    """Whether an object has more than MAX_MEMBERS members; arrays may be as long as they like."""
    above: list[int] = []
    commas = 0
    for found in _MARK_RUN.finditer(marks):
        run = found[0]
        first = run[0]
        if first == 0x2C:
            commas += len(run)
            if commas >= MAX_MEMBERS:
                return True
        elif len(run) == 1:
            if first in b"{[":
                above.append(commas)
                commas = 0 if first == 0x7B else -len(marks)
            else:
                commas = above.pop() if above else 0
    return False


def _too_many(max_values: int) -> JsonError:
    return JsonError(f"the text holds more than {max_values} values: send it in smaller parts")


_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_LONE = "half of a surrogate pair stands alone: write the whole character"


def _check_escapes(text: str) -> None:
    high = -1
    for found in _ESCAPE.finditer(text):
        code = int(found[1], 16) if found[1] else -1
        low = 0xDC00 <= code <= 0xDFFF
        if high >= 0 and not (low and found.start() == high + 6):
            raise _error(text, high, _LONE)
        if low and high < 0:
            raise _error(text, found.start(), _LONE)
        if code == 0:
            raise _error(text, found.start(), "the character NUL is not allowed in FHIR: remove it")
        high = found.start() if 0xD800 <= code <= 0xDBFF else -1
    if high >= 0:
        raise _error(text, high, _LONE)


# --- saying where ---------------------------------------------------------------------------------------------------

# Beyond this a fault's path is not searched for: line and column say enough, and the search would take seconds.
_PATH_LIMIT = 4 * 1024 * 1024
# Nor is a refusal explained beyond so many tokens: a second's walk.
_MAX_TOKENS = 1_000_000
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[{}\[\]:,]|[^\s"{}\[\]:,]++', re.DOTALL)


def _error(text: str, position: int, message: str, path: str | None = None) -> JsonError:
    if path is None:
        path = _Walk(text).path_at(position) if position <= _PATH_LIMIT else ""
    line = text.count("\n", 0, position) + 1
    return JsonError(message, line, position - text.rfind("\n", 0, position), path)


def _refusal(text: str, max_depth: int, said: str = "the text is nested too deeply") -> JsonError:
    """The error for what the decoder's hooks or the check of sizes refused; what they `said` when it stands far off."""
    walk = _Walk(text, max_depth)
    found = walk.first_fault()
    return JsonError(said) if found is None else _error(text, *found, walk.path())


class _Walk:
    """A slow pass over the tokens that knows where it is; only used to explain a refusal."""

    def __init__(self, text: str, max_depth: int = 10**9) -> None:
        self.text = text
        self.max_depth = max_depth
        self.root = ""
        # One entry per open bracket: the index for an array, the key for an object (None before its first key).
        self.places: list[int | str | None] = []
        self.keys: list[set[str] | None] = []
        self.at_key = False

    def path(self) -> str:
        places = [place for place in self.places if place is not None]
        steps = [f"[{place}]" if isinstance(place, int) else f".{place[:64]}" for place in places]
        path = (self.root + "".join(steps)).lstrip(".")
        return path if len(path) <= 200 else path[:200] + "..."

    def path_at(self, position: int) -> str:
        for found in _TOKEN.finditer(self.text, 0, position):
            self._step(found[0])
        return self.path()

    def first_fault(self) -> tuple[int, str] | None:
        """Position and sentence; None when there is none among the first _MAX_TOKENS."""
        for found in islice(_TOKEN.finditer(self.text), _MAX_TOKENS):
            problem = self._step(found[0])
            if problem:
                return found.start(), problem
        return None

    def _step(self, token: str) -> str:
        mark = token[0]
        if mark in "{[":
            return self._open(mark)
        if mark in "}]":
            if self.places:
                self.places.pop()
                self.keys.pop()
        elif mark == ",":
            self.at_key = bool(self.keys) and self.keys[-1] is not None
            if self.places and isinstance(self.places[-1], int):
                self.places[-1] += 1
        elif mark == '"':
            return self._string(token)
        elif mark != ":":
            return _literal_problem(token)
        return ""

    def _open(self, mark: str) -> str:
        self.at_key = mark == "{"
        self.places.append(None if self.at_key else 0)
        self.keys.append(set() if self.at_key else None)
        return f"the text is nested more than {self.max_depth} deep" if len(self.places) > self.max_depth else ""

    def _string(self, token: str) -> str:
        value = _unquoted(token)
        keys = self.keys[-1] if self.keys else None
        if not self.at_key or keys is None:
            if self.places == ["resourceType"]:
                self.root = value[:64]
            return ""
        self.at_key = False
        self.places[-1] = value
        if value in keys:
            return f"the property '{value[:100]}' stands twice in one object: keep one of them"
        keys.add(value)
        return f"this object has more than {MAX_MEMBERS} members: no resource has" if len(keys) > MAX_MEMBERS else ""


def _unquoted(token: str) -> str:
    try:
        return str(json.loads(token)) if "\\" in token else token.strip('"')
    except ValueError:
        return token


def _literal_problem(token: str) -> str:
    if token in ("true", "false", "null"):
        return ""
    if token in ("NaN", "Infinity", "-Infinity"):
        return f"{token} is no JSON value: leave the element out, and say why in a data-absent-reason extension"
    return _number_problem(token)


# --- writing --------------------------------------------------------------------------------------------------------


def _spell(item: Any) -> str:
    # Python's encoder cannot emit a number's own spelling, so numbers pass through it as strings with this mark in
    # front, and lose mark and quotes afterwards. The mark holds a NUL, which no FHIR string may hold, and a part that
    # no string made elsewhere can foresee.
    if not isinstance(item, Decimal):
        raise TypeError(f"{type(item).__name__} is no JSON value: give str, int, bool, None, Decimal, list or dict")
    return _MARK + (item if isinstance(item, Number) else Number(item)).lexeme


_MARK = "\0" + secrets.token_hex(8)
_MARKED = re.compile(r'"\\u0000' + _MARK[1:] + r'([-+.0-9eE]+)"')


def _encoder() -> Callable[[Any], str]:
    """The compact encoder; CPython's is kept ready, because `JSONEncoder.encode` makes a new one for each call."""
    plain = json.JSONEncoder(
        ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"), default=_spell
    ).encode
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return plain
    ready = make(None, _spell, json.encoder.encode_basestring, None, ":", ",", False, False, False)
    return lambda value: "".join(ready(value, 0))


_compact = _encoder()
_indented = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, indent=2, separators=(",", ": "), default=_spell
).encode


def write(value: Any) -> str:
    """Compact JSON: keys in their order, numbers as spelled, characters beyond ASCII raw.

    Raises ValueError for what `parse` would refuse (NaN, NUL, lone surrogates), TypeError for foreign types.
    """
    return _finished(_compact(value))


def pretty(value: Any) -> str:
    """The same content over several lines, indented by two spaces."""
    return _finished(_indented(value))


def _finished(text: str) -> str:
    if "\\" in text and "\\u0000" in text:
        text = _MARKED.sub(r"\1", text)
        if "\\u0000" in text and any(found[1] == "0000" for found in _ESCAPE.finditer(text)):
            raise ValueError("a string holds the character NUL, which FHIR does not allow: remove it")
    if not text.isascii():
        text.encode("utf-8")  # its UnicodeEncodeError is a ValueError and names the lone surrogate
    return text
