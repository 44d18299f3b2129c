"""Whose word changes a record: a sender's own numbers do, those of another establishment find the person and no more;
an INS never stands on other traits than those it came with."""

from __future__ import annotations

from typing import Any

import pytest
from hubs import found, hub_on, put
from sylve import INS, IPP, SITE, patient, person, row, sample, say, stays, sylve, tell
from test_identity_sites import AULNE
from test_intake_labels import flag, flagged, hidden

from fhir_server import pending
from fhir_server.app import seed_sites
from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.patients.identity import RECONCILE_TAG, is_doubtful, qualified_ins, status_of
from fhir_server.patients.sites import load_sites
from fhir_server.store.engine import Store
from hl7v2.ack import Ack

Resource = dict[str, Any]
Change = tuple[str, str]
WHOLE_INS = "284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
OLD_INS = "284056912345543^^^ASIP-SANTE-INS-NIA&1.2.250.1.213.1.4.10&ISO^INS"
HERS = (INS, "284056912345640")
THERE = ("GAM|CH-SYLVE|", "SGL|LABO-AULNE|")
THEIRS = "000417^^^CH-SYLVE&990001234&N^PI"
MINE = "77^^^LABO-AULNE&990005678&N^PI"
NO_INS = (f"~{WHOLE_INS}", "")
BASE = (("2.5^FRA^2.11", "2.5"), ("2.11^IHE_FRANCE-2.11-PAM", ""))
"""A base-HL7 message, which may leave PID-32 empty."""
PROV = ("|VALI|", "|PROV|")
ZOE = (("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "DURAND^Zoé^Zoé"), ("19840523", "19990101"))


@pytest.fixture
def hub(store: Store) -> Hub:
    hub = sylve(store)
    tell(hub, "adt-a01-admission")
    return hub


def with_laboratory(store: Store, laboratory: Resource) -> Hub:
    """The hospital with its qualified patient, and another establishment."""
    alone = hub_on(store, site=SITE)
    both = load_sites(({**SITE, "application": "PASSERELLE"}, laboratory))
    seed_sites(alone, both)
    hub = Hub(alone.settings, store, both, alone.clock)
    tell(hub, "adt-a01-admission")
    return hub


@pytest.fixture
def shared(store: Store) -> Hub:
    return with_laboratory(store, AULNE)


def note_of(hub: Hub, told: Ack) -> str:
    assert told.code == "AA", told
    return row(hub, told.control_id).note


def content(one: Resource) -> Resource:
    return {name: value for name, value in one.items() if name != "meta"}


def laboratory_person(ipp: str = "77", family: str = "DURAND", given: str = "Zoé", birth: str = "19990101") -> bytes:
    told = person(ipp, family, given, birth).decode()
    return told.replace(*THERE).replace("CH-SYLVE&990001234&N", "LABO-AULNE&990005678&N").encode()


def is_hers(one: Resource) -> bool:
    """Whether it is the qualified identity as the hospital told it."""
    return (
        qualified_ins(one) == HERS
        and status_of(one) == "VALI"
        and one["name"][0]["family"] == "LECOCQ-MARAIS"
        and one["birthDate"] == "1984-05-23"
        and one["managingOrganization"] == {"reference": "Organization/sylve"}
    )


# --- an INS and its traits (H1) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["||", "|VALI|"], ids=["no status", "VALI without an INS"])
def test_a_change_of_numbers_that_qualifies_nobody_changes_the_numbers_only(hub: Hub, status: str) -> None:
    numbers = (("000417^", "000500^"), (OLD_INS, THEIRS))
    note = tell(hub, "adt-a47-changement-ins", NO_INS, *BASE, *ZOE, ("|VALI|", status), *numbers).note
    (one,) = found(hub, "Patient")
    assert is_hers(one) and patient(hub, "000500") == one
    assert [i["use"] for i in one["identifier"] if i["value"] == "000417"] == ["old"]
    assert "Patient.name: the stored identity is qualified and this one is not" in note and "birthDate" in note


def test_a_change_of_a_number_nobody_has_is_an_update_and_turns_nobody_into_somebody_else(hub: Hub) -> None:
    before = patient(hub)
    unknown = (OLD_INS, "999^^^CH-SYLVE&990001234&N^PI")
    told = say(hub, sample("adt-a47-changement-ins", NO_INS, *BASE, *ZOE, ("|VALI|", "||"), unknown))
    assert (told.code, told.errors[0].code, told.errors[0].location) == ("AE", "207", "PID^1^3")
    assert found(hub, "Patient") == [before]
    note = tell(hub, "adt-a47-changement-ins", NO_INS, *BASE, ("|VALI|", "||"), ("19840523", "19840524"), unknown).note
    assert is_hers(patient(hub)) and "Patient.birthDate: the stored identity is qualified" in note


def test_a_merge_that_qualifies_nobody_leaves_the_traits_of_the_survivor(hub: Hub) -> None:
    silent = (NO_INS, *BASE, ("|VALI|", "||"), ("19840523", "19840524"))
    note = tell(hub, "adt-a40-fusion", *silent).note
    assert is_hers(patient(hub)) and "Patient.birthDate: the stored identity is qualified" in note


def test_a_change_that_gives_the_ins_up_takes_the_traits(hub: Hub) -> None:
    tell(hub, "adt-a47-changement-ins", NO_INS, *BASE, *ZOE, ("|VALI|", "||"), (OLD_INS, WHOLE_INS))
    one = patient(hub)
    assert (qualified_ins(one), one["name"][0]["family"], one["birthDate"]) == (None, "DURAND", "1999-01-01")


# --- the number of another establishment (H2) ------------------------------------------------------------------------


@pytest.mark.parametrize("who", [(), ZOE], ids=["the same traits", "others"])
@pytest.mark.parametrize(
    "numbers",
    [THEIRS, f"{MINE}~{THEIRS}", f"000417^^^&{IPP[8:]}&ISO^XX"],
    ids=["theirs", "both", "of another type"],
)
def test_a_stranger_takes_no_ins_off_a_record(shared: Hub, numbers: str, who: tuple[Change, ...]) -> None:
    before = patient(shared)
    for _ in range(2):
        tell(shared, "adt-a01-admission", THERE, NO_INS, (THEIRS, numbers), PROV, *who)
    hers = [one for one in found(shared, "Patient") if not is_doubtful(one)]
    assert hers == [before] and is_hers(before)
    assert len(found(shared, "Patient")) == (2 if who else 1), "other traits are a record à rapprocher"


def test_a_stranger_who_names_two_people_lowers_its_own_only(shared: Hub) -> None:
    before = patient(shared)
    tell(shared, "adt-a01-admission", THERE, (THEIRS, MINE), *ZOE, ("284056912345640", "199017512345602"))
    (zoe,) = [one for one in found(shared, "Patient") if one["id"] != before["id"]]
    assert qualified_ins(zoe)
    tell(shared, "adt-a01-admission", THERE, NO_INS, (THEIRS, f"{MINE}~{THEIRS}"), PROV, *ZOE)
    by_id = {one["id"]: one for one in found(shared, "Patient")}
    assert by_id[before["id"]] == before
    zoe = by_id[zoe["id"]]
    assert (qualified_ins(zoe), status_of(zoe)) == (None, "PROV")


def test_the_number_of_another_establishment_finds_the_person_and_changes_nothing(shared: Hub) -> None:
    say(shared, person("000500"))
    before = patient(shared, "000500")
    renamed = person("000500", family="MARTEL").decode().replace(*THERE).encode()
    note = note_of(shared, say(shared, renamed))
    assert patient(shared, "000500") == before
    assert "000500 is a number of another establishment" in note and "nothing of the record is changed" in note
    luc = ("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "MARTIN^Luc"), ("19840523|F", "19700101|M")
    qualified = ((THEIRS, THEIRS.replace("000417", "000500")), *luc, ("284056912345640", "170017512345606"))
    tell(shared, "adt-a01-admission", THERE, *qualified)
    assert patient(shared, "000500") == before, "nor is an INS put on it"


def test_a_stay_is_attached_to_whom_the_number_of_another_establishment_finds(shared: Hub) -> None:
    visit = ("V2026-0417^^^CH-SYLVE&990001234&M^VN", "L-1^^^LABO-AULNE&990005678&M^VN")
    tell(shared, "adt-a01-admission", THERE, NO_INS, PROV, visit)
    assert {one["identifier"][0]["value"] for one in stays(shared)} >= {"L-1"} and len(stays(shared)) == 2


def test_who_qualifies_the_same_identity_adds_its_number_and_may_take_its_word_back(shared: Hub) -> None:
    tell(shared, "adt-a01-admission", THERE, (THEIRS, MINE))
    (one,) = found(shared, "Patient")
    assert is_hers(one) and {i["value"] for i in one["identifier"]} == {"000417", "77", "284056912345640"}
    note = tell(shared, "adt-a01-admission", THERE, NO_INS, (THEIRS, f"{MINE}~000418^^^CH-SYLVE&990001234&N^PI")).note
    assert patient(shared)["id"] == one["id"], "000417 stays in force"
    assert "000418 is a number of another establishment" in note and not found(
        shared, "Patient", f"identifier={IPP}|000418"
    )
    tell(shared, "adt-a01-admission", THERE, NO_INS, (THEIRS, MINE), PROV)
    assert qualified_ins(patient(shared)) is None, "it is a number of the sender's own"


def test_the_establishment_of_the_number_lowers_it_whoever_else_knows_the_person(shared: Hub) -> None:
    tell(shared, "adt-a01-admission", THERE, (THEIRS, MINE))
    tell(shared, "adt-a01-admission", NO_INS, PROV)
    assert qualified_ins(patient(shared)) is None


def test_a_number_given_up_is_lowered_by_its_own_establishment_only(shared: Hub) -> None:
    tell(shared, "adt-a01-admission", ("000417^", "000418^"))
    before = patient(shared, "000418")
    tell(shared, "adt-a01-admission", THERE, NO_INS, PROV)
    assert patient(shared, "000418") == before and is_hers(before)
    tell(shared, "adt-a01-admission", NO_INS, PROV)
    assert qualified_ins(patient(shared, "000418")) is None


@pytest.mark.parametrize("own", [True, False], ids=["its record", "another's"])
def test_where_a_site_declares_no_numbers_an_ins_leaves_by_its_own_name(store: Store, own: bool) -> None:
    hub = with_laboratory(store, {**AULNE, "namespaces": []})
    other = () if not own else (("284056912345640", "199017512345602"), *ZOE)
    nobodys = (THEIRS, "77^^^INCONNU^PI")
    tell(hub, "adt-a01-admission", THERE, nobodys, *other)
    ins = (INS, "199017512345602" if own else HERS[1])
    assert [one for one in found(hub, "Patient") if qualified_ins(one) == ins]
    tell(hub, "adt-a01-admission", THERE, nobodys, *other, PROV)
    assert bool([one for one in found(hub, "Patient") if qualified_ins(one) == ins]) is not own
    assert is_hers(patient(hub))


# --- a record that its sender made under the number of another establishment -----------------------------------------

THEIR_ZOE = (*ZOE, ("000417^", "000999^"))
HER_INS = ("284056912345640", "199017512345602")
MANAGED_THERE = {"reference": "Organization/aulne"}


@pytest.mark.parametrize("named", [(HER_INS,), (NO_INS,)], ids=["with the INS", "without it"])
def test_who_made_a_record_under_the_number_of_another_takes_its_word_back(shared: Hub, named: tuple[Change]) -> None:
    tell(shared, "adt-a01-admission", THERE, *THEIR_ZOE, HER_INS)
    zoe = patient(shared, "000999")
    assert qualified_ins(zoe) == (INS, HER_INS[1]) and zoe["managingOrganization"] == MANAGED_THERE
    note = tell(shared, "adt-a01-admission", THERE, *THEIR_ZOE, *named, PROV).note
    lowered = patient(shared, "000999")
    assert lowered["id"] == zoe["id"] and (qualified_ins(lowered), status_of(lowered)) == (None, "PROV")
    assert "its INS is removed" in note and "another establishment" not in note
    assert is_hers(patient(shared)), "the other record is the hospital's"


def test_a_doubtful_message_of_who_made_a_record_takes_the_ins_off_it(shared: Hub) -> None:
    tell(shared, "adt-a01-admission", THERE, *THEIR_ZOE, HER_INS)
    luc = (("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "MARTIN^Luc"), ("19840523", "19700101"), THEIR_ZOE[-1])
    tell(shared, "adt-a01-admission", THERE, NO_INS, *luc, PROV)
    (zoe,) = [one for one in found(shared, "Patient", f"identifier={IPP}|000999") if not is_doubtful(one)]
    assert (qualified_ins(zoe), status_of(zoe), zoe["name"][0]["family"]) == (None, "PROV", "DURAND")


def test_a_record_made_under_the_number_of_another_is_theirs_once_they_speak_of_it(shared: Hub) -> None:
    tell(shared, "adt-a01-admission", THERE, *THEIR_ZOE, HER_INS)
    tell(shared, "adt-a01-admission", *THEIR_ZOE, HER_INS)
    zoe = patient(shared, "000999")
    assert zoe["managingOrganization"] == {"reference": "Organization/sylve"}
    for named in (HER_INS, NO_INS):
        note = tell(shared, "adt-a01-admission", THERE, *THEIR_ZOE, named, PROV).note
        assert patient(shared, "000999") == zoe and "nothing of the record is changed" in note


def test_a_third_establishment_changes_no_record_made_under_the_number_of_another(shared: Hub, store: Store) -> None:
    lys = {**AULNE, "key": "lys", "finess_eg": "990007777", "finess_ej": "990007700", "namespaces": []}
    lys |= {"facility": "CLINIQUE-LYS", "sending_applications": [["DPI", "CLINIQUE-LYS"]]}
    three = load_sites(({**SITE, "application": "PASSERELLE"}, AULNE, lys))
    seed_sites(shared, three)
    hub = Hub(shared.settings, store, three, shared.clock)
    tell(hub, "adt-a01-admission", THERE, *THEIR_ZOE, HER_INS)
    zoe = patient(hub, "000999")
    note = tell(hub, "adt-a01-admission", (THERE[0], "DPI|CLINIQUE-LYS|"), *THEIR_ZOE, NO_INS, PROV).note
    assert patient(hub, "000999") == zoe and "nothing of the record is changed" in note


def test_a_person_recorded_from_a_result_is_corrected_by_who_sent_it(shared: Hub) -> None:
    result = sample("oru-r01-biologie", ("000417^", "000999^"), *ZOE, ("~" + WHOLE_INS, "")).decode()
    head = result.split("|", 4)
    there = "|".join([*head[:2], *THERE[1].split("|")[:2], head[4]])
    assert say(shared, there.encode()).code == "AA"
    assert patient(shared, "000999")["managingOrganization"] == MANAGED_THERE
    tell(shared, "adt-a01-admission", THERE, NO_INS, PROV, *THEIR_ZOE, ("19990101", "19990102"))
    assert patient(shared, "000999")["birthDate"] == "1999-01-02"


# --- merges and changes about others (H3, H4) ------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["||", "|VALI|", "|PROV|"])
@pytest.mark.parametrize("event", ["adt-a47-changement-ins", "adt-a40-fusion", "adt-a44-dossier-deplace"])
def test_nothing_merges_or_changes_under_the_number_of_another_establishment(
    shared: Hub, event: str, status: str
) -> None:
    say(shared, laboratory_person())
    before = found(shared, "Patient")
    own = (OLD_INS, MINE) if "a47" in event else ("000399^^^CH-SYLVE&990001234&N^PI", MINE)
    for prior in (own[1], own[1].replace("77^", "999^")):
        raw = sample(event, THERE, NO_INS, *BASE, *ZOE, (own[0], prior), ("|VALI|", status))
        told = say(shared, raw)
        assert (told.code, told.errors[0].code, told.errors[0].location) == ("AE", "204", "PID^1^3"), told
    assert found(shared, "Patient") == before


def test_a_merge_reads_the_senders_own_numbers_of_pid_3(shared: Hub) -> None:
    say(shared, laboratory_person("77"))
    say(shared, laboratory_person("78"))
    before = patient(shared)
    raw = laboratory_person("78").decode().replace("ADT^A28^ADT_A05", "ADT^A40^ADT_A39")
    raw = raw.replace("LABO-AULNE&990005678&N^PI|", f"LABO-AULNE&990005678&N^PI~{THEIRS}|") + f"MRG|{MINE}\r"
    note = note_of(shared, say(shared, raw.encode()))
    assert patient(shared) == before and "000417 is a number of another establishment" in note
    assert sorted((i["value"], i["use"]) for one in found(shared, "Patient", "active=true&family=DURAND")
                  for i in one["identifier"]) == [("77", "old"), ("78", "usual")]  # fmt: skip


@pytest.mark.parametrize("event", ["ADT^A40^ADT_A39", "ADT^A47^ADT_A30"])
def test_an_ins_in_mrg_1_gives_up_no_record_of_another_establishment(shared: Hub, event: str) -> None:
    say(shared, laboratory_person())
    before = found(shared, "Patient")
    raw = laboratory_person("77" if "A40" in event else "79").decode().replace("ADT^A28^ADT_A05", event)
    told = say(shared, (raw + f"MRG|{WHOLE_INS}\r").encode())
    assert (told.code, told.errors[0].code, told.errors[0].location) == ("AE", "204", "MRG^1^1"), told
    assert found(shared, "Patient") == before


def test_an_ins_in_mrg_1_names_the_senders_own_record_or_one_with_the_traits_of_pid(shared: Hub) -> None:
    own = (("000417^", "000500^"), ("000399^^^CH-SYLVE&990001234&N^PI", WHOLE_INS), NO_INS, ("|VALI|", "|PROV|"))
    tell(shared, "adt-a40-fusion", *own)
    assert not [one for one in found(shared, "Patient", "active=true") if qualified_ins(one)]


# --- records à rapprocher of which nothing is said (M7) --------------------------------------------------------------


def nobody(number: int, authority: str = "INCONNU") -> bytes:
    """A result that says nothing of a person but a number."""
    lines = sample("oru-r01-biologie", ("LAB-4411^SIL", f"LAB-{number}^SIL")).decode().split("\r")
    told = f"PID|1||A{number}^^^{authority}^PI||^^^^^^U"
    return "\r".join(told if line.startswith("PID") else line for line in lines).encode()


def test_messages_that_say_nothing_of_a_person_look_for_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MOST_FOUND", 0)  # whoever reads a whole page is told that there are too many
    count = pending.FOUND + 2
    put(
        hub,
        SYSTEM,
        *({"resourceType": "Patient", "id": f"d{n}", "meta": {"tag": [RECONCILE_TAG]}} for n in range(count)),
    )
    told = [say(hub, nobody(number)) for number in range(2)]
    assert [one.code for one in told] == ["AA"] * 2, told
    reports = {one["subject"]["reference"] for one in found(hub, "DiagnosticReport")}
    assert len(reports) == 2, "each is a record of its own"


def test_a_doubtful_record_without_traits_is_found_by_its_number(hub: Hub) -> None:
    tell(hub, "adt-a01-admission", ("000417^", "000418^"), *ZOE, ("284056912345640", "199017512345602"))
    for number in (1, 2):
        both = nobody(number).replace(f"A{number}^^^INCONNU^PI".encode(), f"{THEIRS}~{THEIRS}".replace(
            "~000417", "~000418").encode())  # fmt: skip
        assert say(hub, both).code == "AA"
    assert len([one for one in found(hub, "Patient") if is_doubtful(one)]) == 1


# --- labels of documents that were superseded (L5) -------------------------------------------------------------------


def test_a_correction_that_hides_a_report_hides_the_documents_it_supersedes(hub: Hub) -> None:
    say(hub, flagged("oru-r01-biologie"))
    for answer in ("Y", "N"):
        say(hub, flagged("oru-r01-biologie", flag("MASQUE_PS", answer), without="|ED|").replace(b"|CH|F|", b"|CH|C|"))
        assert hidden(hub) == [("superseded", ["MASQUE_PS"])], "what was hidden stays so"
