"""What documents say in French: published labels of codes, as literal tables, and dates.

Only what the mappers print or choose by. Lists: NOS (https://mos.esante.gouv.fr/NOS), value sets JDV_J01 (author
specialty), JDV_J02 (facility type), JDV_J04 (practice setting), JDV_J08 (confidentiality), JDV_J245 and JDV_J246
(civility, title) of the CI-SIS; DICOM PS3.3 C.7.3.1.1.1 (modality).
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

SPECIALTY_OID = "1.2.250.1.213.1.1.4.5"
FACILITY_TYPE_OID = "1.2.250.1.71.4.2.4"
PRACTICE_SETTING_OID = "1.2.250.1.213.1.1.4.9"
CONFIDENTIALITY_OID = "2.16.840.1.113883.5.25"
VISIBILITY_OID = "1.2.250.1.213.1.1.4.13"

# TRE_R38 code prefix -> the TRE_G15 profession its JDV_J01 spelling starts with.
SPECIALTY_PROFESSIONS = {"SM": "G15_10", "SCD": "G15_40", "SI": "G15_60"}

_PROFESSIONS = {
    "G15_10": "Médecin",
    "G15_21": "Pharmacien",
    "G15_40": "Chirurgien-dentiste",
    "G15_50": "Sage-femme",
    "G15_60": "Infirmier",
    "G15_70": "Masseur-kinésithérapeute",
    "G15_80": "Pédicure-podologue",
    "G15_91": "Orthophoniste",
    "G15_92": "Orthoptiste",
    "G15_94": "Ergothérapeute",
    "G15_95": "Diététicien",
    "G15_98": "Manipulateur ERM",
}

# TRE_R38 rank -> name; the published label of `G15_10/SMnn` is `Médecin - <name> (SM)`.
_MEDICAL = {
    "02": "Anesthésie-réanimation",
    "04": "Cardiologie et maladies vasculaires",
    "05": "Chirurgie générale",
    "08": "Chirurgie orthopédique et Traumatologie",
    "12": "Chirurgie urologique",
    "13": "Chirurgie vasculaire",
    "14": "Chirurgie viscérale et digestive",
    "15": "Dermatologie et Vénéréologie",
    "16": "Endocrinologie et métabolisme",
    "17": "Génétique médicale",
    "18": "Gériatrie",
    "19": "Gynécologie médicale",
    "20": "Gynécologie-obstétrique",
    "24": "Gastro-entérologie et hépatologie",
    "26": "Qualifié en Médecine Générale",
    "27": "Médecine interne",
    "28": "Médecine nucléaire",
    "29": "Médecine physique et réadaptation",
    "30": "Néphrologie",
    "31": "Neuro-chirurgie",
    "32": "Neurologie",
    "34": "ORL et Chirurgie cervico-faciale",
    "35": "Oncologie, opt Onco-hématologie",
    "36": "Oncologie, opt médicale",
    "37": "Oncologie, opt radiothérapie",
    "38": "Ophtalmologie",
    "39": "Oto-rhino-laryngologie",
    "40": "Pédiatrie",
    "41": "Pneumologie",
    "42": "Psychiatrie",
    "43": "Psychiatrie, opt enfant et adolescent",
    "44": "Radio-diagnostic",
    "48": "Rhumatologie",
    "51": "Gynéco-obstétrique et Gynéco méd, opt Gyn-obs",
    "52": "Gynéco-obstétrique et Gynéco méd, opt Gyn-méd",
    "53": "Spécialiste en Médecine Générale",
    "54": "Médecine Générale",
    "57": "Allergologie",
    "58": "Maladies infectieuses et tropicales",
    "59": "Médecine d'urgence",
    "61": "Médecine vasculaire",
    "62": "Endocrinologie, diabétologie, nutrition",
    "73": "Médecine cardiovasculaire",
    "74": "Radiologie et imagerie médicale",
    "80": "Médecine cardiovasculaire option imagerie cardio d'expert",
    "87": "Pédiatrie option néonatologie",
    "88": "Pédiatrie option neuropédiatrie",
}

SPECIALTIES = _PROFESSIONS | {f"G15_10/SM{rank}": f"Médecin - {name} (SM)" for rank, name in _MEDICAL.items()}

# JDV_J02 code -> label, and the JDV_J04 practice setting that goes with it.
FACILITY_TYPES = {
    "SA01": ("Etablissement public de santé", "ETABLISSEMENT"),
    "SA03": ("Etablissement privé PSPH", "ETABLISSEMENT"),
    "SA04": ("Etablissement privé non PSPH", "ETABLISSEMENT"),
    "SA05": ("Centre de santé", "AMBULATOIRE"),
    "SA07": ("Cabinet individuel", "AMBULATOIRE"),
    "SA08": ("Cabinet de groupe", "AMBULATOIRE"),
    "SA09": ("Exercice en société", "AMBULATOIRE"),
    "SA15": ("PMI et Planification familiale", "AMBULATOIRE"),
    "SA36": ("Centre anti-cancer", "ETABLISSEMENT"),
    "SA52": ("Maison de santé ou Pôle de santé", "AMBULATOIRE"),
    "SA64": ("Société de téléconsultation", "AMBULATOIRE"),
    "SA69": ("Maisons de naissance", "AMBULATOIRE"),
}

PRACTICE_SETTINGS = {
    "AMBULATOIRE": "Ambulatoire",
    "DEPISTAGE": "Dépistage",
    "ESSMS": "Etablissement ou Service Social ou Médico-Social",
    "ETABLISSEMENT": "Etablissement de santé",
    "HAD": "Hospitalisation à domicile",
    "MAD": "Maintien à domicile",
    "PALLIATIF": "Soins palliatifs",
    "SAD": "Soins à domicile",
    "SAMU_SMUR": "SAMU/SMUR",
}

CONFIDENTIALITY = {"N": "Normal", "R": "Restreint", "V": "Très restreint"}
# TRE_A07, the other codes of JDV_J08: who may not see a document.
VISIBILITY = {
    "MASQUE_PS": "Masqué aux professionnels de santé",
    "INVISIBLE_PATIENT": "Non visible par le patient",
    "INVISIBLE_REPRESENTANTS_LEGAUX": "Non visible par les représentants légaux du patient",
}

# What people write in name.prefix and name.suffix, upper case without dots -> JDV_J245 and JDV_J246 codes.
CIVILITIES = {"M": "M", "MR": "M", "MONSIEUR": "M", "MME": "MME", "MADAME": "MME", "MLLE": "MME"}
TITLES = {code: code for code in ("DR", "MC", "MG", "PC", "PG", "PR")} | {"DOCTEUR": "DR", "PROFESSEUR": "PR"}

CIVILITY_TEXTS = {"M": "M.", "MME": "Mme"}
TITLE_TEXTS = {
    "DR": "Dr",
    "MC": "Médecin chef",
    "MG": "Médecin général",
    "PC": "Pharmacien chef",
    "PG": "Pharmacien général",
    "PR": "Pr",
}

GENDERS = {"female": "Féminin", "male": "Masculin", "unknown": "Indéterminé"}

# Arc of the INS OID -> what the matricule is.
INS_NATURES = {
    "1.2.250.1.213.1.4.8": "NIR",
    "1.2.250.1.213.1.4.9": "NIA",
    "1.2.250.1.213.1.4.10": "INS de test",
    "1.2.250.1.213.1.4.11": "INS de démonstration",
}

CONSENT_SCOPES = {
    "patient-privacy": "partage des données de santé",
    "treatment": "soins",
    "adr": "directives anticipées",
}

MODALITIES = {
    "CR": "Radiographie",
    "CT": "Scanner",
    "DMS": "Dermatoscopie",
    "DX": "Radiographie",
    "ECG": "Électrocardiogramme",
    "ES": "Endoscopie",
    "IVUS": "Échographie endovasculaire",
    "MG": "Mammographie",
    "MR": "IRM",
    "NM": "Médecine nucléaire",
    "OCT": "Tomographie en cohérence optique",
    "OP": "Photographie ophtalmologique",
    "OPT": "Tomographie ophtalmologique",
    "PT": "TEP",
    "SR": "Rapport structuré",
    "US": "Échographie",
    "XA": "Angiographie",
    "XC": "Photographie",
}

MONTHS = (
    "janvier",
    "février",
    "mars",
    "avril",
    "mai",
    "juin",
    "juillet",
    "août",
    "septembre",
    "octobre",
    "novembre",
    "décembre",
)


@cache
def zone(name: str) -> ZoneInfo:
    """The time zone of an IANA name."""
    return ZoneInfo(name)


def day_text(day: date) -> str:
    """`28 mars 1979`, `1er mai 2025`."""
    return f"{'1er' if day.day == 1 else day.day} {MONTHS[day.month - 1]} {day.year}"


def instant(at: datetime, zone_name: str) -> str:
    """`10 janvier 2025 à 15 h 29 (UTC+01:00)`."""
    return f"{day_text(at.astimezone(zone(zone_name)).date())} à {clock(at, zone_name)}"


def clock(at: datetime, zone_name: str) -> str:
    """`15 h 29 (UTC+01:00)`: the wall clock of a time zone, and how far it was from UTC."""
    local = at.astimezone(zone(zone_name))
    minutes = (local.utcoffset() or timedelta()) // timedelta(minutes=1)
    offset = f"UTC{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
    return f"{local:%H} h {local:%M} ({offset})"
