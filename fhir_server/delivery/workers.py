"""The threads that do what nobody waits for: send deliveries, sum up studies, read the mailbox.

A worker holds a lane by a lease with a fencing token; a result of a worker that lost its lease is not recorded.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from datetime import timedelta

from fhir_server.changes import Hub
from fhir_server.context import micros, new_request_id
from fhir_server.delivery import transports
from fhir_server.delivery.transports import Receipt
from fhir_server.store.lanes import Claim, Outcome
from fhir_server.store.view import LeaseLost

log = logging.getLogger("passerelle.delivery")
IDLE_SECONDS = 0.2


class Workers:
    """Starts and stops the background threads of the role `work`."""

    def __init__(self, hub: Hub, tasks: dict[str, tuple[Callable[[Hub], bool], float]], senders: int = 4) -> None:
        """`tasks`: name -> (function that returns True when it did something, pause in seconds when it did not)."""
        self.hub = hub
        self.stopping = threading.Event()
        loops = {f"send-{n}": (deliver_one, IDLE_SECONDS) for n in range(senders)} | tasks
        self.threads = [
            threading.Thread(target=self._loop, args=(name, task, pause), name=f"work-{name}", daemon=True)
            for name, (task, pause) in loops.items()
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def close(self, timeout: float = 30.0) -> None:
        """Finish what is under way, then stop."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout)

    def _loop(self, name: str, task: Callable[[Hub], bool], pause: float) -> None:
        while not self.stopping.is_set():
            try:
                busy = task(self.hub)
            except Exception:
                log.exception("worker %s failed; it goes on in 2 s", name)
                self.stopping.wait(2.0)
                continue
            if not busy:
                self.stopping.wait(pause)


def deliver_one(hub: Hub) -> bool:
    """Claim one lane and send its head; False when nothing is due."""
    worker = f"{threading.current_thread().name}-{new_request_id()}"
    claim = hub.store.claim(worker, hub.settings.lease_seconds)
    if claim is None:
        return False
    scheme = claim.delivery.endpoint.split(":")[0]
    if claim.interrupted and transports.AMBIGUOUS.get(scheme) == "hold":
        text = "an earlier attempt was cut off; the partner may have it already: look there, then retry or cancel"
        hub.store.finish(claim, Outcome("held", "ambiguous", text))
        return True
    try:
        hub.store.start_attempt(claim)
    except LeaseLost:
        hub.store.release(claim)
        return True
    receipt = _attempt(hub, claim)
    if not hub.store.finish(claim, outcome_of(hub, claim, receipt)):
        log.warning("delivery %s: the lease was lost while sending; its new holder decides", claim.delivery.id)
    log.info("delivery %s to %s: %s %s", claim.delivery.id, claim.lane, receipt.verdict, receipt.code)
    return True


def _attempt(hub: Hub, claim: Claim) -> Receipt:
    """One sending; a defect of ours holds the delivery for a person instead of stopping its lane for good."""
    try:
        return transports.send(claim, hub.settings)
    except Exception as defect:
        log.exception("delivery %s could not be tried", claim.delivery.id)
        return Receipt("held", "exception", f"a defect of this server ({type(defect).__name__}); its log has more")


def outcome_of(hub: Hub, claim: Claim, receipt: Receipt) -> Outcome:
    """What the outbox records for a receipt: sent, retry at a later time, held, or error."""
    verdict, words = receipt.verdict, f"{receipt.code} {receipt.text}".strip()
    if verdict == "sent":
        return Outcome("sent", "", words, receipt.ack)
    if verdict == "permanent":
        return Outcome("error", verdict, words, receipt.ack)
    waits = verdict == "ambiguous" and transports.AMBIGUOUS.get(claim.delivery.endpoint.split(":")[0]) == "hold"
    if waits or verdict == "held":
        return Outcome("held", verdict, words, receipt.ack)
    pause = timedelta(seconds=backoff(hub, claim.failures))
    return Outcome("retry", verdict, words, receipt.ack, micros(hub.clock() + pause))


def backoff(hub: Hub, failures: int) -> float:
    """Seconds to wait: first pause doubled per failure, capped, with up to a fifth of jitter."""
    settings = hub.settings
    pause = min(settings.retry_cap_seconds, settings.retry_first_seconds * 2.0 ** min(failures, 20))
    return pause * (1 + random.uniform(0, 0.2))
