"""What a server loads before it is ready: every start waits for it, in each of its processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Loaded when they are used for the first time: pages, the schema's upgrades, and the web framework by who answers HTTP.
LATER = ("fpdf", "fontTools", "alembic", "mako", "fastapi", "uvicorn", "pynetdicom", "pydicom", "jwt")


@pytest.fixture(scope="module")
def loaded() -> frozenset[str]:
    """The packages in a fresh process that loaded the server."""
    program = "import json, sys, fhir_server.app; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=100, check=True)
    return frozenset(json.loads(done.stdout))


@pytest.mark.parametrize("package", LATER)
def test_what_a_start_may_do_without_is_not_loaded(package: str, loaded: frozenset[str]) -> None:
    assert package not in loaded
    assert "fhir_server" in loaded
