"""The judge uses nothing of what it judges."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys, pkgutil, importlib, conformance, conformance.checks, conformance.peers
for package in (conformance, conformance.checks):
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "__main__":
            importlib.import_module(f"{package.__name__}.{module.name}")
for name in ("broken_fhir", "broken_hl7", "broken_dicom", "broken_sender", "broken_files"):
    importlib.import_module(f"conformance.peers.{name}")
importlib.import_module("conformance.__main__")
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
OURS = {"fhir_server", "mappers", "hl7v2", "dicom_node", "mssante"}
LIBRARIES = {"pydicom", "pynetdicom", "fastapi", "starlette", "httpx", "sqlalchemy", "hl7apy", "lxml", "fhir"}


def test_the_judge_imports_no_wire_no_mapper_no_hub_and_no_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "conformance" in loaded
    assert loaded & (OURS | LIBRARIES) == set()
