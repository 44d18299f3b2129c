"""The labels a message brings: who may not see a document or a report.

Hides how HL7 names them (OBX of table MetaDMPMSS, Y or N) and that silence keeps: a label of the version before stays
unless the message lifts it with N.

Sources: CI-SIS push 2.1, table MetaDMPMSS; TRE_A07 (JDV_J08);
https://hl7.org/fhir/R4/documentreference-definitions.html#DocumentReference.securityLabel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fhir_server.teleexpertise.freezing import VISIBILITY
from mappers.fhir_to_hl7v2_segments import HIDDEN
from mappers.french import VISIBILITY as HIDES

Resource = dict[str, Any]
Flags = Mapping[str, bool]
"""Yes or no by the name in OBX-3, those that are said."""


def document_labelled(document: Resource, flags: Flags, before: Sequence[Resource]) -> Resource:
    """A DocumentReference with the labels of the message and those of `before` (CodeableConcepts) it leaves."""
    said = _said(flags)
    kept = [
        {**one, "coding": left} if left else one for one in before if (left := _left(one, said)) or "coding" not in one
    ]
    labels = [*kept, *({"coding": [one]} for one in _told(said))]
    bare = {name: value for name, value in document.items() if name != "securityLabel"}
    return {**bare, "securityLabel": labels} if labels else bare


def report_labelled(report: Resource, flags: Flags, before: Sequence[Resource]) -> Resource:
    """A DiagnosticReport with the labels of the message and those of `before` (Codings) it leaves."""
    said = _said(flags)
    labels = [*(one for one in before if one.get("code") not in said), *_told(said)]
    return {**report, "meta": {**report.get("meta", {}), "security": labels}} if labels else report


def _said(flags: Flags) -> dict[str, bool]:
    """Code of TRE_A07 -> whether the message sets or lifts it."""
    return {code: flags[name] for name, code in HIDDEN.items() if name in flags}


def _left(concept: Resource, said: Mapping[str, bool]) -> list[Resource]:
    return [one for one in concept.get("coding", ()) if one.get("code") not in said]


def _told(said: Mapping[str, bool]) -> list[Resource]:
    return [{"system": VISIBILITY, "code": code, "display": HIDES[code]} for code, yes in said.items() if yes]
