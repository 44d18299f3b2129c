"""HL7 v2 messages as FHIR resources: ADT of IHE PAM France, and the business acknowledgements ZAM.

A mapper judges nothing that `hl7v2.check` judges; it refuses only what the site may not hold (`Refused`), and says of
everything else what it could not carry.

Sources: IHE PAM France 2.11 (https://www.interopsante.org/publications); CI-SIS "Transmission d'un document CDA-R2 en
HL7v2" 2.1, business acknowledgements (https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-r2/volume2.html); HL7
v2-to-FHIR (https://build.fhir.org/ig/HL7/v2-to-fhir/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from hl7v2.message import Message
from mappers import hl7v2_pid_to_fhir as pid
from mappers import hl7v2_pv1_to_fhir as pv1
from mappers.hl7v2_ins_to_fhir import Refused, is_ins
from mappers.hl7v2_pv1_to_fhir import Movement
from mappers.hl7v2_types_to_fhir import Element, Notes, datetime_of, identifier_of, reps
from mappers.identity import Site
from mappers.mapped import Mapped

Action = Literal["identity", "movement", "merge", "change-ids"]
ACTIONS: Final[Mapping[str, Action]] = {"A28": "identity", "A31": "identity", "A40": "merge", "A47": "change-ids"}
"""What a trigger is about; every other one is a movement."""


@dataclass(frozen=True, slots=True)
class AdtResult:
    """What an ADT says. Resources have no id, the Encounter no subject.

    `ins`, `local_ids`, `encounter_ids` and `prior_ids` (MRG-1 of A40 and A47) are (Identifier.system, value): what to
    match on. `nulls` are the elements the sender explicitly deletes (`""`), as paths. `event_time` is EVN-6 or EVN-2
    as FHIR dateTime.
    """

    trigger: str
    action: Action
    control_id: str
    event_time: str
    patient: Element
    encounter: Element | None
    ins: tuple[str, str] | None
    local_ids: tuple[tuple[str, str], ...]
    encounter_ids: tuple[tuple[str, str], ...] = ()
    prior_ids: tuple[tuple[str, str], ...] = ()
    movement: Movement | None = None
    nulls: tuple[str, ...] = ()


def adt(msg: Message, site: Site) -> Mapped[AdtResult]:
    """Patient and stay of an ADT.

    Raises Refused for MSH-11 other than P or a test INS on a production site, for a real INS with a wrong key, and
    when the message has no PID.
    """
    notes = Notes()
    _processing(msg, site, notes)
    if msg.first("PID") is None:
        raise Refused("the message speaks of no patient: PID is missing", "PID^1", condition="100", code="required")
    for where, remark in msg.notes:
        notes.add(where, remark)
    if msg.trigger == "A08":
        notes.add("MSH-9.2", "A08 is outside IHE PAM France; taken as A31 and the movement it repeats")
    patient = pid.patient_of(msg, site, notes)
    stay = pv1.stay_of(msg, site, notes)
    prior = _prior(msg, site)
    _left_behind(msg, notes)
    action = ACTIONS.get(msg.trigger, "movement")
    result = AdtResult(
        trigger=msg.trigger,
        action=action,
        control_id=msg.control_id,
        event_time=datetime_of(msg.text("EVN-6") or msg.text("EVN-2"), site.time_zone),
        patient=patient.patient,
        encounter=stay.encounter,
        ins=(patient.ins.system, patient.ins.value) if patient.ins else None,
        local_ids=patient.local_ids,
        encounter_ids=stay.ids,
        prior_ids=prior,
        movement=stay.movement,
        nulls=_nulls(msg),
    )
    return Mapped(result, tuple(dict.fromkeys(notes.losses)))


def _processing(msg: Message, site: Site, notes: Notes) -> None:
    code = msg.text("MSH-11")
    if site.mode == "production" and code != "P":
        text = f"MSH-11 is {code or 'empty'}: {site.name} is a production site and takes P only"
        raise Refused(text, "MSH^1^11", condition="202")
    if site.mode == "test" and code == "P":
        notes.add("MSH-11", "a production message on a test site")


def _prior(msg: Message, site: Site) -> tuple[tuple[str, str], ...]:
    """MRG-1: the identifiers that are merged away or replaced."""
    out: list[tuple[str, str]] = []
    for number, cx in enumerate(reps(msg.at("MRG-1")), 1):
        if is_ins(cx):
            oid = cx.part(4).part(2).text or cx.part(4).part(1).text
            out.append((f"urn:oid:{oid}", cx.part(1).text))
            continue
        identifier, namespace = identifier_of(cx, f"MRG-1[{number}]", site, "PI", "old", Notes())
        if namespace:
            out.append((namespace.fhir_system, identifier["value"]))
    return tuple(out)


def _nulls(msg: Message) -> tuple[str, ...]:
    """The fields of PID and PV1 that say `""`: delete what you hold."""
    out = []
    for name in ("PID", "PV1"):
        segment = msg.first(name)
        for number, value in segment.fields() if segment else ():
            if value.state == "null":
                out.append(f"{name}-{number}")
            elif (name, number) == ("PID", 3):
                removed = (n for n, cx in enumerate(value.repetitions()[:200], 1) if cx.part(1).value == '""')
                out += [f"PID-3[{n}]" for n in removed]
    return tuple(out)


_CARRIED: Final[Mapping[str, frozenset[int]]] = {
    "MSH": frozenset(range(1, 30)),
    "EVN": frozenset({1, 2, 6}),
    "PID": pid.CARRIED,
    "PV1": pv1.CARRIED,
    "ZBE": frozenset({1, 2, 4, 5, 6, 7, 8, 9}),
    "ZFA": frozenset({1, 2, 3, 9, 10, 11, 12}),
    "ZFD": frozenset({5, 6, 7}),
    "ROL": frozenset({1, 2, 3, 4}),
    "MRG": frozenset({1}),
}
"""Fields read from each segment; the others that hold something are reported, segment by segment."""


def _left_behind(msg: Message, notes: Notes) -> None:
    for segment in msg.segments[:200]:
        name = segment.name if segment.number == 1 else f"{segment.name}[{segment.number}]"
        carried = _CARRIED.get(segment.name)
        if carried is None:
            notes.add(name or "MSH", "the segment is not carried" if name else "a line that is no segment is ignored")
            continue
        left = [str(number) for number, value in segment.fields() if number not in carried and value.valued]
        if left:
            notes.add(name, f"not carried: field{'s' if len(left) > 1 else ''} {', '.join(left[:20])}")


@dataclass(frozen=True, slots=True)
class BusinessAck:
    """A ZAM: what became of a document we sent.

    `control_id` is the MSH-10 of our message; `ok` is OBX-5; `error_*` come from ERR-5 (else ERR-3, ERR-8);
    `recipient` is the mailbox of Z02 and Z03, `recipient_id` its owner (such as `8` + RPPS) or ''.
    """

    control_id: str
    event: Literal["Z01", "Z02", "Z03"]
    ok: bool
    error_code: str = ""
    error_text: str = ""
    recipient: str = ""
    recipient_id: str = ""


_RESULT: Final = {"Z01": "ACK_RECEPTION_DMP", "Z02": "ACK_RECEPTION_MSS", "Z03": "ACK_LECTURE_MSS"}
_PERSON: Final = frozenset({"DESTINATAIRE_MSS", "LECTEUR_MSS"})


def zam(msg: Message) -> BusinessAck:
    """Read a business acknowledgement. Raises Refused with the ERR-2 location of what is missing or unknown."""
    trigger = msg.trigger
    if msg.kind != "ZAM" or trigger not in _RESULT:
        raise Refused(f"{msg.kind}^{trigger} is no business acknowledgement (ZAM^Z01, Z02, Z03)", "MSH^1^9",
                      condition="201", code="not-supported")  # fmt: skip
    result = next((obx for obx in msg.all("OBX") if obx.text(3) == _RESULT[trigger]), None)
    if result is None:
        raise Refused(f"no OBX with OBX-3 {_RESULT[trigger]}", "OBX^1^3", condition="103", code="required")
    place = f"OBX^{result.number}"
    answer = result.text(5).upper()
    if answer not in ("Y", "N"):
        raise Refused(f"OBX-5 is {answer[:20]!r}, Y or N is expected", f"{place}^5", condition="103")
    if not result.text(4):
        raise Refused("OBX-4 must name the MSH-10 of the document message", f"{place}^4", condition="101",
                      code="required")  # fmt: skip
    person = next((obx for obx in msg.all("OBX") if obx.text(3) in _PERSON), None)
    code, text = _failure(msg) if answer == "N" else ("", "")
    return BusinessAck(
        control_id=result.text(4),
        event=trigger,  # type: ignore[arg-type]
        ok=answer == "Y",
        error_code=code,
        error_text=text,
        recipient=person.text(5, 4) if person else "",
        recipient_id=person.text(4) if person else "",
    )


def _failure(msg: Message) -> tuple[str, str]:
    error = msg.first("ERR")
    if error is None:
        return "", "refused without a reason (no ERR segment)"
    code = error.text(5) or error.text(3)
    texts = (error.text(5, 2), error.field(8).whole.strip(), error.field(7).whole.strip(), error.text(3, 2))
    return code, next((text for text in texts if text and text != '""'), "")


__all__ = ["AdtResult", "BusinessAck", "Movement", "Refused", "adt", "zam"]
