"""The establishments of this server: one record each, loaded from the settings, found by any of its spellings.

A site is written as a `[[sites]]` table:

    [[sites]]
    key = "chu-demo"
    name = "CHU de démonstration"
    finess_eg = "750803447"          # 9 digits
    finess_ej = "750712184"
    mode = "test"                    # or "production"
    application = "PASSERELLE"       # our MSH-3
    facility = "CHU-X"               # our MSH-4
    sending_applications = [["GAM", "CHU-X"]]
    sending_charsets = [["GAM", "CHU-X", "8859/15"]]   # what neither MSH-18 nor UTF-8 explains, by sender
    ae_titles = ["ECHO1"]
    ae_namespaces = { ECHO1 = "ipp" }
    document_oid = "1.2.250.1.71.4.2.2.1750803447"
    [[sites.mailboxes]]
    address = "teleexpertise@chu-demo.mssante.fr"
    display = "Téléexpertise CHU de démonstration"
    kind = "APP"
    [[sites.namespaces]]
    name = "ipp"
    kind = "PI"
    hd = ["CHU-X", "000897406", "N"]
    oid = "1.2.250.1.71.4.2.2.1750803447.1"
    fhir_system = "urn:oid:1.2.250.1.71.4.2.2.1750803447.1"

The INS namespaces are the same for everyone and are added to each site. Source of their OIDs: ANS, "Liste des OID
des autorités d'affectation des INS"; FR Core 2.2.0 `fr-core-patient-ins`.
"""

from __future__ import annotations

import re
import unicodedata
import zoneinfo
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from fhir_server.config import ConfigError
from hl7v2.text import reads_anything
from mappers.identity import Mailbox, Namespace, NamespaceKind, Site

_INS: tuple[tuple[NamespaceKind, str], ...] = (
    ("INS-NIR", "1.2.250.1.213.1.4.8"),
    ("INS-NIA", "1.2.250.1.213.1.4.9"),
    ("INS-NIR-TEST", "1.2.250.1.213.1.4.10"),
    ("INS-NIR-DEMO", "1.2.250.1.213.1.4.11"),
)
TEST_INS = frozenset({"1.2.250.1.213.1.4.10", "1.2.250.1.213.1.4.11"})
_INS_OIDS = frozenset(oid for _, oid in _INS)
_AUTHORITY = {"INS-NIA": "ASIP-SANTE-INS-NIA"}
_KINDS: Mapping[str, NamespaceKind] = {"PI": "PI", "VN": "VN", "AN": "AN", "ACSN": "ACSN"}
_REQUIRED = ("key", "name", "finess_eg", "finess_ej", "mode", "application", "facility")
INS_NAMESPACES: tuple[Namespace, ...] = tuple(
    Namespace(
        name=kind.lower(),
        kind=kind,
        hd=(_AUTHORITY.get(kind, "ASIP-SANTE-INS-NIR"), oid, "ISO"),
        oid=oid,
        fhir_system=f"urn:oid:{oid}",
        cx_type="INS",
        dicom_issuer=oid,
    )
    for kind, oid in _INS
)
_FINESS, _IDNST = "https://finess.esante.gouv.fr", "urn:oid:1.2.250.1.71.4.2.2"
INS_SYSTEMS = frozenset(ns.fhir_system for ns in INS_NAMESPACES)
_LONGEST_SYSTEM = 300
_ARCS = re.compile(r"[0-9]+(\.[0-9]+)+")


@lru_cache(maxsize=4096)
def _plain(system: str) -> str:
    seen = (sign for sign in unicodedata.normalize("NFKC", system) if unicodedata.category(sign)[0] not in "CZ")
    text = "".join("".join(seen).split()).casefold().removeprefix("urn:oid:").strip(".")
    return ".".join(arc.lstrip("0") or "0" for arc in text.split(".")) if _ARCS.fullmatch(text) else text


def plain_system(system: object) -> str:
    """An Identifier.system or OID as it is compared: without blanks, signs nobody sees, letter case, `urn:oid:`, zeros
    in front of an arc; '' for none."""
    text = str(system or "")
    return _plain(text) if len(text) <= _LONGEST_SYSTEM else text


def is_ins(identifier: Mapping[str, Any]) -> bool:
    """Whether an Identifier is an INS, real, test or demonstration, however its system is spelled."""
    return plain_system(identifier.get("system")) in _INS_OIDS


def is_test_ins(identifier: Mapping[str, Any]) -> bool:
    """Whether an Identifier is a test or demonstration INS, however its system is spelled."""
    return plain_system(identifier.get("system")) in TEST_INS


def says_ins(identifier: Mapping[str, Any]) -> bool:
    """Whether the type of an Identifier says that it is an INS (INS-NIR, INS-NIA, ...), whatever its system is."""
    codes = (str(coding.get("code", "")) for coding in identifier.get("type", {}).get("coding", ()))
    return any(code.strip().casefold().startswith("ins-") or code.strip().casefold() == "ins" for code in codes)


@dataclass(frozen=True, slots=True)
class Sites:
    """All sites; the first is the default one unless the settings name another."""

    all: tuple[Site, ...]
    default: Site

    def by_key(self, key: str) -> Site:
        """The site with that key; raises ConfigError listing the known ones."""
        for site in self.all:
            if site.key == key:
                return site
        raise ConfigError(f"no site `{key}`; known: {', '.join(site.key for site in self.all)}")

    def of_message(self, application: str, facility: str) -> Site | None:
        """The site that declares this MSH-3 / MSH-4 pair as one of its senders."""
        for site in self.all:
            if (application, facility) in site.sending_applications:
                return site
        return None

    def charset_of(self, application: str, facility: str) -> str:
        """The character set declared for this MSH-3 / MSH-4 pair, '' for none."""
        pair = (application, facility)
        return next((name for site in self.all for *who, name in site.sending_charsets if tuple(who) == pair), "")

    def of_ae(self, calling: str) -> Site | None:
        """The site that owns this calling AE title."""
        return next((site for site in self.all if calling in site.ae_titles), None)

    def of_finess(self, finess: str) -> Site | None:
        """The site with this FINESS géographique or juridique."""
        return next((site for site in self.all if finess in (site.finess_eg, site.finess_ej)), None)

    def of_oid(self, oid: str) -> tuple[Site, Namespace] | None:
        """The site and namespace of a bare OID."""
        for site in (self.default, *self.all):
            for namespace in site.namespaces:
                if namespace.oid == oid:
                    return site, namespace
        return None

    def of_system(self, system: str) -> tuple[Site, Namespace] | None:
        """The site and namespace of an Identifier.system, however spelled (INS systems are the default site's)."""
        wanted = plain_system(system)
        for site in (self.default, *self.all):
            for namespace in site.namespaces:
                if plain_system(namespace.fhir_system) == wanted:
                    return site, namespace
        return None

    def of_organization(self, organization: Mapping[str, Any]) -> Site | None:
        """The site an Organization is, by its id or its FINESS (EG, EJ or IDNST)."""
        if site := next((site for site in self.all if site.key == organization.get("id")), None):
            return site
        found = (self.of_finess(_finess(one)) for one in organization.get("identifier", ()))
        return next((site for site in found if site), None)

    def owners(self, patient: Mapping[str, Any], organization: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
        """The sites a Patient is of: those whose namespaces its identifiers in force are in and the one of its
        managingOrganization; empty when that cannot be told. `organization` is the stored resource that names."""
        found = {}
        for identifier in patient.get("identifier", ()):
            owner = self.of_system(identifier.get("system", "")) if identifier.get("use") != "old" else None
            if owner and owner[1] not in INS_NAMESPACES:
                found[owner[0].key] = owner[0]
        managing = patient.get("managingOrganization", {})
        said = {"id": managing.get("reference", "").removeprefix("Organization/")}
        by_name = {"identifier": [managing.get("identifier", {})]}
        for house in (said, by_name, organization or {}):
            if site := self.of_organization(house):
                found[site.key] = site
        return tuple(found.values())


def load_sites(tables: Iterable[Mapping[str, Any]], default_key: str = "") -> Sites:
    """Read and check the `[[sites]]` tables. Raises ConfigError naming the site and the key."""
    sites = tuple(_site(table) for table in tables)
    if not sites:
        raise ConfigError("no establishment is declared; add a [[sites]] table (passerelle config init writes one)")
    seen: dict[tuple[str, str], str] = {}
    for site in sites:
        for namespace in site.namespaces:
            if namespace in INS_NAMESPACES:
                continue
            for spelling in (("oid", namespace.oid), ("fhir_system", namespace.fhir_system)):
                if spelling in seen:
                    raise ConfigError(f"{spelling[0]} {spelling[1]} is declared by {seen[spelling]} and {site.key}")
                seen[spelling] = site.key
    sites = tuple(replace(site, foreign=_foreign(site, sites)) for site in sites)
    chosen = Sites(sites, sites[0])
    return Sites(sites, chosen.by_key(default_key)) if default_key else chosen


def _foreign(site: Site, sites: Iterable[Site]) -> tuple[Namespace, ...]:
    """The patient namespaces (PI) of the other sites."""
    return tuple(ns for other in sites if other is not site for ns in other.namespaces if ns.kind == "PI")


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    """The time zones this machine knows: finding them walks through a folder of some 600 files."""
    return frozenset(zoneinfo.available_timezones())


def _site(table: Mapping[str, Any]) -> Site:
    key = str(table.get("key", "?"))
    for name in _REQUIRED:
        if not table.get(name):
            raise ConfigError(f"site `{key}`: `{name}` is missing")
    unknown = set(table) - (set(Site.__dataclass_fields__) - {"foreign"})
    if unknown:
        raise ConfigError(f"site `{key}`: unknown key `{sorted(unknown)[0]}`")
    for name in ("finess_eg", "finess_ej"):
        if not (str(table[name]).isalnum() and len(str(table[name])) == 9):
            raise ConfigError(f"site `{key}`: `{name}` must have 9 characters")
    if table["mode"] not in ("test", "production"):
        raise ConfigError(f"site `{key}`: `mode` is `test` or `production`")
    zone = str(table.get("time_zone", "Europe/Paris"))
    if zone not in _zones():
        raise ConfigError(f"site `{key}`: `time_zone` {zone} is not an IANA time zone")
    plain = {name: table[name] for name in table if name not in ("namespaces", "mailboxes", "ae_namespaces")}
    plain["sending_applications"] = tuple((str(a), str(f)) for a, f in table.get("sending_applications", ()))
    plain["sending_charsets"] = _charsets(key, table, plain["sending_applications"])
    plain["ae_titles"] = tuple(table.get("ae_titles", ()))
    return Site(
        **plain,
        ae_namespaces=tuple(sorted(dict(table.get("ae_namespaces", {})).items())),
        mailboxes=tuple(Mailbox(**box) for box in table.get("mailboxes", ())),
        namespaces=INS_NAMESPACES + tuple(_namespace(key, raw) for raw in table.get("namespaces", ())),
    )


def _charsets(
    site: str, table: Mapping[str, Any], senders: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str, str], ...]:
    """`sending_charsets`: three words each. Raises ConfigError for another shape, sender or character set."""
    found: dict[tuple[str, str], str] = {}
    for row in table.get("sending_charsets", ()):
        if not isinstance(row, (list, tuple)) or len(row) != 3:
            raise ConfigError(f'site `{site}`: a row of `sending_charsets` is [MSH-3, MSH-4, "8859/15"], not {row!r}')
        application, facility, name = (str(word) for word in row)
        if (application, facility) not in senders:
            raise ConfigError(f"site `{site}`: `sending_charsets` names {application}|{facility}, which is none of its "
                              "`sending_applications`")  # fmt: skip
        if (application, facility) in found:
            raise ConfigError(f"site `{site}`: `sending_charsets` names {application}|{facility} twice")
        if not reads_anything(name):
            raise ConfigError(f"site `{site}`: `sending_charsets` takes names of HL7 table 0211, one byte a character "
                              f"(8859/15), not {name!r}")  # fmt: skip
        found[application, facility] = name
    return tuple((*pair, name) for pair, name in found.items())


def _namespace(site: str, raw: Mapping[str, Any]) -> Namespace:
    kind = _KINDS.get(str(raw.get("kind")))
    if kind is None:
        raise ConfigError(f"site `{site}`: namespace kind {raw.get('kind')!r} is not one of {', '.join(_KINDS)}")
    missing = [name for name in ("name", "hd", "oid") if not raw.get(name)]
    if missing or len(raw["hd"]) != 3:
        raise ConfigError(f"site `{site}`: a namespace needs `name`, `oid` and `hd` = [namespace, universal id, type]")
    oid = str(raw["oid"])
    return Namespace(
        name=str(raw["name"]),
        kind=kind,
        hd=(str(raw["hd"][0]), str(raw["hd"][1]), str(raw["hd"][2])),
        oid=oid,
        fhir_system=str(raw.get("fhir_system", f"urn:oid:{oid}")),
        cx_type=kind,
        dicom_issuer=str(raw.get("dicom_issuer", raw["hd"][0])),
    )


def namespace_of(site: Site, kind: str) -> Namespace | None:
    """The site's first namespace of that kind (`PI`, `VN`, `AN`, `ACSN`)."""
    return next((namespace for namespace in site.namespaces if namespace.kind == kind), None)


def organization(site: Site) -> dict[str, Any]:
    """The site as FHIR Organization (FR Core organization: FINESS EG and EJ, IDNST)."""
    identifier = [
        _typed("FINEG", _FINESS, site.finess_eg),
        _typed("FINEJ", _FINESS, site.finess_ej),
        _typed("IDNST", _IDNST, "1" + site.finess_eg),
    ]
    out: dict[str, Any] = {
        "resourceType": "Organization",
        "id": site.key,
        "identifier": identifier,
        "active": True,
        "name": site.name,
    }
    if site.mailboxes:
        out["telecom"] = [{"system": "email", "value": box.address} for box in site.mailboxes]
    if site.address:
        out["address"] = [{"text": site.address}]
    return out


def naming_systems(site: Site) -> list[dict[str, Any]]:
    """The site's own identifier namespaces as NamingSystem resources: OID, FHIR system and HL7 HD spellings."""
    out = []
    for namespace in site.namespaces:
        if namespace in INS_NAMESPACES:
            continue
        spellings = [("oid", namespace.oid), ("uri", namespace.fhir_system), ("other", "&".join(namespace.hd))]
        out.append(
            {
                "resourceType": "NamingSystem",
                "id": f"{site.key}-{namespace.name}",
                "name": f"{site.key.replace('-', '_')}_{namespace.name}",
                "status": "active",
                "kind": "identifier",
                "date": "2026-01-01",
                "responsible": site.name,
                "uniqueId": [{"type": kind, "value": value} for kind, value in spellings],
            }
        )
    return out


def _finess(identifier: Mapping[str, Any]) -> str:
    """The FINESS of an Organization identifier, '' when it is none."""
    value = str(identifier.get("value", ""))
    if identifier.get("system") == _IDNST:
        return value[1:] if value.startswith("1") else ""
    return value if identifier.get("system") == _FINESS else ""


def _typed(code: str, system: str, value: str) -> dict[str, Any]:
    coding = {"system": "https://hl7.fr/ig/fhir/core/CodeSystem/fr-core-cs-v2-0203", "code": code}
    return {"type": {"coding": [coding]}, "system": system, "value": value}
