"""fhir-kit-client (npm) against a running server; the story is `fhir_kit/story.mjs`.

https://github.com/Vermonster/fhir-kit-client
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from told import STEPS, Running, tell, unreachable

HERE = Path(__file__).parent / "fhir_kit"

pytestmark = pytest.mark.needs("npm")


def install() -> None:
    """What the lock file names, once for each of its versions."""
    lock, installed = HERE / "package-lock.json", HERE / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        run = subprocess.run(command, cwd=HERE, capture_output=True, timeout=90, check=False)
        if run.returncode:
            unreachable("fhir-kit-client", run)


@pytest.fixture(scope="module")
def told(server: Running) -> dict[str, str]:
    install()
    return tell(["node", "story.mjs", server.base, server.token], HERE, 60)


def test_every_step_is_told(told: dict[str, str]) -> None:
    assert tuple(told) == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_fhir_kit_client(told: dict[str, str], step: str) -> None:
    assert told[step] == ""
