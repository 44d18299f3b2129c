"""The answer to a request that came by HL7 v2: accepted or refused, as ORU^R01 of the téléradiologie profile.

Hides the profile's ORC, OBR and codes. The request is named by the placer number it came with; the report itself goes
later, by `fhir_to_hl7v2`. The guide has no question flow: a question reaches a v2 requester by mail or by a link.

Sources: CI-SIS téléradiologie 1.0 (ballot), flow 3 (https://interop.esante.gouv.fr/ig/hl7v2/teleradiologie); HL7
v2.5.1 chapters 4 (ORC) and 7 (ORU).
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from hl7v2.write import Fields, dtm
from mappers.fhir_to_hl7v2_segments import PERSONS, STRUCTURES, Envelope, Segments, Visit, finished, pid, pv1, xcn
from mappers.fhir_to_report import PatientIdentity, Professional
from mappers.identity import Site
from mappers.mapped import Loss, Mapped
from mappers.order_number import OrderNumber

Decision = Literal["accepted", "refused"]
CONTROLS: Final = {"accepted": "OK", "refused": "OC"}
"""ORC-1 (HL7 table 0119)."""
PROFILE: Final = ("1.0", "CISIS_TLR_HL7_V2")
PROCEDURE: Final = ("REPONSE_DEMANDE", "Réponse à une demande d'examen d'imagerie", "TLR_OBR_PROCEDURE")
ORGANIZATION: Final = ("PLATEFORME_TLR", None, "TLR_TYPE_ORGANISATION")


def order_answer(
    placer: OrderNumber,
    decision: Decision,
    patient: PatientIdentity,
    expert: Professional | None,
    *,
    site: Site,
    control_id: str,
    now: datetime,
    receiving_application: str,
    receiving_facility: str,
    reason: str = "",
    visit: Visit | None = None,
) -> Mapped[bytes]:
    """The message, each segment ended by CR, in the character set of the site.

    `placer` is the order number as it came; `expert` is who decided (None: not an expert, as when the requester takes
    the request back elsewhere); `reason` goes with a refusal only.

    Raises ValueError for a control id that does not fit, an empty order number, and a reason without a
    refusal.
    """
    envelope = Envelope(site, control_id, now, receiving_application, receiving_facility)
    if not placer.number:
        raise ValueError("the answer must name the request: its placer number is empty")
    if reason and decision == "accepted":
        raise ValueError("a reason goes with a refusal, not with an acceptance")
    losses: list[Loss] = []
    order = placer.components
    person = xcn(f"8{expert.rpps}", expert.family, expert.given, PERSONS, "D", "IDNPS") if expert else None
    org = expert.org if expert else None
    place = (org.name, *[None] * 4, STRUCTURES, "FINEG", None, None, org.finess) if org and org.finess else None
    orc: Fields = {
        1: CONTROLS[decision],
        2: order,
        9: dtm(now.astimezone(envelope.zone)),
        12: person,
        16: (None, reason) if reason else None,
        17: ORGANIZATION,
        21: place,
    }
    segments: Segments = [
        ("MSH", envelope.msh(("ORU", "R01", "ORU_R01"), "2.5.1", PROFILE)),
        ("PID", pid(patient, visit, losses)),
        ("PV1", pv1(visit, envelope.zone)),
        ("ORC", orc),
        ("OBR", {1: "1", 2: order, 4: PROCEDURE, 16: person}),
    ]
    return finished(segments, site, losses)
