"""`--slice N`: the part of the long tests whose turn it is, so that every day's run adds at most 20 minutes.

A long test says what it takes, `@pytest.mark.long(minutes=4)`, on two quiet cores; one minute when it says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

MOST_MINUTES = 20.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slice", type=int, help="run only this part of the long tests, counted round and round")


def slices(minutes: Mapping[str, float], most: float = MOST_MINUTES) -> list[list[str]]:
    """The tests in parts of at most `most` minutes, each test in one part; the longest are placed first."""
    parts: list[list[str]] = []
    for name in sorted(minutes, key=lambda one: (-minutes[one], one)):
        room = (part for part in parts if sum(minutes[one] for one in part) + minutes[name] <= most)
        part = next(room, None)
        if part is None:
            parts.append(part := [])
        part.append(name)
    return parts


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number = config.getoption("--slice")
    if number is None:
        return
    marks = {item.nodeid: item.get_closest_marker("long") for item in items}
    parts = slices({name: float(mark.kwargs.get("minutes", 1)) for name, mark in marks.items() if mark})
    chosen = set(parts[number % len(parts)]) if parts else set()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = [item for item in items if item.nodeid in chosen]
