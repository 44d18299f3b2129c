"""One identity, five spellings: how a site writes each identifier namespace on each wire.

Sources: French facts on INS OIDs (1.2.250.1.213.1.4.8 NIR, .9 NIA, .10 test, .11 demo); HL7 v2 CX and HD data
types; FR Core 2.2.0 patient-ins; IHE XDM CX with type NH; DICOM PS3.3 C.2.3 (0010,0020) (0010,0021) (0010,0024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NamespaceKind = Literal["INS-NIR", "INS-NIA", "INS-NIR-TEST", "INS-NIR-DEMO", "PI", "VN", "AN", "ACSN"]


@dataclass(frozen=True, slots=True)
class Namespace:
    """One identifier namespace in all its spellings.

    `hd` is the HL7 v2 HD triple (namespace id, universal id, universal id type); `oid` is bare (no `urn:oid:`);
    `fhir_system` the Identifier.system; `cx_type` the HL7 table 0203 code used in CX-5 (PID-3);
    `dicom_issuer` the value of IssuerOfPatientID (0010,0021) or IssuerOfAccessionNumberSequence's local id.
    """

    name: str
    kind: NamespaceKind
    hd: tuple[str, str, str]
    oid: str
    fhir_system: str
    cx_type: str
    dicom_issuer: str = ""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """One MSSanté mailbox of the site. `kind` is a TRE_R257 code: PER, ORG, APP or CAB."""

    address: str
    display: str
    kind: Literal["PER", "ORG", "APP", "CAB"] = "APP"


@dataclass(frozen=True, slots=True)
class Site:
    """One establishment: the record every wire reads. `mode` decides which INS OIDs and MSH-11 values are legal.

    `finess_eg` / `finess_ej` are 9 digits; `application` / `facility` are our MSH-3 / MSH-4 (and MSH-5 / MSH-6 on
    input) names; `ae_namespaces` maps a calling AE title to the namespace name its Patient IDs belong to when the
    data set names no issuer; `sending_charsets` are the senders (MSH-3, MSH-4) whose messages are in another character
    set than they say, and in which; `time_zone` is an IANA name; `charset` an HL7 table 0211 value;
    `document_oid` is the root under which document and submission ids are made; `foreign` are the patient namespaces
    (PI) that the other establishments declare: a laboratory may send the number of the hospital it works for.
    """

    key: str
    name: str
    finess_eg: str
    finess_ej: str
    mode: Literal["test", "production"]
    application: str
    facility: str
    sending_applications: tuple[tuple[str, str], ...]
    ae_titles: tuple[str, ...]
    ae_namespaces: tuple[tuple[str, str], ...]
    mailboxes: tuple[Mailbox, ...]
    namespaces: tuple[Namespace, ...]
    time_zone: str = "Europe/Paris"
    charset: str = "UNICODE UTF-8"
    facility_type: str = "SA01"
    practice_setting: str = "ETABLISSEMENT"
    document_oid: str = ""
    address: str = ""
    telecom: str = ""
    sending_charsets: tuple[tuple[str, str, str], ...] = ()
    foreign: tuple[Namespace, ...] = ()
