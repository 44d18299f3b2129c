"""Text, JUnit and JSON of a run, whatever strange bytes the evidence holds."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from conformance import report, runner

CLAUSE = "https://example.org/clause"
FAILED = runner.Result(
    "hl7v2.one", "One thing", "hl7v2", "N1", (CLAUSE,), "fail", "expected A; found B <&\x0b>", "A", "B <&\x0b>",
    CLAUSE, "try C", ("> MSH|^~\\&|\x0b\x1c\x00", "< nothing\nat all ]]>"), 0.25,
)  # fmt: skip
RUN = runner.Run(
    {"hl7v2": "mllp://host:2575"},
    "2024-03-06T11:11:54Z",
    1.5,
    (
        FAILED,
        runner.Result("hl7v2.two", "Two", "hl7v2", "N2", (CLAUSE,), "pass", seconds=0.5),
        runner.Result("hl7v2.three", "Three", "hl7v2", "N1", (CLAUSE,), "error", "nobody there"),
        runner.Result("hl7v2.four", "Four", "hl7v2", "N1", (CLAUSE,), "omit", "excluded by the user"),
        runner.Result("hl7v2.five", "Five", "hl7v2", "N1", (CLAUSE,), "skip", "no such thing"),
        runner.Result("dicom.six", "Six", "dicom", "N1", (CLAUSE,), "skip", "no --target dicom=... was given"),
    ),
)


def test_the_text_has_one_line_a_check_and_then_what_failed_and_why() -> None:
    told = report.text(RUN)
    assert "FAIL  hl7v2.one" in told
    assert "ok    hl7v2.two" in told
    assert "skip  hl7v2.five" in told
    for words in ("expected  A", "found     B", f"clause    {CLAUSE}", "hint      try C", "> MSH|", "nobody there"):
        assert words in told
    assert "1 checks of dicom were not run" in told
    assert "dicom.six" not in told
    assert told.rstrip().endswith("1 pass, 1 fail, 2 skip, 1 error, 1 omit in 1.5 s: does NOT pass")


def test_the_text_of_a_live_run_does_not_repeat_the_lines() -> None:
    told = report.text(RUN, lines=False)
    assert "ok    hl7v2.two" not in told
    assert "expected  A" in told


def test_junit_is_well_formed_xml_with_a_case_for_every_check() -> None:
    root = ElementTree.fromstring(report.junit(RUN))  # noqa: S314 - our own report
    assert root.attrib["tests"] == "6"
    assert {one.get("name") for one in root.iter("testsuite")} == {"hl7v2", "dicom"}
    cases = {str(one.get("name")).partition(":")[0]: one for one in root.iter("testcase")}
    assert list(cases) == ["hl7v2.one", "hl7v2.two", "hl7v2.three", "hl7v2.four", "hl7v2.five", "dicom.six"]
    failure = cases["hl7v2.one"].find("failure")
    assert failure is not None
    assert "B <&\ufffd>" in str(failure.get("message"))
    assert cases["hl7v2.three"].find("error") is not None
    assert cases["hl7v2.four"].find("skipped") is not None
    assert cases["hl7v2.two"].find("failure") is None
    evidence = cases["hl7v2.one"].find("system-out")
    assert evidence is not None
    assert "at all ]]>" in str(evidence.text)
    clauses = [one.get("value") for one in cases["hl7v2.one"].iter("property") if one.get("name") == "verifies"]
    assert clauses == [CLAUSE]


def test_junit_counts_add_up() -> None:
    root = ElementTree.fromstring(report.junit(RUN))  # noqa: S314 - our own report
    (suite,) = [one for one in root.iter("testsuite") if one.get("name") == "hl7v2"]
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["5", "1", "1", "2"]


def test_json_gives_the_run_back() -> None:
    assert report.read(report.dump(RUN)) == RUN


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"results": 7}', '{"results": [{"status": "maybe"}], "addresses": {}}', "[" * 100_000,
     report.dump(RUN).replace('"omit"', '"odd"')],
)  # fmt: skip
def test_what_is_not_the_json_of_a_run_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        report.read(text)


def test_the_table_has_a_row_for_every_check_and_links_its_clauses() -> None:
    table = report.markdown(runner.load())
    for one in runner.load():
        assert f"| `{one.id}` | {one.title} |" in table
        for url in one.verifies:
            assert url in table


def test_the_list_can_be_read_by_programs() -> None:
    import json

    rows = json.loads(report.listing(runner.load(), as_json=True))
    assert [row["id"] for row in rows] == [one.id for one in runner.load()]
    assert rows[0]["verifies"]
