"""The store against a simple model: random interactions of concurrent callers, on both databases.

A round is a few callers, each with a few operations, run at once. Every operation notes when it began and ended by one
counter. Afterwards the model is built from what was answered: the answered versions of a resource give the order of its
writes, each write must have been allowed where it stands, and every other answer (a read, a refusal, a search) must
have been true at some moment between the operation's beginning and end. Then everything stored is compared with the
model.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from fhir_server import errors
from fhir_server.context import SYSTEM
from fhir_server.search.plan import Clause, Plan, Value
from fhir_server.search.rows import IndexRows
from fhir_server.store.engine import Store
from fhir_server.store.resources import Stored
from fhir_server.store.session import Snapshot, Tx
from fhir_server.store.view import Stale

KEYS, CODES, PID = ("a", "b", "c"), ("x", "y"), 4711
NEVER = 1 << 60
_runs = itertools.count()


@dataclass(frozen=True)
class Op:
    """What a caller asks for. `guess`: how far `if_version` is from the version it last saw; None: no condition."""

    kind: str
    key: str
    code: str = "x"
    guess: int | None = None


@dataclass
class Event:
    """An operation and its answer; `asked` is the version it insisted on."""

    op: Op
    began: int
    ended: int = NEVER
    outcome: str = ""
    found: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    seen: Any = None


@dataclass
class Version:
    """A version in the model, and the event that made it."""

    code: str
    count: int
    deleted: bool
    event: Event


def ops() -> st.SearchStrategy[Op]:
    guess = st.sampled_from([None, 0, 0, -1])
    key, code = st.sampled_from(KEYS), st.sampled_from(CODES)
    kinds = st.sampled_from(
        ["create", "update", "update", "delete", "bump", "bump", "pair", "read", "vread", "history", "search"]
    )
    return st.builds(Op, kinds, key, code, guess)


ROUND = st.lists(st.lists(ops(), min_size=1, max_size=4), min_size=1, max_size=4)


class Machine(RuleBasedStateMachine):
    """One run; its resources carry the run's number, so that the store need not be emptied."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.prefix = f"run{next(_runs)}-"
        self.clock = itertools.count(1)
        self.model: dict[str, list[Version]] = {key: [] for key in KEYS}
        self.faults: list[BaseException] = []

    # what callers do

    @rule(callers=ROUND)
    def callers_at_once(self, callers: list[list[Op]]) -> None:
        gate = threading.Barrier(len(callers))
        events: list[list[Event]] = [[] for _ in callers]

        def run(number: int) -> None:
            try:
                gate.wait(10)
                known = {key: len(versions) for key, versions in self.model.items()}
                for op in callers[number]:
                    event = Event(op, next(self.clock))
                    events[number].append(event)
                    self._do(event, known)
                    event.ended = next(self.clock)
                    known |= event.found
            except BaseException as fault:
                self.faults.append(fault)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(callers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if self.faults:
            raise self.faults[0]
        self._take_in([event for one in events for event in one])

    def _do(self, event: Event, known: dict[str, int]) -> None:
        op = event.op
        if op.guess is not None and op.kind in ("update", "delete"):
            event.asked = {op.key: max(1, known[op.key] + op.guess)}
        try:
            getattr(self, f"_{op.kind}")(event, known)
            event.outcome = event.outcome or "done"
        except Stale:
            event.outcome = "stale"
        except errors.Precondition:
            event.outcome = "precondition"
        except errors.Conflict:
            event.outcome = "conflict"
        except errors.NotFound:
            event.outcome = "not found"

    def _resource(self, key: str, code: str, count: int = 0) -> tuple[dict[str, Any], IndexRows]:
        resource = {"resourceType": "Basic", "id": self.prefix + key, "language": code, "count": count}
        return resource, IndexRows(token=[(PID, self.prefix, code, "")])

    def _wrote(self, event: Event, *made: Stored) -> None:
        event.found = {one.id.removeprefix(self.prefix): one.version for one in made}

    def _create(self, event: Event, _known: dict[str, int]) -> None:
        content = self._resource(event.op.key, event.op.code)
        self._wrote(event, self.store.write(SYSTEM, lambda tx: tx.create(*content)))

    def _update(self, event: Event, _known: dict[str, int]) -> None:
        content, version = self._resource(event.op.key, event.op.code), event.asked.get(event.op.key)
        self._wrote(event, self.store.write(SYSTEM, lambda tx: tx.update(*content, if_version=version)))

    def _delete(self, event: Event, _known: dict[str, int]) -> None:
        version, name = event.asked.get(event.op.key), self.prefix + event.op.key
        self._wrote(event, self.store.write(SYSTEM, lambda tx: tx.delete("Basic", name, if_version=version)))

    def _bump(self, event: Event, _known: dict[str, int]) -> None:
        """Read, add one, write back if nobody else wrote: no increment may be lost."""
        before = self.store.get(SYSTEM, "Basic", self.prefix + event.op.key)
        if before is None or before.deleted:
            event.outcome, event.found = "nothing to count", {event.op.key: before.version if before else 0}
            return
        event.asked = {event.op.key: before.version}
        content = self._resource(event.op.key, event.op.code, before.resource()["count"] + 1)
        self._wrote(event, self.store.write(SYSTEM, lambda tx: tx.update(*content, if_version=before.version)))

    def _pair(self, event: Event, _known: dict[str, int]) -> None:
        """Two resources read in one snapshot and written in one transaction that checks both."""
        keys = (event.op.key, KEYS[(KEYS.index(event.op.key) + 1) % len(KEYS)])
        with self.store.read(SYSTEM) as snapshot:
            before = {key: snapshot.get("Basic", self.prefix + key) for key in keys}
        event.asked = {key: one.version if one else 0 for key, one in before.items()}

        def work(tx: Tx) -> list[Stored]:
            names = {("Basic", self.prefix + key): number for key, number in event.asked.items()}
            tx.lock(*(f"{kind}/{name}" for (kind, name), number in names.items() if not number))
            tx.expect_many(names, writing=names)
            made = []
            for key in keys:
                content = self._resource(key, event.op.code)
                made.append(tx.update(*content) if event.asked[key] else tx.create(*content, absent=True))
            return made

        self._wrote(event, *self.store.write(SYSTEM, work))

    def _read(self, event: Event, _known: dict[str, int]) -> None:
        found = self.store.get(SYSTEM, "Basic", self.prefix + event.op.key)
        event.found = {event.op.key: found.version if found else 0}
        event.seen = found

    def _vread(self, event: Event, known: dict[str, int]) -> None:
        wanted = max(1, known[event.op.key] - 1)
        with self.store.read(SYSTEM) as snapshot:
            event.seen = snapshot.version("Basic", self.prefix + event.op.key, wanted)
        event.asked = {event.op.key: wanted}

    def _history(self, event: Event, _known: dict[str, int]) -> None:
        with self.store.read(SYSTEM) as snapshot:
            entries = snapshot.history("Basic", self.prefix + event.op.key, count=1000).entries
        event.found = {event.op.key: entries[0].version if entries else 0}
        event.seen = entries

    def _search(self, event: Event, _known: dict[str, int]) -> None:
        with self.store.read(SYSTEM) as snapshot:
            event.found = self._agreeing(snapshot, event.op.code)

    def _agreeing(self, snapshot: Snapshot, code: str) -> dict[str, int]:
        """What a search finds is what reading each resource in the same snapshot says; the versions read."""
        stored = {key: snapshot.get("Basic", self.prefix + key) for key in KEYS}
        value = Value(system=self.prefix, code=code)
        matches = snapshot.search(Plan(("Basic",), (Clause("code", "token", PID, (value,)),), total="accurate"))
        should = {
            one.id: one for one in stored.values() if one and not one.deleted and one.resource()["language"] == code
        }
        assert {one.id: one for one in matches.matches} == should
        assert matches.total == len(should)
        return {key: one.version if one else 0 for key, one in stored.items()}

    # what the model makes of it

    def _take_in(self, events: list[Event]) -> None:
        made: dict[str, dict[int, Event]] = {key: {} for key in KEYS}
        for event in events:
            if event.outcome == "done" and event.op.kind in ("create", "update", "delete", "bump", "pair"):
                for key, number in event.found.items():
                    if event.op.kind == "delete" and self._deletion_known(made, key, number, event):
                        continue
                    assert number not in made[key], f"two writes were told they made version {number} of {key}"
                    made[key][number] = event
        for key, numbers in made.items():
            self._append(key, numbers, events)
        for event in events:
            self._must_be_true(event)

    def _deletion_known(self, made: dict[str, dict[int, Event]], key: str, number: int, event: Event) -> bool:
        """Deleting what is deleted answers with that deletion and makes nothing; of two equal answers in one round the
        one that may have made it, and began first, is taken as its maker."""
        versions = self.model[key]
        if number <= len(versions):
            assert versions[number - 1].deleted
            return True
        other = made[key].get(number)
        if other is None or other.op.kind != "delete":
            return False
        made[key][number] = min(other, event, key=lambda one: (one.asked.get(key, number - 1) != number - 1, one.began))
        return True

    def _append(self, key: str, numbers: dict[int, Event], events: list[Event]) -> None:
        versions = self.model[key]
        assert sorted(numbers) == list(range(len(versions) + 1, len(versions) + len(numbers) + 1)), (
            "a version is missing"
        )
        for number, event in sorted(numbers.items()):
            before = versions[-1] if versions else None
            live = before is not None and not before.deleted
            kind = event.op.kind
            assert kind != "create" or not live, "created over a live resource"
            assert kind not in ("update", "bump") or before is not None, "updated what never existed"
            assert kind != "delete" or live, "deleted what was not there"
            assert kind != "bump" or live
            wanted = event.asked.get(key)
            assert wanted is None or wanted == number - 1, f"{key} was written over version {number - 1}, not {wanted}"
            assert before is None or before.event.began < event.ended, "an order that time forbids"
            count = before.count + 1 if kind == "bump" and before is not None else 0
            versions.append(Version("" if kind == "delete" else event.op.code, count, kind == "delete", event))

    def _moments(self, key: str, event: Event) -> Iterator[int]:
        """The versions (0: none) that may have been current at some moment of the event."""
        versions = self.model[key]
        for number in range(len(versions) + 1):
            from_then = versions[number - 1].event.began if number else 0
            until = versions[number].event.ended if number < len(versions) else NEVER
            if from_then < event.ended and until > event.began:
                yield number

    def _must_be_true(self, event: Event) -> None:
        key, versions = event.op.key, self.model[event.op.key]
        possible = set(self._moments(key, event))

        def live(number: int) -> bool:
            return number > 0 and not versions[number - 1].deleted

        match event.op.kind, event.outcome:
            case "pair", "stale" | "conflict":
                moved = {one for one in event.asked if set(self._moments(one, event)) - {event.asked[one]}}
                assert moved, "told that something moved when nothing did"
            case _, "precondition":
                assert possible - {0, event.asked[key]}
            case _, "conflict":
                assert any(live(number) for number in possible)
            case _, "not found":
                assert 0 in possible
            case "delete", "done":
                assert any(number and not live(number) for number in possible)
            case "bump", "nothing to count":
                assert not live(event.found[key]) and event.found[key] in possible
            case "read" | "history" | "search", _:
                for one, number in event.found.items():
                    assert number in set(self._moments(one, event)), f"{one} was not at {number} then"
        self._content_is_right(event)

    def _content_is_right(self, event: Event) -> None:
        key = event.op.key
        if event.op.kind == "read" and event.seen is not None:
            self._same(event.seen, key, event.found[key])
        elif event.op.kind == "history":
            assert [one.version for one in event.seen] == list(range(event.found[key], 0, -1))
            for one in event.seen:
                self._same(one, key, one.version)
        elif event.op.kind == "vread":
            wanted = event.asked[key]
            if event.seen is not None:
                self._same(event.seen, key, wanted)
            else:
                assert any(number < wanted for number in self._moments(key, event))

    def _same(self, stored: Stored, key: str, number: int) -> None:
        version = self.model[key][number - 1]
        assert (stored.version, stored.deleted) == (number, version.deleted)
        if not version.deleted:
            resource = stored.resource()
            assert (resource["language"], resource["count"]) == (version.code, version.count)
            assert resource["meta"]["versionId"] == str(number)

    @invariant()
    def what_is_stored_is_the_model(self) -> None:
        with self.store.read(SYSTEM) as snapshot:
            for code in CODES:
                assert self._agreeing(snapshot, code) == {key: len(versions) for key, versions in self.model.items()}
            for key, versions in self.model.items():
                name, last = self.prefix + key, None
                entries = snapshot.history("Basic", name, count=1000).entries
                assert [one.version for one in entries] == list(range(len(versions), 0, -1))
                for one in entries:
                    self._same(one, key, one.version)
                    assert snapshot.version("Basic", name, one.version) == one
                    assert last is None or one.last_updated < last
                    last = one.last_updated

    def teardown(self) -> None:
        with self.store.read(SYSTEM) as snapshot:
            told = snapshot.view.db.rows(
                "SELECT r.id, j.version FROM journal j JOIN resource r ON r.rid = j.rid WHERE r.type = 'Basic'"
            )
        mine = sorted((one, number) for one, number in told if one.startswith(self.prefix))
        assert mine == sorted(
            (self.prefix + key, number + 1) for key, versions in self.model.items() for number in range(len(versions))
        )


def play(store: Store, examples: int, steps: int, *, seeded: bool) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=seeded,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a run that failed is not the same when run again: nothing to shrink
        suppress_health_check=list(HealthCheck),
    )
    machine: Callable[[], Machine] = lambda: Machine(store)  # noqa: E731 - named for its type
    run_state_machine_as_test(machine, settings=chosen)  # type: ignore[no-untyped-call]  # hypothesis gives it no types


def test_the_store_is_its_model_for_concurrent_callers(store: Store) -> None:
    play(store, 10, 8, seeded=True)


@pytest.mark.long(minutes=3)
@pytest.mark.timeout(3600)
def test_the_store_is_its_model_for_concurrent_callers_at_length(store: Store) -> None:
    play(store, 400, 30, seeded=False)
