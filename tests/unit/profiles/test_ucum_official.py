"""The official UCUM functional tests, read from the shared data (FHIR/Ucum-java, Eclipse Public License).

An outcome is met when the result, rounded to the significant digits the file writes, is the number it writes: the file
gives `6.3` metres as `25` quarters and says that its precision binds nobody. Nothing else is excused.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Context, Decimal
from pathlib import Path

import pytest
from lxml import etree

from profiles.ucum import units

pytestmark = pytest.mark.needs("shared")
COUNTS = {"validation": 529, "displayNameGeneration": 9, "conversion": 30, "multiplication": 2, "division": 3}


@pytest.fixture(scope="module")
def suite(shared: Path) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    return etree.parse(shared / "ucum" / "UcumFunctionalTests.xml", parser).getroot()


def cases(suite: etree._Element, kind: str) -> Iterator[dict[str, str]]:
    for case in suite.iterfind(f"{kind}/case"):
        yield {str(name): str(value) for name, value in case.attrib.items()}


def meets(result: Decimal, outcome: str) -> bool:
    written = Decimal(outcome)
    return Context(prec=len(written.as_tuple().digits)).plus(result) == written


def test_the_suite_has_the_cases_we_count(suite: etree._Element) -> None:
    assert {kind: len(list(cases(suite, kind))) for kind in COUNTS} == COUNTS


def test_every_validation_agrees(suite: etree._Element) -> None:
    wrong = [
        case for case in cases(suite, "validation") if (units.validate(case["unit"]) == "") != (case["valid"] == "true")
    ]
    assert wrong == []


def test_every_display_agrees(suite: etree._Element) -> None:
    wrong = [case for case in cases(suite, "displayNameGeneration") if units.display(case["unit"]) != case["display"]]
    assert wrong == []


def test_every_conversion_agrees(suite: etree._Element) -> None:
    wrong = [
        (case["id"], result)
        for case in cases(suite, "conversion")
        if not meets(result := units.convert(Decimal(case["value"]), case["srcUnit"], case["dstUnit"]), case["outcome"])
    ]
    assert wrong == []


@pytest.mark.parametrize(("kind", "operation"), [("multiplication", units.multiply), ("division", units.divide)])
def test_every_product_and_quotient_agrees(suite: etree._Element, kind: str, operation: object) -> None:
    assert callable(operation)
    wrong = []
    for case in cases(suite, kind):
        value, code = operation(Decimal(case["v1"]), case["u1"], Decimal(case["v2"]), case["u2"])
        expected = case["uRes"] or "1"
        if not meets(units.convert(value, code, expected), case["vRes"]):
            wrong.append((case["id"], value, code))
    assert wrong == []
