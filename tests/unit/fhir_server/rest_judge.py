"""The judge of the model test of the REST interface: one world, one request after the other, and whether some order
that time allows explains what many clients were answered.

PostgreSQL lets others write between the moment a condition is looked at and the commit that rests on it, as long as
they neither touch what was found nor ask the same condition (docs/adr/0072-what-a-condition-holds.md). There a request
with a condition is two steps; on SQLite, which has one writer, it is one like every other.

Source: M. Herlihy, J. Wing, "Linearizability", ACM TOPLAS 12 (1990).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NEVER = 1 << 60
Version = tuple[str, int] | None
"""(code, count) of a version, None for a deletion."""
World = Mapping[str, tuple[Version, ...]]
"""Every version of every resource, by its id."""
Seen = tuple[Any, ...]


@dataclass(frozen=True)
class Op:
    """One request. `key` is a resource with an id of the client's; `code` what a condition looks for and what is
    written; `match`: how far If-Match is from the version last seen, None without it; `absent`: If-None-Match: *;
    `parts`: the entries of a transaction."""

    kind: str
    key: str = "a"
    code: str = "x"
    count: int = 0
    match: int | None = None
    absent: bool = False
    parts: tuple[Op, ...] = ()


@dataclass
class Event:
    """A request and its answer; `asked` is the version it named."""

    op: Op
    began: int
    asked: dict[int, int] = field(default_factory=dict)
    ended: int = NEVER
    seen: Seen = ()


def live(world: World, name: str) -> bool:
    return name in world and world[name][-1] is not None


def having(world: World, code: str) -> list[str]:
    """The resources a condition finds."""
    return sorted(name for name, versions in world.items() if versions[-1] is not None and versions[-1][0] == code)


def answer_of(world: World, op: Op, asked: int | None, new: str, many: bool) -> tuple[Seen, dict[str, Version]]:
    """What a request that writes is to be answered, and the versions it adds. `new` is the id a create was given."""
    written: Version = (op.code, op.count)
    name = f"{op.key}"
    if op.kind.endswith("_if"):
        found = having(world, op.code)
        if op.kind == "delete_if" and many:
            return ("204", "", 0), dict.fromkeys(found)
        if len(found) > 1:
            return ("412",), {}
        if not found:
            if op.kind in ("create_if", "update_if"):
                return ("201", new, 1), {new: written}
            return (("404",) if op.kind == "patch_if" else ("204", "", 0)), {}
        name = found[0]
        if op.kind == "create_if":
            return ("200", name, len(world[name])), {}
    if op.kind == "create":
        return ("201", new, 1), {new: written}
    return _named(world, op, name, asked, written)


def _named(world: World, op: Op, name: str, asked: int | None, written: Version) -> tuple[Seen, dict[str, Version]]:
    there, number = live(world, name), len(world.get(name, ()))
    if asked is not None and not (there and asked == number):
        return ("412",), {}
    if op.absent and there:
        return ("412",), {}
    if op.kind.startswith("delete"):
        if not number:
            return ("404",), {}
        return ("204", "", number + there), {name: None} if there else {}
    if op.kind.startswith("patch"):
        if not there:
            return ("410" if number else "404",), {}
        before = world[name][-1]
        assert before is not None
        written = (before[0], op.count)
    return ("200" if there else "201", name, number + 1), {name: written}


_ORDER = ("delete", "create_if", "update", "update_if", "patch")


def transaction_of(world: World, event: Event, many: bool) -> tuple[Seen, dict[str, Version]]:
    """Every entry is judged by what is stored before, a conditional create by what the deletions leave of it; one
    refusal refuses all. What is found is told with the version it has in the end."""
    answers: dict[int, Seen] = {}
    added: dict[str, Version] = {}
    for number in sorted(range(len(event.op.parts)), key=lambda n: _ORDER.index(event.op.parts[n].kind)):
        given = event.seen[1][number] if len(event.seen) > 1 else ()
        new = given[1] if len(given) > 1 else "?"
        part = event.op.parts[number]
        there = {n: v for n, v in world.items() if n not in added} if part.kind == "create_if" else world
        answer, made = answer_of(there, part, event.asked.get(number), new, many)
        if answer[0] >= "400":
            return (answer[0],), {}
        if set(made) & set(added):
            return ("400",), {}
        added |= made
        answers[number] = ("204", "", 0) if answer[0] == "204" else answer
    told = (_final(answers[number], world, added) for number in range(len(answers)))
    return ("200", tuple(told)), added


def _final(answer: Seen, world: World, added: Mapping[str, Version]) -> Seen:
    name = answer[1]
    return (*answer[:2], len(world.get(name, ())) + (name in added)) if name else answer


def reading_of(world: World, event: Event) -> Seen:
    op, versions = event.op, world.get(event.op.key, ())
    if op.kind == "search":
        return "200", tuple((name, len(world[name]), world[name][-1]) for name in having(world, op.code))
    if op.kind == "history":
        return (
            ("200", tuple((number, versions[number - 1]) for number in range(len(versions), 0, -1)))
            if versions
            else ("404",)
        )
    number = event.asked[0] if op.kind == "vread" else len(versions)
    if not 0 < number <= len(versions):
        return ("404",)
    if versions[number - 1] is None:
        return ("410",)
    if op.kind == "read" and event.asked.get(0) == number:
        return ("304", number)
    return "200", number, versions[number - 1]


def decided(world: World, event: Event, many: bool) -> dict[str, Version] | None:
    """The versions a request adds to this world; None when it would have been answered otherwise."""
    op = event.op
    if op.kind in ("read", "vread", "history", "search"):
        return {} if reading_of(world, event) == event.seen else None
    if op.kind == "transaction":
        answer, added = transaction_of(world, event, many)
    else:
        new = event.seen[1] if len(event.seen) > 1 else "?"
        answer, added = answer_of(world, op, event.asked.get(0), new, many)
    if answer != event.seen or (op.kind.startswith("create") and added and event.seen[1] in world):
        return None
    return added


@dataclass(frozen=True)
class Held:
    """What a request keeps from others between its look at a condition and its commit: the conditions, and every
    resource it found or named; `added` are the versions it will write."""

    number: int
    codes: frozenset[str]
    names: frozenset[str]
    added: tuple[tuple[str, Version], ...]


def conditions(op: Op) -> frozenset[str]:
    return frozenset(part.code for part in op.parts or (op,) if part.kind.endswith("_if"))


def held(number: int, event: Event, added: Mapping[str, Version]) -> Held:
    parts = event.op.parts or (event.op,)
    answers = event.seen[1] if event.op.parts else (event.seen,)
    names = {part.key for part in parts if not part.kind.endswith("_if")} | {answer[1] for answer in answers}
    return Held(number, conditions(event.op), frozenset(names | set(added)), tuple(added.items()))


def kept_from(event: Event, added: Mapping[str, Version], others: frozenset[Held]) -> bool:
    """Whether a request has to wait for one of the others. What is refused, or only reads, waits for nobody."""
    asks = conditions(event.op) if event.seen[0] < "400" else frozenset()
    return any(not one.names.isdisjoint(added) or not one.codes.isdisjoint(asks) for one in others)


def explained(world: World, events: list[Event], after: World, many: bool, apart: bool = False) -> bool:
    """Whether some order that time allows gives every answer and ends in what is stored. `apart`: others may come
    between a condition and what is written upon it."""
    dead: set[Any] = set()

    def go(world: World, left: frozenset[int], waiting: frozenset[Held]) -> bool:
        if not left:
            return world == after
        mark = (left, waiting, tuple(sorted((name, versions) for name, versions in world.items())).__repr__())
        if mark in dead:
            return False
        for one in waiting:
            if go(_with(world, dict(one.added)), left - {one.number}, waiting - {one}):
                return True
        first_end = min(events[number].ended for number in left)
        for number in sorted(left - {one.number for one in waiting}, key=lambda n: events[n].ended):
            event = events[number]
            added = decided(world, event, many) if event.began <= first_end else None
            if added is None or kept_from(event, added, waiting):
                continue
            if apart and added and conditions(event.op):
                if go(world, left, waiting | {held(number, event, added)}):
                    return True
            elif go(_with(world, added), left - {number}, waiting):
                return True
        dead.add(mark)
        return False

    return go(world, frozenset(range(len(events))), frozenset())


def _with(world: World, added: Mapping[str, Version]) -> World:
    return {**world, **{name: (*world.get(name, ()), version) for name, version in added.items()}}
