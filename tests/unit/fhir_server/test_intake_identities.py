"""ITI-30 and A44: identities are created and changed, and stays go to the right patient, on record."""

from __future__ import annotations

import pytest
from hubs import (
    found,
    put,
    read,
)
from merging import GIVEN_UP, SURVIVOR, ids, ref
from sylve import INS, patient, person, sample, say, stays, sylve, tell

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.patients.identity import qualified_ins
from fhir_server.store.engine import Store


@pytest.fixture
def hub(store: Store) -> Hub:
    return sylve(store)


def test_the_declared_doctor_and_the_choices_about_the_dmp_are_kept(hub: Hub) -> None:
    zfa = "ZFA|ACTIF|20250110|||||||INO|20260301|IC|20260301"
    rol = "ROL||UP|ODRP|99900000029^FERRAND^Paul^^^^^^ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO^D^^^RPPS"
    say(hub, person("000600", more=f"{rol}\r{zfa}"))
    held = patient(hub, "000600")
    assert held["generalPractitioner"][0]["identifier"]["value"] == "99900000029"
    consents = found(hub, "Consent", f"patient=Patient/{held['id']}")
    assert {c["category"][0]["text"]: (c["status"], c["provision"]["type"]) for c in consents} == {
        "Alimentation du DMP": ("active", "permit"),
        "Consultation du DMP": ("active", "permit"),
    }
    say(hub, person("000600", more="ZFA|ACTIF|20250110|||||||IO|20260304|NA|20260304"))
    after = found(hub, "Consent", f"patient=Patient/{held['id']}")
    assert {c["category"][0]["text"]: (c["status"], c["provision"]["type"]) for c in after} == {
        "Alimentation du DMP": ("active", "deny"),
        "Consultation du DMP": ("inactive", "permit"),
    }


def test_a_doctor_taken_back_and_fields_deleted_leave_the_patient(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    assert patient(hub).get("generalPractitioner")
    tell(hub, "adt-a31-medecin-traitant-retire")
    assert "generalPractitioner" not in patient(hub)
    assert patient(hub)["telecom"]
    tell(hub, "adt-a31-identite-douteuse", ("VALI~DOUT", "VALI"))
    assert "telecom" not in patient(hub), 'PID-13 says ""'


def test_a_doubtful_identity_loses_its_ins_and_what_carries_it_is_held_back(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    held = patient(hub)
    assert qualified_ins(held)
    note = tell(hub, "adt-a31-identite-douteuse").note
    assert ids(patient(hub), INS) == {} and "INS" in note


# --- A47 -------------------------------------------------------------------------------------------------------------


def test_a_change_of_the_local_number_keeps_the_old_one_as_old(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    who = patient(hub)["id"]
    ins = "284056912345543^^^ASIP-SANTE-INS-NIA&1.2.250.1.213.1.4.10&ISO^INS"
    tell(hub, "adt-a47-changement-ins", ("000417^", "000888^"), (ins, "000417^^^CH-SYLVE&990001234&N^PI"))
    held = patient(hub, "000888")
    assert held["id"] == who and ids(held) == {"000888": "usual", "000417": "old"}


def test_a_change_of_the_ins_replaces_it(hub: Hub) -> None:
    old = "284056912345543"
    tell(hub, "adt-a28-creation-provisoire", ("284056912345640", old), ("|PROV|", "|VALI|"))
    assert ids(patient(hub), INS) == {old: "official"}
    tell(hub, "adt-a47-changement-ins")
    assert ids(patient(hub), INS) == {"284056912345640": "official"}


def test_an_ins_is_removed_and_the_identity_lowered(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    value = "284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
    mrg = ("284056912345543^^^ASIP-SANTE-INS-NIA&1.2.250.1.213.1.4.10&ISO^INS", "MRGINS")
    raw = sample("adt-a47-changement-ins", mrg, (value, value.replace("284056912345640", '""')), ("|VALI|", "|PROV|"))
    assert say(hub, raw.replace(b"MRGINS", value.encode())).code == "AA"
    assert ids(patient(hub), INS) == {}


def test_a_change_for_nobody_known_or_into_somebody_else_is_refused(hub: Hub) -> None:
    told = say(hub, sample("adt-a47-changement-ins"))
    assert (told.code, told.errors[0].code, told.application_code) == ("AE", "204", "902")
    tell(hub, "adt-a01-admission")
    say(hub, person(GIVEN_UP))
    ins = "284056912345543^^^ASIP-SANTE-INS-NIA&1.2.250.1.213.1.4.10&ISO^INS"
    told = say(hub, sample("adt-a47-changement-ins", (ins, f"{GIVEN_UP}^^^CH-SYLVE&990001234&N^PI")))
    assert (told.code, told.errors[0].code) == ("AE", "205")


# --- A44 -------------------------------------------------------------------------------------------------------------


def test_a_stay_of_the_wrong_patient_goes_to_the_right_one_with_what_hangs_on_it(hub: Hub) -> None:
    tell(hub, "adt-a28-creation-provisoire")
    wrong = (("000417^", "000399^"), ("~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS", ""))
    tell(hub, "adt-a01-admission", *wrong, ("V2026-0417", "V2026-0099"), ("26000123", "26000099"))
    stay = stays(hub, GIVEN_UP)[0]
    source, target = ref(hub, GIVEN_UP), ref(hub, SURVIVOR)
    seen = {"resourceType": "Observation", "id": "o2", "status": "final", "code": {"text": "TA"}}
    put(hub, SYSTEM, seen | {"subject": {"reference": source}, "encounter": {"reference": f"Encounter/{stay['id']}"}})
    assert "1 stays" in tell(hub, "adt-a44-dossier-deplace").note
    assert [one["id"] for one in stays(hub)] == [stay["id"]]
    assert "26000123" in {one["value"] for one in stays(hub)[0]["identifier"]}, "the account number of PID"
    assert read(hub, "Observation/o2")["subject"]["reference"] == target
    assert read(hub, source).get("active", True), "the patient stays"
    assert found(hub, "List", f"subject={target}")


def test_a_stay_nobody_knows_cannot_be_moved(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    told = say(hub, sample("adt-a44-dossier-deplace"))
    assert (told.code, told.errors[0].code, told.errors[0].location) == ("AE", "204", "MRG^1^1")
    say(hub, person(GIVEN_UP))
    told = say(hub, sample("adt-a44-dossier-deplace"))
    assert (told.code, told.errors[0].location) == ("AE", "MRG^1^3")
