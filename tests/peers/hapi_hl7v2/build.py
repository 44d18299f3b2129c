"""HAPI HL7 v2 (MPL 1.1 or GPL 2) made ready for a test: pinned jars from the local Maven repository, our peer compiled.

The jars are named in `artefacts.txt` with their digests.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import maven

HERE = Path(__file__).parent


def jars() -> list[Path]:
    """The pinned jars; skips as `maven.jar` does."""
    lines = (HERE / "artefacts.txt").read_text(encoding="utf-8").splitlines()
    return [maven.jar(*line.split()) for line in lines if not line.startswith("#")]


def command(classes: Path) -> list[str]:
    """Compile the peer into a folder; the beginning of a command that runs it."""
    path = os.pathsep.join(map(str, jars()))
    source = HERE / "Hl7Peer.java"
    subprocess.run(["javac", "-cp", path, "-d", classes, source], check=True, capture_output=True, timeout=120)
    # HAPI keeps a file for its control ids in the working directory.
    return [
        "env",
        "-C",
        str(classes),
        "java",
        "-Xmx256m",
        "-cp",
        f"{classes}{os.pathsep}{path}",
        "-Dca.uhn.hl7v2.llp.charset=UTF-8",
    ]
