"""Registers checks, runs those asked for against one target, and turns whatever happens into a result.

Hides selection, preconditions, time limits and the five outcomes: pass, fail (the system breaks a clause), skip (the
system lacks a precondition), omit (the user excluded it), error (the check or the network broke).
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from conformance import capabilities
from conformance import checks as checks_package
from conformance.target import WIRES, Context, Target, UsageError
from conformance.verdict import Deadline, Failed, Overdue, Skipped, Unreachable

Status = Literal["pass", "fail", "skip", "error", "omit"]
Level = Literal["N1", "N2", "N3"]
STATUSES: tuple[Status, ...] = get_args(Status)
Function = Callable[[Context], None]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what it is called, which clauses it verifies, what it needs, what to try when it fails."""

    id: str
    title: str
    verifies: tuple[str, ...]
    wire: str
    level: Level
    needs: tuple[str, ...]
    hint: str
    function: Function


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one check. `evidence` holds bounded excerpts, `> ` sent and `< ` received; `seconds` it took."""

    id: str
    title: str
    wire: str
    level: str
    verifies: tuple[str, ...]
    status: Status
    message: str = ""
    expected: str = ""
    found: str = ""
    clause: str = ""
    hint: str = ""
    evidence: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run: the addresses judged, when it began (UTC), how long it took, the results in order."""

    addresses: Mapping[str, str]
    started: str
    seconds: float
    results: tuple[Result, ...]

    @property
    def counts(self) -> dict[Status, int]:
        """How many results have each status."""
        found = Counter(one.status for one in self.results)
        return {status: found[status] for status in STATUSES}

    @property
    def exit_code(self) -> int:
        """0 when something passed and nothing failed, else 1: a run in which nothing could be judged is no pass."""
        counts = self.counts
        return 0 if counts["pass"] and not counts["fail"] and not counts["error"] else 1


_registry: dict[str, Check] = {}


def check(
    *,
    id: str,
    title: str,
    verifies: tuple[str, ...],
    wire: str,
    level: Level = "N1",
    needs: tuple[str, ...] = (),
    hint: str = "",
) -> Callable[[Function], Function]:
    """Register a function as a check. It returns when the system conforms and raises `verdict.Failed` when not.

    `id` begins with the wire (`fhir.create`); `verifies` are URLs of clauses, or titles of paid standards with their
    section; `needs` are preconditions as in `capabilities`.
    """
    if not id.startswith(f"{wire}.") or wire not in WIRES:
        raise ValueError(f"{id}: an id begins with its wire, one of {', '.join(WIRES)}")
    if id in _registry:
        raise ValueError(f"{id}: two checks of one id")
    if not verifies:
        raise ValueError(f"{id}: a check names the clauses it verifies")

    def register(function: Function) -> Function:
        _registry[id] = Check(id, title, verifies, wire, level, needs, hint, function)
        return function

    return register


def load() -> tuple[Check, ...]:
    """Every check of the package `conformance.checks`, by wire, then in the order of their modules."""
    for module in sorted(pkgutil.iter_modules(checks_package.__path__), key=lambda one: one.name):
        importlib.import_module(f"{checks_package.__name__}.{module.name}")
    return tuple(sorted(_registry.values(), key=lambda one: WIRES.index(one.wire)))


def run(
    target: Target,
    *,
    only: Iterable[str] = (),
    omit: Iterable[str] = (),
    level: Level | None = None,
    progress: Callable[[Result], None] = lambda result: None,
) -> Run:
    """Judge `target` by every check, or by those whose id matches a pattern of `only` and none of `omit`.

    A pattern is an id or has `*` (`fhir.*`). Checks outside `only` or `level` do not appear; those in `omit` appear as
    omitted. `progress` is called with each result. Raises `UsageError` for a pattern that matches nothing.
    """
    known = load()
    chosen = [one for one in known if _matches(one, tuple(only), known) and level in (None, one.level)]
    omitted = {one.id for one in known if tuple(omit) and _matches(one, tuple(omit), known)}
    if not chosen:
        raise UsageError("no check is left to run")
    begun, started = time.monotonic(), datetime.now(UTC)
    limit = Deadline.after(target.options.run_seconds)
    declared = _declared(target, chosen)
    results = []
    for one in chosen:
        results.append(_judge(one, target, declared, limit, omitted=one.id in omitted))
        progress(results[-1])
    addresses = {wire: str(target.address(wire)) for wire in WIRES if target.address(wire)}
    moment = started.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Run(addresses, moment, round(time.monotonic() - begun, 3), tuple(results))


def _matches(one: Check, patterns: tuple[str, ...], known: tuple[Check, ...]) -> bool:
    for pattern in patterns:
        if not any(fnmatchcase(other.id, pattern) for other in known):
            raise UsageError(f"no check is called {pattern}; `conformance list` names them all")
    return not patterns or any(fnmatchcase(one.id, pattern) for pattern in patterns)


def _declared(target: Target, chosen: Iterable[Check]) -> dict[str, Any] | None:
    if not any(need.startswith("fhir:") for one in chosen for need in one.needs):
        return None
    try:
        return capabilities.statement(target)
    except (Unreachable, Overdue):
        return None


def _judge(one: Check, target: Target, declared: Mapping[str, Any] | None, limit: Deadline, *, omitted: bool) -> Result:
    if omitted:
        return _result(one, "omit", "excluded by the user")
    if target.address(one.wire) is None:
        return _result(one, "skip", f"no --target {one.wire}=... was given")
    for need in one.needs:
        if reason := capabilities.absent(need, declared, target):
            return _result(one, "skip", reason)
    left = limit.remaining_or_zero()
    if not left:
        return _result(one, "error", f"not run: the run has used up its {target.options.run_seconds:g} s")
    return _execute(one, Context(target, seconds=min(left, target.options.check_seconds)))


def _execute(one: Check, context: Context) -> Result:
    begun = time.monotonic()
    fields: dict[str, str] = {}
    status: Status
    try:
        one.function(context)
        status, message = "pass", ""
    except Failed as failure:
        status, message = "fail", f"expected {failure.expected}; found {failure.found}"
        fields = {"expected": failure.expected, "found": failure.found}
        fields |= {"clause": failure.clause or one.verifies[0], "hint": failure.hint or one.hint}
    except Skipped as reason:
        status, message = "skip", str(reason)
    except (Unreachable, Overdue) as trouble:
        status, message = "error", str(trouble)
    except UsageError:
        raise
    except Exception as defect:  # a defect of the check must not end the run, nor pass for a fault of the system
        status, message = "error", f"the check itself broke: {type(defect).__name__}: {defect}"
    took = round(time.monotonic() - begun, 3)
    context.close()
    clean = context.transcript.clean
    texts = {name: clean(text)[:1000] for name, text in fields.items()}
    return _result(one, status, clean(message)[:2000], evidence=context.transcript.excerpts(), seconds=took, **texts)


def _result(one: Check, status: Status, message: str, **more: Any) -> Result:
    return Result(one.id, one.title, one.wire, one.level, one.verifies, status, message, **more)
