"""What an HL7 v2 receiver answers: acknowledgement code, correlation, header, errors. Messages of IHE PAM France.

HL7 v2.5 chapter 2; IHE ITI TF-2 C.2.3; CI-SIS "Transmission d'un document CDA-R2 en HL7 v2", page on messages.
"""

from __future__ import annotations

from dataclasses import replace

from conformance.runner import check
from conformance.samples import admission
from conformance.target import Context
from conformance.verdict import expect
from conformance.wire_mllp import Ack, Connection

IHE = "https://profiles.ihe.net/ITI/TF/Volume2/ch-C.html"
CI_SIS = "https://github.com/ansforge/IG-hl7v2-volet-transmission-document-cda-r2"
PAM = "IHE PAM National Extension France 2.11"
HL7_0357 = {"0", "100", "101", "102", "103", "198", "199", "200", "201", "202", "203", "204", "205", "206", "207"}


def expect_code(ack: Ack, control_id: str, *codes: str) -> None:
    """MSA-2 names the message and MSA-1 is one of `codes`."""
    expect(ack.control_id == control_id, f"MSA-2 {control_id}, the MSH-10 of the message", ack.summary())
    expect(ack.code in codes, f"MSA-1 {' or '.join(codes)}", ack.summary())


def expect_error(ack: Ack, *codes: str) -> None:
    """An ERR segment with ERR-3 of `codes` (table 0357) and ERR-4 E."""
    expect(ack("ERR", 0), "an ERR segment beside AE or AR", ack.summary(), clause=f"{IHE}#C.2.3")
    code = ack.components("ERR", 3)[0].strip()
    expect(code in codes, f"ERR-3.1 of table 0357: {', '.join(sorted(codes))}", ack.summary(), clause=f"{IHE}#C.2.3")
    expect(ack("ERR", 4).strip() == "E", "ERR-4 E", ack.summary(), clause=f"{IHE}#C.2.3")


def admit(at: Context, line: Connection, **changes: object) -> tuple[Ack, str]:
    """Send one admission of a new patient; its acknowledgement and MSH-10."""
    control_id = at.unique()
    return line.exchange(admission(at.options, control_id, at.unique(10), **changes)), control_id


@check(
    id="hl7v2.adt-a01",
    title="An ADT^A01 of PAM France is answered AA, with MSA-2 equal to its MSH-10",
    verifies=(f"{IHE}#C.2.3", CI_SIS, PAM),
    wire="hl7v2",
    hint="AE or AR here: see ERR; does the port know the sender (--set sending_application=..., authority=...)?",
)
def adt_a01(at: Context) -> None:
    with at.mllp() as line:
        ack, control_id = admit(at, line)
    expect_code(ack, control_id, "AA")
    expect(ack("ERR", 4).strip() != "E", "no ERR of severity E beside AA", ack.summary())


@check(
    id="hl7v2.ack-header",
    title="The acknowledgement's MSH answers the message's: sender and receiver swapped, ACK^A01, MSH-11 kept",
    verifies=(f"{IHE}#C.2.2", "HL7 v2.5 2.15.9 (MSH)", CI_SIS),
    wire="hl7v2",
    hint="MSH-3/4 of the message become MSH-5/6 of the acknowledgement, and the reverse.",
)
def ack_header(at: Context) -> None:
    with at.mllp() as line:
        ack, _ = admit(at, line)
    options = at.options
    swapped = {
        3: options.receiving_application,
        4: options.receiving_facility,
        5: options.sending_application,
        6: options.sending_facility,
        11: options.processing_id,
    }
    for number, value in swapped.items():
        expect(ack("MSH", number) == value, f"MSH-{number} {value}", f"MSH-{number} {ack('MSH', number)!r}")
    kind = ack.components("MSH", 9)
    expect(kind[0] == "ACK" and kind[1:2] == ["A01"], "MSH-9 ACK^A01", f"MSH-9 {ack('MSH', 9)!r}")
    expect(ack("MSH", 12), "a version in MSH-12", "an empty MSH-12")
    expect(0 < len(ack("MSH", 10)) <= 20, "an MSH-10 of 1 to 20 characters", f"MSH-10 {ack('MSH', 10)!r}")


@check(
    id="hl7v2.same-message-twice",
    title="The same bytes sent again get the same answer",
    verifies=("HL7 v2.5 2.9.2 (original mode: a sender without answer resends)", CI_SIS),
    wire="hl7v2",
    level="N2",
    hint="A sender that lost the first answer resends; an error for the copy would stop its queue for nothing.",
)
def same_message_twice(at: Context) -> None:
    control_id = at.unique()
    message = admission(at.options, control_id, at.unique(10))
    with at.mllp() as line:
        first = line.exchange(message)
    expect_code(first, control_id, "AA")
    with at.mllp() as line:
        second = line.exchange(message)
    expect_code(second, control_id, first.code)


@check(
    id="hl7v2.missing-pid",
    title="A message without PID is answered AE, with ERR-3 of table 0357 and ERR-4 E",
    verifies=(f"{IHE}#C.2.3", CI_SIS),
    wire="hl7v2",
    hint="AA means integrated: structure is checked before it. AR would make the sender try the same fault again.",
)
def missing_pid(at: Context) -> None:
    with at.mllp() as line:
        ack, control_id = admit(at, line, without=("PID",))
    expect_code(ack, control_id, "AE")
    expect_error(ack, *(HL7_0357 - {"0", "200", "201", "202", "203", "206"}))


@check(
    id="hl7v2.error-location",
    title="The error of a message without PID is located: ERR-2 names PID",
    verifies=(f"{IHE}#C.2.3", "HL7 v2.5 2.15.5.2 (ERR-2 Error Location)"),
    wire="hl7v2",
    hint="IHE wants ERR-2 where a place is known; CI-SIS leaves it optional: omit this check if you promise only that.",
)
def error_location(at: Context) -> None:
    with at.mllp() as line:
        ack, _ = admit(at, line, without=("PID",))
    expect(ack("ERR", 0), "an ERR segment", ack.summary())
    expect(ack.components("ERR", 2)[0] == "PID", "ERR-2.1 PID", f"ERR-2 {ack('ERR', 2)!r}")


@check(
    id="hl7v2.unknown-event",
    title="An event the receiver does not know is refused with ERR-3 200 or 201",
    verifies=(f"{IHE}#C.2.3", "HL7 v2.5 2.9.2"),
    wire="hl7v2",
    hint="IHE says AR; CI-SIS keeps AR for what may be sent again and says AE: either is accepted here, AA is not.",
)
def unknown_event(at: Context) -> None:
    with at.mllp() as line:
        ack, control_id = admit(at, line, event="Z77", structure="ADT_Z77")
    expect_code(ack, control_id, "AR", "AE")
    expect_error(ack, "200", "201")


@check(
    id="hl7v2.unknown-version",
    title="A message of an unknown HL7 version is refused with ERR-3 203",
    verifies=("HL7 v2.5 2.9.2 (MSH-12 is validated) and table 0357", CI_SIS),
    wire="hl7v2",
    hint="A receiver that reads any version takes MSH-12 9.9 for a typing fault at least.",
)
def unknown_version(at: Context) -> None:
    with at.mllp() as line:
        ack, control_id = admit(at, line, version="9.9")
    expect_code(ack, control_id, "AR", "AE")
    expect_error(ack, "203")


@check(
    id="hl7v2.charsets",
    title="Messages in UTF-8 and in ISO 8859-15 are both answered AA",
    verifies=("HL7 v2.5 table 0211 (MSH-18)", PAM),
    wire="hl7v2",
    hint="French senders mix UNICODE UTF-8 and 8859/15: MSH-18 of each message decides, not the port.",
)
def charsets(at: Context) -> None:
    accented = replace(at.options, family="LECŒUR", given="Éloïse")
    with at.mllp() as line:
        for charset in ("UNICODE UTF-8", "8859/15"):
            control_id = at.unique()
            ack = line.exchange(admission(accented, control_id, at.unique(10), charset=charset))
            expect(
                ack.control_id == control_id and ack.code == "AA",
                f"AA for {control_id} in {charset}",
                ack.summary(),
            )
