"""A40: two records of one person become one, and whatever hangs on them follows, on record."""

from __future__ import annotations

import pytest
from hubs import (
    ADMIN,
    PARTNER,
    at_once,
    delivered,
    deliveries,
    found,
    put,
    read,
    results,
    stored,
)
from merging import GIVEN_UP, SURVIVOR, ids, ref, two
from sylve import INS, patient, person, sample, say, sylve, tell

from fhir_server import changes
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery import arrivals
from fhir_server.errors import RuleBroken
from fhir_server.patients import merge
from fhir_server.store.engine import Store
from fhir_server.store.lanes import NewDelivery
from fhir_server.teleexpertise.overtaken import overtaken


@pytest.fixture
def hub(store: Store) -> Hub:
    return sylve(store)


def test_a_merge_links_both_records_and_everything_follows(hub: Hub) -> None:
    target, source = two(hub)
    key = delivered(hub)
    note = tell(hub, "adt-a40-fusion").note
    survivor, left = read(hub, target), read(hub, source)
    assert left["active"] is False
    assert left["link"] == [{"other": {"reference": target}, "type": "replaced-by"}]
    assert survivor["link"] == [{"other": {"reference": source}, "type": "replaces"}]
    assert ids(survivor)[GIVEN_UP] == "old" and ids(left)[GIVEN_UP] != "old"
    for reference, element in (
        ("Observation/o1", "subject"),
        ("ServiceRequest/fusion", "subject"),
        ("Task/fusion", "for"),
    ):
        assert read(hub, reference)[element]["reference"] == target, reference
    assert read(hub, "Consent/fusion")["patient"]["reference"] == target
    listed = read(hub, f"List/{merge.record_id('fusion', source, target)}")
    moved = {entry["item"]["reference"] for entry in listed["entry"]}
    assert {source, "Observation/o1", "ServiceRequest/fusion", "Task/fusion", "Consent/fusion"} <= moved
    told = found(hub, "Provenance", f"target={target}")
    assert [one["activity"]["coding"][0]["code"] for one in told] == ["fusion"]
    assert "merged into" in note
    with hub.store.read(SYSTEM) as snapshot:
        assert found(hub, "Observation", f"subject={source}") == []
        assert deliveries(hub)[0].id == key and overtaken(snapshot, deliveries(hub)[0]) == ""


def test_what_refers_is_read_page_by_page_and_a_merge_beyond_its_bound_changes_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, source = two(hub)
    many = [read(hub, "Observation/o1") | {"id": f"o{n}"} for n in range(2, 8)]
    put(hub, SYSTEM, *many)
    monkeypatch.setattr(arrivals, "_A_PAGE", 2)
    monkeypatch.setattr(arrivals, "MOST_MOVED", 5)
    told = say(hub, sample("adt-a40-fusion"))
    assert (told.code, told.errors[0].code) == ("AE", "207") and read(hub, source).get("active", True)
    monkeypatch.setattr(arrivals, "MOST_MOVED", 50)
    tell(hub, "adt-a40-fusion")
    assert {read(hub, f"Observation/o{n}")["subject"]["reference"] for n in range(1, 8)} == {target}
    entries = read(hub, f"List/{merge.record_id('fusion', source, target)}")["entry"]
    names = [entry["item"]["reference"] for entry in entries]
    assert names[0] == source and names[1:] == sorted(names[1:]) and len(names) > 10


def test_a_merge_that_would_write_too_many_index_rows_is_refused_with_what_to_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, source = two(hub)
    monkeypatch.setattr(changes, "MOST_ROWS", 60)
    told = say(hub, sample("adt-a40-fusion"))
    assert (told.code, told.errors[0].code) == ("AE", "207") and read(hub, source).get("active", True)
    assert "60 searchable values" in told.errors[0].text and "a person must first move" in told.errors[0].text
    put(hub, PARTNER, read(hub, "Observation/o1") | {"subject": {"reference": target}})
    monkeypatch.setattr(changes, "MOST_ROWS", 200_000)
    tell(hub, "adt-a40-fusion")
    assert read(hub, source)["active"] is False


def test_what_has_not_left_for_a_merged_patient_is_held_back(hub: Hub) -> None:
    _, source = two(hub)
    frozen = NewDelivery("l", "mllp://127.0.0.1:9", "hl7", b"x", patient=source)
    key = hub.store.write(SYSTEM, lambda tx: tx.send(frozen))
    tell(hub, "adt-a40-fusion")
    with hub.store.read(SYSTEM) as snapshot:
        delivery = snapshot.delivery(key)
        assert delivery is not None and "merged into" in overtaken(snapshot, delivery)


def test_the_same_merge_again_changes_no_record_and_another_one_is_refused(hub: Hub) -> None:
    target, source = two(hub)
    tell(hub, "adt-a40-fusion")
    version = stored(hub, source)
    assert "before" in tell(hub, "adt-a40-fusion").note
    assert stored(hub, source) == version
    say(hub, person("000700", "AUTRE", "Jean", "19600101"))
    pid = "000417^^^CH-SYLVE&990001234&N^PI~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
    other = (pid, "000700^^^CH-SYLVE&990001234&N^PI")
    told = say(
        hub,
        sample(
            "adt-a40-fusion",
            other,
            ("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "AUTRE^Jean^Jean"),
            ("19840523|F", "19600101|M"),
        ),
    )
    assert (told.code, told.errors[0].code) == ("AE", "205")
    assert target in told.errors[0].text


def test_a_late_message_under_the_old_number_goes_to_the_survivor(hub: Hub) -> None:
    target, _ = two(hub)
    tell(hub, "adt-a40-fusion")
    name = read(hub, target)["name"]
    ins = "~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
    note = tell(hub, "adt-a04-consultation", ("000417^", "000399^"), (ins, "")).note
    assert "given up" in note
    assert read(hub, target)["name"] == name and read(hub, target)["active"] is True
    assert {stay["subject"]["reference"] for stay in found(hub, "Encounter")} == {target}


def test_a_merge_of_nobody_known_is_noted_and_the_number_found_later(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    note = tell(hub, "adt-a40-fusion").note
    assert "nobody known had 000399" in note
    assert ids(patient(hub)) == {SURVIVOR: "usual", GIVEN_UP: "old"}


def test_the_ins_of_the_record_given_up_may_be_that_of_the_survivor(hub: Hub) -> None:
    ins = "~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
    tell(hub, "adt-a28-creation-provisoire", ("000417^", "000399^"), ("|PROV|", "|VALI|"))
    tell(hub, "adt-a28-creation-provisoire", (ins, ""))
    assert tell(hub, "adt-a40-fusion").note
    survivor = patient(hub)
    assert ids(survivor, INS) == {"284056912345640": "official"} and survivor["active"]
    assert read(hub, ref(hub, GIVEN_UP))["active"] is False


def test_two_merges_in_one_message_are_both_done(hub: Hub) -> None:
    two(hub)
    say(hub, person("000500"))
    say(hub, person("000501"))
    tell(hub, "adt-a40-deux-fusions")
    assert [patient(hub, ipp).get("active") for ipp in (SURVIVOR, GIVEN_UP, "000500", "000501")] == [
        True,
        False,
        True,
        False,
    ]


def test_a_merge_into_a_doubtful_identity_is_refused(hub: Hub) -> None:
    two(hub)
    told = say(
        hub,
        sample(
            "adt-a40-fusion",
            ("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "AUTRE^Jean^Jean"),
            ("19840523|F", "19600101|M"),
        ),
    )
    assert (told.code, told.errors[0].location) == ("AE", "PID^1^3")
    assert all(one.get("active", True) for one in found(hub, "Patient"))


@pytest.mark.parametrize("prior", ["000417^^^CH-SYLVE&990001234&N^PI", "000399^^^INCONNU^PI"])
def test_a_merge_with_itself_or_with_an_undeclared_number_is_refused(hub: Hub, prior: str) -> None:
    two(hub)
    told = say(hub, sample("adt-a40-fusion", ("000399^^^CH-SYLVE&990001234&N^PI", prior)))
    assert (told.code, told.errors[0].location) == ("AE", "MRG^1^1")
    assert ids(patient(hub)) == {SURVIVOR: "usual"}


def test_nobody_but_a_merge_on_record_moves_a_request_to_another_patient(hub: Hub) -> None:
    target, source = two(hub)
    moved = merge.swapped(read(hub, "ServiceRequest/fusion"), source, target)
    for caller in (SYSTEM, PARTNER, ADMIN):
        with pytest.raises(RuleBroken):
            put(hub, caller, moved)
    tell(hub, "adt-a40-fusion")
    with pytest.raises(RuleBroken):
        put(hub, PARTNER, merge.swapped(read(hub, "ServiceRequest/fusion"), target, source))


def test_the_same_merge_sent_twice_at_once_is_done_once(hub: Hub) -> None:
    target, source = two(hub)
    answers = results(at_once(*[lambda: say(hub, sample("adt-a40-fusion"))] * 3))
    assert {answer.code for answer in answers} == {"AA"}
    assert len(found(hub, "Provenance", f"target={target}")) == 1
    assert read(hub, source)["active"] is False
