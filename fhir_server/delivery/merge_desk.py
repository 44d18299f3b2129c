"""The operator's view of merged records: which ones there are, and how one is undone.

A merge is the List that `patients.merge.record` writes; what undoing does and leaves stands in `intake_merges.unmerge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from fhir_server.changes import Hub, plan_of
from fhir_server.context import Caller
from fhir_server.delivery.intake_merges import unmerge, unnumber
from fhir_server.desk.words import limit_of
from fhir_server.errors import NotFound
from fhir_server.patients import merge

Args = Mapping[str, str]
_STATES = {"current": "merged", "retired": "undone"}


def listed(hub: Hub, caller: Caller, args: Args) -> list[dict[str, Any]]:
    """The merges on record, newest first, and those within one record, which gave up a number; `patient` (`Patient/x`
    or x) narrows to those it survived or was given up in, `limit` to so many."""
    codes = ",".join(f"{merge.RECORD_SYSTEM}|{kind}" for kind in ("fusion", "numero"))
    query = f"code={codes}&_sort=-date"
    whom = quote(args.get("patient", "").removeprefix("Patient/"), safe="")
    if not whom:
        return _found(hub, caller, query, args)
    rows = {
        row["id"]: row
        for place in ("subject", "item")
        for row in _found(hub, caller, f"{query}&{place}=Patient/{whom}", args)
    }
    return sorted(rows.values(), key=lambda row: str(row["date"]), reverse=True)[: limit_of(args)]


def undone(hub: Hub, caller: Caller, args: Args) -> dict[str, Any]:
    """Part the two records of a merge, named by `id`, or put the number in force again that one record gave up: what
    went back, what was written since and followed its case, what such a case names and was left to the survivor, and
    what could not go back. Raises NotFound, and what `unmerge` or `unnumber` raises."""
    key = args.get("id", "").removeprefix("List/")
    with hub.store.read(caller) as snapshot:
        stored = snapshot.get("List", key) if key else None
    held = stored.resource() if stored and not stored.deleted else {}
    if not merge.is_record(held):
        raise NotFound(f"no merge {key[:80]!r} is on record; `passerelle merges list` shows them")
    told = _row(held)
    if merge.number_of(held):
        unnumber(hub, caller, key)
        return {**told, "state": "undone", "moved_back": [], "followed": [], "left": [], "not_moved": []}
    parted = unmerge(hub, caller, told["survivor"], told["given_up"])
    lists = {"moved_back": parted.back, "followed": parted.followed, "left": parted.left, "not_moved": parted.lost}
    return {**told, "state": "undone", **lists}


def _found(hub: Hub, caller: Caller, query: str, args: Args) -> list[dict[str, Any]]:
    with hub.store.read(caller) as snapshot:
        page = snapshot.search(replace(plan_of("List", query), count=limit_of(args)))
    return [_row(one.resource()) for one in page.matches]


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    number = merge.number_of(record)
    given_up, moved = ("|".join(number), ()) if number else merge.moved_of(record)
    state = str(record.get("status", ""))
    return {
        "id": str(record["id"]),
        "date": str(record.get("date", "")),
        "survivor": str(record.get("subject", {}).get("reference", "")),
        "given_up": given_up,
        "moved": len(moved),
        "state": _STATES.get(state, state),
    }
