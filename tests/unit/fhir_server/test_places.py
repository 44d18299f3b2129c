"""Where in a message a fault of the resources made from it comes from."""

from __future__ import annotations

import pytest

from fhir_server.delivery.arrivals import Rejected
from fhir_server.delivery.places import located
from fhir_server.errors import Invalid, Issue, NotFound, Unavailable
from hl7v2.ack import AckError
from hl7v2.message import parse
from profiles.validator.structure import check

SEGMENTS = (
    b"MSH|^~\\&|A|B|C|D|20261121||ADT^A28|M1|P|2.5",
    b"PID|1||1^^^X||DUPONT^AN\x01NE||1980",
    b"NTE|1||un\x02fit",
)
MESSAGE = parse(b"\r".join(SEGMENTS) + b"\r")


def place(patient: dict[str, object]) -> list[str]:
    """Where the faults of a Patient are said to be, by way of what the checker really says."""
    issues = [
        Issue("error", one.code, one.diagnostics, one.expression)
        for one in check({"resourceType": "Patient", **patient})
    ]
    assert issues
    found = located(Invalid(issues=tuple(issues)), MESSAGE)
    assert isinstance(found, Rejected)
    return [one.location for one in found.found]


def test_a_character_no_text_may_hold_is_found_where_it_stands() -> None:
    assert place({"name": [{"given": ["AN\x01NE"]}]}) == [MESSAGE.place(MESSAGE.raw.index(b"\x01"))]
    assert place({"name": [{"given": ["AN\x01NE"]}]})[0].startswith("PID-5")


def test_it_is_found_elsewhere_when_the_mapped_segment_has_none() -> None:
    clean = parse(MESSAGE.raw.replace(b"\x01", b""))
    fault = Invalid(
        issues=tuple(
            Issue("error", "value", one.diagnostics, "Patient.name")
            for one in check({"resourceType": "Patient", "name": [{"family": "un\x02fit"}]})
        )
    )
    (found,) = located(fault, clean).found  # type: ignore[attr-defined]  # a Rejected, which has it
    assert found.location == "NTE-3"


@pytest.mark.parametrize(
    ("patient", "field"),
    [({"birthDate": "1980-13"}, "PID-7"), ({"gender": "x"}, "PID-8"), ({"name": [{"period": 5}]}, "PID-5")],
)
def test_a_fault_of_another_kind_is_where_its_element_comes_from(patient: dict[str, object], field: str) -> None:
    """Also when an unfit character stands somewhere: it has nothing to do with it."""
    assert place(patient) == [field]


def test_what_names_its_place_or_may_be_sent_again_or_comes_from_nowhere_stays_as_it_is() -> None:
    for fault in (
        Invalid("no", location="PID^1^3"),
        Unavailable("not now"),
        NotFound("nobody", expression="Group.member"),
        Rejected([AckError("PID-3", "101", "no")]),
    ):
        assert located(fault, MESSAGE) is fault
    fault = Invalid("no", expression="Patient.birthDate")
    assert located(fault, None) is fault
