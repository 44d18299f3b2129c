"""The INS of a message: kept with a validated identity, read in its spellings, refused where it may not be."""

from __future__ import annotations

import pytest
from adt_samples import ADMISSION, PRODUCTION, TEST_INS, mapped, reasons, status

from hl7v2.message import Message, parse
from mappers.hl7v2_to_fhir import Refused
from mappers.ins import key_of


def test_the_key_of_the_ins_follows_its_published_example_and_corsica() -> None:
    assert key_of("2790351215189") == "89"
    assert key_of("188112A004025") == key_of("1881119004025") == "06"
    assert key_of("188112B004025") == key_of("1881118004025")


@pytest.mark.parametrize(
    ("statuses", "kept", "shown"),
    [
        ("VALI", True, "VALI"),
        ("VALI~HOMD", True, "VALI"),
        ("HOMD~VALI", True, "VALI"),
        ("PROV", False, "PROV"),
        ("VALI~DOUT", False, "DOUT"),
        ("FICT~VALI", False, "FICT"),
        ("", False, ""),
        ('""', False, ""),
    ],
)
def test_the_ins_is_kept_only_with_a_validated_identity(statuses: str, kept: bool, shown: str) -> None:
    raw = ADMISSION.raw.replace(b"|N|VALI|", f"|N|{statuses}|".encode())
    result = mapped(parse(raw))
    assert (result.value.ins == TEST_INS) is kept
    systems = [identifier.get("system") for identifier in result.value.patient["identifier"]]
    assert (TEST_INS[0] in systems) is kept
    assert status(result.value.patient) == shown
    assert ("the INS is not kept" in reasons(result) or "it is not kept" in reasons(result)) is not kept
    assert ("meta" in result.value.patient) is kept


def with_ins(cx: str) -> Message:
    sent = b"284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
    return parse(ADMISSION.raw.replace(sent, cx.encode()))


@pytest.mark.parametrize(
    ("cx", "ins", "told"),
    [
        ("284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.8&ISO^INS", "INS-NIR", ""),
        ("284056912345640^^^ASIP-SANTE-INS-NIA&1.2.250.1.213.1.4.9&ISO^INS", "INS-NIA", ""),
        ("284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.11&ISO^INS", "INS-NIR-DEMO", ""),
        ("2840569123456^40^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS", "INS-NIR-TEST", "came apart"),
        ("284056912345640^^^1.2.250.1.213.1.4.10^INS", "INS-NIR-TEST", "is written"),
        ("284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^^^20200101", "INS-NIR-TEST", "CX-7"),
        ("2 84 05 69 123 456 40^^^X&1.2.250.1.213.1.4.10&ISO^INS", "INS-NIR-TEST", ""),
        ("284056912345699^^^X&1.2.250.1.213.1.4.10&ISO^INS", "INS-NIR-TEST", "40 was expected"),
        ("27707279035121518989^^^X&1.2.250.1.213.1.4.10&ISO^INS", "", "13 characters"),
        ("284056912345640^^^HOPITAL&1.2.3&ISO^INS", "", "none of the national ones"),
        ("284056912345640^^^^INS", "", "none of the national ones"),
        ('""^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS', "", ""),
    ],
)
def test_the_ins_is_read_in_the_spellings_that_occur(cx: str, ins: str, told: str) -> None:
    result = mapped(with_ins(cx))
    codes = [
        identifier["type"]["coding"][0]["code"]
        for identifier in result.value.patient["identifier"]
        if identifier["use"] == "official"
    ]
    assert codes == ([ins] if ins else [])
    assert (result.value.ins is not None) is bool(ins)
    assert told in reasons(result)


def test_an_ins_to_delete_is_told_as_such() -> None:
    result = mapped(with_ins('""^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS')).value
    assert result.ins is None
    assert result.nulls == ("PID-3[2]",)


def test_two_different_ins_are_none() -> None:
    two = "284056912345640^^^A&1.2.250.1.213.1.4.10&ISO^INS~188112A00402506^^^A&1.2.250.1.213.1.4.10&ISO^INS"
    result = mapped(with_ins(two))
    assert result.value.ins is None
    assert "two different INS" in reasons(result)


@pytest.mark.parametrize("oid", ["1.2.250.1.213.1.4.8", "1.2.250.1.213.1.4.9"])
@pytest.mark.parametrize("value", ["284056912345699", "123"])
def test_a_real_ins_with_a_wrong_key_is_refused_with_its_place(oid: str, value: str) -> None:
    with pytest.raises(Refused) as caught:
        mapped(with_ins(f"{value}^^^ASIP-SANTE-INS-NIR&{oid}&ISO^INS"))
    assert (caught.value.location, caught.value.condition) == ("PID^1^3^2^1", "102")


# --- production and test -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("oid", ["1.2.250.1.213.1.4.10", "1.2.250.1.213.1.4.11"])
@pytest.mark.parametrize("statuses", ["VALI", "PROV"])
def test_a_production_site_refuses_test_and_demo_ins_whatever_the_status(oid: str, statuses: str) -> None:
    msg = with_ins(f"284056912345640^^^A&{oid}&ISO^INS").set("MSH-11", "P").set("PID-32", statuses)
    with pytest.raises(Refused) as caught:
        mapped(msg, PRODUCTION)
    assert (caught.value.location, caught.value.code) == ("PID^1^3^2^4", "value")


@pytest.mark.parametrize("code", ["T", "D", None])
def test_a_production_site_takes_production_messages_only(code: str | None) -> None:
    with pytest.raises(Refused) as caught:
        mapped(ADMISSION.set("MSH-11", code), PRODUCTION)
    assert (caught.value.location, caught.value.condition) == ("MSH^1^11", "202")


def test_a_production_site_takes_a_real_ins() -> None:
    real = with_ins("284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.8&ISO^INS").set("MSH-11", "P")
    assert mapped(real, PRODUCTION).value.ins == ("urn:oid:1.2.250.1.213.1.4.8", "284056912345640")


def test_a_production_message_on_a_test_site_is_noted() -> None:
    assert "production message on a test site" in reasons(mapped(ADMISSION.set("MSH-11", "P")))
