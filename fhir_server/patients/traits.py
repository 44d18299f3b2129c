"""The strict traits of an identity: how they are read and compared, and which differences still are one person.

Strict traits are the birth family name, the first birth given name, the birth date, the sex and the place of birth. A
used name (marriage) is none of them, so it never tells two people apart. The place of birth is kept with the others
but not compared: most messages leave it out.
Sources: RNIV 1 (Référentiel national d'identitovigilance, traits stricts and traits complémentaires; search and
creation of an identity), https://esante.gouv.fr/produits-services/referentiel-ins; FR Core 2.2.0 `fr-core-patient-ins`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

Patient = Mapping[str, Any]
BIRTH_PLACE = "http://hl7.org/fhir/StructureDefinition/patient-birthPlace"
# HumanName.use that may carry the birth name, the surest first; a used name (`usual`) or a pseudonym never does.
_BIRTH_USES = ("official", "maiden", None)
_NO_SEX = frozenset({"", "unknown", "other"})

TOLERATED: Mapping[frozenset[str], str] = {
    frozenset(): "nothing differs",
    frozenset({"family"}): "a birth name is corrected, or changed at the registry office",
    frozenset({"given"}): "a given name is corrected, or changed at the registry office",
    frozenset({"birth_date"}): "a birth date is corrected",
    frozenset({"gender"}): "the sex is corrected, or changed at the registry office",
}
"""Strict traits that may differ when a local identifier agrees, and what that is. Whatever else differs together is
what twins, homonyms and a reused identifier look like: a person decides."""
PROVISIONAL: Mapping[frozenset[str], str] = {
    frozenset({"family", "given"}): "a newborn, or someone who came without a name, gets their own",
}
"""What may differ as well while the stored identity is not qualified, when birth date and sex are known and agree."""
_SHOWN = {"family": "birth name", "given": "first given name", "birth_date": "birth date", "gender": "sex"}


class Traits(NamedTuple):
    """Names folded; birth date and gender as FHIR has them; '' for what is not known."""

    family: str
    given: str
    birth_date: str
    gender: str


def strict_traits(patient: Patient) -> Traits:
    """What must agree with an INS: birth family name, first birth given name, birth date, gender."""
    name = birth_name(patient)
    given = name.get("given") or [""]
    family = fold(name.get("family") or "")
    return Traits(family, fold(given[0] or ""), patient.get("birthDate") or "", patient.get("gender") or "")


def birth_name(patient: Patient) -> dict[str, Any]:
    """The HumanName that holds the birth name, {} when only a used name is known."""
    for use in _BIRTH_USES:
        for name in patient.get("name", ()):
            if name.get("use") == use:
                return dict(name)
    return {}


def fold(text: str) -> str:
    """Upper case without accents, hyphens and apostrophes as blanks: how RNIV compares names."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.upper()) if not unicodedata.combining(c))
    return " ".join(plain.replace("-", " ").replace("'", " ").replace("’", " ").split())


def agree(one: Patient, other: Patient) -> bool:
    """Whether every strict trait is known on both sides and none differs: what an INS asks for."""
    mine, theirs = strict_traits(one), strict_traits(other)
    return (
        all(mine)
        and all(theirs)
        and mine.family == theirs.family
        and _same_given(mine.given, theirs.given)
        and mine[2:] == theirs[2:]
    )


def differences(one: Patient, other: Patient) -> frozenset[str]:
    """The strict traits that both sides know and that differ: `family`, `given`, `birth_date`, `gender`.

    A date to the month agrees with each of its days; a sex that is not known agrees with both.
    """
    mine, theirs = strict_traits(one), strict_traits(other)
    out = set()
    if mine.family and theirs.family and mine.family != theirs.family:
        out.add("family")
    if mine.given and theirs.given and not _same_given(mine.given, theirs.given):
        out.add("given")
    if not (mine.birth_date.startswith(theirs.birth_date) or theirs.birth_date.startswith(mine.birth_date)):
        out.add("birth_date")
    if not {mine.gender, theirs.gender} & _NO_SEX and mine.gender != theirs.gender:
        out.add("gender")
    return frozenset(out)


def doubt(stored: Patient, incoming: Patient, *, qualified: bool) -> str:
    """Why these may be two people although a local identifier agrees; '' when the differences are tolerated."""
    differ = differences(stored, incoming)
    if differ in TOLERATED:
        return ""
    mine, theirs = strict_traits(stored), strict_traits(incoming)
    if differ in PROVISIONAL and not qualified and all(mine[2:]) and mine[2:] == theirs[2:]:
        return ""
    told = [_SHOWN[name] for name in Traits._fields if name in differ]
    return f"another {', another '.join(told)}"


def _same_given(one: str, other: str) -> bool:
    """JEAN agrees with JEAN PIERRE, which may be one given name or two; it does not agree with JEANNE."""
    short, long = sorted((one.split(), other.split()), key=len)
    return bool(short) and long[: len(short)] == short
