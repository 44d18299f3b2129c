"""Whose a number of HL7 v2 is: an EI that names no OID is told apart by its namespace (EI-2), else by who gave it.

Hides where that stands in a stored Identifier: the namespace is `assigner.display` (see `mappers.order_number`), the
sender (MSH-3, MSH-4) the extension GIVEN_BY. Only a number that its sender gives itself has a sender: the placer number
in a result is that of whoever ordered. Two numbers differ where both say whose they are and say it differently, or both
say of which kind they are: one and the same system may count its placer and its filler numbers from 1. One that says
nothing is taken for the same, and is therefore looked for among the resources of one patient only.

Sources: HL7 v2.5 chapter 2.A.28 (EI); HL7 table 0203 (PLAC, FILL).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fhir_server.delivery.arrivals import Arrival

Resource = dict[str, Any]
GIVEN_BY: Final = "urn:passerelle:emetteur"
"""Extension of Identifier: `MSH-3|MSH-4` of the system that gave a number without an OID."""


@dataclass(frozen=True, slots=True)
class Number:
    """`system` is Identifier.system, '' without an OID; `namespace` and `sender` say whose it is then, '' if unsaid.
    `kind` is PLAC, FILL or another code of table 0203, '' if unsaid."""

    system: str
    value: str
    namespace: str = ""
    sender: str = ""
    kind: str = ""

    @property
    def authority(self) -> str:
        """Whose it is, in one word for an id; '' when nobody says it."""
        said = (("EI-2 ", self.namespace), ("MSH-3|MSH-4 ", self.sender))
        return self.system or next((kind + word for kind, word in said if word), "")

    @property
    def parts(self) -> tuple[str, str]:
        """What an id is made of."""
        return self.authority, self.value

    def agrees(self, other: Number, *, surely: bool = False) -> bool:
        """Whether both may be the same number; `surely`: whether they are, by an authority that both of them name."""
        if (self.system, self.value) != (other.system, other.value):
            return False
        if not self.system and self.kind and other.kind and self.kind != other.kind:
            return False
        for one, two in ((self.namespace, other.namespace), (self.sender, other.sender)):
            if one and two and not self.system:
                return one == two
        return bool(self.system) or not surely


def number_of(identifier: Mapping[str, Any]) -> Number:
    """The number of a stored or a mapped Identifier."""
    senders = (one.get("valueString") for one in identifier.get("extension", ()) if one.get("url") == GIVEN_BY)
    namespace = str(identifier.get("assigner", {}).get("display") or "")
    sender = str(next(filter(None, senders), ""))
    value = str(identifier.get("value") or "")
    return Number(str(identifier.get("system") or ""), value, namespace, sender, _kind(identifier))


def numbers_of(identifiers: Iterable[Mapping[str, Any]], *kinds: str) -> list[Number]:
    """Those of some kinds (PLAC, FILL), in the order of the kinds; all of them without a kind."""
    held = list(identifiers)
    chosen = [one for kind in kinds for one in held if _kind(one) == kind] if kinds else held
    return [number_of(one) for one in chosen]


def given(arrival: Arrival, identifiers: Iterable[Resource], *kinds: str) -> list[Resource]:
    """The identifiers of a message, those of these kinds with their sender, who gave them."""
    sender = "|".join(arrival.msg.text(place) for place in ("MSH-3", "MSH-4"))
    by = {"url": GIVEN_BY, "valueString": sender}
    told = sender != "|"
    return [
        {"extension": [by], **one} if told and not one.get("system") and _kind(one) in kinds else one
        for one in identifiers
    ]


def carries(resource: Mapping[str, Any], number: Number, *, surely: bool = False) -> bool:
    """Whether a resource has this number among its identifiers."""
    return any(number.agrees(held, surely=surely) for held in numbers_of(resource.get("identifier", ())))


def _kind(identifier: Mapping[str, Any]) -> str:
    codings = identifier.get("type", {}).get("coding") or [{}]
    return str(codings[0].get("code") or "")
