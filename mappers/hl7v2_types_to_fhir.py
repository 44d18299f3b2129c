"""HL7 v2 data types as FHIR elements: TS, CX, XPN, XAD, XTN, XCN, HD.

Each function takes a place in a message (null-propagating: nothing there, nothing out) and gives a plain dict or ''.
What cannot be carried goes to a `Notes`, with the place it came from.

Sources: HL7 v2-to-FHIR datatype maps (https://build.fhir.org/ig/HL7/v2-to-fhir/datatype_maps.html); FR Core 2.2.0
(https://hl7.fr/ig/fhir/core); IHE France "Contraintes sur les types de données HL7 v2.5" 1.8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from hl7v2.message import Value
from mappers.identity import Namespace, NamespaceKind, Site
from mappers.mapped import Loss
from profiles.v2_maps import NONE, table

Element = dict[str, Any]

V2_0203: Final = "http://terminology.hl7.org/CodeSystem/v2-0203"
FR_V2_0203: Final = "https://hl7.fr/ig/fhir/core/CodeSystem/fr-core-cs-v2-0203"
RPPS_SYSTEM: Final = "https://rpps.esante.gouv.fr"
PERSONS_SYSTEM: Final = "urn:oid:1.2.250.1.71.4.2.1"
FINESS_SYSTEM: Final = "https://finess.esante.gouv.fr"
EMAIL_TYPE: Final = "https://hl7.fr/ig/fhir/core/StructureDefinition/fr-core-contact-point-email-type"
EMAIL_TYPE_SYSTEM: Final = "https://mos.esante.gouv.fr/NOS/TRE_R256-TypeMessagerie/FHIR/TRE-R256-TypeMessagerie"

_TIME: Final = re.compile(
    r"(\d{4})(\d{2})?(\d{2})?(\d{2})?(\d{2})?(\d{2})?(\.\d{1,4})?(?:([+-])(\d{2})(\d{2}))?\Z", re.ASCII
)
_OID: Final = re.compile(r"[0-2](\.(0|[1-9]\d*))+\Z", re.ASCII)
_MAX: Final = 50


@dataclass(slots=True)
class Notes:
    """Collects what a mapper leaves behind, adapts or doubts."""

    losses: list[Loss] = field(default_factory=list)

    def add(self, source: str, reason: str) -> None:
        self.losses.append(Loss(source, reason))


def compact(**parts: Any) -> Element:
    """The parts that hold something, in order; a trailing underscore is taken off a Python keyword."""
    return {name.rstrip("_"): part for name, part in parts.items() if part not in (None, "", [], {})}


def reps(value: Value) -> list[Value]:
    """The repetitions of a field that hold something; at most 50 are read."""
    return [rep for rep in value.repetitions()[:_MAX] if rep.valued]


def date_of(text: str) -> str:
    """FHIR date (YYYY, YYYY-MM or YYYY-MM-DD) of a TS or DT, '' when it is none that exists."""
    match = _TIME.match(text)
    if not match:
        return ""
    year, month, day = match[1], match[2], match[3]
    try:
        datetime(int(year), int(month or 1), int(day or 1))  # noqa: DTZ001 - the calendar alone is asked
    except ValueError:
        return ""
    return "-".join(part for part in (year, month, day) if part)


def datetime_of(text: str, zone: str) -> str:
    """FHIR dateTime of a TS or DTM; a time without an offset is local time of the site, '' when it is none."""
    match = _TIME.match(text)
    if not match or not date_of(text):
        return ""
    if not match[4]:
        return date_of(text)
    try:
        year, month, day, hour, minute, second = (int(match[n] or 0) for n in range(1, 7))
        moment = datetime(year, month, day, hour, minute, second)  # noqa: DTZ001 - its zone comes below
    except ValueError:
        return ""
    if match[8]:
        return f"{moment.isoformat()}{match[8]}{match[9]}:{match[10]}"
    return moment.replace(tzinfo=ZoneInfo(zone)).isoformat()


@dataclass(frozen=True, slots=True)
class Hd:
    """An assigning authority as sent: namespace id, universal id, universal id type."""

    namespace: str
    universal: str
    kind: str

    @property
    def oid(self) -> str:
        """The OID it names, also where senders put it into the first subcomponent without a type."""
        for text in (self.universal, self.namespace):
            if _OID.match(text):
                return text
        return ""

    def __str__(self) -> str:
        return "&".join((self.namespace, self.universal, self.kind)).rstrip("&")


def hd_of(value: Value) -> Hd:
    return Hd(*(value.part(number).text for number in (1, 2, 3)))


def namespace_of(hd: Hd, site: Site, kind: NamespaceKind) -> Namespace | None:
    """The declared namespace an authority names: both ids agree (one may be missing), or its OID is given.

    HD-3 is not compared: senders write N, M, L and ISO for the same authority. A patient namespace (PI) of another
    establishment is known by its OID, or by both ids: a short name may stand for something else in each house.
    """
    for namespace in site.namespaces:
        if namespace.kind != kind:
            continue
        if hd.oid and hd.oid == namespace.oid:
            return namespace
        pairs = ((hd.namespace, namespace.hd[0]), (hd.universal, namespace.hd[1]))
        agree = [_fold(sent) == _fold(ours) for sent, ours in pairs if sent and ours]
        if agree and all(agree):
            return namespace
    return next((one for one in site.foreign if one.kind == kind and _names_whole(hd, one)), None)


def _names_whole(hd: Hd, namespace: Namespace) -> bool:
    if hd.oid and hd.oid == namespace.oid:
        return True
    sent, ours = (hd.namespace, hd.universal), namespace.hd[:2]
    return all(sent) and all(ours) and [_fold(part) for part in sent] == [_fold(part) for part in ours]


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold()


def identifier_of(
    cx: Value, where: str, site: Site, kind: NamespaceKind, use: str, notes: Notes
) -> tuple[Element, Namespace | None]:
    """Identifier of a CX of a local kind (PI, VN, AN), and its declared namespace.

    An authority that no site declares is kept as the assigner, without a system: it identifies nobody here.
    """
    hd = hd_of(cx.part(4))
    namespace = namespace_of(hd, site, kind)
    value = cx.part(1).whole.strip()
    out = compact(
        use=use,
        type={"coding": [{"system": V2_0203, "code": kind}]},
        system=namespace.fhir_system if namespace else "",
        value=value,
        assigner={"display": str(hd)} if str(hd) and not namespace else None,
    )
    if namespace is None:
        told = f"the authority {str(hd)!r}" if str(hd) else "no authority"
        told += f" is no declared namespace of kind {kind} of {site.name}"
        notes.add(f"{where}.4", f"{told}; the identifier is kept, not matched on")
    return out, namespace


NAME_USES: Final = table(
    "NameType",
    {
        "A": ("nickname", "an alias in the HL7 versions of PAM France; HL7's map is empty"),
        "R": (NONE, "a registered name would be a second official one beside L, the birth name of PAM France"),
        "S": ("anonymous", "a pseudonym hides who it is; HL7's map is empty"),
    },
)
"""XPN-7 (HL7 table 0200) -> HumanName.use."""


def name_of(xpn: Value, use: str) -> Element:
    """HumanName: family (surname of FN), the given names word for word in one entry, prefix, suffix."""
    given = xpn.part(2).whole.strip()
    return compact(
        use=use,
        family=xpn.part(1).part(1).text,
        given=[given] if given and given != '""' else [],
        prefix=[prefix] if (prefix := xpn.part(5).text) else [],
        suffix=[suffix] if (suffix := xpn.part(4).text) else [],
    )


def name_use(code: str) -> str:
    """HumanName.use of XPN-7 (HL7 table 0200), '' for one without an equivalent."""
    return NAME_USES.get(code, "")


ADDRESS_USES: Final = table(
    "AddressType[Use]",
    {
        "HV": ("temp", "a holiday home, of HL7 table 0190 since 2.6; not in HL7's map"),
        "L": ("home", "the legal address is where the person lives; HL7's map is empty"),
        "P": ("home", "a permanent address is where the person lives; HL7's map is empty"),
    },
)
ADDRESS_TYPES: Final = table("AddressType[Type]")
"""XAD-7 (HL7 table 0190) -> Address.use and Address.type."""


def address_of(xad: Value, where: str, notes: Notes) -> Element:
    """Address; the components of an extended street (SAD) become one line."""
    code = xad.part(7).text
    use, kind = ADDRESS_USES.get(code, ""), ADDRESS_TYPES.get(code, "")
    if code and not use and not kind:
        notes.add(f"{where}.7", f"address type {code!r} has no equivalent; the address is kept without a use")
    street = " ".join(part for part in (xad.part(1).part(n).text for n in (3, 2)) if part)
    lines = [line for line in (xad.part(1).part(1).text, street, xad.part(2).text) if line]
    return compact(
        use=use,
        type=kind,
        line=lines,
        city=xad.part(3).text,
        state=xad.part(4).text,
        postalCode=xad.part(5).text,
        country=xad.part(6).text,
    )


TELECOM_USES: Final = table(
    "TelecommunicationUseCode",
    {
        "ORN": ("home", "another residence; HL7's map is empty"),
        "VHN": ("home", "a holiday home; HL7's map is empty"),
        "ASN": ("work", "an answering service; HL7's map is empty"),
        "EMR": ("", "an emergency number says nothing of home or work"),
    },
)
TELECOM_SYSTEMS: Final = table(
    "TelecommunicationEquipmentType",
    {"CP": ("phone", "a phone; that it is mobile stands in ContactPoint.use")},
)
"""XTN-2 (HL7 table 0201) -> ContactPoint.use, XTN-3 (HL7 table 0202) -> ContactPoint.system."""


def telecom_of(xtn: Value, work: bool) -> Element:
    """ContactPoint; an X.400 address is an MSSanté mailbox, marked with the extension of FR Core."""
    use, equipment, mail = (xtn.part(number).text for number in (2, 3, 4))
    mssante = equipment.upper() == "X.400"
    number = xtn.part(12).text or xtn.part(1).text
    if not number and xtn.part(7).text:
        number = "".join(xtn.part(part).text for part in (5, 6, 7))
    system = "email" if mail else TELECOM_SYSTEMS.get(equipment.upper(), "phone")
    value = mail or number
    if not value:
        return {}
    return compact(
        extension=[{"url": EMAIL_TYPE, "valueCoding": {"system": EMAIL_TYPE_SYSTEM, "code": "MSSANTE"}}]
        if mssante and mail
        else [],
        system=system,
        value=value,
        use="mobile" if equipment.upper() == "CP" else TELECOM_USES.get(use, "work" if work else "home"),
    )


def practitioner_of(xcn: Value, where: str, notes: Notes) -> Element:
    """A logical reference to a professional: RPPS, or the national id `8` + RPPS, or what the sender calls him."""
    value, family, given = xcn.part(1).text, xcn.part(2).part(1).text, xcn.part(3).text
    kind = xcn.part(13).text.upper()
    display = " ".join(part for part in (given, family) if part)
    hd = hd_of(xcn.part(9))
    rpps = value[1:] if re.fullmatch(r"8[0-9]{11}", value) and kind in ("IDNPS", "RPPS", "") else value
    if kind in ("RPPS", "IDNPS") and re.fullmatch(r"[0-9]{11}", rpps):
        identifier = compact(type={"coding": [{"system": FR_V2_0203, "code": "RPPS"}]}, system=RPPS_SYSTEM, value=rpps)
    elif kind == "IDNPS":
        identifier = compact(type={"coding": [{"system": FR_V2_0203, "code": "IDNPS"}]}, system=PERSONS_SYSTEM,
                             value=value)  # fmt: skip
    elif value and hd.oid:
        identifier = compact(system=f"urn:oid:{hd.oid}", value=value)
    else:
        identifier = compact(value=value, assigner={"display": str(hd)} if str(hd) else None)
        if value:
            notes.add(where, f"identifier of type {kind or 'unknown'} is kept without a system")
    return compact(type="Practitioner", identifier=identifier, display=display)
