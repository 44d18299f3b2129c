"""A finished report as an MDM message: to a DPI (profile LPS 1.1) or to a platform (push profile 2.1), HL7 v2.6.

Hides the two CI-SIS profiles: their segments, the metadata OBX in their fixed order, the participations, and the three
fields that must tell the same action (trigger, ORC-1, OBX-11). The bytes depend on the arguments only. The identifiers
of PID-3 are those of the CDA's recordTarget, in the same order.

MSH-11 is P for a production site and T ("message de test" in both profiles) for a test site; D means a debugging
environment, which a partner may drop, so it is never sent.

Sources: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1
(https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-r2/volume2.html); CI-SIS "Transmission au LPS d'un document CDA
provenant d'un courriel MSSanté" 1.1 (https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-mss/volume2.html); IHE PAM
France 2.11 for PID and PV1; HL7 v2.6 chapters 2, 3, 9 and PRT of v2.9.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from zoneinfo import ZoneInfo

from hl7v2.text import UTF8
from hl7v2.write import Component, Fields, Raw, Repetition, day, dtm, message
from mappers.fhir_to_report import PatientIdentity, Professional, Report, oid_of
from mappers.identity import Site
from mappers.mapped import Loss, Mapped

Profile = Literal["lps-1.1", "push-2.1"]
Trigger = Literal["T02", "T10", "T04"]

PROFILE_IDS: Final = {"lps-1.1": ("1.1", "CISIS_CDA_HL7_LPS"), "push-2.1": ("2.1", "CISIS_CDA_HL7_V2")}
"""MSH-21."""
ACTIONS: Final = {"T02": ("NW", "F"), "T10": ("RO", "C"), "T04": ("CA", "D")}
"""Trigger -> (ORC-1, OBX-11): create, replace, delete. A message where they disagree is rejected by the platform."""

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
_LPS_METADATA: Final = ("MASQUE_PS", "INVISIBLE_PATIENT", "INVISIBLE_REP_LEGAUX", "MODIF_CONF_CODE")


@dataclass(frozen=True, slots=True)
class Visit:
    """The stay the report belongs to. `patient_class` is E, I, O or R; `number` and `account` are (value, HD, type).

    `start` and `end` are aware.
    """

    patient_class: Literal["E", "I", "O", "R"]
    number: tuple[str, tuple[str, str, str], str]
    account: tuple[str, tuple[str, str, str], str] | None = None
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What the sender decides. Defaults: visible to everyone, nobody is mailed by the platform.

    `mail_professionals` and `mail_patient` stay false as long as we mail ourselves: with them a platform would send
    the report a second time. `confidentiality_changed` is MODIF_CONF_CODE. `mail_id` and `mail_subject` describe, for
    the LPS profile, the mail that carries the same report.
    """

    masked: bool = False
    invisible_patient: bool = False
    invisible_guardians: bool = False
    secret_connection: bool = False
    confidentiality_changed: bool = False
    mail_professionals: bool = False
    mail_patient: bool = False
    acknowledge_reading: bool = False
    mail_id: str = ""
    mail_subject: str = ""
    mail_body: str = ""
    visit: Visit | None = None


_DEFAULT: Final = Options()
Segments = list[tuple[str, Fields]]


def mdm(
    report: Report,
    cda: bytes,
    *,
    site: Site,
    profile: Profile,
    control_id: str,
    now: datetime,
    receiving_application: str,
    receiving_facility: str,
    trigger: Trigger = "T02",
    dmp: bool = False,
    options: Options = _DEFAULT,
) -> Mapped[bytes]:
    """The message, each segment ended by CR, in the character set of the site.

    `control_id` is MSH-10 (1 to 20 characters); `now` is aware. `dmp` asks the platform to feed the DMP: Y only with a
    qualified INS, and then an acknowledgement of reception is asked for. `trigger`: T02 create, T10 replace (the report
    names what it replaces), T04 delete. Raises ValueError for a control id that does not fit, a replacement of
    nothing, and metadata that contradict each other; everything softer is a loss.
    """
    if not 0 < len(control_id) <= 20:
        raise ValueError(f"MSH-10 takes 1 to 20 characters, not {len(control_id)}")
    if trigger == "T10" and not report.replaces:
        raise ValueError("a replacement (T10) needs the document it replaces: Report.replaces is empty")
    _check(options)
    losses: list[Loss] = []
    zone = ZoneInfo(site.time_zone)
    feed = dmp and profile == "push-2.1" and report.patient.ins is not None
    if dmp and not feed:
        why = "no qualified INS" if report.patient.ins is None else "the LPS profile does not feed the DMP"
        losses.append(Loss("DESTDMP", f"{why}: N is sent"))
    msh: Fields = {
        3: site.application,
        4: site.facility,
        5: receiving_application,
        6: receiving_facility,
        7: dtm(now.astimezone(zone)),
        9: ("MDM", trigger, "MDM_T02"),
        10: control_id,
        11: "P" if site.mode == "production" else "T",
        12: "2.6",
        17: "FRA",
        18: site.charset or UTF8,
        21: PROFILE_IDS[profile],
    }
    signed = report.signed_at.astimezone(zone)
    segments: Segments = [
        ("MSH", msh),
        ("EVN", {2: dtm(now.astimezone(zone)), 6: dtm(signed)}),
        ("PID", _pid(report.patient, options.visit, losses)),
        ("PV1", _pv1(profile, options.visit, zone)),
        ("ORC", {1: ACTIONS[trigger][0]}),
        ("OBR", {1: "1", 4: _type(report)}),
        ("TXA", _txa(report, trigger, signed)),
    ]
    segments += _document(report, cda, trigger)
    segments += _lps(report, site, options, losses) if profile == "lps-1.1" else _push(report, site, options, feed)
    written = message(segments, charset=site.charset or UTF8)
    losses += [
        Loss(where, f"{sign!r} is not in {site.charset} and was replaced")
        for where, sign in dict.fromkeys(written.replaced)
    ]
    return Mapped(written.raw, tuple(losses))


def _check(options: Options) -> None:
    """The combinations no reading of the CI-SIS matrix allows (regles-gestion-mssante)."""
    if options.invisible_patient and options.mail_patient:
        raise ValueError("a document the patient may not see cannot be mailed to the patient")
    if options.masked and options.mail_professionals:
        raise ValueError("a document masked to professionals cannot be mailed to one")


def _type(report: Report) -> tuple[str, str, str]:
    return report.type.code, report.type.display, CODING_SYSTEMS.get(report.type.system, report.type.system)


def _pid(patient: PatientIdentity, visit: Visit | None, losses: list[Loss]) -> Fields:
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


def _pv1(profile: Profile, visit: Visit | None, zone: ZoneInfo) -> Fields:
    """LPS: always class N. Push: the stay when it is known, else N."""
    if profile == "lps-1.1" or visit is None:
        return {1: "1", 2: "N"}
    return {
        1: "1",
        2: visit.patient_class,
        19: _cx(*visit.number),
        44: dtm(visit.start.astimezone(zone)) if visit.start else None,
        45: dtm(visit.end.astimezone(zone)) if visit.end else None,
    }


def _txa(report: Report, trigger: Trigger, signed: datetime) -> Fields:
    """TXA-12 is the full OID of the document: the DMP does not accept OID and extension apart."""
    return {
        1: "1",
        2: report.type.code,
        3: "TEXT",
        4: dtm(signed),
        12: oid_of(report.id),
        13: oid_of(report.replaces) if trigger == "T10" else None,
        17: "AU",
        22: f"8{report.expert.rpps}",
    }


def _document(report: Report, cda: bytes, trigger: Trigger) -> Segments:
    data = Raw(base64.b64encode(cda))
    return [
        ("OBX", {1: "1", 2: "ED", 3: _type(report), 5: (None, "text", "XML", "Base64", data), 11: ACTIONS[trigger][1]})
    ]


def _push(report: Report, site: Site, options: Options, feed: bool) -> Segments:
    """Who sends, who gets a mail (only when the platform is to send it), and the ten metadata."""
    out: Segments = [("PRT", _participation("SB", report.expert))]
    if options.mail_professionals and report.requester.mailbox:
        out.append(("PRT", _participation("RCT", report.requester, report.requester.mailbox)))
    if options.mail_patient and report.patient.mailbox:
        out.append(("PRT", _recipient_patient(report.patient)))
    reply = _reply_to(report, site)
    if reply:
        out.append(("PRT", {2: "UC", 4: _ROLES["REPLY"], 15: _mail(reply)}))
    asked = feed or options.mail_professionals or options.mail_patient
    answers = {
        **_visibility(options),
        "CONNEXION_SECRETE": options.secret_connection,
        "DESTDMP": feed,
        "DESTMSSANTEPS": options.mail_professionals,
        "DESTMSSANTEPAT": options.mail_patient,
        "ACK_RECEPTION": asked,
        "ACK_LECTURE_MSS": options.acknowledge_reading,
    }
    codes = [code for code, _ in METADATA]
    return out + [_metadata(number, code, answers[code]) for number, code in enumerate(codes, 2)]


def _lps(report: Report, site: Site, options: Options, losses: list[Loss]) -> Segments:
    """Who sent it, to whom, where to answer, the mail that carries it, and the four metadata."""
    sender, recipient = _reply_to(report, site), report.requester.mailbox
    for name, mailbox in (("PRT-15", sender), ("PRT[2]-15", recipient)):
        if not mailbox:
            losses.append(Loss(name, "no MSSanté mailbox is known"))
    out: Segments = [
        ("PRT", _participation("SB", report.expert, sender)),
        ("PRT", _participation("RCT", report.requester, recipient)),
    ]
    if sender:
        out.append(("PRT", {2: "UC", 4: _ROLES["REPLY"], 15: _mail(sender)}))
    out.append(("OBX", _letter(report, options)))
    answers = _visibility(options)
    return out + [_metadata(number, code, answers[code]) for number, code in enumerate(_LPS_METADATA, 3)]


def _letter(report: Report, options: Options) -> Fields:
    """The second OBX of the LPS profile: the mail. Where none is named, the document stands for its Message-ID."""
    patient = report.patient
    name = f"{patient.birth_family} {patient.birth_given} {patient.birth_date:%d/%m/%Y}"
    subject = options.mail_subject or f"XDM/1.0/DDM+{report.type.display[:40]} {name}"
    body = (
        options.mail_body or f"{report.title}\n{report.expert.given} {report.expert.family}, {report.expert.org.name}"
    )
    data = Raw(base64.b64encode(body.encode("utf-8")))
    return {1: "2", 2: "ED", 3: (options.mail_id or oid_of(report.id), subject, "L"),
            5: (None, "text", None, "Base64", data), 11: "F"}  # fmt: skip


_ROLES: Final = {
    "SB": ("SB", "Send by", "participation"),
    "RCT": ("RCT", "Result Copies To", "participation"),
    "REPLY": ("REPLY", "Reply To", "participation"),
}
"""PRT-4."""


def _participation(role: str, who: Professional, mailbox: str = "") -> Fields:
    return {
        2: "UC",
        4: _ROLES[role],
        5: _xcn(f"8{who.rpps}", who.family, who.given, PERSONS, "D", "IDNPS"),
        8: (who.org.name, *[None] * 4, STRUCTURES, "FINEG", None, None, who.org.finess) if who.org.finess else None,
        15: _mail(mailbox) if mailbox else None,
    }


def _recipient_patient(patient: PatientIdentity) -> Fields:
    value, oid = patient.ins or ("", "")
    authority = (INS_AUTHORITIES.get(oid, "ASIP-SANTE-INS-NIR"), oid, "ISO")
    person = _xcn(value, patient.birth_family, patient.birth_given, authority, "L", "INS") if patient.ins else None
    return {2: "UC", 4: _ROLES["RCT"], 5: person, 15: _mail(patient.mailbox)}


def _xcn(
    value: str, family: str, given: str, authority: tuple[str, str, str], name_type: str, kind: str
) -> tuple[Component, ...]:
    return value, family, given, *[None] * 5, authority, name_type, None, None, kind


def _mail(address: str) -> tuple[Component, ...]:
    return None, None, "X.400", address


def _reply_to(report: Report, site: Site) -> str:
    """The mailbox answers go to: the expert's, else the application's."""
    box = next((box for box in site.mailboxes if box.kind == "APP"), None) or next(iter(site.mailboxes), None)
    return report.expert.mailbox or (box.address if box else "")


def _visibility(options: Options) -> dict[str, bool]:
    return {
        "MASQUE_PS": options.masked,
        "INVISIBLE_PATIENT": options.invisible_patient,
        "INVISIBLE_REP_LEGAUX": options.invisible_guardians,
        "MODIF_CONF_CODE": options.confidentiality_changed,
    }


def _metadata(number: int, code: str, answer: bool) -> tuple[str, Fields]:
    label = dict(METADATA)[code]
    value = ("Y" if answer else "N", None, "expandedYes-NoIndicator")
    return "OBX", {1: str(number), 2: "CWE", 3: (code, label, "MetaDMPMSS"), 5: value, 11: "F"}
