"""A request told to the expert's system (ORM^O01), and the answer to one that came by HL7 v2 (ORU^R01 OK, OC).

Hides ORC, OBR and the codes of the téléradiologie profile. A request is named by the placer number it came with, else
by ours; the report itself goes later, by `fhir_to_hl7v2`. The guide has no question flow: see `fhir_to_question`.

Sources: CI-SIS téléradiologie 1.0 (ballot), flows 1 to 3 (https://interop.esante.gouv.fr/ig/hl7v2/teleradiologie); HL7
v2.5.1 chapters 4 (ORC, OBR) and 7 (ORU); HL7 tables 0119 and 0485.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

from hl7v2.write import Component, Fields, dtm
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
Order = Literal["NW", "CA"]
PROCEDURES: Final[Mapping[Order, tuple[str, str, str]]] = {
    "NW": ("TRANSMISSION_DEMANDE", "Transmission d'une demande d'examen d'imagerie", "TLR_OBR_PROCEDURE"),
    "CA": ("ANNULATION_DEMANDE", "Annulation d'une demande d'examen d'imagerie", "TLR_OBR_PROCEDURE"),
}
"""ORC-1 of an order -> OBR-4."""
PRIORITIES: Final = {"stat": "S", "asap": "A", "urgent": "UR", "routine": "R"}
"""ServiceRequest.priority -> OBR-5 (HL7 table 0485)."""
_ASKER: Final = ("STRUCTURE_IMAGERIE", None, "TLR_TYPE_ORGANISATION")
_ABOUT: Final = (
    "resourceType", "id", "meta", "text", "extension", "status", "intent", "category", "subject", "encounter",
    "authoredOn", "performer", "identifier", "code", "supportingInfo",
)  # fmt: skip
_CARRIED: Final = frozenset((*_ABOUT, "priority", "requester", "reasonCode", "note"))
_NOTES: Final = 20


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
    person, place = _who(expert)
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


def order_request(
    control: Order,
    number: OrderNumber,
    patient: PatientIdentity,
    requester: Professional | None,
    request: Mapping[str, Any],
    *,
    site: Site,
    control_id: str,
    now: datetime,
    receiving_application: str,
    receiving_facility: str,
    reason: str = "",
    visit: Visit | None = None,
) -> Mapped[bytes]:
    """The order NW, or its cancellation CA with its `reason`, as ORM^O01; arguments and charset as `order_answer`.

    `request` is the ServiceRequest: priority, reasons and notes are carried, each other element that says what is
    asked is a loss. Raises ValueError for a control id that does not fit, an empty order number, an order without a
    reason to ask, and a reason without a cancellation.
    """
    envelope = Envelope(site, control_id, now, receiving_application, receiving_facility)
    if not number.number:
        raise ValueError("the order must have a number")
    if reason and control == "NW":
        raise ValueError("a reason of ORC-16 goes with a cancellation, not with a new order")
    why = " ; ".join(filter(None, map(_text, request.get("reasonCode", ()))))
    if control == "NW" and not why:
        raise ValueError("the order says no reason to ask")
    person, place = _who(requester)
    told = now.astimezone(envelope.zone)
    orc: Fields = {
        1: control, 2: number.components, 9: dtm(told), 12: person, 16: (None, reason) if reason else None,
        17: _ASKER, 21: place,
    }  # fmt: skip
    new = control == "NW"
    urgency = PRIORITIES.get(str(request.get("priority") or "")) if new else None
    obr: Fields = {
        1: "1", 2: number.components, 4: PROCEDURES[control], 5: urgency, 13: why if new else None, 16: person,
    }  # fmt: skip
    losses: list[Loss] = []
    notes: Segments = []
    if new:
        texts = [text for note in request.get("note", ()) if (text := str(note.get("text") or "").strip())]
        notes = [("NTE", {1: str(n), 3: text}) for n, text in enumerate(texts[:_NOTES], 1)]
        losses += [
            Loss(f"ServiceRequest.{name}", "is not carried by an ORM") for name in request if name not in _CARRIED
        ]
    segments: Segments = [
        ("MSH", envelope.msh(("ORM", "O01", "ORM_O01"), "2.5.1", PROFILE)),
        ("PID", pid(patient, visit, losses)),
        ("PV1", pv1(visit, envelope.zone)),
        ("ORC", orc),
        ("OBR", obr),
        *notes,
    ]
    return finished(segments, site, losses)


def _who(professional: Professional | None) -> tuple[tuple[Component, ...] | None, tuple[Component, ...] | None]:
    """(XCN of a professional, XON of their structure), None where there is none."""
    if professional is None:
        return None, None
    org = professional.org
    person = xcn(f"8{professional.rpps}", professional.family, professional.given, PERSONS, "D", "IDNPS")
    return person, (org.name, *[None] * 4, STRUCTURES, "FINEG", None, None, org.finess) if org.finess else None


def _text(concept: Mapping[str, Any]) -> str:
    """A CodeableConcept in words."""
    shown = next((str(one["display"]) for one in concept.get("coding", ()) if one.get("display")), "")
    return str(concept.get("text") or shown).strip()
