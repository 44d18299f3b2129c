"""One error tree, translated once per wire: FHIR OperationOutcome, HL7 v2 ERR, C-STORE status, delivery class.

Every error carries a sentence that names the element and the remedy. The class docstring is the short
text shown when no better sentence is given.

Sources: https://hl7.org/fhir/R4/valueset-issue-type.html, HL7 tables 0008, 0357, 0516,
DICOM PS3.4 annex B (C-STORE statuses) and PS3.7 9.1.1.1.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Severity = Literal["fatal", "error", "warning", "information"]
DeliveryClass = Literal["transient", "ambiguous", "permanent", "held"]


@dataclass(frozen=True, slots=True)
class Issue:
    """One OperationOutcome.issue: `expression` is a FHIRPath such as `Patient.name[0].family`, or ''."""

    severity: Severity
    code: str
    diagnostics: str
    expression: str = ""


class PasserelleError(Exception):
    """Something went wrong inside the server."""

    code: ClassVar[str] = "exception"
    http: ClassVar[int] = 500
    hl7_ack: ClassVar[Literal["AE", "AR"]] = "AR"
    hl7_err: ClassVar[str] = "207"
    cstore: ClassVar[int] = 0xA700
    delivery: ClassVar[DeliveryClass] = "held"

    def __init__(
        self,
        diagnostics: str = "",
        *,
        expression: str = "",
        code: str | None = None,
        issues: tuple[Issue, ...] = (),
        http: int | None = None,
        location: str = "",
    ) -> None:
        """`expression` is a FHIRPath; `location` is an HL7 v2 ERR-2 location in the form `PID^1^3^1`."""
        text = diagnostics or (type(self).__doc__ or "").strip()
        super().__init__(text)
        self.diagnostics = text
        self.issues = issues or (Issue("error", code or type(self).code, text, expression),)
        self.status = http or type(self).http
        self.location = location


class Malformed(PasserelleError):
    """The content cannot be read."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "structure", 400, "AE", "100", 0xC000, "permanent"


class Invalid(PasserelleError):
    """The content breaks a rule of the standard."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "invalid", 422, "AE", "101", 0xA900, "permanent"


class Unsupported(PasserelleError):
    """This server does not offer that."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "not-supported", 404, "AE", "200", 0x0122, "permanent"


class NotFound(PasserelleError):
    """Nothing is known under that address."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "not-found", 404, "AE", "204", 0xA700, "permanent"


class Gone(PasserelleError):
    """The resource was deleted."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "deleted", 410, "AE", "204", 0xA700, "permanent"


class Conflict(PasserelleError):
    """Another change was made in the meantime; read the resource again and repeat."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "conflict", 409, "AE", "205", 0x0000, "permanent"


class Precondition(Conflict):
    """The condition of the request does not hold."""

    http = 412


class RuleBroken(PasserelleError):
    """A rule of the téléexpertise forbids this."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "business-rule", 422, "AE", "207", 0xC000, "permanent"


class Unauthenticated(PasserelleError):
    """Say who you are."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "login", 401, "AE", "207", 0x0124, "permanent"


class Forbidden(PasserelleError):
    """You may not do this."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "forbidden", 403, "AE", "207", 0x0124, "permanent"


class TooLarge(PasserelleError):
    """More than this server accepts in one go."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "too-costly", 413, "AE", "207", 0xA700, "permanent"


class Throttled(PasserelleError):
    """Too many requests; wait and repeat."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "throttled", 429, "AR", "207", 0xA700, "transient"


class Unavailable(PasserelleError):
    """Not possible right now; repeat later."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "transient", 503, "AR", "207", 0xA700, "transient"


class Silent(PasserelleError):
    """The partner got the message and did not answer."""

    code, http, hl7_ack, hl7_err, cstore, delivery = "timeout", 504, "AR", "207", 0xA700, "ambiguous"


class Fault(PasserelleError):
    """A defect of this server; the operator finds the details in its log."""
