"""A request told to the expert's system (ORM^O01), and the answer to one that came by HL7 v2 (ORU^R01 OK, OC).

Hides ORC, OBR and the codes of the téléradiologie profile. A request is named by the placer number it came with, else
by ours; the report itself goes later, by `fhir_to_hl7v2`. The guide has no question flow: see `fhir_to_question`.
An order names the profile (MSH-21) only when it has all that the profile requires of it: a téléexpertise may say no
modality and no region, which a téléradiologie must.

Sources: CI-SIS téléradiologie 1.0 (ballot), flows 1 to 3 (https://interop.esante.gouv.fr/ig/hl7v2/teleradiologie); HL7
v2.5.1 chapters 4 (ORC, OBR) and 7 (ORU); HL7 tables 0119 and 0485.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from hl7v2.write import Component, Fields, dtm
from mappers.fhir_to_hl7v2_segments import PERSONS, STRUCTURES, Envelope, Segments, Visit, finished, pid, pv1, xcn
from mappers.fhir_to_report import PatientIdentity, Professional
from mappers.hl7v2_codes_to_fhir import SYSTEMS
from mappers.hl7v2_orders_to_fhir import COMMENT, COMMENTS, PURPOSE
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
PRIORITIES: Final = {"stat": "S", "asap": "A", "urgent": "A", "routine": "R"}
"""ServiceRequest.priority -> OBR-5 (HL7 table 0485, which has no `urgent`: the nearest one, and a loss)."""
DETAIL: Final = "urn:passerelle:tlr-observation"
"""Extension of ServiceRequest.orderDetail: by which OBX-3 (TLR_OBSERVATION) it came."""
MODALITY, REGION = "MODALITE_IMAGERIE", "REGION_ANATOMIQUE"
_OBSERVATIONS: Final = {MODALITY: "Modalité d'imagerie", REGION: "Région anatomique de l'examen d'imagerie"}
_CODED_IN: Final = {MODALITY: "DCM", REGION: "SCT"}
_NAMES: Final = {system: name for name, system in reversed(SYSTEMS.items())}
"""Coding.system -> its name in HL7 table 0396."""
_SUB_ID: Final = re.compile(r"[1-9]\d?\.[12]\Z", re.ASCII)
_ACQUIRED: Final = re.compile(r"[A-Z]{2,16}\Z", re.ASCII)
"""The codes of DCM that are modalities; its other concepts have numbers."""
ASKER: Final = ("STRUCTURE_IMAGERIE", None, "TLR_TYPE_ORGANISATION")
_ABOUT: Final = (
    "resourceType", "id", "meta", "text", "extension", "status", "intent", "category", "subject", "encounter",
    "authoredOn", "performer", "identifier", "code", "supportingInfo",
)  # fmt: skip
_CARRIED: Final = frozenset((*_ABOUT, "priority", "requester", "reasonCode", "note", "orderDetail", "bodySite"))
_NOTES: Final = 20
_SITES: Final = 20


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
        ("PV1", pv1(visit, envelope.zone, losses)),
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

    `request` is the ServiceRequest: priority, reasons, notes, modality and body sites are carried, each other element
    that says what is asked is a loss; so is MSH-21 where something is missing that the profile requires. Raises
    ValueError for a control id that does not fit, an empty order number, an order without a reason to ask, and a
    reason without a cancellation.
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
    new = control == "NW"
    losses: list[Loss] = []
    asked = list(_asked(request, losses)) if new else []
    lacking = [*_unnamed(number, place), *(_undetailed(asked) if new else ())]
    if lacking:
        losses.append(Loss("MSH-21", f"left out, the profile requires {', '.join(lacking)}"))
    urgency = str(request.get("priority") or "") if new else ""
    if urgency == "urgent":
        losses.append(Loss("ServiceRequest.priority", "HL7 table 0485 has no `urgent`; told as A, asap"))
    at = _asked_at(request, envelope) if new else ""
    orc: Fields = {
        1: control, 2: number.components, 9: at or dtm(now.astimezone(envelope.zone)), 12: person,
        16: (None, reason) if reason else None, 17: ASKER, 21: place,
    }  # fmt: skip
    obr: Fields = {
        1: "1", 2: number.components, 4: PROCEDURES[control], 5: PRIORITIES.get(urgency), 13: why if new else None,
        16: person,
    }  # fmt: skip
    segments: Segments = [
        ("MSH", envelope.msh(("ORM", "O01", "ORM_O01"), "2.5.1", None if lacking else PROFILE)),
        ("PID", pid(patient, visit, losses)),
        ("PV1", pv1(visit, envelope.zone, losses)),
        ("ORC", orc),
        ("OBR", obr),
        *asked,
    ]
    return finished(segments, site, losses)


def _asked_at(request: Mapping[str, Any], envelope: Envelope) -> str:
    """ServiceRequest.authoredOn as a TS, as precise as it is; '' when it is none."""
    said = str(request.get("authoredOn") or "")
    if "T" not in said:
        return said.replace("-", "")
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        return ""
    return dtm(moment.astimezone(envelope.zone)) if moment.tzinfo else ""


def _asked(request: Mapping[str, Any], losses: list[Loss]) -> Iterator[tuple[str, Fields]]:
    """What follows OBR: the notes, then the modality with what is said about it, then the regions."""
    notes, rows = _notes(request, losses), list(_details(request, losses))
    modality = [row for _, row in rows[:1] if row.get(4) is None]
    yield from _comments([note for note in notes if not modality or note[0] in ("", PURPOSE)], (PURPOSE,))
    for number, row in enumerate(rows):
        yield row
        if modality and not number:
            yield from _comments([note for note in notes if note[0] not in ("", PURPOSE)], COMMENTS)


def _comments(notes: Sequence[tuple[str, str]], known: Sequence[str]) -> Iterator[tuple[str, Fields]]:
    """One NTE each, counted from 1; NTE-4 says what it is about, where the profile has a word for it at this place."""
    for number, (kind, text) in enumerate(notes, 1):
        yield "NTE", {1: str(number), 3: text, 4: (kind, None, "HL70364") if kind in known else None}


def _notes(request: Mapping[str, Any], losses: list[Loss]) -> list[tuple[str, str]]:
    """(what it is about, text) of each note; the first is '' where the note does not say it: nothing else tells that
    a note is about the purpose."""
    losses += [Loss(f"ServiceRequest.{name}", "is not carried by an ORM") for name in request if name not in _CARRIED]
    texts = [(_about(note), text) for note in request.get("note", ()) if (text := str(note.get("text") or "").strip())]
    if len(texts) > _NOTES:
        losses.append(
            Loss("ServiceRequest.note", f"{len(texts) - _NOTES} notes beyond the first {_NOTES} are left out")
        )
    return texts[:_NOTES]


def _about(note: Mapping[str, Any]) -> str:
    """NTE-4 of a note, '' when it does not say."""
    said = (str(one.get("valueCode")) for one in note.get("extension", ()) if one.get("url") == COMMENT)
    return next((code for code in said if code in COMMENTS), "")


def _details(request: Mapping[str, Any], losses: list[Loss]) -> Iterator[tuple[str, Fields]]:
    """One OBX for the modality, one for each body site; OBX-4 as it came, else the next free occurrence."""
    rows: list[tuple[str, str, Mapping[str, Any]]] = []
    for index, detail in enumerate(request.get("orderDetail", ())):
        if rows or not _is_modality(detail):
            losses.append(Loss(f"ServiceRequest.orderDetail[{index}]", "is not carried by an ORM"))
        else:
            rows.append((MODALITY, "", detail))
    sites = request.get("bodySite", ())
    rows += zip(itertools.repeat(REGION), _occurrences(sites), sites, strict=False)
    if len(sites) > _SITES:
        losses.append(Loss("ServiceRequest.bodySite", f"{len(sites) - _SITES} beyond the first {_SITES} are left out"))
    for number, (code, sub, concept) in enumerate(rows, 1):
        name = (code, _OBSERVATIONS[code], "TLR_OBSERVATION")
        yield "OBX", {1: str(number), 2: "CE", 3: name, 4: sub or None, 5: _ce(concept), 11: "O"}


def _occurrences(sites: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """OBX-4 of each body site: its element id where it came as one, else a new occurrence; no two alike."""
    said = [str(one.get("id") or "") for one in sites[:_SITES]]
    used: set[str] = set()
    for sub in said:
        if not _SUB_ID.match(sub) or sub in used:
            sub = next(free for n in itertools.count(1) if (free := f"{n}.1") not in used and free not in said)
        used.add(sub)
        yield sub


def _is_modality(detail: Mapping[str, Any]) -> bool:
    """Whether a detail of the order is the modality: it came as such, or is a code of DCM for one."""
    came = next((str(one.get("valueCode")) for one in detail.get("extension", ()) if one.get("url") == DETAIL), "")
    if came:
        return came == MODALITY
    return any(
        _NAMES.get(str(one.get("system"))) == "DCM" and _ACQUIRED.match(str(one.get("code") or ""))
        for one in detail.get("coding", ())
    )


def _ce(concept: Mapping[str, Any]) -> tuple[Component, ...]:
    """A CodeableConcept as CE: its first coding, else its text alone."""
    coding: Mapping[str, Any] = next((one for one in concept.get("coding", ()) if one.get("code")), {})
    system = str(coding.get("system") or "")
    text = str(coding.get("display") or concept.get("text") or "").strip() or None
    if not coding:
        return None, text or _text(concept) or None
    return str(coding["code"]), text, _NAMES.get(system, system.removeprefix("urn:oid:")) or None


def _unnamed(number: OrderNumber, place: tuple[Component, ...] | None) -> Iterator[str]:
    """What flows 1 and 2 require to say who asks, and does not stand here."""
    if not number.universal:
        yield "the authority of the order number (ORC-2.3)"
    if place is None:
        yield "a requester with a structure (ORC-12, ORC-21)"


def _undetailed(asked: Sequence[tuple[str, Fields]]) -> Iterator[str]:
    """What flow 1 requires of the examination and does not stand here: one modality and one main region, both coded."""
    for code, system in _CODED_IN.items():
        subs = []
        for name, fields in asked:
            kind, value = fields.get(3), fields.get(5)
            if name == "OBX" and isinstance(kind, tuple) and isinstance(value, tuple) and kind[0] == code:
                subs.append(str(fields.get(4) or "") if value[0] and value[2:] == (system,) else "uncoded")
        if "uncoded" in subs or len([sub for sub in subs if not sub.endswith(".2")]) != 1 or len(subs) > 2:
            yield f"one coded {code}"


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
