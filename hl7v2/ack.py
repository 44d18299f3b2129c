"""Acknowledgements: write one for any bytes, read any that comes back.

Hides that an answer must be possible even when the message is broken: it is built from the MSH bytes alone, and
without an MSH it still is a well-formed ACK. French ports mean AA = understood and integrated, AE = a resend cures
nothing, AR = not now, may be sent again.

Sources: HL7 v2.5 and v2.6 chapter 2 (2.9 acknowledgements, 2.15.8 MSA, 2.15.5 ERR), HL7 tables 0008, 0357, 0516;
CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1, the ACK message
(https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-r2/volume2.html).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal

from hl7v2.message import Message, Segment, Unreadable, parse
from hl7v2.tables import ERROR_CONDITIONS
from hl7v2.text import STANDARD, UTF8, codec_of
from hl7v2.write import Fields, Raw, dtm, message

AckCode = Literal["AA", "AE", "AR", "CA", "CE", "CR"]

_ECHO: Final = 1_000
"""Longest field copied from the message into the answer: a hostile MSH-10 must not come back at full size."""
_HEADER: Final = 64 * 1024
_MAX_ERRORS: Final = 20
_PLAIN_HEADER: Final = re.compile(rb"MSH\|\^~\\&\|([\x20-\x7e]{1,1000})(?=[\r\n]|\Z)")
_COPIED: Final = (3, 4, 5, 6, 9, 11, 12, 18)
"""The fields of an MSH that decide what an answer says, besides MSH-10."""
_PLACE: Final = re.compile(
    r"(?P<segment>[A-Z][A-Z0-9]{2})(?:\[(?P<nth>\d+)\])?(?:-(?P<field>\d+)(?:\[(?P<rep>\d+)\])?"
    r"(?:\.(?P<comp>\d+)(?:\.(?P<sub>\d+))?)?)?\Z"
)


@dataclass(frozen=True, slots=True)
class AckError:
    """One ERR. `location` is a path (`PID-5[1].1`) or an ERL (`PID^1^5^1^1`); `code` is from table 0357, `business` is
    the application's own code (ERR-5, such as `902`)."""

    location: str
    code: str
    text: str
    severity: str = "E"
    business: str = ""


@dataclass(frozen=True, slots=True)
class Ack:
    """An answer read back. `errors` hold what each ERR says; `application_code` is ERR-5 (such as `902`)."""

    code: str
    control_id: str
    text: str = ""
    errors: tuple[AckError, ...] = ()
    own_id: str = ""
    application_code: str = ""


def erl(location: str) -> str:
    """ERR-2 (ERL: segment, sequence, field, repetition, component, subcomponent) of a path or an ERL; '' if neither."""
    match = _PLACE.match(location)
    if not match:
        return location if re.match(r"[A-Z][A-Z0-9]{2}(\^\d*)*\Z", location) else ""
    part = match.groupdict()
    numbers = [part["segment"], part["nth"] or "1", part["field"], part["rep"], part["comp"], part["sub"]]
    if part["field"] and part["comp"] and not part["rep"]:
        numbers[3] = "1"
    return "^".join(number or "" for number in numbers).rstrip("^")


def build(
    original: bytes,
    code: AckCode,
    *,
    now: datetime,
    control_id: str,
    text: str = "",
    err_location: str = "",
    err_code: str = "",
    errors: Sequence[AckError] = (),
    application: str = "PASSERELLE",
    facility: str = "",
) -> bytes:
    """The answer to `original`, whatever those bytes are.

    MSH-3/4 and MSH-5/6 are swapped, MSH-11 and MSH-12 copied, MSH-17 is FRA, MSH-18 is the character set of the
    answer (that of the message when it is one we write, else UTF-8). `err_location`, `err_code` (table 0357) and
    `text` make the first ERR, `errors` more of them; with `errors` alone there are only those. A refusal always has
    one. Versions before 2.5 get ERR-1 and MSA-3 instead. `now` is aware; `control_id` is our MSH-10. `application`
    and `facility` speak when the message names no receiver.
    """
    if code[1] == "A" and not text and not errors:
        made = _from_pattern(original, code, now, control_id, application, facility)
        if made:
            return made
    header = header_of(original)
    own = bool(err_code or err_location or not errors)
    told = [AckError(err_location, err_code or "207", text)] if own else []
    told += [error for error in errors if error not in told]
    charset = header.text("MSH-18") if header else ""
    charset = charset if codec_of(charset) in ("utf-8", "iso8859-1", "iso8859-15") else UTF8
    version = _version(header)
    old = version < (2, 5)
    trigger = _copy(header, "MSH-9.2")
    msh: Fields = {
        3: _hd(header, 5) or application,
        4: _hd(header, 6) or facility,
        5: _hd(header, 3),
        6: _hd(header, 4),
        7: dtm(now),
        9: ("ACK", trigger, "ACK" if trigger and version >= (2, 4) else None),
        10: control_id[:20] if version < (2, 7) else control_id,
        11: _hd(header, 11) or "P",
        12: _hd(header, 12) or "2.5",
        17: "FRA",
        18: charset,
    }
    msa: Fields = {1: code, 2: _control_id(header), 3: told[0].text[:80] if old and told else None}
    body = [("ERR", _err(error, old)) for error in told[:_MAX_ERRORS]] if code[1] != "A" else []
    return message([("MSH", msh), ("MSA", msa), *body], charset=charset).raw


def _from_pattern(
    original: bytes, code: AckCode, now: datetime, control_id: str, application: str, facility: str
) -> bytes:
    """An acceptance of a message with a plain header, as `build` would write it; b'' where it must write it itself.

    A partner's headers differ in MSH-7 and MSH-10: the answer to another one is written once, and these put in.
    """
    match = _PLAIN_HEADER.match(original)
    if match is None or not control_id.isalnum() or not control_id.isascii() or len(control_id) > 20:
        return b""
    fields = match[1].split(b"|")
    if len(fields) < 8 or not (theirs := fields[7]):
        return b""
    fields += [b""] * (16 - len(fields))
    copied = tuple([fields[number - 3] for number in _COPIED])
    before, between, after = _pattern(copied, code, application, facility)
    return b"".join((before, dtm(now).encode(), between, control_id.encode(), after, theirs, b"\r"))


@lru_cache(maxsize=256)
def _pattern(copied: tuple[bytes, ...], code: AckCode, application: str, facility: str) -> tuple[bytes, bytes, bytes]:
    """What stands before MSH-7, between it and MSH-10, and from there to MSA-2, in the answer to such a header."""
    fields = [b""] * 16
    for number, value in zip(_COPIED, copied, strict=True):
        fields[number - 3] = value
    # A header that `_from_pattern` leaves alone, since its MSH-10 is empty.
    header = b"MSH|^~\\&|" + b"|".join(fields)
    made = build(header, code, now=datetime(2000, 1, 1, tzinfo=UTC), control_id="A", application=application,
                 facility=facility)  # fmt: skip
    parts = made.removesuffix(b"\r").split(b"|")
    return b"|".join([*parts[:6], b""]), b"|".join([b"", *parts[7:9], b""]), b"|".join([b"", *parts[10:], b""])


def _err(error: AckError, old: bool) -> Fields:
    place = tuple(erl(error.location).split("^")) if error.location else ()
    condition = ERROR_CONDITIONS.get(error.code, ERROR_CONDITIONS["207"])
    known = error.code if error.code in ERROR_CONDITIONS else "207"
    if old:
        # ELD: segment, sequence, field, and the code as subcomponents of the fourth component.
        where = (*place, "", "", "")[:3]
        return {1: (*where, (known, condition))}
    return {
        2: place or None,
        3: (known, condition, "messageErrorCondition"),
        4: error.severity,
        5: (error.business, None, "HL70533") if error.business else None,
        8: error.text[:250] or condition,
    }


def header_of(original: bytes) -> Message | None:
    """The MSH alone, so that nothing behind it can prevent an answer; None when there is none."""
    start = original.find(b"MSH", 0, _HEADER)
    if start < 0:
        return None
    line = re.split(rb"[\r\n]", original[start : start + _HEADER], maxsplit=1)[0]
    try:
        return parse(line + b"\r")
    except Unreadable:
        return None


def stops_in(raw: bytes) -> str:
    """The path of the segment in which these bytes of an unfinished message stop, such as `OBX[2]`; '' when unknown."""
    try:
        last = parse(raw).segments[-1]
    except Unreadable:
        return ""
    return f"{last.name}[{last.number}]" if last.name else ""


def control_id_of(raw: bytes) -> str:
    """MSH-10 as `read` would find it in MSA-2 of the answer; '' when there is none."""
    return _copy(header_of(raw), "MSH-10")


def wanted(raw: bytes) -> tuple[str, str] | None:
    """(MSH-15, MSH-16) in capitals when the message asks for enhanced mode, None for original mode.

    HL7 v2.5 2.9.2: enhanced mode as soon as one of the two is valued; an empty one then means NE.
    """
    accept, application = (_copy(header_of(raw), f"MSH-{n}").upper() for n in (15, 16))
    return (accept or "NE", application or "NE") if accept or application else None


def due(condition: str, *, good: bool) -> bool:
    """Whether an acknowledgement is to be sent under a condition of HL7 table 0155 (AL, NE, ER, SU)."""
    return {"AL": True, "NE": False, "ER": not good, "SU": good}.get(condition, True)


def _copy(header: Message | None, where: str) -> str:
    return header.text(where)[:_ECHO] if header else ""


def _control_id(header: Message | None) -> str | Raw:
    """MSH-10 exactly as sent where our delimiters are those of the message: partners compare bytes."""
    if not header:
        return ""
    raw = header.at("MSH-10").raw
    if header.separators == STANDARD and len(raw) <= _ECHO and raw.isascii() and raw.decode("ascii").isprintable():
        return Raw(raw)
    return header.at("MSH-10").whole.strip()[:_ECHO]


def _hd(header: Message | None, number: int) -> tuple[str | None, ...] | None:
    """The components of an MSH field of the message, to be written again with our own delimiters."""
    if not header:
        return None
    value = header.at(f"MSH-{number}").repetition(1)
    if not value.valued or value.end - value.start > _ECHO:
        return None
    return tuple(part.text or None for part in value.parts())


def _version(header: Message | None) -> tuple[int, ...]:
    match = re.match(r"(\d{1,2})\.(\d{1,2})", header.version) if header else None
    return (int(match[1]), int(match[2])) if match else (2, 5)


def read(raw: bytes) -> Ack:
    """What an answer says, from whatever the partner calls an answer.

    The character set is that of the answer itself. Raises Unreadable when there is no MSA with a code.
    """
    msg = parse(raw)
    msa = msg.first("MSA")
    if msa is None or not msa.text(1):
        raise Unreadable("the answer has no MSA-1", location="MSA^1^1", code="101")
    found = msg.all("ERR")
    errors = tuple(_error(err) for err in found[:_MAX_ERRORS])
    text = msa.field(3).whole.strip() or next((error.text for error in errors if error.text), "")
    business = next((err.text(5) for err in found if err.text(5)), "")
    return Ack(msa.text(1).upper(), msa.text(2), text, errors, msg.control_id, business)


def _error(err: Segment) -> AckError:
    code = err.text(3) or err.text(1, 4)
    # ERR-8 is the text for the user; partners also use ERR-7, ERR-5.2 or only the text of the table.
    options = (err.field(8).whole, err.field(7).whole, err.text(5, 2), err.text(3, 2), err.text(1, 4, 2))
    text = next((option.strip() for option in options if option.strip()), "")
    place = err.field(2) if err.field(2).valued else err.field(1)
    return AckError(place.encoded.strip(), code, text, err.text(4) or "E", err.text(5))
