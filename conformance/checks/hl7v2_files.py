"""HL7 v2 messages in files, without a partner: header, charset, escapes, identities, movements, documents.

Point `--target hl7v2-files=FOLDER` at samples of a system, or at what `hl7v2-sender` recorded. A check looks at every
message it concerns; it is skipped where there is none.

HL7 v2.5 chapter 2; IHE PAM National Extension France 2.11; CI-SIS "Transmission d'un document CDA-R2 en HL7 v2" 2.1
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from conformance.checks.hl7v2_acknowledgement import CI_SIS, IHE, PAM
from conformance.message import CODECS, EVENTS, Message, component
from conformance.runner import check
from conformance.target import Context
from conformance.verdict import Failed, Skipped

Judge = Callable[[Message], Iterator[str]]
INS_AUTHORITIES = {f"1.2.250.1.213.1.4.{last}" for last in (8, 9, 10, 11)}
_TIME = re.compile(r"\d{4}(\d\d(\d\d(\d\d(\d\d(\d\d(\.\d{1,4})?)?)?)?)?)?([+-]\d{4})?")
_ESCAPE = re.compile(r"\\(?:[FSTREHN]|\.[a-z]{2}[+-]?\d*|X(?:[0-9A-F]{2})+|[CM](?:[0-9A-F]{2}){2,3}|Z[^\\]*)\\")
_NATURES = {"S", "H", "M", "L", "D", "SM", "SH", "MH", "LD", "HMS", "C"}
_ACTIONS = {"T02": ("NW", "F"), "T10": ("RO", "C"), "T04": ("CA", "D")}


def judged(concerns: str = "", **about: Any) -> Callable[[Judge], Judge]:
    """Registers a check of every message whose MSH-9 begins with `concerns`: what the function yields is wrong."""

    def register(judge: Judge) -> Judge:
        def run(at: Context) -> None:
            concerned = [one for one in at.messages() if one.kind.startswith(concerns)]
            if not concerned:
                raise Skipped(f"none of the messages is {concerns or 'there'}")
            wrong = []
            for one in concerned:
                problems = [f"{one.name}: {problem}" for problem in judge(one)]
                if problems:
                    at.transcript.received(one.text.replace("\r", "\n"))
                wrong += problems
            if wrong:
                more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
                raise Failed(str(about["title"]), "; ".join(wrong[:5]) + more)

        check(wire="hl7v2-files", **about)(run)
        return judge

    return register


@judged(
    id="hl7v2-files.segments",
    title="Every segment has a name of three letters or digits and ends with CR",
    verifies=("HL7 v2.5 2.5.1 (segments) and 2.6 (message construction)",),
    hint="Editors turn CR into LF: export the bytes that went over the wire.",
)
def segments(message: Message) -> Iterator[str]:
    if b"\n" in message.raw:
        yield "LF between segments"
    if not message.raw.endswith(b"\r"):
        yield "the last segment does not end with CR"
    names = {fields[0] for fields in message.segments}
    yield from (f"a segment called {name[:20]!r}" for name in names if not re.fullmatch("[A-Z][A-Z0-9]{2}", name))


@judged(
    id="hl7v2-files.message-type",
    title="MSH-9 has code, event and structure, and the structure is that of the event",
    verifies=("HL7 v2.5 2.15.9.9 (MSH-9) and table 0354", f"{IHE}#C.2.2"),
)
def message_type(message: Message) -> Iterator[str]:
    found = message.field("MSH", 9)
    known = EVENTS.get(message.kind, ("",))[0]
    if len(found.split("^")) != 3 or (known and found.split("^")[2] != known):
        yield f"MSH-9 {found!r}" + (f" where {message.kind}^{known} is expected" if known else "")


@judged(
    id="hl7v2-files.required-segments",
    title="The segments that the event requires are there",
    verifies=(PAM, CI_SIS),
)
def required_segments(message: Message) -> Iterator[str]:
    present = {fields[0] for fields in message.segments}
    missing = [name for name in EVENTS.get(message.kind, ("", ()))[1] if name not in present]
    if missing:
        yield f"{message.kind} without {', '.join(missing)}"


@judged(
    id="hl7v2-files.message-time",
    title="MSH-7 is a moment, to the second at least",
    verifies=("HL7 v2.5 2.15.9.7 (MSH-7) and 2.A.77 (TS)", f"{IHE}#C.2.2"),
)
def message_time(message: Message) -> Iterator[str]:
    found = message.field("MSH", 7)
    if not _TIME.fullmatch(found) or len(re.split("[+.-]", found)[0]) < 14:
        yield f"MSH-7 {found!r}"


@judged(
    id="hl7v2-files.version",
    title="MSH-12 is the version of the profile: 2.5^FRA^2.11 for PAM, 2.5 or 2.6 for documents",
    verifies=(PAM, CI_SIS),
)
def version(message: Message) -> Iterator[str]:
    code, found = message.kind[:3], message.field("MSH", 12)
    wanted = {"ADT": ("2.5^FRA^2.11",), "MDM": ("2.6",), "ZAM": ("2.6",), "ORU": ("2.5", "2.5.1", "2.6")}.get(code)
    if wanted and found not in wanted:
        yield f"{message.kind} with MSH-12 {found!r}"


@judged(
    id="hl7v2-files.country",
    title="MSH-17 is FRA",
    verifies=(PAM, CI_SIS),
)
def country(message: Message) -> Iterator[str]:
    if message.field("MSH", 17) != "FRA":
        yield f"MSH-17 {message.field('MSH', 17)!r}"


@judged(
    id="hl7v2-files.charset",
    title="MSH-18 names the charset that the bytes are in",
    verifies=("HL7 v2.5 2.15.9.18 (MSH-18) and table 0211", PAM),
    hint="UNICODE UTF-8 and 8859/15 are the two that French receivers must read.",
)
def charset(message: Message) -> Iterator[str]:
    if message.charset not in CODECS:
        yield f"MSH-18 {message.charset!r}"
        return
    try:
        text = message.raw.decode(CODECS[message.charset])
    except UnicodeDecodeError as error:
        yield f"byte {message.raw[error.start]:#04x} at {error.start} is not {message.charset or 'ASCII'}"
        return
    # Two characters that no name holds side by side, but UTF-8 read as ISO 8859 does.
    if message.charset.startswith("8859") and re.search("\u00c3[\u0080-\u00bf]", text):
        yield f"UTF-8 in a message that says {message.charset}"


@judged(
    id="hl7v2-files.profile",
    title="MSH-21 names the profile the message follows",
    verifies=(PAM, CI_SIS),
)
def profile(message: Message) -> Iterator[str]:
    if not message.field("MSH", 21):
        yield "MSH-21 is empty"


@judged(
    id="hl7v2-files.escapes",
    title="Every backslash opens or closes an escape sequence",
    verifies=("HL7 v2.5 2.7 (use of escape sequences in text fields)",),
    hint="A backslash of the text itself is written \\E\\.",
)
def escapes(message: Message) -> Iterator[str]:
    for fields in message.segments:
        for number, value in enumerate(fields):
            # MSH-2 declares the backslash; encapsulated data of OBX-5 has a check of its own.
            if (fields[0], number) != ("MSH", 2) and "\\" in _ESCAPE.sub("", value):
                yield f"{fields[0]}-{number} {value[:60]!r}"


@judged(
    id="hl7v2-files.patient-ids",
    title="Every identifier in PID-3 has an assigning authority and a type",
    verifies=(PAM, "HL7 v2.5 2.A.14 (CX)"),
)
def patient_ids(message: Message) -> Iterator[str]:
    if message.kind.startswith("ZAM"):
        return
    found = message.repetitions("PID", 3)
    if not found:
        yield "no identifier in PID-3"
    for one in found:
        if not (component(one, 1) and component(one, 4) and component(one, 5)):
            yield f"PID-3 {'^'.join(one)[:60]!r}"


def _ins(message: Message) -> list[list[str]]:
    return [one for one in message.repetitions("PID", 3) if component(one, 5) == "INS" and component(one, 1) != '""']


@judged(
    id="hl7v2-files.ins-status",
    title="An INS is sent with a qualified identity alone: PID-32 says VALI",
    verifies=(f"{PAM} (PID-3 and PID-32)", "Référentiel identifiant national de santé, version 2"),
    hint="Below VALI the INS stays at home: the receiver would have to drop it.",
)
def ins_status(message: Message) -> Iterator[str]:
    status = [one[0] for one in message.repetitions("PID", 32)]
    if _ins(message) and "VALI" not in status:
        yield f"an INS with PID-32 {message.field('PID', 32)!r}"


@judged(
    id="hl7v2-files.ins-form",
    title="An INS has 15 characters with its key, and one of the four authorities of the ANS",
    verifies=(f"{PAM} (PID-3)", "Référentiel identifiant national de santé, version 2"),
)
def ins_form(message: Message) -> Iterator[str]:
    for one in _ins(message):
        value, authority = component(one, 1), component(one, 4).split("&")
        if component(authority, 2) not in INS_AUTHORITIES or component(authority, 3) != "ISO":
            yield f"an INS of the authority {component(one, 4)!r}"
        number = value[:13].replace("2A", "19").replace("2B", "18")
        if not (len(value) == 15 and number.isdigit() and value[13:].isdigit()):
            yield f"an INS of {len(value)} characters"
        elif 97 - int(number) % 97 != int(value[13:]):
            yield "an INS whose key is wrong"


@judged(
    id="hl7v2-files.strict-traits",
    title="A qualified identity comes with its strict traits: birth name, first given name, date, sex",
    verifies=(f"{PAM} (PID-5, PID-7, PID-8)", "Référentiel national d'identitovigilance"),
    hint="PID-5 of type L holds the birth name; the used name goes into a repetition of type D.",
)
def strict_traits(message: Message) -> Iterator[str]:
    if "VALI" not in [one[0] for one in message.repetitions("PID", 32)]:
        return
    legal = [one for one in message.repetitions("PID", 5) if component(one, 7) == "L"]
    if not legal or not (component(legal[0], 1) and component(legal[0], 2)):
        yield "PID-5 without birth name and given name of type L"
    if not re.fullmatch(r"\d{8}.*", message.field("PID", 7)):
        yield f"PID-7 {message.field('PID', 7)!r}"
    if message.field("PID", 8) not in {"F", "M", "U"}:
        yield f"PID-8 {message.field('PID', 8)!r}"


@judged(
    "ADT",
    id="hl7v2-files.movement",
    title="ZBE tells the movement: identifier with its authority, moment, action, nature",
    verifies=(f"{PAM} (ZBE)",),
)
def movement(message: Message) -> Iterator[str]:
    for fields in message.all("ZBE"):
        one = [*fields, *[""] * 10]
        if not (one[1].split("^")[0] and "^" in one[1]):
            yield f"ZBE-1 {one[1]!r}"
        if not _TIME.fullmatch(one[2]):
            yield f"ZBE-2 {one[2]!r}"
        if one[4] not in {"INSERT", "UPDATE", "CANCEL"}:
            yield f"ZBE-4 {one[4]!r}"
        if one[4] in {"UPDATE", "CANCEL"} and not one[6]:
            yield f"ZBE-6 is empty beside ZBE-4 {one[4]}"
        if one[9] not in _NATURES:
            yield f"ZBE-9 {one[9]!r}"


@judged(
    id="hl7v2-files.coded",
    title="A coded OBX-3 and OBR-4 names its coding system",
    verifies=(f"{CI_SIS} (CE and CWE: component 3 is required where component 1 is)",),
)
def coded(message: Message) -> Iterator[str]:
    for name, number in (("OBX", 3), ("OBR", 4)):
        for fields in message.all(name):
            parts = fields[number].split("^") if len(fields) > number else []
            if component(parts, 1) and not component(parts, 3):
                yield f"{name}-{number} {'^'.join(parts)[:60]!r}"


@judged(
    "MDM",
    id="hl7v2-files.document-action",
    title="Trigger event, ORC-1 and OBX-11 tell the same action on the document",
    verifies=(f"{CI_SIS} (messages: MDM)",),
    hint="T02 NW F creates, T10 RO C replaces, T04 CA D deletes.",
)
def document_action(message: Message) -> Iterator[str]:
    wanted = _ACTIONS.get(message.kind[4:])
    orders, results = message.field("ORC", 1), message.field("OBX", 11)
    if wanted and orders and (orders, results) != wanted:
        yield f"{message.kind} with ORC-1 {orders!r} and OBX-11 {results!r}"


@judged(
    id="hl7v2-files.document-data",
    title="A document in OBX-5 (ED) is base64 and not empty",
    verifies=("HL7 v2.5 2.A.24 (ED)", CI_SIS),
)
def document_data(message: Message) -> Iterator[str]:
    for fields in message.all("OBX"):
        if len(fields) > 5 and fields[2] == "ED":
            data = component(fields[5].split("^"), 5)
            try:
                sound = bool(base64.b64decode(data, validate=True))
            except (binascii.Error, ValueError):
                sound = False
            if not sound:
                yield f"OBX-5 of {len(data)} characters is no base64 of a document"


@judged(
    id="hl7v2-files.routing",
    title="The routing flags do not contradict each other",
    verifies=(f"{CI_SIS} (règles de gestion MSSanté)",),
    hint="A document invisible to the patient is not mailed to the patient; one hidden from professionals not to them.",
)
def routing(message: Message) -> Iterator[str]:
    flags = {
        fields[3].split("^")[0]: fields[5].split("^")[0]
        for fields in message.all("OBX")
        if len(fields) > 5 and fields[3].endswith("^MetaDMPMSS")
    }
    for hidden, sent in (("INVISIBLE_PATIENT", "DESTMSSANTEPAT"), ("MASQUE_PS", "DESTMSSANTEPS")):
        if flags.get(hidden) == "Y" and flags.get(sent) == "Y":
            yield f"{hidden} Y with {sent} Y"


@check(
    id="hl7v2-files.control-ids",
    title="MSH-10 has 1 to 20 characters (199 from v2.6 on) and no two messages share one",
    verifies=("HL7 v2.5 2.15.9.10 (MSH-10)", f"{IHE}#C.2.2"),
    wire="hl7v2-files",
)
def control_ids(at: Context) -> None:
    found = at.messages()
    for one in found:
        most = 199 if one.field("MSH", 12) >= "2.6" else 20
        if not 0 < len(one.control_id) <= most:
            at.transcript.received(one.text.replace("\r", "\n"))
            raise Failed(f"an MSH-10 of 1 to {most} characters", f"{one.name}: MSH-10 {one.control_id!r}")
    twice = [name for name, count in Counter(one.control_id for one in found).items() if count > 1]
    for one in found:
        if one.control_id in twice:
            at.transcript.received(f"{one.name}\n{one.text}".replace("\r", "\n"))
    if twice:
        raise Failed("an MSH-10 for each message", f"{', '.join(twice[:5])} more than once")
