"""CDA R2 documents, read: for now the patient identifiers of the header.

Sources: HL7 CDA R2 4.2.2.11 (recordTarget), CI-SIS volet Structuration minimale; hostile XML is refused by
`mssante.xml_text` (no DTD, no entity, no network, bounded size).
"""

from __future__ import annotations

from mssante import xml_text

CDA = "urn:hl7-org:v3"


def patient_ids(cda: bytes) -> tuple[tuple[str, str], ...]:
    """The (value, bare OID) pairs of recordTarget, in the order of the document, the INS among them.

    An id without extension is its root alone and is left out: it names no one in a namespace. Raises
    xml_text.XmlRefused for what is no XML we read, and for a root that is no ClinicalDocument.
    """
    root = xml_text.parse(cda)
    if root.tag != f"{{{CDA}}}ClinicalDocument":
        raise xml_text.XmlRefused("the document is no ClinicalDocument of urn:hl7-org:v3")
    path = f"{{{CDA}}}recordTarget/{{{CDA}}}patientRole/{{{CDA}}}id"
    pairs = ((item.get("extension", "").strip(), item.get("root", "").strip()) for item in root.findall(path))
    return tuple((value, oid) for value, oid in pairs if value and oid)
