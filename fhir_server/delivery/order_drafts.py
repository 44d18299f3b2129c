"""A draft made from an order, when the order is changed (ORC-1 XO, RP): what people wrote into it meanwhile stays.

Hides the three versions this takes: what the last order said, which is read again from its bytes, what stands there
now, and what the order says now. An element that the order says as before is left as it stands; of one that it says
otherwise, only what came from the order is replaced. When the last order is gone, nothing that stands there is taken
for its word.

Sources: HL7 table 0119 (XO, RP); CI-SIS téléradiologie 1.0, flow 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fhir_server.delivery.arrivals import SOURCE, Draft
from fhir_server.delivery.order_numbers import number_of

Resource = dict[str, Any]
_WHOLE: Final = ("performer",)
"""Lists that are said as one: whoever is asked instead is not asked beside."""


def orders_of(draft: Draft, reference: str) -> Iterator[bytes]:
    """The ORM messages that wrote a request, the last one first, as far as they are kept; read when asked for."""
    seen: set[str] = set()
    for version in draft.versions(reference):
        source = str(version.get("meta", {}).get("source") or "")
        if source in seen:
            continue
        seen.add(source)
        if source.startswith(SOURCE) and (raw := draft.message(source.removeprefix(SOURCE), "ORM")):
            yield raw


def rewritten(held: Mapping[str, Any], before: Mapping[str, Any], said: Mapping[str, Any]) -> Resource:
    """`held` as the order changes it: `before` is what the last order said, `said` what this one says."""
    names = dict.fromkeys([*held, *said])
    made = ((name, _element(name, held.get(name), before.get(name), said.get(name))) for name in names)
    return {name: value for name, value in made if value not in (None, [])}


def _element(name: str, held: Any, before: Any, said: Any) -> Any:
    if said == before:
        return held
    if isinstance(held, list) and name not in _WHOLE:
        mine = said or []
        others = [one for one in held if one not in (before or []) and one not in mine]
        return [*mine, *(one for one in others if name != "identifier" or not _renamed(one, mine))]
    return said if said is not None or held == before else held


def _renamed(identifier: Resource, said: Sequence[Resource]) -> bool:
    """Whether the order has this number too, and only says otherwise whose it is."""
    number = number_of(identifier)
    return any(number.kind == one.kind and number.agrees(one) for one in map(number_of, said))
