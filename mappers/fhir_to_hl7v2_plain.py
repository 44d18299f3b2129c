"""A finished report as its PDF in a plain MDM or ORU, for a DPI that reads no CDA and follows no CI-SIS profile.

Hides that such a receiver knows base HL7 only: no PRT, no metadata, no MSH-21; the action stands in the trigger (MDM)
and in OBX-11, OBR-25 and TXA-19. Nothing here asks anybody to mail the report or to feed the DMP.

Sources: HL7 v2.5 chapter 2.A (ED), chapter 7 (ORU^R01, OBX) and chapter 9 (MDM, TXA), HL7 tables 0085, 0119, 0123,
0271, 0272, 0273; `application` and `pdf` in ED-2 and ED-3 are the MIME names.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Final, Literal

from hl7v2.write import Fields, Raw, dtm
from mappers.fhir_to_hl7v2 import ACTIONS, PERSONS, REPORT_STATUSES, order_segments
from mappers.fhir_to_hl7v2_segments import Envelope, Segments, Trigger, Visit, finished, ordered, pid, pv1, type_of, xcn
from mappers.fhir_to_report import Report, oid_of
from mappers.identity import Site
from mappers.mapped import Loss, Mapped

Kind = Literal["MDM", "ORU"]
Version = Literal["2.3.1", "2.4", "2.5", "2.5.1", "2.6"]

AVAILABILITY: Final = {"T02": "AV", "T10": "AV", "T04": "CA"}
"""Trigger -> TXA-19 (HL7 table 0273)."""
RESTRICTED: Final = {"R": "R", "V": "V"}
"""CDA confidentialityCode -> TXA-18 (HL7 table 0272); N, the usual one, is not said."""


def plain(
    report: Report,
    pdf: bytes,
    *,
    site: Site,
    kind: Kind,
    control_id: str,
    now: datetime,
    receiving_application: str,
    receiving_facility: str,
    trigger: Trigger = "T02",
    version: Version = "2.5",
    visit: Visit | None = None,
    media: tuple[str, str] = ("application", "pdf"),
) -> Mapped[bytes]:
    """The message, each segment ended by CR, in the character set of the site.

    `trigger` is the action also for an ORU: T02 create, T10 replace, T04 delete. `media` are ED-2 and ED-3; old
    receivers want `("AP", "PDF")`. Raises ValueError for a control id that does not fit, data that are no PDF and a
    replacement of nothing.
    """
    envelope = Envelope(site, control_id, now, receiving_application, receiving_facility)
    if not pdf.startswith(b"%PDF-"):
        raise ValueError("the document is no PDF: it does not begin with %PDF-")
    if trigger == "T10" and not report.replaces:
        raise ValueError("a replacement (T10) needs the document it replaces: Report.replaces is empty")
    losses = [Loss("OBX-5", "the structured content of the report (CDA) is not carried, only its PDF")]
    losses += [Loss(f"Report.visibility {one.code}", "base HL7 has no place for it") for one in report.visibility]
    if kind == "ORU" and report.confidentiality.code in RESTRICTED:
        losses.append(Loss("Report.confidentiality", "an ORU has no place for it"))
    zone = envelope.zone
    head = ("MDM", trigger, "MDM_T02") if kind == "MDM" else ("ORU", "R01", "ORU_R01")
    segments: Segments = [("MSH", envelope.msh(head, version, None))]
    if kind == "MDM":
        segments.append(("EVN", {1: trigger, 2: dtm(now.astimezone(zone))}))
    segments += [("PID", pid(report.patient, visit, losses)), ("PV1", pv1(visit, zone, losses))]
    if kind == "MDM":
        segments.append(("TXA", _txa(report, trigger, envelope)))
    else:
        segments += order_segments(report, envelope, _RESULT, REPORT_STATUSES[trigger])
    data = (site.application, *media, "Base64", Raw(base64.b64encode(pdf)))
    signed = dtm(report.signed_at.astimezone(zone))
    segments.append(("OBX", {1: "1", 2: "ED", 3: type_of(report), 5: data, 11: ACTIONS[trigger][1], 14: signed}))
    return finished(segments, site, losses)


_RESULT: Final = "RE"
"""ORC-1 of base HL7: a result is `RE` (observations to follow) whatever becomes of it; OBR-25 says what does."""


def _txa(report: Report, trigger: Trigger, envelope: Envelope) -> Fields:
    zone, expert = envelope.zone, report.expert
    author = xcn(f"8{expert.rpps}", expert.family, expert.given, PERSONS, "D", "IDNPS")
    return {
        1: "1",
        2: type_of(report),
        3: "AP",
        4: dtm(report.ended_at.astimezone(zone)),
        6: dtm(report.signed_at.astimezone(zone)),
        9: author,
        12: oid_of(report.id),
        13: oid_of(report.replaces) if trigger == "T10" else None,
        14: ordered(report).components,
        16: report.title,
        17: "AU",
        18: RESTRICTED.get(report.confidentiality.code),
        19: AVAILABILITY[trigger],
        22: author,
    }
