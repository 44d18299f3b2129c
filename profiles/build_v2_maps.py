"""Builds `profiles/data/v2-to-fhir.json`, the concept maps of HL7 v2-to-FHIR that the mappers work from.

    python -m profiles.build_v2_maps FOLDER [--out FILE.json]

Hides how the maps are published: one CSV sheet each, two lines of headings, codes that have no equivalent left empty.
FOLDER is `mappings/codesystems` of https://github.com/HL7/v2-to-fhir at the commit named below. Taken are the maps of
`MAPS`, of each the codes that have an equivalent. The output is the same, byte for byte, for the same source.

Licence of the source: Apache-2.0. Columns: https://build.fhir.org/ig/HL7/v2-to-fhir/mapping_guidelines.html
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

from profiles.v2_maps import DATA

SOURCE = "https://github.com/HL7/v2-to-fhir, commit 8c9b414be1729c98988b17e7fa86221fc8018c73, Apache-2.0"
MAPS = (
    "AddressType[Type]",
    "AddressType[Use]",
    "AdministrativeSex",
    "ExtendedPriorityCodes",
    "FillerStatusCodes[Appointment]",
    "InterpretationCodes",
    "MaritalStatus",
    "NameType",
    "ObservationResultStatusCodesInterpretation",
    "PatientClass[EncounterClass]",
    "ResultStatus[Non-Queries]",
    "TelecommunicationEquipmentType",
    "TelecommunicationUseCode",
)
_HEADINGS, _FROM, _CONDITIONS, _TO = 2, 0, slice(3, 6), 6


class BuildError(Exception):
    """A map is missing or is not what this reads; the message names it."""


def published(folder: Path, name: str) -> dict[str, str]:
    """The codes of one map that have an equivalent, with it. Raises BuildError for one this cannot tell."""
    path = folder / f"HL7 Concept Map_ {name} - Sheet1.csv"
    found: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.reader(lines))[_HEADINGS:]
    except OSError as error:
        raise BuildError(f"{path.name}: {error.strerror}") from error
    for row in rows:
        code, equivalent = (row[column].strip() if len(row) > column else "" for column in (_FROM, _TO))
        if not code or not equivalent:
            continue
        if code in found or any(row[_CONDITIONS]):
            raise BuildError(f"{name}: {code} is mapped under a condition, which this file has no place for")
        found[code] = equivalent
    if not found:
        raise BuildError(f"{name}: no code has an equivalent")
    return found


def build(folder: Path, out: Path) -> None:
    """Write the file, a line for each map."""
    maps = [f"{json.dumps(name)}: {json.dumps(published(folder, name), ensure_ascii=False)}" for name in MAPS]
    head = json.dumps({"source": SOURCE}, ensure_ascii=False)[:-1]
    out.write_text(head + ',\n"maps": {\n' + ",\n".join(maps) + "\n}}\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m profiles.build_v2_maps")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=DATA)
    asked = parser.parse_args(arguments)
    build(asked.folder, asked.out)


if __name__ == "__main__":
    main()
