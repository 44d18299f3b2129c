"""Pinned jars for tests: from the local Maven repository, fetched once from wherever Maven is configured to look.

Nothing of them is kept in this repository.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest


def jar(group: str, artefact: str, version: str, sha256: str, classifier: str = "") -> Path:
    """The jar; skips (fails under REQUIRE_ALL=1) when it is neither there nor to be had."""
    home = Path(os.environ.get("MAVEN_REPOSITORY", Path.home() / ".m2" / "repository"))
    name = f"{artefact}-{version}" + (f"-{classifier}" if classifier else "")
    file = home / group.replace(".", "/") / artefact / version / f"{name}.jar"
    if not file.exists():
        wanted = f"-Dartifact={group}:{artefact}:{version}" + (f":jar:{classifier}" if classifier else "")
        command = ["mvn", "-q", "-B", "dependency:get", wanted, "-Dtransitive=false", f"-Dmaven.repo.local={home}"]
        subprocess.run(command, capture_output=True, timeout=240, check=False)
    if not file.exists():
        text = f"{artefact} {version} is not in the Maven repository and cannot be fetched"
        if os.environ.get("REQUIRE_ALL") == "1":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256, f"{file.name} is not the pinned one"
    return file
