"""How a DICOM acceptor negotiates, verifies, stores and ends an association.

PS3.8 chapter 9 (upper layer), PS3.7 9.1 (C-STORE, C-ECHO), PS3.4 annexes A and B, PS3.5 10.1.
"""

from __future__ import annotations

from conformance.runner import check
from conformance.samples import ultrasound
from conformance.target import Context
from conformance.verdict import Failed, NoAnswer, Skipped, expect
from conformance.wire_dicom import (
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    JPEG_BASELINE,
    ULTRASOUND_IMAGE,
    VERIFICATION,
    Aborted,
    Association,
    Proposal,
    Rejected,
    Settled,
    pdu,
)

STANDARD = "https://dicom.nema.org/medical/dicom/current/output/chtml"
VERIFY = Proposal(1, VERIFICATION, (IMPLICIT_LITTLE, EXPLICIT_LITTLE))
PRIVATE_SOP_CLASS = "2.25.106271358210947531802465738291047562813"
NOBODY = "NOSUCHAETITLE"
CALLED_AE_NOT_RECOGNIZED = (1, 7)


def associate(at: Context, line: Association, *proposals: Proposal) -> None:
    """An association as the user named it; a rejection is a failure."""
    try:
        line.request(at.options.calling_ae, proposals)
    except Rejected as answer:
        raise Failed(
            "A-ASSOCIATE-AC",
            answer,
            clause=f"{STANDARD}/part08/sect_9.3.4.html",
            hint="Is the kit's AE title known to the system (--set calling_ae=...)? Is the called one right?",
        ) from None


def accepted(line: Association, proposal: Proposal) -> Settled:
    """The answer to one context; raises `Failed` when it was not accepted."""
    answer = line.contexts.get(proposal.id)
    expect(answer is not None, f"an answer to presentation context {proposal.id}", f"answers to {list(line.contexts)}")
    if answer is None or answer.result != 0:
        raise Failed(f"context {proposal.id} ({proposal.abstract_syntax}) accepted", answer)
    return answer


def expect_echo(line: Association) -> None:
    """C-ECHO over the context of `VERIFY` succeeds."""
    accepted(line, VERIFY)
    status = line.echo(VERIFY.id)
    expect(status == 0x0000, "status 0x0000 (Success)", f"{status:#06x}")


@check(
    id="dicom.echo",
    title="C-ECHO succeeds",
    verifies=(f"{STANDARD}/part07/sect_9.1.5.html", f"{STANDARD}/part04/chapter_A.html"),
    wire="dicom",
    hint="Every SCP answers Verification: try it first when anything else fails.",
)
def echo(at: Context) -> None:
    with at.association() as line:
        associate(at, line, VERIFY)
        expect_echo(line)


@check(
    id="dicom.release",
    title="A-RELEASE-RQ is answered A-RELEASE-RP",
    verifies=(f"{STANDARD}/part08/sect_9.3.7.html",),
    wire="dicom",
    hint="A modality that gets no A-RELEASE-RP reports the whole study as failed.",
)
def release(at: Context) -> None:
    with at.association() as line:
        associate(at, line, VERIFY)
        line.release()


@check(
    id="dicom.default-transfer-syntax",
    title="A context that offers only Implicit VR Little Endian is accepted",
    verifies=(f"{STANDARD}/part05/sect_10.1.html",),
    wire="dicom",
    hint="Implicit VR Little Endian is the default transfer syntax of DICOM: an acceptor of the SOP class takes it.",
)
def default_transfer_syntax(at: Context) -> None:
    only = Proposal(5, VERIFICATION, (IMPLICIT_LITTLE,))
    with at.association() as line:
        associate(at, line, only)
        answer = accepted(line, only)
        expect(answer.transfer_syntax == IMPLICIT_LITTLE, f"transfer syntax {IMPLICIT_LITTLE}", answer)


@check(
    id="dicom.unknown-abstract-syntax",
    title="An unknown SOP class is refused by its context, the others are accepted",
    verifies=(f"{STANDARD}/part08/sect_9.3.3.html",),
    wire="dicom",
    hint="Answer result 3 (abstract-syntax-not-supported) for that context; do not reject the association.",
)
def unknown_abstract_syntax(at: Context) -> None:
    unknown = Proposal(3, PRIVATE_SOP_CLASS, (IMPLICIT_LITTLE,))
    with at.association() as line:
        associate(at, line, VERIFY, unknown)
        accepted(line, VERIFY)
        answer = line.contexts.get(unknown.id)
        refused = answer is not None and answer.result in {1, 3}
        expect(refused, "result 3 (abstract-syntax-not-supported) for context 3", answer or "no answer to context 3")


@check(
    id="dicom.called-ae",
    title="A wrong called AE title is rejected with source 1, reason 7, or accepted by declared policy",
    verifies=(f"{STANDARD}/part08/sect_9.3.4.html",),
    wire="dicom",
    hint="If accepting any called AE title is the system's policy, say so with --set any_called_ae=yes.",
)
def called_ae(at: Context) -> None:
    with at.association() as line:
        try:
            line.request(at.options.calling_ae, (VERIFY,), called=NOBODY)
        except Rejected as answer:
            why = (answer.source, answer.reason)
            known = why == CALLED_AE_NOT_RECOGNIZED and answer.result in {1, 2}
            expect(known, "source 1 (service-user), reason 7 (called-AE-title-not-recognized)", answer)
            return
        expect(at.options.any_called_ae, f"A-ASSOCIATE-RJ for the called AE title {NOBODY}", "A-ASSOCIATE-AC")
        expect_echo(line)


@check(
    id="dicom.transfer-syntax",
    title="The transfer syntax of an accepted context is one of those proposed for it",
    verifies=(f"{STANDARD}/part08/sect_9.3.3.html",),
    wire="dicom",
    hint="The requestor encodes with what comes back: a syntax it did not offer cannot be sent.",
)
def transfer_syntax(at: Context) -> None:
    offers = (
        Proposal(1, ULTRASOUND_IMAGE, (JPEG_BASELINE,)),
        Proposal(3, ULTRASOUND_IMAGE, (EXPLICIT_LITTLE,)),
        Proposal(5, ULTRASOUND_IMAGE, (IMPLICIT_LITTLE, EXPLICIT_LITTLE)),
    )
    with at.association() as line:
        associate(at, line, *offers)
    answers = [(offer, line.contexts.get(offer.id)) for offer in offers]
    taken = [(offer, answer) for offer, answer in answers if answer is not None and answer.result == 0]
    if not taken:
        raise Skipped("the system accepts no context for Ultrasound Image Storage")
    for offer, answer in taken:
        one_of = f"context {offer.id} with one of {', '.join(offer.transfer_syntaxes)}"
        expect(answer.transfer_syntax in offer.transfer_syntaxes, one_of, answer.transfer_syntax)


def store(at: Context, syntax: str, fragment: int = 0) -> None:
    """Store one small image over an association of its own; anything but 0x0000 is a failure."""
    offer = Proposal(1, ULTRASOUND_IMAGE, (syntax,))
    with at.association() as line:
        associate(at, line, offer)
        accepted(line, offer)
        instance, data = ultrasound(at.options, syntax)
        status = line.store(offer.id, ULTRASOUND_IMAGE, instance, data, fragment=fragment)
        expect(status == 0x0000, "status 0x0000 (Success)", f"{status:#06x}")
        line.release()


@check(
    id="dicom.store",
    title="A small ultrasound image is acknowledged 0x0000, in both uncompressed little endian syntaxes",
    verifies=(f"{STANDARD}/part07/sect_9.1.html", f"{STANDARD}/part04/sect_B.2.3.html"),
    wire="dicom",
    hint="0xA7xx: no room; 0xA9xx: data set and SOP class disagree; 0xCxxx: unreadable. The system's log knows why.",
)
def store_image(at: Context) -> None:
    for syntax in (EXPLICIT_LITTLE, IMPLICIT_LITTLE):
        store(at, syntax)


@check(
    id="dicom.fragments",
    title="An image cut into many small presentation data values, several to a PDU, is acknowledged 0x0000",
    verifies=(f"{STANDARD}/part08/sect_9.3.5.html", f"{STANDARD}/part08/chapter_E.html"),
    wire="dicom",
    level="N2",
    hint="Command and data set may be cut anywhere; only the last-fragment bit ends them.",
)
def fragments(at: Context) -> None:
    store(at, EXPLICIT_LITTLE, fragment=50)


@check(
    id="dicom.unexpected-pdu",
    title="A PDU of unknown type is answered A-ABORT, and the next association is served",
    verifies=(f"{STANDARD}/part08/sect_9.2.html", f"{STANDARD}/part08/sect_9.3.8.html"),
    wire="dicom",
    level="N2",
    hint="Action AA-8 of the state table: send A-ABORT with source 2, then close.",
)
def unexpected_pdu(at: Context) -> None:
    with at.association() as line:
        associate(at, line, VERIFY)
        at.transcript.sent("a PDU of type 0x3F")
        line.send(pdu(0x3F, bytes(8)))
        try:
            kind, _ = line.receive()
        except Aborted:
            pass
        except NoAnswer as silence:
            raise Failed("A-ABORT", silence.found) from None
        else:
            raise Failed("A-ABORT", f"a PDU of type {kind:#04x}")
    with at.association() as line:
        associate(at, line, VERIFY)
        accepted(line, VERIFY)
