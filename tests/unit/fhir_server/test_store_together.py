"""Work that one thread does for those that wait: in order, each with its own outcome, and nobody is forgotten."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

import pytest

from fhir_server import errors
from fhir_server.store.together import Together, Turn

Work = Callable[[], object]


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.002)


class Bench:
    """A line whose leader runs what waits, at most `most` at a time, and notes who ran it."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.groups: list[tuple[int, int]] = []
        self.line: Together[Work] = Together(self.lead)

    def lead(self, first: Turn[Work], line: Together[Work]) -> None:
        turn, done = first, 0
        while True:
            try:
                line.settle(turn, turn.work())
            except Exception as fault:
                line.settle(turn, fault=fault)
            done += 1
            following = line.following() if done < self.most else None
            if following is None:
                break
            turn = following
        self.groups.append((threading.get_ident(), done))

    def behind(self, works: list[Work], outcomes: dict[int, object]) -> tuple[list[threading.Thread], threading.Event]:
        """A leader that waits for the event, and the works that wait behind it, in order."""
        entered, go_on = threading.Event(), threading.Event()

        def first() -> None:
            entered.set()
            assert go_on.wait(20)

        def run(number: int, work: Work) -> None:
            try:
                outcomes[number] = self.line.do(work)
            except Exception as fault:
                outcomes[number] = fault

        threads = [threading.Thread(target=self.line.do, args=(first,))]
        threads[0].start()
        assert entered.wait(20)
        for number, work in enumerate(works):
            threads.append(threading.Thread(target=run, args=(number, work)))
            threads[-1].start()
            until(lambda number=number: self.line.waiting > number)  # type: ignore[misc]  # a default has no type
        return threads, go_on


def test_who_comes_alone_does_the_work_itself() -> None:
    bench = Bench()
    assert bench.line.do(lambda: bench.line.inside) is True
    assert bench.groups == [(threading.get_ident(), 1)] and not bench.line.inside


@pytest.mark.parametrize(("most", "groups"), [(100, [7]), (3, [3, 3, 1]), (1, [1] * 7)])
def test_what_waits_is_done_in_order_each_with_its_own_outcome(most: int, groups: list[int]) -> None:
    bench, order, outcomes = Bench(most), list[int](), dict[int, object]()

    def work(number: int) -> object:
        order.append(number)
        if number == 3:
            raise ValueError("a defect")
        return number * 10

    threads, go_on = bench.behind([lambda n=n: work(n) for n in range(6)], outcomes)  # type: ignore[misc]  # a default has no type
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert order == list(range(6)) and [done for _, done in bench.groups] == groups
    assert isinstance(outcomes.pop(3), ValueError)
    assert outcomes == {n: n * 10 for n in (0, 1, 2, 4, 5)}
    assert bench.line.do(lambda: "after") == "after"


def test_closing_waits_for_what_waits_and_takes_nothing_more() -> None:
    bench, outcomes = Bench(1), dict[int, object]()
    threads, go_on = bench.behind([lambda: 1, lambda: 2], outcomes)
    closing = threading.Thread(target=bench.line.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    go_on.set()
    for thread in (*threads, closing):
        thread.join(20)
        assert not thread.is_alive()
    assert outcomes == {0: 1, 1: 2}
    with pytest.raises(errors.Unavailable, match="stopping"):
        bench.line.do(lambda: 3)
    bench.line.close()


class Interrupted(BaseException):
    pass


def test_nobody_waits_for_ever_for_a_leader_that_was_interrupted() -> None:
    """What it took and did not settle ends with a fault of its own for each; what it did not take is done."""

    def lead(first: Turn[int], line: Together[int]) -> None:
        if first.work:
            line.settle(first, first.work)
            return
        entered.set()
        assert go_on.wait(20)
        line.following(), line.following()
        raise Interrupted

    def run(number: int) -> None:
        try:
            outcomes[number] = line.do(number)
        except BaseException as fault:
            outcomes[number] = fault

    line, outcomes = Together(lead), dict[int, object]()
    entered, go_on = threading.Event(), threading.Event()
    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(5)]
    for number, thread in enumerate(threads):
        thread.start()
        assert entered.wait(20)
        until(lambda number=number: line.waiting == number)  # type: ignore[misc]  # a default has no type
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert isinstance(outcomes[0], Interrupted) and (outcomes[3], outcomes[4]) == (3, 4)
    told = outcomes[1], outcomes[2]
    assert all(isinstance(one, errors.Unavailable) for one in told) and told[0] is not told[1]
    assert line.do(7) == 7
    line.close()


def test_a_fault_of_all_is_raised_by_each_as_one_of_its_own() -> None:
    line: Together[int] = Together(lambda first, line: None)
    fault = errors.Unavailable("The disk is full.", code="no-store", http=507)
    turns = [Turn(1), Turn(2)]
    line.fail(turns, fault)
    faults = [turn.fault for turn in turns]
    assert len({id(one) for one in (*faults, fault)}) == 3
    for one in faults:
        assert isinstance(one, errors.Unavailable) and (one.status, one.issues) == (507, fault.issues)


def test_who_is_interrupted_while_waiting_leaves_and_nobody_else_waits_for_it() -> None:
    bench, outcomes, ran = Bench(1), dict[int, object](), list[str]()

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        threads, go_on = bench.behind([], outcomes)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            bench.line.do(lambda: ran.append("mine"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    go_on.set()
    threads[0].join(20)
    assert bench.line.do(lambda: "next") == "next" and ran == []
