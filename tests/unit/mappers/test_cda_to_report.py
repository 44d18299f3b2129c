"""What a CDA of ours says of people, instants and numbers is read back as it was written."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from report_sources import SITE, obstetric, resources

from mappers.cda_to_report import requester_sent, sent_report
from mappers.fhir_to_cda import cda

REQUEST = resources()["serviceRequest"]
# What the header does not carry, or not as it was: nothing of it is told when a document is taken back.
LEFT = {
    "consent",
    "reason",
    "exchange",
    "conclusion",
    "images",
    "studies",
    "act",
    "replaces",
    "requested_at",
    "incidents",
}


def test_a_document_is_read_back_as_it_was_written() -> None:
    sent = obstetric()
    back = sent_report(cda(sent, b"%PDF-1.4", SITE), sent.id, REQUEST, sent.patient, SITE)
    same = [one.name for one in fields(sent) if one.name not in LEFT | {"expert", "requester"}]
    assert {name: getattr(back, name) for name in same} == {
        name: (getattr(sent, name).replace(microsecond=0) if name.endswith("_at") else getattr(sent, name))
        for name in same
    }
    for one, other in ((back.expert, sent.expert), (back.requester, sent.requester)):
        plain = replace(one.org, facility_type=other.org.facility_type, practice_setting=other.org.practice_setting)
        known = one.specialty if one.specialty.code else other.specialty  # an addressee has none in the header
        assert replace(one, org=plain, specialty=known) == other
    assert back.expert.specialty == sent.expert.specialty


@pytest.mark.parametrize("data", [b"", b"<a/>", b"<!DOCTYPE a><a/>", b"\xff\xfe"])
def test_what_is_no_document_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        requester_sent(data)
    with pytest.raises(ValueError):
        sent_report(data, obstetric().id, REQUEST, obstetric().patient, SITE)


@pytest.mark.parametrize(("old", "new"), [("2.25.", "2.26."), ('extension="8', 'extension="X'), ("+0100", "")])
def test_a_header_that_was_tampered_with_is_refused(old: str, new: str) -> None:
    sent = obstetric()
    written = cda(sent, b"%PDF-1.4", SITE).decode()
    assert old in written
    with pytest.raises(ValueError):
        sent_report(written.replace(old, new).encode(), sent.id, REQUEST, sent.patient, SITE)
