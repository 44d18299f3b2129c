"""The interface document a partner gets: made from the messages themselves, so that it cannot say less than they do.

Hides how a message is taken apart into rows. Every segment and every field that stands in a sample becomes a row, with
its name from `FIELDS`; a field without a name there is an error, not a gap. Bytes of documents are cut when shown.

Sources of the names: HL7 v2.5 chapters 2, 3, 4, 7, 9 and 10, v2.6 chapter 9, v2.9 chapter 7 (PRT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hl7v2.message import Message, parse
from hl7v2.text import codec_of
from mappers.fhir_to_hl7v2_orders import ASKER, MODALITY, ORGANIZATION, PROCEDURE, PROCEDURES, REGION
from mappers.fhir_to_hl7v2_segments import METADATA, PERSONS, ROLES, STRUCTURES
from mappers.fhir_to_identity import INS_OIDS
from mappers.hl7v2_orders_to_fhir import COMMENTS
from mappers.identity import Site
from mappers.interface_sample import Sample

FIELDS: Final[Mapping[str, Mapping[int, str]]] = {
    "MSH": {
        1: "Field separator", 2: "Encoding characters", 3: "Sending application", 4: "Sending facility",
        5: "Receiving application", 6: "Receiving facility", 7: "Date/time of message", 9: "Message type",
        10: "Message control id: the delivery's id, unique for ever; a resend has the same",
        11: "Processing id: P for a production site, T for a test site", 12: "Version id", 17: "Country code",
        18: "Character set",
        21: "Message profile; an order without a coded modality and region names none",
    },
    "EVN": {1: "Event type code", 2: "Recorded date/time", 6: "Event occurred: the signature"},
    "PID": {
        1: "Set id", 3: "Patient identifiers: INS first, only when qualified, then the local ones",
        5: "Names: birth name (L), used name (D)", 7: "Date of birth", 8: "Sex",
        11: "Place of birth (BDL) with its INSEE code", 18: "Account number", 31: "Identity unknown indicator",
        32: "Identity reliability: VALI goes with an INS",
    },
    "PV1": {1: "Set id", 2: "Patient class: N when no stay is known", 19: "Visit number", 44: "Admit", 45: "Discharge"},
    "ORC": {
        1: "Order control", 2: "Placer order number: as it came with the order, else our request's id",
        3: "Filler order number: the document set, the same for every version", 9: "Date/time of transaction",
        12: "Ordering provider; in an answer the expert", 16: "Reason of a refusal or a cancellation",
        17: "Kind of organisation", 21: "The structure of who is named in ORC-12",
    },
    "OBR": {
        1: "Set id", 2: "Placer order number, as ORC-2", 3: "Filler order number, as ORC-3",
        4: "Document type or procedure", 5: "Priority", 7: "Start of the opinion", 8: "End of the opinion",
        13: "Relevant clinical information: why it is asked", 16: "Ordering provider; in an answer the expert",
        22: "Signature", 25: "Result status", 32: "Principal result interpreter: the expert",
    },
    "TXA": {
        1: "Set id", 2: "Document type", 3: "Content presentation", 4: "Activity date/time", 6: "Origination date/time",
        9: "Originator", 12: "Unique document number: the OID of this version", 13: "Parent document number",
        14: "Placer order number", 16: "File name: the title", 17: "Completion status",
        18: "Confidentiality status, when restricted", 19: "Availability status",
        22: "Authenticator: the expert who signed",
    },
    "OBX": {
        1: "Set id", 2: "Value type",
        3: "Observation identifier: document type, a code of MetaDMPMSS, or in an order one of TLR_OBSERVATION",
        4: "Sub-id: n.1 a region, n.2 what makes it more precise",
        5: "Value: the document in base64, or Y/N; in an order the modality or the region",
        11: "Result status", 14: "Date/time of the observation",
    },
    "PRT": {2: "Action code", 4: "Role: SB sender, RCT recipient, REPLY reply-to", 5: "Person", 8: "Organisation",
            15: "MSSanté address"},
    "SCH": {
        1: "Placer appointment id: the agenda's own", 2: "Filler appointment id: ours, unless the agenda gave one",
        6: "Reason of the event", 7: "Appointment reason", 8: "Appointment type", 9: "Duration", 10: "Its unit",
        11: "Timing: start (.4) and end (.5)", 16: "Contact: the first professional", 20: "Entered by: the same",
        25: "Filler status", 26: "Placer order number of the request",
    },
    "NTE": {1: "Set id", 3: "Comment", 4: "What it is about, where the note says so"},
    "RGS": {1: "Set id", 2: "Segment action code"},
    "AIS": {1: "Set id", 2: "Segment action code", 3: "Service", 4: "Start"},
    "AIP": {1: "Set id", 2: "Segment action code", 3: "Professional", 6: "Start"},
}  # fmt: skip
TABLES: Final = (
    ("HL7 0103 (MSH-11)", "P of a production site, T of a test site"),
    ("HL7 0203 (PID-3.5, PID-18.5, PV1-19.5)", "INS, and the types of the local numbers above"),
    ("HL7 0001 (PID-8)", "F M U"),
    ("HL7 0136 (PID-31)", "N"),
    ("HL7 0445 (PID-32)", "VALI with an INS, else PROV"),
    ("HL7 0004 (PV1-2)", "E I O R N"),
    (
        "HL7 0119 (ORC-1)",
        "NW RO CA: a report, its correction, its withdrawal; RE of each in a plain ORU; "
        "NW CA of an order; OK OC of an answer",
    ),
    ("HL7 0485 (OBR-5)", "S A R"),
    ("HL7 0085 (OBX-11)", "F C D: a report, its correction, its withdrawal; O: a detail of an order"),
    ("HL7 0123 (OBR-25)", "F C X, the same"),
    (
        "TLR_OBR_PROCEDURE (OBR-4 of orders and answers)",
        ", ".join((*(one[0] for one in PROCEDURES.values()), PROCEDURE[0])),
    ),
    ("TLR_TYPE_ORGANISATION (ORC-17)", f"{ASKER[0]} of an order, {ORGANIZATION[0]} of an answer"),
    ("HL7 0191 (TXA-3)", "TEXT of a CDA, AP of a PDF"),
    ("HL7 0271 (TXA-17)", "AU"),
    ("HL7 0272 (TXA-18)", "R, V; empty for N, the usual one"),
    ("HL7 0273 (TXA-19)", "AV, CA of a withdrawal"),
    ("HL7 0278 (SCH-25)", "Booked, Started, Complete, Noshow, Cancelled, Deleted"),
    ("HL7 0206 (RGS-2, AIS-2, AIP-2)", "A of S12, U of S13 and S14, D of S15"),
    ("HL7 0125 (OBX-2)", "ED, CWE; CE before 2.6"),
    ("HL7 0287 (PRT-2)", "UC"),
    ("participation (PRT-4)", ", ".join(ROLES)),
    ("ISO+ (SCH-10)", "MIN"),
    ("MetaDMPMSS (OBX-3)", ", ".join(code for code, _ in METADATA)),
    (
        "expandedYes-NoIndicator (OBX-5)",
        "Y or N. MASQUE_PS, INVISIBLE_PATIENT, INVISIBLE_REP_LEGAUX Y: who may not see the report. MODIF_CONF_CODE Y: "
        "a correction that others may see than what it replaces. DESTDMP and ACK_RECEPTION Y: a platform is to feed "
        "the DMP, as it is for a patient with a qualified INS and an open, unopposed DMP. All others always N",
    ),
    ("TLR_OBSERVATION (OBX-3)", f"{MODALITY}, {REGION}"),
    ("HL7 0364 (NTE-4)", ", ".join(COMMENTS)),
)
_ANSWERS: Final = (
    ("AA, CA", "Handed over. The next message of this destination follows."),
    ("AR, CR", "Not now: the same bytes come again, after a pause that doubles. Nothing overtakes them."),
    ("AE, CE", "Refused for good: a person looks; this message is not sent again as it is."),
    ("none, half of one, or one with another MSA-2", "As the destination's policy says, below."),
)
_SHOWN: Final = 60
_PLATFORMS: Final = frozenset({"push-2.1", "push-2.1-oru"})
_FEEDING: Final = (
    ("When", "our message has DESTDMP Y and ACK_RECEPTION Y; the delivery stays open until one comes"),
    ("Message", "ZAM^Z01, to a port of ours (`interface-document mllp:NAME` tells how it is read)"),
    ("MSH-3, MSH-4", "`{application}`, `{facility}`: as MSH-5 and MSH-6 of our message"),
    ("OBX-4", "MSH-10 of our message, as it is"),
    ("OBX-3, OBX-5", "ACK_RECEPTION_DMP; Y: the DMP has the document, N: it refused, and ERR says why"),
)
_REAL: Final = (
    "The samples are of nobody: a production site has no INS for them, so they show PROV, DESTDMP N and "
    "ACK_RECEPTION N. A real message about a patient with a qualified INS has it first in PID-3, VALI in PID-32, and "
    "to a platform DESTDMP Y and ACK_RECEPTION Y."
)


@dataclass(frozen=True, slots=True)
class Partner:
    """A destination as the document names it. `on_silence` is what follows an answer that does not come
    within `answer_seconds`. `keep_open_seconds`: how long an idle connection is kept, 0 = not at all."""

    name: str
    reference: str
    address: str
    profiles: tuple[str, ...]
    application: str
    facility: str
    on_silence: str
    answer_seconds: float
    keep_open_seconds: float


def document(partner: Partner, site: Site, samples: Mapping[str, Sequence[Sample]], version: str) -> str:
    """The Markdown of one destination; `samples` by profile. Raises ValueError for a field that has no name."""
    lines = [
        f"# HL7 v2 interface: {partner.name}",
        "",
        f"From {site.name} ({site.application}, {site.facility}) to {partner.reference}; software version {version}. "
        "Made from the messages this version writes; people and numbers in it are fictitious.",
        "",
        *_connection(partner, site),
        *_acknowledgements(partner),
        *(_business(partner) if _PLATFORMS & {*partner.profiles} else ()),
        *_identifiers(site),
        "## Tables",
        "",
        *table(("Table", "Values sent"), TABLES),
    ]
    lines += [_REAL, ""] if site.mode == "production" else []
    for profile, made in samples.items():
        lines += [f"## Messages of profile `{profile}`", ""]
        parsed = [(one, parse(one.raw)) for one in made]
        for event, msg in {one.event: msg for one, msg in parsed}.items():
            names = " ".join(dict.fromkeys(segment.name for segment in msg.segments))
            lines.append(f"- `{msg.at('MSH-9').encoded}` when {event}: {names}")
        lines += ["", *fields_of([msg for _, msg in parsed], FIELDS)]
        for one, msg in parsed:
            lines += [f"Sample, {one.event}:", "", "```", *shown(msg), "```", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _connection(partner: Partner, site: Site) -> list[str]:
    rows = (
        ("Address", f"`{partner.address}`"),
        ("Transport", "MLLP (0x0B message 0x1C 0x0D), one message at a time, in order; "
                      "`mllps:` is MLLP inside TLS 1.2 or later"),
        ("Connection", f"kept for {partner.keep_open_seconds:g} s after an answer" if partner.keep_open_seconds
                       else "one a message"),
        ("MSH-3, MSH-4", f"`{site.application}`, `{site.facility}`"),
        ("MSH-5, MSH-6", f"`{partner.application}`, `{partner.facility}`"),
        ("MSH-11", "P" if site.mode == "production" else "T"),
        ("Character set (MSH-18)", site.charset),
        ("Segments", "end with CR; separators `|^~\\&`"),
    )  # fmt: skip
    return ["## Connection", "", *table(("What", "Value"), rows)]


def _acknowledgements(partner: Partner) -> list[str]:
    rest = (
        f"Without an answer within {partner.answer_seconds:g} s: {partner.on_silence}. Delivery is at least once: "
        "know a repetition by MSH-10."
    )
    return ["## Acknowledgements expected", "", *table(("MSA-1", "What we do"), _ANSWERS), rest, ""]


def _business(partner: Partner) -> list[str]:
    rows = [(what, text.format(application=partner.application, facility=partner.facility)) for what, text in _FEEDING]
    return ["## Business acknowledgements expected", "", *table(("What", "Value"), rows)]


def _identifiers(site: Site) -> list[str]:
    rows = [(f"INS ({kind})", oid) for kind, oid in zip(("NIR", "NIA", "test", "demonstration"), INS_OIDS, strict=True)]
    rows += [("Professionals (`8` + RPPS, type IDNPS)", PERSONS[1]), ("Structures (FINEG)", STRUCTURES[1])]
    rows += [(f"{one.name} ({one.cx_type})", f"{'&'.join(one.hd)} = {one.oid}") for one in site.namespaces
             if one.cx_type != "INS"]  # fmt: skip
    return ["## Identifiers", "", *table(("What", "Authority"), rows)]


def fields_of(
    messages: Sequence[Message], names: Mapping[str, Mapping[int, str]], *, all_named: bool = False
) -> list[str]:
    """A row for every field that stands in a message, with `all_named` for every other one of `names` too. Raises
    ValueError for a field that `names` does not name."""
    seen: dict[tuple[str, int], str] = {}
    order: list[str] = []
    for msg in messages:
        for segment in msg.segments:
            if segment.name not in order:
                order.append(segment.name)
            for number, value in segment.fields():
                if value.encoded:
                    seen.setdefault((segment.name, number), value.encoded)
    if all_named:
        seen = {(name, number): "" for name in names for number in names[name]} | seen
        order += [name for name in names if name not in order]
    rows = []
    for name in order:
        for number in sorted(n for held, n in seen if held == name):
            sent = f"`{_cut(text)}`" if (text := seen[name, number]) else ""
            rows.append((f"{name}-{number}", name_of(name, number, names), sent))
    return table(("Field", "Name", "As sent"), rows)


def name_of(segment: str, number: int, names: Mapping[str, Mapping[int, str]] = FIELDS) -> str:
    """The name of a field. Raises ValueError for one nobody named."""
    try:
        return names[segment][number]
    except KeyError:
        raise ValueError(f"{segment}-{number} is sent and has no name") from None


def shown(msg: Message) -> list[str]:
    """The segments of a message, long fields cut."""
    codec = codec_of(msg.text("MSH-18")) or "utf-8"
    lines = [segment.raw.decode(codec, "replace").rstrip("\r") for segment in msg.segments]
    return ["|".join(_cut(field, 160) for field in line.split("|")) for line in lines]


def _cut(text: str, most: int = _SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table and the blank line behind it."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]
