"""A reference that was stored when its base URL was not yet this server's: found like any other after a reindex."""

from __future__ import annotations

from typing import Any

from hubs import SYSTEM, hub_on
from rest_calls import OBSERVATION, PATIENT, ask, stored

from fhir_server import upkeep
from fhir_server.changes import Hub
from fhir_server.store.engine import Store

OLD = "https://old.example.org/fhir"
NOW = "https://hub.example.org/fhir"
ABSOLUTE = {"reference": f"{OLD}/Patient/p"}
HELD = {
    "resourceType": "Bundle",
    "id": "kept",
    "type": "collection",
    "entry": [{"resource": OBSERVATION | {"subject": ABSOLUTE}}],
}
INSIDE = {
    "resourceType": "Basic",
    "id": "b",
    "code": {"text": "x"},
    "contained": [OBSERVATION | {"id": "inner", "subject": ABSOLUTE}],
    "subject": {"reference": "#inner"},
}
QUERIES = (
    "Observation?subject=Patient/p",
    "Observation?subject=p",
    "Observation?patient=Patient/p",
    "Observation?subject:Patient.name=Martin",
    "Patient?_has:Observation:subject:code:text=poids",
    "Patient/p/Observation",
    "Observation?_contained=true&subject=Patient/p",
)


def jobs(hub: Hub, name: str) -> dict[str, Any]:
    return upkeep.JOBS[name](hub, {}, lambda line: None)


def found(hub: Hub, query: str) -> int:
    return len(ask(hub, "GET", query).entries)


def test_a_reindex_finds_references_under_a_base_that_became_ours(store: Store) -> None:
    before = hub_on(store, public_url=NOW)
    jobs(before, "reindex")
    stored(before, PATIENT, OBSERVATION | {"subject": ABSOLUTE}, HELD, INSIDE)
    assert [found(before, query) for query in QUERIES] == [0] * len(QUERIES)
    assert jobs(before, "check")["ok"] and not jobs(before, "check")["stale"]

    after = hub_on(store, public_url=NOW, base_aliases=f"https://third.example.org/fhir, {OLD}/")
    told = jobs(after, "check")
    assert told["stale"] and set(told["counts"]) == {"index"}
    assert (jobs(after, "reindex")["changed"], jobs(after, "reindex")["changed"]) == (2, 0)
    assert [found(after, query) for query in QUERIES] == [1] * len(QUERIES)
    for name in (OLD, NOW, "https://third.example.org/fhir"):
        assert found(after, f"Observation?subject={name}/Patient/p") == 1
    with_both = ask(after, "GET", "Observation?_include=Observation:subject").entries
    assert [one["search"]["mode"] for one in with_both] == ["match", "include"]
    assert len(ask(after, "GET", "Patient?_revinclude=Observation:subject").entries) == 2
    told = jobs(after, "check")
    assert told["ok"] and not told["stale"]
    kept = store.get(SYSTEM, "Observation", "o")
    assert kept is not None and (kept.version, kept.resource()["subject"]) == (1, ABSOLUTE), "what is served stays"

    assert jobs(before, "reindex")["changed"] == 2, "and back, when it is no longer ours"
    assert [found(before, query) for query in QUERIES] == [0] * len(QUERIES)
    assert found(before, f"Observation?subject={OLD}/Patient/p") == 1


def test_a_base_that_only_begins_like_ours_is_not_ours(store: Store) -> None:
    hub = hub_on(store, public_url=NOW)
    for number, base in enumerate((f"{NOW}x", "http://hub.example.org/fhir", f"{NOW}/other")):
        stored(hub, OBSERVATION | {"id": f"o{number}", "subject": {"reference": f"{base}/Patient/p"}})
    assert jobs(hub, "reindex")["changed"] == 0
    assert found(hub, "Observation?subject=Patient/p") == 0
