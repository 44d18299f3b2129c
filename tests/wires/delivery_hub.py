"""A hub with nothing but its store for tests of deliveries: a clock that can be moved, and ways to die at a step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from operator import methodcaller
from typing import Any

from fhir_server.changes import Hub
from fhir_server.config import Settings
from fhir_server.context import SYSTEM, now
from fhir_server.delivery import workers
from fhir_server.demo.run import SITES
from fhir_server.patients.sites import load_sites
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery, NewDelivery
from fhir_server.store.outbox_desk import Attempt

FIRST, SECOND = "AAAAAAAAAAAAAAAAAAA1", "AAAAAAAAAAAAAAAAAAA2"
SENDER, RECIPIENT = "teleexpertise@ch-demo.mssante.fr", "claire.moreau@ch-demo.mssante.fr"


class Shifted:
    """The present, and as much more as a test has let pass."""

    def __init__(self) -> None:
        self.more = timedelta()

    def __call__(self) -> datetime:
        return now() + self.more

    def advance(self, seconds: float) -> None:
        self.more += timedelta(seconds=seconds)


class Died(BaseException):
    """The process ended here, as by SIGKILL: nothing behind this point ran."""


class Dying:
    """A store that dies once: before or after (its commit) the named operation."""

    def __init__(self, store: Store, step: str) -> None:
        self.store, self.step = store, step

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.store, name)
        moment, _, wanted = self.step.partition(" ")
        if name != wanted:
            return real

        def once(*args: Any, **kwargs: Any) -> Any:
            if moment == "before":
                raise Died
            real(*args, **kwargs)
            raise Died

        return once


def hub_of(store: Store, clock: Callable[[], datetime] = now, **more: Any) -> Hub:
    """A hub whose retries come at once; partners have 0.3 s to answer."""
    given: dict[str, Any] = {
        "auth": "none",
        "sites": SITES,
        "retry_first_seconds": 0.0,
        "retry_cap_seconds": 0.0,
        "send_timeout_seconds": 0.3,
        "mail_answer_seconds": 0.3,
        "smtp_security": "none",
        "lease_seconds": 30.0,
    }
    return Hub(Settings(**(given | more)), store, load_sites(SITES), clock)


def message(key: str) -> bytes:
    return f"MSH|^~\\&|PASSERELLE|CH|DPI|CH|20261121||MDM^T02^MDM_T02|{key}|T|2.6\rEVN||2026\r".encode()


def mail(key: str) -> bytes:
    head = f"From: {SENDER}\r\nTo: {RECIPIENT}\r\nMessage-ID: <{key}@ch-demo.mssante.fr>\r\nSubject: essai\r\n\r\n"
    return head.encode() + b"Bonjour.\r\n"


def queue(hub: Hub, endpoint: str, *keys: str, lane: str = "dpi", protocol: str = "hl7", **more: Any) -> None:
    for key in keys:
        payload = more.get("payload") or (message(key) if protocol == "hl7" else mail(key))
        kept = {name: value for name, value in more.items() if name != "payload"}
        one = NewDelivery(lane, endpoint, protocol, payload, id=key, **kept)
        hub.store.write(SYSTEM, methodcaller("send", one))


def deliver(hub: Hub) -> bool:
    """One turn of an idle worker."""
    return workers.deliver_one(hub, workers.Lines(hub))


def row(hub: Hub, key: str = FIRST) -> Delivery:
    with hub.store.read(SYSTEM) as snapshot:
        found = snapshot.delivery(key)
    assert found is not None
    return found


def attempts(hub: Hub, key: str = FIRST) -> list[Attempt]:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.attempts(key)


def until(true: Callable[[], bool], seconds: float = 15.0, told: Callable[[], object] = lambda: "") -> None:
    """Waits for a condition; fails with what `told` says when it does not come true."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not true():
        assert time.monotonic() < deadline, f"the condition did not come true: {told()}"
        pause.wait(0.01)
