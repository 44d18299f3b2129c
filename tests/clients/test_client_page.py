"""The page for vendors, `docs/clients.md`: every snippet on it is a piece of a test that runs."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "clients.md"
SOURCES = {
    "fhirpy": HERE / "test_client_fhirpy.py",
    "fhirclient": HERE / "test_client_fhirclient.py",
    "fhir-kit-client": HERE / "fhir_kit" / "story.mjs",
    "hapi": HERE / "hapi" / "Story.java",
}
_BLOCK = re.compile(r"<!-- ([a-z-]+): ([a-z -]+) -->\n```[a-z]+\n(.*?)```\n", re.DOTALL)
_SNIPPET = r"^ *(?:#|//) snippet: {}\n(.*?)^ *(?:#|//) end\n"
BLOCKS = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("library", "name", "shown"), BLOCKS, ids=[f"{block[0]} {block[1]}" for block in BLOCKS])
def test_a_snippet_on_the_page_is_a_piece_of_a_test_that_runs(library: str, name: str, shown: str) -> None:
    source = SOURCES[library].read_text(encoding="utf-8")
    (run,) = re.findall(_SNIPPET.format(name), source, re.DOTALL | re.MULTILINE)
    assert shown == textwrap.dedent(run)


def test_every_piece_marked_for_the_page_is_on_it() -> None:
    marked = {
        (library, name)
        for library, source in SOURCES.items()
        for name in re.findall(r"(?:#|//) snippet: (.+)\n", source.read_text(encoding="utf-8"))
    }
    assert {(library, name) for library, name, _ in BLOCKS} == marked
    assert PAGE.read_text(encoding="utf-8").count("```") == 2 * len(BLOCKS)
