"""A finished report as an XDM submission: METADATA.XML, INDEX.HTM, README.TXT, and the letter that carries them.

METADATA.XML repeats what the CDA header says, in the words of ebRIM; `files` refuses to make an archive whose two
halves disagree. Strict: valid against lcm.xsd (Slot, Name, Classification, ExternalIdentifier, in that order).
Sources: IHE ITI TF-3 4.2.3 and 4.1 (https://profiles.ihe.net/ITI/TF/Volume3/ch-4.2.html), ITI-32; the attribute tables
of ANS interop-ig-portabilite (https://github.com/ansforge/interop-ig-portabilite) and ASS_X04, ASS_A12 of the NOS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import NAMESPACE_OID, UUID, uuid5
from zoneinfo import ZoneInfo

from lxml import etree

from mappers.fhir_to_report import Code, Org, PatientIdentity, Professional, Report, oid_of
from mappers.identity import Site
from mssante import coherence
from mssante import metadata as ebrim
from mssante.letter import Letter, plain

PERSON_OID = "1.2.250.1.71.4.2.1"
STRUCTURE_OID = "1.2.250.1.71.4.2.2"
CLASS_OID = "1.2.250.1.213.1.1.4.1"
FORMAT_OID = "1.3.6.1.4.1.19376.1.2.3"

_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_HTML = "http://www.w3.org/1999/xhtml"
_XHTML = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">'
_OBJECT_TYPE = "urn:oasis:names:tc:ebxml-regrep:ObjectType:RegistryObject:"

# ASS_X04: the class of each document type we may send.
_CLASS_OF_TYPE = {
    "85208-7": "10", "75496-0": "10", "11488-4": "10", "96349-6": "10", "70004-7": "10", "89233-1": "10",
    "18748-4": "31", "55115-0": "42",
}  # fmt: skip
_CLASS_LABELS = {"10": "Compte rendu", "31": "Imagerie médicale", "42": "Prescription"}
_PDF_FORMAT = Code(coherence.PDF_FORMAT, "Document à corps non structuré en Pdf/A-1", FORMAT_OID)
_REFERENCES = "urn:ihe:iti:xds:2013:referenceIdList"
_REPLACES = "urn:ihe:iti:2007:AssociationType:RPLC"
_SEX = {"male": "M", "female": "F"}


@dataclass(frozen=True, slots=True)
class Application:
    """What README.TXT names as the sending software."""

    name: str = "Passerelle"
    version: str = ""
    vendor: str = ""


DEFAULT_APPLICATION = Application()


class Incoherent(ValueError):
    """METADATA.XML and the CDA disagree; `differences` says where."""

    def __init__(self, differences: tuple[coherence.Difference, ...]) -> None:
        super().__init__("; ".join(str(difference) for difference in differences))
        self.differences = differences


def files(
    report: Report,
    site: Site,
    *,
    cda: bytes,
    submission_id: str,
    submitted_at: datetime,
    application: Application = DEFAULT_APPLICATION,
    replaced_submission: str = "",
) -> dict[str, bytes]:
    """The files of IHE_XDM.ZIP by their short names, ready for `envelope.xdm_zip`.

    Arguments as for `metadata`. Raises Incoherent when METADATA.XML contradicts the CDA.
    """
    described = metadata(
        report,
        site,
        cda=cda,
        submission_id=submission_id,
        submitted_at=submitted_at,
        replaced_submission=replaced_submission,
    )
    differences = coherence.incoherences(ebrim.read(described).entries[0], cda)
    if differences:
        raise Incoherent(differences)
    return {
        "INDEX.HTM": index_htm(report, site),
        "README.TXT": readme_txt(report, site, application=application),
        "DOC0001.XML": cda,
        "METADATA.XML": described,
    }


def metadata(
    report: Report,
    site: Site,
    *,
    cda: bytes,
    submission_id: str,
    submitted_at: datetime,
    replaced_submission: str = "",
) -> bytes:
    """METADATA.XML of one submission of one document: UTF-8, CRLF; the same arguments give the same bytes.

    `cda` is the exact content of DOC0001.XML; `submission_id` a UUID, new for each submission (a resend of the same
    mail keeps it); `submitted_at` is aware. `replaced_submission` is the UUID of the one that brought the receiver the
    version this replaces: its entry is the target of an association RPLC, beside what the CDA says itself. Raises
    ValueError when the document type has no class (ASS_X04), or the patient has neither a qualified INS nor a local
    identifier.
    """
    if report.type.code not in _CLASS_OF_TYPE:
        raise ValueError(f"ASS_X04 gives no class to the document type {report.type.code}: add it to the table")
    ids = _Ids(UUID(submission_id))
    author = _author_slots(report.expert)
    root = etree.fromstring(f'<l:SubmitObjectsRequest xmlns:l="{ebrim.LCM}" xmlns="{ebrim.RIM}"/>')
    objects = _add(root, "RegistryObjectList")
    _submission_set(objects, report, site, ids, submitted_at, author)
    _document_entry(objects, report, ids, cda, author)
    member = {"associationType": ebrim.HAS_MEMBER, "sourceObject": ids.set, "targetObject": ids.entry}
    association = _add(objects, "Association", {"id": ids.next("association"), **member})
    _slot(association, "SubmissionSetStatus", "Original")
    if replaced_submission:
        old = _Ids(UUID(replaced_submission)).entry
        link = {"associationType": _REPLACES, "sourceObject": ids.entry, "targetObject": old}
        _add(objects, "Association", {"id": ids.next("replacement"), **link})
    return _text(root)


def index_htm(report: Report, site: Site) -> bytes:
    """INDEX.HTM: XHTML naming the sender and linking README.TXT; UTF-8, CRLF."""
    sender = _named_structure(report.expert.org)
    notice = (
        "Document de test : patient fictif, à ne pas utiliser pour des soins."
        if report.test or site.mode == "test"
        else "Données de santé couvertes par le secret professionnel : réservées au destinataire de ce message."
    )
    html = etree.fromstring(f'<html xmlns="{_HTML}" xml:lang="fr" lang="fr"/>')
    head, body = _sub(html, "head"), _sub(html, "body")
    _sub(head, "title", f"{plain(report.type.display)} - {sender}")
    _sub(body, "p", f"Émetteur : {sender}")
    _sub(body, "p", notice)
    link = _sub(body, "p", "Voir le fichier ")
    _sub(link, "a", "README.TXT", href="README.TXT")
    return _text(html, _XHTML + "\n")


def readme_txt(report: Report, site: Site, *, application: Application = DEFAULT_APPLICATION) -> bytes:
    """README.TXT: who sends, with which software, what to do, which files; French, UTF-8, CRLF."""
    org = report.expert.org
    title = f"{report.expert.suffix} " if report.expert.suffix else ""
    lines = [
        "Émetteur :",
        f"  Nom : {title}{report.expert.family} {report.expert.given}",
        f"  Organisme : {_named_structure(org)}",
        *([f"  Adresse : {org.address or site.address}"] if org.address or site.address else []),
        *([f"  Téléphone : {org.telecom or site.telecom}"] if org.telecom or site.telecom else []),
        "",
        "Application de l'émetteur :",
        f"  Nom : {application.name}",
        f"  Version : {application.version}",
        f"  Éditeur : {application.vendor}",
        "",
        "Instructions :",
        "  Intégrez cette archive dans votre logiciel de professionnel de santé.",
        "  Le même document est joint au message en PDF, hors de l'archive, pour une lecture directe.",
        "",
        "Arborescence :",
        "  INDEX.HTM",
        "  README.TXT",
        "  IHE_XDM",
        "    SUBSET01",
        "      DOC0001.XML   le document (CDA R2)",
        "      METADATA.XML  ses métadonnées (XDS)",
        "",
    ]
    return "\r\n".join(
        "" if not line else line[: len(line) - len(line.lstrip())] + plain(line) for line in lines
    ).encode()


def letter(report: Report, site: Site, reason: str = "") -> Letter:
    """What the mail with a report says: values for `envelope.mail`. `reason`: why it replaces an earlier one."""
    sender = " ".join(filter(None, (report.expert.suffix, report.expert.given, report.expert.family)))
    test = "Message de test : patient fictif.\n\n" if report.test or site.mode == "test" else ""
    text = (
        f"Bonjour,\n\n{test}Veuillez trouver ci-joint le document « {plain(report.title)} » concernant votre patient, "
        f"établi par {sender} ({plain(report.expert.org.name)}).\n\n{_replacing(report, reason)}"
        "L'archive IHE_XDM.ZIP est destinée à votre logiciel ; le fichier PDF porte le même contenu.\n"
    )
    return _letter(report, text)


def withdrawal(report: Report, site: Site, reason: str) -> Letter:
    """What the mail says that takes a report back: values for `envelope.notice`. It names the report, never repeats
    it."""
    sender = " ".join(filter(None, (report.expert.suffix, report.expert.given, report.expert.family)))
    test = "Message de test : patient fictif.\n\n" if report.test or site.mode == "test" else ""
    signed = report.signed_at.astimezone(ZoneInfo(report.zone)).strftime("%d/%m/%Y")
    text = (
        f"Bonjour,\n\n{test}Le document « {plain(report.title)} » concernant votre patient, signé le {signed} par "
        f"{sender} ({plain(report.expert.org.name)}) et reçu de notre part, est retiré.\n\n"
        f"Motif : {plain(reason)}\n\nIl ne doit plus être utilisé : supprimez-le du dossier du patient, ou marquez-le "
        "comme erroné.\n"
    )
    return _letter(report, text)


def _replacing(report: Report, reason: str) -> str:
    if not report.replaces:
        return ""
    why = f"Motif : {plain(reason)}\n\n" if reason else ""
    return f"Il annule et remplace la version que vous avez reçue : ne l'utilisez plus.\n\n{why}"


def _letter(report: Report, text: str) -> Letter:
    patient = report.patient
    return Letter(
        label=report.type.display, family=patient.birth_family, given=patient.birth_given,
        birth_date=patient.birth_date, performed=report.started_at.astimezone(ZoneInfo(report.zone)).date(),
        codes=(report.type.code,), qualified=patient.ins is not None, text=text, replaces=bool(report.replaces),
    )  # fmt: skip


def structure_id(org: Org) -> str:
    """The national identifier of a structure: `1` + FINESS, '' when it has none."""
    return f"1{org.finess}" if org.finess else ""


def _named_structure(org: Org) -> str:
    return f"{plain(org.name)} ({structure_id(org)})" if org.finess else plain(org.name)


def xcn(person: Professional) -> str:
    """A professional as XCN: `8`+RPPS, family, given, the national authority, IDNPS."""
    name = f"{_component(person.family)}^{_component(person.given)}"
    return f"8{person.rpps}^{name}^^^^^^&{PERSON_OID}&ISO^D^^^IDNPS"


def xon(org: Org) -> str:
    """A structure as XON: its name, the national authority, IDNST, `1`+FINESS; the name alone without a FINESS."""
    name = _component(org.name)
    return f"{name}^^^^^&{STRUCTURE_OID}&ISO^IDNST^^^{structure_id(org)}" if org.finess else name


def patient_cx(patient: PatientIdentity) -> str:
    """patientId: the qualified INS (type NH), else the first local identifier."""
    return f"{patient.ins[0]}^^^&{patient.ins[1]}&ISO^NH" if patient.ins else source_cx(patient)


def source_cx(patient: PatientIdentity) -> str:
    """sourcePatientId: the IPP (type PI) or another local identifier, else the INS."""
    ranked = sorted(patient.local_ids, key=lambda held: held[3] != "PI")
    if ranked:
        value, oid, _, kind = ranked[0]
        return f"{_component(value)}^^^&{oid}&ISO^{kind}"
    if patient.ins:
        return f"{patient.ins[0]}^^^&{patient.ins[1]}&ISO^NH"
    raise ValueError("the patient has neither a qualified INS nor a local identifier: METADATA.XML cannot name them")


def source_patient_info(patient: PatientIdentity) -> tuple[str, ...]:
    """sourcePatientInfo: the strict traits, the used name when there is one, the place of birth when it is known."""
    family, given = _component(patient.birth_family), _component(patient.birth_given)
    values = [f"PID-5|{family}^{given}^{_component(patient.birth_givens or patient.birth_given)}^^^^L"]
    if patient.used_family or patient.used_given:
        used_family = _component(patient.used_family or patient.birth_family)
        values.append(f"PID-5|{used_family}^{_component(patient.used_given or patient.birth_given)}^^^^^D")
    values += [f"PID-7|{patient.birth_date:%Y%m%d}", f"PID-8|{_SEX.get(patient.gender, 'U')}"]
    if patient.birth_cog:
        values.append(f"PID-11|^^^^^^BDL^^{_component(patient.birth_cog)}")
    return tuple(values)


_XHTML = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd">'


def references(report: Report) -> tuple[str, ...]:
    """referenceIdList: the request, the accession number and the studies, each as CXi (JDV_J197 types)."""
    numbers = (
        (report.request_id, report.request_oid, "urn:ihe:iti:xds:2013:order"),
        (report.accession, report.accession_oid, "urn:ihe:iti:xds:2013:accession"),
    )
    found = [f"{_component(value)}^^^&{oid}&ISO^{kind}" for value, oid, kind in numbers if value and oid]
    return (*found, *(f"{uid}^^^^urn:ihe:iti:xds:2016:studyInstanceUID" for uid in report.studies))


class _Ids:
    """Every id of one submission, derived from its UUID: the same submission is written the same way twice."""

    def __init__(self, submission: UUID) -> None:
        self._submission = submission
        self.set = f"urn:uuid:{submission}"
        self.entry = self.next("entry")
        self.oid = oid_of(str(submission))
        self._count = 0

    def next(self, name: str) -> str:
        return f"urn:uuid:{uuid5(self._submission, name)}"


def _submission_set(
    objects: etree._Element,
    report: Report,
    site: Site,
    ids: _Ids,
    submitted_at: datetime,
    author: Mapping[str, str],
) -> None:
    package = _add(objects, "RegistryPackage", _registry_object(ids.set, "RegistryPackage"))
    _slot(package, "submissionTime", _utc(submitted_at))
    _named(package, report.title)
    node = {"id": ids.next("set"), "classifiedObject": ids.set, "classificationNode": ebrim.SUBMISSION_SET}
    _add(package, "Classification", node)
    owner = _Owner(package, ids, ids.set, "XDSSubmissionSet", ebrim.SET_SCHEMES)
    _author(owner, author)
    _code(owner, "contentTypeCode", report.expert.org.facility_type)
    _identifier(owner, "patientId", patient_cx(report.patient))
    _identifier(owner, "sourceId", source_id(site))
    _identifier(owner, "uniqueId", ids.oid)


def _document_entry(objects: etree._Element, report: Report, ids: _Ids, cda: bytes, author: Mapping[str, str]) -> None:
    stable = {"id": ids.entry, "mimeType": "text/xml", "objectType": ebrim.STABLE_DOCUMENT, "status": ebrim.APPROVED}
    entry = _add(objects, "ExtrinsicObject", stable)
    for name, values in _document_slots(report, cda):
        if values:
            _slot(entry, name, *values)
    _named(entry, report.title)
    owner = _Owner(entry, ids, ids.entry, "XDSDocumentEntry", ebrim.ENTRY_SCHEMES)
    _author(owner, author)
    class_code = _CLASS_OF_TYPE[report.type.code]
    _code(owner, "classCode", Code(class_code, _CLASS_LABELS[class_code], CLASS_OID))
    for number, code in enumerate((report.confidentiality, *report.visibility)):
        # The first is the CDA's own; who may not see the document follows, and stands in no CDA.
        _code(owner, "confidentialityCode", code, str(number) if number else "")
    _code(owner, "eventCodeList", report.act)
    _code(owner, "formatCode", _PDF_FORMAT)
    _code(owner, "healthcareFacilityTypeCode", report.expert.org.facility_type)
    _code(owner, "practiceSettingCode", report.expert.org.practice_setting)
    _code(owner, "typeCode", report.type)
    _identifier(owner, "patientId", patient_cx(report.patient))
    _identifier(owner, "uniqueId", oid_of(report.id))


def _document_slots(report: Report, cda: bytes) -> Iterable[tuple[str, tuple[str, ...]]]:
    return (
        ("URI", ("DOC0001.XML",)),
        ("hash", (hashlib.sha1(cda, usedforsecurity=False).hexdigest(),)),
        ("size", (str(len(cda)),)),
        ("creationTime", (_utc(report.signed_at),)),
        ("languageCode", ("fr-FR",)),
        ("legalAuthenticator", (xcn(report.expert),)),
        ("serviceStartTime", (_utc(report.started_at),)),
        ("serviceStopTime", (_utc(report.ended_at),)),
        ("sourcePatientId", (source_cx(report.patient),)),
        ("sourcePatientInfo", source_patient_info(report.patient)),
        (_REFERENCES, references(report)),
    )


def source_id(site: Site) -> str:
    """The OID of the sending system: under the national arc of structures, or ours where the FINESS has letters."""
    if site.finess_eg.isdigit():
        return f"{STRUCTURE_OID}.1{site.finess_eg}"
    return site.document_oid or oid_of(str(uuid5(NAMESPACE_OID, f"{STRUCTURE_OID}.1{site.finess_eg}")))


def _author_slots(person: Professional) -> dict[str, str]:
    specialty = "^".join(map(_component, (person.specialty.code, person.specialty.display, person.specialty.system)))
    return {"authorInstitution": xon(person.org), "authorPerson": xcn(person), "authorSpecialty": specialty}


def _component(text: str) -> str:
    # ebRIM holds 256 characters a value: the longest XCN is two names and some sixty characters.
    return ebrim.escape(plain(text)[:80])


def _text(root: etree._Element, doctype: str = "") -> bytes:
    """The XML text in UTF-8 with CRLF; the declaration in the double quotes that naive readers look for."""
    body = etree.tostring(root, encoding="unicode", pretty_print=True)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{doctype}{body}'.replace("\n", "\r\n").encode()


def _utc(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise ValueError("a time of the report has no time zone")
    return moment.astimezone(UTC).strftime("%Y%m%d%H%M%S")


@dataclass(frozen=True, slots=True)
class _Owner:
    """The registry object that classifications and identifiers hang on."""

    element: etree._Element
    ids: _Ids
    id: str
    kind: str
    schemes: Mapping[str, str]


def _registry_object(identifier: str, kind: str) -> dict[str, str]:
    return {"id": identifier, "objectType": _OBJECT_TYPE + kind, "status": ebrim.APPROVED}


def _author(owner: _Owner, slots: Mapping[str, str]) -> None:
    classification = _classification(owner, "author", "")
    for name, value in slots.items():
        _slot(classification, name, value)


def _code(owner: _Owner, name: str, code: Code, nth: str = "") -> None:
    """A coded attribute; `nth` tells one that repeats from the first."""
    classification = _classification(owner, name, plain(code.code), nth)
    _slot(classification, "codingScheme", code.system)
    _named(classification, code.display)


def _classification(owner: _Owner, name: str, node: str, nth: str = "") -> etree._Element:
    identifier = owner.ids.next(f"{owner.kind}.{name}{nth}")
    scheme = {"classificationScheme": owner.schemes[name], "classifiedObject": owner.id, "nodeRepresentation": node}
    return _add(owner.element, "Classification", {"id": identifier, **scheme})


def _identifier(owner: _Owner, name: str, value: str) -> None:
    identifier = owner.ids.next(f"{owner.kind}.{name}.id")
    scheme = {"registryObject": owner.id, "identificationScheme": owner.schemes[name], "value": value}
    element = _add(owner.element, "ExternalIdentifier", {"id": identifier, **scheme})
    _named(element, f"{owner.kind}.{name}")


def _named(parent: etree._Element, text: str) -> None:
    name = _add(parent, "Name")
    _add(name, "LocalizedString", {_XML_LANG: "fr-FR", "charset": "UTF-8", "value": plain(text)})


def _slot(parent: etree._Element, name: str, *values: str) -> None:
    held = _add(_add(parent, "Slot", {"name": name}), "ValueList")
    for value in values:
        _add(held, "Value").text = value


def _add(parent: etree._Element, name: str, attributes: Mapping[str, str] | None = None) -> etree._Element:
    return etree.SubElement(parent, f"{{{ebrim.RIM}}}{name}", dict(attributes or {}))


def _sub(parent: etree._Element, name: str, text: str = "", **attributes: str) -> etree._Element:
    element = etree.SubElement(parent, f"{{{_HTML}}}{name}", attributes)
    element.text = text or None
    return element
