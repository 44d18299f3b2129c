"""The number under which somebody else ordered what a request asks for: HL7 v2 EI and FHIR Identifier of type PLAC.

Hides where the authority of such a number stands: `hl7v2_codes_to_fhir.order_id` keeps an OID as Identifier.system and
whatever else names the authority as `assigner.display`; here the same EI is made again, so that the system that ordered
finds its own number in every message about it.

Sources: HL7 v2.5 chapter 2.A.28 (EI); HL7 table 0203 (PLAC).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_OID: Final = re.compile(r"[0-2](\.(0|[1-9]\d*))+\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class OrderNumber:
    """An EI. `namespace` is EI-2, `universal` and `universal_type` EI-3 and EI-4; '' where nothing is said."""

    number: str
    namespace: str = ""
    universal: str = ""
    universal_type: str = ""

    @property
    def components(self) -> tuple[str | None, ...]:
        """EI-1 to EI-4 as `hl7v2.write` takes them."""
        return self.number, self.namespace or None, self.universal or None, self.universal_type or None


def under_oid(number: str, oid: str) -> OrderNumber:
    """A number of ours; `oid` is bare, '' when unknown."""
    return OrderNumber(number, "", oid, "ISO" if oid else "")


def placer_of(resource: Mapping[str, Any]) -> OrderNumber | None:
    """The placer number of a request (or of an appointment); None when nobody gave one."""
    return _numbered(resource, "PLAC")


def filler_of(resource: Mapping[str, Any]) -> OrderNumber | None:
    """The filler number; None when nobody gave one."""
    return _numbered(resource, "FILL")


def _numbered(resource: Mapping[str, Any], kind: str) -> OrderNumber | None:
    for identifier in resource.get("identifier") or ():
        codes = {coding.get("code") for coding in (identifier.get("type") or {}).get("coding") or ()}
        if kind in codes and identifier.get("value"):
            return _ei(identifier)
    return None


def _ei(identifier: Mapping[str, Any]) -> OrderNumber:
    label = str((identifier.get("assigner") or {}).get("display") or "").split("&")
    system = str(identifier.get("system") or "")
    oid = system.removeprefix("urn:oid:")
    value = str(identifier["value"])
    if system and _OID.match(oid):
        return OrderNumber(value, label[0], oid, "ISO")
    namespace, universal, kind = (*label, "", "", "")[:3]
    return OrderNumber(value, namespace, universal, kind)
