"""The REST interface against a simple model: random interactions of concurrent clients, on both databases.

A round is a few clients, each with a few requests, sent at once. Each request notes when it began and ended. Then an
order of all requests is looked for that time allows (a request that had ended before another began stands before it)
and in which a model of a few lines, fed one request after the other, gives every answer that was given: status, id,
version, content, what a condition found; and ends in exactly what is stored, with every old version. No such order: an
update was lost, a condition was true for two, a reader saw half of a transaction.

Sources: https://hl7.org/fhir/R4/http.html; M. Herlihy, J. Wing, "Linearizability", ACM TOPLAS 12 (1990).
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hubs import hub_on
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from rest_calls import Answer, ask

from fhir_server.changes import Hub
from fhir_server.store.engine import Store

KEYS, CODES = ("a", "b", "c"), ("w", "x", "y")
NEVER = 1 << 60
_runs = itertools.count()
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


# --- the model -------------------------------------------------------------------------------------------------------


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


def step(world: World, event: Event, many: bool) -> World | None:
    """The world after a request; None when it would have been answered otherwise."""
    op = event.op
    if op.kind in ("read", "vread", "history", "search"):
        return world if reading_of(world, event) == event.seen else None
    if op.kind == "transaction":
        answer, added = transaction_of(world, event, many)
    else:
        new = event.seen[1] if len(event.seen) > 1 else "?"
        answer, added = answer_of(world, op, event.asked.get(0), new, many)
    if answer != event.seen or (op.kind.startswith("create") and added and event.seen[1] in world):
        return None
    return {**world, **{name: (*world.get(name, ()), version) for name, version in added.items()}}


def explained(world: World, events: list[Event], after: World, many: bool) -> bool:
    """Whether some order that time allows gives every answer and ends in what is stored."""
    dead: set[Any] = set()

    def go(world: World, left: frozenset[int]) -> bool:
        if not left:
            return world == after
        mark = (left, tuple(sorted((name, versions) for name, versions in world.items())).__repr__())
        if mark in dead:
            return False
        first_end = min(events[number].ended for number in left)
        for number in sorted(left, key=lambda n: events[n].ended):
            if events[number].began <= first_end:
                following = step(world, events[number], many)
                if following is not None and go(following, left - {number}):
                    return True
        dead.add(mark)
        return False

    return go(world, frozenset(range(len(events))))


# --- the clients -----------------------------------------------------------------------------------------------------


def single() -> st.SearchStrategy[Op]:
    kinds = ["create", "create_if", "create_if", "update", "update", "update", "update_if", "delete", "delete_if"]
    kinds += ["patch", "patch", "patch_if", "read", "read", "vread", "history", "search"]
    key, code, count = st.sampled_from(KEYS), st.sampled_from(CODES), st.integers(0, 999)
    match, absent = st.sampled_from([None, None, 0, 0, -1]), st.sampled_from([False, False, False, True])
    return st.builds(_sensible, st.sampled_from(kinds), key, code, count, match, absent)


def _sensible(kind: str, key: str, code: str, count: int, match: int | None, absent: bool) -> Op:
    match = match if kind in ("update", "delete", "patch", "read", "vread") else None
    return Op(kind, key, code, count, match, absent and kind == "update" and match is None)


def transactions() -> st.SearchStrategy[Op]:
    plain = st.sampled_from(["update", "update", "delete", "patch"])
    match = st.sampled_from([None, None, 0])
    entry = st.builds(Op, plain, st.sampled_from(KEYS), st.sampled_from(CODES), st.integers(0, 999), match)
    entries = st.lists(entry, min_size=1, max_size=3, unique_by=lambda one: one.key)
    condition = st.builds(Op, st.sampled_from(["create_if", "update_if"]), code=st.sampled_from(CODES))
    more = st.one_of(st.just(()), st.tuples(condition))
    return st.builds(lambda some, one: Op("transaction", parts=(*some, *one)), entries, more)


ROUND = st.lists(
    st.lists(st.one_of(single(), single(), single(), transactions()), min_size=1, max_size=4), min_size=1, max_size=4
)
_METHODS = {"create": "POST", "update": "PUT", "delete": "DELETE", "patch": "PATCH"}


class Machine(RuleBasedStateMachine):
    """One run; its resources carry the run's number, so that the store need not be emptied."""

    def __init__(self, hubs: tuple[Hub, Hub], told: Counter[str]) -> None:
        super().__init__()
        self.hubs, self.told = hubs, told
        self.prefix = f"run{next(_runs)}-"
        self.clock = itertools.count(1)
        self.world: World = {}
        self.faults: list[BaseException] = []

    @initialize(many=st.booleans())
    def chosen(self, many: bool) -> None:
        self.many, self.hub = many, self.hubs[many]

    @rule(clients=ROUND)
    def clients_at_once(self, clients: list[list[Op]]) -> None:
        gate = threading.Barrier(len(clients))
        events: list[list[Event]] = [[] for _ in clients]
        known = {name: len(versions) for name, versions in self.world.items()}

        def run(number: int) -> None:
            try:
                gate.wait(10)
                for op in clients[number]:
                    parts = op.parts or (op,)
                    asked = {
                        n: max(1, known.get(self.prefix + part.key, 0) + part.match)
                        for n, part in enumerate(parts)
                        if part.match is not None or part.kind == "vread"
                        for part in [Op(part.kind, part.key, match=part.match or 0)]
                    }
                    event = Event(op, next(self.clock), asked)
                    events[number].append(event)
                    event.seen = self._sent(event)
                    event.ended = next(self.clock)
            except BaseException as fault:
                self.faults.append(fault)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(clients))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if self.faults:
            raise self.faults[0]
        every = [event for one in events for event in one]
        self.told.update(f"{event.op.kind} {event.seen[0]}" for event in every)
        after = self._stored(every)
        mine = [Event(self._here(event.op), event.began, event.asked, event.ended, event.seen) for event in every]
        assert explained(self.world, mine, after, self.many), _report(self.world, mine, after)
        self.world = after

    def _here(self, op: Op) -> Op:
        """The request with the ids of this run."""
        parts = tuple(self._here(part) for part in op.parts)
        return Op(op.kind, self.prefix + op.key, op.code, op.count, op.match, op.absent, parts)

    # how requests are sent and what is made of the answers

    def _condition(self, code: str) -> str:
        return f"identifier={self.prefix}|{code}"

    def _content(self, op: Op) -> Any:
        if op.kind.startswith("patch"):
            return [{"op": "replace", "path": "/code/text", "value": str(op.count)}]
        identifier = [{"system": self.prefix, "value": op.code}]
        content = {"resourceType": "Basic", "identifier": identifier, "code": {"text": str(op.count)}}
        return content | ({"id": self.prefix + op.key} if op.kind == "update" else {})

    def _url(self, op: Op) -> str:
        if op.kind in ("create", "create_if"):
            return "Basic"
        return f"Basic?{self._condition(op.code)}" if op.kind.endswith("_if") else f"Basic/{self.prefix}{op.key}"

    def _sent(self, event: Event) -> Seen:
        op = event.op
        if op.kind == "transaction":
            return self._transaction(event)
        if op.kind.partition("_")[0] in _METHODS:
            headers = {"if_match": f'W/"{event.asked[0]}"'} if event.asked else {}
            headers |= {"if_none_match": "*"} if op.absent else {}
            headers |= {"if_none_exist": self._condition(op.code)} if op.kind == "create_if" else {}
            headers |= {"content_type": "application/json-patch+json"} if op.kind.startswith("patch") else {}
            body = None if op.kind.startswith("delete") else self._content(op)
            return self._written(ask(self.hub, _METHODS[op.kind.partition("_")[0]], self._url(op), body, **headers))
        return self._read(event)

    def _written(self, answer: Answer) -> Seen:
        if answer.status >= 400:
            assert answer.issue["diagnostics"]
            return (str(answer.status),)
        version = int(answer.headers.get("etag", 'W/"0"')[3:-1])
        if answer.status == 204:
            return "204", "", version
        address = answer.headers["location" if answer.status == 201 else "content-location"].split("/")
        resource = answer.json()
        assert (address[-3], address[-1]) == (resource["id"], str(version))
        assert resource["meta"]["versionId"] == str(version)
        return str(answer.status), resource["id"], version

    def _transaction(self, event: Event) -> Seen:
        entries = []
        for number, part in enumerate(event.op.parts):
            told = {"method": _METHODS[part.kind.partition("_")[0]], "url": self._url(part)}
            told |= {"ifMatch": f'W/"{event.asked[number]}"'} if number in event.asked else {}
            told |= {"ifNoneExist": self._condition(part.code)} if part.kind == "create_if" else {}
            entry: dict[str, Any] = {"request": told}
            if part.kind == "patch":
                entry["resource"] = _fhirpath_patch(part.count)
            elif part.kind != "delete":
                entry["resource"] = self._content(part)
            entries.append(entry)
        answer = ask(self.hub, "POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": entries})
        if answer.status >= 400:
            assert answer.issue["diagnostics"]
            return (str(answer.status),)
        made = []
        for entry in answer.entries:
            told = entry["response"]
            place = told.get("location", "//_history/0").split("/")
            assert told.get("etag", f'W/"{place[3]}"') == f'W/"{place[3]}"'
            made.append((told["status"][:3], place[1], int(place[3])))
        return "200", tuple(made)

    def _read(self, event: Event) -> Seen:
        op = event.op
        if op.kind == "search":
            answer = ask(self.hub, "GET", f"Basic?{self._condition(op.code)}&_count=1000")
            return "200", tuple(sorted(_told(entry["resource"]) for entry in answer.entries))
        if op.kind == "history":
            return self._history(self.prefix + op.key)
        headers, url = {}, self._url(op)
        if op.kind == "vread":
            url += f"/_history/{event.asked[0]}"
        elif event.asked:
            headers = {"if_none_match": f'W/"{event.asked[0]}"'}
        answer = ask(self.hub, "GET", url, **headers)
        if answer.status == 304:
            return "304", int(answer.headers["etag"][3:-1])
        if answer.status != 200:
            return (str(answer.status),)
        name, number, content = _told(answer.json())
        assert answer.headers["etag"] == f'W/"{number}"' and name == self.prefix + op.key
        return "200", number, content

    def _history(self, name: str) -> Seen:
        answer = ask(self.hub, "GET", f"Basic/{name}/_history?_count=1000")
        if answer.status != 200:
            return (str(answer.status),)
        assert answer.json()["total"] == len(answer.entries)
        return "200", tuple(_version(entry) for entry in answer.entries)

    def _stored(self, events: list[Event]) -> World:
        """Everything of this run that is stored; a search must agree with it."""
        names = {self.prefix + key for key in KEYS} | set(self.world)
        for event in events:
            made = event.seen[1] if event.op.kind == "transaction" and len(event.seen) > 1 else (event.seen,)
            names |= {one[1] for one in made if len(one) > 2 and one[0] in ("200", "201") and isinstance(one[1], str)}
        for code in CODES:
            names |= {one[0] for one in self._read(Event(Op("search", code=code), 0))[1]}
        after: dict[str, tuple[Version, ...]] = {}
        for name in sorted(names):
            told = self._history(name)
            if told[0] == "200":
                assert [number for number, _ in told[1]] == list(range(len(told[1]), 0, -1))
                after[name] = tuple(version for _, version in reversed(told[1]))
        for code in CODES:
            event = Event(Op("search", code=code), 0)
            assert self._read(event) == reading_of(after, event)
        return after


def _fhirpath_patch(count: int) -> dict[str, Any]:
    part = [
        {"name": "type", "valueCode": "replace"},
        {"name": "path", "valueString": "Basic.code.text"},
        {"name": "value", "valueString": str(count)},
    ]
    return {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": part}]}


def _told(resource: dict[str, Any]) -> tuple[str, int, Version]:
    content = resource["identifier"][0]["value"], int(resource["code"]["text"])
    return resource["id"], int(resource["meta"]["versionId"]), content


def _version(entry: dict[str, Any]) -> tuple[int, Version]:
    number = int(entry["response"]["etag"][3:-1])
    if entry["request"]["method"] == "DELETE":
        assert "resource" not in entry
        return number, None
    name, told, content = _told(entry["resource"])
    assert told == number and entry["fullUrl"].endswith(f"Basic/{name}")
    return number, content


def _report(world: World, events: list[Event], after: World) -> str:
    lines = ["no order of these requests gives these answers and ends in what is stored", f"before: {world}"]
    lines += [f"{one.began}-{one.ended} {one.op} asked {one.asked}: {one.seen}" for one in sorted(events, key=_began)]
    return "\n".join([*lines, f"after: {after}"])


def _began(event: Event) -> int:
    return event.began


# --- tests -----------------------------------------------------------------------------------------------------------


def play(store: Store, examples: int, steps: int, *, seeded: bool) -> Counter[str]:
    hubs = (hub_on(store), hub_on(store, conditional_delete="multiple"))
    told: Counter[str] = Counter()
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=seeded,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a run that failed is not the same when run again: nothing to shrink
        suppress_health_check=list(HealthCheck),
    )
    machine: Callable[[], Machine] = lambda: Machine(hubs, told)  # noqa: E731
    run_state_machine_as_test(machine, settings=chosen)  # type: ignore[no-untyped-call]
    return told


def test_concurrent_clients_see_what_one_after_the_other_would_see(store: Store) -> None:
    told = play(store, 8, 6, seeded=True)
    wanted = {"create 201", "update 200", "update 412", "patch 200", "delete 204", "transaction 200", "search 200"}
    assert not wanted - set(told), "the run did not come across what it is for"


@pytest.mark.long(minutes=6)
@pytest.mark.timeout(3600)
def test_concurrent_clients_see_what_one_after_the_other_would_see_at_length(store: Store) -> None:
    told = play(store, 300, 25, seeded=False)
    wanted = {"create_if 200", "create_if 412", "update_if 200", "patch_if 200", "transaction 412", "read 304"}
    assert not wanted - set(told), "the run did not come across what it is for"


def _done(op: Op, began: int, ended: int, *seen: Any, asked: int | None = None) -> Event:
    return Event(op, began, {} if asked is None else {0: asked}, ended, seen)


def broken() -> Iterator[tuple[World, list[Event], World]]:
    """What the judge must not explain."""
    first: World = {"a": (("x", 1),)}
    put = Op("update", "a", "x", 2, 0)
    lost = [_done(put, 1, 4, "200", "a", 2, asked=1), _done(put, 2, 3, "200", "a", 3, asked=1)]
    yield first, lost, {"a": (("x", 1), ("x", 2), ("x", 2))}
    twice = [
        _done(Op("create_if", code="x"), 1, 4, "201", "n", 1),
        _done(Op("create_if", code="x"), 2, 3, "201", "m", 1),
    ]
    yield {}, twice, {"n": (("x", 0),), "m": (("x", 0),)}
    yield (
        first,
        [_done(put, 1, 2, "200", "a", 2), _done(Op("read", "a"), 3, 4, "200", 1, ("x", 1))],
        {"a": (("x", 1), ("x", 2))},
    )
    yield first, [_done(put, 1, 2, "200", "a", 2)], first
    both = Op("transaction", parts=(Op("update", "a", "y", 5), Op("update", "b", "y", 6)))
    half = [
        _done(both, 1, 6, "200", (("200", "a", 2), ("201", "b", 1))),
        _done(Op("read", "a"), 2, 3, "200", 2, ("y", 5)),
        _done(Op("read", "b"), 4, 5, "404"),
    ]
    yield first, half, {"a": (("x", 1), ("y", 5)), "b": (("y", 6),)}


@pytest.mark.parametrize("case", list(broken()), ids=["lost update", "two creators", "stale read", "unkept", "half"])
def test_the_judge_finds_no_order_for_what_must_not_happen(case: tuple[World, list[Event], World]) -> None:
    assert not explained(*case, many=False)
