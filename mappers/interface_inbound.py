"""The interface document of a port: what a partner may send there, what is read, and what is answered.

Hides where the rules stand. Events, required segments and fields, codes and profiles are read from the tables that
judge the messages (`hl7v2.tables`, `hl7v2.overlays`), fields and samples from messages that are taken in as they stand.

Sources: those of the tables; CI-SIS error codes 900 to 906.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hl7v2 import overlays, tables
from hl7v2.message import parse
from mappers.fhir_to_hl7v2_segments import PERSONS, STRUCTURES
from mappers.fhir_to_identity import INS_OIDS
from mappers.identity import Site
from mappers.interface_document import FIELDS, fields_of, shown, table
from mappers.interface_inbound_sample import inbound

_ORDERING: Final = "Ordering or attending professional (RPPS)"
READ: Final[Mapping[str, Mapping[int, str]]] = {
    **FIELDS,
    "MSH": {**FIELDS["MSH"], 10: "Message control id: unique for ever; a resend has the same and the same bytes",
            15: "Commit acknowledgement wanted, on a port in enhanced mode", 16: "The application's answer wanted"},
    "EVN": {1: "Event type, where MSH-9 names none", 2: "Recorded date/time", 6: "When it happened"},
    "PID": {**FIELDS["PID"], 3: "Patient identifiers: local ones in a declared namespace; INS only with VALI",
            13: "Telephone and MSSanté address", 14: "The same at work", 16: "Marital status",
            18: "Account number (dossier), required by PAM France in movements", 23: "Place of birth, without a BDL",
            24: "Multiple birth", 25: "Which of them", 29: "Date of death", 30: "Death"},
    "PV1": {**FIELDS["PV1"], 2: "Patient class", 3: "Assigned location", 7: "Attending doctor",
            17: "Admitting doctor", 19: "Visit number: the stay is found again by it", 36: "How the stay ended",
            44: "Admit", 45: "Discharge"},
    "MRG": {1: "The identifiers that are given up", 3: "The dossier that moves (A44)", 5: "The stay that moves (A44)"},
    "ROL": {1: "Id", 2: "Action", 3: "Role: ODRP is the declared médecin traitant", 4: "Person"},
    "ZBE": {1: "Movement id", 2: "Start", 4: "INSERT, UPDATE or CANCEL", 5: "Historic: Y leaves the present alone",
            6: "The event that a Z99 corrects", 7: "Medical unit (UF)", 8: "Nursing unit (UF)", 9: "Nature"},
    "ZFD": {1: "Date of birth as far as it is known (date lunaire)", 4: "Date of birth corrected",
            5: "How the identity was obtained", 6: "When INSi was asked", 7: "What proved it"},
    "ZFV": {1: "Where the patient comes from (FINESS)", 9: "How the stay ended, in the hospital's own words"},
    "ZFA": {1: "DMP status", 2: "Date of it", 3: "When it was closed",
            9: "Feeding of the DMP (INO: not opposed)", 10: "Date of it",
            11: "Consultation of the DMP", 12: "Date of it"},
    "ORC": {1: "Order control", 2: "Placer order number: the request is found again by it", 3: "Filler order number",
            7: "Urgency (.6)", 9: "Date/time of transaction", 12: _ORDERING, 14: "Call-back number: noted, not kept",
            16: "Reason", 17: "Kind of organisation", 21: "The asking structure"},
    "TQ1": {6: "How long the images are kept, in days", 7: "When the examination was made", 9: "Urgency"},
    "OBR": {1: "Set id", 2: "Placer order number, as ORC-2", 3: "Filler order number: a correction has the same",
            4: "What was asked for or examined", 5: "Urgency", 6: "When it is wanted", 7: "Observation date/time",
            8: "End of it", 13: "Reason of the request", 16: _ORDERING, 22: "Reported", 24: "Section",
            25: "Result status", 27: "Urgency (.6)", 31: "Reason, coded", 32: "Who interprets"},
    "OBX": {1: "Set id", 2: "Value type", 3: "What was observed, or a code of a profile's table",
            4: "Group, or the message a business acknowledgement is about", 5: "Value", 6: "Unit", 7: "Limits",
            8: "Interpretation", 11: "Status", 14: "When it was observed", 16: "Who observed", 17: "Method",
            20: "Part of the body", 21: "The observation's own number", 23: "The structure that observed"},
    "SPM": {2: "Specimen numbers", 4: "Kind", 8: "Where it was taken", 17: "When", 18: "When it arrived",
            20: "Whether there is enough of it"},
    "ERR": {3: "Code, without ERR-5", 5: "Code of a business acknowledgement", 7: "Diagnostics", 8: "What to say"},
    "TXA": {1: "Set id", 2: "Document type", 3: "Content presentation", 4: "Activity date/time",
            6: "Date of it", 7: "When it was written down", 9: "Author", 12: "Unique document number",
            13: "The document it replaces", 14: "Placer order number of the request",
            16: "File name: the title, without TXA-25", 17: "Completion status", 25: "Title"},
    "SCH": {**FIELDS["SCH"], 16: "Contact", 20: "Entered by", 26: "Placer order number of the request",
            27: "Filler order number of the request"},
    "IPC": {1: "Accession number", 2: "Requested procedure", 3: "Study Instance UID", 4: "Procedure step",
            5: "Modality"},
    "NTE": {1: "Set id", 3: "Comment", 4: "Kind of comment"},
    "RGS": {1: "Set id"},
    "AIS": {1: "Set id", 3: "Service", 4: "Start"},
    "AIP": {1: "Set id", 3: "Professional", 4: "Role", 6: "Start"},
    "AIL": {1: "Set id", 3: "Place"},
    "AIG": {1: "Set id", 3: "Device or group"},
}  # fmt: skip
_AA: Final = {
    "integrated": "taken in: it is stored, and everything it says is written",
    "stored": "stored safely; it is taken in afterwards, in the order of arrival",
    "validated": "stored and found sound; it is taken in afterwards, in the order of arrival",
}
_BUSINESS: Final = (
    ("900", "the request or document named is unknown, of another patient, or not the latest version"),
    ("901", "this sender may not answer for the group asked, or neither wrote nor sent the document"),
    ("902", "unknown patient"),
    ("904", "the patient of the message is not the one of the thing it names"),
)


@dataclass(frozen=True, slots=True)
class Door:
    """A port as the document names it. The words are those of the settings; `security` is the one in force."""

    name: str
    address: str
    answer: str
    mode: str
    refusals: str
    a08: str
    security: str
    group: str
    networks: str
    charset: str


def inbound_document(door: Door, site: Site, taken: Iterable[str], version: str) -> str:
    """The Markdown of one port; `taken` are the events that are taken in (`ADT^A01`)."""
    made = inbound(site)
    messages = [parse(one.raw) for one in made]
    lines = [
        f"# HL7 v2 interface: port {door.name}",
        "",
        f"What partners may send to {site.name} ({site.application}, {site.facility}); software version {version}. "
        "People and numbers in it are fictitious.",
        "",
        *_connection(door, site),
        *_acknowledgements(door),
        *_identifiers(site),
        *_events(door, taken),
        *_rules(),
        "## Fields that are read",
        "",
        "Other segments and fields are kept with the message and change nothing, unless a rule above names them.",
        "",
        *fields_of(messages, READ, all_named=True),
        "## Samples",
        "",
    ]
    for one, msg in zip(made, messages, strict=True):
        lines += [f"`{msg.at('MSH-9').encoded}`: {one.event}.", "", "```", *shown(msg), "```", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _connection(door: Door, site: Site) -> list[str]:
    security = {"none": "none", "tls": "TLS 1.2 or later", "mutual": "TLS 1.2 or later, with a client certificate"}
    named = " or ".join(f"`{app}`, `{facility}`" for app, facility in site.sending_applications)
    own = [f"{name} from `{app}`, `{facility}`" for app, facility, name in site.sending_charsets]
    others = "; ".join([door.charset, *own])
    rows = (
        ("Address", f"`{door.address}`"),
        ("Transport", "MLLP (0x0B message 0x1C 0x0D); messages may follow each other without waiting, and are "
                      "answered in their order"),
        ("Security", security[door.security]),
        ("Networks admitted", door.networks or "any"),
        ("MSH-3, MSH-4", named or "any; the port stands for the establishment"),
        ("MSH-5, MSH-6", f"`{site.application}`, `{site.facility}`"),
        ("MSH-11", "P only" if site.mode == "production" else "T, D or P"),
        ("Character set (MSH-18)", f"UNICODE UTF-8, 8859/1, 8859/15; without a right one UTF-8, else {others}"),
        ("Versions (MSH-12)", ", ".join(sorted(tables.VERSIONS))),
        ("Orders ask", f"the group `{door.group}`" if door.group else "nobody yet: a person chooses the group"),
    )  # fmt: skip
    return ["## Connection", "", *table(("What", "Value"), rows)]


def _acknowledgements(door: Door) -> list[str]:
    unsupported = "AR" if door.refusals == "base" else "AE"
    rows = [
        ("AA", _AA[door.answer], "nothing more"),
        ("AE", "a resend cures nothing; ERR says where (ERR-2), what (ERR-3, ERR-5, ERR-8)", "a person looks"),
        (unsupported, "ERR-3 200 to 203: type, event, processing id or version not taken in", "a person looks"),
        ("AR", "ERR-3 207: not now (busy, unavailable, a fault of ours)", "the same bytes again, later"),
    ]
    if door.mode == "enhanced":
        rows.append(("CA, CR", "stored, or not storable now, as MSH-15 asks; AA, AE or AR follows as MSH-16 asks",
                     "wait, or send again"))  # fmt: skip
    errors = [(code, text) for code, text in tables.ERROR_CONDITIONS.items() if code != "0"]
    repeated = (
        "The same bytes again get the same answer and change nothing. The same MSH-10 with other bytes is AE 205. "
        "Every message is answered; one that stays without an answer is sent again."
    )
    return ["## Acknowledgements", "", *table(("MSA-1", "Means", "What you do"), rows), repeated, "",
            *table(("ERR-3 (table 0357)", "Means"), errors), *table(("ERR-5", "Means"), _BUSINESS)]  # fmt: skip


def _identifiers(site: Site) -> list[str]:
    rows = [(f"INS ({kind})", oid) for kind, oid in zip(("NIR", "NIA", "test", "demonstration"), INS_OIDS, strict=True)]
    rows += [("Professionals (RPPS)", PERSONS[1]), ("Structures (FINEG)", STRUCTURES[1])]
    rows += [(f"{one.name} ({one.cx_type})", f"{'&'.join(one.hd)} = {one.oid}") for one in site.namespaces
             if one.cx_type != "INS"]  # fmt: skip
    kept = (
        "The INS is kept only with VALI in PID-32 and neither FICT nor DOUT; else the message is taken in without it."
    )
    return ["## Identifiers", "", *table(("What", "Authority"), rows), kept, ""]


def _events(door: Door, taken: Iterable[str]) -> list[str]:
    rows = []
    for event in taken:
        kind, _, trigger = event.partition("^")
        structure = tables.STRUCTURES[kind][trigger]
        movement = kind == "ADT" and trigger in tables.ZBE_EVENTS
        note = "ZBE too when the message follows PAM France" if movement else ""
        if event == "ADT^A08" and door.a08 == "refuse":
            note = "201 when the message follows PAM France, which excludes it"
        rows.append((f"{event}^{structure.name}", " ".join(structure.segments), note))
    return ["## Messages taken in", "", *table(("MSH-9", "Segments required, in this order", "Note"), rows)]


def _rules() -> list[str]:
    """Required fields and codes, as the tables say them: of every message, then of each profile."""
    books: list[tuple[str, Sequence[tables.Required], Sequence[tables.Coded]]] = [
        ("every message", tables.REQUIRED, tables.CODED),
        ("IHE PAM France 2.11", tables.PAM_REQUIRED, tables.PAM_CODED),
    ]
    profiles = (overlays.PUSH, overlays.LPS, overlays.ZAM, overlays.TLR)
    books += [(one.name, one.required, one.coded) for one in profiles]
    level = {"error": "AE", "warning": "noted"}
    required = [(name, rule.path, level[rule.severity]) for name, rules, _ in books for rule in rules]
    coded = [
        (name, rule.path, rule.table, " ".join(sorted(rule.codes)), level[rule.severity])
        for name, _, rules in books
        for rule in rules
    ]
    return ["## Required fields", "", *table(("Profile", "Field", "When it is missing"), required),
            "## Tables", "", *table(("Profile", "Field", "Table", "Values", "Otherwise"), coded)]  # fmt: skip
