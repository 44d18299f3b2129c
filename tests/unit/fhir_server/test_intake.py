"""HL7 v2 coming in: AA only after the commit, the same answer to the same bytes, and nothing lost or guessed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import hubs
import pytest
from hubs import PARTNER, at_once, found, hub_on, put

from fhir_server.changes import Hub
from fhir_server.context import SYSTEM
from fhir_server.delivery import intake
from fhir_server.delivery.arrivals import MOST_NOTES
from fhir_server.demo import people, story
from fhir_server.errors import Unavailable
from fhir_server.patients.identity import RECONCILE_TAG
from fhir_server.store.engine import Store
from fhir_server.store.inbox import InboxFilter, InboxRow
from hl7v2 import ack
from hl7v2.ack import Ack

Resource = dict[str, Any]
PEER = "192.0.2.7:5001"
BY_INS = f"identifier={people.INS_SYSTEM}|{story.INS}"
BY_IPP = f"identifier={people.IPP_SYSTEM}|{story.IPP}"


@pytest.fixture
def hub(store: Store) -> Hub:
    return hub_on(store)


def adt(control_id: str = "A0001", trigger: str = "A01", *changes: tuple[str, str]) -> bytes:
    """The demo's admission as another message: (old, new) text replacements."""
    text = story.admission(control_id).decode()
    names = {"A28": "ADT_A05", "A31": "ADT_A05", "A04": "ADT_A01"}
    text = text.replace("ADT^A01^ADT_A01", f"ADT^{trigger}^{names.get(trigger, 'ADT_' + trigger)}")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text.encode()


def identity_only(control_id: str, trigger: str, *changes: tuple[str, str]) -> bytes:
    """A28 or A31: the person alone, no stay."""
    lines = [
        line for line in adt(control_id, trigger, *changes).decode().split("\r") if line[:3] in ("MSH", "EVN", "PID")
    ]
    return ("\r".join([*lines, "PV1|1|N"]) + "\r").encode()


def say(hub: Hub, raw: bytes) -> Ack:
    return ack.read(intake.on_message(hub, raw, PEER))


def rows(hub: Hub, **wanted: Any) -> list[InboxRow]:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.messages(InboxFilter(**wanted))


def content(hub: Hub, row: InboxRow) -> bytes:
    with hub.store.read(SYSTEM) as snapshot:
        return snapshot.message_raw(row.id)


def codes(told: Ack) -> list[tuple[str, str]]:
    return [(error.location, error.code) for error in told.errors]


class Failing:
    """A store whose transactions all fail at their end: nothing they wrote stays."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, caller: Any, work: Callable[[Any], Any]) -> Any:
        def fails(tx: Any) -> None:
            work(tx)
            raise Unavailable("the disk is full")

        return self._store.write(caller, fails)


def failing(hub: Hub) -> Hub:
    return dataclasses.replace(hub, store=Failing(hub.store))  # type: ignore[arg-type]  # a stand-in


# --- taking in -------------------------------------------------------------------------------------------------------


def test_an_admission_makes_the_patient_and_the_stay_and_then_says_aa(hub: Hub) -> None:
    told = say(hub, adt())
    assert (told.code, told.control_id, told.errors) == ("AA", "A0001", ())
    patient = found(hub, "Patient", BY_INS)[0]
    assert patient["name"][0]["family"] == story.FAMILY
    assert patient["managingOrganization"]["reference"] == "Organization/ch-demo"
    stay = found(hub, "Encounter", f"subject=Patient/{patient['id']}")[0]
    assert stay["serviceProvider"]["reference"] == "Organization/ch-demo"
    row = rows(hub)[0]
    assert (row.state, row.control_id, row.message_type, row.sender) == ("done", "A0001", "ADT^A01", "GAM|CH-DEMO")
    assert row.peer == PEER
    with hub.store.read(SYSTEM) as snapshot:
        keys = dict(snapshot.message_keys(row.id))
    about = {"ins": story.INS, "ipp": story.IPP, "patient": f"Patient/{patient['id']}"}
    assert keys == about | {
        "msh-10": "A0001",
        "iep": stay["identifier"][0]["value"],
        "finess": hub.sites.default.finess_eg,
    }


def test_nothing_is_said_to_be_taken_in_when_the_commit_fails(hub: Hub) -> None:
    told = say(failing(hub), adt())
    assert told.code == "AR", "the partner may send it again"
    assert found(hub, "Patient") == []
    row = rows(hub)[0]
    assert (content(hub, row), row.ack, "disk is full" in row.error) == (adt(), None, True)
    assert say(hub, adt()).code == "AA", "the same bytes again are taken in now"
    assert [(r.state, r.repeats) for r in rows(hub)] == [("done", 1)]


def test_a_refusal_that_cannot_be_stored_forbids_no_resend(hub: Hub) -> None:
    class Mute(Failing):
        def reject(self, *args: Any, **more: Any) -> None:
            raise Unavailable("the disk is full")

    broken = adt("A0001", "A01", ("VALI", "NONSENSE"))
    told = say(dataclasses.replace(hub, store=Mute(hub.store)), broken)  # type: ignore[arg-type]  # a stand-in
    assert told.code == "AR"
    assert say(hub, broken).code == "AE"


def test_an_answer_is_given_even_when_nothing_can_be_stored(hub: Hub) -> None:
    hub.store.close()
    with pytest.raises(Unavailable):
        intake.on_message(hub, adt(), PEER)


# --- the same again --------------------------------------------------------------------------------------------------


def test_the_same_bytes_get_the_same_answer_and_change_nothing(hub: Hub) -> None:
    first = intake.on_message(hub, adt(), PEER)
    version = hubs.stored(hub, f"Patient/{found(hub, 'Patient')[0]['id']}")
    again = intake.on_message(hub, adt(), "192.0.2.8:1")
    assert again == first
    assert hubs.stored(hub, f"Patient/{found(hub, 'Patient')[0]['id']}") == version
    assert [(row.state, row.repeats) for row in rows(hub)] == [("done", 1)]


def test_a_refused_message_gets_its_refusal_again(hub: Hub) -> None:
    broken = adt("A0001", "A99")
    assert intake.on_message(hub, broken, PEER) == intake.on_message(hub, broken, PEER)


def test_the_same_control_id_with_other_bytes_is_refused_and_visible(hub: Hub) -> None:
    say(hub, adt())
    other = adt("A0001", "A01", (story.GIVEN, "AUTRE"))
    first = intake.on_message(hub, other, PEER)
    assert codes(ack.read(first)) == [("MSH^1^10", "205")]
    assert intake.on_message(hub, other, PEER) == first
    conflict = rows(hub, state="conflict")[0]
    assert content(hub, conflict) == other
    assert found(hub, "Patient", BY_INS)[0]["name"][0]["given"] == [story.GIVEN]


def test_the_same_control_id_of_another_sender_is_another_message(hub: Hub) -> None:
    say(hub, adt())
    assert say(hub, adt("A0001", "A01", ("|GAM|CH-DEMO|", "|AUTRE|CH-DEMO|"))).code == "AA"
    assert len(rows(hub)) == 2


def test_one_message_sent_by_two_connections_at_once_gets_one_answer(hub: Hub) -> None:
    answers = hubs.results(at_once(*[lambda: intake.on_message(hub, adt(), PEER)] * 6))
    assert {ack.read(answer).code for answer in answers} == {"AA"}
    assert len(set(answers)) == 1, "byte by byte the same"
    assert len(found(hub, "Patient", BY_INS)) == 1
    assert len(found(hub, "Encounter")) == 1
    assert [(row.state, row.repeats) for row in rows(hub)] == [("done", 5)]


def test_two_messages_of_one_new_person_at_once_make_one_patient(hub: Hub) -> None:
    messages = [adt(f"A000{n}", "A01") for n in range(4)] + [identity_only("B1", "A28"), identity_only("B2", "A31")]
    answers = hubs.results(at_once(*[partial(say, hub, raw) for raw in messages]))
    assert {answer.code for answer in answers} <= {"AA", "AR", "AE"}
    assert len(found(hub, "Patient", BY_INS)) == 1
    assert len(found(hub, "Encounter")) == 1
    assert [answer.code for answer in answers] == ["AA"] * 6


# --- what cannot be taken in -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "place", "code"),
    [
        (("ADT^A01^ADT_A01", "BAR^P01^BAR_P01"), "MSH^1^9", "200"),
        (("ADT^A01^ADT_A01", "ADT^A99^ADT_A99"), "MSH^1^9", "201"),
        (("|2.5^FRA^2.11|", "|9.9^FRA^2.11|"), "MSH^1^12", "203"),
        (("||19920314|", "||yesterday|"), "PID^1^7", "102"),
        (("EVN|", "ZZZ|"), "EVN^1", "100"),
        (("|VALI", "|NONSENSE"), "PID^1^32^1", "103"),
        ((f"{story.FAMILY}^{story.GIVEN}", f"^{story.GIVEN}"), "PID^1^5^1^1", "101"),
    ],
    ids=["type", "event", "version", "time", "segment", "table", "name"],
)
def test_a_broken_message_is_refused_with_its_place_and_kept_whole(
    hub: Hub, change: tuple[str, str], place: str, code: str
) -> None:
    raw = adt("A0001", "A01", change)
    told = say(hub, raw)
    assert told.code == "AE"
    assert (place, code) in codes(told)
    row = rows(hub, state="error")[0]
    assert content(hub, row) == raw
    assert row.error and row.location
    assert found(hub, "Patient") == []


@pytest.mark.parametrize(
    ("change", "place", "code"),
    [
        ((f"{story.GIVEN}^", "AL\0ICE^"), "PID^1^5^1^2", "102"),
        ((f"{story.FAMILY}^", "A" * 1_100_000 + "^"), "PID^1^5", "102"),
        ((f"{story.IPP}^", "DE\0MO^"), "PID^1^3", "102"),
        ((f"|{story.VISIT}^", "|V\0 13^"), "PID^1^18", "102"),
        (("Gyn^", "G\0yn^"), "ZBE^1^7", "102"),
        ((f"{story.FAMILY}^", "~" * 200_000 + f"{story.FAMILY}^"), "PID^1^5", "198"),
        (("|D|2.5", "|P^X|2.5"), "MSH^1^11^1^2", "202"),
        (("|19920314|", "|19920314000000+9999|"), "PID^1^7", "102"),
    ],
    ids=["NUL in a name", "long name", "NUL in an id", "NUL in a visit", "NUL in a unit", "many names", "mode", "zone"],
)
def test_what_the_mapping_or_the_resource_cannot_hold_is_told_at_its_field(
    hub: Hub, change: tuple[str, str], place: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = say(hub, adt("A0001", "A01", change))
    assert told.code == "AE" and (place, code) in codes(told)
    assert all(error.location and "Patient." not in error.text for error in told.errors)
    assert found(hub, "Patient") == [] and "defect" not in caplog.text
    assert rows(hub, state="error")[0].location.startswith(place.partition("^")[0])


def test_a_processing_mode_of_the_table_is_taken(hub: Hub) -> None:
    assert say(hub, adt("A0001", "A01", ("|D|2.5", "|D^T|2.5"))).code == "AA"


def test_a_message_of_too_many_lines_is_refused_for_that_and_found_by_its_control_id(hub: Hub) -> None:
    raw = adt("A0001") + b"NTE|1||x\r" * 100_001
    told = say(hub, raw)
    assert told.code == "AE" and codes(told) == [("MSH^1", "198")] and "100000 lines" in told.errors[0].text
    row = rows(hub, state="error")[0]
    assert (row.control_id, row.sender, row.message_type) == ("A0001", "GAM|CH-DEMO", "ADT^A01")
    assert say(hub, raw) == told, "the same answer to the same bytes"


def test_the_notes_of_a_message_are_bounded(hub: Hub) -> None:
    told = say(hub, adt("A0001") + b"".join(b"NTE|%d||x\r" % number for number in range(20_000)))
    assert told.code == "AA"
    lines = rows(hub, control_id="A0001")[0].note.splitlines()
    assert 1 < len(lines) <= MOST_NOTES + 1 and any(line.startswith("and ") for line in lines)


def test_a_message_without_a_control_id_is_refused_and_kept_each_time(hub: Hub) -> None:
    raw = adt("A0001", "A01", ("|A0001|", "||"))
    assert ("MSH^1^10", "101") in codes(say(hub, raw))
    say(hub, raw)
    assert len(rows(hub, state="error")) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff\xfe",
        b"hello",
        b"PID|1||X\r",
        b"MSH",
        b"MSH|",
        b"MSH|^~\\&",
        b"\xff" * 70_000,
        b"MSH|^~\\&|A|B\rX",
    ],
    ids=["empty", "binary", "words", "no MSH", "MSH", "one sign", "no fields", "large", "no type"],
)
def test_bytes_that_are_no_message_are_answered_and_kept(hub: Hub, raw: bytes) -> None:
    told = say(hub, raw)
    assert told.code == "AE"
    row = rows(hub)[0]
    assert (row.state, content(hub, row)) == ("error", raw)


@pytest.mark.parametrize(
    "sign", ["\x00", "\\X00\\", "\\XD800\\", "\ufffe", "'; DROP TABLE inbox; --", "%s%n", "\U0001f600"]
)
def test_hostile_text_is_taken_in_or_refused_and_never_breaks(hub: Hub, sign: str) -> None:
    for place in (story.GIVEN, story.IPP, "GAM", story.VISIT, "A0001"):
        told = say(hub, adt("A0001", "A01", (place, f"x{sign}")))
        assert told.code in ("AA", "AE"), place
    assert len(rows(hub)) >= 4


def test_a_production_site_takes_production_messages_and_real_identities_only(store: Store) -> None:
    hub = hub_on(store, site={"mode": "production"})
    assert codes(say(hub, adt())) == [("MSH^1^11", "202")]
    tested = adt("A0002", "A01", ("|D|2.5", "|P|2.5"))
    told = say(hub, tested)
    assert told.code == "AE" and told.errors[0].location.startswith("PID^1^3")
    assert len(rows(hub, state="error")) == 2
    plain = adt(
        "A0003", "A01", ("|D|2.5", "|P|2.5"), (f"~{story.INS}^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS", "")
    )
    assert say(hub, plain).code == "AA"
    assert len(found(hub, "Patient")) == 1


# --- who it is -------------------------------------------------------------------------------------------------------


def test_a_person_known_by_ins_gets_the_local_identifier(hub: Hub) -> None:
    known = people.patient(0) | {"name": [{"use": "official", "family": story.FAMILY, "given": [story.GIVEN]}]}
    known |= {"birthDate": "1992-03-14", "id": "known", "communication": [{"language": {"text": "français"}}]}
    known["identifier"] = [known["identifier"][0] | {"value": story.INS}]
    put(hub, PARTNER, known | {"meta": {"tag": [{"system": "urn:x", "code": "vip"}]}})
    assert say(hub, adt()).code == "AA"
    held = found(hub, "Patient", BY_IPP)
    assert [p["id"] for p in held] == ["known"]
    assert held[0]["communication"] == known["communication"]
    assert held[0]["meta"]["tag"] == [{"system": "urn:x", "code": "vip"}], "what the message does not speak of stays"


@pytest.mark.parametrize("arc", ["4.010", "04.10", "4.0010", "4.10.0"])
def test_an_ins_under_an_oid_that_is_misspelled_is_dropped_told_and_nobody_is_known_by_it(hub: Hub, arc: str) -> None:
    """CX-5 says INS and CX-4 no national OID: the rest of the message is taken in, nobody is found by that number."""
    oid = f"1.2.250.1.213.1.{arc}"
    assert say(hub, adt("A0001", "A01", ("1.2.250.1.213.1.4.10", oid))).code == "AA"
    (held,) = found(hub, "Patient", BY_IPP)
    assert story.INS not in {one.get("value") for one in held["identifier"]}
    (row,) = rows(hub)
    assert row.state == "done" and "PID-3" in row.note and "none of the national ones" in row.note
    assert found(hub, "Patient", BY_INS) == found(hub, "Patient", f"identifier=urn:oid:{oid}|{story.INS}") == []
    assert say(hub, adt("A0002", "A01", (story.IPP, "DEMO0077"), (story.VISIT, "V0077"))).code == "AA"
    assert len(found(hub, "Patient")) == 2, "the number of the first message tied nobody to the second"


def doubtful(hub: Hub) -> list[Resource]:
    return found(hub, "Patient", f"_tag={RECONCILE_TAG['system']}|{RECONCILE_TAG['code']}")


def other_person(control_id: str, trigger: str = "A01", *more: tuple[str, str]) -> bytes:
    """The same INS, another IPP, and traits that contradict those stored."""
    return adt(control_id, trigger, (story.IPP, "DEMO0099"), (story.BIRTH, "19501231"), (story.GIVEN, "ZOE"), *more)


def test_an_ins_with_other_traits_makes_a_doubtful_record_and_loses_nothing(hub: Hub) -> None:
    say(hub, adt())
    first = found(hub, "Patient", BY_INS)[0]
    assert say(hub, other_person("A0002", "A01", (story.VISIT, "V0099"))).code == "AA"
    doubt = doubtful(hub)
    assert len(doubt) == 1 and doubt[0]["id"] != first["id"]
    assert people.INS_SYSTEM not in {i["system"] for i in doubt[0]["identifier"]}, "the INS stays with the first"
    assert found(hub, "Patient", BY_INS) == [first]
    assert found(hub, "Encounter", f"subject=Patient/{doubt[0]['id']}")
    row = rows(hub, control_id="A0002")[0]
    assert row.state == "done" and "à rapprocher" in row.note and row.note.count("à rapprocher") == 1


def test_a_second_message_of_a_doubtful_person_updates_the_same_record(hub: Hub) -> None:
    say(hub, adt())
    say(hub, other_person("A0002"))
    first = doubtful(hub)[0]
    say(hub, other_person("A0003", "A01", ("5 rue du Test", "9 rue du Doute")))
    again = doubtful(hub)
    assert [p["id"] for p in again] == [first["id"]]
    assert "9 rue du Doute" in str(again[0]["address"])
    assert again[0]["meta"]["tag"] == [RECONCILE_TAG]


def test_the_next_message_of_the_first_person_still_finds_it(hub: Hub) -> None:
    say(hub, adt())
    first = found(hub, "Patient", BY_INS)[0]["id"]
    say(hub, other_person("A0002"))
    say(hub, adt("A0003", "A01", ("5 rue du Test", "6 rue du Test")))
    assert [p["id"] for p in found(hub, "Patient", "address=6 rue")] == [first]
    assert len(found(hub, "Patient")) == 2


def test_an_identity_that_is_no_longer_qualified_loses_its_ins(hub: Hub) -> None:
    say(hub, adt())
    assert say(hub, identity_only("A0002", "A31", ("|VALI", "|PROV"))).code == "AA"
    held = found(hub, "Patient", BY_IPP)
    assert len(held) == 1 and found(hub, "Patient", BY_INS) == []


@pytest.mark.parametrize("trigger", ["A01", "A04", "A03", "A28", "A31"])
def test_each_trigger_makes_the_patient_and_movements_make_the_stay(hub: Hub, trigger: str) -> None:
    raw = identity_only("A0001", trigger) if trigger in ("A28", "A31") else adt("A0001", trigger)
    told = say(hub, raw)
    assert told.code == "AA", told
    assert len(found(hub, "Patient", BY_INS)) == 1
    assert len(found(hub, "Encounter")) == (0 if trigger in ("A28", "A31") else 1)


def test_creation_admission_change_and_discharge_tell_one_story(hub: Hub) -> None:
    visit = f"{story.VISIT}^^^CH-DEMO&990000018&M^VN"
    began, ended = visit + "|" * 25 + "20261121090000", visit + "|" * 26 + "20261123090000"
    say(hub, identity_only("A0001", "A28"))
    say(hub, adt("A0002", "A01", (visit, began)))
    say(hub, identity_only("A0003", "A31", ("5 rue du Test", "7 rue du Test")))
    say(hub, adt("A0004", "A03", (visit, ended)))
    assert [row.state for row in rows(hub)] == ["done"] * 4
    assert len(found(hub, "Patient")) == 1
    stays = found(hub, "Encounter")
    assert len(stays) == 1 and stays[0]["status"] == "finished"
    period = stays[0]["period"]
    assert (period["start"][:10], period["end"][:10]) == ("2026-11-21", "2026-11-23"), "A03 does not repeat the start"


def test_visits_are_told_apart_by_their_whole_number_and_their_patient(hub: Hub) -> None:
    for n, visit in enumerate(("V1", "V1&V2", "V1,V2", "V1|V2", "V1+V2")):
        coded = visit.replace("&", "\\T\\").replace("|", "\\F\\")
        assert say(hub, adt(f"A{n}", "A01", (f"|{story.VISIT}^", f"|{coded}^"))).code == "AA"
    assert len(found(hub, "Encounter")) == 5
    stranger = ((story.INS, people.ins("2920399123099")), (story.IPP, "DEMO0077"), (story.BIRTH, "19930101"))
    assert say(hub, adt("B1", "A01", *stranger, (f"|{story.VISIT}^", "|V1^"))).code == "AA"
    owners = {stay["subject"]["reference"] for stay in found(hub, "Encounter")}
    assert len(owners) == 2, "a number of somebody else's stay does not move the stay"
