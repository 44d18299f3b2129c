"""The three official PATCH suites for R4, counted: each case gives its expected document, or the error it asks for.

As a program it prints a line a suite, `name passed+excused/total`; nothing is excused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from profiles.json_edit import differences, same
from profiles.json_text import parse, parse_list, pretty
from profiles.patch import fhirpath_patch, json_patch, xml_patch
from profiles.patch.errors import PatchError
from profiles.xml_text import from_xml

Verdict = tuple[str, bool]
FHIR = "{http://hl7.org/fhir}"


def fhirpath_cases(folder: Path) -> Iterator[Verdict]:
    for case in etree.parse(str(folder / "fhir-patch-tests.xml")).getroot().iter("case"):
        parts = {part.tag: part for part in case if isinstance(part.tag, str)}
        values = {name: from_xml(etree.tostring(part[0], with_tail=False)) for name, part in parts.items() if len(part)}
        try:
            result = fhirpath_patch.apply(values["input"], values["diff"])
        except PatchError:
            yield case.get("name", ""), "error" in parts
            continue
        text = pretty(values["input"])
        good = "output" in values and differences(values["output"], result.value) == []
        yield case.get("name", ""), good and differences(values["output"], parse(result.text(text))) == []


def json_cases(folder: Path) -> Iterator[Verdict]:
    for case in parse_list((folder / "json-patch-tests.json").read_bytes()):
        try:
            result = json_patch.apply(case["doc"], case["patch"])
        except PatchError:
            yield case["comment"], "error" in case
            continue
        text = pretty(case["doc"])
        good = "expected" in case and same(result.value, case["expected"])
        yield case["comment"], good and same(parse(result.text(text)), case["expected"])


def xml_cases(folder: Path) -> Iterator[Verdict]:
    for case in etree.parse(str(folder / "xml-patch-tests.xml")).getroot().iter("case"):
        target, patch, expected = case.find("target"), case.find(FHIR + "patch"), case.find("patched")
        assert target is not None
        assert patch is not None
        document = etree.tostring(target[0], with_tail=False) if len(target) else b""
        try:
            result = xml_patch.apply_document(document, etree.tostring(patch, with_tail=False))
        except PatchError:
            yield case.get("name", ""), expected is None
            continue
        good = expected is not None and shape(etree.fromstring(result)) == shape(expected[0])
        yield case.get("name", ""), good


def shape(element: Any) -> Any:
    """An element without white space between elements, as HL7's own harness compares."""
    texts = [(element.text or "").strip(), *((child.tail or "").strip() for child in element)]
    named = isinstance(element.tag, str)
    prefixes = {key: uri for key, uri in (element.nsmap or {}).items() if key} if named else {}
    return str(element.tag), dict(element.attrib), prefixes, texts, [shape(child) for child in element]


SUITES = (("fhirpath-patch", fhirpath_cases, 33), ("json-patch", json_cases, 16), ("xml-patch", xml_cases, 29))


@pytest.mark.needs("shared")
@pytest.mark.parametrize(("name", "cases", "total"), SUITES, ids=[suite[0] for suite in SUITES])
def test_the_official_suite_passes_whole(shared: Path, name: str, cases: Any, total: int) -> None:
    verdicts = list(cases(shared / "patch"))
    assert [case for case, good in verdicts if not good] == [], name
    assert len(verdicts) == total


def main() -> int:
    folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "patch"
    sound = True
    for name, cases, total in SUITES:
        passed = sum(good for _, good in cases(folder))
        sound = sound and passed == total
        print(f"{name} {passed}+0/{total}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
