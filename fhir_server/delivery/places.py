"""Where in an HL7 v2 message a fault of the resources made from it comes from.

Hides which field fills which FHIR element. A character no text may hold is looked for in the message itself when the
fault is about one; for all else the field is the one the element is mapped from.

Source: HL7 v2.5 2.15.5 (ERR-2, ERR-3) and table 0357; docs/hl7v2.md (the mapping).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from fhir_server.delivery.arrivals import Rejected
from fhir_server.errors import Invalid, Issue, Malformed, PasserelleError
from hl7v2.ack import AckError
from hl7v2.message import Message

FIELDS: Final[Mapping[str, str]] = {
    "Patient": "PID",
    "Patient.identifier": "PID-3",
    "Patient.name": "PID-5",
    "Patient.birthDate": "PID-7",
    "Patient.gender": "PID-8",
    "Patient.address": "PID-11",
    "Patient.telecom": "PID-13",
    "Patient.maritalStatus": "PID-16",
    "Patient.multipleBirth": "PID-24",
    "Patient.deceased": "PID-29",
    "Patient.contact": "NK1",
    "Patient.generalPractitioner": "ROL",
    "Encounter": "PV1",
    "Encounter.identifier": "PV1-19",
    "Encounter.class": "PV1-2",
    "Encounter.location": "PV1-3",
    "Encounter.participant": "PV1-7",
    "Encounter.period": "PV1-44",
    "Consent": "ZFA",
    "DiagnosticReport": "OBR",
    "Observation": "OBX",
    "Specimen": "SPM",
    "ServiceRequest": "ORC",
    "DocumentReference": "TXA",
    "Binary": "OBX-5",
    "Appointment": "SCH",
    "List": "MRG",
}
"""The element of a resource -> the segment or field it is mapped from."""
_ELEMENT: Final = re.compile(r"[A-Z]\w*(?:\.[a-z][A-Za-z]*)?")
_UNFIT: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_ABOUT_UNFIT: Final = re.compile("control character|character NUL")
"""What the checker of FHIR's text types and the reader of a search say, and nothing else does."""
_CONTROL: Final = re.compile("[\x00-\x1f]")
_KIND: Final = re.compile(r"[ :]*(?:\([a-zA-Z]+\) )?")
_MOST: Final = 20


def located(error: PasserelleError, msg: Message | None) -> PasserelleError:
    """A fault that a resend does not cure and that names no place, as one that does; any other as it is."""
    if msg is None or error.location or error.hl7_ack != "AE" or isinstance(error, Rejected):
        return error
    data = isinstance(error, Invalid | Malformed) and error.hl7_err in ("100", "101")
    found = [
        AckError(_place(msg, issue), "102" if data and issue.code != "required" else error.hl7_err, _words(issue))
        for issue in error.issues[:_MOST]
    ]
    return Rejected(found) if all(one.location for one in found) else error


def _words(issue: Issue) -> str:
    """What is wrong, without the address in a resource that the sender never saw."""
    text = issue.diagnostics
    if issue.expression and text.startswith(issue.expression):
        text = text[len(issue.expression) :]
        text = text[_KIND.match(text).end() :]  # type: ignore[union-attr]
    return _CONTROL.sub("\ufffd", text)


def _place(msg: Message, issue: Issue) -> str:
    """A path or the name of a segment that is there; '' when nothing tells."""
    element = _ELEMENT.search(issue.expression)
    names = (element[0], element[0].partition(".")[0]) if element else ()
    mapped = next((FIELDS[name] for name in names if name in FIELDS), "")
    segment = mapped.partition("-")[0]
    if _ABOUT_UNFIT.search(issue.diagnostics):
        spans = sorted((span for span in msg.spans if span[0]), key=lambda span: span[0] != segment)
        for _, start, end in spans:
            if sign := _UNFIT.search(msg.raw, start, end):
                return msg.place(sign.start())
    return mapped if mapped and msg.first(segment) else ""
