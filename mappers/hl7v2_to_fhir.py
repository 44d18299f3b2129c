"""HL7 v2 messages as FHIR resources: ADT of IHE PAM France, and the business acknowledgements ZAM.

A mapper judges nothing that `hl7v2.check` judges; it refuses only what the site may not hold (`Refused`), and says of
everything else what it could not carry.

Sources: IHE PAM France 2.11 (https://www.interopsante.org/publications); CI-SIS "Transmission d'un document CDA-R2 en
HL7v2" 2.1, business acknowledgements (https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-r2/volume2.html); HL7
v2-to-FHIR (https://build.fhir.org/ig/HL7/v2-to-fhir/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from hl7v2.message import Message, Segment, parse
from mappers import hl7v2_events_to_fhir as events
from mappers import hl7v2_pid_to_fhir as pid
from mappers import hl7v2_pv1_to_fhir as pv1
from mappers.hl7v2_events_to_fhir import EVENTS, Action, PatientAction, StayAction
from mappers.hl7v2_ins_to_fhir import Refused, drops_ins, is_ins, key_of, named_ins
from mappers.hl7v2_pid_to_fhir import consents_of
from mappers.hl7v2_pv1_to_fhir import Movement
from mappers.hl7v2_types_to_fhir import Element, Notes, datetime_of, identifier_of, reps
from mappers.identity import NamespaceKind, Site
from mappers.mapped import Mapped

MAX_GROUPS: Final = 50


@dataclass(frozen=True, slots=True)
class AdtResult:
    """What an ADT says. Resources have no id, the Encounter no subject.

    `patient_action` and `stay_action` say what to do, `action` in one word what it is about. `ins`, `local_ids`,
    `encounter_ids`, `account_ids` (PID-18) are (Identifier.system, value): what to match on; `prior_ids` (MRG-1),
    `prior_account_ids` (MRG-3) and `prior_encounter_ids` (MRG-5) are what it was before. `keeps_state`: a historic or
    announced movement; a stay that is already known keeps its status, class, place and participants. `consents` say
    what ZFA says of the DMP. `nulls` are the elements the sender explicitly deletes (`""`, or a ROL taken back), as
    paths. `drops_ins`: every INS held for this person leaves it (the identity is no longer qualified). `named_ins`
    are the INS of PID-3 whatever its status, also those that are not kept. `event_time` is EVN-6 or EVN-2 as FHIR
    dateTime.
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
    patient_action: PatientAction = "update"
    stay_action: StayAction = "none"
    account_ids: tuple[tuple[str, str], ...] = ()
    prior_account_ids: tuple[tuple[str, str], ...] = ()
    prior_encounter_ids: tuple[tuple[str, str], ...] = ()
    keeps_state: bool = False
    consents: tuple[Element, ...] = ()
    drops_ins: bool = False
    named_ins: tuple[tuple[str, str], ...] = ()


def adt(msg: Message, site: Site) -> Mapped[AdtResult]:
    """Patient and stay of an ADT.

    Raises Refused for MSH-11 other than P or a test INS on a production site, for a real INS with a wrong key that
    would be kept, and when the message has no PID.
    """
    notes = Notes()
    _processing(msg, site, notes)
    if msg.first("PID") is None:
        raise Refused("the message speaks of no patient: PID is missing", "PID^1", condition="100", code="required")
    for where, remark in msg.notes:
        notes.add(where, remark)
    patient = pid.patient_of(msg, site, notes)
    stay = pv1.stay_of(msg, site, notes)
    merged = msg.first("MRG")
    if events.action_of(msg.trigger) in ("merge", "change-ids") and not _prior(msg, site):
        notes.add("MRG-1", "no prior identifier in a declared namespace: nothing can be merged or replaced")
    if len(msg.all("PID")) > 1:
        notes.add("PID[2]", "a second patient: only the first one is read; split the message first")
    _left_behind(msg, notes)
    result = AdtResult(
        trigger=msg.trigger,
        action=events.action_of(msg.trigger),
        control_id=msg.control_id,
        event_time=datetime_of(msg.text("EVN-6") or msg.text("EVN-2"), site.time_zone),
        patient=patient.patient,
        encounter=stay.encounter,
        ins=(patient.ins.system, patient.ins.value) if patient.ins else None,
        local_ids=patient.local_ids,
        encounter_ids=stay.ids,
        prior_ids=_prior(msg, site),
        movement=stay.movement,
        nulls=_nulls(msg),
        patient_action=EVENTS[msg.trigger].patient if msg.trigger in EVENTS else "update",
        stay_action=stay.action,
        account_ids=stay.account_ids,
        prior_account_ids=_old(merged, 3, site, "AN"),
        prior_encounter_ids=_old(merged, 5, site, "VN"),
        keeps_state=_keeps_state(msg, stay.movement),
        consents=consents_of(msg, site),
        drops_ins=drops_ins(msg),
        named_ins=named_ins(msg),
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
    """MRG-1: the identifiers that are merged away or replaced, an INS or of the sender's own namespaces: nobody gives
    up the numbers of another establishment."""
    own = replace(site, foreign=())
    out: list[tuple[str, str]] = []
    for number, cx in enumerate(reps(msg.at("MRG-1")), 1):
        if is_ins(cx):
            out.append(key_of(cx))
            continue
        identifier, namespace = identifier_of(cx, f"MRG-1[{number}]", own, "PI", "old", Notes())
        if namespace and "value" in identifier:
            out.append((namespace.fhir_system, identifier["value"]))
    return tuple(out)


def _keeps_state(msg: Message, movement: Movement | None) -> bool:
    """Historic, announced, or the cancellation of nobody knows what: the stay stays as it is."""
    trigger = pv1.effective_trigger(msg, movement)
    unknown = trigger == "Z99"
    return unknown or bool(movement and movement.historic) or (trigger in EVENTS and EVENTS[trigger].pending)


def _old(merged: Segment | None, field: int, site: Site, kind: NamespaceKind) -> tuple[tuple[str, str], ...]:
    """MRG-3 or MRG-5 in a declared namespace."""
    out = []
    for cx in reps(merged.field(field)) if merged else ():
        identifier, namespace = identifier_of(cx, f"MRG-{field}", site, kind, "old", Notes())
        if namespace and "value" in identifier:
            out.append((namespace.fhir_system, str(identifier["value"])))
    return tuple(out)


def split(msg: Message) -> tuple[Message, ...]:
    """One message for each patient of an A40, A44 or A17 that names several; any other message as it is.

    Each has the header segments and one PID with what follows it, so that `adt` may read it alone. Raises Refused
    beyond 50 patients.
    """
    starts = [segment.start for segment in msg.all("PID")]
    if len(starts) < 2:
        return (msg,)
    if len(starts) > MAX_GROUPS:
        raise Refused(f"more than {MAX_GROUPS} patients in one message", f"PID^{MAX_GROUPS + 1}", condition="198")
    ends = [*starts[1:], len(msg.raw)]
    charset = msg.charset.codec if msg.charset.note else None
    head = msg.raw[: starts[0]]
    return tuple(parse(head + msg.raw[a:b], charset=charset) for a, b in zip(starts, ends, strict=True))


def _nulls(msg: Message) -> tuple[str, ...]:
    """The fields of PID, PV1 and ZFD that say `""`: delete what you hold."""
    out = []
    for name in ("PID", "PV1", "ZFD"):
        segment = msg.first(name)
        for number, value in segment.fields() if segment else ():
            if value.state == "null":
                out.append(f"{name}-{number}")
            elif (name, number) == ("PID", 3):
                removed = (n for n, cx in enumerate(value.repetitions()[:200], 1) if cx.part(1).value == '""')
                out += [f"PID-3[{n}]" for n in removed]
    taken_back = (rol for rol in msg.all("ROL")[:50] if rol.text(3) == "ODRP" and rol.text(2).upper() in pid.TAKEN_BACK)
    return (*out, *(f"ROL[{rol.number}]" for rol in taken_back))


_CARRIED: Final[Mapping[str, frozenset[int]]] = {
    "MSH": frozenset(range(1, 30)),
    "EVN": frozenset({1, 2, 6}),
    "PID": pid.CARRIED,
    "PV1": pv1.CARRIED,
    "ZBE": frozenset({1, 2, 4, 5, 6, 7, 8, 9}),
    "ZFA": frozenset({1, 2, 3, 9, 10, 11, 12}),
    "ZFD": frozenset({1, 4, 5, 6, 7}),
    "ROL": frozenset({1, 2, 3, 4}),
    "ZFV": frozenset({1, 9}),
    "MRG": frozenset({1, 3, 5}),
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
        event=trigger,  # type: ignore[arg-type]  # a key of _RESULT
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


__all__ = ["AdtResult", "BusinessAck", "Movement", "Refused", "adt", "split", "zam"]
