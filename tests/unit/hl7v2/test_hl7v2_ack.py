"""Acknowledgements for any bytes, and reading what partners answer."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hl7v2 import ack
from hl7v2.ack import Ack, AckError, build, control_id_of, erl, read
from hl7v2.frames import wrap
from hl7v2.message import Unreadable, parse
from hl7v2.write import lines

DATA = Path(__file__).resolve().parents[2] / "data" / "hl7v2"
NOW = datetime(2026, 3, 2, 8, 30, 15, tzinfo=UTC)
ADT = (DATA / "adt-a01-admission.er7").read_bytes()


def answer(raw: bytes, code: Any = "AA", **more: Any) -> bytes:
    return build(raw, code, now=NOW, control_id="PASSERELLE0000000001", **more)


def test_an_acceptance_swaps_the_names_and_copies_what_it_must() -> None:
    assert list(lines(answer(ADT))) == [
        b"MSH|^~\\&|PASSERELLE|CH-SYLVE|GAM|CH-SYLVE|20260302083015+0000||ACK^A01^ACK|PASSERELLE0000000001|T"
        b"|2.5^FRA^2.11|||||FRA|UNICODE UTF-8",
        b"MSA|AA|SYL0000000000000001",
    ]


_PIECES = (
    *("", " ", "GAM", "A^B&C^ISO", "a~b", '""', "^^", " x ^ y ", "\\T\\", "#", "é", "\t", "M" * 1100),
    *("2.1", "2.5^FRA^2.11", "2.7", "ADT^A01^ADT_A01", "8859/15", "8859/1~UNICODE", "UNICODE UTF-16"),
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from(_PIECES) | st.text("AB^~&\\ 12.é", max_size=4), max_size=20),
    st.sampled_from(["\r", "\n", "\r\nPID|1\r", ""]),
    st.sampled_from(["AA", "CA"]),
)
def test_an_acceptance_written_from_a_pattern_is_the_one_that_is_written_anew(
    fields: list[str], end: str, code: Any
) -> None:
    raw = ("MSH|^~\\&|" + "|".join(fields) + end).encode()
    anew = answer(b" " + raw, code)  # a message that does not begin with its header has no pattern
    assert answer(raw, code) == anew == answer(raw, code)
    if control_id_of(raw) and "é" not in raw.decode():
        assert read(anew).control_id == control_id_of(raw)


def test_answers_to_headers_that_differ_in_time_and_control_id_share_their_pattern() -> None:
    answer(ADT)
    before = ack._pattern.cache_info()
    later = ADT.replace(b"SYL0000000000000001", b"X1").replace(b"|20260302083000||ADT", b"|20260302083001||ADT")
    assert later != ADT and read(answer(later)).control_id == "X1"
    after = ack._pattern.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


def test_an_error_is_located_coded_and_explained() -> None:
    raw = answer(ADT, "AE", text="the family name is missing", err_location="PID-5[1].1", err_code="101")
    assert list(lines(raw))[1:] == [
        b"MSA|AE|SYL0000000000000001",
        b"ERR||PID^1^5^1^1|101^Required field missing^messageErrorCondition|E||||the family name is missing",
    ]
    assert read(raw) == Ack(
        "AE", "SYL0000000000000001", "the family name is missing",
        (AckError("PID^1^5^1^1", "101", "the family name is missing"),), "PASSERELLE0000000001",
    )  # fmt: skip


def test_every_finding_becomes_an_err_up_to_twenty() -> None:
    many = [AckError(f"OBX[{n}]-5", "102", "no date") for n in range(1, 40)]
    told = read(answer(ADT, "AE", errors=many)).errors
    assert len(told) == 20
    assert told[2].location == "OBX^3^5"
    assert read(answer(ADT, "AA", errors=many)).errors == ()


def test_a_refusal_without_a_code_is_an_application_error() -> None:
    told = read(answer(ADT, "AR", text="not now"))
    assert (told.code, told.errors[0].code, told.errors[0].location) == ("AR", "207", "")
    assert read(answer(ADT, "AE", text="x", err_code="4711")).errors[0].code == "207"
    assert [error.code for error in read(answer(ADT, "AE")).errors] == ["207"]


def test_given_errors_stand_alone_so_that_the_first_err_is_located() -> None:
    given_errors = [AckError("PID-3", "101", "required")]
    assert [e.location for e in read(answer(ADT, "AE", text="two faults", errors=given_errors)).errors] == ["PID^1^3"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"garbage", b"MSH", b"MSH|", b"\x00" * 1000, b"PID|1\r", b"MSH|^~\\&", b"\xff\xfeM\x00S\x00H\x00|\x00"],
)
def test_bytes_without_a_readable_header_are_answered_too(raw: bytes) -> None:
    told = read(answer(raw, "AE", err_code="100", text="no MSH"))
    assert (told.code, told.control_id) == ("AE", "")
    assert parse(answer(raw)).get("MSH-9") == "ACK"


def test_the_header_is_enough_even_when_the_rest_is_broken() -> None:
    broken = b"\0\r\n" + ADT.split(b"\n")[0] + b"\r\xff\xff\x0b\x1c|||^^^~~~"
    assert read(answer(broken, "AE", err_code="100")).control_id == "SYL0000000000000001"


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"MSH|^~\\&|", b"MSH|^~\\&|A|B|C|D|1||ADT^A01|"]))
def test_any_bytes_are_answered_with_a_message_that_fits_a_frame(tail: bytes, head: bytes) -> None:
    raw = answer(head + tail, "AR", text=tail.decode("latin-1"))
    wrap(raw)
    assert read(raw).code == "AR"
    assert len(parse(raw).segments) == 3


def test_the_answer_is_in_a_charset_the_partner_declared() -> None:
    latin = (DATA / "adt-a01-latin9.er7").read_bytes().replace(b"|GAM|", "|GÀM|".encode("iso8859-15"))
    raw = answer(latin, "AE", text="refusé", err_code="207")
    assert b"|8859/15\r" in raw
    assert "GÀM".encode("iso8859-15") in raw
    assert read(raw).text == "refusé"
    odd = ADT.replace(b"UNICODE UTF-8", b"UNICODE UTF-16")
    assert b"UNICODE UTF-8" in answer(odd)


def test_the_delimiters_of_the_message_are_translated_into_ours() -> None:
    raw = b"MSH#*%!$#A*1.2*ISO#B#C#D###ADT*A01*ADT_A01#id|1#P*T#2.6\r"
    assert next(lines(answer(raw))).startswith(b"MSH|^~\\&|C|D|A^1.2^ISO|B|")
    assert read(answer(raw)).control_id == "id|1"


def test_a_control_id_comes_back_as_it_was_sent() -> None:
    for sent in (b"ABC", b"a b", b"A^B", b"x\\T\\y", b"0015"):
        raw = ADT.replace(b"SYL0000000000000001", sent)
        assert answer(raw).split(b"MSA|AA|")[1] == sent + b"\r"
        assert read(answer(raw)).control_id == control_id_of(raw)


def test_a_giant_header_field_is_not_sent_back() -> None:
    raw = ADT.replace(b"SYL0000000000000001", b"X" * 60_000)
    assert len(answer(raw)) < 2_000
    assert len(answer(b"MSH|^~\\&|" + b"X" * 10_000_000)) < 2_000


@pytest.mark.parametrize(("version", "kind"), [("2.1", b"ACK^A01|"), ("2.3", b"ACK^A01|"), ("2.4", b"ACK^A01^ACK|")])
def test_versions_before_2_5_get_the_old_err_and_msa_3(version: str, kind: bytes) -> None:
    raw = answer(ADT.replace(b"2.5^FRA^2.11", version.encode()), "AE", text="no", err_code="101", err_location="PID-3")
    assert kind in raw
    assert raw.endswith(b"MSA|AE|SYL0000000000000001|no\rERR|PID^1^3^101&Required field missing\r")
    told = read(raw)
    assert (told.text, told.errors[0].code) == ("no", "101")


@pytest.mark.parametrize(
    ("location", "wanted"),
    [
        ("PID", "PID^1"),
        ("PID-3", "PID^1^3"),
        ("PID-3[2]", "PID^1^3^2"),
        ("PID-5.1", "PID^1^5^1^1"),
        ("PID-3[2].4.2", "PID^1^3^2^4^2"),
        ("OBX[3]-5", "OBX^3^5"),
        ("MSH^1^12", "MSH^1^12"),
        ("MSH", "MSH^1"),
        ("nonsense", ""),
        ("", ""),
    ],
)
def test_locations_are_written_as_erl(location: str, wanted: str) -> None:
    assert erl(location) == wanted


@pytest.mark.needs("shared")
def test_the_national_acknowledgement_is_read(shared: Path) -> None:
    told = read((shared / "ans-hl7v2" / "mdm-t10-ack.er7").read_bytes())
    assert (told.code, told.control_id, told.own_id) == ("AA", "015", "016")


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"MSH|^~\\&|A|B|C|D|1||ACK|9|P|2.3\nMSA|aa|1|fine\n", ("AA", "1", "fine")),
        (b"MSH|^~\\&|A|B|C|D|1||ACK^Z9^ACK|9|P|2.6\rMSA|AE|1\rERR||MSH^1^12|203^ Unsupported version^x| E\r",
         ("AE", "1", "Unsupported version")),
        (b"MSH|^~\\&|A|B|C|D|1||ACK|9|P|2.6\rMSA|AE|1\rERR||PID^1^3|207^App^x|E|902^Patient inconnu^y\r",
         ("AE", "1", "Patient inconnu")),
        ("MSH|^~\\&|A|B|C|D|1||ACK|9|P|2.6||||||8859/15\rMSA|AR|1|réessayez".encode("iso8859-15"),
         ("AR", "1", "réessayez")),
    ],
)  # fmt: skip
def test_answers_of_every_style_are_read(raw: bytes, wanted: tuple[str, str, str]) -> None:
    told = read(raw)
    assert (told.code, told.control_id, told.text) == wanted


@pytest.mark.parametrize("raw", [b"", b"OK", b"MSH|^~\\&|A|B\r", b"MSH|^~\\&|A|B\rMSA||1\r", b"\x06"])
def test_what_is_no_answer_is_refused(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        read(raw)
