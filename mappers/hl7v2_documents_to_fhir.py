"""An MDM that brings a document as a DocumentReference and its bytes: LPS 1.1, push 2.1, or plain.

Hides where the profiles say what is to be done with a document, who sent it and which mail it came with. The
DocumentReference has neither id, subject nor attachment address: whoever stores the bytes adds them.

Sources: HL7 v2-to-FHIR MDM_T02, TXA[DocumentReference] (https://build.fhir.org/ig/HL7/v2-to-fhir/); CI-SIS
"Transmission au LPS d'un document CDA provenant d'un courriel MSSanté" 1.1
(https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-mss/volume2.html); CI-SIS push 2.1; HL7 tables 0270, 0271, 0273.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from hl7v2.message import Message, Segment, Unreadable
from mappers.hl7v2_codes_to_fhir import (
    Built,
    Enclosed,
    Ids,
    concept_of,
    enclosed,
    flags_of,
    is_metadata,
    lines_of,
    order_ids,
    request_of,
    where,
)
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_pid_to_fhir import PatientResult, patient_of
from mappers.hl7v2_pv1_to_fhir import stay_of
from mappers.hl7v2_types_to_fhir import Element, Notes, compact, datetime_of, practitioner_of, reps
from mappers.identity import Site
from mappers.mapped import Mapped

Action = Literal["create", "replace", "delete"]
ACTIONS: Final[dict[str, Action]] = {"T02": "create", "T10": "replace", "T04": "delete"}
CONSISTENT: Final = {"T02": ("NW", "F"), "T10": ("RO", "C"), "T04": ("CA", "D")}
"""Trigger -> (ORC-1, OBX-11 of the document) of the CI-SIS profiles; a message where they disagree is rejected."""
PROFILES: Final = ("CISIS_CDA_HL7_V2", "CISIS_CDA_HL7_LPS")
TEXTS: Final = ("TX", "FT", "ST")
STATUS: Final = {
    "AU": "final", "LA": "final", "DO": "preliminary", "DI": "preliminary", "IN": "preliminary", "IP": "preliminary",
    "PA": "preliminary",
}  # fmt: skip
"""TXA-17 (HL7 table 0271) -> DocumentReference.docStatus. A dictated or unauthenticated text is preliminary."""
_OID: Final = re.compile(r"[0-2](\.(0|[1-9]\d*))+\Z", re.ASCII)
_SUBJECT: Final = "XDM/1.0/DDM"
URI: Final = "urn:ietf:rfc:3986"


@dataclass(frozen=True, slots=True)
class Letter:
    """The mail a document came with (second OBX of the LPS profile)."""

    id: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class DocumentMessage:
    """What an MDM says.

    `reference` is the DocumentReference; `document` its bytes (None for a deletion without them); `parent` is TXA-13
    as (system, value): a replacement or deletion of a version that is not the latest one here is answered AE with the
    business code 900. `requests` are the placer numbers it answers. `others` are further
    enclosed documents, `flags` the metadata of the push, `sender` and `reply_to` MSSanté addresses of PRT.
    """

    action: Action
    control_id: str
    patient: PatientResult
    encounter_ids: Ids
    reference: Built
    document: Enclosed | None
    parent: tuple[str, str] | None
    requests: Ids
    others: tuple[Enclosed, ...]
    flags: dict[str, bool]
    letter: Letter | None
    sender: str = ""
    recipients: tuple[str, ...] = ()
    reply_to: str = ""


def document(msg: Message, site: Site) -> Mapped[DocumentMessage]:
    """The document of an MDM^T02, T10 or T04.

    Raises Refused without PID, TXA, TXA-12 or document, when a CI-SIS message tells two different actions, when a
    replacement names no parent, and for what `ins_of` refuses.
    """
    notes = Notes()
    txa = _required(msg)
    action = ACTIONS[msg.trigger]
    _consistent(msg, notes)
    found, letter, others = _contents(msg, notes)
    if found is None and action != "delete":
        raise Refused("no OBX holds a document (OBX-2 ED, TX or FT)", "OBX^1^5", condition="101", code="required")
    parent = uri_of(txa.text(13), txa.text(13, 3)) if txa.text(13) else None
    if action == "replace" and parent is None:
        raise Refused("a replacement must name the document it replaces (TXA-13)", "TXA^1^13", condition="101",
                      code="required")  # fmt: skip
    patient = patient_of(msg, site, notes)
    identifiers = _orders(msg, txa, site)
    reference = _reference(msg, txa, found, action, site, notes)
    if parent and action == "replace":
        reference.put("relatesTo", [{"code": "replaces", "target": {"identifier": _named(txa, 13)}}])
    related = [{"type": "ServiceRequest", "identifier": item["identifier"]} for item in request_of(identifiers)]
    reference.put("context", {"related": related} if related else {})
    sender, recipients, reply_to = _people(msg)
    value = DocumentMessage(
        action=action,
        control_id=msg.control_id,
        patient=patient,
        encounter_ids=stay_of(msg, site, Notes()).ids,
        reference=reference,
        document=found,
        parent=parent,
        requests=tuple((str(i.get("system", "")), str(i["value"])) for i in _placers(identifiers)),
        others=others,
        flags=flags_of(msg),
        letter=letter,
        sender=sender,
        recipients=recipients,
        reply_to=reply_to,
    )
    _left_behind(msg, notes)
    return Mapped(value, tuple(dict.fromkeys(notes.losses)))


def _required(msg: Message) -> Segment:
    if msg.trigger not in ACTIONS:
        raise Refused(f"MDM^{msg.trigger[:10]} is not taken in; T02, T10 and T04 are", "MSH^1^9", condition="201",
                      code="not-supported")  # fmt: skip
    for name in ("PID", "TXA"):
        if msg.first(name) is None:
            raise Refused(f"{name} is missing", f"{name}^1", condition="100", code="required")
    txa = msg.all("TXA")[0]
    if not txa.text(12):
        raise Refused("TXA-12 must name the document", "TXA^1^12", condition="101", code="required")
    return txa


def is_cisis(msg: Message) -> bool:
    """MSH-21 names the push or the LPS profile."""
    return any(name in rep.encoded for rep in msg.at("MSH-21").repetitions()[:20] for name in PROFILES)


def _consistent(msg: Message, notes: Notes) -> None:
    """Trigger, ORC-1 and OBX-11 tell one action. Demanded from CI-SIS senders, noted for the others."""
    order, status = CONSISTENT[msg.trigger]
    obx = next((obx for obx in msg.all("OBX") if obx.text(2) == "ED" and not is_metadata(obx)), None)
    told = [("ORC^1^1", msg.text("ORC-1"), order)]
    told += [(f"OBX^{obx.number}^11", obx.text(11), status)] if obx else []
    for location, sent, wanted in told:
        if sent and sent != wanted:
            text = f"{msg.trigger} goes with {wanted}, not with {sent[:10]}"
            if is_cisis(msg):
                raise Refused(text, location, condition="103")
            notes.add(location.replace("^1^", "-"), text)


def _contents(msg: Message, notes: Notes) -> tuple[Enclosed | None, Letter | None, tuple[Enclosed, ...]]:
    """(the document, the mail, other documents). The first ED that is neither mail nor metadata is the document."""
    letter: Letter | None = None
    found: list[Enclosed] = []
    for obx in msg.all("OBX")[:500]:
        if obx.text(2) != "ED" or is_metadata(obx):
            continue
        if _SUBJECT in obx.field(3).component(2).whole:
            letter = Letter(obx.text(3), obx.field(3).component(2).whole.strip(), _mail_text(msg, obx, notes))
        elif held := enclosed(msg, obx, notes):
            found.append(held)
    if not found and (text := _plain_text(msg)):
        found.append(text)
    return (found[0] if found else None), letter, tuple(found[1:])


def _plain_text(msg: Message) -> Enclosed | None:
    """A document that is typed into the message: the OBX of type TX, FT or ST, line by line."""
    rows = [obx for obx in msg.all("OBX")[:5_000] if obx.text(2) in TEXTS and obx.field(5).valued]
    if not rows:
        return None
    text = "\n".join(lines_of(obx) for obx in rows)
    return Enclosed(rows[0].number, "text/plain", text.encode("utf-8"), {}, rows[0].text(11))


def _mail_text(msg: Message, obx: Segment, notes: Notes) -> str:
    try:
        return msg.encapsulated(obx).decode().decode("utf-8", "replace")[:100_000]
    except Unreadable:
        notes.add(where(obx, 5), "the text of the mail cannot be decoded and is not carried")
        return ""


def uri_of(value: str, universal: str = "") -> tuple[str, str]:
    """(system, value) of TXA-12 or TXA-13: a full OID as URI; `extension^^oid` under that OID."""
    if _OID.match(value):
        return URI, f"urn:oid:{value}"
    if _OID.match(universal):
        return f"urn:oid:{universal}", value
    return (URI, f"urn:uuid:{value.lower()}") if re.fullmatch(r"[0-9a-fA-F-]{36}", value) else ("", value)


def _named(txa: Segment, number: int) -> Element:
    """The Identifier of TXA-12 or TXA-13; without an OID its namespace (EI-2) is the assigner."""
    system, value = uri_of(txa.text(number), txa.text(number, 3))
    namespace = "" if system else txa.text(number, 2)
    return compact(system=system, value=value, assigner={"display": namespace} if namespace else None)


def _orders(msg: Message, txa: Segment, site: Site) -> list[Element]:
    pairs = [(txa.field(14), "PLAC")]
    for name in ("ORC", "OBR"):
        for segment in msg.all(name)[:20]:
            pairs += [(segment.field(2), "PLAC"), (segment.field(3), "FILL")]
    return order_ids(pairs, site)


def _placers(identifiers: list[Element]) -> list[Element]:
    return [item["identifier"] for item in request_of(identifiers)]


def _reference(msg: Message, txa: Segment, found: Enclosed | None, action: Action, site: Site, notes: Notes) -> Built:
    """TXA[DocumentReference]."""
    out = Built({"resourceType": "DocumentReference"})
    out.put("masterIdentifier", _named(txa, 12))
    out.put("status", "entered-in-error" if action == "delete" else "current")
    completion = txa.text(17).upper()
    if completion and completion not in STATUS:
        notes.add("TXA-17", f"completion status {completion[:5]!r} is not in table 0271")
    out.put("docStatus", STATUS.get(completion, ""))
    source = msg.first("OBR")
    # The push writes the code alone in TXA-2 and the same code with its label and system in OBR-4.
    coded = source is not None and source.text(4) == txa.text(2) and not txa.text(2, 3)
    kind, at = (source.field(4).repetition(1), "OBR-4") if coded and source else (txa.field(2).repetition(1), "TXA-2")
    out.put("type", concept_of(kind, at, notes))
    for number in (6, 7, 4):
        moment = datetime_of(txa.text(number), site.time_zone)
        if "T" in moment:
            out.put("date", moment)
            break
    authors = [practitioner_of(xcn, "TXA-9", notes) for xcn in reps(txa.field(9))]
    senders = [prt for prt in msg.all("PRT")[:100] if prt.text(4) == "SB" and prt.field(5).valued]
    if not authors and senders:
        authors = [practitioner_of(senders[0].field(5).repetition(1), where(senders[0], 5), notes)]
    out.put("author", [one for one in authors if len(one) > 1])
    out.put("description", txa.text(25) or txa.text(16))
    attachment: Element = {"contentType": found.media_type} if found else {"contentType": "text/xml"}
    out.put("content", [{"attachment": attachment}])
    return out


def _people(msg: Message) -> tuple[str, tuple[str, ...], str]:
    """(sender, recipients, reply to): MSSanté addresses by role (PRT-4, PRT-15.4)."""
    by_role: dict[str, list[str]] = {"SB": [], "RCT": [], "REPLY": []}
    for prt in msg.all("PRT")[:200]:
        if prt.text(4) in by_role and prt.text(15, 4):
            by_role[prt.text(4)].append(prt.text(15, 4))
    one = {name: (by_role[name] or [""])[0] for name in ("SB", "REPLY")}
    return one["SB"], tuple(by_role["RCT"]), one["REPLY"]


_CARRIED: Final = frozenset({"MSH", "EVN", "PID", "PV1", "ORC", "OBR", "TXA", "PRT"})


def _left_behind(msg: Message, notes: Notes) -> None:
    for segment in msg.segments[:200]:
        if segment.name == "OBX" and (segment.text(2) in ("ED", *TEXTS) or is_metadata(segment)):
            continue
        if segment.name not in _CARRIED:
            notes.add(where(segment) if segment.name else "MSH", "the segment is not carried")
