"""What a sender deletes with `""` leaves the Patient, each field alone; so does every INS that may not stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hubs import SYSTEM, read
from sylve import INS, patient, row, say, sylve

from fhir_server.changes import Hub
from fhir_server.search import index
from fhir_server.store.engine import Store
from hl7v2.tables import ADT
from mappers.hl7v2_pid_to_fhir import BIRTH_DATE_CORRECTED, LUNAR_DATE

NUMBER = "000417"
LOCAL = f"{NUMBER}^^^CH-SYLVE&990001234&N^PI"
QUALIFIED = "284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
HELD = {
    3: LOCAL, 5: "LECOCQ-MARAIS^Noémie^Noémie Anne^^^^L", 7: "19840523", 8: "F", 11: "1 rue A^^VILLE^^99123^FRA^H",
    13: "^PRN^PH^^^^^^^^^0100000017", 14: "^WPN^PH^^^^^^^^^0100000018", 16: "M", 32: "PROV",
}  # fmt: skip


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return sylve(open_url(sqlite_url))


def message(control: str, fields: dict[int, str], trigger: str = "A31", prior: str = "", zfd: str = "") -> bytes:
    """An ADT of base HL7 with these fields of PID, MRG-1, and ZFD."""
    kind = f"ADT^{trigger}^{ADT[trigger].name}"
    head = f"MSH|^~\\&|GAM|CH-SYLVE|PASSERELLE|CH-SYLVE|20260302||{kind}|{control}|T|2.5|||||FRA|UNICODE UTF-8"
    pid = "|".join(["PID", *(fields.get(number, "") for number in range(1, 33))])
    merged = f"MRG|{prior}\r" if prior else ""
    about = f"{zfd}\r" if zfd else ""
    return f"{head}\rEVN||20260302\r{pid}\r{merged}{about}".encode()


def tell(hub: Hub, control: str, fields: dict[int, str], zfd: str = "") -> None:
    told = say(hub, message(control, fields, zfd=zfd))
    assert told.code == "AA", told


def of_birth(hub: Hub) -> tuple[object, ...]:
    """(birth date, lunar date, whether it was corrected) of the Patient."""
    held = patient(hub, NUMBER)
    said = {one["url"]: one.get("valueString", one.get("valueBoolean")) for one in held.get("extension", ())}
    return held.get("birthDate"), said.get(LUNAR_DATE), said.get(BIRTH_DATE_CORRECTED)


@pytest.mark.parametrize(
    ("field", "value", "element"),
    [
        (7, "19840523", "birthDate"),
        (8, "F", "gender"),
        (11, HELD[11], "address"),
        (13, HELD[13], "telecom"),
        (14, HELD[14], "telecom"),
        (16, "M", "maritalStatus"),
        (24, "Y", "multipleBirthBoolean"),
        (25, "2", "multipleBirthInteger"),
        (29, "20260301", "deceasedDateTime"),
        (30, "Y", "deceasedBoolean"),
    ],
)
def test_a_field_that_says_nothing_is_held_deletes_its_element(hub: Hub, field: int, value: str, element: str) -> None:
    others = {13: "", 14: ""} if element == "telecom" else {}
    tell(hub, "D1", HELD | others | {field: value})
    before = patient(hub, NUMBER)
    assert element in before
    tell(hub, "D2", HELD | others | {field: ""})
    assert patient(hub, NUMBER)[element] == before[element], "what is not said again stays"
    tell(hub, "D3", HELD | others | {field: '""'})
    after = patient(hub, NUMBER)
    assert element not in after
    kept = {name for name in before if name not in (element, "meta")}
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}


def test_one_of_two_fields_of_an_element_deletes_nothing_the_other_says(hub: Hub) -> None:
    tell(hub, "D1", HELD)
    tell(hub, "D2", HELD | {13: '""'})
    assert [point["value"] for point in patient(hub, NUMBER)["telecom"]] == ["0100000018"]


LUNAR = "ZFD|30^02^1984|||Y"


@pytest.mark.parametrize(
    ("birth", "zfd", "held"),
    [
        ('""', "", (None, None, None)),
        ('""', "ZFD|31^02^1984", (None, "31-02-1984", None)),
        ('""', "ZFD||||Y", (None, None, True)),
        ("", "", ("1984-05-23", "30-02-1984", True)),
        ("", 'ZFD|""', ("1984-05-23", None, True)),
        ("19840523", 'ZFD||||""', ("1984-05-23", "30-02-1984", None)),
        ('""', 'ZFD|""|||""', (None, None, None)),
    ],
)
def test_what_is_said_of_a_birth_date_is_deleted_with_it_or_alone(
    hub: Hub, birth: str, zfd: str, held: tuple[object, ...]
) -> None:
    tell(hub, "D1", HELD, LUNAR)
    assert of_birth(hub) == ("1984-05-23", "30-02-1984", True)
    tell(hub, "D2", HELD | {7: birth}, zfd)
    assert of_birth(hub) == held


def test_a_lunar_date_of_who_has_no_birth_date_outlives_its_deletion(hub: Hub) -> None:
    tell(hub, "D1", HELD | {7: '""'}, "ZFD|30^02^1984")
    tell(hub, "D2", HELD | {7: '""'})
    assert of_birth(hub) == (None, "30-02-1984", None), "no date left, so nothing that is about one does"


def test_the_birth_date_and_sex_of_a_qualified_identity_are_deleted_by_no_message_that_does_not_qualify_it(
    hub: Hub,
) -> None:
    tell(hub, "D1", HELD | {3: f"{LOCAL}~{QUALIFIED}", 32: "VALI"}, LUNAR)
    tell(hub, "D2", HELD | {7: '""', 8: '""', 16: '""', 32: ""}, 'ZFD|""|||""')
    assert of_birth(hub) == ("1984-05-23", "30-02-1984", True)
    held = patient(hub, NUMBER)
    assert held["gender"] == "female" and "maritalStatus" not in held
    note = row(hub, "D2").note
    assert "Patient.birthDate: the stored identity is qualified and this one is not: it is not deleted" in note
    assert "Patient.gender: the stored identity is qualified and this one is not: it is not deleted" in note
    tell(hub, "D3", HELD | {7: '""'})
    assert of_birth(hub) == (None, None, None), "PROV: it is qualified no longer"


def test_an_ins_is_deleted_by_a47_and_not_by_a31_as_long_as_the_identity_is_said_to_be_qualified(hub: Hub) -> None:
    tell(hub, "D1", HELD | {3: f"{LOCAL}~{QUALIFIED}", 32: "VALI"})
    held = patient(hub, NUMBER)
    assert INS in {one.get("system") for one in held["identifier"]}
    gone = HELD | {3: f'{LOCAL}~""^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS', 32: "VALI"}
    refused = say(hub, message("D2", gone))
    assert (refused.code, refused.errors[0].code) == ("AE", "102") and "A47" in refused.errors[0].text
    assert say(hub, message("D3", gone, "A47", QUALIFIED)).code == "AA"
    assert [one["value"] for one in read(hub, f"Patient/{held['id']}")["identifier"]] == [NUMBER]


@pytest.mark.parametrize("status", ["PROV", "VALI~DOUT", "FICT~VALI"])
def test_every_ins_leaves_an_identity_that_is_no_longer_qualified(hub: Hub, status: str) -> None:
    tell(hub, "D1", HELD | {3: f"{LOCAL}~{QUALIFIED}", 32: "VALI"})
    held = patient(hub, NUMBER)
    second = {"use": "official", "system": INS[:-1] + "1", "value": "284056912345640"}
    both = held | {"identifier": [*held["identifier"], second]}
    hub.store.write(SYSTEM, lambda tx: tx.update(both, index.rows(both)))
    tell(hub, "D2", HELD | {3: LOCAL, 32: status})
    assert [one["value"] for one in read(hub, f"Patient/{held['id']}")["identifier"]] == [NUMBER]
