"""The import contract of the mappers names every module of the wires that does input or output."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CONTRACT = "Mappers do no input or output"
DOING = {"socket", "ssl", "smtplib", "imaplib", "asyncio", "subprocess", "select", "selectors", "tempfile"}


def forbidden() -> set[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (found,) = (one for one in contracts if one["name"] == CONTRACT)
    assert found["source_modules"] == ["mappers"] and not found.get("allow_indirect_imports")
    return set(found["forbidden_modules"])


def imported(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_the_contract_names_whatever_does_input_or_output() -> None:
    doing = {
        f"{wire}.{module.stem}"
        for wire in ("hl7v2", "dicom_node", "mssante")
        for module in (ROOT / wire).glob("*.py")
        if DOING & set(imported(module))
    }
    assert "hl7v2.conversation" in doing and len(doing) > 8
    assert doing - forbidden() == set()
