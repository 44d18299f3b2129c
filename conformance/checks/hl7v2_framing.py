"""How an HL7 v2 receiver handles the byte stream: blocks, pipelines, fragments, noise, several connections.

HL7 Transport Specification: MLLP, Release 1; IHE ITI TF-2 C.2.1. Tolerance of noise between blocks and an answer to
every block go beyond the letter: interface engines rely on both.
"""

from __future__ import annotations

from conformance.checks.hl7v2_acknowledgement import IHE, admit, expect_code
from conformance.runner import check
from conformance.samples import admission
from conformance.target import Context
from conformance.verdict import expect
from conformance.wire_mllp import frame, read_ack

MLLP = "HL7 Transport Specification: MLLP, Release 1"


@check(
    id="hl7v2.block",
    title="An acknowledgement is one block: VT first, FS and CR last, nothing before",
    verifies=(MLLP, f"{IHE}#C.2.1"),
    wire="hl7v2",
    hint="Senders wait for FS CR: an answer without CR looks like silence to them.",
)
def block(at: Context) -> None:
    with at.mllp() as line:
        line.send(frame(admission(at.options, at.unique(), at.unique(10))))
        read_ack(line.receive(strict=True))


@check(
    id="hl7v2.keep-alive",
    title="Three messages, one after the other, are answered over one connection",
    verifies=(f"{IHE}#C.2.1",),
    wire="hl7v2",
    hint="A receiver that closes after each answer costs its senders a new connection (and TLS) per message.",
)
def keep_alive(at: Context) -> None:
    with at.mllp() as line:
        for _ in range(3):
            ack, control_id = admit(at, line)
            expect_code(ack, control_id, "AA")


@check(
    id="hl7v2.pipelined",
    title="Two blocks sent in one go get two acknowledgements, in order",
    verifies=(MLLP, f"{IHE}#C.2.1"),
    wire="hl7v2",
    level="N2",
    hint="After a block, look for the next one in the bytes already read before waiting for the network.",
)
def pipelined(at: Context) -> None:
    ids = (at.unique(), at.unique())
    with at.mllp() as line:
        line.send(b"".join(frame(admission(at.options, one, at.unique(10))) for one in ids))
        for one in ids:
            expect_code(read_ack(line.receive()), one, "AA")


@check(
    id="hl7v2.fragments",
    title="A block that comes in many small TCP segments is answered once, as a whole",
    verifies=(MLLP,),
    wire="hl7v2",
    level="N2",
    hint="A read of the socket is not a message: keep reading until FS CR.",
)
def fragments(at: Context) -> None:
    control_id = at.unique()
    with at.mllp() as line:
        line.send(frame(admission(at.options, control_id, at.unique(10))), pieces=10)
        expect_code(read_ack(line.receive()), control_id, "AA")
        # A second message shows that no answer to a fragment is left over.
        ack, following = admit(at, line)
        expect_code(ack, following, "AA")


@check(
    id="hl7v2.stray-bytes",
    title="Line ends and NUL bytes around blocks are ignored",
    verifies=(MLLP,),
    wire="hl7v2",
    level="N2",
    hint="Skip whatever comes before VT; real senders put CR, LF and NUL there.",
)
def stray_bytes(at: Context) -> None:
    with at.mllp() as line:
        for noise in (b"\r\n\x00", b"\n\n\x00"):
            control_id = at.unique()
            line.send(noise + frame(admission(at.options, control_id, at.unique(10))))
            expect_code(read_ack(line.receive()), control_id, "AA")


@check(
    id="hl7v2.unparsable",
    title="A block that is no HL7 message is answered AE or AR, and the next message is served",
    verifies=(f"{IHE}#C.2.3", "HL7 v2.5 2.9.2"),
    wire="hl7v2",
    level="N2",
    hint="Closing the connection without a word makes the sender resend the same bytes for ever.",
)
def unparsable(at: Context) -> None:
    with at.mllp() as line:
        line.send(frame(b"%PDF-1.7 this is no message"))
        ack = read_ack(line.receive())
        expect(ack.code in {"AE", "AR"}, "MSA-1 AE or AR", ack.summary())
    with at.mllp() as line:
        following, control_id = admit(at, line)
    expect_code(following, control_id, "AA")


@check(
    id="hl7v2.two-connections",
    title="A second connection is served while the first is open and idle",
    verifies=(f"{IHE}#C.2.1",),
    wire="hl7v2",
    level="N2",
    hint="A hospital has several senders: one that keeps its connection open must not shut out the others.",
)
def two_connections(at: Context) -> None:
    with at.mllp() as first, at.mllp() as second:
        ack, control_id = admit(at, first)
        expect_code(ack, control_id, "AA")
        ack, control_id = admit(at, second)
        expect_code(ack, control_id, "AA")
        ack, control_id = admit(at, first)
        expect_code(ack, control_id, "AA")
