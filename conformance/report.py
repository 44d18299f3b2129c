"""The results of a run as text, JUnit XML and JSON, and the list of checks as a table.

Hides layout and escaping. JSON is the form to keep: `read` gives the run back, and the other forms come from it.

JUnit XML as read by CI servers: https://github.com/testmoapp/junitxml
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any
from xml.etree import ElementTree

from conformance.runner import STATUSES, Check, Result, Run
from conformance.target import WIRES

_MARKS = {"pass": "ok  ", "fail": "FAIL", "skip": "skip", "error": "ERR ", "omit": "omit"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def line(result: Result) -> str:
    """One result in one line: mark, id, title or reason, seconds."""
    told = result.title if result.status in {"pass", "fail"} else result.message
    took = f"  {result.seconds:.2f} s" if result.seconds else ""
    return f"{_MARKS[result.status]}  {result.id:<34} {told}{took}"


def text(run: Run, *, lines: bool = True) -> str:
    """The whole run for a person: a line each (unless `lines` is False), then what failed and why, then the counts.

    Checks of a wire that was given no address share one line.
    """
    out = [f"Conformance of {', '.join(f'{wire} {url}' for wire, url in run.addresses.items())}", ""] if lines else []
    judged = [one for one in run.results if one.wire in run.addresses]
    if lines:
        out += [line(one) for one in judged]
        out.append("")
    for wire in WIRES:
        others = sum(1 for one in run.results if one.wire == wire and wire not in run.addresses)
        if others:
            out.append(f"{others} checks of {wire} were not run: no --target {wire}=... was given")
    for one in judged:
        if one.status in {"fail", "error"}:
            out += ["", *_finding(one)]
    counts = ", ".join(f"{count} {status}" for status, count in run.counts.items() if count)
    verdict = "conforms to every check that could be run" if run.exit_code == 0 else "does NOT pass"
    return "\n".join([*out, "", f"{counts} in {run.seconds:.1f} s: {verdict}", ""])


def _finding(one: Result) -> list[str]:
    out = [f"{_MARKS[one.status].strip()} {one.id}: {one.title}"]
    told = [("expected", one.expected), ("found", one.found)] if one.expected else [("reason", one.message)]
    told += [("clause", one.clause or one.verifies[0]), ("hint", one.hint)]
    out += [f"  {name:<9} {value}" for name, value in told if value]
    for excerpt in one.evidence:
        out += [f"    {piece}" for piece in excerpt.splitlines()]
    return out


def dump(run: Run) -> str:
    """The run as JSON; `read` is its inverse."""
    return json.dumps({**asdict(run), "counts": run.counts}, ensure_ascii=False, indent=1) + "\n"


def read(text: str) -> Run:
    """A run from its JSON; raises `ValueError` when it is none."""
    try:
        value = json.loads(text)
        names = {one.name for one in fields(Result)}
        results = []
        for one in value["results"]:
            known: dict[str, Any] = {
                name: tuple(v) if isinstance(v, list) else v for name, v in one.items() if name in names
            }
            if known["status"] not in STATUSES:
                raise ValueError(f"status {known['status']!r}")
            results.append(Result(**known))
        return Run(dict(value["addresses"]), str(value["started"]), float(value["seconds"]), tuple(results))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not the JSON of a conformance run: {error!r}") from None


def junit(run: Run) -> str:
    """The run as JUnit XML: a suite for each wire, a case for each check, the evidence in system-out."""
    counts = run.counts
    root = ElementTree.Element("testsuites", name="conformance", time=f"{run.seconds:.3f}")
    _count(root, sum(counts.values()), counts["fail"], counts["error"], counts["skip"] + counts["omit"])
    for wire in WIRES:
        results = [one for one in run.results if one.wire == wire]
        if results:
            _suite(root, wire, results, run)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(root: ElementTree.Element, wire: str, results: list[Result], run: Run) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=wire, timestamp=run.started.rstrip("Z"))
    suite.set("time", f"{sum(one.seconds for one in results):.3f}")
    _count(suite, len(results), *(sum(1 for one in results if one.status in kind) for kind in _COUNTED))
    if wire in run.addresses:
        _property(ElementTree.SubElement(suite, "properties"), "address", run.addresses[wire])
    for one in results:
        name = f"{one.id}: {one.title}"
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"conformance.{wire}", name=name, time=f"{one.seconds:.3f}"
        )
        properties = ElementTree.SubElement(case, "properties")
        _property(properties, "level", one.level)
        for url in one.verifies:
            _property(properties, "verifies", url)
        if one.status in _ELEMENTS:
            outcome = ElementTree.SubElement(case, _ELEMENTS[one.status], message=_xml(one.message))
            if one.status in {"fail", "error"}:
                outcome.set("type", one.status)
                outcome.text = _xml("\n".join(_finding(one)))
        if one.evidence:
            ElementTree.SubElement(case, "system-out").text = _xml("\n".join(one.evidence))


_COUNTED = ({"fail"}, {"error"}, {"skip", "omit"})
_ELEMENTS = {"fail": "failure", "error": "error", "skip": "skipped", "omit": "skipped"}


def _count(element: ElementTree.Element, tests: int, failures: int, errors: int, skipped: int) -> None:
    for name, value in (("tests", tests), ("failures", failures), ("errors", errors), ("skipped", skipped)):
        element.set(name, str(value))


def _property(parent: ElementTree.Element, name: str, value: str) -> None:
    ElementTree.SubElement(parent, "property", name=name, value=_xml(value))


def _xml(text: str) -> str:
    # XML 1.0 has no way to write VT, FS and the like, which are just what HL7 evidence is made of.
    return _NOT_XML.sub("\ufffd", text)


def markdown(checks: Iterable[Check]) -> str:
    """The checks as a Markdown table, one wire after the other, with links to their clauses."""
    out = []
    for wire in WIRES:
        rows = [one for one in checks if one.wire == wire]
        if not rows:
            continue
        out += [f"### {wire}: {len(rows)} checks", "", "| Check | What it proves | Level | Needs | Clauses |"]
        out.append("| --- | --- | --- | --- | --- |")
        for one in rows:
            needs = ", ".join(f"`{need}`" for need in one.needs)
            clauses = "<br>".join(_link(url) for url in one.verifies)
            title = one.title.replace("|", "\\|")
            out.append(f"| `{one.id}` | {title} | {one.level} | {needs} | {clauses} |")
        out.append("")
    return "\n".join(out)


def _link(clause: str) -> str:
    if not clause.startswith("http"):
        return clause
    return f"[{clause.removeprefix('https://').removeprefix('hl7.org/fhir/')}]({clause})"


def listing(checks: Iterable[Check], *, as_json: bool = False) -> str:
    """The checks as lines, or as JSON for programs."""
    if as_json:
        rows = [{f.name: getattr(one, f.name) for f in fields(Check) if f.name != "function"} for one in checks]
        return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    return "".join(f"{one.id:<34} {one.level}  {one.title}\n" for one in checks)
