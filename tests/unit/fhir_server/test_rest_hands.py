"""The threads behind the event loop: what cannot be started is not counted, and work is done all the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from fhir_server.rest.hands import Hands


@contextmanager
def no_more_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While no thread for answers can be started."""
    start = threading.Thread.start

    def none_left(self: threading.Thread) -> None:
        if self.name.startswith("http-"):
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        yield


def test_without_any_thread_the_work_is_refused_and_later_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        hands = Hands(1)
        with no_more_threads(monkeypatch):
            for _ in range(3):
                with pytest.raises(RuntimeError, match="can't start"):
                    hands.run(lambda: 1)
        assert await asyncio.wait_for(hands.run(lambda: 2), 10) == 2, "no thread was counted that never ran"
        hands.close()

    asyncio.run(play())


def test_work_waits_for_the_threads_there_are_when_no_more_can_be_had(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, done = threading.Event(), list[int]()

    def first() -> int:
        assert gate.wait(10)
        return 0

    async def play() -> None:
        hands = Hands(3)
        futures = [hands.run(first)]
        with no_more_threads(monkeypatch):
            futures += [hands.run(partial(int, number)) for number in (1, 2)]
        gate.set()
        done.extend(await asyncio.wait_for(asyncio.gather(*futures), 10))
        assert await asyncio.wait_for(hands.run(lambda: 3), 10) == 3
        assert [thread.name for thread in hands._threads] == ["http-1"], "one is free, so none was started"
        gate.clear()
        busy, other = hands.run(first), hands.run(lambda: 4)
        assert await asyncio.wait_for(other, 10) == 4, "now that they can be had, another one does it"
        gate.set()
        await busy
        hands.close()

    asyncio.run(play())
    assert done == [0, 1, 2]
    assert caplog.text.count("goes on with 1 threads of 3") == 2
