"""What happened while a report waited, and keeps it back: a DMP that was closed, a doctor who was refused, an INS that
was lost, an original that may yet arrive by another lane."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import hubs
import pytest
from corrected import (
    DPI,
    MAIL,
    PFI,
    clinical,
    correct,
    message,
    notes,
    payload,
    received,
    record,
    waiting,
    withdraw,
)
from hubs import PARTNER, SYSTEM, asked, directory, hub_on, put, read
from test_correction_attacks import TRIED, run
from test_correction_releases import endpoint_replaced, mailbox_moved, shown, taken
from test_declared_doctor import DOCTOR, PRIVACY, declared, refusal
from test_distribution import endpoint, flag, with_dmp

from fhir_server.changes import Hub
from fhir_server.demo import people
from fhir_server.desk import outbox
from fhir_server.errors import RuleBroken
from fhir_server.store.engine import Store
from hl7v2.message import parse
from mappers.cda_to_report import patient_sent
from mappers.fhir_to_report import oid_of

Resource = dict[str, Any]
INS = people.ins(people.PATIENTS[0][5])


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


# --- opposed since ---------------------------------------------------------------------------------------------------


CLOSED = pytest.mark.parametrize("now", [(("status", "ACTIF"), ("feed", "IO")), (("status", "FERME"),), ()])


@CLOSED
def test_a_dmp_that_was_closed_or_opposed_while_the_report_waited_is_not_fed(
    hub: Hub, now: tuple[tuple[str, str], ...]
) -> None:
    with_dmp(hub, ("status", "ACTIF"), ("feed", "INO"))
    asked(hub, state="completed")
    one = waiting(hub)[PFI]
    assert flag(message(hub, PFI), "DESTDMP") == "Y"
    with_dmp(hub, *now)
    assert one.id not in taken(hub) and "the DMP of Patient/patient-01 is not open" in shown(hub, one.id)["error"]
    for act in (outbox.outbox_release, outbox.outbox_retry):
        with pytest.raises(RuleBroken, match="the DMP of Patient/patient-01 is not open"):
            act(hub.store, {"id": one.id})
    with_dmp(hub, ("status", "ACTIF"), ("feed", "INO"))
    outbox.outbox_release(hub.store, {"id": one.id})
    assert one.id in taken(hub), "the patient changed their mind"


def test_what_fed_the_dmp_is_not_sent_again_once_it_is_closed(hub: Hub) -> None:
    asked(hub, state="completed")
    first = waiting(hub)[PFI].id
    received(hub)
    with_dmp(hub, ("status", "FERME"))
    with pytest.raises(RuleBroken, match="is not sent again: the DMP"):
        hubs.replayed(hub.store, {"id": first})


def test_a_withdrawal_reaches_the_dmp_whatever_was_opposed_since(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    with_dmp(hub, ("status", "FERME"), ("feed", "IO"))
    withdraw(hub)
    back = waiting(hub)[PFI].id
    assert flag(message(hub, PFI), "DESTDMP") == "Y" and message(hub, PFI).text("MSH-9.2") == "T04"
    assert back in taken(hub)


REFUSED = pytest.mark.parametrize("named", ["Practitioner/lefevre", "PractitionerRole/lefevre"])


@REFUSED
def test_a_doctor_the_patient_refused_while_the_mail_waited_is_not_mailed(hub: Hub, named: str) -> None:
    declared(hub, {"reference": "Practitioner/lefevre"})
    asked(hub, state="completed")
    one = waiting(hub)
    put(hub, PARTNER, refusal(named, scope=PRIVACY))
    left = taken(hub)
    assert one[DOCTOR].id not in left and one[MAIL].id in left
    assert "Patient/patient-01 opposes" in shown(hub, one[DOCTOR].id)["error"]
    with pytest.raises(RuleBroken, match="Patient/patient-01 opposes"):
        outbox.outbox_release(hub.store, {"id": one[DOCTOR].id})


def test_a_doctor_refused_since_gets_no_copy_in_their_own_software_and_is_told_of_a_withdrawal(hub: Hub) -> None:
    own = endpoint("dpi", id="own", address="mllp://127.0.0.1:9?application=LGC&facility=CABINET")
    put(hub, SYSTEM, own, read(hub, "PractitionerRole/lefevre") | {"endpoint": [{"reference": "Endpoint/own"}]})
    declared(hub, {"reference": "Practitioner/lefevre"})
    asked(hub, state="completed")
    first = waiting(hub)["Endpoint/own"].id
    put(hub, PARTNER, refusal("Practitioner/lefevre", scope=PRIVACY))
    assert first not in taken(hub)
    run(hub, "UPDATE delivery SET state = 'sent' WHERE id = ?", first)
    withdraw(hub)
    assert waiting(hub)["Endpoint/own"].id in taken(hub)


def test_a_refusal_of_the_requester_keeps_the_answer_they_asked_for_from_nobody(hub: Hub) -> None:
    asked(hub, state="completed")
    put(hub, PARTNER, refusal("Practitioner/moreau", scope=PRIVACY))
    assert waiting(hub)[MAIL].id in taken(hub), "as the plan decides when the report is signed"


# --- identifiers of a recall -----------------------------------------------------------------------------------------


def enclosed(hub: Hub) -> list[str]:
    """The identifiers of the patient in the CDA that is taken back."""
    sent = patient_sent(clinical(hub, record(hub, "entered-in-error")), "", hub.sites.default)
    return [*([sent.ins[0]] if sent.ins else []), *(one[0] for one in sent.local_ids)]


def told(hub: Hub, lane: str) -> list[str]:
    sent = message(hub, lane)
    return [value for place in (1, 2, 3) if (value := sent.text(f"PID-3[{place}].1"))]


def renumbered(hub: Hub, *, ins: bool, ipp: str = "DEMO0001") -> None:
    """The patient with or without the qualified INS, and under a number of the hospital."""
    patient = copy.deepcopy(read(hub, "Patient/patient-01"))
    patient["identifier"] = [one for one in patient["identifier"] if ins or one["value"] != INS]
    for one in patient["identifier"]:
        one["value"] = ipp if one["system"] == people.IPP_SYSTEM else one["value"]
    if not ins:
        patient["extension"][0]["extension"][0]["valueCoding"]["code"] = "PROV"
    put(hub, PARTNER, patient)


def test_a_withdrawal_names_the_patient_as_the_document_it_encloses(hub: Hub) -> None:
    renumbered(hub, ins=False)
    asked(hub, state="completed")
    received(hub)
    put(hub, PARTNER, people.patient(0))
    withdraw(hub)
    assert told(hub, DPI) == enclosed(hub) == ["DEMO0001"], "the INS came after the document"


def test_a_withdrawal_whose_document_carries_an_ins_the_patient_lost_is_held(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    renumbered(hub, ins=False)
    withdraw(hub)
    one = waiting(hub)[DPI]
    assert one.ins == INS and INS in enclosed(hub) and told(hub, DPI) == ["DEMO0001"]
    assert "des identifiants que le patient n'a plus" in " ".join(notes(hub))
    left = taken(hub)
    assert one.id not in left and "has no qualified INS any more" in shown(hub, one.id)["error"]
    assert any(other.lane == MAIL and other.id in left for other in hubs.deliveries(hub)), "a letter encloses nothing"


def test_a_withdrawal_under_another_number_of_the_hospital_says_so(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    renumbered(hub, ins=True, ipp="NEW0001")
    withdraw(hub)
    assert told(hub, DPI) == [INS, "NEW0001"] and enclosed(hub) == [INS, "DEMO0001"]
    assert "des identifiants que le patient n'a plus" in " ".join(notes(hub))
    assert waiting(hub)[DPI].id in taken(hub)


# --- an original in another lane -------------------------------------------------------------------------------------


MOVED = pytest.mark.parametrize(("lane", "move"), [(DPI, endpoint_replaced), (MAIL, mailbox_moved)])


def in_doubt(hub: Hub, lane: str) -> str:
    """A first version that may have arrived, and waits to be tried again."""
    asked(hub, state="completed")
    first = waiting(hub)[lane].id
    run(hub, TRIED, first, "ambiguous")
    run(hub, "UPDATE delivery SET attempts = 1 WHERE id = ?", first)
    return first


@MOVED
@pytest.mark.parametrize("ends", ["sent", "cancelled"])
def test_a_replacement_by_another_lane_waits_for_an_original_that_may_have_arrived(
    hub: Hub, lane: str, move: Callable[[Hub], str], ends: str
) -> None:
    first = in_doubt(hub, lane)
    road = move(hub)
    correct(hub)
    second = waiting(hub)[road].id
    assert not {first, second} & set(taken(hub))
    assert shown(hub, first)["state"] == "held" and f"{first} in {lane}" in shown(hub, second)["error"]
    with pytest.raises(RuleBroken, match=f"{first} in {lane}, which this follows, is not settled"):
        outbox.outbox_release(hub.store, {"id": second})
    if ends == "cancelled":
        outbox.outbox_cancel(hub.store, {"id": first})
    else:
        outbox.outbox_release(hub.store, {"id": first})
        assert first in taken(hub)
        run(hub, "UPDATE delivery SET state = 'sent' WHERE id = ?", first)
    outbox.outbox_release(hub.store, {"id": second})
    assert second in taken(hub)


def test_a_replacement_by_another_lane_leaves_at_once_when_its_original_arrived(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    road = endpoint_replaced(hub)
    correct(hub)
    assert waiting(hub)[road].id in taken(hub)


# --- the DMP through another platform --------------------------------------------------------------------------------


SECOND = "Endpoint/pfi2"


def other_platform(hub: Hub, *order: str, status: str = "active") -> None:
    """A second platform, and in which order the hospital lists them; `status` of the first."""
    address = "mllp://127.0.0.1:77?application=NEWPFI&facility=X"
    put(hub, SYSTEM, endpoint("pfi", status=status), endpoint("pfi", id="pfi2", name="Autre", address=address))
    listed = [{"reference": one} for one in (DPI, *order)]
    put(hub, SYSTEM, read(hub, "Organization/ch-demo") | {"endpoint": listed})


def actions(hub: Hub) -> dict[str, tuple[str, str]]:
    """By lane of a platform: the trigger and the parent document of what waits there."""
    found = {lane: parse(payload(hub, one)) for lane, one in waiting(hub).items() if lane in (PFI, SECOND)}
    return {lane: (one.text("MSH-9.2"), one.text("TXA-13")) for lane, one in found.items()}


def test_the_next_platform_replaces_what_the_one_before_fed_the_dmp_with(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    version = oid_of(record(hub)["id"])
    other_platform(hub, PFI, SECOND, status="off")
    correct(hub)
    assert actions(hub) == {SECOND: ("T10", version)}
    assert flag(message(hub, SECOND), "DESTDMP") == "Y"


def test_the_platform_that_fed_the_dmp_goes_before_one_that_is_listed_first(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    version = oid_of(record(hub)["id"])
    other_platform(hub, SECOND, PFI)
    correct(hub)
    assert actions(hub) == {PFI: ("T10", version)}


def test_the_next_platform_takes_back_what_the_one_before_fed_the_dmp_with(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    other_platform(hub, PFI, SECOND, status="off")
    withdraw(hub)
    assert [trigger for trigger, _ in actions(hub).values()] == ["T04"] and SECOND in actions(hub)
    assert not any("non remis" in one for one in notes(hub))


def test_what_takes_it_back_by_another_platform_waits_for_what_may_yet_feed_the_dmp(hub: Hub) -> None:
    first = in_doubt(hub, PFI)
    other_platform(hub, PFI, SECOND, status="off")
    withdraw(hub)
    second = waiting(hub)[SECOND].id
    assert not {first, second} & set(taken(hub))
    assert f"{first} in {PFI}" in shown(hub, second)["error"]
    outbox.outbox_cancel(hub.store, {"id": first})
    outbox.outbox_release(hub.store, {"id": second})
    assert second in taken(hub)


def test_a_platform_under_another_name_replaces_what_the_dmp_holds(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    put(hub, SYSTEM, endpoint("pfi", address="mllp://127.0.0.1:77?application=NEWPFI&facility=X"))
    correct(hub)
    assert [trigger for trigger, _ in actions(hub).values()] == ["T10"]


def test_what_the_dmp_holds_is_not_what_a_platform_reads_that_became_a_patient_file(hub: Hub) -> None:
    asked(hub, state="completed")
    received(hub)
    version = oid_of(record(hub)["id"])
    other_platform(hub, PFI, SECOND)
    put(hub, SYSTEM, endpoint("pfi", payloadType=endpoint("dpi")["payloadType"]))
    correct(hub)
    assert actions(hub) == {PFI: ("T02", ""), SECOND: ("T10", version)}


# --- one person, one listener ----------------------------------------------------------------------------------------


def second_role(hub: Hub) -> None:
    """The declared doctor works in a second place, with another mailbox."""
    there = {k: v for k, v in read(hub, "PractitionerRole/lefevre").items() if k != "telecom"} | {"id": "lefevre2"}
    box = json.dumps(read(hub, "PractitionerRole/moreau")["telecom"]).replace("claire.moreau@", "lefevre.msp@")
    put(hub, SYSTEM, there | {"telecom": json.loads(box)})


ONE, TWO = {"reference": "PractitionerRole/lefevre"}, {"reference": "PractitionerRole/lefevre2"}


@pytest.mark.parametrize("named", [(ONE, TWO), (TWO, ONE), ({"reference": "Practitioner/lefevre"}, TWO)])
def test_a_doctor_declared_in_two_roles_is_mailed_once(hub: Hub, named: tuple[Resource, ...]) -> None:
    second_role(hub)
    declared(hub, *named)
    asked(hub, state="completed")
    assert len([one for one in waiting(hub) if one.startswith("mssante:") and one != MAIL]) == 1


def test_a_doctor_declared_in_another_role_since_gets_the_correction_once(hub: Hub) -> None:
    second_role(hub)
    declared(hub, ONE)
    asked(hub, state="completed")
    received(hub)
    declared(hub, TWO)
    correct(hub)
    (lane,) = [one for one in waiting(hub) if one.startswith("mssante:") and one != MAIL]
    assert "lefevre.msp@" in lane


def test_of_two_roles_the_one_with_a_mailbox_is_written_to(hub: Hub) -> None:
    second_role(hub)
    for reference in ("PractitionerRole/lefevre", "Practitioner/lefevre"):
        put(hub, SYSTEM, {k: v for k, v in read(hub, reference).items() if k != "telecom"})
    declared(hub, ONE, TWO)
    asked(hub, state="completed")
    assert any("lefevre.msp@" in one for one in waiting(hub))


NAMELESS = [
    "",
    "?application=DPI",
    "?facility=CH-DEMO",
    "?application=&facility=CH-DEMO",
    "?application=%20&facility=X",
]


@pytest.mark.parametrize("names", NAMELESS)
def test_an_address_that_names_no_receiver_gets_nothing_and_that_is_told(hub: Hub, names: str) -> None:
    host = endpoint("dpi")["address"].partition("?")[0]
    put(hub, SYSTEM, endpoint("dpi", id="bare", name="Sans nom", address=f"{host}{names}"))
    listed = [{"reference": one} for one in ("Endpoint/bare", DPI, PFI)]
    put(hub, SYSTEM, read(hub, "Organization/ch-demo") | {"endpoint": listed})
    asked(hub, state="completed")
    assert set(waiting(hub)) == {DPI, PFI, MAIL}
    (note,) = notes(hub)
    assert "Sans nom" in note and "ne nomme pas l'application et l'établissement destinataires" in note
