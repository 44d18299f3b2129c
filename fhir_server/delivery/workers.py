"""The threads that do what nobody waits for: send deliveries, sum up studies, read the mailbox.

A worker holds a lane by a lease with a fencing token, renewed by one thread for all running conversations; idle workers
wait for the store's bell. A conversation whose partner is slow has a thread to itself: another one takes its place, so
that silent destinations do not keep the others waiting (ADR 0059). A stopping process cuts conversations that do not
end by themselves: such a delivery is one that was sent and not answered, or not sent at all, and the next start goes on
with it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

from fhir_server.changes import Hub
from fhir_server.context import micros, new_request_id
from fhir_server.delivery import transports
from fhir_server.delivery.connections import Connections
from fhir_server.delivery.line import Line, ticks
from fhir_server.delivery.transports import Receipt
from fhir_server.errors import PasserelleError, Throttled, Unavailable
from fhir_server.store.leases import Claim, Outcome
from fhir_server.store.session import Snapshot
from fhir_server.store.view import LeaseLost
from fhir_server.teleexpertise.overtaken import held_back

log = logging.getLogger("passerelle.delivery")
# How long an idle worker sleeps at most. One of them looks more often for what another process could not tell of.
IDLE_SECONDS, LOOKOUT_SECONDS = 30.0, 1.0
# A stop waits this long for conversations to end by themselves, then this long for those it cut.
FINISH_SECONDS, CUT_SECONDS = 1.0, 3.0
# A conversation is slow after this long; so many slow ones at most are replaced.
SLOW_SECONDS, MOST_RELIEF = 1.0, 32


class Lines:
    """The conversations of this process, the thread that keeps their leases, and the connections kept between them."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.connections = Connections()
        self._gate = threading.Lock()
        self._open: set[Line] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="work-leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the renewing, and leave idle connections; conversations go on until their lease ends or they are cut."""
        self._stopping.set()
        self.connections.close()
        if self._thread.ident is not None:
            self._thread.join(CUT_SECONDS)

    @contextmanager
    def opened(self, claim: Claim, began: float) -> Iterator[Line]:
        """A conversation about a claimed delivery."""
        settings = self.hub.settings
        line = Line(claim, began, settings.lease_seconds, settings.send_limit_seconds)
        with self._gate:
            self._open.add(line)
        try:
            yield line
        finally:
            with self._gate:
                self._open.discard(line)
            line.let_go()

    def cut(self, reason: str) -> None:
        """Break every running conversation. One that had not begun is settled here, as not sent: its thread may hang in
        a look-up or a connection for longer than anybody waits."""
        for line in self.running():
            if not line.cut(reason):
                not_sent(self.hub, line.claim, reason)

    def running(self) -> list[Line]:
        with self._gate:
            return list(self._open)

    def slow(self) -> int:
        """How many conversations wait for a slow partner."""
        return sum(1 for line in self.running() if line.waited > SLOW_SECONDS)

    def renew(self) -> None:
        """Prolong every lease once; a conversation that lasts too long is cut."""
        lines, began = self.running(), ticks()
        for line in lines:
            if line.overdue:
                line.cut(f"the conversation lasted over {self.hub.settings.send_limit_seconds:g} s")
        if not lines:
            return
        ours = self.hub.store.renew([line.claim for line in lines], self.hub.settings.lease_seconds)
        for line in lines:
            if line.claim.lane_id in ours:
                line.renewed(began)

    def _keep(self) -> None:
        while not self._stopping.wait(self.hub.settings.lease_seconds / 3):
            try:
                self.renew()
            except PasserelleError as fault:
                log.warning("leases could not be renewed now: %s", fault)
            except Exception:
                log.exception("leases could not be renewed")


class Workers:
    """Starts and stops the background threads of the role `work`."""

    def __init__(self, hub: Hub, tasks: dict[str, tuple[Callable[[Hub], bool], float]], senders: int = 4) -> None:
        """`tasks`: name -> (function that returns True when it did something, pause in seconds when it did not)."""
        self.hub = hub
        self.lines = Lines(hub)
        self.stopping = threading.Event()
        loops = {f"send-{n}": partial(self._send, LOOKOUT_SECONDS if n == 0 else IDLE_SECONDS) for n in range(senders)}
        loops |= {name: partial(self._task, task, pause) for name, (task, pause) in tasks.items()}
        self.threads = [
            threading.Thread(target=self._loop, args=(name, turn), name=f"work-{name}", daemon=True)
            for name, turn in loops.items()
        ]
        self.relief: list[threading.Thread] = []
        if senders:
            self.threads.append(
                threading.Thread(target=self._loop, args=("relief", self._watch), name="work-relief", daemon=True)
            )

    def start(self) -> None:
        self.lines.start()
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """Let what is under way end for a moment, then cut it; returns within five seconds whatever partners do."""
        self.stopping.set()
        self.hub.store.wake()
        self._join(FINISH_SECONDS)
        self.lines.cut("this server was stopped")
        self._join(CUT_SECONDS)
        self.lines.close()

    def _join(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for thread in [*self.threads, *self.relief]:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _loop(self, name: str, turn: Callable[[], None]) -> None:
        while not self.stopping.is_set():
            try:
                turn()
            except Exception:
                if self.stopping.is_set():
                    return
                log.exception("worker %s failed; it goes on in 2 s", name)
                self.stopping.wait(2.0)

    def _task(self, task: Callable[[Hub], bool], pause: float) -> None:
        if not task(self.hub):
            self.stopping.wait(pause)

    def _send(self, patience: float) -> None:
        """Send what is due, one delivery after the other; then sleep until more is queued, a lane becomes due, or
        `patience` ends."""
        store = self.hub.store
        seen = store.rings()
        if deliver(self.hub, self.lines, lambda: not self.stopping.is_set()):
            return
        due = store.next_due()
        wait = patience if not due else min(patience, max(0.01, (due - store.moment()) / 1_000_000))
        if not self.stopping.is_set():
            store.wait_for_work(seen, wait)

    def _watch(self) -> None:
        """Keep as many threads more as conversations are slow, and no idle connection longer than it may be."""
        if self.stopping.wait(SLOW_SECONDS / 2):
            return
        self.lines.connections.sweep()
        self.relief = [thread for thread in self.relief if thread.is_alive()]
        for number in range(len(self.relief), min(self.lines.slow(), MOST_RELIEF)):
            more = threading.Thread(target=self._relieve, args=(number,), name=f"work-more-{number}", daemon=True)
            more.start()
            self.relief.append(more)

    def _relieve(self, number: int) -> None:
        """A sender for as long as more conversations are slow than others stand in for."""

        def needed() -> bool:
            return not self.stopping.is_set() and number < self.lines.slow()

        while needed():
            seen = self.hub.store.rings()
            try:
                if not deliver(self.hub, self.lines, needed):
                    self.hub.store.wait_for_work(seen, LOOKOUT_SECONDS)
            except Exception:
                log.exception("a sender failed; another takes its place")
                return


def before_sending(snapshot: Snapshot, claim: Claim) -> Outcome | None:
    """Why a claimed delivery does not leave now, as the outcome to record; None when it may."""
    if claim.interrupted and transports.on_silence(claim) == "hold":
        text = "an earlier attempt was cut off; the partner may have it already: look there, then retry or cancel"
        return Outcome("held", "ambiguous", text)
    return held_back(snapshot, claim)


def deliver(hub: Hub, lines: Lines, more: Callable[[], bool]) -> bool:
    """Send what is due, one delivery after the other while `more` says so; False when nothing was due."""
    began = ticks()
    claim = hub.store.take(_name(), hub.settings.lease_seconds, before_sending)
    if claim is None:
        return False
    while claim is not None:
        claim, began = _delivered(hub, lines, claim, began, more)
    return True


def deliver_one(hub: Hub, lines: Lines) -> bool:
    """Take one lane and send its next delivery; False when nothing is due."""
    return deliver(hub, lines, lambda: False)


def _name() -> str:
    """What this thread is called as the holder of one lease."""
    return f"{threading.current_thread().name}-{new_request_id()}"


def _delivered(
    hub: Hub, lines: Lines, claim: Claim, began: float, more: Callable[[], bool]
) -> tuple[Claim | None, float]:
    """Hold one conversation and settle it; what was taken in the same transaction, and when that was asked for."""
    with lines.opened(claim, began) as line:
        receipt = _attempt(hub, claim, line, lines.connections)
        if receipt is None:
            return None, began
        began = ticks()
        settled, following = _settled(hub, claim, outcome_of(hub, claim, receipt), more)
    if not settled:
        log.warning("delivery %s: the lane was lost while sending; the outcome is only noted", claim.delivery.id)
    log.info("delivery %s to %s: %s %s", claim.delivery.id, claim.lane, receipt.verdict, receipt.code)
    return following, began


def _settled(hub: Hub, claim: Claim, outcome: Outcome, more: Callable[[], bool]) -> tuple[bool, Claim | None]:
    """What became of a conversation is written, whether or not the next delivery can be taken with it."""
    if more():
        try:
            return hub.store.pass_on(claim, outcome, _name(), hub.settings.lease_seconds, before_sending)
        except Exception as fault:
            log.warning("delivery %s is settled alone; the next one could not be taken: %s", claim.delivery.id, fault)
    return hub.store.finish(claim, outcome), None


def _attempt(hub: Hub, claim: Claim, line: Line, connections: Connections) -> Receipt | None:
    """One sending; a defect of ours holds the delivery for a person instead of stopping its lane for good.

    What only cannot be read now leaves later. None when the right to send ended before anything left: somebody else has
    the lane, or this process stops.
    """
    try:
        payload = hub.store.payload(claim)
    except (Unavailable, Throttled) as fault:
        log.warning("delivery %s is not sent now: %s", claim.delivery.id, fault.diagnostics)
        return Receipt("transient", "content", fault.diagnostics)
    except PasserelleError as damaged:
        log.error("delivery %s: %s", claim.delivery.id, damaged.diagnostics)
        return Receipt("held", "content", damaged.diagnostics)
    except Exception as defect:
        return _untried(claim, defect)
    try:
        with line.talking():
            return transports.send(claim, payload, hub.settings, line, connections)
    except LeaseLost as lost:
        log.warning("%s", lost.diagnostics)
        not_sent(hub, claim, lost.diagnostics)
        return None
    except Exception as defect:
        return _untried(claim, defect)


def _untried(claim: Claim, defect: Exception) -> Receipt:
    log.error("delivery %s could not be tried", claim.delivery.id, exc_info=defect)
    return Receipt("held", "exception", f"a defect of this server ({type(defect).__name__}); its log has more")


def not_sent(hub: Hub, claim: Claim, reason: str) -> None:
    """Nothing left: the delivery is due again at once."""
    hub.store.finish(claim, Outcome("retry", "transient", f"not sent: {reason}", None, hub.store.moment()))


def outcome_of(hub: Hub, claim: Claim, receipt: Receipt) -> Outcome:
    """What the outbox records for a receipt: sent, retry at a later time, held, or error."""
    verdict, words = receipt.verdict, f"{receipt.code} {receipt.text}".strip()
    if verdict == "sent":
        return Outcome("sent", "", words, receipt.ack)
    if verdict == "permanent":
        return Outcome("error", verdict, words, receipt.ack)
    if verdict == "held" or (verdict == "ambiguous" and transports.on_silence(claim) == "hold"):
        return Outcome("held", verdict, words, receipt.ack)
    pause = timedelta(seconds=backoff(hub, claim.failures))
    return Outcome("retry", verdict, words, receipt.ack, micros(hub.clock() + pause))


def backoff(hub: Hub, failures: int) -> float:
    """Seconds to wait: first pause doubled per failure, capped, with up to a fifth of jitter."""
    settings = hub.settings
    pause = min(settings.retry_cap_seconds, settings.retry_first_seconds * 2.0 ** min(failures, 20))
    return pause * (1 + random.uniform(0, 0.2))
