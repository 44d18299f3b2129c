"""What belongs to a compartment: `Patient/1/Observation`, and everything of a patient, `Patient/1/*`.

Source: https://hl7.org/fhir/R4/compartmentdefinition.html, https://hl7.org/fhir/R4/search.html#compartment
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

from fhir_server.search import index
from fhir_server.search.clauses import refused
from fhir_server.search.plan import Clause, Value, both, either
from profiles import definitions

# What CompartmentDefinition says of a resource that is a member by itself, not by a parameter.
_SELF = "{def}"


def within(compartment: str, key: str, types: Sequence[str]) -> tuple[tuple[str, ...], tuple[Clause, ...]]:
    """The types that can belong to a compartment, and the clauses that keep what does.

    `types` empty means every type. errors.Invalid (400) for an unknown compartment, or for a type that never belongs.
    """
    members = definitions.compartments().get(compartment)
    if members is None:
        raise refused(f"{compartment!r} is no compartment; there are {', '.join(sorted(definitions.compartments()))}.")
    able = {kind: pids for kind, pids in _pids(compartment).items() if not types or kind in types}
    for kind in types:
        if kind not in able and kind != compartment:
            known = ", ".join(sorted(_pids(compartment)))
            raise refused(f"{kind} never belongs to a {compartment}; these do: {known}.")
    itself = not types or compartment in types
    chosen = tuple(sorted({*able, *((compartment,) if itself else ())}))
    value = Value(type=compartment, id=key)
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for kind, pids in able.items():
        groups[pids].append(kind)
    ways = [_group(kinds, pids, value, len(groups) + itself == 1) for pids, kinds in groups.items()]
    if itself:
        own = Clause("_id", "token", 0, (Value(code=key),))
        ways.append(own if chosen == (compartment,) and not ways else both(_of_type((compartment,)), own))
    return chosen, (either(*ways),)


def _group(kinds: Sequence[str], pids: tuple[int, ...], value: Value, alone: bool) -> Clause:
    refers = Clause("compartment", "reference", pids[0], (value,), pids=pids if len(pids) > 1 else ())
    return refers if alone else both(_of_type(kinds), refers)


def _of_type(kinds: Sequence[str]) -> Clause:
    return Clause("_type", "token", 0, tuple(Value(code=kind) for kind in sorted(kinds)))


@cache
def _pids(compartment: str) -> Mapping[str, tuple[int, ...]]:
    """Type -> the ids of the reference parameters that make it a member."""
    found: dict[str, tuple[int, ...]] = {}
    for kind, codes in definitions.compartments()[compartment].items():
        known = index.parameters(kind)
        pids = sorted({known[code].pid for code in codes if code != _SELF and code in known})
        if pids:
            found[kind] = tuple(pids)
    return found
