"""The threads that answer what an event loop must not: a fixed number, started when first needed.

asyncio's own executor costs three times as much a call (two futures, a wake-up each). Here answers that come together
wake the loop once. See docs/adr/0037-reads-on-the-loop.md.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

log = logging.getLogger("passerelle.rest")
T = TypeVar("T")
_Done = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Hands:
    """Runs functions in threads for one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._done: deque[_Done] = deque()
        self._told = False
        self._free, self._threads = 0, list[threading.Thread]()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """The function's result, once a thread has run it. Call on the loop. Raises RuntimeError when no thread can be
        had to run it."""
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = self._loop.create_future()
        if self._free > 0 or len(self._threads) == self._most or not self._one_more():
            self._free -= 1
        self._work.put((work, future))
        return future

    def _one_more(self) -> bool:
        """Whether there is another thread. Where none can be had the work waits for those there are; raises
        RuntimeError where there is none at all."""
        thread = threading.Thread(target=self._serve, name=f"http-{len(self._threads) + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError as fault:
            if not self._threads:
                raise
            log.warning("HTTP goes on with %d threads of %d: %s", len(self._threads), self._most, fault)
            return False
        self._threads.append(thread)
        return True

    def _serve(self) -> None:
        while (told := self._work.get()) is not None:
            work, future = told
            try:
                done: _Done = (future, work(), None)
            except BaseException as fault:
                done = (future, None, fault)
            self._done.append(done)
            del work, future, told, done
            if not self._told:
                self._told = True
                assert self._loop is not None
                try:
                    self._loop.call_soon_threadsafe(self._settle)
                except RuntimeError:
                    return  # the loop has ended: nobody waits any more

    def _settle(self) -> None:
        self._told = False
        while self._done:
            future, value, fault = self._done.popleft()
            self._free += 1
            if future.done():
                continue
            if fault is None:
                future.set_result(value)
            else:
                future.set_exception(fault)

    def close(self) -> None:
        """Lets the threads end when they have done what they were given."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(10)
