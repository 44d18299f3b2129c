"""The fictitious téléexpertise the report tests share: a sage-femme asks a gynaecologist about an ultrasound.

The data are our own (tests/data/report); the patient is the test identity published for INS software.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mappers.fhir_to_report import Report, Sources, report
from mappers.identity import Namespace, Site

DATA = Path(__file__).resolve().parents[2] / "data" / "report"

SITE = Site(
    key="exemple",
    name="Centre hospitalier d’Exemple-sur-Marne",
    finess_eg="510999025",
    finess_ej="510999900",
    mode="test",
    application="PASSERELLE",
    facility="CH EXEMPLE",
    sending_applications=(),
    ae_titles=("PASSERELLE",),
    ae_namespaces=(),
    mailboxes=(),
    namespaces=(
        Namespace(
            name="ipp",
            kind="PI",
            hd=("CHEXEMPLE", "2.25.310000000000000000000000000000000002", "ISO"),
            oid="2.25.310000000000000000000000000000000002",
            fhir_system="urn:oid:2.25.310000000000000000000000000000000002",
            cx_type="PI",
        ),
        Namespace(
            name="accession",
            kind="ACSN",
            hd=("TLX", "2.25.310000000000000000000000000000000001", "ISO"),
            oid="2.25.310000000000000000000000000000000001",
            fhir_system="urn:oid:2.25.310000000000000000000000000000000001",
            cx_type="ACSN",
        ),
    ),
    document_oid="2.25.310000000000000000000000000000000009",
    address="20 avenue de l’Hôpital, 51000 CHÂLONS-EN-CHAMPAGNE",
    telecom="tel:0399002025",
)


def resources() -> dict[str, Any]:
    """A fresh copy of the source resources, to be broken at will."""
    data: dict[str, Any] = json.loads((DATA / "obstetric_ultrasound.json").read_text(encoding="utf-8"))
    return data


def sources(data: dict[str, Any] | None = None, **changes: Any) -> Sources:
    data = data or resources()
    made = Sources(
        service_request=data["serviceRequest"],
        diagnostic_report=data["diagnosticReport"],
        patient=data["patient"],
        requester_role=data["requesterRole"],
        requester=data["requester"],
        requester_organization=data["requesterOrganization"],
        expert_role=data["expertRole"],
        expert=data["expert"],
        expert_organization=data["expertOrganization"],
        site=SITE,
        document_id="0f9d3a52-7b64-4e0c-9c1d-2a3b4c5d6e7f",
        set_id="5e4d3c2b-1a09-4f8e-b7d6-c5b4a3928170",
        consent=data["consent"],
        communications=tuple((pair["communication"], pair["author"]) for pair in data["communications"]),
        imaging_studies=tuple(data["imagingStudies"]),
    )
    return replace(made, **changes)


def obstetric(**changes: Any) -> Report:
    """The report of the unchanged sources, with fields of the Report replaced."""
    return replace(report(sources()).value, **changes)
