"""What a check found: the common shape of every checker's findings.

Severities and codes are those of an OperationOutcome: https://hl7.org/fhir/R4/valueset-issue-severity.html,
https://hl7.org/fhir/R4/valueset-issue-type.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["fatal", "error", "warning", "information"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: `code` is a FHIR issue type, `expression` a FHIRPath such as `Patient.name[0].family` ('' = unknown).

    `diagnostics` is a sentence that says what to do.
    """

    severity: Severity
    code: str
    expression: str
    diagnostics: str
