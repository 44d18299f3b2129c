"""Topics `json` and `xml`: the cost of reading, checking and writing a resource's text.

The fair peer does what the server must do: read the text, set id and meta, write it. orjson and the standard library
lose number lexemes and let duplicate keys pass; they are the price list, not an alternative.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import report, samples
from benchmarks.rounds import Effort, Subject, Timing, measured
from profiles import json_text
from profiles.validator.structure import check

META = {"versionId": "1", "lastUpdated": "2026-01-01T00:00:00.000000Z"}


def json_topic(effort: Effort) -> report.Report:
    """`json_text` beside orjson and the standard library."""
    texts = samples.texts(samples.resources(effort.sample))
    found = measured(_json_subjects(texts), effort)
    for module in ("orjson",):
        if not _there(module):
            for work in ("read", "read + write", "read + write, indented"):
                found[f"{module} {work}"] = Timing((0.0,))
    ours, whole = found["json_text read"], found["json_text read + splice"]
    indented = found["json_text read + splice, indented"]
    goals = [
        ("read (all of json_text's checks)", ours, "read"),
        ("read + set id and meta + write", whole, "read + write"),
    ]
    ratios = [
        [
            what,
            report.ratio(t.median, found[f"orjson {peer}"].median),
            report.ratio(t.median, found[f"stdlib json {peer}"].median),
        ]
        for what, t, peer in [*goals, ("the same on indented text", indented, "read + write, indented")]
    ]
    grids = [
        report.Grid(
            "Time, times that of the peer (goal: read + write at most 4x orjson)",
            ["Work", "of orjson", "of stdlib json"],
            ratios,
        ),
        _absolute(found, sum(map(len, texts)) / len(texts)),
    ]
    missing = [] if _there("orjson") else ["orjson is not installed (`pip install orjson`): its columns are empty."]
    return report.Report(
        "json",
        "JSON text",
        grids,
        [
            *missing,
            f"{len(texts)} resources, {sum(map(len, texts)) / len(texts):,.0f} bytes on average. `splice` keeps the "
            "client's text and sets id and meta; the peers read, set the same members and write.",
            samples.described(),
        ],
    )


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _json_subjects(texts: Sequence[bytes]) -> list[Subject]:
    def each(work: Callable[[bytes], object]) -> Callable[[], int]:
        def run() -> int:
            for text in texts:
                work(text)
            return len(texts)

        return run

    spaced = [json.dumps(json.loads(text), ensure_ascii=False, indent=2).encode() for text in texts]

    def each_indented(work: Callable[[bytes], object]) -> Callable[[], int]:
        return lambda: len([work(text) for text in spaced])

    subjects = [
        Subject("json_text read", each(json_text.parse)),
        Subject("json_text read + splice", each(_splicing())),
        Subject("json_text read + splice, indented", each_indented(_splicing())),
        Subject("stdlib json read + write, indented", each_indented(_stdlib)),
        Subject("json_text read + write", each(lambda text: json_text.write(json_text.parse(text)))),
        Subject("json_text read + structure check + splice", each(_splicing(checked=True))),
        Subject("stdlib json read", each(json.loads)),
        Subject("stdlib json read + write", each(_stdlib)),
    ]
    if _there("orjson"):
        orjson = importlib.import_module("orjson")
        subjects.append(Subject("orjson read", each(orjson.loads)))

        def theirs(text: bytes) -> object:
            return orjson.dumps(_with_meta(orjson.loads(text)))

        subjects.append(Subject("orjson read + write", each(theirs)))
        subjects.append(Subject("orjson read + write, indented", each_indented(theirs)))
    return subjects


def _with_meta(resource: dict[str, Any]) -> dict[str, Any]:
    resource["id"] = "id"
    resource["meta"] = resource.get("meta", {}) | META
    return resource


def _stdlib(text: bytes) -> bytes:
    return json.dumps(_with_meta(json.loads(text)), ensure_ascii=False, separators=(",", ":")).encode()


def _splicing(checked: bool = False) -> Callable[[bytes], object]:
    json_edit: Any = importlib.import_module("profiles.json_edit")

    def run(text: bytes) -> object:
        resource = json_text.parse(text)
        if checked:
            check(resource)
        head, tail = json_edit.framed(text.decode(), resource, "id")
        return f'{head}"versionId":"1","lastUpdated":"{META["lastUpdated"]}"{tail}'.encode()

    return run


def xml_topic(effort: Effort) -> report.Report:
    """`xml_text` beside lxml alone, which knows nothing of FHIR."""
    from lxml import etree

    module: Any = importlib.import_module("profiles.xml_text")
    read, write = module.from_xml, module.to_xml
    plain = samples.texts(samples.resources(effort.sample))
    resources = [json_text.parse(text) for text in plain]
    written = [write(resource) for resource in resources]
    texts = [text if isinstance(text, bytes) else text.encode() for text in written]
    trees = [etree.fromstring(text) for text in texts]
    found = measured(
        [
            Subject("xml_text read", lambda: len([read(text) for text in texts])),
            Subject("xml_text write", lambda: len([write(resource) for resource in resources])),
            Subject("lxml read", lambda: len([etree.fromstring(text) for text in texts])),
            Subject("lxml write", lambda: len([etree.tostring(tree) for tree in trees])),
            Subject("json_text read, the same as JSON", lambda: len([json_text.parse(text) for text in plain])),
        ],
        effort,
    )
    ratios = [
        [work, report.ratio(found[f"xml_text {work}"].median, found[f"lxml {work}"].median)]
        for work in ("read", "write")
    ]
    return report.Report(
        "xml",
        "XML text",
        [
            report.Grid("Time, times that of lxml alone", ["Work", "of lxml"], ratios),
            _absolute(found, sum(map(len, texts)) / len(texts)),
        ],
        [
            f"{len(texts)} resources, {sum(map(len, texts)) / len(texts):,.0f} bytes of XML on average.",
            samples.described(),
        ],
    )


def _absolute(found: dict[str, Timing], size: float) -> report.Grid:
    rows = [
        [
            name,
            report.micros(timing.median),
            report.spread(timing.low * 1e6, timing.high * 1e6),
            report.rate(1 / timing.median),
            f"{size / timing.median / 1e6:.0f}",
        ]
        for name, timing in found.items()
        if timing.median
    ]
    return report.Grid("Absolute", ["Work", "µs a resource", "min to max", "a second", "MB/s"], rows)
