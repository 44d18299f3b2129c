"""The INS of a PID: which one may be kept, which must be dropped, which makes the message unacceptable.

An INS stands in PID-3 with type INS and circulates only with a qualified identity: VALI in a repetition of PID-32 and
neither FICT nor DOUT. A receiver that gets it with another status integrates the message without it.

Sources: référentiel INS and its guide d'implantation (https://esante.gouv.fr/produits-services/referentiel-ins);
IHE PAM France 2.11 (PID-3, PID-32); FR Core 2.2.0 fr-core-patient-ins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from hl7v2.message import Message, Value
from mappers.hl7v2_types_to_fhir import FR_V2_0203, Element, Notes, compact, hd_of, reps
from mappers.identity import Site
from mappers.ins import fault, shaped

KINDS: Final = {
    "1.2.250.1.213.1.4.8": "INS-NIR",
    "1.2.250.1.213.1.4.9": "INS-NIA",
    "1.2.250.1.213.1.4.10": "INS-NIR-TEST",
    "1.2.250.1.213.1.4.11": "INS-NIR-DEMO",
}
"""OID of the assigning authority -> type of the identifier in fr-core-cs-v2-0203."""
TEST_OIDS: Final = ("1.2.250.1.213.1.4.10", "1.2.250.1.213.1.4.11")


class Refused(Exception):
    """This message cannot be integrated, and a resend would not cure it.

    `location` is ERR-2 (`PID^1^3^2^4`), `condition` its HL7 table 0357 code, `code` the FHIR issue code.
    """

    def __init__(self, text: str, location: str, *, condition: str = "207", code: str = "value") -> None:
        super().__init__(text)
        self.text = text
        self.location = location
        self.condition = condition
        self.code = code


@dataclass(frozen=True, slots=True)
class Ins:
    """An INS in force: 15 characters and its OID, where it stood, and whether its key holds."""

    value: str
    oid: str
    where: str

    @property
    def system(self) -> str:
        return f"urn:oid:{self.oid}"

    def identifier(self) -> Element:
        return compact(
            use="official",
            type={"coding": [{"system": FR_V2_0203, "code": KINDS[self.oid]}]},
            system=self.system,
            value=self.value,
        )


def is_ins(cx: Value) -> bool:
    """A CX that claims to be an INS: by its type, or by the OID of its authority."""
    return cx.part(5).text.upper() == "INS" or hd_of(cx.part(4)).oid in KINDS


def key_of(cx: Value) -> tuple[str, str]:
    """(Identifier.system, value) of a CX that claims to be an INS, whatever the status of the identity is."""
    return f"urn:oid:{hd_of(cx.part(4)).oid}", _whole(cx)


def named_ins(msg: Message) -> tuple[tuple[str, str], ...]:
    """The INS that PID-3 names, those that are not kept among them."""
    named = (cx for cx in msg.at("PID-3").repetitions()[:200] if cx.valued and is_ins(cx))
    return tuple(dict.fromkeys(key_of(cx) for cx in named if cx.part(1).text not in ("", '""')))


def statuses_of(msg: Message) -> tuple[str, ...]:
    """PID-32, in order."""
    return tuple(rep.text for rep in reps(msg.at("PID-32")))


def drops_ins(msg: Message) -> bool:
    """The sender says that this identity carries no INS any more: another status than VALI, FICT or DOUT, or `""`.

    A message without PID-32 says nothing about it: false.
    """
    statuses = statuses_of(msg)
    if msg.at("PID-32").state == "null":
        return True
    removed = any(cx.part(1).value == '""' and is_ins(cx) for cx in msg.at("PID-3").repetitions()[:200])
    return removed or bool(statuses and ("VALI" not in statuses or {"FICT", "DOUT"} & set(statuses)))


def ins_of(msg: Message, site: Site, notes: Notes) -> Ins | None:
    """The INS that may be kept, or None with a note saying why.

    Raises Refused for a test or demo INS on a production site, and for a real INS whose key is wrong on an identity
    whose status would let it be kept: one that is dropped anyway costs nobody the message.
    """
    reason = _unusable(statuses_of(msg))
    found: dict[tuple[str, str], Ins] = {}
    for number, cx in enumerate(msg.at("PID-3").repetitions()[:200], 1):
        if cx.valued and is_ins(cx) and cx.part(1).text:
            ins = _read(cx, number, site, notes, reason)
            if ins:
                found[ins.value, ins.oid] = ins
    if not found:
        return None
    first = next(iter(found.values()))
    if len(found) > 1:
        reason = "two different INS in one message: none of them is kept"
    if reason:
        notes.add(first.where, reason)
        return None
    return first


def _unusable(statuses: tuple[str, ...]) -> str:
    """Why no INS of an identity with these statuses is kept, '' when it is."""
    if not statuses:
        return "the INS comes without an identity status (PID-32): it is not kept"
    if "VALI" not in statuses:
        return f"the identity status (PID-32) is {' '.join(statuses)}, not VALI: the INS is not kept"
    doubtful = [status for status in statuses if status in ("FICT", "DOUT")]
    return f"the identity is marked {doubtful[0]}: the INS is not kept" if doubtful else ""


def _read(cx: Value, number: int, site: Site, notes: Notes, unusable: str) -> Ins | None:
    where = f"PID-3[{number}]"
    hd = hd_of(cx.part(4))
    if hd.oid not in KINDS:
        notes.add(f"{where}.4", f"an INS of the authority {str(hd)!r} is none of the national ones: not kept")
        return None
    if hd.oid in TEST_OIDS and site.mode == "production":
        text = f"a test or demonstration INS (authority {hd.oid}) is not accepted by {site.name}, a production site"
        raise Refused(text, f"PID^1^3^{number}^4")
    if hd.universal != hd.oid or hd.kind != "ISO":
        notes.add(f"{where}.4", f"the authority of the INS is written {str(hd)!r}, read as &{hd.oid}&ISO")
    if cx.part(7).valued or cx.part(8).valued:
        notes.add(f"{where}.7", "dates of the INS (CX-7, CX-8) are not allowed in France and are not kept")
    return _checked(cx, hd.oid, number, notes, unusable)


def _whole(cx: Value) -> str:
    """The 15 characters, also where the key came apart, in CX-2."""
    value = re.sub(r"\s", "", cx.part(1).text).upper()
    return value + cx.part(2).text if len(value) == 13 and len(cx.part(2).text) == 2 else value


def _checked(cx: Value, oid: str, number: int, notes: Notes, unusable: str) -> Ins | None:
    where = f"PID-3[{number}]"
    value = _whole(cx)
    if value != re.sub(r"\s", "", cx.part(1).text).upper():
        notes.add(f"{where}.2", "the key of the INS came apart, in CX-2")
    wrong = fault(value)
    if not wrong:
        return Ins(value, oid, where)
    if oid not in TEST_OIDS and unusable:
        notes.add(f"{where}.1", f"{wrong}; {unusable}")
        return None
    if oid not in TEST_OIDS:
        raise Refused(wrong, f"PID^1^3^{number}^1", condition="102")
    notes.add(f"{where}.1", f"{wrong} (tolerated: test authority)")
    return Ins(value, oid, where) if shaped(value) else None
