"""What one document mail says, before it is a mail: plain values a mapper fills and `envelope.mail` writes.

Kept apart from the MIME code so that a mapper can build a letter without loading anything that knows sockets.
Rules: référentiel socle MSSanté #2, requirements ECO.2.1 to ECO.2.4 (subject, file names, X-MSS headers).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import date

LABEL_LENGTH = 40
SUBJECT_PREFIX = "XDM/1.0/DDM+"
REPLACES_PREFIX = "[Annule et remplace] "

_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_FORBIDDEN_IN_FILE_NAMES = re.compile(r'[<>:"/\\|?*]')


@dataclass(frozen=True, slots=True)
class Address:
    """One mail address with the name shown beside it. `address` is ASCII; `display` is any text, or ''."""

    address: str
    display: str = ""


@dataclass(frozen=True, slots=True)
class Letter:
    """One patient's documents, as a mail announces them.

    `label` is the displayName of the CDA `code` (or `N documents`); `codes` the CDA document codes (X-MSS-CODECDA);
    `qualified` tells whether the INS is qualified (X-MSS-INS); `family` and `given` are the birth name and first birth
    given name; `performed` is the day of the act, in the patient's own zone; `record` an optional record number added
    to the PDF name; `replaces` marks a correction; `last_word` asks Mon espace santé to bar the patient's answer.
    """

    label: str
    family: str
    given: str
    birth_date: date | None
    performed: date
    codes: tuple[str, ...]
    qualified: bool
    text: str
    record: str = ""
    replaces: bool = False
    last_word: bool = False


def plain(text: str) -> str:
    """One line without control characters, bidirectional marks or runs of blanks: what a header or XML may carry."""
    kept = "".join(" " if unicodedata.category(c) in _UNPRINTABLE or ord(c) & 0xFFFE == 0xFFFE else c for c in text)
    return " ".join(kept.split())


def capitals(text: str) -> str:
    """Upper case without accents, as ECO.2.1.3 wants the family name (`Lefèvre` gives `LEFEVRE`, `œ` gives `OE`)."""
    spelled = plain(text).upper().replace("Œ", "OE").replace("Æ", "AE")
    decomposed = unicodedata.normalize("NFD", spelled)
    return unicodedata.normalize("NFC", "".join(c for c in decomposed if unicodedata.category(c) != "Mn"))


def cut(label: str) -> str:
    """The document label, at most 40 characters (ECO.2.1.3, ECO.2.1.6), never ending on a blank."""
    return plain(label)[:LABEL_LENGTH].rstrip()


def subject(letter: Letter) -> str:
    """The Subject of ECO.2.1.3: `XDM/1.0/DDM+<label> <NOM> <prenom> <JJ/MM/AAAA>`, decoded, one line."""
    words = [SUBJECT_PREFIX + cut(letter.label), capitals(letter.family), plain(letter.given)]
    if letter.birth_date:
        words.append(letter.birth_date.strftime("%d/%m/%Y"))
    return (REPLACES_PREFIX if letter.replaces else "") + " ".join(word for word in words if word)


def pdf_name(letter: Letter) -> str:
    """The PDF's file name of ECO.2.1.6: `<AAAAMMJJ>_<type>_<NOM>_<prenom>[_<dossier>].pdf`, safe on every system."""
    words = (cut(letter.label), capitals(letter.family), plain(letter.given), plain(letter.record))
    kept = (plain(_FORBIDDEN_IN_FILE_NAMES.sub(" ", word)).strip(". ") for word in words)
    return "_".join([letter.performed.strftime("%Y%m%d"), *(word for word in kept if word)]) + ".pdf"
