"""An S3-compatible server for tests: S3Proxy (Apache 2.0) over a folder, on a free loopback port, and ways to spoil it.

The pinned jar comes from the local Maven repository; Maven fetches it when it is not there yet from wherever it is
configured to. Nothing of it is kept in this repository.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fhir_server.config import Settings

GROUP, ARTEFACT, VERSION, KIND = "org.gaul", "s3proxy", "2.7.0", "jar-with-dependencies"
SHA256 = "f3ff95bd78a7afbbcd5da56f8f6180ef71ad00601392f7e2f5a220c97ad69eef"
BUCKET, WHO, SECRET = "content", "local", "secret-of-tests"


def jar() -> Path:
    """The pinned jar; skips (fails under REQUIRE_ALL=1) when it is neither there nor to be had."""
    home = Path(os.environ.get("MAVEN_REPOSITORY", Path.home() / ".m2" / "repository"))
    file = home / GROUP.replace(".", "/") / ARTEFACT / VERSION / f"{ARTEFACT}-{VERSION}-{KIND}.jar"
    if not file.exists():
        name = f"-Dartifact={GROUP}:{ARTEFACT}:{VERSION}:jar:{KIND}"
        command = ["mvn", "-q", "-B", "dependency:get", name, "-Dtransitive=false", f"-Dmaven.repo.local={home}"]
        subprocess.run(command, capture_output=True, timeout=240, check=False)
    if not file.exists():
        text = f"{ARTEFACT} {VERSION} is not in the Maven repository and cannot be fetched"
        if os.environ.get("REQUIRE_ALL") == "1":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256, f"{file.name} is not the pinned one"
    return file


@dataclass(frozen=True)
class BucketServer:
    """A running server; `objects` is the folder that holds the bucket's objects as files."""

    port: int
    objects: Path
    process: subprocess.Popen[bytes]

    def settings(self, prefix: str = "", **more: object) -> Settings:
        """The settings of a store whose content lies here."""
        url = f"s3://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{self.port}"
        made = Settings(blob_url=url, blob_access_key=WHO, blob_secret_key=SECRET, blob_timeout_seconds=5.0)
        return replace(made, **more)  # type: ignore[arg-type]

    def files(self, prefix: str = "") -> list[Path]:
        return sorted(path for path in (self.objects / prefix).rglob("*") if path.is_file())


def start(folder: Path) -> BucketServer:
    """A server on an empty bucket; stop it with `server.process.kill()`."""
    (folder / "data" / BUCKET).mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "conf").write_text(
        f"s3proxy.endpoint=http://127.0.0.1:{port}\ns3proxy.authorization=aws-v2-or-v4\ns3proxy.identity={WHO}\n"
        f"s3proxy.credential={SECRET}\njclouds.provider=filesystem-nio2\njclouds.identity=x\njclouds.credential=x\n"
        f"jclouds.filesystem.basedir={folder / 'data'}\n"
    )
    command = ["java", "-Xmx192m", "-XX:TieredStopAtLevel=1", "-jar", str(jar()), "--properties", str(folder / "conf")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail("S3Proxy does not start: " + (folder / "log").read_text()[-800:])
        time.sleep(0.1)
    return BucketServer(port, folder / "data" / BUCKET, process)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).close()
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return True
    except OSError:
        return False
    return True
