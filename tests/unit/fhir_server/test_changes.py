"""The write path: all or nothing, links inside a request, versions under concurrent writers, and what stands beside
every write. On both databases."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any

import hubs
import pytest
from hubs import (
    EXPERT,
    PARTNER,
    REQUESTER,
    at_once,
    delete,
    directory,
    found,
    hub_on,
    meddled,
    message,
    opinion,
    post,
    put,
)

from fhir_server.changes import Applied, Change, Hub, apply, read_current
from fhir_server.context import SYSTEM
from fhir_server.demo import people
from fhir_server.errors import Conflict, Gone, Invalid, NotFound, Precondition, RuleBroken
from fhir_server.store.audit import AuditFilter
from fhir_server.store.engine import Store
from fhir_server.store.instances import NewInstance
from fhir_server.store.session import Tx

Resource = dict[str, Any]
GROUP: Resource = {"resourceType": "HealthcareService", "id": "g", "name": "Un groupe"}
OBSERVATION: Resource = {"resourceType": "Observation", "id": "o", "status": "final", "code": {"text": "poids"}}


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


@pytest.fixture
def house(store: Store) -> Hub:
    """A hub with the demo's people."""
    return directory(hub_on(store))


def counted(hub: Hub) -> tuple[int, int, int]:
    """How many versions, audit rows and deliveries there are."""
    with hub.store.read(SYSTEM) as snapshot:
        versions = len(snapshot.history(count=1000).entries)
        return versions, len(snapshot.audit_rows(AuditFilter(limit=1000))), len(snapshot.deliveries())


def entry(verb: Any, resource: Resource, place: int = 0, **more: Any) -> Change:
    where = f"Bundle.entry[{place}].resource"
    key = resource.get("id", "") if verb != "create" else ""
    return Change(verb, resource["resourceType"], key, resource, expression=where, **more)


# --- all or nothing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        entry("update", OBSERVATION | {"status": "no such code"}, 1),
        entry("update", OBSERVATION | {"unknown": 1}, 1),
        entry("update", OBSERVATION | {"subject": {"reference": "Patient?identifier=nobody"}}, 1),
        entry("update", OBSERVATION | {"subject": {"reference": "urn:uuid:0"}}, 1),
        entry("update", OBSERVATION, 1, if_match=7),
        Change("delete", "Observation", "never-there", expression="Bundle.entry[1]"),
        entry("update", GROUP | {"name": "the same again"}, 1),
    ],
    ids=["code", "unknown-element", "condition", "link", "version", "delete", "twice"],
)
def test_one_bad_entry_and_nothing_is_written(hub: Hub, bad: Change) -> None:
    before = counted(hub)
    with pytest.raises((Invalid, Precondition, NotFound)) as refused:
        apply(hub, PARTNER, [entry("update", GROUP), bad])
    assert counted(hub) == before
    assert refused.value.issues[0].expression.startswith("Bundle.entry[1]")


def test_a_failure_in_the_transaction_itself_takes_everything_back(house: Hub) -> None:
    hubs.asked(house, state="in_progress")
    before = counted(house)

    def also(tx: Tx, applied: list[Applied]) -> None:
        assert [one.stored is not None for one in applied] == [True]
        raise ZeroDivisionError

    report = opinion(house)
    with pytest.raises(ZeroDivisionError):
        apply(house, EXPERT, [Change("update", "DiagnosticReport", "r", report)], also=also)
    assert counted(house) == before
    assert hubs.read(house, "ServiceRequest/r")["status"] == "active"


def test_every_fault_of_a_resource_is_told_with_its_place_in_the_bundle(hub: Hub) -> None:
    broken = OBSERVATION | {"status": "finished", "effectiveDateTime": "yesterday"}
    with pytest.raises(Invalid) as refused:
        apply(hub, PARTNER, [entry("update", GROUP), entry("update", broken, 1)])
    places = [issue.expression for issue in refused.value.issues]
    assert "Bundle.entry[1].resource.status" in places
    assert any(place.startswith("Bundle.entry[1].resource.effective") for place in places)


# --- links -----------------------------------------------------------------------------------------------------------


def test_the_addresses_of_a_request_become_references(hub: Hub) -> None:
    uuid = "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a"
    person = {"resourceType": "Practitioner", "name": [{"family": "DURAND"}]}
    role = {
        "resourceType": "PractitionerRole",
        "practitioner": {"reference": uuid},
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": uuid}],
    }
    done = apply(hub, PARTNER, [entry("create", role, 0), entry("create", person, 1, full_url=uuid)])
    written = hubs.read(hub, f"PractitionerRole/{done[0].id}")
    assert written["practitioner"]["reference"] == f"Practitioner/{done[1].id}"
    assert written["identifier"][0]["value"] == uuid, "an identifier is text, not a link"
    assert [one.status for one in done] == [201, 201]


def test_a_link_to_a_resource_that_was_there_already_leads_to_it(hub: Hub) -> None:
    put(hub, PARTNER, GROUP | {"identifier": [{"system": "urn:x", "value": "1"}]})
    known = entry("create", GROUP, 0, full_url="urn:uuid:a", if_none_exist="identifier=urn:x|1")
    role = {"resourceType": "PractitionerRole", "healthcareService": [{"reference": "urn:uuid:a"}]}
    done = apply(hub, PARTNER, [known, entry("create", role, 1)])
    assert [one.status for one in done] == [200, 201]
    assert (
        hubs.read(hub, f"PractitionerRole/{done[1].id}")["healthcareService"][0]["reference"] == "HealthcareService/g"
    )


def test_a_link_that_leads_nowhere_is_named_with_its_element(hub: Hub) -> None:
    role = {"resourceType": "PractitionerRole", "healthcareService": [{"reference": "urn:uuid:b"}]}
    with pytest.raises(Invalid, match="fullUrl of no entry") as refused:
        apply(hub, PARTNER, [entry("create", role, 4)])
    assert refused.value.issues[0].expression == "Bundle.entry[4].resource.healthcareService[0].reference"


def test_the_same_full_url_twice_is_refused(hub: Hub) -> None:
    one, other = (entry("create", GROUP, n, full_url="urn:uuid:a") for n in (0, 1))
    with pytest.raises(Invalid, match="fullUrl of two entries") as refused:
        apply(hub, PARTNER, [one, other])
    assert refused.value.status == 400


@pytest.mark.parametrize(("matches", "words"), [(0, "no resource matches"), (1, ""), (2, "2 resources match")])
def test_a_conditional_reference_needs_exactly_one_match(hub: Hub, matches: int, words: str) -> None:
    for n in range(matches):
        put(hub, PARTNER, GROUP | {"id": f"g{n}", "identifier": [{"system": "urn:x", "value": "1"}]})
    role = {
        "resourceType": "PractitionerRole",
        "id": "p",
        "healthcareService": [{"reference": "HealthcareService?identifier=urn:x|1"}],
    }
    if not words:
        put(hub, PARTNER, role)
        assert hubs.read(hub, "PractitionerRole/p")["healthcareService"][0]["reference"] == "HealthcareService/g0"
        return
    with pytest.raises(Invalid, match=words) as refused:
        put(hub, PARTNER, role)
    assert refused.value.issues[0].expression == "PractitionerRole.healthcareService[0].reference"
    assert (refused.value.status, hubs.stored(hub, "PractitionerRole/p")) == (422, None)


@pytest.mark.parametrize("reference", ["Nothing?x=1", "HealthcareService?nonsense=1", "HealthcareService?", "?x=1"])
def test_a_conditional_reference_nobody_can_read_names_its_element(hub: Hub, reference: str) -> None:
    role = {"resourceType": "PractitionerRole", "id": "p", "healthcareService": [{"reference": reference}]}
    with pytest.raises(Invalid) as refused:
        put(hub, PARTNER, role)
    assert refused.value.issues[0].expression == "PractitionerRole.healthcareService[0].reference"


def test_a_conditional_reference_whose_match_goes_meanwhile_is_decided_again(hub: Hub) -> None:
    put(hub, PARTNER, GROUP | {"identifier": [{"system": "urn:x", "value": "1"}]})
    role = {
        "resourceType": "PractitionerRole",
        "id": "p",
        "healthcareService": [{"reference": "HealthcareService?identifier=urn:x|1"}],
    }
    late = meddled(hub, lambda store: store.write(SYSTEM, lambda tx: tx.delete("HealthcareService", "g")))
    with pytest.raises(Invalid, match="no resource matches"):
        put(late, PARTNER, role)
    assert hubs.stored(hub, "PractitionerRole/p") is None


def test_a_resource_that_was_read_and_changes_meanwhile_is_read_again(house: Hub) -> None:
    hubs.asked(house, state="draft")
    withdrawn = people.consent("r", 0) | {"status": "inactive"}
    late = meddled(house, lambda store: put(house, REQUESTER, withdrawn))
    with pytest.raises(RuleBroken, match="no consent"):
        put(late, REQUESTER, hubs.read(house, "ServiceRequest/r") | {"status": "active"})
    assert hubs.read(house, "ServiceRequest/r")["status"] == "draft"


def test_what_was_not_there_and_comes_meanwhile_is_looked_at_again(hub: Hub) -> None:
    late = meddled(hub, lambda store: put(hub, PARTNER, GROUP))
    done = put(late, PARTNER, GROUP | {"name": "second"})[0]
    assert (done.status, done.stored.version if done.stored else 0) == (200, 2)


def test_who_never_gets_through_is_told_to_repeat(hub: Hub) -> None:
    put(hub, PARTNER, GROUP)

    class Busy(hubs.Meddled):
        def write(self, caller: Any, work: Any) -> Any:
            put(hub, PARTNER, GROUP)
            return self._store.write(caller, work)

    late = dataclasses.replace(hub, store=Busy(hub.store, lambda store: None))  # type: ignore[arg-type]  # a stand-in
    with pytest.raises(Conflict, match="kept changing"):
        put(late, PARTNER, GROUP)


# --- conditions ------------------------------------------------------------------------------------------------------


def test_if_none_exist_never_makes_two_however_many_ask_at_once(hub: Hub) -> None:
    group = GROUP | {"identifier": [{"system": "urn:x", "value": "1"}]}
    spellings = ("identifier=urn:x|1", "?identifier=urn:x|1", "identifier=urn%3Ax%7C1")
    asks = [partial(post, hub, PARTNER, group, if_none_exist=text) for text in spellings * 2]
    done = hubs.results(at_once(*asks))
    assert sorted(one.status for one in done) == [200] * 5 + [201]
    assert len({one.id for one in done}) == 1
    assert len(found(hub, "HealthcareService", "identifier=urn:x|1")) == 1


def test_a_condition_that_matches_two_is_refused(hub: Hub) -> None:
    for key in ("a", "b"):
        put(hub, PARTNER, GROUP | {"id": key})
    for change in (
        entry("create", GROUP, if_none_exist="name=Un groupe"),
        Change(
            "update", "HealthcareService", "", {k: v for k, v in GROUP.items() if k != "id"}, criteria="name=Un groupe"
        ),
        Change("delete", "HealthcareService", criteria="name=Un groupe"),
    ):
        with pytest.raises(Precondition, match="2 resources match"):
            apply(hub, PARTNER, [change])


@pytest.mark.parametrize("criteria", ["_count=1", "_sort=name", "_format=json"])
def test_a_condition_that_says_nothing_deletes_nothing(hub: Hub, criteria: str) -> None:
    put(hub, PARTNER, GROUP)
    with pytest.raises(Invalid, match="finds everything"):
        apply(hub, PARTNER, [Change("delete", "HealthcareService", criteria=criteria)])
    assert hubs.read(hub, "HealthcareService/g") == GROUP


def test_a_conditional_update_writes_the_one_that_matches_or_a_new_one(hub: Hub) -> None:
    content = {"resourceType": "HealthcareService", "name": "A", "identifier": [{"system": "urn:x", "value": "1"}]}
    change = Change("update", "HealthcareService", "", content, criteria="identifier=urn:x|1")
    first, second = apply(hub, PARTNER, [change])[0], apply(hub, PARTNER, [change])[0]
    assert (first.status, second.status, first.id) == (201, 200, second.id)
    other = Change("update", "HealthcareService", "other", content | {"id": "other"}, criteria="identifier=urn:x|1")
    with pytest.raises(Precondition, match="the resource says other"):
        apply(hub, PARTNER, [other])


def test_a_conditional_delete_of_nothing_is_done(hub: Hub) -> None:
    assert apply(hub, PARTNER, [Change("delete", "HealthcareService", criteria="name=nobody")])[0].status == 204


# --- versions --------------------------------------------------------------------------------------------------------


def test_an_update_at_an_unknown_id_creates_and_the_next_one_updates(hub: Hub) -> None:
    first, second = put(hub, PARTNER, GROUP)[0], put(hub, PARTNER, GROUP | {"name": "B"})[0]
    assert (first.status, second.status) == (201, 200)
    assert first.stored is not None and second.stored is not None
    assert (first.stored.version, second.stored.version) == (1, 2)


@pytest.mark.parametrize("version", [0, 1, 3])
def test_a_stale_version_writes_nothing(hub: Hub, version: int) -> None:
    put(hub, PARTNER, GROUP)
    put(hub, PARTNER, GROUP)
    for verb in ("update", "delete"):
        with pytest.raises(Precondition, match="the server holds version 2") as refused:
            apply(hub, PARTNER, [entry(verb, GROUP, if_match=version)])
        assert refused.value.status == 412
    assert read_current(hub, PARTNER, "HealthcareService", "g").version == 2
    assert apply(hub, PARTNER, [entry("update", GROUP, if_match=2)])[0].status == 200


def test_a_version_of_nothing_is_stale_too(hub: Hub) -> None:
    with pytest.raises(Precondition, match="the server holds nothing"):
        apply(hub, PARTNER, [entry("update", GROUP, if_match=1)])


def test_a_deleted_resource_is_gone_and_comes_back_with_the_next_version(hub: Hub) -> None:
    put(hub, PARTNER, GROUP)
    assert delete(hub, PARTNER, "HealthcareService/g").status == 204
    assert delete(hub, PARTNER, "HealthcareService/g").status == 204
    with pytest.raises(Gone, match="version 2"):
        read_current(hub, PARTNER, "HealthcareService", "g")
    assert found(hub, "HealthcareService") == []
    back = put(hub, PARTNER, GROUP)[0]
    assert back.status == 201 and back.stored is not None and back.stored.version == 3
    assert [g["id"] for g in found(hub, "HealthcareService")] == ["g"]


def test_what_never_was_is_not_known(hub: Hub) -> None:
    for action in (lambda: delete(hub, PARTNER, "Patient/x"), lambda: read_current(hub, PARTNER, "Patient", "x")):
        with pytest.raises(NotFound, match="Patient/x is not known"):
            action()


def test_a_create_under_an_id_in_use_is_a_conflict(hub: Hub) -> None:
    put(hub, PARTNER, GROUP)
    with pytest.raises(Conflict, match="exists already"):
        apply(hub, PARTNER, [Change("create", "HealthcareService", "g", GROUP)])


def test_a_create_takes_no_id_from_its_client(hub: Hub) -> None:
    done = apply(hub, PARTNER, [Change("create", "HealthcareService", resource=GROUP | {"id": "not an id!"})])[0]
    assert done.id not in ("g", "not an id!")
    assert hubs.read(hub, f"HealthcareService/{done.id}")["id"] == done.id


def test_concurrent_writers_lose_no_update(hub: Hub) -> None:
    put(hub, PARTNER, GROUP | {"comment": "0"})

    def add_one() -> int:
        tries = 0
        while True:
            tries += 1
            current = read_current(hub, PARTNER, "HealthcareService", "g")
            more = current.resource() | {"comment": str(int(current.resource()["comment"]) + 1)}
            try:
                apply(hub, PARTNER, [Change("update", "HealthcareService", "g", more, if_match=current.version)])
                return tries
            except Precondition:
                assert tries < 200

    hubs.results(at_once(*[lambda: [add_one() for _ in range(5)]] * 4))
    last = read_current(hub, PARTNER, "HealthcareService", "g")
    assert (last.resource()["comment"], last.version) == ("20", 21)


def test_writers_without_a_version_come_one_after_the_other(hub: Hub) -> None:
    names = [f"writer {n}" for n in range(8)]
    done = hubs.results(at_once(*[lambda name=name: put(hub, PARTNER, GROUP | {"name": name})[0] for name in names]))
    versions = sorted(one.stored.version for one in done if one.stored)
    assert versions == list(range(1, 9)), "each write is a version of its own, the first one creates"
    assert sorted(one.status for one in done) == [200] * 7 + [201]
    with hub.store.read(SYSTEM) as snapshot:
        kept = [one.resource()["name"] for one in snapshot.history("HealthcareService", "g").entries]
    assert sorted(kept) == names


def test_two_experts_cannot_both_take_a_request(house: Hub) -> None:
    hubs.asked(house)
    task = hubs.read(house, "Task/r") | {"status": "in-progress"}
    second = hubs.seed.caller("benali", "avis-echo")
    outcomes = at_once(*[lambda who=who: put(house, who, copy.deepcopy(task)) for who in (EXPERT, second)])
    performers = [p["reference"] for p in hubs.read(house, "ServiceRequest/r")["performer"]]
    takers = {"PractitionerRole/garnier", "PractitionerRole/benali"} & set(performers)
    assert len(takers) == 1, "the second one found the request taken"
    steps = [
        p for p in found(house, "Provenance", "target=ServiceRequest/r") if p["activity"]["coding"][0]["code"] == "take"
    ]
    assert len(steps) == 1
    assert sum(not isinstance(one, Exception) for one in outcomes) >= 1


# --- what stands beside a write --------------------------------------------------------------------------------------


def test_task_provenance_and_audit_come_with_the_step_or_not_at_all(house: Hub) -> None:
    put(house, REQUESTER, people.consent("r", 0))
    versions, audits, _ = counted(house)
    put(house, REQUESTER, hubs.request())
    assert hubs.read(house, "Task/r")["status"] == "requested"
    provenance = found(house, "Provenance", "target=ServiceRequest/r")
    assert [p["activity"]["coding"][0]["code"] for p in provenance] == ["ask"]
    assert provenance[0]["agent"][0]["who"]["reference"] == "PractitionerRole/moreau"
    assert counted(house)[:2] == (versions + 3, audits + 3)
    with house.store.read(SYSTEM) as snapshot:
        rows = snapshot.audit_rows(AuditFilter(case_key="ServiceRequest/r", limit=100))
    assert {(row.action, row.entity_type) for row in rows} == {
        ("C", "ServiceRequest"),
        ("C", "Task"),
        ("C", "Provenance"),
    }
    assert {row.who for row in rows} == {"PractitionerRole/moreau"}


def test_a_refused_step_leaves_no_trace_of_a_consequence(house: Hub) -> None:
    hubs.asked(house)
    before = counted(house)
    with pytest.raises(RuleBroken):
        put(house, EXPERT, message("m"))
    assert counted(house) == before


def test_scope_rows_say_the_case_the_patient_and_the_organisation(house: Hub) -> None:
    hubs.asked(house, state="completed")
    wanted = {
        "ServiceRequest/r": {("case", "ServiceRequest/r"), ("patient", "Patient/patient-01")},
        "Task/r": {("case", "ServiceRequest/r"), ("patient", "Patient/patient-01")},
        "DiagnosticReport/r": {("case", "ServiceRequest/r"), ("patient", "Patient/patient-01")},
        "Consent/r": {("patient", "Patient/patient-01")},
        "Patient/patient-01": {("patient", "Patient/patient-01"), ("organisation", "Organization/ch-demo")},
    }
    for reference, scopes in wanted.items():
        kind, _, key = reference.partition("/")
        with house.store.read(SYSTEM) as snapshot:
            rows = snapshot.view.db.rows(
                "SELECT s.kind, s.key FROM scope s JOIN resource r ON r.rid = s.rid WHERE r.type = ? AND r.id = ?",
                (kind, key),
            )
        assert {(row[0], row[1]) for row in rows} == scopes, reference
    document = found(house, "DocumentReference", "related=DiagnosticReport/r")[0]
    with house.store.read(SYSTEM) as snapshot:
        kinds = {event.kind for event in snapshot.case("ServiceRequest/r")}
    assert document["status"] == "current"
    assert {"resource", "delivery", "audit"} <= kinds


def test_a_patient_or_a_request_that_arrives_wakes_the_studies_that_wait_for_it(house: Hub) -> None:
    def study(uid: str, **more: Any) -> NewInstance:
        return NewInstance(f"{uid}.1", uid, f"{uid}.0", "1.2", "1.2", "0" * 64, 1, "0" * 64, "{}", **more)

    def dirty(uid: str) -> bool:
        with house.store.read(SYSTEM) as snapshot:
            one = snapshot.study(uid)
        assert one is not None
        return one.dirty

    def settle(tx: Tx) -> None:
        for uid in ("1.1", "1.2", "1.3"):
            seen = tx.study(uid)
            assert seen is not None
            tx.settle_study(seen)

    mine, theirs = study("1.1", accession="ECHO-77"), study("1.2", patient_id="DEMO0005")
    house.store.write(SYSTEM, lambda tx: [tx.add_instance(one) for one in (mine, theirs, study("1.3"))])
    house.store.write(SYSTEM, settle)
    put(house, PARTNER, people.patient(4))
    assert [dirty(uid) for uid in ("1.1", "1.2", "1.3")] == [False, True, False]
    number = {"type": {"coding": [{"code": "ACSN"}]}, "system": people.ACCESSION_SYSTEM, "value": "ECHO-77"}
    put(house, REQUESTER, people.consent("r", 0), hubs.request(identifier=[number]))
    assert [dirty(uid) for uid in ("1.1", "1.2", "1.3")] == [True, True, False]


def test_two_final_reports_in_one_request_both_go_out(house: Hub) -> None:
    for key, patient in (("r", 0), ("s", 1)):
        hubs.asked(house, key, patient, "in_progress")
    put(house, EXPERT, opinion(house, "r"), opinion(house, "s"))
    sent = {(one.case_key, one.protocol, one.lane) for one in hubs.deliveries(house)}
    assert len(sent) == 6
    assert {case for case, _, _ in sent} == {"ServiceRequest/r", "ServiceRequest/s"}


def test_the_order_of_entries_does_not_change_what_a_request_means(house: Hub) -> None:
    for key, order in (("r", 1), ("s", -1)):
        hubs.asked(house, key, 0, "in_progress")
        entries = [hubs.read(house, f"ServiceRequest/{key}"), opinion(house, key)][::order]
        put(house, EXPERT, *entries)
        assert hubs.read(house, f"ServiceRequest/{key}")["status"] == "completed"


def test_a_lexeme_is_kept_as_it_was_written(hub: Hub) -> None:
    from profiles import json_text

    put(hub, PARTNER, OBSERVATION | json_text.parse('{"valueQuantity":{"value":72.50}}'))
    held = hubs.stored(hub, "Observation/o")
    assert held is not None and '"value":72.50' in held.text
