"""What the tests of the clients share: the server they speak to, and stories told by a client in another language.

A story is a process that prints a line a step: `ok`, tab, the step's name; or `no`, tab, the name, tab, the fault.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Running:
    """A server for clients: its FHIR base address, and an access token for everything it has."""

    base: str
    token: str


STEPS = (
    "reads the capability statement",
    "creates and reads",
    "reads a version",
    "updates the version it read and no other",
    "patches",
    "creates on a condition once",
    "sends a transaction whose references are resolved",
    "walks a search page by page with what it includes",
    "reads histories and finds the deleted gone",
    "is told what is wrong with a resource",
    "keeps the bytes of a Binary",
)


def tell(command: Sequence[str | Path], folder: Path, seconds: float) -> dict[str, str]:
    """Run the story; what went wrong by step, '' where nothing did."""
    run = subprocess.run(command, cwd=folder, capture_output=True, timeout=seconds, check=False)
    lines = [line.split("\t") for line in run.stdout.decode("utf-8").splitlines()]
    assert run.returncode == 0 and lines, run.stderr.decode("utf-8", "replace")[-2000:]
    return {name: "" if mark == "ok" else " ".join(why) for mark, name, *why in lines}


def unreachable(what: str, run: subprocess.CompletedProcess[bytes]) -> None:
    """Skip because a package could not be fetched; fail under REQUIRE_ALL=1."""
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(f"{what} cannot be fetched: {(run.stdout + run.stderr).decode('utf-8', 'replace')[-800:]}")
    pytest.skip(f"{what} is not installed and cannot be fetched")
