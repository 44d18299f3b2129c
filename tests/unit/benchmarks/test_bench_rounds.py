"""The harness in one process: rounds, tables, the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import report
from benchmarks.machine import machine
from benchmarks.rounds import QUICK, Effort, Subject, measured, turns


def test_every_round_begins_with_another_subject() -> None:
    assert [turns(3, number) for number in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


def test_a_timing_has_one_value_a_round_and_its_median_lies_between_the_ends() -> None:
    effort = Effort(rounds=3, seconds=0.01, warm_up=0.0)
    found = measured([Subject("a", lambda: 10), Subject("b", lambda: sum(range(1000)) and 1)], effort)
    assert [len(timing.rounds) for timing in found.values()] == [3, 3]
    assert all(timing.low <= timing.median <= timing.high for timing in found.values())
    assert found["a"].median < found["b"].median


def test_a_topic_replaces_its_own_section_and_nothing_else() -> None:
    page = "# Page\n\nWords.\n"
    page = report.inserted(page, "json", "first\n")
    page = report.inserted(page, "xml", "other\n")
    page = report.inserted(page, "json", "second \\1\n")
    assert page.startswith("# Page\n\nWords.\n")
    assert "first" not in page
    assert page.count("second \\1") == page.count("other") == 1
    assert page.index("second") < page.index("other")


def test_a_section_shows_ratios_first_then_numbers_method_and_machine() -> None:
    grids = [report.Grid("Ratios", ["a", "b"], [["x", "2.00x"]]), report.Grid("Absolute", ["a", "b"], [["a|b", "1"]])]
    text = report.markdown(report.Report("t", "Title", grids, ["How."]), machine("PostgreSQL 15"))
    assert text.index("Ratios") < text.index("Absolute") < text.index("- How.") < text.index("cores")
    assert "a\\|b" in text
    assert "PostgreSQL 15" in text


def test_ratios_and_numbers_are_short() -> None:
    assert report.ratio(3.0, 2.0) == "1.50x"
    assert report.ratio(3.0, 0.0) == "-"
    assert [report.rate(n) for n in (12345.6, 99.94, 1.234)] == ["12,346", "99.9", "1.23"]


@pytest.mark.parametrize("topic", ["json", "extract", "fhirpath-compile", "ucum"])
def test_a_local_topic_gives_a_report_on_tiny_counts(topic: str) -> None:
    effort = Effort(rounds=1, seconds=0.01, warm_up=0.0, sample=8)
    found = command.LOCAL[topic](effort)
    assert found.topic == topic
    assert all(len(row) == len(grid.head) for grid in found.grids for row in grid.rows)


def test_the_command_refuses_unknown_topics_and_peers_that_are_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--only", "nothing"],
        ["--peer", "x=http://example.org/fhir"],
        ["--peer", "limit=http://[::1]/"],
    ):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
    assert "loopback" in capsys.readouterr().err


def test_a_quick_run_prints_and_leaves_the_page_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = report.PAGE.read_bytes()
    assert command.main(["--quick", "--rounds", "1", "--only", "fhirpath-compile"]) == 0
    assert "FHIRPath: compiling" in capsys.readouterr().out
    assert report.PAGE.read_bytes() == before


def test_every_topic_has_a_name_and_quick_is_small() -> None:
    assert len({*command.LOCAL, *command.HTTP}) == len(command.LOCAL) + len(command.HTTP)
    assert QUICK.rounds * QUICK.seconds < 1


def test_the_page_says_how_to_run_the_topics() -> None:
    text = Path(report.PAGE).read_text("utf-8")
    assert "make bench" in text
