"""A CDA of ours read back: who wrote it, for whom, when, under which numbers.

What takes a document back, or replaces it, tells its facts as they were sent, whatever has become since of the
resources they came from. Only what `fhir_to_cda` writes in the header is read; the texts stay in the PDF.

Sources: HL7 CDA R2; CI-SIS volet Structuration minimale; the other direction is `mappers.fhir_to_cda`.
"""

from __future__ import annotations

import re
import uuid
from datetime import datetime

from lxml import etree

from mappers.fhir_to_identity import PROFESSIONALS_OID, STRUCTURES_OID, Resource
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
        expert=_professional(_one(root, "h:author/h:assignedAuthor"), "assignedPerson", "representedOrganization"),
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
    """Who a document was addressed to, as it says itself. Raises ValueError for what is no document of ours."""
    root = xml_text.parse(cda) if isinstance(cda, bytes) else cda
    who = _one(root, "h:informationRecipient/h:intendedRecipient")
    return _professional(who, "informationRecipient", "receivedOrganization")


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
