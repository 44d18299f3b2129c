"""Our answer to a request by HL7 v2: what the requester's system reads, and what is never sent."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from report_sources import SITE, obstetric

from hl7v2.check import check
from hl7v2.message import parse
from mappers.fhir_to_hl7v2_orders import DETAIL, PRIORITIES, order_answer, order_request
from mappers.hl7v2_codes_to_fhir import SYSTEMS, order_id
from mappers.hl7v2_orders_to_fhir import COMMENT, orders
from mappers.hl7v2_results_to_fhir import results
from mappers.mapped import Mapped
from mappers.order_number import placer_of, under_oid

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
REPORT = obstetric()
GOLDEN = Path(__file__).parents[2] / "data" / "hl7v2"


def answer(decision: Any = "accepted", **more: Any) -> Mapped[bytes]:
    arguments: dict[str, Any] = {
        "site": SITE, "control_id": "NB2HI4DTHIXS653XO4XA", "now": NOW,
        "receiving_application": "RIS", "receiving_facility": "CH",
    }  # fmt: skip
    placer = more.pop("placer", under_oid("DEM-2026-90", "2.25.4720"))
    expert = more.pop("expert", REPORT.expert)
    return order_answer(placer, decision, REPORT.patient, expert, **{**arguments, **more})


def test_the_message_is_the_golden_one() -> None:
    assert answer().value == (GOLDEN / "oru-r01-tlr-accord.golden.hl7").read_bytes().replace(b"\n", b"\r")


@pytest.mark.parametrize(("decision", "control", "reason"), [("accepted", "OK", ""), ("refused", "OC", "Hors champ")])
def test_the_decision_is_read_back_with_the_number_of_the_request(decision: str, control: str, reason: str) -> None:
    result = answer(decision, reason=reason)
    msg = parse(result.value)
    assert check(msg) == [] and result.losses == ()
    assert [segment.name for segment in msg.segments] == ["MSH", "PID", "PV1", "ORC", "OBR"]
    assert [msg.at(f"MSH-{n}").encoded for n in (9, 12, 21)] == ["ORU^R01^ORU_R01", "2.5.1", "1.0^CISIS_TLR_HL7_V2"]
    assert (msg.get("ORC-1"), msg.at("ORC-2").encoded) == (control, "DEM-2026-90^^2.25.4720^ISO")
    assert (msg.get("OBR-4"), msg.get("ORC-17"), msg.get("PV1-2")) == ("REPONSE_DEMANDE", "PLATEFORME_TLR", "N")
    read = results(msg, SITE).value.orders[0]
    assert (read.decision, read.reason) == (decision, reason)
    assert read.requests == (("urn:oid:2.25.4720", "DEM-2026-90"),)


@pytest.mark.parametrize("ei", ["D1", "D1^RIS", "D1^RIS^2.25.9^ISO", "D1^^2.25.9^ISO", "D1^RIS^ris.example^DNS"])
def test_the_number_goes_back_as_it_came(ei: str) -> None:
    identifier = order_id(parse(f"MSH|^~\\&|\rORC|NW|{ei}\r".encode()).at("ORC-2"), "PLAC", SITE)
    placer = placer_of({"identifier": [identifier]})
    assert placer is not None
    msg = parse(answer(placer=placer).value)
    assert msg.at("ORC-2").encoded == msg.at("OBR-2").encoded == ei


def test_a_request_nobody_ordered_has_no_placer_number() -> None:
    other = {"type": {"coding": [{"code": "ACSN"}]}, "system": "urn:oid:2.25.9", "value": "A1"}
    assert placer_of({}) is placer_of({"identifier": [other, {"value": "x"}]}) is None


def test_a_refusal_by_nobody_known_names_no_person() -> None:
    msg = parse(answer("refused", expert=None, reason="Annulée").value)
    assert [msg.get(path) or "" for path in ("ORC-12", "OBR-16", "ORC-21", "ORC-1")] == ["", "", "", "OC"]


def test_an_answer_that_names_no_request_or_contradicts_itself_is_never_sent() -> None:
    for changes, told in (
        ({"placer": under_oid("", "")}, "must name the request"),
        ({"reason": "non"}, "goes with a refusal"),
        ({"control_id": "X" * 21}, "MSH-10"),
    ):
        with pytest.raises(ValueError, match=told):
            answer(**changes)


def test_a_hostile_reason_stays_in_its_field() -> None:
    msg = parse(answer("refused", reason="a|b^c\rMSH|^~\\&|EVIL").value)
    assert len(msg.all("MSH")) == 1 and msg.get("ORC-16.2") == "a|b^c\rMSH|^~\\&|EVIL"


REQUEST: dict[str, Any] = {
    "resourceType": "ServiceRequest", "id": "r", "status": "active", "priority": "asap",
    "reasonCode": [{"text": "Métrorragies"}, {"coding": [{"display": "Placenta bas"}]}],
    "note": [{"text": "Terme : 22 SA"}, {"text": " "}], "authoredOn": "2026-03-01T20:15:00Z",
    "orderDetail": [{"coding": [{"system": SYSTEMS["DCM"], "code": "US", "display": "Échographie"}]}],
    "bodySite": [{"coding": [{"system": SYSTEMS["SCT"], "code": "12921003", "display": "Pelvis"}]}],
}  # fmt: skip


def order(control: Any = "NW", request: dict[str, Any] = REQUEST, **more: Any) -> Mapped[bytes]:
    arguments: dict[str, Any] = {
        "site": SITE, "control_id": "NB2HI4DTHIXS653XO4XA", "now": NOW,
        "receiving_application": "TLR", "receiving_facility": "EXPERTS",
    }  # fmt: skip
    number = more.pop("number", under_oid("r", "2.25.4720"))
    requester = more.pop("requester", REPORT.requester)
    return order_request(control, number, REPORT.patient, requester, request, **{**arguments, **more})


def test_the_order_is_the_golden_one() -> None:
    assert order().value == (GOLDEN / "orm-o01-tlr.golden.hl7").read_bytes().replace(b"\n", b"\r")


def test_an_order_is_read_back_by_our_own_intake() -> None:
    result = order()
    msg = parse(result.value)
    assert check(msg) == [] and result.losses == ()
    (read,) = orders(msg, SITE).value.orders
    assert (read.action, read.placer) == ("request", (("urn:oid:2.25.4720", "r"),))
    asked = read.request.resource
    assert (asked["priority"], asked["reasonCode"]) == ("asap", [{"text": "Métrorragies ; Placenta bas"}])
    assert asked["note"] == [{"text": "Terme : 22 SA"}] and asked["requester"]["identifier"]["value"]
    back = parse(order("CA", reason="Patiente transférée").value)
    assert check(back) == [] and back.first("NTE") is None
    (given_up,) = orders(back, SITE).value.orders
    assert (given_up.action, given_up.reason, given_up.placer) == ("cancel", "Patiente transférée", read.placer)


@pytest.mark.parametrize("priority", sorted(PRIORITIES))
def test_every_priority_is_read_back_or_told_as_the_nearest_one_with_a_loss(priority: str) -> None:
    made = order(request=REQUEST | {"priority": priority})
    assert parse(made.value).text("OBR-5") in {"S", "A", "R"}, "HL7 table 0485"
    (read,) = orders(parse(made.value), SITE).value.orders
    near = {"urgent": "asap"}.get(priority, priority)
    assert read.request.resource["priority"] == near
    assert [loss.source for loss in made.losses] == (["ServiceRequest.priority"] if near != priority else [])


def test_what_an_order_cannot_carry_is_told() -> None:
    details = [{"text": "x"}, *REQUEST["orderDetail"] * 2]
    losses = order(request=REQUEST | {"orderDetail": details, "doNotPerform": False}).losses
    assert [loss.source for loss in losses] == [
        "ServiceRequest.doNotPerform", "ServiceRequest.orderDetail[0]", "ServiceRequest.orderDetail[2]",
    ]  # fmt: skip


def test_an_order_says_when_it_was_asked_as_precisely_as_it_is_known() -> None:
    for said, told in (
        ("2026-03-01T20:15:00Z", "20260301211500+0100"),
        ("2026-03-01T20:15:00.123456+02:00", "20260301191500+0100"),
        ("2026-03-01", "20260301"),
        ("2026-03", "202603"),
        ("", "20260302100000+0100"),
        ("2026-03-01T99:15", "20260302100000+0100"),
    ):
        assert parse(order(request=REQUEST | {"authoredOn": said}).value).text("ORC-9") == told, said
    assert parse(order("CA", reason="x").value).text("ORC-9") == "20260302100000+0100", "when it was taken back"


def rows(made: Mapped[bytes]) -> list[list[str]]:
    return [
        [obx.text(3), obx.text(4), obx.text(5), obx.text(5, 3), obx.text(11)] for obx in parse(made.value).all("OBX")
    ]


def test_the_modality_and_the_regions_go_as_the_profile_has_them() -> None:
    sct = SYSTEMS["SCT"]
    came = {"extension": [{"url": DETAIL, "valueCode": "MODALITE_IMAGERIE"}], "coding": [{"code": "ECHO"}]}
    assert rows(order(request=REQUEST | {"orderDetail": [came]}))[0] == ["MODALITE_IMAGERIE", "", "ECHO", "", "O"]
    sites = [{"id": "1.2", "coding": [{"system": sct, "code": "24028007"}]}, {"coding": [{"system": sct, "code": "1"}]}]
    made = order(request=REQUEST | {"bodySite": [*sites, sites[0], {"text": "Pelvis"}]})
    assert [row[1:4] for row in rows(made)] == [
        ["", "US", "DCM"], ["1.2", "24028007", "SCT"], ["1.1", "1", "SCT"], ["2.1", "24028007", "SCT"], ["3.1", "", ""],
    ]  # fmt: skip
    (read,) = orders(parse(made.value), SITE).value.orders
    assert [code for code, _ in read.details] == ["MODALITE_IMAGERIE", *["REGION_ANATOMIQUE"] * 4]
    assert read.details[4][1] == {"text": "Pelvis", "id": "3.1"}
    many = order(request=REQUEST | {"bodySite": [{"text": "x"}] * 300})
    assert len(rows(many)) == 21 and ("ServiceRequest.bodySite", "280 beyond") in [
        (loss.source, loss.reason[:10]) for loss in many.losses
    ]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"orderDetail": []}, "one coded MODALITE_IMAGERIE"),
        ({"orderDetail": [{"coding": [{"system": SYSTEMS["DCM"], "code": "113014"}]}]}, "one coded MODALITE_IMAGERIE"),
        ({"bodySite": []}, "one coded REGION_ANATOMIQUE"),
        ({"bodySite": [{"text": "Pelvis"}]}, "one coded REGION_ANATOMIQUE"),
        ({"bodySite": REQUEST["bodySite"] * 2}, "one coded REGION_ANATOMIQUE"),
    ],
)
def test_an_order_without_what_the_profile_requires_does_not_name_the_profile(changes: Any, why: str) -> None:
    made = order(request=REQUEST | changes)
    msg = parse(made.value)
    assert check(msg) == [] and msg.at("MSH-21").encoded == ""
    assert [loss.reason for loss in made.losses if loss.source == "MSH-21"] == [f"left out, the profile requires {why}"]
    assert parse(order("CA", REQUEST | changes).value).at("MSH-21").encoded == "1.0^CISIS_TLR_HL7_V2", (
        "flow 2 has no OBX"
    )


def test_an_order_of_nobody_known_or_under_a_number_of_no_authority_does_not_name_the_profile() -> None:
    for control in ("NW", "CA"):
        assert parse(order(control, number=under_oid("r", "")).value).at("MSH-21").encoded == ""
        assert parse(order(control, requester=None).value).at("MSH-21").encoded == ""


def test_notes_beyond_the_bound_are_told() -> None:
    losses = order(request=REQUEST | {"note": [{"text": "x"}] * 23}).losses
    assert [(loss.source, loss.reason[:7]) for loss in losses] == [("ServiceRequest.note", "3 notes")]


def test_an_order_without_number_or_reason_or_with_one_too_many_is_never_sent() -> None:
    for changes, told in (
        ({"number": under_oid("", "")}, "must have a number"),
        ({"request": {}}, "no reason to ask"),
        ({"reason": "x"}, "goes with a cancellation"),
        ({"control_id": ""}, "MSH-10"),
    ):
        with pytest.raises(ValueError, match=told):
            order(**changes)


def about(code: str, text: str) -> dict[str, Any]:
    return {"extension": [{"url": COMMENT, "valueCode": code}], "text": text}


def test_a_note_that_says_what_it_is_about_goes_to_the_place_the_profile_has_for_it() -> None:
    notes = [about("MODALITE_IMAGERIE", "Sans injection"), about("FINALITE_EXAMEN", "Bilan"), about("AUTRE", "x"),
             {"text": "Terme : 22 SA"}]  # fmt: skip
    made = order(request=REQUEST | {"note": notes})
    msg = parse(made.value)
    assert check(msg) == [] and msg.at("MSH-21").encoded == "1.0^CISIS_TLR_HL7_V2"
    assert [segment.name for segment in msg.segments][4:] == ["OBR", "NTE", "NTE", "NTE", "OBX", "NTE", "OBX"]
    assert [(nte.text(1), nte.text(3), nte.field(4).encoded) for nte in msg.all("NTE")] == [
        ("1", "Bilan", "FINALITE_EXAMEN^^HL70364"), ("2", "x", ""), ("3", "Terme : 22 SA", ""),
        ("1", "Sans injection", "MODALITE_IMAGERIE^^HL70364"),
    ]  # fmt: skip
    (read,) = orders(msg, SITE).value.orders
    assert read.request.resource["note"] == [notes[1], {"text": "x"}, notes[3], notes[0]]
    bare = parse(order(request=REQUEST | {"note": notes[:1], "orderDetail": []}).value)
    left = [(nte.text(3), nte.text(4)) for nte in bare.all("NTE")]
    assert left == [("Sans injection", "")], "there is nothing for it to stand behind"


def test_hostile_text_of_an_order_stays_in_its_field() -> None:
    evil = "a|b^c\rMSH|^~\\&|EVIL"
    msg = parse(order(request=REQUEST | {"reasonCode": [{"text": evil}], "note": [{"text": evil}] * 50}).value)
    assert len(msg.all("MSH")) == 1 and msg.text("OBR-13") == evil and len(msg.all("NTE")) == 20
