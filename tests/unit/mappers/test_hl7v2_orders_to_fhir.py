"""Asking, taking back and completing by HL7 v2: the téléradiologie profile as draft requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from adt_samples import DATA, SITE, reasons, sample

from hl7v2.check import check, errors
from hl7v2.message import Message, parse
from mappers.hl7v2_ins_to_fhir import Refused
from mappers.hl7v2_orders_to_fhir import ACTIONS, COMMENT, EXAMINATION, PROCEDURES, Order, orders
from profiles.validator import structure

ASKING = sample("orm-o01-tlr-demande")


def one(msg: Message = ASKING) -> Order:
    return orders(msg, SITE).value.orders[0]


def test_a_request_becomes_a_draft_that_says_what_is_missing() -> None:
    said = orders(ASKING, SITE).value
    made = one()
    assert (made.action, made.placer) == ("request", (("urn:oid:2.25.4720", "DEM-2026-90"),))
    request = made.request.resource
    assert (request["status"], request["intent"], request["priority"]) == ("draft", "order", "stat")
    assert request["reasonCode"] == [{"text": "Métrorragies au 2e trimestre"}]
    assert request["requester"]["identifier"]["value"] == "99900000029"
    purpose = [{"url": COMMENT, "valueCode": "FINALITE_EXAMEN"}]
    assert request["note"] == [{"extension": purpose, "text": "Éliminer un placenta bas inséré"}]
    assert request["authoredOn"] == "2026-03-02T09:30:00+01:00"
    assert [fact for fact, _ in made.missing] == ["consent", "question"]
    assert said.patient.ins is not None and said.encounter_ids == (("urn:oid:2.25.4712", "V2026-0417"),)


def test_what_an_order_says_of_the_examination_and_the_patient_is_kept_apart() -> None:
    made = one()
    assert [(code, value["coding"][0]["code"]) for code, value in made.details] == [
        ("MODALITE_IMAGERIE", "US"), ("REGION_ANATOMIQUE", "12921003"),
    ]  # fmt: skip
    assert [built.resource["code"]["coding"][0]["code"] for built in made.observations] == ["29463-7", "11322-5"]
    assert made.observations[0].resource["valueQuantity"]["value"] == 68


def test_what_is_said_about_the_modality_is_a_note_as_well() -> None:
    rows = [line for line in ASKING.raw.split(b"\r") if line]
    place = next(number for number, line in enumerate(rows) if b"MODALITE_IMAGERIE" in line) + 1
    rows.insert(place, b"NTE|1||Sans injection|MODALITE_IMAGERIE^^HL70364")
    rows.insert(place + 1, b"NTE|2||Voie haute|RE")
    said = one(parse(b"\r".join(rows))).request.resource["note"]
    kinds = [[part["valueCode"] for part in note.get("extension", ())] for note in said]
    assert [note["text"] for note in said[1:]] == ["Sans injection", "Voie haute"]
    assert kinds == [["FINALITE_EXAMEN"], ["MODALITE_IMAGERIE"], []]


@pytest.mark.parametrize(("data", "address"), [("L3ZpZXdlci9BMQ==", "/viewer/A1"), ("%%", ""), ("//79", "")])
def test_the_address_of_the_viewer_is_read_as_the_guide_writes_it(data: str, address: str) -> None:
    plain = sample("omi-o23-tlr-complement")
    row = b"OBX|1|ED|URL_PARTIELLE_VIEWER^x^TLR_OBSERVATION||^TEXT^^Base64^" + data.encode() + b"||||||F"
    old = next(line for line in plain.raw.split(b"\r") if b"URL_PARTIELLE_VIEWER" in line)
    msg = parse(plain.raw.replace(old, row))
    assert one(msg).viewer == address
    assert ("the address of the viewer" in reasons(orders(msg, SITE))) is (not address)


def test_who_and_why_are_missing_when_nobody_says_them() -> None:
    msg = ASKING.set("ORC-12", None).set("OBR-16", None).set("ORC-21", None).set("OBR-13", None).set("PID-7", None)
    assert [fact for fact, _ in one(msg).missing] == ["consent", "question", "requester", "reason", "birthDate"]
    structure_asks = one(ASKING.set("ORC-12", None).set("OBR-16", None))
    assert structure_asks.request.resource["requester"]["identifier"]["value"] == "990001234"


def test_a_cancellation_finds_its_request_and_says_why() -> None:
    made = one(sample("orm-o01-tlr-annulation"))
    assert (made.action, made.reason, made.missing) == ("cancel", "Patiente transférée", ())
    assert made.placer == one().placer and made.request.resource["status"] == "revoked"


def test_a_complement_names_the_study_the_accession_and_the_viewer() -> None:
    made = one(sample("omi-o23-tlr-complement"))
    assert made.action == "complement" and made.study is not None
    assert (made.study.accession, made.study.uid) == (("urn:oid:2.25.4722", "ACN101"), "2.25.999001")
    assert (made.study.modality, made.viewer) == ("US", "/viewer/ACN101")
    hostile = one(sample("omi-o23-tlr-complement").set("IPC-3", "../../etc"))
    assert hostile.study is not None and hostile.study.uid == ""


def examined(msg: Message) -> dict[str, Any]:
    """The parts of the extension, by name."""
    said = one(msg).examination
    assert not said or said["url"] == EXAMINATION
    parts = said.get("extension", ())
    return {part["url"]: next(value for name, value in part.items() if name != "url") for part in parts}


def test_a_complement_says_when_the_examination_was_made_as_what_and_how_long_its_images_are_kept() -> None:
    omi = sample("omi-o23-tlr-complement")
    days = {"value": 730, "unit": "jours", "system": "http://unitsofmeasure.org", "code": "d"}
    assert examined(omi) == {
        "performed": "2026-03-02T18:44:18+01:00", "retention": days,
        "procedure": {"code": "24590-2"}, "step": {"code": "24590-2"},
    }  # fmt: skip
    coded = omi.set("IPC-2.3", "2.16.840.1.113883.6.1").set("IPC-4.3", "1.2.250.1.213.1.1.4.322")
    assert examined(coded)["procedure"] == {"system": "http://loinc.org", "code": "24590-2"}
    assert examined(coded)["step"] == {"system": "urn:oid:1.2.250.1.213.1.1.4.322", "code": "24590-2"}
    assert examined(omi.set("TQ1-6.2", None))["retention"] == days
    bare = parse(b"\r".join(line for line in omi.raw.splitlines() if line[:3] not in (b"TQ1", b"IPC")))
    assert one(bare).examination == {}
    assert one(sample("orm-o01-tlr-demande")).examination == {}, "what is asked is no examination yet"


@pytest.mark.parametrize(("kept", "unit"), [("2", "ans"), ("-1", "jours"), ("9" * 400, "jours"), ("²", ""), ("", "j")])
def test_a_time_that_is_no_number_of_days_is_told_and_not_carried(kept: str, unit: str) -> None:
    omi = sample("omi-o23-tlr-complement").set("TQ1-6.1", kept or None).set("TQ1-6.2", unit or None)
    assert "retention" not in examined(omi) and "performed" in examined(omi)
    assert "is no number of days and not carried" in reasons(orders(omi, SITE))


def test_a_moment_that_is_no_date_is_told_and_not_carried() -> None:
    omi = sample("omi-o23-tlr-complement").set("TQ1-7", "hier soir")
    assert "performed" not in examined(omi) and "retention" in examined(omi)
    assert "TQ1-7: 'hier soir' is no date" in reasons(orders(omi, SITE))


def test_a_measure_among_the_details_keeps_its_unit() -> None:
    row = "OBX|3|NM|PRODUIT_ADMINISTRE^Produit^TLR_OBSERVATION|1.3|15|ml|||||F\r"
    made = one(parse(sample("omi-o23-tlr-complement").raw.rstrip() + b"\r" + row.encode()))
    assert made.details[-1] == ("PRODUIT_ADMINISTRE", {"text": "15 ml", "id": "1.3"})


@pytest.mark.parametrize("path", sorted([*DATA.glob("orm-*.er7"), *DATA.glob("omi-*.er7")]), ids=lambda p: p.stem)
def test_every_order_is_valid_r4(path: Path) -> None:
    msg = parse(path.read_bytes())
    assert errors(check(msg)) == []
    for made in orders(msg, SITE).value.orders:
        said = {"extension": [made.examination]} if made.examination else {}
        whole = {**made.request.resource, "subject": {"reference": "Patient/1"}, **said}
        for resource in (whole, *(built.resource for built in made.observations)):
            assert [finding for finding in structure.check(resource) if finding.severity == "error"] == []


@pytest.mark.parametrize(("control", "procedure"), [("CA", "TRANSMISSION_DEMANDE"), ("NW", "ANNULATION_DEMANDE")])
def test_an_order_that_says_two_things_is_refused(control: str, procedure: str) -> None:
    with pytest.raises(Refused) as caught:
        one(ASKING.set("ORC-1", control).set("OBR-4.1", procedure))
    assert caught.value.location == "OBR^1^4"


@pytest.mark.parametrize(("where", "location"), [("PID", "PID^1"), ("ORC", "ORC^1")])
def test_an_order_without_its_segments_is_refused(where: str, location: str) -> None:
    lines = [line for line in ASKING.raw.split(b"\r") if not line.startswith(where.encode())]
    with pytest.raises(Refused) as caught:
        one(parse(b"\r".join(lines)))
    assert caught.value.location == location


def test_an_order_without_a_number_is_refused_and_an_unknown_control_is_only_told() -> None:
    with pytest.raises(Refused) as caught:
        one(ASKING.set("ORC-2", None).set("OBR-2", None))
    assert caught.value.location == "ORC^1^2"
    plain = ASKING.set("OBR-4.3", "LN")
    result = orders(plain.set("ORC-1", "LI"), SITE)
    assert result.value.orders[0].action == "other" and "asks for nothing we do" in reasons(result)


def test_several_orders_in_one_message_stay_apart_and_endless_ones_are_refused() -> None:
    raw = ASKING.raw + ASKING.raw[ASKING.raw.index(b"ORC|") :].replace(b"DEM-2026-90", b"DEM-2026-91")
    found = orders(parse(raw), SITE).value.orders
    assert [made.placer[0][1] for made in found] == ["DEM-2026-90", "DEM-2026-91"]
    assert [len(made.observations) for made in found] == [2, 2]
    with pytest.raises(Refused, match="more than 200"):
        orders(parse(ASKING.raw + b"ORC|NW|1\r" * 300), SITE)
    with pytest.raises(Refused, match="1000 observations"):
        orders(parse(ASKING.raw + b"OBX|1|ST|1^a^LN||x||||||F\r" * 1_100), SITE)


def test_the_procedures_of_the_guide_agree_with_the_order_controls() -> None:
    assert set(PROCEDURES.values()) <= set(ACTIONS.values())


@pytest.mark.parametrize(
    ("name", "control", "action"),
    [
        ("orm-o01-tlr-demande", "NW", "request"),
        ("orm-o01-tlr-demande", "XO", "request"),
        ("orm-o01-tlr-demande", "RP", "request"),
        ("orm-o01-tlr-annulation", "CA", "cancel"),
        ("orm-o01-tlr-annulation", "DC", "cancel"),
        ("omi-o23-tlr-complement", "SC", "complement"),
        ("omi-o23-tlr-complement", "SR", "complement"),
    ],
)
def test_every_order_control_of_a_flow_is_followed(name: str, control: str, action: str) -> None:
    msg = sample(name).set("ORC-1", control)
    assert errors(check(msg)) == [] and one(msg).action == action
    assert one(msg.set("OBR-4.3", "L")).action == action, "base HL7, without the procedures of the guide"
    assert control in ACTIONS
