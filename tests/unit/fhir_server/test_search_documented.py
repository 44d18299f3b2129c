"""docs/search.md says what the program does: its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fhir_server.search import clauses, filters, fulltext, query

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "search.md").read_text()


def table(heading: str) -> dict[str, str]:
    """The first two columns of the first table behind a text."""
    part = TEXT.split(heading, 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", part, re.MULTILINE)
    assert rows is not None
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in rows[0].splitlines()[2:]]
    return {row[0].strip(): row[1].strip() for row in cells}


def quoted(cell: str) -> list[str]:
    return re.findall(r"`:?([^`]+)`", cell)


def test_the_modifiers_are_those_of_the_code() -> None:
    told = {kind: quoted(cell) for kind, cell in table("Modifiers (*checked*)").items()}
    for kind, modifiers in clauses.MODIFIERS.items():
        if kind != "special":
            assert [one for one in told[kind] if one != "[type]"] == list(modifiers), kind
    assert set(told) == set(clauses.MODIFIERS) - {"special"}


def test_the_operators_of_filters_are_those_of_the_code() -> None:
    told = {kind: quoted(cell) for kind, cell in table("Operators (*checked*)").items()}
    assert told == {kind: list(known) for kind, known in filters.OPERATORS.items() if known}


@pytest.mark.parametrize(
    ("limit", "number"),
    [
        ("parameters in a search", query.MAX_PARAMETERS),
        ("values of a parameter", clauses.MAX_VALUES),
        ("references in a row", clauses.MAX_DEPTH),
        ("references in all", query.MAX_HOPS),
        ("comparisons in `_filter`", filters.MAX_COMPARISONS),
        ("brackets in `_filter`", filters.MAX_NESTED),
        ("words in `_text`", fulltext.MAX_TERMS),
        ("keys of `_sort`", query.MAX_SORT_KEYS),
    ],
)
def test_the_limits_are_those_of_the_code(limit: str, number: int) -> None:
    assert table("## Limits")[limit] == str(number)
