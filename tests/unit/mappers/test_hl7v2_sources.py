"""Where an element came from: asked of the mappers, for every event that is taken in."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from adt_samples import SITE

from fhir_server.delivery.intake import HANDLERS
from hl7v2.message import Message, parse
from mappers.hl7v2_sources import MOST_OF_A_NAME, Explained, Origin, explain, holds, leaves, places

DATA = Path(__file__).parents[2] / "data" / "hl7v2"
PLAIN_A08 = DATA / "adt-a31-identite-douteuse.er7"
"""No sample of ours is an A08: it is an A31 under another name."""

FIXED = re.compile(
    # the words of FHIR around a value: whose code system, which extension, which kind of thing is referred to
    r".*(system|url|\.type|use)$"
    # which of the sender's fields a number stood in
    r"|.*identifier(\[\d+\])?\.type\.coding\[0\]\.code$"
    # one thing only is meant by a message of this kind
    r"|Patient(\(2\))?\.active$|Consent(\(2\))?\.(status|scope\.coding\[0\]\.code)$|ServiceRequest\.intent$"
    r"|Appointment\.participant\[\d+\]\.status$|Appointment\.status$"
    # said of what is not there
    r"|(DiagnosticReport|ServiceRequest)\.status$|orders\[\d+\]\.missing.*$"
    # the place among the segments
    r"|document\.number$|orders\[\d+\]\.orc$"
)
"""Elements a mapper may set without any value of the message. Everything else must have a source."""

CODED = re.compile(
    # translated by a table: a code of HL7 v2 to one of FHIR
    r".*(use|system|status|Status|gender|priority|\.code|\.display|contentType|media_type|type|text|url|missing.*)$"
    r"|.*Boolean$|.*(action|decision|ok|drops_ins|keeps_state|historic)$|nulls.*|.*flags.*|.*\.comparator$|.*profile.*"
    # calculated from start and duration
    r"|Appointment\.end$|.*\.where$|.*\.data$|.*letter\.text$|.*referenceRange.*value$"
)

EVENTS = {event: pytest.param(event, marks=pytest.mark.xdist_group(f"sources of {event}")) for event in HANDLERS}
"""What asks for one event runs in one process: explaining a message takes seconds."""


@cache
def sample(event: str) -> Message:
    """A message of an event, the first of ours."""
    for file in sorted(DATA.glob("*.er7")):
        msg = parse(file.read_bytes())
        if f"{msg.kind}^{msg.trigger}" == event:
            return msg
    assert event == "ADT^A08", f"{event} has no sample in {DATA}"
    return parse(PLAIN_A08.read_bytes()).set("MSH-9.2", "A08")


@cache
def explained(event: str) -> Explained:
    return explain(sample(event), SITE)


def origin(found: Explained, element: str) -> Origin:
    return next(one for one in found.origins if one.element == element)


@pytest.mark.parametrize("event", EVENTS.values())
def test_every_element_of_every_event_has_a_source_or_is_named_as_fixed(event: str) -> None:
    found = explained(event)
    orphans = [one.element for one in found.origins if one.how == "fixed" and not FIXED.match(one.element)]
    assert not orphans
    assert all(bool(one.places) == (one.how != "fixed") for one in found.origins)
    sourced = [one for one in found.origins if one.how == "value"]
    assert len(sourced) > len(found.origins) / 3


@pytest.mark.parametrize("event", EVENTS.values())
def test_the_field_a_value_came_from_holds_it(event: str) -> None:
    msg, wrong = sample(event), []
    texts = dict(places(msg))
    for one in explained(event).origins:
        held = [texts[place] for place in one.places]  # every place is one of this message
        if one.how == "value" and not CODED.match(one.element) and not any(_same(text, one.value) for text in held):
            wrong.append((one, held))
    assert not wrong


def _same(text: str, value: str) -> bool:
    """The same text, or the same moment: the digits of the day agree."""
    digits, wanted = (re.sub(r"\D", "", part)[:8] for part in (text, value))
    return holds(text, value) or text.strip() in value or (len(digits) >= 4 and digits == wanted)


@pytest.mark.parametrize("event", [EVENTS[one] for one in ("ADT^A01", "ORU^R01", "MDM^T02", "ORM^O01", "SIU^S12")])
def test_what_is_told_is_what_the_mapper_makes(event: str) -> None:
    from mappers.hl7v2_sources import READERS

    made = leaves(READERS[sample(event).kind](sample(event), SITE))
    assert {one.element: one.value for one in explained(event).origins} == made


@pytest.mark.xdist_group("sources of ADT^A01")
def test_a_name_comes_from_its_component_and_a_number_from_its_field() -> None:
    found = explained("ADT^A01")
    assert origin(found, "Patient.name[0].family").places == ("PID-5[1].1",)
    assert origin(found, "Patient.birthDate").places == ("PID-7",)
    assert origin(found, "Encounter.status").places == ("MSH-9.2",)
    assert origin(found, "Encounter.identifier[0].value").places == ("PV1-19.1",)
    assert origin(found, "Patient.active").how == "fixed"
    qualified = origin(found, "Patient.identifier[0].use")
    assert qualified.how == "condition" and "PID-32" in qualified.places


def test_one_value_may_have_several_fields_and_one_number_may_be_said_twice() -> None:
    assert origin(explained("ADT^A01"), "Encounter.location[2].location.display").places == (
        "PV1-3.1", "PV1-3.2", "PV1-3.3",
    )  # fmt: skip
    assert origin(explained("ORU^R01"), "DiagnosticReport.identifier[0].value").places == ("ORC-2.1", "OBR-2.1")
    assert origin(explained("ORM^O01"), "ServiceRequest.status").places == ("ORC-1", "OBR-4.1")


def test_a_date_at_the_end_of_its_month_and_a_value_the_rules_guard_are_traced() -> None:
    found = explain(sample("ADT^A28").set("PID-7", "20240131"), SITE)
    assert origin(found, "Patient.birthDate") == Origin("Patient.birthDate", "2024-01-31", ("PID-7",), "value")


def test_a_message_of_thousands_of_results_is_explained_by_its_first_ones_and_says_so() -> None:
    msg = parse((DATA / "oru-r01-cr-texte.er7").read_bytes())
    obx = msg.all("OBX")[0].raw.rstrip(b"\r\n")
    long = parse(msg.raw + b"".join(obx + b"\r" for _ in range(3_000)))
    found = explain(long, SITE)
    assert found.cut[0].startswith(f"OBX[{MOST_OF_A_NAME + 1}] and the ")
    assert len([one for one in found.origins if re.match(r"Observation.*valueString$", one.element)]) == MOST_OF_A_NAME


def test_a_long_document_is_read_by_its_beginning_and_keeps_its_length() -> None:
    msg = sample("MDM^T02")
    found = explain(msg.set("OBX-5.5", "QUJD" * 50_000), SITE)
    assert found.cut == ("OBX[1]-5.5 after its first 4096 characters",)
    data = origin(found, "document.data")
    assert "OBX-5.5" in data.places and data.value.startswith("150000 bytes")


def test_a_prior_number_that_is_empty_is_no_prior_number() -> None:
    # Found by altering values: an authority without a number made the mapper fail.
    msg = sample("ADT^A40")
    found = leaves(_prior(msg.set("MRG-1.1", None)))
    assert not any(path.startswith("prior_ids") for path in found)


def _prior(msg: Message) -> object:
    from mappers.hl7v2_to_fhir import adt

    return adt(msg, SITE)
