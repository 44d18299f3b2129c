"""Topics `fhirpath`, `fhirpath-compile`, `extract` and `ucum`: what search extraction costs.

`fhirpath` weighs by use: every search expression of a resource's type is evaluated on every resource of a random
sample, so that an expression counts as often as a server would evaluate it. Peers are given the expressions that they
evaluate without an error on the whole sample; the ratio compares the same expressions.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from benchmarks import report, samples
from benchmarks.machine import ROOT
from benchmarks.rounds import Effort, Subject, Timing, measured
from profiles import definitions, json_text
from profiles.fhirpath import engine

Pairs = list[tuple[str, dict[str, Any]]]
Evaluate = Callable[[dict[str, Any]], object]


def fhirpath_topic(effort: Effort) -> report.Report:
    """The mean cost of a search expression, beside the public Python engines."""
    sample = samples.resources(min(effort.sample, 300))
    pairs = _pairs(sample)
    peers = {name: make for name, make in _PEERS.items() if importlib.util.find_spec(name) is not None}
    method = [f"{name} is not installed (`pip install {name}`)." for name in _PEERS if name not in peers]
    subjects = [_ours("passerelle", pairs), _lossless("passerelle, json_text values", pairs)]
    for name, make in peers.items():
        evaluators, usable, refused = _usable(make, pairs)
        subjects.append(_theirs(name, evaluators, usable))
        subjects.append(_ours(f"passerelle on what {name} evaluates", usable))
        method.append(
            f"{name} evaluates {len(usable)} of {len(pairs)} uses; it refuses {len(refused)} expressions, "
            f"such as `{min(refused, key=len)}`."
            if refused
            else f"{name} evaluates all {len(pairs)} uses."
        )
    found = measured(subjects, effort)
    ratios = [
        [name, report.ratio(found[name].median, found[f"passerelle on what {name} evaluates"].median)] for name in peers
    ]
    return report.Report(
        "fhirpath",
        "FHIRPath: a search expression",
        [
            report.Grid("Time of the peer, times ours, on the same expressions", ["Peer", "times ours"], ratios),
            _absolute("Absolute (goal: 2 µs)", found, "µs an expression"),
        ],
        [
            f"{len(sample)} resources at random, {len(pairs)} evaluations, "
            f"{len({text for text, _ in pairs})} different expressions, each compiled once before.",
            *method,
            samples.described(),
        ],
    )


def _pairs(sample: Sequence[dict[str, Any]]) -> Pairs:
    found: Pairs = []
    for resource in sample:
        for parameter in definitions.search_parameters(resource["resourceType"]):
            if parameter.expression and parameter.type != "composite":
                found.append((parameter.expression, resource))
    return found


def _ours(name: str, pairs: Pairs) -> Subject:
    ready = [(engine.compile(text, search=True), resource) for text, resource in pairs]

    def run() -> int:
        for compiled, resource in ready:
            compiled(resource)
        return len(ready)

    return Subject(name, run)


def _lossless(name: str, pairs: Pairs) -> Subject:
    """The same on resources as the server reads them, with numbers that keep their spelling."""
    kept: dict[int, dict[str, Any]] = {}
    again: Pairs = []
    for text, resource in pairs:
        if id(resource) not in kept:
            kept[id(resource)] = json_text.parse(samples.texts([resource])[0])
        again.append((text, kept[id(resource)]))
    return _ours(name, again)


def _theirs(name: str, evaluators: dict[str, Evaluate], pairs: Pairs) -> Subject:
    ready = [(evaluators[text], resource) for text, resource in pairs]

    def run() -> int:
        for evaluate, resource in ready:
            evaluate(resource)
        return len(ready)

    return Subject(name, run)


def _usable(make: Callable[[str], Evaluate], pairs: Pairs) -> tuple[dict[str, Evaluate], Pairs, set[str]]:
    """The peer's evaluators, the uses it manages, the expressions that fail on any resource."""
    evaluators: dict[str, Evaluate] = {}
    refused: set[str] = set()
    for text, resource in pairs:
        if text in refused:
            continue
        try:
            if text not in evaluators:
                evaluators[text] = make(text)
            evaluators[text](resource)
        except Exception:  # a peer's errors are of any class: the expression is left out and told
            refused.add(text)
    return evaluators, [(text, resource) for text, resource in pairs if text not in refused], refused


def _fhirpathpy(text: str) -> Evaluate:
    module: Any = importlib.import_module("fhirpathpy")
    models: Any = importlib.import_module("fhirpathpy.models")
    compiled = module.compile(text, models.models["r4"])
    return lambda resource: compiled(resource, {})


def _fhirpathrs(text: str) -> Evaluate:
    module: Any = importlib.import_module("fhirpathrs")
    return lambda resource: module.evaluate(text, resource)


_PEERS: dict[str, Callable[[str], Evaluate]] = {"fhirpathpy": _fhirpathpy, "fhirpathrs": _fhirpathrs}


def compile_topic(effort: Effort) -> report.Report:
    """Parsing and compiling every R4 search expression."""
    texts = sorted({p.expression for p in definitions.all_search_parameters() if p.expression})
    if effort.sample < 100:
        texts = texts[:40]
    subjects = [Subject("passerelle", lambda: len([engine.Compiled(text, search=True) for text in texts]))]
    method = [f"{len(texts)} different expressions of R4's SearchParameters; nothing kept from one to the next."]
    if importlib.util.find_spec("fhirpathpy") is not None:
        some = texts[:: max(1, len(texts) // 60)]
        subjects.append(Subject("fhirpathpy", lambda: len([_fhirpathpy(text) for text in some])))
        method.append(f"fhirpathpy on {len(some)} of them. fhirpathrs parses at every evaluation: see `fhirpath`.")
    found = measured(subjects, effort)
    ratios = [[s.name, report.ratio(found[s.name].median, found["passerelle"].median)] for s in subjects[1:]]
    return report.Report(
        "fhirpath-compile",
        "FHIRPath: compiling",
        [
            report.Grid("Time of the peer, times ours", ["Peer", "times ours"], ratios),
            _absolute("Absolute", found, "µs an expression"),
        ],
        method,
    )


def extract_topic(effort: Effort) -> report.Report:
    """All index rows of a resource, as the server makes them at every write."""
    from fhir_server.search import index

    texts = samples.texts(samples.resources(effort.sample))
    resources = [json_text.parse(text) for text in texts]
    kinds = sorted({resource["resourceType"] for resource in resources})
    start = time.perf_counter()
    for kind in kinds:
        index.rows({"resourceType": kind})
    first = time.perf_counter() - start
    by_kind = {
        kind: [r for r in resources if r["resourceType"] == kind]
        for kind in ("Observation", "Patient", "Encounter", "Claim")
    }
    subjects = [Subject("all", _extraction(index.rows, resources))]
    subjects += [Subject(kind, _extraction(index.rows, some)) for kind, some in by_kind.items() if some]
    found = measured(subjects, effort)
    rows = sum(_count(index.rows(resource)) for resource in resources) / len(resources)
    goal = [["all", report.ratio(found["all"].median, 60e-6)]]
    return report.Report(
        "extract",
        "Search extraction",
        [
            report.Grid("Time, times the goal of 60 µs", ["Resources", "of the goal"], goal),
            _absolute("Absolute", found, "µs a resource"),
        ],
        [
            f"{len(texts)} resources at random, {sum(map(len, texts)) / len(texts):,.0f} bytes and {rows:.1f} index "
            f"rows on average; the JSON is read before. First use of {len(kinds)} types: {first * 1000:.0f} ms once.",
            samples.described(),
        ],
    )


def _extraction(rows: Callable[[dict[str, Any]], object], resources: Sequence[dict[str, Any]]) -> Callable[[], int]:
    def run() -> int:
        for resource in resources:
            rows(resource)
        return len(resources)

    return run


def _count(rows: Any) -> int:
    names = ("string", "token", "date", "number", "quantity", "reference", "uri", "coords")
    return sum(len(getattr(rows, name)) for name in names)


UNITS = (
    "kg",
    "mg/dL",
    "mm[Hg]",
    "kg/m2",
    "10*3/uL",
    "Cel",
    "/min",
    "mmol/L",
    "{score}",
    "[degF]",
    "ug/g{creat}",
    "m/s2",
)


_STARTS = {
    "interpreter alone": "pass",
    "import of profiles.definitions": "import profiles.definitions",
    "first StructureDefinition": "from profiles import definitions; definitions.structure('Patient')",
    "first search parameters": "from profiles import definitions; definitions.search_parameters('Patient')",
    "all search parameters": "from profiles import definitions; definitions.all_search_parameters()",
    "first structural check": (
        "from profiles.validator.structure import check; check({'resourceType': 'Patient', 'gender': 'female'})"
    ),
}


def definitions_topic(effort: Effort) -> report.Report:
    """What the definitions cost a process that starts: each work in a new interpreter."""

    def started(program: str) -> Callable[[], int]:
        def run() -> int:
            subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)
            return 1

        return run

    found = measured([Subject(name, started(program)) for name, program in _STARTS.items()], effort)
    base = found["interpreter alone"].median
    rows = [[name, f"{(timing.median - base) * 1000:.0f}"] for name, timing in found.items()]
    return report.Report(
        "definitions",
        "Definitions: start-up",
        [report.Grid("Beyond the interpreter alone", ["Work", "ms, once a process"], rows)],
        ["Each in a new interpreter; the one file of definitions is opened at first use and read part by part."],
    )


def ucum_topic(effort: Effort) -> report.Report:
    """Parsing, canonicalising and converting the units of everyday observations."""
    units: Any = importlib.import_module("profiles.ucum.units")
    value = Decimal("72.50")
    pairs = (("kg", "[lb_av]"), ("mg/dL", "g/L"), ("mm[Hg]", "kPa"), ("Cel", "[degF]"), ("m/s", "km/h"))
    subjects = [
        Subject("parse, seen before", lambda: len([units.parse(code) for code in UNITS])),
        Subject("canonical form of a quantity", lambda: len([units.canonical(value, code) for code in UNITS])),
        Subject("conversion", lambda: len([units.convert(value, source, target) for source, target in pairs])),
    ]
    clear = getattr(units.parse, "cache_clear", None)
    if clear is not None:

        def cold() -> int:
            clear()
            return len([units.parse(code) for code in UNITS])

        subjects.append(Subject("parse, never seen", cold))
    found = measured(subjects, effort)
    base = found["conversion"].median
    ratios = [[name, report.ratio(timing.median, base)] for name, timing in found.items() if name != "conversion"]
    return report.Report(
        "ucum",
        "UCUM units",
        [
            report.Grid("Time, times that of a conversion", ["Work", "of a conversion"], ratios),
            _absolute("Absolute", found, "µs each"),
        ],
        [f"{len(UNITS)} units: {', '.join(f'`{code}`' for code in UNITS)}."],
    )


def _absolute(caption: str, found: dict[str, Timing], unit: str) -> report.Grid:
    rows = [
        [name, report.micros(t.median), report.spread(t.low * 1e6, t.high * 1e6), report.rate(1 / t.median)]
        for name, t in found.items()
        if t.median
    ]
    return report.Grid(caption, ["Work", unit, "min to max", "a second"], rows)
