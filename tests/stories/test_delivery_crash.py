"""Nothing lost, nothing doubled: worker processes are killed and frozen while messages flow in and out through partners
that answer late, half, wrongly, or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from delivery_hub import until

from conformance.peers.mllp import Peer
from fhir_server.context import SYSTEM, new_delivery_id
from fhir_server.demo import story
from fhir_server.demo.play import free_ports
from fhir_server.store.engine import Store, open_store
from fhir_server.store.inbox import InboxFilter, InboxRow
from fhir_server.store.lanes import Delivery, NewDelivery
from fhir_server.store.outbox_desk import Attempt, OutboxFilter, Policy
from hl7v2 import ack, mllp

PROGRAM = Path(__file__).with_name("delivery_worker.py")
FAULTS = ("silence", "late:0.5", "half", "wrong-msa-2", "AE", "AR", "reset", "close", "garbage")
HOLDING = "lane-0"  # what this destination leaves unanswered is held for a person


def flaky(seed: str, length: int) -> list[str]:
    """A partner's answers: three of four are AA, the others any fault."""
    dice = random.Random(seed)
    return [dice.choice(FAULTS) if dice.random() < 0.25 else "AA" for _ in range(length)]


@dataclass
class Engine:
    """The processes on one database, the partners they send to, and what clients were answered."""

    url: str
    folder: Path
    ports: list[int]
    peers: dict[str, Peer]
    processes: dict[int, int] = field(default_factory=dict)
    nursery: subprocess.Popen[str] | None = None
    answered: dict[str, str] = field(default_factory=dict)
    flowing: threading.Condition = field(default_factory=threading.Condition)
    allowed: int = 0
    woken: list[float] = field(default_factory=list)
    """When frozen processes went on, time.monotonic()."""

    def let(self, count: int) -> None:
        """Clients may send the first `count` messages."""
        with self.flowing:
            self.allowed = max(self.allowed, count)
            self.flowing.notify_all()

    def wait_for(self, place: int) -> None:
        with self.flowing:
            self.flowing.wait_for(lambda: place < self.allowed)

    def start(self, number: int, how: str = "") -> None:
        if self.nursery is None:
            paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
            self.nursery = subprocess.Popen(
                [sys.executable, str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **paths},
                text=True,
            )
        assert self.nursery.stdin is not None and self.nursery.stdout is not None
        lanes = json.dumps({name: f"mllp://127.0.0.1:{peer.port}" for name, peer in self.peers.items()})
        log = self.folder / f"worker-{number}.log"
        order = [self.url, str(self.folder), self.ports[number], lanes, how, str(log)]
        self.nursery.stdin.write(json.dumps(order) + "\n")
        self.nursery.stdin.flush()
        word, _, pid = self.nursery.stdout.readline().strip().partition(" ")
        assert word == "ready", log.read_text()[-3000:]
        self.processes[number] = int(pid)

    def kill(self, number: int) -> None:
        pid = self.processes.pop(number)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists(), 20)

    def signal(self, number: int, how: signal.Signals) -> None:
        os.kill(self.processes[number], how)

    def stopped(self, number: int) -> bool:
        return Path(f"/proc/{self.processes[number]}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def close(self) -> None:
        for number in list(self.processes):
            self.kill(number)
        if self.nursery is not None:
            self.nursery.communicate(timeout=20)
        for peer in self.peers.values():
            peer.close()

    def ask(self, number: int, control_id: str, raw: bytes, ended: threading.Event) -> None:
        """A client that repeats the same bytes to whichever process listens until it is answered for good."""
        port = number
        while not ended.is_set():
            port += 1
            try:
                told = ack.read(mllp.send(("127.0.0.1", self.ports[port % len(self.ports)]), raw, timeout=2.0))
            except mllp.MllpFault:
                ended.wait(0.05)
                continue
            if told.code != "AR":
                self.answered[control_id] = told.code
                return


def document(control_id: str, lane: str) -> bytes:
    head = f"MSH|^~\\&|CLIENT|CH|PASSERELLE|{lane}|20261121||MDM^T02^MDM_T02|{control_id}|T|2.6\r"
    return (head + f"EVN||20261121\rOBX|1|TX|||{control_id}\r").encode()


def admission(control_id: str) -> bytes:
    return story.admission(control_id)


def wanted(count: int, lanes: int) -> list[tuple[str, bytes]]:
    """Documents for every lane, and now and then a patient's admission, which all say the same."""
    return [
        (f"IN{n:06d}", admission(f"IN{n:06d}") if n % 25 == 0 else document(f"IN{n:06d}", f"lane-{n % lanes}"))
        for n in range(count)
    ]


@pytest.fixture
def engine(tmp_path: Path, story_database: str) -> Iterator[Callable[..., Engine]]:
    """Makes an engine of so many processes (one on SQLite, which has no more) and so many flaky partners."""
    with ExitStack() as closing:

        def make(processes: int, lanes: int, answers: int, seed: int) -> Engine:
            url = story_database or f"sqlite:///{tmp_path / 'passerelle.sqlite'}"
            peers = {f"lane-{n}": Peer(script=flaky(f"{seed} {n}", answers)).start() for n in range(lanes)}
            made = Engine(url, tmp_path, free_ports(processes if story_database else 1), peers)
            store = open_store(url, tmp_path, migrate=True)
            first = NewDelivery(HOLDING, "mllp://127.0.0.1:1", "hl7", b"x", on_stuck="skip")  # it makes the lane
            key = store.write(SYSTEM, lambda tx: tx.send(first))
            store.write(SYSTEM, lambda tx: tx.cancel(key, "never sent"))
            store.write(SYSTEM, lambda tx: tx.set_policy(HOLDING, Policy(on_silence="hold")))
            store.close()
            closing.callback(made.close)
            for number in range(len(made.ports)):
                made.start(number)
            return made

        yield make


def flow(engine: Engine, messages: list[tuple[str, bytes]], clients: int) -> list[threading.Thread]:
    """Clients that share the messages between them; each sends its own in order, as far as the engine lets them."""
    ended = threading.Event()

    def client(number: int) -> None:
        for place in range(number, len(messages), clients):
            engine.wait_for(place)
            engine.ask(number, *messages[place], ended)

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    return threads


def shake(engine: Engine, kills: int, messages: int, seed: int, frozen: float) -> None:
    """Kills a process so many times, and freezes one now and then for longer than its lease, at random moments; with
    each kill more messages may flow, so that they do until the last."""
    dice, pause, killed, turn = random.Random(seed), threading.Event(), 0, 0
    while killed < kills:
        engine.let(messages * (killed + 1) // kills)
        pause.wait(dice.uniform(0.05, 0.6))
        number, turn = dice.randrange(len(engine.ports)), turn + 1
        if len(engine.ports) > 1 and turn % 4 == 2:
            engine.signal(number, signal.SIGSTOP)
            pause.wait(frozen)
            engine.woken.append(time.monotonic())
            engine.signal(number, signal.SIGCONT)
        else:
            engine.kill(number)
            killed += 1
            engine.start(number)


def settled(engine: Engine, seconds: float) -> tuple[list[InboxRow], list[Delivery], dict[str, list[Attempt]]]:
    """Everything stored once nothing waits any more."""
    store = open_store(engine.url, engine.folder, migrate=False)
    try:
        until(lambda: not waiting(store), seconds, lambda: waiting(store))
        with store.read(SYSTEM) as snapshot:
            inbox = snapshot.messages(InboxFilter(limit=20_000))
            outbox = [one for one in snapshot.deliveries(OutboxFilter(limit=20_000)) if one.title]
            attempts = {one.id: snapshot.attempts(one.id) for one in outbox}
    finally:
        store.close()
    return inbox, outbox, attempts


def waiting(store: Store) -> list[tuple[str, int, int]]:
    with store.read(SYSTEM) as snapshot:
        return [(lane.name, lane.open, lane.failures) for lane in snapshot.lanes() if lane.open]


def reconcile(engine: Engine, messages: list[tuple[str, bytes]], seconds: float) -> Counter[str]:
    """Every message in once; every delivery out once, held, or refused with its reason; each lane in its order.
    How many are in each state, and how many attempts there were, cut off, and with an outcome that came late."""
    assert engine.answered == {control_id: "AA" for control_id, _ in messages}
    inbox, outbox, attempts = settled(engine, seconds)
    assert Counter(row.control_id for row in inbox) == Counter(control_id for control_id, _ in messages)
    assert {row.state for row in inbox} == {"done"}
    documents = [control_id for control_id, raw in messages if b"|MDM^" in raw]
    assert sorted(one.title for one in outbox) == documents
    assert all(one.error for one in outbox if one.state in ("held", "error"))
    of_lane: dict[str, dict[str, Delivery]] = defaultdict(dict)
    for one in outbox:
        of_lane[one.lane][one.id] = one
    behind = sum(in_order(of_lane[name], peer, engine.woken) for name, peer in engine.peers.items())
    assert behind <= len(engine.woken) / 10, f"{behind} came again behind a later one, {len(engine.woken)} freezes"
    for one in outbox:
        assert [attempt.n for attempt in attempts[one.id]] == list(range(1, one.attempts + 1))
        tokens = [attempt.token for attempt in attempts[one.id]]
        assert tokens == sorted(set(tokens)), "each attempt under a lease of its own"
    states = Counter[str](one.state for one in outbox)
    states["attempts"] = sum(len(tried) for tried in attempts.values())
    states["cut off"] = sum(one.outcome == "interrupted" for tried in attempts.values() for one in tried)
    states["behind a later one"] = behind
    states["late"] = sum(one.outcome.startswith("late") for tried in attempts.values() for one in tried)
    return states


def in_order(lane: dict[str, Delivery], peer: Peer, woken: list[float]) -> int:
    """What a partner saw: known deliveries, the same bytes each time, none behind a later one; but a process that was
    frozen between its last look at the clock and the system call sends once more when it wakes (docs/delivery.md, where
    the fencing holds): how many came so."""
    seen: dict[str, list[tuple[bytes, str]]] = defaultdict(list)
    highest = behind = 0
    for frame in peer.received:
        one = lane[frame.control_id]
        if one.lane_seq < highest:
            behind += 1
            assert seen[one.id], f"{one.id} came for the first time behind a later one"
            assert any(0 <= frame.at - moment < 0.5 for moment in woken), f"{one.id} came again behind a later one"
        highest = max(highest, one.lane_seq)
        seen[one.id].append((frame.raw, frame.step))
    for key, one in lane.items():
        raws, steps = {raw for raw, _ in seen[key]}, [step for _, step in seen[key]]
        assert len(raws) <= 1, f"{key} was sent with other bytes"
        if one.state == "sent":
            assert steps and any(step == "AA" or step.startswith("late:") for step in steps)
        elif one.state == "error":
            assert "AE" in steps and one.error.startswith("AE")
        else:
            assert (one.state, one.lane) == ("held", HOLDING)
    return behind


def shaken(house: Engine, messages: list[tuple[str, bytes]], clients: int, kills: int, seconds: float) -> Counter[str]:
    """Messages flow while processes are killed; everything reconciles when it is over."""
    threads = flow(house, messages, clients)
    shake(house, kills, len(messages), seed=len(messages) + len(house.ports), frozen=1.4)
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), f"{len(house.answered)} of {len(messages)} were answered"
    return reconcile(house, messages, seconds)


@pytest.mark.timeout(180)
def test_messages_flow_whole_through_kills_freezes_and_flaky_partners(engine: Callable[..., Engine]) -> None:
    house, messages = engine(2, lanes=3, answers=40, seed=6), wanted(36, lanes=3)
    states = shaken(house, messages, clients=4, kills=3, seconds=60)
    assert states["sent"] > states["error"] + states["held"] > 0


KILLS, MESSAGES = int(os.environ.get("CRASH_KILLS", "200")), int(os.environ.get("CRASH_MESSAGES", "10000"))


@pytest.mark.long(minutes=8)
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("story_database", "processes"),
    [
        ("sqlite", 1),
        pytest.param("postgresql", 2, marks=pytest.mark.needs("postgresql")),
        pytest.param("postgresql", 4, marks=pytest.mark.needs("postgresql")),
    ],
    indirect=["story_database"],
)
def test_ten_thousand_messages_flow_whole_through_two_hundred_kills(
    engine: Callable[..., Engine], processes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """CRASH_KILLS and CRASH_MESSAGES make it shorter for a look. Its counts are printed."""
    house, messages = engine(processes, lanes=20, answers=2_000, seed=processes), wanted(MESSAGES, lanes=20)
    began = time.monotonic()
    states = shaken(house, messages, clients=12, kills=KILLS, seconds=300)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    with capsys.disabled():
        spent = time.monotonic() - began
        print(f"\n{processes} process(es), {KILLS} kills, {MESSAGES} messages answered AA: {told}; {spent:.0f} s")
    assert states["sent"] > states["error"] + states["held"] > 0


@pytest.mark.needs("postgresql")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("processes", [2, 4])
def test_a_worker_frozen_beyond_its_lease_sends_nothing_when_it_wakes(
    empty_postgres: str, tmp_path: Path, processes: int
) -> None:
    """All but the last stop themselves when they are about to send, their attempt noted; the last takes over."""
    store = open_store(empty_postgres, tmp_path, migrate=True)
    with ExitStack() as closing:
        closing.callback(store.close)
        peers = {f"lane-{n}": closing.enter_context(Peer()) for n in range(processes)}
        house = Engine(empty_postgres, tmp_path, free_ports(processes), peers)
        closing.callback(house.close)
        for number in range(processes - 1):
            house.start(number, "sending")
            queued(store, f"lane-{number}", peers)
            until(partial(house.stopped, number), told=lambda: waiting(store))
            queued(store, f"lane-{number}", peers)
        house.start(processes - 1)
        until(lambda: not waiting(store), 30, lambda: waiting(store))
        before = {name: [frame.control_id for frame in peer.received] for name, peer in peers.items()}
        for number in range(processes - 1):
            house.signal(number, signal.SIGCONT)
        until(lambda: late(store) == ["late: retry"] * (processes - 1), told=lambda: late(store))
        assert {name: [frame.control_id for frame in peer.received] for name, peer in peers.items()} == before
        assert all(len(ids) == len(set(ids)) for ids in before.values()), "each was sent once, by its second holder"
        assert sum(map(len, before.values())) == 2 * (processes - 1)


@pytest.mark.needs("postgresql")
@pytest.mark.timeout(180)
def test_a_worker_frozen_behind_its_last_look_repeats_the_same_bytes_and_changes_nothing_else(
    empty_postgres: str, tmp_path: Path
) -> None:
    """No look at a clock closes the step from it to the system call: these bytes come a second time, behind later ones,
    as the documentation says. What the second holder settled stays, and the lane goes on."""
    store = open_store(empty_postgres, tmp_path, migrate=True)
    with ExitStack() as closing:
        closing.callback(store.close)
        peer = closing.enter_context(Peer())
        house = Engine(empty_postgres, tmp_path, free_ports(2), {"lane-0": peer})
        closing.callback(house.close)
        house.start(0, "sent")
        queued(store, "lane-0", house.peers)
        until(lambda: house.stopped(0), told=lambda: waiting(store))
        queued(store, "lane-0", house.peers)
        house.start(1)
        until(lambda: not waiting(store), 30, lambda: waiting(store))
        first, second = (frame.raw for frame in peer.received)
        house.signal(0, signal.SIGCONT)
        until(lambda: late(store) == ["late: sent"], told=lambda: late(store))
        assert [frame.raw for frame in peer.received] == [first, second, first]
        queued(store, "lane-0", house.peers)
        until(lambda: not waiting(store), 30, lambda: waiting(store))
        with store.read(SYSTEM) as snapshot:
            told = {one.id: (one.state, one.attempts) for one in snapshot.deliveries()}
        assert sorted(told.values()) == [("sent", 1), ("sent", 1), ("sent", 2)]
        assert told[peer.received[0].control_id] == ("sent", 2)


@pytest.mark.needs("postgresql")
@pytest.mark.timeout(180)
def test_a_worker_frozen_within_a_transaction_is_put_out_by_the_database_and_harmless(
    empty_postgres: str, tmp_path: Path
) -> None:
    """It holds the row of its lane; other lanes go on at once, its own when the database has ended its session."""
    store = open_store(empty_postgres, tmp_path, migrate=True)
    with ExitStack() as closing:
        closing.callback(store.close)
        peers = {f"lane-{n}": closing.enter_context(Peer()) for n in range(2)}
        house = Engine(empty_postgres, tmp_path, free_ports(2), peers)
        closing.callback(house.close)
        house.start(0, "taking")
        queued(store, "lane-0", peers)
        until(lambda: house.stopped(0), told=lambda: waiting(store))
        queued(store, "lane-1", peers)
        house.start(1)
        peers["lane-1"].wait_for(1)
        assert not peers["lane-0"].received, "its lane is held"
        peers["lane-0"].wait_for(1, 40)
        until(lambda: not waiting(store), told=lambda: waiting(store))
        house.signal(0, signal.SIGCONT)
        house.kill(1)
        queued(store, "lane-0", peers)
        queued(store, "lane-1", peers)
        until(lambda: not waiting(store), 30, lambda: waiting(store))
        assert [len({frame.control_id for frame in peer.received}) for peer in peers.values()] == [2, 2]
        assert [len(peer.received) for peer in peers.values()] == [2, 2], "what it woke up with was not sent"


def queued(store: Store, lane: str, peers: dict[str, Peer]) -> None:
    key = new_delivery_id()
    one = NewDelivery(lane, f"mllp://127.0.0.1:{peers[lane].port}", "hl7", document(key, lane), id=key)
    store.write(SYSTEM, lambda tx: tx.send(one))


def late(store: Store) -> list[str]:
    """How attempts ended whose worker had lost its lease."""
    with store.read(SYSTEM) as snapshot:
        found = [attempt.outcome for one in snapshot.deliveries() for attempt in snapshot.attempts(one.id)]
    return [outcome for outcome in found if outcome.startswith("late")]
