"""What HL7 v2 and its French extensions demand, as literal tables: structures, required fields, codes, types.

The overlay `pam.fr` is IHE PAM France 2.11; it comes on top of the base tables for messages that name it (MSH-12.2
FRA or MSH-21 IHE_FRANCE). Severity `warning` marks what we accept and note, `error` what cannot be integrated.

Sources: HL7 v2.5 chapters 2 and 3, HL7 tables 0001, 0004, 0103, 0203, 0357, 0445; "PAM - National extension France"
2.11 (https://www.interopsante.org/publications); CI-SIS volets of HL7 v2
(https://interop.esante.gouv.fr/ig/hl7v2/trans-cda-r2/).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["error", "warning"]

ERROR_CONDITIONS: Final = {
    "0": "Message accepted",
    "100": "Segment sequence error",
    "101": "Required field missing",
    "102": "Data type error",
    "103": "Table value not found",
    "104": "Value too long",
    "198": "Non-conformant cardinality",
    "199": "Other HL7 error",
    "200": "Unsupported message type",
    "201": "Unsupported event code",
    "202": "Unsupported processing id",
    "203": "Unsupported version id",
    "204": "Unknown key identifier",
    "205": "Duplicate key identifier",
    "206": "Application record locked",
    "207": "Application error",
}
"""HL7 table 0357, with 198 and 199 as the CI-SIS adds them."""

VERSIONS: Final = frozenset(
    ("2.1", "2.2", "2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7", "2.7.1", "2.8", "2.8.1", "2.8.2")
)


@dataclass(frozen=True, slots=True)
class Structure:
    """A message structure: MSH-9.3, the IHE transaction it belongs to, and its required segments in order."""

    name: str
    transaction: Literal["ITI-30", "ITI-31", "CI-SIS", ""]
    segments: tuple[str, ...]


_MOVEMENT: Final = ("MSH", "EVN", "PID", "PV1")
_IDENTITY: Final = ("MSH", "EVN", "PID")

ADT: Final = {
    **{code: Structure(name, "ITI-31", _MOVEMENT) for code, name in (
        ("A01", "ADT_A01"), ("A02", "ADT_A02"), ("A03", "ADT_A03"), ("A04", "ADT_A01"), ("A05", "ADT_A05"),
        ("A06", "ADT_A06"), ("A07", "ADT_A06"), ("A11", "ADT_A09"), ("A12", "ADT_A12"), ("A13", "ADT_A01"),
        ("A14", "ADT_A05"), ("A15", "ADT_A15"), ("A16", "ADT_A16"), ("A21", "ADT_A21"), ("A22", "ADT_A21"),
        ("A25", "ADT_A21"), ("A26", "ADT_A21"), ("A27", "ADT_A21"), ("A38", "ADT_A38"), ("A52", "ADT_A52"),
        ("A53", "ADT_A52"), ("A54", "ADT_A54"), ("A55", "ADT_A52"), ("Z99", "ADT_Z99"),
    )},
    "A44": Structure("ADT_A43", "ITI-31", ("MSH", "EVN", "PID", "MRG")),
    "A28": Structure("ADT_A05", "ITI-30", _IDENTITY),
    "A31": Structure("ADT_A05", "ITI-30", _IDENTITY),
    "A40": Structure("ADT_A39", "ITI-30", ("MSH", "EVN", "PID", "MRG")),
    "A47": Structure("ADT_A30", "ITI-30", ("MSH", "EVN", "PID", "MRG")),
    # Outside IHE PAM France; mapped on ports that allow it.
    "A08": Structure("ADT_A01", "", _MOVEMENT),
}  # fmt: skip
"""Trigger -> structure. A08 is excluded by PAM France, which uses A31 and Z99 instead."""

ZAM: Final = {code: Structure("ZAM_Z01", "CI-SIS", ("MSH", "EVN", "OBX")) for code in ("Z01", "Z02", "Z03")}
MDM: Final = {
    code: Structure("MDM_T02", "CI-SIS", ("MSH", "EVN", "PID", "PV1", "TXA", "OBX")) for code in ("T02", "T04", "T10")
}
ORU: Final = {"R01": Structure("ORU_R01", "CI-SIS", ("MSH", "PID", "OBR"))}
ORM: Final = {"O01": Structure("ORM_O01", "", ("MSH", "PID", "ORC"))}
OMI: Final = {"O23": Structure("OMI_O23", "", ("MSH", "PID", "ORC"))}
SIU: Final = {code: Structure("SIU_S12", "", ("MSH", "SCH")) for code in ("S12", "S13", "S14", "S15")}

STRUCTURES: Final = {"ADT": ADT, "ZAM": ZAM, "MDM": MDM, "ORU": ORU, "ORM": ORM, "OMI": OMI, "SIU": SIU}

ZBE_EVENTS: Final = frozenset(code for code, s in ADT.items() if s.transaction == "ITI-31") - {"A44"}
"""Movements that carry a ZBE segment in PAM France."""


@dataclass(frozen=True, slots=True)
class Required:
    """A field that must be valued. `path` may name a component; `when` limits the rule to transactions."""

    path: str
    severity: Severity = "error"
    when: tuple[str, ...] = ()


REQUIRED: Final = (
    Required("MSH-7", "warning"),
    Required("MSH-9.1"),
    Required("MSH-10"),
    Required("MSH-11"),
    Required("MSH-12"),
    Required("EVN-2", "warning"),
    Required("PID-3"),
    Required("PID-5"),
    Required("PV1-2", "error", ("ITI-31", "")),
    Required("MRG-1"),
)
"""Base HL7 v2.5. The rule holds where its segment is present; missing segments are reported once, as segments."""

PAM_REQUIRED: Final = (
    Required("MSH-17", "warning"),
    Required("MSH-18", "warning"),
    Required("EVN-2"),
    Required("PID-8"),
    Required("PID-18", "error", ("ITI-31",)),
    Required("PID-32"),
    Required("ZBE-1"),
    Required("ZBE-2"),
    Required("ZBE-4"),
    Required("ZBE-5"),
    Required("ZBE-9", "warning"),
)

CISIS_REQUIRED: Final = (Required("MSH-17", "warning"), Required("MSH-18", "warning"), Required("OBX-3"))
ZAM_REQUIRED: Final = (*CISIS_REQUIRED, Required("OBX[1]-4"), Required("OBX-5"))

PAM_FORBIDDEN: Final = ("PID-2", "PID-4", "PID-9", "PID-10", "PID-12", "PID-17", "PID-19", "PID-20", "PID-22",
                        "PID-28", "ZBE-3")  # fmt: skip
"""Fields PAM France forbids; met in the field, so noted and not carried (race, religion and ethnicity above all)."""


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


IDENTITY_STATUSES: Final = _codes(
    "VIDE PROV VALI DOUB DESA DPOT DOUA COLP COLV FILI CACH ANOM IDVER RECD IDRA USUR HOMD HOMA INVA FICT DOUT"
)
"""PID-32, HL7 table 0445 as extended in France."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A field whose first component, or the component that `path` names, is one of `codes`."""

    path: str
    table: str
    codes: frozenset[str]
    severity: Severity = "error"
    code: str = "103"


CODED: Final = (
    Coded("MSH-11", "HL70103", _codes("D P T"), code="202"),
    Coded("MSH-11.2", "HL70207", _codes("A I R T"), code="202"),
    Coded("PID-8", "HL70001", _codes("A F M N O U")),
    Coded("PID-24", "HL70136", _codes("Y N"), "warning"),
    Coded("PID-30", "HL70136", _codes("Y N"), "warning"),
)
PAM_CODED: Final = (
    Coded("PID-8", "HL70001 FR", _codes("F M U")),
    Coded("PID-32", "HL70445 FR", IDENTITY_STATUSES),
    Coded("PV1-2", "HL70004 FR", _codes("E I N O R")),
    Coded("ZBE-4", "PAM.fr ZBE-4", _codes("INSERT UPDATE CANCEL")),
    Coded("ZBE-5", "HL70136", _codes("Y N")),
    Coded("ZBE-9", "PAM.fr ZBE-9", _codes("S H M L D SM SH MH LD HMS C"), "warning"),
    Coded("ZFA-1", "PAM.fr ZFA-1", _codes("ACTIF FERME INEXISTANT"), "warning"),
    Coded("ZFA-9", "PAM.fr ZFA-9", _codes("NA IO INO"), "warning"),
    Coded("ZFA-11", "PAM.fr ZFA-11", _codes("NA INC IC"), "warning"),
)
ZAM_CODED: Final = (
    Coded(
        "OBX-3",
        "AckMetierZAM",
        _codes("ACK_RECEPTION_DMP ACK_RECEPTION_MSS DESTINATAIRE_MSS ACK_LECTURE_MSS LECTEUR_MSS"),
    ),
)

TIMES: Final = (
    ("MSH-7", "warning"),
    ("EVN-2", "warning"),
    ("EVN-6", "warning"),
    ("PID-7", "error"),
    ("PID-29", "warning"),
    ("PV1-44", "error"),
    ("PV1-45", "error"),
    ("ZBE-2", "error"),
    ("ZFA-2", "warning"),
    ("ZFA-3", "warning"),
    ("ZFA-10", "warning"),
    ("ZFA-12", "warning"),
)
"""Fields of type TS, DT or DTM."""

REPEATS: Final = {"PID-3": 200, "PID-5": 50, "PID-11": 50, "PID-13": 50, "PID-14": 50, "PID-32": 50}
"""Most repetitions we read of a repeating field; the others of PID, PV1 and ZBE do not repeat."""
