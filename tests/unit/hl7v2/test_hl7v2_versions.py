"""Base HL7 of each version: what passes, and what is told with path, bytes and rule."""

from __future__ import annotations

import pytest

from hl7v2 import tables, versions
from hl7v2.check import Finding, check, errors
from hl7v2.message import parse


def message(version: str, kind: str = "ORU^R01", body: bytes = b"") -> bytes:
    return (
        f"MSH|^~\\&|A|B|C|D|20260302083000||{kind}|M1|P|{version}\r".encode()
        + b"EVN|A01|20260302083000\rPID|1||1^^^B||NOM^PRENOM\rPV1|1|I\r"
        + (body or b"ORC|RE\rOBR|1|||1-8^x^LN\rOBX|1|ST|1-8^x^LN||texte||||||F\r")
    )


def told(raw: bytes) -> list[Finding]:
    return [finding for finding in check(parse(raw)) if finding.rule.startswith("v2/")]


@pytest.mark.parametrize("version", versions.ORDER)
def test_a_message_of_each_version_passes(version: str) -> None:
    assert told(message(version)) == []


@pytest.mark.parametrize("version", versions.ORDER)
def test_a_message_of_each_version_fails_where_it_leaves_out_what_is_required(version: str) -> None:
    raw = message(version).replace(b"OBR|1|||1-8^x^LN", b"OBR|1").replace(b"OBX|1|ST|1-8^x^LN", b"OBX|1|ST|")
    found = told(raw)
    assert [(one.location, one.rule, one.code) for one in found] == [
        ("OBR-4", "v2/OBR-4/required", "101"),
        ("OBX-3", "v2/OBX-3/required", "101"),
    ]
    assert found[1].span == (raw.index(b"OBX|1|ST|") + 9,) * 2 and errors(found) == []


@pytest.mark.parametrize(
    ("version", "body", "location"),
    [
        ("2.1", b"OBX|1|ST|a||b\r", None),
        ("2.2", b"OBX|1|ST|a||b\r", "OBX-11"),
        ("2.3.1", b"OBX|1||a||b||||||F\r", "OBX-2"),
        ("2.4", b"OBX|1||a||b||||||F\r", None),
        ("2.6", b"PRT||\r", None),
        ("2.7", b"PRT||UC||\r", "PRT-4"),
        ("2.3", b"SCH|1|2||||x||||||||||c||||e\r", "SCH-11"),
        ("2.5", b"SCH|1|2||||x||||||||||c||||e\r", None),
    ],
)
def test_a_field_is_required_from_one_version_to_another(version: str, body: bytes, location: str | None) -> None:
    assert [one.location for one in told(message(version, "XYZ^Z01", body))] == ([location] if location else [])


@pytest.mark.parametrize(
    ("version", "old", "new", "location"),
    [
        ("2.1", b"1^^^B", b"1^^^B~2^^^B", "PID-3[2]"),
        ("2.2", b"1^^^B", b"1^^^B~2^^^B", None),
        ("2.3", b"NOM^PRENOM", b"NOM^PRENOM~AUTRE^NOM", "PID-5[2]"),
        ("2.5", b"NOM^PRENOM", b"NOM^PRENOM~AUTRE^NOM", None),
        ("2.5", b"PV1|1|I", b"PV1|1|I|A~B", "PV1-3[2]"),
        ("2.8.2", b"PV1|1|I", b"PV1|1|I|A~B", "PV1-3[2]"),
        ("2.8.2", b"|texte|", b"|un~deux|", None),
    ],
)
def test_a_field_repeats_only_where_its_version_lets_it(version: str, old: bytes, new: bytes, location: str) -> None:
    raw = message(version).replace(old, new)
    found = told(raw)
    assert [(one.location, one.code) for one in found] == ([(location, "198")] if location else [])
    if found:
        assert raw[slice(*found[0].span)] == new.split(b"~")[1]


@pytest.mark.parametrize(("kind", "born"), [("ADT^A31", "2.2"), ("ADT^A40", "2.3"), ("ADT^A52", "2.4"),
                                            ("MDM^T02", "2.3"), ("OMI^O23", "2.5")])  # fmt: skip
def test_an_event_younger_than_the_version_is_told(kind: str, born: str) -> None:
    before = versions.ORDER[versions.ORDER.index(born) - 1]
    rules = [one.rule for one in told(message(before, kind)) if one.rule.endswith("/since")]
    assert rules == ["v2/MSH-9/since"]
    assert not [one for one in told(message(born, kind)) if one.rule.endswith("/since")]


def test_every_version_that_is_read_is_judged_and_every_event_has_a_table() -> None:
    assert set(versions.ORDER) == tables.VERSIONS
    assert {event.split("^")[1] for event in versions.SINCE} <= {c for t in tables.STRUCTURES.values() for c in t}


OTHERWISE = {"ORC-1 optional in 2.3.1"}
"""Where hl7apy says otherwise: its ORC of 2.3.1 requires nothing, chapter 4 of 2.3.1 requires ORC-1."""


def test_the_tables_agree_with_a_second_opinion() -> None:
    """hl7apy knows the same fields as required and as repeating, but for what it has wrong and we name here."""
    apy = pytest.importorskip("hl7apy")
    differing = set()
    for version in [one for one in versions.ORDER if one in apy.SUPPORTED_LIBRARIES]:
        segments = apy.load_library(version).SEGMENTS
        rank = versions.ORDER.index(version)
        for name in {*versions.REPEATING, *versions.REQUIRED} & set(segments):
            fields = {int(field[0].rpartition("_")[2]): field[2] for field in segments[name][1]}
            if name in versions.REPEATING:
                since = versions.REPEATING[name].items()
                ours = {n for first, numbers in since if versions.ORDER.index(first) <= rank for n in numbers}
                differing |= {f"{name}-{n} repeats in {version}" for n in fields if fields[n][1] != 1 and n not in ours}
            for n, first, last in versions.REQUIRED.get(name, ()):
                asked = versions.ORDER.index(first) <= rank <= versions.ORDER.index(last or versions.ORDER[-1])
                if asked and n in fields and not fields[n][0]:
                    differing.add(f"{name}-{n} optional in {version}")
    assert differing == OTHERWISE
