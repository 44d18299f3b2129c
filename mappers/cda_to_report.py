"""A CDA of ours read back: who wrote it, for whom, about whom, when, under which numbers.

What takes a document back, or replaces it, tells its facts as they were sent, whatever has become since of the
resources they came from. Only what `fhir_to_cda` writes in the header is read; the texts stay in the PDF.

Sources: HL7 CDA R2; CI-SIS volet Structuration minimale; the other direction is `mappers.fhir_to_cda`.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import replace
from datetime import date, datetime

from lxml import etree

from mappers.fhir_to_cda import GENDERS
from mappers.fhir_to_identity import INS_OIDS, PROFESSIONALS_OID, STRUCTURES_OID, Resource
from mappers.fhir_to_report import (
    Code,
    Org,
    PatientIdentity,
    Professional,
    Report,
    accession_of,
    own_root,
)
from mappers.identity import Site
from mappers.order_number import placer_of
from mssante import xml_text

_NS = {"h": "urn:hl7-org:v3"}
_GENDERS = {code: gender for gender, (code, _) in GENDERS.items()}
Node = etree._Element


def sent_report(cda: bytes, document_id: str, request: Resource, patient: PatientIdentity, site: Site) -> Report:
    """The facts of the document `document_id` (UUID) as its header tells them; `patient` is who they are about today.

    Reason, exchange, consent and conclusion are left empty: nothing is to be printed again. Raises ValueError for what
    is no document of ours.
    """
    root = xml_text.parse(cda)
    event = _one(root, "h:documentationOf/h:serviceEvent")
    signed = _at(root, "h:effectiveTime/@value")
    accession, accession_oid = accession_of(request, site)
    return Report(
        id=document_id,
        set_id=_uuid(_text(root, "h:setId/@root")),
        version=int(_text(root, "h:versionNumber/@value") or 1),
        title=_text(root, "h:title/text()"),
        patient=patient,
        requester=requester_sent(root),
        expert=expert_sent(root),
        request_id=str(request["id"]),
        request_oid=own_root(site),
        accession=accession,
        accession_oid=accession_oid,
        requested_at=signed,
        started_at=_at(event, "h:effectiveTime/h:low/@value"),
        ended_at=_at(event, "h:effectiveTime/h:high/@value"),
        signed_at=signed,
        consent="",
        reason="",
        exchange=(),
        conclusion="",
        type=_code(root, "h:code"),
        confidentiality=_code(root, "h:confidentialityCode"),
        test=site.mode != "production",
        zone=site.time_zone,
        placer=placer_of(request),
    )


def requester_sent(cda: bytes | Node) -> Professional:
    """Who a document was addressed to, as it says itself: an addressee has no specialty, but stands again among the
    participants with it. Raises ValueError for what is no document of ours."""
    root = _root(cda)
    who = _professional(
        _one(root, "h:informationRecipient/h:intendedRecipient"), "informationRecipient", "receivedOrganization"
    )
    asked = f"h:participant[@typeCode='REF']/h:associatedEntity[h:id/@extension='8{who.rpps}']/h:code"
    return replace(who, specialty=_code(root, asked))


def expert_sent(cda: bytes | Node) -> Professional:
    """Who signed a document, as it says itself. Raises ValueError for what is no document of ours."""
    root = _root(cda)
    who = _professional(_one(root, "h:author/h:assignedAuthor"), "assignedPerson", "representedOrganization")
    facility = _code(root, "h:componentOf/h:encompassingEncounter/h:location/h:healthCareFacility/h:code")
    setting = _code(root, "h:documentationOf/h:serviceEvent/h:performer//h:standardIndustryClassCode")
    return replace(who, org=replace(who.org, facility_type=facility, practice_setting=setting))


def confidentiality_sent(cda: bytes | Node) -> str:
    """N, R or V, as a document says it of itself. Raises ValueError for what is no document of ours."""
    return _code(_root(cda), "h:confidentialityCode").code


def patient_sent(cda: bytes | Node, reference: str, site: Site) -> PatientIdentity:
    """Whom a document is about, with the traits and identifiers it was sent with. Raises ValueError for what is no
    document of ours."""
    role = _one(_root(cda), "h:recordTarget/h:patientRole")
    person = _one(role, "h:patient")
    spaces = {namespace.oid: namespace for namespace in site.namespaces}
    held = [(_text(one, "@extension"), _text(one, "@root")) for one in role.iterfind("h:id[@extension]", _NS)]
    local = [(value, oid, spaces.get(oid)) for value, oid in held if oid not in INS_OIDS]
    mailboxes = (one for one in _all(role, "h:telecom/@value") if one.startswith("mailto:"))
    return PatientIdentity(
        reference=reference,
        birth_family=_text(person, "h:name/h:family[@qualifier='BR']/text()"),
        birth_given=_text(person, "h:name/h:given[@qualifier='BR']/text()"),
        birth_givens=_text(person, "h:name/h:given[not(@qualifier)]/text()"),
        gender=_GENDERS.get(_text(person, "h:administrativeGenderCode/@code"), "unknown"),
        birth_date=date.fromisoformat(_text(person, "h:birthTime/@value")),
        birth_cog=_text(person, "h:birthplace/h:place/h:addr/h:county/text()"),
        birth_city=_text(person, "h:birthplace/h:place/h:addr/h:city/text()"),
        used_family=_text(person, "h:name/h:family[@qualifier='CL']/text()"),
        used_given=_text(person, "h:name/h:given[@qualifier='CL']/text()"),
        ins=next(((value, oid) for value, oid in held if oid in INS_OIDS), None),
        local_ids=tuple(
            (value, oid, own.hd if own else ("", oid, "ISO"), own.cx_type if own else "PI") for value, oid, own in local
        ),
        mailbox=next(mailboxes, "").removeprefix("mailto:"),
    )


def _root(cda: bytes | Node) -> Node:
    return xml_text.parse(cda) if isinstance(cda, bytes) else cda


def _professional(entity: Node, person: str, house: str) -> Professional:
    name, org = _one(entity, f"h:{person}/h:name"), _one(entity, f"h:{house}")
    telecoms = _all(entity, "h:telecom/@value")
    mailbox = next((one for one in telecoms if one.startswith("mailto:")), "")
    prefix, given, family, suffix = (_text(name, f"h:{tag}/text()") for tag in ("prefix", "given", "family", "suffix"))
    number = _text(entity, f"h:id[@root='{PROFESSIONALS_OID}']/@extension")
    if not re.fullmatch(r"8[0-9]{11}", number):
        raise ValueError(f"{number!r} is no national number of a professional")
    return Professional(
        rpps=number[1:],
        family=family,
        given=given,
        specialty=_code(entity, "h:code"),
        org=Org(
            name=_text(org, "h:name/text()"),
            finess=_text(org, f"h:id[@root='{STRUCTURES_OID}']/@extension")[1:],
            address=_text(entity, "h:addr/h:streetAddressLine/text()"),
            telecom=next((one for one in telecoms if not one.startswith("mailto:")), ""),
        ),
        prefix=prefix,
        suffix=suffix,
        mailbox=mailbox.removeprefix("mailto:"),
    )


def _code(node: Node, path: str) -> Code:
    names = ("code", "displayName", "codeSystem")
    code, display, system = (_text(node, f"{path}/@{name}") for name in names)
    return Code(code, display, system)


def _uuid(oid: str) -> str:
    """The UUID behind an OID of the arc 2.25."""
    number = oid.removeprefix("2.25.")
    if number == oid or not number.isdigit():
        raise ValueError(f"{oid!r} is no OID of a UUID")
    return str(uuid.UUID(int=int(number)))


def _at(node: Node, path: str) -> datetime:
    return datetime.strptime(_text(node, path), "%Y%m%d%H%M%S%z")


def _one(node: Node, path: str) -> Node:
    found = node.find(path, _NS)
    if found is None:
        raise ValueError(f"the document has no {path.replace('h:', '')}")
    return found


def _all(node: Node, path: str) -> list[str]:
    found = node.xpath(path, namespaces=_NS)
    return [str(one) for one in found] if isinstance(found, list) else []


def _text(node: Node, path: str) -> str:
    return next(iter(_all(node, path)), "")
