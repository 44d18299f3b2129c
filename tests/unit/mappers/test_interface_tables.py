"""The interface document has a table for every coded field that is sent, and says what the samples cannot show."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import defaultdict

import pytest
from test_interface_document import PROFILES, SITE, made

from hl7v2.message import parse
from mappers.fhir_to_hl7v2_plain import RESTRICTED
from mappers.interface_document import TABLES
from mappers.interface_sample import samples

PLATFORMS = ("push-2.1", "push-2.1-oru")
TABLED = {place for name, _ in TABLES for place in re.findall(r"[A-Z][A-Z0-9]{2}-\d+", name)}
FREE = {
    # Structure and standards: what a field is is told by its name.
    "MSH": {1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 17, 18, 21}, "EVN": {1, 2, 6}, "PID": {1, 3, 5, 7, 11, 18},
    "PV1": {1, 19, 44, 45}, "ORC": {2, 3, 9, 12, 16, 21}, "OBR": {1, 2, 3, 4, 7, 8, 13, 16, 22, 32},
    "TXA": {1, 2, 4, 6, 9, 12, 13, 14, 16, 22}, "OBX": {1, 4, 14}, "PRT": {5, 8, 15},
    "SCH": {1, 2, 6, 7, 8, 9, 11, 16, 20, 26}, "NTE": {1, 3}, "RGS": {1}, "AIS": {1, 3, 4}, "AIP": {1, 3, 6},
}  # fmt: skip
"""Fields that are no codes of ours: numbers, instants, names, texts, and codes of the request and the document."""


@functools.cache
def sent() -> dict[str, set[str]]:
    """Every field of every sample: its values, by their first component."""
    found: dict[str, set[str]] = defaultdict(set)
    for profile in PROFILES:
        for sample in samples(profile, SITE, "DPI", "CH-X"):
            for segment in parse(sample.raw).segments:
                for number, value in segment.fields():
                    if value.encoded:
                        found[f"{segment.name}-{number}"].add(segment.text(number))
    return found


def test_every_coded_field_that_is_sent_has_a_table() -> None:
    free = {f"{name}-{number}" for name, numbers in FREE.items() for number in numbers}
    assert set(sent()) - free - TABLED == set()


@pytest.mark.parametrize("place", sorted(TABLED - {"PID-3", "PID-18", "PV1-19", "OBR-4", "OBX-3", "OBX-5"}))
def test_every_value_of_a_coded_field_stands_in_its_table(place: str) -> None:
    (values,) = (values for name, values in TABLES if place in re.findall(r"[A-Z][A-Z0-9]{2}-\d+", name))
    assert sent()[place] - {""} <= set(re.findall(r"\w+", values))
    assert sent()[place]


def test_every_procedure_of_an_order_or_an_answer_stands_in_its_table() -> None:
    (values,) = (values for name, values in TABLES if name.startswith("TLR_OBR_PROCEDURE"))
    assert {code for code in sent()["OBR-4"] if "DEMANDE" in code} == set(values.split(", "))


@pytest.mark.parametrize("profile", ["push-2.1", "push-2.1-oru", "lps-1.1", "plain-mdm"])
def test_a_restricted_report_is_among_the_samples(profile: str) -> None:
    text, found = made(profile)
    (corrected,) = (parse(one.raw) for one in found if "corrects it" in one.event)
    told = {obx.text(3): obx.text(5) for obx in corrected.all("OBX")}
    if profile == "plain-mdm":
        assert corrected.get("TXA-18") in RESTRICTED and "| TXA-18 |" in text
    else:
        assert (told["INVISIBLE_PATIENT"], told["MODIF_CONF_CODE"], told["MASQUE_PS"]) == ("Y", "Y", "N")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_platform_is_told_which_business_acknowledgement_we_await(profile: str) -> None:
    text, _ = made(profile)
    told = "## Business acknowledgements expected" in text and "ZAM^Z01" in text and "| `DPI`, `CH-X`: as MSH-5" in text
    assert told is (profile in PLATFORMS)


def test_a_production_site_is_told_in_words_what_its_samples_do_not_show() -> None:
    real, _ = made("push-2.1", dataclasses.replace(SITE, mode="production"))
    test, _ = made("push-2.1")
    assert "A real message about a patient with a qualified INS" in real and "DESTDMP Y" in real
    assert "The samples are of nobody" not in test
