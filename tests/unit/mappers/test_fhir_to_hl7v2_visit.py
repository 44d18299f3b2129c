"""Which stay a message may name: one of the receiver's own numbers, of a class PV1-2 has in France."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from adt_samples import SITE, mapped
from report_sources import SITE as OTHER
from report_sources import obstetric

from hl7v2.message import parse
from mappers.fhir_to_hl7v2_plain import plain
from mappers.fhir_to_hl7v2_visit import CLASSES, visit_of
from mappers.hl7v2_pv1_to_fhir import CLASSES as READ

STAY: dict[str, Any] = {
    "resourceType": "Encounter",
    "status": "in-progress",
    "class": {"code": "IMP"},
    "identifier": [
        {"use": "old", "system": "urn:oid:2.25.4712", "value": "V0"},
        {"system": "urn:oid:2.25.4712", "value": "V1"},
        {"system": "urn:oid:2.25.4713", "value": "D1"},
    ],
    "period": {"start": "2026-03-02T08:30:00Z", "end": "2026-03-04"},
}


def test_a_stay_of_the_site_is_named_with_its_authorities() -> None:
    visit = visit_of(STAY, SITE)
    assert visit is not None and visit.patient_class == "I"
    assert visit.number == ("V1", ("CH-SYLVE", "990001234", "M"), "VN")
    assert visit.account == ("D1", ("CH-SYLVE", "990001234", "M"), "AN")
    assert (visit.start, visit.end) == (datetime(2026, 3, 2, 8, 30, tzinfo=UTC), None)


@pytest.mark.parametrize(
    "changes",
    [
        {"identifier": [{"system": "urn:oid:2.25.9", "value": "V1"}]},
        {"identifier": [{"system": "urn:oid:2.25.4712"}]},
        {"identifier": None},
        {"status": "cancelled"},
        {"status": "entered-in-error"},
    ],
)
def test_what_names_no_stay_of_the_receiver_is_none(changes: dict[str, Any]) -> None:
    assert visit_of(STAY | changes, SITE) is None
    assert visit_of({}, SITE) is None


@pytest.mark.parametrize(
    ("stay_class", "said"),
    [({"code": "HH"}, "HH"), ({"code": "VR"}, "VR"), ({"code": "PRENC"}, "PRENC"), (None, "unknown")],
)
def test_a_stay_that_pv1_2_has_no_class_for_is_told_as_n_and_its_number_as_left_out(
    stay_class: dict[str, str] | None, said: str
) -> None:
    told = plain(
        obstetric(), b"%PDF-1.4", site=SITE, kind="ORU", control_id="M1", now=datetime(2026, 3, 2, tzinfo=UTC),
        receiving_application="DPI", receiving_facility="CH", visit=visit_of(STAY | {"class": stay_class}, SITE),
    )  # fmt: skip
    msg = parse(told.value)
    assert [msg.text(place) for place in ("PV1-2", "PV1-19", "PV1-44", "PID-18")] == ["N", "", "", ""]
    (loss,) = (one for one in told.losses if one.source == "PV1-19")
    assert "V1" in loss.reason and loss.reason.endswith(f"class {said}")


def test_another_establishment_is_not_told_a_number_it_does_not_know() -> None:
    assert visit_of(STAY, OTHER) is None


@pytest.mark.parametrize(
    ("name", "wanted"), [("adt-a01-admission", "I"), ("adt-a04-consultation", "O"), ("adt-a05-preadmission", "I")]
)
def test_a_stay_that_came_by_adt_goes_out_as_it_came(name: str, wanted: str) -> None:
    came = mapped(name).value
    assert came.encounter is not None
    visit = visit_of(came.encounter, SITE)
    assert visit is not None and visit.patient_class == wanted
    assert [("urn:oid:2.25.4712", visit.number[0])] == list(came.encounter_ids)


def test_every_class_we_read_is_written_back_or_has_none() -> None:
    assert {code: CLASSES.get(read) for code, read in READ.items()} == {
        "I": "I", "O": "O", "E": "E", "R": "O", "P": None,
    }  # fmt: skip
