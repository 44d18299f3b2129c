"""What a hostile or broken system sends is read without surprises: a finding or a ValueError, nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance import wire_dicom, wire_fhir, wire_mllp
from conformance.verdict import Failed

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ue000\ue001"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT | st.sampled_from(["72.50", "1e2", "0.000000100", "-0.0"]).map(
        wire_fhir.Lexeme
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_json_survives_writing_and_reading(value: object) -> None:
    assert wire_fhir.from_json(wire_fhir.to_json(value)) == value


@given(JSON)
def test_what_is_equal_has_no_differences(value: object) -> None:
    assert list(wire_fhir.differences(value, wire_fhir.from_json(wire_fhir.to_json(value)))) == []


@pytest.mark.parametrize(
    ("sent", "got", "told"),
    [
        (b'{"a":72.50}', b'{"a":72.5}', "a: 72.50 came back as 72.5"),
        (b'{"a":72.50}', b'{"a":"72.50"}', "a: 72.50 came back as '72.50'"),
        (b'{"a":1}', b'{"a":true}', "a: 1 came back as True"),
        (b'{"a":{"b":1}}', b'{"a":{}}', "a.b is gone"),
        (b'{"a":[1,2]}', b'{"a":[1]}', "a: not a list of 2 but [1]"),
        (b'{"a":{"b":1}}', b'{"a":7}', "a: not an object but 7"),
        (b'{"a":"\xc3\xa9"}', b'{"a":"?"}', "a: 'é' came back as '?'"),
    ],
)
def test_a_difference_is_told_by_its_place(sent: bytes, got: bytes, told: str) -> None:
    assert list(wire_fhir.differences(wire_fhir.from_json(sent), wire_fhir.from_json(got))) == [told]


@pytest.mark.parametrize("got", [b"0.000000100", b"1.00e-7", b"1.00E-7"])
def test_another_notation_of_the_same_precision_is_no_difference(got: bytes) -> None:
    assert list(wire_fhir.differences(wire_fhir.Lexeme("0.000000100"), wire_fhir.from_json(got))) == []


def test_what_a_server_adds_is_no_difference() -> None:
    assert list(wire_fhir.differences({"a": 1}, {"a": 1, "id": "x", "meta": {}})) == []


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://x/fhir/Patient/1/_history/2", ("Patient", "1", "2")),
        ("Patient/1", ("Patient", "1", "")),
        ("/fhir/Patient/a-b.c/_history/2/", ("Patient", "a-b.c", "2")),
        ("urn:uuid:6ed27746-b347-412b-b858-df01fe6dd214", ("", "", "")),
        ("", ("", "", "")),
        ("http://x/fhir/Patient", ("", "", "")),
    ],
)
def test_a_location_is_taken_apart(url: str, parts: tuple[str, str, str]) -> None:
    assert wire_fhir.split_location(url) == parts


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"NaN", b"{" * 200_000, b'{"a":' * 100_000, b'"x"'])
def test_a_body_that_is_no_json_object_is_a_finding(body: bytes) -> None:
    with pytest.raises(Failed):
        wire_fhir.Answer(200, {}, body).json()


@pytest.mark.parametrize(
    "body",
    [b'{"resourceType":"Patient"}', b'{"resourceType":"OperationOutcome"}',
     b'{"resourceType":"OperationOutcome","issue":[]}', b'{"resourceType":"OperationOutcome","issue":[{}]}',
     b'{"resourceType":"OperationOutcome","issue":["x"]}', b'{"resourceType":"OperationOutcome","issue":{"a":1}}'],
)  # fmt: skip
def test_an_outcome_without_a_proper_issue_is_a_finding(body: bytes) -> None:
    with pytest.raises(Failed):
        wire_fhir.Answer(400, {}, body).outcome()


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"MSH|^~\\&|" + tail))
def test_any_bytes_are_an_acknowledgement_or_a_finding(content: bytes) -> None:
    try:
        ack = wire_mllp.read_ack(content)
    except Failed:
        return
    assert ack.code
    assert ack.summary()
    assert isinstance(ack.components("ERR", 2), list)


def test_fields_of_an_acknowledgement_have_the_numbers_of_the_standard() -> None:
    ack = wire_mllp.read_ack(b"MSH|^~\\&|A|B|C|D|2024||ACK^A01^ACK|9|D|2.5\rMSA|AE|7\rERR||PID^1^3|101^x|E\r")
    assert (ack("MSH", 1), ack("MSH", 3), ack("MSH", 10)) == ("|", "A", "9")
    assert (ack.code, ack.control_id) == ("AE", "7")
    assert ack.components("ERR", 2) == ["PID", "1", "3"]
    assert (ack("ERR", 99), ack("ZZZ", 1)) == ("", "")
    assert ack.summary() == "MSA|AE|7 / ERR||PID^1^3|101^x|E"


def test_an_acknowledgement_with_other_separators_is_read() -> None:
    ack = wire_mllp.read_ack(b"MSH#*~\\&#A#B#C#D#2024##ACK*A01#9#D#2.5\rMSA#AA#7\r")
    assert ack.components("MSH", 9) == ["ACK", "A01"]


@given(st.binary(max_size=300))
def test_any_bytes_are_dicom_or_a_value_error(data: bytes) -> None:
    for read in (wire_dicom.read_command, wire_dicom.read_accept, lambda d: list(wire_dicom.read_pdvs(d))):
        try:
            read(data)
        except ValueError:
            continue


@given(st.binary(max_size=500), st.integers(1, 100), st.booleans())
def test_values_put_together_give_the_bytes_that_were_cut(data: bytes, size: int, is_command: bool) -> None:
    values = wire_dicom.pdvs(3, data, is_command=is_command, size=size)
    found = list(wire_dicom.read_pdvs(b"".join(values)))
    assert b"".join(content for _, _, _, content in found) == data
    assert [last for _, _, last, _ in found] == [False] * (len(found) - 1) + [True]
    assert {(context, kind) for context, kind, _, _ in found} == {(3, is_command)}


def test_another_library_reads_the_command_set() -> None:
    from io import BytesIO

    from pydicom.filereader import read_dataset

    data = wire_dicom.command({0x0002: "1.2.840.10008.1.1", 0x0100: 0x0030, 0x0110: 7, 0x0800: 0x0101})
    found = read_dataset(BytesIO(data), is_implicit_VR=True, is_little_endian=True)
    assert found[0x0000, 0x0000].value == len(data) - 12
    assert found[0x0000, 0x0002].value == "1.2.840.10008.1.1"
    assert found[0x0000, 0x0110].value == 7
    assert wire_dicom.read_command(data)[0x0100] == 0x0030
