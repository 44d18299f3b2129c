"""What an identity may not become by one message after another: two deaths, somebody's INS kept against its sender's
word, a number forgotten, a second record of somebody who was there before."""

from __future__ import annotations

import itertools

import pytest
from hubs import found, read
from merging import GIVEN_UP, SURVIVOR, ids, ref
from sylve import INS, IPP, patient, person, row, sample, say, sylve, tell

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.patients.identity import MOST_OLD, is_doubtful, qualified_ins, status_of
from fhir_server.store.engine import Store
from fhir_server.store.lanes import NewDelivery
from fhir_server.teleexpertise.overtaken import overtaken

NAMED = ("LECOCQ-MARAIS", "Noémie", "19840523")
OTHER = ("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "DURAND^Zoé^Zoé")
PI = "^^^CH-SYLVE&990001234&N^PI"
WHOLE_INS = "284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"


@pytest.fixture
def hub(store: Store) -> Hub:
    return sylve(store)


def base(name: str, *changes: tuple[str, str]) -> bytes:
    """A sample as a message that claims no French profile."""
    return sample(name, ("2.5^FRA^2.11", "2.5"), ("2.11^IHE_FRANCE-2.11-PAM", ""), *changes)


def note_of(hub: Hub, raw: bytes) -> str:
    told = say(hub, raw)
    assert told.code == "AA", told
    return row(hub, told.control_id).note


# --- one of two elements ---------------------------------------------------------------------------------------------

DEATHS = {"N": "|||||N", "Y": "|||||Y", "date": "||||20260305|", "date, Y": "||||20260305|Y"}
DEAD_AFTER = {
    "N": {"deceasedBoolean": False},
    "Y": {"deceasedBoolean": True},
    "date": {"deceasedDateTime": "2026-03-05"},
    "date, Y": {"deceasedDateTime": "2026-03-05"},
}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(DEATHS, DEATHS)))
def test_a_death_told_in_another_way_than_before_is_taken(hub: Hub, first: str, second: str) -> None:
    for said in (first, second):
        tell(hub, "adt-a01-admission", ("||||||N|N|VALI", f"|{DEATHS[said]}|N|VALI"))
    dated = first.startswith("date") and second == "Y"
    expected = DEAD_AFTER[first if dated else second]
    assert {name: value for name, value in patient(hub).items() if name.startswith("deceased")} == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Y", "Y|2", {"multipleBirthInteger": 2}),
        ("Y|2", "Y", {"multipleBirthInteger": 2}),
        ("Y|2", "N", {"multipleBirthBoolean": False}),
        ("N", "Y|1", {"multipleBirthInteger": 1}),
    ],
)
def test_a_birth_order_told_after_a_plain_yes_is_taken(
    hub: Hub, first: str, second: str, expected: dict[str, object]
) -> None:
    for said in (first, second):
        filled = said if "|" in said else f"{said}|"
        tell(hub, "adt-a01-admission", ("AN||||||N||||||N|N|VALI", f"AN||||||{filled}|||||N|N|VALI"))
    assert {name: value for name, value in patient(hub).items() if name.startswith("multiple")} == expected


def test_a_date_of_death_that_is_taken_back_leaves_the_plain_yes(hub: Hub) -> None:
    tell(hub, "adt-a01-admission", ("||||||N|N|VALI", "|||||20260305|Y|N|VALI"))
    assert "deceasedDateTime" in patient(hub)
    tell(hub, "adt-a01-admission", ("||||||N|N|VALI", '|||||""|Y|N|VALI'))
    held = patient(hub)
    assert held["deceasedBoolean"] is True and "deceasedDateTime" not in held


# --- an INS that must not be kept ------------------------------------------------------------------------------------


def carrying(hub: Hub) -> str:
    """A delivery that waits and carries the INS of the patient."""
    who, said = ref(hub, SURVIVOR), (("ins", WHOLE_INS.partition("^")[0]),)
    frozen = NewDelivery("l", "mllp://127.0.0.1:9", "hl7", b"PID|1||" + WHOLE_INS.encode(), keys=said, patient=who)
    return hub.store.write(SYSTEM, lambda tx: tx.send(frozen))


def why_held(hub: Hub, key: str) -> str:
    with hub.store.read(SYSTEM) as snapshot:
        delivery = snapshot.delivery(key)
        assert delivery is not None
        return overtaken(snapshot, delivery)


@pytest.mark.parametrize("status", ["DOUT", "PROV", "VALI~DOUT", "VALI~FICT"])
def test_a_doubtful_message_with_a_lower_status_takes_the_ins_off_the_record_it_is_doubted_for(
    hub: Hub, status: str
) -> None:
    tell(hub, "adt-a01-admission")
    held = patient(hub)
    key = carrying(hub)
    note = tell(hub, "adt-a01-admission", OTHER, ("19840523", "19990101"), ("|VALI|", f"|{status}|")).note
    after = read(hub, f"Patient/{held['id']}")
    assert qualified_ins(after) is None and ids(after, INS) == {} and status_of(after) == status[-4:]
    assert [after[name] for name in ("name", "birthDate", "gender")] == [
        held[name] for name in ("name", "birthDate", "gender")
    ], "who it is about is not known: the traits stay"
    assert "à rapprocher" in note and f"Patient/{held['id']} is {status[-4:]}" in note
    assert "no qualified INS" in why_held(hub, key), "what carries it does not leave"


def test_a_doubtful_message_that_says_nothing_of_the_status_leaves_the_qualified_record(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    who = ref(hub, SURVIVOR)
    held = read(hub, who)
    told = say(hub, base("adt-a01-admission", OTHER, ("19840523", "19990101"), ("|VALI|", "||"), (f"~{WHOLE_INS}", "")))
    assert told.code == "AA"
    assert read(hub, who) == held


@pytest.mark.parametrize("traits", [(), (OTHER, ("19840523", "19990101"))], ids=["same traits", "other traits"])
def test_an_identity_status_that_is_taken_back_takes_the_ins_with_it(
    hub: Hub, traits: tuple[tuple[str, str], ...]
) -> None:
    tell(hub, "adt-a01-admission")
    who, key = ref(hub, SURVIVOR), carrying(hub)
    note = note_of(hub, base("adt-a01-admission", ("|VALI|", '|""|'), *traits))
    after = read(hub, who)
    assert ids(after, INS) == {} and status_of(after) == ""
    assert "not told any more" in note and "no qualified INS" in why_held(hub, key)


REAL = ("284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10", "{}^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.8")


@pytest.mark.parametrize("value", ["284056912345699", "2840569123456"], ids=["wrong key", "13 characters"])
def test_a_wrong_ins_that_would_be_dropped_anyway_costs_nobody_the_message(hub: Hub, value: str) -> None:
    wrong = (REAL[0], REAL[1].format(value))
    note = tell(hub, "adt-a01-admission", wrong, ("|VALI|", "|PROV|")).note
    assert "key" in note and "not VALI" in note
    assert [one["system"] for one in patient(hub)["identifier"]] == [IPP]
    assert "PID-32" in tell(hub, "oru-r01-biologie", wrong, ("|VALI|", "||")).note
    told = say(hub, sample("adt-a01-admission", wrong))
    assert (told.code, told.errors[0].code) == ("AE", "102"), "a qualified identity has the INS it says"


@pytest.mark.parametrize(("choice", "date"), [('""', '""'), ("NA", "20260401")])
def test_a_choice_about_the_dmp_that_is_deleted_is_in_force_no_more(hub: Hub, choice: str, date: str) -> None:
    say(hub, person("000600", more="ZFA|ACTIF|20250110|||||||INO|20260301|IC|20260301"))
    say(hub, person("000600", more=f"ZFA|ACTIF|20250110|||||||{choice}|{date}|IC|20260301"))
    consents = found(hub, "Consent", f"patient={ref(hub, '000600')}")
    assert {one["category"][0]["text"]: one["status"] for one in consents} == {
        "Alimentation du DMP": "inactive",
        "Consultation du DMP": "active",
    }
    say(hub, person("000600", more="ZFA|ACTIF"))
    again = found(hub, "Consent", f"patient={ref(hub, '000600')}&status=active")
    assert len(again) == 1, "a field that is not sent deletes nothing"


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_another_number_of_the_same_namespace_leaves_the_first_one_as_old_and_found(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    who = ref(hub, SURVIVOR)
    assert "000417 is kept as an old number" in tell(hub, "adt-a01-admission", ("000417^", "000999^")).note
    assert ids(read(hub, who)) == {"000999": "usual", "000417": "old"}
    lab = tell(hub, "oru-r01-biologie", (f"~{WHOLE_INS}", ""))
    assert "was given up for" in lab.note
    assert len(found(hub, "Patient")) == 1
    tell(hub, "adt-a01-admission")
    assert ids(read(hub, who)) == {"000417": "usual", "000999": "old"}, "what is said last is in force"


def test_a_merge_of_two_numbers_of_one_record_goes_either_way(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    who = ref(hub, SURVIVOR)
    tell(hub, "adt-a01-admission", ("000417^", f"{GIVEN_UP}^"))
    assert ids(read(hub, who)) == {GIVEN_UP: "usual", SURVIVOR: "old"}
    for changes in ((), ((f"~{WHOLE_INS}", ""), ("|VALI|", "|PROV|"))):
        tell(hub, "adt-a40-fusion", *changes)
        assert ids(read(hub, who)) == {SURVIVOR: "usual", GIVEN_UP: "old"}
        swap = (("000417^", "X^"), (GIVEN_UP, SURVIVOR), ("X^", f"{GIVEN_UP}^"))
        tell(hub, "adt-a40-fusion", *swap, *changes)
        assert ids(read(hub, who)) == {GIVEN_UP: "usual", SURVIVOR: "old"}
    assert len(found(hub, "Patient")) == 1


def test_a_status_counts_under_an_old_number_and_not_under_that_of_a_record_merged_away(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    say(hub, person(GIVEN_UP, *NAMED))
    tell(hub, "adt-a40-fusion")
    who = ref(hub, SURVIVOR)
    plain = ((f"~{WHOLE_INS}", ""), ("|VALI|", "|VALI~DOUT|"))
    tell(hub, "adt-a01-admission", ("000417^", f"{GIVEN_UP}^"), *plain)
    assert qualified_ins(read(hub, who)), "the record that was merged away was the doubtful one"
    tell(hub, "adt-a01-admission", ("000417^", "000999^"))
    frozen = NewDelivery(
        "l", "mllp://127.0.0.1:9", "hl7", b"x", keys=(("ins", WHOLE_INS.partition("^")[0]),), patient=who
    )
    waiting = hub.store.write(SYSTEM, lambda tx: tx.send(frozen))
    note = tell(hub, "adt-a01-admission", *plain).note
    assert "was given up for" in note and "is DOUT, no longer qualified" in note
    assert qualified_ins(read(hub, who)) is None and "no qualified INS" in why_held(hub, waiting)


def test_a_merge_of_an_old_number_of_somebody_else_is_told(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a01-admission", ("000417^", "000999^"))
    who = ref(hub, "000999")
    raw = person("000500", *NAMED, more=f"MRG|000417{PI}").replace(b"ADT^A28^ADT_A05", b"ADT^A40^ADT_A39")
    assert f"000417 is an old identifier of {who}" in note_of(hub, raw)
    assert ids(patient(hub, "000500")) == {"000500": "usual"}


def test_a_merge_is_not_turned_round_by_a_second_one(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    say(hub, person(GIVEN_UP, *NAMED))
    tell(hub, "adt-a40-fusion")
    swap = (("000417^", "X^"), (GIVEN_UP, SURVIVOR), ("X^", f"{GIVEN_UP}^"))
    told = say(hub, sample("adt-a40-fusion", *swap, (f"~{WHOLE_INS}", ""), ("|VALI|", "|PROV|")))
    assert (told.code, told.errors[0].code) == ("AE", "205")
    assert ids(patient(hub)) == {SURVIVOR: "usual", GIVEN_UP: "old"}


def test_a_sender_with_a_number_for_each_message_makes_no_record_grow_without_end(hub: Hub) -> None:
    for number in range(MOST_OLD + 3):
        note = tell(hub, "adt-a01-admission", ("000417^", f"7{number:05}^")).note
    (held,) = found(hub, "Patient")
    uses = list(ids(held).values())
    assert uses.count("usual") == 1 and uses.count("old") == MOST_OLD
    assert "700001 is forgotten" in note and f"7{MOST_OLD + 1:05}" in ids(held)


# --- a number that also stands on a record "à rapprocher" ------------------------------------------------------------


def with_doubt(hub: Hub) -> str:
    """000417 is known, and a message about somebody else came under it; the doubtful record."""
    tell(hub, "adt-a01-admission")
    tell(hub, "adt-a01-admission", OTHER, ("19840523", "19990101"), (f"~{WHOLE_INS}", ""), ("|VALI|", "|PROV|"))
    (doubtful,) = (one for one in found(hub, "Patient") if is_doubtful(one))
    return f"Patient/{doubtful['id']}"


def sound(hub: Hub, ipp: str) -> dict[str, object]:
    (held,) = (one for one in found(hub, "Patient", f"identifier={IPP}|{ipp}") if not is_doubtful(one))
    return held


def test_a_merge_away_from_a_number_that_a_doubtful_record_has_too_is_done(hub: Hub) -> None:
    doubtful = with_doubt(hub)
    say(hub, person("000500", *NAMED))
    given_up, untouched = sound(hub, "000417"), read(hub, doubtful)
    raw = person("000500", *NAMED, more=f"MRG|000417{PI}").replace(b"ADT^A28^ADT_A05", b"ADT^A40^ADT_A39")
    assert doubtful in note_of(hub, raw), "and who reads the message is told that it is still to be settled"
    assert read(hub, f"Patient/{given_up['id']}")["active"] is False
    assert read(hub, doubtful) == untouched


def test_an_identifier_that_a_doubtful_record_has_too_can_be_changed(hub: Hub) -> None:
    with_doubt(hub)
    who = sound(hub, "000417")["id"]
    prior = (WHOLE_INS.replace("45640", "45543").replace("NIR", "NIA"), f"000417{PI}")
    tell(hub, "adt-a47-changement-ins", ("000417^", "000888^"), prior)
    assert ids(read(hub, f"Patient/{who}")) == {"000888": "usual", "000417": "old"}


def test_a_stay_of_a_number_that_a_doubtful_record_has_too_can_be_moved(hub: Hub) -> None:
    doubtful = with_doubt(hub)
    say(hub, person("000500", *NAMED))
    source = f"Patient/{sound(hub, '000417')['id']}"
    swap = (("000417^", "X^"), ("000399^", "000417^"), ("X^", "000500^"))
    numbers = (("26000099", "26000123"), ("V2026-0099", "V2026-0417"))
    plain = ((f"~{WHOLE_INS}", ""), ("|VALI|", "|PROV|"))
    assert "1 stays" in tell(hub, "adt-a44-dossier-deplace", *swap, *numbers, *plain).note
    assert not found(hub, "Encounter", f"subject={source}") and doubtful not in source


# --- nobody to be known by -------------------------------------------------------------------------------------------


def bare(ipp: str, authority: str = "", **named: str) -> bytes:
    """An A28 whose number is in no declared namespace."""
    return person(ipp, **named).replace(PI.encode(), authority.encode())


def test_a_person_without_a_usable_number_is_one_record_to_be_settled(hub: Hub) -> None:
    for _ in range(2):
        assert "à rapprocher" in note_of(hub, bare("000500"))
    (held,) = found(hub, "Patient")
    assert is_doubtful(held)
    note_of(hub, bare("000501"))
    note_of(hub, bare("000500", birth="19700102"))
    note_of(hub, bare("000501", authority="^^^INCONNU^PI"))
    assert len(found(hub, "Patient")) == 3, "another number or another birth date is another person, perhaps"


def test_two_messages_that_say_nothing_of_a_person_do_not_speak_of_one(hub: Hub) -> None:
    for _ in range(2):
        raw = bare("000500").replace(b"|MARTIN^Luc^Luc^^M^^L||19700101|M|", b"|INCONNU^^^^^^S|||U|")
        told = say(hub, raw.replace(b"2.5^FRA^2.11|", b"2.5|").replace(b"2.11^IHE_FRANCE-2.11-PAM", b""))
        assert told.code == "AA", told
    assert len(found(hub, "Patient")) == 2


def test_an_identifier_can_be_changed_by_who_is_named_by_mrg_alone(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    who = ref(hub, SURVIVOR)
    prior = (WHOLE_INS.replace("45640", "45543").replace("NIR", "NIA"), f"000417{PI}")
    tell(hub, "adt-a47-changement-ins", (f"000417{PI}~{WHOLE_INS}", "000417^^^INCONNU^PI"), ("|VALI|", "|PROV|"), prior)
    assert qualified_ins(read(hub, who)) is None and len(found(hub, "Patient")) == 1
