"""The segments our outgoing messages share: PID, PV1, the participations, the metadata of the push profile.

Hides how IHE PAM France and the CI-SIS write an identity, a stay, a professional and a yes or no; which message they
stand in is the business of `fhir_to_hl7v2` (CDA) and `fhir_to_hl7v2_plain` (PDF).

Sources: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1
(https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-r2/volume2.html); CI-SIS "Transmission au LPS d'un document CDA
provenant d'un courriel MSSanté" 1.1 (https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-mss/volume2.html); IHE PAM
France 2.11 for PID and PV1; PRT of HL7 v2.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from zoneinfo import ZoneInfo

from hl7v2.text import UTF8
from hl7v2.write import Component, Fields, Repetition, day, dtm, message
from mappers.fhir_to_report import PatientIdentity, Professional, Report
from mappers.identity import Site
from mappers.mapped import Loss, Mapped
from mappers.order_number import OrderNumber, under_oid

Trigger = Literal["T02", "T10", "T04"]

CODING_SYSTEMS: Final = {"2.16.840.1.113883.6.1": "LN", "1.2.250.1.213.1.1.4.12": "TRE_A05"}
"""OID of a document type -> third component of OBR-4 and OBX-3."""
SEXES: Final = {"female": "F", "male": "M", "unknown": "U"}
INS_AUTHORITIES: Final = {"1.2.250.1.213.1.4.9": "ASIP-SANTE-INS-NIA"}
PERSONS: Final = ("ASIP-SANTE-PS", "1.2.250.1.71.4.2.1", "ISO")
STRUCTURES: Final = ("ASIP-SANTE-ST", "1.2.250.1.71.4.2.2", "ISO")

METADATA: Final = (
    ("MASQUE_PS", "Masqué aux professionnels de Santé"),
    ("INVISIBLE_PATIENT", "Document Non Visible par le patient"),
    ("INVISIBLE_REP_LEGAUX", "Non visible par les représentants Légaux du patient"),
    ("CONNEXION_SECRETE", "Connexion Secrete"),
    ("MODIF_CONF_CODE", "Modification Confidentiality Code"),
    ("DESTDMP", "Destinataire DMP"),
    ("DESTMSSANTEPS", "Destinataire (Professionnel de Santé, organisation ou BAL applicative)"),
    ("DESTMSSANTEPAT", "Destinataire Patient"),
    ("ACK_RECEPTION", "Accusé de réception"),
    ("ACK_LECTURE_MSS", "Accusé de lecture"),
)
"""Table MetaDMPMSS, in the order the push profile demands; the LPS profile has the first three and MODIF_CONF_CODE."""
LPS_METADATA: Final = ("MASQUE_PS", "INVISIBLE_PATIENT", "INVISIBLE_REP_LEGAUX", "MODIF_CONF_CODE")


@dataclass(frozen=True, slots=True)
class Visit:
    """The stay the report belongs to. `patient_class` is E, I, O or R; `number` and `account` are (value, HD, type).

    `start` and `end` are aware. Of class N nothing of the stay is told; `unsaid` is why.
    """

    patient_class: Literal["E", "I", "O", "R", "N"]
    number: tuple[str, tuple[str, str, str], str]
    account: tuple[str, tuple[str, str, str], str] | None = None
    start: datetime | None = None
    end: datetime | None = None
    unsaid: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """What the sender decides beside who may see the report, which the report says. Default: the platform mails nobody.

    `mail_professionals` and `mail_patient` stay false as long as we mail ourselves: with them a platform would send
    the report a second time. `confidentiality_changed` is MODIF_CONF_CODE: what it replaces was to be seen by others.
    `mail_id` and `mail_subject` describe, for the LPS profile, the mail that carries the same report; `recipient` is
    whose software gets it, None where it is nobody's own: then the requester.
    """

    confidentiality_changed: bool = False
    mail_professionals: bool = False
    mail_patient: bool = False
    acknowledge_reading: bool = False
    mail_id: str = ""
    mail_subject: str = ""
    mail_body: str = ""
    recipient: Professional | None = None
    visit: Visit | None = None


Segments = list[tuple[str, Fields]]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every outgoing message needs: who sends, to whom, under which id. `now` is aware.

    `control_id` is MSH-10, 1 to 20 characters, unique for ever; ValueError otherwise.
    """

    site: Site
    control_id: str
    now: datetime
    receiving_application: str
    receiving_facility: str

    def __post_init__(self) -> None:
        if not 0 < len(self.control_id) <= 20:
            raise ValueError(f"MSH-10 takes 1 to 20 characters, not {len(self.control_id)}")

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.site.time_zone)

    def msh(self, kind: tuple[str, str, str], version: str, profile: tuple[str, str] | None) -> Fields:
        """MSH-9 `kind`, MSH-12 `version`, MSH-21 `profile`; P for a production site, T for a test site."""
        return {
            3: self.site.application,
            4: self.site.facility,
            5: self.receiving_application,
            6: self.receiving_facility,
            7: dtm(self.now.astimezone(self.zone)),
            9: kind,
            10: self.control_id,
            11: "P" if self.site.mode == "production" else "T",
            12: version,
            17: "FRA",
            18: self.site.charset or UTF8,
            21: profile,
        }


def finished(segments: Segments, site: Site, losses: Sequence[Loss]) -> Mapped[bytes]:
    """The bytes in the character set of the site; each sign it does not have is a loss."""
    written = message(segments, charset=site.charset or UTF8)
    missing = [
        Loss(where, f"{sign!r} is not in {site.charset} and was replaced")
        for where, sign in dict.fromkeys(written.replaced)
    ]
    return Mapped(written.raw, (*losses, *missing))


def check_options(report: Report, options: Options) -> None:
    """The combinations no reading of the CI-SIS matrix allows (regles-gestion-mssante)."""
    hidden = visibility(report)
    if hidden["INVISIBLE_PATIENT"] and options.mail_patient:
        raise ValueError("a document the patient may not see cannot be mailed to the patient")
    if hidden["MASQUE_PS"] and options.mail_professionals:
        raise ValueError("a document masked to professionals cannot be mailed to one")


def ordered(report: Report) -> OrderNumber:
    """What a report answers: the number of the order as it came by HL7 v2, else the request's own id."""
    return report.placer or under_oid(report.request_id, report.request_oid)


def type_of(report: Report) -> tuple[str, str, str]:
    return report.type.code, report.type.display, CODING_SYSTEMS.get(report.type.system, report.type.system)


def pid(patient: PatientIdentity, visit: Visit | None, losses: list[Loss]) -> Fields:
    names: list[Repetition] = [(patient.birth_family, patient.birth_given, patient.birth_givens, None, None, None, "L")]
    if patient.used_family or patient.used_given:
        used = (patient.used_family or patient.birth_family, patient.used_given or patient.birth_given)
        names.append((*used, None, None, None, None, "D"))
    birth = (None, None, patient.birth_city, None, None, None, "BDL", None, patient.birth_cog)
    if patient.gender not in SEXES:
        losses.append(Loss("PID-8", f"gender {patient.gender!r} is written as U"))
    return {
        1: "1",
        3: _identifiers(patient),
        5: names,
        7: day(patient.birth_date),
        8: SEXES.get(patient.gender, "U"),
        11: birth if patient.birth_cog or patient.birth_city else None,
        18: _cx(*visit.account) if visit and visit.account else None,
        31: "N",
        32: "VALI" if patient.ins else "PROV",
    }


def _identifiers(patient: PatientIdentity) -> list[Repetition]:
    """The ids of the CDA's recordTarget: INS first, then the local ones."""
    out: list[Repetition] = []
    if patient.ins:
        value, oid = patient.ins
        out.append(_cx(value, (INS_AUTHORITIES.get(oid, "ASIP-SANTE-INS-NIR"), oid, "ISO"), "INS"))
    out += [_cx(value, hd, kind) for value, _, hd, kind in patient.local_ids]
    return out


def _cx(value: str, hd: tuple[str, str, str], kind: str) -> tuple[Component, ...]:
    return value, None, None, hd, kind


def pv1(visit: Visit | None, zone: ZoneInfo, losses: list[Loss]) -> Fields:
    """The stay when it is known and has a class of PV1-2, else class N."""
    if visit is None or visit.patient_class == "N":
        if visit:
            losses.append(Loss("PV1-19", f"visit number {visit.number[0]} is not told: {visit.unsaid}"))
        return {1: "1", 2: "N"}
    return {
        1: "1",
        2: visit.patient_class,
        19: _cx(*visit.number),
        44: dtm(visit.start.astimezone(zone)) if visit.start else None,
        45: dtm(visit.end.astimezone(zone)) if visit.end else None,
    }


ROLES: Final = {
    "SB": ("SB", "Send by", "participation"),
    "RCT": ("RCT", "Result Copies To", "participation"),
    "REPLY": ("REPLY", "Reply To", "participation"),
}
"""PRT-4."""


def participation(role: str, who: Professional, mailbox: str = "") -> Fields:
    return {
        2: "UC",
        4: ROLES[role],
        5: xcn(f"8{who.rpps}", who.family, who.given, PERSONS, "D", "IDNPS"),
        8: (who.org.name, *[None] * 4, STRUCTURES, "FINEG", None, None, who.org.finess) if who.org.finess else None,
        15: mail(mailbox) if mailbox else None,
    }


def recipient_patient(patient: PatientIdentity) -> Fields:
    value, oid = patient.ins or ("", "")
    authority = (INS_AUTHORITIES.get(oid, "ASIP-SANTE-INS-NIR"), oid, "ISO")
    person = xcn(value, patient.birth_family, patient.birth_given, authority, "L", "INS") if patient.ins else None
    return {2: "UC", 4: ROLES["RCT"], 5: person, 15: mail(patient.mailbox)}


def xcn(
    value: str, family: str, given: str, authority: tuple[str, str, str], name_type: str, kind: str
) -> tuple[Component, ...]:
    return value, family, given, *[None] * 5, authority, name_type, None, None, kind


def mail(address: str) -> tuple[Component, ...]:
    return None, None, "X.400", address


def reply_to(report: Report, site: Site) -> str:
    """The mailbox answers go to: the expert's, else the application's."""
    box = next((box for box in site.mailboxes if box.kind == "APP"), None) or next(iter(site.mailboxes), None)
    return report.expert.mailbox or (box.address if box else "")


HIDDEN: Final = {
    "MASQUE_PS": "MASQUE_PS",
    "INVISIBLE_PATIENT": "INVISIBLE_PATIENT",
    "INVISIBLE_REP_LEGAUX": "INVISIBLE_REPRESENTANTS_LEGAUX",
}
"""OBX-3 of table MetaDMPMSS -> code of TRE_A07, which is how XDS and FHIR write the same."""


def visibility(report: Report) -> dict[str, bool]:
    """Who may not see the report, by its name in HL7."""
    said = {one.code for one in report.visibility}
    return {name: code in said for name, code in HIDDEN.items()}


def metadata(number: int, code: str, answer: bool, value_type: str = "CWE") -> tuple[str, Fields]:
    """One OBX of the table MetaDMPMSS; `value_type` is CE before HL7 2.6."""
    label = dict(METADATA)[code]
    value = ("Y" if answer else "N", None, "expandedYes-NoIndicator")
    return "OBX", {1: str(number), 2: value_type, 3: (code, label, "MetaDMPMSS"), 5: value, 11: "F"}
