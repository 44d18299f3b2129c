"""A stop while a delivery hangs before anything was sent: cut in time, recorded as not sent, and never sent later."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from delivery_hub import FIRST, attempts, hub_of, queue, row, until

from conformance.peers.mllp import Peer
from fhir_server.changes import Hub
from fhir_server.delivery.workers import Workers
from fhir_server.store.engine import Store


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_of(open_url(sqlite_url))


@pytest.fixture
def full() -> Iterator[int]:
    """A port whose queue of connections is full: whoever connects waits and hears nothing."""
    with ExitStack() as closing:
        listening = closing.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(8):
            waiting = closing.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def stopped_while(hub: Hub, begun: Callable[[], bool]) -> float:
    """Seconds a stop takes when one delivery is under way."""
    workers = Workers(hub, {}, senders=1)
    workers.start()
    until(lambda: row(hub).state == "sending" and begun())
    began = time.monotonic()
    workers.close()
    return time.monotonic() - began


def test_a_connection_that_hangs_is_given_up_at_a_stop_as_not_sent(hub: Hub, full: int) -> None:
    queue(hub, f"mllp://127.0.0.1:{full}", FIRST)
    hub = replace(hub, settings=replace(hub.settings, send_timeout_seconds=20.0))
    assert stopped_while(hub, lambda: True) < 5
    assert (row(hub).state, row(hub).error) == ("queued", "not sent: this server was stopped")
    assert [one.outcome for one in attempts(hub)] == ["retry"]


def test_a_look_up_that_hangs_is_given_up_at_a_stop_and_sends_nothing_later(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer, real = threading.Event(), threading.Event(), socket.getaddrinfo

    def slow(*args: Any, **more: Any) -> Any:
        asked.set()
        assert answer.wait(30)
        return real("127.0.0.1", *args[1:], **more)

    with Peer() as peer:
        queue(hub, f"mllp://dpi.example:{peer.port}", FIRST)
        hub = replace(hub, settings=replace(hub.settings, delivery_networks="dpi.example"))
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        assert stopped_while(hub, asked.is_set) < 5
        assert (row(hub).state, row(hub).error) == ("queued", "not sent: this server was stopped")
        answer.set()
        until(lambda: not [one for one in threading.enumerate() if one.name == "work-send-0"])
        assert peer.received == [] and row(hub).state == "queued"
