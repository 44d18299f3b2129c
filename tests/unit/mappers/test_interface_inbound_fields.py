"""What the interface document of a port names is what is read, and nothing else changes anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from adt_samples import SITE

from hl7v2.message import Message, parse, path
from mappers.hl7v2_sources import READERS, explain, leaves
from mappers.interface_inbound import READ
from mappers.interface_inbound_sample import inbound
from mappers.interface_sample import Sample

DATA = Path(__file__).parents[2] / "data" / "hl7v2"
SEGMENTS = "NK1 PD1 PV2 AL1 DG1 PR1 IN1 GT1 ACC ROL ZBE ZFA ZFD ZFM ZFP ZFS ZFV OBX SPM TQ1 AIL AIG AIP CTI FT1 ERR MRG"
HAVE = [parse(one.read_bytes()) for one in sorted(DATA.glob("*.er7"))] + [parse(one.raw) for one in inbound(SITE)]


def made(msg: Message) -> dict[str, str]:
    return leaves(READERS[msg.kind](msg, SITE))


@pytest.mark.parametrize("text", ["X", "1", "20260302083000"])
def test_a_field_that_is_not_named_changes_nothing_of_what_is_taken_in(text: str) -> None:
    for msg in HAVE:
        other = msg
        for segment in msg.segments:
            named = {*READ.get(segment.name, {}), *((1, 2, 8, 9) if segment.name == "MSH" else ())}
            for number in set(range(1, 41)) - named:
                other = other.set(f"{segment.name}[{segment.number}]-{number}", text)
        assert other.raw != msg.raw
        assert made(other) == made(msg), msg.kind


def test_a_segment_that_is_not_named_changes_nothing_either() -> None:
    fields = "|".join(str(number) for number in range(1, 30))
    rows = "".join(f"{name}|{fields}\r" for name in SEGMENTS.split() if name not in READ)
    assert rows.count("\r") > 10
    for msg in HAVE:
        other = parse(msg.raw.rstrip(b"\r\n") + b"\r" + rows.encode())
        assert made(other) == made(msg), msg.kind


@pytest.mark.parametrize("sample", inbound(SITE), ids=lambda one: str(parse(one.raw).at("MSH-9").encoded))
def test_every_field_an_element_came_from_is_named(sample: Sample) -> None:
    for origin in explain(parse(sample.raw), SITE).origins:
        for place in origin.places:
            spot = path(place)
            assert spot.field in READ[spot.segment], (origin.element, place)
