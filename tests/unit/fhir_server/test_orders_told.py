"""A request told to the expert's system as an order, taken back there, and answered under the number it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import hubs
import pytest
from hubs import EXPERT, REQUESTER, SYSTEM, directory, hub_on, put, read
from test_distribution import endpoint, notes, payload
from test_orders import EI, PLACER, asks_for

from fhir_server.changes import Hub, view_of
from fhir_server.context import View
from fhir_server.delivery import intake
from fhir_server.delivery.ports import Port
from fhir_server.demo import people
from fhir_server.desk import outbox, table
from fhir_server.errors import RuleBroken
from fhir_server.store.engine import Store
from fhir_server.store.lanes import Delivery
from fhir_server.teleexpertise import completion
from fhir_server.teleexpertise.case import Context
from fhir_server.teleexpertise.orders import ORDERED
from fhir_server.teleexpertise.sides import asks
from fhir_server.teleexpertise.states import TRANSITIONS
from hl7v2 import ack
from hl7v2.check import check
from hl7v2.message import Message, parse
from mappers.fhir_to_report import own_root

LANE = "Endpoint/experts"


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    hub = directory(hub_on(open_url(sqlite_url), site={"sending_applications": [["TLR", "EXPERTS"]]}))
    system = asks_for("tlr-1.0-orm", id="experts", address="mllp://127.0.0.1:9?application=TLR&facility=EXPERTS")
    group = read(hub, "HealthcareService/avis-echo") | {"endpoint": [{"reference": LANE}]}
    put(hub, SYSTEM, system, group, endpoint("dpi", status="off"), endpoint("pfi", status="off"))
    return hub


def ask(hub: Hub, **changes: Any) -> None:
    put(hub, REQUESTER, people.consent("r", 0), hubs.request(**changes))


def change(hub: Hub, **changes: Any) -> None:
    put(hub, REQUESTER, read(hub, "ServiceRequest/r") | changes)


def told(hub: Hub) -> list[tuple[Delivery, Message]]:
    """What the expert's system is told, oldest first; each is sound."""
    found = [(one, parse(payload(hub, one))) for one in reversed(hubs.deliveries(hub)) if one.lane == LANE]
    for _, msg in found:
        assert check(msg) == []
    return found


def controls(hub: Hub) -> list[str]:
    return [msg.text("ORC-1") for _, msg in told(hub)]


def test_asking_is_told_with_who_asks_why_and_about_whom(hub: Hub) -> None:
    ask(hub, priority="urgent", note=[{"text": "Terme : 12 SA"}])
    ((delivery, msg),) = told(hub)
    assert (delivery.case_key, delivery.second_leg, msg.control_id) == ("ServiceRequest/r", "none", delivery.id)
    assert [msg.at(f"MSH-{n}").encoded for n in (5, 6, 9, 12)] == ["TLR", "EXPERTS", "ORM^O01^ORM_O01", "2.5.1"]
    number = f"r^^{own_root(hub.sites.default)}^ISO"
    assert msg.at("ORC-2").encoded == msg.at("OBR-2").encoded == number
    seen = [msg.text(place) for place in ("OBR-4", "OBR-5", "OBR-13", "ORC-12.2", "ORC-17", "NTE-3", "PID-5", "PV1-2")]
    assert seen == ["TRANSMISSION_DEMANDE", "A", "Mesure à vérifier", "MOREAU", "STRUCTURE_IMAGERIE",
                    "Terme : 12 SA", people.PATIENTS[0][0], "N"]  # fmt: skip


def test_a_draft_is_told_when_it_goes_out_and_under_the_number_it_came_with(hub: Hub) -> None:
    ask(hub, status="draft", identifier=[PLACER])
    assert told(hub) == []
    change(hub, status="active")
    ((_, msg),) = told(hub)
    assert (msg.text("ORC-1"), msg.at("ORC-2").encoded) == ("NW", EI)


@pytest.mark.parametrize(
    ("status", "state"), [("revoked", "ready"), ("revoked", "taken"), ("entered-in-error", "ready")]
)
def test_what_was_out_is_taken_back_there_with_its_reason(hub: Hub, status: str, state: str) -> None:
    ask(hub)
    if state == "taken":
        hubs.take(hub)
        put(hub, EXPERT, hubs.message("q"))
    change(hub, status=status, note=[{"text": "Patiente transférée"}])
    assert controls(hub) == ["NW", "CA"]
    msg = told(hub)[1][1]
    assert (msg.text("OBR-4"), msg.text("ORC-16.2")) == ("ANNULATION_DEMANDE", "Patiente transférée")
    assert msg.at("ORC-2").encoded == told(hub)[0][1].at("ORC-2").encoded


def test_a_draft_that_is_given_up_is_not_told(hub: Hub) -> None:
    ask(hub, status="draft")
    change(hub, status="revoked")
    assert told(hub) == []


def test_every_step_is_an_order_or_named_as_none() -> None:
    steps = {one.name for one in TRANSITIONS}
    assert steps - set(ORDERED) == {"record", "question", "answer", "report", "amend", "withdraw"}


def one_house(hub: Hub, *codes: str, group: tuple[str, ...] = ()) -> None:
    """The hospital that provides the group is also the requester's, with one Endpoint for all; `group`: its own."""
    put(hub, SYSTEM, asks_for(*codes, status="active"))
    home = {"organization": {"reference": "Organization/ch-demo"}}
    own = [{"reference": reference} for reference in group]
    service = {n: part for n, part in read(hub, "HealthcareService/avis-echo").items() if n != "endpoint"}
    put(hub, SYSTEM, read(hub, "PractitionerRole/moreau") | home, service | ({"endpoint": own} if own else {}))


@pytest.mark.parametrize(
    ("group", "lanes"), [((), set()), ((LANE,), {LANE}), (("Endpoint/dpi",), set()), ((LANE, "Endpoint/dpi"), {LANE})]
)
def test_a_house_that_ordered_from_its_own_group_does_not_get_its_order_back(
    hub: Hub, group: tuple[str, ...], lanes: set[str]
) -> None:
    one_house(hub, "tlr-1.0", "tlr-1.0-orm", group=group)
    ask(hub, identifier=[PLACER])
    assert {one.lane for one in hubs.deliveries(hub)} == lanes


def test_a_house_that_asks_its_own_group_by_fhir_gets_the_order_where_it_wants_orders(hub: Hub) -> None:
    one_house(hub, "tlr-1.0-orm")
    ask(hub)
    assert {one.lane for one in hubs.deliveries(hub)} == {"Endpoint/dpi"}


# --- somebody else is asked ------------------------------------------------------------------------------------------


def other_group(hub: Hub) -> None:
    """The heart group, with a system of its own."""
    system = asks_for("tlr-1.0-orm", id="heart", address="mllp://127.0.0.1:9?application=COEUR&facility=EXPERTS")
    put(
        hub,
        SYSTEM,
        system,
        read(hub, "HealthcareService/avis-cardio") | {"endpoint": [{"reference": "Endpoint/heart"}]},
    )


def all_told(hub: Hub) -> list[tuple[str, str]]:
    found = [(one.lane, parse(payload(hub, one))) for one in reversed(hubs.deliveries(hub)) if one.protocol == "hl7"]
    return sorted((lane, msg.text("ORC-1")) for lane, msg in found if msg.kind == "ORM")


def test_who_is_asked_instead_gets_the_order_and_its_holder_a_cancellation(hub: Hub) -> None:
    other_group(hub)
    ask(hub)
    change(hub, performer=[{"reference": "HealthcareService/avis-cardio"}])
    assert all_told(hub) == [("Endpoint/experts", "CA"), ("Endpoint/experts", "NW"), ("Endpoint/heart", "NW")]
    assert told(hub)[1][1].text("ORC-16.2") == "Demande adressée à un autre destinataire"
    change(hub, note=[{"text": "Sans changement de destinataire"}])
    assert len(all_told(hub)) == 3
    change(hub, status="revoked", note=[{"text": "Transférée"}])
    assert all_told(hub)[2:] == [("Endpoint/heart", "CA"), ("Endpoint/heart", "NW")], "who holds one, nobody else"


def test_who_is_asked_again_gets_the_order_again(hub: Hub) -> None:
    other_group(hub)
    ask(hub)
    both = [{"reference": f"HealthcareService/avis-{name}"} for name in ("echo", "cardio")]
    change(hub, performer=both)
    assert all_told(hub) == [("Endpoint/experts", "NW"), ("Endpoint/heart", "NW")]
    change(hub, performer=both[1:])
    change(hub, performer=both)
    assert controls(hub) == ["NW", "CA", "NW"] and len(all_told(hub)) == 4


def test_a_cancellation_follows_its_order_to_an_endpoint_that_is_nobody_s_any_more(hub: Hub) -> None:
    ask(hub)
    group = read(hub, "HealthcareService/avis-echo")
    put(hub, SYSTEM, asks_for("tlr-1.0-orm", id="new", address="mllp://127.0.0.1:9?application=NEW&facility=X"))
    put(hub, SYSTEM, group | {"endpoint": [{"reference": "Endpoint/new"}]})
    change(hub, status="revoked", note=[{"text": "Transférée"}])
    assert all_told(hub) == [("Endpoint/experts", "CA"), ("Endpoint/experts", "NW")]


def test_an_order_that_was_given_up_before_it_left_is_not_taken_back(hub: Hub) -> None:
    ask(hub)
    ((one, _),) = told(hub)
    table.OPERATIONS["outbox-cancel"](hub.store, {"id": one.id})
    change(hub, status="revoked", note=[{"text": "Transférée"}])
    assert controls(hub) == ["NW"]


# --- what an order says ----------------------------------------------------------------------------------------------


def test_who_sends_a_request_is_told_what_the_order_leaves_out(hub: Hub) -> None:
    put(hub, REQUESTER, people.consent("r", 0))
    (applied,) = put(hub, REQUESTER, hubs.request(priority="urgent", note=[{"text": "x"}] * 21))
    told_so = " / ".join(applied.notes)
    for left in ("ServiceRequest.priority", "1 notes beyond", "MSH-21 left out, the profile requires one coded"):
        assert left in told_so, (left, told_so)


def test_an_order_that_came_by_hl7_goes_on_with_its_details_and_without_what_was_to_be_completed(hub: Hub) -> None:
    sct, dcm = "http://snomed.info/sct", "http://dicom.nema.org/resources/ontology/DCM"
    came = completion.to_complete(hubs.request(status="draft", identifier=[PLACER]), ["consent", "question"])
    came["orderDetail"] = [{"coding": [{"system": dcm, "code": "US"}]}]
    came["bodySite"] = [{"coding": [{"system": sct, "code": "1"}]}]
    came["note"] = [{"text": "Terme : 12 SA"}, *came["note"], {"text": "À compléter avant envoi : rien"}]
    put(hub, SYSTEM, came)
    assert hubs.stored(hub, "ServiceRequest/r").resource()["meta"]["tag"] == [completion.TO_COMPLETE]  # type: ignore[union-attr]  # put above
    put(hub, REQUESTER, people.consent("r", 0))
    now = hubs.stored(hub, "ServiceRequest/r").resource()  # type: ignore[union-attr]  # put above
    put(hub, REQUESTER, now | {"status": "active"})
    ((_, msg),) = told(hub)
    assert [nte.text(3) for nte in msg.all("NTE")] == ["Terme : 12 SA", "À compléter avant envoi : rien"]
    assert [obx.text(3) for obx in msg.all("OBX")] == ["MODALITE_IMAGERIE", "REGION_ANATOMIQUE"]
    assert msg.at("MSH-21").encoded == "1.0^CISIS_TLR_HL7_V2"
    kept = hubs.stored(hub, "ServiceRequest/r").resource()  # type: ignore[union-attr]  # put above
    assert "tag" not in kept["meta"] and len(kept["note"]) == 2


def test_an_order_that_cannot_leave_stops_no_step_and_stands_on_the_task(hub: Hub) -> None:
    put(hub, SYSTEM, asks_for("tlr-1.0-orm", id="experts", status="off"))
    ask(hub)
    assert told(hub) == [] and hubs.status(hub) == "ready"
    (note,) = notes(hub)
    assert note.startswith("Demande non remise à ") and "statut off" in note


_NAMES = {"CA": "ANNULATION_DEMANDE", "XO": "TRANSMISSION_DEMANDE", "SC": "COMPLEMENT_POST_ACTE"}


def order(hub: Hub, control: str, number: str = "") -> ack.Ack:
    """The expert's system orders under the number it was sent."""
    sent = told(hub)[0][1]
    number = number or sent.at("ORC-2").encoded
    kind = "OMI^O23^OMI_O23" if control == "SC" else "ORM^O01^ORM_O01"
    lines = (
        f"MSH|^~\\&|TLR|EXPERTS|PASSERELLE|CH-DEMO|20261121090000||{kind}|{control}{len(number)}|T|2.5.1"
        "|||||FRA|UNICODE UTF-8|||1.0^CISIS_TLR_HL7_V2",
        sent.first("PID").raw.decode(),  # type: ignore[union-attr]  # told() checked it
        "PV1|1|N",
        f"ORC|{control}|{number}||||||||||||||^Plus besoin",
        f"OBR|1|{number}||{_NAMES[control]}^^TLR_OBR_PROCEDURE|||||||||Motif",
        *(["IPC|ACN101|P1|2.25.999001|S1|US"] if control == "SC" else []),
    )
    return ack.read(intake.on_message(hub, ("\r".join(lines) + "\r").encode(), "peer", Port()))


def answer(hub: Hub, control: str, **changes: str) -> ack.Ack:
    """The expert's system answers the order it was sent."""
    order = told(hub)[0][1]
    expert = changes.get("expert", read(hub, "Practitioner/garnier")["identifier"][0]["value"])
    lines = (
        f"MSH|^~\\&|TLR|EXPERTS|PASSERELLE|CH-DEMO|20261121090000||ORU^R01^ORU_R01|REP{control}{expert}|T|2.5.1"
        "|||||FRA|UNICODE UTF-8|||1.0^CISIS_TLR_HL7_V2",
        order.first("PID").raw.decode(),  # type: ignore[union-attr]  # told() checked it
        f"ORC|{control}|{changes.get('number', order.at('ORC-2').encoded)}||||||||||8{expert}^GARNIER^Hélène"
        "^^^^^^ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO^D^^^IDNPS||||^Hors champ",
        f"OBR|1|{changes.get('number', order.at('ORC-2').encoded)}||REPONSE_DEMANDE^^TLR_OBR_PROCEDURE",
    )
    return ack.read(intake.on_message(hub, ("\r".join(lines) + "\r").encode(), "peer", Port()))


@pytest.mark.parametrize("control", ["CA", "XO", "SC"])
@pytest.mark.parametrize("changes", [{}, {"identifier": [PLACER]}])
def test_who_is_asked_neither_takes_back_nor_changes_nor_completes_what_they_were_asked(
    hub: Hub, control: str, changes: dict[str, Any]
) -> None:
    """The sender's establishment provides the group, and is neither the requester's nor that of the stay."""
    ask(hub, **changes)
    before = hubs.stored(hub, "ServiceRequest/r")
    found = order(hub, control)
    assert (found.code, found.errors[0].code, found.application_code) == ("AE", "207", "901")
    assert hubs.stored(hub, "ServiceRequest/r") == before and controls(hub) == ["NW"]


@pytest.mark.parametrize("asking", ["requester", "stay", "number"])
def test_an_establishment_that_asks_its_own_group_takes_its_order_back(hub: Hub, asking: str) -> None:
    home = {"reference": "Organization/ch-demo"}
    stay = {
        "resourceType": "Encounter", "id": "stay", "status": "in-progress", "class": {"code": "AMB"},
        "subject": {"reference": "Patient/patient-01"}, "serviceProvider": home,
    }  # fmt: skip
    put(hub, SYSTEM, stay)
    if asking == "requester":
        ward = {"resourceType": "Organization", "id": "ward", "name": "Maternité", "partOf": home}
        put(
            hub,
            SYSTEM,
            ward,
            read(hub, "PractitionerRole/moreau") | {"organization": {"reference": "Organization/ward"}},
        )
    changes = {
        "requester": {},
        "stay": {"encounter": {"reference": "Encounter/stay"}},
        "number": {"identifier": [PLACER | {"assigner": home}]},
    }[asking]
    ask(hub, **changes)
    assert order(hub, "CA").code == "AA" and hubs.status(hub) == "revoked"
    assert controls(hub) == ["NW", "CA"]


@pytest.mark.parametrize("control", ["CA", "XO", "SC"])
@pytest.mark.parametrize("state", ["ready", "in_progress", "revoked"])
def test_an_establishment_that_neither_asks_nor_is_asked_touches_no_request_that_is_out(
    hub: Hub, control: str, state: str
) -> None:
    house = read(hub, "HealthcareService/avis-echo") | {"providedBy": {"reference": "Organization/maison-tilleuls"}}
    person = read(hub, "PractitionerRole/garnier") | {"organization": house["providedBy"]}
    put(hub, SYSTEM, house, person)
    ask(hub, identifier=[PLACER])
    if state == "in_progress":
        hubs.take(hub)
    if state == "revoked":
        change(hub, status="revoked", note=[{"text": "Transférée"}])
    before = hubs.stored(hub, "ServiceRequest/r")
    found = order(hub, control)
    assert (found.code, found.errors[0].code, found.application_code) == ("AE", "207", "901")
    assert "does not ask this request" in found.errors[0].text
    assert hubs.stored(hub, "ServiceRequest/r") == before


def test_our_number_of_what_is_no_teleexpertise_finds_nothing(hub: Hub) -> None:
    ask(hub)
    foreign = {
        "resourceType": "ServiceRequest", "id": "lab", "status": "draft", "intent": "order",
        "subject": {"reference": "Patient/patient-01"}, "code": {"text": "Bilan"},
    }  # fmt: skip
    placer = foreign | {"id": "lab2", "identifier": [PLACER]}
    put(hub, SYSTEM, foreign, placer)
    root = own_root(hub.sites.default)
    for number in (f"lab^^{root}^ISO", EI):
        assert order(hub, "CA", number=number).errors[0].code == "204"
    assert order(hub, "XO", number=EI).errors[0].code == "207"
    assert read(hub, "ServiceRequest/lab") == foreign and read(hub, "ServiceRequest/lab2") == placer


@pytest.mark.parametrize(("control", "state"), [("OK", "in_progress"), ("OC", "revoked")])
def test_the_answer_of_that_system_finds_the_request_by_our_number(hub: Hub, control: str, state: str) -> None:
    ask(hub)
    assert answer(hub, control).code == "AA"
    assert hubs.status(hub) == state and controls(hub) == ["NW"]


def test_our_number_of_a_request_of_somebody_else_or_of_nothing_is_refused(hub: Hub) -> None:
    ask(hub)
    put(hub, REQUESTER, people.consent("t", 1), hubs.request("t", 1))
    root = own_root(hub.sites.default)
    other = answer(hub, "OK", number=f"t^^{root}^ISO")
    assert (other.code, other.errors[0].code) == ("AE", "207")
    hostile = answer(hub, "OC", number=f"../Patient/patient-01^^{root}^ISO")
    assert (hostile.code, hostile.errors[0].code) == ("AE", "204")
    assert hubs.status(hub) == "ready"


def test_a_held_order_is_made_again_while_it_is_true(hub: Hub) -> None:
    ask(hub)
    ((one, _),) = told(hub)

    def context(snapshot: Any) -> Context:
        return Context(SYSTEM, view_of(snapshot), hub.settings, hub.sites, hub.clock())

    table.OPERATIONS["outbox-hold"](hub.store, {"id": one.id})
    change(hub, priority="stat")
    outbox.outbox_regenerate(hub.store, {"id": one.id}, context)
    again = told(hub)[-1]
    assert again[0].id != one.id and (again[1].text("ORC-1"), again[1].text("OBR-5")) == ("NW", "S")
    table.OPERATIONS["outbox-hold"](hub.store, {"id": again[0].id})
    change(hub, status="revoked", note=[{"text": "Transférée"}])
    back = told(hub)[-1][0]
    table.OPERATIONS["outbox-hold"](hub.store, {"id": back.id})
    with pytest.raises(RuleBroken, match="is revoked now"):
        outbox.outbox_regenerate(hub.store, {"id": again[0].id}, context)
    outbox.outbox_regenerate(hub.store, {"id": back.id}, context)
    assert [told(hub)[-1][1].text(place) for place in ("ORC-1", "ORC-16.2")] == ["CA", "Transférée"]


def test_only_who_gave_the_placer_number_asks_by_it() -> None:
    class Nothing:
        def get(self, reference: str) -> None:
            return None

    for kind, expected in (("PLAC", True), ("FILL", False), ("ACSN", False)):
        number = {"type": {"coding": [{"code": kind}]}, "value": "1", "assigner": {"reference": "Organization/a"}}
        assert asks({"identifier": [number]}, "Organization/a", cast(View, Nothing())) is expected
