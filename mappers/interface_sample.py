"""Messages as a partner will get them, written by the real mappers about people who do not exist.

Hides the fictitious téléexpertise. Its patient carries the test identity published for INS software; RPPS and FINESS
numbers are of series that are not given out. Keyed by the profile an Endpoint asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Final

from mappers import fhir_to_hl7v2
from mappers.fhir_to_cda import cda
from mappers.fhir_to_hl7v2_orders import order_answer, order_request
from mappers.fhir_to_hl7v2_plain import plain
from mappers.fhir_to_hl7v2_schedule import siu
from mappers.fhir_to_pdf import pdf
from mappers.fhir_to_report import Code, Org, PatientIdentity, Professional, Report, own_root
from mappers.french import CONFIDENTIALITY_OID, VISIBILITY, VISIBILITY_OID
from mappers.hl7v2_codes_to_fhir import SYSTEMS
from mappers.hl7v2_orders_to_fhir import COMMENT, PURPOSE
from mappers.identity import Site
from mappers.order_number import OrderNumber

NOW: Final = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
_IDS: Final = ("EXEMPLE2345ABCDEFGH2", "EXEMPLE2345ABCDEFGH3", "EXEMPLE2345ABCDEFGH4", "EXEMPLE2345ABCDEFGH5")
_SPECIALTY: Final = Code("G15_10/SM26", "Qualifié en Médecine Générale (SM)", "1.2.250.1.213.1.1.4.5")
_RESTRICTED: Final = Code("R", "Restreint", CONFIDENTIALITY_OID)
_HIDDEN: Final = Code("INVISIBLE_PATIENT", VISIBILITY["INVISIBLE_PATIENT"], VISIBILITY_OID)
_ORDER: Final = OrderNumber("DEM-2026-001", "RIS", "2.25.4720", "ISO")


@dataclass(frozen=True, slots=True)
class Sample:
    """One message: what causes it, in words, and its bytes."""

    event: str
    raw: bytes


def samples(profile: str, site: Site, application: str, facility: str) -> list[Sample]:
    """Every kind of message a destination of that profile gets. Raises KeyError for a profile nobody knows."""
    ids = iter(_IDS)

    def to() -> dict[str, Any]:
        names = {"receiving_application": application, "receiving_facility": facility}
        return {"site": site, "control_id": next(ids), "now": NOW, **names}

    return list(MAKERS[profile](_report(site), site, to))


To = Callable[[], dict[str, Any]]


def _mdm(profile: Any) -> Callable[[Report, Site, To], Sequence[Sample]]:
    def made(report: Report, site: Site, to: To) -> Sequence[Sample]:
        clinical, feed = cda(report, pdf(report), site), profile == "push-2.1"
        return [
            Sample(event, fhir_to_hl7v2.mdm(one, clinical, profile=profile, dmp=feed, **about, **to()).value)
            for event, one, about in _versions(report, site)
        ]

    return made


def _oru(report: Report, site: Site, to: To) -> Sequence[Sample]:
    clinical = cda(report, pdf(report), site)
    return [
        Sample(event, fhir_to_hl7v2.oru(one, clinical, dmp=True, **about, **to()).value)
        for event, one, about in _versions(report, site)
    ]


def _plain(kind: Any) -> Callable[[Report, Site, To], Sequence[Sample]]:
    def made(report: Report, site: Site, to: To) -> Sequence[Sample]:
        out = []
        for event, one, about in _versions(report, site):
            stay = about.pop("options").visit
            out.append(Sample(event, plain(one, pdf(one), kind=kind, visit=stay, **about, **to()).value))
        return out

    return made


def _versions(report: Report, site: Site) -> list[tuple[str, Report, dict[str, Any]]]:
    """A report that nobody ordered by HL7 v2, about no stay; then one that was ordered, within a stay, with its
    correction, which also restricts it, and its withdrawal."""
    ordered = replace(report, placer=_ORDER)
    corrected = replace(ordered, id=_CORRECTED, version=2, replaces=report.id, correction="Exemple de correction")
    corrected = replace(corrected, confidentiality=_RESTRICTED, visibility=(_HIDDEN,))
    stay = fhir_to_hl7v2.Options(visit=_visit(site))
    hidden = replace(stay, confidentiality_changed=True)
    return [
        (_SIGNED, report, {"trigger": "T02", "options": fhir_to_hl7v2.Options()}),
        (f"{_SIGNED}, of an order within a stay", ordered, {"trigger": "T02", "options": stay}),
        ("the expert corrects it, which now is restricted", corrected, {"trigger": "T10", "options": hidden}),
        ("the expert withdraws it", corrected, {"trigger": "T04", "options": stay}),
    ]


def _visit(site: Site) -> fhir_to_hl7v2.Visit | None:
    """A stay that never was, in the site's namespaces."""
    spaces = {one.kind: one for one in reversed(site.namespaces)}
    visit, account = spaces.get("VN"), spaces.get("AN")
    if visit is None:
        return None
    number = ("EXEMPLE-2", visit.hd, visit.cx_type)
    return fhir_to_hl7v2.Visit(
        "O", number, ("EXEMPLE-3", account.hd, account.cx_type) if account else None, start=NOW, end=NOW
    )


def _answers(report: Report, site: Site, to: To) -> Sequence[Sample]:
    accepted = order_answer(_ORDER, "accepted", report.patient, report.expert, **to())
    refused = order_answer(_ORDER, "refused", report.patient, report.expert, reason="Hors champ", **to())
    return [
        Sample("an expert takes the request", accepted.value),
        Sample("the request is refused, or taken back elsewhere", refused.value),
    ]


def _orders(report: Report, site: Site, to: To) -> Sequence[Sample]:
    request = {
        "priority": "routine", "reasonCode": [{"text": report.reason}], "note": [_PURPOSE],
        "orderDetail": [{"coding": [{"system": SYSTEMS["DCM"], "code": "US", "display": "Échographie"}]}],
        "bodySite": [{"coding": [{"system": SYSTEMS["SCT"], "code": "12921003", "display": "Pelvis"}]}],
    }  # fmt: skip
    new = order_request("NW", _ORDER, report.patient, report.requester, request, visit=_visit(site), **to())
    cancelled = order_request("CA", _ORDER, report.patient, report.requester, request, reason="Exemple", **to())
    return [
        Sample("an opinion is asked for", new.value),
        Sample("the request is taken back after it was sent", cancelled.value),
    ]


def _slots(report: Report, site: Site, to: To) -> Sequence[Sample]:
    slot: dict[str, Any] = {
        "resourceType": "Appointment",
        "id": "rdv-1",
        "status": "booked",
        "start": "2026-03-10T09:30:00+01:00",
        "end": "2026-03-10T09:50:00+01:00",
        "serviceType": [{"coding": [{"code": "TE2", "display": "Acte de téléexpertise"}]}],
        "appointmentType": {"coding": [{"code": "ROUTINE", "display": "Routine"}]},
        "reasonCode": [{"text": "Avis spécialisé"}],
        "comment": "Apporter les examens précédents",
    }
    given_up = slot | {"status": "cancelled", "cancelationReason": {"text": "Empêchement"}}
    told: tuple[tuple[Any, str, dict[str, Any]], ...] = (
        ("S12", "an appointment of the request is booked", slot | {"identifier": [_RDV]}),
        ("S13", "it is moved", slot),
        ("S14", "it is changed otherwise", slot),
        ("S15", "it is given up", given_up),
    )
    own = own_root(site)
    return [
        Sample(event, siu(code, content, report.patient, [report.expert], _ORDER, own_oid=own, **to()).value)
        for code, event, content in told
    ]


_PURPOSE: Final = {"extension": [{"url": COMMENT, "valueCode": PURPOSE}], "text": "Exemple"}
_RDV: Final = {"type": {"coding": [{"code": "PLAC"}]}, "system": "urn:oid:2.25.4730", "value": "RDV-1"}
_SIGNED: Final = "the expert signs the report"
_CORRECTED: Final = "0e6f7a52-3f0d-4b7e-9d52-6c1b7f2a9003"
MAKERS: Final[Mapping[str, Callable[[Report, Site, To], Sequence[Sample]]]] = {
    "lps-1.1": _mdm("lps-1.1"),
    "push-2.1": _mdm("push-2.1"),
    "push-2.1-oru": _oru,
    "plain-mdm": _plain("MDM"),
    "plain-oru": _plain("ORU"),
    "tlr-1.0": _answers,
    "tlr-1.0-orm": _orders,
    "siu-2.5": _slots,
}


def _report(site: Site) -> Report:
    """A finished téléexpertise of nobody."""
    home = Org("Structure d'exemple", site.finess_eg)
    return Report(
        id="0e6f7a52-3f0d-4b7e-9d52-6c1b7f2a9001",
        set_id="0e6f7a52-3f0d-4b7e-9d52-6c1b7f2a9002",
        version=1,
        title="Compte rendu de téléexpertise - exemple",
        patient=_patient(site),
        requester=_person("99900000011", "REQUERANTE", "Claire", home, "claire.requerante@exemple.mssante.fr"),
        expert=_person("99900000029", "EXPERT", "Paul", home, "paul.expert@exemple.mssante.fr"),
        request_id="exemple",
        request_oid=own_root(site),
        accession="",
        requested_at=NOW,
        started_at=NOW,
        ended_at=NOW,
        signed_at=NOW,
        consent="La patiente, informée, a consenti.",
        reason="Exemple sans patient",
        exchange=(),
        conclusion="Exemple sans patient.",
        test=site.mode != "production",
        zone=site.time_zone,
    )


def _patient(site: Site) -> PatientIdentity:
    """Nobody. A production site shows no INS: the OID of the test identity is not one of its own."""
    local = next((one for one in site.namespaces if one.kind == "PI"), None)
    return PatientIdentity(
        reference="Patient/exemple",
        birth_family="PAT-TROIS",
        birth_given="DOMINIQUE",
        birth_givens="DOMINIQUE MARIE-LOUISE",
        gender="female",
        birth_date=date(1979, 3, 28),
        birth_cog="63220",
        birth_city="EXEMPLEVILLE",
        used_family="EXEMPLE",
        used_given="DOMINIQUE",
        ins=("279035121518989", "1.2.250.1.213.1.4.10") if site.mode == "test" else None,
        local_ids=((("EXEMPLE-1", local.oid, local.hd, local.cx_type),) if local else ()),
    )


def _person(rpps: str, family: str, given: str, home: Org, mailbox: str) -> Professional:
    return Professional(rpps=rpps, family=family, given=given, specialty=_SPECIALTY, org=home, mailbox=mailbox)
