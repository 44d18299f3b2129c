"""Messages as a partner may send them, about people who do not exist, with the names and authorities of one site.

Hides the fictitious stay. Each is taken in as it stands, in this order, which a test proves; the business
acknowledgement is the exception, for it names a message that was never sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mappers.identity import NamespaceKind, Site
from mappers.interface_sample import Sample

_INS: Final = "279035121518989^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS~"
_PERSON: Final = "99900000011^REQUERANTE^Claire^^^^^^ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO^D^^^RPPS"
_PAM: Final = "2.5^FRA^2.11|||||FRA|{charset}|||2.11^IHE_FRANCE-2.11-PAM"
_PLAIN: Final = "{version}|||||FRA|{charset}"
_TLR: Final = "2.5.1|||||FRA|{charset}|||1.0^CISIS_TLR_HL7_V2"
_LPS: Final = "2.6|||||FRA|{charset}|||1.1^CISIS_CDA_HL7_LPS"
_ZAM: Final = "2.6|||||FRA|{charset}|||2.1^CISIS_CDA_HL7_V2"
_PID: Final = (
    "PID|1||{ins}EX-7^^^{PI}^PI||EXEMPLE^DOMINIQUE^DOMINIQUE^^^^L||19790328|F|||^^EXEMPLEVILLE^^^^BDL^^63220"
    "|||||||DOS-7^^^{AN}^AN||||||||||||||{status}"
)
_PV1: Final = "PV1|1|I|CARDIO^201^1||||" + _PERSON + "||||||||||||VEN-7^^^{VN}^VN"
_STAY: Final = _PV1 + "|||||||||||||||||||||||||20260302083000"
_ZBE: Final = "ZBE|MVT-7^GAM^2.25.4096^ISO|20260302083000||INSERT|N||^^^^^^UF^^^CARDIO||HMS"
_ORDER: Final = "DEM-2026-7^^2.25.4720^ISO"

_MESSAGES: Final = (
    ("ADT^A28^ADT_A05", _PAM, "an identity is created or, by A31, changed",
     ("EVN||20260302083000", _PID, "ROL|1|AD|ODRP|" + _PERSON, "PV1|1|N",
      "ZFA|ACTIF|20240105|||||||INO|20240105|NA|20240105")),
    ("ADT^A01^ADT_A01", _PAM, "a patient is admitted", ("EVN||20260302083000", _PID, _STAY, _ZBE)),
    ("ADT^A40^ADT_A39", _PAM, "two records of one person become one",
     ("EVN||20260302093000", _PID, "MRG|EX-8^^^{PI}^PI")),
    ("ADT^A47^ADT_A30", _PAM, "the local number of a person changes",
     ("EVN||20260302094000", _PID.replace("EX-7^", "EX-9^"), "MRG|EX-7^^^{PI}^PI")),
    ("ORM^O01^ORM_O01", _TLR, "an opinion is asked for: a draft, to be completed before it goes out",
     (_PID.replace("EX-7^", "EX-9^"), _PV1,
      "ORC|NW|" + _ORDER + "|||||||20260302100000|||" + _PERSON + "|||||STRUCTURE_IMAGERIE^^TLR_TYPE_ORGANISATION",
      "OBR||" + _ORDER + "||TRANSMISSION_DEMANDE^Demande^TLR_OBR_PROCEDURE|||||||||Motif de la demande|||" + _PERSON,
      "NTE|1||Question posée|FINALITE_EXAMEN^^HL70364",
      "OBX|1|CE|MODALITE_IMAGERIE^Modalité^TLR_OBSERVATION||US^Échographie^DCM||||||O",
      "OBX|2|CE|REGION_ANATOMIQUE^Région^TLR_OBSERVATION|1.1|12921003^Pelvis^SCT||||||O",
      "OBX|3|NM|29463-7^Poids^LN||68|kg^^UCUM|||||O")),
    ("OMI^O23^OMI_O23", _TLR, "the examination of a request was done",
     (_PID.replace("EX-7^", "EX-9^"), _PV1, "ORC|SR|" + _ORDER,
      "OBR||" + _ORDER + "||COMPLEMENT_POST_ACTE^Complément^TLR_OBR_PROCEDURE",
      "IPC|ACN-7^^2.25.4722^ISO|24590-2|2.25.999001|24590-2|US",
      "OBX|1|TX|URL_PARTIELLE_VIEWER^URL partielle^TLR_OBSERVATION||/viewer/ACN-7||||||F")),
    ("ORU^R01^ORU_R01", _PLAIN, "a result, attached to the request it names",
     (_PID.replace("EX-7^", "EX-9^"), _PV1, "ORC|RE|" + _ORDER + "|LAB-7^^2.25.4721^ISO",
      "OBR|1|" + _ORDER + "|LAB-7^^2.25.4721^ISO|24331-1^Bilan lipidique^LN|||20260302073000||||||||||||||"
      "|20260302095500||CH|F",
      "OBX|1|NM|2093-3^Cholestérol total^LN||5.20|mmol/L^^UCUM|3.50-5.20|N^Normal^HL70078|||F")),
    ("MDM^T02^MDM_T02", _LPS, "a document a platform received by MSSanté",
     ("EVN||20260302100000", _PID.replace("EX-7^", "EX-9^"), "PV1|1|N", "ORC|NW|" + _ORDER,
      "OBR|1|||18748-4^CR d'imagerie médicale^LN",
      "TXA|1|18748-4|TEXT|20260302095000||||||||2.25.310007|||||AU",
      "OBX|1|ED|18748-4^CR d'imagerie médicale^LN||^text^XML^Base64^PENsaW5pY2FsRG9jdW1lbnQvPg==||||||F",
      "PRT||UC||SB^Send by^participation|" + _PERSON,
      "OBX|2|ED|1^XDM/1.0/DDM+CR d'imagerie EXEMPLE DOMINIQUE^L||^text^^Base64^Qm9uam91cg==||||||F")),
    ("SIU^S12^SIU_S12", _PLAIN, "a slot is booked",
     ("SCH|RDV-7^^2.25.4730^ISO|||||^Réservation|TELEEXP^Téléexpertise^L|ROUTINE^Routine^HL70277|20|MIN"
      "|^^^20260310093000|||||" + _PERSON + "||||" + _PERSON + "|||||Booked|" + _ORDER,
      _PID.replace("EX-7^", "EX-9^"), "PV1|1|N", "RGS|1", "AIS|1||TE2^Acte de téléexpertise^L|20260310093000",
      "AIP|1||" + _PERSON)),
    ("ZAM^Z02^ZAM_Z01", _ZAM, "what became of a message we sent (Z01 DMP, Z02 mailbox, Z03 read)",
     ("EVN||20260302100000",
      "OBX|1|CWE|ACK_RECEPTION_MSS^Accusé de réception MSS^AckMetierZAM|EXEMPLE2345ABCDEFGH2"
      "|Y^^expandedYes-NoIndicator||||||F",
      "OBX|2|XTN|DESTINATAIRE_MSS^Destinataire^AckMetierZAM|899900000029|^^X.400^paul.expert@exemple.mssante.fr"
      "||||||F")),
)  # fmt: skip


def inbound(site: Site) -> list[Sample]:
    """One message of each family that a partner of this establishment may send."""
    sender = site.sending_applications[0] if site.sending_applications else ("EXEMPLE", site.facility)
    test = site.mode != "production"
    words = {
        **_authorities(site),
        "ins": _INS if test else "",
        "status": "VALI" if test else "PROV",
        "charset": site.charset,
        "version": "2.5",
    }
    out = []
    for number, (kind, tail, event, segments) in enumerate(_MESSAGES, 1):
        head = (
            f"MSH|^~\\&|{sender[0]}|{sender[1]}|{site.application}|{site.facility}|20260302100000||{kind}"
            f"|EXEMPLE-{number:03}|{'T' if test else 'P'}|{tail}"
        )
        text = "\r".join((head, *segments, "")).format(**words)
        out.append(Sample(event, text.encode("utf-8" if "UTF" in site.charset else "iso8859-15", "replace")))
    return out


def _authorities(site: Site) -> Mapping[str, str]:
    """CX-4 of the site's own namespaces; an example where it declares none."""
    kinds: tuple[NamespaceKind, ...] = ("PI", "AN", "VN")
    found = {kind: next((one.hd for one in site.namespaces if one.kind == kind), ()) for kind in kinds}
    return {kind: "&".join(hd) or f"EXEMPLE&2.25.471{n}&ISO" for n, (kind, hd) in enumerate(found.items())}
