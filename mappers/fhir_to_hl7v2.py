"""A finished report with its CDA as an HL7 v2 message: MDM (push 2.1, LPS 1.1; v2.6) or ORU (push 2.1; v2.5).

Hides the two CI-SIS profiles: their segments, the metadata OBX in their fixed order, the participations, and the
fields that must tell the same action (trigger, ORC-1, OBX-11, TXA-13). The bytes depend on the arguments only. The
identifiers of PID-3 are those of the CDA's recordTarget, in the same order.

MSH-11 is P for a production site and T ("message de test" in both profiles) for a test site; D means a debugging
environment, which a partner may drop, so it is never sent.

Sources: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1
(https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-r2/volume2.html); CI-SIS "Transmission au LPS d'un document CDA
provenant d'un courriel MSSanté" 1.1 (https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-mss/volume2.html); HL7 v2.5
chapter 7 (ORU, OBR) and v2.6 chapter 9 (MDM, TXA).
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Final, Literal

from hl7v2.write import Component, Fields, Raw, dtm
from mappers.fhir_to_hl7v2_segments import (
    LPS_METADATA,
    METADATA,
    ROLES,
    Envelope,
    Options,
    Segments,
    Trigger,
    Visit,
    check_options,
    finished,
    mail,
    metadata,
    ordered,
    participation,
    pid,
    pv1,
    recipient_patient,
    reply_to,
    type_of,
    visibility,
    xcn,
)
from mappers.fhir_to_hl7v2_segments import PERSONS as PERSONS
from mappers.fhir_to_report import Professional, Report, oid_of
from mappers.identity import Site
from mappers.mapped import Loss, Mapped
from mssante.letter import REPLACES_PREFIX

Profile = Literal["lps-1.1", "push-2.1"]

PROFILE_IDS: Final = {"lps-1.1": ("1.1", "CISIS_CDA_HL7_LPS"), "push-2.1": ("2.1", "CISIS_CDA_HL7_V2")}
"""MSH-21."""
ACTIONS: Final = {"T02": ("NW", "F"), "T10": ("RO", "C"), "T04": ("CA", "D")}
"""Trigger -> (ORC-1, OBX-11): create, replace, delete. A message where they disagree is rejected by the platform."""
REPORT_STATUSES: Final = {"T02": "F", "T10": "C", "T04": "X"}
"""Trigger -> OBR-25 of an ORU (HL7 table 0123)."""

_DEFAULT: Final = Options()


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
    names what it replaces, TXA-13), T04 delete (the report is the one to delete, TXA-12). Raises ValueError for a
    control id that does not fit, a replacement of nothing, and metadata that contradict each other; everything softer
    is a loss.
    """
    envelope = Envelope(site, control_id, now, receiving_application, receiving_facility)
    _check(report, trigger, options)
    losses: list[Loss] = []
    zone = envelope.zone
    feed = _feed(report, dmp, profile, losses)
    signed = report.signed_at.astimezone(zone)
    placer = report.placer.components if report.placer else None
    lps = profile == "lps-1.1"
    visit = None if lps else options.visit  # a document that came by mail knows no stay
    segments: Segments = [
        ("MSH", envelope.msh(("MDM", trigger, "MDM_T02"), "2.6", PROFILE_IDS[profile])),
        ("EVN", {2: dtm(now.astimezone(zone)), 6: dtm(signed)}),
        ("PID", pid(report.patient, visit, losses)),
        ("PV1", pv1(visit, zone, losses)),
        ("ORC", {1: ACTIONS[trigger][0], 2: placer}),
        ("OBR", {1: "1", 2: placer, 4: type_of(report)}),
        ("TXA", _txa(report, trigger, signed)),
        ("OBX", _document(report, cda, trigger, "text")),
    ]
    segments += _lps(report, site, options, trigger, losses) if lps else _push(report, site, options, feed)
    return finished(segments, site, losses)


def oru(
    report: Report,
    cda: bytes,
    *,
    site: Site,
    control_id: str,
    now: datetime,
    receiving_application: str,
    receiving_facility: str,
    trigger: Trigger = "T02",
    dmp: bool = False,
    options: Options = _DEFAULT,
) -> Mapped[bytes]:
    """The push profile as ORU^R01 of HL7 v2.5, for platforms that take no MDM.

    Arguments and errors are those of `mdm`. An ORU has no trigger for the action: ORC-1, OBR-25 and OBX-11 tell it.
    There is no TXA either: ORC-3 and OBR-3 (filler number) are the OID of the document set, the same for every
    version, so that a receiver finds what a correction replaces; the CDA itself names its parent document.
    """
    envelope = Envelope(site, control_id, now, receiving_application, receiving_facility)
    _check(report, trigger, options)
    losses: list[Loss] = []
    zone = envelope.zone
    feed = _feed(report, dmp, "push-2.1", losses)
    order, result = ACTIONS[trigger][0], REPORT_STATUSES[trigger]
    segments: Segments = [
        ("MSH", envelope.msh(("ORU", "R01", "ORU_R01"), "2.5", PROFILE_IDS["push-2.1"])),
        ("PID", pid(report.patient, options.visit, losses)),
        ("PV1", pv1(options.visit, zone, losses)),
        *order_segments(report, envelope, order, result),
        ("OBX", _document(report, cda, trigger, "TEXT")),
        *_push(report, site, options, feed, "CE"),
    ]
    return finished(segments, site, losses)


def order_segments(report: Report, envelope: Envelope, order: str, result: str) -> Segments:
    """ORC and OBR of a report in an ORU: the request it answers, its set, its author and its instants."""
    zone = envelope.zone
    placer = ordered(report).components
    filler = (oid_of(report.set_id),)
    orc: Fields = {1: order, 2: placer, 3: filler, 9: dtm(report.signed_at.astimezone(zone)), 12: _person(report)}
    expert = report.expert
    obr: Fields = {
        1: "1",
        2: placer,
        3: filler,
        4: type_of(report),
        7: dtm(report.started_at.astimezone(zone)),
        8: dtm(report.ended_at.astimezone(zone)),
        16: _person(report),
        22: dtm(report.signed_at.astimezone(zone)),
        25: result,
        # NDL: the person as subcomponents of the first component.
        32: ((f"8{expert.rpps}", expert.family, expert.given),),
    }
    return [("ORC", orc), ("OBR", obr)]


def _person(report: Report) -> tuple[Component, ...]:
    who: Professional = report.requester
    return xcn(f"8{who.rpps}", who.family, who.given, PERSONS, "D", "IDNPS")


def _check(report: Report, trigger: Trigger, options: Options) -> None:
    if trigger == "T10" and not report.replaces:
        raise ValueError("a replacement (T10) needs the document it replaces: Report.replaces is empty")
    check_options(report, options)


def _feed(report: Report, dmp: bool, profile: Profile, losses: list[Loss]) -> bool:
    feed = dmp and profile == "push-2.1" and report.patient.ins is not None
    if dmp and not feed:
        why = "no qualified INS" if report.patient.ins is None else "the LPS profile does not feed the DMP"
        losses.append(Loss("DESTDMP", f"{why}: N is sent"))
    return feed


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


def _document(report: Report, cda: bytes, trigger: Trigger, media: str) -> Fields:
    data = Raw(base64.b64encode(cda))
    return {1: "1", 2: "ED", 3: type_of(report), 5: (None, media, "XML", "Base64", data), 11: ACTIONS[trigger][1]}


def _push(report: Report, site: Site, options: Options, feed: bool, value_type: str = "CWE") -> Segments:
    """Who sends, who gets a mail (only when the platform is to send it), and the ten metadata."""
    out: Segments = [("PRT", participation("SB", report.expert))]
    if options.mail_professionals and report.requester.mailbox:
        out.append(("PRT", participation("RCT", report.requester, report.requester.mailbox)))
    if options.mail_patient and report.patient.mailbox:
        out.append(("PRT", recipient_patient(report.patient)))
    reply = reply_to(report, site)
    if reply:
        out.append(("PRT", {2: "UC", 4: ROLES["REPLY"], 15: mail(reply)}))
    asked = feed or options.mail_professionals or options.mail_patient
    answers = {
        **visibility(report),
        "CONNEXION_SECRETE": False,
        "MODIF_CONF_CODE": options.confidentiality_changed,
        "DESTDMP": feed,
        "DESTMSSANTEPS": options.mail_professionals,
        "DESTMSSANTEPAT": options.mail_patient,
        "ACK_RECEPTION": asked,
        "ACK_LECTURE_MSS": options.acknowledge_reading,
    }
    codes = [code for code, _ in METADATA]
    return out + [metadata(number, code, answers[code], value_type) for number, code in enumerate(codes, 2)]


def _lps(report: Report, site: Site, options: Options, trigger: Trigger, losses: list[Loss]) -> Segments:
    """Who sent it, to whom, where to answer, the mail that carries it, and the four metadata."""
    sender, recipient = reply_to(report, site), options.recipient or report.requester
    for name, mailbox in (("PRT-15", sender), ("PRT[2]-15", recipient.mailbox)):
        if not mailbox:
            losses.append(Loss(name, "no MSSanté mailbox is known"))
    out: Segments = [
        ("PRT", participation("SB", report.expert, sender)),
        ("PRT", participation("RCT", recipient, recipient.mailbox)),
    ]
    if sender:
        out.append(("PRT", {2: "UC", 4: ROLES["REPLY"], 15: mail(sender)}))
    out.append(("OBX", _letter(report, options, trigger)))
    answers = {**visibility(report), "MODIF_CONF_CODE": options.confidentiality_changed}
    return out + [metadata(number, code, answers[code]) for number, code in enumerate(LPS_METADATA, 3)]


def _letter(report: Report, options: Options, trigger: Trigger) -> Fields:
    """The second OBX of the LPS profile: the mail. Where none is named, the document stands for its Message-ID; its
    subject begins as that of the mail would."""
    patient = report.patient
    name = f"{patient.birth_family} {patient.birth_given} {patient.birth_date:%d/%m/%Y}"
    instead = REPLACES_PREFIX if trigger == "T10" else ""
    subject = options.mail_subject or f"{instead}XDM/1.0/DDM+{report.type.display[:40]} {name}"
    who = f"{report.expert.given} {report.expert.family}, {report.expert.org.name}"
    why = f"\nMotif de la correction : {report.correction}" if instead and report.correction else ""
    body = options.mail_body or f"{report.title}\n{who}{why}"
    data = Raw(base64.b64encode(body.encode("utf-8")))
    return {1: "2", 2: "ED", 3: (options.mail_id or oid_of(report.id), subject, "L"),
            5: (None, "text", None, "Base64", data), 11: "F"}  # fmt: skip


__all__ = ["ACTIONS", "METADATA", "PERSONS", "Options", "Profile", "Trigger", "Visit", "mdm", "order_segments", "oru"]
