"""docs/comparison-hl7v2.md: our MDM and ORU beside the national samples, field by field, with the reasons.

The page is made here from the messages and compared with the stored one; UPDATE_COMPARISON=1 writes it. Names of fields
and components only: the samples have no licence, so nothing of their content is shown.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from report_sources import SITE

from hl7v2.message import Message, Segment, Value, parse
from mappers.interface_document import FIELDS
from mappers.interface_sample import samples

PAGE = Path(__file__).parents[3] / "docs" / "comparison-hl7v2.md"
PAIRS = (
    ("MDM^T02, push profile 2.1", "mdm-t02-initial.er7", "push-2.1"),
    ("ORU^R01, push profile 2.1", "oru-r01-initial.hl7", "push-2.1-oru"),
)
OTHER_NAMES = {
    "EVN-5": "Operator", "PV1-3": "Assigned location", "OBR-10": "Collector", "ORC-4": "Placer group number",
    "ORC-10": "Entered by",
}  # fmt: skip
STAY = "a téléexpertise knows no stay by default: PV1-2 is N and the fields of the stay stay empty"
NAMED = "the sample names what a téléexpertise does not have, or the profile leaves it optional"
REASONS = {
    "EVN-5": "no operator: the message is written by the software, the signer stands in TXA-22",
    "PID-1": "set id, not among the fields PAM France forbids; receivers of base HL7 expect it",
    "PID-3": "ours adds the local number of the CDA's recordTarget; the sample dates the identifier (CX-7), which PAM "
             "France leaves empty",
    "PID-11": "ours carries the place of birth alone (BDL): the home address is no part of the report's identity",
    "PID-18": STAY,
    "PV1-3": STAY,
    "PV1-19": STAY,
    "ORC-2": "ours names the order it answers in the MDM too; the sample's ORU names an authority without OID",
    "ORC-3": "ours is the document set, one OID; the sample gives a namespace",
    "ORC-4": NAMED,
    "ORC-12": "the requester, whom an answer is for; the sample leaves it to OBR-16",
    "ORC-10": NAMED,
    "OBR-2": "as ORC-2",
    "OBR-3": "as ORC-3",
    "OBR-7": "start of the opinion: base HL7 asks for it in a result",
    "OBR-8": "end of the opinion",
    "OBR-10": NAMED,
    "OBR-16": "the requester with an RPPS and its authority; the sample gives a name and a title",
    "OBR-22": "the signature: base HL7 asks for it with a status in OBR-25",
    "PRT SB-4": "with the label of the code",
    "PRT REPLY-4": "with the label of the code; the MDM sample has no REPLY, ours always says where answers go",
    "PRT RCT": "we mail the requester ourselves (DESTMSSANTEPS N), so the platform is given no recipient",
    "PRT REPLY": "answers go to the expert's mailbox also when the platform mails nobody",
    "OBX CORPSMAIL_PS": "no text of a mail: the platform mails nobody",
}  # fmt: skip


def rows(sample: Message, ours: Message) -> list[tuple[str, str, str, str]]:
    """(field, in the sample, in ours, key of the reason) of every field that one of the two has."""
    theirs, own = _parts(sample), _parts(ours)
    out = []
    for key in dict.fromkeys([*theirs, *own]):
        left, right = theirs.get(key), own.get(key)
        if left is not None and right is not None and left == right:
            out.append((key, "yes", "yes", ""))
            continue
        whole = key.rsplit("-", 1)[0]
        reason = key if key in REASONS else whole
        out.append((key, _told(left, right), _told(right, left), reason))
    return out


def _told(mine: frozenset[str] | None, other: frozenset[str] | None) -> str:
    if mine is None:
        return "-"
    more = sorted(mine - (other or frozenset()), key=lambda name: [int(n) for n in name.strip(".").split(".")])
    return "yes" if other is None or not more else f"yes, and {' '.join(more)}"


def _parts(msg: Message) -> dict[str, frozenset[str]]:
    """Field -> the components that hold something, of all its repetitions and of all segments of the same role."""
    out: dict[str, frozenset[str]] = {}
    for segment in msg.segments:
        for number, value in segment.fields():
            if value.valued and (segment.name != "MSH" or number > 2):
                key = f"{_role(segment)}-{number}"
                out[key] = out.get(key, frozenset()) | _components(value)
    return out


def _components(value: Value) -> frozenset[str]:
    names = set()
    for repetition in value.repetitions():
        for n, component in enumerate(repetition.parts(), 1):
            if component.valued:
                names.add(f".{n}")
    return frozenset(names)


def _role(segment: Segment) -> str:
    """Segments that play different parts are compared by their part."""
    if segment.name == "PRT":
        return f"PRT {segment.text(4)}"
    if segment.name == "OBX" and segment.text(3, 3) == "MetaDMPMSS":
        return f"OBX {segment.text(3)}"
    return segment.name


def _name(key: str) -> str:
    head, number = key.rsplit("-", 1)
    return FIELDS.get(head.split()[0], {}).get(int(number)) or OTHER_NAMES.get(key, "")


def page(shared: Path) -> tuple[str, set[str]]:
    lines = [
        "# Our MDM and ORU beside the national samples",
        "",
        "For interface engineers. Which fields the published samples of the push profile have and which ours have;",
        "each difference has its reason. Made by `tests/unit/mappers/test_comparison_hl7v2.py` from the messages.",
        "`.4` is the fourth component. Metadata (table MetaDMPMSS) are compared code by code.",
        "Samples: `ansforge/hl7V2-exemples`.",
        "",
    ]
    used = set()
    for title, file, profile in PAIRS:
        raw = (shared / "ans-hl7v2" / file).read_bytes().replace(b"\n", b"\r")
        ours = parse(samples(profile, SITE, "PFI", "CH")[-1].raw)
        found = rows(parse(raw), ours)
        lines += [f"## {title}", "", "| Field | Name | Sample | Ours | Why |", "| --- | --- | --- | --- | --- |"]
        for key, left, right, reason in found:
            used.add(reason)
            lines.append(f"| {key} | {_name(key)} | {left} | {right} | {REASONS.get(reason, '?') if reason else ''} |")
        same = sum(not reason for *_, reason in found)
        lines += ["", f"{same} of {len(found)} fields have the same components.", ""]
    return "\n".join(lines).rstrip("\n") + "\n", used - {""}


@pytest.mark.needs("shared")
def test_every_difference_from_the_samples_is_told_with_its_reason(shared: Path) -> None:
    made, used = page(shared)
    if os.environ.get("UPDATE_COMPARISON") == "1":
        PAGE.write_text(made, encoding="utf-8")
    assert "| ? |" not in made, [line for line in made.splitlines() if line.endswith("| ? |")]
    assert used == set(REASONS), set(REASONS) - used
    assert PAGE.read_text(encoding="utf-8") == made


def test_a_field_that_only_one_side_has_is_seen() -> None:
    mine = parse(b"MSH|^~\\&|A\rPID|1||X^^^Y\rPRT||UC||SB^x\r")
    other = parse(b"MSH|^~\\&|A\rPID|||X\rPRT||UC||RCT^x\r")
    assert rows(mine, other)[1:3] == [("PID-1", "yes", "-", "PID-1"), ("PID-3", "yes, and .4", "yes", "PID-3")]
    assert {key for key, *_ in rows(mine, other)} >= {"PRT SB-4", "PRT RCT-4"}
