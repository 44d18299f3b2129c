"""HAPI HL7 v2 (MPL 1.1 or GPL 2) made ready for a test: pinned jars from the local Maven repository, our peer compiled.

The jars are named in `artefacts.txt` with their digests; Maven fetches what is not there yet from wherever it is
configured to. Nothing of HAPI is kept in this repository.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def jars() -> list[Path]:
    """The pinned jars; skips (fails under REQUIRE_ALL=1) when one is neither there nor to be had."""
    home = Path(os.environ.get("MAVEN_REPOSITORY", Path.home() / ".m2" / "repository"))
    out = []
    for line in (HERE / "artefacts.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        group, artefact, version, sha256 = line.split()
        file = home / group.replace(".", "/") / artefact / version / f"{artefact}-{version}.jar"
        if not file.exists():
            name = f"-Dartifact={group}:{artefact}:{version}"
            command = ["mvn", "-q", "-B", "dependency:get", name, "-Dtransitive=false", f"-Dmaven.repo.local={home}"]
            subprocess.run(command, capture_output=True, timeout=240, check=False)
        if not file.exists():
            text = f"{artefact} {version} is not in the Maven repository and cannot be fetched"
            if os.environ.get("REQUIRE_ALL") == "1":
                pytest.fail(text, pytrace=False)
            pytest.skip(text)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256, f"{file.name} is not the pinned one"
        out.append(file)
    return out


def command(classes: Path) -> list[str]:
    """Compile the peer into a folder; the beginning of a command that runs it."""
    path = os.pathsep.join(map(str, jars()))
    source = HERE / "Hl7Peer.java"
    subprocess.run(["javac", "-cp", path, "-d", classes, source], check=True, capture_output=True, timeout=120)
    return ["java", "-Xmx256m", "-cp", f"{classes}{os.pathsep}{path}", "-Dca.uhn.hl7v2.llp.charset=UTF-8"]
