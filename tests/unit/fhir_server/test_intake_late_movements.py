"""ITI-31 out of order: what comes after a stay has ended does not reopen it, and an A08 moves nobody."""

from __future__ import annotations

from typing import Any

import pytest
from sylve import patient, row, sample, say, stays, sylve, tell

from fhir_server.changes import Hub
from fhir_server.store.engine import Store

PAM_A08 = (("ADT^A01^ADT_A01", "ADT^A08^ADT_A01"), ("INSERT", "UPDATE"))
BASE = (("2.5^FRA^2.11", "2.5"), ("2.11^IHE_FRANCE-2.11-PAM", ""))
BASE_A08 = (("ADT^A01^ADT_A01", "ADT^A08^ADT_A01"), *BASE)
HOW = (
    "V2026-0417^^^CH-SYLVE&990001234&M^VN" + "|" * 25,
    "V2026-0417^^^CH-SYLVE&990001234&M^VN" + "|" * 17 + "8" + "|" * 8,
)


@pytest.fixture
def hub(store: Store) -> Hub:
    return sylve(store)


def state(hub: Hub) -> dict[str, Any]:
    """What a movement may change."""
    (stay,) = stays(hub)
    return {name: part for name, part in stay.items() if name not in ("meta", "extension")}


def movements(hub: Hub) -> int:
    return len(stays(hub)[0]["extension"])


# --- a stay that has ended ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["adt-a03-sortie", "adt-a11-annulation"])
@pytest.mark.parametrize(
    "late",
    [
        "adt-a02-mutation",
        "adt-a12-mutation-annulee",
        "adt-a54-medecin-change",
        "adt-a55-medecin-change-annule",
        "adt-a21-permission",
        "adt-a22-retour-de-permission",
        "adt-a06-externe-devient-hospitalise",
        "adt-a07-hospitalise-devient-externe",
        "adt-z99-correction",
    ],
)
def test_what_comes_late_reopens_no_stay_and_is_noted(hub: Hub, end: str, late: str) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, end)
    before, told = state(hub), movements(hub)
    note = tell(hub, late).note
    after = state(hub)
    assert after["status"] == before["status"] in ("finished", "cancelled")
    assert after["period"].get("end") == before["period"].get("end")
    assert f"the stay is {before['status']}: it stays as it is" in note
    if late == "adt-z99-correction":
        assert after["period"]["start"].startswith("2026-03-02T09:00"), "what a correction of the admission is for"
    else:
        assert after == before
        assert movements(hub) == told + 1, "the movement is written down"


def test_a_discharge_of_a_cancelled_admission_changes_nothing(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a11-annulation")
    assert "the stay is cancelled" in tell(hub, "adt-a03-sortie").note
    assert state(hub)["status"] == "cancelled"


def test_a_corrected_discharge_moves_the_end_of_the_stay(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a03-sortie")
    corrected = (
        ("ADT^A03^ADT_A03", "ADT^Z99^ADT_Z99"),
        ("INSERT|N|", "UPDATE|N|A03"),
        ("20260306104500", "20260306120000"),
    )
    tell(hub, "adt-a03-sortie", *corrected)
    assert (state(hub)["status"], state(hub)["period"]["end"][:16]) == ("finished", "2026-03-06T12:00")
    assert movements(hub) == 2


@pytest.mark.parametrize("historic", ["N", "Y"])
def test_a_corrected_admission_moves_the_beginning_of_a_finished_stay(hub: Hub, historic: str) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a02-mutation")
    tell(hub, "adt-a03-sortie")
    before = state(hub)
    tell(hub, "adt-z99-correction", ("UPDATE|N|A01", f"UPDATE|{historic}|A01"))
    after = state(hub)
    assert after["period"]["start"].startswith("2026-03-02T09:00")
    assert after["period"]["end"] == before["period"]["end"]
    assert {**after, "period": {}} == {**before, "period": {}}


def test_of_a_stay_of_several_admissions_a_historic_correction_moves_no_date(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a01-admission", ("M1^", "M2^"), ("20260302081500\rZBE", "20260309081500\rZBE"))
    before = state(hub)
    assert before["period"]["start"].startswith("2026-03-09")
    tell(hub, "adt-z99-correction", ("UPDATE|N|A01", "UPDATE|Y|A01"))
    assert state(hub) == before


AGAIN = (("ZBE|M1^", "ZBE|M9^"), ("|20260302081500||INSERT", "|20260309081500||INSERT"))
"""The admission of a week later."""


def again(name: str) -> tuple[tuple[str, str], ...]:
    return AGAIN if name == "adt-a01-admission" else ()


@pytest.mark.parametrize(
    ("begin", "known", "after"),
    [
        ("adt-a01-admission", "adt-a03-sortie", "in-progress"),
        ("adt-a01-admission", "adt-a11-annulation", "in-progress"),
        ("adt-a05-preadmission", "adt-a11-annulation", "planned"),
        ("adt-a14-admission-annoncee", "adt-a11-annulation", "planned"),
        ("adt-a05-preadmission", "adt-a03-sortie", "finished"),
        ("adt-a05-preadmission", "adt-a02-mutation", "in-progress"),
        ("adt-a14-admission-annoncee", "adt-a02-mutation", "in-progress"),
    ],
)
def test_only_an_admission_begins_a_stay_again(hub: Hub, begin: str, known: str, after: str) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, known)
    note = tell(hub, begin, *again(begin)).note
    assert state(hub)["status"] == after
    assert ("it stays as it is" in note) == (begin != "adt-a01-admission" and after != "planned")


def test_a_cancelled_correction_that_names_no_event_reopens_nothing(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a03-sortie")
    before = state(hub)
    tell(hub, "adt-z99-correction", ("UPDATE|N|A01", "CANCEL|N|"))
    assert state(hub) == before


# --- how a stay ended ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adt-a13-sortie-annulee", "adt-a01-admission"])
def test_a_stay_that_goes_on_after_all_ended_in_no_way(hub: Hub, name: str) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a03-sortie", HOW)
    assert state(hub)["hospitalization"]["dischargeDisposition"]["coding"][0]["code"] == "8"
    tell(hub, name, *again(name))
    assert state(hub)["status"] == "in-progress" and "hospitalization" not in state(hub)


def test_a_cancelled_discharge_that_repeats_how_it_ended_says_so_in_the_note(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a03-sortie", HOW)
    assert "PV1-36: A13 takes back" in tell(hub, "adt-a13-sortie-annulee", HOW).note
    assert "hospitalization" not in state(hub)


def test_where_the_patient_came_from_outlives_the_discharge_and_its_cancellation(hub: Hub) -> None:
    origin = ("\rZFA|", "\rZFV|990000992\rZFA|")
    tell(hub, "adt-a01-admission", origin)
    held = state(hub)["hospitalization"]
    assert set(held) == {"origin"}
    tell(hub, "adt-a03-sortie", HOW)
    assert set(state(hub)["hospitalization"]) == {"origin", "dischargeDisposition"}
    tell(hub, "adt-a13-sortie-annulee")
    assert state(hub)["hospitalization"] == held


# --- A08 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a08", [PAM_A08, BASE_A08], ids=["pam", "base"])
@pytest.mark.parametrize(
    "told",
    [
        ["adt-a05-preadmission"],
        ["adt-a14-admission-annoncee"],
        ["adt-a01-admission", "adt-a11-annulation"],
        ["adt-a01-admission", "adt-a03-sortie"],
        ["adt-a01-admission", "adt-a21-permission"],
    ],
    ids=lambda told: told[-1][4:7],
)
def test_an_a08_changes_neither_the_state_nor_the_dates_of_a_stay(hub: Hub, told: list[str], a08: Any) -> None:
    for name in told:
        tell(hub, name)
    before = state(hub)
    tell(hub, "adt-a01-admission", *a08, ("12 bis rue des Lilas", "3 rue du Port"))
    after = state(hub)
    assert (after["status"], after.get("period")) == (before["status"], before.get("period"))
    assert "3 rue du Port" in str(patient(hub)["address"]), "the person is updated"


def test_an_a08_of_pam_france_is_an_a31_and_says_so(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    before, told = state(hub), movements(hub)
    note = tell(hub, "adt-a01-admission", *PAM_A08, ("MATERNITE^101", "CHIRURGIE^7"), ("ZBE|M1^", "ZBE|M9^")).note
    assert state(hub) == before and movements(hub) == told
    assert "outside IHE PAM France; taken as A31" in note


def test_an_a08_of_pam_france_makes_no_stay(hub: Hub) -> None:
    tell(hub, "adt-a01-admission", *PAM_A08)
    assert stays(hub) == []


def test_an_a08_of_base_hl7_takes_place_and_doctor_and_says_which_dates_it_left(hub: Hub) -> None:
    tell(hub, "adt-a01-admission", *BASE)
    moved = (
        ("MATERNITE^101", "CHIRURGIE^7"),
        ("SOUBIRAN^Élodie", "AUBRAC^Jeanne"),
        ("|20260302081500\rZBE", "|20260101\rZBE"),
    )
    note = tell(hub, "adt-a01-admission", *BASE_A08, *moved).note
    after = state(hub)
    assert "CHIRURGIE / 7" in str(after["location"]) and "AUBRAC" in str(after["participant"])
    assert after["period"]["start"].startswith("2026-03-02")
    assert "PV1-44: an A08 changes neither" in note


def test_a_stay_first_heard_of_by_an_a08_of_base_hl7_is_in_an_unknown_state_until_an_event_says(hub: Hub) -> None:
    told = say(hub, sample("adt-a01-admission", *BASE_A08))
    assert told.code == "AA" and row(hub, told.control_id).state == "done"
    assert state(hub)["status"] == "unknown"
    tell(hub, "adt-a02-mutation", *BASE)
    assert state(hub)["status"] == "in-progress"


def test_a_stay_first_heard_of_by_an_a08_with_a_discharge_is_finished(hub: Hub) -> None:
    tell(hub, "adt-a01-admission", *BASE_A08, ("|20260302081500\rZBE", "|20260302081500|20260306104500\rZBE"))
    assert state(hub)["status"] == "finished"


def test_of_a_stay_in_an_unknown_state_an_a08_may_tell_the_dates(hub: Hub) -> None:
    tell(hub, "adt-a01-admission", *BASE_A08)
    tell(hub, "adt-a01-admission", *BASE_A08, ("|20260302081500\rZBE", "|20260301081500|20260306104500\rZBE"))
    assert state(hub)["status"] == "finished"
    assert [state(hub)["period"][edge][:10] for edge in ("start", "end")] == ["2026-03-01", "2026-03-06"]
