"""One distribution plan per report: who gets it, by which road, and never by two.

Destinations are data a partner can read: the FHIR Endpoints of the patient's hospital and of the expert group. An
Endpoint of ours carries the profile in `payloadType` (system `urn:passerelle:profil`) and the receiver's names in the
address: `mllp://host:2576?application=DPI&facility=CHU-X`.

Rules (CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1, mapping-mss): whoever mails the professional is one;
we mail the requester ourselves, so the HL7 message to a platform says DESTMSSANTEPS `N`; DESTDMP is `Y` only with a
qualified INS and an open, fed DMP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from fhir_server.config import Settings
from fhir_server.context import View
from fhir_server.patients.sites import Sites
from mappers.fhir_to_report import Report

PROFILE_SYSTEM = "urn:passerelle:profil"
DMP_STATUS = "urn:passerelle:dmp"
Profile = Literal["lps-1.1", "push-2.1"]
PROFILES: Mapping[str, Profile] = {"lps-1.1": "lps-1.1", "push-2.1": "push-2.1"}
MAIL_LANE = "mssante"


@dataclass(frozen=True, slots=True)
class Destination:
    """One road of one report. `lane` orders deliveries; `second_leg` says what confirms the handing over."""

    kind: Literal["hl7", "mail"]
    lane: str
    endpoint: str
    display: str
    second_leg: Literal["none", "zam", "dsn"]
    profile: Profile = "lps-1.1"
    application: str = ""
    facility: str = ""
    mailbox: str = ""
    dmp: bool = False


def plan(
    report: Report, patient: Mapping[str, Any], view: View, sites: Sites, settings: Settings
) -> tuple[Destination, ...]:
    """The destinations of a final report, each addressee once."""
    roads: dict[str, Destination] = {}
    for endpoint in _endpoints(report, view, sites):
        profile = _profile(endpoint)
        if endpoint.get("status") != "active" or profile is None:
            continue
        road, query = _road(endpoint["address"])
        if road in roads:
            continue
        dmp = profile == "push-2.1" and report.patient.ins is not None and dmp_open(patient)
        roads[road] = Destination(
            kind="hl7",
            lane=f"Endpoint/{endpoint['id']}",
            endpoint=endpoint["address"],
            display=endpoint.get("name", endpoint["id"]),
            second_leg="zam" if dmp else "none",
            profile=profile,
            application=query.get("application", [""])[0],
            facility=query.get("facility", [""])[0],
            dmp=dmp,
        )
    if report.requester.mailbox and settings.smtp:
        roads["mailto:" + report.requester.mailbox.lower()] = Destination(
            kind="mail",
            lane=f"{MAIL_LANE}:{report.requester.mailbox.lower()}",
            endpoint=f"mssante:{report.requester.mailbox}",
            display=report.requester.mailbox,
            second_leg="dsn",
            mailbox=report.requester.mailbox,
        )
    return tuple(roads.values())


def _road(address: str) -> tuple[str, Mapping[str, list[str]]]:
    """The address in one spelling, and its query; one that cannot be read stands for itself and fails in the outbox."""
    try:
        parts = urlsplit(address)
        return parts._replace(netloc=parts.netloc.lower()).geturl(), parse_qs(parts.query)
    except ValueError:
        return address, {}


def dmp_open(patient: Mapping[str, Any]) -> bool:
    """Whether the hospital said that the DMP is open (ZFA-1 ACTIF) and its feeding not opposed (ZFA-9 not IO)."""
    for extension in patient.get("extension", ()):
        if "dmp" in str(extension.get("url", "")).lower():
            parts = {part.get("url"): part.get("valueCode") for part in extension.get("extension", ())}
            return parts.get("status") == "ACTIF" and parts.get("feed") != "IO"
    return False


def _endpoints(report: Report, view: View, sites: Sites) -> Iterable[Mapping[str, Any]]:
    """The Endpoints of each establishment that knows the patient by a local identifier."""
    owners = [owner[0] for _, oid, _, _ in report.patient.local_ids if (owner := sites.of_oid(oid))]
    for site in dict.fromkeys(owners):
        organization = view.get(f"Organization/{site.key}") or {}
        for item in organization.get("endpoint", ()):
            endpoint = view.get(item.get("reference", ""))
            if endpoint:
                yield endpoint


def _profile(endpoint: Mapping[str, Any]) -> Profile | None:
    for concept in endpoint.get("payloadType", ()):
        for coding in concept.get("coding", ()):
            if coding.get("system") == PROFILE_SYSTEM:
                return PROFILES.get(coding.get("code", ""))
    return None
