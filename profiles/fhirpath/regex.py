r"""Regular expressions for untrusted patterns: always bounded time, whatever the pattern.

Hides two matchers behind one reading of the pattern. When the number of ways to match is provably small, Python's own
backtracking engine runs; otherwise all ways are followed side by side (Thompson's construction with captures, as Pike's
VM does), in time proportional to pattern times text. Dialect: the common part of PCRE and XML Schema; `.` also matches
line ends; back-references are refused, look-around only where backtracking is safe.

Sources: http://hl7.org/fhirpath/N1/ section 5.6 (matches, replaceMatches), https://swtch.com/~rsc/regexp/regexp2.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from profiles.fhirpath.errors import FhirPathError
from profiles.fhirpath.regex_syntax import Alt, Assert, CharSet, Group, Look, Pattern, Regex, Rep, Seq, parse

MAX_INSTRUCTIONS = 20_000
MAX_STEPS = 1_500_000
# More ways to match than this are not left to a backtracking engine.
_SAFE_WAYS = 1_000_000
# What a pattern costs that was not met lately, beside its use.
_NEW, _NEW_CHARACTER = 200, 10


Pay = Callable[[int], None]


def _free(amount: int) -> None:
    """The purse of a caller who matches once: the bounds of one match are enough."""


def search(pattern: str, text: str, pay: Pay = _free) -> bool:
    """Whether any part of `text` matches. FhirPathError for a bad or too costly pattern.

    `pay` hears of the work, in elements of an evaluation's budget, and may refuse it: one match is bounded by itself,
    thousands of them are not.
    """
    found = _paid(pattern, pay)
    native = found.native(len(text), pay)
    if native is not None:
        return native.search(text) is not None
    return _run(found.program(), text, 0, whole=False, pay=pay) is not None


def fullmatch(pattern: str, text: str, pay: Pay = _free) -> bool:
    """Whether the whole of `text` matches."""
    found = _paid(pattern, pay)
    native = found.native(len(text), pay)
    if native is not None:
        return native.fullmatch(text) is not None
    return _run(found.program(), text, 0, whole=True, pay=pay) is not None


def replace(pattern: str, substitution: str, text: str, pay: Pay = _free) -> str:
    """`text` with every match replaced; `$1`, `${name}` and `$0` in the substitution stand for groups, `$$` for `$`.

    An empty pattern changes nothing.
    """
    if not pattern:
        return text
    found = _paid(pattern, pay)
    names = found.pattern.names
    pieces: list[str] = []
    done = size = 0
    for caps in found.matches(text, pay):
        start, end = caps[0], caps[1]
        inserted = _expanded(substitution, text, caps, names)
        pieces += (text[done:start], inserted)
        done = end
        size += len(inserted)
        if size > MAX_STEPS:
            raise FhirPathError("the result of replaceMatches() is too long")
    return "".join((*pieces, text[done:]))


_REFERENCE = re.compile(r"\$(?:(\$)|(\d{1,2})|\{([A-Za-z_][A-Za-z0-9_]*|\d{1,2})\})")


def _expanded(substitution: str, text: str, caps: tuple[int, ...], names: dict[str, int]) -> str:
    def group(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        name = match[2] or match[3]
        number = names.get(name) if not name.isdigit() else int(name)
        if number is None or number * 2 + 1 >= len(caps):
            raise FhirPathError(f"the pattern has no group {name}")
        start, end = caps[number * 2], caps[number * 2 + 1]
        return text[start:end] if start >= 0 else ""

    return _REFERENCE.sub(group, substitution) if "$" in substitution else substitution


class _Prepared:
    """A pattern read once, with whichever matcher was asked for so far."""

    __slots__ = ("_native", "_program", "_source", "pattern")

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self._source = _python(pattern.root)
        self._native: re.Pattern[str] | None = None
        self._program: tuple[_Step, ...] | None = None

    def native(self, length: int, pay: Pay) -> re.Pattern[str] | None:
        """Python's matcher when no text of this length can make it backtrack badly."""
        if self._source is None:
            return None
        ways = _ways(self.pattern.root, length) * (length + 1)
        if ways > _SAFE_WAYS:
            return None
        pay(int(ways) >> 6)
        if self._native is None:
            self._native = re.compile(self._source, re.DOTALL | (re.IGNORECASE if self.pattern.ignore_case else 0))
        return self._native

    def program(self) -> tuple[_Step, ...]:
        """The instructions of the side-by-side matcher."""
        if self._program is None:
            self._program = _assembled(self.pattern.root)
        return self._program

    def matches(self, text: str, pay: Pay) -> Iterator[tuple[int, ...]]:
        """The captures (start and end of each group, -1 when unset) of successive matches."""
        native = self.native(len(text), pay)
        if native is not None:
            for match in native.finditer(text):
                pay(2)
                yield tuple(edge for group in range(self.pattern.groups + 1) for edge in match.span(group))
            return
        at, spent = 0, 0
        while at <= len(text):
            caps = _run(self.program(), text, at, whole=False, pay=pay)
            if caps is None:
                return
            full = (*caps, *([-1] * (2 * (self.pattern.groups + 1) - len(caps))))
            yield full
            spent += (full[1] - at + 1) * len(self.program())
            if spent > MAX_STEPS:
                raise _too_costly()
            at = full[1] if full[1] > full[0] else full[1] + 1


@lru_cache(maxsize=64)
def _prepared(pattern: str) -> _Prepared:
    return _Prepared(parse(pattern))


def _paid(pattern: str, pay: Pay) -> _Prepared:
    pay(len(pattern) >> 2)
    known = _prepared.cache_info().misses
    found = _prepared(pattern)
    if _prepared.cache_info().misses != known:
        pay(_NEW + len(pattern) * _NEW_CHARACTER)
    return found


def _too_costly() -> FhirPathError:
    return FhirPathError("this regular expression is too costly for this text")


# --- how many ways a backtracking engine could try -------------------------------------------------------------------


def _ways(node: Regex, length: int) -> float:
    if isinstance(node, Seq):
        product = 1.0
        for part in node.parts:
            product *= _ways(part, length)
        return product
    if isinstance(node, Alt):
        return sum(_ways(part, length) for part in node.parts)
    if isinstance(node, Rep):
        most = length if node.most is None else min(node.most, length)
        if _one_character(node.body):
            return float(max(1, most - node.least + 1))
        inner = _ways(node.body, length)
        return float(inner + 1) ** most if most <= 4 else float("inf")
    if isinstance(node, (Group, Look)):
        return _ways(node.body, length)
    return 1.0


def _one_character(node: Regex) -> bool:
    return isinstance(node, CharSet) or (isinstance(node, Group) and _one_character(node.body))


def _python(node: Regex) -> str | None:
    """The same pattern in Python's notation; None when it has no word for a part of it."""
    if isinstance(node, CharSet):
        return node.source or None
    if isinstance(node, Assert):
        return node.source
    if isinstance(node, (Seq, Alt)):
        parts = [_python(part) for part in node.parts]
        if any(part is None for part in parts):
            return None
        body = ("" if isinstance(node, Seq) else "|").join(part or "" for part in parts)
        return f"(?:{body})"
    inner = _python(node.body)
    if inner is None:
        return None
    if isinstance(node, Rep):
        top = "" if node.most is None else str(node.most)
        return f"(?:{inner}){{{node.least},{top}}}" + ("" if node.greedy else "?")
    if isinstance(node, Group):
        return f"({inner})" if node.number else f"(?:{inner})"
    return f"({'?=' if node.wanted else '?!'}{inner})"


# --- following all ways side by side ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """One instruction: `char` takes a character; `split` tries `a` then `b`; `save` notes a position; and `match`."""

    op: str
    a: int = 0
    b: int = 0
    test: Callable[[str], bool] | None = None
    check: Callable[[str, int], bool] | None = None


def _assembled(root: Regex) -> tuple[_Step, ...]:
    program: list[_Step] = [_Step("save", 0)]
    _assemble(root, program)
    program += (_Step("save", 1), _Step("match"))
    return tuple(program)


def _assemble(node: Regex, program: list[_Step]) -> None:
    if len(program) > MAX_INSTRUCTIONS:
        raise FhirPathError("this regular expression is too large")
    if isinstance(node, CharSet):
        program.append(_Step("char", test=node.test))
    elif isinstance(node, Assert):
        program.append(_Step("assert", check=node.check))
    elif isinstance(node, Seq):
        for part in node.parts:
            _assemble(part, program)
    elif isinstance(node, Alt):
        _assemble_alt(node, program)
    elif isinstance(node, Rep):
        _assemble_rep(node, program)
    elif isinstance(node, Group):
        if node.number:
            program.append(_Step("save", node.number * 2))
        _assemble(node.body, program)
        if node.number:
            program.append(_Step("save", node.number * 2 + 1))
    else:
        raise FhirPathError("look-ahead is not available in a regular expression with nested repetition")


def _assemble_alt(node: Alt, program: list[_Step]) -> None:
    jumps: list[int] = []
    for place, part in enumerate(node.parts):
        last = place == len(node.parts) - 1
        split = len(program)
        if not last:
            program.append(_Step("split"))
        _assemble(part, program)
        if not last:
            jumps.append(len(program))
            program.append(_Step("jump"))
            program[split] = _Step("split", split + 1, len(program))
    for jump in jumps:
        program[jump] = _Step("jump", len(program))


def _assemble_rep(node: Rep, program: list[_Step]) -> None:
    for _ in range(node.least):
        _assemble(node.body, program)
    if node.most is None:
        split = len(program)
        program.append(_Step("split"))
        _assemble(node.body, program)
        program.append(_Step("jump", split))
        program[split] = _branch(split + 1, len(program), node.greedy)
        return
    splits: list[int] = []
    for _ in range(node.most - node.least):
        splits.append(len(program))
        program.append(_Step("split"))
        _assemble(node.body, program)
    for split in splits:
        program[split] = _branch(split + 1, len(program), node.greedy)


def _branch(into: int, past: int, greedy: bool) -> _Step:
    return _Step("split", into, past) if greedy else _Step("split", past, into)


_Thread = tuple[int, tuple[int, ...]]


def _run(program: tuple[_Step, ...], text: str, start: int, *, whole: bool, pay: Pay = _free) -> tuple[int, ...] | None:
    """The captures of the first match at or after `start` (`whole`: of one from start to end); None without."""
    threads: list[_Thread] = []
    found: tuple[int, ...] | None = None
    steps = 0
    pay(len(program) >> 2)
    for at in range(start, len(text) + 1):
        seen: set[int] = set()
        ready: list[_Thread] = []
        for thread in threads:
            _follow(program, thread, text, at, seen, ready)
        if found is None and (at == start or not whole):
            _follow(program, (0, ()), text, at, seen, ready)
        steps += len(seen) + 1
        pay(len(seen) + 1)
        if steps > MAX_STEPS:
            raise _too_costly()
        threads = []
        for pc, caps in ready:
            step = program[pc]
            if step.op == "match":
                if whole and at < len(text):
                    continue
                found = caps
                break  # the threads behind are of lower priority
            if at < len(text) and step.test is not None and step.test(text[at]):
                threads.append((pc + 1, caps))
        if not threads and (found is not None or whole):
            break
    return found


def _follow(
    program: tuple[_Step, ...], thread: _Thread, text: str, at: int, seen: set[int], ready: list[_Thread]
) -> None:
    """Adds the character and match instructions reachable from a thread without taking a character, by priority."""
    pending = [thread]
    while pending:
        pc, caps = pending.pop()
        if pc in seen:
            continue
        seen.add(pc)
        step = program[pc]
        if step.op in ("char", "match"):
            ready.append((pc, caps))
        elif step.op == "split":
            pending.append((step.b, caps))
            pending.append((step.a, caps))
        elif step.op == "jump":
            pending.append((step.a, caps))
        elif step.op == "save":
            pending.append((pc + 1, _saved(caps, step.a, at)))
        elif step.check is not None and step.check(text, at):
            pending.append((pc + 1, caps))


def _saved(caps: tuple[int, ...], place: int, at: int) -> tuple[int, ...]:
    if place >= len(caps):
        caps = (*caps, *([-1] * (place + 1 - len(caps))))
    return (*caps[:place], at, *caps[place + 1 :])
