"""The report as CDA R2, TLM-CR level 1: a French header around the PDF; and the check of such headers.

Hidden here: the order and spelling of every header element. `check_header` looks for what XSD and the national
schematrons let through, above all a missing identity, addressee, order or time zone.

Sources: HL7 CDA R2; CI-SIS volets Structuration minimale (1.2.250.1.213.1.1.1.1) and TLM-CR 2022.01; IHE ITI XDS-SD
(1.3.6.1.4.1.19376.1.2.20), which is also how level 1 documents are recognised.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from datetime import datetime

from lxml import etree

from mappers import french
from mappers.fhir_to_identity import INS_OIDS, PROFESSIONALS_OID, STRUCTURES_OID, ins_key_holds
from mappers.fhir_to_report import Code, Org, PatientIdentity, Professional, Report, oid_of
from mappers.identity import Site
from mssante import xml_text
from mssante.letter import plain
from profiles.issues import Finding, Severity

CDA = "urn:hl7-org:v3"
TEMPLATES = ("2.16.840.1.113883.2.8.2.1", "1.2.250.1.213.1.1.1.1", "1.3.6.1.4.1.19376.1.2.20")
"""HL7 France, CI-SIS header, XDS-SD: with an unstructured body exactly these three, in this order."""
ATTENDING = Code("PCP", "Médecin Traitant", "2.16.840.1.113883.5.88")
"""JDV_J47, the function of a participant INF (JDV_J144): the declared médecin traitant."""
VIRTUAL = Code("VR", "Virtuelle (exemple : RCP en l'absence du patient)", "2.16.840.1.113883.5.4")

GENDERS = {"female": ("F", "Féminin"), "male": ("M", "Masculin"), "unknown": ("UN", "Inconnu")}
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

Node = etree._Element


def cda(report: Report, pdf: bytes, site: Site | None = None) -> bytes:
    """The CDA document, UTF-8: the same arguments give the same bytes. `pdf` is embedded as it is.

    The custodian is the expert's structure; `site` completes its address and telephone when it is that structure.
    Times are written with the offset of `report.zone`. Control characters of texts become blanks.
    """
    root = etree.fromstring(f'<ClinicalDocument xmlns="{CDA}"/>')
    _identification(root, report)
    _record_target(root, report.patient)
    author = _add(root, "author")
    _add(author, "time", value=_stamp(report.signed_at, report))
    _professional(_add(author, "assignedAuthor"), report.expert)
    _custodian(root, report.expert.org, site)
    _recipient(root, report.requester)
    authenticator = _add(root, "legalAuthenticator")
    _add(authenticator, "time", value=_stamp(report.signed_at, report))
    _add(authenticator, "signatureCode", code="S")
    _professional(_add(authenticator, "assignedEntity"), report.expert)
    _participants(root, report)
    _orders(root, report)
    _service(root, report)
    if report.replaces:
        related = _add(root, "relatedDocument", typeCode="RPLC")
        parent = _add(related, "parentDocument")
        _add(parent, "id", root=oid_of(report.replaces))
        if report.version > 1:
            # The national rules allow id and versionNumber here, and no setId.
            _add(parent, "versionNumber", value=str(report.version - 1))
    _encounter(root, report)
    body = _add(_add(root, "component"), "nonXMLBody")
    encoded = base64.b64encode(pdf).decode("ascii")
    _add(body, "text", mediaType="application/pdf", representation="B64").text = encoded
    text = etree.tostring(root, encoding="unicode", pretty_print=True)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()


def _identification(root: Node, report: Report) -> None:
    _add(root, "realmCode", code="FR")
    _add(root, "typeId", root="2.16.840.1.113883.1.3", extension="POCD_HD000040")
    for template in TEMPLATES:
        _add(root, "templateId", root=template)
    _add(root, "id", root=oid_of(report.id))
    _code(root, "code", report.type)
    _add(root, "title").text = plain(report.title)
    _add(root, "effectiveTime", value=_stamp(report.signed_at, report))
    _code(root, "confidentialityCode", report.confidentiality)
    _add(root, "languageCode", code="fr-FR")
    _add(root, "setId", root=oid_of(report.set_id))
    _add(root, "versionNumber", value=str(report.version))


def _record_target(root: Node, patient: PatientIdentity) -> None:
    """INS first, then the local identifiers; every strict trait that is known, with the qualifiers of an INS."""
    role = _add(_add(root, "recordTarget"), "patientRole")
    if patient.ins:
        _add(role, "id", root=patient.ins[1], extension=patient.ins[0])
    for value, oid, _, _ in patient.local_ids:
        _add(role, "id", root=oid, extension=plain(value))
    if not patient.ins and not patient.local_ids:
        _add(role, "id", nullFlavor="UNK")
    _add(role, "addr", nullFlavor="NASK")
    _telecoms(role, f"mailto:{patient.mailbox}" if patient.mailbox else "")
    person = _add(role, "patient", classCode="PSN")
    name = _add(person, "name")
    _add(name, "family", qualifier="BR").text = plain(patient.birth_family)
    _add(name, "given").text = plain(patient.birth_givens or patient.birth_given)
    _add(name, "given", qualifier="BR").text = plain(patient.birth_given)
    if patient.used_family:
        _add(name, "family", qualifier="CL").text = plain(patient.used_family)
    if patient.used_given:
        _add(name, "given", qualifier="CL").text = plain(patient.used_given)
    gender, label = GENDERS.get(patient.gender, GENDERS["unknown"])
    _code(person, "administrativeGenderCode", Code(gender, label, "2.16.840.1.113883.5.1"))
    _add(person, "birthTime", value=patient.birth_date.strftime("%Y%m%d"))
    if patient.birth_cog or patient.birth_city:
        address = _add(_add(_add(person, "birthplace"), "place"), "addr")
        for tag, text in (("county", patient.birth_cog), ("city", patient.birth_city)):
            if text:
                _add(address, tag).text = plain(text)


def _professional(
    entity: Node,
    who: Professional,
    *,
    setting: bool = False,
    person: str = "assignedPerson",
    house: str = "representedOrganization",
) -> None:
    """The content of assignedAuthor and assignedEntity (and of associatedEntity, whose parts have other names);
    `setting` adds the practice setting of the structure. An id has no nullFlavor in the national rules: who has no
    national number has no id, and who has no structure none without a name."""
    if who.rpps:
        _add(entity, "id", root=PROFESSIONALS_OID, extension=f"8{who.rpps}")
    if who.specialty.code:
        _code(entity, "code", who.specialty)
    _address(entity, who.org.address)
    _telecoms(entity, who.org.telecom, f"mailto:{who.mailbox}" if who.mailbox else "")
    _name(_add(entity, person), who)
    if who.org.name:
        _organization(_add(entity, house), who.org, setting=setting)


def _name(person: Node, who: Professional) -> None:
    name = _add(person, "name")
    for tag, text in (("prefix", who.prefix), ("given", who.given), ("family", who.family), ("suffix", who.suffix)):
        if text:
            _add(name, tag).text = plain(text)


def _organization(node: Node, org: Org, *, setting: bool = False) -> None:
    if org.finess:
        _add(node, "id", root=STRUCTURES_OID, extension=f"1{org.finess}")
    _add(node, "name").text = plain(org.name)
    _telecoms(node, org.telecom)
    _address(node, org.address)
    if setting:
        _code(node, "standardIndustryClassCode", org.practice_setting)


def _custodian(root: Node, org: Org, site: Site | None) -> None:
    own = site if site and site.finess_eg == org.finess else None
    node = _add(_add(_add(root, "custodian"), "assignedCustodian"), "representedCustodianOrganization")
    _add(node, "id", root=STRUCTURES_OID, extension=f"1{org.finess}")
    _add(node, "name").text = plain(org.name)
    _telecoms(node, org.telecom or (own.telecom if own else ""))
    _address(node, org.address or (own.address if own else ""))


def _recipient(root: Node, who: Professional) -> None:
    recipient = _add(_add(root, "informationRecipient"), "intendedRecipient")
    _add(recipient, "id", root=PROFESSIONALS_OID, extension=f"8{who.rpps}")
    _address(recipient, who.org.address)
    _telecoms(recipient, f"mailto:{who.mailbox}" if who.mailbox else "", who.org.telecom)
    _name(_add(recipient, "informationRecipient"), who)
    _organization(_add(recipient, "receivedOrganization"), who.org)


def _participants(root: Node, report: Report) -> None:
    """Who asked, with the specialty that an addressee cannot be given, and the declared médecins traitants."""
    asked = _add(root, "participant", typeCode="REF")
    _add(asked, "time", value=_stamp(report.requested_at, report))
    _associated(asked, report.requester)
    for doctor in report.attending:
        informed = _add(root, "participant", typeCode="INF")
        _code(informed, "functionCode", ATTENDING)
        _add(informed, "time", nullFlavor="NA")
        _associated(informed, doctor)


def _associated(participant: Node, who: Professional) -> None:
    entity = _add(participant, "associatedEntity", classCode="PROV")
    _professional(entity, who, person="associatedPerson", house="scopingOrganization")


def _orders(root: Node, report: Report) -> None:
    """The request (a UUID is an OID by itself), and under its own root the accession number: one id an order."""
    own = report.request_oid or STRUCTURES_OID
    request = {"root": own, "extension": plain(report.request_id)}
    if _UUID.fullmatch(report.request_id):
        request = {"root": oid_of(report.request_id)}
    _add(_add(_add(root, "inFulfillmentOf"), "order"), "id", **request)
    if report.accession:
        accession = {"root": report.accession_oid or own, "extension": plain(report.accession)}
        _add(_add(_add(root, "inFulfillmentOf"), "order"), "id", **accession)


def _service(root: Node, report: Report) -> None:
    event = _add(_add(root, "documentationOf"), "serviceEvent", classCode="ACT")
    _code(event, "code", report.act)
    _interval(event, report)
    performer = _add(event, "performer", typeCode="PRF")
    _professional(_add(performer, "assignedEntity"), report.expert, setting=True)


def _encounter(root: Node, report: Report) -> None:
    encounter = _add(_add(root, "componentOf"), "encompassingEncounter")
    _code(encounter, "code", VIRTUAL)
    _interval(encounter, report)
    facility = _add(_add(encounter, "location"), "healthCareFacility")
    _code(facility, "code", report.expert.org.facility_type)


def _interval(parent: Node, report: Report) -> None:
    time = _add(parent, "effectiveTime")
    _add(time, "low", value=_stamp(report.started_at, report))
    _add(time, "high", value=_stamp(report.ended_at, report))


def _add(parent: Node, tag: str, **attributes: str) -> Node:
    return etree.SubElement(parent, f"{{{CDA}}}{tag}", attributes)


def _code(parent: Node, tag: str, code: Code) -> None:
    _add(parent, tag, code=plain(code.code), displayName=plain(code.display), codeSystem=code.system)


def _address(parent: Node, text: str) -> None:
    if text:
        _add(_add(parent, "addr"), "streetAddressLine").text = plain(text)
    else:
        _add(parent, "addr", nullFlavor="NASK")


def _telecoms(parent: Node, *urls: str) -> None:
    for url in filter(None, urls):
        _add(parent, "telecom", value=plain(url))
    if not any(urls):
        _add(parent, "telecom", nullFlavor="NASK")


def _stamp(at: datetime, report: Report) -> str:
    """HL7 TS to the second with offset, on the wall clock of the report's zone: `20250110152900+0100`."""
    return at.astimezone(french.zone(report.zone)).strftime("%Y%m%d%H%M%S%z")


# --- check ---------------------------------------------------------------------------------------------------------

_XPATH = {"h": CDA, "re": "http://exslt.org/regular-expressions"}
_STAMP = r"'^\d{14}[+-]\d{4}$'"
_OID = r"'^[0-2](\.(0|[1-9]\d*))+$'"
_INS_ROLE = "h:recordTarget/h:patientRole[" + " or ".join(f"h:id/@root='{oid}'" for oid in INS_OIDS) + "]"
_NAME = "h:patient/h:name/"

# (context, what must be true of each such element, what to do). Contexts that must exist are demanded by their parent.
_RULES: tuple[tuple[str, str, str], ...] = (
    (".", "h:realmCode/@code='FR'", "write realmCode FR"),
    (".", "h:typeId[@root='2.16.840.1.113883.1.3' and @extension='POCD_HD000040']", "write the CDA R2 typeId"),
    (
        ".",
        "count(h:templateId)=3 and " + " and ".join(f"h:templateId/@root='{oid}'" for oid in TEMPLATES),
        "write exactly the three templateIds of an unstructured French document: " + ", ".join(TEMPLATES),
    ),
    (".", f"re:test(h:id/@root, {_OID})", "give the document an id whose root is an OID"),
    (".", "h:code[@code='85208-7' and @displayName]", "write the document code 85208-7 with its displayName"),
    (".", "normalize-space(h:title)", "write a title"),
    (".", f"re:test(h:effectiveTime/@value, {_STAMP})", "write effectiveTime to the second with its UTC offset"),
    (".", "h:confidentialityCode[@code='N' or @code='R' or @code='V']", "write confidentialityCode N, R or V"),
    (".", "h:languageCode/@code='fr-FR'", "write languageCode fr-FR"),
    (".", f"re:test(h:setId/@root, {_OID})", "give setId, constant over the versions"),
    (".", r"re:test(h:versionNumber/@value, '^[1-9]\d*$')", "give versionNumber, an integer from 1"),
    (".", "count(h:recordTarget)=1", "write exactly one recordTarget"),
    (".", "h:author/h:assignedAuthor/h:assignedPerson", "name the author"),
    (".", "h:informationRecipient", "name the requester as informationRecipient: the report is addressed to someone"),
    (".", "h:inFulfillmentOf/h:order/h:id/@root", "write the request answered as inFulfillmentOf/order/id"),
    (".", "h:legalAuthenticator", "name who is responsible: legalAuthenticator"),
    (".", "h:documentationOf/h:serviceEvent", "write the act as documentationOf/serviceEvent"),
    (".", "h:componentOf/h:encompassingEncounter", "write componentOf/encompassingEncounter"),
    (".", "h:component/h:nonXMLBody/h:text", "embed the PDF as nonXMLBody"),
    ("h:recordTarget/h:patientRole", "h:id[@root and @extension]", "identify the patient: INS or IPP"),
    (_INS_ROLE, _NAME + "h:family[@qualifier='BR']", "an INS needs the birth name (family BR)"),
    (_INS_ROLE, _NAME + "h:given[@qualifier='BR']", "an INS needs the first birth given name (given BR)"),
    (_INS_ROLE, _NAME + "h:given[not(@qualifier)]", "an INS needs all birth given names (given without qualifier)"),
    (_INS_ROLE, "h:patient/h:administrativeGenderCode[@code='F' or @code='M' or @code='UN']", "an INS needs the sex"),
    (_INS_ROLE, r"re:test(h:patient/h:birthTime/@value, '^\d{8}')", "an INS needs the birth date"),
    (_INS_ROLE, "h:patient/h:birthplace/h:place/h:addr/h:county", "an INS needs the birth place (COG in county)"),
    ("h:author", f"re:test(h:time/@value, {_STAMP})", "write author/time with its UTC offset"),
    ("h:author/h:assignedAuthor", f"h:id[@root='{PROFESSIONALS_OID}' and @extension]", "give the author's national id"),
    ("h:author/h:assignedAuthor", "h:code[@code and @codeSystem]", "give the author's profession or specialty"),
    (
        "h:author/h:assignedAuthor",
        "h:addr and h:telecom",
        "write addr and telecom of the author, a nullFlavor if need be",
    ),
    ("h:author/h:assignedAuthor", "h:representedOrganization/h:id/@extension", "give the author's structure its id"),
    (
        "h:custodian",
        f".//h:id[@root='{STRUCTURES_OID}' or @root='1.2.250.1.213.4.1']",
        "give the custodian its national id",
    ),
    ("h:informationRecipient/h:intendedRecipient", "h:id[@root and @extension]", "give the addressee's national id"),
    (
        "h:informationRecipient/h:intendedRecipient",
        "h:informationRecipient/h:name/h:family",
        "write the name of the addressee",
    ),
    ("h:legalAuthenticator", f"re:test(h:time/@value, {_STAMP})", "write the time of signature with its UTC offset"),
    ("h:legalAuthenticator", "h:signatureCode/@code='S'", "write signatureCode S"),
    ("h:legalAuthenticator/h:assignedEntity", f"h:id/@root='{PROFESSIONALS_OID}'", "give the signer's national id"),
    (
        "h:documentationOf[1]/h:serviceEvent",
        r"re:test(h:code/@code, '^(TCG|TC|TE1|TE2|TLD|TLL|TLM|TLS)$')",
        "write the act as an NGAP letter of télémédecine, TE2 for a téléexpertise",
    ),
    (
        "h:documentationOf[1]/h:serviceEvent",
        f"re:test(h:effectiveTime/h:low/@value, {_STAMP})",
        "write the start of the act with its UTC offset",
    ),
    ("h:documentationOf[1]/h:serviceEvent", "count(h:performer)=1", "write exactly one performer of the act"),
    (
        "h:documentationOf[1]/h:serviceEvent",
        "h:performer//h:representedOrganization/h:standardIndustryClassCode/@code",
        "write the practice setting of the performer's structure",
    ),
    ("h:componentOf/h:encompassingEncounter", "h:code/@code", "write the kind of encounter, VR for a téléexpertise"),
    ("h:componentOf/h:encompassingEncounter", "h:effectiveTime", "write the time of the encounter"),
    (
        "h:componentOf/h:encompassingEncounter",
        "h:location/h:healthCareFacility/h:code/@code",
        "write the type of facility",
    ),
    ("h:component/h:nonXMLBody/h:text", "@mediaType='application/pdf'", "embed a PDF: mediaType application/pdf"),
    ("h:component/h:nonXMLBody/h:text", "@representation='B64'", "write representation B64 on the embedded PDF"),
)


def check_header(cda: bytes, report: Report | None = None) -> list[Finding]:
    """Faults of a TLM-CR header, empty when there is none; with `report`, also where it contradicts the report.

    `expression` is the XPath of the element, prefix `h` for urn:hl7-org:v3. Raises nothing: what is no CDA is one
    fatal finding.
    """
    try:
        root = xml_text.parse(cda)
    except xml_text.XmlRefused as refusal:
        return [Finding("fatal", "structure", "", str(refusal))]
    if root.tag != f"{{{CDA}}}ClinicalDocument":
        return [Finding("fatal", "structure", "", "the root is no ClinicalDocument of urn:hl7-org:v3")]
    findings = [
        _finding("required", _expression(context, test), remedy)
        for context, test, remedy in _RULES
        for node in _nodes(root, context)
        if not node.xpath(f"boolean({test})", namespaces=_XPATH)
    ]
    findings += [*_identity_faults(root), *_time_faults(root), *_version_faults(root), *_body_faults(root)]
    if report:
        findings += _contradictions(root, report)
    return findings


def _expression(context: str, test: str) -> str:
    """The element a rule is about, without the function that tests it."""
    called = re.match(r"(?:re:test|count|normalize-space)\(([^,)]+)", test)
    return (f"{context}/" if context != "." else "") + (called[1] if called else test)


def _finding(code: str, expression: str, text: str, severity: Severity = "error") -> Finding:
    return Finding(severity, code, expression, text)


def _nodes(root: Node, path: str) -> list[Node]:
    found = root.xpath(path, namespaces=_XPATH)
    return [node for node in found if isinstance(node, etree._Element)] if isinstance(found, list) else []


def _text(root: Node, path: str) -> str:
    return str(root.xpath(f"string({path})", namespaces=_XPATH))


def _identity_faults(root: Node) -> Iterator[Finding]:
    path = "h:recordTarget/h:patientRole/h:id"
    for node in _nodes(root, path):
        if node.get("root") in INS_OIDS and not ins_key_holds(node.get("extension", "")):
            yield _finding("value", path, "the INS has 15 characters, the last two its key: this one is wrong")


def _time_faults(root: Node) -> Iterator[Finding]:
    path = "h:documentationOf[1]/h:serviceEvent/h:effectiveTime"
    stamps = [_text(root, f"{path}/h:{end}/@value") for end in ("low", "high")]
    try:
        low, high = (datetime.strptime(stamp, "%Y%m%d%H%M%S%z") for stamp in stamps)
    except ValueError:
        return
    if low > high:
        yield _finding("value", path, "the act ends before it starts: correct low or high")


def _version_faults(root: Node) -> Iterator[Finding]:
    replaced = bool(_nodes(root, "h:relatedDocument[@typeCode='RPLC']/h:parentDocument/h:id"))
    later = _text(root, "h:versionNumber/@value") not in ("", "1")
    if replaced != later:
        text = "a version after the first names the one it replaces (relatedDocument RPLC), the first names none"
        yield _finding("business-rule", "h:relatedDocument", text)


def _body_faults(root: Node) -> Iterator[Finding]:
    path = "h:component/h:nonXMLBody/h:text"
    for node in _nodes(root, path):
        try:
            content = base64.b64decode("".join((node.text or "").split()), validate=True)
        except (binascii.Error, ValueError):
            yield _finding("value", path, "the body is no base64: encode the PDF")
            continue
        if not content.startswith(b"%PDF-"):
            yield _finding("value", path, "the body is no PDF")
        elif not all(
            re.search(rb"pdfaid:" + fact, content) for fact in (rb"part(>|=[\"'])1\b", rb"conformance\W+[AB]\b")
        ):
            yield _finding("value", path, "the PDF does not declare PDF/A-1 in its XMP: embed a PDF/A-1")


def _contradictions(root: Node, report: Report) -> Iterator[Finding]:
    """Where the header and the report differ: identifiers, people, instants."""
    ins_value, ins_oid = report.patient.ins or ("", "")
    person = f"[@root='{PROFESSIONALS_OID}']/@extension"
    stamps = (_stamp(at, report) for at in (report.signed_at, report.started_at, report.ended_at))
    signed, started, ended = stamps
    said: tuple[tuple[str, str], ...] = (
        ("h:id/@root", oid_of(report.id)),
        ("h:setId/@root", oid_of(report.set_id)),
        ("h:versionNumber/@value", str(report.version)),
        ("h:title", plain(report.title)),
        ("h:effectiveTime/@value", signed),
        (f"h:author/h:assignedAuthor/h:id{person}", f"8{report.expert.rpps}"),
        (f"h:legalAuthenticator/h:assignedEntity/h:id{person}", f"8{report.expert.rpps}"),
        (f"h:informationRecipient/h:intendedRecipient/h:id{person}", f"8{report.requester.rpps}"),
        ("h:documentationOf[1]/h:serviceEvent/h:effectiveTime/h:low/@value", started),
        ("h:documentationOf[1]/h:serviceEvent/h:effectiveTime/h:high/@value", ended),
        ("h:relatedDocument/h:parentDocument/h:id/@root", oid_of(report.replaces) if report.replaces else ""),
        (f"h:recordTarget/h:patientRole/h:id[@root='{ins_oid}']/@extension", ins_value),
        (f"h:recordTarget/h:patientRole/{_NAME}h:family[@qualifier='BR']", plain(report.patient.birth_family)),
        ("h:recordTarget/h:patientRole/h:patient/h:birthTime/@value", report.patient.birth_date.strftime("%Y%m%d")),
    )
    for path, expected in said:
        found = _text(root, path)
        if found != expected:
            yield _finding("value", path, f"the document says {found!r}, the report {expected!r}")
    held = {node.get("root") for node in _nodes(root, "h:recordTarget/h:patientRole/h:id")}
    for oid in held & set(INS_OIDS) - {ins_oid}:
        yield _finding("value", "h:recordTarget/h:patientRole/h:id", f"an INS of {oid} that the report does not have")
