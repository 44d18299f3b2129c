"""The fictitious people of the demo: two requesters, two experts, their structures, and twelve patients.

Nobody here exists. Test INS under OID 1.2.250.1.213.1.4.10 with a right key (97 minus the first 13 digits modulo 97).
RPPS numbers begin with 99, mail domains are under `ch-demo.mssante.fr`, which the sandbox serves.
"""

from __future__ import annotations

from typing import Any

from dicom_node import sample
from dicom_node.header import Identifier

Resource = dict[str, Any]
INS_SYSTEM = "urn:oid:1.2.250.1.213.1.4.10"
IPP_SYSTEM = "urn:oid:2.25.218173906210472563340846263146912093712"
ACCESSION_SYSTEM = "urn:oid:2.25.218173906210472563340846263146912093714"
RPPS = "https://rpps.esante.gouv.fr"
FINESS = "https://finess.esante.gouv.fr"
FR_TYPES = "https://hl7.fr/ig/fhir/core/CodeSystem/fr-core-cs-v2-0203"
FR = "https://hl7.fr/ig/fhir/core/StructureDefinition/"
G15 = "https://mos.esante.gouv.fr/NOS/TRE_G15-ProfessionSante/FHIR/TRE-G15-ProfessionSante"
R38 = "https://mos.esante.gouv.fr/NOS/TRE_R38-SpecialiteOrdinale/FHIR/TRE-R38-SpecialiteOrdinale"
R213 = "https://mos.esante.gouv.fr/NOS/TRE_R213-ModePriseEnCharge/FHIR/TRE-R213-ModePriseEnCharge"
MSSANTE = "https://mos.esante.gouv.fr/NOS/TRE_R256-TypeMessagerie/FHIR/TRE-R256-TypeMessagerie"

# id, civility, title, given, family, RPPS, profession (G15), specialty (R38), organization, groups, mailbox
PROFESSIONALS: tuple[tuple[str, str, str, str, str, str, str, str, str, tuple[str, ...], str], ...] = (
    ("moreau", "MME", "", "Claire", "MOREAU", "99000000011", "50", "", "cabinet-lilas", (), "claire.moreau"),
    ("lefevre", "M", "DR", "Paul", "LEFEVRE", "99000000029", "10", "SM54", "maison-tilleuls", (), "paul.lefevre"),
    (
        "garnier",
        "MME",
        "DR",
        "Hélène",
        "GARNIER",
        "99000000037",
        "10",
        "SM20",
        "ch-demo",
        ("avis-echo",),
        "helene.garnier",
    ),
    ("benali", "M", "DR", "Karim", "BENALI", "99000000045", "10", "SM04", "ch-demo", ("avis-cardio",), "karim.benali"),
)
STRUCTURES = (
    (
        "cabinet-lilas",
        "Cabinet de sages-femmes Les Lilas",
        "990000026",
        "SA07",
        "2 allée des Lilas, 75000 Exempleville",
    ),
    (
        "maison-tilleuls",
        "Maison de santé des Tilleuls",
        "990000034",
        "SA52",
        "3 place des Tilleuls, 75000 Exempleville",
    ),
)
GROUPS = (
    ("avis-echo", "Avis en échographie obstétricale"),
    ("avis-cardio", "Avis en cardiologie"),
)
# family, first given, all givens, gender, birth date, INS without key, birth place (COG), IPP
PATIENTS = (
    ("MARTIN-TEST", "LUCIE", "LUCIE ANNE", "female", "1994-02-11", "2940299123001", "99123", "DEMO0001"),
    ("BERNARD-TEST", "INES", "INES", "female", "1988-07-23", "2880799123002", "99123", "DEMO0002"),
    ("PETIT-TEST", "SARAH", "SARAH LOUISE", "female", "1997-11-05", "2971199123003", "99123", "DEMO0003"),
    ("DURAND-TEST", "NOEMIE", "NOEMIE", "female", "1991-04-30", "2910499123004", "99123", "DEMO0004"),
    ("LEROY-TEST", "MANON", "MANON ROSE", "female", "1999-09-17", "2990999123005", "99123", "DEMO0005"),
    ("ROUX-TEST", "AMINATA", "AMINATA", "female", "1985-01-08", "2850199123006", "99123", "DEMO0006"),
    ("DAVID-TEST", "JEAN", "JEAN MICHEL", "male", "1952-06-14", "1520699123007", "99123", "DEMO0007"),
    ("MOREL-TEST", "PIERRE", "PIERRE", "male", "1947-12-02", "1471299123008", "99123", "DEMO0008"),
    ("FOURNIER-TEST", "LEA", "LEA", "female", "1993-03-27", "2930399123009", "99123", "DEMO0009"),
    ("GIRARD-TEST", "CHLOE", "CHLOE MARIE", "female", "1996-08-19", "2960899123010", "99123", "DEMO0010"),
    ("BONNET-TEST", "HUGO", "HUGO", "male", "1969-10-10", "1691099123011", "99123", "DEMO0011"),
    ("LAMBERT-TEST", "NADIA", "NADIA", "female", "1990-05-21", "2900599123012", "99123", "DEMO0012"),
)

SCANNED, WAITING = 1, "demo-02"
"""The patient, from 0, and the request of the ultrasound clip."""


def ins(base: str) -> str:
    """The 15 characters of an INS from its first 13."""
    return f"{base}{97 - int(base) % 97:02d}"


def patient(index: int) -> Resource:
    """Patient number `index` (from 0) in the form of FR Core's patient-ins, qualified."""
    family, given, givens, gender, birth, base, cog, ipp = PATIENTS[index]
    status = {
        "url": "identityStatus",
        "valueCoding": {"system": FR_TYPES.replace("v2-0203", "fiabilite-identite"), "code": "VALI"},
    }
    dmp = [{"url": "status", "valueCode": "ACTIF"}, {"url": "feed", "valueCode": "INO"}]
    place = {"extension": [{"url": FR + "fr-core-address-insee-code", "valueCoding": {"code": cog}}]}
    return {
        "resourceType": "Patient",
        "id": f"patient-{index + 1:02d}",
        "extension": [
            {"url": FR + "fr-core-identity-reliability", "extension": [status]},
            {"url": "http://hl7.org/fhir/StructureDefinition/patient-birthPlace", "valueAddress": place},
            {"url": "urn:passerelle:dmp", "extension": dmp},
        ],
        "identifier": [
            _identifier("official", FR_TYPES, "INS-NIR-TEST", INS_SYSTEM, ins(base)),
            _identifier("usual", "http://terminology.hl7.org/CodeSystem/v2-0203", "PI", IPP_SYSTEM, ipp),
        ],
        "active": True,
        "name": [
            {
                "extension": [{"url": FR + "fr-core-patient-birth-list-given-name", "valueString": givens}],
                "use": "official",
                "family": family,
                "given": [given],
            }
        ],
        "gender": gender,
        "birthDate": birth,
        "managingOrganization": {"reference": "Organization/ch-demo"},
    }


def professionals(domain: str = "ch-demo.mssante.fr") -> list[Resource]:
    """Practitioner and PractitionerRole of everyone; their mailboxes are in `domain`."""
    out: list[Resource] = []
    for (
        key,
        civility,
        title,
        given,
        family,
        rpps,
        profession,
        specialty,
        organization,
        groups,
        mailbox,
    ) in PROFESSIONALS:
        name: Resource = {"family": family, "given": [given], "prefix": [civility]}
        if title:
            name["suffix"] = [title]
        qualification = [{"code": {"coding": [{"system": G15, "code": profession}]}}]
        if specialty:
            qualification.append({"code": {"coding": [{"system": R38, "code": specialty}]}})
        out.append(
            {
                "resourceType": "Practitioner",
                "id": key,
                "identifier": [_identifier("official", FR_TYPES, "RPPS", RPPS, rpps)],
                "active": True,
                "name": [name],
                "qualification": qualification,
            }
        )
        mail = {
            "extension": [
                {"url": FR + "fr-core-contact-point-email-type", "valueCoding": {"system": MSSANTE, "code": "MSSANTE"}}
            ]
        }
        role: Resource = {
            "resourceType": "PractitionerRole",
            "id": key,
            "identifier": [{"system": RPPS, "value": rpps}],
            "active": True,
            "practitioner": {"reference": f"Practitioner/{key}"},
            "organization": {"reference": f"Organization/{organization}"},
            "telecom": [mail | {"system": "email", "value": f"{mailbox}@{domain}"}],
        }
        if groups:
            role["healthcareService"] = [{"reference": f"HealthcareService/{group}"} for group in groups]
        out.append(role)
    return out


def structures(dpi: str, pfi: str) -> list[Resource]:
    """Organizations, expert groups and the Endpoints of the hospital's DPI and platform (host:port each)."""
    out: list[Resource] = [
        {
            "resourceType": "Organization",
            "id": key,
            "identifier": [_identifier("official", FR_TYPES, "FINEG", FINESS, finess)],
            "active": True,
            "type": [{"coding": [{"system": "urn:oid:1.2.250.1.71.4.2.4", "code": facility}]}],
            "name": name,
            "address": [{"text": address}],
        }
        for key, name, finess, facility, address in STRUCTURES
    ]
    out += [
        {
            "resourceType": "HealthcareService",
            "id": key,
            "active": True,
            "providedBy": {"reference": "Organization/ch-demo"},
            "name": name,
        }
        for key, name in GROUPS
    ]
    for key, name, address, profile, application in (
        ("dpi", "Dossier patient du CH de démonstration", dpi, "lps-1.1", "DPI"),
        ("pfi", "Plateforme d'intermédiation du CH de démonstration", pfi, "push-2.1", "PFI"),
    ):
        out.append(
            {
                "resourceType": "Endpoint",
                "id": key,
                "status": "active",
                "connectionType": {
                    "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
                    "code": "hl7v2-mllp",
                },
                "name": name,
                "managingOrganization": {"reference": "Organization/ch-demo"},
                "payloadType": [{"coding": [{"system": "urn:passerelle:profil", "code": profile}]}],
                "address": f"mllp://{address}?application={application}&facility=CH-DEMO",
            }
        )
    return out


def clip() -> bytes:
    """A DICOM file: an ultrasound clip of the patient of request `WAITING`, as the hospital's machine would send it."""
    family, given, _, gender, birth, _, _, ipp = PATIENTS[SCANNED]
    return sample.clip(
        patient_id=Identifier(ipp, issuer="CH-DEMO"),
        patient_name=f"{family}^{given}",
        birth_date=birth.replace("-", ""),
        sex={"female": "F", "male": "M"}[gender],
        description="Échographie T1",
    )


def request(key: str, index: int, requester: str, group: str, reason: str, status: str = "active") -> Resource:
    """A ServiceRequest of the draft guide's shape, about patient number `index` (from 0)."""
    return {
        "resourceType": "ServiceRequest",
        "id": key,
        "status": status,
        "intent": "proposal",
        "category": [{"coding": [{"system": R213, "code": "35", "display": "Téléexpertise"}]}],
        "priority": "routine",
        "code": {"text": "Avis d'expert"},
        "subject": {"reference": f"Patient/patient-{index + 1:02d}"},
        "authoredOn": "2026-11-02T09:30:00+01:00",
        "requester": {"reference": f"PractitionerRole/{requester}"},
        "performer": [{"reference": f"HealthcareService/{group}"}],
        "reasonCode": [{"text": reason}],
        "supportingInfo": [{"reference": f"Consent/{key}"}],
    }


def consent(key: str, index: int) -> Resource:
    """The patient's recorded agreement to the request of the same id."""
    return {
        "resourceType": "Consent",
        "id": key,
        "status": "active",
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "treatment"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"reference": f"Patient/patient-{index + 1:02d}"},
        "dateTime": "2026-11-02T09:25:00+01:00",
        "policyRule": {"text": "Information donnée et accord recueilli oralement"},
        "provision": {"type": "permit"},
    }


def _identifier(use: str, system: str, code: str, own: str, value: str) -> Resource:
    return {"use": use, "type": {"coding": [{"system": system, "code": code}]}, "system": own, "value": value}
