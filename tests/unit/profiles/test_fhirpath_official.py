"""The official FHIRPath suite for R4: every test passes, or is excused in a reviewed file that says why it is wrong.

Also prints one line for the scoreboard: `python tests/unit/profiles/test_fhirpath_official.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from profiles import definitions, json_text
from profiles.fhirpath import check, engine, model, values
from profiles.fhirpath.errors import FhirPathError

HERE = Path(__file__).resolve()
EXCUSED = HERE.parents[2] / "data" / "fhirpath" / "excused.txt"
SHARED = HERE.parents[4] / "shared" / "data"
FHIR = "{http://hl7.org/fhir}"
XHTML = "{http://www.w3.org/1999/xhtml}"


@dataclass(frozen=True)
class Case:
    """One test of the suite. `expected` are (type or None, text) pairs; `invalid` the stage that must fail, or ''."""

    group: str
    name: str
    file: str
    expression: str
    expected: tuple[tuple[str | None, str], ...]
    invalid: str
    predicate: bool
    ordered: bool
    ordered_functions: bool


# --- reading the suite and its inputs --------------------------------------------------------------------------------


def cases(folder: Path) -> Iterator[Case]:
    seen: dict[str, int] = {}
    for group in etree.parse(str(folder / "tests-fhir-r4.xml")).getroot().iter("group"):
        for test in group.iter("test"):
            expression = test.find("expression")
            assert expression is not None
            name = str(test.get("name"))
            seen[name] = seen.get(name, 0) + 1
            yield Case(
                group=str(group.get("name")),
                name=name if seen[name] == 1 else f"{name}#{seen[name]}",
                file=test.get("inputfile") or "",
                expression=expression.text or "",
                expected=tuple((o.get("type"), o.text or "") for o in test.findall("output")),
                invalid=test.get("invalid") or expression.get("invalid") or "",
                predicate=test.get("predicate") == "true",
                ordered=test.get("ordered") != "false",
                ordered_functions=test.get("checkOrderedFunctions") == "true",
            )


@cache
def load(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return json_text.parse(path.read_bytes())
    root = etree.parse(str(path)).getroot()
    name = etree.QName(root).localname
    return {"resourceType": name, **from_xml(root, name)}


def from_xml(element: Any, place: str) -> dict[str, Any]:
    """FHIR XML to JSON, by the definitions."""
    table = definitions.children(place)
    found: dict[str, Any] = {}
    for attribute, value in element.attrib.items():
        if attribute in ("id", "url") and attribute in table:
            found[attribute] = value
    for child in element:
        if not isinstance(child.tag, str):
            continue
        if child.tag.startswith(XHTML):
            found["div"] = etree.tostring(child, encoding="unicode", with_tail=False)
            continue
        name = etree.QName(child).localname
        add(found, name, table[name], child)
    return found


def add(found: dict[str, Any], name: str, child: definitions.Child, element: Any) -> None:
    value: Any
    extra: Any = None
    if definitions.is_primitive(child.type):
        value = element.get("value")
        if value is not None:
            value = typed(child.type, value)
        extra = from_xml(element, "Element") or None
    elif child.type in ("Resource",):
        inner = element[0]
        kind = etree.QName(inner).localname
        value = {"resourceType": kind, **from_xml(inner, kind)}
    else:
        value = from_xml(element, child.place)
    if not child.element.many:
        if value is not None:
            found[name] = value
        if extra:
            found["_" + name] = extra
        return
    found.setdefault(name, []).append(value)
    if extra or "_" + name in found:
        extras = found.setdefault("_" + name, [])
        extras.extend([None] * (len(found[name]) - 1 - len(extras)))
        extras.append(extra)


def typed(kind: str, text: str) -> Any:
    if kind == "boolean":
        return text == "true"
    if kind in ("integer", "positiveInt", "unsignedInt"):
        return int(text)
    return json_text.Number(text) if kind == "decimal" else text


# --- judging ---------------------------------------------------------------------------------------------------------


def judge(case: Case, folder: Path) -> str:
    """'' when the test passes, else what went wrong."""
    resource = load(folder / "input" / case.file) if case.file else {"resourceType": "Patient"}
    root = model.root_node(resource)
    try:
        compiled = engine.compile(case.expression)
        if case.invalid == "semantic":
            check.check(case.expression, root.type, ordered=case.ordered_functions)
        found = compiled.nodes(root)
        plain = compiled(resource)
    except FhirPathError as error:
        return "" if case.invalid else f"error: {error}"
    if case.invalid:
        return f"no error ({case.invalid} expected), result {found!r}"
    unwrapped = [item.value if isinstance(item, model.Node) else item for item in found]
    if plain != [value for value in unwrapped if value is not None]:
        return f"the fast path gives {plain!r}, the typed one {unwrapped!r}"
    if case.predicate:
        found = [bool(found)]
    return difference(case, found)


def difference(case: Case, found: list[Any]) -> str:
    shown = [described(item) for item in found]
    wanted = list(case.expected)
    if len(shown) != len(wanted):
        return f"{len(shown)} items, {len(wanted)} expected: {shown!r}"
    if not case.ordered:
        shown.sort(key=str)
        wanted.sort(key=str)
    for (kind, text), (wanted_kind, wanted_text) in zip(shown, wanted, strict=True):
        if wanted_kind is not None and kind.lower() != wanted_kind.lower():
            return f"a {kind}, {wanted_kind} expected"
        if text != wanted_text:
            return f"{text!r}, {wanted_text!r} expected"
    return ""


def described(item: Any) -> tuple[str, str]:
    kind, value = model.type_of(item).name, model.system(item)
    if isinstance(value, bool):
        return kind, "true" if value else "false"
    if isinstance(value, values.Temporal):
        return kind, ("@T" if value.kind == "Time" else "@") + str(value)
    if isinstance(value, values.Quantity):
        return kind, f"{values.decimal_text(value.value)} '{value.unit}'"
    return kind, values.decimal_text(value) if isinstance(value, Decimal) else str(value)


def excuses() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in EXCUSED.read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition(": ")
            found[name.strip()] = reason.strip()
    return found


def run(folder: Path) -> tuple[int, dict[str, str]]:
    total, failed = 0, dict[str, str]()
    for case in cases(folder):
        total += 1
        problem = judge(case, folder)
        if problem:
            failed[case.name] = f"{case.expression!r}: {problem}"
    return total, failed


@pytest.mark.needs("shared")
def test_the_official_suite_passes_but_for_the_tests_that_are_themselves_wrong(shared: Path) -> None:
    total, failed = run(shared / "fhirpath")
    excused = excuses()
    assert total == 935
    assert {name: why for name, why in failed.items() if name not in excused} == {}
    assert sorted(excused) == sorted(failed), "an excused test passes: remove its excuse"
    assert all(len(reason) > 40 for reason in excused.values())


if __name__ == "__main__":
    count, broken = run(SHARED / "fhirpath")
    known = excuses() if EXCUSED.exists() else {}
    for test, why in broken.items():
        if test not in known:
            sys.stderr.write(f"{test}: {why}\n")
    unexplained = [test for test in broken if test not in known]
    sys.stdout.write(f"fhirpath {count - len(broken)}+{len(broken) - len(unexplained)}/{count}\n")
    sys.exit(1 if unexplained else 0)
