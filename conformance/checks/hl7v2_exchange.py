"""What an HL7 v2 receiver does with everyday traffic: identities, merges, stays, cancellations, odd but legal messages.

Scenarios of IHE PAM France (N3) and single messages that a robust receiver takes or refuses properly.

IHE PAM National Extension France 2.11 (ITI-30, ITI-31); HL7 v2.5 chapters 2 and 3
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from conformance.checks.hl7v2_acknowledgement import IHE, PAM, admit, expect_code, expect_error
from conformance.checks.hl7v2_framing import MLLP
from conformance.runner import check
from conformance.samples import admission
from conformance.target import Context
from conformance.verdict import expect
from conformance.wire_mllp import Ack, frame

SENDERS = 4


def feed(at: Context, patient_id: str, **changes: object) -> None:
    """Send one message on a patient, over a connection of its own, and expect AA."""
    control_id = at.unique()
    with at.mllp() as line:
        ack = line.exchange(admission(at.options, control_id, patient_id, **changes))
    right = ack.control_id == control_id and ack.code == "AA"
    expect(right, f"AA for {changes.get('event', 'A01')} {control_id}", ack.summary())


@check(
    id="hl7v2.identity",
    title="An identity is created by A28 and changed by A31, each answered AA",
    verifies=(f"{PAM} (ITI-30)",),
    wire="hl7v2",
    level="N3",
)
def identity(at: Context) -> None:
    patient_id = at.unique(10)
    feed(at, patient_id, event="A28", structure="ADT_A05", without=("ZBE",))
    feed(at, patient_id, event="A31", structure="ADT_A05", without=("ZBE",))


@check(
    id="hl7v2.merge",
    title="Two identities are merged by A40, answered AA",
    verifies=(f"{PAM} (ITI-30, A40)",),
    wire="hl7v2",
    level="N3",
)
def merge(at: Context) -> None:
    kept, gone = at.unique(10), at.unique(10)
    for one in (kept, gone):
        feed(at, one, event="A28", structure="ADT_A05", without=("ZBE",))
    feed(at, kept, event="A40", structure="ADT_A39", without=("PV1", "ZBE"), replaced=gone)


@check(
    id="hl7v2.stay",
    title="A stay goes from admission (A01) over transfer (A02) to discharge (A03), each answered AA",
    verifies=(f"{PAM} (ITI-31)",),
    wire="hl7v2",
    level="N3",
)
def stay(at: Context) -> None:
    patient_id = at.unique(10)
    for event in ("A01", "A02", "A03"):
        feed(at, patient_id, event=event, structure=f"ADT_{event}", movement=event)


@check(
    id="hl7v2.cancelled-admission",
    title="An admission (A01) is cancelled by A11, answered AA",
    verifies=(f"{PAM} (ITI-31, A11)",),
    wire="hl7v2",
    level="N3",
    hint="ZBE-4 is CANCEL, ZBE-6 the event that is cancelled, ZBE-1 the movement of the admission.",
)
def cancelled_admission(at: Context) -> None:
    patient_id = at.unique(10)
    feed(at, patient_id)
    feed(at, patient_id, event="A11", structure="ADT_A09", cancels="A01")


@check(
    id="hl7v2.unknown-segment",
    title="A segment the receiver does not know is ignored, and the message answered AA",
    verifies=("HL7 v2.5 2.8.2 (receivers ignore unexpected segments)",),
    wire="hl7v2",
)
def unknown_segment(at: Context) -> None:
    feed(at, at.unique(10), more=("ZKI|1|essai",))


@check(
    id="hl7v2.more-fields",
    title="Fields beyond those of the version are ignored, and the message answered AA",
    verifies=("HL7 v2.5 2.8.2 (receivers ignore fields they do not expect)",),
    wire="hl7v2",
)
def more_fields(at: Context) -> None:
    feed(at, at.unique(10), tail="|" * 34 + "KIT")


@check(
    id="hl7v2.large",
    title="A message of 300 kB is answered AA",
    verifies=("HL7 v2.5 2.5.1 (no length limit of messages)", MLLP),
    wire="hl7v2",
    hint="Reports travel inside messages: a fixed buffer of 64 kB cuts them.",
)
def large(at: Context) -> None:
    feed(at, at.unique(10), more=tuple(f"ZKL|{n}|{'essai ' * 160}" for n in range(310)))


@check(
    id="hl7v2.unknown-type",
    title="A message code the receiver does not know is refused with ERR-3 200 or 201",
    verifies=(f"{IHE}#C.2.3", "HL7 v2.5 2.9.2 and table 0357"),
    wire="hl7v2",
)
def unknown_type(at: Context) -> None:
    with at.mllp() as line:
        ack, control_id = admit(at, line, code="ZKI")
    expect_code(ack, control_id, "AR", "AE")
    expect_error(ack, "200", "201")


@check(
    id="hl7v2.no-control-id",
    title="A message without MSH-10 is refused, not integrated",
    verifies=("HL7 v2.5 2.15.9.10 (MSH-10 is required)", f"{IHE}#C.2.2"),
    wire="hl7v2",
    hint="Nobody can tell which message an answer without MSA-2 is for.",
)
def no_control_id(at: Context) -> None:
    with at.mllp() as line:
        ack = line.exchange(admission(at.options, "", at.unique(10)))
    expect(ack.code in {"AE", "AR"}, "MSA-1 AE or AR", ack.summary())


@check(
    id="hl7v2.own-control-id",
    title="Each acknowledgement has an MSH-10 of its own",
    verifies=("HL7 v2.5 2.15.9.10 (MSH-10 identifies the message)",),
    wire="hl7v2",
    level="N2",
)
def own_control_id(at: Context) -> None:
    with at.mllp() as line:
        first, _ = admit(at, line)
        second, _ = admit(at, line)
    expect(first("MSH", 10) != second("MSH", 10), "two different MSH-10", first("MSH", 10))


@check(
    id="hl7v2.cut-block",
    title="A block that breaks off leaves the receiver able to serve the next connection",
    verifies=(MLLP,),
    wire="hl7v2",
    level="N2",
)
def cut_block(at: Context) -> None:
    message = frame(admission(at.options, at.unique(), at.unique(10)))
    with at.mllp() as line:
        line.send(message[: len(message) // 2])
    with at.mllp() as line:
        ack, control_id = admit(at, line)
    expect_code(ack, control_id, "AA")


@check(
    id="hl7v2.simultaneous",
    title="Four senders at once each get the answer to their own message",
    verifies=(f"{IHE}#C.2.1", "HL7 v2.5 2.15.10 (MSA-2)"),
    wire="hl7v2",
    level="N2",
)
def simultaneous(at: Context) -> None:
    def one(_: int) -> tuple[Ack, str]:
        with at.mllp() as line:
            return admit(at, line)

    with ThreadPoolExecutor(SENDERS) as pool:
        for ack, control_id in pool.map(one, range(SENDERS)):
            expect_code(ack, control_id, "AA")
