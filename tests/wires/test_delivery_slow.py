"""Destinations that take a message and never answer: threads come to serve the others meanwhile, and go again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from delivery_hub import hub_of, queue, row, until

from conformance.peers.mllp import Peer
from fhir_server.delivery.workers import Workers
from fhir_server.store.engine import Store

SILENT = [f"AAAAAAAAAAAAAAAAAA{n:02d}" for n in range(5)]
GOOD = [f"BBBBBBBBBBBBBBBBBB{n:02d}" for n in range(3)]


def test_silent_destinations_do_not_keep_the_others_waiting(open_url: Callable[..., Store], sqlite_url: str) -> None:
    hub = hub_of(open_url(sqlite_url))
    patient = replace(hub.settings, send_timeout_seconds=600.0, retry_first_seconds=3600.0, retry_cap_seconds=3600.0)
    hub = replace(hub, settings=patient)
    workers = Workers(hub, {}, senders=2)
    with ExitStack() as closing, Peer() as good:
        for n, key in enumerate(SILENT):
            silent = closing.enter_context(Peer(default="silence"))
            queue(hub, f"mllp://127.0.0.1:{silent.port}", key, lane=f"silent-{n}")
        workers.start()
        closing.callback(workers.close)
        until(
            lambda: all(row(hub, key).state == "sending" for key in SILENT),
            30,
            lambda: [row(hub, k).state for k in SILENT],
        )
        queue(hub, f"mllp://127.0.0.1:{good.port}", *GOOD, lane="good")
        assert [frame.control_id for frame in good.wait_for(3, 30)] == GOOD, "in order, though several threads send"
        assert all(row(hub, key).state == "sending" for key in SILENT), "while nobody has answered"
        assert workers.relief
        workers.lines.cut("the partners hung up")
        until(lambda: not any(thread.is_alive() for thread in workers.relief), 30)
        assert {row(hub, key).error_class for key in SILENT} == {"ambiguous"}
    assert not any(thread.is_alive() for thread in workers.threads)
