"""The messages the HL7 topics send are ones our own rules take, each about somebody else."""

from __future__ import annotations

import base64

from benchmarks import topics_hl7
from hl7v2.check import check
from hl7v2.message import parse
from mappers.hl7v2_results_to_fhir import results
from mappers.hl7v2_to_fhir import adt


def test_the_admission_has_the_size_its_topic_names_and_is_mapped() -> None:
    raw = topics_hl7.adt(7)
    assert 550 <= len(raw) <= 650
    msg = parse(raw)
    assert [found for found in check(msg) if found.severity == "error"] == []
    read = adt(msg, topics_hl7._site()).value
    assert read.encounter is not None and read.patient["identifier"][0]["value"] == "P000000007"
    assert parse(topics_hl7.adt(8)).control_id != msg.control_id


def test_the_report_carries_what_is_enclosed() -> None:
    body = base64.b64encode(b"%PDF-1.4 x")
    msg = parse(topics_hl7.oru(7, body))
    assert [found for found in check(msg) if found.severity == "error"] == []
    assert results(msg, topics_hl7._site()).value.orders
    assert msg.all("OBX")[-1].field(5).component(5).whole == body.decode()
