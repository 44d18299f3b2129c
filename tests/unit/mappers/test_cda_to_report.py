"""What a CDA of ours says of people, instants and numbers is read back as it was written."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from report_sources import SITE, obstetric, resources

from mappers.cda_to_report import expert_sent, patient_sent, requester_sent, sent_report
from mappers.fhir_to_cda import cda
from mappers.fhir_to_report import Code

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
    "correction",
    "attending",
}


def test_a_document_is_read_back_as_it_was_written() -> None:
    sent = obstetric()
    back = sent_report(cda(sent, b"%PDF-1.4", SITE), sent.id, REQUEST, sent.patient, SITE)
    same = [one.name for one in fields(sent) if one.name not in LEFT | {"requester"}]
    assert {name: getattr(back, name) for name in same} == {
        name: (getattr(sent, name).replace(microsecond=0) if name.endswith("_at") else getattr(sent, name))
        for name in same
    }
    one, other = back.requester, sent.requester
    plain = replace(one.org, facility_type=other.org.facility_type, practice_setting=other.org.practice_setting)
    assert replace(one, org=plain) == other, "all but what kind of structure an addressee is of"
    assert expert_sent(cda(sent, b"%PDF-1.4", SITE)) == sent.expert


def test_an_addressee_of_an_older_document_has_no_specialty() -> None:
    written = cda(obstetric(), b"%PDF-1.4", SITE).replace(b'typeCode="REF"', b'typeCode="CON"')
    assert requester_sent(written).specialty == Code("", "", "")
    assert requester_sent(written).rpps == obstetric().requester.rpps


@pytest.mark.parametrize(
    "changes",
    [{}, {"ins": None}, {"local_ids": ()}, {"gender": "unknown", "used_family": "", "used_given": ""},
     {"birth_cog": "", "birth_city": ""}, {"local_ids": (("77", "1.2.3", ("", "1.2.3", "ISO"), "PI"),)},
     {"mailbox": "279035121518989@patient.mssante.fr"}],
)  # fmt: skip
def test_whom_a_document_is_about_is_read_back_as_it_was_written(changes: dict[str, Any]) -> None:
    patient = replace(obstetric().patient, **changes)
    written = cda(obstetric(patient=patient), b"%PDF-1.4", SITE)
    assert patient_sent(written, patient.reference, SITE) == patient


@pytest.mark.parametrize("data", [b"", b"<a/>", b"<!DOCTYPE a><a/>", b"\xff\xfe"])
def test_what_is_no_document_of_ours_is_refused(data: bytes) -> None:
    for read in (requester_sent, expert_sent, lambda one: patient_sent(one, "Patient/x", SITE)):
        with pytest.raises(ValueError):
            read(data)
    with pytest.raises(ValueError):
        sent_report(data, obstetric().id, REQUEST, obstetric().patient, SITE)


@pytest.mark.parametrize(("old", "new"), [("2.25.", "2.26."), ('extension="8', 'extension="X'), ("+0100", "")])
def test_a_header_that_was_tampered_with_is_refused(old: str, new: str) -> None:
    sent = obstetric()
    written = cda(sent, b"%PDF-1.4", SITE).decode()
    assert old in written
    with pytest.raises(ValueError):
        sent_report(written.replace(old, new).encode(), sent.id, REQUEST, sent.patient, SITE)
