"""ORM^O01 and OMI^O23 as requests: asking for, taking back and completing a téléexpertise by HL7 v2.

Hides the téléradiologie profile, the model for asking by HL7 v2: what the order says, and what a request of ours needs
that no order can say. A request made from an order is a draft until somebody completes it: the guide carries neither
the patient's consent nor a question. The ServiceRequest has neither id nor subject.

Sources: CI-SIS téléradiologie 1.0 (ballot), flows 1, 2 and 4 (https://interop.esante.gouv.fr/ig/hl7v2/teleradiologie);
HL7 v2-to-FHIR ORM_O01, ORC[ServiceRequest], OBR[ServiceRequest] (https://build.fhir.org/ig/HL7/v2-to-fhir/); HL7
tables 0119 and 0038.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from hl7v2.message import Message, Segment, Value
from mappers.hl7v2_codes_to_fhir import (
    SYSTEMS,
    UCUM,
    Built,
    Ids,
    concept_of,
    concepts_of,
    first_concept,
    order_ids,
    organization_of,
    system_of,
    where,
)
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_pid_to_fhir import PatientResult, patient_of
from mappers.hl7v2_pv1_to_fhir import stay_of
from mappers.hl7v2_results_to_fhir import observation
from mappers.hl7v2_types_to_fhir import Element, Notes, compact, datetime_of, practitioner_of, reps, telecom_of
from mappers.identity import Site
from mappers.mapped import Mapped
from profiles.v2_maps import table

MAX_ORDERS: Final = 200

Action = Literal["request", "cancel", "complement", "other"]
ACTIONS: Final[Mapping[str, Action]] = {
    "NW": "request",
    "XO": "request",
    "RP": "request",
    "CA": "cancel",
    "DC": "cancel",
    "SC": "complement",
    "SR": "complement",
}
"""ORC-1 (HL7 table 0119) -> what is wanted. Every other code is `other`: noted, not acted upon."""
STATUS: Final[Mapping[Action, str]] = {"request": "draft", "cancel": "revoked", "complement": "", "other": ""}
_URGENT: Final = ("urgent", "what French senders write; not in HL7 table 0485")
PRIORITY: Final = table("ExtendedPriorityCodes", {"U": _URGENT, "UR": _URGENT})
"""OBR-5, OBR-27.6 or TQ1-9 (HL7 table 0485) -> ServiceRequest.priority."""
PROCEDURES: Final[Mapping[str, Action]] = {
    "TRANSMISSION_DEMANDE": "request",
    "ANNULATION_DEMANDE": "cancel",
    "COMPLEMENT_POST_ACTE": "complement",
    "COMPLEMENT_POST_EXAMEN": "complement",
}
"""OBR-4 (TLR_OBR_PROCEDURE). The guide spells the last one in two ways."""
NEEDED: Final = (
    ("consent", "the patient's consent, which no order carries (CSP R.6316-2)"),
    ("question", "the question to the expert, which no order carries"),
)
"""What a request of ours needs beyond an order; always missing."""
COMMENT: Final = "urn:passerelle:tlr-commentaire"
"""Extension of ServiceRequest.note: NTE-4, what the comment is about."""
PURPOSE, OF_MODALITY = "FINALITE_EXAMEN", "MODALITE_IMAGERIE"
COMMENTS: Final = (PURPOSE, OF_MODALITY)
"""NTE-4 of flow 1: the purpose of the examination (behind OBR), the modality (behind its OBX)."""

EXAMINATION: Final = "urn:passerelle:tlr-examen"
"""Extension of ServiceRequest: what flow 4 says of the examination and no element holds. Parts: `performed` (TQ1-7),
`retention` (TQ1-6), `procedure` and `step` (IPC-2, IPC-4)."""
_LOINC: Final = "2.16.840.1.113883.6.1"
_DAYS: Final = frozenset({"", "D", "DAY", "DAYS", "J", "JOUR", "JOURS"})
"""Units of TQ1-6, which the guide counts in days."""
_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Study:
    """The examination an order speaks of (IPC, flow 4): accession as (system, value), Study Instance UID, modality."""

    accession: tuple[str, str]
    uid: str
    modality: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """One order. `request` is a draft ServiceRequest; for `cancel` and `complement` it says what is known of it.

    `placer` and `filler` are the numbers that find a request again. `missing` are (fact, why it matters): what has to
    be completed before the draft may be sent. `reason` is ORC-16 of a cancellation; `observations` are data of the
    patient (height, weight, history, pregnancy), `details` the coded rows of the profile by their code (region,
    modality, product ...) as (value, text) in order; `viewer` is URL_PARTIELLE_VIEWER; `examination` the extension
    EXAMINATION of a complement, {} when it says nothing for it.
    """

    action: Action
    request: Built
    placer: Ids
    filler: Ids
    missing: tuple[tuple[str, str], ...]
    reason: str
    observations: tuple[Built, ...]
    details: tuple[tuple[str, Element], ...]
    study: Study | None = None
    viewer: str = ""
    examination: Element = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OrderMessage:
    """An ORM^O01 or OMI^O23. `patient` and `encounter_ids` are what PID and PV1 say: to match on, not to store."""

    control_id: str
    patient: PatientResult
    encounter_ids: Ids
    orders: tuple[Order, ...]


@dataclass(slots=True)
class _Group:
    orc: Segment
    obr: Segment | None = None
    ipc: Segment | None = None
    notes: list[Segment] = field(default_factory=list)
    results: list[tuple[Segment, list[Segment]]] = field(default_factory=list)
    timing: Segment | None = None


def orders(msg: Message, site: Site) -> Mapped[OrderMessage]:
    """The orders of a message. Raises Refused without PID or ORC, without any order number, and as `ins_of` does."""
    notes = Notes()
    if msg.first("PID") is None:
        raise Refused("the order names no patient: PID is missing", "PID^1", condition="100", code="required")
    groups = _groups(msg, notes)
    if not groups:
        raise Refused("there is no ORC: the message orders nothing", "ORC^1", condition="100", code="required")
    patient = patient_of(msg, site, notes)
    stay = stay_of(msg, site, Notes())
    found = tuple(_order(group, site, notes, patient) for group in groups)
    value = OrderMessage(msg.control_id, patient, stay.ids, found)
    return Mapped(value, tuple(dict.fromkeys(notes.losses)))


def _groups(msg: Message, notes: Notes) -> list[_Group]:
    out: list[_Group] = []
    unread: set[str] = set()
    last = ""
    for segment in msg.segments:
        name = segment.name
        if name == "ORC":
            out.append(_Group(segment))
        elif out and name == "OBR" and out[-1].obr is None:
            out[-1].obr = segment
        elif out and name == "IPC":
            out[-1].ipc = segment
        elif out and name == "TQ1":
            out[-1].timing = segment
        elif out and name == "OBX":
            out[-1].results.append((segment, []))
        elif out and name == "NTE" and last == "OBX":
            out[-1].results[-1][1].append(segment)
        elif out and name == "NTE" and last in ("OBR", "ORC"):
            out[-1].notes.append(segment)
        elif name not in ("MSH", "PID", "PV1"):
            unread.add(name)
        last = name if name != "NTE" else last
        if len(out) > MAX_ORDERS or (out and len(out[-1].results) > 1_000):
            raise Refused(f"more than {MAX_ORDERS} orders or 1000 observations in one", "ORC", condition="198")
    for name in sorted(unread)[:30]:
        notes.add(name or "MSH", "the segment is not carried")
    return out


def _order(group: _Group, site: Site, notes: Notes, patient: PatientResult) -> Order:
    orc, obr = group.orc, group.obr
    action = ACTIONS.get(orc.text(1).upper(), "other")
    procedure = (
        PROCEDURES.get(obr.text(4), "other") if obr is not None and obr.text(4, 3) == "TLR_OBR_PROCEDURE" else ""
    )
    if action == "other":
        notes.add(where(orc, 1), f"order control {orc.text(1)[:5]!r} asks for nothing we do")
    if procedure and procedure != action:
        text = f"ORC-1 {orc.text(1)[:5]} does not go with OBR-4 {obr.text(4) if obr else ''}"
        raise Refused(text, f"OBR^{obr.number if obr else 1}^4", condition="103")
    pairs = [(orc.field(2), "PLAC"), (orc.field(3), "FILL")]
    pairs += [(obr.field(2), "PLAC"), (obr.field(3), "FILL")] if obr is not None else []
    identifiers = order_ids(pairs, site)
    if not identifiers:
        raise Refused("the order has no number (ORC-2)", f"ORC^{orc.number}^2", condition="101", code="required")
    request = _request(group, identifiers, action, site, notes)
    observations, details, viewer = _observations(group, site, notes)
    missing = _missing(request.resource, patient) if action == "request" else ()
    return Order(
        action=action,
        request=request,
        placer=_numbers(identifiers, "PLAC"),
        filler=_numbers(identifiers, "FILL"),
        missing=missing,
        reason=(orc.field(16).component(2).whole.strip() or orc.text(16)) if action == "cancel" else "",
        observations=observations,
        details=details,
        study=_study(group.ipc, site) if group.ipc is not None else None,
        viewer=viewer,
        examination=_examination(group, site, notes) if action == "complement" else {},
    )


def _numbers(identifiers: list[Element], kind: str) -> Ids:
    return tuple(
        (str(one.get("system", "")), str(one["value"]))
        for one in identifiers
        if one.get("type", {}).get("coding", [{}])[0].get("code") == kind
    )


def _missing(request: Element, patient: PatientResult) -> tuple[tuple[str, str], ...]:
    out = list(NEEDED)
    if "requester" not in request:
        out.append(("requester", "who asks (ORC-12 or OBR-16)"))
    if "reasonCode" not in request:
        out.append(("reason", "why the examination is asked for (OBR-13, OBR-31)"))
    if not patient.patient.get("birthDate"):
        out.append(("birthDate", "the date of birth of the patient (PID-7)"))
    return tuple(out)


def _request(group: _Group, identifiers: list[Element], action: Action, site: Site, notes: Notes) -> Built:
    """ORC and OBR[ServiceRequest]."""
    orc, obr = group.orc, group.obr
    out = Built({"resourceType": "ServiceRequest"})
    out.put("identifier", identifiers)
    out.put("status", STATUS[action] or "unknown")
    out.put("intent", "order")
    urgency, at = _priority(group)
    if urgency and urgency not in PRIORITY:
        notes.add(at, f"priority {urgency[:5]!r} has no equivalent and is not carried")
    out.put("priority", PRIORITY.get(urgency, ""))
    if obr is not None:
        out.put("code", concept_of(obr.field(4).repetition(1), where(obr, 4), notes))
        out.put("occurrenceDateTime", datetime_of(obr.text(6), site.time_zone))
        reasons = concepts_of(obr.field(31), where(obr, 31), notes)
        text = obr.field(13).whole.strip()
        reasons += [{"text": text}] if text else []
        out.put("reasonCode", reasons)
    out.put("authoredOn", datetime_of(orc.text(9), site.time_zone))
    _requester(out, group, notes)
    beside = (nte for obx, remarks in group.results if obx.text(3, 3) == "TLR_OBSERVATION" for nte in remarks)
    out.put("note", [note for nte in (*group.notes, *beside) if (note := _comment(nte))])
    return out


def _comment(nte: Segment) -> Element:
    """An Annotation of a comment, {} for an empty one."""
    text, kind = nte.field(3).whole.strip(), nte.text(4)
    if not text or kind not in COMMENTS:
        return {"text": text} if text else {}
    return {"extension": [{"url": COMMENT, "valueCode": kind}], "text": text}


def _priority(group: _Group) -> tuple[str, str]:
    """OBR-5, else TQ1-9, else OBR-27.6 or ORC-7.6, with the place it stands in."""
    obr, orc, timing = group.obr, group.orc, group.timing
    options = [(obr.text(5), where(obr, 5)), (obr.text(27, 6), where(obr, 27))] if obr is not None else []
    options += [(timing.text(9), where(timing, 9))] if timing is not None else []
    options.append((orc.text(7, 6), where(orc, 7)))
    return next(((code.upper(), at) for code, at in options if code), ("", ""))


def _requester(out: Built, group: _Group, notes: Notes) -> None:
    """ORC-12, else OBR-16; without a person the structure of ORC-21. The call-back number stands in ORC-14."""
    orc, obr = group.orc, group.obr
    options = [(orc.field(12), where(orc, 12))] + ([(obr.field(16), where(obr, 16))] if obr is not None else [])
    for value, at in options:
        people = reps(value)
        if people:
            out.put("requester", practitioner_of(people[0], at, notes))
            if len(people) > 1:
                notes.add(at, "a second requester is not carried")
            break
    structure = orc.field(21).repetition(1)
    organization = organization_of(structure) if structure.valued else {}
    if organization and "requester" not in out.resource:
        out.put("requester", organization)
    elif organization:
        notes.add(
            where(orc, 21), f"the asking structure {organization.get('display', '')!r} is given beside the person"
        )
    for xtn in reps(orc.field(14)):
        if telecom_of(xtn, True):
            notes.add(where(orc, 14), "the call-back number is not carried")


def _observations(
    group: _Group, site: Site, notes: Notes
) -> tuple[tuple[Built, ...], tuple[tuple[str, Element], ...], str]:
    """(data of the patient, coded rows of the profile, viewer address)."""
    found: list[Built] = []
    details: list[tuple[str, Element]] = []
    viewer = ""
    for obx, remarks in group.results:
        code = obx.text(3)
        if obx.text(3, 3) != "TLR_OBSERVATION":
            found.append(observation(obx, remarks, group.obr, site, notes))
        elif code == "URL_PARTIELLE_VIEWER":
            viewer = _viewer(obx, notes)[:2_000]
        else:
            value = first_concept(obx.field(5), where(obx, 5), notes) if obx.text(2) in ("CE", "CWE") else {}
            value = value or {"text": f"{obx.field(5).whole.strip()[:2_000]} {obx.text(6)[:50]}".strip()}
            details.append((code, value | ({"id": obx.text(4)} if obx.text(4) else {})))
    return tuple(found), tuple(details), viewer


def _viewer(obx: Segment, notes: Notes) -> str:
    """The address, which the guide puts in base64 (OBX-2 ED) and some senders as it is."""
    if obx.text(2) != "ED":
        return obx.field(5).whole.strip()
    try:
        return base64.b64decode(obx.field(5).repetition(1).part(5).text, validate=True).decode("utf-8").strip()
    except ValueError:
        notes.add(where(obx, 5), "the address of the viewer is no text in base64 and not carried")
        return ""


def _study(ipc: Segment, site: Site) -> Study:
    """IPC-1 accession, IPC-3 Study Instance UID, IPC-5 modality."""
    number = order_ids([(ipc.field(1), "")], site)
    accession = (str(number[0].get("system", "")), str(number[0]["value"])) if number else ("", "")
    uid = ipc.text(3)
    return Study(accession, uid if uid.replace(".", "").isdigit() and len(uid) <= 64 else "", ipc.text(5))


def _examination(group: _Group, site: Site, notes: Notes) -> Element:
    """When it was made and how long its images are kept (TQ1), as what it was asked for and made (IPC)."""
    parts: list[Element] = []
    timing, ipc = group.timing, group.ipc
    if timing is not None:
        if moment := datetime_of(timing.text(7), site.time_zone):
            parts.append({"url": "performed", "valueDateTime": moment})
        elif timing.text(7):
            notes.add(where(timing, 7), f"{timing.text(7)[:30]!r} is no date and not carried")
        kept, unit = timing.text(6), timing.text(6, 2)
        if kept.isascii() and kept.isdigit() and len(kept) <= _DIGITS and unit.upper() in _DAYS:
            days = {"value": int(kept), "unit": unit or "jours", "system": UCUM, "code": "d"}
            parts.append({"url": "retention", "valueDuration": days})
        elif kept or unit:
            notes.add(where(timing, 6), f"{kept[:20]!r} {unit[:20]!r} is no number of days and not carried")
    for name, number in (("procedure", 2), ("step", 4)):
        if ipc is not None and (coding := _code_of(ipc.field(number))):
            parts.append({"url": name, "valueCoding": coding})
    return {"url": EXAMINATION, "extension": parts} if parts else {}


def _code_of(number: Value) -> Element:
    """A code that the guide writes as an EI: EI-1 of the code system EI-3 (an OID)."""
    code, oid = number.component(1).text, number.component(3).text
    return compact(system=SYSTEMS["LN"] if oid == _LOINC else system_of(oid), code=code) if code else {}
