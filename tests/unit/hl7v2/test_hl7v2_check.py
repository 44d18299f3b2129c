"""The located judgement of ADT and ZAM messages: base HL7 and the overlay PAM France."""

from __future__ import annotations

from pathlib import Path

import pytest

from hl7v2.check import check, errors, is_pam_fr, is_time
from hl7v2.message import Message, parse

DATA = Path(__file__).resolve().parents[2] / "data" / "hl7v2"
BROKEN = {"adt-a01-sans-nom.er7"}


def sample(name: str) -> Message:
    return parse((DATA / name).read_bytes().replace(b"\n", b"\r"))


def told(msg: Message) -> list[tuple[str, str, str]]:
    return [(finding.location, finding.code, finding.severity) for finding in check(msg)]


@pytest.mark.parametrize("path", sorted(DATA.glob("*.er7")), ids=lambda path: path.stem)
def test_our_good_samples_have_no_finding_at_all(path: Path) -> None:
    if path.name not in BROKEN:
        assert told(parse(path.read_bytes())) == []


@pytest.mark.needs("shared")
def test_the_national_samples_can_all_be_integrated(shared: Path) -> None:
    for path in sorted((shared / "ans-hl7v2").iterdir()):
        if path.suffix in (".er7", ".hl7"):
            assert errors(check(parse(path.read_bytes()))) == [], path.name


def test_a_broken_admission_is_told_where_and_why() -> None:
    assert told(sample("adt-a01-sans-nom.er7")) == [
        ("ZBE-4[1]", "103", "error"),
        ("PID-7", "102", "error"),
        ("PID-5[1].1", "101", "error"),
    ]


def test_a_finding_points_at_the_bytes() -> None:
    msg = sample("adt-a01-sans-nom.er7")
    finding = next(finding for finding in check(msg) if finding.location == "PID-7")
    assert msg.raw[slice(*finding.span)] == b"1984-05-23"
    assert finding.rule == "v2/PID-7/type"


GOOD = sample("adt-a01-admission.er7")


@pytest.mark.parametrize(
    ("where", "value", "location", "code"),
    [
        ("MSH-10", None, "MSH-10", "101"),
        ("MSH-11", None, "MSH-11", "101"),
        ("MSH-11", "X", "MSH-11[1]", "202"),
        ("MSH-12.1", "9.9", "MSH-12", "203"),
        ("PID-8", None, "PID-8", "101"),
        ("PID-8", "O", "PID-8[1]", "103"),
        ("PID-18", None, "PID-18", "101"),
        ("PID-32", None, "PID-32", "101"),
        ("PID-32[2]", "SURE", "PID-32[2]", "103"),
        ("PID-32", '""', "PID-32", "101"),
        ("PV1-2", "X", "PV1-2[1]", "103"),
        ("PV1-44", "hier", "PV1-44", "102"),
        ("ZBE-1", None, "ZBE-1", "101"),
        ("ZBE-2", None, "ZBE-2", "101"),
        ("ZBE-2", "20260230", "ZBE-2", "102"),
        ("ZBE-5", "J", "ZBE-5[1]", "103"),
        ("EVN-2", None, "EVN-2", "101"),
    ],
)
def test_each_rule_of_an_admission_is_located(where: str, value: str | None, location: str, code: str) -> None:
    assert (location, code) in [(finding.location, finding.code) for finding in errors(check(GOOD.set(where, value)))]


@pytest.mark.parametrize(
    ("where", "value", "location"),
    [
        ("ZBE-9", "XX", "ZBE-9[1]"),
        ("ZFA-1", "OUVERT", "ZFA-1[1]"),
        ("ZFA-9", "NON", "ZFA-9[1]"),
        ("PID-9", "ALIAS", "PID-9"),
        ("PID-10", "X", "PID-10"),
        ("MSH-9.3", "ADT_A05", "MSH-9[1].3"),
        ("MSH-17", None, "MSH-17"),
        ("PID-5.7", "D", "PID-5"),
        ("EVN-2", "demain", "EVN-2"),
    ],
)
def test_what_is_tolerated_is_a_warning(where: str, value: str | None, location: str) -> None:
    assert told(GOOD.set(where, value)) == [(location, told(GOOD.set(where, value))[0][1], "warning")]


@pytest.mark.parametrize("name", ["EVN", "PID", "PV1", "ZBE"])
def test_a_missing_segment_is_a_sequence_error(name: str) -> None:
    raw = b"\r".join(line for line in GOOD.raw.split(b"\r") if not line.startswith(name.encode()))
    assert (name, "100", "error") in told(parse(raw))


def test_segments_in_the_wrong_order_are_a_sequence_error() -> None:
    lines = GOOD.raw.split(b"\r")
    lines[1], lines[2] = lines[2], lines[1]
    assert ("PID", "100", "error") in told(parse(b"\r".join(lines)))


def test_lines_that_are_no_segments_and_second_messages_are_told() -> None:
    assert ("MSH", "100", "error") in told(parse(GOOD.raw + b"lorem ipsum\r"))
    assert ("MSH[2]", "100", "error") in told(parse(GOOD.raw + GOOD.raw))
    assert ("PID[2]", "198", "error") in told(parse(GOOD.raw + GOOD.segments[2].raw + b"\r"))


def test_without_the_french_overlay_only_base_hl7_is_demanded() -> None:
    raw = b"MSH|^~\\&|A|B|||20260302||ADT^A04|1|P|2.3\rEVN|A04|20260302\rPID|||1||NOM^P\rPV1||O\r"
    msg = parse(raw)
    assert not is_pam_fr(msg)
    assert [row for row in told(msg) if row[2] == "error"] == []
    assert [row[:2] for row in told(parse(raw.replace(b"NOM^P", b"^P"))) if row[2] == "error"] == [
        ("PID-5[1].1", "101")
    ]
    assert ("PV1-2", "101", "error") in told(parse(raw.replace(b"PV1||O", b"PV1||")))


def test_identity_messages_need_no_stay_and_merges_need_the_old_identifier() -> None:
    raw = sample("adt-a28-creation-provisoire.er7").raw
    assert told(parse(raw.replace(b"PV1|1|N\r", b""))) == []
    merge = sample("adt-a40-fusion.er7").raw
    assert ("MRG", "100", "error") in told(parse(merge[: merge.index(b"MRG|")]))


def test_the_result_of_a_business_ack_needs_its_message_and_a_known_code() -> None:
    msg = sample("zam-z02-boite-pleine.er7")
    assert [row[:2] for row in told(msg.set("OBX-4", None))] == [("OBX[1]-4", "101")]
    assert [row[:2] for row in told(msg.set("OBX[2]-3", "AUTRE"))] == [("OBX[2]-3[1]", "103")]


def test_an_unknown_type_is_judged_by_its_header_only() -> None:
    assert told(parse(b"MSH|^~\\&|A|B|||20260302||XYZ^S12|1|P|2.5\rABC|1\r")) == []


def test_odd_delimiters_are_told() -> None:
    assert told(parse(b"MSH|^~\\|A|B|||20260302||ACK|1|P|2.5\rMSA|AA|1\r"))[0][:2] == ("MSH-2", "102")


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("2026", True),
        ("202603", True),
        ("20260302", True),
        ("2026030208", True),
        ("202603020830", True),
        ("20260302083011", True),
        ("20260302083011.1234+0100", True),
        ("20240229", True),
        ("20260302+1400", True),
        ("20260302-1200", True),
        ("20260302+1401", False),
        ("20260302-1230", False),
        ("20260302+0160", False),
        ("20260302083011+9999", False),
        ("20250229", False),
        ("20261301", False),
        ("20260300", False),
        ("0000", False),
        ("2026-03-02", False),
        ("202603022400", False),
        ("20260302T0830", False),
        ("٢٠٢٦", False),
        ("", False),
    ],
)
def test_dates_and_times(text: str, valid: bool) -> None:
    assert is_time(text) is valid


def test_more_parts_than_are_read_are_a_finding_at_their_place() -> None:
    for place in ("PID-5", "MSH-21"):
        raw = GOOD.set(place, "X").raw
        start = parse(raw).at(place).start
        found = check(parse(raw[:start] + b"~" * 20_000 + raw[start:]))
        assert (place, "198") in [(one.location, one.code) for one in errors(found)]


@pytest.mark.parametrize(("told", "known"), [("T^T", True), ("T^A", True), ("T", True), ("T^X", False), ("T^P", False)])
def test_the_processing_mode_is_one_of_its_table(told: str, known: bool) -> None:
    value = GOOD.at("MSH-11")
    raw = GOOD.raw[: value.start] + told.encode() + GOOD.raw[value.end :]
    found = [(one.location, one.code) for one in errors(check(parse(raw)))]
    assert found == ([] if known else [("MSH-11[1].2", "202")])


def test_a_hostile_message_gives_a_bounded_list() -> None:
    body = b"".join(b"OBX|%d|CWE|X^Y^Z||Q\r" % number for number in range(50_000))
    head = sample("zam-z01-dmp-ok.er7").raw.split(b"OBX")[0]
    assert len(check(parse(head + body))) <= 100
    repeats = GOOD.raw.replace(b"PID|1||", b"PID|1||" + b"~" * 200_000)
    assert ("PID-3", "198", "error") in told(parse(repeats))
