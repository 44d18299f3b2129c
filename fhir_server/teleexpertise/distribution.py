"""One distribution plan per report: who gets it, by which road, never by two, and who does not get it and why.

Destinations are data a partner can read: the FHIR Endpoints of those who take part (`parties`). An Endpoint of ours
carries the flavour in `payloadType` (system `urn:passerelle:profil`) and the receiver's names in the address:
`mllp://host:2576?application=DPI&facility=CHU-X`.

Rules (CI-SIS "Transmission d'un document CDA-R2 en HL7v2" 2.1, mapping-mss and regles-gestion-mssante): whoever mails
the professional is one; we mail the requester ourselves, so a platform is told DESTMSSANTEPS and DESTMSSANTEPAT `N`.
Its only task left is the DMP: DESTDMP is `Y` only with a qualified INS, a document type the DMP takes, ZFA-1 ACTIF and
ZFA-9 not opposed. With three N no line of the matrix fits and nobody would get anything: nothing is sent. The DMP is
fed by one platform, and is the addressee of what goes there: whichever platform brings the next version replaces what
it holds.

Who is at the end of an address is known by the names it bears: two applications behind one port are two, and an address
without both names is nobody's: nothing new goes there, only what follows what an earlier release sent there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

from fhir_server.config import Settings
from fhir_server.patients.sites import Sites
from fhir_server.teleexpertise.parties import Candidate, Doctor
from mappers.fhir_to_hl7v2_segments import Trigger
from mappers.fhir_to_report import PatientIdentity, Report

PROFILE_SYSTEM = "urn:passerelle:profil"
MAIL_LANE = "mssante"
DMP = "dmp"
"""`Destination.addressee` of what a platform feeds the DMP with."""
MASKED = "document masqué aux professionnels de santé"
"""Why a professional who did not ask for a report does not get it (TRE_A07 MASQUE_PS)."""
MASKED_CODE = "MASQUE_PS"
DMP_TYPES = frozenset({"85208-7", "75496-0", "18748-4", "34794-8", "18776-5"})
"""Report.type codes the DMP takes among those this product may write: JDV_J66-TypeCode-DMP (OID 1.2.250.1.213.1.1.5.7,
version of 2024-09-27), https://mos.esante.gouv.fr/NOS/JDV_J66-TypeCode-DMP/FHIR/JDV-J66-TypeCode-DMP."""


@dataclass(frozen=True, slots=True)
class Flavour:
    """What a message to an Endpoint is. `ins_alone`: the receiver knows a patient by the INS of PID-3, without a number
    of its own; `platform`: it serves the DMP, not a patient file."""

    message: Literal["mdm", "oru", "plain-mdm", "plain-oru", "answer", "order", "slot"]
    profile: Literal["lps-1.1", "push-2.1", ""]
    ins_alone: bool
    platform: bool


FLAVOURS: Mapping[str, Flavour] = {
    "lps-1.1": Flavour("mdm", "lps-1.1", True, False),
    "push-2.1": Flavour("mdm", "push-2.1", True, True),
    "push-2.1-oru": Flavour("oru", "push-2.1", True, True),
    "plain-mdm": Flavour("plain-mdm", "", False, False),
    "plain-oru": Flavour("plain-oru", "", False, False),
}
WORKFLOW: Mapping[str, Flavour] = {
    "tlr-1.0": Flavour("answer", "", True, False),
    "tlr-1.0-orm": Flavour("order", "", True, False),
    "siu-2.5": Flavour("slot", "", False, False),
}
"""What an Endpoint may ask for beside reports, with them or alone: answers to its orders, the orders it is to answer,
appointments (`orders`)."""
WORKFLOW_NAMES: Mapping[str, str] = {
    "tlr-1.0": "Réponse à la demande non remise",
    "tlr-1.0-orm": "Demande non remise",
    "siu-2.5": "Rendez-vous non remis",
}


@dataclass(frozen=True, slots=True)
class Destination:
    """One road of one report. `lane` orders deliveries; `second_leg` says what confirms the handing over; `addressee`
    is who is at its end, in one spelling, and `person` whose mailbox or software it is; `site` the key of the
    establishment whose patient and visit numbers are known there, or ''. `trigger`: new (T02), in the place of the
    document `replaces` (T10), or taking that back (T04); the delivery `after` brought that document."""

    kind: Literal["hl7", "mail"]
    lane: str
    endpoint: str
    display: str
    second_leg: Literal["none", "zam", "dsn"]
    addressee: str
    flavour: str = ""
    application: str = ""
    facility: str = ""
    mailbox: str = ""
    dmp: bool = False
    person: str = ""
    trigger: Trigger = "T02"
    replaces: str = ""
    after: str = ""
    site: str = ""

    @property
    def named(self) -> bool:
        """Whether it says who is at its end."""
        return self.kind == "mail" or named_in(self.endpoint) is not None


@dataclass(frozen=True, slots=True)
class Shut:
    """A road not taken: who does not get `what` by it and why, in French for who reads the case; `lane` and `person`
    are those of the road, where there are any."""

    whom: str
    why: str
    what: str = "Compte rendu non remis"
    lane: str = ""
    person: str = ""

    @property
    def text(self) -> str:
        """One sentence."""
        return f"{self.what} à {self.whom} : {self.why}."


@dataclass(frozen=True, slots=True)
class Plan:
    """The roads of a report, those that are shut, and the people whose own software is served."""

    destinations: tuple[Destination, ...]
    shut: tuple[Shut, ...]
    people: frozenset[str] = frozenset()


class _Roads:
    """A plan in the making: one destination per mailbox and per receiving application, be it the DMP's or its own."""

    def __init__(self) -> None:
        self.taken: dict[str, Destination] = {}
        self.shut: list[Shut] = []
        self.people: set[str] = set()

    def close(self, whom: str, why: str, lane: str = "", person: str = "") -> None:
        shut = Shut(whom, why, lane=lane, person=person)
        if shut not in self.shut:
            self.shut.append(shut)

    def open(self, destination: Destination) -> None:
        self.taken[addressee_of(destination.endpoint)] = destination


def plan(
    report: Report,
    patient: Mapping[str, Any],
    found: Iterable[Candidate],
    requester: str,
    sites: Sites,
    settings: Settings,
    doctors: Sequence[Doctor] = (),
    stands: Callable[[str, bool], bool] = lambda *_: False,
) -> Plan:
    """The plan of a final report: `found` are the Endpoints of those who take part, `requester` the reference of who
    asked, `doctors` the declared médecins traitants. Each addressee once; whoever has an Endpoint or should be mailed
    and gets nothing is told in `shut`. What is masked to professionals goes to no `doctors`: they did not ask.
    `stands`: whether an earlier version is behind a lane already, in the DMP or with an application."""
    roads = _Roads()
    masked = is_masked(report)
    own = {one.person for one in doctors} if masked else ()
    for candidate in found:
        if candidate.person and candidate.person in own:
            continue  # their own software; why stands with their name below
        code = report_flavour(candidate.endpoint)
        if candidate.endpoint and code is None:
            continue  # an Endpoint for something else: images, notifications
        whom = _display(candidate)
        flavour = FLAVOURS.get(code or "")
        follows = flavour is not None and stands(candidate.reference, flavour.platform)
        why = refusal(candidate, code or "", flavour, report.patient, sites, follows=follows)
        if why or flavour is None:
            roads.close(whom, why, candidate.reference)
            continue
        _by_hl7(roads, candidate, code or "", flavour, whom, report, patient)
    asker = f"{report.requester.given} {report.requester.family}".strip()
    _by_mail(roads, requester, asker, report.requester.mailbox, "le professionnel requérant", settings)
    for doctor in doctors:
        whom = f"{doctor.name} (médecin traitant)" if doctor.name else "son médecin traitant"
        if why := doctor.refusal or (MASKED if masked else ""):
            roads.close(whom, why, person=doctor.person)
        else:
            _by_mail(roads, doctor.person, whom, doctor.mailbox, "le médecin traitant", settings)
    return Plan(tuple(roads.taken.values()), tuple(roads.shut), frozenset(roads.people))


def is_masked(report: Report) -> bool:
    """Whether a report is hidden from professionals, but for who asked, who signed and their houses."""
    return any(one.code == MASKED_CODE for one in report.visibility)


def refusal(
    candidate: Candidate,
    code: str,
    flavour: Flavour | None,
    patient: PatientIdentity,
    sites: Sites,
    *,
    follows: bool = False,
) -> str:
    """Why nothing can go to an Endpoint, or ''. `follows`: what goes there replaces or ends what stands there, so that
    who is at its end need not be said."""
    named = follows or named_in(str(candidate.endpoint.get("address", "")))
    if why := out_of_service(candidate) or ("" if named else nameless(candidate.reference)):
        return why
    if flavour is None:
        return f"{candidate.reference} demande le profil {code}, qui n'existe pas ici ({', '.join(FLAVOURS)})"
    if patient.ins and flavour.ins_alone:
        return ""
    for _, oid, _, _ in patient.local_ids:
        owner = sites.of_oid(oid)
        if owner and owner[0].key == candidate.site:
            return ""
    known = "ni INS qualifiée ni numéro de patient" if flavour.ins_alone else "pas de numéro de patient"
    return f"le patient n'a {known} de cet établissement"


def nameless(lane: str) -> str:
    """Why nothing new goes into a lane whose address does not say who is at its end, in French."""
    return f"l'adresse de {lane} ne nomme pas l'application et l'établissement destinataires (application, facility)"


def out_of_service(candidate: Candidate) -> str:
    """Why an Endpoint takes nothing, whatever it is, or ''."""
    if not candidate.endpoint:
        return f"{candidate.reference} n'est pas enregistré ici"
    if candidate.endpoint.get("status") != "active":
        return f"{candidate.reference} n'est pas en service (statut {candidate.endpoint.get('status')})"
    return ""


def _by_hl7(
    roads: _Roads,
    candidate: Candidate,
    code: str,
    flavour: Flavour,
    whom: str,
    report: Report,
    patient: Mapping[str, Any],
) -> None:
    address = str(candidate.endpoint.get("address", ""))
    same = roads.taken.get(addressee_of(address))
    if candidate.person and not flavour.platform and (same is None or same.flavour == code):
        roads.people.add(candidate.person)
    if same is not None:
        # Another spelling of an Endpoint that is served already.
        if same.flavour != code:
            roads.close(whom, f"son adresse est celle de {same.display}, qui le reçoit déjà sous une autre forme")
        elif road_of(same.endpoint) != road_of(address):
            named = f"{same.application} de {same.facility}"
            roads.close(whom, f"l'application {named} le reçoit déjà par {same.display}, à une autre adresse")
        return
    if flavour.platform:
        why = dmp_refusal(report, patient)
        fed = next((one for one in roads.taken.values() if one.dmp), None)
        if not why and fed:
            why = f"le DMP est déjà alimenté par {fed.display}"
        if why:
            alone = "et nous envoyons nous-mêmes les courriels : la plateforme n'aurait rien à faire"
            roads.close(whom, f"{why}, {alone}", candidate.reference)
            return
    roads.open(hl7_road(candidate, code, platform=flavour.platform))


def hl7_road(candidate: Candidate, code: str, *, platform: bool = False) -> Destination:
    """The way to an Endpoint in one of its flavours. `platform`: it feeds the DMP and says so later."""
    address = str(candidate.endpoint.get("address", ""))
    query = _query(address)
    return Destination(
        kind="hl7",
        lane=candidate.reference,
        endpoint=address,
        display=_display(candidate),
        second_leg="zam" if platform else "none",
        addressee=DMP if platform else addressee_of(address),
        flavour=code,
        application=query.get("application", [""])[0],
        facility=query.get("facility", [""])[0],
        dmp=platform,
        person=candidate.person,
        site=candidate.site,
    )


def _display(candidate: Candidate) -> str:
    return str(candidate.endpoint.get("name") or candidate.reference)


def _by_mail(roads: _Roads, person: str, whom: str, mailbox: str, role: str, settings: Settings) -> None:
    """Somebody's MSSanté mailbox, unless their own software has the report already, or the mailbox itself."""
    if person in roads.people:
        return
    if not mailbox:
        roads.close(whom, f"aucune boîte MSSanté n'est connue pour {role}", person=person)
    elif not settings.smtp:
        roads.close(whom, "aucun opérateur MSSanté n'est configuré (réglage smtp)", person=person)
    else:
        road = mail_road(mailbox, person)
        roads.taken.setdefault(road.addressee, road)


def mail_road(mailbox: str, person: str, display: str = "") -> Destination:
    """The way to an MSSanté mailbox; `person` is whose it is, as a reference."""
    return Destination(
        kind="mail",
        lane=f"{MAIL_LANE}:{mailbox.lower()}",
        endpoint=f"mssante:{mailbox}",
        display=display or mailbox,
        second_leg="dsn",
        addressee=f"mailto:{mailbox.lower()}",
        mailbox=mailbox,
        person=person,
    )


def addressee_of(address: str) -> str:
    """Who is at the end of an address: the receiver named for MSH-5 and MSH-6, else the address in one spelling."""
    named = named_in(address)
    return f"hl7:{named[0]}|{named[1]}" if named else road_of(address)


def named_in(address: str) -> tuple[str, str] | None:
    """The application and the facility an address bears, MSH-5 and MSH-6 of what goes there; None unless both do."""
    query = _query(address)
    application, facility = (query.get(name, [""])[0].strip() for name in ("application", "facility"))
    return (application, facility) if application and facility else None


def road_of(address: str) -> str:
    """An address in one spelling: scheme and host in lower case, port as a number, query sorted, no fragment; every
    name of this very machine is `localhost`.

    One that cannot be read stands for itself (and fails in the outbox).
    """
    try:
        parts = urlsplit(address.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return address
    host = _host(host)
    query = urlencode(sorted(parse_qsl(parts.query)))
    return f"{parts.scheme}://{host}:{port or ''}{unquote(parts.path).rstrip('/')}?{query}"


def _host(name: str) -> str:
    try:
        ip = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        name = _punycode(name)
        return "localhost" if name == "localhost" or name.endswith(".localhost") else name
    mapped = getattr(ip, "ipv4_mapped", None) or ip
    return "localhost" if mapped.is_loopback else str(mapped.compressed)


def _punycode(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return host


def _query(address: str) -> Mapping[str, list[str]]:
    try:
        return parse_qs(urlsplit(address).query)
    except ValueError:
        return {}


def dmp_refusal(report: Report, patient: Mapping[str, Any]) -> str:
    """Why the DMP may not be fed with a report, or ''."""
    if report.patient.ins is None:
        return "le DMP demande une INS qualifiée"
    if report.type.code not in DMP_TYPES:
        return f"le DMP ne reçoit pas les documents de type {report.type.code}"
    status, feed = _dmp(patient)
    if status != "ACTIF":
        return "le DMP du patient n'est pas connu comme actif" if not status else f"le DMP du patient est {status}"
    return "le patient s'oppose à l'alimentation de son DMP" if feed == "IO" else ""


def dmp_open(patient: Mapping[str, Any]) -> bool:
    """Whether the hospital said that the DMP is open (ZFA-1 ACTIF) and its feeding not opposed (ZFA-9 not IO)."""
    status, feed = _dmp(patient)
    return status == "ACTIF" and feed != "IO"


def _dmp(patient: Mapping[str, Any]) -> tuple[str, str]:
    """(ZFA-1, ZFA-9) as the hospital last said them."""
    for extension in patient.get("extension", ()):
        if "dmp" in str(extension.get("url", "")).lower():
            parts = {part.get("url"): str(part.get("valueCode") or "") for part in extension.get("extension", ())}
            return parts.get("status", ""), parts.get("feed", "")
    return "", ""


def report_flavour(endpoint: Mapping[str, Any]) -> str | None:
    """The flavour an Endpoint asks reports in, whether we know it or not; None when it is none for reports."""
    return next((code for code in profiles(endpoint) if code not in WORKFLOW), None)


def profiles(endpoint: Mapping[str, Any]) -> list[str]:
    """Every flavour an Endpoint asks for, in its order."""
    return [
        str(coding.get("code", ""))
        for concept in endpoint.get("payloadType", ())
        for coding in concept.get("coding", ())
        if coding.get("system") == PROFILE_SYSTEM
    ]
