"""The CI-SIS profiles on top of base HL7: push 2.1, LPS 1.1, business acknowledgements, téléradiologie 1.0.

Hides which profile a message follows (MSH-21) and what that profile demands. An error is what the profile says is
rejected or what nobody could act on; where the published samples themselves stray from the text, or where reading on
loses nothing, it is a warning.

Sources: CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1 and "Transmission au LPS d'un document CDA provenant
d'un courriel MSSanté" 1.1 (https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-r2/), CI-SIS téléradiologie 1.0
(https://interop.esante.gouv.fr/ig/hl7v2/teleradiologie).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hl7v2 import tables
from hl7v2.findings import MOST_SEGMENTS, Finding, at, within
from hl7v2.message import Message, Segment
from hl7v2.tables import Coded, Required


@dataclass(frozen=True, slots=True)
class Overlay:
    """One profile: its name in rule ids, what MSH-21 contains, its messages with their version, and its rules."""

    name: str
    mark: str
    versions: Mapping[str, str]
    required: tuple[Required, ...]
    coded: tuple[Coded, ...]
    judge: Callable[[Message, str], Iterator[Finding]]


def of(msg: Message) -> Overlay | None:
    """The profile of a message: by MSH-21 (blanks in it do not count), a ZAM by its type; None for any other."""
    if msg.kind == "ZAM":
        return ZAM
    said = "".join(rep.encoded for rep in msg.at("MSH-21").repetitions()).replace(" ", "").upper()
    return next((one for one in (PUSH, LPS, TLR) if one.mark in said and msg.kind in one.versions), None)


def judge(msg: Message, overlay: Overlay) -> Iterator[Finding]:
    """What the profile says of a message beyond its required and coded fields."""
    wanted = overlay.versions[msg.kind]
    if msg.version != wanted:
        told = f"{overlay.name} uses version {wanted} for {msg.kind}, not {msg.version[:10]!r}"
        yield at(msg, "MSH-12", f"{overlay.name}/MSH-12", "203", told, "warning")
    yield from overlay.judge(msg, overlay.name)


ACTIONS: Final = {"T02": ("NW", "F"), "T10": ("RO", "C"), "T04": ("CA", "D")}
"""Trigger of an MDM -> ORC-1 and OBX-11 of its document; an ORU has no trigger for it, the two others must agree."""
METADATA: Final = ("MASQUE_PS", "INVISIBLE_PATIENT", "INVISIBLE_REP_LEGAUX", "CONNEXION_SECRETE", "MODIF_CONF_CODE",
                   "DESTDMP", "DESTMSSANTEPS", "DESTMSSANTEPAT", "ACK_RECEPTION", "ACK_LECTURE_MSS")  # fmt: skip
LETTERS: Final = ("CORPSMAIL_PS", "CORPSMAIL_PATIENT")
CONTRADICTIONS: Final = (("MASQUE_PS", "DESTMSSANTEPS"), ("INVISIBLE_PATIENT", "DESTMSSANTEPAT"))
"""Hidden from those it is sent to: refused. The other rows of the matrix are not: the published samples break them."""
ROLES: Final = ("SB", "RCT", "REPLY")
_TABLE: Final = "MetaDMPMSS"


def _push(msg: Message, rule: str) -> Iterator[Finding]:
    yield from _action(msg, rule)
    yield from _document(msg, rule)
    yield from _stay(msg, rule)
    yield from _people(msg, rule)
    yield from _metadata(msg, rule, METADATA)


def _lps(msg: Message, rule: str) -> Iterator[Finding]:
    yield from _action(msg, rule)
    yield from _document(msg, rule)
    if msg.text("PV1-2") not in ("N", ""):
        yield at(msg, "PV1-2", f"{rule}/PV1-2", "103", "a document that came by mail knows no stay: N", "warning")
    if not msg.text("OBX[2]-3.2").removeprefix("[Annule et remplace] ").upper().startswith("XDM/1.0/DDM"):
        told = "the second OBX is the mail: OBX-3.2 is its subject, XDM/1.0/DDM+..."
        yield at(msg, "OBX[2]-3.2", f"{rule}/OBX-3/mail", "101", told, "warning")
    yield from _metadata(msg, rule, ())


def _action(msg: Message, rule: str) -> Iterator[Finding]:
    """Trigger, ORC-1 and OBX-11 say the same, else the message is rejected."""
    orders = {order for order, _ in ACTIONS.values()}
    wanted = ACTIONS.get(msg.trigger)
    if msg.kind == "ORU":
        wanted = next((pair for pair in ACTIONS.values() if pair[0] == msg.text("ORC-1")), None)
        if wanted is None:
            told = f"ORC-1 is {msg.text('ORC-1')[:10]!r}, one of {' '.join(sorted(orders))} was expected"
            yield at(msg, "ORC-1", f"{rule}/ORC-1/action", "103", told)
    if wanted is None:
        return
    if msg.text("ORC-1") != wanted[0]:
        told = f"{msg.trigger} goes with ORC-1 {wanted[0]}, not {msg.text('ORC-1')[:10]!r}"
        yield at(msg, "ORC-1", f"{rule}/ORC-1/action", "103", told)
    document = _enclosing(msg)
    if document is not None and document.text(11) != wanted[1]:
        told = f"ORC-1 {wanted[0]} goes with OBX-11 {wanted[1]}, not {document.text(11)[:10]!r}"
        yield within(document, "-11", document.field(11), f"{rule}/OBX-11/action", "103", told)


def _enclosing(msg: Message) -> Segment | None:
    """The OBX of the document: the first one."""
    return msg.first("OBX")


def _document(msg: Message, rule: str) -> Iterator[Finding]:
    found = _enclosing(msg)
    if found is None:
        return
    if found.text(2) != "ED":
        told = f"the first OBX holds the document as ED, not {found.text(2)[:10]!r}"
        yield within(found, "-2", found.field(2), f"{rule}/OBX-2/document", "102", told)
        return
    value = found.field(5).repetition(1)
    for number, wanted in ((2, "TEXT"), (3, "XML"), (4, "BASE64")):
        part = value.part(number)
        if part.text.upper() != wanted:
            told = f"a CDA is sent as ^TEXT^XML^Base64^, not {part.text[:20]!r}"
            yield within(found, f"-5[1].{number}", part, f"{rule}/OBX-5/document", "102", told, "warning")
    kinds = {"OBR-4": msg.text("OBR-4"), "TXA-2": msg.text("TXA-2"), "OBX-3": found.text(3)}
    for where, kind in kinds.items():
        if kind and kind != kinds["OBX-3"]:
            told = f"{where} is {kind[:20]!r} and OBX-3 {kinds['OBX-3'][:20]!r}: one document has one type"
            yield at(msg, where, f"{rule}/type", "199", told, "warning")
    for where in ("OBR-4", "OBX-3"):
        if msg.text(f"{where}.1") and not msg.text(f"{where}.3"):
            yield at(msg, f"{where}[1].3", f"{rule}/{where}/system", "101", "a code names its coding system", "warning")


def _stay(msg: Message, rule: str) -> Iterator[Finding]:
    if msg.text("PV1-2") in ("E", "I", "O", "R") and not msg.text("PV1-19"):
        told = f"PV1-19 is required with PV1-2 {msg.text('PV1-2')}; N is for no known stay"
        yield at(msg, "PV1-19", f"{rule}/PV1-19/required", "101", told, "warning")


def _people(msg: Message, rule: str) -> Iterator[Finding]:
    roles = []
    for prt in msg.all("PRT")[:MOST_SEGMENTS]:
        role = prt.text(4)
        roles.append(role)
        if role not in ROLES:
            told = f"PRT-4 is {role[:10]!r}, one of {' '.join(ROLES)} was expected"
            yield within(prt, "-4", prt.field(4), f"{rule}/PRT-4/table", "103", told, "warning")
        if role in ("RCT", "REPLY") and not prt.text(15, 4):
            told = f"the MSSanté address of {role} is missing"
            yield within(prt, "-15[1].4", prt.field(15).component(4), f"{rule}/PRT-15/required", "101", told, "warning")
    if "SB" not in roles:
        yield Finding("PRT", f"{rule}/PRT/sender", "100", "no PRT with PRT-4 SB names the sender", "warning")
    if "RCT" not in roles and any(_said(msg, code) == "Y" for code in ("DESTMSSANTEPS", "DESTMSSANTEPAT")):
        told = "mail is asked for (DESTMSSANTEPS, DESTMSSANTEPAT) and no PRT with PRT-4 RCT names a recipient"
        yield Finding("PRT", f"{rule}/PRT/recipient", "100", told, "warning")


def _said(msg: Message, code: str) -> str:
    return next((obx.text(5) for obx in _rows(msg) if obx.text(3) == code), "")


def _rows(msg: Message) -> list[Segment]:
    return [obx for obx in msg.all("OBX")[:MOST_SEGMENTS] if obx.text(3, 3) == _TABLE]


def _metadata(msg: Message, rule: str, wanted: tuple[str, ...]) -> Iterator[Finding]:
    """Known codes, Y or N, in the order of the profile, without contradictions."""
    told: list[str] = []
    for obx in _rows(msg):
        code = obx.text(3)
        if code not in (*METADATA, *LETTERS):
            text = f"{code[:30]!r} is not in table {_TABLE}"
            yield within(obx, "-3[1].1", obx.field(3), f"{rule}/OBX-3/table", "103", text, "warning")
        elif code in METADATA:
            told.append(code)
            if obx.text(5) not in ("Y", "N"):
                text = f"{code} is Y or N, not {obx.text(5)[:10]!r}"
                yield within(obx, "-5", obx.field(5), f"{rule}/OBX-5/table", "103", text)
    for hidden, sent in CONTRADICTIONS:
        if _said(msg, hidden) == _said(msg, sent) == "Y":
            number = next(obx.number for obx in _rows(msg) if obx.text(3) == sent)
            text = f"{hidden} Y and {sent} Y: it is sent to those it is hidden from"
            yield at(msg, f"OBX[{number}]-5", f"{rule}/matrix", "199", text)
    missing = [code for code in wanted if code not in told]
    if missing:
        yield Finding("OBX", f"{rule}/metadata", "101", f"missing: {', '.join(missing)}", "warning")
    if told != sorted(told, key=METADATA.index):
        yield Finding("OBX", f"{rule}/metadata/order", "100", f"the order is {' '.join(METADATA)}", "warning")


ABOUT: Final = {"Z01": "ACK_RECEPTION_DMP", "Z02": "ACK_RECEPTION_MSS", "Z03": "ACK_LECTURE_MSS"}
"""Event of a ZAM -> OBX-3 of its first OBX."""


def _zam(msg: Message, rule: str) -> Iterator[Finding]:
    about, said = ABOUT.get(msg.trigger), msg.text("OBX-3")
    if about and said in ABOUT.values() and said != about:
        yield at(msg, "OBX-3", f"{rule}/OBX-3/event", "199", f"{msg.trigger} tells of {about}, not {said}", "warning")
    outcome = msg.text("OBX-5")
    if outcome and outcome not in ("Y", "N"):
        yield at(msg, "OBX-5", f"{rule}/OBX-5/table", "103", f"the outcome is Y or N, not {outcome[:10]!r}")
    if outcome == "N" and msg.first("ERR") is None:
        yield Finding("ERR", f"{rule}/ERR", "100", "N comes with an ERR that says why", "warning")


FLOWS: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "TRANSMISSION_DEMANDE": ("ORM", frozenset(("NW", "XO", "RP"))),
    "ANNULATION_DEMANDE": ("ORM", frozenset(("CA", "DC"))),
    "REPONSE_DEMANDE": ("ORU", frozenset(("OK", "OC"))),
    "COMPLEMENT_POST_ACTE": ("OMI", frozenset(("SR", "SC"))),
}
"""OBR-4 (TLR_OBR_PROCEDURE) -> message and ORC-1. The guide writes SR for the fourth flow; SC is met."""
_WHO_ASKS: Final = ("STRUCTURE_IMAGERIE", "PLATEFORME_TLR")
_OBSERVATIONS: Final = "TLR_OBSERVATION"
_MOST_OBSERVED: Final = 10 * MOST_SEGMENTS
_OBSERVED: Final = ("REGION_ANATOMIQUE", "PROTOCOLE_IMAGERIE", "URL_PARTIELLE_VIEWER", "PRODUIT_ADMINISTRE",
                    "APPAREIL_IMAGERIE", "MODALITE_IMAGERIE", "CODE_ACTE_IMAGERIE")  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Detail:
    """What flow 1 wants of an OBX: coding systems, and how OBX-4 ends in the main one and in one that narrows it."""

    systems: tuple[str, ...]
    sub_ids: tuple[str, ...] = ()


_EXAMINATION: Final = {
    "MODALITE_IMAGERIE": _Detail(("DCM", "terminologie-cisis-fr")),
    # SNT is SNOMED CT where no SCT was known yet.
    "REGION_ANATOMIQUE": _Detail(("SCT", "SNT"), (".1", ".2")),
}
"""OBX-3 of the two observations that a request requires."""


def _tlr(msg: Message, rule: str) -> Iterator[Finding]:
    procedure, control = msg.text("OBR-4"), msg.text("ORC-1")
    flow = FLOWS.get(procedure)
    if flow is None or flow[0] != msg.kind:
        known = " ".join(name for name, (kind, _) in FLOWS.items() if kind == msg.kind)
        yield at(msg, "OBR-4", f"{rule}/OBR-4/table", "103", f"OBR-4 of {msg.kind} is {known}, not {procedure[:30]!r}")
    elif control not in flow[1]:
        told = f"{procedure} goes with ORC-1 {' or '.join(sorted(flow[1]))}, not {control[:10]!r}"
        yield at(msg, "ORC-1", f"{rule}/ORC-1/flow", "103", told)
    if msg.text("OBR-2") != msg.text("ORC-2"):
        yield at(msg, "OBR-2", f"{rule}/OBR-2", "199", "ORC-2 and OBR-2 name one order", "warning")
    if control in ("CA", "OC") and not (msg.text("ORC-16") or msg.text("ORC-16.2")):
        yield at(msg, "ORC-16", f"{rule}/ORC-16/required", "101", f"ORC-1 {control} says why in ORC-16", "warning")
    if procedure == "COMPLEMENT_POST_ACTE" and msg.first("IPC") is None:
        yield Finding("IPC", f"{rule}/IPC", "100", "the complement names its study in an IPC", "warning")
    if msg.text("ORC-17") and msg.text("ORC-17") not in _WHO_ASKS:
        told = f"ORC-17 is one of {' '.join(_WHO_ASKS)}, not {msg.text('ORC-17')[:20]!r}"
        yield at(msg, "ORC-17", f"{rule}/ORC-17/table", "103", told, "warning")
    for obx in msg.all("OBX")[:MOST_SEGMENTS]:
        if obx.text(3, 3) == _OBSERVATIONS and obx.text(3) not in _OBSERVED:
            told = f"{obx.text(3)[:30]!r} is not in table {_OBSERVATIONS}"
            yield within(obx, "-3[1].1", obx.field(3), f"{rule}/OBX-3/table", "103", told, "warning")
    if procedure == "TRANSMISSION_DEMANDE" and msg.kind == "ORM":
        for code, wanted in _EXAMINATION.items():
            yield from _examined(msg, rule, code, wanted)


def _examined(msg: Message, rule: str, code: str, wanted: _Detail) -> Iterator[Finding]:
    """Flow 1 says once what is to be examined and by what. Without it an order is still a draft somebody completes."""
    finer = wanted.sub_ids[1:]
    said = [obx for obx in _of_the_order(msg) if obx.text(3) == code and obx.text(3, 3) == _OBSERVATIONS]
    main = [obx for obx in said if not obx.text(4).endswith(finer)]
    narrower = [obx for obx in said if obx.text(4).endswith(finer)]
    if not main:
        told = f"no OBX says {code} ({_OBSERVATIONS}), which a request requires"
        yield Finding("OBX", f"{rule}/{code}", "100", told, "warning")
    for rows in (main, narrower):
        for obx in rows[:1]:
            yield from _detail(obx, rule, code, wanted)
        for obx in rows[1:2]:
            told = f"a request says {code} once" + (", with one that narrows it" if finer else "")
            yield within(obx, "-3", obx.field(3), f"{rule}/{code}/once", "198", told, "warning")


def _detail(obx: Segment, rule: str, code: str, wanted: _Detail) -> Iterator[Finding]:
    value = obx.field(5).repetition(1)
    coded, system = value.component(1), value.component(3)
    if not coded.valued:
        yield within(obx, "-5[1].1", coded, f"{rule}/{code}/coded", "101", f"{code} is a code", "warning")
    elif system.text not in wanted.systems:
        told = f"{code} is coded in {' or '.join(wanted.systems)}, not {system.text[:20]!r}"
        yield within(obx, "-5[1].3", system, f"{rule}/{code}/system", "103", told, "warning")
    if wanted.sub_ids and not obx.text(4).endswith(wanted.sub_ids):
        told = f"OBX-4 of {code} is n{' or n'.join(wanted.sub_ids)}, not {obx.text(4)[:10]!r}"
        yield within(obx, "-4", obx.field(4), f"{rule}/{code}/sub-id", "103", told, "warning")


def _of_the_order(msg: Message) -> list[Segment]:
    """The OBX of the first order, among the first 200 of the message: those of the history may come before."""
    orders = msg.all("ORC")
    end = orders[1].start if len(orders) > 1 else len(msg.raw)
    return [obx for obx in msg.all("OBX")[:_MOST_OBSERVED] if obx.start < end]


_FRENCH: Final = (Coded("MSH-17", "HL70399", frozenset(("FRA",)), "warning"),)
_CODES: Final = Coded("OBX-2", "HL70125", frozenset(("ED", "CE", "CWE", "XTN")), "warning")

PUSH: Final = Overlay(
    "push-2.1", "CISIS_CDA_HL7_V2", {"MDM": "2.6", "ORU": "2.5"},
    (*tables.CISIS_REQUIRED, Required("PV1-2"), Required("OBR-4"), Required("TXA-2"), Required("TXA-12")),
    (*_FRENCH, _CODES, Coded("TXA-17", "HL70271", frozenset(("AU",)), "warning")), _push,
)  # fmt: skip
LPS: Final = Overlay(
    "lps-1.1", "CISIS_CDA_HL7_LPS", {"MDM": "2.6"},
    (*tables.CISIS_REQUIRED, Required("PV1-2"), Required("TXA-2"), Required("TXA-12")), (*_FRENCH, _CODES), _lps,
)  # fmt: skip
ZAM: Final = Overlay(
    "zam", "CISIS_CDA_HL7_V2", {"ZAM": "2.6"}, tables.ZAM_REQUIRED, (*_FRENCH, *tables.ZAM_CODED), _zam
)
TLR: Final = Overlay(
    "tlr-1.0", "CISIS_TLR_HL7_V2", {"ORM": "2.5.1", "ORU": "2.5.1", "OMI": "2.5.1"},
    (*tables.CISIS_REQUIRED, Required("ORC-1"), Required("ORC-2"), Required("OBR-4")), _FRENCH, _tlr,
)  # fmt: skip
