"""The stay a request was made in, as PV1 and PID-18 name it to the establishment that counts it.

Hides which Encounter.class is which PV1-2 in France, and that a visit number means nothing to anybody but the
establishment whose namespace it is in: everybody else is told class N, as when no stay is known.

Sources: IHE PAM France 2.11 (PV1-2: E I N O R; PV1-19, PID-18); HL7 v3 ActCode; FR Core 2.2.0 fr-core-encounter.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

from mappers.fhir_to_hl7v2_segments import Visit
from mappers.identity import Namespace, Site

Resource = Mapping[str, Any]
CLASSES: Final[Mapping[str, Literal["E", "I", "O", "R"]]] = {
    "IMP": "I", "ACUTE": "I", "NONAC": "I", "SS": "I", "OBSENC": "I", "EMER": "E", "AMB": "O",
}  # fmt: skip
"""Encounter.class (v3 ActCode) -> PV1-2. The others (a stay before its admission, at home, virtual) have none: N."""
_WRONG: Final = frozenset({"cancelled", "entered-in-error"})


def visit_of(encounter: Resource, site: Site) -> Visit | None:
    """The stay, or None: without a visit number of the site, or one that never took place. Of another class than those
    of PV1-2 it is N, which says why. Instants without an offset are left out."""
    code = str((encounter.get("class") or {}).get("code") or "")
    patient_class = CLASSES.get(code)
    number = _number(encounter, site, "VN")
    if number is None or encounter.get("status") in _WRONG:
        return None
    if patient_class is None:
        return Visit("N", number, unsaid=f"PV1-2 has no value for a stay of class {code or 'unknown'}")
    period = encounter.get("period") or {}
    start, end = (_instant(period.get(name)) for name in ("start", "end"))
    return Visit(patient_class, number, _number(encounter, site, "AN"), start, end)


def _number(encounter: Resource, site: Site, kind: str) -> tuple[str, tuple[str, str, str], str] | None:
    """The first identifier in a namespace of that kind, in force, as CX."""
    spaces: dict[str, Namespace] = {one.fhir_system: one for one in site.namespaces if one.kind == kind}
    for identifier in encounter.get("identifier") or ():
        space, value = spaces.get(str(identifier.get("system") or "")), str(identifier.get("value") or "")
        if space and value and identifier.get("use") != "old":
            return value, space.hd, space.cx_type
    return None


def _instant(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text or ""))
    except ValueError:
        return None
    return moment if moment.tzinfo else None
