"""A fault at every step of a delivery, and of a message coming in: one literal list of cases and outcomes.

The steps: before anything is noted; noted and not sent; on the way; sent and not answered; answered and not recorded;
recorded and not acknowledged to the peer. `frames` is how often the partner saw the bytes in all: twice is a resend of
the same bytes, which it knows by MSH-10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from delivery_hub import (
    FIRST,
    RECIPIENT,
    SECOND,
    SENDER,
    Died,
    Dying,
    Shifted,
    deliver,
    hub_of,
    mail,
    message,
    queue,
    row,
)

from conformance.peers import mail as operator
from conformance.peers.mailbox import Box
from conformance.peers.mllp import Peer
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery import intake, workers
from fhir_server.errors import Unavailable
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter
from fhir_server.store.outbox_desk import Policy

Silence = Literal["resend", "hold"]


@dataclass(frozen=True)
class Case:
    """`fault`: the peer's answer, or where this process dies. `policy`: the destination's, for silence. `state` and
    `kind` after the fault (and, when the process died, after the next start took over), `frames` seen in all once the
    partner is well again, `end` the state then."""

    fault: str
    policy: Silence
    state: str
    kind: str
    frames: int
    end: str


MLLP = (
    #     fault            policy    state     kind          frames  end
    Case("before take", "resend", "queued", "", 1, "sent"),
    Case("after take", "resend", "sent", "", 1, "sent"),
    Case("after take", "hold", "held", "ambiguous", 0, "held"),
    Case("nobody", "resend", "queued", "transient", 1, "sent"),
    Case("nobody", "hold", "queued", "transient", 1, "sent"),
    Case("silence", "resend", "queued", "ambiguous", 2, "sent"),
    Case("silence", "hold", "held", "ambiguous", 1, "held"),
    Case("late:0.6", "resend", "queued", "ambiguous", 2, "sent"),
    Case("late:0.6", "hold", "held", "ambiguous", 1, "held"),
    Case("half", "resend", "queued", "ambiguous", 2, "sent"),
    Case("half", "hold", "held", "ambiguous", 1, "held"),
    Case("close", "resend", "queued", "ambiguous", 2, "sent"),
    Case("close", "hold", "held", "ambiguous", 1, "held"),
    Case("reset", "resend", "queued", "ambiguous", 2, "sent"),
    Case("reset", "hold", "held", "ambiguous", 1, "held"),
    Case("wrong-msa-2", "resend", "queued", "ambiguous", 2, "sent"),
    Case("wrong-msa-2", "hold", "held", "ambiguous", 1, "held"),
    Case("garbage", "resend", "queued", "ambiguous", 2, "sent"),
    Case("garbage", "hold", "held", "ambiguous", 1, "held"),
    Case("AR", "resend", "queued", "transient", 2, "sent"),
    Case("AR", "hold", "queued", "transient", 2, "sent"),
    Case("AE", "resend", "error", "permanent", 1, "error"),
    Case("AE", "hold", "error", "permanent", 1, "error"),
    Case("before finish", "resend", "sent", "", 2, "sent"),
    Case("before finish", "hold", "held", "ambiguous", 1, "held"),
    Case("after finish", "resend", "sent", "", 1, "sent"),
    Case("after finish", "hold", "sent", "", 1, "sent"),
)
SMTP = (
    Case("nobody", "resend", "queued", "transient", 1, "sent"),
    Case("connect 421 4.3.0 not now", "resend", "queued", "transient", 1, "sent"),
    Case("connect close", "resend", "queued", "transient", 1, "sent"),
    Case("mail 451 4.3.0 not now", "resend", "queued", "transient", 1, "sent"),
    Case("mail 550 5.7.1 not you", "resend", "error", "permanent", 0, "error"),
    Case("mail close", "resend", "queued", "transient", 1, "sent"),
    Case("rcpt 450 4.2.1 not now", "resend", "queued", "transient", 1, "sent"),
    Case("rcpt 550 5.1.1 no such user", "resend", "error", "permanent", 0, "error"),
    Case("data 451 4.3.0 not now", "resend", "queued", "transient", 1, "sent"),
    Case("data 554 5.6.0 refused", "resend", "error", "permanent", 0, "error"),
    Case("data close", "resend", "queued", "ambiguous", 1, "sent"),
    Case("data close", "hold", "held", "ambiguous", 0, "held"),
    Case("stored close", "resend", "queued", "ambiguous", 2, "sent"),
    Case("stored close", "hold", "held", "ambiguous", 1, "held"),
    Case("stored hang", "resend", "queued", "ambiguous", 2, "sent"),
    Case("stored hang", "hold", "held", "ambiguous", 1, "held"),
    Case("before take", "resend", "queued", "", 1, "sent"),
    Case("after take", "resend", "sent", "", 1, "sent"),
    Case("after take", "hold", "held", "ambiguous", 0, "held"),
    Case("before finish", "resend", "sent", "", 2, "sent"),
    Case("before finish", "hold", "held", "ambiguous", 1, "held"),
    Case("after finish", "resend", "sent", "", 1, "sent"),
)


def named(case: Case) -> str:
    return f"{case.fault}-{case.policy}".replace(" ", "-")


@pytest.fixture
def clock() -> Shifted:
    return Shifted()


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str, clock: Shifted) -> Hub:
    return hub_of(open_url(sqlite_url, clock=clock), clock)


def faulty_turn(hub: Hub, case: Case, clock: Shifted) -> None:
    """One worker's turn with the fault in it, and when its process died, one of the process after it."""
    if not case.fault.startswith(("before ", "after ")):
        assert deliver(hub) is True
        return
    with pytest.raises(Died):
        deliver(dataclasses.replace(hub, store=Dying(hub.store, case.fault)))  # type: ignore[arg-type]  # a stand-in
    if case.fault in ("before take", "after finish"):
        return
    assert deliver(hub) is False, "the dead one's lease keeps the lane"
    clock.advance(31)
    deliver(hub)


def well_again(hub: Hub, lines: workers.Lines | None = None) -> None:
    """Everything that may still leave leaves; nobody is in a hurry any more."""
    hub = calm(hub)
    lines = lines or workers.Lines(hub)
    while workers.deliver_one(hub, lines):
        pass


def calm(hub: Hub) -> Hub:
    """A hub that has time."""
    settings = dataclasses.replace(hub.settings, send_timeout_seconds=10.0, mail_answer_seconds=10.0)
    return dataclasses.replace(hub, settings=settings)


@pytest.mark.parametrize("case", MLLP, ids=named)
def test_a_fault_on_the_way_to_an_mllp_partner(
    hub: Hub, clock: Shifted, case: Case, free_port: Callable[[], int]
) -> None:
    port, dies = free_port(), case.fault.startswith(("before ", "after "))
    script = () if dies or case.fault == "nobody" else (case.fault,)
    queue(hub, f"mllp://127.0.0.1:{port}", FIRST, SECOND, on_stuck="skip")
    hub.store.write(SYSTEM, lambda tx: tx.set_policy("dpi", Policy(on_silence=case.policy)))
    if case.fault == "nobody":
        faulty_turn(hub, case, clock)
        assert (row(hub).state, row(hub).error_class) == (case.state, case.kind)
    with Peer(port=port, script=script) as peer:
        if case.fault != "nobody":
            faulty_turn(hub, case, clock)
            assert (row(hub).state, row(hub).error_class) == (case.state, case.kind)
        well_again(hub)
        seen = [frame.control_id for frame in peer.received]
        assert {frame.raw for frame in peer.received} <= {message(FIRST), message(SECOND)}
    assert (row(hub).state, seen.count(FIRST)) == (case.end, case.frames)
    assert (row(hub, SECOND).state, seen.count(SECOND)) == ("sent", 1)
    assert case.end != "sent" or FIRST not in seen[seen.index(SECOND) :], "the first never follows the second"


# On a connection that was kept, every fault of a conversation means what it means on a new one.
TALKING = [case for case in MLLP if not case.fault.startswith(("before ", "after ", "nobody"))]
WARM = "AAAAAAAAAAAAAAAAAAA0"


@pytest.mark.parametrize("case", TALKING, ids=named)
def test_a_fault_on_a_connection_that_was_kept(hub: Hub, case: Case) -> None:
    lines = workers.Lines(hub)
    with Peer(script=("AA", case.fault)) as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", WARM, FIRST, SECOND, on_stuck="skip")
        policy = Policy(on_silence=case.policy, keep_open_seconds=600)
        hub.store.write(SYSTEM, lambda tx: tx.set_policy("dpi", policy))
        assert workers.deliver_one(calm(hub), lines)
        assert workers.deliver_one(hub if case.fault.startswith(("silence", "late")) else calm(hub), lines)
        assert (row(hub).state, row(hub).error_class) == (case.state, case.kind)
        assert [(frame.control_id, frame.connection) for frame in peer.received] == [(WARM, 1), (FIRST, 1)]
        well_again(hub, lines)
        seen = [frame.control_id for frame in peer.received]
        answered = case.kind in ("transient", "permanent")
        assert {frame.connection for frame in peer.received[2:]} == ({1} if answered else {2})
        lines.connections.close()
    assert (row(hub).state, seen.count(FIRST)) == (case.end, case.frames)
    assert (row(hub, SECOND).state, seen.count(SECOND), seen.count(WARM)) == ("sent", 1, 1)
    assert case.end != "sent" or FIRST not in seen[seen.index(SECOND) :], "the first never follows the second"


# A busy worker writes an outcome and takes the next delivery in one transaction: where it dies, what the next start
# finds of both, and how often each was seen in the end.
BETWEEN = {
    ("before pass_on", "resend"): (("sending", "queued"), (2, 1), ("sent", "sent")),
    ("after pass_on", "resend"): (("sent", "sending"), (1, 1), ("sent", "sent")),
    ("before pass_on", "hold"): (("sending", "queued"), (1, 1), ("held", "sent")),
    ("after pass_on", "hold"): (("sent", "sending"), (1, 0), ("sent", "held")),
}


@pytest.mark.parametrize(("step", "policy"), BETWEEN)
def test_a_process_dies_between_two_deliveries(hub: Hub, clock: Shifted, step: str, policy: Silence) -> None:
    left, frames, end = BETWEEN[step, policy]
    with Peer() as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, SECOND, on_stuck="skip")
        hub.store.write(SYSTEM, lambda tx: tx.set_policy("dpi", Policy(on_silence=policy)))
        dying = dataclasses.replace(hub, store=Dying(hub.store, step))  # type: ignore[arg-type]  # a stand-in
        with pytest.raises(Died):
            workers.deliver(dying, workers.Lines(dying), lambda: True)
        assert (row(hub).state, row(hub, SECOND).state) == left
        clock.advance(31)
        while deliver(hub):
            pass
        seen = [frame.control_id for frame in peer.received]
    assert (seen.count(FIRST), seen.count(SECOND)) == frames
    assert (row(hub).state, row(hub, SECOND).state) == end


def test_an_outcome_is_kept_when_the_next_delivery_cannot_be_taken(hub: Hub) -> None:
    """As when the database ends the transaction in its second half: the conversation was held and counts."""

    class Refusing(Dying):
        def __getattr__(self, name: str) -> Any:
            if name != "pass_on":
                return getattr(self.store, name)

            def refused(*args: Any, **kwargs: Any) -> Any:
                raise Unavailable("not now")

            return refused

    with Peer() as peer:
        queue(hub, f"mllp://127.0.0.1:{peer.port}", FIRST, SECOND)
        refusing = dataclasses.replace(hub, store=Refusing(hub.store, ""))  # type: ignore[arg-type]  # a stand-in
        assert workers.deliver(refusing, workers.Lines(refusing), lambda: True)
        assert (row(hub).state, row(hub, SECOND).state) == ("sent", "queued")
        assert len(peer.received) == 1


@pytest.fixture
def post(tmp_path: Path) -> Iterator[operator.Running]:
    running = operator.Running(operator.Settings(tmp_path / "post", 0, 0))
    yield running
    running.stop()


@pytest.mark.parametrize("case", SMTP, ids=named)
def test_a_fault_on_the_way_to_a_mail_operator(
    hub: Hub, clock: Shifted, case: Case, post: operator.Running, free_port: Callable[[], int]
) -> None:
    def at(port: int) -> Hub:
        return dataclasses.replace(hub, settings=dataclasses.replace(hub.settings, smtp=f"127.0.0.1:{port}"))

    queue(hub, f"mssante:{RECIPIENT}?from={SENDER}", FIRST, protocol="mail", lane="mail")
    hub.store.write(SYSTEM, lambda tx: tx.set_policy("mail", Policy(on_silence=case.policy)))
    step, _, what = case.fault.partition(" ")
    if step in ("connect", "mail", "rcpt", "data", "stored"):
        operator.set_faults(post.settings.data, [{"at": step, "do": what, "times": 1}])
    faulty_turn(at(free_port() if step == "nobody" else post.smtp_port), case, clock)
    assert (row(hub).state, row(hub).error_class) == (case.state, case.kind)
    well_again(at(post.smtp_port))
    kept = [one.path.read_bytes() for one in Box(post.settings.data, RECIPIENT).messages()]
    assert (row(hub).state, len(kept)) == (case.end, case.frames)
    assert all(mail(FIRST) in raw for raw in kept)


def test_a_mail_destination_has_its_own_time_to_answer(hub: Hub, post: operator.Running) -> None:
    at = {"smtp": f"127.0.0.1:{post.smtp_port}", "send_timeout_seconds": 10.0, "mail_answer_seconds": 600.0}
    hub = dataclasses.replace(hub, settings=dataclasses.replace(hub.settings, **at))  # type: ignore[arg-type]  # keywords of any type
    queue(hub, f"mssante:{RECIPIENT}?from={SENDER}", FIRST, protocol="mail", lane="mail")
    hub.store.write(SYSTEM, lambda tx: tx.set_policy("mail", Policy(on_silence="hold", answer_seconds=1)))
    operator.set_faults(post.settings.data, [{"at": "stored", "do": "hang", "times": 1}])
    assert deliver(hub)
    assert (row(hub).state, row(hub).error_class) == ("held", "ambiguous")


INBOUND = ("before receive", "after receive", "before write", "after write", "before reject", "after reject")


@pytest.mark.parametrize("step", INBOUND)
@pytest.mark.parametrize("good", [True, False], ids=["good", "broken"])
def test_a_message_is_integrated_once_wherever_the_process_dies(hub: Hub, step: str, good: bool) -> None:
    """The peer hears nothing and sends again: the first answer it hears is that of the one integration."""
    from fhir_server.demo import story

    raw = story.admission() if good else story.admission().replace(b"PID|", b"PIX|")
    dying = dataclasses.replace(hub, store=Dying(hub.store, step))  # type: ignore[arg-type]  # a stand-in
    try:
        heard = intake.on_message(dying, raw, "192.0.2.1:1")
    except Died:
        heard = b""
    answers = {intake.on_message(hub, raw, "192.0.2.1:2") for _ in range(3)} | ({heard} if heard else set())
    assert len(answers) == 1 and (b"MSA|AA|" if good else b"MSA|AE|") in answers.pop()
    with hub.store.read(SYSTEM) as snapshot:
        (kept,) = snapshot.messages(InboxFilter(limit=10))
        assert (kept.state, snapshot.message_raw(kept.id)) == ("done" if good else "error", raw)
        patients = snapshot.view.db.rows("SELECT id, version FROM resource WHERE type = 'Patient'")
    assert [version for _, version in patients] == ([1] if good else [])
