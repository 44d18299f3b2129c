"""ITI-31: each movement changes the stay as its event says, and a cancellation needs what it takes back."""

from __future__ import annotations

import pytest
from hubs import at_once, found, results
from sylve import DATA, patient, person, row, sample, say, stays, sylve, tell

from fhir_server.changes import Hub
from fhir_server.delivery.intake_stays import MOVEMENT, part_of
from fhir_server.delivery.ports import Port
from fhir_server.store.engine import Store
from mappers.hl7v2_events_to_fhir import EVENTS


@pytest.fixture
def hub(store: Store) -> Hub:
    return sylve(store)


def movements(hub: Hub) -> list[tuple[str, str, str]]:
    told = [one for one in stays(hub)[0].get("extension", ()) if one["url"] == MOVEMENT]
    return [(part_of(one, "id").split("^")[0], part_of(one, "event"), part_of(one, "state")) for one in told]


def test_the_whole_life_of_a_stay_is_followed(hub: Hub) -> None:
    told = [
        ("adt-a14-admission-annoncee", "planned"),
        ("adt-a05-preadmission", "planned"),
        ("adt-a01-admission", "in-progress"),
        ("adt-a02-mutation", "in-progress"),
        ("adt-a15-mutation-annoncee", "in-progress"),
        ("adt-a54-medecin-change", "in-progress"),
        ("adt-a21-permission", "onleave"),
        ("adt-a22-retour-de-permission", "in-progress"),
        ("adt-a53-retour-annule", "onleave"),
        ("adt-a52-permission-annulee", "in-progress"),
        ("adt-a16-sortie-annoncee", "in-progress"),
        ("adt-a03-sortie", "finished"),
        ("adt-a13-sortie-annulee", "in-progress"),
        ("adt-a06-externe-devient-hospitalise", "in-progress"),
        ("adt-a07-hospitalise-devient-externe", "in-progress"),
        ("adt-z99-correction", "in-progress"),
    ]
    for name, status in told:
        tell(hub, name)
        held = stays(hub)
        assert [one["status"] for one in held] == [status], name
    assert "end" not in held[0]["period"], "the discharge was taken back"


@pytest.mark.parametrize(
    ("name", "cancels"),
    [
        ("adt-a11-annulation", "A01"),
        ("adt-a38-preadmission-annulee", "A05"),
        ("adt-a27-admission-annoncee-annulee", "A14"),
        ("adt-a12-mutation-annulee", "A02"),
        ("adt-a13-sortie-annulee", "A03"),
        ("adt-a52-permission-annulee", "A21"),
        ("adt-a53-retour-annule", "A22"),
        ("adt-a55-medecin-change-annule", "A54"),
        ("adt-a26-mutation-annoncee-annulee", "A15"),
        ("adt-a25-sortie-annoncee-annulee", "A16"),
    ],
)
def test_a_cancellation_of_an_unknown_stay_is_refused_and_leaves_nothing(hub: Hub, name: str, cancels: str) -> None:
    told = say(hub, sample(name))
    assert (told.code, told.errors[0].code, told.errors[0].location) == ("AE", "204", "PV1^1^19")
    assert cancels in told.text or cancels in told.errors[0].text
    assert found(hub, "Patient") == [] and found(hub, "Encounter") == []


def test_a_cancellation_without_a_visit_number_is_refused(hub: Hub) -> None:
    told = say(hub, sample("adt-a11-annulation", ("V2026-0417", "")))
    assert (told.code, told.errors[0].code) == ("AE", "101")


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("adt-a01-admission", "adt-a11-annulation"),
        ("adt-a04-consultation", "adt-a11-annulation"),
        ("adt-a05-preadmission", "adt-a38-preadmission-annulee"),
        ("adt-a14-admission-annoncee", "adt-a27-admission-annoncee-annulee"),
    ],
)
def test_what_began_a_stay_can_be_taken_back(hub: Hub, begin: str, end: str) -> None:
    number = "V2026-0418" if "a04" in begin else "V2026-0417"
    tell(hub, begin)
    tell(hub, end, ("V2026-0417", number))
    assert [one["status"] for one in stays(hub)] == ["cancelled"]


def test_the_announcement_of_an_admission_that_took_place_is_not_taken_back(hub: Hub) -> None:
    tell(hub, "adt-a14-admission-annoncee")
    tell(hub, "adt-a01-admission")
    note = tell(hub, "adt-a27-admission-annoncee-annulee").note
    assert stays(hub)[0]["status"] == "in-progress"
    assert "it stays as it is" in note


def test_a_cancelled_discharge_of_a_stay_that_goes_on_is_noted(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    assert "takes back A03" in tell(hub, "adt-a13-sortie-annulee").note


def test_a_transfer_taken_back_brings_the_unit_of_pv1_again(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    before = stays(hub)[0]["location"]
    tell(hub, "adt-a02-mutation")
    assert stays(hub)[0]["location"] != before
    tell(hub, "adt-a12-mutation-annulee")
    assert stays(hub)[0]["location"][-1] == before[-1]
    assert len(found(hub, "Encounter")) == 1


def test_an_announced_movement_is_written_down_and_changes_nothing(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    before = {name: part for name, part in stays(hub)[0].items() if name not in ("meta", "extension")}
    tell(hub, "adt-a15-mutation-annoncee")
    tell(hub, "adt-a16-sortie-annoncee")
    assert {name: part for name, part in stays(hub)[0].items() if name not in ("meta", "extension")} == before
    assert [state for _, event, state in movements(hub) if event in ("A15", "A16")] == ["announced", "announced"]
    tell(hub, "adt-a26-mutation-annoncee-annulee", ("M35^", "M34^"))
    assert {name: part for name, part in stays(hub)[0].items() if name not in ("meta", "extension")} == before


def test_a_correction_finds_its_movement_and_a_stranger_is_noted(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    first = movements(hub)[0]
    note = tell(hub, "adt-z99-correction").note
    assert len(movements(hub)) == 1 and movements(hub)[0][:2] == first[:2] == ("M1", "A01")
    assert "not received" not in note
    assert stays(hub)[0]["period"]["start"].startswith("2026-03-02T09:00")
    assert "not received" in tell(hub, "adt-z99-correction", ("M1^", "M99^")).note


def test_a_historic_movement_leaves_the_present_alone(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a03-sortie")
    tell(hub, "adt-z99-mutation-annulee-historique")
    assert stays(hub)[0]["status"] == "finished"


def test_the_port_decides_about_a08(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    a08 = (("ADT^A01^ADT_A01", "ADT^A08^ADT_A01"), ("INSERT", "UPDATE"), ("12 bis rue des Lilas", "3 rue du Port"))
    assert "outside IHE PAM France" in tell(hub, "adt-a01-admission", *a08).note
    assert "3 rue du Port" in str(patient(hub)["address"])
    told = say(hub, sample("adt-a01-admission", *a08), Port(a08="refuse"))
    assert (told.code, told.errors[0].code) == ("AE", "201")
    base = (*a08, ("2.5^FRA^2.11", "2.5"), ("2.11^IHE_FRANCE-2.11-PAM", ""))
    assert say(hub, sample("adt-a01-admission", *base), Port(a08="refuse")).code == "AA"


@pytest.mark.parametrize("path", sorted(DATA.glob("adt-*.er7")), ids=lambda path: path.stem[4:])
def test_every_sample_is_answered_and_its_replay_is_identical(hub: Hub, path: object) -> None:
    name = str(getattr(path, "stem", ""))
    if name != "adt-a01-admission":
        tell(hub, "adt-a01-admission")
    say(hub, person("000399"))
    raw = sample(name)
    first = say(hub, raw)
    assert first.code in ("AA", "AE")
    versions = [(one["id"], one["meta"]["versionId"]) for kind in ("Patient", "Encounter") for one in found(hub, kind)]
    assert say(hub, raw) == first
    again = [(one["id"], one["meta"]["versionId"]) for kind in ("Patient", "Encounter") for one in found(hub, kind)]
    assert versions == again
    assert row(hub, first.control_id).repeats == 1


def test_every_event_of_the_table_has_a_sample_and_a_handler() -> None:
    from fhir_server.delivery.intake import HANDLERS

    covered = {path.stem.split("-")[1].upper() for path in DATA.glob("adt-*.er7")}
    assert covered | {"A08"} == set(EVENTS)
    assert {name[4:] for name in HANDLERS if name.startswith("ADT^")} == set(EVENTS)


def test_movements_of_one_stay_sent_at_once_are_all_kept(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    names = ("adt-a02-mutation", "adt-a54-medecin-change", "adt-a15-mutation-annoncee", "adt-a16-sortie-annoncee")
    answers = results(at_once(*[lambda name=name: say(hub, sample(name)) for name in names]))
    assert {answer.code for answer in answers} == {"AA"}
    assert len(movements(hub)) == 5
