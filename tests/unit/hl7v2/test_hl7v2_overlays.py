"""The CI-SIS profiles: for each a message that passes, and messages that fail with path, bytes and rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hl7v2 import overlays
from hl7v2.check import check, errors
from hl7v2.message import Message, parse

DATA = Path(__file__).resolve().parents[2] / "data" / "hl7v2"


def sample(name: str) -> Message:
    return parse((DATA / name).read_bytes().replace(b"\r\n", b"\r").replace(b"\n", b"\r"))


def less(msg: Message, goes: Callable[[bytes], bool]) -> Message:
    """A message without the segments that go."""
    return parse(b"\r".join(line for line in msg.raw.split(b"\r") if not goes(line)))


def bare(msg: Message) -> Message:
    return less(msg, lambda line: line.startswith(b"OBX"))


def segments(msg: Message, *kinds: bytes) -> list[str]:
    """The segments of these kinds, as text."""
    return [line.decode() for line in msg.raw.split(b"\r") if line.startswith(kinds)]


GOOD = {
    "push-2.1": (
        "mdm-t02-push-2.1.golden.hl7", "mdm-t10-push-2.1.golden.hl7", "mdm-t04-push-2.1.golden.hl7",
        "oru-r01-push-2.1.golden.hl7",
    ),
    "lps-1.1": ("mdm-t02-lps-recu.er7", "mdm-t10-lps-recu.er7", "mdm-t04-lps-recu.er7"),
    "zam": ("zam-z01-dmp-ok.er7", "zam-z01-dmp-refus.er7", "zam-z02-boite-pleine.er7", "zam-z03-lu.er7"),
    "tlr-1.0": (
        "orm-o01-tlr-demande.er7", "orm-o01-tlr-annulation.er7", "oru-r01-tlr-refus.er7",
        "oru-r01-tlr-accord.golden.hl7", "omi-o23-tlr-complement.er7", "orm-o01-tlr.golden.hl7",
    ),
}  # fmt: skip
MDM, ORU, LPS = "mdm-t02-push-2.1.golden.hl7", "oru-r01-push-2.1.golden.hl7", "mdm-t02-lps-recu.er7"
ZAM, REFUSED = "zam-z01-dmp-ok.er7", "zam-z01-dmp-refus.er7"
ORM, TAKEN_BACK, ANSWER = "orm-o01-tlr-demande.er7", "orm-o01-tlr-annulation.er7", "oru-r01-tlr-accord.golden.hl7"
OMI = "omi-o23-tlr-complement.er7"


@pytest.mark.parametrize(("profile", "name"), [(key, name) for key, names in GOOD.items() for name in names])
def test_a_message_that_follows_its_profile_passes(profile: str, name: str) -> None:
    msg = sample(name)
    found = overlays.of(msg)
    assert found is not None and found.name == profile
    assert check(msg) == []


@pytest.mark.parametrize(
    ("name", "where", "value", "location", "rule", "severity"),
    [
        (MDM, "ORC-1", "RO", "ORC-1", "push-2.1/ORC-1/action", "error"),
        (MDM, "OBX-11", "D", "OBX-11", "push-2.1/OBX-11/action", "error"),
        (MDM, "PV1-2", None, "PV1-2", "push-2.1/PV1-2/required", "error"),
        (MDM, "TXA-12", None, "TXA-12", "push-2.1/TXA-12/required", "error"),
        (MDM, "TXA-17", "DI", "TXA-17[1]", "push-2.1/TXA-17/table", "warning"),
        (MDM, "OBX-2", "TX", "OBX-2", "push-2.1/OBX-2/document", "error"),
        (MDM, "OBX-5.3", "PDF", "OBX-5[1].3", "push-2.1/OBX-5/document", "warning"),
        (MDM, "OBX[4]-5", "OUI", "OBX[4]-5", "push-2.1/OBX-5/table", "error"),
        (MDM, "OBX[2]-3.1", "MASQUE", "OBX[2]-3[1].1", "push-2.1/OBX-3/table", "warning"),
        (MDM, "OBX[9]-5", "Y", "PRT", "push-2.1/PRT/recipient", "warning"),
        (MDM, "PRT-4", "XX", "PRT-4", "push-2.1/PRT-4/table", "warning"),
        (MDM, "PRT[2]-15.4", None, "PRT[2]-15[1].4", "push-2.1/PRT-15/required", "warning"),
        (MDM, "MSH-12", "2.5", "MSH-12", "push-2.1/MSH-12", "warning"),
        (MDM, "MSH-17", "BEL", "MSH-17[1]", "push-2.1/MSH-17/table", "warning"),
        (MDM, "OBR-4.3", None, "OBR-4[1].3", "push-2.1/OBR-4/system", "warning"),
        (MDM, "TXA-2", "34112-3", "TXA-2", "push-2.1/type", "warning"),
        (ORU, "ORC-1", "RE", "ORC-1", "push-2.1/ORC-1/action", "error"),
        (ORU, "ORC-1", "CA", "OBX-11", "push-2.1/OBX-11/action", "error"),
        (ORU, "PV1-2", "I", "PV1-19", "push-2.1/PV1-19/required", "warning"),
        (LPS, "ORC-1", "CA", "ORC-1", "lps-1.1/ORC-1/action", "error"),
        (LPS, "TXA-2", None, "TXA-2", "lps-1.1/TXA-2/required", "error"),
        (LPS, "PV1-2", "I", "PV1-2", "lps-1.1/PV1-2", "warning"),
        (LPS, "OBX[2]-3.2", "Bonjour", "OBX[2]-3.2", "lps-1.1/OBX-3/mail", "warning"),
        (ZAM, "OBX-5", "PEUT", "OBX-5", "zam/OBX-5/table", "error"),
        (ZAM, "OBX-3", "ACK", "OBX-3[1]", "zam/OBX-3/table", "error"),
        (ZAM, "OBX-4", None, "OBX[1]-4", "zam/OBX[1]-4/required", "error"),
        (ZAM, "OBX-3", "ACK_LECTURE_MSS", "OBX-3", "zam/OBX-3/event", "warning"),
        (ZAM, "OBX-5", "N", "ERR", "zam/ERR", "warning"),
        (ORM, "OBR-4", "AUTRE", "OBR-4", "tlr-1.0/OBR-4/table", "error"),
        (ORM, "ORC-1", "CA", "ORC-1", "tlr-1.0/ORC-1/flow", "error"),
        (ORM, "ORC-2", None, "ORC-2", "tlr-1.0/ORC-2/required", "error"),
        (ORM, "OBR-2", "DEM-1", "OBR-2", "tlr-1.0/OBR-2", "warning"),
        (ORM, "ORC-17", "AUTRE", "ORC-17", "tlr-1.0/ORC-17/table", "warning"),
        (ORM, "OBX-3.1", "COULEUR", "OBX-3[1].1", "tlr-1.0/OBX-3/table", "warning"),
        (ORM, "OBX-3.1", "PROTOCOLE_IMAGERIE", "OBX", "tlr-1.0/MODALITE_IMAGERIE", "warning"),
        (ORM, "OBX-3.3", "L", "OBX", "tlr-1.0/MODALITE_IMAGERIE", "warning"),
        (ORM, "OBX-5.1", None, "OBX-5[1].1", "tlr-1.0/MODALITE_IMAGERIE/coded", "warning"),
        (ORM, "OBX-5.3", "L", "OBX-5[1].3", "tlr-1.0/MODALITE_IMAGERIE/system", "warning"),
        (ORM, "OBX[2]-3.1", "PROTOCOLE_IMAGERIE", "OBX", "tlr-1.0/REGION_ANATOMIQUE", "warning"),
        (ORM, "OBX[2]-4", "1.2", "OBX", "tlr-1.0/REGION_ANATOMIQUE", "warning"),
        (ORM, "OBX[2]-4", "1.3", "OBX[2]-4", "tlr-1.0/REGION_ANATOMIQUE/sub-id", "warning"),
        (ORM, "OBX[2]-4", None, "OBX[2]-4", "tlr-1.0/REGION_ANATOMIQUE/sub-id", "warning"),
        (ORM, "OBX[2]-5.1", None, "OBX[2]-5[1].1", "tlr-1.0/REGION_ANATOMIQUE/coded", "warning"),
        (ORM, "OBX[2]-5.3", "DCM", "OBX[2]-5[1].3", "tlr-1.0/REGION_ANATOMIQUE/system", "warning"),
        (TAKEN_BACK, "ORC-16.2", None, "ORC-16", "tlr-1.0/ORC-16/required", "warning"),
        (ANSWER, "ORC-1", "NW", "ORC-1", "tlr-1.0/ORC-1/flow", "error"),
    ],
)  # fmt: skip
def test_each_rule_of_a_profile_is_told_with_its_place_and_bytes(
    name: str, where: str, value: str | None, location: str, rule: str, severity: str
) -> None:
    msg = sample(name).set(where, value)
    found = [finding for finding in check(msg) if finding.rule == rule]
    assert [(finding.location, finding.severity) for finding in found] == [(location, severity)]
    start, end = found[0].span
    if value and where.partition(".")[0] == location.partition("[1]")[0]:
        assert value.encode() in msg.raw[start:end]


@pytest.mark.parametrize(("hidden", "sent"), [("MASQUE_PS", "DESTMSSANTEPS"), ("INVISIBLE_PATIENT", "DESTMSSANTEPAT")])
def test_a_document_sent_to_those_it_is_hidden_from_is_refused(hidden: str, sent: str) -> None:
    msg = sample(MDM)
    for obx in msg.all("OBX"):
        if obx.text(3) in (hidden, sent):
            msg = msg.set(f"OBX[{obx.number}]-5", "Y")
    found = [finding for finding in errors(check(msg)) if finding.rule == "push-2.1/matrix"]
    assert len(found) == 1 and msg.raw[slice(*found[0].span)].startswith(b"Y")


def test_metadata_that_are_missing_or_in_another_order_are_told() -> None:
    missing = less(sample(MDM), lambda line: b"DESTDMP" in line)
    assert [finding.rule for finding in check(missing)] == ["push-2.1/metadata"]
    lines = sample(MDM).raw.split(b"\r")
    at = next(n for n, line in enumerate(lines) if b"MASQUE_PS" in line)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    assert [finding.rule for finding in check(parse(b"\r".join(lines)))] == ["push-2.1/metadata/order"]


def test_the_sender_and_the_study_are_missed() -> None:
    no_sender = less(sample(MDM), lambda line: b"||SB^" in line)
    assert [finding.rule for finding in check(no_sender)] == ["push-2.1/PRT/sender"]
    no_study = less(sample(OMI), lambda line: line.startswith(b"IPC"))
    assert [finding.rule for finding in check(no_study)] == ["tlr-1.0/IPC"]


def with_obx(msg: Message, *more: str) -> Message:
    return parse(msg.raw.rstrip(b"\r") + b"\r" + b"".join(line.encode() + b"\r" for line in more))


def test_a_request_says_its_examination_once_and_may_narrow_the_region() -> None:
    row = "OBX|5|CE|{}^^TLR_OBSERVATION|{}|{}||||||O".format
    narrower = row("REGION_ANATOMIQUE", "1.2", "24028007^côté droit^SCT")
    assert check(with_obx(sample(ORM), narrower)) == []
    for more, code in (
        ([row("MODALITE_IMAGERIE", "", "CT^^DCM")], "MODALITE_IMAGERIE"),
        ([row("REGION_ANATOMIQUE", "2.1", "1^^SCT")], "REGION_ANATOMIQUE"),
        ([narrower, narrower], "REGION_ANATOMIQUE"),
    ):
        msg = with_obx(sample(ORM), *more)
        (finding,) = check(msg)
        place = f"OBX[{len(msg.all('OBX'))}]-3"
        assert (finding.rule, finding.location, finding.code) == (f"tlr-1.0/{code}/once", place, "198")
        assert code.encode() in msg.raw[slice(*finding.span)]


def test_the_examination_is_asked_of_a_request_alone_and_of_its_own_order() -> None:
    for name in (TAKEN_BACK, ANSWER, OMI):
        found = check(bare(sample(name)))
        assert [one.rule for one in found if "IMAGERIE" in one.rule or "REGION" in one.rule] == []
    request = bare(sample(ORM))
    expected = ["tlr-1.0/MODALITE_IMAGERIE", "tlr-1.0/REGION_ANATOMIQUE"]
    assert [(one.rule, one.severity) for one in check(request)] == [(rule, "warning") for rule in expected]
    other = segments(sample(ORM), b"ORC", b"OBR", b"OBX")
    assert [one.rule for one in check(with_obx(request, *other))] == expected, "those are of the next order"
    assert check(with_obx(sample(ORM), *other)) == []


def test_a_long_history_hides_no_examination_and_takes_no_time() -> None:
    history = ["OBX|9|FT|11322-5^History^LN||Césarienne||||||O"] * 100
    request = bare(sample(ORM))
    assert check(with_obx(request, *history, *segments(sample(ORM), b"OBX"))) == []
    hostile = ["OBX|1|CE|REGION_ANATOMIQUE^^TLR_OBSERVATION||||||||O"] * 20_000
    assert len(check(with_obx(request, *hostile))) < 10


def test_blanks_in_msh_21_name_the_same_profile_and_another_type_has_none() -> None:
    msg = sample(MDM)
    assert overlays.of(parse(msg.raw.replace(b"2.1^CISIS_CDA", b"2.1^ CISIS_CDA"))) is overlays.PUSH
    assert overlays.of(parse(msg.raw.replace(b"|MDM^T02", b"|ADT^A01"))) is None
    assert overlays.of(msg.set("MSH-21", None)) is None


def test_a_profile_is_judged_in_bounded_time_whatever_it_repeats() -> None:
    head = sample(MDM).raw
    hostile = head + b"".join(b"OBX|%d|CWE|X^Y^MetaDMPMSS||Q||||||F\rPRT||UC||ZZ\r" % n for n in range(20_000))
    assert len(check(parse(hostile))) <= 100


@pytest.mark.needs("shared")
def test_the_published_samples_are_no_error_and_their_quirks_are_warnings(shared: Path) -> None:
    found = {
        finding.rule
        for path in sorted((shared / "ans-hl7v2").iterdir())
        if path.suffix in (".er7", ".hl7")
        for finding in check(parse(path.read_bytes()))
        if not finding.rule.startswith(("pam.fr/", "v2/"))
    }
    assert all(rule.split("/")[0] in ("push-2.1", "zam") for rule in found)
