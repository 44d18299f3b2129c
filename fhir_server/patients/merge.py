"""Two records of one person become one, visibly, and can be parted again.

Hides how a merge is written down. The record that is given up stays as it was, inactive and linked (`replaced-by`); the
one that remains links back (`replaces`) and keeps the other's local identifiers as `old`, so that late messages find
it. Whatever referred to the one now refers to the other, and a List, always the same for the same two, names every
resource that was moved: it is what a parting undoes, and the only reason for which the rules of the téléexpertise let
the patient of a request change.

Sources: https://hl7.org/fhir/R4/patient.html#links, https://hl7.org/fhir/R4/list.html; IHE PAM A40, A44.
"""

from __future__ import annotations

import bisect
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from fhir_server.context import Caller, View
from fhir_server.patients import identity

Resource = dict[str, Any]
Kind = Literal["fusion", "deplacement", "numero"]
Key = tuple[str, str]
RECORD_SYSTEM = "urn:passerelle:identite"
_HOPS = 10
TITLES: Mapping[Kind, str] = {
    "fusion": "Fusion d'identités",
    "deplacement": "Dossier rattaché à un autre patient",
    "numero": "Identifiant abandonné par fusion",
}
MOVES: tuple[Kind, ...] = ("fusion", "deplacement")
"""What turns references from one patient to another."""
STAYS = frozenset({"Patient", "Provenance", "AuditEvent"})
"""Types that keep the reference they were written with."""


def record_id(kind: Kind, one: str, other: str) -> str:
    """The id of the List that tells what moved between two patients, whatever the direction."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:passerelle:{kind}:{'|'.join(sorted((one, other)))}"))


def is_record(resource: Mapping[str, Any]) -> bool:
    """Whether this is such a List."""
    codes = resource.get("code", {}).get("coding", ()) if resource.get("resourceType") == "List" else ()
    return any(coding.get("system") == RECORD_SYSTEM and coding.get("code") in TITLES for coding in codes)


def record(kind: Kind, source: str, target: str, moved: Iterable[str], when: str, held: Resource | None) -> Resource:
    """The List: what was moved from `source` to `target` (references); a dossier moved later adds to the same List."""
    earlier = held.get("entry", []) if held and kind == "deplacement" and held.get("status") == "current" else []
    kept = [entry["item"]["reference"] for entry in earlier]
    entries = [{"flag": {"text": "identité d'origine"}, "item": {"reference": source}}] if kind == "fusion" else []
    # Sorted, so that one of thousands is found without reading all of them (`_names`).
    entries += [{"item": {"reference": reference}} for reference in sorted({*kept, *moved})]
    return _list(kind, record_id(kind, source, target), target, when, entries)


def number_record(patient: str, key: Key, when: str) -> Resource:
    """The List of a merge within one record (`Patient/x`): the number that it gave up."""
    entry = {"flag": {"text": "identifiant abandonné"}, "item": {"identifier": {"system": key[0], "value": key[1]}}}
    return _list("numero", record_id("numero", patient, "|".join(key)), patient, when, [entry])


def number_of(listed: Mapping[str, Any]) -> Key | None:
    """The number that the List of a merge within one record tells, None for any other List."""
    found = (entry["item"].get("identifier") for entry in listed.get("entry", ()) if is_record(listed))
    return next(((one["system"], one["value"]) for one in found if one), None)


def _list(kind: Kind, key: str, target: str, when: str, entries: list[Resource]) -> Resource:
    return {
        "resourceType": "List",
        "id": key,
        "status": "current",
        "mode": "snapshot",
        "title": TITLES[kind],
        "code": {"coding": [{"system": RECORD_SYSTEM, "code": kind, "display": TITLES[kind]}]},
        "subject": {"reference": target},
        "date": when,
        **({"entry": entries} if entries else {}),
    }


def moved_of(listed: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """(the patient given up, what was moved) of the List of a merge."""
    references = [entry["item"]["reference"] for entry in listed.get("entry", ())]
    source = next((reference for reference in references if reference.startswith("Patient/")), "")
    return source, tuple(reference for reference in references if reference != source)


def with_followers(listed: Resource, followed: Iterable[str]) -> Resource:
    """The List of a merge with what was written after it and goes back with its case."""
    head, *rest = listed["entry"]
    known = {_named(entry) for entry in rest}
    flag = {"text": "écrit depuis la fusion"}
    since = [{"flag": flag, "item": {"reference": one}} for one in followed if one not in known]
    return {**listed, "entry": [head, *sorted([*rest, *since], key=_named)]}


def swapped(value: Any, old: str, new: str) -> Any:
    """The same content with every reference to `old` (`Type/id`, any version) turned to `new`."""
    if isinstance(value, dict):
        # Thousands of resources go this way: what holds nothing further is not asked again.
        out = {
            name: swapped(item, old, new) if isinstance(item, (dict, list)) else item for name, item in value.items()
        }
        named = out.get("reference")
        if isinstance(named, str) and named.partition("/_history/")[0] == old:
            out["reference"] = new
        return out
    return [swapped(item, old, new) for item in value] if isinstance(value, list) else value


def movable(resource: Mapping[str, Any]) -> bool:
    """Whether a resource follows its patient; history and the records of other merges do not."""
    return resource["resourceType"] not in STAYS and not is_record(resource)


def joined(survivor: Resource, given_up: Resource, local_systems: frozenset[str]) -> tuple[Resource, Resource]:
    """Both records after the merge. `local_systems` are the namespaces of patient identifiers (PI)."""
    target, source = f"Patient/{survivor['id']}", f"Patient/{given_up['id']}"
    links = [link for link in survivor.get("link", ()) if link["other"].get("reference") != source]
    ids = list(survivor.get("identifier", ()))
    have = {(one.get("system"), one.get("value")) for one in ids}
    for one in given_up.get("identifier", ()):
        if one.get("system") in local_systems and (one["system"], one.get("value")) not in have:
            ids.append({**one, "use": "old"})
    remains = {**survivor, "identifier": ids, "link": [*links, {"other": {"reference": source}, "type": "replaces"}]}
    if not ids:
        del remains["identifier"]
    left = {**given_up, "active": False, "link": [{"other": {"reference": target}, "type": "replaced-by"}]}
    return remains, left


def with_number(patient: Resource, key: Key) -> Resource:
    """The record with a number in force that it keeps as `old`."""
    ids = [
        {**one, "use": "usual"} if (one.get("system"), one.get("value")) == key else one
        for one in patient.get("identifier", ())
    ]
    return {**patient, "identifier": ids}


def parted(survivor: Resource, given_up: Resource) -> tuple[Resource, Resource]:
    """Both records after the merge was undone: in force both, no link, each with its own identifiers."""
    target, source = f"Patient/{survivor['id']}", f"Patient/{given_up['id']}"
    own = {(one.get("system"), one.get("value")) for one in given_up.get("identifier", ())}
    remains, back = dict(survivor), {**given_up, "active": True}
    remains["identifier"] = [
        one
        for one in survivor.get("identifier", ())
        if one.get("use") != "old" or (one.get("system"), one.get("value")) not in own
    ]
    for patient, other in ((remains, source), (back, target)):
        patient["link"] = [link for link in patient.get("link", ()) if link["other"].get("reference") != other]
    for patient in (remains, back):
        for name in ("link", "identifier"):
            if not patient.get(name):
                patient.pop(name, None)
    return remains, back


def replaced_by(patient: Mapping[str, Any]) -> str:
    """The record that stands for an inactive one, '' when there is none."""
    if patient.get("active", True):
        return ""
    others = (link["other"].get("reference", "") for link in patient.get("link", ()) if link["type"] == "replaced-by")
    return next(others, "")


def given_up_for(view: View, key: tuple[str, str], *, renumbered: bool = True) -> frozenset[str]:
    """The active Patients for which an identifier (system, value) was given up: its record was merged into theirs, or,
    with `renumbered`, they keep it as `old`."""
    targets = set()
    for held in view.find("Patient", identity.identifier_query(*key)):
        uses = [i.get("use") for i in held.get("identifier", ()) if (i.get("system"), i.get("value")) == key]
        reference = f"Patient/{held['id']}"
        if held.get("active", True) and not (renumbered and uses and set(uses) == {"old"}):
            continue
        for _ in range(_HOPS):
            further = replaced_by(view.get(reference) or {})
            reference = further or reference
            if not further:
                break
        if (view.get(reference) or {"active": False}).get("active", True):
            targets.add(reference)
    return frozenset(targets)


def allows(before: Resource | None, after: Resource, caller: Caller, view: View) -> bool:
    """Whether a change does nothing but follow its patient through a merge, a parting or a moved dossier on record."""
    if before is None or not caller.roles & {"system", "admin"}:
        return False
    said, says = ({ref for ref in references(r) if ref.startswith("Patient/")} for r in (before, after))
    if said == says:
        return False
    own = f"{after['resourceType']}/{after['id']}"
    plain = {name: value for name, value in after.items() if name != "meta"}
    for old in said - says:
        for new in says:
            changed = swapped({name: value for name, value in before.items() if name != "meta"}, old, new)
            if changed == plain and any(_records(kind, old, new, own, view) for kind in MOVES):
                return True
    return False


def _records(kind: Kind, one: str, other: str, moved: str, view: View) -> bool:
    listed = view.get(f"List/{record_id(kind, one, other)}") or {}
    return is_record(listed) and _names(listed.get("entry", ()), kind, moved)


def _names(entries: Sequence[Any], kind: Kind, moved: str) -> bool:
    """Whether the entries of such a List name a resource. That of a merge begins with the record given up."""
    first = 1 if kind == "fusion" else 0
    at = bisect.bisect_left(entries, moved, lo=min(first, len(entries)), key=_named)
    # A List of an earlier version is in the order of the search that found the resources.
    return (at < len(entries) and _named(entries[at]) == moved) or any(_named(entry) == moved for entry in entries)


def _named(entry: Mapping[str, Any]) -> str:
    return str(entry["item"].get("reference", ""))


def references(value: Any) -> Iterator[str]:
    """Every literal reference within a resource."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name == "reference" and isinstance(item, str):
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)
