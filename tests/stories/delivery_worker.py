"""Processes of the delivery engine: each a listener that relays what comes, and workers that send it on.

This program makes one of each line of JSON on its standard input, by forking what is imported already, and prints
`ready PID` when that process listens: [URL, DATA_DIR, PORT, LANES, a step of FREEZES or "", LOG].

LANES is JSON, name -> endpoint: a document message (MDM) with MSH-6 `name` is integrated and queued to that lane in one
transaction; every other message goes the product's own way in. A step stops this process (SIGSTOP) when it gets there
for the first time: about to send, its lease running; behind its last look at the lease; or within the transaction that
takes a lane.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from delivery_hub import hub_of

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM, new_delivery_id, now
from fhir_server.delivery import intake, workers
from fhir_server.delivery.line import Line
from fhir_server.store.engine import open_store
from fhir_server.store.inbox import NewMessage
from fhir_server.store.lanes import NewDelivery
from fhir_server.store.session import Tx
from hl7v2 import ack, message
from hl7v2.mllp import Listener

LEASE = 1.0


def relay(hub: Hub, lanes: Mapping[str, str], raw: bytes, peer: str) -> bytes:
    """Stored, then integrated and queued in one transaction, then answered."""
    msg = message.parse(raw)
    if msg.text("MSH-9.1") != "MDM":
        return intake.on_message(hub, raw, peer)
    control_id, lane = msg.text("MSH-10"), msg.text("MSH-6")
    received = hub.store.receive(NewMessage("mllp", raw, "test", peer, "CLIENT", control_id))
    if received.known and received.ack is not None:
        return received.ack
    answer = ack.build(raw, "AA", now=now(), control_id=new_delivery_id())
    key = new_delivery_id()

    def work(tx: Tx) -> None:
        tx.integrate(received.id, answer, keys=(("delivery", key),))
        onward = raw.replace(f"|{control_id}|".encode(), f"|{key}|".encode())
        tx.send(NewDelivery(lane, lanes[lane], "hl7", onward, id=key, title=control_id, on_stuck="skip"))

    hub.store.write(SYSTEM, work)
    return answer


FREEZES: Mapping[str, tuple[Any, str, bool]] = {
    "sending": (Line, "may_send", False),
    "sent": (Line, "may_send", True),
    "taking": (workers, "before_sending", False),
}
"""A step -> the function, and whether it stops behind it."""


def freeze_once(step: str) -> None:
    place, name, behind = FREEZES[step]
    real, frozen = getattr(place, name), threading.Lock()

    def reached(*args: Any) -> Any:
        told = real(*args) if behind else None
        if frozen.acquire(blocking=False):
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # here, not a few steps further on
        return told if behind else real(*args)

    setattr(place, name, reached)


def worker(url: str, folder: str, port: int, lanes: str, how: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if how:
        freeze_once(how)
    sys.setswitchinterval(0.0005)
    store = open_store(url, Path(folder), migrate=False)
    settings: dict[str, Any] = {"lease_seconds": LEASE, "retry_first_seconds": 0.02, "retry_cap_seconds": 0.1}
    hub = hub_of(store, **settings)
    listener = Listener(("127.0.0.1", port), lambda raw, peer: relay(hub, json.loads(lanes), raw, peer))
    listener.start()
    crew = workers.Workers(hub, {}, senders=1 if how else 4)
    crew.start()
    print("ready", os.getpid(), flush=True)
    signal.sigwait({signal.SIGTERM})
    crew.close()
    listener.close()
    store.close()


def nursery() -> None:
    """Has no threads and opens nothing, so that a child is as good as a new process; children are nobody's to reap."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while line := sys.stdin.readline():
        url, folder, port, lanes, how, log = json.loads(line)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(0)
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
            try:
                worker(url, folder, int(port), lanes, how)
            except BaseException:
                traceback.print_exc()
                print("failed", os.getpid(), flush=True)
            os._exit(0)


if __name__ == "__main__":
    nursery()
