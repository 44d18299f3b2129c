"""`python -m benchmarks.scoreboard`: the official suites, a line each: `name passed+excused/total`.

A suite is a file `tests/**/test_*_official.py` that prints its line (or lines) when it is run as a program and exits
with 1 when a test fails without an excuse; excuses stand, with their reasons, in a reviewed file beside its data.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from benchmarks.machine import ROOT

EXPECTED = ("fhirpath", "fhirpath-patch", "json-patch", "xml-patch", "ucum")
_LINE = re.compile(r"^([a-z0-9-]+) (\d+)\+(\d+)/(\d+)$", re.MULTILINE)
_UCUM = ROOT / "tests" / "unit" / "profiles" / "test_ucum_official.py"
_SECONDS = 600


def main() -> int:
    """Print every line; 1 when a suite fails, does not run, or is missing."""
    lines: dict[str, tuple[int, int, int]] = {}
    sound = True
    for path in sorted((ROOT / "tests").rglob("test_*_official.py")):
        if "__main__" in path.read_text("utf-8"):
            done = subprocess.run(
                [sys.executable, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS
            )
            found = dict(_lines(done.stdout))
            lines |= found
            if done.returncode or not found:
                sound = False
                print(f"{path.name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
    if "ucum" not in lines and _UCUM.exists():
        lines["ucum"] = _ucum()
    for name in dict.fromkeys((*EXPECTED, *lines)):
        if name in lines:
            passed, excused, total = lines[name]
            print(f"{name} {passed}+{excused}/{total}")
            sound = sound and passed + excused == total
        else:
            print(f"{name} -")
            sound = False
    return 0 if sound else 1


def _lines(text: str) -> Iterator[tuple[str, tuple[int, int, int]]]:
    for name, passed, excused, total in _LINE.findall(text):
        yield name, (int(passed), int(excused), int(total))


def _ucum() -> tuple[int, int, int]:
    """The UCUM functional tests, through the functions of their test file."""
    from lxml import etree

    from profiles.ucum import units

    sys.path.insert(0, str(_UCUM.parent))
    tests: Any = importlib.import_module(_UCUM.stem)
    folder = ROOT.parent / "shared" / "data" / "ucum"
    suite = etree.parse(str(next(folder.glob("*unctional*.xml")))).getroot()
    results = [(units.validate(c["unit"]) == "") == (c["valid"] == "true") for c in tests.cases(suite, "validation")]
    results += [units.display(c["unit"]) == c["display"] for c in tests.cases(suite, "displayNameGeneration")]
    for case in tests.cases(suite, "conversion"):
        value = units.convert(Decimal(case["value"]), case["srcUnit"], case["dstUnit"])
        results.append(bool(tests.meets(value, case["outcome"])))
    for kind, operation in (("multiplication", units.multiply), ("division", units.divide)):
        for case in tests.cases(suite, kind):
            value, code = operation(Decimal(case["v1"]), case["u1"], Decimal(case["v2"]), case["u2"])
            results.append(bool(tests.meets(units.convert(value, code, case["uRes"] or "1"), case["vRes"])))
    return sum(results), 0, len(results)


if __name__ == "__main__":
    sys.exit(main())
