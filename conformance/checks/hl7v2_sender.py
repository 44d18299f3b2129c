"""How an HL7 v2 sender treats its partner's answers: the kit listens, and answers right, wrong, late or not at all.

Point the system under test at the address of `--target hl7v2-sender=mllp://0.0.0.0:2600` and let it have two messages
or more to send for each check. CI-SIS: AA frees the sender, AE is not sent again as it is, AR may be sent again.

HL7 v2.5 2.9.2; IHE ITI TF-2 C.2; CI-SIS "Transmission d'un document CDA-R2 en HL7 v2", acknowledgements
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conformance.checks.hl7v2_acknowledgement import CI_SIS, IHE
from conformance.checks.hl7v2_framing import MLLP
from conformance.runner import check
from conformance.target import Context
from conformance.verdict import Failed, expect
from conformance.wire_listener import Arrived, Listener

RULES = "HL7 v2.5 2.9.2 (original mode: response to the initiating system)"


def first(at: Context, desk: Listener) -> Arrived:
    """The message to answer."""
    return desk.arrive(at.options.send_wait)


def expect_again(at: Context, desk: Listener, sent: Arrived, why: str) -> None:
    """The same message comes again within the time allowed; it is then answered AA."""
    again = desk.arrive(at.options.resend_wait, f"message {sent.control_id} again, since {why},")
    expect(
        again.control_id == sent.control_id, f"message {sent.control_id} again: {why}", f"message {again.control_id}"
    )
    desk.answer(again)


def expect_next(at: Context, desk: Listener, sent: Arrived, why: str) -> None:
    """Another message comes, or none within the time allowed; it is then answered AA."""
    following = desk.perhaps(at.options.quiet)
    if following is not None:
        answered = f"no second {sent.control_id}: {why}"
        expect(following.control_id != sent.control_id, answered, f"message {following.control_id} again")
        desk.answer(following)


def reaction(answer: str, why: str, then: Callable[[Context, Listener, Arrived, str], None], **about: Any) -> None:
    """A check of one answer to one message (`Listener.answer`): `then` looks at what follows, and says `why`."""

    def run(at: Context) -> None:
        with at.listener() as desk:
            sent = first(at, desk)
            desk.answer(sent, answer)
            then(at, desk, sent, why)

    check(wire="hl7v2-sender", level="N2", **about)(run)


@check(
    id="hl7v2-sender.block",
    title="A message is sent as one block: VT first, FS and CR last, nothing before",
    verifies=(MLLP, f"{IHE}#C.2.1"),
    wire="hl7v2-sender",
    level="N2",
)
def block(at: Context) -> None:
    with at.listener() as desk:
        sent = first(at, desk)
        desk.answer(sent)
    expect(not sent.before, "VT as the first byte", repr(sent.before[:40]))
    expect(sent.message.raw.startswith(b"MSH"), "a message that begins with MSH", repr(sent.message.raw[:40]))


@check(
    id="hl7v2-sender.waits",
    title="Nothing else is sent before the answer has come",
    verifies=(RULES, f"{IHE}#C.2.1"),
    wire="hl7v2-sender",
    level="N2",
    hint="Messages sent ahead are lost or doubled when the first is refused.",
)
def waits(at: Context) -> None:
    with at.listener() as desk:
        sent = first(at, desk)
        early = desk.perhaps(at.options.quiet)
        if early is not None and early.control_id != sent.control_id:
            raise Failed(f"nothing before the answer to {sent.control_id}", f"message {early.control_id}")
        desk.answer(early or sent)


reaction(
    "AA",
    "it was answered AA",
    expect_next,
    id="hl7v2-sender.after-aa",
    title="After AA the message is not sent again; the next one has an MSH-10 of its own",
    verifies=(CI_SIS, RULES),
)


reaction(
    "pieces",
    "it was answered AA, in pieces",
    expect_next,
    id="hl7v2-sender.answer-in-pieces",
    title="An answer that comes in many small TCP segments is understood",
    verifies=(MLLP,),
    hint="A read of the socket is not an answer: keep reading until FS CR.",
)


reaction(
    "latin",
    "it was answered AA in 8859/15",
    expect_next,
    id="hl7v2-sender.answer-in-latin-9",
    title="An answer in ISO 8859-15 to a message in another charset is understood",
    verifies=("HL7 v2.5 table 0211 (MSH-18)", CI_SIS),
    hint="The charset of an answer is its own MSH-18.",
)


@check(
    id="hl7v2-sender.reconnects",
    title="When the receiver closes an idle connection the next message comes over a new one",
    verifies=(f"{IHE}#C.2.1", MLLP),
    wire="hl7v2-sender",
    level="N2",
)
def reconnects(at: Context) -> None:
    with at.listener() as desk:
        sent = first(at, desk)
        desk.answer(sent)
        desk.hang_up(sent)
        desk.answer(desk.arrive(at.options.send_wait, "the next message over a new connection"))


reaction(
    "AR",
    "it was answered AR",
    expect_again,
    id="hl7v2-sender.after-ar",
    title="After AR the message is sent again, before any other",
    verifies=(CI_SIS,),
    hint="AR is a refusal for the moment: keep the message at the head of its queue.",
)


@check(
    id="hl7v2-sender.after-silence",
    title="Without an answer the message is sent again",
    verifies=(RULES,),
    wire="hl7v2-sender",
    level="N2",
    hint="--set resend_wait=... when the time-out of the sender is longer.",
)
def after_silence(at: Context) -> None:
    with at.listener() as desk:
        sent = again = first(at, desk)
        limit = at.deadline.within(at.options.resend_wait)
        while again is sent or again.control_id != sent.control_id:
            again = desk.arrive(limit.remaining_or_zero(), f"message {sent.control_id} again, since it got no answer,")
        desk.answer(again)


reaction(
    "wrong-msa-2",
    "the AA was for another message",
    expect_again,
    id="hl7v2-sender.wrong-msa-2",
    title="An AA for another message (MSA-2) is not taken for the answer",
    verifies=("HL7 v2.5 2.15.10 (MSA-2)", RULES),
)


reaction(
    "close",
    "the connection was closed without an answer",
    expect_again,
    id="hl7v2-sender.closed",
    title="When the connection is closed instead of an answer the message is sent again",
    verifies=(RULES, f"{IHE}#C.2.1"),
)


reaction(
    "half",
    "only half an answer came",
    expect_again,
    id="hl7v2-sender.half-an-answer",
    title="An answer that breaks off in the middle is no answer",
    verifies=(MLLP, RULES),
    hint="An answer counts when its FS CR has come.",
)


@check(
    id="hl7v2-sender.garbage",
    title="A block that is no acknowledgement is not taken for AA",
    verifies=(RULES,),
    wire="hl7v2-sender",
    level="N2",
)
def garbage(at: Context) -> None:
    with at.listener() as desk:
        sent = first(at, desk)
        desk.answer(sent, "garbage")
        # A sender may hold the message for a person instead, but it may not go on.
        following = desk.perhaps(at.options.resend_wait)
        if following is not None:
            desk.answer(following)
            right = following.control_id == sent.control_id
            expect(right, f"message {sent.control_id} again or nothing", f"message {following.control_id}")


@check(
    id="hl7v2-sender.same-bytes",
    title="A message sent again is the same to the byte",
    verifies=(RULES, f"{IHE}#C.2.2"),
    wire="hl7v2-sender",
    level="N2",
    hint="A new MSH-7 or MSH-10 makes it another message: the receiver cannot know it for a copy.",
)
def same_bytes(at: Context) -> None:
    with at.listener() as desk:
        sent = first(at, desk)
        desk.answer(sent, "close")
        again = desk.arrive(at.options.resend_wait, f"message {sent.control_id} again")
        desk.answer(again)
    # Whether it is sent again at all is another check's business.
    same = again.message.raw == sent.message.raw or again.control_id != sent.control_id
    expect(same, "the same bytes again", again.message.text[:200])


reaction(
    "AE",
    "it was answered AE",
    expect_next,
    id="hl7v2-sender.after-ae",
    title="After AE the message is not sent again as it is",
    verifies=(CI_SIS,),
    hint="AE is a fault of the message: hold it for a person.",
)
