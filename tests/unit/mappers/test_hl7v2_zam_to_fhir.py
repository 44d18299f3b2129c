"""Business acknowledgements (ZAM) as facts."""

from __future__ import annotations

from pathlib import Path

import pytest
from adt_samples import sample

from hl7v2.message import parse
from mappers.hl7v2_to_fhir import Refused, zam


def test_the_four_outcomes_of_a_document_are_read() -> None:
    ok = zam(sample("zam-z01-dmp-ok"))
    assert (ok.control_id, ok.event, ok.ok, ok.error_code) == ("NB2HI4DTHIXS653XO4XA", "Z01", True, "")
    closed = zam(sample("zam-z01-dmp-refus"))
    assert (closed.ok, closed.error_code, closed.error_text) == (False, "DMPClosed", "DMP fermé")
    full = zam(sample("zam-z02-boite-pleine"))
    assert (full.event, full.ok, full.error_code) == ("Z02", False, "422")
    assert (full.recipient, full.recipient_id) == ("paul.ferrand@test-ci-sis.mssante.fr", "801999000456")
    read = zam(sample("zam-z03-lu"))
    assert (read.event, read.ok, read.recipient) == ("Z03", True, "paul.ferrand@test-ci-sis.mssante.fr")


@pytest.mark.needs("shared")
def test_the_national_business_ack_is_read(shared: Path) -> None:
    told = zam(parse((shared / "ans-hl7v2" / "zam-z01-reception-dmp.er7").read_bytes()))
    assert (told.control_id, told.event, told.ok, told.error_code) == ("015", "Z01", False, "DMPClosed")


@pytest.mark.parametrize(
    ("where", "value", "location"),
    [
        ("OBX-4", None, "OBX^1^4"),
        ("OBX-5", "MAYBE", "OBX^1^5"),
        ("OBX-5", None, "OBX^1^5"),
        ("OBX-3", "DESTINATAIRE_MSS", "OBX^1^3"),
        ("MSH-9.2", "Z09", "MSH^1^9"),
        ("MSH-9.1", "ADT", "MSH^1^9"),
    ],
)
def test_a_business_ack_that_says_nothing_is_refused(where: str, value: str | None, location: str) -> None:
    with pytest.raises(Refused) as caught:
        zam(sample("zam-z01-dmp-ok").set(where, value))
    assert caught.value.location == location


def test_a_refusal_without_a_reason_says_so() -> None:
    msg = sample("zam-z01-dmp-ok").set("OBX-5", "N")
    assert zam(msg).error_text == "refused without a reason (no ERR segment)"
