"""A topic's result as Markdown, and its place in `docs/performance.md`.

Each topic owns what stands between its two markers; running a topic again replaces that and nothing else. Ratios come
first, absolute numbers second, then how it was measured and on what.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import Machine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: a caption, the column heads, and rows of ready text."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Report:
    """What one topic found. `grids` are in the order of reading: ratios, then absolute numbers."""

    topic: str
    title: str
    grids: Sequence[Grid]
    method: Sequence[str] = field(default=())


def markdown(report: Report, machine: Machine) -> str:
    """The section of a topic, without its markers."""
    lines = [f"## {report.title}", ""]
    for grid in report.grids:
        lines += [f"**{grid.caption}**", ""]
        lines.append("| " + " | ".join(grid.head) + " |")
        lines.append("| " + " | ".join("---" if place == 0 else "---:" for place in range(len(grid.head))) + " |")
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in grid.rows]
        lines.append("")
    lines += [f"- {sentence}" for sentence in report.method]
    lines.append(f"- {machine.sentence}")
    return "\n".join(lines) + "\n"


def inserted(page: str, topic: str, section: str) -> str:
    """The page with the topic's section replaced, or added at the end."""
    opening, closing = f"<!-- bench:{topic} -->", f"<!-- /bench:{topic} -->"
    block = f"{opening}\n{section}{closing}"
    place = re.compile(re.escape(opening) + r".*?" + re.escape(closing), re.DOTALL)
    if place.search(page):
        return place.sub(lambda _: block, page, count=1)
    return page.rstrip("\n") + "\n\n" + block + "\n"


def write(report: Report, machine: Machine, page: Path = PAGE) -> None:
    """Put the topic's section into the page."""
    page.write_text(inserted(page.read_text("utf-8"), report.topic, markdown(report, machine)), "utf-8")


def ratio(ours: float, other: float) -> str:
    """How many times the other's, `-` when the other has none."""
    return f"{ours / other:.2f}x" if ours and other else "-"


def micros(seconds: float) -> str:
    """Microseconds with three digits that count."""
    return _short(seconds * 1e6)


def millis(seconds: float) -> str:
    """Milliseconds with three digits that count."""
    return _short(seconds * 1e3)


def rate(per_second: float) -> str:
    """Operations a second."""
    return _short(per_second)


def _short(number: float) -> str:
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def spread(low: float, high: float) -> str:
    """`low to high`, as rates or times."""
    return f"{_short(low)} to {_short(high)}"
