"""Connections kept between two deliveries: used again in order, noticed when they are gone, left when they must be."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from delivery_hub import FIRST, SECOND, attempts, hub_of, queue, row, until

from conformance.peers.mllp import CR, FS, VT, Peer, acknowledgement, frames
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, now
from fhir_server.delivery import connections, workers
from fhir_server.delivery.connections import Connections
from fhir_server.store.engine import Store
from fhir_server.store.outbox_desk import Policy
from hl7v2 import ack, mllp
from hl7v2.mllp import Listener

KEYS = tuple(f"AAAAAAAAAAAAAAAAAB{number:02d}" for number in range(20))


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return hub_of(open_url(sqlite_url), send_timeout_seconds=10.0)


@pytest.fixture
def lines(hub: Hub) -> Iterator[workers.Lines]:
    one = workers.Lines(hub)
    yield one
    one.connections.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A partner that tells how many connections it has."""
    one = Listener(("127.0.0.1", 0), lambda raw, _: ack.build(raw, "AA", now=now(), control_id="ACK1"))
    one.start()
    yield one
    assert one.close()


def keep(hub: Hub, seconds: float, lane: str = "dpi", **more: Any) -> None:
    hub.store.write(SYSTEM, lambda tx: tx.set_policy(lane, Policy(keep_open_seconds=seconds, **more)))


def turns(hub: Hub, lines: workers.Lines) -> None:
    """One worker, until nothing is due."""
    while workers.deliver(hub, lines, lambda: True):
        pass


@pytest.mark.parametrize(("seconds", "wanted"), [(60.0, [1] * 20), (0.0, list(range(1, 21)))])
def test_a_lane_that_keeps_its_connection_has_one_and_one_that_does_not_has_one_a_message(
    hub: Hub, lines: workers.Lines, seconds: float, wanted: list[int]
) -> None:
    with Peer() as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", *KEYS)
        keep(hub, seconds)
        turns(hub, lines)
        assert [frame.control_id for frame in peer.received] == list(KEYS)
        assert [frame.connection for frame in peer.received] == wanted
        assert lines.connections.idle == bool(seconds)


def test_two_lanes_to_one_partner_have_a_connection_each(hub: Hub, lines: workers.Lines) -> None:
    with Peer() as peer:
        for key in KEYS[:6]:
            lane = f"lane-{KEYS.index(key) % 2}"
            queue(hub, f"mllp://127.0.0.1:{peer.port}", key, lane=lane)
            keep(hub, 60, lane)
        turns(hub, lines)
        by = {frame.control_id: frame.connection for frame in peer.received}
    assert len({by[key] for key in KEYS[:6:2]}) == len({by[key] for key in KEYS[1:6:2]}) == 1
    assert len(set(by.values())) == 2


def test_a_partner_that_leaves_idle_connections_costs_no_fault(hub: Hub, lines: workers.Lines) -> None:
    policy = mllp.Policy(idle_seconds=0.2)
    partner = Listener(
        ("127.0.0.1", 0), lambda raw, _: ack.build(raw, "AA", now=now(), control_id="ACK1"), policy=policy
    )
    partner.start()
    try:
        for key in (FIRST, SECOND):
            queue(hub, f"mllp://127.0.0.1:{partner.port}", key)
            keep(hub, 600, on_silence="hold")
            assert workers.deliver_one(hub, lines)
            assert (row(hub, key).state, [one.outcome for one in attempts(hub, key)]) == ("sent", ["sent"])
            until(lambda: partner.connections == 0)
        assert lines.connections.idle == 1, "that it is gone is only seen when it is needed"
    finally:
        assert partner.close()


def test_a_partner_that_leaves_after_each_answer_costs_no_fault(hub: Hub, lines: workers.Lines) -> None:
    seen: list[bytes] = []
    left = threading.Semaphore(0)

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock, _ = listening.accept()
                with sock:
                    raw = next(frames(sock))
                    seen.append(raw)
                    sock.sendall(VT + acknowledgement(raw) + FS + CR)
                left.release()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        queue(hub, f"mllp://127.0.0.1:{listening.getsockname()[1]}", *KEYS[:5])
        keep(hub, 600, on_silence="hold")
        for key in KEYS[:5]:
            assert workers.deliver_one(hub, lines)
            assert left.acquire(timeout=10)
            assert (row(hub, key).state, row(hub, key).attempts) == ("sent", 1)
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert len(seen) == 5


def test_a_partner_that_dies_between_two_messages_is_refused_then_reached_again(
    hub: Hub, lines: workers.Lines, free_port: Callable[[], int]
) -> None:
    port = free_port()
    queue(hub, f"mllp://127.0.0.1:{port}", FIRST, SECOND)
    keep(hub, 600, on_silence="hold")
    with Peer(port=port):
        assert workers.deliver_one(hub, lines)
    assert workers.deliver_one(hub, lines)
    assert (row(hub).state, row(hub, SECOND).state, row(hub, SECOND).error_class) == ("sent", "queued", "transient")
    assert lines.connections.idle == 0
    with Peer(port=port) as again:
        assert workers.deliver_one(hub, lines)
        assert [frame.control_id for frame in again.received] == [SECOND]
    assert [one.outcome for one in attempts(hub, SECOND)] == ["retry", "sent"]


def test_a_cut_while_an_outcome_is_written_harms_neither_it_nor_the_connection(hub: Hub, lines: workers.Lines) -> None:
    class Cutting:
        """A store that takes so long to commit that the conversation is cut meanwhile."""

        def __getattr__(self, name: str) -> Any:
            return getattr(hub.store, name)

        def finish(self, *given: Any) -> Any:
            lines.cut("the conversation lasted too long")
            return hub.store.finish(*given)

    with Peer() as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, SECOND)
        keep(hub, 600, on_silence="hold")
        cutting = replace(hub, store=Cutting())  # type: ignore[arg-type]  # a stand-in
        assert workers.deliver_one(cutting, lines)
        assert (row(hub).state, [one.outcome for one in attempts(hub)]) == ("sent", ["sent"])
        assert workers.deliver_one(hub, lines)
        assert [(frame.control_id, frame.connection) for frame in peer.received] == [(FIRST, 1), (SECOND, 1)]


def test_a_lease_that_ended_sends_nothing_on_a_kept_connection_either(
    hub: Hub, lines: workers.Lines, listener: Listener
) -> None:
    queue(hub, f"mllp://127.0.0.1:{listener.port}", FIRST, SECOND)
    keep(hub, 600)
    assert workers.deliver_one(hub, lines)
    late = replace(hub, settings=replace(hub.settings, lease_seconds=0.0))
    lines.hub = late
    assert workers.deliver_one(late, lines)
    assert (row(hub, SECOND).state, "ended before" in row(hub, SECOND).error) == ("queued", True)
    until(lambda: listener.connections == 0)
    assert lines.connections.idle == 0, "who may not send leaves"


def test_another_address_is_another_connection_and_the_first_is_left(
    hub: Hub, lines: workers.Lines, listener: Listener
) -> None:
    with Peer() as moved:
        queue(hub, f"mllp://127.0.0.1:{listener.port}", FIRST)
        keep(hub, 600)
        turns(hub, lines)
        assert listener.connections == 1
        queue(hub, f"mllp://127.0.0.1:{moved.port}", SECOND)
        turns(hub, lines)
        assert [frame.control_id for frame in moved.received] == [SECOND]
        until(lambda: listener.connections == 0)
        assert lines.connections.idle == 1


def test_a_destination_that_wants_it_no_more_is_left_with_its_next_message(
    hub: Hub, lines: workers.Lines, listener: Listener
) -> None:
    queue(hub, f"mllp://127.0.0.1:{listener.port}", FIRST)
    keep(hub, 600)
    turns(hub, lines)
    assert (listener.connections, lines.connections.idle) == (1, 1)
    queue(hub, f"mllp://127.0.0.1:{listener.port}", SECOND)
    keep(hub, 0)
    turns(hub, lines)
    until(lambda: listener.connections == 0)
    assert (row(hub, SECOND).state, lines.connections.idle) == ("sent", 0)


def test_only_so_many_are_kept_and_the_one_used_longest_ago_goes(hub: Hub, lines: workers.Lines) -> None:
    lines.connections = Connections(most=2)
    with Peer() as peer:
        for turn in range(2):
            for lane in "abc":
                queue(hub, f"mllp://127.0.0.1:{peer.port}", f"AAAAAAAAAAAAAAAAAA{turn}{lane}", lane=lane)
                keep(hub, 600, lane)
                turns(hub, lines)
                assert lines.connections.idle <= 2
        by = {frame.control_id[-2:]: frame.connection for frame in peer.received}
    assert by == {"0a": 1, "0b": 2, "0c": 3, "1a": 4, "1b": 5, "1c": 6}, "in a ring, each is needed just too late"


def test_none_lasts_longer_than_it_may_however_busy(
    hub: Hub, lines: workers.Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LONGEST_SECONDS", 0.0)
    with Peer() as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, SECOND)
        keep(hub, 600)
        turns(hub, lines)
        assert [frame.connection for frame in peer.received] == [1, 2]


def test_an_idle_connection_is_left_when_its_time_is_over(hub: Hub, listener: Listener) -> None:
    queue(hub, f"mllp://127.0.0.1:{listener.port}", FIRST)
    keep(hub, 0.2)
    running = workers.Workers(hub, {}, senders=1)
    running.start()
    until(lambda: row(hub).state == "sent" and listener.connections == 0)
    assert running.lines.connections.idle == 0
    running.close()


def test_a_stop_leaves_every_connection_and_keeps_none_after_it(hub: Hub, listener: Listener) -> None:
    queue(hub, f"mllp://127.0.0.1:{listener.port}", FIRST)
    keep(hub, 600)
    running = workers.Workers(hub, {}, senders=1)
    running.start()
    until(lambda: row(hub).state == "sent" and running.lines.connections.idle == 1)
    assert listener.connections == 1
    running.close()
    until(lambda: listener.connections == 0)
    queue(hub, f"mllp://127.0.0.1:{listener.port}", SECOND)
    assert workers.deliver_one(hub, running.lines), "a thread that was late"
    until(lambda: listener.connections == 0)
    assert (row(hub, SECOND).state, running.lines.connections.idle) == ("sent", 0)


def test_a_stop_beside_a_partner_that_fell_silent_on_a_kept_connection_takes_seconds(hub: Hub) -> None:
    hub = replace(hub, settings=replace(hub.settings, send_timeout_seconds=600.0))
    with Peer(script=("AA", "silence")) as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, SECOND)
        keep(hub, 600)
        running = workers.Workers(hub, {}, senders=1)
        running.start()
        peer.wait_for(2)
        began = time.monotonic()
        running.close()
        assert time.monotonic() - began < 5
        assert [frame.connection for frame in peer.received] == [1, 1]
    assert (row(hub, SECOND).state, row(hub, SECOND).error_class) == ("queued", "ambiguous")
    assert running.lines.connections.idle == 0
