"""HAPI FHIR's Java client (Maven Central) against a running server, in JSON and in XML; the story is `hapi/Story.java`.

https://hapifhir.io/hapi-fhir/docs/client/introduction.html
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from told import STEPS, Running, tell, unreachable

HERE = Path(__file__).parent / "hapi"
NAMES = tuple(f"{step} ({encoding})" for encoding in ("JSON", "XML") for step in STEPS)

pytestmark = [pytest.mark.needs("java"), pytest.mark.timeout(300)]


def jars() -> list[Path]:
    """The jars of `jars.lock` in the local Maven repository, fetched when one is missing, each the pinned one."""
    home = Path(os.environ.get("MAVEN_REPOSITORY", Path.home() / ".m2" / "repository"))
    found: dict[Path, str] = {}
    for line in (HERE / "jars.lock").read_text(encoding="utf-8").splitlines():
        name, sha256 = line.split()
        group, artifact, version = name.split(":")
        found[home / group.replace(".", "/") / artifact / version / f"{artifact}-{version}.jar"] = sha256
    if not all(file.exists() for file in found):
        command = ["mvn", "-q", "-B", "dependency:resolve", f"-Dmaven.repo.local={home}"]
        run = subprocess.run(command, cwd=HERE, capture_output=True, timeout=240, check=False)
        if not all(file.exists() for file in found):
            unreachable("HAPI's client", run)
    other = [file.name for file, sha256 in found.items() if hashlib.sha256(file.read_bytes()).hexdigest() != sha256]
    assert other == []
    return list(found)


@pytest.fixture(scope="module")
def told(server: Running) -> dict[str, str]:
    # The first tier of the compiler is the faster one for a program of seconds.
    options = ["-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8"]
    classes = os.pathsep.join(map(str, jars()))
    command = ["java", *options, "-cp", classes, "Story.java", server.base, server.token]
    return tell(command, HERE, 120)


def test_every_step_is_told_in_both_encodings(told: dict[str, str]) -> None:
    assert tuple(told) == NAMES


@pytest.mark.parametrize("step", NAMES)
def test_hapi_client(told: dict[str, str], step: str) -> None:
    assert told[step] == ""
