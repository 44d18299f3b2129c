"""`passerelle fhirpath EXPR FILE`: units, value sets and base profiles come with it, from the shipped definitions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RESOURCE = {"resourceType": "Patient", "gender": "female", "birthDate": "1980", "multipleBirthInteger": 2}
SET = "http://hl7.org/fhir/ValueSet/administrative-gender"
PROFILE = "http://hl7.org/fhir/StructureDefinition"


def run(folder: Path, expression: str, text: str = "") -> subprocess.CompletedProcess[str]:
    path = folder / "resource"
    path.write_text(text or json.dumps(RESOURCE), encoding="utf-8")
    command = [sys.executable, "-m", "fhir_server.cli", "fhirpath", expression, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("gender", "female"),
        ("4 'g' = 4000 'mg'", "true"),
        ("(1 'kg').toQuantity('g') = 1000 'g'", "true"),
        (f"gender.memberOf('{SET}')", "true"),
        (f"'f'.memberOf('{SET}')", "false"),
        (f"conformsTo('{PROFILE}/Patient')", "true"),
        (f"conformsTo('{PROFILE}/Observation')", "false"),
    ],
)
def test_the_command_knows_units_value_sets_and_base_profiles(tmp_path: Path, expression: str, told: str) -> None:
    done = run(tmp_path, expression)
    assert (done.returncode, done.stdout.strip()) == (0, told), done.stderr


@pytest.mark.parametrize(
    ("expression", "text", "told"),
    [
        ("gender.memberOf('http://example.org/none')", "", "is not known here"),
        ("name.where(", "", "column"),
        ("(" * 5000, "", "column"),
        ("gender", '{"resourceType":"Patient",\n"gender":}', "line 2, column 10"),
    ],
)
def test_what_cannot_be_told_is_an_error_with_its_place(tmp_path: Path, expression: str, text: str, told: str) -> None:
    done = run(tmp_path, expression, text)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_xml_is_read_like_json(tmp_path: Path) -> None:
    text = '<Patient xmlns="http://hl7.org/fhir"><gender value="male"/></Patient>'
    assert run(tmp_path, "gender", text).stdout.strip() == "male"
